//! `lunette disk add`: a running cluster grows by a disk, or is as it was.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lunette_tests::binary::lunette_bin;
use lunette_tests::server::{alive, wait_gone};
use lunette_tests::{Lunette, Outcome, command};
use serde_json::Value;

/// How long a node may take to notice and a cluster to heal, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn text(path: &Path) -> &str {
    path.to_str().expect("a path that is text")
}

fn add(lunette: &Lunette, node: &str, path: &Path, capacity: &str) -> Outcome {
    lunette.cli(["disk", "add", "--node", node, text(path), "--capacity", capacity])
}

/// The disk at `path`, as `disk list --json` has it.
fn disk_at(lunette: &Lunette, path: &Path) -> Option<Value> {
    let list = lunette.json(["disk", "list"]);
    list.as_array().expect("a list").iter().find(|disk| disk["path"] == text(path)).cloned()
}

fn wait_state(lunette: &Lunette, path: &Path, state: &str) -> Value {
    let end = Instant::now() + PATIENCE;
    loop {
        let disk = disk_at(lunette, path);
        if let Some(disk) = disk.as_ref().filter(|disk| disk["state"] == state) {
            return disk.clone();
        }
        assert!(Instant::now() < end, "not {state} in time: {disk:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn wait_healthy(lunette: &Lunette) {
    let end = Instant::now() + PATIENCE;
    loop {
        let status = lunette.cli(["status"]);
        if status.stdout.starts_with("health: healthy\n") {
            return;
        }
        assert!(Instant::now() < end, "not healthy in time: {status}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Exit 1, one line on standard error with all of `needles`, nothing on standard output.
fn assert_refused(outcome: &Outcome, needles: &[&str]) {
    assert_eq!(outcome.code, 1, "{outcome}");
    assert_eq!(outcome.stderr.lines().count(), 1, "not exactly one line: {outcome}");
    for needle in needles {
        assert!(outcome.stderr.contains(needle), "nothing of {needle:?}: {outcome}");
    }
    assert!(outcome.stdout.is_empty(), "{outcome}");
}

/// What a test writes to one extent of volume `name`, and reads again.
fn pattern(extent: u32) -> Vec<u8> {
    (0..8192u32).map(|index| (index / 512 + extent * 7) as u8).collect()
}

const EXTENTS: u32 = 16;
/// Logical blocks of an extent.
const EXTENT_BLOCKS: u64 = 8192;

fn write_all(lunette: &Lunette, name: &str) {
    let mut initiator = lunette.initiator(name);
    initiator.ready().expect("a connection");
    for extent in 0..EXTENTS {
        let answer =
            initiator.write(u64::from(extent) * EXTENT_BLOCKS, &pattern(extent)).expect("a connection");
        assert_eq!(answer.status, 0, "{answer:x?}");
    }
}

fn read_all(lunette: &Lunette, name: &str) {
    let mut initiator = lunette.initiator(name);
    initiator.ready().expect("a connection");
    for extent in 0..EXTENTS {
        let answer = initiator.read(u64::from(extent) * EXTENT_BLOCKS, 16).expect("a connection");
        assert_eq!(answer.status, 0, "{answer:x?}");
        assert!(answer.data == pattern(extent), "extent {extent} is another");
    }
}

/// Adds a disk, uses it through a pool that is made afterwards, and finds all of it after a power cut.
fn grows(mut lunette: Lunette) {
    let path = lunette.scratch().join("two");
    fs::create_dir(&path).expect("made");
    let wide =
        ["pool", "create", "wide", "--replicas", "4", "--failure-domain", "disk", "--partitions", "64"];
    assert_refused(&lunette.cli(wide), &["4 copies"]);
    let outcome = add(&lunette, "node2", &path, "1G");
    let printed = outcome.success();
    assert!(printed.contains(text(&path)) && printed.contains("in service"), "{printed}");
    assert!(printed.contains("pools move their share of copies to it"), "{printed}");
    let disk = disk_at(&lunette, &path).expect("it is listed");
    assert_eq!(
        (&disk["node"], &disk["state"], &disk["kind"]),
        (&"node2".into(), &"in-sync".into(), &"directory".into())
    );
    assert!(disk["capacity_bytes"].as_u64().is_some_and(|bytes| bytes > 0 && bytes <= 1 << 30), "{disk}");
    assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o700, "others can read it");
    wait_healthy(&lunette);
    assert_eq!(lunette.json(["pool", "show", "default"])["disks"], 3, "a pool keeps its table");

    // Four copies on four disks: the new one has all of it.
    let _ = lunette.cli(wide).success();
    assert_eq!(lunette.json(["pool", "show", "wide"])["disks"], 4);
    let _ =
        lunette.cli(["volume", "create", "data", "--size", "64M", "--pool", "wide", "--export"]).success();
    write_all(&lunette, "data");
    read_all(&lunette, "data");
    let used = disk_at(&lunette, &path).expect("it is listed")["used_bytes"].clone();
    assert!(used.as_u64().is_some_and(|bytes| bytes >= u64::from(EXTENTS) * 8192), "used: {used}");

    lunette.kill();
    lunette.restart();
    let again = wait_state(&lunette, &path, "in-sync");
    for field in ["id", "uuid", "node", "kind", "capacity_bytes"] {
        assert_eq!(again[field], disk[field], "{field}");
    }
    wait_healthy(&lunette);
    read_all(&lunette, "data");
    let status = lunette.stop();
    assert_eq!(command::code(status), 0, "a clean stop");
    lunette.restart();
    read_all(&lunette, "data");
}

#[test]
fn a_system_in_one_process_grows() {
    // Guards against a disk that is listed and serves nothing, and one that is lost over a restart.
    grows(Lunette::build().start());
}

#[test]
fn a_system_of_processes_grows() {
    // Guards against what works only while the node and the control plane are one process.
    grows(Lunette::build().processes().start());
}

#[test]
fn a_preallocated_file_becomes_a_disk() {
    // Guards against files that are taken for directories, and against data that is written over.
    let mut lunette = Lunette::build().start();
    let (blank, full) = (lunette.scratch().join("blank"), lunette.scratch().join("full"));
    fs::write(&blank, vec![0; 256 << 20]).expect("written");
    let mut bytes = vec![0; 256 << 20];
    bytes[8192..8196].copy_from_slice(b"mine");
    fs::write(&full, &bytes).expect("written");
    let whole = |path: &Path| lunette.cli(["disk", "add", "--node", "node1", text(path)]);

    assert_refused(&whole(&full), &["node1", text(&full), "8192"]);
    assert!(fs::read(&full).expect("there") == bytes, "it was written to");
    assert_refused(&add(&lunette, "node1", &blank, "300M"), &["node1", text(&blank)]);
    let _ = whole(&blank).success();
    let disk = disk_at(&lunette, &blank).expect("it is listed");
    assert_eq!((&disk["state"], &disk["kind"]), (&"in-sync".into(), &"file".into()));
    lunette.kill();
    lunette.restart();
    assert_eq!(wait_state(&lunette, &blank, "in-sync")["id"], disk["id"]);
}

#[test]
fn a_refusal_changes_nothing() {
    // Guards against others' files that become a disk, and against a wish that stays after it was refused.
    let lunette = Lunette::build().start();
    let before = lunette.json(["disk", "list"]);
    let at = |name: &str| lunette.scratch().join(name);
    let letter = at("foreign").join("letter");
    fs::create_dir(at("foreign")).expect("made");
    fs::set_permissions(at("foreign"), fs::Permissions::from_mode(0o755)).expect("set");
    fs::write(&letter, "dear").expect("written");

    assert_refused(
        &add(&lunette, "node2", &at("foreign"), "1G"),
        &["node2", text(&at("foreign")), "not empty"],
    );
    assert_eq!(fs::read_to_string(&letter).expect("there"), "dear");
    assert_eq!(fs::read_dir(at("foreign")).expect("there").count(), 1);
    assert_eq!(fs::metadata(at("foreign")).expect("there").permissions().mode() & 0o777, 0o755);

    assert_refused(&add(&lunette, "node9", &at("new"), "1G"), &["there is no node \"node9\""]);
    assert_refused(&add(&lunette, "node1", Path::new("new"), "1G"), &["absolute path"]);
    assert_refused(&add(&lunette, "node1", &at("../new"), "1G"), &["absolute path"]);
    assert_refused(&add(&lunette, "node1", &at("new"), "64K"), &["65536 bytes", "too small"]);
    assert_refused(&add(&lunette, "node1", &at("new"), "10X"), &["unknown unit"]);
    // More than an extent, and less than a disk needs for itself: the node says so.
    assert_refused(&add(&lunette, "node1", &at("new"), "16M"), &["node1", text(&at("new")), "too few"]);
    assert_refused(&add(&lunette, "node1", &at("no/where"), "1G"), &["node1", text(&at("no/where"))]);
    // A node's own disk, what lies in it, and the disk of another node.
    let own = lunette.data().canonicalize().expect("there").join("node1");
    assert_refused(&add(&lunette, "node1", &own, "1G"), &["disk-1", text(&own)]);
    assert_refused(&add(&lunette, "node1", &own.join("inside"), "1G"), &["disk-1", text(&own)]);
    assert_refused(&add(&lunette, "node2", &own, "1G"), &["node2", text(&own)]);
    assert!(!at("new").exists() && !at("no").exists() && !own.join("inside").exists());
    assert_eq!(lunette.json(["disk", "list"]), before);
    wait_healthy(&lunette);

    // Another cluster's disk is known as one.
    let other = Lunette::build().nodes(1).start();
    let theirs = other.data().join("node1");
    assert_refused(&add(&lunette, "node1", &theirs, "1G"), &["node1", text(&theirs)]);
    drop(other);

    // What was in the way is taken away; then it works, once.
    fs::remove_file(&letter).expect("removed");
    let _ = add(&lunette, "node2", &at("foreign"), "1G").success();
    assert_refused(
        &add(&lunette, "node2", &at("foreign"), "1G"),
        &["node2", "has disk-", text(&at("foreign"))],
    );
    assert_refused(&add(&lunette, "node3", &at("foreign"), "1G"), &["node3", text(&at("foreign"))]);
    assert_eq!(lunette.json(["disk", "list"]).as_array().map(Vec::len), Some(4));
    wait_state(&lunette, &at("foreign"), "in-sync");
}

#[test]
fn a_disk_that_is_missing_is_not_made_anew() {
    // Guards against an empty mount point that takes the place of a disk with data, and a node that does not start
    // because of one disk of many.
    let mut lunette = Lunette::build().volume("alpha", "64M").start();
    let path = lunette.scratch().join("two");
    let _ = add(&lunette, "node2", &path, "1G").success();
    let pool = ["pool", "create", "wide", "--replicas", "1", "--failure-domain", "disk"];
    let _ = lunette.cli(pool).success();
    lunette.stop();
    let away = lunette.scratch().join("away");
    fs::rename(&path, &away).expect("moved away");
    fs::create_dir(&path).expect("an empty folder in its place");

    lunette.restart();
    let disk = wait_state(&lunette, &path, "refused");
    assert!(disk["reason"].as_str().is_some_and(|reason| reason.contains(text(&path))), "{disk}");
    let listed = lunette.cli(["disk", "list"]).success();
    let row = listed.lines().find(|line| line.contains(text(&path))).expect("a row");
    assert!(row.contains("refused") && row.contains("no Lunette disk"), "{listed}");
    let status = lunette.cli(["status"]).success();
    assert!(status.starts_with("health: degraded ("), "{status}");
    assert_eq!(fs::read_dir(&path).expect("there").count(), 0, "it was not formatted");
    let mut initiator = lunette.initiator("alpha");
    initiator.ready().expect("a connection");
    assert_eq!(initiator.write(0, &[1; 4096]).expect("a connection").status, 0, "the other disks serve");

    fs::remove_dir(&path).expect("still empty");
    fs::rename(&away, &path).expect("put back");
    wait_state(&lunette, &path, "in-sync");
    wait_healthy(&lunette);
}

/// `disk add` that is left to itself.
fn add_in_background(lunette: &Lunette, node: &str, path: &Path) -> Child {
    let mut command = Command::new(lunette_bin());
    command.args(["disk", "add", "--node", node, text(path), "--capacity", "1G"]);
    command.env("LUNETTE_ADMIN", format!("http://{}", lunette.admin()));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("start a command")
}

/// Wishes for a disk of a node that is silent: nobody can have carried it out.
fn wish(lunette: &Lunette, node: &str, path: &Path) -> Child {
    let (_, pid) = lunette.pids().into_iter().find(|(name, _)| name == node).expect("a pid file");
    for _ in 0..20 {
        wait_healthy(lunette);
        command::freeze(pid);
        let mut child = add_in_background(lunette, node, path);
        let end = Instant::now() + Duration::from_secs(20);
        while Instant::now() < end {
            if disk_at(lunette, path).is_some_and(|disk| disk["state"] == "adding") {
                return child;
            }
            // The machine was slow, and the node was taken for dead before it was asked for anything.
            if child.try_wait().expect("wait for a child").is_some() {
                break;
            }
        }
        let _ = command::wait(&mut child, Duration::ZERO);
        command::thaw(pid);
    }
    panic!("{node} was never asked for a disk");
}

#[test]
fn a_wish_outlives_everybody() {
    // Guards against a disk that is forgotten, or half made, because somebody died while it was added.
    let mut lunette = Lunette::build().processes().start();
    let path: PathBuf = lunette.scratch().join("two");
    let mut child = wish(&lunette, "node2", &path);
    // The node, the control plane and the command die.
    child.kill().expect("kill a child of ours");
    child.wait().expect("wait for a child");
    lunette.kill();
    assert!(!path.exists(), "nobody has made it");
    lunette.restart();
    wait_state(&lunette, &path, "in-sync");
    wait_healthy(&lunette);

    // Only the node dies; the command says so, and the disk comes with the node.
    let path = lunette.scratch().join("three");
    let mut child = wish(&lunette, "node3", &path);
    let (_, pid) = lunette.pids().into_iter().find(|(name, _)| name == "node3").expect("a pid file");
    command::kill(pid);
    wait_gone(pid);
    let status = command::wait(&mut child, PATIENCE).expect("the command does not wait for ever");
    assert_eq!(command::code(status), 1);
    assert_refused(&add(&lunette, "node3", &path, "1G"), &["node3 is down", "once it is back"]);
    let mut only = Command::new(lunette_bin());
    only.args(["up", "--processes", "--only", "node3", "--data"]).arg(lunette.data());
    only.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut node = only.spawn().expect("start node3");
    wait_state(&lunette, &path, "in-sync");
    assert!(alive(node.id()));
    command::terminate(node.id());
    let _ = command::wait(&mut node, Duration::from_secs(10));
}

//! The command line as scripts use it: every command, `--json`, and what bad input gets.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use lunette_tests::binary::lunette_bin;
use lunette_tests::command::run;
use lunette_tests::{Initiator, Lunette, Outcome, iqn, ports};
use serde_json::Value;

/// Whether some string in `value` is `text`.
fn has(value: &Value, text: &str) -> bool {
    match value {
        Value::String(found) => found == text,
        Value::Array(items) => items.iter().any(|item| has(item, text)),
        Value::Object(fields) => fields.values().any(|field| has(field, text)),
        _ => false,
    }
}

/// Whether some number in `value` is `number`; 64-bit ones may be strings.
fn has_number(value: &Value, number: u64) -> bool {
    match value {
        Value::Number(found) => found.as_u64() == Some(number),
        Value::String(found) => *found == number.to_string(),
        Value::Array(items) => items.iter().any(|item| has_number(item, number)),
        Value::Object(fields) => fields.values().any(|field| has_number(field, number)),
        _ => false,
    }
}

/// The innermost object with a string `text` directly in it.
fn object_with<'a>(value: &'a Value, text: &str) -> Option<&'a serde_json::Map<String, Value>> {
    match value {
        Value::Array(items) => items.iter().find_map(|item| object_with(item, text)),
        Value::Object(fields) => {
            let inner = fields.values().find_map(|field| object_with(field, text));
            inner.or_else(|| fields.values().any(|field| field == text).then_some(fields))
        }
        _ => None,
    }
}

/// Waits until nothing of this name is listed any more: a volume goes when its data is gone from the disks.
fn gone(lunette: &Lunette, kind: &str, name: &str) {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let list = lunette.json([kind, "list"]);
        if !has(&list, name) {
            return;
        }
        let leaving = object_with(&list, name)
            .is_some_and(|row| row.get("state").is_some_and(|state| state == "deleting"));
        assert!(leaving && Instant::now() < end, "{name} was deleted and is still there: {list}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Exit 1 and exactly one line on standard error that contains `needle`.
fn assert_refused(outcome: &Outcome, needle: &str) {
    assert_eq!(outcome.code, 1, "{outcome}");
    assert!(
        outcome.stderr.ends_with('\n') && outcome.stderr.lines().count() == 1,
        "not exactly one line: {outcome}"
    );
    assert!(
        outcome.stderr.to_lowercase().contains(&needle.to_lowercase()),
        "nothing of {needle:?}: {outcome}"
    );
    assert!(outcome.stdout.is_empty(), "{outcome}");
}

#[test]
fn volumes_are_created_shown_resized_and_deleted() {
    // Guards against a command that says yes and does something else.
    let lunette = Lunette::build().start();
    let ok = |arguments: &[&str]| lunette.cli(arguments.iter().copied()).success();
    ok(&["volume", "create", "plain", "--size", "64M"]);
    ok(&["volume", "create", "striped", "--size", "1GiB", "--stripe-unit", "64KiB", "--stripe-width", "4"]);
    ok(&["volume", "create", "cached", "--size", "64M", "--write-back"]);
    ok(&["volume", "create", "shown", "--size", "64M", "--export"]);

    let list = lunette.json(["volume", "list"]);
    for name in ["plain", "striped", "cached", "shown"] {
        assert!(has(&list, name), "{name} in {list}");
        assert!(lunette.cli(["volume", "list"]).success().contains(name));
        let shown = lunette.json(["volume", "show", name]);
        assert!(has(&shown, name), "{shown}");
        assert!(lunette.cli(["volume", "show", name]).success().contains(name));
    }
    let striped = lunette.json(["volume", "show", "striped"]);
    assert!(
        has_number(&striped, 1 << 30) && has_number(&striped, 64 << 10) && has_number(&striped, 4),
        "{striped}"
    );

    let found = Initiator::discover(lunette.portal()).expect("discovery");
    assert_eq!(found.iter().map(|target| target.name.clone()).collect::<Vec<_>>(), [iqn("shown")]);

    ok(&["volume", "resize", "plain", "--size", "128M"]);
    assert!(has_number(&lunette.json(["volume", "show", "plain"]), 128 << 20));
    ok(&["volume", "delete", "plain"]);
    gone(&lunette, "volume", "plain");
    assert_refused(&lunette.cli(["volume", "show", "plain"]), "plain");
}

#[test]
fn pools_say_how_many_copies() {
    // Guards against a pool of another policy than the one that was asked for.
    let lunette = Lunette::build().start();
    let ok = |arguments: &[&str]| lunette.cli(arguments.iter().copied()).success();
    for (name, replicas) in [("one", "1"), ("two", "2"), ("three", "3")] {
        ok(&["pool", "create", name, "--replicas", replicas]);
        let shown = lunette.json(["pool", "show", name]);
        assert!(has(&shown, name) && has_number(&shown, replicas.parse().expect("a number")), "{shown}");
        ok(&["pool", "show", name]);
        ok(&["volume", "create", name, "--size", "64M", "--pool", name, "--export"]);
        let mut initiator = lunette.initiator(name);
        initiator.ready().expect("a connection");
        assert_eq!(initiator.write(0, &[9; 4096]).expect("a connection").status, 0);
        assert_eq!(initiator.read(0, 8).expect("a connection").data, [9; 4096]);
    }
    assert!(ok(&["pool", "list"]).contains("three"));
    assert_refused(&lunette.cli(["pool", "delete", "two"]), "two");
    ok(&["volume", "delete", "two", "--force"]);
    gone(&lunette, "volume", "two");
    ok(&["pool", "delete", "two"]);
    assert!(!has(&lunette.json(["pool", "list"]), "two"));
}

#[test]
fn targets_show_volumes_to_whom_they_allow() {
    // Guards against a LUN that somebody sees who should not, and one that nobody sees.
    let lunette = Lunette::build().start();
    let ok = |arguments: &[&str]| lunette.cli(arguments.iter().copied()).success();
    let target = "iqn.2026-11.io.lunette.tests:db";
    ok(&["volume", "create", "data", "--size", "64M"]);
    ok(&["volume", "create", "log", "--size", "64M"]);
    ok(&["target", "create", target]);
    ok(&["target", "map", target, "data", "--lun", "0"]);
    ok(&["target", "map", target, "log", "--lun", "7"]);
    let show = lunette.json(["target", "show", target]);
    assert!(has(&show, target) && has(&show, "data") && has_number(&show, 7), "{show}");
    assert!(ok(&["target", "list"]).contains(target));
    assert!(has(&lunette.json(["target", "list"]), target));

    let seen =
        || Initiator::discover(lunette.portal()).expect("discovery").iter().any(|found| found.name == target);
    ok(&["target", "allow", target, "--initiator", "iqn.1998-01.com.vmware:*"]);
    assert!(!seen(), "an ACL for others admits us");
    assert!(Initiator::login(lunette.portal(), target).is_err(), "an ACL for others admits us");
    ok(&["target", "allow", target, "--initiator", "iqn.2026-11.io.lunette.tests:*", "--from", "10.0.0.0/8"]);
    assert!(Initiator::login(lunette.portal(), target).is_err(), "an ACL for another network admits us");
    ok(&["target", "deny", target, "--initiator", "iqn.2026-11.io.lunette.tests:*", "--from", "10.0.0.0/8"]);
    ok(&[
        "target",
        "allow",
        target,
        "--initiator",
        "iqn.2026-11.io.lunette.tests:*",
        "--from",
        "127.0.0.0/8",
    ]);
    assert!(seen());
    let mut initiator = Initiator::login(lunette.portal(), target).expect("allowed");
    initiator.ready().expect("a connection");
    initiator.logout().expect("a connection");

    ok(&["target", "unmap", target, "log"]);
    let show = lunette.json(["target", "show", target]);
    assert!(!has(&show, "log"), "{show}");
    ok(&["target", "deny", target, "--initiator", "iqn.2026-11.io.lunette.tests:*", "--from", "127.0.0.0/8"]);
    assert!(Initiator::login(lunette.portal(), target).is_err(), "denied again");
    ok(&["target", "delete", target]);
    assert!(!has(&lunette.json(["target", "list"]), target));
    assert!(has(&lunette.json(["volume", "list"]), "data"), "a target's volumes stay");

    let named = ok(&["target", "create"]);
    let list = ok(&["target", "list"]);
    assert!(list.contains("iqn.2026-11.io.lunette:"), "a target without a name gets one: {named}{list}");
}

#[test]
fn a_read_only_lun_takes_no_writes() {
    // Guards against a protection that only the listing shows (SBC-3, 4.12).
    let lunette = Lunette::build().start();
    let target = "iqn.2026-11.io.lunette.tests:ro";
    let commands: [&[&str]; 4] = [
        &["volume", "create", "data", "--size", "64M"],
        &["target", "create", target],
        &["target", "map", target, "data", "--read-only"],
        &["target", "allow", target, "--initiator", "*"],
    ];
    for command in commands {
        let _ = lunette.cli(command.iter().copied()).success();
    }
    let mut initiator = Initiator::login(lunette.portal(), target).expect("allowed");
    initiator.ready().expect("a connection");
    let answer = initiator.write(0, &[1; 512]).expect("a connection");
    // DATA PROTECT, WRITE PROTECTED.
    assert_eq!((answer.status, answer.sense_code()), (2, Some((7, 0x27, 0))), "{answer:x?}");
    assert_eq!(initiator.read(0, 1).expect("a connection").data, [0; 512]);
}

#[test]
fn nodes_disks_and_status_are_listed() {
    // Guards against an operator who cannot see what the system consists of.
    let lunette = Lunette::build().nodes(4).volume("alpha", "64M").start();
    let nodes = lunette.json(["node", "list"]);
    let disks = lunette.json(["disk", "list"]);
    for value in [&nodes, &disks] {
        let rows = value.as_array().or_else(|| value.as_object()?.values().find_map(Value::as_array));
        assert_eq!(rows.map(Vec::len), Some(4), "one row for each of four: {value}");
    }
    for command in [["node", "list"], ["disk", "list"], ["cluster", "status"]] {
        let plain = lunette.cli(command).success();
        assert!(!plain.trim().is_empty());
    }
    let _ = lunette.json(["cluster", "status"]);
    let status = lunette.cli(["status"]).success();
    assert_eq!(status.lines().next(), Some("health: healthy"), "{status}");
    let status = lunette.json(["status"]);
    assert!(status.is_object(), "{status}");
}

#[test]
fn sessions_are_listed_and_kicked() {
    // Guards against an initiator that an operator can neither see nor send away.
    let lunette = Lunette::build().volume("alpha", "64M").start();
    let mut initiator = lunette.initiator("alpha");
    initiator.ready().expect("a connection");
    let end = Instant::now() + Duration::from_secs(10);
    let sessions = loop {
        let sessions = lunette.json(["session", "list"]);
        if has(&sessions, lunette_tests::initiator::NAME) {
            break sessions;
        }
        assert!(Instant::now() < end, "the session is not listed: {sessions}");
        std::thread::sleep(Duration::from_millis(100));
    };
    assert!(lunette.cli(["session", "list"]).success().contains(lunette_tests::initiator::NAME));
    let row = object_with(&sessions, lunette_tests::initiator::NAME).expect("a row");
    let id = row.get("id").unwrap_or_else(|| panic!("a session has an id: {sessions}"));
    let id = id.as_str().map_or_else(|| id.to_string(), str::to_owned);
    let _ = lunette.cli(["session", "kick", &id]).success();
    let end = Instant::now() + Duration::from_secs(10);
    while initiator.ready().is_ok() {
        assert!(Instant::now() < end, "the session goes on after the kick");
        std::thread::sleep(Duration::from_millis(50));
    }
    // Kicked is not locked out.
    let mut again = lunette.initiator("alpha");
    again.ready().expect("a connection");
}

#[test]
fn bad_input_is_refused_in_one_line_and_changes_nothing() {
    // Guards against half-done commands, and messages that nobody can act on.
    let lunette = Lunette::build().volume("alpha", "64M").start();
    let long = "x".repeat(300);
    let table: &[(&[&str], &str)] = &[
        (&["volume", "create", "v", "--size", "0"], "size"),
        (&["volume", "create", "v", "--size", "0G"], "size"),
        (&["volume", "create", "v", "--size", "10X"], "10X"),
        (&["volume", "create", "v", "--size", "-1G"], "-1"),
        (&["volume", "create", "v", "--size", "ten"], "ten"),
        (&["volume", "create", "v", "--size", ""], "size"),
        (&["volume", "create", "v", "--size", "99999999999999999999G"], "size"),
        (&["volume", "create", "v"], "size"),
        (&["volume", "create", "alpha", "--size", "64M"], "alpha"),
        (&["volume", "create", "", "--size", "64M"], "name"),
        (&["volume", "create", "two words", "--size", "64M"], "two words"),
        (&["volume", "create", "Ärger", "--size", "64M"], "name"),
        (&["volume", "create", "a/b", "--size", "64M", "--export"], "a/b"),
        (&["volume", "create", "under_score", "--size", "64M", "--export"], "under_score"),
        (&["volume", "create", "UPPER", "--size", "64M", "--export"], "UPPER"),
        (&["volume", "create", &long, "--size", "64M"], "name"),
        (&["volume", "create", "v", "--size", "64M", "--pool", "nowhere"], "nowhere"),
        (&["volume", "create", "v", "--size", "64M", "--stripe-unit", "64K"], "stripe"),
        (&["volume", "create", "v", "--size", "64M", "--stripe-unit", "3K", "--stripe-width", "2"], "stripe"),
        (
            &["volume", "create", "v", "--size", "64M", "--stripe-unit", "64K", "--stripe-width", "0"],
            "stripe",
        ),
        (&["volume", "resize", "alpha", "--size", "32M"], "alpha"),
        (&["volume", "resize", "nobody", "--size", "128M"], "nobody"),
        (&["volume", "delete", "nobody"], "nobody"),
        (&["volume", "delete", "alpha"], "alpha"),
        (&["volume", "show", "nobody"], "nobody"),
        (&["volume", "explode", "alpha"], "explode"),
        (&["volume"], "volume"),
        (&["pool", "create", "p", "--replicas", "0"], "replicas"),
        (&["pool", "create", "p", "--replicas", "7"], "replicas"),
        (&["pool", "create", "p", "--replicas", "5"], "3"),
        (&["pool", "create", "p", "--replicas", "2", "--failure-domain", "planet"], "planet"),
        (&["pool", "create", "default", "--replicas", "2"], "default"),
        (&["pool", "delete", "default"], "default"),
        (&["pool", "show", "nowhere"], "nowhere"),
        (&["target", "create", "not-an-iqn"], "not-an-iqn"),
        (&["target", "create", "iqn.2026-11.io.lunette:two words"], "iqn"),
        (&["target", "create", "iqn.2026-11.io.lunette:alpha"], "alpha"),
        (&["target", "create", "iqn.2026-13.io.lunette:month"], "iqn"),
        (&["target", "map", "iqn.2026-11.io.lunette:none", "alpha"], "iqn.2026-11.io.lunette:none"),
        (&["target", "map", "iqn.2026-11.io.lunette:alpha", "nobody"], "nobody"),
        (&["target", "map", "iqn.2026-11.io.lunette:alpha", "alpha", "--lun", "99999"], "lun"),
        (&["target", "unmap", "iqn.2026-11.io.lunette:alpha", "nobody"], "nobody"),
        (
            &["target", "allow", "iqn.2026-11.io.lunette:alpha", "--initiator", "*", "--from", "10.0.0.0/33"],
            "10.0.0.0/33",
        ),
        (&["target", "deny", "iqn.2026-11.io.lunette:alpha", "--initiator", "iqn.nobody"], "access entry"),
        (&["target", "delete", "iqn.2026-11.io.lunette:none"], "iqn.2026-11.io.lunette:none"),
        (
            &[
                "target",
                "chap",
                "iqn.2026-11.io.lunette:alpha",
                "--user",
                "u",
                "--secret-file",
                "/nonexistent",
            ],
            "/nonexistent",
        ),
        (&["target", "chap", "iqn.2026-11.io.lunette:alpha", "--user", "u"], "secret"),
        (&["session", "kick", "gateway1/4711"], "4711"),
        (&["status", "--admin", "http://127.0.0.1:1"], "127.0.0.1:1"),
        (&["status", "--admin", "nonsense://"], "nonsense"),
        (&["frobnicate"], "frobnicate"),
        (&["--no-such-option"], "--no-such-option"),
    ];
    let lists = [["volume", "list"], ["target", "list"], ["pool", "list"]];
    let seen = || lists.map(|list| lunette.json(list));
    let before = seen();
    let mut wrong = Vec::new();
    for (arguments, needle) in table {
        // Each row is judged, and all that are wrong are shown together.
        let outcome = lunette.cli(arguments.iter().copied());
        if std::panic::catch_unwind(|| assert_refused(&outcome, needle)).is_err() {
            wrong.push(format!("{outcome}(expected one line with {needle:?})"));
        }
        let after = seen();
        if after != before {
            panic!("changed something: {outcome}\nbefore {before:?}\nafter {after:?}\nearlier: {wrong:#?}");
        }
    }
    assert!(wrong.is_empty(), "{} of {} rows:\n{}", wrong.len(), table.len(), wrong.join("\n\n"));
}

/// Runs `lunette up` with arguments that must make it fail.
fn up(arguments: &[&str], folder: &Path) -> Outcome {
    let mut command = Command::new(lunette_bin());
    run(command.arg("up").args(arguments).current_dir(folder), Duration::from_secs(20))
}

#[test]
fn up_refuses_bad_arguments_and_writes_nothing() {
    // Guards against a data directory that a typing error leaves behind.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let portal = ports::free().to_string();
    let admin = ports::free().to_string();
    let table: &[(&[&str], &str)] = &[
        (&["--volume", "a=0"], "size"),
        (&["--volume", "a=5Q"], "5Q"),
        (&["--volume", "a"], "NAME=SIZE"),
        (&["--volume", "=5G"], "name"),
        (&["--volume", "two words=5G"], "two words"),
        (&["--nodes", "0"], "0"),
        (&["--nodes", "many"], "many"),
        (&["--portal", "somewhere"], "somewhere"),
        (&["--portal", "127.0.0.1"], "127.0.0.1"),
        (&["--portal", "127.0.0.1:99999"], "99999"),
        (&["--only", "node1"], "processes"),
        (&["surplus"], "surplus"),
    ];
    let mut wrong = Vec::new();
    for (arguments, needle) in table {
        let mut all = vec!["--data", "data", "--admin", &admin];
        if !arguments.contains(&"--portal") && !arguments.contains(&"--only") {
            all.extend(["--portal", &portal]);
        }
        all.extend(*arguments);
        let outcome = up(&all, folder.path());
        if std::panic::catch_unwind(|| assert_refused(&outcome, needle)).is_err() {
            wrong.push(format!("{outcome}(expected one line with {needle:?})"));
        }
        assert!(!folder.path().join("data").exists(), "left a data directory: {outcome}");
    }
    assert!(wrong.is_empty(), "{} of {} rows:\n{}", wrong.len(), table.len(), wrong.join("\n\n"));
}

#[test]
fn up_refuses_a_port_that_is_taken() {
    // Guards against a server that runs without the portal that it was asked for.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (one, other) = (ports::free(), ports::free());
    let taken = TcpListener::bind(one).expect("a free port");
    let (one, other) = (one.to_string(), other.to_string());
    assert_refused(&up(&["--data", "data", "--portal", &one, "--admin", &other], folder.path()), &one);
    assert_refused(&up(&["--data", "data", "--portal", &other, "--admin", &one], folder.path()), &one);
    drop(taken);
}

/// Every file below `folder` with its content.
/// What a file is: its content; of a large one, its beginning, and when it was changed.
type Look = (Vec<u8>, Option<SystemTime>);
const LARGE: u64 = 16 << 20;

fn look(path: &Path) -> Look {
    let file = fs::File::open(path).expect("open a file");
    let metadata = file.metadata().expect("look at a file");
    let mut content = Vec::new();
    file.take(LARGE.min(metadata.len())).read_to_end(&mut content).expect("read a file");
    (content, (metadata.len() > LARGE).then(|| metadata.modified().expect("a time")))
}

fn snapshot(folder: &Path) -> BTreeMap<String, Look> {
    let mut found = BTreeMap::new();
    let mut left = vec![folder.to_owned()];
    while let Some(next) = left.pop() {
        for entry in fs::read_dir(&next).expect("read a folder") {
            let path = entry.expect("a folder entry").path();
            if path.is_dir() {
                left.push(path);
            } else {
                let name = path.strip_prefix(folder).expect("below it").display().to_string();
                found.insert(name, look(&path));
            }
        }
    }
    found
}

fn changed(before: &BTreeMap<String, Look>, after: &BTreeMap<String, Look>) -> Vec<String> {
    let names: std::collections::BTreeSet<_> = before.keys().chain(after.keys()).collect();
    names.into_iter().filter(|name| before.get(*name) != after.get(*name)).cloned().collect()
}

#[test]
fn up_refuses_a_data_directory_that_is_in_use() {
    // Guards against two processes writing one disk.
    let mut lunette = Lunette::build().volume("alpha", "64M").start();
    let mut command = Command::new(lunette_bin());
    command.arg("up").arg("--data").arg(lunette.data());
    command.args(["--portal", &ports::free().to_string(), "--admin", &ports::free().to_string()]);
    let outcome = run(&mut command, Duration::from_secs(20));
    assert_refused(&outcome, &lunette.data().display().to_string());
    let mut initiator = lunette.initiator("alpha");
    initiator.ready().expect("the first one goes on");
    drop(initiator);
    lunette.stop();
}

#[test]
fn up_refuses_a_disk_of_another_cluster() {
    // Guards against a disk that is taken over, with all its data, by a cluster that it is not of.
    let mut ours = Lunette::build().volume("alpha", "64M").start();
    let mut other = Lunette::build().volume("beta", "64M").start();
    ours.stop();
    other.stop();
    let node = |lunette: &Lunette| lunette.data().join("node2");
    fs::rename(node(&ours), ours.scratch().join("kept")).expect("move node2 away");
    let copied = run(Command::new("cp").arg("-a").args([node(&other), node(&ours)]), Duration::from_secs(20));
    assert!(copied.ok(), "{copied}");

    let before = snapshot(&node(&ours));
    let outcome = run(&mut ours.up(), Duration::from_secs(20));
    assert_refused(&outcome, "cluster");
    let changes = changed(&before, &snapshot(&node(&ours)));
    assert!(changes.is_empty(), "changed {changes:?}");

    fs::remove_dir_all(node(&ours)).expect("remove the copy");
    fs::rename(ours.scratch().join("kept"), node(&ours)).expect("move node2 back");
    ours.restart();
}

/// CRC-32C, bit by bit (RFC 3720, appendix B.4).
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 },
        )
    })
}

fn write_over(path: &Path, beginning: &[u8]) {
    let mut file = fs::OpenOptions::new().write(true).open(path).expect("open a file");
    file.write_all(beginning).expect("write a file");
}

#[test]
fn up_refuses_a_data_directory_that_it_cannot_read() {
    // Guards against guessing: a newer format or a cut file is named, and left as it is. (A damaged disk keeps no node from
    // starting that has copies of its data elsewhere; it is left as it is, too.)
    let mut lunette = Lunette::build().volume("alpha", "64M").start();
    lunette.stop();
    let manifest = fs::read_to_string(lunette.data().join("lunette.toml")).expect("DATA/lunette.toml");
    let newer_manifest = manifest.replace("format = 1", "format = 3");
    assert_ne!(manifest, newer_manifest, "the format has another version by now: {manifest}");
    // Of both superblocks, offset 8 has the disk's format, 4092 the checksum (docs/formats.md).
    let mut file = fs::File::open(lunette.data().join("node1/disk")).expect("DATA/node1/disk");
    let mut superblocks = vec![0; 8192];
    file.read_exact(&mut superblocks).expect("read a file");
    let mut newer_disk = superblocks;
    for superblock in newer_disk.chunks_exact_mut(4096) {
        superblock[8..12].copy_from_slice(&99_u32.to_le_bytes());
        let crc = crc32c(&superblock[..4092]);
        superblock[4092..].copy_from_slice(&crc.to_le_bytes());
    }
    let key = fs::read(lunette.data().join("cluster.key")).expect("DATA/cluster.key");

    let table: [(&str, Vec<u8>, &str); 6] = [
        ("lunette.toml", newer_manifest.into_bytes(), "format"),
        ("lunette.toml", manifest.as_bytes()[..manifest.len() / 2].to_vec(), "lunette.toml"),
        ("lunette.toml", Vec::new(), "lunette.toml"),
        ("node1/disk", newer_disk, "99"),
        ("cluster.key", key[..key.len() / 2].to_vec(), "cluster.key"),
        ("cluster.key", Vec::new(), "cluster.key"),
    ];
    let mut wrong = Vec::new();
    for (index, (file, content, needle)) in table.into_iter().enumerate() {
        let path = lunette.data().join(file);
        // Of a disk, only the beginning is written over.
        let is_disk = file.starts_with("node1/");
        let mut original = look(&path).0;
        if is_disk {
            original.truncate(content.len());
            write_over(&path, &content);
        } else {
            fs::write(&path, content).expect("write a file");
        }
        let before = snapshot(&lunette.data());
        let outcome = run(&mut lunette.up(), Duration::from_secs(20));
        if std::panic::catch_unwind(|| assert_refused(&outcome, needle)).is_err() {
            wrong.push(format!("row {index}, {file}: {outcome}(expected one line with {needle:?})"));
        }
        let changes = changed(&before, &snapshot(&lunette.data()));
        if !changes.is_empty() {
            wrong.push(format!("row {index}, {file}: changed {changes:?}"));
        }
        if is_disk {
            write_over(&path, &original);
        } else {
            fs::write(&path, original).expect("write a file");
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    lunette.restart();
}

#[test]
fn up_refuses_a_folder_that_is_not_its_own() {
    // Guards against writing into whatever `--data` names: a home directory, a file, a place that cannot be written.
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::write(folder.path().join("file"), "text").expect("write a file");
    let (portal, admin) = (ports::free().to_string(), ports::free().to_string());
    let with = |data: &str| up(&["--data", data, "--portal", &portal, "--admin", &admin], folder.path());
    assert_refused(&with("file"), "file");
    assert_refused(&with("/proc/lunette"), "/proc/lunette");
    fs::create_dir(folder.path().join("home")).expect("create a folder");
    fs::write(folder.path().join("home/letter.txt"), "dear reader").expect("write a file");
    assert_refused(&with("home"), "home");
    assert_eq!(
        fs::read_dir(folder.path().join("home")).expect("read it").count(),
        1,
        "wrote into a folder of something else"
    );
}

#[test]
fn node_and_gateway_refuse_bad_configuration() {
    // Guards against a process that starts with defaults because its configuration could not be read.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).expect("write a file");
    write("empty.toml", "");
    write("truncated.toml", "name = \"node1");
    write("unknown.toml", "nonsense = 1\n");
    write("binary.toml", "\u{0}\u{1}");
    for kind in ["node", "gateway"] {
        for (file, needle) in [
            ("missing.toml", "missing.toml"),
            ("empty.toml", "empty.toml"),
            ("truncated.toml", "truncated.toml"),
            ("unknown.toml", "unknown.toml"),
            ("binary.toml", "binary.toml"),
            (".", "."),
        ] {
            let mut command = Command::new(lunette_bin());
            command.args([kind, "run", "--config", file]).current_dir(folder.path());
            assert_refused(&run(&mut command, Duration::from_secs(20)), needle);
        }
        let mut command = Command::new(lunette_bin());
        assert_refused(&run(command.args([kind, "run"]), Duration::from_secs(20)), "config");
    }
}

#[test]
fn help_and_version_are_printed() {
    // Guards against a program that cannot explain itself.
    let help = run(Command::new(lunette_bin()).arg("--help"), Duration::from_secs(10)).success();
    for command in
        ["up", "node", "gateway", "cluster", "disk", "pool", "volume", "target", "session", "status"]
    {
        assert!(help.lines().any(|line| line.trim_start().starts_with(command)), "{command} in\n{help}");
    }
    let version = run(Command::new(lunette_bin()).arg("--version"), Duration::from_secs(10)).success();
    assert!(version.starts_with("lunette ") && version.contains('.'), "{version}");
}

#[test]
fn up_prints_what_to_do_next_and_logs_elsewhere() {
    // Guards against logs on standard output, which scripts read, and against an operator left to guess the IQN.
    let lunette = Lunette::build().volume("alpha", "64M").start();
    let end = Instant::now() + Duration::from_secs(5);
    let wanted = [lunette.portal().to_string(), iqn("alpha"), "iscsiadm".to_owned()];
    loop {
        let output = lunette.output();
        if wanted.iter().all(|word| output.contains(word)) {
            assert!(
                !output.contains("INFO") && !output.contains("WARN"),
                "a log on standard output: {output}"
            );
            return;
        }
        assert!(Instant::now() < end, "{wanted:?} in\n{output}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_closed_pipe_is_no_panic() {
    // Guards against `lunette volume list | head -1` that ends with a backtrace.
    let lunette = Lunette::build().start();
    let mut command = Command::new(lunette_bin());
    command.args(["volume", "list", "--admin", &format!("http://{}", lunette.admin())]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start lunette");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("wait for a child");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!errors.contains("panicked"), "{errors}");
}

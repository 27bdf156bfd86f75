//! `lunette disk scrub`: what goes bad on a disk is found, told apart and brought back from another disk.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use lunette_tests::{Initiator, Lunette};
use serde_json::{Value, json};

/// How long damage may take until it is repaired: an owner that has nothing to do asks for it every 30 s.
const PATIENCE: Duration = Duration::from_secs(120);
const BLOCK: usize = 4096;
const SLOT: usize = 16 * BLOCK;

/// Bytes that look random and are different everywhere.
fn content(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..len / 8).flat_map(|_| next()).collect()
}

/// The disk of a node of a stopped cluster.
struct Stopped<'a> {
    lunette: &'a Lunette,
    folder: PathBuf,
    file: File,
}

impl<'a> Stopped<'a> {
    fn new(lunette: &'a Lunette, node: &str) -> Self {
        let folder = lunette.data().join(node);
        let file = File::options().read(true).write(true).open(folder.join("disk")).expect("the disk's file");
        Self { lunette, folder, file }
    }

    fn inspect(&self, more: [&str; 2]) -> Value {
        let folder = self.folder.to_str().expect("a path that is text");
        self.lunette.json(["disk", "inspect", folder, more[0], more[1]])
    }

    /// Where data and descriptor of a slot of the volume's first extent lie.
    fn unit(&self, volume: u64, slot: u64) -> (u64, u64) {
        let report = self.inspect(["--extent", &format!("volume-{volume}:0")]);
        let slots = report["extent"]["slots"].as_array().expect("slots");
        let found =
            slots.iter().find(|it| it["slot"] == slot).unwrap_or_else(|| panic!("slot {slot}: {report}"));
        let unit = self.inspect(["--unit", &found["unit"].to_string()]);
        let offset = |name: &str| unit["unit"][name].as_u64().expect("an offset");
        (offset("data_offset"), offset("descriptor_offset"))
    }

    fn check(&self) -> Value {
        let folder = self.folder.to_str().expect("a path that is text");
        let outcome = self.lunette.cli(["disk", "check", folder, "--json"]);
        serde_json::from_str(&outcome.stdout).unwrap_or_else(|error| panic!("not JSON: {error}\n{outcome}"))
    }

    fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, offset).expect("read the disk's file");
        bytes
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, offset).expect("write the disk's file");
    }

    fn flip(&self, offset: u64) {
        let byte = self.read(offset, 1)[0];
        self.write(offset, &[byte ^ 4]);
    }
}

fn disk_of(lunette: &Lunette, node: &str) -> Value {
    let disks = lunette.json(["disk", "list"]);
    disks
        .as_array()
        .expect("a list")
        .iter()
        .find(|disk| disk["node"] == node)
        .expect("the node has a disk")
        .clone()
}

/// A session that takes commands.
fn session(lunette: &Lunette) -> Initiator {
    let mut initiator = lunette.initiator("a");
    initiator.ready().expect("the unit gets ready");
    initiator
}

fn volume_id(lunette: &Lunette, name: &str) -> u64 {
    lunette.json(["volume", "show", name])["id"].as_u64().expect("an id")
}

/// Begins a pass and waits for its end.
fn scrub(lunette: &Lunette, node: &str) -> Value {
    let id = disk_of(lunette, node)["id"].to_string();
    let begun = lunette.json(["disk", "scrub", &id]);
    let pass = begun["scrub"]["pass"].as_u64().expect("a pass");
    wait(lunette, node, |scrub| scrub["pass"].as_u64() > Some(pass) || scrub["running"] == false)
}

fn wait(lunette: &Lunette, node: &str, holds: impl Fn(&Value) -> bool) -> Value {
    let end = Instant::now() + PATIENCE;
    loop {
        let scrub = disk_of(lunette, node)["scrub"].clone();
        if holds(&scrub) {
            return scrub;
        }
        assert!(Instant::now() < end, "not in time: {scrub}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn damaged(scrub: &Value) -> u64 {
    let counts = scrub["damaged"].as_object().expect("counts by name");
    counts.values().map(|count| count.as_u64().expect("a count")).sum()
}

#[test]
fn damage_is_found_by_name_and_repaired() {
    // Guards data against a disk that lies: each kind of damage to data and descriptors on one of three copies is found
    // by one pass, and brought back from the others, so that the next pass and the disk itself show nothing of it.
    let mut lunette = Lunette::build().volume("a", "64M").start();
    let volume = volume_id(&lunette, "a");
    let mut data = content(1, 12 * SLOT);
    let new = content(2, BLOCK);
    let mut initiator = session(&lunette);
    assert!(initiator.write(0, &data).expect("an answer").status == 0);
    assert!(initiator.write(3 * 8, &new).expect("an answer").status == 0);
    let old = data[3 * BLOCK..4 * BLOCK].to_vec();
    data[3 * BLOCK..4 * BLOCK].copy_from_slice(&new);
    drop(initiator);
    // Time for the owner's watermark: what none covers is compared after a restart, and that repairs descriptors, too.
    std::thread::sleep(Duration::from_secs(3));
    lunette.stop();

    let disk = Stopped::new(&lunette, "node2");
    assert_eq!(disk.check()["clean"], true, "before");
    let block = |slot, block: u64| disk.unit(volume, slot).0 + block * BLOCK as u64;
    disk.write(block(0, 3), &old);
    disk.flip(block(1, 5) + 777);
    disk.write(block(2, 6), &[0; BLOCK]);
    let other = disk.read(block(3, 8), BLOCK);
    disk.write(block(3, 7), &other);
    let descriptor = |slot| disk.unit(volume, slot).1;
    let (torn, target, source) = (descriptor(4), descriptor(5), descriptor(6));
    disk.flip(torn + 100);
    let other = disk.read(source, 512);
    disk.write(target, &other);
    let check = disk.check();
    let expected = json!({"lost": 1, "misdirected": 17, "stale": 1, "torn": 17});
    assert_eq!(check["bad_blocks"], expected, "{check}");
    drop(disk);

    lunette.restart();
    let scrub_status = scrub(&lunette, "node2");
    // The four blocks, and 16 for each descriptor that the comparison has left.
    let found = scrub_status["found_blocks"].as_u64().expect("a count");
    assert!([4, 20, 36].contains(&found), "{scrub_status}");
    assert!(scrub_status["checked_blocks"].as_u64() >= Some(12 * 16), "{scrub_status}");
    let repaired = wait(&lunette, "node2", |scrub| damaged(scrub) == 0);
    assert_eq!(repaired["repaired_blocks"], found, "{repaired}");
    let again = scrub(&lunette, "node2");
    assert_eq!((again["found_blocks"].as_u64(), damaged(&again)), (Some(0), 0), "{again}");
    let table = lunette.cli(["disk", "scrub", "--status"]);
    assert!(table.ok() && table.stdout.contains("MISDIRECTED") && table.stdout.contains("100%"), "{table}");
    let health = lunette.json(["status"]);
    assert_eq!(health["health"], "healthy", "{health}");
    let answer = session(&lunette).read(0, (data.len() / 512) as u32).expect("an answer");
    assert!(answer.status == 0 && answer.data == data, "what was written is read");
    lunette.stop();

    let disk = Stopped::new(&lunette, "node2");
    let check = disk.check();
    assert_eq!((&check["clean"], &check["bad_blocks"]), (&json!(true), &json!({})), "{check}");
    for slot in 0..12 {
        let (offset, _) = disk.unit(volume, slot);
        let at = slot as usize * SLOT;
        assert!(disk.read(offset, SLOT) == data[at..at + SLOT], "slot {slot} is right on the disk itself");
    }
}

#[test]
fn damage_that_nobody_can_repair_is_said() {
    // Guards against damage that is given up in silence: without another copy it stays in the health line, until it is
    // overwritten.
    let mut lunette = Lunette::build().volume("a", "64M").nodes(1).start();
    let volume = volume_id(&lunette, "a");
    let data = content(3, SLOT);
    assert!(session(&lunette).write(0, &data).expect("an answer").status == 0);
    lunette.stop();
    let disk = Stopped::new(&lunette, "node1");
    disk.flip(disk.unit(volume, 0).0 + 2 * BLOCK as u64);
    drop(disk);
    lunette.restart();
    assert_eq!(lunette.json(["status"])["health"], "healthy", "nobody knows yet");
    let status = scrub(&lunette, "node1");
    assert_eq!((&status["found_blocks"], &status["damaged"]["torn"]), (&json!(1), &json!(1)), "{status}");
    let first_line = || lunette.cli(["status"]).stdout.lines().next().unwrap_or_default().to_owned();
    let until = |holds: &dyn Fn(&str) -> bool| {
        let end = Instant::now() + PATIENCE;
        while !holds(&first_line()) {
            assert!(Instant::now() < end, "not in time: {}", first_line());
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    assert!(first_line().contains("1 damaged block that is not repaired"), "{}", first_line());
    until(&|line| line.contains("1 damaged block has no good copy"));
    let answer = session(&lunette).read(16, 8).expect("an answer");
    assert!(answer.status != 0, "a damaged block is not data");
    assert!(session(&lunette).write(16, &data[2 * BLOCK..3 * BLOCK]).expect("an answer").status == 0);
    until(&|line| line == "health: healthy");
    let answer = session(&lunette).read(0, (SLOT / 512) as u32).expect("an answer");
    assert!(answer.status == 0 && answer.data == data);
}

#[test]
fn what_cannot_be_scrubbed_is_refused_by_name() {
    // Guards operators who mistype: one clear line, and nothing begins.
    let lunette = Lunette::build().nodes(1).start();
    for (arguments, says) in [
        (&["disk", "scrub", "99"][..], "there is no disk-99"),
        (&["disk", "scrub", "99", "--status"], "there is no disk-99"),
        (&["disk", "scrub", "x"], "write the number that `disk list` shows"),
        (&["disk", "scrub"], "<DISK>"),
        (&["disk", "scrub", "1", "--rate", "0"], "size"),
        (&["disk", "scrub", "--status", "--rate", "1M"], "--rate"),
    ] {
        let outcome = lunette.cli(arguments.iter().copied());
        assert!(!outcome.ok() && outcome.stderr.contains(says), "{arguments:?}: {outcome}");
    }
    assert_eq!(disk_of(&lunette, "node1")["scrub"]["pass"], 0);
    let id = disk_of(&lunette, "node1")["id"].to_string();
    let outcome = lunette.cli(["disk", "scrub", &format!("disk-{id}"), "--rate", "1M"]);
    assert!(outcome.ok() && outcome.stdout.contains("pass 1 has begun"), "{outcome}");
}

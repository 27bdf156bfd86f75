//! What a crash may leave behind: acknowledged data is there, torn tails go, damage is named.

#![allow(clippy::unwrap_used, reason = "a test fails where it stops")]

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use lunette_proto::ids::*;
use lunette_proto::node::*;
use lunette_storage_node::{DiskConfig, DiskError, Node};
use support::*;

/// The journal file in use: the one with the higher segment number.
fn journal(path: &Path) -> PathBuf {
    let number = |name: &str| {
        let bytes = fs::read(path.join(name)).unwrap();
        u64::from_le_bytes(bytes[32..40].try_into().unwrap())
    };
    path.join(if number("journal.0") > number("journal.1") { "journal.0" } else { "journal.1" })
}

/// Where the records of the journal begin and end, found by walking their lengths as the specification says.
fn records(bytes: &[u8]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut position = 4096usize;
    let mut lsn = u64::from_le_bytes(bytes[40..48].try_into().unwrap());
    loop {
        let start =
            [position.next_multiple_of(64), position.next_multiple_of(4096)].into_iter().find(|start| {
                bytes[*start..].starts_with(b"LREC") && bytes[start + 16..start + 24] == lsn.to_le_bytes()
            });
        let Some(start) = start else { return found };
        let len =
            |at: usize| u32::from_le_bytes(bytes[start + at..start + at + 4].try_into().unwrap()) as usize;
        position = start + 64 + len(8) + len(12);
        found.push((start, position));
        lsn += 1;
    }
}

fn try_open(path: &Path) -> Result<Arc<Node>, DiskError> {
    Node::open(CLUSTER, [DiskConfig::new(path, Some(1 << 30))])
}

/// A disk that died after three acknowledged writes to block 0, 1 and 2; and its journal.
fn died(root: &Path) -> PathBuf {
    let path = root.join("live");
    format(&path);
    let mut disk = open(&path);
    disk.seal(1);
    for seq in 1..=3 {
        disk.write(0, seq, seq as u32 - 1, blocks(seq, 1)).unwrap();
    }
    let dead = root.join("dead");
    copy_dir(&path, &dead);
    // What power loss may leave of an extent file that was not synced: nothing.
    fs::remove_dir_all(dead.join("extents")).unwrap();
    fs::create_dir(dead.join("extents")).unwrap();
    dead
}

fn check(path: &Path, acknowledged: u64) {
    let mut disk = open(path);
    disk.generation = Generation(1);
    for seq in 1..=3 {
        let expected = if seq <= acknowledged { blocks(seq, 1) } else { zeros(1) };
        assert_eq!(disk.read(0, seq as u32 - 1, 1), Ok(expected));
    }
    // The disk goes on, and what was torn never comes back.
    disk.write(0, 10, 9, blocks(10, 1)).unwrap();
    disk.node.close();
    drop(disk);
    let mut disk = open(path);
    disk.generation = Generation(1);
    assert_eq!(disk.read(0, 9, 1), Ok(blocks(10, 1)));
    let expected = if acknowledged == 3 { blocks(3, 1) } else { zeros(1) };
    assert_eq!(disk.read(0, 2, 1), Ok(expected));
    assert_eq!(disk.seal(1).len(), 1);
}

/// Guards recovery from the journal alone, and a tail that is torn at any byte.
#[test]
fn torn_tail() {
    let root = tempfile::tempdir().unwrap();
    let dead = died(root.path());
    let bytes = fs::read(journal(&dead)).unwrap();
    let records = records(&bytes);
    let (start, end) = *records.last().unwrap();
    check_copy(root.path(), &dead, |_| {}, 3);
    let cuts = (start..start + 160).step_by(7).chain((start + 160..end).step_by(797)).chain([end - 1]);
    for cut in cuts {
        // Zeros, and what an earlier use may have left.
        for fill in [0x00, 0xa5] {
            let keep = bytes[cut];
            if keep == fill && cut == end - 1 {
                continue;
            }
            check_copy(
                root.path(),
                &dead,
                |file| file.write_all_at(&vec![fill; end - cut], cut as u64).unwrap(),
                2,
            );
        }
    }
}

fn check_copy(root: &Path, dead: &Path, damage: impl FnOnce(&fs::File), acknowledged: u64) {
    let copy = root.join("copy");
    copy_dir(dead, &copy);
    damage(&fs::OpenOptions::new().write(true).open(journal(&copy)).unwrap());
    check(&copy, acknowledged);
    fs::remove_dir_all(&copy).unwrap();
}

/// Guards against silent loss: damage to any record that was durable before the last one is an error with file and
/// place, and nothing on the disk is changed.
#[test]
fn damage_in_the_middle_is_named() {
    let root = tempfile::tempdir().unwrap();
    let dead = died(root.path());
    let bytes = fs::read(journal(&dead)).unwrap();
    let records = records(&bytes);
    let copy = root.path().join("copy");
    copy_dir(&dead, &copy);
    let name = journal(&copy);
    let file = fs::OpenOptions::new().write(true).open(&name).unwrap();
    for (start, end) in &records[..records.len() - 1] {
        for at in (*start..*start + 64).chain((*start + 64..*end).step_by(331)) {
            file.write_all_at(&[bytes[at] ^ 0x40], at as u64).unwrap();
            let before = fs::read(&name).unwrap();
            match try_open(&copy) {
                Err(DiskError::Damaged { path, .. }) => assert_eq!(path, name),
                other => panic!("byte {at} of the record at {start}: {other:?}"),
            }
            assert!(fs::read(&name).unwrap() == before, "nothing is changed");
            file.write_all_at(&[bytes[at]], at as u64).unwrap();
        }
    }
    // Also the header of the segment in use: its records say that it was.
    file.write_all_at(&[bytes[33] ^ 1], 33).unwrap();
    assert!(matches!(try_open(&copy), Err(DiskError::Damaged { .. })));
    file.write_all_at(&[bytes[33]], 33).unwrap();
    drop(file);
    check(&copy, 3);
}

/// Guards against a lost write: a segment whose header on the medium is still that of the file's earlier use is in use
/// nevertheless, and what was acknowledged in it is not given up silently.
#[test]
fn a_lost_segment_header_is_named() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("disk");
    format(&path);
    let first = path.join("journal.0");
    let header = fs::read(&first).unwrap()[..4096].to_vec();
    // Segment 2 in the other file, then segment 3 in the first one again.
    open(&path).node.close();
    let mut disk = open(&path);
    disk.seal(1);
    disk.write(0, 1, 0, blocks(1, 1)).unwrap();
    disk.node.close();
    drop(disk);
    assert_eq!(journal(&path), first);
    let file = fs::OpenOptions::new().write(true).open(&first).unwrap();
    file.write_all_at(&header, 0).unwrap();
    match try_open(&path) {
        Err(DiskError::Damaged { path, .. }) => assert_eq!(path, first),
        other => panic!("{other:?}"),
    }
}

/// Guards many segments: after the journal has gone round several times, a copy of the directory at any moment has
/// every write that was acknowledged before.
#[test]
fn copies_at_any_moment_have_what_was_acknowledged() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("live");
    format(&path);
    let mut disk = open(&path);
    disk.seal(1);
    let mut random = Random(42);
    let mut newest = std::collections::BTreeMap::new();
    for seq in 1..=400u64 {
        let (extent, first) = (random.below(6), random.below(900) as u32);
        let count = 1 + random.below(100) as usize;
        let stamped = blocks(seq, 1).repeat(count);
        disk.write(extent, seq, first, stamped.into()).unwrap();
        (first..first + count as u32).for_each(|block| {
            newest.insert((extent, block), seq);
        });
        if seq % 40 == 0 {
            let copy = root.path().join("copy");
            copy_dir(&path, &copy);
            let mut copied = open(&copy);
            copied.generation = Generation(1);
            for extent in 0..6 {
                let data = copied.read(extent, 0, 1024).unwrap();
                for ((_, block), seq) in newest.range((extent, 0)..(extent + 1, 0)) {
                    assert!(
                        data[*block as usize * 4096..][..4096] == blocks(*seq, 1),
                        "{extent} {block} {seq}"
                    );
                }
            }
            copied.node.close();
            drop(copied);
            fs::remove_dir_all(&copy).unwrap();
        }
    }
}

const CHILD: &str = "LUNETTE_TEST_CRASH_CHILD";
const GENERATION: &str = "LUNETTE_TEST_CRASH_GENERATION";

/// The child of the test below: writes without end, and says what was acknowledged.
#[test]
fn child_under_load() {
    let Ok(path) = std::env::var(CHILD) else { return };
    let mut disk = open(Path::new(&path));
    let generation = std::env::var(GENERATION).unwrap().parse().unwrap();
    disk.seal(generation);
    let mut out = std::io::stdout();
    let mut random = Random(generation);
    let mut seq = 0;
    loop {
        // Some in flight together, so that commits have several records.
        let mut sent = std::collections::BTreeMap::new();
        for _ in 0..8 {
            seq += 1;
            let (extent, block) = (random.below(3), random.below(1024) as u32);
            let change = Change::Data(blocks(generation << 24 | seq, 1));
            let version = version(generation, seq);
            let durability = Durability::Stable;
            let body =
                RequestBody::Change { extent: at(extent), version, offset: block * 4096, change, durability };
            sent.insert(disk.send(body), (extent, block, seq));
        }
        for _ in 0..8 {
            let (tag, reply) = disk.receive();
            assert_eq!(reply, Ok(ReplyBody::Done));
            let (extent, block, seq) = sent[&tag];
            writeln!(out, "ack {extent} {block} {seq}").unwrap();
        }
    }
}

/// Guards acknowledged writes against kill -9 under load, several times over on one disk.
#[test]
fn kill_9() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("disk");
    format(&path);
    let mut newest = std::collections::BTreeMap::<(u64, u32), (u64, u64)>::new();
    for round in 0..6 {
        let generation: u64 = round + 1;
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_under_load", "--nocapture"])
            .env(CHILD, &path)
            .env(GENERATION, generation.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut acknowledged = 0;
        for line in lines {
            let Ok(line) = line else { break };
            let words = line.split(' ').collect::<Vec<_>>();
            let ["ack", extent, block, seq] = words[..] else { continue };
            // The last line may be cut: it was not heard then.
            let (Ok(extent), Ok(block), Ok(seq)) = (extent.parse(), block.parse(), seq.parse()) else {
                break;
            };
            let version = newest.entry((extent, block)).or_default();
            *version = (*version).max((generation, seq));
            acknowledged += 1;
            if acknowledged == 100 + 150 * round {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(acknowledged >= 100, "the child did not come to write");

        let mut disk = open(&path);
        disk.seal(generation);
        for extent in 0..3 {
            let versions = disk.versions(extent);
            let mut found =
                versions.iter().flat_map(|run| std::iter::repeat_n(run.version, run.blocks as usize));
            let data = disk.read(extent, 0, 1024).unwrap();
            for block in 0..1024 {
                let version = found.next().unwrap_or_default();
                let acknowledged = newest.get(&(extent, block)).copied().unwrap_or_default();
                let found = (version.generation.0, version.seq);
                assert!(found >= acknowledged, "extent {extent} block {block}: {found:?} < {acknowledged:?}");
                let expected =
                    if version == Version::NONE { zeros(1) } else { blocks(found.0 << 24 | found.1, 1) };
                assert!(data[block as usize * 4096..][..4096] == expected, "extent {extent} block {block}");
            }
        }
        disk.node.close();
    }
}

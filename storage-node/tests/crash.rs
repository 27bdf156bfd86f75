//! What a crash may leave behind: acknowledged data is there, torn tails go, damage is named.

#![allow(clippy::unwrap_used, reason = "a test fails where it stops")]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use lunette_proto::ids::*;
use lunette_proto::node::*;
use lunette_storage_node::store::layout::PAGE_BYTES;
use lunette_storage_node::{DiskConfig, DiskError, Node};
use support::*;

/// A batch of the journal, by its places in the file.
#[derive(Clone, Debug)]
struct Batch {
    number: u64,
    /// Header and records.
    meta: Range<u64>,
    /// Blocks.
    data: Range<u64>,
}

/// The batches that the newest superblock does not have, found by walking the journal as the specification says.
fn batches(path: &Path) -> Vec<Batch> {
    let layout = layout();
    let file = image(path);
    let u64_at = |at: u64| u64::from_le_bytes(read_at(&file, at, 8).try_into().unwrap());
    let u32_at = |at: u64| u64::from(u32::from_le_bytes(read_at(&file, at, 4).try_into().unwrap()));
    let (_, newest) = [0, PAGE_BYTES].map(|at| (u64_at(at + 64), at)).into_iter().max().unwrap();
    let mut at = layout.wal_offset + u64_at(newest + 80);
    let mut number = u64_at(newest + 88);
    let mut found = Vec::new();
    while u32_at(at) == u64::from(u32::from_le_bytes(*b"LUWB")) && u64_at(at + 8) == number {
        let meta = at..at + u32_at(at + 4);
        let data = meta.end.next_multiple_of(PAGE_BYTES);
        let data = data..data + u32_at(at + 36) * 4096;
        at = data.end;
        found.push(Batch { number, meta, data });
        number += 1;
    }
    found
}

fn try_open(path: &Path) -> Result<Arc<Node>, DiskError> {
    Node::open(CLUSTER, [DiskConfig::new(path, None)])
}

/// A disk before and after the last of three acknowledged writes, to block 0, 1 and 2.
fn died(root: &Path) -> (PathBuf, PathBuf) {
    let (live, before, after) = (root.join("live"), root.join("before"), root.join("after"));
    format(&live);
    let mut disk = open(&live);
    disk.seal(1);
    for seq in 1..=3 {
        if seq == 3 {
            copy_disk(&live, &before);
        }
        disk.write(0, seq, seq as u32 - 1, blocks(seq, 1)).unwrap();
    }
    copy_disk(&live, &after);
    (before, after)
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
}

/// Guards recovery from the journal alone, and a last batch that is torn at any byte: its changes are there as a whole or
/// not at all.
#[test]
fn torn_tail() {
    let root = tempfile::tempdir().unwrap();
    let (before, after) = died(root.path());
    let last = batches(&after).pop().unwrap();
    assert_eq!(batches(&before).last().unwrap().number + 1, last.number);
    let whole = read_at(&image(&after), last.meta.start, last.data.end - last.meta.start);
    let copy = root.path().join("copy");
    // What was in place when the journal was written is what was there before.
    let torn = |bytes: &[u8], acknowledged| {
        copy_disk(&before, &copy);
        image(&copy).write_all_at(bytes, last.meta.start).unwrap();
        check(&copy, acknowledged);
    };
    torn(&whole, 3);
    assert_eq!(open(&copy).seal(1).len(), 1, "what a takeover has to compare");
    let meta = (last.meta.start..last.meta.end).step_by(7);
    let cuts =
        meta.chain([last.meta.end - 1]).chain(last.data.clone().step_by(797)).chain([last.data.end - 1]);
    for cut in cuts {
        let cut = (cut - last.meta.start) as usize;
        // Zeros, and what an earlier use may have left.
        for fill in [0x00, 0xa5] {
            let mut bytes = whole.clone();
            bytes[cut..].fill(fill);
            torn(&bytes, if bytes == whole { 3 } else { 2 });
        }
    }
    assert_eq!(open(&copy).seal(1).len(), 1, "the same of what was torn");
}

/// Guards against silent loss: damage to any batch that was durable before the last one is an error with file and
/// place, and nothing on the disk is changed.
#[test]
fn damage_in_the_middle_is_named() {
    let root = tempfile::tempdir().unwrap();
    let (_, dead) = died(root.path());
    let found = batches(&dead);
    assert!(found.len() >= 4, "a seal and three writes");
    let file = image(&dead);
    let whole = |file: &Image| {
        let layout = layout();
        [
            (0, layout.descriptors_offset),
            (layout.wal_offset, layout.wal_bytes),
            (layout.descriptors_offset, UNIT),
        ]
        .map(|(at, len)| read_at(file, at, len))
    };
    for batch in &found[..found.len() - 1] {
        for at in batch.meta.clone().step_by(3) {
            let byte = read_at(&file, at, 1)[0];
            file.write_all_at(&[byte ^ 0x40], at).unwrap();
            let before = whole(&file);
            match try_open(&dead) {
                Err(DiskError::Damaged { path, offset, .. }) => {
                    assert_eq!(path, dead.join("disk"));
                    assert!(
                        (batch.meta.start..batch.data.end.max(batch.meta.end)).contains(&offset),
                        "{offset}"
                    );
                }
                other => panic!("byte {at} of {batch:?}: {other:?}"),
            }
            assert!(whole(&file) == before, "nothing is changed");
            file.write_all_at(&[byte], at).unwrap();
        }
    }
    // The data of a small change: the block is lost, and says so.
    for batch in found.iter().filter(|batch| !batch.data.is_empty()).take(2) {
        let copy = root.path().join("copy");
        copy_disk(&dead, &copy);
        let at = batch.data.start + 1000;
        image(&copy).write_all_at(&[read_at(&file, at, 1)[0] ^ 1], at).unwrap();
        let mut disk = open(&copy);
        disk.generation = Generation(1);
        let block = u32::try_from(batch.number - found[0].number).unwrap() - 1;
        assert_eq!(disk.read(0, block, 1), Err(Failure::Corrupt { offset: block * 4096 }));
        assert_eq!(disk.read(0, 2, 1), Ok(blocks(3, 1)));
    }
    drop(file);
    check(&dead, 3);
}

/// Guards the disk against the loss of one superblock; without both it is not opened, and nothing is made up.
#[test]
fn one_superblock_is_enough() {
    let root = tempfile::tempdir().unwrap();
    let live = root.path().join("live");
    format(&live);
    let mut disk = open(&live);
    disk.seal(1);
    disk.write(0, 1, 0, blocks(1, 1)).unwrap();
    disk.node.close();
    drop(disk);
    for lost in [0, PAGE_BYTES] {
        for bytes in [vec![0; 4096], vec![0x11; 4096]] {
            let copy = root.path().join("copy");
            copy_disk(&live, &copy);
            image(&copy).write_all_at(&bytes, lost).unwrap();
            let mut disk = open(&copy);
            disk.generation = Generation(1);
            assert_eq!(disk.read(0, 0, 1), Ok(blocks(1, 1)));
        }
    }
    let file = image(&live);
    for at in [100, PAGE_BYTES + 100] {
        let byte = read_at(&file, at, 1)[0];
        file.write_all_at(&[byte ^ 1], at).unwrap();
    }
    assert!(matches!(try_open(&live), Err(DiskError::Damaged { .. })));
}

/// Guards many checkpoints: after the journal has gone round several times, a copy of the disk at any moment has
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
            copy_disk(&path, &copy);
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
    // Nobody reads: what a process before granted is not waited for.
    let _ = disk.seal_now(generation);
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
        disk.generation = Generation(generation);
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

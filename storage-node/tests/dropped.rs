//! Extents that a disk is no member of any more, as the node protocol says.

#![allow(clippy::unwrap_used, reason = "a test fails where it stops")]

mod support;

use lunette_proto::ids::*;
use lunette_proto::limits::NODE_DROPPED_EXTENTS_MAX;
use lunette_proto::node::*;
use support::*;

fn drop_extents(disk: &mut Client, extents: &[u64]) -> Reply {
    let generation = disk.generation;
    disk.call(RequestBody::Drop { namespace: NS, generation, extents: extents.to_vec() })
}

fn listed(disk: &mut Client) -> Vec<u64> {
    let generation = disk.generation;
    let ask = RequestBody::Extents { namespace: NS, generation, from: 0, newer_than: Version::NONE };
    match disk.call(ask) {
        Ok(ReplyBody::Extents { list, next: None }) => list.iter().map(|extent| extent.index).collect(),
        other => panic!("{other:?}"),
    }
}

fn prepared(disk: &mut Client, extent: u64) -> Vec<PreparedChange> {
    match disk.call(RequestBody::Prepared { extent: at(extent), generation: disk.generation }) {
        Ok(ReplyBody::Prepared(changes)) => changes,
        other => panic!("{other:?}"),
    }
}

/// Extents 0 to 3 with data, discards, a volatile change, and a change that is prepared in extent 1.
fn fill(disk: &mut Client) {
    for extent in 0..4 {
        disk.write(extent, 1 + extent, 0, blocks(1 + extent, 40)).unwrap();
        disk.discard(extent, 10 + extent, 16, 16).unwrap();
        disk.change(extent, 20 + extent, 70, Change::Data(blocks(20, 1)), Durability::Volatile).unwrap();
    }
    let (version, prev) = (version(1, 30), version(1, 2));
    let change = Change::Data(blocks(30, 2));
    disk.call(RequestBody::Prepare { extent: at(1), version, prev, offset: 0, change }).unwrap();
}

/// Guards drops: nothing of an extent is left, nor its space, over a restart and the death of the process too, and the others stay
/// as they are. Asked again, nothing happens.
#[test]
fn nothing_is_left() {
    let directory = tempfile::tempdir().unwrap();
    let [path, copy] = ["disk", "copy"].map(|name| directory.path().join(name));
    format(&path);
    let mut disk = open(&path);
    disk.seal(1);
    fill(&mut disk);
    assert_eq!(disk.used(), 13 * UNIT);
    let before = [0, 3].map(|extent| disk.versions(extent));
    for _ in 0..2 {
        assert_eq!(drop_extents(&mut disk, &[1, 2, 77]), Ok(ReplyBody::Done));
    }
    copy_disk(&path, &copy);
    disk.node.close();
    drop(disk);
    for path in [path, copy] {
        for _ in 0..2 {
            let mut disk = open(&path);
            disk.generation = Generation(1);
            for gone in [1, 2] {
                assert_eq!(disk.versions(gone), []);
                assert_eq!(disk.read(gone, 0, 1024), Ok(zeros(1024)));
                assert_eq!(prepared(&mut disk, gone), []);
            }
            assert_eq!([0, 3].map(|extent| disk.versions(extent)), before);
            assert_eq!(disk.read(3, 0, 16).unwrap(), blocks(4, 40).slice(..16 * 4096));
            assert_eq!(listed(&mut disk), [0, 3]);
            assert_eq!(disk.used(), 6 * UNIT);
            let dirty = disk.seal(1);
            assert_eq!(dirty.iter().map(|dirty| dirty.index).collect::<Vec<_>>(), [0, 3]);
            disk.node.close();
        }
    }
}

/// Guards what comes back to a disk: a change of any version, also of one that was there, makes the extent anew.
#[test]
fn a_dropped_extent_can_be_made_anew() {
    let directory = tempfile::tempdir().unwrap();
    format(directory.path());
    let mut disk = open(directory.path());
    disk.seal(1);
    fill(&mut disk);
    drop_extents(&mut disk, &[0, 1]).unwrap();
    disk.put(0, version(1, 1), 3, Change::Data(blocks(7, 1))).unwrap();
    disk.write(1, 31, 50, blocks(31, 1)).unwrap();
    for _ in 0..2 {
        let run = |blocks, seq| {
            let version = if seq == 0 { Version::NONE } else { version(1, seq) };
            BlockVersion { blocks, version, hole: seq == 0 }
        };
        assert_eq!(disk.versions(0), [run(3, 0), run(1, 1)]);
        assert_eq!(disk.versions(1), [run(50, 0), run(1, 31)]);
        assert_eq!(disk.read(0, 2, 3).unwrap(), [zeros(1), blocks(7, 1), zeros(1)].concat());
        disk.node.close();
        drop(disk);
        disk = open(directory.path());
        disk.generation = Generation(1);
    }
}

/// Guards invariant 13 and what an owner may ask: of another generation, an older epoch, too many extents or none, a drop changes
/// nothing; and a deleted namespace has none.
#[test]
fn wrong_ones_change_nothing() {
    let directory = tempfile::tempdir().unwrap();
    format(directory.path());
    let mut disk = open(directory.path());
    disk.epoch = Epoch(5);
    disk.seal(3);
    disk.write(0, 1, 0, blocks(1, 1)).unwrap();
    for got in [2, 4] {
        let got = Generation(got);
        let failure = Failure::Generation { sealed: Generation(3), got };
        let body = RequestBody::Drop { namespace: NS, generation: got, extents: vec![0] };
        assert_eq!(disk.call(body), Err(failure));
    }
    disk.epoch = Epoch(4);
    let late = Failure::Epoch { sealed: Epoch(5), got: Epoch(4) };
    assert_eq!(drop_extents(&mut disk, &[0]), Err(late));
    disk.epoch = Epoch(5);
    let too_many: Vec<u64> = (0..=NODE_DROPPED_EXTENTS_MAX as u64).collect();
    for extents in [&[][..], &too_many] {
        assert_eq!(drop_extents(&mut disk, extents), Err(Failure::Invalid));
    }
    assert_eq!(disk.read(0, 0, 1), Ok(blocks(1, 1)));
    assert_eq!(drop_extents(&mut disk, &too_many[1..]), Ok(ReplyBody::Done), "as many as there may be");
    assert_eq!(disk.read(0, 0, 1), Ok(blocks(1, 1)));
    disk.delete().unwrap();
    assert_eq!(drop_extents(&mut disk, &[0]), Err(Failure::Deleted));
}

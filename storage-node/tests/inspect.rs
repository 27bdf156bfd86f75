//! Looking at a disk that is not in use: what is said of it, and that nothing of it is changed.

#![allow(clippy::unwrap_used, reason = "a test fails where it stops")]

mod support;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use lunette_proto::node::{Change, RequestBody};
use lunette_storage_node::DiskError;
use lunette_storage_node::inspect::{Query, SlotReport, SuperblockReport, check, inspect};
use support::*;

/// A disk that died with three writes in its journal: a small one, a whole unit, and one that discards a unit.
fn died(root: &Path) -> std::path::PathBuf {
    let live = root.join("live");
    format(&live);
    let mut disk = open(&live);
    disk.seal(1);
    disk.write(0, 1, 3, blocks(1, 1)).unwrap();
    disk.write(0, 2, 16, blocks(2, 16)).unwrap();
    disk.discard(0, 3, 32, 16).unwrap();
    let dead = root.join("dead");
    copy_disk(&live, &dead);
    dead
}

/// Guards the tools that look: they say what is there, also what only the journal has, and change nothing.
#[test]
fn says_what_is_there() {
    let root = tempfile::tempdir().unwrap();
    let dead = died(root.path());
    let before = fs::read(dead.join("disk")).unwrap();

    let all = Query { wal: true, unit: None, extent: Some(at(0)) };
    let report = inspect(&dead, &all).unwrap();
    assert!(report.superblocks.iter().all(|superblock| matches!(superblock, SuperblockReport::Valid { .. })));
    let wal = report.wal.as_ref().unwrap();
    assert_eq!((wal.batches.len(), wal.torn, wal.damaged_at), (4, false, None));
    assert_eq!(wal.batches.iter().map(|batch| batch.data_blocks).collect::<Vec<_>>(), [0, 1, 0, 0]);
    let slots = &report.extent.as_ref().unwrap().slots;
    let [
        SlotReport::Unit { slot: 0, .. },
        SlotReport::Unit { slot: 1, unit },
        SlotReport::Hole { slot: 2, .. },
    ] = slots[..]
    else {
        panic!("{slots:?}")
    };
    let report = inspect(&dead, &Query { unit: Some(unit), ..Query::default() }).unwrap();
    let (id, slot, descriptor) = report.unit.clone().unwrap().owner.unwrap();
    assert_eq!((id, slot), (at(0), 1));
    assert!(
        descriptor
            .unwrap()
            .blocks
            .iter()
            .all(|block| block.version == version(1, 2) && block.damage.is_none())
    );
    assert!(report.to_string().contains("slot 1"), "{report}");

    let mut told = Vec::new();
    let report = check(&dead, &mut |done, total| told.push((done, total))).unwrap();
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.extents, report.units, report.recovered.batches), (1, 2, 4));
    assert_eq!(told, [(65_536, 131_072), (131_072, 131_072)]);
    assert!(fs::read(dead.join("disk")).unwrap() == before, "nothing is changed");
}

/// Guards the same for changes that are prepared: where they lie, and damage in them.
#[test]
fn says_what_is_prepared() {
    let root = tempfile::tempdir().unwrap();
    let live = root.path().join("live");
    format(&live);
    let mut disk = open(&live);
    disk.seal(1);
    disk.write(0, 1, 0, blocks(1, 16)).unwrap();
    let (version, prev) = (version(1, 2), version(1, 1));
    let change = Change::Data(blocks(2, 2));
    disk.call(RequestBody::Prepare { extent: at(0), version, prev, offset: 3 * 4096, change }).unwrap();
    disk.node.close();
    drop(disk);
    let report = inspect(&live, &Query { extent: Some(at(0)), ..Query::default() }).unwrap();
    assert!(report.to_string().contains("slot 0: prepared g1.2 after g1.1: 2 blocks from 3 on"), "{report}");
    let slots = report.extent.unwrap().slots;
    let [SlotReport::Unit { slot: 0, .. }, SlotReport::Prepared { slot: 0, unit, first: 3, blocks: 2, .. }] =
        slots[..]
    else {
        panic!("{slots:?}")
    };
    let of_unit = inspect(&live, &Query { unit: Some(unit), ..Query::default() }).unwrap().unit.unwrap();
    assert!(of_unit.is_prepared);
    assert_eq!(of_unit.owner.unwrap().0, at(0));
    let whole = check(&live, &mut |_, _| {}).unwrap();
    assert!(whole.is_clean(), "{whole}");
    assert_eq!((whole.units, whole.prepared), (2, 1));
    let file = fs::OpenOptions::new().read(true).write(true).open(live.join("disk")).unwrap();
    let offset = report.newest.layout.unit(unit) + 4 * 4096 + 77;
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 4], offset).unwrap();
    drop(file);
    let report = check(&live, &mut |_, _| {}).unwrap();
    assert_eq!(report.named.iter().map(|(id, block, _)| (*id, *block)).collect::<Vec<_>>(), [(at(0), 4)]);
}

/// Guards against damage that is not seen: a check names the block, and an inspection of its unit does too.
#[test]
fn names_damage() {
    let root = tempfile::tempdir().unwrap();
    let dead = died(root.path());
    let report = inspect(&dead, &Query { extent: Some(at(0)), ..Query::default() }).unwrap();
    let Some(SlotReport::Unit { unit, .. }) = report.extent.unwrap().slots.get(1).copied() else { panic!() };
    let offset = report.newest.layout.unit(unit) + 5 * 4096 + 1000;
    let file = fs::OpenOptions::new().read(true).write(true).open(dead.join("disk")).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
    drop(file);
    let report = check(&dead, &mut |_, _| {}).unwrap();
    assert!(!report.is_clean());
    assert_eq!(report.named.iter().map(|(id, block, _)| (*id, *block)).collect::<Vec<_>>(), [(at(0), 21)]);
    assert_eq!(report.bad.into_iter().collect::<Vec<_>>(), [("torn".to_owned(), 1)]);
    let report = inspect(&dead, &Query { unit: Some(unit), ..Query::default() }).unwrap();
    let blocks = report.unit.unwrap().owner.unwrap().2.unwrap().blocks;
    let bad =
        blocks.iter().filter(|block| block.damage.is_some()).map(|block| block.block).collect::<Vec<_>>();
    assert_eq!(bad, [21]);
}

/// Guards a disk that is served: nobody looks at it meanwhile. And what is no disk, and no unit of it, is said so.
#[test]
fn refuses() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("disk");
    format(&path);
    let disk = open(&path);
    assert!(matches!(inspect(&path, &Query::default()), Err(DiskError::InUse(_))));
    assert!(matches!(check(&path, &mut |_, _| {}), Err(DiskError::InUse(_))));
    disk.node.close();
    drop(disk);
    let query = Query { unit: Some(u32::MAX), ..Query::default() };
    assert!(matches!(inspect(&path, &query), Err(DiskError::NoSuchUnit { .. })));
    let nothing = inspect(root.path(), &Query::default());
    assert!(matches!(nothing, Err(DiskError::NotFormatted(_))), "{nothing:?}");
}

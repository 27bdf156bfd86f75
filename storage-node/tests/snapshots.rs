//! Snapshots of a namespace: what they see, what they cost, and what comes back when they end.

#![allow(clippy::unwrap_used, reason = "a test fails where it stops")]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use bytes::Bytes;
use lunette_proto::ids::*;
use lunette_proto::node::*;
use lunette_storage_node::DiskConfig;
use lunette_storage_node::engine::{Completion, DiskEngine, Engine, Operation, ReadQuery};
use lunette_storage_node::inspect::{Query, SlotReport, check, inspect};
use support::{CLUSTER, NS, UNIT, at, blocks, format_as, version, zeros};

struct Inbox(Sender<Reply>);

impl Replies for Inbox {
    fn reply(&self, _: u64, reply: Reply) {
        let _ = self.0.send(reply);
    }
}

struct Disk {
    engine: DiskEngine,
    generation: u64,
    seq: u64,
}

impl Disk {
    fn open(path: &Path) -> Self {
        let engine = DiskEngine::open(CLUSTER, &DiskConfig::new(path, None)).unwrap();
        Self { engine, generation: 1, seq: 100 }
    }

    fn formatted(path: &Path, capacity_bytes: u64) -> Self {
        format_as(path, capacity_bytes);
        let disk = Self::open(path);
        disk.ask(Operation::Seal { namespace: NS, generation: Generation(1) }).unwrap();
        disk
    }

    fn answer(ask: impl FnOnce(Completion)) -> Reply {
        let (sender, answers) = channel();
        ask(Completion::new(0, Arc::new(Inbox(sender))));
        answers.recv().unwrap()
    }

    fn ask(&self, operation: Operation) -> Reply {
        Self::answer(|done| self.engine.submit(Epoch(1), operation, done))
    }

    fn change(&mut self, extent: u64, first: u32, change: Change, durability: Durability) -> Reply {
        self.seq += 1;
        let version = version(self.generation, self.seq);
        self.ask(Operation::Change { extent: at(extent), version, offset: first * 4096, change, durability })
    }

    fn write(&mut self, extent: u64, first: u32, data: Bytes) -> Reply {
        self.change(extent, first, Change::Data(data), Durability::Stable)
    }

    fn discard(&mut self, extent: u64, first: u32, count: u32) -> Reply {
        self.change(extent, first, Change::Zeros { len: count * 4096 }, Durability::Stable)
    }

    fn mark(&self, snapshot: u64) -> Reply {
        let generation = Generation(self.generation);
        self.ask(Operation::Mark { namespace: NS, generation, snapshot: Snapshot(snapshot) })
    }

    fn unmark(&self, snapshot: u64) -> Reply {
        let generation = Generation(self.generation);
        self.ask(Operation::Unmark { namespace: NS, generation, snapshot: Snapshot(snapshot) })
    }

    fn delete(&self) -> Reply {
        self.ask(Operation::Delete { namespace: NS, generation: Generation(self.generation) })
    }

    fn read(&self, snapshot: Option<u64>, extent: u64, first: u32, count: u32) -> Result<Bytes, Failure> {
        let query = ReadQuery {
            extent: at(extent),
            generation: Generation(self.generation),
            offset: first * 4096,
            len: count * 4096,
            at: snapshot.map(Snapshot),
        };
        match Self::answer(|done| self.engine.read(Epoch(1), query, done))? {
            ReplyBody::Data(data) => Ok(data),
            other => panic!("{other:?}"),
        }
    }

    fn used_units(&self) -> u64 {
        self.engine.space().used_bytes / UNIT
    }
}

const DONE: Reply = Ok(ReplyBody::Done);

/// Guards invariant 15 on a disk: a snapshot sees what there was when it was marked, whatever is done afterwards and however often
/// the disk is opened again; what only it sees is given back with its end.
#[test]
fn a_snapshot_sees_what_was() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("disk");
    let mut disk = Disk::formatted(&path, 64 << 20);
    disk.write(0, 0, blocks(1, 64)).unwrap();
    disk.change(0, 3, Change::Data(blocks(2, 1)), Durability::Volatile).unwrap();
    assert_eq!((disk.mark(5), disk.used_units()), (DONE, 4));
    let then = disk.read(None, 0, 0, 64).unwrap();
    assert_eq!(disk.read(Some(5), 0, 0, 64).as_ref(), Ok(&then));

    // A part of a unit, a whole one, a discard of a part, of a whole; what was not there; another extent.
    disk.write(0, 5, blocks(3, 2)).unwrap();
    disk.write(0, 16, blocks(4, 16)).unwrap();
    disk.discard(0, 40, 2).unwrap();
    disk.discard(0, 48, 16).unwrap();
    disk.write(0, 100, blocks(5, 1)).unwrap();
    disk.write(7, 0, blocks(6, 1)).unwrap();
    // A second change of the same unit needs no more.
    disk.write(0, 6, blocks(7, 1)).unwrap();
    let now = [
        &then[..5 * 4096],
        &[blocks(3, 1), blocks(7, 1)].concat(),
        &then[7 * 4096..16 * 4096],
        &blocks(4, 16),
        &then[32 * 4096..40 * 4096],
        &zeros(2),
        &then[42 * 4096..48 * 4096],
        &zeros(16),
    ]
    .concat();
    for round in 0..3 {
        assert_eq!(disk.read(Some(5), 0, 0, 64).as_ref(), Ok(&then), "round {round}");
        assert_eq!(disk.read(Some(5), 0, 100, 1), Ok(zeros(1)));
        assert_eq!(disk.read(Some(5), 7, 0, 1), Ok(zeros(1)));
        assert_eq!(disk.read(None, 0, 0, 64).unwrap(), now);
        assert_eq!(disk.read(None, 7, 0, 1), Ok(blocks(6, 1)));
        // Three of the four that it sees have changed, one is a hole now; two are new.
        assert_eq!(disk.used_units(), 4 + 3 + 2);
        disk.engine.close();
        drop(disk);
        let report = check(&path, &mut |_, _| ()).unwrap();
        assert!(report.is_clean(), "{report}");
        assert_eq!((report.units, report.kept), (9, 4));
        disk = Disk::open(&path);
        disk.seq += 100 * (round + 1);
    }
    assert_eq!((disk.unmark(5), disk.used_units()), (DONE, 5));
    assert_eq!(disk.read(Some(5), 0, 0, 1), Err(Failure::Deleted));
    assert_eq!(disk.read(None, 0, 0, 64).unwrap(), now);
    disk.engine.close();
    drop(disk);
    let report = check(&path, &mut |_, _| ()).unwrap();
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.units, report.kept), (5, 0));
}

/// Guards the tools: what only snapshots see is shown, checked, and found when it is damaged; and nothing else is then.
#[test]
fn what_snapshots_keep_is_checked() {
    use std::os::unix::fs::FileExt;
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("disk");
    let mut disk = Disk::formatted(&path, 64 << 20);
    disk.write(0, 0, blocks(1, 2)).unwrap();
    disk.mark(1).unwrap();
    disk.write(0, 1, blocks(2, 1)).unwrap();
    disk.engine.close();
    drop(disk);
    let report = inspect(&path, &Query { extent: Some(at(0)), ..Query::default() }).unwrap();
    assert!(report.to_string().contains("snapshots [snapshot-1]"), "{report}");
    let extent = report.extent.unwrap();
    assert_eq!(extent.snapshots, [Snapshot(1)]);
    let [SlotReport::Unit { slot: 0, unit: now }, SlotReport::Kept { slot: 0, until, unit: Some(unit) }] =
        extent.slots[..]
    else {
        panic!("{:?}", extent.slots)
    };
    assert!(now != unit && until == Snapshot(1));
    let report = inspect(&path, &Query { unit: Some(unit), ..Query::default() }).unwrap().unit.unwrap();
    assert_eq!(report.kept_until, Some(Snapshot(1)));

    let file = std::fs::File::options().write(true).open(path.join("disk")).unwrap();
    file.write_all_at(b"other", report.data_offset + 4096).unwrap();
    drop(file);
    let report = check(&path, &mut |_, _| ()).unwrap();
    assert_eq!(report.named.iter().map(|(id, block, _)| (*id, *block)).collect::<Vec<_>>(), [(at(0), 1)]);
    let disk = Disk::open(&path);
    assert_eq!(disk.read(Some(1), 0, 1, 1), Err(Failure::Corrupt { offset: 4096 }));
    assert_eq!(disk.read(Some(1), 0, 0, 1), Ok(blocks(1, 1)));
    assert_eq!(disk.read(None, 0, 0, 2).unwrap(), [blocks(1, 1), blocks(2, 1)].concat());
}

/// Guards the order of snapshots, and who may mark, read and end them; also after the namespace was deleted, which leaves them
/// what they see.
#[test]
fn snapshots_have_their_order_and_their_owner() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("disk");
    let mut disk = Disk::formatted(&path, 64 << 20);
    disk.write(0, 0, blocks(1, 32)).unwrap();
    assert_eq!([disk.mark(0), disk.mark(u64::MAX)], [Err(Failure::Invalid), Err(Failure::Invalid)]);
    assert_eq!([disk.mark(3), disk.mark(3), disk.mark(2)], [DONE, DONE, Err(Failure::Invalid)]);
    disk.write(0, 0, blocks(2, 16)).unwrap();
    assert_eq!(disk.mark(9), DONE);
    disk.write(0, 0, blocks(3, 16)).unwrap();
    assert_eq!(disk.read(Some(4), 0, 0, 1), Err(Failure::Deleted));
    assert_eq!(disk.read(Some(10), 0, 0, 1), Err(Failure::Invalid));
    disk.generation = 2;
    let older = Failure::Generation { sealed: Generation(1), got: Generation(2) };
    assert_eq!((disk.mark(10), disk.unmark(3)), (Err(older.clone()), Err(older.clone())));
    assert_eq!(disk.read(Some(3), 0, 0, 1), Err(older));

    disk.generation = 1;
    assert_eq!((disk.used_units(), disk.delete()), (4, DONE));
    // The third version of the first unit was nobody's.
    assert_eq!(disk.used_units(), 3);
    for generation in [1, 2] {
        disk.generation = generation;
        assert_eq!(disk.read(Some(3), 0, 0, 32), Ok(blocks(1, 32)));
        let then = [blocks(2, 16), blocks(1, 32).slice(16 * 4096..)].concat();
        assert!(disk.read(Some(9), 0, 0, 32).unwrap() == then);
        assert_eq!(disk.read(None, 0, 0, 1), Err(Failure::Deleted));
        assert_eq!(disk.mark(11), Err(Failure::Deleted));
        disk.engine.close();
        drop(disk);
        assert!(check(&path, &mut |_, _| ()).unwrap().is_clean());
        disk = Disk::open(&path);
    }
    assert_eq!((disk.unmark(9), disk.used_units()), (DONE, 2));
    assert_eq!(disk.read(Some(3), 0, 0, 32), Ok(blocks(1, 32)));
    assert_eq!((disk.unmark(3), disk.unmark(3), disk.used_units()), (DONE, DONE, 0));
    assert_eq!(disk.read(Some(3), 0, 0, 1), Err(Failure::Deleted));
}

/// Guards a full disk: what snapshots see is not written over for want of room, and the end of a snapshot makes room at
/// once.
#[test]
fn the_end_of_a_snapshot_makes_room() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("disk");
    let mut disk = Disk::formatted(&path, 48 << 20);
    let mut extents = 0;
    while disk.write(extents, 0, blocks(extents, 256)).is_ok() {
        extents += 1;
    }
    assert!(extents >= 3, "{extents} MiB");
    // Overwrites need no room, before there is a snapshot.
    assert_eq!((disk.write(0, 0, blocks(100, 16)), disk.mark(1)), (DONE, DONE));
    let overwrite = |disk: &mut Disk| {
        let all = (0..extents).flat_map(|extent| (0..16).map(move |slot| (extent, slot * 16)));
        all.map(|(extent, first)| disk.write(extent, first, blocks(200, 1))).find(Reply::is_err)
    };
    assert_eq!(overwrite(&mut disk), Some(Err(Failure::NoSpace)));
    assert_eq!(disk.discard(1, 0, 256), DONE);
    for extent in 1..extents {
        assert_eq!(disk.read(Some(1), extent, 0, 256), Ok(blocks(extent, 256)));
    }
    assert_eq!((disk.unmark(1), overwrite(&mut disk)), (DONE, None));
}

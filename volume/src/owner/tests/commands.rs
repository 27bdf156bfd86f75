//! Commands that look before they write, and those that ask what takes space.

use super::*;
use crate::device::DEALLOCATED;
use lunette_proto::node::Durability;

/// Guards invariant 14: a comparison that matches writes, one that does not has sent nothing and names the first
/// byte, also where the copy that it was read from is bad.
#[test]
fn compares_and_writes() {
    let mut rig = Rig::new(3, 512);
    let bytes = |byte, len| Bytes::from(vec![byte; len]);
    let swap = |offset, compare: &Bytes, data: &Bytes| Command::CompareAndWrite {
        offset,
        compare: compare.clone(),
        data: data.clone(),
        fua: false,
    };
    assert!(rig.write(0, 8192, 1).is_ok());
    assert_eq!(rig.run(swap(512, &bytes(1, 1024), &bytes(2, 1024))), Ok(Data::new()));
    let now = [vec![1; 512], vec![2; 1024], vec![1; 6656]].concat();
    assert_eq!(rig.read(0, 8192), now);
    let differs = |at| Err(DeviceError::Miscompare { at });
    rig.sent.clear();
    assert_eq!(rig.run(swap(0, &bytes(1, 1024), &bytes(3, 1024))), differs(512));
    assert_eq!(rig.run(swap(512, &bytes(1, 512), &bytes(3, 512))), differs(0));
    assert!(rig.sent.iter().all(|it| matches!(it.body, RequestBody::Read { .. })), "{:?}", rig.sent);
    assert_eq!(rig.read(0, 8192), now);
    for disk in 0..2 {
        rig.disks.get_mut(&DiskId(disk)).unwrap().corrupt.insert((Rig::extent(0), 0));
    }
    assert_eq!(rig.run(swap(0, &bytes(1, 1024), &bytes(3, 1024))), differs(512));
    assert!(rig.disks.values().all(|disk| disk.corrupt.is_empty()), "repaired by the way");
    assert_eq!(rig.run(swap(4096, &bytes(1, 4096), &bytes(4, 4096))), Ok(Data::new()));
    assert_eq!(rig.read(4096, 4096), vec![4; 4096]);
    // Nothing was ever there.
    assert_eq!(rig.run(swap(EXTENT, &bytes(0, 512), &bytes(5, 512))), Ok(Data::new()));
    assert_eq!(rig.read(EXTENT, 1024), [vec![5; 512], vec![0; 512]].concat());
    for (wrong, why) in [
        (swap(0, &bytes(1, 512), &bytes(1, 1024)), DeviceError::Invalid),
        (swap(0, &bytes(1, 0), &bytes(1, 0)), DeviceError::Invalid),
        (swap(100, &bytes(1, 512), &bytes(1, 512)), DeviceError::Invalid),
        (swap(0, &bytes(1, 100), &bytes(1, 100)), DeviceError::Invalid),
        (swap(3584, &bytes(1, 1024), &bytes(1, 1024)), DeviceError::Invalid),
        (swap(4 * EXTENT, &bytes(1, 512), &bytes(1, 512)), DeviceError::OutOfRange),
        (swap(u64::MAX - 511, &bytes(1, 512), &bytes(1, 512)), DeviceError::OutOfRange),
    ] {
        assert_eq!(rig.run(wrong), Err(why));
    }
    assert_eq!(rig.owner.held_bytes, 0);
}

/// Guards invariant 14: what two comparisons of the same wait for is the same moment; one of them is done. And one
/// that was sent to a member is not said to have changed nothing.
#[test]
fn a_comparison_that_was_sent_is_finished() {
    let mut rig = Rig::new(2, 512);
    let swap = |to| {
        let (compare, data) = (Bytes::from(vec![0; 512]), Bytes::from(vec![to; 512]));
        Command::CompareAndWrite { offset: 512, compare, data, fua: false }
    };
    rig.down.push(DiskId(1));
    rig.start(1, swap(1));
    rig.start(2, swap(2));
    rig.wait(5000);
    assert_eq!(rig.done.remove(&1), Some(Err(DeviceError::TimedOut)));
    assert_eq!(rig.done.remove(&2), Some(Err(DeviceError::Busy)), "it had not begun");
    rig.start(3, swap(3));
    rig.down.clear();
    rig.wait(2000);
    assert_eq!(rig.done.remove(&3), Some(Err(DeviceError::Miscompare { at: 0 })));
    assert_eq!(rig.read(0, 1536), [vec![0; 512], vec![1; 512], vec![0; 512]].concat());
    assert_eq!(rig.owner.held_bytes, 0);
}

/// Guards against a comparison that is made again after its write has reached some members, which hold what it
/// wrote then: the one that had no room is taken out while the old content is to be brought back from it.
#[test]
fn what_was_compared_is_not_compared_again() {
    let mut rig = Rig::new(3, 512);
    rig.disks.get_mut(&DiskId(2)).unwrap().capacity = 0;
    let (compare, data) = (Bytes::from(vec![0; 512]), Bytes::from(vec![1; 512]));
    rig.lost_when_full = Some(DiskId(2));
    rig.start(1, Command::CompareAndWrite { offset: 0, compare, data, fua: false });
    assert_eq!(rig.down, [DiskId(2)], "the old content cannot be read");
    rig.states.insert(DiskId(2), DiskState::Out);
    rig.map();
    assert_eq!(rig.done.remove(&1), Some(Ok(Data::new())));
    assert_eq!(rig.read(0, 1024), [vec![1; 512], vec![0; 512]].concat());
    assert_eq!(rig.owner.held_bytes, 0);
}

/// Guards ORWRITE: bits beside those that are there, over partial blocks and extents, in few operations; a whole
/// transfer of zeros changes nothing.
#[test]
fn ors() {
    let mut rig = Rig::new(3, 512);
    let or = |offset, byte, len| Command::Or { offset, data: Bytes::from(vec![byte; len]), fua: false };
    let start = EXTENT - 1536;
    assert!(rig.write(start, 512, 1).is_ok());
    assert_eq!(rig.run(or(start, 6, 6144)), Ok(Data::new()));
    assert_eq!(
        rig.read(start - 512, 7168),
        [vec![0; 512], vec![7; 512], vec![6; 5632], vec![0; 512]].concat()
    );
    let size = usize::try_from(EXTENT).unwrap() * 2;
    rig.down.push(DiskId(0));
    rig.start(1, or(512, 0, size));
    assert!(rig.owner.ops.len() <= 3);
    rig.down.clear();
    rig.wait(1000);
    assert_eq!(rig.done.remove(&1), Some(Ok(Data::new())));
    assert_eq!(
        rig.read(start - 512, 7168),
        [vec![0; 512], vec![7; 512], vec![6; 5632], vec![0; 512]].concat()
    );
    assert_eq!(rig.run(or(0, 1, size + 512)), Err(DeviceError::Invalid));
    assert_eq!(rig.run(or(0, 1, 0)), Err(DeviceError::Invalid));
    assert_eq!(rig.run(or(4 * EXTENT - 512, 1, 1024)), Err(DeviceError::OutOfRange));
    assert_eq!(rig.owner.held_bytes, 0);
}

/// Guards GET LBA STATUS: content, discards and what was never written, by blocks that the range touches, after the
/// writes before it; from a member that answers.
#[test]
fn says_what_takes_space() {
    let mut rig = Rig::new(3, 512);
    let mapping = |offset, len| Command::Mapping { offset, len };
    assert!(rig.write(EXTENT - 512, 1024, 1).is_ok());
    assert!(rig.write(0, 4 * 4096, 1).is_ok());
    assert!(rig.run(Command::Zero { offset: 4096, len: 4096 }).is_ok());
    rig.down.push(DiskId(0));
    assert_eq!(rig.run(mapping(0, 6 * 4096)).unwrap().concat(), [0, 1, 0, 0, 1, 1]);
    assert_eq!(rig.run(mapping(3584, 1024)).unwrap().concat(), [0, 1]);
    assert_eq!(rig.run(mapping(EXTENT - 8192, 16_384)).unwrap().concat(), [1, 0, 0, 1]);
    assert_eq!(rig.run(mapping(3 * EXTENT, EXTENT)).unwrap().concat(), vec![1; 1024]);
    rig.start(1, Command::Write { offset: 3 * EXTENT, data: Bytes::from(vec![1; 4096]), fua: false });
    rig.start(2, mapping(3 * EXTENT, 8192));
    assert_eq!(rig.done.remove(&2), None);
    rig.down.clear();
    rig.wait(1000);
    assert_eq!(rig.done.remove(&2).unwrap().unwrap().concat(), [0, 1]);
    assert_eq!(rig.run(mapping(0, (256 << 20) + 512)), Err(DeviceError::Invalid));
    assert_eq!(rig.run(mapping(0, 4 * EXTENT + 512)), Err(DeviceError::OutOfRange));
}

/// Guards writes inside one aligned range of 64 KiB: they are one message to each member, whole blocks or not;
/// a block that it writes over whole need not be readable.
#[test]
fn a_write_in_one_unit_is_one_message() {
    let mut rig = Rig::new(2, 512);
    let changes =
        |rig: &Rig| rig.sent.iter().filter(|it| matches!(it.body, RequestBody::Change { .. })).count();
    assert!(rig.write(64 << 10, 64 << 10, 1).is_ok());
    assert_eq!(changes(&rig), 2);
    for disk in rig.disks.values_mut() {
        disk.corrupt.insert((Rig::extent(0), 18));
    }
    assert!(rig.write((64 << 10) + 512, (64 << 10) - 1024, 2).is_ok());
    assert_eq!(changes(&rig), 4);
    let now = [vec![1; 512], vec![2; (64 << 10) - 1024], vec![1; 512]].concat();
    assert_eq!(rig.read(64 << 10, 64 << 10), now);
}

/// Guards atomic writes of several units: one message to each member, once all have room for all units, or else nothing;
/// and against ranges that are none.
#[test]
fn an_atomic_write_is_one_message() {
    const UNIT: u64 = 64 << 10;
    let atomic =
        |offset, len: u64, byte| Command::WriteAtomic { offset, data: Bytes::from(vec![byte; len as usize]) };
    let changes = |rig: &mut Rig| {
        let sent = std::mem::take(&mut rig.sent);
        let len = |it: Request| match it.body {
            RequestBody::Change { change, durability, .. } => {
                assert_eq!(durability, Durability::Stable);
                Some(change.len())
            }
            _ => None,
        };
        sent.into_iter().filter_map(len).collect::<Vec<_>>()
    };
    let mut rig = Rig::new(2, 512);
    // Nothing is there: room first, then the write.
    assert!(rig.run(atomic(4096, 2 * UNIT, 1)).is_ok());
    assert_eq!(changes(&mut rig), [2 * UNIT; 4]);
    assert!(rig.run(atomic(4096, 2 * UNIT, 2)).is_ok());
    assert_eq!(changes(&mut rig), [2 * UNIT; 2]);
    // Inside one unit there is nothing to wait for.
    assert!(rig.run(atomic(8 * UNIT, UNIT, 3)).is_ok());
    assert_eq!(changes(&mut rig), [UNIT; 2]);
    let read = rig.read(0, 4 * UNIT as u32);
    let wanted = [vec![0; 4096], vec![2; 2 * UNIT as usize], vec![0; 2 * UNIT as usize - 4096]].concat();
    assert_eq!(read, wanted);

    // One disk has room for one of two units more.
    let full = rig.disks.get_mut(&DiskId(1)).unwrap();
    full.capacity = full.allocated() + 1;
    let before = rig.read(0, 16 * UNIT as u32);
    assert_eq!(rig.run(atomic(2 * UNIT, 4 * UNIT, 4)), Err(DeviceError::NoSpace));
    assert_eq!(rig.read(0, 16 * UNIT as u32), before);
    let mapped = rig.run(Command::Mapping { offset: 3 * UNIT, len: 4 * UNIT }).unwrap().concat();
    assert!(mapped.iter().all(|status| *status == DEALLOCATED), "what was made room for is given back");
    assert!(rig.run(atomic(2 * UNIT, 2 * UNIT, 5)).is_ok());

    let mib = 1 << 20;
    rig.disks.get_mut(&DiskId(1)).unwrap().capacity = usize::MAX;
    assert!(rig.run(atomic(mib, mib, 6)).is_ok());
    for (offset, len) in [(mib - 4096, 8192), (0, mib + 4096), (512, 4096), (0, 512), (0, 0)] {
        assert_eq!(rig.run(atomic(offset, len, 7)), Err(DeviceError::Invalid), "{offset} {len}");
    }
    assert_eq!(rig.run(atomic(rig.size, 4096, 7)), Err(DeviceError::OutOfRange));
}

/// Guards atomic writes on a write-back volume: a unit whose content is in memory only may be lost with its room, so room is
/// made on stable media.
#[test]
fn an_atomic_write_does_not_rely_on_memory() {
    let mut rig = Rig::new(2, 512);
    rig.owner.config.write_back = true;
    let changes =
        |rig: &Rig| rig.sent.iter().filter(|it| matches!(it.body, RequestBody::Change { .. })).count();
    let atomic = Command::WriteAtomic { offset: 0, data: Bytes::from(vec![2; 128 << 10]) };
    assert!(rig.write(0, 128 << 10, 1).is_ok());
    assert_eq!(changes(&rig), 2);
    assert!(rig.run(atomic.clone()).is_ok());
    assert_eq!(changes(&rig), 6);
    for disk in rig.disks.values_mut() {
        disk.lose_memory();
    }
    assert_eq!(rig.read(0, 128 << 10), vec![2; 128 << 10]);
    assert!(rig.run(Command::Flush).is_ok());
    assert!(rig.run(atomic).is_ok());
    assert_eq!(changes(&rig), 8);
}

/// Guards blocks that no member can read: making room for an atomic write does not put something there.
#[test]
fn an_atomic_write_makes_nothing_up() {
    let mut rig = Rig::new(2, 512);
    let atomic = Command::WriteAtomic { offset: 0, data: Bytes::from(vec![2; 128 << 10]) };
    assert!(rig.write(0, 8192, 1).is_ok());
    for disk in rig.disks.values_mut() {
        disk.corrupt.insert((Rig::extent(0), 1));
    }
    assert_eq!(rig.run(atomic.clone()), Err(DeviceError::Medium { offset: 4096 }));
    assert!(rig.disks.values().all(|disk| disk.corrupt.len() == 1));
    // What need not be written again need not be read.
    assert!(rig.write(64 << 10, 4096, 1).is_ok());
    assert!(rig.run(atomic).is_ok());
    assert_eq!(rig.read(0, 128 << 10), vec![2; 128 << 10]);
}

/// Guards reads against a disk that limps, while another one has the same; and it is read again when it does not any more.
#[test]
fn a_limping_disk_is_not_read() {
    let mut rig = Rig::new(2, 512);
    let slow = |it: &Request| it.disk == DiskId(0) && matches!(it.body, RequestBody::Change { .. });
    let write = |rig: &mut Rig, ms| {
        rig.slow = slow;
        rig.start(1, Command::Write { offset: 0, data: Bytes::from(vec![1; 4096]), fua: false });
        rig.wait(ms);
        rig.deliver();
        assert!(rig.done.remove(&1).is_some_and(|outcome| outcome.is_ok()));
    };
    let read_of = |rig: &mut Rig| {
        rig.sent.clear();
        rig.read(0, 4096);
        rig.sent.iter().find(|it| matches!(it.body, RequestBody::Read { .. })).expect("read").disk
    };
    assert_eq!(read_of(&mut rig), DiskId(0));
    for _ in 0..20 {
        write(&mut rig, 300);
    }
    assert!(rig.owner.limping().any(|it| it.disk == DiskId(0) && it.mean_ms >= 300));
    assert_eq!(read_of(&mut rig), DiskId(1));
    for _ in 0..500 {
        write(&mut rig, 10);
    }
    assert_eq!(rig.owner.limping().count(), 0);
    assert_eq!(read_of(&mut rig), DiskId(0));
}

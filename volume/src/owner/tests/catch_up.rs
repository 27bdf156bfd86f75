//! Disks that were away are brought up to date: what the simulator meets too seldom, and what an administrator sees.

use super::*;

/// The only partition of these volumes.
const ALL: Partition = Partition(0);
const AWAY: DiskId = DiskId(2);

impl Rig {
    fn away(&mut self) {
        self.states.insert(AWAY, DiskState::Out);
        self.map();
    }

    fn back(&mut self) {
        self.states.insert(AWAY, DiskState::CatchingUp);
        self.map();
    }

    fn is_ready(&self) -> bool {
        self.owner.catch_ups().iter().any(|it| it.disk == AWAY && it.ready.contains(ALL))
    }

    fn copies(&self, extent: u64, block: u32) -> Vec<crate::sim::disk::Block> {
        self.disks.values().map(|disk| disk.block(Self::extent(extent), block)).collect()
    }

    fn has_copied(&self, body: impl Fn(&RequestBody) -> bool) -> usize {
        self.sent.iter().filter(|it| it.disk == AWAY && body(&it.body)).count()
    }
}

/// Guards the amount of work: of what a disk has, only what it has missed is copied, only what may have changed is looked
/// at, and then it says so.
#[test]
fn only_what_was_missed_is_copied() {
    let mut rig = Rig::new(3, 512);
    for extent in 0..4 {
        assert!(rig.write(extent * EXTENT, 64 << 10, 1).is_ok());
    }
    rig.wait(3000);
    rig.away();
    assert!(rig.write(EXTENT + 4096, 8192, 2).is_ok());
    assert!(rig.run(Command::Zero { offset: 2 * EXTENT, len: 4096 }).is_ok());
    rig.sent.clear();
    rig.back();
    rig.wait(1000);
    assert!(rig.is_ready());
    let is_put = |body: &RequestBody| matches!(body, RequestBody::Put { .. });
    assert_eq!(rig.has_copied(is_put), 2, "{:?}", rig.sent);
    assert_eq!(rig.has_copied(|body| matches!(body, RequestBody::Versions { .. })), 2);
    let [catch_up] = rig.owner.catch_ups().try_into().unwrap();
    assert_eq!((catch_up.copied_bytes, catch_up.checked_extents), (12_288, 2));
    assert_eq!((catch_up.behind.len(), catch_up.waiting_extents), (0, 0));
    for (extent, block) in [(0, 0), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1)] {
        let copies = rig.copies(extent, block);
        assert!(copies.iter().all(|it| *it == copies[0]), "{copies:?}");
    }
}

/// Guards invariant 3: what says that it may count takes part in everything from then on, and holds up acks.
#[test]
fn what_is_ready_holds_up_acks() {
    let mut rig = Rig::new(3, 512);
    rig.away();
    rig.back();
    rig.wait(100);
    assert!(rig.is_ready());
    rig.down.push(AWAY);
    rig.start(1, Command::Write { offset: 0, data: Bytes::from(vec![1; 4096]), fua: false });
    rig.wait(1000);
    assert!(rig.done.is_empty());
    assert_eq!(rig.owner.complaints().iter().map(|it| it.disk).collect::<Vec<_>>(), [AWAY]);
    rig.away();
    assert!(rig.done.contains_key(&1));
    assert!(rig.owner.catch_ups().is_empty());
}

/// Guards acks against a disk that is being brought up to date and does not answer: it holds nothing up for long, and
/// what it has missed is brought to it later.
#[test]
fn what_is_not_ready_holds_up_nothing_for_long() {
    let mut rig = Rig::new(3, 512);
    rig.away();
    for extent in 0..4 {
        assert!(rig.write(extent * EXTENT, 4096, 1).is_ok());
    }
    rig.disks.get_mut(&AWAY).unwrap().capacity = 1;
    rig.back();
    rig.wait(1000);
    assert!(!rig.is_ready(), "it has no room");
    assert!(rig.write(3 * EXTENT + 8192, 4096, 2).is_ok());
    rig.down.push(AWAY);
    rig.start(1, Command::Write { offset: EXTENT + 4096, data: Bytes::from(vec![3; 4096]), fua: false });
    rig.wait(1000);
    assert!(rig.done.contains_key(&1));
    rig.down.clear();
    rig.disks.get_mut(&AWAY).unwrap().capacity = usize::MAX;
    rig.wait(3000);
    assert!(rig.is_ready());
    for (extent, block) in [(0, 0), (1, 0), (1, 1), (2, 0), (3, 0), (3, 2)] {
        let copies = rig.copies(extent, block);
        assert!(copies.iter().all(|it| *it == copies[0]), "{extent} {block} {copies:?}");
    }
}

/// Guards what a takeover levels while a disk is away: the member that is asked what has changed may not have had it yet. The
/// planted owners forget that, or do not wait for it.
#[test]
fn what_a_takeover_levels_is_not_forgotten() {
    for plant in [None, Some(Plant::ForgetLevelled), Some(Plant::ReadyUnlevelled)] {
        let mut rig = Rig::new(3, 512);
        assert!(rig.write(0, 4096, 1).is_ok());
        rig.wait(3000);
        rig.away();
        // Only the second member takes it before the owner dies.
        rig.down.push(DiskId(0));
        rig.start(1, Command::Write { offset: 0, data: Bytes::from(vec![2; 4096]), fua: false });
        rig.down.clear();
        rig.states.insert(AWAY, DiskState::CatchingUp);
        // The first member is asked what is new before anybody has told it.
        rig.take_over_with(plant);
        rig.wait(3000);
        assert!(rig.is_ready());
        let copies = rig.copies(0, 0);
        let is_equal = copies.iter().all(|it| *it == copies[0]);
        assert_eq!(is_equal, plant.is_none(), "{copies:?}");
    }
}

/// Guards a write cache: what a disk had in memory when it left is made durable before it counts, for the others' flush was
/// answered without it. The planted owner does not see to that.
#[test]
fn what_it_had_in_memory_is_flushed() {
    for plant in [None, Some(Plant::ReadyUnflushed)] {
        let mut rig = Rig::new(3, 512);
        rig.owner.config.write_back = true;
        rig.drive(Event::WriteBack(true));
        assert!(rig.write(0, 4096, 1).is_ok());
        rig.away();
        assert!(rig.run(Command::Flush).is_ok());
        rig.owner.plant(plant);
        rig.back();
        assert!(rig.is_ready());
        rig.disks.get_mut(&AWAY).unwrap().lose_memory();
        let copies = rig.copies(0, 0);
        assert_eq!(copies.iter().all(|it| *it == copies[0]), plant.is_none(), "{copies:?}");
    }
}

/// Guards a write cache: a disk that is being brought up to date may lose what it took meanwhile. The planted owner does not
/// ask.
#[test]
fn what_it_loses_meanwhile_is_copied_again() {
    for plant in [None, Some(Plant::IgnoreLostCopy)] {
        let mut rig = Rig::new(3, 512);
        rig.owner.config.write_back = true;
        rig.drive(Event::WriteBack(true));
        rig.owner.plant(plant);
        assert!(rig.write(0, 4096, 1).is_ok());
        assert!(rig.run(Command::Flush).is_ok());
        rig.away();
        assert!(rig.write(EXTENT, 4096, 1).is_ok());
        rig.disks.get_mut(&AWAY).unwrap().capacity = 1;
        rig.back();
        assert!(!rig.is_ready(), "it has no room");
        assert!(rig.write(8192, 4096, 2).is_ok());
        assert_eq!(rig.version(2, 2), rig.version(0, 2), "changes go to it");
        rig.disks.get_mut(&AWAY).unwrap().lose_memory();
        rig.drive(Event::Lost { disk: AWAY });
        rig.disks.get_mut(&AWAY).unwrap().capacity = usize::MAX;
        rig.wait(3000);
        assert!(rig.is_ready());
        let copies = rig.copies(0, 2);
        assert_eq!(copies.iter().all(|it| *it == copies[0]), plant.is_none(), "{copies:?}");
    }
}

//! Atomic writes over deaths of the owner: every set of members that a write may have reached, and every moment at which
//! the owners that find it there may die in turn.

use super::*;

const UNIT: usize = 64 << 10;
const BLOCK: usize = BLOCK_BYTES as usize;

/// What is written as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Written {
    /// Most of a unit, not of whole blocks.
    InOneUnit,
    /// Blocks 12 to 52: the end of a unit, two whole ones, and the beginning of another.
    OfFourUnits,
}

impl Written {
    fn command(self) -> Command {
        match self {
            Self::InOneUnit => {
                Command::Write { offset: 512, data: Bytes::from(vec![9; UNIT - 512]), fua: false }
            }
            Self::OfFourUnits => {
                Command::WriteAtomic { offset: 12 * BLOCK as u64, data: Bytes::from(vec![9; 40 * BLOCK]) }
            }
        }
    }

    /// All units that it touches.
    fn len(self) -> usize {
        if self == Self::InOneUnit { UNIT } else { 4 * UNIT }
    }

    fn over(self, before: &[u8]) -> Vec<u8> {
        let mut after = before.to_vec();
        match self {
            Self::InOneUnit => after[512..].fill(9),
            Self::OfFourUnits => after[12 * BLOCK..52 * BLOCK].fill(9),
        }
        after
    }

    /// Changes of the write: those of the most that comes of it if some member is full.
    fn changes(self) -> usize {
        // Three for the write, three for its withdrawal; room is made first, and taken back in three pieces.
        if self == Self::InOneUnit { 6 } else { 12 }
    }
}

/// What the units hold before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    Nothing,
    /// Some blocks have content, in two runs, others were discarded. Of four units two have content beside what is
    /// written only, one has some in it, one has none.
    Some,
    Everything,
}

/// What happens after the death of the owner that found the write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Nothing,
    /// That disk leaves the map.
    Leaves(u32),
    /// Full disks get room.
    Room,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Case {
    written: Written,
    before: Before,
    /// Disks without room for another unit.
    full: &'static [u32],
    /// As many changes of the owner that writes get through.
    first: usize,
    /// As many changes of the second owner get through.
    second: usize,
    then: Then,
}

impl Case {
    /// What is there in the end, and what was before.
    fn run(self, plant: Option<Plant>) -> (Vec<u8>, Vec<u8>) {
        let mut rig = Rig::new(3, 512);
        rig.owner.plant(plant);
        let len = self.written.len();
        match self.before {
            Before::Nothing => {}
            Before::Some => {
                assert!(rig.write(0, 3 * BLOCK, 1).is_ok());
                assert!(rig.write(6 * BLOCK as u64, 4 * BLOCK, 2).is_ok());
                assert!(rig.run(Command::Zero { offset: 2 * BLOCK as u64, len: BLOCK as u64 }).is_ok());
                if self.written == Written::OfFourUnits {
                    assert!(rig.write(40 * BLOCK as u64, 4 * BLOCK, 3).is_ok());
                    assert!(rig.write(60 * BLOCK as u64, BLOCK, 4).is_ok());
                }
            }
            Before::Everything => assert!(rig.write(0, len, 1).is_ok()),
        }
        let before = rig.read(0, len as u32);
        for disk in self.full {
            let disk = rig.disks.get_mut(&DiskId(*disk)).unwrap();
            disk.capacity = disk.allocated();
        }
        rig.changes_left = Some(self.first);
        rig.start(1, self.written.command());
        rig.changes_left = Some(self.second);
        rig.take_over_with(plant);
        rig.wait(50);
        rig.changes_left = None;
        match self.then {
            Then::Nothing => {}
            Then::Leaves(disk) => {
                rig.states.insert(DiskId(disk), DiskState::Out);
            }
            Then::Room => rig.disks.values_mut().for_each(|disk| disk.capacity = usize::MAX),
        }
        rig.take_over_with(plant);
        rig.wait(200);
        let after = rig.read(0, len as u32);
        // And it stays so.
        rig.take_over_with(None);
        rig.wait(200);
        assert_eq!(rig.read(0, len as u32), after, "{self:?}");
        (after, before)
    }

    fn all(written: Written) -> Vec<Self> {
        let mut all = Vec::new();
        for before in [Before::Nothing, Before::Some, Before::Everything] {
            for full in [&[][..], &[0], &[1], &[2], &[1, 2]] {
                for then in [Then::Nothing, Then::Leaves(0), Then::Leaves(1), Then::Leaves(2), Then::Room] {
                    for first in 0..=written.changes() {
                        for second in 0..=6 {
                            all.push(Self { written, before, full, first, second, then });
                        }
                    }
                }
            }
        }
        all
    }

    /// One that ends with neither what was before nor what was written.
    fn torn(written: Written, plant: Option<Plant>) -> Option<Self> {
        let is_torn = |case: &Self| {
            let (after, before) = case.run(plant);
            after != before && after != written.over(&before)
        };
        Self::all(written).into_iter().find(is_torn)
    }
}

/// Guards atomic writes: of what a takeover finds on some members, all is carried on or all is dropped.
#[test]
fn takeovers_do_not_tear() {
    assert_eq!(Case::torn(Written::InOneUnit, None), None);
}

/// The same of a write of several units, some of which a full disk has no room for.
#[test]
fn takeovers_do_not_tear_several_units() {
    assert_eq!(Case::torn(Written::OfFourUnits, None), None);
}

/// Guards the tests above: they find owners that level block by block, and one that begins without room for all units.
#[test]
fn levelling_by_block_and_writing_without_room_tear() {
    for written in [Written::InOneUnit, Written::OfFourUnits] {
        assert!(Case::torn(written, Some(Plant::LevelByBlock)).is_some(), "{written:?}");
    }
    assert!(Case::torn(Written::OfFourUnits, Some(Plant::NoAtomicRoom)).is_some());
}

//! Atomic writes over deaths of the owner: every set of members that a write may have reached, and every moment at which
//! the owners that find it there may die in turn.

use super::*;

const UNIT: usize = 64 << 10;
const BLOCK: usize = BLOCK_BYTES as usize;

/// What the unit holds before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    Nothing,
    /// Some blocks have content, in two runs, others were discarded.
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

#[derive(Clone, Copy, Debug)]
struct Case {
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
        match self.before {
            Before::Nothing => {}
            Before::Some => {
                assert!(rig.write(0, 3 * BLOCK, 1).is_ok());
                assert!(rig.write(6 * BLOCK as u64, 4 * BLOCK, 2).is_ok());
                assert!(rig.run(Command::Zero { offset: 2 * BLOCK as u64, len: BLOCK as u64 }).is_ok());
            }
            Before::Everything => assert!(rig.write(0, UNIT, 1).is_ok()),
        }
        let before = rig.read(0, UNIT as u32);
        for disk in self.full {
            rig.disks.get_mut(&DiskId(*disk)).unwrap().capacity = usize::from(self.before != Before::Nothing);
        }
        rig.changes_left = Some(self.first);
        rig.start(1, Command::Write { offset: 512, data: Bytes::from(vec![9; UNIT - 512]), fua: false });
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
        let after = rig.read(0, UNIT as u32);
        // And it stays so.
        rig.take_over_with(None);
        rig.wait(200);
        assert_eq!(rig.read(0, UNIT as u32), after, "{self:?}");
        (after, before)
    }

    fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for before in [Before::Nothing, Before::Some, Before::Everything] {
            for full in [&[][..], &[0], &[1], &[2], &[1, 2]] {
                for then in [Then::Nothing, Then::Leaves(0), Then::Leaves(1), Then::Leaves(2), Then::Room] {
                    // Three for the write, three for its withdrawal.
                    for first in 0..=6 {
                        for second in 0..=6 {
                            all.push(Self { before, full, first, second, then });
                        }
                    }
                }
            }
        }
        all
    }

    /// Those that end with neither what was before nor what was written.
    fn torn(plant: Option<Plant>) -> Vec<Self> {
        let is_torn = |case: &Self| {
            let (after, before) = case.run(plant);
            let written = [&before[..512], &vec![9; UNIT - 512]].concat();
            after != before && after != written
        };
        Self::all().into_iter().filter(is_torn).collect()
    }
}

/// Guards atomic writes: of what a takeover finds on some members, all is carried on or all is dropped.
#[test]
fn takeovers_do_not_tear() {
    let torn = Case::torn(None);
    assert!(torn.is_empty(), "{} cases, the first: {:?}", torn.len(), torn[0]);
}

/// Guards the test above: it finds owners that level block by block.
#[test]
fn levelling_by_block_tears() {
    assert!(!Case::torn(Some(Plant::LevelByBlock)).is_empty());
}

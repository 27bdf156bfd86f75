//! What a change does to an extent, decided before anything is written.

use std::collections::{BTreeMap, btree_map};
use std::ops::Range;
use std::sync::Arc;

use lunette_proto::ids::{ExtentId, Snapshot, Version};
use smallvec::{SmallVec, smallvec};

use super::descriptor::{BlockState, Descriptor, Entry, UNIT_BLOCKS};
use super::extents::{Extent, UnitRef};

/// An extent as it will be after the batch.
#[derive(Clone, Debug, Default)]
pub(crate) struct Draft {
    pub(crate) extent: Extent,
    /// Whether it has a page.
    pub(crate) is_placed: bool,
    /// Descriptors that were looked at.
    pub(crate) descriptors: BTreeMap<u8, Arc<Descriptor>>,
    /// Slots whose descriptor changes.
    pub(crate) changed: u64,
    /// Descriptors of the units of prepared changes that are new, by slot.
    pub(crate) shadows: BTreeMap<u8, Arc<Descriptor>>,
    /// What snapshots keep, if there are any.
    pub(crate) kept: Option<Box<Kept>>,
}

/// What snapshots keep of an extent, as it will be after the batch.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    /// The newest of them.
    pub(crate) until: Snapshot,
    /// What has changed since that.
    pub(crate) extent: Extent,
    /// Whether it has a page.
    pub(crate) is_placed: bool,
    /// Slots whose present content snapshots see.
    pub(crate) seen: u64,
    /// Whether the batch changes it.
    pub(crate) is_changed: bool,
}

/// Which change is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) id: ExtentId,
    pub(crate) blocks: Range<u32>,
    pub(crate) version: Version,
    /// Data, or zeros.
    pub(crate) data: bool,
    /// A repair writes a block of equal version again: what is there may be damaged.
    pub(crate) repair: bool,
}

/// What a change does to one slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// A whole unit of data: into a fresh unit, if there is one.
    Whole { slot: u8 },
    /// Blocks get data in place, or in a fresh unit together with a copy of the others. Blocks are counted in the unit.
    Data { slot: u8, blocks: Range<u32> },
    /// Blocks become zeros, in the descriptor.
    Zeros { slot: u8, blocks: Range<u32> },
    /// The whole slot becomes a hole.
    Hole { slot: u8 },
}

/// What a change does, and the units that it needs.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) parts: SmallVec<[Part; 2]>,
    /// Slots that get a unit for data, and have none, or one that snapshots see.
    pub(crate) growth: u32,
    /// Slots that get one to say which of their blocks are zeros.
    pub(crate) zeros: u32,
    /// Slots whose unit is replaced, if there is a fresh one.
    pub(crate) replaced: u32,
}

impl Plan {
    /// Whether it changes blocks of units that stay where they are, and nothing else: then it cannot be refused.
    pub(crate) fn is_in_place(&self) -> bool {
        let stays = |part: &Part| matches!(part, Part::Data { .. } | Part::Zeros { .. });
        self.growth + self.zeros + self.replaced == 0 && self.parts.iter().all(stays)
    }
}

impl Wanted {
    fn applies(&self, entry: &Entry) -> bool {
        match entry.state {
            BlockState::Lost => true,
            _ if planted!(OlderVersionWins) => true,
            _ if planted!(RepairNeedsNewer) => self.version > entry.version,
            _ if self.repair => self.version >= entry.version,
            _ => self.version > entry.version,
        }
    }

    /// The part of a slot that the change covers, in blocks of the unit.
    fn in_slot(&self, slot: u8) -> Range<u32> {
        let first = u32::from(slot) * UNIT_BLOCKS;
        self.blocks.start.max(first) - first..self.blocks.end.min(first + UNIT_BLOCKS) - first
    }
}

impl Draft {
    /// Decides. `load` finds the descriptor of a slot's unit.
    ///
    /// # Errors
    /// That of `load`.
    pub(crate) fn plan<E>(
        &mut self,
        wanted: &Wanted,
        load: impl Fn(u8, UnitRef) -> Result<Arc<Descriptor>, E>,
    ) -> Result<Plan, E> {
        let mut plan = Plan::default();
        // Then every block is older, whatever the descriptors say.
        let all_older = wanted.version > self.extent.newest;
        let slots = wanted.blocks.start / UNIT_BLOCKS..wanted.blocks.end.div_ceil(UNIT_BLOCKS);
        for slot in slots.filter_map(|slot| u8::try_from(slot).ok()) {
            let blocks = wanted.in_slot(slot);
            let is_whole = blocks == (0..UNIT_BLOCKS);
            let Some(unit) = self.extent.unit(slot) else {
                if !wanted.applies(&Entry::zeros(self.extent.floor(slot))) {
                    continue;
                }
                match (wanted.data, is_whole) {
                    (true, true) => plan.parts.push(Part::Whole { slot }),
                    (true, false) => plan.parts.push(Part::Data { slot, blocks }),
                    (false, true) => plan.parts.push(Part::Hole { slot }),
                    (false, false) => plan.parts.push(Part::Zeros { slot, blocks }),
                }
                plan.growth += u32::from(wanted.data);
                plan.zeros += u32::from(!wanted.data && !is_whole);
                continue;
            };
            let runs: Runs = if is_whole && all_older {
                smallvec![blocks]
            } else {
                let descriptor = match self.descriptors.entry(slot) {
                    btree_map::Entry::Occupied(known) => known.into_mut(),
                    btree_map::Entry::Vacant(free) => free.insert(load(slot, unit)?),
                };
                runs(blocks, |index| wanted.applies(&descriptor.blocks[index as usize]))
            };
            let mut is_seen = self.is_seen(slot);
            for blocks in runs {
                let is_whole = blocks == (0..UNIT_BLOCKS);
                match (wanted.data, is_whole) {
                    (true, true) if !is_seen => plan.replaced += 1,
                    (true, _) => plan.growth += u32::from(is_seen),
                    (false, true) => {}
                    (false, false) => plan.zeros += u32::from(is_seen),
                }
                // The first of them gives the slot a unit of its own.
                is_seen = false;
                plan.parts.push(match (wanted.data, is_whole) {
                    (true, true) => Part::Whole { slot },
                    (true, false) => Part::Data { slot, blocks },
                    (false, true) => Part::Hole { slot },
                    (false, false) => Part::Zeros { slot, blocks },
                });
            }
        }
        Ok(plan)
    }

    /// The version of a change that is prepared in a slot that has some of these blocks.
    pub(crate) fn prepared_in(&self, blocks: &Range<u32>) -> Option<Version> {
        let slots = blocks.start / UNIT_BLOCKS..blocks.end.div_ceil(UNIT_BLOCKS);
        let shadow = self.extent.shadows().iter().find(|shadow| slots.contains(&u32::from(shadow.slot)));
        shadow.map(|shadow| shadow.version)
    }

    /// Whether snapshots see what a slot has: then that does not change, and is not given back.
    pub(crate) fn is_seen(&self, slot: u8) -> bool {
        self.kept.as_ref().is_some_and(|kept| kept.seen >> slot & 1 == 1)
    }

    /// Leaves what a slot has to the snapshots that see it; whether any does.
    pub(crate) fn leave(&mut self, slot: u8) -> bool {
        let Some(kept) = self.kept.as_mut().filter(|kept| kept.seen >> slot & 1 == 1) else { return false };
        self.extent.keep(slot, &mut kept.extent);
        kept.seen &= !(1 << slot);
        kept.is_changed = true;
        !planted!(SeenUnitGivenBack)
    }

    /// Makes `slot` have a fresh unit with the blocks of the one that snapshots see; runs of them, but for those in `but`,
    /// are to be copied from that.
    pub(crate) fn copy(&mut self, slot: u8, unit: u32, but: Range<u32>) -> Vec<Range<u32>> {
        let descriptor = self.descriptors.get_mut(&slot).expect("it was looked at for the plan");
        let runs = descriptor.content_beside(but).collect();
        *descriptor = Arc::new(descriptor.copied_to(unit));
        self.leave(slot);
        self.extent.set_unit(slot, UnitRef { unit, crc: 0 });
        runs
    }

    /// Makes `slot` have a fresh unit; the one that it had, unless snapshots see that. Its blocks are zeros of the version of the hole that was
    /// there, or nothing at all if `whole` of them are about to be written.
    pub(crate) fn fresh(&mut self, id: ExtentId, slot: u8, unit: u32, whole: bool) -> Option<u32> {
        let floor = if whole { Version::NONE } else { self.extent.floor(slot) };
        self.descriptors.insert(slot, Arc::new(Descriptor::fresh(unit, id, slot, floor)));
        let is_left = self.leave(slot);
        // The checksum follows when the descriptor is complete.
        self.extent.set_unit(slot, UnitRef { unit, crc: 0 }).map(|old| old.unit).filter(|_| !is_left)
    }

    /// Blocks of a slot get entries.
    pub(crate) fn set(&mut self, slot: u8, first: u32, entries: impl Iterator<Item = Entry>, lsn: u64) {
        let Some(descriptor) = self.descriptors.get_mut(&slot).map(Arc::make_mut) else { return };
        let base = descriptor.first_block();
        for (index, entry) in (first..).zip(entries) {
            let old = descriptor.blocks[index as usize];
            descriptor.blocks[index as usize] = entry.over(descriptor.extent, base + index, &old);
            self.extent.newest = self.extent.newest.max(entry.version);
        }
        descriptor.lsn = lsn;
        self.changed |= 1 << slot;
    }

    /// A slot becomes a hole; the unit that it had, unless snapshots see that.
    pub(crate) fn hole(&mut self, slot: u8, version: Version) -> Option<u32> {
        self.descriptors.remove(&slot);
        self.changed &= !(1 << slot);
        self.extent.newest = self.extent.newest.max(version);
        let is_left = self.leave(slot);
        self.extent.set_hole(1 << slot, version).pop().filter(|_| !is_left)
    }
}

type Runs = SmallVec<[Range<u32>; 2]>;

fn runs(blocks: Range<u32>, applies: impl Fn(u32) -> bool) -> Runs {
    let mut runs = Runs::new();
    for index in blocks.filter(|index| applies(*index)) {
        match runs.last_mut() {
            Some(run) if run.end == index => run.end += 1,
            _ => runs.push(index..index + 1),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use lunette_proto::ids::{Generation, Namespace};

    use super::super::descriptor::Digest;
    use super::*;

    const ID: ExtentId = ExtentId { namespace: Namespace(1), index: 0 };

    fn version(seq: u64) -> Version {
        Version { generation: Generation(1), seq }
    }

    fn wanted(blocks: Range<u32>, seq: u64, data: bool) -> Wanted {
        Wanted { id: ID, blocks, version: version(seq), data, repair: false }
    }

    fn planned(draft: &mut Draft, wanted: &Wanted) -> Plan {
        draft.plan(wanted, |_, _| Err("a descriptor is needed")).expect("none is needed")
    }

    /// Guards the cutting of changes: whole units are redirected, the rest is done in place.
    #[test]
    fn parts() {
        let plan = planned(&mut Draft::default(), &wanted(10..50, 1, true));
        let expected = [
            Part::Data { slot: 0, blocks: 10..16 },
            Part::Whole { slot: 1 },
            Part::Whole { slot: 2 },
            Part::Data { slot: 3, blocks: 0..2 },
        ];
        assert_eq!((plan.parts.as_slice(), plan.growth, plan.replaced), (expected.as_slice(), 4, 0));
        let plan = planned(&mut Draft::default(), &wanted(10..32, 1, false));
        assert_eq!(plan.parts.as_slice(), [Part::Zeros { slot: 0, blocks: 10..16 }, Part::Hole { slot: 1 }]);
        assert_eq!((plan.growth, plan.zeros), (0, 1));
    }

    /// Guards invariants 5 and 9: of a unit, only blocks that are older change; a repair changes those of equal version
    /// too.
    #[test]
    fn only_older_blocks_change() {
        let mut draft = Draft::default();
        draft.fresh(ID, 0, 7, false);
        let entry = |seq| Entry::data(ID, 5, version(seq), Digest::of(&[1; 4096]));
        draft.set(0, 5, [entry(9), entry(3)].into_iter(), 1);
        assert_eq!(draft.extent.newest, version(9));
        let plan = planned(&mut draft, &wanted(0..16, 4, true));
        assert_eq!(
            plan.parts.as_slice(),
            [Part::Data { slot: 0, blocks: 0..5 }, Part::Data { slot: 0, blocks: 6..16 }]
        );
        let plan = planned(&mut draft, &wanted(5..7, 3, false));
        assert_eq!(plan.parts.as_slice(), []);
        let repair = Wanted { repair: true, ..wanted(5..7, 3, false) };
        assert_eq!(planned(&mut draft, &repair).parts.as_slice(), [Part::Zeros { slot: 0, blocks: 6..7 }]);
        let plan = planned(&mut draft, &wanted(0..16, 10, true));
        assert_eq!((plan.parts.as_slice(), plan.replaced), ([Part::Whole { slot: 0 }].as_slice(), 1));
        assert_eq!(draft.hole(0, version(10)), Some(7));
        assert_eq!(planned(&mut draft, &wanted(3..4, 10, true)).parts.as_slice(), []);
        assert_eq!((draft.changed, draft.descriptors.len()), (0, 0));
    }

    /// Guards what snapshots see: a unit of theirs is replaced, whatever a change does to it, and left to them.
    #[test]
    fn what_snapshots_see_is_left() {
        let mut draft = Draft::default();
        draft.fresh(ID, 0, 7, false);
        let entry = |seq| Entry::data(ID, 5, version(seq), Digest::of(&[1; 4096]));
        draft.set(0, 5, [entry(3), entry(9)].into_iter(), 1);
        let kept = Kept {
            until: Snapshot(2),
            extent: Extent::kept(),
            is_placed: false,
            seen: 0b11,
            is_changed: false,
        };
        draft.kept = Some(kept.into());
        let units = |plan: &Plan| (plan.growth, plan.zeros, plan.replaced);
        // Block 6 is newer: what is left are two parts, and one unit.
        let plan = planned(&mut draft, &wanted(0..16, 4, true));
        assert_eq!((plan.parts.len(), units(&plan)), (2, (1, 0, 0)));
        assert_eq!(units(&planned(&mut draft, &wanted(0..16, 10, true))), (1, 0, 0));
        assert_eq!(units(&planned(&mut draft, &wanted(0..2, 10, false))), (0, 1, 0));
        assert_eq!(units(&planned(&mut draft, &wanted(0..16, 10, false))), (0, 0, 0));
        let mut other = draft.clone();
        assert_eq!(other.copy(0, 8, 6..9), vec![5..6]);
        assert_eq!((other.extent.unit(0).map(|unit| unit.unit), other.is_seen(0)), (Some(8), false));
        assert_eq!(units(&planned(&mut other, &wanted(0..16, 10, true))), (0, 0, 1));
        assert_eq!(other.hole(0, version(10)), Some(8));
        let kept = other.kept.expect("it is there").extent;
        assert_eq!((kept.covers, kept.unit(0).map(|unit| unit.unit)), (1, Some(7)));
        assert_eq!((draft.hole(0, version(10)), draft.hole(1, version(10))), (None, None));
        let kept = draft.kept.expect("it is there").extent;
        assert_eq!((kept.covers, kept.units().count(), kept.floor(1)), (3, 1, Version::NONE));
    }

    /// Guards against damage that spreads: a block of which nothing is known takes any change, and its neighbours
    /// stay lost.
    #[test]
    fn lost_blocks_take_changes() {
        let mut draft = Draft::default();
        draft.extent.set_unit(0, UnitRef { unit: 1, crc: 2 });
        draft.extent.newest = version(9);
        let load = |slot, unit: UnitRef| Ok::<_, ()>(Arc::new(Descriptor::lost(unit.unit, ID, slot)));
        let plan = draft.plan(&wanted(2..3, 1, true), load).expect("nothing fails");
        assert_eq!(plan.parts.as_slice(), [Part::Data { slot: 0, blocks: 2..3 }]);
        draft.set(0, 2, [Entry::zeros(version(1))].into_iter(), 1);
        let states = draft.descriptors[&0].blocks.map(|block| block.state);
        assert_eq!((states[1], states[2]), (BlockState::Lost, BlockState::Zeros));
    }
}

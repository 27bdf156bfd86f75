//! How a change is decided: what it does to its extent, the units that it needs, and its records.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use lunette_proto::ids::{ExtentId, Version};
use lunette_proto::limits::BLOCK_BYTES;
use lunette_proto::node::{Change, Durability, Failure};
use smallvec::SmallVec;

use super::chains::Key;
use super::commit::InPlace;
use super::core::{Fatal, Prepared, Store};
use super::descriptor::{Descriptor, Digest, Entry, UNIT_BLOCKS};
use super::disk::Disk;
use super::draft::{Draft, Kept, Part, Plan, Wanted};
use super::extents::{Extent, UnitRef};
use super::layout::UNIT_BYTES;
use super::units::{NoUnit, Purpose};
use super::view::Volatile;
use super::wal::record::{Digests, Place, RECORD_BYTES_MAX};
use super::wal::{Record, WriteRecord};
use crate::engine::valid_range;

/// Pages whose room is asked of the medium at a time.
const PAGES_READY: u32 = 128;
const BLOCK: usize = BLOCK_BYTES as usize;

impl<D: Disk> Store<D> {
    pub(super) fn change(
        &mut self,
        id: ExtentId,
        version: Version,
        offset: u32,
        change: &Change,
        durability: Durability,
        repair: bool,
    ) -> Result<Prepared, Fatal> {
        let len = change.len();
        if !valid_range(offset, len) {
            return Ok(Prepared::refused(Failure::Invalid));
        }
        let first = offset / BLOCK_BYTES;
        let blocks = u32::try_from(len).expect("the range is inside an extent") / BLOCK_BYTES;
        // Every other block may be a record of its own; whole units are not in the ring, unless the disk is full.
        let slots = (blocks / UNIT_BLOCKS + 2) as usize;
        let data_blocks = if matches!(change, Change::Data(_)) { u64::from(blocks) } else { 0 };
        if !self.make_room((slots * UNIT_BLOCKS as usize / 2) * RECORD_BYTES_MAX, data_blocks)? {
            return Ok(Prepared::Blocked);
        }
        let data = match change {
            Change::Data(data) => Some(data),
            Change::Zeros { .. } => None,
        };
        let wanted = Wanted { id, blocks: first..first + blocks, version, data: data.is_some(), repair };
        let state_max = self.state_max();
        let (mut draft, is_known) = self.take_draft(id);
        if let Some(present) = draft.prepared_in(&wanted.blocks).filter(|_| !planted!(ChangeBesidePrepared)) {
            if is_known {
                self.batch.drafts.insert(id, draft);
            }
            return Ok(Prepared::refused(Failure::Version { present }));
        }
        let plan = draft.plan(&wanted, |slot, unit| self.view.current(id, slot, unit));
        let plan = plan.map_err(Fatal::new("reading a descriptor failed"))?;
        // A retry of something that is not durable yet must not be answered before it is.
        let stable = durability == Durability::Stable;
        let is_done = plan.parts.is_empty();
        let outcome = if is_done {
            Ok(())
        } else if !self.view.state.read().namespaces.has_room_for_dirty(id.namespace, id.index, state_max) {
            Err(Refused::With(Failure::Busy))
        } else {
            self.carry_out(&mut draft, &wanted, plan, data, stable)
        };
        if is_known || (outcome.is_ok() && !is_done) {
            self.batch.drafts.insert(id, draft);
        }
        match outcome {
            Ok(()) => Ok(Prepared::done(stable)),
            Err(refused) => refused.answer(),
        }
    }

    /// An extent as the batch leaves it so far, and whether the batch has changed it: then it has to be put back.
    pub(super) fn take_draft(&mut self, id: ExtentId) -> (Draft, bool) {
        if let Some(known) = self.batch.drafts.remove(&id) {
            return (known, true);
        }
        let state = self.view.state.read();
        let mut draft = match state.extents.get(id) {
            Some(extent) => Draft { extent: extent.clone(), is_placed: true, ..Draft::default() },
            None => Draft::default(),
        };
        draft.kept = state.namespaces.snapshots(id.namespace).last().map(|until| {
            let present = state.extents.record(Key { extent: id, until: *until });
            Box::new(Kept {
                until: *until,
                extent: present.cloned().unwrap_or_else(Extent::kept),
                is_placed: present.is_some(),
                seen: !state.extents.changed_since(id, *until),
                is_changed: false,
            })
        });
        (draft, false)
    }

    /// Finds room in the pages for an extent as it will be. Unless it succeeds, nothing has changed.
    pub(super) fn place(&mut self, id: ExtentId, draft: &Draft, next: &mut Draft) -> Result<(), Refused> {
        let may_add = self.page_room().map_err(Refused::Fatal)?;
        let full = Refused::With(Failure::NoSpace);
        let mut placed = None;
        if let (Some(before), Some(kept)) = (&draft.kept, &mut next.kept)
            && kept.is_changed
        {
            let key = Key { extent: id, until: kept.until };
            let was = before.is_placed.then(|| (before.extent.page, before.extent.record_len()));
            let len = kept.extent.record_len();
            let Some(page) = self.pages.place(key, was, len, may_add) else { return Err(full) };
            (kept.extent.page, kept.is_placed) = (page, true);
            placed = Some((key, (page, len), was));
        }
        let from = draft.is_placed.then(|| (draft.extent.page, draft.extent.record_len()));
        let may_add = self.pages.len() < self.pages_ready;
        let page = self.pages.place(Key::live(id), from, next.extent.record_len(), may_add);
        let Some(page) = page else {
            if let Some((key, now, was)) = placed {
                self.pages.undo(key, now, was);
            }
            return Err(full);
        };
        (next.extent.page, next.is_placed) = (page, true);
        Ok(())
    }

    /// Does to the draft what was planned, and adds the records. Unless it succeeds, nothing has changed.
    fn carry_out(
        &mut self,
        draft: &mut Draft,
        wanted: &Wanted,
        plan: Plan,
        data: Option<&Bytes>,
        stable: bool,
    ) -> Result<(), Refused> {
        let is_in_place = plan.is_in_place();
        let (units, in_place) = self.take_units(&plan, wanted.repair)?;
        // What cannot be refused needs no copy to fall back on.
        let mut next = if is_in_place { std::mem::take(draft) } else { draft.clone() };
        let mut made = Made {
            units: units.iter().copied(),
            in_place,
            records: SmallVec::new(),
            released: Vec::new(),
            copies: Vec::new(),
        };
        let first_lsn = self.next_lsn();
        plan.parts.iter().for_each(|part| made.part(&mut next, wanted, part, data, first_lsn));
        let Made { records, released, copies, .. } = made;
        if is_in_place {
            self.pages.note_change(next.extent.page);
        } else if let Err(refused) = self.place(wanted.id, draft, &mut next) {
            units.into_iter().for_each(|unit| self.units.put_back(unit));
            return Err(refused);
        }
        if planted!(DiscardPunchesEarly) {
            let (disk, layout) = (&self.view.disk, &self.superblock.layout);
            let mut released = released.iter();
            released
                .try_for_each(|unit| disk.discard(layout.unit(*unit), UNIT_BYTES))
                .map_err(|error| Refused::Fatal(Fatal::new("discarding failed")(error)))?;
        }
        released.into_iter().for_each(|unit| self.release(unit));
        let copies = copies.iter().map(|copy| InPlace::copy(&self.superblock.layout, copy));
        self.batch.in_place.extend(copies);
        for (record, data) in records {
            self.batch.push(&record);
            let (Record::Write(write), Some(data)) = (&record, data) else { continue };
            self.batch.push_data(&self.superblock.layout, write, data);
        }
        let mut state = self.view.state.write();
        state.namespaces.changed(wanted.id.namespace, wanted.id.index, wanted.version, next.extent.newest);
        if !stable {
            let volatile = state.volatile.entry(wanted.id).or_default();
            for block in plan.parts.iter().flat_map(Part::blocks) {
                let at = (block - wanted.blocks.start) as usize * BLOCK;
                let data = data.map(|data| data.slice(at..at + BLOCK));
                volatile.insert(block, Volatile { version: wanted.version, data });
            }
        }
        drop(state);
        *draft = next;
        self.note_space();
        Ok(())
    }

    /// Units for a plan; and whether whole units of data are written in place, for want of fresh ones.
    fn take_units(&mut self, plan: &Plan, repair: bool) -> Result<(Vec<u32>, bool), Refused> {
        let purpose = if repair { Purpose::Spare } else { Purpose::Growth };
        let mut taken = Vec::new();
        for (count, purpose) in
            [(plan.growth, purpose), (plan.zeros, Purpose::Spare), (plan.replaced, Purpose::Spare)]
        {
            if count == 0 {
                continue;
            }
            match self.units.allocate(&self.view.disk, &self.superblock.layout, count, purpose) {
                Ok(units) => taken.extend(units),
                Err(error) => {
                    // Units that are only replaced can be written where they are.
                    if matches!(error, NoUnit::Full) && taken.len() == (plan.growth + plan.zeros) as usize {
                        return Ok((taken, true));
                    }
                    taken.into_iter().for_each(|unit| self.units.put_back(unit));
                    return Err(error.into());
                }
            }
        }
        Ok((taken, false))
    }

    /// Whether one more page has room on the medium.
    pub(super) fn page_room(&mut self) -> Result<bool, Fatal> {
        let layout = &self.superblock.layout;
        let wanted = self.pages.len() + 1;
        if wanted + PAGES_READY / 4 > self.pages_ready {
            let end = layout.pages.min(self.pages_ready.max(wanted) + PAGES_READY);
            let begin = layout.page(self.pages_ready, 0);
            match self.view.disk.reserve(begin, layout.page(end, 0) - begin) {
                Ok(()) => self.pages_ready = end,
                Err(error) if error.kind() == io::ErrorKind::StorageFull => {}
                Err(error) => return Err(Fatal::new("asking for room for metadata failed")(error)),
            }
        }
        Ok(wanted <= self.pages_ready)
    }
}

/// Why an operation is not done. Nothing has changed.
pub(super) enum Refused {
    With(Failure),
    Blocked,
    Fatal(Fatal),
}

impl Refused {
    pub(super) fn answer(self) -> Result<Prepared, Fatal> {
        match self {
            Self::With(failure) => Ok(Prepared::refused(failure)),
            Self::Blocked => Ok(Prepared::Blocked),
            Self::Fatal(fatal) => Err(fatal),
        }
    }
}

impl From<NoUnit> for Refused {
    fn from(none: NoUnit) -> Self {
        match none {
            NoUnit::Full => Self::With(Failure::NoSpace),
            NoUnit::AfterCheckpoint => Self::Blocked,
            NoUnit::Failed(error) => Self::Fatal(Fatal::new("asking for room for data failed")(error)),
        }
    }
}

impl Part {
    /// The blocks of the extent that it changes.
    fn blocks(&self) -> Range<u32> {
        let (slot, blocks) = match self {
            Self::Whole { slot } | Self::Hole { slot } => (slot, 0..UNIT_BLOCKS),
            Self::Data { slot, blocks } | Self::Zeros { slot, blocks } => (slot, blocks.clone()),
        };
        let first = u32::from(*slot) * UNIT_BLOCKS;
        first + blocks.start..first + blocks.end
    }
}

/// The records of one change, as they are made.
struct Made<I> {
    units: I,
    /// Whole units are written over where they are.
    in_place: bool,
    records: SmallVec<[(Record, Option<Bytes>); 1]>,
    released: Vec<u32>,
    copies: Vec<Copy>,
}

/// Blocks that go from one unit to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Copy {
    pub(super) from: u32,
    pub(super) to: u32,
    pub(super) blocks: Range<u32>,
}

impl<I: Iterator<Item = u32>> Made<I> {
    fn part(
        &mut self,
        draft: &mut Draft,
        wanted: &Wanted,
        part: &Part,
        data: Option<&Bytes>,
        first_lsn: u64,
    ) {
        let id = wanted.id;
        let version = wanted.version;
        let lsn = first_lsn + self.records.len() as u64;
        let (slot, in_unit) = match part {
            Part::Hole { slot } => {
                let slots = 1 << slot;
                self.released.extend(draft.hole(*slot, version));
                if let Some((Record::Hole { slots: before, .. }, _)) = self.records.last_mut() {
                    *before |= slots;
                } else {
                    self.records.push((Record::Hole { extent: id, version, slots }, None));
                }
                return;
            }
            Part::Whole { slot } => (*slot, 0..UNIT_BLOCKS),
            Part::Data { slot, blocks } | Part::Zeros { slot, blocks } => (*slot, blocks.clone()),
        };
        let whole = matches!(part, Part::Whole { .. });
        let had = draft.extent.unit(slot);
        let is_seen = draft.is_seen(slot) && (whole || !planted!(SeenUnitChanged));
        let fresh = had.is_none() || is_seen || (whole && !self.in_place);
        let copied = fresh && had.is_some() && !whole;
        let unit = match (fresh, had) {
            (false, Some(unit)) => unit.unit,
            (_, had) => {
                let unit = self.units.next().expect("as many units as were planned");
                match had.filter(|_| copied) {
                    Some(UnitRef { unit: from, .. }) => {
                        let runs = draft.copy(slot, unit, in_unit.clone());
                        self.copies.extend(runs.into_iter().map(|blocks| Copy { from, to: unit, blocks }));
                    }
                    None => self.released.extend(draft.fresh(id, slot, unit, whole)),
                }
                unit
            }
        };
        if whole && !fresh {
            // The plan did not need the descriptor, but every block will be new.
            let lost = || Arc::new(Descriptor::lost(unit, id, slot));
            draft.descriptors.entry(slot).or_insert_with(lost);
        }
        let place = Place {
            extent: id,
            version,
            slot,
            first: u8::try_from(in_unit.start).expect("a unit has 16 blocks"),
            blocks: u8::try_from(in_unit.end - in_unit.start).expect("a unit has 16 blocks"),
            unit,
            fresh,
            copied,
        };
        let blocks = part.blocks();
        let Some(data) = data else {
            draft.set(slot, in_unit.start, blocks.map(|_| Entry::zeros(version)), lsn);
            self.records.push((Record::Zero(place), None));
            return;
        };
        let at = (blocks.start - wanted.blocks.start) as usize * BLOCK;
        let data = data.slice(at..at + blocks.len() * BLOCK);
        let digests = data.chunks_exact(BLOCK).map(Digest::of).collect::<Digests>();
        let entries = blocks.zip(&digests).map(|(block, digest)| Entry::data(id, block, version, *digest));
        draft.set(slot, in_unit.start, entries, lsn);
        let placed = whole && fresh;
        self.records.push((Record::Write(WriteRecord { place, placed, digests }), Some(data)));
    }
}

//! The one that writes: decides, commits, applies.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use lunette_proto::ids::{Epoch, ExtentId, Generation, Namespace, Version};
use lunette_proto::limits::BLOCK_BYTES;
use lunette_proto::node::{Change, Durability, Failure, Reply, ReplyBody};

use super::Identity;
use super::descriptor::{Digest, Entry, UNIT_BLOCKS};
use super::disk::Disk;
use super::draft::{Draft, Part, Plan, Wanted};
use super::layout::UNIT_BYTES;
use super::pages::Pages;
use super::superblock::Superblock;
use super::units::{NoUnit, Purpose, Units};
use super::view::{Dirty, View, Volatile};
use super::wal::record::{Place, RECORD_BYTES_MAX};
use super::wal::{Record, Wal, WriteRecord};
use crate::engine::{Operation, valid_range};

/// A batch is committed before it gets larger, if the ring is large.
const BATCH_BYTES_MAX: u64 = 8 << 20;
/// Descriptors in memory that the disk does not have yet, before a checkpoint.
const DIRTY_MAX: usize = 16_384;
/// Pages whose room is asked of the medium at a time.
const PAGES_READY: u32 = 128;
const BLOCK: usize = BLOCK_BYTES as usize;

/// The disk has failed: nobody may touch the store again (invariant 12).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Fatal(pub String);

impl Fatal {
    pub(crate) fn new(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self(format!("{what}: {error}"))
    }
}

/// What became of an operation.
#[derive(Debug, PartialEq, Eq)]
pub enum Prepared {
    /// This is the answer: once the batch is committed if `stable`, at once if not.
    Answer {
        /// The answer.
        reply: Reply,
        /// It must be durable first.
        stable: bool,
    },
    /// Nothing was done: commit, run a checkpoint to its end, and prepare it again.
    Blocked,
}

impl Prepared {
    fn refused(failure: Failure) -> Self {
        Self::Answer { reply: Err(failure), stable: false }
    }

    fn done(stable: bool) -> Self {
        Self::Answer { reply: Ok(ReplyBody::Done), stable }
    }
}

/// The store of one disk, for the one that writes.
pub struct Store<D> {
    pub(super) identity: Identity,
    pub(super) view: Arc<View<D>>,
    pub(super) wal: Wal,
    pub(super) units: Units,
    pub(super) pages: Pages,
    /// Pages that the medium has room for.
    pub(super) pages_ready: u32,
    /// The newest that is durable.
    pub(super) superblock: Superblock,
    /// A checkpoint has begun.
    pub(super) is_checkpointing: bool,
    batch: Batch,
}

/// Changes that were decided, and are not in the WAL.
#[derive(Debug, Default)]
struct Batch {
    records: u32,
    encoded: Vec<u8>,
    /// Data of the records, in their order.
    data: Vec<Bytes>,
    blocks: u32,
    /// Data of whole units.
    placed: Vec<(u32, Bytes)>,
    placed_bytes: usize,
    /// Where the data of the records goes in the end.
    in_place: Vec<(u64, Bytes)>,
    drafts: BTreeMap<ExtentId, Draft>,
    deleted: Vec<Namespace>,
}

impl<D> std::fmt::Debug for Store<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl<D: Disk> Store<D> {
    pub(super) fn new(
        superblock: Superblock,
        view: Arc<View<D>>,
        wal: Wal,
        units: Units,
        pages: Pages,
    ) -> Self {
        let pages_ready = pages.len();
        let mut store = Self {
            identity: superblock.identity,
            view,
            wal,
            units,
            pages,
            pages_ready,
            superblock,
            is_checkpointing: false,
            batch: Batch::default(),
        };
        store.set_capacity(u64::MAX);
        store
    }

    /// Which disk it is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// What readers share.
    #[must_use]
    pub fn view(&self) -> &Arc<View<D>> {
        &self.view
    }

    /// Offers at most so many bytes of the disk.
    pub fn set_capacity(&mut self, bytes: u64) {
        self.units.set_limit(u32::try_from(bytes / UNIT_BYTES).unwrap_or(u32::MAX));
        let offered = u64::from(self.units.limit()) * UNIT_BYTES;
        self.view.capacity_bytes.store(offered, Ordering::Relaxed);
        self.note_space();
    }

    /// Bytes that the state of namespaces may take.
    fn state_max(&self) -> usize {
        usize::try_from(self.superblock.layout.state_bytes()).unwrap_or(usize::MAX)
    }

    fn note_space(&self) {
        let used = u64::from(self.units.allocated()) * UNIT_BYTES;
        self.view.used_bytes.store(used, Ordering::Relaxed);
    }

    /// Bytes that wait for a commit.
    #[must_use]
    pub fn batch_bytes(&self) -> usize {
        self.batch.encoded.len() + self.batch.blocks as usize * BLOCK + self.batch.placed_bytes
    }

    /// Whether a checkpoint would make room.
    #[must_use]
    pub fn wants_checkpoint(&self) -> bool {
        let waiting = u32::try_from(self.units.waiting()).unwrap_or(u32::MAX);
        !self.is_checkpointing
            && (self.wal.used() > self.wal.ring_bytes() / 2
                || self.view.state.read().dirty.len() > DIRTY_MAX
                || waiting > 1024.max(self.units.free_count() / 2))
    }

    /// How full the WAL is, from 0 to 1.
    #[must_use]
    pub fn wal_fill(&self) -> f64 {
        self.wal.used() as f64 / self.wal.ring_bytes() as f64
    }

    /// Whether anything has changed that the last checkpoint does not hold.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.wal.used() > 0 || self.batch.records > 0
    }

    /// Whether there is anything to commit.
    #[must_use]
    pub fn has_batch(&self) -> bool {
        self.batch.records > 0
    }

    /// Decides one operation against the state that the ones before it leave behind.
    ///
    /// # Errors
    /// The disk has failed.
    pub fn prepare(&mut self, epoch: Epoch, operation: &Operation) -> Result<Prepared, Fatal> {
        match operation {
            Operation::Seal { namespace, generation } => self.seal(epoch, *namespace, *generation),
            Operation::Flush { namespace, generation } => {
                let checked = self.view.check(*namespace, *generation, epoch);
                Ok(Prepared::Answer { stable: checked.is_ok(), reply: checked.map(|()| ReplyBody::Done) })
            }
            Operation::Watermark { namespace, generation, seq } => {
                self.watermark(epoch, *namespace, Version { generation: *generation, seq: *seq })
            }
            Operation::Delete { namespace, generation } => self.delete(epoch, *namespace, *generation),
            Operation::Change { extent, version, offset, change, durability } => {
                if let Err(failure) = self.view.check(extent.namespace, version.generation, epoch) {
                    return Ok(Prepared::refused(failure));
                }
                if version.seq == 0 {
                    return Ok(Prepared::refused(Failure::Invalid));
                }
                self.change(*extent, *version, *offset, change, *durability, false)
            }
            Operation::Put { extent, generation, version, offset, change } => {
                if let Err(failure) = self.view.check(extent.namespace, *generation, epoch) {
                    return Ok(Prepared::refused(failure));
                }
                if version.generation > *generation || version.generation == Generation(0) {
                    return Ok(Prepared::refused(Failure::Invalid));
                }
                self.change(*extent, *version, *offset, change, Durability::Stable, true)
            }
        }
    }

    fn seal(&mut self, epoch: Epoch, id: Namespace, generation: Generation) -> Result<Prepared, Fatal> {
        if !self.make_room(RECORD_BYTES_MAX, 0)? {
            return Ok(Prepared::Blocked);
        }
        let mut state = self.view.state.write();
        let namespaces = &mut state.namespaces;
        if namespaces.is_deleted(id) {
            return Ok(Prepared::refused(Failure::Deleted));
        }
        if let Err(failure) = namespaces.check_not_older(id, generation, epoch) {
            return Ok(Prepared::refused(failure));
        }
        if !namespaces.has_room_for(id, self.state_max()) {
            return Ok(Prepared::refused(Failure::NoSpace));
        }
        if namespaces.seal(id, generation, epoch) && !planted!(SealNotDurable) {
            self.batch.push(&Record::Seal(id, generation, epoch));
        }
        Ok(Prepared::Answer { reply: Ok(ReplyBody::Sealed(namespaces.dirty(id))), stable: true })
    }

    fn watermark(&mut self, epoch: Epoch, id: Namespace, mark: Version) -> Result<Prepared, Fatal> {
        if !self.make_room(RECORD_BYTES_MAX, 0)? {
            return Ok(Prepared::Blocked);
        }
        let mut state = self.view.state.write();
        if let Err(failure) = state.namespaces.check(id, mark.generation, epoch) {
            return Ok(Prepared::refused(failure));
        }
        if state.namespaces.watermark(id, mark) {
            self.batch.push(&Record::Watermark(id, mark));
        }
        Ok(Prepared::done(false))
    }

    fn delete(&mut self, epoch: Epoch, id: Namespace, generation: Generation) -> Result<Prepared, Fatal> {
        if !self.make_room(RECORD_BYTES_MAX, 0)? {
            return Ok(Prepared::Blocked);
        }
        let mut state = self.view.state.write();
        if state.namespaces.is_deleted(id) {
            // It may be in this batch.
            return Ok(Prepared::done(true));
        }
        if let Err(failure) = state.namespaces.check_not_older(id, generation, epoch) {
            return Ok(Prepared::refused(failure));
        }
        if !state.namespaces.has_room_for(id, self.state_max()) {
            return Ok(Prepared::refused(Failure::NoSpace));
        }
        state.namespaces.delete(id);
        self.batch.push(&Record::Delete(id));
        self.batch.deleted.push(id);
        Ok(Prepared::done(true))
    }

    /// Makes room for records and data in the batch and in the ring; false if only a checkpoint can.
    fn make_room(&mut self, encoded: usize, data_blocks: u64) -> Result<bool, Fatal> {
        let max = BATCH_BYTES_MAX.min(self.wal.ring_bytes() / 4);
        let len = |batch: &Batch| {
            Wal::batch_len(batch.encoded.len() + encoded, u64::from(batch.blocks) + data_blocks)
        };
        if self.batch.records > 0 && len(&self.batch).max(self.batch.placed_bytes as u64) > max {
            self.commit()?;
        }
        Ok(self.wal.has_room(len(&self.batch)))
    }

    fn change(
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
        let known = self.batch.drafts.remove(&id);
        let is_known = known.is_some();
        let mut draft = known.unwrap_or_else(|| match self.view.state.read().extents.get(id) {
            Some(extent) => Draft { extent: extent.clone(), is_placed: true, ..Draft::default() },
            None => Draft::default(),
        });
        let plan = draft.plan(&wanted, |slot, unit| self.view.current(id, slot, unit));
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
            Err(Refused::With(failure)) => Ok(Prepared::refused(failure)),
            Err(Refused::Blocked) => Ok(Prepared::Blocked),
            Err(Refused::Fatal(fatal)) => Err(fatal),
        }
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
        let (units, in_place) = self.take_units(&plan, wanted.repair)?;
        let mut next = draft.clone();
        let mut made =
            Made { units: units.iter().copied(), in_place, records: Vec::new(), released: Vec::new() };
        let first_lsn = self.next_lsn();
        plan.parts.iter().for_each(|part| made.part(&mut next, wanted, part, data, first_lsn));
        let Made { records, released, .. } = made;
        let from = draft.is_placed.then(|| (draft.extent.page, draft.extent.record_len()));
        let may_add = self.page_room().map_err(Refused::Fatal)?;
        let page = self.pages.place(wanted.id, from, next.extent.record_len(), may_add);
        let Some(page) = page else {
            units.into_iter().for_each(|unit| self.units.put_back(unit));
            return Err(Refused::With(Failure::NoSpace));
        };
        next.extent.page = page;
        next.is_placed = true;
        released.into_iter().for_each(|unit| self.units.release(unit));
        for (record, data) in records {
            self.batch.push(&record);
            let (Record::Write(write), Some(data)) = (&record, data) else { continue };
            if write.placed {
                self.batch.placed_bytes += data.len();
                self.batch.placed.push((write.place.unit, data));
            } else {
                self.batch.blocks += u32::from(write.place.blocks);
                let offset = self.superblock.layout.unit(write.place.unit);
                let offset = offset + u64::from(write.place.first) * u64::from(BLOCK_BYTES);
                self.batch.in_place.push((offset, data.clone()));
                self.batch.data.push(data);
            }
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
    fn page_room(&mut self) -> Result<bool, Fatal> {
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

    fn next_lsn(&self) -> u64 {
        self.wal.next().lsn + u64::from(self.batch.records)
    }

    /// Makes durable what was prepared, and shows it to readers.
    ///
    /// # Errors
    /// The disk has failed; nothing of the batch may be answered.
    pub fn commit(&mut self) -> Result<(), Fatal> {
        if self.batch.records == 0 {
            return Ok(());
        }
        let batch = std::mem::take(&mut self.batch);
        let disk = &self.view.disk;
        if !batch.placed.is_empty() {
            for (unit, data) in coalesced(batch.placed, |unit| self.superblock.layout.unit(*unit)) {
                disk.write(unit, &data).map_err(Fatal::new("writing a unit failed"))?;
            }
            let synced = if planted!(RecordBeforeData) { Ok(()) } else { disk.sync() };
            if !planted!(SyncErrorIgnored) {
                synced.map_err(Fatal::new("syncing units failed"))?;
            }
        }
        if planted!(InPlaceBeforeRecord) {
            let mut in_place = batch.in_place.iter();
            in_place
                .try_for_each(|(offset, data)| disk.write(*offset, std::slice::from_ref(data)))
                .map_err(Fatal::new("writing data failed"))?;
        }
        if planted!(FlushForgetsVolatile) && !self.view.state.read().volatile.is_empty() {
            return self.apply(batch.drafts, batch.in_place, &batch.deleted);
        }
        let checkpoint = self.superblock.checkpoint;
        let (place, meta) = self.wal.append(checkpoint, batch.records, &batch.encoded, batch.blocks);
        let mut parts = Vec::with_capacity(1 + batch.data.len());
        parts.push(meta);
        parts.extend(batch.data);
        let place = self.superblock.layout.wal_offset + place;
        let written =
            if planted!(AckBeforeSync) { disk.write(place, &parts) } else { disk.write_durable(place, &parts) };
        written.map_err(Fatal::new("writing the journal failed"))?;
        drop(parts);
        self.apply(batch.drafts, batch.in_place, &batch.deleted)
    }

    /// Brings data and state to what is in the WAL.
    fn apply(
        &mut self,
        drafts: BTreeMap<ExtentId, Draft>,
        in_place: Vec<(u64, Bytes)>,
        deleted: &[Namespace],
    ) -> Result<(), Fatal> {
        let mut changed = Vec::with_capacity(drafts.len());
        for (id, mut draft) in drafts {
            let mut dirty = Vec::new();
            for (slot, descriptor) in std::mem::take(&mut draft.descriptors) {
                if draft.changed >> slot & 1 == 0 {
                    continue;
                }
                let (sector, crc) = descriptor.encode(self.identity.uuid);
                draft.extent.set_unit(slot, super::extents::UnitRef { unit: descriptor.unit, crc });
                dirty.push(Arc::new(Dirty { descriptor: Arc::new(descriptor), sector, crc }));
            }
            changed.push((id, draft.extent, dirty));
        }
        let _applying = self.view.applying.write();
        for (offset, data) in in_place {
            self.view.disk.write(offset, &[data]).map_err(Fatal::new("writing data failed"))?;
        }
        let mut state = self.view.state.write();
        for (id, extent, dirty) in changed {
            if let Some(old) = state.extents.insert(id, extent) {
                let extent = state.extents.get(id);
                let gone = old.units().filter(|(slot, unit)| {
                    extent.and_then(|extent| extent.unit(*slot)).is_none_or(|now| now.unit != unit.unit)
                });
                let gone = gone.map(|(_, unit)| unit.unit).collect::<Vec<_>>();
                gone.iter().for_each(|unit| {
                    state.dirty.remove(unit);
                });
            }
            for dirty in dirty {
                state.dirty.insert(dirty.descriptor.unit, dirty);
            }
        }
        for id in deleted {
            for (index, extent) in state.extents.remove_namespace(*id) {
                let extent_id = ExtentId { namespace: *id, index };
                self.pages.remove(extent.page, extent_id, extent.record_len());
                for (_, unit) in extent.units() {
                    state.dirty.remove(&unit.unit);
                    if !planted!(DeleteLeavesUnits) {
                        self.units.release(unit.unit);
                    }
                }
            }
        }
        // Everything that was volatile is in the WAL now.
        if !planted!(VolatileStays) {
            state.volatile.clear();
        }
        drop(state);
        self.note_space();
        Ok(())
    }

    /// Checks that counts, pages and extents agree: what is allocated is what can be reached.
    ///
    /// # Errors
    /// What does not.
    pub fn audit(&self) -> Result<(), String> {
        if self.batch.records > 0 {
            return Ok(());
        }
        let state = self.view.state.read();
        self.pages.audit(&state.extents)?;
        self.units
            .audit(state.extents.iter().flat_map(|(_, extent)| extent.units().map(|(_, unit)| unit.unit)))?;
        for (unit, dirty) in &state.dirty {
            let descriptor = &dirty.descriptor;
            let extent = state.extents.get(descriptor.extent);
            let found = extent.and_then(|extent| extent.unit(descriptor.slot));
            if found.is_none_or(|found| (found.unit, found.crc) != (*unit, dirty.crc)) {
                return Err(format!("the descriptor of unit {unit} waits to be written, and is not in use"));
            }
        }
        Ok(())
    }
}

enum Refused {
    With(Failure),
    Blocked,
    Fatal(Fatal),
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

impl Batch {
    fn push(&mut self, record: &Record) {
        record.encode(&mut self.encoded);
        self.records += 1;
    }
}

impl Part {
    /// The blocks of the extent that it changes.
    fn blocks(&self) -> std::ops::Range<u32> {
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
    records: Vec<(Record, Option<Bytes>)>,
    released: Vec<u32>,
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
                self.released.extend(draft.hole(slots, version));
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
        let fresh = had.is_none() || (whole && !self.in_place);
        let unit = match (fresh, had) {
            (false, Some(unit)) => unit.unit,
            _ => {
                let unit = self.units.next().expect("as many units as were planned");
                self.released.extend(draft.fresh(id, slot, unit, whole));
                unit
            }
        };
        if whole && !fresh {
            // The plan did not need the descriptor, but every block will be new.
            draft
                .descriptors
                .entry(slot)
                .or_insert_with(|| super::descriptor::Descriptor::lost(unit, id, slot));
        }
        let place = Place {
            extent: id,
            version,
            slot,
            first: u8::try_from(in_unit.start).expect("a unit has 16 blocks"),
            blocks: u8::try_from(in_unit.end - in_unit.start).expect("a unit has 16 blocks"),
            unit,
            fresh,
        };
        let blocks = part.blocks();
        let Some(data) = data else {
            draft.set(slot, in_unit.start, blocks.map(|_| Entry::zeros(version)), lsn);
            self.records.push((Record::Zero(place), None));
            return;
        };
        let at = (blocks.start - wanted.blocks.start) as usize * BLOCK;
        let data = data.slice(at..at + blocks.len() * BLOCK);
        let digests = data.chunks_exact(BLOCK).map(Digest::of).collect::<Vec<_>>();
        let entries = blocks.zip(&digests).map(|(block, digest)| Entry::data(id, block, version, *digest));
        draft.set(slot, in_unit.start, entries, lsn);
        let placed = whole && fresh;
        self.records.push((Record::Write(WriteRecord { place, placed, digests }), Some(data)));
    }
}

/// Writes that lie next to each other, as one.
pub(super) fn coalesced<K>(
    writes: impl IntoIterator<Item = (K, Bytes)>,
    offset: impl Fn(&K) -> u64,
) -> Vec<(u64, Vec<Bytes>)> {
    let mut runs: Vec<(u64, u64, Vec<Bytes>)> = Vec::new();
    for (key, data) in writes {
        let begin = offset(&key);
        let end = begin + data.len() as u64;
        match runs.last_mut() {
            Some((_, last, parts)) if *last == begin => {
                *last = end;
                parts.push(data);
            }
            _ => runs.push((begin, end, vec![data])),
        }
    }
    runs.into_iter().map(|(begin, _, parts)| (begin, parts)).collect()
}

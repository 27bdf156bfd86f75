//! Changes that are prepared: durable, seen by nobody, and then committed or rolled back.
//!
//! ```text
//!                 +--> committed: its unit is the slot's (a whole slot, or one without a unit), or its blocks
//!     prepared ---+               are copied into the slot's unit, or, if snapshots see that, the others into its own
//!     in a unit   +--> rolled back: its unit is given back
//!     of its own
//! ```
//!
//! Until then the slot keeps what it has (invariants 5 and 6), and takes no other change. What is prepared is
//! metadata of its extent, and takes more room there than a unit's reference: so a commit needs no room, and is never
//! refused for want of it. A copy reads the unit that it gives back, when it is made and when its record is replayed;
//! nobody writes to that unit before a checkpoint has made the record needless (invariant 21). Where snapshots see the slot's
//! unit, a commit may need room for metadata, to keep it.

use std::collections::btree_map;
use std::sync::Arc;

use bytes::Bytes;
use lunette_proto::ids::{ExtentId, Version};
use lunette_proto::limits::{BLOCK_BYTES, EXTENT_PREPARED_MAX, UNIT_BYTES};
use lunette_proto::node::{Change, Failure};

use super::change::{Copy, Refused};
use super::commit::InPlace;
use super::core::{Fatal, Prepared, Store};
use super::descriptor::{BlockState, Descriptor, Digest, Entry, UNIT_BLOCKS};
use super::disk::Disk;
use super::draft::Draft;
use super::extents::{Shadow, UnitRef};
use super::units::Purpose;
use super::wal::record::{Digests, Place, RECORD_BYTES_MAX};
use super::wal::{How, Record, WriteRecord};
use crate::engine::valid_range;

/// Changes that are prepared on a disk, at most: a takeover looks at each extent that has one.
const PREPARED_MAX: usize = 4096;

/// A change that is to be prepared, of blocks of one slot.
struct Wanted<'a> {
    id: ExtentId,
    slot: u8,
    /// In the unit.
    first: u8,
    blocks: u8,
    version: Version,
    prev: Version,
    data: Option<&'a Bytes>,
}

/// What a decision does beside changing the draft.
#[derive(Default)]
struct Made {
    records: Vec<(Record, Option<Bytes>)>,
    released: Vec<u32>,
    copies: Vec<Copy>,
    /// Changes that are not prepared any more.
    resolved: usize,
}

/// What becomes of a prepared change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resolve {
    Commit,
    Rollback,
}

impl<D: Disk> Store<D> {
    pub(super) fn prepare_change(
        &mut self,
        id: ExtentId,
        (version, prev): (Version, Version),
        offset: u32,
        change: &Change,
    ) -> Result<Prepared, Fatal> {
        let len = change.len();
        let is_in_a_unit = u64::from(offset % UNIT_BYTES) + len <= u64::from(UNIT_BYTES);
        if !valid_range(offset, len) || !is_in_a_unit || version <= prev || version.seq == 0 {
            return Ok(Prepared::refused(Failure::Invalid));
        }
        let narrow = |number: u64| u8::try_from(number).expect("an extent has 64 slots, a unit 16 blocks");
        let data = match change {
            Change::Data(data) => Some(data),
            Change::Zeros { .. } => None,
        };
        let wanted = Wanted {
            id,
            slot: narrow(u64::from(offset / UNIT_BYTES)),
            first: narrow(u64::from(offset % UNIT_BYTES / BLOCK_BYTES)),
            blocks: narrow(len / u64::from(BLOCK_BYTES)),
            version,
            prev,
            data,
        };
        let data_blocks = data.map_or(0, |_| u64::from(wanted.blocks));
        if !self.make_room(2 * RECORD_BYTES_MAX, data_blocks)? {
            return Ok(Prepared::Blocked);
        }
        self.decide(id, |store, draft| store.prepare_slot(draft, &wanted))
    }

    pub(super) fn resolve(
        &mut self,
        id: ExtentId,
        version: Version,
        (offset, len): (u32, u32),
        resolve: Resolve,
    ) -> Result<Prepared, Fatal> {
        if !valid_range(offset, u64::from(len)) {
            return Ok(Prepared::refused(Failure::Invalid));
        }
        if !self.make_room(EXTENT_PREPARED_MAX * RECORD_BYTES_MAX, 0)? {
            return Ok(Prepared::Blocked);
        }
        let slots = offset / UNIT_BYTES..(offset + len).div_ceil(UNIT_BYTES);
        self.decide(id, |store, draft| {
            let mut made = Made::default();
            let mut next = draft.clone();
            for slot in slots.filter_map(|slot| u8::try_from(slot).ok()) {
                store.resolve_slot(&mut next, id, slot, version, resolve, &mut made)?;
            }
            if made.records.is_empty() {
                return Ok(false);
            }
            store.record(draft, next, id, version, made)?;
            Ok(true)
        })
    }

    /// Lets `decide` change the extent as the batch leaves it; it says whether it did.
    fn decide(
        &mut self,
        id: ExtentId,
        decide: impl FnOnce(&mut Self, &mut Draft) -> Result<bool, Refused>,
    ) -> Result<Prepared, Fatal> {
        let (mut draft, is_known) = self.take_draft(id);
        let outcome = decide(self, &mut draft);
        if is_known || matches!(outcome, Ok(true)) {
            self.batch.drafts.insert(id, draft);
        }
        match outcome {
            // What is there already may be so only in this batch.
            Ok(_) => Ok(Prepared::done(true)),
            Err(refused) => refused.answer(),
        }
    }

    fn prepare_slot(&mut self, draft: &mut Draft, wanted: &Wanted<'_>) -> Result<bool, Refused> {
        let &Wanted { id, slot, version, prev, .. } = wanted;
        let shadow = draft.extent.shadow(slot).copied();
        let present = match shadow {
            Some(shadow) => shadow.version,
            None => self.newest(draft, id, slot)?,
        };
        if present == version {
            return Ok(false);
        }
        if present != prev && !planted!(PrevNotChecked) {
            return Err(Refused::With(Failure::Version { present }));
        }
        {
            let namespaces = &self.view.state.read().namespaces;
            let (all, of_extent) = namespaces.prepared(id);
            let is_full = all >= PREPARED_MAX || of_extent >= EXTENT_PREPARED_MAX;
            if (is_full && shadow.is_none())
                || !namespaces.has_room_for_dirty(id.namespace, id.index, self.state_max())
            {
                return Err(Refused::With(Failure::Busy));
            }
        }
        let mut next = draft.clone();
        let mut made = Made::default();
        match shadow {
            Some(shadow) if planted!(LazyCommitForgotten) => {
                self.resolve_slot(&mut next, id, slot, shadow.version, Resolve::Rollback, &mut made)?;
            }
            Some(shadow) => self.commit_slot(&mut next, id, &shadow, &mut made)?,
            None => {}
        }
        // An overwrite has to be possible on a full disk.
        let is_overwrite = next.extent.unit(slot).is_some() && !next.is_seen(slot);
        let purpose = if is_overwrite { Purpose::Spare } else { Purpose::Growth };
        let units = self.units.allocate(&self.view.disk, &self.superblock.layout, 1, purpose)?;
        let unit = units.into_iter().next().expect("one was asked for");
        let lsn = self.next_lsn() + made.records.len() as u64;
        made.records.push(next.prepare(wanted, unit, lsn));
        if let Err(refused) = self.record(draft, next, id, version, made) {
            self.units.put_back(unit);
            return Err(refused);
        }
        self.view.state.write().namespaces.add_prepared(id, version);
        Ok(true)
    }

    /// Resolves what is prepared in a slot, unless it was.
    fn resolve_slot(
        &mut self,
        draft: &mut Draft,
        id: ExtentId,
        slot: u8,
        version: Version,
        resolve: Resolve,
        made: &mut Made,
    ) -> Result<(), Refused> {
        if let Some(shadow) = draft.extent.shadow(slot).copied().filter(|shadow| shadow.version == version) {
            match resolve {
                Resolve::Commit => return self.commit_slot(draft, id, &shadow, made),
                Resolve::Rollback => draft.forget_shadow(slot),
            }
            made.resolved += 1;
            if planted!(RollbackFreesEarly) {
                self.units.put_back(shadow.unit.unit);
                self.batch.released.push(shadow.unit.unit);
            } else {
                made.released.push(shadow.unit.unit);
            }
            made.records.push((Record::Rollback { extent: id, slot, version }, None));
            return Ok(());
        }
        let newest = self.newest(draft, id, slot)?;
        if (newest == version) == (resolve == Resolve::Commit) {
            return Ok(());
        }
        let present = draft.extent.shadow(slot).map_or(newest, |shadow| shadow.version);
        Err(Refused::With(Failure::Version { present }))
    }

    fn commit_slot(
        &mut self,
        draft: &mut Draft,
        id: ExtentId,
        shadow: &Shadow,
        made: &mut Made,
    ) -> Result<(), Refused> {
        let slot = shadow.slot;
        let unit = draft.extent.unit(slot);
        let how = how(shadow, unit, draft.is_seen(slot));
        let lsn = self.next_lsn() + made.records.len() as u64;
        match (how, unit) {
            (How::Merge, Some(unit)) => {
                self.load(draft, id, slot, unit)?;
                if let btree_map::Entry::Vacant(free) = draft.shadows.entry(slot) {
                    free.insert(self.current(id, slot, shadow.unit)?);
                }
                made.copies.extend(draft.merge(shadow, unit, lsn));
            }
            (How::Copy, Some(unit)) => {
                self.load(draft, id, slot, unit)?;
                let loaded;
                let from = match draft.shadows.get(&slot) {
                    Some(known) => known,
                    None => {
                        loaded = self.current(id, slot, shadow.unit)?;
                        &loaded
                    }
                };
                let entries = committed(shadow, from).collect::<Vec<_>>();
                draft.forget_shadow(slot);
                draft.set(slot, u32::from(shadow.first), entries.into_iter(), lsn);
                made.released.push(shadow.unit.unit);
                if !shadow.zeros {
                    made.copies.push(Copy { from: shadow.unit.unit, to: unit.unit, blocks: shadow.range() });
                }
            }
            (How::Hole, _) => {
                draft.forget_shadow(slot);
                made.released.extend(draft.hole(slot, shadow.version));
                made.released.push(shadow.unit.unit);
            }
            (How::Adopt, _) | (How::Copy | How::Merge, None) => made.released.extend(draft.adopt(shadow)),
        }
        made.resolved += 1;
        made.records.push((Record::Commit { extent: id, slot, version: shadow.version, how }, None));
        Ok(())
    }

    /// Takes over what was decided: the records and all that goes with them. Unless it succeeds, nothing has changed.
    fn record(
        &mut self,
        draft: &mut Draft,
        mut next: Draft,
        id: ExtentId,
        version: Version,
        made: Made,
    ) -> Result<(), Refused> {
        self.place(id, draft, &mut next)?;
        made.released.into_iter().for_each(|unit| self.release(unit));
        let layout = self.superblock.layout;
        // What was prepared in this batch is in place before it is copied.
        self.batch.in_place.extend(made.copies.iter().map(|copy| InPlace::copy(&layout, copy)));
        for (record, data) in made.records {
            self.batch.push(&record);
            let (Record::Prepare { write, .. }, Some(data)) = (&record, data) else { continue };
            self.batch.push_data(&layout, write, data);
        }
        let namespaces = &mut self.view.state.write().namespaces;
        (0..made.resolved).for_each(|_| namespaces.remove_prepared(id));
        namespaces.changed(id.namespace, id.index, version, next.extent.newest.max(version));
        *draft = next;
        self.note_space();
        Ok(())
    }

    /// The newest version of any block of a slot, as the batch leaves it.
    fn newest(&self, draft: &mut Draft, id: ExtentId, slot: u8) -> Result<Version, Refused> {
        let Some(unit) = draft.extent.unit(slot) else { return Ok(draft.extent.floor(slot)) };
        let descriptor = self.load(draft, id, slot, unit)?;
        match descriptor.blocks.iter().position(|block| block.state == BlockState::Lost) {
            None => Ok(descriptor.blocks.iter().map(|block| block.version).max().unwrap_or_default()),
            // It is not known which version they have.
            Some(at) => {
                let block = descriptor.first_block() + u32::try_from(at).unwrap_or(0);
                Err(Refused::With(Failure::Corrupt { offset: block * BLOCK_BYTES }))
            }
        }
    }

    /// The descriptor of a slot's unit, in the draft.
    fn load<'a>(
        &self,
        draft: &'a mut Draft,
        id: ExtentId,
        slot: u8,
        unit: UnitRef,
    ) -> Result<&'a Arc<Descriptor>, Refused> {
        Ok(match draft.descriptors.entry(slot) {
            btree_map::Entry::Occupied(known) => known.into_mut(),
            btree_map::Entry::Vacant(free) => free.insert(self.current(id, slot, unit)?),
        })
    }

    fn current(&self, id: ExtentId, slot: u8, unit: UnitRef) -> Result<Arc<Descriptor>, Refused> {
        let found = self.view.current(id, slot, unit);
        found.map_err(|error| Refused::Fatal(Fatal::new("reading a descriptor failed")(error)))
    }
}

/// How a prepared change is committed in a slot that has this unit.
fn how(shadow: &Shadow, unit: Option<UnitRef>, is_seen: bool) -> How {
    match (shadow.is_whole(), unit) {
        (true, _) if shadow.zeros => How::Hole,
        (true, _) | (false, None) => How::Adopt,
        (false, Some(_)) if is_seen && !planted!(SeenUnitChanged) => How::Merge,
        (false, Some(_)) => How::Copy,
    }
}

/// What a slot's descriptor says of the blocks that are copied: what the descriptor `from` says of them, or that they are
/// lost, if that is damaged.
pub(super) fn committed<'a>(shadow: &Shadow, from: &'a Descriptor) -> impl Iterator<Item = Entry> + 'a {
    let version = shadow.version;
    let range = shadow.range();
    let entries = from.blocks.iter().skip(range.start as usize).take(range.len());
    entries.map(move |entry| Entry { version, ..*entry })
}

/// The descriptor of the unit of a prepared change with the other blocks of the slot's unit.
pub(super) fn merged(shadow: &Shadow, prepared: &Descriptor, present: &Descriptor, lsn: u64) -> Descriptor {
    let mut merged = Descriptor { lsn, ..present.copied_to(shadow.unit.unit) };
    for (index, entry) in shadow.range().zip(committed(shadow, prepared)) {
        merged.blocks[index as usize] = Entry { before: 0, ..entry };
    }
    merged
}

/// The descriptor of the unit of a change that is prepared in a slot.
pub(super) fn shadow_descriptor(
    id: ExtentId,
    shadow: &Shadow,
    floor: Version,
    entries: impl Iterator<Item = Entry>,
    lsn: u64,
) -> Descriptor {
    // If the slot has no unit, it gets this one as it is.
    let mut descriptor = Descriptor::fresh(shadow.unit.unit, id, shadow.slot, floor);
    for (block, entry) in descriptor.blocks[usize::from(shadow.first)..].iter_mut().zip(entries) {
        *block = entry;
    }
    descriptor.lsn = lsn;
    descriptor
}

/// The version of the blocks beside those that are prepared, in the prepared unit.
pub(super) fn shadow_floor(shadow: &Shadow, unit: Option<UnitRef>, floor: Version) -> Version {
    if shadow.is_whole() || unit.is_some() { Version::NONE } else { floor }
}

impl Draft {
    /// Prepares a change of a slot; the record, and the data that goes with it.
    fn prepare(&mut self, wanted: &Wanted<'_>, unit: u32, lsn: u64) -> (Record, Option<Bytes>) {
        let &Wanted { id, slot, first, blocks, version, prev, data } = wanted;
        let zeros = data.is_none();
        let shadow = Shadow { slot, first, blocks, zeros, version, prev, unit: UnitRef { unit, crc: 0 } };
        let floor = shadow_floor(&shadow, self.extent.unit(slot), self.extent.floor(slot));
        let chunks = data.iter().flat_map(|data| data.chunks_exact(BLOCK_BYTES as usize));
        let digests = chunks.map(Digest::of).collect::<Digests>();
        let base = u32::from(slot) * UNIT_BLOCKS + u32::from(first);
        let descriptor = if zeros {
            let entries = shadow.range().map(|_| Entry::zeros(version));
            shadow_descriptor(id, &shadow, floor, entries, lsn)
        } else {
            let entries =
                (base..).zip(&digests).map(|(block, digest)| Entry::data(id, block, version, *digest));
            shadow_descriptor(id, &shadow, floor, entries, lsn)
        };
        self.shadows.insert(slot, Arc::new(descriptor));
        self.extent.add_shadow(shadow);
        let place = Place { extent: id, version, slot, first, blocks, unit, fresh: true, copied: false };
        let write = WriteRecord { place, placed: zeros || shadow.is_whole(), digests };
        (Record::Prepare { write, prev, zeros }, data.cloned())
    }

    /// A slot's prepared change is no more.
    fn forget_shadow(&mut self, slot: u8) {
        self.extent.take_shadow(slot);
        self.shadows.remove(&slot);
    }

    /// The unit of a prepared change becomes that of its slot; the unit that it had.
    fn adopt(&mut self, shadow: &Shadow) -> Option<u32> {
        let slot = shadow.slot;
        self.descriptors.remove(&slot);
        self.changed &= !(1 << slot);
        if let Some(descriptor) = self.shadows.remove(&slot) {
            self.descriptors.insert(slot, descriptor);
            self.changed |= 1 << slot;
        }
        self.forget_shadow(slot);
        self.extent.newest = self.extent.newest.max(shadow.version);
        let is_left = self.leave(slot);
        self.extent.set_unit(slot, shadow.unit).map(|old| old.unit).filter(|_| !is_left)
    }

    /// The unit of a prepared change gets the other blocks of its slot's unit, and its place; what is to be copied. Both
    /// descriptors are here.
    fn merge(&mut self, shadow: &Shadow, unit: UnitRef, lsn: u64) -> Vec<Copy> {
        let slot = shadow.slot;
        let (Some(prepared), Some(present)) = (self.shadows.remove(&slot), self.descriptors.get_mut(&slot))
        else {
            return Vec::new();
        };
        let copies = present.content_beside(shadow.range());
        let copies = copies.map(|blocks| Copy { from: unit.unit, to: shadow.unit.unit, blocks }).collect();
        *present = Arc::new(merged(shadow, &prepared, present, lsn));
        self.changed |= 1 << slot;
        self.forget_shadow(slot);
        self.leave(slot);
        self.extent.newest = self.extent.newest.max(shadow.version);
        self.extent.set_unit(slot, shadow.unit);
        copies
    }
}

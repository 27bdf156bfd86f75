//! What a disk knows of its namespaces: who may speak, and what may differ from other members.
//!
//! Pure: changed in the order of the records, and so by recovery.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, BufMut};
use lunette_proto::ids::{Epoch, ExtentId, Generation, Namespace, Snapshot, Version};
use lunette_proto::node::{DirtyExtent, Failure, Sealed};

use super::chains::{Gone, LIVE};

/// Extents of one namespace that may await the next watermark: what one `Sealed` answer can name,
/// with a margin. The owner is told that the disk is busy until its watermark has moved.
pub(crate) const DIRTY_EXTENTS_MAX: usize = 131_072;
/// What a namespace, with its tombstone if snapshots outlive it, a snapshot or a dirty extent of it, and a tombstone take in a
/// checkpoint.
const NAMESPACE_STATE_BYTES: usize = 80;
const SNAPSHOT_STATE_BYTES: usize = 8;
const DIRTY_STATE_BYTES: usize = 24;
const TOMBSTONE_STATE_BYTES: usize = 8;

/// A namespace that lives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NamespaceState {
    /// The newest generation that was sealed; 0 before the first.
    pub(crate) sealed: Generation,
    /// The newest epoch that it was sealed under.
    pub(crate) epoch: Epoch,
    /// Everything up to it is on all in-sync members.
    pub(crate) watermark: Version,
    /// Everything up to it is on this disk, wherever it was a member.
    pub(crate) complete: Version,
    /// Extents changed beyond the watermark, with the newest version of any of their blocks.
    pub(crate) dirty: BTreeMap<u64, Version>,
    /// Extents with prepared changes, and of how many slots: they stay dirty. It follows from the extents, and is not in a
    /// checkpoint.
    prepared: BTreeMap<u64, usize>,
    /// Its snapshots, oldest first.
    snapshots: Vec<Snapshot>,
    /// The newest that was ever marked: numbers are not used again.
    newest_snapshot: Snapshot,
}

impl NamespaceState {
    /// Whether an owner of `generation` under `epoch` is not older than the one that was sealed.
    fn check_not_older(&self, generation: Generation, epoch: Epoch) -> Result<(), Failure> {
        if generation == Generation(0) {
            return Err(Failure::Invalid);
        }
        if generation < self.sealed {
            return Err(Failure::Generation { sealed: self.sealed, got: generation });
        }
        if epoch < self.epoch {
            return Err(Failure::Epoch { sealed: self.epoch, got: epoch });
        }
        Ok(())
    }
}

/// All namespaces of a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Namespaces {
    live: BTreeMap<Namespace, NamespaceState>,
    deleted: BTreeSet<Namespace>,
    /// Deleted namespaces whose snapshots are there.
    outlived: BTreeMap<Namespace, NamespaceState>,
    dirty_extents: usize,
    snapshots: usize,
    prepared: usize,
}

impl Namespaces {
    /// Whether an owner of `generation` under `epoch` may act.
    pub(crate) fn check(&self, id: Namespace, generation: Generation, epoch: Epoch) -> Result<(), Failure> {
        if self.deleted.contains(&id) {
            return Err(Failure::Deleted);
        }
        if generation == Generation(0) {
            return Err(Failure::Invalid);
        }
        let (sealed, sealed_epoch) = self.sealed(id);
        if generation != sealed && !(planted!(LateOwnerActs) && generation < sealed) {
            return Err(Failure::Generation { sealed, got: generation });
        }
        if epoch < sealed_epoch {
            return Err(Failure::Epoch { sealed: sealed_epoch, got: epoch });
        }
        Ok(())
    }

    /// Whether an owner of `generation` under `epoch` may seal, or delete: not older than what was.
    pub(crate) fn check_not_older(
        &self,
        id: Namespace,
        generation: Generation,
        epoch: Epoch,
    ) -> Result<(), Failure> {
        let state = self.live.get(&id);
        state.unwrap_or(&NamespaceState::default()).check_not_older(generation, epoch)
    }

    /// Whether an owner of `generation` under `epoch` may look at snapshots, or end them. Nobody writes to a namespace that was
    /// deleted: its snapshots are every newer owner's.
    pub(crate) fn check_snapshots(
        &self,
        id: Namespace,
        generation: Generation,
        epoch: Epoch,
    ) -> Result<(), Failure> {
        match self.outlived.get(&id) {
            None => self.check(id, generation, epoch),
            Some(state) => state.check_not_older(generation, epoch),
        }
    }

    /// Whether there is a snapshot.
    pub(crate) fn check_snapshot(&self, id: Namespace, snapshot: Snapshot) -> Result<(), Failure> {
        match self.with_snapshots(id) {
            Some(state) if state.snapshots.binary_search(&snapshot).is_ok() => Ok(()),
            Some(state) if snapshot <= state.newest_snapshot => Err(Failure::Deleted),
            Some(_) => Err(Failure::Invalid),
            None if self.deleted.contains(&id) => Err(Failure::Deleted),
            None => Err(Failure::Invalid),
        }
    }

    fn with_snapshots(&self, id: Namespace) -> Option<&NamespaceState> {
        self.live.get(&id).or_else(|| self.outlived.get(&id))
    }

    /// The snapshots of a namespace, oldest first.
    pub(crate) fn snapshots(&self, id: Namespace) -> &[Snapshot] {
        self.with_snapshots(id).map_or_else(Default::default, |state| state.snapshots.as_slice())
    }

    /// Marks a snapshot; whether that is news.
    pub(crate) fn mark(
        &mut self,
        id: Namespace,
        snapshot: Snapshot,
        state_max: usize,
    ) -> Result<bool, Failure> {
        let has_room = self.room_taken() + SNAPSHOT_STATE_BYTES <= state_max / 2;
        let Some(state) = self.live.get_mut(&id) else { return Err(Failure::Invalid) };
        if state.snapshots.binary_search(&snapshot).is_ok() {
            return Ok(false);
        }
        if snapshot <= state.newest_snapshot || snapshot == LIVE {
            return Err(Failure::Invalid);
        }
        if !has_room {
            return Err(Failure::NoSpace);
        }
        state.snapshots.push(snapshot);
        state.newest_snapshot = snapshot;
        self.snapshots += 1;
        Ok(true)
    }

    /// Ends a snapshot, unless it is not there.
    pub(crate) fn unmark(&mut self, id: Namespace, snapshot: Snapshot) -> Option<Gone> {
        let is_last_sight = !self.live.contains_key(&id);
        let state = self.live.get_mut(&id).or_else(|| self.outlived.get_mut(&id))?;
        let at = state.snapshots.binary_search(&snapshot).ok()?;
        state.snapshots.remove(at);
        self.snapshots -= 1;
        let older = at.checked_sub(1).and_then(|at| state.snapshots.get(at)).copied();
        let newer = state.snapshots.get(at).copied();
        if is_last_sight && state.snapshots.is_empty() {
            self.outlived.remove(&id);
        }
        Some(Gone { snapshot, older, newer, is_last_sight })
    }

    pub(crate) fn is_deleted(&self, id: Namespace) -> bool {
        self.deleted.contains(&id)
    }

    /// Those that were sealed and not deleted.
    pub(crate) fn live(&self) -> impl Iterator<Item = Namespace> + '_ {
        self.live.keys().copied()
    }

    fn sealed(&self, id: Namespace) -> (Generation, Epoch) {
        self.live.get(&id).map_or_else(Default::default, |state| (state.sealed, state.epoch))
    }

    /// Seals; whether that changed anything.
    pub(crate) fn seal(&mut self, id: Namespace, generation: Generation, epoch: Epoch) -> bool {
        let state = self.live.entry(id).or_default();
        assert!(generation >= state.sealed, "a sealed generation never decreases");
        assert!(epoch >= state.epoch, "a sealed epoch never decreases");
        let changed = (state.sealed, state.epoch) != (generation, epoch);
        state.sealed = generation;
        state.epoch = epoch;
        changed
    }

    /// The answer to a seal.
    pub(crate) fn answer(&self, id: Namespace) -> Sealed {
        let Some(state) = self.live.get(&id) else { return Sealed::default() };
        let dirty = state.dirty.iter().map(|(index, newest)| DirtyExtent { index: *index, newest: *newest });
        Sealed { dirty: dirty.collect(), complete: state.complete }
    }

    /// Whether one more namespace fits `state_max` bytes of state; always if there is one. Half of the state is for
    /// dirty extents.
    pub(crate) fn has_room_for(&self, id: Namespace, state_max: usize) -> bool {
        self.live.contains_key(&id)
            || self.deleted.contains(&id)
            || self.room_taken() + NAMESPACE_STATE_BYTES <= state_max / 2
    }

    /// Bytes of the state, but for dirty extents.
    fn room_taken(&self) -> usize {
        let states = (self.live.len() + self.outlived.len()).saturating_mul(NAMESPACE_STATE_BYTES);
        let deleted = self.deleted.len().saturating_mul(TOMBSTONE_STATE_BYTES);
        let snapshots = self.snapshots.saturating_mul(SNAPSHOT_STATE_BYTES);
        states.saturating_add(deleted).saturating_add(snapshots)
    }

    /// Whether one more dirty extent fits `state_max` bytes of state.
    pub(crate) fn has_room_for_dirty(&self, id: Namespace, index: u64, state_max: usize) -> bool {
        self.live.get(&id).is_some_and(|state| {
            state.dirty.contains_key(&index)
                || (state.dirty.len() < DIRTY_EXTENTS_MAX
                    && self.dirty_extents.saturating_mul(DIRTY_STATE_BYTES)
                        < state_max / 2 - DIRTY_STATE_BYTES)
        })
    }

    /// Notes a change: `version` is what was written, `newest` the newest version of the extent.
    pub(crate) fn changed(&mut self, id: Namespace, index: u64, version: Version, newest: Version) {
        let state = self.live.entry(id).or_default();
        if version > state.watermark {
            let known = state.dirty.entry(index).or_insert_with(|| {
                self.dirty_extents += 1;
                newest
            });
            *known = newest.max(*known);
        }
    }

    /// Changes that are prepared, in all extents; and in one.
    pub(crate) fn prepared(&self, id: ExtentId) -> (usize, usize) {
        let state = self.live.get(&id.namespace);
        (self.prepared, state.and_then(|state| state.prepared.get(&id.index).copied()).unwrap_or(0))
    }

    /// Notes a change that is prepared: a takeover has to look at its extent, whatever the watermark says.
    pub(crate) fn add_prepared(&mut self, id: ExtentId, version: Version) {
        let state = self.live.entry(id.namespace).or_default();
        let known = state.dirty.entry(id.index).or_insert_with(|| {
            self.dirty_extents += 1;
            version
        });
        *known = version.max(*known);
        *state.prepared.entry(id.index).or_default() += 1;
        self.prepared += 1;
    }

    /// Notes that one is not prepared any more.
    pub(crate) fn remove_prepared(&mut self, id: ExtentId) {
        let Some(state) = self.live.get_mut(&id.namespace) else { return };
        let Some(slots) = state.prepared.get_mut(&id.index) else { return };
        *slots -= 1;
        self.prepared -= 1;
        if *slots == 0 {
            state.prepared.remove(&id.index);
        }
    }

    /// Nothing of an extent is here any more; whether it was dirty.
    pub(crate) fn forget_extent(&mut self, id: ExtentId) -> bool {
        let Some(state) = self.live.get_mut(&id.namespace) else { return false };
        self.prepared -= state.prepared.remove(&id.index).unwrap_or(0);
        let was_dirty = !planted!(DropLeavesDirty) && state.dirty.remove(&id.index).is_some();
        self.dirty_extents -= usize::from(was_dirty);
        was_dirty
    }

    /// Everything up to `mark` is on all in-sync members, and on this disk if it is `complete`; whether that is news.
    pub(crate) fn watermark(&mut self, id: Namespace, mark: Version, complete: bool) -> bool {
        let state = self.live.entry(id).or_default();
        let more = complete && mark > state.complete;
        if more {
            state.complete = mark;
        }
        if mark <= state.watermark {
            return more;
        }
        state.watermark = mark;
        let before = state.dirty.len();
        let NamespaceState { dirty, prepared, .. } = state;
        dirty.retain(|index, newest| {
            let is_prepared = prepared.contains_key(index) && !planted!(WatermarkHidesPrepared);
            (*newest > mark || is_prepared) && !planted!(WatermarkClearsTooMuch)
        });
        self.dirty_extents -= before - state.dirty.len();
        true
    }

    /// Deletes for ever, but for what its snapshots see; whether that is news.
    pub(crate) fn delete(&mut self, id: Namespace) -> bool {
        if let Some(state) = self.live.remove(&id) {
            self.dirty_extents -= state.dirty.len();
            self.prepared -= state.prepared.values().sum::<usize>();
            if !state.snapshots.is_empty() {
                let left = NamespaceState { dirty: BTreeMap::new(), prepared: BTreeMap::new(), ..state };
                self.outlived.insert(id, left);
            }
        }
        self.deleted.insert(id)
    }

    /// As a checkpoint has them: how many live, deleted and outlived ones there are (8 each); the live ones, each (id 8, sealed
    /// 8, epoch 8, watermark 16, complete 16, newest snapshot ever 8, dirty extents 4, snapshots 4) with its dirty extents (index 8,
    /// newest 16) and its snapshots (8); those that are outlived by their snapshots, in the same way; the deleted ones (8).
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64_le(self.live.len() as u64);
        out.put_u64_le(self.deleted.len() as u64);
        out.put_u64_le(self.outlived.len() as u64);
        for (id, state) in self.live.iter().chain(&self.outlived) {
            out.put_u64_le(id.0);
            out.put_u64_le(state.sealed.0);
            out.put_u64_le(state.epoch.0);
            put_version(out, state.watermark);
            put_version(out, state.complete);
            out.put_u64_le(state.newest_snapshot.0);
            out.put_u32_le(u32::try_from(state.dirty.len()).expect("at most DIRTY_EXTENTS_MAX"));
            out.put_u32_le(u32::try_from(state.snapshots.len()).expect("they fit the state of a checkpoint"));
            for (index, newest) in &state.dirty {
                out.put_u64_le(*index);
                put_version(out, *newest);
            }
            state.snapshots.iter().for_each(|snapshot| out.put_u64_le(snapshot.0));
        }
        self.deleted.iter().for_each(|id| out.put_u64_le(id.0));
    }

    /// Reads what [`encode`](Self::encode) wrote; `None` if it is something else.
    pub(crate) fn decode(mut fields: &[u8]) -> Option<Self> {
        let mut all = Self::default();
        let live = fields.try_get_u64_le().ok()?;
        let deleted = fields.try_get_u64_le().ok()?;
        let outlived = fields.try_get_u64_le().ok()?;
        for at in 0..live.checked_add(outlived)? {
            let id = Namespace(fields.try_get_u64_le().ok()?);
            let sealed = Generation(fields.try_get_u64_le().ok()?);
            let epoch = Epoch(fields.try_get_u64_le().ok()?);
            let watermark = get_version(&mut fields)?;
            let complete = get_version(&mut fields)?;
            let newest_snapshot = Snapshot(fields.try_get_u64_le().ok()?);
            let count = fields.try_get_u32_le().ok()?;
            let snapshots = fields.try_get_u32_le().ok()?;
            let mut dirty = BTreeMap::new();
            for _ in 0..count {
                let index = fields.try_get_u64_le().ok()?;
                dirty.insert(index, get_version(&mut fields)?);
            }
            all.dirty_extents += dirty.len();
            let mut state = NamespaceState { sealed, epoch, watermark, complete, ..Default::default() };
            (state.dirty, state.newest_snapshot) = (dirty, newest_snapshot);
            for _ in 0..snapshots {
                let snapshot = Snapshot(fields.try_get_u64_le().ok()?);
                if state.snapshots.last().is_some_and(|last| *last >= snapshot) || snapshot > newest_snapshot
                {
                    return None;
                }
                state.snapshots.push(snapshot);
            }
            all.snapshots += state.snapshots.len();
            if at < live {
                all.live.insert(id, state);
            } else {
                all.outlived.insert(id, state);
            }
        }
        for _ in 0..deleted {
            all.deleted.insert(Namespace(fields.try_get_u64_le().ok()?));
        }
        fields.is_empty().then_some(all)
    }
}

pub(super) fn put_version(out: &mut impl BufMut, version: Version) {
    out.put_u64_le(version.generation.0);
    out.put_u64_le(version.seq);
}

pub(super) fn get_version(fields: &mut &[u8]) -> Option<Version> {
    let generation = Generation(fields.try_get_u64_le().ok()?);
    Some(Version { generation, seq: fields.try_get_u64_le().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NS: Namespace = Namespace(7);

    fn version(generation: u64, seq: u64) -> Version {
        Version { generation: Generation(generation), seq }
    }

    /// Guards invariants 1 and 13: only the sealed generation, under no older epoch, may act.
    #[test]
    fn only_the_sealed_generation_acts() {
        let mut all = Namespaces::default();
        let refused = all.check(NS, Generation(3), Epoch(9));
        assert_eq!(refused, Err(Failure::Generation { sealed: Generation(0), got: Generation(3) }));
        assert_eq!(all.check(NS, Generation(0), Epoch(9)), Err(Failure::Invalid));
        assert!(all.seal(NS, Generation(3), Epoch(9)));
        assert!(!all.seal(NS, Generation(3), Epoch(9)));
        assert_eq!(all.check(NS, Generation(3), Epoch(9)), Ok(()));
        assert_eq!(all.check(NS, Generation(3), Epoch(10)), Ok(()));
        let late = all.check(NS, Generation(3), Epoch(8));
        assert_eq!(late, Err(Failure::Epoch { sealed: Epoch(9), got: Epoch(8) }));
        let newer = all.check(NS, Generation(4), Epoch(9));
        assert_eq!(newer, Err(Failure::Generation { sealed: Generation(3), got: Generation(4) }));
        let older = all.check_not_older(NS, Generation(2), Epoch(9));
        assert_eq!(older, Err(Failure::Generation { sealed: Generation(3), got: Generation(2) }));
    }

    /// Guards reconciliation: a watermark clears what it covers, of older generations too, and
    /// never what is beyond it.
    #[test]
    fn watermark_clears_what_it_covers() {
        let mut all = Namespaces::default();
        all.seal(NS, Generation(2), Epoch(1));
        all.changed(NS, 1, version(1, 50), version(1, 50));
        all.changed(NS, 2, version(2, 7), version(2, 7));
        all.changed(NS, 3, version(2, 8), version(2, 8));
        assert!(all.watermark(NS, version(2, 7), false));
        assert_eq!(all.answer(NS).dirty, [DirtyExtent { index: 3, newest: version(2, 8) }]);
        assert!(!all.watermark(NS, version(2, 3), false), "a late watermark changes nothing");
        // A repair of what is on all members already makes no work for a takeover.
        all.changed(NS, 4, version(1, 3), version(1, 3));
        assert_eq!(all.answer(NS).dirty.len(), 1);
        assert_eq!(all.dirty_extents, 1);
    }

    /// Guards what a returning disk is brought up from: only complete watermarks say what it has, late ones say nothing, and
    /// the same watermark may become complete later.
    #[test]
    fn only_complete_watermarks_say_what_a_disk_has() {
        let mut all = Namespaces::default();
        all.seal(NS, Generation(2), Epoch(1));
        assert!(all.watermark(NS, version(1, 9), true));
        assert!(all.watermark(NS, version(2, 7), false));
        assert_eq!(all.answer(NS).complete, version(1, 9));
        assert!(all.watermark(NS, version(2, 7), true), "the same, and complete now");
        assert!(!all.watermark(NS, version(2, 7), true) && !all.watermark(NS, version(1, 8), true));
        assert_eq!(all.answer(NS).complete, version(2, 7));
        let mut bytes = Vec::new();
        all.encode(&mut bytes);
        assert_eq!(Namespaces::decode(&bytes), Some(all));
    }

    /// Guards takeovers: an extent with something prepared is named until that is resolved, wherever the watermark is; and
    /// the counts.
    #[test]
    fn prepared_extents_stay_dirty() {
        let id = ExtentId { namespace: NS, index: 4 };
        let mut all = Namespaces::default();
        all.seal(NS, Generation(2), Epoch(1));
        all.watermark(NS, version(2, 7), false);
        all.add_prepared(id, version(2, 6));
        all.add_prepared(id, version(2, 8));
        all.add_prepared(ExtentId { index: 5, ..id }, version(2, 8));
        assert_eq!(all.prepared(id), (3, 2));
        assert!(all.watermark(NS, version(2, 9), false));
        let named =
            |all: &Namespaces| all.answer(NS).dirty.iter().map(|dirty| dirty.index).collect::<Vec<_>>();
        assert_eq!(named(&all), [4, 5]);
        all.remove_prepared(id);
        all.remove_prepared(ExtentId { index: 5, ..id });
        assert!(all.watermark(NS, version(2, 10), false));
        assert_eq!((named(&all), all.prepared(id)), (vec![4], (1, 1)));
        all.delete(NS);
        assert_eq!((all.prepared(id), all.dirty_extents), ((0, 0), 0));
    }

    /// Guards invariant 10: what was deleted stays deleted, whoever asks.
    #[test]
    fn deleted_for_ever() {
        let mut all = Namespaces::default();
        all.seal(NS, Generation(2), Epoch(1));
        all.changed(NS, 1, version(2, 1), version(2, 1));
        assert!(all.delete(NS));
        assert!(!all.delete(NS));
        assert_eq!(all.check(NS, Generation(9), Epoch(9)), Err(Failure::Deleted));
        assert_eq!(all.dirty_extents, 0);
    }

    /// Guards snapshots: their numbers only rise and are not used again, and they outlive their namespace, for whoever is not
    /// older than its last owner.
    #[test]
    fn snapshots_are_marked_once() {
        let max = 1 << 16;
        let mut all = Namespaces::default();
        assert_eq!(all.mark(NS, Snapshot(1), max), Err(Failure::Invalid), "nobody has sealed it");
        all.seal(NS, Generation(2), Epoch(5));
        assert_eq!(all.mark(NS, Snapshot(0), max), Err(Failure::Invalid));
        assert_eq!(all.mark(NS, LIVE, max), Err(Failure::Invalid));
        assert_eq!(
            [3, 3, 7].map(|number| all.mark(NS, Snapshot(number), max)),
            [Ok(true), Ok(false), Ok(true)]
        );
        assert_eq!(all.mark(NS, Snapshot(5), max), Err(Failure::Invalid));
        assert_eq!(all.mark(NS, Snapshot(8), 2 * (64 + 16)), Err(Failure::NoSpace));
        let gone =
            Gone { snapshot: Snapshot(3), older: None, newer: Some(Snapshot(7)), is_last_sight: false };
        assert_eq!((all.unmark(NS, Snapshot(3)), all.unmark(NS, Snapshot(3))), (Some(gone), None));
        let checked = [3, 7, 8].map(|number| all.check_snapshot(NS, Snapshot(number)));
        assert_eq!(checked, [Err(Failure::Deleted), Ok(()), Err(Failure::Invalid)]);
        assert_eq!(all.mark(NS, Snapshot(3), max), Err(Failure::Invalid));

        all.delete(NS);
        let older = Failure::Generation { sealed: Generation(2), got: Generation(1) };
        assert_eq!(all.check_snapshots(NS, Generation(1), Epoch(5)), Err(older));
        assert!(all.check_snapshots(NS, Generation(2), Epoch(4)).is_err());
        assert_eq!(all.check_snapshots(NS, Generation(3), Epoch(5)), Ok(()));
        assert_eq!(all.mark(NS, Snapshot(9), max), Err(Failure::Invalid));
        let gone = Gone { snapshot: Snapshot(7), older: None, newer: None, is_last_sight: true };
        assert_eq!(all.unmark(NS, Snapshot(7)), Some(gone));
        assert_eq!(all.check_snapshots(NS, Generation(3), Epoch(5)), Err(Failure::Deleted));
        assert_eq!(all.check_snapshot(NS, Snapshot(7)), Err(Failure::Deleted));
        assert_eq!(all.room_taken(), 8);
    }

    /// Guards the state of a checkpoint: it says the same when it is read, and nothing when it is cut.
    #[test]
    fn encodes() {
        let mut all = Namespaces::default();
        all.seal(NS, Generation(2), Epoch(1));
        all.changed(NS, 1, version(2, 1), version(2, 1));
        all.seal(Namespace(8), Generation(5), Epoch(4));
        all.watermark(Namespace(8), version(5, 3), false);
        all.seal(Namespace(9), Generation(1), Epoch(4));
        all.delete(Namespace(9));
        all.seal(Namespace(10), Generation(1), Epoch(4));
        for (id, snapshot) in [(NS, 4), (NS, 6), (Namespace(10), 2), (Namespace(10), 3)] {
            assert_eq!(all.mark(id, Snapshot(snapshot), 1 << 16), Ok(true));
        }
        all.unmark(Namespace(10), Snapshot(3));
        all.delete(Namespace(10));
        let mut bytes = Vec::new();
        all.encode(&mut bytes);
        assert_eq!(Namespaces::decode(&bytes).as_ref(), Some(&all));
        for cut in 0..bytes.len() {
            assert_eq!(Namespaces::decode(&bytes[..cut]), None);
        }
    }
}

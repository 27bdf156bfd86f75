//! What a disk knows of its namespaces: who may speak, and what may differ from other members.
//!
//! Pure: changed in the order of the records, and so by recovery.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, BufMut};
use lunette_proto::ids::{Epoch, ExtentId, Generation, Namespace, Version};
use lunette_proto::node::{DirtyExtent, Failure, Sealed};

/// Extents of one namespace that may await the next watermark: what one `Sealed` answer can name,
/// with a margin. The owner is told that the disk is busy until its watermark has moved.
pub(crate) const DIRTY_EXTENTS_MAX: usize = 131_072;
/// What a namespace, a dirty extent of it and a tombstone take in a checkpoint.
const NAMESPACE_STATE_BYTES: usize = 72;
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
}

/// All namespaces of a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Namespaces {
    live: BTreeMap<Namespace, NamespaceState>,
    deleted: BTreeSet<Namespace>,
    dirty_extents: usize,
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
        if generation == Generation(0) {
            return Err(Failure::Invalid);
        }
        let (sealed, sealed_epoch) = self.sealed(id);
        if generation < sealed {
            return Err(Failure::Generation { sealed, got: generation });
        }
        if epoch < sealed_epoch {
            return Err(Failure::Epoch { sealed: sealed_epoch, got: epoch });
        }
        Ok(())
    }

    pub(crate) fn is_deleted(&self, id: Namespace) -> bool {
        self.deleted.contains(&id)
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
        let live = (self.live.len() + 1).saturating_mul(NAMESPACE_STATE_BYTES);
        let deleted = self.deleted.len().saturating_mul(TOMBSTONE_STATE_BYTES);
        self.live.contains_key(&id)
            || self.deleted.contains(&id)
            || live.saturating_add(deleted) <= state_max / 2
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

    /// Deletes for ever; whether that is news.
    pub(crate) fn delete(&mut self, id: Namespace) -> bool {
        if let Some(state) = self.live.remove(&id) {
            self.dirty_extents -= state.dirty.len();
            self.prepared -= state.prepared.values().sum::<usize>();
        }
        self.deleted.insert(id)
    }

    /// As a checkpoint has them: live namespaces, each (id 8, sealed 8, epoch 8, watermark 16, complete 16, snapshot 8,
    /// dirty extents 4, zeros 4) with its dirty extents (index 8, newest 16), then the deleted ones (8).
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64_le(self.live.len() as u64);
        out.put_u64_le(self.deleted.len() as u64);
        for (id, state) in &self.live {
            out.put_u64_le(id.0);
            out.put_u64_le(state.sealed.0);
            out.put_u64_le(state.epoch.0);
            put_version(out, state.watermark);
            put_version(out, state.complete);
            out.put_u64_le(0);
            out.put_u32_le(u32::try_from(state.dirty.len()).expect("at most DIRTY_EXTENTS_MAX"));
            out.put_u32_le(0);
            for (index, newest) in &state.dirty {
                out.put_u64_le(*index);
                put_version(out, *newest);
            }
        }
        self.deleted.iter().for_each(|id| out.put_u64_le(id.0));
    }

    /// Reads what [`encode`](Self::encode) wrote; `None` if it is something else.
    pub(crate) fn decode(mut fields: &[u8]) -> Option<Self> {
        let mut all = Self::default();
        let live = fields.try_get_u64_le().ok()?;
        let deleted = fields.try_get_u64_le().ok()?;
        for _ in 0..live {
            let id = Namespace(fields.try_get_u64_le().ok()?);
            let sealed = Generation(fields.try_get_u64_le().ok()?);
            let epoch = Epoch(fields.try_get_u64_le().ok()?);
            let watermark = get_version(&mut fields)?;
            let complete = get_version(&mut fields)?;
            let snapshot = fields.try_get_u64_le().ok()?;
            let count = fields.try_get_u32_le().ok()?;
            if snapshot != 0 || fields.try_get_u32_le().ok()? != 0 {
                return None;
            }
            let mut dirty = BTreeMap::new();
            for _ in 0..count {
                let index = fields.try_get_u64_le().ok()?;
                dirty.insert(index, get_version(&mut fields)?);
            }
            all.dirty_extents += dirty.len();
            all.live.insert(
                id,
                NamespaceState { sealed, epoch, watermark, complete, dirty, ..Default::default() },
            );
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
        let mut bytes = Vec::new();
        all.encode(&mut bytes);
        assert_eq!(Namespaces::decode(&bytes).as_ref(), Some(&all));
        for cut in 0..bytes.len() {
            assert_eq!(Namespaces::decode(&bytes[..cut]), None);
        }
    }
}

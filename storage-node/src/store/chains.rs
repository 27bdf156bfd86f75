//! All extents of a disk, each with what snapshots keep of it.
//!
//! ```text
//!     kept until snapshot 3     kept until 7         live
//!     [ A  .  .  D  .  . ]      [ .  B  .  .  - . ]  [ a  b  C  d  E  F ]
//! ```
//!
//! To mark a snapshot changes no extent. The first change of a slot after it moves what the slot had, a unit, a hole or
//! nothing, to a record of its own, which is kept until the newest snapshot. A read at a snapshot asks, for each slot, the first
//! record from that snapshot on that answers for the slot; the live one answers for all. So each unit is in one record,
//! and no unit that a snapshot sees changes in place (above: until 3 there was nothing but A in its slot; at 7, `a`; and
//! nothing where E is now).
//!
//! When a snapshot goes, what only it saw is given back, and the rest is joined to what the snapshot before it keeps. A namespace
//! that is deleted keeps what its snapshots see: of its live extents, the slots that have not changed since the newest one.

use std::collections::{BTreeMap, btree_map};
use std::ops::{Bound, Range};

use lunette_proto::ids::{ExtentId, Namespace, Snapshot};

use super::extents::{Extent, SLOTS, UnitRef};

/// Until when a record is kept that no snapshot keeps: it is what there is now.
pub(crate) const LIVE: Snapshot = Snapshot(u64::MAX);

/// Which record of an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) extent: ExtentId,
    /// The newest snapshot that sees it.
    pub(crate) until: Snapshot,
}

impl Key {
    /// Of the extent as it is now.
    pub(crate) fn live(extent: ExtentId) -> Self {
        Self { extent, until: LIVE }
    }
}

/// A snapshot that goes, and those beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gone {
    pub(crate) snapshot: Snapshot,
    pub(crate) older: Option<Snapshot>,
    pub(crate) newer: Option<Snapshot>,
    /// The namespace was deleted: only snapshots see anything of it.
    pub(crate) is_last_sight: bool,
}

/// Where records have their room.
pub(crate) trait Room {
    /// Room for a record of `len` bytes, which had one `from` page and length, or none; its page.
    fn place(&mut self, key: Key, from: Option<(u32, usize)>, len: usize) -> Option<u32>;

    /// Gives back the room of a record.
    fn remove(&mut self, page: u32, key: Key, len: usize);
}

type Records = BTreeMap<(u64, Snapshot), Extent>;

/// All extents of a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extents(BTreeMap<Namespace, Records>);

impl Extents {
    /// An extent as it is now.
    pub(crate) fn get(&self, id: ExtentId) -> Option<&Extent> {
        self.record(Key::live(id))
    }

    pub(crate) fn record(&self, key: Key) -> Option<&Extent> {
        self.0.get(&key.extent.namespace)?.get(&(key.extent.index, key.until))
    }

    pub(crate) fn record_mut(&mut self, key: Key) -> Option<&mut Extent> {
        self.0.get_mut(&key.extent.namespace)?.get_mut(&(key.extent.index, key.until))
    }

    /// The records of an extent from `first` on, oldest first.
    pub(crate) fn records(&self, id: ExtentId, first: Snapshot) -> impl Iterator<Item = (Snapshot, &Extent)> {
        let range = (id.index, first)..=(id.index, LIVE);
        let records = self.0.get(&id.namespace).map(|records| records.range(range));
        records.into_iter().flatten().map(|((_, until), extent)| (*until, extent))
    }

    /// The record that says what a slot has at a snapshot, or now.
    pub(crate) fn at(&self, id: ExtentId, at: Snapshot, slot: u8) -> Option<&Extent> {
        self.records(id, at).map(|(_, extent)| extent).find(|extent| extent.answers_for(slot))
    }

    /// The slots that have changed since `snapshot`: records of it or newer ones answer for them.
    pub(crate) fn changed_since(&self, id: ExtentId, snapshot: Snapshot) -> u64 {
        self.0.get(&id.namespace).map_or(0, |records| covered(between(records, id.index, snapshot..LIVE)))
    }

    pub(crate) fn entry(&mut self, key: Key) -> btree_map::Entry<'_, (u64, Snapshot), Extent> {
        self.0.entry(key.extent.namespace).or_default().entry((key.extent.index, key.until))
    }

    /// Notes the checksum of the descriptor of a unit, whichever record has that.
    pub(crate) fn set_checksum(&mut self, id: ExtentId, slot: u8, unit: UnitRef) {
        let Some(records) = self.0.get_mut(&id.namespace) else { return };
        let records = records.range_mut((id.index, Snapshot(0))..=(id.index, LIVE));
        records.for_each(|(_, extent)| extent.set_checksum(slot, unit));
    }

    pub(crate) fn insert(&mut self, key: Key, extent: Extent) -> Option<Extent> {
        self.0.entry(key.extent.namespace).or_default().insert((key.extent.index, key.until), extent)
    }

    /// All records, by extent, oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Key, &Extent)> {
        self.0.iter().flat_map(|(namespace, records)| {
            records.iter().map(|((index, until), extent)| (key(*namespace, *index, *until), extent))
        })
    }

    /// The extents of a namespace from an index on, in order, as they are now.
    pub(crate) fn from(&self, namespace: Namespace, index: u64) -> impl Iterator<Item = (u64, &Extent)> {
        let records = self.0.get(&namespace).into_iter();
        let records = records.flat_map(move |records| records.range((index, Snapshot(0))..));
        records.filter(|((_, until), _)| *until == LIVE).map(|((index, _), extent)| (*index, extent))
    }

    /// The first extent after `last`, in order; the first of all if `None`.
    pub(crate) fn next_after(&self, last: Option<ExtentId>) -> Option<ExtentId> {
        let Some(last) = last else { return self.iter().next().map(|(key, _)| key.extent) };
        let in_namespace = self.0.get(&last.namespace).and_then(|records| {
            records.range((Bound::Excluded((last.index, LIVE)), Bound::Unbounded)).next()
        });
        if let Some(((index, _), _)) = in_namespace {
            return Some(ExtentId { index: *index, ..last });
        }
        let later = (Bound::Excluded(last.namespace), Bound::Unbounded);
        self.0.range(later).find_map(|(namespace, records)| {
            records.keys().next().map(|(index, _)| ExtentId { namespace: *namespace, index: *index })
        })
    }

    /// Records.
    pub(crate) fn len(&self) -> usize {
        self.0.values().map(BTreeMap::len).sum()
    }

    /// Deletes a namespace, but for what its snapshots see, the newest of which is given; the units that are given back.
    pub(crate) fn delete(
        &mut self,
        id: Namespace,
        newest: Option<Snapshot>,
        room: &mut impl Room,
    ) -> Vec<u32> {
        let mut released = Vec::new();
        let Some(records) = self.0.get_mut(&id) else { return released };
        let keys: Vec<_> =
            records.keys().copied().filter(|(_, until)| newest.is_none() || *until == LIVE).collect();
        for (index, until) in keys {
            let unseen = newest.map_or(u64::MAX, |newest| covered(between(records, index, newest..LIVE)));
            let btree_map::Entry::Occupied(mut entry) = records.entry((index, until)) else { continue };
            let (key, extent) = (key(id, index, until), entry.get_mut());
            let (page, len) = (extent.page, extent.record_len());
            released.extend(extent.take_shadows());
            released.extend(extent.forget(if planted!(DeleteForgetsSnapshots) { u64::MAX } else { unseen }));
            if extent.covers == 0 {
                entry.remove();
                room.remove(page, key, len);
            } else if let Some(page) = room.place(key, Some((page, len)), extent.record_len()) {
                extent.page = page;
            }
        }
        if records.is_empty() {
            self.0.remove(&id);
        }
        released
    }

    /// Whether there is anything of an extent, now or for snapshots.
    pub(crate) fn has(&self, id: ExtentId) -> bool {
        self.records(id, Snapshot(0)).next().is_some()
    }

    /// Takes away all of an extent, what snapshots keep of it too; the units that are given back.
    pub(crate) fn drop(&mut self, id: ExtentId, room: &mut impl Room) -> Vec<u32> {
        let mut released = Vec::new();
        let Some(records) = self.0.get_mut(&id.namespace) else { return released };
        let first = if planted!(DropLeavesSnapshots) { LIVE } else { Snapshot(0) };
        let of_extent = records.range((id.index, first)..=(id.index, LIVE)).map(|(key, _)| *key);
        for (index, until) in of_extent.collect::<Vec<_>>() {
            let Some(extent) = records.remove(&(index, until)) else { continue };
            released.extend(extent.all_units());
            room.remove(extent.page, Key { extent: id, until }, extent.record_len());
        }
        if records.is_empty() {
            self.0.remove(&id.namespace);
        }
        released
    }

    /// Takes away what only a snapshot of a namespace sees that goes; the units that are given back.
    pub(crate) fn forget(&mut self, id: Namespace, gone: &Gone, room: &mut impl Room) -> Vec<u32> {
        let mut released = Vec::new();
        let Some(records) = self.0.get_mut(&id) else { return released };
        let is_concerned = |until: Snapshot| {
            until >= gone.snapshot
                && match gone.newer {
                    Some(newer) => until < newer,
                    None => until != LIVE || gone.is_last_sight,
                }
        };
        let keys: Vec<_> = records.keys().copied().filter(|(_, until)| is_concerned(*until)).collect();
        for (index, until) in keys {
            let hidden = match gone.older {
                None => u64::MAX,
                Some(_) if planted!(UnmarkTakesTooMuch) => u64::MAX,
                Some(older) => covered(between(records, index, older..until)),
            };
            let Some(mut extent) = records.remove(&(index, until)) else { continue };
            let (own, page, len) = (key(id, index, until), extent.page, extent.record_len());
            released.extend(extent.forget(hidden));
            if let Some(older) = gone.older.filter(|_| extent.covers != 0) {
                let present = records.get(&(index, older));
                let from = present.map(|present| (present.page, present.record_len()));
                let mut joined = present.cloned().unwrap_or_else(Extent::kept);
                let slots = (0..SLOTS).filter(|slot| extent.answers_for(*slot));
                slots.for_each(|slot| extent.keep(slot, &mut joined));
                let Some(page) = room.place(key(id, index, older), from, joined.record_len()) else {
                    // There is no room for metadata: it stays by itself, which says the same.
                    extent.page = room.place(own, Some((page, len)), extent.record_len()).unwrap_or(page);
                    records.insert((index, until), extent);
                    continue;
                };
                joined.page = page;
                records.insert((index, older), joined);
            }
            room.remove(page, own, len);
        }
        released
    }

    /// Checks that each record that is kept answers for slots, and that snapshots see all of it: `marks` names those of a
    /// namespace, oldest first, and whether the namespace was deleted.
    pub(crate) fn audit<'a>(
        &self,
        marks: impl Fn(Namespace) -> (&'a [Snapshot], bool),
    ) -> Result<(), String> {
        for (namespace, records) in &self.0 {
            let (marks, is_deleted) = marks(*namespace);
            for ((index, until), extent) in records {
                if *until == LIVE && !is_deleted {
                    continue;
                }
                let newest = marks.iter().rev().find(|mark| **mark <= *until);
                let seen = newest.map_or(0, |newest| !covered(between(records, *index, *newest..*until)));
                if extent.covers == 0 || extent.covers & !seen != 0 {
                    let key = key(*namespace, *index, *until);
                    return Err(format!(
                        "{key:?} is kept for {:x}, of which {marks:?} see {seen:x}",
                        extent.covers
                    ));
                }
            }
        }
        Ok(())
    }
}

fn key(namespace: Namespace, index: u64, until: Snapshot) -> Key {
    Key { extent: ExtentId { namespace, index }, until }
}

fn between(records: &Records, index: u64, range: Range<Snapshot>) -> impl Iterator<Item = &Extent> {
    records.range((index, range.start)..(index, range.end)).map(|(_, extent)| extent)
}

fn covered<'a>(records: impl Iterator<Item = &'a Extent>) -> u64 {
    records.fold(0, |slots, extent| slots | extent.covers)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NS: Namespace = Namespace(1);
    const ID: ExtentId = ExtentId { namespace: NS, index: 4 };

    /// Room for as many records; each is in a page of its own.
    struct Pages(usize);

    impl Room for Pages {
        fn place(&mut self, _: Key, from: Option<(u32, usize)>, _: usize) -> Option<u32> {
            match from {
                Some((page, _)) => Some(page),
                None => {
                    self.0 = self.0.checked_sub(1)?;
                    Some(7)
                }
            }
        }

        fn remove(&mut self, _: u32, _: Key, _: usize) {
            self.0 += 1;
        }
    }

    /// Slot 0 changed after every snapshot, slot 1 after the newest one only, slot 2 never.
    fn extents() -> Extents {
        let mut extents = Extents::default();
        let mut live = Extent::default();
        for slot in 0..3 {
            live.set_unit(slot, UnitRef { unit: u32::from(slot), crc: 0 });
        }
        for snapshot in 1..=3 {
            let mut kept = Extent::kept();
            let changed = if snapshot == 3 { 0..2 } else { 0..1 };
            for slot in changed {
                live.keep(slot, &mut kept);
                live.set_unit(slot, UnitRef { unit: snapshot * 10 + u32::from(slot), crc: 0 });
            }
            extents.insert(key(NS, ID.index, Snapshot(u64::from(snapshot))), kept);
        }
        extents.insert(Key::live(ID), live);
        extents
    }

    fn seen(extents: &Extents, at: Snapshot) -> [Option<u32>; 3] {
        [0, 1, 2].map(|slot| extents.at(ID, at, slot)?.unit(slot).map(|unit| unit.unit))
    }

    fn gone(snapshot: u64, older: Option<u64>, newer: Option<u64>) -> Gone {
        let [older, newer] = [older, newer].map(|it| it.map(Snapshot));
        Gone { snapshot: Snapshot(snapshot), older, newer, is_last_sight: false }
    }

    fn audit(extents: &Extents, marks: &[u64], is_deleted: bool) {
        let marks: Vec<_> = marks.iter().copied().map(Snapshot).collect();
        extents.audit(|_| (marks.as_slice(), is_deleted)).expect("in order");
    }

    /// Guards what snapshots see, in whatever order they go: what none sees is given back, once.
    #[test]
    fn snapshots_go_in_any_order() {
        let expected = [[0, 1, 2], [10, 1, 2], [20, 1, 2], [30, 31, 2]].map(|units| units.map(Some));
        let at = |snapshot: usize| if snapshot == 4 { LIVE } else { Snapshot(snapshot as u64) };
        for order in [[1, 2, 3], [1, 3, 2], [2, 1, 3], [2, 3, 1], [3, 1, 2], [3, 2, 1]] {
            for room in [0, 9] {
                let mut extents = extents();
                let mut room = Pages(room);
                let mut marks = vec![1, 2, 3];
                let mut released = Vec::new();
                for snapshot in order {
                    marks.retain(|mark| *mark != snapshot);
                    let older = marks.iter().copied().rev().find(|mark| *mark < snapshot);
                    let newer = marks.iter().copied().find(|mark| *mark > snapshot);
                    released.extend(extents.forget(NS, &gone(snapshot, older, newer), &mut room));
                    for left in marks.iter().map(|mark| *mark as usize).chain([4]) {
                        assert_eq!(seen(&extents, at(left)), expected[left - 1], "{order:?}, {left} is left");
                    }
                    audit(&extents, &marks, false);
                }
                released.sort_unstable();
                assert_eq!((released, extents.len()), (vec![0, 1, 10, 20], 1));
            }
        }
    }

    /// Guards what snapshots keep of a namespace that is deleted: all that they see, and nothing else.
    #[test]
    fn snapshots_outlive_their_namespace() {
        let mut extents = extents();
        let room = &mut Pages(9);
        assert_eq!(extents.delete(NS, Some(Snapshot(3)), room), [30, 31]);
        assert_eq!(seen(&extents, Snapshot(3)), [20, 1, 2].map(Some));
        assert_eq!(seen(&extents, Snapshot(1)), [0, 1, 2].map(Some));
        audit(&extents, &[1, 2, 3], true);
        let last_sight = |gone: Gone| Gone { is_last_sight: true, ..gone };
        assert_eq!(extents.forget(NS, &last_sight(gone(3, Some(2), None)), room), [20]);
        assert_eq!(seen(&extents, Snapshot(2)), [10, 1, 2].map(Some));
        audit(&extents, &[1, 2], true);
        assert_eq!(extents.forget(NS, &last_sight(gone(1, None, Some(2))), room), [0]);
        let mut released = extents.forget(NS, &last_sight(gone(2, None, None)), room);
        released.sort_unstable();
        assert_eq!((released, extents.len()), (vec![1, 2, 10], 0));

        let mut extents = self::extents();
        let other = ExtentId { index: 5, ..ID };
        extents.insert(Key::live(other), Extent::default());
        assert_eq!(extents.next_after(Some(ID)), Some(other));
        assert_eq!(extents.delete(NS, None, room).len(), 7);
        assert_eq!(extents.len(), 0);
    }
}

//! How what was decided becomes durable, and is shown to readers.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use lunette_proto::ids::{ExtentId, Namespace, Snapshot};
use lunette_proto::limits::BLOCK_BYTES;
use smallvec::{SmallVec, smallvec};

use super::chains::{Gone, Key};
use super::change::Copy;
use super::core::{Fatal, Store};
use super::disk::Disk;
use super::draft::Draft;
use super::extents::UnitRef;
use super::layout::Layout;
use super::pages::PagesOf;
use super::view::{Dirty, State};
use super::wal::{Record, WriteRecord};

/// Changes that were decided, and are not in the WAL.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) records: u32,
    pub(super) encoded: Vec<u8>,
    /// Data of the records, in their order.
    pub(super) data: Vec<Bytes>,
    pub(super) blocks: u32,
    /// Data of whole units.
    pub(super) placed: Vec<(u32, Bytes)>,
    pub(super) placed_bytes: usize,
    /// What the records do to data in the end, in their order.
    pub(super) in_place: Vec<InPlace>,
    pub(super) drafts: BTreeMap<ExtentId, Draft>,
    /// Units that its changes have given back.
    pub(super) released: Vec<u32>,
    pub(super) deleted: Vec<Namespace>,
    pub(super) dropped: Vec<ExtentId>,
    /// A snapshot ends.
    pub(super) gone: Option<(Namespace, Gone)>,
    /// Nothing joins it: a mark has its place in the order of all changes, and a drop is of whole extents.
    pub(super) is_alone: bool,
}

impl Batch {
    pub(super) fn push(&mut self, record: &Record) {
        record.encode(&mut self.encoded);
        self.records += 1;
    }

    /// The data of a record that was pushed.
    pub(super) fn push_data(&mut self, layout: &Layout, write: &WriteRecord, data: Bytes) {
        if write.placed {
            self.placed_bytes += data.len();
            self.placed.push((write.place.unit, data));
        } else {
            self.blocks += u32::from(write.place.blocks);
            let offset =
                layout.unit(write.place.unit) + u64::from(write.place.first) * u64::from(BLOCK_BYTES);
            self.in_place.push(InPlace::Data(offset, smallvec![data.clone()]));
            self.data.push(data);
        }
    }
}

/// A change in place.
#[derive(Clone, Debug)]
pub(super) enum InPlace {
    /// This data, at this offset.
    Data(u64, SmallVec<[Bytes; 1]>),
    /// Blocks from one unit to another.
    Copy { from: u64, to: u64, blocks: u8 },
}

impl InPlace {
    pub(super) fn copy(layout: &Layout, copy: &Copy) -> Self {
        let at = u64::from(copy.blocks.start) * u64::from(BLOCK_BYTES);
        let blocks = u8::try_from(copy.blocks.len()).expect("a unit has 16 blocks");
        Self::Copy { from: layout.unit(copy.from) + at, to: layout.unit(copy.to) + at, blocks }
    }

    /// Does it. What is copied is not looked at: its checksum goes with it, and tells.
    pub(super) fn run<D: Disk>(self, disk: &D) -> io::Result<()> {
        match self {
            Self::Data(offset, data) => disk.write(offset, &data),
            Self::Copy { from, to, blocks } => {
                let mut data = vec![0; usize::from(blocks) * BLOCK_BYTES as usize];
                disk.read(from, &mut data)?;
                disk.write(to, &[data.into()])
            }
        }
    }
}

impl<D: Disk> Store<D> {
    /// Makes durable what was prepared, and shows it to readers.
    ///
    /// # Errors
    /// The disk has failed; nothing of the batch may be answered.
    pub fn commit(&mut self) -> Result<(), Fatal> {
        if self.batch.records == 0 {
            return Ok(());
        }
        let mut batch = std::mem::take(&mut self.batch);
        let disk = &self.view.disk;
        if !batch.placed.is_empty() {
            let writes =
                coalesced(std::mem::take(&mut batch.placed), |unit| self.superblock.layout.unit(*unit));
            disk.write_bulk(writes).map_err(Fatal::new("writing units failed"))?;
            let synced = if planted!(RecordBeforeData) { Ok(()) } else { disk.sync() };
            if !planted!(SyncErrorIgnored) {
                synced.map_err(Fatal::new("syncing units failed"))?;
            }
        }
        if planted!(InPlaceBeforeRecord) {
            let mut in_place = batch.in_place.iter().cloned();
            in_place.try_for_each(|change| change.run(disk)).map_err(Fatal::new("writing data failed"))?;
        }
        if planted!(CommitCopiesEarly) {
            let copies = batch.in_place.iter().filter(|change| matches!(change, InPlace::Copy { .. }));
            copies.cloned().try_for_each(|copy| copy.run(disk)).map_err(Fatal::new("copying data failed"))?;
        }
        if planted!(FlushForgetsVolatile) && !self.view.state.read().volatile.is_empty() {
            return self.apply(batch);
        }
        let checkpoint = self.superblock.checkpoint;
        let (place, meta) = self.wal.append(checkpoint, batch.records, &batch.encoded, batch.blocks);
        let mut parts = Vec::with_capacity(1 + batch.data.len());
        parts.push(meta);
        parts.append(&mut batch.data);
        let place = self.superblock.layout.wal_offset + place;
        let written = if planted!(AckBeforeSync) {
            disk.write(place, &parts)
        } else {
            disk.write_durable(place, &parts)
        };
        written.map_err(Fatal::new("writing the journal failed"))?;
        drop(parts);
        self.apply(batch)
    }

    /// Gives back a unit that a change leaves.
    pub(super) fn release(&mut self, unit: u32) {
        self.units.release(unit);
        self.batch.released.push(unit);
    }

    /// Brings data and state to what is in the WAL.
    fn apply(&mut self, batch: Batch) -> Result<(), Fatal> {
        let Batch { drafts, in_place, released, deleted, dropped, gone, .. } = batch;
        let mut changed = Vec::with_capacity(drafts.len());
        for (id, mut draft) in drafts {
            let mut dirty = Vec::new();
            for (slot, descriptor) in std::mem::take(&mut draft.descriptors) {
                if draft.changed >> slot & 1 == 0 {
                    continue;
                }
                let (sector, crc) = descriptor.encode(self.identity.uuid);
                draft.extent.set_unit(slot, UnitRef { unit: descriptor.unit, crc });
                dirty.push(Arc::new(Dirty { descriptor, sector, crc }));
            }
            for descriptor in std::mem::take(&mut draft.shadows).into_values() {
                let (sector, crc) = descriptor.encode(self.identity.uuid);
                draft.extent.set_checksum(descriptor.slot, UnitRef { unit: descriptor.unit, crc });
                dirty.push(Arc::new(Dirty { descriptor, sector, crc }));
            }
            let kept = draft.kept.filter(|kept| kept.is_changed);
            changed.push((id, draft.extent, kept, dirty));
        }
        let _applying = self.view.applying.write();
        for change in together(in_place) {
            change.run(&self.view.disk).map_err(Fatal::new("changing data in place failed"))?;
        }
        let mut state = self.view.state.write();
        self.view.changes.fetch_add(1, Ordering::Release);
        for unit in released {
            state.dirty.remove(&unit);
        }
        for (id, extent, kept, dirty) in changed {
            state.extents.insert(Key::live(id), extent);
            if let Some(kept) = kept {
                state.extents.insert(Key { extent: id, until: kept.until }, kept.extent);
            }
            for dirty in dirty {
                state.dirty.insert(dirty.descriptor.unit, dirty);
            }
        }
        let State { extents, dirty, namespaces, .. } = &mut *state;
        let mut room = PagesOf { pages: &mut self.pages, ready: self.pages_ready };
        let mut released = Vec::new();
        for id in deleted {
            released.extend(extents.delete(id, namespaces.snapshots(id).last().copied(), &mut room));
        }
        for id in dropped {
            let units = extents.drop(id, &mut room);
            if planted!(DropFreesEarly) {
                units.iter().for_each(|unit| self.units.put_back(*unit));
                units.iter().for_each(|unit| drop(dirty.remove(unit)));
                continue;
            }
            released.extend(units);
        }
        if let Some((id, gone)) = gone {
            released.extend(extents.forget(id, &gone, &mut room));
        }
        for unit in released {
            dirty.remove(&unit);
            if !planted!(DeleteLeavesUnits) {
                self.units.release(unit);
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
        self.units.audit(state.extents.iter().flat_map(|(_, extent)| extent.all_units()))?;
        state.extents.audit(|id| (state.namespaces.snapshots(id), state.namespaces.is_deleted(id)))?;
        let mut prepared = 0;
        let live = state.extents.iter().filter(|(key, _)| *key == Key::live(key.extent));
        for (id, extent) in live.map(|(key, extent)| (key.extent, extent)) {
            let of_extent = extent.shadows().len();
            prepared += of_extent;
            if state.namespaces.prepared(id).1 != of_extent {
                return Err(format!("{id} has {of_extent} prepared changes, its namespace counts others"));
            }
        }
        let counted = state.namespaces.prepared(ExtentId { namespace: Namespace(0), index: 0 }).0;
        if counted != prepared {
            return Err(format!("{prepared} changes are prepared, {counted} are counted"));
        }
        for (unit, dirty) in &state.dirty {
            let descriptor = &dirty.descriptor;
            let mut records = state.extents.records(descriptor.extent, Snapshot(0));
            let found = records.find_map(|(_, extent)| extent.find(descriptor.slot, *unit));
            if found.is_none_or(|found| found.crc != dirty.crc) {
                return Err(format!("the descriptor of unit {unit} waits to be written, and is not in use"));
            }
        }
        Ok(())
    }
}

/// Changes in place with those of data joined that follow each other, on the medium too: a stream of small writes. Their order stays,
/// for they may overlap.
fn together(changes: Vec<InPlace>) -> Vec<InPlace> {
    let mut joined: Vec<InPlace> = Vec::with_capacity(changes.len());
    let mut end = None;
    for change in changes {
        let next = match &change {
            InPlace::Data(offset, data) => Some((*offset, data.iter().map(Bytes::len).sum::<usize>())),
            InPlace::Copy { .. } => None,
        };
        match (joined.last_mut(), change) {
            (Some(InPlace::Data(_, parts)), InPlace::Data(offset, more)) if end == Some(offset) => {
                parts.extend(more);
            }
            (_, change) => joined.push(change),
        }
        end = next.map(|(offset, len)| offset + len as u64);
    }
    joined
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards what is written in place: joined or not, every byte is what the changes in their order make it.
    #[test]
    fn joined_changes_are_the_same_changes() {
        let data = |offset: u64, stamp: u8, blocks: usize| {
            InPlace::Data(offset * 4096, smallvec![vec![stamp; blocks * 4096].into()])
        };
        let changes = || {
            let copy = InPlace::Copy { from: 0, to: 8 * 4096, blocks: 2 };
            vec![
                data(0, 1, 1),
                data(1, 2, 2),
                data(3, 3, 1),
                data(2, 4, 1),
                copy,
                data(4, 5, 1),
                data(0, 6, 1),
            ]
        };
        let joined = together(changes());
        let lens = joined.iter().map(|change| match change {
            InPlace::Data(_, parts) => parts.len(),
            InPlace::Copy { .. } => 0,
        });
        assert_eq!(lens.collect::<Vec<_>>(), [3, 1, 0, 1, 1]);
        let written = |changes: Vec<InPlace>| {
            let disk = Memory::default();
            changes.into_iter().for_each(|change| change.run(&disk).expect("memory"));
            disk.0.into_inner()
        };
        assert_eq!(written(joined), written(changes()));
    }

    /// A medium in memory.
    struct Memory(parking_lot::Mutex<Vec<u8>>);

    impl Default for Memory {
        fn default() -> Self {
            Self(vec![0; 16 * 4096].into())
        }
    }

    impl Disk for Memory {
        fn size_bytes(&self) -> u64 {
            16 * 4096
        }
        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            let offset = usize::try_from(offset).expect("small");
            out.copy_from_slice(&self.0.lock()[offset..offset + out.len()]);
            Ok(())
        }
        fn read_cached(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.read(offset, out)
        }
        fn write(&self, offset: u64, parts: &[Bytes]) -> io::Result<()> {
            let mut at = usize::try_from(offset).expect("small");
            for part in parts {
                self.0.lock()[at..at + part.len()].copy_from_slice(part);
                at += part.len();
            }
            Ok(())
        }
        fn write_durable(&self, offset: u64, parts: &[Bytes]) -> io::Result<()> {
            self.write(offset, parts)
        }
        fn sync(&self) -> io::Result<()> {
            Ok(())
        }
        fn reserve(&self, _: u64, _: u64) -> io::Result<()> {
            Ok(())
        }
        fn discard(&self, _: u64, _: u64) -> io::Result<()> {
            Ok(())
        }
    }
}

//! Opening a disk: the newest checkpoint, and the batches after it once more.

mod prepared;

use std::collections::{BTreeMap, btree_map};
use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use lunette_proto::checksum::crc32c;
use lunette_proto::ids::{ExtentId, Namespace};
use lunette_proto::limits::BLOCK_BYTES;

use super::chains::{Extents, Gone, Key, LIVE, Room};
use super::change::Copy;
use super::commit::InPlace;
use super::core::{Fatal, Store};
use super::descriptor::{BlockState, Descriptor, Entry, UNIT_BLOCKS};
use super::disk::Disk;
use super::extents::{Extent, SLOTS, UnitRef};
use super::layout::{DESCRIPTOR_BYTES, Layout, PAGE_BYTES};
use super::namespaces::Namespaces;
use super::pages::{PageRef, Pages, decode_area, decode_page};
use super::superblock::{FORMAT_VERSION, NotSuper, Superblock};
use super::units::Units;
use super::view::{Dirty, State, View};
use super::wal::record::Place;
use super::wal::{Batch, Found, Point, Record, Scan, Wal, WriteRecord};
use crate::engine::DiskError;

const BLOCK: usize = BLOCK_BYTES as usize;
/// Pages that are read at a time.
const PAGES_AT_ONCE: u32 = 128;
/// One page in so many is kept for recovery, which may pack extents differently.
const PAGES_SLACK: u32 = 8;

/// Why a disk cannot be opened. Nothing that it holds was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The medium failed.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// It bears no store.
    #[error("it holds no Lunette disk")]
    NotFormatted,
    /// It is of another format.
    #[error("it has format version {0}, and this program knows version {FORMAT_VERSION}")]
    Version(u32),
    /// It is damaged in a way that no crash explains.
    #[error("it is damaged at byte {offset}: {what}")]
    Damaged {
        /// Where.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
}

impl OpenError {
    fn io(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, source }
    }

    fn damaged(offset: u64, what: &'static str) -> Self {
        Self::Damaged { offset, what }
    }

    /// With the path of the file or device, as users are told of it.
    pub(crate) fn at(self, path: &Path) -> DiskError {
        let path = path.to_owned();
        match self {
            Self::Io { action, source } => DiskError::Io { path, action, source },
            Self::NotFormatted => DiskError::NotFormatted(path),
            Self::Version(version) => DiskError::Version { path, version, supported: FORMAT_VERSION },
            Self::Damaged { offset, what } => DiskError::Damaged { path, offset, what },
        }
    }
}

impl From<Fatal> for OpenError {
    fn from(Fatal(reason): Fatal) -> Self {
        Self::Io { action: "write to it", source: io::Error::other(reason) }
    }
}

/// What opening found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Batches that were done again.
    pub batches: u64,
    /// Their records.
    pub records: u64,
    /// The last batch had begun to reach the medium; nobody was told of it, and it counts as not done.
    pub torn_tail: bool,
    /// Blocks whose data in the WAL is damaged: they are lost until they are repaired or written.
    pub lost_blocks: u64,
}

/// The newest superblock of a disk.
///
/// # Errors
/// There is none that can be used.
pub fn read_superblock<D: Disk>(disk: &D) -> Result<Superblock, OpenError> {
    let mut newest: Option<Superblock> = None;
    let mut trouble = OpenError::NotFormatted;
    for copy in 0..2 {
        let offset = Layout::superblock(copy);
        let mut page = [0; PAGE_BYTES as usize];
        match disk.read(offset, &mut page) {
            Err(error) => trouble = OpenError::io("read its superblock")(error),
            Ok(()) => match Superblock::decode(&page) {
                Ok(found) if newest.is_none_or(|newest| found.checkpoint > newest.checkpoint) => {
                    newest = Some(found)
                }
                Ok(_) => {}
                Err(NotSuper::Version(version)) => return Err(OpenError::Version(version)),
                Err(NotSuper::Damaged) => {
                    trouble = OpenError::damaged(offset, "both superblocks are damaged")
                }
                Err(NotSuper::Foreign) => {}
            },
        }
    }
    newest.ok_or(trouble)
}

/// What a checkpoint holds.
pub(crate) struct Loaded {
    pub(crate) namespaces: Namespaces,
    pub(crate) extents: Extents,
    pub(crate) pages: Pages,
}

/// Reads what a superblock names.
pub(crate) fn load<D: Disk>(disk: &D, superblock: &Superblock) -> Result<Loaded, OpenError> {
    let layout = &superblock.layout;
    if layout.unit(layout.units) > disk.size_bytes() {
        return Err(OpenError::damaged(disk.size_bytes(), "the medium is shorter than the disk"));
    }
    let area_offset = layout.area_offsets[usize::from(superblock.area)];
    let len = usize::try_from(superblock.area_len).unwrap_or(usize::MAX);
    let mut area = vec![0; len.next_multiple_of(PAGE_BYTES as usize)];
    disk.read(area_offset, &mut area).map_err(OpenError::io("read its checkpoint"))?;
    area.truncate(len);
    let damaged = || OpenError::damaged(area_offset, "the checkpoint area is not what the superblock says");
    if crc32c(&area) != superblock.area_crc {
        return Err(damaged());
    }
    let (directory, state) = decode_area(superblock.checkpoint, &area).ok_or_else(damaged)?;
    let namespaces = Namespaces::decode(state).ok_or_else(damaged)?;
    if directory.len() > layout.pages as usize {
        return Err(damaged());
    }
    let mut loaded = Loaded { namespaces, extents: Extents::default(), pages: Pages::new(layout.pages) };
    let mut used_units = vec![0u64; (layout.units as usize).div_ceil(64)];
    let mut chunk = Vec::new();
    for (index, group) in directory.chunks(PAGES_AT_ONCE as usize).enumerate() {
        let first = u32::try_from(index).unwrap_or(u32::MAX).saturating_mul(PAGES_AT_ONCE);
        chunk.resize(group.len() * 2 * PAGE_BYTES as usize, 0);
        disk.read(layout.page(first, 0), &mut chunk).map_err(OpenError::io("read its metadata"))?;
        for ((page, reference), places) in
            (first..).zip(group).zip(chunk.chunks_exact(2 * PAGE_BYTES as usize))
        {
            load_page(superblock, page, *reference, places, &mut loaded, &mut used_units)?;
        }
    }
    Ok(loaded)
}

fn load_page(
    superblock: &Superblock,
    page: u32,
    reference: PageRef,
    places: &[u8],
    loaded: &mut Loaded,
    used: &mut [u64],
) -> Result<(), OpenError> {
    let layout = &superblock.layout;
    let Some(place) = reference.place else {
        loaded.pages.restore(reference, std::iter::empty());
        return Ok(());
    };
    let damaged = |what| OpenError::damaged(layout.page(page, place), what);
    let bytes = &places[usize::from(place) * PAGE_BYTES as usize..][..PAGE_BYTES as usize];
    let extents = decode_page(superblock.identity.uuid, page, reference.crc, bytes)
        .ok_or_else(|| damaged("a page of metadata is not what the directory says"))?;
    loaded.pages.restore(reference, extents.iter().map(|(key, extent)| (*key, extent)));
    for (key, extent) in extents {
        for unit in extent.all_units() {
            let word = used.get_mut(unit as usize / 64).filter(|_| unit < layout.units);
            let word = word.ok_or_else(|| damaged("an extent has a unit that is not there"))?;
            if *word >> (unit % 64) & 1 == 1 {
                return Err(damaged("two extents have the same unit"));
            }
            *word |= 1 << (unit % 64);
        }
        let shadows = extent.shadows().iter();
        shadows.for_each(|shadow| loaded.namespaces.add_prepared(key.extent, shadow.version));
        if loaded.extents.insert(key, extent).is_some() {
            return Err(damaged("an extent is in two pages"));
        }
    }
    Ok(())
}

impl<D: Disk> Store<D> {
    /// Opens a disk; when it returns, what it serves is durable.
    ///
    /// # Errors
    /// It is no disk of this format, damaged, or the medium fails.
    pub fn open(disk: D) -> Result<(Self, Recovered), OpenError> {
        let superblock = read_superblock(&disk)?;
        let Loaded { namespaces, extents, pages } = load(&disk, &superblock)?;
        let mut replay = Replay {
            disk: &disk,
            superblock: &superblock,
            namespaces,
            extents,
            descriptors: BTreeMap::new(),
            before: Before::default(),
            recovered: Recovered::default(),
        };
        let next = replay.run()?;
        let Replay { namespaces, extents, descriptors, before, recovered, .. } = replay;
        let (state, pages) = settle(&superblock, pages, namespaces, extents, descriptors, &before)?;
        let used = state.extents.iter().flat_map(|(_, extent)| extent.all_units());
        let units = Units::new(superblock.layout.units, used.collect::<Vec<_>>().into_iter());
        // What is left of a batch that is given up can never be taken for one that follows.
        let next = Point { number: next.number + 1, ..next };
        let wal = Wal::new(superblock.identity.uuid, superblock.layout.wal_bytes, next);
        let view = Arc::new(View::new(disk, superblock.layout, superblock.identity.uuid, state));
        let mut store = Self::new(superblock, view, wal, units, pages);
        store.pages.set_max(superblock.layout.pages - superblock.layout.pages / PAGES_SLACK);
        // Both copies must say the same before the first is written over: the second may be torn, or name an area that
        // this checkpoint uses. They are durable with the sync that precedes that.
        let page = superblock.encode();
        for copy in (0..2).filter(|_| !planted!(OneGoodSuperblock)) {
            let written = store.view.disk.write(Layout::superblock(copy), std::slice::from_ref(&page));
            written.map_err(OpenError::io("write its superblock"))?;
        }
        let checkpoint = store.begin_checkpoint()?;
        checkpoint.write(&store.view.disk).map_err(OpenError::io("write a checkpoint"))?;
        store.finish_checkpoint(checkpoint)?;
        Ok((store, recovered))
    }
}

/// Page and length of records before they were changed, if they were there. Nothing is placed before all is known.
#[derive(Default)]
struct Before(BTreeMap<Key, Option<(u32, usize)>>);

impl Room for Before {
    fn place(&mut self, key: Key, from: Option<(u32, usize)>, _: usize) -> Option<u32> {
        self.0.entry(key).or_insert(from);
        Some(0)
    }

    fn remove(&mut self, page: u32, key: Key, len: usize) {
        self.0.entry(key).or_insert(Some((page, len)));
    }
}

/// Does the batches after a checkpoint once more.
struct Replay<'a, D> {
    disk: &'a D,
    superblock: &'a Superblock,
    namespaces: Namespaces,
    extents: Extents,
    /// Descriptors that records changed.
    descriptors: BTreeMap<u32, Descriptor>,
    /// Extents that records changed, and what snapshots keep of them: where they were in the pages.
    before: Before,
    recovered: Recovered,
}

impl<D: Disk> Replay<'_, D> {
    /// All batches; where the ring goes on.
    fn run(&mut self) -> Result<Point, OpenError> {
        let layout = &self.superblock.layout;
        let next = Point {
            place: self.superblock.wal_position,
            number: self.superblock.wal_batch,
            chain: self.superblock.wal_chain,
            lsn: self.superblock.lsn + 1,
        };
        let uuid = self.superblock.identity.uuid;
        let mut scan = Scan::new(self.disk, layout, uuid, next).map_err(OpenError::io("read its journal"))?;
        if scan.newest().checkpoint > self.superblock.checkpoint {
            let what = "the superblock is older than the journal says; the newest is lost";
            return Err(OpenError::damaged(Layout::superblock(0), what));
        }
        loop {
            match scan.next().map_err(OpenError::io("read its journal"))? {
                Found::Batch(batch) => self.batch(&batch)?,
                Found::End { torn } => {
                    self.recovered.torn_tail = torn;
                    return Ok(scan.point());
                }
                Found::Damaged(place) => {
                    let what = "a batch of the journal that was durable is damaged";
                    return Err(OpenError::damaged(layout.wal_offset + place, what));
                }
            }
        }
    }

    fn batch(&mut self, batch: &Batch) -> Result<(), OpenError> {
        self.recovered.batches += 1;
        self.recovered.lost_blocks += batch.damaged.len() as u64;
        let mut at = 0;
        for (lsn, record) in (batch.header.first_lsn..).zip(&batch.records) {
            self.recovered.records += 1;
            match record {
                Record::Seal(id, generation, epoch) => {
                    if self.namespaces.check_not_older(*id, *generation, *epoch).is_err() {
                        return Err(self.wrong("the journal seals with an older generation"));
                    }
                    self.namespaces.seal(*id, *generation, *epoch);
                }
                Record::Watermark { namespace, mark, complete } => {
                    self.namespaces.watermark(*namespace, *mark, *complete);
                }
                Record::Delete(id) => self.delete(*id),
                Record::Drop(id) => self.drop_extent(*id),
                Record::Mark(id, snapshot) => {
                    if self.namespaces.mark(*id, *snapshot, usize::MAX).is_err() {
                        return Err(self.wrong("the journal marks a snapshot that cannot be"));
                    }
                }
                Record::Unmark(id, snapshot) => {
                    let gone = self.namespaces.unmark(*id, *snapshot);
                    let gone = gone.ok_or(self.wrong("the journal ends a snapshot that is not there"))?;
                    self.forget(*id, &gone);
                }
                Record::Hole { extent, version, slots } => {
                    let left = self.leave(*extent, *slots);
                    let found = self.touch(Key::live(*extent));
                    found.newest = found.newest.max(*version);
                    let units = found.set_hole(*slots, *version);
                    for unit in units.iter().filter(|unit| !left.contains(unit)) {
                        self.descriptors.remove(unit);
                    }
                    let found = self.touch(Key::live(*extent));
                    let newest = found.newest;
                    self.namespaces.changed(extent.namespace, extent.index, *version, newest);
                }
                Record::Zero(place) => {
                    let zeros = (0..place.blocks).map(|_| Entry::zeros(place.version)).collect();
                    self.place(place, lsn, zeros)?;
                }
                Record::Write(write) => {
                    let entries = self.written(batch, write, record.data().map(|_| at))?;
                    self.place(&write.place, lsn, entries)?;
                }
                Record::Prepare { write, prev, zeros } => {
                    let entries = self.written(batch, write, record.data().map(|_| at))?;
                    self.prepare(write, *prev, *zeros, lsn, entries)?;
                }
                Record::Commit { extent, slot, version, how } => {
                    self.commit(*extent, *slot, *version, *how, lsn)?;
                }
                Record::Rollback { extent, slot, version } => self.rollback(*extent, *slot, *version)?,
            }
            at += record.data_blocks();
        }
        Ok(())
    }

    /// What blocks are after a record; their data, which begins at block `at` of the batch's, if it is there, is written
    /// again.
    fn written(&self, batch: &Batch, write: &WriteRecord, at: Option<u32>) -> Result<Vec<Entry>, OpenError> {
        let place = &write.place;
        let base = u32::from(place.slot) * UNIT_BLOCKS + u32::from(place.first);
        let mut entries = (base..)
            .zip(&write.digests)
            .map(|(block, digest)| Entry::data(place.extent, block, place.version, *digest))
            .collect::<Vec<_>>();
        let Some(at) = at else { return Ok(entries) };
        for (index, entry) in (at..).zip(&mut entries) {
            if batch.damaged.contains(&index) {
                entry.state = BlockState::Lost;
            }
        }
        let data = &batch.data[at as usize * BLOCK..][..entries.len() * BLOCK];
        let offset = self.superblock.layout.unit(place.unit);
        let offset = offset + u64::from(place.first) * u64::from(BLOCK_BYTES);
        self.check_unit(place.unit)?;
        let data = Bytes::copy_from_slice(data);
        let written = if planted!(ReplayWithoutData) { Ok(()) } else { self.disk.write(offset, &[data]) };
        written.map_err(OpenError::io("write data again"))?;
        Ok(entries)
    }

    fn wrong(&self, what: &'static str) -> OpenError {
        OpenError::damaged(self.superblock.layout.wal_offset, what)
    }

    fn check_unit(&self, unit: u32) -> Result<(), OpenError> {
        if unit < self.superblock.layout.units {
            Ok(())
        } else {
            Err(self.wrong("a record has a unit that is not there"))
        }
    }

    /// An extent, or what snapshots keep of it, that is about to change; how it was before its first change is noted.
    fn touch(&mut self, key: Key) -> &mut Extent {
        let Self { extents, before, .. } = self;
        let found = extents.entry(key);
        if let btree_map::Entry::Occupied(present) = &found {
            let present = present.get();
            before.0.entry(key).or_insert_with(|| Some((present.page, present.record_len())));
        } else {
            before.0.entry(key).or_insert(None);
        }
        found.or_insert_with(|| if key.until == LIVE { Extent::default() } else { Extent::kept() })
    }

    /// Leaves what slots have to the snapshots that see it; the units.
    fn leave(&mut self, id: ExtentId, slots: u64) -> Vec<u32> {
        let Some(until) = self.namespaces.snapshots(id.namespace).last().copied() else { return Vec::new() };
        let seen = slots & !self.extents.changed_since(id, until);
        if seen == 0 {
            return Vec::new();
        }
        let present = self.extents.get(id).cloned().unwrap_or_default();
        let kept = self.touch(Key { extent: id, until });
        let mut units = Vec::new();
        for slot in (0..SLOTS).filter(|slot| seen >> slot & 1 == 1) {
            present.keep(slot, kept);
            units.extend(present.unit(slot).map(|unit| unit.unit));
        }
        units
    }

    fn delete(&mut self, id: Namespace) {
        self.namespaces.delete(id);
        let newest = self.namespaces.snapshots(id).last().copied();
        let released = self.extents.delete(id, newest, &mut self.before);
        released.iter().for_each(|unit| {
            self.descriptors.remove(unit);
        });
    }

    fn drop_extent(&mut self, id: ExtentId) {
        if planted!(ReplayWithoutDrop) {
            return;
        }
        self.namespaces.forget_extent(id);
        for unit in self.extents.drop(id, &mut self.before) {
            self.descriptors.remove(&unit);
        }
    }

    fn forget(&mut self, id: Namespace, gone: &Gone) {
        let released = self.extents.forget(id, gone, &mut self.before);
        released.iter().for_each(|unit| {
            self.descriptors.remove(unit);
        });
    }

    /// Copies blocks from one unit to another, once more.
    fn copy(&self, copy: &Copy) -> Result<(), OpenError> {
        self.check_unit(copy.to)?;
        if planted!(ReplayWithoutCopy) {
            return Ok(());
        }
        let copied = InPlace::copy(&self.superblock.layout, copy).run(self.disk);
        copied.map_err(OpenError::io("copy data again"))
    }

    /// What the descriptor of a unit says that does not change.
    fn known(&self, id: ExtentId, slot: u8, unit: UnitRef) -> Result<Descriptor, OpenError> {
        match self.descriptors.get(&unit.unit) {
            Some(known) => Ok(known.clone()),
            None => load_descriptor(self.disk, self.superblock, id, slot, unit),
        }
    }

    /// Blocks of a unit get entries.
    fn place(&mut self, place: &Place, lsn: u64, entries: Vec<Entry>) -> Result<(), OpenError> {
        self.check_unit(place.unit)?;
        let key = Key::live(place.extent);
        let wrong = self.wrong("a record changes a unit that is not its extent's");
        let present = self.touch(key).unit(place.slot);
        if place.copied {
            let present = present.ok_or(wrong)?;
            let descriptor = self.known(place.extent, place.slot, present)?;
            let range = u32::from(place.first)..u32::from(place.first) + u32::from(place.blocks);
            for blocks in descriptor.content_beside(range) {
                self.copy(&Copy { from: present.unit, to: place.unit, blocks })?;
            }
            self.leave(place.extent, 1 << place.slot);
            self.descriptors.insert(place.unit, descriptor.copied_to(place.unit));
            self.touch(key).set_unit(place.slot, UnitRef { unit: place.unit, crc: 0 });
        } else if place.fresh {
            let left = self.leave(place.extent, 1 << place.slot);
            let extent = self.touch(key);
            let is_whole = u32::from(place.blocks) == UNIT_BLOCKS && place.first == 0;
            let floor = if is_whole { lunette_proto::ids::Version::NONE } else { extent.floor(place.slot) };
            let fresh = Descriptor::fresh(place.unit, place.extent, place.slot, floor);
            let old = extent.set_unit(place.slot, UnitRef { unit: place.unit, crc: 0 });
            if let Some(old) = old.filter(|old| !left.contains(&old.unit)) {
                self.descriptors.remove(&old.unit);
            }
            self.descriptors.insert(place.unit, fresh);
        }
        let wrong = self.wrong("a record changes a unit that is not its extent's");
        let extent = self.touch(key);
        let Some(unit) = extent.unit(place.slot).filter(|unit| unit.unit == place.unit) else {
            return Err(wrong);
        };
        extent.newest = extent.newest.max(place.version);
        let newest = extent.newest;
        let descriptor = self.descriptor(place.extent, place.slot, unit)?;
        let base = descriptor.first_block();
        for (index, entry) in (u32::from(place.first)..).zip(entries) {
            let old = descriptor.blocks[index as usize];
            descriptor.blocks[index as usize] = entry.over(place.extent, base + index, &old);
        }
        descriptor.lsn = lsn;
        self.namespaces.changed(place.extent.namespace, place.extent.index, place.version, newest);
        Ok(())
    }

    /// The descriptor of a unit, to be changed.
    fn descriptor(&mut self, id: ExtentId, slot: u8, unit: UnitRef) -> Result<&mut Descriptor, OpenError> {
        Ok(match self.descriptors.entry(unit.unit) {
            btree_map::Entry::Occupied(known) => known.into_mut(),
            btree_map::Entry::Vacant(free) => {
                free.insert(load_descriptor(self.disk, self.superblock, id, slot, unit)?)
            }
        })
    }
}

/// The descriptor that a record changes: as the checkpoint has it, or newer, if the next checkpoint was being
/// written when the disk stopped; if it is damaged, what is left of it, with all its blocks lost.
fn load_descriptor<D: Disk>(
    disk: &D,
    superblock: &Superblock,
    extent: ExtentId,
    slot: u8,
    UnitRef { unit, crc }: UnitRef,
) -> Result<Descriptor, OpenError> {
    let mut sector = [0; DESCRIPTOR_BYTES as usize];
    let uuid = superblock.identity.uuid;
    match disk.read(superblock.layout.descriptor(unit), &mut sector) {
        Err(_) if planted!(ReadErrorIsLoss) => return Ok(Descriptor::lost(unit, extent, slot)),
        // What it says is not known now, and may be right.
        read => read.map_err(OpenError::io("read a descriptor"))?,
    }
    match Descriptor::decode(uuid, &sector, unit, extent, slot) {
        Ok((descriptor, found))
            if found == crc || descriptor.lsn > superblock.lsn && !planted!(NewerDescriptorRefused) =>
        {
            Ok(descriptor)
        }
        _ => {
            tracing::error!(%extent, unit, "damaged descriptor on the disk");
            Ok(Descriptor::salvaged(uuid, &sector, unit, extent, slot))
        }
    }
}

/// Brings pages and descriptors to what the records left behind.
fn settle(
    superblock: &Superblock,
    mut pages: Pages,
    namespaces: Namespaces,
    mut extents: Extents,
    descriptors: BTreeMap<u32, Descriptor>,
    before: &Before,
) -> Result<(State, Pages), OpenError> {
    let mut state = State { namespaces, ..State::default() };
    for (unit, descriptor) in descriptors {
        let (sector, crc) = descriptor.encode(superblock.identity.uuid);
        extents.set_checksum(descriptor.extent, descriptor.slot, UnitRef { unit, crc });
        state.dirty.insert(unit, Arc::new(Dirty { descriptor: Arc::new(descriptor), sector, crc }));
    }
    for (key, was) in &before.0 {
        if let (None, Some((page, len))) = (extents.record(*key), was) {
            pages.remove(*page, *key, *len);
        }
    }
    for (key, was) in &before.0 {
        let Some(extent) = extents.record_mut(*key) else { continue };
        extent.page = pages.place(*key, *was, extent.record_len(), true).ok_or_else(|| {
            OpenError::damaged(
                superblock.layout.pages_offset,
                "there is no room for the metadata of an extent",
            )
        })?;
    }
    state.extents = extents;
    Ok((state, pages))
}

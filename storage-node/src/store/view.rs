//! What readers share: the state, and how blocks are read and verified.
//!
//! A reader notes where the data is, reads it without holding a lock, and verifies. A change that came in between makes a
//! checksum fail; then it looks again, the last time with changes kept out. So a slow medium never makes a change
//! wait for a read.

mod prepared;
mod scrub;

use std::collections::{BTreeMap, HashMap};
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use lunette_proto::ids::{DiskUuid, Epoch, ExtentId, Generation, Namespace, Snapshot, Version};
use lunette_proto::limits::{BLOCK_BYTES, EXTENT_BLOCKS, EXTENT_BYTES, NODE_LIST_MAX};
use lunette_proto::node::{BlockVersion, DirtyExtent, Failure};
use parking_lot::{Mutex, RwLock};
use smallvec::SmallVec;

use super::cache::Cache;
use super::chains::{Extents, LIVE};
use super::descriptor::{BlockState, Damage, Descriptor, UNIT_BLOCKS};
use super::disk::Disk;
use super::extents::{SLOTS, UnitRef};
use super::layout::{DESCRIPTOR_BYTES, Layout};
use super::namespaces::Namespaces;
use super::unit_map::UnitMap;
use crate::engine::Space;

pub use scrub::Inspection;

static ZEROS: [u8; EXTENT_BYTES as usize] = [0; EXTENT_BYTES as usize];
const BLOCK: usize = BLOCK_BYTES as usize;
/// Extents that one question for those which are newer looks at.
const EXTENTS_SEEN_MAX: usize = 4 * NODE_LIST_MAX;
/// Looks without keeping changes out, before the one that does.
const FREE_LOOKS: usize = 2;

/// Why a read gave nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missed {
    /// It would have to wait for the medium.
    Wait,
    /// It cannot be served.
    Failed(Failure),
}

/// A block that is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bad {
    /// Which block of the extent.
    pub block: u32,
    /// What happened to it.
    pub damage: Damage,
}

enum Stopped {
    Wait,
    /// There is no such snapshot.
    NoSnapshot(Failure),
    Bad(Bad),
    /// The medium cannot read a descriptor: that says nothing of the blocks.
    Unread {
        block: u32,
        error: io::Error,
    },
}

impl From<Stopped> for Missed {
    fn from(stopped: Stopped) -> Self {
        match stopped {
            Stopped::Wait => Self::Wait,
            Stopped::NoSnapshot(failure) => Self::Failed(failure),
            Stopped::Bad(Bad { block, .. }) => Self::Failed(Failure::Corrupt { offset: block * BLOCK_BYTES }),
            Stopped::Unread { .. } => Self::Failed(Failure::DiskFailed),
        }
    }
}

/// What readers share with the one that writes.
pub struct View<D> {
    pub(crate) disk: D,
    pub(crate) layout: Layout,
    pub(crate) uuid: DiskUuid,
    pub(crate) state: RwLock<State>,
    /// Held for writing while data is changed in place, until the state says so.
    pub(crate) applying: RwLock<()>,
    cache: Mutex<Cache>,
    /// Counts the times that extents have changed.
    pub(crate) changes: AtomicU64,
    pub(crate) capacity_bytes: AtomicU64,
    pub(crate) used_bytes: AtomicU64,
}

/// What is known in memory.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) namespaces: Namespaces,
    pub(crate) extents: Extents,
    /// Descriptors that are newer than on the disk.
    pub(crate) dirty: UnitMap<Arc<Dirty>>,
    /// Volatile changes that are not in the WAL yet, by block.
    pub(crate) volatile: HashMap<ExtentId, BTreeMap<u32, Volatile>>,
}

impl State {
    /// Where blocks of an extent are, now or at a snapshot.
    fn pieces(&self, id: ExtentId, at: Snapshot, blocks: &Range<u32>) -> Pieces {
        let live = self.extents.get(id).filter(|_| at == LIVE);
        let mut pieces = Pieces::new();
        let mut first = blocks.start;
        while first < blocks.end {
            let end = (first / UNIT_BLOCKS + 1) * UNIT_BLOCKS;
            let end = end.min(blocks.end);
            let slot = u8::try_from(first / UNIT_BLOCKS).unwrap_or(SLOTS - 1);
            let extent = if at == LIVE { live } else { self.extents.at(id, at, slot) };
            let found = match extent.map(|extent| (extent.unit(slot), extent)) {
                Some((Some(unit), _)) => Found::Unit(unit, self.dirty.get(&unit.unit).cloned()),
                Some((None, extent)) => Found::Zeros(extent.floor(slot)),
                None => Found::Zeros(Version::NONE),
            };
            pieces.push(Piece { slot, blocks: first..end, found });
            first = end;
        }
        pieces
    }
}

/// A descriptor that is newer than on the disk.
#[derive(Debug)]
pub(crate) struct Dirty {
    pub(crate) descriptor: Arc<Descriptor>,
    pub(crate) sector: Bytes,
    pub(crate) crc: u32,
}

/// A block as a volatile change made it.
#[derive(Clone, Debug)]
pub(crate) struct Volatile {
    pub(crate) version: Version,
    /// `None`: zeros.
    pub(crate) data: Option<Bytes>,
}

/// Where the blocks of one slot are.
struct Piece {
    slot: u8,
    blocks: Range<u32>,
    found: Found,
}

type Pieces = SmallVec<[Piece; 2]>;
/// What volatile changes made of blocks.
type Changes = Vec<(u32, Volatile)>;

enum Found {
    Zeros(Version),
    Unit(UnitRef, Option<Arc<Dirty>>),
}

impl<D> std::fmt::Debug for View<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").field("uuid", &self.uuid).finish_non_exhaustive()
    }
}

impl<D: Disk> View<D> {
    pub(crate) fn new(disk: D, layout: Layout, uuid: DiskUuid, state: State) -> Self {
        Self {
            disk,
            layout,
            uuid,
            state: RwLock::new(state),
            applying: RwLock::new(()),
            cache: Mutex::default(),
            changes: AtomicU64::new(0),
            capacity_bytes: AtomicU64::new(0),
            used_bytes: AtomicU64::new(0),
        }
    }

    /// Whether an owner of `generation` under `epoch` may act in a namespace.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, namespace: Namespace, generation: Generation, epoch: Epoch) -> Result<(), Failure> {
        self.state.read().namespaces.check(namespace, generation, epoch)
    }

    /// The namespaces that somebody has sealed, and nobody deleted.
    #[must_use]
    pub fn sealed(&self) -> Vec<Namespace> {
        self.state.read().namespaces.live().collect()
    }

    /// Extents of a namespace from an index on that have blocks newer than a version, as many as an answer names; and
    /// where to look on from, if there may be more.
    #[must_use]
    pub fn extents(
        &self,
        namespace: Namespace,
        from: u64,
        newer_than: Version,
    ) -> (Vec<DirtyExtent>, Option<u64>) {
        let state = self.state.read();
        let mut list = Vec::new();
        for (seen, (index, extent)) in state.extents.from(namespace, from).enumerate() {
            if seen == EXTENTS_SEEN_MAX || list.len() == NODE_LIST_MAX {
                return (list, Some(index));
            }
            if extent.newest > newer_than {
                list.push(DirtyExtent { index, newest: extent.newest });
            }
        }
        (list, None)
    }

    /// Whether an owner of `generation` under `epoch` may look at the snapshots of a namespace; also of one that was deleted, if
    /// it has any.
    ///
    /// # Errors
    /// Why not.
    pub fn check_snapshots(
        &self,
        namespace: Namespace,
        generation: Generation,
        epoch: Epoch,
    ) -> Result<(), Failure> {
        self.state.read().namespaces.check_snapshots(namespace, generation, epoch)
    }

    /// The snapshots of a namespace, oldest first.
    #[must_use]
    pub fn snapshots(&self, namespace: Namespace) -> Vec<Snapshot> {
        self.state.read().namespaces.snapshots(namespace).to_vec()
    }

    /// The medium.
    #[must_use]
    pub fn disk(&self) -> &D {
        &self.disk
    }

    /// Space offered and taken, in whole units.
    #[must_use]
    pub fn space(&self) -> Space {
        Space {
            capacity_bytes: self.capacity_bytes.load(Ordering::Relaxed),
            used_bytes: self.used_bytes.load(Ordering::Relaxed),
        }
    }

    /// Reads blocks of an extent, verified. Blocks never written are zeros.
    ///
    /// # Errors
    /// [`Missed::Wait`] unless `wait`, if the medium is needed or somebody else is in the way; otherwise
    /// [`Failure::Corrupt`].
    pub fn read(&self, extent: ExtentId, blocks: Range<u32>, wait: bool) -> Result<Bytes, Missed> {
        self.read_at(extent, LIVE, blocks, wait)
    }

    /// The same of what there was at a snapshot.
    ///
    /// # Errors
    /// As [`read`](Self::read); [`Failure::Deleted`] if the snapshot has ended, [`Failure::Invalid`] if it was never marked.
    pub fn read_at(
        &self,
        extent: ExtentId,
        at: Snapshot,
        blocks: Range<u32>,
        wait: bool,
    ) -> Result<Bytes, Missed> {
        self.look(extent, wait, |view, wait| {
            let before = view.changes.load(Ordering::Acquire);
            let (pieces, volatile) = view.pieces(extent, at, blocks.clone())?;
            let data = view.assemble(extent, &blocks, &pieces, &volatile, wait)?;
            view.check_still(extent, at, &pieces, before)?;
            Ok(data)
        })
        .map_err(|missed| match missed {
            // Somebody else has the data.
            Stopped::Unread { block, .. } => Missed::Failed(Failure::Corrupt { offset: block * BLOCK_BYTES }),
            other => other.into(),
        })
    }

    /// Reads blocks of an extent from the medium, those that volatile changes hide too, as they are now or as snapshots up to
    /// `until` see them.
    ///
    /// # Errors
    /// What is wrong with the first bad one.
    pub fn verify(&self, extent: ExtentId, until: Option<Snapshot>, blocks: Range<u32>) -> Result<(), Bad> {
        let look = || {
            let pieces = self.state.read().pieces(extent, until.unwrap_or(LIVE), &blocks);
            match self.assemble(extent, &blocks, &pieces, &[], true) {
                Ok(_) | Err(Stopped::Wait | Stopped::NoSnapshot(_)) => Ok(()),
                Err(Stopped::Bad(bad)) => Err(bad),
                Err(Stopped::Unread { block, .. }) => Err(Bad { block, damage: Damage::Unreadable }),
            }
        };
        look().or_else(|_| {
            let _still = self.applying.read();
            look()
        })
    }

    /// The versions of an extent's blocks, as runs from block 0 on; what follows the last was never written. A block that
    /// is lost has no version: any that another member has is better.
    ///
    /// # Errors
    /// [`Missed::Wait`] as [`read`](Self::read); [`Failure::DiskFailed`] if the medium cannot read what is asked for: no
    /// answer is right then.
    pub fn versions(&self, extent: ExtentId, wait: bool) -> Result<Vec<BlockVersion>, Missed> {
        let entries = self.look(extent, wait, |view, wait| {
            let (pieces, volatile) = view.pieces(extent, LIVE, 0..EXTENT_BLOCKS)?;
            let mut entries = vec![(Version::NONE, true); EXTENT_BLOCKS as usize];
            for piece in &pieces {
                let blocks = piece.blocks.start as usize..piece.blocks.end as usize;
                match &piece.found {
                    Found::Zeros(version) => entries[blocks].fill((*version, true)),
                    Found::Unit(unit, dirty) => {
                        let descriptor =
                            match view.descriptor(extent, piece.slot, *unit, dirty.as_ref(), wait) {
                                Err(Stopped::Bad(_)) => {
                                    Arc::new(Descriptor::lost(unit.unit, extent, piece.slot))
                                }
                                other => other?,
                            };
                        for (entry, block) in entries[blocks].iter_mut().zip(&descriptor.blocks) {
                            *entry = match block.state {
                                BlockState::Absent | BlockState::Zeros => (block.version, true),
                                BlockState::Data => (block.version, false),
                                BlockState::Lost => (Version::NONE, false),
                            };
                        }
                    }
                }
            }
            for (block, change) in volatile {
                entries[block as usize] = (change.version, change.data.is_none());
            }
            Ok(entries)
        });
        let entries = entries.map_err(Missed::from)?;
        let mut runs: Vec<BlockVersion> = Vec::new();
        for (version, hole) in entries {
            match runs.last_mut() {
                Some(run) if (run.version, run.hole) == (version, hole) => run.blocks += 1,
                _ => runs.push(BlockVersion { blocks: 1, version, hole }),
            }
        }
        if runs.last().is_some_and(|run| run.version == Version::NONE && run.hole) {
            runs.pop();
        }
        Ok(runs)
    }

    /// Looks as often as needed to tell damage from a change that came in between.
    fn look<T>(
        &self,
        extent: ExtentId,
        wait: bool,
        look: impl Fn(&Self, bool) -> Result<T, Stopped>,
    ) -> Result<T, Stopped> {
        if !wait {
            return look(self, false).map_err(|_| Stopped::Wait);
        }
        for _ in 0..FREE_LOOKS {
            match look(self, true) {
                Err(Stopped::Bad(_) | Stopped::Unread { .. } | Stopped::Wait) => {}
                looked => return looked,
            }
        }
        let _still = self.applying.read();
        look(self, true).inspect_err(|stopped| match stopped {
            Stopped::Bad(Bad { block, damage }) => {
                tracing::error!(%extent, block, %damage, "damaged data on the disk");
            }
            Stopped::Unread { block, error } => {
                tracing::error!(%extent, block, %error, "reading a descriptor failed");
            }
            Stopped::Wait | Stopped::NoSnapshot(_) => {}
        })
    }

    fn pieces(&self, id: ExtentId, at: Snapshot, blocks: Range<u32>) -> Result<(Pieces, Changes), Stopped> {
        let state = self.state.read();
        let pieces = state.pieces(id, at, &blocks);
        if at != LIVE {
            state.namespaces.check_snapshot(id.namespace, at).map_err(Stopped::NoSnapshot)?;
            // A mark is durable, and all that was before it.
            return Ok((pieces, Vec::new()));
        }
        let volatile = match state.volatile.get(&id) {
            Some(changes) => changes.range(blocks).map(|(block, change)| (*block, change.clone())).collect(),
            None => Vec::new(),
        };
        Ok((pieces, volatile))
    }

    /// Checks that the units that were read were the extent's all the time. A checksum alone would not tell: who writes
    /// the data can make it such that all checksums are the same.
    fn check_still(&self, id: ExtentId, at: Snapshot, pieces: &[Piece], before: u64) -> Result<(), Stopped> {
        if self.changes.load(Ordering::Acquire) == before {
            return Ok(());
        }
        let state = self.state.read();
        for piece in pieces {
            if let Found::Unit(unit, _) = &piece.found
                && state.extents.at(id, at, piece.slot).and_then(|extent| extent.unit(piece.slot))
                    != Some(*unit)
            {
                return Err(Stopped::Bad(Bad { block: piece.blocks.start, damage: Damage::Stale }));
            }
        }
        Ok(())
    }

    fn assemble(
        &self,
        id: ExtentId,
        blocks: &Range<u32>,
        pieces: &[Piece],
        volatile: &[(u32, Volatile)],
        wait: bool,
    ) -> Result<Bytes, Stopped> {
        let len = blocks.len() * BLOCK;
        let is_hole = pieces.iter().all(|piece| matches!(piece.found, Found::Zeros(_)));
        if is_hole && volatile.iter().all(|(_, change)| change.data.is_none()) {
            return Ok(Bytes::from_static(&ZEROS[..len]));
        }
        if let [(_, Volatile { data: Some(data), .. })] = volatile
            && data.len() == len
        {
            return Ok(data.clone());
        }
        let hidden = |block: u32| volatile.binary_search_by_key(&block, |(block, _)| *block).is_ok();
        let mut out = BytesMut::zeroed(len);
        let mut runs = Runs::default();
        let mut descriptors = Descriptors { first: blocks.start / UNIT_BLOCKS, found: SmallVec::new() };
        for piece in pieces {
            let (unit, dirty) = match &piece.found {
                Found::Unit(unit, dirty) if !piece.blocks.clone().all(hidden) => (unit, dirty),
                _ => {
                    descriptors.found.push(None);
                    continue;
                }
            };
            let descriptor = self.descriptor(id, piece.slot, *unit, dirty.as_ref(), wait);
            let descriptor = descriptor.map_err(|stopped| match stopped {
                // Of what was asked for.
                Stopped::Bad(bad) => Stopped::Bad(Bad { block: piece.blocks.start, ..bad }),
                Stopped::Unread { error, .. } => Stopped::Unread { block: piece.blocks.start, error },
                other => other,
            })?;
            for block in piece.blocks.clone() {
                let index = block % UNIT_BLOCKS;
                match descriptor.blocks[index as usize].state {
                    BlockState::Absent | BlockState::Zeros => {}
                    _ if hidden(block) => {}
                    BlockState::Data => {
                        let offset = self.layout.unit(unit.unit) + u64::from(index * BLOCK_BYTES);
                        runs.push(offset, block);
                    }
                    BlockState::Lost => return Err(Stopped::Bad(Bad { block, damage: Damage::Unreadable })),
                }
            }
            descriptors.found.push(Some(descriptor));
        }
        for run in &runs.0 {
            let at = (run.blocks.start - blocks.start) as usize * BLOCK;
            let out = &mut out[at..at + run.blocks.len() * BLOCK];
            self.read_run(run, &descriptors, out, wait)?;
        }
        for (block, change) in volatile {
            let at = (block - blocks.start) as usize * BLOCK;
            if let Some(data) = &change.data {
                out[at..at + BLOCK].copy_from_slice(data);
            }
        }
        Ok(out.freeze())
    }

    fn read_run(
        &self,
        run: &Run,
        descriptors: &Descriptors,
        out: &mut [u8],
        wait: bool,
    ) -> Result<(), Stopped> {
        let read =
            if wait { self.disk.read(run.offset, out) } else { self.disk.read_cached(run.offset, out) };
        match read {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Err(Stopped::Wait),
            Err(_) if !wait => return Err(Stopped::Wait),
            // Find the first block that cannot be read, so that no more is repaired than needed.
            Err(_) if run.blocks.len() > 1 => {
                for (index, block) in run.blocks.clone().enumerate() {
                    let offset = run.offset + (index * BLOCK) as u64;
                    let single = Run { offset, blocks: block..block + 1 };
                    self.read_run(&single, descriptors, &mut out[index * BLOCK..(index + 1) * BLOCK], wait)?;
                }
                return Ok(());
            }
            Err(error) => {
                let block = run.blocks.start;
                tracing::warn!(block, %error, "read failed");
                return Err(Stopped::Bad(Bad { block, damage: Damage::Unreadable }));
            }
        }
        for (block, data) in run.blocks.clone().zip(out.chunks_exact(BLOCK)) {
            let verified = match descriptors.of(block) {
                Some(descriptor) => descriptor.verify(block % UNIT_BLOCKS, data),
                None => Err(Damage::Unreadable),
            };
            verified.map_err(|damage| Stopped::Bad(Bad { block, damage }))?;
        }
        Ok(())
    }

    /// The descriptor of the unit in a slot.
    fn descriptor(
        &self,
        id: ExtentId,
        slot: u8,
        unit: UnitRef,
        dirty: Option<&Arc<Dirty>>,
        wait: bool,
    ) -> Result<Arc<Descriptor>, Stopped> {
        let block = u32::from(slot) * UNIT_BLOCKS;
        let bad = |damage| Stopped::Bad(Bad { block, damage });
        if let Some(dirty) = dirty {
            return Ok(dirty.descriptor.clone());
        }
        if let Some(descriptor) = self.cache.lock().get(unit.unit, unit.crc)
            && (descriptor.extent, descriptor.slot) == (id, slot)
        {
            return Ok(descriptor);
        }
        let mut sector = [0; DESCRIPTOR_BYTES as usize];
        let offset = self.layout.descriptor(unit.unit);
        let read = if wait {
            self.disk.read(offset, &mut sector)
        } else {
            self.disk.read_cached(offset, &mut sector)
        };
        match read {
            Ok(()) => {}
            Err(_) if !wait => return Err(Stopped::Wait),
            Err(error) => return Err(Stopped::Unread { block, error }),
        }
        let (descriptor, crc) = Descriptor::decode(self.uuid, &sector, unit.unit, id, slot).map_err(bad)?;
        if crc != unit.crc && !planted!(StaleDescriptorTaken) {
            return Err(bad(Damage::Stale));
        }
        let descriptor = Arc::new(descriptor);
        self.cache.lock().insert(descriptor.clone(), crc);
        Ok(descriptor)
    }

    /// The descriptor of the unit in a slot, for the one that writes; if it is damaged, what is left of it, with all its
    /// blocks lost.
    ///
    /// # Errors
    /// The medium cannot read it. What it says is not known now, and may be right.
    pub(crate) fn current(&self, id: ExtentId, slot: u8, unit: UnitRef) -> io::Result<Arc<Descriptor>> {
        let dirty = self.state.read().dirty.get(&unit.unit).cloned();
        match self.descriptor(id, slot, unit, dirty.as_ref(), true) {
            Ok(descriptor) => return Ok(descriptor),
            Err(Stopped::Unread { .. }) if planted!(ReadErrorIsLoss) => {
                return Ok(Arc::new(Descriptor::lost(unit.unit, id, slot)));
            }
            Err(Stopped::Unread { error, .. }) => return Err(error),
            Err(_) => tracing::error!(extent = %id, slot, unit = unit.unit, "damaged descriptor on the disk"),
        }
        let mut sector = [0; DESCRIPTOR_BYTES as usize];
        self.disk.read(self.layout.descriptor(unit.unit), &mut sector)?;
        match Descriptor::decode(self.uuid, &sector, unit.unit, id, slot) {
            // It was not the medium that was wrong.
            Ok((descriptor, crc)) if crc == unit.crc => Ok(Arc::new(descriptor)),
            _ => Ok(Arc::new(Descriptor::salvaged(self.uuid, &sector, unit.unit, id, slot))),
        }
    }

    /// These descriptors are on the disk now.
    pub(crate) fn written(&self, descriptors: &[Arc<Dirty>]) {
        let mut state = self.state.write();
        let mut cache = self.cache.lock();
        for written in descriptors {
            let unit = written.descriptor.unit;
            if state.dirty.get(&unit).is_some_and(|dirty| Arc::ptr_eq(dirty, written)) {
                state.dirty.remove(&unit);
                cache.insert(written.descriptor.clone(), written.crc);
            }
        }
    }
}

/// Blocks that lie next to each other on the disk and in the extent.
struct Run {
    offset: u64,
    /// Of the extent.
    blocks: Range<u32>,
}

#[derive(Default)]
struct Runs(SmallVec<[Run; 2]>);

impl Runs {
    fn push(&mut self, offset: u64, block: u32) {
        if let Some(run) = self.0.last_mut()
            && run.offset + (run.blocks.len() * BLOCK) as u64 == offset
            && run.blocks.end == block
        {
            run.blocks.end += 1;
            return;
        }
        self.0.push(Run { offset, blocks: block..block + 1 });
    }
}

/// The descriptors of slots next to each other, where they are needed.
struct Descriptors {
    /// The first slot.
    first: u32,
    found: SmallVec<[Option<Arc<Descriptor>>; 2]>,
}

impl Descriptors {
    /// That of a block.
    fn of(&self, block: u32) -> Option<&Descriptor> {
        self.found.get((block / UNIT_BLOCKS - self.first) as usize)?.as_deref()
    }
}

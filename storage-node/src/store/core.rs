//! The one that writes: decides, commits, applies.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use lunette_proto::ids::{Epoch, Generation, Namespace, Version};
use lunette_proto::limits::BLOCK_BYTES;
use lunette_proto::node::{Durability, Failure, Reply, ReplyBody};

use super::Identity;
use super::commit::Batch;
use super::disk::Disk;
use super::layout::UNIT_BYTES;
use super::pages::Pages;
use super::prepared::Resolve;
use super::superblock::Superblock;
use super::units::Units;
use super::view::View;
use super::wal::record::RECORD_BYTES_MAX;
use super::wal::{Record, Wal};
use crate::engine::Operation;

/// A batch is committed before it gets larger, if the ring is large.
const BATCH_BYTES_MAX: u64 = 8 << 20;
/// Descriptors in memory that the disk does not have yet, before a checkpoint.
const DIRTY_MAX: usize = 16_384;
/// Share of the ring that is used before a checkpoint. Small checkpoints, and often: all that one brings to the medium
/// stands in the way of the commits that come meanwhile.
const CHECKPOINT_SHARE: u64 = 8;
/// Units that wait to be free, before a checkpoint, unless most of the disk is free: 512 MiB.
const WAITING_MAX: u32 = 8192;
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
    pub(super) fn refused(failure: Failure) -> Self {
        Self::Answer { reply: Err(failure), stable: false }
    }

    pub(super) fn done(stable: bool) -> Self {
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
    pub(super) batch: Batch,
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
    pub(super) fn state_max(&self) -> usize {
        usize::try_from(self.superblock.layout.state_bytes()).unwrap_or(usize::MAX)
    }

    pub(super) fn note_space(&self) {
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
            && (self.wal.used() > self.wal.ring_bytes() / CHECKPOINT_SHARE
                || self.view.state.read().dirty.len() > DIRTY_MAX
                || waiting > WAITING_MAX.max(self.units.free_count() / 2))
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
        let is_alone =
            matches!(operation, Operation::Mark { .. } | Operation::Unmark { .. } | Operation::Drop { .. });
        if is_alone || self.batch.is_alone {
            self.commit()?;
        }
        match operation {
            Operation::Seal { namespace, generation } => self.seal(epoch, *namespace, *generation),
            Operation::Flush { namespace, generation } => {
                let checked = self.view.check(*namespace, *generation, epoch);
                Ok(Prepared::Answer { stable: checked.is_ok(), reply: checked.map(|()| ReplyBody::Done) })
            }
            Operation::Watermark { namespace, generation, seq, complete } => {
                let mark = Version { generation: *generation, seq: *seq };
                self.watermark(epoch, *namespace, mark, *complete)
            }
            Operation::Delete { namespace, generation } => self.delete(epoch, *namespace, *generation),
            Operation::Drop { namespace, generation, extents } => {
                self.drop_extents(epoch, *namespace, *generation, extents)
            }
            Operation::Mark { namespace, generation, snapshot } => {
                self.mark(epoch, *namespace, *generation, *snapshot)
            }
            Operation::Unmark { namespace, generation, snapshot } => {
                self.unmark(epoch, *namespace, *generation, *snapshot)
            }
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
            Operation::Prepare { extent, version, prev, offset, change } => {
                if let Err(failure) = self.view.check(extent.namespace, version.generation, epoch) {
                    return Ok(Prepared::refused(failure));
                }
                self.prepare_change(*extent, (*version, *prev), *offset, change)
            }
            Operation::Commit { extent, generation, version, offset, len }
            | Operation::Rollback { extent, generation, version, offset, len } => {
                if let Err(failure) = self.view.check(extent.namespace, *generation, epoch) {
                    return Ok(Prepared::refused(failure));
                }
                if version.seq == 0 || version.generation == Generation(0) || version.generation > *generation
                {
                    return Ok(Prepared::refused(Failure::Invalid));
                }
                let resolve = match operation {
                    Operation::Commit { .. } => Resolve::Commit,
                    _ => Resolve::Rollback,
                };
                self.resolve(*extent, *version, (*offset, *len), resolve)
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
        Ok(Prepared::Answer { reply: Ok(ReplyBody::Sealed(namespaces.answer(id))), stable: true })
    }

    fn watermark(
        &mut self,
        epoch: Epoch,
        id: Namespace,
        mark: Version,
        complete: bool,
    ) -> Result<Prepared, Fatal> {
        if !self.make_room(RECORD_BYTES_MAX, 0)? {
            return Ok(Prepared::Blocked);
        }
        let mut state = self.view.state.write();
        if let Err(failure) = state.namespaces.check(id, mark.generation, epoch) {
            return Ok(Prepared::refused(failure));
        }
        if state.namespaces.watermark(id, mark, complete) {
            self.batch.push(&Record::Watermark { namespace: id, mark, complete });
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
    pub(super) fn make_room(&mut self, encoded: usize, data_blocks: u64) -> Result<bool, Fatal> {
        let max = BATCH_BYTES_MAX.min(self.wal.ring_bytes() / 4);
        let len = |batch: &Batch| {
            Wal::batch_len(batch.encoded.len() + encoded, u64::from(batch.blocks) + data_blocks)
        };
        if self.batch.records > 0 && len(&self.batch).max(self.batch.placed_bytes as u64) > max {
            self.commit()?;
        }
        Ok(self.wal.has_room(len(&self.batch)))
    }

    pub(super) fn next_lsn(&self) -> u64 {
        self.wal.next().lsn + u64::from(self.batch.records)
    }
}

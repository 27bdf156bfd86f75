//! The commit thread of a disk: the one place where anything changes.
//!
//! Takes what waits, decides each operation in order against the state that the ones before it leave
//! behind, writes one batch of journal records, syncs once, applies, and then answers. A change
//! that may be answered before it is durable waits in memory until the next sync: the extent
//! files never run ahead of the durable journal.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use lunette_proto::ids::{Epoch, ExtentId, Generation, Namespace, Version};
use lunette_proto::limits::{BLOCK_BYTES, EXTENT_BLOCKS, EXTENT_BYTES};
use lunette_proto::node::{Change, Durability, Failure, Reply, ReplyBody};
use rustix::io::Errno;

use super::extent::Extent;
use super::identity::SEGMENT_BYTES_MIN;
use super::journal::{ChangeRecord, Content, Journal, Record};
use super::pending::{Effect, EffectRun, PendingExtent, Wanted, is_whole};
use super::plain::Shared;
use super::{Completion, Operation, valid_range};

/// Journal bytes of one commit, after which it is written although more waits.
const BATCH_BYTES: usize = 8 << 20;
/// Records of one operation: a change may be cut into runs, at worst every other block.
const RECORDS_MAX: usize = EXTENT_BLOCKS as usize / 2 + 1;
/// Volatile changes that may wait in memory for a sync.
const VOLATILE_BYTES_MAX: u64 = 16 << 20;
/// After which volatile changes are synced although nobody asked.
const VOLATILE_IDLE: Duration = Duration::from_millis(1000);
/// Journal bytes of a dirty extent in the state of a namespace.
const DIRTY_STATE_BYTES: u64 = 24;
/// Sixteenths of a segment that the state at its beginning may take: dirty extents, and the namespaces
/// themselves. The largest change fits beside it in the smallest segment.
const DIRTY_SHARE: u64 = 4;
const NAMESPACES_SHARE: u64 = 3;
const _: () = assert!(
    SEGMENT_BYTES_MIN / 16 * (16 - DIRTY_SHARE - NAMESPACES_SHARE) >= EXTENT_BYTES as u64 + (256 << 10)
);

/// What stops the disk.
struct Fatal(String);

impl Fatal {
    fn new(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self(format!("{what}: {error}"))
    }
}

/// The commit thread's state.
pub(super) struct Committer {
    shared: Arc<Shared>,
    journal: Journal,
    /// Changes in the journal that are not in the extent files.
    unapplied: Vec<Unapplied>,
    /// What they will do, by extent.
    pending: HashMap<ExtentId, PendingExtent>,
    /// Answers that wait for this commit.
    answers: Vec<(Completion, Reply)>,
    /// Somebody in this commit waits for stable media.
    sync_wanted: bool,
    /// Namespaces deleted in this commit.
    deleted: Vec<Namespace>,
    /// Room of the file system when this commit began; asked for when first needed.
    free_bytes: Option<u64>,
    dirty_max: usize,
    /// Bytes of journal state that the namespaces may take, but for dirty extents.
    state_max: usize,
}

struct Unapplied {
    extent: Arc<Extent>,
    change: ChangeRecord,
    durability: Durability,
    /// It was answered, and readers see it in memory.
    visible: bool,
}

/// A change that was asked for.
struct Asked {
    extent: ExtentId,
    version: Version,
    offset: u32,
    change: Change,
    durability: Durability,
    repair: bool,
}

impl Committer {
    pub(super) fn new(shared: Arc<Shared>, journal: Journal) -> Self {
        let share = |sixteenths: u64| shared.identity.segment_bytes / 16 * sixteenths;
        let dirty_max = usize::try_from(share(DIRTY_SHARE) / DIRTY_STATE_BYTES).unwrap_or(usize::MAX);
        let state_max = usize::try_from(share(NAMESPACES_SHARE)).unwrap_or(usize::MAX);
        Self {
            shared,
            journal,
            unapplied: Vec::new(),
            pending: HashMap::new(),
            answers: Vec::new(),
            sync_wanted: false,
            deleted: Vec::new(),
            free_bytes: None,
            dirty_max,
            state_max,
        }
    }

    /// Until the engine is closed.
    pub(super) fn run(mut self) {
        loop {
            let (batch, closed) = self.take();
            let outcome = self.process(batch, closed);
            if let Err(Fatal(reason)) = outcome {
                self.shared.fail(&reason);
            }
            if self.shared.is_failed() {
                self.refuse_all();
            }
            if closed {
                break;
            }
        }
        self.shared.checkpoint.lock().closed = true;
        self.shared.checkpointed.notify_all();
    }

    /// Everything that waits; at last, whether the engine was closed.
    fn take(&self) -> (Vec<(Epoch, Operation, Completion)>, bool) {
        let mut queue = self.shared.queue.lock();
        while queue.waiting.is_empty() && !queue.closed {
            if self.unapplied.is_empty() {
                self.shared.queued.wait(&mut queue);
            } else if self.shared.queued.wait_for(&mut queue, VOLATILE_IDLE).timed_out() {
                break;
            }
        }
        queue.bytes = 0;
        (queue.waiting.drain(..).collect(), queue.closed)
    }

    fn process(&mut self, batch: Vec<(Epoch, Operation, Completion)>, closed: bool) -> Result<(), Fatal> {
        if self.shared.is_failed() {
            // Nothing is tried again (invariant 12); what is dropped is answered so.
            return Ok(());
        }
        self.note_checkpoint()?;
        self.sync_wanted = closed || batch.is_empty();
        for (epoch, operation, done) in batch {
            if !self.journal.has_room(operation.data_len(), RECORDS_MAX) {
                self.commit()?;
                self.rotate()?;
                if !self.journal.has_room(operation.data_len(), RECORDS_MAX) {
                    return Err(Fatal("a change does not fit an empty journal segment".to_owned()));
                }
            }
            match self.prepare(epoch, operation) {
                Ok(reply) => self.answers.push((done, reply)),
                Err(fatal) => {
                    done.complete(Err(Failure::DiskFailed));
                    return Err(fatal);
                }
            }
            if self.journal.batch_len() >= BATCH_BYTES {
                self.commit()?;
            }
        }
        self.commit()
    }

    fn refuse_all(&mut self) {
        for (done, _) in self.answers.drain(..) {
            done.complete(Err(Failure::DiskFailed));
        }
        let waiting = std::mem::take(&mut self.shared.queue.lock().waiting);
        for (_, _, done) in waiting {
            done.complete(Err(Failure::DiskFailed));
        }
        self.unapplied.clear();
        self.pending.clear();
    }

    /// Decides one operation; the answer holds once this commit is done.
    fn prepare(&mut self, epoch: Epoch, operation: Operation) -> Result<Reply, Fatal> {
        match operation {
            Operation::Seal { namespace, generation } => Ok(self.seal(epoch, namespace, generation)),
            Operation::Flush { namespace, generation } => {
                let checked = self.shared.namespaces.read().check(namespace, generation, epoch);
                self.sync_wanted |= checked.is_ok();
                Ok(checked.map(|()| ReplyBody::Done))
            }
            Operation::Watermark { namespace, generation, seq } => {
                let mut namespaces = self.shared.namespaces.write();
                if let Err(failure) = namespaces.check(namespace, generation, epoch) {
                    return Ok(Err(failure));
                }
                let mark = Version { generation, seq };
                if namespaces.watermark(namespace, mark) {
                    self.journal.append(&Record::Watermark(namespace, mark));
                }
                Ok(Ok(ReplyBody::Done))
            }
            Operation::Delete { namespace, generation } => Ok(self.delete(epoch, namespace, generation)),
            Operation::Change { extent, version, offset, change, durability } => {
                if version.seq == 0 {
                    return Ok(Err(Failure::Invalid));
                }
                let checked =
                    self.shared.namespaces.read().check(extent.namespace, version.generation, epoch);
                match checked {
                    Ok(()) => {
                        self.change(Asked { extent, version, offset, change, durability, repair: false })
                    }
                    Err(failure) => Ok(Err(failure)),
                }
            }
            Operation::Put { extent, generation, version, offset, change } => {
                if version.generation > generation || version.generation == Generation(0) {
                    return Ok(Err(Failure::Invalid));
                }
                let durability = Durability::Stable;
                let checked = self.shared.namespaces.read().check(extent.namespace, generation, epoch);
                match checked {
                    Ok(()) => {
                        self.change(Asked { extent, version, offset, change, durability, repair: true })
                    }
                    Err(failure) => Ok(Err(failure)),
                }
            }
        }
    }

    fn seal(&mut self, epoch: Epoch, namespace: Namespace, generation: Generation) -> Reply {
        let mut namespaces = self.shared.namespaces.write();
        if namespaces.is_deleted(namespace) {
            return Err(Failure::Deleted);
        }
        namespaces.check_not_older(namespace, generation, epoch)?;
        if !namespaces.has_room_for(namespace, self.state_max) {
            return Err(Failure::NoSpace);
        }
        if namespaces.seal(namespace, generation, epoch) {
            self.journal.append(&Record::Seal(namespace, generation, epoch));
        }
        self.sync_wanted = true;
        Ok(ReplyBody::Sealed(namespaces.dirty(namespace)))
    }

    fn delete(&mut self, epoch: Epoch, namespace: Namespace, generation: Generation) -> Reply {
        let mut namespaces = self.shared.namespaces.write();
        self.sync_wanted = true;
        if namespaces.is_deleted(namespace) {
            return Ok(ReplyBody::Done);
        }
        namespaces.check_not_older(namespace, generation, epoch)?;
        if !namespaces.has_room_for(namespace, self.state_max) {
            return Err(Failure::NoSpace);
        }
        namespaces.delete(namespace);
        self.journal.append(&Record::Delete(namespace));
        self.deleted.push(namespace);
        Ok(ReplyBody::Done)
    }

    /// Decides which blocks a change concerns, makes room for them, and journals it.
    fn change(&mut self, asked: Asked) -> Result<Reply, Fatal> {
        let len = asked.change.len();
        if !valid_range(asked.offset, len) {
            return Ok(Err(Failure::Invalid));
        }
        // A retry of something that is not durable yet must not be answered before it is.
        self.sync_wanted |= asked.durability == Durability::Stable;
        let first = asked.offset / BLOCK_BYTES;
        let blocks = u32::try_from(len).expect("the range is inside an extent") / BLOCK_BYTES;
        let wanted = Wanted {
            blocks: first..first + blocks,
            version: asked.version,
            data: matches!(asked.change, Change::Data(_)),
            repair: asked.repair,
        };
        let extent = match self.shared.extents.get(asked.extent) {
            Ok(extent) => extent,
            Err(error) => return refusal(error).map(Err),
        };
        let effect = match (self.pending.get(&asked.extent), &extent) {
            (Some(pending), Some(extent)) => pending.effect(Some(&extent.state.read()), &wanted),
            (None, Some(extent)) => PendingExtent::default().effect(Some(&extent.state.read()), &wanted),
            (_, None) => PendingExtent::default().effect(None, &wanted),
        };
        if effect.runs.is_empty() {
            return Ok(Ok(ReplyBody::Done));
        }
        let index = asked.extent.index;
        if !self.shared.namespaces.read().has_room_for_dirty(asked.extent.namespace, index, self.dirty_max) {
            return Ok(Err(Failure::Busy));
        }
        let extent = match self.make_room(asked.extent, extent, &wanted, &effect)? {
            Ok(extent) => extent,
            Err(failure) => return Ok(Err(failure)),
        };
        self.journal_change(&asked, &wanted, effect, &extent);
        Ok(Ok(ReplyBody::Done))
    }

    /// Makes sure that the change cannot run out of room once it is in the journal.
    fn make_room(
        &mut self,
        id: ExtentId,
        extent: Option<Arc<Extent>>,
        wanted: &Wanted,
        effect: &Effect,
    ) -> Result<Result<Arc<Extent>, Failure>, Fatal> {
        let grown = effect.runs.iter().map(|run| i64::from(run.grown)).sum::<i64>();
        let grown_bytes = u64::try_from(grown).unwrap_or(0) * u64::from(BLOCK_BYTES);
        if grown_bytes > 0 {
            let used = self.shared.namespaces.read().used_bytes();
            let free = self.free_bytes()?;
            if used.saturating_add(grown_bytes) > self.shared.capacity_bytes
                || free < self.shared.reserve_bytes.saturating_add(grown_bytes)
            {
                return Ok(Err(Failure::NoSpace));
            }
            self.free_bytes = Some(free - grown_bytes);
        }
        let extent = match extent {
            Some(extent) => extent,
            None => match self.shared.extents.get_or_create(id) {
                Ok(extent) => extent,
                Err(error) => return refusal(error).map(Err),
            },
        };
        let whole_zeros = !wanted.data && effect.runs.iter().any(|run| is_whole(&run.blocks));
        let mut reserved = Ok(());
        if !extent.state.read().has_table() {
            reserved = extent.reserve_head(!whole_zeros);
        }
        if wanted.data {
            for run in effect.runs.iter().filter(|run| run.grown > 0) {
                let blocks = run.blocks.end - run.blocks.start;
                reserved = reserved.and_then(|()| extent.reserve_blocks(run.blocks.start, blocks));
            }
        }
        match reserved {
            Ok(()) => Ok(Ok(extent)),
            Err(Errno::NOSPC | Errno::DQUOT) => Ok(Err(Failure::NoSpace)),
            Err(error) => Err(Fatal(format!("allocating room in an extent file failed: {error}"))),
        }
    }

    fn free_bytes(&mut self) -> Result<u64, Fatal> {
        if let Some(free) = self.free_bytes {
            return Ok(free);
        }
        let space = rustix::fs::fstatvfs(&self.shared.lock)
            .map_err(|error| Fatal(format!("asking for the free space failed: {error}")))?;
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        self.free_bytes = Some(free);
        Ok(free)
    }

    fn journal_change(&mut self, asked: &Asked, wanted: &Wanted, effect: Effect, extent: &Arc<Extent>) {
        let Effect { runs, newest } = effect;
        let pending = self.pending.entry(asked.extent).or_default();
        for run in runs {
            let (floor, reset) = pending.accept(Some(&extent.state.read()), wanted, &run);
            let EffectRun { blocks, grown } = run;
            let content = match &asked.change {
                Change::Data(data) => {
                    let byte = |block: u32| (block - wanted.blocks.start) as usize * BLOCK_BYTES as usize;
                    Content::Data(data.slice(byte(blocks.start)..byte(blocks.end)))
                }
                Change::Zeros { .. } if is_whole(&blocks) => Content::WholeZeros,
                Change::Zeros { .. } => Content::Zeros,
            };
            let change = ChangeRecord {
                extent: asked.extent,
                version: asked.version,
                floor,
                first: blocks.start,
                blocks: blocks.end - blocks.start,
                content,
                reset,
                grown,
            };
            self.journal.append(&Record::Change(change.clone()));
            let ExtentId { namespace, index } = asked.extent;
            self.shared.namespaces.write().changed(namespace, index, asked.version, newest, grown);
            let (extent, durability) = (extent.clone(), asked.durability);
            self.unapplied.push(Unapplied { extent, change, durability, visible: false });
        }
    }

    /// Writes, syncs if anybody waits for that, applies, answers.
    fn commit(&mut self) -> Result<(), Fatal> {
        self.free_bytes = None;
        self.journal.write().map_err(Fatal::new("writing the journal failed"))?;
        if self.sync_wanted || self.journal.unsynced() > VOLATILE_BYTES_MAX {
            self.sync()?;
        } else {
            for unapplied in self.unapplied.iter_mut().filter(|unapplied| !unapplied.visible) {
                assert_eq!(unapplied.durability, Durability::Volatile, "stable changes wait for a sync");
                unapplied.extent.state.write().volatile.push_back(unapplied.change.clone());
                unapplied.visible = true;
            }
        }
        for (done, reply) in self.answers.drain(..) {
            done.complete(reply);
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), Fatal> {
        self.journal.sync().map_err(Fatal::new("syncing the journal failed"))?;
        for Unapplied { extent, change, visible, .. } in self.unapplied.drain(..) {
            extent.apply(&change, visible).map_err(Fatal::new("writing an extent file failed"))?;
        }
        self.pending.clear();
        for namespace in self.deleted.drain(..) {
            self.shared.extents.discard(namespace).map_err(Fatal::new("deleting a namespace failed"))?;
            self.shared.checkpoint.lock().empty_trash = true;
            self.shared.checkpointed.notify_all();
        }
        Ok(())
    }

    /// Lets the next opening of the disk do without the old segment, once it is not needed.
    fn note_checkpoint(&mut self) -> Result<(), Fatal> {
        if self.journal.is_checkpointed() || self.shared.checkpoint.lock().sync_wanted {
            return Ok(());
        }
        self.journal.mark_checkpointed().map_err(Fatal::new("writing the journal failed"))
    }

    /// Goes on in the other segment; the extent files are synced in the background.
    fn rotate(&mut self) -> Result<(), Fatal> {
        self.sync()?;
        {
            let mut checkpoint = self.shared.checkpoint.lock();
            while checkpoint.sync_wanted {
                if self.shared.is_failed() {
                    return Err(Fatal("the checkpoint failed".to_owned()));
                }
                self.shared.checkpointed.wait(&mut checkpoint);
            }
        }
        let namespaces = self.shared.namespaces.read();
        self.journal
            .mark_checkpointed()
            .and_then(|()| self.journal.sync())
            .and_then(|()| self.journal.begin_segment(&namespaces, false))
            .map_err(Fatal::new("beginning a journal segment failed"))?;
        drop(namespaces);
        tracing::debug!(disk = %self.shared.identity.disk, segment = self.journal.segment(), "journal segment begun");
        self.shared.checkpoint.lock().sync_wanted = true;
        self.shared.checkpointed.notify_all();
        Ok(())
    }
}

/// An extent file cannot be opened or made: what the owner is told, if the disk can go on.
fn refusal(error: io::Error) -> Result<Failure, Fatal> {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOSPC | Errno::DQUOT) => Ok(Failure::NoSpace),
        Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM) => Ok(Failure::Busy),
        _ => Err(Fatal(format!("opening an extent file failed: {error}"))),
    }
}

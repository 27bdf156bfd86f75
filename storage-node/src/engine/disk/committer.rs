//! The commit thread of a disk: the one place where anything changes.
//!
//! Takes what waits, has the store decide each operation in order, commits once if anybody waits for stable media, and
//! answers. Changes that may be answered before they are durable are answered at once, and committed a moment
//! later. Before the journal is full it is slowed down a little with each commit, so that the checkpoint that frees
//! it comes first.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lunette_proto::ids::Epoch;
use lunette_proto::node::{Failure, Reply};
use parking_lot::MutexGuard;

use super::{CheckpointSlot, Medium, Queue, Shared};
use crate::engine::{Completion, Operation};
use crate::store::{Checkpoint, Disk, Fatal, Prepared, Store};

/// Bytes of one commit, after which it is made although more waits.
const BATCH_BYTES: usize = 8 << 20;
/// Volatile changes that may wait in memory for a commit.
const VOLATILE_BYTES_MAX: usize = 16 << 20;
/// After which volatile changes are committed although nobody asked.
const VOLATILE_IDLE: Duration = Duration::from_millis(1000);
/// After which a checkpoint is made although there is room, so that a disk that is opened has little to do.
const CHECKPOINT_IDLE: Duration = Duration::from_secs(30);
/// How full the journal is when commits are slowed down, and by how much when it is full.
const SLOW_FROM: f64 = 0.75;
const SLOW_MAX: Duration = Duration::from_millis(20);

/// The commit thread's state.
pub(super) struct Committer {
    shared: Arc<Shared>,
    store: Store<Medium>,
    /// Answers that wait for the commit.
    answers: Vec<(Completion, Reply)>,
    /// Since when there is something to commit.
    uncommitted: Option<Instant>,
    /// Since when there is something that no checkpoint has.
    dirty: Option<Instant>,
    /// The checkpoint thread has a checkpoint.
    checkpointing: bool,
}

/// What there is to do.
struct Taken {
    operations: Operations,
    closed: bool,
}

type Operations = VecDeque<(Epoch, Operation, Completion)>;

impl Committer {
    pub(super) fn new(shared: Arc<Shared>, store: Store<Medium>) -> Self {
        Self { shared, store, answers: Vec::new(), uncommitted: None, dirty: None, checkpointing: false }
    }

    /// Until the engine is closed.
    pub(super) fn run(mut self) {
        loop {
            let Taken { mut operations, closed } = self.take();
            let outcome = if self.shared.is_failed() {
                // Nothing is tried again (invariant 12).
                Err(Fatal("a write or a sync has failed".to_owned()))
            } else {
                self.process(&mut operations, closed)
            };
            if let Err(Fatal(reason)) = outcome {
                // First, so that who is refused can ask why.
                self.shared.fail(&reason);
                self.refuse_all(operations);
            }
            if closed {
                break;
            }
        }
        self.shared.end_checkpoints();
    }

    /// Waits until there is something to do.
    fn take(&self) -> Taken {
        let shared = self.shared.clone();
        let mut queue = shared.queue.lock();
        let failed = shared.is_failed();
        while queue.waiting.is_empty() && !queue.closed {
            // A failed disk only refuses what comes.
            if !failed && matches!(queue.checkpoint, CheckpointSlot::Written(..)) {
                break;
            }
            match self.deadline().filter(|_| !failed) {
                None => shared.queued.wait(&mut queue),
                Some(deadline) => {
                    if shared.queued.wait_until(&mut queue, deadline).timed_out() {
                        break;
                    }
                }
            }
        }
        queue.bytes = 0;
        Taken { operations: std::mem::take(&mut queue.waiting), closed: queue.closed }
    }

    /// When something is due without anybody asking.
    fn deadline(&self) -> Option<Instant> {
        let commit = self.uncommitted.map(|since| since + VOLATILE_IDLE);
        let checkpoint = self.dirty.filter(|_| !self.checkpointing).map(|since| since + CHECKPOINT_IDLE);
        commit.into_iter().chain(checkpoint).min()
    }

    fn process(&mut self, operations: &mut Operations, closed: bool) -> Result<(), Fatal> {
        self.finish_written()?;
        while let Some((epoch, operation, done)) = operations.pop_front() {
            let (reply, stable) = match self.prepare(epoch, &operation) {
                Ok(decided) => decided,
                Err(fatal) => {
                    self.answers.push((done, Err(Failure::DiskFailed)));
                    return Err(fatal);
                }
            };
            if stable {
                self.answers.push((done, reply));
            } else {
                done.complete(reply);
            }
            if self.store.has_batch() {
                self.uncommitted.get_or_insert_with(Instant::now);
            }
            let bytes_max = if self.answers.is_empty() { VOLATILE_BYTES_MAX } else { BATCH_BYTES };
            if self.store.batch_bytes() >= bytes_max {
                self.commit()?;
            }
        }
        let overdue = self.uncommitted.is_some_and(|since| since.elapsed() >= VOLATILE_IDLE);
        if !self.answers.is_empty() || overdue || closed {
            self.commit()?;
        }
        if closed {
            return self.checkpoint_at_last();
        }
        let overdue = self.dirty.is_some_and(|since| since.elapsed() >= CHECKPOINT_IDLE);
        if !self.checkpointing && (overdue || self.store.wants_checkpoint()) {
            self.begin_checkpoint()?;
        }
        Ok(())
    }

    /// Has the store decide; frees the journal first if that needs it.
    fn prepare(&mut self, epoch: Epoch, operation: &Operation) -> Result<(Reply, bool), Fatal> {
        // A checkpoint that was begun long ago may not be enough; one that is begun now is.
        for _ in 0..3 {
            if let Prepared::Answer { reply, stable } = self.store.prepare(epoch, operation)? {
                return Ok((reply, stable));
            }
            self.commit()?;
            if !self.checkpointing {
                self.begin_checkpoint()?;
            }
            self.wait_for_checkpoint()?;
        }
        Err(Fatal("a change does not fit an empty journal".to_owned()))
    }

    /// Makes all that was prepared durable, and answers.
    fn commit(&mut self) -> Result<(), Fatal> {
        self.store.commit()?;
        if self.uncommitted.take().is_some() {
            self.dirty.get_or_insert_with(Instant::now);
        }
        Completion::complete_all(&mut self.answers);
        if self.checkpointing {
            let over = (self.store.wal_fill() - SLOW_FROM) / (1.0 - SLOW_FROM);
            if over > 0.0 {
                std::thread::sleep(SLOW_MAX.mul_f64(over.min(1.0)));
            }
        }
        Ok(())
    }

    fn begin_checkpoint(&mut self) -> Result<(), Fatal> {
        // It commits: whoever waits for that is answered.
        self.commit()?;
        let checkpoint = self.store.begin_checkpoint()?;
        self.dirty = None;
        self.checkpointing = true;
        self.shared.queue.lock().checkpoint = CheckpointSlot::Wanted(checkpoint);
        self.shared.checkpoint_wanted.notify_one();
        Ok(())
    }

    /// Lets a checkpoint count that was written meanwhile.
    fn finish_written(&mut self) -> Result<(), Fatal> {
        let shared = self.shared.clone();
        let written = take_written(&mut shared.queue.lock());
        match written {
            Some(written) => self.finish(written),
            None => Ok(()),
        }
    }

    fn wait_for_checkpoint(&mut self) -> Result<(), Fatal> {
        if !self.checkpointing {
            return Ok(());
        }
        let shared = self.shared.clone();
        let mut queue = shared.queue.lock();
        let written = loop {
            match take_written(&mut queue) {
                Some(written) => break written,
                None => shared.queued.wait(&mut queue),
            }
        };
        drop(queue);
        self.finish(written)
    }

    fn finish(&mut self, (checkpoint, outcome): Written) -> Result<(), Fatal> {
        self.checkpointing = false;
        outcome.map_err(|error| Fatal(format!("writing a checkpoint failed: {error}")))?;
        self.store.finish_checkpoint(checkpoint)?;
        tracing::debug!(disk = %self.shared.identity.disk, "checkpoint finished");
        Ok(())
    }

    /// Leaves nothing to do for who opens the disk next.
    fn checkpoint_at_last(&mut self) -> Result<(), Fatal> {
        self.wait_for_checkpoint()?;
        if self.store.is_dirty() {
            self.begin_checkpoint()?;
            self.wait_for_checkpoint()?;
        }
        // The second superblock.
        self.shared.medium.sync().map_err(|error| Fatal(format!("the last sync failed: {error}")))
    }

    fn refuse_all(&mut self, operations: Operations) {
        for (done, _) in self.answers.drain(..) {
            done.complete(Err(Failure::DiskFailed));
        }
        let waiting = std::mem::take(&mut self.shared.queue.lock().waiting);
        for (_, _, done) in operations.into_iter().chain(waiting) {
            done.complete(Err(Failure::DiskFailed));
        }
    }
}

type Written = (Checkpoint, std::io::Result<()>);

fn take_written(queue: &mut MutexGuard<'_, Queue>) -> Option<Written> {
    match std::mem::take(&mut queue.checkpoint) {
        CheckpointSlot::Written(checkpoint, outcome) => Some((checkpoint, outcome)),
        other => {
            queue.checkpoint = other;
            None
        }
    }
}

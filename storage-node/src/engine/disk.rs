//! The engine of a disk: the threads around its [`Store`], and what they share.
//!
//! ```text
//!     commit      takes what waits, prepares each, commits once for all, answers; alone has the store
//!     checkpoint  writes the checkpoints that the commit thread begins, while commits go on
//!     read, read  wait for the medium on behalf of those who may not
//!     scrub       looks at everything, slowly
//! ```
//!
//! A thread that fails makes the disk fail, for ever (invariant 12).

mod committer;
mod damage;
mod granting;
mod reads;
mod scrub;

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use lunette_proto::ids::{ClusterId, Epoch, ExtentId, Generation, Namespace};
use lunette_proto::node::{DamagedRun, Failure};
use parking_lot::{Condvar, Mutex};

use super::{
    Completion, DiskConfig, DiskError, Engine, ExtentsQuery, GrantQuery, Operation, ReadQuery, Space,
    valid_range,
};
use crate::store::superblock::FORMAT_VERSION;
use crate::store::{Checkpoint, FileDisk, Identity, OpenError, Store, View};
use committer::Committer;
use granting::Granting;
use reads::{ReadWhat, Reads, WaitingRead};
use scrub::Scrub;

pub use damage::DamageCounts;
pub use scrub::ScrubStatus;

/// Operations that may wait for the commit thread.
const QUEUE_OPERATIONS_MAX: usize = 4096;
/// Data that may wait for the commit thread.
const QUEUE_BYTES_MAX: usize = 64 << 20;
/// Threads that wait for the medium.
const READ_THREADS: usize = 2;

/// What the store writes to. The engine looks at it too, to know that it has failed.
type Medium = Arc<FileDisk>;

/// A disk with its threads.
#[derive(Debug)]
pub struct DiskEngine {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What the threads of an engine share.
struct Shared {
    path: PathBuf,
    identity: Identity,
    medium: Medium,
    view: Arc<View<Medium>>,
    queue: Mutex<Queue>,
    /// For the commit thread: something waits, or a checkpoint is written.
    queued: Condvar,
    /// For the checkpoint thread: there is one to write, or none will come.
    checkpoint_wanted: Condvar,
    scrub: Arc<Scrub>,
    granting: Arc<Granting>,
    reads: Mutex<Reads>,
    read_queued: Condvar,
    failed: AtomicBool,
    reason: Mutex<Option<String>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("path", &self.path)
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

/// What waits for the commit thread.
#[derive(Default)]
struct Queue {
    waiting: VecDeque<(Epoch, Operation, Completion)>,
    bytes: usize,
    closed: bool,
    checkpoint: CheckpointSlot,
}

/// Where a checkpoint is between the commit thread, which begins and finishes it, and the checkpoint thread.
#[derive(Default)]
enum CheckpointSlot {
    /// There is none.
    #[default]
    Idle,
    /// It is to be written.
    Wanted(Checkpoint),
    /// The checkpoint thread has it.
    Writing,
    /// It was written, or that failed.
    Written(Checkpoint, io::Result<()>),
    /// No more come.
    Ended,
}

impl DiskEngine {
    /// Opens the disk of `config`, which must belong to `cluster`, and brings it to what its journal says. Blocks.
    ///
    /// # Errors
    /// It is not such a disk, is in use, or is damaged.
    pub fn open(cluster: ClusterId, config: &DiskConfig) -> Result<Self, DiskError> {
        let medium = Arc::new(FileDisk::open(&config.path)?);
        // It is ours alone from here on.
        let opened = Instant::now();
        // Before anything is written.
        let identity = medium.identity()?.ok_or_else(|| DiskError::NotFormatted(config.path.clone()))?;
        let path = || config.path.clone();
        if identity.cluster != cluster {
            return Err(DiskError::WrongCluster { path: path(), found: identity.cluster, expected: cluster });
        }
        if let Some(expected) = config.disk.filter(|expected| *expected != identity.disk) {
            return Err(DiskError::WrongDisk { path: path(), found: identity.disk, expected });
        }
        let (mut store, recovered) =
            Store::open(medium.clone()).map_err(|error| refusal(config, &medium, error))?;
        if let Some(bytes) = config.capacity_bytes {
            store.set_capacity(bytes);
        }
        tracing::info!(
            disk = %identity.disk,
            path = %config.path.display(),
            batches = recovered.batches,
            records = recovered.records,
            torn_tail = recovered.torn_tail,
            lost_blocks = recovered.lost_blocks,
            "journal replayed"
        );
        let shared = Arc::new(Shared {
            path: path(),
            identity,
            medium,
            view: store.view().clone(),
            queue: Mutex::default(),
            queued: Condvar::new(),
            checkpoint_wanted: Condvar::new(),
            scrub: Arc::default(),
            granting: Arc::new(Granting::new(opened, store.view().sealed())),
            reads: Mutex::default(),
            read_queued: Condvar::new(),
            failed: AtomicBool::new(false),
            reason: Mutex::new(None),
        });
        let engine = Self { shared: shared.clone(), threads: Mutex::default() };
        let committer = Committer::new(shared.clone(), store);
        engine.spawn("commit", move || committer.run())?;
        engine.spawn("checkpoint", {
            let shared = shared.clone();
            move || shared.run_checkpoints()
        })?;
        for _ in 0..READ_THREADS {
            let shared = shared.clone();
            engine.spawn("read", move || shared.run_reads())?;
        }
        engine.spawn("scrub", move || shared.run_scrub())?;
        Ok(engine)
    }

    fn spawn(&self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), DiskError> {
        let thread = std::thread::Builder::new()
            .name(format!("{}-{name}", self.shared.identity.disk))
            .spawn(run)
            .map_err(DiskError::io(&self.shared.path, "start a thread for it"))?;
        self.threads.lock().push(thread);
        Ok(())
    }

    /// Which disk it is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.shared.identity
    }

    /// How far its scrubber is, and what it knows.
    #[must_use]
    pub fn scrub_status(&self) -> ScrubStatus {
        self.shared.scrub.status()
    }

    /// Begins to scrub all of it now, at so many bytes per second or as fast as possible.
    pub fn scrub(&self, rate: Option<u64>) {
        self.shared.scrub.ask(rate);
    }

    /// What is known to be damaged of a namespace: as many runs as one answer bears.
    #[must_use]
    pub fn damaged(&self, namespace: Namespace) -> Vec<DamagedRun> {
        self.shared.scrub.damaged(namespace)
    }

    /// Its directory, file or device.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.shared.path
    }
}

/// What to say of a store that cannot be opened.
fn refusal(config: &DiskConfig, medium: &FileDisk, error: OpenError) -> DiskError {
    let path = medium.path().to_owned();
    match error {
        OpenError::Io { action, source } => DiskError::Io { path, action, source },
        OpenError::NotFormatted => DiskError::NotFormatted(config.path.clone()),
        OpenError::Version(version) => DiskError::Version { path, version, supported: FORMAT_VERSION },
        OpenError::Damaged { offset, what } => DiskError::Damaged { path, offset, what },
    }
}

impl Engine for DiskEngine {
    fn submit(&self, epoch: Epoch, operation: Operation, done: Completion) {
        let done = self.shared.scrub.watch(&operation, done);
        let done = self.shared.granting.watch(&operation, done);
        let len = operation.data_len();
        {
            let mut queue = self.shared.queue.lock();
            let refusal = if queue.closed {
                Some(Failure::Disconnected)
            } else if self.shared.is_failed() {
                Some(Failure::DiskFailed)
            } else if queue.waiting.len() >= QUEUE_OPERATIONS_MAX
                || (len > 0 && queue.bytes + len > QUEUE_BYTES_MAX)
            {
                Some(Failure::Busy)
            } else {
                None
            };
            if let Some(failure) = refusal {
                drop(queue);
                done.complete(Err(failure));
                return;
            }
            queue.bytes += len;
            queue.waiting.push_back((epoch, operation, done));
        }
        self.shared.queued.notify_one();
    }

    fn read(&self, epoch: Epoch, query: ReadQuery, done: Completion) {
        let ReadQuery { extent, generation, offset, len, at } = query;
        if !valid_range(offset, u64::from(len)) {
            done.complete(Err(Failure::Invalid));
            return;
        }
        self.shared.read_or_queue(WaitingRead {
            epoch,
            extent,
            generation,
            what: ReadWhat::Data { offset, len, at },
            done,
        });
    }

    fn versions(&self, epoch: Epoch, extent: ExtentId, generation: Generation, done: Completion) {
        self.shared.read_or_queue(WaitingRead { epoch, extent, generation, what: ReadWhat::Versions, done });
    }

    fn prepared(&self, epoch: Epoch, extent: ExtentId, generation: Generation, done: Completion) {
        self.shared.read_or_queue(WaitingRead { epoch, extent, generation, what: ReadWhat::Prepared, done });
    }

    fn extents(&self, epoch: Epoch, query: ExtentsQuery, done: Completion) {
        done.complete(self.shared.extents(epoch, &query));
    }

    fn grant(&self, epoch: Epoch, query: GrantQuery, done: Completion) {
        done.complete(self.shared.grant(epoch, query));
    }

    fn space(&self) -> Space {
        self.shared.view.space()
    }

    fn failure(&self) -> Option<String> {
        let reason = self.shared.reason.lock().clone();
        reason.or_else(|| self.shared.is_failed().then(|| "a write or a sync has failed".to_owned()))
    }

    fn close(&self) {
        self.shared.queue.lock().closed = true;
        self.shared.queued.notify_all();
        self.shared.reads.lock().closed = true;
        self.shared.read_queued.notify_all();
        self.shared.scrub.close();
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            if thread.join().is_err() {
                self.shared.fail("a thread of the engine panicked");
            }
            // The first is the commit thread: nobody asks for checkpoints after it.
            self.shared.end_checkpoints();
        }
    }
}

impl Drop for DiskEngine {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn is_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire) || self.medium.is_failed()
    }

    /// The disk serves nothing any more, and never again until it is opened anew (invariant 12).
    fn fail(&self, reason: &str) {
        if !self.failed.swap(true, Ordering::AcqRel) {
            tracing::error!(disk = %self.identity.disk, path = %self.path.display(), reason, "the disk has failed");
            *self.reason.lock() = Some(reason.to_owned());
        }
    }

    /// The thread that writes checkpoints while commits go on.
    fn run_checkpoints(&self) {
        let mut queue = self.queue.lock();
        loop {
            match std::mem::take(&mut queue.checkpoint) {
                CheckpointSlot::Wanted(checkpoint) => {
                    queue.checkpoint = CheckpointSlot::Writing;
                    drop(queue);
                    let outcome = checkpoint.write(&self.medium);
                    queue = self.queue.lock();
                    // The commit thread waits for it, however the disk fares.
                    queue.checkpoint = CheckpointSlot::Written(checkpoint, outcome);
                    self.queued.notify_one();
                }
                CheckpointSlot::Ended => {
                    queue.checkpoint = CheckpointSlot::Ended;
                    return;
                }
                other => {
                    queue.checkpoint = other;
                    self.checkpoint_wanted.wait(&mut queue);
                }
            }
        }
    }

    fn end_checkpoints(&self) {
        self.queue.lock().checkpoint = CheckpointSlot::Ended;
        self.checkpoint_wanted.notify_all();
    }
}

#[cfg(test)]
mod tests;

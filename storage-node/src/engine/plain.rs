//! The engine that keeps a disk in a directory: its threads and what they share.

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use lunette_proto::ids::{ClusterId, Epoch, ExtentId, Generation};
use lunette_proto::limits::BLOCK_BYTES;
use lunette_proto::node::{Failure, Reply, ReplyBody};
use parking_lot::{Condvar, Mutex, RwLock};
use rustix::io::Errno;

use super::commit::Committer;
use super::extents::Extents;
use super::identity::Identity;
use super::namespaces::Namespaces;
use super::reader::{self, Missed};
use super::{Completion, DiskConfig, DiskError, Engine, Operation, ReadQuery, Space, recovery, valid_range};

/// Operations that may wait for the commit thread.
const QUEUE_OPERATIONS_MAX: usize = 4096;
/// Data that may wait for the commit thread.
const QUEUE_BYTES_MAX: usize = 64 << 20;
/// Reads that may wait for the medium.
const READS_MAX: usize = 1024;
/// Threads that wait for the medium.
const READ_THREADS: usize = 2;
/// Room of the file system that is kept for discards and metadata.
const RESERVE_BYTES: u64 = 32 << 20;
/// Percent of the file system that a disk offers if it is not told.
const CAPACITY_PERCENT: u64 = 95;

/// A disk in a directory.
#[derive(Debug)]
pub struct PlainEngine {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Makes every sync of the journal fail from now on.
    #[cfg(test)]
    fail_syncs: Arc<AtomicBool>,
}

/// What the threads of an engine share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) path: PathBuf,
    pub(super) identity: Identity,
    pub(super) capacity_bytes: u64,
    pub(super) reserve_bytes: u64,
    pub(super) namespaces: RwLock<Namespaces>,
    pub(super) extents: Extents,
    pub(super) queue: Mutex<Queue>,
    pub(super) queued: Condvar,
    pub(super) checkpoint: Mutex<Checkpoint>,
    pub(super) checkpointed: Condvar,
    /// Locks the directory, and tells of failed writes.
    pub(super) lock: File,
    reads: Mutex<Reads>,
    read_queued: Condvar,
    failed: AtomicBool,
    reason: Mutex<Option<String>>,
}

/// What waits for the commit thread.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) waiting: VecDeque<(Epoch, Operation, Completion)>,
    pub(super) bytes: usize,
    pub(super) closed: bool,
}

/// What the checkpoint thread has to do.
#[derive(Debug, Default)]
pub(super) struct Checkpoint {
    /// Sync everything; the old segment is not needed then.
    pub(super) sync_wanted: bool,
    /// Remove what was discarded.
    pub(super) empty_trash: bool,
    pub(super) closed: bool,
}

#[derive(Debug, Default)]
struct Reads {
    waiting: VecDeque<WaitingRead>,
    closed: bool,
}

#[derive(Debug)]
struct WaitingRead {
    epoch: Epoch,
    extent: ExtentId,
    generation: Generation,
    what: ReadWhat,
    done: Completion,
}

#[derive(Clone, Copy, Debug)]
enum ReadWhat {
    Data { offset: u32, len: u32 },
    Versions,
}

impl ReadWhat {
    fn offset(self) -> u32 {
        match self {
            Self::Data { offset, .. } => offset,
            Self::Versions => 0,
        }
    }
}

impl PlainEngine {
    /// Opens the disk of `config`, which must belong to `cluster`, with at most `open_max` extent
    /// files open.
    ///
    /// # Errors
    /// It is not such a disk, is in use, or is damaged. Nothing was changed then.
    pub fn open(cluster: ClusterId, config: &DiskConfig, open_max: usize) -> Result<Self, DiskError> {
        let opened = recovery::open(cluster, config, open_max)?;
        let capacity_bytes = match config.capacity_bytes {
            Some(bytes) => bytes,
            None => {
                let space = rustix::fs::fstatvfs(&opened.lock)
                    .map_err(|error| DiskError::io(&config.path, "ask for its size")(error.into()))?;
                space.f_blocks.saturating_mul(space.f_frsize) / 100 * CAPACITY_PERCENT
            }
        };
        let shared = Arc::new(Shared {
            path: config.path.clone(),
            identity: opened.identity,
            capacity_bytes,
            reserve_bytes: RESERVE_BYTES,
            namespaces: RwLock::new(opened.namespaces),
            extents: opened.extents,
            queue: Mutex::default(),
            queued: Condvar::new(),
            checkpoint: Mutex::default(),
            checkpointed: Condvar::new(),
            lock: opened.lock,
            reads: Mutex::default(),
            read_queued: Condvar::new(),
            failed: AtomicBool::new(false),
            reason: Mutex::new(None),
        });
        let engine = Self {
            shared: shared.clone(),
            threads: Mutex::default(),
            #[cfg(test)]
            fail_syncs: opened.journal.fail_syncs.clone(),
        };
        let committer = Committer::new(shared.clone(), opened.journal);
        engine.spawn("commit", move || committer.run())?;
        engine.spawn("checkpoint", {
            let shared = shared.clone();
            move || shared.run_checkpoints()
        })?;
        for _ in 0..READ_THREADS {
            let shared = shared.clone();
            engine.spawn("read", move || shared.run_reads())?;
        }
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

    /// Its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.shared.path
    }
}

impl Engine for PlainEngine {
    fn submit(&self, epoch: Epoch, operation: Operation, done: Completion) {
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
        let ReadQuery { extent, generation, offset, len } = query;
        if !valid_range(offset, u64::from(len)) {
            done.complete(Err(Failure::Invalid));
            return;
        }
        if let Err(failure) = self.shared.check(extent, generation, epoch) {
            done.complete(Err(failure));
            return;
        }
        if let Some(cached) = self.shared.extents.cached(extent) {
            let first = offset / BLOCK_BYTES;
            match reader::read_cached(&cached, first..first + len / BLOCK_BYTES) {
                Ok(data) => {
                    // A takeover may have sealed while the data was on its way.
                    let checked = self.shared.check(extent, generation, epoch);
                    done.complete(checked.map(|()| ReplyBody::Data(data)));
                    return;
                }
                Err(Missed::Failed(failure)) => {
                    done.complete(Err(failure));
                    return;
                }
                Err(Missed::Wait) => {}
            }
        }
        let what = ReadWhat::Data { offset, len };
        self.shared.queue_read(WaitingRead { epoch, extent, generation, what, done });
    }

    fn versions(&self, epoch: Epoch, extent: ExtentId, generation: Generation, done: Completion) {
        match self.shared.check(extent, generation, epoch) {
            Ok(()) => {
                let what = ReadWhat::Versions;
                self.shared.queue_read(WaitingRead { epoch, extent, generation, what, done });
            }
            Err(failure) => done.complete(Err(failure)),
        }
    }

    fn space(&self) -> Space {
        Space {
            capacity_bytes: self.shared.capacity_bytes,
            used_bytes: self.shared.namespaces.read().used_bytes(),
        }
    }

    fn failure(&self) -> Option<String> {
        self.shared.reason.lock().clone()
    }

    fn close(&self) {
        self.shared.queue.lock().closed = true;
        self.shared.queued.notify_all();
        self.shared.reads.lock().closed = true;
        self.shared.read_queued.notify_all();
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            if thread.join().is_err() {
                self.shared.fail("a thread of the engine panicked");
            }
            // The first is the commit thread: nobody asks for checkpoints after it.
            self.shared.checkpoint.lock().closed = true;
            self.shared.checkpointed.notify_all();
        }
    }
}

impl Drop for PlainEngine {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    pub(super) fn is_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// The disk serves nothing any more, and never again until it is opened anew (invariant 12).
    pub(super) fn fail(&self, reason: &str) {
        if !self.failed.swap(true, Ordering::AcqRel) {
            tracing::error!(disk = %self.identity.disk, path = %self.path.display(), reason, "the disk has failed");
            *self.reason.lock() = Some(reason.to_owned());
        }
        self.checkpointed.notify_all();
    }

    fn check(&self, extent: ExtentId, generation: Generation, epoch: Epoch) -> Result<(), Failure> {
        if self.is_failed() {
            return Err(Failure::DiskFailed);
        }
        self.namespaces.read().check(extent.namespace, generation, epoch)
    }

    fn queue_read(&self, read: WaitingRead) {
        let mut reads = self.reads.lock();
        let refusal = if reads.closed {
            Some(Failure::Disconnected)
        } else if reads.waiting.len() >= READS_MAX {
            Some(Failure::Busy)
        } else {
            None
        };
        match refusal {
            Some(failure) => {
                drop(reads);
                read.done.complete(Err(failure));
            }
            None => {
                reads.waiting.push_back(read);
                drop(reads);
                self.read_queued.notify_one();
            }
        }
    }

    /// A thread that waits for the medium on behalf of those who may not.
    fn run_reads(&self) {
        loop {
            let mut reads = self.reads.lock();
            let read = loop {
                if let Some(read) = reads.waiting.pop_front() {
                    break read;
                }
                if reads.closed {
                    return;
                }
                self.read_queued.wait(&mut reads);
            };
            drop(reads);
            let reply = self.answer_read(&read);
            read.done.complete(reply);
        }
    }

    fn answer_read(&self, read: &WaitingRead) -> Reply {
        let extent = self.extents.get(read.extent).map_err(|error| {
            tracing::warn!(extent = %read.extent, %error, "cannot open an extent file");
            match error.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM) => Failure::Busy,
                // Another member has to serve it.
                _ => Failure::Corrupt { offset: read.what.offset() },
            }
        })?;
        let reply = match (read.what, extent) {
            (ReadWhat::Data { offset, len }, Some(extent)) => {
                let first = offset / BLOCK_BYTES;
                ReplyBody::Data(reader::read(&extent, first..first + len / BLOCK_BYTES)?)
            }
            // `len` is at most an extent: `read` has checked it.
            (ReadWhat::Data { len, .. }, None) => ReplyBody::Data(reader::zeros(len as usize)),
            (ReadWhat::Versions, Some(extent)) => ReplyBody::Versions(reader::versions(&extent)),
            (ReadWhat::Versions, None) => ReplyBody::Versions(Vec::new()),
        };
        // A takeover may have sealed, or a delete emptied it, while the data was on its way.
        self.check(read.extent, read.generation, read.epoch)?;
        Ok(reply)
    }

    /// The thread that syncs extent files while commits go on.
    fn run_checkpoints(&self) {
        let mut todo = self.checkpoint.lock();
        loop {
            if todo.sync_wanted && !self.is_failed() {
                drop(todo);
                let synced = Extents::sync(&self.lock);
                todo = self.checkpoint.lock();
                match synced {
                    Ok(()) => todo.sync_wanted = false,
                    Err(error) => self.fail(&format!("syncing the extent files failed: {error}")),
                }
                self.checkpointed.notify_all();
            } else if todo.empty_trash {
                todo.empty_trash = false;
                drop(todo);
                if let Err(error) = self.extents.empty_trash() {
                    tracing::warn!(path = %self.path.display(), %error, "cannot remove deleted extents");
                }
                todo = self.checkpoint.lock();
            } else if todo.closed {
                return;
            } else {
                self.checkpointed.wait(&mut todo);
            }
        }
    }
}

#[cfg(test)]
mod tests;

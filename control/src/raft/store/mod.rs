//! The member's own store: vote, log, state and snapshot in one redb file.
//!
//! ```text
//! raft core --append, vote, purge--> +-------+           +----------------------+
//! log readers --read---------------> | queue | --------> | thread "lunette-raft" | --> control.redb
//! state machine --apply, snapshot--> +-------+           +----------------------+
//! ```
//!
//! One thread runs every job in the order in which it was asked for: writes are serialized as Raft
//! demands, an append is readable once it is in the queue, and no commit ever blocks a tokio worker.
//! Appends that wait together are committed together. Every commit is a two-phase commit of redb: after
//! a power failure the file is at one commit or the next, whatever the disk wrote in which order.
//! A failed commit is final: redb refuses everything after it, and Raft stops.
//!
//! # Tables (format 7)
//!
//! | table      | key           | value                                                              |
//! |------------|---------------|--------------------------------------------------------------------|
//! | `meta`     | `format`      | u32, little-endian, bare: readable by every version                |
//! |            | `identity`    | cluster and member                                                 |
//! |            | `key-check`   | a sealed constant: tells the cluster's key from another            |
//! |            | `vote`        | Raft's vote                                                        |
//! |            | `purged`      | the last log id that was purged                                    |
//! |            | `applied`     | the last log id that was applied, and the last membership          |
//! |            | `head`        | epoch, cluster, next ids                                           |
//! | `log`      | index         | an entry                                                           |
//! | `state`    | kind, id      | a node, disk, gateway, pool, volume, target, added disk or logical |
//! |            |               | unit, which copies of a pool on a disk do not count, what          |
//! |            |               | discovery sessions must prove, or what those that join were given  |
//! | `snapshot` | `meta`        | of the current snapshot                                            |
//! |            | `data`        | the same, as it is sent to others                                  |
//!
//! Each value but the format is a record with a checksum, see `record`.
//!
//! Formats 1 and 2 had no logical units, format 3 did not know which copies count, format 4
//! knew no copies on their way to other disks, format 5 not how machines join, format 6 not
//! who owns a volume by what was seen of it. No version that writes them was ever
//! released, and they are refused by name.

mod log;
mod machine;
mod open;
mod record;
mod rows;

#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use lunette_proto::ids::ClusterId;
use parking_lot::Mutex;
use redb::{Database, TableDefinition};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

pub(crate) use log::LogStore;
pub(crate) use machine::Machine;
pub use open::OpenError;
pub(crate) use open::{Opened, Wanted, open};
pub(crate) use record::{decode, encode};

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const STATE: TableDefinition<'_, (u8, u64), &[u8]> = TableDefinition::new("state");
const SNAPSHOT: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("snapshot");

/// Jobs that may wait for the thread; a full queue holds the caller back.
const QUEUE_MAX: usize = 256;
/// Entries that are committed together.
const BATCH_MAX: usize = 1024;

/// Whose store this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Identity {
    pub(crate) cluster: ClusterId,
    pub(crate) member: u64,
}

/// This store is wrong: the member stops.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The database failed.
    #[error("the control plane's store failed: {0}")]
    Database(#[from] Box<redb::Error>),
    /// A record is not what was written.
    #[error("the control plane's store is damaged: {what}")]
    Damaged {
        /// Which record.
        what: &'static str,
    },
    /// A record cannot be written or read as what it should be.
    #[error("a record of the control plane's store: {0}")]
    Record(#[from] postcard::Error),
    /// The store was closed.
    #[error("the control plane's store is closed")]
    Closed,
}

macro_rules! from_redb {
    ($($error:ident),*) => {$(
        impl From<redb::$error> for StoreError {
            fn from(error: redb::$error) -> Self {
                Self::Database(Box::new(error.into()))
            }
        }
    )*};
}

from_redb!(DatabaseError, TransactionError, TableError, StorageError, CommitError);

type Flushed = Box<dyn FnOnce(Result<(), io::Error>) + Send>;

enum Job {
    /// Entries, encoded, and whom to tell once they are durable.
    Append(Vec<(u64, Vec<u8>)>, Flushed),
    /// Anything else.
    Run(Box<dyn FnOnce(&Database) + Send>),
    /// The last job.
    Close(oneshot::Sender<()>),
}

/// A handle on the thread. The file closes when the store is closed or the last handle is gone.
#[derive(Clone)]
pub(crate) struct Store {
    jobs: mpsc::Sender<Job>,
    thread: Arc<Mutex<Option<thread::JoinHandle<()>>>>,
}

impl Store {
    /// Hands a database to a thread of its own.
    pub(crate) fn start(database: Database) -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel(QUEUE_MAX);
        let thread =
            thread::Builder::new().name("lunette-raft".into()).spawn(move || work(database, queue))?;
        Ok(Self { jobs, thread: Arc::new(Mutex::new(Some(thread))) })
    }

    /// Runs a job behind all that were asked for before.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Database) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let job = move |database: &Database| {
            // Whoever asked may have gone; the job was to be done all the same.
            let _ = reply.send(job(database));
        };
        self.jobs.send(Job::Run(Box::new(job))).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Queues entries; `flushed` is called when they are durable, or cannot be.
    pub(crate) async fn append(
        &self,
        entries: Vec<(u64, Vec<u8>)>,
        flushed: Flushed,
    ) -> Result<(), StoreError> {
        self.jobs.send(Job::Append(entries, flushed)).await.map_err(|_| StoreError::Closed)
    }

    /// Finishes what is queued and closes the file: when this returns, another process may open it.
    pub(crate) async fn close(&self) {
        let (reply, closed) = oneshot::channel();
        if self.jobs.send(Job::Close(reply)).await.is_ok() {
            let _ = closed.await;
        }
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            // It has answered, so it is about to end.
            let _ = thread.join();
        }
    }
}

fn work(database: Database, mut queue: mpsc::Receiver<Job>) {
    let mut next = queue.blocking_recv();
    while let Some(job) = next.take() {
        match job {
            Job::Append(mut entries, flushed) => {
                let mut waiting = vec![flushed];
                while entries.len() < BATCH_MAX {
                    match queue.try_recv() {
                        Ok(Job::Append(more, flushed)) => {
                            entries.extend(more);
                            waiting.push(flushed);
                        }
                        Ok(other) => {
                            next = Some(other);
                            break;
                        }
                        Err(_) => break,
                    }
                }
                let result = log::commit_entries(&database, &entries);
                for flushed in waiting {
                    flushed(result.as_ref().copied().map_err(|error| io::Error::other(error.to_string())));
                }
            }
            Job::Run(job) => job(&database),
            Job::Close(reply) => {
                queue.close();
                drop(database);
                let _ = reply.send(());
                return;
            }
        }
        if next.is_none() {
            next = queue.blocking_recv();
        }
    }
}

/// A durable transaction: both phases, and a sync, before it returns.
pub(crate) fn write<T>(
    database: &Database,
    change: impl FnOnce(&redb::WriteTransaction) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let mut transaction = database.begin_write()?;
    transaction.set_two_phase_commit(true);
    let value = change(&transaction)?;
    transaction.commit()?;
    Ok(value)
}

/// A record of `meta`, if it is there.
pub(crate) fn read_meta<T: serde::de::DeserializeOwned>(
    database: &impl redb::ReadableDatabase,
    key: &'static str,
) -> Result<Option<T>, StoreError> {
    let table = database.begin_read()?.open_table(META)?;
    let record = table.get(key)?;
    record.map(|record| decode(record.value(), key)).transpose()
}

/// The file of a member's data folder.
pub(crate) fn path_in(folder: &std::path::Path) -> PathBuf {
    folder.join("control.redb")
}

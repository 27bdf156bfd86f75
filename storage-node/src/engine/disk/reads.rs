//! Reads: on the caller's thread if memory or the page cache has everything, else on a thread that waits.

use std::collections::VecDeque;

use lunette_proto::ids::{Epoch, ExtentId, Generation, Snapshot};
use lunette_proto::limits::BLOCK_BYTES;
use lunette_proto::node::{Failure, Reply, ReplyBody};

use super::Shared;
use crate::engine::{Completion, ExtentsQuery};
use crate::store::Missed;

/// Reads that may wait for the medium.
const READS_MAX: usize = 1024;

/// What waits for the read threads.
#[derive(Debug, Default)]
pub(super) struct Reads {
    pub(super) waiting: VecDeque<WaitingRead>,
    pub(super) closed: bool,
}

/// A read and where its answer goes.
#[derive(Debug)]
pub(super) struct WaitingRead {
    pub(super) epoch: Epoch,
    pub(super) extent: ExtentId,
    pub(super) generation: Generation,
    pub(super) what: ReadWhat,
    pub(super) done: Completion,
}

/// What is asked for; a range that is valid.
#[derive(Clone, Copy, Debug)]
pub(super) enum ReadWhat {
    Data { offset: u32, len: u32, at: Option<Snapshot> },
    Versions,
    Prepared,
}

impl Shared {
    /// Answers now, or hands over to a thread that may wait.
    pub(super) fn read_or_queue(&self, read: WaitingRead) {
        match self.look(&read, false) {
            Ok(reply) => read.done.complete(reply),
            Err(Wait) => self.queue_read(read),
        }
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
    pub(super) fn run_reads(&self) {
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
            // Told that it may wait, the view has an answer; if it had none, trying again is the way out.
            let reply = self.look(&read, true).unwrap_or(Err(Failure::Busy));
            read.done.complete(reply);
        }
    }

    fn look(&self, read: &WaitingRead, wait: bool) -> Result<Reply, Wait> {
        if let Err(failure) = self.check(read) {
            return Ok(Err(failure));
        }
        let found = match read.what {
            ReadWhat::Data { offset, len, at } => {
                let first = offset / BLOCK_BYTES;
                let blocks = first..first + len / BLOCK_BYTES;
                let data = match at {
                    None => self.view.read(read.extent, blocks, wait),
                    Some(at) => self.view.read_at(read.extent, at, blocks, wait),
                };
                data.map(ReplyBody::Data)
            }
            ReadWhat::Prepared => Ok(ReplyBody::Prepared(self.view.prepared(read.extent))),
            ReadWhat::Versions => self.view.versions(read.extent, wait).map(ReplyBody::Versions),
        };
        // A takeover may have sealed, a delete emptied it, or the disk failed while the data was on its way.
        let checked = self.check(read);
        match found {
            Ok(body) => Ok(checked.map(|()| body)),
            Err(Missed::Wait) => Err(Wait),
            Err(Missed::Failed(Failure::DiskFailed)) => {
                self.fail("reading a descriptor failed");
                Ok(Err(Failure::DiskFailed))
            }
            Err(Missed::Failed(failure)) => {
                self.scrub.suspect(read.extent);
                Ok(checked.and(Err(failure)))
            }
        }
    }

    /// Which extents have blocks newer than a version: memory knows.
    pub(super) fn extents(&self, epoch: Epoch, query: &ExtentsQuery) -> Reply {
        if self.is_failed() {
            return Err(Failure::DiskFailed);
        }
        self.view.check(query.namespace, query.generation, epoch)?;
        let (list, next) = self.view.extents(query.namespace, query.from, query.newer_than);
        Ok(ReplyBody::Extents { list, next })
    }

    fn check(&self, read: &WaitingRead) -> Result<(), Failure> {
        if self.is_failed() {
            return Err(Failure::DiskFailed);
        }
        let namespace = read.extent.namespace;
        match read.what {
            ReadWhat::Data { at: Some(_), .. } => {
                self.view.check_snapshots(namespace, read.generation, read.epoch)
            }
            _ => self.view.check(namespace, read.generation, read.epoch),
        }
    }
}

/// The medium has to be waited for.
struct Wait;

//! One disk.
//!
//! [`Engine`] is what a node needs of a disk; [`DiskEngine`] is one on a directory, a file or a block device:
//!
//! ```text
//!     submit ──> queue ──> commit thread:  prepare each ─> commit all at once ─> answer
//!                               │                                 │
//!                               │  begin, finish                  v
//!                               └──────────── checkpoint thread: write
//!
//!     read ───────────────> memory, page cache ──(not there)──> read threads
//! ```
//!
//! What a change does, and what is on the medium when, is decided by the [`store`](crate::store); here are only
//! the threads around it.

mod answer;
mod disk;
mod error;

use std::path::PathBuf;

use lunette_proto::ids::{DiskId, Epoch, ExtentId, Generation, Namespace, Snapshot, Version};
use lunette_proto::limits::{BLOCK_BYTES, EXTENT_BYTES};
use lunette_proto::node::{Change, Durability};

pub use answer::Completion;
pub use disk::{DamageCounts, DiskEngine, ScrubStatus};
pub use error::DiskError;

/// What a node asks of one disk, whatever keeps the bytes.
///
/// Nothing here blocks on the medium: answers come through the [`Completion`], on a thread of the
/// engine or on the caller's.
pub trait Engine: Send + Sync {
    /// Queues `operation`. Operations take effect in the order of the calls; `done` is told once what
    /// has to be durable is.
    fn submit(&self, epoch: Epoch, operation: Operation, done: Completion);

    /// Reads; on the caller's thread if the page cache has it.
    fn read(&self, epoch: Epoch, query: ReadQuery, done: Completion);

    /// The versions of an extent's blocks.
    fn versions(&self, epoch: Epoch, extent: ExtentId, generation: Generation, done: Completion);

    /// What is prepared in an extent.
    fn prepared(&self, epoch: Epoch, extent: ExtentId, generation: Generation, done: Completion);

    /// The extents of a namespace from an index on that have blocks newer than a version.
    fn extents(&self, epoch: Epoch, query: ExtentsQuery, done: Completion);

    /// Lets an owner answer reads for a while; the fields are those of
    /// [`RequestBody::Grant`](lunette_proto::node::RequestBody::Grant).
    fn grant(&self, epoch: Epoch, query: GrantQuery, done: Completion);

    /// Space offered and taken.
    fn space(&self) -> Space;

    /// Why the disk has failed, if it has.
    fn failure(&self) -> Option<String>;

    /// Finishes what is queued, makes it durable and stops. What comes later is refused.
    fn close(&self);
}

/// What changes a disk or has to be ordered with changes. The fields are those of
/// [`RequestBody`](lunette_proto::node::RequestBody). Snapshots are not in the protocol yet: `Mark` gives this place in the order of a
/// namespace's changes a number, higher than all before it, and is durable when it is answered; `Unmark` ends a snapshot, also
/// of a namespace that was deleted. Both are answered alike when they are sent again; a number that was used for a snapshot that has ended
/// is [`Failure::Invalid`](lunette_proto::node::Failure::Invalid).
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields and variants are documented where the protocol defines them")]
pub enum Operation {
    Seal { namespace: Namespace, generation: Generation },
    Change { extent: ExtentId, version: Version, offset: u32, change: Change, durability: Durability },
    Put { extent: ExtentId, generation: Generation, version: Version, offset: u32, change: Change },
    Flush { namespace: Namespace, generation: Generation },
    Watermark { namespace: Namespace, generation: Generation, seq: u64, complete: bool },
    Delete { namespace: Namespace, generation: Generation },
    Drop { namespace: Namespace, generation: Generation, extents: Vec<u64> },
    Mark { namespace: Namespace, generation: Generation, snapshot: Snapshot },
    Unmark { namespace: Namespace, generation: Generation, snapshot: Snapshot },
    Prepare { extent: ExtentId, version: Version, prev: Version, offset: u32, change: Change },
    Commit { extent: ExtentId, generation: Generation, version: Version, offset: u32, len: u32 },
    Rollback { extent: ExtentId, generation: Generation, version: Version, offset: u32, len: u32 },
}

impl Operation {
    /// Bytes of data that it bears.
    fn data_len(&self) -> usize {
        match self {
            Self::Change { change: Change::Data(data), .. }
            | Self::Put { change: Change::Data(data), .. }
            | Self::Prepare { change: Change::Data(data), .. } => data.len(),
            _ => 0,
        }
    }
}

/// A read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadQuery {
    /// Where.
    pub extent: ExtentId,
    /// The owner's generation.
    pub generation: Generation,
    /// First byte.
    pub offset: u32,
    /// How many bytes.
    pub len: u32,
    /// What there was at this snapshot; what there is now if `None`.
    pub at: Option<Snapshot>,
}

/// What an owner asks to be granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrantQuery {
    /// Whose.
    pub namespace: Namespace,
    /// The owner's generation.
    pub generation: Generation,
    /// Which of its requests this is.
    pub number: u64,
    /// For how many milliseconds; 0 gives it back.
    pub for_ms: u32,
}

/// Which extents are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtentsQuery {
    /// Whose.
    pub namespace: Namespace,
    /// The owner's generation.
    pub generation: Generation,
    /// From this index on.
    pub from: u64,
    /// Only those whose newest block is newer.
    pub newer_than: Version,
}

/// Space of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes that the disk offers.
    pub capacity_bytes: u64,
    /// Bytes taken by data.
    pub used_bytes: u64,
}

/// A disk to open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// Its directory, file or block device.
    pub path: PathBuf,
    /// Bytes of data that it offers at most; all that it has room for if `None`.
    pub capacity_bytes: Option<u64>,
    /// Refuse to open it if it is another disk.
    pub disk: Option<DiskId>,
}

impl DiskConfig {
    /// Whatever disk is at `path`, with at most `capacity_bytes` of data.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>, capacity_bytes: Option<u64>) -> Self {
        Self { path: path.into(), capacity_bytes, disk: None }
    }
}

/// Whether a byte range is one that the protocol allows.
pub(crate) fn valid_range(offset: u32, len: u64) -> bool {
    len != 0
        && offset.is_multiple_of(BLOCK_BYTES)
        && len.is_multiple_of(u64::from(BLOCK_BYTES))
        && u64::from(offset) + len <= u64::from(EXTENT_BYTES)
}

//! Requests and replies of the node protocol, as values.

use bytes::Bytes;

use crate::ids::{ClusterId, DiskId, Epoch, ExtentId, Generation, Namespace, Version};

/// What an owner asks of one disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Which disk of the node.
    pub disk: DiskId,
    /// The map that the sender acts under.
    pub epoch: Epoch,
    /// What.
    pub body: RequestBody,
}

/// The questions.
///
/// All `offset`s and `len`s are in bytes inside one extent and multiples of
/// [`BLOCK_BYTES`](crate::limits::BLOCK_BYTES); `offset + len` is at most
/// [`EXTENT_BYTES`](crate::limits::EXTENT_BYTES) and `len` is not 0. A disk answers
/// [`Failure::Invalid`] to anything else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestBody {
    /// Is the disk there, and is it the one that is meant? Says who the sender takes it for.
    Identify {
        /// The cluster that the sender belongs to.
        cluster: ClusterId,
    },
    /// From now on refuse everything older than this generation (and this epoch) in the namespace.
    /// The answer, [`ReplyBody::Sealed`], leaves after that is durable (invariant 1). Sealing again
    /// with the same generation gives the same answer.
    ///
    /// As long as an owner of an older generation may act upon what it has [been granted](Self::Grant), the answer is
    /// [`Failure::Granted`] (invariant 34): everything older is refused already, and the disk is to be sealed again
    /// when that time is over. A disk that has been opened less than [`GRANT_KEPT_MS_MAX`](crate::limits::GRANT_KEPT_MS_MAX)
    /// ago does not know what it granted before, so it answers that to everybody who seals what had been sealed then.
    Seal {
        /// Whose.
        namespace: Namespace,
        /// The new owner's.
        generation: Generation,
    },
    /// Change blocks, if `version.generation` is the sealed one. A block that already has this
    /// version or a newer one keeps what it has: repeating a change does no harm (invariant 5). All of it happens
    /// or nothing does, over crashes too.
    Change {
        /// Where.
        extent: ExtentId,
        /// The version that the changed blocks get.
        version: Version,
        /// First byte changed.
        offset: u32,
        /// To what.
        change: Change,
        /// When to answer.
        durability: Durability,
    },
    /// Repair: bring blocks of a replica up to what another replica has, if it has less
    /// (invariant 9). Durable when answered. All of it happens or nothing does, over crashes too.
    Put {
        /// Where.
        extent: ExtentId,
        /// The owner's generation, which must be the sealed one; the blocks get `version`, which is
        /// older or equal.
        generation: Generation,
        /// The version of the blocks, as the source has it.
        version: Version,
        /// First byte.
        offset: u32,
        /// The content.
        change: Change,
    },
    /// Prepare a change of blocks of one unit ([`UNIT_BYTES`](crate::limits::UNIT_BYTES)): durable when answered, and
    /// seen by nobody. The unit keeps what it has, and reads give that, until the change is committed or rolled back;
    /// until then it takes no other change ([`Failure::Version`]).
    ///
    /// A unit has one prepared change at most: if `prev` is its version, that one is committed first, at once with this.
    /// Repeating it does no harm.
    Prepare {
        /// Where.
        extent: ExtentId,
        /// The version that the changed blocks get; its generation must be the sealed one.
        version: Version,
        /// The newest version of the unit, prepared or of any of its blocks ([`Version::NONE`] if there is none); older
        /// than `version`. If the unit has another one, nothing is changed ([`Failure::Version`]).
        prev: Version,
        /// First byte changed.
        offset: u32,
        /// To what; all in one unit.
        change: Change,
    },
    /// Let a prepared change count. Durable when answered; repeating it does no harm.
    Commit {
        /// Where.
        extent: ExtentId,
        /// The owner's generation, which must be the sealed one.
        generation: Generation,
        /// The version of the change, which may be of an older generation.
        version: Version,
        /// First byte of the units that it is committed in.
        offset: u32,
        /// How many bytes. If a unit of these neither has the change prepared nor has that version, nothing is changed
        /// ([`Failure::Version`]).
        len: u32,
    },
    /// Drop a prepared change, which nobody was told of: the units have what they had. Durable when answered; repeating it
    /// does no harm.
    Rollback {
        /// Where.
        extent: ExtentId,
        /// The owner's generation, which must be the sealed one.
        generation: Generation,
        /// The version of the change, which may be of an older generation.
        version: Version,
        /// First byte of the units that it is dropped in.
        offset: u32,
        /// How many bytes. If the version is committed in one of these, nothing is changed ([`Failure::Version`]).
        len: u32,
    },
    /// What is prepared in an extent.
    Prepared {
        /// Which extent.
        extent: ExtentId,
        /// The owner's generation, which must be the sealed one.
        generation: Generation,
    },
    /// Read. Blocks never written are zeros.
    Read {
        /// Where.
        extent: ExtentId,
        /// The owner's generation, which must be the sealed one.
        generation: Generation,
        /// First byte.
        offset: u32,
        /// How many bytes.
        len: u32,
    },
    /// The versions of an extent's blocks, for reconciliation, and to learn which of them take space.
    Versions {
        /// Which extent.
        extent: ExtentId,
        /// The owner's generation, which must be the sealed one.
        generation: Generation,
    },
    /// Make every change answered so far in the namespace durable.
    Flush {
        /// Whose.
        namespace: Namespace,
        /// The owner's generation, which must be the sealed one.
        generation: Generation,
    },
    /// Every change of this generation up to `seq` is on all in-sync members: extents whose newest
    /// change is not beyond it need no reconciliation after a takeover. Advisory, cheap, once a second.
    /// The answer names what is known to be damaged ([`ReplyBody::Damaged`]); the same watermark again asks only that.
    Watermark {
        /// Whose.
        namespace: Namespace,
        /// The owner's generation, which must be the sealed one.
        generation: Generation,
        /// All changes up to this one, included.
        seq: u64,
        /// Whether the disk itself lacks nothing of it in any extent of which it is a member: this becomes what it
        /// [has](Sealed::complete). `false` while some of its copies are being brought up to date.
        complete: bool,
    },
    /// The extents of a namespace that have blocks newer than a version, in the order of their indices: what may have
    /// changed while another disk was away.
    Extents {
        /// Whose.
        namespace: Namespace,
        /// The owner's generation, which must be the sealed one.
        generation: Generation,
        /// From this index on.
        from: u64,
        /// Only those whose newest block is newer than this; discards are blocks like others.
        newer_than: Version,
    },
    /// Give back the space of the whole namespace, for ever: it stays sealed to everybody. Ids are
    /// never used again, so nothing of it can come back (invariant 10).
    Delete {
        /// Whose.
        namespace: Namespace,
        /// The owner's generation, not older than the sealed one.
        generation: Generation,
    },
    /// The disk is no member of these extents any more: all that it has of them goes, what is prepared in them and what
    /// snapshots keep of them too, and they are as if never written to. Durable when answered; all of it happens or nothing
    /// does, over crashes too, and repeating it does no harm. A later change makes such an extent anew.
    Drop {
        /// Whose.
        namespace: Namespace,
        /// The owner's generation, which must be the sealed one.
        generation: Generation,
        /// Their indices, rising: at least one and at most
        /// [`NODE_DROPPED_EXTENTS_MAX`](crate::limits::NODE_DROPPED_EXTENTS_MAX).
        extents: Vec<u64>,
    },
    /// Let the owner answer reads: until so long after it has *sent* this, by its own clock, it may take it that nobody
    /// else owns the volume, as far as this disk can tell (invariant 34). The disk answers no newer owner's `Seal` until
    /// a tenth longer after it has received it, by its own. It is kept in memory only.
    Grant {
        /// Whose.
        namespace: Namespace,
        /// The owner's generation, which must be the sealed one.
        generation: Generation,
        /// Rises with each that is sent to the disk under this generation, so that none gives back what was granted by a
        /// later one.
        number: u64,
        /// For how many milliseconds, at most [`GRANT_MS_MAX`](crate::limits::GRANT_MS_MAX). 0 gives back what was
        /// granted under lower numbers.
        for_ms: u32,
    },
    /// Space of the disk.
    Space,
}

/// New content of a run of blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// These bytes.
    Data(Bytes),
    /// Zeros, and the space given back: a discard, which is a version like a write (invariant 10).
    Zeros {
        /// How many bytes.
        len: u32,
    },
}

impl Change {
    /// How many bytes it covers.
    #[must_use]
    pub fn len(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Zeros { len } => u64::from(*len),
        }
    }

    /// Whether it covers nothing, which no valid request does.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// When a change is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Once it is on stable media.
    Stable,
    /// Once it is in the node's memory, where reads see it; `Flush` makes it stable. A node that dies
    /// may lose it.
    Volatile,
}

/// The answers: the body, or why there is none.
pub type Reply = Result<ReplyBody, Failure>;

/// What a disk answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplyBody {
    /// Done: `Identify`, `Change`, `Put`, `Prepare`, `Commit`, `Rollback`, `Flush`, `Watermark`, `Delete`, `Drop`,
    /// `Grant`.
    Done,
    /// To `Read`.
    Data(Bytes),
    /// To `Seal`.
    Sealed(Sealed),
    /// To `Versions`: runs of blocks of one version that cover the extent from block 0, in order.
    /// What follows the last run was never written.
    Versions(Vec<BlockVersion>),
    /// To `Prepared`: at most one change of each unit, in the order of the units.
    Prepared(Vec<PreparedChange>),
    /// To `Extents`: at most [`NODE_LIST_MAX`](crate::limits::NODE_LIST_MAX).
    Extents {
        /// Rising indices, none below the one asked from.
        list: Vec<DirtyExtent>,
        /// Where to ask on from, behind all of them; `None` if there are no more.
        next: Option<u64>,
    },
    /// To `Space`.
    Space {
        /// Bytes that the disk offers.
        capacity_bytes: u64,
        /// Bytes taken by data.
        used_bytes: u64,
    },
    /// To `Watermark`, instead of `Done`, if blocks of the namespace are known to be damaged on this disk: at least
    /// one run and at most [`NODE_DAMAGED_RUNS_MAX`](crate::limits::NODE_DAMAGED_RUNS_MAX), in order. What is
    /// left out, or is not repaired, is named again.
    Damaged(Vec<DamagedRun>),
}

/// Blocks side by side that cannot be read on a disk: another member has to bring them back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DamagedRun {
    /// Index of the extent in the namespace.
    pub index: u64,
    /// First block of the extent.
    pub first: u32,
    /// How many, at least 1; all inside the extent.
    pub blocks: u32,
}

/// A change that is prepared in a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PreparedChange {
    /// First byte of the extent that it changes.
    pub offset: u32,
    /// How many bytes, at least a block; all in one unit.
    pub len: u32,
    /// The version that they get.
    pub version: Version,
    /// The newest version of the unit's blocks.
    pub prev: Version,
    /// Whether they become zeros.
    pub hole: bool,
}

/// What a disk knows of a namespace when it is sealed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sealed {
    /// Extents that may differ between members: changed since the last watermark, or with a prepared change.
    pub dirty: Vec<DirtyExtent>,
    /// The newest watermark that was [complete](RequestBody::Watermark::complete): whatever is not newer is on this disk, in
    /// every extent of which it was a member then. [`Version::NONE`] if there was none.
    pub complete: Version,
}

/// An extent, and how new it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirtyExtent {
    /// Its index in the namespace.
    pub index: u64,
    /// The newest version of any of its blocks on this disk.
    pub newest: Version,
}

/// A run of blocks of one version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockVersion {
    /// Blocks in the run, at least 1.
    pub blocks: u32,
    /// Their version; [`Version::NONE`] if never written.
    pub version: Version,
    /// Whether they are zeros without space (never written, or discarded).
    pub hole: bool,
}

/// Why a request was not done. One variant for each thing that the owner can do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The sender's generation is not the sealed one. A higher `sealed`: the sender is no longer the
    /// owner and must stop. A lower one: it has to seal first.
    #[error("generation {got} is not the sealed one, {sealed}")]
    Generation {
        /// What the disk has sealed.
        sealed: Generation,
        /// What the request bore.
        got: Generation,
    },
    /// The sender acts under a map older than the one it sealed under.
    #[error("epoch {got} is older than {sealed}, under which the namespace was sealed")]
    Epoch {
        /// What the disk has sealed.
        sealed: Epoch,
        /// What the request bore.
        got: Epoch,
    },
    /// The namespace was deleted.
    #[error("the namespace was deleted")]
    Deleted,
    /// The disk has no room for it. Nothing was changed; overwrites and discards still work. Space is given out by
    /// the [unit](crate::limits::UNIT_BYTES): blocks beside one of the same unit that has content need none.
    #[error("no space left on the disk")]
    NoSpace,
    /// What the disk holds there is wrong. Another member has to serve it and repair this one.
    #[error("corrupt block at byte {offset} of the extent")]
    Corrupt {
        /// First bad byte inside the extent.
        offset: u32,
    },
    /// A unit has another version than the request takes it to have, or a prepared change that is to be committed or
    /// rolled back first. Nothing was changed.
    #[error("the unit has version {present}")]
    Version {
        /// The newest that it has, prepared or of any of its blocks.
        present: Version,
    },
    /// Only to `Seal`: it has taken effect, but an owner before may still answer reads. To be sent again.
    #[error("an owner before may still answer reads, for {left_ms} ms")]
    Granted {
        /// For how much longer at most.
        left_ms: u32,
    },
    /// The disk has failed and serves nothing any more (invariant 12).
    #[error("the disk has failed")]
    DiskFailed,
    /// This node has no such disk, or it is of another cluster.
    #[error("the node has no such disk")]
    NoSuchDisk,
    /// The request itself is wrong: a bug of the sender, or a peer that is none of ours.
    #[error("invalid request")]
    Invalid,
    /// The disk cannot take more at the moment. Nothing was changed; try again.
    #[error("busy")]
    Busy,
    /// No answer: the connection broke. The request may or may not take effect, also later.
    #[error("connection to the node lost")]
    Disconnected,
}

//! What the front end sees of a volume: a device of blocks that takes commands and completes them.
//!
//! The contract (numbers refer to `docs/invariants.md`): a command that was completed without an
//! error has happened; a definite error ([`DeviceError::is_definite`]) has changed nothing; any
//! other outcome may or may not have happened, but never happens later than the completion.

use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;

/// A device of blocks. One object serves every session.
pub trait BlockDevice: Send + Sync {
    /// Queues `command`; its outcome goes to `to` under `tag`, once, possibly before this returns.
    ///
    /// Commands that overlap take effect in the order of the calls; others in any order.
    fn submit(&self, command: Command, tag: u64, to: &Arc<dyn Completions>);

    /// Whether it can serve reads and writes at the moment (SPC-4: TEST UNIT READY).
    fn readiness(&self) -> Readiness;

    /// Of which aligned ranges [`Command::WriteAtomic`] can write inside one: a power of two from 4096.
    fn atomic_bytes(&self) -> u32 {
        lunette_proto::limits::BLOCK_BYTES
    }
}

/// Where outcomes go.
pub trait Completions: Send + Sync {
    /// The outcome of the command that was submitted under `tag`. Must not block, and must not
    /// submit from within; it hands the outcome to whoever waits for it.
    fn complete(&self, tag: u64, outcome: Outcome);
}

/// Offsets and lengths are in bytes and whole logical blocks of the volume (512 or 4096).
/// What reaches beyond the end is refused with [`DeviceError::OutOfRange`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Read `len` bytes, at most [`SCSI_TRANSFER_BYTES_MAX`](lunette_proto::limits::SCSI_TRANSFER_BYTES_MAX).
    Read {
        /// First byte.
        offset: u64,
        /// Bytes, not 0.
        len: u32,
    },
    /// Write. Each 4 KiB block of it is atomic; so is the whole if it is inside one aligned range of 64 KiB (or of
    /// [`BlockDevice::atomic_bytes`], if those are smaller) and is durable when completed.
    Write {
        /// First byte.
        offset: u64,
        /// What, not empty, at most `SCSI_TRANSFER_BYTES_MAX`.
        data: Bytes,
        /// Durable when completed, also on a write-back volume (SBC-3: FUA).
        fua: bool,
    },
    /// Write as a whole, durably (SBC-4: WRITE ATOMIC): whatever crashes, no read ever shows a part of it beside what
    /// was there before. A block that its disks have lost is reported as unreadable, as ever.
    WriteAtomic {
        /// First byte, a multiple of 4096.
        offset: u64,
        /// What: whole 4 KiB blocks, at least one, inside one range of [`BlockDevice::atomic_bytes`].
        data: Bytes,
    },
    /// Make zeros and give whole 4 KiB blocks back; parts of blocks are written with zeros.
    Zero {
        /// First byte.
        offset: u64,
        /// Bytes, not 0; up to the whole volume.
        len: u64,
    },
    /// Make everything that was completed before durable (SBC-3: SYNCHRONIZE CACHE).
    Flush,
    /// Write `data` if the device holds `compare`, or else change nothing and complete with
    /// [`DeviceError::Miscompare`] (SBC-3: COMPARE AND WRITE). One step: nothing comes between.
    CompareAndWrite {
        /// First byte.
        offset: u64,
        /// What must be there: not empty, inside one 4 KiB block.
        compare: Bytes,
        /// What comes there, as long as `compare`.
        data: Bytes,
        /// As for a write.
        fua: bool,
    },
    /// Write the bitwise OR of `data` and what is there (SBC-3: ORWRITE). One step for each 4 KiB block.
    Or {
        /// First byte.
        offset: u64,
        /// What, not empty, at most `SCSI_TRANSFER_BYTES_MAX`.
        data: Bytes,
        /// As for a write.
        fua: bool,
    },
    /// Which blocks take space (SBC-3: GET LBA STATUS). Completes with a byte for each 4 KiB block that
    /// the range touches, in order: [`MAPPED`] or [`DEALLOCATED`].
    Mapping {
        /// First byte.
        offset: u64,
        /// Bytes, not 0, at most [`MAPPING_BYTES_MAX`].
        len: u64,
    },
}

/// A block that takes space, or may.
pub const MAPPED: u8 = 0;
/// A block that takes none, and reads as zeros.
pub const DEALLOCATED: u8 = 1;
/// The longest range of one [`Command::Mapping`]: 64 extents.
pub const MAPPING_BYTES_MAX: u64 = 256 << 20;

/// What came of a command.
pub type Outcome = Result<Data, DeviceError>;

/// The bytes of a read, in order, as slices of whatever they were received in; empty for the rest.
pub type Data = SmallVec<[Bytes; 2]>;

/// Why a command failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// Beyond the end. Changed nothing.
    #[error("beyond the end of the volume")]
    OutOfRange,
    /// No whole logical blocks, or too long. Changed nothing.
    #[error("not whole blocks, or too long")]
    Invalid,
    /// It cannot be taken now: members are missing, or the queue is full. Nothing was sent; try again.
    #[error("busy")]
    Busy,
    /// It waited too long for its members. A write may have reached some of them: it is finished or
    /// withdrawn before any later command on the same blocks takes effect, so it is no ghost.
    #[error("timed out waiting for the members")]
    TimedOut,
    /// No space left in the pool. Blocks that needed no space may have been written.
    #[error("no space left in the pool")]
    NoSpace,
    /// No copy that counts can be read.
    #[error("unreadable at byte {offset}")]
    Medium {
        /// First unreadable byte of the volume.
        offset: u64,
    },
    /// It holds something else than was to be compared. Changed nothing.
    #[error("miscompare at byte {at}")]
    Miscompare {
        /// First byte of the comparison that differs, from its start.
        at: u32,
    },
    /// This gateway is not the volume's owner (any more).
    #[error("not the owner")]
    NotOwner,
    /// The volume is gone.
    #[error("the volume was deleted")]
    Gone,
}

impl DeviceError {
    /// Whether the command certainly changed nothing.
    #[must_use]
    pub fn is_definite(&self) -> bool {
        matches!(self, Self::OutOfRange | Self::Invalid | Self::Busy | Self::Miscompare { .. })
    }
}

/// Whether a device can serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Reads and writes are served.
    Ready,
    /// Ownership is being taken; it will be ready soon.
    Starting,
    /// Too few members answer.
    Unavailable,
    /// Another gateway owns it.
    NotOwner,
}

//! An operation: what a command does to the blocks of one extent, and what the owner does on its own.
//!
//! ```text
//!     Waiting --> Reading --> Mutating --> finished         a partial block, a comparison, a repair
//!     Waiting --> Reading ------------------> finished      a read, a comparison that differs
//!     Waiting ----------------> Mutating --> finished       a write
//!     Waiting --> Reading --> Mutating --> finished         an atomic write (`atomic.rs`)
//!     Waiting --> Healing -------------------> finished      what a scrubber found: its parts read and mutate
//!                                  |  ^
//!                                  v  |  no space on some member: the old content is
//!                                Reading  read there and written back everywhere
//! ```
//!
//! What has begun to mutate is never given up: its blocks stay locked until every member has
//! answered or left the in-sync set. Nothing that was sent can therefore take effect after a later
//! operation on the same blocks, however often it was repeated and however late a copy arrives
//! (invariants 5 and 13).

use std::collections::VecDeque;
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use lunette_proto::ids::{DiskId, Version};
use lunette_proto::limits::BLOCK_BYTES;
use lunette_proto::node::{Change, Durability};
use smallvec::SmallVec;

use super::heal::Healing;
use super::patch::Patch;
use super::view::Members;
use crate::device::DeviceError;

/// An operation.
#[derive(Debug)]
pub(super) struct Op {
    pub(super) origin: Origin,
    pub(super) extent: u64,
    /// The blocks that it locks, in bytes: whole blocks.
    pub(super) offset: u32,
    pub(super) len: u32,
    pub(super) work: Work,
    pub(super) durability: Durability,
    pub(super) phase: Phase,
    /// The first sequence number that it took, 0 if none: it holds back the watermark.
    pub(super) seq: u64,
    /// Whether it has changed, or may have changed, a member.
    pub(super) has_mutated: bool,
    /// What its command is told although the blocks agree.
    pub(super) verdict: Result<(), DeviceError>,
}

impl Op {
    pub(super) fn blocks(&self) -> Range<u32> {
        self.offset / BLOCK_BYTES..(self.offset + self.len) / BLOCK_BYTES
    }

    /// Data that it keeps in memory from its command.
    pub(super) fn held_bytes(&self) -> u64 {
        match &self.work {
            Work::Write(Change::Data(data)) | Work::Atomic { data, .. } => data.len() as u64,
            Work::Modify { patch, .. } => patch.held_bytes(),
            Work::Read { .. }
            | Work::Map
            | Work::Write(_)
            | Work::Level { .. }
            | Work::Heal { .. }
            | Work::Rewrite => 0,
        }
    }

    pub(super) fn is_exclusive(&self) -> bool {
        !matches!(self.work, Work::Read { .. } | Work::Map)
    }

    /// Whether it matters what is in a block that it reads.
    pub(super) fn needs(&self, block: u32) -> bool {
        let first = block * BLOCK_BYTES - self.offset;
        match &self.work {
            Work::Modify { at, patch } => patch.needs(*at, first..first + BLOCK_BYTES),
            _ => true,
        }
    }
}

/// For whom it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// Part of a command.
    Command { command: usize, part: usize },
    /// Its command was answered already.
    Orphan,
    /// A block of which some copy is bad.
    Repair,
    /// Blocks that a member has named as damaged.
    Heal,
    /// Some of them; the lock is that of the whole.
    HealPart { heal: usize },
    /// Reconciliation of its extent, which is closed to everything else.
    Reconcile,
    /// Blocks of a copy that is brought up to date, by the check of that number.
    CatchUp { disk: DiskId, check: u64 },
}

/// What it does.
#[derive(Debug)]
pub(super) enum Work {
    /// Read the blocks and give `take` bytes from `skip` on.
    Read { skip: u32, take: u32 },
    /// Give the blocks new content.
    Write(Change),
    /// Say which of the blocks take space.
    Map,
    /// Read the blocks, patch them at a byte of theirs and write them: a [`Work::Write`] from then on.
    Modify { at: u32, patch: Patch },
    /// Write the blocks as a whole, although they are of several space units. With `prepares`, their content is first
    /// written again, so that every member has room for all of them.
    Atomic { data: Bytes, prepares: bool },
    /// Bring `lagging` members up to what `sources` have: zeros without space if `hole`. With
    /// `or_hole`, some lagging member has a hole in every block of it, and it is as good to give
    /// all members that.
    Level { version: Version, hole: bool, or_hole: bool, sources: Members, lagging: Members },
    /// Bring the blocks of one copy to what the members have.
    Heal { disk: DiskId },
    /// Give the blocks the content that they have, under a new version.
    Rewrite,
}

impl Work {
    /// Whether what is read may be what its command is answered with.
    pub(super) fn is_seen(&self) -> bool {
        matches!(self, Self::Read { .. } | Self::Map | Self::Modify { patch: Patch::Swap { .. }, .. })
    }

    /// Whether it is versions that it asks a member for.
    pub(super) fn asks_versions(&self) -> bool {
        matches!(self, Self::Map | Self::Atomic { prepares: false, .. })
    }
}

/// Where it stands.
#[derive(Debug)]
pub(super) enum Phase {
    /// For its blocks, for the extent, or for enough members.
    Waiting,
    /// One member at a time is asked for the content.
    Reading(Reading),
    /// All members that need it are brought to new content.
    Mutating(Mutating),
    /// A member is asked for its versions, then parts bring the damaged one to them.
    Healing(Healing),
}

#[derive(Debug, Default)]
pub(super) struct Reading {
    /// The content of these only; empty means of any member in sync.
    pub(super) from: Members,
    /// The content goes back to all members, because some had no space for the new one.
    pub(super) withdrawing: bool,
    /// Members whose copy is bad.
    pub(super) bad: Members,
    /// Members that took long to answer: asked again last.
    pub(super) slow: Members,
    /// Bad blocks that were met.
    pub(super) bad_blocks: SmallVec<[u32; 2]>,
    pub(super) asked: Option<Asked>,
    /// No single member has all blocks: they are gathered one by one.
    pub(super) pieces: Option<BytesMut>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) disk: DiskId,
    pub(super) tag: u64,
    pub(super) since_ms: u64,
}

#[derive(Debug)]
pub(super) struct Mutating {
    pub(super) offset: u32,
    pub(super) change: Change,
    pub(super) version: Version,
    /// Conditional, for lagging members only: the version is another owner's.
    pub(super) put: bool,
    pub(super) legs: SmallVec<[Leg; 4]>,
    /// Some attempt had no answer: a copy of it may still arrive.
    pub(super) ambiguous: bool,
    /// Old content is being written back.
    pub(super) withdrawing: bool,
    /// What is to be written after it.
    pub(super) rest: VecDeque<(u32, Change)>,
}

/// One member of a mutation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leg {
    pub(super) disk: DiskId,
    pub(super) state: LegState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LegState {
    /// To be sent when the disk can be reached.
    Parked,
    /// Unanswered.
    Sent(u64),
    /// The member has it.
    Done,
    /// The member has no room for it and has changed nothing.
    NoSpace,
}

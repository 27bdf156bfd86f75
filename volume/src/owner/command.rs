//! Commands: checked, split into operations at extents and partial blocks, joined, answered.
//!
//! A command that zeroes a large range queues its operations a few at a time; until it has queued
//! the last, later commands that overlap what is left stand behind it, and those that overlap them
//! behind those.

use std::ops::Range;

use bytes::Bytes;
use lunette_proto::limits::{BLOCK_BYTES, SCSI_TRANSFER_BYTES_MAX};
use lunette_proto::node::{Change, Durability};

use super::event::{Action, Limits, Plant};
use super::op::{Op, Origin, Phase, Work};
use super::patch::Patch;
use super::{Owner, Stage, mapping};
use crate::device::{self, Data, DeviceError, MAPPING_BYTES_MAX, Outcome};
use crate::layout::Run;

/// A command that is not answered yet.
#[derive(Debug)]
pub(super) struct Command {
    tag: u64,
    kind: Kind,
    /// Of the volume.
    pub(super) range: Range<u64>,
    /// What of it has no operations yet.
    at: u64,
    end: u64,
    /// Operations not finished, and one more while they are being queued.
    outstanding: usize,
    parts: Data,
    error: Option<DeviceError>,
    /// Whether anything was sent for it.
    pub(super) touched: bool,
    /// When it is answered at the latest.
    pub(super) deadline_ms: u64,
}

#[derive(Clone, Debug)]
enum Kind {
    Read,
    Write {
        data: Bytes,
        fua: bool,
    },
    WriteAtomic(Bytes),
    Swap {
        compare: Bytes,
        data: Bytes,
        fua: bool,
    },
    Or {
        data: Bytes,
        fua: bool,
    },
    Zero,
    /// Of whole 4 KiB blocks.
    Mapping(Range<u64>),
    Flush,
}

impl Command {
    /// Whether its answer says what is in its blocks.
    fn tells_of_blocks(&self) -> bool {
        match self.error {
            None => matches!(self.kind, Kind::Read | Kind::Mapping(_)),
            Some(DeviceError::Miscompare { .. } | DeviceError::Medium { .. }) => {
                !matches!(self.kind, Kind::Zero)
            }
            Some(_) => false,
        }
    }
}

impl Kind {
    /// Data that it keeps.
    fn held_bytes(&self) -> u64 {
        match self {
            Self::Write { data, .. } | Self::WriteAtomic(data) | Self::Or { data, .. } => data.len() as u64,
            Self::Swap { compare, data, .. } => (compare.len() + data.len()) as u64,
            Self::Read | Self::Zero | Self::Mapping(_) | Self::Flush => 0,
        }
    }
}

impl Owner {
    pub(super) fn submit(&mut self, tag: u64, command: device::Command) {
        let held = self.hand_over.is_holding().then(|| command.clone());
        let (kind, range) = match (self.check(command), held) {
            (Err(error), _) => return self.complete(tag, Err(error)),
            (Ok((kind, _)), Some(command)) => return self.hand_over.hold(tag, command, kind.held_bytes()),
            (Ok(checked), None) => checked,
        };
        let id = self.commands.insert(Command {
            tag,
            kind,
            at: range.start,
            end: range.end,
            range,
            outstanding: 0,
            parts: Data::new(),
            error: None,
            touched: false,
            deadline_ms: self.now + self.config.limits.wait_ms,
        });
        self.queue(id);
    }

    /// What a command that may be taken does, and in which range of the volume.
    fn check(&self, command: device::Command) -> Result<(Kind, Range<u64>), DeviceError> {
        match &self.stage {
            Stage::Stopped(error) => return Err(error.clone()),
            Stage::Serving if !self.view.deleting => {}
            Stage::Serving | Stage::Purging(_) | Stage::Purged => return Err(DeviceError::Gone),
        }
        let transfer_max = u64::from(SCSI_TRANSFER_BYTES_MAX);
        let (kind, offset, len, len_max) = match command {
            device::Command::Read { offset, len } => (Kind::Read, offset, u64::from(len), transfer_max),
            device::Command::Write { offset, data, fua } => {
                let len = data.len() as u64;
                (Kind::Write { data, fua }, offset, len, transfer_max)
            }
            device::Command::WriteAtomic { offset, data } => {
                let (len, atomic) = (data.len() as u64, u64::from(self.config.layout.atomic_bytes()));
                let block = u64::from(BLOCK_BYTES);
                if !offset.is_multiple_of(block) || !len.is_multiple_of(block) {
                    return Err(DeviceError::Invalid);
                }
                (Kind::WriteAtomic(data), offset, len, atomic - offset % atomic)
            }
            device::Command::Zero { offset, len } => (Kind::Zero, offset, len, u64::MAX),
            device::Command::Flush => return self.has_room(0).map(|()| (Kind::Flush, 0..0)),
            device::Command::CompareAndWrite { offset, compare, data, fua } => {
                if compare.len() != data.len() {
                    return Err(DeviceError::Invalid);
                }
                let in_block = u64::from(BLOCK_BYTES) - offset % u64::from(BLOCK_BYTES);
                let len = data.len() as u64;
                (Kind::Swap { compare, data, fua }, offset, len, in_block)
            }
            device::Command::Or { offset, data, fua } => {
                let len = data.len() as u64;
                (Kind::Or { data, fua }, offset, len, transfer_max)
            }
            device::Command::Mapping { offset, len } => (Kind::Mapping(0..0), offset, len, MAPPING_BYTES_MAX),
        };
        let block = u64::from(self.config.block_bytes);
        if len == 0 || len > len_max || !offset.is_multiple_of(block) || !len.is_multiple_of(block) {
            return Err(DeviceError::Invalid);
        }
        let end = offset.checked_add(len).filter(|end| *end <= self.view.size_bytes);
        let Some(end) = end else {
            return Err(DeviceError::OutOfRange);
        };
        self.has_room(kind.held_bytes())?;
        if let Kind::Mapping(_) = kind {
            let block = u64::from(BLOCK_BYTES);
            let blocks = offset - offset % block..end.next_multiple_of(block);
            return Ok((Kind::Mapping(blocks.clone()), blocks));
        }
        Ok((kind, offset..end))
    }

    fn has_room(&self, bytes: u64) -> Result<(), DeviceError> {
        let Limits { operations_max, bytes_max, .. } = self.config.limits;
        let queued = self.ops.len() + self.commands.len() + self.hand_over.held_commands();
        let held_bytes = self.held_bytes + self.hand_over.held_bytes();
        let fits = queued < operations_max && held_bytes + bytes <= bytes_max;
        if fits { Ok(()) } else { Err(DeviceError::Busy) }
    }

    fn queue(&mut self, id: usize) {
        if let Kind::Flush = self.commands[id].kind {
            return self.queue_flush(id);
        }
        if self.is_behind(id, self.deferred.len()) {
            // Until it has operations, which keep it then.
            self.held_bytes += self.commands[id].kind.held_bytes();
            self.deferred.push_back(id);
        } else {
            self.admit(id);
        }
    }

    /// Whether a command has to stand behind a zeroing one or one of the first `count` deferred.
    fn is_behind(&self, id: usize, count: usize) -> bool {
        let command = &self.commands[id];
        self.zeroing.iter().chain(self.deferred.iter().take(count)).any(|other| {
            let other = &self.commands[*other];
            other.at < command.end && command.at < other.end
        })
    }

    fn admit(&mut self, id: usize) {
        match self.commands[id].kind.clone() {
            Kind::Zero => {
                self.zeroing.push(id);
                self.advance_zero(id);
            }
            kind => {
                let command = &mut self.commands[id];
                let (at, end) = (std::mem::replace(&mut command.at, command.end), command.end);
                command.outstanding += 1;
                if let Kind::Mapping(blocks) = &kind {
                    self.add_mapping(id, blocks);
                } else {
                    let mut done = 0;
                    for run in self.config.layout.runs(at, end - at) {
                        let taken = done + run.len as usize;
                        self.add_run(id, run, &kind, done..taken);
                        done = taken;
                    }
                }
                self.part_done(id, None, Ok(Bytes::new()));
            }
        }
    }

    /// Queues what a command does to one extent, with that part of its data.
    fn add_run(&mut self, id: usize, run: Run, kind: &Kind, part: Range<usize>) {
        match kind {
            Kind::Write { data, fua } => {
                self.add_changes(id, run, Some(data.slice(part)), self.durability(*fua));
            }
            Kind::WriteAtomic(data) => self.add_atomic(id, run, data.slice(part)),
            Kind::Swap { compare, data, fua } => {
                let patch = Patch::Swap { compare: compare.clone(), data: data.clone() };
                self.add_patch(id, run, patch, self.durability(*fua));
            }
            Kind::Or { data, fua } => {
                self.add_patch(id, run, Patch::Or(data.slice(part)), self.durability(*fua));
            }
            Kind::Read | Kind::Zero | Kind::Mapping(_) | Kind::Flush => self.add_read(id, run),
        }
    }

    fn durability(&self, fua: bool) -> Durability {
        if self.is_caching() && !fua { Durability::Volatile } else { Durability::Stable }
    }

    /// Queues the next operations of a zeroing command.
    fn advance_zero(&mut self, id: usize) {
        self.commands[id].outstanding += 1;
        loop {
            let command = &self.commands[id];
            let (at, end) = (command.at, command.end);
            if command.outstanding > self.config.limits.zero_operations_max {
                break;
            }
            let Some(run) = self.config.layout.runs(at, end - at).next() else {
                break;
            };
            self.commands[id].at += u64::from(run.len);
            let durability = self.durability(false);
            self.add_changes(id, run, None, durability);
        }
        if self.commands[id].at == self.commands[id].end {
            self.zeroing.retain(|other| *other != id);
        }
        self.part_done(id, None, Ok(Bytes::new()));
        self.recheck_deferred = true;
    }

    /// Lets deferred commands go that nothing is in front of any more.
    pub(super) fn admit_deferred(&mut self) {
        self.recheck_deferred = false;
        let mut position = 0;
        while let Some(id) = self.deferred.get(position).copied() {
            if self.is_behind(id, position) {
                position += 1;
            } else {
                self.deferred.remove(position);
                self.held_bytes -= self.commands[id].kind.held_bytes();
                self.admit(id);
            }
        }
    }

    fn add_read(&mut self, command: usize, run: Run) {
        let first = run.offset - run.offset % BLOCK_BYTES;
        let end = (run.offset + run.len).next_multiple_of(BLOCK_BYTES);
        let work = Work::Read { skip: run.offset - first, take: run.len };
        self.add_part(command, run.extent, first, end - first, work, Durability::Stable);
    }

    /// The blocks that a run touches are read, patched and written as one operation.
    fn add_patch(&mut self, command: usize, run: Run, patch: Patch, durability: Durability) {
        let first = run.offset - run.offset % BLOCK_BYTES;
        let end = (run.offset + run.len).next_multiple_of(BLOCK_BYTES);
        let work = Work::Modify { at: run.offset - first, patch };
        self.add_part(command, run.extent, first, end - first, work, durability);
    }

    /// Whole blocks become one operation; a block that is changed in part is read and patched. A write inside one
    /// space unit becomes one operation altogether.
    fn add_changes(&mut self, command: usize, run: Run, data: Option<Bytes>, durability: Durability) {
        let end = run.offset + run.len;
        let unit = self.config.layout.unit_bytes();
        let is_whole = run.offset.is_multiple_of(BLOCK_BYTES) && end.is_multiple_of(BLOCK_BYTES);
        if let Some(data) = &data
            && !is_whole
            && run.offset / unit == (end - 1) / unit
            && !self.planted(Plant::SplitAtomic)
        {
            return self.add_patch(command, run, Patch::Data(data.clone()), durability);
        }
        let mut at = run.offset;
        while at < end {
            let block = at - at % BLOCK_BYTES;
            let whole_end = end - end % BLOCK_BYTES;
            let whole = at == block && at < whole_end;
            let next = if whole { whole_end } else { end.min(block + BLOCK_BYTES) };
            let slice = data
                .as_ref()
                .map(|data| data.slice((at - run.offset) as usize..(next - run.offset) as usize));
            let (offset, len, work) = if whole {
                let change = slice.map_or(Change::Zeros { len: next - at }, Change::Data);
                (at, next - at, Work::Write(change))
            } else {
                let patch = slice.map_or(Patch::Zeros(next - at), Patch::Data);
                (block, BLOCK_BYTES, Work::Modify { at: at - block, patch })
            };
            self.add_part(command, run.extent, offset, len, work, durability);
            at = next;
        }
    }

    pub(super) fn add_part(
        &mut self,
        id: usize,
        extent: u64,
        offset: u32,
        len: u32,
        work: Work,
        durability: Durability,
    ) {
        let command = &mut self.commands[id];
        let part = command.parts.len();
        if let Work::Read { .. } | Work::Map = work {
            command.parts.push(Bytes::new());
        }
        command.outstanding += 1;
        self.add_op(Origin::Command { command: id, part }, extent, offset, len, work, durability);
    }

    /// Queues an operation behind those that are in its way.
    pub(super) fn add_op(
        &mut self,
        origin: Origin,
        extent: u64,
        offset: u32,
        len: u32,
        work: Work,
        durability: Durability,
    ) {
        let op = Op {
            origin,
            extent,
            offset,
            len,
            work,
            durability,
            phase: Phase::Waiting,
            seq: 0,
            has_mutated: false,
            verdict: Ok(()),
        };
        let is_swap = matches!(op.work, Work::Modify { patch: Patch::Swap { .. }, .. });
        let unlocked = self.planted(Plant::NoHazardLock) || is_swap && self.planted(Plant::CompareUnlocked);
        let (blocks, exclusive) = (op.blocks(), op.is_exclusive() && !unlocked);
        self.held_bytes += op.held_bytes();
        let id = self.ops.insert(op);
        if self.locks.entry(extent).or_default().insert(id, blocks, exclusive) {
            self.ready.push_back(id);
        }
    }

    /// A part of a command is over; `None` is the queuing itself.
    pub(super) fn part_done(&mut self, id: usize, part: Option<usize>, result: Result<Bytes, DeviceError>) {
        let command = &mut self.commands[id];
        command.outstanding -= 1;
        match result {
            Ok(bytes) => {
                if let Some(slot) = part.and_then(|part| command.parts.get_mut(part)) {
                    *slot = bytes;
                }
            }
            Err(error) => {
                command.error.get_or_insert(error);
                // What has not been queued yet is not begun any more.
                command.end = command.at;
            }
        }
        if let (Kind::Zero, Some(_)) = (&command.kind, part) {
            command.deadline_ms = self.now + self.config.limits.wait_ms;
            if self.zeroing.contains(&id) {
                return self.advance_zero(id);
            }
        }
        let command = &self.commands[id];
        if command.outstanding == 0 && command.at == command.end {
            if command.tells_of_blocks() && !self.is_granted(id) {
                return self.wait_for_grants(id);
            }
            self.answer(id);
        }
    }

    /// Answers a command that is finished.
    pub(super) fn answer(&mut self, id: usize) {
        let command = self.commands.remove(id);
        let outcome = match (command.error, command.kind) {
            (Some(error), _) => Err(error),
            (None, Kind::Mapping(blocks)) => {
                Ok(mapping::in_order(self.config.layout, &blocks, command.parts))
            }
            (None, _) => Ok(command.parts),
        };
        self.complete(command.tag, outcome);
        self.purge_if_idle();
    }

    pub(super) fn complete(&mut self, tag: u64, outcome: Outcome) {
        self.out.push(Action::Complete { tag, outcome });
    }

    /// A flush is answered.
    pub(super) fn flush_done(&mut self, id: usize, result: Result<(), DeviceError>) {
        let command = self.commands.remove(id);
        self.complete(command.tag, result.map(|()| Data::new()));
        self.purge_if_idle();
    }

    /// Answers a command that is not finished. What has begun to change blocks goes on and keeps
    /// them locked; what has not is given up.
    pub(super) fn give_up(&mut self, id: usize, error: DeviceError) {
        let command = self.commands.remove(id);
        self.zeroing.retain(|other| *other != id);
        let deferred = self.deferred.len();
        self.deferred.retain(|other| *other != id);
        if self.deferred.len() < deferred {
            self.held_bytes -= command.kind.held_bytes();
        }
        self.forget_flush(id);
        self.grants.forget(id);
        let mine: Vec<usize> = self
            .ops
            .iter()
            .filter(|(_, op)| matches!(op.origin, Origin::Command { command, .. } if command == id))
            .map(|(op, _)| op)
            .collect();
        for op in mine {
            self.ops[op].origin = Origin::Orphan;
            if !self.ops[op].has_mutated {
                self.finish(op, Err(error.clone()));
            } else if self.planted(Plant::ForgetTimedOutLock) {
                self.unlock(op);
            }
        }
        self.complete(command.tag, Err(error));
        self.recheck_deferred = true;
        self.purge_if_idle();
    }

    /// Answers commands that have waited too long.
    pub(super) fn tick_commands(&mut self) {
        let now = self.now;
        let late: Vec<(usize, bool)> = self
            .commands
            .iter()
            .filter(|(_, command)| command.deadline_ms <= now)
            .map(|(id, command)| (id, command.touched))
            .collect();
        for (id, touched) in late {
            // An earlier one of them may have let this one finish.
            if self.commands.get(id).is_some_and(|command| command.deadline_ms <= now) {
                self.give_up(id, if touched { DeviceError::TimedOut } else { DeviceError::Busy });
            }
        }
    }

    /// The volume is being deleted: nothing new is begun.
    pub(super) fn refuse_waiting(&mut self) {
        while let Some(id) = self.deferred.front().copied() {
            self.give_up(id, DeviceError::Gone);
        }
        while let Some(id) = self.zeroing.first().copied() {
            self.give_up(id, DeviceError::Gone);
        }
    }

    /// Answers everything.
    pub(super) fn fail_all(&mut self, error: &DeviceError) {
        let tags: Vec<u64> = self.commands.drain().map(|command| command.tag).collect();
        for tag in tags {
            self.complete(tag, Err(error.clone()));
        }
        self.zeroing.clear();
        self.deferred.clear();
        self.flush_waiting.clear();
        self.grants.forget_all();
        self.flush = None;
        self.stop_draining(error);
        self.end_hand_over(error);
    }
}

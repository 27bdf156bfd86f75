//! Commands: checked, split into operations at extents and partial blocks, joined, answered.
//!
//! A command that zeroes a large range queues its operations a few at a time; until it has queued
//! the last, later commands that overlap what is left stand behind it, and those that overlap them
//! behind those.

use bytes::Bytes;
use lunette_proto::limits::{BLOCK_BYTES, SCSI_TRANSFER_BYTES_MAX};
use lunette_proto::node::{Change, Durability};

use super::event::{Action, Limits, Patch, Plant};
use super::op::{Op, Origin, Phase, Work};
use super::{Owner, Stage};
use crate::device::{self, Data, DeviceError, Outcome};
use crate::layout::Run;

/// A command that is not answered yet.
#[derive(Debug)]
pub(super) struct Command {
    tag: u64,
    kind: Kind,
    /// The range of the volume that has no operations yet.
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
    Write { data: Bytes, fua: bool },
    Zero,
    Flush,
}

impl Command {
    /// Data that it keeps while it has no operations, which keep it afterwards.
    fn deferred_bytes(&self) -> u64 {
        if let Kind::Write { data, .. } = &self.kind { data.len() as u64 } else { 0 }
    }
}

impl Owner {
    pub(super) fn submit(&mut self, tag: u64, command: device::Command) {
        match self.check(&command) {
            Err(error) => self.complete(tag, Err(error)),
            Ok((offset, len)) => {
                let kind = match command {
                    device::Command::Read { .. } => Kind::Read,
                    device::Command::Write { data, fua, .. } => Kind::Write { data, fua },
                    device::Command::Zero { .. } => Kind::Zero,
                    device::Command::Flush => Kind::Flush,
                    device::Command::CompareAndWrite { .. }
                    | device::Command::Or { .. }
                    | device::Command::Mapping { .. } => {
                        return self.complete(tag, Err(DeviceError::Invalid));
                    }
                };
                let id = self.commands.insert(Command {
                    tag,
                    kind,
                    at: offset,
                    end: offset + len,
                    outstanding: 0,
                    parts: Data::new(),
                    error: None,
                    touched: false,
                    deadline_ms: self.now + self.config.limits.wait_ms,
                });
                self.queue(id);
            }
        }
    }

    /// The range of a command that may be taken.
    fn check(&self, command: &device::Command) -> Result<(u64, u64), DeviceError> {
        match &self.stage {
            Stage::Stopped(error) => return Err(error.clone()),
            Stage::Serving if !self.view.deleting => {}
            Stage::Serving | Stage::Purging(_) | Stage::Purged => return Err(DeviceError::Gone),
        }
        let (offset, len, len_max) = match command {
            device::Command::Read { offset, len } => {
                (*offset, u64::from(*len), SCSI_TRANSFER_BYTES_MAX.into())
            }
            device::Command::Write { offset, data, .. } => {
                (*offset, data.len() as u64, SCSI_TRANSFER_BYTES_MAX.into())
            }
            device::Command::Zero { offset, len } => (*offset, *len, u64::MAX),
            device::Command::Flush => return self.has_room(0).map(|()| (0, 0)),
            device::Command::CompareAndWrite { .. }
            | device::Command::Or { .. }
            | device::Command::Mapping { .. } => return Err(DeviceError::Invalid),
        };
        let block = u64::from(self.config.block_bytes);
        if len == 0 || len > len_max || !offset.is_multiple_of(block) || !len.is_multiple_of(block) {
            return Err(DeviceError::Invalid);
        }
        if offset.checked_add(len).is_none_or(|end| end > self.view.size_bytes) {
            return Err(DeviceError::OutOfRange);
        }
        let held = if let device::Command::Write { .. } = command { len } else { 0 };
        self.has_room(held).map(|()| (offset, len))
    }

    fn has_room(&self, bytes: u64) -> Result<(), DeviceError> {
        let Limits { operations_max, bytes_max, .. } = self.config.limits;
        let queued = self.ops.len() + self.commands.len();
        let fits = queued < operations_max && self.held_bytes + bytes <= bytes_max;
        if fits { Ok(()) } else { Err(DeviceError::Busy) }
    }

    fn queue(&mut self, id: usize) {
        if let Kind::Flush = self.commands[id].kind {
            return self.queue_flush(id);
        }
        if self.is_behind(id, self.deferred.len()) {
            self.held_bytes += self.commands[id].deferred_bytes();
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
                let mut done = 0;
                for run in self.config.layout.runs(at, end - at) {
                    match &kind {
                        Kind::Write { data, fua } => {
                            let taken = done + run.len as usize;
                            let durability = self.durability(*fua);
                            self.add_changes(id, run, Some(data.slice(done..taken)), durability);
                            done = taken;
                        }
                        Kind::Read | Kind::Zero | Kind::Flush => self.add_read(id, run),
                    }
                }
                self.part_done(id, None, Ok(Bytes::new()));
            }
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
                self.held_bytes -= self.commands[id].deferred_bytes();
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

    /// Whole blocks become one operation; a block that is changed in part is read and patched.
    fn add_changes(&mut self, command: usize, run: Run, data: Option<Bytes>, durability: Durability) {
        let end = run.offset + run.len;
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
                let patch = slice.map_or(Patch::Zeros((next - at) as usize), Patch::Data);
                (block, BLOCK_BYTES, Work::Modify { at: at - block, patch })
            };
            self.add_part(command, run.extent, offset, len, work, durability);
            at = next;
        }
    }

    fn add_part(
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
        if let Work::Read { .. } = work {
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
        let (blocks, exclusive) = (op.blocks(), op.is_exclusive() && !self.planted(Plant::NoHazardLock));
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
            let command = self.commands.remove(id);
            let outcome = command.error.map_or(Ok(command.parts), Err);
            self.complete(command.tag, outcome);
            self.purge_if_idle();
        }
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
            self.held_bytes -= command.deferred_bytes();
        }
        self.forget_flush(id);
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
        self.flush = None;
        self.stop_draining(error);
    }
}

//! SCSI commands of a session, from the command's PDU to its status.
//!
//! ```text
//! command -> Task::start -+-> collect Data-Out (R2T) -> Task::data_out -+
//!                         +-> device -> Task::completed ----------------+-> Data-In, status
//! ```
//!
//! What a unit keeps is changed in `changes.rs`. A copy also has commands for the devices of other logical units of the target, one at a time.
//!
//! Memory is reserved before an R2T is sent or a read submitted, and given back when the command
//! has been answered; commands that find no room wait at the gate, in order.

use std::sync::Arc;

use bytes::Bytes;
use lunette_proto::ids::VolumeId;
use lunette_proto::iscsi::codes::reject;
use lunette_proto::iscsi::initiator::{DataOut, ScsiCommand};
use lunette_proto::iscsi::target::R2t;
use lunette_proto::iscsi::{Ahs, Pdu, Serial, TAG_NONE};
use lunette_proto::limits::BLOCK_BYTES;
use lunette_volume::device::{Command, Data, Outcome};
use smallvec::SmallVec;

use super::connection::Io;
use super::data_out::{Collector, Violation};
use super::full::Session;
use super::permission::device;
use super::stats::count;
use super::transmit::{Ending, StatSn};
use super::{Action, SESSION_BYTES_MAX, TASKS_MAX};
use crate::scsi::lun::{Address, decode};
use crate::scsi::{CHECK_CONDITION, Elsewhere, GOOD, LogicalUnit, Response, Step, Task};

/// A command in execution.
pub(super) struct Active {
    pub(super) task_tag: u32,
    pub(super) lun: u64,
    pub(super) generation: u32,
    /// Expected data transfer length, in whichever direction.
    expected: u32,
    read: bool,
    write: bool,
    pub(super) unit: Option<Arc<LogicalUnit>>,
    pub(super) task: Task,
    /// The LUN and the logical unit that its present command is for, if not `unit`.
    pub(super) elsewhere: Option<(u16, Arc<LogicalUnit>)>,
    /// Volumes that it works on and that were reset while a device had a command of it.
    cleared: Vec<VolumeId>,
    pub(super) state: State,
    /// Of the session's memory.
    reserved: u64,
    r2t_count: Serial,
    pub(super) aborted: bool,
}

pub(super) enum State {
    /// Data-Out is coming.
    Collecting(Box<Collecting>),
    /// A command waits for so much memory.
    Gated(Command, u64),
    /// A device has a command, or the unit a change.
    AtDevice,
    /// The other sessions are being told of a change.
    Telling,
    /// The unit is being sanitized, which goes on also if this command does not.
    Awaiting,
    /// The answer is being sent, or the state is being changed.
    Answering,
}

pub(super) struct Collecting {
    collector: Collector,
    /// What follows if the task does not want the data.
    then: Option<Step>,
}

impl Session {
    pub(super) fn scsi_command(&mut self, command: &ScsiCommand, pdu: Pdu, io: &mut Io) {
        let Some(view) = self.view.clone() else { return };
        if self.by_tag.contains_key(&command.task_tag) || command.task_tag == TAG_NONE {
            return self.reject(&pdu.bhs, reject::TASK_IN_PROGRESS, io);
        }
        if self.tasks.len() >= TASKS_MAX {
            return self.reject(&pdu.bhs, reject::TOO_MANY_IMMEDIATE, io);
        }
        let ahs = match Ahs::parse(&pdu.ahs) {
            Ok(ahs) if ahs.bidirectional_read_len.is_none() => ahs,
            Ok(_) => return self.reject(&pdu.bhs, reject::NOT_SUPPORTED, io),
            Err(_) => return self.reject(&pdu.bhs, reject::INVALID_FIELD, io),
        };
        count(&self.stats.commands, 1);
        let expected = if command.read || command.write { command.expected_len } else { 0 };
        let expected_out = if command.write { expected } else { 0 };
        let open = command.write && !command.is_final;
        let takes_immediate = command.write && self.settings.immediate_data();
        let unagreed = !takes_immediate && !pdu.data.is_empty() || open && self.settings.initial_r2t();
        if unagreed {
            let ending = check(command.task_tag, Violation::Unsolicited, expected, Serial(0));
            count(&self.stats.errors, 1);
            return io.transmit.respond(&ending, Serial(0));
        }
        let mut cdb: SmallVec<[u8; 32]> = SmallVec::from_slice(&command.cdb);
        cdb.extend_from_slice(ahs.extended_cdb.as_deref().unwrap_or_default());
        let (mut task, mut step) = Task::start(&view, &mut self.nexus, command.lun, &cdb);
        if let Some(refusal) = task.check_expected(expected_out) {
            step = refusal;
        }
        let want = if let Step::DataOut { len } = step { len.min(expected_out) } else { 0 };
        let unit = match decode(command.lun) {
            Address::Unit(lun) => view.luns.get(&lun).cloned(),
            Address::ReportLuns | Address::Unknown => None,
        };
        let first_burst = self.settings.first_burst_bytes();
        self.generation = self.generation.wrapping_add(1);
        let slot = self.tasks.insert(Active {
            task_tag: command.task_tag,
            lun: command.lun,
            generation: self.generation,
            expected,
            read: command.read,
            write: command.write,
            unit,
            task,
            elsewhere: None,
            cleared: Vec::new(),
            state: State::Answering,
            reserved: 0,
            r2t_count: Serial(0),
            aborted: false,
        });
        self.by_tag.insert(command.task_tag, slot);
        let Some(active) = self.tasks.get_mut(slot) else { return };
        let mut data = pdu.data;
        let collects = matches!(step, Step::DataOut { .. });
        let fits = data.len() <= first_burst.min(expected_out) as usize;
        if collects && !open && fits && data.len() >= want as usize {
            // Everything came with the command.
            count(&self.stats.written_bytes, data.len() as u64);
            data.truncate(want as usize);
            let step = active.task.data_out(data);
            return self.step(slot, step, io);
        }
        if !collects && !open {
            return self.step(slot, step, io);
        }
        count(&self.stats.written_bytes, data.len() as u64);
        let collector = Collector::new(want, expected_out, data, open, first_burst);
        let then = (!collects).then_some(step);
        active.state = State::Collecting(Box::new(Collecting { collector, then }));
        self.collect(slot, io);
    }

    pub(super) fn data_out(&mut self, data: &DataOut, pdu: Pdu, io: &mut Io) {
        // Data of a command that was aborted or has failed may still be on its way: dropped.
        let Some(&slot) = self.by_tag.get(&data.task_tag) else { return };
        let Some(active) = self.tasks.get_mut(slot) else { return };
        let State::Collecting(collecting) = &mut active.state else {
            return self.reject(&pdu.bhs, reject::PROTOCOL, io);
        };
        count(&self.stats.written_bytes, pdu.data.len() as u64);
        let collector = &mut collecting.collector;
        if data.transfer_tag == TAG_NONE {
            collector.unsolicited(data, pdu.data, pdu.data_is_sound);
        } else if !collector.solicited(data, pdu.data, pdu.data_is_sound) {
            collector.fail(Violation::Amount);
            self.reject(&pdu.bhs, reject::INVALID_FIELD, io);
        }
        self.collect(slot, io);
    }

    /// Goes on with a command that collects Data-Out, as far as it can.
    fn collect(&mut self, slot: usize, io: &mut Io) {
        let Some(active) = self.tasks.get_mut(slot) else { return };
        let State::Collecting(collecting) = &active.state else { return };
        let collector = &collecting.collector;
        if !collector.is_complete() {
            if collector.needs_asking() {
                let want = u64::from(collector.want());
                if active.reserved != 0 || self.reserve(slot, want) {
                    self.ask(slot, io);
                }
            }
            return;
        }
        let State::Collecting(collecting) = std::mem::replace(&mut active.state, State::Answering) else {
            return;
        };
        let Collecting { collector, then } = *collecting;
        active.r2t_count = collector.r2t_count();
        if let Some(violation) = collector.violation() {
            let ending = check(active.task_tag, violation, active.expected, active.r2t_count);
            count(&self.stats.errors, 1);
            io.transmit.respond(&ending, Serial(0));
            return self.answered(slot, io);
        }
        let step = match then {
            Some(step) => step,
            None => active.task.data_out(collector.finish()),
        };
        self.step(slot, step, io);
    }

    /// Sends R2Ts, as many as may be outstanding.
    fn ask(&mut self, slot: usize, io: &mut Io) {
        let (burst, outstanding_max) = (self.settings.max_burst_bytes(), self.settings.outstanding_r2t_max());
        loop {
            let transfer_tag = self.transfer_tag();
            let Some(active) = self.tasks.get_mut(slot) else { return };
            let State::Collecting(collecting) = &mut active.state else { return };
            let Some(ask) = collecting.collector.ask(transfer_tag, burst, outstanding_max) else { return };
            let r2t = R2t {
                lun: active.lun,
                task_tag: active.task_tag,
                transfer_tag,
                r2t_sn: ask.r2t_sn,
                offset: ask.offset,
                desired_len: ask.len,
            };
            io.transmit.send(r2t.encode(), Data::new(), StatSn::Show);
        }
    }

    /// Reserves memory for a command; if there is none, the command waits at the gate.
    fn reserve(&mut self, slot: usize, bytes: u64) -> bool {
        if self.gate.contains(&slot) {
            return false;
        }
        if !self.gate.is_empty() || !self.fits(bytes) {
            self.gate.push_back(slot);
            return false;
        }
        self.take_memory(slot, bytes);
        true
    }

    fn fits(&self, bytes: u64) -> bool {
        self.reserved == 0 || self.reserved + bytes <= SESSION_BYTES_MAX
    }

    fn take_memory(&mut self, slot: usize, bytes: u64) {
        if let Some(active) = self.tasks.get_mut(slot) {
            active.reserved += bytes;
            self.reserved += bytes;
        }
    }

    /// Lets commands through the gate, as far as memory reaches.
    fn open_gate(&mut self, io: &mut Io) {
        while let Some(&slot) = self.gate.front() {
            let bytes = match self.tasks.get(slot).map(|active| &active.state) {
                Some(State::Collecting(collecting)) => u64::from(collecting.collector.want()),
                Some(State::Gated(_, bytes)) => *bytes,
                _ => 0,
            };
            if !self.fits(bytes) {
                return;
            }
            self.gate.pop_front();
            self.take_memory(slot, bytes);
            let Some(active) = self.tasks.get_mut(slot) else { continue };
            match std::mem::replace(&mut active.state, State::Answering) {
                State::Gated(command, _) => self.submit(slot, command, io),
                state => {
                    active.state = state;
                    self.ask(slot, io);
                }
            }
        }
    }

    pub(super) fn step(&mut self, slot: usize, step: Step, io: &mut Io) {
        match step {
            Step::Submit(command) => {
                let bytes = cost(&command);
                self.hand_over(slot, command, bytes, None, io);
            }
            Step::Elsewhere(Elsewhere { lun, unit, command, memory_bytes }) => {
                self.hand_over(slot, command, memory_bytes, Some((lun, unit)), io);
            }
            Step::Resolve => {
                let Some(view) = self.view.clone() else { return };
                let Some(active) = self.tasks.get_mut(slot) else { return };
                let step = active.task.resolve(&view, &mut self.nexus);
                self.step(slot, step, io);
            }
            Step::Change(transition) => self.change(slot, transition, io),
            Step::Await => self.wait(slot, io),
            Step::Done(response) => self.finish(slot, response, io),
            Step::DataOut { len } => {
                let Some(active) = self.tasks.get_mut(slot) else { return };
                let want = len.min(active.expected);
                let collector = Collector::new(want, active.expected, Bytes::new(), false, 0);
                active.state = State::Collecting(Box::new(Collecting { collector, then: None }));
                self.collect(slot, io);
            }
        }
    }

    /// Submits a command once there is memory for it.
    fn hand_over(
        &mut self,
        slot: usize,
        command: Command,
        bytes: u64,
        elsewhere: Option<(u16, Arc<LogicalUnit>)>,
        io: &mut Io,
    ) {
        let Some(active) = self.tasks.get_mut(slot) else { return };
        active.elsewhere = elsewhere;
        // Who has memory goes on with it. If all who hold some waited for more, nobody would end.
        if bytes <= active.reserved || self.reserve(slot, bytes) {
            self.submit(slot, command, io);
        } else if let Some(active) = self.tasks.get_mut(slot) {
            active.state = State::Gated(command, bytes);
        }
    }

    fn submit(&mut self, slot: usize, command: Command, io: &mut Io) {
        let Some(active) = self.tasks.get_mut(slot) else { return };
        let device = match device(self.view.as_deref(), &self.nexus, active, &command) {
            Ok(device) => device,
            Err(error) => {
                let step = active.task.completed(Err(error));
                return self.step(slot, step, io);
            }
        };
        let tag = tag(slot, active.generation);
        active.state = State::AtDevice;
        self.at_devices += 1;
        io.actions.push_back(Action::Submit { device, tag, command });
    }

    /// A device has completed the command under `tag`.
    pub(super) fn complete(&mut self, tag: u64, outcome: Outcome, io: &mut Io) {
        let slot = (tag & u64::from(u32::MAX)) as usize;
        let Some(active) = self.tasks.get_mut(slot) else { return };
        if self::tag(slot, active.generation) != tag || !matches!(active.state, State::AtDevice) {
            return;
        }
        self.at_devices -= 1;
        active.state = State::Answering;
        if active.aborted {
            self.answered(slot, io);
            self.function_waits_over(tag);
            return self.settle(io);
        }
        if !active.cleared.is_empty() {
            let volumes = std::mem::take(&mut active.cleared);
            let step = active.task.cleared(&volumes);
            self.step(slot, step, io);
            self.function_waits_over(tag);
            return self.settle(io);
        }
        let step = active.task.completed(outcome);
        self.step(slot, step, io);
    }

    /// Sends a command's status, and before it what it read.
    fn finish(&mut self, slot: usize, response: Response, io: &mut Io) {
        let Some(active) = self.tasks.get_mut(slot) else { return };
        active.state = State::Answering;
        let expected = u64::from(active.expected);
        let data_len: usize = response.data_in.iter().map(Bytes::len).sum();
        // Of data that goes the other way than the PDU says nothing moves, whatever the lengths are.
        let agrees = expected == 0 || if data_len > 0 { active.read } else { active.write };
        let transfer_len = if agrees { response.transfer_len } else { 0 };
        let difference = transfer_len.abs_diff(expected);
        let mut ending = Ending {
            task_tag: active.task_tag,
            status: response.status,
            sense: response.sense,
            overflow: transfer_len > expected,
            underflow: transfer_len < expected,
            residual: u32::try_from(difference).unwrap_or(u32::MAX),
            r2t_count: active.r2t_count,
        };
        if response.status != GOOD {
            count(&self.stats.errors, 1);
            if response.status != CHECK_CONDITION {
                ending.sense = Bytes::new();
            }
        }
        let room = if active.read { active.expected } else { 0 };
        let len = u32::try_from(data_len).unwrap_or(u32::MAX).min(room);
        if len == 0 {
            io.transmit.respond(&ending, Serial(0));
            self.answered(slot, io);
        } else {
            count(&self.stats.read_bytes, u64::from(len));
            io.transmit.read(slot, response.data_in, len, ending);
        }
    }

    /// A command is over: its slot and its memory are free.
    pub(super) fn answered(&mut self, slot: usize, io: &mut Io) {
        self.free(slot);
        self.open_gate(io);
        self.stop_if_idle(io);
    }

    fn free(&mut self, slot: usize) {
        let Some(active) = self.tasks.try_remove(slot) else { return };
        self.reserved -= active.reserved;
        if self.by_tag.get(&active.task_tag) == Some(&slot) {
            self.by_tag.remove(&active.task_tag);
        }
        self.gate.retain(|gated| *gated != slot);
    }

    /// Aborts the tasks for which `which` says so, without a response. Those that devices have are
    /// not over yet: gives their tags.
    pub(super) fn abort(&mut self, io: &mut Io, mut which: impl FnMut(&Active) -> bool) -> Vec<u64> {
        let slots: Vec<usize> =
            self.tasks.iter().filter(|(_, active)| which(active)).map(|(slot, _)| slot).collect();
        let mut waits = Vec::new();
        for slot in slots {
            let Some(active) = self.tasks.get_mut(slot) else { continue };
            if matches!(active.state, State::AtDevice) {
                active.aborted = true;
                waits.push(tag(slot, active.generation));
                // Its tag may be used again once the function has been answered.
                if self.by_tag.get(&active.task_tag) == Some(&slot) {
                    self.by_tag.remove(&active.task_tag);
                }
            } else {
                io.transmit.cancel(slot);
                self.free(slot);
            }
        }
        self.open_gate(io);
        waits
    }

    /// Ends commands that work on these volumes without having been sent to them, with an error, since
    /// nobody tells their initiator otherwise. Those that devices have are not over yet: gives their tags.
    pub(super) fn clear_elsewhere(&mut self, volumes: &[VolumeId], io: &mut Io) -> Vec<u64> {
        let works_there = |active: &Active| !active.aborted && active.task.works_on(volumes);
        let slots: Vec<usize> =
            self.tasks.iter().filter(|(_, active)| works_there(active)).map(|(slot, _)| slot).collect();
        let mut waits = Vec::new();
        for slot in slots {
            let Some(active) = self.tasks.get_mut(slot) else { continue };
            if matches!(active.state, State::AtDevice) {
                active.cleared.extend(volumes);
                waits.push(tag(slot, active.generation));
            } else {
                self.gate.retain(|gated| *gated != slot);
                let step = active.task.cleared(volumes);
                self.step(slot, step, io);
            }
        }
        waits
    }

    /// Aborts everything; what is queued for sending is the caller's to drop.
    pub(super) fn abort_all(&mut self, io: &mut Io) -> Vec<u64> {
        self.window.drop_held(|_| true);
        self.gate.clear();
        self.abort(io, |_| true)
    }

    /// Aborts what no device has and no answer is on its way for.
    pub(super) fn abort_unstarted(&mut self, io: &mut Io) {
        self.window.drop_held(|_| true);
        self.gate.clear();
        self.abort(io, |active| matches!(active.state, State::Collecting(_) | State::Gated(..)));
    }
}

pub(super) fn tag(slot: usize, generation: u32) -> u64 {
    // There are at most TASKS_MAX slots.
    u64::from(generation) << 32 | slot as u64
}

/// Memory that a device's answer will take. Data of writes is reserved with its buffer.
fn cost(command: &Command) -> u64 {
    match command {
        Command::Read { len, .. } => u64::from(*len),
        Command::Mapping { len, .. } => len.div_ceil(BLOCK_BYTES.into()),
        Command::Write { .. }
        | Command::WriteAtomic { .. }
        | Command::Zero { .. }
        | Command::Flush
        | Command::CompareAndWrite { .. }
        | Command::Or { .. } => 0,
    }
}

/// CHECK CONDITION for what went wrong below SCSI (RFC 7143 11.4.7.2): ABORTED COMMAND, in fixed
/// format, for the logical unit had no part in it.
fn check(task_tag: u32, violation: Violation, expected: u32, r2t_count: Serial) -> Ending {
    let (asc, ascq) = match violation {
        Violation::Unsolicited => (0x0c, 0x0c),
        Violation::Amount => (0x0c, 0x0d),
        Violation::Crc => (0x47, 0x05),
    };
    let sense = [0x70, 0, 0x0b, 0, 0, 0, 0, 10, 0, 0, 0, 0, asc, ascq, 0, 0, 0, 0];
    Ending {
        task_tag,
        status: CHECK_CONDITION,
        sense: Bytes::copy_from_slice(&sense),
        overflow: false,
        underflow: expected != 0,
        residual: expected,
        r2t_count,
    }
}

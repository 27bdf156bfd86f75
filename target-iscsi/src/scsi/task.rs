//! One command in execution.

use std::sync::Arc;

use bytes::Bytes;
use lunette_proto::ids::VolumeId;
use lunette_volume::device::{Command, Data, DeviceError, Outcome};

use super::cdb::Cdb;
use super::compare_and_write::CompareAndWrite;
use super::copy::Copy;
use super::lba_status::LbaStatus;
use super::lun::{self, Address};
use super::mode::ModeSelect;
use super::provisioning::{Unmap, WriteSame};
use super::read_write::{Read, Write};
use super::request::{Answer, Plan, Request};
use super::reservation::{Access, ReserveOut};
use super::sanitize::SanitizeOut;
use super::sense::{Failure, Sense, SenseFormat};
use super::unit::{Modes, Settled, Transition};
use super::verify::Verify;
use super::write_verify::WriteVerify;
use super::{LogicalUnit, Nexus, TargetView, inquiry, ports, report_luns, request_sense, table};

/// GOOD (SAM-5 5.3.1).
pub const GOOD: u8 = 0x00;
/// CHECK CONDITION: sense data says why.
pub const CHECK_CONDITION: u8 = 0x02;
/// BUSY: nothing happened, the initiator tries again.
pub const BUSY: u8 = 0x08;
/// RESERVATION CONFLICT: nothing happened, for the unit is reserved for another nexus.
pub const RESERVATION_CONFLICT: u8 = 0x18;
/// TASK ABORTED: by what another nexus did.
pub(super) const TASK_ABORTED: u8 = 0x40;

/// What a task wants next.
#[derive(Debug)]
pub enum Step {
    /// Collect Data-Out: the CDB asks for `len` bytes. The session calls [`Task::data_out`] with what
    /// the initiator really sends: min(`len`, expected data transfer length).
    DataOut {
        /// Bytes that the CDB asks for, not 0.
        len: u32,
    },
    /// Submit to the logical unit's device; then call [`Task::completed`].
    Submit(Command),
    /// Submit to the device of another logical unit, if the nexus may do that to it at this moment; then
    /// call [`Task::completed`], with [`DeviceError::Gone`]
    /// if it may not.
    Elsewhere(Elsewhere),
    /// The command names logical units: call [`Task::resolve`] with what the nexus sees now.
    Resolve,
    /// Change what the logical unit keeps ([`SharedUnit::change`](super::SharedUnit::change)), tell the other sessions,
    /// and when they have done what follows from it call [`Task::settled`].
    Change(Box<dyn Transition>),
    /// Wait until the logical unit has been sanitized ([`SharedUnit::when_sanitized`](super::SharedUnit::when_sanitized)),
    /// then call [`Task::settled`]. It takes long, and who is aborted does not wait for it.
    Await,
    /// The end.
    Done(Response),
}

/// A command for the device of a logical unit that the task was not sent to.
#[derive(Clone)]
pub struct Elsewhere {
    /// Where the target shows it.
    pub lun: u16,
    /// Which.
    pub unit: Arc<LogicalUnit>,
    /// What.
    pub command: Command,
    /// Memory that the task needs from now on, all in all.
    pub memory_bytes: u64,
}

impl std::fmt::Debug for Elsewhere {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { lun, unit, command, memory_bytes } = self;
        f.debug_struct("Elsewhere")
            .field("lun", lun)
            .field("volume", &unit.volume)
            .field("command", command)
            .field("memory_bytes", memory_bytes)
            .finish()
    }
}

/// The end of a command.
#[derive(Clone, Debug)]
pub struct Response {
    /// SAM-5 5.3.
    pub status: u8,
    /// Sense data in the format that the Control mode page asks for; empty unless CHECK CONDITION.
    pub sense: Bytes,
    /// Data-In, already cut to the allocation length of the CDB (not to the expected length).
    pub data_in: Data,
    /// Bytes that the CDB would transfer in its direction: the session computes the residual from
    /// this and the expected data transfer length (RFC 7143 11.4.5.1, 11.4.5.2). 0 with an error.
    pub transfer_len: u64,
}

/// A command in execution. Dropping it abandons the command; what the device was given still happens.
pub struct Task {
    job: Job,
    format: SenseFormat,
    block_bytes: u32,
    access: Access,
    /// A part of the command has changed the medium, so it has not failed without effect any more.
    changed: bool,
    opcode: u8,
    service_action: u8,
}

/// What is left to do of a command that one answer does not end.
pub(super) enum Job {
    Ended,
    Read(Read),
    Write(Write),
    WriteVerify(WriteVerify),
    CompareAndWrite(CompareAndWrite),
    Flush,
    Unmap(Unmap),
    WriteSame(WriteSame),
    Verify(Verify),
    LbaStatus(LbaStatus),
    ModeSelect(ModeSelect),
    Copy(Box<Copy>),
    ReserveOut(ReserveOut),
    Sanitize(SanitizeOut),
}

/// How a job goes on.
pub(super) enum Progress {
    Submit(Command),
    Elsewhere(Elsewhere),
    Resolve,
    Change(Box<dyn Transition>),
    /// Until the unit has been sanitized.
    Await,
    /// GOOD, with Data-In and the length of the transfer that the CDB names.
    Done(Data, u64),
}

impl Task {
    /// Starts a command on `lun` (the 8-byte SAM LUN of the PDU) of what the nexus sees. `cdb` is
    /// what the initiator sent, 16 bytes or more with an extended CDB.
    pub fn start(view: &TargetView, nexus: &mut Nexus, lun: u64, cdb: &[u8]) -> (Self, Step) {
        let cdb = Cdb::new(cdb);
        let mut task = Self {
            job: Job::Ended,
            format: SenseFormat::Fixed,
            block_bytes: 0,
            access: Access::Always,
            changed: false,
            opcode: cdb.opcode(),
            service_action: cdb.service_action(),
        };
        let answer = task.dispatch(view, nexus, lun::decode(lun), &cdb);
        let step = match answer {
            Ok(Plan::Good) => good(Data::new(), 0),
            Ok(Plan::Data(bytes)) => {
                let len = bytes.len() as u64;
                good(Data::from_iter(Some(bytes).filter(|bytes| !bytes.is_empty())), len)
            }
            Ok(Plan::Submit(job, command)) => {
                task.job = job;
                Step::Submit(command)
            }
            Ok(Plan::Change(job, transition)) => {
                task.job = job;
                Step::Change(transition)
            }
            Ok(Plan::Collect(job, len)) => {
                task.job = job;
                if len == 0 { good(Data::new(), 0) } else { Step::DataOut { len } }
            }
            Err(failure) => task.fail(failure),
        };
        (task, step)
    }

    /// Before the first step is taken: whether the expected length of Data-Out suits the command. Another first step,
    /// the end, if it does not: WRITE SAME takes exactly one block (SBC-3 5.43), COMPARE AND WRITE exactly two
    /// halves, and what is written as a whole is not cut short. Other commands take what comes, and the residual says
    /// the rest.
    pub fn check_expected(&mut self, expected_len: u32) -> Option<Step> {
        let refusal = match &self.job {
            Job::Write(write) => write.refuses(expected_len),
            Job::CompareAndWrite(compare) => compare.refuses(expected_len),
            Job::WriteSame(write_same) => write_same.refuses(expected_len),
            _ => None,
        }?;
        self.job = Job::Ended;
        Some(self.fail(refusal.into()))
    }

    /// The Data-Out that arrived.
    pub fn data_out(&mut self, data: Bytes) -> Step {
        let progress = match &mut self.job {
            Job::Write(write) => write.data_out(data),
            Job::WriteVerify(write) => write.data_out(data),
            Job::CompareAndWrite(compare) => compare.data_out(data),
            Job::Unmap(unmap) => unmap.data_out(&data),
            Job::WriteSame(write_same) => write_same.data_out(&data),
            Job::Verify(verify) => verify.data_out(data),
            Job::ModeSelect(select) => select.data_out(&data),
            Job::Copy(copy) => copy.data_out(&data),
            Job::ReserveOut(out) => out.data_out(&data),
            Job::Sanitize(sanitize) => sanitize.data_out(&data),
            // The session sent what no step asked for.
            Job::Ended | Job::Read(_) | Job::Flush | Job::LbaStatus(_) => Err(Sense::INTERNAL_FAILURE.into()),
        };
        self.go_on(progress)
    }

    /// What came of the command that [`Step::Submit`] named.
    pub fn completed(&mut self, outcome: Outcome) -> Step {
        if let Job::Copy(copy) = &mut self.job {
            let progress = copy.completed(outcome);
            return self.go_on(progress);
        }
        let progress = match outcome {
            // That a volume is gone is ILLEGAL REQUEST, which says as well that nothing was changed.
            Err(error) if self.changed && (error.is_definite() || error == DeviceError::Gone) => {
                Err(Sense::PARTLY_DONE.into())
            }
            Err(error) => Err(Failure::of_device(&error, self.block_bytes)),
            Ok(data) => match &mut self.job {
                Job::Read(read) => read.completed(data),
                Job::Write(write) => Ok(write.completed()),
                Job::WriteVerify(write) => {
                    self.changed = true;
                    write.completed(&data)
                }
                Job::CompareAndWrite(compare) => Ok(compare.completed()),
                Job::Flush => Ok(Progress::Done(Data::new(), 0)),
                Job::Unmap(unmap) => {
                    self.changed = true;
                    Ok(unmap.next())
                }
                Job::WriteSame(write_same) => {
                    self.changed = true;
                    Ok(write_same.next())
                }
                Job::Verify(verify) => verify.completed(&data),
                Job::LbaStatus(status) => status.completed(&data),
                Job::Ended | Job::ModeSelect(_) | Job::Copy(_) | Job::ReserveOut(_) | Job::Sanitize(_) => {
                    Err(Sense::INTERNAL_FAILURE.into())
                }
            },
        };
        self.go_on(progress)
    }

    /// What came of the change that [`Step::Change`] named, or of what [`Step::Await`] waited for.
    pub fn settled(&mut self, settled: Settled) -> Step {
        let progress = match (settled, &mut self.job) {
            (Err(refusal), _) => Err(refusal.0),
            (Ok(_), Job::ReserveOut(out)) => Ok(Progress::Done(Data::new(), out.list_len())),
            (Ok(_), Job::ModeSelect(select)) => Ok(select.settled()),
            (Ok(_), Job::Sanitize(sanitize)) => Ok(sanitize.settled()),
            (Ok(_), _) => Err(Sense::INTERNAL_FAILURE.into()),
        };
        self.go_on(progress)
    }

    /// After [`Step::Resolve`].
    pub fn resolve(&mut self, view: &TargetView, nexus: &mut Nexus) -> Step {
        let progress = match &mut self.job {
            Job::Copy(copy) => copy.resolve(view, nexus),
            _ => Err(Sense::INTERNAL_FAILURE.into()),
        };
        self.go_on(progress)
    }

    /// Whether no reservation of its logical unit forbids the command now.
    #[must_use]
    pub fn is_allowed(&self, nexus: &Nexus, unit: &LogicalUnit) -> bool {
        unit.shared.allows(nexus.id(), self.access)
    }

    /// Whether commands of this task go to one of these volumes, which it was not sent to.
    #[must_use]
    pub fn works_on(&self, volumes: &[VolumeId]) -> bool {
        matches!(&self.job, Job::Copy(copy) if copy.works_on(volumes))
    }

    /// These volumes, which the task works on, were reset or their task sets cleared, and no device has
    /// a command of the task: the end of it.
    pub fn cleared(&mut self, volumes: &[VolumeId]) -> Step {
        let failure = match &mut self.job {
            Job::Copy(copy) => copy.cleared(volumes),
            _ => Sense::INTERNAL_FAILURE.into(),
        };
        self.go_on(Err(failure))
    }

    /// The command's name, for logs.
    #[must_use]
    pub fn name(&self) -> &'static str {
        table::name(self.opcode, self.service_action)
    }

    fn dispatch(&mut self, view: &TargetView, nexus: &mut Nexus, address: Address, cdb: &Cdb) -> Answer {
        let lun = match address {
            Address::Unit(lun) => lun,
            Address::ReportLuns => return well_known(view, nexus, cdb),
            Address::Unknown => return absent(view, nexus, None, cdb),
        };
        let Some(unit) = view.luns.get(&lun) else {
            return absent(view, nexus, Some(lun), cdb);
        };
        self.block_bytes = unit.block_bytes;
        let state = nexus.unit_of(lun, &unit.shared);
        self.format = unit.shared.modes.sense_format();
        if !table::asks_for_access(cdb) {
            state.check_access(|| ports::readiness(view, unit));
        }
        if !table::precedes_attention(cdb.opcode())
            && let Some(attention) = state.take()
        {
            return Err(attention.sense().into());
        }
        let row = table::find(cdb)?;
        self.access = row.access(cdb);
        if !unit.shared.allows(nexus.id(), self.access) {
            return Err(Failure::Conflict);
        }
        if let Some(sense) = unit.shared.sanitize_sense()
            && !table::precedes_attention(row.opcode)
            && !(row.opcode == table::SANITIZE && sense == Sense::SANITIZE_FAILED)
        {
            return Err(sense.into());
        }
        if row.only_active
            && let Some(sense) = ports::not_owner(view, unit)
        {
            return Err(sense.into());
        }
        if row.writes {
            if unit.read_only {
                return Err(Sense::WRITE_PROTECTED.into());
            }
            if unit.shared.modes.load() & Modes::SWP != 0 {
                return Err(Sense::SOFTWARE_WRITE_PROTECTED.into());
            }
        }
        let answer = (row.handler)(&mut Request { view, unit, lun, nexus, cdb });
        match &answer {
            Ok(Plan::Submit(job, _)) => unit.shared.statistics.count(job, 0),
            Ok(Plan::Collect(job, len)) => unit.shared.statistics.count(job, *len),
            _ => {}
        }
        answer
    }

    fn go_on(&mut self, progress: Result<Progress, Failure>) -> Step {
        match progress {
            Ok(Progress::Submit(command)) => Step::Submit(command),
            Ok(Progress::Elsewhere(elsewhere)) => Step::Elsewhere(elsewhere),
            Ok(Progress::Resolve) => Step::Resolve,
            Ok(Progress::Change(transition)) => Step::Change(transition),
            Ok(Progress::Await) => Step::Await,
            Ok(Progress::Done(data, transfer_len)) => {
                self.job = Job::Ended;
                good(data, transfer_len)
            }
            Err(failure) => {
                self.job = Job::Ended;
                self.fail(failure)
            }
        }
    }

    #[cold]
    fn fail(&self, failure: Failure) -> Step {
        tracing::debug!(command = self.name(), ?failure, "command failed");
        let (status, sense) = match failure {
            Failure::Check(sense) => (CHECK_CONDITION, sense.encode(self.format)),
            Failure::Busy => (BUSY, Bytes::new()),
            Failure::Copy(aborted) => (CHECK_CONDITION, aborted.encode(self.format)),
            Failure::Conflict => (RESERVATION_CONFLICT, Bytes::new()),
        };
        Step::Done(Response { status, sense, data_in: Data::new(), transfer_len: 0 })
    }
}

/// The REPORT LUNS well-known logical unit (SPC-4 8.2): four commands.
fn well_known(view: &TargetView, nexus: &mut Nexus, cdb: &Cdb) -> Answer {
    let row = table::find(cdb)?;
    match row.opcode {
        table::TEST_UNIT_READY => Ok(Plan::Good),
        table::INQUIRY => inquiry::well_known(view, cdb),
        table::REPORT_LUNS => report_luns::report(view, nexus, cdb),
        table::REQUEST_SENSE => request_sense::report(cdb, Sense::NO_SENSE),
        _ => Err(Sense::INVALID_OPCODE.into()),
    }
}

/// A logical unit that does not exist (SAM-5: incorrect logical unit numbers). LUN 0 answers
/// REPORT LUNS all the same, or nobody could find the others.
fn absent(view: &TargetView, nexus: &mut Nexus, lun: Option<u16>, cdb: &Cdb) -> Answer {
    match cdb.opcode() {
        table::INQUIRY => {
            table::find(cdb)?;
            inquiry::absent(cdb)
        }
        table::REPORT_LUNS if lun == Some(0) => {
            table::find(cdb)?;
            report_luns::report(view, nexus, cdb)
        }
        table::REQUEST_SENSE => {
            table::find(cdb)?;
            request_sense::report(cdb, Sense::LUN_NOT_SUPPORTED)
        }
        _ => Err(Sense::LUN_NOT_SUPPORTED.into()),
    }
}

fn good(data_in: Data, transfer_len: u64) -> Step {
    Step::Done(Response { status: GOOD, sense: Bytes::new(), data_in, transfer_len })
}

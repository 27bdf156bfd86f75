//! SANITIZE (SBC-3 4.11, 5.24): everything that was ever written to the unit becomes unreadable through any of its ports.
//!
//! ```text
//! SANITIZE --Begin--> UnitState::sanitize --> passes, in the background --End--> gone, or failed --Exit--> gone
//! ```
//!
//! The operation is part of what the unit keeps, so that it is known to every gateway and goes on, from its beginning,
//! after a restart or a takeover: at the owner alone, by a task in the background. While it lasts the unit does nothing else; if it fails, nothing else until it is
//! begun again or, if AUSE allowed that, left.
//!
//! What becomes unreadable is what initiators can name. Old versions of blocks that a storage node has given up are
//! overwritten on its disks when their space is used again, not before.

mod passes;
mod transitions;

use lunette_proto::map::{Sanitize, SanitizeKind, UnitState};
use lunette_volume::device::Data;

pub use passes::Passes;
pub use transitions::Ended;

use super::request::{Answer, Plan, Request, be16};
use super::sense::{Failure, Sense};
use super::task::{Job, Progress};
use transitions::{Begin, Exit};

/// What the unit is busy with, or stuck in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// No sanitize operation.
    Clear,
    /// One goes on.
    InProgress,
    /// One has failed.
    Failed,
}

impl Condition {
    pub(super) fn of(state: &UnitState) -> Self {
        match &state.sanitize {
            None => Self::Clear,
            Some(sanitize) if sanitize.has_failed => Self::Failed,
            Some(_) => Self::InProgress,
        }
    }
}

pub(super) fn overwrite(request: &mut Request<'_>) -> Answer {
    check_reserved(request)?;
    let len = request.cdb.u16(7);
    // A header, and a pattern of one byte to one logical block.
    if len < 5 || u32::from(len) > request.unit.block_bytes + 4 {
        return Err(Sense::cdb_field(7).into());
    }
    let job = SanitizeOut { len, block_bytes: request.unit.block_bytes, ..SanitizeOut::new(request) };
    Ok(Plan::Collect(Job::Sanitize(job), len.into()))
}

pub(super) fn block_erase(request: &mut Request<'_>) -> Answer {
    no_parameters(request)?;
    let mut job = SanitizeOut::new(request);
    let begin = job.begin(SanitizeKind::BlockErase);
    Ok(Plan::Change(Job::Sanitize(job), begin))
}

pub(super) fn exit_failure_mode(request: &mut Request<'_>) -> Answer {
    no_parameters(request)?;
    let job = SanitizeOut { stage: Stage::Last, ..SanitizeOut::new(request) };
    Ok(Plan::Change(Job::Sanitize(job), Box::new(Exit)))
}

/// What is reserved must be zero here: nobody sanitizes by mistake.
fn check_reserved(request: &Request<'_>) -> Result<(), Sense> {
    if request.cdb.bit(1, 6) {
        return Err(Sense::cdb_bit(1, 6));
    }
    match (2..7).find(|byte| request.cdb.u8(usize::from(*byte)) != 0) {
        Some(byte) => Err(Sense::cdb_field(byte)),
        None => Ok(()),
    }
}

fn no_parameters(request: &Request<'_>) -> Result<(), Sense> {
    check_reserved(request)?;
    if request.cdb.u16(7) == 0 { Ok(()) } else { Err(Sense::cdb_field(7)) }
}

/// A SANITIZE in execution: until the operation has begun, or with IMMED=0 until it is over.
pub(super) struct SanitizeOut {
    unrestricted_exit: bool,
    /// PARAMETER LIST LENGTH.
    len: u16,
    block_bytes: u32,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The operation begins, and then has to be waited for.
    Begin,
    /// Nothing comes after this.
    Last,
}

impl SanitizeOut {
    fn new(request: &Request<'_>) -> Self {
        let (immediate, unrestricted_exit) = (request.cdb.bit(1, 7), request.cdb.bit(1, 5));
        let stage = if immediate { Stage::Last } else { Stage::Begin };
        Self { unrestricted_exit, len: 0, block_bytes: 0, stage }
    }

    fn begin(&mut self, kind: SanitizeKind) -> Box<Begin> {
        Box::new(Begin(Sanitize { kind, unrestricted_exit: self.unrestricted_exit, has_failed: false }))
    }

    /// The parameter list of OVERWRITE (SBC-3 5.24.2.2).
    pub(super) fn data_out(&mut self, list: &[u8]) -> Result<Progress, Failure> {
        const HEADER: usize = 4;
        let list = list.get(..usize::from(self.len)).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
        let &[flags, _, _, _, ..] = list else { return Err(Sense::PARAMETER_LIST_LENGTH.into()) };
        let (invert, test, count) = (flags & 0x80 != 0, flags >> 5 & 0x03, flags & 0x1F);
        if test != 0 {
            return Err(Sense::parameter_bit(0, 6).into());
        }
        if count == 0 {
            return Err(Sense::parameter_bit(0, 4).into());
        }
        let pattern_len = be16(list, 2).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
        if pattern_len == 0 || u32::from(pattern_len) > self.block_bytes {
            return Err(Sense::parameter_field(2).into());
        }
        let pattern = list.get(HEADER..HEADER + usize::from(pattern_len)).ok_or(Sense::parameter_field(2))?;
        let kind = SanitizeKind::Overwrite { pattern: pattern.to_vec(), count, invert };
        Ok(Progress::Change(self.begin(kind)))
    }

    /// The change was kept; or the operation that it began is over.
    pub(super) fn settled(&mut self) -> Progress {
        match self.stage {
            Stage::Begin => {
                self.stage = Stage::Last;
                Progress::Await
            }
            Stage::Last => Progress::Done(Data::new(), self.len.into()),
        }
    }
}

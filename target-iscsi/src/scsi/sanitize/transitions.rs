//! How a sanitize operation comes into what a unit keeps, and out of it.

use lunette_proto::map::{Sanitize, UnitState};

use super::super::sense::Sense;
use super::super::unit::{Decision, Proposal, Refusal, Transition};
use super::Condition;

fn keep(present: &UnitState, sanitize: Option<Sanitize>) -> Decision {
    Decision::Keep(Proposal { state: UnitState { sanitize, ..present.clone() }, notices: Vec::new() })
}

/// The operation begins.
#[derive(Debug)]
pub(super) struct Begin(pub(super) Sanitize);

impl Transition for Begin {
    fn decide(&mut self, present: &UnitState) -> Result<Decision, Refusal> {
        match &present.sanitize {
            Some(before) if !before.has_failed => Err(Refusal(Sense::sanitizing(0).into())),
            // Who failed in the restricted mode stays in it (SBC-3 4.11.5).
            Some(before) if self.0.unrestricted_exit && !before.unrestricted_exit => {
                Err(Refusal(Sense::cdb_bit(1, 5).into()))
            }
            _ => Ok(keep(present, Some(self.0.clone()))),
        }
    }
}

/// Whoever carries out an operation has come to its end.
#[derive(Debug)]
pub struct Ended {
    /// Under which revision of the state it was carried out; under another one it may be another operation, and nothing
    /// changes.
    pub revision: u64,
    /// It has failed.
    pub has_failed: bool,
}

impl Transition for Ended {
    fn decide(&mut self, present: &UnitState) -> Result<Decision, Refusal> {
        let operation = present.sanitize.as_ref().filter(|sanitize| !sanitize.has_failed);
        let Some(operation) = operation.filter(|_| present.revision == self.revision) else {
            return Ok(Decision::Nothing);
        };
        let failed = self.has_failed.then(|| Sanitize { has_failed: true, ..operation.clone() });
        Ok(keep(present, failed))
    }
}

/// EXIT FAILURE MODE.
#[derive(Debug)]
pub(super) struct Exit;

impl Transition for Exit {
    fn decide(&mut self, present: &UnitState) -> Result<Decision, Refusal> {
        match (Condition::of(present), &present.sanitize) {
            (Condition::InProgress, _) => Err(Refusal(Sense::sanitizing(0).into())),
            // Service action: this one is not for a failure that AUSE=0 went before (SBC-3 5.24.1).
            (Condition::Failed, Some(failed)) if !failed.unrestricted_exit => {
                Err(Refusal(Sense::cdb_bit(1, 4).into()))
            }
            (Condition::Failed, _) => Ok(keep(present, None)),
            (Condition::Clear, _) => Ok(Decision::Nothing),
        }
    }
}

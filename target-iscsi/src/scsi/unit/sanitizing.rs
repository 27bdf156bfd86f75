//! What a unit shows of its sanitize operation, and who waits for the end of it.

use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};

use lunette_proto::map::{Sanitize, UnitState};
use parking_lot::Mutex;

use super::changes::Done;
use super::{Refusal, Settled, SharedUnit};
use crate::scsi::sanitize::Condition;
use crate::scsi::sense::Sense;

/// See the module.
#[derive(Default)]
pub(super) struct Sanitizing {
    /// [`Condition`] as a number, for it is asked by every command.
    condition: AtomicU8,
    progress: AtomicU16,
    waiting: Mutex<Vec<Done>>,
    /// Locked while a command of the operation is given to the device, and while the operation begins or ends.
    working: Mutex<()>,
}

const CLEAR: u8 = 0;
const IN_PROGRESS: u8 = 1;
const FAILED: u8 = 2;

impl Sanitizing {
    /// A newer state is put in place.
    pub(super) fn install(&self, state: &UnitState) {
        let condition = match Condition::of(state) {
            Condition::Clear => CLEAR,
            Condition::InProgress => IN_PROGRESS,
            Condition::Failed => FAILED,
        };
        // What is given to the device before is before whatever an initiator may give it from now on.
        let _working = self.working.lock();
        let before = self.condition.swap(condition, Ordering::Relaxed);
        if before != IN_PROGRESS {
            self.progress.store(0, Ordering::Relaxed);
        }
    }
}

impl SharedUnit {
    /// Whether the unit does nothing but to sanitize itself, or nothing because that has failed.
    #[must_use]
    pub fn is_sanitizing(&self) -> bool {
        self.sanitizing.condition.load(Ordering::Relaxed) != CLEAR
    }

    /// The operation that goes on, and the revision of the state which says so. While it goes on nothing else changes the
    /// state, so another revision is another operation.
    #[must_use]
    pub fn sanitize_operation(&self) -> Option<(u64, Sanitize)> {
        let state = self.state();
        let operation = state.sanitize.clone().filter(|sanitize| !sanitize.has_failed)?;
        Some((state.revision, operation))
    }

    /// Does a step of the operation of that revision, unless it has ended: another gateway may have ended it, and what
    /// initiators have written since must not be lost. Gives whether it was done.
    pub fn sanitize_step(&self, revision: u64, step: impl FnOnce()) -> bool {
        let _working = self.sanitizing.working.lock();
        let goes_on = self.sanitizing.condition.load(Ordering::Relaxed) == IN_PROGRESS
            && self.state.load().revision == revision;
        if goes_on {
            step();
        }
        goes_on
    }

    /// How far it has come, of 65536: what REQUEST SENSE shows.
    pub fn show_sanitize_progress(&self, progress: u16) {
        self.sanitizing.progress.store(progress, Ordering::Relaxed);
    }

    /// Why a command cannot be carried out now (SBC-3 4.11.3, 4.11.5).
    pub(in crate::scsi) fn sanitize_sense(&self) -> Option<Sense> {
        match self.sanitizing.condition.load(Ordering::Relaxed) {
            CLEAR => None,
            FAILED => Some(Sense::SANITIZE_FAILED),
            _ => Some(Sense::sanitizing(self.sanitizing.progress.load(Ordering::Relaxed))),
        }
    }

    /// Calls `done` when no operation goes on any more, with what has come of it.
    pub fn when_sanitized(&self, done: Done) {
        {
            let mut waiting = self.sanitizing.waiting.lock();
            // Locked, so that whoever ends the operation sees it if it is still going on here.
            if self.sanitize_operation().is_some() {
                return waiting.push(done);
            }
        }
        done(self.sanitized());
    }

    /// The operation has come to its end, and that has been kept.
    pub fn sanitize_ended(&self) {
        let waiting = std::mem::take(&mut *self.sanitizing.waiting.lock());
        for done in waiting {
            done(self.sanitized());
        }
    }

    fn sanitized(&self) -> Settled {
        match Condition::of(&self.state()) {
            Condition::Failed => Err(Refusal(Sense::SANITIZE_FAILED.into())),
            Condition::Clear | Condition::InProgress => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards the numbers of the conditions against each other.
    #[test]
    fn conditions() {
        let sanitizing = Sanitizing::default();
        let failed = |has_failed| {
            let kind = lunette_proto::map::SanitizeKind::BlockErase;
            UnitState {
                sanitize: Some(Sanitize { kind, unrestricted_exit: false, has_failed }),
                ..UnitState::default()
            }
        };
        for (state, want) in
            [(failed(false), IN_PROGRESS), (failed(true), FAILED), (UnitState::default(), CLEAR)]
        {
            sanitizing.install(&state);
            assert_eq!(sanitizing.condition.load(Ordering::Relaxed), want);
        }
    }
}

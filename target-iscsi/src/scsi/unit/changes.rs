//! Changes of what a unit keeps: one at a time, each decided from the state that the one before has left.
//!
//! ```text
//! change() --> queue --> decide --> Devices::keep --> install --> settled
//!                          |  ^            |
//!                          |  +-- Conflict-+   the newer state has come: decide again
//!                          +--> settled        nothing to change, or refused
//! ```
//!
//! Whoever is told the outcome is told after the state is in place, and before the next change is decided. No lock is
//! held while a transition decides, while something is being kept, or while somebody is told.

use std::collections::VecDeque;
use std::sync::Arc;

use lunette_proto::map::UnitState;
use lunette_volume::device::DeviceError;
use parking_lot::Mutex;

use super::{Changed, Decision, Notice, Proposal, Refusal, Settled, SharedUnit, Transition};
use crate::exports::{Change, KeepError};
use crate::scsi::reservation::derive;
use crate::scsi::sense::{Failure, Sense};

/// Changes of one unit that wait for their turn; more are answered with BUSY.
const WAITING_MAX: usize = 64;
/// So often a change is decided again because another gateway was faster.
const TRIES_MAX: u32 = 8;

/// Told once what came of a change, from anywhere.
pub(super) type Done = Box<dyn FnOnce(Settled) + Send>;

/// The changes of a unit.
#[derive(Default)]
pub(super) struct Changes {
    waiting: VecDeque<Waiting>,
    /// Somebody sees to the queue, or waits for what is being kept.
    is_busy: bool,
    /// What was given to be kept last, and is not installed.
    proposed: Option<Arc<Proposed>>,
    asked: Asked,
}

/// How the question stands whether `proposed` is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Asked {
    /// It was answered, or given up.
    #[default]
    Over,
    /// The answer is to come.
    Waits,
    /// The answer is to come, but a map has brought what was proposed.
    Arrived,
}

pub(super) struct Waiting {
    transition: Box<dyn Transition>,
    pub(super) done: Done,
    tries: u32,
}

struct Proposed {
    notices: Vec<Notice>,
    before: Arc<UnitState>,
    after: Arc<UnitState>,
}

impl SharedUnit {
    /// Makes a change when its turn has come; then calls `done`, from anywhere.
    pub fn change(self: &Arc<Self>, transition: Box<dyn Transition>, done: Done) {
        {
            let mut changes = self.changes.lock();
            if changes.waiting.len() >= WAITING_MAX {
                drop(changes);
                return done(Err(Refusal::BUSY));
            }
            changes.waiting.push_back(Waiting { transition, done, tries: 0 });
            if std::mem::replace(&mut changes.is_busy, true) {
                return;
            }
        }
        self.run();
    }

    /// What a map says is kept. Gives what sessions are to be told, if it is news.
    pub(super) fn learn(&self, state: &Arc<UnitState>) -> Option<Arc<Changed>> {
        let mut changes = self.changes.lock();
        let before = self.state();
        if state.revision <= before.revision {
            return None;
        }
        let own = changes.proposed.take_if(|proposed| proposed.after == *state);
        self.install(Arc::clone(state));
        match own {
            // The answer is still to come, and then they are told.
            Some(proposed) if changes.asked != Asked::Over => {
                changes.proposed = Some(proposed);
                changes.asked = Asked::Arrived;
                None
            }
            // It had been given up, but had been kept all the same.
            Some(proposed) => Some(self.changed(&proposed)),
            None => {
                let notices = derive(&before.reservations, &state.reservations);
                Some(Arc::new(Changed::new(self.volume, before, Arc::clone(state), notices)))
            }
        }
    }

    /// Sees to the queue until it is empty, or something is being kept. Only who has set `is_busy` calls this.
    pub(super) fn run(self: &Arc<Self>) {
        loop {
            let (mut waiting, before) = {
                let mut changes = self.changes.lock();
                let Some(waiting) = changes.waiting.pop_front() else {
                    changes.is_busy = false;
                    return;
                };
                (waiting, self.state())
            };
            match waiting.transition.decide(&before) {
                Err(refusal) => (waiting.done)(Err(refusal)),
                Ok(Decision::Nothing) => (waiting.done)(Ok(None)),
                Ok(Decision::Modes(select)) => {
                    if !self.change_modes(waiting, select) {
                        return;
                    }
                }
                Ok(Decision::Keep(Proposal { state, notices })) => {
                    let revision = before.revision.saturating_add(1);
                    let after = Arc::new(UnitState { revision, ..state });
                    let proposed = Arc::new(Proposed { notices, before, after });
                    if !self.keep(waiting, proposed) {
                        return;
                    }
                }
            }
        }
    }

    /// Has a state kept. Gives whether the answer came at once, and the queue goes on here.
    fn keep(self: &Arc<Self>, waiting: Waiting, proposed: Arc<Proposed>) -> bool {
        let after = Arc::clone(&proposed.after);
        {
            let mut changes = self.changes.lock();
            changes.proposed = Some(Arc::clone(&proposed));
            changes.asked = Asked::Waits;
        }
        let exchange = Arc::new(Mutex::new(Exchange::Asking));
        let answer = Answer { unit: Arc::clone(self), exchange: Arc::clone(&exchange), is_given: false };
        self.devices.keep(self.volume, Change::State(after), Box::new(move |result| answer.give(result)));
        let mut state = exchange.lock();
        match std::mem::replace(&mut *state, Exchange::Over) {
            Exchange::Answered(result) => {
                drop(state);
                self.kept(waiting, proposed, result);
                true
            }
            _ => {
                *state = Exchange::Waiting(waiting, proposed);
                false
            }
        }
    }

    fn kept(&self, mut waiting: Waiting, proposed: Arc<Proposed>, result: Result<(), KeepError>) {
        let mut given_up = VecDeque::new();
        let settled = {
            let mut changes = self.changes.lock();
            let present = self.state();
            // What a map has brought was kept, whatever became of the answer.
            let has_arrived = std::mem::take(&mut changes.asked) == Asked::Arrived;
            let result = if has_arrived { Ok(()) } else { result };
            match result {
                Ok(()) => {
                    changes.proposed = None;
                    if present.revision < proposed.after.revision {
                        self.install(Arc::clone(&proposed.after));
                    }
                    Ok(Some(self.changed(&proposed)))
                }
                Err(KeepError::Conflict) => {
                    changes.proposed = None;
                    if present.revision > proposed.before.revision && waiting.tries < TRIES_MAX {
                        waiting.tries += 1;
                        changes.waiting.push_front(waiting);
                        return;
                    }
                    // The newer state is on its way, and will be there when the initiator tries again.
                    Err(Failure::Busy)
                }
                Err(KeepError::Gone) => Err(Sense::LUN_NOT_SUPPORTED.into()),
                Err(KeepError::NotOwner) => Err(Failure::of_device(&DeviceError::NotOwner, 0)),
                // It may have been kept: not BUSY, which promises that it was not.
                Err(KeepError::Unavailable(reason)) => {
                    // Those behind it have not been asked for: they need not wait as long, one after the other.
                    given_up = std::mem::take(&mut changes.waiting);
                    tracing::warn!(volume = %self.volume, reason, "a change of the logical unit is in doubt");
                    Err(Sense::COMMUNICATION_TIMEOUT.into())
                }
            }
        };
        (waiting.done)(settled.map_err(Refusal));
        for behind in given_up {
            (behind.done)(Err(Refusal::BUSY));
        }
    }

    fn changed(&self, proposed: &Proposed) -> Arc<Changed> {
        Arc::new(Changed::new(
            self.volume,
            Arc::clone(&proposed.before),
            Arc::clone(&proposed.after),
            proposed.notices.clone(),
        ))
    }
}

/// Between the one who has something kept and the answer, which may come before the question has returned.
enum Exchange {
    Asking,
    Answered(Result<(), KeepError>),
    Waiting(Waiting, Arc<Proposed>),
    Over,
}

/// Dropped without an answer, it says that there is none: nobody may wait for ever.
struct Answer {
    unit: Arc<SharedUnit>,
    exchange: Arc<Mutex<Exchange>>,
    is_given: bool,
}

impl Answer {
    fn give(mut self, result: Result<(), KeepError>) {
        self.is_given = true;
        self.pass(result);
    }

    fn pass(&self, result: Result<(), KeepError>) {
        let mut state = self.exchange.lock();
        match std::mem::replace(&mut *state, Exchange::Over) {
            Exchange::Asking => *state = Exchange::Answered(result),
            Exchange::Waiting(waiting, proposed) => {
                drop(state);
                self.unit.kept(waiting, proposed, result);
                self.unit.run();
            }
            Exchange::Answered(_) | Exchange::Over => {}
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if !self.is_given {
            self.pass(Err(KeepError::Unavailable("the question was dropped".into())));
        }
    }
}

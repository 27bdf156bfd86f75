//! Commands that change what a logical unit keeps, and changes that others have made.
//!
//! ```text
//! Step::Change -> Action::Change -> Event::Settled -+-> Action::Tell -> the other sessions: Event::Changed
//!                                                   |                         | drop their tickets
//!                                                   +-----------> told <------+ Event::PeersQuiesced
//! ```
//!
//! The command is answered when it is told: by then the change is in force, unit attentions are established in the
//! other sessions, and tasks that it aborts are over. A command that is aborted meanwhile is not answered, but what it
//! has changed stays changed, and is told.

use std::sync::Arc;

use super::connection::Io;
use super::full::Session;
use super::permission::shows;
use super::task_management::Function;
use super::tasks::{Active, State, tag as tag_of};
use super::{Action, Ticket};
use crate::scsi::lun::{Address, decode};
use crate::scsi::{Changed, LogicalUnit, Refusal, Scope, Settled, Transition};

impl Session {
    pub(super) fn change(&mut self, slot: usize, transition: Box<dyn Transition>, io: &mut Io) {
        let Some(active) = self.tasks.get_mut(slot) else { return };
        let is_shown = |unit: &&Arc<LogicalUnit>| match (&self.view, decode(active.lun)) {
            (Some(view), Address::Unit(lun)) => shows(view, lun, unit, false),
            _ => false,
        };
        let unit = active.unit.as_ref().filter(is_shown);
        let Some(unit) = unit.map(|unit| Arc::clone(&unit.shared)) else {
            let step = active.task.settled(Err(Refusal::BUSY));
            return self.step(slot, step, io);
        };
        let tag = tag_of(slot, active.generation);
        active.state = State::AtDevice;
        self.at_devices += 1;
        io.actions.push_back(Action::Change { unit, tag, transition });
    }

    /// Nothing but the unit is waited for: who aborts the command, or ends the session, does not wait.
    pub(super) fn wait(&mut self, slot: usize, io: &mut Io) {
        let Some(active) = self.tasks.get_mut(slot) else { return };
        let Some(unit) = active.unit.as_ref().map(|unit| Arc::clone(&unit.shared)) else {
            let step = active.task.settled(Err(Refusal::BUSY));
            return self.step(slot, step, io);
        };
        active.state = State::Awaiting;
        io.actions.push_back(Action::Await { unit, tag: tag_of(slot, active.generation) });
    }

    /// The change under `tag` was made, or refused; or what was waited for is over. The command is answered when the other sessions know of it.
    pub(super) fn settled(&mut self, tag: u64, settled: Settled, io: &mut Io) {
        let slot = (tag & u64::from(u32::MAX)) as usize;
        let Some(active) = self.tasks.get_mut(slot) else { return };
        if tag_of(slot, active.generation) != tag {
            return;
        }
        if matches!(active.state, State::Awaiting) {
            active.state = State::Answering;
            let step = active.task.settled(settled);
            return self.step(slot, step, io);
        }
        if !matches!(active.state, State::AtDevice) {
            return;
        }
        self.at_devices -= 1;
        active.state = State::Telling;
        let was_aborted = active.aborted;
        let changed = settled.as_ref().ok().and_then(Option::as_ref);
        let told = changed.filter(|changed| changed.concerns_anyone()).map(Arc::clone);
        let mut waits = Vec::new();
        let mut token = None;
        if let Some(changed) = told {
            if changed.notice(self.nexus.id()).is_some_and(|notice| notice.aborted) {
                // A nexus may preempt itself: its other tasks are aborted, too.
                let is_other = |active: &Active| tag_of(slot, active.generation) != tag;
                let volume = changed.volume;
                waits = self.abort(io, |active| {
                    is_other(active) && active.unit.as_ref().is_some_and(|unit| unit.volume == volume)
                });
                waits.extend(self.clear_elsewhere(&[volume], io));
            }
            token = Some(self.token());
            io.actions.extend(token.map(|token| Action::Tell { token, changed }));
        }
        if was_aborted {
            self.answered(slot, io);
            self.function_waits_over(tag);
            return self.settle(io);
        }
        match token {
            Some(token) => self.begin(Function::command(tag, settled, waits, token), io),
            None => self.told(tag, settled, io),
        }
    }

    /// Everybody knows of the change under `tag`.
    pub(super) fn told(&mut self, tag: u64, settled: Settled, io: &mut Io) {
        let slot = (tag & u64::from(u32::MAX)) as usize;
        let Some(active) = self.tasks.get_mut(slot) else { return };
        if tag_of(slot, active.generation) == tag && matches!(active.state, State::Telling) {
            active.state = State::Answering;
            let step = active.task.settled(settled);
            self.step(slot, step, io);
        }
    }

    /// Another session, or gateway, has changed what a unit keeps.
    pub(super) fn changed_by_peer(&mut self, changed: &Changed, ticket: Option<Ticket>, io: &mut Io) {
        let notice = changed.notice(self.nexus.id());
        let attention = changed.everyone.or_else(|| notice?.attention);
        let units = self.view.iter().flat_map(|view| &view.luns);
        let luns = units.filter(|(_, unit)| unit.volume == changed.volume).map(|(lun, _)| *lun);
        for lun in luns.collect::<Vec<_>>() {
            if let Some(attention) = attention {
                self.nexus.attention(Scope::Lun(lun), attention);
            }
        }
        if notice.is_some_and(|notice| notice.aborted) {
            let volume = changed.volume;
            let mut waits =
                self.abort(io, |active| active.unit.as_ref().is_some_and(|unit| unit.volume == volume));
            waits.extend(self.clear_elsewhere(&[volume], io));
            if let Some(ticket) = ticket {
                self.begin(Function::foreign(waits, ticket), io);
            }
        }
    }
}

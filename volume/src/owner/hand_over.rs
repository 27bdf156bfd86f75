//! Giving a volume to another gateway while it is in use.
//!
//! ```text
//!     Not --told to--> Emptying --nothing is in flight, all is durable and known to be equal--> Ready --another owns it
//!      ^                  | too long                                                              | too long
//!      '------------------+-----------------------------------------------------------------------'
//! ```
//!
//! New commands are held from the moment that it is told. When it is ready, its successor has nothing to compare and
//! nothing to wait for, and it answers nothing any more: what is held is answered once the map has named another owner,
//! and goes on here if no map does.

use std::collections::VecDeque;

use super::event::Plant;
use super::{Owner, Stage};
use crate::device::{self, Data, DeviceError};

/// Whether the volume is being given away, and what waits for that.
#[derive(Debug, Default)]
pub(super) struct HandOver {
    step: Step,
    /// Commands that came meanwhile, in order.
    held: VecDeque<(u64, device::Command)>,
    /// Data that they keep.
    held_bytes: u64,
}

#[derive(Clone, Copy, Debug, Default)]
enum Step {
    #[default]
    Not,
    Emptying {
        tag: u64,
        until_ms: u64,
    },
    Ready {
        until_ms: u64,
    },
}

impl HandOver {
    /// Whether commands are held.
    pub(super) fn is_holding(&self) -> bool {
        !matches!(self.step, Step::Not)
    }

    /// When it has taken too long.
    pub(super) fn due(&self) -> Option<u64> {
        match self.step {
            Step::Not => None,
            Step::Emptying { until_ms, .. } | Step::Ready { until_ms } => Some(until_ms),
        }
    }

    pub(super) fn held_commands(&self) -> usize {
        self.held.len()
    }

    pub(super) fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    pub(super) fn hold(&mut self, tag: u64, command: device::Command, bytes: u64) {
        self.held.push_back((tag, command));
        self.held_bytes += bytes;
    }
}

impl Owner {
    /// Told to give the volume away: answered once nothing is left to be done for it.
    pub(super) fn hand_over(&mut self, tag: u64) {
        if let Stage::Stopped(error) = &self.stage {
            let error = error.clone();
            self.complete(tag, Err(error));
        } else if !self.is_serving() || self.view.deleting {
            self.complete(tag, Err(DeviceError::Gone));
        } else if self.hand_over.is_holding() {
            self.complete(tag, Err(DeviceError::Busy));
        } else {
            let until_ms = self.now + self.config.limits.hand_over_ms;
            self.hand_over.step = Step::Emptying { tag, until_ms };
        }
    }

    /// Does what comes next, once nothing is in flight any more.
    pub(super) fn drive_hand_over(&mut self) {
        let Step::Emptying { tag, .. } = self.hand_over.step else {
            return;
        };
        if !self.commands.is_empty() || !self.is_settled() {
            return;
        }
        self.give_grants_back();
        if self.grants.are_returned() {
            self.ready_to_go(tag);
        }
    }

    fn ready_to_go(&mut self, tag: u64) {
        let until_ms = self.now + self.config.limits.hand_over_ms;
        self.hand_over.step = Step::Ready { until_ms };
        self.complete(tag, Ok(Data::new()));
    }

    /// It has taken too long. A disk that does not answer is no reason to stay, if nothing is in flight: the successor has
    /// more to compare then. Otherwise what is held goes on here.
    pub(super) fn tick_hand_over(&mut self) {
        if self.hand_over.due().is_none_or(|due| due > self.now) {
            return;
        }
        if let Step::Emptying { tag, .. } = self.hand_over.step
            && self.commands.is_empty()
        {
            self.give_grants_back();
            return self.ready_to_go(tag);
        }
        let HandOver { step, held, .. } = std::mem::take(&mut self.hand_over);
        if let Step::Emptying { tag, .. } = step {
            self.complete(tag, Err(DeviceError::Busy));
        }
        if self.planted(Plant::ForgetHeld) {
            return;
        }
        for (tag, command) in held {
            self.submit(tag, command);
        }
    }

    /// Whatever waits for it is answered.
    pub(super) fn end_hand_over(&mut self, error: &DeviceError) {
        let HandOver { step, held, .. } = std::mem::take(&mut self.hand_over);
        if let Step::Emptying { tag, .. } = step {
            self.complete(tag, Err(error.clone()));
        }
        for (tag, _) in held {
            self.complete(tag, Err(error.clone()));
        }
    }
}

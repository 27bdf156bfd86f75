//! The mode parameters of a unit that can be changed (SPC-4 7.5; VPD page 87h says whose they are).
//!
//! D_SENSE and SWP last until a reset and are the gateway's; WCE is a property of the volume, which the cluster keeps.
//! A change of WCE is known here when it has been kept, or when a map brings it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use lunette_volume::device::DeviceError;
use parking_lot::Mutex;

use super::changes::Waiting;
use super::{Changed, Decision, Refusal, SharedUnit, Transition};
use crate::exports::{Change, KeepError};
use crate::scsi::Attention;
use crate::scsi::sense::{Failure, Sense, SenseFormat};
use lunette_proto::map::UnitState;

/// The changeable mode parameters of a unit.
#[derive(Debug, Default)]
pub(in crate::scsi) struct Modes {
    bits: AtomicU8,
    /// WCE as the cluster is being asked to keep it.
    proposed: Mutex<Option<bool>>,
}

impl Modes {
    /// D_SENSE: sense data in descriptor format.
    pub(in crate::scsi) const D_SENSE: u8 = 0x01;
    /// SWP: software write protect.
    pub(in crate::scsi) const SWP: u8 = 0x02;
    /// WCE: a write is complete before it is durable.
    pub(in crate::scsi) const WCE: u8 = 0x04;

    pub(in crate::scsi) fn load(&self) -> u8 {
        self.bits.load(Ordering::Relaxed)
    }

    pub(in crate::scsi) fn sense_format(&self) -> SenseFormat {
        if self.load() & Self::D_SENSE == 0 { SenseFormat::Fixed } else { SenseFormat::Descriptor }
    }

    pub(in crate::scsi) fn write_back(&self) -> bool {
        self.load() & Self::WCE != 0
    }

    /// A reset: D_SENSE and SWP return to their defaults.
    pub(super) fn reset(&self) {
        self.bits.fetch_and(Self::WCE, Ordering::Relaxed);
    }

    fn apply(&self, select: SelectModes) {
        let change = |present| Some(select.applied_to(present));
        // It cannot fail: the closure always gives a value.
        let _ = self.bits.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change);
    }
}

/// The changeable mode parameters that a MODE SELECT names, and what they become.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SelectModes {
    pub(in crate::scsi) named: u8,
    pub(in crate::scsi) bits: u8,
}

impl SelectModes {
    /// Names one of [`Modes`].
    pub(in crate::scsi) fn set(&mut self, mode: u8, is_set: bool) {
        self.named |= mode;
        self.bits = self.bits & !mode | if is_set { mode } else { 0 };
    }

    /// All of [`Modes`], as it leaves them.
    pub(in crate::scsi) fn applied_to(self, present: u8) -> u8 {
        present & !self.named | self.bits
    }
}

impl Transition for SelectModes {
    fn decide(&mut self, _: &UnitState) -> Result<Decision, Refusal> {
        Ok(Decision::Modes(*self))
    }
}

impl SharedUnit {
    /// What a map says of the volume's write cache. Gives what sessions are to be told, if it is news.
    pub(super) fn learn_write_back(&self, write_back: bool) -> Option<Arc<Changed>> {
        let proposed = self.modes.proposed.lock();
        if self.modes.write_back() == write_back {
            return None;
        }
        let mut select = SelectModes::default();
        select.set(Modes::WCE, write_back);
        self.modes.apply(select);
        // Who asked for it is not to be told, and tells the others.
        (*proposed != Some(write_back)).then(|| self.modes_changed())
    }

    /// Makes the change of modes that `waiting` decided for. Gives whether it is over, and the queue goes on with the
    /// caller; else it goes on when the cluster has answered.
    pub(super) fn change_modes(self: &Arc<Self>, waiting: Waiting, select: SelectModes) -> bool {
        let present = self.modes.load();
        let bits = select.applied_to(present);
        if present == bits {
            (waiting.done)(Ok(None));
            return true;
        }
        let write_back = bits & Modes::WCE != 0;
        if (present ^ bits) & Modes::WCE == 0 {
            self.modes.apply(select);
            (waiting.done)(Ok(Some(self.modes_changed())));
            return true;
        }
        *self.modes.proposed.lock() = Some(write_back);
        let answer = Answer { unit: Arc::clone(self), select, waiting: Some(waiting) };
        self.devices.keep(self.volume, Change::WriteBack(write_back), Box::new(|result| answer.give(result)));
        false
    }

    fn modes_changed(&self) -> Arc<Changed> {
        let state = self.state();
        Arc::new(Changed {
            everyone: Some(Attention::ModeParametersChanged),
            ..Changed::new(self.volume, Arc::clone(&state), state, Vec::new())
        })
    }
}

/// Dropped without an answer, it says that there is none: nobody may wait for ever.
struct Answer {
    unit: Arc<SharedUnit>,
    select: SelectModes,
    waiting: Option<Waiting>,
}

impl Answer {
    fn give(mut self, result: Result<(), KeepError>) {
        self.pass(result);
    }

    fn pass(&mut self, result: Result<(), KeepError>) {
        let Some(waiting) = self.waiting.take() else { return };
        let modes = &self.unit.modes;
        let settled = {
            let mut proposed = modes.proposed.lock();
            *proposed = None;
            match result {
                Ok(()) => {
                    modes.apply(self.select);
                    Ok(())
                }
                Err(KeepError::Conflict) => Err(Failure::Busy),
                Err(KeepError::Gone) => Err(Sense::LUN_NOT_SUPPORTED.into()),
                Err(KeepError::NotOwner) => Err(Failure::of_device(&DeviceError::NotOwner, 0)),
                // It may have been kept: not BUSY, which promises that it was not. A map will tell.
                Err(KeepError::Unavailable(reason)) => {
                    tracing::warn!(volume = %self.unit.volume, reason, "a change of the write cache is in doubt");
                    Err(Sense::COMMUNICATION_TIMEOUT.into())
                }
            }
        };
        (waiting.done)(settled.map(|()| Some(self.unit.modes_changed())).map_err(Refusal));
        self.unit.run();
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.pass(Err(KeepError::Unavailable("no answer".into())));
    }
}

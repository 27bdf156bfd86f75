//! What an I_T nexus keeps between commands: unit attention conditions (SAM-5 5.14) in order, and
//! what it holds of the units.
//!
//! The condition of a new nexus is POWER ON for every logical unit, also for those that are mapped
//! later. A logical unit has one queue per nexus; a condition is in it once.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use lunette_proto::map::NexusId;
use lunette_volume::device::Readiness;
use smallvec::SmallVec;

use super::LogicalUnit;
use super::copy::Records;
use super::reservation::{Access, Hold};
use super::sense::{Key, Sense, SenseFormat};
use super::unit::{Acquaintance, Modes, SharedUnit};

/// What an I_T nexus keeps between commands.
#[derive(Debug)]
pub struct Nexus {
    id: NexusId,
    /// What a logical unit that this nexus has not touched yet would report.
    untouched: Queue,
    units: BTreeMap<u16, Unit>,
}

/// Which logical units a condition is established for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One.
    Lun(u16),
    /// All that the target shows, or will show.
    All,
}

/// A unit attention condition (SAM-5 5.14; codes in SPC-4 annex D).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attention {
    /// 29h/00h, a new nexus.
    PowerOn,
    /// 29h/02h, TARGET COLD RESET.
    TargetReset,
    /// 29h/03h, LOGICAL UNIT RESET, TARGET WARM RESET.
    UnitReset,
    /// 29h/07h
    NexusLoss,
    /// 2Ah/01h
    ModeParametersChanged,
    /// 2Ah/03h, CLEAR removed this nexus's registration.
    ReservationsPreempted,
    /// 2Ah/04h, a reservation that registrants shared is gone, or is of another type.
    ReservationsReleased,
    /// 2Ah/05h, PREEMPT removed this nexus's registration.
    RegistrationsPreempted,
    /// 2Ah/06h
    AccessStateChanged,
    /// 2Ah/09h, after a resize, before [`Attention::InquiryChanged`].
    CapacityChanged,
    /// 2Fh/00h, tasks were cleared for another initiator.
    CommandsCleared,
    /// 3Fh/03h
    InquiryChanged,
    /// 3Fh/0Eh, a logical unit was mapped or unmapped.
    ReportedLunsChanged,
}

impl Attention {
    /// Additional sense code and qualifier.
    #[must_use]
    pub fn code(self) -> (u8, u8) {
        match self {
            Self::PowerOn => (0x29, 0x00),
            Self::TargetReset => (0x29, 0x02),
            Self::UnitReset => (0x29, 0x03),
            Self::NexusLoss => (0x29, 0x07),
            Self::ModeParametersChanged => (0x2A, 0x01),
            Self::ReservationsPreempted => (0x2A, 0x03),
            Self::ReservationsReleased => (0x2A, 0x04),
            Self::RegistrationsPreempted => (0x2A, 0x05),
            Self::AccessStateChanged => (0x2A, 0x06),
            Self::CapacityChanged => (0x2A, 0x09),
            Self::CommandsCleared => (0x2F, 0x00),
            Self::InquiryChanged => (0x3F, 0x03),
            Self::ReportedLunsChanged => (0x3F, 0x0E),
        }
    }

    /// Sense data in fixed format, as an asynchronous message carries it (RFC 7143 11.9.4).
    #[must_use]
    pub fn sense_data(self) -> Bytes {
        self.sense().encode(SenseFormat::Fixed)
    }

    pub(super) fn sense(self) -> Sense {
        let (asc, ascq) = self.code();
        Sense::new(Key::UnitAttention, asc, ascq)
    }

    /// Resets precede everything else (SAM-5 5.14), the widest first.
    fn reset_rank(self) -> Option<u8> {
        match self {
            Self::PowerOn => Some(0),
            Self::TargetReset => Some(1),
            Self::UnitReset => Some(2),
            Self::NexusLoss => Some(3),
            _ => None,
        }
    }
}

impl Nexus {
    /// A nexus that has just been established.
    #[must_use]
    pub fn new(id: NexusId) -> Self {
        let mut untouched = Queue::default();
        untouched.push(Attention::PowerOn);
        Self { id, untouched, units: BTreeMap::new() }
    }

    /// Which it is.
    #[must_use]
    pub fn id(&self) -> &NexusId {
        &self.id
    }

    /// The nexus ends: what it holds of the units is given back (SAM-5 6.3.4), as it is when it is dropped.
    pub fn end(&mut self) {
        for unit in self.units.values_mut() {
            unit.hold = None;
        }
    }

    /// Establishes a condition.
    pub fn attention(&mut self, scope: Scope, attention: Attention) {
        match scope {
            Scope::Lun(lun) => self.unit(lun).establish(attention),
            Scope::All => {
                self.untouched.push(attention);
                for unit in self.units.values_mut() {
                    unit.establish(attention);
                }
            }
        }
    }

    /// Whether a copy of this nexus may not read a logical unit, or not write it.
    pub fn refuses_copy(&self, unit: &LogicalUnit, writes: bool) -> bool {
        let access = if writes { Access::Write } else { Access::Read };
        let is_protected = writes && unit.shared.modes.load() & Modes::SWP != 0;
        is_protected || unit.shared.is_sanitizing() || !unit.shared.allows(&self.id, access)
    }

    /// The logical unit at `lun` is served under another generation, here or elsewhere: what this nexus held of it
    /// through this gateway alone has ended with the one before.
    pub fn owner_changed(&mut self, lun: u16) {
        let Some(unit) = self.units.get_mut(&lun) else { return };
        if unit.hold.take().is_some() {
            unit.establish(Attention::NexusLoss);
        }
    }

    /// The logical unit at `lun` is gone: another one that is mapped there starts afresh.
    pub fn forget(&mut self, lun: u16) {
        self.units.remove(&lun);
    }

    /// REPORT LUNS was answered: nobody needs to be told that the inventory changed (SPC-4 6.33).
    pub(super) fn inventory_reported(&mut self) {
        self.untouched.remove(Attention::ReportedLunsChanged);
        for unit in self.units.values_mut() {
            unit.queue.remove(Attention::ReportedLunsChanged);
        }
    }

    /// What is kept of `lun`, which a command has come for.
    pub(super) fn unit_of(&mut self, lun: u16, shared: &Arc<SharedUnit>) -> &mut Unit {
        if self.unit(lun).acquaintance.is_none() {
            let acquaintance = shared.meet(&self.id);
            self.unit(lun).acquaintance = Some(acquaintance);
        }
        self.unit(lun)
    }

    /// What is kept of `lun`.
    pub(super) fn unit(&mut self, lun: u16) -> &mut Unit {
        self.units.entry(lun).or_insert_with(|| Unit {
            queue: self.untouched.clone(),
            copies: Arc::default(),
            hold: None,
            acquaintance: None,
            told: None,
        })
    }
}

/// A logical unit as one nexus knows it.
#[derive(Debug)]
pub(super) struct Unit {
    queue: Queue,
    copies: Arc<Records>,
    /// A reservation by RESERVE, if it still stands.
    hold: Option<Hold>,
    /// The unit knows the nexus, which has sent it a command.
    acquaintance: Option<Acquaintance>,
    /// What the nexus was told last of its access, if that does not last.
    told: Option<Readiness>,
}

impl Unit {
    /// The condition to report next; it is cleared by that (SAM-5 5.14).
    pub(super) fn take(&mut self) -> Option<Attention> {
        self.queue.pop()
    }

    pub(super) fn copies(&self) -> &Arc<Records> {
        &self.copies
    }

    pub(super) fn hold(&mut self, hold: Hold) {
        self.hold = Some(hold);
    }

    /// REPORT TARGET PORT GROUPS has said how the unit is served here.
    pub(super) fn tell_access(&mut self, readiness: Readiness) {
        self.told = matches!(readiness, Readiness::Starting | Readiness::Unavailable).then_some(readiness);
    }

    /// Establishes that the access has changed, if the nexus was told of a state that is over: initiators that were told
    /// that a path does not work leave it alone until then. `now` is asked of such a nexus alone.
    pub(super) fn check_access(&mut self, now: impl FnOnce() -> Readiness) {
        if let Some(told) = self.told
            && told != now()
        {
            self.told = None;
            self.establish(Attention::AccessStateChanged);
        }
    }

    fn establish(&mut self, attention: Attention) {
        self.queue.push(attention);
        if attention.reset_rank().is_some() {
            self.copies.forget();
        }
    }
}

/// Conditions in the order in which they are reported. Bounded by the number of [`Attention`]s.
#[derive(Clone, Debug, Default)]
struct Queue(SmallVec<[Attention; 4]>);

impl Queue {
    fn push(&mut self, attention: Attention) {
        let Some(rank) = attention.reset_rank() else {
            if !self.0.contains(&attention) {
                self.0.push(attention);
            }
            return;
        };
        // A wider reset that is still unreported says all that a narrower one would say.
        match self.0.first().and_then(|first| first.reset_rank()) {
            Some(queued) if queued <= rank => {}
            Some(_) => self.0[0] = attention,
            None => self.0.insert(0, attention),
        }
    }

    fn pop(&mut self) -> Option<Attention> {
        if self.0.is_empty() { None } else { Some(self.0.remove(0)) }
    }

    fn remove(&mut self, attention: Attention) {
        self.0.retain(|queued| *queued != attention);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new_nexus() -> Nexus {
        let (initiator, target) = ("iqn.2026-11.org.example:host".into(), "iqn.2026-11.io.lunette:t".into());
        Nexus::new(NexusId { initiator, isid: [0x80, 0, 0, 0, 0, 1], target, tag: 1 })
    }

    fn drain(nexus: &mut Nexus, lun: u16) -> Vec<Attention> {
        std::iter::from_fn(|| nexus.unit(lun).take()).collect()
    }

    /// Guards the start: a new nexus reports POWER ON once for each logical unit.
    #[test]
    fn power_on_once_per_unit() {
        let mut nexus = new_nexus();
        for lun in [0, 7] {
            assert_eq!(drain(&mut nexus, lun), [Attention::PowerOn]);
            assert_eq!(nexus.unit(lun).take(), None);
        }
    }

    /// Guards the order and against duplicates: first in, first out; once each.
    #[test]
    fn ordered_without_duplicates() {
        let mut nexus = new_nexus();
        drain(&mut nexus, 0);
        for _ in 0..3 {
            nexus.attention(Scope::Lun(0), Attention::CapacityChanged);
            nexus.attention(Scope::Lun(0), Attention::InquiryChanged);
            nexus.attention(Scope::All, Attention::ReportedLunsChanged);
        }
        assert_eq!(
            drain(&mut nexus, 0),
            [Attention::CapacityChanged, Attention::InquiryChanged, Attention::ReportedLunsChanged]
        );
        assert_eq!(drain(&mut nexus, 1), [Attention::PowerOn, Attention::ReportedLunsChanged]);
    }

    /// Guards the precedence of resets: they come first, and the widest hides the others.
    #[test]
    fn resets_come_first() {
        let mut nexus = new_nexus();
        drain(&mut nexus, 0);
        nexus.attention(Scope::Lun(0), Attention::CapacityChanged);
        nexus.attention(Scope::Lun(0), Attention::NexusLoss);
        nexus.attention(Scope::Lun(0), Attention::UnitReset);
        nexus.attention(Scope::Lun(0), Attention::NexusLoss);
        assert_eq!(drain(&mut nexus, 0), [Attention::UnitReset, Attention::CapacityChanged]);
    }

    /// Guards REPORT LUNS: 3Fh/0Eh is gone everywhere, other conditions stay.
    #[test]
    fn inventory_reported_clears_one_kind() {
        let mut nexus = new_nexus();
        drain(&mut nexus, 0);
        nexus.attention(Scope::All, Attention::ReportedLunsChanged);
        nexus.attention(Scope::All, Attention::CommandsCleared);
        nexus.inventory_reported();
        assert_eq!(drain(&mut nexus, 0), [Attention::CommandsCleared]);
        assert_eq!(drain(&mut nexus, 5), [Attention::PowerOn, Attention::CommandsCleared]);
    }

    /// Guards a LUN that is mapped anew: nothing of the old unit is left, the nexus's own state is.
    #[test]
    fn forgotten_units_start_afresh() {
        let mut nexus = new_nexus();
        drain(&mut nexus, 4);
        nexus.attention(Scope::Lun(4), Attention::CapacityChanged);
        nexus.forget(4);
        assert_eq!(drain(&mut nexus, 4), [Attention::PowerOn]);
    }
}

//! The rules of PERSISTENT RESERVE OUT (SPC-4 5.13.6 to 5.13.11): from the reservations that are there and an order to
//! the reservations that will be there, and what the other nexuses are told.

use lunette_proto::limits::REGISTRANTS_MAX;
use lunette_proto::map::{NexusId, Registrant, Reservation, ReservationType, Reservations};

use super::notices::tell;
use super::{holds, registrant};
use crate::scsi::Attention;
use crate::scsi::sense::{Failure, Sense};
use crate::scsi::unit::Notice;

/// A PERSISTENT RESERVE OUT command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Order {
    /// Who sends it.
    pub(super) nexus: NexusId,
    /// RESERVATION KEY.
    pub(super) key: u64,
    pub(super) action: Action,
}

/// Its service action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Register(Register),
    Reserve(ReservationType),
    /// SCOPE and TYPE as they stand in the CDB: they are compared, not understood.
    Release {
        scope_and_type: u8,
    },
    Clear,
    Preempt(Preempt),
    Move(Move),
}

/// REGISTER, REGISTER AND IGNORE EXISTING KEY.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Register {
    /// Not 0, or unregister.
    pub(super) new_key: u64,
    pub(super) ignores_key: bool,
    pub(super) aptpl: bool,
    /// With ALL_TG_PT: the target ports that there are.
    pub(super) ports: Option<Vec<u16>>,
    /// With SPEC_I_PT: who is registered as well, through the target port of the sender.
    pub(super) others: Option<Vec<NexusId>>,
}

/// PREEMPT, PREEMPT AND ABORT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Preempt {
    /// SERVICE ACTION RESERVATION KEY.
    pub(super) victim: u64,
    /// Of the reservation that is made, if one is; an error only then.
    pub(super) kind: Result<ReservationType, Sense>,
    pub(super) aborts: bool,
}

/// REGISTER AND MOVE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Move {
    pub(super) to: NexusId,
    /// Not 0.
    pub(super) new_key: u64,
    pub(super) unregisters: bool,
    pub(super) aptpl: bool,
}

/// What comes of an order that is carried out.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// GOOD, and nothing changes.
    Nothing,
    /// GOOD once this is kept.
    Changed(Reservations, Vec<Notice>),
}

/// Carries out an order.
pub(super) fn carry_out(present: &Reservations, order: &Order) -> Result<Outcome, Failure> {
    let own = registrant(present, &order.nexus).map(|registrant| registrant.key);
    if let Action::Register(register) = &order.action {
        return carry_out_register(present, order, register, own);
    }
    // All else takes a registration and its key (SPC-4 6.16.3).
    if own != Some(order.key) {
        return Err(Failure::Conflict);
    }
    match &order.action {
        Action::Register(_) => Err(Sense::INTERNAL_FAILURE.into()),
        Action::Reserve(kind) => reserve(present, order, *kind),
        Action::Release { scope_and_type } => release(present, order, *scope_and_type),
        Action::Clear => Ok(clear(present, order)),
        Action::Preempt(preempt) => carry_out_preempt(present, order, preempt),
        Action::Move(to) => carry_out_move(present, order, to),
    }
}

/// SPC-4 5.13.7. With ALL_TG_PT it is as if the order had come through each of the target ports.
fn carry_out_register(
    present: &Reservations,
    order: &Order,
    register: &Register,
    own: Option<u64>,
) -> Result<Outcome, Failure> {
    let matches = |key: Option<u64>| register.ignores_key || key.unwrap_or(0) == order.key;
    if !matches(own) {
        return Err(Failure::Conflict);
    }
    if own.is_some() && register.others.is_some() {
        return Err(Sense::parameter_bit(20, 3).into());
    }
    if own.is_none() && register.new_key == 0 {
        return Ok(Outcome::Nothing);
    }
    let mut next = present.clone();
    let mut acting = Vec::new();
    for nexus in through_all(&order.nexus, register.ports.as_deref()) {
        let key = registrant(present, &nexus).map(|registrant| registrant.key);
        if !matches(key) {
            return Err(Failure::Conflict);
        }
        set(&mut next, &nexus, register);
        acting.push(nexus);
    }
    for other in register.others.iter().flatten() {
        for nexus in through_all(other, register.ports.as_deref()) {
            // Those that are registered already stay as they are.
            if registrant(&next, &nexus).is_none() {
                set(&mut next, &nexus, register);
            }
        }
    }
    next.aptpl = register.aptpl;
    settle(present, &mut next);
    let notices = tell(present, &next, Attention::RegistrationsPreempted, |nexus| !acting.contains(nexus));
    finish(next, notices)
}

fn set(reservations: &mut Reservations, nexus: &NexusId, register: &Register) {
    if register.new_key == 0 {
        reservations.registrants.retain(|registrant| registrant.nexus != *nexus);
    } else {
        put(reservations, nexus, register.new_key, register.ports.is_some());
    }
}

/// Registers a nexus, or gives it another key.
fn put(reservations: &mut Reservations, nexus: &NexusId, key: u64, all_target_ports: bool) {
    let found = reservations.registrants.iter_mut().find(|registrant| registrant.nexus == *nexus);
    match found {
        Some(registrant) => (registrant.key, registrant.all_target_ports) = (key, all_target_ports),
        None => {
            let nexus = nexus.clone();
            reservations.registrants.push(Registrant { nexus, key, all_target_ports });
        }
    }
}

/// A nexus, and with ALL_TG_PT all that differ from it in the target port.
fn through_all(nexus: &NexusId, ports: Option<&[u16]>) -> Vec<NexusId> {
    let others = ports.into_iter().flatten().filter(|tag| **tag != nexus.tag);
    let mut all = vec![nexus.clone()];
    all.extend(others.map(|tag| NexusId { tag: *tag, ..nexus.clone() }));
    all
}

/// SPC-4 5.13.9.
fn reserve(present: &Reservations, order: &Order, kind: ReservationType) -> Result<Outcome, Failure> {
    match (&present.reservation, registrant(present, &order.nexus)) {
        (None, _) => {
            let mut next = present.clone();
            next.reservation = Some(reservation(kind, &order.nexus));
            Ok(Outcome::Changed(next, Vec::new()))
        }
        (Some(reservation), Some(own)) if holds(reservation, own) && reservation.kind == kind => {
            Ok(Outcome::Nothing)
        }
        _ => Err(Failure::Conflict),
    }
}

/// SPC-4 5.13.11.1. To release what one does not hold is no error.
fn release(present: &Reservations, order: &Order, scope_and_type: u8) -> Result<Outcome, Failure> {
    let (Some(reservation), Some(own)) = (&present.reservation, registrant(present, &order.nexus)) else {
        return Ok(Outcome::Nothing);
    };
    if !holds(reservation, own) {
        return Ok(Outcome::Nothing);
    }
    if scope_and_type != reservation.kind.number() {
        return Err(Sense::INVALID_RELEASE.into());
    }
    let mut next = present.clone();
    next.reservation = None;
    settle(present, &mut next);
    let notices = tell_others(present, &next, order, Attention::RegistrationsPreempted);
    Ok(Outcome::Changed(next, notices))
}

/// SPC-4 5.13.11.3.
fn clear(present: &Reservations, order: &Order) -> Outcome {
    let mut next = present.clone();
    next.registrants.clear();
    next.reservation = None;
    next.generation = next.generation.wrapping_add(1);
    let notices = tell_others(present, &next, order, Attention::ReservationsPreempted);
    Outcome::Changed(next, notices)
}

/// SPC-4 5.13.11.2.
fn carry_out_preempt(present: &Reservations, order: &Order, preempt: &Preempt) -> Result<Outcome, Failure> {
    let mut next = present.clone();
    let takes_over = match &present.reservation {
        None => false,
        Some(reservation) if reservation.kind.is_of_all() => preempt.victim == 0,
        Some(reservation) => {
            let holder = reservation.holder.as_ref().and_then(|holder| registrant(present, holder));
            holder.is_some_and(|holder| holder.key == preempt.victim)
        }
    };
    if takes_over {
        // The preemptor stays registered, also under the key that it preempts.
        let all = preempt.victim == 0;
        next.registrants.retain(|other| other.nexus == order.nexus || !(all || other.key == preempt.victim));
        next.reservation = Some(reservation(preempt.kind?, &order.nexus));
    } else {
        if preempt.victim == 0 {
            return Err(Sense::parameter_field(8).into());
        }
        next.registrants.retain(|other| other.key != preempt.victim);
        if next.registrants.len() == present.registrants.len() {
            return Err(Failure::Conflict);
        }
    }
    settle(present, &mut next);
    let mut notices = tell_others(present, &next, order, Attention::RegistrationsPreempted);
    if preempt.aborts {
        for lost in present.registrants.iter().filter(|other| registrant(&next, &other.nexus).is_none()) {
            match notices.iter_mut().find(|notice| notice.nexus == lost.nexus) {
                Some(notice) => notice.aborted = true,
                None => {
                    notices.push(Notice { nexus: lost.nexus.clone(), attention: None, aborted: true });
                }
            }
        }
    }
    finish(next, notices)
}

/// SPC-4 5.13.8.
fn carry_out_move(present: &Reservations, order: &Order, to: &Move) -> Result<Outcome, Failure> {
    let Some(held) = &present.reservation else {
        return Err(Sense::cdb_bit(1, 4).into());
    };
    if held.holder.as_ref() != Some(&order.nexus) {
        // Also if all registrants hold it: then it cannot be moved.
        return Err(Failure::Conflict);
    }
    if to.new_key == 0 {
        return Err(Sense::parameter_field(8).into());
    }
    if to.to == order.nexus {
        return Err(Sense::parameter_field(24).into());
    }
    let mut next = present.clone();
    put(&mut next, &to.to, to.new_key, false);
    next.reservation = Some(reservation(held.kind, &to.to));
    if to.unregisters {
        next.registrants.retain(|registrant| registrant.nexus != order.nexus);
    }
    next.aptpl = to.aptpl;
    settle(present, &mut next);
    let notices = tell_others(present, &next, order, Attention::RegistrationsPreempted);
    finish(next, notices)
}

fn reservation(kind: ReservationType, holder: &NexusId) -> Reservation {
    Reservation { kind, holder: (!kind.is_of_all()).then(|| holder.clone()) }
}

/// What follows from registrations that are gone: the reservation of a holder that is gone is released, and so is one
/// of all registrants with the last of them (SPC-4 5.13.11.1); what is left of a registration through all target ports
/// is not one any more.
fn settle(present: &Reservations, next: &mut Reservations) {
    let is_orphaned = next.reservation.as_ref().is_some_and(|reservation| match &reservation.holder {
        Some(holder) => registrant(next, holder).is_none(),
        None => next.registrants.is_empty(),
    });
    if is_orphaned {
        next.reservation = None;
    }
    for old in present.registrants.iter().filter(|old| old.all_target_ports) {
        if registrant(next, &old.nexus).is_none_or(|new| !new.all_target_ports) {
            let is_sibling = |nexus: &NexusId| NexusId { tag: old.nexus.tag, ..nexus.clone() } == old.nexus;
            for sibling in next.registrants.iter_mut().filter(|other| is_sibling(&other.nexus)) {
                sibling.all_target_ports = false;
            }
        }
    }
}

/// All but the sender.
fn tell_others(before: &Reservations, after: &Reservations, order: &Order, lost: Attention) -> Vec<Notice> {
    tell(before, after, lost, |nexus| *nexus != order.nexus)
}

/// Of an order that counts in PRGENERATION.
fn finish(mut next: Reservations, notices: Vec<Notice>) -> Result<Outcome, Failure> {
    if next.registrants.len() > REGISTRANTS_MAX {
        return Err(Sense::INSUFFICIENT_REGISTRATION_RESOURCES.into());
    }
    next.generation = next.generation.wrapping_add(1);
    Ok(Outcome::Changed(next, notices))
}

//! RESERVE and RELEASE, (6) and (10) (SPC-2 7.21, 7.22, 7.16, 7.17), with the exceptions of SPC-4 5.13.3.
//!
//! The whole unit is reserved for the sender: neither extents nor third parties are supported. The reservation ends by
//! RELEASE, with the nexus, and by a reset of the unit.

use std::sync::Arc;

use lunette_proto::map::NexusId;

use super::{holds, is_for_registrants, registrant};
use crate::scsi::request::{Answer, Plan, Request};
use crate::scsi::sense::{Failure, Sense};
use crate::scsi::unit::SharedUnit;

/// Whom a unit is reserved for.
#[derive(Debug, Default)]
pub(in crate::scsi) struct Classic {
    holder: Option<NexusId>,
    /// Counts reservations, so that what is left of an old one does not end a newer one.
    serial: u64,
}

impl Classic {
    pub(super) fn holder(&self) -> Option<&NexusId> {
        self.holder.as_ref()
    }
}

/// What the holder's nexus has of the reservation: it is released when this is dropped.
#[derive(Debug)]
pub(in crate::scsi) struct Hold {
    unit: Arc<SharedUnit>,
    serial: u64,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.unit.release_classic_if(|classic| classic.serial == self.serial);
    }
}

pub(in crate::scsi) fn reserve_6(request: &mut Request<'_>) -> Answer {
    handle_reserve(request, 0x10 | 0x0E | 0x01)
}

pub(in crate::scsi) fn reserve_10(request: &mut Request<'_>) -> Answer {
    handle_reserve(request, 0x10 | 0x02 | 0x01)
}

pub(in crate::scsi) fn release_6(request: &mut Request<'_>) -> Answer {
    handle_release(request, 0x10 | 0x0E | 0x01)
}

pub(in crate::scsi) fn release_10(request: &mut Request<'_>) -> Answer {
    handle_release(request, 0x10 | 0x02 | 0x01)
}

fn handle_reserve(request: &mut Request<'_>, unsupported: u8) -> Answer {
    check(request, unsupported)?;
    let nexus = request.nexus.id();
    if persists(&request.unit.shared, nexus)? {
        return Ok(Plan::Good);
    }
    let hold = request.unit.shared.reserve_classic(nexus)?;
    request.nexus.unit(request.lun).hold(hold);
    Ok(Plan::Good)
}

/// Releasing what one does not hold is no error (SPC-2 7.16).
fn handle_release(request: &mut Request<'_>, unsupported: u8) -> Answer {
    check(request, unsupported)?;
    let nexus = request.nexus.id();
    if !persists(&request.unit.shared, nexus)? {
        request.unit.shared.release_classic_if(|classic| classic.holder.as_ref() == Some(nexus));
    }
    Ok(Plan::Good)
}

/// 3RDPTY, LONGID and EXTENT, whose support is optional.
fn check(request: &Request<'_>, unsupported: u8) -> Result<(), Sense> {
    match request.cdb.u8(1) & unsupported {
        0 => Ok(()),
        set => Err(Sense::cdb_bit(1, u8::try_from(set.ilog2()).unwrap_or(0))),
    }
}

/// While anybody is registered classic reservations are refused (SPC-2 5.5.1), except that to whom the persistent
/// reservation gives access already it looks as if they succeeded (SPC-4 5.13.3): then `true`.
fn persists(unit: &SharedUnit, nexus: &NexusId) -> Result<bool, Failure> {
    let state = unit.state();
    let reservations = &state.reservations;
    if reservations.registrants.is_empty() {
        return Ok(false);
    }
    match (&reservations.reservation, registrant(reservations, nexus)) {
        (Some(reservation), Some(registrant))
            if holds(reservation, registrant) || is_for_registrants(reservation.kind) =>
        {
            Ok(true)
        }
        _ => Err(Failure::Conflict),
    }
}

impl SharedUnit {
    /// Reserves the unit, again if `nexus` has it already.
    fn reserve_classic(self: &Arc<Self>, nexus: &NexusId) -> Result<Hold, Failure> {
        let mut classic = self.classic.lock();
        if classic.holder.as_ref().is_some_and(|holder| holder != nexus) {
            return Err(Failure::Conflict);
        }
        classic.holder = Some(nexus.clone());
        classic.serial += 1;
        self.mark_classic(true);
        Ok(Hold { unit: Arc::clone(self), serial: classic.serial })
    }

    /// Whoever holds it.
    pub(in crate::scsi) fn release_classic(&self) {
        self.release_classic_if(|_| true);
    }

    fn release_classic_if(&self, is_meant: impl FnOnce(&Classic) -> bool) {
        let mut classic = self.classic.lock();
        if is_meant(&classic) {
            classic.holder = None;
            self.mark_classic(false);
        }
    }
}

//! Readiness: TEST UNIT READY (SPC-4 6.47) and START STOP UNIT (SBC-3 5.25).

use super::ports;
use super::request::{Answer, Plan, Request};
use super::sense::Sense;

/// Tells how the unit is served here, so that a path checker sees the truth.
pub(super) fn test_unit_ready(request: &mut Request<'_>) -> Answer {
    match Sense::not_ready(ports::readiness(request.view, request.unit)) {
        None => Ok(Plan::Good),
        Some(sense) => Err(sense.into()),
    }
}

/// A volume is always started, and one initiator cannot stop what others use.
pub(super) fn start_stop_unit(request: &mut Request<'_>) -> Answer {
    const ACTIVE: u8 = 0x1;
    let cdb = request.cdb;
    if cdb.u8(3) & 0x0F != 0 {
        return Err(Sense::cdb_bit(3, 3).into());
    }
    match cdb.u8(4) >> 4 {
        ACTIVE => return Ok(Plan::Good),
        0 => {}
        _ => return Err(Sense::cdb_bit(4, 7).into()),
    }
    let (loej, start) = (cdb.bit(4, 1), cdb.bit(4, 0));
    if loej {
        return Err(Sense::cdb_bit(4, 1).into());
    }
    if !start {
        return Err(Sense::cdb_bit(4, 0).into());
    }
    Ok(Plan::Good)
}

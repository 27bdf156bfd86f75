//! SEND DIAGNOSTIC (SPC-4 6.42) and RECEIVE DIAGNOSTIC RESULTS (SPC-4 6.30): the default self-test, and no
//! diagnostic pages but the list of them.

use super::power;
use super::request::{Answer, Plan, Request, parameter_data};
use super::sense::Sense;

/// The self-test tells what TEST UNIT READY tells: what a volume is made of is tested all the time, by others.
pub(super) fn send(request: &mut Request<'_>) -> Answer {
    let cdb = request.cdb;
    if cdb.u8(1) & 0xE0 != 0 {
        // SELF-TEST CODE: none that goes on in the background.
        return Err(Sense::cdb_bit(1, 7).into());
    }
    if cdb.u16(3) != 0 {
        return Err(Sense::cdb_field(3).into());
    }
    if cdb.bit(1, 2) {
        return power::test_unit_ready(request);
    }
    // Nothing to do is no error (SPC-4 6.42).
    Ok(Plan::Good)
}

pub(super) fn receive_results(request: &mut Request<'_>) -> Answer {
    const SUPPORTED_PAGES: u8 = 0x00;
    let cdb = request.cdb;
    if !cdb.bit(1, 0) {
        // PCV=0 asks for what a SEND DIAGNOSTIC before left, and none leaves anything.
        return Err(Sense::cdb_bit(1, 0).into());
    }
    if cdb.u8(2) != SUPPORTED_PAGES {
        return Err(Sense::cdb_field(2).into());
    }
    Ok(parameter_data(vec![SUPPORTED_PAGES, 0, 0, 1, SUPPORTED_PAGES], cdb.u16(3).into()))
}

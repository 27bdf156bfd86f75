//! REPORT TARGET PORT GROUPS (SPC-4 6.37): asymmetric access, implicit only.
//!
//! A gateway is one target port group with one port. Its state is the device's readiness, so that
//! the group and the sense data of a command that is not served tell the same.

use lunette_volume::device::Readiness;

use super::request::{Answer, Request, parameter_data, set_length_u32};
use super::sense::Sense;

/// Longest time a transition takes, for IMPLICIT TRANSITION TIME: beyond it an initiator gives up.
const IMPLICIT_TRANSITION_S: u8 = 30;
/// States that are reported: transitioning, unavailable, standby, active/optimized.
const SUPPORTED_STATES: u8 = 0x80 | 0x08 | 0x04 | 0x01;

pub(super) fn report_target_port_groups(request: &mut Request<'_>) -> Answer {
    let mut data = vec![0; 4];
    match request.cdb.u8(1) >> 5 {
        0 => {}
        // Extended header: FORMAT TYPE 001b.
        1 => data.extend([0x10, IMPLICIT_TRANSITION_S, 0, 0]),
        _ => return Err(Sense::cdb_bit(1, 7).into()),
    }
    let [group_high, group_low] = request.view.portal_group_tag.to_be_bytes();
    let [port_high, port_low] = request.view.relative_port.to_be_bytes();
    let state = access_state(request.unit.device.readiness());
    data.extend([state, SUPPORTED_STATES, group_high, group_low, 0, 0, 0, 1]);
    data.extend([0, 0, port_high, port_low]);
    set_length_u32(&mut data);
    Ok(parameter_data(data, request.cdb.u32(6)))
}

/// ASYMMETRIC ACCESS STATE.
fn access_state(readiness: Readiness) -> u8 {
    match readiness {
        Readiness::Ready => 0x0,
        Readiness::NotOwner => 0x2,
        Readiness::Unavailable => 0x3,
        Readiness::Starting => 0xF,
    }
}

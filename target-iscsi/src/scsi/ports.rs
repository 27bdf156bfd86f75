//! Asymmetric access (SPC-4 5.15), implicit only: which target ports serve a logical unit.
//!
//! A gateway is one target port group with one port. The volume's owner is active; through the others it is a standby
//! path, on which initiators find out everything about the unit and read and write nothing (SPC-4 5.15.2.4.4).
//!
//! ```text
//!                      the device here   this group      the other groups
//! owned here           Ready, Starting   active          standby
//!                      Unavailable       unavailable     standby
//! owned by another     NotOwner          standby         its owner's active, the others standby
//! owned by nobody      NotOwner          transitioning   transitioning
//! ```
//!
//! An owner that is starting takes commands already, and carries them out as soon as it can. It does not call itself
//! transitioning: Linux would send nothing for the next two seconds, which is longer than it takes.
//!
//! What REPORT TARGET PORT GROUPS says of this group and the sense data of a command that is not served agree.

use lunette_volume::device::Readiness;

use super::request::{Answer, Request, parameter_data, set_length_u32};
use super::sense::Sense;
use super::{LogicalUnit, TargetView};

/// Longest time a transition takes, for IMPLICIT TRANSITION TIME: beyond it an initiator gives up.
const IMPLICIT_TRANSITION_S: u8 = 30;
/// States that are reported: transitioning, unavailable, standby, active/optimized.
const SUPPORTED_STATES: u8 = 0x80 | 0x08 | 0x04 | 0x01;

/// REPORT TARGET PORT GROUPS (SPC-4 6.37).
pub(super) fn report_target_port_groups(request: &mut Request<'_>) -> Answer {
    let mut data = vec![0; 4];
    match request.cdb.u8(1) >> 5 {
        0 => {}
        // Extended header: FORMAT TYPE 001b.
        1 => data.extend([0x10, IMPLICIT_TRANSITION_S, 0, 0]),
        _ => return Err(Sense::cdb_bit(1, 7).into()),
    }
    let access = Access::of(request.view, request.unit);
    let own_group = request.view.portal_group_tag;
    request.nexus.unit(request.lun).tell_access(access.through(own_group, own_group));
    for port in &request.view.ports {
        let [group_high, group_low] = port.group.to_be_bytes();
        let [port_high, port_low] = port.relative.to_be_bytes();
        let state = access_state(access.through(port.group, own_group));
        data.extend([state, SUPPORTED_STATES, group_high, group_low, 0, 0, 0, 1]);
        data.extend([0, 0, port_high, port_low]);
    }
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

/// Which gateway a logical unit is served by, as this one sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    /// By this one, or as soon as the device knows.
    Here(Readiness),
    /// By that of another group.
    Elsewhere(u16),
    Nowhere,
}

impl Access {
    fn of(view: &TargetView, unit: &LogicalUnit) -> Self {
        match (unit.device.readiness(), unit.owner) {
            (Readiness::NotOwner, None) => Self::Nowhere,
            (Readiness::NotOwner, Some(owner)) if owner.group != view.portal_group_tag => {
                Self::Elsewhere(owner.group)
            }
            (Readiness::NotOwner, Some(_)) => Self::Here(Readiness::Ready),
            (Readiness::Starting, _) => Self::Here(Readiness::Ready),
            (own, _) => Self::Here(own),
        }
    }

    /// How it is served through the port of `group`, asked through that of `asked`.
    fn through(self, group: u16, asked: u16) -> Readiness {
        match self {
            Self::Here(own) if group == asked => own,
            Self::Elsewhere(owner) if group == owner => Readiness::Ready,
            Self::Here(_) | Self::Elsewhere(_) => Readiness::NotOwner,
            Self::Nowhere => Readiness::Starting,
        }
    }
}

/// How a logical unit is served through this gateway.
pub(super) fn readiness(view: &TargetView, unit: &LogicalUnit) -> Readiness {
    Access::of(view, unit).through(view.portal_group_tag, view.portal_group_tag)
}

/// Why a command is not carried out here that only the owner may carry out.
pub(super) fn not_owner(view: &TargetView, unit: &LogicalUnit) -> Option<Sense> {
    match unit.device.readiness() {
        Readiness::NotOwner => match readiness(view, unit) {
            // As soon as the device knows.
            Readiness::Ready => Sense::not_ready(Readiness::Starting),
            readiness => Sense::not_ready(readiness),
        },
        Readiness::Ready | Readiness::Starting | Readiness::Unavailable => None,
    }
}

//! What the registrants are told of a change (SPC-4 5.13.11): of two states all of it follows, but whether who is not
//! registered any more was preempted or cleared.

use lunette_proto::map::{NexusId, Reservations};

use super::{is_for_registrants, registrant};
use crate::scsi::Attention;
use crate::scsi::unit::Notice;

/// What those registrants of `before` are told that `is_told` says, `lost` if they are not registered any more.
pub(super) fn tell(
    before: &Reservations,
    after: &Reservations,
    lost: Attention,
    is_told: impl Fn(&NexusId) -> bool,
) -> Vec<Notice> {
    let is_released = match (&before.reservation, &after.reservation) {
        (Some(old), Some(new)) => old.kind != new.kind,
        (Some(old), None) => is_for_registrants(old.kind),
        (None, _) => false,
    };
    let attention = |nexus: &NexusId| match registrant(after, nexus) {
        None => Some(lost),
        Some(_) if is_released => Some(Attention::ReservationsReleased),
        Some(_) => None,
    };
    let told = before.registrants.iter().map(|registrant| &registrant.nexus).filter(|nexus| is_told(nexus));
    let notice = |nexus: &NexusId| {
        let attention = Some(attention(nexus)?);
        Some(Notice { nexus: nexus.clone(), attention, aborted: false })
    };
    told.filter_map(notice).collect()
}

/// What is told when another gateway has made the change. None of the nexuses here has asked for it: if all are gone
/// they were cleared, for a preemptor stays registered; if some are, they were preempted.
pub(in crate::scsi) fn derive(before: &Reservations, after: &Reservations) -> Vec<Notice> {
    let lost = if after.registrants.is_empty() {
        Attention::ReservationsPreempted
    } else {
        Attention::RegistrationsPreempted
    };
    tell(before, after, lost, |_| true)
}

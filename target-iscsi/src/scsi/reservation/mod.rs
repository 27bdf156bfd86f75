//! Reservations: PERSISTENT RESERVE IN and OUT (SPC-4 5.13, 6.15, 6.16), and RESERVE and RELEASE (SPC-2 7.21, 7.16),
//! which are called classic here.
//!
//! ```text
//! access     may this command run?                         asked of every command
//! out        PERSISTENT RESERVE OUT: CDB, parameter list -> Order
//! order      Order, Reservations -> Reservations, notices  the rules, without any I/O
//! report     PERSISTENT RESERVE IN
//! notices    what sessions are told when another gateway has changed them
//! classic    RESERVE and RELEASE
//! ```
//!
//! A persistent reservation is kept by the cluster; what is decided is decided from the state that is in force when
//! the order's turn has come ([`SharedUnit::change`](super::unit::SharedUnit::change)), not when the command came.
//! A classic reservation lives in the gateway's memory and ends with its session.

mod access;
mod classic;
#[cfg(test)]
mod model;
mod notices;
mod order;
mod out;
mod report;
mod transport_id;

pub(super) use access::Access;
pub(super) use classic::{Classic, Hold, release_6, release_10, reserve_6, reserve_10};
pub(super) use notices::derive;
pub(super) use out::{
    ReserveOut, clear, preempt, preempt_and_abort, register, register_and_ignore, register_and_move, release,
    reserve,
};
pub(super) use report::{read_full_status, read_keys, read_reservation, report_capabilities};

use lunette_proto::map::{NexusId, Registrant, Reservation, ReservationType, Reservations};

fn registrant<'a>(reservations: &'a Reservations, nexus: &NexusId) -> Option<&'a Registrant> {
    reservations.registrants.iter().find(|registrant| registrant.nexus == *nexus)
}

/// Whether a registrant holds the reservation.
fn holds(reservation: &Reservation, registrant: &Registrant) -> bool {
    reservation.kind.is_of_all() || reservation.holder.as_ref() == Some(&registrant.nexus)
}

/// Whether all that are registered may do what the holder may.
fn is_for_registrants(kind: ReservationType) -> bool {
    use ReservationType::{ExclusiveAccessRegistrantsOnly, WriteExclusiveRegistrantsOnly};
    kind.is_of_all() || matches!(kind, ExclusiveAccessRegistrantsOnly | WriteExclusiveRegistrantsOnly)
}

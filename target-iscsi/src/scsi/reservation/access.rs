//! Which commands a reservation lets through (SPC-4 table 65, SBC-3 table 13; SPC-2 table 9 for classic ones).

use lunette_proto::map::{NexusId, ReservationType};

use super::{holds, is_for_registrants, registrant};
use crate::scsi::unit::SharedUnit;

/// What a command is to a reservation. Commands that a nexus other than the holder sends:
///
/// ```text
///              classic   Write Exclusive   Exclusive Access   the same, for registrants, by a registrant
/// Always       allowed   allowed           allowed            allowed
/// Status       conflict  allowed           allowed            allowed
/// Read         conflict  allowed           conflict           allowed
/// Write        conflict  conflict          conflict           allowed
/// Persistent   conflict  allowed           allowed            allowed
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::scsi) enum Access {
    /// Goes through everything: INQUIRY. Also RESERVE and RELEASE, which see for themselves.
    Always,
    /// Tells how the unit is, and goes through persistent reservations: TEST UNIT READY.
    Status,
    /// Reads the medium, or what is like it.
    Read,
    /// Changes the medium, or what others see.
    Write,
    /// PERSISTENT RESERVE IN and OUT: they conflict with every classic reservation, also with the sender's own
    /// (SPC-2 5.5.1).
    Persistent,
}

impl SharedUnit {
    /// Whether `nexus` may run a command of that kind now.
    pub(in crate::scsi) fn allows(&self, nexus: &NexusId, access: Access) -> bool {
        !self.is_reserved() || access == Access::Always || self.looks_up(nexus, access)
    }

    #[cold]
    fn looks_up(&self, nexus: &NexusId, access: Access) -> bool {
        if let Some(holder) = self.classic.lock().holder()
            && (access == Access::Persistent || holder != nexus)
        {
            return false;
        }
        let state = self.state();
        let Some(reservation) = &state.reservations.reservation else { return true };
        let is_exempt = || {
            registrant(&state.reservations, nexus).is_some_and(|registrant| {
                holds(reservation, registrant) || is_for_registrants(reservation.kind)
            })
        };
        match access {
            Access::Always | Access::Status | Access::Persistent => true,
            Access::Read => !excludes_reads(reservation.kind) || is_exempt(),
            Access::Write => is_exempt(),
        }
    }
}

fn excludes_reads(kind: ReservationType) -> bool {
    use ReservationType::{ExclusiveAccess, ExclusiveAccessAllRegistrants, ExclusiveAccessRegistrantsOnly};
    matches!(kind, ExclusiveAccess | ExclusiveAccessAllRegistrants | ExclusiveAccessRegistrantsOnly)
}

//! What a logical unit keeps over restarts and takeovers, beside its data: reservations, and a sanitize operation
//! that is not over.
//!
//! A value, replaced as a whole: who changes it names the revision that the change was made from, and the control plane
//! refuses a change of any other. So two gateways cannot both win.

use serde::{Deserialize, Serialize};

/// What a logical unit keeps, beside its data.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitState {
    /// Rises by one with each change; 0 is a unit of which nothing was ever kept.
    pub revision: u64,
    /// Persistent reservations.
    pub reservations: Reservations,
    /// A sanitize operation that has begun and is not over, or that has failed.
    pub sanitize: Option<Sanitize>,
}

/// Persistent reservations (SPC-4 5.13).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservations {
    /// PRGENERATION (SPC-4 6.15.2): counts what registrations went through, wraps around.
    pub generation: u32,
    /// APTPL of the last registration. Everything is kept over a loss of power either way.
    pub aptpl: bool,
    /// Who is registered, in the order in which they came; at most
    /// [`REGISTRANTS_MAX`](crate::limits::REGISTRANTS_MAX). Each I_T nexus is there once.
    pub registrants: Vec<Registrant>,
    /// The persistent reservation, if there is one.
    pub reservation: Option<Reservation>,
}

/// An I_T nexus with a reservation key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registrant {
    /// Which.
    pub nexus: NexusId,
    /// RESERVATION KEY, not 0.
    pub key: u64,
    /// It was registered with ALL_TG_PT.
    pub all_target_ports: bool,
}

/// An I_T nexus by the names of its ports (RFC 7143 4.4.3.2, 13.1).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NexusId {
    /// The initiator's iSCSI name, in lower case.
    pub initiator: String,
    /// Its part of the session's id.
    pub isid: [u8; 6],
    /// The target's iSCSI name, in lower case.
    pub target: String,
    /// The target portal group's tag, which is the relative target port too.
    pub tag: u16,
}

/// A persistent reservation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// Its type.
    pub kind: ReservationType,
    /// Who holds it; `None`: all registrants do.
    pub holder: Option<NexusId>,
}

/// Types of persistent reservations (SPC-4 6.15.3.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReservationType {
    /// 1h
    WriteExclusive,
    /// 3h
    ExclusiveAccess,
    /// 5h
    WriteExclusiveRegistrantsOnly,
    /// 6h
    ExclusiveAccessRegistrantsOnly,
    /// 7h
    WriteExclusiveAllRegistrants,
    /// 8h
    ExclusiveAccessAllRegistrants,
}

impl ReservationType {
    /// The number in a CDB and in parameter data.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::WriteExclusive => 1,
            Self::ExclusiveAccess => 3,
            Self::WriteExclusiveRegistrantsOnly => 5,
            Self::ExclusiveAccessRegistrantsOnly => 6,
            Self::WriteExclusiveAllRegistrants => 7,
            Self::ExclusiveAccessAllRegistrants => 8,
        }
    }

    /// The type of that number; `None`: obsolete or reserved.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::WriteExclusive,
            3 => Self::ExclusiveAccess,
            5 => Self::WriteExclusiveRegistrantsOnly,
            6 => Self::ExclusiveAccessRegistrantsOnly,
            7 => Self::WriteExclusiveAllRegistrants,
            8 => Self::ExclusiveAccessAllRegistrants,
            _ => return None,
        })
    }

    /// Whether all registrants hold it.
    #[must_use]
    pub fn is_of_all(self) -> bool {
        matches!(self, Self::WriteExclusiveAllRegistrants | Self::ExclusiveAccessAllRegistrants)
    }
}

/// A sanitize operation (SBC-3 4.11). It goes on after a restart, from its beginning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sanitize {
    /// What is done to the medium.
    pub kind: SanitizeKind,
    /// AUSE: a failure may be left by EXIT FAILURE MODE.
    pub unrestricted_exit: bool,
    /// It has failed, and the unit says so until it is left or begun again.
    pub has_failed: bool,
}

/// What a sanitize operation does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SanitizeKind {
    /// OVERWRITE: `pattern` over and over, `count` times, each time inverted if `invert`.
    Overwrite {
        /// INITIALIZATION PATTERN: not empty, at most a logical block.
        pattern: Vec<u8>,
        /// Not 0.
        count: u8,
        /// INVERT.
        invert: bool,
    },
    /// BLOCK ERASE: all blocks become zeros that take no space.
    BlockErase,
}

//! What the sessions of a gateway share about a logical unit, beside its device.
//!
//! ```text
//! ClusterMap::units --learn--> SharedUnit <-- LogicalUnit <-- TargetView, of every target that maps the volume
//!                                  |  ^
//!           Transition, decided -> |  | installed when it is kept
//!                                  v  |
//!                             Devices::keep
//! ```
//!
//! There are two kinds of shared state, and to add some:
//!
//! - What is kept over restarts and takeovers is a field of [`UnitState`]. Read it by [`SharedUnit::state`]. A command
//!   changes it by [`Step::Change`](super::Step::Change) with a [`Transition`], which decides from the state that is
//!   there when its turn has come; anything else by [`SharedUnit::change`]. What sessions are told of a change are
//!   its [`Notice`]s.
//! - What is not kept is a field of [`SharedUnit`], behind its own lock or atomic. What a reset does to it belongs into
//!   [`SharedUnit::reset`]; what a nexus holds of it is given back by dropping a guard in `nexus::Unit`.

mod changes;
mod modes;
mod nexuses;
mod registry;
mod sanitizing;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use arc_swap::ArcSwap;
use lunette_proto::ids::VolumeId;
use lunette_proto::map::{NexusId, UnitState};
use parking_lot::Mutex;

use super::Attention;
use super::reservation::Classic;
use super::sense::Failure;
use super::statistics::Statistics;
use crate::exports::Devices;
use changes::Changes;
use nexuses::Nexuses;
use sanitizing::Sanitizing;

pub(super) use modes::Modes;
pub use modes::SelectModes;
pub(super) use nexuses::Acquaintance;
pub use registry::Units;

/// What the sessions of a gateway share about a logical unit.
pub struct SharedUnit {
    volume: VolumeId,
    devices: Arc<dyn Devices>,
    state: ArcSwap<UnitState>,
    /// [`PERSISTENT`] and [`CLASSIC`]: what commands must be checked against.
    reserved: AtomicU8,
    /// The reservation of a RESERVE command, of whichever session.
    pub(super) classic: Mutex<Classic>,
    changes: Mutex<Changes>,
    nexuses: Mutex<Nexuses>,
    pub(super) modes: Modes,
    pub(super) statistics: Statistics,
    sanitizing: Sanitizing,
}

/// There is a persistent reservation.
const PERSISTENT: u8 = 0x01;
/// There is one of a RESERVE command.
const CLASSIC: u8 = 0x02;

/// A change of what a unit keeps. It is decided when its turn has come, and again if another gateway was faster.
pub trait Transition: Send + std::fmt::Debug {
    /// What comes of it in the present state.
    fn decide(&mut self, present: &UnitState) -> Result<Decision, Refusal>;
}

/// What a [`Transition`] comes to.
#[derive(Debug)]
pub enum Decision {
    /// It is done, and has changed nothing.
    Nothing,
    /// Keep this.
    Keep(Proposal),
    /// Changeable mode parameters change.
    Modes(SelectModes),
}

/// A state to be kept.
#[derive(Clone, Debug)]
pub struct Proposal {
    /// The state; its revision does not count.
    pub state: UnitState,
    /// What nexuses other than the one that asks for it have to know, each at most once.
    pub notices: Vec<Notice>,
}

/// Why a change was not made: how the command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal(pub(super) Failure);

impl Refusal {
    /// Nothing happened, and the initiator tries again.
    pub const BUSY: Self = Self(Failure::Busy);
}

/// What came of a [`Transition`]; `None`: nothing had to change.
pub type Settled = Result<Option<Arc<Changed>>, Refusal>;

/// A change that was made, and what the sessions of this gateway do about it.
#[derive(Debug)]
pub struct Changed {
    /// Of which volume.
    pub volume: VolumeId,
    /// What was kept before.
    pub before: Arc<UnitState>,
    /// What is kept now.
    pub after: Arc<UnitState>,
    /// In the order of the nexuses.
    notices: Vec<Notice>,
    /// The unit attention condition of every nexus but the one that asked for the change.
    pub everyone: Option<Attention>,
}

/// What one nexus has to know of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Which.
    pub nexus: NexusId,
    /// The unit attention condition that is established for it.
    pub attention: Option<Attention>,
    /// Its tasks are aborted.
    pub aborted: bool,
}

impl SharedUnit {
    /// A unit of which the map says `state`.
    #[must_use]
    pub fn new(volume: VolumeId, state: Arc<UnitState>, devices: Arc<dyn Devices>) -> Self {
        let reserved = if state.reservations.reservation.is_some() { PERSISTENT } else { 0 };
        let sanitizing = Sanitizing::default();
        sanitizing.install(&state);
        Self {
            volume,
            devices,
            state: ArcSwap::new(state),
            reserved: AtomicU8::new(reserved),
            classic: Mutex::default(),
            changes: Mutex::default(),
            nexuses: Mutex::default(),
            modes: Modes::default(),
            statistics: Statistics::default(),
            sanitizing,
        }
    }

    /// Whose it is.
    #[must_use]
    pub fn volume(&self) -> VolumeId {
        self.volume
    }

    /// What is kept of it.
    #[must_use]
    pub fn state(&self) -> Arc<UnitState> {
        self.state.load_full()
    }

    /// Whether any reservation may forbid commands. One relaxed load, for it is asked by every command.
    pub(super) fn is_reserved(&self) -> bool {
        self.reserved.load(Ordering::Relaxed) != 0
    }

    /// To be called with `classic` locked.
    pub(super) fn mark_classic(&self, is_reserved: bool) {
        self.mark(CLASSIC, is_reserved);
    }

    /// The unit, or its target, was reset (SAM-5 6.3.3).
    pub fn reset(&self) {
        self.modes.reset();
        self.release_classic();
    }

    /// Puts a newer state in place. To be called with `changes` locked.
    fn install(&self, state: Arc<UnitState>) {
        let is_reserved = state.reservations.reservation.is_some();
        if is_reserved {
            self.mark(PERSISTENT, true);
        }
        self.sanitizing.install(&state);
        self.state.store(state);
        if !is_reserved {
            self.mark(PERSISTENT, false);
        }
    }

    fn mark(&self, bit: u8, is_set: bool) {
        if is_set {
            self.reserved.fetch_or(bit, Ordering::Relaxed);
        } else {
            self.reserved.fetch_and(!bit, Ordering::Relaxed);
        }
    }
}

impl Changed {
    fn new(
        volume: VolumeId,
        before: Arc<UnitState>,
        after: Arc<UnitState>,
        mut notices: Vec<Notice>,
    ) -> Self {
        notices.sort_by(|a, b| a.nexus.cmp(&b.nexus));
        Self { volume, before, after, notices, everyone: None }
    }

    /// Whether anybody has to know.
    #[must_use]
    pub fn concerns_anyone(&self) -> bool {
        !self.notices.is_empty() || self.everyone.is_some()
    }

    /// What `nexus` has to know.
    #[must_use]
    pub fn notice(&self, nexus: &NexusId) -> Option<&Notice> {
        let at = self.notices.binary_search_by(|notice| notice.nexus.cmp(nexus)).ok()?;
        self.notices.get(at)
    }
}

impl std::fmt::Debug for SharedUnit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedUnit").field("volume", &self.volume).finish_non_exhaustive()
    }
}

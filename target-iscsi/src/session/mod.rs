//! iSCSI sessions without I/O (RFC 7143): bytes, completions, events and `now` in, slices of bytes
//! and actions out.
//!
//! ```text
//! Connection  --login--> Login --claim--> Session (full feature phase) --> closing
//! ```
//!
//! A [`Connection`] is driven by five verbs: [`Connection::handle_bytes`],
//! [`Connection::handle_completion`], [`Connection::handle_event`], [`Connection::handle_timeout`],
//! and after each of them [`Connection::poll_action`] and [`Connection::fill`] for what is to be
//! done. One session has one connection (MaxConnections=1) and nothing is recovered within it
//! (ErrorRecoveryLevel 0): what goes wrong closes it, and the initiator logs in again.
//!
//! Sessions know each other only through the [`Registry`] and through [`Event`]s, which the shell
//! carries: a login waits for the session that it reinstates, a reset for the tasks of others.

mod changes;
mod chap;
mod connection;
mod data_out;
mod full;
mod guard;
mod login;
mod negotiate;
mod permission;
mod registry;
mod stats;
mod task_management;
mod tasks;
mod text_exchange;
mod transmit;
mod window;

use std::any::Any;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use lunette_proto::ids::VolumeId;
use lunette_volume::device::{BlockDevice, Command};

pub use chap::{ChapError, Secrets, respond as chap_response};
pub use connection::{Connection, Inherited, Random};
pub use guard::Guard;
pub use negotiate::{NegotiationError, Settings};
pub use registry::{Claim, ConnectionId, Grant, Registry, SessionKey, Verdict};
pub use stats::SessionStats;

use crate::exports::Exports;
pub use crate::portals::Endpoint;
use crate::scsi::{Attention, Changed, Settled, SharedUnit, Transition};

/// Data of one session's commands that is held in memory: reads in flight and buffers of writes.
/// What does not fit waits, in order; a single command always fits.
pub const SESSION_BYTES_MAX: u64 = 64 << 20;
/// Task management functions of a session that are being carried out.
const FUNCTIONS_MAX: usize = 64;
/// Commands of a session, immediate ones included, which the window does not bound.
const TASKS_MAX: usize = lunette_proto::limits::SESSION_COMMANDS_MAX as usize + 32;
/// A session that is silent for this long is asked whether it lives.
const PING_AFTER: Duration = Duration::from_secs(10);
/// And if it does not answer for so long it is closed. Its host is there, or the kernel would have closed the connection
/// long ago: an initiator that does something else for a minute loses nothing.
const PING_PATIENCE: Duration = Duration::from_secs(60);
/// The same of one that does not even read, while much may be kept for it.
const STALL_PATIENCE: Duration = Duration::from_secs(10);
/// A discovery session that is silent for this long is closed.
const DISCOVERY_PATIENCE: Duration = Duration::from_secs(60);
/// Time that sessions get to log out of a target that is being drained.
const DRAIN_PATIENCE: Duration = Duration::from_secs(10);
/// Time to take the last responses before the connection is closed all the same.
const FLUSH_PATIENCE: Duration = Duration::from_secs(5);

/// What all connections of a gateway share.
pub struct Context {
    /// The portal group's tag.
    pub tag: u16,
    /// The portals, as they are bound.
    pub portals: Vec<SocketAddr>,
    /// What is exported; replaced as a whole.
    pub exports: ArcSwap<Exports>,
    /// Opens CHAP secrets.
    pub secrets: Arc<dyn Secrets>,
    /// Watches over CHAP attempts.
    pub guard: Guard,
}

/// Held by everyone who still works on something; when the last one drops it, it is done.
/// What that means is the shell's business.
#[derive(Clone)]
pub struct Ticket(pub Arc<dyn Any + Send + Sync>);

/// What a connection wants done.
pub enum Action {
    /// Submit `command` under `tag`; then [`Connection::handle_completion`].
    Submit {
        /// To whom.
        device: Arc<dyn BlockDevice>,
        /// Under which tag.
        tag: u64,
        /// What.
        command: Command,
    },
    /// Make a change of a unit under `tag`, by [`SharedUnit::change`]; then [`Event::Settled`].
    Change {
        /// Whose state.
        unit: Arc<SharedUnit>,
        /// Under which tag.
        tag: u64,
        /// What.
        transition: Box<dyn Transition>,
    },
    /// Wait until a unit has been sanitized, by [`SharedUnit::when_sanitized`]; then [`Event::Settled`].
    Await {
        /// Which.
        unit: Arc<SharedUnit>,
        /// Under which tag.
        tag: u64,
    },
    /// Send [`Event::Changed`] to all other sessions; when they have dropped their tickets, send
    /// [`Event::PeersQuiesced`] here.
    Tell {
        /// To be given back.
        token: u64,
        /// What was changed.
        changed: Arc<Changed>,
    },
    /// Claim the session at the [`Registry`]; then [`Event::Granted`] or [`Event::Refused`].
    Claim(Claim),
    /// The login is over; `stats` are the session's from now on.
    Established(Arc<SessionStats>),
    /// Send [`Event::Reset`] to all other sessions; when they have dropped their tickets, send
    /// [`Event::PeersQuiesced`] here.
    Reset {
        /// To be given back.
        token: u64,
        /// Whose tasks are aborted.
        volumes: Arc<[VolumeId]>,
        /// What their initiators are told.
        attention: Attention,
    },
    /// Send [`Event::Kick`] to all other sessions of a target (TARGET COLD RESET).
    DropTarget {
        /// Its name.
        target: String,
    },
}

/// What a connection learns from the rest of the gateway.
pub enum Event {
    /// The claim was granted.
    Granted {
        /// The session's handle.
        tsih: u16,
        /// What to go on with, if a connection is reinstated.
        session: Option<Inherited>,
    },
    /// The claim was refused.
    Refused {
        /// A login status.
        status: u16,
    },
    /// Another connection reinstates this session: stop at once.
    Superseded,
    /// Another session resets these volumes, or clears their task sets.
    Reset {
        /// Whose tasks are aborted.
        volumes: Arc<[VolumeId]>,
        /// What the initiator is told.
        attention: Attention,
        /// To be dropped when the tasks are no more.
        ticket: Ticket,
    },
    /// What came of [`Action::Change`], or of what [`Action::Await`] waited for.
    Settled {
        /// Of the action.
        tag: u64,
        /// What.
        settled: Settled,
    },
    /// Another session, or another gateway, has changed what a unit keeps.
    Changed {
        /// What.
        changed: Arc<Changed>,
        /// To be dropped when the unit attentions are established and the tasks that are to be aborted are no more.
        ticket: Option<Ticket>,
    },
    /// The others have done what [`Action::Reset`] or [`Action::Tell`] asked for.
    PeersQuiesced {
        /// Of the action.
        token: u64,
    },
    /// The exports were replaced.
    ExportsChanged,
    /// An operator, or a cold reset, ends the session.
    Kick,
    /// The gateway stops: finish what the devices have, then close.
    Stop,
}

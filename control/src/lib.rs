//! The control plane: the replicated cluster state, health, and the gRPC administration server.
//!
//! ```text
//! gRPC --> server --Command--> raft --log--> state --Changes--> published --> watchers
//!             |                                                     |
//!          health <--reports-- nodes, gateways <------map-----------+
//! ```
//!
//! - [`state`]: what a command may do and does, a pure function of the log;
//! - [`raft`]: the replicated log, on a store that survives everything but the disk's loss;
//! - [`published`]: the committed state as readers and watchers see it;
//! - [`seal`]: secrets at rest;
//! - [`join`]: tokens that bring the cluster's key to a machine;
//! - [`health`]: who is there, and what that means;
//! - [`owners`]: which gateway owns which volume;
//! - [`moves`]: where copies should lie, and how they get there;
//! - `server`: the gRPC services; [`client`]: how nodes, gateways and tools reach them;
//! - [`api`]: the gRPC API, generated.

pub mod api;
pub mod client;
mod control;
pub mod health;
pub mod join;
pub mod moves;
pub mod owners;
pub mod published;
pub mod raft;
pub mod seal;
mod server;
pub mod state;

pub use control::{Control, ControlConfig, ControlError, LogLimits};

/// Maximums of the control plane's own protocol.
pub mod limits {
    /// A message between members, or to a watcher: a whole map of the largest cluster fits.
    pub const MESSAGE_BYTES_MAX: usize = 256 << 20;
    /// A report or a registration: that of a gateway with all its sessions fits.
    pub const REPORT_BYTES_MAX: usize = 32 << 20;
}

//! The control plane: the replicated cluster state, health, and the gRPC administration server.
//!
//!     gRPC --> server --Command--> raft --log--> state --Changes--> published --> watchers
//!                 |                                                     |
//!              health <--reports-- nodes, gateways <------map-----------+
//!
//! - [`state`]: what a command may do and does, a pure function of the log;
//! - [`raft`]: the replicated log, on a store that survives everything but the disk's loss;
//! - [`published`]: the committed state as readers and watchers see it;
//! - [`seal`]: secrets at rest;
//! - [`api`]: the gRPC API, generated.

pub mod api;
pub mod published;
pub mod raft;
pub mod seal;
pub mod state;

/// Maximums of the control plane's own protocol.
pub mod limits {
    /// A message between members, or to a watcher: a whole map of the largest cluster fits.
    pub const MESSAGE_BYTES_MAX: usize = 256 << 20;
}

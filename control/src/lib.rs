//! The control plane: the replicated cluster state, health, and the gRPC administration server.
//!
//!     gRPC --> server --Command--> raft --log--> state --Changes--> published --> watchers
//!                 |                                                     |
//!              health <--reports-- nodes, gateways <------map-----------+
//!
//! - [`state`]: what a command may do and does, a pure function of the log;

pub mod api;
pub mod state;

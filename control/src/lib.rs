//! The control plane: the replicated cluster state, health, and the gRPC administration server.

pub mod api;

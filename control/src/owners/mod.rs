//! Who owns the volumes: what the leader gives to which gateway, as [`Planner`] says.

mod planner;

pub use planner::{HandOver, Look, Planner, successors};

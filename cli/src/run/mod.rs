//! The parts of a running system: `lunette node run`, `lunette gateway run`, and what `lunette up`
//! puts into one process.
//!
//! - [`node`], [`storage`], [`added`]: a storage node and its disks;
//! - [`gateway`], [`exporter`], [`ownership`], [`secrets`], [`reports`], [`loads`]: a gateway that follows the map;
//! - [`control`]: the member of the control plane that a node carries;
//! - [`member`]: what both say to the control plane; [`stop`]: when to stop.

pub(crate) mod added;
pub(crate) mod control;
pub(crate) mod exporter;
pub(crate) mod gateway;
mod giver;
pub(crate) mod keeper;
pub(crate) mod loads;
mod member;
pub(crate) mod node;
pub(crate) mod ownership;
mod reports;
pub(crate) mod secrets;
pub(crate) mod stop;
pub(crate) mod storage;

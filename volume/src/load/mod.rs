//! A load of a known shape on a device of blocks, and how long its commands take.
//!
//! ```text
//! Shape --accesses--> run: `depth` commands at a time --> device::BlockDevice
//!                      |<------------ outcomes -----------------'
//!                      '--> Latencies --> Progress
//! ```
//!
//! - [`shape`]: which access comes next, a pure function of a seed;
//! - [`latency`]: histograms of latencies;
//! - [`run`]: the task that keeps a device busy.
//!
//! What `lunette bench` has a volume's owner do: no session and no network to an initiator is in the way.

pub mod latency;
pub mod run;
pub mod shape;

pub use latency::{Latencies, Summary};
pub use run::{Load, Phase, Progress, Running};
pub use shape::{Access, Accesses, Pattern, Shape, ShapeError};

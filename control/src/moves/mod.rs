//! Where copies should lie, and the moves on the way there: what the leader proposes when disks come, go for good, or are to be
//! emptied.
//!
//! ```text
//! map, who is absent --target--> the table that each pool should have --steps--> moves that are due, and that are not any more
//!                                                                                  |
//!                       map  <--AddMoves, CancelMoves: some at a time-- planner <--'
//! ```
//!
//! A move is carried out by owners of volumes, like the return of a disk; here is only decided which there are.

mod planner;
mod preview;
mod target;

pub use planner::{Look, Planner, PoolPlan, REBUILD_AFTER, Room};
pub use preview::{DiskMoves, DrainProblem, Preview, preview};

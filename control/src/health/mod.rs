//! Who is there, and what that means for the cluster. Nothing here is replicated: it is what members
//! said last to the leader, and it is gone with the leader.

mod registry;
mod verdict;

pub use registry::{Member, Registry, Replaced, StreamId};
pub use verdict::{Condition, Health, Verdict, condition, judge, trouble};

use std::time::Duration;

/// Nodes and gateways report at least this often.
pub const REPORT_INTERVAL: Duration = Duration::from_millis(500);
/// A disk that does not answer a gateway for longer is listed as unreachable; a connection that is made again is not.
pub const UNREACHABLE_AFTER: Duration = Duration::from_secs(1);
/// Silence after which a member counts as down, even if its stream is still open.
pub const SILENCE_MAX: Duration = Duration::from_secs(3);

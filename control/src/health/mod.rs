//! Who is there, and what that means for the cluster. Nothing here is replicated: it is what members
//! said last to the leader, and it is gone with the leader. What follows from it for the in-sync sets, [`Decider`] proposes.

mod attention;
mod decision;
mod pace;
mod registry;
mod verdict;

pub(crate) use attention::{Attention, LOOK_INTERVAL};
pub use decision::{Decider, Look};
pub use registry::{CatchingUp, Complaint, Hearing, Member, Registry, Replaced, Said, StreamId};
pub use verdict::{Condition, Health, Verdict, behind, condition, judge, slowness, trouble};

use std::time::Duration;

/// Nodes report at least this often: their silence is noticed by it.
pub const NODE_REPORT_INTERVAL: Duration = Duration::from_millis(250);
/// Gateways report at least this often. Their reports are longer, for they name all sessions.
pub const GATEWAY_REPORT_INTERVAL: Duration = Duration::from_millis(500);
/// Silence of a node after which a gateway that gets no answers from it is believed.
pub const QUIET_MAX: Duration = Duration::from_secs(1);
/// A disk that does not answer a gateway for longer is listed as unreachable; a connection that is made again is not.
pub const UNREACHABLE_AFTER: Duration = Duration::from_secs(1);
/// Silence after which a member counts as down, even if its stream is still open.
pub const SILENCE_MAX: Duration = Duration::from_secs(3);

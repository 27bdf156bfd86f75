//! Consensus: how a command becomes part of the log on a majority, behind a trait of our own so that
//! nothing else knows which library does it.

mod member;
mod membership;
pub(crate) mod network;
pub(crate) mod store;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::io::Cursor;

use futures_util::future::BoxFuture;
use lunette_proto::ids::Epoch;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::watch;

pub(crate) use member::RaftMember;
pub use membership::MembershipError;
pub use store::{OpenError, StoreError};

pub(crate) use crate::state::Response;
use crate::state::{Command, Rejection};

openraft::declare_raft_types!(
    /// The types that the log is made of.
    pub(crate) TypeConfig:
        D = Command,
        R = Outcome,
        NodeId = u64,
        Node = openraft::BasicNode,
        Entry = openraft::Entry<TypeConfig>,
        SnapshotData = Cursor<Vec<u8>>,
        AsyncRuntime = openraft::TokioRuntime,
);

pub(crate) type Entry = openraft::Entry<TypeConfig>;
pub(crate) type BasicNode = openraft::BasicNode;
pub(crate) type StoredMembership = openraft::StoredMembership<u64, BasicNode>;

/// What applying an entry of the log came to; the same on every member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Outcome {
    /// It was applied.
    Applied {
        /// The epoch after it.
        epoch: Epoch,
        /// What its proposer learns.
        response: Response,
    },
    /// It was refused and changed nothing.
    Rejected(Rejection),
}

/// What a proposal came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The epoch after it.
    pub epoch: Epoch,
    /// What its proposer learns.
    pub response: Response,
}

/// Why consensus did not answer. Whether a proposal took effect is unknown then, but for `NotLeader`.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConsensusError {
    /// Another member leads, or none that is known.
    #[error("this member does not lead the control plane{}", leader_text(leader.as_deref()))]
    NotLeader {
        /// Where the leader is, if it is known.
        leader: Option<String>,
    },
    /// Too few members answer.
    #[error("the control plane has no quorum; try again when more of its members are up")]
    NoQuorum,
    /// The member has stopped or its store has failed.
    #[error("this member of the control plane has stopped: {reason}")]
    Stopped {
        /// Why.
        reason: String,
    },
}

fn leader_text(leader: Option<&str>) -> String {
    match leader {
        Some(leader) => format!("; {leader} does"),
        None => ", and no leader is known; try again".to_owned(),
    }
}

/// Why a proposal was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ProposeError {
    /// The state refuses it.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// Consensus did not answer.
    #[error(transparent)]
    Consensus(#[from] ConsensusError),
}

/// How consensus stands, as this member sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// This member.
    pub member: u64,
    /// Who leads.
    pub leader: Option<u64>,
    /// Under which term.
    pub term: u64,
    /// The last entry of the log that was applied here.
    pub applied: u64,
    /// All members.
    pub members: Vec<Member>,
}

/// A member of the control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub id: u64,
    /// Where it serves.
    pub address: String,
    /// Whether it counts towards a quorum.
    pub voter: bool,
    /// Whether it answers. Only the leader knows it of others.
    pub up: bool,
    /// Entries of the leader's log that it lacks; `None`: unknown. Only the leader knows it.
    pub behind: Option<u64>,
}

/// Why members of the control plane did not come or go.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ChangeError {
    /// It cannot be.
    #[error(transparent)]
    Refused(#[from] MembershipError),
    /// Consensus did not answer.
    #[error(transparent)]
    Consensus(#[from] ConsensusError),
}

/// A replicated log of commands.
pub trait Consensus: Send + Sync + 'static {
    /// Commits a command and applies it.
    fn propose(&self, command: Command) -> BoxFuture<'_, Result<Committed, ProposeError>>;

    /// Returns once this member has applied everything that was committed before the call, and still
    /// leads: what is read after it is not stale.
    fn read_barrier(&self) -> BoxFuture<'_, Result<(), ConsensusError>>;

    /// How it stands.
    fn metrics(&self) -> Metrics;

    /// Whether this member leads, and every change of that.
    fn leading(&self) -> watch::Receiver<bool>;

    /// Whether a leader is known whom this member votes for or is: what it knows then is what others know, but for
    /// moments. And every change of that.
    fn in_touch(&self) -> watch::Receiver<bool>;

    /// Where the members are, and every change of that.
    fn addresses(&self) -> watch::Receiver<Vec<String>>;

    /// Adds a member that gets the log and does not vote yet.
    fn add_learner(&self, member: u64, address: String) -> BoxFuture<'_, Result<(), ConsensusError>>;

    /// Has members, all known already, vote from now on, and others leave for good; all of it or, if it is refused, nothing.
    fn change_members(
        &self,
        add: BTreeSet<u64>,
        remove: BTreeSet<u64>,
    ) -> BoxFuture<'_, Result<(), ChangeError>>;

    /// Stops, with everything that was committed on disk.
    fn stop(&self) -> BoxFuture<'_, ()>;
}

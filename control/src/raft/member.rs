//! [`Consensus`] by openraft.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use openraft::error::{CheckIsLeaderError, ClientWriteError, ForwardToLeader, RaftError};
use openraft::{Config, Raft, SnapshotPolicy};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::network::Network;
use super::store::{Identity, LogStore, Machine, Store};
use super::{
    BasicNode, Committed, Consensus, ConsensusError, Member, Metrics, Outcome, ProposeError, TypeConfig,
};
use crate::state::Command;

/// How long a caller waits for a quorum.
const QUORUM_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a new member may take to catch up.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(120);
/// Entries of the log between two snapshots, and how many stay for members that lag.
const SNAPSHOT_ENTRIES: u64 = 5000;
const KEPT_ENTRIES: u64 = 1000;
const HEARTBEAT_MS: u64 = 100;
/// A member campaigns after its lease on the lost leader, which is as long, and this: twice it in all.
const ELECTION_MS: u64 = 300;
/// openraft draws a member's election timeout once, at its start. Bands that do not overlap keep two
/// members from campaigning in step for ever.
const ELECTION_BAND_MS: u64 = 75;
const ELECTION_BANDS: u64 = 5;

/// A member of the control plane.
pub(crate) struct RaftMember {
    raft: Raft<TypeConfig>,
    identity: Identity,
    store: Store,
    leading: watch::Sender<bool>,
    watcher: JoinHandle<()>,
}

impl RaftMember {
    /// Starts the member. It serves others' messages at once, and leads or follows when it is found or
    /// elected.
    pub(crate) async fn start(
        identity: Identity,
        store: Store,
        log: LogStore,
        machine: Machine,
    ) -> Result<Self, ConsensusError> {
        let election = ELECTION_MS + ELECTION_BAND_MS * (identity.member % ELECTION_BANDS);
        let config = Config {
            cluster_name: identity.cluster.to_string(),
            heartbeat_interval: HEARTBEAT_MS,
            election_timeout_min: election,
            election_timeout_max: election + ELECTION_BAND_MS,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_ENTRIES),
            max_in_snapshot_log_to_keep: KEPT_ENTRIES,
            install_snapshot_timeout: 10_000,
            ..Config::default()
        };
        let config = Arc::new(config.validate().map_err(stopped)?);
        let network = Network::new(identity);
        let raft = Raft::new(identity.member, config, network, log, machine).await.map_err(stopped)?;
        let leading = watch::Sender::new(false);
        let watcher = tokio::spawn(follow(raft.clone(), identity.member, leading.clone()));
        Ok(Self { raft, identity, store, leading, watcher })
    }

    /// Makes this member the only one of a new cluster, unless it belongs to one already, and then
    /// hurries the election of a member that is alone: nobody else could win it. One that joins waits to
    /// be found.
    pub(crate) async fn found_or_resume(&self, address: &str, join: bool) -> Result<(), ConsensusError> {
        let member = self.identity.member;
        if self.raft.is_initialized().await.map_err(stopped)? {
            let metrics = self.metrics();
            let alone = metrics.members.iter().filter(|other| other.voter).all(|other| other.id == member);
            if alone {
                self.raft.trigger().elect().await.map_err(stopped)?;
            }
            return Ok(());
        }
        if join {
            return Ok(());
        }
        let members = BTreeMap::from([(member, BasicNode::new(address))]);
        self.raft.initialize(members).await.map_err(stopped)
    }

    /// Returns when a leader is known; whether it is this member.
    pub(crate) async fn led(&self) -> Result<bool, ConsensusError> {
        let mut metrics = self.raft.metrics();
        let led =
            metrics.wait_for(|metrics| metrics.running_state.is_err() || metrics.current_leader.is_some());
        let led = led.await.map_err(stopped)?;
        led.running_state.as_ref().map_err(stopped)?;
        Ok(led.current_leader == Some(self.identity.member))
    }

    /// The library's own handle, for messages of other members.
    pub(crate) fn raft(&self) -> &Raft<TypeConfig> {
        &self.raft
    }

    pub(crate) fn identity(&self) -> Identity {
        self.identity
    }

    async fn write(&self, command: Command) -> Result<Committed, ProposeError> {
        let written = timeout(QUORUM_TIMEOUT, self.raft.client_write(command)).await;
        let response = written.map_err(|_| ConsensusError::NoQuorum)?.map_err(write_error)?;
        match response.data {
            Outcome::Applied { epoch, response } => Ok(Committed { epoch, response }),
            Outcome::Rejected(rejection) => Err(rejection.into()),
        }
    }

    async fn barrier(&self) -> Result<(), ConsensusError> {
        let ensured = timeout(QUORUM_TIMEOUT, self.raft.ensure_linearizable()).await;
        match ensured.map_err(|_| ConsensusError::NoQuorum)? {
            Ok(_) => Ok(()),
            Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(forward))) => {
                Err(not_leader(forward))
            }
            Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(_))) => Err(ConsensusError::NoQuorum),
            Err(RaftError::Fatal(fatal)) => Err(stopped(fatal)),
        }
    }
}

impl Consensus for RaftMember {
    fn propose(&self, command: Command) -> BoxFuture<'_, Result<Committed, ProposeError>> {
        self.write(command).boxed()
    }

    fn read_barrier(&self) -> BoxFuture<'_, Result<(), ConsensusError>> {
        self.barrier().boxed()
    }

    fn metrics(&self) -> Metrics {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        let member = |(id, node): (&u64, &BasicNode)| Member {
            id: *id,
            address: node.addr.clone(),
            voter: voters.contains(id),
        };
        Metrics {
            member: metrics.id,
            leader: metrics.current_leader,
            term: metrics.current_term,
            applied: metrics.last_applied.map_or(0, |applied| applied.index),
            members: membership.nodes().map(member).collect(),
        }
    }

    fn leading(&self) -> watch::Receiver<bool> {
        self.leading.subscribe()
    }

    fn add_learner(&self, member: u64, address: String) -> BoxFuture<'_, Result<(), ConsensusError>> {
        let add = async move {
            let added =
                timeout(CATCH_UP_TIMEOUT, self.raft.add_learner(member, BasicNode::new(address), true));
            added.await.map_err(|_| ConsensusError::NoQuorum)?.map_err(membership_error)?;
            Ok(())
        };
        add.boxed()
    }

    fn set_voters(&self, members: BTreeSet<u64>) -> BoxFuture<'_, Result<(), ConsensusError>> {
        let change = async move {
            let changed = timeout(CATCH_UP_TIMEOUT, self.raft.change_membership(members, false));
            changed.await.map_err(|_| ConsensusError::NoQuorum)?.map_err(membership_error)?;
            Ok(())
        };
        change.boxed()
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        let stop = async {
            // An error means that it has ended already.
            let _ = self.raft.shutdown().await;
            self.watcher.abort();
            self.leading.send_replace(false);
            self.store.close().await;
        };
        stop.boxed()
    }
}

/// Keeps `leading` up to date for as long as Raft runs.
async fn follow(raft: Raft<TypeConfig>, member: u64, leading: watch::Sender<bool>) {
    let mut metrics = raft.metrics();
    loop {
        let now = {
            let metrics = metrics.borrow_and_update();
            metrics.running_state.is_ok() && metrics.current_leader == Some(member)
        };
        leading.send_if_modified(|before| std::mem::replace(before, now) != now);
        if metrics.changed().await.is_err() {
            leading.send_replace(false);
            return;
        }
    }
}

fn stopped(error: impl Display) -> ConsensusError {
    ConsensusError::Stopped { reason: error.to_string() }
}

fn not_leader(forward: ForwardToLeader<u64, BasicNode>) -> ConsensusError {
    ConsensusError::NotLeader { leader: forward.leader_node.map(|node| node.addr) }
}

type WriteError = RaftError<u64, ClientWriteError<u64, BasicNode>>;

fn write_error(error: WriteError) -> ProposeError {
    ProposeError::Consensus(membership_error(error))
}

fn membership_error(error: WriteError) -> ConsensusError {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => not_leader(forward),
        RaftError::APIError(ClientWriteError::ChangeMembershipError(error)) => stopped(error),
        RaftError::Fatal(fatal) => stopped(fatal),
    }
}

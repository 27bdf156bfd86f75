//! [`Consensus`] by openraft.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use openraft::error::{
    ChangeMembershipError, CheckIsLeaderError, ClientWriteError, ForwardToLeader, RaftError,
};
use openraft::{ChangeMembers, Config, Raft, RaftMetrics, SnapshotPolicy};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::membership::plan;
use super::network::{Contacts, Network};
use super::store::{Identity, LogStore, Machine, Store};
use super::{
    BasicNode, ChangeError, Committed, Consensus, ConsensusError, Member, Metrics, Outcome, ProposeError,
    TypeConfig,
};
use crate::control::LogLimits;
use crate::state::Command;

/// How long a caller waits for a quorum.
const QUORUM_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a change of the membership may take: two commits, of which others may have to catch up first.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(20);
/// A member that has not answered for so long is down.
const DOWN: Duration = Duration::from_secs(1);
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
    contacts: Contacts,
    standing: Standing,
    watcher: JoinHandle<()>,
    /// One change of the membership at a time: each is two steps.
    changing: tokio::sync::Mutex<()>,
}

/// What others wait for, kept up to date for as long as Raft runs.
#[derive(Clone, Default)]
struct Standing {
    leading: watch::Sender<bool>,
    in_touch: watch::Sender<bool>,
    addresses: watch::Sender<Vec<String>>,
}

impl RaftMember {
    /// Starts the member. It serves others' messages at once, and leads or follows when it is found or
    /// elected.
    pub(crate) async fn start(
        identity: Identity,
        store: Store,
        log: LogStore,
        machine: Machine,
        limits: LogLimits,
    ) -> Result<Self, ConsensusError> {
        let election = ELECTION_MS + ELECTION_BAND_MS * (identity.member % ELECTION_BANDS);
        let config = Config {
            cluster_name: identity.cluster.to_string(),
            heartbeat_interval: HEARTBEAT_MS,
            election_timeout_min: election,
            election_timeout_max: election + ELECTION_BAND_MS,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(limits.snapshot_entries),
            max_in_snapshot_log_to_keep: limits.kept_entries,
            install_snapshot_timeout: 10_000,
            ..Config::default()
        };
        let config = Arc::new(config.validate().map_err(stopped)?);
        let contacts = Contacts::default();
        let network = Network::new(identity, contacts.clone());
        let raft = Raft::new(identity.member, config, network, log, machine).await.map_err(stopped)?;
        let standing = Standing::default();
        let watcher = tokio::spawn(follow(raft.clone(), identity.member, standing.clone()));
        let changing = tokio::sync::Mutex::default();
        Ok(Self { raft, identity, store, contacts, standing, watcher, changing })
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

    async fn change(&self, change: ChangeMembers<u64, BasicNode>) -> Result<(), ConsensusError> {
        let changed = timeout(CHANGE_TIMEOUT, self.raft.change_membership(change, false)).await;
        changed.map_err(|_| ConsensusError::NoQuorum)?.map_err(membership_error)?;
        Ok(())
    }

    /// Takes note of where this member is now, if it is the only one and leads. Of several, each is known to the others by its
    /// address, which stays.
    pub(crate) async fn settle_address(&self, address: &str) -> Result<(), ConsensusError> {
        let _one = self.changing.lock().await;
        let metrics = self.metrics();
        match &metrics.members[..] {
            [only] if only.id == metrics.member && only.address != address => {
                let node = BTreeMap::from([(only.id, BasicNode::new(address))]);
                self.change(ChangeMembers::SetNodes(node)).await
            }
            _ => Ok(()),
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
        let last = metrics.last_log_index.map_or(0, |index| index + 1);
        let behind = |id: u64| {
            if id == metrics.id {
                return Some(0);
            }
            // What was sent and is not acknowledged yet counts as lacking.
            let matched = metrics.replication.as_ref()?.get(&id)?.map_or(0, |matched| matched.index + 1);
            Some(last.saturating_sub(matched))
        };
        let member = |(id, node): (&u64, &BasicNode)| Member {
            id: *id,
            address: node.addr.clone(),
            voter: voters.contains(id),
            up: *id == metrics.id || self.contacts.within(*id, DOWN),
            behind: behind(*id),
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
        self.standing.leading.subscribe()
    }

    fn in_touch(&self) -> watch::Receiver<bool> {
        self.standing.in_touch.subscribe()
    }

    fn addresses(&self) -> watch::Receiver<Vec<String>> {
        self.standing.addresses.subscribe()
    }

    fn add_learner(&self, member: u64, address: String) -> BoxFuture<'_, Result<(), ConsensusError>> {
        let add = async move {
            let _one = self.changing.lock().await;
            self.change(ChangeMembers::AddNodes(BTreeMap::from([(member, BasicNode::new(address))]))).await
        };
        add.boxed()
    }

    fn change_members(
        &self,
        add: BTreeSet<u64>,
        remove: BTreeSet<u64>,
    ) -> BoxFuture<'_, Result<(), ChangeError>> {
        let change = async move {
            let _one = self.changing.lock().await;
            // A member that does not lead knows too little of the others.
            self.barrier().await?;
            let voters = plan(&self.metrics().members, &add, &remove)?;
            // Also if they are so already: a leader that died half way has left both the old ones and the new ones voting.
            self.change(ChangeMembers::ReplaceAllVoters(voters)).await?;
            let left: BTreeSet<u64> = {
                let metrics = self.raft.metrics();
                let metrics = metrics.borrow();
                let membership = metrics.membership_config.membership();
                membership.nodes().map(|(id, _)| *id).filter(|id| remove.contains(id)).collect()
            };
            if left.is_empty() {
                return Ok(());
            }
            Ok(self.change(ChangeMembers::RemoveNodes(left)).await?)
        };
        change.boxed()
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        let stop = async {
            // An error means that it has ended already.
            let _ = self.raft.shutdown().await;
            self.watcher.abort();
            self.standing.lost();
            self.store.close().await;
        };
        stop.boxed()
    }
}

impl Standing {
    fn see(&self, metrics: &RaftMetrics<u64, BasicNode>, member: u64) {
        let membership = metrics.membership_config.membership();
        let runs = metrics.running_state.is_ok();
        let leads = runs && metrics.current_leader == Some(member);
        // Who does not vote is not told when the leader is lost.
        let votes = membership.voter_ids().any(|id| id == member);
        let in_touch = leads || (runs && votes && metrics.current_leader.is_some());
        set(&self.leading, leads);
        set(&self.in_touch, in_touch);
        set(&self.addresses, membership.nodes().map(|(_, node)| node.addr.clone()).collect());
    }

    fn lost(&self) {
        set(&self.leading, false);
        set(&self.in_touch, false);
    }
}

fn set<T: PartialEq>(sender: &watch::Sender<T>, now: T) {
    sender.send_if_modified(|before| {
        let changed = *before != now;
        if changed {
            *before = now;
        }
        changed
    });
}

/// Keeps `standing` up to date for as long as Raft runs.
async fn follow(raft: Raft<TypeConfig>, member: u64, standing: Standing) {
    let mut metrics = raft.metrics();
    loop {
        standing.see(&metrics.borrow_and_update(), member);
        if metrics.changed().await.is_err() {
            standing.lost();
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
        // The last change is not committed yet: too few answer.
        RaftError::APIError(ClientWriteError::ChangeMembershipError(ChangeMembershipError::InProgress(
            _,
        ))) => ConsensusError::NoQuorum,
        RaftError::APIError(ClientWriteError::ChangeMembershipError(error)) => stopped(error),
        RaftError::Fatal(fatal) => stopped(fatal),
    }
}

//! What every service works on.

use std::sync::{Arc, Weak};
use std::time::Duration;

use lunette_proto::ids::ClusterId;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Code, Status};

use super::attachments::Attachments;
use super::disks::Refusals;
use super::errors::{proposal, rejected, status, unavailable};
use super::moves::Plans;
use super::view::View;
use crate::published::Published;
use crate::raft::{Committed, Consensus};
use crate::seal::Sealer;
use crate::state::{Command, State};

/// One for all services of a member.
pub(crate) struct Context {
    /// Itself, for tasks that outlive a call.
    this: Weak<Context>,
    pub(crate) cluster: ClusterId,
    pub(crate) consensus: Arc<dyn Consensus>,
    pub(crate) published: Arc<Published>,
    pub(crate) sealer: Arc<Sealer>,
    pub(crate) attachments: Attachments,
    pub(super) refusals: Refusals,
    /// What the planner said last; nothing while this member does not lead.
    pub(super) plans: Mutex<Arc<Plans>>,
    /// How long a disk is out before its copies are made elsewhere.
    pub(super) rebuild_after: Duration,
    /// Ends every stream and task.
    pub(crate) stop: CancellationToken,
    pub(crate) tasks: TaskTracker,
}

impl Context {
    pub(crate) fn new(
        cluster: ClusterId,
        consensus: Arc<dyn Consensus>,
        published: Arc<Published>,
        sealer: Arc<Sealer>,
        rebuild_after: Duration,
        stop: CancellationToken,
        tasks: TaskTracker,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this| {
            let (this, attachments) = (this.clone(), Attachments::default());
            let (refusals, plans) = (Refusals::default(), Mutex::default());
            Self {
                this,
                cluster,
                consensus,
                published,
                sealer,
                attachments,
                refusals,
                plans,
                rebuild_after,
                stop,
                tasks,
            }
        })
    }

    pub(super) fn shared(&self) -> Arc<Self> {
        self.this.upgrade().expect("a call is made on a context that is shared")
    }

    /// The state with everything in it that was committed before the call.
    pub(super) async fn state(&self) -> Result<Arc<State>, Status> {
        self.consensus.read_barrier().await.map_err(|error| unavailable(&error))?;
        let state = self.published.state();
        if state.map().cluster != self.cluster {
            return Err(status(Code::Unavailable, "FOUNDING", "the cluster is being founded; try again"));
        }
        Ok(state)
    }

    /// Carries a command out. One that would be refused, or would change nothing, never enters the log.
    pub(super) async fn run(&self, command: Command) -> Result<Committed, Status> {
        let state = self.state().await?;
        let decision = state.decide(&command).map_err(|rejection| rejected(&rejection))?;
        if decision.changes.is_empty() {
            return Ok(Committed { epoch: state.map().epoch, response: decision.response });
        }
        drop(state);
        self.consensus.propose(command).await.map_err(|error| proposal(&error))
    }

    /// Looks at the newest state and what members said, at one moment.
    pub(super) async fn view<T>(&self, look: impl FnOnce(&View<'_>) -> T) -> Result<T, Status> {
        let state = self.state().await?;
        Ok(self.look(&state, look))
    }

    /// Looks at a state and what members said.
    pub(super) fn look<T>(&self, state: &State, look: impl FnOnce(&View<'_>) -> T) -> T {
        let plans = Arc::clone(&self.plans.lock());
        self.attachments.read(|registry, now| look(&View::new(state.map(), registry, plans, now)))
    }

    /// A member of another cluster has come to the wrong place. An empty id is a member's that does
    /// not know its cluster yet.
    pub(super) fn check_cluster(&self, cluster: &str) -> Result<(), Status> {
        if cluster.is_empty() {
            return Ok(());
        }
        let named: ClusterId = cluster.parse().map_err(|_| {
            super::errors::invalid(
                "cluster_id",
                "CLUSTER_ID_INVALID",
                "a cluster id is 32 hexadecimal digits",
            )
        })?;
        if named == self.cluster {
            return Ok(());
        }
        let sentence =
            format!("this is cluster {}, not {named}; check the control plane's address", self.cluster);
        Err(status(Code::FailedPrecondition, "OTHER_CLUSTER", sentence))
    }
}

//! Status, nodes, and the members of the control plane.

use std::sync::Arc;
use std::time::Duration;

use lunette_proto::map::ClusterMap;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::Context;
use super::disks::node_named;
use super::errors::{rejected, stopping};
use super::moves::no_node;
use super::view::control;
use crate::api::admin::cluster_server::Cluster;
use crate::api::admin::nodes_server::Nodes;
use crate::api::admin::status_response::Health;
use crate::api::admin::{
    ChangeMembersRequest, ControlStatus, CreateJoinTokenRequest, CreateJoinTokenResponse, DrainNodeRequest,
    DrainResponse, LeaderRequest, LeaderResponse, ListNodesRequest, ListNodesResponse, RemoveNodeRequest,
    RemoveNodeResponse, StatusRequest, StatusResponse,
};
use crate::health::Member;
use crate::state::{Command, Rejection, disks_of};

/// The shortest time between two of a watcher's statuses, and the longest before one looks again:
/// silence is no event.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

impl Context {
    /// Asks everybody how it is: what an administrator has just done is to be seen.
    pub(super) async fn refresh_all(&self) -> Result<(), Status> {
        let state = self.state().await?;
        let map = state.map();
        let nodes = map.nodes.keys().copied().map(Member::Node);
        self.attachments.refresh(nodes.chain(map.gateways.keys().copied().map(Member::Gateway))).await;
        Ok(())
    }

    /// Asks the gateways for their sessions.
    pub(super) async fn refresh_gateways(&self, map: &ClusterMap) {
        self.attachments.refresh(map.gateways.keys().copied().map(Member::Gateway)).await;
    }

    async fn status_now(&self) -> Result<StatusResponse, Status> {
        let metrics = self.consensus.metrics();
        let mut status = self.view(|view| view.status(&metrics)).await?;
        for member in metrics.members.iter().filter(|member| !member.up) {
            // One more death, or some, and nothing can be changed any more.
            let (id, address) = (member.id, &member.address);
            status.reasons.push(format!("member {id} of the control plane, at {address}, does not answer"));
            if status.health() == Health::Healthy {
                status.set_health(Health::Degraded);
            }
        }
        Ok(status)
    }

    /// Sends a status whenever it differs from the last, until the watcher goes or the member stops.
    async fn watch(
        self: Arc<Self>,
        first: StatusResponse,
        out: mpsc::Sender<Result<StatusResponse, Status>>,
    ) {
        let mut last = first.clone();
        let mut next = Ok(first);
        loop {
            let failed = next.is_err();
            if out.send(next).await.is_err() || failed {
                return;
            }
            next = loop {
                let wake = Instant::now() + WATCH_INTERVAL;
                tokio::select! {
                    () = sleep_until(wake) => {}
                    () = self.stop.cancelled() => break Err(stopping()),
                    () = out.closed() => return,
                }
                match self.status_now().await {
                    Ok(status) if status == last => {}
                    Ok(status) => {
                        last = status.clone();
                        break Ok(status);
                    }
                    Err(status) => break Err(status),
                }
            };
        }
    }
}

#[tonic::async_trait]
impl Cluster for Context {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        self.refresh_all().await?;
        self.status_now().await.map(Response::new)
    }

    type WatchStatusStream = ReceiverStream<Result<StatusResponse, Status>>;

    async fn watch_status(
        &self,
        _: Request<StatusRequest>,
    ) -> Result<Response<Self::WatchStatusStream>, Status> {
        let first = self.status_now().await?;
        let (out, stream) = mpsc::channel(1);
        let this = self.shared();
        self.tasks.spawn(this.watch(first, out));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn leader(&self, _: Request<LeaderRequest>) -> Result<Response<LeaderResponse>, Status> {
        let metrics = self.consensus.metrics();
        // A member without a vote learns late that the leader it knew is gone, and a leader that others do not follow
        // any more learns it here.
        let leads = metrics.leader == Some(metrics.member);
        let known = *self.consensus.in_touch().borrow();
        let sure = known && (!leads || self.consensus.read_barrier().await.is_ok());
        let ControlStatus { leader, members, .. } = control(&metrics);
        Ok(Response::new(LeaderResponse {
            cluster_id: self.cluster.to_string(),
            member: metrics.member,
            leader: if sure { leader } else { 0 },
            members,
        }))
    }

    async fn change_members(
        &self,
        request: Request<ChangeMembersRequest>,
    ) -> Result<Response<ControlStatus>, Status> {
        let ChangeMembersRequest { add, remove } = request.into_inner();
        Context::change_members(self, add, remove).await?;
        Ok(Response::new(control(&self.consensus.metrics())))
    }

    async fn create_join_token(
        &self,
        request: Request<CreateJoinTokenRequest>,
    ) -> Result<Response<CreateJoinTokenResponse>, Status> {
        let (token, expires_unix_ms) = self.new_token(request.into_inner().ttl_ms).await?;
        Ok(Response::new(CreateJoinTokenResponse { token, expires_unix_ms }))
    }
}

#[tonic::async_trait]
impl Nodes for Context {
    async fn list(&self, _: Request<ListNodesRequest>) -> Result<Response<ListNodesResponse>, Status> {
        self.refresh_all().await?;
        let nodes = self.view(|view| view.nodes()).await?;
        Ok(Response::new(ListNodesResponse { nodes }))
    }

    async fn drain(&self, request: Request<DrainNodeRequest>) -> Result<Response<DrainResponse>, Status> {
        let DrainNodeRequest { name, draining, dry_run } = request.into_inner();
        let state = self.state().await?;
        let node = node_named(state.map(), &name).ok_or_else(|| rejected(&no_node(&name)))?;
        let disks = disks_of(state.map(), node).map(|disk| disk.id).collect();
        self.drain_disks(&format!("node {name}"), disks, draining, dry_run).await.map(Response::new)
    }

    async fn remove(
        &self,
        request: Request<RemoveNodeRequest>,
    ) -> Result<Response<RemoveNodeResponse>, Status> {
        let name = request.into_inner().name;
        let state = self.state().await?;
        let node = node_named(state.map(), &name).ok_or_else(|| rejected(&no_node(&name)))?;
        // One that is there would serve a disk that is not drained again the next moment.
        if self.is_up(node)
            && let Some(disk) = disks_of(state.map(), node).find(|disk| !disk.draining)
        {
            return Err(rejected(&Rejection::NotDrained(disk.id)));
        }
        self.run(Command::RemoveNode { name }).await?;
        Ok(Response::new(RemoveNodeResponse {}))
    }
}

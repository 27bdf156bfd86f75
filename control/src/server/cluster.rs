//! Status and nodes.

use std::sync::Arc;
use std::time::Duration;

use lunette_proto::map::ClusterMap;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::Context;
use super::errors::stopping;
use crate::api::admin::cluster_server::Cluster;
use crate::api::admin::nodes_server::Nodes;
use crate::api::admin::{ListNodesRequest, ListNodesResponse, StatusRequest, StatusResponse};
use crate::health::Member;

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
        self.view(|view| view.status(&metrics)).await
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
}

#[tonic::async_trait]
impl Nodes for Context {
    async fn list(&self, _: Request<ListNodesRequest>) -> Result<Response<ListNodesResponse>, Status> {
        self.refresh_all().await?;
        let nodes = self.view(|view| view.nodes()).await?;
        Ok(Response::new(ListNodesResponse { nodes }))
    }
}

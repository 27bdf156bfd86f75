//! How nodes, gateways and tools reach the control plane.
//!
//! - [`ControlPlane`]: its addresses, whichever of them leads; calls that wait for a leader;
//! - [`MapWatcher`]: the newest map, always;
//! - [`Attachment`]: reports up, orders down, for as long as a member lives.

mod attachment;
mod follower;
mod watcher;

#[cfg(test)]
mod tests;

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use lunette_proto::map::UnitState;
use thiserror::Error;
use tokio::time::{Instant, sleep};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::api::admin::cluster_client::ClusterClient;
use crate::api::admin::disks_client::DisksClient;
use crate::api::admin::nodes_client::NodesClient;
use crate::api::admin::pools_client::PoolsClient;
use crate::api::admin::sessions_client::SessionsClient;
use crate::api::admin::targets_client::TargetsClient;
use crate::api::admin::volumes_client::VolumesClient;
use crate::api::cluster::members_client::MembersClient;
use crate::api::cluster::{
    DiskAddedRequest, DiskAddedResponse, DiskRefusedRequest, DiskRefusedResponse, KeepUnitRequest,
    KeepUnitResponse, KeptState, RegisterGatewayRequest, RegisterGatewayResponse, RegisterNodeRequest,
    RegisterNodeResponse, TakeOwnershipRequest, TakeOwnershipResponse, VolumePurgedRequest,
    VolumePurgedResponse,
};
use crate::limits::{MESSAGE_BYTES_MAX, REPORT_BYTES_MAX};
use crate::server::MAP_FORMAT;

pub use attachment::{Attached, Attachment};
pub use follower::{Follower, WatchError};
pub use watcher::{MapWatcher, WatchEnded};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How a stream learns that the other side has vanished.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// A single answer; with no quorum the server says so earlier.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_millis(500);

/// An address that is none.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{address:?} is no address of a control plane; use HOST:PORT or http://HOST:PORT")]
pub struct AddressError {
    /// What was given.
    pub address: String,
}

/// The members of a control plane, by their addresses. Cheap to clone; must be used inside a runtime.
pub struct ControlPlane {
    members: Arc<[Member]>,
    /// The one that answered last.
    current: AtomicUsize,
}

/// Clones share connections, but each turns to another member by itself: a stream that ends does not
/// lead those astray that have found the leader.
impl Clone for ControlPlane {
    fn clone(&self) -> Self {
        let current = AtomicUsize::new(self.current.load(Ordering::Relaxed));
        Self { members: Arc::clone(&self.members), current }
    }
}

struct Member {
    endpoint: Endpoint,
    channel: OnceLock<Channel>,
}

impl fmt::Debug for ControlPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.members.iter().map(|member| member.endpoint.uri())).finish()
    }
}

impl ControlPlane {
    /// From `HOST:PORT` or `http://HOST:PORT` of one or more members.
    pub fn new<A: AsRef<str>>(addresses: impl IntoIterator<Item = A>) -> Result<Self, AddressError> {
        let member = |address: A| {
            let endpoint = endpoint(address.as_ref())?;
            Ok(Member { endpoint, channel: OnceLock::new() })
        };
        let members: Arc<[Member]> = addresses.into_iter().map(member).collect::<Result<_, _>>()?;
        if members.is_empty() {
            return Err(AddressError { address: String::new() });
        }
        Ok(Self { members, current: AtomicUsize::new(0) })
    }

    /// A connection to the member that answered last, made when it is first used.
    #[must_use]
    pub fn channel(&self) -> Channel {
        let member = &self.members[self.current.load(Ordering::Relaxed) % self.members.len()];
        member.channel.get_or_init(|| member.endpoint.connect_lazy()).clone()
    }

    /// Turns to the next member, because this one does not answer or does not lead.
    pub fn turn(&self) {
        self.current.fetch_add(1, Ordering::Relaxed);
    }

    /// The service for members of the cluster.
    #[must_use]
    pub fn members(&self) -> MembersClient<Channel> {
        MembersClient::new(self.channel())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(REPORT_BYTES_MAX)
    }

    /// Calls until a member that leads has answered, or `patience` is over.
    pub async fn call<T, F>(
        &self,
        patience: Duration,
        mut call: impl FnMut(MembersClient<Channel>) -> F,
    ) -> Result<T, Status>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let deadline = Instant::now() + patience;
        let mut backoff = Backoff::default();
        loop {
            let answer = match tokio::time::timeout(CALL_TIMEOUT, call(self.members())).await {
                Ok(answer) => answer,
                Err(_) => Err(Status::unavailable("the control plane does not answer")),
            };
            match answer {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) if status.code() == Code::Unavailable => {
                    self.turn();
                    let pause = backoff.next();
                    if Instant::now() + pause >= deadline {
                        return Err(status);
                    }
                    sleep(pause).await;
                }
                Err(status) => return Err(status),
            }
        }
    }

    /// Announces a node and its disks; see [`call`](Self::call).
    pub async fn register_node(
        &self,
        patience: Duration,
        request: &RegisterNodeRequest,
    ) -> Result<RegisterNodeResponse, Status> {
        self.call(patience, |mut members| {
            let request = request.clone();
            async move { members.register_node(request).await }
        })
        .await
    }

    /// Announces a gateway; see [`call`](Self::call).
    pub async fn register_gateway(
        &self,
        patience: Duration,
        request: &RegisterGatewayRequest,
    ) -> Result<RegisterGatewayResponse, Status> {
        self.call(patience, |mut members| {
            let request = request.clone();
            async move { members.register_gateway(request).await }
        })
        .await
    }

    /// Takes volumes over; see [`call`](Self::call). When an answer is lost it may happen twice, and the
    /// later generation counts: read it from the map at the epoch that this returns, or a later one.
    pub async fn take_ownership(
        &self,
        patience: Duration,
        request: &TakeOwnershipRequest,
    ) -> Result<TakeOwnershipResponse, Status> {
        self.call(patience, |mut members| {
            let request = request.clone();
            async move { members.take_ownership(request).await }
        })
        .await
    }

    /// Says that a disk that was wished for is served; see [`call`](Self::call).
    pub async fn disk_added(
        &self,
        patience: Duration,
        request: DiskAddedRequest,
    ) -> Result<DiskAddedResponse, Status> {
        self.call(patience, |mut members| async move { members.disk_added(request).await }).await
    }

    /// Says that a disk that was wished for cannot be made; see [`call`](Self::call).
    pub async fn disk_refused(
        &self,
        patience: Duration,
        request: &DiskRefusedRequest,
    ) -> Result<DiskRefusedResponse, Status> {
        self.call(patience, |mut members| {
            let request = request.clone();
            async move { members.disk_refused(request).await }
        })
        .await
    }

    /// Has the state of a logical unit kept, or whether its write cache is on; see [`call`](Self::call).
    pub async fn keep_unit(
        &self,
        patience: Duration,
        request: &KeepUnitRequest,
    ) -> Result<KeepUnitResponse, Status> {
        self.call(patience, |mut members| {
            let request = request.clone();
            async move { members.keep_unit(request).await }
        })
        .await
    }

    /// Says that a deleted volume's space is given back; see [`call`](Self::call).
    pub async fn volume_purged(
        &self,
        patience: Duration,
        request: VolumePurgedRequest,
    ) -> Result<VolumePurgedResponse, Status> {
        self.call(patience, |mut members| async move { members.volume_purged(request).await }).await
    }
}

/// The state of a logical unit as a request bears it.
#[must_use]
pub fn kept_state(state: &UnitState) -> KeptState {
    let state = postcard::to_allocvec(state).expect("a state has nothing that postcard cannot encode");
    KeptState { format: MAP_FORMAT, state: state.into() }
}

/// Clients of every administration service, on one connection.
#[derive(Clone, Debug)]
pub struct AdminClients {
    /// Status.
    pub cluster: ClusterClient<Channel>,
    /// Nodes.
    pub nodes: NodesClient<Channel>,
    /// Disks.
    pub disks: DisksClient<Channel>,
    /// Pools.
    pub pools: PoolsClient<Channel>,
    /// Volumes.
    pub volumes: VolumesClient<Channel>,
    /// Targets.
    pub targets: TargetsClient<Channel>,
    /// Sessions.
    pub sessions: SessionsClient<Channel>,
}

impl AdminClients {
    /// On a connection that exists or is made when it is first used.
    #[must_use]
    pub fn new(channel: Channel) -> Self {
        // Lists are long where there are many volumes.
        let max = MESSAGE_BYTES_MAX;
        Self {
            cluster: ClusterClient::new(channel.clone()).max_decoding_message_size(max),
            nodes: NodesClient::new(channel.clone()).max_decoding_message_size(max),
            disks: DisksClient::new(channel.clone()).max_decoding_message_size(max),
            pools: PoolsClient::new(channel.clone()).max_decoding_message_size(max),
            volumes: VolumesClient::new(channel.clone()).max_decoding_message_size(max),
            targets: TargetsClient::new(channel.clone()).max_decoding_message_size(max),
            sessions: SessionsClient::new(channel).max_decoding_message_size(max),
        }
    }
}

/// Clients of the control plane at `HOST:PORT` or `http://HOST:PORT`.
pub fn connect(address: &str) -> Result<AdminClients, AddressError> {
    Ok(AdminClients::new(endpoint(address)?.connect_lazy()))
}

fn endpoint(address: &str) -> Result<Endpoint, AddressError> {
    let wrong = || AddressError { address: address.to_owned() };
    let url = match address.split_once("://") {
        None => format!("http://{address}"),
        Some(("http", _)) => address.to_owned(),
        Some(_) => return Err(wrong()),
    };
    let endpoint = Endpoint::from_shared(url).map_err(|_| wrong())?;
    if endpoint.uri().port_u16().is_none_or(|port| port == 0) {
        return Err(wrong());
    }
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true))
}

/// Pauses between attempts: short at first, for a member that restarts, then longer.
#[derive(Debug)]
struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: BACKOFF_MIN }
    }
}

impl Backoff {
    fn next(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(BACKOFF_MAX);
        pause
    }
}

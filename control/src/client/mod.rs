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
use std::sync::Arc;
use std::time::Duration;

use lunette_proto::ids::{ClusterId, GatewayId};
use lunette_proto::map::{Sealed, TokenId, UnitState};
use parking_lot::{Mutex, RwLock};
use thiserror::Error;
use tokio::time::{Instant, sleep};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::api::admin::cluster_client::ClusterClient;
use crate::api::admin::disks_client::DisksClient;
use crate::api::admin::nodes_client::NodesClient;
use crate::api::admin::pools_client::PoolsClient;
use crate::api::admin::sessions_client::SessionsClient;
use crate::api::admin::targets_client::TargetsClient;
use crate::api::admin::volumes_client::VolumesClient;
use crate::api::cluster::members_client::MembersClient;
use crate::api::cluster::{
    DiskAddedRequest, DiskAddedResponse, DiskRefusedRequest, DiskRefusedResponse, HandOverRequest,
    HandOverResponse, JoinControlRequest, KeepUnitRequest, KeepUnitResponse, KeptState, LeaveRequest,
    LeaveResponse, NewControlMemberRequest, RegisterGatewayRequest, RegisterGatewayResponse,
    RegisterNodeRequest, RegisterNodeResponse, TakeOwnershipRequest, TakeOwnershipResponse,
    UseJoinTokenRequest, VolumePurgedRequest, VolumePurgedResponse,
};
use crate::limits::{MESSAGE_BYTES_MAX, REPORT_BYTES_MAX};
use crate::server::{DISK_PATH, LEADER, MAP_FORMAT, NOT_LEADER};

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

/// Members that are known beside those that were named.
const LEARNED_MAX: usize = 16;

/// An address that is none.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{address:?} is no address of a control plane; use HOST:PORT or http://HOST:PORT")]
pub struct AddressError {
    /// What was given.
    pub address: String,
}

/// The members of a control plane, by their addresses. Cheap to clone; must be used inside a runtime.
pub struct ControlPlane {
    members: Arc<RwLock<Members>>,
    /// Whom to ask: the one that answered last.
    current: Mutex<Arc<Member>>,
}

/// Those that were named at first stay; beside them there are those that the leader has told of since.
struct Members {
    named: Vec<Arc<Member>>,
    learned: Vec<Arc<Member>>,
}

impl Members {
    fn all(&self) -> impl Iterator<Item = &Arc<Member>> {
        self.named.iter().chain(&self.learned)
    }
}

/// Clones share connections and what was learned, but each turns to another member by itself: a stream that ends does not
/// lead those astray that have found the leader.
impl Clone for ControlPlane {
    fn clone(&self) -> Self {
        Self { members: Arc::clone(&self.members), current: Mutex::new(self.current()) }
    }
}

struct Member {
    endpoint: Endpoint,
    channel: Channel,
}

impl Member {
    fn new(address: &str) -> Result<Arc<Self>, AddressError> {
        let endpoint = endpoint(address)?;
        let channel = endpoint.connect_lazy();
        Ok(Arc::new(Self { endpoint, channel }))
    }
}

impl fmt::Debug for ControlPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.members.read().all().map(|member| member.endpoint.uri())).finish()
    }
}

impl ControlPlane {
    /// From `HOST:PORT` or `http://HOST:PORT` of one or more members.
    pub fn new<A: AsRef<str>>(addresses: impl IntoIterator<Item = A>) -> Result<Self, AddressError> {
        let member = |address: A| Member::new(address.as_ref());
        let named: Vec<_> = addresses.into_iter().map(member).collect::<Result<_, _>>()?;
        let first = named.first().cloned().ok_or_else(|| AddressError { address: String::new() })?;
        let members = Arc::new(RwLock::new(Members { named, learned: Vec::new() }));
        Ok(Self { members, current: Mutex::new(first) })
    }

    fn current(&self) -> Arc<Member> {
        Arc::clone(&self.current.lock())
    }

    /// A connection to the member that answered last, made when it is first used.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.current().channel.clone()
    }

    /// Turns to the next member, because this one does not answer or does not lead.
    pub fn turn(&self) {
        let members = self.members.read();
        let mut current = self.current.lock();
        let next = members.all().skip_while(|member| !Arc::ptr_eq(member, &current)).nth(1);
        if let Some(next) = next.or_else(|| members.all().next()) {
            *current = Arc::clone(next);
        }
    }

    /// Turns to the member that leads, if the one that has answered so knows it, and else to the next.
    pub fn follow(&self, status: &Status) {
        let details = status.get_error_details();
        let info = details.error_info().filter(|info| info.reason == NOT_LEADER);
        let Some(leader) = info.and_then(|info| info.metadata.get(LEADER)) else { return self.turn() };
        let Ok(leader) = Member::new(leader) else { return self.turn() };
        let known = {
            let members = self.members.read();
            members.all().find(|member| member.endpoint.uri() == leader.endpoint.uri()).cloned()
        };
        let leader = known.unwrap_or_else(|| {
            let mut members = self.members.write();
            // The oldest are those that are most probably gone.
            if members.learned.len() >= LEARNED_MAX {
                members.learned.remove(0);
            }
            members.learned.push(Arc::clone(&leader));
            leader
        });
        let mut current = self.current.lock();
        if Arc::ptr_eq(&current, &leader) {
            drop(current);
            return self.turn();
        }
        *current = leader;
    }

    /// Takes note of where all members are now. Those that were named at first are not forgotten.
    pub fn learn<A: AsRef<str>>(&self, addresses: impl IntoIterator<Item = A>) {
        let mut members = self.members.write();
        let mut learned = Vec::new();
        // An address that is none is nobody's: what the others are is worth knowing.
        let told = addresses.into_iter().take(LEARNED_MAX);
        for member in told.filter_map(|address| Member::new(address.as_ref()).ok()) {
            let is_it = |known: &&Arc<Member>| known.endpoint.uri() == member.endpoint.uri();
            if !members.named.iter().any(|known| is_it(&known)) {
                // One that is connected stays so.
                let known = members.learned.iter().find(is_it).cloned();
                learned.push(known.unwrap_or(member));
            }
        }
        members.learned = learned;
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
                    self.follow(&status);
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

    /// An id for a machine that is to become a member of the control plane; see [`call`](Self::call).
    pub async fn new_control_member(&self, patience: Duration, cluster: ClusterId) -> Result<u64, Status> {
        let answer = self.call(patience, |mut members| {
            let request = NewControlMemberRequest { cluster_id: cluster.to_string() };
            async move { members.new_control_member(request).await }
        });
        Ok(answer.await?.member)
    }

    /// Says that a member of the control plane is there, at HOST:PORT; see [`call`](Self::call).
    pub async fn join_control(
        &self,
        patience: Duration,
        cluster: ClusterId,
        member: u64,
        address: &str,
    ) -> Result<(), Status> {
        let answer = self.call(patience, |mut members| {
            let (cluster_id, address) = (cluster.to_string(), address.to_owned());
            async move { members.join_control(JoinControlRequest { cluster_id, member, address }).await }
        });
        answer.await.map(|_| ())
    }

    /// The cluster's key, sealed under a token; see [`call`](Self::call). When the answer is lost the token is used up.
    pub async fn use_join_token(
        &self,
        patience: Duration,
        cluster: ClusterId,
        id: TokenId,
    ) -> Result<Sealed, Status> {
        let answer = self.call(patience, |mut members| {
            let request = UseJoinTokenRequest { cluster_id: cluster.to_string(), id: id.0.to_vec().into() };
            async move { members.use_join_token(request).await }
        });
        Ok(Sealed(answer.await?.key.to_vec()))
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

    /// Takes volumes whose generations were seen; see [`call`](Self::call). Which of them were taken says the map at the
    /// epoch that this returns, or a later one.
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

    /// Gives a volume to another gateway; see [`call`](Self::call).
    pub async fn hand_over(
        &self,
        patience: Duration,
        request: HandOverRequest,
    ) -> Result<HandOverResponse, Status> {
        self.call(patience, |mut members| async move { members.hand_over(request).await }).await
    }

    /// To whom a gateway that leaves is to hand its volumes over; see [`call`](Self::call).
    pub async fn leave(&self, patience: Duration, gateway: GatewayId) -> Result<LeaveResponse, Status> {
        let request = LeaveRequest { gateway: gateway.0 };
        self.call(patience, |mut members| async move { members.leave(request).await }).await
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

/// Which path of a node, by the answer to its registration, has nothing or another disk where one of the cluster's was.
#[must_use]
pub fn swapped_disk(status: &Status) -> Option<String> {
    let details = status.get_error_details();
    details.error_info().and_then(|info| info.metadata.get(DISK_PATH)).cloned()
}

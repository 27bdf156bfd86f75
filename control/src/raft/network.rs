//! Raft's messages between members, over gRPC: `lunette.cluster.v1.Raft`.
//!
//! A payload is postcard of the cluster's id, the id of the member that is asked, and one of openraft's messages, under a
//! format number: what another cluster or an unknown version sends is refused before it is decoded any further, and so is
//! what was meant for another member: one that has lost its folder may come back under a new id at its old address, and what
//! it says must not count as the old one's.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lunette_proto::ids::ClusterId;
use openraft::AnyError;
use openraft::error::{InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

use super::store::Identity;
use super::{BasicNode, TypeConfig};
use crate::api::cluster::RaftMessage;
use crate::api::cluster::raft_client::RaftClient;
use crate::limits::MESSAGE_BYTES_MAX;

/// 4: owners are given to volumes by what was seen of them.
const FORMAT: u32 = 4;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two attempts on a member that does not answer.
const RETRY: Duration = Duration::from_millis(200);

/// A message and whose it is.
#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    cluster: ClusterId,
    /// Who is asked; also in its answer.
    member: u64,
    message: T,
}

pub(crate) fn encode<T: Serialize>(to: Identity, message: T) -> Result<RaftMessage, postcard::Error> {
    let payload = postcard::to_allocvec(&Envelope { cluster: to.cluster, member: to.member, message })?;
    Ok(RaftMessage { format: FORMAT, payload: payload.into() })
}

pub(crate) fn decode<T: DeserializeOwned>(to: Identity, message: &RaftMessage) -> Result<T, Status> {
    if message.format != FORMAT {
        let text = format!("Raft messages of format {} are unknown here; this is {FORMAT}", message.format);
        return Err(Status::failed_precondition(text));
    }
    let envelope: Envelope<T> = postcard::from_bytes(&message.payload)
        .map_err(|_| Status::invalid_argument("a Raft message that does not decode"))?;
    if envelope.cluster != to.cluster {
        return Err(Status::failed_precondition("a Raft message of another cluster"));
    }
    if envelope.member != to.member {
        let text = format!("a Raft message for member {}; this is {}", envelope.member, to.member);
        return Err(Status::failed_precondition(text));
    }
    Ok(envelope.message)
}

/// When each of the other members has answered last.
#[derive(Clone, Default)]
pub(crate) struct Contacts(Arc<Mutex<BTreeMap<u64, Instant>>>);

impl Contacts {
    fn answered(&self, member: u64) {
        self.0.lock().insert(member, Instant::now());
    }

    /// Whether a member has answered since so long ago.
    pub(crate) fn within(&self, member: u64, time: Duration) -> bool {
        self.0.lock().get(&member).is_some_and(|last| last.elapsed() <= time)
    }
}

/// Makes connections to other members.
pub(crate) struct Network {
    identity: Identity,
    contacts: Contacts,
}

impl Network {
    pub(crate) fn new(identity: Identity, contacts: Contacts) -> Self {
        Self { identity, contacts }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Peer {
        // The channel connects when it is used, and again whenever it has been lost.
        let endpoint = Endpoint::from_shared(format!("http://{}", node.addr));
        let client = endpoint.map(|endpoint| {
            let channel = endpoint.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true).connect_lazy();
            RaftClient::new(channel)
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX)
        });
        let client = client.map_err(|error| AnyError::new(&error));
        Peer { identity: self.identity, target, client, contacts: self.contacts.clone() }
    }
}

/// A connection to a member.
pub(crate) struct Peer {
    identity: Identity,
    target: u64,
    client: Result<RaftClient<Channel>, AnyError>,
    contacts: Contacts,
}

type Answer = Result<Response<RaftMessage>, Status>;

impl Peer {
    async fn call<T, R, E, F>(
        &mut self,
        message: T,
        option: &RPCOption,
        send: impl FnOnce(RaftClient<Channel>, Request<RaftMessage>) -> F,
    ) -> Result<R, RPCError<u64, BasicNode, RaftError<u64, E>>>
    where
        T: Serialize,
        R: DeserializeOwned,
        E: DeserializeOwned + std::error::Error,
        F: Future<Output = Answer>,
    {
        let client = self.client.clone().map_err(Unreachable::from)?;
        let to = Identity { member: self.target, ..self.identity };
        let message = encode(to, message).map_err(|error| NetworkError::new(&error))?;
        let mut request = Request::new(message);
        request.set_timeout(option.hard_ttl());
        // Whatever goes wrong on the way, the next attempt comes after a pause.
        let answer = send(client, request).await.map_err(|status| Unreachable::new(&status))?;
        let answer: Result<R, RaftError<u64, E>> =
            decode(to, answer.get_ref()).map_err(|status| Unreachable::new(&status))?;
        self.contacts.answered(self.target);
        answer.map_err(|error| RemoteError::new(self.target, error).into())
    }
}

type RpcResult<T, E = openraft::error::Infallible> = Result<T, RPCError<u64, BasicNode, RaftError<u64, E>>>;

impl RaftNetwork<TypeConfig> for Peer {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> RpcResult<AppendEntriesResponse<u64>> {
        let send = |mut client: RaftClient<_>, request| async move { client.append_entries(request).await };
        self.call(rpc, &option, send).await
    }

    async fn install_snapshot(
        &mut self,
        rpc: InstallSnapshotRequest<TypeConfig>,
        option: RPCOption,
    ) -> RpcResult<InstallSnapshotResponse<u64>, InstallSnapshotError> {
        let send = |mut client: RaftClient<_>, request| async move { client.install_snapshot(request).await };
        self.call(rpc, &option, send).await
    }

    async fn vote(&mut self, rpc: VoteRequest<u64>, option: RPCOption) -> RpcResult<VoteResponse<u64>> {
        let send = |mut client: RaftClient<_>, request| async move { client.vote(request).await };
        self.call(rpc, &option, send).await
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(RETRY))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards against messages that are not for us: another format, another cluster, another member, garbage.
    #[test]
    fn refused_messages() {
        let ours = Identity { cluster: ClusterId(1), member: 3 };
        let message = encode(ours, 7u64).expect("encodes");
        assert_eq!(decode::<u64>(ours, &message).expect("decodes"), 7);
        let code = |message: &RaftMessage| decode::<u64>(ours, message).expect_err("refused").code();
        for other in [Identity { cluster: ClusterId(2), ..ours }, Identity { member: 4, ..ours }] {
            let other = encode(other, 7u64).expect("encodes");
            assert_eq!(code(&other), tonic::Code::FailedPrecondition);
        }
        assert_eq!(code(&RaftMessage { format: 1, ..message.clone() }), tonic::Code::FailedPrecondition);
        let cut = message.payload.slice(..message.payload.len() - 1);
        assert_eq!(code(&RaftMessage { payload: cut, ..message }), tonic::Code::InvalidArgument);
    }
}

//! Raft's messages of other members.

use std::sync::Arc;

use serde::Serialize;
use tonic::{Request, Response, Status};

use super::errors::internal;
use crate::api::cluster::RaftMessage;
use crate::api::cluster::raft_server::Raft;
use crate::raft::RaftMember;
use crate::raft::network::{decode, encode};

pub(super) struct RaftService {
    member: Arc<RaftMember>,
}

impl RaftService {
    pub(super) fn new(member: Arc<RaftMember>) -> Self {
        Self { member }
    }

    /// What Raft said, an error too: the caller's Raft tells them apart.
    fn answer<T: Serialize>(&self, answer: T) -> Result<Response<RaftMessage>, Status> {
        let message = encode(self.member.identity(), answer);
        message.map(Response::new).map_err(|error| internal("a Raft answer does not encode", &error))
    }
}

#[tonic::async_trait]
impl Raft for RaftService {
    async fn append_entries(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        let message = decode(self.member.identity(), request.get_ref())?;
        self.answer(self.member.raft().append_entries(message).await)
    }

    async fn vote(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        let message = decode(self.member.identity(), request.get_ref())?;
        self.answer(self.member.raft().vote(message).await)
    }

    async fn install_snapshot(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        let message = decode(self.member.identity(), request.get_ref())?;
        self.answer(self.member.raft().install_snapshot(message).await)
    }
}

//! The gRPC server: administration, members, Raft, health and reflection on one address.
//!
//! Every call goes the same way: a request becomes a [`Command`](crate::state::Command), which is
//! decided against the newest state first, so that what is wrong is answered without a trace in the
//! log; then it is proposed; then the answer is read from the state. Only the leader answers; the changes of the map, and
//! who leads, are to be had from any member.

mod attachments;
mod bench;
mod cluster;
mod context;
mod copies;
mod disks;
mod errors;
mod joining;
mod leading;
mod members;
mod moves;
mod owners;
mod pools;
mod raft;
mod sessions;
mod targets;
mod view;
mod volumes;

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tonic::server::NamedService;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic_health::ServingStatus;

use crate::api::DESCRIPTORS;
use crate::api::admin::cluster_server::ClusterServer;
use crate::api::admin::disks_server::DisksServer;
use crate::api::admin::nodes_server::NodesServer;
use crate::api::admin::pools_server::PoolsServer;
use crate::api::admin::sessions_server::SessionsServer;
use crate::api::admin::targets_server::TargetsServer;
use crate::api::admin::volumes_server::VolumesServer;
use crate::api::cluster::members_server::MembersServer;
use crate::api::cluster::raft_server::RaftServer;
use crate::limits::{MESSAGE_BYTES_MAX, REPORT_BYTES_MAX};
use crate::raft::{Consensus, RaftMember};

pub(crate) use context::Context;
pub(crate) use errors::{DISK_PATH, LEADER, NOT_LEADER};
pub(crate) use members::MAP_FORMAT;

/// A peer that vanished without a word is noticed by these.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Calls of one connection at a time.
const STREAMS_MAX: u32 = 256;

/// Serves until the context is cancelled.
pub(crate) async fn serve(
    listener: TcpListener,
    context: Arc<Context>,
    member: Arc<RaftMember>,
) -> Result<(), tonic::transport::Error> {
    let (reporter, health) = tonic_health::server::health_reporter();
    let reflection = || {
        let builder = tonic_reflection::server::Builder::configure();
        builder
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let v1 = reflection().build_v1().expect("the descriptors are the compiler's own");
    let v1alpha = reflection().build_v1alpha().expect("the descriptors are the compiler's own");

    let api = |context: &Arc<Context>| Arc::clone(context);
    let stop = context.stop.clone();
    context.tasks.spawn(Arc::clone(&context).found());
    context.tasks.spawn(Arc::clone(&context).keep_copies());
    context.tasks.spawn(Arc::clone(&context).keep_moves());
    context.tasks.spawn(Arc::clone(&context).keep_owners());
    context.tasks.spawn(report_health(reporter, member.leading(), stop.clone()));
    // The server's own option has no effect on a listener that it did not make, and without it an answer
    // may wait 40 ms for an acknowledgement.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(STREAMS_MAX)
        .add_service(health)
        .add_service(v1)
        .add_service(v1alpha)
        .add_service(ClusterServer::from_arc(api(&context)))
        .add_service(NodesServer::from_arc(api(&context)))
        .add_service(DisksServer::from_arc(api(&context)))
        .add_service(PoolsServer::from_arc(api(&context)))
        .add_service(VolumesServer::from_arc(api(&context)))
        .add_service(TargetsServer::from_arc(api(&context)))
        .add_service(SessionsServer::from_arc(api(&context)))
        .add_service(MembersServer::from_arc(context).max_decoding_message_size(REPORT_BYTES_MAX))
        .add_service(
            RaftServer::new(raft::RaftService::new(member)).max_decoding_message_size(MESSAGE_BYTES_MAX),
        )
        .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
        .await
}

/// What only the leader answers.
const LED: [&str; 9] = [
    "",
    <ClusterServer<Context> as NamedService>::NAME,
    <NodesServer<Context> as NamedService>::NAME,
    <DisksServer<Context> as NamedService>::NAME,
    <PoolsServer<Context> as NamedService>::NAME,
    <VolumesServer<Context> as NamedService>::NAME,
    <TargetsServer<Context> as NamedService>::NAME,
    <SessionsServer<Context> as NamedService>::NAME,
    <MembersServer<Context> as NamedService>::NAME,
];

/// gRPC's own health service: serving while this member leads, and among members always.
async fn report_health(
    reporter: tonic_health::server::HealthReporter,
    mut leading: tokio::sync::watch::Receiver<bool>,
    stop: tokio_util::sync::CancellationToken,
) {
    let raft = <RaftServer<raft::RaftService> as NamedService>::NAME;
    reporter.set_service_status(raft, ServingStatus::Serving).await;
    loop {
        let status =
            if *leading.borrow_and_update() { ServingStatus::Serving } else { ServingStatus::NotServing };
        for service in LED {
            reporter.set_service_status(service, status).await;
        }
        tokio::select! {
            changed = leading.changed() => if changed.is_err() { return },
            () = stop.cancelled() => return,
        }
    }
}

//! What nodes and gateways say to the control plane.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use lunette_proto::ids::{DiskId, DiskUuid, Epoch, GatewayId, Generation, NodeId, VolumeId};
use lunette_proto::map::{ClusterMap, Partitions, UnitState};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::Context;
use super::attachments::ORDERS_MAX;
use super::errors::{internal, invalid, rejected, status, stopping, unavailable};
use crate::api::cluster::keep_unit_request::Change as Kept;
use crate::api::cluster::map_update::Update as Body;
use crate::api::cluster::members_server::Members;
use crate::api::cluster::order::Order as OrderOf;
use crate::api::cluster::report::Member as ReportOf;
use crate::api::cluster::{
    ControlMembers, DiskAddedRequest, DiskAddedResponse, DiskRefusedRequest, DiskRefusedResponse,
    HandOverRequest, HandOverResponse, JoinControlRequest, JoinControlResponse, KeepUnitRequest,
    KeepUnitResponse, KeptState, KeptWriteBack, LeaveRequest, LeaveResponse, MapUpdate,
    NewControlMemberRequest, NewControlMemberResponse, NodeDisk, Order, OwnedVolume, RegisterGatewayRequest,
    RegisterGatewayResponse, RegisterNodeRequest, RegisterNodeResponse, Report, TakeOwnershipRequest,
    TakeOwnershipResponse, UseJoinTokenRequest, UseJoinTokenResponse, VolumePurgedRequest,
    VolumePurgedResponse, WatchMapRequest,
};
use crate::health::{Member, StreamId};
use crate::published::Update;
use crate::raft::ConsensusError;
use crate::state::{Command, NameKind, NewDisk, NewOwner, Rejection, Response as Outcome};

/// The encoding of maps and deltas on the stream, and of what is in them. 6: with copies that are on their way to other
/// disks, and with what those that join were given.
pub(crate) const MAP_FORMAT: u32 = 7;
/// Updates that may wait for a watcher; the rest waits in the history, or becomes one whole map.
const UPDATES_MAX: usize = 16;
/// Between two looks whether a process is still there.
const ABSENT_POLL: Duration = Duration::from_millis(50);

#[tonic::async_trait]
impl Members for Context {
    async fn register_node(
        &self,
        request: Request<RegisterNodeRequest>,
    ) -> Result<Response<RegisterNodeResponse>, Status> {
        let request = request.into_inner();
        self.check_cluster(&request.cluster_id)?;
        let disks = request.disks.into_iter().map(new_disk).collect::<Result<_, _>>()?;
        let there = |map: &ClusterMap| {
            let node = map.nodes.values().find(|node| node.name == request.name);
            node.map(|node| (Member::Node(node.id), node.address.to_string()))
        };
        self.check_absent(NameKind::Node, &request.name, there).await?;
        let command = Command::RegisterNode {
            name: request.name,
            address: address("address", &request.address)?,
            host: request.host,
            rack: request.rack,
            zone: request.zone,
            disks,
        };
        match self.run(command).await?.response {
            Outcome::Node { node, disks } => {
                let disks = disks.into_iter().map(|disk| disk.0).collect();
                Ok(Response::new(RegisterNodeResponse { node: node.0, disks }))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn register_gateway(
        &self,
        request: Request<RegisterGatewayRequest>,
    ) -> Result<Response<RegisterGatewayResponse>, Status> {
        let request = request.into_inner();
        self.check_cluster(&request.cluster_id)?;
        let portals =
            request.portals.iter().map(|portal| address("portals", portal)).collect::<Result<_, _>>()?;
        let there = |map: &ClusterMap| {
            let gateway = map.gateways.values().find(|gateway| gateway.name == request.name);
            let portals = |portals: &[SocketAddr]| {
                let portals: Vec<String> = portals.iter().map(ToString::to_string).collect();
                portals.join(", ")
            };
            gateway.map(|gateway| (Member::Gateway(gateway.id), portals(&gateway.portals)))
        };
        self.check_absent(NameKind::Gateway, &request.name, there).await?;
        match self.run(Command::RegisterGateway { name: request.name, portals }).await?.response {
            Outcome::Gateway { gateway, portal_group_tag } => {
                let portal_group_tag = portal_group_tag.into();
                Ok(Response::new(RegisterGatewayResponse { gateway: gateway.0, portal_group_tag }))
            }
            other => Err(unexpected(&other)),
        }
    }

    type WatchMapStream = ReceiverStream<Result<MapUpdate, Status>>;

    async fn watch_map(
        &self,
        request: Request<WatchMapRequest>,
    ) -> Result<Response<Self::WatchMapStream>, Status> {
        let request = request.into_inner();
        self.check_cluster(&request.cluster_id)?;
        let have = Epoch(request.have_epoch);
        // The first map is what a watcher takes for the present one: it comes from the leader. What follows may come from
        // any member that others tell of it.
        let state = if have == Epoch(0) { self.state().await? } else { self.published.state() };
        if !*self.consensus.in_touch().borrow() {
            return Err(self.not_leading());
        }
        if have > state.map().epoch {
            let sentence =
                format!("this member is at epoch {}, the watcher at {have}; it lags", state.map().epoch);
            return Err(status(Code::Unavailable, "BEHIND", sentence));
        }
        let (out, stream) = mpsc::channel(UPDATES_MAX);
        self.tasks.spawn(self.shared().watch_updates(have, out));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn take_ownership(
        &self,
        request: Request<TakeOwnershipRequest>,
    ) -> Result<Response<TakeOwnershipResponse>, Status> {
        let TakeOwnershipRequest { gateway, volumes } = request.into_inner();
        let gateway = GatewayId(gateway);
        let new = |OwnedVolume { volume, generation }| NewOwner {
            volume: VolumeId(volume),
            seen: Generation(generation),
            gateway,
        };
        let owners = Arc::new(volumes.into_iter().map(new).collect());
        let committed = self.run(Command::AssignOwners { owners }).await?;
        Ok(Response::new(TakeOwnershipResponse { epoch: committed.epoch.0 }))
    }

    async fn hand_over(
        &self,
        request: Request<HandOverRequest>,
    ) -> Result<Response<HandOverResponse>, Status> {
        let HandOverRequest { volume, generation, to } = request.into_inner();
        let epoch = self.handed_over(VolumeId(volume), Generation(generation), GatewayId(to)).await?;
        Ok(Response::new(HandOverResponse { epoch: epoch.0 }))
    }

    async fn leave(&self, request: Request<LeaveRequest>) -> Result<Response<LeaveResponse>, Status> {
        let volumes = Context::leave(self, GatewayId(request.into_inner().gateway)).await?;
        Ok(Response::new(LeaveResponse { volumes }))
    }

    async fn volume_purged(
        &self,
        request: Request<VolumePurgedRequest>,
    ) -> Result<Response<VolumePurgedResponse>, Status> {
        let VolumePurgedRequest { volume, generation } = request.into_inner();
        let (volume, generation) = (VolumeId(volume), Generation(generation));
        self.run(Command::VolumePurged { volume, generation }).await?;
        Ok(Response::new(VolumePurgedResponse {}))
    }

    async fn disk_added(
        &self,
        request: Request<DiskAddedRequest>,
    ) -> Result<Response<DiskAddedResponse>, Status> {
        let DiskAddedRequest { node, disk, capacity_bytes } = request.into_inner();
        self.run(Command::DiskAdded { node: NodeId(node), disk: DiskId(disk), capacity_bytes }).await?;
        Ok(Response::new(DiskAddedResponse {}))
    }

    async fn disk_refused(
        &self,
        request: Request<DiskRefusedRequest>,
    ) -> Result<Response<DiskRefusedResponse>, Status> {
        let DiskRefusedRequest { node, disk, reason } = request.into_inner();
        self.disk_refusal(NodeId(node), DiskId(disk), &reason).await?;
        Ok(Response::new(DiskRefusedResponse {}))
    }

    async fn keep_unit(
        &self,
        request: Request<KeepUnitRequest>,
    ) -> Result<Response<KeepUnitResponse>, Status> {
        let KeepUnitRequest { volume, change, gateway } = request.into_inner();
        let volume = VolumeId(volume);
        let is_state = matches!(change, Some(Kept::State(_)));
        let command = match change {
            Some(Kept::State(state)) => Command::SetUnitState { volume, state: unit_state(&state)? },
            Some(Kept::WriteBack(KeptWriteBack { on, generation })) => {
                let generation = (generation > 0).then_some(Generation(generation));
                Command::SetWriteBack { volume, generation, write_back: on }
            }
            None => return Err(invalid("change", "CHANGE_MISSING", "the request does not say what to keep")),
        };
        let committed = self.run(command).await?;
        if is_state {
            self.in_force(volume, committed.epoch, GatewayId(gateway)).await?;
        }
        Ok(Response::new(KeepUnitResponse { epoch: committed.epoch.0 }))
    }

    async fn new_control_member(
        &self,
        request: Request<NewControlMemberRequest>,
    ) -> Result<Response<NewControlMemberResponse>, Status> {
        self.check_cluster(&request.into_inner().cluster_id)?;
        let member = Context::new_control_member(self).await?;
        Ok(Response::new(NewControlMemberResponse { member }))
    }

    async fn join_control(
        &self,
        request: Request<JoinControlRequest>,
    ) -> Result<Response<JoinControlResponse>, Status> {
        let JoinControlRequest { cluster_id, member, address } = request.into_inner();
        self.check_cluster(&cluster_id)?;
        Context::join_control(self, member, address).await?;
        Ok(Response::new(JoinControlResponse {}))
    }

    async fn use_join_token(
        &self,
        request: Request<UseJoinTokenRequest>,
    ) -> Result<Response<UseJoinTokenResponse>, Status> {
        let UseJoinTokenRequest { cluster_id, id } = request.into_inner();
        self.check_cluster(&cluster_id)?;
        let key = self.use_token(&id).await?;
        Ok(Response::new(UseJoinTokenResponse { key: key.0.into() }))
    }

    type AttachStream = ReceiverStream<Result<Order, Status>>;

    async fn attach(
        &self,
        request: Request<Streaming<Report>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        // Who reports to a member that does not lead would be missed by the one that does.
        self.consensus.read_barrier().await.map_err(|error| unavailable(&error))?;
        let (orders, stream) = mpsc::channel(ORDERS_MAX);
        let id = self.attachments.open(orders.clone());
        let this = self.shared();
        let reports = request.into_inner();
        self.tasks.spawn(async move {
            if let Err(status) = this.take_reports(id, reports, &orders).await {
                // A member that has gone needs no reason.
                let _ = orders.try_send(Err(status));
            }
            if *this.consensus.leading().borrow() && !this.stop.is_cancelled() {
                this.attachments.close(id);
            } else {
                this.attachments.forget(id);
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

impl Context {
    /// Refuses the name of a process that is there: another under its name would take its place. One that has just died is
    /// waited for, until its stream has ended or nothing was heard of it for long enough.
    async fn check_absent(
        &self,
        kind: NameKind,
        name: &str,
        there: impl Fn(&ClusterMap) -> Option<(Member, String)>,
    ) -> Result<(), Status> {
        let Some((member, address)) = there(self.state().await?.map()) else { return Ok(()) };
        let look =
            || self.attachments.read(|registry, now| (registry.is_up(member, now), registry.reports(member)));
        loop {
            let (is_up, before) = look();
            if !is_up {
                return Ok(());
            }
            self.attachments.refresh([member].into_iter()).await;
            let (is_up, reports) = look();
            if is_up && reports > before {
                let sentence = format!(
                    "{kind} {name:?} runs already, at {address}; stop that one, or give this one a name of its own"
                );
                return Err(status(Code::AlreadyExists, "NAME_IN_USE", sentence));
            }
            tokio::select! {
                () = sleep(ABSENT_POLL) => {}
                () = self.stop.cancelled() => return Err(stopping()),
            }
        }
    }

    /// Sends a watcher what it does not have, in order, until it goes, the member stops or is cut off.
    async fn watch_updates(self: Arc<Self>, mut have: Epoch, out: mpsc::Sender<Result<MapUpdate, Status>>) {
        let mut epochs = self.published.epochs();
        loop {
            epochs.mark_unchanged();
            let update = match self.published.next_update(have) {
                Ok(Some(update)) => Ok(update),
                Ok(None) => {
                    tokio::select! {
                        changed = epochs.changed() => if changed.is_err() { return },
                        () = self.touch_lost() => {
                            let _ = out.send(Err(self.not_leading())).await;
                            return;
                        }
                        () = self.stop.cancelled() => {
                            let _ = out.send(Err(stopping())).await;
                            return;
                        }
                        () = out.closed() => return,
                    }
                    continue;
                }
                Err(error) => Err(internal("the map does not encode", &error)),
            };
            let message = update.map(|update| {
                let (epoch, body) = match update {
                    Update::Whole(epoch, bytes) => (epoch, Body::Whole(bytes)),
                    Update::Delta(epoch, bytes) => (epoch, Body::Delta(bytes)),
                };
                have = epoch;
                MapUpdate { epoch: epoch.0, format: MAP_FORMAT, update: Some(body) }
            });
            let failed = message.is_err();
            tokio::select! {
                sent = out.send(message) => if sent.is_err() || failed { return },
                () = self.stop.cancelled() => return,
            }
        }
    }

    /// Returns when this member knows of no leader.
    async fn touch_lost(&self) {
        // An error says that consensus has ended.
        let _ = self.consensus.in_touch().wait_for(|in_touch| !in_touch).await;
    }

    fn not_leading(&self) -> Status {
        let metrics = self.consensus.metrics();
        let leader = metrics.members.iter().find(|member| Some(member.id) == metrics.leader);
        unavailable(&ConsensusError::NotLeader { leader: leader.map(|member| member.address.clone()) })
    }

    /// Takes reports until the stream ends, one is wrong, or nobody may report here any more.
    async fn take_reports(
        &self,
        stream: StreamId,
        mut reports: Streaming<Report>,
        orders: &mpsc::Sender<Result<Order, Status>>,
    ) -> Result<(), Status> {
        let mut speaker = None;
        let mut addresses = self.consensus.addresses();
        addresses.mark_changed();
        loop {
            let report = tokio::select! {
                changed = addresses.changed(), if speaker.is_some() => match changed {
                    Ok(()) => {
                        let addresses = addresses.borrow_and_update().clone();
                        let order = Some(OrderOf::ControlMembers(ControlMembers { addresses }));
                        // Who takes no orders now is told with the next change, or on its next stream.
                        let _ = orders.try_send(Ok(Order { id: 0, order }));
                        continue;
                    }
                    Err(_) => return Err(stopping()),
                },
                report = reports.message() => report?,
                () = self.leadership_lost() => return Err(self.not_leading()),
                () = self.stop.cancelled() => return Err(stopping()),
                () = orders.closed() => return Ok(()),
            };
            let Some(report) = report else { return Ok(()) };
            let member = self.speaker_of(&report)?;
            check_copies(&report)?;
            if *speaker.get_or_insert(member) != member {
                return Err(invalid(
                    "member",
                    "MEMBER_CHANGED",
                    "one stream bears the reports of one member",
                ));
            }
            self.attachments
                .report(stream, member, report)
                .map_err(|replaced| status(Code::Aborted, "REPLACED", replaced.to_string()))?;
        }
    }

    fn speaker_of(&self, report: &Report) -> Result<Member, Status> {
        let state = self.published.state();
        match &report.member {
            Some(ReportOf::Node(node)) if state.map().nodes.contains_key(&NodeId(node.node)) => {
                Ok(Member::Node(NodeId(node.node)))
            }
            Some(ReportOf::Gateway(gateway))
                if state.map().gateways.contains_key(&GatewayId(gateway.gateway)) =>
            {
                Ok(Member::Gateway(GatewayId(gateway.gateway)))
            }
            Some(_) => {
                Err(status(Code::NotFound, "NOT_REGISTERED", "this member is not registered; register first"))
            }
            None => Err(invalid("member", "MEMBER_MISSING", "a report says whose it is")),
        }
    }
}

/// Sets of partitions are what others count copies by.
fn check_copies(report: &Report) -> Result<(), Status> {
    let Some(ReportOf::Gateway(report)) = &report.member else { return Ok(()) };
    if report.catch_ups.iter().all(|report| Partitions::from_bytes(&report.ready).is_some()) {
        return Ok(());
    }
    Err(invalid("catch_ups.ready", "PARTITIONS_MALFORMED", "this is no set of partitions of a pool"))
}

fn address(field: &str, text: &str) -> Result<SocketAddr, Status> {
    text.parse().map_err(|_| {
        let text = text.chars().take(64).collect();
        rejected(&Rejection::Address { field: field.to_owned(), text })
    })
}

fn new_disk(disk: NodeDisk) -> Result<NewDisk, Status> {
    let uuid: DiskUuid = disk.uuid.parse().map_err(|_| {
        let uuid = disk.uuid.chars().take(64).collect();
        rejected(&Rejection::DiskUuid { uuid })
    })?;
    Ok(NewDisk { uuid, label: disk.label, capacity_bytes: disk.capacity_bytes, weight: disk.weight })
}

fn unit_state(state: &KeptState) -> Result<Arc<UnitState>, Status> {
    let KeptState { format, state } = state;
    if *format != MAP_FORMAT {
        let sentence = format!("states of format {format} are unknown here; this is {MAP_FORMAT}");
        return Err(invalid("state.format", "UNIT_FORMAT", sentence));
    }
    match postcard::take_from_bytes(state) {
        Ok((state, [])) => Ok(Arc::new(state)),
        _ => {
            Err(invalid("state.state", "UNIT_STATE_MALFORMED", "the state of a logical unit does not decode"))
        }
    }
}

pub(super) fn unexpected(outcome: &Outcome) -> Status {
    tracing::error!(?outcome, "a command was answered with another's response");
    status(Code::Internal, "INTERNAL", "the control plane answered itself wrongly; its log says more")
}

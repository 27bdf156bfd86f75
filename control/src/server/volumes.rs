//! Volumes.

use std::time::Duration;

use lunette_proto::ids::GatewayId;
use lunette_proto::limits::ISCSI_NAME_BYTES_MAX;
use lunette_proto::map::{self, ClusterMap, Stripe};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};

use super::Context;
use super::errors::{rejected, status, stopping};
use crate::api::admin::volumes_server::Volumes;
use crate::api::admin::{
    BenchProgress, BenchVolumeRequest, CreateVolumeRequest, DeleteVolumeRequest, DeleteVolumeResponse,
    GetVolumeRequest, ListVolumesRequest, ListVolumesResponse, OwnVolumeRequest, ResizeVolumeRequest,
    SetWriteBackRequest, Volume,
};
use crate::state::{Command, NameKind, Rejection, State};

/// The pool of volumes that name none.
const POOL_DEFAULT: &str = "default";
/// 512e: what every initiator can boot from.
const BLOCK_BYTES_DEFAULT: u32 = 512;
/// How long an owner may take to flush a write cache, and to say so.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(8);

impl Context {
    fn volume_view(&self, state: &State, name: &str) -> Result<Volume, Status> {
        let volume = state.map().volume_by_name(name).ok_or_else(|| not_found(name))?;
        Ok(self.look(state, |view| view.volume(volume)))
    }

    /// Whether nobody uses the volume who might go on not to flush it.
    fn check_unused(&self, map: &ClusterMap, volume: &map::Volume) -> Result<(), Status> {
        let shows = |iqn: &str| {
            let target = map.target_by_iqn(iqn);
            target.is_some_and(|target| target.luns.values().any(|lun| lun.volume == volume.id))
        };
        let sessions = self.attachments.read(|registry, now| {
            registry.sessions(now).filter(|(_, session)| shows(&session.target)).count()
        });
        if sessions == 0 {
            return Ok(());
        }
        let sentence = format!(
            "{sessions} sessions use volume {:?}, and their initiators may not notice that they have to flush; \
             end them first, or force it",
            volume.name
        );
        Err(status(Code::FailedPrecondition, "VOLUME_IN_USE", sentence))
    }

    /// Has the owner turn the write cache off, and waits until the map says so.
    async fn flush_cache(
        &self,
        map: &ClusterMap,
        volume: &map::Volume,
        owner: GatewayId,
    ) -> Result<(), Status> {
        let name = map.gateways.get(&owner).map_or("", |gateway| gateway.name.as_str());
        let mut epochs = self.published.epochs();
        if !self.attachments.write_through(owner, volume.id) {
            let sentence = format!(
                "gateway {name} alone can flush the cache of volume {:?}, and takes no orders at the moment; try again when it is up",
                volume.name
            );
            return Err(status(Code::Unavailable, "GATEWAY_DOWN", sentence));
        }
        let is_off = || {
            let state = self.published.state();
            state.map().volumes.get(&volume.id).is_none_or(|volume| !volume.write_back)
        };
        let off = async {
            while !is_off() {
                if epochs.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            off = timeout(FLUSH_TIMEOUT, off) => off.map_err(|_| {
                let sentence = format!(
                    "gateway {name} has not flushed the cache of volume {:?} yet; it is ordered to",
                    volume.name
                );
                status(Code::DeadlineExceeded, "FLUSH_TIMEOUT", sentence)
            }),
            () = self.stop.cancelled() => Err(stopping()),
        }
    }
}

pub(super) fn not_found(name: &str) -> Status {
    let name = name.chars().take(ISCSI_NAME_BYTES_MAX).collect();
    rejected(&Rejection::NotFound { kind: NameKind::Volume, name })
}

#[tonic::async_trait]
impl Volumes for Context {
    async fn create(&self, request: Request<CreateVolumeRequest>) -> Result<Response<Volume>, Status> {
        let request = request.into_inner();
        let stripe = stripe(&request).map_err(|rejection| rejected(&rejection))?;
        let command = Command::CreateVolume {
            name: request.name.clone(),
            pool: if request.pool.is_empty() { POOL_DEFAULT.to_owned() } else { request.pool },
            size_bytes: request.size_bytes,
            stripe,
            block_bytes: if request.block_bytes == 0 { BLOCK_BYTES_DEFAULT } else { request.block_bytes },
            write_back: request.write_back,
            export: request.export,
        };
        self.run(command).await?;
        // Whoever logs in next finds it with an owner.
        self.owned(&request.name).await;
        self.volume_view(&self.published.state(), &request.name).map(Response::new)
    }

    async fn list(&self, _: Request<ListVolumesRequest>) -> Result<Response<ListVolumesResponse>, Status> {
        let volumes = self.view(|view| view.volumes()).await?;
        Ok(Response::new(ListVolumesResponse { volumes }))
    }

    async fn get(&self, request: Request<GetVolumeRequest>) -> Result<Response<Volume>, Status> {
        let state = self.state().await?;
        self.volume_view(&state, &request.get_ref().name).map(Response::new)
    }

    async fn resize(&self, request: Request<ResizeVolumeRequest>) -> Result<Response<Volume>, Status> {
        let ResizeVolumeRequest { name, size_bytes } = request.into_inner();
        self.run(Command::ResizeVolume { name: name.clone(), size_bytes }).await?;
        self.volume_view(&self.published.state(), &name).map(Response::new)
    }

    async fn set_write_back(
        &self,
        request: Request<SetWriteBackRequest>,
    ) -> Result<Response<Volume>, Status> {
        let SetWriteBackRequest { name, write_back, force } = request.into_inner();
        let state = self.state().await?;
        let volume = state.map().volume_by_name(&name).ok_or_else(|| not_found(&name))?;
        if write_back {
            if !volume.write_back && !force {
                self.refresh_gateways(state.map()).await;
                self.check_unused(state.map(), volume)?;
            }
            self.run(Command::SetWriteBack { volume: volume.id, generation: None, write_back }).await?;
        } else if volume.write_back
            && let Some(owner) = volume.owner
        {
            self.flush_cache(state.map(), volume, owner.gateway).await?;
        } else {
            self.run(Command::SetWriteBack { volume: volume.id, generation: None, write_back }).await?;
        }
        self.volume_view(&self.published.state(), &name).map(Response::new)
    }

    async fn own(&self, request: Request<OwnVolumeRequest>) -> Result<Response<Volume>, Status> {
        let OwnVolumeRequest { name, gateway } = request.into_inner();
        Context::own(self, &name, &gateway).await?;
        self.volume_view(&self.published.state(), &name).map(Response::new)
    }

    type BenchStream = ReceiverStream<Result<BenchProgress, Status>>;

    async fn bench(
        &self,
        request: Request<BenchVolumeRequest>,
    ) -> Result<Response<Self::BenchStream>, Status> {
        Context::bench(self, request.into_inner()).await.map(Response::new)
    }

    async fn delete(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        let DeleteVolumeRequest { name, force } = request.into_inner();
        self.run(Command::DeleteVolume { name, force }).await?;
        Ok(Response::new(DeleteVolumeResponse {}))
    }
}

fn stripe(request: &CreateVolumeRequest) -> Result<Option<Stripe>, Rejection> {
    match (request.stripe_unit_bytes, request.stripe_width) {
        (0, 0) => Ok(None),
        (0, _) | (_, 0) => Err(Rejection::StripeHalf),
        (unit_bytes, width) => {
            let width = u16::try_from(width).map_err(|_| Rejection::StripeWidth { width })?;
            Ok(Some(Stripe { unit_bytes, width }))
        }
    }
}

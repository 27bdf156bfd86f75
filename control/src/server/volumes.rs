//! Volumes.

use lunette_proto::limits::ISCSI_NAME_BYTES_MAX;
use lunette_proto::map::Stripe;
use tonic::{Request, Response, Status};

use super::Context;
use super::errors::rejected;
use crate::api::admin::volumes_server::Volumes;
use crate::api::admin::{
    CreateVolumeRequest, DeleteVolumeRequest, DeleteVolumeResponse, GetVolumeRequest, ListVolumesRequest,
    ListVolumesResponse, ResizeVolumeRequest, Volume,
};
use crate::state::{Command, NameKind, Rejection, State};

/// The pool of volumes that name none.
const POOL_DEFAULT: &str = "default";
/// 512e: what every initiator can boot from.
const BLOCK_BYTES_DEFAULT: u32 = 512;

impl Context {
    fn volume_view(&self, state: &State, name: &str) -> Result<Volume, Status> {
        let volume = state.map().volume_by_name(name).ok_or_else(|| {
            let name = name.chars().take(ISCSI_NAME_BYTES_MAX).collect();
            rejected(&Rejection::NotFound { kind: NameKind::Volume, name })
        })?;
        Ok(self.look(state, |view| view.volume(volume)))
    }
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

//! Volumes that this gateway gives to others: because the leader says so, or because it leaves.
//!
//! ```text
//! order --> owner holds what comes, finishes the rest --> leader commits the next owner --> what is held learns of it
//! ```
//!
//! When any of it fails the volume goes on being served here, and whoever gave the order finds that it was not carried out.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use lunette_control::api::cluster::{HandOverOrder, HandOverRequest};
use lunette_control::client::ControlPlane;
use lunette_proto::ids::{Epoch, GatewayId, VolumeId};
use lunette_volume::volumes::Volumes;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

/// Volumes that are handed over at a time; others wait, and are served meanwhile.
const INFLIGHT_MAX: usize = 64;
/// An owner holds commands for a second, and a commit takes milliseconds: later it would be of no use.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a gateway that leaves asks to whom its volumes go, and how long all of them may take to get there.
const LEAVE_PATIENCE: Duration = Duration::from_secs(1);
const LEAVE_MAX: Duration = Duration::from_secs(3);

/// See the module.
#[derive(Clone)]
pub(crate) struct Giver {
    control: ControlPlane,
    volumes: Arc<Volumes>,
    runtime: Handle,
    room: Arc<Semaphore>,
}

impl Giver {
    /// Has to be called inside the runtime on which it is to work.
    pub(crate) fn new(control: ControlPlane, volumes: Arc<Volumes>) -> Self {
        let room = Arc::new(Semaphore::new(INFLIGHT_MAX));
        Self { control, volumes, runtime: Handle::current(), room }
    }

    /// Hands a volume over, from a task. Does not block.
    pub(crate) fn give(&self, volume: VolumeId, to: GatewayId) {
        let this = self.clone();
        self.runtime.spawn(async move { this.hand_over(volume, to).await });
    }

    /// Hands all volumes over that the leader has somebody for, within bounded time.
    pub(crate) async fn give_all(&self, leaving: GatewayId) {
        let asked = timeout(LEAVE_PATIENCE, self.control.leave(LEAVE_PATIENCE, leaving)).await;
        let orders = match asked {
            Ok(Ok(answer)) => answer.volumes,
            Ok(Err(status)) => {
                tracing::debug!(reason = status.message(), "nobody says who takes the volumes");
                return;
            }
            Err(_) => return tracing::debug!("nobody says who takes the volumes"),
        };
        let give = |HandOverOrder { volume, to }| self.hand_over(VolumeId(volume), GatewayId(to));
        if timeout(LEAVE_MAX, join_all(orders.into_iter().map(give))).await.is_err() {
            tracing::warn!("not all volumes were handed over in time");
        }
    }

    async fn hand_over(&self, volume: VolumeId, to: GatewayId) {
        // It is never closed.
        let Ok(_permit) = self.room.acquire().await else { return };
        match self.try_hand_over(volume, to).await {
            Ok(epoch) => tracing::info!(%volume, %to, %epoch, "a volume was handed over"),
            Err(reason) => tracing::warn!(%volume, %to, reason, "a volume was not handed over"),
        }
    }

    async fn try_hand_over(&self, volume: VolumeId, to: GatewayId) -> Result<Epoch, String> {
        let (told, answer) = oneshot::channel();
        // Whoever waited may have lost patience.
        self.volumes.hand_over(volume, move |result| drop(told.send(result)));
        let generation = match answer.await {
            Ok(Ok(generation)) => generation,
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err("its owner has gone".to_owned()),
        };
        let request = HandOverRequest { volume: volume.0, generation: generation.0, to: to.0 };
        match timeout(PATIENCE, self.control.hand_over(PATIENCE, request)).await {
            Ok(Ok(answer)) => Ok(Epoch(answer.epoch)),
            Ok(Err(status)) => Err(status.message().to_owned()),
            Err(_) => Err("the control plane does not answer".to_owned()),
        }
    }
}

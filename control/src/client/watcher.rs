//! The newest map, always: a task that watches, reconnects and catches up.

use std::sync::Arc;

use lunette_proto::ids::{ClusterId, Epoch};
use lunette_proto::map::ClusterMap;
use thiserror::Error;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{Backoff, ControlPlane, Follower, WatchError};
use crate::api::cluster::WatchMapRequest;

/// The watcher was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the map is not watched any more")]
pub struct WatchEnded;

/// See the module. Dropping it ends the task.
#[derive(Debug)]
pub struct MapWatcher {
    map: watch::Receiver<Arc<ClusterMap>>,
    stop: CancellationToken,
    task: Option<JoinHandle<()>>,
}

impl MapWatcher {
    /// Starts watching. Until the first map has come, the map is empty and its epoch 0. Only maps of
    /// `cluster` are taken, or, for `None`, those of the first cluster that answers.
    #[must_use]
    pub fn start(control: ControlPlane, cluster: Option<ClusterId>) -> Self {
        let (sender, map) = watch::channel(Arc::default());
        let stop = CancellationToken::new();
        let watch = watch_for_ever(control, Follower::new(cluster), sender);
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            tokio::select! {
                () = watch => {}
                () = stopped.cancelled() => {}
            }
        });
        Self { map, stop, task: Some(task) }
    }

    /// The newest map.
    #[must_use]
    pub fn map(&self) -> Arc<ClusterMap> {
        Arc::clone(&self.map.borrow())
    }

    /// The newest map, and every change of it. Epochs only rise; a slow reader skips some.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<ClusterMap>> {
        self.map.clone()
    }

    /// Waits for a map of this epoch or a later one.
    pub async fn at_least(&self, epoch: Epoch) -> Result<Arc<ClusterMap>, WatchEnded> {
        let mut map = self.map.clone();
        let map = map.wait_for(|map| map.epoch >= epoch).await.map_err(|_| WatchEnded)?;
        Ok(Arc::clone(&map))
    }

    /// Ends the task.
    pub async fn stop(mut self) {
        self.stop.cancel();
        if let Some(task) = self.task.take() {
            // It ends by the token; that it panicked was logged where it happened.
            let _ = task.await;
        }
    }
}

impl Drop for MapWatcher {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn watch_for_ever(control: ControlPlane, mut follower: Follower, maps: watch::Sender<Arc<ClusterMap>>) {
    let mut backoff = Backoff::default();
    // Asks for a whole map after an update that could not be taken.
    let mut whole = false;
    loop {
        let before = follower.map().epoch;
        match watch_once(&control, &mut follower, whole, &maps).await {
            Ended::Stream(status) => {
                tracing::debug!(%status, "the watch of the map has ended; again");
                control.follow(&status);
            }
            Ended::Update(error) => {
                tracing::warn!(%error, "an update of the map was refused; asking for the whole map");
                whole = true;
                control.turn();
            }
        }
        if follower.map().epoch > before {
            whole = false;
            backoff = Backoff::default();
        }
        sleep(backoff.next()).await;
    }
}

enum Ended {
    Stream(Status),
    Update(WatchError),
}

async fn watch_once(
    control: &ControlPlane,
    follower: &mut Follower,
    whole: bool,
    maps: &watch::Sender<Arc<ClusterMap>>,
) -> Ended {
    let request = WatchMapRequest {
        cluster_id: follower.cluster().map(|cluster| cluster.to_string()).unwrap_or_default(),
        have_epoch: if whole { 0 } else { follower.map().epoch.0 },
    };
    let mut updates = match control.members().watch_map(request).await {
        Ok(updates) => updates.into_inner(),
        Err(status) => return Ended::Stream(status),
    };
    loop {
        let update = match updates.message().await {
            Ok(Some(update)) => update,
            Ok(None) => return Ended::Stream(Status::unavailable("the stream has ended")),
            Err(status) => return Ended::Stream(status),
        };
        match follower.take(update) {
            Ok(true) => drop(maps.send_replace(Arc::clone(follower.map()))),
            Ok(false) => {}
            Err(error) => return Ended::Update(error),
        }
    }
}

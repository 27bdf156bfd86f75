//! `lunette gateway run`, and the gateway part of `lunette up`.
//!
//! ```text
//! control plane --map--> Exporter: ownership --> volumes --> secrets --> iSCSI targets
//!        ^                              |           |            (in this order)
//!        |<---- what was owned before --'           |
//!        |<---- purged -----------------------------'
//!        |<---- what logical units keep ------------------------------'
//!        |<---- what is handed over -------'
//!        '<---- reports: sessions, disks that do not answer; orders: kick, flush a write cache, hand over, load
//! ```

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow};
use lunette_control::api::cluster::{
    OwnedVolume, RegisterGatewayRequest, TakeOwnershipRequest, VolumePurgedRequest,
};
use lunette_control::client::{Attachment, ControlPlane, MapWatcher};
use lunette_proto::ids::{Epoch, GatewayId, Generation, VolumeId};
use lunette_proto::map::ClusterMap;
use lunette_target_iscsi::server::{Gateway, GatewayConfig as TargetConfig};
use lunette_volume::fabric::{Fabric, TcpFabric};
use lunette_volume::volumes::{VolumeEvent, Volumes};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::exporter::{Exporter, Reporter};
use super::member::{PATIENCE, control_plane, register};
use super::{control, stop};
use crate::admin::Address;
use crate::config::{ClusterKey, GatewayConfig};
use crate::output::{self, Format};
use crate::up::ports::hold_portals;

/// How long the control plane is waited for by a request that a newer map may make pointless.
const REQUEST_PATIENCE: Duration = Duration::from_secs(5);
/// Before a request that was refused is made again, by the map of then.
const REQUEST_PAUSE: Duration = Duration::from_millis(200);

/// Volumes are ready once their nodes have answered: milliseconds, or what is left of the grants of an owner before (1.65 s).
const READY_TIMEOUT: Duration = Duration::from_secs(4);
const READY_POLL: Duration = Duration::from_millis(2);

/// What makes a gateway.
pub(crate) struct GatewayParts<'a> {
    pub(crate) name: String,
    pub(crate) portals: Vec<SocketAddr>,
    pub(crate) admin: &'a [Address],
    pub(crate) key: &'a ClusterKey,
    pub(crate) fabric: Arc<dyn Fabric>,
}

/// Runs until told to stop.
pub(crate) async fn run(path: &Path, token: Option<&Path>, format: Format) -> Result<()> {
    let config = GatewayConfig::load(path)?;
    let stop = stop::on_signal()?;
    let key = control::key(&config.cluster_key_file, token, &config.admin, &stop).await?;
    // Port 0 becomes a port before anybody is told of it.
    let portals = hold_portals(&config.portals)?;
    let parts = GatewayParts {
        name: config.name.clone(),
        portals,
        admin: &config.admin,
        key: &key,
        fabric: Arc::new(TcpFabric::new(key.cluster, config.name)),
    };
    let started = GatewayMember::start(parts, &stop).await;
    let gateway = match started {
        // Told to stop while it waited for others: nothing has failed.
        Err(_) if stop.is_cancelled() => return Ok(()),
        started => started?,
    };
    let portals: Vec<String> = gateway.portals().iter().map(ToString::to_string).collect();
    let _ = match format {
        Format::Text => {
            let portals: String = portals.iter().map(|portal| format!("portal {portal}\n")).collect();
            output::try_print(&format!("{portals}ready\n"))
        }
        Format::Json => output::try_print(&format!("{}\n", json!({"ready": true, "portals": portals}))),
    };
    stop.cancelled().await;
    gateway.close().await;
    Ok(())
}

/// A gateway that serves.
pub(crate) struct GatewayMember {
    exporter: Arc<Exporter>,
    follower: JoinHandle<()>,
    stop: CancellationToken,
    watcher: MapWatcher,
    attachment: Attachment,
}

impl GatewayMember {
    /// Announces the gateway, takes what it owned before, opens the portals, and then serves what it is given. Returns once
    /// every volume has an owner, and those that are its own serve.
    pub(crate) async fn start(parts: GatewayParts<'_>, stop: &CancellationToken) -> Result<Self> {
        let control = control_plane(parts.admin)?;
        let request = RegisterGatewayRequest {
            cluster_id: parts.key.cluster.to_string(),
            name: parts.name.clone(),
            portals: parts.portals.iter().map(ToString::to_string).collect(),
        };
        let registered = register(control.register_gateway(PATIENCE, &request), parts.admin, stop).await?;
        let id = GatewayId(registered.gateway);
        let tag = u16::try_from(registered.portal_group_tag)
            .map_err(|_| anyhow!("portal group tag {} is none", registered.portal_group_tag))?;

        let watcher = MapWatcher::start(control.clone(), Some(parts.key.cluster));
        let first = tokio::select! {
            first = watcher.at_least(Epoch(1)) => first?,
            () = stop.cancelled() => return Err(anyhow!("stopped before the first map came")),
        };
        let (volumes, events) = Volumes::new(parts.key.cluster, id, parts.fabric);
        let sealer = Arc::clone(&parts.key.sealer);
        let exporter = Arc::new(Exporter::new(id, volumes, control.clone(), sealer));
        let stop_following = CancellationToken::new();
        let (settled, mut settling) = watch::channel(Epoch(0));
        let follower = Follower {
            control: control.clone(),
            exporter: Arc::clone(&exporter),
            maps: watcher.subscribe(),
            events,
            settled,
            stop: stop_following.clone(),
        };
        let follower = tokio::spawn(follower.run());
        // Whoever logs in finds volumes that are being taken over, not volumes of an earlier life.
        tokio::select! {
            settled = settling.wait_for(|settled| *settled >= first.epoch) => {
                drop(settled.map_err(|_| anyhow!("the gateway's task has ended"))?);
            }
            () = stop.cancelled() => return Err(anyhow!("stopped before the volumes were taken over")),
        }
        tokio::select! {
            () = until(|| exporter.is_ready()) => {}
            () = stop.cancelled() => return Err(anyhow!("stopped before the volumes were ready")),
        }
        let config = TargetConfig { id, name: parts.name, tag, portals: parts.portals };
        exporter.open_portals(|devices, secrets, map| Gateway::start(config, devices, secrets, map))?;
        let reporter = Arc::new(Reporter::new(id, Arc::clone(&exporter), watcher.subscribe()));
        let attachment = Attachment::start(control, reporter);
        let gateway = Self { exporter, follower, stop: stop_following, watcher, attachment };
        // From now on it is given volumes.
        tokio::select! {
            () = until(|| gateway.exporter.is_all_owned() && gateway.exporter.is_ready()) => Ok(gateway),
            () = stop.cancelled() => {
                gateway.close().await;
                Err(anyhow!("stopped before the volumes had owners"))
            }
        }
    }

    /// Where iSCSI is served.
    pub(crate) fn portals(&self) -> Vec<SocketAddr> {
        self.exporter.portals()
    }

    /// Gives its volumes to other gateways, finishes what is in flight, closes the sessions, and leaves.
    pub(crate) async fn close(self) {
        self.exporter.begin_to_leave();
        self.attachment.report_now();
        self.exporter.hand_all_over().await;
        self.exporter.close_portals().await;
        self.stop.cancel();
        if let Err(error) = self.follower.await {
            tracing::error!(%error, "the gateway's task has failed");
        }
        self.attachment.stop().await;
        self.watcher.stop().await;
    }
}

/// Waits until all volumes serve, so that the first login after a start finds its disk ready; but
/// not for ever: a volume that waits for a node must not keep the others from being served.
async fn until(holds: impl Fn() -> bool) {
    let all = async {
        while !holds() {
            tokio::time::sleep(READY_POLL).await;
        }
    };
    if tokio::time::timeout(READY_TIMEOUT, all).await.is_err() {
        tracing::warn!("not all volumes are ready yet; going on without them");
    }
}

/// Acts on maps and on what volumes say.
struct Follower {
    control: ControlPlane,
    exporter: Arc<Exporter>,
    maps: watch::Receiver<Arc<ClusterMap>>,
    events: mpsc::UnboundedReceiver<VolumeEvent>,
    settled: watch::Sender<Epoch>,
    stop: CancellationToken,
}

impl Follower {
    async fn run(mut self) {
        let mut taking: Option<JoinHandle<Result<Epoch, Status>>> = None;
        self.maps.mark_changed();
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                changed = self.maps.changed() => if changed.is_err() { return },
                taken = finished(&mut taking) => {
                    taking = None;
                    match taken {
                        Ok(epoch) => self.exporter.taken(epoch),
                        Err(status) => {
                            tracing::warn!(reason = status.message(), "volumes could not be taken over; again");
                        }
                    }
                }
                Some(VolumeEvent::Purged { volume, generation }) = self.events.recv() => {
                    let request = VolumePurgedRequest { volume: volume.0, generation: generation.0 };
                    tokio::spawn(purged(self.control.clone(), request, self.stop.clone()));
                }
            }
            let map = Arc::clone(&self.maps.borrow_and_update());
            self.exporter.apply(&map);
            if taking.is_none() {
                let wanted = self.exporter.wanted();
                if !wanted.is_empty() {
                    taking = Some(tokio::spawn(take(self.control.clone(), self.exporter.id(), wanted)));
                }
            }
            if let Some(epoch) = self.exporter.complete() {
                self.settled.send_replace(epoch);
            }
        }
    }
}

/// The outcome of a request that is being made; never, if there is none.
async fn finished(taking: &mut Option<JoinHandle<Result<Epoch, Status>>>) -> Result<Epoch, Status> {
    match taking {
        None => std::future::pending().await,
        Some(task) => task.await.unwrap_or_else(|error| Err(Status::internal(error.to_string()))),
    }
}

async fn take(
    control: ControlPlane,
    gateway: GatewayId,
    volumes: Vec<(VolumeId, Generation)>,
) -> Result<Epoch, Status> {
    let owned = |(volume, generation): (VolumeId, Generation)| OwnedVolume {
        volume: volume.0,
        generation: generation.0,
    };
    let volumes: Vec<OwnedVolume> = volumes.into_iter().map(owned).collect();
    tracing::debug!(volumes = volumes.len(), "taking volumes over");
    let request = TakeOwnershipRequest { gateway: gateway.0, volumes };
    match control.take_ownership(REQUEST_PATIENCE, &request).await {
        Ok(response) => {
            tracing::debug!(epoch = response.epoch, "taken");
            Ok(Epoch(response.epoch))
        }
        // Here and not where it is waited for: maps are followed meanwhile.
        Err(status) => {
            tokio::time::sleep(REQUEST_PAUSE).await;
            Err(status)
        }
    }
}

/// Says so until it is heard: nobody else knows that the space is free.
async fn purged(control: ControlPlane, request: VolumePurgedRequest, stop: CancellationToken) {
    tokio::select! {
        said = control.volume_purged(PATIENCE, request) => match said {
            Ok(_) => {}
            // Another owner has it by now, and will say it in turn.
            Err(status) if status.code() == Code::FailedPrecondition => {}
            Err(status) => tracing::warn!(reason = status.message(), "a purged volume stays listed"),
        },
        () = stop.cancelled() => {}
    }
}

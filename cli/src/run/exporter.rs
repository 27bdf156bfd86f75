//! One map at a time, to everything that acts on maps, in the order that keeps them consistent:
//! what logical units keep, then ownership, volumes, secrets, and then iSCSI targets. A volume that is taken over serves
//! nobody whom a reservation has shut out before that, and a LUN never shows a volume that the layer below does not know.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwapOption;
use lunette_control::api::cluster::report::Member;
use lunette_control::api::cluster::{GatewayReport, LoadOrder, Report, SessionReport};
use lunette_control::client::{Attached, ControlPlane};
use lunette_control::seal::Sealer;
use lunette_proto::ids::{Epoch, GatewayId, Generation, VolumeId};
use lunette_proto::map::{ClusterMap, Volume, VolumeState};
use lunette_target_iscsi::exports::{Change, Devices};
use lunette_target_iscsi::server::{Gateway, SessionInfo, StartError};
use lunette_target_iscsi::session::Secrets;
use lunette_volume::device::{BlockDevice, Readiness};
use lunette_volume::volumes::Volumes;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::giver::Giver;
use super::keeper::{Done, Keeper};
use super::loads::Loads;
use super::ownership::Ownership;
use super::reports::{catch_ups, complaint, limping};
use super::secrets::ClusterSecrets;

/// See the module.
pub(crate) struct Exporter {
    id: GatewayId,
    volumes: Arc<Volumes>,
    keeper: Arc<Keeper>,
    giver: Giver,
    loads: Arc<Loads>,
    /// It is about to stop.
    leaving: AtomicBool,
    secrets: Arc<ClusterSecrets>,
    gateway: ArcSwapOption<Gateway>,
    state: Mutex<State>,
}

struct State {
    ownership: Ownership,
    map: Arc<ClusterMap>,
}

impl Exporter {
    /// Has to be called inside a runtime.
    pub(crate) fn new(
        id: GatewayId,
        volumes: Arc<Volumes>,
        control: ControlPlane,
        sealer: Arc<Sealer>,
    ) -> Self {
        let map = Arc::<ClusterMap>::default();
        Self {
            id,
            keeper: Arc::new(Keeper::new(id, control.clone(), Arc::clone(&volumes))),
            giver: Giver::new(control, Arc::clone(&volumes)),
            loads: Loads::new(Arc::clone(&volumes)),
            leaving: AtomicBool::new(false),
            volumes,
            secrets: Arc::new(ClusterSecrets::new(sealer, Arc::clone(&map))),
            gateway: ArcSwapOption::empty(),
            state: Mutex::new(State { ownership: Ownership::new(id), map }),
        }
    }

    pub(crate) fn id(&self) -> GatewayId {
        self.id
    }

    /// Opens the portals under the present map.
    pub(crate) fn open_portals(
        &self,
        open: impl FnOnce(Arc<dyn Devices>, Arc<dyn Secrets>, &ClusterMap) -> Result<Gateway, StartError>,
    ) -> Result<(), StartError> {
        // Locked, so that no map passes between the start and the moment when maps are applied.
        let state = self.state.lock();
        let devices = VolumeDevices { volumes: Arc::clone(&self.volumes), keeper: Arc::clone(&self.keeper) };
        let devices = Arc::new(devices);
        let secrets = Arc::clone(&self.secrets) as Arc<dyn Secrets>;
        let gateway = open(devices, secrets, &state.map)?;
        self.gateway.store(Some(Arc::new(gateway)));
        Ok(())
    }

    /// Says in every report from now on that it is to own nothing more.
    pub(crate) fn begin_to_leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    /// Hands its volumes over, if there is another gateway; returns when that is done, or took too long.
    pub(crate) async fn hand_all_over(&self) {
        self.giver.give_all(self.id).await;
    }

    /// Closes the portals and all sessions, once what their devices have is answered.
    pub(crate) async fn close_portals(&self) {
        let gateway = self.gateway.load_full();
        if let Some(gateway) = gateway {
            gateway.stop().await;
        }
    }

    pub(crate) fn portals(&self) -> Vec<SocketAddr> {
        self.gateway.load().as_ref().map(|gateway| gateway.portals().to_vec()).unwrap_or_default()
    }

    /// Follows a map, unless it has followed it or a newer one.
    pub(crate) fn apply(&self, map: &Arc<ClusterMap>) {
        let mut state = self.state.lock();
        if map.epoch <= state.map.epoch {
            return;
        }
        let gateway = self.gateway.load();
        if let Some(gateway) = &*gateway {
            gateway.learn(map);
        }
        state.ownership.see(map);
        self.loads.see(map);
        self.volumes.apply_map(&state.ownership.visible(map));
        self.secrets.apply_map(Arc::clone(map));
        if let Some(gateway) = &*gateway {
            gateway.apply_map(map);
        }
        state.map = Arc::clone(map);
    }

    /// The volumes of an earlier life, which are to be taken.
    pub(crate) fn wanted(&self) -> Vec<(VolumeId, Generation)> {
        let state = self.state.lock();
        state.ownership.wanted(&state.map)
    }

    /// A request to take over was committed with this epoch.
    pub(crate) fn taken(&self, epoch: Epoch) {
        self.state.lock().ownership.taken(epoch);
    }

    /// Whether every volume of this gateway serves.
    pub(crate) fn is_ready(&self) -> bool {
        let map = Arc::clone(&self.state.lock().map);
        let mine = |volume: &&Volume| {
            volume.state == VolumeState::Active && volume.owner.is_some_and(|owner| owner.gateway == self.id)
        };
        map.volumes.values().filter(mine).all(|volume| {
            self.volumes.get(volume.id).is_some_and(|device| device.readiness() == Readiness::Ready)
        })
    }

    /// Whether every volume has an owner, be it here or elsewhere.
    pub(crate) fn is_all_owned(&self) -> bool {
        self.state.lock().map.volumes.values().all(|volume| volume.owner.is_some())
    }

    /// The map's epoch, if nothing under it is an earlier life's.
    pub(crate) fn complete(&self) -> Option<Epoch> {
        let state = self.state.lock();
        state.ownership.is_complete(&state.map).then_some(state.map.epoch)
    }
}

/// Volumes as the devices of LUNs.
struct VolumeDevices {
    volumes: Arc<Volumes>,
    keeper: Arc<Keeper>,
}

impl Devices for VolumeDevices {
    fn device(&self, volume: VolumeId) -> Option<Arc<dyn BlockDevice>> {
        self.volumes.get(volume)
    }

    fn keep(&self, volume: VolumeId, change: Change, done: Done) {
        self.keeper.keep(volume, change, done);
    }
}

/// What the gateway tells the control plane.
pub(crate) struct Reporter {
    id: GatewayId,
    exporter: Arc<Exporter>,
    maps: watch::Receiver<Arc<ClusterMap>>,
}

impl Reporter {
    pub(crate) fn new(
        id: GatewayId,
        exporter: Arc<Exporter>,
        maps: watch::Receiver<Arc<ClusterMap>>,
    ) -> Self {
        Self { id, exporter, maps }
    }
}

impl Attached for Reporter {
    /// Made under the newest map: whoever asks for a report after a change knows that it is in force.
    fn report(&self) -> Report {
        let map = Arc::clone(&self.maps.borrow());
        self.exporter.apply(&map);
        let map = Arc::clone(&self.exporter.state.lock().map);
        let sessions =
            self.exporter.gateway.load().as_ref().map(|gateway| gateway.sessions()).unwrap_or_default();
        let volumes = &self.exporter.volumes;
        Report {
            member: Some(Member::Gateway(GatewayReport {
                gateway: self.id.0,
                sessions: sessions.into_iter().map(session).collect(),
                hopeless_blocks: volumes.hopeless_blocks(),
                unreachable: volumes.unreachable().iter().map(complaint).collect(),
                limping: volumes.limping().iter().map(limping).collect(),
                catch_ups: catch_ups(&map, volumes.catch_ups()),
                epoch: map.epoch.0,
                leaving: self.exporter.leaving.load(Ordering::Relaxed),
                loads: self.exporter.loads.report(),
            })),
        }
    }

    fn kick(&self, tsih: u32) {
        let gateway = self.exporter.gateway.load();
        let kicked =
            u16::try_from(tsih).ok().zip(gateway.as_ref()).is_some_and(|(tsih, gateway)| gateway.kick(tsih));
        tracing::info!(tsih, kicked, "told to close a session");
    }

    fn write_through(&self, volume: VolumeId) {
        tracing::info!(%volume, "told to turn a write cache off");
        let done = move |result| {
            if let Err(error) = result {
                tracing::warn!(%volume, %error, "the write cache stays on");
            }
        };
        self.exporter.keeper.keep(volume, Change::WriteBack(false), Box::new(done));
    }

    fn hand_over(&self, volume: VolumeId, to: GatewayId) {
        tracing::info!(%volume, %to, "told to hand a volume over");
        self.exporter.giver.give(volume, to);
    }

    fn load(&self, order: LoadOrder) {
        let map = Arc::clone(&self.exporter.state.lock().map);
        self.exporter.loads.order(&order, &map);
    }
}

fn session(info: SessionInfo) -> SessionReport {
    SessionReport {
        tsih: info.tsih.into(),
        discovery: info.target.is_none(),
        target: info.target.unwrap_or_default(),
        initiator: info.initiator,
        initiator_address: info.initiator_address.to_string(),
        portal: info.portal.to_string(),
        isid: info.isid.iter().map(|byte| format!("{byte:02x}")).collect(),
        since_unix_ms: info.since_unix_ms,
        commands: info.commands,
        read_bytes: info.read_bytes,
        written_bytes: info.written_bytes,
        errors: info.errors,
        header_digest: info.header_digest,
        data_digest: info.data_digest,
        chap_user: info.chap_user.unwrap_or_default(),
    }
}

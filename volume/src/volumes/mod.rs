//! The volumes of a gateway: an owner for each that the map gives it, a device for each there is.
//!
//! ```text
//!     map --> Volumes --> owners opened, told, closed        front end --> Device --> Cell(Owner)
//!                 `--> ways to the nodes (Fabric)                                        |   ^
//!                                                                     Service::call <----'   '-- replies
//! ```
//!
//! Which volumes this gateway should own is not decided here: the control plane commits it.

mod cell;
mod device;
mod timers;

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use lunette_proto::ids::{ClusterId, DiskId, Epoch, GatewayId, Generation, NodeId, PoolId, VolumeId};
use lunette_proto::limits::BLOCK_BYTES;
use lunette_proto::map::{self, ClusterMap, VolumeState};
use lunette_proto::node::Service;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, mpsc};

use crate::device::{BlockDevice, DeviceError};
use crate::fabric::{Fabric, Links};
use crate::layout::Layout;
use crate::owner::{CatchUp, Config, Limits, Limping, Owner, PoolView, Standing, Trouble, View};
use cell::{Cell, Outlets};
use device::Device;
use timers::Timers;

/// How exact timers are.
const TICK: Duration = Duration::from_millis(10);

/// What the gateway has to tell the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeEvent {
    /// The space of a deleted volume has been given back on every disk.
    Purged {
        /// Which.
        volume: VolumeId,
        /// Under which generation.
        generation: Generation,
    },
}

/// A disk in use that does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreachable {
    /// Which.
    pub disk: DiskId,
    /// For how long by now.
    pub lasting: Duration,
    /// Why.
    pub trouble: Trouble,
}

/// All volumes of one gateway.
pub struct Volumes {
    cluster: ClusterId,
    gateway: GatewayId,
    fabric: Arc<dyn Fabric>,
    clock: Clock,
    outlets: Outlets,
    devices: RwLock<BTreeMap<VolumeId, Arc<Device>>>,
    /// The open owners, for lost connections.
    cells: ArcSwap<Vec<Arc<Cell>>>,
    timers: Arc<Timers<Weak<Cell>>>,
    /// For commands that wait for an owner.
    holds: Arc<Timers<Weak<Device>>>,
    ways: Arc<ArcSwap<Ways>>,
    applied: Mutex<Applied>,
}

/// The ways to disks under one map.
#[derive(Default)]
struct Ways {
    disks: BTreeMap<DiskId, (NodeId, Arc<dyn Service>)>,
}

#[derive(Default)]
struct Applied {
    epoch: Epoch,
    pools: BTreeMap<PoolId, CachedPool>,
}

struct CachedPool {
    pool: map::Pool,
    standing: BTreeMap<DiskId, Standing>,
    behind: BTreeMap<DiskId, Arc<map::Behind>>,
    view: Arc<PoolView>,
}

/// Milliseconds since the gateway began, those that the machine has slept included: what disks have granted before is over
/// then (invariant 34).
#[derive(Clone, Copy, Debug)]
struct Clock {
    begun_ms: u64,
}

impl Clock {
    fn start() -> Self {
        Self { begun_ms: boot_ms() }
    }

    fn now_ms(self) -> u64 {
        boot_ms().saturating_sub(self.begun_ms)
    }
}

fn boot_ms() -> u64 {
    let since = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    // Neither is ever negative.
    u64::try_from(since.tv_sec).unwrap_or(0) * 1000 + u64::try_from(since.tv_nsec).unwrap_or(0) / 1_000_000
}

impl Volumes {
    /// No volumes yet; they come with the first map. Events come out of the receiver. Has to be called inside a
    /// tokio runtime, on which the timer runs until the value is dropped.
    #[must_use]
    pub fn new(
        cluster: ClusterId,
        gateway: GatewayId,
        fabric: Arc<dyn Fabric>,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<VolumeEvent>) {
        // One event per deleted volume: bounded by their number.
        let (events, receiver) = mpsc::unbounded_channel();
        let volumes = Arc::new(Self {
            cluster,
            gateway,
            fabric,
            clock: Clock::start(),
            outlets: Outlets { events, news: Arc::default() },
            devices: RwLock::default(),
            cells: ArcSwap::default(),
            timers: Arc::new(Timers::new()),
            holds: Arc::new(Timers::new()),
            ways: Arc::default(),
            applied: Mutex::default(),
        });
        let links: Arc<dyn Links> = volumes.clone();
        volumes.fabric.watch(Arc::downgrade(&links));
        tokio::spawn(keep_time(Arc::downgrade(&volumes)));
        (volumes, receiver)
    }

    /// The device of a volume of the map, the same object for as long as the volume exists. While
    /// another gateway owns it, it answers that: after a moment, in which a map may come that makes this one the owner.
    #[must_use]
    pub fn get(&self, volume: VolumeId) -> Option<Arc<dyn BlockDevice>> {
        self.devices.read().get(&volume).map(|device| Arc::clone(device) as Arc<dyn BlockDevice>)
    }

    /// Has a volume write through from now on, until its owner changes or its write cache is turned on anew, and flushes
    /// what it has acknowledged. `done` learns under which generation all of it is on stable media: as long as that is
    /// the volume's, the map may say that its cache is off.
    pub fn write_through(
        &self,
        volume: VolumeId,
        done: impl FnOnce(Result<Generation, DeviceError>) + Send + 'static,
    ) {
        let device = self.devices.read().get(&volume).cloned();
        match device {
            Some(device) => device.write_through(Box::new(done)),
            None => done(Err(DeviceError::Gone)),
        }
    }

    /// Makes a volume ready for another gateway: holds the commands that come from now on, finishes the others, makes all
    /// of it durable and known to be equal on its disks. `done` learns under which generation that is so. Then the map has
    /// to name the next owner, and what is held is answered [`DeviceError::NotOwner`]; if none does for a second, or
    /// it cannot be made ready in that time ([`DeviceError::Busy`]), the volume goes on being served here.
    pub fn hand_over(
        &self,
        volume: VolumeId,
        done: impl FnOnce(Result<Generation, DeviceError>) + Send + 'static,
    ) {
        let device = self.devices.read().get(&volume).cloned();
        match device {
            Some(device) => device.hand_over(Box::new(done)),
            None => done(Err(DeviceError::Gone)),
        }
    }

    /// Disks in sync that some volume needs and that do not answer.
    #[must_use]
    pub fn unreachable(&self) -> Vec<Unreachable> {
        let now_ms = self.clock.now_ms();
        let mut worst: BTreeMap<DiskId, Unreachable> = BTreeMap::new();
        for cell in self.cells.load().iter() {
            for complaint in cell.complaints() {
                let lasting = Duration::from_millis(now_ms.saturating_sub(complaint.since_ms));
                let new = Unreachable { disk: complaint.disk, lasting, trouble: complaint.trouble };
                let entry = worst.entry(complaint.disk).or_insert(new);
                if entry.lasting < lasting {
                    *entry = new;
                }
            }
        }
        worst.into_values().collect()
    }

    /// Disks that are far slower than the others, by what volumes see of them.
    #[must_use]
    pub fn limping(&self) -> Vec<Limping> {
        let mut worst: BTreeMap<DiskId, Limping> = BTreeMap::new();
        for limping in self.cells.load().iter().flat_map(|cell| cell.limping()) {
            let entry = worst.entry(limping.disk).or_insert(limping);
            if entry.mean_ms < limping.mean_ms {
                *entry = limping;
            }
        }
        worst.into_values().collect()
    }

    /// How far the copies that do not count have been brought up to date, of each open volume. What is ready stays so
    /// for as long as the volume has that generation.
    #[must_use]
    pub fn catch_ups(&self) -> Vec<(VolumeId, Generation, CatchUp)> {
        let cells = self.cells.load();
        let of = |cell: &Arc<Cell>| {
            let (volume, generation) = (cell.volume(), cell.generation());
            cell.catch_ups().into_iter().map(move |catch_up| (volume, generation, catch_up))
        };
        cells.iter().flat_map(of).collect()
    }

    /// Notified when what [`unreachable`](Self::unreachable), [`limping`](Self::limping) or [`catch_ups`](Self::catch_ups) says has changed in a way
    /// that the control plane should know at once.
    #[must_use]
    pub fn news(&self) -> Arc<Notify> {
        Arc::clone(&self.outlets.news)
    }

    /// Damaged blocks of which no other disk in sync has a good copy.
    #[must_use]
    pub fn hopeless_blocks(&self) -> u64 {
        self.cells.load().iter().map(|cell| cell.hopeless_blocks() as u64).sum()
    }

    /// Follows a newer map: opens what this gateway owns by it, tells what is open, closes what it
    /// has lost. An older map than the last one changes nothing.
    pub fn apply_map(&self, map: &ClusterMap) {
        let mut applied = self.applied.lock();
        if map.epoch < applied.epoch {
            return;
        }
        applied.epoch = map.epoch;
        self.follow_nodes(map);
        self.follow_pools(map, &mut applied);
        let (mut open, mut new) = (Vec::new(), Vec::new());
        for volume in map.volumes.values() {
            let device = self.device(volume.id);
            device.set_atomic_bytes(Layout::new(volume.stripe).map_or(BLOCK_BYTES, Layout::atomic_bytes));
            let mine = volume.owner.filter(|owner| owner.gateway == self.gateway);
            let pool = applied.pools.get(&volume.pool).map(|cached| Arc::clone(&cached.view));
            let (Some(owner), Some(pool)) = (mine, pool) else {
                device.close(volume.generation);
                continue;
            };
            let view = View {
                epoch: map.epoch,
                size_bytes: volume.size_bytes,
                deleting: volume.state == VolumeState::Deleting,
                pool,
            };
            match device.cell() {
                Some(cell) if cell.generation() >= owner.generation => {
                    cell.set_write_back(volume.write_back);
                    cell.see(view);
                    open.push(cell);
                }
                _ => {
                    device.close(owner.generation);
                    if device.is_used(owner.generation) {
                        // Sequence numbers would begin again under it (invariant 1).
                        tracing::debug!(volume = %volume.id, generation = %owner.generation, "owned before");
                    } else if let Some(cell) = self.open(volume, owner.generation, view) {
                        device.open(Arc::clone(&cell));
                        new.push(Arc::clone(&cell));
                        open.push(cell);
                    }
                }
            }
        }
        self.cells.store(Arc::new(open));
        // Only now: from its first request on an owner has to hear of connections that break.
        for cell in new {
            cell.begin();
        }
        let gone: Vec<Arc<Device>> = {
            let mut devices = self.devices.write();
            let ids: Vec<VolumeId> =
                devices.keys().copied().filter(|id| !map.volumes.contains_key(id)).collect();
            ids.iter().filter_map(|id| devices.remove(id)).collect()
        };
        for device in gone {
            device.gone();
        }
    }

    fn device(&self, id: VolumeId) -> Arc<Device> {
        if let Some(device) = self.devices.read().get(&id) {
            return Arc::clone(device);
        }
        let new = || Device::new(self.clock, Arc::clone(&self.holds));
        Arc::clone(self.devices.write().entry(id).or_insert_with(new))
    }

    fn open(&self, volume: &map::Volume, generation: Generation, view: View) -> Option<Arc<Cell>> {
        let Some(layout) = Layout::new(volume.stripe) else {
            tracing::error!(volume = %volume.id, stripe = ?volume.stripe, "a stripe that no layout allows; not served");
            return None;
        };
        tracing::info!(volume = %volume.id, name = volume.name, %generation, "taking ownership");
        let config = Config {
            cluster: self.cluster,
            volume: volume.id,
            generation,
            layout,
            block_bytes: volume.block_bytes,
            write_back: volume.write_back,
            limits: Limits::default(),
        };
        let owner = Owner::new(config, view);
        let (ways, timers) = (Arc::clone(&self.ways), Arc::clone(&self.timers));
        Some(Cell::new(volume.id, generation, owner, self.clock, ways, timers, self.outlets.clone()))
    }

    fn follow_nodes(&self, map: &ClusterMap) {
        let mut services: BTreeMap<NodeId, Arc<dyn Service>> = BTreeMap::new();
        for node in map.nodes.values() {
            services.insert(node.id, self.fabric.service(node));
        }
        let disks: BTreeMap<DiskId, (NodeId, Arc<dyn Service>)> = map
            .disks
            .values()
            .filter_map(|disk| Some((disk.id, (disk.node, Arc::clone(services.get(&disk.node)?)))))
            .collect();
        // Another way leads to another process: the one before may have ended, with all that it remembered.
        let old = self.ways.load_full();
        let is_new = |disk: &DiskId| match (old.disks.get(disk), disks.get(disk)) {
            (Some((_, old)), Some((_, new))) => !Arc::ptr_eq(old, new),
            (before, _) => before.is_some(),
        };
        let changed: Vec<DiskId> = old.disks.keys().copied().filter(is_new).collect();
        // Said before anything goes the new way, and after the last that went the old one.
        self.lose(&changed);
        self.ways.store(Arc::new(Ways { disks }));
        self.lose(&changed);
        self.fabric.retain(&map.nodes);
    }

    fn lose(&self, disks: &[DiskId]) {
        if disks.is_empty() {
            return;
        }
        for cell in self.cells.load().iter() {
            for disk in disks {
                cell.lost(*disk);
            }
        }
    }

    /// Tables are large and change seldom: views of them are kept as long as nothing in them changes.
    fn follow_pools(&self, map: &ClusterMap, applied: &mut Applied) {
        let standing: BTreeMap<DiskId, Standing> = map
            .disks
            .values()
            .map(|disk| (disk.id, Standing { state: disk.state, local: self.fabric.is_local(disk.node) }))
            .collect();
        applied.pools.retain(|id, _| map.pools.contains_key(id));
        for pool in map.pools.values() {
            let of_pool = (pool.id, DiskId(0))..=(pool.id, DiskId(u32::MAX));
            let behind: BTreeMap<_, _> =
                map.behind.range(of_pool).map(|((_, disk), behind)| (*disk, Arc::clone(behind))).collect();
            let is_same =
                |it: &CachedPool| it.pool == *pool && it.standing == standing && it.behind == behind;
            if applied.pools.get(&pool.id).is_some_and(is_same) {
                continue;
            }
            let view = PoolView::new(pool, lunette_placement::partition_of, &standing, |disk| {
                behind.get(&disk).cloned()
            });
            let (pool, standing) = (pool.clone(), standing.clone());
            let cached = CachedPool { pool, standing, behind, view: Arc::new(view) };
            applied.pools.insert(cached.pool.id, cached);
        }
    }

    fn tick(&self) {
        let now_ms = self.clock.now_ms();
        for cell in self.timers.due(now_ms).iter().filter_map(Weak::upgrade) {
            cell.tick(now_ms);
        }
        for device in self.holds.due(now_ms).iter().filter_map(Weak::upgrade) {
            device.expire(now_ms);
        }
    }
}

impl Links for Volumes {
    fn lost(&self, node: NodeId) {
        let ways = self.ways.load_full();
        let disks: Vec<DiskId> =
            ways.disks.iter().filter(|(_, (at, _))| *at == node).map(|(disk, _)| *disk).collect();
        self.lose(&disks);
        // The control plane may have been told of it by nobody else.
        self.outlets.news.notify_one();
    }
}

impl Drop for Volumes {
    fn drop(&mut self) {
        for device in self.devices.get_mut().values() {
            device.end();
        }
    }
}

async fn keep_time(volumes: Weak<Volumes>) {
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        interval.tick().await;
        match volumes.upgrade() {
            Some(volumes) => volumes.tick(),
            None => return,
        }
    }
}

#[cfg(test)]
mod tests;

//! Storage nodes on temporary directories, reached over TCP or by a call, and the maps that name them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use lunette_proto::ids::*;
use lunette_proto::map::{self, *};
use lunette_proto::node::*;
use lunette_storage_node::{DiskConfig, FormatOptions, Identity, Node, format_disk, serve};
use lunette_volume::device::{BlockDevice, Command, Completions, DeviceError, Outcome};
use lunette_volume::fabric::{Fabric, Links, TcpFabric};
use lunette_volume::volumes::Volumes;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) const SECTOR: u64 = 512;
const CLUSTER: ClusterId = ClusterId(0xc1);
const VOLUME: VolumeId = VolumeId(1);
const GATEWAY: GatewayId = GatewayId(1);
const NODES: u32 = 4;
const COPIES: u8 = 3;
const PARTITIONS: u32 = 8;
const EXTENTS: u64 = 4;
const EXTENT_BYTES: u64 = 4 << 20;
/// Small, and with the smallest journal, so that it goes round.
const FORMAT: FormatOptions = FormatOptions { capacity_bytes: Some(256 << 20), wal_bytes: Some(32 << 20) };
/// Longer than any command may take.
const HANG: Duration = Duration::from_secs(20);

/// Nodes, each with one disk.
pub(crate) struct Cluster {
    root: tempfile::TempDir,
    nodes: Vec<Option<Served>>,
    addresses: Vec<SocketAddr>,
    /// `None`: over TCP.
    ways: Option<Arc<Ways>>,
    write_back: bool,
    stripe: Option<Stripe>,
    epoch: u64,
    generation: u64,
}

struct Served {
    node: Arc<Node>,
    stop: CancellationToken,
    server: JoinHandle<()>,
}

/// An owner and what it needs to live.
pub(crate) type Owner = (Arc<Volumes>, mpsc::UnboundedReceiver<lunette_volume::volumes::VolumeEvent>);

impl Cluster {
    pub(crate) async fn start(tcp: bool, write_back: bool, seed: u64) -> Self {
        let root = tempfile::tempdir().unwrap();
        let stripe = seed.is_multiple_of(2).then_some(Stripe { unit_bytes: 16 << 10, width: 2 });
        let mut cluster = Self {
            root,
            nodes: Vec::new(),
            addresses: Vec::new(),
            ways: (!tcp).then(Arc::default),
            write_back,
            stripe,
            epoch: 0,
            generation: 0,
        };
        for id in 0..NODES {
            let identity =
                Identity { cluster: CLUSTER, disk: DiskId(id), uuid: DiskUuid(u128::from(id) + 1) };
            format_disk(&cluster.path(id as usize), &identity, &FORMAT).unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            cluster.addresses.push(listener.local_addr().unwrap());
            cluster.nodes.push(None);
            cluster.serve(id as usize, listener).await;
        }
        cluster
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    fn path(&self, node: usize) -> PathBuf {
        self.root.path().join(format!("disk{node}"))
    }

    async fn serve(&mut self, id: usize, listener: TcpListener) {
        let config = DiskConfig::new(self.path(id), None);
        let node = tokio::task::spawn_blocking(|| Node::open(CLUSTER, [config])).await.unwrap().unwrap();
        let stop = CancellationToken::new();
        let server = tokio::spawn(serve(listener, Arc::clone(&node), format!("node{id}"), stop.clone()));
        if let Some(ways) = &self.ways {
            let slot = Arc::new(Slot(Mutex::new(Some(Arc::clone(&node)))));
            ways.nodes.lock().insert(NodeId(id as u32), slot);
        }
        self.nodes[id] = Some(Served { node, stop, server });
    }

    /// Stops a node in order.
    pub(crate) async fn close(&mut self, id: usize) {
        let Served { node, stop, server } = self.nodes[id].take().unwrap();
        if let Some(ways) = &self.ways {
            ways.nodes.lock()[&NodeId(id as u32)].0.lock().take();
        }
        stop.cancel();
        tokio::time::timeout(HANG, server).await.expect("the server stops").unwrap();
        tokio::task::spawn_blocking(move || {
            node.close();
            // Who was in the middle of a call still has it, and with it the lock on its directory.
            while Arc::strong_count(&node) > 1 {
                std::thread::sleep(Duration::from_millis(1));
            }
        })
        .await
        .unwrap();
    }

    /// Opens a node again, where it was.
    pub(crate) async fn open(&mut self, id: usize) {
        let listener = TcpListener::bind(self.addresses[id]).await.unwrap();
        self.serve(id, listener).await;
    }

    /// A new owner of the next generation.
    pub(crate) async fn take_over(&mut self) -> (Owner, Arc<dyn BlockDevice>) {
        self.generation += 1;
        let fabric: Arc<dyn Fabric> = match &self.ways {
            None => Arc::new(TcpFabric::new(CLUSTER, "gateway")),
            Some(ways) => Arc::clone(ways) as Arc<dyn Fabric>,
        };
        let owner = Volumes::new(CLUSTER, GATEWAY, fabric);
        self.tell(&owner);
        let device = owner.0.get(VOLUME).unwrap();
        (owner, device)
    }

    /// A newer map for an owner.
    pub(crate) fn tell(&mut self, owner: &Owner) {
        self.epoch += 1;
        owner.0.apply_map(&self.map());
    }

    fn map(&self) -> ClusterMap {
        let nodes = (0..NODES).map(|id| map::Node {
            id: NodeId(id),
            name: format!("node{id}"),
            address: self.addresses[id as usize],
            host: format!("host{id}"),
            rack: String::new(),
            zone: String::new(),
        });
        let disks = (0..NODES).map(|id| Disk {
            id: DiskId(id),
            uuid: DiskUuid(u128::from(id) + 1),
            node: NodeId(id),
            label: String::new(),
            capacity_bytes: 1 << 30,
            weight: 1,
            state: DiskState::InSync,
            draining: false,
            replaced_by: None,
        });
        let cells =
            (0..PARTITIONS).flat_map(|row| (0..u32::from(COPIES)).map(move |at| DiskId((row + at) % NODES)));
        let pool = Pool {
            id: PoolId(1),
            name: "pool".into(),
            redundancy: Redundancy::replicated(COPIES),
            failure_domain: FailureDomain::Host,
            table: Arc::new(Table::new(1, COPIES, cells.collect())),
            moves: Arc::default(),
        };
        let generation = Generation(self.generation);
        let volume = Volume {
            id: VOLUME,
            name: "volume".into(),
            pool: PoolId(1),
            size_bytes: EXTENTS * EXTENT_BYTES,
            stripe: self.stripe,
            block_bytes: 512,
            write_back: self.write_back,
            generation,
            owner: Some(map::Owner { gateway: GATEWAY, generation }),
            state: VolumeState::Active,
        };
        ClusterMap {
            epoch: Epoch(self.epoch),
            cluster: CLUSTER,
            nodes: nodes.map(|node| (node.id, node)).collect(),
            disks: disks.map(|disk| (disk.id, disk)).collect(),
            pools: BTreeMap::from([(PoolId(1), pool)]),
            volumes: BTreeMap::from([(VOLUME, volume)]),
            ..ClusterMap::default()
        }
    }

    /// Every extent has the same versions and the same content on all its members.
    pub(crate) fn same_replicas(&mut self) {
        self.generation += 1;
        let generation = Generation(self.generation);
        let namespace = Namespace::volume(VOLUME);
        let mut written = BTreeSet::new();
        for disk in 0..NODES {
            self.ask(disk, RequestBody::Seal { namespace, generation });
        }
        let map = self.map();
        for index in 0..EXTENTS {
            let extent = ExtentId { namespace, index };
            let row =
                map.pools[&PoolId(1)].table.row(lunette_placement::partition_of(extent, PARTITIONS)).to_vec();
            let of = |disk: &DiskId| {
                let versions = self.ask(disk.0, RequestBody::Versions { extent, generation });
                let len = EXTENT_BYTES as u32;
                (versions, self.ask(disk.0, RequestBody::Read { extent, generation, offset: 0, len }))
            };
            let first = of(&row[0]);
            if let ReplyBody::Versions(runs) = &first.0 {
                written.extend(runs.iter().map(|run| run.version));
            }
            for disk in &row[1..] {
                assert!(of(disk) == first, "{extent} differs on {disk} and {}", row[0]);
            }
        }
        assert!(written.len() > 10, "hardly anything was written");
    }

    fn ask(&self, disk: u32, body: RequestBody) -> ReplyBody {
        loop {
            let (sender, receiver) = std::sync::mpsc::channel();
            let request = Request { disk: DiskId(disk), epoch: Epoch(self.epoch), body: body.clone() };
            let node = &self.nodes[disk as usize].as_ref().unwrap().node;
            node.call(request, 0, Arc::new(Direct(sender)));
            match receiver.recv_timeout(HANG).expect("an answer") {
                Err(Failure::Granted { left_ms }) => {
                    std::thread::sleep(Duration::from_millis(left_ms.into()));
                }
                reply => return reply.unwrap(),
            }
        }
    }
}

struct Direct(std::sync::mpsc::Sender<Reply>);

impl Replies for Direct {
    fn reply(&self, _: u64, reply: Reply) {
        let _ = self.0.send(reply);
    }
}

/// One life of a node that is called.
struct Slot(Mutex<Option<Arc<Node>>>);

impl Service for Slot {
    fn call(&self, request: Request, tag: u64, to: Arc<dyn Replies>) {
        let node = self.0.lock().clone();
        match node {
            Some(node) => node.call(request, tag, to),
            None => to.reply(tag, Err(Failure::Disconnected)),
        }
    }
}

/// Nodes of this process by a call.
#[derive(Default)]
pub(crate) struct Ways {
    nodes: Mutex<BTreeMap<NodeId, Arc<Slot>>>,
}

impl Fabric for Ways {
    fn service(&self, node: &map::Node) -> Arc<dyn Service> {
        self.nodes.lock()[&node.id].clone()
    }

    fn is_local(&self, _: NodeId) -> bool {
        true
    }

    fn retain(&self, _: &BTreeMap<NodeId, map::Node>) {}

    fn watch(&self, _: Weak<dyn Links>) {}
}

struct Waiting(Mutex<Option<oneshot::Sender<Outcome>>>);

impl Completions for Waiting {
    fn complete(&self, _: u64, outcome: Outcome) {
        let sender = self.0.lock().take().expect("answered once");
        let _ = sender.send(outcome);
    }
}

/// Runs a command, again and again while it is refused for the moment.
pub(crate) async fn run(device: &Arc<dyn BlockDevice>, command: Command) -> Outcome {
    loop {
        let (sender, receiver) = oneshot::channel();
        let to: Arc<dyn Completions> = Arc::new(Waiting(Mutex::new(Some(sender))));
        device.submit(command.clone(), 0, &to);
        drop(to);
        match tokio::time::timeout(HANG, receiver).await.expect("every command ends").unwrap() {
            Err(DeviceError::Busy) => tokio::time::sleep(Duration::from_millis(1)).await,
            outcome => return outcome,
        }
    }
}

/// SplitMix64: the same numbers for the same seed, for ever.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

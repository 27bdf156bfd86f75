//! Volumes on real sockets and on services that answer from within the call.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use bytes::{Buf, Bytes};
use lunette_proto::ids::{
    ClusterId, DiskId, DiskUuid, Epoch, GatewayId, Generation, NodeId, PoolId, VolumeId,
};
use lunette_proto::limits::NODE_ALIVE_MS;
use lunette_proto::map::{
    ClusterMap, Disk, DiskState, FailureDomain, Node, Owner, Pool, Redundancy, Stripe, Table, Volume,
    VolumeState,
};
use lunette_proto::node::frame::{Decoder, Frame, Outgoing};
use lunette_proto::node::{Failure, Replies, Reply, ReplyBody, Request, RequestBody, Service};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};

use super::*;
use crate::device::{Command, Completions, DeviceError, Outcome, Readiness};
use crate::fabric::TcpFabric;
use crate::sim::disk::ModelDisk;

const CLUSTER: ClusterId = ClusterId(5);
const ME: GatewayId = GatewayId(1);
const VOLUME: VolumeId = VolumeId(1);
const MIB: u64 = 1 << 20;
const ALIVE: Duration = Duration::from_millis(NODE_ALIVE_MS);

/// A node with one disk, on a socket.
struct TestNode {
    address: SocketAddr,
    /// Closes the connections; none is served while `off`.
    cut: Arc<Notify>,
    off: Arc<AtomicBool>,
    /// One for each connection that is served, and one more.
    served: Arc<()>,
}

impl TestNode {
    async fn start(disk: DiskId) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (cut, off) = (Arc::new(Notify::new()), Arc::new(AtomicBool::new(false)));
        let served = Arc::new(());
        let node =
            Self { address, cut: Arc::clone(&cut), off: Arc::clone(&off), served: Arc::clone(&served) };
        let served = Arc::downgrade(&served);
        let model = Arc::new(Mutex::new(ModelDisk::new(disk)));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                if !off.load(Ordering::SeqCst) {
                    let (model, cut) = (Arc::clone(&model), Arc::clone(&cut));
                    let Some(served) = served.upgrade() else { return };
                    tokio::spawn(async move {
                        let _served = served;
                        tokio::select! {
                            () = serve(stream, model, disk) => {}
                            () = cut.notified() => {}
                        }
                    });
                }
            }
        });
        node
    }

    /// Waits until nothing that is sent can arrive any more.
    async fn gone(&self) {
        self.cut(true);
        while Arc::strong_count(&self.served) > 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn cut(&self, off: bool) {
        self.off.store(off, Ordering::SeqCst);
        self.cut.notify_waiters();
    }
}

/// A disk of this moment answers.
fn call(model: &Mutex<ModelDisk>, request: &Request) -> Reply {
    static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);
    let mut model = model.lock();
    model.now_ms = BEGIN.elapsed().as_millis() as u64;
    model.call(request)
}

async fn serve(mut stream: TcpStream, model: Arc<Mutex<ModelDisk>>, disk: DiskId) {
    let mut decoder = Decoder::new();
    let mut out = Outgoing::new();
    loop {
        while let Some(frame) = decoder.next_frame().expect("a valid frame") {
            match frame {
                Frame::Hello(hello) => out.hello_ack(&hello.answer(CLUSTER, "test")).unwrap(),
                Frame::Request { id, request } if request.disk == disk => {
                    let reply = call(&model, &request);
                    out.reply(id, &reply).unwrap();
                }
                Frame::Request { id, .. } => out.reply(id, &Err(Failure::NoSuchDisk)).unwrap(),
                Frame::HelloAck(_) | Frame::Alive | Frame::Reply { .. } => panic!("not for a node"),
            }
        }
        while out.has_remaining() {
            if stream.write_buf(&mut out).await.is_err() {
                return;
            }
        }
        match tokio::time::timeout(ALIVE, stream.read_buf(decoder.buffer())).await {
            Ok(Ok(read)) if read > 0 => {}
            Ok(_) => return,
            Err(_) => out.alive().unwrap(),
        }
    }
}

struct Answers(mpsc::UnboundedSender<(u64, Outcome)>);

impl Completions for Answers {
    fn complete(&self, tag: u64, outcome: Outcome) {
        self.0.send((tag, outcome)).unwrap();
    }
}

/// Runs commands one at a time, trying again what was refused for the moment.
async fn run(device: &Arc<dyn BlockDevice>, command: Command) -> Outcome {
    loop {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let to: Arc<dyn Completions> = Arc::new(Answers(sender));
        device.submit(command.clone(), 9, &to);
        match receiver.recv().await.unwrap() {
            (9, Err(DeviceError::Busy)) => {}
            (9, outcome) => return outcome,
            (tag, _) => panic!("tag {tag}"),
        }
    }
}

async fn write(device: &Arc<dyn BlockDevice>, offset: u64, data: Vec<u8>) -> Outcome {
    run(device, Command::Write { offset, data: data.into(), fua: false }).await
}

async fn read(device: &Arc<dyn BlockDevice>, offset: u64, len: u32) -> Vec<u8> {
    run(device, Command::Read { offset, len }).await.unwrap().concat()
}

fn map(
    addresses: &[SocketAddr],
    epoch: u64,
    owner: Option<(GatewayId, u64)>,
    state: VolumeState,
) -> ClusterMap {
    let ids = || 0..addresses.len() as u32;
    let nodes = ids().map(|id| Node {
        id: NodeId(id),
        name: format!("node{id}"),
        address: addresses[id as usize],
        host: format!("host{id}"),
        rack: String::new(),
        zone: String::new(),
    });
    let disks = ids().map(|id| Disk {
        id: DiskId(id),
        uuid: DiskUuid(u128::from(id)),
        node: NodeId(id),
        label: String::new(),
        capacity_bytes: 1 << 40,
        weight: 1,
        state: DiskState::InSync,
        draining: false,
        replaced_by: None,
    });
    let pool = Pool {
        id: PoolId(1),
        name: "pool".into(),
        redundancy: Redundancy::replicated(addresses.len() as u8),
        failure_domain: FailureDomain::Host,
        table: Arc::new(Table::new(1, addresses.len() as u8, ids().map(DiskId).collect())),
        moves: Arc::default(),
    };
    let volume = Volume {
        id: VOLUME,
        name: "volume".into(),
        pool: PoolId(1),
        size_bytes: 64 * MIB,
        stripe: Some(Stripe { unit_bytes: 64 << 10, width: 4 }),
        block_bytes: 512,
        write_back: false,
        generation: Generation(owner.map_or(0, |(_, generation)| generation)),
        owner: owner.map(|(gateway, generation)| Owner { gateway, generation: Generation(generation) }),
        state,
    };
    ClusterMap {
        epoch: Epoch(epoch),
        cluster: CLUSTER,
        nodes: nodes.map(|node| (node.id, node)).collect(),
        disks: disks.map(|disk| (disk.id, disk)).collect(),
        pools: BTreeMap::from([(PoolId(1), pool)]),
        volumes: BTreeMap::from([(VOLUME, volume)]),
        ..ClusterMap::default()
    }
}

/// Guards the whole path over TCP: ownership by the map, data over stripes and nodes, broken
/// connections under load, a takeover, deletion.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tcp() {
    let nodes = [
        TestNode::start(DiskId(0)).await,
        TestNode::start(DiskId(1)).await,
        TestNode::start(DiskId(2)).await,
    ];
    let addresses: Vec<SocketAddr> = nodes.iter().map(|node| node.address).collect();
    let fabric = || Arc::new(TcpFabric::new(CLUSTER, "gateway"));
    let (volumes, mut events) = Volumes::new(CLUSTER, ME, fabric());
    assert!(volumes.get(VOLUME).is_none());
    volumes.apply_map(&map(&addresses, 1, Some((GatewayId(2), 1)), VolumeState::Active));
    let device = volumes.get(VOLUME).unwrap();
    assert_eq!(device.readiness(), Readiness::NotOwner);
    assert_eq!(write(&device, 0, vec![1; 512]).await, Err(DeviceError::NotOwner));

    volumes.apply_map(&map(&addresses, 2, Some((ME, 2)), VolumeState::Active));
    let bytes: Vec<u8> = (0..5 * MIB as u32).map(|at| (at / 4096 % 251) as u8).collect();
    assert!(write(&device, 3 * MIB, bytes.clone()).await.is_ok());
    assert_eq!(device.readiness(), Readiness::Ready);
    assert_eq!(read(&device, 3 * MIB, 5 * MIB as u32).await, bytes);

    // Connections break again and again while blocks are written in parallel.
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let to: Arc<dyn Completions> = Arc::new(Answers(sender));
    for round in 0..10u64 {
        for block in 0..20u64 {
            let data = Bytes::from(vec![(round * 20 + block) as u8; 4096]);
            device.submit(Command::Write { offset: block * 4096, data, fua: false }, block, &to);
        }
        nodes[round as usize % 3].cut(false);
        for _ in 0..20 {
            let (_, outcome) = receiver.recv().await.unwrap();
            assert!(outcome.is_ok(), "{outcome:?}");
        }
    }
    for block in 0..20u64 {
        assert_eq!(read(&device, block * 4096, 4096).await, vec![(180 + block) as u8; 4096]);
    }

    // Another gateway takes over; this one is told by the disks if not by the map.
    let (other, _events) = Volumes::new(CLUSTER, GatewayId(2), fabric());
    other.apply_map(&map(&addresses, 3, Some((GatewayId(2), 3)), VolumeState::Active));
    let there = other.get(VOLUME).unwrap();
    assert_eq!(read(&there, 3 * MIB, 5 * MIB as u32).await, bytes);
    assert_eq!(write(&device, 0, vec![1; 512]).await, Err(DeviceError::NotOwner));

    // A node that is away is complained about, and deletion waits for it.
    nodes[1].gone().await;
    volumes.apply_map(&map(&addresses, 4, Some((ME, 4)), VolumeState::Deleting));
    assert_eq!(write(&device, 0, vec![1; 512]).await, Err(DeviceError::Gone));
    while volumes.unreachable().iter().all(|it| it.disk != DiskId(1)) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(events.try_recv().is_err());
    nodes[1].cut(false);
    assert_eq!(events.recv().await, Some(VolumeEvent::Purged { volume: VOLUME, generation: Generation(4) }));
    let mut last = map(&addresses, 5, None, VolumeState::Active);
    last.volumes.clear();
    volumes.apply_map(&last);
    assert!(volumes.get(VOLUME).is_none());
    assert_eq!(write(&device, 0, vec![1; 512]).await, Err(DeviceError::Gone));
}

/// Guards against a node of another cluster, and one that speaks nonsense: never connected, never a panic.
#[tokio::test]
async fn refuses_strangers() {
    let stranger = TestNode::start(DiskId(0)).await;
    let client = |cluster, address| {
        crate::client::NodeClient::new(cluster, "gateway", NodeId(0), address, Arc::default())
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nonsense = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(&[0xff; 4096]).await;
        }
    });
    for client in [client(ClusterId(6), stranger.address), client(CLUSTER, nonsense)] {
        for _ in 0..5 {
            let (sender, mut receiver) = mpsc::unbounded_channel();
            let body = lunette_proto::node::RequestBody::Space;
            client.call(Request { disk: DiskId(0), epoch: Epoch(1), body }, 1, Arc::new(RawAnswers(sender)));
            assert_eq!(receiver.recv().await, Some(Err(Failure::Disconnected)));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Guards the difference between a disk that is slow, which is waited for, and a node that is gone, which is not.
#[tokio::test]
async fn silence_is_not_slowness() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (silent, mut is_silent) = mpsc::unbounded_channel();
    let node = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut decoder = Decoder::new();
        let mut out = Outgoing::new();
        let mut answered = false;
        loop {
            while out.has_remaining() {
                assert_ne!(stream.write_buf(&mut out).await.unwrap(), 0);
            }
            match decoder.next_frame().unwrap() {
                Some(Frame::Hello(hello)) => out.hello_ack(&hello.answer(CLUSTER, "test")).unwrap(),
                Some(Frame::Request { id, .. }) if !answered => {
                    // Longer than any silence would be borne.
                    for _ in 0..8 {
                        tokio::time::sleep(ALIVE).await;
                        out.alive().unwrap();
                        stream.write_all_buf(&mut out).await.unwrap();
                    }
                    out.reply(id, &Ok(ReplyBody::Done)).unwrap();
                    answered = true;
                }
                Some(Frame::Request { .. }) => {
                    silent.send(()).unwrap();
                    // Not a word more, until the other side has had enough.
                    while stream.read_buf(decoder.buffer()).await.is_ok_and(|read| read > 0) {}
                    return;
                }
                Some(frame) => panic!("not for a node: {frame:?}"),
                None => assert_ne!(stream.read_buf(decoder.buffer()).await.unwrap(), 0),
            }
        }
    });
    let client = crate::client::NodeClient::new(CLUSTER, "gateway", NodeId(0), address, Arc::default());
    let ask = async || {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let body = RequestBody::Space;
        client.call(Request { disk: DiskId(0), epoch: Epoch(1), body }, 1, Arc::new(RawAnswers(sender)));
        receiver.recv().await.unwrap()
    };
    // Until it is connected.
    let slow = loop {
        match ask().await {
            Err(Failure::Disconnected) => tokio::time::sleep(Duration::from_millis(5)).await,
            reply => break reply,
        }
    };
    assert_eq!(slow, Ok(ReplyBody::Done));
    assert_eq!(ask().await, Err(Failure::Disconnected));
    assert_eq!(is_silent.recv().await, Some(()), "it was asked, and given up");
    node.await.unwrap();
}

struct RawAnswers(mpsc::UnboundedSender<lunette_proto::node::Reply>);

impl Replies for RawAnswers {
    fn reply(&self, _: u64, reply: lunette_proto::node::Reply) {
        self.0.send(reply).unwrap();
    }
}

/// A node in this process: answers before the call returns.
struct Inline(Mutex<ModelDisk>);

impl Service for Inline {
    fn call(&self, request: Request, tag: u64, to: Arc<dyn Replies>) {
        let reply = call(&self.0, &request);
        to.reply(tag, reply);
    }
}

struct InlineFabric(Mutex<BTreeMap<NodeId, Arc<Inline>>>);

impl InlineFabric {
    /// As many nodes, each with one disk.
    fn new(nodes: u32) -> Arc<Self> {
        let node = |id| (NodeId(id), Arc::new(Inline(Mutex::new(ModelDisk::new(DiskId(id))))));
        Arc::new(Self(Mutex::new((0..nodes).map(node).collect())))
    }

    /// The node's process ends, and what it had in memory only is gone; another one serves its disk.
    fn restart(&self, node: NodeId) {
        let mut nodes = self.0.lock();
        let disk = DiskId(node.0);
        let mut model = std::mem::replace(&mut *nodes[&node].0.lock(), ModelDisk::new(disk));
        model.lose_memory();
        nodes.insert(node, Arc::new(Inline(Mutex::new(model))));
    }
}

/// Addresses that nobody asks.
fn nowhere(nodes: u16) -> Vec<SocketAddr> {
    (1..=nodes).map(|port| SocketAddr::from(([127, 0, 0, 1], port))).collect()
}

impl Fabric for InlineFabric {
    fn service(&self, node: &map::Node) -> Arc<dyn Service> {
        self.0.lock()[&node.id].clone()
    }

    fn is_local(&self, _: NodeId) -> bool {
        true
    }

    fn retain(&self, _: &BTreeMap<NodeId, map::Node>) {}

    fn watch(&self, _: Weak<dyn Links>) {}
}

/// Guards against recursion and deadlock where answers come from within the call, from many
/// threads at once, with thousands of requests behind one command.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_one_process() {
    let (volumes, _events) = Volumes::new(CLUSTER, ME, InlineFabric::new(2));
    volumes.apply_map(&map(&nowhere(2), 1, Some((ME, 1)), VolumeState::Active));
    let device = volumes.get(VOLUME).unwrap();
    assert!(run(&device, Command::Zero { offset: 0, len: 64 * MIB }).await.is_ok());
    let tasks = (0..4u64).map(|task| {
        let device = Arc::clone(&device);
        tokio::spawn(async move {
            for round in 0..200u64 {
                // Neighbours share 4 KiB blocks.
                let offset = (round % 10) * 2048 + task * 512;
                assert!(write(&device, offset, vec![task as u8 + 1; 512]).await.is_ok());
                assert_eq!(read(&device, offset, 512).await, vec![task as u8 + 1; 512]);
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
}

/// Guards invariant 14 on a write-back volume: a node in the same process, or one at another address, that is not
/// the one of before may have lost what was acked, and the other members have it still.
#[tokio::test]
async fn another_way_to_a_disk_is_a_lost_one() {
    let fabric = InlineFabric::new(2);
    let (volumes, _events) = Volumes::new(CLUSTER, ME, fabric.clone());
    let told = |epoch| {
        let mut map = map(&nowhere(2), epoch, Some((ME, 1)), VolumeState::Active);
        map.volumes.get_mut(&VOLUME).unwrap().write_back = true;
        volumes.apply_map(&map);
    };
    told(1);
    let device = volumes.get(VOLUME).unwrap();
    for node in 0..2 {
        assert!(write(&device, 0, vec![node as u8 + 1; 64 << 10]).await.is_ok());
        fabric.restart(NodeId(node));
        told(2 + u64::from(node));
        assert_eq!(read(&device, 0, 64 << 10).await, vec![node as u8 + 1; 64 << 10]);
    }
}

/// Guards the way from a gateway to its owners: the cache that is told to be off is off, under a generation that the
/// caller learns, until the map turns it on anew; and who does not own the volume says so.
#[tokio::test]
async fn a_cache_is_turned_off() {
    let fabric = InlineFabric::new(2);
    let (volumes, _events) = Volumes::new(CLUSTER, ME, fabric.clone());
    let told = |epoch, write_back| {
        let mut map = map(&nowhere(2), epoch, Some((ME, 7)), VolumeState::Active);
        map.volumes.get_mut(&VOLUME).unwrap().write_back = write_back;
        volumes.apply_map(&map);
    };
    let write_through = async |volume| {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        volumes.write_through(volume, move |done| sender.send(done).unwrap());
        tokio::time::timeout(Duration::from_secs(20), receiver.recv()).await.expect("in time").unwrap()
    };
    assert_eq!(write_through(VOLUME).await, Err(DeviceError::Gone));
    told(1, true);
    let device = volumes.get(VOLUME).unwrap();
    assert!(write(&device, 0, vec![1; 64 << 10]).await.is_ok());
    assert_eq!(write_through(VOLUME).await, Ok(Generation(7)));
    told(2, false);
    assert_eq!(write_through(VOLUME).await, Ok(Generation(7)));
    told(3, true);
    assert!(write(&device, 0, vec![2; 64 << 10]).await.is_ok());
    assert_eq!(write_through(VOLUME).await, Ok(Generation(7)));
    volumes.apply_map(&map(&nowhere(2), 4, None, VolumeState::Active));
    assert_eq!(write_through(VOLUME).await, Err(DeviceError::NotOwner));
}

/// Guards invariant 1: sequence numbers begin anew with each owner, so a generation is owned once, whatever the
/// map says. A second owner of it would write versions that the disks have already, and keep.
#[tokio::test]
async fn a_generation_is_owned_once() {
    let (volumes, _events) = Volumes::new(CLUSTER, ME, InlineFabric::new(2));
    let told = |epoch, owner| volumes.apply_map(&map(&nowhere(2), epoch, owner, VolumeState::Active));
    told(1, Some((ME, 1)));
    let device = volumes.get(VOLUME).unwrap();
    assert!(write(&device, 0, vec![1; 4096]).await.is_ok());
    told(2, None);
    assert_eq!(write(&device, 0, vec![2; 4096]).await, Err(DeviceError::NotOwner));
    told(3, Some((ME, 1)));
    assert_eq!(write(&device, 0, vec![3; 4096]).await, Err(DeviceError::NotOwner));
    told(4, Some((ME, 2)));
    assert!(write(&device, 4096, vec![4; 4096]).await.is_ok());
    assert_eq!(read(&device, 0, 4096).await, vec![1; 4096]);
}

/// Guards the way of an order to hand over: to the owner and back, with the generation; and what is held is answered with
/// the map that names another.
#[tokio::test]
async fn a_volume_is_handed_over() {
    let (volumes, _events) = Volumes::new(CLUSTER, ME, InlineFabric::new(2));
    let told = |epoch, owner| volumes.apply_map(&map(&nowhere(2), epoch, owner, VolumeState::Active));
    let hand_over = async || {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        volumes.hand_over(VOLUME, move |done| sender.send(done).unwrap());
        tokio::time::timeout(Duration::from_secs(20), receiver.recv()).await.expect("in time").unwrap()
    };
    assert_eq!(hand_over().await, Err(DeviceError::Gone));
    told(1, Some((ME, 7)));
    let device = volumes.get(VOLUME).unwrap();
    assert!(write(&device, 0, vec![1; 4096]).await.is_ok());
    assert_eq!(hand_over().await, Ok(Generation(7)));
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let to: Arc<dyn Completions> = Arc::new(Answers(sender));
    device.submit(Command::Read { offset: 0, len: 4096 }, 3, &to);
    told(2, Some((GatewayId(2), 8)));
    assert_eq!(receiver.recv().await, Some((3, Err(DeviceError::NotOwner))));
    assert_eq!(hand_over().await, Err(DeviceError::NotOwner));
}

/// Guards commands that come just before the map that makes this gateway the owner: they are to be sent again then, for what was
/// asked before they were let through may have another answer, and have changed nothing; without such a map they are refused
/// soon, and at once by who was the owner before, or if they are too many.
#[tokio::test]
async fn commands_may_come_before_the_map() {
    let (volumes, _events) = Volumes::new(CLUSTER, ME, InlineFabric::new(2));
    let told = |epoch, owner| volumes.apply_map(&map(&nowhere(2), epoch, owner, VolumeState::Active));
    told(1, Some((GatewayId(2), 1)));
    let device = volumes.get(VOLUME).unwrap();
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let to: Arc<dyn Completions> = Arc::new(Answers(sender));
    let write = |byte: u8| Command::Write { offset: 0, data: vec![byte; 4096].into(), fua: false };
    for tag in 0..200 {
        device.submit(write(tag as u8), tag, &to);
    }
    for tag in 128..200 {
        assert_eq!(receiver.recv().await, Some((tag, Err(DeviceError::NotOwner))), "too many");
    }
    assert!(receiver.try_recv().is_err());
    told(2, Some((ME, 2)));
    device.submit(Command::Read { offset: 0, len: 4096 }, 200, &to);
    for tag in 0..128 {
        assert_eq!(receiver.recv().await, Some((tag, Err(DeviceError::Busy))));
    }
    assert_eq!(receiver.recv().await.unwrap().1.unwrap().concat(), vec![0; 4096]);
    // Whoever comes to the one before has not heard of the successor.
    told(3, Some((GatewayId(2), 3)));
    device.submit(write(1), 1, &to);
    assert_eq!(receiver.try_recv(), Ok((1, Err(DeviceError::NotOwner))));
    told(4, Some((GatewayId(3), 4)));
    device.submit(write(2), 2, &to);
    assert!(receiver.try_recv().is_err());
    assert_eq!(receiver.recv().await, Some((2, Err(DeviceError::NotOwner))));
    device.submit(write(3), 3, &to);
    let mut last = map(&nowhere(2), 5, None, VolumeState::Active);
    last.volumes.clear();
    volumes.apply_map(&last);
    assert_eq!(receiver.try_recv(), Ok((3, Err(DeviceError::Gone))));
    told(6, Some((GatewayId(2), 9)));
    let device = volumes.get(VOLUME).unwrap();
    device.submit(write(4), 4, &to);
    drop(volumes);
    assert_eq!(receiver.recv().await, Some((4, Err(DeviceError::NotOwner))));
    device.submit(write(5), 5, &to);
    assert_eq!(receiver.recv().await, Some((5, Err(DeviceError::NotOwner))));
}

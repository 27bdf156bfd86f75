//! A gateway without sockets: connections, their registry and devices, driven step by step.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::{Bytes, BytesMut};
use lunette_proto::ids::{ClusterId, Epoch, Generation, PoolId, TargetId, VolumeId};
use lunette_proto::map::{
    Acl, Chap, ClusterMap, Lun, NexusId, Sealed, Target, UnitState, Volume, VolumeState,
};
use lunette_target_iscsi::exports::{Change, Devices, Exports, KeepError};
use lunette_target_iscsi::scsi::Units;
use lunette_target_iscsi::session::{
    Action, Connection, ConnectionId, Context, Endpoint, Event, Guard, Inherited, Random, Registry, Secrets,
    Ticket, Verdict,
};
use lunette_volume::device::{BlockDevice, Command, Completions, DeviceError, Outcome, Readiness};
use parking_lot::Mutex;
use zeroize::Zeroizing;

use crate::device::Model;
use crate::initiator::INITIATOR;

pub(crate) const IQN: &str = "iqn.2026-11.io.lunette:disk";
pub(crate) const VOLUME_BYTES: usize = 16 << 20;

enum Post {
    Completed(u64, Outcome),
    Event(Event),
}

#[derive(Default)]
struct Inbox(Mutex<Vec<Post>>);

impl Completions for Inbox {
    fn complete(&self, tag: u64, outcome: Outcome) {
        self.0.lock().push(Post::Completed(tag, outcome));
    }
}

struct Quiesced(Arc<Inbox>, u64);

impl Drop for Quiesced {
    fn drop(&mut self) {
        self.0.0.lock().push(Post::Event(Event::PeersQuiesced { token: self.1 }));
    }
}

/// Secrets are sealed by nothing. Counts how many were opened.
#[derive(Default)]
struct Plain(AtomicUsize);

impl Secrets for Plain {
    fn unseal(&self, sealed: &Sealed) -> Option<Zeroizing<Vec<u8>>> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Some(Zeroizing::new(sealed.0.clone()))
    }
}

/// The volumes as one gateway sees them.
pub(crate) struct Disks {
    pub(crate) models: BTreeMap<VolumeId, Arc<Model>>,
    pub(crate) keeper: Arc<Keeper>,
    /// Those that this gateway does not own.
    elsewhere: Arc<Mutex<BTreeSet<VolumeId>>>,
}

impl Disks {
    pub(crate) fn new(models: BTreeMap<VolumeId, Arc<Model>>, keeper: Arc<Keeper>) -> Self {
        Self { models, keeper, elsewhere: Arc::default() }
    }

    /// Follows a map as the gateway with that tag; a map without gateways is of the one that there is.
    fn follow(&self, map: &ClusterMap, tag: u16) {
        let owner = |volume: &Volume| map.gateways.get(&volume.owner?.gateway);
        let is_elsewhere =
            |volume: &&Volume| owner(volume).is_none_or(|gateway| gateway.portal_group_tag != tag);
        let elsewhere = map.volumes.values().filter(is_elsewhere).map(|volume| volume.id);
        *self.elsewhere.lock() = if map.gateways.is_empty() { BTreeSet::new() } else { elsewhere.collect() };
    }
}

/// A volume through one gateway.
struct Through {
    volume: VolumeId,
    model: Arc<Model>,
    elsewhere: Arc<Mutex<BTreeSet<VolumeId>>>,
}

impl BlockDevice for Through {
    fn submit(&self, command: Command, tag: u64, to: &Arc<dyn Completions>) {
        match self.readiness() {
            Readiness::NotOwner => to.complete(tag, Err(DeviceError::NotOwner)),
            _ => self.model.submit(command, tag, to),
        }
    }

    fn readiness(&self) -> Readiness {
        let is_elsewhere = self.elsewhere.lock().contains(&self.volume);
        if is_elsewhere { Readiness::NotOwner } else { self.model.readiness() }
    }
}

type Kept = Box<dyn FnOnce(Result<(), KeepError>) + Send>;

/// Keeps what units have kept, as the control plane does; can hold its answers back.
#[derive(Default)]
pub(crate) struct Keeper(Mutex<KeeperState>);

#[derive(Default)]
struct KeeperState {
    units: BTreeMap<VolumeId, Arc<UnitState>>,
    write_backs: BTreeMap<VolumeId, bool>,
    holding: bool,
    held: Vec<(VolumeId, Change, Kept)>,
    /// What the next questions are answered with; whether the change is made all the same.
    failures: Vec<(KeepError, bool)>,
}

impl Keeper {
    pub(crate) fn units(&self) -> BTreeMap<VolumeId, Arc<UnitState>> {
        self.0.lock().units.clone()
    }

    pub(crate) fn hold(&self) {
        self.0.lock().holding = true;
    }

    pub(crate) fn held(&self) -> usize {
        self.0.lock().held.len()
    }

    pub(crate) fn release(&self) {
        let held = {
            let mut state = self.0.lock();
            state.holding = false;
            std::mem::take(&mut state.held)
        };
        for (volume, change, done) in held {
            self.answer(volume, change, done);
        }
    }

    pub(crate) fn fail_next(&self, error: KeepError, happens: bool) {
        self.0.lock().failures.push((error, happens));
    }

    /// Makes the change that is held, without an answer.
    pub(crate) fn commit(&self) {
        let mut state = self.0.lock();
        let (volume, change) =
            state.held.first().map(|(volume, change, _)| (*volume, change.clone())).unwrap();
        state.make(volume, change);
    }

    /// Another gateway changes it.
    pub(crate) fn change(&self, volume: u64, change: impl FnOnce(&mut UnitState)) {
        let mut state = self.0.lock();
        let unit = Arc::make_mut(state.units.entry(VolumeId(volume)).or_default());
        change(unit);
        unit.revision += 1;
    }

    fn answer(&self, volume: VolumeId, change: Change, done: Kept) {
        let result = {
            let mut state = self.0.lock();
            let revision = state.units.get(&volume).map_or(0, |unit| unit.revision);
            let failure = (!state.failures.is_empty()).then(|| state.failures.remove(0));
            if matches!(&change, Change::State(unit) if unit.revision != revision + 1) {
                Err(KeepError::Conflict)
            } else {
                if failure.as_ref().is_none_or(|(_, happens)| *happens) {
                    state.make(volume, change);
                }
                failure.map_or(Ok(()), |(error, _)| Err(error))
            }
        };
        done(result);
    }
}

impl KeeperState {
    fn make(&mut self, volume: VolumeId, change: Change) {
        match change {
            Change::State(unit) => {
                self.units.insert(volume, unit);
            }
            Change::WriteBack(is_set) => {
                self.write_backs.insert(volume, is_set);
            }
        }
    }
}

impl Devices for Disks {
    fn device(&self, volume: VolumeId) -> Option<Arc<dyn BlockDevice>> {
        let model = Arc::clone(self.models.get(&volume)?);
        Some(Arc::new(Through { volume, model, elsewhere: Arc::clone(&self.elsewhere) }))
    }

    fn keep(&self, volume: VolumeId, change: Change, done: Kept) {
        {
            let mut state = self.keeper.0.lock();
            if state.holding {
                return state.held.push((volume, change, done));
            }
        }
        self.keeper.answer(volume, change, done);
    }
}

struct Peer {
    connection: Connection,
    inbox: Arc<Inbox>,
    to_target: BytesMut,
    to_initiator: BytesMut,
    closed: bool,
    /// The initiator reads nothing.
    deaf: bool,
}

pub(crate) struct Bed {
    pub(crate) context: Arc<Context>,
    pub(crate) map: ClusterMap,
    pub(crate) disks: Arc<Disks>,
    units: Units,
    pub(crate) now: Instant,
    /// Makes the source of random numbers of a connection.
    pub(crate) random: fn() -> Random,
    secrets: Arc<Plain>,
    registry: Registry,
    peers: BTreeMap<ConnectionId, Peer>,
    /// What connections that are gone had sent.
    last_words: BTreeMap<ConnectionId, BytesMut>,
    next: u64,
}

/// One target with the volumes 1 and 2 at LUN 0 and 1, open on loopback.
pub(crate) fn map() -> ClusterMap {
    let volume = |id: u64| Volume {
        id: VolumeId(id),
        name: format!("disk{id}"),
        pool: PoolId(1),
        size_bytes: VOLUME_BYTES as u64,
        stripe: None,
        block_bytes: 512,
        write_back: false,
        generation: Generation(1),
        owner: None,
        state: VolumeState::Active,
    };
    let lun = |id: u64| Lun { volume: VolumeId(id), read_only: false };
    let target = Target {
        id: TargetId(1),
        iqn: IQN.into(),
        luns: BTreeMap::from([(0, lun(1)), (1, lun(2))]),
        acls: Vec::new(),
        chap: None,
        draining: false,
    };
    ClusterMap {
        epoch: Epoch(1),
        cluster: ClusterId(7),
        volumes: [1, 2].map(|id| (VolumeId(id), volume(id))).into(),
        targets: BTreeMap::from([(target.id, target)]),
        ..ClusterMap::default()
    }
}

/// The nexus of the initiator's port with that ISID and the target.
pub(crate) fn nexus(isid: u8) -> NexusId {
    NexusId { initiator: INITIATOR.into(), isid: [0x80, 0, 0, 0, 0, isid], target: IQN.into(), tag: 1 }
}

impl Bed {
    pub(crate) fn new() -> Self {
        Self::with_map(map())
    }

    pub(crate) fn with_chap(chap: Chap) -> Self {
        let mut map = map();
        map.targets.get_mut(&TargetId(1)).unwrap().chap = Some(chap);
        Self::with_map(map)
    }

    pub(crate) fn with_acls(acls: Vec<Acl>) -> Self {
        let mut map = map();
        map.targets.get_mut(&TargetId(1)).unwrap().acls = acls;
        Self::with_map(map)
    }

    pub(crate) fn with_map(map: ClusterMap) -> Self {
        let models = map.volumes.keys().map(|id| (*id, Model::new(VOLUME_BYTES))).collect();
        let keeper = Keeper::default();
        keeper.0.lock().units.clone_from(&map.units);
        Self::gateway(map, 1, Disks::new(models, Arc::new(keeper)))
    }

    /// The gateway with that tag.
    pub(crate) fn gateway(map: ClusterMap, tag: u16, disks: Disks) -> Self {
        disks.follow(&map, tag);
        let disks = Arc::new(disks);
        let units = Units::new(Arc::clone(&disks) as _);
        let secrets = Arc::new(Plain::default());
        let context = Context {
            tag,
            portals: vec!["127.0.0.1:3260".parse().unwrap()],
            exports: ArcSwap::from_pointee(Exports::new(&map, tag, &units)),
            secrets: Arc::clone(&secrets) as _,
            guard: Guard::default(),
        };
        Self {
            context: Arc::new(context),
            map,
            disks,
            units,
            now: Instant::now(),
            random: counted,
            secrets,
            registry: Registry::new(100, 90),
            peers: BTreeMap::new(),
            last_words: BTreeMap::new(),
            next: 1,
        }
    }

    /// Secrets that have been opened.
    pub(crate) fn unsealed(&self) -> usize {
        self.secrets.0.load(Ordering::Relaxed)
    }

    pub(crate) fn disk(&self, volume: u64) -> Arc<Model> {
        Arc::clone(&self.disks.models[&VolumeId(volume)])
    }

    pub(crate) fn keeper(&self) -> &Keeper {
        &self.disks.keeper
    }

    /// A map comes with all that was kept.
    pub(crate) fn learn(&mut self) {
        let (units, write_backs) = (self.keeper().units(), self.keeper().0.lock().write_backs.clone());
        self.apply(|map| {
            map.units = units;
            for (volume, is_set) in write_backs {
                map.volumes.get_mut(&volume).unwrap().write_back = is_set;
            }
        });
    }

    pub(crate) fn connect(&mut self) -> ConnectionId {
        self.connect_from(IpAddr::V4(Ipv4Addr::LOCALHOST))
    }

    pub(crate) fn connect_from(&mut self, ip: IpAddr) -> ConnectionId {
        let local = SocketAddr::new(ip, 3260);
        self.connect_at(Endpoint { local, peer: SocketAddr::new(ip, 40_000), portal: local })
    }

    pub(crate) fn connect_at(&mut self, endpoint: Endpoint) -> ConnectionId {
        let id = ConnectionId(self.next);
        self.next += 1;
        let random = (self.random)();
        let peer = Peer {
            connection: Connection::new(Arc::clone(&self.context), endpoint, random, self.now),
            inbox: Arc::default(),
            to_target: BytesMut::new(),
            to_initiator: BytesMut::new(),
            closed: false,
            deaf: false,
        };
        self.peers.insert(id, peer);
        id
    }

    /// Hands bytes to the target and lets everything come to rest.
    pub(crate) fn feed(&mut self, id: ConnectionId, bytes: &[u8]) {
        if let Some(peer) = self.peers.get_mut(&id)
            && !peer.closed
        {
            peer.to_target.extend_from_slice(bytes);
            if peer.connection.wants_bytes() {
                peer.connection.handle_bytes(self.now, &mut peer.to_target);
            }
        }
        self.settle();
    }

    /// The same, as the socket would give it: in one allocation that the target may keep. Gives
    /// whether it keeps any of it.
    pub(crate) fn feed_bytes(&mut self, id: ConnectionId, mut bytes: BytesMut) -> bool {
        let capacity = bytes.capacity();
        let peer = self.peers.get_mut(&id).unwrap();
        peer.connection.handle_bytes(self.now, &mut bytes);
        self.settle();
        bytes.clear();
        !bytes.try_reclaim(capacity)
    }

    /// From now on the initiator reads nothing, or reads again.
    pub(crate) fn deafen(&mut self, id: ConnectionId, deaf: bool) {
        self.peers.get_mut(&id).unwrap().deaf = deaf;
        self.settle();
    }

    /// Bytes that were sent and that the target has not taken.
    pub(crate) fn untaken(&self, id: ConnectionId) -> usize {
        self.peers[&id].to_target.len()
    }

    /// What the target has sent.
    pub(crate) fn output(&mut self, id: ConnectionId) -> Option<&mut BytesMut> {
        match self.peers.get_mut(&id) {
            Some(peer) => Some(&mut peer.to_initiator),
            None => self.last_words.get_mut(&id),
        }
    }

    /// The initiator's side of the socket breaks.
    pub(crate) fn cut(&mut self, id: ConnectionId) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.closed = true;
            peer.connection.abandon();
        }
        self.settle();
    }

    pub(crate) fn is_closed(&self, id: ConnectionId) -> bool {
        self.peers.get(&id).is_none_or(|peer| peer.closed)
    }

    /// Whether the session is released.
    pub(crate) fn is_gone(&self, id: ConnectionId) -> bool {
        !self.peers.contains_key(&id)
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        self.now += time;
        for peer in self.peers.values_mut() {
            peer.connection.handle_timeout(self.now);
        }
        self.settle();
    }

    pub(crate) fn event(&mut self, id: ConnectionId, event: Event) {
        self.peers[&id].inbox.0.lock().push(Post::Event(event));
        self.settle();
    }

    pub(crate) fn apply(&mut self, change: impl FnOnce(&mut ClusterMap)) {
        change(&mut self.map);
        self.map.epoch.0 += 1;
        for changed in self.units.learn(&self.map) {
            for peer in self.peers.values() {
                let changed = Arc::clone(&changed);
                peer.inbox.0.lock().push(Post::Event(Event::Changed { changed, ticket: None }));
            }
        }
        let tag = self.context.tag;
        self.disks.follow(&self.map, tag);
        self.context.exports.store(Arc::new(Exports::new(&self.map, tag, &self.units)));
        for peer in self.peers.values() {
            peer.inbox.0.lock().push(Post::Event(Event::ExportsChanged));
        }
        self.settle();
    }

    pub(crate) fn sessions(&self) -> usize {
        self.registry.len()
    }

    /// Until nothing happens any more.
    pub(crate) fn settle(&mut self) {
        while self.turn() {}
    }

    fn turn(&mut self) -> bool {
        let mut moved = false;
        let ids: Vec<ConnectionId> = self.peers.keys().copied().collect();
        for id in ids {
            let mut actions = Vec::new();
            let Some(peer) = self.peers.get_mut(&id) else { continue };
            for post in std::mem::take(&mut *peer.inbox.0.lock()) {
                moved = true;
                match post {
                    Post::Completed(tag, outcome) => {
                        peer.connection.handle_completion(self.now, tag, outcome)
                    }
                    Post::Event(event) => peer.connection.handle_event(self.now, event),
                }
            }
            if !peer.to_target.is_empty() && peer.connection.wants_bytes() {
                let before = peer.to_target.len();
                peer.connection.handle_bytes(self.now, &mut peer.to_target);
                moved |= before != peer.to_target.len();
            }
            actions.extend(std::iter::from_fn(|| peer.connection.poll_action()));
            peer.connection.fill();
            while !peer.deaf
                && let Some(slice) = peer.connection.pop()
            {
                moved = true;
                if !peer.closed {
                    peer.to_initiator.extend_from_slice(&slice);
                }
                peer.connection.fill();
            }
            // What left may have made room for more.
            moved |= !peer.to_target.is_empty()
                && peer.connection.wants_bytes()
                && peer.connection.missing(&peer.to_target) == 0;
            if peer.connection.is_closed() && !peer.closed {
                moved = true;
                peer.closed = true;
                peer.connection.abandon();
                actions.extend(std::iter::from_fn(|| peer.connection.poll_action()));
            }
            let inbox = Arc::clone(&peer.inbox);
            let done = peer.closed && peer.connection.is_drained();
            moved |= !actions.is_empty();
            for action in actions {
                self.act(id, &inbox, action);
            }
            if done && self.peers[&id].connection.is_drained() && inbox.0.lock().is_empty() {
                let mut gone = self.peers.remove(&id);
                let left = gone.as_mut().and_then(|gone| gone.connection.bequeath());
                self.disconnect(id, left);
                self.last_words.extend(gone.map(|gone| (id, gone.to_initiator)));
                moved = true;
            }
        }
        moved
    }

    fn disconnect(&mut self, id: ConnectionId, left: Option<Inherited>) {
        if let Some(grant) = self.registry.release(id) {
            let session = left.filter(|_| grant.inherits);
            self.post(grant.to, Event::Granted { tsih: grant.tsih, session });
            if grant.superseded {
                self.post(grant.to, Event::Superseded);
            }
        }
    }

    fn post(&self, to: ConnectionId, event: Event) {
        if let Some(peer) = self.peers.get(&to) {
            peer.inbox.0.lock().push(Post::Event(event));
        }
    }

    fn act(&mut self, id: ConnectionId, inbox: &Arc<Inbox>, action: Action) {
        let completions: Arc<dyn Completions> = Arc::clone(inbox) as _;
        match action {
            Action::Submit { device, tag, command } => device.submit(command, tag, &completions),
            Action::Change { unit, tag, transition } => {
                let inbox = Arc::clone(inbox);
                let done = move |settled| inbox.0.lock().push(Post::Event(Event::Settled { tag, settled }));
                unit.change(transition, Box::new(done));
            }
            Action::Await { unit, tag } => {
                let inbox = Arc::clone(inbox);
                let done = move |settled| inbox.0.lock().push(Post::Event(Event::Settled { tag, settled }));
                unit.when_sanitized(Box::new(done));
            }
            Action::Tell { token, changed } => {
                let ticket = Ticket(Arc::new(Quiesced(Arc::clone(inbox), token)));
                for other in self.peers.keys().filter(|other| **other != id) {
                    let (changed, ticket) = (Arc::clone(&changed), Some(ticket.clone()));
                    self.post(*other, Event::Changed { changed, ticket });
                }
            }
            Action::Claim(claim) => match self.registry.claim(id, claim) {
                Verdict::Granted { tsih } => self.post(id, Event::Granted { tsih, session: None }),
                Verdict::Wait { holder } => self.post(holder, Event::Superseded),
                Verdict::Refused { status } => self.post(id, Event::Refused { status }),
            },
            Action::Established(_) => {}
            Action::Reset { token, volumes, attention } => {
                let ticket = Ticket(Arc::new(Quiesced(Arc::clone(inbox), token)));
                for other in self.peers.keys().filter(|other| **other != id) {
                    let volumes = Arc::clone(&volumes);
                    self.post(*other, Event::Reset { volumes, attention, ticket: ticket.clone() });
                }
            }
            Action::DropTarget { .. } => {
                for other in self.peers.keys().filter(|other| **other != id) {
                    self.post(*other, Event::Kick);
                }
            }
        }
    }
}

/// Numbers that differ from connection to connection.
fn counted() -> Random {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let mut seed = COUNT.fetch_add(1, Ordering::Relaxed) as u64;
    Box::new(move |bytes: &mut [u8]| {
        for byte in bytes {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *byte = (seed >> 56) as u8;
        }
    })
}

/// `len` bytes that differ from place to place.
pub(crate) fn pattern(len: usize, seed: u8) -> Bytes {
    (0..len).map(|at| (at as u8).wrapping_mul(31) ^ (at >> 8) as u8 ^ seed).collect::<Vec<u8>>().into()
}

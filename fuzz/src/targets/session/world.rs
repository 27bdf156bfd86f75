//! A gateway without sockets: connections, their registry, devices; what the server's tasks do, one step after the
//! other.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::{Bytes, BytesMut};
use lunette_proto::ids::{ClusterId, Epoch, Generation, PoolId, TargetId, VolumeId};
use lunette_proto::map::{ClusterMap, Lun, Sealed, Target, Volume, VolumeState};
use lunette_target_iscsi::exports::Exports;
use lunette_target_iscsi::scsi::{Ended, Units};
use lunette_target_iscsi::session::{
    Action, Connection, ConnectionId, Context, Endpoint, Event, Guard, Inherited, Registry, Secrets, Ticket,
    Verdict,
};
use lunette_volume::device::{Completions, Outcome};
use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::disk::{Disk, Disks};
use crate::scsi::Medium;

pub(super) const IQN: &str = "iqn.2026-11.io.lunette:disk";
/// Volumes: id, bytes, bytes of a block.
pub(super) const VOLUMES: [(u64, u64, u32); 3] = [(1, 8 << 10, 512), (2, 16 << 10, 4096), (3, 1 << 50, 512)];

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

enum Post {
    Completed(u64, Outcome),
    Event(Event),
}

#[derive(Default)]
pub(super) struct Inbox(Mutex<Vec<Post>>);

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

struct NoSecrets;

impl Secrets for NoSecrets {
    fn unseal(&self, _: &Sealed) -> Option<Zeroizing<Vec<u8>>> {
        None
    }
}

struct Peer {
    connection: Connection,
    inbox: Arc<Inbox>,
    completions: Arc<dyn Completions>,
    to_target: BytesMut,
    to_initiator: Vec<Bytes>,
    closed: bool,
    /// The initiator reads nothing.
    deaf: bool,
}

pub(super) struct World {
    context: Arc<Context>,
    map: ClusterMap,
    pub(super) disks: Arc<Disks>,
    units: Units,
    now: Instant,
    registry: Registry,
    peers: BTreeMap<ConnectionId, Peer>,
    /// What connections that are gone had sent.
    last_words: BTreeMap<ConnectionId, Vec<Bytes>>,
    next: u64,
}

fn map() -> ClusterMap {
    let volumes = VOLUMES.map(|(id, size_bytes, block_bytes)| Volume {
        id: VolumeId(id),
        name: format!("disk{id}"),
        pool: PoolId(1),
        size_bytes,
        stripe: None,
        block_bytes,
        write_back: false,
        generation: Generation(1),
        owner: None,
        state: VolumeState::Active,
    });
    let lun = |id: u64, read_only| Lun { volume: VolumeId(id), read_only };
    let luns = [(0, lun(1, false)), (1, lun(2, false)), (2, lun(1, true)), (3, lun(3, false))];
    let target = Target {
        id: TargetId(1),
        iqn: IQN.into(),
        luns: luns.into(),
        acls: Vec::new(),
        chap: None,
        draining: false,
    };
    ClusterMap {
        epoch: Epoch(1),
        cluster: ClusterId(7),
        volumes: volumes.map(|volume| (volume.id, volume)).into(),
        targets: BTreeMap::from([(target.id, target)]),
        ..ClusterMap::default()
    }
}

static MAP: LazyLock<ClusterMap> = LazyLock::new(map);

impl World {
    pub(super) fn new() -> Self {
        let map = MAP.clone();
        let disk = |(id, size, block): (u64, u64, u32)| {
            (VolumeId(id), Arc::new(Disk::new(Medium::new(size, block as usize))))
        };
        let disks = Arc::new(Disks::new(VOLUMES.map(disk).into()));
        let units = Units::new(Arc::clone(&disks) as _);
        let context = Context {
            tag: 1,
            portals: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 3260))],
            exports: ArcSwap::from_pointee(Exports::new(&map, 1, &units)),
            secrets: Arc::new(NoSecrets),
            guard: Guard::default(),
        };
        Self {
            context: Arc::new(context),
            map,
            disks,
            units,
            now: *START,
            registry: Registry::new(8, 7),
            peers: BTreeMap::new(),
            last_words: BTreeMap::new(),
            next: 1,
        }
    }

    pub(super) fn disk(&self, volume: u64) -> &Arc<Disk> {
        &self.disks.disks[&VolumeId(volume)]
    }

    pub(super) fn connect(&mut self) -> ConnectionId {
        let id = ConnectionId(self.next);
        self.next += 1;
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 3260));
        let endpoint =
            Endpoint { local, peer: SocketAddr::from((Ipv4Addr::LOCALHOST, 40_000)), portal: local };
        let random = Box::new(|bytes: &mut [u8]| bytes.fill(7));
        let inbox: Arc<Inbox> = Arc::default();
        let peer = Peer {
            connection: Connection::new(Arc::clone(&self.context), endpoint, random, self.now),
            completions: Arc::clone(&inbox) as _,
            inbox,
            to_target: BytesMut::new(),
            to_initiator: Vec::new(),
            closed: false,
            deaf: false,
        };
        self.peers.insert(id, peer);
        id
    }

    /// Hands bytes to the target, in pieces of `step`, and lets everything come to rest.
    pub(super) fn feed(&mut self, id: ConnectionId, bytes: &[u8], step: usize) {
        for part in bytes.chunks(if step == 0 { bytes.len().max(1) } else { step }) {
            let Some(peer) = self.peers.get_mut(&id) else { break };
            if peer.closed {
                break;
            }
            peer.to_target.extend_from_slice(part);
            if peer.connection.wants_bytes() {
                peer.connection.handle_bytes(self.now, &mut peer.to_target);
            }
        }
        self.settle();
    }

    /// What the target has sent since.
    pub(super) fn output(&mut self, id: ConnectionId) -> Vec<Bytes> {
        match self.peers.get_mut(&id) {
            Some(peer) => std::mem::take(&mut peer.to_initiator),
            None => self.last_words.remove(&id).unwrap_or_default(),
        }
    }

    pub(super) fn deafen(&mut self, id: ConnectionId, deaf: bool) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.deaf = deaf;
        }
        self.settle();
    }

    /// Whether the initiator reads what is sent, and the target what is sent to it.
    pub(super) fn flows(&self, id: ConnectionId) -> bool {
        self.peers.get(&id).is_some_and(|peer| !peer.deaf && !peer.closed && peer.to_target.is_empty())
    }

    /// The initiator's side of the socket breaks.
    pub(super) fn cut(&mut self, id: ConnectionId) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.closed = true;
            peer.connection.abandon();
        }
        self.settle();
    }

    pub(super) fn is_closed(&self, id: ConnectionId) -> bool {
        self.peers.get(&id).is_none_or(|peer| peer.closed)
    }

    /// Whether it is known no more: closed, and its session released.
    pub(super) fn is_gone(&self, id: ConnectionId) -> bool {
        !self.peers.contains_key(&id)
    }

    pub(super) fn sessions(&self) -> usize {
        self.registry.len()
    }

    /// Whether a device holds a command of this connection, on `volume` or on any.
    pub(super) fn is_at_device(&self, id: ConnectionId, volume: Option<u64>) -> bool {
        let Some(peer) = self.peers.get(&id) else { return false };
        let meant = self.disks.disks.iter().filter(|(of, _)| volume.is_none_or(|volume| of.0 == volume));
        meant.into_iter().any(|(_, disk)| disk.holds(Some(&peer.completions)))
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now += time;
        for peer in self.peers.values_mut() {
            peer.connection.handle_timeout(self.now);
        }
        self.settle();
    }

    pub(super) fn event(&mut self, id: ConnectionId, event: Event) {
        self.post(id, event);
        self.settle();
    }

    /// A new map comes: with all that was kept, and `change`.
    pub(super) fn apply(&mut self, change: impl FnOnce(&mut ClusterMap)) {
        self.map.units = self.disks.units();
        change(&mut self.map);
        self.map.epoch.0 += 1;
        for changed in self.units.learn(&self.map) {
            for peer in self.peers.values() {
                let changed = Arc::clone(&changed);
                peer.inbox.0.lock().push(Post::Event(Event::Changed { changed, ticket: None }));
            }
        }
        self.context.exports.store(Arc::new(Exports::new(&self.map, 1, &self.units)));
        for peer in self.peers.values() {
            peer.inbox.0.lock().push(Post::Event(Event::ExportsChanged));
        }
        self.settle();
    }

    /// Ends whatever sanitizes a unit.
    pub(super) fn end_sanitize(&mut self, has_failed: bool) {
        for (id, ..) in VOLUMES {
            let unit = self.units.unit(VolumeId(id), &self.map);
            if let Some((revision, _)) = unit.sanitize_operation() {
                let told = Arc::clone(&unit);
                let done = Box::new(move |_| told.sanitize_ended());
                unit.change(Box::new(Ended { revision, has_failed }), done);
            }
        }
        self.settle();
    }

    /// Until nothing happens any more.
    pub(super) fn settle(&mut self) {
        for _ in 0..10_000 {
            if !self.turn() {
                return;
            }
        }
        panic!("it does not come to rest");
    }

    fn turn(&mut self) -> bool {
        let mut moved = false;
        let ids: Vec<ConnectionId> = self.peers.keys().copied().collect();
        for id in ids {
            let Some(peer) = self.peers.get_mut(&id) else { continue };
            let posts = std::mem::take(&mut *peer.inbox.0.lock());
            for post in posts {
                moved = true;
                match post {
                    Post::Completed(tag, outcome) => {
                        peer.connection.handle_completion(self.now, tag, outcome)
                    }
                    Post::Event(event) => peer.connection.handle_event(self.now, event),
                }
            }
            if !peer.closed && !peer.to_target.is_empty() && peer.connection.wants_bytes() {
                let before = peer.to_target.len();
                peer.connection.handle_bytes(self.now, &mut peer.to_target);
                moved |= before != peer.to_target.len();
            }
            peer.connection.fill();
            while !peer.deaf
                && let Some(slice) = peer.connection.pop()
            {
                moved = true;
                if !peer.closed {
                    peer.to_initiator.push(slice);
                }
                peer.connection.fill();
            }
            if peer.connection.is_closed() && !peer.closed {
                moved = true;
                peer.closed = true;
                peer.connection.abandon();
            }
            let actions: Vec<Action> = std::iter::from_fn(|| peer.connection.poll_action()).collect();
            let inbox = Arc::clone(&peer.inbox);
            let done = peer.closed && peer.connection.is_drained();
            moved |= !actions.is_empty();
            for action in actions {
                self.act(id, &inbox, action);
            }
            if done && self.peers[&id].connection.is_drained() && inbox.0.lock().is_empty() {
                let mut gone = self.peers.remove(&id).expect("it was just there");
                let left = gone.connection.bequeath();
                self.disconnect(id, left);
                self.last_words.insert(id, gone.to_initiator);
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
        match action {
            Action::Submit { device, tag, command } => {
                device.submit(command, tag, &self.peers[&id].completions);
            }
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

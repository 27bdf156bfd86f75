//! Every row of the module's table; and, whatever happens in which order, that nobody takes from the living and that
//! everything is owned in the end.

use std::sync::Arc;

use lunette_proto::ids::{ClusterId, DiskId, NodeId};
use lunette_proto::map::{FailureDomain, Redundancy, Table};
use proptest::prelude::*;

use super::*;
use crate::api::cluster::{GatewayReport, NodeReport};
use crate::health::StreamId;
use crate::state::{Command, NewDisk, State};

const NODES: u32 = 4;
const STEP: Duration = Duration::from_millis(50);

/// Made-up nodes and gateways that report every 50 ms, and a leader that looks as often.
struct Bed {
    state: State,
    registry: Registry,
    planner: Planner,
    now: Instant,
    nodes: BTreeMap<u32, StreamId>,
    /// Streams, and whether they leave.
    gateways: BTreeMap<u32, (StreamId, bool)>,
    /// When gateways were there last: what the leader should believe, and never less.
    alive: BTreeMap<u32, Instant>,
    silent: BTreeSet<u32>,
    /// What was given away and ordered.
    given: Vec<NewOwner>,
    ordered: Vec<HandOver>,
    obeys: bool,
}

impl Bed {
    fn new(gateways: u32) -> Self {
        let now = Instant::now();
        let mut bed = Self {
            state: State::default(),
            registry: Registry::default(),
            planner: Planner::new(now),
            now,
            nodes: BTreeMap::new(),
            gateways: BTreeMap::new(),
            alive: BTreeMap::new(),
            silent: BTreeSet::new(),
            given: Vec::new(),
            ordered: Vec::new(),
            obeys: true,
        };
        bed.run(&Command::Found { cluster: ClusterId(1) });
        for node in 1..=NODES {
            let uuid = lunette_proto::ids::DiskUuid(node.into());
            bed.run(&Command::RegisterNode {
                name: format!("node{node}"),
                address: "127.0.0.1:7500".parse().expect("an address"),
                host: String::new(),
                rack: String::new(),
                zone: String::new(),
                disks: vec![NewDisk { uuid, label: "d".into(), capacity_bytes: 1 << 30, weight: 0 }],
            });
        }
        bed.run(&Command::CreatePool {
            name: "default".into(),
            redundancy: Redundancy::replicated(3),
            failure_domain: FailureDomain::Host,
            table: Arc::new(Table::new(1, 3, [1, 2, 3].map(DiskId).repeat(2))),
        });
        for gateway in 1..=gateways {
            bed.run(&Command::RegisterGateway { name: format!("gw{gateway}"), portals: vec![] });
        }
        (1..=NODES).for_each(|node| bed.node_comes(node));
        bed
    }

    fn run(&mut self, command: &Command) {
        self.state.apply(command).expect("right");
    }

    fn create(&mut self) {
        self.run(&Command::CreateVolume {
            name: format!("v{}", self.state.map().epoch.0),
            pool: "default".into(),
            size_bytes: 4096,
            stripe: None,
            block_bytes: 512,
            write_back: false,
            export: false,
        });
    }

    fn node_comes(&mut self, node: u32) {
        self.nodes.insert(node, self.registry.open());
        self.report();
    }

    fn node_goes(&mut self, node: u32) {
        if let Some(stream) = self.nodes.remove(&node) {
            self.registry.close(stream, self.now);
        }
    }

    fn comes(&mut self, gateway: u32) {
        self.silent.remove(&gateway);
        self.gateways.insert(gateway, (self.registry.open(), false));
        self.report();
    }

    fn goes(&mut self, gateway: u32) {
        if let Some((stream, _)) = self.gateways.remove(&gateway) {
            self.registry.close(stream, self.now);
        }
    }

    fn report(&mut self) {
        for (node, stream) in &self.nodes {
            let report = NodeReport { node: *node, disks: vec![] };
            self.registry.node_report(*stream, NodeId(*node), report, self.now).expect("the newest");
        }
        for (gateway, (stream, leaving)) in &self.gateways {
            if self.silent.contains(gateway) {
                continue;
            }
            self.alive.insert(*gateway, self.now);
            let report = GatewayReport { gateway: *gateway, leaving: *leaving, ..GatewayReport::default() };
            self.registry.gateway_report(*stream, GatewayId(*gateway), report, self.now).expect("the newest");
        }
    }

    /// Another member leads, which has heard nobody yet.
    fn elect(&mut self) {
        self.registry = Registry::default();
        self.planner = Planner::new(self.now);
        for stream in self.nodes.values_mut() {
            *stream = self.registry.open();
        }
        for (stream, _) in self.gateways.values_mut() {
            *stream = self.registry.open();
        }
    }

    fn is_up(&self, gateway: u32) -> bool {
        self.gateways.contains_key(&gateway) && !self.silent.contains(&gateway)
    }

    /// The leader looks, and what it decides is done.
    fn look(&mut self) {
        let look = self.planner.look(self.state.map(), &self.registry, self.now);
        assert!(
            look.next > self.now && look.next <= self.now + LOOK_INTERVAL,
            "it looks again, and does not spin"
        );
        for new in &look.owners {
            let volume = &self.state.map().volumes[&new.volume];
            assert_eq!(volume.generation, new.seen);
            assert!(self.registry.is_up(Member::Gateway(new.gateway), self.now), "{new:?}: it is not up");
            if let Some(owner) = volume.owner {
                let id = owner.gateway.0;
                let last = self.alive.get(&id).copied();
                let gone = last.is_none_or(|last| self.now >= last + ENDED_MAX);
                let silent = last.is_none_or(|last| self.now >= last + SILENCE_MAX);
                assert!(!self.is_up(id) && gone, "{new:?} takes from the living");
                assert!(
                    silent || !self.gateways.contains_key(&id),
                    "{new:?} takes from one that may be stuck"
                );
            }
        }
        if !look.owners.is_empty() {
            self.given.extend(&look.owners);
            self.run(&Command::AssignOwners { owners: Arc::new(look.owners) });
        }
        if let Some(order) = look.hand_over {
            let volume = self.state.map().volumes[&order.volume].clone();
            assert_eq!(volume.owner.map(|owner| owner.gateway), Some(order.from));
            assert_ne!(order.from, order.to);
            self.ordered.push(order);
            if self.obeys {
                let new = NewOwner { volume: order.volume, seen: volume.generation, gateway: order.to };
                self.run(&Command::AssignOwners { owners: Arc::new(vec![new]) });
            }
        }
    }

    /// Time passes, and all that are there speak.
    fn pass(&mut self, ms: u64) {
        let end = self.now + Duration::from_millis(ms);
        while self.now < end {
            self.now += STEP.min(end - self.now);
            self.report();
            self.look();
        }
    }

    /// How many volumes each gateway has, and nobody.
    fn owners(&self) -> BTreeMap<u32, usize> {
        let mut owners = BTreeMap::new();
        for volume in self.state.map().volumes.values() {
            *owners.entry(volume.owner.map_or(0, |owner| owner.gateway.0)).or_default() += 1;
        }
        owners
    }
}

/// Guards new volumes: owned at once if a gateway is up, evenly, and as soon as one is if none was.
#[test]
fn new_volumes() {
    let mut bed = Bed::new(3);
    (0..3).for_each(|_| bed.create());
    bed.pass(10_000);
    assert_eq!(bed.owners(), [(0, 3)].into(), "nobody is up");
    bed.comes(2);
    bed.look();
    bed.pass(450);
    assert_eq!(bed.owners(), [(0, 3)].into(), "the others may be about to come");
    bed.pass(50);
    assert_eq!(bed.owners(), [(2, 3)].into());
    bed.create();
    bed.look();
    assert_eq!(bed.owners(), [(2, 4)].into(), "they have been waited for");
    bed.comes(1);
    bed.comes(3);
    (0..3).for_each(|_| bed.create());
    bed.look();
    assert_eq!(bed.owners(), [(1, 2), (2, 4), (3, 1)].into());
    // Also by a leader that hears no node: they are nobody's.
    (1..=NODES).for_each(|node| bed.node_goes(node));
    bed.create();
    bed.look();
    assert_eq!(bed.owners(), [(1, 2), (2, 4), (3, 2)].into());
}

/// Guards gateways that start side by side: the first does not get everything, and none is waited for that has come.
#[test]
fn side_by_side() {
    let mut bed = Bed::new(2);
    (0..4).for_each(|_| bed.create());
    bed.comes(1);
    bed.pass(100);
    bed.comes(2);
    bed.look();
    assert_eq!(bed.owners(), [(1, 2), (2, 2)].into());
}

/// Guards the three seconds of a takeover: what a killed gateway owned is given away 300 ms after its stream has ended; and a
/// stream that is made again within that time, or a gateway that is merely silent for a while, costs nobody anything.
#[test]
fn owners_that_are_gone() {
    let mut bed = Bed::new(2);
    (1..=2).for_each(|gateway| bed.comes(gateway));
    (0..4).for_each(|_| bed.create());
    bed.pass(6000);
    bed.given.clear();
    bed.goes(1);
    bed.pass(250);
    bed.comes(1);
    bed.pass(1000);
    assert_eq!(bed.given, []);
    bed.goes(1);
    bed.pass(250);
    assert_eq!(bed.given, []);
    bed.pass(50);
    assert_eq!((bed.given.len(), bed.owners()), (2, [(2, 4)].into()));

    bed.comes(1);
    bed.silent.insert(2);
    bed.pass(3000);
    assert_eq!(bed.owners(), [(2, 4)].into(), "it may be stuck for a moment");
    bed.pass(100);
    assert_eq!(bed.owners(), [(1, 4)].into());
    // It takes nothing back when it speaks again.
    bed.silent.clear();
    bed.pass(5000);
    assert_eq!(bed.owners(), [(1, 4)].into());
}

/// Guards against giving up the one gateway there is, and against a leader that is cut off itself, has slept, or is new.
#[test]
fn nobody_is_given_up_without_need() {
    let mut bed = Bed::new(2);
    bed.comes(1);
    (0..2).for_each(|_| bed.create());
    bed.pass(6000);
    bed.goes(1);
    bed.pass(60_000);
    assert_eq!(bed.owners(), [(1, 2)].into(), "there is no other");
    bed.comes(1);
    bed.comes(2);
    bed.pass(1000);

    // It hears one node of four, and not the owner.
    (1..NODES).for_each(|node| bed.node_goes(node));
    bed.goes(1);
    bed.pass(10_000);
    assert_eq!(bed.owners(), [(1, 2)].into());
    bed.comes(1);
    (1..NODES).for_each(|node| bed.node_comes(node));
    bed.pass(1000);

    // It wakes up after a minute, and all that it has heard is old.
    bed.now += Duration::from_secs(60);
    bed.silent.insert(1);
    bed.report();
    bed.pass(2900);
    assert_eq!(bed.owners(), [(1, 2)].into());
    bed.silent.clear();
    bed.pass(500);

    // A new one waits for those that look for it.
    bed.silent.insert(1);
    bed.elect();
    bed.pass(4950);
    assert_eq!(bed.owners(), [(1, 2)].into());
    bed.pass(100);
    assert_eq!(bed.owners(), [(2, 2)].into());
}

/// Guards a gateway that leaves: it is given nothing more, and keeps what it has until it is gone.
#[test]
fn one_that_leaves() {
    let mut bed = Bed::new(2);
    (1..=2).for_each(|gateway| bed.comes(gateway));
    (0..4).for_each(|_| bed.create());
    bed.pass(1000);
    bed.gateways.get_mut(&1).expect("there").1 = true;
    bed.pass(100);
    (0..2).for_each(|_| bed.create());
    bed.pass(10_000);
    assert_eq!(bed.owners(), [(1, 2), (2, 4)].into());
    let to: Vec<_> = successors(bed.state.map(), &bed.registry, GatewayId(1), bed.now);
    assert_eq!(to.iter().map(|new| new.gateway.0).collect::<Vec<_>>(), [2, 2]);
    assert_eq!(
        successors(bed.state.map(), &bed.registry, GatewayId(2), bed.now),
        [],
        "the other leaves, too"
    );
    bed.goes(1);
    bed.pass(300);
    assert_eq!(bed.owners(), [(2, 6)].into());
}

/// Guards the share of a gateway that comes: one volume after the other, after half a minute; and what an administrator does
/// from then on stays.
#[test]
fn evening_out() {
    let mut bed = Bed::new(3);
    bed.comes(1);
    (0..7).for_each(|_| bed.create());
    bed.pass(6000);
    bed.comes(2);
    bed.pass(29_900);
    assert_eq!((bed.ordered.len(), bed.owners()), (0, [(1, 7)].into()));
    bed.pass(200);
    assert_eq!((bed.ordered.len(), bed.owners()), (1, [(1, 6), (2, 1)].into()));
    bed.pass(800);
    assert_eq!(bed.ordered.len(), 1, "not all at once");
    bed.pass(3000);
    assert_eq!((bed.ordered.len(), bed.owners()), (3, [(1, 4), (2, 3)].into()));
    let back = |bed: &mut Bed, gateway: u32| {
        for volume in bed.state.map().volumes.values().cloned().collect::<Vec<_>>() {
            let new = NewOwner { volume: volume.id, seen: volume.generation, gateway: GatewayId(gateway) };
            bed.run(&Command::AssignOwners { owners: Arc::new(vec![new]) });
        }
    };
    back(&mut bed, 1);
    bed.pass(100_000);
    assert_eq!((bed.ordered.len(), bed.owners()), (3, [(1, 7)].into()), "it was asked for");
    // A leader that is new does not know, and leaves it so, but for one that has nothing.
    let id = VolumeId(1);
    let new = NewOwner { volume: id, seen: bed.state.map().volumes[&id].generation, gateway: GatewayId(2) };
    bed.run(&Command::AssignOwners { owners: Arc::new(vec![new]) });
    bed.elect();
    bed.pass(100_000);
    assert_eq!((bed.ordered.len(), bed.owners()), (3, [(1, 6), (2, 1)].into()));
    back(&mut bed, 1);
    bed.elect();
    bed.pass(40_000);
    assert_eq!((bed.ordered.len(), bed.owners()), (6, [(1, 4), (2, 3)].into()));
    back(&mut bed, 1);

    // One that is not handed over is tried later, and another first.
    bed.obeys = false;
    bed.goes(2);
    bed.pass(100);
    bed.comes(2);
    bed.pass(30_100);
    bed.pass(9900);
    let first = bed.ordered[6];
    assert_eq!((first.from, first.to, bed.ordered.len()), (GatewayId(1), GatewayId(2), 7));
    bed.pass(29_900);
    assert_eq!(bed.ordered.len(), 7);
    bed.pass(300);
    assert_eq!(bed.ordered.len(), 8);
    assert_ne!(bed.ordered[7].volume, first.volume);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Create,
    Comes(u32),
    Goes(u32),
    Silent(u32),
    Speaks(u32),
    Leaves(u32),
    NodeComes(u32),
    NodeGoes(u32),
    Elect,
    /// The leader does not run for so long.
    Sleep(u64),
    Pass(u64),
    /// A gateway of an earlier life takes what it has seen, perhaps of long ago.
    Retake {
        gateway: u32,
        ago: u64,
    },
    Obeys(bool),
}

fn steps() -> impl Strategy<Value = Step> {
    let (gateway, node) = (|| 1..4u32, || 1..=NODES);
    prop_oneof![
        3 => Just(Step::Create),
        4 => gateway().prop_map(Step::Comes),
        3 => gateway().prop_map(Step::Goes),
        2 => gateway().prop_map(Step::Silent),
        2 => gateway().prop_map(Step::Speaks),
        1 => gateway().prop_map(Step::Leaves),
        2 => node().prop_map(Step::NodeComes),
        1 => node().prop_map(Step::NodeGoes),
        1 => Just(Step::Elect),
        1 => (500..20_000u64).prop_map(Step::Sleep),
        6 => prop_oneof![1..400u64, 1..6000u64, 1..40_000u64].prop_map(Step::Pass),
        2 => (gateway(), 0..3u64).prop_map(|(gateway, ago)| Step::Retake { gateway, ago }),
        1 => any::<bool>().prop_map(Step::Obeys),
    ]
}

impl Bed {
    fn step(&mut self, step: Step) {
        match step {
            Step::Create => self.create(),
            Step::Comes(gateway) => self.comes(gateway),
            Step::Goes(gateway) => self.goes(gateway),
            Step::Silent(gateway) => drop(self.silent.insert(gateway)),
            Step::Speaks(gateway) => drop(self.silent.remove(&gateway)),
            Step::Leaves(gateway) => {
                if let Some((_, leaving)) = self.gateways.get_mut(&gateway) {
                    *leaving = true;
                }
            }
            Step::NodeComes(node) => self.node_comes(node),
            Step::NodeGoes(node) => self.node_goes(node),
            Step::Elect => self.elect(),
            Step::Sleep(ms) => {
                self.now += Duration::from_millis(ms);
                self.look();
            }
            Step::Pass(ms) => self.pass(ms),
            Step::Retake { gateway, ago } => {
                let mine = |volume: &&Volume| volume.owner.is_some_and(|it| it.gateway.0 == gateway);
                let volumes = self.state.map().volumes.values().filter(mine);
                let new = |volume: &Volume| NewOwner {
                    volume: volume.id,
                    seen: Generation(volume.generation.0.saturating_sub(ago)),
                    gateway: GatewayId(gateway),
                };
                let owners = Arc::new(volumes.map(new).collect());
                self.run(&Command::AssignOwners { owners });
            }
            Step::Obeys(obeys) => self.obeys = obeys,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    /// Guards invariants 36 and 37 whatever happens: nobody takes from the living (asserted at every look), no generation has
    /// two owners, everything has an owner that is up in the end, and then everybody is left in peace.
    #[test]
    fn everything_is_owned_in_the_end(steps in proptest::collection::vec(steps(), 1..60)) {
        let mut bed = Bed::new(3);
        let mut owners: BTreeMap<(VolumeId, Generation), GatewayId> = BTreeMap::new();
        for step in steps {
            bed.step(step);
            for volume in bed.state.map().volumes.values() {
                let Some(owner) = volume.owner else { continue };
                let known = *owners.entry((volume.id, owner.generation)).or_insert(owner.gateway);
                prop_assert_eq!(known, owner.gateway, "one generation, one owner");
            }
        }
        // At least one gateway is up and most nodes are; the others stay as they are.
        bed.obeys = true;
        (1..=NODES).for_each(|node| bed.node_comes(node));
        bed.comes(1);
        bed.pass(120_000);
        let up: Vec<u32> = (1..4).filter(|gateway| bed.is_up(*gateway)).collect();
        prop_assert!(bed.owners().keys().all(|owner| up.contains(owner)), "{:?}, of {up:?}", bed.owners());
        let (given, ordered) = (bed.given.len(), bed.ordered.len());
        bed.pass(120_000);
        prop_assert_eq!((bed.given.len(), bed.ordered.len()), (given, ordered), "it does not end");
    }
}

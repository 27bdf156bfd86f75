//! Every row of the module's table, and what must not happen.

use lunette_proto::ids::{ClusterId, DiskUuid, Partition};
use lunette_proto::map::{FailureDomain, Redundancy, Table};

use super::*;
use crate::api::cluster::{
    CatchUpReport, DiskReport, GatewayReport, NodeReport, OwnedVolume, UnreachableDisk,
};
use crate::health::StreamId;
use crate::state::tests::take;
use crate::state::{NewDisk, NewOwner, State};

const MS: Duration = Duration::from_millis(1);
const POOL: PoolId = PoolId(1);

/// Three nodes with a disk each and a pool over them; gateways 1 to `gateways`, each with the volume of its number. Members
/// report when they are told to.
struct Bed {
    state: State,
    registry: Registry,
    decider: Decider,
    now: Instant,
    nodes: BTreeMap<u32, (StreamId, DiskReport)>,
    gateways: BTreeMap<u32, (StreamId, GatewayReport)>,
}

impl Bed {
    /// Everybody has just reported, and this member leads for a while.
    fn new(gateways: u32) -> Self {
        let mut state = State::default();
        let mut run = |command| drop(state.apply(&command).expect("right"));
        run(Command::Found { cluster: ClusterId(1) });
        for node in 1..=3u16 {
            run(Command::RegisterNode {
                name: format!("node{node}"),
                address: ([127, 0, 0, 1], 7500 + node).into(),
                host: String::new(),
                rack: String::new(),
                zone: String::new(),
                disks: vec![NewDisk {
                    uuid: DiskUuid(node.into()),
                    label: "d".into(),
                    capacity_bytes: 1 << 30,
                    weight: 0,
                }],
            });
        }
        run(Command::CreatePool {
            name: "default".into(),
            redundancy: Redundancy::replicated(3),
            failure_domain: FailureDomain::Host,
            table: Arc::new(Table::new(1, 3, [1, 2, 3].map(DiskId).repeat(100))),
        });
        for gateway in 1..=gateways {
            run(Command::RegisterGateway { name: format!("gw{gateway}"), portals: vec![] });
            run(Command::CreateVolume {
                name: format!("v{gateway}"),
                pool: "default".into(),
                size_bytes: 4096,
                stripe: None,
                block_bytes: 512,
                write_back: false,
                export: false,
            });
            let (volume, seen, gateway) = (VolumeId(gateway.into()), Generation(0), GatewayId(gateway));
            run(Command::AssignOwners { owners: Arc::new(vec![NewOwner { volume, seen, gateway }]) });
        }
        let (mut registry, now) = (Registry::default(), Instant::now());
        let node = |id| (id, (registry.open(), DiskReport { disk: id, ..DiskReport::default() }));
        let nodes = (1..=3).map(node).collect();
        let gateway = |id| (id, (registry.open(), GatewayReport { gateway: id, ..GatewayReport::default() }));
        let gateways = (1..=gateways).map(gateway).collect();
        let mut bed = Self { state, registry, decider: Decider::new(now), now, nodes, gateways };
        bed.pass(5000);
        bed
    }

    fn report_node(&mut self, id: u32) {
        let (stream, disk) = &self.nodes[&id];
        let report = NodeReport { node: id, disks: vec![disk.clone()] };
        self.registry.node_report(*stream, NodeId(id), report, self.now).expect("the newest stream");
    }

    fn report_gateway(&mut self, id: u32) {
        let (stream, report) = &self.gateways[&id];
        self.registry
            .gateway_report(*stream, GatewayId(id), report.clone(), self.now)
            .expect("the newest stream");
    }

    fn report_all_but(&mut self, silent: Option<u32>) {
        let nodes: Vec<u32> = self.nodes.keys().copied().filter(|id| Some(*id) != silent).collect();
        nodes.into_iter().for_each(|id| self.report_node(id));
        let gateways: Vec<u32> = self.gateways.keys().copied().collect();
        gateways.into_iter().for_each(|id| self.report_gateway(id));
    }

    fn node_ends(&mut self, id: u32) {
        let (stream, _) = self.nodes.remove(&id).expect("it was there");
        self.registry.close(stream, self.now);
    }

    fn node_returns(&mut self, id: u32) {
        let stream = self.registry.open();
        self.nodes.insert(id, (stream, DiskReport { disk: id, ..DiskReport::default() }));
        self.report_node(id);
    }

    /// A gateway complains about a disk from now on, for as long as `lasting_ms` already.
    fn complain(&mut self, gateway: u32, disk: u32, lasting_ms: u64, trouble: Trouble) {
        let (_, report) = self.gateways.get_mut(&gateway).expect("a gateway");
        report.unreachable.retain(|it| it.disk != disk);
        report.unreachable.push(UnreachableDisk { disk, lasting_ms, trouble: trouble.into() });
        self.report_gateway(gateway);
    }

    fn content(&mut self, gateway: u32) {
        self.gateways.get_mut(&gateway).expect("a gateway").1.unreachable.clear();
        self.report_gateway(gateway);
    }

    /// Looks, and carries out what the state takes.
    fn look(&mut self) -> Vec<Command> {
        let look = self.decider.look(self.state.map(), &self.registry, self.now);
        assert!(look.next > self.now, "no busy loop");
        let commands = look.decisions.into_iter().map(|(command, _)| command);
        commands.filter(|command| self.state.apply(command).is_ok()).collect()
    }

    /// Time passes, everybody who is there but `silent` reporting; what is done meanwhile, and when.
    fn pass_without(&mut self, ms: u64, silent: Option<u32>) -> Vec<(u64, Command)> {
        let (start, mut done) = (self.now, Vec::new());
        for step in 1..=ms.div_ceil(50) {
            self.now = start + Duration::from_millis((step * 50).min(ms));
            for (_, report) in self.gateways.values_mut() {
                report.unreachable.iter_mut().for_each(|it| it.lasting_ms += 50);
            }
            if step % 5 == 0 {
                self.report_all_but(silent);
            }
            done.extend(self.look().into_iter().map(|command| (step * 50, command)));
        }
        done
    }

    fn pass(&mut self, ms: u64) -> Vec<(u64, Command)> {
        self.pass_without(ms, None)
    }

    fn disk(&self, id: u32) -> DiskState {
        self.state.map().disks[&DiskId(id)].state
    }
}

fn evict(disk: u32) -> Command {
    Command::Evict { disk: DiskId(disk), seen: DiskState::InSync }
}

fn back(disk: u32) -> Command {
    Command::Return { disk: DiskId(disk) }
}

/// Guards a quiet cluster: nothing is decided of it, not at its start either.
#[test]
fn nothing_happens() {
    for gateways in 0..3 {
        let mut bed = Bed::new(gateways);
        assert_eq!(bed.pass(10_000), []);
    }
}

/// Guards the stall at a node's death: the end of its stream and one complaint, in either order, and its disk leaves without
/// any wait; each alone is none.
#[test]
fn a_killed_node_leaves_at_once() {
    let mut bed = Bed::new(2);
    bed.node_ends(2);
    assert_eq!(bed.look(), [], "it may have its stream broken, and serve");
    bed.complain(1, 2, 0, Trouble::Disconnected);
    assert_eq!(bed.look(), [evict(2)]);
    assert_eq!(bed.pass(5000), [], "and stays away");

    let mut bed = Bed::new(2);
    bed.complain(1, 2, 0, Trouble::Disconnected);
    assert_eq!(bed.look(), []);
    bed.node_ends(2);
    assert_eq!(bed.look(), [evict(2)]);
}

/// Guards a node's other disks: a gateway that has no way to the node complains of those that it needs, and all leave.
#[test]
fn all_disks_of_a_node_leave() {
    let mut bed = Bed::new(1);
    let second =
        |id: u128| NewDisk { uuid: DiskUuid(id), label: "e".into(), capacity_bytes: 1 << 30, weight: 0 };
    let first = NewDisk { label: "d".into(), ..second(3) };
    bed.state
        .apply(&Command::RegisterNode {
            name: "node3".into(),
            address: "127.0.0.1:7503".parse().expect("an address"),
            host: String::new(),
            rack: String::new(),
            zone: String::new(),
            disks: vec![first, second(4)],
        })
        .expect("registers");
    bed.state
        .apply(&Command::CreatePool {
            name: "second".into(),
            redundancy: Redundancy::replicated(2),
            failure_domain: FailureDomain::Host,
            table: Arc::new(Table::new(1, 2, [1, 4].map(DiskId).to_vec())),
        })
        .expect("creates");
    bed.complain(1, 3, 0, Trouble::Failed);
    bed.node_ends(3);
    assert_eq!(bed.look(), [evict(3)], "one that says that it failed says nothing of the other");
    bed.complain(1, 3, 0, Trouble::Disconnected);
    assert_eq!(bed.look(), [evict(4)]);
}

/// Guards a cluster without gateways: a node that goes leaves, but not at once, for the whole cluster may be told to stop; and
/// not all of them because this member hears nobody.
#[test]
fn without_gateways() {
    let mut bed = Bed::new(0);
    bed.node_ends(2);
    let done = bed.pass_without(4000, Some(2));
    assert!(matches!(&done[..], [(at, command)] if *command == evict(2) && *at > 2500), "{done:?}");

    let mut bed = Bed::new(0);
    bed.node_ends(2);
    bed.node_ends(3);
    assert_eq!(bed.look(), [], "most are gone: it is us");

    let mut bed = Bed::new(0);
    let done = bed.pass_without(5000, Some(1));
    assert!(matches!(&done[..], [(at, command)] if *command == evict(1) && *at > 2500), "{done:?}");
}

/// Guards the stall at a silent node: a second of silence and a complaint.
#[test]
fn a_silent_node_leaves_after_a_second() {
    let mut bed = Bed::new(2);
    assert_eq!(bed.pass_without(2500, Some(3)), [], "nobody misses it");
    bed.complain(2, 3, 0, Trouble::Silent);
    assert_eq!(bed.look(), [evict(3)]);

    let mut bed = Bed::new(2);
    bed.complain(1, 3, 0, Trouble::Silent);
    let done = bed.pass_without(2000, Some(3));
    assert!(matches!(&done[..], [(at, command)] if *command == evict(3) && *at <= 1050), "{done:?}");
}

/// Guards against this member's own sleep: silence that nobody could have heard through is none.
#[test]
fn a_leader_that_slept_blames_nobody() {
    let mut bed = Bed::new(1);
    bed.complain(1, 3, 0, Trouble::Disconnected);
    bed.now += 10_000 * MS;
    bed.report_gateway(1);
    assert_eq!(bed.look(), []);
    bed.report_all_but(None);
    assert_eq!(bed.pass(2900), []);
}

/// Guards a new leader: whom it has not heard yet may be on his way, and who has really gone leaves soon.
#[test]
fn a_new_leader_waits_for_nodes() {
    let mut bed = Bed::new(1);
    bed.registry = Registry::default();
    for id in 1..=3 {
        let stream = bed.registry.open();
        bed.nodes.get_mut(&id).expect("there").0 = stream;
    }
    bed.gateways.get_mut(&1).expect("there").0 = bed.registry.open();
    bed.decider = Decider::new(bed.now);
    bed.complain(1, 1, 0, Trouble::Disconnected);
    assert_eq!(bed.look(), []);
    let done = bed.pass_without(3000, Some(1));
    assert!(
        matches!(&done[..], [(at, command)] if *command == evict(1) && *at >= 1000 && *at <= 1300),
        "{done:?}"
    );

    // Nobody is missed: nobody leaves.
    let mut bed = Bed::new(1);
    bed.registry = Registry::default();
    bed.decider = Decider::new(bed.now);
    let gateway = bed.registry.open();
    bed.gateways.get_mut(&1).expect("there").0 = gateway;
    bed.nodes.clear();
    assert_eq!(bed.pass(10_000), []);
}

/// Guards disks that say themselves that they cannot serve.
#[test]
fn failed_disks_leave_at_once() {
    let mut bed = Bed::new(1);
    bed.nodes.get_mut(&2).expect("there").1.failed = true;
    bed.report_node(2);
    assert_eq!(bed.look(), [evict(2)]);
    assert_eq!(bed.pass(10_000), [], "and does not return as it is");
    bed.nodes.get_mut(&2).expect("there").1.failed = false;
    let done = bed.pass(10_000);
    assert!(matches!(&done[0], (_, command) if *command == back(2)), "{done:?}");

    let mut bed = Bed::new(1);
    bed.nodes.get_mut(&2).expect("there").1.refused = true;
    bed.report_node(2);
    assert_eq!(bed.look(), [evict(2)]);
    let mut bed = Bed::new(2);
    bed.complain(1, 2, 0, Trouble::Untrusted);
    assert_eq!(bed.look(), [evict(2)]);
    let mut bed = Bed::new(2);
    bed.complain(1, 2, 0, Trouble::Failed);
    let done = bed.pass(4000);
    assert!(matches!(&done[..1], [(at, command)] if *command == evict(2) && *at >= 2950), "{done:?}");
}

/// Guards against one gateway's bad link: it evicts nobody whom another gateway reaches; what many see for long is so.
#[test]
fn one_bad_link_evicts_nobody() {
    for (gateways, complaining, leaves) in
        [(1, 1, true), (2, 1, false), (2, 2, true), (3, 1, false), (3, 2, true), (4, 2, true), (5, 2, false)]
    {
        let mut bed = Bed::new(gateways);
        for gateway in 1..=complaining {
            bed.complain(gateway, 3, 0, Trouble::Disconnected);
        }
        let done = bed.pass(2900);
        assert_eq!(done, [], "{complaining} of {gateways}");
        let done = bed.pass(200);
        assert_eq!(!done.is_empty(), leaves, "{complaining} of {gateways}: {done:?}");
    }
    // Another gateway that uses no volume on it says nothing either way.
    let mut bed = Bed::new(2);
    bed.state.apply(&Command::DeleteVolume { name: "v2".into(), force: false }).expect("deletes");
    bed.complain(1, 3, 0, Trouble::Disconnected);
    assert_eq!(bed.pass(3100).len(), 1);
    // It came and went.
    let mut bed = Bed::new(1);
    bed.complain(1, 3, 0, Trouble::Disconnected);
    bed.pass(2500);
    bed.content(1);
    assert_eq!(bed.pass(5000), []);
}

/// Guards the return: at once when the node is back, and later each time for a disk that leaves soon after it has returned,
/// but not later than a minute.
#[test]
fn a_disk_that_flaps_waits() {
    let mut bed = Bed::new(1);
    for expected in [0, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000] {
        assert_eq!(bed.disk(2), DiskState::InSync);
        bed.node_ends(2);
        bed.complain(1, 2, 0, Trouble::Disconnected);
        assert_eq!(bed.look(), [evict(2)]);
        bed.content(1);
        bed.pass(300);
        bed.node_returns(2);
        let mut waited = 0;
        let mut done = bed.look();
        while done.is_empty() {
            waited += 50;
            done = bed.pass(50).into_iter().map(|(_, command)| command).collect();
            if waited % 250 == 0 {
                bed.report_all_but(None);
            }
        }
        assert_eq!((done, waited), (vec![back(2)], expected));
        // Nothing was written meanwhile.
        let caught_up = Command::CaughtUp {
            disk: DiskId(2),
            pool: POOL,
            partitions: Arc::new((0..100).map(Partition).collect()),
            epoch: bed.state.map().epoch,
            owners: owned_volumes(bed.state.map(), POOL).collect(),
        };
        bed.state.apply(&caught_up).expect("all");
        assert_eq!(bed.look(), []);
    }
    // After a time of peace it is as good as any.
    bed.pass(200_000);
    bed.node_ends(2);
    bed.complain(1, 2, 0, Trouble::Disconnected);
    assert_eq!(bed.look(), [evict(2)]);
    bed.content(1);
    bed.node_returns(2);
    assert_eq!(bed.look(), [back(2)]);
}

/// A bed in which disk 2 catches up, and what a gateway says of it.
fn catching_up(gateways: u32) -> Bed {
    let mut bed = Bed::new(gateways);
    bed.state.apply(&evict(2)).expect("leaves");
    bed.state.apply(&back(2)).expect("returns");
    bed
}

fn say(bed: &mut Bed, gateway: u32, ready: impl IntoIterator<Item = u32>) {
    let ready: Partitions = ready.into_iter().map(Partition).collect();
    let volume = bed.state.map().volumes[&VolumeId(gateway.into())].clone();
    let catch_up = CatchUpReport {
        pool: 1,
        disk: 2,
        volumes: vec![OwnedVolume { volume: volume.id.0, generation: volume.generation.0 }],
        epoch: bed.state.map().epoch.0,
        ready: ready.to_bytes().into(),
        ..CatchUpReport::default()
    };
    bed.gateways.get_mut(&gateway).expect("there").1.catch_ups = vec![catch_up];
    bed.report_gateway(gateway);
}

fn counted(done: &[(u64, Command)]) -> Vec<usize> {
    let count = |(_, command): &(u64, Command)| match command {
        Command::CaughtUp { partitions, .. } => partitions.len(),
        other => panic!("{other:?}"),
    };
    done.iter().map(count).collect()
}

/// Guards the return of copies: what all owners say counts, in few commits, the last at once.
#[test]
fn copies_count_when_all_owners_say_so() {
    let mut bed = catching_up(2);
    assert_eq!(bed.pass(2000), [], "nobody has said anything");
    say(&mut bed, 1, 0..100);
    assert_eq!(bed.pass(2000), []);
    say(&mut bed, 2, [7]);
    assert_eq!(counted(&bed.pass(100)), [1]);
    say(&mut bed, 2, 5..60);
    assert_eq!(counted(&bed.pass(800)), []);
    assert_eq!(counted(&bed.pass(300)), [54], "a second after the last");
    say(&mut bed, 2, 0..100);
    assert_eq!(counted(&bed.pass(100)), [45], "the rest at once");
    assert_eq!(bed.disk(2), DiskState::InSync);

    // Nobody has ever written: nothing is missed.
    let mut bed = catching_up(0);
    assert_eq!(counted(&bed.pass(100)), [100]);
}

/// Guards against statements that are late: of an owner of before, or of a time before the disk returned. A gateway that
/// is gone has meant what it said.
#[test]
fn late_statements_count_nothing() {
    let mut bed = catching_up(1);
    say(&mut bed, 1, 0..100);
    bed.gateways.get_mut(&1).expect("there").1.catch_ups[0].volumes[0].generation = 7;
    bed.report_gateway(1);
    assert_eq!(bed.pass(1000), []);
    say(&mut bed, 1, 0..100);
    bed.gateways.get_mut(&1).expect("there").1.catch_ups[0].epoch -= 1;
    bed.report_gateway(1);
    assert_eq!(bed.pass(1000), []);
    say(&mut bed, 1, 0..100);
    bed.state.apply(&take(1, 1)).expect("takes");
    assert_eq!(bed.pass(1000), []);
    assert_eq!(bed.state.map().volumes[&VolumeId(1)].generation, Generation(2));
    say(&mut bed, 1, 0..100);
    let (stream, _) = bed.gateways.remove(&1).expect("there");
    bed.registry.close(stream, bed.now);
    assert_eq!(counted(&bed.pass(100)), [100]);
}

/// Guards a disk that dies while it catches up: it leaves again by the same rules.
#[test]
fn it_may_leave_while_it_catches_up() {
    let mut bed = catching_up(1);
    say(&mut bed, 1, 0..50);
    bed.node_ends(2);
    bed.complain(1, 2, 0, Trouble::Disconnected);
    let again = Command::Evict { disk: DiskId(2), seen: DiskState::CatchingUp };
    assert_eq!(bed.look(), [again]);
    assert_eq!(bed.state.map().behind[&(POOL, DiskId(2))].partitions.len(), 100);
}

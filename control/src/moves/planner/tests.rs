//! Every row of the module's table, with made-up nodes; moves arrive when the test says so.

use lunette_proto::ids::{ClusterId, DiskUuid};
use lunette_proto::map::{FailureDomain, Redundancy};

use super::*;
use crate::state::{NewDisk, State, owned_volumes};

const GIB: u64 = 1 << 30;
const GRACE: Duration = Duration::from_secs(60);

/// Nodes with a disk each, and a pool of three copies over the first ones.
struct Bed {
    state: State,
    planner: Planner,
    rooms: BTreeMap<DiskId, Room>,
    now: Instant,
    look: Option<Look>,
}

impl Bed {
    fn new(nodes: u32, in_pool: u32) -> Self {
        let mut bed = Self {
            state: State::default(),
            planner: Planner::new(GRACE),
            rooms: BTreeMap::new(),
            now: Instant::now(),
            look: None,
        };
        bed.run(Command::Found { cluster: ClusterId(1) });
        for node in 1..=in_pool {
            bed.node(node);
        }
        let candidates = candidates_of(bed.state.map(), &BTreeSet::new());
        let request = lunette_placement::PlanRequest {
            width: 3,
            partitions: 120,
            failure_domain: FailureDomain::Host,
            candidates,
            previous: None,
        };
        bed.run(Command::CreatePool {
            name: "p".into(),
            redundancy: Redundancy::replicated(3),
            failure_domain: FailureDomain::Host,
            table: Arc::new(lunette_placement::plan(&request).expect("enough nodes").table),
        });
        for node in in_pool + 1..=nodes {
            bed.node(node);
        }
        bed
    }

    fn run(&mut self, command: Command) {
        self.state.apply(&command).expect("right");
    }

    fn node(&mut self, node: u32) {
        self.run(Command::RegisterNode {
            name: format!("node{node}"),
            address: ([127, 0, 0, 1], 7500 + u16::try_from(node).expect("few")).into(),
            host: String::new(),
            rack: String::new(),
            zone: String::new(),
            disks: vec![NewDisk {
                uuid: DiskUuid(node.into()),
                label: "d".into(),
                capacity_bytes: GIB,
                weight: 0,
            }],
        });
        let room = Room { answers: true, used_bytes: GIB / 10, capacity_bytes: GIB };
        self.rooms.insert(DiskId(node), room);
    }

    fn evict(&mut self, disk: u32) {
        let disk = DiskId(disk);
        let seen = self.state.map().disks[&disk].state;
        self.run(Command::Evict { disk, seen });
        self.rooms.entry(disk).or_default().answers = false;
    }

    /// It is back, and equal at once.
    fn back(&mut self, disk: u32) {
        self.run(Command::Return { disk: DiskId(disk) });
        self.rooms.entry(DiskId(disk)).or_default().answers = true;
        self.arrive(disk, 120);
    }

    fn drain(&mut self, disk: u32, draining: bool) {
        self.run(Command::DrainDisks { disks: vec![DiskId(disk)], draining });
    }

    /// So many copies come to count on a disk.
    fn arrive(&mut self, disk: u32, some: usize) {
        let (pool, disk) = (PoolId(1), DiskId(disk));
        if self.state.map().disks[&disk].state == DiskState::Out {
            return;
        }
        let Some(behind) = self.state.map().behind.get(&(pool, disk)) else { return };
        let partitions = Arc::new(behind.partitions.iter().take(some).collect());
        let (epoch, owners) = (self.state.map().epoch, owned_volumes(self.state.map(), pool).collect());
        self.run(Command::CaughtUp { disk, pool, partitions, epoch, owners });
    }

    /// Looks, and carries out what is said; how many moves begin and how many are given up.
    fn look(&mut self) -> (usize, usize) {
        let look = self.planner.look(self.state.map(), &self.rooms, self.now);
        let (mut begun, mut cancelled) = (0, 0);
        for (command, _) in &look.commands {
            match command {
                Command::AddMoves { moves, .. } => begun += moves.len(),
                Command::CancelMoves { moves, .. } => cancelled += moves.len(),
                Command::RemoveDisk { disk } => assert_eq!(self.copies(disk.0), 0),
                other => panic!("{other:?}"),
            }
            self.state.apply(command).expect("the state takes what it proposes");
        }
        self.look = Some(look);
        (begun, cancelled)
    }

    fn pool(&self) -> &Pool {
        &self.state.map().pools[&PoolId(1)]
    }

    fn copies(&self, disk: u32) -> usize {
        self.pool().table.rows().filter(|(_, row)| row.contains(&DiskId(disk))).count()
    }

    fn problem(&self) -> String {
        let look = self.look.as_ref().expect("it has looked");
        look.pools.get(&PoolId(1)).and_then(|plan| plan.problem.clone()).unwrap_or_default()
    }

    /// Looks and lets everything arrive until nothing is left; the most moves that were under way to one disk.
    fn finish(&mut self) -> usize {
        let mut most = 0;
        for _ in 0..100 {
            self.look();
            if self.pool().moves.is_empty() {
                return most;
            }
            for disk in self.state.map().disks.keys().copied().collect::<Vec<_>>() {
                most = most.max(arriving_at(self.pool(), disk).len());
                self.arrive(disk.0, 7);
            }
        }
        panic!("it does not end: {:?}", self.look);
    }
}

/// Guards against moves for nothing: a cluster in which all is as it should be, and one that has just lost a node.
#[test]
fn nothing_moves_without_a_reason() {
    let mut bed = Bed::new(5, 5);
    assert_eq!(bed.look(), (0, 0));
    bed.evict(2);
    assert_eq!(bed.look(), (0, 0));
    bed.now += GRACE - Duration::from_millis(1);
    assert_eq!(bed.look(), (0, 0));
    assert_eq!(bed.look.as_ref().map(|look| look.next), Some(bed.now + Duration::from_millis(1)));
    // One that comes and goes is out for a short while each time.
    bed.back(2);
    bed.look();
    bed.evict(2);
    bed.now += GRACE - Duration::from_millis(1);
    assert_eq!(bed.look(), (0, 0));
}

/// Guards rebuilding: after the grace time all copies of a disk are made elsewhere, so many at a time; and when it is back, it
/// gets its share again.
#[test]
fn what_is_out_for_long_is_rebuilt() {
    let mut bed = Bed::new(5, 5);
    bed.evict(2);
    bed.look();
    bed.now += GRACE;
    assert_eq!(bed.look().0, 72, "its share of 360 copies, evenly over four disks");
    assert!(bed.finish() <= MOVES_PER_DISK_MAX);
    assert_eq!((1..=5).map(|disk| bed.copies(disk)).collect::<Vec<_>>(), [90, 0, 90, 90, 90]);
    assert!(bed.state.map().behind.is_empty(), "nothing is missing");
    bed.back(2);
    bed.finish();
    assert_eq!((1..=5).map(|disk| bed.copies(disk)).collect::<Vec<_>>(), [72; 5]);
}

/// Guards against work that nobody needs: moves away from a disk that has come back are given up, those of a drain that was
/// taken back, too.
#[test]
fn what_is_back_stays() {
    let mut bed = Bed::new(5, 5);
    bed.evict(2);
    bed.look();
    bed.now += GRACE;
    bed.look();
    bed.arrive(3, 4);
    bed.back(2);
    let (_, cancelled) = bed.look();
    assert!(cancelled >= 60, "{cancelled}");
    bed.finish();
    bed.drain(4, true);
    let (begun, _) = bed.look();
    assert_eq!(begun, 72);
    bed.drain(4, false);
    assert_eq!(bed.look(), (0, 72));
    assert_eq!((bed.copies(4), bed.pool().moves.len()), (72, 0));
}

/// Guards draining: a disk ends with nothing, and it counts until each copy is made; one that is added gets its share.
#[test]
fn drained_and_added() {
    let mut bed = Bed::new(4, 4);
    bed.drain(3, true);
    bed.look();
    assert!(bed.state.map().is_in_sync(PoolId(1), DiskId(3), Partition(0)) || bed.copies(3) < 120);
    bed.finish();
    assert_eq!((1..=4).map(|disk| bed.copies(disk)).collect::<Vec<_>>(), [120, 120, 0, 120]);
    bed.run(Command::RemoveNode { name: "node3".into() });
    bed.node(5);
    let fresh = *bed.state.map().disks.keys().last().expect("there");
    bed.rooms.insert(fresh, Room { answers: true, used_bytes: 0, capacity_bytes: GIB });
    bed.finish();
    assert_eq!(bed.copies(fresh.0), 90);
}

/// Guards against evening out while copies are missing, and against planning for a disk that does not serve yet.
#[test]
fn a_new_disk_waits() {
    let mut bed = Bed::new(5, 4);
    bed.rooms.entry(DiskId(5)).or_default().answers = false;
    assert_eq!(bed.look(), (0, 0));
    bed.rooms.entry(DiskId(5)).or_default().answers = true;
    bed.evict(1);
    assert_eq!(bed.look(), (0, 0));
    assert!(bed.problem().ends_with("wait until nothing is degraded"), "{}", bed.problem());
    bed.back(1);
    assert_eq!(bed.look().0, MOVES_PER_DISK_MAX);
    // More begin when half are done, and not before.
    bed.arrive(5, 10);
    assert_eq!(bed.look(), (0, 0));
    bed.arrive(5, 22);
    assert_eq!(bed.look().0, 72 - MOVES_PER_DISK_MAX);
    bed.finish();
    assert_eq!(bed.copies(5), 72);
}

/// Guards against moves to where nothing fits, and against a plan without enough failure domains: nothing begins, nothing is
/// proposed over and over, and the words say what is missing.
#[test]
fn nowhere_to_go() {
    let mut bed = Bed::new(4, 4);
    for disk in [1, 2] {
        bed.rooms.entry(DiskId(disk)).or_default().used_bytes = GIB * 95 / 100;
    }
    bed.rooms.entry(DiskId(4)).or_default().used_bytes = GIB * 95 / 100;
    bed.drain(3, true);
    assert_eq!(bed.look(), (0, 0));
    assert_eq!(bed.problem(), "no room on disk-1, disk-2, disk-4");
    bed.drain(3, false);
    bed.look();
    bed.evict(1);
    bed.look();
    bed.drain(3, true);
    bed.now += GRACE;
    assert_eq!(bed.look(), (0, 0));
    assert_eq!(bed.problem(), "3 copies need 3 hosts, there are 2");
    assert_eq!(bed.look(), (0, 0));
}

/// Guards a new leader: it goes on with what is under way.
#[test]
fn a_new_leader_goes_on() {
    let mut bed = Bed::new(5, 4);
    bed.look();
    bed.arrive(5, 5);
    bed.planner = Planner::new(GRACE);
    assert_eq!(bed.look().1, 0);
    bed.drain(2, true);
    bed.look();
    for disk in [1, 3, 4, 5] {
        bed.arrive(disk, 3);
    }
    bed.planner = Planner::new(GRACE);
    let under_way = bed.pool().moves.len();
    let (_, cancelled) = bed.look();
    assert!(cancelled * 10 <= under_way, "{cancelled} of {under_way} are given up");
    bed.finish();
    assert_eq!((1..=5).map(|disk| bed.copies(disk)).collect::<Vec<_>>(), [90, 0, 90, 90, 90]);
}

/// Guards a replacement: the old disk counts until its copies are made, and is given up then and only then; one that is called
/// off stays.
#[test]
fn replaced() {
    let mut bed = Bed::new(4, 4);
    let replace = |bed: &mut Bed, old: u32, uuid: u128| {
        let command = Command::AddDisk {
            node: format!("node{old}"),
            path: format!("/new{uuid}"),
            capacity_bytes: None,
            uuid: DiskUuid(uuid),
            replaces: Some(DiskId(old)),
        };
        bed.run(command.clone());
        let wish = bed.state.map().wishes().last().expect("wished for").clone();
        bed.look();
        assert!(!bed.state.map().disks[&DiskId(old)].draining, "not before the other serves");
        bed.run(Command::DiskAdded { node: wish.node, disk: wish.id, capacity_bytes: GIB });
        let refused = bed.state.decide(&command).expect_err("its place is taken");
        assert!(refused.to_string().contains("already"), "{refused}");
        bed.rooms.insert(wish.id, Room { answers: true, used_bytes: 0, capacity_bytes: GIB });
        wish.id.0
    };
    let new = replace(&mut bed, 3, 77);
    bed.look();
    assert!(bed.copies(3) > 0 && bed.state.map().disks.contains_key(&DiskId(3)));
    bed.finish();
    assert_eq!((1..=4).map(|disk| bed.copies(disk)).collect::<Vec<_>>(), [90, 90, 0, 90]);
    assert_eq!(bed.copies(new), 90);
    assert!(!bed.state.map().disks.contains_key(&DiskId(3)), "given up");

    let other = replace(&mut bed, 2, 78);
    bed.look();
    bed.drain(2, false);
    bed.finish();
    bed.drain(2, true);
    bed.finish();
    assert_eq!((bed.copies(2), bed.state.map().disks.contains_key(&DiskId(2))), (0, true), "only drained");
    assert!(bed.copies(other) > 0);
}

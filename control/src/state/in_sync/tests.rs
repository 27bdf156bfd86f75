//! The rules of leaving, returning and catching up; and that no copy counts that has missed a write, whatever comes in which
//! order.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lunette_proto::ids::{DiskId, Epoch, Generation, Partition, PoolId, VolumeId};
use lunette_proto::map::{Behind, ClusterMap, DiskState, Move, Partitions, VolumeState};
use proptest::prelude::*;

use super::super::tests::{check_invariants, cluster, commands, node, pool, reason, take, volume};
use super::super::*;
use super::owned_volumes;

const POOL: PoolId = PoolId(1);

fn evict(state: &State, disk: u32) -> Command {
    Command::Evict { disk: DiskId(disk), seen: state_of(state, disk) }
}

fn back(disk: u32) -> Command {
    Command::Return { disk: DiskId(disk) }
}

/// Everything that was said in time, of all partitions that are named.
fn caught_up(state: &State, disk: u32, partitions: impl IntoIterator<Item = u32>) -> Command {
    Command::CaughtUp {
        disk: DiskId(disk),
        pool: POOL,
        partitions: Arc::new(partitions.into_iter().map(Partition).collect()),
        epoch: state.map().epoch,
        owners: owned_volumes(state.map(), POOL).collect(),
    }
}

fn since(state: &State, disk: u32) -> Epoch {
    state.map().behind[&(POOL, DiskId(disk))].since
}

fn behind(state: &State, disk: u32) -> Vec<u32> {
    let behind = state.map().behind.get(&(POOL, DiskId(disk)));
    behind.map(|set| set.partitions.iter().map(|partition| partition.0).collect()).unwrap_or_default()
}

fn state_of(state: &State, disk: u32) -> DiskState {
    state.map().disks[&DiskId(disk)].state
}

/// Guards a disk's way out and back: all its copies are behind at once, they count one by one, and the last brings it back.
#[test]
fn life_of_an_absence() {
    let mut state = cluster();
    state.apply(&volume("v", false)).expect("creates");
    state.apply(&take(1, 0)).expect("takes");
    let out = state.apply(&evict(&state.clone(), 1)).expect("two of three remain");
    assert_eq!((state_of(&state, 1), behind(&state, 1)), (DiskState::Out, (0..8).collect()));
    assert_eq!(since(&state, 1), out.epoch);
    assert!(!state.map().is_in_sync(POOL, DiskId(1), Partition(3)));
    assert_eq!(reason(&state, &evict(&state, 1)), "DISK_STATE");
    assert_eq!(reason(&state, &caught_up(&state, 1, 0..8)), "DISK_STATE", "nobody can have copied to it");

    state.apply(&back(1)).expect("returns");
    assert_eq!((state_of(&state, 1), behind(&state, 1)), (DiskState::CatchingUp, (0..8).collect()));
    assert_eq!(since(&state, 1).0, out.epoch.0 + 1, "what was said while it was out counts no more");
    assert_eq!(reason(&state, &back(1)), "DISK_STATE");
    state.apply(&caught_up(&state.clone(), 1, [1, 2, 7])).expect("some");
    assert_eq!(behind(&state, 1), [0, 3, 4, 5, 6]);
    assert!(state.map().is_in_sync(POOL, DiskId(1), Partition(7)));
    let again = state.apply(&caught_up(&state.clone(), 1, [1, 2, 900])).expect("told twice");
    assert_eq!(again.delta, None);
    // Evicted again, what counted is behind again too.
    state.apply(&evict(&state.clone(), 1)).expect("leaves");
    assert_eq!(behind(&state, 1), (0..8).collect::<Vec<_>>());
    state.apply(&back(1)).expect("returns");
    state.apply(&caught_up(&state.clone(), 1, 0..8)).expect("all");
    assert_eq!((state_of(&state, 1), state.map().behind.len()), (DiskState::InSync, 0));
    state.apply(&evict(&state.clone(), 2)).expect("another may leave");
}

/// Guards invariant 2: a disk stays while too few other copies would count, and the message says how many those are.
#[test]
fn never_below_min_size() {
    let mut state = cluster();
    state.apply(&evict(&state.clone(), 1)).expect("two of three remain");
    let refused = state.decide(&evict(&state, 2)).expect_err("one of three would remain");
    assert_eq!(refused.classify().1, "BELOW_MIN_SIZE");
    let wanted = "8 of 8 partitions of pool \"default\" would have fewer than min_size 2";
    assert!(refused.to_string().contains(wanted), "{refused}");
    state.apply(&back(1)).expect("returns");
    state.apply(&caught_up(&state.clone(), 1, 0..5)).expect("some");
    let refused = state.decide(&evict(&state, 2)).expect_err("three partitions are behind on the other");
    assert!(refused.to_string().contains("3 of 8 partitions"), "{refused}");
    state.apply(&caught_up(&state.clone(), 1, 5..8)).expect("the rest");
    state.apply(&evict(&state.clone(), 2)).expect("two remain");
}

/// Guards against decisions that are late: about a state that the disk has no longer, of an owner that is no longer, of a
/// time before the disk returned.
#[test]
fn late_decisions_do_nothing() {
    let mut state = cluster();
    state.apply(&volume("v", false)).expect("creates");
    state.apply(&volume("nobodys", false)).expect("creates");
    state.apply(&take(1, 0)).expect("takes");
    let early = evict(&state, 1);
    state.apply(&early).expect("leaves");
    state.apply(&back(1)).expect("returns");
    assert_eq!(reason(&state, &early), "DISK_STATE");
    let Command::CaughtUp { disk, pool, partitions, epoch, owners } = caught_up(&state, 1, 0..8) else {
        unreachable!()
    };
    assert_eq!(
        owners,
        BTreeMap::from([(VolumeId(1), Generation(1))]),
        "an unowned volume has nothing to say"
    );
    let said = |epoch, owners: &BTreeMap<_, _>| Command::CaughtUp {
        disk,
        pool,
        partitions: Arc::clone(&partitions),
        epoch,
        owners: owners.clone(),
    };
    assert_eq!(epoch, since(&state, 1));
    assert_eq!(reason(&state, &said(Epoch(epoch.0 - 1), &owners)), "SAID_BEFORE");
    assert_eq!(reason(&state, &said(epoch, &BTreeMap::new())), "NOT_READY");
    state.apply(&take(1, 1)).expect("another owner");
    assert_eq!(reason(&state, &said(epoch, &owners)), "NOT_READY");
    state.apply(&take(2, 0)).expect("its first owner");
    let first = BTreeMap::from([(VolumeId(1), Generation(2))]);
    assert_eq!(reason(&state, &said(epoch, &first)), "NOT_READY");
    // One that is being deleted shows nothing to anybody any more.
    state.apply(&Command::DeleteVolume { name: "nobodys".into(), force: false }).expect("deletes");
    state.apply(&said(epoch, &first)).expect("all that matter");
    assert_eq!(state_of(&state, 1), DiskState::InSync);
    for unknown in [back(9), Command::Evict { disk: DiskId(9), seen: DiskState::InSync }] {
        assert_eq!(reason(&state, &unknown), "DISK_NOT_FOUND");
    }
}

/// Guards pools that come and go while a disk is away: a new one does without it, and a deleted one holds nobody back.
#[test]
fn pools_come_and_go() {
    let mut state = cluster();
    state.apply(&node("node4", 4)).expect("registers");
    state.apply(&pool("second", &[1, 4])).expect("creates");
    state.apply(&evict(&state.clone(), 1)).expect("leaves");
    assert_eq!(state.map().behind.len(), 2);
    assert_eq!(reason(&state, &pool("third", &[1, 2])), "TABLE_STALE");
    state.apply(&node("node1", 1)).expect("registers again");
    assert_eq!(state_of(&state, 1), DiskState::Out, "to be there is not to be in sync");
    state.apply(&Command::DeletePool { name: "second".into() }).expect("deletes");
    assert_eq!((state_of(&state, 1), state.map().behind.len()), (DiskState::Out, 1));
    state.apply(&back(1)).expect("returns");
    assert_eq!(reason(&state, &pool("third", &[1, 2])), "TABLE_STALE");
    state.apply(&Command::DeletePool { name: "default".into() }).expect("deletes");
    assert_eq!((state_of(&state, 1), state.map().behind.len()), (DiskState::InSync, 0));
    // A disk of no pool misses nothing.
    state.apply(&evict(&state.clone(), 1)).expect("leaves");
    state.apply(&back(1)).expect("returns");
    assert_eq!(state_of(&state, 1), DiskState::InSync);
}

/// Guards a watcher: what is said of copies that there are not, or contradicts the disk's state, is refused.
#[test]
fn maps_are_checked() {
    let mut state = cluster();
    state.apply(&node("node4", 4)).expect("registers");
    state.apply(&evict(&state.clone(), 1)).expect("leaves");
    state.apply(&back(1)).expect("returns");
    assert_eq!(check_map(state.map()), Ok(()));
    let wrong = |change: &dyn Fn(&mut ClusterMap)| {
        let mut map = state.map().clone();
        change(&mut map);
        check_map(&map)
    };
    let set = |them: &[u32]| {
        let partitions = them.iter().copied().map(Partition).collect();
        Arc::new(Behind { partitions, since: Epoch(1), grown: Epoch(1) })
    };
    let key = (POOL, DiskId(1));
    let of = |disk| Err(format!("disk-{disk}"));
    assert_eq!(wrong(&|map| drop(map.behind.insert(key, set(&[])))), of(1));
    assert_eq!(wrong(&|map| drop(map.behind.insert(key, set(&[8])))), of(1));
    assert_eq!(wrong(&|map| drop(map.behind.insert((PoolId(2), DiskId(1)), set(&[1])))), of(1));
    assert_eq!(wrong(&|map| drop(map.behind.insert((POOL, DiskId(9)), set(&[1])))), of(9));
    assert_eq!(wrong(&|map| drop(map.behind.insert((POOL, DiskId(4)), set(&[1])))), of(4), "no member");
    assert_eq!(wrong(&|map| drop(map.behind.insert((POOL, DiskId(2)), set(&[1])))), of(2), "it is in sync");
    assert_eq!(wrong(&|map| drop(map.behind.remove(&key))), of(1), "what does it catch up with?");
    let out = |map: &mut ClusterMap| {
        map.disks.get_mut(&DiskId(1)).expect("there").state = DiskState::Out;
        map.behind.insert(key, set(&[1, 2]));
    };
    assert_eq!(wrong(&out), of(1), "all copies of a disk that is out are behind");
}

/// What a run consists of.
#[derive(Clone, Debug)]
enum Step {
    Command(Command),
    /// A volume gets its next owner.
    Take(u64),
    /// An owner makes copies equal, and says so to whoever listens.
    Say {
        volume: u64,
        disk: u32,
        partitions: u8,
    },
    /// The leader decides by what was said last, whenever that was.
    CaughtUp {
        disk: u32,
        pool: u32,
        partitions: u8,
        forget: Option<u64>,
    },
}

/// The commands of moves, of everything there is and more.
fn moves() -> impl Strategy<Value = Command> {
    let (pool, disk) = (|| (1..4u32).prop_map(PoolId), || (1..6u32).prop_map(DiskId));
    let partition = || (0..9u32).prop_map(Partition);
    let step = (partition(), disk(), disk()).prop_map(|(partition, from, to)| (partition, Move { from, to }));
    prop_oneof![
        12 => (pool(), proptest::collection::vec(step, 1..3))
            .prop_map(|(pool, moves)| Command::AddMoves { pool, moves: Arc::new(moves) }),
        2 => (pool(), proptest::collection::vec((partition(), disk()), 1..4))
            .prop_map(|(pool, moves)| Command::CancelMoves { pool, moves }),
        1 => (proptest::collection::vec(disk(), 1..3), any::<bool>())
            .prop_map(|(disks, draining)| Command::DrainDisks { disks, draining }),
        1 => disk().prop_map(|disk| Command::RemoveDisk { disk }),
        1 => (1..6u32).prop_map(|n| Command::RemoveNode { name: format!("node{n}") }),
    ]
}

fn steps() -> impl Strategy<Value = Step> {
    let disk = || (1..6u32).prop_map(DiskId);
    let state = prop_oneof![3 => Just(DiskState::InSync), 2 => Just(DiskState::CatchingUp), 1 => Just(DiskState::Out)];
    prop_oneof![
        4 => commands().prop_map(Step::Command),
        12 => moves().prop_map(Step::Command),
        6 => (disk(), state).prop_map(|(disk, seen)| Step::Command(Command::Evict { disk, seen })),
        5 => disk().prop_map(|disk| Step::Command(Command::Return { disk })),
        12 => (1..6u64, 1..6u32, any::<u8>())
            .prop_map(|(volume, disk, partitions)| Step::Say { volume, disk, partitions: partitions | 0x3c }),
        12 => (1..6u32, 1..4u32, any::<u8>(), proptest::option::weighted(0.2, 1..6u64)).prop_map(
            |(disk, pool, partitions, forget)| Step::CaughtUp { disk, pool, partitions, forget }
        ),
        2 => (1..6u64).prop_map(Step::Take),
    ]
}

fn set(bits: u8) -> Partitions {
    (0..8).filter(|bit| bits >> bit & 1 == 1).map(Partition).collect()
}

/// What an owner said last of its volume's copies on a disk.
#[derive(Clone, Debug)]
struct Said {
    generation: Generation,
    epoch: Epoch,
    ready: Partitions,
    /// What the owner still acts by: it writes to these copies and waits for them.
    holds: Partitions,
}

/// The world outside of the state: owners that write all the time, and what each copy has missed.
#[derive(Debug, Default)]
struct World {
    said: BTreeMap<(VolumeId, DiskId), Said>,
    missed: BTreeSet<(VolumeId, DiskId, Partition)>,
}

impl World {
    fn say(&mut self, map: &ClusterMap, volume: VolumeId, disk: DiskId, partitions: Partitions) {
        let Some(volume) = map.volumes.get(&volume).filter(|volume| volume.generation != Generation(0))
        else {
            return;
        };
        if map.disks.get(&disk).is_none_or(|disk| disk.state == DiskState::Out) {
            return;
        }
        let Some(behind) = map.behind.get(&(volume.pool, disk)) else { return };
        let partitions = partitions.intersection(&behind.partitions);
        self.missed.retain(|(of, on, partition)| {
            (*of, *on) != (volume.id, disk) || !partitions.contains(*partition)
        });
        let generation = volume.generation;
        let before = self.said.get(&(volume.id, disk)).filter(|it| it.generation == generation);
        let earlier = before.map(|it| it.holds.clone()).unwrap_or_default();
        let ready: Partitions = earlier.iter().chain(partitions.iter()).collect();
        let holds = ready.clone();
        self.said.insert((volume.id, disk), Said { generation, epoch: map.epoch, ready, holds });
    }

    /// The owner of every volume writes to every partition. Who counts must not have missed anything before.
    fn write(&mut self, map: &ClusterMap) {
        for ((volume, disk), said) in &mut self.said {
            let pool = map.volumes.get(volume).and_then(|volume| map.pools.get(&volume.pool));
            let has = |partition: Partition| {
                pool.is_some_and(|pool| {
                    pool.table.row(partition).contains(disk) || is_arriving(pool, *disk, partition)
                })
            };
            let is_out = map.disks.get(disk).is_none_or(|disk| disk.state == DiskState::Out);
            // Of a disk that is out, and of a copy that is there no more, an owner keeps nothing, whatever it has said.
            said.holds = said.holds.iter().filter(|partition| !is_out && has(*partition)).collect();
        }
        let active = |volume: &&lunette_proto::map::Volume| {
            volume.state == VolumeState::Active && volume.generation != Generation(0)
        };
        for volume in map.volumes.values().filter(active) {
            let pool = &map.pools[&volume.pool];
            for (partition, row) in pool.table.rows() {
                let arriving = pool.moves.of(partition).iter().map(|it| &it.to);
                for disk in row.iter().chain(arriving) {
                    let copy = (volume.id, *disk, partition);
                    if map.is_in_sync(volume.pool, *disk, partition) {
                        assert!(row.contains(disk), "{copy:?} counts and is of no row");
                        assert!(!self.missed.contains(&copy), "{copy:?} counts and has missed a write");
                        continue;
                    }
                    let said = self.said.get(&(volume.id, *disk));
                    let takes_part = said.is_some_and(|said| {
                        said.generation == volume.generation && said.holds.contains(partition)
                    });
                    if !takes_part {
                        self.missed.insert(copy);
                    }
                }
            }
        }
    }

    /// What a leader proposes that believes everything it ever heard.
    fn caught_up(
        &self,
        map: &ClusterMap,
        disk: DiskId,
        pool: PoolId,
        partitions: Partitions,
        forget: Option<u64>,
    ) -> Command {
        let of_pool = |volume: &VolumeId| {
            map.volumes.get(volume).is_some_and(|it| it.pool == pool && it.state == VolumeState::Active)
        };
        let said = self.said.iter().filter(|((volume, on), _)| *on == disk && of_pool(volume));
        let said: Vec<_> = said.filter(|((volume, _), _)| Some(volume.0) != forget).collect();
        Command::CaughtUp {
            disk,
            pool,
            partitions: Arc::new(said.iter().fold(partitions, |all, (_, it)| all.intersection(&it.ready))),
            epoch: said.iter().map(|(_, it)| it.epoch).min().unwrap_or(map.epoch),
            owners: said.iter().map(|((volume, _), it)| (*volume, it.generation)).collect(),
        }
    }
}

/// Five nodes, a pool of three copies and one of two, a volume with an owner in each.
fn start() -> State {
    let mut state = cluster();
    let in_second = match volume("b", false) {
        Command::CreateVolume { name, size_bytes, stripe, block_bytes, write_back, export, .. } => {
            let pool = "b".into();
            Command::CreateVolume { name, pool, size_bytes, stripe, block_bytes, write_back, export }
        }
        other => other,
    };
    let commands = [
        node("node4", 4),
        node("node5", 5),
        pool("b", &[2, 3]),
        volume("a", false),
        in_second,
        take(1, 0),
        take(2, 0),
    ];
    for command in commands {
        state.apply(&command).expect("right");
    }
    state
}

/// Whatever was begun ends: half of the moves are given up, the others come to count, and so does all that was behind.
fn end(state: &mut State, world: &mut World) {
    for pool in state.map().pools.values().cloned().collect::<Vec<_>>() {
        let odd = pool.moves.iter().filter(|(partition, _)| partition.0 % 2 == 1);
        let moves: Vec<_> = odd.map(|(partition, it)| (partition, it.to)).collect();
        state
            .apply(&Command::CancelMoves { pool: pool.id, moves })
            .expect("moves that are under way can be given up");
    }
    let out = state.map().disks.values().filter(|disk| disk.state == DiskState::Out);
    for disk in out.map(|disk| disk.id).collect::<Vec<_>>() {
        state.apply(&Command::Return { disk }).expect("it was out");
    }
    world.write(state.map());
    for (pool, disk) in state.map().behind.keys().copied().collect::<Vec<_>>() {
        let owned: Vec<_> = owned_volumes(state.map(), pool).map(|(volume, _)| volume).collect();
        for volume in owned {
            world.say(state.map(), volume, disk, set(u8::MAX));
        }
        let command = world.caught_up(state.map(), disk, pool, set(u8::MAX), None);
        state.apply(&command).expect("all owners have said so");
        check_invariants(state.map());
        world.write(state.map());
    }
    let map = state.map();
    assert!(
        map.behind.is_empty() && map.pools.values().all(|pool| pool.moves.is_empty()),
        "{:?}",
        map.behind
    );
    assert!(map.disks.values().all(|disk| disk.state == DiskState::InSync));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    /// Guards invariants 2 and 3 under everything at once: evictions, returns, owners that change, volumes and pools that come
    /// and go, moves that begin, are given up and end, disks that are emptied and removed, decisions and statements that are
    /// late. No copy counts that has missed a write, never do fewer than min_size
    /// count, what is refused changes nothing, and watchers see the same.
    #[test]
    fn copies_that_count_have_missed_nothing(steps in proptest::collection::vec(steps(), 1..150)) {
        let mut state = start();
        let mut watcher = state.map().clone();
        let mut world = World::default();
        world.write(state.map());
        for step in steps {
            let map = state.map();
            let command = match step {
                Step::Command(command) => command,
                Step::Take(volume) => {
                    take(volume, map.volumes.get(&VolumeId(volume)).map_or(0, |it| it.generation.0))
                }
                Step::Say { volume, disk, partitions } => {
                    world.say(map, VolumeId(volume), DiskId(disk), set(partitions));
                    world.write(map);
                    continue;
                }
                Step::CaughtUp { disk, pool, partitions, forget } => {
                    world.caught_up(map, DiskId(disk), PoolId(pool), set(partitions), forget)
                }
            };
            let before = state.clone();
            match state.apply(&command) {
                Ok(applied) => {
                    if let Command::Evict { disk, seen } = &command {
                        prop_assert_eq!(before.map().disks[disk].state, *seen, "decided about another state");
                    }
                    if let Some(delta) = applied.delta {
                        delta.apply(&mut watcher).expect("the next epoch");
                    }
                }
                Err(_) => prop_assert_eq!(&state, &before),
            }
            prop_assert_eq!(&watcher, state.map());
            check_invariants(state.map());
            world.write(state.map());
        }
        end(&mut state, &mut world);
    }
}

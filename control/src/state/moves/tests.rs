//! The rules of moves, one by one. In every order and beside everything else they are attacked in `in_sync/tests.rs`.

use std::sync::Arc;

use lunette_proto::ids::{DiskId, Epoch, Partition, PoolId};
use lunette_proto::map::{Behind, DiskState, Move};

use super::super::tests::{check_invariants, cluster, node, reason, take, volume};
use super::super::*;

const POOL: PoolId = PoolId(1);

/// Five nodes with a disk each; the pool lies on the first three.
fn five() -> State {
    let mut state = cluster();
    for n in 4..=5 {
        state.apply(&node(&format!("node{n}"), n)).expect("registers");
    }
    state
}

fn add(moves: &[(u32, u32, u32)]) -> Command {
    let step = |(partition, from, to): &(u32, u32, u32)| {
        (Partition(*partition), Move { from: DiskId(*from), to: DiskId(*to) })
    };
    Command::AddMoves { pool: POOL, moves: Arc::new(moves.iter().map(step).collect()) }
}

fn cancel(moves: &[(u32, u32)]) -> Command {
    let moves = moves.iter().map(|(partition, to)| (Partition(*partition), DiskId(*to))).collect();
    Command::CancelMoves { pool: POOL, moves }
}

fn arrived(state: &State, disk: u32, partitions: &[u32]) -> Command {
    Command::CaughtUp {
        disk: DiskId(disk),
        pool: POOL,
        partitions: Arc::new(partitions.iter().copied().map(Partition).collect()),
        epoch: state.map().epoch,
        owners: owned_volumes(state.map(), POOL).collect(),
    }
}

fn evict(state: &State, disk: u32) -> Command {
    Command::Evict { disk: DiskId(disk), seen: state_of(state, disk) }
}

fn drain(disks: &[u32], draining: bool) -> Command {
    Command::DrainDisks { disks: disks.iter().copied().map(DiskId).collect(), draining }
}

fn remove(disk: u32) -> Command {
    Command::RemoveDisk { disk: DiskId(disk) }
}

fn state_of(state: &State, disk: u32) -> DiskState {
    state.map().disks[&DiskId(disk)].state
}

fn behind(state: &State, disk: u32) -> Vec<u32> {
    let behind = state.map().behind.get(&(POOL, DiskId(disk)));
    behind.map(|set| set.partitions.iter().map(|partition| partition.0).collect()).unwrap_or_default()
}

fn row(state: &State, partition: u32) -> Vec<u32> {
    state.map().pools[&POOL].table.row(Partition(partition)).iter().map(|disk| disk.0).collect()
}

fn run(state: &mut State, command: &Command) {
    let mut watcher = state.map().clone();
    let applied = state.apply(command).expect("right");
    if let Some(delta) = applied.delta {
        delta.apply(&mut watcher).expect("the next epoch");
    }
    assert_eq!(&watcher, state.map());
    check_invariants(state.map());
}

fn step(state: &mut State, command: impl FnOnce(&State) -> Command) {
    let command = command(state);
    run(state, &command);
}

/// Guards a move from its first to its last moment: nothing changes in the row until the copy counts, and then one does.
#[test]
fn life_of_a_move() {
    let mut state = five();
    run(&mut state, &add(&[(2, 3, 4), (5, 3, 4), (5, 1, 5)]));
    assert_eq!((behind(&state, 4), behind(&state, 5), behind(&state, 3)), (vec![2, 5], vec![5], vec![]));
    assert_eq!((row(&state, 5), state_of(&state, 4)), (vec![1, 2, 3], DiskState::InSync));
    assert!(!state.map().is_in_sync(POOL, DiskId(4), Partition(5)));
    let version = state.map().pools[&POOL].table.version;

    step(&mut state, |state| arrived(state, 4, &[5, 7]));
    assert_eq!((row(&state, 5), row(&state, 2)), (vec![1, 2, 4], vec![1, 2, 3]));
    assert!(state.map().is_in_sync(POOL, DiskId(4), Partition(5)));
    assert_eq!((behind(&state, 4), state.map().pools[&POOL].table.version), (vec![2], version + 1));
    run(&mut state, &cancel(&[(2, 4), (2, 5), (7, 1)]));
    assert_eq!((behind(&state, 4), row(&state, 2)), (vec![], vec![1, 2, 3]));
    step(&mut state, |state| arrived(state, 5, &[5]));
    assert_eq!(row(&state, 5), [5, 2, 4]);
    assert!(state.map().behind.is_empty() && state.map().pools[&POOL].moves.is_empty());
    let again = state.apply(&cancel(&[(5, 5)])).expect("it is over");
    assert_eq!(again.delta, None);
}

/// Guards against moves that no table could follow: each is refused with its reason, and with it all of its command.
#[test]
fn moves_that_cannot_be() {
    let mut state = five();
    run(&mut state, &add(&[(1, 3, 4)]));
    let problem = |state: &State, moves: &[(u32, u32, u32)]| match state.decide(&add(moves)) {
        Err(Rejection::Move { problem, .. }) => problem,
        other => panic!("{moves:?}: {other:?}"),
    };
    assert_eq!(problem(&state, &[(8, 3, 4)]), MoveProblem::Partition);
    assert_eq!(problem(&state, &[(2, 4, 5)]), MoveProblem::NotThere);
    assert_eq!(problem(&state, &[(1, 3, 5)]), MoveProblem::Leaving);
    assert_eq!(problem(&state, &[(2, 3, 5), (2, 3, 4)]), MoveProblem::Leaving);
    assert_eq!(problem(&state, &[(1, 2, 4)]), MoveProblem::Arriving);
    assert_eq!(problem(&state, &[(1, 2, 1)]), MoveProblem::Arriving);
    assert_eq!(problem(&state, &[(2, 3, 9)]), MoveProblem::Takes);
    run(&mut state, &drain(&[5], true));
    assert_eq!(problem(&state, &[(2, 3, 5)]), MoveProblem::Takes);
    run(&mut state, &drain(&[5], false));
    step(&mut state, |state| evict(state, 5));
    assert_eq!(problem(&state, &[(2, 3, 5)]), MoveProblem::Takes);
    assert_eq!(
        reason(&state, &Command::AddMoves { pool: PoolId(9), moves: Arc::default() }),
        "POOL_NOT_FOUND"
    );
    assert_eq!(reason(&state, &Command::CancelMoves { pool: PoolId(9), moves: vec![] }), "POOL_NOT_FOUND");
    let many = vec![(0, 3, 4); limits::MOVES_PER_COMMAND_MAX + 1];
    assert_eq!(reason(&state, &add(&many)), "LIMIT_REACHED");
}

/// Guards invariant 16 in the middle of moves: a copy that arrives lies in no domain of one that stays or of another that
/// arrives, whichever comes first; and no node goes where that would happen.
#[test]
fn domains_stay_apart_in_every_order() {
    let mut state = five();
    // A second disk of node 1, and one of node 4.
    for (name, uuid) in [("node1", 11), ("node4", 14)] {
        let mut more = node(name, uuid);
        if let Command::RegisterNode { disks, .. } = &mut more {
            disks[0].label = "/another".into();
        }
        run(&mut state, &more);
    }
    assert_eq!(reason(&state, &add(&[(0, 2, 6)])), "MOVE_REFUSED", "node 1 has a copy that stays");
    run(&mut state, &add(&[(0, 1, 6), (0, 2, 4)]));
    assert_eq!(reason(&state, &add(&[(0, 3, 7)])), "MOVE_REFUSED", "node 4 gets one already");
    let Command::RegisterNode { name, address, rack, zone, disks, .. } = node("node4", 4) else {
        unreachable!()
    };
    let moved = Command::RegisterNode { name, address, host: "node3".into(), rack, zone, disks };
    assert_eq!(reason(&state, &moved), "FAILURE_DOMAIN_RULE");
    step(&mut state, |state| arrived(state, 4, &[0]));
    step(&mut state, |state| arrived(state, 6, &[0]));
    assert_eq!(row(&state, 0), [6, 4, 3]);
}

/// Guards a disk that leaves while copies are on their way to it and from it: what it gets is behind and nothing else, what it
/// had is replaced all the same, and it is in sync when it misses nothing of its own.
#[test]
fn disks_leave_in_the_middle() {
    let mut state = five();
    run(&mut state, &add(&[(1, 3, 4), (2, 3, 4)]));
    step(&mut state, |state| evict(state, 4));
    assert_eq!((state_of(&state, 4), behind(&state, 4)), (DiskState::Out, vec![1, 2]));
    assert_eq!(reason(&state, &arrived(&state, 4, &[1])), "DISK_STATE");
    run(&mut state, &Command::Return { disk: DiskId(4) });
    assert_eq!(
        (state_of(&state, 4), behind(&state, 4)),
        (DiskState::InSync, vec![1, 2]),
        "no member of anything"
    );
    step(&mut state, |state| evict(state, 3));
    assert_eq!(behind(&state, 3), (0..8).collect::<Vec<_>>());
    step(&mut state, |state| arrived(state, 4, &[1, 2]));
    assert_eq!((row(&state, 1), behind(&state, 3)), (vec![1, 2, 4], vec![0, 3, 4, 5, 6, 7]));
    step(&mut state, |state| evict(state, 4));
    run(&mut state, &Command::Return { disk: DiskId(4) });
    assert_eq!((state_of(&state, 4), behind(&state, 4)), (DiskState::CatchingUp, vec![1, 2]));
    run(&mut state, &add(&[(0, 3, 4)]));
    step(&mut state, |state| arrived(state, 4, &[1, 2]));
    assert_eq!((state_of(&state, 4), behind(&state, 4)), (DiskState::InSync, vec![0]));
    // The last copy that the other one misses is replaced: it misses nothing any more.
    run(&mut state, &Command::Return { disk: DiskId(3) });
    step(&mut state, |state| arrived(state, 3, &[3, 4, 5, 6, 7]));
    assert_eq!((state_of(&state, 3), behind(&state, 3)), (DiskState::CatchingUp, vec![0]));
    step(&mut state, |state| arrived(state, 4, &[0]));
    assert_eq!((state_of(&state, 3), behind(&state, 3)), (DiskState::InSync, vec![]));
}

/// Guards invariant 3: what owners have said before a copy was asked for may be of one that the disk had before; and what they
/// have done for others stays done.
#[test]
fn said_before_it_was_asked_for() {
    let mut state = five();
    run(&mut state, &volume("v", false));
    run(&mut state, &take(1, 0));
    run(&mut state, &add(&[(1, 3, 4)]));
    let first = state.map().behind[&(POOL, DiskId(4))].clone();
    assert_eq!((first.since, first.grown), (state.map().epoch, state.map().epoch));
    let early = arrived(&state, 4, &[1, 2]);
    run(&mut state, &add(&[(2, 3, 4)]));
    let second = state.map().behind[&(POOL, DiskId(4))].clone();
    assert_eq!((second.since, second.grown), (first.since, state.map().epoch));
    assert_eq!(reason(&state, &early), "SAID_BEFORE");
    step(&mut state, |state| arrived(state, 4, &[1, 2]));
}

/// Guards against a disk that is given up with copies on it, or that would get some the next moment.
#[test]
fn disks_and_nodes_that_are_given_up() {
    let mut state = five();
    let node4 = || Command::RemoveNode { name: "node4".into() };
    assert_eq!(reason(&state, &remove(4)), "NOT_DRAINED");
    assert_eq!(reason(&state, &node4()), "NOT_DRAINED");
    run(&mut state, &add(&[(1, 3, 4)]));
    run(&mut state, &drain(&[3, 4], true));
    let refused = state.decide(&remove(4)).expect_err("a copy is on its way to it");
    assert!(
        refused.to_string().contains("copies of 0 of 8 partitions of pool \"default\", and 1 moves"),
        "{refused}"
    );
    let refused = state.decide(&Command::RemoveNode { name: "node3".into() }).expect_err("it has copies");
    assert!(refused.to_string().contains("copies of 8 of 8 partitions"), "{refused}");
    run(&mut state, &cancel(&[(1, 4)]));
    run(&mut state, &node4());
    assert!(!state.map().disks.contains_key(&DiskId(4)) && state.map().nodes.len() == 4);
    for unknown in [node4(), remove(4), drain(&[4], true)] {
        assert!(matches!(reason(&state, &unknown), "NODE_NOT_FOUND" | "DISK_NOT_FOUND"));
    }
    // One that is out and holds nothing is given up as it is.
    step(&mut state, |state| evict(state, 5));
    run(&mut state, &remove(5));
    // The disk of a wish is no wish again.
    let wish = Command::AddDisk {
        node: "node1".into(),
        path: "/b".into(),
        capacity_bytes: None,
        uuid: lunette_proto::ids::DiskUuid(77),
        replaces: None,
    };
    run(&mut state, &wish);
    let id = *state.map().added.keys().next().expect("the wish");
    let node = lunette_proto::ids::NodeId(1);
    run(&mut state, &Command::DiskAdded { node, disk: id, capacity_bytes: 1 << 30 });
    run(&mut state, &drain(&[id.0], true));
    run(&mut state, &remove(id.0));
    assert!(state.map().added.is_empty());
}

/// Guards a watcher: moves that contradict the rows, or of which nobody says that their copies are behind, are refused.
#[test]
fn maps_are_checked() {
    let mut state = five();
    run(&mut state, &add(&[(1, 3, 4)]));
    let wrong = |change: &dyn Fn(&mut lunette_proto::map::ClusterMap)| {
        let mut map = state.map().clone();
        change(&mut map);
        check_map(&map)
    };
    let with = |partition: u32, from: u32, to: u32| {
        wrong(&move |map| {
            let pool = map.pools.get_mut(&POOL).expect("there");
            let it = Move { from: DiskId(from), to: DiskId(to) };
            Arc::make_mut(&mut pool.moves).insert(Partition(partition), it);
            let partitions = [1, partition].into_iter().map(Partition).collect();
            let behind = Arc::new(Behind { partitions, since: Epoch(1), grown: Epoch(1) });
            map.behind.insert((POOL, DiskId(to)), behind);
        })
    };
    assert_eq!(with(2, 3, 4), Ok(()));
    for (partition, from, to) in [(8, 3, 4), (2, 4, 5), (2, 3, 1), (1, 2, 4), (1, 3, 5), (2, 3, 9)] {
        assert!(with(partition, from, to).is_err(), "{partition}: {from} to {to}");
    }
    assert!(wrong(&|map| drop(map.behind.remove(&(POOL, DiskId(4))))).is_err(), "who makes the copy?");
    assert!(
        wrong(&|map| map.pools.get_mut(&POOL).expect("there").moves = Arc::default()).is_err(),
        "of what?"
    );
}

//! The rules of the state, one by one, and its invariants under random commands.

use std::collections::BTreeMap;
use std::sync::Arc;

use lunette_proto::ids::{ClusterId, DiskId, DiskUuid, GatewayId, Generation, VolumeId};
use lunette_proto::map::{
    Acl, Chap, ChapAlgorithm, ChapCredential, ClusterMap, FailureDomain, Redundancy, Sealed, Stripe, Table,
    UnitState, VolumeState,
};
use proptest::prelude::*;

use super::*;

const GIB: u64 = 1 << 30;

pub(super) fn node(name: &str, uuid: u128) -> Command {
    let disk = NewDisk { uuid: DiskUuid(uuid), label: "/disk".into(), capacity_bytes: 100 * GIB, weight: 0 };
    Command::RegisterNode {
        name: name.into(),
        address: "127.0.0.1:7500".parse().expect("an address"),
        host: String::new(),
        rack: String::new(),
        zone: String::new(),
        disks: vec![disk],
    }
}

pub(super) fn pool(name: &str, disks: &[u32]) -> Command {
    let row: Vec<DiskId> = disks.iter().copied().map(DiskId).collect();
    let width = u8::try_from(row.len()).expect("few");
    Command::CreatePool {
        name: name.into(),
        redundancy: Redundancy::replicated(width),
        failure_domain: FailureDomain::Host,
        table: Arc::new(Table::new(1, width, row.repeat(8))),
    }
}

pub(super) fn volume(name: &str, export: bool) -> Command {
    Command::CreateVolume {
        name: name.into(),
        pool: "default".into(),
        size_bytes: GIB,
        stripe: None,
        block_bytes: 512,
        write_back: false,
        export,
    }
}

/// Gateway 1 becomes the owner of a volume whose generation it has seen.
pub(crate) fn take(volume: u64, seen: u64) -> Command {
    let (volume, seen) = (VolumeId(volume), Generation(seen));
    Command::AssignOwners { owners: Arc::new(vec![NewOwner { volume, seen, gateway: GatewayId(1) }]) }
}

fn gateway() -> Command {
    let portals = vec!["127.0.0.1:3260".parse().expect("an address")];
    Command::RegisterGateway { name: "gw1".into(), portals }
}

/// Three nodes with a disk each, a pool over them, a gateway.
pub(super) fn cluster() -> State {
    let mut state = State::default();
    let commands = [
        Command::Found { cluster: ClusterId(7) },
        node("node1", 1),
        node("node2", 2),
        node("node3", 3),
        pool("default", &[1, 2, 3]),
        gateway(),
    ];
    for command in &commands {
        state.apply(command).expect("a command that is right");
    }
    state
}

pub(super) fn reason(state: &State, command: &Command) -> &'static str {
    state.decide(command).expect_err("a command that is wrong").classify().1
}

/// Guards idempotence: a member that restarts keeps its ids and moves no epoch.
#[test]
fn registering_again_changes_nothing() {
    let mut state = cluster();
    let before = state.clone();
    let again = state.apply(&node("node2", 2)).expect("registers");
    assert_eq!(
        again.response,
        Response::Node { node: lunette_proto::ids::NodeId(2), disks: vec![DiskId(2)] }
    );
    assert_eq!(again.delta, None);
    let again = state.apply(&gateway()).expect("registers");
    assert_eq!(again.response, Response::Gateway { gateway: GatewayId(1), portal_group_tag: 1 });
    assert_eq!(state, before);
    let mut more = node("node2", 22);
    if let Command::RegisterNode { disks, .. } = &mut more {
        disks[0].label = "/another".to_owned();
    }
    state.apply(&more).expect("a second disk");
    assert_eq!(state.map().epoch.0, before.map().epoch.0 + 1);
    assert_eq!(state.map().disks.len(), 4);
}

/// Guards against a wrong value getting in: each has its own reason.
#[test]
fn wrong_values() {
    let state = cluster();
    let sized = |size_bytes| Command::CreateVolume {
        name: "v".into(),
        pool: "default".into(),
        size_bytes,
        stripe: None,
        block_bytes: 512,
        write_back: false,
        export: false,
    };
    assert_eq!(reason(&state, &sized(0)), "SIZE_ZERO");
    assert_eq!(reason(&state, &sized(4097)), "SIZE_UNALIGNED");
    assert_eq!(reason(&state, &sized((1 << 50) + 4096)), "SIZE_TOO_LARGE");
    assert_eq!(reason(&state, &sized(u64::MAX)), "SIZE_TOO_LARGE");
    assert!(state.decide(&sized(1 << 50)).is_ok(), "more than the pool has: volumes are thin");

    let shaped = |unit_bytes, width, block_bytes| Command::CreateVolume {
        name: "v".into(),
        pool: "default".into(),
        size_bytes: GIB,
        stripe: Some(Stripe { unit_bytes, width }),
        block_bytes,
        write_back: false,
        export: false,
    };
    assert_eq!(reason(&state, &shaped(8 << 10, 4, 512)), "STRIPE_UNIT_INVALID");
    assert_eq!(reason(&state, &shaped(2 << 20, 4, 512)), "STRIPE_UNIT_INVALID");
    assert_eq!(reason(&state, &shaped(48 << 10, 4, 512)), "STRIPE_UNIT_INVALID");
    assert_eq!(reason(&state, &shaped(64 << 10, 1, 512)), "STRIPE_WIDTH_INVALID");
    assert_eq!(reason(&state, &shaped(64 << 10, 65, 512)), "STRIPE_WIDTH_INVALID");
    assert_eq!(reason(&state, &shaped(64 << 10, 4, 1024)), "BLOCK_BYTES_INVALID");
    assert!(state.decide(&shaped(64 << 10, 4, 4096)).is_ok());

    assert_eq!(reason(&state, &volume("No", false)), "NAME_INVALID");
    assert_eq!(reason(&state, &node("node4", 0)), "DISK_UUID_INVALID");
    assert_eq!(reason(&state, &node("node2", 77)), "DISK_SWAPPED");
    assert_eq!(reason(&state, &Command::Found { cluster: ClusterId(8) }), "OTHER_CLUSTER");
    assert_eq!(reason(&state, &pool("default", &[1, 2, 3])), "POOL_EXISTS");
    assert_eq!(reason(&state, &pool("p", &[1, 2, 2])), "TABLE_STALE");
    assert_eq!(reason(&state, &pool("p", &[1, 2, 9])), "TABLE_STALE");
    assert_eq!(reason(&state, &pool("p", &[1, 2, 3, 1, 2, 3])), "REPLICAS_INVALID");
    let unreachable = Command::RegisterNode {
        name: "node4".into(),
        address: "0.0.0.0:7500".parse().expect("an address"),
        host: String::new(),
        rack: String::new(),
        zone: String::new(),
        disks: vec![],
    };
    assert_eq!(reason(&state, &unreachable), "ADDRESS_INVALID");
}

/// Guards the hint of an unaligned size: it names the nearest valid one, never 0.
#[test]
fn nearest_size() {
    for (bytes, want) in [(1, 4096), (4095, 4096), (4097, 4096), (6143, 4096), (6144, 8192), (8191, 8192)] {
        let command = Command::ResizeVolume { name: "v".into(), size_bytes: bytes };
        let Err(Rejection::SizeUnaligned { nearest, .. }) = State::default().decide(&command) else {
            panic!("{bytes} is no multiple of 4096")
        };
        assert_eq!(nearest, want, "{bytes}");
    }
}

/// Guards a volume's life: export, mapping, growing, owners, deletion in two steps.
#[test]
fn life_of_a_volume() {
    let mut state = cluster();
    state.apply(&volume("v", true)).expect("creates");
    let iqn = "iqn.2026-11.io.lunette:v";
    assert_eq!(state.map().target_by_iqn(iqn).expect("its target").luns[&0].volume, VolumeId(1));
    assert_eq!(reason(&state, &volume("v", true)), "VOLUME_EXISTS");

    let resize = |size_bytes| Command::ResizeVolume { name: "v".into(), size_bytes };
    state.apply(&resize(2 * GIB)).expect("grows");
    assert_eq!(reason(&state, &resize(GIB)), "SHRINK");

    let epoch = state.map().epoch.0;
    state.apply(&take(1, 0)).expect("takes");
    state.apply(&take(1, 1)).expect("takes again");
    assert_eq!(state.map().volumes[&VolumeId(1)].generation, Generation(2));
    assert_eq!(state.map().epoch.0, epoch + 2);

    let delete = |force| Command::DeleteVolume { name: "v".into(), force };
    assert_eq!(reason(&state, &delete(false)), "VOLUME_MAPPED");
    state.apply(&delete(true)).expect("deletes");
    assert!(state.map().targets.is_empty());
    assert_eq!(state.map().volumes[&VolumeId(1)].state, VolumeState::Deleting);
    assert_eq!(reason(&state, &Command::DeletePool { name: "default".into() }), "POOL_IN_USE");

    state.apply(&volume("v", false)).expect("the name is free at once");
    let purged = |volume, generation| Command::VolumePurged {
        volume: VolumeId(volume),
        generation: Generation(generation),
    };
    assert_eq!(reason(&state, &purged(1, 1)), "NOT_PURGEABLE");
    assert_eq!(reason(&state, &purged(2, 0)), "NOT_PURGEABLE");
    assert_eq!(reason(&state, &purged(9, 1)), "VOLUME_NOT_FOUND");
    state.apply(&purged(1, 2)).expect("purged");
    assert_eq!(state.apply(&purged(1, 2)).expect("told twice").delta, None);
    state.apply(&delete(false)).expect("nobody owned it");
    assert!(state.map().volumes.is_empty());
    state.apply(&Command::DeletePool { name: "default".into() }).expect("empty");
}

/// Guards invariant 36: of two that decide about the same generation one becomes the owner, also in one batch; what is late
/// or gone is left out and holds nothing up.
#[test]
fn one_owner_of_a_generation() {
    let mut state = cluster();
    for gateway in ["gw2", "gw3"] {
        let portals = vec![];
        state.apply(&Command::RegisterGateway { name: gateway.into(), portals }).expect("registers");
    }
    for name in ["a", "b"] {
        state.apply(&volume(name, false)).expect("creates");
    }
    let assign = |owners: &[(u64, u64, u32)]| {
        let new = |(volume, seen, gateway): &(u64, u64, u32)| NewOwner {
            volume: VolumeId(*volume),
            seen: Generation(*seen),
            gateway: GatewayId(*gateway),
        };
        Command::AssignOwners { owners: Arc::new(owners.iter().map(new).collect()) }
    };
    let owner = |state: &State, volume| {
        let owner = state.map().volumes[&VolumeId(volume)].owner.expect("it has one");
        (owner.gateway.0, owner.generation.0)
    };
    state.apply(&assign(&[(1, 0, 1), (1, 0, 2), (2, 7, 2), (2, 0, 2), (9, 0, 1)])).expect("what can be");
    assert_eq!((owner(&state, 1), owner(&state, 2)), ((1, 1), (2, 1)));
    assert_eq!(state.apply(&assign(&[(1, 0, 3), (2, 0, 3)])).expect("late").delta, None);
    state.apply(&assign(&[(1, 1, 3), (2, 0, 3)])).expect("the first");
    assert_eq!((owner(&state, 1), owner(&state, 2)), ((3, 2), (2, 1)));
    assert_eq!(reason(&state, &assign(&[(1, 2, 1), (2, 1, 9)])), "GATEWAY_NOT_FOUND");
    assert_eq!(reason(&state, &assign(&vec![(1, 2, 1); 4097])), "LIMIT_REACHED");
    assert_eq!((owner(&state, 1), owner(&state, 2)), ((3, 2), (2, 1)));
}

/// Guards LUN maps: one volume once, one LUN once, the lowest free number by default.
#[test]
fn lun_maps() {
    let mut state = cluster();
    for name in ["a", "b", "c"] {
        state.apply(&volume(name, false)).expect("creates");
    }
    state.apply(&Command::CreateTarget { iqn: None }).expect("creates");
    let iqn = "IQN.2026-11.io.lunette:TARGET-1";
    let map =
        |volume: &str, lun| Command::MapLun { iqn: iqn.into(), volume: volume.into(), lun, read_only: true };
    state.apply(&map("a", Some(1))).expect("maps");
    state.apply(&map("b", None)).expect("maps");
    assert!(state.map().target_by_iqn(iqn).expect("there").luns[&0].read_only);
    assert_eq!(reason(&state, &map("a", None)), "MAPPED_ALREADY");
    assert_eq!(reason(&state, &map("c", Some(1))), "LUN_TAKEN");
    assert_eq!(reason(&state, &map("c", Some(16_383))), "LUN_INVALID");
    assert_eq!(reason(&state, &map("c", Some(70_000))), "LUN_INVALID");
    assert_eq!(reason(&state, &map("d", None)), "VOLUME_NOT_FOUND");
    let unmap = |volume: &str| Command::UnmapLun { iqn: iqn.into(), volume: volume.into() };
    assert_eq!(reason(&state, &unmap("c")), "NOT_MAPPED");
    state.apply(&unmap("b")).expect("unmaps");
    state.apply(&map("c", None)).expect("the number is free again");
    // A forced delete spares a target that is more than the volume's export.
    state.apply(&Command::DeleteVolume { name: "c".into(), force: true }).expect("deletes");
    assert_eq!(state.map().target_by_iqn(iqn).expect("still there").luns.len(), 1);
}

/// Guards access entries and CHAP: spelled alike they are one, and what is not there cannot go.
#[test]
fn access() {
    let mut state = cluster();
    let iqn = "iqn.2026-11.com.example:t";
    state.apply(&Command::CreateTarget { iqn: Some(iqn.into()) }).expect("creates");
    assert_eq!(reason(&state, &Command::CreateTarget { iqn: Some(iqn.to_uppercase()) }), "TARGET_EXISTS");
    assert_eq!(reason(&state, &Command::CreateTarget { iqn: Some("disk".into()) }), "IQN_INVALID");
    let acl = |initiator: &str| Acl { initiator: initiator.into(), from: None };
    let allow = |initiator: &str| Command::Allow { iqn: iqn.into(), acl: acl(initiator) };
    state.apply(&allow("iqn.*:a")).expect("allows");
    assert_eq!(state.apply(&allow("IQN.*:A")).expect("allows").delta, None);
    assert_eq!(reason(&state, &Command::Deny { iqn: iqn.into(), acl: acl("*") }), "ACL_NOT_FOUND");
    state.apply(&Command::Deny { iqn: iqn.into(), acl: acl("iqn.*:A") }).expect("denies");

    let chap = |user: &str, algorithms: &[ChapAlgorithm]| Command::SetChap {
        iqn: iqn.into(),
        chap: Chap {
            initiator: ChapCredential { user: user.into(), secret: Sealed(vec![1]) },
            target: None,
            algorithms: algorithms.to_vec(),
        },
    };
    assert_eq!(reason(&state, &chap("", &ChapAlgorithm::ALL)), "CHAP_USER_INVALID");
    assert_eq!(reason(&state, &chap("u", &[])), "CHAP_ALGORITHM_INVALID");
    assert_eq!(reason(&state, &chap("u", &[ChapAlgorithm::Md5; 2])), "CHAP_ALGORITHM_INVALID");
    state.apply(&chap("u", &ChapAlgorithm::ALL)).expect("sets");
    state.apply(&Command::ClearChap { iqn: iqn.into() }).expect("clears");
    assert_eq!(state.map().target_by_iqn(iqn).expect("there").chap, None);
}

/// Guards a disk that is added by command: a wish takes part in nothing, and what became of it is for ever.
#[test]
fn life_of_a_wish() {
    let mut state = cluster();
    let wish = |path: &str, uuid| Command::AddDisk {
        node: "node1".into(),
        path: path.into(),
        capacity_bytes: None,
        uuid: DiskUuid(uuid),
        replaces: None,
    };
    let id = |state: &mut State, command: &Command| match state.apply(command).expect("right").response {
        Response::Disk(id) => id,
        other => panic!("{other:?}"),
    };
    let node1 = lunette_proto::ids::NodeId(1);
    let added = |disk| Command::DiskAdded { node: node1, disk, capacity_bytes: GIB };
    let refused = |disk| Command::RefuseDisk { node: node1, disk };

    let first = id(&mut state, &wish("/a", 11));
    assert_eq!(first, DiskId(4));
    assert_eq!(id(&mut state, &wish("/a/", 12)), first, "asked twice");
    assert_eq!(reason(&state, &wish("/a/b", 12)), "DISK_PATH_TAKEN");
    assert_eq!(reason(&state, &wish("/b", 11)), "DISK_UUID_INVALID");
    assert_eq!(reason(&state, &wish("/b", 1)), "DISK_UUID_INVALID");
    assert_eq!(reason(&state, &wish("/b", 0)), "DISK_UUID_INVALID");
    assert_eq!(reason(&state, &pool("p", &[1, 4])), "TABLE_STALE", "no table names what does not serve");
    state.apply(&refused(first)).expect("withdrawn");
    assert!(state.map().added.is_empty());
    assert_eq!(reason(&state, &added(first)), "DISK_NOT_FOUND");

    let second = id(&mut state, &wish("/a", 11));
    assert_eq!(second, DiskId(5), "ids are not used again");
    state.apply(&added(second)).expect("serves");
    let disk = &state.map().disks[&second];
    assert_eq!((disk.uuid, disk.label.as_str(), disk.weight), (DiskUuid(11), "/a", 1024));
    assert_eq!(reason(&state, &refused(second)), "DISK_IN_SERVICE");
    assert_eq!(reason(&state, &wish("/a", 12)), "DISK_PATH_TAKEN");
    state.apply(&pool("p", &[2, 5])).expect("and tables may name it");

    // A configuration that names it has nothing to add; one of another node takes it along.
    state.apply(&node("node1", 11)).expect("the same disk");
    assert!(state.map().added.contains_key(&second));
    state.apply(&node("node4", 11)).expect("carried to another node");
    assert!(!state.map().added.contains_key(&second));
    let third = id(&mut state, &wish("/c", 13));
    state.apply(&node("node4", 13)).expect("carried there before it served");
    assert_eq!(state.map().disks[&third].node, state.map().disks[&second].node);
    assert!(state.map().added.is_empty());
}

/// Guards invariant 16: a node cannot move into another's failure domain, nor a disk to its node.
#[test]
fn domains_stay_apart() {
    let state = cluster();
    let Command::RegisterNode { name, address, rack, zone, disks, .. } = node("node2", 2) else {
        unreachable!()
    };
    let moved = Command::RegisterNode { name, address, host: "node1".into(), rack, zone, disks };
    assert_eq!(reason(&state, &moved), "FAILURE_DOMAIN_RULE");
    assert_eq!(reason(&state, &node("node1", 2)), "FAILURE_DOMAIN_RULE");
}

/// Guards a watcher: a map whose table has another shape than its pool says is refused.
#[test]
fn maps_are_checked() {
    let state = cluster();
    let mut map = state.map().clone();
    assert_eq!(check_map(&map), Ok(()));
    let pool = map.pools.values_mut().next().expect("a pool");
    pool.redundancy = Redundancy::replicated(2);
    assert_eq!(check_map(&map), Err("pool \"default\"".into()));
    let mut map = state.map().clone();
    map.disks.clear();
    assert_eq!(check_map(&map), Err("pool \"default\"".into()));
}

/// Nodes 1 to 4, a pool `a` over two of them, a gateway.
fn small_cluster() -> State {
    let mut state = State::default();
    let nodes = (1..=4).map(|n| node(&format!("node{n}"), n));
    for command in nodes.chain([gateway(), pool("a", &[1, 2])]) {
        state.apply(&command).expect("right");
    }
    state
}

fn names() -> impl Strategy<Value = String> {
    prop_oneof![12 => Just("a"), 6 => Just("b"), 3 => Just("c"), 1 => Just("-"), 1 => Just("")]
        .prop_map(String::from)
}

fn iqns() -> impl Strategy<Value = String> {
    prop_oneof![
        names().prop_map(|name| export_iqn(&name)),
        Just("iqn.2026-11.io.lunette:target-1".to_owned())
    ]
}

pub(super) fn commands() -> impl Strategy<Value = Command> {
    let size = prop_oneof![1 => Just(0), 4 => Just(4096), 4 => Just(8192), 1 => Just(10_000), 4 => Just(GIB)];
    let acl = || Acl { initiator: "iqn.*".into(), from: None };
    prop_oneof![
        2 => (0..5u128).prop_map(|n| node(&format!("node{n}"), n)),
        1 => Just(gateway()),
        1 => (names(), proptest::sample::subsequence(vec![1, 2, 3, 4], 1..=3))
            .prop_map(|(name, disks)| pool(&name, &disks)),
        1 => names().prop_map(|name| Command::DeletePool { name }),
        16 => (names(), names(), size.clone(), any::<bool>()).prop_map(|(name, pool, size_bytes, export)| {
            let write_back = false;
            Command::CreateVolume {
                name,
                pool,
                size_bytes,
                stripe: None,
                block_bytes: 512,
                write_back,
                export,
            }
        }),
        3 => (names(), size).prop_map(|(name, size_bytes)| Command::ResizeVolume { name, size_bytes }),
        4 => (names(), any::<bool>()).prop_map(|(name, force)| Command::DeleteVolume { name, force }),
        4 => (0..9u64, 0..4u64).prop_map(|(volume, generation)| Command::VolumePurged {
            volume: VolumeId(volume),
            generation: Generation(generation)
        }),
        12 => proptest::collection::vec((1..6u64, 0..4u64), 0..6).prop_map(|owners| {
            let gateway = GatewayId(1);
            let new = |(volume, seen)| NewOwner { volume: VolumeId(volume), seen: Generation(seen), gateway };
            Command::AssignOwners { owners: Arc::new(owners.into_iter().map(new).collect()) }
        }),
        3 => proptest::option::of(iqns()).prop_map(|iqn| Command::CreateTarget { iqn }),
        2 => iqns().prop_map(|iqn| Command::DeleteTarget { iqn }),
        6 => (iqns(), names(), proptest::option::of(0..3u32), any::<bool>())
            .prop_map(|(iqn, volume, lun, read_only)| Command::MapLun { iqn, volume, lun, read_only }),
        2 => (iqns(), names()).prop_map(|(iqn, volume)| Command::UnmapLun { iqn, volume }),
        1 => iqns().prop_map(move |iqn| Command::Allow { iqn, acl: acl() }),
        1 => iqns().prop_map(move |iqn| Command::Deny { iqn, acl: acl() }),
        2 => (0..3u8, 20..24u128, proptest::option::of((1..9u32).prop_map(DiskId))).prop_map(|(path, uuid, replaces)| Command::AddDisk {
            node: "node1".into(),
            path: format!("/{path}"),
            capacity_bytes: None,
            uuid: DiskUuid(uuid),
            replaces,
        }),
        1 => (1..3u32, 4..9u32).prop_map(|(node, disk)| Command::DiskAdded {
            node: lunette_proto::ids::NodeId(node),
            disk: DiskId(disk),
            capacity_bytes: GIB,
        }),
        4 => (1..6u64, 1..4u64).prop_map(|(volume, revision)| Command::SetUnitState {
            volume: VolumeId(volume),
            state: Arc::new(UnitState { revision, ..UnitState::default() }),
        }),
        2 => (1..6u64, proptest::option::of(1..3u64), any::<bool>()).prop_map(
            |(volume, generation, write_back)| Command::SetWriteBack {
                volume: VolumeId(volume),
                generation: generation.map(Generation),
                write_back,
            }
        ),
        1 => (iqns(), any::<bool>()).prop_map(|(iqn, draining)| Command::SetDraining { iqn, draining }),
        1 => (1..3u32, 4..9u32).prop_map(|(node, disk)| Command::RefuseDisk {
            node: lunette_proto::ids::NodeId(node),
            disk: DiskId(disk),
        }),
    ]
}

/// References are valid, names are unique, nobody is owned by nobody, and enough copies count.
pub(super) fn check_invariants(map: &ClusterMap) {
    check_map(map).expect("tables fit");
    for pool in map.pools.values() {
        for (partition, row) in pool.table.rows() {
            let counted = row.iter().filter(|disk| map.is_in_sync(pool.id, **disk, partition)).count();
            assert!(counted >= pool.redundancy.min_size().into(), "{partition:?} of pool {}", pool.name);
        }
        let domain = pool.failure_domain;
        assert!(super::pools::keeps_domain_rule(map, domain, &pool.table), "rows of pool {}", pool.name);
        assert!(super::moves::moves_keep_domain_rule(map, pool), "moves of pool {}", pool.name);
    }
    for disk in map.disks.values() {
        assert!(map.nodes.contains_key(&disk.node));
    }
    let mut uuids: Vec<_> = map.disks.values().map(|disk| disk.uuid).collect();
    uuids.extend(map.wishes().map(|wish| wish.uuid));
    let all = uuids.len();
    uuids.sort_unstable_by_key(|uuid| uuid.0);
    uuids.dedup();
    assert_eq!(uuids.len(), all, "one identity, one disk");
    for added in map.added.values() {
        assert!(map.nodes.contains_key(&added.node));
        if let Some(disk) = map.disks.get(&added.id) {
            assert_eq!((disk.uuid, disk.node), (added.uuid, added.node));
        }
    }
    let mut names = BTreeMap::new();
    for volume in map.volumes.values() {
        assert!(map.pools.contains_key(&volume.pool));
        if let Some(owner) = volume.owner {
            assert!(map.gateways.contains_key(&owner.gateway));
            assert_eq!(owner.generation, volume.generation);
        }
        if volume.state == VolumeState::Active {
            assert_eq!(names.insert(&volume.name, volume.id), None);
        }
    }
    for id in map.units.keys() {
        assert_eq!(map.volumes[id].state, VolumeState::Active, "what is deleted keeps nothing");
    }
    let mut iqns = BTreeMap::new();
    for target in map.targets.values() {
        assert_eq!(iqns.insert(&target.iqn, target.id), None);
        for lun in target.luns.values() {
            assert_eq!(map.volumes[&lun.volume].state, VolumeState::Active);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// Guards invariants 1, 3 and 17: ids are never used again, generations and epochs rise, references
    /// hold, a watcher that follows the changes has the same map, and the log replays to an equal state.
    #[test]
    fn random_commands(founded: bool, commands in proptest::collection::vec(commands(), 1..120)) {
        // Half of the runs start with a cluster that can hold volumes, so that the commands get far.
        let mut state = if founded { small_cluster() } else { State::default() };
        let start = state.clone();
        let mut watcher = state.map().clone();
        let mut log = Vec::new();
        let mut generations: BTreeMap<VolumeId, Generation> = BTreeMap::new();
        let (mut volume_max, mut target_max) = (0, 0);
        let mut pool_max = state.map().pools.keys().map(|id| id.0).max().unwrap_or(0);
        for command in commands {
            let before = state.clone();
            let applied = match state.apply(&command) {
                Ok(applied) => applied,
                Err(_) => {
                    prop_assert_eq!(&state, &before, "a refused command changes nothing");
                    continue;
                }
            };
            if let Command::AssignOwners { owners } = &command {
                for (id, old) in &before.map().volumes {
                    let is_due = owners.iter().any(|new| (new.volume, new.seen) == (*id, old.generation));
                    let new = &state.map().volumes[id];
                    prop_assert_eq!(new.generation.0, old.generation.0 + u64::from(is_due));
                    prop_assert!(is_due || new == old, "decided about another generation");
                }
            }
            for (id, unit) in &state.map().units {
                let had = before.map().units.get(id).map_or(0, |unit| unit.revision);
                prop_assert!(unit.revision == had || unit.revision == had + 1, "one revision at a time");
            }
            log.push(command);
            prop_assert_eq!(applied.epoch, state.map().epoch);
            match applied.delta {
                Some(delta) => {
                    prop_assert_ne!(state.map(), before.map());
                    prop_assert_eq!(state.map().epoch.0, before.map().epoch.0 + 1);
                    delta.apply(&mut watcher).expect("the next epoch");
                    prop_assert!(delta.apply(&mut watcher).is_err(), "not twice");
                }
                None => prop_assert_eq!(&state, &before),
            }
            for volume in state.map().volumes.values() {
                if !before.map().volumes.contains_key(&volume.id) {
                    prop_assert!(volume.id.0 > volume_max, "a new id was never used before");
                    volume_max = volume.id.0;
                }
                let last = generations.insert(volume.id, volume.generation).unwrap_or_default();
                prop_assert!(volume.generation >= last);
            }
            for id in state.map().targets.keys().filter(|id| !before.map().targets.contains_key(id)) {
                prop_assert!(id.0 > target_max);
                target_max = id.0;
            }
            for id in state.map().pools.keys().filter(|id| !before.map().pools.contains_key(id)) {
                prop_assert!(id.0 > pool_max);
                pool_max = id.0;
            }
            check_invariants(state.map());
        }
        prop_assert_eq!(&watcher, state.map());
        let mut replayed = start;
        for command in &log {
            replayed.apply(command).expect("it was accepted before");
        }
        prop_assert_eq!(replayed, state);
    }
}

//! Properties of a plan, over clusters drawn at random and changed at random.

mod oracle;

use lunette_placement::{Candidate, Plan, PlanError, PlanRequest, candidates_of, plan};
use lunette_proto::ids::{ClusterId, DiskId, DiskUuid, NodeId, Partition, PoolId};
use lunette_proto::map::{ClusterMap, Disk, DiskState, FailureDomain, Node, Pool, Redundancy, Table};
use proptest::prelude::*;

/// A disk with its zone; each is in a host of its own unless a test says otherwise.
fn candidate(disk: u32, zone: usize, weight: u32) -> Candidate {
    Candidate {
        disk: DiskId(disk),
        weight,
        host: format!("host{disk}"),
        rack: format!("rack{zone}"),
        zone: format!("zone{zone}"),
    }
}

fn request(width: u8, partitions: u32, candidates: &[Candidate]) -> PlanRequest<'static> {
    let candidates = candidates.to_vec();
    PlanRequest { width, partitions, failure_domain: FailureDomain::Zone, candidates, previous: None }
}

fn next<'a>(request: &PlanRequest<'_>, candidates: &[Candidate], previous: &'a Table) -> PlanRequest<'a> {
    PlanRequest {
        width: request.width,
        partitions: request.partitions,
        failure_domain: request.failure_domain,
        candidates: candidates.to_vec(),
        previous: Some(previous),
    }
}

fn domain_of<'a>(request: &'a PlanRequest<'_>, disk: DiskId) -> Option<&'a str> {
    let candidate = request.candidates.iter().find(|candidate| candidate.disk == disk)?;
    match request.failure_domain {
        FailureDomain::Disk => panic!("a disk has no label of its own"),
        FailureDomain::Host => Some(&candidate.host),
        FailureDomain::Rack => Some(&candidate.rack),
        FailureDomain::Zone => Some(&candidate.zone),
    }
}

/// Two disks of a row are the same or share a domain. Disks that are no candidates count for nothing.
fn breaks_rule(request: &PlanRequest<'_>, row: &[DiskId]) -> bool {
    let domains: Vec<&str> = row.iter().filter_map(|&disk| domain_of(request, disk)).collect();
    let collides = |index: usize| domains[..index].contains(&domains[index]);
    (0..domains.len()).any(collides)
}

/// Everything that holds for any plan.
fn check(request: &PlanRequest<'_>, plan: &Plan) {
    let (table, width) = (&plan.table, request.width);
    assert_eq!((table.width(), table.partitions()), (width, request.partitions));
    assert_eq!(table.version, request.previous.map_or(0, |table| table.version) + 1);

    // The rule, with candidates only.
    for (partition, row) in table.rows() {
        assert!(row.iter().all(|&disk| domain_of(request, disk).is_some()), "{partition}: {row:?}");
        assert!(!breaks_rule(request, row), "{partition}: {row:?}");
    }

    // Quotas: the fair share, rounded down or up; for the first disks a row's part of the copies.
    let fair = oracle::fair_shares(request);
    for load in &plan.load.disks {
        let count = table.rows().filter(|(_, row)| row.contains(&load.disk)).count();
        assert_eq!(load.copies as usize, count, "{load:?}");
        let (copies, (share, of)) = (u128::from(load.copies), fair[&load.disk]);
        assert!(copies == share / of || copies == share.div_ceil(of), "{load:?}, its share is {share}/{of}");
        let approximate = share as f64 / of as f64;
        assert!((load.fair - approximate).abs() <= 1e-9 * approximate, "{load:?}, its share is {share}/{of}");
        let first = table.rows().filter(|(_, row)| row[0] == load.disk).count();
        assert_eq!(load.first as usize, first, "{load:?}");
        let part = load.copies / u32::from(width);
        assert!(load.first == part || load.first == load.copies.div_ceil(u32::from(width)), "{load:?}");
    }

    // Moves turn one table into the other, and no more.
    let Some(previous) = request.previous else {
        assert!(plan.moves.is_empty());
        return;
    };
    let mut moves = plan.moves.iter().peekable();
    for (partition, row) in table.rows() {
        let mut old = previous.row(partition).to_vec();
        while let Some(one) = moves.next_if(|one| one.partition == partition) {
            assert!(!old.contains(&one.to), "{one:?}");
            let cell = old.iter_mut().find(|cell| **cell == one.from);
            *cell.unwrap_or_else(|| panic!("{one:?} is from a disk of the row")) = one.to;
        }
        let mut new = row.to_vec();
        old.sort_unstable();
        new.sort_unstable();
        assert_eq!(old, new, "{partition}");
    }
    assert!(moves.next().is_none());
}

/// Any subset of the moves of a partition, if the row before was lawful.
fn check_middle_of_moves(request: &PlanRequest<'_>, plan: &Plan) {
    let previous = request.previous.expect("there is a table to move from");
    for partition in (0..request.partitions).map(Partition) {
        let moves: Vec<_> = plan.moves.iter().filter(|one| one.partition == partition).collect();
        for subset in 0..1_u32 << moves.len() {
            let mut row = previous.row(partition).to_vec();
            for (_, one) in moves.iter().enumerate().filter(|(index, _)| subset >> index & 1 == 1) {
                let cell = row.iter_mut().find(|cell| **cell == one.from);
                *cell.unwrap_or_else(|| panic!("{one:?} is from a disk of the row")) = one.to;
            }
            assert!(!breaks_rule(request, &row), "{partition} on the way: {row:?}");
        }
    }
}

/// Moves are the fewest that these quotas allow, by an independent computation.
fn check_fewest_moves(request: &PlanRequest<'_>, plan: &Plan) {
    let increases: u32 =
        plan.load.disks.iter().map(|load| load.copies.saturating_sub(load.copies_before)).sum();
    assert!(plan.moves.len() >= increases as usize, "fewer moves than disks that gain a copy");
    assert_eq!(plan.moves.len(), oracle::fewest_moves(request, plan));
}

#[derive(Clone, Debug)]
enum Event {
    Add {
        zone: usize,
        weight: u32,
    },
    Remove {
        index: usize,
    },
    Empty {
        index: usize,
    },
    Reweight {
        index: usize,
        weight: u32,
    },
    /// A disk is carried to another zone.
    Relabel {
        index: usize,
        zone: usize,
    },
}

fn weight() -> impl Strategy<Value = u32> {
    prop_oneof![3 => Just(4_u32), 2 => Just(8), 1 => Just(16), 2 => 1..40_u32, 1 => 1_000_000..u32::MAX]
}

fn event(zones: usize, relabel: bool) -> impl Strategy<Value = Event> {
    let index = || 0..64_usize;
    prop_oneof![
        (0..zones, weight()).prop_map(|(zone, weight)| Event::Add { zone, weight }),
        index().prop_map(|index| Event::Remove { index }),
        index().prop_map(|index| Event::Empty { index }),
        (index(), weight()).prop_map(|(index, weight)| Event::Reweight { index, weight }),
        (index(), 0..zones).prop_map(move |(index, zone)| match relabel {
            true => Event::Relabel { index, zone },
            false => Event::Remove { index },
        }),
    ]
}

fn apply(candidates: &mut Vec<Candidate>, event: &Event) {
    let len = candidates.len();
    match *event {
        Event::Add { zone, weight } => {
            let id = candidates.iter().map(|candidate| candidate.disk.0).max().unwrap_or(0) + 1;
            // Not at the end: the order of candidates means nothing.
            candidates.insert(len / 2, candidate(id, zone, weight));
        }
        _ if len == 0 => {}
        Event::Remove { index } => drop(candidates.swap_remove(index % len)),
        Event::Empty { index } => candidates[index % len].weight = 0,
        Event::Reweight { index, weight } => candidates[index % len].weight = weight,
        Event::Relabel { index, zone } => candidates[index % len].zone = format!("zone{zone}"),
    }
}

/// Disks in zones, `width` zones at least.
fn cluster(zones: usize, disks: usize) -> impl Strategy<Value = Vec<Candidate>> {
    prop::collection::vec((0..zones, weight()), 0..disks).prop_map(move |drawn| {
        let every_zone = (0..zones).map(|zone| (zone, 4));
        (1..).zip(every_zone.chain(drawn)).map(|(id, (zone, weight))| candidate(id, zone, weight)).collect()
    })
}

fn cases(cases: u32) -> ProptestConfig {
    // One seed: a failure is the same for everybody.
    let rng_seed = proptest::test_runner::RngSeed::Fixed(16);
    ProptestConfig { cases, rng_seed, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(400))]

    /// Guards the layers of a first table: the rule, the load by weight, even first disks.
    #[test]
    fn first_table(
        (width, candidates) in (1_u8..5).prop_flat_map(|width| {
            (usize::from(width)..8).prop_flat_map(move |zones| (Just(width), cluster(zones, 12)))
        }),
        partitions in 1_u32..300,
    ) {
        let request = request(width, partitions, &candidates);
        let first = plan(&request).unwrap();
        check(&request, &first);

        // The same whoever computes it, and in whatever order the disks are named.
        let mut reversed = request.clone();
        reversed.candidates.reverse();
        prop_assert_eq!(&plan(&reversed).unwrap(), &first);

        // And again with nothing changed.
        let again = next(&request, &candidates, &first.table);
        let second = plan(&again).unwrap();
        check(&again, &second);
        prop_assert!(second.moves.is_empty(), "{} moves", second.moves.len());
        prop_assert!(second.keeps(&first.table), "rows changed their order");
    }

    /// Guards every layer through the life of a cluster, and the middle of each move.
    #[test]
    fn life_of_a_cluster(
        (width, mut candidates, events) in (1_u8..4).prop_flat_map(|width| {
            (usize::from(width)..7).prop_flat_map(move |zones| {
                (Just(width), cluster(zones, 12), prop::collection::vec(event(zones, false), 1..8))
            })
        }),
        partitions in 1_u32..128,
    ) {
        let request = request(width, partitions, &candidates);
        let mut table = plan(&request).unwrap().table;
        for event in events {
            apply(&mut candidates, &event);
            let request = next(&request, &candidates, &table);
            match plan(&request) {
                Ok(plan) => {
                    check(&request, &plan);
                    check_middle_of_moves(&request, &plan);
                    table = plan.table;
                }
                Err(PlanError::TooFewDomains { found, .. }) => prop_assert!(found < usize::from(width)),
                Err(other) => prop_assert!(false, "{other}"),
            }
        }
    }
}

proptest! {
    #![proptest_config(cases(1000))]

    /// Guards the number of moves, also from tables that break the rule because a disk changed
    /// its zone, against an independent flow of minimum cost.
    #[test]
    fn fewest_moves(
        (width, mut candidates, events) in (1_u8..4).prop_flat_map(|width| {
            (usize::from(width)..5).prop_flat_map(move |zones| {
                (Just(width), cluster(zones, 7), prop::collection::vec(event(zones, true), 1..6))
            })
        }),
        partitions in 1_u32..40,
    ) {
        let request = request(width, partitions, &candidates);
        let mut table = plan(&request).unwrap().table;
        for event in events {
            apply(&mut candidates, &event);
            let request = next(&request, &candidates, &table);
            if let Ok(plan) = plan(&request) {
                check(&request, &plan);
                check_fewest_moves(&request, &plan);
                table = plan.table;
            }
        }
    }

    /// Guards the search where chains of moves are the only way: tables that no plan made.
    #[test]
    fn fewest_moves_from_any_table(
        (width, candidates, cells) in (1_u8..4).prop_flat_map(|width| {
            (usize::from(width)..5).prop_flat_map(move |zones| {
                let cells = prop::collection::vec(1_u32..12, usize::from(width) * 24);
                (Just(width), cluster(zones, 7), cells)
            })
        }),
    ) {
        let table = Table::new(7, width, cells.into_iter().map(DiskId).collect());
        let request = request(width, 24, &candidates);
        let request = next(&request, &candidates, &table);
        let plan = plan(&request).unwrap();
        prop_assert_eq!(plan.table.version, 8);
        prop_assert_eq!(plan.moves.len(), oracle::fewest_moves(&request, &plan));
        prop_assert!(plan.table.rows().all(|(_, row)| !breaks_rule(&request, row)));
    }
}

/// Guards the middle of moves where whole rows change: each zone's disk is emptied into new ones, of
/// its own zone and of others.
#[test]
fn rows_that_move_as_a_whole() {
    let before: Vec<Candidate> = (0..4).map(|zone| candidate(zone, zone as usize, 4)).collect();
    let first = plan(&request(3, 256, &before)).unwrap();
    let emptied = before.iter().map(|one| Candidate { weight: 0, ..one.clone() });
    let fresh = (0..8_u32).map(|index| candidate(10 + index, index as usize % 4, 1 + index));
    let after: Vec<Candidate> = emptied.chain(fresh).collect();
    let request = next(&request(3, 256, &after), &after, &first.table);
    let plan = plan(&request).unwrap();
    check(&request, &plan);
    check_middle_of_moves(&request, &plan);
    assert_eq!(plan.moves.len(), 768, "all of it");
}

/// Guards the rule at each level: disks of one host, hosts of one rack.
#[test]
fn every_level_of_domain() {
    let mut candidates = Vec::new();
    for disk in 0..24_u32 {
        let (host, rack, zone) = (disk / 2, disk / 4, disk / 8);
        candidates.push(Candidate {
            disk: DiskId(disk),
            weight: 4 + disk % 3,
            host: format!("h{host}"),
            rack: format!("r{rack}"),
            zone: format!("z{zone}"),
        });
    }
    let domains: [(FailureDomain, u32); 4] = [
        (FailureDomain::Disk, 1),
        (FailureDomain::Host, 2),
        (FailureDomain::Rack, 4),
        (FailureDomain::Zone, 8),
    ];
    for (failure_domain, size) in domains {
        let request = PlanRequest {
            width: 3,
            partitions: 512,
            failure_domain,
            candidates: candidates.clone(),
            previous: None,
        };
        let plan = plan(&request).unwrap();
        for (_, row) in plan.table.rows() {
            let [a, b, c] = [0, 1, 2].map(|column| row[column].0 / size);
            assert!(a != b && b != c && a != c, "{failure_domain:?}: {row:?}");
        }
    }
}

/// Guards zones of unequal size: 8, 8, 4, 2 and 2 hosts can be used in full with three copies,
/// if and only if the large two are in every row.
#[test]
fn unequal_zones_are_used_in_full() {
    let zones = [8, 8, 4, 2, 2];
    let labels = zones.iter().enumerate().flat_map(|(zone, &hosts)| std::iter::repeat_n(zone, hosts));
    let candidates: Vec<Candidate> = (1..).zip(labels).map(|(id, zone)| candidate(id, zone, 4)).collect();
    let request = request(3, 4096, &candidates);
    let plan = plan(&request).unwrap();
    check(&request, &plan);
    assert!(plan.load.disks.iter().all(|load| load.copies == 512), "{:?}", plan.load);
    for (_, row) in plan.table.rows() {
        let domains: Vec<_> = row.iter().map(|&disk| domain_of(&request, disk).unwrap()).collect();
        assert!(domains.contains(&"zone0") && domains.contains(&"zone1"), "{row:?}");
    }
}

/// Guards against copies of one disk whose partners are few: a rebuild would read from these alone.
#[test]
fn partners_are_spread() {
    for disks_per_zone in [1, 4] {
        let candidates: Vec<Candidate> =
            (0..24).map(|id| candidate(id, id as usize / disks_per_zone, 4)).collect();
        let plan = plan(&request(3, 4096, &candidates)).unwrap();
        // 512 rows of a disk, two partners in each, of the disks in other zones.
        let mean = 1024.0 / (24 - disks_per_zone) as f64;
        for disk in (0..24).map(DiskId) {
            let mut together = [0_u32; 24];
            for (_, row) in plan.table.rows().filter(|(_, row)| row.contains(&disk)) {
                for partner in row {
                    together[partner.0 as usize] += 1;
                }
            }
            let zone = |disk: usize| disk / disks_per_zone;
            let others = (0..24).filter(|&other| zone(other) != zone(disk.0 as usize));
            for count in others.map(|other| f64::from(together[other])) {
                // Counts of a random choice deviate by about the root of the mean; five times that.
                assert!((count - mean).abs() < 5.0 * mean.sqrt(), "{disk}: {together:?}");
            }
        }
    }
}

/// Guards against a partition that moves as a whole where others could move a copy each: it would have
/// fewer copies to be read from, and to copy from, on the way.
#[test]
fn moves_are_spread_over_partitions() {
    let before: Vec<Candidate> = (0..12).map(|id| candidate(id, id as usize, 4)).collect();
    let first = plan(&request(3, 4096, &before)).unwrap();
    let after: Vec<Candidate> = (0..15).map(|id| candidate(id, id as usize, 4)).collect();
    let plan = plan(&next(&request(3, 4096, &after), &after, &first.table)).unwrap();
    assert!(plan.moves.len() > 2450, "three disks of fifteen take their share: {}", plan.moves.len());
    let twice = plan.moves.windows(2).filter(|pair| pair[0].partition == pair[1].partition).count();
    assert!(twice <= 40, "{twice} of 4096 partitions move two copies");
}

/// Guards each way to refuse, and the line that an operator reads.
#[test]
fn refusals() {
    let three: Vec<Candidate> = (1..4).map(|id| candidate(id, id as usize, 4)).collect();
    let refusal = |request: &PlanRequest<'_>| plan(request).unwrap_err().to_string();

    let mut hosts = request(3, 64, &three);
    hosts.failure_domain = FailureDomain::Host;
    hosts.candidates[2].weight = 0;
    assert_eq!(refusal(&hosts), "3 copies need 3 hosts, there are 2");
    assert_eq!(refusal(&request(2, 64, &three[..1])), "2 copies need 2 zones, there is 1");
    assert_eq!(refusal(&request(1, 64, &[])), "1 copy needs 1 zone, there are 0");
    assert_eq!(refusal(&request(0, 64, &three)), "a pool keeps at least one copy");
    assert_eq!(refusal(&request(3, 0, &three)), "a pool has 1 to 65536 partitions, not 0");
    assert_eq!(refusal(&request(3, 65_537, &three)), "a pool has 1 to 65536 partitions, not 65537");
    let twice = [three.as_slice(), &three[1..2]].concat();
    assert_eq!(refusal(&request(3, 64, &twice)), "disk-2 is named twice");

    let rows = |version| Table::new(version, 3, [1, 2, 3].repeat(64).into_iter().map(DiskId).collect());
    let (table, last) = (rows(9), rows(u64::MAX));
    assert_eq!(plan(&next(&request(3, 64, &three), &three, &table)).unwrap().table.version, 10);
    let width = next(&request(2, 64, &three), &three, &table);
    assert_eq!(plan(&width).unwrap_err(), PlanError::WidthChanged { previous: 3, requested: 2 });
    let partitions = next(&request(3, 128, &three), &three, &table);
    assert_eq!(plan(&partitions).unwrap_err(), PlanError::PartitionsChanged { previous: 64, requested: 128 });
    assert_eq!(plan(&next(&request(3, 64, &three), &three, &last)).unwrap_err(), PlanError::LastVersion);
}

/// Guards what a plan is made from: labels of the node, disks that have left, a table not made yet.
#[test]
fn from_the_cluster_map() {
    let mut map = ClusterMap { cluster: ClusterId(1), ..ClusterMap::default() };
    for id in 1..=4 {
        let node = Node {
            id: NodeId(id),
            name: format!("n{id}"),
            address: "127.0.0.1:1".parse().unwrap(),
            host: format!("h{id}"),
            rack: "r".to_owned(),
            zone: "z".to_owned(),
        };
        map.nodes.insert(node.id, node);
        let disk = Disk {
            id: DiskId(id),
            uuid: DiskUuid(u128::from(id)),
            node: NodeId(id),
            label: String::new(),
            capacity_bytes: 1 << 40,
            weight: 1 << 20,
            state: if id == 4 { DiskState::Out } else { DiskState::InSync },
            draining: false,
            replaced_by: None,
        };
        map.disks.insert(disk.id, disk);
    }
    let mut pool = Pool {
        id: PoolId(1),
        name: "p".to_owned(),
        redundancy: Redundancy::replicated(3),
        failure_domain: FailureDomain::Host,
        table: std::sync::Arc::new(Table::new(0, 3, Vec::new())),
        moves: std::sync::Arc::default(),
    };
    let absent = |disk: u32| std::collections::BTreeSet::from([DiskId(disk)]);
    let candidates = candidates_of(&map, &absent(4));
    let found: Vec<_> =
        candidates.iter().map(|candidate| (candidate.disk.0, candidate.host.as_str())).collect();
    assert_eq!(found, [(1, "h1"), (2, "h2"), (3, "h3")]);

    let first = plan(&PlanRequest { partitions: 64, ..PlanRequest::of(&map, &pool, &absent(4)) }).unwrap();
    assert_eq!(first.table.version, 1);
    assert!(first.moves.is_empty(), "nothing lies anywhere yet");

    // The fourth comes for the third.
    pool.table = std::sync::Arc::new(first.table);
    let second = plan(&PlanRequest::of(&map, &pool, &absent(3))).unwrap();
    assert_eq!(second.moves.len(), 64);
    assert!(second.moves.iter().all(|one| (one.from, one.to) == (DiskId(3), DiskId(4))));
    // One that is to be emptied is there, and gets nothing.
    map.disks.get_mut(&DiskId(3)).unwrap().draining = true;
    let drained = plan(&PlanRequest::of(&map, &pool, &absent(9))).unwrap();
    assert_eq!(drained.moves, second.moves);
    assert_eq!(drained.load.disks.len(), 4);
}

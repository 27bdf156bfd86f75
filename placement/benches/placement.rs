//! Figures of the ring, printed as a table: `cargo bench -p lunette-placement`.
//!
//! - max/mean: the fullest disk over the mean, by weight, and over what the failure-domain rule allows;
//! - usable: the part of the capacity in use when the first disk is full, of all and of what the rule
//!   allows;
//! - added, removed, re-weighted, +half: copies moved, and that over the fewest there can be, when one
//!   disk is added, removed or doubled in weight, and when every second disk gets another like it beside it.
//!   The fewest is the larger of two bounds: what the fair shares of all disks gain together, before
//!   rounding; and the copies that must change row by row, because their disk is gone or because a domain that
//!   must be in every row now is not in this one. An asterisk marks the second;
//! - plan: time to compute a first table, and the next one after a change (the slowest of the four);
//! - lookups: extent -> hash -> partition -> row, one core, extents of one volume in random order.
//!
//! Partitions are of equal size but for the hash's own spread, so copies stand for bytes.

#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use lunette_placement::{Candidate, Plan, PlanRequest, locate, plan};
use lunette_proto::ids::{DiskId, ExtentId, Namespace, VolumeId};
use lunette_proto::map::{FailureDomain, Table};

const MIB_PER_TB: u32 = 1_000_000_000_000_u64.div_ceil(1 << 20) as u32;
const WIDTH: u8 = 3;

struct Case {
    name: &'static str,
    partitions: u32,
    failure_domain: FailureDomain,
    candidates: Vec<Candidate>,
}

fn main() {
    println!(
        "{:<34} {:>6} {:>6} | {:>8} {:>8} | {:>7} {:>8} | {:>13} {:>13} {:>13} {:>13} | {:>8} {:>8} | {:>9}",
        "cluster (3 copies)",
        "parts",
        "/disk",
        "max/mean",
        "by rule",
        "usable",
        "of rule",
        "added",
        "removed",
        "re-weighted",
        "+half",
        "plan ms",
        "next ms",
        "lookups/s"
    );
    for case in cases() {
        report(&case);
    }
}

fn cases() -> Vec<Case> {
    let case =
        |name, partitions, failure_domain, candidates| Case { name, partitions, failure_domain, candidates };
    let equal: &[u32] = &[8];
    let mixed: &[u32] = &[4, 8, 16, 8, 4, 16, 16];
    let zones = &[8, 8, 4, 2, 2];
    vec![
        case("12 disks, 12 hosts, equal", 4096, FailureDomain::Host, hosts(12, 12, equal)),
        case("12 disks, 12 hosts, 4/8/16 TB", 4096, FailureDomain::Host, hosts(12, 12, mixed)),
        case("12 disks, 4 hosts, 4/8/16 TB", 4096, FailureDomain::Host, hosts(12, 4, mixed)),
        case("60 disks, 15 hosts, equal", 4096, FailureDomain::Host, hosts(60, 15, equal)),
        case("60 disks, 15 hosts, 4/8/16 TB", 4096, FailureDomain::Host, hosts(60, 15, mixed)),
        case("1000 disks, 100 hosts, equal", 65_536, FailureDomain::Host, hosts(1000, 100, equal)),
        case("1000 disks, 100 hosts, 4/8/16 TB", 65_536, FailureDomain::Host, hosts(1000, 100, mixed)),
        case("1000 disks, 100 hosts, 4/8/16 TB", 65_536, FailureDomain::Disk, hosts(1000, 100, mixed)),
        case("1000 disks, 100 hosts, 4/8/16 TB", 65_536, FailureDomain::Rack, hosts(1000, 100, mixed)),
        case("zones 8:8:4:2:2, 24 disks, equal", 4096, FailureDomain::Zone, in_zones(zones, 1, equal)),
        case("zones 8:8:4:2:2, 24, 4/8/16 TB", 4096, FailureDomain::Zone, in_zones(zones, 1, mixed)),
        case("zones 8:8:4:2:2, 960, 4/8/16 TB", 65_536, FailureDomain::Zone, in_zones(zones, 40, mixed)),
        case(
            "zones 9:4:2:2 (one too heavy), 17",
            4096,
            FailureDomain::Zone,
            in_zones(&[9, 4, 2, 2], 1, equal),
        ),
    ]
}

/// Disks dealt to hosts in turn; ten hosts a rack.
fn hosts(disks: u32, hosts: u32, terabytes: &[u32]) -> Vec<Candidate> {
    let sizes = terabytes.iter().cycle();
    let disk = |(id, &terabytes): (u32, &u32)| candidate(id, terabytes, id % hosts, id % hosts / 10, 0);
    (0..disks).zip(sizes).map(disk).collect()
}

/// Zones of so many nodes, each with so many disks.
fn in_zones(nodes: &[u32], disks: u32, terabytes: &[u32]) -> Vec<Candidate> {
    let zones = (0_u32..).zip(nodes).flat_map(|(zone, &nodes)| std::iter::repeat_n(zone, nodes as usize));
    let hosts = (0_u32..).zip(zones).flat_map(|host| std::iter::repeat_n(host, disks as usize));
    let disk = |(id, ((host, zone), &terabytes))| candidate(id, terabytes, host, host, zone);
    (0_u32..).zip(hosts.zip(terabytes.iter().cycle())).map(disk).collect()
}

fn candidate(id: u32, terabytes: u32, host: u32, rack: u32, zone: u32) -> Candidate {
    Candidate {
        disk: DiskId(id),
        weight: terabytes * MIB_PER_TB,
        host: format!("host{host}"),
        rack: format!("rack{rack}"),
        zone: format!("zone{zone}"),
    }
}

fn report(case: &Case) {
    let (first, first_time) = run(case, &case.candidates, None);

    let mut added = case.candidates.clone();
    let like = &case.candidates[case.candidates.len() / 2];
    added.push(Candidate { disk: DiskId(1_000_000), ..like.clone() });
    let mut removed = case.candidates.clone();
    removed.remove(case.candidates.len() / 2);
    let mut reweighted = case.candidates.clone();
    reweighted[case.candidates.len() / 2].weight *= 2;
    let mut grown = case.candidates.clone();
    let twins = case.candidates.iter().step_by(2);
    grown.extend((1_000_000..).zip(twins).map(|(id, like)| Candidate { disk: DiskId(id), ..like.clone() }));

    let mut changes = Vec::new();
    let mut slowest = Duration::ZERO;
    for candidates in [&added, &removed, &reweighted, &grown] {
        let (next, time) = run(case, candidates, Some(&first.table));
        slowest = slowest.max(time);
        let moved = next.moves.len() as f64;
        let (gains, forced) = (fair_gains(&first, &next), forced_moves(case, candidates, &first, &next));
        let mark = if forced > gains { "*" } else { " " };
        changes.push(format!("{moved} {:.3}{mark}", moved / gains.max(forced)));
    }

    let load = &first.load;
    let domain = format!("{:?}", case.failure_domain).to_lowercase();
    println!(
        "{:<34} {:>6} {:>6.0} | {:>8.4} {:>8.4} | {:>6.2}% {:>7.2}% | {:>13} {:>13} {:>13} {:>13} | {:>8.0} {:>8.0} | {:>7.0} M  by {domain}",
        case.name,
        case.partitions,
        f64::from(case.partitions) * f64::from(WIDTH) / case.candidates.len() as f64,
        load.max_over_mean(),
        load.max_over_fair(),
        100.0 * load.usable(),
        100.0 * load.usable() / load.usable_by_rule(),
        changes[0],
        changes[1],
        changes[2],
        changes[3],
        first_time.as_secs_f64() * 1e3,
        slowest.as_secs_f64() * 1e3,
        lookups_per_second(&first.table) / 1e6,
    );
}

fn run(case: &Case, candidates: &[Candidate], previous: Option<&Table>) -> (Plan, Duration) {
    let request = PlanRequest {
        width: WIDTH,
        partitions: case.partitions,
        failure_domain: case.failure_domain,
        candidates: candidates.to_vec(),
        previous,
    };
    let start = Instant::now();
    let plan = plan(black_box(&request)).expect("the clusters above can hold three copies");
    (plan, start.elapsed())
}

/// What fair shares gain, in copies.
fn fair_gains(before: &Plan, after: &Plan) -> f64 {
    let fair: BTreeMap<DiskId, f64> = before.load.disks.iter().map(|load| (load.disk, load.fair)).collect();
    let gain = |disk, now| f64::max(0.0, now - fair.get(&disk).copied().unwrap_or(0.0));
    after.load.disks.iter().map(|load| gain(load.disk, load.fair)).sum()
}

/// Copies that must change, row by row.
fn forced_moves(case: &Case, candidates: &[Candidate], before: &Plan, after: &Plan) -> f64 {
    let label = |candidate: &Candidate| match case.failure_domain {
        FailureDomain::Disk => candidate.disk.to_string(),
        FailureDomain::Host => candidate.host.clone(),
        FailureDomain::Rack => candidate.rack.clone(),
        FailureDomain::Zone => candidate.zone.clone(),
    };
    let domains: BTreeMap<DiskId, String> = candidates.iter().map(|one| (one.disk, label(one))).collect();
    let mut shares: BTreeMap<&String, f64> = BTreeMap::new();
    for load in &after.load.disks {
        *shares.entry(&domains[&load.disk]).or_default() += load.fair;
    }
    shares.retain(|_, share| *share > f64::from(case.partitions) - 1e-6);
    let forced = before.table.rows().map(|(_, row)| {
        let present: Vec<&String> = row.iter().filter_map(|disk| domains.get(disk)).collect();
        let gone = row.len() - present.len();
        gone.max(shares.keys().filter(|domain| !present.contains(domain)).count())
    });
    forced.sum::<usize>() as f64
}

fn lookups_per_second(table: &Table) -> f64 {
    const LOOKUPS: u64 = 50_000_000;
    let namespace = Namespace::volume(VolumeId(1));
    let best = (0..3)
        .map(|_| {
            let start = Instant::now();
            let mut sum = 0_u64;
            for count in 0..LOOKUPS {
                // Scattered, so that rows are not read in the order in which they lie.
                let index = count.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
                let row = locate(table, black_box(ExtentId { namespace, index }));
                sum = sum.wrapping_add(u64::from(row[0].0));
            }
            black_box(sum);
            start.elapsed()
        })
        .min()
        .expect("three rounds");
    LOOKUPS as f64 / best.as_secs_f64()
}

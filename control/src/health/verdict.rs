//! Healthy, degraded or unavailable, and why, in plain words: a pure function of the map and of what
//! members said.
//!
//! A disk that does not answer leaves the in-sync sets, and what is left serves; until then the writes of its partitions wait.
//! It stays where fewer than `min_size` copies would be left: these partitions take no writes until it is back, which is what
//! is unavailable.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Instant;

use lunette_proto::ids::{DiskId, GatewayId, NodeId, PoolId};
use lunette_proto::map::{Behind, ClusterMap, Disk, DiskState, Pool, Volume, VolumeState};

use super::{Member, Registry};
use crate::api::cluster::ScrubReport;
use crate::state::arriving_at;

/// That a disk limps, in words.
#[must_use]
pub fn slowness(registry: &Registry, disk: DiskId, now: Instant) -> Option<String> {
    let (mean_ms, others_ms) = registry.limping(disk, now)?;
    Some(format!("its answers take {mean_ms} ms, those of others {others_ms} ms; see to it, or replace it"))
}

/// How the cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// Every extent at full redundancy, nothing catching up.
    Healthy,
    /// Everything is served, something is missing.
    Degraded,
    /// Something is not served.
    Unavailable,
}

/// How the cluster is and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The worst of all.
    pub health: Health,
    /// A line for each thing that is wrong, the worst first.
    pub reasons: Vec<String>,
}

/// How a disk is: what was committed, or worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It holds every acked write and answers.
    InSync,
    /// It is being brought up to date.
    CatchingUp,
    /// It has left.
    Out,
    /// It has failed and refuses everything.
    Failed,
    /// Its node cannot open it.
    Refused,
    /// It was added by command, and its node has not said yet that it serves it.
    Adding,
    /// Its node is down, or a gateway gets no answers from it.
    Unreachable,
}

impl Condition {
    /// Whether it answers.
    fn answers(self) -> bool {
        match self {
            Self::InSync | Self::CatchingUp => true,
            Self::Out | Self::Failed | Self::Refused | Self::Adding | Self::Unreachable => false,
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InSync => "in-sync",
            Self::CatchingUp => "catching-up",
            Self::Out => "out",
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::Adding => "adding",
            Self::Unreachable => "unreachable",
        })
    }
}

/// How a disk is.
#[must_use]
pub fn condition(registry: &Registry, disk: &Disk, now: Instant) -> Condition {
    let report = registry.disk(disk.node, disk.id);
    let is_up = registry.is_up(Member::Node(disk.node), now);
    if report.is_some_and(|report| report.failed) {
        return Condition::Failed;
    }
    if disk.state == DiskState::Out {
        let is_refused = is_up && report.is_some_and(|report| report.refused);
        return if is_refused { Condition::Refused } else { Condition::Out };
    }
    // What its node says of it comes before what gateways see of that.
    if is_up && report.is_some_and(|report| report.refused) {
        return Condition::Refused;
    }
    // A node that is up and does not speak of a disk does not serve it.
    if !is_up || report.is_none() || registry.is_suspected(disk.id, now) {
        return Condition::Unreachable;
    }
    match disk.state {
        DiskState::InSync => Condition::InSync,
        DiskState::CatchingUp => Condition::CatchingUp,
        DiskState::Out => Condition::Out,
    }
}

/// What its node says is wrong with a disk.
#[must_use]
pub fn trouble(registry: &Registry, node: NodeId, disk: DiskId) -> Option<&str> {
    let report = registry.disk(node, disk)?;
    (!report.reason.is_empty()).then_some(report.reason.as_str())
}

/// How the cluster is.
#[must_use]
pub fn judge(map: &ClusterMap, registry: &Registry, now: Instant) -> Verdict {
    let mut findings = Vec::new();
    let conditions: BTreeMap<DiskId, Condition> =
        map.disks.iter().map(|(id, disk)| (*id, condition(registry, disk, now))).collect();
    for pool in map.pools.values() {
        judge_pool(map, pool, &conditions, &mut findings);
    }
    judge_gateways(map, registry, now, &mut findings);
    judge_owners(map, registry, now, &mut findings);
    judge_nodes(map, registry, now, &mut findings);
    for (id, condition) in &conditions {
        let disk = &map.disks[id];
        let node = map.nodes.get(&disk.node).map_or("?", |node| &node.name);
        let text = match condition {
            Condition::InSync => match slowness(registry, *id, now) {
                Some(slowness) => format!("{id} of node {node} is slow: {slowness}"),
                None => continue,
            },
            // Its node's line says it.
            Condition::Unreachable if !registry.is_up(Member::Node(disk.node), now) => continue,
            Condition::Unreachable => format!("{id} of node {node} does not answer"),
            Condition::Failed => format!("{id} of node {node} has failed{}", because(registry, disk)),
            Condition::Refused => format!("{id} of node {node} cannot be opened{}", because(registry, disk)),
            Condition::Adding => format!("{id} of node {node} is being added"),
            Condition::CatchingUp => {
                format!("{id} of node {node} is catching up{}", progress(map, registry, *id, now))
            }
            Condition::Out => format!("{id} of node {node} is out{}", because(registry, disk)),
        };
        findings.push((Health::Degraded, text));
    }
    judge_damage(map, registry, now, &mut findings);
    // Stable: findings of one severity stay in order.
    findings.sort_by_key(|(health, _)| std::cmp::Reverse(*health));
    Verdict {
        health: findings.first().map_or(Health::Healthy, |(health, _)| *health),
        reasons: findings.into_iter().map(|(_, text)| text).collect(),
    }
}

/// What scrubbers and reads have found bad and nobody has repaired yet.
fn judge_damage(map: &ClusterMap, registry: &Registry, now: Instant, findings: &mut Vec<(Health, String)>) {
    for disk in map.disks.values().filter(|disk| registry.is_up(Member::Node(disk.node), now)) {
        let damaged = registry
            .disk(disk.node, disk.id)
            .and_then(|report| report.scrub.as_ref())
            .map_or(0, damaged_blocks);
        if damaged > 0 {
            let node = map.nodes.get(&disk.node).map_or("?", |node| &node.name);
            let blocks = if damaged == 1 { "block that is" } else { "blocks that are" };
            let text = format!("{} of node {node} has {damaged} damaged {blocks} not repaired", disk.id);
            findings.push((Health::Degraded, text));
        }
    }
    let hopeless = registry.hopeless_blocks(now);
    if hopeless > 0 {
        let have = if hopeless == 1 { "block has" } else { "blocks have" };
        findings
            .push((Health::Degraded, format!("{hopeless} damaged {have} no good copy on any other disk")));
    }
}

/// Blocks that are damaged now.
fn damaged_blocks(scrub: &ScrubReport) -> u64 {
    let ScrubReport { lost_blocks, torn_blocks, misdirected_blocks, .. } = scrub;
    let counts =
        [lost_blocks, torn_blocks, misdirected_blocks, &scrub.stale_blocks, &scrub.unreadable_blocks];
    counts.into_iter().fold(0, |sum, blocks| blocks.saturating_add(sum))
}

fn judge_pool(
    map: &ClusterMap,
    pool: &Pool,
    conditions: &BTreeMap<DiskId, Condition>,
    findings: &mut Vec<(Health, String)>,
) {
    let active = |volume: &&Volume| volume.pool == pool.id && volume.state == VolumeState::Active;
    let volumes = map.volumes.values().filter(active).count();
    // What a pool without volumes does not serve, nobody misses.
    let severity = if volumes > 0 { Health::Unavailable } else { Health::Degraded };
    let min_size = usize::from(pool.redundancy.min_size());
    let width = pool.table.width();
    let (mut short, mut waiting, mut lacking, mut fewest) = (0u32, 0u32, 0u32, usize::from(width));
    let mut waited_for: BTreeMap<DiskId, Condition> = BTreeMap::new();
    for (partition, row) in pool.table.rows() {
        let in_sync = || row.iter().filter(|disk| map.is_in_sync(pool.id, **disk, partition));
        let mut silent = 0;
        for disk in in_sync() {
            let condition = conditions.get(disk).copied().unwrap_or(Condition::Unreachable);
            if !condition.answers() {
                waited_for.insert(*disk, condition);
                silent += 1;
            }
        }
        let counted = in_sync().count();
        if counted - silent < min_size {
            short += 1;
        } else if silent > 0 {
            waiting += 1;
        }
        lacking += u32::from(counted < row.len());
        fewest = fewest.min(counted);
    }
    let (name, partitions) = (&pool.name, pool.table.partitions());
    let disks = list(waited_for.iter().map(|(disk, condition)| format!("{disk} ({condition})")));
    if short > 0 {
        let until = if waited_for.is_empty() { String::new() } else { format!(" until {disks} answers") };
        let text = format!(
            "pool {name}: {short} of {partitions} partitions have fewer than min_size {min_size} copies that answer, and take no writes{until} ({volumes} volumes)"
        );
        findings.push((severity, text));
    }
    if waiting > 0 {
        let text = format!(
            "pool {name}: writes to {waiting} of {partitions} partitions wait until {disks} answers or is out ({volumes} volumes)"
        );
        findings.push((Health::Degraded, text));
    }
    if lacking > 0 {
        let text = format!(
            "pool {name}: {lacking} of {partitions} partitions have fewer than {width} copies in sync, at least {fewest} each"
        );
        findings.push((Health::Degraded, text));
    }
}

fn judge_gateways(map: &ClusterMap, registry: &Registry, now: Instant, findings: &mut Vec<(Health, String)>) {
    let exported = map.targets.values().filter(|target| !target.luns.is_empty()).count();
    let up = map.gateways.keys().filter(|id| registry.is_up(Member::Gateway(**id), now)).count();
    if up == 0 && exported > 0 {
        let text = format!("no gateway is up: none of {exported} targets is served");
        findings.push((Health::Unavailable, text));
    } else if map.gateways.is_empty() {
        findings.push((Health::Degraded, "no gateway has registered yet".to_owned()));
    }
    for gateway in map.gateways.values().filter(|gateway| !registry.is_up(Member::Gateway(gateway.id), now)) {
        findings.push((Health::Degraded, format!("gateway {} is down", gateway.name)));
    }
}

/// Volumes that nobody serves, while a gateway is there that could.
fn judge_owners(map: &ClusterMap, registry: &Registry, now: Instant, findings: &mut Vec<(Health, String)>) {
    let up: BTreeSet<GatewayId> = registry.gateways_up(now).collect();
    if !map.gateways.keys().any(|id| up.contains(id)) {
        return;
    }
    let is_served = |volume: &Volume| volume.owner.is_some_and(|owner| up.contains(&owner.gateway));
    let active = map.volumes.values().filter(|volume| volume.state == VolumeState::Active);
    let unserved: Vec<&Volume> = active.filter(|volume| !is_served(volume)).collect();
    if unserved.is_empty() {
        return;
    }
    let have = if unserved.len() == 1 { "volume has" } else { "volumes have" };
    let names = list(unserved.iter().map(|volume| volume.name.clone()));
    let text = format!("{} {have} no owner that is up: {names}", unserved.len());
    findings.push((Health::Unavailable, text));
}

fn judge_nodes(map: &ClusterMap, registry: &Registry, now: Instant, findings: &mut Vec<(Health, String)>) {
    if map.nodes.is_empty() {
        findings.push((Health::Degraded, "no storage node has registered yet".to_owned()));
    }
    for node in map.nodes.values().filter(|node| !registry.is_up(Member::Node(node.id), now)) {
        findings.push((Health::Degraded, format!("node {} ({}) is down", node.name, node.address)));
    }
}

fn because(registry: &Registry, disk: &Disk) -> String {
    trouble(registry, disk.node, disk.id).map(|reason| format!(": {reason}")).unwrap_or_default()
}

/// How far a disk is that is brought up to date.
fn progress(map: &ClusterMap, registry: &Registry, disk: DiskId, now: Instant) -> String {
    let (behind, partitions) = behind(map, disk);
    let left = registry.catching_up(disk, now).and_then(|all| all.left);
    let left = left.map(|left| format!(", about {} s left", left.as_secs_f64().ceil())).unwrap_or_default();
    format!(": {behind} of {partitions} partitions behind{left}")
}

/// Partitions of which a disk's copies do not count, of those of which it is a member; copies that are on their way to it are
/// neither.
#[must_use]
pub fn behind(map: &ClusterMap, disk: DiskId) -> (usize, usize) {
    let behind = map.behind.iter().filter(|((_, id), _)| *id == disk);
    let rows = map.pools.values().flat_map(|pool| pool.table.rows());
    let missed = |((pool, _), behind): (&(PoolId, DiskId), &std::sync::Arc<Behind>)| {
        let arriving = map.pools.get(pool).map(|pool| arriving_at(pool, disk)).unwrap_or_default();
        behind.partitions.difference(&arriving).len()
    };
    (behind.map(missed).sum(), rows.filter(|(_, row)| row.contains(&disk)).count())
}

/// The first few, and how many more.
fn list(items: impl ExactSizeIterator<Item = String>) -> String {
    const SHOWN: usize = 8;
    let more = items.len().saturating_sub(SHOWN);
    let shown: Vec<String> = items.take(SHOWN).collect();
    let shown = shown.join(", ");
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use lunette_proto::ids::{ClusterId, DiskUuid, Generation, VolumeId};
    use lunette_proto::map::{FailureDomain, Redundancy, Table};

    use super::*;
    use crate::api::cluster::{DiskReport, GatewayReport, LimpingDisk, NodeReport, UnreachableDisk};
    use crate::state::tests::take;
    use crate::state::{Command, NewDisk, State};

    /// Three nodes with a disk each, a pool with an exported volume, a gateway.
    fn cluster() -> State {
        let mut state = State::default();
        let mut run = |command| drop(state.apply(&command).expect("right"));
        run(Command::Found { cluster: ClusterId(1) });
        for node in 1..=3u16 {
            let uuid = DiskUuid(node.into());
            run(Command::RegisterNode {
                name: format!("node{node}"),
                address: ([127, 0, 0, 1], 7500 + node).into(),
                host: String::new(),
                rack: String::new(),
                zone: String::new(),
                disks: vec![NewDisk { uuid, label: "d".into(), capacity_bytes: 1 << 30, weight: 0 }],
            });
        }
        run(Command::RegisterGateway { name: "gw1".into(), portals: vec![] });
        let table = Table::new(1, 3, [1, 2, 3].map(DiskId).repeat(4));
        run(Command::CreatePool {
            name: "default".into(),
            redundancy: Redundancy::replicated(3),
            failure_domain: FailureDomain::Host,
            table: Arc::new(table),
        });
        state
    }

    fn volume(state: &mut State) {
        let command = Command::CreateVolume {
            name: "v".into(),
            pool: "default".into(),
            size_bytes: 4096,
            stripe: None,
            block_bytes: 512,
            write_back: false,
            export: true,
        };
        state.apply(&command).expect("right");
        state.apply(&take(1, 0)).expect("takes");
    }

    /// Everybody reports, disk `failed` (0: none) as failed, the gateway not reaching `unreachable`.
    fn everybody(now: Instant, failed: u32, unreachable_disks: &[u32]) -> Registry {
        let mut registry = Registry::default();
        for node in 1..=3 {
            let disk = DiskReport { disk: node, failed: node == failed, ..DiskReport::default() };
            let stream = registry.open();
            let report = NodeReport { node, disks: vec![disk] };
            registry.node_report(stream, NodeId(node), report, now).expect("new");
        }
        let stream = registry.open();
        let unreachable =
            |disk: &u32| UnreachableDisk { disk: *disk, lasting_ms: 1000, ..Default::default() };
        let unreachable = unreachable_disks.iter().map(unreachable).collect();
        let report = GatewayReport { gateway: 1, unreachable, ..GatewayReport::default() };
        registry.gateway_report(stream, GatewayId(1), report, now).expect("new");
        registry
    }

    /// Guards the first line of `lunette status`: each thing that goes wrong is seen and named.
    #[test]
    fn verdicts() {
        let now = Instant::now();
        let mut state = cluster();
        volume(&mut state);
        let judged = |state: &State, registry: &Registry| judge(state.map(), registry, now);
        let healthy = Verdict { health: Health::Healthy, reasons: vec![] };
        assert_eq!(judged(&state, &everybody(now, 0, &[])), healthy);

        // Two of three answer, and that is enough as soon as the third is out.
        let failed = judged(&state, &everybody(now, 2, &[]));
        assert_eq!(failed.health, Health::Degraded);
        let wait = "pool default: writes to 4 of 4 partitions wait until disk-2 (failed) answers or is out (1 volumes)";
        assert_eq!(failed.reasons, [wait, "disk-2 of node node2 has failed"]);
        let unreachable = judged(&state, &everybody(now, 0, &[3]));
        assert_eq!(unreachable.health, Health::Degraded);
        assert!(unreachable.reasons[0].contains("disk-3 (unreachable)"), "{unreachable:?}");

        let two = judged(&state, &everybody(now, 1, &[3]));
        assert_eq!(two.health, Health::Unavailable);
        let none = "pool default: 4 of 4 partitions have fewer than min_size 2 copies that answer, and take no writes \
                    until disk-1 (failed), disk-3 (unreachable) answers (1 volumes)";
        assert_eq!(two.reasons[0], none);

        let nobody = judged(&state, &Registry::default());
        assert_eq!(nobody.health, Health::Unavailable);
        assert!(nobody.reasons.iter().any(|reason| reason.starts_with("no gateway is up")), "{nobody:?}");
        assert!(nobody.reasons.contains(&"node node1 (127.0.0.1:7501) is down".to_owned()), "{nobody:?}");

        let disk = DiskId(1);
        state.apply(&Command::Evict { disk, seen: DiskState::InSync }).expect("two remain");
        let out = judged(&state, &everybody(now, 0, &[]));
        assert_eq!(out.health, Health::Degraded, "two of three serve: {out:?}");
        let lack = "pool default: 4 of 4 partitions have fewer than 3 copies in sync, at least 2 each";
        assert_eq!(out.reasons, [lack, "disk-1 of node node1 is out"]);
        let last = judged(&state, &everybody(now, 2, &[]));
        assert_eq!(last.health, Health::Unavailable);
        assert!(last.reasons[0].contains("until disk-2 (failed) answers"), "{last:?}");

        state.apply(&Command::Return { disk }).expect("returns");
        let caught_up = Command::CaughtUp {
            disk,
            pool: lunette_proto::ids::PoolId(1),
            partitions: Arc::new([0, 2, 3].map(lunette_proto::ids::Partition).into_iter().collect()),
            epoch: state.map().epoch,
            owners: [(VolumeId(1), Generation(1))].into(),
        };
        state.apply(&caught_up).expect("its owner has said so");
        let back = judged(&state, &everybody(now, 0, &[]));
        assert_eq!(back.health, Health::Degraded);
        let lack = "pool default: 1 of 4 partitions have fewer than 3 copies in sync, at least 2 each";
        let behind = "disk-1 of node node1 is catching up: 1 of 4 partitions behind";
        assert_eq!(back.reasons, [lack, behind]);
    }

    /// Guards volumes that nobody serves against being taken for served, because a gateway is up; and against being said twice.
    #[test]
    fn owners_that_are_down() {
        let now = Instant::now();
        let mut state = cluster();
        volume(&mut state);
        state.apply(&Command::RegisterGateway { name: "gw2".into(), portals: vec![] }).expect("registers");
        let mut registry = everybody(now, 0, &[]);
        let (one, two) = (GatewayId(1), GatewayId(2));
        let report = |gateway: GatewayId| GatewayReport { gateway: gateway.0, ..GatewayReport::default() };
        let second = registry.open();
        registry.gateway_report(second, two, report(two), now).expect("new");
        assert_eq!(judge(state.map(), &registry, now).health, Health::Healthy);
        let first = registry.stream(Member::Gateway(one), now).expect("it is there");
        registry.close(first, now);
        let verdict = judge(state.map(), &registry, now);
        assert_eq!(verdict.health, Health::Unavailable);
        assert_eq!(verdict.reasons, ["1 volume has no owner that is up: v", "gateway gw1 is down"]);
        registry.close(second, now);
        let verdict = judge(state.map(), &registry, now);
        assert_eq!(verdict.reasons.len(), 3, "{verdict:?}");
        assert!(verdict.reasons[0].starts_with("no gateway is up"), "{verdict:?}");
    }

    /// Guards damage against being overlooked: it is no health, until it is repaired; and what a node said before it went
    /// down is not said again.
    #[test]
    fn damage_is_no_health() {
        let now = Instant::now();
        let mut state = cluster();
        volume(&mut state);
        let mut registry = everybody(now, 0, &[]);
        let stream = registry.open();
        let scrub = ScrubReport { torn_blocks: 2, unreadable_blocks: 1, ..ScrubReport::default() };
        let disk = DiskReport { disk: 2, scrub: Some(scrub), ..DiskReport::default() };
        registry
            .node_report(stream, NodeId(2), NodeReport { node: 2, disks: vec![disk] }, now)
            .expect("newer");
        let verdict = judge(state.map(), &registry, now);
        assert_eq!(verdict.health, Health::Degraded);
        assert_eq!(verdict.reasons, ["disk-2 of node node2 has 3 damaged blocks that are not repaired"]);
        let gateway = registry.open();
        let report = GatewayReport { gateway: 1, hopeless_blocks: 1, ..GatewayReport::default() };
        registry.gateway_report(gateway, GatewayId(1), report, now).expect("newer");
        let verdict = judge(state.map(), &registry, now);
        assert_eq!(verdict.reasons[1], "1 damaged block has no good copy on any other disk");
        registry.close(stream, now);
        let verdict = judge(state.map(), &registry, now);
        assert!(verdict.reasons.iter().all(|reason| !reason.contains("not repaired")), "{verdict:?}");
    }

    /// Guards a disk that limps: nobody is out, and all that is written waits for it.
    #[test]
    fn slowness_is_no_health() {
        let now = Instant::now();
        let mut state = cluster();
        volume(&mut state);
        let mut registry = everybody(now, 0, &[]);
        let gateway = registry.open();
        let limping = |mean_ms| LimpingDisk { disk: 2, mean_ms, others_ms: 3 };
        let report = GatewayReport {
            gateway: 1,
            limping: vec![limping(310), limping(400)],
            ..GatewayReport::default()
        };
        registry.gateway_report(gateway, GatewayId(1), report, now).expect("newer");
        let verdict = judge(state.map(), &registry, now);
        assert_eq!(verdict.health, Health::Degraded);
        let [reason] = &verdict.reasons[..] else { panic!("{verdict:?}") };
        assert!(
            reason.starts_with("disk-2 of node node2 is slow: its answers take 400 ms, those of others 3 ms"),
            "{reason}"
        );
    }

    /// Guards an empty pool and an empty cluster: nobody misses what nobody uses.
    #[test]
    fn nothing_to_serve() {
        let now = Instant::now();
        let state = cluster();
        let verdict = judge(state.map(), &Registry::default(), now);
        assert_eq!(verdict.health, Health::Degraded, "{verdict:?}");
        let verdict = judge(State::default().map(), &Registry::default(), now);
        assert_eq!(verdict.health, Health::Degraded);
        assert_eq!(verdict.reasons.len(), 2, "{verdict:?}");
    }

    /// Guards the length of a line: many disks are counted, not listed.
    #[test]
    fn long_lists() {
        assert_eq!(list((0..3).map(|n| n.to_string())), "0, 1, 2");
        assert_eq!(list((0..10).map(|n| n.to_string())), "0, 1, 2, 3, 4, 5, 6, 7 and 2 more");
    }
}

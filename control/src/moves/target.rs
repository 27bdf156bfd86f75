//! The table that a pool should have, and the moves that lead to it.

use std::collections::{BTreeMap, BTreeSet};

use lunette_placement::{Candidate, PlanError, PlanRequest, plan};
use lunette_proto::ids::{DiskId, Partition};
use lunette_proto::map::{ClusterMap, FailureDomain, Move, Pool, Table};

/// The table that a pool should have, for these candidates.
///
/// Moves that are under way are kept where they still serve: of a disk that has to give so many copies away, those that are on
/// their way are the first. Those of a disk that has to give none away, because it is back or is not to be emptied after all,
/// are not.
pub(super) fn target(pool: &Pool, candidates: &[Candidate]) -> Result<Table, PlanError> {
    let request = |previous| PlanRequest {
        width: pool.redundancy.width(),
        partitions: pool.table.partitions(),
        failure_domain: pool.failure_domain,
        candidates: candidates.to_vec(),
        previous: Some(previous),
    };
    let first = plan(&request(&pool.table))?.table;
    if pool.moves.is_empty() {
        return Ok(first);
    }
    let takes: BTreeSet<DiskId> =
        candidates.iter().filter(|candidate| candidate.weight > 0).map(|candidate| candidate.disk).collect();
    let mut surplus = copies(&pool.table);
    for (disk, keeps) in copies(&first) {
        let held = surplus.entry(disk).or_default();
        *held = held.saturating_sub(keeps);
    }
    let mut as_if_done = Table::clone(&pool.table);
    for (partition, it) in pool.moves.iter() {
        let surplus = surplus.entry(it.from).or_default();
        if *surplus > 0 && takes.contains(&it.to) {
            *surplus -= 1;
            as_if_done.replace(partition, it);
        }
    }
    Ok(plan(&request(&as_if_done))?.table)
}

/// How many copies each disk has.
pub(super) fn copies(table: &Table) -> BTreeMap<DiskId, u64> {
    let mut copies = BTreeMap::new();
    for disk in table.rows().flat_map(|(_, row)| row) {
        *copies.entry(*disk).or_default() += 1;
    }
    copies
}

/// What leads from a pool as it is to another table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Steps {
    /// Moves under way that lead elsewhere.
    pub(super) cancelled: Vec<(Partition, DiskId)>,
    /// Moves that are not under way yet.
    pub(super) due: Vec<(Partition, Move)>,
}

/// What is left to be done.
pub(super) fn steps(map: &ClusterMap, pool: &Pool, target: &Table) -> Steps {
    let domains = Domains::of(map, pool.failure_domain);
    let mut steps = Steps::default();
    for ((partition, row), (_, wanted)) in pool.table.rows().zip(target.rows()) {
        let moves = pool.moves.of(partition);
        if row == wanted && moves.is_empty() {
            continue;
        }
        let serves = |it: &Move| wanted.contains(&it.to) && !wanted.contains(&it.from);
        let cancelled = moves.iter().filter(|it| !serves(it)).map(|it| (partition, it.to));
        steps.cancelled.extend(cancelled);
        let kept = || moves.iter().filter(|it| serves(it));
        let is_leaving = |disk: &DiskId| !wanted.contains(disk) && !kept().any(|it| it.from == *disk);
        let is_entering = |disk: &DiskId| !row.contains(disk) && !kept().any(|it| it.to == *disk);
        let mut leaving: Vec<DiskId> = row.iter().copied().filter(is_leaving).collect();
        let mut entering: Vec<DiskId> = wanted.iter().copied().filter(is_entering).collect();
        // In place of the one in its own domain, if there is one: then they may arrive in any order (invariant 16).
        leaving.retain(|from| {
            let own = entering.iter().position(|to| domains.is_same(*from, *to));
            if let Some(index) = own {
                steps.due.push((partition, Move { from: *from, to: entering.remove(index) }));
            }
            own.is_none()
        });
        let pairs = leaving.into_iter().zip(entering);
        steps.due.extend(pairs.map(|(from, to)| (partition, Move { from, to })));
    }
    steps
}

/// The failure domains of all disks, looked up once.
struct Domains<'a>(BTreeMap<DiskId, (u32, &'a str)>);

impl<'a> Domains<'a> {
    fn of(map: &'a ClusterMap, domain: FailureDomain) -> Self {
        let domain_of = |disk: &DiskId| crate::state::domain_of(map, domain, *disk);
        Self(map.disks.keys().filter_map(|disk| Some((*disk, domain_of(disk)?))).collect())
    }

    fn is_same(&self, one: DiskId, other: DiskId) -> bool {
        self.0.get(&one).is_some_and(|domain| self.0.get(&other) == Some(domain))
    }
}

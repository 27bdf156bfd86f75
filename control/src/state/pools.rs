//! Pools: their shape, and whether a table fits the disks there are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lunette_proto::ids::{DiskId, PoolId};
use lunette_proto::limits::{PARTITIONS_MAX, REPLICAS_MAX};
use lunette_proto::map::{ClusterMap, Disk, DiskState, FailureDomain, Pool, Redundancy, Table};

use super::limits::POOLS_MAX;
use super::names::check_name;
use super::{Change, Draft, NameKind, Rejection, Response, take};

impl Draft<'_> {
    pub(super) fn create_pool(
        &mut self,
        name: &str,
        redundancy: Redundancy,
        failure_domain: FailureDomain,
        table: &Arc<Table>,
    ) -> Result<Response, Rejection> {
        check_name(NameKind::Pool, name)?;
        // The width first: a table that came from elsewhere may have none, and cannot be counted then.
        let fits = table.width() > 0 && table.width() == redundancy.width();
        if !fits {
            return Err(Rejection::Table { pool: name.to_owned() });
        }
        check_shape(redundancy.width().into(), redundancy.min_size().into(), table.partitions())?;
        if self.map.pool_by_name(name).is_some() {
            return Err(Rejection::Exists { kind: NameKind::Pool, name: name.to_owned() });
        }
        if self.map.pools.len() >= POOLS_MAX {
            return Err(Rejection::TooMany { what: "pools".into(), max: POOLS_MAX });
        }
        // The disks may have changed since the leader computed the table. What is written to a pool from its first moment on
        // is on all members: none may be one that is out, or comes back.
        let takes = |disk: &Disk| disk.state == DiskState::InSync && !disk.draining;
        let in_sync = |disk| self.map.disks.get(disk).is_some_and(takes);
        let serve = table.rows().all(|(_, row)| row.iter().all(in_sync));
        if !serve || !keeps_domain_rule(self.map, failure_domain, table) {
            return Err(Rejection::Table { pool: name.to_owned() });
        }
        let id = PoolId(take(&mut self.next.pool)?);
        let (table, moves) = (Arc::clone(table), Arc::default());
        let name = name.to_owned();
        self.put(Change::PutPool(Pool { id, name, redundancy, failure_domain, table, moves }));
        Ok(Response::Pool(id))
    }

    pub(super) fn delete_pool(&mut self, name: &str) -> Result<Response, Rejection> {
        let pool = self.map.pool_by_name(name);
        let pool = pool.ok_or_else(|| Rejection::NotFound { kind: NameKind::Pool, name: name.to_owned() })?;
        let volumes = self.map.volumes.values().filter(|volume| volume.pool == pool.id).count();
        if volumes > 0 {
            return Err(Rejection::PoolInUse { name: name.to_owned(), volumes });
        }
        let id = pool.id;
        self.forget_pool(id);
        self.put(Change::RemovePool(id));
        Ok(Response::Done)
    }
}

/// Whether a pool may have this many copies, smallest set and partitions; 0 is no default here.
pub fn check_shape(replicas: u32, min_size: u32, partitions: u32) -> Result<(), Rejection> {
    let copies = u8::try_from(replicas).ok().filter(|copies| (1..=REPLICAS_MAX).contains(copies));
    let Some(copies) = copies else { return Err(Rejection::Replicas { replicas }) };
    if !(1..=replicas).contains(&min_size) {
        return Err(Rejection::MinSize { min_size, replicas: copies });
    }
    if !(1..=PARTITIONS_MAX).contains(&partitions) {
        return Err(Rejection::Partitions { partitions });
    }
    Ok(())
}

/// Whether all disks of a table exist and no row has two in one failure domain (invariant 16).
pub(super) fn keeps_domain_rule(map: &ClusterMap, domain: FailureDomain, table: &Table) -> bool {
    table.rows().all(|(_, row)| {
        let mut domains = BTreeSet::new();
        row.iter().all(|disk| domain_of(map, domain, *disk).is_some_and(|domain| domains.insert(domain)))
    })
}

/// The failure domain that a disk lies in. Names are compared alone, as placement does: two racks of
/// one name in two zones count as one.
pub(crate) fn domain_of(map: &ClusterMap, domain: FailureDomain, disk: DiskId) -> Option<(u32, &str)> {
    let node = map.node_of(disk)?;
    Some(match domain {
        FailureDomain::Disk => (disk.0, ""),
        FailureDomain::Host => (0, &node.host),
        FailureDomain::Rack => (0, &node.rack),
        FailureDomain::Zone => (0, &node.zone),
    })
}

/// Bytes of volumes that fit on a pool's disks, with all copies: the disk that is full first, by the
/// share of the partitions that it carries, is the measure. Disks shared with other pools count whole.
#[must_use]
pub fn usable_bytes(map: &ClusterMap, pool: &Pool) -> u64 {
    let mut cells: BTreeMap<DiskId, u64> = BTreeMap::new();
    for (_, row) in pool.table.rows() {
        for disk in row {
            *cells.entry(*disk).or_default() += 1;
        }
    }
    let partition_bytes = cells
        .iter()
        .map(|(disk, cells)| map.disks.get(disk).map_or(0, |disk| disk.capacity_bytes / cells))
        .min()
        .unwrap_or(0);
    partition_bytes.saturating_mul(pool.table.partitions().into())
}

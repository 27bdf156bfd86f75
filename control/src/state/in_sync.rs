//! Which copies count: disks that leave, return and catch up.
//!
//! ```text
//!           Evict: all its copies are behind          CaughtUp: some are equal again
//!   InSync ---------------------------------> Out      .-----------.
//!      ^                                      | ^      |           |
//!      |                              Return  | | Evict|           |
//!      |                                      v |      v           |
//!      '---------- the last copy -----------  CatchingUp <---------'
//! ```
//!
//! Copies that are on their way to a disk (`moves`) are behind, too, and come to count in the same way; but a disk is what it is
//! by the copies of which it is a member.
//!
//! Whoever decides names what it has seen, and a decision that is late does nothing: an eviction the state that the disk had,
//! what is said of copies the map under which it was said.

use std::collections::BTreeMap;
use std::sync::Arc;

use lunette_proto::ids::{DiskId, Epoch, Generation, Partition, PoolId, VolumeId};
use lunette_proto::map::{Behind, ClusterMap, Disk, DiskState, Partitions, Pool, VolumeState};

use super::moves::{arriving_at, is_arriving};
use super::{Change, Draft, Rejection, Response};

impl Draft<'_> {
    /// Invariants 2 and 3: before any ack that it misses, and never so that fewer than `min_size` count.
    pub(super) fn evict(&mut self, id: DiskId, seen: DiskState) -> Result<Response, Rejection> {
        let map = self.map;
        let disk = self.known(id)?;
        if disk.state == DiskState::Out || disk.state != seen {
            return Err(Rejection::DiskState { disk: id, state: disk.state });
        }
        for pool in map.pools.values() {
            let min_size = usize::from(pool.redundancy.min_size());
            let is_short = |(partition, row): &(Partition, &[DiskId])| {
                let others = row.iter().filter(|other| **other != id);
                row.contains(&id)
                    && map.is_in_sync(pool.id, id, *partition)
                    && others.filter(|other| map.is_in_sync(pool.id, **other, *partition)).count() < min_size
            };
            let short = pool.table.rows().filter(is_short).count();
            if short > 0 {
                return Err(Rejection::BelowMinSize {
                    disk: id,
                    pool: pool.name.clone(),
                    short,
                    partitions: pool.table.partitions(),
                    min_size: pool.redundancy.min_size(),
                });
            }
        }
        let since = self.epoch();
        for pool in map.pools.values() {
            // Those that are on their way to it are behind as well, and count for nothing above.
            let partitions: Partitions =
                member_of(pool, id).iter().chain(arriving_at(pool, id).iter()).collect();
            if !partitions.is_empty() {
                self.put(Change::PutBehind(
                    pool.id,
                    id,
                    Arc::new(Behind { partitions, since, grown: since }),
                ));
            }
        }
        self.set_state(disk, DiskState::Out);
        Ok(Response::Done)
    }

    /// It is back. What it has missed it still misses.
    pub(super) fn return_disk(&mut self, id: DiskId) -> Result<Response, Rejection> {
        let map = self.map;
        let disk = self.known(id)?;
        if disk.state != DiskState::Out {
            return Err(Rejection::DiskState { disk: id, state: disk.state });
        }
        let since = self.epoch();
        let mut state = DiskState::InSync;
        for ((pool, _), behind) in map.behind.iter().filter(|((_, disk), _)| *disk == id) {
            let partitions = behind.partitions.clone();
            self.put(Change::PutBehind(*pool, id, Arc::new(Behind { partitions, since, grown: since })));
            if misses(map, *pool, id, &behind.partitions) {
                state = DiskState::CatchingUp;
            }
        }
        self.set_state(disk, state);
        Ok(Response::Done)
    }

    /// Invariant 3: only what the present owner of every volume that anybody has written to has said, and not before the disk
    /// returned, or was given the last of these copies to make. A copy that is made takes its place in the row (`moves`).
    pub(super) fn caught_up(
        &mut self,
        id: DiskId,
        pool: PoolId,
        partitions: &Partitions,
        epoch: Epoch,
        owners: &BTreeMap<VolumeId, Generation>,
    ) -> Result<Response, Rejection> {
        let disk = self.known(id)?;
        // What is not behind any more was said twice.
        let Some(behind) = self.map.behind.get(&(pool, id)) else { return Ok(Response::Done) };
        if disk.state == DiskState::Out {
            return Err(Rejection::DiskState { disk: id, state: disk.state });
        }
        let since = behind.since.max(behind.grown);
        if epoch < since {
            return Err(Rejection::SaidBefore { disk: id, since, epoch });
        }
        let map = self.map;
        let unheard =
            owned_volumes(map, pool).find(|(volume, generation)| owners.get(volume) != Some(generation));
        if let Some((volume, generation)) = unheard {
            return Err(Rejection::NotReady { disk: id, volume, generation });
        }
        let Some(of) = map.pools.get(&pool) else { return Err(Rejection::NoPool(pool)) };
        let counted = behind.partitions.intersection(partitions);
        if counted.is_empty() {
            return Ok(Response::Done);
        }
        let left = behind.partitions.difference(partitions);
        if left.is_empty() {
            self.put(Change::RemoveBehind(pool, id));
        } else {
            let left = Behind { partitions: left, ..**behind };
            self.put(Change::PutBehind(pool, id, Arc::new(left)));
        }
        self.settle(id, pool);
        let arrived = counted.intersection(&arriving_at(of, id));
        if !arrived.is_empty() {
            self.arrive(of, id, arrived);
        }
        Ok(Response::Done)
    }

    /// Nobody can miss anything in a pool that is no more.
    pub(super) fn forget_pool(&mut self, pool: PoolId) {
        let disks: Vec<DiskId> =
            self.map.behind.keys().filter(|(of, _)| *of == pool).map(|(_, disk)| *disk).collect();
        for disk in disks {
            self.put(Change::RemoveBehind(pool, disk));
            self.settle(disk, pool);
        }
    }

    /// A disk that catches up is in sync when it misses nothing of what it is a member of: in a pool by the change to it that
    /// was just put, in others as it is.
    pub(super) fn settle(&mut self, id: DiskId, pool: PoolId) {
        let map = self.map;
        let Some(disk) = map.disks.get(&id).filter(|disk| disk.state == DiskState::CatchingUp) else {
            return;
        };
        let changed = self.changes.iter().rev().find_map(|change| match change {
            Change::PutBehind(of, on, behind) if (*of, *on) == (pool, id) => Some(behind.partitions.clone()),
            Change::RemoveBehind(of, on) if (*of, *on) == (pool, id) => Some(Partitions::default()),
            _ => None,
        });
        let left = changed.unwrap_or_default();
        let elsewhere = map.behind.iter().filter(|((of, disk), _)| *disk == id && *of != pool);
        let mut elsewhere = elsewhere.map(|((of, _), behind)| misses(map, *of, id, &behind.partitions));
        if !misses(map, pool, id, &left) && !elsewhere.any(|misses| misses) {
            self.set_state(disk, DiskState::InSync);
        }
    }

    fn set_state(&mut self, disk: &Disk, state: DiskState) {
        self.put(Change::PutDisk(Disk { state, ..disk.clone() }));
    }
}

impl<'a> Draft<'a> {
    pub(super) fn known(&self, id: DiskId) -> Result<&'a Disk, Rejection> {
        let map: &'a ClusterMap = self.map;
        map.disks.get(&id).ok_or(Rejection::NoDisk(id))
    }
}

/// Whether a disk is a member of one of these partitions, which are behind on it; of the others it is to become one.
fn misses(map: &ClusterMap, pool: PoolId, disk: DiskId, behind: &Partitions) -> bool {
    let Some(pool) = map.pools.get(&pool) else { return false };
    behind.iter().any(|partition| !is_arriving(pool, disk, partition))
}

/// The partitions of which a disk is a member.
pub(super) fn member_of(pool: &Pool, disk: DiskId) -> Partitions {
    pool.table.rows().filter(|(_, row)| row.contains(&disk)).map(|(partition, _)| partition).collect()
}

/// Volumes of a pool that somebody may have written to and that still matter, each with its present generation: their owners
/// all have to say that a copy is equal before it counts.
pub fn owned_volumes(map: &ClusterMap, pool: PoolId) -> impl Iterator<Item = (VolumeId, Generation)> {
    map.volumes
        .values()
        .filter(move |volume| {
            volume.pool == pool && volume.state == VolumeState::Active && volume.generation != Generation(0)
        })
        .map(|volume| (volume.id, volume.generation))
}

#[cfg(test)]
mod tests;

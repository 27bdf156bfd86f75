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
//! Whoever decides names what it has seen, and a decision that is late does nothing: an eviction the state that the disk had,
//! what is said of copies the map under which it was said.

use std::collections::BTreeMap;
use std::sync::Arc;

use lunette_proto::ids::{DiskId, Epoch, Generation, Partition, PoolId, VolumeId};
use lunette_proto::map::{Behind, ClusterMap, Disk, DiskState, Partitions, Pool, VolumeState};

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
            let partitions = member_of(pool, id);
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
            state = DiskState::CatchingUp;
        }
        self.set_state(disk, state);
        Ok(Response::Done)
    }

    /// Invariant 3: only what the present owner of every volume that anybody has written to has said, and not before the disk
    /// returned.
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
        if disk.state != DiskState::CatchingUp {
            return Err(Rejection::DiskState { disk: id, state: disk.state });
        }
        if epoch < behind.since {
            return Err(Rejection::SaidBefore { disk: id, since: behind.since, epoch });
        }
        let map = self.map;
        let unheard =
            owned_volumes(map, pool).find(|(volume, generation)| owners.get(volume) != Some(generation));
        if let Some((volume, generation)) = unheard {
            return Err(Rejection::NotReady { disk: id, volume, generation });
        }
        let left = behind.partitions.difference(partitions);
        if left.is_empty() {
            self.put(Change::RemoveBehind(pool, id));
            self.in_sync_without(id, pool);
        } else {
            let left = Behind { partitions: left, ..**behind };
            self.put(Change::PutBehind(pool, id, Arc::new(left)));
        }
        Ok(Response::Done)
    }

    /// Nobody can miss anything in a pool that is no more.
    pub(super) fn forget_pool(&mut self, pool: PoolId) {
        let disks: Vec<DiskId> =
            self.map.behind.keys().filter(|(of, _)| *of == pool).map(|(_, disk)| *disk).collect();
        for disk in disks {
            self.put(Change::RemoveBehind(pool, disk));
            if self.map.disks.get(&disk).is_some_and(|disk| disk.state == DiskState::CatchingUp) {
                self.in_sync_without(disk, pool);
            }
        }
    }

    /// A disk that catches up is in sync if it misses nothing in other pools.
    fn in_sync_without(&mut self, id: DiskId, pool: PoolId) {
        let map = self.map;
        let misses = map.behind.keys().any(|(other, disk)| *disk == id && *other != pool);
        if let Some(disk) = map.disks.get(&id).filter(|_| !misses) {
            self.set_state(disk, DiskState::InSync);
        }
    }

    fn set_state(&mut self, disk: &Disk, state: DiskState) {
        self.put(Change::PutDisk(Disk { state, ..disk.clone() }));
    }
}

impl<'a> Draft<'a> {
    fn known(&self, id: DiskId) -> Result<&'a Disk, Rejection> {
        let map: &'a ClusterMap = self.map;
        map.disks.get(&id).ok_or(Rejection::NoDisk(id))
    }
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

//! What a committed command changed, as whole entries of the map: a watcher puts them in place and
//! needs to know no rule, and the store writes exactly these rows. Only moves are parts of an entry: a pool is large.

use std::sync::Arc;

use lunette_proto::ids::{ClusterId, DiskId, Epoch, NodeId, Partition, PoolId, TargetId, VolumeId};
use lunette_proto::map::{
    AddedDisk, Behind, Chap, ClusterMap, Disk, DiskState, Gateway, Joins, Move, Node, Partitions, Pool,
    Target, UnitState, Volume,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::in_sync::member_of;
use super::moves::{are_sound, arriving_at, is_arriving};

/// One entry of the map that is new, different or gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// Whose map this is; the first change of all.
    Cluster(ClusterId),
    /// A node as it is now.
    PutNode(Node),
    /// A disk as it is now.
    PutDisk(Disk),
    /// A gateway as it is now.
    PutGateway(Gateway),
    /// A pool as it is now.
    PutPool(Pool),
    /// A pool that is no more.
    RemovePool(PoolId),
    /// A volume as it is now.
    PutVolume(Volume),
    /// A volume that is no more.
    RemoveVolume(VolumeId),
    /// A target as it is now.
    PutTarget(Target),
    /// A target that is no more.
    RemoveTarget(TargetId),
    /// A disk that was added by command.
    PutAdded(AddedDisk),
    /// A disk that was not added after all, or is a matter of its node's configuration now.
    RemoveAdded(DiskId),
    /// What the logical unit of a volume keeps now.
    PutUnit(VolumeId, Arc<UnitState>),
    /// A logical unit that keeps nothing any more.
    RemoveUnit(VolumeId),
    /// What discovery sessions must prove now.
    SetDiscoveryChap(Option<Chap>),
    /// The partitions of a pool of which a disk's copies do not count now; not none.
    PutBehind(PoolId, DiskId, Arc<Behind>),
    /// A disk of which all copies of a pool count again.
    RemoveBehind(PoolId, DiskId),
    /// Copies of a pool's partitions that are on their way now, beside the others.
    AddMoves(PoolId, Arc<Vec<(Partition, Move)>>),
    /// Copies that are on their way no more, by where they went. The table has its next version: part of them may have been
    /// made, and is to be dropped.
    RemoveMoves(PoolId, Arc<Vec<(Partition, DiskId)>>),
    /// Copies that have arrived on a disk: it takes the places in the rows, and the table has its next version.
    Moved(PoolId, DiskId, Arc<Partitions>),
    /// A disk that is no more.
    RemoveDisk(DiskId),
    /// A node that is no more.
    RemoveNode(NodeId),
    /// What those that join were given.
    SetJoins(Joins),
}

impl Change {
    /// Whether the map already is as this change would make it.
    #[must_use]
    pub fn is_in(&self, map: &ClusterMap) -> bool {
        match self {
            Self::Cluster(cluster) => map.cluster == *cluster,
            Self::PutNode(node) => map.nodes.get(&node.id) == Some(node),
            Self::PutDisk(disk) => map.disks.get(&disk.id) == Some(disk),
            Self::PutGateway(gateway) => map.gateways.get(&gateway.id) == Some(gateway),
            Self::PutPool(pool) => map.pools.get(&pool.id) == Some(pool),
            Self::RemovePool(id) => !map.pools.contains_key(id),
            Self::PutVolume(volume) => map.volumes.get(&volume.id) == Some(volume),
            Self::RemoveVolume(id) => !map.volumes.contains_key(id),
            Self::PutTarget(target) => map.targets.get(&target.id) == Some(target),
            Self::RemoveTarget(id) => !map.targets.contains_key(id),
            Self::PutAdded(added) => map.added.get(&added.id) == Some(added),
            Self::RemoveAdded(id) => !map.added.contains_key(id),
            Self::PutUnit(id, unit) => map.units.get(id) == Some(unit),
            Self::RemoveUnit(id) => !map.units.contains_key(id),
            Self::SetDiscoveryChap(chap) => map.discovery_chap == *chap,
            Self::PutBehind(pool, disk, behind) => map.behind.get(&(*pool, *disk)) == Some(behind),
            Self::RemoveBehind(pool, disk) => !map.behind.contains_key(&(*pool, *disk)),
            Self::AddMoves(pool, moves) => map.pools.get(pool).is_some_and(|pool| {
                moves.iter().all(|(partition, it)| pool.moves.of(*partition).contains(it))
            }),
            Self::RemoveMoves(pool, moves) => map
                .pools
                .get(pool)
                .is_some_and(|pool| moves.iter().all(|(partition, to)| !is_arriving(pool, *to, *partition))),
            Self::Moved(pool, to, partitions) => map
                .pools
                .get(pool)
                .is_some_and(|pool| partitions.iter().all(|partition| !is_arriving(pool, *to, partition))),
            Self::RemoveDisk(id) => !map.disks.contains_key(id),
            Self::RemoveNode(id) => !map.nodes.contains_key(id),
            Self::SetJoins(joins) => map.joins == *joins,
        }
    }

    /// Makes the change.
    pub fn apply(&self, map: &mut ClusterMap) {
        match self {
            Self::Cluster(cluster) => map.cluster = *cluster,
            Self::PutNode(node) => drop(map.nodes.insert(node.id, node.clone())),
            Self::PutDisk(disk) => drop(map.disks.insert(disk.id, disk.clone())),
            Self::PutGateway(gateway) => drop(map.gateways.insert(gateway.id, gateway.clone())),
            Self::PutPool(pool) => drop(map.pools.insert(pool.id, pool.clone())),
            Self::RemovePool(id) => drop(map.pools.remove(id)),
            Self::PutVolume(volume) => drop(map.volumes.insert(volume.id, volume.clone())),
            Self::RemoveVolume(id) => drop(map.volumes.remove(id)),
            Self::PutTarget(target) => drop(map.targets.insert(target.id, target.clone())),
            Self::RemoveTarget(id) => drop(map.targets.remove(id)),
            Self::PutAdded(added) => drop(map.added.insert(added.id, added.clone())),
            Self::RemoveAdded(id) => drop(map.added.remove(id)),
            Self::PutUnit(id, unit) => drop(map.units.insert(*id, Arc::clone(unit))),
            Self::RemoveUnit(id) => drop(map.units.remove(id)),
            Self::SetDiscoveryChap(chap) => map.discovery_chap.clone_from(chap),
            Self::PutBehind(pool, disk, behind) => {
                drop(map.behind.insert((*pool, *disk), Arc::clone(behind)));
            }
            Self::RemoveBehind(pool, disk) => drop(map.behind.remove(&(*pool, *disk))),
            Self::SetJoins(joins) => map.joins.clone_from(joins),
            Self::AddMoves(pool, moves) => {
                let Some(pool) = map.pools.get_mut(pool) else { return };
                let all = Arc::make_mut(&mut pool.moves);
                for (partition, it) in moves.iter() {
                    all.insert(*partition, *it);
                }
            }
            Self::RemoveMoves(pool, moves) => {
                let Some(pool) = map.pools.get_mut(pool) else { return };
                let (all, table) = (Arc::make_mut(&mut pool.moves), Arc::make_mut(&mut pool.table));
                for (partition, to) in moves.iter() {
                    all.remove(*partition, *to);
                }
                table.version = table.version.saturating_add(1);
            }
            Self::Moved(pool, to, partitions) => {
                let Some(pool) = map.pools.get_mut(pool) else { return };
                let (moves, table) = (Arc::make_mut(&mut pool.moves), Arc::make_mut(&mut pool.table));
                let rows = table.partitions();
                for partition in partitions.iter().filter(|partition| partition.0 < rows) {
                    if let Some(done) = moves.remove(partition, *to) {
                        table.replace(partition, done);
                    }
                }
                table.version = table.version.saturating_add(1);
            }
            Self::RemoveDisk(id) => drop(map.disks.remove(id)),
            Self::RemoveNode(id) => drop(map.nodes.remove(id)),
        }
    }

    /// The pool of which this change is a part: a store that keeps pools as a whole keeps it as it is after the change.
    #[must_use]
    pub fn edits(&self) -> Option<PoolId> {
        match self {
            Self::AddMoves(pool, _) | Self::RemoveMoves(pool, _) | Self::Moved(pool, _, _) => Some(*pool),
            _ => None,
        }
    }
}

/// The step from one epoch to the next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapDelta {
    /// The epoch it leads to.
    pub epoch: Epoch,
    /// What changed, in order.
    pub changes: Vec<Change>,
}

/// A delta that does not continue the map it was applied to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a change to epoch {to} does not continue a map at epoch {from}")]
pub struct Gap {
    /// The map's epoch.
    pub from: Epoch,
    /// The delta's epoch.
    pub to: Epoch,
}

impl MapDelta {
    /// Makes the step, or changes nothing when it is not this map's next.
    pub fn apply(&self, map: &mut ClusterMap) -> Result<(), Gap> {
        if map.epoch.0.checked_add(1) != Some(self.epoch.0) {
            return Err(Gap { from: map.epoch, to: self.epoch });
        }
        for change in &self.changes {
            change.apply(map);
        }
        map.epoch = self.epoch;
        Ok(())
    }
}

/// Whether a map that came from outside holds together: whoever looks up a partition may index its table, so a table must
/// have the shape its pool says; and which copies count must be said of copies that there are. The error names what is wrong.
pub fn check_map(map: &ClusterMap) -> Result<(), String> {
    for pool in map.pools.values() {
        // A width of zero would make every other question about the table panic: ask it first.
        let sound = pool.table.width() > 0
            && pool.table.width() == pool.redundancy.width()
            && pool.table.partitions() > 0
            && pool.table.rows().all(|(_, row)| row.iter().all(|disk| map.disks.contains_key(disk)))
            && are_sound(map, pool);
        if !sound {
            return Err(format!("pool {:?}", pool.name));
        }
    }
    for ((pool, disk), behind) in &map.behind {
        let sound = match (map.pools.get(pool), map.disks.get(disk)) {
            (Some(pool), Some(disk)) => {
                let is_member = |partition: Partition| {
                    partition.0 < pool.table.partitions() && pool.table.row(partition).contains(&disk.id)
                };
                let is_sound = |partition: Partition| {
                    disk.state != DiskState::InSync && is_member(partition)
                        || is_arriving(pool, disk.id, partition)
                };
                !behind.partitions.is_empty()
                    && behind.grown >= behind.since
                    && behind.partitions.iter().all(is_sound)
            }
            _ => false,
        };
        if !sound {
            return Err(disk.to_string());
        }
    }
    for disk in map.disks.values() {
        let misses = || {
            let mut behind = map.behind.iter().filter(|((_, of), _)| *of == disk.id);
            behind.any(|((pool, _), behind)| {
                let arriving = map.pools.get(pool).map(|pool| arriving_at(pool, disk.id)).unwrap_or_default();
                !behind.partitions.difference(&arriving).is_empty()
            })
        };
        let sound = match disk.state {
            DiskState::InSync => true,
            DiskState::CatchingUp => misses(),
            DiskState::Out => map.pools.values().all(|pool| {
                map.behind.get(&(pool.id, disk.id)).map_or(0, |behind| behind.partitions.len())
                    == member_of(pool, disk.id).len() + arriving_at(pool, disk.id).len()
            }),
        };
        if !sound {
            return Err(disk.id.to_string());
        }
    }
    Ok(())
}

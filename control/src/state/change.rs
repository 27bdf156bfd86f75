//! What a committed command changed, as whole entries of the map: a watcher puts them in place and
//! needs to know no rule, and the store writes exactly these rows.

use std::sync::Arc;

use lunette_proto::ids::{ClusterId, DiskId, Epoch, PoolId, TargetId, VolumeId};
use lunette_proto::map::{AddedDisk, Chap, ClusterMap, Disk, Gateway, Node, Pool, Target, UnitState, Volume};
use serde::{Deserialize, Serialize};
use thiserror::Error;

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

/// Whether a map that came from outside holds together: whoever looks up a partition may index its
/// table, so a table must have the shape its pool says. The name is of the first pool that is wrong.
pub fn check_map(map: &ClusterMap) -> Result<(), String> {
    for pool in map.pools.values() {
        // A width of zero would make every other question about the table panic: ask it first.
        let sound = pool.table.width() > 0
            && pool.table.width() == pool.redundancy.width()
            && pool.table.partitions() > 0
            && pool.table.rows().all(|(_, row)| row.iter().all(|disk| map.disks.contains_key(disk)));
        if !sound {
            return Err(pool.name.clone());
        }
    }
    Ok(())
}

//! From updates to maps: epochs that rise by one, one cluster, and no step back.

use std::sync::Arc;

use lunette_proto::ids::{ClusterId, Epoch};
use lunette_proto::map::ClusterMap;
use thiserror::Error;

use crate::api::cluster::MapUpdate;
use crate::api::cluster::map_update::Update;
use crate::server::MAP_FORMAT;
use crate::state::{Change, Gap, MapDelta, check_map};

/// An update that cannot be taken: the stream is given up, and a whole map asked for.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WatchError {
    /// It says nothing.
    #[error("a map update without content")]
    Empty,
    /// Sent by another version.
    #[error("map updates of format {0} are unknown to this version, which knows {MAP_FORMAT}")]
    Format(u32),
    /// It does not decode, or not to what the message says.
    #[error("a map update that does not decode")]
    Malformed,
    /// A delta that is not the next.
    #[error(transparent)]
    Gap(#[from] Gap),
    /// A whole map that is older than the one there is.
    #[error("a map of epoch {got} after one of {have}")]
    Backwards {
        /// What there is.
        have: Epoch,
        /// What came.
        got: Epoch,
    },
    /// Another cluster's map.
    #[error("a map of cluster {got}; this is a part of {want}")]
    OtherCluster {
        /// Whose part this is.
        want: ClusterId,
        /// Whose map came.
        got: ClusterId,
    },
    /// A pool's table does not have the pool's shape, or copies are spoken of that there are not.
    #[error("a map that does not hold together: {0}")]
    Unsound(String),
}

/// The newest map that was received.
#[derive(Clone, Debug)]
pub struct Follower {
    cluster: Option<ClusterId>,
    map: Arc<ClusterMap>,
}

impl Follower {
    /// Without a map yet (epoch 0). Only maps of `cluster` are taken, or those of the first that comes.
    #[must_use]
    pub fn new(cluster: Option<ClusterId>) -> Self {
        Self { cluster, map: Arc::default() }
    }

    /// The newest map.
    #[must_use]
    pub fn map(&self) -> &Arc<ClusterMap> {
        &self.map
    }

    /// The cluster that is followed.
    #[must_use]
    pub fn cluster(&self) -> Option<ClusterId> {
        self.cluster
    }

    /// Takes an update, or nothing of it. Whether the map is another now.
    pub fn take(&mut self, message: MapUpdate) -> Result<bool, WatchError> {
        if message.format != MAP_FORMAT {
            return Err(WatchError::Format(message.format));
        }
        let next = match message.update.ok_or(WatchError::Empty)? {
            Update::Whole(bytes) => self.whole(&bytes)?,
            Update::Delta(bytes) => self.delta(&bytes)?,
        };
        if next.epoch.0 != message.epoch {
            return Err(WatchError::Malformed);
        }
        let want = *self.cluster.get_or_insert(next.cluster);
        if next.cluster != want {
            return Err(WatchError::OtherCluster { want, got: next.cluster });
        }
        let changed = next.epoch > self.map.epoch;
        if changed {
            self.map = Arc::new(next);
        }
        Ok(changed)
    }

    fn whole(&self, bytes: &[u8]) -> Result<ClusterMap, WatchError> {
        let map: ClusterMap = postcard::from_bytes(bytes).map_err(|_| WatchError::Malformed)?;
        if map.epoch < self.map.epoch {
            return Err(WatchError::Backwards { have: self.map.epoch, got: map.epoch });
        }
        check_map(&map).map_err(WatchError::Unsound)?;
        Ok(map)
    }

    fn delta(&self, bytes: &[u8]) -> Result<ClusterMap, WatchError> {
        let delta: MapDelta = postcard::from_bytes(bytes).map_err(|_| WatchError::Malformed)?;
        let mut map = ClusterMap::clone(&self.map);
        delta.apply(&mut map)?;
        // To check every table at every step would cost more than the step.
        let concerns_copies = |change: &Change| {
            use Change::{PutBehind, PutDisk, PutPool, RemoveBehind};
            matches!(change, PutPool(_) | PutDisk(_) | PutBehind(..) | RemoveBehind(..))
        };
        if delta.changes.iter().any(concerns_copies) {
            check_map(&map).map_err(WatchError::Unsound)?;
        }
        Ok(map)
    }
}

#[cfg(test)]
mod tests {
    use lunette_proto::ids::{DiskId, Partition, PoolId};
    use lunette_proto::map::{Behind, FailureDomain, Partitions, Pool, Redundancy, Table};

    use super::*;
    use crate::state::{Command, State};

    fn whole(map: &ClusterMap) -> MapUpdate {
        let bytes = postcard::to_allocvec(map).expect("encodes").into();
        MapUpdate { epoch: map.epoch.0, format: MAP_FORMAT, update: Some(Update::Whole(bytes)) }
    }

    fn delta(delta: &MapDelta) -> MapUpdate {
        let bytes = postcard::to_allocvec(delta).expect("encodes").into();
        MapUpdate { epoch: delta.epoch.0, format: MAP_FORMAT, update: Some(Update::Delta(bytes)) }
    }

    /// States at epochs 1 to 5, and the deltas between them.
    fn history() -> (Vec<ClusterMap>, Vec<MapDelta>) {
        let mut state = State::default();
        let mut deltas =
            vec![state.apply(&Command::Found { cluster: ClusterId(1) }).expect("right").delta.expect("new")];
        let mut maps = vec![state.map().clone()];
        for index in 2..=5 {
            let command = Command::RegisterGateway { name: format!("gw{index}"), portals: vec![] };
            deltas.push(state.apply(&command).expect("right").delta.expect("new"));
            maps.push(state.map().clone());
        }
        (maps, deltas)
    }

    /// Guards a watcher's map: deltas continue it, gaps and steps back are refused and change nothing.
    #[test]
    fn only_forwards() {
        let (maps, deltas) = history();
        let mut follower = Follower::new(Some(ClusterId(1)));
        assert_eq!(follower.take(whole(&maps[1])), Ok(true));
        assert_eq!(follower.take(delta(&deltas[2])), Ok(true));
        assert_eq!(**follower.map(), maps[2]);
        let gap = Gap { from: Epoch(3), to: Epoch(5) };
        assert_eq!(follower.take(delta(&deltas[4])), Err(WatchError::Gap(gap)));
        assert!(matches!(follower.take(delta(&deltas[2])), Err(WatchError::Gap(_))), "twice");
        let backwards = WatchError::Backwards { have: Epoch(3), got: Epoch(1) };
        assert_eq!(follower.take(whole(&maps[0])), Err(backwards));
        assert_eq!(follower.take(whole(&maps[2])), Ok(false), "the same again");
        assert_eq!(**follower.map(), maps[2]);
        assert_eq!(follower.take(whole(&maps[4])), Ok(true), "a whole map may skip");
        assert_eq!(**follower.map(), maps[4]);
    }

    /// Guards against updates that are not ours or not sound: each is refused and changes nothing.
    #[test]
    fn refused() {
        let (maps, deltas) = history();
        let mut follower = Follower::new(None);
        assert_eq!(follower.take(whole(&maps[0])), Ok(true));
        let before = Arc::clone(follower.map());
        let next = delta(&deltas[1]);
        assert_eq!(follower.take(MapUpdate { format: 1, ..next.clone() }), Err(WatchError::Format(1)));
        assert_eq!(follower.take(MapUpdate { update: None, ..next.clone() }), Err(WatchError::Empty));
        assert_eq!(follower.take(MapUpdate { epoch: 7, ..next.clone() }), Err(WatchError::Malformed));
        let cut = Some(Update::Delta(vec![0x80].into()));
        assert_eq!(follower.take(MapUpdate { update: cut, ..next }), Err(WatchError::Malformed));
        let mut other = maps[3].clone();
        other.cluster = ClusterId(2);
        let refused = WatchError::OtherCluster { want: ClusterId(1), got: ClusterId(2) };
        assert_eq!(follower.take(whole(&other)), Err(refused));
        let pool = Pool {
            id: PoolId(1),
            name: "p".into(),
            redundancy: Redundancy::replicated(2),
            failure_domain: FailureDomain::Disk,
            table: Arc::new(Table::new(1, 1, vec![DiskId(1)])),
            moves: Arc::default(),
        };
        let unsound = MapDelta { epoch: Epoch(2), changes: vec![Change::PutPool(pool)] };
        assert_eq!(follower.take(delta(&unsound)), Err(WatchError::Unsound("pool \"p\"".into())));
        let nobodys =
            Behind { partitions: Partitions::from_iter([Partition(0)]), since: Epoch(1), grown: Epoch(1) };
        let behind = Change::PutBehind(PoolId(1), DiskId(1), Arc::new(nobodys));
        let unsound = MapDelta { epoch: Epoch(2), changes: vec![behind] };
        assert_eq!(follower.take(delta(&unsound)), Err(WatchError::Unsound("disk-1".into())));
        assert_eq!(*follower.map(), before);
    }
}

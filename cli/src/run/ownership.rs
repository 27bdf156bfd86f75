//! Which volumes a gateway takes by itself, from the map alone: those that it owned in an earlier life. All others it is
//! given.
//!
//! A generation belongs to one life of one process: sequence numbers start again with each, so a
//! volume that this gateway owned in an earlier life is taken again, under a new generation, before
//! anything is done under the old one (invariant 1). Until then [`Ownership::visible`] hides it.

use std::collections::BTreeMap;
use std::sync::Arc;

use lunette_control::state::limits::OWNERS_PER_COMMAND_MAX;
use lunette_proto::ids::{Epoch, GatewayId, Generation, VolumeId};
use lunette_proto::map::{ClusterMap, Volume};

/// What a gateway owns and wants to own. Knows nothing of clocks, requests and answers.
#[derive(Debug)]
pub(crate) struct Ownership {
    me: GatewayId,
    /// What the first map gave to this gateway's earlier life.
    earlier: Option<BTreeMap<VolumeId, Generation>>,
    /// The last request is answered by the map of this epoch.
    asked: Epoch,
}

impl Ownership {
    pub(crate) fn new(me: GatewayId) -> Self {
        Self { me, earlier: None, asked: Epoch(0) }
    }

    /// Takes note of a map; the first one tells what an earlier life owned.
    pub(crate) fn see(&mut self, map: &ClusterMap) {
        if self.earlier.is_none() {
            let mine = |volume: &&Volume| volume.owner.is_some_and(|owner| owner.gateway == self.me);
            let earlier = map.volumes.values().filter(mine).map(|volume| (volume.id, volume.generation));
            self.earlier = Some(earlier.collect());
        }
    }

    /// The volumes to ask for under `map`, with the generations of an earlier life.
    /// None while an answer to the last request is still on its way through the map.
    pub(crate) fn wanted(&self, map: &ClusterMap) -> Vec<(VolumeId, Generation)> {
        if map.epoch < self.asked {
            return Vec::new();
        }
        let earlier = map.volumes.values().filter(|volume| self.is_earlier(volume));
        earlier.take(OWNERS_PER_COMMAND_MAX).map(|volume| (volume.id, volume.generation)).collect()
    }

    /// The request was committed with this epoch.
    pub(crate) fn taken(&mut self, epoch: Epoch) {
        self.asked = self.asked.max(epoch);
    }

    /// The map without what an earlier life owned.
    pub(crate) fn visible(&self, map: &Arc<ClusterMap>) -> Arc<ClusterMap> {
        if !map.volumes.values().any(|volume| self.is_earlier(volume)) {
            return Arc::clone(map);
        }
        let mut visible = ClusterMap::clone(map);
        for volume in visible.volumes.values_mut() {
            if self.is_earlier(volume) {
                volume.owner = None;
            }
        }
        Arc::new(visible)
    }

    /// Whether all that this gateway is to own is owned by this life of it.
    pub(crate) fn is_complete(&self, map: &ClusterMap) -> bool {
        map.epoch >= self.asked && self.wanted(map).is_empty()
    }

    fn is_earlier(&self, volume: &Volume) -> bool {
        let Some(earlier) = &self.earlier else { return false };
        volume.owner.is_some_and(|owner| owner.gateway == self.me)
            && earlier.get(&volume.id).is_some_and(|generation| volume.generation <= *generation)
    }
}

#[cfg(test)]
mod tests {
    use lunette_proto::ids::PoolId;
    use lunette_proto::map::{Gateway, Owner, VolumeState};

    use super::*;

    const ME: GatewayId = GatewayId(1);
    const OTHER: GatewayId = GatewayId(2);

    fn volume(id: u64, owner: Option<GatewayId>, generation: u64) -> Volume {
        let generation = Generation(generation);
        Volume {
            id: VolumeId(id),
            name: format!("v{id}"),
            pool: PoolId(1),
            size_bytes: 4096,
            stripe: None,
            block_bytes: 512,
            write_back: false,
            generation,
            owner: owner.map(|gateway| Owner { gateway, generation }),
            state: VolumeState::Active,
        }
    }

    fn map(epoch: u64, volumes: Vec<Volume>) -> Arc<ClusterMap> {
        let gateway = |id| Gateway { id, name: id.to_string(), portal_group_tag: 1, portals: Vec::new() };
        Arc::new(ClusterMap {
            epoch: Epoch(epoch),
            gateways: [ME, OTHER].map(|id| (id, gateway(id))).into(),
            volumes: volumes.into_iter().map(|volume| (volume.id, volume)).collect(),
            ..ClusterMap::default()
        })
    }

    #[test]
    fn an_earlier_life_is_fenced_before_anything_is_served() {
        // Guards invariant 1: a restarted gateway must not write under the generation of its earlier life.
        let mut ownership = Ownership::new(ME);
        let first = map(5, vec![volume(1, Some(ME), 7), volume(2, Some(OTHER), 3), volume(3, None, 0)]);
        ownership.see(&first);
        assert_eq!(ownership.wanted(&first), [(VolumeId(1), Generation(7))]);
        assert_eq!(ownership.visible(&first).volumes[&VolumeId(1)].owner, None);
        assert!(!ownership.is_complete(&first));
        ownership.taken(Epoch(6));
        assert_eq!(ownership.wanted(&first), [], "asked once");
        assert!(!ownership.is_complete(&first));

        let second = map(6, vec![volume(1, Some(ME), 8), volume(2, Some(OTHER), 3), volume(3, Some(ME), 1)]);
        ownership.see(&second);
        assert_eq!(ownership.wanted(&second), []);
        assert!(Arc::ptr_eq(&ownership.visible(&second), &second));
        assert!(ownership.is_complete(&second));
    }

    #[test]
    fn what_others_have_or_nobody_is_not_fought_for() {
        // Guards against two gateways that take a volume from each other for ever: what was an earlier life's and went to
        // another meanwhile is his, and comes back as a matter of this life.
        let mut ownership = Ownership::new(ME);
        ownership.see(&map(1, vec![volume(1, Some(ME), 4), volume(2, None, 0), volume(3, Some(OTHER), 2)]));
        let lost = map(2, vec![volume(1, Some(OTHER), 5), volume(2, None, 0), volume(3, Some(OTHER), 2)]);
        assert_eq!(ownership.wanted(&lost), []);
        assert!(ownership.is_complete(&lost) && Arc::ptr_eq(&ownership.visible(&lost), &lost));
        let given = map(3, vec![volume(1, Some(ME), 6), volume(2, Some(ME), 1), volume(3, Some(ME), 3)]);
        assert_eq!(ownership.wanted(&given), []);
        assert!(Arc::ptr_eq(&ownership.visible(&given), &given));
    }
}

//! The shared units of a gateway, by volume: one for each, however many targets map it.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use lunette_proto::ids::VolumeId;
use lunette_proto::map::{ClusterMap, UnitState};
use parking_lot::Mutex;

use super::{Changed, SharedUnit};
use crate::exports::Devices;

/// The shared units of a gateway. One lives as long as a logical unit refers to it.
pub struct Units {
    devices: Arc<dyn Devices>,
    units: Mutex<BTreeMap<VolumeId, Weak<SharedUnit>>>,
}

impl Units {
    /// None so far; `devices` are for those that will be.
    #[must_use]
    pub fn new(devices: Arc<dyn Devices>) -> Self {
        Self { devices, units: Mutex::default() }
    }

    /// Where devices come from, and what keeps the units' state.
    #[must_use]
    pub fn devices(&self) -> &dyn Devices {
        &*self.devices
    }

    /// The unit of a volume; if it is not there yet, as `map` says.
    #[must_use]
    pub fn unit(&self, volume: VolumeId, map: &ClusterMap) -> Arc<SharedUnit> {
        let mut units = self.units.lock();
        if let Some(unit) = units.get(&volume).and_then(Weak::upgrade) {
            return unit;
        }
        let state = map.units.get(&volume).cloned().unwrap_or_else(|| Arc::new(UnitState::default()));
        let unit = Arc::new(SharedUnit::new(volume, state, Arc::clone(&self.devices)));
        // Nobody knows the unit yet who would have to be told.
        let _ = unit.learn_write_back(map.volumes.get(&volume).is_some_and(|volume| volume.write_back));
        units.insert(volume, Arc::downgrade(&unit));
        unit
    }

    /// Takes over what `map` says is kept where it is newer, as another gateway may have changed it. Gives what
    /// sessions are to be told.
    #[must_use]
    pub fn learn(&self, map: &ClusterMap) -> Vec<Arc<Changed>> {
        let mut units = self.units.lock();
        units.retain(|_, unit| unit.strong_count() != 0);
        let mut news = Vec::new();
        for (id, unit) in &*units {
            let Some(unit) = unit.upgrade() else { continue };
            news.extend(map.units.get(id).and_then(|state| unit.learn(state)));
            news.extend(map.volumes.get(id).and_then(|volume| unit.learn_write_back(volume.write_back)));
        }
        news
    }
}

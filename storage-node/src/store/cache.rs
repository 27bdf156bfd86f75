//! Descriptors that were read lately: a bounded number, by CLOCK.

use std::collections::VecDeque;
use std::sync::Arc;

use super::descriptor::Descriptor;
use super::unit_map::UnitMap;

/// Descriptors kept: of 1 GiB of data.
pub(crate) const CACHED_MAX: usize = 16_384;

#[derive(Debug)]
struct Slot {
    descriptor: Arc<Descriptor>,
    crc: u32,
    used: bool,
}

/// Descriptors by unit, each with its checksum.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    slots: UnitMap<Slot>,
    clock: VecDeque<u32>,
}

impl Cache {
    /// The descriptor of a unit, if it is here and has this checksum.
    pub(crate) fn get(&mut self, unit: u32, crc: u32) -> Option<Arc<Descriptor>> {
        let slot = self.slots.get_mut(&unit).filter(|slot| slot.crc == crc)?;
        slot.used = true;
        Some(slot.descriptor.clone())
    }

    pub(crate) fn insert(&mut self, descriptor: Arc<Descriptor>, crc: u32) {
        let unit = descriptor.unit;
        let slot = Slot { descriptor, crc, used: false };
        if self.slots.insert(unit, slot).is_some() {
            return;
        }
        self.clock.push_back(unit);
        while self.slots.len() > CACHED_MAX {
            let Some(unit) = self.clock.pop_front() else { return };
            match self.slots.get_mut(&unit) {
                Some(slot) if slot.used => {
                    slot.used = false;
                    self.clock.push_back(unit);
                }
                _ => {
                    self.slots.remove(&unit);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use lunette_proto::ids::{ExtentId, Namespace, Version};

    use super::*;

    /// Guards memory and truth: the cache is bounded, keeps what is used, and gives nothing of another checksum.
    #[test]
    fn is_bounded() {
        let extent = ExtentId { namespace: Namespace(1), index: 0 };
        let mut cache = Cache::default();
        for unit in 0..2 * CACHED_MAX as u32 {
            cache.insert(Arc::new(Descriptor::fresh(unit, extent, 0, Version::NONE)), unit + 1);
            assert!(cache.get(0, 1).is_some(), "used all the time");
        }
        assert_eq!(cache.slots.len(), CACHED_MAX);
        assert!(cache.clock.len() <= CACHED_MAX);
        assert!(cache.get(1, 2).is_none());
        assert!(cache.get(0, 2).is_none());
    }
}

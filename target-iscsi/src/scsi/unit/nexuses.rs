//! Which nexuses a unit knows: those of this gateway that have sent it a command and are still there.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use lunette_proto::map::NexusId;

use super::SharedUnit;

/// By nexus, through how many LUNs.
pub(super) type Nexuses = BTreeMap<NexusId, usize>;

/// That a unit knows a nexus, until this is dropped.
#[derive(Debug)]
pub(in crate::scsi) struct Acquaintance {
    unit: Arc<SharedUnit>,
    nexus: NexusId,
}

impl SharedUnit {
    /// Gets to know a nexus.
    pub(in crate::scsi) fn meet(self: &Arc<Self>, nexus: &NexusId) -> Acquaintance {
        *self.nexuses.lock().entry(nexus.clone()).or_default() += 1;
        Acquaintance { unit: Arc::clone(self), nexus: nexus.clone() }
    }

    /// The known nexuses of an initiator with a port of a target.
    pub(in crate::scsi) fn nexuses_of(&self, initiator: &str, target: &str, tag: u16) -> Vec<NexusId> {
        let is_meant =
            |nexus: &&NexusId| nexus.initiator == initiator && nexus.target == target && nexus.tag == tag;
        self.nexuses.lock().keys().filter(is_meant).cloned().collect()
    }
}

impl Drop for Acquaintance {
    fn drop(&mut self) {
        if let Entry::Occupied(mut luns) = self.unit.nexuses.lock().entry(self.nexus.clone()) {
            *luns.get_mut() -= 1;
            if *luns.get() == 0 {
                luns.remove();
            }
        }
    }
}

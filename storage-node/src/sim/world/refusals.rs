//! What a disk must refuse: owners whose time is over, and changes on what never was.

use lunette_proto::ids::{ExtentId, Generation, Version};
use lunette_proto::limits::BLOCK_BYTES;
use lunette_proto::node::{Change, Durability, Failure};

use super::{End, NAMESPACES, UNIT_BLOCKS, World, content, extent_id, wrong};
use crate::engine::Operation;

impl World {
    /// What is asked by an older generation, or by none, has no effect.
    pub(super) fn late(&mut self, ns: usize, extent: u64) -> Result<(), End> {
        let namespace = NAMESPACES[ns];
        let (sealed, _) = self.model.sealed(namespace);
        let generation = Generation(sealed.0 - 1);
        let id = ExtentId { namespace, index: extent };
        let version = Version { generation, seq: 1 << 40 };
        let change = Change::Data(content(id, 0, version));
        let change =
            Operation::Change { extent: id, version, offset: 0, change, durability: Durability::Stable };
        for operation in [change, Operation::Drop { namespace, generation, extents: vec![extent] }] {
            match self.prepare(&operation)? {
                None | Some((Err(Failure::Generation { .. } | Failure::Invalid), _)) => {}
                Some((reply, _)) => return wrong(format!("a late {operation:?} answers {reply:?}")),
            }
        }
        Ok(())
    }

    /// A change on a version that the slot does not have is refused, and is told which one it has.
    pub(super) fn wrong_prev(&mut self, ns: usize, extent: u64, slot: u32) -> Result<(), End> {
        let id = extent_id(ns, extent);
        let (generation, _) = self.model.sealed(id.namespace);
        let [prev, version] = [1, 2].map(|by| Version { generation, seq: self.seq(ns) + by });
        let block = slot * UNIT_BLOCKS + 5;
        let change = Change::Data(content(id, block, version));
        let operation = Operation::Prepare { extent: id, version, prev, offset: block * BLOCK_BYTES, change };
        let present = self.model.present(id, slot);
        match self.prepare(&operation)? {
            None => Ok(()),
            Some((Err(Failure::Corrupt { .. }), _)) if self.is_spoiled => Ok(()),
            Some((Err(Failure::Version { present: told }), _)) if told == present => Ok(()),
            Some((reply, _)) => wrong(format!("a change on {prev} answers {reply:?}, it has {present}")),
        }
    }
}

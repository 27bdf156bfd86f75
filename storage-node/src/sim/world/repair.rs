//! Bringing a block back to what it should hold, as the owner does with what a scrubber finds.

use lunette_proto::ids::{ExtentId, Version};
use lunette_proto::limits::{BLOCK_BYTES, UNIT_BYTES};
use lunette_proto::node::{Change, ReplyBody};

use super::{End, UNIT_BLOCKS, World, wrong};
use crate::engine::Operation;

impl World {
    /// Writes what a block should hold, as a repair with the version that it should have.
    pub(in crate::sim) fn repair(&mut self, id: ExtentId, block: u32) -> Result<(), End> {
        let slot = block / UNIT_BLOCKS;
        if let Some(prepared) = self.model.prepared(id, slot) {
            let (generation, _) = self.model.sealed(id.namespace);
            let (version, offset, len) = (prepared.version, slot * UNIT_BYTES, UNIT_BYTES);
            self.model.resolve(id, slot, false);
            let operation = Operation::Rollback { extent: id, generation, version, offset, len };
            match self.prepare(&operation)? {
                Some((Ok(ReplyBody::Done), _)) => self.commit()?,
                other => return wrong(format!("a rollback answers {other:?}")),
            }
        }
        let value = self.model.namespaces[&id.namespace].extents[&id.index].block(block).last().clone();
        let (generation, _) = self.model.sealed(id.namespace);
        let change = match value.data {
            Some(data) => Change::Data(data),
            None => Change::Zeros { len: BLOCK_BYTES },
        };
        let (version, offset) = (value.version, block * BLOCK_BYTES);
        if version == Version::NONE {
            return Ok(());
        }
        let operation = Operation::Put { extent: id, generation, version, offset, change };
        match self.prepare(&operation)? {
            Some((Ok(ReplyBody::Done), _)) => self.commit(),
            other => wrong(format!("a repair answers {other:?}")),
        }
    }
}

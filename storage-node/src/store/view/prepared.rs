//! What is prepared, for those who decide what becomes of it, and for those who check a disk.

use bytes::Bytes;
use lunette_proto::ids::ExtentId;
use lunette_proto::limits::{BLOCK_BYTES, UNIT_BYTES};
use lunette_proto::node::PreparedChange;

use super::super::descriptor::{BlockState, Damage, UNIT_BLOCKS};
use super::super::disk::Disk;
use super::super::extents::Shadow;
use super::{BLOCK, Bad, Stopped, View};

impl<D: Disk> View<D> {
    /// What is prepared in an extent, in the order of its units.
    #[must_use]
    pub fn prepared(&self, id: ExtentId) -> Vec<PreparedChange> {
        let state = self.state.read();
        let shadows = state.extents.get(id).map_or_else(Default::default, |extent| extent.shadows());
        shadows.iter().map(prepared).collect()
    }

    /// Reads what is prepared in an extent from the medium, verified: the changes, each with its data. Keeps changes in
    /// place out meanwhile: for who checks a disk that is not in use.
    ///
    /// # Errors
    /// The first block that is bad.
    pub fn read_prepared(&self, id: ExtentId) -> Result<Vec<(PreparedChange, Bytes)>, Bad> {
        let _still = self.applying.read();
        let shadows = match self.state.read().extents.get(id) {
            Some(extent) => extent.shadows().to_vec(),
            None => return Ok(Vec::new()),
        };
        shadows.iter().map(|shadow| Ok((prepared(shadow), self.read_shadow(id, shadow)?))).collect()
    }

    fn read_shadow(&self, id: ExtentId, shadow: &Shadow) -> Result<Bytes, Bad> {
        let base = u32::from(shadow.slot) * UNIT_BLOCKS;
        let dirty = self.state.read().dirty.get(&shadow.unit.unit).cloned();
        let descriptor = self.descriptor(id, shadow.slot, shadow.unit, dirty.as_ref(), true);
        let descriptor = descriptor.map_err(|stopped| match stopped {
            Stopped::Bad(bad) => Bad { block: base + u32::from(shadow.first), ..bad },
            Stopped::Wait | Stopped::NoSnapshot(_) | Stopped::Unread { .. } => {
                Bad { block: base, damage: Damage::Unreadable }
            }
        })?;
        let mut data = vec![0; shadow.range().len() * BLOCK];
        for (index, out) in shadow.range().zip(data.chunks_exact_mut(BLOCK)) {
            let bad = |damage| Bad { block: base + index, damage };
            match descriptor.blocks[index as usize].state {
                BlockState::Zeros if shadow.zeros => {}
                BlockState::Data if !shadow.zeros => {
                    let offset = self.layout.unit(shadow.unit.unit) + u64::from(index * BLOCK_BYTES);
                    self.disk.read(offset, out).map_err(|_| bad(Damage::Unreadable))?;
                    descriptor.verify(index, out).map_err(bad)?;
                }
                _ => return Err(bad(Damage::Unreadable)),
            }
        }
        Ok(data.into())
    }
}

fn prepared(shadow: &Shadow) -> PreparedChange {
    PreparedChange {
        offset: u32::from(shadow.slot) * UNIT_BYTES + u32::from(shadow.first) * BLOCK_BYTES,
        len: u32::from(shadow.blocks) * BLOCK_BYTES,
        version: shadow.version,
        prev: shadow.prev,
        hole: shadow.zeros,
    }
}

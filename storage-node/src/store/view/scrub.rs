//! Looking at everything that is on the medium: what a scrubber asks.
//!
//! A read serves what memory has, and stops at the first bad block. This looks at one unit at a time, at the medium only,
//! and names every block that is bad. What is newer in memory than on the medium (a descriptor that waits for its
//! checkpoint) is taken from there, for what lies under it on the medium is of no use to anybody.

use std::io;

use lunette_proto::ids::{ExtentId, Snapshot};
use lunette_proto::limits::BLOCK_BYTES;

use super::super::chains::LIVE;
use super::super::descriptor::{BlockState, Damage, Descriptor, UNIT_BLOCKS};
use super::super::disk::Disk;
use super::super::layout::{DESCRIPTOR_BYTES, UNIT_BYTES};
use super::{BLOCK, Bad, FREE_LOOKS, View};

/// What is in one slot of an extent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inspection {
    /// Blocks with data that were looked at, good and bad.
    pub checked: u32,
    /// The bad ones, in order.
    pub bad: Vec<Bad>,
}

impl<D: Disk> View<D> {
    /// The first extent after `last`, in order; the first of all if `None`.
    #[must_use]
    pub fn next_extent(&self, last: Option<ExtentId>) -> Option<ExtentId> {
        self.state.read().extents.next_after(last)
    }

    /// The extent before which lies this part (0 to 1) of all extents, in order; `None` at the beginning.
    #[must_use]
    pub fn extent_at(&self, part: f64) -> Option<ExtentId> {
        let state = self.state.read();
        // Between 0 and the number of extents, which a disk has far fewer of than a float can count.
        let before = (state.extents.len() as f64 * part.clamp(0.0, 1.0)) as usize;
        before.checked_sub(1).and_then(|last| state.extents.iter().nth(last)).map(|(key, _)| key.extent)
    }

    /// The slots of an extent that have a unit; `None` if there is no such extent.
    #[must_use]
    pub fn slots(&self, id: ExtentId) -> Option<Vec<u8>> {
        let state = self.state.read();
        let extent = state.extents.get(id).filter(|_| !state.namespaces.is_deleted(id.namespace))?;
        Some(extent.units().map(|(slot, _)| slot).collect())
    }

    /// Units that snapshots keep of an extent, each with its slot and the newest of them.
    #[must_use]
    pub fn kept(&self, id: ExtentId) -> Vec<(Snapshot, u8)> {
        let state = self.state.read();
        let kept = state
            .extents
            .records(id, Snapshot(0))
            .filter(|(until, _)| *until != LIVE || state.namespaces.is_deleted(id.namespace));
        kept.flat_map(|(until, extent)| extent.units().map(move |(slot, _)| (until, slot))).collect()
    }

    /// Looks at every block of a slot on the medium, which `read` reads: as it is now, or as snapshots up to `until` see it.
    pub fn inspect(
        &self,
        id: ExtentId,
        until: Option<Snapshot>,
        slot: u8,
        read: impl Fn(u64, &mut [u8]) -> io::Result<()>,
    ) -> Inspection {
        // A change that comes in between looks like damage; so it does the second time only by another change.
        for _ in 0..FREE_LOOKS {
            let found = self.inspect_once(id, until, slot, &read);
            if found.bad.is_empty() {
                return found;
            }
        }
        let _still = self.applying.read();
        self.inspect_once(id, until, slot, &read)
    }

    fn inspect_once(
        &self,
        id: ExtentId,
        until: Option<Snapshot>,
        slot: u8,
        read: &impl Fn(u64, &mut [u8]) -> io::Result<()>,
    ) -> Inspection {
        let first = u32::from(slot) * UNIT_BLOCKS;
        let (unit, dirty) = {
            let state = self.state.read();
            let extent = state.extents.at(id, until.unwrap_or(LIVE), slot);
            let Some(unit) = extent.and_then(|extent| extent.unit(slot)) else {
                return Inspection::default();
            };
            (unit, state.dirty.get(&unit.unit).map(|dirty| dirty.descriptor.clone()))
        };
        let descriptor = match dirty {
            Some(descriptor) => descriptor,
            None => match self.descriptor_on_medium(id, slot, unit.unit, unit.crc, read) {
                Ok(descriptor) => descriptor.into(),
                // What the blocks should be is not known any more: all of them are bad.
                Err(damage) => {
                    let bad = (first..first + UNIT_BLOCKS).map(|block| Bad { block, damage }).collect();
                    return Inspection { checked: UNIT_BLOCKS, bad };
                }
            },
        };
        let mut found = Inspection::default();
        let mut data = [false; UNIT_BLOCKS as usize];
        for (index, entry) in (0u32..).zip(&descriptor.blocks) {
            match entry.state {
                BlockState::Absent | BlockState::Zeros => {}
                BlockState::Data => data[index as usize] = true,
                BlockState::Lost => {
                    found.checked += 1;
                    found.bad.push(Bad { block: first + index, damage: Damage::Unreadable });
                }
            }
        }
        let (Some(begin), Some(last)) =
            (data.iter().position(|data| *data), data.iter().rposition(|data| *data))
        else {
            return found;
        };
        let offset = self.layout.unit(unit.unit);
        let mut buffer = vec![0; UNIT_BYTES as usize];
        let is_read = read(offset + (begin * BLOCK) as u64, &mut buffer[begin * BLOCK..(last + 1) * BLOCK]);
        for (index, block) in (0u32..).zip(buffer.chunks_exact_mut(BLOCK)) {
            if !data[index as usize] {
                continue;
            }
            found.checked += 1;
            // All at once failed: one by one, so that no more is bad than has to be.
            let is_read = is_read.is_ok() || read(offset + u64::from(index * BLOCK_BYTES), block).is_ok();
            let verified = if is_read { descriptor.verify(index, block) } else { Err(Damage::Unreadable) };
            if let Err(damage) = verified {
                found.bad.push(Bad { block: first + index, damage });
            }
        }
        found.bad.sort_by_key(|bad| bad.block);
        found
    }

    fn descriptor_on_medium(
        &self,
        id: ExtentId,
        slot: u8,
        unit: u32,
        crc: u32,
        read: &impl Fn(u64, &mut [u8]) -> io::Result<()>,
    ) -> Result<Descriptor, Damage> {
        let mut sector = [0; DESCRIPTOR_BYTES as usize];
        read(self.layout.descriptor(unit), &mut sector).map_err(|_| Damage::Unreadable)?;
        let (descriptor, found) = Descriptor::decode(self.uuid, &sector, unit, id, slot)?;
        if found == crc { Ok(descriptor) } else { Err(Damage::Stale) }
    }
}

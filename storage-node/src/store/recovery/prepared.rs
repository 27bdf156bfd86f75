//! Records of prepared changes, done once more.

use lunette_proto::ids::{ExtentId, Version};
use lunette_proto::limits::BLOCK_BYTES;

use super::super::commit::InPlace;
use super::super::descriptor::Entry;
use super::super::disk::Disk;
use super::super::extents::{Extent, Shadow, UnitRef};
use super::super::prepared::{committed, shadow_descriptor, shadow_floor};
use super::super::wal::{How, WriteRecord};
use super::{OpenError, Replay};

impl<D: Disk> Replay<'_, D> {
    /// A change is prepared, with these entries if it is of data.
    pub(super) fn prepare(
        &mut self,
        write: &WriteRecord,
        prev: Version,
        zeros: bool,
        lsn: u64,
        entries: Vec<Entry>,
    ) -> Result<(), OpenError> {
        let place = &write.place;
        self.check_unit(place.unit)?;
        let wrong = self.wrong("a record prepares a change where one is prepared");
        let extent = self.changed(place.extent)?;
        if extent.shadow(place.slot).is_some() {
            return Err(wrong);
        }
        let shadow = Shadow {
            slot: place.slot,
            first: place.first,
            blocks: place.blocks,
            zeros,
            version: place.version,
            prev,
            unit: UnitRef { unit: place.unit, crc: 0 },
        };
        let floor = shadow_floor(&shadow, extent.unit(place.slot), extent.floor(place.slot));
        extent.add_shadow(shadow);
        let entries =
            if zeros { shadow.range().map(|_| Entry::zeros(place.version)).collect() } else { entries };
        let descriptor = shadow_descriptor(place.extent, &shadow, floor, entries.into_iter(), lsn);
        self.descriptors.insert(place.unit, descriptor);
        self.namespaces.add_prepared(place.extent, place.version);
        self.note(place.extent, place.version);
        Ok(())
    }

    /// What is prepared in a slot counts.
    pub(super) fn commit(
        &mut self,
        id: ExtentId,
        slot: u8,
        version: Version,
        how: How,
        lsn: u64,
    ) -> Result<(), OpenError> {
        let shadow = self.take_shadow(id, slot, version)?;
        let wrong = self.wrong("a record copies blocks into a unit that is not there");
        let extent = self.changed(id)?;
        extent.newest = extent.newest.max(version);
        match how {
            How::Adopt => {
                if let Some(old) = extent.set_unit(slot, shadow.unit) {
                    self.descriptors.remove(&old.unit);
                }
            }
            How::Hole => {
                for unit in extent.set_hole(1 << slot, version) {
                    self.descriptors.remove(&unit);
                }
                self.descriptors.remove(&shadow.unit.unit);
            }
            How::Copy => {
                let unit = extent.unit(slot).ok_or(wrong)?;
                let entries = committed(&shadow, self.descriptor(id, slot, shadow.unit)?).collect::<Vec<_>>();
                self.descriptors.remove(&shadow.unit.unit);
                let descriptor = self.descriptor(id, slot, unit)?;
                let base = descriptor.first_block();
                for (index, entry) in shadow.range().zip(entries) {
                    let old = descriptor.blocks[index as usize];
                    descriptor.blocks[index as usize] = entry.over(id, base + index, &old);
                }
                descriptor.lsn = lsn;
                if !shadow.zeros && !planted!(ReplayCommitWithoutCopy) {
                    let layout = &self.superblock.layout;
                    let at = u64::from(shadow.first) * u64::from(BLOCK_BYTES);
                    let (from, to) = (layout.unit(shadow.unit.unit) + at, layout.unit(unit.unit) + at);
                    let copied = InPlace::Copy { from, to, blocks: shadow.blocks }.run(self.disk);
                    copied.map_err(OpenError::io("copy data again"))?;
                }
            }
        }
        self.note(id, version);
        Ok(())
    }

    /// What is prepared in a slot is dropped.
    pub(super) fn rollback(&mut self, id: ExtentId, slot: u8, version: Version) -> Result<(), OpenError> {
        let shadow = self.take_shadow(id, slot, version)?;
        self.descriptors.remove(&shadow.unit.unit);
        self.note(id, version);
        Ok(())
    }

    fn take_shadow(&mut self, id: ExtentId, slot: u8, version: Version) -> Result<Shadow, OpenError> {
        let wrong = self.wrong("a record resolves a change that is not prepared");
        let shadow = self.changed(id)?.take_shadow(slot).filter(|shadow| shadow.version == version);
        let shadow = shadow.ok_or(wrong)?;
        self.namespaces.remove_prepared(id);
        Ok(shadow)
    }

    /// An extent that a record changes.
    fn changed(&mut self, id: ExtentId) -> Result<&mut Extent, OpenError> {
        self.touch(id);
        let wrong = self.wrong("a record changes an extent that is not there");
        self.extents.get_mut(id).ok_or(wrong)
    }

    fn note(&mut self, id: ExtentId, version: Version) {
        let newest = self.extents.get(id).map_or(version, |extent| extent.newest.max(version));
        self.namespaces.changed(id.namespace, id.index, version, newest);
    }
}

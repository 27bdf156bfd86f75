//! Records of prepared changes, done once more.

use lunette_proto::ids::{ExtentId, Version};
use lunette_proto::limits::BLOCK_BYTES;

use super::super::chains::Key;
use super::super::change::Copy;
use super::super::commit::InPlace;
use super::super::descriptor::Entry;
use super::super::disk::Disk;
use super::super::extents::{Shadow, UnitRef};
use super::super::prepared::{committed, merged, shadow_descriptor, shadow_floor};
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
        let extent = self.touch(Key::live(place.extent));
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
        let wrong = self.wrong("a record copies blocks of a unit that is not there, or into it");
        let left = if how == How::Copy { Vec::new() } else { self.leave(id, 1 << slot) };
        let extent = self.touch(Key::live(id));
        extent.newest = extent.newest.max(version);
        match how {
            How::Adopt => {
                let old = extent.set_unit(slot, shadow.unit);
                if let Some(old) = old.filter(|old| !left.contains(&old.unit)) {
                    self.descriptors.remove(&old.unit);
                }
            }
            How::Hole => {
                let units = extent.set_hole(1 << slot, version);
                for unit in units.iter().filter(|unit| !left.contains(unit)) {
                    self.descriptors.remove(unit);
                }
                self.descriptors.remove(&shadow.unit.unit);
            }
            How::Merge => {
                let unit = extent.unit(slot).ok_or(wrong)?;
                extent.set_unit(slot, shadow.unit);
                let present = self.known(id, slot, unit)?;
                for blocks in present.content_beside(shadow.range()) {
                    self.copy(&Copy { from: unit.unit, to: shadow.unit.unit, blocks })?;
                }
                let prepared = self.known(id, slot, shadow.unit)?;
                self.descriptors.insert(shadow.unit.unit, merged(&shadow, &prepared, &present, lsn));
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
        let shadow = self.touch(Key::live(id)).take_shadow(slot).filter(|shadow| shadow.version == version);
        let shadow = shadow.ok_or(wrong)?;
        self.namespaces.remove_prepared(id);
        Ok(shadow)
    }

    fn note(&mut self, id: ExtentId, version: Version) {
        let newest = self.extents.get(id).map_or(version, |extent| extent.newest.max(version));
        self.namespaces.changed(id.namespace, id.index, version, newest);
    }
}

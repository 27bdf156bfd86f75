//! An extent as the store knows it: which units hold its data, and what was discarded.

use bytes::{Buf, BufMut};
use lunette_proto::ids::{ExtentId, Namespace, Snapshot, Version};
use lunette_proto::limits::EXTENT_BYTES;

use super::chains::{Key, LIVE};
use super::descriptor::UNIT_BLOCKS;
use super::layout::UNIT_BYTES;
use super::namespaces::{get_version, put_version};

/// Units of an extent.
pub(crate) const SLOTS: u8 = (EXTENT_BYTES as u64 / UNIT_BYTES) as u8;
const _: () = assert!(SLOTS == 64);

const HEADER_BYTES: usize = 64;
const HOLE_BYTES: usize = 24;
const UNIT_REF_BYTES: usize = 8;
const SHADOW_BYTES: usize = 44;
const OF_DATA: u8 = 1;
const OF_ZEROS: u8 = 2;

/// A unit, and the checksum that its descriptor must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UnitRef {
    pub(crate) unit: u32,
    pub(crate) crc: u32,
}

/// Slots that were discarded as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hole {
    slots: u64,
    version: Version,
}

/// A change of a slot that is prepared: what it brings is in a unit of its own, which no reader sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shadow {
    pub(crate) slot: u8,
    /// First block in the unit.
    pub(crate) first: u8,
    pub(crate) blocks: u8,
    /// The blocks become zeros.
    pub(crate) zeros: bool,
    pub(crate) version: Version,
    /// The newest version of the slot's blocks.
    pub(crate) prev: Version,
    pub(crate) unit: UnitRef,
}

impl Shadow {
    /// The blocks in the unit.
    pub(crate) fn range(&self) -> std::ops::Range<u32> {
        u32::from(self.first)..u32::from(self.first) + u32::from(self.blocks)
    }

    /// Whether it changes all blocks of the slot.
    pub(crate) fn is_whole(&self) -> bool {
        self.range() == (0..UNIT_BLOCKS)
    }
}

/// One extent: 64 slots of 64 KiB, each a unit, a hole of some version, or never written. Or what snapshots keep of one: then
/// it answers for some of the slots only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Page of metadata that it is in.
    pub(crate) page: u32,
    /// The newest version of any block, discarded ones included.
    pub(crate) newest: Version,
    /// Slots that it answers for.
    pub(crate) covers: u64,
    /// Slots that have a unit.
    slots: u64,
    /// Their units, in the order of the slots.
    units: Vec<UnitRef>,
    holes: Vec<Hole>,
    /// What is prepared, in the order of the slots.
    shadows: Vec<Shadow>,
}

impl Default for Extent {
    fn default() -> Self {
        Self { covers: u64::MAX, ..Self::kept() }
    }
}

impl Extent {
    /// What snapshots keep of an extent: nothing so far.
    pub(crate) fn kept() -> Self {
        Self {
            page: 0,
            newest: Version::NONE,
            covers: 0,
            slots: 0,
            units: Vec::new(),
            holes: Vec::new(),
            shadows: Vec::new(),
        }
    }

    /// Whether it answers for a slot.
    pub(crate) fn answers_for(&self, slot: u8) -> bool {
        self.covers >> slot & 1 == 1
    }

    /// Has what snapshots keep, `kept`, answer for a slot as it is here.
    pub(crate) fn keep(&self, slot: u8, kept: &mut Self) {
        kept.covers |= 1 << slot;
        match (self.unit(slot), self.floor(slot)) {
            (Some(unit), _) => {
                kept.set_unit(slot, unit);
            }
            (None, Version::NONE) => {}
            (None, floor) => {
                kept.set_hole(1 << slot, floor);
            }
        }
    }

    /// Does not answer for slots any more; the units that they had.
    pub(crate) fn forget(&mut self, slots: u64) -> Vec<u32> {
        self.covers &= !slots;
        let released = self.take_units(slots);
        self.clear_holes(slots);
        released
    }

    fn rank(&self, slot: u8) -> usize {
        (self.slots & ((1 << slot) - 1)).count_ones() as usize
    }

    /// The unit of a slot.
    pub(crate) fn unit(&self, slot: u8) -> Option<UnitRef> {
        if self.slots >> slot & 1 == 0 { None } else { self.units.get(self.rank(slot)).copied() }
    }

    /// The version of the zeros in a slot that has no unit.
    pub(crate) fn floor(&self, slot: u8) -> Version {
        self.holes.iter().find(|hole| hole.slots >> slot & 1 == 1).map_or(Version::NONE, |hole| hole.version)
    }

    /// All units with their slots.
    pub(crate) fn units(&self) -> impl Iterator<Item = (u8, UnitRef)> {
        let slots = (0..SLOTS).filter(|slot| self.slots >> slot & 1 == 1);
        slots.zip(self.units.iter().copied())
    }

    /// All units, those of prepared changes included.
    pub(crate) fn all_units(&self) -> impl Iterator<Item = u32> {
        self.units.iter().map(|unit| unit.unit).chain(self.shadows.iter().map(|shadow| shadow.unit.unit))
    }

    /// What is prepared, in the order of the slots.
    pub(crate) fn shadows(&self) -> &[Shadow] {
        &self.shadows
    }

    /// What is prepared in a slot.
    pub(crate) fn shadow(&self, slot: u8) -> Option<&Shadow> {
        self.shadows.iter().find(|shadow| shadow.slot == slot)
    }

    /// Prepares a change of a slot that has none.
    pub(crate) fn add_shadow(&mut self, shadow: Shadow) {
        let at = self.shadows.partition_point(|other| other.slot < shadow.slot);
        self.shadows.insert(at, shadow);
    }

    /// Takes away what is prepared in a slot.
    pub(crate) fn take_shadow(&mut self, slot: u8) -> Option<Shadow> {
        let at = self.shadows.iter().position(|shadow| shadow.slot == slot)?;
        Some(self.shadows.remove(at))
    }

    /// What it knows of a unit that a slot has, or that is prepared for it.
    pub(crate) fn find(&self, slot: u8, unit: u32) -> Option<UnitRef> {
        let shadow = self.shadow(slot).map(|shadow| shadow.unit);
        shadow.into_iter().chain(self.unit(slot)).find(|found| found.unit == unit)
    }

    /// Notes the checksum of the descriptor of a unit that a slot has, or that is prepared for it.
    pub(crate) fn set_checksum(&mut self, slot: u8, unit: UnitRef) {
        if let Some(shadow) =
            self.shadows.iter_mut().find(|shadow| shadow.slot == slot && shadow.unit.unit == unit.unit)
        {
            shadow.unit = unit;
        } else if self.unit(slot).is_some_and(|found| found.unit == unit.unit) {
            self.set_unit(slot, unit);
        }
    }

    /// Drops all that is prepared; the units.
    pub(crate) fn take_shadows(&mut self) -> Vec<u32> {
        self.shadows.drain(..).map(|shadow| shadow.unit.unit).collect()
    }

    /// Gives a slot a unit; the one that it had.
    pub(crate) fn set_unit(&mut self, slot: u8, unit: UnitRef) -> Option<UnitRef> {
        let rank = self.rank(slot);
        if self.slots >> slot & 1 == 1 {
            return Some(std::mem::replace(&mut self.units[rank], unit));
        }
        self.clear_holes(1 << slot);
        self.slots |= 1 << slot;
        self.units.insert(rank, unit);
        None
    }

    fn take_units(&mut self, slots: u64) -> Vec<u32> {
        let mut taken = Vec::new();
        let mut left = Vec::new();
        for (slot, unit) in self.units() {
            if slots >> slot & 1 == 1 { taken.push(unit.unit) } else { left.push(unit) }
        }
        self.units = left;
        self.slots &= !slots;
        taken
    }

    /// Makes slots a hole; the units that they had.
    pub(crate) fn set_hole(&mut self, slots: u64, version: Version) -> Vec<u32> {
        let released = self.take_units(slots);
        self.clear_holes(slots);
        match self.holes.iter_mut().find(|hole| hole.version == version) {
            Some(hole) => hole.slots |= slots,
            None => self.holes.push(Hole { slots, version }),
        }
        released
    }

    fn clear_holes(&mut self, slots: u64) {
        self.holes.iter_mut().for_each(|hole| hole.slots &= !slots);
        self.holes.retain(|hole| hole.slots != 0);
    }

    /// Bytes of its record in a page.
    pub(crate) fn record_len(&self) -> usize {
        HEADER_BYTES
            + self.holes.len() * HOLE_BYTES
            + self.units.len() * UNIT_REF_BYTES
            + self.shadows.len() * SHADOW_BYTES
    }

    pub(crate) fn encode(&self, key: Key, out: &mut impl BufMut) {
        out.put_u64_le(key.extent.namespace.0);
        out.put_u64_le(key.extent.index);
        out.put_u64_le(key.until.0);
        out.put_u64_le(self.covers);
        put_version(out, self.newest);
        out.put_u64_le(self.slots);
        out.put_u8(u8::try_from(self.holes.len()).expect("at most one for each slot"));
        let shadows = if planted!(PreparedNotInCheckpoint) { &[] } else { self.shadows.as_slice() };
        out.put_u8(u8::try_from(shadows.len()).expect("at most one for each slot"));
        out.put_bytes(0, 6);
        for hole in &self.holes {
            out.put_u64_le(hole.slots);
            put_version(out, hole.version);
        }
        for unit in &self.units {
            out.put_u32_le(unit.unit);
            out.put_u32_le(unit.crc);
        }
        for shadow in shadows {
            out.put_u8(shadow.slot);
            out.put_u8(shadow.first);
            out.put_u8(shadow.blocks);
            out.put_u8(if shadow.zeros { OF_ZEROS } else { OF_DATA });
            out.put_u32_le(shadow.unit.unit);
            out.put_u32_le(shadow.unit.crc);
            put_version(out, shadow.version);
            put_version(out, shadow.prev);
        }
    }

    /// The next record of a page; `None` if it is none.
    pub(crate) fn decode(fields: &mut &[u8], page: u32) -> Option<(Key, Self)> {
        let namespace = Namespace(fields.try_get_u64_le().ok()?);
        let extent = ExtentId { namespace, index: fields.try_get_u64_le().ok()? };
        let key = Key { extent, until: Snapshot(fields.try_get_u64_le().ok()?) };
        let covers = fields.try_get_u64_le().ok()?;
        let newest = get_version(fields)?;
        let slots = fields.try_get_u64_le().ok()?;
        let holes = usize::from(fields.try_get_u8().ok()?);
        let shadows = usize::from(fields.try_get_u8().ok()?);
        let is_kept = key.until != LIVE;
        if fields.try_get_uint_le(6).ok()? != 0
            || holes.max(shadows) > usize::from(SLOTS)
            || slots & !covers != 0
            || (is_kept && shadows > 0)
        {
            return None;
        }
        let mut extent = Self { page, newest, covers, slots, ..Self::kept() };
        let mut taken = slots | !covers;
        for _ in 0..holes {
            let hole = Hole { slots: fields.try_get_u64_le().ok()?, version: get_version(fields)? };
            if hole.slots & taken != 0 || hole.slots == 0 {
                return None;
            }
            taken |= hole.slots;
            extent.holes.push(hole);
        }
        extent.units.reserve_exact(slots.count_ones() as usize);
        for _ in 0..slots.count_ones() {
            extent
                .units
                .push(UnitRef { unit: fields.try_get_u32_le().ok()?, crc: fields.try_get_u32_le().ok()? });
        }
        for _ in 0..shadows {
            let shadow = Shadow::decode(fields)?;
            if extent.shadows.last().is_some_and(|last| last.slot >= shadow.slot) {
                return None;
            }
            extent.shadows.push(shadow);
        }
        Some((key, extent))
    }
}

impl Shadow {
    fn decode(fields: &mut &[u8]) -> Option<Self> {
        let slot = fields.try_get_u8().ok()?;
        let first = fields.try_get_u8().ok()?;
        let blocks = fields.try_get_u8().ok()?;
        let zeros = match fields.try_get_u8().ok()? {
            OF_DATA => false,
            OF_ZEROS => true,
            _ => return None,
        };
        let unit = UnitRef { unit: fields.try_get_u32_le().ok()?, crc: fields.try_get_u32_le().ok()? };
        let (version, prev) = (get_version(fields)?, get_version(fields)?);
        let shadow = Self { slot, first, blocks, zeros, version, prev, unit };
        (slot < SLOTS && blocks > 0 && shadow.range().end <= UNIT_BLOCKS).then_some(shadow)
    }
}

#[cfg(test)]
mod tests {
    use lunette_proto::ids::Generation;

    use super::*;

    fn version(seq: u64) -> Version {
        Version { generation: Generation(1), seq }
    }

    fn unit(unit: u32) -> UnitRef {
        UnitRef { unit, crc: unit * 3 }
    }

    /// Guards the slots: each is a unit, a hole or nothing, whatever came before.
    #[test]
    fn slots() {
        let mut extent = Extent::default();
        assert_eq!((extent.unit(5), extent.floor(5)), (None, Version::NONE));
        assert_eq!(extent.set_unit(5, unit(50)), None);
        assert_eq!(extent.set_unit(63, unit(63)), None);
        assert_eq!(extent.set_unit(0, unit(1)), None);
        assert_eq!(extent.set_unit(5, unit(51)), Some(unit(50)));
        assert_eq!(extent.units().collect::<Vec<_>>(), [(0, unit(1)), (5, unit(51)), (63, unit(63))]);
        assert_eq!(extent.set_hole(1 << 5 | 1 << 6, version(2)), [51]);
        assert_eq!((extent.unit(5), extent.floor(5), extent.floor(6)), (None, version(2), version(2)));
        assert_eq!(extent.floor(0), Version::NONE);
        extent.set_unit(6, unit(60));
        assert_eq!(
            (extent.unit(6), extent.floor(6), extent.floor(5)),
            (Some(unit(60)), Version::NONE, version(2))
        );
        assert_eq!(extent.set_hole(u64::MAX, version(3)), [1, 60, 63]);
        assert_eq!(extent.holes.len(), 1);
    }

    /// Guards the largest record: an extent with as many holes and prepared changes as can be fits a page, with room.
    #[test]
    fn the_largest_fits_a_page() {
        let shadows = lunette_proto::limits::EXTENT_PREPARED_MAX * SHADOW_BYTES;
        let largest = HEADER_BYTES + usize::from(SLOTS) * HOLE_BYTES + shadows;
        const { assert!(HOLE_BYTES > UNIT_REF_BYTES) };
        assert!(largest <= super::super::pages::FILL, "{largest}");
    }

    /// Guards the format: what is written is read, and nothing is read of what is cut.
    #[test]
    fn encodes() {
        let id = ExtentId { namespace: Namespace(4), index: 8 };
        let key = Key { extent: id, until: LIVE };
        let mut extent = Extent { page: 3, newest: version(9), ..Extent::default() };
        extent.set_unit(1, unit(7));
        extent.set_unit(40, unit(8));
        extent.set_hole(0b100, version(5));
        extent.set_hole(0b1000, version(6));
        let shadow = Shadow {
            slot: 40,
            first: 3,
            blocks: 13,
            zeros: false,
            version: version(8),
            prev: version(7),
            unit: unit(9),
        };
        extent.add_shadow(shadow);
        extent.add_shadow(Shadow { slot: 2, zeros: true, unit: unit(10), ..shadow });
        assert_eq!(extent.shadows().iter().map(|shadow| shadow.slot).collect::<Vec<_>>(), [2, 40]);
        assert_eq!(extent.all_units().collect::<Vec<_>>(), [7, 8, 10, 9]);
        let mut bytes = Vec::new();
        extent.encode(key, &mut bytes);
        assert_eq!(bytes.len(), extent.record_len());
        let numbers = |numbers: &[u32]| numbers.iter().flat_map(|it| it.to_le_bytes()).collect::<Vec<_>>();
        let versions = [1, 0, 8, 0, 1, 0, 7, 0];
        let last = [&[40, 3, 13, 1], &numbers(&[9, 27])[..], &numbers(&versions)].concat();
        assert_eq!(bytes[bytes.len() - 44..], last);
        assert_eq!(bytes[56..64], [2, 2, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Extent::decode(&mut bytes.as_slice(), 3), Some((key, extent.clone())));
        for cut in 0..bytes.len() {
            assert_eq!(Extent::decode(&mut &bytes[..cut], 3), None);
        }
        // What is kept of it: a unit, a hole, and a slot that had nothing.
        let mut kept = Extent { page: 3, ..Extent::kept() };
        [1, 2, 9].into_iter().for_each(|slot| extent.keep(slot, &mut kept));
        let key = Key { until: Snapshot(6), ..key };
        let mut bytes = Vec::new();
        kept.encode(key, &mut bytes);
        let expected = [4u64, 8, 6, 0b10_0000_0110, 0, 0, 0b10].map(u64::to_le_bytes).concat();
        assert_eq!(bytes[..56], expected);
        assert_eq!(Extent::decode(&mut bytes.as_slice(), 3), Some((key, kept.clone())));
        assert_eq!((kept.floor(2), kept.unit(9), kept.forget(0b110)), (version(5), None, vec![7]));
        assert_eq!((kept.covers, kept.floor(2), kept.record_len()), (1 << 9, Version::NONE, 64));
        // It has a unit in a slot that it does not answer for.
        bytes[24] = 0b100;
        assert_eq!(Extent::decode(&mut bytes.as_slice(), 3), None);
    }
}

//! Extents as the store knows them: which units hold their data, and what was discarded.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut};
use lunette_proto::ids::{ExtentId, Namespace, Version};
use lunette_proto::limits::EXTENT_BYTES;

use super::layout::UNIT_BYTES;
use super::namespaces::{get_version, put_version};

/// Units of an extent.
pub(crate) const SLOTS: u8 = (EXTENT_BYTES as u64 / UNIT_BYTES) as u8;
const _: () = assert!(SLOTS == 64);

const HEADER_BYTES: usize = 48;
const HOLE_BYTES: usize = 24;
const UNIT_REF_BYTES: usize = 8;

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

/// One extent: 64 slots of 64 KiB, each a unit, a hole of some version, or never written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Page of metadata that it is in.
    pub(crate) page: u32,
    /// The newest version of any block, discarded ones included.
    pub(crate) newest: Version,
    /// Slots that have a unit.
    slots: u64,
    /// Their units, in the order of the slots.
    units: Vec<UnitRef>,
    holes: Vec<Hole>,
}

impl Extent {
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

    /// Makes slots a hole; the units that they had.
    pub(crate) fn set_hole(&mut self, slots: u64, version: Version) -> Vec<u32> {
        let mut released = Vec::new();
        let mut kept = Vec::new();
        for (slot, unit) in self.units() {
            if slots >> slot & 1 == 1 { released.push(unit.unit) } else { kept.push(unit) }
        }
        self.units = kept;
        self.slots &= !slots;
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
        HEADER_BYTES + self.holes.len() * HOLE_BYTES + self.units.len() * UNIT_REF_BYTES
    }

    pub(crate) fn encode(&self, id: ExtentId, out: &mut impl BufMut) {
        out.put_u64_le(id.namespace.0);
        out.put_u64_le(id.index);
        put_version(out, self.newest);
        out.put_u64_le(self.slots);
        out.put_u8(u8::try_from(self.holes.len()).expect("at most one for each slot"));
        out.put_bytes(0, 7);
        for hole in &self.holes {
            out.put_u64_le(hole.slots);
            put_version(out, hole.version);
        }
        for unit in &self.units {
            out.put_u32_le(unit.unit);
            out.put_u32_le(unit.crc);
        }
    }

    /// The next record of a page; `None` if it is none.
    pub(crate) fn decode(fields: &mut &[u8], page: u32) -> Option<(ExtentId, Self)> {
        let namespace = Namespace(fields.try_get_u64_le().ok()?);
        let id = ExtentId { namespace, index: fields.try_get_u64_le().ok()? };
        let newest = get_version(fields)?;
        let slots = fields.try_get_u64_le().ok()?;
        let holes = usize::from(fields.try_get_u8().ok()?);
        if fields.try_get_uint_le(7).ok()? != 0 || holes > usize::from(SLOTS) {
            return None;
        }
        let mut extent = Self { page, newest, slots, ..Self::default() };
        let mut taken = slots;
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
        Some((id, extent))
    }
}

/// All extents of a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extents(BTreeMap<Namespace, BTreeMap<u64, Extent>>);

impl Extents {
    pub(crate) fn get(&self, id: ExtentId) -> Option<&Extent> {
        self.0.get(&id.namespace)?.get(&id.index)
    }

    pub(crate) fn get_mut(&mut self, id: ExtentId) -> Option<&mut Extent> {
        self.0.get_mut(&id.namespace)?.get_mut(&id.index)
    }

    pub(crate) fn insert(&mut self, id: ExtentId, extent: Extent) -> Option<Extent> {
        self.0.entry(id.namespace).or_default().insert(id.index, extent)
    }

    pub(crate) fn remove_namespace(&mut self, id: Namespace) -> BTreeMap<u64, Extent> {
        self.0.remove(&id).unwrap_or_default()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (ExtentId, &Extent)> {
        self.0.iter().flat_map(|(namespace, extents)| {
            extents.iter().map(|(index, extent)| (ExtentId { namespace: *namespace, index: *index }, extent))
        })
    }

    /// The first extent after `last`, in order; the first of all if `None`.
    pub(crate) fn next_after(&self, last: Option<ExtentId>) -> Option<ExtentId> {
        let Some(last) = last else { return self.iter().next().map(|(id, _)| id) };
        let in_namespace = self.0.get(&last.namespace).and_then(|extents| {
            extents.range((std::ops::Bound::Excluded(last.index), std::ops::Bound::Unbounded)).next()
        });
        if let Some((index, _)) = in_namespace {
            return Some(ExtentId { index: *index, ..last });
        }
        let later = (std::ops::Bound::Excluded(last.namespace), std::ops::Bound::Unbounded);
        self.0.range(later).find_map(|(namespace, extents)| {
            extents.keys().next().map(|index| ExtentId { namespace: *namespace, index: *index })
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.0.values().map(BTreeMap::len).sum()
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

    /// Guards the format: what is written is read, and nothing is read of what is cut.
    #[test]
    fn encodes() {
        let id = ExtentId { namespace: Namespace(4), index: 8 };
        let mut extent = Extent { page: 3, newest: version(9), ..Extent::default() };
        extent.set_unit(1, unit(7));
        extent.set_unit(40, unit(8));
        extent.set_hole(0b100, version(5));
        extent.set_hole(0b1000, version(6));
        let mut bytes = Vec::new();
        extent.encode(id, &mut bytes);
        assert_eq!(bytes.len(), extent.record_len());
        assert_eq!(Extent::decode(&mut bytes.as_slice(), 3), Some((id, extent)));
        for cut in 0..bytes.len() {
            assert_eq!(Extent::decode(&mut &bytes[..cut], 3), None);
        }
    }
}

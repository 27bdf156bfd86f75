//! Records. This page is the specification.
//!
//! | kind | record | fields after the kind (1 byte) |
//! |---|---|---|
//! | 1 | data of blocks of one unit | flags 1 (1: the unit is fresh, 2: the data is in the unit already), slot 1, first block in the unit 1, blocks 1, namespace 8, index 8, version 16, unit 4; for each block: digest 4, tags 3 |
//! | 2 | zeros for blocks of one unit | flags 1 (1: the unit is fresh), slot 1, first block 1, blocks 1, namespace 8, index 8, version 16, unit 4 |
//! | 3 | slots become a hole | zeros 4, namespace 8, index 8, version 16, slots 8 |
//! | 4 | seal | namespace 8, generation 8, epoch 8 |
//! | 5 | delete | namespace 8 |
//! | 6 | watermark | namespace 8, version 16 |
//!
//! A record is a plain instruction: everything was decided before. A fresh unit takes the place of
//! whatever the slot had; of a whole unit of data, nothing of that remains, and of less, the other blocks are zeros of the
//! version of the hole that was there.

use bytes::{Buf, BufMut};
use lunette_proto::ids::{Epoch, ExtentId, Generation, Namespace, Version};

use super::super::descriptor::{Digest, UNIT_BLOCKS};
use super::super::extents::SLOTS;
use super::super::namespaces::{get_version, put_version};

const WRITE: u8 = 1;
const ZERO: u8 = 2;
const HOLE: u8 = 3;
const SEAL: u8 = 4;
const DELETE: u8 = 5;
const WATERMARK: u8 = 6;
const FRESH: u8 = 1;
const PLACED: u8 = 2;
/// Bytes of the longest record.
pub(crate) const RECORD_BYTES_MAX: usize = 41 + 7 * UNIT_BLOCKS as usize;

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// Blocks of a unit get data.
    Write(WriteRecord),
    /// Blocks of a unit become zeros.
    Zero(Place),
    /// Slots become a hole.
    Hole { extent: ExtentId, version: Version, slots: u64 },
    /// A namespace is sealed.
    Seal(Namespace, Generation, Epoch),
    /// A namespace is deleted.
    Delete(Namespace),
    /// A namespace's watermark moves.
    Watermark(Namespace, Version),
}

/// Blocks of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) extent: ExtentId,
    pub(crate) version: Version,
    pub(crate) slot: u8,
    /// First block in the unit.
    pub(crate) first: u8,
    pub(crate) blocks: u8,
    pub(crate) unit: u32,
    /// The unit was not the slot's before.
    pub(crate) fresh: bool,
}

/// Blocks of a unit get data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WriteRecord {
    pub(crate) place: Place,
    /// The data is in the unit already, not in the batch.
    pub(crate) placed: bool,
    /// Of each block.
    pub(crate) digests: Vec<Digest>,
}

impl Record {
    /// Blocks of data that it has in its batch.
    pub(crate) fn data_blocks(&self) -> u32 {
        match self {
            Self::Write(write) if !write.placed => u32::from(write.place.blocks),
            _ => 0,
        }
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Write(write) => {
                out.put_u8(WRITE);
                let placed = if write.placed { PLACED } else { 0 };
                write.place.encode(placed, out);
                for digest in &write.digests {
                    out.put_u32_le(digest.value);
                    out.put_uint_le(u64::from(digest.tags), 3);
                }
            }
            Self::Zero(place) => {
                out.put_u8(ZERO);
                place.encode(0, out);
            }
            Self::Hole { extent, version, slots } => {
                out.put_u8(HOLE);
                out.put_u32_le(0);
                out.put_u64_le(extent.namespace.0);
                out.put_u64_le(extent.index);
                put_version(out, *version);
                out.put_u64_le(*slots);
            }
            Self::Seal(id, generation, epoch) => {
                out.put_u8(SEAL);
                out.put_u64_le(id.0);
                out.put_u64_le(generation.0);
                out.put_u64_le(epoch.0);
            }
            Self::Delete(id) => {
                out.put_u8(DELETE);
                out.put_u64_le(id.0);
            }
            Self::Watermark(id, mark) => {
                out.put_u8(WATERMARK);
                out.put_u64_le(id.0);
                put_version(out, *mark);
            }
        }
    }

    /// The next record; `None` if it is none.
    pub(crate) fn decode(fields: &mut &[u8]) -> Option<Self> {
        Some(match fields.try_get_u8().ok()? {
            WRITE => {
                let (place, flags) = Place::decode(fields)?;
                if flags & !(FRESH | PLACED) != 0 {
                    return None;
                }
                let mut digests = Vec::with_capacity(usize::from(place.blocks));
                for _ in 0..place.blocks {
                    let value = fields.try_get_u32_le().ok()?;
                    let tags = u32::try_from(fields.try_get_uint_le(3).ok()?).ok()?;
                    digests.push(Digest { value, tags });
                }
                Self::Write(WriteRecord { place, placed: flags & PLACED != 0, digests })
            }
            ZERO => match Place::decode(fields)? {
                (place, flags) if flags & !FRESH == 0 => Self::Zero(place),
                _ => return None,
            },
            HOLE => {
                if fields.try_get_u32_le().ok()? != 0 {
                    return None;
                }
                let extent = get_extent(fields)?;
                Self::Hole { extent, version: get_version(fields)?, slots: fields.try_get_u64_le().ok()? }
            }
            SEAL => Self::Seal(
                Namespace(fields.try_get_u64_le().ok()?),
                Generation(fields.try_get_u64_le().ok()?),
                Epoch(fields.try_get_u64_le().ok()?),
            ),
            DELETE => Self::Delete(Namespace(fields.try_get_u64_le().ok()?)),
            WATERMARK => Self::Watermark(Namespace(fields.try_get_u64_le().ok()?), get_version(fields)?),
            _ => return None,
        })
    }
}

impl Place {
    fn encode(&self, flags: u8, out: &mut Vec<u8>) {
        out.put_u8(flags | if self.fresh { FRESH } else { 0 });
        out.put_u8(self.slot);
        out.put_u8(self.first);
        out.put_u8(self.blocks);
        out.put_u64_le(self.extent.namespace.0);
        out.put_u64_le(self.extent.index);
        put_version(out, self.version);
        out.put_u32_le(self.unit);
    }

    fn decode(fields: &mut &[u8]) -> Option<(Self, u8)> {
        let flags = fields.try_get_u8().ok()?;
        let slot = fields.try_get_u8().ok()?;
        let first = fields.try_get_u8().ok()?;
        let blocks = fields.try_get_u8().ok()?;
        let extent = get_extent(fields)?;
        let version = get_version(fields)?;
        let unit = fields.try_get_u32_le().ok()?;
        let fits = slot < SLOTS && blocks > 0 && u32::from(first) + u32::from(blocks) <= UNIT_BLOCKS;
        fits.then_some((
            Self { extent, version, slot, first, blocks, unit, fresh: flags & FRESH != 0 },
            flags,
        ))
    }
}

fn get_extent(fields: &mut &[u8]) -> Option<ExtentId> {
    let namespace = Namespace(fields.try_get_u64_le().ok()?);
    Some(ExtentId { namespace, index: fields.try_get_u64_le().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards the format: every kind says the same when it is read, and nothing when it is cut.
    #[test]
    fn encodes() {
        let extent = ExtentId { namespace: Namespace(1 << 60), index: 2 };
        let version = Version { generation: Generation(3), seq: 4 };
        let place = Place { extent, version, slot: 63, first: 15, blocks: 1, unit: 7, fresh: true };
        let digests = vec![Digest { value: 8, tags: 0xff_ffff }];
        let whole = Place { first: 0, blocks: 16, fresh: false, ..place };
        let records = [
            Record::Write(WriteRecord { place, placed: false, digests: digests.clone() }),
            Record::Write(WriteRecord { place: whole, placed: true, digests: digests.repeat(16) }),
            Record::Zero(place),
            Record::Hole { extent, version, slots: u64::MAX },
            Record::Seal(extent.namespace, Generation(5), Epoch(6)),
            Record::Delete(extent.namespace),
            Record::Watermark(extent.namespace, version),
        ];
        for record in records {
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            assert!(bytes.len() <= RECORD_BYTES_MAX);
            assert_eq!(Record::decode(&mut bytes.as_slice()), Some(record));
            for cut in 0..bytes.len() {
                assert_eq!(Record::decode(&mut &bytes[..cut]), None);
            }
        }
        assert_eq!(Record::decode(&mut [9u8; 60].as_slice()), None);
    }
}

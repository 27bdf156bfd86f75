//! Records. This page is the specification.
//!
//! | kind | record | fields after the kind (1 byte) |
//! |---|---|---|
//! | 1 | data of blocks of one unit | flags 1 (1: the unit is fresh, 2: the data is in the unit already, 8: it gets the other blocks of the unit that the slot had), slot 1, first block in the unit 1, blocks 1, namespace 8, index 8, version 16, unit 4; for each block: digest 4, tags 3 |
//! | 2 | zeros for blocks of one unit | flags 1 (1, 8: as kind 1), slot 1, first block 1, blocks 1, namespace 8, index 8, version 16, unit 4 |
//! | 3 | slots become a hole | zeros 4, namespace 8, index 8, version 16, slots 8 |
//! | 4 | seal | namespace 8, generation 8, epoch 8 |
//! | 5 | delete | namespace 8 |
//! | 6 | watermark | complete 1, zeros 7, namespace 8, version 16 |
//! | 7 | a change of blocks of one slot is prepared | as kind 1, and between unit and digests: the slot's newest version 16; flags also 4: the blocks become zeros, and there are no digests |
//! | 8 | what is prepared in a slot is committed | how 1, slot 1, zeros 2, namespace 8, index 8, version 16 |
//! | 9 | what is prepared in a slot is dropped | zero 1, slot 1, zeros 2, namespace 8, index 8, version 16 |
//! | 10 | a snapshot is marked | namespace 8, snapshot 8 |
//! | 11 | a snapshot ends | namespace 8, snapshot 8 |
//! | 12 | an extent is dropped | namespace 8, index 8 |
//!
//! A record is a plain instruction: everything was decided before. A fresh unit takes the place of
//! whatever the slot had; of a whole unit of data, nothing of that remains, and of less, the other blocks are zeros of the
//! version of the hole that was there.
//!
//! How a prepared change is committed: 1: its unit takes the place of whatever the slot had; 2: the slot becomes a hole; 3:
//! its blocks are copied into the slot's unit, and what they are into its descriptor; 4: its unit gets the other blocks of
//! the slot's unit, and its place. A unit that blocks are copied from stays what it is until no record can be replayed that does
//! so: it is given back, or a snapshot sees it.

use bytes::{Buf, BufMut};
use lunette_proto::ids::{Epoch, ExtentId, Generation, Namespace, Snapshot, Version};
use smallvec::SmallVec;

use super::super::descriptor::{Digest, UNIT_BLOCKS};
use super::super::extents::SLOTS;
use super::super::namespaces::{get_version, put_version};

const WRITE: u8 = 1;
const ZERO: u8 = 2;
const HOLE: u8 = 3;
const SEAL: u8 = 4;
const DELETE: u8 = 5;
const WATERMARK: u8 = 6;
const PREPARE: u8 = 7;
const COMMIT: u8 = 8;
const ROLLBACK: u8 = 9;
const MARK: u8 = 10;
const UNMARK: u8 = 11;
const DROP: u8 = 12;
const FRESH: u8 = 1;
const PLACED: u8 = 2;
const ZEROS: u8 = 4;
const COPIED: u8 = 8;
/// Bytes of the longest record.
pub(crate) const RECORD_BYTES_MAX: usize = 57 + 7 * UNIT_BLOCKS as usize;

/// Of each block of a record: most records have one.
pub(crate) type Digests = SmallVec<[Digest; 1]>;

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
    Watermark { namespace: Namespace, mark: Version, complete: bool },
    /// A change is prepared: `write` into a unit that no reader sees, or zeros, without digests.
    Prepare { write: WriteRecord, prev: Version, zeros: bool },
    /// What is prepared in a slot counts.
    Commit { extent: ExtentId, slot: u8, version: Version, how: How },
    /// What is prepared in a slot is dropped.
    Rollback { extent: ExtentId, slot: u8, version: Version },
    /// A snapshot is marked.
    Mark(Namespace, Snapshot),
    /// A snapshot ends.
    Unmark(Namespace, Snapshot),
    /// Nothing of an extent is here any more.
    Drop(ExtentId),
}

/// How a prepared change is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// Its unit takes the place of whatever the slot had.
    Adopt,
    /// The slot becomes a hole.
    Hole,
    /// Its blocks are copied into the slot's unit.
    Copy,
    /// Its unit gets the other blocks of the slot's unit, which a snapshot sees, and its place.
    Merge,
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
    /// It gets the other blocks of the unit that the slot had, which a snapshot sees.
    pub(crate) copied: bool,
}

/// Blocks of a unit get data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WriteRecord {
    pub(crate) place: Place,
    /// The data is in the unit already, not in the batch.
    pub(crate) placed: bool,
    /// Of each block.
    pub(crate) digests: Digests,
}

impl Record {
    /// What it writes whose data is in its batch.
    pub(crate) fn data(&self) -> Option<&WriteRecord> {
        match self {
            Self::Write(write) | Self::Prepare { write, zeros: false, .. } if !write.placed => Some(write),
            _ => None,
        }
    }

    /// Blocks of data that it has in its batch.
    pub(crate) fn data_blocks(&self) -> u32 {
        self.data().map_or(0, |write| u32::from(write.place.blocks))
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Write(write) => {
                out.put_u8(WRITE);
                write.place.encode(write.flags(), out);
                put_digests(&write.digests, out);
            }
            Self::Prepare { write, prev, zeros } => {
                out.put_u8(PREPARE);
                write.place.encode(write.flags() | if *zeros { ZEROS } else { 0 }, out);
                put_version(out, *prev);
                put_digests(&write.digests, out);
            }
            Self::Commit { extent, slot, version, how } => {
                out.put_slice(&[COMMIT, how.code()]);
                put_slot(*extent, *slot, *version, out);
            }
            Self::Rollback { extent, slot, version } => {
                out.put_slice(&[ROLLBACK, 0]);
                put_slot(*extent, *slot, *version, out);
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
            Self::Watermark { namespace, mark, complete } => {
                out.put_slice(&[WATERMARK, u8::from(*complete), 0, 0, 0, 0, 0, 0, 0]);
                out.put_u64_le(namespace.0);
                put_version(out, *mark);
            }
            Self::Mark(id, snapshot) => put_snapshot(MARK, *id, *snapshot, out),
            Self::Unmark(id, snapshot) => put_snapshot(UNMARK, *id, *snapshot, out),
            Self::Drop(extent) => {
                out.put_u8(DROP);
                out.put_u64_le(extent.namespace.0);
                out.put_u64_le(extent.index);
            }
        }
    }

    /// The next record; `None` if it is none.
    pub(crate) fn decode(fields: &mut &[u8]) -> Option<Self> {
        Some(match fields.try_get_u8().ok()? {
            WRITE => {
                let (place, flags) = Place::decode(fields)?;
                if flags & !(FRESH | PLACED | COPIED) != 0 || flags & (FRESH | COPIED) == COPIED {
                    return None;
                }
                let digests = get_digests(place.blocks, fields)?;
                Self::Write(WriteRecord { place, placed: flags & PLACED != 0, digests })
            }
            PREPARE => {
                let (place, flags) = Place::decode(fields)?;
                let zeros = flags & ZEROS != 0;
                if flags & !(FRESH | PLACED | ZEROS) != 0 || flags & FRESH == 0 {
                    return None;
                }
                let prev = get_version(fields)?;
                let digests = get_digests(if zeros { 0 } else { place.blocks }, fields)?;
                let write = WriteRecord { place, placed: flags & PLACED != 0, digests };
                Self::Prepare { write, prev, zeros }
            }
            COMMIT => {
                let how = How::of(fields.try_get_u8().ok()?)?;
                let (extent, slot, version) = get_slot(fields)?;
                Self::Commit { extent, slot, version, how }
            }
            ROLLBACK => {
                if fields.try_get_u8().ok()? != 0 {
                    return None;
                }
                let (extent, slot, version) = get_slot(fields)?;
                Self::Rollback { extent, slot, version }
            }
            ZERO => match Place::decode(fields)? {
                (place, 0 | FRESH) => Self::Zero(place),
                (place, flags) if flags == FRESH | COPIED => Self::Zero(place),
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
            WATERMARK => {
                let complete = match fields.try_get_uint_le(8).ok()? {
                    0 => false,
                    1 => true,
                    _ => return None,
                };
                let namespace = Namespace(fields.try_get_u64_le().ok()?);
                Self::Watermark { namespace, mark: get_version(fields)?, complete }
            }
            MARK => {
                let (id, snapshot) = get_snapshot(fields)?;
                Self::Mark(id, snapshot)
            }
            UNMARK => {
                let (id, snapshot) = get_snapshot(fields)?;
                Self::Unmark(id, snapshot)
            }
            DROP => Self::Drop(get_extent(fields)?),
            _ => return None,
        })
    }
}

impl How {
    fn code(self) -> u8 {
        match self {
            Self::Adopt => 1,
            Self::Hole => 2,
            Self::Copy => 3,
            Self::Merge => 4,
        }
    }

    fn of(code: u8) -> Option<Self> {
        [Self::Adopt, Self::Hole, Self::Copy, Self::Merge].into_iter().find(|how| how.code() == code)
    }
}

impl WriteRecord {
    fn flags(&self) -> u8 {
        if self.placed { PLACED } else { 0 }
    }
}

impl Place {
    fn encode(&self, flags: u8, out: &mut Vec<u8>) {
        let (fresh, copied) = (if self.fresh { FRESH } else { 0 }, if self.copied { COPIED } else { 0 });
        out.put_u8(flags | fresh | copied);
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
            Self {
                extent,
                version,
                slot,
                first,
                blocks,
                unit,
                fresh: flags & FRESH != 0,
                copied: flags & COPIED != 0,
            },
            flags,
        ))
    }
}

fn put_digests(digests: &[Digest], out: &mut Vec<u8>) {
    for digest in digests {
        out.put_u32_le(digest.value);
        out.put_uint_le(u64::from(digest.tags), 3);
    }
}

fn get_digests(blocks: u8, fields: &mut &[u8]) -> Option<Digests> {
    let mut digests = Digests::with_capacity(usize::from(blocks));
    for _ in 0..blocks {
        let value = fields.try_get_u32_le().ok()?;
        let tags = u32::try_from(fields.try_get_uint_le(3).ok()?).ok()?;
        digests.push(Digest { value, tags });
    }
    Some(digests)
}

fn put_slot(extent: ExtentId, slot: u8, version: Version, out: &mut Vec<u8>) {
    out.put_u8(slot);
    out.put_u16_le(0);
    out.put_u64_le(extent.namespace.0);
    out.put_u64_le(extent.index);
    put_version(out, version);
}

fn get_slot(fields: &mut &[u8]) -> Option<(ExtentId, u8, Version)> {
    let slot = fields.try_get_u8().ok()?;
    let is_valid = slot < SLOTS && fields.try_get_u16_le().ok()? == 0;
    let extent = get_extent(fields)?;
    let version = get_version(fields)?;
    is_valid.then_some((extent, slot, version))
}

fn put_snapshot(kind: u8, id: Namespace, snapshot: Snapshot, out: &mut Vec<u8>) {
    out.put_u8(kind);
    out.put_u64_le(id.0);
    out.put_u64_le(snapshot.0);
}

fn get_snapshot(fields: &mut &[u8]) -> Option<(Namespace, Snapshot)> {
    Some((Namespace(fields.try_get_u64_le().ok()?), Snapshot(fields.try_get_u64_le().ok()?)))
}

fn get_extent(fields: &mut &[u8]) -> Option<ExtentId> {
    let namespace = Namespace(fields.try_get_u64_le().ok()?);
    Some(ExtentId { namespace, index: fields.try_get_u64_le().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards the layout of what prepares changes against the table.
    #[test]
    fn prepared_changes_have_these_bytes() {
        let extent = ExtentId { namespace: Namespace(0x0102), index: 3 };
        let [version, prev] = [5, 4].map(|seq| Version { generation: Generation(6), seq });
        let place =
            Place { extent, version, slot: 63, first: 14, blocks: 2, unit: 7, fresh: true, copied: false };
        let numbers = |numbers: &[u64]| numbers.iter().flat_map(|it| it.to_le_bytes()).collect::<Vec<_>>();
        let write = WriteRecord { place, placed: true, digests: Digests::new() };
        let of_zeros = [&[7, 1 | 2 | 4, 63, 14, 2], &numbers(&[0x0102, 3, 6, 5])[..], &[7, 0, 0, 0]].concat();
        let digests: Digests =
            smallvec::smallvec![Digest { value: 8, tags: 9 }, Digest { value: 10, tags: 0x0c_0b }];
        let of_data = [&[7, 1, 63, 14, 2], &of_zeros[5..], &numbers(&[6, 4])[..]].concat();
        let sums = [8, 0, 0, 0, 9, 0, 0, 10, 0, 0, 0, 0x0b, 0x0c, 0];
        let resolved = |head: &[u8]| [head, &[63, 0, 0], &numbers(&[0x0102, 3, 6, 5])].concat();
        let records = [
            (Record::Prepare { write, prev, zeros: true }, [&of_zeros[..], &numbers(&[6, 4])].concat()),
            (
                Record::Prepare { write: WriteRecord { place, placed: false, digests }, prev, zeros: false },
                [&of_data[..], &sums].concat(),
            ),
            (Record::Commit { extent, slot: 63, version, how: How::Adopt }, resolved(&[8, 1])),
            (Record::Commit { extent, slot: 63, version, how: How::Hole }, resolved(&[8, 2])),
            (Record::Commit { extent, slot: 63, version, how: How::Copy }, resolved(&[8, 3])),
            (Record::Rollback { extent, slot: 63, version }, resolved(&[9, 0])),
            (Record::Commit { extent, slot: 63, version, how: How::Merge }, resolved(&[8, 4])),
            (Record::Mark(Namespace(2), Snapshot(3)), [&[10], &numbers(&[2, 3])[..]].concat()),
            (Record::Unmark(Namespace(2), Snapshot(3)), [&[11], &numbers(&[2, 3])[..]].concat()),
            (Record::Drop(extent), [&[12], &numbers(&[0x0102, 3])[..]].concat()),
        ];
        for (record, expected) in records {
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            assert_eq!(bytes, expected, "{record:?}");
        }
    }

    /// Guards the format: every kind says the same when it is read, and nothing when it is cut.
    #[test]
    fn encodes() {
        let extent = ExtentId { namespace: Namespace(1 << 60), index: 2 };
        let version = Version { generation: Generation(3), seq: 4 };
        let place =
            Place { extent, version, slot: 63, first: 15, blocks: 1, unit: 7, fresh: true, copied: false };
        let digests: Digests = smallvec::smallvec![Digest { value: 8, tags: 0xff_ffff }];
        let whole = Place { first: 0, blocks: 16, fresh: false, ..place };
        let records = [
            Record::Write(WriteRecord { place, placed: false, digests: digests.clone() }),
            Record::Write(WriteRecord {
                place: whole,
                placed: true,
                digests: Digests::from_elem(digests[0], 16),
            }),
            Record::Zero(place),
            Record::Zero(Place { copied: true, ..place }),
            Record::Write(WriteRecord {
                place: Place { copied: true, ..place },
                placed: false,
                digests: digests.clone(),
            }),
            Record::Hole { extent, version, slots: u64::MAX },
            Record::Seal(extent.namespace, Generation(5), Epoch(6)),
            Record::Delete(extent.namespace),
            Record::Watermark { namespace: extent.namespace, mark: version, complete: false },
            Record::Watermark { namespace: extent.namespace, mark: version, complete: true },
            Record::Prepare {
                write: WriteRecord { place, placed: false, digests: digests.clone() },
                prev: version,
                zeros: false,
            },
            Record::Prepare {
                write: WriteRecord {
                    place: Place { fresh: true, ..whole },
                    placed: true,
                    digests: Digests::from_elem(digests[0], 16),
                },
                prev: version,
                zeros: false,
            },
            Record::Prepare {
                write: WriteRecord { place, placed: true, digests: Digests::new() },
                prev: version,
                zeros: true,
            },
            Record::Commit { extent, slot: 63, version, how: How::Copy },
            Record::Rollback { extent, slot: 0, version },
            Record::Commit { extent, slot: 63, version, how: How::Merge },
            Record::Mark(extent.namespace, Snapshot(9)),
            Record::Unmark(extent.namespace, Snapshot(9)),
            Record::Drop(extent),
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
        assert_eq!(Record::decode(&mut [13u8; 60].as_slice()), None);
        // Blocks are copied into fresh units only.
        let mut bytes = Vec::new();
        Record::Zero(Place { fresh: false, copied: true, ..place }).encode(&mut bytes);
        assert_eq!((bytes[1], Record::decode(&mut bytes.as_slice())), (8, None));
    }
}

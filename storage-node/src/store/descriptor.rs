//! Descriptors of units, and checksums of blocks. This page is the specification.
//!
//! A descriptor is one sector: what the 16 blocks of a unit hold.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | magic `LUDS` |
//! | 4 | 4 | unit |
//! | 8 | 16 | extent: namespace 8, index 8 |
//! | 24 | 1 | slot: which 64 KiB of the extent |
//! | 25 | 7 | zeros |
//! | 32 | 8 | LSN of the newest record in it |
//! | 40 | 20 | zeros |
//! | 60 | 4 | CRC-32C of (disk uuid 16, bytes 0 to 60, bytes 64 to 512) |
//! | 64 | 448 | 28 bytes for each of 16 blocks |
//!
//! A block:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 16 | version (generation 8, seq 8) |
//! | 16 | 4 | checksum (see below); 0 without data |
//! | 20 | 4 | digest of the data before this one, 0 if there was none |
//! | 24 | 1 | state: 0 never written, 1 data, 2 zeros, 3 lost |
//! | 25 | 3 | the low 3 bits of the XXH3 (64 bits) of each of the 8 sectors of the data, first sector lowest |
//!
//! The digest of a block is the CRC-32C of the XXH3s of its 8 sectors (8 bytes each); its checksum is the digest
//! XOR the CRC-32C of (namespace 8, index 8, block in the extent 4, version 16). So a checksum covers where the
//! data belongs and which version it is, and when it does not match, there is enough to say what happened. The data
//! itself is not summed by a CRC: a sector that ends with its own CRC-32C has the same one as any other that does.
//!
//! When a descriptor is damaged, its blocks are lost: nothing vouches for them. What the sector says of them is kept with
//! the state 3 when a block beside them is written, for it may be all that tells what is left of the only copy.

use std::ops::Range;

use bytes::{Buf, BufMut, Bytes};
use lunette_proto::checksum::{crc32c, crc32c_of_parts};
use lunette_proto::ids::{DiskUuid, ExtentId, Generation, Namespace, Version};
use lunette_proto::limits::BLOCK_BYTES;
use xxhash_rust::xxh3::xxh3_64;

use super::layout::{DESCRIPTOR_BYTES, UNIT_BYTES};

const MAGIC: &[u8; 4] = b"LUDS";
const BYTES: usize = DESCRIPTOR_BYTES as usize;
const HEADER: usize = 64;
const CRC: usize = 60;
const ENTRY: usize = 28;
const SECTOR: usize = 512;
const SECTORS: usize = BLOCK_BYTES as usize / SECTOR;
const TAG_BITS: usize = 3;
/// Blocks of a unit.
pub const UNIT_BLOCKS: u32 = (UNIT_BYTES / BLOCK_BYTES as u64) as u32;
const _: () = assert!(HEADER + ENTRY * UNIT_BLOCKS as usize == BYTES);

/// What is wrong with something on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// Nothing was ever stored there: the write never happened.
    #[error("lost")]
    Lost,
    /// Part of it is right: a torn write, or flipped bits.
    #[error("torn")]
    Torn,
    /// It belongs elsewhere.
    #[error("misdirected")]
    Misdirected,
    /// It is what was there before.
    #[error("stale")]
    Stale,
    /// The medium cannot read it.
    #[error("unreadable")]
    Unreadable,
}

/// What is in a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BlockState {
    /// Never written: zeros.
    #[default]
    Absent,
    /// Data.
    Data,
    /// Zeros, of a discard.
    Zeros,
    /// Something was there and is damaged.
    Lost,
}

/// Checksums of a block's data alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest {
    /// The digest.
    pub value: u32,
    /// 3 bits for each sector.
    pub tags: u32,
}

impl Digest {
    /// Of a block of data.
    #[must_use]
    pub fn of(data: &[u8]) -> Self {
        let mut sums = [0; SECTORS * size_of::<u64>()];
        let mut tags = 0;
        for (index, sector) in data.chunks_exact(SECTOR).enumerate() {
            let sum = xxh3_64(sector).to_le_bytes();
            sums[index * sum.len()..][..sum.len()].copy_from_slice(&sum);
            tags |= u32::from(sum[0] & ((1 << TAG_BITS) - 1)) << (index * TAG_BITS);
        }
        Self { value: crc32c(&sums), tags }
    }
}

/// What binds a checksum to where the data belongs and which version it is.
#[must_use]
pub fn binding(id: ExtentId, block: u32, version: Version) -> u32 {
    let mut place = [0; 36];
    let mut out = place.as_mut_slice();
    out.put_u64_le(id.namespace.0);
    out.put_u64_le(id.index);
    out.put_u32_le(block);
    out.put_u64_le(version.generation.0);
    out.put_u64_le(version.seq);
    crc32c(&place)
}

/// A block as its descriptor has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Its version.
    pub version: Version,
    /// What it is.
    pub state: BlockState,
    /// Its checksum.
    pub checksum: u32,
    /// The digest of the data that it replaced.
    pub before: u32,
    /// The tags of its digest.
    pub tags: u32,
}

impl Entry {
    /// Zeros, or nothing, of a version.
    #[must_use]
    pub fn zeros(version: Version) -> Self {
        let state = if version == Version::NONE { BlockState::Absent } else { BlockState::Zeros };
        Self { version, state, ..Self::default() }
    }

    /// Data of a version at a place.
    #[must_use]
    pub fn data(id: ExtentId, block: u32, version: Version, digest: Digest) -> Self {
        let checksum = digest.value ^ binding(id, block, version);
        Self { version, state: BlockState::Data, checksum, before: 0, tags: digest.tags }
    }

    /// This entry in the place of `old`, which it replaces.
    #[must_use]
    pub fn over(self, id: ExtentId, block: u32, old: &Self) -> Self {
        let before = match old.state {
            BlockState::Data => old.digest(id, block),
            _ => 0,
        };
        Self { before, ..self }
    }

    fn digest(&self, id: ExtentId, block: u32) -> u32 {
        self.checksum ^ binding(id, block, self.version)
    }

    fn decode(fields: &mut &[u8]) -> Option<Self> {
        let version = Version { generation: Generation(fields.get_u64_le()), seq: fields.get_u64_le() };
        let checksum = fields.get_u32_le();
        let before = fields.get_u32_le();
        let state = match fields.get_u8() {
            0 => BlockState::Absent,
            1 => BlockState::Data,
            2 => BlockState::Zeros,
            3 => BlockState::Lost,
            _ => return None,
        };
        let tags = u32::try_from(fields.get_uint_le(3)).ok()?;
        Some(Self { version, state, checksum, before, tags })
    }

    fn encode(&self) -> [u8; ENTRY] {
        let state = match self.state {
            BlockState::Absent => 0,
            BlockState::Data => 1,
            BlockState::Zeros => 2,
            BlockState::Lost => 3,
        };
        let mut bytes = [0; ENTRY];
        bytes[..8].copy_from_slice(&self.version.generation.0.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.version.seq.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.checksum.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.before.to_le_bytes());
        // The tags take 3 bytes.
        bytes[24..].copy_from_slice(&(self.tags << 8 | state).to_le_bytes());
        bytes
    }
}

/// What the blocks of a unit hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Which unit.
    pub unit: u32,
    /// Whose.
    pub extent: ExtentId,
    /// Which 64 KiB of the extent.
    pub slot: u8,
    /// The newest record in it.
    pub lsn: u64,
    /// The blocks.
    pub blocks: [Entry; UNIT_BLOCKS as usize],
}

impl Descriptor {
    /// Of a fresh unit, all of whose blocks are zeros of `version`.
    #[must_use]
    pub fn fresh(unit: u32, extent: ExtentId, slot: u8, version: Version) -> Self {
        Self { unit, extent, slot, lsn: 0, blocks: [Entry::zeros(version); UNIT_BLOCKS as usize] }
    }

    /// Of a unit whose descriptor is damaged: nothing is known of its blocks.
    #[must_use]
    pub fn lost(unit: u32, extent: ExtentId, slot: u8) -> Self {
        let entry = Entry { state: BlockState::Lost, ..Entry::default() };
        Self { unit, extent, slot, lsn: 0, blocks: [entry; UNIT_BLOCKS as usize] }
    }

    /// The same, with what the damaged `sector` says of the blocks, unless it is of another unit or extent.
    #[must_use]
    pub fn salvaged(uuid: DiskUuid, sector: &[u8; BYTES], unit: u32, extent: ExtentId, slot: u8) -> Self {
        let mut descriptor = Self::lost(unit, extent, slot);
        let is_its_own = match Self::decode(uuid, sector, unit, extent, slot) {
            Ok(_) | Err(Damage::Torn) => !planted!(DamagedDescriptorForgotten),
            Err(_) => false,
        };
        let mut entries = &sector[HEADER..];
        for block in descriptor.blocks.iter_mut().filter(|_| is_its_own) {
            let (mut entry, rest) = entries.split_at(ENTRY);
            entries = rest;
            let known = Entry::decode(&mut entry).unwrap_or_default();
            *block = Entry { state: BlockState::Lost, ..known };
        }
        descriptor
    }

    /// Of another unit with the same blocks, which are copied into it.
    #[must_use]
    pub fn copied_to(&self, unit: u32) -> Self {
        let mut descriptor = Self { unit, ..self.clone() };
        let known = descriptor.blocks.iter_mut().filter(|block| block.state != BlockState::Lost);
        // Nothing was there before them.
        known.for_each(|block| block.before = 0);
        descriptor
    }

    /// Blocks that have content, or had before they were lost, but for those in `but`: as runs.
    pub fn content_beside(&self, but: Range<u32>) -> impl Iterator<Item = Range<u32>> {
        let has_content = move |index: u32| {
            !but.contains(&index)
                && matches!(self.blocks[index as usize].state, BlockState::Data | BlockState::Lost)
        };
        let mut next = 0;
        std::iter::from_fn(move || {
            let first = (next..UNIT_BLOCKS).find(|index| has_content(*index))?;
            next = (first..UNIT_BLOCKS).find(|index| !has_content(*index)).unwrap_or(UNIT_BLOCKS);
            Some(first..next)
        })
    }

    /// The first block of the extent that it holds.
    #[must_use]
    pub fn first_block(&self) -> u32 {
        u32::from(self.slot) * UNIT_BLOCKS
    }

    /// The sector, and its checksum, by which a page of metadata knows it.
    #[must_use]
    pub fn encode(&self, uuid: DiskUuid) -> (Bytes, u32) {
        let mut sector = vec![0; BYTES];
        let mut header = &mut sector[..HEADER];
        header.put_slice(MAGIC);
        header.put_u32_le(self.unit);
        header.put_u64_le(self.extent.namespace.0);
        header.put_u64_le(self.extent.index);
        header.put_u8(self.slot);
        header.put_bytes(0, 7);
        header.put_u64_le(self.lsn);
        for (block, out) in self.blocks.iter().zip(sector[HEADER..].chunks_exact_mut(ENTRY)) {
            out.copy_from_slice(&block.encode());
        }
        let crc = checksum(uuid, &sector);
        sector[CRC..HEADER].copy_from_slice(&crc.to_le_bytes());
        (sector.into(), crc)
    }

    /// Takes a sector that should be the descriptor of `unit`; also its checksum.
    ///
    /// # Errors
    /// It is not: what happened to it.
    pub fn decode(
        uuid: DiskUuid,
        sector: &[u8; BYTES],
        unit: u32,
        extent: ExtentId,
        slot: u8,
    ) -> Result<(Self, u32), Damage> {
        let mut fields = sector.as_slice();
        if fields.copy_to_bytes(MAGIC.len()) != MAGIC[..] {
            return Err(if sector.iter().all(|byte| *byte == 0) { Damage::Lost } else { Damage::Torn });
        }
        let crc = (&sector[CRC..]).get_u32_le();
        if crc != checksum(uuid, sector) {
            return Err(Damage::Torn);
        }
        let found_unit = fields.get_u32_le();
        let found = ExtentId { namespace: Namespace(fields.get_u64_le()), index: fields.get_u64_le() };
        let found_slot = fields.get_u8();
        if found_unit != unit {
            return Err(Damage::Misdirected);
        }
        if (found, found_slot) != (extent, slot) {
            // What the unit was before.
            return Err(Damage::Stale);
        }
        fields.advance(7);
        let lsn = fields.get_u64_le();
        let mut descriptor = Self { lsn, ..Self::lost(unit, extent, slot) };
        let mut entries = &sector[HEADER..];
        for block in &mut descriptor.blocks {
            *block = Entry::decode(&mut entries).ok_or(Damage::Torn)?;
        }
        Ok((descriptor, crc))
    }

    /// Whether `data` is what block `index` of the unit should hold.
    ///
    /// # Errors
    /// It is not: what happened to it.
    pub fn verify(&self, index: u32, data: &[u8]) -> Result<(), Damage> {
        let block = self.first_block() + index;
        let entry = &self.blocks[index as usize];
        let digest = Digest::of(data);
        let expected = entry.digest(self.extent, block);
        if digest.value == expected || planted!(BlockChecksumIgnored) {
            return Ok(());
        }
        if data.iter().all(|byte| *byte == 0) {
            return Err(Damage::Lost);
        }
        if digest.value == entry.before {
            return Err(Damage::Stale);
        }
        let elsewhere = (self.first_block()..).zip(&self.blocks).any(|(other, entry)| {
            entry.state == BlockState::Data && entry.digest(self.extent, other) == digest.value
        });
        let right = (0..SECTORS)
            .filter(|sector| {
                let tag = |tags: u32| tags >> (sector * TAG_BITS) & ((1 << TAG_BITS) - 1);
                tag(digest.tags) == tag(entry.tags)
            })
            .count();
        // Of a foreign block, one sector in eight has the right tag by chance.
        Err(if elsewhere || right <= 3 { Damage::Misdirected } else { Damage::Torn })
    }
}

fn checksum(uuid: DiskUuid, sector: &[u8]) -> u32 {
    crc32c_of_parts([uuid.0.to_le_bytes().as_slice(), &sector[..CRC], &sector[HEADER..]])
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: DiskUuid = DiskUuid(5);
    const ID: ExtentId = ExtentId { namespace: Namespace(3), index: 9 };

    fn version(seq: u64) -> Version {
        Version { generation: Generation(2), seq }
    }

    fn block(seed: u8) -> Vec<u8> {
        (0..BLOCK_BYTES)
            .map(|at| (at as u8).wrapping_mul(seed).wrapping_add(seed ^ (at >> 8) as u8))
            .collect()
    }

    fn sample() -> Descriptor {
        let mut descriptor = Descriptor::fresh(7, ID, 2, version(1));
        for (index, seed) in [(3, 11), (4, 12)] {
            let at = 32 + index as u32;
            let old = Entry::data(ID, at, version(2), Digest::of(&block(99)));
            descriptor.blocks[index] =
                Entry::data(ID, at, version(5), Digest::of(&block(seed))).over(ID, at, &old);
        }
        descriptor.lsn = 77;
        descriptor
    }

    /// Guards the format: what is written is read, and damage to any bit is found.
    #[test]
    fn any_flipped_bit_is_found() {
        let descriptor = sample();
        let (sector, crc) = descriptor.encode(UUID);
        let sector: [u8; 512] = sector[..].try_into().expect("a sector");
        assert_eq!(Descriptor::decode(UUID, &sector, 7, ID, 2), Ok((descriptor, crc)));
        for bit in 0..512 * 8 {
            let mut flipped = sector;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Descriptor::decode(UUID, &flipped, 7, ID, 2), Err(Damage::Torn), "bit {bit}");
        }
    }

    /// Guards copies: all that has content goes along, what is written anew does not, and the checksums hold in the other
    /// unit.
    #[test]
    fn content_goes_along() {
        let mut descriptor = sample();
        descriptor.blocks[15].state = BlockState::Lost;
        let runs = |but| descriptor.content_beside(but).collect::<Vec<_>>();
        assert_eq!(runs(0..0), [3..5, 15..16]);
        assert_eq!(runs(4..16), vec![3..4]);
        assert_eq!(runs(0..16), []);
        let copy = descriptor.copied_to(9);
        assert_eq!((copy.unit, copy.verify(4, &block(12)), copy.blocks[4].before), (9, Ok(()), 0));
        assert_ne!(descriptor.blocks[4].before, 0);
    }

    /// Guards what is left of an only copy: of a damaged descriptor, what it says of the blocks is kept, and that they are
    /// lost; of another one's, nothing.
    #[test]
    fn damage_is_salvaged() {
        let (sector, _) = sample().encode(UUID);
        let mut sector: [u8; 512] = sector[..].try_into().expect("a sector");
        let lost = Descriptor::lost(7, ID, 2);
        assert_eq!(Descriptor::salvaged(UUID, &sector, 8, ID, 2), Descriptor { unit: 8, ..lost.clone() });
        sector[HEADER + 3 * ENTRY + 17] ^= 1;
        let found = Descriptor::salvaged(UUID, &sector, 7, ID, 2);
        assert!(found.blocks.iter().all(|block| block.state == BlockState::Lost));
        assert_eq!((found.verify(4, &block(12)), found.blocks[4].version), (Ok(()), version(5)));
        assert!(found.verify(3, &block(11)).is_err());
        sector[HEADER + 4 * ENTRY + 24] = 9;
        assert_eq!(Descriptor::salvaged(UUID, &sector, 7, ID, 2).blocks[4], lost.blocks[4]);
        assert_eq!(Descriptor::salvaged(UUID, &[0; 512], 7, ID, 2), lost);
    }

    /// Guards against a descriptor that is read as another one's.
    #[test]
    fn belongs_where_it_says() {
        let (sector, _) = sample().encode(UUID);
        let sector: [u8; 512] = sector[..].try_into().expect("a sector");
        assert_eq!(Descriptor::decode(UUID, &sector, 8, ID, 2), Err(Damage::Misdirected));
        assert_eq!(Descriptor::decode(UUID, &sector, 7, ID, 3), Err(Damage::Stale));
        assert_eq!(Descriptor::decode(DiskUuid(6), &sector, 7, ID, 2), Err(Damage::Torn));
        assert_eq!(Descriptor::decode(UUID, &[0; 512], 7, ID, 2), Err(Damage::Lost));
    }

    /// Guards the names of what can happen to a block.
    #[test]
    fn damage_has_a_name() {
        let descriptor = sample();
        assert_eq!(descriptor.verify(3, &block(11)), Ok(()));
        assert_eq!(
            descriptor.verify(3, &block(0)[..4096].iter().map(|_| 0).collect::<Vec<_>>()),
            Err(Damage::Lost)
        );
        assert_eq!(descriptor.verify(3, &block(99)), Err(Damage::Stale));
        assert_eq!(descriptor.verify(3, &block(12)), Err(Damage::Misdirected));
        assert_eq!(descriptor.verify(3, &block(55)), Err(Damage::Misdirected));
        for torn_at in (512..4096).step_by(512) {
            let torn = [&block(11)[..torn_at], &block(99)[torn_at..]].concat();
            assert!(descriptor.verify(3, &torn).is_err());
            if torn_at >= 2048 {
                assert_eq!(descriptor.verify(3, &torn), Err(Damage::Torn), "{torn_at}");
            }
        }
        let mut flipped = block(11);
        flipped[1000] ^= 4;
        assert_eq!(descriptor.verify(3, &flipped), Err(Damage::Torn));
    }

    /// Guards against data that is made to look alike: sectors that end with their own CRC-32C.
    #[test]
    fn a_crc_in_the_data_does_not_hide_it() {
        let sealed = |seed| {
            let mut data = block(seed);
            for sector in data.chunks_exact_mut(SECTOR) {
                let crc = crc32c(&sector[..SECTOR - 4]);
                sector[SECTOR - 4..].copy_from_slice(&crc.to_le_bytes());
            }
            data
        };
        assert_eq!(crc32c(&sealed(1)[..SECTOR]), crc32c(&sealed(2)[..SECTOR]));
        assert_ne!(Digest::of(&sealed(1)).value, Digest::of(&sealed(2)).value);
    }

    /// Guards the binding: the same data of another version, or elsewhere, has another checksum.
    #[test]
    fn checksums_are_bound() {
        let digest = Digest::of(&block(1));
        let here = Entry::data(ID, 5, version(5), digest).checksum;
        assert_ne!(here, Entry::data(ID, 6, version(5), digest).checksum);
        assert_ne!(here, Entry::data(ID, 5, version(6), digest).checksum);
        assert_ne!(here, Entry::data(ExtentId { index: 8, ..ID }, 5, version(5), digest).checksum);
    }
}

//! Superblocks. This page is the specification.
//!
//! Two copies, at 0 and 4096, 4096 bytes each. The newer valid one counts; a checkpoint writes A, syncs, and then
//! writes B, so that a disk that was synced once more has it twice.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | magic `LUNESTOR` |
//! | 8 | 4 | format version: 6 |
//! | 12 | 4 | disk id |
//! | 16 | 16 | cluster id |
//! | 32 | 16 | disk uuid |
//! | 48 | 8 | bytes of the disk |
//! | 56 | 8 | bytes of the WAL |
//! | 64 | 8 | number of the checkpoint |
//! | 72 | 8 | LSN: records up to it are in the checkpoint |
//! | 80 | 8 | where the next batch begins in the WAL, in bytes from its beginning |
//! | 88 | 8 | number of the next batch |
//! | 96 | 4 | chain: checksum of the batch before |
//! | 100 | 4 | which checkpoint area: 0 or 1 |
//! | 104 | 8 | bytes of its content |
//! | 112 | 4 | CRC-32C of its content |
//! | 116 | 3976 | zeros |
//! | 4092 | 4 | CRC-32C of bytes 0 to 4092 |
//!
//! The whole layout follows from the two lengths (see [`layout`](super::layout)). Format 1 was a directory with a file
//! for each extent; it had no superblock. Format 2 knew no prepared changes, format 3 did not know how far a disk is complete, format 4
//! no snapshots, format 5 no dropped extents. None was released.

use bytes::{Buf, BufMut, Bytes};
use lunette_proto::checksum::crc32c;
use lunette_proto::ids::{ClusterId, DiskId, DiskUuid};

use super::Identity;
use super::layout::{Layout, PAGE_BYTES};

/// Version of the disk's format that this program reads and writes.
pub const FORMAT_VERSION: u32 = 6;
const MAGIC: &[u8; 8] = b"LUNESTOR";
const BYTES: usize = PAGE_BYTES as usize;
const CRC: usize = BYTES - 4;

/// What a superblock says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Which disk it is.
    pub identity: Identity,
    /// Where everything lies.
    pub layout: Layout,
    /// Number of the checkpoint, from 1.
    pub checkpoint: u64,
    /// Records up to this one are in the checkpoint.
    pub lsn: u64,
    /// Where the WAL goes on, in bytes from its beginning.
    pub wal_position: u64,
    /// Number of the first batch there.
    pub wal_batch: u64,
    /// Checksum of the batch before that.
    pub wal_chain: u32,
    /// Checkpoint area: 0 or 1.
    pub area: u8,
    /// Bytes of its content.
    pub area_len: u64,
    /// Checksum of its content.
    pub area_crc: u32,
}

/// Why a page is no superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotSuper {
    /// It has another magic: no disk of Lunette, or nothing left of it.
    Foreign,
    /// Its checksum is wrong.
    Damaged,
    /// It is of another version.
    Version(u32),
}

impl Superblock {
    /// The page.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut page = Vec::with_capacity(BYTES);
        page.put_slice(MAGIC);
        page.put_u32_le(FORMAT_VERSION);
        page.put_u32_le(self.identity.disk.0);
        page.put_u128_le(self.identity.cluster.0);
        page.put_u128_le(self.identity.uuid.0);
        page.put_u64_le(self.layout.total_bytes);
        page.put_u64_le(self.layout.wal_bytes);
        page.put_u64_le(self.checkpoint);
        page.put_u64_le(self.lsn);
        page.put_u64_le(self.wal_position);
        page.put_u64_le(self.wal_batch);
        page.put_u32_le(self.wal_chain);
        page.put_u32_le(u32::from(self.area));
        page.put_u64_le(self.area_len);
        page.put_u32_le(self.area_crc);
        page.put_bytes(0, CRC - page.len());
        let crc = crc32c(&page);
        page.put_u32_le(crc);
        page.into()
    }

    /// Takes a page.
    ///
    /// # Errors
    /// It is no superblock of a version that is known.
    pub fn decode(page: &[u8]) -> Result<Self, NotSuper> {
        let Some(page) = page.first_chunk::<BYTES>() else { return Err(NotSuper::Foreign) };
        let mut fields = page.as_slice();
        if fields.copy_to_bytes(MAGIC.len()) != MAGIC[..] {
            return Err(NotSuper::Foreign);
        }
        if (&page[CRC..]).get_u32_le() != crc32c(&page[..CRC]) {
            return Err(NotSuper::Damaged);
        }
        let version = fields.get_u32_le();
        if version != FORMAT_VERSION {
            return Err(NotSuper::Version(version));
        }
        let disk = DiskId(fields.get_u32_le());
        let cluster = ClusterId(fields.get_u128_le());
        let uuid = DiskUuid(fields.get_u128_le());
        let (total, wal) = (fields.get_u64_le(), fields.get_u64_le());
        let layout = Layout::new(total, wal).ok_or(NotSuper::Damaged)?;
        let superblock = Self {
            identity: Identity { cluster, disk, uuid },
            layout,
            checkpoint: fields.get_u64_le(),
            lsn: fields.get_u64_le(),
            wal_position: fields.get_u64_le(),
            wal_batch: fields.get_u64_le(),
            wal_chain: fields.get_u32_le(),
            area: match fields.get_u32_le() {
                0 => 0,
                1 => 1,
                _ => return Err(NotSuper::Damaged),
            },
            area_len: fields.get_u64_le(),
            area_crc: fields.get_u32_le(),
        };
        let fits = superblock.area_len <= layout.area_bytes
            && superblock.wal_position <= layout.wal_bytes
            && superblock.wal_position.is_multiple_of(PAGE_BYTES);
        if fits { Ok(superblock) } else { Err(NotSuper::Damaged) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards the format: what is written is read, damage to any byte is found, other versions are named.
    #[test]
    fn encodes() {
        let superblock = Superblock {
            identity: Identity { cluster: ClusterId(1), disk: DiskId(2), uuid: DiskUuid(3) },
            layout: Layout::new(8 << 20, 1 << 20).expect("large enough"),
            checkpoint: 4,
            lsn: 5,
            wal_position: 8192,
            wal_batch: 7,
            wal_chain: 8,
            area: 1,
            area_len: 4096,
            area_crc: 10,
        };
        let page = superblock.encode().to_vec();
        assert_eq!(Superblock::decode(&page), Ok(superblock));
        for at in 0..page.len() {
            let mut flipped = page.clone();
            flipped[at] ^= 0x10;
            assert!(Superblock::decode(&flipped).is_err(), "byte {at}");
        }
        let mut newer = page.clone();
        newer[8] = 7;
        let crc = crc32c(&newer[..CRC]);
        newer[CRC..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Superblock::decode(&newer), Err(NotSuper::Version(7)));
        assert_eq!(Superblock::decode(&page[..100]), Err(NotSuper::Foreign));
    }
}

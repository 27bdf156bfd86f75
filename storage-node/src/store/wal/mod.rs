//! The write-ahead log: a ring of batches. This page is the specification.
//!
//! A batch begins at a multiple of 4096, in one piece: header and records, zeros up to a multiple of 4096, then the
//! data of its records, whole blocks, in their order. The next batch begins where it ends, or at the beginning of the
//! ring, if it does not fit before the end.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | magic `LUWB` |
//! | 4 | 4 | bytes of header and records |
//! | 8 | 8 | number of the batch |
//! | 16 | 8 | LSN of its first record |
//! | 24 | 8 | number of the newest checkpoint whose superblock is durable |
//! | 32 | 4 | records |
//! | 36 | 4 | blocks of data |
//! | 40 | 4 | chain: the checksum (at 60) of the batch before |
//! | 44 | 16 | zeros |
//! | 60 | 4 | CRC-32C of (disk uuid 16, bytes 0 to 60, the records) |
//! | 64 | | records (see [`record`]) |
//!
//! A batch is written with one durable write after the one before it is durable. So only the last one can
//! be torn, and if there is any valid batch of a higher number, a batch that is not valid was damaged later. Each block of
//! data has its digest in its record.

pub mod record;
mod scan;

use bytes::{Buf, BufMut, Bytes};
use lunette_proto::checksum::crc32c_of_parts;
use lunette_proto::ids::DiskUuid;
use lunette_proto::limits::BLOCK_BYTES;

pub(crate) use record::{How, Record, WriteRecord};
pub(crate) use scan::{Batch, Found, Scan};

use super::layout::PAGE_BYTES;

const MAGIC: &[u8; 4] = b"LUWB";
const HEADER: usize = 64;
const CRC: usize = 60;
const PAGE: usize = PAGE_BYTES as usize;
const BLOCK: u64 = BLOCK_BYTES as u64;

/// What a batch's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) meta_len: u32,
    pub(crate) number: u64,
    pub(crate) first_lsn: u64,
    pub(crate) checkpoint: u64,
    pub(crate) records: u32,
    pub(crate) blocks: u32,
    pub(crate) chain: u32,
}

impl Header {
    /// Header and records of a batch; also its checksum.
    fn encode(&self, uuid: DiskUuid, records: &[u8]) -> (Bytes, u32) {
        let mut meta = Vec::with_capacity((HEADER + records.len()).next_multiple_of(PAGE));
        meta.put_slice(MAGIC);
        meta.put_u32_le(self.meta_len);
        meta.put_u64_le(self.number);
        meta.put_u64_le(self.first_lsn);
        meta.put_u64_le(self.checkpoint);
        meta.put_u32_le(self.records);
        meta.put_u32_le(self.blocks);
        meta.put_u32_le(self.chain);
        meta.put_bytes(0, HEADER - meta.len());
        meta.put_slice(records);
        let crc = checksum(uuid, &meta);
        meta[CRC..HEADER].copy_from_slice(&crc.to_le_bytes());
        meta.resize(meta.len().next_multiple_of(PAGE), 0);
        (meta.into(), crc)
    }

    /// Reads the fields only; `None` if there is no header.
    pub(crate) fn peek(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < HEADER || !bytes.starts_with(MAGIC) {
            return None;
        }
        let mut fields = &bytes[MAGIC.len()..];
        Some(Self {
            meta_len: fields.get_u32_le(),
            number: fields.get_u64_le(),
            first_lsn: fields.get_u64_le(),
            checkpoint: fields.get_u64_le(),
            records: fields.get_u32_le(),
            blocks: fields.get_u32_le(),
            chain: fields.get_u32_le(),
        })
    }

    /// Bytes of the whole batch.
    pub(crate) fn len(&self) -> u64 {
        u64::from(self.meta_len).next_multiple_of(PAGE_BYTES) + u64::from(self.blocks) * BLOCK
    }
}

/// The checksum of header and records, which are exactly `meta`.
fn checksum(uuid: DiskUuid, meta: &[u8]) -> u32 {
    crc32c_of_parts([uuid.0.to_le_bytes().as_slice(), &meta[..CRC], &meta[HEADER..]])
}

/// Where the ring goes on. Positions count on over the laps; modulo the ring's length they are places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wal {
    uuid: DiskUuid,
    ring_bytes: u64,
    head: u64,
    tail: u64,
    next: Point,
}

/// What identifies the next batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Point {
    /// Its place if it fits there, in bytes from the beginning of the ring.
    pub(crate) place: u64,
    /// Its number.
    pub(crate) number: u64,
    /// Checksum of the batch before it.
    pub(crate) chain: u32,
    /// LSN of its first record.
    pub(crate) lsn: u64,
}

impl Wal {
    /// A ring that holds nothing and goes on at `next`.
    pub(crate) fn new(uuid: DiskUuid, ring_bytes: u64, next: Point) -> Self {
        Self { uuid, ring_bytes, head: next.place, tail: next.place, next }
    }

    /// Where a batch of `len` bytes would begin.
    fn begin(&self, len: u64) -> u64 {
        if self.head % self.ring_bytes + len > self.ring_bytes {
            self.head.next_multiple_of(self.ring_bytes)
        } else {
            self.head
        }
    }

    /// Whether a batch of `len` bytes has room.
    pub(crate) fn has_room(&self, len: u64) -> bool {
        // An empty ring can go on anywhere.
        let tail = if self.used() == 0 { self.begin(len) } else { self.tail };
        self.begin(len) + len - tail <= self.ring_bytes || planted!(WalOverrun)
    }

    /// Bytes in use.
    pub(crate) fn used(&self) -> u64 {
        self.head - self.tail
    }

    pub(crate) fn ring_bytes(&self) -> u64 {
        self.ring_bytes
    }

    /// Where the next batch will be, for a checkpoint that holds everything before it.
    pub(crate) fn next(&self) -> Point {
        Point { place: self.head % self.ring_bytes, ..self.next }
    }

    /// The position up to which a checkpoint of now covers the ring.
    pub(crate) fn position(&self) -> u64 {
        self.head
    }

    /// Everything before `position` is not needed any more.
    pub(crate) fn free_to(&mut self, position: u64) {
        assert!(position <= self.head, "a checkpoint covers what is in the ring");
        // An empty ring may have gone on at its beginning since the checkpoint began.
        self.tail = self.tail.max(position);
    }

    /// Takes room for a batch: where it goes in the ring, and its header and records as they are written there.
    pub(crate) fn append(
        &mut self,
        checkpoint: u64,
        records: u32,
        encoded: &[u8],
        blocks: u32,
    ) -> (u64, Bytes) {
        let header = Header {
            meta_len: u32::try_from(HEADER + encoded.len()).expect("a batch is bounded"),
            number: self.next.number,
            first_lsn: self.next.lsn,
            checkpoint,
            records,
            blocks,
            chain: self.next.chain,
        };
        let len = header.len();
        assert!(self.has_room(len), "room was asked for");
        let begin = self.begin(len);
        let (meta, crc) = header.encode(self.uuid, encoded);
        if self.used() == 0 {
            self.tail = begin;
        }
        self.head = begin + len;
        let (number, lsn) = (self.next.number + 1, self.next.lsn + u64::from(records));
        self.next = Point { place: self.head % self.ring_bytes, number, chain: crc, lsn };
        (begin % self.ring_bytes, meta)
    }

    /// Bytes that a batch takes.
    pub(crate) fn batch_len(encoded: usize, blocks: u64) -> u64 {
        ((HEADER + encoded) as u64).next_multiple_of(PAGE_BYTES) + blocks * BLOCK
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards the ring: a batch lies in one piece, never over what is still needed.
    #[test]
    fn goes_round() {
        let mut wal = Wal::new(DiskUuid(1), 64 << 10, Point { place: 8192, number: 5, chain: 7, lsn: 1 });
        let mut live: Vec<(u64, u64)> = Vec::new();
        for round in 0..1000u64 {
            let blocks = u32::try_from(round * 7 % 5).expect("small");
            let len = Wal::batch_len(100, u64::from(blocks));
            while !wal.has_room(len) {
                let (_, end) = live.remove(0);
                wal.free_to(end);
            }
            let (place, meta) = wal.append(1, 2, &[1; 100], blocks);
            assert!(place + len <= 64 << 10);
            let end = wal.position();
            let begin = end - len;
            assert_eq!(begin % (64 << 10), place);
            for (other, other_end) in &live {
                let apart = begin >= *other_end && end <= other + (64 << 10);
                assert!(apart, "{begin}..{end} over {other}..{other_end}");
            }
            live.push((begin, end));
            let header = Header::peek(&meta).expect("a header");
            assert_eq!((header.number, header.first_lsn, header.len()), (5 + round, 1 + 2 * round, len));
        }
    }
}

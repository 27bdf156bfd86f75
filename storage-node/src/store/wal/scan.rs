//! Reading the ring when a disk is opened.

use std::io;

use lunette_proto::ids::DiskUuid;
use lunette_proto::limits::BLOCK_BYTES;

use super::super::descriptor::Digest;
use super::super::disk::Disk;
use super::super::layout::{Layout, PAGE_BYTES};
use super::{CRC, HEADER, Header, PAGE, Point, Record, checksum};

/// Read at a time when looking for headers.
const CHUNK_BYTES: u64 = 1 << 20;

/// A batch whose header and records are valid.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) header: Header,
    pub(crate) records: Vec<Record>,
    /// The data of the records, in order.
    pub(crate) data: Vec<u8>,
    /// Blocks of the data, counted from 0, that are not what their record says.
    pub(crate) damaged: Vec<u32>,
    crc: u32,
    /// Where it begins in the ring, in bytes.
    pub(crate) place: u64,
}

/// Reads batches from a point on.
#[derive(Debug)]
pub(crate) struct Scan<'a, D> {
    disk: &'a D,
    layout: &'a Layout,
    uuid: DiskUuid,
    next: Point,
    /// The highest number, and the highest checkpoint, of any header in the ring.
    newest: Newest,
}

/// What the valid headers in the ring say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Newest {
    pub(crate) number: u64,
    pub(crate) checkpoint: u64,
}

/// What comes next in the ring.
#[derive(Debug)]
pub(crate) enum Found {
    /// A batch.
    Batch(Batch),
    /// Nothing more. `torn`: there is a beginning of a batch that nobody was told of.
    End { torn: bool },
    /// A batch that was there is damaged; at this place of the ring.
    Damaged(u64),
}

impl<'a, D: Disk> Scan<'a, D> {
    /// Looks at the whole ring first.
    pub(crate) fn new(disk: &'a D, layout: &'a Layout, uuid: DiskUuid, next: Point) -> io::Result<Self> {
        let mut scan = Self { disk, layout, uuid, next, newest: Newest::default() };
        scan.newest = scan.find_newest()?;
        Ok(scan)
    }

    pub(crate) fn newest(&self) -> Newest {
        self.newest
    }

    /// Where the ring goes on.
    pub(crate) fn point(&self) -> Point {
        self.next
    }

    fn find_newest(&self) -> io::Result<Newest> {
        let mut newest = Newest::default();
        let mut place = 0;
        let mut chunk = Vec::new();
        while place < self.layout.wal_bytes {
            let len = CHUNK_BYTES.min(self.layout.wal_bytes - place);
            chunk.resize(usize::try_from(len).map_err(io::Error::other)?, 0);
            self.disk.read(self.layout.wal_offset + place, &mut chunk)?;
            for (index, page) in chunk.chunks_exact(PAGE).enumerate() {
                let Some(header) = Header::peek(page).filter(|header| header.number > newest.number) else {
                    continue;
                };
                let at = place + (index * PAGE) as u64;
                if let Some((header, ..)) = self.meta(at, header)? {
                    newest.number = header.number;
                    newest.checkpoint = newest.checkpoint.max(header.checkpoint);
                }
            }
            place += len;
        }
        Ok(newest)
    }

    /// Header and records at a place, if they are valid; and their checksum.
    fn meta(&self, place: u64, header: Header) -> io::Result<Option<(Header, Vec<u8>, u32)>> {
        let meta_len = header.meta_len as usize;
        if meta_len < HEADER || place.saturating_add(header.len()) > self.layout.wal_bytes {
            return Ok(None);
        }
        let mut meta = vec![0; meta_len.next_multiple_of(PAGE)];
        self.disk.read(self.layout.wal_offset + place, &mut meta)?;
        meta.truncate(meta_len);
        let crc = checksum(self.uuid, &meta);
        let is_valid = meta[CRC..HEADER] == crc.to_le_bytes();
        Ok(is_valid.then_some((header, meta, crc)))
    }

    /// The next batch.
    pub(crate) fn next(&mut self) -> io::Result<Found> {
        let mut found = self.batch_at(self.next.place)?;
        if found.is_none() && self.next.place != 0 && !planted!(WrongWrap) {
            found = self.batch_at(0)?;
        }
        let is_last = self.newest.number <= self.next.number;
        let Some(batch) = found else {
            return Ok(if is_last {
                Found::End { torn: self.has_rest()? }
            } else {
                Found::Damaged(self.next.place)
            });
        };
        if planted!(ReplayOneTooFew) && self.newest.number == self.next.number {
            return Ok(Found::End { torn: false });
        }
        #[cfg(test)]
        let batch = if is_last && planted!(TornTailInPart) { in_part(batch) } else { batch };
        if is_last && !batch.damaged.is_empty() && !planted!(TornTailIsWhole) {
            return Ok(Found::End { torn: true });
        }
        let records = batch.records.len() as u64;
        self.next = Point {
            place: batch.place + batch.header.len(),
            number: self.next.number + 1,
            chain: batch.crc,
            lsn: self.next.lsn + records,
        };
        Ok(Found::Batch(batch))
    }

    /// The batch that is expected, if it is at this place.
    fn batch_at(&self, place: u64) -> io::Result<Option<Batch>> {
        if place + PAGE_BYTES > self.layout.wal_bytes {
            return Ok(None);
        }
        let mut page = vec![0; PAGE];
        self.disk.read(self.layout.wal_offset + place, &mut page)?;
        let expected = |header: &Header| {
            (header.number, header.chain, header.first_lsn)
                == (self.next.number, self.next.chain, self.next.lsn)
        };
        let Some(header) = Header::peek(&page).filter(expected) else { return Ok(None) };
        let Some((header, meta, crc)) = self.meta(place, header)? else { return Ok(None) };
        let mut fields = &meta[HEADER..];
        let mut records = Vec::new();
        for _ in 0..header.records {
            match Record::decode(&mut fields) {
                Some(record) => records.push(record),
                None => return Ok(None),
            }
        }
        let blocks = records.iter().map(Record::data_blocks).sum::<u32>();
        if !fields.is_empty() || blocks != header.blocks {
            return Ok(None);
        }
        let mut data = vec![0; blocks as usize * BLOCK_BYTES as usize];
        let data_place = place + u64::from(header.meta_len).next_multiple_of(PAGE_BYTES);
        self.disk.read(self.layout.wal_offset + data_place, &mut data)?;
        let mut damaged = Vec::new();
        let mut content = (0..).zip(data.chunks_exact(BLOCK_BYTES as usize));
        for write in records.iter().filter_map(Record::data) {
            for (digest, (index, block)) in write.digests.iter().zip(&mut content) {
                if Digest::of(block) != *digest {
                    damaged.push(index);
                }
            }
        }
        Ok(Some(Batch { header, records, data, damaged, crc, place }))
    }

    /// Whether something of the batch that is expected next reached the medium.
    fn has_rest(&self) -> io::Result<bool> {
        for place in [self.next.place, 0] {
            if place + PAGE_BYTES <= self.layout.wal_bytes {
                let mut page = vec![0; PAGE];
                self.disk.read(self.layout.wal_offset + place, &mut page)?;
                if Header::peek(&page).is_some_and(|header| header.number >= self.next.number) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}

/// A batch without the records from the first damaged one on: a bug that the simulator must find.
#[cfg(test)]
fn in_part(mut batch: Batch) -> Batch {
    let first = batch.damaged.first().copied().unwrap_or(u32::MAX);
    let mut blocks = 0;
    let is_whole = |record: &&Record| {
        blocks += record.data_blocks();
        blocks <= first
    };
    let whole = batch.records.iter().take_while(is_whole).count();
    if whole > 0 {
        batch.records.truncate(whole);
        batch.damaged.clear();
    }
    batch
}

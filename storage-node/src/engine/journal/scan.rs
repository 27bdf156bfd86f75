//! Reading the journal when a disk is opened: what there is, and whether it is whole.

use std::fs::File;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use lunette_proto::checksum::crc32c;

use super::record::{ALIGN, HEADER_BYTES, Head, Record};
use super::{PAGE, SegmentHeader, path_of};
use crate::engine::identity::read_whole;
use crate::engine::{DiskError, Identity};

/// What the journal says.
#[derive(Debug)]
pub(crate) struct Recovered {
    /// Records to apply, oldest first: the state, then what came after it.
    pub(crate) records: Vec<Record>,
    /// The segment to go on from.
    pub(crate) base: SegmentHeader,
    /// LSN for the next record: beyond everything that was ever written.
    pub(crate) next_lsn: u64,
}

/// Reads the journal of the disk in `directory`.
pub(crate) fn recover(directory: &Path, identity: &Identity) -> Result<Recovered, DiskError> {
    let first = Segment::read(path_of(directory, 0), identity)?;
    let second = Segment::read(path_of(directory, 1), identity)?;
    let number = |segment: &Segment| segment.header.map_or(0, |header| header.number);
    let (old, new) = if number(&first) < number(&second) { (first, second) } else { (second, first) };
    let Some(header) = new.header else {
        return Err(new.damaged(0, "neither journal segment has a valid header"));
    };
    // The other file holds the segment before; or its header is invalid. The next segment may have been about to
    // begin there, but nothing beyond a part of its state may have been written: else its header was lost.
    if old.header.is_some_and(|old_header| old_header.number + 1 != header.number) {
        return Err(old.damaged(32, "the journal segments do not follow each other"));
    }
    let unused_lsn = old.check_unused(&SegmentHeader { number: header.number + 1, ..header })?;
    let scan = new.scan(&header)?;
    let seen_lsn = scan.seen_lsn.max(unused_lsn);
    if scan.has_state() {
        let mut records = Vec::new();
        if !header.checkpointed {
            let older = old.needed_by(&header)?;
            if older.next_lsn != header.first_lsn {
                return Err(old.damaged(older.end, "the journal ends before the next segment begins"));
            }
            records = older.records;
        }
        records.extend(scan.records);
        return Ok(Recovered { records, base: header, next_lsn: beyond(scan.next_lsn, seen_lsn) });
    }
    // The newest segment was about to begin: the one before it is the base still.
    new.check_unused(&header)?;
    let older = old.needed_by(&header)?;
    let Some(base) = old.header.filter(|base| base.checkpointed) else {
        return Err(old.damaged(12, "the segment gave up its predecessor too early"));
    };
    // One that was begun by opening the disk may follow a torn tail.
    if !header.checkpointed && older.next_lsn < header.first_lsn {
        return Err(old.damaged(older.end, "the journal ends before the next segment begins"));
    }
    let next_lsn = beyond(older.next_lsn.max(scan.next_lsn), seen_lsn.max(older.seen_lsn));
    Ok(Recovered { records: older.records, base, next_lsn })
}

fn beyond(next: u64, seen: u64) -> u64 {
    next.max(seen.saturating_add(1))
}

/// A segment's file in memory.
struct Segment {
    path: PathBuf,
    bytes: Bytes,
    header: Option<SegmentHeader>,
}

/// What a segment holds.
struct Scan {
    records: Vec<Record>,
    next_lsn: u64,
    /// The highest LSN seen, torn ones included.
    seen_lsn: u64,
    end: u64,
}

impl Scan {
    fn has_state(&self) -> bool {
        self.records.iter().any(|record| matches!(record, Record::StateEnd))
    }
}

impl Segment {
    fn read(path: PathBuf, identity: &Identity) -> Result<Self, DiskError> {
        let mut file = File::open(&path).map_err(DiskError::io(&path, "open it"))?;
        let bytes = Bytes::from(read_whole(&mut file, identity.segment_bytes, &path)?);
        if bytes.len() as u64 != identity.segment_bytes {
            let offset = bytes.len() as u64;
            return Err(DiskError::Damaged { path, offset, what: "the journal segment is cut short" });
        }
        let header = SegmentHeader::decode(&bytes, identity.uuid, &path)?;
        Ok(Self { path, bytes, header })
    }

    fn scan(&self, header: &SegmentHeader) -> Result<Scan, DiskError> {
        let mut scan =
            Scan { records: Vec::new(), next_lsn: header.first_lsn, seen_lsn: 0, end: PAGE as u64 };
        let mut position = PAGE;
        let mut state = true;
        while let Some((record, end)) = self.record_at(header, position, scan.next_lsn)? {
            if record.is_state() != state {
                return Err(self.damaged(position as u64, "state and changes are mixed"));
            }
            state &= !matches!(record, Record::StateEnd);
            scan.records.push(record);
            scan.next_lsn += 1;
            position = end;
        }
        scan.end = position as u64;
        for head in self.heads(header, position) {
            if head.lsn > scan.next_lsn && head.durable >= scan.next_lsn {
                return Err(self.damaged(scan.end, "a journal record that was durable is missing or damaged"));
            }
            scan.seen_lsn = scan.seen_lsn.max(head.lsn);
        }
        Ok(scan)
    }

    /// The record `lsn` that begins after `position`, and where it ends.
    fn record_at(
        &self,
        header: &SegmentHeader,
        position: usize,
        lsn: u64,
    ) -> Result<Option<(Record, usize)>, DiskError> {
        for start in [position.next_multiple_of(ALIGN), position.next_multiple_of(PAGE)] {
            let Some(head) = self.bytes.get(start..).and_then(|bytes| Head::decode(header, bytes)) else {
                continue;
            };
            let body = start + HEADER_BYTES;
            let data = body + head.body_len;
            let end = data + head.data_len;
            if head.lsn != lsn || end > self.bytes.len() {
                continue;
            }
            let body = &self.bytes[body..data];
            let data = self.bytes.slice(data..end);
            if crc32c(body) != head.body_crc || crc32c(&data) != head.data_crc {
                continue;
            }
            let record =
                Record::decode(head.kind, body, data).map_err(|what| self.damaged(start as u64, what))?;
            return Ok(Some((record, end)));
        }
        Ok(None)
    }

    /// Headers of this segment anywhere after `position`.
    fn heads<'a>(&'a self, header: &'a SegmentHeader, position: usize) -> impl Iterator<Item = Head> + 'a {
        (position.next_multiple_of(ALIGN)..self.bytes.len())
            .step_by(ALIGN)
            .filter_map(move |start| Head::decode(header, &self.bytes[start..]))
    }

    /// Fails if records other than a beginning state were ever written into segment `header`;
    /// the highest LSN of that state.
    fn check_unused(&self, header: &SegmentHeader) -> Result<u64, DiskError> {
        let mut seen_lsn = 0;
        for head in self.heads(header, PAGE) {
            if !head.is_state() {
                return Err(self.damaged(0, "the beginning of a journal segment in use is damaged"));
            }
            seen_lsn = seen_lsn.max(head.lsn);
        }
        Ok(seen_lsn)
    }

    /// The content of the segment before `next`, which cannot do without it.
    fn needed_by(&self, next: &SegmentHeader) -> Result<Scan, DiskError> {
        let Some(header) = self.header.filter(|header| header.number + 1 == next.number) else {
            return Err(self.damaged(0, "the header of a journal segment that is needed is damaged"));
        };
        let scan = self.scan(&header)?;
        if !scan.has_state() {
            return Err(self.damaged(scan.end, "the state at the segment's beginning is damaged"));
        }
        Ok(scan)
    }

    fn damaged(&self, offset: u64, what: &'static str) -> DiskError {
        DiskError::Damaged { path: self.path.clone(), offset, what }
    }
}

//! The journal of a disk: two segments of fixed size, used in turn. This page is the specification.
//!
//! Everything is little-endian. Both files are allocated in full when the disk is formatted, so a
//! full file system never stops the journal, and a commit overwrites blocks that exist.
//!
//! # Segment
//!
//! The first 4096 bytes of `journal.0` (odd segments) and `journal.1` (even segments):
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | magic `LUNEJRNL` |
//! | 8 | 4 | format version: 1 |
//! | 12 | 4 | 1 once everything before this segment is in the extent files and synced, else 0 |
//! | 16 | 16 | disk uuid |
//! | 32 | 8 | segment number, from 1, one more for each segment ever begun |
//! | 40 | 8 | LSN of its first record |
//! | 48 | 4 | zero |
//! | 52 | 4 | CRC-32C of bytes 0 to 52 |
//! | 56 | 4040 | zeros |
//!
//! Then records. A segment begins with the whole state of the namespaces (`Namespace`,
//! `Tombstones`, `StateEnd`) and is the journal's base from the moment that these are on stable
//! media; no other record is written into it before. The segment before it is no longer needed once
//! every extent file has been synced, which the field at 12 then says (it lies in one sector with
//! its checksum, so that it can be changed in place); only after that is on stable media is the other
//! file used again.
//!
//! # Record
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | magic `LREC` |
//! | 4 | 1 | kind |
//! | 5 | 3 | zeros |
//! | 8 | 4 | body length |
//! | 12 | 4 | data length |
//! | 16 | 8 | LSN: that of the record before plus 1, over all segments |
//! | 24 | 8 | durable LSN: up to which the journal was known to be on stable media when this was written |
//! | 32 | 4 | CRC-32C of the body |
//! | 36 | 4 | CRC-32C of the data |
//! | 40 | 20 | zeros |
//! | 60 | 4 | CRC-32C of (disk uuid, segment number, bytes 0 to 60) |
//! | 64 | | body, then data |
//!
//! A record begins at the next multiple of 64 after the one before, or else, where a write began,
//! at the next multiple of 4096: no write touches a page that an earlier one has made durable. The
//! uuid and segment number in the header's checksum keep apart what an earlier use of the file left.
//!
//! Bodies, with their size in bytes:
//!
//! | kind | name | body |
//! |---|---|---|
//! | 1 | `Namespace` | namespace 8, sealed generation 8, sealed epoch 8, watermark (generation 8, seq 8), used blocks 8; data: dirty extents (index 8, newest version 16) |
//! | 2 | `Tombstones` | empty; data: deleted namespaces, 8 each |
//! | 3 | `StateEnd` | empty |
//! | 4 | `Change` | namespace 8, extent 8, version 16, floor version 16, first block 2, blocks 2, content 1, reset 1, reserved 2, growth in blocks 4 (signed); data: the blocks |
//! | 5 | `Seal` | namespace 8, generation 8, epoch 8 |
//! | 6 | `Delete` | namespace 8 |
//! | 7 | `Watermark` | namespace 8, version 16 |
//!
//! content: 1 data, 2 zeros, 3 zeros of the whole extent; reset: 0 none, 1 the extent file's table
//! begins anew with all blocks never written and `floor` as the header's floor, 2 the same with all
//! blocks lost (see [`extent`](super::extent)). A change is unconditional: which blocks it concerns
//! was decided before.
//!
//! # The end
//!
//! Reading stops at the first place where no record with the next LSN is found. That is a torn tail,
//! written when the power went and never acknowledged, unless a later record of the segment says (by its
//! durable LSN) that the missing one had been on stable media: then the journal is damaged, which is an
//! error and never skipped. Nothing is appended after a torn tail: opening a disk begins a new segment.

mod record;
mod scan;
#[cfg(test)]
mod tests;

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use lunette_proto::checksum::crc32c;
use lunette_proto::ids::DiskUuid;
use rustix::fs::{FallocateFlags, fallocate};

pub(crate) use record::{ChangeRecord, Content, Record, Reset};
pub(crate) use scan::recover;

use super::namespaces::Namespaces;
use super::{DiskError, Identity};

pub(crate) const PAGE: usize = 4096;
const HEADER_CRC: usize = 52;
const SEGMENT_MAGIC: &[u8; 8] = b"LUNEJRNL";
const SEGMENT_VERSION: u32 = 1;
/// Slices of one vectored write (`IOV_MAX`).
const SLICES_MAX: usize = 1024;

/// What a segment begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) uuid: DiskUuid,
    pub(crate) number: u64,
    pub(crate) first_lsn: u64,
    /// The segment before is not needed.
    pub(crate) checkpointed: bool,
}

impl SegmentHeader {
    fn encode(&self) -> [u8; PAGE] {
        let mut page = [0; PAGE];
        let mut out = page.as_mut_slice();
        out.put_slice(SEGMENT_MAGIC);
        out.put_u32_le(SEGMENT_VERSION);
        out.put_u32_le(u32::from(self.checkpointed));
        out.put_u128_le(self.uuid.0);
        out.put_u64_le(self.number);
        out.put_u64_le(self.first_lsn);
        let crc = crc32c(&page[..HEADER_CRC]);
        page[HEADER_CRC..HEADER_CRC + size_of::<u32>()].copy_from_slice(&crc.to_le_bytes());
        page
    }

    /// `None`: not a header of a segment of this disk.
    fn decode(page: &[u8], uuid: DiskUuid, path: &Path) -> Result<Option<Self>, DiskError> {
        let Some(page) = page.first_chunk::<PAGE>() else { return Ok(None) };
        if (&page[HEADER_CRC..]).get_u32_le() != crc32c(&page[..HEADER_CRC])
            || !page.starts_with(SEGMENT_MAGIC)
        {
            return Ok(None);
        }
        let mut fields = &page[SEGMENT_MAGIC.len()..];
        let version = fields.get_u32_le();
        if version != SEGMENT_VERSION {
            return Err(DiskError::Version { path: path.to_owned(), version, supported: SEGMENT_VERSION });
        }
        let checkpointed = fields.get_u32_le() != 0;
        let header = Self {
            checkpointed,
            uuid: DiskUuid(fields.get_u128_le()),
            number: fields.get_u64_le(),
            first_lsn: fields.get_u64_le(),
        };
        Ok((header.uuid == uuid).then_some(header))
    }
}

/// The file of a segment.
fn file_of(segment: u64) -> usize {
    if segment.is_multiple_of(2) { 1 } else { 0 }
}

fn path_of(directory: &Path, file: usize) -> PathBuf {
    directory.join(if file == 0 { "journal.0" } else { "journal.1" })
}

/// The writing side.
#[derive(Debug)]
pub(crate) struct Journal {
    files: [File; 2],
    segment: SegmentHeader,
    segment_bytes: u64,
    /// Where the next write begins; a multiple of [`PAGE`].
    position: u64,
    next_lsn: u64,
    durable_lsn: u64,
    /// Records appended since the last write: parts in order, none empty but maybe the last.
    parts: Vec<Bytes>,
    heads: BytesMut,
    batch_len: usize,
    /// Bytes written since the last sync.
    unsynced: u64,
    #[cfg(test)]
    pub(crate) fail_syncs: std::sync::Arc<std::sync::atomic::AtomicBool>,
}

/// Brings to stable media what was read of the journal: it may have come from the page cache, where a
/// process that was killed left it. Only then may an extent file be made to follow it.
pub(crate) fn settle(directory: &Path) -> Result<(), DiskError> {
    for file in 0..2 {
        let path = path_of(directory, file);
        #[cfg(test)]
        if FAIL_SETTLING.get() {
            return Err(DiskError::io(path, "sync it")(io::Error::other("injected")));
        }
        OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|file| file.sync_all())
            .map_err(DiskError::io(path, "sync it"))?;
    }
    Ok(())
}

#[cfg(test)]
thread_local! {
    /// Makes [`settle`] fail on this thread.
    pub(crate) static FAIL_SETTLING: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

impl Journal {
    /// Makes both files, and segment 1 with an empty state.
    pub(crate) fn format(directory: &Path, identity: &Identity) -> Result<(), DiskError> {
        let mut files = Vec::new();
        for file in 0..2 {
            let path = path_of(directory, file);
            let opened = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .open(&path)
                .map_err(DiskError::io(&path, "create it"))?;
            match fallocate(&opened, FallocateFlags::empty(), 0, identity.segment_bytes) {
                Ok(()) => {}
                // A file system without it may run out of room later; that fails the disk, safely.
                Err(rustix::io::Errno::OPNOTSUPP) => opened
                    .set_len(identity.segment_bytes)
                    .map_err(DiskError::io(&path, "give it its size"))?,
                Err(error) => return Err(DiskError::io(&path, "give it its size")(error.into())),
            }
            opened.sync_all().map_err(DiskError::io(&path, "sync it"))?;
            files.push(opened);
        }
        let files = files.try_into().expect("two files were opened");
        let mut journal = Self::new(files, identity, 0, 1);
        journal
            .begin_segment(&Namespaces::default(), true)
            .map_err(DiskError::io(path_of(directory, 0), "write it"))
    }

    /// Opens the files after a recovery whose outcome is in the extent files and synced, and begins
    /// a new segment.
    pub(crate) fn open(
        directory: &Path,
        identity: &Identity,
        base: SegmentHeader,
        next_lsn: u64,
        namespaces: &Namespaces,
    ) -> Result<Self, DiskError> {
        let open = |file| {
            let path = path_of(directory, file);
            OpenOptions::new().write(true).open(&path).map_err(DiskError::io(path, "open it"))
        };
        let mut journal = Self::new([open(0)?, open(1)?], identity, base.number, next_lsn);
        // Written again even if it is there already: that may be in the page cache only.
        journal.segment = SegmentHeader { checkpointed: false, ..base };
        journal
            .mark_checkpointed()
            .and_then(|()| journal.sync())
            .and_then(|()| journal.begin_segment(namespaces, true))
            .map_err(DiskError::io(directory, "begin a journal segment"))?;
        Ok(journal)
    }

    fn new(files: [File; 2], identity: &Identity, segment: u64, next_lsn: u64) -> Self {
        Self {
            files,
            segment: SegmentHeader {
                uuid: identity.uuid,
                number: segment,
                first_lsn: next_lsn,
                checkpointed: false,
            },
            segment_bytes: identity.segment_bytes,
            position: PAGE as u64,
            next_lsn,
            durable_lsn: next_lsn - 1,
            parts: Vec::new(),
            heads: BytesMut::new(),
            batch_len: 0,
            unsynced: 0,
            #[cfg(test)]
            fail_syncs: std::sync::Arc::default(),
        }
    }

    pub(crate) fn segment(&self) -> u64 {
        self.segment.number
    }

    /// Whether the segment before the present one is not needed any more.
    pub(crate) fn is_checkpointed(&self) -> bool {
        self.segment.checkpointed
    }

    /// Bytes appended and not yet written.
    pub(crate) fn batch_len(&self) -> usize {
        self.batch_len
    }

    /// Bytes written and not yet known to be on stable media.
    pub(crate) fn unsynced(&self) -> u64 {
        self.unsynced
    }

    /// Whether `data_len` more bytes of data, in up to `records` records, fit the segment.
    pub(crate) fn has_room(&self, data_len: usize, records: usize) -> bool {
        let needed = self.batch_len + data_len + records * record::OVERHEAD_MAX + PAGE;
        self.position + needed as u64 <= self.segment_bytes
    }

    /// Appends a record to the next write.
    pub(crate) fn append(&mut self, record: &Record) {
        let start = self.heads.len();
        let data = record.encode(&self.segment, self.next_lsn, self.durable_lsn, &mut self.heads);
        self.batch_len += self.heads.len() - start + data.len();
        self.next_lsn += 1;
        if !data.is_empty() {
            self.parts.push(self.heads.split().freeze());
            self.parts.push(data);
        }
        let padding = self.batch_len.next_multiple_of(record::ALIGN) - self.batch_len;
        self.heads.put_bytes(0, padding);
        self.batch_len += padding;
    }

    /// Writes what was appended: it survives the death of the process, not yet a loss of power.
    pub(crate) fn write(&mut self) -> io::Result<()> {
        if self.batch_len == 0 {
            return Ok(());
        }
        let padding = self.batch_len.next_multiple_of(PAGE) - self.batch_len;
        self.heads.put_bytes(0, padding);
        self.batch_len += padding;
        if !self.heads.is_empty() {
            self.parts.push(self.heads.split().freeze());
        }
        let end = self.position + self.batch_len as u64;
        assert!(end <= self.segment_bytes, "the caller asked for room before it appended");
        write_parts(&self.files[file_of(self.segment.number)], &self.parts, self.position)?;
        self.parts.clear();
        self.position = end;
        self.unsynced += self.batch_len as u64;
        self.batch_len = 0;
        Ok(())
    }

    /// Makes everything written durable.
    pub(crate) fn sync(&mut self) -> io::Result<()> {
        assert_eq!(self.batch_len, 0, "everything appended was written");
        if self.unsynced == 0 {
            return Ok(());
        }
        #[cfg(test)]
        if self.fail_syncs.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(io::Error::other("injected"));
        }
        self.files[file_of(self.segment.number)].sync_data()?;
        self.unsynced = 0;
        self.durable_lsn = self.next_lsn - 1;
        Ok(())
    }

    /// Notes that everything before the present segment is in the extent files and synced. Durable
    /// with the next [`sync`](Self::sync).
    pub(crate) fn mark_checkpointed(&mut self) -> io::Result<()> {
        if !self.segment.checkpointed {
            self.segment.checkpointed = true;
            self.files[file_of(self.segment.number)].write_all_at(&self.segment.encode(), 0)?;
            self.unsynced += PAGE as u64;
        }
        Ok(())
    }

    /// Begins the next segment with the state as it is after all records so far. Everything has to
    /// be durable, the note that the present segment is checkpointed too: the file of the one
    /// before it is overwritten. `checkpointed` says whether the present one is not needed either.
    pub(crate) fn begin_segment(&mut self, namespaces: &Namespaces, checkpointed: bool) -> io::Result<()> {
        assert_eq!(self.unsynced, 0, "the old segment is durable");
        assert_eq!(self.batch_len, 0, "the old segment is complete");
        let number = self.segment.number + 1;
        self.segment = SegmentHeader { number, first_lsn: self.next_lsn, checkpointed, ..self.segment };
        self.files[file_of(number)].write_all_at(&self.segment.encode(), 0)?;
        self.position = PAGE as u64;
        for (id, state) in namespaces.live() {
            self.append(&Record::Namespace(id, state.clone()));
        }
        let deleted = namespaces.deleted().collect::<Vec<_>>();
        for chunk in deleted.chunks(record::TOMBSTONES_MAX) {
            self.append(&Record::Tombstones(chunk.to_vec()));
        }
        self.append(&Record::StateEnd);
        if self.position + (self.batch_len + PAGE) as u64 > self.segment_bytes {
            return Err(io::Error::other("the state of the namespaces does not fit a journal segment"));
        }
        self.write()?;
        self.sync()
    }
}

fn write_parts(file: &File, parts: &[Bytes], mut offset: u64) -> io::Result<()> {
    for parts in parts.chunks(SLICES_MAX) {
        let mut slices = parts.iter().map(|part| IoSlice::new(part)).collect::<Vec<_>>();
        let mut rest = slices.as_mut_slice();
        while !rest.is_empty() {
            match rustix::io::pwritev(file, rest, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    offset += written as u64;
                    IoSlice::advance_slices(&mut rest, written);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

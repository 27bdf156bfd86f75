//! The journal of a disk in a directory: a file of its own. This page is its specification.
//!
//! A durable write to a file waits for what the file system has to do for that file: with the data in the same
//! file, every commit would wait for the room that is given and taken back there. A file whose blocks were all written
//! before needs nothing but the write itself.
//!
//! The file is a page that says whose it is, and then the ring of the WAL. In the file of the disk, the range
//! of the ring stays a hole.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | magic `LUNEWALF` |
//! | 8 | 4 | format version: 6, that of the disk |
//! | 12 | 4 | zeros |
//! | 16 | 16 | disk uuid |
//! | 32 | 8 | bytes of the ring |
//! | 40 | 4052 | zeros |
//! | 4092 | 4 | CRC-32C of bytes 0 to 4092 |
//! | 4096 | | the ring |

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::BufMut;
use lunette_proto::checksum::crc32c;

use crate::engine::DiskError;
use crate::store::layout::PAGE_BYTES;
use crate::store::superblock::{FORMAT_VERSION, Superblock};
use crate::store::{Identity, Layout};

/// The journal's file in a directory.
pub(in crate::store) const WAL_FILE: &str = "wal";
const MAGIC: &[u8; 8] = b"LUNEWALF";
const PAGE: usize = PAGE_BYTES as usize;

/// An open journal file.
#[derive(Debug)]
pub(in crate::store) struct WalFile {
    path: PathBuf,
    file: File,
    /// Where the ring lies in the disk.
    begin: u64,
    len: u64,
}

impl WalFile {
    /// Makes the file; its room is taken, its content is not written.
    pub(in crate::store) fn create(
        path: &Path,
        identity: &Identity,
        layout: &Layout,
    ) -> Result<Self, DiskError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)
            .map_err(DiskError::io(path, "create it"))?;
        file.set_len(PAGE_BYTES + layout.wal_bytes)
            .and_then(|()| file.write_all_at(&header(identity, layout.wal_bytes), 0))
            .map_err(DiskError::io(path, "write it"))?;
        Ok(Self::of(path, file, layout))
    }

    /// Opens the journal of the disk with this superblock.
    pub(in crate::store) fn open(path: &Path, superblock: &Superblock) -> Result<Self, DiskError> {
        Self::open_with(path, superblock, OpenOptions::new().read(true).write(true))
    }

    /// As [`open`](Self::open), for reading only.
    pub(in crate::store) fn open_read_only(path: &Path, superblock: &Superblock) -> Result<Self, DiskError> {
        Self::open_with(path, superblock, OpenOptions::new().read(true))
    }

    fn open_with(path: &Path, superblock: &Superblock, options: &OpenOptions) -> Result<Self, DiskError> {
        let damaged = |what| DiskError::Damaged { path: path.to_owned(), offset: 0, what };
        let file = match options.open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(damaged("the journal is missing"));
            }
            Err(error) => return Err(DiskError::io(path, "open it")(error)),
        };
        let layout = &superblock.layout;
        let len = file.metadata().map_err(DiskError::io(path, "look at it"))?.len();
        if len != PAGE_BYTES + layout.wal_bytes {
            return Err(damaged("the journal has another length than the disk says"));
        }
        let mut page = [0; PAGE];
        file.read_exact_at(&mut page, 0).map_err(DiskError::io(path, "read it"))?;
        if page[..] != header(&superblock.identity, layout.wal_bytes)[..] {
            return Err(damaged("it is not the journal of this disk"));
        }
        Ok(Self::of(path, file, layout))
    }

    fn of(path: &Path, file: File, layout: &Layout) -> Self {
        Self { path: path.to_owned(), file, begin: layout.wal_offset, len: layout.wal_bytes }
    }

    pub(in crate::store) fn path(&self) -> &Path {
        &self.path
    }

    pub(in crate::store) fn file(&self) -> &File {
        &self.file
    }

    /// Where a range of the disk lies in this file; `None` if it does not.
    pub(in crate::store) fn locate(&self, offset: u64, len: u64) -> io::Result<Option<u64>> {
        let end = self.begin + self.len;
        let range_end = offset.saturating_add(len);
        if range_end <= self.begin || offset >= end {
            Ok(None)
        } else if offset >= self.begin && range_end <= end {
            Ok(Some(offset - self.begin + PAGE_BYTES))
        } else {
            Err(io::Error::new(ErrorKind::InvalidInput, "partly in the journal"))
        }
    }
}

fn header(identity: &Identity, wal_bytes: u64) -> Vec<u8> {
    let mut page = Vec::with_capacity(PAGE);
    page.put_slice(MAGIC);
    page.put_u32_le(FORMAT_VERSION);
    page.put_u32_le(0);
    page.put_u128_le(identity.uuid.0);
    page.put_u64_le(wal_bytes);
    page.resize(PAGE - 4, 0);
    let crc = crc32c(&page);
    page.put_u32_le(crc);
    page
}

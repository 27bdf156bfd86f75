//! A disk of the operating system: a directory, a preallocated file, or a block device.
//!
//! ```text
//!     DIRECTORY       the disk is the sparse file DIRECTORY/disk: room is taken when it is needed; its journal is
//!                     DIRECTORY/wal (see `wal_file`)
//!     a regular file  has all of its room from the beginning
//!     a block device  likewise
//! ```
//!
//! Most goes through the page cache: `write` puts bytes there, `sync` makes them durable. What has to be durable at once,
//! the journal, goes past it, and so do whole units (`direct`). Linux drops the cached pages of what is written past the
//! cache.
//!
//! One process has a disk at a time: it holds an exclusive `flock`, and a device also with `O_EXCL`, which a
//! mounted file system, LVM and mdraid hold too.
//!
//! After the first write or sync that fails, nothing is done any more (invariant 12): what the kernel still has in
//! memory of a failed write looks well and is not on the medium.

mod bulk;
mod direct;
mod wal_file;

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, IoSlice};
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::fs::{Advice, FallocateFlags, FlockOperation, OFlags, fadvise, fallocate, fdatasync, flock};
use rustix::io::{Errno, ReadWriteFlags, preadv2, pwritev, retry_on_intr};

use super::{Disk, Identity};
use crate::engine::DiskError;
use bulk::BulkWriters;
use direct::DirectWriter;

/// The disk's file in a directory.
pub(super) const FILE: &str = "disk";
pub(super) use wal_file::{WAL_FILE, WalFile};
/// Buffers of one vectored write: what Linux takes (`IOV_MAX`).
const PARTS_MAX: usize = 1024;
/// The system's device manager locks a device for a moment when it looks at it.
const DEVICE_LOCK_TRIES: usize = 20;
const DEVICE_LOCK_PAUSE: Duration = Duration::from_millis(50);

/// A disk of the operating system. See the module.
#[derive(Debug)]
pub struct FileDisk {
    /// The file or device itself.
    path: PathBuf,
    file: Arc<File>,
    /// The journal, if it is a file of its own.
    wal: Option<WalFile>,
    medium: Medium,
    size_bytes: u64,
    durable: Mutex<DirectWriter>,
    bulk: BulkWriters,
    failed: AtomicBool,
    #[cfg(test)]
    pub(crate) faults: tests::Faults,
}

/// What keeps the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Medium {
    /// A file in a directory of its own, which takes room as it is written.
    Sparse,
    /// A file that has all of its room.
    Preallocated,
    /// A block device; whether it can take room back.
    Device { discards: bool },
}

/// What is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Nothing,
    Directory,
    File,
    Device,
}

impl Place {
    pub(super) fn of(path: &Path) -> Result<Self, DiskError> {
        match std::fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => Ok(Self::Directory),
            Ok(metadata) if metadata.is_file() => Ok(Self::File),
            Ok(metadata) if metadata.file_type().is_block_device() => Ok(Self::Device),
            Ok(_) => Err(DiskError::Kind(path.to_owned())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Self::Nothing),
            Err(error) => Err(DiskError::io(path, "look at it")(error)),
        }
    }
}

impl FileDisk {
    /// Opens what is at `path` and takes it for this process. Whether it is a disk of Lunette, its content tells.
    ///
    /// # Errors
    /// There is nothing, or nothing that could be a disk; another process has it; or the system refuses.
    pub fn open(path: &Path) -> Result<Self, DiskError> {
        match Place::of(path)? {
            Place::Nothing => Err(DiskError::NotFormatted(path.to_owned())),
            Place::Directory => {
                let file = path.join(FILE);
                match Place::of(&file)? {
                    Place::File => {
                        let disk = Self::take(&file, Medium::Sparse)?;
                        let Some(superblock) = super::format::superblock_of(&disk.file, &file)? else {
                            return Err(DiskError::NotFormatted(path.to_owned()));
                        };
                        let wal = WalFile::open(&path.join(WAL_FILE), &superblock)?;
                        disk.with_wal(wal)
                    }
                    Place::Nothing | Place::Directory | Place::Device => {
                        super::format::refuse_old_format(path)?;
                        Err(DiskError::NotFormatted(path.to_owned()))
                    }
                }
            }
            Place::File => Self::take(path, Medium::Preallocated),
            Place::Device => Self::take(path, Medium::Device { discards: can_discard(path) }),
        }
    }

    /// Opens and locks a file or a device.
    pub(super) fn take(path: &Path, medium: Medium) -> Result<Self, DiskError> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        if matches!(medium, Medium::Device { .. }) {
            options.custom_flags(flags(OFlags::EXCL));
        }
        let file = match options.open(path) {
            Err(error) if error.kind() == ErrorKind::ResourceBusy => {
                return Err(DiskError::InUse(path.to_owned()));
            }
            other => other.map_err(DiskError::io(path, "open it"))?,
        };
        let tries = if matches!(medium, Medium::Device { .. }) { DEVICE_LOCK_TRIES } else { 1 };
        lock(&file, path, tries)?;
        let size_bytes = size_bytes(&file).map_err(DiskError::io(path, "ask for its size"))?;
        let direct = || open_direct(path, &file).map_err(DiskError::io(path, "open it"));
        let (direct, bulk) = (direct()?, direct()?);
        let file = Arc::new(file);
        Ok(Self {
            path: path.to_owned(),
            file: file.clone(),
            wal: None,
            medium,
            size_bytes,
            durable: Mutex::new(DirectWriter::new(direct.map(Arc::new), true)),
            bulk: BulkWriters::new(file.clone(), bulk),
            failed: AtomicBool::new(false),
            #[cfg(test)]
            faults: tests::Faults::default(),
        })
    }

    /// Keeps the journal in a file of its own.
    pub(super) fn with_wal(mut self, wal: WalFile) -> Result<Self, DiskError> {
        let path = wal.path();
        let direct = open_direct(path, wal.file()).map_err(DiskError::io(path, "open it"))?;
        self.durable = Mutex::new(DirectWriter::new(direct.map(Arc::new), true));
        self.wal = Some(wal);
        Ok(self)
    }

    /// The file that a range lies in, and where.
    fn locate(&self, offset: u64, len: u64) -> io::Result<(&File, u64)> {
        match &self.wal {
            None => Ok((&self.file, offset)),
            Some(wal) => match wal.locate(offset, len)? {
                Some(offset) => Ok((wal.file(), offset)),
                None => Ok((&self.file, offset)),
            },
        }
    }

    /// Which disk it is, by its superblocks; `None` if it is none.
    ///
    /// # Errors
    /// It cannot be read, or is of another format.
    pub fn identity(&self) -> Result<Option<Identity>, DiskError> {
        super::format::identity_of(&self.file, &self.path)
    }

    /// The file or device.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a write or a sync has failed: the disk does nothing any more.
    #[must_use]
    pub fn is_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    pub(super) fn medium(&self) -> Medium {
        self.medium
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Gives a file that is being made its length.
    pub(super) fn resize(&mut self, size_bytes: u64) -> io::Result<()> {
        self.file.set_len(size_bytes)?;
        self.size_bytes = size_bytes;
        Ok(())
    }

    /// Makes everything durable, lengths and room too.
    pub(super) fn sync_files(&self) -> io::Result<()> {
        if let Some(wal) = &self.wal {
            wal.file().sync_all()?;
            fadvise(wal.file(), 0, None, Advice::DontNeed)?;
        }
        self.file.sync_all()
    }

    /// Drops what the page cache has of a range and is on the medium.
    pub(crate) fn forget_cached(&self, offset: u64, len: u64) -> io::Result<()> {
        Ok(fadvise(&self.file, offset, NonZeroU64::new(len), Advice::DontNeed)?)
    }

    fn check(&self) -> io::Result<()> {
        if self.is_failed() {
            return Err(io::Error::other("the disk has failed before"));
        }
        Ok(())
    }

    /// Notes a failure for ever.
    fn sticky<T>(&self, outcome: io::Result<T>) -> io::Result<T> {
        if outcome.is_err() {
            self.failed.store(true, Ordering::Release);
        }
        outcome
    }

    /// A write beyond the end would make a file longer, and its layout another one.
    fn check_range(&self, offset: u64, len: usize) -> io::Result<()> {
        match offset.checked_add(len as u64) {
            Some(end) if end <= self.size_bytes => Ok(()),
            _ => Err(io::Error::new(ErrorKind::InvalidInput, "beyond the end of the disk")),
        }
    }

    fn write_parts(&self, offset: u64, parts: &[Bytes]) -> io::Result<()> {
        let len = parts.iter().map(Bytes::len).sum();
        self.check_range(offset, len)?;
        let (file, mut offset) = self.locate(offset, len as u64)?;
        self.check_not_journal(file)?;
        for parts in parts.chunks(PARTS_MAX) {
            let mut slices = parts.iter().map(|part| IoSlice::new(part)).collect::<Vec<_>>();
            let mut rest = slices.as_mut_slice();
            // Also drops what is empty.
            IoSlice::advance_slices(&mut rest, 0);
            while !rest.is_empty() {
                let written = retry_on_intr(|| pwritev(file, rest, offset))?;
                if written == 0 {
                    return Err(ErrorKind::WriteZero.into());
                }
                offset += written as u64;
                IoSlice::advance_slices(&mut rest, written);
            }
        }
        Ok(())
    }

    fn write_durable_parts(&self, offset: u64, parts: &[Bytes]) -> io::Result<()> {
        let len = parts.iter().map(Bytes::len).sum();
        self.check_range(offset, len)?;
        #[cfg(test)]
        self.faults.durable_write()?;
        let (file, at) = self.locate(offset, len as u64)?;
        if self.wal.is_some() && std::ptr::eq(file, &*self.file) {
            // Not the file that the direct writer has.
            self.write_parts(offset, parts)?;
            return self.sync_all();
        }
        self.durable.lock().write(file, at, parts)
    }

    fn write_bulk_all(&self, writes: Vec<(u64, Vec<Bytes>)>) -> io::Result<()> {
        for (offset, parts) in &writes {
            let len = parts.iter().map(Bytes::len).sum();
            self.check_range(*offset, len)?;
            self.check_not_journal(self.locate(*offset, len as u64)?.0)?;
        }
        self.bulk.write(writes)
    }

    fn check_not_journal(&self, file: &File) -> io::Result<()> {
        if std::ptr::eq(file, &*self.file) {
            return Ok(());
        }
        Err(io::Error::new(ErrorKind::InvalidInput, "the journal is written durably only"))
    }

    fn sync_all(&self) -> io::Result<()> {
        #[cfg(test)]
        self.faults.sync()?;
        Ok(retry_on_intr(|| fdatasync(&self.file))?)
    }
}

impl Disk for FileDisk {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.check()?;
        let (file, offset) = self.locate(offset, out.len() as u64)?;
        file.read_exact_at(out, offset)
    }

    fn read_cached(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.check()?;
        let len = out.len();
        let (file, offset) = self.locate(offset, len as u64)?;
        match preadv2(file, &mut [io::IoSliceMut::new(out)], offset, ReadWriteFlags::NOWAIT) {
            Ok(read) if read == len => Ok(()),
            Ok(_) | Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::INTR) => Err(ErrorKind::WouldBlock.into()),
            Err(error) => Err(error.into()),
        }
    }

    fn write(&self, offset: u64, parts: &[Bytes]) -> io::Result<()> {
        self.check()?;
        self.sticky(self.write_parts(offset, parts))
    }

    fn write_bulk(&self, writes: Vec<(u64, Vec<Bytes>)>) -> io::Result<()> {
        self.check()?;
        self.sticky(self.write_bulk_all(writes))
    }

    fn write_durable(&self, offset: u64, parts: &[Bytes]) -> io::Result<()> {
        self.check()?;
        self.sticky(self.write_durable_parts(offset, parts))
    }

    fn sync(&self) -> io::Result<()> {
        self.check()?;
        self.sticky(self.sync_all())
    }

    fn reserve(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check()?;
        // The system takes a range without bytes for a mistake.
        if self.medium != Medium::Sparse || len == 0 {
            return Ok(());
        }
        let (file, offset) = self.locate(offset, len)?;
        match retry_on_intr(|| fallocate(file, FallocateFlags::empty(), offset, len)) {
            // Without support the write itself will tell, and fail the disk.
            Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
            Err(Errno::NOSPC | Errno::DQUOT) => Err(ErrorKind::StorageFull.into()),
            Err(error) => self.sticky(Err(error.into())),
        }
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check()?;
        if len == 0 || matches!(self.medium, Medium::Preallocated | Medium::Device { discards: false }) {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match retry_on_intr(|| fallocate(&self.file, flags, offset, len)) {
            // That the room is not given back does no harm.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSPC | Errno::DQUOT) => Ok(()),
            Err(error) => self.sticky(Err(error.into())),
        }
    }
}

/// Opens the file once more, past the page cache; `None` if that is not possible here.
fn open_direct(path: &Path, file: &File) -> io::Result<Option<File>> {
    let opened = OpenOptions::new().write(true).custom_flags(flags(OFlags::DIRECT)).open(path);
    let direct = match opened {
        Ok(direct) => direct,
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => return Ok(None),
        Err(error) => return Err(error),
    };
    let same = |metadata: &Metadata| (metadata.dev(), metadata.ino());
    if same(&direct.metadata()?) != same(&file.metadata()?) {
        return Err(io::Error::other("it was replaced by another file at this moment"));
    }
    Ok(Some(direct))
}

fn flags(flags: OFlags) -> i32 {
    flags.bits().cast_signed()
}

/// Bytes of a file or a device.
pub(super) fn size_bytes(file: &File) -> io::Result<u64> {
    Ok(rustix::fs::seek(file, rustix::fs::SeekFrom::End(0))?)
}

/// Locks for as long as the file is open.
pub(super) fn lock(file: &File, path: &Path, tries: usize) -> Result<(), DiskError> {
    for tried in 1.. {
        match retry_on_intr(|| flock(file, FlockOperation::NonBlockingLockExclusive)) {
            Ok(()) => break,
            Err(Errno::WOULDBLOCK) if tried < tries => std::thread::sleep(DEVICE_LOCK_PAUSE),
            Err(Errno::WOULDBLOCK) => return Err(DiskError::InUse(path.to_owned())),
            Err(error) => return Err(DiskError::io(path, "lock it")(error.into())),
        }
    }
    Ok(())
}

/// Whether a device says that it takes room back. (It is then told to by `fallocate`, which zeroes the range
/// by whatever the device is fast at, or refuses.)
pub(super) fn can_discard(path: &Path) -> bool {
    use rustix::fs::{major, minor};
    let Ok(metadata) = std::fs::metadata(path) else { return false };
    let device = format!("/sys/dev/block/{}:{}", major(metadata.rdev()), minor(metadata.rdev()));
    // The queue of a partition is its disk's.
    ["queue", "../queue"].into_iter().any(|queue| {
        std::fs::read_to_string(format!("{device}/{queue}/discard_max_bytes"))
            .is_ok_and(|text| text.trim().parse::<u64>().is_ok_and(|max| max > 0))
    })
}

#[cfg(test)]
pub(crate) mod tests;

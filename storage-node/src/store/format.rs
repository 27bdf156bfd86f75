//! Making a disk, and asking which disk something is.
//!
//! Only what is empty is made a disk: a directory without files, a file or a device without a byte that is not zero
//! (`blank`). First a note is written over the first page, which says that all of it is ours from now on, then zeros over
//! the journal (so that later writes there are overwrites, without metadata of a file system), then the
//! store ([`Store::format`]), whose superblocks come last, one of them over the note. So formatting that was cut short
//! leaves the note and no disk, and can be done again. In a directory all of it happens in `disk.tmp`, which
//! is renamed to `disk` at the end.
//!
//! The note, 4096 bytes at the beginning: the text `Lunette is formatting this disk.\n`, then zeros.

mod blank;

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rustix::fs::{FallocateFlags, Mode, OFlags, fallocate};
use rustix::io::{Errno, retry_on_intr};

use super::file_disk::{self, FILE, FileDisk, Medium, Place, WAL_FILE, WalFile};
use super::layout::{
    Layout, PAGE_BYTES, UNIT_BYTES, UNITS_MAX, WAL_BYTES_DEFAULT, WAL_BYTES_MAX, WAL_BYTES_MIN,
};
use super::superblock::{self, NotSuper, Superblock};
use super::{Disk, Identity, Store};
use crate::engine::DiskError;

const TEMPORARY: &str = "disk.tmp";
const NOTE: &[u8] = b"Lunette is formatting this disk.\n";
const PAGE: usize = PAGE_BYTES as usize;
/// Percent of a file system that a disk takes if it is not told.
const CAPACITY_PERCENT: u64 = 95;
/// Share of a small disk that its journal takes if it is not told.
const WAL_SHARE: u64 = 16;
const ZEROS_BYTES: u64 = 1 << 20;
/// Zeros written with one sync.
const ZEROS_PARTS: u64 = 16;
/// Format 1: a directory with this file, its magic, and its version after that.
const OLD_FILE: &str = "identity";
const OLD_MAGIC: &[u8; 8] = b"LUNEDISK";

/// How a disk is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FormatOptions {
    /// Bytes of the whole disk, with what it needs for itself. If `None`: 95 % of the file system for a directory,
    /// all of a file or a device.
    pub capacity_bytes: Option<u64>,
    /// Bytes of the journal, a multiple of 4096. If `None`: a sixteenth of the disk, from 32 to 128 MiB.
    pub wal_bytes: Option<u64>,
}

impl FormatOptions {
    /// A disk of so many bytes in all, with the usual journal.
    #[must_use]
    pub fn of(capacity_bytes: u64) -> Self {
        Self { capacity_bytes: Some(capacity_bytes), wal_bytes: None }
    }

    /// Whether a directory at `path`, which need not be there yet, could be made such a disk. Makes nothing.
    ///
    /// # Errors
    /// The capacity is too small or too large, for a disk or for a file of that file system.
    pub fn check(&self, path: &Path) -> Result<(), DiskError> {
        let Some(total_bytes) = self.capacity_bytes else { return Ok(()) };
        self.layout(path, total_bytes)?;
        let max_bytes = UNITS_MAX * UNIT_BYTES;
        if total_bytes > max_bytes {
            return Err(DiskError::TooLarge { path: path.to_owned(), total_bytes, max_bytes });
        }
        let Some(there) = path.ancestors().find(|there| there.is_dir()) else { return Ok(()) };
        // A file without a name is gone when it is closed. Not every file system has them, and then making the disk tells.
        let made = rustix::fs::open(there, OFlags::TMPFILE | OFlags::WRONLY, Mode::RUSR | Mode::WUSR);
        let Ok(made) = made else { return Ok(()) };
        File::from(made)
            .set_len(total_bytes)
            .map_err(DiskError::io(path, "make a file of its capacity there"))
    }

    fn layout(&self, path: &Path, total_bytes: u64) -> Result<Layout, DiskError> {
        let usual = total_bytes / WAL_SHARE / PAGE_BYTES * PAGE_BYTES;
        let wal_bytes = self.wal_bytes.unwrap_or(usual.clamp(WAL_BYTES_MIN, WAL_BYTES_DEFAULT));
        if !(WAL_BYTES_MIN..=WAL_BYTES_MAX).contains(&wal_bytes) || !wal_bytes.is_multiple_of(PAGE_BYTES) {
            return Err(DiskError::WalSize(wal_bytes));
        }
        Layout::new(total_bytes, wal_bytes).ok_or_else(|| DiskError::TooSmall {
            path: path.to_owned(),
            total_bytes,
            wal_bytes,
        })
    }
}

/// Makes a disk of what is at `path`: a missing or empty directory, or a file or a block device that is all zeros.
/// Durable when it returns.
///
/// # Errors
/// There is something already, or the medium refuses. A disk is never formatted twice.
pub fn format_disk(path: &Path, identity: &Identity, options: &FormatOptions) -> Result<(), DiskError> {
    match Place::of(path)? {
        Place::Nothing => {
            fs::create_dir_all(path).map_err(DiskError::io(path, "create the directory"))?;
            format_directory(path, identity, options)
        }
        Place::Directory => format_directory(path, identity, options),
        Place::File => format_whole(FileDisk::take(path, Medium::Preallocated)?, identity, options),
        Place::Device => {
            let discards = file_disk::can_discard(path);
            format_whole(FileDisk::take(path, Medium::Device { discards })?, identity, options)
        }
    }
}

/// The identity of the disk at `path`; `None` if there is none (or nothing at all). Changes nothing.
///
/// # Errors
/// There is one, but it cannot be read, is of another format, or has not its journal.
pub fn inspect_identity(path: &Path) -> Result<Option<Identity>, DiskError> {
    let Some(name) = file_at(path)? else { return Ok(None) };
    let file = File::open(&name).map_err(DiskError::io(&name, "open it"))?;
    let superblock = superblock_of(&file, &name)?;
    read_only_wal(path, &name, superblock.as_ref())?;
    Ok(superblock.map(|superblock| superblock.identity))
}

/// A disk that is only read.
pub(crate) struct ReadOnly {
    file: File,
    wal: Option<WalFile>,
    /// Its file or device.
    pub(crate) path: PathBuf,
}

impl ReadOnly {
    pub(crate) fn read_at(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        if let Some(wal) = &self.wal
            && let Some(offset) = wal.locate(offset, out.len() as u64)?
        {
            return wal.file().read_exact_at(out, offset);
        }
        self.file.read_exact_at(out, offset)
    }

    pub(crate) fn size_bytes(&self) -> std::io::Result<u64> {
        file_disk::size_bytes(&self.file)
    }
}

/// Opens the disk at `path` for reading only, and keeps others away from it.
pub(crate) fn open_read_only(path: &Path) -> Result<ReadOnly, DiskError> {
    let name = file_at(path)?.ok_or_else(|| DiskError::NotFormatted(path.to_owned()))?;
    let file = File::open(&name).map_err(DiskError::io(&name, "open it"))?;
    file_disk::lock(&file, &name, 1)?;
    let superblock = superblock_of(&file, &name)?;
    let wal = read_only_wal(path, &name, superblock.as_ref())?;
    Ok(ReadOnly { file, wal, path: name })
}

/// The journal of the disk at `path`, which is in file `name`, if it has a file of its own.
fn read_only_wal(
    path: &Path,
    name: &Path,
    superblock: Option<&Superblock>,
) -> Result<Option<WalFile>, DiskError> {
    let superblock = superblock.filter(|_| name != path);
    let open = |superblock| WalFile::open_read_only(&name.with_file_name(WAL_FILE), superblock);
    superblock.map(open).transpose()
}

/// The file or device that the disk at `path` would be in; `None` if there is none.
fn file_at(path: &Path) -> Result<Option<PathBuf>, DiskError> {
    match Place::of(path)? {
        Place::Nothing => Ok(None),
        Place::File | Place::Device => Ok(Some(path.to_owned())),
        Place::Directory => {
            let file = path.join(FILE);
            match Place::of(&file)? {
                Place::File => Ok(Some(file)),
                _ => refuse_old_format(path).map(|()| None),
            }
        }
    }
}

/// Which disk it is, by its superblocks.
pub(super) fn identity_of(file: &File, path: &Path) -> Result<Option<Identity>, DiskError> {
    Ok(superblock_of(file, path)?.map(|superblock| superblock.identity))
}

/// The first valid superblock: what of it never changes may be used.
pub(super) fn superblock_of(file: &File, path: &Path) -> Result<Option<Superblock>, DiskError> {
    let mut refusal = None;
    for copy in 0..2 {
        let offset = Layout::superblock(copy);
        match Superblock::decode(&page(file, offset, path)?) {
            Ok(found) => return Ok(Some(found)),
            Err(NotSuper::Foreign) => {}
            Err(NotSuper::Version(version)) => {
                let supported = superblock::FORMAT_VERSION;
                return Err(DiskError::Version { path: path.to_owned(), version, supported });
            }
            Err(NotSuper::Damaged) => {
                let what = "no superblock is valid";
                refusal = Some(DiskError::Damaged { path: path.to_owned(), offset, what });
            }
        }
    }
    refusal.map_or(Ok(None), Err)
}

/// A page; zeros where the file has ended.
fn page(file: &File, offset: u64, path: &Path) -> Result<[u8; PAGE], DiskError> {
    let mut page = [0; PAGE];
    let mut filled = 0;
    while filled < PAGE {
        match file.read_at(&mut page[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(DiskError::io(path, "read it")(error)),
        }
    }
    Ok(page)
}

/// Fails if the directory is a disk of format 1.
pub(super) fn refuse_old_format(path: &Path) -> Result<(), DiskError> {
    let name = path.join(OLD_FILE);
    let file = match File::open(&name) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(DiskError::io(name, "open it")(error)),
    };
    if page(&file, 0, &name)?.starts_with(OLD_MAGIC) {
        let supported = superblock::FORMAT_VERSION;
        return Err(DiskError::Version { path: path.to_owned(), version: 1, supported });
    }
    Ok(())
}

fn format_directory(path: &Path, identity: &Identity, options: &FormatOptions) -> Result<(), DiskError> {
    // Two processes that format one directory: the second fails here.
    let directory = File::open(path).map_err(DiskError::io(path, "open the directory"))?;
    file_disk::lock(&directory, path, 1)?;
    if let Some(found) = inspect_identity(path)? {
        return Err(formatted(path, &found));
    }
    check_empty(path)?;
    let capacity = match options.capacity_bytes {
        Some(bytes) => bytes,
        None => {
            let space = rustix::fs::fstatvfs(&directory)
                .map_err(|error| DiskError::io(path, "ask for its size")(error.into()))?;
            space.f_blocks.saturating_mul(space.f_frsize) / 100 * CAPACITY_PERCENT
        }
    };
    let layout = options.layout(path, capacity)?;
    let temporary = path.join(TEMPORARY);
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(&temporary)
        .map_err(DiskError::io(&temporary, "create it"))?;
    let wal = path.join(WAL_FILE);
    let made = make_file(&temporary, &wal, identity, &layout);
    if made.is_err() {
        // What cannot be finished should not take room; and what stays does no harm.
        let _ = fs::remove_file(&wal);
        let _ = fs::remove_file(&temporary);
    }
    made?;
    fs::rename(&temporary, path.join(FILE)).map_err(DiskError::io(&temporary, "rename it"))?;
    directory.sync_all().map_err(DiskError::io(path, "sync the directory"))?;
    if let Some(parent) = path.canonicalize().ok().as_deref().and_then(Path::parent) {
        File::open(parent)
            .and_then(|parent| parent.sync_all())
            .map_err(DiskError::io(parent, "sync the directory"))?;
    }
    Ok(())
}

/// Fails if there is anything but what formatting leaves that was cut short.
fn check_empty(path: &Path) -> Result<(), DiskError> {
    let list = fs::read_dir(path).map_err(DiskError::io(path, "list the directory"))?;
    for entry in list {
        let entry = entry.map_err(DiskError::io(path, "list the directory"))?;
        let is_ours = match entry.file_name().to_str() {
            Some("lost+found") => true,
            Some(TEMPORARY) => is_leftover(&entry.path())?,
            // It is made after the temporary file.
            Some(WAL_FILE) => path.join(TEMPORARY).exists(),
            _ => false,
        };
        if !is_ours {
            return Err(DiskError::NotEmpty(path.to_owned()));
        }
    }
    Ok(())
}

/// Whether a file is one that formatting left: with the note, with nothing yet, or a whole disk that was not renamed.
fn is_leftover(path: &Path) -> Result<bool, DiskError> {
    let is_file = fs::symlink_metadata(path).map_err(DiskError::io(path, "look at it"))?.is_file();
    if !is_file {
        return Ok(false);
    }
    let file = File::open(path).map_err(DiskError::io(path, "open it"))?;
    let page = page(&file, 0, path)?;
    let len = file_disk::size_bytes(&file).map_err(DiskError::io(path, "ask for its size"))?;
    let nothing = len <= PAGE_BYTES && page.iter().all(|byte| *byte == 0);
    Ok(nothing || page[..] == note()[..] || Superblock::decode(&page).is_ok())
}

fn make_file(path: &Path, wal: &Path, identity: &Identity, layout: &Layout) -> Result<(), DiskError> {
    let mut disk = FileDisk::take(path, Medium::Sparse)?;
    disk.resize(PAGE_BYTES).map_err(DiskError::io(path, "make room for it"))?;
    write_note(&disk)?;
    disk.resize(layout.total_bytes).map_err(DiskError::io(path, "make room for it"))?;
    let disk = disk.with_wal(WalFile::create(wal, identity, layout)?)?;
    // What follows takes room when it is needed, and is refused then without harm.
    let areas = layout.area_offsets[0];
    disk.reserve(0, layout.wal_offset)
        .and_then(|()| disk.reserve(layout.wal_offset, layout.wal_bytes))
        .and_then(|()| disk.reserve(areas, layout.pages_offset - areas))
        .map_err(DiskError::io(path, "make room for it"))?;
    fill(disk, identity, layout)
}

/// Formats all of a file or a device.
fn format_whole(disk: FileDisk, identity: &Identity, options: &FormatOptions) -> Result<(), DiskError> {
    let path = disk.path().to_owned();
    if let Some(found) = disk.identity()? {
        return Err(formatted(&path, &found));
    }
    let size_bytes = disk.size_bytes();
    let total_bytes = options.capacity_bytes.unwrap_or(size_bytes);
    if total_bytes > size_bytes {
        return Err(DiskError::Capacity { path, size_bytes, capacity_bytes: total_bytes });
    }
    let layout = options.layout(&path, total_bytes)?;
    // Whoever wrote the note had found everything blank.
    if page(disk.file(), 0, &path)?[..] != note()[..]
        && let Some(found) = blank::find(disk.file(), size_bytes).map_err(DiskError::io(&path, "read it"))?
    {
        return Err(DiskError::NotBlank { path, found });
    }
    write_note(&disk)?;
    if disk.medium() == Medium::Preallocated {
        let allocate = || fallocate(disk.file(), FallocateFlags::empty(), 0, layout.total_bytes);
        match retry_on_intr(allocate) {
            Ok(()) => {}
            // Then zeros are the way to have the room.
            Err(Errno::OPNOTSUPP) => zero(&disk, PAGE_BYTES, layout.total_bytes - PAGE_BYTES)?,
            Err(error) => return Err(DiskError::io(path, "allocate all of it")(error.into())),
        }
    }
    fill(disk, identity, &layout)
}

fn fill(disk: FileDisk, identity: &Identity, layout: &Layout) -> Result<(), DiskError> {
    let path = disk.path().to_owned();
    zero(&disk, layout.wal_offset, layout.wal_bytes)?;
    disk.sync_files().map_err(DiskError::io(&path, "sync it"))?;
    Store::format(&disk, identity, layout).map_err(DiskError::io(&path, "write it"))?;
    disk.sync_files().map_err(DiskError::io(&path, "sync it"))?;
    disk.forget_cached(0, layout.units_offset).map_err(DiskError::io(&path, "drop what is cached of it"))
}

fn write_note(disk: &FileDisk) -> Result<(), DiskError> {
    disk.write(0, &[note()]).and_then(|()| disk.sync()).map_err(DiskError::io(disk.path(), "write it"))
}

fn note() -> Bytes {
    let mut note = NOTE.to_vec();
    note.resize(PAGE, 0);
    note.into()
}

/// Writes zeros, durably.
fn zero(disk: &FileDisk, offset: u64, len: u64) -> Result<(), DiskError> {
    static ZEROS: [u8; ZEROS_BYTES as usize] = [0; ZEROS_BYTES as usize];
    let end = offset + len;
    let mut at = offset;
    while at < end {
        let mut parts = Vec::new();
        let begin = at;
        while at < end && at - begin < ZEROS_BYTES * ZEROS_PARTS {
            let len = (end - at).min(ZEROS_BYTES);
            // At most the length of `ZEROS`.
            parts.push(Bytes::from_static(&ZEROS[..len as usize]));
            at += len;
        }
        disk.write_durable(begin, &parts).map_err(DiskError::io(disk.path(), "write it"))?;
    }
    Ok(())
}

fn formatted(path: &Path, found: &Identity) -> DiskError {
    DiskError::Formatted { path: path.to_owned(), disk: found.disk, cluster: found.cluster }
}

#[cfg(test)]
mod tests;

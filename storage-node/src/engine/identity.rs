//! Which disk a directory is.
//!
//! ```text
//!     DIRECTORY/identity     this page; also the lock that one process holds
//!     DIRECTORY/journal.0    }  two segments, used in turn (see `journal`)
//!     DIRECTORY/journal.1    }
//!     DIRECTORY/extents/     extent files (see `extent`)
//!     DIRECTORY/trash/       extents of deleted namespaces on their way out
//! ```
//!
//! The identity file is 4096 bytes, little-endian, written once:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | magic `LUNEDISK` |
//! | 8 | 4 | format version of the whole directory: 1 |
//! | 12 | 4 | disk id |
//! | 16 | 16 | cluster id |
//! | 32 | 16 | disk uuid |
//! | 48 | 8 | bytes of a journal segment |
//! | 56 | 4036 | zeros |
//! | 4092 | 4 | CRC-32C of bytes 0 to 4092 |
//!
//! Formatting writes `identity.tmp` first and renames it last: a directory that holds the temporary
//! name and not the final one was being formatted when the process died, and may be formatted again.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::{Buf, BufMut};
use lunette_proto::checksum::crc32c;
use lunette_proto::ids::{ClusterId, DiskId, DiskUuid};

use super::DiskError;
use super::journal::Journal;

/// Version of the directory's format that this program reads and writes.
pub const FORMAT_VERSION: u32 = 1;
/// Bytes of a journal segment unless said otherwise.
pub const SEGMENT_BYTES_DEFAULT: u64 = 64 << 20;
/// A segment holds the largest change several times.
pub(crate) const SEGMENT_BYTES_MIN: u64 = 8 << 20;
pub(crate) const SEGMENT_BYTES_MAX: u64 = 1 << 30;

const PAGE: usize = 4096;
const CRC: usize = PAGE - size_of::<u32>();
const MAGIC: &[u8; 8] = b"LUNEDISK";
const FILE: &str = "identity";
const TEMPORARY: &str = "identity.tmp";
pub(crate) const EXTENTS: &str = "extents";
pub(crate) const TRASH: &str = "trash";

/// Which disk a directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster that it belongs to.
    pub cluster: ClusterId,
    /// Its id in the cluster.
    pub disk: DiskId,
    /// Its own identity, drawn when it was formatted.
    pub uuid: DiskUuid,
    /// Bytes of a journal segment.
    pub segment_bytes: u64,
}

impl Identity {
    /// A new disk with the usual journal.
    #[must_use]
    pub fn new(cluster: ClusterId, disk: DiskId, uuid: DiskUuid) -> Self {
        Self { cluster, disk, uuid, segment_bytes: SEGMENT_BYTES_DEFAULT }
    }

    fn encode(&self) -> [u8; PAGE] {
        let mut page = [0; PAGE];
        let mut out = page.as_mut_slice();
        out.put_slice(MAGIC);
        out.put_u32_le(FORMAT_VERSION);
        out.put_u32_le(self.disk.0);
        out.put_u128_le(self.cluster.0);
        out.put_u128_le(self.uuid.0);
        out.put_u64_le(self.segment_bytes);
        let crc = crc32c(&page[..CRC]);
        page[CRC..].copy_from_slice(&crc.to_le_bytes());
        page
    }

    fn decode(page: &[u8; PAGE], path: &Path) -> Result<Self, DiskError> {
        let damaged = |offset, what| DiskError::Damaged { path: path.to_owned(), offset, what };
        let mut fields = page.as_slice();
        if fields.copy_to_bytes(MAGIC.len()) != MAGIC[..] {
            return Err(damaged(0, "no identity of a Lunette disk"));
        }
        if (&page[CRC..]).get_u32_le() != crc32c(&page[..CRC]) {
            return Err(damaged(CRC as u64, "wrong checksum"));
        }
        let version = fields.get_u32_le();
        if version != FORMAT_VERSION {
            return Err(DiskError::Version { path: path.to_owned(), version, supported: FORMAT_VERSION });
        }
        let identity = Self {
            disk: DiskId(fields.get_u32_le()),
            cluster: ClusterId(fields.get_u128_le()),
            uuid: DiskUuid(fields.get_u128_le()),
            segment_bytes: fields.get_u64_le(),
        };
        if !valid_segment(identity.segment_bytes) {
            return Err(damaged(48, "impossible journal size"));
        }
        Ok(identity)
    }
}

fn valid_segment(bytes: u64) -> bool {
    (SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&bytes) && bytes.is_multiple_of(PAGE as u64)
}

/// Makes `path`, a missing or empty directory, a disk. Durable when it returns.
///
/// # Errors
/// The directory holds something already, or the medium refuses. A disk is never formatted twice.
pub fn format_disk(path: &Path, identity: &Identity) -> Result<(), DiskError> {
    if !valid_segment(identity.segment_bytes) {
        return Err(DiskError::SegmentSize(identity.segment_bytes));
    }
    fs::create_dir_all(path).map_err(DiskError::io(path, "create the directory"))?;
    // Two processes that format one directory: the second fails here.
    let directory = File::open(path).map_err(DiskError::io(path, "open the directory"))?;
    lock(&directory, path)?;
    if let Some(found) = inspect_identity(path)? {
        return Err(DiskError::Formatted { path: path.to_owned(), disk: found.disk, cluster: found.cluster });
    }
    if !is_blank(path)? {
        return Err(DiskError::NotEmpty(path.to_owned()));
    }
    let temporary = path.join(TEMPORARY);
    let mut file = File::create(&temporary).map_err(DiskError::io(&temporary, "create it"))?;
    directory.sync_all().map_err(DiskError::io(path, "sync the directory"))?;
    for name in [EXTENTS, TRASH] {
        let child = path.join(name);
        match fs::create_dir(&child) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(DiskError::io(child, "create the directory")(error));
            }
            _ => {}
        }
    }
    Journal::format(path, identity)?;
    file.write_all(&identity.encode())
        .and_then(|()| file.sync_all())
        .map_err(DiskError::io(&temporary, "write it"))?;
    fs::rename(&temporary, path.join(FILE)).map_err(DiskError::io(&temporary, "rename it"))?;
    directory.sync_all().map_err(DiskError::io(path, "sync the directory"))?;
    if let Some(parent) = path.canonicalize().ok().as_deref().and_then(Path::parent) {
        File::open(parent)
            .and_then(|parent| parent.sync_all())
            .map_err(DiskError::io(parent, "sync the directory"))?;
    }
    Ok(())
}

/// The identity of the disk in a directory; `None` if there is none (or no directory).
///
/// # Errors
/// There is one, but it cannot be read or is of another format.
pub fn inspect_identity(path: &Path) -> Result<Option<Identity>, DiskError> {
    let file = path.join(FILE);
    match File::open(&file) {
        Ok(opened) => read(&opened, &file).map(Some),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(DiskError::io(file, "open it")(error)),
    }
}

/// Reads and locks the identity; the lock lasts as long as the file is open.
pub(crate) fn open_locked(path: &Path) -> Result<(File, Identity), DiskError> {
    let name = path.join(FILE);
    let file = match OpenOptions::new().read(true).write(true).open(&name) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(DiskError::NotFormatted(path.to_owned()));
        }
        Err(error) => return Err(DiskError::io(name, "open it")(error)),
    };
    lock(&file, path)?;
    let identity = read(&file, &name)?;
    Ok((file, identity))
}

fn read(file: &File, path: &Path) -> Result<Identity, DiskError> {
    let mut page = [0; PAGE];
    match file.read_exact_at(&mut page, 0) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
            return Err(DiskError::Damaged { path: path.to_owned(), offset: 0, what: "it is cut short" });
        }
        Err(error) => return Err(DiskError::io(path, "read it")(error)),
    }
    Identity::decode(&page, path)
}

fn lock(file: &File, path: &Path) -> Result<(), DiskError> {
    use rustix::fs::{FlockOperation, flock};
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(DiskError::InUse(path.to_owned())),
        Err(error) => Err(DiskError::io(path, "lock it")(error.into())),
    }
}

/// Whether the directory is empty, or was being formatted when that was cut short.
fn is_blank(path: &Path) -> Result<bool, DiskError> {
    let list = fs::read_dir(path).map_err(DiskError::io(path, "list the directory"))?;
    let mut others = false;
    let mut ours = false;
    let mut temporary = false;
    for entry in list {
        let name = entry.map_err(DiskError::io(path, "list the directory"))?.file_name();
        match name.to_str() {
            Some("lost+found") => {}
            Some(TEMPORARY) => temporary = true,
            Some("journal.0" | "journal.1" | EXTENTS | TRASH) => ours = true,
            _ => others = true,
        }
    }
    Ok(!others && (temporary || !ours))
}

/// Reads a whole file of a known, bounded size.
pub(crate) fn read_whole(file: &mut File, len: u64, path: &Path) -> Result<Vec<u8>, DiskError> {
    let mut bytes = Vec::new();
    file.take(len).read_to_end(&mut bytes).map_err(DiskError::io(path, "read it"))?;
    Ok(bytes)
}

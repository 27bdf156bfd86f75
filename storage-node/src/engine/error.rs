//! Why a disk cannot be used, in words that say what to do.

use std::path::PathBuf;

use lunette_proto::ids::{ClusterId, DiskId};

/// Why a disk cannot be formatted or opened. Nothing was changed on it.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// An operation of the operating system failed.
    #[error("{path}: cannot {action}: {source}")]
    Io {
        /// On which file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The directory holds something else.
    #[error("{0} is not empty and holds no Lunette disk; give an empty directory")]
    NotEmpty(PathBuf),
    /// The file or device holds something else.
    #[error(
        "{path} is not blank, it holds {found}; give another one, or, if nothing of it is needed, fill it with zeros \
         (blkdiscard --zeroout, or a new file by fallocate)"
    )]
    NotBlank {
        /// Which.
        path: PathBuf,
        /// What was found.
        found: String,
    },
    /// Something that no disk can be.
    #[error("{0} is neither a directory nor a regular file nor a block device; give one of these")]
    Kind(PathBuf),
    /// There is a disk already.
    #[error("{path} already holds {disk} of cluster {cluster}; it is not formatted again")]
    Formatted {
        /// Where.
        path: PathBuf,
        /// Which.
        disk: DiskId,
        /// Whose.
        cluster: ClusterId,
    },
    /// There is no disk.
    #[error("{0} holds no Lunette disk; format it first")]
    NotFormatted(PathBuf),
    /// Another process has it.
    #[error("{0} is in use already; stop the other process that has it")]
    InUse(PathBuf),
    /// Made by another version of the program.
    #[error(
        "{path} has format version {version}, and this program knows version {supported}; use the program that made \
         it, or give this one an empty disk, which the other copies fill"
    )]
    Version {
        /// Which.
        path: PathBuf,
        /// Its version.
        version: u32,
        /// What is known.
        supported: u32,
    },
    /// Of another cluster.
    #[error("{path} belongs to cluster {found}, not to {expected}; give this cluster's own disk")]
    WrongCluster {
        /// Where.
        path: PathBuf,
        /// Its cluster.
        found: ClusterId,
        /// Ours.
        expected: ClusterId,
    },
    /// Another disk than was meant.
    #[error("{path} is {found}, not {expected}; correct the configuration")]
    WrongDisk {
        /// Where.
        path: PathBuf,
        /// What it is.
        found: DiskId,
        /// What was meant.
        expected: DiskId,
    },
    /// The same disk twice.
    #[error("{0} is given twice")]
    Duplicate(DiskId),
    /// It is damaged in a way that no crash explains.
    #[error(
        "{path} is damaged at byte {offset}: {what}; put another in its place by `lunette disk replace`, the other copies fill it"
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// A journal that a disk cannot have.
    #[error("a journal of {0} bytes is not a multiple of 4096 from 32 MiB to 4 GiB")]
    WalSize(u64),
    /// Not even one unit of data would fit.
    #[error(
        "{path}: {total_bytes} bytes are too few for a disk with a journal of {wal_bytes} bytes; give it more"
    )]
    TooSmall {
        /// Which.
        path: PathBuf,
        /// Bytes that it would have.
        total_bytes: u64,
        /// Bytes of these that the journal would take.
        wal_bytes: u64,
    },
    /// More than a disk can address.
    #[error(
        "{path}: {total_bytes} bytes are too many for a disk, which has {max_bytes} at most; give it less"
    )]
    TooLarge {
        /// Which.
        path: PathBuf,
        /// Bytes that it would have.
        total_bytes: u64,
        /// Bytes that it may have.
        max_bytes: u64,
    },
    /// There is no such unit.
    #[error("{path} has no unit {unit}: its units are 0 to {}", units - 1)]
    NoSuchUnit {
        /// Which.
        path: PathBuf,
        /// Which unit.
        unit: u32,
        /// How many there are.
        units: u32,
    },
    /// More is asked of a file or a device than it has.
    #[error(
        "{path} has {size_bytes} bytes, and a capacity of {capacity_bytes} is asked of it; correct the capacity"
    )]
    Capacity {
        /// Which.
        path: PathBuf,
        /// Bytes that it has.
        size_bytes: u64,
        /// Bytes that are wanted.
        capacity_bytes: u64,
    },
}

impl DiskError {
    /// What a failed operation on `path` is, for `map_err`.
    pub(crate) fn io(
        path: impl Into<PathBuf>,
        action: &'static str,
    ) -> impl FnOnce(std::io::Error) -> DiskError {
        let path = path.into();
        move |source| DiskError::Io { path, action, source }
    }
}

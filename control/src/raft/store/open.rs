//! Opening a member's folder: a new one is founded, a known one is checked, anything else is refused
//! by name and left as it is.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lunette_proto::ids::ClusterId;
use lunette_proto::map::Sealed;
use redb::{Database, ReadOnlyDatabase, ReadableDatabase};
use thiserror::Error;

use super::machine::Progress;
use super::{
    Identity, LOG, LogStore, META, Machine, SNAPSHOT, STATE, Store, StoreError, encode, path_in, read_meta,
    rows, write,
};
use crate::published::Published;
use crate::seal::{KeyError, Sealer};

/// The format that this version writes and reads, see the parent module.
pub(super) const FORMAT: u32 = 7;
/// What the key is tried on.
const KEY_CHECK: &str = "lunette control plane";
/// Pages kept in memory; the state itself is in memory anyway.
const CACHE_BYTES: usize = 16 << 20;

/// Why a folder cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// A file or folder cannot be read or made.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process has it open.
    #[error("{} is in use by another process; stop that one, or choose another data directory", path.display())]
    InUse {
        /// Which file.
        path: PathBuf,
    },
    /// Written by a newer version.
    #[error("{} has format {found}, and this version knows up to {FORMAT}; use the version that wrote it", path.display())]
    Format {
        /// Which file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// Written by a version that was never released.
    #[error(
        "{} has format {found}, of a version before the first release, and this version reads format {FORMAT}; copy the data out with the version that wrote it, and begin with an empty data directory", path.display()
    )]
    Unreleased {
        /// Which file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// Not a store of ours.
    #[error(
        "{} is damaged, or no store of Lunette's control plane; put it back from a copy, see \"A control plane's store is lost\" in docs/operations.md", path.display()
    )]
    Foreign {
        /// Which file.
        path: PathBuf,
    },
    /// Of another cluster.
    #[error("{} belongs to cluster {found}, not to {wanted}; choose another data directory", path.display())]
    OtherCluster {
        /// Which file.
        path: PathBuf,
        /// Whose it is.
        found: ClusterId,
        /// Whose it should be.
        wanted: ClusterId,
    },
    /// Of another member.
    #[error("{} belongs to member {found}, not to {wanted}; choose another data directory", path.display())]
    OtherMember {
        /// Which file.
        path: PathBuf,
        /// Whose it is.
        found: u64,
        /// Whose it should be.
        wanted: u64,
    },
    /// A new folder, and nobody says which member it is to be.
    #[error("{} holds no member of a control plane; put it back from a copy", path.display())]
    Nameless {
        /// Which.
        path: PathBuf,
    },
    /// The cluster's key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A key, but of another cluster.
    #[error("cluster key {} is not the key that {} was made with", key.display(), path.display())]
    OtherKey {
        /// The key file.
        key: PathBuf,
        /// The store.
        path: PathBuf,
    },
    /// The store is damaged or fails.
    #[error("{}: {source}; put it back from a copy", path.display())]
    Store {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: StoreError,
    },
}

/// What the caller expects of the folder.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// `None`: whatever an existing folder says; a new one draws its own.
    pub(crate) cluster: Option<ClusterId>,
    /// As for the cluster, but a new one has to be told.
    pub(crate) member: Option<u64>,
    /// The cluster's key; made when the folder is new and there is none yet.
    pub(crate) key: PathBuf,
}

/// An open member.
pub(crate) struct Opened {
    pub(crate) identity: Identity,
    pub(crate) sealer: Sealer,
    pub(crate) store: Store,
    pub(crate) log: LogStore,
    pub(crate) machine: Machine,
    pub(crate) published: Arc<Published>,
}

/// Opens or founds the member in `folder`. Blocks on the disk.
pub(crate) fn open(folder: &Path, wanted: &Wanted) -> Result<Opened, OpenError> {
    let path = path_in(folder);
    if exists(&path)? {
        // To open a file for writing is to write to it; what is not ours is only looked at. A file that
        // was not closed cannot be: it is repaired first, which changes nothing that was committed.
        match ReadOnlyDatabase::open(&path) {
            Ok(database) => drop(check(&database, &path, wanted)?),
            Err(redb::DatabaseError::RepairAborted) => {}
            Err(error) => return Err(file_error(&path, error)),
        }
    } else if wanted.member.is_none() {
        return Err(OpenError::Nameless { path });
    } else {
        fs::create_dir_all(folder).map_err(|source| OpenError::Io { path: folder.to_owned(), source })?;
    }
    let database = Database::builder().set_cache_size(CACHE_BYTES).create(&path);
    let database = database.map_err(|error| file_error(&path, error))?;
    sync_folder(folder)?;
    let (identity, sealer) = match check(&database, &path, wanted)? {
        Some(known) => known,
        None => found(&database, &path, wanted)?,
    };

    let store = |source| OpenError::Store { path: path.clone(), source };
    let state = rows::load(&database).map_err(store)?;
    let progress: Progress = read_meta(&database, "applied").map_err(store)?.unwrap_or_default();
    let published = Arc::new(Published::new(state.clone()));
    let store = Store::start(database).map_err(|source| OpenError::Io { path, source })?;
    Ok(Opened {
        identity,
        sealer,
        log: LogStore::new(store.clone()),
        machine: Machine::new(store.clone(), state, progress, Arc::clone(&published)),
        store,
        published,
    })
}

fn exists(path: &Path) -> Result<bool, OpenError> {
    fs::exists(path).map_err(|source| OpenError::Io { path: path.to_owned(), source })
}

fn sync_folder(folder: &Path) -> Result<(), OpenError> {
    let sync = File::open(folder).and_then(|folder| folder.sync_all());
    sync.map_err(|source| OpenError::Io { path: folder.to_owned(), source })
}

fn file_error(path: &Path, error: redb::DatabaseError) -> OpenError {
    let path = path.to_owned();
    match error {
        redb::DatabaseError::DatabaseAlreadyOpen => OpenError::InUse { path },
        redb::DatabaseError::UpgradeRequired(_) => OpenError::Foreign { path },
        redb::DatabaseError::Storage(redb::StorageError::Io(error))
            if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
        {
            OpenError::Foreign { path }
        }
        redb::DatabaseError::Storage(redb::StorageError::Io(source)) => OpenError::Io { path, source },
        redb::DatabaseError::Storage(redb::StorageError::Corrupted(_)) => OpenError::Foreign { path },
        other => OpenError::Store { path, source: other.into() },
    }
}

fn found(database: &Database, path: &Path, wanted: &Wanted) -> Result<(Identity, Sealer), OpenError> {
    let member = wanted.member.ok_or_else(|| OpenError::Nameless { path: path.to_owned() })?;
    let sealer = Sealer::open_or_create(&wanted.key)?;
    let cluster = wanted.cluster.unwrap_or_else(|| ClusterId(uuid::Uuid::new_v4().as_u128()));
    let identity = Identity { cluster, member };
    let check = sealer.seal(KEY_CHECK, &cluster.to_string(), KEY_CHECK.as_bytes())?;
    write(database, |transaction| {
        let mut meta = transaction.open_table(META)?;
        meta.insert("format", FORMAT.to_le_bytes().as_slice())?;
        meta.insert("identity", encode(&identity)?.as_slice())?;
        meta.insert("key-check", encode(&check)?.as_slice())?;
        // Tables exist from the start, so that reading needs no special case.
        transaction.open_table(LOG)?;
        transaction.open_table(STATE)?;
        transaction.open_table(SNAPSHOT)?;
        Ok(())
    })
    .map_err(|source| OpenError::Store { path: path.to_owned(), source })?;
    Ok((identity, sealer))
}

/// Who a file says it is, if it is what is wanted; `None`: it is blank. A file that was made but not
/// written to, because the process ended in between, is as good as none.
fn check(
    database: &impl ReadableDatabase,
    path: &Path,
    wanted: &Wanted,
) -> Result<Option<(Identity, Sealer)>, OpenError> {
    let path = path.to_owned();
    let store = |source| OpenError::Store { path: path.clone(), source };
    if is_blank(database).map_err(store)? {
        return Ok(None);
    }
    let format = read_format(database).map_err(store)?;
    match format {
        Some(FORMAT) => {}
        Some(found) if found < FORMAT => return Err(OpenError::Unreleased { path, found }),
        Some(found) => return Err(OpenError::Format { path, found }),
        None => return Err(OpenError::Foreign { path }),
    }
    let missing = |what| store(StoreError::Damaged { what });
    let identity: Identity =
        read_meta(database, "identity").map_err(store)?.ok_or_else(|| missing("its identity"))?;
    if let Some(cluster) = wanted.cluster
        && cluster != identity.cluster
    {
        return Err(OpenError::OtherCluster { path, found: identity.cluster, wanted: cluster });
    }
    if let Some(member) = wanted.member
        && member != identity.member
    {
        return Err(OpenError::OtherMember { path, found: identity.member, wanted: member });
    }
    // Never a new key for an old store: what the old one sealed would be lost without a word.
    let sealer = Sealer::open(&wanted.key)?;
    let sealed: Sealed =
        read_meta(database, "key-check").map_err(store)?.ok_or_else(|| missing("its key check"))?;
    if sealer.unseal(KEY_CHECK, &identity.cluster.to_string(), &sealed).is_err() {
        return Err(OpenError::OtherKey { key: wanted.key.clone(), path });
    }
    Ok(Some((identity, sealer)))
}

fn is_blank(database: &impl ReadableDatabase) -> Result<bool, StoreError> {
    Ok(database.begin_read()?.list_tables()?.next().is_none())
}

fn read_format(database: &impl ReadableDatabase) -> Result<Option<u32>, StoreError> {
    let transaction = database.begin_read()?;
    let meta = match transaction.open_table(META) {
        Ok(meta) => meta,
        Err(redb::TableError::Storage(error)) => return Err(error.into()),
        // Another table, or one of another type: not ours.
        Err(_) => return Ok(None),
    };
    let format = meta.get("format")?;
    Ok(format.and_then(|format| format.value().try_into().ok()).map(u32::from_le_bytes))
}

//! Opening a disk: the extent files are brought to what the journal says.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use lunette_proto::ids::{ClusterId, ExtentId, Namespace};

use super::extents::Extents;
use super::identity::{self, EXTENTS, Identity, TRASH};
use super::journal::{self, ChangeRecord, Journal, Record, Reset};
use super::namespaces::Namespaces;
use super::pending::is_whole_zeros;
use super::{DiskConfig, DiskError};

/// An opened disk.
#[derive(Debug)]
pub(super) struct Opened {
    /// Held for its lock, and for syncing.
    pub(super) lock: File,
    pub(super) identity: Identity,
    pub(super) namespaces: Namespaces,
    pub(super) journal: Journal,
    pub(super) extents: Extents,
}

/// Opens the disk of `config`. Until the checks have passed nothing is changed.
pub(super) fn open(cluster: ClusterId, config: &DiskConfig, open_max: usize) -> Result<Opened, DiskError> {
    let path = config.path.as_path();
    let (lock, identity) = identity::open_locked(path)?;
    if identity.cluster != cluster {
        let (found, expected) = (identity.cluster, cluster);
        return Err(DiskError::WrongCluster { path: path.to_owned(), found, expected });
    }
    if let Some(expected) = config.disk
        && expected != identity.disk
    {
        return Err(DiskError::WrongDisk { path: path.to_owned(), found: identity.disk, expected });
    }
    check_one_file_system(path, &lock)?;
    let recovered = journal::recover(path, &identity)?;
    journal::settle(path)?;
    let extents = Extents::new(path, open_max);
    let namespaces = replay(path, &extents, &recovered.records)?;
    remove_deleted(path, &extents, &namespaces)?;
    Extents::sync(&lock).map_err(DiskError::io(path, "sync it"))?;
    let journal = Journal::open(path, &identity, recovered.base, recovered.next_lsn, &namespaces)?;
    Ok(Opened { lock, identity, namespaces, journal, extents })
}

/// Everything is synced by one call for the whole file system (see [`Extents::sync`]), so it must be one.
fn check_one_file_system(path: &Path, lock: &File) -> Result<(), DiskError> {
    let device = |metadata: std::io::Result<std::fs::Metadata>, path: &Path| {
        metadata.map(|metadata| metadata.dev()).map_err(DiskError::io(path, "look at it"))
    };
    let expected = device(lock.metadata(), path)?;
    for name in [EXTENTS, TRASH, "journal.0", "journal.1"] {
        let child = path.join(name);
        if device(std::fs::metadata(&child), &child)? != expected {
            let what = "it lies on another file system than the disk's identity file";
            return Err(DiskError::Damaged { path: child, offset: 0, what });
        }
    }
    Ok(())
}

/// What becomes of namespaces and extents in the end, for changes whose files may have gone that way already: an
/// earlier recovery, or what ran before the crash, was ahead of the record.
#[derive(Default)]
struct Fate {
    deleted: HashSet<Namespace>,
    /// The last record that discards the whole extent.
    emptied: HashMap<ExtentId, usize>,
}

impl Fate {
    fn of(records: &[Record]) -> Self {
        let mut fate = Self::default();
        for (at, record) in records.iter().enumerate() {
            match record {
                Record::Delete(id) => {
                    fate.deleted.insert(*id);
                }
                Record::Tombstones(ids) => fate.deleted.extend(ids),
                Record::Change(change) if is_whole_zeros(change) => {
                    fate.emptied.insert(change.extent, at);
                }
                _ => {}
            }
        }
        fate
    }
}

fn replay(path: &Path, extents: &Extents, records: &[Record]) -> Result<Namespaces, DiskError> {
    let fate = Fate::of(records);
    let mut namespaces = Namespaces::default();
    let mut stated = Namespaces::default();
    for (at, record) in records.iter().enumerate() {
        match record {
            Record::Namespace(id, state) => stated.restore(*id, state.clone()),
            Record::Tombstones(ids) => ids.iter().for_each(|id| {
                stated.delete(*id);
            }),
            Record::StateEnd => namespaces = std::mem::take(&mut stated),
            Record::Change(change) => {
                if !fate.deleted.contains(&change.extent.namespace) {
                    let is_emptied = fate.emptied.get(&change.extent).is_some_and(|last| *last > at);
                    redo(path, extents, &mut namespaces, change, is_emptied)?;
                }
            }
            Record::Seal(id, generation, epoch) => {
                if namespaces.check_not_older(*id, *generation, *epoch).is_err() {
                    return Err(damaged(path, "the journal seals with an older generation"));
                }
                namespaces.seal(*id, *generation, *epoch);
            }
            Record::Delete(id) => {
                namespaces.delete(*id);
            }
            Record::Watermark(id, mark) => {
                namespaces.watermark(*id, *mark);
            }
        }
    }
    Ok(namespaces)
}

fn redo(
    path: &Path,
    extents: &Extents,
    namespaces: &mut Namespaces,
    change: &ChangeRecord,
    is_emptied_later: bool,
) -> Result<(), DiskError> {
    let starts_anew = change.reset != Reset::None || is_whole_zeros(change);
    let extent =
        if starts_anew { extents.get_or_create(change.extent).map(Some) } else { extents.get(change.extent) };
    let extent = extent.map_err(DiskError::io(path, "open an extent file"))?;
    let Some(extent) = extent else {
        return Err(damaged(path, "an extent file that the journal changes is missing"));
    };
    if starts_anew || extent.state.read().has_table() {
        extent.apply(change, false).map_err(DiskError::io(path, "write an extent file"))?;
    } else if !is_emptied_later {
        return Err(damaged(path, "an extent file that the journal changes has lost its table"));
    }
    // Else the file is ahead already: the extent was discarded as a whole afterwards.
    let newest = extent.state.read().newest().max(change.version);
    namespaces.changed(change.extent.namespace, change.extent.index, change.version, newest, change.grown);
    Ok(())
}

/// Finishes deletes that a crash cut short.
fn remove_deleted(path: &Path, extents: &Extents, namespaces: &Namespaces) -> Result<(), DiskError> {
    let list = std::fs::read_dir(path.join(EXTENTS)).map_err(DiskError::io(path, "list the extents"))?;
    for entry in list {
        let name = entry.map_err(DiskError::io(path, "list the extents"))?.file_name();
        let Some(id) = name.to_str().and_then(|name| u64::from_str_radix(name, 16).ok()).map(Namespace)
        else {
            continue;
        };
        if namespaces.is_deleted(id) {
            extents.discard(id).map_err(DiskError::io(path, "delete a namespace"))?;
        }
    }
    extents.empty_trash().map_err(DiskError::io(path, "delete a namespace"))
}

fn damaged(path: &Path, what: &'static str) -> DiskError {
    DiskError::Damaged { path: path.to_owned(), offset: 0, what }
}

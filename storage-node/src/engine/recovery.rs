//! Opening a disk: the extent files are brought to what the journal says.

use std::fs::File;
use std::path::Path;

use lunette_proto::ids::{ClusterId, Namespace};

use super::extents::Extents;
use super::identity::{self, EXTENTS, Identity};
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
    let recovered = journal::recover(path, &identity)?;
    let extents = Extents::new(path, open_max);
    let namespaces = replay(path, &extents, &recovered.records)?;
    remove_deleted(path, &extents, &namespaces)?;
    Extents::sync(&lock).map_err(DiskError::io(path, "sync it"))?;
    let journal = Journal::open(path, &identity, recovered.base, recovered.next_lsn, &namespaces)?;
    Ok(Opened { lock, identity, namespaces, journal, extents })
}

fn replay(path: &Path, extents: &Extents, records: &[Record]) -> Result<Namespaces, DiskError> {
    // What is deleted in the end may have lost its files already: an earlier recovery may have
    // been cut short.
    let deleted = |id: Namespace| {
        records.iter().any(|record| match record {
            Record::Delete(other) => *other == id,
            Record::Tombstones(others) => others.contains(&id),
            _ => false,
        })
    };
    let mut known: Option<(Namespace, bool)> = None;
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
                let id = change.extent.namespace;
                let gone = match known {
                    Some((known, gone)) if known == id => gone,
                    _ => deleted(id),
                };
                known = Some((id, gone));
                if !gone {
                    redo(path, extents, &mut namespaces, change, &records[at + 1..])?;
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
    later: &[Record],
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
    } else if !later.iter().any(|record| empties(record, change)) {
        return Err(damaged(path, "an extent file that the journal changes has lost its table"));
    }
    // Else the file is ahead already: the extent was discarded as a whole afterwards.
    let newest = extent.state.read().newest().max(change.version);
    namespaces.changed(change.extent.namespace, change.extent.index, change.version, newest, change.grown);
    Ok(())
}

/// Whether `record` discards the whole extent of `change`.
fn empties(record: &Record, change: &ChangeRecord) -> bool {
    matches!(record, Record::Change(other) if other.extent == change.extent && is_whole_zeros(other))
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

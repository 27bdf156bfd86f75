//! Disks that are added by command.
//!
//! ```text
//! AddDisk --> a wish: it has an id, no table may name it
//!               |--- DiskAdded: its node serves it ---> in service; the entry says where, for the next start;
//!               |                                         the disk that it replaces is emptied from now on
//!               '--- RefuseDisk: its node cannot -----> as if nothing had been asked for
//! ```

use std::path::Path;

use lunette_proto::ids::{DiskId, DiskUuid, NodeId};
use lunette_proto::map::{AddedDisk, Disk, DiskState};

use super::limits::{DISK_BYTES_MIN, DISKS_PER_NODE_MAX, LABEL_CHARS_MAX};
use super::members::default_weight;
use super::{Change, Draft, NameKind, Rejection, Response, take};

impl Draft<'_> {
    pub(super) fn add_disk(
        &mut self,
        node: &str,
        path: &str,
        capacity_bytes: Option<u64>,
        uuid: DiskUuid,
        replaces: Option<DiskId>,
    ) -> Result<Response, Rejection> {
        let map = self.map;
        let known = map.nodes.values().find(|known| known.name == node);
        let node = known.ok_or_else(|| Rejection::NotFound {
            kind: NameKind::Node,
            name: node.chars().take(LABEL_CHARS_MAX).collect(),
        })?;
        let path = normal_path(path)?;
        if let Some(bytes) = capacity_bytes.filter(|bytes| *bytes < DISK_BYTES_MIN) {
            return Err(Rejection::DiskCapacity { bytes });
        }
        if let Some(old) = replaces {
            self.known(old)?;
        }
        let wishes = || map.wishes().filter(|wish| wish.node == node.id);
        // Asked for twice is asked for once, for whoever has lost the answer.
        let same = wishes().find(|wish| {
            (&wish.path, wish.capacity_bytes, wish.replaces) == (&path, capacity_bytes, replaces)
        });
        if let Some(wish) = same {
            return Ok(Response::Disk(wish.id));
        }
        if let Some(old) = replaces {
            let by = map.wishes().find(|wish| wish.replaces == Some(old)).map(|wish| wish.id);
            if let Some(by) = by.or(self.known(old)?.replaced_by) {
                return Err(Rejection::Replaced { disk: old, by });
            }
        }

        let disks = || map.disks.values().filter(|disk| disk.node == node.id);
        let taken = disks().map(|disk| (disk.id, &disk.label));
        let mut taken = taken.chain(wishes().map(|wish| (wish.id, &wish.path)));
        if let Some((disk, taken)) = taken.find(|(_, taken)| overlap(taken, &path)) {
            let (node, taken) = (node.name.clone(), taken.clone());
            return Err(Rejection::DiskPathTaken { node, disk, taken });
        }
        if disks().count() + wishes().count() >= DISKS_PER_NODE_MAX {
            return Err(Rejection::TooMany { what: "disks of a node".into(), max: DISKS_PER_NODE_MAX });
        }
        self.check_disks_max(0)?;
        let used = map.disks.values().any(|disk| disk.uuid == uuid)
            || map.added.values().any(|added| added.uuid == uuid);
        if used || uuid == DiskUuid::default() {
            return Err(Rejection::DiskUuid { uuid: uuid.to_string() });
        }
        let id = DiskId(take(&mut self.next.disk)?);
        self.put(Change::PutAdded(AddedDisk { id, uuid, node: node.id, path, capacity_bytes, replaces }));
        Ok(Response::Disk(id))
    }

    pub(super) fn disk_added(
        &mut self,
        node: NodeId,
        id: DiskId,
        capacity_bytes: u64,
    ) -> Result<Response, Rejection> {
        let added = self.map.added.get(&id).filter(|added| added.node == node);
        let added = added.ok_or(Rejection::NoDisk(id))?;
        if !self.map.disks.contains_key(&id) {
            self.put(Change::PutDisk(Disk {
                id,
                uuid: added.uuid,
                node,
                label: added.path.clone(),
                capacity_bytes,
                weight: default_weight(capacity_bytes),
                // No table names a disk that is new, so it misses nothing.
                state: DiskState::InSync,
                draining: false,
                replaced_by: None,
            }));
            if let Some(old) = added.replaces {
                self.take_place(id, old);
            }
        }
        Ok(Response::Done)
    }

    /// A disk is in service that another is to make place for; that one may be gone by now, as may any that is empty.
    pub(super) fn take_place(&mut self, new: DiskId, old: DiskId) {
        let changed = self.changes.iter().rev().find_map(|change| match change {
            Change::PutDisk(disk) if disk.id == old => Some(disk),
            _ => None,
        });
        if let Some(disk) = changed.or(self.map.disks.get(&old)).cloned() {
            self.put(Change::PutDisk(Disk { draining: true, replaced_by: Some(new), ..disk }));
        }
    }

    pub(super) fn refuse_disk(&mut self, node: NodeId, id: DiskId) -> Result<Response, Rejection> {
        if self.map.disks.contains_key(&id) {
            return Err(Rejection::DiskInService(id));
        }
        // One that is withdrawn already is refused already.
        if self.map.added.get(&id).is_some_and(|added| added.node == node) {
            self.put(Change::RemoveAdded(id));
        }
        Ok(Response::Done)
    }
}

/// An absolute path in the one spelling that is compared with others; what it leads to, only the node knows.
fn normal_path(path: &str) -> Result<String, Rejection> {
    let wrong = || Rejection::DiskPath { path: path.chars().take(LABEL_CHARS_MAX).collect() };
    let parts = || path.split('/').filter(|part| !part.is_empty());
    let fits = path.starts_with('/')
        && parts().next().is_some()
        && parts().all(|part| part != "." && part != "..")
        && path.chars().count() <= LABEL_CHARS_MAX
        && !path.chars().any(char::is_control);
    if !fits {
        return Err(wrong());
    }
    Ok(parts().fold(String::new(), |path, part| format!("{path}/{part}")))
}

/// Whether one path is the other or lies in it: two disks would write to one place.
fn overlap(one: &str, other: &str) -> bool {
    let (one, other) = (Path::new(one), Path::new(other));
    one.starts_with(other) || other.starts_with(one)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards against two spellings of one path, and paths that depend on where a node was started.
    #[test]
    fn paths() {
        for (given, kept) in
            [("/a", "/a"), ("/a/b/", "/a/b"), ("//a///b c", "/a/b c"), ("/.a/..b/ä", "/.a/..b/ä")]
        {
            assert_eq!(normal_path(given).as_deref(), Ok(kept));
        }
        let long = format!("/{}", "x".repeat(255));
        for given in ["", "a", "./a", "/", "//", "/a/../b", "/a/.", "/a\nb", long.as_str()] {
            assert!(matches!(normal_path(given), Err(Rejection::DiskPath { .. })), "{given:?}");
        }
    }

    /// Guards against a disk inside another disk.
    #[test]
    fn overlaps() {
        for (one, other, want) in [
            ("/a", "/a", true),
            ("/a", "/a/b", true),
            ("/a/b", "/a", true),
            ("/a/b", "/a/c", false),
            ("/dev/sda", "/dev/sda1", false),
        ] {
            assert_eq!(overlap(one, other), want, "{one} {other}");
        }
    }
}

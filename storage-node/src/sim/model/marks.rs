//! Snapshots: what was there when they were marked, and whether they are there.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use lunette_proto::ids::{ExtentId, Namespace, Snapshot};
use lunette_proto::node::Failure;

use super::{BLOCK, Extent, Model, NamespaceModel, Seen, ZEROS, named};
use crate::store::disk::Disk;
use crate::store::{Missed, Store, View};

/// A snapshot.
#[derive(Clone, Debug)]
pub(super) struct Mark {
    /// Whether it is there: durably, and then what may have come after that.
    is_there: Vec<bool>,
    /// What it sees: the last values of all blocks when it was marked.
    extents: BTreeMap<u64, Extent>,
}

impl Mark {
    /// Of an extent that was dropped since, it sees nothing.
    pub(super) fn follow(&mut self, index: u64, life: u32) {
        if let Some(extent) = self.extents.get_mut(&index).filter(|extent| extent.life != life) {
            *extent = extent.unwritten(life);
        }
    }

    fn last(&self) -> bool {
        self.is_there.last().copied().unwrap_or(false)
    }

    pub(super) fn settle(&mut self) {
        self.is_there.drain(..self.is_there.len() - 1);
    }

    pub(super) fn adopt(&mut self, which: usize) {
        self.is_there = vec![self.is_there[which]];
    }
}

impl Model {
    /// Marks a snapshot of all that was asked for until now.
    pub(in crate::sim) fn mark(&mut self, id: Namespace, snapshot: Snapshot) {
        let namespace = self.namespace(id);
        let extents = namespace.extents.iter().map(|(index, extent)| (*index, extent.last_only())).collect();
        namespace.marks.insert(snapshot, Mark { is_there: vec![false, true], extents });
    }

    pub(in crate::sim) fn unmark(&mut self, id: Namespace, snapshot: Snapshot) {
        let mark = self.namespace(id).marks.get_mut(&snapshot);
        mark.into_iter().for_each(|mark| mark.is_there.push(false));
    }

    /// The snapshots of a namespace, oldest first.
    pub(in crate::sim) fn marks(&self, id: Namespace) -> Vec<Snapshot> {
        let marks = self.namespaces.get(&id).into_iter().flat_map(|namespace| &namespace.marks);
        marks.filter(|(_, mark)| mark.last()).map(|(snapshot, _)| *snapshot).collect()
    }

    /// Blocks that snapshots see and that are said to be corrupt, of a medium that was spoiled.
    pub(in crate::sim) fn spoiled_marks<D: Disk>(&self, store: &Store<D>) -> Result<usize, String> {
        let mut all = 0;
        for (id, namespace) in &self.namespaces {
            for index in indices(namespace) {
                let id = ExtentId { namespace: *id, index };
                let look = |life: Option<&Extent>| {
                    let mut bad = 0;
                    check_extent(store.view(), id, namespace, life, Some(&mut bad)).map(|()| bad)
                };
                all += match namespace.extents.get(&index) {
                    Some(extent) => extent.fitting(|life| look(Some(life)))?.2,
                    None => look(None)?,
                };
            }
        }
        Ok(all)
    }
}

/// Each snapshot may be there or not, as it is; of a medium that was not spoiled, and without a crash, the last of what may be there is
/// there.
pub(super) fn check<D: Disk>(
    view: &View<D>,
    id: Namespace,
    namespace: &NamespaceModel,
    mut seen: Option<&mut Seen>,
    is_spoiled: bool,
) -> Result<(), String> {
    let found = view.snapshots(id);
    if let Some(unknown) = found.iter().find(|snapshot| !namespace.marks.contains_key(snapshot)) {
        return Err(format!("{id}: nobody marked {unknown}"));
    }
    for (snapshot, mark) in &namespace.marks {
        let is_there = found.contains(snapshot);
        let which = if seen.is_some() || is_spoiled {
            mark.is_there.iter().position(|may_be| *may_be == is_there)
        } else {
            (mark.last() == is_there).then_some(0)
        };
        let Some(which) = which else {
            return Err(format!("{id}: {snapshot} is there: {is_there}, may be {:?}", mark.is_there));
        };
        seen.iter_mut().for_each(|seen| seen.push(u8::try_from(which).expect("few steps")));
        if !is_there {
            let read = view.read_at(ExtentId { namespace: id, index: 0 }, *snapshot, 0..1, true);
            if !matches!(read, Err(Missed::Failed(Failure::Deleted | Failure::Invalid))) {
                return Err(format!("{id}: {snapshot} is not there, and a read of it gives {read:?}"));
            }
        }
    }
    Ok(())
}

/// The indices of all extents of a namespace, those too that only snapshots have seen.
pub(super) fn indices(namespace: &NamespaceModel) -> BTreeSet<u64> {
    let seen = namespace.marks.values().flat_map(|mark| mark.extents.keys());
    seen.chain(namespace.extents.keys()).copied().collect()
}

/// Each snapshot that is there sees what it saw when it was marked, or, of a medium that was spoiled, blocks that are said to be
/// corrupt; nothing, if the extent was dropped since. `life` is the one that the extent has now.
pub(super) fn check_extent<D: Disk>(
    view: &View<D>,
    id: ExtentId,
    namespace: &NamespaceModel,
    life: Option<&Extent>,
    mut bad: Option<&mut usize>,
) -> Result<(), String> {
    let nothing = Extent::new();
    for snapshot in view.snapshots(id.namespace) {
        let Some(mark) = namespace.marks.get(&snapshot) else { continue };
        let known = mark.extents.get(&id.index);
        let is_seen = |seen: &&Extent| life.is_none_or(|life| life.life == seen.life);
        let expected = known.filter(is_seen).unwrap_or(&nothing);
        for run in known.into_iter().chain(life).flat_map(Extent::looked_at) {
            check_run(view, id, snapshot, run, expected, bad.as_deref_mut())?;
        }
    }
    Ok(())
}

fn check_run<D: Disk>(
    view: &View<D>,
    id: ExtentId,
    snapshot: Snapshot,
    run: Range<u32>,
    expected: &Extent,
    bad: Option<&mut usize>,
) -> Result<(), String> {
    let data = match view.read_at(id, snapshot, run.clone(), true) {
        Ok(data) => data,
        Err(why) => {
            let (Missed::Failed(Failure::Corrupt { .. }), Some(bad)) = (&why, bad) else {
                return Err(format!("{id}: read {run:?} at {snapshot}: {why:?}"));
            };
            if run.len() > 1 {
                let mut blocks = run.map(|index| index..index + 1);
                return blocks.try_for_each(|run| check_run(view, id, snapshot, run, expected, Some(bad)));
            }
            *bad += 1;
            return Ok(());
        }
    };
    for (index, data) in run.zip(data.chunks_exact(BLOCK)) {
        let value = expected.block(index).last();
        if value.data.as_deref().unwrap_or(&ZEROS) != data {
            let (found, version) = (named(data), value.version);
            return Err(format!("{id}: block {index} is {found} at {snapshot}, was {version} then"));
        }
    }
    Ok(())
}

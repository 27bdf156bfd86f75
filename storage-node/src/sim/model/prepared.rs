//! What is prepared in a slot: nothing, or one change; and what was committed when that came to be.

use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use lunette_proto::ids::{ExtentId, Version};
use lunette_proto::limits::{BLOCK_BYTES, UNIT_BYTES};
use lunette_proto::node::PreparedChange;

use super::{BLOCK, Extent, Model, Seen};
use crate::store::View;
use crate::store::descriptor::UNIT_BLOCKS;
use crate::store::disk::Disk;

/// A change that is prepared.
#[derive(Clone, PartialEq, Eq)]
pub(in crate::sim) struct Change {
    pub(in crate::sim) version: Version,
    pub(in crate::sim) prev: Version,
    /// Of the extent.
    pub(in crate::sim) blocks: Range<u32>,
    /// `None`: zeros.
    pub(in crate::sim) data: Option<Bytes>,
}

impl fmt::Debug for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { version, prev, blocks, data } = self;
        let what = if data.is_some() { "data" } else { "zeros" };
        write!(f, "{version} on {prev}, {what} in {blocks:?}")
    }
}

impl Change {
    fn is(&self, found: &PreparedChange) -> bool {
        let blocks = found.offset / BLOCK_BYTES..(found.offset + found.len) / BLOCK_BYTES;
        let hole = self.data.is_none();
        (self.version, self.prev, &self.blocks, hole) == (found.version, found.prev, &blocks, found.hole)
    }
}

#[derive(Clone, Debug, Default)]
struct Step {
    prepared: Option<Change>,
    /// What this step committed: there are the blocks of it, or there is an earlier step.
    committed: Option<Change>,
}

/// The durable step, then those that may have come after it.
#[derive(Clone, Debug)]
pub(super) struct Slot(Vec<Step>);

impl Slot {
    fn last(&self) -> Option<&Change> {
        self.0.last().and_then(|step| step.prepared.as_ref())
    }

    pub(super) fn settle(&mut self) {
        self.adopt(self.0.len() - 1);
    }

    pub(super) fn adopt(&mut self, which: usize) {
        let prepared = self.0.swap_remove(which).prepared;
        self.0 = vec![Step { prepared, committed: None }];
    }

    pub(super) fn last_only(&self) -> Self {
        let mut slot = self.clone();
        slot.settle();
        slot
    }

    /// Whether step `which` is what was found, and the blocks have what was committed up to it and nothing else.
    fn fits(&self, which: usize, found: Option<&(PreparedChange, Bytes)>, versions: &[Version]) -> bool {
        let is_found = match (&self.0[which].prepared, found) {
            (None, None) => true,
            (Some(change), Some((found, data))) => {
                change.is(found) && change.data.as_ref().is_none_or(|expected| expected == data)
            }
            _ => false,
        };
        let is_committed = |(step, change): (usize, &Change)| {
            let mut versions = change.blocks.clone().map(|block| versions[block as usize]);
            versions.all(|version| (version >= change.version) == (step <= which))
        };
        let steps = self.0.iter().enumerate();
        is_found && steps.filter_map(|(at, step)| Some((at, step.committed.as_ref()?))).all(is_committed)
    }
}

impl Model {
    /// What is prepared in a slot.
    pub(in crate::sim) fn prepared(&self, id: ExtentId, slot: u32) -> Option<&Change> {
        self.namespaces.get(&id.namespace)?.extents.get(&id.index)?.slots.get(&slot)?.last()
    }

    /// What is prepared in the first slot of an extent that has something prepared.
    pub(in crate::sim) fn first_prepared(&self, id: ExtentId, slots: Range<u32>) -> Option<&Change> {
        slots.into_iter().find_map(|slot| self.prepared(id, slot))
    }

    /// The newest version of a slot, prepared or of any of its blocks.
    pub(in crate::sim) fn present(&self, id: ExtentId, slot: u32) -> Version {
        let extent =
            self.namespaces.get(&id.namespace).and_then(|namespace| namespace.extents.get(&id.index));
        let Some(extent) = extent else { return Version::NONE };
        let blocks = slot * UNIT_BLOCKS..(slot + 1) * UNIT_BLOCKS;
        let newest = blocks.map(|block| extent.block(block).last().version).max().unwrap_or_default();
        self.prepared(id, slot).map_or(newest, |change| change.version)
    }

    /// A change is prepared; what was prepared there is committed.
    pub(in crate::sim) fn prepare(&mut self, id: ExtentId, change: Change) {
        self.step(id, change.blocks.start / UNIT_BLOCKS, Some(change), true);
    }

    /// What is prepared in a slot is committed or rolled back.
    pub(in crate::sim) fn resolve(&mut self, id: ExtentId, slot: u32, commit: bool) {
        self.step(id, slot, None, commit);
    }

    fn step(&mut self, id: ExtentId, slot: u32, prepared: Option<Change>, commit: bool) {
        let committed = self.prepared(id, slot).filter(|_| commit).cloned();
        if let Some(change) = &committed {
            self.change(id, change.version, change.blocks.clone(), false, |block| {
                let at = (block - change.blocks.start) as usize * BLOCK;
                change.data.as_ref().map(|data| data.slice(at..at + BLOCK))
            });
        }
        let extent = self.namespace(id.namespace).extents.entry(id.index).or_insert_with(Extent::new);
        let steps = &mut extent.slots.entry(slot).or_insert_with(|| Slot(vec![Step::default()])).0;
        steps.push(Step { prepared, committed });
    }
}

/// What is prepared is what may be, and goes with what the blocks are.
pub(super) fn check<D: Disk>(
    view: &View<D>,
    id: ExtentId,
    extent: &Extent,
    versions: &[Version],
    seen: &mut Seen,
) -> Result<(), String> {
    let found = view.read_prepared(id).map_err(|bad| format!("{id}: prepared: {bad:?}"))?;
    let mut known = 0;
    for (slot, steps) in &extent.slots {
        let found = found.iter().find(|(change, _)| change.offset / UNIT_BYTES == *slot);
        known += usize::from(found.is_some());
        let which = (0..steps.0.len()).find(|which| steps.fits(*which, found, versions));
        let Some(which) = which else {
            let found = found.map(|(change, _)| change);
            return Err(format!("{id}: slot {slot} has {found:?} prepared, may be {:?}", steps.0));
        };
        seen.push(u8::try_from(which).expect("few steps"));
    }
    if known == found.len() {
        Ok(())
    } else {
        Err(format!("{id}: nobody prepared all of {:?}", view.prepared(id)))
    }
}

/// The same of a medium that was spoiled: the data may be bad.
pub(super) fn check_spoiled<D: Disk>(view: &View<D>, id: ExtentId, extent: &Extent) -> Result<(), String> {
    let data = view.read_prepared(id).unwrap_or_default();
    for found in view.prepared(id) {
        let slot = extent.slots.get(&(found.offset / UNIT_BYTES));
        let mut steps = slot.iter().flat_map(|slot| &slot.0).filter_map(|step| step.prepared.as_ref());
        let data = data.iter().find(|(change, _)| *change == found).map(|(_, data)| data);
        let fits = |change: &Change| {
            change.is(&found)
                && change.data.as_ref().is_none_or(|expected| data.is_none_or(|data| data == expected))
        };
        if !steps.any(fits) {
            return Err(format!("{id}: has {found:?} prepared, may be {slot:?}"));
        }
    }
    Ok(())
}

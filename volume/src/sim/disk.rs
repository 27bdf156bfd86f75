//! A disk as the node protocol describes it, written from that description alone.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Bytes, BytesMut};
use lunette_proto::ids::{DiskId, Epoch, ExtentId, Generation, Namespace, Version};
use lunette_proto::limits::{
    BLOCK_BYTES, EXTENT_BLOCKS, GRANT_KEPT_MS_MAX, NODE_DAMAGED_RUNS_MAX, UNIT_BYTES,
};
use lunette_proto::node::{
    BlockVersion, Change, DamagedRun, DirtyExtent, Durability, Failure, Reply, ReplyBody, Request,
    RequestBody, Sealed,
};

use super::rng::Rng;

const UNIT_BLOCKS: u32 = UNIT_BYTES / BLOCK_BYTES;
/// Extents in one answer; few, so that owners ask on.
const LIST_MAX: usize = 2;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) version: Version,
    /// `None` is a hole.
    pub(crate) content: Option<Bytes>,
}

#[derive(Debug)]
pub(crate) struct ModelDisk {
    id: DiskId,
    sealed: BTreeMap<Namespace, (Generation, Epoch)>,
    deleted: BTreeSet<Namespace>,
    extents: BTreeMap<ExtentId, Vec<Block>>,
    /// What is on stable media of the blocks whose newest content is not.
    stable: BTreeMap<(ExtentId, u32), Block>,
    dirty: BTreeMap<ExtentId, Version>,
    watermarks: BTreeMap<Namespace, Version>,
    /// Those that were complete.
    complete: BTreeMap<Namespace, Version>,
    /// Extents of a namespace that may await the next watermark.
    pub(crate) dirty_max: usize,
    pub(crate) corrupt: BTreeSet<(ExtentId, u32)>,
    /// Those of the corrupt blocks of which not even the version is known any more.
    pub(crate) lost: BTreeSet<(ExtentId, u32)>,
    /// No room to remember one more seal.
    pub(crate) refuses_seals: bool,
    /// Space units with content that it has room for.
    pub(crate) capacity: usize,
    /// What time it is, by its own clock.
    pub(crate) now_ms: u64,
    /// By namespace and generation: the highest number, and until when.
    grants: BTreeMap<(Namespace, Generation), (u64, u64)>,
    /// Until when a process before may have granted something, by namespace.
    forgotten: BTreeMap<Namespace, u64>,
    /// The longest that anything is granted for, by its own clock.
    pub(crate) granted_ms_max: u64,
    /// A bug: older generations are served.
    pub(crate) forgets_generation: bool,
    /// A bug: seals are answered whatever was granted.
    pub(crate) answers_seals_at_once: bool,
    /// A bug: it takes it that a process before has granted nothing.
    pub(crate) forgets_grants: bool,
}

impl ModelDisk {
    pub(crate) fn new(id: DiskId) -> Self {
        Self {
            id,
            sealed: BTreeMap::new(),
            deleted: BTreeSet::new(),
            extents: BTreeMap::new(),
            stable: BTreeMap::new(),
            dirty: BTreeMap::new(),
            watermarks: BTreeMap::new(),
            complete: BTreeMap::new(),
            dirty_max: usize::MAX,
            corrupt: BTreeSet::new(),
            lost: BTreeSet::new(),
            refuses_seals: false,
            capacity: usize::MAX,
            now_ms: 0,
            grants: BTreeMap::new(),
            forgotten: BTreeMap::new(),
            granted_ms_max: GRANT_KEPT_MS_MAX.into(),
            forgets_generation: false,
            answers_seals_at_once: false,
            forgets_grants: false,
        }
    }

    pub(crate) fn call(&mut self, request: &Request) -> Reply {
        assert_eq!(request.disk, self.id, "routed to another disk");
        let epoch = request.epoch;
        match &request.body {
            RequestBody::Identify { .. } => Ok(ReplyBody::Done),
            RequestBody::Prepare { .. }
            | RequestBody::Commit { .. }
            | RequestBody::Rollback { .. }
            | RequestBody::Prepared { .. } => {
                unreachable!("the owner of a replicated volume prepares nothing")
            }
            RequestBody::Space => Ok(ReplyBody::Space { capacity_bytes: 0, used_bytes: 0 }),
            RequestBody::Seal { namespace, generation } => {
                let sealed = self.seal(*namespace, *generation, epoch)?;
                match self.granted_until(*namespace, *generation).saturating_sub(self.now_ms) {
                    0 => Ok(sealed),
                    left => Err(Failure::Granted { left_ms: left as u32 }),
                }
            }
            RequestBody::Grant { namespace, generation, number, for_ms } => {
                self.check(*namespace, *generation, epoch)?;
                let (last, until) = self.grants.entry((*namespace, *generation)).or_default();
                if *for_ms > 0 {
                    let kept_ms = u64::from(*for_ms) * 11 / 10 + 1;
                    (*last, *until) = ((*last).max(*number), (*until).max(self.now_ms + kept_ms));
                } else if number > last {
                    *until = 0;
                }
                Ok(ReplyBody::Done)
            }
            RequestBody::Change { extent, version, offset, change, durability } => {
                self.check(extent.namespace, version.generation, epoch)?;
                if version.seq == 0 {
                    return Err(Failure::Invalid);
                }
                self.apply(*extent, *version, *offset, change, *durability, false)
            }
            RequestBody::Put { extent, generation, version, offset, change } => {
                self.check(extent.namespace, *generation, epoch)?;
                if version.generation > *generation || version.generation == Generation(0) {
                    return Err(Failure::Invalid);
                }
                self.apply(*extent, *version, *offset, change, Durability::Stable, true)
            }
            RequestBody::Read { extent, generation, offset, len } => {
                self.check(extent.namespace, *generation, epoch)?;
                self.read(*extent, *offset, *len)
            }
            RequestBody::Versions { extent, generation } => {
                self.check(extent.namespace, *generation, epoch)?;
                Ok(ReplyBody::Versions(self.versions(*extent)))
            }
            RequestBody::Flush { namespace, generation } => {
                self.check(*namespace, *generation, epoch)?;
                self.stable.retain(|(extent, _), _| extent.namespace != *namespace);
                Ok(ReplyBody::Done)
            }
            RequestBody::Watermark { namespace, generation, seq, complete } => {
                self.check(*namespace, *generation, epoch)?;
                let mark = Version { generation: *generation, seq: *seq };
                let last = self.watermarks.entry(*namespace).or_default();
                *last = mark.max(*last);
                if *complete {
                    let last = self.complete.entry(*namespace).or_default();
                    *last = mark.max(*last);
                }
                self.dirty.retain(|extent, newest| extent.namespace != *namespace || *newest > mark);
                let runs = self.damaged(*namespace);
                Ok(if runs.is_empty() { ReplyBody::Done } else { ReplyBody::Damaged(runs) })
            }
            RequestBody::Extents { namespace, generation, from, newer_than } => {
                self.check(*namespace, *generation, epoch)?;
                let newest =
                    |list: &Vec<Block>| list.iter().map(|block| block.version).max().unwrap_or_default();
                let mut list = self
                    .extents
                    .iter()
                    .filter(|(extent, _)| extent.namespace == *namespace && extent.index >= *from)
                    .map(|(extent, list)| DirtyExtent { index: extent.index, newest: newest(list) })
                    .filter(|extent| extent.newest > *newer_than)
                    .collect::<Vec<_>>();
                let next = list.get(LIST_MAX).map(|extent| extent.index);
                list.truncate(LIST_MAX);
                Ok(ReplyBody::Extents { list, next })
            }
            RequestBody::Drop { namespace, generation, extents } => {
                self.check(*namespace, *generation, epoch)?;
                let stays = |id: &ExtentId| id.namespace != *namespace || !extents.contains(&id.index);
                self.extents.retain(|extent, _| stays(extent));
                self.stable.retain(|(extent, _), _| stays(extent));
                self.dirty.retain(|extent, _| stays(extent));
                self.corrupt.retain(|(extent, _)| stays(extent));
                self.lost.retain(|(extent, _)| stays(extent));
                Ok(ReplyBody::Done)
            }
            RequestBody::Delete { namespace, generation } => {
                if let Some((sealed, _)) = self.sealed.get(namespace)
                    && generation < sealed
                {
                    return Err(Failure::Generation { sealed: *sealed, got: *generation });
                }
                self.deleted.insert(*namespace);
                self.extents.retain(|extent, _| extent.namespace != *namespace);
                self.stable.retain(|(extent, _), _| extent.namespace != *namespace);
                self.dirty.retain(|extent, _| extent.namespace != *namespace);
                self.corrupt.retain(|(extent, _)| extent.namespace != *namespace);
                self.lost.retain(|(extent, _)| extent.namespace != *namespace);
                Ok(ReplyBody::Done)
            }
        }
    }

    /// Until when owners before that one may answer reads.
    fn granted_until(&self, namespace: Namespace, generation: Generation) -> u64 {
        if self.answers_seals_at_once {
            return 0;
        }
        let older = self.grants.range((namespace, Generation(0))..(namespace, generation));
        let forgotten = self.forgotten.get(&namespace).copied();
        older.map(|(_, (_, until))| *until).chain(forgotten).max().unwrap_or(0)
    }

    /// Another process serves the disk from now on.
    pub(crate) fn restarted(&mut self) {
        self.grants.clear();
        if !self.forgets_grants {
            let until = self.now_ms + self.granted_ms_max;
            self.forgotten.extend(self.sealed.keys().map(|namespace| (*namespace, until)));
        }
    }

    /// What its scrubber has found, in no more runs than an answer bears.
    fn damaged(&self, namespace: Namespace) -> Vec<DamagedRun> {
        let mut runs: Vec<DamagedRun> = Vec::new();
        for (extent, block) in self.corrupt.iter().filter(|(extent, _)| extent.namespace == namespace) {
            match runs.last_mut() {
                Some(run) if (run.index, run.first + run.blocks) == (extent.index, *block) => run.blocks += 1,
                _ => runs.push(DamagedRun { index: extent.index, first: *block, blocks: 1 }),
            }
        }
        runs.truncate(NODE_DAMAGED_RUNS_MAX);
        runs
    }

    fn seal(&mut self, namespace: Namespace, generation: Generation, epoch: Epoch) -> Reply {
        if self.deleted.contains(&namespace) {
            return Err(Failure::Deleted);
        }
        if self.refuses_seals {
            return Err(Failure::NoSpace);
        }
        let entry = self.sealed.entry(namespace).or_default();
        if generation < entry.0 {
            return Err(Failure::Generation { sealed: entry.0, got: generation });
        }
        *entry = (generation, entry.1.max(epoch));
        let dirty = self
            .dirty
            .iter()
            .filter(|(extent, _)| extent.namespace == namespace)
            .map(|(extent, newest)| DirtyExtent { index: extent.index, newest: *newest })
            .collect();
        let complete = self.complete.get(&namespace).copied().unwrap_or_default();
        Ok(ReplyBody::Sealed(Sealed { dirty, complete }))
    }

    fn check(&self, namespace: Namespace, got: Generation, epoch: Epoch) -> Result<(), Failure> {
        if self.deleted.contains(&namespace) {
            return Err(Failure::Deleted);
        }
        let (sealed, at) = self.sealed.get(&namespace).copied().unwrap_or_default();
        if got != sealed && !(self.forgets_generation && got < sealed) {
            return Err(Failure::Generation { sealed, got });
        }
        if epoch < at && !self.forgets_generation {
            return Err(Failure::Epoch { sealed: at, got: epoch });
        }
        Ok(())
    }

    fn apply(
        &mut self,
        extent: ExtentId,
        version: Version,
        offset: u32,
        change: &Change,
        durability: Durability,
        repair: bool,
    ) -> Reply {
        let len = u32::try_from(change.len()).map_err(|_| Failure::Invalid)?;
        let blocks = range(offset, len)?;
        let allocated = if self.capacity < usize::MAX { self.allocated() } else { 0 };
        let list =
            self.extents.entry(extent).or_insert_with(|| vec![Block::default(); EXTENT_BLOCKS as usize]);
        let newer: Vec<u32> = blocks
            .clone()
            .filter(|block| {
                let has = list[*block as usize].version;
                has < version || repair && (has == version || self.lost.contains(&(extent, *block)))
            })
            .collect();
        if newer.is_empty() {
            return Ok(ReplyBody::Done);
        }
        let dirty = self.dirty.keys().filter(|it| it.namespace == extent.namespace).count();
        if !self.dirty.contains_key(&extent) && dirty >= self.dirty_max {
            return Err(Failure::Busy);
        }
        if let Change::Data(_) = change {
            let holds = |unit: &u32| {
                let first = (unit * UNIT_BLOCKS) as usize;
                list[first..first + UNIT_BLOCKS as usize].iter().any(|block| block.content.is_some())
            };
            let units: BTreeSet<u32> = newer.iter().map(|block| block / UNIT_BLOCKS).collect();
            let more = units.iter().filter(|unit| !holds(unit)).count();
            if more > 0 && allocated + more > self.capacity {
                return Err(Failure::NoSpace);
            }
        }
        for block in newer {
            let old = &mut list[block as usize];
            let content = match change {
                Change::Data(data) => {
                    let at = ((block - blocks.start) * BLOCK_BYTES) as usize;
                    Some(data.slice(at..at + BLOCK_BYTES as usize))
                }
                Change::Zeros { .. } => None,
            };
            let old = std::mem::replace(old, Block { version, content });
            match durability {
                Durability::Stable => {
                    self.stable.remove(&(extent, block));
                }
                Durability::Volatile => {
                    self.stable.entry((extent, block)).or_insert(old);
                }
            }
            self.corrupt.remove(&(extent, block));
            self.lost.remove(&(extent, block));
        }
        if version > self.watermarks.get(&extent.namespace).copied().unwrap_or_default() {
            let newest = list.iter().map(|block| block.version).max().unwrap_or_default();
            self.dirty.insert(extent, newest);
        }
        Ok(ReplyBody::Done)
    }

    fn read(&self, extent: ExtentId, offset: u32, len: u32) -> Reply {
        let blocks = range(offset, len)?;
        if let Some(bad) = blocks.clone().find(|block| self.corrupt.contains(&(extent, *block))) {
            return Err(Failure::Corrupt { offset: bad * BLOCK_BYTES });
        }
        let mut data = BytesMut::with_capacity(len as usize);
        for block in blocks {
            match self.block(extent, block).content {
                Some(content) => data.extend_from_slice(&content),
                None => data.resize(data.len() + BLOCK_BYTES as usize, 0),
            }
        }
        Ok(ReplyBody::Data(data.freeze()))
    }

    fn versions(&self, extent: ExtentId) -> Vec<BlockVersion> {
        let mut runs: Vec<BlockVersion> = Vec::new();
        for (index, block) in (0..).zip(self.extents.get(&extent).into_iter().flatten()) {
            let lost = self.lost.contains(&(extent, index));
            let version = if lost { Version::NONE } else { block.version };
            let hole = block.content.is_none() && !lost;
            match runs.last_mut() {
                Some(run) if run.version == version && run.hole == hole => run.blocks += 1,
                _ => runs.push(BlockVersion { blocks: 1, version, hole }),
            }
        }
        runs
    }

    pub(crate) fn block(&self, extent: ExtentId, block: u32) -> Block {
        self.extents.get(&extent).map(|list| list[block as usize].clone()).unwrap_or_default()
    }

    /// The power fails: of what was not flushed, any part may be gone.
    pub(crate) fn lose_power(&mut self, rng: &mut Rng) {
        for ((extent, block), old) in std::mem::take(&mut self.stable) {
            if rng.chance(600) {
                self.extents.entry(extent).or_default()[block as usize] = old;
            }
        }
    }

    /// The power fails, and all that was not flushed is gone.
    pub(crate) fn lose_memory(&mut self) {
        for ((extent, block), old) in std::mem::take(&mut self.stable) {
            self.extents.entry(extent).or_default()[block as usize] = old;
        }
    }

    /// Space units with content.
    pub(crate) fn allocated(&self) -> usize {
        let units = self.extents.values().flat_map(|list| list.chunks(UNIT_BLOCKS as usize));
        units.filter(|unit| unit.iter().any(|block| block.content.is_some())).count()
    }

    pub(crate) fn dirty_count(&self) -> usize {
        self.dirty.len()
    }

    /// Extents that it has something of.
    pub(crate) fn extents(&self) -> impl Iterator<Item = ExtentId> + '_ {
        let has = |list: &Vec<Block>| list.iter().any(|block| block.version > Version::NONE);
        self.extents.iter().filter(move |(_, list)| has(list)).map(|(extent, _)| *extent)
    }

    pub(crate) fn is_blank(&self) -> bool {
        self.extents.is_empty()
    }
}

fn range(offset: u32, len: u32) -> Result<std::ops::Range<u32>, Failure> {
    let valid = len > 0
        && offset.is_multiple_of(BLOCK_BYTES)
        && len.is_multiple_of(BLOCK_BYTES)
        && u64::from(offset) + u64::from(len) <= u64::from(EXTENT_BLOCKS * BLOCK_BYTES);
    if valid { Ok(offset / BLOCK_BYTES..(offset + len) / BLOCK_BYTES) } else { Err(Failure::Invalid) }
}

//! What a disk may hold after a crash, given what was asked of it and what it answered.
//!
//! Each block has its durable value, and then those that were asked for after it and need not be there. A crash
//! leaves one of them, for each block by itself; what is once seen after a crash stays.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use lunette_proto::ids::{Epoch, ExtentId, Generation, Namespace, Version};
use lunette_proto::limits::{BLOCK_BYTES, EXTENT_BLOCKS};
use lunette_proto::node::{DirtyExtent, Failure, ReplyBody};

use crate::engine::Operation;
use crate::store::disk::Disk;
use crate::store::{Missed, Prepared, Store, View};

const BLOCK: usize = BLOCK_BYTES as usize;
static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// A value of a block: its version, and its content if that is not zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Value {
    pub(super) version: Version,
    pub(super) data: Option<Bytes>,
}

/// The durable value, then those that may have come after it, oldest first.
#[derive(Clone, Debug)]
pub(super) struct Block(Vec<Value>);

impl Block {
    const NEVER: Value = Value { version: Version::NONE, data: None };

    pub(super) fn last(&self) -> &Value {
        self.0.last().expect("there is always one")
    }

    /// Which of them it is.
    fn find(&self, version: Version, data: &[u8]) -> Option<usize> {
        self.0
            .iter()
            .position(|value| value.version == version && value.data.as_deref().unwrap_or(&ZEROS) == data)
    }

    fn settle(&mut self) {
        self.0.drain(..self.0.len() - 1);
    }
}

/// An extent: blocks that were changed by themselves, and all others.
#[derive(Clone, Debug)]
pub(super) struct Extent {
    pub(super) blocks: BTreeMap<u32, Block>,
    rest: Block,
}

impl Extent {
    fn new() -> Self {
        Self { blocks: BTreeMap::new(), rest: Block(vec![Block::NEVER]) }
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Block> {
        self.blocks.values_mut().chain([&mut self.rest])
    }

    pub(super) fn block(&self, index: u32) -> &Block {
        self.blocks.get(&index).unwrap_or(&self.rest)
    }

    /// Blocks to look at: all that were changed by themselves, and a few others.
    fn looked_at(&self) -> Vec<Range<u32>> {
        let mut runs: Vec<Range<u32>> = Vec::new();
        let others = [0, 31, 1000, EXTENT_BLOCKS - 1].into_iter().filter(|b| !self.blocks.contains_key(b));
        let mut all: Vec<u32> = self.blocks.keys().copied().chain(others).collect();
        all.sort_unstable();
        for block in all {
            match runs.last_mut() {
                Some(run) if run.end == block => run.end += 1,
                _ => runs.push(block..block + 1),
            }
        }
        runs
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deleted {
    No,
    Maybe,
    Yes,
}

/// A namespace.
#[derive(Clone, Debug)]
pub(super) struct NamespaceModel {
    /// The durable seal, then those that may be.
    seals: Vec<(Generation, Epoch)>,
    deleted: Deleted,
    /// The highest watermark that was told.
    mark: Version,
    pub(super) extents: BTreeMap<u64, Extent>,
}

/// What was seen after a crash: for each namespace and block which of its values.
pub(super) type Seen = Vec<u8>;

/// A disk.
#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    pub(super) namespaces: BTreeMap<Namespace, NamespaceModel>,
}

impl Model {
    /// The seal that holds.
    pub(super) fn sealed(&self, id: Namespace) -> (Generation, Epoch) {
        let seals = self.namespaces.get(&id).map(|namespace| &namespace.seals);
        seals.and_then(|seals| seals.last().copied()).unwrap_or_default()
    }

    pub(super) fn is_deleted(&self, id: Namespace) -> bool {
        self.namespaces.get(&id).is_some_and(|namespace| namespace.deleted != Deleted::No)
    }

    pub(super) fn is_written(&self, id: ExtentId, block: u32) -> bool {
        self.namespaces[&id.namespace].extents[&id.index].block(block).last().version != Version::NONE
    }

    fn namespace(&mut self, id: Namespace) -> &mut NamespaceModel {
        self.namespaces.entry(id).or_insert_with(|| NamespaceModel {
            seals: vec![Default::default()],
            deleted: Deleted::No,
            mark: Version::NONE,
            extents: BTreeMap::new(),
        })
    }

    pub(super) fn seal(&mut self, id: Namespace, generation: Generation, epoch: Epoch) {
        self.namespace(id).seals.push((generation, epoch));
    }

    pub(super) fn watermark(&mut self, id: Namespace, mark: Version) {
        let namespace = self.namespace(id);
        namespace.mark = namespace.mark.max(mark);
    }

    pub(super) fn delete(&mut self, id: Namespace) {
        self.namespace(id).deleted = Deleted::Maybe;
    }

    /// A change: `data` gives the content of each block, `None` zeros.
    pub(super) fn change(
        &mut self,
        id: ExtentId,
        version: Version,
        blocks: Range<u32>,
        repair: bool,
        data: impl Fn(u32) -> Option<Bytes>,
    ) {
        let extent = self.namespace(id.namespace).extents.entry(id.index).or_insert_with(Extent::new);
        let applies = |block: &Block| {
            let newest = block.last().version;
            version > newest || repair && version == newest
        };
        let is_whole = blocks == (0..EXTENT_BLOCKS);
        if is_whole {
            assert!(data(0).is_none(), "whole extents are only discarded");
            let value = Value { version, data: None };
            extent.all().filter(|block| applies(block)).for_each(|block| block.0.push(value.clone()));
            return;
        }
        for index in blocks {
            let rest = &extent.rest;
            let block = extent.blocks.entry(index).or_insert_with(|| rest.clone());
            if applies(block) {
                block.0.push(Value { version, data: data(index) });
            }
        }
    }

    /// Everything until now is durable.
    pub(super) fn settle(&mut self) {
        for namespace in self.namespaces.values_mut() {
            namespace.seals.drain(..namespace.seals.len() - 1);
            if namespace.deleted == Deleted::Maybe {
                namespace.deleted = Deleted::Yes;
            }
            namespace.extents.values_mut().flat_map(Extent::all).for_each(Block::settle);
        }
    }

    /// What was seen after a crash is so from now on.
    pub(super) fn adopt(&mut self, seen: &Seen) {
        let mut seen = seen.iter().map(|index| usize::from(*index));
        let mut next = || seen.next().expect("as many as were seen");
        for namespace in self.namespaces.values_mut() {
            namespace.deleted = if next() == 1 { Deleted::Yes } else { Deleted::No };
            if namespace.deleted == Deleted::Yes {
                namespace.extents.clear();
                continue;
            }
            namespace.seals = vec![namespace.seals[next()]];
            for extent in namespace.extents.values_mut() {
                for block in extent.all() {
                    block.0 = vec![block.0.swap_remove(next())];
                }
            }
        }
    }

    /// Looks at everything, after a crash; what it is, or what it may not be.
    pub(super) fn check<D: Disk>(&self, store: &mut Store<D>) -> Result<Seen, String> {
        self.look(store, None)
    }

    /// The same of a medium that was spoiled: what may not be, or blocks that are said to be corrupt.
    pub(super) fn check_spoiled<D: Disk>(
        &self,
        store: &mut Store<D>,
    ) -> Result<Vec<(ExtentId, u32)>, String> {
        let mut bad = Vec::new();
        self.look(store, Some(&mut bad))?;
        Ok(bad)
    }

    fn look<D: Disk>(
        &self,
        store: &mut Store<D>,
        mut bad: Option<&mut Vec<(ExtentId, u32)>>,
    ) -> Result<Seen, String> {
        let mut seen = Seen::new();
        let view = store.view().clone();
        for (id, namespace) in &self.namespaces {
            let newest = Generation(u64::MAX);
            let (sealed, epoch) = match view.check(*id, newest, Epoch(u64::MAX)) {
                Err(Failure::Deleted) if namespace.deleted != Deleted::No => {
                    seen.push(1);
                    continue;
                }
                Err(Failure::Generation { sealed, .. }) => {
                    let epoch = match view.check(*id, sealed, Epoch(0)) {
                        Err(Failure::Epoch { sealed, .. }) => sealed,
                        _ => Epoch(0),
                    };
                    (sealed, epoch)
                }
                other => return Err(format!("{id}: {other:?} of a namespace that is not deleted")),
            };
            if namespace.deleted == Deleted::Yes {
                return Err(format!("{id}: it was deleted and is there"));
            }
            seen.push(0);
            let Some(at) = namespace.seals.iter().position(|seal| *seal == (sealed, epoch)) else {
                let legal = &namespace.seals;
                return Err(format!("{id}: sealed to {sealed} under {epoch}, may be {legal:?}"));
            };
            seen.push(u8::try_from(at).expect("few seals"));
            let mut newest = BTreeMap::new();
            for (index, extent) in &namespace.extents {
                let id = ExtentId { namespace: *id, index: *index };
                let found = match bad.as_deref_mut() {
                    None => check_extent(&view, id, extent, &mut seen)?,
                    Some(bad) => check_spoiled_extent(&view, id, extent, bad)?,
                };
                newest.insert(*index, found);
            }
            if sealed != Generation(0) {
                check_dirty(store, *id, (sealed, epoch), namespace.mark, &newest)?;
            }
        }
        Ok(seen)
    }

    /// Looks at what readers see without a crash: the last values.
    pub(super) fn check_live<D: Disk>(&self, view: &View<D>) -> Result<(), String> {
        for (namespace, state) in &self.namespaces {
            if state.deleted != Deleted::No {
                continue;
            }
            for (index, extent) in &state.extents {
                let id = ExtentId { namespace: *namespace, index: *index };
                let last = |block: &Block| Block(vec![block.last().clone()]);
                let blocks = extent.blocks.iter().map(|(index, block)| (*index, last(block))).collect();
                let extent = Extent { blocks, rest: last(&extent.rest) };
                check_extent(view, id, &extent, &mut Seen::new()).map_err(|what| format!("live: {what}"))?;
            }
        }
        Ok(())
    }
}

/// Every block is one of what it may be; the newest version of any.
fn check_extent<D: Disk>(
    view: &View<D>,
    id: ExtentId,
    extent: &Extent,
    seen: &mut Seen,
) -> Result<Version, String> {
    let missed = |what: &str, missed: Missed| match missed {
        Missed::Wait => format!("{id}: {what} says wait"),
        Missed::Failed(failure) => format!("{id}: {what}: {failure}"),
    };
    let mut versions = vec![Version::NONE; EXTENT_BLOCKS as usize];
    let mut at = 0;
    for run in view.versions(id, true).map_err(|why| missed("versions", why))? {
        let end = at + run.blocks as usize;
        if run.blocks == 0 || end > versions.len() {
            return Err(format!("{id}: versions of {end} blocks"));
        }
        versions[at..end].fill(run.version);
        at = end;
    }
    let mut newest = Version::NONE;
    let mut found = BTreeMap::new();
    let mut rest = None;
    for run in extent.looked_at() {
        let data = view.read(id, run.clone(), true).map_err(|why| missed(&format!("read {run:?}"), why))?;
        if data.len() != run.len() * BLOCK {
            return Err(format!("{id}: read of {run:?} gives {} bytes", data.len()));
        }
        for (index, data) in run.zip(data.chunks_exact(BLOCK)) {
            let version = versions[index as usize];
            newest = newest.max(version);
            let block = extent.block(index);
            let Some(which) = block.find(version, data) else {
                return Err(format!(
                    "{id}: block {index} is {version} {}, may be {}",
                    named(data),
                    legal(block)
                ));
            };
            let which = u8::try_from(which).expect("few values");
            if extent.blocks.contains_key(&index) {
                found.insert(index, which);
            } else if *rest.get_or_insert(which) != which {
                return Err(format!("{id}: a discard of the extent is in some blocks and not in others"));
            }
        }
    }
    seen.extend(found.into_values());
    seen.push(rest.unwrap_or(0));
    Ok(newest)
}

/// Every block is one of what it may be, or is said to be corrupt; the newest version of any.
fn check_spoiled_extent<D: Disk>(
    view: &View<D>,
    id: ExtentId,
    extent: &Extent,
    bad: &mut Vec<(ExtentId, u32)>,
) -> Result<Version, String> {
    let runs = match view.versions(id, true) {
        Ok(runs) => runs,
        // The medium cannot read it now: nothing is known.
        Err(Missed::Failed(Failure::DiskFailed)) => {
            bad.push((id, 0));
            return Ok(Version::NONE);
        }
        Err(other) => return Err(format!("{id}: versions: {other:?}")),
    };
    let versions: Vec<Version> =
        runs.iter().flat_map(|run| std::iter::repeat_n(run.version, run.blocks as usize)).collect();
    let mut newest = Version::NONE;
    for index in extent.looked_at().into_iter().flatten() {
        let version = versions.get(index as usize).copied().unwrap_or(Version::NONE);
        match view.read(id, index..index + 1, true) {
            Ok(data) => {
                let block = extent.block(index);
                if block.find(version, &data).is_none() {
                    let legal = legal(block);
                    return Err(format!("{id}: block {index} is {version} {}, may be {legal}", named(&data)));
                }
                newest = newest.max(version);
            }
            Err(Missed::Failed(Failure::Corrupt { offset })) if offset / BLOCK_BYTES == index => {
                bad.push((id, index));
            }
            Err(other) => return Err(format!("{id}: block {index}: {other:?}")),
        }
    }
    Ok(newest)
}

/// What a seal answers names every extent that has something beyond the watermark.
fn check_dirty<D: Disk>(
    store: &mut Store<D>,
    namespace: Namespace,
    (generation, epoch): (Generation, Epoch),
    mark: Version,
    newest: &BTreeMap<u64, Version>,
) -> Result<(), String> {
    let prepared = store.prepare(epoch, &Operation::Seal { namespace, generation });
    let reply = match prepared {
        Ok(Prepared::Answer { reply, .. }) => reply,
        Ok(Prepared::Blocked) => return Ok(()),
        Err(fatal) => return Err(format!("{namespace}: a seal: {}", fatal.0)),
    };
    let Ok(ReplyBody::Sealed(sealed)) = reply else {
        return Err(format!("{namespace}: a seal answers {reply:?}"));
    };
    for (index, newest) in newest.iter().filter(|(_, newest)| **newest > mark) {
        let named = |dirty: &DirtyExtent| dirty.index == *index && dirty.newest >= *newest;
        if !sealed.dirty.iter().any(named) {
            let dirty = &sealed.dirty;
            return Err(format!(
                "{namespace}: extent {index} has {newest} beyond {mark}, and dirty is {dirty:?}"
            ));
        }
    }
    Ok(())
}

fn legal(block: &Block) -> String {
    let name =
        |value: &Value| format!("{} {}", value.version, named(value.data.as_deref().unwrap_or(&ZEROS)));
    block.0.iter().map(name).collect::<Vec<_>>().join(" or ")
}

/// The content of the block of a version, different in each sector.
pub(super) fn content(id: ExtentId, block: u32, version: Version) -> Bytes {
    let mut data = vec![0; BLOCK];
    for (sector, bytes) in data.chunks_exact_mut(512).enumerate() {
        let stamp = [
            b'D'.into(),
            id.namespace.0,
            id.index,
            u64::from(block),
            version.generation.0,
            version.seq,
            sector as u64,
            0x5A5A_5A5A,
        ];
        for words in bytes.chunks_exact_mut(64) {
            for (word, value) in words.chunks_exact_mut(8).zip(stamp) {
                word.copy_from_slice(&value.to_le_bytes());
            }
        }
    }
    data.into()
}

/// What the content is, in a few words.
fn named(data: &[u8]) -> String {
    if data == ZEROS {
        return "zeros".to_owned();
    }
    let sector = |sector: &[u8]| {
        let word = |at: usize| u64::from_le_bytes(sector[at * 8..at * 8 + 8].try_into().unwrap());
        if word(0) == u64::from(b'D') && word(7) == 0x5A5A_5A5A {
            format!("{:x}/{}#{} {}.{}", word(1), word(2), word(3), word(4), word(5))
        } else if sector.iter().all(|byte| *byte == 0) {
            "zeros".to_owned()
        } else {
            "garbage".to_owned()
        }
    };
    let mut names: Vec<String> = data.chunks_exact(512).map(sector).collect();
    names.dedup();
    format!("[{}]", names.join("|"))
}

mod tests;

//! What a disk may hold after a crash, given what was asked of it and what it answered.
//!
//! Each block has its durable value, and then those that were asked for after it and need not be there. A crash
//! leaves one of them, and of each change all blocks or none; what is once seen after a crash stays. What is prepared in a
//! slot is such a list too ([`prepared`]), and whether a snapshot is there ([`marks`]), or an extent was dropped ([`lives`]). [`look`]
//! compares a store with it.

mod lives;
mod look;
mod marks;
pub(super) mod prepared;

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use lunette_proto::ids::{Epoch, ExtentId, Generation, Namespace, Snapshot, Version};
use lunette_proto::limits::{BLOCK_BYTES, EXTENT_BLOCKS};

use prepared::Slot;

const BLOCK: usize = BLOCK_BYTES as usize;
static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// A value of a block: its version, and its content if that is not zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Value {
    pub(super) version: Version,
    pub(super) data: Option<Bytes>,
    /// Which change of the model it came with.
    change: u32,
}

/// The durable value, then those that may have come after it, oldest first.
#[derive(Clone, Debug)]
pub(super) struct Block(Vec<Value>);

impl Block {
    const NEVER: Value = Value { version: Version::NONE, data: None, change: 0 };

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
    /// What is prepared, of slots that had something prepared.
    slots: BTreeMap<u32, Slot>,
    /// How often it was dropped.
    life: u32,
    /// What it may still be, if that is not durable.
    earlier: Vec<Extent>,
}

impl Extent {
    fn new() -> Self {
        let rest = Block(vec![Block::NEVER]);
        Self { blocks: BTreeMap::new(), rest, slots: BTreeMap::new(), life: 0, earlier: Vec::new() }
    }

    /// The last values only.
    fn last_only(&self) -> Self {
        let last = |block: &Block| Block(vec![block.last().clone()]);
        let blocks = self.blocks.iter().map(|(index, block)| (*index, last(block))).collect();
        let slots = self.slots.iter().map(|(slot, steps)| (*slot, steps.last_only())).collect();
        Self { blocks, rest: last(&self.rest), slots, life: self.life, earlier: Vec::new() }
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
    marks: BTreeMap<Snapshot, marks::Mark>,
}

/// What was seen after a crash: for each namespace and block which of its values.
pub(super) type Seen = Vec<u8>;

/// A disk.
#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    pub(super) namespaces: BTreeMap<Namespace, NamespaceModel>,
    /// How many changes there were.
    changes: u32,
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
            marks: BTreeMap::new(),
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
        self.changes += 1;
        let change = self.changes;
        let extent = self.namespace(id.namespace).extents.entry(id.index).or_insert_with(Extent::new);
        let applies = |block: &Block| {
            let newest = block.last().version;
            version > newest || repair && version == newest
        };
        let is_whole = blocks == (0..EXTENT_BLOCKS);
        if is_whole {
            assert!(data(0).is_none(), "whole extents are only discarded");
            let value = Value { version, data: None, change };
            extent.all().filter(|block| applies(block)).for_each(|block| block.0.push(value.clone()));
            return;
        }
        for index in blocks {
            let rest = &extent.rest;
            let block = extent.blocks.entry(index).or_insert_with(|| rest.clone());
            if applies(block) {
                block.0.push(Value { version, data: data(index), change });
            }
        }
    }

    /// Everything until now is durable.
    pub(super) fn settle(&mut self) {
        for namespace in self.namespaces.values_mut() {
            namespace.seals.drain(..namespace.seals.len() - 1);
            namespace.marks.values_mut().for_each(marks::Mark::settle);
            if namespace.deleted == Deleted::Maybe {
                namespace.deleted = Deleted::Yes;
            }
            for (index, extent) in &mut namespace.extents {
                extent.earlier.clear();
                extent.all().for_each(Block::settle);
                extent.slots.values_mut().for_each(Slot::settle);
                namespace.marks.values_mut().for_each(|mark| mark.follow(*index, extent.life));
            }
        }
    }

    /// What was seen after a crash is so from now on.
    pub(super) fn adopt(&mut self, seen: &Seen) {
        let mut seen = seen.iter().map(|index| usize::from(*index));
        let mut next = || seen.next().expect("as many as were seen");
        for namespace in self.namespaces.values_mut() {
            namespace.marks.values_mut().for_each(|mark| mark.adopt(next()));
            namespace.deleted = if next() == 1 { Deleted::Yes } else { Deleted::No };
            if namespace.deleted == Deleted::Yes {
                // All that was before it is durable.
                for (index, extent) in std::mem::take(&mut namespace.extents) {
                    namespace.marks.values_mut().for_each(|mark| mark.follow(index, extent.life));
                }
                continue;
            }
            namespace.seals = vec![namespace.seals[next()]];
            for (index, extent) in &mut namespace.extents {
                extent.adopt_life(next());
                namespace.marks.values_mut().for_each(|mark| mark.follow(*index, extent.life));
                for block in extent.all() {
                    block.0 = vec![block.0.swap_remove(next())];
                }
                extent.slots.values_mut().for_each(|slot| slot.adopt(next()));
            }
        }
    }
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

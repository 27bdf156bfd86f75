//! The load: changes of all kinds and sizes, over each other, many at a time; and what is expected of them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::thread::sleep;
use std::time::Duration;

use bytes::Bytes;
use lunette_proto::ids::{ExtentId, Generation, Namespace, Version, VolumeId};
use lunette_proto::limits::{BLOCK_BYTES, EXTENT_BLOCKS, EXTENT_BYTES};
use lunette_proto::node::{Change, Durability, Failure, Reply, ReplyBody, RequestBody};
use lunette_tests::random::Random;

use super::connection::Connection;
use super::model::{Model, Sent, Violation};
use super::stamp::{self, BLOCK, Place};

/// Namespaces, and extents of each.
const NAMESPACES: u64 = 2;
const EXTENTS: u64 = 4;
/// Requests on their way, and their blocks.
const REQUESTS_MAX: usize = 24;
const BLOCKS_MAX: u32 = 4096;
/// Answers after which a fault that was to come has not come.
const ANSWERS_MAX: usize = 20_000;
/// Blocks of a unit of the store.
const UNIT_BLOCKS: u32 = 16;

/// What was sent and is not answered.
#[derive(Debug)]
enum Pending {
    Change { version: Version, durability: Durability, blocks: u32 },
    Flush { covers: BTreeSet<Version> },
    Read { extent: ExtentId, blocks: Range<u32>, visible: Vec<Version> },
    Watermark,
}

/// A load that goes on over many lives of a node.
#[derive(Debug)]
pub(crate) struct Load {
    random: Random,
    blind: bool,
    model: Model,
    generation: Generation,
    /// The owner that each namespace acknowledged.
    sealed: BTreeMap<Namespace, Generation>,
    seq: u64,
    pending: BTreeMap<u64, Pending>,
    pending_blocks: u32,
    /// Acknowledged and volatile, by namespace.
    volatile: BTreeMap<Namespace, BTreeSet<Version>>,
    /// The highest watermark of this generation that was sent, by namespace.
    watermarks: BTreeMap<Namespace, u64>,
    /// Changes and flushes that were acknowledged.
    pub(crate) acknowledged: u64,
    /// Answers [`Failure::DiskFailed`].
    pub(crate) disk_failed: u64,
    /// Answers [`Failure::NoSpace`].
    pub(crate) no_space: u64,
    /// Answers [`Failure::Corrupt`], to reads.
    pub(crate) corrupt: u64,
}

fn namespaces() -> impl Iterator<Item = Namespace> {
    (1..=NAMESPACES).map(|volume| Namespace::volume(VolumeId(volume)))
}

impl Load {
    /// `blind`: with such stamps.
    pub(crate) fn new(seed: u64, blind: bool) -> Self {
        let mut model = Model::default();
        for namespace in namespaces() {
            for index in 0..EXTENTS {
                model.visible(ExtentId { namespace, index }, 0..0);
            }
        }
        Self {
            random: Random::new(seed),
            blind,
            model,
            // 0 is never a message's generation, and the first owner has a predecessor.
            generation: Generation(1),
            sealed: BTreeMap::new(),
            seq: 0,
            pending: BTreeMap::new(),
            pending_blocks: 0,
            volatile: BTreeMap::new(),
            watermarks: BTreeMap::new(),
            acknowledged: 0,
            disk_failed: 0,
            no_space: 0,
            corrupt: 0,
        }
    }

    pub(crate) fn random(&mut self) -> &mut Random {
        &mut self.random
    }

    /// A new life of the node: takes the namespaces over and compares every block with what may be there.
    /// False if the disk failed meanwhile.
    pub(crate) fn take_over(&mut self, node: &mut Connection) -> Result<bool, Violation> {
        self.pending.clear();
        self.pending_blocks = 0;
        self.volatile.clear();
        let before = self.generation;
        self.generation = Generation(before.0 + 1);
        for namespace in namespaces() {
            let generation = self.generation;
            let Some(owner) = self.owner(node, namespace) else { return Ok(false) };
            let expected = self.sealed.get(&namespace).copied().unwrap_or_default();
            let sealed = match self.ask(node, RequestBody::Seal { namespace, generation }) {
                Some(ReplyBody::Sealed(sealed)) => sealed,
                Some(other) => panic!("a seal was answered {other:?}"),
                None => return Ok(false),
            };
            self.sealed.insert(namespace, generation);
            let watermark = self.watermarks.remove(&namespace).unwrap_or_default();
            for index in 0..EXTENTS {
                let Some(newest) = self.verify(node, ExtentId { namespace, index })? else {
                    return Ok(false);
                };
                let differs = newest.generation == before && newest.seq > watermark;
                let named = sealed.dirty.iter().any(|dirty| dirty.index == index && dirty.newest >= newest);
                assert!(
                    !differs || named,
                    "extent {index} of {namespace} has {newest} and is not named as dirty"
                );
            }
            // One that was not acknowledged may be there.
            assert!(owner >= expected, "{namespace} had the owner {expected}, and has {owner}");
        }
        Ok(true)
    }

    /// The owner that the disk knows, by whom it refuses the one before the last that it acknowledged. `None` if the
    /// disk has failed.
    fn owner(&mut self, node: &mut Connection, namespace: Namespace) -> Option<Generation> {
        let Some(sealed) = self.sealed.get(&namespace).copied() else { return Some(Generation(0)) };
        let extent = ExtentId { namespace, index: 0 };
        match node.call(RequestBody::Versions { extent, generation: Generation(sealed.0 - 1) }) {
            Err(Failure::Generation { sealed, .. }) => Some(sealed),
            Err(Failure::DiskFailed) => {
                self.disk_failed += 1;
                None
            }
            // It passes for the owner.
            Ok(_) => Some(Generation(sealed.0 - 1)),
            Err(failure) => panic!("a node that was just started answers: {failure}"),
        }
    }

    /// Asks, when nothing else is on its way. `None` if the disk has failed, or cannot be read.
    fn ask(&mut self, node: &mut Connection, body: RequestBody) -> Option<ReplyBody> {
        let reply = loop {
            match node.call(body.clone()) {
                // What it may have granted before it died is waited for.
                Err(Failure::Granted { left_ms }) => sleep(Duration::from_millis(left_ms.into())),
                reply => break reply,
            }
        };
        match reply {
            Ok(body) => Some(body),
            Err(Failure::DiskFailed) => {
                self.disk_failed += 1;
                None
            }
            Err(Failure::Corrupt { .. }) => {
                self.corrupt += 1;
                None
            }
            Err(failure) => panic!("a node that was just started answers: {failure}"),
        }
    }

    /// Compares an extent with what may be there. The newest version in it; `None` if the disk has failed.
    fn verify(&mut self, node: &mut Connection, extent: ExtentId) -> Result<Option<Version>, Violation> {
        let generation = self.generation;
        let runs = match self.ask(node, RequestBody::Versions { extent, generation }) {
            Some(ReplyBody::Versions(runs)) => runs,
            Some(other) => panic!("a question for versions was answered {other:?}"),
            None => return Ok(None),
        };
        let read = RequestBody::Read { extent, generation, offset: 0, len: EXTENT_BYTES };
        let data = match self.ask(node, read) {
            Some(ReplyBody::Data(data)) => data,
            Some(other) => panic!("a read was answered {other:?}"),
            None => return Ok(None),
        };
        let versions = runs.iter().flat_map(|run| std::iter::repeat_n(run.version, run.blocks as usize));
        let mut versions = versions.chain(std::iter::repeat(Version::NONE));
        let mut newest = Version::NONE;
        for (block, bytes) in (0..).zip(data.chunks(BLOCK)) {
            let place = Place { extent, block };
            let claimed = versions.next().expect("without end");
            newest = newest.max(claimed);
            self.model.settle(place, claimed, stamp::read(place, bytes))?;
        }
        Ok(Some(newest))
    }

    /// Sends until `answers` more have come, or the node is gone.
    pub(crate) fn run(&mut self, node: &mut Connection, answers: u64) -> Result<(), Violation> {
        let mut left = answers;
        while left > 0 {
            if !self.fill(node) {
                break;
            }
            let Some((id, reply)) = node.receive() else { break };
            self.answered(id, reply)?;
            left -= 1;
        }
        Ok(())
    }

    /// Sends until something was answered that `count` counts, or for a long time. Then waits for the answers that are
    /// due.
    pub(crate) fn run_until(
        &mut self,
        node: &mut Connection,
        count: impl Fn(&Self) -> u64,
    ) -> Result<(), Violation> {
        let before = count(self);
        for _ in 0..ANSWERS_MAX {
            self.run(node, 1)?;
            if count(self) > before {
                break;
            }
        }
        self.drain(node)
    }

    /// Sends as much as may be on its way. Whether the node lives.
    pub(crate) fn fill(&mut self, node: &mut Connection) -> bool {
        while self.pending.len() < REQUESTS_MAX && self.pending_blocks < BLOCKS_MAX {
            let (body, pending) = self.draw();
            let Some(id) = node.send(body) else { return false };
            if let Pending::Change { blocks, .. } = pending {
                self.pending_blocks += blocks;
            }
            self.pending.insert(id, pending);
        }
        true
    }

    /// Takes the answers that are there or will come, sending nothing more.
    pub(crate) fn drain(&mut self, node: &mut Connection) -> Result<(), Violation> {
        while !self.pending.is_empty() {
            let Some((id, reply)) = node.receive() else { break };
            self.answered(id, reply)?;
        }
        Ok(())
    }

    fn draw(&mut self) -> (RequestBody, Pending) {
        let volume = 1 + self.random.below(NAMESPACES);
        let namespace = Namespace::volume(VolumeId(volume));
        // Every other request goes to one extent, so that they meet.
        let index = if self.random.one_in(2) { 0 } else { self.random.below(EXTENTS) };
        let extent = ExtentId { namespace, index };
        let generation = self.generation;
        match self.random.below(32) {
            0..18 => self.change(extent, false),
            18..23 => self.change(extent, true),
            23..28 => {
                let blocks = self.blocks();
                let visible = self.model.visible(extent, blocks.clone());
                let (offset, len) = (blocks.start * BLOCK_BYTES, blocks.len() as u32 * BLOCK_BYTES);
                let read = RequestBody::Read { extent, generation, offset, len };
                (read, Pending::Read { extent, blocks, visible })
            }
            28..31 => {
                let covers = self.volatile.get(&namespace).cloned().unwrap_or_default();
                (RequestBody::Flush { namespace, generation }, Pending::Flush { covers })
            }
            _ => {
                let unanswered = self.pending.values().filter_map(|pending| match pending {
                    Pending::Change { version, .. } => Some(version.seq),
                    _ => None,
                });
                let seq = unanswered.min().unwrap_or(self.seq + 1) - 1;
                self.watermarks.insert(namespace, seq);
                (RequestBody::Watermark { namespace, generation, seq, complete: true }, Pending::Watermark)
            }
        }
    }

    /// A run of blocks: most are small, some are whole units, some are large and begin anywhere.
    fn blocks(&mut self) -> Range<u32> {
        let mut below = |limit: u32| self.random.below(u64::from(limit)) as u32;
        let (start, count) = match below(16) {
            0..9 => (below(EXTENT_BLOCKS), 1 + below(8)),
            9..13 => (below(EXTENT_BLOCKS / UNIT_BLOCKS) * UNIT_BLOCKS, (1 + below(4)) * UNIT_BLOCKS),
            13..15 => (below(EXTENT_BLOCKS), 1 + below(300)),
            _ => (0, EXTENT_BLOCKS),
        };
        start..(start + count).min(EXTENT_BLOCKS)
    }

    fn change(&mut self, extent: ExtentId, zeros: bool) -> (RequestBody, Pending) {
        let blocks = self.blocks();
        self.seq += 1;
        let version = Version { generation: self.generation, seq: self.seq };
        let count = blocks.len() as u32;
        let change = if zeros {
            Change::Zeros { len: count * BLOCK_BYTES }
        } else {
            let mut data = Vec::with_capacity(blocks.len() * BLOCK);
            blocks
                .clone()
                .for_each(|block| stamp::write(Place { extent, block }, version, self.blind, &mut data));
            Change::Data(Bytes::from(data))
        };
        let durability = if self.random.one_in(3) { Durability::Volatile } else { Durability::Stable };
        let offset = blocks.start * BLOCK_BYTES;
        self.model.send(version, Sent { extent, blocks, zeros });
        let body = RequestBody::Change { extent, version, offset, change, durability };
        (body, Pending::Change { version, durability, blocks: count })
    }

    fn answered(&mut self, id: u64, reply: Reply) -> Result<(), Violation> {
        let pending = self.pending.remove(&id).expect("an answer to what was sent");
        if let Pending::Change { blocks, .. } = pending {
            self.pending_blocks -= blocks;
        }
        match (pending, reply) {
            // It may have happened, or not.
            (_, Err(Failure::DiskFailed)) => self.disk_failed += 1,
            (Pending::Change { version, .. }, Err(failure @ (Failure::Busy | Failure::NoSpace))) => {
                self.no_space += u64::from(failure == Failure::NoSpace);
                self.model.refuse(version);
            }
            (_, Err(Failure::Busy)) => {}
            (Pending::Read { .. }, Err(Failure::Corrupt { .. })) => self.corrupt += 1,
            (Pending::Change { version, durability, .. }, Ok(ReplyBody::Done)) => {
                self.acknowledged += 1;
                self.model.acknowledge(version, durability == Durability::Stable);
                if durability == Durability::Volatile {
                    let namespace = self.model.namespace(version);
                    self.volatile.entry(namespace).or_default().insert(version);
                }
            }
            (Pending::Flush { covers }, Ok(ReplyBody::Done)) => {
                self.acknowledged += 1;
                covers.iter().for_each(|version| self.model.acknowledge(*version, true));
                for versions in self.volatile.values_mut() {
                    versions.retain(|version| !covers.contains(version));
                }
            }
            (Pending::Watermark, Ok(ReplyBody::Done)) => {}
            (Pending::Read { extent, blocks, visible }, Ok(ReplyBody::Data(data))) => {
                assert_eq!(data.len(), blocks.len() * BLOCK);
                for ((block, bytes), visible) in blocks.zip(data.chunks(BLOCK)).zip(visible) {
                    let place = Place { extent, block };
                    self.model.check_read(place, visible, stamp::read(place, bytes))?;
                }
            }
            (pending, reply) => panic!("{pending:?} was answered {reply:?}"),
        }
        Ok(())
    }
}

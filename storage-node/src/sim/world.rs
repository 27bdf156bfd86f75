//! A store on a simulated medium, beside the model of what it may hold.

mod refusals;
mod repair;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use lunette_proto::ids::{
    ClusterId, DiskId, DiskUuid, Epoch, ExtentId, Generation, Namespace, Snapshot, Version,
};
use lunette_proto::limits::{BLOCK_BYTES, EXTENT_BLOCKS, UNIT_BYTES};
use lunette_proto::node::{Change, Durability, Failure, Reply, ReplyBody};
use parking_lot::Mutex;

use super::disk::{Cut, Image, Interleaved, Kept, Moment, SimDisk};
use super::model::{Model, content, prepared};
use crate::engine::Operation;
use crate::store::descriptor::UNIT_BLOCKS;
use crate::store::{Checkpoint, Fatal, Identity, Layout, OpenError, Prepared, Recovered, Store};

/// The namespaces that are worked in.
pub(super) const NAMESPACES: [Namespace; 3] = [Namespace(0x100), Namespace(0x101), Namespace(0x102)];

/// Numbers up to it are of changes that this disk has missed: only repairs bring them.
const FIRST_SEQ: u64 = 10;

pub(super) const IDENTITY: Identity =
    Identity { cluster: ClusterId(0xC1), disk: DiskId(7), uuid: DiskUuid(0xD15C_0007) };

/// What is asked of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Write {
        ns: usize,
        extent: u64,
        blocks: Range<u32>,
        durability: Durability,
    },
    Zeros {
        ns: usize,
        extent: u64,
        blocks: Range<u32>,
        durability: Durability,
    },
    /// A repair with the version of this number.
    Put {
        ns: usize,
        extent: u64,
        blocks: Range<u32>,
        seq: u64,
    },
    Flush {
        ns: usize,
    },
    /// Up to this many numbers ago.
    Watermark {
        ns: usize,
        behind: u64,
    },
    Seal {
        ns: usize,
    },
    Delete {
        ns: usize,
    },
    Drop {
        ns: usize,
        extents: Vec<u64>,
    },
    /// A change of blocks of one slot is prepared, on what is prepared there or is there.
    Prepare {
        ns: usize,
        extent: u64,
        blocks: Range<u32>,
        zeros: bool,
    },
    /// The first change that is prepared in an extent is committed, or rolled back.
    Resolve {
        ns: usize,
        extent: u64,
        commit: bool,
    },
    /// A change is prepared on a version that never was.
    Wrong {
        ns: usize,
        extent: u64,
        slot: u32,
    },
    /// A snapshot is marked.
    Mark {
        ns: usize,
    },
    /// The oldest snapshot ends, or the one after so many others.
    Unmark {
        ns: usize,
        after: usize,
    },
    /// An owner whose time is over.
    Late {
        ns: usize,
        extent: u64,
    },
    Begin,
    Run,
    Finish,
    Commit,
}

/// Why a run ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    /// The store did what it must not do.
    #[error("{0}")]
    Wrong(String),
    /// The disk has failed, and says so.
    #[error("the disk failed: {0}")]
    Failed(String),
}

impl From<Fatal> for End {
    fn from(fatal: Fatal) -> Self {
        Self::Failed(fatal.0)
    }
}

/// Slots of an extent.
const SLOTS: Range<u32> = 0..EXTENT_BLOCKS / UNIT_BLOCKS;

fn extent_id(ns: usize, index: u64) -> ExtentId {
    ExtentId { namespace: NAMESPACES[ns], index }
}

fn whole_content(id: ExtentId, blocks: &Range<u32>, version: Version) -> Bytes {
    blocks.clone().map(|block| content(id, block, version)).collect::<Vec<_>>().concat().into()
}

fn wrong<T>(what: impl Into<String>) -> Result<T, End> {
    Err(End::Wrong(what.into()))
}

/// A content is needed again only to repair it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Data,
    Zeros,
}

pub(super) struct World {
    pub(super) disk: Arc<SimDisk>,
    pub(super) store: Store<Arc<SimDisk>>,
    pub(super) model: Model,
    pub(super) recovered: Recovered,
    checkpoint: Option<(Checkpoint, bool)>,
    /// A checkpoint is at its I/O.
    running: bool,
    epoch: Epoch,
    /// The newest number of each namespace, and what each version was.
    seq: BTreeMap<Namespace, u64>,
    kinds: BTreeMap<(Namespace, Version), Kind>,
    /// The newest snapshot of each namespace.
    snapshots: BTreeMap<Namespace, Snapshot>,
    /// What might be there if the power failed during the newest step.
    pub(super) noted: Model,
    /// What may be there without the newest batch.
    pub(super) before: Model,
    /// Stable changes wait: readers do not see them yet.
    unseen: bool,
    pub(super) no_space: u64,
    pub(super) blocked: u64,
    pub(super) checkpoints: u64,
    /// Changes that were refused because another one is prepared.
    pub(super) refused: u64,
    /// The medium is not what was written: blocks may be corrupt.
    pub(super) is_spoiled: bool,
}

/// Opens what is on a medium and looks at its books.
pub(super) fn open(disk: &Arc<SimDisk>) -> Result<(Store<Arc<SimDisk>>, Recovered), OpenError> {
    Store::open(disk.clone())
}

/// A formatted medium.
pub(super) fn formatted(layout: &Layout) -> Image {
    let disk = SimDisk::new(Image::used(layout.total_bytes));
    Store::format(&disk, &IDENTITY, layout).expect("no faults");
    disk.now().image(Cut { kept: Kept::Bits(0), torn: 0 }).flat()
}

impl World {
    /// Opens what is on `image`, of which `model` is known.
    pub(super) fn open(image: Image, model: Model) -> Result<Self, End> {
        let disk = SimDisk::new(image);
        Self::on(disk, model)
    }

    pub(super) fn on(disk: Arc<SimDisk>, model: Model) -> Result<Self, End> {
        let (store, recovered) = open(&disk).map_err(|error| End::Failed(format!("open: {error}")))?;
        Ok(Self {
            disk,
            store,
            model,
            recovered,
            checkpoint: None,
            running: false,
            epoch: Epoch(1),
            seq: BTreeMap::new(),
            kinds: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            noted: Model::default(),
            before: Model::default(),
            unseen: false,
            no_space: 0,
            blocked: 0,
            checkpoints: 0,
            refused: 0,
            is_spoiled: false,
        })
    }

    /// Goes on after a crash, with what was seen of it. `again` draws a crash in the middle of the recovery.
    pub(super) fn reopen(
        self,
        image: Image,
        mut again: impl FnMut(Vec<Moment>) -> Option<Image>,
    ) -> Result<Self, End> {
        let mut image = image;
        let (disk, store, recovered) = loop {
            let disk = SimDisk::new(image);
            disk.record();
            let (store, recovered) = open(&disk).map_err(|error| End::Wrong(format!("open: {error}")))?;
            match again(disk.recorded()) {
                Some(next) => image = next,
                None => break (disk, store, recovered),
            }
        };
        let mut world =
            Self { disk, store, recovered, checkpoint: None, running: false, unseen: false, ..self };
        let seen = world.model.check(&mut world.store).map_err(End::Wrong)?;
        world.audit()?;
        world.model.adopt(&seen);
        Ok(world)
    }

    /// Space, counts of units and pages are what is reachable.
    pub(super) fn audit(&self) -> Result<(), End> {
        self.store.audit().map_err(|what| End::Wrong(format!("audit: {what}")))
    }

    /// The number of the newest change.
    pub(super) fn seq(&self, ns: usize) -> u64 {
        self.seq.get(&NAMESPACES[ns]).copied().unwrap_or(FIRST_SEQ)
    }

    /// A checkpoint waits for its I/O.
    pub(super) fn is_begun(&self) -> bool {
        matches!(&self.checkpoint, Some((_, false)))
    }

    pub(super) fn is_sealed(&self, ns: usize) -> bool {
        !self.model.is_deleted(NAMESPACES[ns]) && self.model.sealed(NAMESPACES[ns]).0 != Generation(0)
    }

    fn can(&self, op: &Op) -> bool {
        match op {
            Op::Begin => self.checkpoint.is_none() && !self.running,
            Op::Run => self.is_begun(),
            Op::Finish => matches!(&self.checkpoint, Some((_, true))),
            Op::Seal { ns } => !self.model.is_deleted(NAMESPACES[*ns]),
            Op::Write { ns, .. }
            | Op::Zeros { ns, .. }
            | Op::Put { ns, .. }
            | Op::Flush { ns }
            | Op::Watermark { ns, .. }
            | Op::Delete { ns }
            | Op::Drop { ns, .. }
            | Op::Prepare { ns, .. }
            | Op::Mark { ns }
            | Op::Wrong { ns, .. }
            | Op::Late { ns, .. } => self.is_sealed(*ns),
            Op::Resolve { ns, extent, .. } => {
                self.is_sealed(*ns) && self.model.first_prepared(extent_id(*ns, *extent), SLOTS).is_some()
            }
            Op::Unmark { ns, .. } => !self.model.marks(NAMESPACES[*ns]).is_empty(),
            Op::Commit => true,
        }
    }

    /// Does it, if it makes sense; with `hold`, its commit comes later.
    pub(super) fn step(&mut self, op: &Op, hold: bool) -> Result<(), End> {
        if !self.can(op) {
            return Ok(());
        }
        self.noted.clone_from(&self.model);
        match op {
            Op::Begin => {
                self.begin_checkpoint()?;
                // It has committed first.
                self.settle();
                Ok(())
            }
            Op::Run => self.run_checkpoint(|_, _| Ok(())),
            Op::Finish => self.finish_checkpoint(),
            Op::Commit => self.commit(),
            Op::Late { ns, extent } => self.late(*ns, *extent),
            Op::Wrong { ns, extent, slot } => self.wrong_prev(*ns, *extent, *slot),
            _ => self.request(op, hold),
        }
    }

    fn settle(&mut self) {
        self.model.settle();
        self.unseen = false;
    }

    pub(super) fn commit(&mut self) -> Result<(), End> {
        if self.store.has_batch() {
            self.before.clone_from(&self.model);
        }
        self.store.commit()?;
        self.settle();
        Ok(())
    }

    fn begin_checkpoint(&mut self) -> Result<(), End> {
        if self.store.has_batch() {
            self.before.clone_from(&self.model);
        }
        self.checkpoint = Some((self.store.begin_checkpoint()?, false));
        Ok(())
    }

    /// The I/O of a checkpoint; `between` is called between its calls to the medium.
    pub(super) fn run_checkpoint(
        &mut self,
        between: impl FnMut(&mut Self, u64) -> Result<(), End> + Send,
    ) -> Result<(), End> {
        let Some((checkpoint, _)) = self.checkpoint.take() else {
            return wrong("no checkpoint was begun");
        };
        self.running = true;
        let disk = self.disk.clone();
        let mut between = between;
        let mut outcome = Ok(());
        let mut calls = 0;
        let world = Mutex::new(&mut *self);
        let wrote = {
            let outcome = Mutex::new(&mut outcome);
            let medium = Interleaved {
                disk: &disk,
                between: Mutex::new(|| {
                    let mut outcome = outcome.lock();
                    if outcome.is_ok() {
                        calls += 1;
                        **outcome = between(&mut world.lock(), calls);
                    }
                }),
            };
            checkpoint.write(&medium)
        };
        self.running = false;
        outcome?;
        wrote.map_err(|error| End::Failed(format!("checkpoint: {error}")))?;
        self.checkpoint = Some((checkpoint, true));
        Ok(())
    }

    pub(super) fn finish_checkpoint(&mut self) -> Result<(), End> {
        let Some((checkpoint, true)) = self.checkpoint.take() else {
            return wrong("no checkpoint was written");
        };
        self.store.finish_checkpoint(checkpoint)?;
        self.checkpoints += 1;
        Ok(())
    }

    /// A whole checkpoint, or the rest of the one that was begun.
    pub(super) fn checkpoint(&mut self) -> Result<(), End> {
        if self.checkpoint.is_none() {
            self.begin_checkpoint()?;
        }
        if matches!(self.checkpoint, Some((_, false))) {
            self.run_checkpoint(|_, _| Ok(()))?;
        }
        self.finish_checkpoint()
    }

    /// `None`: it cannot be done while a checkpoint is running.
    fn prepare(&mut self, operation: &Operation) -> Result<Option<(Reply, bool)>, End> {
        for _ in 0..2 {
            if let Prepared::Answer { reply, stable } = self.store.prepare(self.epoch, operation)? {
                return Ok(Some((reply, stable)));
            }
            self.blocked += 1;
            if self.running {
                return Ok(None);
            }
            // What is asked right now is not among it, so the model does not settle.
            self.store.commit()?;
            if self.checkpoint.is_some() {
                self.checkpoint()?;
            }
            self.checkpoint()?;
        }
        let mut operation = format!("{operation:?}");
        operation.truncate(120);
        wrong(format!("blocked twice: {operation}"))
    }

    fn request(&mut self, op: &Op, hold: bool) -> Result<(), End> {
        // What is asked may be there after a crash from now on.
        let before = self.model.clone();
        let prepared = self.prepared_beside(op);
        let operation = self.note(op);
        self.noted.clone_from(&self.model);
        let Some((reply, stable)) = self.prepare(&operation)? else {
            self.model = before;
            return Ok(());
        };
        let is_volatile = matches!(
            op,
            Op::Write { durability: Durability::Volatile, .. }
                | Op::Zeros { durability: Durability::Volatile, .. }
        );
        if let Some(expected) = prepared {
            if reply != Err(Failure::Version { present: expected }) {
                return wrong(format!("{op:?} beside {expected}, which is prepared, answers {reply:?}"));
            }
            self.refused += 1;
            self.model = before;
            return Ok(());
        }
        match (&reply, op) {
            // It cannot be told which version it has.
            (Err(Failure::Corrupt { .. }), Op::Prepare { .. }) if self.is_spoiled => {
                self.model = before;
                return Ok(());
            }
            (
                Err(Failure::NoSpace),
                Op::Write { .. }
                | Op::Put { .. }
                | Op::Zeros { .. }
                | Op::Seal { .. }
                | Op::Prepare { .. }
                | Op::Mark { .. },
            ) => {
                self.no_space += 1;
                self.model = before;
                return Ok(());
            }
            (Ok(ReplyBody::Sealed(_)), Op::Seal { .. }) => {}
            (Ok(ReplyBody::Done), Op::Seal { .. }) => return wrong("a seal answers Done"),
            (Ok(ReplyBody::Done), _) | (Ok(_), Op::Watermark { .. }) => {}
            _ => return wrong(format!("{op:?} answers {reply:?}")),
        }
        let must_wait = matches!(op, Op::Flush { .. } | Op::Seal { .. } | Op::Delete { .. } | Op::Put { .. })
            || matches!(op, Op::Prepare { .. } | Op::Resolve { .. } | Op::Mark { .. } | Op::Unmark { .. })
            || matches!(op, Op::Drop { .. })
            || matches!(op, Op::Write { .. } | Op::Zeros { .. }) && !is_volatile;
        if must_wait && !stable {
            return wrong(format!("{op:?} is answered before it is durable"));
        }
        self.unseen |= must_wait;
        if stable && !hold { self.commit() } else { Ok(()) }
    }

    /// The request, noted in the model.
    fn note(&mut self, op: &Op) -> Operation {
        match op {
            Op::Write { ns, extent, blocks, durability } => {
                self.note_change(*ns, *extent, blocks, *durability, Kind::Data)
            }
            Op::Zeros { ns, extent, blocks, durability } => {
                self.note_change(*ns, *extent, blocks, *durability, Kind::Zeros)
            }
            Op::Put { ns, extent, blocks, seq } => {
                let namespace = NAMESPACES[*ns];
                let (sealed, _) = self.model.sealed(namespace);
                let mut version = Version { generation: sealed, seq: *seq };
                let known =
                    self.kinds.keys().rev().find(|(id, known)| {
                        *id == namespace && known.seq == *seq && known.generation <= sealed
                    });
                if let Some((_, known)) = known {
                    version = *known;
                }
                let kind = *self.kinds.entry((namespace, version)).or_insert(Kind::Data);
                let id = ExtentId { namespace, index: *extent };
                let change = self.model_change(id, version, blocks, true, kind);
                Operation::Put {
                    extent: id,
                    generation: sealed,
                    version,
                    offset: blocks.start * BLOCK_BYTES,
                    change,
                }
            }
            Op::Flush { ns } => {
                let (generation, _) = self.model.sealed(NAMESPACES[*ns]);
                Operation::Flush { namespace: NAMESPACES[*ns], generation }
            }
            Op::Watermark { ns, behind } => {
                let namespace = NAMESPACES[*ns];
                let (generation, _) = self.model.sealed(namespace);
                let seq = self.seq.get(&namespace).copied().unwrap_or(FIRST_SEQ).saturating_sub(*behind);
                self.model.watermark(namespace, Version { generation, seq });
                Operation::Watermark { namespace, generation, seq, complete: true }
            }
            Op::Seal { ns } => {
                let namespace = NAMESPACES[*ns];
                let generation = Generation(self.model.sealed(namespace).0.0 + 1);
                self.epoch = Epoch(self.epoch.0 + 1);
                self.model.seal(namespace, generation, self.epoch);
                Operation::Seal { namespace, generation }
            }
            Op::Delete { ns } => {
                let namespace = NAMESPACES[*ns];
                let (generation, _) = self.model.sealed(namespace);
                self.model.delete(namespace);
                Operation::Delete { namespace, generation }
            }
            Op::Drop { ns, extents } => {
                let namespace = NAMESPACES[*ns];
                let (generation, _) = self.model.sealed(namespace);
                extents.iter().for_each(|index| self.model.drop_extent(extent_id(*ns, *index)));
                Operation::Drop { namespace, generation, extents: extents.clone() }
            }
            Op::Prepare { ns, extent, blocks, zeros } => {
                let id = extent_id(*ns, *extent);
                let slot = blocks.start / UNIT_BLOCKS;
                let prev = self.model.present(id, slot);
                let kind = if *zeros { Kind::Zeros } else { Kind::Data };
                let version = self.next_version(id.namespace, kind);
                let (offset, data) = (blocks.start * BLOCK_BYTES, whole_content(id, blocks, version));
                let change = match kind {
                    Kind::Data => Change::Data(data.clone()),
                    Kind::Zeros => Change::Zeros { len: (blocks.end - blocks.start) * BLOCK_BYTES },
                };
                let data = (kind == Kind::Data).then_some(data);
                self.model.prepare(id, prepared::Change { version, prev, blocks: blocks.clone(), data });
                Operation::Prepare { extent: id, version, prev, offset, change }
            }
            Op::Resolve { ns, extent, commit } => {
                let id = extent_id(*ns, *extent);
                let prepared = self.model.first_prepared(id, SLOTS).expect("it can be done");
                let (version, slot) = (prepared.version, prepared.blocks.start / UNIT_BLOCKS);
                self.model.resolve(id, slot, *commit);
                let (generation, _) = self.model.sealed(id.namespace);
                // Any part of the slot.
                let (extent, offset, len) = (id, slot * UNIT_BYTES, BLOCK_BYTES);
                if *commit {
                    Operation::Commit { extent, generation, version, offset, len }
                } else {
                    Operation::Rollback { extent, generation, version, offset, len }
                }
            }
            Op::Mark { ns } => {
                let namespace = NAMESPACES[*ns];
                let newest = self.snapshots.entry(namespace).or_default();
                // Numbers need not follow each other.
                *newest = Snapshot(newest.0 + 2);
                self.model.mark(namespace, *newest);
                let (generation, _) = self.model.sealed(namespace);
                Operation::Mark { namespace, generation, snapshot: *newest }
            }
            Op::Unmark { ns, after } => {
                let namespace = NAMESPACES[*ns];
                let marks = self.model.marks(namespace);
                let snapshot = marks[*after % marks.len()];
                self.model.unmark(namespace, snapshot);
                let (generation, _) = self.model.sealed(namespace);
                Operation::Unmark { namespace, generation, snapshot }
            }
            Op::Wrong { .. } | Op::Late { .. } | Op::Begin | Op::Run | Op::Finish | Op::Commit => {
                unreachable!("no request")
            }
        }
    }

    fn note_change(
        &mut self,
        ns: usize,
        extent: u64,
        blocks: &Range<u32>,
        durability: Durability,
        kind: Kind,
    ) -> Operation {
        let id = extent_id(ns, extent);
        let version = self.next_version(id.namespace, kind);
        let change = self.model_change(id, version, blocks, false, kind);
        Operation::Change { extent: id, version, offset: blocks.start * BLOCK_BYTES, change, durability }
    }

    fn next_version(&mut self, namespace: Namespace, kind: Kind) -> Version {
        let (generation, _) = self.model.sealed(namespace);
        let seq = self.seq.entry(namespace).or_insert(FIRST_SEQ);
        *seq += 1;
        let version = Version { generation, seq: *seq };
        self.kinds.insert((namespace, version), kind);
        version
    }

    /// What is prepared in a slot that a plain change would change.
    fn prepared_beside(&self, op: &Op) -> Option<Version> {
        let (Op::Write { ns, extent, blocks, .. }
        | Op::Zeros { ns, extent, blocks, .. }
        | Op::Put { ns, extent, blocks, .. }) = op
        else {
            return None;
        };
        let slots = blocks.start / UNIT_BLOCKS..blocks.end.div_ceil(UNIT_BLOCKS);
        self.model.first_prepared(extent_id(*ns, *extent), slots).map(|change| change.version)
    }

    fn model_change(
        &mut self,
        id: ExtentId,
        version: Version,
        blocks: &Range<u32>,
        repair: bool,
        kind: Kind,
    ) -> Change {
        let len = (blocks.end - blocks.start) * BLOCK_BYTES;
        if kind == Kind::Zeros {
            self.model.change(id, version, blocks.clone(), repair, |_| None);
            return Change::Zeros { len };
        }
        assert!(blocks.end <= EXTENT_BLOCKS);
        let data = whole_content(id, blocks, version);
        let start = blocks.start;
        self.model.change(id, version, blocks.clone(), repair, |block| {
            let at = ((block - start) * BLOCK_BYTES) as usize;
            Some(data.slice(at..at + BLOCK_BYTES as usize))
        });
        Change::Data(data)
    }

    /// After the store was opened once more on the same medium.
    pub(super) fn opened(self, store: Store<Arc<SimDisk>>) -> Self {
        Self { store, checkpoint: None, running: false, unseen: false, ..self }
    }

    /// What readers see now, if nothing waits that they do not see yet.
    pub(super) fn check_live(&self) -> Result<(), End> {
        if self.unseen {
            return Ok(());
        }
        self.model.check_live(self.store.view()).map_err(End::Wrong)
    }
}

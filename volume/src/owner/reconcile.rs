//! Making the members of an extent agree: after a takeover, and after a member of a write-back
//! volume may have lost its memory.
//!
//! The members say which version each block has. Where they differ, the highest version wins and
//! the others are brought up to it. Whatever was acked is on all of them, so what some lack was
//! never acked, and it is as good to carry it everywhere as to drop it; but only one of the two may
//! be seen, from the first read on and over any number of crashes. Until that is done the extent
//! is closed, and the disks keep it on their lists of dirty extents until a watermark says
//! otherwise.

use lunette_proto::ids::DiskId;
use lunette_proto::limits::BLOCK_BYTES;
use lunette_proto::node::{BlockVersion, Change, Durability, ReplyBody, RequestBody};
use smallvec::SmallVec;

use super::event::Plant;
use super::gaps::{Gap, fits, gaps};
use super::op::{LegState, Op, Origin, Phase, Work};
use super::view::Members;
use super::{Answer, Owner, What};

/// An extent whose members are being compared and levelled.
#[derive(Debug)]
pub(super) struct Reconcile {
    legs: SmallVec<[VersionsLeg; 4]>,
    /// Levelling operations not finished, and one more while they are being queued.
    ops: usize,
    /// Something changed meanwhile: compare again.
    again: bool,
}

#[derive(Debug)]
struct VersionsLeg {
    disk: DiskId,
    state: VersionsState,
}

#[derive(Debug)]
enum VersionsState {
    Parked,
    Asked(u64),
    Have(Vec<BlockVersion>),
}

impl Reconcile {
    /// Where the members differ, once all have said what they have.
    fn gaps(&self) -> Option<Vec<Gap>> {
        let mut have: SmallVec<[(DiskId, &[BlockVersion]); 4]> = SmallVec::new();
        for leg in &self.legs {
            let VersionsState::Have(runs) = &leg.state else {
                return None;
            };
            have.push((leg.disk, runs));
        }
        Some(gaps(&have))
    }
}

impl Owner {
    /// Begins with dirty extents, those that somebody waits for first, as many as may run at once.
    pub(super) fn start_reconciles(&mut self) {
        let wanted: Vec<u64> = self.locks.keys().copied().filter(|it| self.dirty.contains(it)).collect();
        for extent in wanted {
            self.reconcile(extent);
        }
        if !self.all_sealed() {
            return;
        }
        let room = self.config.limits.reconcile_max.saturating_sub(self.reconciles.len());
        let next: Vec<u64> =
            self.dirty.iter().copied().filter(|it| !self.reconciles.contains_key(it)).take(room).collect();
        for extent in next {
            self.reconcile(extent);
        }
    }

    /// Begins with a dirty extent once its members have sealed and nothing is going on in it.
    pub(super) fn reconcile(&mut self, extent: u64) {
        if !self.dirty.contains(&extent) || self.reconciles.contains_key(&extent) {
            return;
        }
        let members = self.members(extent);
        let quiet =
            !self.ops.iter().any(|(_, op)| op.extent == extent && !matches!(op.phase, Phase::Waiting));
        if members.is_empty()
            || !members.iter().all(|disk| self.is_sealed(*disk))
            || self.reconciles.len() >= self.config.limits.reconcile_max
            || !quiet
        {
            return;
        }
        if self.planted(Plant::NoReconcile) {
            self.dirty.remove(&extent);
            self.reopen(extent);
            return;
        }
        let legs =
            members.iter().map(|disk| VersionsLeg { disk: *disk, state: VersionsState::Parked }).collect();
        self.reconciles.insert(extent, Reconcile { legs, ops: 0, again: false });
        self.ask_versions(extent);
    }

    fn ask_versions(&mut self, extent: u64) {
        let Some(reconcile) = self.reconciles.get(&extent) else {
            return;
        };
        let parked: Members = reconcile
            .legs
            .iter()
            .filter(|leg| matches!(leg.state, VersionsState::Parked) && self.is_usable(leg.disk))
            .map(|leg| leg.disk)
            .collect();
        for disk in parked {
            let body =
                RequestBody::Versions { extent: self.extent(extent), generation: self.config.generation };
            let tag = self.send(disk, body, What::Versions { extent });
            self.set_versions(extent, disk, VersionsState::Asked(tag));
        }
    }

    fn set_versions(&mut self, extent: u64, disk: DiskId, state: VersionsState) {
        if let Some(reconcile) = self.reconciles.get_mut(&extent)
            && let Some(leg) = reconcile.legs.iter_mut().find(|leg| leg.disk == disk)
        {
            leg.state = state;
        }
    }

    pub(super) fn versions_answered(&mut self, extent: u64, disk: DiskId, answer: Answer) {
        let state = match answer {
            Answer::Body(ReplyBody::Versions(runs)) if fits(&runs, self.config.generation) => {
                VersionsState::Have(runs)
            }
            Answer::Body(_) => {
                self.distrust(disk);
                VersionsState::Parked
            }
            Answer::NoSpace | Answer::Corrupt(_) => {
                self.rest(disk);
                VersionsState::Parked
            }
            Answer::Later | Answer::Unknown => VersionsState::Parked,
        };
        self.set_versions(extent, disk, state);
        self.compare(extent);
    }

    /// Levels the members once all have said what they have.
    fn compare(&mut self, extent: u64) {
        let Some(gaps) = self.reconciles.get(&extent).and_then(Reconcile::gaps) else {
            return;
        };
        if let Some(reconcile) = self.reconciles.get_mut(&extent) {
            reconcile.ops += 1;
        }
        for gap in gaps {
            let (offset, len) = (gap.first * BLOCK_BYTES, gap.blocks * BLOCK_BYTES);
            let Gap { version, hole, or_hole, sources, lagging, .. } = gap;
            let work = || {
                let (sources, lagging) = (sources.clone(), lagging.clone());
                Work::Level { version, hole, or_hole, sources, lagging }
            };
            if self.planted(Plant::LevelByBlock) {
                for block in (offset..offset + len).step_by(BLOCK_BYTES as usize) {
                    self.level(extent, block, BLOCK_BYTES, work());
                }
            } else {
                self.level(extent, offset, len, work());
            }
        }
        self.levelled(extent);
    }

    /// Begins an operation that brings lagging members up. It passes the locks: the extent is closed.
    pub(super) fn level(&mut self, extent: u64, offset: u32, len: u32, work: Work) {
        let Work::Level { version, hole, sources, lagging, .. } = &work else {
            return;
        };
        let (version, hole, sources, lagging) = (*version, *hole, sources.clone(), lagging.clone());
        let id = self.ops.insert(Op {
            origin: Origin::Reconcile,
            extent,
            offset,
            len,
            work,
            durability: Durability::Stable,
            phase: Phase::Waiting,
            seq: 0,
            has_mutated: false,
            verdict: Ok(()),
        });
        if let Some(reconcile) = self.reconciles.get_mut(&extent) {
            reconcile.ops += 1;
        }
        if hole {
            self.put(id, Change::Zeros { len }, version, &lagging);
        } else {
            self.read(id, sources, false);
        }
    }

    /// A levelling operation is over.
    pub(super) fn levelled(&mut self, extent: u64) {
        let Some(reconcile) = self.reconciles.get_mut(&extent) else {
            return;
        };
        reconcile.ops -= 1;
        if reconcile.ops > 0 {
            return;
        }
        let again = reconcile.again;
        self.reconciles.remove(&extent);
        if !again {
            self.dirty.remove(&extent);
            self.note_levelled(extent);
            // What the members agree on may still be in the memory of some.
            if self.is_volatile() {
                self.unflushed.entry(extent).or_insert(0);
            }
            self.reopen(extent);
        }
        self.start_reconciles();
        self.flush_settle();
    }

    fn reopen(&mut self, extent: u64) {
        if let Some(locks) = self.locks.get(&extent) {
            self.ready.extend(locks.free());
        }
    }

    /// What was compared no longer holds.
    pub(super) fn reconcile_again(&mut self, extent: u64) {
        let Some(reconcile) = self.reconciles.get_mut(&extent) else {
            return;
        };
        reconcile.again = true;
        if reconcile.ops == 0 {
            let gone: SmallVec<[u64; 4]> = reconcile
                .legs
                .iter()
                .filter_map(|leg| if let VersionsState::Asked(tag) = leg.state { Some(tag) } else { None })
                .collect();
            self.reconciles.remove(&extent);
            for tag in gone {
                self.abandon(tag);
            }
            self.reconcile(extent);
        }
    }

    /// The members may have changed.
    pub(super) fn refresh_reconciles(&mut self) {
        let changed: Vec<u64> = self
            .reconciles
            .iter()
            .filter(|(extent, reconcile)| {
                let members = self.members(**extent);
                !reconcile.legs.iter().map(|leg| leg.disk).eq(members.iter().copied())
            })
            .map(|(extent, _)| *extent)
            .collect();
        for extent in changed {
            self.reconcile_again(extent);
        }
    }

    pub(super) fn unpark_reconciles(&mut self, disk: DiskId) {
        let parked: Vec<u64> = self
            .reconciles
            .iter()
            .filter(|(_, reconcile)| {
                reconcile
                    .legs
                    .iter()
                    .any(|leg| leg.disk == disk && matches!(leg.state, VersionsState::Parked))
            })
            .map(|(extent, _)| *extent)
            .collect();
        for extent in parked {
            self.ask_versions(extent);
        }
        self.start_reconciles();
    }

    /// A member may have lost what it had in memory only. Everything that is not flushed is closed
    /// and compared; whatever was learned from that member counts no more.
    pub(super) fn suspect(&mut self, disk: DiskId) {
        let unflushed: Vec<u64> =
            self.unflushed.keys().copied().filter(|extent| self.members(*extent).contains(&disk)).collect();
        self.dirty.extend(unflushed);
        let ids: Vec<usize> =
            self.ops.iter().filter(|(_, op)| self.dirty.contains(&op.extent)).map(|(id, _)| id).collect();
        for id in ids {
            let Some(op) = self.ops.get_mut(id) else {
                continue;
            };
            let mut gone = None;
            match (&op.work, &mut op.phase) {
                (Work::Level { .. }, Phase::Reading(reading)) => {
                    let withdrawing = reading.withdrawing;
                    if !withdrawing && reading.from.contains(&disk) {
                        gone = reading.asked.take_if(|asked| asked.disk == disk).map(|asked| asked.tag);
                        reading.from.retain(|from| *from != disk);
                        if reading.from.is_empty() {
                            self.sources_left(id);
                        } else {
                            self.ask(id);
                        }
                    }
                }
                // Nothing was changed by it yet: it starts over when the extent is open again.
                (_, Phase::Reading(reading)) if !reading.withdrawing => {
                    gone = reading.asked.take().map(|asked| asked.tag);
                    op.phase = Phase::Waiting;
                    self.ready.push_back(id);
                }
                (_, Phase::Mutating(mutating)) if op.durability == Durability::Volatile => {
                    for leg in &mut mutating.legs {
                        if leg.disk == disk && leg.state == LegState::Done {
                            leg.state = LegState::Parked;
                        }
                    }
                }
                // What it was told of versions counts no more, unless it is too late for that.
                (_, Phase::Healing(healing)) => {
                    if let Some(asked) = healing.asked.take() {
                        gone = Some(asked.tag);
                        op.phase = Phase::Waiting;
                        self.ready.push_back(id);
                    }
                }
                (_, Phase::Waiting | Phase::Reading(_) | Phase::Mutating(_)) => {}
            }
            if let Some(tag) = gone {
                self.abandon(tag);
            }
        }
        let compared: Vec<u64> = self
            .reconciles
            .iter()
            .filter(|(_, reconcile)| reconcile.legs.iter().any(|leg| leg.disk == disk))
            .map(|(extent, _)| *extent)
            .collect();
        for extent in compared {
            self.reconcile_again(extent);
        }
        self.start_reconciles();
    }
}

//! Changing blocks: to all members in sync, until each of them has answered.

use std::collections::VecDeque;

use bytes::Bytes;
use lunette_proto::ids::{DiskId, Version};
use lunette_proto::limits::BLOCK_BYTES;
use lunette_proto::node::{Change, Durability, ReplyBody, RequestBody};

use super::event::Plant;
use super::op::{Leg, LegState, Mutating, Op, Origin, Phase, Work};
use super::view::Members;
use super::{Answer, Owner, What};
use crate::device::DeviceError;

impl Owner {
    /// Starts an operation if nothing is in its way, its extent is open and it has enough members.
    pub(super) fn start(&mut self, id: usize) {
        let Some(op) = self.ops.get(id) else {
            return;
        };
        if !matches!(op.phase, Phase::Waiting) || !self.locks.get(&op.extent).is_some_and(|it| it.is_free(id))
        {
            return;
        }
        let (extent, offset, origin, is_exclusive) = (op.extent, op.offset, op.origin, op.is_exclusive());
        if !self.is_open(extent) {
            return self.reconcile(extent);
        }
        // Before what could make it wait: others wait for its lock.
        if matches!(origin, Origin::Repair | Origin::Heal | Origin::CatchUp { .. })
            && !self.can_repair(extent)
        {
            return self.finish(id, Err(DeviceError::Busy));
        }
        if is_exclusive && self.counting(extent, self.members(extent).into_iter()) < self.view.pool.min_size()
        {
            return;
        }
        if is_exclusive && !self.has_room_to_change(extent) {
            return;
        }
        match &self.ops[id].work {
            Work::Write(change) => {
                let change = change.clone();
                self.change(id, offset, change);
            }
            Work::Map => self.read(id, Members::new(), false),
            Work::Atomic { .. } => {
                self.prepares(id, false);
                self.read(id, Members::new(), false);
            }
            Work::Read { .. } | Work::Modify { .. } | Work::Rewrite => {
                let op = &self.ops[id];
                let is_rewrite = matches!(op.work, Work::Rewrite);
                let is_lost = |block: &u32| self.unreadable.contains(&(extent, *block)) && op.needs(*block);
                if let Some(block) = op.blocks().find(is_lost) {
                    let offset = self.config.layout.address(extent, block * BLOCK_BYTES);
                    return self.finish(id, Err(DeviceError::Medium { offset }));
                }
                self.read(id, Members::new(), is_rewrite);
            }
            Work::Heal { .. } => self.heal(id),
            Work::Level { .. } => {}
        }
    }

    /// Whether operations on an extent may start (invariants 4 and 19).
    pub(super) fn is_open(&self, extent: u64) -> bool {
        let members = self.members(extent);
        !members.is_empty()
            && members.iter().all(|disk| self.is_sealed(*disk))
            && !self.dirty.contains(&extent)
    }

    /// Gives the blocks new content on every member in sync, under a new version.
    pub(super) fn change(&mut self, id: usize, offset: u32, change: Change) {
        self.mutate(id, offset, change, false, VecDeque::new());
    }

    /// Gives blocks new content under a new version, and then those of `rest`.
    pub(super) fn mutate(
        &mut self,
        id: usize,
        offset: u32,
        change: Change,
        withdrawing: bool,
        rest: VecDeque<(u32, Change)>,
    ) {
        self.last_seq += 1;
        let version = Version { generation: self.config.generation, seq: self.last_seq };
        let is_caching = self.is_caching();
        let op = &mut self.ops[id];
        // It was queued before the cache was turned off.
        if !is_caching {
            op.durability = Durability::Stable;
        }
        if op.seq == 0 {
            op.seq = version.seq;
            self.unresolved.insert(version.seq);
        }
        if op.durability == Durability::Volatile {
            self.unflushed.insert(op.extent, version.seq);
        }
        let extent = self.ops[id].extent;
        self.changed.insert(extent, version.seq);
        self.note_change(extent);
        let legs = self.writers(extent).iter().map(|disk| parked(*disk)).collect();
        self.ops[id].phase = Phase::Mutating(Mutating {
            offset,
            change,
            version,
            put: false,
            legs,
            ambiguous: false,
            withdrawing,
            rest,
        });
        self.send_parked(id);
        self.settle(id);
    }

    /// Brings lagging members up to a version that others have (invariant 9).
    pub(super) fn put(&mut self, id: usize, change: Change, version: Version, lagging: &Members) {
        let members = self.writers(self.ops[id].extent);
        let op = &mut self.ops[id];
        op.phase = Phase::Mutating(Mutating {
            offset: op.offset,
            change,
            version,
            put: true,
            legs: lagging.iter().filter(|disk| members.contains(disk)).map(|disk| parked(*disk)).collect(),
            ambiguous: false,
            withdrawing: false,
            rest: VecDeque::new(),
        });
        self.send_parked(id);
        self.settle(id);
    }

    /// Sends to the members that have not been sent to and can be reached. A repeated change bears
    /// the version of the first: the member takes it once.
    pub(super) fn send_parked(&mut self, id: usize) {
        let renew = self.planted(Plant::RetryNewVersion);
        let mut position = 0;
        while let Some(Op { extent, durability, phase: Phase::Mutating(mutating), .. }) = self.ops.get(id)
            && let Some(Leg { disk, state }) = mutating.legs.get(position).copied()
        {
            position += 1;
            if state != LegState::Parked || !self.is_usable(disk) {
                continue;
            }
            let (extent, mut version) = (self.extent(*extent), mutating.version);
            if renew && mutating.ambiguous && !mutating.put {
                version.seq = self.last_seq + 1;
            }
            let (put, offset, change) = (mutating.put, mutating.offset, mutating.change.clone());
            let body = if put {
                RequestBody::Put { extent, generation: self.config.generation, version, offset, change }
            } else {
                RequestBody::Change { extent, version, offset, change, durability: *durability }
            };
            self.last_seq = self.last_seq.max(if put { 0 } else { version.seq });
            let tag = self.send(disk, body, What::Leg { op: id });
            self.touch(id);
            self.ops[id].has_mutated = true;
            if let Phase::Mutating(mutating) = &mut self.ops[id].phase {
                mutating.legs[position - 1].state = LegState::Sent(tag);
            }
        }
    }

    pub(super) fn leg_answered(&mut self, id: usize, tag: u64, answer: Answer) {
        let Some(Op { origin, work, extent, phase: Phase::Mutating(mutating), .. }) = self.ops.get_mut(id)
        else {
            return;
        };
        let extent = *extent;
        let is_heal = matches!(origin, Origin::HealPart { .. });
        let needs_no_space = mutating.withdrawing
            || match work {
                Work::Level { or_hole, .. } => !is_heal && !*or_hole,
                // What was in front of it has made room.
                Work::Atomic { .. } => mutating.rest.is_empty(),
                _ => false,
            };
        let Some(leg) = mutating.legs.iter_mut().find(|leg| leg.state == LegState::Sent(tag)) else {
            return;
        };
        leg.state = LegState::Parked;
        let disk = leg.disk;
        let (is_done, is_full) =
            (matches!(answer, Answer::Body(ReplyBody::Done)), matches!(answer, Answer::NoSpace));
        match answer {
            Answer::Body(ReplyBody::Done) => leg.state = LegState::Done,
            Answer::NoSpace if !needs_no_space => leg.state = LegState::NoSpace,
            // An overwrite or a discard; whatever the disk means by it, it has to take it.
            Answer::NoSpace | Answer::Corrupt(_) => self.rest(disk),
            Answer::Body(_) => self.distrust(disk),
            Answer::Later => {}
            Answer::Unknown => mutating.ambiguous = true,
        }
        if !is_done && self.is_catching_up(disk, extent) {
            // It has to be brought up to date in this, too.
            if let Phase::Mutating(mutating) = &mut self.ops[id].phase {
                mutating.legs.retain(|leg| leg.disk != disk);
            }
            self.missed(disk, extent, is_full);
        }
        self.settle(id);
    }

    /// Goes on once every member has answered (invariant 2).
    fn settle(&mut self, id: usize) {
        let Some(Op { extent, phase: Phase::Mutating(mutating), .. }) = self.ops.get(id) else {
            return;
        };
        let is_answered = |leg: &Leg| matches!(leg.state, LegState::Done | LegState::NoSpace);
        let counting = || self.counting(*extent, mutating.legs.iter().map(|leg| leg.disk));
        let enough = mutating.put || counting() >= self.view.pool.min_size();
        let first_is_enough =
            self.planted(Plant::AckAfterFirst) && mutating.legs.iter().any(|leg| leg.state == LegState::Done);
        if !(enough && mutating.legs.iter().all(is_answered) || first_is_enough) {
            return;
        }
        let refused: Members =
            mutating.legs.iter().filter(|leg| leg.state == LegState::NoSpace).map(|leg| leg.disk).collect();
        let nobody_has_it = refused.len() == mutating.legs.len() && !mutating.ambiguous && !mutating.put;
        if refused.is_empty() {
            self.go_on(id);
        } else if let (Origin::HealPart { .. }, Work::Level { .. }) =
            (self.ops[id].origin, &self.ops[id].work)
        {
            // It has changed nothing, and names the blocks again.
            self.finish(id, Err(DeviceError::NoSpace));
        } else if let Work::Level { .. } = self.ops[id].work {
            // Some cannot be brought forward. A member has holes there, and whatever a member has
            // is not older than what was acked: all get holes.
            let Op { offset, len, .. } = self.ops[id];
            self.mutate(id, offset, Change::Zeros { len }, true, VecDeque::new());
        } else if nobody_has_it || self.planted(Plant::NoWithdraw) {
            self.finish(id, Err(DeviceError::NoSpace));
        } else {
            let op = &mut self.ops[id];
            op.verdict = Err(DeviceError::NoSpace);
            // What makes room for an atomic write is the same content: every member has it.
            let from = if let Work::Atomic { .. } = op.work { Members::new() } else { refused };
            self.read(id, from, true);
        }
    }

    /// All members have what the mutation says.
    fn go_on(&mut self, id: usize) {
        let Op { extent, phase: Phase::Mutating(mutating), .. } = &mut self.ops[id] else {
            return;
        };
        if !mutating.put && !self.unreadable.is_empty() {
            let first = mutating.offset / BLOCK_BYTES;
            let blocks = u32::try_from(mutating.change.len()).expect("inside one extent") / BLOCK_BYTES;
            for block in first..first + blocks {
                self.unreadable.remove(&(*extent, block));
            }
        }
        let withdrawing = mutating.withdrawing;
        let mut rest = std::mem::take(&mut mutating.rest);
        match rest.pop_front() {
            Some((offset, change)) => self.mutate(id, offset, change, withdrawing, rest),
            None => self.finish(id, Ok(Bytes::new())),
        }
    }

    /// Old content goes back to all members: zeros as a discard, which needs no space even where
    /// the block is a hole, the rest as overwrites.
    pub(super) fn write_back_old(&mut self, id: usize, data: &Bytes) {
        let offset = self.ops[id].offset;
        let mut pieces: VecDeque<(u32, Change)> = VecDeque::new();
        for start in (0..data.len()).step_by(BLOCK_BYTES as usize) {
            let block = data.slice(start..start + BLOCK_BYTES as usize);
            let at = offset + u32::try_from(start).expect("inside one extent");
            let zeros = block.iter().all(|byte| *byte == 0);
            match pieces.back_mut() {
                Some((_, Change::Zeros { len })) if zeros => *len += BLOCK_BYTES,
                Some((first, Change::Data(run))) if !zeros => {
                    let from = (*first - offset) as usize;
                    *run = data.slice(from..start + BLOCK_BYTES as usize);
                }
                _ if zeros => pieces.push_back((at, Change::Zeros { len: BLOCK_BYTES })),
                _ => pieces.push_back((at, Change::Data(block))),
            }
        }
        if let Some((offset, change)) = pieces.pop_front() {
            self.mutate(id, offset, change, true, pieces);
        }
    }

    /// The members have changed.
    pub(super) fn refresh_op(&mut self, id: usize) {
        let Some(op) = self.ops.get(id) else {
            return;
        };
        let (members, writers) = (self.members(op.extent), self.writers(op.extent));
        let mut gone: Vec<u64> = Vec::new();
        let op = &mut self.ops[id];
        match &mut op.phase {
            Phase::Waiting => {}
            Phase::Healing(_) => self.refresh_heal(id),
            Phase::Reading(reading) => {
                if let Some(asked) = reading.asked
                    && !members.contains(&asked.disk)
                {
                    reading.asked = None;
                    gone.push(asked.tag);
                }
                let had_sources = !reading.from.is_empty();
                reading.from.retain(|disk| members.contains(disk));
                if had_sources && reading.from.is_empty() {
                    self.sources_left(id);
                } else {
                    self.ask(id);
                }
            }
            Phase::Mutating(mutating) => {
                mutating.legs.retain(|leg| {
                    let stays = writers.contains(&leg.disk);
                    if let (false, LegState::Sent(tag)) = (stays, leg.state) {
                        gone.push(tag);
                    }
                    stays
                });
                if !mutating.put {
                    for disk in &writers {
                        if !mutating.legs.iter().any(|leg| leg.disk == *disk) {
                            mutating.legs.push(parked(*disk));
                        }
                    }
                }
                self.send_parked(id);
                self.settle(id);
            }
        }
        for tag in gone {
            self.abandon(tag);
        }
    }

    /// Nobody whose content was wanted is a member any more.
    pub(super) fn sources_left(&mut self, id: usize) {
        let op = &mut self.ops[id];
        match &op.work {
            Work::Level { .. } if matches!(op.origin, Origin::HealPart { .. }) => {
                self.finish(id, Err(DeviceError::Busy));
            }
            Work::Heal { .. } | Work::Rewrite => {}
            Work::Level { .. } => {
                self.reconcile_again(self.ops[id].extent);
                self.finish(id, Ok(Bytes::new()));
            }
            // Those who had no space are gone: the change itself is tried again.
            Work::Write(change) => {
                let (offset, change) = (op.offset, change.clone());
                op.verdict = Ok(());
                self.change(id, offset, change);
            }
            // Asks any member, so it never gets here: it has changed nothing that could be withdrawn.
            Work::Modify { .. } | Work::Read { .. } | Work::Map | Work::Atomic { .. } => {
                self.read(id, Members::new(), false)
            }
        }
    }

    /// An operation is over.
    pub(super) fn finish(&mut self, id: usize, result: Result<Bytes, DeviceError>) {
        self.unlock(id);
        let op = self.ops.remove(id);
        self.held_bytes -= op.held_bytes();
        match &op.phase {
            Phase::Waiting => {}
            Phase::Reading(reading) => {
                if let Some(asked) = reading.asked {
                    self.abandon(asked.tag);
                }
            }
            Phase::Healing(healing) => {
                if let Some(asked) = healing.asked {
                    self.abandon(asked.tag);
                }
            }
            Phase::Mutating(mutating) => {
                for leg in &mutating.legs {
                    if let LegState::Sent(tag) = leg.state {
                        self.abandon(tag);
                    }
                }
            }
        }
        self.unresolved.remove(&op.seq);
        match op.origin {
            Origin::Command { command, part } => {
                self.part_done(command, Some(part), op.verdict.and(result));
            }
            Origin::Orphan => {}
            Origin::Repair => {
                self.repairs.remove(&(op.extent, op.offset / BLOCK_BYTES));
            }
            Origin::Heal => self.heal_over(&op),
            Origin::HealPart { heal } => self.heal_part_done(heal, &op.verdict.and(result)),
            Origin::Reconcile => self.levelled(op.extent),
            Origin::CatchUp { disk, check } => {
                let outcome = op.verdict.clone().and(result);
                self.copied(&op, disk, check, outcome.is_ok());
            }
        }
        if self.dirty.contains(&op.extent) {
            self.reconcile(op.extent);
        }
    }

    /// Lets those start who waited for an operation's blocks.
    pub(super) fn unlock(&mut self, id: usize) {
        let extent = self.ops[id].extent;
        if let Some(locks) = self.locks.get_mut(&extent) {
            locks.remove(id, |freed| self.ready.push_back(freed));
            if locks.is_empty() {
                self.locks.remove(&extent);
            }
        }
    }
}

fn parked(disk: DiskId) -> Leg {
    Leg { disk, state: LegState::Parked }
}

//! What an owner does beside commands: maps, time, flushes, watermarks, giving space back.

use std::collections::BTreeMap;

use lunette_proto::ids::{DiskId, ExtentId};
use lunette_proto::map::DiskState;
use lunette_proto::node::RequestBody;

use super::catch_up::CatchUps;
use super::event::{Action, Limits, Plant};
use super::heal::Heals;
use super::op::{Leg, LegState};
use super::sweep::Sweeps;
use super::view::View;
use super::{IDLE_TICK_MS, Owner, Stage, TICK_MS, What};
use crate::device::DeviceError;

/// A flush on its way to all disks.
#[derive(Debug)]
pub(super) struct Flush {
    commands: Vec<usize>,
    /// Every change up to this one was answered by all members before it began.
    covered: u64,
    legs: Vec<Leg>,
}

/// A watermark on its way to all disks.
#[derive(Debug)]
pub(super) struct Mark {
    seq: u64,
    legs: Vec<Leg>,
}

/// A deleted volume's space on its way back.
#[derive(Debug)]
pub(super) struct Purge {
    legs: BTreeMap<DiskId, LegState>,
}

impl Owner {
    /// A newer map.
    pub(super) fn see(&mut self, view: View) {
        if view.epoch < self.view.epoch || self.is_over() {
            return;
        }
        let earlier = std::mem::replace(&mut self.view, view);
        self.follow_behind();
        self.follow_moves(Some(&earlier));
        if self.is_purging() {
            self.refresh_purge();
            return;
        }
        if self.view.deleting {
            self.stop_draining(&DeviceError::Gone);
            self.end_hand_over(&DeviceError::Gone);
            self.refuse_waiting();
            self.purge_if_idle();
        }
        if !self.is_serving() {
            return;
        }
        let ids: Vec<usize> = self.ops.iter().map(|(id, _)| id).collect();
        for id in ids {
            self.refresh_op(id);
        }
        self.refresh_heals();
        self.refresh_reconciles();
        self.refresh_flush();
        self.refresh_mark();
        self.refresh_grants();
        self.seal_all();
        self.wake_all();
    }

    pub(super) fn tick(&mut self) {
        if self.is_over() {
            return;
        }
        self.tick_disks();
        if self.is_purging() {
            return;
        }
        if self.view.deleting {
            self.refuse_waiting();
            self.purge_if_idle();
        }
        if !self.is_serving() {
            return;
        }
        self.seal_all();
        self.tick_commands();
        self.tick_hand_over();
        self.tick_reads();
        self.tick_grants();
        self.tick_heals();
        self.tick_catch_ups();
        self.drive_sweeps();
        self.start_flush();
        self.tick_watermark();
    }

    pub(super) fn set_timer(&mut self) {
        let (now, timer) = (self.now, self.timer.filter(|at| *at > self.now));
        let busy = !self.commands.is_empty();
        // It is looked at with every event, so the usual case comes first.
        if self.is_over() || busy && timer.is_some_and(|at| at <= now + TICK_MS) {
            return;
        }
        // What nobody waits for goes on by itself, but for copies that take long to be read.
        let slow = !self.ops.is_empty()
            || !self.reconciles.is_empty()
            || !self.catch_ups.is_empty()
            || self.flush.is_some()
            || self.is_draining();
        let due = [
            busy.then_some(now + TICK_MS),
            slow.then_some(now + IDLE_TICK_MS),
            self.disks_due().map(|at| at.max(now + 1)),
            self.sweeps_due().map(|at| at.max(now + TICK_MS)),
            self.mark_due(),
            self.hand_over.due().map(|at| at.max(now + 1)),
        ];
        let due = due.into_iter().flatten().min();
        if let Some(at_ms) = due
            && timer.is_none_or(|at| at > at_ms)
        {
            self.timer = due;
            self.out.push(Action::SetTimer { at_ms });
        }
    }

    /// A higher generation exists: whatever is still on its way is refused by the disks that count.
    pub(super) fn lose_ownership(&mut self) {
        self.stop(DeviceError::NotOwner);
    }

    /// A disk says that the volume was deleted. Unless that is our own doing, we are not the owner.
    pub(super) fn found_deleted(&mut self) {
        if !self.is_purging() {
            self.stop(DeviceError::Gone);
        }
    }

    fn stop(&mut self, error: DeviceError) {
        if self.is_over() {
            return;
        }
        self.fail_all(&error);
        self.drop_everything();
        self.give_grants_back();
        self.stage = Stage::Stopped(error);
    }

    fn drop_everything(&mut self) {
        self.ops.clear();
        self.held_bytes = 0;
        self.locks.clear();
        self.ready.clear();
        self.reconciles.clear();
        self.dirty.clear();
        self.repairs.clear();
        self.heals = Heals::default();
        self.catch_ups = CatchUps::default();
        self.sweeps = Sweeps::default();
        self.unresolved.clear();
        self.unflushed.clear();
        self.changed.clear();
        self.mark = None;
        self.flush = None;
        for (_, pending) in &mut self.pending {
            pending.what = What::Abandoned;
        }
    }

    // Flushes and watermarks.

    /// Every change up to it is on all members in sync, or was replaced there by a later one.
    pub(super) fn settled_seq(&self) -> u64 {
        if self.planted(Plant::WatermarkTooFar) {
            return self.last_seq;
        }
        self.unresolved.first().map_or(self.last_seq, |first| first - 1)
    }

    pub(super) fn queue_flush(&mut self, id: usize) {
        if self.is_volatile() {
            self.flush_waiting.push(id);
            self.start_flush();
        } else {
            // What was completed is durable already.
            self.flush_done(id, Ok(()));
        }
    }

    /// Begins the flush that somebody waits for, or the cache. One at a time: those that come later must cover
    /// what was completed later.
    pub(super) fn start_flush(&mut self) {
        if !self.flush_waiting.is_empty() || self.wants_drain() {
            self.begin_flush();
        }
    }

    pub(super) fn begin_flush(&mut self) {
        if self.flush.is_some() || !self.is_serving() || !self.all_sealed() || !self.dirty.is_empty() {
            return;
        }
        let commands = std::mem::take(&mut self.flush_waiting);
        for command in &commands {
            self.commands[*command].touched = true;
        }
        let legs =
            self.joined_disks().into_iter().map(|disk| Leg { disk, state: LegState::Parked }).collect();
        self.flush = Some(Flush { commands, covered: self.settled_seq(), legs });
        self.unpark_flush();
    }

    pub(super) fn unpark_flush(&mut self) {
        let Some(flush) = &self.flush else {
            return;
        };
        let parked: Vec<DiskId> = flush
            .legs
            .iter()
            .filter(|leg| leg.state == LegState::Parked && self.is_usable(leg.disk))
            .map(|leg| leg.disk)
            .collect();
        for disk in parked {
            let body = RequestBody::Flush { namespace: self.namespace, generation: self.config.generation };
            let tag = self.send(disk, body, What::Flush);
            self.set_flush(disk, LegState::Sent(tag));
        }
    }

    fn set_flush(&mut self, disk: DiskId, state: LegState) {
        if let Some(flush) = &mut self.flush
            && let Some(leg) = flush.legs.iter_mut().find(|leg| leg.disk == disk)
        {
            leg.state = state;
        }
    }

    pub(super) fn flush_answered(&mut self, disk: DiskId, done: bool) {
        self.set_flush(disk, if done { LegState::Done } else { LegState::Parked });
        self.flush_settle();
    }

    /// The flush is over when all disks have answered, and what a lost one of them may have
    /// forgotten has been brought back to it.
    pub(super) fn flush_settle(&mut self) {
        if !self.dirty.is_empty() {
            return;
        }
        let Some(flush) = self.flush.take_if(|it| it.legs.iter().all(|leg| leg.state == LegState::Done))
        else {
            return self.start_flush();
        };
        flush.legs.iter().for_each(|leg| self.catch_ups.flushed(leg.disk));
        self.unflushed.retain(|_, newest| *newest > flush.covered);
        self.flushed = Some(flush.covered);
        self.drained(flush.covered);
        for command in flush.commands {
            self.flush_done(command, Ok(()));
        }
        self.start_flush();
    }

    pub(super) fn refresh_flush(&mut self) {
        let joined = self.joined_disks();
        let Some(flush) = &mut self.flush else {
            return;
        };
        let mut gone = Vec::new();
        flush.legs.retain(|leg| {
            let stays = joined.contains(&leg.disk);
            if let (false, LegState::Sent(tag)) = (stays, leg.state) {
                gone.push(tag);
            }
            stays
        });
        for tag in gone {
            self.abandon(tag);
        }
        self.flush_settle();
    }

    /// A flush command is answered before its time.
    pub(super) fn forget_flush(&mut self, id: usize) {
        self.flush_waiting.retain(|other| *other != id);
        if let Some(flush) = &mut self.flush {
            flush.commands.retain(|other| *other != id);
        }
    }

    /// Whether a watermark can be sent. Not before everything that the takeover found has been compared: it
    /// covers what older generations wrote, too.
    fn can_mark(&self) -> bool {
        self.is_serving() && self.unreadable.is_empty() && self.dirty.is_empty() && self.all_sealed()
    }

    /// When the next watermark is due.
    fn mark_due(&self) -> Option<u64> {
        let news = self.mark.as_ref().is_none_or(|mark| mark.seq != self.settled_seq());
        let next = (news && self.flush.is_none() && self.can_mark())
            .then(|| self.mark_ms + self.config.limits.watermark_ms);
        [next, self.survey_due()].into_iter().flatten().min().map(|at| at.max(self.now + TICK_MS))
    }

    /// When the last watermark is to be repeated, to learn what is damaged: soon where something is, now and then
    /// otherwise. It says nothing new, so it needs nothing to be compared.
    fn survey_due(&self) -> Option<u64> {
        let Limits { watermark_ms, survey_ms, .. } = self.config.limits;
        let is_answered = |mark: &Mark| !mark.legs.iter().any(|leg| matches!(leg.state, LegState::Sent(_)));
        let may_repeat =
            self.is_serving() && self.all_sealed() && self.mark.as_ref().is_some_and(is_answered);
        let after_ms = if self.heals.is_damaged() { Some(watermark_ms) } else { survey_ms };
        after_ms.filter(|_| may_repeat).map(|after_ms| self.mark_ms + after_ms)
    }

    /// Tells the disks what needs no comparison after a takeover, at once if changes wait for that.
    fn tick_watermark(&mut self) {
        let settled = self.settled_seq();
        let marked = self.mark.as_ref().map(|mark| mark.seq);
        let is_time = self.crowded || self.now >= self.mark_ms + self.config.limits.watermark_ms;
        if marked == Some(settled) || !is_time || !self.can_mark() {
            return self.tick_survey();
        }
        let mut seq = settled;
        if self.is_volatile() {
            if self.flushed.is_none_or(|flushed| flushed < settled) {
                self.begin_flush();
            }
            match self.flushed {
                Some(flushed) if !self.planted(Plant::WatermarkTooFar) => seq = seq.min(flushed),
                Some(_) => {}
                None => return,
            }
        }
        if marked.is_some_and(|sent| sent >= seq) {
            return self.tick_survey();
        }
        self.mark(seq);
    }

    /// Whether everything is on stable media, and every disk knows that nothing needs to be compared; does what is
    /// missing.
    pub(super) fn is_settled(&mut self) -> bool {
        let seq = self.settled_seq();
        if self.is_volatile() && self.flushed.is_none_or(|flushed| flushed < seq) {
            self.begin_flush();
            return false;
        }
        if !self.dirty.is_empty() || !self.all_sealed() {
            return false;
        }
        // What is unreadable has to be found again, so there is no watermark.
        if self.can_mark() && self.mark.as_ref().is_none_or(|mark| mark.seq < seq) {
            self.mark(seq);
        }
        // Of the others, one that cannot be reached keeps nobody waiting.
        let knows = |leg: &Leg| match leg.state {
            LegState::Done => true,
            LegState::Parked => !self.view.pool.is_counted(leg.disk),
            LegState::Sent(_) | LegState::NoSpace => false,
        };
        !self.can_mark() || self.mark.as_ref().is_some_and(|mark| mark.legs.iter().all(knows))
    }

    fn tick_survey(&mut self) {
        if let Some(seq) = self.mark.as_ref().map(|mark| mark.seq)
            && self.survey_due().is_some_and(|due| due <= self.now)
        {
            self.mark(seq);
        }
    }

    fn mark(&mut self, seq: u64) {
        let parked = |disk| Leg { disk, state: LegState::Parked };
        let disks = self.view.pool.disks().map(|(disk, _)| disk).filter(|disk| self.uses(*disk));
        let legs = disks.map(parked).collect();
        if let Some(old) = self.mark.replace(Mark { seq, legs }) {
            self.abandon_legs(&old.legs);
        }
        self.mark_ms = self.now;
        self.send_marks();
    }

    pub(super) fn send_marks(&mut self) {
        let Some(Mark { seq, legs }) = &self.mark else {
            return;
        };
        let seq = *seq;
        let parked: Vec<(usize, DiskId)> = legs
            .iter()
            .enumerate()
            .filter(|(_, leg)| leg.state == LegState::Parked && self.takes_marks(leg.disk))
            .map(|(at, leg)| (at, leg.disk))
            .collect();
        for (at, disk) in parked {
            let (namespace, generation) = (self.namespace, self.config.generation);
            let complete = self.view.pool.is_complete(disk) || self.planted(Plant::CompleteTooEarly);
            let body = RequestBody::Watermark { namespace, generation, seq, complete };
            let tag = self.send(disk, body, What::Watermark);
            if let Some(mark) = &mut self.mark {
                mark.legs[at].state = LegState::Sent(tag);
            }
        }
    }

    pub(super) fn mark_answered(&mut self, disk: DiskId, tag: u64, done: bool) {
        if let Some(mark) = &mut self.mark
            && let Some(leg) = mark.legs.iter_mut().find(|leg| leg.state == LegState::Sent(tag))
        {
            debug_assert_eq!(leg.disk, disk, "an answer comes from where the request went");
            leg.state = if done { LegState::Done } else { LegState::Parked };
            self.settle_mark();
        }
    }

    fn refresh_mark(&mut self) {
        let Some(mark) = &mut self.mark else {
            return;
        };
        let legs = std::mem::take(&mut mark.legs);
        let (mut stay, gone): (Vec<Leg>, Vec<Leg>) = legs.into_iter().partition(|leg| self.uses(leg.disk));
        // One that is new here may list so much as changed that it takes no more before it has heard of it.
        let used = self.view.pool.disks().map(|(disk, _)| disk).filter(|disk| self.uses(*disk));
        let new: Vec<DiskId> = used.filter(|disk| stay.iter().all(|leg| leg.disk != *disk)).collect();
        stay.extend(new.into_iter().map(|disk| Leg { disk, state: LegState::Parked }));
        if let Some(mark) = &mut self.mark {
            mark.legs = stay;
        }
        self.abandon_legs(&gone);
        self.send_marks();
        self.settle_mark();
    }

    /// Disks that have a watermark list no more what it covers. One that cannot be reached holds only the
    /// extents up that it keeps.
    fn settle_mark(&mut self) {
        let Some(Mark { seq, legs }) = &self.mark else {
            return;
        };
        if legs.iter().any(|leg| matches!(leg.state, LegState::Sent(_))) {
            return;
        }
        let away: Vec<DiskId> =
            legs.iter().filter(|leg| leg.state != LegState::Done).map(|leg| leg.disk).collect();
        let (pool, namespace, seq) = (&self.view.pool, self.namespace, *seq);
        let is_listed = |index: u64| {
            !away.is_empty()
                && pool.in_sync(ExtentId { namespace, index }).iter().any(|disk| away.contains(disk))
        };
        self.changed.retain(|extent, newest| *newest > seq || is_listed(*extent));
        if self.crowded && self.changed.len() < self.config.limits.dirty_max {
            self.crowded = false;
            self.wake_all();
        }
    }

    /// Whether a change of an extent may begin: it is among those that disks list as changed, or there is
    /// room for one more. What waits has no sequence number yet, so it does not hold the watermark back.
    pub(super) fn has_room_to_change(&mut self, extent: u64) -> bool {
        if self.changed.len() < self.config.limits.dirty_max
            || self.changed.contains_key(&extent)
            || self.planted(Plant::NoRoomForChanges)
        {
            return true;
        }
        self.crowded = true;
        false
    }

    fn abandon_legs(&mut self, legs: &[Leg]) {
        for leg in legs {
            if let LegState::Sent(tag) = leg.state {
                self.abandon(tag);
            }
        }
    }

    // Deletion.

    /// Gives the space back once nobody waits for anything any more.
    pub(super) fn purge_if_idle(&mut self) {
        if !self.view.deleting || !self.is_serving() || !self.commands.is_empty() {
            return;
        }
        // Changes that are still on their way come before the deletion or are refused after it.
        self.drop_everything();
        self.stage = Stage::Purging(Purge { legs: BTreeMap::new() });
        self.refresh_purge();
    }

    fn refresh_purge(&mut self) {
        let there: Vec<DiskId> = self
            .view
            .pool
            .disks()
            .filter(|(_, standing)| standing.state != DiskState::Out)
            .map(|(disk, _)| disk)
            .collect();
        if let Stage::Purging(purge) = &mut self.stage {
            purge.legs.retain(|disk, _| there.contains(disk));
            for disk in there {
                purge.legs.entry(disk).or_insert(LegState::Parked);
            }
        }
        self.unpark_purge();
        self.settle_purge();
    }

    pub(super) fn unpark_purge(&mut self) {
        let Stage::Purging(purge) = &self.stage else {
            return;
        };
        let parked: Vec<DiskId> = purge
            .legs
            .iter()
            .filter(|(_, state)| **state == LegState::Parked)
            .map(|(disk, _)| *disk)
            .collect();
        for disk in parked {
            if self.disk(disk).link == super::disks::Link::Up {
                let body =
                    RequestBody::Delete { namespace: self.namespace, generation: self.config.generation };
                let tag = self.send(disk, body, What::Delete);
                self.set_purge(disk, LegState::Sent(tag));
            }
        }
    }

    fn set_purge(&mut self, disk: DiskId, state: LegState) {
        if let Stage::Purging(purge) = &mut self.stage
            && let Some(leg) = purge.legs.get_mut(&disk)
        {
            *leg = state;
        }
    }

    /// Whether a disk still has to give space back.
    pub(super) fn purges(&self, disk: DiskId) -> bool {
        match &self.stage {
            Stage::Purging(purge) => purge.legs.get(&disk).is_some_and(|state| *state != LegState::Done),
            Stage::Serving | Stage::Purged | Stage::Stopped(_) => false,
        }
    }

    pub(super) fn deleted(&mut self, disk: DiskId, done: bool) {
        if !done && self.disk(disk).link == super::disks::Link::Up {
            self.rest(disk);
        }
        self.set_purge(disk, if done { LegState::Done } else { LegState::Parked });
        self.settle_purge();
    }

    fn settle_purge(&mut self) {
        if let Stage::Purging(purge) = &self.stage
            && purge.legs.values().all(|state| *state == LegState::Done)
        {
            self.stage = Stage::Purged;
            self.out.push(Action::Purged);
        }
    }
}

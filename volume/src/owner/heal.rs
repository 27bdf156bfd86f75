//! Repair of what disks name as damaged: their scrubbers find it, and say so with the answer to a watermark.
//!
//! ```text
//!     named --> waiting --few at a time--> locked --> versions of one good member --> read there --> Puts to the bad one
//!                  ^                                        ^---- its copy is bad too: the next ----'
//!                  '---- one block at a time, if no member has the whole run
//! ```
//!
//! Under the lock nothing is in flight on the blocks, so all members in sync agree on their versions, and versions and
//! content of one of them are what the damaged one should have: they are read at once, it gets them piece by piece under the
//! same versions (invariants 8 and 9), and nobody else is touched. Blocks that were never written have no version to be
//! put under; where a disk has lost track of them, all members get zeros there, as by a discard.
//!
//! What cannot be repaired now (a member is away, or busy) is let go: its disk names it again. What no member has is
//! counted until one has it, or it is overwritten.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use lunette_proto::ids::{DiskId, Version};
use lunette_proto::limits::BLOCK_BYTES;
use lunette_proto::node::{BlockVersion, Change, DamagedRun, Durability, ReplyBody, RequestBody};

use super::disks::EXTENTS_MAX;
use super::event::Plant;
use super::gaps::fits;
use super::op::{Asked, Op, Origin, Phase, Work};
use super::view::Members;
use super::{Answer, Owner, What};
use crate::device::DeviceError;

/// Runs that are being repaired at the same time.
const HEALS_MAX: usize = 2;
/// Blocks of one of them: they are locked meanwhile.
const BLOCKS_MAX: u32 = 64;
/// Blocks without a good copy that are counted one by one.
const HOPELESS_MAX: usize = 4096;

/// What is known to be damaged and waits for its repair.
#[derive(Debug, Default)]
pub(super) struct Heals {
    waiting: VecDeque<(DiskId, DamagedRun)>,
    running: Vec<(DiskId, DamagedRun)>,
    /// Disks that named damage in their last answer.
    damaged: BTreeSet<DiskId>,
    /// Blocks of which no member in sync has a good copy: disk, extent, block.
    hopeless: BTreeSet<(DiskId, u64, u32)>,
    /// Blocks that were put back.
    healed: u64,
}

impl Heals {
    pub(super) fn is_damaged(&self) -> bool {
        !self.damaged.is_empty()
    }
}

/// Where a repair stands: asking one member for versions, or waiting for its parts.
#[derive(Debug, Default)]
pub(super) struct Healing {
    pub(super) asked: Option<Asked>,
    /// What it has, while it is asked for the content.
    pieces: Vec<Piece>,
    /// The member whose copy is taken.
    source: Option<DiskId>,
    /// Members whose copy was found bad.
    tried: Members,
    /// Parts that are not finished, and one more while they are being queued.
    parts: usize,
    source_is_bad: bool,
    gave_up: bool,
}

impl Owner {
    /// Blocks that are damaged on some member, and of which no member in sync has a good copy.
    #[must_use]
    pub fn hopeless_blocks(&self) -> usize {
        self.heals.hopeless.len()
    }

    /// Damaged blocks that this owner has brought back from another member.
    #[must_use]
    pub fn healed_blocks(&self) -> u64 {
        self.heals.healed
    }

    /// A disk has said what is damaged on it; what it said before counts no more.
    pub(super) fn damage_named(&mut self, disk: DiskId, runs: &[DamagedRun]) {
        if runs.iter().any(|run| run.index >= EXTENTS_MAX) {
            return self.distrust(disk);
        }
        // What it has left of copies that have moved away is nobody's.
        let is_held = |run: &&DamagedRun| {
            let extent = self.extent(run.index);
            self.view.pool.is_held(disk, self.view.pool.partition(extent))
        };
        let runs: Vec<DamagedRun> = runs.iter().filter(is_held).copied().collect();
        let heals = &mut self.heals;
        heals.waiting.retain(|(of, _)| *of != disk);
        if runs.is_empty() {
            heals.damaged.remove(&disk);
            heals.hopeless.retain(|(of, ..)| *of != disk);
            return;
        }
        heals.damaged.insert(disk);
        for run in runs {
            let end = run.first + run.blocks;
            for first in (run.first..end).step_by(BLOCKS_MAX as usize) {
                let piece = DamagedRun { first, blocks: BLOCKS_MAX.min(end - first), ..run };
                let is_at_work = |(of, other): &(DiskId, DamagedRun)| {
                    *of == disk
                        && other.index == piece.index
                        && other.first < piece.first + piece.blocks
                        && piece.first < other.first + other.blocks
                };
                if !heals.running.iter().any(is_at_work) {
                    heals.waiting.push_back((disk, piece));
                }
            }
        }
        self.start_heals();
    }

    /// Begins with what waits, as much as may go on at once.
    fn start_heals(&mut self) {
        while self.heals.running.len() < HEALS_MAX && self.is_serving() && !self.view.deleting {
            let Some((disk, run)) = self.heals.waiting.pop_front() else {
                return;
            };
            let members = self.members(run.index);
            if !members.contains(&disk) {
                continue;
            }
            if members.len() == 1 {
                self.lose_hope(disk, run);
            } else if self.can_repair(run.index) {
                self.heals.running.push((disk, run));
                let (offset, len) = (run.first * BLOCK_BYTES, run.blocks * BLOCK_BYTES);
                let work = Work::Heal { disk };
                self.add_op(Origin::Heal, run.index, offset, len, work, Durability::Stable);
            }
        }
    }

    /// A repair has its lock.
    pub(super) fn heal(&mut self, id: usize) {
        self.ops[id].phase = Phase::Healing(Healing::default());
        self.ask_heal(id);
    }

    /// Asks the next member that may have good copies which versions it has.
    fn ask_heal(&mut self, id: usize) {
        let Some(Op { extent, work: Work::Heal { disk }, phase: Phase::Healing(healing), .. }) =
            self.ops.get(id)
        else {
            return;
        };
        let (extent, damaged) = (*extent, *disk);
        let mut sources = self.members(extent);
        let is_member = self.writers(extent).contains(&damaged);
        sources.retain(|disk| *disk != damaged && !healing.tried.contains(disk));
        if self.planted(Plant::HealFromItself) {
            sources = [damaged].into_iter().filter(|disk| !healing.tried.contains(disk)).collect();
        }
        if sources.is_empty() && is_member {
            return self.heal_exhausted(id);
        }
        let usable = sources.iter().copied().filter(|disk| self.is_usable(*disk));
        let best = usable.min_by_key(|disk| {
            let outstanding = self.disks.get(disk).map_or(0, |disk| disk.outstanding);
            (!self.view.pool.is_local(*disk), outstanding)
        });
        let Some(source) = best.filter(|_| is_member) else {
            return self.finish(id, Err(DeviceError::Busy));
        };
        let body = RequestBody::Versions { extent: self.extent(extent), generation: self.config.generation };
        let tag = self.send(source, body, What::Heal { op: id });
        let since_ms = self.now;
        if let Phase::Healing(healing) = &mut self.ops[id].phase {
            healing.source = Some(source);
            healing.asked = Some(Asked { disk: source, tag, since_ms });
        }
    }

    pub(super) fn heal_answered(&mut self, id: usize, source: DiskId, answer: Answer) {
        let Some(Op { len, phase: Phase::Healing(healing), .. }) = self.ops.get_mut(id) else {
            return;
        };
        healing.asked = None;
        let pieces = std::mem::take(&mut healing.pieces);
        match answer {
            Answer::Body(ReplyBody::Versions(runs))
                if pieces.is_empty() && fits(&runs, self.config.generation) =>
            {
                self.heal_from(id, source, &runs);
            }
            Answer::Body(ReplyBody::Data(data)) if !pieces.is_empty() && data.len() == *len as usize => {
                self.heal_pieces(id, source, pieces, Some(&data));
            }
            // Some block is bad there: one by one, so that it is known which.
            Answer::Corrupt(_) if !pieces.is_empty() => self.heal_pieces(id, source, pieces, None),
            Answer::Body(_) => {
                self.distrust(source);
                self.finish(id, Err(DeviceError::Busy));
            }
            answer => {
                self.rest_after(source, &answer);
                self.finish(id, Err(DeviceError::Busy));
            }
        }
    }

    /// Brings the damaged member to what `source` has.
    fn heal_from(&mut self, id: usize, source: DiskId, runs: &[BlockVersion]) {
        let pieces = pieces(runs, self.ops[id].blocks());
        let Op { extent, offset, len, phase: Phase::Healing(healing), .. } = &mut self.ops[id] else {
            return;
        };
        healing.source_is_bad = false;
        // A disk that knows neither version nor content of a block has lost it, too.
        if pieces.iter().any(|piece| piece.version == Version::NONE && !piece.hole) {
            healing.parts = 1;
            return self.heal_part_done(id, &Err(DeviceError::Medium { offset: 0 }));
        }
        if pieces.iter().filter(|piece| !piece.hole).count() <= 1 {
            return self.heal_pieces(id, source, pieces, None);
        }
        // Blocks that were written one by one have many versions: one answer brings all of them.
        healing.pieces = pieces;
        let (extent, offset, len) = (*extent, *offset, *len);
        let (extent, generation, since_ms) = (self.extent(extent), self.config.generation, self.now);
        let body = RequestBody::Read { extent, generation, offset, len };
        let tag = self.send(source, body, What::Heal { op: id });
        if let Phase::Healing(healing) = &mut self.ops[id].phase {
            healing.asked = Some(Asked { disk: source, tag, since_ms });
        }
    }

    /// Brings the damaged member to these versions; the content of the whole may have been read already.
    fn heal_pieces(&mut self, id: usize, source: DiskId, pieces: Vec<Piece>, data: Option<&Bytes>) {
        let Some(Op {
            extent, offset: start, work: Work::Heal { disk }, phase: Phase::Healing(healing), ..
        }) = self.ops.get_mut(id)
        else {
            return;
        };
        let (extent, start, damaged) = (*extent, *start, *disk);
        // One more while they are being queued.
        healing.parts = 1;
        for Piece { first, blocks, mut version, hole } in pieces {
            let (offset, len) = (first * BLOCK_BYTES, blocks * BLOCK_BYTES);
            let never_written = version == Version::NONE;
            if self.planted(Plant::HealNewVersion) && !never_written {
                version.seq += 1;
            }
            let lagging = Members::from_slice(&[damaged]);
            let sources = Members::from_slice(&[source]);
            let work = if never_written {
                Work::Write(Change::Zeros { len })
            } else {
                let (sources, lagging) = (sources.clone(), lagging.clone());
                Work::Level { version, hole, or_hole: false, sources, lagging }
            };
            let part = self.ops.insert(Op {
                origin: Origin::HealPart { heal: id },
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
            if let Phase::Healing(healing) = &mut self.ops[id].phase {
                healing.parts += 1;
            }
            if never_written {
                self.change(part, offset, Change::Zeros { len });
            } else if hole {
                self.put(part, Change::Zeros { len }, version, &lagging);
            } else if let Some(data) = data {
                let from = (offset - start) as usize;
                self.put(part, Change::Data(data.slice(from..from + len as usize)), version, &lagging);
            } else {
                self.read(part, sources, false);
            }
        }
        self.heal_part_done(id, &Ok(Bytes::new()));
    }

    /// A part of a repair is over; the queuing itself is one.
    pub(super) fn heal_part_done(&mut self, id: usize, result: &Result<Bytes, DeviceError>) {
        let Some(Op { phase: Phase::Healing(healing), .. }) = self.ops.get_mut(id) else {
            return;
        };
        healing.parts -= 1;
        match result {
            Ok(_) => {}
            Err(DeviceError::Medium { .. }) => healing.source_is_bad = true,
            Err(_) => healing.gave_up = true,
        }
        if healing.parts > 0 {
            return;
        }
        if healing.gave_up {
            return self.finish(id, Err(DeviceError::Busy));
        }
        if healing.source_is_bad {
            healing.tried.extend(healing.source);
            return self.ask_heal(id);
        }
        let (extent, blocks) = (self.ops[id].extent, self.ops[id].blocks());
        if let Op { origin: Origin::Heal, work: Work::Heal { disk }, .. } = self.ops[id] {
            self.heals.healed += blocks.len() as u64;
            for block in blocks {
                self.heals.hopeless.remove(&(disk, extent, block));
            }
        }
        self.finish(id, Ok(Bytes::new()));
    }

    /// No member has all the blocks.
    fn heal_exhausted(&mut self, id: usize) {
        let op = &self.ops[id];
        let (index, blocks) = (op.extent, op.blocks());
        if let Op { origin: Origin::Heal, work: Work::Heal { disk }, .. } = *op {
            if blocks.len() > 1 {
                // Perhaps each of them is good somewhere.
                for first in blocks.rev() {
                    self.heals.waiting.push_front((disk, DamagedRun { index, first, blocks: 1 }));
                }
            } else {
                self.lose_hope(disk, DamagedRun { index, first: blocks.start, blocks: 1 });
            }
        }
        self.finish(id, Err(DeviceError::Busy));
    }

    fn lose_hope(&mut self, disk: DiskId, run: DamagedRun) {
        for block in run.first..run.first + run.blocks {
            if self.heals.hopeless.len() < HOPELESS_MAX {
                self.heals.hopeless.insert((disk, run.index, block));
            }
        }
    }

    /// A repair is over, one way or the other.
    pub(super) fn heal_over(&mut self, op: &Op) {
        let blocks = op.blocks();
        if let Work::Heal { disk } = op.work {
            self.heals
                .running
                .retain(|(of, run)| (*of, run.index, run.first) != (disk, op.extent, blocks.start));
        }
        self.start_heals();
    }

    /// Lets go of repairs whose source takes long: readers wait for their blocks.
    pub(super) fn tick_heals(&mut self) {
        if self.heals.running.is_empty() && self.catch_ups.is_empty() {
            return;
        }
        let ids: Vec<usize> = self.ops.iter().map(|(id, _)| id).collect();
        for id in ids {
            // Looked at again: one that is over may have ended others, or begun some.
            if self.is_stuck(id) {
                self.finish(id, Err(DeviceError::Busy));
            }
        }
    }

    fn is_stuck(&self, id: usize) -> bool {
        let is_late = |asked: Asked| self.now - asked.since_ms >= self.config.limits.hedge_ms;
        match self.ops.get(id).map(|op| (op.origin, &op.phase)) {
            Some((Origin::Heal | Origin::CatchUp { .. }, Phase::Healing(healing))) => {
                healing.asked.is_some_and(is_late)
            }
            // What has no member to ask waits for one that is away.
            Some((Origin::HealPart { .. }, Phase::Reading(reading))) => {
                !reading.withdrawing && reading.asked.is_none_or(is_late)
            }
            _ => false,
        }
    }

    /// The members have changed: what is no member needs no repair.
    pub(super) fn refresh_heals(&mut self) {
        let (heals, pool) = (&mut self.heals, &self.view.pool);
        heals.waiting.retain(|(disk, _)| pool.is_counted(*disk));
        heals.damaged.retain(|disk| pool.is_counted(*disk));
        heals.hopeless.retain(|(disk, ..)| pool.is_counted(*disk));
    }

    /// The members may have changed: a repair that asks one which is none any more is let go.
    pub(super) fn refresh_heal(&mut self, id: usize) {
        let Some(Op { extent, work: Work::Heal { disk }, phase: Phase::Healing(healing), .. }) =
            self.ops.get(id)
        else {
            return;
        };
        let (members, writers) = (self.members(*extent), self.writers(*extent));
        let stays = writers.contains(disk) && healing.asked.is_none_or(|asked| members.contains(&asked.disk));
        if !stays && healing.parts == 0 {
            self.finish(id, Err(DeviceError::Busy));
        }
    }
}

/// Blocks side by side that are alike on a member.
#[derive(Debug, PartialEq, Eq)]
struct Piece {
    first: u32,
    blocks: u32,
    version: Version,
    hole: bool,
}

/// What a member has in some of an extent's blocks, by its list of runs.
fn pieces(runs: &[BlockVersion], blocks: std::ops::Range<u32>) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    let mut at = 0;
    for run in runs {
        let (first, end) = (blocks.start.max(at), blocks.end.min(at + run.blocks));
        if first < end {
            pieces.push(Piece { first, blocks: end - first, version: run.version, hole: run.hole });
        }
        at += run.blocks;
    }
    // What follows the last run was never written.
    let first = blocks.start.max(at);
    if first < blocks.end {
        pieces.push(Piece { first, blocks: blocks.end - first, version: Version::NONE, hole: true });
    }
    pieces
}

#[cfg(test)]
mod tests {
    use lunette_proto::ids::Generation;

    use super::*;

    /// Guards the cutting of a member's list: every block once, with what the list says of it.
    #[test]
    fn pieces_are_what_the_list_says() {
        let version = |seq| Version { generation: Generation(1), seq };
        let run = |blocks, seq| BlockVersion { blocks, version: version(seq), hole: seq == 2 };
        let piece = |first, blocks, seq| Piece { first, blocks, version: version(seq), hole: seq == 2 };
        let never = |first, blocks| Piece { first, blocks, version: Version::NONE, hole: true };
        let list = [run(4, 1), run(2, 2), run(4, 3)];
        assert_eq!(pieces(&list, 0..10), [piece(0, 4, 1), piece(4, 2, 2), piece(6, 4, 3)]);
        assert_eq!(pieces(&list, 3..7), [piece(3, 1, 1), piece(4, 2, 2), piece(6, 1, 3)]);
        assert_eq!(pieces(&list, 9..12), [piece(9, 1, 3), never(10, 2)]);
        assert_eq!(pieces(&list, 20..22), [never(20, 2)]);
        assert_eq!(pieces(&[], 0..1), [never(0, 1)]);
    }
}

//! Looking at the extents of a copy that may differ, and copying what does.

use std::collections::{BTreeSet, VecDeque};

use lunette_proto::ids::{DiskId, Partition, Version};
use lunette_proto::limits::{BLOCK_BYTES, EXTENT_BLOCKS};
use lunette_proto::node::{BlockVersion, Durability, ReplyBody, RequestBody};

use super::LATER_MS;
use crate::owner::event::{Action, Plant};
use crate::owner::gaps::fits;
use crate::owner::op::{Op, Origin, Work};
use crate::owner::{Answer, Owner, What};

/// Partitions of a disk with extents to look at that changes go to at the same time.
const JOINED_MAX: usize = 4;
/// Extents of a disk that are looked at at the same time.
const CHECKS_MAX: usize = 4;
/// Runs of blocks of one of them that are locked and copied at the same time.
const COPIES_MAX: usize = 2;
/// Blocks of one run.
const BLOCKS_MAX: u32 = 64;

/// An extent that is looked at.
#[derive(Debug)]
pub(super) struct Check {
    /// What was begun by another check of the extent has no effect on this one.
    number: u64,
    pub(super) theirs: Look,
    pub(super) own: Look,
    pub(super) todo: VecDeque<Differing>,
    pub(super) running: usize,
    pub(super) failed: bool,
    /// Something happened to it meanwhile: once more.
    pub(super) again: bool,
}

#[derive(Debug)]
pub(super) enum Look {
    Asked(u64),
    Have(Vec<BlockVersion>),
}

/// Blocks side by side in which a copy differs in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Differing {
    first: u32,
    blocks: u32,
    /// The copy has something that members do not have.
    ahead: bool,
}

impl Owner {
    pub(super) fn join(&mut self, disk: DiskId) {
        let Some(run) = self.catch_ups.runs.get_mut(&disk) else { return };
        let mut busy = run.copies.values().filter(|copy| copy.joined && !copy.queue.is_empty()).count();
        let mut joined = BTreeSet::new();
        for (partition, copy) in run.copies.iter_mut().filter(|(_, copy)| copy.listed && !copy.joined) {
            if !copy.queue.is_empty() {
                if busy >= JOINED_MAX {
                    continue;
                }
                busy += 1;
            }
            copy.joined = true;
            joined.insert(*partition);
        }
        if joined.is_empty() {
            return;
        }
        let ops: Vec<usize> = (self.ops.iter())
            .filter(|(_, op)| joined.contains(&self.partition(op.extent)))
            .map(|(id, _)| id)
            .collect();
        // They go there, too.
        for id in ops {
            self.refresh_op(id);
        }
    }

    pub(super) fn begin_checks(&mut self, disk: DiskId) {
        loop {
            let Some(run) = self.catch_ups.runs.get(&disk) else { return };
            if run.later_ms > self.now || run.checks.len() >= CHECKS_MAX {
                return;
            }
            let joined = run.copies.values().filter(|copy| copy.joined);
            let mut waiting = joined.flat_map(|copy| &copy.queue).copied();
            let can_begin = |extent: &u64| {
                !run.checks.contains_key(extent)
                    && !self.reconciles.contains_key(extent)
                    && self.is_open(*extent)
                    && self.can_repair(*extent)
            };
            let Some(extent) = waiting.find(can_begin) else { return };
            self.begin_check(disk, extent);
        }
    }

    fn begin_check(&mut self, disk: DiskId, extent: u64) {
        let partition = self.partition(extent);
        let pool = &self.view.pool;
        let sources = pool.holders(partition).filter(|it| pool.counts(*it, partition));
        let best = sources.filter(|it| self.is_usable(*it)).min_by_key(|it| {
            (!pool.is_local(*it), self.disks.get(it).map_or(0, |source| source.outstanding))
        });
        let Some(source) = best else { return };
        let mut look = |of| {
            let (extent, generation) = (self.extent(extent), self.config.generation);
            Look::Asked(self.send(
                of,
                RequestBody::Versions { extent, generation },
                What::Look { of: disk, extent: extent.index },
            ))
        };
        let (theirs, own) = (look(source), look(disk));
        self.catch_ups.begun += 1;
        let (number, todo) = (self.catch_ups.begun, VecDeque::new());
        let check = Check { number, theirs, own, todo, running: 0, failed: false, again: false };
        if let Some(run) = self.catch_ups.runs.get_mut(&disk) {
            run.checks.insert(extent, check);
        }
    }

    pub(in crate::owner) fn looked(
        &mut self,
        of: DiskId,
        extent: u64,
        asked: DiskId,
        tag: u64,
        answer: Answer,
    ) {
        let generation = self.config.generation;
        let Some(check) = self.catch_ups.check(of, extent) else { return };
        let is_asked = |look: &Look| matches!(look, Look::Asked(it) if *it == tag);
        let look = if is_asked(&check.theirs) {
            &mut check.theirs
        } else if is_asked(&check.own) {
            &mut check.own
        } else {
            return;
        };
        let mut is_wrong = false;
        match answer {
            Answer::Body(ReplyBody::Versions(runs)) if fits(&runs, generation) => *look = Look::Have(runs),
            answer => {
                is_wrong = matches!(answer, Answer::Body(_));
                *look = Look::Have(Vec::new());
                check.failed = true;
            }
        }
        if let (Look::Have(theirs), Look::Have(own)) = (&check.theirs, &check.own)
            && !check.failed
        {
            check.todo = differing(theirs, own).into();
        }
        if is_wrong {
            self.distrust(asked);
        }
        self.go_on_with_check(of, extent);
    }

    /// Copies what differs, a few runs at a time.
    fn go_on_with_check(&mut self, disk: DiskId, extent: u64) {
        let keeps_tails = self.planted(Plant::KeepTails);
        let Some(run) = self.catch_ups.runs.get_mut(&disk) else { return };
        let Some(check) = run.checks.get_mut(&extent) else { return };
        if matches!(check.theirs, Look::Asked(_)) || matches!(check.own, Look::Asked(_)) {
            return;
        }
        if keeps_tails {
            check.todo.retain(|it| !it.ahead);
        }
        let (number, mut begun) = (check.number, Vec::new());
        while check.running < COPIES_MAX
            && !check.failed
            && let Some(differing) = check.todo.pop_front()
        {
            check.running += 1;
            begun.push(differing);
        }
        let is_over = check.running == 0;
        for Differing { first, blocks, ahead } in begun {
            let work = if ahead { Work::Rewrite } else { Work::Heal { disk } };
            let origin = Origin::CatchUp { disk, check: number };
            let (offset, len) = (first * BLOCK_BYTES, blocks * BLOCK_BYTES);
            self.add_op(origin, extent, offset, len, work, Durability::Stable);
        }
        if is_over {
            self.end_check(disk, extent);
        }
    }

    fn end_check(&mut self, disk: DiskId, extent: u64) {
        let (now, partition) = (self.now, self.partition(extent));
        let Some(run) = self.catch_ups.runs.get_mut(&disk) else { return };
        let Some(check) = run.checks.remove(&extent) else { return };
        if check.failed {
            run.later_ms = run.later_ms.max(now + LATER_MS);
        } else if !check.again {
            run.checked_extents += 1;
            if let Some(copy) = run.copies.get_mut(&partition) {
                copy.queue.remove(&extent);
            }
        }
        self.catch_ups.wake();
    }

    /// A run of blocks was copied, or could not be.
    pub(in crate::owner) fn copied(&mut self, op: &Op, disk: DiskId, number: u64, is_done: bool) {
        let Some(run) = self.catch_ups.runs.get_mut(&disk) else { return };
        let Some(check) = run.checks.get_mut(&op.extent).filter(|it| it.number == number) else { return };
        check.running -= 1;
        if is_done {
            run.copied_bytes += u64::from(op.len);
        } else {
            check.failed = true;
        }
        self.go_on_with_check(disk, op.extent);
    }

    pub(super) fn make_ready(&mut self, disk: DiskId) {
        let Some(run) = self.catch_ups.runs.get(&disk) else { return };
        let ignores = self.planted(Plant::ReadyUnlevelled);
        let unlevelled: BTreeSet<Partition> = (self.dirty.iter().chain(self.reconciles.keys()))
            .filter(|_| !ignores)
            .map(|extent| self.partition(*extent))
            .collect();
        let unlooked = self.planted(Plant::ReadyUnlooked);
        let equal: Vec<Partition> = (run.copies.iter())
            .filter(|(_, copy)| copy.joined && (copy.queue.is_empty() || unlooked))
            .map(|(partition, _)| *partition)
            .filter(|partition| !unlevelled.contains(partition))
            .collect();
        if equal.is_empty() {
            return;
        }
        // A flush that it had no part in may have been answered since it was sent something.
        if self.is_volatile() && !run.flushed && !self.planted(Plant::ReadyUnflushed) {
            return self.begin_flush();
        }
        if let Some(run) = self.catch_ups.runs.get_mut(&disk) {
            for partition in equal {
                run.copies.remove(&partition);
                run.ready.insert(partition);
            }
        }
        self.out.push(Action::News);
        // There may be room for others.
        self.catch_ups.wake();
    }
}

/// Where a copy differs from what a member has, in runs of bounded length.
fn differing(theirs: &[BlockVersion], own: &[BlockVersion]) -> Vec<Differing> {
    let mut found: Vec<Differing> = Vec::new();
    let (mut theirs, mut own) = (Runs::new(theirs), Runs::new(own));
    let mut at = 0;
    while at < EXTENT_BLOCKS {
        let blocks = theirs.left().min(own.left()).min(EXTENT_BLOCKS - at);
        let (has, is) = (theirs.version(), own.version());
        // Of what was lost nothing is known: somebody else has it.
        if has != is || theirs.is_lost() || own.is_lost() {
            let ahead = is > has && !theirs.is_lost();
            for first in (at..at + blocks).step_by(BLOCKS_MAX as usize) {
                let blocks = BLOCKS_MAX.min(at + blocks - first);
                match found.last_mut() {
                    Some(last)
                        if last.ahead == ahead
                            && last.first + last.blocks == first
                            && last.blocks + blocks <= BLOCKS_MAX =>
                    {
                        last.blocks += blocks;
                    }
                    _ => found.push(Differing { first, blocks, ahead }),
                }
            }
        }
        at += blocks;
        theirs.advance(blocks);
        own.advance(blocks);
    }
    found
}

/// A list of runs, from some block on; what follows the last was never written.
pub(super) struct Runs<'a> {
    runs: &'a [BlockVersion],
    used: u32,
}

impl<'a> Runs<'a> {
    fn new(runs: &'a [BlockVersion]) -> Self {
        Self { runs, used: 0 }
    }

    fn left(&self) -> u32 {
        self.runs.first().map_or(u32::MAX, |run| run.blocks - self.used)
    }

    fn version(&self) -> Version {
        self.runs.first().map_or(Version::NONE, |run| run.version)
    }

    /// Whether the disk has had something there and knows neither what nor its version.
    fn is_lost(&self) -> bool {
        self.runs.first().is_some_and(|run| run.version == Version::NONE && !run.hole)
    }

    fn advance(&mut self, blocks: u32) {
        let Some(run) = self.runs.first() else { return };
        self.used += blocks;
        if self.used == run.blocks {
            self.runs = &self.runs[1..];
            self.used = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use lunette_proto::ids::Generation;

    use super::*;

    fn run(blocks: u32, seq: u64) -> BlockVersion {
        let version = if seq == 0 { Version::NONE } else { Version { generation: Generation(1), seq } };
        BlockVersion { blocks, version, hole: seq == 0 }
    }

    /// Guards what is copied: every block in which a copy differs, once, older and newer ones apart, in bounded runs.
    #[test]
    fn what_differs() {
        let differs = |first, blocks, ahead| Differing { first, blocks, ahead };
        assert_eq!(differing(&[], &[]), []);
        assert_eq!(differing(&[run(8, 1)], &[run(8, 1)]), []);
        assert_eq!(differing(&[run(8, 1)], &[]), [differs(0, 8, false)]);
        assert_eq!(differing(&[], &[run(8, 1)]), [differs(0, 8, true)]);
        assert_eq!(
            differing(
                &[run(4, 1), run(4, 5), run(1016, 2)],
                &[run(2, 1), run(3, 4), run(3, 6), run(1016, 2)]
            ),
            [differs(2, 2, true), differs(4, 1, false), differs(5, 3, true)]
        );
        // Of a block that a disk has lost, other members are asked.
        let lost = BlockVersion { blocks: 2, version: Version::NONE, hole: false };
        assert_eq!(differing(&[run(2, 1), lost], &[run(2, 1)]), [differs(2, 2, false)]);
        assert_eq!(differing(&[run(2, 1), lost], &[run(4, 1)]), [differs(2, 2, false)]);
        assert_eq!(differing(&[run(4, 1)], &[run(2, 1), lost]), [differs(2, 2, false)]);
        let all = differing(&[run(EXTENT_BLOCKS, 1)], &[]);
        assert_eq!(all.len(), (EXTENT_BLOCKS / BLOCKS_MAX) as usize);
        assert!(all.iter().all(|it| it.blocks == BLOCKS_MAX && !it.ahead));
    }
}

//! Bringing copies that do not count up to date, while changes go on.
//!
//! ```text
//!     sealed --> listed --> joined --every extent looked at--> ready --the map--> a member
//!       ^                      |
//!       '--its disk is away----'
//! ```
//!
//! A disk that was away says up to which version it is complete. What members have that is newer, and what it has
//! itself, may differ (*listed*); so may what is changed from then on. When changes go to the copy of a partition, too
//! (*joined*), the list of its extents only gets shorter. Each of them is looked at: where the copy has older blocks they are
//! copied under their versions, with the blocks locked; where it has newer ones, those were never acked: what the members
//! have is written everywhere under a new version (invariant 8). Whatever the disk does not take is looked at again.
//!
//! Until a copy is *ready* it can neither hold up a change for long nor be read: one that does not answer is let go. From then on it
//! takes part in everything like a member, although it does not count: the control plane may count it at any moment,
//! without asking again (invariant 3).
//!
//! Nothing of this is remembered: the next owner begins anew, and finds most of it done.

mod checks;
mod listing;

use std::collections::{BTreeMap, BTreeSet};

use lunette_proto::ids::{DiskId, Epoch, ExtentId, Partition};
use lunette_proto::map::{Behind, DiskState, Partitions};

use super::Owner;
use super::event::{CatchUp, Plant};
use super::op::Phase;
use super::view::Members;
use checks::{Check, Look};
use listing::Listing;
pub(super) use listing::is_listing;

/// A copy that is not ready and owes an answer for so long is let go.
const PATIENCE_MS: u64 = 250;
/// Pause after a copy was let go because it did not answer, or has no room.
const REST_MS: u64 = 500;
/// Pause after something could not be done now.
const LATER_MS: u64 = 20;

/// The disks that have copies behind.
#[derive(Debug, Default)]
pub(super) struct CatchUps {
    runs: BTreeMap<DiskId, Run>,
    awake: bool,
    /// Checks that were begun: their numbers.
    begun: u64,
}

/// One disk.
#[derive(Debug, Default)]
struct Run {
    since: Epoch,
    /// Copies that are not ready.
    copies: BTreeMap<Partition, Copy>,
    ready: Partitions,
    /// Who is asked for what is newer; empty while nobody is.
    listing: Vec<Listing>,
    checks: BTreeMap<u64, Check>,
    /// Whether all that it had in memory when changes began to go to it is on stable media.
    flushed: bool,
    /// Nothing is sent to it before.
    resume_ms: u64,
    /// No extent is looked at before.
    later_ms: u64,
    checked_extents: u64,
    copied_bytes: u64,
}

/// A copy of a partition.
#[derive(Debug, Default)]
struct Copy {
    /// Extents that may differ.
    queue: BTreeSet<u64>,
    /// Whether the queue has all that differed before this owner wrote anything.
    listed: bool,
    /// Whether changes go to it.
    joined: bool,
}
impl CatchUps {
    pub(super) fn wake(&mut self) {
        self.awake |= !self.runs.is_empty();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// A flush has reached a disk that changes went to since before it began.
    pub(super) fn flushed(&mut self, disk: DiskId) {
        if let Some(run) = self.runs.get_mut(&disk) {
            run.flushed = true;
            self.awake = true;
        }
    }

    /// Whether a disk has copies that are behind.
    pub(super) fn has(&self, disk: DiskId) -> bool {
        self.runs.contains_key(&disk)
    }

    /// Whether changes go to a copy on the disk that does not count.
    pub(super) fn joins(&self, disk: DiskId) -> bool {
        self.runs
            .get(&disk)
            .is_some_and(|run| !run.ready.is_empty() || run.copies.values().any(|copy| copy.joined))
    }

    pub(super) fn is_ready(&self, disk: DiskId, partition: Partition) -> bool {
        self.runs.get(&disk).is_some_and(|run| run.ready.contains(partition))
    }

    fn is_joined(&self, disk: DiskId, partition: Partition) -> bool {
        self.runs.get(&disk).and_then(|run| run.copies.get(&partition)).is_some_and(|copy| copy.joined)
    }

    /// Notes that an extent may differ: of every copy, or of those that changes do not go to.
    fn note(&mut self, partition: Partition, extent: u64, joined_too: bool) {
        for run in self.runs.values_mut() {
            let Some(copy) = run.copies.get_mut(&partition) else { continue };
            if joined_too || !copy.joined {
                copy.queue.insert(extent);
                if let Some(check) = run.checks.get_mut(&extent) {
                    check.again = true;
                }
            }
        }
    }

    fn check(&mut self, disk: DiskId, extent: u64) -> Option<&mut Check> {
        self.runs.get_mut(&disk)?.checks.get_mut(&extent)
    }
}
impl Owner {
    /// Those that take part in everything that happens to an extent: the members in sync, and copies that are ready.
    pub(super) fn members(&self, index: u64) -> Members {
        let extent = self.extent(index);
        let pool = &self.view.pool;
        if self.catch_ups.is_empty() {
            return pool.in_sync(extent);
        }
        let partition = pool.partition(extent);
        pool.holders(partition)
            .filter(|disk| {
                pool.counts(*disk, partition)
                    || self.catch_ups.is_ready(*disk, partition)
                    || self.planted(Plant::ReadBehind) && self.catch_ups.is_joined(*disk, partition)
            })
            .collect()
    }

    /// Those that a change of an extent goes to: also copies that are being brought up to date.
    pub(super) fn writers(&self, index: u64) -> Members {
        if self.catch_ups.is_empty() {
            return self.members(index);
        }
        let pool = &self.view.pool;
        let partition = pool.partition(self.extent(index));
        pool.holders(partition)
            .filter(|disk| {
                pool.counts(*disk, partition)
                    || self.catch_ups.is_ready(*disk, partition)
                    || self.catch_ups.is_joined(*disk, partition)
            })
            .collect()
    }

    /// How many of these disks have a copy of an extent that counts.
    pub(super) fn counting(&self, index: u64, disks: impl Iterator<Item = DiskId>) -> usize {
        let pool = &self.view.pool;
        if self.catch_ups.is_empty() {
            return disks.count();
        }
        let partition = pool.partition(self.extent(index));
        disks.filter(|disk| pool.counts(*disk, partition)).count()
    }

    /// Whether changes of an extent go to a disk without waiting for it for long: it is being brought up to date.
    pub(super) fn is_catching_up(&self, disk: DiskId, index: u64) -> bool {
        !self.catch_ups.is_empty()
            && self.catch_ups.is_joined(disk, self.view.pool.partition(self.extent(index)))
    }

    /// How far copies that do not count have been brought up to date.
    #[must_use]
    pub fn catch_ups(&self) -> Vec<CatchUp> {
        if !self.is_serving() {
            return Vec::new();
        }
        let of = |(disk, run): (&DiskId, &Run)| CatchUp {
            disk: *disk,
            epoch: self.view.epoch,
            ready: run.ready.clone(),
            behind: run.copies.keys().copied().collect(),
            waiting_extents: run.copies.values().map(|copy| copy.queue.len() as u64).sum(),
            checked_extents: run.checked_extents,
            copied_bytes: run.copied_bytes,
        };
        self.catch_ups.runs.iter().map(of).collect()
    }

    /// The map may say of other copies that they do not count.
    pub(super) fn follow_behind(&mut self) {
        let is_out = |id: &DiskId| self.view.pool.standing(*id).state == DiskState::Out;
        let out: Vec<DiskId> = self.disks.keys().copied().filter(is_out).collect();
        for disk in out {
            self.forget(disk);
        }
        let behind: BTreeMap<DiskId, &Behind> =
            self.view.pool.behind().map(|(disk, behind)| (disk, behind.as_ref())).collect();
        let keeps = self.planted(Plant::KeepPromises);
        let runs = &mut self.catch_ups.runs;
        runs.retain(|disk, run| behind.get(disk).is_some_and(|behind| behind.since == run.since) || keeps);
        for (disk, behind) in behind {
            let run = runs.entry(disk).or_default();
            run.since = behind.since;
            run.copies.retain(|partition, _| behind.partitions.contains(*partition));
            let counted: Vec<Partition> =
                run.ready.iter().filter(|it| !behind.partitions.contains(*it)).collect();
            for partition in counted {
                run.ready.remove(partition);
            }
            // What was listed of a copy that was given up is not known of one that is begun anew.
            for listing in &mut run.listing {
                listing.of = listing.of.intersection(&run.copies.keys().copied().collect());
            }
            for partition in behind.partitions.iter().filter(|it| !run.ready.contains(*it)) {
                run.copies.entry(partition).or_default();
            }
            run.checks.retain(|extent, _| {
                let id = ExtentId { namespace: self.namespace, index: *extent };
                run.copies.contains_key(&self.view.pool.partition(id))
            });
        }
        self.catch_ups.wake();
    }

    fn partition(&self, index: u64) -> Partition {
        self.view.pool.partition(self.extent(index))
    }

    /// A change of an extent begins.
    pub(super) fn note_change(&mut self, index: u64) {
        if !self.catch_ups.is_empty() && !self.planted(Plant::ForgetChanges) {
            let partition = self.partition(index);
            self.catch_ups.note(partition, index, false);
        }
    }

    /// The members of an extent have been levelled: what they have may be new to the others.
    pub(super) fn note_levelled(&mut self, index: u64) {
        if !self.catch_ups.is_empty() && !self.planted(Plant::ForgetLevelled) {
            let partition = self.partition(index);
            self.catch_ups.note(partition, index, true);
            self.catch_ups.wake();
        }
    }

    /// A copy that is being brought up to date has not taken a change.
    pub(super) fn missed(&mut self, disk: DiskId, index: u64, is_full: bool) {
        if self.planted(Plant::ForgetMissed) {
            return;
        }
        let (now, partition) = (self.now, self.partition(index));
        let Some(run) = self.catch_ups.runs.get_mut(&disk) else { return };
        if let Some(copy) = run.copies.get_mut(&partition) {
            copy.queue.insert(index);
        }
        if let Some(check) = run.checks.get_mut(&index) {
            check.failed = true;
        }
        let pause = if is_full { REST_MS } else { LATER_MS };
        run.later_ms = run.later_ms.max(now + pause);
        self.catch_ups.wake();
    }

    /// What a disk had in memory may be gone: of what does not count there, everything is looked at anew.
    pub(super) fn restart_catch_up(&mut self, disk: DiskId) {
        if self.planted(Plant::IgnoreLostCopy) {
            return;
        }
        self.let_go(disk);
        if let Some(run) = self.catch_ups.runs.get_mut(&disk) {
            run.copies.values_mut().for_each(|copy| copy.listed = false);
            run.listing.clear();
        }
    }

    /// Changes go to its copies no more, until it answers again.
    fn let_go(&mut self, disk: DiskId) {
        let Some(run) = self.catch_ups.runs.get_mut(&disk) else { return };
        let was_joined = run.copies.values().any(|copy| copy.joined);
        if !was_joined && run.checks.is_empty() {
            return;
        }
        run.flushed = false;
        run.copies.values_mut().for_each(|copy| copy.joined = false);
        let checks = std::mem::take(&mut run.checks);
        let mut ops = Vec::new();
        for (id, op) in &self.ops {
            let partition = self.view.pool.partition(self.extent(op.extent));
            if let Phase::Mutating(mutating) = &op.phase
                && mutating.legs.iter().any(|leg| leg.disk == disk)
                && let Some(copy) =
                    self.catch_ups.runs.get_mut(&disk).and_then(|it| it.copies.get_mut(&partition))
            {
                // Perhaps it has taken it, perhaps not.
                copy.queue.insert(op.extent);
                ops.push(id);
            }
        }
        for check in checks.into_values() {
            for look in [check.theirs, check.own] {
                if let Look::Asked(tag) = look {
                    self.abandon(tag);
                }
            }
        }
        for id in ops {
            self.refresh_op(id);
        }
        self.refresh_flush();
    }

    pub(super) fn wakes_catch_ups(&mut self) -> bool {
        std::mem::take(&mut self.catch_ups.awake)
    }

    /// Goes on with every disk as far as possible.
    pub(super) fn drive_catch_ups(&mut self) {
        if !self.is_serving() || self.view.deleting {
            return;
        }
        let disks: Vec<DiskId> = self.catch_ups.runs.keys().copied().collect();
        for disk in disks {
            self.drive_catch_up(disk);
        }
    }

    fn drive_catch_up(&mut self, disk: DiskId) {
        if !self.is_usable(disk) {
            return self.let_go(disk);
        }
        if self.catch_ups.runs.get(&disk).is_none_or(|run| run.resume_ms > self.now) {
            return;
        }
        self.list(disk);
        self.join(disk);
        self.begin_checks(disk);
        self.make_ready(disk);
    }

    pub(super) fn tick_catch_ups(&mut self) {
        self.catch_ups.wake();
        let disks: Vec<DiskId> = self.catch_ups.runs.keys().copied().collect();
        for disk in disks {
            let (now, answers) = (self.now, self.disk(disk));
            if answers.outstanding > 0
                && now >= answers.silent_ms + PATIENCE_MS
                && self.catch_ups.joins(disk)
                && let Some(run) = self.catch_ups.runs.get_mut(&disk)
            {
                run.resume_ms = now + REST_MS;
                self.let_go(disk);
            }
        }
    }
}

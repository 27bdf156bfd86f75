//! The disks that an owner talks to: which are sealed, which answer.

use lunette_proto::ids::{DiskId, Epoch, Version};
use lunette_proto::limits::{EXTENT_BYTES, GRANT_KEPT_MS_MAX, STRIPE_WIDTH_MAX, VOLUME_BYTES_MAX};
use lunette_proto::node::{Failure, Reply, Request, RequestBody, Sealed};

use super::event::{Action, Complaint, Plant, Trouble};
use super::pace::Pace;
use super::{Answer, Owner, Pending, What};

/// First pause after a disk did not answer; doubles with every failed probe.
const PAUSE_MS_MIN: u64 = 20;
const PAUSE_MS_MAX: u64 = 500;
/// Pause after a disk was busy.
const BUSY_MS: u64 = 20;
/// Extents that a volume can have; the last stripe may be cut short.
pub(super) const EXTENTS_MAX: u64 = VOLUME_BYTES_MAX / EXTENT_BYTES as u64 + STRIPE_WIDTH_MAX as u64;

/// One disk.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) sealed: Seal,
    pub(super) link: Link,
    /// Requests unanswered.
    pub(super) outstanding: u32,
    /// The map under which it was sealed last: it does nothing that was sent under an older one.
    sealed_under: Epoch,
    /// A newer one under which it is being sealed once more.
    fencing: Option<Epoch>,
    /// What it has completely, as it said when it was sealed.
    pub(super) complete: Version,
    /// Whether it was sealed under this generation before: then it may name what this owner wrote.
    was_sealed: bool,
    /// Since when it owes an answer and has given none.
    pub(super) silent_ms: u64,
    pub(super) pace: Pace,
    pause_ms: u64,
    down: Option<(u64, Trouble)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seal {
    No,
    Asked,
    Yes,
}

/// ```text
///     Up --no answer--> Paused --time--> Probing --answer--> Up
///      |                  ^  ----------------'  no answer
///      `--busy--> Busy --time--> Up                         Untrusted: for ever
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    Up,
    Busy { until_ms: u64 },
    Paused { until_ms: u64 },
    Probing,
    Untrusted,
}

impl Disk {
    fn new() -> Self {
        Self {
            sealed: Seal::No,
            link: Link::Up,
            outstanding: 0,
            sealed_under: Epoch::default(),
            fencing: None,
            complete: Version::NONE,
            was_sealed: false,
            silent_ms: 0,
            pace: Pace::default(),
            pause_ms: PAUSE_MS_MIN,
            down: None,
        }
    }
}

impl Owner {
    /// Sends to a disk; the tag of what is now unanswered.
    pub(super) fn send(&mut self, disk: DiskId, body: RequestBody, what: What) -> u64 {
        self.serial = self.serial.wrapping_add(1);
        let now = self.now;
        let key = self.pending.insert(Pending { serial: self.serial, disk, sent_ms: now, what });
        let tag = (u64::from(self.serial) << 32) | key as u64;
        let to = self.disk(disk);
        if to.outstanding == 0 {
            to.silent_ms = now;
        }
        to.outstanding += 1;
        let request = Request { disk, epoch: self.view.epoch, body };
        self.out.push(Action::Send { disk, tag, request });
        tag
    }

    /// Stops caring about an answer.
    pub(super) fn abandon(&mut self, tag: u64) {
        if let Some(pending) = self.pending.get_mut((tag & u64::from(u32::MAX)) as usize)
            && u64::from(pending.serial) == tag >> 32
        {
            pending.what = What::Abandoned;
        }
    }

    /// Takes note of an answer: what it was to, unless it is unknown.
    pub(super) fn answered(&mut self, tag: u64, reply: &Reply) -> Option<Pending> {
        let key = (tag & u64::from(u32::MAX)) as usize;
        if u64::from(self.pending.get(key)?.serial) != tag >> 32 {
            return None;
        }
        let pending = self.pending.remove(key);
        let now = self.now;
        let disk = self.disk(pending.disk);
        disk.outstanding -= 1;
        disk.silent_ms = now;
        self.note_pace(pending.disk, &pending.what, now - pending.sent_ms);
        if let Err(failure) = reply {
            self.note_failure(pending.disk, failure);
        }
        Some(pending)
    }

    fn note_failure(&mut self, disk: DiskId, failure: &Failure) {
        match failure {
            Failure::Generation { sealed, .. } if *sealed > self.config.generation => self.lose_ownership(),
            // It answered our seal before: what it promised then no longer holds (invariant 1).
            Failure::Generation { .. } => self.distrust(disk),
            Failure::Deleted => self.found_deleted(),
            Failure::Disconnected => self.pause(disk, Trouble::Disconnected),
            Failure::DiskFailed | Failure::NoSuchDisk => self.pause(disk, Trouble::Failed),
            Failure::Invalid => self.distrust(disk),
            // A newer map is on its way to us.
            Failure::Epoch { .. } | Failure::Busy => self.back_off(disk),
            // Only a seal is answered so: it is sent again when an owner before cannot answer reads any more.
            Failure::Granted { left_ms } => {
                self.back_off_for(disk, (*left_ms).clamp(1, GRANT_KEPT_MS_MAX).into())
            }
            Failure::NoSpace | Failure::Corrupt { .. } => {}
            // Only who prepares changes is answered so.
            Failure::Version { .. } => self.distrust(disk),
        }
    }

    fn pause(&mut self, id: DiskId, trouble: Trouble) {
        let now = self.now;
        let disk = self.disk(id);
        if matches!(disk.link, Link::Up | Link::Busy { .. }) {
            disk.link = Link::Paused { until_ms: now + disk.pause_ms };
            disk.down = Some(disk.down.map_or((now, trouble), |(since, _)| (since, trouble)));
            self.catch_ups.wake();
            self.out.push(Action::News);
        }
    }

    /// The map has taken a disk out: when it comes back, it is one that nothing is known of.
    pub(super) fn forget(&mut self, id: DiskId) {
        if let Some(disk) = self.disks.get_mut(&id) {
            let (outstanding, was_sealed) = (disk.outstanding, disk.was_sealed);
            *disk = Disk { outstanding, was_sealed, ..Disk::new() };
        }
    }

    fn back_off(&mut self, id: DiskId) {
        self.back_off_for(id, BUSY_MS);
    }

    fn back_off_for(&mut self, id: DiskId, ms: u64) {
        let until_ms = self.now + ms;
        let disk = self.disk(id);
        if disk.link == Link::Up {
            disk.link = Link::Busy { until_ms };
        }
    }

    /// Leaves a disk alone for a moment although it answered.
    pub(super) fn rest(&mut self, id: DiskId) {
        self.back_off(id);
    }

    /// Leaves a disk alone for a moment if it answered what says neither yes nor that it cannot be reached:
    /// it is asked again, but not at once.
    pub(super) fn rest_after(&mut self, id: DiskId, answer: &Answer) {
        if let Answer::NoSpace | Answer::Corrupt(_) = answer {
            self.rest(id);
        }
    }

    /// A disk that breaks the protocol is used no more; the map has to remove it.
    pub(super) fn distrust(&mut self, id: DiskId) {
        let now = self.now;
        let disk = self.disk(id);
        disk.link = Link::Untrusted;
        disk.down = Some((disk.down.map_or(now, |(since, _)| since), Trouble::Untrusted));
        self.catch_ups.wake();
        self.out.push(Action::News);
    }

    /// Whether a request for its extents may be sent to a disk now.
    pub(super) fn is_usable(&self, id: DiskId) -> bool {
        self.disks.get(&id).is_some_and(|disk| disk.link == Link::Up && disk.sealed == Seal::Yes)
    }

    /// Whether a watermark may be sent to a disk now. One that is busy needs it to get less busy.
    pub(super) fn takes_marks(&self, id: DiskId) -> bool {
        self.disks
            .get(&id)
            .is_some_and(|disk| matches!(disk.link, Link::Up | Link::Busy { .. }) && disk.sealed == Seal::Yes)
    }

    pub(super) fn is_sealed(&self, id: DiskId) -> bool {
        self.disks.get(&id).is_some_and(|disk| disk.sealed == Seal::Yes)
            || self.planted(Plant::ServeBeforeAllSealed)
    }

    fn is_up(&self, id: DiskId) -> bool {
        self.disks.get(&id).is_some_and(|disk| disk.link == Link::Up)
    }

    pub(super) fn disk(&mut self, id: DiskId) -> &mut Disk {
        self.disks.entry(id).or_insert_with(Disk::new)
    }

    /// Seals every disk that is there, is not sealed yet and can be reached.
    pub(super) fn seal_all(&mut self) {
        if !self.is_serving() {
            return;
        }
        let used: Vec<DiskId> =
            self.view.pool.disks().map(|(disk, _)| disk).filter(|disk| self.uses(*disk)).collect();
        for id in used {
            self.seal(id);
        }
    }

    fn seal(&mut self, id: DiskId) {
        if self.disk(id).sealed == Seal::No && self.is_up(id) {
            self.disk(id).sealed = Seal::Asked;
            let body = RequestBody::Seal { namespace: self.namespace, generation: self.config.generation };
            let under = self.view.epoch;
            self.send(id, body, What::Seal { under });
        }
    }

    /// Whether nothing that was sent to a disk before copies were put on their way to it can take effect any more; if not, it
    /// is sealed once more.
    pub(super) fn is_fenced(&mut self, id: DiskId) -> bool {
        let Some(grown) = self.view.pool.behind_of(id).map(|behind| behind.grown) else { return false };
        let under = self.view.epoch;
        let disk = self.disk(id);
        if disk.sealed_under >= grown {
            return true;
        }
        if disk.fencing.is_none() {
            disk.fencing = Some(under);
            let body = RequestBody::Seal { namespace: self.namespace, generation: self.config.generation };
            self.send(id, body, What::Fence { under });
        }
        false
    }

    pub(super) fn fenced(&mut self, id: DiskId, under: Epoch, is_done: bool) {
        let disk = self.disk(id);
        if disk.fencing == Some(under) {
            disk.fencing = None;
            if is_done {
                disk.sealed_under = disk.sealed_under.max(under);
            }
        }
        self.catch_ups.wake();
    }

    /// Invariant 4: nothing older can take effect on this disk any more, and it has said what may differ.
    pub(super) fn sealed(&mut self, id: DiskId, under: Epoch, answer: Option<Sealed>) {
        let Some(Sealed { dirty, complete }) = answer else {
            self.disk(id).sealed = Seal::No;
            self.seal_all();
            return;
        };
        let generation = self.config.generation;
        // Unless it is one that was away, nothing was sent to it under this generation; under a later one it had not
        // answered.
        let is_own = self.disk(id).was_sealed;
        let is_later =
            |version: Version| version.generation > generation || version.generation == generation && !is_own;
        if is_later(complete) || dirty.iter().any(|it| it.index >= EXTENTS_MAX || is_later(it.newest)) {
            self.disk(id).sealed = Seal::No;
            return self.distrust(id);
        }
        let disk = self.disk(id);
        disk.sealed = Seal::Yes;
        disk.was_sealed = true;
        disk.sealed_under = under;
        disk.complete = complete;
        for extent in &dirty {
            // What does not count is compared when it is brought up to date.
            if self.members(extent.index).contains(&id) {
                self.changed.entry(extent.index).or_insert(0);
                self.dirty.insert(extent.index);
            }
        }
        self.catch_ups.wake();
        self.unpark(id);
        self.wake_all();
    }

    /// Disks that take part in changes: some copy of theirs counts, or is being brought up to date.
    pub(super) fn joined_disks(&self) -> Vec<DiskId> {
        let pool = &self.view.pool;
        let disks = pool.disks().map(|(disk, _)| disk);
        disks.filter(|disk| pool.is_counted(*disk) || self.catch_ups.joins(*disk)).collect()
    }

    pub(super) fn all_sealed(&self) -> bool {
        self.view.pool.counted().all(|disk| self.is_sealed(disk))
    }

    /// Whether there is anything to do on a disk: it has not left.
    pub(super) fn uses(&self, id: DiskId) -> bool {
        self.view.pool.is_counted(id) || self.catch_ups.has(id) || self.sweeps.has(id)
    }

    /// Lets paused disks be tried again when their time has come.
    pub(super) fn tick_disks(&mut self) {
        let now = self.now;
        let due: Vec<(DiskId, Link)> = self
            .disks
            .iter()
            .filter(|(_, disk)| match disk.link {
                Link::Busy { until_ms } | Link::Paused { until_ms } => until_ms <= now,
                Link::Up | Link::Probing | Link::Untrusted => false,
            })
            .map(|(id, disk)| (*id, disk.link))
            .collect();
        for (id, link) in due {
            if matches!(link, Link::Busy { .. }) {
                self.up(id);
            } else if self.wants(id) {
                self.disk(id).link = Link::Probing;
                let body = RequestBody::Identify { cluster: self.config.cluster };
                self.send(id, body, What::Probe);
            }
        }
    }

    pub(super) fn probed(&mut self, id: DiskId, answered: bool, trouble: Trouble) {
        let now = self.now;
        let disk = self.disk(id);
        if disk.link != Link::Probing {
            return;
        }
        if answered {
            self.up(id);
        } else {
            disk.pause_ms = (disk.pause_ms * 2).min(PAUSE_MS_MAX);
            disk.link = Link::Paused { until_ms: now + disk.pause_ms };
            disk.down = Some((disk.down.map_or(now, |(since, _)| since), trouble));
        }
    }

    fn up(&mut self, id: DiskId) {
        let disk = self.disk(id);
        disk.link = Link::Up;
        disk.pause_ms = PAUSE_MS_MIN;
        disk.down = None;
        self.catch_ups.wake();
        self.seal_all();
        self.unpark(id);
    }

    /// The connection broke. What the disk held in memory may be gone with it: on a write-back volume
    /// everything since the last flush is compared before the disk counts again.
    pub(super) fn lost(&mut self, id: DiskId) {
        self.pause(id, Trouble::Disconnected);
        if self.is_volatile() && !self.planted(Plant::IgnoreLost) {
            self.suspect(id);
            self.restart_catch_up(id);
        }
    }

    /// Whether there is any use for a disk under the present map.
    pub(super) fn wants(&self, id: DiskId) -> bool {
        if self.is_purging() { self.purges(id) } else { self.uses(id) }
    }

    /// When the first of the disks in use that are left alone is to be tried again.
    pub(super) fn disks_due(&self) -> Option<u64> {
        let due = |(id, disk): (&DiskId, &Disk)| match disk.link {
            Link::Busy { until_ms } | Link::Paused { until_ms } if self.wants(*id) => Some(until_ms),
            _ => None,
        };
        self.disks.iter().filter_map(due).min()
    }

    /// In-sync disks that do not answer, and since when.
    #[must_use]
    pub fn complaints(&self) -> Vec<Complaint> {
        self.disks
            .iter()
            .filter(|(id, _)| self.wants(**id))
            .filter_map(|(id, disk)| {
                disk.down.map(|(since_ms, trouble)| Complaint { disk: *id, since_ms, trouble })
            })
            .collect()
    }
}

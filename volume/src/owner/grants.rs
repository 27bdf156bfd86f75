//! Until when reads may be answered (invariant 34).
//!
//! ```text
//!     a read --> a member ------------------------------> data --> granted by enough members? --yes--> answered
//!        '-----> Grant to the members, if due --> Done ---------------^    '--no--> waits for that, with its data
//! ```
//!
//! Changes are safe by themselves: a disk that a newer owner has sealed refuses them, and every change needs all
//! members. A read needs one, which may be one that is cut off together with this owner: the map has removed it, a newer
//! owner serves with the others, and what this one reads is old. So members *grant* for a while that they answer no
//! newer owner's seal. A newer owner serves once all its members have sealed. Those are all but at most
//! (members − `min_size`) of the members known here: nobody removes more, and none is added that this owner has not
//! found ready. While one more than that have granted, at least one of its members keeps it waiting: nobody else has
//! served. If members are fewer than `min_size` already, none of them is removed, and one is enough.
//!
//! What counts is the moment of the answer, not that of the read: what was current then is what was current since. A
//! grant counts from when it was sent, by the clock of the owner. It is renewed by the reads themselves: a volume that
//! nobody reads sends nothing.

use std::collections::BTreeMap;

use lunette_proto::ids::DiskId;
use lunette_proto::node::{ReplyBody, RequestBody};
use smallvec::SmallVec;

use super::event::Plant;
use super::{Answer, Owner, What};

/// What the disks have granted.
#[derive(Debug, Default)]
pub(super) struct Grants {
    disks: BTreeMap<DiskId, Granted>,
    /// Of the last that was sent.
    number: u64,
    /// Until then no disk that is in use needs to be asked.
    fresh_until_ms: u64,
    /// Until then all disks that are in use have granted.
    all_until_ms: u64,
    /// Commands that have all they need but this.
    waiting: Vec<usize>,
    /// What was given back and is not answered.
    returning: usize,
}

#[derive(Debug, Default)]
struct Granted {
    until_ms: u64,
    /// When it was asked last.
    asked_ms: Option<u64>,
    /// The question that it has not answered.
    asked: Option<u64>,
}

impl Grants {
    /// Whether what was given back has arrived, as far as it can be known.
    pub(super) fn are_returned(&self) -> bool {
        self.returning == 0
    }

    /// A command that waits is answered otherwise.
    pub(super) fn forget(&mut self, command: usize) {
        self.waiting.retain(|other| *other != command);
    }

    pub(super) fn forget_all(&mut self) {
        self.waiting.clear();
    }
}

impl Owner {
    /// Has the members of an extent grant what a read needs, if it is time. Nearly always it is not.
    pub(super) fn want_grants(&mut self, extent: u64) {
        if self.now < self.grants.fresh_until_ms {
            return;
        }
        // Renewed before it is over, and sent again before a second one that is lost matters.
        let renewal_ms = u64::from(self.config.limits.grant_ms / 3);
        let mut asked = false;
        for disk in self.members(extent) {
            let granted = self.grants.disks.entry(disk).or_default();
            let is_fresh = granted.asked_ms.is_some_and(|at| self.now < at + renewal_ms);
            let is_due = granted.until_ms <= self.now || !is_fresh;
            if is_due && granted.asked.is_none() && self.is_usable(disk) {
                self.ask_grant(disk);
                asked = true;
            }
        }
        if asked {
            let asked_ms = |disk| self.grants.disks.get(&disk).and_then(|granted| granted.asked_ms);
            let first = self.used_disks().map(asked_ms).min().flatten();
            self.grants.fresh_until_ms = first.map_or(0, |at| at + renewal_ms);
        }
    }

    fn ask_grant(&mut self, disk: DiskId) {
        self.grants.number += 1;
        let body = RequestBody::Grant {
            namespace: self.namespace,
            generation: self.config.generation,
            number: self.grants.number,
            for_ms: self.config.limits.grant_ms,
        };
        let now = self.now;
        let tag = self.send(disk, body, What::Grant { sent_ms: now });
        let granted = self.grants.disks.entry(disk).or_default();
        (granted.asked, granted.asked_ms) = (Some(tag), Some(now));
    }

    pub(super) fn grant_answered(&mut self, disk: DiskId, tag: u64, sent_ms: u64, answer: &Answer) {
        let sent_ms = if self.planted(Plant::GrantFromAnswer) { self.now } else { sent_ms };
        let Some(granted) = self.grants.disks.get_mut(&disk).filter(|it| it.asked == Some(tag)) else {
            return;
        };
        granted.asked = None;
        match answer {
            Answer::Body(ReplyBody::Done) => {
                let until_ms = sent_ms + u64::from(self.config.limits.grant_ms);
                granted.until_ms = granted.until_ms.max(until_ms);
                self.follow_grants();
                self.answer_granted();
            }
            Answer::Body(_) => self.distrust(disk),
            answer => self.rest_after(disk, answer),
        }
    }

    /// The disks that a member of anything may be among.
    fn used_disks(&self) -> impl Iterator<Item = DiskId> {
        let behind = self.view.pool.behind().map(|(disk, _)| disk);
        self.view.pool.counted().chain(behind)
    }

    /// Which disks are in use, or what they have granted, is another than before.
    pub(super) fn follow_grants(&mut self) {
        let until = |disk| self.grants.disks.get(&disk).map_or(0, |granted| granted.until_ms);
        self.grants.all_until_ms = self.used_disks().map(until).min().unwrap_or(0);
    }

    /// The map is another one: other disks may be in use, and what waits may wait for fewer.
    pub(super) fn refresh_grants(&mut self) {
        self.grants.fresh_until_ms = 0;
        self.follow_grants();
        self.answer_granted();
    }

    /// Whether what was read by a command may be answered now.
    pub(super) fn is_granted(&self, command: usize) -> bool {
        if self.now < self.grants.all_until_ms || self.planted(Plant::ReadUngranted) {
            return true;
        }
        self.extents_of(command).iter().all(|extent| self.is_extent_granted(*extent))
    }

    fn is_extent_granted(&self, extent: u64) -> bool {
        let mut members = self.members(extent);
        if self.planted(Plant::GrantWithoutReady) {
            let partition = self.view.pool.partition(self.extent(extent));
            members.retain(|disk| self.view.pool.counts(*disk, partition));
        }
        let enough = (members.len() + 1).saturating_sub(self.view.pool.min_size()).max(1);
        let is_granted =
            |disk: &&DiskId| self.grants.disks.get(disk).is_some_and(|granted| self.now < granted.until_ms);
        members.iter().filter(is_granted).count() >= enough
    }

    /// The extents that a command lies in.
    fn extents_of(&self, command: usize) -> SmallVec<[u64; 4]> {
        let range = &self.commands[command].range;
        let mut extents: SmallVec<[u64; 4]> = SmallVec::new();
        for run in self.config.layout.runs(range.start, range.end - range.start) {
            // Stripes come back to few extents again and again.
            if !extents.contains(&run.extent) {
                extents.push(run.extent);
            }
        }
        extents
    }

    /// A command has all that it needs but what is to be granted.
    pub(super) fn wait_for_grants(&mut self, command: usize) {
        self.grants.waiting.push(command);
        self.want_grants_of(command);
    }

    fn want_grants_of(&mut self, command: usize) {
        self.grants.fresh_until_ms = 0;
        for extent in self.extents_of(command) {
            self.want_grants(extent);
        }
    }

    /// Answers what has waited for what is granted now.
    fn answer_granted(&mut self) {
        let mut at = 0;
        while let Some(command) = self.grants.waiting.get(at).copied() {
            if self.is_granted(command) {
                self.grants.waiting.remove(at);
                self.answer(command);
            } else {
                at += 1;
            }
        }
    }

    /// Asks again where a disk was not asked or has not granted.
    pub(super) fn tick_grants(&mut self) {
        self.answer_granted();
        for command in self.grants.waiting.clone() {
            self.want_grants_of(command);
        }
    }

    /// Nothing will be read: a successor need not wait.
    pub(super) fn give_grants_back(&mut self) {
        let now = self.now;
        self.grants.all_until_ms = 0;
        self.grants.fresh_until_ms = 0;
        let granted = std::mem::take(&mut self.grants.disks);
        for (disk, Granted { until_ms, asked, .. }) in granted {
            if let Some(tag) = asked {
                // Should it be answered yet, it does not count any more.
                self.abandon(tag);
            }
            if asked.is_none() && until_ms <= now {
                continue;
            }
            self.grants.number += 1;
            let body = RequestBody::Grant {
                namespace: self.namespace,
                generation: self.config.generation,
                number: self.grants.number,
                for_ms: 0,
            };
            self.send(disk, body, What::GiveBack);
            self.grants.returning += 1;
        }
    }

    pub(super) fn given_back(&mut self) {
        self.grants.returning -= 1;
    }
}

//! Giving back what disks have left of copies that have moved away.
//!
//! ```text
//!     copies moved away --a while--> list a page --> drop what is not held there --> next page .. the end
//! ```
//!
//! What a disk holds is asked of the map of the moment in which something is dropped. If copies are put on their way to the
//! disk later, it is sealed under that map before anything is copied: what was sent before and arrives late is refused.
//!
//! Nothing of this is remembered: who begins to own a volume of a pool in which copies have ever moved looks at all disks once.

use std::collections::BTreeMap;

use lunette_proto::ids::{DiskId, ExtentId, Version};
use lunette_proto::map::DiskState;
use lunette_proto::node::{ReplyBody, RequestBody};

use super::catch_up::is_listing;
use super::view::View;
use super::{Answer, Owner, What};

/// Extents dropped by one request: a disk does nothing else meanwhile.
const DROPPED_MAX: usize = 8;
/// Pause after a disk could not say or drop something.
const LATER_MS: u64 = 200;

/// The disks that are looked at.
#[derive(Debug, Default)]
pub(super) struct Sweeps {
    runs: BTreeMap<DiskId, Sweep>,
}

/// One disk.
#[derive(Debug)]
struct Sweep {
    /// First extent of the next page.
    from: u64,
    /// Of the last page: what is to be dropped, and whether it was the last.
    found: Vec<u64>,
    is_last: bool,
    asked: Option<u64>,
    /// More has moved away meanwhile: once more from the beginning.
    again: bool,
    /// Nothing is sent before.
    resume_ms: u64,
}

impl Sweep {
    fn new(resume_ms: u64) -> Self {
        Self { from: 0, found: Vec::new(), is_last: false, asked: None, again: false, resume_ms }
    }
}

impl Sweeps {
    pub(super) fn has(&self, disk: DiskId) -> bool {
        self.runs.contains_key(&disk)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }
}

impl Owner {
    /// Begins to look at the disks that a new map has taken copies from, or has back; at the first map, at all of them.
    pub(super) fn follow_moves(&mut self, earlier: Option<&View>) {
        let pool = &self.view.pool;
        let is_out = |disk: DiskId| pool.standing(disk).state == DiskState::Out;
        let had_left = |disk: DiskId| earlier.is_none_or(|it| it.pool.standing(disk).state == DiskState::Out);
        let left = earlier.map(|it| pool.left_since(&it.pool)).unwrap_or_default();
        let back = pool.disks().map(|(disk, _)| disk).filter(|it| pool.has_moved() && had_left(*it));
        let begun: Vec<DiskId> = back.chain(left).filter(|it| !is_out(*it)).collect();
        let gone: Vec<DiskId> = self.sweeps.runs.keys().copied().filter(|it| is_out(*it)).collect();
        for disk in gone {
            self.end_sweep(disk);
        }
        let resume_ms = self.now + self.config.limits.sweep_ms;
        for disk in begun {
            self.sweeps
                .runs
                .entry(disk)
                .and_modify(|sweep| sweep.again = true)
                .or_insert(Sweep::new(resume_ms));
        }
    }

    fn end_sweep(&mut self, disk: DiskId) {
        if let Some(Sweep { asked: Some(tag), .. }) = self.sweeps.runs.remove(&disk) {
            self.abandon(tag);
        }
    }

    /// When the next one goes on, of those that rest.
    pub(super) fn sweeps_due(&self) -> Option<u64> {
        self.sweeps.runs.values().filter(|it| it.asked.is_none()).map(|it| it.resume_ms).min()
    }

    /// Goes on with every disk that can be reached.
    pub(super) fn drive_sweeps(&mut self) {
        if self.sweeps.is_empty() || !self.is_serving() || self.view.deleting {
            return;
        }
        let now = self.now;
        let is_due = |(_, sweep): &(&DiskId, &Sweep)| sweep.asked.is_none() && sweep.resume_ms <= now;
        let due: Vec<DiskId> = self.sweeps.runs.iter().filter(is_due).map(|(disk, _)| *disk).collect();
        for disk in due {
            if self.is_usable(disk) {
                self.drive_sweep(disk);
            } else {
                self.put_off_sweep(disk);
            }
        }
    }

    fn put_off_sweep(&mut self, disk: DiskId) {
        let resume_ms = self.now + LATER_MS;
        if let Some(sweep) = self.sweeps.runs.get_mut(&disk) {
            sweep.resume_ms = resume_ms;
        }
    }

    fn is_held(&self, disk: DiskId, index: u64) -> bool {
        self.view.pool.is_held(disk, self.view.pool.partition(self.extent(index)))
    }

    fn drive_sweep(&mut self, disk: DiskId) {
        let Some(sweep) = self.sweeps.runs.get_mut(&disk) else { return };
        let mut extents = std::mem::take(&mut sweep.found);
        // The map may have put a copy there since they were listed.
        extents.retain(|index| !self.is_held(disk, *index));
        let (namespace, generation) = (self.namespace, self.config.generation);
        let Some(sweep) = self.sweeps.runs.get_mut(&disk) else { return };
        let tag = if extents.is_empty() {
            if sweep.is_last {
                if sweep.again {
                    *sweep = Sweep::new(self.now + self.config.limits.sweep_ms);
                } else {
                    self.end_sweep(disk);
                }
                return;
            }
            let from = sweep.from;
            self.send(
                disk,
                RequestBody::Extents { namespace, generation, from, newer_than: Version::NONE },
                What::Sweep,
            )
        } else {
            sweep.found = extents.clone();
            extents.truncate(DROPPED_MAX);
            self.send(disk, RequestBody::Drop { namespace, generation, extents }, What::Sweep)
        };
        if let Some(sweep) = self.sweeps.runs.get_mut(&disk) {
            sweep.asked = Some(tag);
        }
    }

    pub(super) fn swept(&mut self, disk: DiskId, tag: u64, answer: &Answer) {
        let (pool, namespace) = (&self.view.pool, self.namespace);
        let is_held = |index| pool.is_held(disk, pool.partition(ExtentId { namespace, index }));
        let Some(sweep) = self.sweeps.runs.get_mut(&disk).filter(|it| it.asked == Some(tag)) else { return };
        sweep.asked = None;
        match answer {
            Answer::Body(ReplyBody::Extents { list, next }) if is_listing(list, *next, sweep.from) => {
                sweep.from = next.unwrap_or(sweep.from);
                sweep.is_last = next.is_none();
                sweep.found = list.iter().map(|it| it.index).filter(|index| !is_held(*index)).collect();
            }
            Answer::Body(ReplyBody::Done) => {
                let dropped = sweep.found.len().min(DROPPED_MAX);
                sweep.found.drain(..dropped);
            }
            Answer::Body(_) => return self.distrust(disk),
            Answer::NoSpace | Answer::Corrupt(_) | Answer::Later | Answer::Unknown => {
                self.rest_after(disk, answer);
                return self.put_off_sweep(disk);
            }
        }
        self.drive_sweeps();
    }
}

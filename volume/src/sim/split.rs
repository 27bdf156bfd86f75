//! Two owners at the same time: networks that part, clocks of different rates, and volumes that are handed over.

use std::collections::BTreeSet;

use lunette_proto::ids::DiskId;

use super::world::{Happening, MS, World};
use crate::device::Outcome;
use crate::owner::Event;

/// Tags of hand-overs, beyond those of commands.
const HAND_OVER: u64 = 1 << 40;

impl World {
    /// Time in microseconds by the clock of an owner.
    pub(super) fn clock_of(&self, gateway: usize) -> u64 {
        let gateway = &self.gateways[gateway];
        gateway.ahead_us + self.now_us * gateway.rate / 1000
    }

    /// How long it takes until an owner's clock shows that time.
    pub(super) fn until_clock(&self, gateway: usize, at_us: u64) -> u64 {
        let left = at_us.saturating_sub(self.clock_of(gateway));
        (left * 1000).div_ceil(self.gateways[gateway].rate)
    }

    /// A clock that is up to 2.5 % wrong.
    pub(super) fn some_rate(&mut self) -> u64 {
        self.rng.between(975, 1025)
    }

    /// Between an owner and a disk nothing comes through for a while.
    fn cut(&mut self, owner: usize, disk: DiskId, until_us: u64) {
        self.cuts.insert((owner, disk), until_us);
        if self.rng.chance(300) {
            // The disk still hears the owner, until that gives up.
            self.deaf.insert((owner, disk));
            let wait = self.rng.between(MS, 60 * MS);
            self.at(wait, Happening::Silence { owner, disk });
        } else {
            let late = self.rng.chance(500);
            self.disconnect(owner, disk, late);
        }
    }

    pub(super) fn is_cut(&self, owner: usize, disk: DiskId) -> bool {
        !self.healed && self.cuts.get(&(owner, disk)).is_some_and(|until| *until > self.now_us)
    }

    /// An owner has heard nothing for too long.
    pub(super) fn silence(&mut self, owner: usize, disk: DiskId) {
        self.deaf.remove(&(owner, disk));
        self.disconnect(owner, disk, false);
    }

    fn some_disks(&mut self) -> BTreeSet<DiskId> {
        let all: Vec<DiskId> = self.disks.keys().copied().collect();
        let mut some: BTreeSet<DiskId> = all.iter().copied().filter(|_| self.rng.chance(500)).collect();
        if some.is_empty() {
            some.extend(self.rng.pick(&all));
        }
        some
    }

    /// The owner does not reach some disks.
    pub(super) fn isolate(&mut self, owner: usize) {
        let until = self.now_us + self.rng.between(MS, 80 * MS);
        for disk in self.some_disks() {
            self.cut(owner, disk, until);
        }
    }

    /// The network parts: the owner and some disks here, there the others and a new owner, which has removed what it does
    /// not reach. The one before hears nothing of it.
    pub(super) fn split(&mut self) {
        let (old, new) = (self.gateways.len() - 1, self.gateways.len());
        let until = self.now_us + self.rng.between(10 * MS, 200 * MS);
        let here = self.some_disks();
        for disk in self.disks.keys().copied().collect::<Vec<_>>() {
            if here.contains(&disk) {
                self.cuts.insert((new, disk), until);
            } else if self.rng.chance(900) {
                self.cut(old, disk, until);
            }
        }
        if self.rng.chance(300) {
            // One that has granted is started anew.
            let there: Vec<DiskId> = self.disks.keys().copied().filter(|it| !here.contains(it)).collect();
            self.rng.pick(&there).into_iter().for_each(|disk| self.crash_disk(disk, false));
        }
        self.gateways[old].uninformed_until = until;
        if self.removable && self.rng.chance(700) {
            here.into_iter().for_each(|disk| self.remove(disk));
        } else {
            let wait = self.rng.between(0, 50 * MS);
            self.at(wait, Happening::Evict { disks: here });
        }
        self.take_over(true);
        let wait = until - self.now_us + self.rng.between(0, 40 * MS);
        self.at(wait, Happening::Map { owner: old, event: Event::Resign });
    }

    /// The owner is told to give the volume away.
    pub(super) fn order_hand_over(&mut self) {
        let owner = self.gateways.len() - 1;
        self.drive(owner, Event::HandOver { tag: HAND_OVER + owner as u64 });
    }

    /// Whether that is the outcome of a hand-over, after which another owns the volume, soon, late or not at all.
    pub(super) fn handed_over(&mut self, tag: u64, outcome: &Outcome) -> bool {
        let Some(from) = tag.checked_sub(HAND_OVER) else { return false };
        if outcome.is_ok() && self.rng.chance(700) {
            let late = self.rng.chance(200);
            let wait = self.rng.between(0, if late { 200 * MS } else { 20 * MS });
            self.at(wait, Happening::HandOver { from: from as usize });
        }
        true
    }

    pub(super) fn hand_over(&mut self, from: usize) {
        if from + 1 == self.gateways.len() && !self.gateways[from].dead {
            self.take_over(true);
            let wait = self.rng.between(0, 20 * MS);
            self.at(wait, Happening::Map { owner: from, event: Event::Resign });
        }
    }
}

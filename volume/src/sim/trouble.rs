//! What goes wrong in a run.

use std::sync::Arc;

use lunette_proto::ids::{DiskId, Generation};
use lunette_proto::map::{Behind, DiskState};
use lunette_proto::node::Failure;

use super::world::{Happening, MS, PARTITIONS, World};
use crate::owner::{CatchUp, Event};

impl World {
    pub(super) fn disconnect(&mut self, owner: usize, disk: DiskId, late: bool) {
        let Some(conn) = self.gateways[owner].conns.get_mut(&disk) else {
            return;
        };
        if conn.id == 0 {
            return;
        }
        let broken = std::mem::replace(&mut conn.id, 0);
        let unanswered = std::mem::take(&mut conn.unanswered);
        if late {
            // Its requests arrive long after.
            let keys: Vec<(u64, u64)> = self
                .agenda
                .iter()
                .filter(|(_, what)| matches!(what, Happening::Deliver { conn, .. } if *conn == broken))
                .map(|(key, _)| *key)
                .collect();
            let extra = self.rng.between(0, 80 * MS);
            for key in keys {
                if let Some(what) = self.agenda.remove(&key) {
                    self.at(key.0 - self.now_us + extra, what);
                }
            }
        }
        self.drive(owner, Event::Lost { disk });
        for tag in unanswered {
            self.drive(owner, Event::Reply { tag, reply: Err(Failure::Disconnected) });
        }
        let back = self.rng.between(1, 40 * MS);
        self.at(back, Happening::Connect { owner, disk });
    }

    pub(super) fn crash_disk(&mut self, disk: DiskId, power: bool) {
        let back = self.rng.between(MS, 60 * MS);
        let Some((model, alive)) = self.disks.get_mut(&disk) else {
            return;
        };
        if !*alive {
            return;
        }
        *alive = false;
        if power {
            model.lose_power(&mut self.rng);
            let moment = self.tick_history();
            self.losses.push(moment);
        }
        // What was on its way to the process is gone with it.
        self.agenda.retain(|_, what| !matches!(what, Happening::Deliver { disk: to, .. } if *to == disk));
        self.at(back, Happening::Restart { disk });
        for owner in 0..self.gateways.len() {
            self.disconnect(owner, disk, false);
        }
    }

    pub(super) fn trouble(&mut self) {
        let disks: Vec<DiskId> = self.disks.keys().copied().collect();
        let catching_up: Vec<DiskId> =
            disks.iter().copied().filter(|it| self.states[it] == DiskState::CatchingUp).collect();
        let some = if catching_up.is_empty() || self.rng.chance(400) { &disks } else { &catching_up };
        let Some(disk) = self.rng.pick(some) else {
            return;
        };
        let last = self.gateways.len() - 1;
        // Disks that come and go need many comings and goings to be caught at a bad moment.
        match self.rng.below(if self.removable { 22 } else { 16 }) {
            0..5 => self.disconnect(last, disk, true),
            5..7 => self.crash_disk(disk, false),
            7..9 => self.crash_disk(disk, true),
            9 if self.rng.chance(300) => {
                for disk in disks {
                    self.crash_disk(disk, true);
                }
            }
            10..12 => {
                let wait = self.rng.between(0, 20 * MS);
                self.kill_owner();
                self.at(wait, Happening::Takeover { paused: false });
            }
            12 => self.take_over(true),
            13 | 16.. if self.removable => self.remove(disk),
            14 if self.tight => {
                for (model, _) in self.disks.values_mut() {
                    model.capacity = self.rng.between(0, 6) as usize;
                }
            }
            15 if self.corrupting => self.corrupt(disk),
            _ => {}
        }
    }

    /// The map takes a disk out, where that leaves enough of every partition.
    pub(super) fn remove(&mut self, disk: DiskId) {
        let min = usize::from(self.pool.redundancy.min_size());
        let enough = (0..u64::from(PARTITIONS)).all(|index| {
            let members = self.in_sync(index);
            !members.contains(&disk) || members.len() > min
        });
        if !enough
            || self.states[&disk] == DiskState::Out
            || self.disks.values().any(|(it, _)| !it.corrupt.is_empty())
        {
            return;
        }
        self.states.insert(disk, DiskState::Out);
        self.epoch.0 += 1;
        let rows = self.pool.table.rows().filter(|(_, row)| row.contains(&disk));
        let (since, partitions) = (self.epoch, rows.map(|(partition, _)| partition).collect());
        let behind = Behind { partitions, since, grown: since };
        self.behind.insert(disk, Arc::new(behind));
        self.tell_owners();
        let soon = self.rng.chance(500);
        let back = self.rng.between(0, if soon { 25 * MS } else { 150 * MS });
        self.at(back, Happening::Return { disk });
    }

    /// The disk is brought up to date.
    pub(super) fn bring_back(&mut self, disk: DiskId) {
        if self.states[&disk] != DiskState::Out {
            return;
        }
        self.states.insert(disk, DiskState::CatchingUp);
        self.epoch.0 += 1;
        if let Some(behind) = self.behind.get_mut(&disk) {
            Arc::make_mut(behind).since = self.epoch;
        }
        self.tell_owners();
        if !std::mem::replace(&mut self.watching, true) {
            self.at(MS, Happening::Watch);
        }
    }

    /// The control plane hears what the owner says of copies that do not count, and commits it a little later.
    pub(super) fn watch(&mut self) {
        self.watching = self.states.values().any(|state| *state == DiskState::CatchingUp);
        if !self.watching {
            return;
        }
        let generation = self.config.generation;
        let said = match self.gateways.last() {
            Some(gateway) if !gateway.dead => gateway.owner.catch_ups(),
            _ => Vec::new(),
        };
        for mut said in said {
            // Perhaps it has not heard of all of them.
            if self.rng.chance(300) {
                let some = said.ready.iter().filter(|_| self.rng.chance(500)).collect();
                said.ready = some;
            }
            let wait = self.rng.between(0, 30 * MS);
            self.at(wait, Happening::CaughtUp { generation, said });
        }
        let wait = self.rng.between(MS, 10 * MS);
        self.at(wait, Happening::Watch);
    }

    pub(super) fn caught_up(&mut self, generation: Generation, said: &CatchUp) {
        let Some(behind) = self.behind.get_mut(&said.disk) else { return };
        let is_old = generation != self.config.generation || said.epoch < behind.since;
        if is_old && !self.faults.believe_old_promises || self.states[&said.disk] != DiskState::CatchingUp {
            return;
        }
        let news: Vec<_> = said.ready.iter().filter(|it| behind.partitions.contains(*it)).collect();
        if news.is_empty() {
            return;
        }
        for partition in news {
            Arc::make_mut(behind).partitions.remove(partition);
        }
        if behind.partitions.is_empty() {
            self.behind.remove(&said.disk);
            self.states.insert(said.disk, DiskState::InSync);
        }
        self.epoch.0 += 1;
        self.tell_owners();
    }

    fn tell_owners(&mut self) {
        for owner in 0..self.gateways.len() {
            let wait = self.rng.between(0, 20 * MS);
            // To an owner of before, the map says first of all that it is none any more.
            let is_owner = owner + 1 == self.gateways.len();
            let event = if is_owner { Event::Map(self.view()) } else { Event::Resign };
            self.at(wait, Happening::Map { owner, event });
        }
    }

    /// One copy goes bad where the others are good.
    pub(super) fn corrupt(&mut self, disk: DiskId) {
        let Some(address) = self.hot_block() else {
            return;
        };
        let (extent, block) = self.place(address);
        let members = self.in_sync(extent.index);
        let same = |it: &DiskId| self.disks[it].0.block(extent, block);
        let clean = |it: &DiskId| !self.disks[it].0.corrupt.contains(&(extent, block));
        if members.len() > 1
            && members.contains(&disk)
            && members.iter().all(|it| same(it) == same(&disk) && clean(it))
            && let Some((model, _)) = self.disks.get_mut(&disk)
        {
            model.corrupt.insert((extent, block));
            if self.rng.chance(500) {
                model.lost.insert((extent, block));
            }
        }
    }
}

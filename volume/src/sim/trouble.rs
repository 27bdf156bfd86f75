//! What goes wrong in a run.

use lunette_proto::ids::DiskId;
use lunette_proto::map::DiskState;
use lunette_proto::node::Failure;

use super::world::{Happening, MS, World};
use crate::owner::Event;

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
        let back = self.rng.between(1, if self.faults.mostly_splits { 4 * MS } else { 40 * MS });
        self.at(back, Happening::Connect { owner, disk });
    }

    pub(super) fn crash_disk(&mut self, disk: DiskId, power: bool) {
        let back = self.rng.between(MS, if self.faults.mostly_splits { 6 * MS } else { 60 * MS });
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
        if self.faults.mostly_moves {
            return match self.rng.below(10) {
                0..4 => self.disconnect(last, disk, true),
                4..6 => self.cancel_move(),
                _ => self.begin_moves(),
            };
        }
        if self.rng.chance(if self.faults.mostly_splits { 500 } else { 40 }) {
            return self.split();
        }
        match self.rng.below(30) {
            0 => return self.order_hand_over(),
            1 => return self.isolate(last),
            _ => {}
        }
        // Disks that come and go need many comings and goings to be caught at a bad moment.
        match self.rng.below(if self.removable || self.moving { 28 } else { 16 }) {
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
            13 | 16..22 if self.removable => self.remove(disk),
            16.. if self.moving && self.rng.chance(200) => self.cancel_move(),
            16.. if self.moving => self.begin_moves(),
            14 if self.tight => {
                for (model, _) in self.disks.values_mut() {
                    model.capacity = self.rng.between(0, 6) as usize;
                }
            }
            15 if self.corrupting => self.corrupt(disk),
            _ => {}
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

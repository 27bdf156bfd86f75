//! The control plane: it takes disks out and back, moves copies, and counts those that the owner says are up to date.

use std::sync::Arc;

use lunette_proto::ids::{DiskId, Generation, Partition};
use lunette_proto::map::{Behind, DiskState, Move};

use super::world::{Happening, MS, PARTITIONS, World};
use crate::owner::{CatchUp, Event};

impl World {
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
        let rows =
            self.pool.table.rows().filter(|(_, row)| row.contains(&disk)).map(|(partition, _)| partition);
        let arriving = self.pool.moves.iter().filter(|(_, it)| it.to == disk).map(|(partition, _)| partition);
        let (since, partitions) = (self.epoch, rows.chain(arriving).collect());
        self.set_behind(disk, Behind { partitions, since, grown: since });
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
        self.epoch.0 += 1;
        if let Some(behind) = self.behind.get_mut(&disk) {
            let behind = Arc::make_mut(behind);
            (behind.since, behind.grown) = (self.epoch, self.epoch);
        }
        self.states.insert(disk, DiskState::CatchingUp);
        self.follow_state(disk);
        self.tell_owners();
        self.begin_to_watch();
    }

    fn begin_to_watch(&mut self) {
        if !std::mem::replace(&mut self.watching, true) {
            self.at(MS, Happening::Watch);
        }
    }

    fn set_behind(&mut self, disk: DiskId, behind: Behind) {
        if behind.partitions.is_empty() {
            self.behind.remove(&disk);
        } else {
            self.behind.insert(disk, Arc::new(behind));
        }
    }

    /// A disk that is there catches up if it misses something of what it is a member of.
    fn follow_state(&mut self, disk: DiskId) {
        if self.states[&disk] == DiskState::Out {
            return;
        }
        let misses = self
            .behind
            .get(&disk)
            .is_some_and(|behind| behind.partitions.iter().any(|it| self.pool.table.row(it).contains(&disk)));
        self.states.insert(disk, if misses { DiskState::CatchingUp } else { DiskState::InSync });
    }

    /// A copy, or several, are to change their disks.
    pub(super) fn begin_moves(&mut self) {
        let several = self.rng.between(1, 3);
        let mut begun = false;
        for _ in 0..several {
            begun |= self.begin_move();
        }
        if begun {
            self.tell_owners();
            self.begin_to_watch();
        }
    }

    fn begin_move(&mut self) -> bool {
        let partitions = if self.faults.mostly_moves { 3 } else { u64::from(PARTITIONS) };
        let partition = Partition(self.rng.below(partitions) as u32);
        let row = self.pool.table.row(partition).to_vec();
        let on_the_way = self.pool.moves.of(partition).to_vec();
        let free = |from: &DiskId| on_the_way.iter().all(|it| it.from != *from);
        let from: Vec<DiskId> = row.iter().copied().filter(free).collect();
        let target = |it: &DiskId| {
            self.states[it] != DiskState::Out
                && !row.contains(it)
                && on_the_way.iter().all(|other| other.to != *it)
        };
        let to: Vec<DiskId> = self.disks.keys().copied().filter(target).collect();
        let (Some(from), Some(to)) = (self.rng.pick(&from), self.rng.pick(&to)) else { return false };
        self.put_on_the_way(partition, Move { from, to });
        true
    }

    fn put_on_the_way(&mut self, partition: Partition, added: Move) {
        let to = added.to;
        self.epoch.0 += 1;
        Arc::make_mut(&mut self.pool.moves).insert(partition, added);
        let mut behind = self
            .behind
            .get(&to)
            .map_or(Behind { since: self.epoch, ..Behind::default() }, |behind| behind.as_ref().clone());
        behind.partitions.insert(partition);
        if !self.faults.believe_of_other_copies || behind.partitions.len() == 1 {
            behind.grown = self.epoch;
        }
        self.set_behind(to, behind);
    }

    /// A move is not wanted any more.
    pub(super) fn cancel_move(&mut self) {
        let all: Vec<(Partition, Move)> = self.pool.moves.iter().collect();
        let Some((partition, cancelled @ Move { to, .. })) = self.rng.pick(&all) else { return };
        self.epoch.0 += 1;
        Arc::make_mut(&mut self.pool.moves).remove(partition, to);
        Arc::make_mut(&mut self.pool.table).version += 1;
        self.no_more_behind(to, partition);
        if self.rng.chance(300) {
            self.tell_owners();
        }
        // Perhaps it is wanted after all.
        match self.rng.below(3) {
            0 => self.put_on_the_way(partition, cancelled),
            1 => {
                let wait = self.rng.between(2 * MS, 60 * MS);
                self.at(wait, Happening::Move { partition, wanted: cancelled });
            }
            _ => {}
        }
        self.tell_owners();
    }

    /// A move is wanted, if it is still possible.
    pub(super) fn move_if_possible(&mut self, partition: Partition, wanted: Move) {
        let row = self.pool.table.row(partition);
        let mut others = self.pool.moves.of(partition).iter();
        let is_free = others.all(|it| it.from != wanted.from && it.to != wanted.to);
        if is_free
            && row.contains(&wanted.from)
            && !row.contains(&wanted.to)
            && self.states[&wanted.to] != DiskState::Out
        {
            self.put_on_the_way(partition, wanted);
            self.tell_owners();
            self.begin_to_watch();
        }
    }

    fn no_more_behind(&mut self, disk: DiskId, partition: Partition) {
        if let Some(behind) = self.behind.get_mut(&disk) {
            let behind = Arc::make_mut(behind);
            behind.partitions.remove(partition);
            let behind = behind.clone();
            self.set_behind(disk, behind);
        }
        self.follow_state(disk);
    }

    /// The control plane hears what the owner says of copies that do not count, and commits it a little later.
    pub(super) fn watch(&mut self) {
        self.watching = self.behind.keys().any(|disk| self.states[disk] != DiskState::Out);
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
        let disk = said.disk;
        let Some(behind) = self.behind.get(&disk) else { return };
        let is_old = generation != self.config.generation
            || said.epoch < behind.since
            || said.epoch < behind.grown && !self.faults.believe_of_other_copies;
        if is_old && !self.faults.believe_old_promises || self.states[&disk] == DiskState::Out {
            return;
        }
        let news: Vec<_> = said.ready.iter().filter(|it| behind.partitions.contains(*it)).collect();
        if news.is_empty() {
            return;
        }
        self.epoch.0 += 1;
        for partition in news {
            if let Some(done) = Arc::make_mut(&mut self.pool.moves).remove(partition, disk) {
                let table = Arc::make_mut(&mut self.pool.table);
                assert!(table.replace(partition, done), "it moves from a disk of the row");
                table.version += 1;
                self.no_more_behind(done.from, partition);
            }
            self.no_more_behind(disk, partition);
        }
        self.tell_owners();
    }

    fn tell_owners(&mut self) {
        for owner in 0..self.gateways.len() {
            let wait = self.rng.between(0, 20 * MS);
            if self.gateways[owner].uninformed_until > self.now_us {
                continue;
            }
            // To an owner of before, the map says first of all that it is none any more.
            let is_owner = owner + 1 == self.gateways.len();
            let event = if is_owner { Event::Map(self.view()) } else { Event::Resign };
            self.at(wait, Happening::Map { owner, event });
        }
    }
}

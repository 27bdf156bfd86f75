//! Owners, disks and the network between them, in virtual time, from one seed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lunette_proto::ids::{
    ClusterId, DiskId, Epoch, ExtentId, Generation, Namespace, Partition, PoolId, VolumeId,
};
use lunette_proto::limits::{BLOCK_BYTES, EXTENT_BYTES};
use lunette_proto::map::{Behind, DiskState, FailureDomain, Move, Pool, Redundancy, Stripe, Table};
use lunette_proto::node::{Failure, Reply, Request};

use super::disk::ModelDisk;
use super::rng::Rng;
use crate::device::{Command, Outcome};
use crate::layout::Layout;
use crate::owner::{Action, CatchUp, Config, Event, Limits, Owner, Plant, PoolView, Standing, View};

pub(super) const VOLUME: VolumeId = VolumeId(7);
pub(super) const SECTOR: u64 = 512;
pub(super) const BLOCK: u64 = BLOCK_BYTES as u64;
pub(super) const EXTENT: u64 = EXTENT_BYTES as u64;
pub(super) const PARTITIONS: u32 = 8;
pub(super) const MS: u64 = 1000;
/// Time that everything must be over in after the last fault.
pub(super) const HEAL_MS: u64 = 20_000;

/// What goes wrong in a run.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faults {
    pub(super) planted: Option<Plant>,
    pub(super) forget_generation: bool,
    /// The control plane believes what was said before a disk left.
    pub(super) believe_old_promises: bool,
    /// The control plane believes what was said of a copy that the disk had before.
    pub(super) believe_of_other_copies: bool,
    /// Nothing but moves, broken connections and requests that arrive late: for what needs many of them.
    pub(super) mostly_moves: bool,
    /// Networks that part all the time, with reads on both sides.
    pub(super) mostly_splits: bool,
    /// Disks answer seals whatever they have granted.
    pub(super) seal_at_once: bool,
    /// Disks that are started anew take it that nothing was granted before.
    pub(super) forget_grants: bool,
}

#[derive(Debug)]
pub(super) enum Happening {
    Deliver {
        owner: usize,
        disk: DiskId,
        conn: u64,
        tag: u64,
        request: Request,
    },
    Answer {
        owner: usize,
        disk: DiskId,
        conn: u64,
        tag: u64,
        reply: Reply,
    },
    Timer {
        owner: usize,
        at: u64,
    },
    Map {
        owner: usize,
        event: Event,
    },
    Submit,
    Trouble,
    Connect {
        owner: usize,
        disk: DiskId,
    },
    Restart {
        disk: DiskId,
    },
    Takeover {
        paused: bool,
    },
    /// An owner has heard nothing of a disk for too long.
    Silence {
        owner: usize,
        disk: DiskId,
    },
    /// The map takes out what the owner does not reach.
    Evict {
        disks: BTreeSet<DiskId>,
    },
    /// The map names the next owner.
    HandOver {
        from: usize,
    },
    /// A disk that has left is there again.
    Return {
        disk: DiskId,
    },
    /// A copy is to change its disk.
    Move {
        partition: Partition,
        wanted: Move,
    },
    /// The control plane looks at what the owner says.
    Watch,
    /// It has committed what it saw.
    CaughtUp {
        generation: Generation,
        said: CatchUp,
    },
}

#[derive(Debug)]
pub(super) struct Conn {
    /// 0 is none.
    pub(super) id: u64,
    pub(super) unanswered: Vec<u64>,
    pub(super) last_us: u64,
}

pub(super) struct Gateway {
    pub(super) owner: Owner,
    pub(super) dead: bool,
    pub(super) timer: u64,
    /// Its clock, in thousandths of true time, and how far it is ahead.
    pub(super) rate: u64,
    pub(super) ahead_us: u64,
    /// Until when it hears of no map.
    pub(super) uninformed_until: u64,
    pub(super) conns: BTreeMap<DiskId, Conn>,
}

pub(super) struct Record {
    pub(super) command: Command,
    pub(super) gateway: usize,
    pub(super) called: usize,
    pub(super) answered: Option<usize>,
    pub(super) outcome: Option<Outcome>,
}

pub(super) struct World {
    pub(super) seed: u64,
    pub(super) rng: Rng,
    pub(super) faults: Faults,
    pub(super) now_us: u64,
    pub(super) order: u64,
    pub(super) agenda: BTreeMap<(u64, u64), Happening>,
    pub(super) disks: BTreeMap<DiskId, (ModelDisk, bool)>,
    /// Their clocks, in thousandths of true time.
    pub(super) rates: BTreeMap<DiskId, u64>,
    pub(super) states: BTreeMap<DiskId, DiskState>,
    pub(super) behind: BTreeMap<DiskId, Arc<Behind>>,
    /// Whether the control plane looks at what is caught up.
    pub(super) watching: bool,
    pub(super) pool: Pool,
    pub(super) epoch: Epoch,
    pub(super) size: u64,
    pub(super) deleting: bool,
    pub(super) config: Config,
    pub(super) gateways: Vec<Gateway>,
    pub(super) conns: u64,
    /// Between whom nothing comes through, and until when.
    pub(super) cuts: BTreeMap<(usize, DiskId), u64>,
    /// Owners that hear nothing of a disk which hears them.
    pub(super) deaf: BTreeSet<(usize, DiskId)>,
    pub(super) records: Vec<Record>,
    /// Power losses, by their place in the history.
    pub(super) losses: Vec<usize>,
    pub(super) moment: usize,
    pub(super) left: usize,
    /// Commands outstanding at most.
    pub(super) depth: usize,
    pub(super) healed: bool,
    pub(super) tight: bool,
    pub(super) corrupting: bool,
    pub(super) removable: bool,
    /// Copies are moved from disk to disk.
    pub(super) moving: bool,
    pub(super) purged: bool,
    pub(super) acked: usize,
    /// What sectors may hold, as far as anybody has heard: what comparisons bet on.
    pub(super) guesses: BTreeMap<u64, u32>,
}

impl World {
    pub(super) fn new(seed: u64, ops: usize, faults: Faults) -> Self {
        let mut rng = Rng::new(seed);
        let (fewest, most) = match faults {
            Faults { mostly_moves: true, .. } => (1, 2),
            Faults { mostly_splits: true, .. } => (2, 3),
            _ => (1, 3),
        };
        let replicas = rng.between(fewest, most) as u8;
        let spare = if faults.mostly_moves { 1 } else { 0 };
        let count = rng.between(u64::from(replicas) + spare, 5) as u32;
        let mut cells = Vec::new();
        for row in 0..PARTITIONS {
            cells.extend((0..u32::from(replicas)).map(|column| DiskId((row + column) % count)));
        }
        let min_size = if replicas == 3 { 2 } else { 1 };
        let pool = Pool {
            id: PoolId(1),
            name: "pool".into(),
            redundancy: Redundancy::Replicated { replicas, min_size },
            failure_domain: FailureDomain::Disk,
            table: Arc::new(Table::new(1, replicas, cells)),
            moves: Arc::default(),
        };
        let stripe = rng.chance(400).then(|| Stripe {
            unit_bytes: if rng.chance(300) { 256 << 10 } else { 16 << 10 },
            width: rng.between(2, 3) as u16,
        });
        let size = 6 * EXTENT;
        let write_back = rng.chance(350);
        // Of the six extents; disks list a few more than owners use, as in earnest.
        let dirty_max = if rng.chance(300) { rng.between(1, 4) as usize } else { usize::MAX };
        let config = Config {
            cluster: ClusterId(1),
            volume: VOLUME,
            generation: Generation(0),
            layout: Layout::new(stripe).expect("a valid stripe"),
            block_bytes: 512,
            write_back,
            limits: Limits {
                wait_ms: 60,
                operations_max: 256,
                bytes_max: 1 << 20,
                zero_operations_max: 2,
                dirty_max,
                reconcile_max: 2,
                hedge_ms: 15,
                watermark_ms: if rng.chance(300) { 250 } else { 20 },
                survey_ms: None,
                sweep_ms: if rng.chance(500) { 0 } else { rng.between(1, 100) },
                grant_ms: rng.between(20, 80) as u32,
                hand_over_ms: 100,
            },
        };
        let disks = (0..count)
            .map(|id| {
                let mut disk = ModelDisk::new(DiskId(id));
                disk.forgets_generation = faults.forget_generation;
                disk.dirty_max = dirty_max.saturating_add(2);
                disk.granted_ms_max = u64::from(config.limits.grant_ms) * 11 / 10 + 1;
                disk.answers_seals_at_once = faults.seal_at_once;
                disk.forgets_grants = faults.forget_grants;
                (DiskId(id), (disk, true))
            })
            .collect();
        let rates = (0..count).map(|id| (DiskId(id), rng.between(975, 1025))).collect();
        let mostly = faults.mostly_moves || faults.mostly_splits;
        let tight = rng.chance(250) && !mostly;
        let mut world = Self {
            seed,
            faults,
            now_us: 0,
            order: 0,
            agenda: BTreeMap::new(),
            disks,
            rates,
            behind: BTreeMap::new(),
            watching: false,
            states: (0..count).map(|id| (DiskId(id), DiskState::InSync)).collect(),
            pool,
            epoch: Epoch(1),
            size,
            deleting: false,
            config,
            gateways: Vec::new(),
            conns: 0,
            cuts: BTreeMap::new(),
            deaf: BTreeSet::new(),
            records: Vec::new(),
            losses: Vec::new(),
            moment: 0,
            left: ops,
            depth: rng.between(1, 12) as usize,
            healed: false,
            tight,
            // A bad copy beside another with lost memory would be one fault too many.
            corrupting: !tight && !write_back && !mostly && rng.chance(400),
            removable: (rng.chance(500) || faults.mostly_splits) && !faults.mostly_moves,
            moving: rng.chance(500) || faults.mostly_moves,
            purged: false,
            acked: 0,
            guesses: BTreeMap::new(),
            rng,
        };
        world.take_over(false);
        world.at(0, Happening::Submit);
        world.at(5 * MS, Happening::Trouble);
        world
    }

    /// Runs to the end; what is wrong, if anything.
    pub(super) fn run(mut self) -> Result<usize, String> {
        self.until_idle()?;
        self.heal();
        self.until_idle()?;
        for _ in 0..2 {
            self.read_all();
            self.until_idle()?;
            self.kill_owner();
            // What the last one was granted is over: the reads come at once.
            self.now_us += 200 * MS;
            self.take_over(false);
        }
        self.read_all();
        self.until_idle()?;
        self.same_replicas()?;
        self.explain()?;
        self.delete()?;
        Ok(self.acked)
    }

    pub(super) fn fail<T>(&self, what: impl std::fmt::Display) -> Result<T, String> {
        Err(format!("seed {}: {what} (at {} us, {:?})", self.seed, self.now_us, self.config.layout))
    }

    pub(super) fn at(&mut self, in_us: u64, what: Happening) {
        self.order += 1;
        self.agenda.insert((self.now_us + in_us, self.order), what);
    }

    pub(super) fn until_idle(&mut self) -> Result<(), String> {
        let end = self.now_us + HEAL_MS * MS * if self.healed { 1 } else { 100 };
        while let Some(((at, _), what)) = self.agenda.pop_first() {
            self.now_us = at;
            if at > end {
                let open: Vec<_> = self.open().collect();
                return self.fail(format!(
                    "not over in time; open {open:?} {:#?}",
                    self.gateways.last().map(|it| &it.owner)
                ));
            }
            self.happen(what);
            // A full disk may never be up to date.
            if !self.healed && self.left == 0 && !self.behind.is_empty() && self.open().next().is_none() {
                return Ok(());
            }
        }
        match self.open().next() {
            Some(open) => self.fail(format!("command {open} was never answered")),
            None => Ok(()),
        }
    }

    /// Commands that are not answered.
    pub(super) fn open(&self) -> impl Iterator<Item = usize> {
        let open = |record: &Record| record.answered.is_none();
        self.records.iter().enumerate().filter(move |(_, record)| open(record)).map(|(id, _)| id)
    }

    pub(super) fn view(&self) -> View {
        // Reads prefer a local disk: the owners take turns in which one that is.
        let near = DiskId((self.gateways.len() % self.states.len()) as u32);
        let standing =
            |(disk, state): (&DiskId, &DiskState)| (*disk, Standing { state: *state, local: *disk == near });
        let standing = self.states.iter().map(standing).collect();
        let pool = PoolView::new(
            &self.pool,
            |extent: ExtentId, partitions| Partition((extent.index % u64::from(partitions)) as u32),
            &standing,
            |disk| self.behind.get(&disk).cloned(),
        );
        View { epoch: self.epoch, size_bytes: self.size, deleting: self.deleting, pool: Arc::new(pool) }
    }

    pub(super) fn take_over(&mut self, paused: bool) {
        if !paused {
            self.kill_owner();
        }
        self.config.generation.0 += 1;
        self.epoch.0 += 1;
        let mut owner = Owner::new(self.config.clone(), self.view());
        owner.plant(self.faults.planted);
        let conns =
            self.disks.keys().map(|disk| (*disk, Conn { id: 0, unanswered: vec![], last_us: 0 })).collect();
        let (rate, ahead_us) = (self.some_rate(), self.rng.below(1 << 40));
        let (timer, uninformed_until) = (u64::MAX, 0);
        self.gateways.push(Gateway { owner, dead: false, timer, rate, ahead_us, uninformed_until, conns });
        let gateway = self.gateways.len() - 1;
        for disk in self.disks.keys().copied().collect::<Vec<_>>() {
            self.connect(gateway, disk);
        }
        self.drive(gateway, Event::Tick);
    }

    pub(super) fn kill_owner(&mut self) {
        let moment = self.tick_history();
        for gateway in &mut self.gateways {
            gateway.dead = true;
        }
        for record in &mut self.records {
            record.answered.get_or_insert(moment);
        }
    }

    pub(super) fn tick_history(&mut self) -> usize {
        self.moment += 1;
        self.moment
    }

    pub(super) fn drive(&mut self, gateway: usize, event: Event) {
        if self.gateways[gateway].dead {
            return;
        }
        let mut actions = Vec::new();
        let now_ms = self.clock_of(gateway) / MS;
        self.gateways[gateway].owner.handle(now_ms, event, &mut actions);
        for action in actions {
            match action {
                Action::Send { disk, tag, request } => self.send(gateway, disk, tag, request),
                Action::Complete { tag, outcome } if self.handed_over(tag, &outcome) => {}
                Action::Complete { tag, outcome } => self.complete(tag, outcome),
                Action::SetTimer { at_ms } => {
                    self.gateways[gateway].timer = at_ms;
                    let wait = self.until_clock(gateway, at_ms * MS);
                    self.at(wait, Happening::Timer { owner: gateway, at: at_ms });
                }
                Action::Purged => self.purged = true,
                Action::News => {}
            }
        }
    }

    pub(super) fn send(&mut self, owner: usize, disk: DiskId, tag: u64, request: Request) {
        let delay = self.delay();
        let now = self.now_us;
        let Some(conn) = self.gateways[owner].conns.get_mut(&disk) else {
            return;
        };
        if conn.id == 0 {
            let reply = Err(Failure::Disconnected);
            return self.at(0, Happening::Answer { owner, disk, conn: u64::MAX, tag, reply });
        }
        conn.unanswered.push(tag);
        conn.last_us = conn.last_us.max(now + delay);
        let (id, wait) = (conn.id, conn.last_us - now);
        self.at(wait, Happening::Deliver { owner, disk, conn: id, tag, request });
    }

    pub(super) fn delay(&mut self) -> u64 {
        if self.healed {
            return self.rng.between(50, 300);
        }
        let slow = self.rng.chance(if self.faults.mostly_splits { 100 } else { 30 });
        self.rng.between(50, if slow { 30 * MS } else { 1500 })
    }

    pub(super) fn happen(&mut self, what: Happening) {
        match what {
            Happening::Deliver { owner, disk, conn, tag, request } => {
                self.deliver(owner, disk, conn, tag, &request)
            }
            Happening::Answer { owner, disk, conn, tag, reply } => {
                if conn != u64::MAX {
                    let Some(it) = self.gateways[owner].conns.get_mut(&disk) else {
                        return;
                    };
                    if it.id != conn {
                        return;
                    }
                    it.unanswered.retain(|other| *other != tag);
                }
                self.drive(owner, Event::Reply { tag, reply });
            }
            Happening::Timer { owner, at } => {
                if self.gateways[owner].timer == at {
                    self.drive(owner, Event::Tick);
                }
            }
            Happening::Map { owner, event } => self.drive(owner, event),
            Happening::Submit => self.submit_some(),
            Happening::Trouble => {
                if self.left > 0 {
                    self.trouble();
                    let next = self.rng.between(MS, 25 * MS);
                    self.at(next, Happening::Trouble);
                }
            }
            Happening::Connect { owner, disk } => self.connect(owner, disk),
            Happening::Restart { disk } => {
                let now_ms = self.time_of(disk);
                if let Some((model, alive)) = self.disks.get_mut(&disk) {
                    *alive = true;
                    model.now_ms = now_ms;
                    model.restarted();
                }
            }
            Happening::Takeover { paused } => self.take_over(paused),
            Happening::Silence { owner, disk } => self.silence(owner, disk),
            Happening::Evict { disks } if self.removable => {
                disks.into_iter().for_each(|disk| self.remove(disk));
            }
            Happening::Evict { .. } => {}
            Happening::HandOver { from } => self.hand_over(from),
            Happening::Return { disk } => self.bring_back(disk),
            Happening::Move { partition, wanted } => self.move_if_possible(partition, wanted),
            Happening::Watch => self.watch(),
            Happening::CaughtUp { generation, said } => self.caught_up(generation, &said),
        }
    }

    pub(super) fn deliver(&mut self, owner: usize, disk: DiskId, conn: u64, tag: u64, request: &Request) {
        let current = self.gateways[owner].conns.get(&disk).is_some_and(|it| it.id == conn);
        // A broken connection may still hold requests that the node reads later, or not at all.
        if !current && self.rng.chance(400) {
            return;
        }
        let busy = !self.healed && self.rng.chance(10);
        let now_ms = self.time_of(disk);
        let Some((model, true)) = self.disks.get_mut(&disk) else {
            return;
        };
        model.now_ms = now_ms;
        let reply = if busy { Err(Failure::Busy) } else { model.call(request) };
        assert_ne!(reply, Err(Failure::Invalid), "{request:?}");
        if current && !self.deaf.contains(&(owner, disk)) {
            let delay = self.delay();
            self.at(delay, Happening::Answer { owner, disk, conn, tag, reply });
        }
    }

    /// Time in milliseconds by a disk's clock.
    fn time_of(&self, disk: DiskId) -> u64 {
        self.now_us * self.rates[&disk] / 1000 / MS
    }

    pub(super) fn connect(&mut self, owner: usize, disk: DiskId) {
        if self.gateways[owner].dead {
            return;
        }
        if !self.disks[&disk].1 || self.is_cut(owner, disk) {
            return self.at(5 * MS, Happening::Connect { owner, disk });
        }
        self.conns += 1;
        let id = self.conns;
        if let Some(conn) = self.gateways[owner].conns.get_mut(&disk) {
            conn.id = id;
            conn.last_us = self.now_us;
        }
    }

    pub(super) fn in_sync(&self, index: u64) -> Vec<DiskId> {
        let row = self.pool.table.row(Partition((index % u64::from(PARTITIONS)) as u32));
        let partition = Partition((index % u64::from(PARTITIONS)) as u32);
        let is_behind =
            |disk: &DiskId| self.behind.get(disk).is_some_and(|behind| behind.partitions.contains(partition));
        row.iter().copied().filter(|disk| !is_behind(disk)).collect()
    }

    pub(super) fn place(&self, address: u64) -> (ExtentId, u32) {
        let run = self.config.layout.runs(address, BLOCK).next().expect("not empty");
        (ExtentId { namespace: Namespace::volume(VOLUME), index: run.extent }, run.offset / BLOCK_BYTES)
    }

    pub(super) fn submit(&mut self, gateway: usize, command: Command) {
        let called = self.tick_history();
        let dead = self.gateways[gateway].dead;
        let answered = dead.then_some(called);
        self.records.push(Record { command: command.clone(), gateway, called, answered, outcome: None });
        let tag = self.records.len() as u64 - 1;
        self.drive(gateway, Event::Command { tag, command });
    }

    pub(super) fn complete(&mut self, tag: u64, outcome: Outcome) {
        let moment = self.tick_history();
        let record = &mut self.records[tag as usize];
        assert!(record.outcome.is_none(), "seed {}: command {tag} answered twice", self.seed);
        self.acked += usize::from(outcome.is_ok());
        record.answered = Some(moment);
        record.outcome = Some(outcome);
        self.guess(tag);
    }

    pub(super) fn heal(&mut self) {
        self.healed = true;
        for (model, _) in self.disks.values_mut() {
            model.capacity = usize::MAX;
        }
        for disk in self.disks.keys().copied().collect::<Vec<_>>() {
            self.bring_back(disk);
        }
        // The last of the owners is the one that the control plane knows.
        if self.gateways.last().is_none_or(|it| it.dead || it.owner.is_over()) {
            self.take_over(false);
        }
    }

    pub(super) fn read_all(&mut self) {
        let owner = self.gateways.len() - 1;
        for block in Self::hot_blocks().collect::<Vec<_>>() {
            self.submit(owner, Command::Read { offset: block, len: BLOCK_BYTES });
        }
        // And what was written as a whole.
        let bytes = u64::from(self.config.layout.atomic_bytes());
        let ranges: BTreeSet<u64> = Self::hot_blocks().map(|block| block - block % bytes).collect();
        for offset in ranges {
            self.submit(owner, Command::Read { offset, len: bytes as u32 });
        }
        self.submit(owner, Command::Mapping { offset: 0, len: self.size });
    }

    /// The volume goes, and takes its space with it.
    pub(super) fn delete(&mut self) -> Result<(), String> {
        self.deleting = true;
        self.epoch.0 += 1;
        let owner = self.gateways.len() - 1;
        let event = Event::Map(self.view());
        self.at(0, Happening::Map { owner, event });
        self.until_idle()?;
        for (disk, (model, _)) in &self.disks {
            if self.states[disk] == DiskState::InSync && !model.is_blank() {
                return self.fail(format!("{disk} still has data of the deleted volume"));
            }
        }
        if self.purged { Ok(()) } else { self.fail("never purged") }
    }
}

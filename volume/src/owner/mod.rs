//! The owner of a volume: one ordering point for all its commands, and the replication below it.
//!
//! ```text
//!     command --> commands split at extents --> operations locked by block --> members of the extent
//!                                                      ^
//!     map, seals, reconciliation: decide which extents are open
//! ```
//!
//! A state machine without I/O: [`Owner::handle`] takes what happened and the time, and leaves
//! [`Action`]s. The rules that it keeps, by their numbers in `docs/invariants.md`:
//!
//! - A write is acked when every member in sync has it durable and they are at least `min_size` (2).
//!   A member that does not answer holds its writes up until the map removes it (3).
//! - What was read is answered while enough members grant that nobody else owns the volume (34, see `grants.rs`).
//! - An extent is served once every member in sync has sealed and, if it was dirty, agrees with the
//!   others on every block (4, 19). Reads come from members in sync only (8).
//! - A block that is changed in part, compared or ORed is read and written under one lock. What was decided by that is a
//!   write like any other from then on (14).
//! - A write inside one space unit of one extent is one message to each member, and so is all that finishes or
//!   withdraws it: it is never seen in part.
//! - A mutation that was sent is never given up (see `op.rs`): a command that waited too long is
//!   answered, its blocks stay locked.
//! - **No space is withdrawn.** When some members took a change and others had no room for it, the
//!   old content, which those others still have, goes to all members under a new version before the
//!   command is answered and the blocks are unlocked. That needs no space: where the old content is
//!   a hole it is a discard, elsewhere an overwrite. Where a takeover cannot bring a lagging member
//!   forward, that member has holes, and all get holes: what it lacks was never acked.
//! - **A bad copy is rewritten under a new version.** The content is read from a good member and
//!   written to all, under the lock, like any write of the same content.
//! - **Damage is repaired before anybody reads it.** Disks name what their scrubbers find; it is brought back from
//!   another member under the versions that it has there (see `heal.rs`).
//! - **Unreadable is remembered.** If the newest version of a block cannot be read from anybody,
//!   the block answers with a medium error until it is overwritten whole, and no watermark is sent
//!   meanwhile, so that the next owner finds the extent dirty and knows it too.
//! - Changes of many extents wait for the watermark before they take a sequence number: disks list a
//!   bounded number of extents, and a takeover must find room there for what it brings to a member.
//! - On a write-back volume a lost connection may mean a lost memory: the extents changed since
//!   the last flush are reconciled before they are served again, and watermarks follow flushes.

mod atomic;
mod cache;
mod catch_up;
mod command;
mod disks;
mod event;
mod gaps;
mod grants;
mod hand_over;
mod hazard;
mod heal;
mod housekeeping;
mod mapping;
mod op;
mod pace;
mod patch;
mod read;
mod reconcile;
mod sweep;
mod view;
mod write;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use lunette_proto::ids::{DiskId, Epoch, ExtentId, Namespace};
use lunette_proto::node::{Failure, Reply, ReplyBody};
use slab::Slab;

pub(crate) use event::Plant;
pub use event::{Action, CatchUp, Complaint, Config, Event, Limits, Limping, Trouble};
pub use view::{Members, PartitionOf, PoolView, Standing, View};

use crate::device::{DeviceError, Readiness};
use cache::Cache;
use catch_up::CatchUps;
use command::Command;
use disks::Disk;
use grants::Grants;
use hand_over::HandOver;
use hazard::Locks;
use heal::Heals;
use housekeeping::{Flush, Mark, Purge};
use op::{Op, Phase};
use reconcile::Reconcile;
use sweep::Sweeps;

/// How often time is looked at while something is going on.
const TICK_MS: u64 = 20;
/// The same while nobody waits for it.
const IDLE_TICK_MS: u64 = 100;

/// The owner of one volume under one generation. See the module's documentation.
#[derive(Debug)]
pub struct Owner {
    config: Config,
    namespace: Namespace,
    view: View,
    stage: Stage,
    now: u64,
    timer: Option<u64>,
    out: Vec<Action>,

    disks: BTreeMap<DiskId, Disk>,
    /// When it is looked at how fast they are.
    paces_due_ms: u64,
    pending: Slab<Pending>,
    serial: u32,

    commands: Slab<Command>,
    /// Zeroing commands that have not queued all their operations, in order.
    zeroing: Vec<usize>,
    /// Commands behind them, in order.
    deferred: VecDeque<usize>,
    recheck_deferred: bool,

    ops: Slab<Op>,
    /// Data that operations were queued with.
    held_bytes: u64,
    locks: BTreeMap<u64, Locks>,
    /// Operations to be started, if nothing is in their way.
    ready: VecDeque<usize>,
    repairs: BTreeSet<(u64, u32)>,
    heals: Heals,
    catch_ups: CatchUps,
    sweeps: Sweeps,

    /// Extents whose members may differ.
    dirty: BTreeSet<u64>,
    reconciles: BTreeMap<u64, Reconcile>,
    /// Blocks that nobody can read.
    unreadable: BTreeSet<(u64, u32)>,

    last_seq: u64,
    /// First sequence numbers of operations that are not finished.
    unresolved: BTreeSet<u64>,
    /// Extents with changes that are not on stable media, and the last of them.
    unflushed: BTreeMap<u64, u64>,
    /// Changes up to this one are on stable media; `None` before the first flush.
    flushed: Option<u64>,
    cache: Cache,
    hand_over: HandOver,
    grants: Grants,
    flush: Option<Flush>,
    flush_waiting: Vec<usize>,
    /// The last watermark, and since when.
    mark: Option<Mark>,
    mark_ms: u64,
    /// Extents that disks may list as changed since the watermark that all of them have, with the last change.
    changed: BTreeMap<u64, u64>,
    /// Changes wait for room among them.
    crowded: bool,

    #[cfg(test)]
    plant: Option<Plant>,
}

/// ```text
///     Serving --deleted in the map, nothing in flight--> Purging --> Purged
///        `--a higher generation is sealed--> Stopped (also from the others)
/// ```
#[derive(Debug)]
enum Stage {
    Serving,
    Purging(Purge),
    Purged,
    Stopped(DeviceError),
}

/// A request without its answer.
#[derive(Debug)]
struct Pending {
    serial: u32,
    disk: DiskId,
    sent_ms: u64,
    what: What,
}

/// What an answer is for.
#[derive(Debug)]
enum What {
    Seal {
        under: Epoch,
    },
    /// A disk that is sealed already, once more under a newer map.
    Fence {
        under: Epoch,
    },
    Probe,
    Read {
        op: usize,
    },
    Leg {
        op: usize,
    },
    Versions {
        extent: u64,
    },
    Heal {
        op: usize,
    },
    /// The extents that may differ on a disk that is brought up to date.
    Listing {
        of: DiskId,
    },
    /// The versions of an extent, for the same.
    Look {
        of: DiskId,
        extent: u64,
    },
    /// What a disk has left of copies that have moved away, or that it is to drop it.
    Sweep,
    Flush,
    Watermark,
    /// That reads may be answered, from when it was sent.
    Grant {
        sent_ms: u64,
    },
    /// That none will be.
    GiveBack,
    Delete,
    Abandoned,
}

/// What an answer says to the one who waits for it; what it says about the disk was noted before.
#[derive(Debug)]
enum Answer {
    Body(ReplyBody),
    NoSpace,
    Corrupt(u32),
    /// Nothing was changed; try again.
    Later,
    /// It may or may not have happened, also later.
    Unknown,
}

impl Owner {
    /// Takes ownership: call [`handle`](Self::handle) with [`Event::Tick`] to begin.
    #[must_use]
    pub fn new(config: Config, view: View) -> Self {
        let namespace = Namespace::volume(config.volume);
        let mut owner = Self {
            namespace,
            view,
            stage: Stage::Serving,
            now: 0,
            timer: None,
            out: Vec::new(),
            disks: BTreeMap::new(),
            paces_due_ms: 0,
            pending: Slab::new(),
            serial: 0,
            commands: Slab::new(),
            zeroing: Vec::new(),
            deferred: VecDeque::new(),
            recheck_deferred: false,
            ops: Slab::new(),
            held_bytes: 0,
            locks: BTreeMap::new(),
            ready: VecDeque::new(),
            repairs: BTreeSet::new(),
            heals: Heals::default(),
            catch_ups: CatchUps::default(),
            sweeps: Sweeps::default(),
            dirty: BTreeSet::new(),
            reconciles: BTreeMap::new(),
            unreadable: BTreeSet::new(),
            last_seq: 0,
            unresolved: BTreeSet::new(),
            unflushed: BTreeMap::new(),
            flushed: None,
            cache: Cache::default(),
            hand_over: HandOver::default(),
            grants: Grants::default(),
            flush: None,
            flush_waiting: Vec::new(),
            mark: None,
            mark_ms: 0,
            changed: BTreeMap::new(),
            crowded: false,
            config,
            #[cfg(test)]
            plant: None,
        };
        owner.follow_behind();
        owner.follow_moves(None);
        owner
    }

    /// What happened, at `now_ms` on any clock that does not go back; leaves what is to be done.
    pub fn handle(&mut self, now_ms: u64, event: Event, out: &mut Vec<Action>) {
        self.now = self.now.max(now_ms);
        std::mem::swap(&mut self.out, out);
        match event {
            Event::Command { tag, command } => self.submit(tag, command),
            Event::Reply { tag, reply } => self.reply(tag, reply),
            Event::Lost { disk } => self.lost(disk),
            Event::Map(view) => self.see(view),
            Event::WriteBack(on) => self.set_write_back(on),
            Event::WriteThrough { tag } => self.write_through(tag),
            Event::HandOver { tag } => self.hand_over(tag),
            Event::Resign => self.lose_ownership(),
            Event::Tick => self.timer = Some(self.now),
        }
        // With whatever event: under load the next one would always come before the shell's tick.
        if self.timer.take_if(|at| *at <= self.now).is_some() {
            self.tick();
        }
        self.run_ready();
        while self.wakes_catch_ups() {
            self.drive_catch_ups();
            self.run_ready();
        }
        self.drive_hand_over();
        self.set_timer();
        std::mem::swap(&mut self.out, out);
    }

    /// Whether it can serve at the moment.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        if !self.is_serving() || self.view.deleting {
            Readiness::NotOwner
        } else if self.view.pool.is_starved() {
            Readiness::Unavailable
        } else if self.all_sealed() {
            Readiness::Ready
        } else if self.complaints().iter().any(|it| self.now - it.since_ms > self.config.limits.wait_ms) {
            Readiness::Unavailable
        } else {
            Readiness::Starting
        }
    }

    /// Whether it has lost the volume, or given it back: nothing will come of it any more.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Stopped(_) | Stage::Purged)
    }

    fn reply(&mut self, tag: u64, reply: Reply) {
        let Some(Pending { disk, what, .. }) = self.answered(tag, &reply) else {
            return;
        };
        if self.is_over() {
            return;
        }
        if let What::Probe = what {
            let trouble = match reply {
                Err(Failure::DiskFailed | Failure::NoSuchDisk | Failure::Invalid) => Trouble::Failed,
                _ => Trouble::Disconnected,
            };
            return self.probed(disk, reply.is_ok(), trouble);
        }
        if let What::Delete = what {
            return self.deleted(disk, matches!(reply, Ok(_) | Err(Failure::Deleted)));
        }
        let answer = match reply {
            Ok(body) => Answer::Body(body),
            Err(Failure::NoSpace) => Answer::NoSpace,
            Err(Failure::Corrupt { offset }) => Answer::Corrupt(offset),
            Err(Failure::Busy | Failure::Epoch { .. } | Failure::Granted { .. }) => Answer::Later,
            Err(_) => Answer::Unknown,
        };
        match what {
            What::Fence { under } => {
                self.rest_after(disk, &answer);
                self.fenced(disk, under, matches!(answer, Answer::Body(ReplyBody::Sealed(_))));
            }
            What::Seal { under } => {
                let sealed = match answer {
                    Answer::Body(ReplyBody::Sealed(sealed)) => Some(sealed),
                    Answer::Body(_) => {
                        self.distrust(disk);
                        None
                    }
                    answer => {
                        self.rest_after(disk, &answer);
                        None
                    }
                };
                self.sealed(disk, under, sealed);
            }
            What::Read { op } => self.read_answered(op, disk, answer),
            What::Leg { op } => self.leg_answered(op, tag, answer),
            What::Versions { extent } => self.versions_answered(extent, disk, answer),
            What::Heal { op } => self.heal_answered(op, disk, answer),
            What::Listing { of } => self.listed(of, disk, tag, answer),
            What::Look { of, extent } => self.looked(of, extent, disk, tag, answer),
            What::Sweep => self.swept(disk, tag, &answer),
            What::Flush => {
                self.rest_after(disk, &answer);
                self.flush_answered(disk, matches!(answer, Answer::Body(ReplyBody::Done)));
            }
            What::Watermark => {
                self.rest_after(disk, &answer);
                let damaged = match answer {
                    Answer::Body(ReplyBody::Done) => Some(Vec::new()),
                    Answer::Body(ReplyBody::Damaged(runs)) => Some(runs),
                    _ => None,
                };
                self.mark_answered(disk, tag, damaged.is_some());
                if let Some(runs) = damaged {
                    self.damage_named(disk, &runs);
                }
            }
            What::Grant { sent_ms } => self.grant_answered(disk, tag, sent_ms, &answer),
            What::GiveBack => self.given_back(),
            What::Probe | What::Delete | What::Abandoned => {}
        }
    }

    /// Starts what can be started. Operations queue here instead of starting each other, so that
    /// a long chain of them needs no stack.
    fn run_ready(&mut self) {
        loop {
            if let Some(op) = self.ready.pop_front() {
                self.start(op);
            } else if self.recheck_deferred {
                self.admit_deferred();
            } else {
                return;
            }
        }
    }

    /// Has everything that waits looked at again.
    fn wake_all(&mut self) {
        if !self.is_serving() {
            return;
        }
        self.start_reconciles();
        for locks in self.locks.values() {
            self.ready.extend(locks.free());
        }
    }

    /// Tries again what waits for a disk.
    fn unpark(&mut self, disk: DiskId) {
        if self.is_purging() {
            return self.unpark_purge();
        }
        if !self.is_usable(disk) {
            return;
        }
        let mut mutating: Vec<(u64, usize)> = Vec::new();
        let mut reading = Vec::new();
        for (id, op) in &self.ops {
            match &op.phase {
                Phase::Mutating(it) => mutating.push((it.version.seq, id)),
                Phase::Reading(it) if it.asked.is_none() => reading.push(id),
                Phase::Reading(_) | Phase::Healing(_) | Phase::Waiting => {}
            }
        }
        // In the order of their first sending: older changes first.
        mutating.sort_unstable();
        for (_, op) in mutating {
            self.send_parked(op);
        }
        for op in reading {
            self.ask(op);
        }
        self.unpark_reconciles(disk);
        self.unpark_flush();
        self.send_marks();
    }

    fn extent(&self, index: u64) -> ExtentId {
        ExtentId { namespace: self.namespace, index }
    }

    fn is_serving(&self) -> bool {
        matches!(self.stage, Stage::Serving)
    }

    fn is_purging(&self) -> bool {
        matches!(self.stage, Stage::Purging(_))
    }

    #[cfg(test)]
    fn planted(&self, bug: Plant) -> bool {
        self.plant == Some(bug)
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, reason = "in tests it looks at the planted bug")]
    fn planted(&self, _: Plant) -> bool {
        false
    }

    /// Plants a bug for the simulator to find.
    #[cfg(test)]
    pub(crate) fn plant(&mut self, bug: Option<Plant>) {
        self.plant = bug;
    }
}

#[cfg(test)]
mod tests;

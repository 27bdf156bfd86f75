//! An owner with what it needs of the world: a lock, a clock, the ways to its disks.
//!
//! Whoever brings an event drives the machine and carries out what it says, without a hop to
//! another thread. While somebody drives, others only leave their events; so does whatever answers
//! from within a call, which therefore never recurses. No lock is held while anything outside is called.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use lunette_proto::ids::{DiskId, Generation, VolumeId};
use lunette_proto::node::{Failure, Replies, Reply};
use parking_lot::Mutex;
use slab::Slab;
use tokio::sync::{Notify, mpsc};

use super::timers::Timers;
use super::{Clock, VolumeEvent, Ways};
use crate::device::{Command, Completions, Readiness};
use crate::owner::{Action, CatchUp, Complaint, Event, Limping, Owner, View};

/// Where what happens is told.
#[derive(Clone)]
pub(super) struct Outlets {
    pub(super) events: mpsc::UnboundedSender<VolumeEvent>,
    pub(super) news: Arc<Notify>,
}

/// An open volume under one generation.
pub(super) struct Cell {
    me: Weak<Self>,
    volume: VolumeId,
    generation: Generation,
    clock: Clock,
    ways: Arc<ArcSwap<Ways>>,
    timers: Arc<Timers<Weak<Self>>>,
    outlets: Outlets,
    inbox: Mutex<Inbox>,
    machine: Mutex<Machine>,
    waiters: Mutex<Slab<Waiter>>,
    /// When the machine wants to hear of the time; `u64::MAX` is never.
    timer_ms: AtomicU64,
}

/// Bounded by what is outstanding: a command or an answer each leaves one event.
#[derive(Default)]
struct Inbox {
    events: VecDeque<Event>,
    driven: bool,
}

struct Machine {
    owner: Owner,
    /// Kept for their capacity.
    batch: VecDeque<Event>,
    actions: Vec<Action>,
}

struct Waiter {
    tag: u64,
    to: Arc<dyn Completions>,
}

impl Cell {
    pub(super) fn new(
        volume: VolumeId,
        generation: Generation,
        owner: Owner,
        clock: Clock,
        ways: Arc<ArcSwap<Ways>>,
        timers: Arc<Timers<Weak<Self>>>,
        outlets: Outlets,
    ) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            volume,
            generation,
            clock,
            ways,
            timers,
            outlets,
            inbox: Mutex::default(),
            machine: Mutex::new(Machine { owner, batch: VecDeque::new(), actions: Vec::new() }),
            waiters: Mutex::default(),
            timer_ms: AtomicU64::new(u64::MAX),
        })
    }

    pub(super) fn volume(&self) -> VolumeId {
        self.volume
    }

    pub(super) fn generation(&self) -> Generation {
        self.generation
    }

    /// Begins to take the volume over.
    pub(super) fn begin(&self) {
        self.post(Event::Tick);
    }

    pub(super) fn submit(&self, command: Command, tag: u64, to: &Arc<dyn Completions>) {
        let tag = self.wait(tag, to);
        self.post(Event::Command { tag, command });
    }

    pub(super) fn see(&self, view: View) {
        self.post(Event::Map(view));
    }

    /// Has the write cache follow the map.
    pub(super) fn set_write_back(&self, on: bool) {
        self.post(Event::WriteBack(on));
    }

    /// Completes once nothing acknowledged is in memory alone, nor will be.
    pub(super) fn write_through(&self, tag: u64, to: &Arc<dyn Completions>) {
        let tag = self.wait(tag, to);
        self.post(Event::WriteThrough { tag });
    }

    /// Completes once the volume can be given to another gateway.
    pub(super) fn hand_over(&self, tag: u64, to: &Arc<dyn Completions>) {
        let tag = self.wait(tag, to);
        self.post(Event::HandOver { tag });
    }

    fn wait(&self, tag: u64, to: &Arc<dyn Completions>) -> u64 {
        self.waiters.lock().insert(Waiter { tag, to: Arc::clone(to) }) as u64
    }

    pub(super) fn lost(&self, disk: DiskId) {
        self.post(Event::Lost { disk });
    }

    /// Another is the owner: everything that waits is told so.
    pub(super) fn resign(&self) {
        self.post(Event::Resign);
    }

    pub(super) fn tick(&self, now_ms: u64) {
        if self.timer_ms.load(Ordering::Relaxed) <= now_ms {
            self.timer_ms.store(u64::MAX, Ordering::Relaxed);
            self.post(Event::Tick);
        }
    }

    pub(super) fn readiness(&self) -> Readiness {
        self.machine.lock().owner.readiness()
    }

    pub(super) fn complaints(&self) -> Vec<Complaint> {
        self.machine.lock().owner.complaints()
    }

    pub(super) fn limping(&self) -> Vec<Limping> {
        self.machine.lock().owner.limping().collect()
    }

    pub(super) fn catch_ups(&self) -> Vec<CatchUp> {
        self.machine.lock().owner.catch_ups()
    }

    pub(super) fn hopeless_blocks(&self) -> usize {
        self.machine.lock().owner.hopeless_blocks()
    }

    fn post(&self, event: Event) {
        self.post_all([event]);
    }

    /// Events that came at the same time: the owner has handled all of them before anything that it asks for is done.
    fn post_all(&self, events: impl IntoIterator<Item = Event>) {
        {
            let mut inbox = self.inbox.lock();
            inbox.events.extend(events);
            if std::mem::replace(&mut inbox.driven, true) {
                return;
            }
        }
        self.drive();
    }

    fn drive(&self) {
        let (mut batch, mut actions) = {
            let mut machine = self.machine.lock();
            (std::mem::take(&mut machine.batch), std::mem::take(&mut machine.actions))
        };
        loop {
            {
                let mut inbox = self.inbox.lock();
                if inbox.events.is_empty() {
                    // The buffers go back before somebody else may begin.
                    let mut machine = self.machine.lock();
                    (machine.batch, machine.actions) = (batch, actions);
                    inbox.driven = false;
                    return;
                }
                std::mem::swap(&mut inbox.events, &mut batch);
            }
            {
                let mut machine = self.machine.lock();
                let now_ms = self.clock.now_ms();
                for event in batch.drain(..) {
                    machine.owner.handle(now_ms, event, &mut actions);
                }
            }
            self.carry_out(&mut actions);
        }
    }

    fn carry_out(&self, actions: &mut Vec<Action>) {
        let ways = self.ways.load();
        for action in actions.drain(..) {
            match action {
                Action::Send { disk, tag, request } => match (ways.disks.get(&disk), self.me.upgrade()) {
                    (Some((_, service)), Some(me)) => service.call(request, tag, me),
                    _ => self.post(Event::Reply { tag, reply: Err(Failure::NoSuchDisk) }),
                },
                Action::Complete { tag, outcome } => {
                    let key = usize::try_from(tag).unwrap_or(usize::MAX);
                    let waiter = self.waiters.lock().try_remove(key);
                    if let Some(Waiter { tag, to }) = waiter {
                        to.complete(tag, outcome);
                    }
                }
                Action::SetTimer { at_ms } => {
                    self.timer_ms.store(at_ms, Ordering::Relaxed);
                    self.timers.set(at_ms, self.me.clone());
                }
                Action::News => self.outlets.news.notify_one(),
                Action::Purged => {
                    let event = VolumeEvent::Purged { volume: self.volume, generation: self.generation };
                    if self.outlets.events.send(event).is_err() {
                        tracing::debug!(volume = %self.volume, "purged, and nobody wants to know");
                    }
                }
            }
        }
    }
}

impl Replies for Cell {
    fn reply(&self, tag: u64, reply: Reply) {
        self.post(Event::Reply { tag, reply });
    }

    fn reply_all(&self, answers: &mut Vec<(u64, Reply)>) {
        self.post_all(answers.drain(..).map(|(tag, reply)| Event::Reply { tag, reply }));
    }
}

//! What sessions hold of a volume: one object for its whole life, whoever owns it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use arc_swap::ArcSwapOption;
use lunette_proto::ids::Generation;
use lunette_proto::limits::BLOCK_BYTES;
use parking_lot::Mutex;

use super::Clock;
use super::cell::Cell;
use super::timers::Timers;
use crate::device::{BlockDevice, Command, Completions, DeviceError, Outcome, Readiness};

/// For how long a command waits for the map that makes this gateway the owner: whoever sent it may have heard of that
/// before.
const HOLD_MS: u64 = 100;
/// Commands that wait for that, and the data that they keep; more are refused.
const HELD_MAX: usize = 128;
const HELD_BYTES_MAX: usize = 32 << 20;

/// A volume of the map.
pub(super) struct Device {
    me: Weak<Self>,
    clock: Clock,
    timers: Arc<Timers<Weak<Self>>>,
    cell: ArcSwapOption<Cell>,
    gone: AtomicBool,
    /// The last generation that it was owned under here.
    owned: AtomicU64,
    /// Whether another gateway has followed this one as the owner: then nobody has heard that this one is to be.
    succeeded: AtomicBool,
    /// 0 until it is known.
    atomic_bytes: AtomicU32,
    held: Mutex<Held>,
}

/// Commands that wait for an owner here.
#[derive(Default)]
struct Held {
    commands: VecDeque<HeldCommand>,
    bytes: usize,
}

struct HeldCommand {
    until_ms: u64,
    command: Command,
    tag: u64,
    to: Arc<dyn Completions>,
}

impl Device {
    /// Of a volume that nobody owns here. `timers` are told when it wants to [`expire`](Self::expire) something.
    pub(super) fn new(clock: Clock, timers: Arc<Timers<Weak<Self>>>) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            clock,
            timers,
            cell: ArcSwapOption::empty(),
            gone: AtomicBool::new(false),
            owned: AtomicU64::new(0),
            succeeded: AtomicBool::new(false),
            atomic_bytes: AtomicU32::new(0),
            held: Mutex::default(),
        })
    }

    pub(super) fn cell(&self) -> Option<Arc<Cell>> {
        self.cell.load_full()
    }

    /// What is written as a whole.
    pub(super) fn set_atomic_bytes(&self, bytes: u32) {
        self.atomic_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Whether a generation was owned here before, or a later one.
    pub(super) fn is_used(&self, generation: Generation) -> bool {
        generation.0 <= self.owned.load(Ordering::Acquire)
    }

    /// Commands go to this owner from now on. Those that have waited for it are to be sent again: they were let through when
    /// this gateway knew less, of a reservation that has shut out their initiator for instance.
    pub(super) fn open(&self, cell: Arc<Cell>) {
        self.owned.fetch_max(cell.generation().0, Ordering::AcqRel);
        let held = {
            let mut held = self.held.lock();
            self.cell.store(Some(cell));
            std::mem::take(&mut *held)
        };
        for HeldCommand { tag, to, .. } in held.commands {
            to.complete(tag, Err(DeviceError::Busy));
        }
    }

    /// By the map, of that generation of the volume, this gateway is not the owner, or not any more.
    pub(super) fn close(&self, generation: Generation) {
        let owned = self.owned.load(Ordering::Acquire);
        self.succeeded.store(owned > 0 && generation.0 <= owned + 1, Ordering::Release);
        self.resign();
    }

    fn resign(&self) {
        if let Some(cell) = self.cell.swap(None) {
            cell.resign();
        }
    }

    /// See [`Volumes::write_through`](super::Volumes::write_through).
    pub(super) fn write_through(&self, done: Done) {
        self.order(done, Cell::write_through);
    }

    /// See [`Volumes::hand_over`](super::Volumes::hand_over).
    pub(super) fn hand_over(&self, done: Done) {
        self.order(done, Cell::hand_over);
    }

    /// Has the owner do something that takes time.
    fn order(&self, done: Done, what: fn(&Cell, u64, &Arc<dyn Completions>)) {
        let Some(cell) = self.cell() else {
            return done(Err(DeviceError::NotOwner));
        };
        let order = Order { generation: cell.generation(), done: Mutex::new(Some(done)) };
        let to: Arc<dyn Completions> = Arc::new(order);
        what(&cell, 0, &to);
    }

    /// The volume does not exist any more.
    pub(super) fn gone(&self) {
        self.gone.store(true, Ordering::Release);
        self.resign();
        self.refuse(u64::MAX, &DeviceError::Gone);
    }

    /// The gateway ends, and its clock with it.
    pub(super) fn end(&self) {
        self.succeeded.store(true, Ordering::Release);
        self.resign();
        self.refuse(u64::MAX, &DeviceError::NotOwner);
    }

    /// Refuses what has waited long enough for an owner.
    pub(super) fn expire(&self, now_ms: u64) {
        self.refuse(now_ms, &DeviceError::NotOwner);
    }

    fn refuse(&self, now_ms: u64, error: &DeviceError) {
        let refused: Vec<HeldCommand> = {
            let mut held = self.held.lock();
            let count = held.commands.iter().take_while(|it| it.until_ms <= now_ms).count();
            let refused = held.commands.drain(..count).collect();
            held.bytes = held.commands.iter().map(|it| data_bytes(&it.command)).sum();
            refused
        };
        for HeldCommand { tag, to, .. } in refused {
            to.complete(tag, Err(error.clone()));
        }
    }

    /// There was no owner here a moment ago.
    fn submit_or_hold(&self, command: Command, tag: u64, to: &Arc<dyn Completions>) {
        let mut held = self.held.lock();
        if let Some(cell) = self.cell() {
            drop(held);
            return cell.submit(command, tag, to);
        }
        let bytes = held.bytes + data_bytes(&command);
        let has_room = held.commands.len() < HELD_MAX && bytes <= HELD_BYTES_MAX;
        let error = if self.gone.load(Ordering::Acquire) {
            DeviceError::Gone
        } else if !has_room || self.succeeded.load(Ordering::Acquire) {
            DeviceError::NotOwner
        } else {
            let until_ms = self.clock.now_ms() + HOLD_MS;
            held.commands.push_back(HeldCommand { until_ms, command, tag, to: Arc::clone(to) });
            held.bytes = bytes;
            drop(held);
            return self.timers.set(until_ms, self.me.clone());
        };
        drop(held);
        to.complete(tag, Err(error));
    }
}

/// Whom to tell under which generation it was done.
pub(super) type Done = Box<dyn FnOnce(Result<Generation, DeviceError>) + Send>;

/// Waits for a cell to have done what it was told.
struct Order {
    generation: Generation,
    done: Mutex<Option<Done>>,
}

impl Completions for Order {
    fn complete(&self, _: u64, outcome: Outcome) {
        let done = self.done.lock().take();
        if let Some(done) = done {
            done(outcome.map(|_| self.generation));
        }
    }
}

impl BlockDevice for Device {
    fn submit(&self, command: Command, tag: u64, to: &Arc<dyn Completions>) {
        match &*self.cell.load() {
            Some(cell) => cell.submit(command, tag, to),
            None => self.submit_or_hold(command, tag, to),
        }
    }

    fn readiness(&self) -> Readiness {
        self.cell.load().as_ref().map_or(Readiness::NotOwner, |cell| cell.readiness())
    }

    fn atomic_bytes(&self) -> u32 {
        self.atomic_bytes.load(Ordering::Relaxed).max(BLOCK_BYTES)
    }
}

/// Data that a command keeps.
fn data_bytes(command: &Command) -> usize {
    match command {
        Command::Write { data, .. } | Command::WriteAtomic { data, .. } | Command::Or { data, .. } => {
            data.len()
        }
        Command::CompareAndWrite { compare, data, .. } => compare.len() + data.len(),
        Command::Read { .. } | Command::Zero { .. } | Command::Flush | Command::Mapping { .. } => 0,
    }
}

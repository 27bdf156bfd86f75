//! What sessions hold of a volume: one object for its whole life, whoever owns it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use arc_swap::ArcSwapOption;
use lunette_proto::ids::Generation;
use lunette_proto::limits::BLOCK_BYTES;
use parking_lot::Mutex;

use super::cell::Cell;
use crate::device::{BlockDevice, Command, Completions, DeviceError, Outcome, Readiness};

/// A volume of the map.
#[derive(Default)]
pub(super) struct Device {
    cell: ArcSwapOption<Cell>,
    gone: AtomicBool,
    /// The last generation that it was owned under here.
    owned: AtomicU64,
    /// 0 until it is known.
    atomic_bytes: AtomicU32,
}

impl Device {
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

    /// Commands go to this owner from now on.
    pub(super) fn open(&self, cell: Arc<Cell>) {
        self.owned.fetch_max(cell.generation().0, Ordering::AcqRel);
        self.cell.store(Some(cell));
    }

    /// This gateway is not the owner any more.
    pub(super) fn close(&self) {
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
        self.close();
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
            None if self.gone.load(Ordering::Acquire) => to.complete(tag, Err(DeviceError::Gone)),
            None => to.complete(tag, Err(DeviceError::NotOwner)),
        }
    }

    fn readiness(&self) -> Readiness {
        self.cell.load().as_ref().map_or(Readiness::NotOwner, |cell| cell.readiness())
    }

    fn atomic_bytes(&self) -> u32 {
        self.atomic_bytes.load(Ordering::Relaxed).max(BLOCK_BYTES)
    }
}

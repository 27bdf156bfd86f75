//! Devices in memory that can hold commands back, and what keeps the units' state.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use lunette_proto::ids::VolumeId;
use lunette_proto::map::UnitState;
use lunette_target_iscsi::exports::{Change, Devices, KeepError};
use lunette_volume::device::{BlockDevice, Command, Completions, DeviceError, Readiness};
use parking_lot::Mutex;

use crate::scsi::Medium;

type Held = (Command, u64, Arc<dyn Completions>);

/// Longer reads are answered with BUSY.
const READ_BYTES_MAX: u32 = 128 << 10;

/// A device.
pub(super) struct Disk(Mutex<State>);

struct State {
    medium: Medium,
    /// Commands wait, and have had no effect.
    holding: bool,
    held: VecDeque<Held>,
    failures: VecDeque<DeviceError>,
}

impl Disk {
    pub(super) fn new(medium: Medium) -> Self {
        let (held, failures) = (VecDeque::new(), VecDeque::new());
        Self(Mutex::new(State { medium, holding: false, held, failures }))
    }

    pub(super) fn medium(&self) -> Medium {
        self.0.lock().medium.clone()
    }

    pub(super) fn is(&self, medium: &Medium) -> bool {
        self.0.lock().medium == *medium
    }

    pub(super) fn hold(&self) {
        self.0.lock().holding = true;
    }

    pub(super) fn is_holding(&self) -> bool {
        self.0.lock().holding
    }

    /// Whether it holds a command of `to`, or of anybody.
    pub(super) fn holds(&self, to: Option<&Arc<dyn Completions>>) -> bool {
        let state = self.0.lock();
        state.held.iter().any(|(_, _, who)| to.is_none_or(|to| Arc::ptr_eq(who, to)))
    }

    pub(super) fn fail_next(&self, error: DeviceError) {
        self.0.lock().failures.push_back(error);
    }

    pub(super) fn has_failures(&self) -> bool {
        !self.0.lock().failures.is_empty()
    }

    /// Carries out one command that was held, not always the first.
    pub(super) fn release_one(&self, which: usize) {
        let mut state = self.0.lock();
        let index = which % state.held.len().max(1);
        let Some((command, tag, to)) = state.held.remove(index) else { return };
        let outcome = state.carry_out(&command);
        drop(state);
        to.complete(tag, outcome);
    }

    /// Carries out what was held, in order, and holds nothing any more.
    pub(super) fn release(&self) {
        self.0.lock().holding = false;
        while self.holds(None) {
            self.release_one(0);
        }
    }
}

impl State {
    fn carry_out(&mut self, command: &Command) -> Result<lunette_volume::device::Data, DeviceError> {
        match self.failures.pop_front() {
            Some(error) => Err(error),
            // What waits for memory is of interest, not how megabytes of zeros are sent.
            None if matches!(command, Command::Read { len, .. } if *len > READ_BYTES_MAX) => {
                Err(DeviceError::Busy)
            }
            None => self.medium.carry_out(command),
        }
    }
}

impl BlockDevice for Disk {
    fn submit(&self, command: Command, tag: u64, to: &Arc<dyn Completions>) {
        let outcome = {
            let mut state = self.0.lock();
            if state.holding {
                state.held.push_back((command, tag, Arc::clone(to)));
                return;
            }
            state.carry_out(&command)
        };
        to.complete(tag, outcome);
    }

    fn readiness(&self) -> Readiness {
        Readiness::Ready
    }

    fn atomic_bytes(&self) -> u32 {
        16 << 10
    }
}

type Kept = Box<dyn FnOnce(Result<(), KeepError>) + Send>;

/// All devices, and what is kept of their units.
pub(super) struct Disks {
    pub(super) disks: BTreeMap<VolumeId, Arc<Disk>>,
    keeper: Mutex<Keeper>,
}

#[derive(Default)]
struct Keeper {
    units: BTreeMap<VolumeId, Arc<UnitState>>,
    holding: bool,
    held: Vec<(VolumeId, Change, Kept)>,
    refuses: bool,
}

impl Disks {
    pub(super) fn new(disks: BTreeMap<VolumeId, Arc<Disk>>) -> Self {
        Self { disks, keeper: Mutex::default() }
    }

    pub(super) fn hold_changes(&self) {
        self.keeper.lock().holding = true;
    }

    pub(super) fn refuse_change(&self) {
        self.keeper.lock().refuses = true;
    }

    pub(super) fn units(&self) -> BTreeMap<VolumeId, Arc<UnitState>> {
        self.keeper.lock().units.clone()
    }

    /// Whether changes wait, or will.
    pub(super) fn is_holding(&self) -> bool {
        let keeper = self.keeper.lock();
        keeper.holding || keeper.refuses || !keeper.held.is_empty()
    }

    pub(super) fn release_changes(&self) {
        let held = {
            let mut keeper = self.keeper.lock();
            keeper.holding = false;
            keeper.refuses = false;
            std::mem::take(&mut keeper.held)
        };
        for (volume, change, done) in held {
            self.answer(volume, change, done);
        }
    }

    fn answer(&self, volume: VolumeId, change: Change, done: Kept) {
        let refused = {
            let mut keeper = self.keeper.lock();
            let refused = std::mem::take(&mut keeper.refuses);
            if !refused && let Change::State(state) = change {
                keeper.units.insert(volume, state);
            }
            refused
        };
        done(if refused { Err(KeepError::Gone) } else { Ok(()) });
    }
}

impl Devices for Disks {
    fn device(&self, volume: VolumeId) -> Option<Arc<dyn BlockDevice>> {
        Some(Arc::clone(self.disks.get(&volume)?) as _)
    }

    fn keep(&self, volume: VolumeId, change: Change, done: Kept) {
        {
            let mut keeper = self.keeper.lock();
            if keeper.holding {
                return keeper.held.push((volume, change, done));
            }
        }
        self.answer(volume, change, done);
    }
}

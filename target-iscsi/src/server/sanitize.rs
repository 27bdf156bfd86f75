//! Carries out sanitize operations: a task in the background for each unit that has one.
//!
//! Every gateway that exports the unit has such a task; only the one whose device is ready gets anywhere, and one that
//! takes over begins again. The operation is over when the cluster has kept that it is.

use std::sync::Arc;
use std::time::Duration;

use lunette_proto::ids::VolumeId;
use lunette_proto::map::Sanitize;
use lunette_volume::device::{BlockDevice, Command, Completions, DeviceError, Outcome, Readiness};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until};

use super::shared::Shared;
use crate::scsi::{Ended, LogicalUnit, Passes};

/// What is written for one unit, so that it leaves something to the others, whose disks are the same.
const BYTES_PER_S: u32 = 64 << 20;
/// Between one try and the next.
const PAUSE: Duration = Duration::from_secs(1);

/// Sees to it that the operation of `volume`, if it has one, is being carried out. To be called when one may have begun.
pub(super) fn begin(shared: &Arc<Shared>, volume: VolumeId) {
    let mut running = shared.sanitizing.lock();
    if !running.contains_key(&volume) && present(shared, volume).is_some() {
        running.insert(volume, tokio::spawn(run(Arc::clone(shared), volume)).abort_handle());
    }
}

/// The same for all units.
pub(super) fn begin_all(shared: &Arc<Shared>) {
    let exports = shared.context.exports.load_full();
    for unit in exports.units().filter(|unit| unit.shared.sanitize_operation().is_some()) {
        begin(shared, unit.volume);
    }
}

/// The unit and what it has to do.
fn present(shared: &Shared, volume: VolumeId) -> Option<(Arc<LogicalUnit>, Sanitize)> {
    let unit = shared.context.exports.load().unit(volume)?;
    let operation = unit.shared.sanitize_operation()?;
    Some((unit, operation))
}

async fn run(shared: Arc<Shared>, volume: VolumeId) {
    loop {
        let (unit, operation) = {
            // Locked, so that whoever begins an operation sees either this task or that it is gone.
            let mut running = shared.sanitizing.lock();
            match present(&shared, volume) {
                Some(present) => present,
                None => {
                    running.remove(&volume);
                    return;
                }
            }
        };
        let attempt = attempt(&unit, &operation).await;
        match attempt {
            Attempt::Later => sleep(PAUSE).await,
            Attempt::Over { has_failed } => {
                tracing::info!(%volume, has_failed, "a sanitize operation is over");
                end(&unit, operation, has_failed).await;
            }
        }
    }
}

/// What came of trying.
enum Attempt {
    Over {
        has_failed: bool,
    },
    /// From the beginning, here or elsewhere.
    Later,
}

async fn attempt(unit: &LogicalUnit, operation: &Sanitize) -> Attempt {
    if unit.device.readiness() != Readiness::Ready {
        return Attempt::Later;
    }
    let mut passes = Passes::new(&operation.kind, unit.size_bytes, unit.block_bytes);
    let mut due = Instant::now();
    loop {
        unit.shared.show_sanitize_progress(passes.progress());
        let Some(command) = passes.next() else { return Attempt::Over { has_failed: false } };
        let bytes = match &command {
            Command::Write { data, .. } => u32::try_from(data.len()).unwrap_or(u32::MAX),
            _ => 0,
        };
        loop {
            if unit.shared.sanitize_operation().as_ref() != Some(operation) {
                return Attempt::Later;
            }
            match submit(&*unit.device, command.clone()).await {
                Ok(_) => break,
                Err(DeviceError::Busy | DeviceError::TimedOut) => sleep(PAUSE).await,
                Err(DeviceError::NotOwner | DeviceError::Gone) => return Attempt::Later,
                Err(error) => {
                    tracing::warn!(volume = %unit.volume, %error, "a sanitize operation fails");
                    return Attempt::Over { has_failed: true };
                }
            }
        }
        due = due.max(Instant::now() - PAUSE) + Duration::from_secs(1) * bytes / BYTES_PER_S;
        sleep_until(due).await;
    }
}

/// Has it kept that the operation is over, however long that takes.
async fn end(unit: &LogicalUnit, operation: Sanitize, has_failed: bool) {
    while unit.shared.sanitize_operation().as_ref() == Some(&operation) {
        let (sender, receiver) = oneshot::channel();
        let ended = Ended { operation: operation.clone(), has_failed };
        // Nobody waits for it any more when the gateway stops.
        let done = move |settled| drop(sender.send(settled));
        unit.shared.change(Box::new(ended), Box::new(done));
        if !matches!(receiver.await, Ok(Ok(_))) {
            sleep(PAUSE).await;
        }
    }
    unit.shared.sanitize_ended();
}

async fn submit(device: &dyn BlockDevice, command: Command) -> Outcome {
    let (sender, receiver) = oneshot::channel();
    let once: Arc<dyn Completions> = Arc::new(Once(Mutex::new(Some(sender))));
    device.submit(command, 0, &once);
    drop(once);
    // A device that loses a command has broken its contract: as if it had not answered.
    receiver.await.unwrap_or(Err(DeviceError::TimedOut))
}

/// Where one outcome goes.
struct Once(Mutex<Option<oneshot::Sender<Outcome>>>);

impl Completions for Once {
    fn complete(&self, _tag: u64, outcome: Outcome) {
        if let Some(sender) = self.0.lock().take() {
            // Nobody waits for it any more when the gateway stops.
            let _ = sender.send(outcome);
        }
    }
}

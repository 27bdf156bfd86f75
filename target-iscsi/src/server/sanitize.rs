//! Carries out sanitize operations: a task in the background for each unit that has one.
//!
//! Every gateway that exports the unit has such a task; only the owner's, whose device is ready, gets anywhere, and one
//! that takes over begins again. The operation is over when the cluster has kept that it is: what the others had to do
//! is over then, too.

use std::sync::Arc;
use std::time::Duration;

use lunette_proto::ids::VolumeId;
use lunette_proto::map::Sanitize;
use lunette_volume::device::{Command, Completions, DeviceError, Outcome, Readiness};
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

/// What a unit has to do.
struct Work {
    unit: Arc<LogicalUnit>,
    operation: Sanitize,
    /// Of the state that says so.
    revision: u64,
}

fn present(shared: &Shared, volume: VolumeId) -> Option<Work> {
    let unit = shared.context.exports.load().unit(volume)?;
    let (revision, operation) = unit.shared.sanitize_operation()?;
    Some(Work { unit, operation, revision })
}

async fn run(shared: Arc<Shared>, volume: VolumeId) {
    loop {
        let work = {
            // Locked, so that whoever begins an operation sees either this task or that it is gone.
            let mut running = shared.sanitizing.lock();
            let work = present(&shared, volume);
            if work.is_none() {
                running.remove(&volume);
            }
            work
        };
        let Some(work) = work else {
            // Another gateway has ended it: whoever waits for that here is to know.
            if let Some(unit) = shared.context.exports.load().unit(volume) {
                unit.shared.sanitize_ended();
            }
            return;
        };
        match attempt(&work).await {
            Attempt::Later => sleep(PAUSE).await,
            Attempt::Over { has_failed } => {
                tracing::info!(%volume, has_failed, "a sanitize operation is over");
                end(&work, has_failed).await;
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

async fn attempt(Work { unit, operation, revision }: &Work) -> Attempt {
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
            match submit(unit, *revision, command.clone()).await {
                None | Some(Err(DeviceError::NotOwner | DeviceError::Gone)) => return Attempt::Later,
                Some(Ok(_)) => break,
                Some(Err(DeviceError::Busy | DeviceError::TimedOut)) => sleep(PAUSE).await,
                Some(Err(error)) => {
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
async fn end(Work { unit, revision, .. }: &Work, has_failed: bool) {
    while unit.shared.sanitize_operation().is_some_and(|(present, _)| present == *revision) {
        let (sender, receiver) = oneshot::channel();
        let ended = Ended { revision: *revision, has_failed };
        // Nobody waits for it any more when the gateway stops.
        let done = move |settled| drop(sender.send(settled));
        unit.shared.change(Box::new(ended), Box::new(done));
        if !matches!(receiver.await, Ok(Ok(_))) {
            sleep(PAUSE).await;
        }
    }
    unit.shared.sanitize_ended();
}

/// What comes of a command of the operation; `None`: that has ended.
async fn submit(unit: &LogicalUnit, revision: u64, command: Command) -> Option<Outcome> {
    let (sender, receiver) = oneshot::channel();
    let once: Arc<dyn Completions> = Arc::new(Once(Mutex::new(Some(sender))));
    if !unit.shared.sanitize_step(revision, || unit.device.submit(command, 0, &once)) {
        return None;
    }
    drop(once);
    // A device that loses a command has broken its contract: as if it had not answered.
    Some(receiver.await.unwrap_or(Err(DeviceError::TimedOut)))
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

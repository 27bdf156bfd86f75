//! What logical units have the cluster keep: for each change a call to the control plane, with bounded patience.
//!
//! ```text
//! state ------------------------------> commit --> done
//! write cache on ---------------------> commit --> done
//! write cache off --> owner flushes --> commit --> done      in this order: the map says it last
//! ```

use std::sync::Arc;
use std::time::Duration;

use lunette_control::api::cluster::keep_unit_request::Change as Kept;
use lunette_control::api::cluster::{KeepUnitRequest, KeptWriteBack};
use lunette_control::client::{ControlPlane, kept_state};
use lunette_proto::ids::{GatewayId, Generation, VolumeId};
use lunette_target_iscsi::exports::{Change, KeepError};
use lunette_volume::device::DeviceError;
use lunette_volume::volumes::Volumes;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;
use tonic::{Code, Status};

/// How long a change may take. Initiators wait for it, and give up after some 30 s.
const PATIENCE: Duration = Duration::from_secs(5);
/// Changes under way; more are refused.
const INFLIGHT_MAX: usize = 256;

/// Told how it went.
pub(crate) type Done = Box<dyn FnOnce(Result<(), KeepError>) + Send>;

/// See the module.
pub(crate) struct Keeper {
    id: GatewayId,
    control: ControlPlane,
    volumes: Arc<Volumes>,
    runtime: Handle,
    room: Arc<Semaphore>,
}

impl Keeper {
    /// Has to be called inside the runtime on which it is to work.
    pub(crate) fn new(id: GatewayId, control: ControlPlane, volumes: Arc<Volumes>) -> Self {
        let room = Arc::new(Semaphore::new(INFLIGHT_MAX));
        Self { id, control, volumes, runtime: Handle::current(), room }
    }

    /// Commits a change, and then calls `done`, from a task. Does not block.
    pub(crate) fn keep(&self, volume: VolumeId, change: Change, done: Done) {
        let answer = Answer(Some(done));
        let permit = Arc::clone(&self.room).try_acquire_owned();
        let (id, control, volumes) = (self.id, self.control.clone(), Arc::clone(&self.volumes));
        self.runtime.spawn(async move {
            let result = match permit {
                Err(_) => Err(KeepError::Unavailable(format!("{INFLIGHT_MAX} changes are under way"))),
                Ok(_permit) => {
                    let kept = timeout(PATIENCE, commit(id, &control, &volumes, volume, change)).await;
                    kept.unwrap_or_else(|_| {
                        Err(KeepError::Unavailable(format!("it took longer than {PATIENCE:?}")))
                    })
                }
            };
            answer.give(result);
        });
    }
}

async fn commit(
    id: GatewayId,
    control: &ControlPlane,
    volumes: &Volumes,
    volume: VolumeId,
    change: Change,
) -> Result<(), KeepError> {
    let change = match change {
        Change::State(state) => Kept::State(kept_state(&state)),
        Change::WriteBack(true) => Kept::WriteBack(KeptWriteBack { on: true, generation: 0 }),
        Change::WriteBack(false) => {
            let generation = flushed(volumes, volume).await?.0;
            Kept::WriteBack(KeptWriteBack { on: false, generation })
        }
    };
    let request = KeepUnitRequest { volume: volume.0, change: Some(change), gateway: id.0 };
    match control.keep_unit(PATIENCE, &request).await {
        Ok(_) => Ok(()),
        Err(status) => Err(refusal(&status)),
    }
}

/// The generation under which everything acknowledged is on stable media.
async fn flushed(volumes: &Volumes, volume: VolumeId) -> Result<Generation, KeepError> {
    let (flushed, answer) = oneshot::channel();
    // Whoever waited may have lost patience.
    volumes.write_through(volume, move |result| drop(flushed.send(result)));
    match answer.await {
        Ok(Ok(generation)) => Ok(generation),
        Ok(Err(DeviceError::Gone)) => Err(KeepError::Gone),
        Ok(Err(DeviceError::NotOwner)) => Err(KeepError::NotOwner),
        Ok(Err(error)) => Err(KeepError::Unavailable(format!("the write cache is not flushed: {error}"))),
        Err(_) => Err(KeepError::Unavailable("the write cache is not flushed: its owner has gone".into())),
    }
}

fn refusal(status: &Status) -> KeepError {
    match status.code() {
        Code::Aborted => KeepError::Conflict,
        Code::NotFound => KeepError::Gone,
        _ => KeepError::Unavailable(status.message().to_owned()),
    }
}

/// Calls `done` in any case: also when its task ends with the runtime.
struct Answer(Option<Done>);

impl Answer {
    fn give(mut self, result: Result<(), KeepError>) {
        if let Some(done) = self.0.take() {
            done(result);
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(done) = self.0.take() {
            done(Err(KeepError::Unavailable("this gateway is stopping".into())));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn refusals_are_told_apart() {
        // Guards against a conflict that is taken for an outage, and is not decided anew.
        assert_eq!(refusal(&Status::aborted("x")), KeepError::Conflict);
        assert_eq!(refusal(&Status::not_found("x")), KeepError::Gone);
        for code in [Code::Unavailable, Code::InvalidArgument, Code::Internal] {
            assert_eq!(refusal(&Status::new(code, "x")), KeepError::Unavailable("x".into()));
        }
    }

    #[test]
    fn whoever_waits_is_told_in_any_case() {
        // Guards against a session that waits for ever for an answer that a runtime has taken with it.
        let (sender, answers) = mpsc::channel();
        drop(Answer(Some(Box::new(move |result| sender.send(result).expect("heard")))));
        assert!(matches!(answers.recv().expect("told"), Err(KeepError::Unavailable(_))));
        assert!(answers.recv().is_err(), "once");
    }
}

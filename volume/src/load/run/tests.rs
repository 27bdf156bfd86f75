//! The load against a device that remembers what it was asked.

use std::collections::VecDeque;

use parking_lot::Mutex;
use smallvec::smallvec;

use super::*;
use crate::device::Readiness;
use crate::load::shape::Pattern;

const BLOCK: u32 = 4096;

type Held = (u64, Arc<dyn Completions>);

/// Keeps a number of commands, then completes the oldest one whenever one comes: at once, from within the call.
#[derive(Default)]
struct Memory {
    keep: usize,
    held: Mutex<VecDeque<Held>>,
    seen: Mutex<Vec<Command>>,
    /// The outcomes of the next ones; afterwards all succeed.
    outcomes: Mutex<VecDeque<DeviceError>>,
}

impl BlockDevice for Memory {
    fn submit(&self, command: Command, tag: u64, to: &Arc<dyn Completions>) {
        if let Some(error) = self.outcomes.lock().pop_front() {
            return to.complete(tag, Err(error));
        }
        self.seen.lock().push(command);
        let mut held = self.held.lock();
        held.push_back((tag, Arc::clone(to)));
        if held.len() > self.keep {
            let (tag, to) = held.pop_front().expect("just put there");
            drop(held);
            to.complete(tag, Ok(smallvec![Bytes::from_static(&[0; 16])]));
        }
    }

    fn readiness(&self) -> Readiness {
        Readiness::Ready
    }
}

impl Memory {
    /// Completes all that it keeps.
    fn release(&self) {
        for (tag, to) in std::mem::take(&mut *self.held.lock()) {
            to.complete(tag, Ok(smallvec![]));
        }
    }
}

fn load(pattern: Pattern, depth: u32, duration: Duration) -> Load {
    let shape = Shape::new(pattern, BLOCK, 0, 1 << 20, 1).expect("a shape");
    Load { shape, depth, duration, durable: true }
}

#[tokio::test]
async fn what_completes_is_counted_and_what_is_under_way_is_waited_for() {
    // Guards against an end that is said while commands are under way, which a volume could not be exported after.
    let device = Arc::new(Memory { keep: 3, ..Memory::default() });
    let mut running =
        Running::start(device.clone(), load(Pattern::Mixed { read_percent: 50 }, 4, Duration::ZERO));
    while device.held.lock().len() < 3 {
        tokio::task::yield_now().await;
    }
    assert_eq!(running.progress().phase, Phase::Running);
    device.release();
    let progress = running.ended().await;
    assert_eq!(progress.phase, Phase::Ended);
    let seen = device.seen.lock();
    let writes = seen.iter().filter(|command| matches!(command, Command::Write { .. })).count() as u64;
    assert_eq!(progress.all.operations, seen.len() as u64);
    assert_eq!(progress.writes.operations, writes);
    assert_eq!(progress.reads.operations, seen.len() as u64 - writes);
    assert_eq!(progress.all.bytes, u64::from(BLOCK) * seen.len() as u64);
}

#[tokio::test]
async fn writes_are_as_long_and_as_durable_as_was_asked_for() {
    // Guards against writes that are measured without the durability that the report claims.
    for durable in [true, false] {
        let device = Arc::new(Memory::default());
        let load = Load { durable, ..load(Pattern::RandWrite, 1, Duration::ZERO) };
        Running::start(device.clone(), load).ended().await;
        for command in device.seen.lock().iter() {
            let Command::Write { data, fua, .. } = command else { panic!("{command:?}") };
            assert_eq!((data.len(), *fua), (BLOCK as usize, durable));
        }
    }
}

#[tokio::test]
async fn a_failure_ends_it_and_a_busy_device_does_not() {
    // Guards against the speed of a volume that cannot be read, and against a load that gives up at a full queue.
    let device = Memory::default();
    device.outcomes.lock().extend([
        DeviceError::Busy,
        DeviceError::Busy,
        DeviceError::Medium { offset: 4096 },
    ]);
    let mut running = Running::start(Arc::new(device), load(Pattern::Read, 1, Duration::from_secs(60)));
    let progress = running.ended().await;
    assert_eq!(progress.phase, Phase::Failed(DeviceError::Medium { offset: 4096 }));
    assert_eq!(progress.all.operations, 0);
}

#[tokio::test]
async fn it_ends_when_it_is_told_to_or_forgotten() {
    // Guards against a load that goes on after whoever wanted it has gone.
    let device = Arc::new(Memory { keep: 2, ..Memory::default() });
    let mut running = Running::start(device.clone(), load(Pattern::Read, 2, Duration::from_secs(600)));
    running.stop();
    tokio::task::yield_now().await;
    while running.progress().phase == Phase::Running {
        device.release();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(running.ended().await.phase, Phase::Ended);

    let device = Arc::new(Memory { keep: 2, ..Memory::default() });
    drop(Running::start(device.clone(), load(Pattern::Read, 2, Duration::from_secs(600))));
    // The task has the device until its end.
    while Arc::strong_count(&device) > 1 {
        device.release();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

//! Keeps a device busy with a load, and measures it.
//!
//! Commands that the device has no room for are given to it again, and the time that this takes is theirs. Any other
//! failure ends the load: what it would measure after that is not the device.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::latency::{Latencies, Summary};
use super::shape::{Access, Random, Shape};
use crate::device::{BlockDevice, Command, Completions, DeviceError, Outcome};

/// Between two looks at how it goes.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// Before a command that the device had no room for is given to it again, and how often that is done.
const BUSY_PAUSE: Duration = Duration::from_millis(1);
const BUSY_MAX: u32 = 5000;
/// Outcomes that are looked at together.
const BATCH: usize = 64;
/// Writes differ in where their data begins in this much more than one of them has.
const DATA_SPREAD_BYTES: u32 = 64 << 10;
const SECTOR_BYTES: u32 = 512;

/// What to do to a device.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Which accesses.
    pub shape: Shape,
    /// Commands under way at a time, at least 1.
    pub depth: u32,
    /// For how long new ones are begun.
    pub duration: Duration,
    /// Whether each write is to be durable when it completes, also on a write-back volume.
    pub durable: bool,
}

/// How a load goes: figures of everything that has completed so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// What it is doing.
    pub phase: Phase,
    /// Since it began; once it is over, until the last command completed.
    pub elapsed: Duration,
    /// All commands.
    pub all: Summary,
    /// Those that read.
    pub reads: Summary,
    /// Those that wrote.
    pub writes: Summary,
}

/// What a load is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// It goes on.
    #[default]
    Running,
    /// It is over, and nothing of it is under way any more.
    Ended,
    /// So it is, because a command has failed.
    Failed(DeviceError),
}

/// A load under way. Dropping it ends it.
#[derive(Debug)]
pub struct Running {
    stop: watch::Sender<bool>,
    progress: watch::Receiver<Progress>,
}

impl Running {
    /// Begins. Has to be called inside a runtime.
    #[must_use]
    pub fn start(device: Arc<dyn BlockDevice>, load: Load) -> Self {
        let (stop, stopped) = watch::channel(false);
        let (sender, progress) = watch::channel(Progress::default());
        tokio::spawn(Box::pin(drive(device, load, sender, stopped)));
        Self { stop, progress }
    }

    /// Begins nothing new any more; [`progress`](Self::progress) says when the rest is over.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// How it went at the last look, which is taken once a second and at the end.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.progress.borrow().clone()
    }

    /// Waits for the end.
    pub async fn ended(&mut self) -> Progress {
        // The task ends after it has said so.
        let ended = self.progress.wait_for(|progress| progress.phase != Phase::Running).await;
        ended.map(|progress| progress.clone()).unwrap_or_default()
    }
}

/// A command that has completed.
struct Answer {
    tag: u64,
    at: Instant,
    result: Result<(), DeviceError>,
}

/// Takes outcomes from wherever they come, without what was read.
struct Answers(mpsc::UnboundedSender<Answer>);

impl Completions for Answers {
    fn complete(&self, tag: u64, outcome: Outcome) {
        // Nobody takes it once the load is gone.
        let _ = self.0.send(Answer { tag, at: Instant::now(), result: outcome.map(drop) });
    }
}

/// A command under way.
#[derive(Clone, Copy)]
struct Slot {
    access: Access,
    since: Instant,
    refused: u32,
}

struct Driver {
    device: Arc<dyn BlockDevice>,
    to: Arc<dyn Completions>,
    load: Load,
    data: Bytes,
    random: Random,
    slots: Vec<Slot>,
    reads: Latencies,
    writes: Latencies,
}

impl Driver {
    fn submit(&mut self, tag: usize, slot: Slot) {
        let Slot { access: Access { offset, is_write }, .. } = slot;
        let len = self.load.shape.block_bytes();
        let command = if is_write {
            let from =
                self.random.below(u64::from(DATA_SPREAD_BYTES / SECTOR_BYTES)) * u64::from(SECTOR_BYTES);
            let from = usize::try_from(from).expect("less than the spread");
            // A length of 32 bits fits, and the buffer is as much longer as the spread is.
            let data = self.data.slice(from..from + len as usize);
            Command::Write { offset, data, fua: self.load.durable }
        } else {
            Command::Read { offset, len }
        };
        match self.slots.get_mut(tag) {
            Some(place) => *place = slot,
            None => self.slots.push(slot),
        }
        self.device.submit(command, tag as u64, &self.to);
    }

    fn record(&mut self, slot: Slot, at: Instant) {
        let latencies = if slot.access.is_write { &mut self.writes } else { &mut self.reads };
        latencies.record(at.saturating_duration_since(slot.since), self.load.shape.block_bytes());
    }

    fn progress(&self, phase: Phase, elapsed: Duration) -> Progress {
        let mut all = self.reads.clone();
        all.add(&self.writes);
        let (all, reads, writes) = (all.summary(), self.reads.summary(), self.writes.summary());
        Progress { phase, elapsed, all, reads, writes }
    }
}

async fn drive(
    device: Arc<dyn BlockDevice>,
    load: Load,
    progress: watch::Sender<Progress>,
    mut stopped: watch::Receiver<bool>,
) {
    // Bounded by the commands under way.
    let (sender, mut answers) = mpsc::unbounded_channel();
    let mut driver = Driver {
        device,
        to: Arc::new(Answers(sender)),
        load,
        data: if load.shape.writes() { data(load.shape.block_bytes()) } else { Bytes::new() },
        random: Random::new(1),
        slots: Vec::with_capacity(load.depth as usize),
        reads: Latencies::default(),
        writes: Latencies::default(),
    };
    let mut accesses = load.shape.accesses();
    let begin = Instant::now();
    let (mut last, mut under_way) = (begin, 0_u64);
    for tag in 0..load.depth.max(1) as usize {
        let slot = Slot { access: accesses.next_access(), since: Instant::now(), refused: 0 };
        driver.submit(tag, slot);
        under_way += 1;
    }
    let mut ticks = interval(PROGRESS_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    let (mut batch, mut busy) = (Vec::with_capacity(BATCH), Vec::new());
    let (mut phase, mut is_stopped) = (Phase::Running, false);
    while under_way > 0 {
        let mut has_room = false;
        tokio::select! {
            _ = answers.recv_many(&mut batch, BATCH) => {}
            () = sleep(BUSY_PAUSE), if !busy.is_empty() => has_room = true,
            _ = ticks.tick() => {
                progress.send_replace(driver.progress(Phase::Running, begin.elapsed()));
            }
            // An error: nobody has the load any more.
            changed = stopped.changed(), if !is_stopped => {
                is_stopped = changed.is_err() || *stopped.borrow();
            }
        }
        for Answer { tag, at, result } in batch.drain(..) {
            let Some((tag, slot)) =
                usize::try_from(tag).ok().and_then(|tag| Some((tag, *driver.slots.get(tag)?)))
            else {
                continue;
            };
            last = last.max(at);
            let goes_on =
                !is_stopped && phase == Phase::Running && at.saturating_duration_since(begin) < load.duration;
            match result {
                Ok(()) => {
                    has_room = true;
                    driver.record(slot, at);
                }
                Err(DeviceError::Busy) if goes_on && slot.refused < BUSY_MAX => {
                    busy.push((tag, Slot { refused: slot.refused + 1, ..slot }));
                    continue;
                }
                // What is refused at the end was not begun.
                Err(DeviceError::Busy) if !goes_on => {}
                Err(error) if phase == Phase::Running => phase = Phase::Failed(error),
                Err(_) => {}
            }
            if goes_on && phase == Phase::Running {
                driver
                    .submit(tag, Slot { access: accesses.next_access(), since: Instant::now(), refused: 0 });
            } else {
                under_way -= 1;
            }
        }
        if phase != Phase::Running || is_stopped {
            // They are not given to the device any more.
            under_way -= busy.drain(..).count() as u64;
        } else if has_room {
            for (tag, slot) in busy.drain(..) {
                driver.submit(tag, slot);
            }
        }
    }
    if phase == Phase::Running {
        phase = Phase::Ended;
    }
    progress.send_replace(driver.progress(phase, last.saturating_duration_since(begin)));
}

/// Something that does not compress, as long as one write and the spread.
fn data(block_bytes: u32) -> Bytes {
    let mut random = Random::new(0x6c75_6e65_7474_6521);
    let len = block_bytes as usize + DATA_SPREAD_BYTES as usize;
    let mut data: Vec<u8> = Vec::with_capacity(len + size_of::<u64>());
    while data.len() < len {
        data.extend_from_slice(&random.bits().to_le_bytes());
    }
    Bytes::from(data)
}

#[cfg(test)]
mod tests;

//! The scrubber of a disk: a thread that looks at all that is on the medium, at a slow pace, for ever.
//!
//! ```text
//!     pass:    every extent in order, a pause after each ──> bad blocks join the set
//!     recheck: extents that a read found bad, or that have bad blocks and were changed ──> join or leave it
//! ```
//!
//! A pass a week, unless one is asked for. The first pass of a disk that was opened begins where the calendar says that
//! it should be by now, and comes round to there: so a disk whose node is restarted now and then is looked at as a whole
//! all the same, without a word about it on the disk.
//!
//! Nothing is repaired here: the owners of the data ask what is damaged, and write it again.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lunette_proto::ids::{ExtentId, Namespace};
use lunette_proto::limits::NODE_DAMAGED_RUNS_MAX;
use lunette_proto::node::{DamagedRun, Replies, Reply};
use parking_lot::{Condvar, Mutex};

use super::damage::{DamageCounts, Damaged, Noted};
use super::{Medium, Shared};
use crate::engine::{Completion, Operation};
use crate::store::layout::{PAGE_BYTES, UNIT_BYTES};
use crate::store::{Bad, Disk};

/// How long a pass takes that nobody asked for.
const PASS: Duration = Duration::from_secs(7 * 24 * 3600);
/// Bytes per second that it looks at at least.
const RATE_MIN: u64 = 1 << 20;
/// After opening, what waits for the disk comes first.
const FIRST_PASS_AFTER: Duration = Duration::from_secs(60);
/// Extents with bad blocks are looked at again although nobody has changed them: some of them this often.
const RECHECK_EVERY: Duration = Duration::from_secs(5);
const RECHECK_EXTENTS: usize = 64;
/// Extents that may wait to be looked at; of more of them the next pass will tell.
const SUSPECTS_MAX: usize = 4096;
/// As low as a thread's priority gets.
const NICE: i32 = 19;

/// How far the scrubber of a disk is, and what it knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubStatus {
    /// Which pass since the disk was opened, from 1; 0 before the first.
    pub pass: u64,
    /// Whether it goes on, or is over.
    pub is_running: bool,
    /// When it began, in milliseconds since 1970.
    pub started_unix_ms: u64,
    /// Bytes of data that it has looked at.
    pub done_bytes: u64,
    /// Bytes of data that there were when it began.
    pub total_bytes: u64,
    /// Bytes per second; 0 is as fast as possible.
    pub rate_bytes: u64,
    /// When it will probably be over.
    pub left_ms: Option<u64>,
    /// Blocks that it has looked at.
    pub checked_blocks: u64,
    /// Bad blocks that it has met.
    pub found_blocks: u64,
    /// Blocks that are bad now, by what happened to them.
    pub bad: DamageCounts,
    /// Bad blocks for which there was no room in the set, found since the disk was opened.
    pub left_out: u64,
    /// Blocks that were bad and are good again, since the disk was opened.
    pub repaired: u64,
}

/// What the scrubber shares with the rest of the engine.
#[derive(Debug, Default)]
pub(super) struct Scrub {
    state: Mutex<State>,
    wake: Condvar,
    /// Whether any block is known to be bad: changes need no look at the set otherwise.
    any_bad: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    closed: bool,
    /// A pass was asked for, at a rate.
    asked: Option<Option<u64>>,
    status: ScrubStatus,
    damaged: Damaged,
    /// Extents to be looked at soon.
    suspects: BTreeSet<ExtentId>,
}

/// Where a pass is.
#[derive(Debug)]
struct Pass {
    /// `None`: as fast as possible.
    rate: Option<u64>,
    began: Instant,
    /// It ends behind this extent, having come round; `None` if it began at the beginning.
    first: Option<ExtentId>,
    last: Option<ExtentId>,
    /// It has come to the end, and goes on from the beginning.
    round: bool,
    next: Instant,
}

impl Scrub {
    /// Begins a pass now, at a rate or as fast as possible, instead of the one that goes on.
    pub(super) fn ask(&self, rate: Option<u64>) {
        self.state.lock().asked = Some(rate);
        self.wake.notify_one();
    }

    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.wake.notify_one();
    }

    pub(super) fn status(&self) -> ScrubStatus {
        let state = self.state.lock();
        ScrubStatus { bad: state.damaged.counts(), ..state.status }
    }

    /// What is to be repaired of a namespace.
    pub(super) fn damaged(&self, namespace: Namespace) -> Vec<DamagedRun> {
        if !self.any_bad.load(Ordering::Acquire) {
            return Vec::new();
        }
        self.state.lock().damaged.runs(namespace, NODE_DAMAGED_RUNS_MAX)
    }

    /// An extent was found bad by a read, or was changed while it had bad blocks: it is looked at soon.
    pub(super) fn suspect(&self, extent: ExtentId) {
        let mut state = self.state.lock();
        if state.suspects.len() < SUSPECTS_MAX {
            state.suspects.insert(extent);
            drop(state);
            self.wake.notify_one();
        }
    }

    /// Has a change of an extent with bad blocks noticed once it is made.
    pub(super) fn watch(self: &Arc<Self>, operation: &Operation, done: Completion) -> Completion {
        if !self.any_bad.load(Ordering::Acquire) {
            return done;
        }
        let mut extents = match operation {
            Operation::Change { extent, .. }
            | Operation::Put { extent, .. }
            | Operation::Prepare { extent, .. }
            | Operation::Commit { extent, .. } => vec![*extent],
            Operation::Drop { namespace, extents, .. } => {
                extents.iter().map(|index| ExtentId { namespace: *namespace, index: *index }).collect()
            }
            _ => return done,
        };
        let state = self.state.lock();
        extents.retain(|extent| state.damaged.contains(*extent));
        drop(state);
        if extents.is_empty() {
            return done;
        }
        let watched = Watched { scrub: self.clone(), extents, done: Mutex::new(Some(done)) };
        Completion::new(0, Arc::new(watched))
    }
}

/// Passes an answer on, and has the extents looked at.
struct Watched {
    scrub: Arc<Scrub>,
    extents: Vec<ExtentId>,
    done: Mutex<Option<Completion>>,
}

impl Replies for Watched {
    fn reply(&self, _: u64, reply: Reply) {
        let is_done = reply.is_ok();
        if let Some(done) = self.done.lock().take() {
            done.complete(reply);
        }
        if is_done {
            self.extents.iter().for_each(|extent| self.scrub.suspect(*extent));
        }
    }
}

impl Shared {
    /// The scrubber's thread, until the engine is closed.
    pub(super) fn run_scrub(&self) {
        if let Err(error) = rustix::process::nice(NICE) {
            tracing::debug!(%error, "the scrubber keeps the usual priority");
        }
        let scrub = &self.scrub;
        let opened = Instant::now();
        let mut pass: Option<Pass> = None;
        let mut next_pass = opened + FIRST_PASS_AFTER;
        let mut next_recheck = opened + RECHECK_EVERY;
        let mut rechecked = None;
        loop {
            let mut state = scrub.state.lock();
            if state.closed {
                return;
            }
            if self.is_failed() {
                // It is looked at no more; what is known of it stays.
                state.status.is_running = false;
                scrub.wake.wait(&mut state);
                continue;
            }
            let now = Instant::now();
            if next_recheck <= now {
                for _ in 0..RECHECK_EXTENTS.min(state.damaged.len()) {
                    rechecked = state.damaged.after(rechecked);
                    state.suspects.extend(rechecked);
                }
                next_recheck = now + RECHECK_EVERY;
            }
            if let Some(extent) = state.suspects.pop_first() {
                drop(state);
                self.scrub_extent(extent);
                continue;
            }
            if let Some(rate) = state.asked.take() {
                drop(state);
                pass = Some(self.begin_pass(rate, None));
                next_pass = now + PASS;
                continue;
            }
            match &mut pass {
                Some(at_work) if at_work.next <= now => {
                    drop(state);
                    if !self.advance(at_work) {
                        pass = None;
                    }
                }
                None if next_pass <= now => {
                    drop(state);
                    let rate = self.view.space().used_bytes / PASS.as_secs();
                    let first = self.view.extent_at(calendar());
                    pass = Some(self.begin_pass(Some(rate.max(RATE_MIN)), first));
                    next_pass = now + PASS;
                }
                waiting => {
                    let next = waiting.as_ref().map_or(next_pass, |pass| pass.next);
                    // Nothing is checked again where nothing is bad.
                    let next = if state.damaged.len() > 0 { next.min(next_recheck) } else { next };
                    scrub.wake.wait_until(&mut state, next);
                }
            }
        }
    }

    fn begin_pass(&self, rate: Option<u64>, first: Option<ExtentId>) -> Pass {
        let now = Instant::now();
        let mut state = self.scrub.state.lock();
        let ScrubStatus { pass, left_out, repaired, .. } = state.status;
        state.status = ScrubStatus {
            pass: pass + 1,
            is_running: true,
            started_unix_ms: unix_ms(),
            total_bytes: self.view.space().used_bytes,
            rate_bytes: rate.unwrap_or(0),
            left_out,
            repaired,
            ..ScrubStatus::default()
        };
        tracing::info!(disk = %self.identity.disk, pass = pass + 1, ?rate, "a scrub begins");
        Pass { rate, began: now, first, last: first, round: false, next: now }
    }

    /// Looks at the next extent of a pass; `false` if there is none.
    fn advance(&self, pass: &mut Pass) -> bool {
        let (begin, pass_began) = (Instant::now(), pass.began);
        let mut next = self.view.next_extent(pass.last);
        if next.is_none() && pass.first.is_some() && !pass.round {
            pass.round = true;
            next = self.view.next_extent(None);
        }
        let ends = |extent: &ExtentId| pass.round && pass.first.is_none_or(|first| *extent > first);
        let Some(extent) = next.filter(|extent| !ends(extent)) else {
            let mut state = self.scrub.state.lock();
            state.status.is_running = false;
            state.status.left_ms = None;
            // What came or went meanwhile is no matter of this pass.
            state.status.total_bytes = state.status.done_bytes;
            let ScrubStatus { pass, checked_blocks, found_blocks, .. } = state.status;
            let seconds = pass_began.elapsed().as_secs();
            tracing::info!(
                disk = %self.identity.disk, pass, checked_blocks, found_blocks, seconds, "a scrub is over"
            );
            return false;
        };
        pass.last = Some(extent);
        let looked_at = self.scrub_extent(extent);
        if let Some(rate) = pass.rate {
            let pause = Duration::from_secs_f64(looked_at.bytes as f64 / rate.max(1) as f64);
            pass.next = begin + pause;
        }
        let mut state = self.scrub.state.lock();
        let status = &mut state.status;
        status.done_bytes += looked_at.bytes;
        status.total_bytes = status.total_bytes.max(status.done_bytes);
        status.checked_blocks += looked_at.checked;
        status.found_blocks += looked_at.bad;
        let left = status.total_bytes - status.done_bytes;
        let rate = match pass.rate {
            Some(rate) => rate as f64,
            None => status.done_bytes as f64 / pass.began.elapsed().as_secs_f64().max(0.001),
        };
        // An estimate; of a rate of zero there is none.
        status.left_ms = (rate >= 1.0).then(|| (left as f64 * 1000.0 / rate) as u64);
        true
    }

    /// Looks at an extent and notes what is bad.
    fn scrub_extent(&self, extent: ExtentId) -> LookedAt {
        let mut looked_at = LookedAt::default();
        let mut bad: Vec<Bad> = Vec::new();
        let slots = self.view.slots(extent);
        for slot in slots.iter().flatten() {
            let found = self.view.inspect(extent, None, *slot, |offset, out| read(&self.medium, offset, out));
            looked_at.bytes += UNIT_BYTES;
            looked_at.checked += u64::from(found.checked);
            bad.extend(found.bad);
        }
        let mut kept_bad = 0;
        for (until, slot) in self.view.kept(extent) {
            let read = |offset, out: &mut [u8]| read(&self.medium, offset, out);
            let found = self.view.inspect(extent, Some(until), slot, read);
            looked_at.bytes += UNIT_BYTES;
            looked_at.checked += u64::from(found.checked);
            kept_bad += found.bad.len() as u64;
        }
        if self.is_failed() {
            // That it cannot be read says nothing of the blocks.
            return LookedAt::default();
        }
        looked_at.bad = bad.len() as u64 + kept_bad;
        if kept_bad > 0 {
            // The owner cannot write what only snapshots see: it is not named to him.
            let disk = self.identity.disk;
            tracing::error!(%disk, %extent, blocks = kept_bad, "damaged blocks that only snapshots see");
        }
        let scrub = &self.scrub;
        let mut state = scrub.state.lock();
        let noted = if slots.is_some() {
            state.damaged.note(extent, &bad)
        } else {
            state.damaged.forget(extent);
            Noted::default()
        };
        state.status.repaired += noted.repaired;
        state.status.left_out += noted.left_out;
        scrub.any_bad.store(state.damaged.len() > 0, Ordering::Release);
        drop(state);
        if noted.new > 0 {
            let mut counts = DamageCounts::default();
            bad.iter().for_each(|bad| counts.add(bad.damage));
            tracing::error!(disk = %self.identity.disk, %extent, ?counts, "damaged blocks on the disk");
        }
        if noted.repaired > 0 {
            tracing::info!(disk = %self.identity.disk, %extent, blocks = noted.repaired, "damaged blocks are good again");
        }
        looked_at
    }
}

/// What a look at an extent came to.
#[derive(Clone, Copy, Debug, Default)]
struct LookedAt {
    bytes: u64,
    checked: u64,
    bad: u64,
}

/// Reads, and leaves no more in the page cache than was there: what nobody else asks for is not worth its room.
fn read(medium: &Medium, offset: u64, out: &mut [u8]) -> io::Result<()> {
    if medium.read_cached(offset, out).is_ok() {
        return Ok(());
    }
    medium.read(offset, out)?;
    // A page of descriptors is needed again at once.
    if out.len() as u64 >= PAGE_BYTES
        && let Err(error) = medium.forget_cached(offset, out.len() as u64)
    {
        tracing::debug!(%error, "what a scrub has read stays in the page cache");
    }
    Ok(())
}

/// How much of the present week is over, from 0 to 1.
fn calendar() -> f64 {
    let week = PASS.as_millis() as u64;
    (unix_ms() % week) as f64 / week as f64
}

fn unix_ms() -> u64 {
    // A clock before 1970 is as good as none.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;

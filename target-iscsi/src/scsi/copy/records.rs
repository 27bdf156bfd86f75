//! What a nexus may ask of the copies that it has sent to a logical unit (SPC-4 5.16.4, 6.18, 6.21).
//!
//! A copy is known under its list identifier while it runs, and when it has ended for as long as
//! there is room and nobody has asked. With LIST ID USAGE 10b it is forgotten at its end, and several
//! may run under one identifier, since the initiator does not tell them apart; QEMU sends them so.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::scsi::sense::Sense;

/// Copies that have ended and that are remembered.
const ENDED_MAX: usize = 16;

/// LIST ID USAGE with LIST IDENTIFIER.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Usage {
    /// 00b: kept when it has ended, until it is asked for.
    Held(u8),
    /// 10b: forgotten when it has ended.
    Discarded(u8),
    /// 11b: not known at all.
    Unlisted,
}

/// How far a copy has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progressed {
    pub(super) segments: u16,
    pub(super) bytes: u64,
}

/// How a copy ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Good,
    /// With that sense data.
    Aborted(Bytes),
}

/// The copies of one nexus at one logical unit.
#[derive(Debug, Default)]
pub(in crate::scsi) struct Records(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// As many as the session has tasks.
    running: Vec<Running>,
    /// The oldest first, each identifier once.
    ended: VecDeque<Ended>,
    next_serial: u64,
}

#[derive(Debug)]
struct Running {
    serial: u64,
    usage: Usage,
    progressed: Progressed,
}

#[derive(Debug)]
struct Ended {
    id: u8,
    progressed: Progressed,
    ending: Ending,
    /// COPY STATUS has told.
    status_told: bool,
    /// FAILED SEGMENT DETAILS has told.
    details_told: bool,
}

/// A running copy's place in the records; given up when it is dropped.
#[derive(Debug)]
pub(super) struct Entry {
    records: Arc<Records>,
    serial: u64,
}

impl Usage {
    fn id(self) -> Option<u8> {
        match self {
            Self::Held(id) | Self::Discarded(id) => Some(id),
            Self::Unlisted => None,
        }
    }
}

impl Records {
    /// A copy begins. OPERATION IN PROGRESS if its identifier is taken.
    pub(super) fn begin(self: &Arc<Self>, usage: Usage) -> Result<Entry, Sense> {
        let mut state = self.0.lock();
        if let Some(id) = usage.id() {
            let shares = |other: Usage| matches!((usage, other), (Usage::Discarded(_), Usage::Discarded(_)));
            if state.running.iter().any(|other| other.usage.id() == Some(id) && !shares(other.usage)) {
                return Err(Sense::OPERATION_IN_PROGRESS.at_parameter(0));
            }
            state.ended.retain(|ended| ended.id != id);
        }
        let serial = state.next_serial;
        state.next_serial += 1;
        state.running.push(Running { serial, usage, progressed: Progressed::default() });
        Ok(Entry { records: Arc::clone(self), serial })
    }

    /// What COPY STATUS says of a copy; `None`: there is none. Of one that has ended it is said once.
    pub(super) fn status(&self, id: u8) -> Option<(Progressed, Option<Ending>)> {
        let mut state = self.0.lock();
        let running = state.running.iter().rev().find(|running| running.usage.id() == Some(id));
        if let Some(running) = running {
            return Some((running.progressed, None));
        }
        let ended = state.ended.iter_mut().find(|ended| ended.id == id && !ended.status_told)?;
        ended.status_told = true;
        let answer = (ended.progressed, Some(ended.ending.clone()));
        state.drop_told();
        Some(answer)
    }

    /// How a copy ended, which is said once; `None`: none has ended under that identifier.
    pub(super) fn ending(&self, id: u8) -> Option<Ending> {
        let mut state = self.0.lock();
        if state.running.iter().any(|running| running.usage.id() == Some(id)) {
            return None;
        }
        let ended = state.ended.iter_mut().find(|ended| ended.id == id && !ended.details_told)?;
        ended.details_told = true;
        let ending = ended.ending.clone();
        state.drop_told();
        Some(ending)
    }

    /// A reset: what has ended is forgotten.
    pub(in crate::scsi) fn forget(&self) {
        self.0.lock().ended.clear();
    }
}

impl State {
    fn drop_told(&mut self) {
        self.ended.retain(|ended| !(ended.status_told && ended.details_told));
    }
}

impl Entry {
    pub(super) fn progress(&self, progressed: Progressed) {
        let mut state = self.records.0.lock();
        if let Some(running) = state.running.iter_mut().find(|running| running.serial == self.serial) {
            running.progressed = progressed;
        }
    }

    /// The copy has ended with a status, not by an abort.
    pub(super) fn end(self, ending: Ending) {
        let mut state = self.records.0.lock();
        let Some(running) = state.running.iter().find(|running| running.serial == self.serial) else {
            return;
        };
        let Usage::Held(id) = running.usage else { return };
        let progressed = running.progressed;
        let ended = Ended { id, progressed, ending, status_told: false, details_told: false };
        if state.ended.len() == ENDED_MAX {
            state.ended.pop_front();
        }
        state.ended.push_back(ended);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.records.0.lock().running.retain(|running| running.serial != self.serial);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progressed(segments: u16) -> Progressed {
        Progressed { segments, bytes: u64::from(segments) << 20 }
    }

    /// Guards a copy's life under 00b: running, ended, told once, gone.
    #[test]
    fn held() {
        let records = Arc::new(Records::default());
        let entry = records.begin(Usage::Held(7)).unwrap();
        assert_eq!(records.begin(Usage::Held(7)).unwrap_err(), Sense::OPERATION_IN_PROGRESS.at_parameter(0));
        assert!(records.begin(Usage::Discarded(7)).is_err());
        entry.progress(progressed(3));
        assert_eq!(records.status(7), Some((progressed(3), None)));
        assert_eq!((records.ending(7), records.status(8)), (None, None));
        entry.end(Ending::Good);
        assert_eq!(records.status(7), Some((progressed(3), Some(Ending::Good))));
        assert_eq!((records.status(7), records.ending(7)), (None, Some(Ending::Good)));
        assert_eq!((records.ending(7), records.0.lock().ended.len()), (None, 0));
    }

    /// Guards failures: status and details are given once each, in either order.
    #[test]
    fn failed() {
        let records = Arc::new(Records::default());
        let ending = Ending::Aborted(Bytes::from_static(b"sense"));
        records.begin(Usage::Held(1)).unwrap().end(ending.clone());
        assert_eq!(records.ending(1), Some(ending.clone()));
        assert_eq!(records.status(1), Some((progressed(0), Some(ending.clone()))));
        assert_eq!((records.status(1), records.ending(1)), (None, None));
        records.begin(Usage::Held(1)).unwrap().end(ending.clone());
        assert_eq!(records.status(1), Some((progressed(0), Some(ending.clone()))));
        assert_eq!(records.status(1), None);
        assert_eq!(records.ending(1), Some(ending));
        assert_eq!(records.ending(1), None);
    }

    /// Guards identifiers under 10b and 11b: several at once, nothing left behind.
    #[test]
    fn discarded() {
        let records = Arc::new(Records::default());
        let entries: Vec<Entry> = (0..3).map(|_| records.begin(Usage::Discarded(1)).unwrap()).collect();
        assert!(records.begin(Usage::Held(1)).is_err());
        records.begin(Usage::Unlisted).unwrap().end(Ending::Good);
        entries[2].progress(progressed(9));
        assert_eq!(records.status(1), Some((progressed(9), None)));
        entries.into_iter().for_each(|entry| entry.end(Ending::Good));
        assert_eq!((records.status(1), records.status(0)), (None, None));
        assert!(records.begin(Usage::Held(1)).is_ok());
    }

    /// Guards aborts: a copy that is dropped leaves nothing, and its identifier is free.
    #[test]
    fn dropped() {
        let records = Arc::new(Records::default());
        drop(records.begin(Usage::Held(1)).unwrap());
        assert_eq!(records.status(1), None);
        assert!(records.begin(Usage::Held(1)).is_ok());
    }

    /// Guards against growth: the oldest go first; a new copy replaces what its identifier held; a reset
    /// forgets all.
    #[test]
    fn bounded() {
        let records = Arc::new(Records::default());
        for id in 0..=u8::MAX {
            records.begin(Usage::Held(id)).unwrap().end(Ending::Good);
        }
        assert_eq!(records.0.lock().ended.len(), ENDED_MAX);
        assert_eq!(records.status(u8::MAX - ENDED_MAX as u8), None);
        assert!(records.status(u8::MAX).is_some());
        let entry = records.begin(Usage::Held(u8::MAX - 1)).unwrap();
        drop(entry);
        assert_eq!(records.status(u8::MAX - 1), None);
        records.forget();
        assert_eq!(records.status(u8::MAX - 2), None);
    }
}

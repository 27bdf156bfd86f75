//! Who wants to hear of the time, and when: what nobody waits for costs nothing, however many volumes there are.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use parking_lot::Mutex;

/// Times at which something is due. What is due earlier than it was said before is in it twice: whoever is
/// told looks whether it is really time.
#[derive(Debug)]
pub(super) struct Timers<T>(Mutex<BinaryHeap<Due<T>>>);

#[derive(Debug)]
struct Due<T> {
    at_ms: u64,
    what: T,
}

impl<T> Timers<T> {
    pub(super) fn new() -> Self {
        Self(Mutex::new(BinaryHeap::new()))
    }

    pub(super) fn set(&self, at_ms: u64, what: T) {
        self.0.lock().push(Due { at_ms, what });
    }

    /// Takes out what is due.
    pub(super) fn due(&self, now_ms: u64) -> Vec<T> {
        let mut due = Vec::new();
        let mut heap = self.0.lock();
        while heap.peek().is_some_and(|first| first.at_ms <= now_ms) {
            due.extend(heap.pop().map(|first| first.what));
        }
        due
    }
}

/// The earliest is the greatest, and comes out of the heap first.
impl<T> Ord for Due<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        other.at_ms.cmp(&self.at_ms)
    }
}

impl<T> PartialOrd for Due<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> PartialEq for Due<T> {
    fn eq(&self, other: &Self) -> bool {
        self.at_ms == other.at_ms
    }
}

impl<T> Eq for Due<T> {}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards timers that come late, early, or never.
    #[test]
    fn what_is_due_comes_out_once() {
        let timers = Timers::new();
        for at in [50, 10, 30, 30, 20] {
            timers.set(at, at);
        }
        assert_eq!(timers.due(9), [] as [u64; 0]);
        assert_eq!(timers.due(30), [10, 20, 30, 30]);
        timers.set(5, 5);
        assert_eq!(timers.due(49), [5]);
        assert_eq!(timers.due(50), [50]);
        assert_eq!(timers.due(u64::MAX), [] as [u64; 0]);
    }
}

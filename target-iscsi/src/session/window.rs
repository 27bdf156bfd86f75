//! The command window (RFC 7143 4.2.2.1): which CmdSNs are accepted, and in which order they run.
//!
//! ```text
//! ... done | ExpCmdSN ............ MaxCmdSN | closed ...
//! ```
//!
//! Outside the window a request is dropped without an answer. Inside, but after a hole, it is held
//! until the hole is filled: with one connection that happens only after a digest error.

use lunette_proto::iscsi::{Pdu, Serial};
use lunette_proto::limits::SESSION_COMMANDS_MAX;

/// A session's command window.
#[derive(Debug)]
pub(super) struct Window {
    expected: Serial,
    max: Serial,
    /// Requests after a hole; never more than the window is wide.
    held: Vec<(Serial, Option<Pdu>)>,
}

/// What to do with a request that is not immediate.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Carry it out now.
    Now(Pdu),
    /// It waits for a hole to be filled.
    Held,
    /// Outside the window, or there twice.
    Dropped,
}

impl Window {
    pub(super) fn new(first: Serial) -> Self {
        Self { expected: first, max: first.plus(SESSION_COMMANDS_MAX - 1), held: Vec::new() }
    }

    /// Goes on over a new connection whose login carries CmdSN `first`: what has not come before it
    /// was lost with the old one, for nothing is sent again at ErrorRecoveryLevel 0.
    pub(super) fn resume(&mut self, first: Serial) {
        self.held.clear();
        if first.is_after(self.expected) {
            self.expected = first;
        }
        self.open(0);
    }

    pub(super) fn expected(&self) -> Serial {
        self.expected
    }

    pub(super) fn max(&self) -> Serial {
        self.max
    }

    /// Whether CmdSN `at` is one that may come.
    pub(super) fn contains(&self, at: Serial) -> bool {
        !at.is_before(self.expected) && !at.is_after(self.max)
    }

    /// A request with CmdSN `at` has come.
    pub(super) fn take(&mut self, at: Serial, pdu: Pdu) -> Turn {
        if !self.contains(at) || self.held.iter().any(|(held, _)| *held == at) {
            return Turn::Dropped;
        }
        if at == self.expected {
            self.expected = self.expected.plus(1);
            return Turn::Now(pdu);
        }
        self.held.push((at, Some(pdu)));
        Turn::Held
    }

    /// The next held request whose turn has come.
    pub(super) fn next_held(&mut self) -> Option<Pdu> {
        loop {
            let index = self.held.iter().position(|(held, _)| *held == self.expected)?;
            self.expected = self.expected.plus(1);
            // What was plugged has nothing to carry out.
            if let (_, Some(pdu)) = self.held.swap_remove(index) {
                return Some(pdu);
            }
        }
    }

    /// Counts CmdSN `at` as come, whatever it was (RFC 7143 11.6.1). Gives whether it was awaited.
    pub(super) fn plug(&mut self, at: Serial) -> bool {
        if !self.contains(at) {
            return false;
        }
        match self.held.iter_mut().find(|(held, _)| *held == at) {
            Some((_, pdu)) => *pdu = None,
            None => self.held.push((at, None)),
        }
        true
    }

    /// Forgets held requests for which `drop` says so; they count as come. Gives how many.
    pub(super) fn drop_held(&mut self, mut drop: impl FnMut(&Pdu) -> bool) -> usize {
        let mut dropped = 0;
        for (_, pdu) in &mut self.held {
            if pdu.as_ref().is_some_and(&mut drop) {
                *pdu = None;
                dropped += 1;
            }
        }
        dropped
    }

    /// Opens the window as far as `outstanding` commands leave room. MaxCmdSN never decreases
    /// (RFC 7143 11.4.10).
    pub(super) fn open(&mut self, outstanding: usize) {
        let outstanding = u32::try_from(outstanding).unwrap_or(u32::MAX).min(SESSION_COMMANDS_MAX);
        let candidate = self.expected.plus(SESSION_COMMANDS_MAX - outstanding).minus(1);
        if candidate.is_after(self.max) {
            self.max = candidate;
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use lunette_proto::iscsi::Bhs;

    use super::*;

    fn pdu(tag: u8) -> Pdu {
        let mut bhs = Bhs::new(1);
        bhs.0[19] = tag;
        Pdu { bhs, ahs: Bytes::new(), data: Bytes::new(), data_is_sound: true }
    }

    /// Guards the edges of the window, also where it wraps.
    #[test]
    fn edges() {
        for first in [0, 0xffff_ff00, 0xffff_ffff, 0xffff_ffff - SESSION_COMMANDS_MAX + 1, 0x7fff_ffff] {
            let first = Serial(first);
            let mut window = Window::new(first);
            let last = first.plus(SESSION_COMMANDS_MAX - 1);
            assert_eq!(window.max(), last);
            assert_eq!(window.take(first.minus(1), pdu(0)), Turn::Dropped);
            assert_eq!(window.take(last.plus(1), pdu(0)), Turn::Dropped);
            assert_eq!(window.take(last, pdu(0)), Turn::Held);
            assert_eq!(window.take(last, pdu(0)), Turn::Dropped);
            assert_eq!(window.take(first, pdu(1)), Turn::Now(pdu(1)));
            assert_eq!(window.take(first, pdu(1)), Turn::Dropped);
            assert_eq!(window.expected(), first.plus(1));
        }
    }

    /// Guards holes: held requests run in order, a plugged one is skipped.
    #[test]
    fn holes() {
        let mut window = Window::new(Serial(0xffff_fffe));
        assert_eq!(window.take(Serial(1), pdu(3)), Turn::Held);
        assert_eq!(window.take(Serial(0xffff_ffff), pdu(1)), Turn::Held);
        assert_eq!(window.next_held(), None);
        assert!(window.plug(Serial(0)));
        assert!(!window.plug(Serial(0xffff_fffd)));
        assert_eq!(window.take(Serial(0xffff_fffe), pdu(0)), Turn::Now(pdu(0)));
        assert_eq!(window.next_held(), Some(pdu(1)));
        assert_eq!(window.next_held(), Some(pdu(3)));
        assert_eq!(window.next_held(), None);
        assert_eq!(window.expected(), Serial(2));
    }

    /// Guards a new connection: it goes on at its login's CmdSN, never before what has come already.
    #[test]
    fn resumes() {
        for (first, expected) in [(0xffff_fff0u32, 5), (5, 5), (9, 9), (200, 200)] {
            let mut window = Window::new(Serial(0xffff_ffff));
            for n in [0xffff_ffffu32, 0, 1, 2, 3, 4] {
                assert!(matches!(window.take(Serial(n), pdu(0)), Turn::Now(_)));
            }
            assert_eq!(window.take(Serial(7), pdu(0)), Turn::Held);
            let max = window.max();
            window.resume(Serial(first));
            assert_eq!(window.expected(), Serial(expected));
            assert!(!window.max().is_before(max));
            assert_eq!(window.max(), Serial(expected + SESSION_COMMANDS_MAX - 1));
            assert_eq!(window.next_held(), None);
        }
    }

    /// Guards MaxCmdSN: closed at the limit, opened by completions, never lowered.
    #[test]
    fn opens() {
        let mut window = Window::new(Serial(10));
        let max = window.max();
        for n in 0..SESSION_COMMANDS_MAX {
            assert!(matches!(window.take(Serial(10).plus(n), pdu(0)), Turn::Now(_)));
            window.open(n as usize + 1);
            assert_eq!(window.max(), max);
        }
        assert_eq!(window.max(), window.expected().minus(1));
        window.open(SESSION_COMMANDS_MAX as usize - 1);
        assert_eq!(window.max(), max.plus(1));
        window.open(SESSION_COMMANDS_MAX as usize + 5);
        assert_eq!(window.max(), max.plus(1));
    }
}

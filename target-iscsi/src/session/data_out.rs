//! Data-Out of one command: immediate, unsolicited, and asked for by R2T (RFC 7143 4.2.4, 11.7, 11.8).
//!
//! ```text
//! |--- immediate ---|--- unsolicited, to FirstBurst ---|--- R2T ---|--- R2T ---| want
//! ```
//!
//! Data comes in order (DataPDUInOrder and DataSequenceInOrder are Yes), so the next byte is always
//! at `received`. A write that came in one PDU stays the slice it came in; everything else is laid
//! into one buffer, which grows to the whole length when the first R2T is sent. Slices are not
//! gathered: each keeps the receive buffer that it lies in, however few bytes it has.
//! A violation fails the command, not the connection: the answer waits for the final bits of all
//! that is outstanding, as RFC 7143 7.8 asks.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use lunette_proto::iscsi::Serial;
use lunette_proto::iscsi::initiator::DataOut;

/// Why Data-Out of a command is unusable (RFC 7143 11.4.7.2 gives the sense data).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Violation {
    /// Unsolicited data that was not agreed upon, or too much of it.
    Unsolicited,
    /// A sequence was shorter or longer than it should be, or lies elsewhere.
    Amount,
    /// A data digest was wrong, or a DataSN is missing.
    Crc,
}

/// An R2T that is not answered in full.
#[derive(Clone, Copy, Debug)]
struct Asked {
    transfer_tag: u32,
    end: u32,
    data_sn: Serial,
}

/// An R2T to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ask {
    pub(super) r2t_sn: Serial,
    pub(super) offset: u32,
    pub(super) len: u32,
}

/// Data-Out that is being collected.
#[derive(Debug)]
pub(super) struct Collector {
    /// Bytes that the command takes.
    want: u32,
    /// Bytes that the initiator may send: the expected data transfer length.
    expected: u32,
    received: u32,
    /// Where the next R2T starts.
    asked: u32,
    /// Next DataSN of the unsolicited sequence, while it is open.
    unsolicited: Option<Serial>,
    first_burst: u32,
    outstanding: VecDeque<Asked>,
    r2t_sn: Serial,
    /// What came first, as long as it is all that there is.
    first: Bytes,
    buffer: Option<BytesMut>,
    violation: Option<Violation>,
}

impl Collector {
    /// For `want` of `expected` bytes, with the immediate data of the command; `open` says that
    /// unsolicited Data-Out follows.
    pub(super) fn new(want: u32, expected: u32, immediate: Bytes, open: bool, first_burst: u32) -> Self {
        let mut collector = Self {
            want,
            expected,
            received: 0,
            asked: 0,
            unsolicited: open.then_some(Serial(0)),
            first_burst,
            outstanding: VecDeque::new(),
            r2t_sn: Serial(0),
            first: Bytes::new(),
            buffer: None,
            violation: None,
        };
        if immediate.len() > first_burst.min(expected) as usize {
            collector.violation = Some(Violation::Unsolicited);
        } else {
            collector.keep(immediate);
        }
        collector.asked = collector.received;
        collector
    }

    /// Fails the command; it ends once nothing is outstanding.
    pub(super) fn fail(&mut self, violation: Violation) {
        self.violation.get_or_insert(violation);
        self.first = Bytes::new();
        self.buffer = None;
    }

    /// What went wrong, if something did.
    pub(super) fn violation(&self) -> Option<Violation> {
        self.violation
    }

    /// Whether nothing more is to come.
    pub(super) fn is_complete(&self) -> bool {
        let nothing_open = self.unsolicited.is_none() && self.outstanding.is_empty();
        nothing_open && (self.violation.is_some() || self.received >= self.want)
    }

    /// Whether R2Ts are needed, now that the unsolicited data is there.
    pub(super) fn needs_asking(&self) -> bool {
        self.unsolicited.is_none() && self.violation.is_none() && self.asked < self.want
    }

    /// R2Ts that were sent.
    pub(super) fn r2t_count(&self) -> Serial {
        self.r2t_sn
    }

    /// Bytes of the command.
    pub(super) fn want(&self) -> u32 {
        self.want
    }

    /// The next R2T to send, under `transfer_tag`, unless enough are outstanding.
    pub(super) fn ask(&mut self, transfer_tag: u32, burst: u32, outstanding_max: u32) -> Option<Ask> {
        if !self.needs_asking() || self.outstanding.len() >= outstanding_max as usize {
            return None;
        }
        let want = self.want as usize;
        let buffer = self.gather(want);
        buffer.reserve(want.saturating_sub(buffer.len()));
        let ask =
            Ask { r2t_sn: self.r2t_sn.take(), offset: self.asked, len: burst.min(self.want - self.asked) };
        self.asked += ask.len;
        self.outstanding.push_back(Asked { transfer_tag, end: self.asked, data_sn: Serial(0) });
        Some(ask)
    }

    /// A Data-Out whose target transfer tag says that it was not asked for.
    pub(super) fn unsolicited(&mut self, pdu: &DataOut, data: Bytes, sound: bool) {
        let Some(data_sn) = &mut self.unsolicited else { return self.fail(Violation::Unsolicited) };
        let expected_sn = data_sn.take();
        if pdu.is_final {
            self.unsolicited = None;
        }
        let end = u64::from(self.received) + data.len() as u64;
        if !sound || pdu.data_sn != expected_sn {
            self.fail(Violation::Crc);
        } else if pdu.offset != self.received {
            self.fail(Violation::Amount);
        } else if end > u64::from(self.first_burst.min(self.expected)) {
            self.fail(Violation::Unsolicited);
        } else {
            self.keep(data);
        }
        self.asked = self.received.min(self.want);
    }

    /// A Data-Out that answers the R2T with its transfer tag. Gives `false` if there is none.
    pub(super) fn solicited(&mut self, pdu: &DataOut, data: Bytes, sound: bool) -> bool {
        // Sequences come in the order of their R2Ts; one that is skipped cannot come any more.
        let Some(index) = self.outstanding.iter().position(|asked| asked.transfer_tag == pdu.transfer_tag)
        else {
            return false;
        };
        if index != 0 {
            self.outstanding.drain(..index);
            self.fail(Violation::Amount);
        }
        let Some(asked) = self.outstanding.front_mut() else { return false };
        let expected_sn = asked.data_sn.take();
        let sequence_end = u64::from(asked.end);
        if pdu.is_final {
            self.outstanding.pop_front();
        }
        let end = u64::from(pdu.offset) + data.len() as u64;
        if !sound || pdu.data_sn != expected_sn {
            self.fail(Violation::Crc);
        } else if self.violation.is_some() {
        } else if pdu.offset != self.received || end > sequence_end || pdu.is_final != (end == sequence_end) {
            self.fail(Violation::Amount);
        } else {
            self.keep(data);
        }
        true
    }

    /// The data, once it is complete.
    pub(super) fn finish(self) -> Bytes {
        match self.buffer {
            Some(buffer) => buffer.freeze(),
            None => self.first,
        }
    }

    /// The buffer, with all that has come; allocated with `capacity` if there was none.
    fn gather(&mut self, capacity: usize) -> &mut BytesMut {
        self.buffer.get_or_insert_with(|| {
            let mut buffer = BytesMut::with_capacity(capacity);
            buffer.extend_from_slice(&std::mem::take(&mut self.first));
            buffer
        })
    }

    /// Keeps what the command takes of `data`, which lies at `received`.
    fn keep(&mut self, mut data: Bytes) {
        let room = self.want.saturating_sub(self.received) as usize;
        // Bounded by the expected length, which is 32 bits wide.
        self.received = self.received.saturating_add(u32::try_from(data.len()).unwrap_or(u32::MAX));
        data.truncate(room);
        if data.is_empty() || self.violation.is_some() {
            return;
        }
        if self.buffer.is_none() && self.first.is_empty() {
            self.first = data;
        } else {
            // Without R2T no more than this comes.
            let capacity = self.want.min(self.first_burst) as usize;
            self.gather(capacity).extend_from_slice(&data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn out(transfer_tag: u32, data_sn: u32, offset: u32, is_final: bool) -> DataOut {
        DataOut { transfer_tag, data_sn: Serial(data_sn), offset, is_final, ..DataOut::default() }
    }

    fn bytes(len: usize) -> Bytes {
        Bytes::from((0..len).map(|at| at as u8).collect::<Vec<_>>())
    }

    /// Guards zero copy: data that came in one PDU is the slice it came in.
    #[test]
    fn one_pdu_is_not_copied() {
        let data = bytes(4096);
        let collector = Collector::new(4096, 4096, data.clone(), false, 65536);
        assert!(collector.is_complete());
        assert_eq!(collector.finish().as_ptr(), data.as_ptr());
    }

    /// Guards the whole: immediate, unsolicited and solicited data add up, R2Ts are bounded and numbered.
    #[test]
    fn all_kinds() {
        let data = bytes(100);
        let mut collector = Collector::new(100, 100, data.slice(..10), true, 30);
        collector.unsolicited(&out(!0, 0, 10, false), data.slice(10..20), true);
        assert_eq!(collector.ask(1, 40, 1), None);
        collector.unsolicited(&out(!0, 1, 20, true), data.slice(20..30), true);
        assert_eq!(collector.ask(1, 40, 2), Some(Ask { r2t_sn: Serial(0), offset: 30, len: 40 }));
        assert_eq!(collector.ask(2, 40, 2), Some(Ask { r2t_sn: Serial(1), offset: 70, len: 30 }));
        assert_eq!(collector.ask(3, 40, 2), None);
        assert!(collector.solicited(&out(1, 0, 30, false), data.slice(30..50), true));
        assert!(collector.solicited(&out(1, 1, 50, true), data.slice(50..70), true));
        assert!(!collector.is_complete());
        assert!(collector.solicited(&out(2, 0, 70, true), data.slice(70..), true));
        assert!(collector.is_complete());
        assert_eq!(collector.violation(), None);
        assert_eq!(collector.finish(), data);
    }

    /// Guards each violation, and that the end waits for the final bit.
    #[test]
    fn violations() {
        let begin = || {
            let mut collector = Collector::new(100, 100, Bytes::new(), false, 50);
            collector.ask(1, 100, 1).unwrap();
            collector
        };
        for (pdu, len, sound, expected) in [
            (out(1, 1, 0, false), 50, true, Violation::Crc),
            (out(1, 0, 0, false), 50, false, Violation::Crc),
            (out(1, 0, 10, false), 50, true, Violation::Amount),
            (out(1, 0, 0, false), 101, true, Violation::Amount),
            (out(1, 0, 0, false), 100, true, Violation::Amount),
            (out(1, 0, u32::MAX, false), 50, true, Violation::Amount),
        ] {
            let mut collector = begin();
            assert!(collector.solicited(&pdu, bytes(len), sound));
            assert_eq!(collector.violation(), Some(expected), "{pdu:?}");
            assert!(!collector.is_complete());
            assert!(collector.solicited(&out(1, 1, 50, true), bytes(50), true));
            assert!(collector.is_complete());
        }
        let mut short = begin();
        short.solicited(&out(1, 0, 0, true), bytes(99), true);
        assert_eq!(short.violation(), Some(Violation::Amount));
        assert!(short.is_complete());
        assert!(!begin().solicited(&out(2, 0, 0, true), bytes(100), true));
        let mut unasked = begin();
        unasked.unsolicited(&out(!0, 0, 0, true), bytes(1), true);
        assert_eq!(unasked.violation(), Some(Violation::Unsolicited));
        let mut burst = Collector::new(100, 100, bytes(10), true, 50);
        burst.unsolicited(&out(!0, 0, 10, false), bytes(41), true);
        assert_eq!(burst.violation(), Some(Violation::Unsolicited));
        assert_eq!(Collector::new(100, 100, bytes(51), false, 50).violation(), Some(Violation::Unsolicited));
    }

    /// Guards the excess: what is expected beyond what the command takes is received and dropped.
    #[test]
    fn excess() {
        let mut collector = Collector::new(10, 40, bytes(20), true, 50);
        collector.unsolicited(&out(!0, 0, 20, true), bytes(20), true);
        assert!(collector.is_complete());
        assert!(!collector.needs_asking());
        assert_eq!(collector.finish(), bytes(10));
    }
}

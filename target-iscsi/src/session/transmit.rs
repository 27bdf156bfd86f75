//! What goes out: control PDUs first, then Data-In, laid out as late as possible.
//!
//! ```text
//! control: responses, R2T, NOP-In, ... --+
//!                                        +--> fill() --> out: slices, a bounded number --> socket
//! reads:   data + its status ------------+
//! ```
//!
//! A PDU gets its StatSN, ExpCmdSN and MaxCmdSN when it is laid out, so a NOP-In or a response that
//! comes later than the data of a long read still overtakes it, and statuses stay numbered in the
//! order in which they leave (RFC 7143 4.2.2.2).

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes};
use lunette_proto::iscsi::target::{DataIn, Numbers, ScsiResponse};
use lunette_proto::iscsi::{Bhs, Encoder, Serial, TAG_NONE};
use lunette_volume::device::Data;

/// Bytes that are laid out ahead of the socket.
const OUT_BYTES: usize = 512 << 10;
/// Control PDUs' bytes at which nothing more is read: a peer that asks without listening waits.
const CONTROL_BYTES_MAX: usize = 1 << 20;

/// What a PDU does with the status sequence number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StatSn {
    /// It is a status: carries the next number and uses it up.
    Use,
    /// Carries the next number only (R2T, a NOP-In that pings).
    Show,
}

struct Control {
    bhs: Bhs,
    data: Data,
    stat_sn: StatSn,
}

/// The end of a command: its status and how far it missed the expected length.
#[derive(Clone, Debug)]
pub(super) struct Ending {
    pub(super) task_tag: u32,
    pub(super) status: u8,
    pub(super) sense: Bytes,
    pub(super) overflow: bool,
    pub(super) underflow: bool,
    pub(super) residual: u32,
    /// R2Ts that were sent.
    pub(super) r2t_count: Serial,
}

/// Data-In of one command, then its status.
struct Transfer {
    slot: usize,
    data: VecDeque<Bytes>,
    left: u32,
    offset: u32,
    data_sn: Serial,
    ending: Ending,
}

impl Transfer {
    /// Bytes of the next PDU: at most a segment, never over the end of a burst.
    fn next_len(&self, bounds: Bounds) -> u32 {
        let burst = bounds.burst.max(1);
        self.left.min(bounds.segment.max(1)).min(burst - self.offset % burst)
    }
}

/// Lengths that bound Data-In.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) segment: u32,
    pub(super) burst: u32,
}

/// The outgoing side of a connection.
pub(super) struct Transmit {
    pub(super) numbers: Numbers,
    pub(super) encoder: Encoder,
    control: VecDeque<Control>,
    control_bytes: usize,
    reads: VecDeque<Transfer>,
    out: VecDeque<Bytes>,
    out_bytes: usize,
    /// Slots of transfers that have been laid out as a whole.
    finished: Vec<usize>,
}

impl Transmit {
    pub(super) fn new() -> Self {
        Self {
            numbers: Numbers::default(),
            encoder: Encoder::default(),
            control: VecDeque::new(),
            control_bytes: 0,
            reads: VecDeque::new(),
            out: VecDeque::new(),
            out_bytes: 0,
            finished: Vec::new(),
        }
    }

    /// Queues a PDU ahead of all data.
    pub(super) fn send(&mut self, bhs: Bhs, data: Data, stat_sn: StatSn) {
        self.control_bytes += bhs.0.len() + data.iter().map(Bytes::len).sum::<usize>();
        self.control.push_back(Control { bhs, data, stat_sn });
    }

    /// Queues the end of a command that has no Data-In.
    pub(super) fn respond(&mut self, ending: &Ending, data_in_count: Serial) {
        let response = ScsiResponse {
            overflow: ending.overflow,
            underflow: ending.underflow,
            response: 0,
            status: ending.status,
            task_tag: ending.task_tag,
            exp_data_sn: data_in_count.plus(ending.r2t_count.0),
            residual: ending.residual,
        };
        let mut data = Data::new();
        if !ending.sense.is_empty() {
            // SenseLength, then the sense data (RFC 7143 11.4.7).
            let len = u16::try_from(ending.sense.len()).unwrap_or(u16::MAX);
            data.push(Bytes::copy_from_slice(&len.to_be_bytes()));
            data.push(ending.sense.clone());
        }
        self.send(response.encode(), data, StatSn::Use);
    }

    /// Queues Data-In of `len` bytes, the first of `data`, and the status after it.
    pub(super) fn read(&mut self, slot: usize, data: Data, len: u32, ending: Ending) {
        let data = data.into_iter().filter(|slice| !slice.is_empty()).collect();
        self.reads.push_back(Transfer { slot, data, left: len, offset: 0, data_sn: Serial(0), ending });
    }

    /// Takes a transfer back, as far as it has not been laid out.
    pub(super) fn cancel(&mut self, slot: usize) {
        self.reads.retain(|transfer| transfer.slot != slot);
    }

    /// Whether the peer takes what it asks for.
    pub(super) fn is_congested(&self) -> bool {
        self.control_bytes > CONTROL_BYTES_MAX
    }

    /// Whether nothing is left to send.
    pub(super) fn is_empty(&self) -> bool {
        self.control.is_empty() && self.reads.is_empty() && self.out.is_empty()
    }

    /// Drops everything: the peer is not to hear from us again.
    pub(super) fn clear(&mut self) {
        self.control.clear();
        self.control_bytes = 0;
        self.out.clear();
        self.out_bytes = 0;
        self.reads.clear();
    }

    /// A slot whose command has been answered as a whole.
    pub(super) fn take_finished(&mut self) -> Option<usize> {
        self.finished.pop()
    }

    /// Lays PDUs out, up to [`OUT_BYTES`]. `window` gives ExpCmdSN and MaxCmdSN for each, told how
    /// many commands have ended with what was laid out here: the last PDU of a command already
    /// opens the window that the command held closed.
    pub(super) fn fill(&mut self, bounds: Bounds, mut window: impl FnMut(usize) -> (Serial, Serial)) {
        while self.out_bytes < OUT_BYTES {
            let transfer = if self.control.is_empty() { self.reads.pop_front() } else { None };
            let ends = transfer.as_ref().is_some_and(|transfer| transfer.next_len(bounds) == transfer.left);
            let ended = self.finished.len() + usize::from(ends);
            (self.numbers.exp_cmd_sn, self.numbers.max_cmd_sn) = window(ended);
            if let Some(transfer) = transfer {
                self.lay_data(transfer, bounds);
            } else if let Some(control) = self.control.pop_front() {
                self.lay_control(control);
            } else {
                break;
            }
        }
    }

    /// Lays out all control PDUs, so that what is set on the encoder next does not concern them.
    pub(super) fn fill_control(&mut self) {
        while let Some(control) = self.control.pop_front() {
            self.lay_control(control);
        }
    }

    /// Slices for one vectored write; gives how many.
    pub(super) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut count = 0;
        for (slot, bytes) in slices.iter_mut().zip(&self.out) {
            *slot = IoSlice::new(bytes);
            count += 1;
        }
        count
    }

    /// `len` bytes of the slices have been sent.
    pub(super) fn advance(&mut self, mut len: usize) {
        self.out_bytes = self.out_bytes.saturating_sub(len);
        while let Some(front) = self.out.front_mut() {
            if len < front.len() {
                front.advance(len);
                return;
            }
            len -= front.len();
            self.out.pop_front();
        }
    }

    /// Takes the next slice, for callers that do not write to a socket.
    pub(super) fn pop(&mut self) -> Option<Bytes> {
        let slice = self.out.pop_front()?;
        self.out_bytes = self.out_bytes.saturating_sub(slice.len());
        Some(slice)
    }

    fn lay_control(&mut self, mut control: Control) {
        let data_bytes: usize = control.data.iter().map(Bytes::len).sum();
        self.control_bytes = self.control_bytes.saturating_sub(control.bhs.0.len() + data_bytes);
        self.numbers.stamp(&mut control.bhs);
        if control.stat_sn == StatSn::Use {
            self.numbers.stat_sn.take();
        }
        self.out_bytes += self.encoder.encode(control.bhs, &[], &control.data, &mut self.out);
    }

    /// One Data-In PDU.
    fn lay_data(&mut self, mut transfer: Transfer, bounds: Bounds) {
        let len = transfer.next_len(bounds);
        let ends_burst = (transfer.offset + len).is_multiple_of(bounds.burst.max(1));
        let is_last = len == transfer.left;
        // Only GOOD may travel with the data (RFC 7143 11.7.2).
        let has_status = is_last && transfer.ending.status == crate::scsi::GOOD;
        let mut data_in = DataIn {
            is_final: is_last || ends_burst,
            has_status,
            transfer_tag: TAG_NONE,
            task_tag: transfer.ending.task_tag,
            data_sn: transfer.data_sn.take(),
            offset: transfer.offset,
            ..DataIn::default()
        };
        if has_status {
            data_in.overflow = transfer.ending.overflow;
            data_in.underflow = transfer.ending.underflow;
            data_in.residual = transfer.ending.residual;
        }
        let mut bhs = data_in.encode();
        // StatSN means something only with a status.
        let stat_sn = if has_status { self.numbers.stat_sn.take() } else { Serial(0) };
        Numbers { stat_sn, ..self.numbers }.stamp(&mut bhs);
        let data = cut(&mut transfer.data, len);
        self.out_bytes += self.encoder.encode(bhs, &[], &data, &mut self.out);
        transfer.offset += len;
        transfer.left -= len;
        if !is_last {
            self.reads.push_front(transfer);
            return;
        }
        if !has_status {
            self.respond(&transfer.ending, transfer.data_sn);
        }
        self.finished.push(transfer.slot);
    }
}

/// The first `len` bytes of `data`, which holds at least as many.
fn cut(data: &mut VecDeque<Bytes>, len: u32) -> Data {
    let mut left = len as usize;
    let mut taken = Data::new();
    while left > 0 {
        let Some(front) = data.front_mut() else { break };
        if front.len() > left {
            taken.push(front.split_to(left));
            break;
        }
        left -= front.len();
        taken.extend(data.pop_front());
    }
    taken
}

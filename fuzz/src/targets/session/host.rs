//! An initiator that keeps account: nothing is answered that was not asked, numbers count as RFC 7143 says, data comes
//! in order and within what was negotiated.

use bytes::{Bytes, BytesMut};
use lunette_proto::iscsi::initiator::{LoginRequest, NopOut, ScsiCommand};
use lunette_proto::iscsi::target::{DataIn, Numbers, R2t, ScsiResponse};
use lunette_proto::iscsi::{Bhs, Encoder, Reply, Request, Serial, TAG_NONE};
use lunette_target_iscsi::session::{ConnectionId, Settings};

use super::stream::{Incoming, Stream};
use super::world::{IQN, World};

/// Headers that are remembered, for Reject tells which one it is about.
const SENT_MAX: usize = 400;

/// Something that was asked and not answered.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) tag: u32,
    pub(super) opcode: u8,
    pub(super) lun: u64,
    /// How many PDUs were sent before.
    pub(super) order: usize,
    /// An answer must come.
    pub(super) sure: bool,
    pub(super) function: u8,
    nop: Vec<u8>,
    expected: u32,
    read: bool,
    write: bool,
    /// Bytes of Data-In, all that was kept of it, PDUs, and bytes of the sequence.
    received: u32,
    pub(super) data_in: Vec<u8>,
    data_sn: u32,
    burst: u32,
    r2t_sn: u32,
    asked_to: Option<u32>,
}

/// The end of a command.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) tag: u32,
    pub(super) status: u8,
    pub(super) sense: Vec<u8>,
    pub(super) data_in: Vec<u8>,
    pub(super) order: usize,
}

/// An R2T that waits for its data.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) r2t: R2t,
    pub(super) data_sn: u32,
    pub(super) sent: u32,
}

pub(super) struct Host {
    pub(super) id: ConnectionId,
    pub(super) isid: u8,
    pub(super) tsih: u16,
    pub(super) cmd_sn: Serial,
    pub(super) settings: Settings,
    pub(super) numbers: Numbers,
    pub(super) pending: Vec<Pending>,
    pub(super) wanted: Vec<Wanted>,
    pub(super) pings: Vec<(u64, u32)>,
    pub(super) ended: Vec<Ended>,
    /// Requests that are not immediate have come in order, without a gap, and none was outside the window.
    pub(super) in_order: bool,
    /// PDUs sent.
    pub(super) sent: usize,
    /// The initiator's segment may be shorter than is known here.
    may_truncate: bool,
    /// Bytes were changed on their way that no digest covers, or a tag was used twice: nobody knows what was asked.
    anything: bool,
    /// The lengths in a header were changed on their way: what follows may be taken for a part of that PDU, for its digest
    /// comes after as many bytes as it says.
    is_swallowed: bool,
    /// Data was sent that was not asked for, or not as it was.
    pub(super) is_rough: bool,
    /// The connection was given a reason to close.
    pub(super) may_close: bool,
    /// Task management functions that were answered with "complete" since this was looked at.
    pub(super) completed: Vec<Pending>,
    pub(super) tag: u32,
    headers: Vec<Bhs>,
    encoder: Encoder,
    stream: Stream,
    is_logged_in: bool,
    step: usize,
}

impl Host {
    pub(super) fn new(id: ConnectionId, isid: u8, first: u32, step: u8) -> Self {
        Self {
            id,
            isid,
            tsih: 0,
            cmd_sn: Serial(first),
            settings: Settings::default(),
            numbers: Numbers::default(),
            pending: Vec::new(),
            wanted: Vec::new(),
            pings: Vec::new(),
            ended: Vec::new(),
            in_order: true,
            sent: 0,
            may_truncate: false,
            anything: false,
            is_swallowed: false,
            is_rough: false,
            may_close: false,
            completed: Vec::new(),
            tag: u32::from(isid) << 16,
            headers: Vec::new(),
            encoder: Encoder::default(),
            stream: Stream::default(),
            is_logged_in: false,
            step: if step == 0 { 0 } else { usize::from(step) * 16 },
        }
    }

    /// Logs in with these keys; the answer may have to wait for another connection to go.
    pub(super) fn login(&mut self, world: &mut World, keys: &[(&str, String)]) {
        let mut text = format!("InitiatorName=iqn.2026-11.org.example:host\0TargetName={IQN}\0");
        let mut answers = BytesMut::new();
        for (key, value) in keys {
            text += &format!("{key}={value}\0");
            self.settings.negotiate(key, value, false, &mut answers).expect("the keys are right");
        }
        let request = LoginRequest {
            immediate: true,
            transit: true,
            stage: 1,
            next_stage: 3,
            isid: [0x80, 0, 0, 0, 0, self.isid],
            tsih: self.tsih,
            task_tag: 1,
            cid: 1,
            cmd_sn: self.cmd_sn,
            exp_stat_sn: Serial(0xffff_fff0),
            ..LoginRequest::default()
        };
        self.numbers.stat_sn = request.exp_stat_sn;
        let wire = self.wire(request.encode(), &[], text.as_bytes());
        world.feed(self.id, &wire, self.step);
        self.receive(world);
    }

    pub(super) fn is_logged_in(&self) -> bool {
        self.is_logged_in
    }

    pub(super) fn segment(&self) -> u32 {
        self.settings.initiator_segment_bytes().min(256 << 10)
    }

    fn wire(&mut self, bhs: Bhs, ahs: &[u8], data: &[u8]) -> Vec<u8> {
        let mut slices: Vec<Bytes> = Vec::new();
        self.encoder.encode(bhs, ahs, &[Bytes::copy_from_slice(data)], &mut slices);
        slices.concat()
    }

    pub(super) fn next_tag(&mut self) -> u32 {
        self.tag = self.tag.wrapping_add(1);
        self.tag
    }

    /// Whether one more request that is not immediate is inside the window.
    pub(super) fn has_room(&self) -> bool {
        !self.cmd_sn.is_after(self.numbers.max_cmd_sn)
    }

    /// Sends a PDU and takes what comes of it. `flip`: a byte that is changed on the way.
    pub(super) fn send(
        &mut self,
        world: &mut World,
        bhs: Bhs,
        ahs: &[u8],
        data: &[u8],
        flip: Option<(u16, u8)>,
    ) {
        self.note(&bhs, ahs, data);
        let mut wire = self.wire(bhs, ahs, data);
        if let Some((at, change)) = flip.filter(|(_, change)| *change != 0) {
            // A change that no digest covers is another PDU.
            (self.in_order, self.may_close) = (false, true);
            self.pending.iter_mut().for_each(|pending| pending.sure = false);
            let at = usize::from(at) % wire.len();
            wire[at] ^= change;
            self.is_swallowed |= (4..8).contains(&at);
            if !self.encoder.header_digest || !self.encoder.data_digest {
                self.anything = true;
            }
        }
        world.feed(self.id, &wire, self.step);
        self.receive(world);
    }

    /// What is asked by a PDU.
    fn note(&mut self, bhs: &Bhs, ahs: &[u8], data: &[u8]) {
        let mut bhs = *bhs;
        bhs.set_ahs_bytes(ahs.len());
        bhs.set_data_bytes(u32::try_from(data.len()).expect("it is short"));
        self.headers.push(bhs);
        if self.headers.len() > SENT_MAX {
            self.headers.remove(0);
        }
        self.sent += 1;
        if data.len() > 256 << 10 {
            self.may_close = true;
        }
        let request = Request::decode(&bhs);
        let mut is_heard = true;
        if let Some((cmd_sn, false)) = request.command_order() {
            if cmd_sn == self.cmd_sn && self.has_room() {
                self.cmd_sn = self.cmd_sn.plus(1);
            } else {
                self.in_order = false;
            }
            is_heard = self.in_order;
        }
        is_heard &= !self.anything && !self.is_swallowed;
        if !self.is_logged_in {
            // What is sent before the login was answered may be framed wrongly.
            (is_heard, self.may_close) = (false, true);
            self.anything |= self.settings.header_digest() || self.settings.data_digest();
        }
        let mut pending = Pending {
            tag: bhs.task_tag(),
            opcode: bhs.opcode(),
            lun: u64::from_be_bytes(bhs.0[8..16].try_into().expect("8 bytes")),
            order: self.sent,
            sure: is_heard,
            function: 0,
            nop: Vec::new(),
            expected: 0,
            read: false,
            write: false,
            received: 0,
            data_in: Vec::new(),
            data_sn: 0,
            burst: 0,
            r2t_sn: 0,
            asked_to: None,
        };
        match request {
            Request::NopOut(nop) if nop.task_tag == TAG_NONE => return,
            Request::NopOut(_) => {
                let len = data.len().min(self.settings.initiator_segment_bytes() as usize);
                pending.nop = data[..len].to_vec();
            }
            Request::ScsiCommand(command) => {
                pending.expected = if command.read || command.write { command.expected_len } else { 0 };
                (pending.read, pending.write) = (command.read, command.write);
                // Whether its data comes is another question.
                pending.sure &= !command.write && self.is_free(command.task_tag);
            }
            Request::TaskManagement(function) => {
                pending.function = function.function;
                // Aborted tasks are not answered.
                self.pending.iter_mut().for_each(|pending| pending.sure = false);
                // Functions may plug holes.
                self.in_order = self.in_order && function.function != 1;
            }
            Request::Text(_) => {}
            Request::Logout(_) => {
                self.may_close = true;
                self.pending.iter_mut().for_each(|pending| pending.sure = false);
                pending.sure = false;
            }
            Request::DataOut(_) => return,
            Request::Login(_) | Request::Snack(_) | Request::Unknown(_) => pending.sure = false,
        }
        // Which of the two is answered, and which was dropped, nobody knows.
        let is_same = |other: &Pending| (other.opcode, other.tag) == (pending.opcode, pending.tag);
        if self.pending.iter().any(is_same) {
            self.anything = true;
            pending.sure = false;
            self.pending.iter_mut().for_each(|pending| pending.sure = false);
        }
        self.pending.push(pending);
    }

    fn is_free(&self, tag: u32) -> bool {
        tag != TAG_NONE && !self.pending.iter().any(|pending| pending.tag == tag)
    }

    /// Text that declares another segment was sent. If the target took it, it goes by it from now on.
    pub(super) fn maybe_declared(&mut self, key: &str, value: &str) {
        let mut settings = self.settings.clone();
        if settings.renegotiate(key, value, &mut BytesMut::new()).is_ok() {
            let longer = settings.initiator_segment_bytes().max(self.settings.initiator_segment_bytes());
            let longer = longer.to_string();
            self.settings.renegotiate(key, &longer, &mut BytesMut::new()).expect("it is in range");
            self.may_truncate = true;
        }
    }

    /// Takes all that the target has sent.
    pub(super) fn receive(&mut self, world: &mut World) {
        // The last login response has no digests, what follows it may: so one slice at a time.
        let mut pdus = Vec::new();
        for slice in world.output(self.id) {
            self.stream.take(&slice, &mut pdus);
            for pdu in pdus.drain(..) {
                if self.is_logged_in {
                    self.take(&pdu);
                } else {
                    self.logged_in(&pdu);
                }
            }
        }
        if world.is_closed(self.id) {
            return;
        }
        assert!(!self.stream.is_mid_pdu(), "PDUs are sent as a whole");
    }

    fn logged_in(&mut self, pdu: &Incoming) {
        let Reply::Login(response) = Reply::decode(&pdu.bhs) else { panic!("{:?}", pdu.bhs) };
        if response.status != 0 {
            self.may_close = true;
            return;
        }
        assert!(response.transit && response.next_stage == 3 && response.tsih != 0);
        let numbers = Numbers::decode(&pdu.bhs);
        assert_eq!(numbers.stat_sn, self.numbers.stat_sn);
        self.numbers = Numbers { stat_sn: numbers.stat_sn.plus(1), ..numbers };
        self.tsih = response.tsih;
        let (header, data) = (self.settings.header_digest(), self.settings.data_digest());
        (self.stream.header_digest, self.stream.data_digest) = (header, data);
        (self.encoder.header_digest, self.encoder.data_digest) = (header, data);
        self.is_logged_in = true;
    }

    fn take(&mut self, pdu: &Incoming) {
        let reply = Reply::decode(&pdu.bhs);
        self.count(&reply, &Numbers::decode(&pdu.bhs));
        if self.anything {
            return;
        }
        let segment = self.segment() as usize;
        match reply {
            Reply::DataIn(data) => {
                assert!(pdu.len <= segment && pdu.len > 0);
                self.data_in(&data, pdu);
            }
            Reply::ScsiResponse(response) => self.response(&response, &pdu.data),
            Reply::R2t(r2t) => self.r2t(r2t),
            Reply::NopIn(nop) if nop.task_tag == TAG_NONE => {
                assert!(nop.transfer_tag != TAG_NONE && pdu.len == 0);
                self.pings.push((nop.lun, nop.transfer_tag));
            }
            Reply::NopIn(nop) => self.echo(nop.task_tag, &pdu.data),
            Reply::TaskManagement(response) => {
                let Some(pending) = self.answered(2, response.task_tag) else { return };
                if response.response == 0 {
                    self.completed.push(pending);
                }
            }
            Reply::Text(text) => {
                assert!(pdu.len <= self.settings.initiator_segment_bytes().max(8192) as usize);
                self.answered(4, text.task_tag);
            }
            Reply::Logout(logout) => {
                self.answered(6, logout.task_tag);
            }
            Reply::Reject(reject) => {
                assert_eq!(reject.task_tag, TAG_NONE);
                self.rejected(&pdu.data);
            }
            Reply::Async(_) => {}
            Reply::Login(_) | Reply::Unknown(_) => panic!("{reply:?}"),
        }
    }

    fn count(&mut self, reply: &Reply, numbers: &Numbers) {
        let uses = match reply {
            Reply::DataIn(data) => data.has_status.then_some(1),
            Reply::R2t(_) => Some(0),
            Reply::NopIn(nop) if nop.task_tag == TAG_NONE => Some(0),
            _ => Some(1),
        };
        if let Some(uses) = uses {
            assert_eq!(numbers.stat_sn, self.numbers.stat_sn, "StatSN has no gaps: {reply:?}");
            self.numbers.stat_sn = numbers.stat_sn.plus(uses);
        }
        assert!(!numbers.max_cmd_sn.is_before(self.numbers.max_cmd_sn), "MaxCmdSN never decreases");
        assert!(!numbers.exp_cmd_sn.is_before(self.numbers.exp_cmd_sn), "nor does ExpCmdSN");
        assert!(
            numbers.max_cmd_sn.plus(1).since(numbers.exp_cmd_sn) <= 128,
            "the window is as wide as it is"
        );
        if self.in_order {
            assert!(!numbers.exp_cmd_sn.is_after(self.cmd_sn), "what was not sent is not expected");
        }
        (self.numbers.max_cmd_sn, self.numbers.exp_cmd_sn) = (numbers.max_cmd_sn, numbers.exp_cmd_sn);
    }

    /// The answer to a ping: of several with its tag, one with its data.
    fn echo(&mut self, tag: u32, data: &[u8]) {
        let is_it = |pending: &Pending| {
            pending.opcode == NopOut::OPCODE
                && pending.tag == tag
                && pending.nop.starts_with(data)
                && (self.may_truncate || pending.nop.len() == data.len())
        };
        match self.pending.iter().position(is_it) {
            Some(index) => {
                self.pending.remove(index);
            }
            None => panic!("an echo of {tag:#x} that nobody has sent"),
        }
    }

    /// The oldest request with this tag; it is none any more.
    fn answered(&mut self, opcode: u8, tag: u32) -> Option<Pending> {
        let index = self.find(opcode, tag)?;
        Some(self.pending.remove(index))
    }

    fn find(&self, opcode: u8, tag: u32) -> Option<usize> {
        let index = self.pending.iter().position(|pending| pending.opcode == opcode && pending.tag == tag);
        assert!(index.is_some(), "an answer {opcode:#x} {tag:#x} that nobody asked for");
        index
    }

    fn rejected(&mut self, header: &[u8]) {
        assert_eq!(header.len(), 48);
        let is_it = |sent: &Bhs| sent.0 == *header;
        assert!(self.headers.iter().any(is_it), "a header was rejected that was never sent");
        let Some(header) = header.first_chunk::<48>().map(|bytes| Bhs(*bytes)) else { return };
        let is_meant =
            |pending: &Pending| pending.tag == header.task_tag() && pending.opcode == header.opcode();
        if let Some(index) = self.pending.iter().rposition(is_meant) {
            self.pending.remove(index);
        }
        // A command whose data was spoilt leaves a hole.
        self.in_order = false;
        self.pending.iter_mut().for_each(|pending| pending.sure = false);
    }

    fn data_in(&mut self, data: &DataIn, pdu: &Incoming) {
        let burst_max = self.settings.max_burst_bytes();
        let Some(index) = self.find(ScsiCommand::OPCODE, data.task_tag) else { return };
        let pending = &mut self.pending[index];
        let len = u32::try_from(pdu.len).expect("a data segment has 24 bits");
        assert!(pending.read, "nobody wants data");
        assert_eq!((data.data_sn.0, data.offset), (pending.data_sn, pending.received));
        pending.data_sn += 1;
        pending.received += len;
        pending.burst += len;
        assert!(pending.received <= pending.expected && pending.burst <= burst_max);
        pending.data_in.extend_from_slice(&pdu.data);
        if data.is_final {
            pending.burst = 0;
        }
        if data.has_status {
            assert!(data.is_final && data.status == 0);
            let pending = self.pending.remove(index);
            check_residual(&pending, data.overflow, data.underflow, data.residual, 0);
            self.end(pending, 0, Vec::new());
        }
    }

    fn response(&mut self, response: &ScsiResponse, data: &[u8]) {
        let Some(pending) = self.answered(ScsiCommand::OPCODE, response.task_tag) else { return };
        assert_eq!(response.response, 0);
        assert_eq!(response.exp_data_sn.0, pending.data_sn + pending.r2t_sn, "all that was numbered");
        check_residual(&pending, response.overflow, response.underflow, response.residual, response.status);
        let sense = if response.status == 2 {
            let (len, sense) = data.split_at(2);
            assert_eq!(usize::from(u16::from_be_bytes([len[0], len[1]])), sense.len());
            assert!(sense.len() >= 8);
            sense.to_vec()
        } else {
            assert!(data.is_empty());
            Vec::new()
        };
        self.end(pending, response.status, sense);
    }

    fn end(&mut self, pending: Pending, status: u8, sense: Vec<u8>) {
        let Pending { tag, data_in, order, .. } = pending;
        self.wanted.retain(|wanted| wanted.r2t.task_tag != tag);
        self.ended.push(Ended { tag, status, sense, data_in, order });
    }

    fn r2t(&mut self, r2t: R2t) {
        let (burst_max, outstanding_max) =
            (self.settings.max_burst_bytes(), self.settings.outstanding_r2t_max());
        let Some(index) = self.find(ScsiCommand::OPCODE, r2t.task_tag) else { return };
        let pending = &mut self.pending[index];
        assert!(pending.write, "nobody has data");
        assert_eq!(r2t.r2t_sn.0, pending.r2t_sn);
        pending.r2t_sn += 1;
        assert!(pending.asked_to.is_none_or(|end| end == r2t.offset), "R2Ts are in order");
        let end = r2t.offset + r2t.desired_len;
        assert!(r2t.desired_len > 0 && r2t.desired_len <= burst_max && end <= pending.expected);
        pending.asked_to = Some(end);
        assert!(r2t.transfer_tag != TAG_NONE);
        assert!(
            !self.wanted.iter().any(|wanted| wanted.r2t.transfer_tag == r2t.transfer_tag),
            "a tag of its own"
        );
        self.wanted.push(Wanted { r2t, data_sn: 0, sent: 0 });
        let of_command = self.wanted.iter().filter(|wanted| wanted.r2t.task_tag == r2t.task_tag).count();
        // Which of the outstanding ones a wrong answer has ended nobody knows.
        assert!(of_command <= outstanding_max as usize || !self.in_order || self.is_rough);
    }
}

/// Nothing but the residual says how much was moved (RFC 7143 11.4.5).
fn check_residual(pending: &Pending, overflow: bool, underflow: bool, residual: u32, status: u8) {
    assert!(!(overflow && underflow));
    assert_eq!(overflow || underflow, residual != 0, "{pending:?}");
    assert!(!underflow || residual <= pending.expected);
    if pending.read && !pending.write {
        if status == 0 {
            let moved = if underflow { pending.expected - residual } else { pending.expected };
            assert_eq!(pending.received, moved, "{pending:?}");
        } else {
            assert_eq!(pending.received, 0);
        }
    }
}

//! A small initiator. It checks on every PDU what holds for all: StatSN counts without gaps, MaxCmdSN
//! never decreases, data segments and bursts are within what was negotiated.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use lunette_proto::iscsi::initiator::{
    DataOut, LoginRequest, NopOut, ScsiCommand, TaskManagement, TextRequest,
};
use lunette_proto::iscsi::target::{DataIn, LoginResponse, Numbers, R2t, ScsiResponse};
use lunette_proto::iscsi::{Bhs, Encoder, Framer, Pdu, Reply, Serial, TAG_NONE};
use lunette_target_iscsi::session::ConnectionId;

use crate::bed::{Bed, IQN};

pub(crate) const INITIATOR: &str = "iqn.2026-11.org.example:host";

pub(crate) struct Initiator {
    pub(crate) id: ConnectionId,
    pub(crate) cmd_sn: Serial,
    pub(crate) tag: u32,
    pub(crate) isid: [u8; 6],
    pub(crate) tsih: u16,
    /// What the target answered to each key.
    pub(crate) answers: BTreeMap<String, String>,
    pub(crate) numbers: Numbers,
    encoder: Encoder,
    framer: Framer,
    started: bool,
    /// R2Ts by task tag.
    r2ts: BTreeMap<u32, u32>,
}

/// The end of a command.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) status: u8,
    /// Key, additional code, qualifier.
    pub(crate) sense: Option<[u8; 3]>,
    pub(crate) data: Vec<u8>,
    pub(crate) overflow: u32,
    pub(crate) underflow: u32,
    pub(crate) data_in: u32,
    pub(crate) r2ts: u32,
}

pub(crate) fn keys(pairs: &[(&str, &str)]) -> Vec<u8> {
    pairs.iter().flat_map(|(key, value)| format!("{key}={value}\0").into_bytes()).collect()
}

pub(crate) fn read10(lba: u32, blocks: u16) -> [u8; 16] {
    cdb10(0x28, lba, blocks)
}

pub(crate) fn write10(lba: u32, blocks: u16) -> [u8; 16] {
    cdb10(0x2a, lba, blocks)
}

fn cdb10(opcode: u8, lba: u32, blocks: u16) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = opcode;
    cdb[2..6].copy_from_slice(&lba.to_be_bytes());
    cdb[7..9].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

impl Initiator {
    pub(crate) fn new(id: ConnectionId) -> Self {
        Self {
            id,
            cmd_sn: Serial(0x100),
            tag: 1,
            isid: [0x80, 0, 0, 0, 0, 1],
            tsih: 0,
            answers: BTreeMap::new(),
            numbers: Numbers::default(),
            encoder: Encoder::default(),
            framer: Framer::new(1 << 24),
            started: false,
            r2ts: BTreeMap::new(),
        }
    }

    /// Logged in with the given operational keys, POWER ON reported.
    pub(crate) fn ready(bed: &mut Bed, operational: &[(&str, &str)]) -> Self {
        let mut initiator = Self::new(bed.connect());
        initiator.login(bed, operational).unwrap();
        initiator.clear_attention(bed);
        initiator
    }

    /// With another ISID, so that sessions stand side by side.
    pub(crate) fn ready_as(bed: &mut Bed, isid: u8) -> Self {
        let mut initiator = Self::new(bed.connect());
        initiator.isid[5] = isid;
        initiator.login(bed, &[]).unwrap();
        initiator.clear_attention(bed);
        initiator
    }

    pub(crate) fn clear_attention(&mut self, bed: &mut Bed) {
        for lun in [0, 1] {
            let ended = self.command_to(bed, lun << 48, [0; 16], 0, &[]);
            assert_eq!(ended.sense, Some([6, 0x29, 0]), "a new nexus reports POWER ON");
        }
    }

    /// Straight to the operational stage and on.
    pub(crate) fn login(&mut self, bed: &mut Bed, operational: &[(&str, &str)]) -> Result<(), u16> {
        let mut text = keys(&[("InitiatorName", INITIATOR), ("TargetName", IQN), ("SessionType", "Normal")]);
        text.extend(keys(operational));
        self.login_step(bed, 1, Some(3), &text).map(drop)
    }

    pub(crate) fn discover(&mut self, bed: &mut Bed, operational: &[(&str, &str)]) -> Result<(), u16> {
        let mut text = keys(&[("InitiatorName", INITIATOR), ("SessionType", "Discovery")]);
        text.extend(keys(operational));
        self.login_step(bed, 1, Some(3), &text).map(drop)
    }

    pub(crate) fn login_request(&self, stage: u8, next: Option<u8>) -> LoginRequest {
        LoginRequest {
            immediate: true,
            transit: next.is_some(),
            stage,
            next_stage: next.unwrap_or(0),
            isid: self.isid,
            tsih: self.tsih,
            task_tag: 9,
            cid: 1,
            cmd_sn: self.cmd_sn,
            exp_stat_sn: self.numbers.stat_sn,
            ..LoginRequest::default()
        }
    }

    /// One request; the answer's keys, or the status of a failure.
    pub(crate) fn login_step(
        &mut self,
        bed: &mut Bed,
        stage: u8,
        next: Option<u8>,
        text: &[u8],
    ) -> Result<(LoginResponse, BTreeMap<String, String>), u16> {
        let request = self.login_request(stage, next);
        self.send(bed, request.encode(), text);
        self.login_answer(bed)
    }

    pub(crate) fn login_answer(
        &mut self,
        bed: &mut Bed,
    ) -> Result<(LoginResponse, BTreeMap<String, String>), u16> {
        let (reply, pdu) = self.next(bed).expect("a login is answered");
        let Reply::Login(response) = reply else { panic!("{reply:?}") };
        if response.status != 0 {
            assert!(bed.is_closed(self.id), "a failed login closes the connection");
            assert_eq!((response.transit, response.next_stage), (false, 0), "a failed login goes nowhere");
            return Err(response.status);
        }
        let answers: BTreeMap<String, String> = lunette_proto::iscsi::text::parse(&pdu.data)
            .unwrap()
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        self.answers.extend(answers.clone());
        if response.transit && response.next_stage == 3 {
            assert_ne!(response.tsih, 0);
            self.tsih = response.tsih;
            let crc = |key: &str| self.answers.get(key).is_some_and(|value| value == "CRC32C");
            (self.encoder.header_digest, self.encoder.data_digest) = (crc("HeaderDigest"), crc("DataDigest"));
            self.framer.header_digest = self.encoder.header_digest;
            self.framer.data_digest = self.encoder.data_digest;
        }
        Ok((response, answers))
    }

    pub(crate) fn wire(&mut self, bhs: Bhs, ahs: &[u8], data: &[u8]) -> BytesMut {
        let mut slices: Vec<Bytes> = Vec::new();
        self.encoder.encode(bhs, ahs, &[Bytes::copy_from_slice(data)], &mut slices);
        slices.iter().flat_map(|slice| slice.to_vec()).collect::<Vec<u8>>().as_slice().into()
    }

    pub(crate) fn send(&mut self, bed: &mut Bed, bhs: Bhs, data: &[u8]) {
        let wire = self.wire(bhs, &[], data);
        bed.feed(self.id, &wire);
    }

    /// The next PDU from the target.
    pub(crate) fn next(&mut self, bed: &mut Bed) -> Option<(Reply, Pdu)> {
        let pdu = self.framer.next(bed.output(self.id)?).expect("the target frames well")?;
        assert!(pdu.data_is_sound);
        let numbers = Numbers::decode(&pdu.bhs);
        let reply = Reply::decode(&pdu.bhs);
        let uses = match &reply {
            Reply::DataIn(data) => data.has_status.then_some(true),
            Reply::R2t(_) => Some(false),
            Reply::NopIn(nop) => Some(nop.task_tag != TAG_NONE),
            Reply::Unknown(opcode) => panic!("opcode {opcode:#x}"),
            _ => Some(true),
        };
        match &reply {
            Reply::R2t(r2t) => {
                let count = self.r2ts.entry(r2t.task_tag).or_default();
                assert_eq!(r2t.r2t_sn.0, *count, "R2TSN counts from 0 for each command");
                *count += 1;
            }
            Reply::Reject(reject) => assert_eq!((pdu.data.len(), reject.task_tag), (48, TAG_NONE)),
            _ => {}
        }
        if let Some(uses) = uses {
            if !std::mem::replace(&mut self.started, true) {
                self.numbers = numbers;
            }
            assert_eq!(numbers.stat_sn, self.numbers.stat_sn, "StatSN has no gaps: {reply:?}");
            self.numbers.stat_sn = numbers.stat_sn.plus(u32::from(uses));
        }
        assert!(!numbers.max_cmd_sn.is_before(self.numbers.max_cmd_sn), "MaxCmdSN never decreases");
        self.numbers.max_cmd_sn = numbers.max_cmd_sn;
        self.numbers.exp_cmd_sn = numbers.exp_cmd_sn;
        Some((reply, pdu))
    }

    /// The next PDU, which must not be there.
    pub(crate) fn expect_silence(&mut self, bed: &mut Bed) {
        let next = self.next(bed);
        assert!(next.is_none(), "{next:?}");
    }

    pub(crate) fn next_tag(&mut self) -> u32 {
        self.tag += 1;
        self.tag
    }

    pub(crate) fn command_header(&mut self, cdb: [u8; 16], expected_len: u32) -> ScsiCommand {
        ScsiCommand {
            is_final: true,
            attribute: 1,
            task_tag: self.next_tag(),
            expected_len,
            cmd_sn: self.cmd_sn.take(),
            exp_stat_sn: self.numbers.stat_sn,
            cdb,
            ..ScsiCommand::default()
        }
    }

    /// Reads `len` bytes, or with 0 moves nothing.
    pub(crate) fn read(&mut self, bed: &mut Bed, cdb: [u8; 16], len: u32) -> Ended {
        let mut command = self.command_header(cdb, len);
        command.read = true;
        self.send(bed, command.encode(), &[]);
        self.end(bed, command.task_tag, &[])
    }

    pub(crate) fn write(&mut self, bed: &mut Bed, cdb: [u8; 16], data: &[u8]) -> Ended {
        self.command_to(bed, 0, cdb, 0, data)
    }

    /// A command with Data-In of `read` bytes or the given Data-Out, sent as was negotiated.
    pub(crate) fn command_to(
        &mut self,
        bed: &mut Bed,
        lun: u64,
        cdb: [u8; 16],
        read: u32,
        data: &[u8],
    ) -> Ended {
        let mut command = self.command_header(cdb, read.max(data.len() as u32));
        command.lun = lun;
        command.read = read != 0;
        command.write = !data.is_empty();
        let sent = self.begin_write(bed, &mut command, data);
        self.unsolicited(bed, &command, data, sent);
        self.end(bed, command.task_tag, data)
    }

    /// Sends the command with as much immediate data as was agreed; gives how much that is.
    pub(crate) fn begin_write(&mut self, bed: &mut Bed, command: &mut ScsiCommand, data: &[u8]) -> usize {
        let first_burst = self.number("FirstBurstLength", 65536).min(self.number("MaxBurstLength", 262_144));
        let immediate =
            if self.says("ImmediateData", true) { data.len().min(first_burst).min(8192) } else { 0 };
        let unsolicited = !self.says("InitialR2T", true) && immediate < data.len().min(first_burst);
        command.is_final = !unsolicited;
        self.send(bed, command.encode(), &data[..immediate]);
        immediate
    }

    fn unsolicited(&mut self, bed: &mut Bed, command: &ScsiCommand, data: &[u8], mut at: usize) {
        if command.is_final {
            return;
        }
        let first_burst = self.number("FirstBurstLength", 65536).min(self.number("MaxBurstLength", 262_144));
        let end = data.len().min(first_burst);
        let mut data_sn = Serial(0);
        while at < end {
            let to = end.min(at + 3000);
            let pdu = DataOut {
                is_final: to == end,
                task_tag: command.task_tag,
                transfer_tag: TAG_NONE,
                data_sn: data_sn.take(),
                offset: at as u32,
                ..DataOut::default()
            };
            self.send(bed, pdu.encode(), &data[at..to]);
            at = to;
        }
    }

    /// Answers R2Ts from `data` and gathers Data-In until the status comes.
    pub(crate) fn end(&mut self, bed: &mut Bed, task_tag: u32, data: &[u8]) -> Ended {
        let mut ended =
            Ended { status: 0, sense: None, data: vec![], overflow: 0, underflow: 0, data_in: 0, r2ts: 0 };
        let burst_max = self.number("MaxBurstLength", 262_144);
        let mut burst = 0;
        loop {
            let (reply, pdu) = self.next(bed).expect("a command is answered");
            match reply {
                Reply::R2t(r2t) => {
                    assert!(r2t.desired_len as usize <= burst_max);
                    ended.r2ts += 1;
                    self.solicited(bed, &r2t, data);
                }
                Reply::DataIn(data_in) => {
                    assert_eq!((data_in.task_tag, data_in.data_sn.0), (task_tag, ended.data_in));
                    assert_eq!(data_in.offset as usize, ended.data.len());
                    assert!(pdu.data.len() <= self.segment());
                    ended.data_in += 1;
                    ended.data.extend_from_slice(&pdu.data);
                    burst += pdu.data.len();
                    assert!(burst <= burst_max);
                    if data_in.is_final {
                        burst = 0;
                    }
                    if data_in.has_status {
                        assert!(data_in.is_final);
                        return ended.with_data_in(&data_in);
                    }
                }
                Reply::ScsiResponse(response) => {
                    assert_eq!(response.task_tag, task_tag);
                    let r2ts = self.r2ts.remove(&task_tag).unwrap_or(0);
                    assert_eq!(response.exp_data_sn.0, ended.data_in + r2ts);
                    return ended.with_response(&response, &pdu.data);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    pub(crate) fn solicited(&mut self, bed: &mut Bed, r2t: &R2t, data: &[u8]) {
        let end = (r2t.offset + r2t.desired_len) as usize;
        let mut at = r2t.offset as usize;
        let mut data_sn = Serial(0);
        while at < end {
            let to = end.min(at + 5000);
            let pdu = DataOut {
                is_final: to == end,
                lun: r2t.lun,
                task_tag: r2t.task_tag,
                transfer_tag: r2t.transfer_tag,
                data_sn: data_sn.take(),
                offset: at as u32,
                ..DataOut::default()
            };
            self.send(bed, pdu.encode(), &data[at..to]);
            at = to;
        }
    }

    pub(crate) fn ping(&mut self, bed: &mut Bed, data: &[u8]) -> Vec<u8> {
        let nop = NopOut {
            immediate: true,
            task_tag: self.next_tag(),
            transfer_tag: TAG_NONE,
            cmd_sn: self.cmd_sn,
            ..NopOut::default()
        };
        self.send(bed, nop.encode(), data);
        let (reply, pdu) = self.next(bed).expect("a ping is answered");
        let Reply::NopIn(answer) = reply else { panic!("{reply:?}") };
        assert_eq!((answer.task_tag, answer.transfer_tag), (nop.task_tag, TAG_NONE));
        pdu.data.to_vec()
    }

    /// Sends an immediate task management function and gives its tag.
    pub(crate) fn manage(&mut self, bed: &mut Bed, function: u8, lun: u64, referenced: &ScsiCommand) -> u32 {
        let request = TaskManagement {
            immediate: true,
            function,
            lun,
            task_tag: self.next_tag(),
            referenced_tag: referenced.task_tag,
            cmd_sn: self.cmd_sn,
            ref_cmd_sn: referenced.cmd_sn,
            ..TaskManagement::default()
        };
        self.send(bed, request.encode(), &[]);
        request.task_tag
    }

    /// The response of a task management function, which is the next PDU.
    pub(crate) fn managed(&mut self, bed: &mut Bed, tag: u32) -> u8 {
        let (reply, _) = self.next(bed).expect("a function is answered");
        let Reply::TaskManagement(response) = reply else { panic!("{reply:?}") };
        assert_eq!(response.task_tag, tag);
        response.response
    }

    /// A whole text exchange, continued as the target wants.
    pub(crate) fn text(&mut self, bed: &mut Bed, text: &[u8]) -> (String, usize) {
        let mut request = TextRequest {
            is_final: true,
            task_tag: self.next_tag(),
            transfer_tag: TAG_NONE,
            cmd_sn: self.cmd_sn.take(),
            ..TextRequest::default()
        };
        self.send(bed, request.encode(), text);
        let (mut gathered, mut parts) = (Vec::new(), 0);
        loop {
            let (reply, pdu) = self.next(bed).expect("a text request is answered");
            let Reply::Text(response) = reply else { panic!("{reply:?}") };
            assert!(pdu.data.len() <= self.segment());
            gathered.extend_from_slice(&pdu.data);
            parts += 1;
            if response.is_final {
                assert_eq!(response.transfer_tag, TAG_NONE);
                return (String::from_utf8(gathered).unwrap().replace('\0', "\n"), parts);
            }
            assert!(response.continued);
            request.transfer_tag = response.transfer_tag;
            request.cmd_sn = self.cmd_sn.take();
            self.send(bed, request.encode(), &[]);
        }
    }

    /// What this initiator declared is kept beside the answers, by the tests that declare it.
    fn segment(&self) -> usize {
        self.number("InitiatorSegment", 8192)
    }

    fn number(&self, key: &str, default: usize) -> usize {
        self.answers.get(key).map_or(default, |value| value.parse().unwrap())
    }

    fn says(&self, key: &str, default: bool) -> bool {
        self.answers.get(key).map_or(default, |value| value == "Yes")
    }
}

impl Ended {
    fn with_data_in(mut self, data_in: &DataIn) -> Self {
        self.status = data_in.status;
        self.overflow = if data_in.overflow { data_in.residual } else { 0 };
        self.underflow = if data_in.underflow { data_in.residual } else { 0 };
        self
    }

    fn with_response(mut self, response: &ScsiResponse, data: &[u8]) -> Self {
        assert_eq!(response.response, 0);
        self.status = response.status;
        self.overflow = if response.overflow { response.residual } else { 0 };
        self.underflow = if response.underflow { response.residual } else { 0 };
        if !data.is_empty() {
            let len = usize::from(u16::from_be_bytes([data[0], data[1]]));
            assert_eq!(data.len(), len + 2);
            self.sense = Some([data[4] & 0xf, data[14], data[15]]);
        }
        self
    }
}

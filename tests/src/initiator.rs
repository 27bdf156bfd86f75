//! A small initiator: one connection, one command at a time, no digests.
//!
//! For what stock tools do not print (the bytes of VPD page 83h), and for tests that must look at
//! each answer. It checks what the target sends where the RFC leaves no choice, and panics on it.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use crate::pdu::{NO_TAG, Pdu, opcode, text, text_bytes};

/// The initiator name that it uses.
pub const NAME: &str = "iqn.2026-11.io.lunette.tests:initiator";
/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(20);
const FINAL: u8 = 0x80;
/// MaxRecvDataSegmentLength that this initiator declares, and the most it sends in one Data-Out.
const SEGMENT: usize = 8192;

/// Why there is no session.
#[derive(Debug)]
pub enum LoginError {
    /// The connection failed.
    Io(io::Error),
    /// The target refused: status class and detail (RFC 7143, 11.13.5).
    Refused(u8, u8),
}

impl From<io::Error> for LoginError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl fmt::Display for LoginError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "{error}"),
            Self::Refused(class, detail) => write!(f, "refused with status {class:02x}{detail:02x}h"),
        }
    }
}

/// A target as SendTargets tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// TargetName.
    pub name: String,
    /// TargetAddress lines: address, port and portal group.
    pub addresses: Vec<String>,
}

/// What a SCSI command moves.
#[derive(Clone, Copy, Debug)]
pub enum Transfer<'a> {
    /// Nothing.
    None,
    /// At most this many bytes from the target.
    In(usize),
    /// These bytes to the target.
    Out(&'a [u8]),
}

/// How a SCSI command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// SCSI status: 0 GOOD, 2 CHECK CONDITION, 8 BUSY, ...
    pub status: u8,
    /// Data from the target.
    pub data: Vec<u8>,
    /// Sense data without the length before it.
    pub sense: Vec<u8>,
}

impl Answer {
    /// Sense key, additional sense code and its qualifier of fixed-format sense data (SPC-4, 4.5.3).
    #[must_use]
    pub fn sense_code(&self) -> Option<(u8, u8, u8)> {
        Some((self.sense.get(2)? & 0x0f, *self.sense.get(12)?, *self.sense.get(13)?))
    }
}

/// A session in full-feature phase.
#[derive(Debug)]
pub struct Initiator {
    stream: TcpStream,
    /// CmdSN of the next command that is not immediate.
    cmd_sn: u32,
    exp_stat_sn: u32,
    tag: u32,
    isid: [u8; 6],
}

/// An ISID that no other session of this machine's tests has: with the same one, a login would end the session that
/// has it (RFC 7143, 6.3.5).
fn next_isid() -> [u8; 6] {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let [a, b, c, d] = std::process::id().to_be_bytes();
    let [e, f] = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    // Type 10b: a random number of three bytes, then a qualifier of two.
    [0x80, a ^ b, c, d, e, f]
}

impl Initiator {
    /// Connects, without a word.
    ///
    /// # Errors
    /// Those of the connection.
    pub fn connect(address: SocketAddr) -> io::Result<TcpStream> {
        Self::connect_within(address, ANSWER)
    }

    fn connect_within(address: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
        let stream = TcpStream::connect_timeout(&address, patience.min(Duration::from_secs(5)))?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Logs in to a target without authentication.
    ///
    /// # Errors
    /// When the connection fails or the target refuses.
    pub fn login(address: SocketAddr, target: &str) -> Result<Self, LoginError> {
        Self::login_within(address, target, ANSWER)
    }

    /// The same; `patience` is how long each answer may take, now and later.
    ///
    /// # Errors
    /// When the connection fails or the target refuses.
    pub fn login_within(address: SocketAddr, target: &str, patience: Duration) -> Result<Self, LoginError> {
        let stream = Self::connect_within(address, patience)?;
        Self::login_over(stream, NAME, &[("SessionType", "Normal"), ("TargetName", target)])
    }

    /// All targets that the portal shows to this initiator.
    ///
    /// # Errors
    /// When the connection fails or the target refuses.
    pub fn discover(address: SocketAddr) -> Result<Vec<Found>, LoginError> {
        let mut session = Self::login_as(address, NAME, &[("SessionType", "Discovery")])?;
        let pairs = session.text(&[("SendTargets", "All")])?;
        session.logout()?;
        let mut found: Vec<Found> = Vec::new();
        for (key, value) in pairs {
            match (key.as_str(), found.last_mut()) {
                ("TargetName", _) => found.push(Found { name: value, addresses: Vec::new() }),
                ("TargetAddress", Some(target)) => target.addresses.push(value),
                _ => panic!("{key}={value} in an answer to SendTargets (RFC 7143, appendix C)"),
            }
        }
        Ok(found)
    }

    /// Logs in under a name, with the keys that say to what: security stage, then operational.
    ///
    /// # Errors
    /// When the connection fails or the target refuses.
    ///
    /// # Panics
    /// If the target breaks the login phase's rules.
    pub fn login_as(address: SocketAddr, name: &str, session: &[(&str, &str)]) -> Result<Self, LoginError> {
        Self::login_over(Self::connect(address)?, name, session)
    }

    fn login_over(stream: TcpStream, name: &str, session: &[(&str, &str)]) -> Result<Self, LoginError> {
        let mut login = Self { stream, cmd_sn: 1, exp_stat_sn: 0, tag: 1, isid: next_isid() };
        let mut keys = vec![("InitiatorName", name), ("AuthMethod", "None")];
        keys.extend_from_slice(session);
        // CSG 0 (security) to NSG 1 (operational), then to NSG 3 (full feature).
        login.login_stage(0, 1, &keys)?;
        let segment = SEGMENT.to_string();
        login.login_stage(
            1,
            3,
            &[
                ("HeaderDigest", "None"),
                ("DataDigest", "None"),
                ("InitialR2T", "Yes"),
                ("ImmediateData", "No"),
                ("MaxRecvDataSegmentLength", &segment),
                ("DefaultTime2Wait", "2"),
                ("DefaultTime2Retain", "0"),
                ("ErrorRecoveryLevel", "0"),
            ],
        )?;
        Ok(login)
    }

    fn login_stage(&mut self, current: u8, next: u8, keys: &[(&str, &str)]) -> Result<(), LoginError> {
        let mut data = text_bytes(keys);
        for _ in 0..8 {
            let mut request = Pdu::new(opcode::LOGIN | 0x40, FINAL | current << 2 | next);
            request.header[8..14].copy_from_slice(&self.isid);
            request.set_word(16, self.tag);
            request.set_word(24, self.cmd_sn);
            request.set_word(28, self.exp_stat_sn);
            request.data = std::mem::take(&mut data);
            request.write(&mut self.stream)?;
            let response = Pdu::read(&mut self.stream)?;
            assert_eq!(response.opcode(), opcode::LOGIN_RESPONSE, "{response:?}");
            assert_eq!(response.tag(), self.tag, "the answer is to another login request");
            let (class, detail) = (response.header[36], response.header[37]);
            if class != 0 {
                return Err(LoginError::Refused(class, detail));
            }
            self.exp_stat_sn = response.word(24).wrapping_add(1);
            if response.flags() & FINAL != 0 {
                assert_eq!(
                    response.flags() & 0x03,
                    next,
                    "the target went on to another stage than was asked for"
                );
                return Ok(());
            }
        }
        panic!("the target does not leave login stage {current}");
    }

    /// Sends a text request and reads the pairs of the whole answer.
    ///
    /// # Errors
    /// Those of the connection.
    ///
    /// # Panics
    /// If the answer is no text response.
    pub fn text(&mut self, pairs: &[(&str, &str)]) -> io::Result<Vec<(String, String)>> {
        let mut data = Vec::new();
        let mut request = Pdu::new(opcode::TEXT, FINAL);
        request.data = text_bytes(pairs);
        request.set_word(20, NO_TAG);
        loop {
            let response = self.exchange(request)?;
            assert_eq!(response.opcode(), opcode::TEXT_RESPONSE, "{response:?}");
            data.extend_from_slice(&response.data);
            if response.flags() & FINAL != 0 {
                return Ok(text(&data));
            }
            // More to come: an empty request with the target's tag asks for it (RFC 7143, 11.10.4).
            request = Pdu::new(opcode::TEXT, FINAL);
            request.set_word(20, response.word(20));
        }
    }

    /// Sends one request that is not immediate and reads its one answer.
    ///
    /// # Errors
    /// Those of the connection.
    pub fn exchange(&mut self, request: Pdu) -> io::Result<Pdu> {
        self.send(request)?;
        self.answer()
    }

    /// Sends one request that is not immediate, and waits for nothing.
    ///
    /// # Errors
    /// Those of the connection.
    pub fn send(&mut self, mut request: Pdu) -> io::Result<()> {
        self.number(&mut request);
        request.write(&mut self.stream)
    }

    /// Gives a request its tag, CmdSN and ExpStatSN.
    fn number(&mut self, request: &mut Pdu) {
        self.tag = self.tag.wrapping_add(1);
        request.set_word(16, self.tag);
        request.set_word(24, self.cmd_sn);
        request.set_word(28, self.exp_stat_sn);
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
    }

    /// The next PDU that is neither a ping, which is answered, nor the news of an event.
    ///
    /// # Errors
    /// Those of the connection; `ConnectionAborted` when the target says that it ends it.
    pub fn answer(&mut self) -> io::Result<Pdu> {
        loop {
            let pdu = Pdu::read(&mut self.stream)?;
            if pdu.opcode() == opcode::NOP_IN && pdu.tag() == NO_TAG {
                if pdu.word(20) != NO_TAG {
                    let mut pong = Pdu::new(opcode::NOP_OUT | 0x40, FINAL);
                    pong.header[8..16].copy_from_slice(&pdu.header[8..16]);
                    pong.set_word(16, NO_TAG);
                    pong.set_word(20, pdu.word(20));
                    pong.set_word(24, self.cmd_sn);
                    pong.set_word(28, self.exp_stat_sn);
                    pong.write(&mut self.stream)?;
                }
                continue;
            }
            // All answers but R2T and Data-In without status carry a StatSN of their own (RFC 7143, 4.2.2.2).
            let counted = match pdu.opcode() {
                opcode::R2T => false,
                opcode::DATA_IN => pdu.flags() & 0x01 != 0,
                _ => true,
            };
            if counted {
                assert_eq!(pdu.word(24), self.exp_stat_sn, "StatSN of {pdu:?}");
                self.exp_stat_sn = self.exp_stat_sn.wrapping_add(1);
            }
            if pdu.opcode() == opcode::ASYNC {
                match pdu.header[36] {
                    // SCSI event: sense data, of no interest here.
                    0 => continue,
                    // Asks for a logout, or drops the connection or the session (RFC 7143, 11.9.1).
                    event => {
                        return Err(io::Error::new(
                            ErrorKind::ConnectionAborted,
                            format!("async event {event}"),
                        ));
                    }
                }
            }
            return Ok(pdu);
        }
    }

    /// Runs a SCSI command on LUN 0.
    ///
    /// # Errors
    /// Those of the connection.
    ///
    /// # Panics
    /// If an answer breaks the protocol.
    pub fn scsi(&mut self, cdb: &[u8], transfer: Transfer<'_>) -> io::Result<Answer> {
        self.scsi_on(0, cdb, transfer)
    }

    /// Runs a SCSI command on a LUN below 256.
    ///
    /// # Errors
    /// Those of the connection.
    ///
    /// # Panics
    /// If an answer breaks the protocol.
    pub fn scsi_on(&mut self, lun: u8, cdb: &[u8], transfer: Transfer<'_>) -> io::Result<Answer> {
        let (direction, expected) = match transfer {
            Transfer::None => (0, 0),
            Transfer::In(most) => (0x40, most),
            Transfer::Out(data) => (0x20, data.len()),
        };
        let mut request = Pdu::new(opcode::SCSI_COMMAND, FINAL | direction);
        request.header[9] = lun;
        request.header[32..32 + cdb.len()].copy_from_slice(cdb);
        request.set_word(20, u32::try_from(expected).expect("a transfer below 4 GiB"));
        self.number(&mut request);
        request.write(&mut self.stream)?;
        let tag = self.tag;

        let mut data = Vec::new();
        loop {
            let pdu = self.answer()?;
            assert_eq!(pdu.tag(), tag, "an answer to another task: {pdu:?}");
            match pdu.opcode() {
                opcode::DATA_IN => {
                    let offset = usize::try_from(pdu.word(40)).expect("an offset");
                    assert_eq!(offset, data.len(), "Data-In out of order");
                    data.extend_from_slice(&pdu.data);
                    assert!(data.len() <= expected, "more data than was asked for");
                    if pdu.flags() & 0x01 != 0 {
                        return Ok(Answer { status: pdu.header[3], data, sense: Vec::new() });
                    }
                }
                opcode::R2T => {
                    let Transfer::Out(all) = transfer else {
                        panic!("R2T for a command that writes nothing")
                    };
                    self.send_data(&pdu, all)?;
                }
                opcode::SCSI_RESPONSE => {
                    assert_eq!(pdu.header[2], 0, "the command was not completed at the target: {pdu:?}");
                    let sense = match pdu.data.get(..2) {
                        Some(length) => {
                            let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
                            pdu.data
                                .get(2..2 + length)
                                .expect("SenseLength is within the data segment")
                                .to_vec()
                        }
                        None => Vec::new(),
                    };
                    return Ok(Answer { status: pdu.header[3], data, sense });
                }
                _ => panic!("not an answer to a SCSI command: {pdu:?}"),
            }
        }
    }

    /// Answers an R2T.
    fn send_data(&mut self, r2t: &Pdu, all: &[u8]) -> io::Result<()> {
        let offset = usize::try_from(r2t.word(40)).expect("an offset");
        let length = usize::try_from(r2t.word(44)).expect("a length");
        let wanted = all.get(offset..offset + length).expect("R2T asks for data that is there");
        let count = wanted.chunks(SEGMENT).count();
        for (index, piece) in wanted.chunks(SEGMENT).enumerate() {
            let mut data_out = Pdu::new(opcode::DATA_OUT, if index + 1 == count { FINAL } else { 0 });
            data_out.set_word(16, r2t.tag());
            data_out.set_word(20, r2t.word(20));
            data_out.set_word(28, self.exp_stat_sn);
            data_out.set_word(36, u32::try_from(index).expect("DataSN"));
            data_out.set_word(40, u32::try_from(offset + index * SEGMENT).expect("an offset"));
            data_out.data = piece.to_vec();
            data_out.write(&mut self.stream)?;
        }
        Ok(())
    }

    /// Waits until TEST UNIT READY says GOOD: takes the unit attentions of a new session, and waits out
    /// a logical unit that is about to become ready, as hosts do.
    ///
    /// # Errors
    /// Those of the connection.
    ///
    /// # Panics
    /// If it does not within ten seconds.
    pub fn ready(&mut self) -> io::Result<()> {
        let end = Instant::now() + Duration::from_secs(10);
        let mut seen = Vec::new();
        while Instant::now() < end {
            let answer = self.scsi(&[0; 6], Transfer::None)?;
            if answer.status == 0 {
                return Ok(());
            }
            let said = (answer.status, answer.sense_code());
            if !seen.contains(&said) {
                seen.push(said);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("the LUN does not get ready: {seen:x?}");
    }

    /// INQUIRY for vital product data.
    ///
    /// # Panics
    /// If it fails.
    pub fn vpd(&mut self, page: u8) -> Vec<u8> {
        let answer = self.scsi(&[0x12, 1, page, 4, 0, 0], Transfer::In(1024)).expect("a connection");
        assert_eq!(answer.status, 0, "INQUIRY of page {page:02x}h: {answer:x?}");
        answer.data
    }

    /// READ (16) of `blocks` blocks of 512 bytes at `lba`.
    ///
    /// # Errors
    /// Those of the connection.
    pub fn read(&mut self, lba: u64, blocks: u32) -> io::Result<Answer> {
        let length = usize::try_from(blocks).expect("a count") * 512;
        self.scsi(&read_write_16(0x88, lba, blocks), Transfer::In(length))
    }

    /// WRITE (16) of whole blocks of 512 bytes at `lba`.
    ///
    /// # Errors
    /// Those of the connection.
    pub fn write(&mut self, lba: u64, data: &[u8]) -> io::Result<Answer> {
        let blocks = u32::try_from(data.len() / 512).expect("a count");
        self.scsi(&read_write_16(0x8a, lba, blocks), Transfer::Out(data))
    }

    /// Logs out.
    ///
    /// # Errors
    /// Those of the connection.
    ///
    /// # Panics
    /// If the target does not answer with success.
    pub fn logout(mut self) -> io::Result<()> {
        let response = self.exchange(Pdu::new(opcode::LOGOUT, FINAL))?;
        assert_eq!(response.opcode(), opcode::LOGOUT_RESPONSE, "{response:?}");
        assert_eq!(response.header[2], 0, "the logout failed");
        Ok(())
    }

    /// The connection, for a test that sends what an initiator would not.
    pub fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }
}

fn read_write_16(operation: u8, lba: u64, blocks: u32) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = operation;
    cdb[2..10].copy_from_slice(&lba.to_be_bytes());
    cdb[10..14].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

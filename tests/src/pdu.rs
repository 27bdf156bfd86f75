//! iSCSI PDUs as bytes (RFC 7143, section 11): just enough for an initiator that tests a target.
//!
//! ```text
//! 0  opcode (bit 6: immediate)   1  flags   4  TotalAHSLength   5..8  DataSegmentLength
//! 8..16  LUN   16..20  Initiator Task Tag   20..48  by opcode      then AHS, data, padding to 4
//! ```
//!
//! Written from the RFC, not shared with the product: a mistake in one shows as a difference.

use std::io::{self, Read, Write};
use std::net::TcpStream;

/// Length of a basic header segment.
pub const BHS: usize = 48;
/// A tag that names no task.
pub const NO_TAG: u32 = 0xffff_ffff;

/// Opcodes (RFC 7143, 11.2.1.2).
pub mod opcode {
    /// Ping of the initiator.
    pub const NOP_OUT: u8 = 0x00;
    /// A SCSI command.
    pub const SCSI_COMMAND: u8 = 0x01;
    /// Task management.
    pub const TASK_MANAGEMENT: u8 = 0x02;
    /// Login.
    pub const LOGIN: u8 = 0x03;
    /// Text.
    pub const TEXT: u8 = 0x04;
    /// Data of a write.
    pub const DATA_OUT: u8 = 0x05;
    /// Logout.
    pub const LOGOUT: u8 = 0x06;
    /// Ping of the target, or its answer to one.
    pub const NOP_IN: u8 = 0x20;
    /// End of a SCSI command.
    pub const SCSI_RESPONSE: u8 = 0x21;
    /// Answer to task management.
    pub const TASK_MANAGEMENT_RESPONSE: u8 = 0x22;
    /// Answer to a login request.
    pub const LOGIN_RESPONSE: u8 = 0x23;
    /// Answer to a text request.
    pub const TEXT_RESPONSE: u8 = 0x24;
    /// Data of a read.
    pub const DATA_IN: u8 = 0x25;
    /// Answer to a logout.
    pub const LOGOUT_RESPONSE: u8 = 0x26;
    /// Ready for the data of a write.
    pub const R2T: u8 = 0x31;
    /// An event.
    pub const ASYNC: u8 = 0x32;
    /// A PDU that the target could not take.
    pub const REJECT: u8 = 0x3f;
}

/// A PDU without digests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pdu {
    /// The basic header segment; lengths are filled in when it is written.
    pub header: [u8; BHS],
    /// The data segment without padding.
    pub data: Vec<u8>,
}

impl Pdu {
    /// A PDU with an opcode and flags, and nothing else.
    #[must_use]
    pub fn new(opcode: u8, flags: u8) -> Self {
        let mut header = [0; BHS];
        header[0] = opcode;
        header[1] = flags;
        Self { header, data: Vec::new() }
    }

    /// The opcode without the immediate bit.
    #[must_use]
    pub fn opcode(&self) -> u8 {
        self.header[0] & 0x3f
    }

    /// The flags.
    #[must_use]
    pub fn flags(&self) -> u8 {
        self.header[1]
    }

    /// The Initiator Task Tag.
    #[must_use]
    pub fn tag(&self) -> u32 {
        self.word(16)
    }

    /// The four bytes at `offset`, big-endian.
    #[must_use]
    pub fn word(&self, offset: usize) -> u32 {
        u32::from_be_bytes(self.header[offset..offset + 4].try_into().expect("four bytes of the header"))
    }

    /// Sets the four bytes at `offset`.
    pub fn set_word(&mut self, offset: usize, value: u32) {
        self.header[offset..offset + 4].copy_from_slice(&value.to_be_bytes());
    }

    /// The bytes on the wire.
    ///
    /// # Panics
    /// If the data does not fit the length's 24 bits.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let length = u32::try_from(self.data.len()).expect("a data segment");
        assert!(length < 1 << 24, "DataSegmentLength has 24 bits");
        let mut bytes = self.header.to_vec();
        bytes[5..8].copy_from_slice(&length.to_be_bytes()[1..]);
        bytes.extend_from_slice(&self.data);
        bytes.resize(BHS + self.data.len().next_multiple_of(4), 0);
        bytes
    }

    /// Writes it.
    ///
    /// # Errors
    /// Those of the connection.
    pub fn write(&self, stream: &mut TcpStream) -> io::Result<()> {
        stream.write_all(&self.bytes())
    }

    /// Reads one.
    ///
    /// # Errors
    /// Those of the connection; `UnexpectedEof` when the target closed it.
    pub fn read(stream: &mut TcpStream) -> io::Result<Self> {
        let mut header = [0; BHS];
        stream.read_exact(&mut header)?;
        let extra = usize::from(header[4]) * 4;
        let length = u32::from_be_bytes([0, header[5], header[6], header[7]]);
        let length = usize::try_from(length).expect("24 bits");
        let mut rest = vec![0; extra + length.next_multiple_of(4)];
        stream.read_exact(&mut rest)?;
        let data = rest[extra..extra + length].to_vec();
        Ok(Self { header, data })
    }
}

/// `key=value` pairs of a data segment, each ended by a zero byte (RFC 7143, 6.1).
#[must_use]
pub fn text(data: &[u8]) -> Vec<(String, String)> {
    let pairs = data.split(|byte| *byte == 0).filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let pair = String::from_utf8_lossy(pair);
            let (key, value) = pair.split_once('=').unwrap_or((&pair, ""));
            (key.to_owned(), value.to_owned())
        })
        .collect()
}

/// The data segment of `key=value` pairs.
#[must_use]
pub fn text_bytes(pairs: &[(&str, &str)]) -> Vec<u8> {
    pairs.iter().flat_map(|(key, value)| format!("{key}={value}\0").into_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_segment_is_padded_and_its_length_is_not() {
        // Guards against a harness that tests the target with wrong bytes (RFC 7143, 11.2.1.6 and 11.2.3).
        let mut pdu = Pdu::new(opcode::TEXT, 0x80);
        pdu.data = b"a=b\0\x01".to_vec();
        let bytes = pdu.bytes();
        assert_eq!(bytes.len(), 48 + 8);
        assert_eq!(bytes[4..8], [0, 0, 0, 5]);
        assert_eq!(bytes[48..], *b"a=b\0\x01\0\0\0");
    }
}

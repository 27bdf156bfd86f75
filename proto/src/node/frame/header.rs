//! The frame's header: the part that is trusted first.

use bytes::{Buf, BufMut};

use super::{FrameError, GREETING_VERSION, PROTOCOL_VERSION};
use crate::checksum::crc32c;
use crate::limits::{FRAME_BODY_BYTES_MAX, FRAME_DATA_BYTES_MAX};

/// Length of a frame's header.
pub const HEADER_BYTES: usize = 48;

pub(super) const MAGIC: u32 = u32::from_le_bytes(*b"LUNE");
const CRC: usize = HEADER_BYTES - size_of::<u32>();

macro_rules! kinds {
    ($($name:ident = $code:literal,)*) => {
        /// What a frame is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Kind { $($name,)* }

        impl Kind {
            pub(super) fn code(self) -> u8 {
                match self { $(Self::$name => $code,)* }
            }

            pub(super) fn from_code(code: u8) -> Option<Self> {
                match code { $($code => Some(Self::$name),)* _ => None }
            }
        }
    };
}

kinds! {
    Hello = 1,
    HelloAck = 2,
    Alive = 3,
    Identify = 16,
    Seal = 17,
    Change = 18,
    Put = 19,
    Read = 20,
    Versions = 21,
    Flush = 22,
    Watermark = 23,
    Delete = 24,
    Space = 25,
    Prepare = 26,
    Commit = 27,
    Rollback = 28,
    Prepared = 29,
    Extents = 30,
    Drop = 31,
    Grant = 32,
    DoneReply = 128,
    DataReply = 129,
    SealedReply = 130,
    VersionsReply = 131,
    SpaceReply = 132,
    DamagedReply = 133,
    PreparedReply = 134,
    ExtentsReply = 135,
    FailureReply = 143,
}

impl Kind {
    pub(super) fn is_greeting(self) -> bool {
        matches!(self, Self::Hello | Self::HelloAck)
    }

    pub(super) fn is_request(self) -> bool {
        (16..128).contains(&self.code())
    }

    fn has_id(self) -> bool {
        !self.is_greeting() && self != Self::Alive
    }

    /// The version in the header of its frames.
    fn version(self) -> u8 {
        if self.is_greeting() { GREETING_VERSION } else { PROTOCOL_VERSION }
    }

    fn has_status(self) -> bool {
        matches!(self, Self::HelloAck | Self::FailureReply)
    }
}

/// A header whose checksum, version, kind, lengths and reserved fields have been checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    pub(super) status: u8,
    pub(super) body_len: u32,
    pub(super) data_len: u32,
    pub(super) id: u64,
    pub(super) epoch: u64,
    pub(super) disk: u32,
    pub(super) body_crc: u32,
    pub(super) data_crc: u32,
}

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut out = bytes.as_mut_slice();
        out.put_u32_le(MAGIC);
        out.put_u8(self.kind.version());
        out.put_u8(self.kind.code());
        out.put_u8(self.status);
        out.put_u8(0);
        out.put_u32_le(self.body_len);
        out.put_u32_le(self.data_len);
        out.put_u64_le(self.id);
        out.put_u64_le(self.epoch);
        out.put_u32_le(self.disk);
        out.put_u32_le(self.body_crc);
        out.put_u32_le(self.data_crc);
        assert_eq!(out.len(), size_of::<u32>(), "the fields end where the checksum begins");
        let crc = crc32c(&bytes[..CRC]);
        bytes[CRC..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        let mut fields = bytes.as_slice();
        let magic = fields.get_u32_le();
        if magic != MAGIC {
            return Err(FrameError::Magic(magic));
        }
        let crc = (&bytes[CRC..]).get_u32_le();
        if crc != crc32c(&bytes[..CRC]) {
            return Err(FrameError::HeaderChecksum);
        }
        let version = fields.get_u8();
        let code = fields.get_u8();
        let kind = Kind::from_code(code);
        if version != kind.map_or(PROTOCOL_VERSION, Kind::version) {
            return Err(FrameError::Version(version));
        }
        let kind = kind.ok_or(FrameError::Kind(code))?;
        let status = fields.get_u8();
        let reserved = fields.get_u8();
        let header = Self {
            kind,
            status,
            body_len: fields.get_u32_le(),
            data_len: fields.get_u32_le(),
            id: fields.get_u64_le(),
            epoch: fields.get_u64_le(),
            disk: fields.get_u32_le(),
            body_crc: fields.get_u32_le(),
            data_crc: fields.get_u32_le(),
        };
        if header.body_len > FRAME_BODY_BYTES_MAX {
            return Err(FrameError::BodyTooLong(header.body_len));
        }
        if header.data_len > FRAME_DATA_BYTES_MAX {
            return Err(FrameError::DataTooLong(header.data_len));
        }
        if reserved != 0 {
            return Err(FrameError::Field("reserved"));
        }
        if status != 0 && !kind.has_status() {
            return Err(FrameError::Field("status"));
        }
        if header.id != 0 && !kind.has_id() {
            return Err(FrameError::Field("request id"));
        }
        if !kind.is_request() && (header.epoch != 0 || header.disk != 0) {
            return Err(FrameError::Field("epoch or disk of no request"));
        }
        Ok(header)
    }

    /// Length of the whole frame.
    pub(super) fn frame_len(&self) -> usize {
        // Both lengths were bounded by `decode`: the sum is far below any usize.
        HEADER_BYTES + self.body_len as usize + self.data_len as usize
    }
}

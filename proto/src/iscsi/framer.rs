//! Bytes to PDUs, a bounded one at a time.
//!
//! A length is believed only once it is known to be within the limit in force, and, with header
//! digests, once the digest over it has been verified: nothing is allocated on a peer's word.
//! Data segments are slices of the receive buffer.

use bytes::{Buf, Bytes, BytesMut};

use super::{BHS_BYTES, Bhs, padding};
use crate::checksum::{crc32c, crc32c_of_parts};

const DIGEST_BYTES: usize = 4;

/// A PDU as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pdu {
    /// The basic header.
    pub bhs: Bhs,
    /// Additional header segments, unread.
    pub ahs: Bytes,
    /// The data segment, without padding.
    pub data: Bytes,
    /// Whether the data digest was right, or not in use.
    pub data_is_sound: bool,
}

/// Why the stream cannot be read any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The data segment is longer than what was declared (RFC 7143 13.12).
    #[error("a data segment of {len} bytes exceeds the {limit} that were declared")]
    TooLong {
        /// What the header says.
        len: u32,
        /// What is allowed.
        limit: u32,
    },
    /// The header digest is wrong: no length in the header can be trusted (RFC 7143 7.7).
    #[error("a header digest is wrong")]
    HeaderDigest,
}

/// Finds PDUs in a stream.
#[derive(Clone, Copy, Debug)]
pub struct Framer {
    /// Longest data segment that is accepted.
    pub data_bytes_max: u32,
    /// Header digests are in use.
    pub header_digest: bool,
    /// Data digests are in use.
    pub data_digest: bool,
}

impl Framer {
    /// Without digests, up to `data_bytes_max` bytes of data.
    #[must_use]
    pub fn new(data_bytes_max: u32) -> Self {
        Self { data_bytes_max, header_digest: false, data_digest: false }
    }

    /// Takes the next PDU off the front of `buffer`, if it is there as a whole.
    pub fn next(&self, buffer: &mut BytesMut) -> Result<Option<Pdu>, FrameError> {
        let Some(layout) = self.layout(buffer)? else { return Ok(None) };
        if buffer.len() < layout.total {
            return Ok(None);
        }
        buffer.advance(BHS_BYTES);
        let ahs = buffer.split_to(layout.bhs.ahs_bytes()).freeze();
        buffer.advance(layout.header - BHS_BYTES - ahs.len());
        let mut segment = buffer.split_to(layout.total - layout.header).freeze();
        let len = layout.bhs.data_bytes() as usize;
        let data = segment.split_to(len);
        let mut data_is_sound = true;
        if self.data_digest && len != 0 {
            let (pad, digest) = segment.split_at(padding(len));
            // Padding is part of the digest (RFC 7143 11.2.3).
            data_is_sound = crc32c_of_parts([&data[..], pad]).to_le_bytes() == *digest;
        }
        Ok(Some(Pdu { bhs: layout.bhs, ahs, data, data_is_sound }))
    }

    /// Bytes that the PDU at the front of `buffer` certainly still needs; 0 if it is whole or wrong.
    #[must_use]
    pub fn missing(&self, buffer: &[u8]) -> usize {
        match self.layout(buffer) {
            Ok(Some(layout)) => layout.total.saturating_sub(buffer.len()),
            Ok(None) => BHS_BYTES.saturating_sub(buffer.len()).max(1),
            Err(_) => 0,
        }
    }

    fn layout(&self, buffer: &[u8]) -> Result<Option<Layout>, FrameError> {
        let Some(bhs) = buffer.first_chunk::<BHS_BYTES>().map(|bytes| Bhs(*bytes)) else { return Ok(None) };
        let mut header = BHS_BYTES + bhs.ahs_bytes();
        if self.header_digest {
            let Some((covered, rest)) = buffer.split_at_checked(header) else { return Ok(None) };
            let Some(digest) = rest.first_chunk::<DIGEST_BYTES>() else { return Ok(None) };
            // A CRC goes out in the byte order of RFC 7143 13.1's example, which is little-endian.
            if crc32c(covered).to_le_bytes() != *digest {
                return Err(FrameError::HeaderDigest);
            }
            header += DIGEST_BYTES;
        }
        let len = bhs.data_bytes();
        if len > self.data_bytes_max {
            return Err(FrameError::TooLong { len, limit: self.data_bytes_max });
        }
        let mut total = header + len as usize + padding(len as usize);
        if self.data_digest && len != 0 {
            total += DIGEST_BYTES;
        }
        Ok(Some(Layout { bhs, header, total }))
    }
}

/// Where the parts of a PDU lie.
struct Layout {
    bhs: Bhs,
    /// BHS, AHS and header digest.
    header: usize,
    total: usize,
}

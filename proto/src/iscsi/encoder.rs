//! PDUs to slices: headers and digests are laid into an arena, data slices pass through unchanged.

use bytes::{Bytes, BytesMut};

use super::{Bhs, padding};
use crate::checksum::{crc32c, crc32c_of_parts};

/// Headers of some eighty PDUs share one allocation.
const ARENA_BYTES: usize = 4096;
const ZEROS: [u8; 3] = [0; 3];

/// Lays PDUs out.
#[derive(Debug, Default)]
pub struct Encoder {
    /// Header digests are in use.
    pub header_digest: bool,
    /// Data digests are in use.
    pub data_digest: bool,
    arena: BytesMut,
}

impl Encoder {
    /// Appends a PDU to `out`, as slices in order, and returns its bytes on the wire.
    ///
    /// `ahs` is whole words; `data` is at most 2^24 - 1 bytes, which the declared
    /// MaxRecvDataSegmentLength of the peer guarantees.
    pub fn encode(
        &mut self,
        mut bhs: Bhs,
        ahs: &[u8],
        data: &[Bytes],
        out: &mut impl Extend<Bytes>,
    ) -> usize {
        let len: usize = data.iter().map(Bytes::len).sum();
        bhs.set_ahs_bytes(ahs.len());
        bhs.set_data_bytes(u32::try_from(len).unwrap_or(u32::MAX));
        if self.arena.capacity() < bhs.0.len() + ahs.len() + 16 {
            self.arena = BytesMut::with_capacity(ARENA_BYTES.max(ahs.len() + 128));
        }
        self.arena.extend_from_slice(&bhs.0);
        self.arena.extend_from_slice(ahs);
        if self.header_digest {
            let digest = crc32c(&self.arena);
            self.arena.extend_from_slice(&digest.to_le_bytes());
        }
        let header = self.arena.split().freeze();
        let mut total = header.len() + len;
        out.extend([header]);
        if len == 0 {
            return total;
        }
        out.extend(data.iter().filter(|slice| !slice.is_empty()).cloned());
        let pad = &ZEROS[..padding(len)];
        self.arena.extend_from_slice(pad);
        if self.data_digest {
            let parts = data.iter().map(|slice| &slice[..]).chain([pad]);
            self.arena.extend_from_slice(&crc32c_of_parts(parts).to_le_bytes());
        }
        if !self.arena.is_empty() {
            total += self.arena.len();
            out.extend([self.arena.split().freeze()]);
        }
        total
    }
}

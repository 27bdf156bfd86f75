//! What a target sends, slice by slice: headers, and as much of the data as is worth a copy.

use lunette_proto::checksum::{crc32c, crc32c_of_parts};
use lunette_proto::iscsi::{BHS_BYTES, Bhs, padding};

/// Longer data segments are only counted.
const KEPT_BYTES_MAX: usize = 64 << 10;

/// A PDU from the target.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) bhs: Bhs,
    pub(super) data: Vec<u8>,
    pub(super) len: usize,
}

/// Finds PDUs in slices.
#[derive(Debug, Default)]
pub(super) struct Stream {
    pub(super) header_digest: bool,
    pub(super) data_digest: bool,
    header: Vec<u8>,
    data: Vec<u8>,
    /// Of data, padding and digest; what of it is still to come.
    segment: usize,
    left: usize,
}

impl Stream {
    /// Takes a slice; gives the PDUs that end in it.
    pub(super) fn take(&mut self, mut slice: &[u8], out: &mut Vec<Incoming>) {
        while !slice.is_empty() {
            let header_len = BHS_BYTES + if self.header_digest { 4 } else { 0 };
            if self.header.len() < header_len {
                let (part, rest) = slice.split_at(slice.len().min(header_len - self.header.len()));
                self.header.extend_from_slice(part);
                slice = rest;
                if self.header.len() < header_len {
                    return;
                }
                self.begin();
            } else {
                let (part, rest) = slice.split_at(slice.len().min(self.left));
                if self.segment <= KEPT_BYTES_MAX {
                    self.data.extend_from_slice(part);
                }
                self.left -= part.len();
                slice = rest;
            }
            if self.left == 0 {
                out.push(self.end());
            }
        }
    }

    /// Whether a part of a PDU is left.
    pub(super) fn is_mid_pdu(&self) -> bool {
        !self.header.is_empty()
    }

    fn bhs(&self) -> Bhs {
        let mut bhs = Bhs([0; BHS_BYTES]);
        bhs.0.copy_from_slice(&self.header[..BHS_BYTES]);
        bhs
    }

    fn begin(&mut self) {
        let bhs = self.bhs();
        assert_eq!(bhs.ahs_bytes(), 0, "a target sends no additional headers");
        if self.header_digest {
            assert_eq!(crc32c(&bhs.0).to_le_bytes(), self.header[BHS_BYTES..], "the header digest");
        }
        let len = bhs.data_bytes() as usize;
        self.segment = len + padding(len) + if self.data_digest && len > 0 { 4 } else { 0 };
        self.left = self.segment;
    }

    fn end(&mut self) -> Incoming {
        let bhs = self.bhs();
        self.header.clear();
        let mut data = std::mem::take(&mut self.data);
        let len = bhs.data_bytes() as usize;
        if self.segment <= KEPT_BYTES_MAX && len > 0 {
            let digest = data.split_off(len + padding(len));
            if self.data_digest {
                assert_eq!(crc32c_of_parts([&data[..]]).to_le_bytes(), digest[..], "the data digest");
            }
            let pad = data.split_off(len);
            assert!(pad.iter().all(|byte| *byte == 0));
        }
        Incoming { bhs, data, len }
    }
}

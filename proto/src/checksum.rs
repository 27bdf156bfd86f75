//! CRC-32C (Castagnoli), the one polynomial of Lunette: iSCSI digests (RFC 7143, 13.1), frames of
//! the node protocol, blocks and records on disk. One polynomial lets a checksum be combined from
//! its parts instead of computed again.

use crc_fast::{CrcAlgorithm, Digest};

/// CRC-32C of `bytes`.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    narrow(crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes))
}

/// CRC-32C of the concatenation of `parts`.
#[must_use]
pub fn crc32c_of_parts<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u32 {
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    for part in parts {
        digest.update(part);
    }
    narrow(digest.finalize())
}

/// CRC-32C of `A || B` from the CRCs of A and B and B's length in bytes.
#[must_use]
pub fn crc32c_combine(a: u32, b: u32, b_len: usize) -> u32 {
    narrow(crc_fast::checksum_combine(CrcAlgorithm::Crc32Iscsi, u64::from(a), u64::from(b), b_len as u64))
}

fn narrow(crc: u64) -> u32 {
    u32::try_from(crc).expect("a 32-bit CRC fits 32 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards the polynomial: the test vectors of RFC 3720, appendix B.4, and the check value.
    #[test]
    fn vectors() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
        assert_eq!(crc32c(&[0xff; 32]), 0x62A8_AB43);
    }

    /// Guards combining: parts and whole agree at every split.
    #[test]
    fn combine() {
        let bytes: Vec<u8> = (0..200u8).collect();
        let whole = crc32c(&bytes);
        for split in 0..bytes.len() {
            let (a, b) = bytes.split_at(split);
            assert_eq!(crc32c_of_parts([a, b]), whole);
            assert_eq!(crc32c_combine(crc32c(a), crc32c(b), b.len()), whole);
        }
    }
}

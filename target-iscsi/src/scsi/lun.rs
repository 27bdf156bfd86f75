//! Logical unit numbers (SAM-5 4.7): 8 bytes, of which single-level numbers use the first two.
//!
//! ```text
//! 00bbbbbb nnnnnnnn   peripheral device addressing, bus 0: 0 to 255
//! 01nnnnnn nnnnnnnn   flat space addressing: 0 to 16383
//! C1 01               extended addressing: the REPORT LUNS well-known logical unit
//! ```

/// The REPORT LUNS well-known logical unit (SPC-4 8.2).
pub(super) const REPORT_LUNS: u64 = 0xC101 << 48;

/// What a LUN names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// A logical unit, which may or may not exist.
    Unit(u16),
    /// The REPORT LUNS well-known logical unit.
    ReportLuns,
    /// Nothing that can exist here.
    Unknown,
}

/// Decodes the LUN field of a PDU.
#[must_use]
pub fn decode(lun: u64) -> Address {
    if lun == REPORT_LUNS {
        return Address::ReportLuns;
    }
    let [first, second, rest @ ..] = lun.to_be_bytes();
    match (first >> 6, rest) {
        (0b00, [0, 0, 0, 0, 0, 0]) if first == 0 => Address::Unit(u16::from(second)),
        (0b01, [0, 0, 0, 0, 0, 0]) => Address::Unit(u16::from_be_bytes([first & 0x3F, second])),
        _ => Address::Unknown,
    }
}

/// The LUN field that names a logical unit: peripheral addressing up to 255, then flat.
#[must_use]
pub fn encode(lun: u16) -> u64 {
    let method = if lun < 256 { 0 } else { 0x4000 };
    u64::from(method | (lun & 0x3FFF)) << 48
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards decoding: each addressing method of SAM-5 4.7, and what is not one of a single level.
    #[test]
    fn methods() {
        assert_eq!(decode(0), Address::Unit(0));
        assert_eq!(decode(0x00FF_0000_0000_0000), Address::Unit(255));
        assert_eq!(decode(0x4001_0000_0000_0000), Address::Unit(1));
        assert_eq!(decode(0x7FFF_0000_0000_0000), Address::Unit(0x3FFF));
        assert_eq!(decode(0xC101_0000_0000_0000), Address::ReportLuns);
        for unknown in [
            0x0100_0000_0000_0000, // a bus
            0x0001_0001_0000_0000, // a second level
            0x4001_0000_0000_0001,
            0x8001_0000_0000_0000, // logical unit addressing
            0xC102_0000_0000_0000, // the ACCESS CONTROLS well-known logical unit
            0xC101_0000_0000_0001,
            u64::MAX,
        ] {
            assert_eq!(decode(unknown), Address::Unknown, "{unknown:016x}");
        }
    }

    /// Guards that every LUN comes back from its encoding.
    #[test]
    fn round_trip() {
        for lun in 0..0x4000 {
            assert_eq!(decode(encode(lun)), Address::Unit(lun));
        }
        assert_eq!(encode(256), 0x4100_0000_0000_0000);
    }
}

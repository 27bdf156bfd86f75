//! iSCSI TransportIDs (SPC-4 7.6.4.6): the name of an initiator, or of one of its ports.
//!
//! ```text
//! 0     TPID FORMAT (bits 7..6: 00b device, 01b port), PROTOCOL IDENTIFIER (bits 3..0: 5h)
//! 2..4  ADDITIONAL LENGTH (m - 3), a multiple of 4, at least 20
//! 4..m  00b: name, zeros    01b: name ",i,0x" initiator session id in hexadecimal, zeros
//! ```

use lunette_proto::limits::ISCSI_NAME_BYTES_MAX;
use lunette_proto::map::NexusId;

/// An initiator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TransportId {
    /// Its iSCSI name, in lower case.
    pub(super) initiator: String,
    /// Of one port of it; `None`: of the device.
    pub(super) isid: Option<[u8; 6]>,
}

const PORT: u8 = 0x40;
const ISCSI: u8 = 0x05;
const HEADER: usize = 4;
/// A TransportID is never shorter.
const BYTES_MIN: usize = 24;
const SEPARATOR: &str = ",i,0x";

/// The TransportID at the front of `bytes`, and what follows it; `None` if there is none that can be meant here.
pub(super) fn split(bytes: &[u8]) -> Option<(TransportId, &[u8])> {
    let (header, rest) = bytes.split_first_chunk::<HEADER>()?;
    let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if header[0] & 0x0F != ISCSI || !len.is_multiple_of(4) || len < BYTES_MIN - HEADER {
        return None;
    }
    let (text, rest) = rest.split_at_checked(len)?;
    // It ends at the first zero, which must be there.
    let end = text.iter().position(|byte| *byte == 0)?;
    let text = std::str::from_utf8(&text[..end]).ok()?;
    let (name, isid) = match header[0] >> 6 {
        0b00 => (text, None),
        0b01 => {
            let (name, digits) = text.split_once(SEPARATOR)?;
            if digits.is_empty() || digits.len() > 12 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit())
            {
                return None;
            }
            let [_, _, isid @ ..] = u64::from_str_radix(digits, 16).ok()?.to_be_bytes();
            (name, Some(isid))
        }
        _ => return None,
    };
    let is_name = !name.is_empty() && name.len() <= ISCSI_NAME_BYTES_MAX;
    is_name.then(|| (TransportId { initiator: name.to_lowercase(), isid }, rest))
}

/// The TransportID of a nexus's initiator port.
pub(super) fn encode(nexus: &NexusId) -> Vec<u8> {
    let [a, b, c, d, e, f] = nexus.isid;
    let isid = u64::from_be_bytes([0, 0, a, b, c, d, e, f]);
    let mut id = vec![PORT | ISCSI, 0, 0, 0];
    id.extend(format!("{}{SEPARATOR}{isid:012x}\0", nexus.initiator).bytes());
    id.resize(id.len().next_multiple_of(4).max(BYTES_MIN), 0);
    let len = u16::try_from(id.len() - HEADER).unwrap_or(u16::MAX).to_be_bytes();
    id[2..HEADER].copy_from_slice(&len);
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(first: u8, len: u16, text: &[u8], total: usize) -> Vec<u8> {
        let mut id = vec![first, 0];
        id.extend(len.to_be_bytes());
        id.extend(text);
        id.resize(total, 0);
        id
    }

    /// Guards both formats, as SPC-4 7.6.4.6 lays them out; names are compared in lower case.
    #[test]
    fn formats() {
        let device = id(0x05, 20, b"iqn.2026-11.org.a:B", 24);
        let (got, rest) = split(&device).unwrap();
        assert_eq!((got.initiator.as_str(), got.isid, rest), ("iqn.2026-11.org.a:b", None, &[][..]));
        let mut port = id(0x45, 24, b"iqn.x:h,i,0x00023D000007", 28);
        assert_eq!(split(&port), None, "without a zero at its end");
        port = id(0x45, 28, b"iqn.x:h,i,0x00023D000007", 32);
        port.push(9);
        let (got, rest) = split(&port).unwrap();
        assert_eq!((got.initiator.as_str(), got.isid), ("iqn.x:h", Some([0, 2, 0x3D, 0, 0, 7])));
        assert_eq!(rest, [9]);
    }

    /// Guards against TransportIDs that are none: other protocols and formats, lengths, names, session ids.
    #[test]
    fn malformed() {
        for bad in [
            id(0x06, 20, b"iqn.x:h", 24),
            id(0x85, 20, b"iqn.x:h", 24),
            id(0x05, 16, b"iqn.x:h", 20),
            id(0x05, 22, b"iqn.x:h", 26),
            id(0x05, 24, b"iqn.x:h", 24),
            id(0x05, 20, b"", 24),
            id(0x05, 20, b"\xFF\xFE", 24),
            id(0x45, 20, b"iqn.x:h", 24),
            id(0x45, 20, b"iqn.x:h,i,0x", 24),
            id(0x45, 20, b"iqn.x:h,i,0xg", 24),
            id(0x45, 20, b"iqn.x:h,i,0x+1", 24),
            id(0x45, 20, b",i,0x00023D000007", 24),
            id(0x45, 28, b"iqn.x:h,i,0x0000023D000007", 32),
            id(0x05, 228, &[b'a'; 224], 232),
            vec![0x05, 0],
            vec![],
        ] {
            assert_eq!(split(&bad), None, "{bad:02x?}");
        }
    }

    /// Guards what READ FULL STATUS says: it is read back as what it was made of, at every length of name.
    #[test]
    fn round_trip() {
        for len in 1..=ISCSI_NAME_BYTES_MAX {
            let nexus = NexusId {
                initiator: "n".repeat(len),
                isid: [0x80, 0, 1, 2, 3, 4],
                target: "t".into(),
                tag: 1,
            };
            let id = encode(&nexus);
            assert!(id.len() >= 24 && id.len().is_multiple_of(4));
            let (got, rest) = split(&id).unwrap();
            assert_eq!((got.initiator, got.isid, rest.len()), (nexus.initiator, Some(nexus.isid), 0));
        }
        let nexus =
            NexusId { initiator: "a".into(), isid: [0, 2, 0x3D, 0, 0, 7], target: "t".into(), tag: 1 };
        assert_eq!(encode(&nexus), id(0x45, 20, b"a,i,0x00023d000007", 24));
    }
}

//! Additional header segments (RFC 7143 11.2.2): a length, a type, and what the type says.
//!
//! ```text
//! 0-1 AHSLength: bytes from 3 on, without padding    2 type    3 ... specific, padded to 4 bytes
//! ```

use bytes::Bytes;

use super::padding;

const EXTENDED_CDB: u8 = 1;
const BIDIRECTIONAL_READ_LENGTH: u8 = 2;

/// What the additional header segments of a PDU say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ahs {
    /// The CDB from byte 16 on (RFC 7143 11.2.2.3).
    pub extended_cdb: Option<Bytes>,
    /// Bytes that a bidirectional command reads (RFC 7143 11.2.2.4).
    pub bidirectional_read_len: Option<u32>,
}

/// Segments that cannot be read. The PDU's own lengths are unaffected: the stream stays in step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AhsError {
    /// A segment reaches beyond TotalAHSLength, or has the wrong length for its type.
    #[error("an additional header segment has a wrong length")]
    Length,
    /// The same type twice.
    #[error("an additional header segment is given twice")]
    Twice,
}

impl Ahs {
    /// Reads all segments of a PDU; unknown types are skipped.
    pub fn parse(mut segments: &[u8]) -> Result<Self, AhsError> {
        let mut ahs = Self::default();
        while let Some((head, rest)) = segments.split_first_chunk::<3>() {
            let len = usize::from(u16::from_be_bytes([head[0], head[1]]));
            let body = rest.get(..len).ok_or(AhsError::Length)?;
            match head[2] & 0x3f {
                EXTENDED_CDB => {
                    // One reserved byte, then the CDB.
                    let cdb = body.get(1..).filter(|cdb| !cdb.is_empty()).ok_or(AhsError::Length)?;
                    if ahs.extended_cdb.replace(Bytes::copy_from_slice(cdb)).is_some() {
                        return Err(AhsError::Twice);
                    }
                }
                BIDIRECTIONAL_READ_LENGTH => {
                    let len: [u8; 5] = body.try_into().map_err(|_| AhsError::Length)?;
                    let len = u32::from_be_bytes([len[1], len[2], len[3], len[4]]);
                    if ahs.bidirectional_read_len.replace(len).is_some() {
                        return Err(AhsError::Twice);
                    }
                }
                _ => {}
            }
            segments = rest.get(len + padding(len + 3)..).ok_or(AhsError::Length)?;
        }
        if segments.is_empty() { Ok(ahs) } else { Err(AhsError::Length) }
    }

    /// An extended CDB's segment, for the bytes from 16 on.
    #[must_use]
    pub fn extended_cdb_segment(cdb: &[u8]) -> Vec<u8> {
        let len = u16::try_from(cdb.len() + 1).unwrap_or(u16::MAX);
        let mut segment = Vec::with_capacity(cdb.len() + 8);
        segment.extend_from_slice(&len.to_be_bytes());
        segment.extend_from_slice(&[EXTENDED_CDB, 0]);
        segment.extend_from_slice(cdb);
        segment.resize(segment.len() + padding(segment.len()), 0);
        segment
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards the extended CDB, its padding, and that segments of other types are stepped over.
    #[test]
    fn extended() {
        for len in 1..40 {
            let cdb: Vec<u8> = (0..len).collect();
            let mut segments = vec![0, 2, 0x3f, 9, 9, 0, 0, 0];
            segments.extend(Ahs::extended_cdb_segment(&cdb));
            let ahs = Ahs::parse(&segments).unwrap();
            assert_eq!(ahs.extended_cdb.as_deref(), Some(&cdb[..]));
        }
        assert_eq!(Ahs::parse(&[]).unwrap(), Ahs::default());
    }

    /// Guards against lengths that lie: too long, too short for the type, a stray tail, a repetition.
    #[test]
    fn malformed() {
        assert_eq!(Ahs::parse(&[0, 6, 1, 0, 1, 2, 3, 4]), Err(AhsError::Length));
        assert_eq!(Ahs::parse(&[0xff, 0xff, 1, 0]), Err(AhsError::Length));
        assert_eq!(Ahs::parse(&[0, 1, 1, 0]), Err(AhsError::Length));
        assert_eq!(Ahs::parse(&[0, 1, 2, 0]), Err(AhsError::Length));
        assert_eq!(Ahs::parse(&[0, 0]), Err(AhsError::Length));
        let twice = [Ahs::extended_cdb_segment(&[1]), Ahs::extended_cdb_segment(&[2])].concat();
        assert_eq!(Ahs::parse(&twice), Err(AhsError::Twice));
    }
}

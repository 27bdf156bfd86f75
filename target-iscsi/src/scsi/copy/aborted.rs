//! Sense data of a copy that failed at a segment: COPY ABORTED (SPC-4 5.16.7, 4.5.2.4.5).
//!
//! ```text
//! COMMAND-SPECIFIC INFORMATION   bytes 2..4: which segment
//!                                fixed format, byte 0: where what the source said begins, 1: the destination
//! sense key specific             SKSV, SD: the field pointer counts from the segment descriptor's start
//! fixed format, byte 18 on       status and sense data of the source or the destination
//! descriptor format              the same in a forwarded sense data descriptor (0Ch)
//! ```

use bytes::Bytes;

use crate::scsi::sense::{Sense, SenseFormat};
use crate::scsi::task::{BUSY, CHECK_CONDITION, RESERVATION_CONFLICT, TASK_ABORTED};

const COPY_ABORTED: u8 = 0x0A;

/// Byte of a block to block segment descriptor.
pub(super) const SOURCE: u16 = 4;
/// See [`SOURCE`].
pub(super) const DESTINATION: u16 = 6;
/// See [`SOURCE`].
pub(super) const NUMBER_OF_BLOCKS: u16 = 10;
/// See [`SOURCE`].
pub(super) const SOURCE_LBA: u16 = 12;
/// See [`SOURCE`].
pub(super) const DESTINATION_LBA: u16 = 20;

/// Why a copy ended at one of its segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::scsi) struct CopyAborted {
    asc: u8,
    ascq: u8,
    /// Counted from 0.
    segment: u16,
    /// Byte of the segment descriptor.
    field: Option<u16>,
    reported: Option<Reported>,
}

/// What a source or destination answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reported {
    by: Side,
    status: u8,
    sense: Option<Sense>,
}

/// An end of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Source,
    Destination,
}

impl Side {
    /// The field of a segment descriptor that names it.
    fn field(self) -> u16 {
        match self {
            Self::Source => SOURCE,
            Self::Destination => DESTINATION,
        }
    }
}

/// How a source or destination refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Check(Sense),
    Busy,
    Reserved,
    /// Its task set was cleared, or it was reset.
    Cleared,
}

impl CopyAborted {
    /// A field of the segment descriptor cannot be carried out: NO ADDITIONAL SENSE INFORMATION, for
    /// the pointer says which.
    pub(super) fn field(segment: u16, field: u16) -> Self {
        Self { asc: 0x00, ascq: 0x00, segment, field: Some(field), reported: None }
    }

    /// UNREACHABLE COPY TARGET: nothing that was described.
    pub(super) fn undescribed(segment: u16, side: Side) -> Self {
        Self { asc: 0x08, ascq: 0x04, ..Self::field(segment, side.field()) }
    }

    /// COPY TARGET DEVICE NOT REACHABLE: not for this nexus.
    pub(super) fn unreachable(segment: u16, side: Side) -> Self {
        Self { asc: 0x0D, ascq: 0x02, ..Self::field(segment, side.field()) }
    }

    /// INCORRECT COPY TARGET DEVICE TYPE.
    pub(super) fn device_type(segment: u16, side: Side) -> Self {
        Self { asc: 0x0D, ascq: 0x03, ..Self::field(segment, side.field()) }
    }

    /// UNEXPECTED INEXACT SEGMENT: it ends within a block.
    pub(super) fn inexact(segment: u16) -> Self {
        Self { asc: 0x26, ascq: 0x0A, ..Self::field(segment, NUMBER_OF_BLOCKS) }
    }

    /// THIRD PARTY DEVICE FAILURE: the source or destination refused, and here is how.
    pub(super) fn refused(segment: u16, by: Side, refusal: Refusal) -> Self {
        let (status, sense) = match refusal {
            Refusal::Check(sense) => (CHECK_CONDITION, Some(sense)),
            Refusal::Busy => (BUSY, None),
            Refusal::Reserved => (RESERVATION_CONFLICT, None),
            Refusal::Cleared => (TASK_ABORTED, None),
        };
        let reported = Some(Reported { by, status, sense });
        Self { asc: 0x0D, ascq: 0x01, segment, field: None, reported }
    }

    /// The bytes that go to the initiator.
    pub(in crate::scsi) fn encode(&self, format: SenseFormat) -> Bytes {
        match format {
            SenseFormat::Fixed => self.fixed(),
            SenseFormat::Descriptor => self.descriptor(),
        }
    }

    fn fixed(&self) -> Bytes {
        /// Where the answer of the source or destination begins.
        const REPORTED: u8 = 18;
        let [segment_high, segment_low] = self.segment.to_be_bytes();
        let (from_source, from_destination) = match self.reported.map(|reported| reported.by) {
            None => (0, 0),
            Some(Side::Source) => (REPORTED, 0),
            Some(Side::Destination) => (0, REPORTED),
        };
        let mut sense = vec![0x70, 0, COPY_ABORTED, 0, 0, 0, 0, 0];
        sense.extend([from_source, from_destination, segment_high, segment_low]);
        sense.extend([self.asc, self.ascq, 0]);
        sense.extend(self.field_pointer().unwrap_or_default());
        if let Some(reported) = self.reported {
            sense.push(reported.status);
            sense.extend(reported.sense.iter().flat_map(|sense| sense.encode(SenseFormat::Fixed)));
        }
        close(sense)
    }

    fn descriptor(&self) -> Bytes {
        let [segment_high, segment_low] = self.segment.to_be_bytes();
        let mut sense = vec![0x72, COPY_ABORTED, self.asc, self.ascq, 0, 0, 0, 0];
        sense.extend([0x01, 0x0A, 0, 0, 0, 0, segment_high, segment_low, 0, 0, 0, 0]);
        if let Some([flags, high, low]) = self.field_pointer() {
            sense.extend([0x02, 0x06, 0, 0, flags, high, low, 0]);
        }
        if let Some(Reported { by, status, sense: reported }) = self.reported {
            let reported = reported.map(|sense| sense.encode(SenseFormat::Descriptor)).unwrap_or_default();
            let len = u8::try_from(reported.len() + 2).unwrap_or(u8::MAX);
            let source = match by {
                Side::Source => 1,
                Side::Destination => 2,
            };
            sense.extend([0x0C, len, source, status]);
            sense.extend(reported);
        }
        close(sense)
    }

    /// SKSV, SD; then the byte.
    fn field_pointer(&self) -> Option<[u8; 3]> {
        let [high, low] = self.field?.to_be_bytes();
        Some([0x80 | 0x20, high, low])
    }
}

/// Puts the additional length in.
fn close(mut sense: Vec<u8>) -> Bytes {
    if let Some((head, rest)) = sense.split_at_mut_checked(8)
        && let Some(len) = head.last_mut()
    {
        *len = u8::try_from(rest.len()).unwrap_or(u8::MAX);
    }
    sense.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards fixed format: segment number in the third and fourth byte of COMMAND-SPECIFIC INFORMATION,
    /// SKSV and SD with the field.
    #[test]
    fn fixed_field() {
        assert_eq!(
            CopyAborted::field(0x0102, DESTINATION_LBA).encode(SenseFormat::Fixed)[..],
            [0x70, 0, 0x0A, 0, 0, 0, 0, 10, 0, 0, 1, 2, 0, 0, 0, 0xA0, 0, 20]
        );
        let unreachable = CopyAborted::unreachable(0, Side::Source).encode(SenseFormat::Fixed);
        assert_eq!(unreachable[12..18], [0x0D, 0x02, 0, 0xA0, 0, 4]);
    }

    /// Guards what is passed on in fixed format: its place, the status, then the sense data as it was.
    #[test]
    fn fixed_reported() {
        let sense = CopyAborted::refused(3, Side::Destination, Refusal::Check(Sense::WRITE_PROTECTED))
            .encode(SenseFormat::Fixed);
        assert_eq!(
            sense[..18],
            [0x70, 0, 0x0A, 0, 0, 0, 0, 29, 0, 18, 0, 3, 0x0D, 0x01, 0, 0, 0, 0],
            "{sense:02x?}"
        );
        assert_eq!(sense[18], 0x02);
        assert_eq!(sense[19..], Sense::WRITE_PROTECTED.encode(SenseFormat::Fixed)[..]);
        let reserved = CopyAborted::refused(0, Side::Source, Refusal::Reserved).encode(SenseFormat::Fixed);
        assert_eq!((reserved[7], reserved[8], reserved[9], &reserved[18..]), (11, 18, 0, &[0x18][..]));
    }

    /// Guards descriptor format: command-specific, sense key specific and forwarded descriptors.
    #[test]
    fn descriptors() {
        assert_eq!(
            CopyAborted::field(7, SOURCE_LBA).encode(SenseFormat::Descriptor)[..],
            [
                0x72, 0x0A, 0, 0, 0, 0, 0, 20, 0x01, 0x0A, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0x02, 0x06, 0, 0,
                0xA0, 0, 12, 0
            ]
        );
        let sense = CopyAborted::refused(1, Side::Source, Refusal::Check(Sense::LBA_OUT_OF_RANGE))
            .encode(SenseFormat::Descriptor);
        assert_eq!(sense[..8], [0x72, 0x0A, 0x0D, 0x01, 0, 0, 0, 24]);
        assert_eq!(sense[20..], [0x0C, 10, 1, 0x02, 0x72, 0x05, 0x21, 0, 0, 0, 0, 0]);
        let busy = CopyAborted::refused(1, Side::Destination, Refusal::Busy).encode(SenseFormat::Descriptor);
        assert_eq!(busy[20..], [0x0C, 2, 2, 0x08]);
    }
}

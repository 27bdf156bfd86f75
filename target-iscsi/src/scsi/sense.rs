//! Sense data (SPC-4 4.5): why a command failed. The only place where it is built, but for that of
//! copies, which is longer and is in `copy/aborted.rs`.
//!
//! ```text
//! fixed format (70h), 18 bytes           descriptor format (72h)
//! 0    70h, bit 7 VALID                  0    72h
//! 2    sense key                         1    sense key
//! 3..7 INFORMATION                       2, 3 additional sense code, qualifier
//! 7    additional length (0Ah)           7    additional length
//! 12   additional sense code             8..  descriptors: 00h INFORMATION (12 bytes),
//! 13   qualifier                                           02h sense key specific (8 bytes)
//! 15.. sense key specific (3 bytes)
//! ```

use bytes::Bytes;
use lunette_volume::device::{DeviceError, Readiness};
use smallvec::SmallVec;

use super::copy::CopyAborted;

/// Sense key (SPC-4 4.5.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Key {
    NoSense = 0x0,
    NotReady = 0x2,
    MediumError = 0x3,
    HardwareError = 0x4,
    IllegalRequest = 0x5,
    UnitAttention = 0x6,
    DataProtect = 0x7,
    AbortedCommand = 0xB,
    Miscompare = 0xE,
}

/// How sense data is laid out: the D_SENSE bit of the Control mode page (SPC-4 7.5.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SenseFormat {
    Fixed,
    Descriptor,
}

/// Why a command failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sense {
    key: Key,
    asc: u8,
    ascq: u8,
    information: Option<u64>,
    specific: Option<Specific>,
}

/// Sense key specific data (SPC-4 4.5.2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Specific {
    Field(FieldPointer),
    /// PROGRESS INDICATION: how much of an operation is done, of 65536.
    Progress(u16),
}

/// Which field was wrong (SPC-4 4.5.2.4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FieldPointer {
    /// In the CDB; else in the parameter list.
    in_cdb: bool,
    byte: u16,
    /// Most significant bit of the field, when it is not whole bytes.
    bit: Option<u8>,
}

impl Sense {
    pub(super) const NO_SENSE: Self = Self::new(Key::NoSense, 0x00, 0x00);
    pub(super) const INVALID_OPCODE: Self =
        Self::new(Key::IllegalRequest, 0x20, 0x00).pointing(true, 0, None);
    /// INVALID FIELD IN CDB without a pointer.
    pub(super) const INVALID_CDB: Self = Self::new(Key::IllegalRequest, 0x24, 0x00);
    pub(super) const LBA_OUT_OF_RANGE: Self = Self::new(Key::IllegalRequest, 0x21, 0x00);
    pub(super) const LUN_NOT_SUPPORTED: Self = Self::new(Key::IllegalRequest, 0x25, 0x00);
    pub(super) const PARAMETER_LIST_LENGTH: Self = Self::new(Key::IllegalRequest, 0x1A, 0x00);
    /// The list identifier of a copy is that of another one which is not over (SPC-4 5.16.4.2).
    pub(super) const OPERATION_IN_PROGRESS: Self = Self::new(Key::IllegalRequest, 0x00, 0x16);
    pub(super) const TOO_MANY_TARGETS: Self = Self::new(Key::IllegalRequest, 0x26, 0x06);
    pub(super) const UNSUPPORTED_TARGET_TYPE: Self = Self::new(Key::IllegalRequest, 0x26, 0x07);
    pub(super) const TOO_MANY_SEGMENTS: Self = Self::new(Key::IllegalRequest, 0x26, 0x08);
    pub(super) const UNSUPPORTED_SEGMENT_TYPE: Self = Self::new(Key::IllegalRequest, 0x26, 0x09);
    pub(super) const INLINE_DATA_LENGTH: Self = Self::new(Key::IllegalRequest, 0x26, 0x0B);
    pub(super) const SAVING_NOT_SUPPORTED: Self = Self::new(Key::IllegalRequest, 0x39, 0x00);
    pub(super) const WRITE_PROTECTED: Self = Self::new(Key::DataProtect, 0x27, 0x00);
    pub(super) const SOFTWARE_WRITE_PROTECTED: Self = Self::new(Key::DataProtect, 0x27, 0x02);
    /// LOGICAL UNIT COMMUNICATION FAILURE of a command of several parts, some of which have happened:
    /// neither BUSY nor ILLEGAL REQUEST, which promise that nothing has.
    pub(super) const PARTLY_DONE: Self = Self::new(Key::AbortedCommand, 0x08, 0x00);
    /// LOGICAL UNIT COMMUNICATION TIME-OUT, as an aborted command, which initiators retry: it may have happened.
    pub(super) const COMMUNICATION_TIMEOUT: Self = Self::new(Key::AbortedCommand, 0x08, 0x01);
    /// INVALID RELEASE OF PERSISTENT RESERVATION.
    pub(super) const INVALID_RELEASE: Self = Self::new(Key::IllegalRequest, 0x26, 0x04);
    pub(super) const INSUFFICIENT_REGISTRATION_RESOURCES: Self = Self::new(Key::IllegalRequest, 0x55, 0x04);
    /// SANITIZE COMMAND FAILED.
    pub(super) const SANITIZE_FAILED: Self = Self::new(Key::MediumError, 0x31, 0x03);
    pub(super) const INTERNAL_FAILURE: Self = Self::new(Key::HardwareError, 0x44, 0x00);

    pub(super) const fn new(key: Key, asc: u8, ascq: u8) -> Self {
        Self { key, asc, ascq, information: None, specific: None }
    }

    /// INVALID FIELD IN CDB: the field that starts at `byte`.
    pub(super) const fn cdb_field(byte: u16) -> Self {
        Self::INVALID_CDB.pointing(true, byte, None)
    }

    /// INVALID FIELD IN CDB: the field of `byte` whose most significant bit is `bit`.
    pub(super) const fn cdb_bit(byte: u16, bit: u8) -> Self {
        Self::INVALID_CDB.pointing(true, byte, Some(bit))
    }

    /// INVALID FIELD IN PARAMETER LIST: the field that starts at `byte`.
    pub(super) const fn parameter_field(byte: u16) -> Self {
        Self::new(Key::IllegalRequest, 0x26, 0x00).pointing(false, byte, None)
    }

    /// INVALID FIELD IN PARAMETER LIST: the field of `byte` whose most significant bit is `bit`.
    pub(super) const fn parameter_bit(byte: u16, bit: u8) -> Self {
        Self::new(Key::IllegalRequest, 0x26, 0x00).pointing(false, byte, Some(bit))
    }

    /// With the field of the parameter list that starts at `byte`.
    pub(super) const fn at_parameter(self, byte: u16) -> Self {
        self.pointing(false, byte, None)
    }

    /// MISCOMPARE DURING VERIFY OPERATION: the first unequal byte of the Data-Out.
    pub(super) const fn miscompare(offset: u64) -> Self {
        let mut sense = Self::new(Key::Miscompare, 0x1D, 0x00);
        sense.information = Some(offset);
        sense
    }

    /// LOGICAL UNIT NOT READY, `None` when it is. The qualifiers agree with the asymmetric access
    /// states that REPORT TARGET PORT GROUPS shows (SPC-4 5.15.2).
    pub(super) fn not_ready(readiness: Readiness) -> Option<Self> {
        let ascq = match readiness {
            Readiness::Ready => return None,
            Readiness::Starting => 0x0A,
            Readiness::NotOwner => 0x0B,
            Readiness::Unavailable => 0x0C,
        };
        Some(Self::new(Key::NotReady, 0x04, ascq))
    }

    /// LOGICAL UNIT NOT READY, SANITIZE IN PROGRESS.
    pub(super) const fn sanitizing(progress: u16) -> Self {
        let mut sense = Self::new(Key::NotReady, 0x04, 0x1B);
        sense.specific = Some(Specific::Progress(progress));
        sense
    }

    const fn pointing(mut self, in_cdb: bool, byte: u16, bit: Option<u8>) -> Self {
        self.specific = Some(Specific::Field(FieldPointer { in_cdb, byte, bit }));
        self
    }

    /// The bytes that go to the initiator.
    pub(super) fn encode(&self, format: SenseFormat) -> Bytes {
        match format {
            SenseFormat::Fixed => Bytes::copy_from_slice(&self.fixed()),
            SenseFormat::Descriptor => Bytes::copy_from_slice(&self.descriptor()),
        }
    }

    fn fixed(&self) -> [u8; 18] {
        let mut sense = [0; 18];
        sense[0] = 0x70;
        sense[2] = self.key as u8;
        // A value that 4 bytes cannot hold is left out (SPC-4 4.5.3).
        if let Some(information) = self.information.and_then(|value| u32::try_from(value).ok()) {
            sense[0] |= 0x80;
            sense[3..7].copy_from_slice(&information.to_be_bytes());
        }
        sense[7] = 0x0A;
        sense[12] = self.asc;
        sense[13] = self.ascq;
        if let Some(specific) = self.specific {
            sense[15..18].copy_from_slice(&specific.encode());
        }
        sense
    }

    fn descriptor(&self) -> SmallVec<[u8; 32]> {
        let mut sense = SmallVec::from_slice(&[0x72, self.key as u8, self.asc, self.ascq, 0, 0, 0, 0]);
        if let Some(information) = self.information {
            sense.extend_from_slice(&[0x00, 0x0A, 0x80, 0x00]);
            sense.extend_from_slice(&information.to_be_bytes());
            sense[7] += 12;
        }
        if let Some(specific) = self.specific {
            let [flags, high, low] = specific.encode();
            sense.extend_from_slice(&[0x02, 0x06, 0x00, 0x00, flags, high, low, 0x00]);
            sense[7] += 8;
        }
        sense
    }
}

impl Specific {
    fn encode(self) -> [u8; 3] {
        match self {
            Self::Field(field) => field.encode(),
            Self::Progress(progress) => {
                let [high, low] = progress.to_be_bytes();
                // SKSV.
                [0x80, high, low]
            }
        }
    }
}

impl FieldPointer {
    /// SKSV, C/D, BPV and the bit; then the byte.
    fn encode(self) -> [u8; 3] {
        let mut flags = 0x80;
        if self.in_cdb {
            flags |= 0x40;
        }
        if let Some(bit) = self.bit {
            flags |= 0x08 | (bit & 0x07);
        }
        let [high, low] = self.byte.to_be_bytes();
        [flags, high, low]
    }
}

/// How a command ends that does not end well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// CHECK CONDITION.
    Check(Sense),
    /// BUSY: nothing happened, try again (SAM-5 5.3.1).
    Busy,
    /// CHECK CONDITION of a copy, at one of its segments.
    Copy(CopyAborted),
    /// RESERVATION CONFLICT: nothing happened, another nexus forbids it (SAM-5 5.3.1).
    Conflict,
}

impl Failure {
    /// What a device's error means to the initiator.
    pub(super) fn of_device(error: &DeviceError, block_bytes: u32) -> Self {
        let sense = match error {
            DeviceError::Busy => return Self::Busy,
            DeviceError::OutOfRange => Sense::LBA_OUT_OF_RANGE,
            DeviceError::Invalid => Sense::INVALID_CDB,
            DeviceError::TimedOut => Sense::COMMUNICATION_TIMEOUT,
            // SPACE ALLOCATION FAILED WRITE PROTECT (SBC-3 4.7).
            DeviceError::NoSpace => Sense::new(Key::DataProtect, 0x27, 0x07),
            // UNRECOVERED READ ERROR; INFORMATION is the first unreadable LBA.
            DeviceError::Medium { offset } => Sense {
                information: Some(offset / u64::from(block_bytes.max(1))),
                ..Sense::new(Key::MediumError, 0x11, 0x00)
            },
            // TARGET PORT IN STANDBY STATE: another port may serve it.
            DeviceError::NotOwner => Sense::new(Key::NotReady, 0x04, 0x0B),
            DeviceError::Gone => Sense::LUN_NOT_SUPPORTED,
            DeviceError::Miscompare { at } => Sense::miscompare(u64::from(*at)),
        };
        Self::Check(sense)
    }
}

impl From<Sense> for Failure {
    fn from(sense: Sense) -> Self {
        Self::Check(sense)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards the layout of fixed format: SPC-4 4.5.3, with the field pointer of 4.5.2.4.2.
    #[test]
    fn fixed_with_field_pointer() {
        assert_eq!(
            Sense::cdb_bit(1, 7).encode(SenseFormat::Fixed)[..],
            [0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x24, 0, 0, 0xCF, 0, 1]
        );
        assert_eq!(
            Sense::parameter_field(0x0102).encode(SenseFormat::Fixed)[..],
            [0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x26, 0, 0, 0x80, 1, 2]
        );
    }

    /// Guards the layout of descriptor format: SPC-4 4.5.2.
    #[test]
    fn descriptors() {
        assert_eq!(
            Sense::miscompare(0x1_0000_0002).encode(SenseFormat::Descriptor)[..],
            [0x72, 0x0E, 0x1D, 0, 0, 0, 0, 12, 0, 0x0A, 0x80, 0, 0, 0, 0, 1, 0, 0, 0, 2]
        );
        assert_eq!(
            Sense::cdb_field(2).encode(SenseFormat::Descriptor)[..],
            [0x72, 5, 0x24, 0, 0, 0, 0, 8, 2, 6, 0, 0, 0xC0, 0, 2, 0]
        );
    }

    /// Guards the progress of an operation, in both formats: SPC-4 4.5.2.4.4.
    #[test]
    fn progress() {
        let sense = Sense::sanitizing(0x1234);
        let fixed = [0x70, 0, 2, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x04, 0x1B, 0, 0x80, 0x12, 0x34];
        assert_eq!(sense.encode(SenseFormat::Fixed)[..], fixed);
        let descriptor = [0x72, 2, 0x04, 0x1B, 0, 0, 0, 8, 2, 6, 0, 0, 0x80, 0x12, 0x34, 0];
        assert_eq!(sense.encode(SenseFormat::Descriptor)[..], descriptor);
    }

    /// Guards INFORMATION in fixed format: present with VALID, absent when it does not fit.
    #[test]
    fn fixed_information() {
        let fits = Failure::of_device(&DeviceError::Medium { offset: 0xFFFF_FFFF * 512 }, 512);
        let Failure::Check(sense) = fits else { panic!("a medium error has sense data") };
        let bytes = sense.encode(SenseFormat::Fixed);
        assert_eq!(bytes[..8], [0xF0, 0, 3, 0xFF, 0xFF, 0xFF, 0xFF, 10]);
        let too_large = Failure::of_device(&DeviceError::Medium { offset: 0x1_0000_0000 * 512 }, 512);
        let Failure::Check(sense) = too_large else { panic!("a medium error has sense data") };
        assert_eq!(sense.encode(SenseFormat::Fixed)[..8], [0x70, 0, 3, 0, 0, 0, 0, 10]);
    }

    /// Guards the meaning of device errors: each as (key, code, qualifier), or BUSY.
    #[test]
    fn device_errors() {
        let cases = [
            (DeviceError::OutOfRange, Some([0x05, 0x21, 0x00])),
            (DeviceError::Invalid, Some([0x05, 0x24, 0x00])),
            (DeviceError::Busy, None),
            (DeviceError::TimedOut, Some([0x0B, 0x08, 0x01])),
            (DeviceError::NoSpace, Some([0x07, 0x27, 0x07])),
            (DeviceError::Medium { offset: 0 }, Some([0x03, 0x11, 0x00])),
            (DeviceError::NotOwner, Some([0x02, 0x04, 0x0B])),
            (DeviceError::Gone, Some([0x05, 0x25, 0x00])),
            (DeviceError::Miscompare { at: 3 }, Some([0x0E, 0x1D, 0x00])),
        ];
        for (error, want) in cases {
            let got = match Failure::of_device(&error, 512) {
                Failure::Busy | Failure::Conflict | Failure::Copy(_) => None,
                Failure::Check(sense) => Some([sense.key as u8, sense.asc, sense.ascq]),
            };
            assert_eq!(got, want, "{error}");
        }
    }
}

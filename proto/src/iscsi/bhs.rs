//! The basic header segment: 48 bytes, big-endian (RFC 7143 11.2.1).
//!
//! ```text
//! 0   .I opcode (6 bits)         1   F and opcode-specific flags     2-3 opcode-specific
//! 4   TotalAHSLength, in words   5-7 DataSegmentLength, in bytes     8-15 LUN or opcode-specific
//! 16-19 initiator task tag       20-47 opcode-specific
//! ```
//!
//! Fields are named once, in [`initiator`](super::initiator) and [`target`](super::target), as a
//! position with a width ([`Field`]); reading and writing both follow from that.

use std::fmt;

use super::Serial;

/// Bytes of a BHS.
pub const BHS_BYTES: usize = 48;

/// A BHS as it is on the wire.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Bhs(pub [u8; BHS_BYTES]);

impl Bhs {
    /// All zeros but the opcode.
    #[must_use]
    pub fn new(opcode: u8) -> Self {
        let mut bytes = [0; BHS_BYTES];
        bytes[0] = opcode & 0x3f;
        Self(bytes)
    }

    /// The opcode, without the immediate bit.
    #[must_use]
    pub fn opcode(&self) -> u8 {
        self.0[0] & 0x3f
    }

    /// The immediate bit (RFC 7143 11.2.1.1).
    #[must_use]
    pub fn immediate(&self) -> bool {
        self.0[0] & 0x40 != 0
    }

    /// Bytes of all additional header segments.
    #[must_use]
    pub fn ahs_bytes(&self) -> usize {
        usize::from(self.0[4]) * 4
    }

    /// Sets the bytes of all additional header segments, whole words, at most 1020.
    pub fn set_ahs_bytes(&mut self, len: usize) {
        self.0[4] = u8::try_from(len / 4).unwrap_or(u8::MAX);
    }

    /// Bytes of the data segment, without padding.
    #[must_use]
    pub fn data_bytes(&self) -> u32 {
        u32::from_be_bytes([0, self.0[5], self.0[6], self.0[7]])
    }

    /// Sets the bytes of the data segment, 24 bits.
    pub fn set_data_bytes(&mut self, len: u32) {
        self.0[5..8].copy_from_slice(&len.to_be_bytes()[1..]);
    }

    /// The initiator task tag.
    #[must_use]
    pub fn task_tag(&self) -> u32 {
        Be32(16).get(&self.0)
    }
}

impl fmt::Debug for Bhs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Bhs(opcode {:#04x}, tag {:#010x}, data {})",
            self.opcode(),
            self.task_tag(),
            self.data_bytes()
        )
    }
}

/// A field of a BHS: where it lies, and how wide it is.
pub(super) trait Field {
    type Value;
    fn get(&self, bhs: &[u8; BHS_BYTES]) -> Self::Value;
    fn put(&self, bhs: &mut [u8; BHS_BYTES], value: Self::Value);
}

/// A bit: byte, mask.
pub(super) struct Flag(pub usize, pub u8);

impl Field for Flag {
    type Value = bool;

    fn get(&self, bhs: &[u8; BHS_BYTES]) -> bool {
        bhs[self.0] & self.1 != 0
    }

    fn put(&self, bhs: &mut [u8; BHS_BYTES], value: bool) {
        if value {
            bhs[self.0] |= self.1;
        } else {
            bhs[self.0] &= !self.1;
        }
    }
}

/// Neighbouring bits of a byte: byte, mask.
pub(super) struct Bits(pub usize, pub u8);

impl Field for Bits {
    type Value = u8;

    fn get(&self, bhs: &[u8; BHS_BYTES]) -> u8 {
        (bhs[self.0] & self.1) >> self.1.trailing_zeros()
    }

    fn put(&self, bhs: &mut [u8; BHS_BYTES], value: u8) {
        bhs[self.0] = (bhs[self.0] & !self.1) | ((value << self.1.trailing_zeros()) & self.1);
    }
}

/// Bytes as they are.
pub(super) struct Bytes<const N: usize>(pub usize);

impl<const N: usize> Field for Bytes<N> {
    type Value = [u8; N];

    fn get(&self, bhs: &[u8; BHS_BYTES]) -> [u8; N] {
        let mut value = [0; N];
        value.copy_from_slice(&bhs[self.0..self.0 + N]);
        value
    }

    fn put(&self, bhs: &mut [u8; BHS_BYTES], value: [u8; N]) {
        bhs[self.0..self.0 + N].copy_from_slice(&value);
    }
}

macro_rules! number {
    ($name:ident, $type:ty) => {
        /// A big-endian number at a byte.
        pub(super) struct $name(pub usize);

        impl Field for $name {
            type Value = $type;

            fn get(&self, bhs: &[u8; BHS_BYTES]) -> $type {
                <$type>::from_be_bytes(Bytes(self.0).get(bhs))
            }

            fn put(&self, bhs: &mut [u8; BHS_BYTES], value: $type) {
                Bytes(self.0).put(bhs, value.to_be_bytes());
            }
        }
    };
}

number!(Be8, u8);
number!(Be16, u16);
number!(Be32, u32);
number!(Be64, u64);

/// A sequence number at a byte.
pub(super) struct Sn(pub usize);

impl Field for Sn {
    type Value = Serial;

    fn get(&self, bhs: &[u8; BHS_BYTES]) -> Serial {
        Serial(Be32(self.0).get(bhs))
    }

    fn put(&self, bhs: &mut [u8; BHS_BYTES], value: Serial) {
        Be32(self.0).put(bhs, value.0);
    }
}

/// Defines a PDU's fields: `name: type = position`; `also` are bits that are always one.
macro_rules! pdu {
    ($(#[$doc:meta])* $name:ident, opcode $opcode:literal $(, also $also_at:literal & $also_mask:literal)?;
     $($(#[$field_doc:meta])* $field:ident: $type:ty = $position:expr,)*) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
        }

        impl $name {
            /// Its opcode.
            pub const OPCODE: u8 = $opcode;

            /// Reads the fields; what is reserved is ignored (RFC 7143 11.1).
            #[must_use]
            pub fn decode(bhs: &Bhs) -> Self {
                Self { $($field: Field::get(&$position, &bhs.0),)* }
            }

            /// Lays the fields out; lengths are for the encoder to set.
            #[must_use]
            pub fn encode(&self) -> Bhs {
                let mut bhs = Bhs::new($opcode);
                $(bhs.0[$also_at] |= $also_mask;)?
                $(Field::put(&$position, &mut bhs.0, self.$field);)*
                bhs
            }
        }
    };
}

pub(super) use pdu;

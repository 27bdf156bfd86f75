//! Sequence numbers: 32 bits, compared modulo 2^32 (RFC 7143 4.2.2.1, RFC 1982).
//!
//! There is deliberately no `Ord`: the comparison is not transitive, and a sequence number in a
//! sorted container would be wrong once it wraps.

use std::fmt;

/// CmdSN, StatSN, DataSN and their kin.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Serial(pub u32);

impl Serial {
    /// The number `count` later.
    #[must_use]
    pub fn plus(self, count: u32) -> Self {
        Self(self.0.wrapping_add(count))
    }

    /// The number `count` earlier.
    #[must_use]
    pub fn minus(self, count: u32) -> Self {
        Self(self.0.wrapping_sub(count))
    }

    /// How far `self` lies after `earlier`, as if it did.
    #[must_use]
    pub fn since(self, earlier: Self) -> u32 {
        self.0.wrapping_sub(earlier.0)
    }

    /// Whether it comes before `other`. Numbers exactly 2^31 apart are in no order: both answers are no.
    #[must_use]
    pub fn is_before(self, other: Self) -> bool {
        let distance = other.since(self);
        distance != 0 && distance < 1 << 31
    }

    /// Whether it comes after `other`.
    #[must_use]
    pub fn is_after(self, other: Self) -> bool {
        other.is_before(self)
    }

    /// Returns it and steps to the next.
    pub fn take(&mut self) -> Self {
        let taken = *self;
        *self = self.plus(1);
        taken
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{:#x}", self.0)
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards order across the wrap, and the undefined distance of RFC 1982 3.2.
    #[test]
    fn order() {
        assert!(Serial(0xffff_ffff).is_before(Serial(0)));
        assert!(Serial(0).is_after(Serial(0xffff_ffff)));
        assert!(!Serial(0).is_before(Serial(0xffff_ffff)));
        assert!(!Serial(7).is_before(Serial(7)));
        assert!(Serial(0).is_before(Serial(0x7fff_ffff)));
        assert!(!Serial(0).is_before(Serial(0x8000_0000)));
        assert!(!Serial(0).is_after(Serial(0x8000_0000)));
    }

    /// Guards stepping across the wrap.
    #[test]
    fn steps() {
        let mut serial = Serial(0xffff_ffff);
        assert_eq!(serial.take(), Serial(0xffff_ffff));
        assert_eq!(serial, Serial(0));
        assert_eq!(Serial(0).minus(1), Serial(0xffff_ffff));
        assert_eq!(Serial(3).since(Serial(0xffff_fffe)), 5);
    }
}

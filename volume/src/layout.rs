//! From bytes of a volume to bytes of its extents.
//!
//! A plain volume is one extent after the other. A striped one deals units round robin over groups
//! of `width` consecutive extents, so that one stream keeps `width` placements busy:
//!
//! ```text
//!     unit of the group   0  1  2  3  4  5 ..       width 3
//!     extent              0  1  2  0  1  2 ..       offset in the extent: (unit / width) * unit_bytes
//! ```
//!
//! Redundancy is not decided here: each extent is kept by its pool as the pool's
//! [`Redundancy`](lunette_proto::map::Redundancy) says, whatever the layout above it.

use lunette_proto::limits::{ATOMIC_BYTES_MAX, EXTENT_BYTES, UNIT_BYTES};
use lunette_proto::map::Stripe;

const EXTENT: u64 = EXTENT_BYTES as u64;

/// How addresses of a volume become extents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    unit: u64,
    width: u64,
}

/// Consecutive bytes of a volume that lie side by side in one extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Index of the extent.
    pub extent: u64,
    /// First byte inside the extent.
    pub offset: u32,
    /// Bytes, not 0.
    pub len: u32,
}

impl Layout {
    /// The layout of a volume. A stripe that the limits do not allow (a unit that does not divide
    /// an extent) is refused with `None`.
    #[must_use]
    pub fn new(stripe: Option<Stripe>) -> Option<Self> {
        match stripe {
            None => Some(Self { unit: EXTENT, width: 1 }),
            Some(Stripe { unit_bytes, width }) => {
                let unit = u64::from(unit_bytes);
                let whole_blocks = unit >= u64::from(lunette_proto::limits::BLOCK_BYTES);
                (unit.is_power_of_two() && whole_blocks && unit <= EXTENT && width > 0)
                    .then_some(Self { unit, width: u64::from(width) })
            }
        }
    }

    /// The size of the aligned ranges of the volume that are written as a whole when that is asked for; each lies side
    /// by side in one extent. A power of two.
    #[must_use]
    pub fn atomic_bytes(self) -> u32 {
        u32::try_from(self.unit).map_or(ATOMIC_BYTES_MAX, |unit| unit.min(ATOMIC_BYTES_MAX))
    }

    /// The size of the aligned ranges of the volume that lie in one space unit of one extent, a power of two.
    #[must_use]
    pub fn unit_bytes(self) -> u32 {
        self.atomic_bytes().min(UNIT_BYTES)
    }

    /// The runs of `len` bytes from `offset`, in order of the volume's addresses.
    ///
    /// # Panics
    /// If the range passes the end of the address space.
    #[must_use]
    pub fn runs(self, offset: u64, len: u64) -> Runs {
        let end = offset.checked_add(len).expect("a volume ends below 2^64 bytes");
        Runs { layout: self, at: offset, end }
    }

    /// The volume's address of a byte of an extent.
    #[must_use]
    pub fn address(self, extent: u64, offset: u32) -> u64 {
        let (group, column) = (extent / self.width, extent % self.width);
        let (row, within) = (u64::from(offset) / self.unit, u64::from(offset) % self.unit);
        group * self.width * EXTENT + (row * self.width + column) * self.unit + within
    }

    /// Where a byte lies, and how many follow it in the same unit.
    fn locate(self, address: u64) -> (u64, u64, u64) {
        let group_bytes = self.width * EXTENT;
        let (group, in_group) = (address / group_bytes, address % group_bytes);
        let (unit, within) = (in_group / self.unit, in_group % self.unit);
        let extent = group * self.width + unit % self.width;
        (extent, (unit / self.width) * self.unit + within, self.unit - within)
    }
}

/// Iterator over [`Run`]s.
#[derive(Clone, Debug)]
pub struct Runs {
    layout: Layout,
    at: u64,
    end: u64,
}

impl Iterator for Runs {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        if self.at == self.end {
            return None;
        }
        let (extent, offset, rest) = self.layout.locate(self.at);
        let mut len = rest.min(self.end - self.at);
        // Units that follow each other in the same extent are one run (a stripe of width 1).
        while self.at + len < self.end {
            let (next, next_offset, rest) = self.layout.locate(self.at + len);
            if next != extent || next_offset != offset + len {
                break;
            }
            len += rest.min(self.end - self.at - len);
        }
        self.at += len;
        let narrow = |value: u64| u32::try_from(value).expect("a run lies inside one extent");
        Some(Run { extent, offset: narrow(offset), len: narrow(len) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn layouts() -> impl Strategy<Value = Layout> {
        prop_oneof![
            Just(Layout::new(None).unwrap()),
            (14u32..=20, 1u16..=8).prop_map(|(bits, width)| Layout::new(Some(Stripe {
                unit_bytes: 1 << bits,
                width
            }))
            .unwrap()),
        ]
    }

    /// Guards against two addresses sharing a place: over a whole group, units fill every extent once.
    #[test]
    fn bijective_over_a_group() {
        for (unit_bytes, width) in [(16 << 10, 2), (64 << 10, 3), (1 << 20, 5), (256 << 10, 64)] {
            let layout = Layout::new(Some(Stripe { unit_bytes, width })).unwrap();
            let group = u64::from(width) * EXTENT;
            for first in [0, 7 * group] {
                let mut seen = std::collections::BTreeSet::new();
                for address in (first..first + group).step_by(unit_bytes as usize) {
                    let (extent, offset, rest) = layout.locate(address);
                    assert!(extent >= first / EXTENT && extent < first / EXTENT + u64::from(width));
                    assert_eq!(rest, u64::from(unit_bytes));
                    assert!(seen.insert((extent, offset)));
                }
                assert_eq!(seen.len() as u64 * u64::from(unit_bytes), group);
            }
        }
    }

    /// Guards the promise of atomic writes: an aligned range of that size lies side by side in one extent, aligned.
    #[test]
    fn atomic_ranges_stay_together() {
        let stripe = |unit_bytes| Layout::new(Some(Stripe { unit_bytes, width: 3 })).unwrap();
        for (layout, bytes, unit) in [
            (Layout::new(None).unwrap(), 1 << 20, 64 << 10),
            (stripe(16 << 10), 16 << 10, 16 << 10),
            (stripe(64 << 10), 64 << 10, 64 << 10),
            (stripe(256 << 10), 256 << 10, 64 << 10),
            (stripe(1 << 20), 1 << 20, 64 << 10),
        ] {
            assert_eq!((layout.atomic_bytes(), layout.unit_bytes()), (bytes, unit));
            for at in (0..4 * EXTENT).step_by(bytes as usize) {
                let runs: Vec<Run> = layout.runs(at, u64::from(bytes)).collect();
                assert_eq!(runs.len(), 1);
                assert!(runs[0].offset.is_multiple_of(bytes));
            }
        }
    }

    /// Guards against a stripe that would not fill its extents.
    #[test]
    fn refuses_a_unit_that_does_not_divide() {
        assert_eq!(Layout::new(Some(Stripe { unit_bytes: 48 << 10, width: 2 })), None);
        assert_eq!(Layout::new(Some(Stripe { unit_bytes: 0, width: 2 })), None);
        assert_eq!(Layout::new(Some(Stripe { unit_bytes: 64 << 10, width: 0 })), None);
    }

    proptest! {
        /// Guards against gaps, overlaps and splits that are not needed, and `address` inverting `runs`.
        #[test]
        fn runs_cover_in_order(layout in layouts(), offset in 0u64..200 << 20, len in 1u64..20 << 20) {
            let mut at = offset;
            let mut last: Option<Run> = None;
            for run in layout.runs(offset, len) {
                prop_assert!(run.len > 0);
                prop_assert!(u64::from(run.offset) + u64::from(run.len) <= EXTENT);
                prop_assert_eq!(layout.address(run.extent, run.offset), at);
                prop_assert_eq!(
                    layout.address(run.extent, run.offset + run.len - 1), at + u64::from(run.len) - 1);
                if let Some(last) = last {
                    prop_assert!(last.extent != run.extent || last.offset + last.len != run.offset);
                }
                at += u64::from(run.len);
                last = Some(run);
            }
            prop_assert_eq!(at, offset + len);
        }
    }
}

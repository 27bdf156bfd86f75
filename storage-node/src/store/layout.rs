//! Where the parts of a disk lie. See the parent module for what they are.

use super::disk::SECTOR_BYTES;

/// Bytes of an allocation unit.
pub const UNIT_BYTES: u64 = lunette_proto::limits::UNIT_BYTES as u64;
/// Bytes of a page of metadata, and the alignment of everything that is not a descriptor.
pub const PAGE_BYTES: u64 = 4096;
/// Bytes of a unit's descriptor: one sector.
pub const DESCRIPTOR_BYTES: u64 = SECTOR_BYTES;
/// Journal of a disk unless said otherwise.
pub const WAL_BYTES_DEFAULT: u64 = 128 << 20;
/// The smallest journal of a real disk: it holds the largest change several times.
pub const WAL_BYTES_MIN: u64 = 32 << 20;
/// The largest journal.
pub const WAL_BYTES_MAX: u64 = 4 << 30;
/// Bytes of a page's entry in the directory of pages.
pub(crate) const DIRECTORY_ENTRY_BYTES: u64 = 8;
/// Room that namespaces and their dirty extents have in a checkpoint, unless the disk is tiny.
const STATE_BYTES_MAX: u64 = 16 << 20;
const STATE_BYTES_MIN: u64 = 64 << 10;
/// Units for which there is a page of metadata at least: extents may be sparse.
const UNITS_PER_PAGE: u64 = 16;
pub(super) const UNITS_MAX: u64 = u32::MAX as u64 - 1;

/// Where the parts of a disk lie, in bytes from its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of the whole disk, of which the end may not be used.
    pub total_bytes: u64,
    /// The journal.
    pub wal_offset: u64,
    /// Its length.
    pub wal_bytes: u64,
    /// The two checkpoint areas.
    pub area_offsets: [u64; 2],
    /// The length of each.
    pub area_bytes: u64,
    /// Pages of metadata, two places for each.
    pub pages_offset: u64,
    /// How many pages.
    pub pages: u32,
    /// Descriptors of units.
    pub descriptors_offset: u64,
    /// Units.
    pub units_offset: u64,
    /// How many.
    pub units: u32,
}

impl Layout {
    /// The layout of a disk of `total_bytes` with a journal of `wal_bytes` (a multiple of [`PAGE_BYTES`]);
    /// `None` if not one unit fits.
    #[must_use]
    pub fn new(total_bytes: u64, wal_bytes: u64) -> Option<Self> {
        if !wal_bytes.is_multiple_of(PAGE_BYTES) {
            return None;
        }
        // What a unit takes with its share of everything; the fixed parts and the rounding come off first.
        let per_unit = UNIT_BYTES
            + DESCRIPTOR_BYTES
            + (2 * PAGE_BYTES + 2 * DIRECTORY_ENTRY_BYTES).div_ceil(UNITS_PER_PAGE);
        let state = (total_bytes / 64 / PAGE_BYTES * PAGE_BYTES).clamp(STATE_BYTES_MIN, STATE_BYTES_MAX);
        let fixed = wal_bytes.checked_add(2 * state + 16 * PAGE_BYTES + 2 * UNIT_BYTES)?;
        let units = (total_bytes.checked_sub(fixed)? / per_unit).min(UNITS_MAX);
        if units == 0 {
            return None;
        }
        let pages = units.div_ceil(UNITS_PER_PAGE);
        let area_bytes = (pages * DIRECTORY_ENTRY_BYTES).next_multiple_of(PAGE_BYTES) + PAGE_BYTES + state;
        let wal_offset = 2 * PAGE_BYTES;
        let area = wal_offset + wal_bytes;
        let pages_offset = area + 2 * area_bytes;
        let descriptors_offset = pages_offset + pages * 2 * PAGE_BYTES;
        let units_offset = (descriptors_offset + units * DESCRIPTOR_BYTES).next_multiple_of(UNIT_BYTES);
        let layout = Self {
            total_bytes,
            wal_offset,
            wal_bytes,
            area_offsets: [area, area + area_bytes],
            area_bytes,
            pages_offset,
            pages: u32::try_from(pages).ok()?,
            descriptors_offset,
            units_offset,
            units: u32::try_from(units).ok()?,
        };
        (layout.unit(layout.units) <= total_bytes).then_some(layout)
    }

    /// Where superblock A (0) and B (1) lie.
    #[must_use]
    pub fn superblock(copy: usize) -> u64 {
        copy as u64 * PAGE_BYTES
    }

    /// Where a unit's data lies.
    #[must_use]
    pub fn unit(&self, unit: u32) -> u64 {
        self.units_offset + u64::from(unit) * UNIT_BYTES
    }

    /// Where a unit's descriptor lies.
    #[must_use]
    pub fn descriptor(&self, unit: u32) -> u64 {
        self.descriptors_offset + u64::from(unit) * DESCRIPTOR_BYTES
    }

    /// Where a page of metadata lies, in its place 0 or 1.
    #[must_use]
    pub fn page(&self, page: u32, place: u8) -> u64 {
        self.pages_offset + (u64::from(page) * 2 + u64::from(place)) * PAGE_BYTES
    }

    /// Bytes that the state of namespaces may take in a checkpoint area.
    #[must_use]
    pub fn state_bytes(&self) -> u64 {
        self.area_bytes
            - PAGE_BYTES
            - (u64::from(self.pages) * DIRECTORY_ENTRY_BYTES).next_multiple_of(PAGE_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards against parts that overlap or reach beyond the disk, from the smallest to the largest.
    #[test]
    fn parts_do_not_overlap() {
        for (total, wal) in [
            (1 << 20, 64 << 10),
            (64 << 20, 32 << 20),
            (1 << 30, 32 << 20),
            (1 << 40, 128 << 20),
            (1 << 50, 1 << 30),
        ] {
            let layout = Layout::new(total, wal).expect("large enough");
            let ends = [
                (Layout::superblock(1) + PAGE_BYTES, layout.wal_offset),
                (layout.wal_offset + layout.wal_bytes, layout.area_offsets[0]),
                (layout.area_offsets[0] + layout.area_bytes, layout.area_offsets[1]),
                (layout.area_offsets[1] + layout.area_bytes, layout.pages_offset),
                (layout.page(layout.pages - 1, 1) + PAGE_BYTES, layout.descriptors_offset),
                (layout.descriptor(layout.units - 1) + DESCRIPTOR_BYTES, layout.units_offset),
                (layout.unit(layout.units - 1) + UNIT_BYTES, layout.total_bytes),
            ];
            for (end, next) in ends {
                assert!(end <= next, "{total}: {layout:?}");
            }
            assert!(layout.units_offset.is_multiple_of(UNIT_BYTES));
        }
    }

    /// Guards the capacity: metadata takes at most 2.5 % of a large disk.
    #[test]
    fn metadata_is_small() {
        let layout = Layout::new(1 << 40, WAL_BYTES_DEFAULT).expect("large enough");
        assert!(u64::from(layout.units) * UNIT_BYTES > (1 << 40) / 1000 * 975);
        assert_eq!(Layout::new(1 << 16, 64 << 10), None);
        assert_eq!(Layout::new(1 << 30, 4095), None);
    }
}

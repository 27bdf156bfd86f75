//! WRITE ATOMIC(16) (SBC-4 5.46): all of it is written or nothing, whatever fails in between.
//!
//! ```text
//! |------ atomic_bytes ------|------ atomic_bytes ------|    what the device promises: no write tears that
//!     [==========]   yes                                     lies inside one of these aligned ranges
//!                     [===========]   no: refused
//! ```
//!
//! ATOMIC ALIGNMENT and GRANULARITY are 4 KiB, so that a naturally aligned power of two, which is what databases and
//! file systems write, always fits. VPD page B0h has no field for a boundary that must not be crossed; a write that
//! crosses one is refused before anything happens.

use lunette_proto::limits::BLOCK_BYTES;

use super::LogicalUnit;
use super::read_write::{Operation, Write, collect, fua};
use super::request::{Answer, Request};
use super::sense::Sense;

/// TRANSFER LENGTH has 16 bits; the largest power of two in them.
const BLOCKS_MAX: u32 = 1 << 15;

/// What VPD page B0h says of atomic writes, in logical blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AtomicLimits {
    /// MAXIMUM ATOMIC TRANSFER LENGTH.
    pub(super) len_max: u32,
    /// ATOMIC ALIGNMENT and ATOMIC TRANSFER LENGTH GRANULARITY.
    pub(super) granularity: u32,
}

impl AtomicLimits {
    pub(super) fn of(unit: &LogicalUnit) -> Self {
        let blocks = |bytes: u32| bytes.checked_div(unit.block_bytes).unwrap_or(0).max(1);
        let len_max = blocks(unit.device.atomic_bytes()).min(unit.transfer_blocks_max()).min(BLOCKS_MAX);
        Self { len_max, granularity: blocks(BLOCK_BYTES) }
    }
}

pub(super) fn write_atomic_16(request: &mut Request<'_>) -> Answer {
    let cdb = request.cdb;
    // Durable in any case: what is in a write cache only may be lost in part.
    fua(cdb)?;
    let (lba, blocks) = (cdb.u64(2), u32::from(cdb.u16(12)));
    if cdb.u16(10) != 0 {
        // ATOMIC BOUNDARY: MAXIMUM ATOMIC BOUNDARY SIZE is 0, so that nothing is written in several atomic parts.
        return Err(Sense::cdb_field(10).into());
    }
    let range = request.unit.range(lba, blocks.into())?;
    let limits = AtomicLimits::of(request.unit);
    if blocks > limits.len_max || !blocks.is_multiple_of(limits.granularity) {
        return Err(Sense::cdb_field(12).into());
    }
    if !lba.is_multiple_of(limits.granularity.into()) {
        return Err(Sense::cdb_field(2).into());
    }
    let atomic = u64::from(request.unit.device.atomic_bytes().max(BLOCK_BYTES));
    if range.len > 0 && range.offset / atomic != (range.offset + range.len - 1) / atomic {
        return Err(Sense::cdb_field(12).into());
    }
    let len = u32::try_from(range.len).map_err(|_| Sense::cdb_field(12))?;
    collect(Write::new(range, len, request.unit.block_bytes, true).with(Operation::WriteAtomic))
}

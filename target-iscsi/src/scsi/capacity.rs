//! READ CAPACITY(10) and (16) (SBC-3 5.15, 5.16).

use lunette_proto::limits::BLOCK_BYTES;

use super::LogicalUnit;
use super::request::{Answer, Plan, Request, parameter_data};

pub(super) fn read_capacity_10(request: &mut Request<'_>) -> Answer {
    // FFFFFFFFh says: ask READ CAPACITY(16).
    let last = u32::try_from(last_lba(request.unit)).unwrap_or(u32::MAX);
    let mut data = last.to_be_bytes().to_vec();
    data.extend(request.unit.block_bytes.to_be_bytes());
    Ok(Plan::Data(data.into()))
}

pub(super) fn read_capacity_16(request: &mut Request<'_>) -> Answer {
    /// LBPME and LBPRZ: thin, and what is unmapped reads as zeros.
    const PROVISIONING: u8 = 0x80 | 0x40;
    let mut data = last_lba(request.unit).to_be_bytes().to_vec();
    data.extend(request.unit.block_bytes.to_be_bytes());
    data.extend([0, physical_exponent(request.unit), PROVISIONING]);
    data.resize(32, 0);
    Ok(parameter_data(data, request.cdb.u32(10)))
}

/// LOGICAL BLOCKS PER PHYSICAL BLOCK EXPONENT: a physical block is 4 KiB, the unit of atomicity.
pub(super) fn physical_exponent(unit: &LogicalUnit) -> u8 {
    if unit.block_bytes < BLOCK_BYTES { 3 } else { 0 }
}

fn last_lba(unit: &LogicalUnit) -> u64 {
    unit.capacity().blocks.saturating_sub(1)
}

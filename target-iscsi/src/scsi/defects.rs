//! READ DEFECT DATA(10) and (12) (SBC-3 5.17, 5.18): lists that are empty, for a volume shows no defects. What is
//! damaged on a disk is repaired from other copies.

use super::request::{Answer, Request, parameter_data};
use super::sense::Sense;

pub(super) fn read_defect_data_10(request: &mut Request<'_>) -> Answer {
    let flags = flags(request.cdb.u8(2)).ok_or(Sense::cdb_bit(2, 2))?;
    Ok(parameter_data(vec![0, flags, 0, 0], request.cdb.u16(7).into()))
}

pub(super) fn read_defect_data_12(request: &mut Request<'_>) -> Answer {
    let flags = flags(request.cdb.u8(1)).ok_or(Sense::cdb_bit(1, 2))?;
    // GENERATION CODE 0: there is none.
    Ok(parameter_data(vec![0, flags, 0, 0, 0, 0, 0, 0], request.cdb.u32(6)))
}

/// PLISTV and GLISTV as the lists were asked for, and the format that was, for an empty list is the same in all.
fn flags(asked: u8) -> Option<u8> {
    const VENDOR_SPECIFIC: u8 = 0b110;
    (asked & 0x07 < VENDOR_SPECIFIC).then_some(asked & 0x1F)
}

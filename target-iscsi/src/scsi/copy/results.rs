//! RECEIVE COPY RESULTS (SPC-4 6.18, 6.20, 6.21): how copies stand, how they failed, and what the
//! copy manager can do. Data of copies is never held, so there is no RECEIVE COPY DATA.

use super::records::{Ending, Progressed};
use super::{
    CONCURRENT_MAX, DESCRIPTOR_TYPES, DESCRIPTORS_BYTES_MAX, SEGMENT_DATA_BYTES_MAX, SEGMENTS_MAX,
    TARGETS_MAX,
};
use crate::scsi::request::{Answer, Request, parameter_data, set_length_u32};
use crate::scsi::sense::Sense;
use crate::scsi::task::CHECK_CONDITION;

const LIST_IDENTIFIER: u16 = 2;
const ALLOCATION_LENGTH: usize = 10;

/// RECEIVE COPY STATUS(LID1), formerly COPY STATUS.
pub(in crate::scsi) fn status(request: &mut Request<'_>) -> Answer {
    let copies = request.nexus.unit(request.lun).copies();
    let Some((progressed, ending)) = copies.status(request.cdb.u8(LIST_IDENTIFIER.into())) else {
        return Err(Sense::cdb_field(LIST_IDENTIFIER).into());
    };
    let status = match ending {
        None => 0x00,
        Some(Ending::Good) => 0x01,
        Some(Ending::Aborted(_)) => 0x02,
    };
    let Progressed { segments, bytes } = progressed;
    let [segments_high, segments_low] = segments.to_be_bytes();
    let (units, count) = transfer_count(bytes);
    let mut data = vec![0, 0, 0, 0, status, segments_high, segments_low, units];
    data.extend(count.to_be_bytes());
    set_length_u32(&mut data);
    Ok(parameter_data(data, request.cdb.u32(ALLOCATION_LENGTH)))
}

/// TRANSFER COUNT UNITS (SPC-4 6.20): bytes, or KiB when those are too many.
fn transfer_count(bytes: u64) -> (u8, u32) {
    match u32::try_from(bytes) {
        Ok(bytes) => (0x00, bytes),
        Err(_) => (0x01, u32::try_from(bytes >> 10).unwrap_or(u32::MAX)),
    }
}

/// RECEIVE COPY FAILURE DETAILS(LID1), formerly FAILED SEGMENT DETAILS.
pub(in crate::scsi) fn failure_details(request: &mut Request<'_>) -> Answer {
    const COPY_STATUS: usize = 56;
    let copies = request.nexus.unit(request.lun).copies();
    let Some(ending) = copies.ending(request.cdb.u8(LIST_IDENTIFIER.into())) else {
        return Err(Sense::cdb_field(LIST_IDENTIFIER).into());
    };
    let data = match ending {
        // AVAILABLE DATA 0: nothing failed.
        Ending::Good => vec![0; 4],
        Ending::Aborted(sense) => {
            let [len_high, len_low] = u16::try_from(sense.len()).unwrap_or(u16::MAX).to_be_bytes();
            let mut data = vec![0; COPY_STATUS];
            data.extend([CHECK_CONDITION, 0, len_high, len_low]);
            data.extend(sense);
            set_length_u32(&mut data);
            data
        }
    };
    Ok(parameter_data(data, request.cdb.u32(ALLOCATION_LENGTH)))
}

/// RECEIVE COPY OPERATING PARAMETERS.
pub(in crate::scsi) fn operating_parameters(request: &mut Request<'_>) -> Answer {
    const SNLID: u8 = 0x01;
    let mut data = vec![0, 0, 0, 0, SNLID, 0, 0, 0];
    data.extend((TARGETS_MAX as u16).to_be_bytes());
    data.extend((SEGMENTS_MAX as u16).to_be_bytes());
    for field in [
        DESCRIPTORS_BYTES_MAX as u32,
        SEGMENT_DATA_BYTES_MAX,
        0, // MAXIMUM INLINE DATA LENGTH
        0, // HELD DATA LIMIT
        0, // MAXIMUM STREAM DEVICE TRANSFER SIZE
    ] {
        data.extend(field.to_be_bytes());
    }
    data.extend([0, 0, 0, CONCURRENT_MAX]); // TOTAL CONCURRENT COPIES in the last two
    data.extend([CONCURRENT_MAX, data_granularity(request.unit.block_bytes), 0, 0]);
    data.extend([0, 0, 0, DESCRIPTOR_TYPES.len() as u8]);
    data.extend(DESCRIPTOR_TYPES);
    set_length_u32(&mut data);
    Ok(parameter_data(data, request.cdb.u32(ALLOCATION_LENGTH)))
}

/// DATA SEGMENT GRANULARITY: the exponent of a logical block's size.
pub(super) fn data_granularity(block_bytes: u32) -> u8 {
    u8::try_from(block_bytes.trailing_zeros()).unwrap_or(0)
}

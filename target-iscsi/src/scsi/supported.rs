//! REPORT SUPPORTED OPERATION CODES (SPC-4 6.35) and REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS
//! (SPC-4 6.36).

use super::request::{Answer, Request, parameter_data, set_length_u32};
use super::sense::Sense;
use super::table::{self, COMMANDS, Row};

/// RECOMMENDED COMMAND TIMEOUT: what initiators use for a disk. No nominal time is indicated.
const RECOMMENDED_TIMEOUT_S: u32 = 30;

pub(super) fn operation_codes(request: &mut Request<'_>) -> Answer {
    let cdb = request.cdb;
    let timeouts = cdb.bit(2, 7);
    let (opcode, action) = (cdb.u8(3), cdb.u16(4));
    let rows = table::rows_of(opcode);
    let has_actions = rows.first().is_some_and(|row| row.service_action.is_some());
    let by_action = || rows.iter().find(|row| row.service_action.map(u16::from) == Some(action));
    let data = match cdb.u8(2) & 0x07 {
        0b000 => all(timeouts),
        0b001 if has_actions => return Err(Sense::cdb_bit(2, 2).into()),
        0b001 => one(rows.first(), timeouts),
        0b010 if !rows.is_empty() && !has_actions => return Err(Sense::cdb_bit(2, 2).into()),
        0b010 => one(by_action(), timeouts),
        // Either way: a command without service actions is asked for with 0.
        0b011 if has_actions => one(by_action(), timeouts),
        0b011 => one(rows.first().filter(|_| action == 0), timeouts),
        _ => return Err(Sense::cdb_bit(2, 2).into()),
    };
    Ok(parameter_data(data, cdb.u32(6)))
}

/// The all_commands parameter data format.
fn all(timeouts: bool) -> Vec<u8> {
    let mut data = vec![0; 4];
    for row in &COMMANDS {
        let [action_high, action_low] = u16::from(row.service_action.unwrap_or(0)).to_be_bytes();
        let flags = u8::from(timeouts) << 1 | u8::from(row.service_action.is_some());
        data.extend([row.opcode, 0, action_high, action_low, 0, flags, 0, row.cdb_len()]);
        if timeouts {
            data.extend(timeouts_descriptor(row));
        }
    }
    set_length_u32(&mut data);
    data
}

/// The one_command parameter data format.
fn one(row: Option<&Row>, timeouts: bool) -> Vec<u8> {
    const NOT_SUPPORTED: u8 = 0b001;
    const AS_IN_THE_STANDARD: u8 = 0b011;
    let Some(row) = row else {
        return vec![0, NOT_SUPPORTED, 0, 0];
    };
    let mut data = vec![0, u8::from(timeouts) << 7 | AS_IN_THE_STANDARD, 0, row.cdb_len()];
    data.extend(row.usage);
    if timeouts {
        data.extend(timeouts_descriptor(row));
    }
    data
}

/// The command timeouts descriptor.
fn timeouts_descriptor(row: &Row) -> [u8; 12] {
    // A whole volume takes as long as it takes, which is not told.
    let timeout_s = if row.opcode == table::SANITIZE { 0 } else { RECOMMENDED_TIMEOUT_S };
    let [a, b, c, d] = timeout_s.to_be_bytes();
    [0, 0x0A, 0, 0, 0, 0, 0, 0, a, b, c, d]
}

pub(super) fn task_management(request: &mut Request<'_>) -> Answer {
    /// ABORT TASK, ABORT TASK SET, CLEAR TASK SET, LOGICAL UNIT RESET, TARGET RESET.
    const FUNCTIONS: u8 = 0x80 | 0x40 | 0x10 | 0x08 | 0x02;
    let allocation_len = request.cdb.u32(6);
    if allocation_len < 4 {
        return Err(Sense::cdb_field(6).into());
    }
    let mut data = vec![FUNCTIONS, 0, 0, 0];
    if request.cdb.bit(2, 7) {
        // REPD: no time-outs are indicated.
        data[3] = 0x0C;
        data.extend([0; 12]);
    }
    Ok(parameter_data(data, allocation_len))
}

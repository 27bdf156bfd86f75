//! The commands of a logical unit: the one table that dispatches them, answers REPORT SUPPORTED
//! OPERATION CODES and names them in logs.
//!
//! Rows are sorted by opcode, then by service action. The CDB usage data has a one for each bit that
//! the command evaluates, except in the opcode and service action, which stand as they are (SPC-4 6.35).
//!
//! A row says as well what the command is to a reservation: `row` and `action` read the medium, `writer` changes it,
//! and what is neither says so by [`Row::with`] (the tables of allowed commands are SPC-4 65 and SBC-3 13).

use super::cdb::Cdb;
use super::request::{Answer, Request};
use super::reservation::{self, Access};
use super::sense::Sense;
use super::{
    capacity, compare_and_write, copy, defects, diagnostics, inquiry, lba_status, log, mode, ports, power,
    provisioning,
};
use super::{
    read_write, report_luns, request_sense, sanitize, supported, verify, write_atomic, write_verify,
};

pub(super) const TEST_UNIT_READY: u8 = 0x00;
pub(super) const REQUEST_SENSE: u8 = 0x03;
pub(super) const INQUIRY: u8 = 0x12;
const START_STOP_UNIT: u8 = 0x1B;
pub(super) const SANITIZE: u8 = 0x48;
pub(super) const EXTENDED_COPY: u8 = 0x83;
pub(super) const RECEIVE_COPY_RESULTS: u8 = 0x84;
pub(super) const REPORT_LUNS: u8 = 0xA0;
const MAINTENANCE_IN: u8 = 0xA3;
const REPORT_TARGET_PORT_GROUPS: u8 = 0x0A;

/// A command.
pub(super) struct Row {
    pub(super) opcode: u8,
    pub(super) service_action: Option<u8>,
    pub(super) name: &'static str,
    /// CDB usage data; its length is the CDB's.
    pub(super) usage: &'static [u8],
    /// It changes the medium, so it is refused while that is write protected.
    pub(super) writes: bool,
    /// What it is to a reservation of another nexus; see [`Row::access`].
    access: Access,
    /// It is not carried out on a standby path, though it may not need the medium (SPC-4 5.15.2.4.4). Others that are
    /// not need the device, which knows.
    pub(super) only_active: bool,
    pub(super) handler: fn(&mut Request<'_>) -> Answer,
}

const fn row(name: &'static str, usage: &'static [u8], handler: fn(&mut Request<'_>) -> Answer) -> Row {
    Row {
        opcode: usage[0],
        service_action: None,
        name,
        usage,
        writes: false,
        access: Access::Read,
        only_active: false,
        handler,
    }
}

const fn writer(name: &'static str, usage: &'static [u8], handler: fn(&mut Request<'_>) -> Answer) -> Row {
    Row {
        opcode: usage[0],
        service_action: None,
        name,
        usage,
        writes: true,
        access: Access::Write,
        only_active: false,
        handler,
    }
}

const fn action(name: &'static str, usage: &'static [u8], handler: fn(&mut Request<'_>) -> Answer) -> Row {
    let service_action = Some(usage[1] & 0x1F);
    Row {
        opcode: usage[0],
        service_action,
        name,
        usage,
        writes: false,
        access: Access::Read,
        only_active: false,
        handler,
    }
}

/// NACA, the one bit of the CONTROL byte that is looked at (SAM-5 5.2).
const C: u8 = 0x04;

#[rustfmt::skip]
pub(super) static COMMANDS: [Row; 67] = [
    row("TEST UNIT READY", &[0x00, 0, 0, 0, 0, C], power::test_unit_ready).with(Access::Status),
    row("REQUEST SENSE", &[0x03, 0x01, 0, 0, 0xFF, C], request_sense::handle).with(Access::Always),
    row("READ(6)", &[0x08, 0x1F, 0xFF, 0xFF, 0xFF, C], read_write::read_6),
    writer("WRITE(6)", &[0x0A, 0x1F, 0xFF, 0xFF, 0xFF, C], read_write::write_6),
    row("INQUIRY", &[0x12, 0x03, 0xFF, 0xFF, 0xFF, C], inquiry::handle).with(Access::Always),
    row("MODE SELECT(6)", &[0x15, 0x13, 0, 0, 0xFF, C], mode::select_6).with(Access::Write),
    row("RESERVE(6)", &[0x16, 0x1F, 0, 0, 0, C], reservation::reserve_6).with(Access::Always).only_active(),
    row("RELEASE(6)", &[0x17, 0x1F, 0, 0, 0, C], reservation::release_6).with(Access::Always).only_active(),
    row("MODE SENSE(6)", &[0x1A, 0x08, 0xFF, 0xFF, 0xFF, C], mode::sense_6),
    row("START STOP UNIT", &[0x1B, 0x01, 0, 0x0F, 0xF7, C], power::start_stop_unit).with(Access::Write).only_active(),
    row("RECEIVE DIAGNOSTIC RESULTS", &[0x1C, 0x01, 0xFF, 0xFF, 0xFF, C], diagnostics::receive_results),
    row("SEND DIAGNOSTIC", &[0x1D, 0xE4, 0, 0xFF, 0xFF, C], diagnostics::send).with(Access::Write),
    row("READ CAPACITY(10)", &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, C], capacity::read_capacity_10).with(Access::Always),
    row("READ(10)", &[0x28, 0xF8, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, C], read_write::read_10),
    writer("WRITE(10)", &[0x2A, 0xF8, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, C], read_write::write_10),
    writer("WRITE AND VERIFY(10)", &[0x2E, 0xF6, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, C], write_verify::write_and_verify_10),
    row("VERIFY(10)", &[0x2F, 0xF6, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, C], verify::verify_10),
    row("PRE-FETCH(10)", &[0x34, 0x02, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, C], read_write::pre_fetch_10).only_active(),
    row("SYNCHRONIZE CACHE(10)", &[0x35, 0x02, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, C], read_write::synchronize_cache_10).with(Access::Write),
    row("READ DEFECT DATA(10)", &[0x37, 0, 0x1F, 0, 0, 0, 0, 0xFF, 0xFF, C], defects::read_defect_data_10).only_active(),
    writer("WRITE SAME(10)", &[0x41, 0xFE, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, C], provisioning::write_same_10),
    writer("UNMAP", &[0x42, 0x01, 0, 0, 0, 0, 0, 0xFF, 0xFF, C], provisioning::unmap),
    action("SANITIZE, OVERWRITE", &[0x48, 0xE1, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, C], sanitize::overwrite).writing().only_active(),
    action("SANITIZE, BLOCK ERASE", &[0x48, 0xE2, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, C], sanitize::block_erase).writing().only_active(),
    action("SANITIZE, EXIT FAILURE MODE", &[0x48, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, C], sanitize::exit_failure_mode).with(Access::Write).only_active(),
    row("LOG SENSE", &[0x4D, 0x03, 0xFF, 0xFF, 0, 0xFF, 0xFF, 0xFF, 0xFF, C], log::sense).with(Access::Status),
    row("MODE SELECT(10)", &[0x55, 0x13, 0, 0, 0, 0, 0, 0xFF, 0xFF, C], mode::select_10).with(Access::Write),
    row("RESERVE(10)", &[0x56, 0x13, 0, 0, 0, 0, 0, 0, 0, C], reservation::reserve_10).with(Access::Always).only_active(),
    row("RELEASE(10)", &[0x57, 0x13, 0, 0, 0, 0, 0, 0, 0, C], reservation::release_10).with(Access::Always).only_active(),
    row("MODE SENSE(10)", &[0x5A, 0x18, 0xFF, 0xFF, 0, 0, 0, 0xFF, 0xFF, C], mode::sense_10),
    action("PERSISTENT RESERVE IN, READ KEYS", &[0x5E, 0x00, 0, 0, 0, 0, 0, 0xFF, 0xFF, C], reservation::read_keys).with(Access::Persistent),
    action("PERSISTENT RESERVE IN, READ RESERVATION", &[0x5E, 0x01, 0, 0, 0, 0, 0, 0xFF, 0xFF, C], reservation::read_reservation).with(Access::Persistent),
    action("PERSISTENT RESERVE IN, REPORT CAPABILITIES", &[0x5E, 0x02, 0, 0, 0, 0, 0, 0xFF, 0xFF, C], reservation::report_capabilities).with(Access::Persistent),
    action("PERSISTENT RESERVE IN, READ FULL STATUS", &[0x5E, 0x03, 0, 0, 0, 0, 0, 0xFF, 0xFF, C], reservation::read_full_status).with(Access::Persistent),
    action("PERSISTENT RESERVE OUT, REGISTER", &[0x5F, 0x00, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, C], reservation::register).with(Access::Persistent),
    action("PERSISTENT RESERVE OUT, RESERVE", &[0x5F, 0x01, 0xFF, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, C], reservation::reserve).with(Access::Persistent),
    action("PERSISTENT RESERVE OUT, RELEASE", &[0x5F, 0x02, 0xFF, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, C], reservation::release).with(Access::Persistent),
    action("PERSISTENT RESERVE OUT, CLEAR", &[0x5F, 0x03, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, C], reservation::clear).with(Access::Persistent),
    action("PERSISTENT RESERVE OUT, PREEMPT", &[0x5F, 0x04, 0xFF, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, C], reservation::preempt).with(Access::Persistent),
    action("PERSISTENT RESERVE OUT, PREEMPT AND ABORT", &[0x5F, 0x05, 0xFF, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, C], reservation::preempt_and_abort).with(Access::Persistent),
    action("PERSISTENT RESERVE OUT, REGISTER AND IGNORE EXISTING KEY", &[0x5F, 0x06, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, C], reservation::register_and_ignore).with(Access::Persistent),
    action("PERSISTENT RESERVE OUT, REGISTER AND MOVE", &[0x5F, 0x07, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, C], reservation::register_and_move).with(Access::Persistent),
    action("EXTENDED COPY(LID1)", &[0x83, 0x00, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, C], copy::extended_copy).with(Access::Write).only_active(),
    action("RECEIVE COPY STATUS(LID1)", &[0x84, 0x00, 0xFF, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, C], copy::status),
    action("RECEIVE COPY OPERATING PARAMETERS", &[0x84, 0x03, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, C], copy::operating_parameters),
    action("RECEIVE COPY FAILURE DETAILS(LID1)", &[0x84, 0x04, 0xFF, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, C], copy::failure_details),
    row("READ(16)", &[0x88, 0xF8, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, C], read_write::read_16),
    writer("COMPARE AND WRITE", &[0x89, 0xF8, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0xFF, 0, C], compare_and_write::compare_and_write),
    writer("WRITE(16)", &[0x8A, 0xF8, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, C], read_write::write_16),
    writer("ORWRITE(16)", &[0x8B, 0xF8, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, C], read_write::or_write_16),
    writer("WRITE AND VERIFY(16)", &[0x8E, 0xF6, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, C], write_verify::write_and_verify_16),
    row("VERIFY(16)", &[0x8F, 0xF6, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, C], verify::verify_16),
    row("PRE-FETCH(16)", &[0x90, 0x02, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, C], read_write::pre_fetch_16).only_active(),
    row("SYNCHRONIZE CACHE(16)", &[0x91, 0x02, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, C], read_write::synchronize_cache_16).with(Access::Write),
    writer("WRITE SAME(16)", &[0x93, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, C], provisioning::write_same_16),
    writer("WRITE ATOMIC(16)", &[0x9C, 0xF8, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, C], write_atomic::write_atomic_16),
    action("READ CAPACITY(16)", &[0x9E, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, C], capacity::read_capacity_16).with(Access::Always),
    action("GET LBA STATUS", &[0x9E, 0x12, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, C], lba_status::get_lba_status),
    row("REPORT LUNS", &[0xA0, 0, 0xFF, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, C], report_luns::handle).with(Access::Always),
    action("REPORT TARGET PORT GROUPS", &[0xA3, 0xEA, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, C], ports::report_target_port_groups).with(Access::Always),
    action("REPORT SUPPORTED OPERATION CODES", &[0xA3, 0x0C, 0x87, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, C], supported::operation_codes),
    action("REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS", &[0xA3, 0x0D, 0x80, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, C], supported::task_management),
    row("READ(12)", &[0xA8, 0xF8, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, C], read_write::read_12),
    writer("WRITE(12)", &[0xAA, 0xF8, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, C], read_write::write_12),
    writer("WRITE AND VERIFY(12)", &[0xAE, 0xF6, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, C], write_verify::write_and_verify_12),
    row("VERIFY(12)", &[0xAF, 0xF6, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, C], verify::verify_12),
    row("READ DEFECT DATA(12)", &[0xB7, 0x1F, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, C], defects::read_defect_data_12).only_active(),
];

/// Opcode -> its first row, or `ABSENT`.
static FIRST_ROW: [u8; 256] = first_rows();
const ABSENT: u8 = u8::MAX;

const fn first_rows() -> [u8; 256] {
    let mut first = [ABSENT; 256];
    let mut index = COMMANDS.len();
    while index > 0 {
        index -= 1;
        first[COMMANDS[index].opcode as usize] = index as u8;
    }
    first
}

/// The row of a CDB whose length, service action and NACA bit are in order.
pub(super) fn find(cdb: &Cdb) -> Result<&'static Row, Sense> {
    if cdb.len() == 0 {
        return Err(Sense::INVALID_OPCODE);
    }
    let rows = rows_of(cdb.opcode());
    let row = match rows {
        [] => return Err(Sense::INVALID_OPCODE),
        [row] if row.service_action.is_none() => row,
        // A service action that is not there is a bad field, not a bad opcode (SPC-4 4.2.4).
        rows => rows
            .iter()
            .find(|row| row.service_action == Some(cdb.service_action()))
            .ok_or(Sense::cdb_bit(1, 4))?,
    };
    if cdb.len() < row.usage.len() {
        return Err(Sense::INVALID_CDB);
    }
    let control = row.cdb_len() - 1;
    if cdb.bit(control.into(), 2) {
        // NACA without support for ACA (SAM-5 5.2).
        return Err(Sense::cdb_bit(control.into(), 2));
    }
    Ok(row)
}

/// The rows that share an opcode.
pub(super) fn rows_of(opcode: u8) -> &'static [Row] {
    let first = FIRST_ROW[usize::from(opcode)];
    if first == ABSENT {
        return &[];
    }
    let rest = &COMMANDS[usize::from(first)..];
    let len = rest.iter().take_while(|row| row.opcode == opcode).count();
    &rest[..len]
}

/// What logs call a command.
pub(super) fn name(opcode: u8, service_action: u8) -> &'static str {
    match rows_of(opcode) {
        [] => "unknown",
        [row] => row.name,
        rows => rows
            .iter()
            .find(|row| row.service_action == Some(service_action))
            .map_or("unknown service action", |row| row.name),
    }
}

/// Whether the command asks for the state of the paths, of which its answer tells.
pub(super) fn asks_for_access(cdb: &Cdb) -> bool {
    cdb.opcode() == MAINTENANCE_IN && cdb.service_action() == REPORT_TARGET_PORT_GROUPS
}

/// Commands that are carried out although a unit attention condition is pending (SAM-5 5.14).
pub(super) fn precedes_attention(opcode: u8) -> bool {
    matches!(opcode, INQUIRY | REPORT_LUNS | REQUEST_SENSE)
}

impl Row {
    /// For what neither reads the medium nor is a [`writer`]: what it is to a reservation of another nexus.
    const fn with(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    /// It is not carried out on a standby path.
    const fn only_active(mut self) -> Self {
        self.only_active = true;
        self
    }

    /// It changes the medium.
    const fn writing(mut self) -> Self {
        self.writes = true;
        self.access = Access::Write;
        self
    }

    /// What the command is to a reservation of another nexus.
    pub(super) fn access(&self, cdb: &Cdb) -> Access {
        // To start a unit that is started goes through (SBC-3 table 13).
        let starts = self.opcode == START_STOP_UNIT && cdb.bit(4, 0) && cdb.u8(4) >> 4 == 0;
        if starts { Access::Status } else { self.access }
    }

    /// CDB LENGTH.
    pub(super) fn cdb_len(&self) -> u8 {
        u8::try_from(self.usage.len()).expect("a CDB of the table has at most 16 bytes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards dispatch: rows are sorted, so that those of an opcode lie together; lengths fit the
    /// opcode's group (SPC-4 4.2.5.1).
    #[test]
    fn rows_are_well_formed() {
        for pair in COMMANDS.windows(2) {
            let key = |row: &Row| (row.opcode, row.service_action);
            assert!(key(&pair[0]) < key(&pair[1]), "{} {}", pair[0].name, pair[1].name);
            assert!(pair[0].opcode != pair[1].opcode || pair[0].service_action.is_some());
        }
        for row in &COMMANDS {
            let group_len = match row.opcode >> 5 {
                0 => 6,
                1 | 2 => 10,
                4 => 16,
                5 => 12,
                group => panic!("{}: group {group}", row.name),
            };
            assert_eq!(row.usage.len(), group_len, "{}", row.name);
        }
    }

    /// Guards the index: every row is found by its own CDB, every other opcode is absent.
    #[test]
    fn find_by_opcode() {
        for row in &COMMANDS {
            let mut cdb = row.usage.to_vec();
            cdb[1] = row.service_action.unwrap_or(0);
            cdb[row.usage.len() - 1] = 0;
            assert_eq!(find(&Cdb::new(&cdb)).map(|found| found.name), Ok(row.name));
        }
        for opcode in 0..=u8::MAX {
            let known = COMMANDS.iter().any(|row| row.opcode == opcode);
            assert_eq!(rows_of(opcode).is_empty(), !known);
        }
    }
}

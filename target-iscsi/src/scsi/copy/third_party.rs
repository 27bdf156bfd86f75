//! The Third-party Copy page of vital product data, 8Fh (SPC-4 7.8.17): what the copy manager can do.

use super::results::data_granularity;
use super::{
    CONCURRENT_MAX, DESCRIPTOR_TYPES, DESCRIPTORS_BYTES_MAX, SEGMENT_DATA_BYTES_MAX, SEGMENTS_MAX,
    TARGETS_MAX, resolve,
};
use crate::scsi::table;
use crate::scsi::{LogicalUnit, TargetView};

const SUPPORTED_COMMANDS: u16 = 0x0001;
const PARAMETER_DATA: u16 = 0x0004;
const SUPPORTED_DESCRIPTORS: u16 = 0x0008;
const SUPPORTED_CSCD_IDS: u16 = 0x000C;
const GENERAL_COPY_OPERATIONS: u16 = 0x8001;

/// What follows the page's header.
pub(in crate::scsi) fn third_party_copy(_: &TargetView, unit: &LogicalUnit) -> Vec<u8> {
    let mut body = descriptor(SUPPORTED_COMMANDS, supported_commands());

    let mut parameters = vec![0; 4];
    parameters.extend((TARGETS_MAX as u16).to_be_bytes());
    parameters.extend((SEGMENTS_MAX as u16).to_be_bytes());
    parameters.extend((DESCRIPTORS_BYTES_MAX as u32).to_be_bytes());
    parameters.resize(28, 0); // no inline data
    body.extend(descriptor(PARAMETER_DATA, parameters));

    let mut descriptors = vec![DESCRIPTOR_TYPES.len() as u8];
    descriptors.extend(DESCRIPTOR_TYPES);
    body.extend(descriptor(SUPPORTED_DESCRIPTORS, descriptors));

    let mut ids = vec![0, 2];
    ids.extend(resolve::ITSELF.to_be_bytes());
    body.extend(descriptor(SUPPORTED_CSCD_IDS, ids));

    let mut general = Vec::new();
    for field in [CONCURRENT_MAX.into(), CONCURRENT_MAX.into(), SEGMENT_DATA_BYTES_MAX] {
        general.extend(u32::to_be_bytes(field));
    }
    general.push(data_granularity(unit.block_bytes));
    general.resize(32, 0);
    body.extend(descriptor(GENERAL_COPY_OPERATIONS, general));
    body
}

/// The service actions of the two operation codes, as the table of commands has them.
fn supported_commands() -> Vec<u8> {
    let mut list = vec![0];
    for opcode in [table::EXTENDED_COPY, table::RECEIVE_COPY_RESULTS] {
        let actions: Vec<u8> = table::rows_of(opcode).iter().filter_map(|row| row.service_action).collect();
        list.extend([opcode, actions.len() as u8]);
        list.extend(actions);
    }
    list[0] = list.len() as u8 - 1;
    list
}

/// A third-party copy descriptor, whole words.
fn descriptor(kind: u16, mut value: Vec<u8>) -> Vec<u8> {
    value.resize(value.len().next_multiple_of(4), 0);
    let len = u16::try_from(value.len()).unwrap_or(u16::MAX);
    let mut descriptor = [kind.to_be_bytes(), len.to_be_bytes()].concat();
    descriptor.extend(value);
    descriptor
}

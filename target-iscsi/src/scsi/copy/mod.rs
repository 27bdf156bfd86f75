//! Third-party copy (SPC-4 5.16): EXTENDED COPY(LID1) moves data between logical units without
//! passing it through the initiator, RECEIVE COPY RESULTS tells what became of it.
//!
//! ```text
//! parameter list --List::parse--> List --resolve, by what the nexus sees--> spans --Copy--> commands
//! ```
//!
//! The copy manager acts for the nexus that sent the command and has no rights of its own: a
//! designator is looked up among the logical units that this nexus sees through this target and
//! nowhere else, and every single command to a device is checked again when it is submitted.
//!
//! Everything that can be known beforehand is checked before the first byte moves. One command is
//! at a device at a time; between two of them the copy can be aborted.

mod aborted;
mod execute;
mod list;
mod pieces;
mod records;
mod resolve;
mod results;
mod third_party;

use lunette_proto::limits::SESSION_COMMANDS_MAX;

use super::request::{Answer, Plan, Request};
use super::sense::Sense;
use super::task::Job;

pub(super) use aborted::CopyAborted;
pub(super) use execute::Copy;
pub(super) use records::Records;
pub(super) use results::{failure_details, operating_parameters, status};
pub(super) use third_party::third_party_copy;

/// MAXIMUM CSCD DESCRIPTOR COUNT.
const TARGETS_MAX: usize = 8;
/// MAXIMUM SEGMENT DESCRIPTOR COUNT.
const SEGMENTS_MAX: usize = 8;
/// MAXIMUM DESCRIPTOR LIST LENGTH: as many of both as there may be.
const DESCRIPTORS_BYTES_MAX: usize = TARGETS_MAX * list::TARGET_BYTES + SEGMENTS_MAX * list::SEGMENT_BYTES;
/// MAXIMUM SEGMENT LENGTH. With [`SEGMENTS_MAX`] it bounds the work of one command, which must end
/// before its initiator gives up.
const SEGMENT_DATA_BYTES_MAX: u32 = 64 << 20;
/// TOTAL CONCURRENT COPIES, as many as a session may have commands.
const CONCURRENT_MAX: u8 = SESSION_COMMANDS_MAX as u8;
const _: () = assert!(SESSION_COMMANDS_MAX <= u8::MAX as u32);
/// The descriptor types that are understood, in ascending order.
const DESCRIPTOR_TYPES: [u8; 2] = [list::BLOCK_TO_BLOCK, list::IDENTIFICATION];

/// A longer list is refused unseen: it holds either too many descriptors or inline data.
const LIST_BYTES_MAX: u32 = 64 << 10;

/// Whether bytes are taken for a parameter list.
pub(super) fn is_list(bytes: &[u8]) -> bool {
    u32::try_from(bytes.len()).is_ok_and(|len| list::List::parse(bytes, len).is_ok())
}

/// EXTENDED COPY(LID1) (SPC-4 6.4).
pub(super) fn extended_copy(request: &mut Request<'_>) -> Answer {
    let len = request.cdb.u32(10);
    match len {
        // Nothing to do is not an error.
        0 => Ok(Plan::Good),
        len if (len as usize) < list::HEADER_BYTES || len > LIST_BYTES_MAX => {
            Err(Sense::PARAMETER_LIST_LENGTH.into())
        }
        _ => {
            let unit = request.nexus.unit(request.lun);
            let copy = Copy::new(request.lun, len, request.unit.shared.modes.sense_format(), unit.copies());
            Ok(Plan::Collect(Job::Copy(Box::new(copy)), len))
        }
    }
}

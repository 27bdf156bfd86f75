//! One command in execution.

use bytes::Bytes;
use lunette_volume::device::{Command, Data, Outcome};

use super::{Nexus, TargetView};

/// What a task wants next.
#[derive(Debug)]
pub enum Step {
    /// Collect Data-Out: the CDB asks for `len` bytes. The session calls [`Task::data_out`] with what
    /// the initiator really sends: min(`len`, expected data transfer length).
    DataOut {
        /// Bytes that the CDB asks for, not 0.
        len: u32,
    },
    /// Submit to the logical unit's device; then call [`Task::completed`].
    Submit(Command),
    /// The end.
    Done(Response),
}

/// The end of a command.
#[derive(Clone, Debug)]
pub struct Response {
    /// SAM-5 5.3.
    pub status: u8,
    /// Sense data in the format that the Control mode page asks for; empty unless CHECK CONDITION.
    pub sense: Bytes,
    /// Data-In, already cut to the allocation length of the CDB (not to the expected length).
    pub data_in: Data,
    /// Bytes that the CDB would transfer in its direction: the session computes the residual from
    /// this and the expected data transfer length (RFC 7143 11.4.5.1, 11.4.5.2).
    pub transfer_len: u64,
}

/// A command in execution.
pub struct Task {}

impl Task {
    /// Starts a command on `lun` (the 8-byte SAM LUN of the PDU) of what the nexus sees. `cdb` is
    /// what the initiator sent, 16 bytes or more with an extended CDB.
    pub fn start(_view: &TargetView, _nexus: &mut Nexus, _lun: u64, _cdb: &[u8]) -> (Self, Step) {
        unreachable!()
    }

    /// The Data-Out that arrived.
    pub fn data_out(&mut self, _data: Bytes) -> Step {
        unreachable!()
    }

    /// What came of the command that [`Step::Submit`] named.
    pub fn completed(&mut self, _outcome: Outcome) -> Step {
        unreachable!()
    }
}

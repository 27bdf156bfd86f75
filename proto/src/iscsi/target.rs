//! PDUs that targets send (RFC 7143 11.4 to 11.19).
//!
//! `stat_sn`, `exp_cmd_sn` and `max_cmd_sn` lie at the same place in all of them ([`Numbers`]), so
//! that they can be written last, when the PDU leaves.

use super::Serial;
use super::bhs::{Be8, Be16, Be32, Be64, Bhs, Bits, Bytes, Field, Flag, Sn, pdu};

/// The sequence numbers that every target PDU carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Of this status, or of the next one where the PDU carries no status.
    pub stat_sn: Serial,
    /// The next CmdSN that is expected.
    pub exp_cmd_sn: Serial,
    /// The last CmdSN that is accepted.
    pub max_cmd_sn: Serial,
}

impl Numbers {
    /// Reads them.
    #[must_use]
    pub fn decode(bhs: &Bhs) -> Self {
        Self { stat_sn: Sn(24).get(&bhs.0), exp_cmd_sn: Sn(28).get(&bhs.0), max_cmd_sn: Sn(32).get(&bhs.0) }
    }

    /// Writes them.
    pub fn stamp(&self, bhs: &mut Bhs) {
        Sn(24).put(&mut bhs.0, self.stat_sn);
        Sn(28).put(&mut bhs.0, self.exp_cmd_sn);
        Sn(32).put(&mut bhs.0, self.max_cmd_sn);
    }
}

pdu! {
    /// NOP-In (RFC 7143 11.19): a ping, or the answer to one.
    NopIn, opcode 0x20, also 1 & 0x80;
    /// Logical unit, of a ping.
    lun: u64 = Be64(8),
    /// Echoed from the NOP-Out; none: a ping of the target.
    task_tag: u32 = Be32(16),
    /// None: no answer is wanted.
    transfer_tag: u32 = Be32(20),
}

pdu! {
    /// SCSI Response (RFC 7143 11.4).
    ScsiResponse, opcode 0x21, also 1 & 0x80;
    /// O: the command would have moved `residual` bytes more than were expected.
    overflow: bool = Flag(1, 0x04),
    /// U: the command moved `residual` bytes less than were expected.
    underflow: bool = Flag(1, 0x02),
    /// 0: completed at target.
    response: u8 = Be8(2),
    /// SCSI status.
    status: u8 = Be8(3),
    /// The command's.
    task_tag: u32 = Be32(16),
    /// R2Ts and Data-Ins that were sent for the command.
    exp_data_sn: Serial = Sn(36),
    /// See the flags.
    residual: u32 = Be32(44),
}

pdu! {
    /// Task Management Function Response (RFC 7143 11.6).
    TaskManagementResponse, opcode 0x22, also 1 & 0x80;
    /// `codes::tmf_response`.
    response: u8 = Be8(2),
    /// The request's.
    task_tag: u32 = Be32(16),
}

pdu! {
    /// Login Response (RFC 7143 11.13).
    LoginResponse, opcode 0x23;
    /// T: the stage changes.
    transit: bool = Flag(1, 0x80),
    /// C: the text goes on in the next response.
    continued: bool = Flag(1, 0x40),
    /// CSG.
    stage: u8 = Bits(1, 0x0c),
    /// NSG, if `transit`.
    next_stage: u8 = Bits(1, 0x03),
    /// Highest version that the target speaks.
    version_max: u8 = Be8(2),
    /// The version of this connection.
    version_active: u8 = Be8(3),
    /// Echoed.
    isid: [u8; 6] = Bytes::<6>(8),
    /// Echoed, but for the last response: the session's.
    tsih: u16 = Be16(14),
    /// Echoed.
    task_tag: u32 = Be32(16),
    /// Status-Class and Status-Detail: `codes::login`.
    status: u16 = Be16(36),
}

pdu! {
    /// Text Response (RFC 7143 11.11).
    TextResponse, opcode 0x24;
    /// F: the target has no more to say.
    is_final: bool = Flag(1, 0x80),
    /// C: the text goes on in the next response.
    continued: bool = Flag(1, 0x40),
    /// Logical unit, if `transfer_tag` needs one.
    lun: u64 = Be64(8),
    /// Echoed.
    task_tag: u32 = Be32(16),
    /// To be echoed by the next request, or none at the end.
    transfer_tag: u32 = Be32(20),
}

pdu! {
    /// SCSI Data-In (RFC 7143 11.7).
    DataIn, opcode 0x25;
    /// F: the last of its sequence.
    is_final: bool = Flag(1, 0x80),
    /// O, if `has_status`.
    overflow: bool = Flag(1, 0x04),
    /// U, if `has_status`.
    underflow: bool = Flag(1, 0x02),
    /// S: carries the command's status as well.
    has_status: bool = Flag(1, 0x01),
    /// SCSI status, if `has_status`.
    status: u8 = Be8(3),
    /// Logical unit, if `transfer_tag` is given.
    lun: u64 = Be64(8),
    /// The command's.
    task_tag: u32 = Be32(16),
    /// None with ErrorRecoveryLevel 0.
    transfer_tag: u32 = Be32(20),
    /// Number within the command, from 0.
    data_sn: Serial = Sn(36),
    /// Offset in the command's data.
    offset: u32 = Be32(40),
    /// See the flags.
    residual: u32 = Be32(44),
}

pdu! {
    /// Logout Response (RFC 7143 11.15).
    LogoutResponse, opcode 0x26, also 1 & 0x80;
    /// `codes::logout`.
    response: u8 = Be8(2),
    /// The request's.
    task_tag: u32 = Be32(16),
    /// Seconds to wait before a reconnect.
    time2wait: u16 = Be16(40),
    /// Seconds that tasks are kept after that.
    time2retain: u16 = Be16(42),
}

pdu! {
    /// Ready To Transfer (RFC 7143 11.8).
    R2t, opcode 0x31, also 1 & 0x80;
    /// Logical unit of the command.
    lun: u64 = Be64(8),
    /// The command's.
    task_tag: u32 = Be32(16),
    /// To be echoed by its Data-Outs.
    transfer_tag: u32 = Be32(20),
    /// Number within the command, from 0.
    r2t_sn: Serial = Sn(36),
    /// Offset in the command's data.
    offset: u32 = Be32(40),
    /// Bytes that are asked for.
    desired_len: u32 = Be32(44),
}

pdu! {
    /// Asynchronous Message (RFC 7143 11.9).
    AsyncMessage, opcode 0x32, also 1 & 0x80;
    /// Logical unit, of a SCSI event.
    lun: u64 = Be64(8),
    /// Always none.
    task_tag: u32 = Be32(16),
    /// `codes::event`.
    event: u8 = Be8(36),
    /// Vendor's code.
    vendor_code: u8 = Be8(37),
    /// Depends on the event.
    parameter1: u16 = Be16(38),
    /// Depends on the event.
    parameter2: u16 = Be16(40),
    /// Depends on the event.
    parameter3: u16 = Be16(42),
}

pdu! {
    /// Reject (RFC 7143 11.17); its data is the header that was rejected.
    Reject, opcode 0x3f, also 1 & 0x80;
    /// `codes::reject`.
    reason: u8 = Be8(2),
    /// Always none.
    task_tag: u32 = Be32(16),
    /// For rejected SNACKs.
    data_sn: Serial = Sn(36),
}

/// A PDU from a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// 0x20
    NopIn(NopIn),
    /// 0x21
    ScsiResponse(ScsiResponse),
    /// 0x22
    TaskManagement(TaskManagementResponse),
    /// 0x23
    Login(LoginResponse),
    /// 0x24
    Text(TextResponse),
    /// 0x25
    DataIn(DataIn),
    /// 0x26
    Logout(LogoutResponse),
    /// 0x31
    R2t(R2t),
    /// 0x32
    Async(AsyncMessage),
    /// 0x3f
    Reject(Reject),
    /// Any other opcode.
    Unknown(u8),
}

impl Reply {
    /// Reads a header.
    #[must_use]
    pub fn decode(bhs: &Bhs) -> Self {
        match bhs.opcode() {
            NopIn::OPCODE => Self::NopIn(NopIn::decode(bhs)),
            ScsiResponse::OPCODE => Self::ScsiResponse(ScsiResponse::decode(bhs)),
            TaskManagementResponse::OPCODE => Self::TaskManagement(TaskManagementResponse::decode(bhs)),
            LoginResponse::OPCODE => Self::Login(LoginResponse::decode(bhs)),
            TextResponse::OPCODE => Self::Text(TextResponse::decode(bhs)),
            DataIn::OPCODE => Self::DataIn(DataIn::decode(bhs)),
            LogoutResponse::OPCODE => Self::Logout(LogoutResponse::decode(bhs)),
            R2t::OPCODE => Self::R2t(R2t::decode(bhs)),
            AsyncMessage::OPCODE => Self::Async(AsyncMessage::decode(bhs)),
            Reject::OPCODE => Self::Reject(Reject::decode(bhs)),
            opcode => Self::Unknown(opcode),
        }
    }
}

//! PDUs that initiators send (RFC 7143 11.3 to 11.18).

use super::Serial;
use super::bhs::{Be8, Be16, Be32, Be64, Bhs, Bits, Bytes, Field, Flag, Sn, pdu};

pdu! {
    /// NOP-Out (RFC 7143 11.18): a ping, or the answer to one.
    NopOut, opcode 0x00, also 1 & 0x80;
    /// Executed on arrival, CmdSN not advanced.
    immediate: bool = Flag(0, 0x40),
    /// Echoed from the NOP-In that it answers.
    lun: u64 = Be64(8),
    /// None: no answer is wanted.
    task_tag: u32 = Be32(16),
    /// Echoed from the NOP-In that it answers, or none.
    transfer_tag: u32 = Be32(20),
    /// Command sequence number.
    cmd_sn: Serial = Sn(24),
    /// Acknowledges status before it.
    exp_stat_sn: Serial = Sn(28),
}

pdu! {
    /// SCSI Command (RFC 7143 11.3).
    ScsiCommand, opcode 0x01;
    /// Executed on arrival, CmdSN not advanced.
    immediate: bool = Flag(0, 0x40),
    /// No unsolicited Data-Out follows.
    is_final: bool = Flag(1, 0x80),
    /// The initiator expects Data-In.
    read: bool = Flag(1, 0x40),
    /// The initiator has Data-Out.
    write: bool = Flag(1, 0x20),
    /// Task attribute (RFC 7143 11.3.1).
    attribute: u8 = Bits(1, 0x07),
    /// Logical unit.
    lun: u64 = Be64(8),
    /// Initiator task tag.
    task_tag: u32 = Be32(16),
    /// Bytes that the initiator expects to move.
    expected_len: u32 = Be32(20),
    /// Command sequence number.
    cmd_sn: Serial = Sn(24),
    /// Acknowledges status before it.
    exp_stat_sn: Serial = Sn(28),
    /// The first 16 bytes of the CDB; the rest is in an AHS.
    cdb: [u8; 16] = Bytes::<16>(32),
}

pdu! {
    /// Task Management Function Request (RFC 7143 11.5).
    TaskManagement, opcode 0x02, also 1 & 0x80;
    /// Executed on arrival, CmdSN not advanced.
    immediate: bool = Flag(0, 0x40),
    /// Which function: `codes::tmf`.
    function: u8 = Bits(1, 0x7f),
    /// Logical unit, where the function addresses one.
    lun: u64 = Be64(8),
    /// Initiator task tag.
    task_tag: u32 = Be32(16),
    /// The task that ABORT TASK means.
    referenced_tag: u32 = Be32(20),
    /// Command sequence number.
    cmd_sn: Serial = Sn(24),
    /// Acknowledges status before it.
    exp_stat_sn: Serial = Sn(28),
    /// CmdSN of the task that ABORT TASK means.
    ref_cmd_sn: Serial = Sn(32),
    /// For TASK REASSIGN.
    exp_data_sn: Serial = Sn(36),
}

pdu! {
    /// Login Request (RFC 7143 11.12).
    LoginRequest, opcode 0x03;
    /// Always set by a correct initiator.
    immediate: bool = Flag(0, 0x40),
    /// T: ready to go to `next_stage`.
    transit: bool = Flag(1, 0x80),
    /// C: the text goes on in the next request.
    continued: bool = Flag(1, 0x40),
    /// CSG.
    stage: u8 = Bits(1, 0x0c),
    /// NSG, if `transit`.
    next_stage: u8 = Bits(1, 0x03),
    /// Highest version that the initiator speaks.
    version_max: u8 = Be8(2),
    /// Lowest version that the initiator speaks.
    version_min: u8 = Be8(3),
    /// Initiator part of the session's identity.
    isid: [u8; 6] = Bytes::<6>(8),
    /// 0, or the session that the connection joins.
    tsih: u16 = Be16(14),
    /// Initiator task tag, the same throughout a login.
    task_tag: u32 = Be32(16),
    /// Connection id.
    cid: u16 = Be16(20),
    /// The first CmdSN of the session.
    cmd_sn: Serial = Sn(24),
    /// Acknowledges status before it.
    exp_stat_sn: Serial = Sn(28),
}

pdu! {
    /// Text Request (RFC 7143 11.10).
    TextRequest, opcode 0x04;
    /// Executed on arrival, CmdSN not advanced.
    immediate: bool = Flag(0, 0x40),
    /// F: the initiator has no more to negotiate.
    is_final: bool = Flag(1, 0x80),
    /// C: the text goes on in the next request.
    continued: bool = Flag(1, 0x40),
    /// Echoed from the target.
    lun: u64 = Be64(8),
    /// Initiator task tag.
    task_tag: u32 = Be32(16),
    /// Echoed from the target, or none at the start.
    transfer_tag: u32 = Be32(20),
    /// Command sequence number.
    cmd_sn: Serial = Sn(24),
    /// Acknowledges status before it.
    exp_stat_sn: Serial = Sn(28),
}

pdu! {
    /// SCSI Data-Out (RFC 7143 11.7).
    DataOut, opcode 0x05;
    /// F: the last of its sequence.
    is_final: bool = Flag(1, 0x80),
    /// Echoed from the R2T.
    lun: u64 = Be64(8),
    /// The command that it belongs to.
    task_tag: u32 = Be32(16),
    /// Echoed from the R2T; none: unsolicited.
    transfer_tag: u32 = Be32(20),
    /// Acknowledges status before it.
    exp_stat_sn: Serial = Sn(28),
    /// Number within its sequence, from 0.
    data_sn: Serial = Sn(36),
    /// Offset in the command's data.
    offset: u32 = Be32(40),
}

pdu! {
    /// Logout Request (RFC 7143 11.14).
    LogoutRequest, opcode 0x06, also 1 & 0x80;
    /// Executed on arrival, CmdSN not advanced.
    immediate: bool = Flag(0, 0x40),
    /// Close the session (0), the connection (1), or remove it for recovery (2).
    reason: u8 = Bits(1, 0x7f),
    /// Initiator task tag.
    task_tag: u32 = Be32(16),
    /// The connection that is meant.
    cid: u16 = Be16(20),
    /// Command sequence number.
    cmd_sn: Serial = Sn(24),
    /// Acknowledges status before it.
    exp_stat_sn: Serial = Sn(28),
}

pdu! {
    /// SNACK Request (RFC 7143 11.16); only with an ErrorRecoveryLevel above 0.
    Snack, opcode 0x10, also 1 & 0x80;
    /// What is asked for again.
    kind: u8 = Bits(1, 0x0f),
    /// Logical unit.
    lun: u64 = Be64(8),
    /// Initiator task tag.
    task_tag: u32 = Be32(16),
    /// Target transfer tag or SNACK tag.
    transfer_tag: u32 = Be32(20),
    /// Acknowledges status before it.
    exp_stat_sn: Serial = Sn(28),
    /// First number that is missing.
    begin: u32 = Be32(40),
    /// How many.
    count: u32 = Be32(44),
}

/// A PDU from an initiator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// 0x00
    NopOut(NopOut),
    /// 0x01
    ScsiCommand(ScsiCommand),
    /// 0x02
    TaskManagement(TaskManagement),
    /// 0x03
    Login(LoginRequest),
    /// 0x04
    Text(TextRequest),
    /// 0x05
    DataOut(DataOut),
    /// 0x06
    Logout(LogoutRequest),
    /// 0x10
    Snack(Snack),
    /// Any other opcode.
    Unknown(u8),
}

impl Request {
    /// Reads a header.
    #[must_use]
    pub fn decode(bhs: &Bhs) -> Self {
        match bhs.opcode() {
            NopOut::OPCODE => Self::NopOut(NopOut::decode(bhs)),
            ScsiCommand::OPCODE => Self::ScsiCommand(ScsiCommand::decode(bhs)),
            TaskManagement::OPCODE => Self::TaskManagement(TaskManagement::decode(bhs)),
            LoginRequest::OPCODE => Self::Login(LoginRequest::decode(bhs)),
            TextRequest::OPCODE => Self::Text(TextRequest::decode(bhs)),
            DataOut::OPCODE => Self::DataOut(DataOut::decode(bhs)),
            LogoutRequest::OPCODE => Self::Logout(LogoutRequest::decode(bhs)),
            Snack::OPCODE => Self::Snack(Snack::decode(bhs)),
            opcode => Self::Unknown(opcode),
        }
    }

    /// CmdSN and the immediate bit, of the requests that bear them.
    #[must_use]
    pub fn command_order(&self) -> Option<(Serial, bool)> {
        match self {
            Self::NopOut(pdu) => Some((pdu.cmd_sn, pdu.immediate)),
            Self::ScsiCommand(pdu) => Some((pdu.cmd_sn, pdu.immediate)),
            Self::TaskManagement(pdu) => Some((pdu.cmd_sn, pdu.immediate)),
            Self::Text(pdu) => Some((pdu.cmd_sn, pdu.immediate)),
            Self::Logout(pdu) => Some((pdu.cmd_sn, pdu.immediate)),
            Self::Login(_) | Self::DataOut(_) | Self::Snack(_) | Self::Unknown(_) => None,
        }
    }
}

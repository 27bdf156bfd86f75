//! Numbers that RFC 7143 gives a name.

/// Task management functions (RFC 7143 11.5.1).
pub mod tmf {
    /// ABORT TASK
    pub const ABORT_TASK: u8 = 1;
    /// ABORT TASK SET
    pub const ABORT_TASK_SET: u8 = 2;
    /// CLEAR ACA
    pub const CLEAR_ACA: u8 = 3;
    /// CLEAR TASK SET
    pub const CLEAR_TASK_SET: u8 = 4;
    /// LOGICAL UNIT RESET
    pub const LOGICAL_UNIT_RESET: u8 = 5;
    /// TARGET WARM RESET
    pub const TARGET_WARM_RESET: u8 = 6;
    /// TARGET COLD RESET
    pub const TARGET_COLD_RESET: u8 = 7;
    /// TASK REASSIGN
    pub const TASK_REASSIGN: u8 = 8;
}

/// Responses to task management functions (RFC 7143 11.6.1).
pub mod tmf_response {
    /// Function complete.
    pub const COMPLETE: u8 = 0;
    /// Task does not exist.
    pub const NO_TASK: u8 = 1;
    /// LUN does not exist.
    pub const NO_LUN: u8 = 2;
    /// Task allegiance reassignment not supported.
    pub const NO_REASSIGN: u8 = 4;
    /// Task management function not supported.
    pub const NOT_SUPPORTED: u8 = 5;
    /// Function rejected.
    pub const REJECTED: u8 = 255;
}

/// Status-Class and Status-Detail of a Login Response (RFC 7143 11.13.5).
pub mod login {
    /// Success.
    pub const SUCCESS: u16 = 0x0000;
    /// Initiator error.
    pub const INITIATOR_ERROR: u16 = 0x0200;
    /// Authentication failure.
    pub const AUTHENTICATION: u16 = 0x0201;
    /// Authorization failure.
    pub const AUTHORIZATION: u16 = 0x0202;
    /// Not found.
    pub const NOT_FOUND: u16 = 0x0203;
    /// Unsupported version.
    pub const VERSION: u16 = 0x0205;
    /// Too many connections.
    pub const TOO_MANY_CONNECTIONS: u16 = 0x0206;
    /// Missing parameter.
    pub const MISSING_PARAMETER: u16 = 0x0207;
    /// Can't include in session.
    pub const CANNOT_INCLUDE: u16 = 0x0208;
    /// Session type not supported.
    pub const SESSION_TYPE: u16 = 0x0209;
    /// Session does not exist.
    pub const NO_SESSION: u16 = 0x020a;
    /// Invalid during login.
    pub const INVALID_DURING_LOGIN: u16 = 0x020b;
    /// Target error.
    pub const TARGET_ERROR: u16 = 0x0300;
    /// Service unavailable.
    pub const UNAVAILABLE: u16 = 0x0301;
    /// Out of resources.
    pub const OUT_OF_RESOURCES: u16 = 0x0302;
}

/// Stages of a login (RFC 7143 11.12.3).
pub mod stage {
    /// SecurityNegotiation
    pub const SECURITY: u8 = 0;
    /// LoginOperationalNegotiation
    pub const OPERATIONAL: u8 = 1;
    /// FullFeaturePhase
    pub const FULL_FEATURE: u8 = 3;
}

/// Reasons of a Reject (RFC 7143 11.17.1).
pub mod reject {
    /// Data (payload) digest error.
    pub const DATA_DIGEST: u8 = 0x02;
    /// SNACK reject.
    pub const SNACK: u8 = 0x03;
    /// Protocol error.
    pub const PROTOCOL: u8 = 0x04;
    /// Command not supported.
    pub const NOT_SUPPORTED: u8 = 0x05;
    /// Immediate command reject: too many immediate commands.
    pub const TOO_MANY_IMMEDIATE: u8 = 0x06;
    /// Task in progress.
    pub const TASK_IN_PROGRESS: u8 = 0x07;
    /// Invalid PDU field.
    pub const INVALID_FIELD: u8 = 0x09;
    /// Long operation reject: out of resources.
    pub const OUT_OF_RESOURCES: u8 = 0x0a;
    /// Waiting for Logout.
    pub const WAITING_FOR_LOGOUT: u8 = 0x0c;
}

/// Reasons of a Logout Request (RFC 7143 11.14.1).
pub mod logout {
    /// Close the session.
    pub const CLOSE_SESSION: u8 = 0;
    /// Close the connection.
    pub const CLOSE_CONNECTION: u8 = 1;
    /// Remove the connection for recovery.
    pub const REMOVE_FOR_RECOVERY: u8 = 2;
}

/// Responses to a Logout Request (RFC 7143 11.15.1).
pub mod logout_response {
    /// Closed successfully.
    pub const CLOSED: u8 = 0;
    /// CID was not found.
    pub const NO_CID: u8 = 1;
    /// Connection recovery is not supported.
    pub const NO_RECOVERY: u8 = 2;
    /// Cleanup failed for various reasons.
    pub const FAILED: u8 = 3;
}

/// Asynchronous events (RFC 7143 11.9.1).
pub mod event {
    /// Sense data is reported.
    pub const SCSI: u8 = 0;
    /// The target requests a logout within Parameter3 seconds.
    pub const LOGOUT_REQUESTED: u8 = 1;
    /// The target will drop this connection.
    pub const CONNECTION_DROPPED: u8 = 2;
    /// The target will drop all connections of the session.
    pub const SESSION_DROPPED: u8 = 3;
}

//! iSCSI sessions (RFC 7143) and SCSI commands (SAM-5, SPC-4, SBC-3) on top of volumes.
//!
//! ```text
//! bytes -> proto::iscsi -> session/ -> scsi/ -> volume::device::BlockDevice
//! ```
//!
//! `scsi/` knows commands and nothing of PDUs; `session/` knows PDUs and nothing of what a command
//! does, nor of sockets; `server/` is the shell around both. [`exports`] says what is shown to whom.

pub mod exports;
pub mod portals;
pub mod scsi;
pub mod server;
pub mod session;

//! iSCSI sessions (RFC 7143) and SCSI commands (SAM-5, SPC-4, SBC-3) on top of volumes.
//!
//!     bytes -> proto::iscsi -> session/ -> scsi/ -> volume::device::BlockDevice
//!
//! `scsi/` knows commands and nothing of PDUs; `session/` knows PDUs and nothing of what a command does.

pub mod scsi;

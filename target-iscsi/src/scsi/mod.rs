//! SCSI: commands in, status, data and sense out. Knows nothing of iSCSI.
//!
//! A [`Task`] is one command in execution, driven by the session that received it:
//!
//! ```text
//! Task::start(..) --> Step::DataOut(n)  -- the session collects n bytes --> task.data_out(bytes) --+
//!                |--> Step::Submit(cmd) -- the device completes it      --> task.completed(..)  ---+--> next Step
//!                |--> Step::Elsewhere(cmd) -- another unit's device     --> task.completed(..)  ---|
//!                |--> Step::Resolve     -- what the nexus sees now      --> task.resolve(..)    ---+
//!                |--> Step::Change(..)  -- the unit's state is changed  --> task.settled(..)    ---+
//!                |--> Step::Await       -- the unit is sanitized         --> task.settled(..)    ---+
//!                +--> Step::Done(response)
//! ```

mod capacity;
mod cdb;
mod compare_and_write;
mod copy;
mod defects;
mod diagnostics;
mod inquiry;
mod lba_status;
mod log;
pub mod lun;
mod mode;
mod mode_pages;
mod nexus;
mod ports;
mod power;
mod provisioning;
mod read_write;
mod report_luns;
mod request;
mod request_sense;
mod reservation;
mod sanitize;
mod sense;
mod statistics;
mod supported;
mod table;
mod task;
mod unit;
mod verify;
mod vpd;
mod write_atomic;
mod write_verify;

use std::collections::BTreeMap;
use std::sync::Arc;

use lunette_proto::ids::{ClusterId, Generation, VolumeId};
use lunette_volume::device::BlockDevice;

pub use nexus::{Attention, Nexus, Scope};
pub use sanitize::{Ended, Passes};
pub use task::{BUSY, CHECK_CONDITION, Elsewhere, GOOD, RESERVATION_CONFLICT, Response, Step, Task};
pub use unit::{
    Changed, Decision, Notice, Proposal, Refusal, SelectModes, Settled, SharedUnit, Transition, Units,
};

/// For fuzzing: whether bytes are taken for a parameter list of EXTENDED COPY.
#[doc(hidden)]
#[must_use]
pub fn is_copy_list(bytes: &[u8]) -> bool {
    copy::is_list(bytes)
}

/// What one target shows through one portal group. A value: replaced as a whole when the map changes.
#[derive(Clone)]
pub struct TargetView {
    /// The target's iSCSI name.
    pub iqn: String,
    /// Its portal group tag here (RFC 7143 13.9).
    pub portal_group_tag: u16,
    /// RELATIVE TARGET PORT IDENTIFIER (SPC-4 7.8.6.8), from 1, unique over all gateways.
    pub relative_port: u16,
    /// The target's ports over all gateways, each in a target port group of its own, with this one among them.
    pub ports: Vec<TargetPort>,
    /// Logical units by LUN.
    pub luns: BTreeMap<u16, Arc<LogicalUnit>>,
}

/// A target port: a gateway, as one target is seen through it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TargetPort {
    /// Its portal group tag, which is its TARGET PORT GROUP as well.
    pub group: u16,
    /// Its RELATIVE TARGET PORT IDENTIFIER.
    pub relative: u16,
}

/// Which gateway serves a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnitOwner {
    /// Its target port group.
    pub group: u16,
    /// Under which generation of the volume.
    pub generation: Generation,
}

/// A volume as one target shows it.
#[derive(Clone)]
pub struct LogicalUnit {
    /// Whose volume.
    pub cluster: ClusterId,
    /// Which.
    pub volume: VolumeId,
    /// Its name, for people.
    pub name: String,
    /// Its size in bytes, whole logical blocks.
    pub size_bytes: u64,
    /// 512 or 4096.
    pub block_bytes: u32,
    /// Write protected through this map.
    pub read_only: bool,
    /// Which gateway serves it by the map; `None`: none that exists.
    pub owner: Option<UnitOwner>,
    /// What carries out reads and writes.
    pub device: Arc<dyn BlockDevice>,
    /// What all sessions of the gateway share about it, through whichever target.
    pub shared: Arc<SharedUnit>,
}

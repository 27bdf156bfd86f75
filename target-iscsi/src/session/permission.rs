//! Whether a command that is due may still be submitted: what the session sees, and may write, can have
//! changed since the task began, and so can have its reservations: a gateway that did not own the volume learns of those
//! later than the initiators whom others have told.

use std::sync::Arc;

use lunette_volume::device::{BlockDevice, Command, DeviceError};

use super::tasks::Active;
use crate::scsi::lun::{Address, decode};
use crate::scsi::{LogicalUnit, Nexus, TargetView};

/// The device of a task's next command, or what that ends with.
pub(super) fn device(
    view: Option<&TargetView>,
    nexus: &Nexus,
    active: &Active,
    command: &Command,
) -> Result<Arc<dyn BlockDevice>, DeviceError> {
    // Only commands of a logical unit get as far as a device.
    let (Some(view), Some(own), Address::Unit(own_lun)) = (view, &active.unit, decode(active.lun)) else {
        return Err(DeviceError::Gone);
    };
    let writes = writes(command);
    let Some((lun, unit)) = &active.elsewhere else {
        // Data may come long after the command. BUSY, for trying again tells what has changed.
        let is_permitted = shows(view, own_lun, own, writes)
            && !own.shared.is_sanitizing()
            && active.task.is_allowed(nexus, own);
        return if is_permitted { Ok(Arc::clone(&own.device)) } else { Err(DeviceError::Busy) };
    };
    let is_permitted = shows(view, own_lun, own, false)
        && shows(view, *lun, unit, writes)
        && !nexus.refuses_copy(unit, writes);
    if is_permitted { Ok(Arc::clone(&unit.device)) } else { Err(DeviceError::Gone) }
}

/// Whether the target still shows `unit` there, and lets it be written if that is asked for.
pub(super) fn shows(view: &TargetView, lun: u16, unit: &LogicalUnit, writes: bool) -> bool {
    view.luns.get(&lun).is_some_and(|now| now.volume == unit.volume && !(writes && now.read_only))
}

fn writes(command: &Command) -> bool {
    match command {
        Command::Write { .. }
        | Command::WriteAtomic { .. }
        | Command::Zero { .. }
        | Command::CompareAndWrite { .. }
        | Command::Or { .. } => true,
        Command::Read { .. } | Command::Flush | Command::Mapping { .. } => false,
    }
}

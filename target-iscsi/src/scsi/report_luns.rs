//! REPORT LUNS (SPC-4 6.33).

use super::cdb::Cdb;
use super::request::{Answer, Request, parameter_data};
use super::sense::Sense;
use super::{Nexus, TargetView, lun};

pub(super) fn handle(request: &mut Request<'_>) -> Answer {
    report(request.view, request.nexus, request.cdb)
}

/// SELECT REPORT 00h: logical units; 01h: well-known logical units; 02h: both. 10h to 12h name
/// administrative logical units and their subsidiaries, of which there are none.
pub(super) fn report(view: &TargetView, nexus: &mut Nexus, cdb: &Cdb) -> Answer {
    let (units, well_known) = match cdb.u8(2) {
        0x00 => (true, false),
        0x01 => (false, true),
        0x02 => (true, true),
        0x10..=0x12 => (false, false),
        _ => return Err(Sense::cdb_field(2).into()),
    };
    let mut data = vec![0; 8];
    if units {
        data.extend(view.luns.keys().flat_map(|lun| lun::encode(*lun).to_be_bytes()));
    }
    if well_known {
        data.extend(lun::REPORT_LUNS.to_be_bytes());
    }
    let list_len = u32::try_from(data.len() - 8).unwrap_or(u32::MAX);
    data[..4].copy_from_slice(&list_len.to_be_bytes());
    nexus.inventory_reported();
    Ok(parameter_data(data, cdb.u32(6)))
}

//! `lunette disk list`.

use anyhow::Result;
use lunette_control::api::admin::{Disk, ListDisksRequest};

use super::{Connection, json};
use crate::output::{Format, Table};
use crate::size::human;

pub(super) async fn list(connection: &Connection, format: Format) -> Result<()> {
    let answer = connection.disks().list(ListDisksRequest {}).await;
    let disks = answer.map_err(|status| connection.refused(&status))?.into_inner().disks;
    format.print(|| table(&disks).text(), || json::disks(&disks));
    Ok(())
}

pub(super) fn table(disks: &[Disk]) -> Table {
    let mut table = Table::new(&[">DISK", "NODE", "STATE", ">CAPACITY", ">USED", ">WEIGHT", "LABEL"]);
    for disk in disks {
        table.row([
            disk.id.to_string(),
            disk.node.clone(),
            disk.state.clone(),
            human(disk.capacity_bytes),
            human(disk.used_bytes),
            disk.weight.to_string(),
            disk.label.clone(),
        ]);
    }
    table
}

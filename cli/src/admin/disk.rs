//! `lunette disk list|add|scrub`.

use anyhow::Result;
use lunette_control::api::admin::{AddDiskRequest, Disk as Answer, ListDisksRequest};

use super::{Connection, json, scrub};
use crate::args::{Disk, DiskAdd};
use crate::output::{Format, Table};
use crate::size::human;

/// The state of a disk that its node is at.
const ADDING: &str = "adding";

pub(super) async fn run(command: Disk, connection: &Connection, format: Format) -> Result<()> {
    match command {
        Disk::List => list(connection, format).await,
        Disk::Add(add) => self::add(add, connection, format).await,
        Disk::Scrub(command) => scrub::run(command, connection, format).await,
        Disk::Inspect(_) | Disk::Check(_) => unreachable!("main looks at disks itself"),
    }
}

async fn list(connection: &Connection, format: Format) -> Result<()> {
    let answer = connection.disks().list(ListDisksRequest {}).await;
    let disks = answer.map_err(|status| connection.refused(&status))?.into_inner().disks;
    format.print(|| table(&disks).text(), || json::disks(&disks));
    Ok(())
}

async fn add(add: DiskAdd, connection: &Connection, format: Format) -> Result<()> {
    let request = AddDiskRequest {
        node: add.node,
        path: add.path,
        capacity_bytes: add.capacity.map_or(0, |capacity| capacity.bytes()),
    };
    let disk = loop {
        let answer = connection.disks().add(request.clone()).await;
        let disk = answer.map_err(|status| connection.refused(&status))?.into_inner();
        // A large disk takes its time; asked again, the control plane goes on waiting for the same one.
        if disk.state != ADDING {
            break disk;
        }
    };
    format.print(|| text(&disk), || json::disk(&disk));
    Ok(())
}

fn text(disk: &Answer) -> String {
    let Answer { id, node, label, capacity_bytes, .. } = disk;
    let kind = if disk.kind.is_empty() { String::new() } else { format!("{} ", disk.kind) };
    format!(
        "disk {id} of {node}, {kind}{label}, is in service and offers {}\n\
         pools that are created from now on use it; those that exist keep the disks that they have\n",
        human(*capacity_bytes)
    )
}

pub(super) fn table(disks: &[Answer]) -> Table {
    let headings = [">DISK", "NODE", "STATE", ">CAPACITY", ">USED", ">WEIGHT", "KIND", "PATH", "REASON"];
    let mut table = Table::new(&headings);
    for disk in disks {
        table.row([
            disk.id.to_string(),
            disk.node.clone(),
            disk.state.clone(),
            human(disk.capacity_bytes),
            human(disk.used_bytes),
            disk.weight.to_string(),
            disk.kind.clone(),
            disk.label.clone(),
            disk.reason.clone(),
        ]);
    }
    table
}

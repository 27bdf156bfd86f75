//! `lunette node list`.

use anyhow::Result;
use lunette_control::api::admin::{ListNodesRequest, Node};

use super::{Connection, json};
use crate::output::{Format, Table};

pub(super) async fn list(connection: &Connection, format: Format) -> Result<()> {
    let answer = connection.nodes().list(ListNodesRequest {}).await;
    let nodes = answer.map_err(|status| connection.refused(&status))?.into_inner().nodes;
    format.print(|| table(&nodes).text(), || json::nodes(&nodes));
    Ok(())
}

pub(super) fn table(nodes: &[Node]) -> Table {
    let mut table =
        Table::new(&["NODE", "STATE", "ADDRESS", "HOST", "RACK", "ZONE", ">DISKS", ">OUT", ">CATCHING-UP"]);
    for node in nodes {
        table.row([
            node.name.clone(),
            up(node.up),
            node.address.clone(),
            node.host.clone(),
            node.rack.clone(),
            node.zone.clone(),
            node.disks.len().to_string(),
            node.disks_out.to_string(),
            node.disks_catching_up.to_string(),
        ]);
    }
    table
}

/// Whether a process is there.
pub(super) fn up(up: bool) -> String {
    if up { "up" } else { "down" }.to_owned()
}

//! `lunette node list|drain|remove`.

use anyhow::Result;
use lunette_control::api::admin::{DrainNodeRequest, ListNodesRequest, Node, RemoveNodeRequest};

use super::{Connection, drain, json};
use crate::args::NodeDrain;
use crate::output::{Format, Table};

pub(super) async fn list(connection: &Connection, format: Format) -> Result<()> {
    let answer = connection.nodes().list(ListNodesRequest {}).await;
    let nodes = answer.map_err(|status| connection.refused(&status))?.into_inner().nodes;
    format.print(|| table(&nodes).text(), || json::nodes(&nodes));
    Ok(())
}

pub(super) async fn drain(command: NodeDrain, connection: &Connection, format: Format) -> Result<()> {
    let NodeDrain { name, how } = command;
    let request = DrainNodeRequest { name: name.clone(), draining: !how.off, dry_run: how.dry_run };
    let answer = connection.nodes().drain(request).await;
    let answer = answer.map_err(|status| connection.refused(&status))?.into_inner();
    format.print(|| drain::text(&name, how, &answer), || drain::json(&answer));
    Ok(())
}

pub(super) async fn remove(name: String, connection: &Connection) -> Result<()> {
    let answer = connection.nodes().remove(RemoveNodeRequest { name }).await;
    answer.map_err(|status| connection.refused(&status))?;
    Ok(())
}

pub(super) fn table(nodes: &[Node]) -> Table {
    let mut table = Table::new(&[
        "NODE",
        "STATE",
        "ADDRESS",
        "HOST",
        "RACK",
        "ZONE",
        ">DISKS",
        ">OUT",
        ">CATCHING-UP",
        "DRAINING",
    ]);
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
            draining(node),
        ]);
    }
    table
}

/// How far a node is on its way to be empty.
fn draining(node: &Node) -> String {
    let Node { disks_draining, draining_copies, .. } = node;
    match (*disks_draining, *draining_copies) {
        (0, _) => String::new(),
        (_, 0) => "empty".to_owned(),
        (_, copies) => format!("{copies} copies left"),
    }
}

/// Whether a process is there.
pub(super) fn up(up: bool) -> String {
    if up { "up" } else { "down" }.to_owned()
}

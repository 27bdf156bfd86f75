//! `lunette status`.

use std::io::{self, IsTerminal};

use anyhow::{Result, bail};
use lunette_control::api::admin::{Gateway, StatusRequest, StatusResponse};
use tokio_stream::StreamExt;

use super::{Connection, disk, json, node, pool, scrub, target};
use crate::output::{self, Format, Table, fields};
use crate::size::human;

/// Moves to the top left and clears: a watcher on a terminal sees one picture, not a scroll.
const CLEAR: &str = "\u{1b}[H\u{1b}[2J";

pub(super) async fn once(connection: &Connection, format: Format) -> Result<()> {
    let status = get(connection).await?;
    format.print(|| text(&status), || json::status(&status));
    Ok(())
}

pub(super) async fn watch(connection: &Connection, format: Format) -> Result<()> {
    let answer = connection.cluster().watch_status(StatusRequest {}).await;
    let mut stream = answer.map_err(|status| connection.refused(&status))?.into_inner();
    let clear = if io::stdout().is_terminal() { CLEAR } else { "" };
    let end = if clear.is_empty() { "\n" } else { "" };
    while let Some(next) = stream.next().await {
        let status = next.map_err(|status| connection.refused(&status))?;
        match format {
            Format::Text => output::print(&format!("{clear}{}{end}", text(&status))),
            // One object a line, so that a reader knows where each one ends.
            Format::Json => output::print(&format!("{}\n", json::status(&status))),
        }
    }
    bail!("the control plane has ended the watch; start it again")
}

async fn get(connection: &Connection) -> Result<StatusResponse> {
    let answer = connection.cluster().status(StatusRequest {}).await;
    Ok(answer.map_err(|status| connection.refused(&status))?.into_inner())
}

/// The first line is a contract: `health: `, the word, and what is wrong in parentheses.
fn health_line(status: &StatusResponse) -> String {
    let word = json::health(status);
    if status.reasons.is_empty() {
        return format!("health: {word}\n");
    }
    let reasons = crate::failure::one_line(&status.reasons.join("; "));
    format!("health: {word} ({reasons})\n")
}

/// Copies on their way to other disks: no matter of health, for all that should count do meanwhile.
fn moves(status: &StatusResponse) -> String {
    let moves = status.moves.clone().unwrap_or_default();
    let mut text = match (moves.under_way, moves.waiting) {
        (0, 0) => "none".to_owned(),
        (under_way, waiting) => {
            format!("{under_way} moves under way, {waiting} to follow, {} copied", human(moves.copied_bytes))
        }
    };
    if let Some(left) = moves.left_ms.filter(|_| moves.under_way > 0) {
        text.push_str(&format!(", about {} left", scrub::time(left)));
    }
    for problem in &moves.problems {
        text.push_str(&format!("; {}", crate::failure::one_line(problem)));
    }
    text
}

fn text(status: &StatusResponse) -> String {
    let control = status.control.clone().unwrap_or_default();
    let discovery = status.discovery_chap.as_ref();
    let discovery = discovery.map_or("off", |chap| target::authentication(&chap.user, &chap.mutual_user));
    let mut text = health_line(status);
    text.push_str(&fields(&[
        ("cluster", status.cluster_id.clone()),
        ("version", status.version.clone()),
        ("epoch", status.epoch.to_string()),
        (
            "control",
            format!("leader {}, term {}, members {}", control.leader, control.term, control.members.len()),
        ),
        ("capacity", format!("{} of {} used", human(status.used_bytes), human(status.capacity_bytes))),
        ("volumes", status.volumes.to_string()),
        ("targets", status.targets.to_string()),
        ("sessions", status.sessions.to_string()),
        ("discovery-chap", discovery.to_owned()),
        ("rebalancing", moves(status)),
    ]));
    let tables = [
        node::table(&status.nodes).text(),
        disk::table(&status.disks).text(),
        gateways(&status.gateways).text(),
        pool::table(&status.pools).text(),
    ];
    for table in tables {
        text.push('\n');
        text.push_str(&table);
    }
    text
}

fn gateways(gateways: &[Gateway]) -> Table {
    let mut table = Table::new(&["GATEWAY", "STATE", "PORTALS", ">TAG", ">VOLUMES", ">SESSIONS"]);
    for gateway in gateways {
        table.row([
            gateway.name.clone(),
            node::up(gateway.up),
            gateway.portals.join(","),
            gateway.portal_group_tag.to_string(),
            gateway.volumes.to_string(),
            gateway.sessions.to_string(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use lunette_control::api::admin::status_response::Health;

    use super::*;

    #[test]
    fn the_first_line_is_the_health() {
        // Guards the line that scripts match, also against reasons of more than one line.
        let table = [
            (Health::Healthy, vec![], "health: healthy\n"),
            (
                Health::Degraded,
                vec!["node2 is down", "1 disk\nis out"],
                "health: degraded (node2 is down; 1 disk is out)\n",
            ),
            (Health::Unavailable, vec!["no quorum"], "health: unavailable (no quorum)\n"),
        ];
        for (health, reasons, want) in table {
            let reasons = reasons.into_iter().map(str::to_owned).collect();
            let status = StatusResponse { health: health.into(), reasons, ..StatusResponse::default() };
            assert!(text(&status).starts_with(want), "{want}");
        }
    }
}

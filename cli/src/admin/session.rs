//! `lunette session list|kick`.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use lunette_control::api::admin::{KickSessionRequest, ListSessionsRequest, Session as Answer};

use super::{Connection, json};
use crate::args::{Session, SessionKick};
use crate::output::{Format, Table};
use crate::size::human;

pub(super) async fn run(command: Session, connection: &Connection, format: Format) -> Result<()> {
    match command {
        Session::List => list(connection, format).await,
        Session::Kick(SessionKick { id }) => kick(id, connection).await,
    }
}

async fn list(connection: &Connection, format: Format) -> Result<()> {
    let answer = connection.sessions().list(ListSessionsRequest {}).await;
    let sessions = answer.map_err(|status| connection.refused(&status))?.into_inner().sessions;
    format.print(|| table(&sessions, unix_ms()).text(), || json::sessions(&sessions));
    Ok(())
}

async fn kick(id: String, connection: &Connection) -> Result<()> {
    let answer = connection.sessions().kick(KickSessionRequest { id }).await;
    answer.map_err(|status| connection.refused(&status))?;
    Ok(())
}

fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

fn table(sessions: &[Answer], now_unix_ms: u64) -> Table {
    let headings = [
        "SESSION",
        "KIND",
        "INITIATOR",
        "FROM",
        "TARGET",
        ">AGE",
        ">COMMANDS",
        ">READ",
        ">WRITTEN",
        ">ERRORS",
        "CHAP",
    ];
    let mut table = Table::new(&headings);
    for session in sessions {
        table.row([
            session.id.clone(),
            session.kind.clone(),
            session.initiator.clone(),
            session.initiator_address.clone(),
            session.target.clone(),
            age(now_unix_ms.saturating_sub(session.since_unix_ms) / 1000),
            session.commands.to_string(),
            human(session.read_bytes),
            human(session.written_bytes),
            session.errors.to_string(),
            session.chap_user.clone(),
        ]);
    }
    table
}

/// In its largest unit: `12s`, `5m`, `3h`, `2d`.
fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_in_their_largest_unit() {
        // Guards against an age that changes its meaning at a border.
        let table = [(0, "0s"), (59, "59s"), (60, "1m"), (3599, "59m"), (3600, "1h"), (86400, "1d")];
        for (seconds, text) in table {
            assert_eq!(age(seconds), text);
        }
    }
}

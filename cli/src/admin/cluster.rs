//! `lunette cluster init|status|join-token|member`.

use std::path::Path;

use anyhow::Result;
use lunette_control::api::admin::{
    ChangeMembersRequest, ControlStatus, CreateJoinTokenRequest, StatusRequest,
};
use serde_json::json;

use super::{Connection, json};
use crate::args::{Cluster, JoinTokenMake, Member};
use crate::config::NodeConfig;
use crate::output::{self, Format, Table, fields, yes};
use crate::run::control;

/// Founds a cluster on this machine; there is nothing to connect to yet.
pub(crate) async fn init(config: &Path, format: Format) -> Result<()> {
    let config = NodeConfig::load(config)?;
    let key = control::init(&config).await?;
    let (cluster, file) = (key.cluster.to_string(), key.path.display().to_string());
    format.print(
        || format!("cluster {cluster} is founded; its key is {file}; now start the node\n"),
        || json!({"cluster_id": cluster, "key_file": file}),
    );
    Ok(())
}

pub(super) async fn run(command: Cluster, connection: &Connection, format: Format) -> Result<()> {
    match command {
        Cluster::Init(_) => unreachable!("main founds a cluster itself"),
        Cluster::Status => status(connection, format).await,
        Cluster::JoinToken(make) => join_token(&make, connection, format).await,
        Cluster::Member(Member::Add(members)) => change(members.ids, Vec::new(), connection, format).await,
        Cluster::Member(Member::Remove(members)) => change(Vec::new(), members.ids, connection, format).await,
        Cluster::Member(Member::Replace(replace)) => {
            change(vec![replace.with], vec![replace.id], connection, format).await
        }
    }
}

async fn status(connection: &Connection, format: Format) -> Result<()> {
    let answer = connection.cluster().status(StatusRequest {}).await;
    let status = answer.map_err(|status| connection.refused(&status))?.into_inner();
    let control = status.control.clone().unwrap_or_default();
    let text = || {
        let head = fields(&[
            ("cluster", status.cluster_id.clone()),
            ("version", status.version.clone()),
            ("epoch", status.epoch.to_string()),
            ("term", control.term.to_string()),
            ("applied", control.applied.to_string()),
        ]);
        format!("{head}\n{}", table(&control).text())
    };
    let json = || {
        json!({
            "cluster_id": status.cluster_id, "version": status.version, "epoch": status.epoch,
            "control": json::control(&control),
        })
    };
    format.print(text, json);
    Ok(())
}

fn table(control: &ControlStatus) -> Table {
    let mut table = Table::new(&[">MEMBER", "ADDRESS", "VOTER", "LEADER", "STATE", ">BEHIND"]);
    for member in &control.members {
        table.row([
            member.id.to_string(),
            member.address.clone(),
            yes(member.voter),
            yes(member.id == control.leader),
            if member.up { "up" } else { "down" }.to_owned(),
            member.behind.map(|behind| behind.to_string()).unwrap_or_default(),
        ]);
    }
    table
}

async fn join_token(make: &JoinTokenMake, connection: &Connection, format: Format) -> Result<()> {
    let ttl_ms = u64::try_from(make.ttl.as_millis())?;
    let answer = connection.cluster().create_join_token(CreateJoinTokenRequest { ttl_ms }).await;
    let made = answer.map_err(|status| connection.refused(&status))?.into_inner();
    match format {
        // Nothing but the token, so that it can be put into a file.
        Format::Text => output::print(&format!("{}\n", made.token)),
        Format::Json => {
            let line = json!({"token": made.token, "expires_unix_ms": made.expires_unix_ms});
            output::print(&format!("{line}\n"));
        }
    }
    Ok(())
}

async fn change(add: Vec<u64>, remove: Vec<u64>, connection: &Connection, format: Format) -> Result<()> {
    let answer = connection.cluster().change_members(ChangeMembersRequest { add, remove }).await;
    let control = answer.map_err(|status| connection.refused(&status))?.into_inner();
    format.print(|| table(&control).text(), || json::control(&control));
    Ok(())
}

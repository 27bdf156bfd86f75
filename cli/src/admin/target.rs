//! `lunette target create|list|show|delete|map|unmap|allow|deny|chap|drain`.

use anyhow::{Context, Result};
use lunette_control::api::admin::{
    Acl, AllowRequest, ClearChapRequest, ClearDiscoveryChapRequest, CreateTargetRequest, DeleteTargetRequest,
    DenyRequest, DrainRequest, GetTargetRequest, ListTargetsRequest, MapLunRequest, SetChapRequest,
    SetDiscoveryChapRequest, Target as Answer, UnmapLunRequest,
};
use tonic::{Response, Status};

use super::{Address, Connection, json, secret};
use crate::args::{
    Target, TargetAcl, TargetChap, TargetCreate, TargetDrain, TargetMap, TargetName, TargetUnmap,
};
use crate::output::{Format, Table, fields};
use crate::size::human;

pub(super) async fn run(command: Target, admin: &[Address], format: Format) -> Result<()> {
    // Secrets are read before anything is asked of the server: a missing file is found at once.
    let command = match command {
        Target::Chap(chap) => Prepared::Chap(self::chap(chap)?),
        other => Prepared::Plain(other),
    };
    let connection = &Connection::open(admin).await?;
    match command {
        Prepared::Chap(chap) => set_chap(chap, connection, format).await,
        Prepared::Plain(command) => plain(command, connection, format).await,
    }
}

enum Prepared {
    Chap(Chap),
    Plain(Target),
}

enum Chap {
    Set(SetChapRequest),
    Clear(ClearChapRequest),
    SetDiscovery(SetDiscoveryChapRequest),
    ClearDiscovery,
}

fn chap(chap: TargetChap) -> Result<Chap> {
    if chap.off {
        return Ok(match chap.iqn {
            Some(iqn) => Chap::Clear(ClearChapRequest { iqn }),
            None => Chap::ClearDiscovery,
        });
    }
    let user = chap.user.context("--user is missing: name whom the initiator has to be")?;
    let mutual = chap.mutual_user.is_some();
    let secrets = secret::read(chap.secret_file.as_deref(), mutual, chap.mutual_secret_file.as_deref())?;
    let (secret, mutual_secret) = (secrets.initiator, secrets.target.unwrap_or_default());
    let mutual_user = chap.mutual_user.unwrap_or_default();
    let algorithms = chap.algorithms;
    Ok(match chap.iqn {
        Some(iqn) => Chap::Set(SetChapRequest { iqn, user, secret, mutual_user, mutual_secret, algorithms }),
        None => Chap::SetDiscovery(SetDiscoveryChapRequest {
            user,
            secret,
            mutual_user,
            mutual_secret,
            algorithms,
        }),
    })
}

async fn set_chap(chap: Chap, connection: &Connection, format: Format) -> Result<()> {
    let mut targets = connection.targets();
    let discovery = match chap {
        Chap::Set(request) => return quietly(targets.set_chap(request).await, connection, format).await,
        Chap::Clear(request) => return quietly(targets.clear_chap(request).await, connection, format).await,
        Chap::SetDiscovery(request) => Some(answer(targets.set_discovery_chap(request).await, connection)?),
        Chap::ClearDiscovery => {
            answer(targets.clear_discovery_chap(ClearDiscoveryChapRequest {}).await, connection)?;
            None
        }
    };
    connection.settle().await;
    format.print_json_only(
        || serde_json::json!({ "discovery_chap": discovery.as_ref().map(json::discovery_chap) }),
    );
    Ok(())
}

async fn plain(command: Target, connection: &Connection, format: Format) -> Result<()> {
    let mut targets = connection.targets();
    match command {
        Target::Create(TargetCreate { iqn }) => {
            let request = CreateTargetRequest { iqn: iqn.unwrap_or_default() };
            let target = answer(targets.create(request).await, connection)?;
            connection.settle().await;
            format.print(|| format!("{}\n", target.iqn), || json::target(&target));
            Ok(())
        }
        Target::List => {
            let all = answer(targets.list(ListTargetsRequest {}).await, connection)?.targets;
            format.print(|| table(&all).text(), || json::targets(&all));
            Ok(())
        }
        Target::Show(TargetName { iqn }) => {
            let target = answer(targets.get(GetTargetRequest { iqn }).await, connection)?;
            format.print(|| text(&target), || json::target(&target));
            Ok(())
        }
        Target::Delete(TargetName { iqn }) => {
            answer(targets.delete(DeleteTargetRequest { iqn }).await, connection)?;
            connection.settle().await;
            Ok(())
        }
        Target::Map(map) => self::map(map, connection, format).await,
        Target::Unmap(TargetUnmap { iqn, volume }) => {
            quietly(targets.unmap(UnmapLunRequest { iqn, volume }).await, connection, format).await
        }
        Target::Allow(TargetAcl { iqn, initiator, from }) => {
            let acl = Some(Acl { initiator, from: from.unwrap_or_default() });
            quietly(targets.allow(AllowRequest { iqn, acl }).await, connection, format).await
        }
        Target::Deny(TargetAcl { iqn, initiator, from }) => {
            let acl = Some(Acl { initiator, from: from.unwrap_or_default() });
            quietly(targets.deny(DenyRequest { iqn, acl }).await, connection, format).await
        }
        Target::Drain(TargetDrain { iqn, off }) => {
            let request = DrainRequest { iqn, draining: !off };
            quietly(targets.drain(request).await, connection, format).await
        }
        Target::Chap(_) => unreachable!("prepared by run"),
    }
}

/// Prints the number of the LUN, which the caller may have left to the server.
async fn map(map: TargetMap, connection: &Connection, format: Format) -> Result<()> {
    let volume = map.volume.clone();
    let request = MapLunRequest { iqn: map.iqn, volume: map.volume, lun: map.lun, read_only: map.read_only };
    let target = answer(connection.targets().map(request).await, connection)?;
    connection.settle().await;
    let luns = || {
        let of_volume = target.luns.iter().filter(|lun| lun.volume == volume);
        of_volume.map(|lun| format!("{}\n", lun.lun)).collect()
    };
    format.print(luns, || json::target(&target));
    Ok(())
}

fn answer<T>(answer: Result<Response<T>, Status>, connection: &Connection) -> Result<T> {
    Ok(answer.map_err(|status| connection.refused(&status))?.into_inner())
}

/// For what changes a target and needs no word when it is done.
async fn quietly(
    response: Result<Response<Answer>, Status>,
    connection: &Connection,
    format: Format,
) -> Result<()> {
    let target = answer(response, connection)?;
    connection.settle().await;
    format.print_json_only(|| json::target(&target));
    Ok(())
}

fn table(targets: &[Answer]) -> Table {
    let mut table = Table::new(&["TARGET", ">LUNS", ">ACLS", "CHAP", ">SESSIONS", "STATE"]);
    for target in targets {
        table.row([
            target.iqn.clone(),
            target.luns.len().to_string(),
            target.acls.len().to_string(),
            authentication(&target.chap_user, &target.chap_mutual_user).to_owned(),
            target.sessions.to_string(),
            state(target).to_owned(),
        ]);
    }
    table
}

/// How initiators prove who they are, from the names of both sides.
pub(super) fn authentication(user: &str, mutual_user: &str) -> &'static str {
    match (user.is_empty(), mutual_user.is_empty()) {
        (true, _) => "off",
        (false, true) => "one-way",
        (false, false) => "mutual",
    }
}

fn state(target: &Answer) -> &'static str {
    if target.draining { "draining" } else { "active" }
}

fn text(target: &Answer) -> String {
    let mut text = fields(&[
        ("target", target.iqn.clone()),
        ("state", state(target).to_owned()),
        ("chap", authentication(&target.chap_user, &target.chap_mutual_user).to_owned()),
        ("chap-user", target.chap_user.clone()),
        ("chap-mutual-user", target.chap_mutual_user.clone()),
        ("chap-algorithms", target.chap_algorithms.join(",")),
        ("sessions", target.sessions.to_string()),
    ]);
    for lun in &target.luns {
        let access = if lun.read_only { " read-only" } else { "" };
        text.push_str(&format!("lun {}: {} {}{access}\n", lun.lun, lun.volume, human(lun.size_bytes)));
    }
    for acl in &target.acls {
        let from = if acl.from.is_empty() { "anywhere" } else { &acl.from };
        text.push_str(&format!("allow: {} from {from}\n", acl.initiator));
    }
    if target.acls.is_empty() {
        text.push_str("allow: any initiator on a loopback portal, nobody elsewhere\n");
    }
    text
}

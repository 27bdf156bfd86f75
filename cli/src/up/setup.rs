//! What `up` asks of its control plane once everything runs: the pool `default`, the volumes of
//! `--volume`, and what it then prints. Through the administration API, like any other tool.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, bail};
use lunette_control::api::admin::{
    ChangeMembersRequest, CreatePoolRequest, CreateVolumeRequest, GetPoolRequest, GetVolumeRequest,
    LeaderRequest, ListTargetsRequest, Target,
};
use serde_json::json;
use tonic::Code;

use crate::admin::{Address, Connection};
use crate::args::NamedSize;
use crate::failure::complain;
use crate::output::Format;
use crate::size::human;

/// The pool that volumes lie in unless another is named.
const POOL: &str = "default";
/// Between two looks at which members of the control plane are there.
const VOTERS_POLL: Duration = Duration::from_millis(50);
/// Copies of everything, where there are nodes enough.
const REPLICAS: u8 = 3;

/// Makes what is missing.
pub(crate) async fn complete(connection: &Connection, nodes: u8, volumes: &[NamedSize]) -> Result<()> {
    pool(connection, nodes).await?;
    // All are looked at before one is made: a refusal leaves none half done.
    let mut missing = Vec::new();
    for volume in volumes {
        if !exists(connection, volume).await? {
            missing.push(volume);
        }
    }
    for volume in missing {
        let request = CreateVolumeRequest {
            name: volume.name.clone(),
            size_bytes: volume.size.bytes(),
            export: true,
            ..CreateVolumeRequest::default()
        };
        let created = connection.volumes().create(request).await;
        created.map_err(|status| connection.refused(&status))?;
    }
    Ok(())
}

/// Has all members of the control plane vote, once all are there. Those that have lost their store come as new ones, to
/// the addresses that are in `lost`, and take the place of what was there.
pub(crate) async fn voters(connection: &Connection, members: u8, lost: &[SocketAddr]) -> Result<()> {
    let members = usize::from(members);
    loop {
        let answer = connection.cluster().leader(LeaderRequest {}).await;
        let known = answer.map_err(|status| connection.refused(&status))?.into_inner().members;
        let (old, new): (Vec<_>, Vec<_>) = known.iter().partition(|member| member.voter);
        let new: Vec<_> = new.into_iter().filter(|member| member.up).collect();
        let is_back = |address: &SocketAddr| {
            old.iter().any(|member| member.up && member.address == address.to_string())
        };
        if old.len() >= members && lost.iter().all(is_back) {
            return Ok(());
        }
        if known.len() >= members && !new.is_empty() {
            let replaced = old.iter().filter(|member| new.iter().any(|new| new.address == member.address));
            let remove = replaced.map(|member| member.id).collect();
            let request = ChangeMembersRequest { add: new.iter().map(|member| member.id).collect(), remove };
            match connection.cluster().change_members(request).await {
                Ok(_) => return Ok(()),
                // They have not caught up yet.
                Err(status) if status.code() == Code::FailedPrecondition => {}
                Err(status) => return Err(connection.refused(&status)),
            }
        }
        tokio::time::sleep(VOTERS_POLL).await;
    }
}

async fn pool(connection: &Connection, nodes: u8) -> Result<()> {
    match connection.pools().get(GetPoolRequest { name: POOL.to_owned() }).await {
        Ok(_) => return Ok(()),
        Err(status) if status.code() == Code::NotFound => {}
        Err(status) => return Err(connection.refused(&status)),
    }
    let request = CreatePoolRequest {
        name: POOL.to_owned(),
        replicas: u32::from(nodes.min(REPLICAS)),
        failure_domain: "host".to_owned(),
        ..CreatePoolRequest::default()
    };
    connection.pools().create(request).await.map_err(|status| connection.refused(&status))?;
    Ok(())
}

/// Whether a volume is there already; one that is smaller than asked for is an error.
async fn exists(connection: &Connection, volume: &NamedSize) -> Result<bool> {
    let NamedSize { name, size } = volume;
    match connection.volumes().get(GetVolumeRequest { name: name.clone() }).await {
        Ok(found) => {
            let has = found.into_inner().size_bytes;
            if has < size.bytes() {
                bail!(
                    "volume {name} has {}, not {size}: start without --volume {name}, then run `lunette volume resize {name} --size {size}`",
                    human(has)
                );
            }
            Ok(true)
        }
        Err(status) if status.code() == Code::NotFound => Ok(false),
        Err(status) => Err(connection.refused(&status)),
    }
}

/// Two `--volume` of one name would be one volume of either size.
pub(crate) fn distinct(volumes: &[NamedSize]) -> Result<()> {
    for (index, volume) in volumes.iter().enumerate() {
        let NamedSize { name, size } = volume;
        let other = volumes.iter().take(index).find(|other| other.name == *name);
        if let Some(NamedSize { size: before, .. }) = other {
            bail!("--volume names {name} twice, with {before} and {size}: name it once");
        }
    }
    Ok(())
}

/// What there is to log into, and how; then that it is ready.
pub(crate) async fn announcement(
    connection: &Connection,
    admin: &[Address],
    portals: &[SocketAddr],
    format: Format,
) -> Result<String> {
    let answer = connection.targets().list(ListTargetsRequest {}).await;
    let targets = answer.map_err(|status| connection.refused(&status))?.into_inner().targets;
    // On standard error: what is printed is for scripts too.
    for hint in hints(portals, &targets) {
        complain(&hint);
    }
    Ok(match format {
        Format::Json => {
            let portals: Vec<String> = portals.iter().map(ToString::to_string).collect();
            let iqns: Vec<&str> = targets.iter().map(|target| target.iqn.as_str()).collect();
            let line = json!({
                "ready": true, "admin": list(admin), "portals": portals, "targets": iqns,
            });
            format!("{line}\n")
        }
        Format::Text => text(admin, portals, &targets),
    })
}

/// As `--admin` takes it.
fn list(admin: &[Address]) -> String {
    let urls: Vec<&str> = admin.iter().map(Address::url).collect();
    urls.join(",")
}

fn text(admin: &[Address], portals: &[SocketAddr], targets: &[Target]) -> String {
    let mut text = format!("admin {}\n", list(admin));
    for portal in portals {
        text.push_str(&format!("portal {portal}\n"));
    }
    for Target { iqn, .. } in targets {
        text.push_str(&format!("target {iqn}\n"));
    }
    for portal in portals {
        let portal = reachable(*portal);
        text.push_str(&format!("iscsiadm -m discovery -t sendtargets -p {portal}\n"));
        // One without LUNs has nothing to log in for.
        for Target { iqn, .. } in targets.iter().filter(|target| !target.luns.is_empty()) {
            text.push_str(&format!("iscsiadm -m node -T {iqn} -p {portal} --login\n"));
        }
    }
    text.push_str("ready\n");
    text
}

/// Where a portal is to be found from this machine: nobody can connect to "every address".
fn reachable(portal: SocketAddr) -> SocketAddr {
    match portal.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => (Ipv4Addr::LOCALHOST, portal.port()).into(),
        IpAddr::V6(ip) if ip.is_unspecified() => (Ipv6Addr::LOCALHOST, portal.port()).into(),
        _ => portal,
    }
}

/// What an initiator on another machine needs that the lines to copy do not say.
fn hints(portals: &[SocketAddr], targets: &[Target]) -> Vec<String> {
    let mut hints = Vec::new();
    if let Some(portal) = portals.iter().find(|portal| portal.ip().is_unspecified()) {
        hints.push(format!(
            "{portal} is every address of this machine: initiators elsewhere name one of them in place of {}",
            reachable(*portal).ip()
        ));
    }
    let closed: Vec<&str> =
        targets.iter().filter(|target| target.acls.is_empty()).map(|target| target.iqn.as_str()).collect();
    if let (Some(first), false) = (closed.first(), portals.iter().all(|portal| portal.ip().is_loopback())) {
        hints.push(format!(
            "{} admitted from this machine alone until initiators are allowed: `lunette target allow {first} --initiator NAME`",
            match closed.len() {
                1 => format!("{first} is"),
                count => format!("{count} targets are"),
            }
        ));
    }
    hints
}

#[cfg(test)]
mod tests {
    use lunette_control::api::admin::{Acl, Lun};

    use super::*;

    fn named(text: &str) -> NamedSize {
        text.parse().expect("valid")
    }

    #[test]
    fn one_name_is_one_volume() {
        // Guards against the size of a volume depending on which option came first.
        assert!(distinct(&[named("a=1G"), named("b=1G")]).is_ok());
        let error = distinct(&[named("a=1G"), named("b=1G"), named("a=2G")]).expect_err("twice").to_string();
        assert!(error.contains("1GiB and 2GiB"), "{error}");
    }

    #[test]
    fn ready_is_the_last_line() {
        // Guards what scripts wait for, and the lines that people copy.
        let admin = Address::parse("127.0.0.1:7400").expect("valid");
        let portal = "[::1]:3260".parse().expect("valid");
        let iqn = "iqn.2026-11.io.lunette:a";
        let empty = Target { iqn: "iqn.2026-11.io.lunette:empty".to_owned(), ..Target::default() };
        let shown = Target { iqn: iqn.to_owned(), luns: vec![Lun::default()], ..Target::default() };
        let got = text(&[admin], &[portal], &[shown.clone(), empty]);
        let want = "admin http://127.0.0.1:7400\nportal [::1]:3260\ntarget iqn.2026-11.io.lunette:a\n\
                    target iqn.2026-11.io.lunette:empty\n\
                    iscsiadm -m discovery -t sendtargets -p [::1]:3260\n\
                    iscsiadm -m node -T iqn.2026-11.io.lunette:a -p [::1]:3260 --login\nready\n";
        assert_eq!(got, want);
        assert_eq!(hints(&[portal], std::slice::from_ref(&shown)), Vec::<String>::new());

        // Lines that nobody can follow, and a target that nobody elsewhere can see.
        let any = "0.0.0.0:3260".parse().expect("valid");
        let got = text(&[], &[any], std::slice::from_ref(&shown));
        assert!(
            got.contains("portal 0.0.0.0:3260\n") && got.contains("-p 127.0.0.1:3260 --login\n"),
            "{got}"
        );
        let said = hints(&[any], std::slice::from_ref(&shown));
        assert!(
            said[0].contains("every address") && said[1].contains(&format!("target allow {iqn}")),
            "{said:?}"
        );
        let allowed = Target { acls: vec![Acl::default()], ..shown };
        assert_eq!(hints(&[any], &[allowed]).len(), 1);
    }
}

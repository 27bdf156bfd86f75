//! Ports: taken before anything is made, so that a port in use is found while nothing has changed.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use anyhow::{Result, anyhow, bail};
use socket2::{Domain, Protocol, Socket, Type};

use crate::admin::DEFAULT_PORT;

/// The port of iSCSI (RFC 7143 4.2.7.3, IANA).
const ISCSI_PORT: u16 = 3260;

/// Where `up` is to be reached.
#[derive(Debug)]
pub(crate) struct Ports {
    /// Of each gateway.
    pub(crate) gateways: Vec<Vec<SocketAddr>>,
    /// Of each member of the control plane.
    pub(crate) admin: Vec<SocketAddr>,
    /// Keep the ports taken until the servers take them over.
    held: Vec<TcpListener>,
}

impl Ports {
    /// Takes all of them; port 0 becomes one that is free. `portals` are those of the first of so many gateways, and the others
    /// follow them. `members` are those of the members of a control plane that has several of them already; a new one has
    /// `control`.
    pub(crate) fn take(
        portals: &[SocketAddr],
        gateways: usize,
        admin: Option<&str>,
        members: &[SocketAddr],
        control: usize,
    ) -> Result<Self> {
        let default = [SocketAddr::from((Ipv4Addr::LOCALHOST, ISCSI_PORT))];
        let portals = if portals.is_empty() { &default } else { portals };
        let admin = match (admin, members.first()) {
            (None, Some(first)) => *first,
            (None, None) => SocketAddr::from((Ipv4Addr::LOCALHOST, DEFAULT_PORT)),
            (Some(text), first) => {
                // Of several members it is the first.
                let address = text.split(',').next().unwrap_or(text).trim();
                let address = address.strip_prefix("http://").unwrap_or(address);
                let address: SocketAddr = address
                    .parse()
                    .map_err(|_| anyhow!("--admin {text}: write ADDR:PORT, such as 127.0.0.1:7400"))?;
                match first {
                    // Its members know each other by their addresses.
                    Some(first) if *first != address && address.port() != 0 => bail!(
                        "the first member of the control plane is at {first}, and its address cannot change: leave --admin and LUNETTE_ADMIN out"
                    ),
                    Some(first) => *first,
                    None => address,
                }
            }
        };
        let mut held = Vec::new();
        let mut first = Vec::new();
        for portal in portals {
            first.push(hold(*portal, "--portal", &mut held)?);
        }
        let mut taken = vec![first.clone()];
        taken.resize(gateways.max(1), Vec::new());
        for portal in first {
            let others = following(portal, taken.len() - 1, "--portal", &mut held)?;
            taken.iter_mut().skip(1).zip(others).for_each(|(portals, address)| portals.push(address));
        }
        let first = hold(admin, "--admin", &mut held)?;
        let mut admin = vec![first];
        match members.split_first() {
            Some((_, others)) => {
                for address in others {
                    admin.push(hold(*address, "--admin", &mut held)?);
                }
            }
            None => admin.extend(following(first, control.saturating_sub(1), "--admin", &mut held)?),
        }
        Ok(Self { gateways: taken, admin, held })
    }

    /// All portals, those of the first gateway first.
    pub(crate) fn portals(&self) -> Vec<SocketAddr> {
        self.gateways.concat()
    }

    /// Lets the ports go, for the servers that bind them next.
    pub(crate) fn release(&mut self) {
        self.held.clear();
    }
}

/// Addresses of portals that can be listened on, with a free port for each port 0.
pub(crate) fn hold_portals(portals: &[SocketAddr]) -> Result<Vec<SocketAddr>> {
    let mut held = Vec::new();
    portals.iter().map(|portal| hold(*portal, "portals", &mut held)).collect()
}

/// Free ports after that of `first`. Not any that the system has to give: those serve outgoing connections too, and one of these
/// may have the port at the next start.
fn following(
    first: SocketAddr,
    count: usize,
    option: &str,
    held: &mut Vec<TcpListener>,
) -> Result<Vec<SocketAddr>> {
    let mut found = Vec::with_capacity(count);
    let mut ports = first.port().saturating_add(1)..=u16::MAX;
    while found.len() < count {
        let Some(port) = ports.next() else {
            bail!("no {count} free ports follow {first}: choose another with {option}");
        };
        let address = SocketAddr::new(first.ip(), port);
        // One that is in use, or not for us, is none of those.
        if let Ok(address) = hold(address, option, held) {
            found.push(address);
        }
    }
    Ok(found)
}

fn hold(address: SocketAddr, option: &str, held: &mut Vec<TcpListener>) -> Result<SocketAddr> {
    if held.iter().any(|held| held.local_addr().is_ok_and(|held| held == address)) {
        bail!("{address} is named twice: choose another with {option}, or name it once");
    }
    match listen(address).and_then(|listener| Ok((listener.local_addr()?, listener))) {
        Ok((address, listener)) => {
            held.push(listener);
            Ok(address)
        }
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            bail!("{address} is in use: stop what listens there, or choose another with {option}")
        }
        Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {
            bail!("{address} is no address of this machine: choose another with {option}")
        }
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            bail!("{address} may not be used by this user: choose another with {option}")
        }
        Err(error) => bail!("{address} cannot be used: {error}; choose another with {option}"),
    }
}

/// As the servers do it: two of them may not listen on one port, but what an earlier process left
/// behind does not count, and IPv6 leaves IPv4 alone.
fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(1)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_refused_by_its_option() {
        // Guards against a start that makes a data directory and then fails to listen.
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut taken = Ports::take(&[any, any], 1, Some("127.0.0.1:0"), &[], 1).expect("free ports");
        let portals = taken.gateways[0].clone();
        assert!(portals.iter().all(|portal| portal.port() != 0) && taken.admin[0].port() != 0);
        assert_ne!(portals[0], portals[1]);
        let portal =
            Ports::take(&portals[..1], 1, Some("127.0.0.1:0"), &[], 1).expect_err("in use").to_string();
        assert!(portal.contains("in use") && portal.contains("--portal"), "{portal}");
        let admin = Ports::take(&[any], 1, Some(&taken.admin[0].to_string()), &[], 1)
            .expect_err("in use")
            .to_string();
        assert!(admin.contains("in use") && admin.contains("--admin"), "{admin}");
        let twice = Ports::take(&[portals[0]], 1, Some(&portals[0].to_string()), &[], 1);
        assert!(twice.is_err());
        let free = Ports::take(&[any], 1, Some("127.0.0.1:0"), &[], 1).expect("free ports").gateways[0][0];
        let twice =
            Ports::take(&[free, free], 1, Some("127.0.0.1:0"), &[], 1).expect_err("twice").to_string();
        assert!(twice.contains("is named twice") && twice.contains("--portal"), "{twice}");
        let admin = taken.admin[0].to_string();
        taken.release();
        assert!(Ports::take(&[any], 1, Some(&admin), &[], 1).is_ok());
        assert!(Ports::take(&[any], 1, Some("localhost"), &[], 1).is_err());
    }

    #[test]
    fn members_and_gateways_follow_each_other() {
        // Guards against members at ports that an outgoing connection may have at the next start.
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let free = Ports::take(&[any], 1, Some("127.0.0.1:0"), &[], 1).expect("free ports").admin[0];
        let Ok(taken) = Ports::take(&[any, any], 3, Some(&free.to_string()), &[], 3) else { return };
        assert_eq!(taken.gateways.len(), 3);
        let all: std::collections::BTreeSet<_> = taken.gateways.iter().flatten().collect();
        assert_eq!(all.len(), 6, "{:?}", taken.gateways);
        for portal in 0..2 {
            assert!(taken.gateways.is_sorted_by_key(|portals| portals[portal]), "{:?}", taken.gateways);
        }
        assert!(taken.admin.is_sorted() && taken.admin.len() == 3, "{:?}", taken.admin);
        assert_eq!(taken.admin[0], free);
        let last = SocketAddr::from((Ipv4Addr::LOCALHOST, u16::MAX));
        let none = following(last, 2, "--admin", &mut Vec::new())
            .expect_err("there are no ports after it")
            .to_string();
        assert!(none.contains("--admin"), "{none}");
    }
}

//! Which TargetAddress values a discovery session is told (RFC 7143 13.8, appendix C).
//!
//! The portal that the connection came in on is first. A portal bound to every address is told as
//! the address that the initiator used, for that is one it can reach. Loopback portals are told
//! to initiators on this machine only.
//!
//! Those of the other gateways follow, for an initiator that is to survive the loss of a gateway has to know them all. Of
//! a portal there that is bound to every address only that gateway knows which ones it has: it tells them itself.

use std::net::{IpAddr, SocketAddr};

/// Where a connection came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The address that the initiator connected to.
    pub local: SocketAddr,
    /// The initiator's address.
    pub peer: SocketAddr,
    /// The portal that accepted it, as it is bound.
    pub portal: SocketAddr,
}

/// The addresses to tell with their portal group tags, in order, each once: by the portals of this gateway with its tag,
/// and those of the others with theirs.
#[must_use]
pub fn reachable(
    (own, tag): (&[SocketAddr], u16),
    others: impl Iterator<Item = (SocketAddr, u16)>,
    endpoint: &Endpoint,
) -> Vec<(SocketAddr, u16)> {
    let here = endpoint.local.ip().to_canonical();
    let mut addresses = vec![(SocketAddr::new(here, endpoint.local.port()), tag)];
    let mut push = |address: SocketAddr, tag: u16| {
        let is_reachable = !address.ip().is_loopback() || here.is_loopback();
        if is_reachable && !addresses.iter().any(|(known, _)| *known == address) {
            addresses.push((address, tag));
        }
    };
    for portal in own {
        let ip = match portal.ip() {
            // An unspecified address of the other family cannot be named from here.
            ip if ip.is_unspecified() && ip.is_ipv4() == here.is_ipv4() => here,
            ip if ip.is_unspecified() => continue,
            ip => ip,
        };
        push(SocketAddr::new(ip, portal.port()), tag);
    }
    for (portal, tag) in others.filter(|(portal, _)| !portal.ip().is_unspecified()) {
        push(SocketAddr::new(portal.ip().to_canonical(), portal.port()), tag);
    }
    addresses
}

/// `address:port,tag`, IPv6 in brackets, without a scope (RFC 7143 13.8).
#[must_use]
pub fn target_address(address: SocketAddr, tag: u16) -> String {
    match address.ip() {
        IpAddr::V4(ip) => format!("{ip}:{},{tag}", address.port()),
        IpAddr::V6(ip) => format!("[{ip}]:{},{tag}", address.port()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(portals: &[&str], local: &str) -> Vec<String> {
        told_beside(portals, &[], local)
    }

    fn told_beside(portals: &[&str], others: &[(&str, u16)], local: &str) -> Vec<String> {
        let portals: Vec<SocketAddr> = portals.iter().map(|portal| portal.parse().unwrap()).collect();
        let others = others.iter().map(|(portal, tag)| (portal.parse().unwrap(), *tag));
        let local = local.parse().unwrap();
        let endpoint = Endpoint { local, peer: local, portal: local };
        let addresses = reachable((&portals, 7), others, &endpoint);
        addresses.into_iter().map(|(address, tag)| target_address(address, tag)).collect()
    }

    /// Guards initiators that lose a gateway: they are told the portals of the others, with their tags, but none that
    /// they cannot reach, none twice, and none that is no address.
    #[test]
    fn addresses_of_other_gateways() {
        let others = [
            ("10.0.0.2:3260", 9),
            ("[fd00::2]:3260", 9),
            ("127.0.0.1:3261", 11),
            ("0.0.0.0:3260", 12),
            ("[::]:3260", 12),
            ("[::ffff:10.0.0.3]:3260", 13),
        ];
        let told = told_beside(&["0.0.0.0:3260"], &others, "10.0.0.1:3260");
        assert_eq!(told, ["10.0.0.1:3260,7", "10.0.0.2:3260,9", "[fd00::2]:3260,9", "10.0.0.3:3260,13"]);
        let told = told_beside(&["127.0.0.1:3260"], &others[2..], "127.0.0.1:3260");
        assert_eq!(told, ["127.0.0.1:3260,7", "127.0.0.1:3261,11", "10.0.0.3:3260,13"]);
        let told = told_beside(&["10.0.0.1:3260"], &[("10.0.0.1:3260", 9)], "10.0.0.1:3260");
        assert_eq!(told, ["10.0.0.1:3260,7"], "a portal that another gateway had before");
    }

    /// Guards order, wildcard portals, loopback portals, and the form of IPv6 addresses.
    #[test]
    fn addresses() {
        let portals = ["127.0.0.1:3260", "10.0.0.1:3260", "[fd00::1]:3261"];
        assert_eq!(told(&portals, "10.0.0.1:3260"), ["10.0.0.1:3260,7", "[fd00::1]:3261,7"]);
        assert_eq!(told(&portals, "[fd00::1]:3261"), ["[fd00::1]:3261,7", "10.0.0.1:3260,7"]);
        assert_eq!(
            told(&portals, "127.0.0.1:3260"),
            ["127.0.0.1:3260,7", "10.0.0.1:3260,7", "[fd00::1]:3261,7"]
        );
        let wild = ["0.0.0.0:3260", "[::]:3260"];
        assert_eq!(told(&wild, "10.0.0.5:3260"), ["10.0.0.5:3260,7"]);
        assert_eq!(told(&wild, "[fe80::1%3]:3260"), ["[fe80::1]:3260,7"]);
        assert_eq!(told(&wild, "[::ffff:10.0.0.5]:3260"), ["10.0.0.5:3260,7"]);
    }
}

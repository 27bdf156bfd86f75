//! Which TargetAddress values a discovery session is told (RFC 7143 13.8, appendix C).
//!
//! The portal that the connection came in on is first. A portal bound to every address is told as
//! the address that the initiator used, for that is one it can reach. Loopback portals are told
//! to initiators on this machine only.

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

/// The addresses to tell, in order, each once.
#[must_use]
pub fn reachable(portals: &[SocketAddr], endpoint: &Endpoint) -> Vec<SocketAddr> {
    let mut addresses = vec![SocketAddr::new(endpoint.local.ip().to_canonical(), endpoint.local.port())];
    let here = addresses[0].ip();
    for portal in portals {
        let ip = match portal.ip() {
            // An unspecified address of the other family cannot be named from here.
            ip if ip.is_unspecified() && ip.is_ipv4() == here.is_ipv4() => here,
            ip if ip.is_unspecified() => continue,
            ip => ip,
        };
        let address = SocketAddr::new(ip, portal.port());
        if (!ip.is_loopback() || here.is_loopback()) && !addresses.contains(&address) {
            addresses.push(address);
        }
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
        let portals: Vec<SocketAddr> = portals.iter().map(|portal| portal.parse().unwrap()).collect();
        let local = local.parse().unwrap();
        let endpoint = Endpoint { local, peer: local, portal: local };
        reachable(&portals, &endpoint).into_iter().map(|address| target_address(address, 7)).collect()
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

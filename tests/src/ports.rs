//! Loopback ports that nobody else takes.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

/// Below Linux's ephemeral range (32768), or another test's outgoing connection could take the port
/// in the moment before the server binds it.
const FIRST: u32 = 20_000;
const COUNT: u32 = 12_000;

/// A loopback address that is free now.
///
/// # Panics
/// If no port of the range is free.
#[must_use]
pub fn free() -> SocketAddr {
    free_at(Ipv4Addr::LOCALHOST.into())
}

/// A port that is free now at `address`.
///
/// # Panics
/// If no port of the range is free.
#[must_use]
pub fn free_at(address: IpAddr) -> SocketAddr {
    // Tests run as processes side by side: start at a place of one's own, then go on from there.
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id().wrapping_mul(97);
    for _ in 0..COUNT {
        let offset = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        let port = u16::try_from(FIRST + offset).expect("below 32768");
        let socket = SocketAddr::new(address, port);
        if TcpListener::bind(socket).is_ok() {
            return socket;
        }
    }
    panic!("no free port in {FIRST}..{}", FIRST + COUNT);
}

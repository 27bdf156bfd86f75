//! Loopback ports that nobody else takes, also not while a server is down between two starts.
//!
//! Tests run as processes side by side, so a port is reserved by a lock on a file of its number for
//! as long as the process lives. Whatever else runs on the machine is asked by binding the port.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Mutex, PoisonError};

/// Below Linux's ephemeral range (32768), or another test's outgoing connection could take the port
/// in the moment before the server binds it.
const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;

/// Locks that last as long as the process.
static RESERVED: Mutex<Vec<File>> = Mutex::new(Vec::new());

/// A loopback address that is free now, and this process's from now on.
///
/// # Panics
/// If no port of the range is free.
#[must_use]
pub fn free() -> SocketAddr {
    free_at(Ipv4Addr::LOCALHOST.into())
}

/// A port that is free now at `address`, and this process's from now on.
///
/// # Panics
/// If no port of the range is free.
#[must_use]
pub fn free_at(address: IpAddr) -> SocketAddr {
    free_run(address, 1)
}

/// The first of `count` ports side by side that are free now at `address`, and this process's from now on.
///
/// # Panics
/// If there is no such run in the range.
#[must_use]
pub fn free_run(address: IpAddr, count: u16) -> SocketAddr {
    let folder = std::env::temp_dir().join(format!("lunette-tests-{}", rustix::process::getuid().as_raw()));
    std::fs::create_dir_all(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    // Starting at different places only saves tries.
    let start = u16::try_from(std::process::id().wrapping_mul(97) % u32::from(COUNT)).expect("below COUNT");
    let mut run = Vec::new();
    for port in (start..COUNT).chain(0..start).map(|offset| FIRST + offset) {
        let lock = File::create(folder.join(port.to_string())).expect("create a lock file");
        let socket = SocketAddr::new(address, port);
        if lock.try_lock().is_err() || TcpListener::bind(socket).is_err() {
            run.clear();
            continue;
        }
        if port == FIRST {
            run.clear();
        }
        run.push((lock, socket));
        if run.len() == usize::from(count) {
            let first = run[0].1;
            RESERVED
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .extend(run.into_iter().map(|(lock, _)| lock));
            return first;
        }
    }
    panic!("no {count} free ports side by side in {FIRST}..{}", FIRST + COUNT);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_given_twice() {
        // Guards against two tests that take each other's server for their own.
        let mut given: Vec<u16> = (0..50).map(|_| free().port()).collect();
        given.sort_unstable();
        given.dedup();
        assert_eq!(given.len(), 50);
    }
}

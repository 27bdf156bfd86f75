//! Portals: binds them, accepts connections, and starts a task for each.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};

use super::serve::serve;
use super::shared::Shared;
use crate::session::{ConnectionId, Endpoint};

const BACKLOG: i32 = 1024;
/// Out of file descriptors: others must close before anything can be accepted.
const PAUSE: Duration = Duration::from_millis(100);
/// Data that the peer does not acknowledge for so long ends the connection (RFC 5482).
const USER_TIMEOUT: Duration = Duration::from_secs(30);

static NEXT_CONNECTION: AtomicU64 = AtomicU64::new(1);

/// Binds a portal and listens, without accepting yet.
pub(super) fn bind(portal: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(portal), Type::STREAM, Some(Protocol::TCP))?;
    if portal.is_ipv6() {
        // The same port may then serve IPv4 as a portal of its own.
        socket.set_only_v6(true)?;
    }
    // A port whose old connections linger may be bound again; one that is listened on may not.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&portal.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Accepts until the task is ended.
pub(super) async fn accept(shared: Arc<Shared>, listener: TcpListener, portal: SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => welcome(&shared, stream, peer, portal),
            Err(error) => {
                tracing::warn!(%portal, %error, "cannot accept");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

fn welcome(shared: &Arc<Shared>, stream: TcpStream, peer: SocketAddr, portal: SocketAddr) {
    let Some(unproven) = shared.admit(peer.ip()) else {
        tracing::warn!(%peer, "refused: too many connections before login");
        return;
    };
    let Ok(local) = stream.local_addr() else { return };
    if let Err(error) = tune(&stream) {
        tracing::debug!(%peer, %error, "socket options");
    }
    let id = ConnectionId(NEXT_CONNECTION.fetch_add(1, Ordering::Relaxed));
    let endpoint = Endpoint { local, peer, portal };
    tokio::spawn(serve(Arc::clone(shared), stream, endpoint, id, unproven));
}

fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(USER_TIMEOUT))
}

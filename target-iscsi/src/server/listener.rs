//! Portals: binds them, accepts connections, and starts a task for each.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};

use super::mailbox::Mailbox;
use super::serve::serve;
use super::shared::Shared;
use crate::session::{ConnectionId, Endpoint};

/// As many as the kernel lets wait by default (net.core.somaxconn).
const BACKLOG: i32 = 4096;
/// Out of file descriptors: others must close before anything can be accepted.
const PAUSE: Duration = Duration::from_millis(100);
/// Data that the peer does not acknowledge for so long ends the connection (RFC 5482).
const USER_TIMEOUT: Duration = Duration::from_secs(30);
/// Silence after which the kernel asks whether the peer is there, and the time between its questions.
const KEEPALIVE: Duration = Duration::from_secs(10);

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
    let mut is_paused = false;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                if std::mem::take(&mut is_paused) {
                    tracing::info!(%portal, "accepting again");
                }
                welcome(&shared, stream, peer, portal);
            }
            // Of the one connection, which has gone already (accept(2)).
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted
                ) => {}
            Err(error) => {
                // Whoever comes now waits in the kernel. Said once, or the log would be full as well.
                if !std::mem::replace(&mut is_paused, true) {
                    tracing::warn!(%portal, %error, "cannot accept");
                }
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
    // Here and not in the task, which may run only after a stop has asked who is connected.
    let mailbox = Arc::new(Mailbox::default());
    shared.connect(id, Arc::clone(&mailbox));
    tokio::spawn(serve(Arc::clone(shared), stream, endpoint, id, mailbox, unproven));
}

fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE))
}

#[cfg(test)]
mod tests {
    use arc_swap::ArcSwap;
    use lunette_proto::map::Sealed;
    use zeroize::Zeroizing;

    use super::*;
    use crate::session::{Context, Guard, Secrets};

    struct NoSecrets;

    impl Secrets for NoSecrets {
        fn unseal(&self, _: &Sealed) -> Option<Zeroizing<Vec<u8>>> {
            None
        }
    }

    /// Guards a stop against a connection that has just come: it is counted before its task has run.
    #[test]
    fn counted_at_once() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let portal = "127.0.0.1:0".parse().unwrap();
            let listener = TcpListener::from_std(bind(portal).unwrap()).unwrap();
            let portal = listener.local_addr().unwrap();
            let context = Context {
                tag: 1,
                portals: vec![portal],
                exports: ArcSwap::default(),
                secrets: Arc::new(NoSecrets),
                guard: Guard::default(),
            };
            let shared = Arc::new(Shared::new(Arc::new(context)));
            let client = std::net::TcpStream::connect(portal).unwrap();
            let (stream, peer) = listener.accept().await.unwrap();
            let mut served = shared.served.subscribe();
            welcome(&shared, stream, peer, portal);
            assert_eq!(*served.borrow(), 1);
            drop(client);
            served.wait_for(|served| *served == 0).await.unwrap();
        });
    }

    /// Guards against peers that vanish without a word: the kernel gives up on them.
    #[test]
    fn dead_peers_are_noticed() {
        let listener = bind("[::1]:0".parse().unwrap()).unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            client.set_nonblocking(true).unwrap();
            let stream = TcpStream::from_std(client).unwrap();
            tune(&stream).unwrap();
            let socket = SockRef::from(&stream);
            assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(30)));
            assert!(socket.keepalive().unwrap() && stream.nodelay().unwrap());
            assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE);
            assert_eq!(socket.tcp_keepalive_interval().unwrap(), KEEPALIVE);
        });
    }
}

//! What the tasks of a gateway share: who is connected, who holds which session.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use lunette_proto::ids::VolumeId;
use lunette_proto::limits::{
    PRELOGIN_CONNECTIONS_MAX, PRELOGIN_CONNECTIONS_PER_ADDRESS_MAX, SESSIONS_MAX, SESSIONS_PER_INITIATOR_MAX,
};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::mailbox::{Mailbox, Post, Quiesced};
use crate::scsi::{Attention, Changed};
use crate::session::{
    Claim, ConnectionId, Context, Event, Inherited, Registry, SessionStats, Ticket, Verdict,
};

pub(super) struct Shared {
    pub(super) context: Arc<Context>,
    registry: Mutex<Registry>,
    connections: Mutex<BTreeMap<ConnectionId, Arc<Mailbox>>>,
    sessions: Mutex<BTreeMap<u16, Established>>,
    waiting: Mutex<Waiting>,
    /// Units that are being sanitized.
    pub(super) sanitizing: Mutex<BTreeMap<VolumeId, AbortHandle>>,
    /// Connections that are served; the gateway waits for 0 when it stops.
    pub(super) served: watch::Sender<usize>,
}

/// A session past its login.
pub(super) struct Established {
    pub(super) connection: ConnectionId,
    pub(super) stats: Arc<SessionStats>,
    pub(super) since_unix_ms: u64,
}

/// Connections that have not logged in.
#[derive(Default)]
struct Waiting {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

impl Shared {
    pub(super) fn new(context: Arc<Context>) -> Self {
        Self {
            context,
            registry: Mutex::new(Registry::new(SESSIONS_MAX, SESSIONS_PER_INITIATOR_MAX)),
            connections: Mutex::default(),
            sessions: Mutex::default(),
            waiting: Mutex::default(),
            sanitizing: Mutex::default(),
            served: watch::Sender::new(0),
        }
    }

    pub(super) fn connect(&self, id: ConnectionId, mailbox: Arc<Mailbox>) {
        self.connections.lock().insert(id, mailbox);
        self.served.send_modify(|served| *served += 1);
    }

    /// The connection is gone and drained: whoever waits for its session `tsih` gets it, and what is
    /// `left` of it if it reinstates the connection.
    pub(super) fn disconnect(&self, id: ConnectionId, tsih: Option<u16>, left: Option<Inherited>) {
        if let Some(tsih) = tsih {
            self.sessions.lock().remove(&tsih);
        }
        let grant = self.registry.lock().release(id);
        if let Some(grant) = grant {
            let session = left.filter(|_| grant.inherits);
            self.post(grant.to, Event::Granted { tsih: grant.tsih, session });
            if grant.superseded {
                self.post(grant.to, Event::Superseded);
            }
        }
        // Last, so that what is broadcast to all reaches the one or the other.
        self.connections.lock().remove(&id);
        self.served.send_modify(|served| *served -= 1);
    }

    pub(super) fn post(&self, to: ConnectionId, event: Event) {
        let mailbox = self.connections.lock().get(&to).cloned();
        if let Some(mailbox) = mailbox {
            mailbox.post(Post::Event(event));
        }
    }

    /// Sends an event to all connections but `except`.
    pub(super) fn broadcast(&self, except: Option<ConnectionId>, event: impl Fn() -> Event) {
        for (id, mailbox) in &*self.connections.lock() {
            if Some(*id) != except {
                mailbox.post(Post::Event(event()));
            }
        }
    }

    pub(super) fn claim(&self, id: ConnectionId, claim: Claim) {
        let verdict = self.registry.lock().claim(id, claim);
        match verdict {
            Verdict::Granted { tsih } => self.post(id, Event::Granted { tsih, session: None }),
            Verdict::Wait { holder } => self.post(holder, Event::Superseded),
            Verdict::Refused { status } => self.post(id, Event::Refused { status }),
        }
    }

    pub(super) fn establish(&self, connection: ConnectionId, stats: Arc<SessionStats>) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let since_unix_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        self.sessions.lock().insert(stats.tsih, Established { connection, stats, since_unix_ms });
    }

    /// Asks all sessions but `id` to abort what concerns `volumes`.
    pub(super) fn reset(
        &self,
        id: ConnectionId,
        origin: &Arc<Mailbox>,
        token: u64,
        volumes: &Arc<[VolumeId]>,
        attention: Attention,
    ) {
        let ticket = Ticket(Arc::new(Quiesced { origin: Arc::clone(origin), token }));
        self.broadcast(Some(id), || Event::Reset {
            volumes: Arc::clone(volumes),
            attention,
            ticket: ticket.clone(),
        });
    }

    /// Tells the sessions what another gateway has changed.
    pub(super) fn tell(&self, changed: &Arc<Changed>) {
        if changed.concerns_anyone() {
            self.broadcast(None, || Event::Changed { changed: Arc::clone(changed), ticket: None });
        }
    }

    /// Tells all sessions but `id` what that one has changed.
    pub(super) fn tell_others(
        &self,
        id: ConnectionId,
        origin: &Arc<Mailbox>,
        token: u64,
        changed: &Arc<Changed>,
    ) {
        let ticket = Ticket(Arc::new(Quiesced { origin: Arc::clone(origin), token }));
        self.broadcast(Some(id), || Event::Changed {
            changed: Arc::clone(changed),
            ticket: Some(ticket.clone()),
        });
    }

    pub(super) fn drop_target(&self, id: ConnectionId, target: &str) {
        let meant = |session: &&Established| {
            session.connection != id && session.stats.target.as_deref() == Some(target)
        };
        let connections: Vec<_> =
            self.sessions.lock().values().filter(meant).map(|session| session.connection).collect();
        for connection in connections {
            self.post(connection, Event::Kick);
        }
    }

    pub(super) fn with_sessions<R>(&self, look: impl FnOnce(&BTreeMap<u16, Established>) -> R) -> R {
        look(&self.sessions.lock())
    }

    /// Counts a connection before its login; `None` if there are too many.
    pub(super) fn admit(self: &Arc<Self>, address: IpAddr) -> Option<Unproven> {
        let mut waiting = self.waiting.lock();
        if waiting.total >= PRELOGIN_CONNECTIONS_MAX {
            return None;
        }
        let of_address = waiting.by_address.entry(address).or_default();
        if *of_address >= PRELOGIN_CONNECTIONS_PER_ADDRESS_MAX {
            return None;
        }
        *of_address += 1;
        waiting.total += 1;
        Some(Unproven { shared: Arc::clone(self), address })
    }
}

/// A connection's place among those that have not logged in; dropped when it has.
pub(super) struct Unproven {
    shared: Arc<Shared>,
    address: IpAddr,
}

impl Drop for Unproven {
    fn drop(&mut self) {
        let mut waiting = self.shared.waiting.lock();
        waiting.total -= 1;
        if let Some(of_address) = waiting.by_address.get_mut(&self.address) {
            *of_address -= 1;
            if *of_address == 0 {
                waiting.by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use arc_swap::ArcSwap;
    use lunette_proto::map::Sealed;
    use zeroize::Zeroizing;

    use super::*;
    use crate::session::{Guard, Secrets};

    struct NoSecrets;

    impl Secrets for NoSecrets {
        fn unseal(&self, _: &Sealed) -> Option<Zeroizing<Vec<u8>>> {
            None
        }
    }

    /// Guards others against connections that do not log in: so many of an address, so many of all, and a
    /// place is free again as soon as one is given up.
    #[test]
    fn places_before_login() {
        let context = Context {
            tag: 1,
            portals: Vec::new(),
            exports: ArcSwap::default(),
            secrets: Arc::new(NoSecrets),
            guard: Guard::default(),
        };
        let shared = Arc::new(Shared::new(Arc::new(context)));
        let address = |number: usize| Ipv4Addr::from_bits(u32::try_from(number).unwrap()).into();
        let mut places = Vec::new();
        for number in 0..PRELOGIN_CONNECTIONS_MAX / PRELOGIN_CONNECTIONS_PER_ADDRESS_MAX {
            let of_address = || shared.admit(address(number));
            places.extend(std::iter::from_fn(of_address));
            assert_eq!(places.len(), (number + 1) * PRELOGIN_CONNECTIONS_PER_ADDRESS_MAX);
        }
        assert_eq!(places.len(), PRELOGIN_CONNECTIONS_MAX);
        assert!(shared.admit(address(1 << 20)).is_none());
        places.pop();
        assert!(shared.admit(address(0)).is_none());
        let place = shared.admit(address(1 << 20));
        assert!(place.is_some());
        drop((place, places));
        let waiting = shared.waiting.lock();
        assert!(waiting.total == 0 && waiting.by_address.is_empty());
    }
}

//! The shell around sessions: sockets, tasks and the clock.
//!
//! ```text
//! portal -> accept -> one task per connection <-> session::Connection
//!                           |      ^
//!                         device   +-- mailbox: completions, events of other sessions
//! ```
//!
//! [`Gateway::start`] binds every portal before anything is served. All data of a connection is
//! handled in its own task, so nothing but a device's completion crosses threads.

mod listener;
mod mailbox;
mod receive;
mod sanitize;
mod serve;
mod shared;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use lunette_proto::ids::GatewayId;
use lunette_proto::map::ClusterMap;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::exports::{Devices, Exports};
use crate::scsi::Units;
use crate::session::{Context, Event, Guard, Secrets};
use shared::{Established, Shared};

/// Time that sessions get to answer what their devices have, when the gateway stops.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// Who the gateway is, and where it listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayConfig {
    /// Its id.
    pub id: GatewayId,
    /// Its name, for logs.
    pub name: String,
    /// Its target portal group tag, which is its relative target port as well.
    pub tag: u16,
    /// Where to listen. Port 0 draws a free one.
    pub portals: Vec<SocketAddr>,
}

/// Why a gateway cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A portal cannot be bound.
    #[error("cannot listen on portal {portal}: {source}")]
    Bind {
        /// Which.
        portal: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// A session, as operators see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    /// Its handle.
    pub tsih: u16,
    /// The target's name; `None`: a discovery session.
    pub target: Option<String>,
    /// The initiator's name.
    pub initiator: String,
    /// Where it connects from.
    pub initiator_address: SocketAddr,
    /// Where it connected to.
    pub portal: SocketAddr,
    /// The initiator's part of the session's id.
    pub isid: [u8; 6],
    /// When its login was over.
    pub since_unix_ms: u64,
    /// SCSI commands.
    pub commands: u64,
    /// Bytes of Data-In.
    pub read_bytes: u64,
    /// Bytes of Data-Out.
    pub written_bytes: u64,
    /// Commands that ended with another status than GOOD.
    pub errors: u64,
    /// Header digests are in use.
    pub header_digest: bool,
    /// Data digests are in use.
    pub data_digest: bool,
    /// The CHAP user, if it was proven.
    pub chap_user: Option<String>,
}

/// A running gateway. Dropping it stops accepting; [`Gateway::stop`] ends the sessions too.
pub struct Gateway {
    shared: Arc<Shared>,
    units: Units,
    config: GatewayConfig,
    acceptors: Mutex<Vec<JoinHandle<()>>>,
}

impl Gateway {
    /// Binds all portals, then serves them. Must be called within a tokio runtime.
    ///
    /// `devices` must already know what `map` names: a volume without a device is not shown.
    pub fn start(
        config: GatewayConfig,
        devices: Arc<dyn Devices>,
        secrets: Arc<dyn Secrets>,
        map: &ClusterMap,
    ) -> Result<Self, StartError> {
        let mut listeners = Vec::new();
        for portal in &config.portals {
            let bound = listener::bind(*portal).and_then(|listener| {
                let portal = listener.local_addr()?;
                Ok((TcpListener::from_std(listener)?, portal))
            });
            listeners.push(bound.map_err(|source| StartError::Bind { portal: *portal, source })?);
        }
        let units = Units::new(devices);
        let context = Context {
            tag: config.tag,
            portals: listeners.iter().map(|(_, portal)| *portal).collect(),
            exports: ArcSwap::from_pointee(Exports::new(map, config.tag, &units)),
            secrets,
            guard: Guard::default(),
        };
        let shared = Arc::new(Shared::new(Arc::new(context)));
        sanitize::begin_all(&shared);
        let acceptors = listeners
            .into_iter()
            .map(|(listener, portal)| {
                tracing::info!(gateway = %config.id, name = %config.name, %portal, "portal is open");
                tokio::spawn(listener::accept(Arc::clone(&shared), listener, portal))
            })
            .collect();
        Ok(Self { shared, units, config, acceptors: Mutex::new(acceptors) })
    }

    /// The portals, as they are bound.
    #[must_use]
    pub fn portals(&self) -> &[SocketAddr] {
        &self.shared.context.portals
    }

    /// Takes over what `map` says is kept of the logical units. To be called before `devices` follow the map: a device
    /// that becomes active by it must not serve whom a reservation has shut out meanwhile.
    pub fn learn(&self, map: &ClusterMap) {
        for changed in self.units.learn(map) {
            self.shared.tell(&changed);
        }
    }

    /// Exports what `map` says from now on; [`learn`](Self::learn) has taken over its part before. Sessions learn what
    /// changed for them; those whose target is gone, or who are no longer admitted, are closed. A map older than the
    /// present one is ignored. `devices` must already know what `map` names.
    pub fn apply_map(&self, map: &ClusterMap) {
        let exports = Arc::new(Exports::new(map, self.config.tag, &self.units));
        self.shared.context.exports.rcu(|present| {
            if present.epoch() > exports.epoch() { Arc::clone(present) } else { Arc::clone(&exports) }
        });
        self.shared.broadcast(None, || Event::ExportsChanged);
        sanitize::begin_all(&self.shared);
    }

    /// All sessions, by handle.
    #[must_use]
    pub fn sessions(&self) -> Vec<SessionInfo> {
        self.shared.with_sessions(|sessions| sessions.values().map(SessionInfo::from).collect())
    }

    /// Ends a session. Gives whether it was there. The initiator may log in again.
    pub fn kick(&self, tsih: u16) -> bool {
        let connection =
            self.shared.with_sessions(|sessions| sessions.get(&tsih).map(|session| session.connection));
        if let Some(connection) = connection {
            self.shared.post(connection, Event::Kick);
        }
        connection.is_some()
    }

    /// Stops accepting, lets sessions answer what their devices have, and closes them. Returns when
    /// the last command has come back from its device.
    pub async fn stop(&self) {
        for acceptor in self.stop_accepting() {
            // Once it has ended the port is free and nobody new comes in. It was aborted: an error.
            let _ = acceptor.await;
        }
        let mut served = self.shared.served.subscribe();
        self.shared.broadcast(None, || Event::Stop);
        if tokio::time::timeout(STOP_PATIENCE, served.wait_for(|served| *served == 0)).await.is_err() {
            self.shared.broadcast(None, || Event::Superseded);
            // The sender lives as long as `self`, so waiting cannot fail.
            let _ = served.wait_for(|served| *served == 0).await;
        }
    }

    fn stop_accepting(&self) -> Vec<JoinHandle<()>> {
        // What has begun goes on at another gateway, or after a restart.
        for sanitizer in std::mem::take(&mut *self.shared.sanitizing.lock()).into_values() {
            sanitizer.abort();
        }
        let acceptors = std::mem::take(&mut *self.acceptors.lock());
        for acceptor in &acceptors {
            acceptor.abort();
        }
        acceptors
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.stop_accepting();
    }
}

impl From<&Established> for SessionInfo {
    fn from(session: &Established) -> Self {
        let stats = &session.stats;
        Self {
            tsih: stats.tsih,
            target: stats.target.clone(),
            initiator: stats.initiator.clone(),
            initiator_address: stats.peer,
            portal: stats.local,
            isid: stats.isid,
            since_unix_ms: session.since_unix_ms,
            commands: stats.commands(),
            read_bytes: stats.read_bytes(),
            written_bytes: stats.written_bytes(),
            errors: stats.errors(),
            header_digest: stats.header_digest,
            data_digest: stats.data_digest,
            chap_user: stats.chap_user.clone(),
        }
    }
}

//! A member of the control plane, from its folder to its socket.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lunette_proto::ids::ClusterId;
use lunette_proto::map::ClusterMap;
use parking_lot::Mutex;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::published::Published;
use crate::raft::store::{Opened, Wanted, open, path_in};
use crate::raft::{Consensus, ConsensusError, OpenError, RaftMember};
use crate::seal::Sealer;
use crate::server::{Context, serve};

/// A member that is alone leads within milliseconds; one of several takes an election.
const LEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long streams may take to end when the member stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// What a member of the control plane is told.
#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// The cluster that the folder must belong to; `None` takes the folder's word, and a new folder gets a
    /// cluster id at random.
    pub cluster: Option<ClusterId>,
    /// This member's id among the members of the control plane, from 1; `None` takes the folder's word, and refuses a new
    /// folder ([`OpenError::Nameless`]).
    pub member: Option<u64>,
    /// Where to listen; port 0 takes one that is free.
    pub listen: SocketAddr,
    /// Where others reach it; `None`: where it listens.
    pub advertise: Option<String>,
    /// The file of the cluster's key. It is made together with a new folder if it does not exist, but
    /// never for a member that joins.
    pub key_file: PathBuf,
    /// A new folder waits to be added to the cluster by its leader instead of founding one; `cluster` must
    /// be named then.
    pub join: bool,
    /// How long a disk is out before its copies are made elsewhere, while this member leads.
    pub rebuild_after: Duration,
    /// How long its log gets.
    pub log: LogLimits,
}

/// When the log of a member is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLimits {
    /// Entries between two snapshots.
    pub snapshot_entries: u64,
    /// Entries before a snapshot that stay, so that a member that lags a little needs none.
    pub kept_entries: u64,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self { snapshot_entries: 5000, kept_entries: 1000 }
    }
}

/// Why the control plane does not start.
#[derive(Debug, Error)]
pub enum ControlError {
    /// The address cannot be listened on.
    #[error("the control plane cannot listen on {address}: {source}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The folder cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Consensus does not start.
    #[error(transparent)]
    Consensus(#[from] ConsensusError),
    /// A member that joins must be told which cluster.
    #[error("a member that joins a control plane must be told the cluster's id")]
    JoinUnnamed,
    /// A task of the start was cut off.
    #[error("the start of the control plane was cut off")]
    CutOff,
}

/// A running member.
pub struct Control {
    address: SocketAddr,
    advertise: String,
    context: Arc<Context>,
    member: Arc<RaftMember>,
    listener: Mutex<Option<TcpListener>>,
    server: Mutex<Option<JoinHandle<()>>>,
}

impl Control {
    /// Opens the member's folder, or founds a cluster in one that is empty, and starts consensus. Nobody is
    /// served before [`serve`](Self::serve). Nothing is made on the disk if the address is taken.
    pub async fn open(folder: &Path, config: ControlConfig) -> Result<Self, ControlError> {
        let listen = |source| ControlError::Listen { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;

        if config.join {
            // A joining member that made up a cluster or a key would be of no use to anybody.
            config.cluster.ok_or(ControlError::JoinUnnamed)?;
            Sealer::open(&config.key_file).map_err(OpenError::from)?;
        }
        let wanted = Wanted { cluster: config.cluster, member: config.member, key: config.key_file };
        let folder = folder.to_owned();
        let opened = tokio::task::spawn_blocking(move || open(&folder, &wanted)).await;
        let Opened { identity, sealer, store, log, machine, published } =
            opened.map_err(|_| ControlError::CutOff)??;
        let member = Arc::new(RaftMember::start(identity, store, log, machine, config.log).await?);
        let context = Context::new(
            identity.cluster,
            Arc::clone(&member) as Arc<dyn Consensus>,
            published,
            Arc::new(sealer),
            config.rebuild_after,
            CancellationToken::new(),
            TaskTracker::new(),
        );
        let advertise = config.advertise.unwrap_or_else(|| address.to_string());
        let (listener, server) = (Mutex::new(Some(listener)), Mutex::new(None));
        let control = Self { address, advertise, context, member, listener, server };
        control.member.found_or_resume(&control.advertise, config.join).await?;
        Ok(control)
    }

    /// The file that holds a member's state. Without it nobody knows which ids were given out.
    #[must_use]
    pub fn store_file(folder: &Path) -> PathBuf {
        path_in(folder)
    }

    /// Serves, and returns at once. A member without a quorum serves too, and answers so.
    pub fn start(&self) {
        let listener = self.listener.lock().take();
        if let Some(listener) = listener {
            let (context, member) = (Arc::clone(&self.context), Arc::clone(&self.member));
            let server = tokio::spawn(async move {
                if let Err(error) = serve(listener, context, member).await {
                    tracing::error!(%error, "the control plane's server has ended");
                }
            });
            *self.server.lock() = Some(server);
            let (member, advertise) = (Arc::clone(&self.member), self.advertise.clone());
            let stop = self.context.stop.clone();
            self.context.tasks.spawn(async move {
                let settle = async {
                    if member.led().await? { member.settle_address(&advertise).await } else { Ok(()) }
                };
                let settled = tokio::select! {
                    settled = settle => settled,
                    () = stop.cancelled() => return,
                };
                if let Err(error) = settled {
                    tracing::warn!(%error, advertise, "the control plane is listed at an earlier address");
                }
            });
        }
    }

    /// Serves, and returns once there is a leader and the cluster is founded. A member that joins is served others' messages
    /// and returns when it has been added.
    pub async fn serve(&self) -> Result<(), ControlError> {
        self.start();
        if !timeout(LEADER_TIMEOUT, self.member.led()).await.map_err(|_| ConsensusError::NoQuorum)?? {
            return Ok(());
        }
        let founded = async {
            let mut epochs = self.published().epochs();
            while self.map().cluster != self.cluster() && epochs.changed().await.is_ok() {}
        };
        timeout(LEADER_TIMEOUT, founded).await.map_err(|_| ConsensusError::NoQuorum)?;
        self.member.settle_address(&self.advertise).await?;
        Ok(self.member.read_barrier().await?)
    }

    /// This member's id.
    #[must_use]
    pub fn member(&self) -> u64 {
        self.member.identity().member
    }

    /// Where others reach it: HOST:PORT.
    #[must_use]
    pub fn advertised(&self) -> &str {
        &self.advertise
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The cluster.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.context.cluster
    }

    /// The cluster's key.
    #[must_use]
    pub fn sealer(&self) -> Arc<Sealer> {
        Arc::clone(&self.context.sealer)
    }

    /// The newest map that this member has applied.
    #[must_use]
    pub fn map(&self) -> ClusterMap {
        self.published().state().map().clone()
    }

    /// The state as this member has applied it.
    #[must_use]
    pub fn published(&self) -> &Arc<Published> {
        &self.context.published
    }

    /// Consensus, for changes of the membership.
    #[must_use]
    pub fn consensus(&self) -> &dyn Consensus {
        &*self.member
    }

    /// Ends every stream, stops consensus and closes the store. When this returns, another process may
    /// open the folder and listen on the address.
    pub async fn stop(self) {
        self.context.stop.cancel();
        self.context.tasks.close();
        drop(self.listener.lock().take());
        let server = self.server.lock().take();
        if let Some(server) = server {
            let abort = server.abort_handle();
            // A peer that keeps its connection open holds the server's graceful end up.
            if timeout(STOP_TIMEOUT, server).await.is_err() {
                abort.abort();
            }
        }
        if timeout(STOP_TIMEOUT, self.context.tasks.wait()).await.is_err() {
            tracing::warn!("streams of the control plane have not ended in time");
        }
        self.member.stop().await;
    }
}

/// One that is dropped without a stop serves nobody any more; its store closes with its last task.
impl Drop for Control {
    fn drop(&mut self) {
        self.context.stop.cancel();
    }
}

//! `lunette node run`: a storage node, and the member of the control plane that it may carry.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use lunette_control::api::cluster::report::Member;
use lunette_control::api::cluster::{NodeReport, RegisterNodeResponse, Report};
use lunette_control::client::{Attached, Attachment};
use lunette_proto::ids::DiskId;
use lunette_storage_node::Node;
use tokio_util::sync::CancellationToken;

use super::added::{AddedDisks, Refused};
use super::control::{self, ControlMember};
use super::member::{PATIENCE, control_plane, register};
use super::stop;
use super::storage::{Prepared, Storage, StorageConfig, StorageDisk};
use crate::admin::Address;
use crate::config::{ClusterKey, NodeConfig};
use crate::output;

/// Runs until told to stop.
pub(crate) async fn run(path: &Path, token: Option<&Path>) -> Result<()> {
    let config = NodeConfig::load(path)?;
    let stop = stop::on_signal()?;
    let key = control::key(&config.cluster_key_file, token, &config.admin, &stop).await?;
    let mut node = NodeProcess::default();
    let outcome = node.serve(config, &key, &stop).await;
    node.close().await;
    match outcome {
        // Told to stop while it waited for others: nothing has failed.
        Err(_) if stop.is_cancelled() => Ok(()),
        outcome => outcome,
    }
}

/// What runs, for as much of it as was started.
#[derive(Default)]
struct NodeProcess {
    control: Option<ControlMember>,
    node: Option<StorageMember>,
}

impl NodeProcess {
    async fn serve(&mut self, config: NodeConfig, key: &ClusterKey, stop: &CancellationToken) -> Result<()> {
        // The disks are looked at and the port is taken before anything else is touched.
        let prepared = Prepared::new(storage_config(&config, key)).await?;
        if let Some(control) = &config.control {
            self.control = Some(ControlMember::start(&config, control, key, stop).await?);
        }
        self.node = Some(StorageMember::start(prepared, &config.admin, stop).await?);
        let _ = output::try_print("ready\n");
        stop.cancelled().await;
        Ok(())
    }

    async fn close(&mut self) {
        if let Some(node) = self.node.take() {
            node.close().await;
        }
        if let Some(control) = self.control.take() {
            control.stop().await;
        }
    }
}

/// A node that serves and that the control plane hears of.
pub(crate) struct StorageMember {
    storage: Storage,
    added: AddedDisks,
    attachment: Attachment,
}

impl StorageMember {
    /// Announces the node, opens its disks, serves them.
    async fn start(prepared: Prepared, admin: &[Address], stop: &CancellationToken) -> Result<Self> {
        let registered = Self::register(&prepared, admin, stop).await?;
        Self::serve(prepared, registered, admin, stop).await
    }

    /// Announces the node.
    pub(crate) async fn register(
        prepared: &Prepared,
        admin: &[Address],
        stop: &CancellationToken,
    ) -> Result<RegisterNodeResponse> {
        let request = prepared.request();
        register(control_plane(admin)?.register_node(PATIENCE, &request), admin, stop).await
    }

    /// Opens the disks of a node that was announced, those that were added by command too, and serves them.
    pub(crate) async fn serve(
        prepared: Prepared,
        registered: RegisterNodeResponse,
        admin: &[Address],
        stop: &CancellationToken,
    ) -> Result<Self> {
        let control = control_plane(admin)?;
        let storage = prepared.serve(&registered).await?;
        let added = match AddedDisks::start(control.clone(), &storage, stop).await {
            Ok(added) => added,
            Err(error) => {
                storage.close().await;
                return Err(error);
            }
        };
        let attached = Arc::new(AttachedNode {
            node: Arc::clone(storage.node()),
            open: Box::new(storage.reporter()),
            refused: added.refused(),
        });
        Ok(Self { storage, added, attachment: Attachment::start(control, attached) })
    }

    pub(crate) fn storage(&self) -> &Storage {
        &self.storage
    }

    pub(crate) async fn close(self) {
        self.attachment.stop().await;
        self.added.stop().await;
        self.storage.close().await;
    }
}

struct AttachedNode {
    node: Arc<Node>,
    open: Box<dyn Fn() -> NodeReport + Send + Sync>,
    refused: Arc<Refused>,
}

impl Attached for AttachedNode {
    fn report(&self) -> Report {
        let mut report = (self.open)();
        report.disks.extend(self.refused.reports());
        Report { member: Some(Member::Node(report)) }
    }

    fn kick(&self, tsih: u32) {
        tracing::warn!(tsih, "told to close a session, of which a node has none");
    }

    fn scrub(&self, disk: DiskId, rate_bytes: Option<u64>) {
        if !self.node.scrub(disk, rate_bytes) {
            tracing::warn!(%disk, "told to scrub a disk that is not served here");
        }
    }
}

fn storage_config(config: &NodeConfig, key: &ClusterKey) -> StorageConfig {
    let disk = |disk: &crate::config::DiskConfig| StorageDisk {
        path: disk.path.clone(),
        capacity_bytes: disk.capacity.bytes(),
        weight: disk.weight,
    };
    StorageConfig {
        cluster: key.cluster,
        name: config.name.clone(),
        listen: config.listen,
        advertise: config.advertise,
        host: config.host.clone(),
        rack: config.rack.clone(),
        zone: config.zone.clone(),
        disks: config.disks.iter().map(disk).collect(),
    }
}

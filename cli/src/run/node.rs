//! `lunette node run`: a storage node, and the member of the control plane that it may carry.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, bail};
use lunette_control::api::cluster::report::Member;
use lunette_control::api::cluster::{NodeReport, RegisterNodeResponse, Report};
use lunette_control::client::{Attached, Attachment, swapped_disk};
use lunette_proto::ids::DiskId;
use lunette_storage_node::Node;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::added::{AddedDisks, Refused};
use super::control::{self, ControlMember};
use super::member::{PATIENCE, control_plane, register};
use super::stop;
use super::storage::{Prepared, Storage, StorageConfig, StorageDisk};
use crate::admin::Address;
use crate::config::{ClusterKey, NodeConfig};
use crate::failure::one_line;
use crate::output::{self, Format};

/// Runs until told to stop.
pub(crate) async fn run(path: &Path, token: Option<&Path>, format: Format) -> Result<()> {
    let config = NodeConfig::load(path)?;
    let stop = stop::on_signal()?;
    let key = control::key(&config.cluster_key_file, token, &config.admin, &stop).await?;
    let mut node = NodeProcess::default();
    let outcome = node.serve(config, &key, format, &stop).await;
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
    async fn serve(
        &mut self,
        config: NodeConfig,
        key: &ClusterKey,
        format: Format,
        stop: &CancellationToken,
    ) -> Result<()> {
        // The disks are looked at and the port is taken before anything else is touched.
        let prepared = Prepared::new(storage_config(&config, key)).await?;
        if let Some(control) = &config.control {
            self.control = Some(ControlMember::start(&config, control, key, stop).await?);
        }
        self.node = Some(StorageMember::start(prepared, &config.admin, stop).await?);
        let _ = match format {
            Format::Text => output::try_print("ready\n"),
            Format::Json => output::try_print(&format!("{}\n", json!({"ready": true}))),
        };
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
        let mut prepared = prepared;
        let registered = Self::register(&mut prepared, admin, stop).await?;
        Self::serve(prepared, registered, admin, stop).await
    }

    /// Announces the node, without the disks that are not where they were.
    pub(crate) async fn register(
        prepared: &mut Prepared,
        admin: &[Address],
        stop: &CancellationToken,
    ) -> Result<RegisterNodeResponse> {
        let control = control_plane(admin)?;
        loop {
            let request = prepared.request();
            let answer = async {
                match control.register_node(PATIENCE, &request).await {
                    Err(status) if swapped_disk(&status).is_some() => Ok(Err(status)),
                    answer => answer.map(Ok),
                }
            };
            let status = match register(answer, admin, stop).await? {
                Ok(registered) => return Ok(registered),
                Err(status) => status,
            };
            let path = swapped_disk(&status).unwrap_or_default();
            if !prepared.leave_out(Path::new(&path), one_line(status.message())) {
                bail!("{}", one_line(status.message()));
            }
        }
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

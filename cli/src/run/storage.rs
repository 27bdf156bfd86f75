//! The storage node of a process: its disks opened and served.
//!
//! ```text
//! inspect --> register --> format what is new --> open --> serve
//! ```
//!
//! A disk that cannot be read, or is not there any more, does not keep the node's others from being served: it is tried again
//! from time to time and reported, as those that were added by command are (see `added`).
//!
//! Ids come from the control plane, identities from the disk: a disk that was formatted keeps its
//! own, a new one draws one. What was drawn is written down beside the disk before it is announced,
//! so that a crash between announcing and formatting does not leave a disk that nobody has.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use lunette_control::api::cluster::{
    DiskReport, NodeDisk, NodeReport, RegisterNodeRequest, RegisterNodeResponse, ScrubReport,
};
use lunette_proto::ids::{ClusterId, DiskId, DiskUuid, NodeId};
use lunette_storage_node::{
    DiskConfig, DiskError, DiskStatus, FormatOptions, Identity, Node, ScrubStatus, format_disk,
    inspect_identity, serve,
};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio_util::sync::CancellationToken;

use crate::failure::chain;
use crate::up::data::{private_dir, write_private};

/// What makes a node: see [`NodeConfig`](crate::config::NodeConfig).
#[derive(Clone, Debug)]
pub(crate) struct StorageConfig {
    pub(crate) cluster: ClusterId,
    pub(crate) name: String,
    pub(crate) listen: SocketAddr,
    pub(crate) advertise: Option<SocketAddr>,
    pub(crate) host: String,
    pub(crate) rack: String,
    pub(crate) zone: String,
    pub(crate) disks: Vec<StorageDisk>,
}

/// A disk to be.
#[derive(Clone, Debug)]
pub(crate) struct StorageDisk {
    pub(crate) path: PathBuf,
    pub(crate) capacity_bytes: u64,
    pub(crate) weight: Option<u32>,
}

/// A node whose disks were looked at and whose port is taken, and which nobody knows of yet.
#[derive(Debug)]
pub(crate) struct Prepared {
    config: StorageConfig,
    listener: TcpListener,
    address: SocketAddr,
    uuids: Vec<DiskUuid>,
    missing: Vec<MissingDisk>,
}

/// A disk of the configuration that cannot be served at the moment.
#[derive(Clone, Debug)]
pub(crate) struct MissingDisk {
    pub(crate) path: PathBuf,
    pub(crate) reason: String,
}

impl Prepared {
    /// Looks at the disks and takes the port. Formats nothing.
    pub(crate) async fn new(mut config: StorageConfig) -> Result<Self> {
        let mut uuids = Vec::with_capacity(config.disks.len());
        let mut missing = Vec::new();
        let mut disks = Vec::with_capacity(config.disks.len());
        for disk in config.disks {
            let uuid = match inspect(&disk.path, config.cluster) {
                Ok(Some(identity)) => identity.uuid,
                Ok(None) => drawn(&disk.path)?,
                Err(error) if is_broken(&error) => {
                    missing.push(MissingDisk { path: disk.path, reason: chain(&error) });
                    continue;
                }
                Err(error) => return Err(error),
            };
            uuids.push(uuid);
            disks.push(disk);
        }
        config.disks = disks;
        let listen = config.listen;
        let listener = TcpListener::bind(listen).await.map_err(|error| match error.kind() {
            ErrorKind::AddrInUse => {
                anyhow!("{listen} is in use: stop what listens there, or change listen in the configuration")
            }
            _ => anyhow!("{listen} cannot be listened on: {error}"),
        })?;
        let bound = listener.local_addr().context("the node's port is unknown")?;
        let address = config.advertise.unwrap_or(bound);
        Ok(Self { config, listener, address, uuids, missing })
    }

    /// Goes on without the disk at `path`, whose place has nothing of what the control plane knows to be there; `false` if
    /// there is none that could be left out.
    pub(crate) fn leave_out(&mut self, path: &Path, reason: String) -> bool {
        let Some(index) = self.config.disks.iter().position(|disk| disk.path == path) else { return false };
        let disk = self.config.disks.remove(index);
        self.uuids.remove(index);
        // It gets no identity of its own: what was there is to come back.
        let _ = fs::remove_file(note(&disk.path));
        self.missing.push(MissingDisk { path: disk.path, reason });
        true
    }

    /// How it announces itself.
    pub(crate) fn request(&self) -> RegisterNodeRequest {
        let config = &self.config;
        let disk = |(disk, uuid): (&StorageDisk, &DiskUuid)| NodeDisk {
            uuid: uuid.to_string(),
            label: disk.path.display().to_string(),
            capacity_bytes: disk.capacity_bytes,
            weight: disk.weight.unwrap_or(0),
        };
        RegisterNodeRequest {
            cluster_id: config.cluster.to_string(),
            name: config.name.clone(),
            address: self.address.to_string(),
            host: config.host.clone(),
            rack: config.rack.clone(),
            zone: config.zone.clone(),
            disks: config.disks.iter().zip(&self.uuids).map(disk).collect(),
        }
    }

    /// Formats what is new, opens all and serves.
    pub(crate) async fn serve(self, registered: &RegisterNodeResponse) -> Result<Storage> {
        let Self { config, listener, uuids, mut missing, .. } = self;
        if registered.disks.len() != config.disks.len() {
            bail!("the control plane knows another number of disks than it was told: update it");
        }
        let cluster = config.cluster;
        let name = config.name.clone();
        let disks: Vec<_> = config.disks.into_iter().zip(uuids).zip(registered.disks.clone()).collect();
        let node = Node::open(cluster, [])?;
        let opening = Arc::clone(&node);
        let opened = spawn_blocking(move || -> Result<Vec<MissingDisk>> {
            for ((disk, uuid), id) in disks {
                match open_or_make(&opening, &disk, DiskId(id), uuid) {
                    Ok(()) => {}
                    Err(error) if is_broken(&error) => {
                        missing.push(MissingDisk { path: disk.path, reason: chain(&error) });
                    }
                    Err(error) => {
                        opening.close();
                        return Err(error);
                    }
                }
            }
            Ok(missing)
        });
        let missing = opened.await.context("the disks were not opened")??;
        let stop = CancellationToken::new();
        let server = tokio::spawn(serve(listener, Arc::clone(&node), name, stop.clone()));
        Ok(Storage { id: registered.node, node, missing, stop, server })
    }
}

/// A node that serves.
#[derive(Debug)]
pub(crate) struct Storage {
    id: u32,
    node: Arc<Node>,
    missing: Vec<MissingDisk>,
    stop: CancellationToken,
    server: JoinHandle<()>,
}

impl Storage {
    pub(crate) fn id(&self) -> NodeId {
        NodeId(self.id)
    }

    pub(crate) fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Disks of the configuration that it could not open.
    pub(crate) fn missing(&self) -> &[MissingDisk] {
        &self.missing
    }

    /// What it tells the control plane from time to time.
    pub(crate) fn reporter(&self) -> impl Fn() -> NodeReport + Send + Sync + 'static {
        let (id, node) = (self.id, Arc::clone(&self.node));
        // Looked at once: a disk that hangs must not hold reports up.
        let kinds = Mutex::new(BTreeMap::<DiskId, &'static str>::new());
        move || {
            let disk = |disk: DiskStatus| DiskReport {
                disk: disk.disk.0,
                capacity_bytes: disk.capacity_bytes,
                used_bytes: disk.used_bytes,
                failed: disk.failure.is_some(),
                refused: false,
                reason: disk.failure.unwrap_or_default(),
                kind: (*kinds.lock().entry(disk.disk).or_insert_with(|| kind(&disk.path))).to_owned(),
                scrub: Some(scrub_report(&disk.scrub)),
            };
            NodeReport { node: id, disks: node.disks().into_iter().map(disk).collect() }
        }
    }

    /// Answers what is at work, closes the connections, and makes everything durable.
    pub(crate) async fn close(self) {
        self.stop.cancel();
        if let Err(error) = self.server.await {
            tracing::error!(%error, "the node's server has failed");
        }
        let node = self.node;
        if let Err(error) = spawn_blocking(move || node.close()).await {
            tracing::error!(%error, "the node was not closed");
        }
    }
}

fn scrub_report(scrub: &ScrubStatus) -> ScrubReport {
    ScrubReport {
        pass: scrub.pass,
        running: scrub.is_running,
        started_unix_ms: scrub.started_unix_ms,
        done_bytes: scrub.done_bytes,
        total_bytes: scrub.total_bytes,
        rate_bytes: scrub.rate_bytes,
        left_ms: scrub.left_ms,
        checked_blocks: scrub.checked_blocks,
        found_blocks: scrub.found_blocks,
        repaired_blocks: scrub.repaired,
        left_out_blocks: scrub.left_out,
        lost_blocks: scrub.bad.lost,
        torn_blocks: scrub.bad.torn,
        misdirected_blocks: scrub.bad.misdirected,
        stale_blocks: scrub.bad.stale,
        unreadable_blocks: scrub.bad.unreadable,
    }
}

/// Formats a disk that is new, and opens it.
fn open_or_make(node: &Node, disk: &StorageDisk, id: DiskId, uuid: DiskUuid) -> Result<()> {
    if inspect(&disk.path, node.cluster())?.is_none() {
        if disk.path.is_dir() || !disk.path.exists() {
            private_dir(&disk.path)?;
        }
        make_disk(&disk.path, node.cluster(), id, uuid, Some(disk.capacity_bytes))?;
    }
    let _ = fs::remove_file(note(&disk.path));
    node.add(&DiskConfig {
        path: disk.path.clone(),
        capacity_bytes: Some(disk.capacity_bytes),
        disk: Some(id),
    })?;
    Ok(())
}

/// Whether a disk is broken, as opposed to a configuration that names a wrong one.
pub(crate) fn is_broken(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(DiskError::Damaged { .. } | DiskError::Io { .. }))
}

/// Formats what `path` leads to, if it holds nothing.
pub(crate) fn make_disk(
    path: &Path,
    cluster: ClusterId,
    id: DiskId,
    uuid: DiskUuid,
    capacity_bytes: Option<u64>,
) -> Result<()> {
    let options = FormatOptions { capacity_bytes, wal_bytes: None };
    Ok(format_disk(path, &Identity { cluster, disk: id, uuid }, &options)?)
}

/// What a disk lies on, as it is listed.
fn kind(path: &Path) -> &'static str {
    match fs::metadata(path).map(|data| data.file_type()) {
        Ok(kind) if kind.is_dir() => "directory",
        Ok(kind) if kind.is_file() => "file",
        Ok(kind) if kind.is_block_device() => "device",
        _ => "",
    }
}

/// The identity of a disk of ours; an error if it is a disk of others.
pub(crate) fn inspect(path: &Path, cluster: ClusterId) -> Result<Option<Identity>> {
    let found = inspect_identity(path)?;
    if let Some(identity) = found.filter(|identity| identity.cluster != cluster) {
        let (path, found, expected) = (path.to_owned(), identity.cluster, cluster);
        return Err(DiskError::WrongCluster { path, found, expected }.into());
    }
    Ok(found)
}

/// Where the identity of a disk stands until it is formatted.
fn note(disk: &Path) -> PathBuf {
    let mut name = disk.file_name().unwrap_or_default().to_owned();
    name.push(".uuid");
    disk.with_file_name(name)
}

/// The identity that was drawn for a disk that is not formatted; drawn now unless it was before.
fn drawn(disk: &Path) -> Result<DiskUuid> {
    let note = note(disk);
    let name = note.display();
    match fs::read_to_string(&note) {
        Ok(text) => match text.trim().parse() {
            Ok(uuid) if uuid != DiskUuid::default() => return Ok(uuid),
            _ => bail!("{name} is damaged: remove it, {} is not formatted yet", disk.display()),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => bail!("{name} cannot be read: {error}"),
    }
    let mut drawn = [0; 16];
    aws_lc_rs::rand::fill(&mut drawn).map_err(|_| anyhow!("the system gives no random numbers"))?;
    let uuid = DiskUuid(u128::from_le_bytes(drawn));
    let folder = note.parent().context("a disk lies in a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    let file = note
        .file_name()
        .and_then(|file| file.to_str())
        .with_context(|| format!("{name} is no UTF-8 name"))?;
    write_private(folder, file, &format!("{uuid}\n"))?;
    Ok(uuid)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: ClusterId = ClusterId(7);

    fn config(folder: &Path) -> StorageConfig {
        StorageConfig {
            cluster: CLUSTER,
            name: "node1".into(),
            listen: "127.0.0.1:0".parse().expect("an address"),
            advertise: None,
            host: "node1".into(),
            rack: String::new(),
            zone: String::new(),
            disks: vec![StorageDisk { path: folder.join("disk"), capacity_bytes: 64 << 20, weight: None }],
        }
    }

    #[tokio::test]
    async fn a_disk_keeps_the_identity_that_it_was_announced_with() {
        // Guards against a disk that the control plane knows and nobody has, after a crash before formatting.
        let folder = tempfile::tempdir().expect("a folder");
        let uuid = |prepared: &Prepared| prepared.request().disks[0].uuid.clone();
        let first = Prepared::new(config(folder.path())).await.expect("prepared");
        let announced = uuid(&first);
        drop(first);
        let second = Prepared::new(config(folder.path())).await.expect("prepared");
        assert_eq!(uuid(&second), announced);
        let storage = second.serve(&RegisterNodeResponse { node: 1, disks: vec![5] }).await.expect("served");
        let report = storage.reporter()();
        assert_eq!((report.node, report.disks[0].disk), (1, 5));
        storage.close().await;
        assert!(!note(&folder.path().join("disk")).exists());
        let third = Prepared::new(config(folder.path())).await.expect("prepared");
        assert_eq!(uuid(&third), announced);
        let other =
            third.serve(&RegisterNodeResponse { node: 1, disks: vec![6] }).await.expect_err("another disk");
        assert!(other.to_string().contains("disk-5"), "{other}");

        let foreign = StorageConfig { cluster: ClusterId(8), ..config(folder.path()) };
        let error = Prepared::new(foreign).await.expect_err("another cluster").to_string();
        assert!(error.contains("cluster"), "{error}");
    }
}

//! `node.toml`: a storage node, its disks, and the control member that it may carry.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use lunette_control::moves::REBUILD_AFTER;
use lunette_control::state::NameKind;
use serde::Deserialize;

use super::{addresses, beside, check_name, load};
use crate::admin::Address;
use crate::size::Size;

/// What `lunette node run` is to do.
#[derive(Debug)]
pub(crate) struct NodeConfig {
    pub(crate) name: String,
    /// Where the node protocol is served.
    pub(crate) listen: SocketAddr,
    /// Where others reach it, if that is another address than `listen`.
    pub(crate) advertise: Option<SocketAddr>,
    pub(crate) admin: Vec<Address>,
    pub(crate) cluster_key_file: PathBuf,
    pub(crate) host: String,
    pub(crate) rack: String,
    pub(crate) zone: String,
    pub(crate) disks: Vec<DiskConfig>,
    pub(crate) control: Option<ControlConfig>,
}

/// A disk of the node.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DiskConfig {
    /// A folder.
    pub(crate) path: PathBuf,
    /// Bytes it offers.
    pub(crate) capacity: Size,
    /// Share of the load; by default the capacity in MiB.
    #[serde(default)]
    pub(crate) weight: Option<u32>,
}

/// A member of the control plane in the same process.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ControlConfig {
    /// Where its log and state lie.
    pub(crate) dir: PathBuf,
    /// Where the administration API is served.
    pub(crate) listen: SocketAddr,
    /// Where others reach it, if that is another address than `listen`: HOST:PORT.
    pub(crate) advertise: Option<String>,
    /// Seconds for which a disk is out before its copies are made elsewhere; 600 unless it is said.
    pub(crate) rebuild_after_s: Option<u64>,
}

impl ControlConfig {
    pub(crate) fn rebuild_after(&self) -> Duration {
        self.rebuild_after_s.map_or(REBUILD_AFTER, Duration::from_secs)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    listen: SocketAddr,
    advertise: Option<SocketAddr>,
    admin: Vec<String>,
    cluster_key_file: PathBuf,
    host: Option<String>,
    #[serde(default)]
    rack: String,
    #[serde(default)]
    zone: String,
    #[serde(default)]
    disks: Vec<DiskConfig>,
    control: Option<ControlConfig>,
}

impl NodeConfig {
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let file: File = load(path)?;
        let name = path.display();
        check_name(NameKind::Node, &file.name, path)?;
        if file.disks.is_empty() && file.control.is_none() {
            bail!("{name}: neither [[disks]] nor [control]: the node would have nothing to do");
        }
        let wildcard = file.listen.ip().is_unspecified();
        if wildcard && file.advertise.is_none() {
            bail!("{name}: listen is {}, which nobody can connect to: add advertise", file.listen);
        }
        let disk = |disk: DiskConfig| DiskConfig { path: beside(path, &disk.path), ..disk };
        let disks: Vec<DiskConfig> = file.disks.into_iter().map(disk).collect();
        let mut seen = BTreeSet::new();
        if let Some(twice) = disks.iter().find(|disk| !seen.insert(&disk.path)) {
            bail!("{name}: two disks lie at {}", twice.path.display());
        }
        Ok(Self {
            host: file.host.unwrap_or_else(|| file.name.clone()),
            name: file.name,
            listen: file.listen,
            advertise: file.advertise,
            admin: addresses(&file.admin, path)?,
            cluster_key_file: beside(path, &file.cluster_key_file),
            rack: file.rack,
            zone: file.zone,
            disks,
            control: file.control.map(|control| ControlConfig { dir: beside(path, &control.dir), ..control }),
        })
    }
}

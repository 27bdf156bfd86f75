//! `gateway.toml`: a gateway and its portals.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use lunette_control::state::NameKind;
use serde::Deserialize;

use super::{addresses, beside, check_name, load};
use crate::admin::Address;

/// What `lunette gateway run` is to do.
#[derive(Debug)]
pub(crate) struct GatewayConfig {
    pub(crate) name: String,
    /// Where iSCSI is served.
    pub(crate) portals: Vec<SocketAddr>,
    pub(crate) admin: Vec<Address>,
    pub(crate) cluster_key_file: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    portals: Vec<SocketAddr>,
    admin: Vec<String>,
    cluster_key_file: PathBuf,
}

impl GatewayConfig {
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let file: File = load(path)?;
        check_name(NameKind::Gateway, &file.name, path)?;
        if file.portals.is_empty() {
            bail!("{}: portals is empty: list where iSCSI is to be served", path.display());
        }
        let twice = file.portals.iter().enumerate().find(|(index, portal)| {
            portal.port() != 0 && file.portals.iter().take(*index).any(|other| other == *portal)
        });
        if let Some((_, portal)) = twice {
            bail!("{}: portals names {portal} twice: name it once", path.display());
        }
        Ok(Self {
            name: file.name,
            portals: file.portals,
            admin: addresses(&file.admin, path)?,
            cluster_key_file: beside(path, &file.cluster_key_file),
        })
    }
}

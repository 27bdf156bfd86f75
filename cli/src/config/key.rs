//! `cluster.key`: 32 random bytes, the secret that makes a cluster.
//!
//! CHAP secrets are sealed under it, and the cluster's id is derived from it, so whoever has another
//! key is a member of another cluster and is told so at once. Every node and gateway of a cluster
//! has the same file, readable by its owner alone: copied there, or brought by a join token.

use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use aws_lc_rs::hmac;
use lunette_control::seal::{KeyError, Sealer};
use lunette_proto::ids::ClusterId;

/// What the id is the code of; another use of the key would name itself otherwise.
const ID: &[u8] = b"lunette cluster id";

/// A cluster's identity and its secret.
#[derive(Clone)]
pub(crate) struct ClusterKey {
    pub(crate) cluster: ClusterId,
    pub(crate) path: PathBuf,
    pub(crate) sealer: Arc<Sealer>,
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterKey").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

impl ClusterKey {
    /// The key at `path`; a new one, and with it a new cluster, if there is none.
    pub(crate) fn load_or_create(path: &Path) -> Result<Self> {
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::create_dir_all(folder).with_context(|| format!("{} cannot be made", folder.display()))?;
        }
        Self::with(path, Sealer::open_or_create(path)?)
    }

    /// The key at `path`.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        match Sealer::open(path) {
            Err(KeyError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => bail!(
                "cluster key {} does not exist: copy it from another machine of the cluster or put it back from a copy, or bring it by --join-token",
                path.display()
            ),
            opened => Self::with(path, opened?),
        }
    }

    /// Writes a key that a join token has brought to `path`, where there must be nothing yet; refuses that of another
    /// cluster than `cluster`, and writes nothing then.
    pub(crate) fn save(sealer: Sealer, cluster: ClusterId, path: &Path) -> Result<Self> {
        let key = Self { cluster: id(sealer.bytes()), path: path.to_owned(), sealer: Arc::new(sealer) };
        if key.cluster != cluster {
            bail!(
                "the control plane has sent the key of cluster {}, and the token is of {cluster}",
                key.cluster
            );
        }
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::create_dir_all(folder).with_context(|| format!("{} cannot be made", folder.display()))?;
        }
        key.sealer.save(path)?;
        Ok(key)
    }

    /// The sealer has checked that the file is a key and nobody else's to read.
    fn with(path: &Path, sealer: Sealer) -> Result<Self> {
        Ok(Self { cluster: id(sealer.bytes()), path: path.to_owned(), sealer: Arc::new(sealer) })
    }
}

/// The id of the cluster that a key makes.
fn id(key: &[u8; 32]) -> ClusterId {
    let code = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), ID);
    let id = code.as_ref().first_chunk().expect("an HMAC-SHA-256 has 32 bytes");
    ClusterId(u128::from_le_bytes(*id))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_comes_back_and_only_its_owner_can_read_it() {
        // Guards against a key that others can read, and a cluster that changes over a restart.
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a/cluster.key");
        let made = ClusterKey::load_or_create(&path).expect("written").cluster;
        assert_eq!(ClusterKey::load(&path).expect("read").cluster, made);
        assert_eq!(ClusterKey::load_or_create(&path).expect("read").cluster, made);
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        let other = ClusterKey::load_or_create(&folder.path().join("b.key")).expect("written");
        assert_ne!(other.cluster, made);
        assert!(!format!("{other:?}").contains("sealer"), "{other:?}");
    }

    #[test]
    fn what_is_no_key_is_refused() {
        // Guards against a cluster under a key that is cut short, open to others, or not there.
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("cluster.key");
        let missing = ClusterKey::load(&path).expect_err("not there").to_string();
        assert!(missing.contains("does not exist: copy it"), "{missing}");
        ClusterKey::load_or_create(&path).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("set");
        assert!(format!("{:#}", ClusterKey::load(&path).expect_err("open to others")).contains("chmod 600"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("set");
        fs::write(&path, [1; 31]).expect("written");
        assert!(
            format!("{:#}", ClusterKey::load_or_create(&path).expect_err("short")).contains("cluster.key")
        );
    }
}

//! `cluster.key`: who the cluster is, and the key under which its secrets are sealed.
//!
//!     format = 1
//!     cluster = "32 hexadecimal digits"
//!     key = "64 hexadecimal digits"
//!
//! Every node and gateway of a cluster has the same file, readable by its owner alone. Whoever has
//! it and the control plane's state can read the CHAP secrets; without it nobody can.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use lunette_proto::ids::ClusterId;
use serde::Deserialize;

use super::load;

/// The format that this version writes, and the newest that it reads.
const FORMAT: u32 = 1;

/// A cluster's identity and its secret.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct ClusterKey {
    pub(crate) cluster: ClusterId,
    pub(crate) key: [u8; 32],
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterKey").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: u32,
    cluster: String,
    key: String,
}

impl ClusterKey {
    /// Draws a new cluster and writes it to `path`, which does not exist.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let mut key = [0; 32];
        aws_lc_rs::rand::fill(&mut key).map_err(|_| anyhow!("the system gives no random numbers"))?;
        let mut cluster = [0; 16];
        aws_lc_rs::rand::fill(&mut cluster).map_err(|_| anyhow!("the system gives no random numbers"))?;
        let made = Self { cluster: ClusterId(u128::from_le_bytes(cluster)), key };
        made.write(path).with_context(|| format!("{} cannot be written", path.display()))?;
        Ok(made)
    }

    /// Written beside it first: a crash leaves the whole file or none.
    fn write(&self, path: &Path) -> Result<()> {
        let hex: String = self.key.iter().map(|byte| format!("{byte:02x}")).collect();
        let text = format!(
            "# Keep a copy of this file in a safe place: without it the cluster's secrets are lost.\n\
             format = {FORMAT}\ncluster = \"{}\"\nkey = \"{hex}\"\n",
            self.cluster
        );
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let beside = path.with_extension("key.new");
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        if let Some(parent) = path.parent() {
            fs::File::open(parent)?.sync_all()?;
        }
        Ok(())
    }

    pub(crate) fn load(path: &Path) -> Result<Self> {
        let name = path.display();
        let file: File = load(path)?;
        if file.format != FORMAT {
            bail!(
                "{name} has format {}, and this version reads {FORMAT}: use the version that wrote it",
                file.format
            );
        }
        let mode = fs::metadata(path).with_context(|| format!("{name} cannot be read"))?.permissions().mode();
        if mode & 0o077 != 0 {
            bail!("{name} can be read by others (mode {:03o}): run chmod 600 {name}", mode & 0o777);
        }
        let wrong = |what: &str| format!("{name}: {what}: the file is damaged, restore it from a copy");
        let cluster = file.cluster.parse().with_context(|| wrong("cluster is not 32 hexadecimal digits"))?;
        let Some(key) = from_hex(&file.key) else { bail!("{}", wrong("key is not 64 hexadecimal digits")) };
        if file.cluster.len() != 32 {
            bail!("{}", wrong("cluster is not 32 hexadecimal digits"));
        }
        Ok(Self { cluster, key })
    }
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let mut key = [0; 32];
    let digits: Option<Vec<u8>> =
        text.chars().map(|digit| digit.to_digit(16).and_then(|value| u8::try_from(value).ok())).collect();
    let digits = digits.filter(|digits| digits.len() == 64)?;
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        let [high, low] = pair else { return None };
        *byte = high << 4 | low;
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_comes_back_and_only_its_owner_can_read_it() {
        // Guards against a key that others can read, and one that changes over a restart.
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("cluster.key");
        let made = ClusterKey::create(&path).expect("written");
        assert_eq!(ClusterKey::load(&path).expect("read"), made);
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        assert_ne!(ClusterKey::create(&path).expect("written").key, made.key);

        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("set");
        let error = ClusterKey::load(&path).expect_err("open to others").to_string();
        assert!(error.contains("chmod 600"), "{error}");
    }

    #[test]
    fn damaged_and_newer_keys_are_refused() {
        // Guards against a cluster under a key that is cut short.
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("cluster.key");
        ClusterKey::create(&path).expect("written");
        let text = fs::read_to_string(&path).expect("read");
        let table = [
            (text.replace("format = 1", "format = 2"), "format 2"),
            (text.replacen("key = \"", "key = \"0", 1), "damaged"),
            (text.replacen("cluster = \"", "cluster = \"x", 1), "damaged"),
            (text.replace("cluster", "claster"), "unknown field"),
            (text[..text.len() - 9].to_owned(), "cluster.key:4"),
        ];
        for (text, want) in table {
            fs::write(&path, &text).expect("written");
            let error = format!("{:#}", ClusterKey::load(&path).expect_err("damaged"));
            assert!(error.contains(want), "{error}");
            assert!(!error.contains(&text[text.len() - 20..]), "no secret in an error: {error}");
        }
    }
}

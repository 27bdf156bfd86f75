//! The data directory of `lunette up`.
//!
//! ```text
//! DATA/cluster.key    what makes the cluster, mode 0600
//! DATA/lunette.toml   what this directory is: format, cluster, nodes, capacity
//! DATA/lock           held by the process that uses the directory
//! DATA/control/       the control plane's log and state; DATA/controlK/: of its members K = 2, 3, ...
//! DATA/nodeK/         the disk of node K
//! DATA/run/           with --processes: NAME.toml, NAME.pid, NAME.log
//! ```
//!
//! Everything after `lunette.toml` is made again from it, so a first start that was interrupted
//! anywhere is finished by the second. The directory itself is mode 0700.

use std::fmt::Write as _;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use lunette_control::Control;
use lunette_proto::ids::ClusterId;
use lunette_proto::limits::EXTENT_BYTES;
use lunette_storage_node::FormatOptions;
use rustix::fs::{FlockOperation, flock, statvfs};
use rustix::io::Errno;
use serde::Deserialize;

use crate::config::ClusterKey;
use crate::run::storage::{inspect, is_broken};
use crate::size::Size;

/// The layout with one member of the control plane, and the one with several.
const FORMAT_ONE: u32 = 1;
const FORMAT_SEVERAL: u32 = 2;
/// Nodes of a new directory.
const NODES_DEFAULT: u8 = 3;

/// An open data directory; nobody else has it until it is dropped.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    manifest: Manifest,
    key: ClusterKey,
    /// Members of the control plane whose store was lost.
    lost: Vec<u8>,
    _lock: File,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format: u32,
    cluster: String,
    nodes: u8,
    /// Of each node's disk.
    capacity_bytes: u64,
    /// Where the members of the control plane are, if there are several.
    #[serde(default)]
    control: Vec<SocketAddr>,
    /// Whether the first start was finished: from then on a disk that is missing is a loss.
    complete: bool,
}

/// What a data directory is to be.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    /// Storage nodes; `None`: as many as there are.
    pub(crate) nodes: Option<u8>,
    /// Of each node's disk; `None`: as it is.
    pub(crate) capacity: Option<Size>,
    /// Where the members of the control plane are: one, or several.
    pub(crate) control: Vec<SocketAddr>,
}

/// Only this is looked at before the format is known.
#[derive(Deserialize)]
struct AnyManifest {
    format: u32,
}

impl DataDir {
    /// Opens `path`, and makes it if there is nothing yet. What was asked for has to agree with what
    /// is there; a refusal changes nothing.
    pub(crate) fn open(path: &Path, wanted: &Wanted) -> Result<Self> {
        let name = path.display();
        let found = match fs::symlink_metadata(path) {
            Ok(_) => Found::look(path)?,
            Err(error) if error.kind() == ErrorKind::NotFound => Found::Nothing,
            Err(error) => bail!("{name} cannot be used: {error}"),
        };
        match &found {
            Found::Manifest(manifest) => manifest.agrees(path, wanted)?,
            Found::Nothing => {
                Plan::new(path, wanted)?;
            }
        }
        private_dir(path)?;
        let path = fs::canonicalize(path).with_context(|| format!("{name} cannot be used"))?;
        let lock = lock(&path)?;
        // Whoever held the lock may have made or changed it meanwhile.
        let (manifest, key) = match Found::look(&path)? {
            Found::Manifest(manifest) => {
                manifest.agrees(&path, wanted)?;
                let key = ClusterKey::load(&path.join(KEY))?;
                (manifest, key)
            }
            Found::Nothing => make(&path, wanted)?,
        };
        if manifest.cluster.parse() != Ok(key.cluster) {
            bail!(
                "{}/{KEY} is of another cluster than the directory: restore the right one from a copy",
                path.display()
            );
        }
        let mut data = Self { path, manifest, key, lost: Vec::new(), _lock: lock };
        data.check_disks()?;
        if data.manifest.complete {
            data.lost = data.lost();
        }
        Ok(data)
    }

    /// Before anything is opened, which may write: is what is there this cluster's?
    fn check_disks(&self) -> Result<()> {
        for node in 1..=self.nodes() {
            match inspect(&self.disk(node), self.key.cluster) {
                // The other nodes have what it has, and it is tried again while they serve.
                Err(error) if self.manifest.complete && is_broken(&error) => {}
                found => drop(found?),
            }
        }
        self.check_control()
    }

    /// A control plane that is founded again gives the ids of the one before out again, for disks that hold what had
    /// them. Of several members a majority is enough: the others join it anew.
    fn check_control(&self) -> Result<()> {
        let lost = self.lost();
        let (has, members) = (usize::from(self.members()) - lost.len(), usize::from(self.members()));
        let was_founded = self.manifest.complete || has > 0;
        let can_go_on = has > members / 2 || (!self.manifest.complete && !lost.contains(&1));
        match lost.first() {
            Some(first) if was_founded && !can_go_on => bail!(
                "{} is missing, and nothing else knows the volumes on the disks: put it back from a copy, or begin anew in another directory with --data",
                Control::store_file(&self.control(*first)).display()
            ),
            _ => Ok(()),
        }
    }

    /// The members of the control plane whose store is not there, counted from 1.
    fn lost(&self) -> Vec<u8> {
        (1..=self.members()).filter(|member| !Control::store_file(&self.control(*member)).exists()).collect()
    }

    /// Where the members of the control plane are that join it anew, because their store was lost.
    pub(crate) fn lost_members(&self) -> Vec<SocketAddr> {
        self.lost
            .iter()
            .filter_map(|member| self.manifest.control.get(usize::from(*member) - 1))
            .copied()
            .collect()
    }

    /// The first start is finished.
    pub(crate) fn complete(&mut self) -> Result<()> {
        if !self.manifest.complete {
            self.manifest.complete = true;
            write_private(&self.path, MANIFEST, &self.manifest.text())?;
        }
        Ok(())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn key(&self) -> &ClusterKey {
        &self.key
    }

    pub(crate) fn nodes(&self) -> u8 {
        self.manifest.nodes
    }

    pub(crate) fn capacity_bytes(&self) -> u64 {
        self.manifest.capacity_bytes
    }

    /// Members of the control plane, on the first nodes.
    pub(crate) fn members(&self) -> u8 {
        u8::try_from(self.manifest.control.len()).unwrap_or(u8::MAX).max(1)
    }

    /// Where the members of the control plane of a directory are that has several of them.
    pub(crate) fn members_of(path: &Path) -> Result<Vec<SocketAddr>> {
        if !path.exists() {
            return Ok(Vec::new());
        }
        Ok(match Found::look(path)? {
            Found::Manifest(manifest) => manifest.control,
            Found::Nothing => Vec::new(),
        })
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.manifest.complete
    }

    /// The folder of a member of the control plane, counted from 1.
    pub(crate) fn control(&self, member: u8) -> PathBuf {
        self.path.join(if member == 1 { "control".to_owned() } else { format!("control{member}") })
    }

    /// The disk of a node, counted from 1.
    pub(crate) fn disk(&self, node: u8) -> PathBuf {
        self.path.join(format!("node{node}"))
    }
}

const MANIFEST: &str = "lunette.toml";
const KEY: &str = "cluster.key";
const LOCK: &str = "lock";
/// What an interrupted first start may have left before the manifest.
const BEFORE_MANIFEST: [&str; 4] = [KEY, "cluster.key.new", LOCK, "lunette.toml.new"];

enum Found {
    Nothing,
    Manifest(Manifest),
}

impl Found {
    fn look(path: &Path) -> Result<Self> {
        let name = path.display();
        if !fs::metadata(path).is_ok_and(|data| data.is_dir()) {
            bail!("{name} is not a directory: name another with --data");
        }
        let manifest = path.join(MANIFEST);
        let text = match fs::read_to_string(&manifest) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let foreign =
                    fs::read_dir(path).with_context(|| format!("{name} cannot be read"))?.any(|entry| {
                        !entry.is_ok_and(|entry| {
                            BEFORE_MANIFEST.iter().any(|known| entry.file_name() == *known)
                        })
                    });
                if foreign {
                    bail!(
                        "{name} is not empty and is no data directory of Lunette: name another with --data"
                    );
                }
                return Ok(Self::Nothing);
            }
            Err(error) => bail!("{} cannot be read: {error}", manifest.display()),
        };
        let damaged = || anyhow!("{} is damaged: restore it from a copy", manifest.display());
        let any: AnyManifest = toml::from_str(&text).map_err(|_| damaged())?;
        if any.format > FORMAT_SEVERAL {
            bail!(
                "{name} has format {}, and this version knows up to {FORMAT_SEVERAL}: use the version of Lunette that wrote it",
                any.format
            );
        }
        let manifest: Manifest = toml::from_str(&text).map_err(|_| damaged())?;
        let format = format_of(&manifest.control);
        if manifest.format != format
            || manifest.control.len() == 1
            || manifest.nodes == 0
            || manifest.cluster.parse::<ClusterId>().is_err()
        {
            return Err(damaged());
        }
        Ok(Self::Manifest(manifest))
    }
}

impl Manifest {
    fn agrees(&self, path: &Path, wanted: &Wanted) -> Result<()> {
        let (name, nodes, capacity) = (path.display(), wanted.nodes, wanted.capacity);
        let (has, wants) = (self.control.len().max(1), wanted.control.len().max(1));
        if has != wants {
            bail!(
                "{name} has a control plane of {has} members, not {wants}: start it with --processes --control {has}, or name another directory"
            );
        }
        if let Some(nodes) = nodes.filter(|nodes| *nodes != self.nodes) {
            bail!(
                "{name} is of a cluster of {0} nodes, not {nodes}: start it with --nodes {0}, or name another directory",
                self.nodes
            );
        }
        if capacity.is_some_and(|capacity| capacity.bytes() != self.capacity_bytes) {
            bail!(
                "{name} has disks of {} bytes already: leave --capacity out, or name another directory",
                self.capacity_bytes
            );
        }
        Ok(())
    }

    fn text(&self) -> String {
        let mut text = format!(
            "# A data directory of Lunette.\nformat = {}\ncluster = \"{}\"\nnodes = {}\ncapacity_bytes = {}\ncomplete = {}\n",
            self.format, self.cluster, self.nodes, self.capacity_bytes, self.complete
        );
        if !self.control.is_empty() {
            let addresses: Vec<String> =
                self.control.iter().map(|address| format!("\"{address}\"")).collect();
            // Writing to a String cannot fail.
            let _ = writeln!(text, "control = [{}]", addresses.join(", "));
        }
        text
    }
}

fn format_of(control: &[SocketAddr]) -> u32 {
    if control.is_empty() { FORMAT_ONE } else { FORMAT_SEVERAL }
}

/// The first start: the key, then the manifest that makes the directory one of ours.
fn make(path: &Path, wanted: &Wanted) -> Result<(Manifest, ClusterKey)> {
    let Plan { nodes, capacity_bytes } = Plan::new(path, wanted)?;
    let control = if wanted.control.len() > 1 { wanted.control.clone() } else { Vec::new() };
    let key = ClusterKey::load_or_create(&path.join(KEY))?;
    let (format, cluster) = (format_of(&control), key.cluster.to_string());
    let manifest = Manifest { format, cluster, nodes, capacity_bytes, control, complete: false };
    write_private(path, MANIFEST, &manifest.text())?;
    Ok((manifest, key))
}

/// What a new directory is to have.
struct Plan {
    nodes: u8,
    capacity_bytes: u64,
}

impl Plan {
    /// Refuses what cannot be made, and makes nothing: a directory that was begun with a wrong capacity keeps it.
    fn new(path: &Path, wanted: &Wanted) -> Result<Self> {
        let nodes = wanted.nodes.unwrap_or(NODES_DEFAULT);
        let members = wanted.control.len();
        if usize::from(nodes) < members {
            bail!("{members} members of the control plane need as many nodes, and there are {nodes}");
        }
        let capacity_bytes = match wanted.capacity {
            Some(capacity) => capacity.bytes(),
            None => share(path, nodes)?,
        };
        FormatOptions::of(capacity_bytes)
            .check(&std::path::absolute(path).with_context(|| format!("{} cannot be used", path.display()))?)
            .with_context(|| match wanted.capacity {
                Some(capacity) => format!("--capacity {capacity}"),
                None => format!("{} bytes of the file system for each of {nodes} nodes", capacity_bytes),
            })?;
        Ok(Self { nodes, capacity_bytes })
    }
}

/// Each node's part of the file system, in whole extents.
fn share(path: &Path, nodes: u8) -> Result<u64> {
    let name = path.display();
    let path = std::path::absolute(path).with_context(|| format!("{name} cannot be used"))?;
    let path = path.ancestors().find(|there| there.exists()).unwrap_or(Path::new("/"));
    let space = statvfs(path).with_context(|| format!("the size of {name}'s file system is unknown"))?;
    let total = space.f_blocks.saturating_mul(space.f_frsize);
    let extent = u64::from(EXTENT_BYTES);
    let share = total / u64::from(nodes) / extent * extent;
    if share == 0 {
        bail!("the file system of {name} is too small for {nodes} nodes");
    }
    Ok(share)
}

fn lock(path: &Path) -> Result<File> {
    let file = path.join(LOCK);
    let name = file.display();
    let mut options = OpenOptions::new();
    let opened = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&file);
    let lock = opened.with_context(|| format!("{name} cannot be opened"))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(Errno::WOULDBLOCK) => {
            bail!(
                "{} is in use by another `lunette up`: stop that one, or name another with --data",
                path.display()
            )
        }
        Err(error) => bail!("{name} cannot be locked: {error}"),
    }
}

/// Makes a directory that only its owner may enter.
pub(crate) fn private_dir(path: &Path) -> Result<()> {
    let name = path.display();
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.with_context(|| format!("{name} cannot be made"))?;
    let mode = fs::metadata(path).with_context(|| format!("{name} cannot be used"))?.permissions().mode();
    if mode & 0o077 != 0 {
        let set = fs::set_permissions(path, fs::Permissions::from_mode(0o700));
        set.with_context(|| format!("{name} cannot be closed to other users"))?;
    }
    Ok(())
}

/// Writes a file that only its owner may read, whole or not at all.
pub(crate) fn write_private(folder: &Path, name: &str, text: &str) -> Result<()> {
    let write = || -> std::io::Result<()> {
        let beside = folder.join(format!("{name}.new"));
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, folder.join(name))?;
        File::open(folder)?.sync_all()
    };
    write().with_context(|| format!("{}/{name} cannot be written", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(nodes: Option<u8>, capacity: Option<Size>) -> Wanted {
        Wanted { nodes, capacity, control: Vec::new() }
    }

    fn refusal(path: &Path, nodes: Option<u8>, capacity: Option<&str>) -> String {
        let capacity = capacity.map(|text| text.parse().expect("a size"));
        let line = format!("{:#}", DataDir::open(path, &wanted(nodes, capacity)).expect_err("refused"));
        assert!(!line.contains('\n'), "{line}");
        line
    }

    fn one_gib() -> Option<Size> {
        Some("1G".parse().expect("a size"))
    }

    #[test]
    fn a_directory_keeps_its_identity() {
        // Guards against a second start that makes a new cluster over the old one's data.
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a/b");
        let first = DataDir::open(&path, &wanted(Some(2), one_gib())).expect("made");
        let key = first.key().cluster;
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o700);
        drop(first);
        let second = DataDir::open(&path, &wanted(None, None)).expect("opened");
        assert_eq!((second.key().cluster, second.nodes(), second.capacity_bytes()), (key, 2, 1 << 30));
        assert!(refusal(&path, None, None).contains("in use"));
    }

    #[test]
    fn what_does_not_agree_is_refused_and_changes_nothing() {
        // Guards against damage to a directory that was named by mistake.
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("data");
        drop(DataDir::open(&path, &wanted(Some(2), one_gib())).expect("made"));
        assert!(refusal(&path, Some(3), None).contains("start it with --nodes 2"));
        assert!(refusal(&path, None, Some("2G")).contains("leave --capacity out"));

        let manifest = path.join(MANIFEST);
        let text = fs::read_to_string(&manifest).expect("read");
        let table = [
            (text.replace("format = 1", "format = 3\nnews = true"), "has format 3"),
            (text.replace("nodes = 2", "nodes = 0"), "is damaged"),
            (text[..60].to_owned(), "is damaged"),
            (String::new(), "is damaged"),
            (text.replacen("cluster = \"", "cluster = \"1", 1), "is damaged"),
            (
                text.replace(&text[text.find("cluster = ").expect("there")..][..15], "cluster = \"0000"),
                "of another cluster",
            ),
        ];
        for (damaged, want) in table {
            fs::write(&manifest, &damaged).expect("written");
            let got = refusal(&path, None, None);
            assert!(got.contains(want), "{got}");
            assert_eq!(fs::read_to_string(&manifest).expect("read"), damaged);
        }
        fs::write(&manifest, &text).expect("written");
        let mut data = DataDir::open(&path, &wanted(None, None)).expect("as it was");
        data.complete().expect("written");
        drop(data);
        assert!(refusal(&path, None, None).contains("control.redb is missing"));
    }

    #[test]
    fn a_foreign_directory_is_left_alone() {
        // Guards against a data directory made in somebody's home.
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("home");
        fs::create_dir(&path).expect("made");
        fs::write(path.join("letter"), "dear").expect("written");
        assert!(refusal(&path, None, None).contains("is not empty"));
        assert_eq!(fs::read_dir(&path).expect("there").count(), 1);
        assert!(refusal(&path.join("letter"), None, None).contains("is not a directory"));
    }

    #[test]
    fn an_interrupted_first_start_is_finished() {
        // Guards against a directory that a crash between key and manifest made unusable.
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("data");
        drop(DataDir::open(&path, &wanted(None, one_gib())).expect("made"));
        let key = ClusterKey::load(&path.join(KEY)).expect("there").cluster;
        fs::remove_file(path.join(MANIFEST)).expect("removed");
        let again = DataDir::open(&path, &wanted(None, one_gib())).expect("finished");
        assert_eq!((again.key().cluster, again.nodes()), (key, NODES_DEFAULT));
    }

    #[test]
    fn several_members_stay_where_they_are() {
        // Guards against a control plane whose members look for each other at the ports of an earlier start.
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("data");
        let control: Vec<SocketAddr> = (1..=3).map(|port| SocketAddr::from(([127, 0, 0, 1], port))).collect();
        let three = Wanted { control: control.clone(), ..wanted(Some(3), one_gib()) };
        let few = Wanted { nodes: Some(2), ..three.clone() };
        assert!(format!("{:#}", DataDir::open(&path, &few).expect_err("refused")).contains("there are 2"));
        assert_eq!(DataDir::members_of(&path).expect("nothing yet"), []);
        let data = DataDir::open(&path, &three).expect("made");
        assert_eq!(
            (data.members(), data.control(1), data.control(3)),
            (3, data.path().join("control"), data.path().join("control3"))
        );
        drop(data);
        assert_eq!(DataDir::members_of(&path).expect("ours"), control);
        let line = format!("{:#}", DataDir::open(&path, &wanted(None, None)).expect_err("refused"));
        assert!(line.contains("3 members, not 1"), "{line}");
        assert_eq!(DataDir::open(&path, &three).expect("again").members(), 3);
    }
}

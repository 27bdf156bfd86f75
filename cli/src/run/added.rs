//! The disks of a node that were added by command: what the map says, beside its configuration; and those of its configuration
//! that could not be opened when it started.
//!
//! ```text
//! map --- in service ----> open it; cannot: refused, tried again, and reported until it is open
//!    '--- a wish --------> format it, open it ---> "added":   the map says in service
//!                                '--- cannot ---> "refused": the map says nothing of it any more
//! ```
//!
//! A wish bears the identity that the disk gets, so that a node that died in the middle goes on where it was.
//! What is in service is never formatted, whatever its path holds: an empty mount point is a disk that is
//! missing, not one that is new.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use lunette_control::api::cluster::{DiskAddedRequest, DiskRefusedRequest, DiskReport};
use lunette_control::client::{ControlPlane, MapWatcher};
use lunette_proto::ids::{ClusterId, DiskId, Epoch, NodeId};
use lunette_proto::map::{AddedDisk, ClusterMap, Disk};
use lunette_storage_node::{DiskConfig, Node};
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::storage::{MissingDisk, Storage, inspect, make_disk};
use crate::failure::chain;
use crate::up::data::private_dir;

/// How long the control plane is waited for; afterwards the map may be another.
const REQUEST_PATIENCE: Duration = Duration::from_secs(5);
/// Before a disk that could not be opened, or an answer that could not be given, is tried again.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Opens what the map says, for as long as it lives. Dropping it ends the task.
pub(crate) struct AddedDisks {
    refused: Arc<Refused>,
    stop: CancellationToken,
    task: Option<JoinHandle<()>>,
    watcher: MapWatcher,
}

impl AddedDisks {
    /// Follows the map, and returns when every disk that is in service was opened, as far as it can be.
    pub(crate) async fn start(
        control: ControlPlane,
        storage: &Storage,
        stop: &CancellationToken,
    ) -> Result<Self> {
        let (node, id) = (Arc::clone(storage.node()), storage.id());
        let missing = storage.missing().to_vec();
        let watcher = MapWatcher::start(control.clone(), Some(node.cluster()));
        let refused = Arc::<Refused>::default();
        let stop_following = CancellationToken::new();
        let (opened, first_pass) = oneshot::channel();
        let follower = Follower {
            control,
            node,
            id,
            missing: missing.iter().map(|missing| missing.path.display().to_string()).collect(),
            refused: Arc::clone(&refused),
            verdicts: BTreeMap::new(),
            stop: stop_following.clone(),
        };
        let maps = watcher.subscribe();
        let task = Some(tokio::spawn(follower.run(maps, opened)));
        let this = Self { refused, stop: stop_following, task, watcher };
        let started = tokio::select! {
            started = first_pass => started.map_err(|_| anyhow!("the task that opens added disks has ended")),
            () = stop.cancelled() => Err(anyhow!("stopped before the first map came")),
        };
        let map = Arc::clone(&this.watcher.subscribe().borrow());
        let is_known = map.disks.values().any(|disk| disk.node == id);
        match (started, missing.first()) {
            // A node that has no disk yet is being set up: its configuration is what is wrong.
            (Ok(()), Some(MissingDisk { reason, .. })) if !is_known => {
                this.stop().await;
                bail!("{reason}")
            }
            (Ok(()), _) => {
                for MissingDisk { path, reason } in missing {
                    tracing::error!(path = %path.display(), reason, "serving without this disk");
                }
                Ok(this)
            }
            (Err(error), _) => {
                this.stop().await;
                Err(error)
            }
        }
    }

    /// What the node says of disks that it cannot open.
    pub(crate) fn refused(&self) -> Arc<Refused> {
        Arc::clone(&self.refused)
    }

    /// Finishes what it is at, and ends. The disks stay open: they are the node's.
    pub(crate) async fn stop(mut self) {
        self.stop.cancel();
        if let Some(task) = self.task.take()
            && let Err(error) = task.await
        {
            tracing::error!(%error, "the task that opens added disks has failed");
        }
        self.watcher.stop().await;
    }
}

/// Disks that are in service by the map and that this node cannot open.
#[derive(Debug, Default)]
pub(crate) struct Refused(Mutex<BTreeMap<DiskId, Refusal>>);

#[derive(Clone, Debug)]
struct Refusal {
    reason: String,
    pause: Duration,
    again: Instant,
}

impl Refused {
    /// What to tell the control plane.
    pub(crate) fn reports(&self) -> Vec<DiskReport> {
        let report = |(disk, refusal): (&DiskId, &Refusal)| DiskReport {
            disk: disk.0,
            refused: true,
            reason: refusal.reason.clone(),
            ..DiskReport::default()
        };
        self.0.lock().iter().map(report).collect()
    }

    /// Whether it is time to try.
    fn is_due(&self, disk: DiskId, now: Instant) -> bool {
        self.0.lock().get(&disk).is_none_or(|refusal| refusal.again <= now)
    }

    fn put(&self, disk: DiskId, reason: String, now: Instant) {
        let mut refused = self.0.lock();
        let before = refused.get(&disk);
        if before.is_none_or(|before| before.reason != reason) {
            tracing::error!(%disk, reason, "a disk of this node cannot be opened; trying again from time to time");
        }
        let pause = before.map_or(PAUSE_MIN, |before| (before.pause * 2).min(PAUSE_MAX));
        refused.insert(disk, Refusal { reason, pause, again: now + pause });
    }

    /// Forgets all but these.
    fn retain(&self, keep: impl Fn(DiskId) -> bool) {
        self.0.lock().retain(|disk, _| keep(*disk));
    }

    fn next(&self) -> Option<Instant> {
        self.0.lock().values().map(|refusal| refusal.again).min()
    }
}

/// What became of a wish, to be said until the control plane has heard it.
#[derive(Clone, Debug)]
enum Verdict {
    Added { capacity_bytes: u64 },
    Refused { reason: String },
}

struct Follower {
    control: ControlPlane,
    node: Arc<Node>,
    id: NodeId,
    /// Where disks of the configuration are that could not be opened.
    missing: Vec<String>,
    refused: Arc<Refused>,
    verdicts: BTreeMap<DiskId, Verdict>,
    stop: CancellationToken,
}

impl Follower {
    async fn run(mut self, mut maps: watch::Receiver<Arc<ClusterMap>>, opened: oneshot::Sender<()>) {
        let mut opened = Some(opened);
        loop {
            let map = Arc::clone(&maps.borrow_and_update());
            let mut again = None;
            // There is no map before the control plane has answered.
            if map.epoch > Epoch(0) {
                self.open(&map).await;
                if let Some(opened) = opened.take() {
                    // Whoever waited may have been told to stop.
                    let _ = opened.send(());
                }
                let heard = self.carry_out(&map).await;
                again = self.refused.next();
                if !heard {
                    let soon = Instant::now() + PAUSE_MIN;
                    again = Some(again.map_or(soon, |again| again.min(soon)));
                }
            }
            tokio::select! {
                () = self.stop.cancelled() => return,
                changed = maps.changed() => if changed.is_err() { return },
                () = until(again) => {}
            }
        }
    }

    /// Opens what is in service and is not open.
    async fn open(&self, map: &ClusterMap) {
        let mine = |added: &&AddedDisk| map.disks.get(&added.id).is_some_and(|disk| disk.node == self.id);
        let mut missing: BTreeMap<DiskId, AddedDisk> =
            map.added.values().filter(mine).map(|added| (added.id, added.clone())).collect();
        let own =
            map.disks.values().filter(|disk| disk.node == self.id && self.missing.contains(&disk.label));
        for disk in own {
            missing.entry(disk.id).or_insert_with(|| configured(disk));
        }
        if !missing.is_empty() {
            // One that the configuration names by now is open already.
            for disk in self.node.disks() {
                missing.remove(&disk.disk);
            }
        }
        self.refused.retain(|disk| missing.contains_key(&disk));
        for added in missing.into_values() {
            if self.stop.is_cancelled() || !self.refused.is_due(added.id, Instant::now()) {
                continue;
            }
            let (node, id) = (Arc::clone(&self.node), added.id);
            match blocking(move || open_again(&node, &added)).await {
                Ok(()) => self.refused.retain(|disk| disk != id),
                Err(error) => self.refused.put(id, chain(&error), Instant::now()),
            }
        }
    }

    /// Carries out what is wished of this node, and says so. Whether all that was said was heard.
    async fn carry_out(&mut self, map: &ClusterMap) -> bool {
        let wishes: Vec<&AddedDisk> = map.wishes().filter(|wish| wish.node == self.id).collect();
        self.verdicts.retain(|disk, _| wishes.iter().any(|wish| wish.id == *disk));
        let mut heard = true;
        for wish in wishes {
            if self.stop.is_cancelled() {
                return true;
            }
            if !self.verdicts.contains_key(&wish.id) {
                // Decided once: the answer may be on its way while the map still shows the wish.
                let (node, disk) = (Arc::clone(&self.node), wish.clone());
                let verdict = match blocking(move || make(&node, &disk)).await {
                    Ok(capacity_bytes) => Verdict::Added { capacity_bytes },
                    Err(error) => Verdict::Refused { reason: chain(&error) },
                };
                tracing::info!(disk = %wish.id, path = wish.path, ?verdict, "asked to add a disk");
                self.verdicts.insert(wish.id, verdict);
            }
            let Some(verdict) = self.verdicts.get(&wish.id) else { continue };
            let answered = tokio::select! {
                answered = self.say(wish.id, verdict) => answered,
                () = self.stop.cancelled() => return true,
            };
            if let Err(status) = answered {
                tracing::warn!(disk = %wish.id, %status, "the control plane was not told of an added disk; again");
                heard = false;
            }
        }
        heard
    }

    async fn say(&self, disk: DiskId, verdict: &Verdict) -> Result<(), Status> {
        let (node, disk) = (self.id.0, disk.0);
        match verdict {
            Verdict::Added { capacity_bytes } => {
                let request = DiskAddedRequest { node, disk, capacity_bytes: *capacity_bytes };
                self.control.disk_added(REQUEST_PATIENCE, request).await?;
            }
            Verdict::Refused { reason } => {
                let request = DiskRefusedRequest { node, disk, reason: reason.clone() };
                self.control.disk_refused(REQUEST_PATIENCE, &request).await?;
            }
        }
        Ok(())
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    spawn_blocking(work).await.context("the node has failed at it, see its log")?
}

/// Opens a disk that has served before.
fn open_again(node: &Node, added: &AddedDisk) -> Result<()> {
    let path = Path::new(&added.path);
    let found = inspect(path, node.cluster())?;
    match found {
        None => bail!(
            "{} holds no Lunette disk any more: put {} back, or another in its place by `lunette disk replace {} PATH`",
            added.path,
            added.id,
            added.id.0
        ),
        Some(found) if found.uuid != added.uuid => {
            bail!("{} holds another disk, {}: put {} back", added.path, found.disk, added.id)
        }
        Some(_) => {}
    }
    node.add(&config(added))?;
    Ok(())
}

/// Makes a disk that was wished for, and opens it: what it offers.
fn make(node: &Node, wish: &AddedDisk) -> Result<u64> {
    let (cluster, path) = (node.cluster(), Path::new(&wish.path));
    let found = inspect(path, cluster)?;
    let made = match found.filter(|found| (found.disk, found.uuid) == (wish.id, wish.uuid)) {
        // Formatted before the node died.
        Some(_) => false,
        None => format(cluster, wish, path)?,
    };
    match node.add(&config(wish)) {
        Ok(status) => Ok(status.capacity_bytes),
        Err(error) => {
            undo(path, made);
            let left = if made { String::new() } else { format!("; {} is on it, empty it first", wish.id) };
            Err(anyhow!("{error}{left}"))
        }
    }
}

/// Formats what a wish names; whether its folder was made for it.
fn format(cluster: ClusterId, wish: &AddedDisk, path: &Path) -> Result<bool> {
    let made = match fs::metadata(path) {
        Ok(_) => false,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            fs::create_dir(path).map_err(|error| {
                anyhow!("{} does not exist and cannot be made: {error}; make it first", wish.path)
            })?;
            true
        }
        Err(error) => bail!("{} cannot be used: {error}", wish.path),
    };
    let formatted = make_disk(path, cluster, wish.id, wish.uuid, wish.capacity_bytes);
    let closed = formatted.and_then(|()| if path.is_dir() { private_dir(path) } else { Ok(()) });
    if let Err(error) = closed {
        undo(path, made);
        return Err(error);
    }
    Ok(made)
}

/// Takes a folder away that was made for a disk that did not come to be.
fn undo(path: &Path, made: bool) {
    if made && let Err(error) = fs::remove_dir_all(path) {
        tracing::warn!(path = %path.display(), %error, "a folder that was made for a disk cannot be removed");
    }
}

/// A disk of the configuration, as if it had been added by command.
fn configured(disk: &Disk) -> AddedDisk {
    AddedDisk {
        id: disk.id,
        uuid: disk.uuid,
        node: disk.node,
        path: disk.label.clone(),
        capacity_bytes: Some(disk.capacity_bytes),
        replaces: None,
    }
}

fn config(added: &AddedDisk) -> DiskConfig {
    DiskConfig { path: (&added.path).into(), capacity_bytes: added.capacity_bytes, disk: Some(added.id) }
}

#[cfg(test)]
mod tests {
    use lunette_proto::ids::DiskUuid;

    use super::*;

    const CLUSTER: ClusterId = ClusterId(7);

    fn wish(path: &Path, id: u32) -> AddedDisk {
        AddedDisk {
            id: DiskId(id),
            uuid: DiskUuid(id.into()),
            node: NodeId(1),
            path: path.to_str().expect("text").to_owned(),
            capacity_bytes: Some(256 << 20),
            replaces: None,
        }
    }

    fn node() -> Arc<Node> {
        Node::open(CLUSTER, []).expect("no disk can be wrong")
    }

    fn refusal<T: std::fmt::Debug>(outcome: Result<T>) -> String {
        chain(&outcome.expect_err("refused"))
    }

    #[test]
    fn a_wish_is_carried_out_once_whenever_the_node_dies() {
        // Guards against a disk that was formatted before a crash and is refused after it.
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("disk");
        let wish = wish(&path, 4);
        assert!(format(CLUSTER, &wish, &path).expect("formats"), "its folder is made");
        let first = node();
        let capacity = make(&first, &wish).expect("goes on");
        assert!(capacity > 0);
        first.close();
        drop(first);
        open_again(&node(), &wish).expect("opens at the next start");
    }

    #[test]
    fn a_refused_wish_leaves_nothing() {
        // Guards against others' files, half a disk where there was none, and a disk that is served twice.
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        let node = node();

        fs::create_dir(at("foreign")).expect("made");
        fs::write(at("foreign").join("letter"), "dear").expect("written");
        let before = fs::metadata(at("foreign")).expect("there").permissions();
        assert!(refusal(make(&node, &wish(&at("foreign"), 1))).contains("foreign is not empty"));
        assert_eq!(fs::read_dir(at("foreign")).expect("there").count(), 1);
        assert_eq!(fs::metadata(at("foreign")).expect("there").permissions(), before);

        assert!(refusal(make(&node, &wish(&at("no/where"), 2))).contains("does not exist"));
        assert!(!at("no").exists());

        make(&node, &wish(&at("disk"), 3)).expect("made");
        assert!(
            refusal(make(&node, &wish(&at("disk"), 4))).contains("disk-3"),
            "another wish, the same place"
        );
        let other = Node::open(ClusterId(8), []).expect("no disk can be wrong");
        assert!(refusal(make(&other, &wish(&at("disk"), 3))).contains("belongs to cluster"));
        assert_eq!(node.disks().len(), 1);
    }

    #[test]
    fn what_has_served_is_never_formatted() {
        // Guards against an empty mount point that becomes a disk without the data that its copies vouch for.
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("disk");
        let added = wish(&path, 1);
        for _ in 0..2 {
            let refused = refusal(open_again(&node(), &added));
            assert!(refused.contains("disk holds no Lunette disk"), "{refused}");
            let _ = fs::create_dir(&path);
        }
        assert_eq!(fs::read_dir(&path).expect("there").count(), 0);
        make(&node(), &wish(&path, 2)).expect("made");
        let refused = refusal(open_again(&node(), &added));
        assert!(refused.contains("holds another disk, disk-2"), "{refused}");
    }

    #[test]
    fn refusals_are_tried_again_with_pauses() {
        // Guards against a disk that is missing for a week and read a thousand times a second, or never again.
        let refused = Refused::default();
        let start = Instant::now();
        assert!(refused.is_due(DiskId(1), start));
        assert_eq!(refused.next(), None);
        let mut now = start;
        for _ in 0..20 {
            refused.put(DiskId(1), "gone".into(), now);
            assert!(!refused.is_due(DiskId(1), now));
            let next = refused.next().expect("some time");
            assert!(next > now && next <= now + PAUSE_MAX);
            assert!(refused.is_due(DiskId(1), next));
            now = next;
        }
        let [report] = &refused.reports()[..] else { panic!("one disk") };
        assert!(report.refused && report.reason == "gone" && report.disk == 1);
        refused.retain(|_| false);
        assert!(refused.reports().is_empty());
    }
}

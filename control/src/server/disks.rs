//! Disks, and the wish for one more: what the administrator asks for, and what the node answers.
//!
//! ```text
//! Add --wish--> log --> map --> node: formats and opens it --DiskAdded--> log: in service ----.
//!  ^                                  '------ cannot ----DiskRefused--> reason kept; log: gone |
//!  '------------------------------ waits for either ------------------------------------------'
//! ```
//!
//! The wish is committed, so that it is carried out whoever restarts meanwhile; the words of a refusal are
//! not, for only who waits wants them.

use std::collections::BTreeMap;
use std::time::Duration;

use lunette_proto::ids::{DiskId, NodeId};
use lunette_proto::map::{self, ClusterMap, DiskState};
use parking_lot::Mutex;
use tokio::time::{Instant, timeout_at};
use tonic::{Code, Request, Response, Status};

use super::Context;
use super::errors::{rejected, status, stopping};
use super::members::unexpected;
use crate::api::admin::disks_server::Disks;
use crate::api::admin::{
    AddDiskRequest, Disk, DrainDiskRequest, DrainResponse, ListDisksRequest, ListDisksResponse,
    RemoveDiskRequest, RemoveDiskResponse, ReplaceDiskRequest, ReplaceDiskResponse, ScrubDiskRequest,
};
use crate::health::Member;
use crate::state::{Change, Command, Rejection, Response as Outcome, default_weight};

/// How long a call waits for a node; whoever wants to wait longer calls again.
const ADD_WAIT: Duration = Duration::from_secs(10);
/// How long a node may take to begin a scrub.
const SCRUB_WAIT: Duration = Duration::from_secs(5);
/// Its reports come by themselves, and sooner when they are asked for.
const SCRUB_POLL: Duration = Duration::from_millis(20);
/// Refusals whose words are kept; who asks for an older one learns that it was refused.
const REFUSALS_MAX: usize = 256;
/// Characters of a refusal that are kept.
const REASON_CHARS_MAX: usize = 1024;

/// Why nodes have refused disks, by the ids that the disks would have had.
#[derive(Default)]
pub(super) struct Refusals(Mutex<BTreeMap<DiskId, String>>);

impl Refusals {
    fn put(&self, disk: DiskId, reason: &str) {
        // It goes into messages of one line.
        let one_line = reason.split_whitespace().collect::<Vec<_>>().join(" ");
        let reason = one_line.chars().filter(|c| !c.is_control()).take(REASON_CHARS_MAX).collect();
        let mut refusals = self.0.lock();
        refusals.insert(disk, reason);
        while refusals.len() > REFUSALS_MAX {
            refusals.pop_first();
        }
    }

    fn get(&self, disk: DiskId) -> Option<String> {
        self.0.lock().get(&disk).cloned()
    }
}

impl Context {
    /// A node cannot make a disk that was wished for.
    pub(super) async fn disk_refusal(&self, node: NodeId, disk: DiskId, reason: &str) -> Result<(), Status> {
        // Kept first: whoever sees the wish gone looks for the words at once.
        if self.state().await?.map().wishes().any(|wish| wish.id == disk && wish.node == node) {
            tracing::warn!(%node, %disk, reason, "a node refuses a disk");
            self.refusals.put(disk, reason);
        }
        self.run(Command::RefuseDisk { node, disk }).await?;
        Ok(())
    }

    /// The pass that the scrubber of a disk is at; why it can be at none.
    fn scrub_pass(&self, node: NodeId, disk: DiskId) -> Result<u64, String> {
        self.attachments.read(|registry, now| {
            let report = registry.disk(node, disk).filter(|_| registry.is_up(Member::Node(node), now));
            let report = report.ok_or_else(|| "is not served by its node at the moment".to_owned())?;
            let why = || {
                format!(": {}", if report.reason.is_empty() { "its log says why" } else { &report.reason })
            };
            if report.failed {
                return Err(format!("has failed{}", why()));
            }
            if report.refused {
                return Err(format!("cannot be opened by its node{}", why()));
            }
            Ok(report.scrub.map_or(0, |scrub| scrub.pass))
        })
    }

    pub(super) fn is_up(&self, node: NodeId) -> bool {
        self.attachments.read(|registry, now| registry.is_up(Member::Node(node), now))
    }

    /// Waits until a wish is carried out or refused, at most for [`ADD_WAIT`].
    async fn settled(&self, id: DiskId) -> Result<(), Status> {
        let deadline = Instant::now() + ADD_WAIT;
        let mut epochs = self.published.epochs();
        loop {
            epochs.mark_unchanged();
            let state = self.published.state();
            if !state.map().wishes().any(|wish| wish.id == id) {
                return Ok(());
            }
            drop(state);
            tokio::select! {
                changed = timeout_at(deadline, epochs.changed()) => match changed {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return Err(stopping()),
                    Err(_) => return Ok(()),
                },
                () = self.stop.cancelled() => return Err(stopping()),
            }
        }
    }
}

impl Context {
    /// Wishes for a disk, and waits until it is in service or refused.
    async fn add_disk(&self, request: AddDiskRequest, replaces: Option<DiskId>) -> Result<Disk, Status> {
        let command = wish(&request, replaces);
        let AddDiskRequest { node: name, path, .. } = request;
        // What is wrong in itself is said first; then, whether the node is there to carry it out.
        let state = self.state().await?;
        let decision = state.decide(&command).map_err(|rejection| rejected(&rejection))?;
        let node = node_named(state.map(), &name);
        if !node.is_some_and(|node| self.is_up(node)) {
            let sentence = if decision.changes.is_empty() {
                format!("node {name} is down; {path} is added once it is back, see `disk list`")
            } else {
                format!("node {name} is down; start it, then add {path} again")
            };
            return Err(status(Code::FailedPrecondition, "NODE_DOWN", sentence));
        }
        let id = match self.run(command).await?.response {
            Outcome::Disk(id) => id,
            other => return Err(unexpected(&other)),
        };
        self.settled(id).await?;
        // The node says more of its disk than the map: how it is, and what.
        self.attachments.refresh(node.map(Member::Node).into_iter()).await;
        let disks = self.view(|view| view.disks()).await?;
        disks.into_iter().find(|disk| disk.id == id.0).ok_or_else(|| {
            let reason = self.refusals.get(id).unwrap_or_else(|| "its log says why".to_owned());
            status(Code::FailedPrecondition, "DISK_REFUSED", format!("node {name} refuses: {reason}"))
        })
    }

    /// What would move if the disk that is wished for had taken the place of `old`.
    async fn preview_replacement(
        &self,
        map: &ClusterMap,
        old: DiskId,
        changes: &[Change],
    ) -> Result<DrainResponse, Status> {
        let mut after = map.clone();
        changes.iter().for_each(|change| change.apply(&mut after));
        // A wish that is carried out already, or changes nothing, is one that was asked for before.
        let wish = after.wishes().find(|wish| wish.replaces == Some(old)).cloned();
        let (Some(wish), Some(known)) = (wish, after.disks.get(&old).cloned()) else {
            return Ok(DrainResponse::default());
        };
        let capacity_bytes = wish.capacity_bytes.unwrap_or(known.capacity_bytes);
        let new = map::Disk {
            id: wish.id,
            uuid: wish.uuid,
            node: wish.node,
            label: wish.path,
            capacity_bytes,
            weight: default_weight(capacity_bytes),
            state: DiskState::InSync,
            draining: false,
            replaced_by: None,
        };
        after.disks.insert(new.id, new);
        after.disks.insert(old, map::Disk { draining: true, ..known });
        self.preview(after, &format!("{old} cannot be replaced")).await
    }
}

/// The command that wishes for a disk.
fn wish(request: &AddDiskRequest, replaces: Option<DiskId>) -> Command {
    Command::AddDisk {
        node: request.node.clone(),
        path: request.path.clone(),
        capacity_bytes: (request.capacity_bytes > 0).then_some(request.capacity_bytes),
        uuid: lunette_proto::ids::DiskUuid(uuid::Uuid::new_v4().as_u128()),
        replaces,
    }
}

#[tonic::async_trait]
impl Disks for Context {
    async fn list(&self, _: Request<ListDisksRequest>) -> Result<Response<ListDisksResponse>, Status> {
        self.refresh_all().await?;
        let disks = self.view(|view| view.disks()).await?;
        Ok(Response::new(ListDisksResponse { disks }))
    }

    async fn add(&self, request: Request<AddDiskRequest>) -> Result<Response<Disk>, Status> {
        self.add_disk(request.into_inner(), None).await.map(Response::new)
    }

    async fn replace(
        &self,
        request: Request<ReplaceDiskRequest>,
    ) -> Result<Response<ReplaceDiskResponse>, Status> {
        let ReplaceDiskRequest { disk, node, path, capacity_bytes, dry_run } = request.into_inner();
        let old = DiskId(disk);
        self.refresh_all().await?;
        let state = self.state().await?;
        let known = state.map().disks.get(&old).ok_or_else(|| rejected(&Rejection::NoDisk(old)))?;
        let own = state.map().nodes.get(&known.node).map(|node| node.name.clone()).unwrap_or_default();
        let add = AddDiskRequest { node: if node.is_empty() { own } else { node }, path, capacity_bytes };
        let decision = state.decide(&wish(&add, Some(old))).map_err(|rejection| rejected(&rejection))?;
        let moves = self.preview_replacement(state.map(), old, &decision.changes).await?;
        let disk = if dry_run { None } else { Some(self.add_disk(add, Some(old)).await?) };
        Ok(Response::new(ReplaceDiskResponse { disk, moves: Some(moves) }))
    }

    async fn scrub(&self, request: Request<ScrubDiskRequest>) -> Result<Response<Disk>, Status> {
        let ScrubDiskRequest { disk, rate_bytes } = request.into_inner();
        let id = DiskId(disk);
        let state = self.state().await?;
        let map = state.map();
        let node_of = |node: NodeId| map.nodes.get(&node).map_or("?", |node| node.name.as_str());
        if let Some(wish) = map.wishes().find(|wish| wish.id == id) {
            return Err(no_scrub(id, node_of(wish.node), "is being added"));
        }
        let known = map.disks.get(&id).ok_or_else(|| rejected(&Rejection::NoDisk(id)))?;
        let (node, name) = (known.node, node_of(known.node));
        if !self.is_up(node) {
            return Err(no_scrub(id, name, "cannot be reached: its node is down"));
        }
        // What is said of it now counts: the pass that is begun has a higher number.
        self.attachments.refresh(std::iter::once(Member::Node(node))).await;
        let before = self.scrub_pass(node, id).map_err(|why| no_scrub(id, name, &why))?;
        if !self.attachments.scrub(node, id, rate_bytes) {
            return Err(no_scrub(id, name, "cannot be reached: its node takes no orders"));
        }
        let deadline = Instant::now() + SCRUB_WAIT;
        while self.scrub_pass(node, id).map_err(|why| no_scrub(id, name, &why))? <= before {
            if Instant::now() >= deadline {
                let sentence =
                    format!("{id} of node {name} was told to begin, and has not said yet that it has");
                return Err(status(Code::DeadlineExceeded, "SCRUB_NOT_CONFIRMED", sentence));
            }
            self.attachments.refresh(std::iter::once(Member::Node(node))).await;
            tokio::time::sleep(SCRUB_POLL).await;
        }
        let disks = self.view(|view| view.disks()).await?;
        let disk = disks.into_iter().find(|disk| disk.id == id.0);
        disk.map(Response::new).ok_or_else(|| rejected(&Rejection::NoDisk(id)))
    }

    async fn drain(&self, request: Request<DrainDiskRequest>) -> Result<Response<DrainResponse>, Status> {
        let DrainDiskRequest { disk, draining, dry_run } = request.into_inner();
        let id = DiskId(disk);
        self.drain_disks(&id.to_string(), vec![id], draining, dry_run).await.map(Response::new)
    }

    async fn remove(
        &self,
        request: Request<RemoveDiskRequest>,
    ) -> Result<Response<RemoveDiskResponse>, Status> {
        let disk = DiskId(request.into_inner().disk);
        self.run(Command::RemoveDisk { disk }).await?;
        Ok(Response::new(RemoveDiskResponse {}))
    }
}

/// A disk cannot be scrubbed.
fn no_scrub(id: DiskId, node: &str, why: &str) -> Status {
    let sentence = format!("{id} of node {node} {why}");
    status(Code::FailedPrecondition, "DISK_NOT_SERVED", sentence)
}

pub(super) fn node_named(map: &ClusterMap, name: &str) -> Option<NodeId> {
    map.nodes.values().find(|node| node.name == name).map(|node| node.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards against a node whose words fill the memory or break the line that they are printed in.
    #[test]
    fn refusals_are_bounded() {
        let refusals = Refusals::default();
        for id in 0..1000 {
            refusals.put(DiskId(id), "no\nroom");
        }
        assert_eq!(refusals.0.lock().len(), REFUSALS_MAX);
        assert_eq!(refusals.get(DiskId(0)), None);
        assert_eq!(refusals.get(DiskId(999)).as_deref(), Some("no room"));
        refusals.put(DiskId(1000), &"x\u{1b}".repeat(5000));
        assert_eq!(refusals.get(DiskId(1000)).map(|reason| reason.len()), Some(REASON_CHARS_MAX));
    }
}

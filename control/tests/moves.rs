//! A cluster grows and shrinks, as the leader and an administrator see it: members that are made up, everything else real.

mod support;

use std::sync::Arc;
use std::time::Duration;

use lunette_control::api::admin::status_response::Health;
use lunette_control::api::admin::{
    CreateVolumeRequest, DrainDiskRequest, DrainNodeRequest, DrainResponse, RemoveDiskRequest,
    RemoveNodeRequest, StatusRequest, StatusResponse,
};
use lunette_control::api::cluster::{CatchUpReport, OwnedVolume};
use lunette_control::client::Attachment;
use lunette_proto::ids::VolumeId;
use lunette_proto::map::ClusterMap;
use support::{FakeGateway, FakeNode, PATIENCE, Plane, node, reason};
use tokio::time::{sleep, timeout};
use tonic::Status;

/// A cluster with a volume that has an owner, and everybody there.
struct Bed {
    plane: Plane,
    nodes: Vec<Attachment>,
    gateway: Arc<FakeGateway>,
    attached: Option<Attachment>,
}

impl Bed {
    async fn new() -> Self {
        let mut plane = Plane::with_pool().await;
        let volume = CreateVolumeRequest { name: "v".into(), size_bytes: 4096, ..Default::default() };
        plane.admin.volumes.create(volume).await.expect("creates");
        let mut bed = Self { plane, nodes: Vec::new(), gateway: Arc::default(), attached: None };
        bed.attach(3);
        bed.until(|status| status.health() == Health::Healthy).await;
        bed
    }

    fn attach(&mut self, nodes: u32) {
        self.nodes = (1..=nodes).map(|id| Attachment::start(self.plane.plane(), FakeNode::new(id))).collect();
        let gateway = Arc::clone(&self.gateway) as Arc<_>;
        self.attached = Some(Attachment::start(self.plane.plane(), gateway));
    }

    /// A fourth node.
    async fn grow(&mut self) {
        self.plane.plane().register_node(PATIENCE, &node(4)).await.expect("registers");
        self.nodes.push(Attachment::start(self.plane.plane(), FakeNode::new(4)));
    }

    fn map(&self) -> ClusterMap {
        self.plane.control.map()
    }

    /// The owner says that all copies that are behind are equal.
    fn say_all(&self) {
        let map = self.map();
        let report = |((pool, disk), behind): (&(_, _), &Arc<lunette_proto::map::Behind>)| {
            let (lunette_proto::ids::PoolId(pool), lunette_proto::ids::DiskId(disk)) = (pool, disk);
            CatchUpReport {
                pool: *pool,
                disk: *disk,
                volumes: vec![OwnedVolume { volume: 1, generation: map.volumes[&VolumeId(1)].generation.0 }],
                epoch: map.epoch.0,
                ready: behind.partitions.to_bytes().into(),
                waiting_extents: 7,
                checked_extents: 5,
                copied_bytes: 4096,
            }
        };
        *self.gateway.catch_ups.lock() = map.behind.iter().map(report).collect();
        if let Some(attached) = &self.attached {
            attached.report_now();
        }
    }

    async fn until(&mut self, holds: impl Fn(&StatusResponse) -> bool) -> StatusResponse {
        let look = async {
            loop {
                let status = self.plane.admin.cluster.status(StatusRequest {}).await.expect("answers");
                let status = status.into_inner();
                if holds(&status) {
                    return status;
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, look).await.expect("in time")
    }

    /// Lets everything arrive until a disk has so many copies.
    async fn arrive(&mut self, disk: u32, copies: u32) -> StatusResponse {
        let look = async {
            loop {
                self.say_all();
                let status = self.plane.admin.cluster.status(StatusRequest {}).await.expect("answers");
                let status = status.into_inner();
                let moves = status.moves.clone().unwrap_or_default();
                let has = status.disks.iter().find(|it| it.id == disk).map_or(0, |it| it.copies);
                if (has, moves.under_way, moves.waiting) == (copies, 0, 0) {
                    return status;
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, look).await.expect("in time")
    }

    async fn drain(&mut self, name: &str, draining: bool, dry_run: bool) -> Result<DrainResponse, Status> {
        let request = DrainNodeRequest { name: name.into(), draining, dry_run };
        Ok(self.plane.admin.nodes.drain(request).await?.into_inner())
    }

    async fn remove(&mut self, name: &str) -> Result<(), Status> {
        self.plane.admin.nodes.remove(RemoveNodeRequest { name: name.into() }).await?;
        Ok(())
    }
}

/// Guards the whole way of a cluster that gets a node and gives one up: its share comes, progress is told, the cluster is healthy
/// all the time, the other node's copies go, and it goes with them; also over a restart of the control plane.
#[tokio::test]
async fn grows_and_shrinks() {
    let mut bed = Bed::new().await;
    bed.grow().await;
    let status = bed.until(|status| status.moves.as_ref().is_some_and(|moves| moves.under_way > 0)).await;
    assert_eq!(status.health(), Health::Healthy, "{:?}", status.reasons);
    assert_eq!((status.disks[3].arriving, status.disks[3].copies, status.pools[0].moves), (48, 0, 48));
    let status = bed.arrive(4, 48).await;
    assert_eq!(status.health(), Health::Healthy, "{:?}", status.reasons);
    assert!(status.disks.iter().all(|disk| disk.copies == 48 && disk.state == "in-sync"));
    assert!(status.pools[0].table_version > 1);

    let preview = bed.drain("node2", true, true).await.expect("there is a way");
    assert_eq!((preview.moves, bed.map().disks.values().any(|disk| disk.draining)), (48, false));
    assert_eq!(preview.disks.iter().map(|disk| disk.moves_in).sum::<u32>(), 48);
    assert_eq!(preview.disks[1].bytes_out / (1 << 20), 1023, "all that it uses, about");
    assert_eq!(reason(&bed.remove("node2").await.expect_err("it is in service")), "NOT_DRAINED");
    bed.drain("node2", true, false).await.expect("begins");
    assert_eq!(reason(&bed.remove("node2").await.expect_err("it has copies")), "DISK_HOLDS_COPIES");
    let status = bed.until(|status| status.pools[0].moves == 48).await;
    assert_eq!((status.nodes[1].disks_draining, status.nodes[1].draining_copies), (1, 48));
    assert!(status.disks[1].draining && status.disks[1].leaving == 48);

    let under_way = bed.map().pools.values().next().expect("there").moves.clone();
    for member in bed.nodes.drain(..).chain(bed.attached.take()) {
        member.stop().await;
    }
    bed.gateway.catch_ups.lock().clear();
    bed.plane = bed.plane.restart().await;
    assert_eq!(bed.map().pools.values().next().expect("there").moves, under_way);
    bed.attach(4);
    bed.until(|status| status.nodes.iter().all(|node| node.up)).await;
    let status = bed.arrive(2, 0).await;
    assert_eq!(status.health(), Health::Healthy, "{:?}", status.reasons);
    bed.remove("node2").await.expect("it is empty");
    let status = bed.until(|status| status.nodes.len() == 3).await;
    assert_eq!((status.disks.len(), status.health()), (3, Health::Healthy));
    let restarted = bed.plane;
    restarted.restart().await.control.stop().await;
}

/// Guards against a drain that could never end, and commands about what there is not.
#[tokio::test]
async fn nowhere_to_go() {
    let mut bed = Bed::new().await;
    for dry_run in [true, false] {
        let refused = bed.drain("node1", true, dry_run).await.expect_err("two nodes for three copies");
        assert_eq!(reason(&refused), "DRAIN_IMPOSSIBLE");
        let words = "node node1 cannot be drained: without it pool \"default\" has nowhere to put its copies: 3 copies need 3 hosts, there are 2";
        assert_eq!(refused.message(), words);
    }
    assert!(bed.map().disks.values().all(|disk| !disk.draining));
    assert_eq!(reason(&bed.drain("node9", true, false).await.expect_err("unknown")), "NODE_NOT_FOUND");
    assert_eq!(reason(&bed.remove("node9").await.expect_err("unknown")), "NODE_NOT_FOUND");
    let disks = &mut bed.plane.admin.disks;
    let unknown = disks.drain(DrainDiskRequest { disk: 9, draining: true, dry_run: false }).await;
    assert_eq!(reason(&unknown.expect_err("unknown")), "DISK_NOT_FOUND");
    let unknown = disks.remove(RemoveDiskRequest { disk: 9 }).await;
    assert_eq!(reason(&unknown.expect_err("unknown")), "DISK_NOT_FOUND");
    bed.plane.control.stop().await;
}

/// Guards the way back: a drain that is taken back gives its moves up.
#[tokio::test]
async fn a_drain_is_taken_back() {
    let mut bed = Bed::new().await;
    bed.grow().await;
    bed.arrive(4, 48).await;
    bed.gateway.catch_ups.lock().clear();
    bed.drain("node3", true, false).await.expect("begins");
    bed.until(|status| status.pools[0].moves == 48).await;
    bed.drain("node3", false, false).await.expect("is taken back");
    let status = bed.until(|status| status.pools[0].moves == 0).await;
    assert_eq!((status.disks[2].copies, bed.map().behind.len()), (48, 0));
    bed.plane.control.stop().await;
}

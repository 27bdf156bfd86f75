//! A node dies and returns, as the leader sees it: members that are made up, everything else real.

mod support;

use std::sync::Arc;
use std::time::Duration;

use lunette_control::api::admin::status_response::Health;
use lunette_control::api::admin::{CreateVolumeRequest, StatusRequest, StatusResponse};
use lunette_control::api::cluster::unreachable_disk::Trouble;
use lunette_control::api::cluster::{CatchUpReport, OwnedVolume, UnreachableDisk};
use lunette_control::client::Attachment;
use lunette_proto::ids::{DiskId, Partition, PoolId, VolumeId};
use lunette_proto::map::{ClusterMap, DiskState, Partitions};
use support::{FakeGateway, FakeNode, PATIENCE, Plane};
use tokio::time::{sleep, timeout};

/// A cluster with a volume that has an owner, and everybody there.
struct Bed {
    plane: Plane,
    nodes: Vec<Option<Attachment>>,
    gateway: Arc<FakeGateway>,
    attached: Option<Attachment>,
}

impl Bed {
    async fn new() -> Self {
        let mut plane = Plane::with_pool().await;
        let volume = CreateVolumeRequest { name: "v".into(), size_bytes: 4096, ..Default::default() };
        plane.admin.volumes.create(volume).await.expect("creates");
        let mut bed = Self { plane, nodes: vec![None, None, None], gateway: Arc::default(), attached: None };
        bed.attach();
        bed.until(|status| status.health() == Health::Healthy).await;
        bed
    }

    fn attach(&mut self) {
        for index in 0..3 {
            self.start(index);
        }
        let gateway = Arc::clone(&self.gateway) as Arc<_>;
        self.attached = Some(Attachment::start(self.plane.plane(), gateway));
    }

    fn start(&mut self, index: usize) {
        let id = u32::try_from(index).expect("small") + 1;
        self.nodes[index] = Some(Attachment::start(self.plane.plane(), FakeNode::new(id)));
    }

    /// A node's process ends, and the gateway finds that its disk does not answer.
    async fn kill(&mut self, index: usize) {
        self.nodes[index].take().expect("it is there").stop().await;
        let disk = u32::try_from(index).expect("small") + 1;
        let trouble = Trouble::Disconnected.into();
        self.gateway.unreachable.lock().push(UnreachableDisk { disk, lasting_ms: 1, trouble });
        self.attached.as_ref().expect("it is there").report_now();
    }

    fn map(&self) -> ClusterMap {
        self.plane.control.map()
    }

    fn disk(&self, id: u32) -> (DiskState, usize) {
        let map = self.map();
        let behind = map.behind.get(&(PoolId(1), DiskId(id)));
        (map.disks[&DiskId(id)].state, behind.map_or(0, |behind| behind.partitions.len()))
    }

    async fn until_disk(&self, id: u32, state: DiskState, behind: usize) {
        let wait = async {
            while self.disk(id) != (state, behind) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = timeout(PATIENCE, wait).await;
        assert!(waited.is_ok(), "not {:?}, but {:?}", (state, behind), self.disk(id));
    }

    /// The owner says that copies of a disk are equal.
    fn say(&self, disk: u32, ready: impl IntoIterator<Item = u32>) {
        let ready: Partitions = ready.into_iter().map(Partition).collect();
        let map = self.map();
        let catch_up = CatchUpReport {
            pool: 1,
            disk,
            volumes: vec![OwnedVolume { volume: 1, generation: map.volumes[&VolumeId(1)].generation.0 }],
            epoch: map.epoch.0,
            ready: ready.to_bytes().into(),
            waiting_extents: 7,
            checked_extents: 5,
            copied_bytes: 4096,
        };
        *self.gateway.catch_ups.lock() = vec![catch_up];
        self.attached.as_ref().expect("it is there").report_now();
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
}

/// Guards the whole way: a killed node's disk leaves, is named, returns, and its copies count when the owner says so; what is
/// behind survives the control plane's restart in between.
#[tokio::test]
async fn death_and_return() {
    let mut bed = Bed::new().await;
    bed.kill(2).await;
    bed.until_disk(3, DiskState::Out, 64).await;
    let status = bed.until(|status| !status.nodes[2].up).await;
    assert_eq!(status.health(), Health::Degraded);
    let lack = "pool default: 64 of 64 partitions have fewer than 3 copies in sync, at least 2 each";
    assert_eq!(status.reasons[0], lack);
    assert!(status.reasons.contains(&"disk-3 of node node3 is out".to_owned()), "{:?}", status.reasons);
    assert_eq!((status.pools[0].degraded_partitions, status.disks[2].state.as_str()), (64, "out"));
    assert_eq!((status.nodes[2].disks_out, status.nodes[2].disks_catching_up), (1, 0));

    bed.gateway.unreachable.lock().clear();
    bed.start(2);
    bed.until_disk(3, DiskState::CatchingUp, 64).await;
    bed.say(3, 0..10);
    bed.until_disk(3, DiskState::CatchingUp, 54).await;
    let status = bed.until(|status| status.disks[2].state == "catching-up").await;
    let catch_up = status.disks[2].catch_up.expect("it catches up");
    assert_eq!((catch_up.behind_partitions, catch_up.partitions), (54, 64));
    let extents = (catch_up.checked_extents, catch_up.waiting_extents, catch_up.copied_bytes);
    assert_eq!(extents, (5, 7, 4096));
    assert_eq!((status.nodes[2].disks_out, status.nodes[2].disks_catching_up), (0, 1));

    // Everybody meets the control plane again; what was said before is not known any more.
    let before = bed.map();
    bed.gateway.catch_ups.lock().clear();
    for node in bed.nodes.iter_mut().filter_map(Option::take).chain(bed.attached.take()) {
        node.stop().await;
    }
    bed.plane = bed.plane.restart().await;
    assert_eq!(bed.map().behind, before.behind);
    bed.attach();
    bed.until(|status| status.nodes.iter().all(|node| node.up)).await;
    assert_eq!(bed.disk(3), (DiskState::CatchingUp, 54));
    bed.say(3, 0..64);
    bed.until_disk(3, DiskState::InSync, 0).await;
    let status = bed.until(|status| status.health() == Health::Healthy).await;
    assert_eq!((status.disks[2].catch_up, status.pools[0].degraded_partitions), (None, 0));
    bed.plane.control.stop().await;
}

/// Guards invariant 2: while one disk is out, another that dies stays in, and its volumes are said to wait.
#[tokio::test]
async fn too_few_are_left() {
    let mut bed = Bed::new().await;
    bed.kill(0).await;
    bed.until_disk(1, DiskState::Out, 64).await;
    bed.kill(1).await;
    let status = bed.until(|status| !status.nodes[1].up).await;
    assert_eq!(status.health(), Health::Unavailable);
    let wait =
        "64 of 64 partitions have fewer than min_size 2 copies that answer, and take no writes until disk-2";
    assert!(status.reasons[0].contains(wait), "{:?}", status.reasons);
    assert_eq!(bed.disk(2), (DiskState::InSync, 0));
    // With the first one back and equal, the second one may leave.
    bed.gateway.unreachable.lock().retain(|it| it.disk != 1);
    bed.start(0);
    bed.until_disk(1, DiskState::CatchingUp, 64).await;
    bed.say(1, 0..64);
    bed.until_disk(2, DiskState::Out, 64).await;
    assert_eq!(bed.disk(1), (DiskState::InSync, 0));
    bed.plane.control.stop().await;
}

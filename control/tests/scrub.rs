//! A scrub that is asked for: an order down a node's stream, confirmed by its report.

mod support;

use std::sync::Arc;

use lunette_control::api::admin::{Disk, ListDisksRequest, ScrubDiskRequest, StatusRequest};
use lunette_control::api::cluster::report::Member;
use lunette_control::api::cluster::{DiskReport, NodeReport, Report, ScrubReport};
use lunette_control::client::Attached;
use lunette_proto::ids::DiskId;
use parking_lot::Mutex;
use support::{Plane, attached};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// Node 1, which does as it is told unless it is deaf.
#[derive(Default)]
struct Node {
    deaf: bool,
    disk: Mutex<DiskReport>,
    told: Mutex<Vec<(DiskId, Option<u64>)>>,
}

impl Node {
    fn new(deaf: bool) -> Arc<Self> {
        let disk = DiskReport { disk: 1, scrub: Some(ScrubReport::default()), ..DiskReport::default() };
        Arc::new(Self { deaf, disk: Mutex::new(disk), ..Self::default() })
    }
}

impl Attached for Node {
    fn report(&self) -> Report {
        Report { member: Some(Member::Node(NodeReport { node: 1, disks: vec![self.disk.lock().clone()] })) }
    }

    fn kick(&self, _: u32) {}

    fn scrub(&self, disk: DiskId, rate_bytes: Option<u64>) {
        self.told.lock().push((disk, rate_bytes));
        if !self.deaf
            && let Some(scrub) = &mut self.disk.lock().scrub
        {
            scrub.pass += 1;
            scrub.running = true;
            scrub.stale_blocks = 7;
        }
    }
}

async fn scrub(plane: &Plane, disk: u32, rate_bytes: u64) -> Result<Disk, Status> {
    let request = ScrubDiskRequest { disk, rate_bytes };
    plane.admin.disks.clone().scrub(request).await.map(tonic::Response::into_inner)
}

/// Guards the order: told once, with its rate, and answered with the pass that has begun; the list shows it, and what
/// it has found makes the cluster degraded.
#[tokio::test]
async fn a_scrub_is_begun_and_seen() {
    let plane = Plane::with_pool().await;
    let node = Node::new(false);
    let _attachment = attached(&plane, &node).await;
    let disk = scrub(&plane, 1, 1 << 20).await.expect("begins");
    assert_eq!((disk.id, disk.scrub.map(|scrub| (scrub.pass, scrub.running))), (1, Some((1, true))));
    let disk = scrub(&plane, 1, 0).await.expect("begins again");
    assert_eq!(disk.scrub.map(|scrub| scrub.pass), Some(2));
    assert_eq!(*node.told.lock(), [(DiskId(1), Some(1 << 20)), (DiskId(1), None)]);
    let list = plane.admin.disks.clone().list(ListDisksRequest {}).await.expect("lists").into_inner().disks;
    let damaged = list[0].scrub.and_then(|scrub| scrub.damaged).expect("reported");
    assert_eq!((damaged.stale, damaged.torn), (7, 0));
    assert_eq!(list[1].scrub, None, "nobody speaks of it");
    let status = plane.admin.cluster.clone().status(StatusRequest {}).await.expect("answers").into_inner();
    assert!(
        status.reasons.iter().any(|reason| reason.contains("disk-1 of node node1 has 7 damaged blocks")),
        "{:?}",
        status.reasons
    );
}

/// Guards against orders that nobody carries out: what is not there, not up, failed, or does not answer is refused by
/// name.
#[tokio::test]
async fn what_cannot_be_scrubbed_is_refused() {
    let plane = Plane::with_pool().await;
    let refused = |status: Status| {
        let details = status.get_error_details();
        let reason = details.error_info().map(|info| info.reason.clone()).unwrap_or_default();
        (status.code(), reason, status.message().to_owned())
    };
    let (code, reason, text) = refused(scrub(&plane, 9, 0).await.expect_err("no such disk"));
    assert_eq!((code, reason.as_str()), (Code::NotFound, "DISK_NOT_FOUND"), "{text}");
    let (code, reason, text) = refused(scrub(&plane, 1, 0).await.expect_err("its node is down"));
    assert_eq!((code, reason.as_str()), (Code::FailedPrecondition, "DISK_NOT_SERVED"));
    assert_eq!(text, "disk-1 of node node1 cannot be reached: its node is down");

    let node = Node::new(true);
    let _attachment = attached(&plane, &node).await;
    let (code, reason, text) = refused(scrub(&plane, 1, 0).await.expect_err("it is deaf"));
    assert_eq!((code, reason.as_str()), (Code::DeadlineExceeded, "SCRUB_NOT_CONFIRMED"), "{text}");
    let failed = DiskReport { disk: 1, failed: true, reason: "I/O error".into(), ..DiskReport::default() };
    *node.disk.lock() = failed;
    let (_, reason, text) = refused(scrub(&plane, 1, 0).await.expect_err("it has failed"));
    assert_eq!(
        (reason.as_str(), text.as_str()),
        ("DISK_NOT_SERVED", "disk-1 of node node1 has failed: I/O error")
    );
    assert_eq!(node.told.lock().len(), 1, "a failed disk is not told");
}

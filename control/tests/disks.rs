//! Disks that are added by command: what the administrator, the node and the map are told.

mod support;

use std::sync::Arc;

use lunette_control::api::admin::{AddDiskRequest, Disk, ListDisksRequest, StatusRequest};
use lunette_control::api::cluster::report::Member;
use lunette_control::api::cluster::{DiskAddedRequest, DiskRefusedRequest, DiskReport, NodeReport, Report};
use lunette_control::client::{Attached, MapWatcher};
use lunette_proto::ids::{DiskId, NodeId};
use lunette_proto::map::AddedDisk;
use parking_lot::Mutex;
use support::{PATIENCE, Plane, attached, field, reason};
use tokio::time::timeout;
use tonic::{Code, Status};

/// Node 1 of [`Plane::with_pool`], which reports the disks that it is told to.
struct Node(Mutex<Vec<DiskReport>>);

impl Node {
    fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(vec![DiskReport {
            disk: 1,
            kind: "directory".into(),
            ..DiskReport::default()
        }])))
    }
}

impl Attached for Node {
    fn report(&self) -> Report {
        Report { member: Some(Member::Node(NodeReport { node: 1, disks: self.0.lock().clone() })) }
    }

    fn kick(&self, _: u32) {}
}

fn request(node: &str, path: &str, capacity_bytes: u64) -> AddDiskRequest {
    AddDiskRequest { node: node.into(), path: path.into(), capacity_bytes }
}

async fn add(plane: &Plane, request: AddDiskRequest) -> Result<Disk, Status> {
    plane.admin.disks.clone().add(request).await.map(tonic::Response::into_inner)
}

async fn list(plane: &Plane) -> Vec<Disk> {
    plane.admin.disks.clone().list(ListDisksRequest {}).await.expect("lists").into_inner().disks
}

/// The wish for `path` as the node sees it.
async fn wish(watcher: &MapWatcher, path: &str) -> AddedDisk {
    let mut maps = watcher.subscribe();
    let find = |map: &lunette_proto::map::ClusterMap| map.wishes().find(|wish| wish.path == path).cloned();
    let map =
        timeout(PATIENCE, maps.wait_for(|map| find(map).is_some())).await.expect("in time").expect("open");
    find(&map).expect("just seen")
}

/// Guards the way of a wish: committed with its identity, shown while it waits, in service once the node says so.
#[tokio::test]
async fn added() {
    let plane = Plane::with_pool().await;
    let node = Node::new();
    let _attachment = attached(&plane, &node).await;
    let watcher = MapWatcher::start(plane.plane(), None);
    let node_side = async {
        let wish = wish(&watcher, "/srv/two").await;
        assert_eq!((wish.id, wish.node, wish.capacity_bytes), (DiskId(4), NodeId(1), Some(8 << 30)));
        assert_ne!(wish.uuid.0, 0);
        let shown = list(&plane).await.pop().expect("four");
        assert_eq!((shown.id, shown.state.as_str(), shown.label.as_str()), (4, "adding", "/srv/two"));
        let pools = plane.control.map().pools;
        assert!(pools.values().all(|pool| pool.table.rows().all(|(_, row)| !row.contains(&wish.id))));

        node.0.lock().push(DiskReport {
            disk: 4,
            kind: "file".into(),
            used_bytes: 4096,
            ..DiskReport::default()
        });
        let said = DiskAddedRequest { node: 1, disk: 4, capacity_bytes: 7 << 30 };
        // By another node, it is no disk of theirs.
        let other = DiskAddedRequest { node: 2, ..said };
        assert_eq!(
            reason(&plane.plane().disk_added(PATIENCE, other).await.expect_err("not its")),
            "DISK_NOT_FOUND"
        );
        plane.plane().disk_added(PATIENCE, said).await.expect("heard");
        let epoch = plane.control.map().epoch;
        plane.plane().disk_added(PATIENCE, said).await.expect("heard twice");
        assert_eq!(plane.control.map().epoch, epoch);
        wish
    };
    let (disk, wish) = tokio::join!(add(&plane, request("node1", "/srv//two/", 8 << 30)), node_side);
    let disk = disk.expect("added");
    assert_eq!((disk.id, disk.state.as_str(), disk.kind.as_str()), (4, "in-sync", "file"));
    assert_eq!((disk.capacity_bytes, disk.used_bytes, disk.weight), (7 << 30, 4096, 7 << 10));
    assert_eq!(plane.control.map().disks[&DiskId(4)].uuid, wish.uuid);
    let refused = DiskRefusedRequest { node: 1, disk: 4, reason: "no".into() };
    let late = plane.plane().disk_refused(PATIENCE, &refused).await.expect_err("it serves");
    assert_eq!(reason(&late), "DISK_IN_SERVICE");

    let plane = plane.restart().await;
    let map = plane.control.map();
    assert_eq!((map.added.len(), map.wishes().count(), map.disks.len()), (1, 0, 4));
    plane.control.stop().await;
}

/// Guards a refusal: the node's words reach whoever asked, nothing stays, and the same again gets another try.
#[tokio::test]
async fn refused() {
    let plane = Plane::with_pool().await;
    let node = Node::new();
    let _attachment = attached(&plane, &node).await;
    let watcher = MapWatcher::start(plane.plane(), None);
    let before = list(&plane).await;
    for id in 4..6 {
        let node_side = async {
            let wish = wish(&watcher, "/srv/two").await;
            assert_eq!(wish.id, DiskId(id), "an id is not used again");
            let refused = DiskRefusedRequest { node: 1, disk: id, reason: "/srv/two is\nnot empty".into() };
            plane.plane().disk_refused(PATIENCE, &refused).await.expect("heard");
            plane.plane().disk_refused(PATIENCE, &refused).await.expect("heard twice");
        };
        let (disk, ()) = tokio::join!(add(&plane, request("node1", "/srv/two", 0)), node_side);
        let status = disk.expect_err("refused");
        assert_eq!((status.code(), reason(&status)), (Code::FailedPrecondition, "DISK_REFUSED".into()));
        assert_eq!(status.message(), "node node1 refuses: /srv/two is not empty");
        assert_eq!(list(&plane).await, before);
        assert!(plane.control.map().added.is_empty());
    }
    plane.control.stop().await;
}

/// Guards against wishes that can never come true, and a disk in the place of another.
#[tokio::test]
async fn wrong_wishes() {
    let plane = Plane::with_pool().await;
    let node = Node::new();
    let _attachment = attached(&plane, &node).await;
    let epoch = plane.control.map().epoch;
    let refusal = |request| {
        let plane = &plane;
        async move {
            let status = add(plane, request).await.expect_err("refused");
            (status.code(), reason(&status), field(&status))
        }
    };
    let invalid =
        |reason: &str, field: &str| (Code::InvalidArgument, reason.to_owned(), Some(field.to_owned()));
    let got = refusal(request("node9", "/srv/two", 0)).await;
    assert_eq!(got, (Code::NotFound, "NODE_NOT_FOUND".into(), None));
    for path in ["", "srv/two", "/srv/../two", "/"] {
        assert_eq!(refusal(request("node1", path, 0)).await, invalid("DISK_PATH_INVALID", "path"));
    }
    let got = refusal(request("node1", "/srv/two", 4096)).await;
    assert_eq!(got, invalid("DISK_CAPACITY_INVALID", "capacity_bytes"));
    // The disk of node 1 lies at /node1.
    for path in ["/node1", "/node1/", "/node1/inside"] {
        assert_eq!(
            refusal(request("node1", path, 0)).await,
            (Code::AlreadyExists, "DISK_PATH_TAKEN".into(), None)
        );
    }
    // Node 2 has registered and is not there.
    assert_eq!(refusal(request("node2", "/srv/two", 0)).await.1, "NODE_DOWN");
    assert_eq!(plane.control.map().epoch, epoch, "nothing was committed");
    plane.control.stop().await;
}

/// Guards a wish over a restart of the control plane: it is still there, whoever asks again waits for the same one,
/// and is told if the node has gone meanwhile.
#[tokio::test]
async fn wishes_survive() {
    let plane = Plane::with_pool().await;
    let node = Node::new();
    let attachment = attached(&plane, &node).await;
    let watcher = MapWatcher::start(plane.plane(), None);
    let before = tokio::select! {
        disk = add(&plane, request("node1", "/srv/two", 0)) => panic!("nobody has made it: {disk:?}"),
        wish = wish(&watcher, "/srv/two") => wish,
    };
    attachment.stop().await;
    let plane = plane.restart().await;
    let status = add(&plane, request("node1", "/srv/two", 0)).await.expect_err("the node is not there");
    assert_eq!(reason(&status), "NODE_DOWN");
    assert!(status.message().contains("once it is back"), "{status}");

    let _attachment = attached(&plane, &node).await;
    let watcher = MapWatcher::start(plane.plane(), None);
    assert_eq!(wish(&watcher, "/srv/two").await, before);
    // Another capacity would be another disk at the same place.
    let status = add(&plane, request("node1", "/srv/two", 1 << 30)).await.expect_err("taken");
    assert_eq!(reason(&status), "DISK_PATH_TAKEN");
    let node_side = async {
        node.0.lock().push(DiskReport { disk: 4, ..DiskReport::default() });
        let said = DiskAddedRequest { node: 1, disk: 4, capacity_bytes: 1 << 30 };
        plane.plane().disk_added(PATIENCE, said).await.expect("heard");
    };
    let (disk, ()) = tokio::join!(add(&plane, request("node1", "/srv/two", 0)), node_side);
    // Whoever comes after the node has said so finds the place taken.
    match disk {
        Ok(disk) => assert_eq!((disk.id, disk.state.as_str()), (4, "in-sync")),
        Err(status) => assert_eq!(reason(&status), "DISK_PATH_TAKEN"),
    }
    plane.control.stop().await;
}

/// Guards against a disk that its node cannot open and that is listed as if it served.
#[tokio::test]
async fn what_the_node_cannot_open() {
    // In no pool: it would leave otherwise.
    let plane = Plane::new().await;
    plane.plane().register_node(PATIENCE, &support::node(1)).await.expect("registers");
    let node = Node::new();
    let attachment = attached(&plane, &node).await;
    *node.0.lock() =
        vec![DiskReport { disk: 1, refused: true, reason: "it is gone".into(), ..DiskReport::default() }];
    let refused = list(&plane).await.swap_remove(0);
    assert_eq!((refused.state.as_str(), refused.reason.as_str()), ("refused", "it is gone"));
    let status = plane.admin.cluster.clone().status(StatusRequest {}).await.expect("answers").into_inner();
    let want = "disk-1 of node node1 cannot be opened: it is gone";
    assert!(status.reasons.iter().any(|reason| reason == want), "{:?}", status.reasons);

    *node.0.lock() =
        vec![DiskReport { disk: 1, failed: true, reason: "I/O error".into(), ..DiskReport::default() }];
    let failed = list(&plane).await.swap_remove(0);
    assert_eq!((failed.state.as_str(), failed.reason.as_str()), ("failed", "I/O error"));

    node.0.lock().clear();
    assert_eq!(
        list(&plane).await[0].state,
        "unreachable",
        "a node that says nothing of a disk does not serve it"
    );
    attachment.stop().await;
    plane.control.stop().await;
}

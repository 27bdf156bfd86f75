//! What nodes and gateways see over loopback: registration, the map's stream, orders; and health.

mod support;

use std::sync::Arc;
use std::time::Duration;

use lunette_control::api::admin::status_response::Health;
use lunette_control::api::admin::*;
use lunette_control::api::cluster::map_update::Update;
use lunette_control::api::cluster::{
    CatchUpReport, ControlMembers, GatewayReport, NodeReport, OwnedVolume, Report, TakeOwnershipRequest,
    VolumePurgedRequest, WatchMapRequest, order, report,
};
use lunette_control::client::{Attachment, MapWatcher};
use lunette_proto::ids::{Epoch, VolumeId};
use support::{FakeGateway, FakeNode, PATIENCE, Plane, gateway, node, reason, session};
use tokio::time::timeout;
use tokio_stream::{StreamExt as _, iter};
use tonic::Code;

async fn volume(plane: &mut Plane, name: &str) {
    let request =
        CreateVolumeRequest { name: name.into(), size_bytes: 4096, export: true, ..Default::default() };
    plane.admin.volumes.create(request).await.expect("creates");
}

/// Waits until the status is as wanted; what it was last if it never is.
async fn status(plane: &mut Plane, want: impl Fn(&StatusResponse) -> bool) -> StatusResponse {
    let wait = async {
        loop {
            let status = plane.admin.cluster.status(StatusRequest {}).await.expect("answers").into_inner();
            if want(&status) {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, wait).await.expect("the status comes to be as wanted")
}

/// Guards registration: ids are kept, another cluster's member is sent away, bad values are named.
#[tokio::test]
async fn registration() {
    let plane = Plane::new().await;
    let control = plane.plane();
    let first = control.register_node(PATIENCE, &node(1)).await.expect("registers");
    assert_eq!((first.node, first.disks.clone()), (1, vec![1]));
    let mut named = node(1);
    named.cluster_id = plane.control.cluster().to_string();
    assert_eq!(control.register_node(PATIENCE, &named).await.expect("registers"), first);
    let made = control.register_gateway(PATIENCE, &gateway()).await.expect("registers");
    assert_eq!((made.gateway, made.portal_group_tag), (1, 1));

    let refused = |mut request: lunette_control::api::cluster::RegisterNodeRequest,
                   change: fn(&mut lunette_control::api::cluster::RegisterNodeRequest)| {
        change(&mut request);
        let control = control.clone();
        async move {
            let status = control.register_node(PATIENCE, &request).await.expect_err("refused");
            (status.code(), reason(&status))
        }
    };
    let other = refused(node(2), |request| request.cluster_id = format!("{:032x}", 1)).await;
    assert_eq!(other, (Code::FailedPrecondition, "OTHER_CLUSTER".into()));
    let garbled = refused(node(2), |request| request.cluster_id = "x".into()).await;
    assert_eq!(garbled, (Code::InvalidArgument, "CLUSTER_ID_INVALID".into()));
    let nowhere = refused(node(2), |request| request.address = "here".into()).await;
    assert_eq!(nowhere, (Code::InvalidArgument, "ADDRESS_INVALID".into()));
    let nameless = refused(node(2), |request| request.disks[0].uuid = "zz".into()).await;
    assert_eq!(nameless, (Code::InvalidArgument, "DISK_UUID_INVALID".into()));
    plane.control.stop().await;
}

/// Guards owners: one call commits the next generation of each volume at one epoch, and only the last
/// owner may say that a deleted volume is purged.
#[tokio::test]
async fn ownership() {
    let mut plane = Plane::with_pool().await;
    volume(&mut plane, "a").await;
    volume(&mut plane, "b").await;
    let control = plane.plane();
    let before = plane.control.map().epoch;
    let request = |volumes: &[(u64, u64)]| {
        let owned =
            |(volume, generation): &(u64, u64)| OwnedVolume { volume: *volume, generation: *generation };
        TakeOwnershipRequest { gateway: 1, volumes: volumes.iter().map(owned).collect() }
    };
    let take = request(&[(1, 0), (2, 0)]);
    let taken = control.take_ownership(PATIENCE, &take).await.expect("takes");
    assert_eq!(taken.epoch, before.0 + 1);
    let map = plane.control.map();
    assert!(map.volumes.values().all(|volume| volume.generation.0 == 1 && volume.owner.is_some()));
    // Told twice; of another generation; of what there is not.
    for late in [take, request(&[(1, 0), (2, 7), (9, 0)])] {
        let taken = control.take_ownership(PATIENCE, &late).await.expect("is told what there is");
        assert_eq!((taken.epoch, plane.control.map()), (map.epoch.0, map.clone()));
    }
    let nobody = TakeOwnershipRequest { gateway: 9, ..request(&[(1, 1)]) };
    let status = control.take_ownership(PATIENCE, &nobody).await.expect_err("no such gateway");
    assert_eq!((status.code(), reason(&status)), (Code::NotFound, "GATEWAY_NOT_FOUND".into()));
    assert_eq!(plane.control.map(), map);

    let delete = DeleteVolumeRequest { name: "a".into(), force: true };
    plane.admin.volumes.delete(delete).await.expect("deletes");
    let purged = |generation| VolumePurgedRequest { volume: 1, generation };
    let status = control.volume_purged(PATIENCE, purged(0)).await.expect_err("not its owner");
    assert_eq!(reason(&status), "NOT_PURGEABLE");
    control.volume_purged(PATIENCE, purged(1)).await.expect("purged");
    assert!(!plane.control.map().volumes.contains_key(&VolumeId(1)));
    plane.control.stop().await;
}

/// Guards the stream of the map against gaps: whole first, then each epoch in order, from any start.
#[tokio::test]
async fn stream_of_the_map() {
    let mut plane = Plane::with_pool().await;
    let first = plane.control.map().epoch.0;
    let request = |have_epoch| WatchMapRequest { cluster_id: String::new(), have_epoch };
    let mut members = plane.plane().members();
    let mut fresh = members.watch_map(request(0)).await.expect("watches").into_inner();
    let mut behind = members.watch_map(request(first - 2)).await.expect("watches").into_inner();
    let update = fresh.message().await.expect("open").expect("a map");
    assert_eq!(update.epoch, first);
    assert!(matches!(update.update, Some(Update::Whole(_))));
    for index in 0..50 {
        volume(&mut plane, &format!("v{index}")).await;
    }
    // Nobody read meanwhile: what did not fit the channel was waiting in the history.
    for (stream, start) in [(&mut fresh, first), (&mut behind, first - 2)] {
        for want in start + 1..=first + 50 {
            let update = stream.message().await.expect("open").expect("an update");
            assert_eq!(update.epoch, want);
            assert!(matches!(update.update, Some(Update::Delta(_))));
        }
    }
    let status = members.watch_map(request(first + 51)).await.expect_err("from the future");
    assert_eq!((status.code(), reason(&status)), (Code::Unavailable, "BEHIND".into()));
    plane.control.stop().await;
    let status = fresh.message().await.expect_err("ends with a reason");
    assert_eq!(status.code(), Code::Unavailable);
}

/// Guards a watcher over a restart of the control plane: it comes back by itself and never goes backwards.
#[tokio::test]
async fn watcher_survives_a_restart() {
    let mut plane = Plane::with_pool().await;
    let address = plane.control.address();
    let watcher = MapWatcher::start(plane.plane(), Some(plane.control.cluster()));
    volume(&mut plane, "a").await;
    let epoch = plane.control.map().epoch;
    let map = timeout(PATIENCE, watcher.at_least(epoch)).await.expect("in time").expect("watched");
    assert_eq!(*map, plane.control.map());

    let folder = plane.folder;
    plane.control.stop().await;
    let mut config = support::config(folder.path());
    config.listen = address;
    let control =
        lunette_control::Control::open(&folder.path().join("control"), config).await.expect("opens");
    control.serve().await.expect("leads");
    assert_eq!(*watcher.map(), control.map());
    let plane_of = lunette_control::client::ControlPlane::new([address.to_string()]).expect("an address");
    plane_of.register_node(PATIENCE, &node(4)).await.expect("registers");
    let next = Epoch(epoch.0 + 1);
    let map = timeout(PATIENCE, watcher.at_least(next)).await.expect("in time").expect("watched");
    assert_eq!(*map, control.map());
    watcher.stop().await;
    control.stop().await;
}

/// Guards `lunette status`: healthy when all report, and each loss is seen, named and over when it is.
#[tokio::test]
async fn health() {
    let mut plane = Plane::with_pool().await;
    volume(&mut plane, "v").await;
    let alone = status(&mut plane, |_| true).await;
    assert_eq!(alone.health(), Health::Unavailable);
    let nodes: Vec<Arc<FakeNode>> = (1..=3).map(FakeNode::new).collect();
    let attach = |index: usize| Attachment::start(plane.plane(), Arc::clone(&nodes[index]) as Arc<_>);
    let mut attached: Vec<Attachment> = (0..3).map(attach).collect();
    let gateway = Attachment::start(plane.plane(), Arc::new(FakeGateway::default()));
    let healthy = status(&mut plane, |status| status.health() == Health::Healthy).await;
    assert_eq!(healthy.reasons, Vec::<String>::new());
    assert_eq!((healthy.capacity_bytes, healthy.used_bytes), (3 * (64 << 30), 3 << 30));
    assert_eq!((healthy.volumes, healthy.targets), (1, 1));
    assert_eq!(healthy.control.as_ref().expect("there").leader, 1);
    assert!(healthy.nodes.iter().all(|node| node.up) && healthy.gateways[0].up);
    assert!(healthy.disks.iter().all(|disk| disk.state == "in-sync"));

    // The stream's end is proof: no three seconds of silence.
    attached.pop().expect("three").stop().await;
    let down = status(&mut plane, |status| !status.nodes[2].up).await;
    assert_eq!(down.health(), Health::Degraded, "two copies of three answer");
    assert!(down.reasons[0].contains("wait until disk-3 (unreachable)"), "{:?}", down.reasons);
    assert_eq!(down.disks[2].state, "unreachable");
    attached.push(Attachment::start(plane.plane(), Arc::clone(&nodes[2]) as Arc<_>));
    status(&mut plane, |status| status.health() == Health::Healthy).await;

    *nodes[0].failed.lock() = true;
    attached[0].report_now();
    let failed = status(&mut plane, |status| status.pools[0].degraded_partitions == 64).await;
    assert_eq!(failed.disks[0].state, "failed");
    assert_eq!(failed.health(), Health::Degraded);
    let lack =
        "pool default: 64 of 64 partitions have fewer than 3 copies in sync, at least 2 each".to_owned();
    assert_eq!(failed.reasons, [lack, "disk-1 of node node1 has failed".to_owned()]);
    *nodes[0].failed.lock() = false;
    // Until the owner says that its copies are equal.
    status(&mut plane, |status| status.disks[0].state == "catching-up").await;
    gateway.stop().await;
    let unserved = status(&mut plane, |status| !status.gateways[0].up).await;
    assert!(unserved.reasons[0].starts_with("no gateway is up"), "{:?}", unserved.reasons);
    plane.control.stop().await;
}

/// Guards the watch of the status: at once, and again when it has changed.
#[tokio::test]
async fn watched_status() {
    let mut plane = Plane::with_pool().await;
    let mut watch = plane.admin.cluster.watch_status(StatusRequest {}).await.expect("watches").into_inner();
    let first = watch.message().await.expect("open").expect("a status");
    volume(&mut plane, "v").await;
    let next = timeout(PATIENCE, watch.message()).await.expect("in time").expect("open").expect("another");
    assert_eq!((first.volumes, next.volumes), (0, 1));
    plane.control.stop().await;
    let status = watch.message().await.expect_err("ends with a reason");
    assert_eq!(status.code(), Code::Unavailable);
}

/// Guards sessions: listed as the gateway has them now, and gone when a kick has been answered.
#[tokio::test]
async fn sessions() {
    let mut plane = Plane::with_pool().await;
    volume(&mut plane, "v").await;
    let gateway = Arc::new(FakeGateway::default());
    let attachment = Attachment::start(plane.plane(), Arc::clone(&gateway) as Arc<_>);
    status(&mut plane, |status| status.gateways[0].up).await;
    // The gateway has not said so by itself: the list asks.
    gateway.sessions.lock().extend([session(1), session(2)]);
    let list = plane.admin.sessions.list(ListSessionsRequest {}).await.expect("lists").into_inner().sessions;
    let ids: Vec<&str> = list.iter().map(|session| session.id.as_str()).collect();
    assert_eq!(ids, ["gw1/1", "gw1/2"]);
    assert_eq!((list[0].kind.as_str(), list[0].since_unix_ms), ("normal", 1001));
    let target =
        plane.admin.targets.get(GetTargetRequest { iqn: list[0].target.clone() }).await.expect("there");
    assert_eq!(target.into_inner().sessions, 2);

    plane.admin.sessions.kick(KickSessionRequest { id: "gw1/1".into() }).await.expect("kicks");
    assert_eq!(gateway.sessions.lock().len(), 1);
    let status = plane.admin.sessions.kick(KickSessionRequest { id: "gw1/1".into() }).await;
    assert_eq!(reason(&status.expect_err("gone")), "SESSION_NOT_FOUND");
    attachment.stop().await;
    plane.control.stop().await;
}

/// Guards a kick that is not carried out: the caller is told, and not that it was done.
#[tokio::test]
async fn stubborn_gateway() {
    let mut plane = Plane::with_pool().await;
    let gateway =
        Arc::new(FakeGateway { sessions: vec![session(1)].into(), stubborn: true, ..FakeGateway::default() });
    let attachment = Attachment::start(plane.plane(), gateway);
    status(&mut plane, |status| status.sessions == 1).await;
    let kick = plane.admin.sessions.kick(KickSessionRequest { id: "gw1/1".into() }).await;
    let kick = kick.expect_err("not carried out");
    assert_eq!((kick.code(), reason(&kick)), (Code::DeadlineExceeded, "KICK_TIMEOUT".into()));
    attachment.stop().await;
    plane.control.stop().await;
}

/// Guards reports: a stream speaks for one registered member.
#[tokio::test]
async fn reports_are_checked() {
    let plane = Plane::with_pool().await;
    let node = |node| Report { member: Some(report::Member::Node(NodeReport { node, disks: vec![] })) };
    let copies = |ready: &[u8]| {
        let ready = ready.to_vec().into();
        let catch_ups = vec![CatchUpReport { pool: 1, disk: 1, ready, ..CatchUpReport::default() }];
        let report = GatewayReport { gateway: 1, catch_ups, ..GatewayReport::default() };
        Report { member: Some(report::Member::Gateway(report)) }
    };
    let cases = [
        (vec![Report { member: None }], "MEMBER_MISSING"),
        (vec![node(9)], "NOT_REGISTERED"),
        (vec![node(1), node(2)], "MEMBER_CHANGED"),
        (vec![copies(&[1])], "PARTITIONS_MALFORMED"),
        (vec![copies(&[0; 8])], "PARTITIONS_MALFORMED"),
        (vec![copies(&[1; 8200])], "PARTITIONS_MALFORMED"),
    ];
    for (reports, want) in cases {
        // The stream stays open behind the reports: it is the server that ends it.
        let reports = iter(reports).chain(tokio_stream::pending());
        let mut orders = plane.plane().members().attach(reports).await.expect("attaches").into_inner();
        // It may be told where the control plane is before its first report has come.
        let refused = async {
            loop {
                match orders.message().await {
                    Ok(order) => assert!(order.is_some(), "{want}: the stream ends with a reason"),
                    Err(status) => return status,
                }
            }
        };
        assert_eq!(reason(&timeout(PATIENCE, refused).await.expect("in time")), want);
    }
    // A member that comes again replaces itself.
    let speak = || iter(vec![node(1)]).chain(tokio_stream::pending());
    let mut old = plane.plane().members().attach(speak()).await.expect("attaches").into_inner();
    let first = timeout(PATIENCE, old.message()).await.expect("in time").expect("taken").expect("an order");
    let members = ControlMembers { addresses: vec![plane.control.address().to_string()] };
    assert_eq!(first.order, Some(order::Order::ControlMembers(members)), "where the control plane is");
    assert!(timeout(Duration::from_millis(100), old.message()).await.is_err(), "nothing more to say");
    plane.control.stop().await;
}

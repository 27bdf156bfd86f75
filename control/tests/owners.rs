//! Who owns the volumes, as the leader sees it: gateways that are made up, everything else real.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use lunette_control::api::admin::*;
use lunette_control::api::cluster::keep_unit_request::Change;
use lunette_control::api::cluster::{
    GatewayReport, HandOverRequest, KeepUnitRequest, RegisterGatewayRequest, Report, report,
};
use lunette_control::client::{Attached, Attachment, ControlPlane, kept_state};
use lunette_proto::ids::{GatewayId, VolumeId};
use lunette_proto::map::UnitState;
use parking_lot::Mutex;
use support::{FakeNode, PATIENCE, Plane, reason};
use tokio::time::{sleep, timeout};
use tonic::{Code, Status};

/// A gateway that hands over what it is told to, unless it is stubborn, and acts by every map, unless it lags.
struct Owner {
    id: u32,
    plane: ControlPlane,
    generations: Mutex<BTreeMap<VolumeId, u64>>,
    told: Mutex<Vec<(VolumeId, GatewayId)>>,
    stubborn: bool,
    epoch: AtomicU64,
    leaving: AtomicBool,
}

impl Attached for Owner {
    fn report(&self) -> Report {
        let (epoch, leaving) = (self.epoch.load(Ordering::SeqCst), self.leaving.load(Ordering::SeqCst));
        let report = GatewayReport { gateway: self.id, epoch, leaving, ..GatewayReport::default() };
        Report { member: Some(report::Member::Gateway(report)) }
    }

    fn kick(&self, _: u32) {}

    fn hand_over(&self, volume: VolumeId, to: GatewayId) {
        self.told.lock().push((volume, to));
        if self.stubborn {
            return;
        }
        let generation = self.generations.lock()[&volume];
        let plane = self.plane.clone();
        tokio::spawn(async move {
            let request = HandOverRequest { volume: volume.0, generation, to: to.0 };
            plane.hand_over(PATIENCE, request).await.expect("it is the owner");
        });
    }
}

/// Three nodes and two gateways that are there, and so many volumes.
struct Bed {
    plane: Plane,
    _nodes: Vec<Attachment>,
    owners: Vec<Arc<Owner>>,
    attached: Vec<Option<Attachment>>,
}

impl Bed {
    async fn new(volumes: usize, stubborn: bool) -> Self {
        let plane = Plane::with_pool().await;
        let portals = vec!["127.0.0.1:3261".into()];
        let request = RegisterGatewayRequest { name: "gw2".into(), portals, ..Default::default() };
        plane.plane().register_gateway(PATIENCE, &request).await.expect("registers");
        let nodes = (1..=3).map(|id| Attachment::start(plane.plane(), FakeNode::new(id))).collect();
        let owner = |id| {
            Arc::new(Owner {
                id,
                plane: plane.plane(),
                generations: Mutex::default(),
                told: Mutex::default(),
                stubborn,
                epoch: AtomicU64::new(0),
                leaving: AtomicBool::new(false),
            })
        };
        let owners = (1..=2).map(owner).collect();
        let mut bed = Self { plane, _nodes: nodes, owners, attached: vec![None, None] };
        bed.attach(0);
        bed.attach(1);
        bed.until(|status| {
            status.gateways.iter().all(|gateway| gateway.up) && status.nodes.iter().all(|node| node.up)
        })
        .await;
        for index in 1..=volumes {
            let volume =
                CreateVolumeRequest { name: format!("v{index}"), size_bytes: 4096, ..Default::default() };
            let made = bed.plane.admin.volumes.create(volume).await.expect("creates").into_inner();
            assert_eq!((made.generation, made.state.as_str()), (1, "active"), "it has an owner at once");
        }
        bed
    }

    fn attach(&mut self, index: usize) {
        let owner = Arc::clone(&self.owners[index]) as Arc<_>;
        self.attached[index] = Some(Attachment::start(self.plane.plane(), owner));
    }

    async fn until(&mut self, holds: impl Fn(&StatusResponse) -> bool) {
        let look = async {
            while !holds(
                &self.plane.admin.cluster.status(StatusRequest {}).await.expect("answers").into_inner(),
            ) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, look).await.expect("in time");
    }

    /// Who owns each volume, and what the gateways know of it.
    fn owned(&self) -> Vec<(u32, u64)> {
        let map = self.plane.control.map();
        for volume in map.volumes.values() {
            for owner in &self.owners {
                owner.generations.lock().insert(volume.id, volume.generation.0);
            }
        }
        let owner = |volume: &lunette_proto::map::Volume| {
            (volume.owner.map_or(0, |owner| owner.gateway.0), volume.generation.0)
        };
        map.volumes.values().map(owner).collect()
    }

    async fn own(&mut self, name: &str, gateway: &str) -> Result<Volume, Status> {
        let request = OwnVolumeRequest { name: name.into(), gateway: gateway.into() };
        Ok(self.plane.admin.volumes.own(request).await?.into_inner())
    }
}

/// Guards a takeover: new volumes are owned evenly and at once; what a gateway owned that is gone is another's soon, and it
/// does not come back when the gateway does; a gateway that leaves is told who takes what it has.
#[tokio::test]
async fn takeover() {
    let mut bed = Bed::new(4, false).await;
    assert_eq!(bed.owned(), [(1, 1), (2, 1), (1, 1), (2, 1)]);
    let leave = bed.plane.plane().leave(PATIENCE, GatewayId(1)).await.expect("answers").volumes;
    assert_eq!(leave.iter().map(|order| (order.volume, order.to)).collect::<Vec<_>>(), [(1, 2), (3, 2)]);
    bed.attached[0].take().expect("there").stop().await;
    let taken = async {
        while bed.owned() != [(2, 2), (2, 1), (2, 2), (2, 1)] {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, taken).await.expect("in time");
    bed.attach(0);
    bed.until(|status| status.gateways[0].up && status.gateways[1].volumes == 4).await;
    assert_eq!(bed.plane.plane().leave(PATIENCE, GatewayId(1)).await.expect("answers").volumes, []);
    let volume = CreateVolumeRequest { name: "v5".into(), size_bytes: 4096, ..Default::default() };
    assert_eq!(bed.plane.admin.volumes.create(volume).await.expect("creates").into_inner().owner, "gw1");

    // With the other one gone too, nobody is given what it had.
    bed.owners[0].leaving.store(true, Ordering::SeqCst);
    bed.attached[0].as_ref().expect("there").report_now();
    let nobody = async {
        while !bed.plane.plane().leave(PATIENCE, GatewayId(2)).await.expect("answers").volumes.is_empty() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, nobody).await.expect("the report comes");
    bed.plane.control.stop().await;
}

/// Guards a planned move: the owner is told and hands over; what cannot be is refused in words, and changes nothing.
#[tokio::test]
async fn planned_moves() {
    let mut bed = Bed::new(2, false).await;
    assert_eq!(bed.owned(), [(1, 1), (2, 1)]);
    let moved = bed.own("v1", "gw2").await.expect("moves");
    assert_eq!((moved.owner.as_str(), moved.generation), ("gw2", 2));
    assert_eq!(*bed.owners[0].told.lock(), [(VolumeId(1), GatewayId(2))]);
    assert_eq!(bed.owned(), [(2, 2), (2, 1)]);
    assert_eq!(bed.own("v1", "gw2").await.expect("is there").generation, 2);

    let refused = |result: Result<Volume, Status>| {
        let status = result.expect_err("refused");
        (status.code(), reason(&status), status.message().to_owned())
    };
    let (code, why, _) = refused(bed.own("v9", "gw2").await);
    assert_eq!((code, why.as_str()), (Code::NotFound, "VOLUME_NOT_FOUND"));
    let (code, why, words) = refused(bed.own("v1", "gw9").await);
    assert_eq!((code, why.as_str()), (Code::NotFound, "GATEWAY_NOT_FOUND"));
    assert!(words.contains("gw9"), "{words}");
    bed.attached[0].take().expect("there").stop().await;
    bed.until(|status| !status.gateways[0].up).await;
    let (code, why, words) = refused(bed.own("v1", "gw1").await);
    assert_eq!((code, why.as_str()), (Code::FailedPrecondition, "GATEWAY_DOWN"));
    assert!(words.contains("gateway gw1 is not up"), "{words}");
    assert_eq!(bed.owned(), [(2, 2), (2, 1)]);

    // Only the owner hands over, and only to one that is up.
    let plane = bed.plane.plane();
    let give = |volume, generation, to| HandOverRequest { volume, generation, to };
    plane.hand_over(PATIENCE, give(1, 1, 2)).await.expect("told twice, because an answer was lost");
    for (request, want) in [
        (give(1, 0, 2), (Code::Aborted, "NOT_OWNER")),
        (give(9, 1, 2), (Code::Aborted, "NOT_OWNER")),
        (give(1, u64::MAX, 2), (Code::Aborted, "NOT_OWNER")),
        (give(1, 2, 1), (Code::FailedPrecondition, "GATEWAY_DOWN")),
        (give(1, 2, 9), (Code::NotFound, "GATEWAY_NOT_FOUND")),
    ] {
        let status = plane.hand_over(PATIENCE, request).await.expect_err("refused");
        assert_eq!((status.code(), reason(&status).as_str()), want, "{request:?}");
    }
    assert_eq!(bed.owned(), [(2, 2), (2, 1)]);
    bed.plane.control.stop().await;
}

/// Guards a planned move against an owner that is told and then goes: it is not waited for.
#[tokio::test]
async fn an_owner_that_goes() {
    let mut bed = Bed::new(1, true).await;
    assert_eq!(bed.owned(), [(1, 1)]);
    let mut volumes = bed.plane.admin.volumes.clone();
    let request = OwnVolumeRequest { name: "v1".into(), gateway: "gw2".into() };
    let own = tokio::spawn(async move { volumes.own(request).await });
    let told = async {
        while bed.owners[0].told.lock().is_empty() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, told).await.expect("it is told");
    assert_eq!(bed.owned(), [(1, 1)]);
    bed.attached[0].take().expect("there").stop().await;
    let moved = own.await.expect("ends").expect("moves").into_inner();
    assert_eq!((moved.owner.as_str(), moved.generation), ("gw2", 2));
    bed.plane.control.stop().await;
}

/// Guards reservations against an owner elsewhere that does not know of them yet: whoever changes one is answered when the
/// owner acts by it, told to ask again if that does not come, and not kept waiting by an owner that is gone.
#[tokio::test]
async fn kept_when_in_force() {
    let mut bed = Bed::new(1, true).await;
    let keep = |bed: &Bed, gateway, revision| {
        let state = kept_state(&UnitState { revision, ..UnitState::default() });
        let request = KeepUnitRequest { volume: 1, change: Some(Change::State(state)), gateway };
        let plane = bed.plane.plane();
        tokio::spawn(async move { plane.keep_unit(PATIENCE, &request).await })
    };
    // The owner itself waits for nobody.
    keep(&bed, 1, 1).await.expect("ends").expect("kept");
    let other = keep(&bed, 2, 2);
    let kept = async {
        while bed.plane.control.map().units[&VolumeId(1)].revision < 2 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, kept).await.expect("committed");
    let epoch = bed.plane.control.map().epoch.0;
    bed.owners[0].epoch.store(epoch - 1, Ordering::SeqCst);
    sleep(Duration::from_millis(100)).await;
    assert!(!other.is_finished(), "the owner has an older map");
    bed.owners[0].epoch.store(epoch, Ordering::SeqCst);
    assert_eq!(other.await.expect("ends").expect("kept").epoch, epoch);

    let plane = bed.plane.plane();
    let state = kept_state(&UnitState { revision: 3, ..UnitState::default() });
    let request = KeepUnitRequest { volume: 1, change: Some(Change::State(state)), gateway: 2 };
    let status = plane.members().keep_unit(request.clone()).await.expect_err("it never acts by it");
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "NOT_IN_FORCE"));
    // The same again, and meanwhile it dies.
    let again = tokio::spawn(async move { plane.keep_unit(PATIENCE, &request).await });
    sleep(Duration::from_millis(50)).await;
    bed.attached[0].take().expect("there").stop().await;
    again.await.expect("ends").expect("kept");
    bed.plane.control.stop().await;
}

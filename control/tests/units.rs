//! What logical units keep, over loopback: compared and swapped, seen by watchers; and the write cache, which only its
//! owner may say is off.

mod support;

use std::sync::Arc;

use lunette_control::api::admin::*;
use lunette_control::api::cluster::keep_unit_request::Change;
use lunette_control::api::cluster::{
    GatewayReport, KeepUnitRequest, KeptState, KeptWriteBack, OwnedVolume, Report, SessionReport,
    TakeOwnershipRequest, report,
};
use lunette_control::client::{Attached, Attachment, ControlPlane, MapWatcher, kept_state};
use lunette_proto::ids::{Epoch, VolumeId};
use lunette_proto::map::{NexusId, Registrant, UnitState};
use parking_lot::Mutex;
use support::{PATIENCE, Plane, field, reason, session};
use tokio::time::timeout;
use tonic::{Code, Status};

const ID: VolumeId = VolumeId(1);

async fn volume(plane: &mut Plane) {
    let request = CreateVolumeRequest {
        name: "v".into(),
        size_bytes: 4096,
        export: true,
        write_back: true,
        ..Default::default()
    };
    plane.admin.volumes.create(request).await.expect("creates");
}

fn unit(revision: u64, key: u64) -> UnitState {
    let nexus = NexusId {
        initiator: "iqn.2026-11.com.example:a".into(),
        isid: [1; 6],
        target: "iqn.2026-11.io.lunette:v".into(),
        tag: 1,
    };
    let mut unit = UnitState { revision, ..UnitState::default() };
    unit.reservations.registrants.push(Registrant { nexus, key, all_target_ports: false });
    unit
}

async fn keep(control: &ControlPlane, change: Change) -> Result<Epoch, Status> {
    let request = KeepUnitRequest { volume: ID.0, change: Some(change), gateway: 0 };
    control.keep_unit(PATIENCE, &request).await.map(|kept| Epoch(kept.epoch))
}

fn state(unit: &UnitState) -> Change {
    Change::State(kept_state(unit))
}

/// Guards reservations against two gateways that both win, and against a restart that forgets them.
#[tokio::test]
async fn compared_and_swapped() {
    let mut plane = Plane::with_pool().await;
    volume(&mut plane).await;
    let control = plane.plane();
    let watcher = MapWatcher::start(control.clone(), None);
    for revision in 1..=5 {
        // Eight at the same time, each of its own: one is kept, and the others are told.
        let tries = (1..=8).map(|key| {
            let control = control.clone();
            async move { (key, keep(&control, state(&unit(revision, key))).await) }
        });
        let tries: Vec<_> = tries.map(tokio::spawn).collect();
        let mut won = Vec::new();
        for one in tries {
            match one.await.expect("ends") {
                (key, Ok(epoch)) => won.push((key, epoch)),
                (_, Err(status)) => {
                    assert_eq!((status.code(), reason(&status)), (Code::Aborted, "UNIT_REVISION".into()));
                }
            }
        }
        let [(key, epoch)] = won[..] else { panic!("{won:?} have won") };
        let map = timeout(PATIENCE, watcher.at_least(epoch)).await.expect("in time").expect("a map");
        assert_eq!(*map.units[&ID], unit(revision, key));
        assert_eq!(keep(&control, state(&unit(revision, key))).await.expect("the same again"), epoch);
    }
    watcher.stop().await;

    let plane = plane.restart().await;
    let kept = Arc::clone(&plane.control.map().units[&ID]);
    assert_eq!(kept.revision, 5);
    let mut plane = plane;
    let delete = DeleteVolumeRequest { name: "v".into(), force: true };
    plane.admin.volumes.delete(delete).await.expect("deletes");
    assert!(plane.control.map().units.is_empty());
    let gone = keep(&plane.plane(), state(&unit(6, 1))).await.expect_err("gone");
    assert_eq!(gone.code(), Code::NotFound);
    plane.control.stop().await;
}

/// Guards against states that are not ours or not sound: refused by name, and nothing is kept.
#[tokio::test]
async fn refused() {
    let mut plane = Plane::with_pool().await;
    volume(&mut plane).await;
    let control = plane.plane();
    let good = kept_state(&unit(1, 1));
    let longer = [&good.state[..], &[0]].concat();
    let wrong = [
        (Change::State(KeptState { format: good.format + 1, ..good.clone() }), "UNIT_FORMAT"),
        (Change::State(KeptState { state: vec![0xFF; 40].into(), ..good.clone() }), "UNIT_STATE_MALFORMED"),
        (Change::State(KeptState { state: longer.into(), ..good.clone() }), "UNIT_STATE_MALFORMED"),
        (state(&unit(1, 0)), "UNIT_STATE_INVALID"),
    ];
    for (change, want) in wrong {
        let status = keep(&control, change).await.expect_err("refused");
        assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, want));
        assert!(field(&status).is_some());
    }
    let nothing = KeepUnitRequest { volume: ID.0, change: None, gateway: 0 };
    let status = control.keep_unit(PATIENCE, &nothing).await.expect_err("refused");
    assert_eq!(reason(&status), "CHANGE_MISSING");
    assert!(plane.control.map().units.is_empty());
    plane.control.stop().await;
}

/// A gateway that flushes when it is told to, and says so.
struct Flusher {
    control: ControlPlane,
    told: Mutex<Vec<VolumeId>>,
    sessions: Mutex<Vec<SessionReport>>,
}

impl Attached for Flusher {
    fn report(&self) -> Report {
        let sessions = self.sessions.lock().clone();
        let report = GatewayReport { gateway: 1, sessions, ..GatewayReport::default() };
        Report { member: Some(report::Member::Gateway(report)) }
    }

    fn kick(&self, _: u32) {}

    fn write_through(&self, volume: VolumeId) {
        self.told.lock().push(volume);
        let control = self.control.clone();
        tokio::spawn(async move {
            keep(&control, Change::WriteBack(KeptWriteBack { on: false, generation: 1 }))
                .await
                .expect("kept");
        });
    }
}

/// Guards acknowledged writes that are in memory alone: the cache is off once its owner has said so, and not turned on
/// behind the back of initiators.
#[tokio::test]
async fn write_cache() {
    let mut plane = Plane::with_pool().await;
    volume(&mut plane).await;
    let control = plane.plane();
    let set = |write_back, force| SetWriteBackRequest { name: "v".into(), write_back, force };
    let volumes = &mut plane.admin.volumes;
    assert!(!volumes.set_write_back(set(false, false)).await.expect("unused").into_inner().write_back);
    assert!(volumes.set_write_back(set(true, false)).await.expect("unused").into_inner().write_back);
    let owned = OwnedVolume { volume: ID.0, generation: 0 };
    let take = TakeOwnershipRequest { gateway: 1, volumes: vec![owned] };
    control.take_ownership(PATIENCE, &take).await.expect("takes");
    let down = volumes.set_write_back(set(false, false)).await.expect_err("its owner is not there");
    assert_eq!((down.code(), reason(&down)), (Code::Unavailable, "GATEWAY_DOWN".into()));
    for generation in [0, 2] {
        let off = Change::WriteBack(KeptWriteBack { on: false, generation });
        let status = keep(&control, off).await.expect_err("not the owner");
        assert_eq!((status.code(), reason(&status)), (Code::Aborted, "NOT_FLUSHED".into()));
    }

    let flusher = Arc::new(Flusher {
        control: control.clone(),
        told: Mutex::default(),
        sessions: Mutex::new(vec![session(1)]),
    });
    let attachment = Attachment::start(control, Arc::clone(&flusher) as Arc<_>);
    let up = async {
        while !plane.admin.cluster.status(StatusRequest {}).await.expect("answers").into_inner().gateways[0]
            .up
        {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, up).await.expect("the gateway is seen");
    let volumes = &mut plane.admin.volumes;
    assert!(!volumes.set_write_back(set(false, false)).await.expect("flushed").into_inner().write_back);
    assert_eq!(*flusher.told.lock(), [ID]);
    volumes.set_write_back(set(false, false)).await.expect("is off");
    assert_eq!(flusher.told.lock().len(), 1);
    let used = volumes.set_write_back(set(true, false)).await.expect_err("initiators use it");
    assert_eq!((used.code(), reason(&used)), (Code::FailedPrecondition, "VOLUME_IN_USE".into()));
    assert!(volumes.set_write_back(set(true, true)).await.expect("forced").into_inner().write_back);
    volumes.set_write_back(set(false, false)).await.expect("flushed");
    flusher.sessions.lock().clear();
    assert!(volumes.set_write_back(set(true, false)).await.expect("unused").into_inner().write_back);
    let nobody = SetWriteBackRequest { name: "nobody".into(), ..set(true, false) };
    let status = volumes.set_write_back(nobody).await.expect_err("no such volume");
    assert_eq!(reason(&status), "VOLUME_NOT_FOUND");
    attachment.stop().await;
    plane.control.stop().await;
}

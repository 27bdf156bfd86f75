//! A control plane on loopback, and members that report to it.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lunette_control::api::admin::StatusRequest;
use lunette_control::api::cluster::report::Member;
use lunette_control::api::cluster::{
    CatchUpReport, DiskReport, GatewayReport, NodeDisk, NodeReport, RegisterGatewayRequest,
    RegisterNodeRequest, Report, SessionReport, UnreachableDisk,
};
use lunette_control::client::{AdminClients, Attached, Attachment, ControlPlane, connect};
use lunette_control::{Control, ControlConfig, LogLimits};
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::time::timeout;
use tonic::Status;
use tonic_types::StatusExt as _;

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A member that was just founded, in a folder of its own.
pub(crate) struct Plane {
    pub(crate) folder: TempDir,
    pub(crate) control: Control,
    pub(crate) admin: AdminClients,
}

pub(crate) fn config(folder: &Path) -> ControlConfig {
    ControlConfig {
        cluster: None,
        member: Some(1),
        listen: "127.0.0.1:0".parse().expect("an address"),
        advertise: None,
        key_file: folder.join("cluster.key"),
        join: false,
        rebuild_after: lunette_control::moves::REBUILD_AFTER,
        log: LogLimits::default(),
    }
}

pub(crate) async fn open(folder: &Path) -> Control {
    let control = Control::open(&folder.join("control"), config(folder)).await.expect("opens");
    control.serve().await.expect("leads");
    control
}

impl Plane {
    pub(crate) async fn new() -> Self {
        Self::in_folder(tempfile::tempdir().expect("a folder")).await
    }

    pub(crate) async fn in_folder(folder: TempDir) -> Self {
        let control = open(folder.path()).await;
        let admin = connect(&control.address().to_string()).expect("an address");
        Self { folder, control, admin }
    }

    /// Stops it and starts it again in the same folder.
    pub(crate) async fn restart(self) -> Self {
        self.control.stop().await;
        Self::in_folder(self.folder).await
    }

    pub(crate) fn plane(&self) -> ControlPlane {
        ControlPlane::new([self.control.address().to_string()]).expect("an address")
    }

    /// Three nodes with a disk each, a gateway, and the pool `default` over them.
    pub(crate) async fn with_pool() -> Self {
        let mut this = Self::new().await;
        for index in 1..=3 {
            this.plane().register_node(PATIENCE, &node(index)).await.expect("registers");
        }
        this.plane().register_gateway(PATIENCE, &gateway()).await.expect("registers");
        let request = lunette_control::api::admin::CreatePoolRequest {
            name: "default".into(),
            replicas: 3,
            partitions: 64,
            ..Default::default()
        };
        this.admin.pools.create(request).await.expect("creates");
        this
    }
}

pub(crate) fn node(index: u32) -> RegisterNodeRequest {
    let disk = NodeDisk {
        uuid: format!("{index:032x}"),
        label: format!("/node{index}"),
        capacity_bytes: 64 << 30,
        weight: 0,
    };
    RegisterNodeRequest {
        name: format!("node{index}"),
        address: format!("127.0.0.1:{}", 7500 + index),
        disks: vec![disk],
        ..RegisterNodeRequest::default()
    }
}

pub(crate) fn gateway() -> RegisterGatewayRequest {
    RegisterGatewayRequest {
        name: "gw1".into(),
        portals: vec!["127.0.0.1:3260".into()],
        ..RegisterGatewayRequest::default()
    }
}

/// A node whose disk can fail.
pub(crate) struct FakeNode {
    pub(crate) id: u32,
    pub(crate) failed: Mutex<bool>,
}

impl FakeNode {
    pub(crate) fn new(id: u32) -> Arc<Self> {
        Arc::new(Self { id, failed: Mutex::new(false) })
    }
}

impl Attached for FakeNode {
    fn report(&self) -> Report {
        let disk = DiskReport {
            disk: self.id,
            capacity_bytes: 64 << 30,
            used_bytes: 1 << 30,
            failed: *self.failed.lock(),
            ..DiskReport::default()
        };
        Report { member: Some(Member::Node(NodeReport { node: self.id, disks: vec![disk] })) }
    }

    fn kick(&self, _: u32) {}
}

/// A gateway with sessions that can be kicked, unless it is stubborn.
#[derive(Default)]
pub(crate) struct FakeGateway {
    pub(crate) sessions: Mutex<Vec<SessionReport>>,
    pub(crate) stubborn: bool,
    pub(crate) unreachable: Mutex<Vec<UnreachableDisk>>,
    pub(crate) catch_ups: Mutex<Vec<CatchUpReport>>,
}

impl Attached for FakeGateway {
    fn report(&self) -> Report {
        let sessions = self.sessions.lock().clone();
        let (unreachable, catch_ups) = (self.unreachable.lock().clone(), self.catch_ups.lock().clone());
        let report =
            GatewayReport { gateway: 1, sessions, unreachable, catch_ups, ..GatewayReport::default() };
        Report { member: Some(Member::Gateway(report)) }
    }

    fn kick(&self, tsih: u32) {
        if !self.stubborn {
            self.sessions.lock().retain(|session| session.tsih != tsih);
        }
    }
}

pub(crate) fn session(tsih: u32) -> SessionReport {
    SessionReport {
        tsih,
        target: "iqn.2026-11.io.lunette:v".into(),
        initiator: "iqn.1994-05.com.redhat:a".into(),
        since_unix_ms: 1_000 + u64::from(tsih),
        ..SessionReport::default()
    }
}

/// The reason in a status's details; each has one.
pub(crate) fn reason(status: &Status) -> String {
    let details = status.get_error_details();
    let info = details.error_info().unwrap_or_else(|| panic!("no reason in {status:?}"));
    assert_eq!(info.domain, "lunette.io");
    info.reason.clone()
}

/// The field that a status says is wrong.
pub(crate) fn field(status: &Status) -> Option<String> {
    let details = status.get_error_details();
    details.bad_request()?.field_violations.first().map(|violation| violation.field.clone())
}

/// Attaches a node, and waits until it is seen to be up.
pub(crate) async fn attached<N: Attached + 'static>(plane: &Plane, node: &Arc<N>) -> Attachment {
    let attachment = Attachment::start(plane.plane(), Arc::clone(node) as Arc<_>);
    let up = async {
        loop {
            let status =
                plane.admin.cluster.clone().status(StatusRequest {}).await.expect("answers").into_inner();
            if status.nodes[0].up {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, up).await.expect("the node is seen");
    attachment
}

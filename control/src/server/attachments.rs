//! The streams of nodes and gateways: reports come up them, orders go down.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lunette_proto::ids::{DiskId, GatewayId, NodeId, VolumeId};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout_at;
use tonic::Status;

use crate::api::cluster::order::Order as Kind;
use crate::api::cluster::report::Member as ReportOf;
use crate::api::cluster::{
    HandOverOrder, KickSession, LoadOrder, Order, Report, ReportNow, ScrubDisk, WriteThrough,
};
use crate::health::{Member, Registry, Replaced, StreamId};

/// Orders that may wait on one stream; a member that takes none gets no more.
pub(super) const ORDERS_MAX: usize = 64;

/// How long a list waits for reports that were asked for.
const FRESH_TIMEOUT: Duration = Duration::from_millis(500);

pub(super) type Orders = mpsc::Sender<Result<Order, Status>>;

/// See the module.
#[derive(Default)]
pub(crate) struct Attachments {
    inner: Mutex<Inner>,
    /// Counts reports and ends of streams.
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct Inner {
    registry: Registry,
    orders: BTreeMap<StreamId, Orders>,
    last_order: u64,
}

impl Attachments {
    /// A new stream, down which orders can go.
    pub(super) fn open(&self, orders: Orders) -> StreamId {
        let mut inner = self.inner.lock();
        let stream = inner.registry.open();
        inner.orders.insert(stream, orders);
        stream
    }

    /// Takes a report.
    pub(super) fn report(&self, stream: StreamId, member: Member, report: Report) -> Result<(), Replaced> {
        let now = Instant::now();
        let mut inner = self.inner.lock();
        match (member, report.member) {
            (Member::Node(id), Some(ReportOf::Node(report))) => {
                inner.registry.node_report(stream, id, report, now)?;
            }
            (Member::Gateway(id), Some(ReportOf::Gateway(report))) => {
                inner.registry.gateway_report(stream, id, report, now)?;
            }
            // The caller has made the member from the report.
            _ => return Ok(()),
        }
        drop(inner);
        self.changed.send_modify(|count| *count += 1);
        Ok(())
    }

    /// A stream has ended.
    pub(super) fn close(&self, stream: StreamId) {
        let mut inner = self.inner.lock();
        inner.registry.close(stream, Instant::now());
        inner.orders.remove(&stream);
        drop(inner);
        self.changed.send_modify(|count| *count += 1);
    }

    /// A stream has ended because this member leads no more, or stops: that says nothing of who spoke on it.
    pub(super) fn forget(&self, stream: StreamId) {
        let mut inner = self.inner.lock();
        inner.registry.forget(stream);
        inner.orders.remove(&stream);
        drop(inner);
        self.changed.send_modify(|count| *count += 1);
    }

    /// Looks at what members said.
    pub(super) fn read<T>(&self, look: impl FnOnce(&Registry, Instant) -> T) -> T {
        look(&self.inner.lock().registry, Instant::now())
    }

    /// Each report and each end of a stream.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Asks members for a report and waits for those that can answer, for as long as
    /// [`FRESH_TIMEOUT`]; then what they said before has to do.
    pub(super) async fn refresh(&self, members: impl Iterator<Item = Member>) {
        let mut changes = self.changed.subscribe();
        let before: Vec<(Member, u64)> = members
            .map(|member| (member, self.read(|registry, _| registry.reports(member))))
            .filter(|(member, _)| self.ask_report(*member))
            .collect();
        let deadline = tokio::time::Instant::now() + FRESH_TIMEOUT;
        loop {
            let fresh = self.read(|registry, now| {
                let answered = |(member, count): &(Member, u64)| {
                    registry.reports(*member) > *count || !registry.is_up(*member, now)
                };
                before.iter().all(answered)
            });
            if fresh || !matches!(timeout_at(deadline, changes.changed()).await, Ok(Ok(()))) {
                return;
            }
        }
    }

    /// Asks a member for a report; `false` if it is not there or takes no orders.
    pub(super) fn ask_report(&self, member: Member) -> bool {
        self.order(member, Kind::ReportNow(ReportNow {}))
    }

    /// Tells a gateway to close a session; `false` as for `ask_report`.
    pub(super) fn kick(&self, gateway: GatewayId, tsih: u32) -> bool {
        self.order(Member::Gateway(gateway), Kind::KickSession(KickSession { tsih }))
    }

    /// Tells a node to scrub a disk; `false` as for `ask_report`.
    pub(super) fn scrub(&self, node: NodeId, disk: DiskId, rate_bytes: u64) -> bool {
        self.order(Member::Node(node), Kind::ScrubDisk(ScrubDisk { disk: disk.0, rate_bytes }))
    }

    /// Tells a gateway to flush the write cache of a volume and to turn it off; `false` as for `ask_report`.
    pub(super) fn write_through(&self, gateway: GatewayId, volume: VolumeId) -> bool {
        self.order(Member::Gateway(gateway), Kind::WriteThrough(WriteThrough { volume: volume.0 }))
    }

    /// Tells a gateway to hand a volume over to another; `false` as for `ask_report`.
    pub(super) fn hand_over(&self, gateway: GatewayId, volume: VolumeId, to: GatewayId) -> bool {
        self.order(Member::Gateway(gateway), Kind::HandOver(HandOverOrder { volume: volume.0, to: to.0 }))
    }

    /// Tells a gateway to put a load on a volume, or to go on with it, or to end it; `false` as for `ask_report`.
    pub(super) fn load(&self, gateway: GatewayId, order: LoadOrder) -> bool {
        self.order(Member::Gateway(gateway), Kind::Load(order))
    }

    fn order(&self, member: Member, kind: Kind) -> bool {
        let mut inner = self.inner.lock();
        let Some(stream) = inner.registry.stream(member, Instant::now()) else { return false };
        inner.last_order += 1;
        let order = Order { id: inner.last_order, order: Some(kind) };
        inner.orders.get(&stream).is_some_and(|orders| orders.try_send(Ok(order)).is_ok())
    }
}

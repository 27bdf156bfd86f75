//! The streams of nodes and gateways: reports come up them, orders go down.

use std::collections::BTreeMap;
use std::time::Instant;

use lunette_proto::ids::GatewayId;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tonic::Status;

use crate::api::cluster::order::Order as Kind;
use crate::api::cluster::report::Member as ReportOf;
use crate::api::cluster::{KickSession, Order, Report, ReportNow};
use crate::health::{Member, Registry, Replaced, StreamId};

/// Orders that may wait on one stream; a member that takes none gets no more.
pub(super) const ORDERS_MAX: usize = 64;

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
        inner.registry.close(stream);
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

    /// Asks a gateway for a report; `false` if it is not there or takes no orders.
    pub(super) fn ask_report(&self, gateway: GatewayId) -> bool {
        self.order(gateway, Kind::ReportNow(ReportNow {}))
    }

    /// Tells a gateway to close a session; `false` as for `ask_report`.
    pub(super) fn kick(&self, gateway: GatewayId, tsih: u32) -> bool {
        self.order(gateway, Kind::KickSession(KickSession { tsih }))
    }

    fn order(&self, gateway: GatewayId, kind: Kind) -> bool {
        let mut inner = self.inner.lock();
        let Some(stream) = inner.registry.gateway_stream(gateway, Instant::now()) else { return false };
        inner.last_order += 1;
        let order = Order { id: inner.last_order, order: Some(kind) };
        inner.orders.get(&stream).is_some_and(|orders| orders.try_send(Ok(order)).is_ok())
    }
}

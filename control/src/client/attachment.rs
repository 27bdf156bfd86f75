//! A member's stream to the control plane: a report several times a second and whenever one is asked for,
//! orders carried out, reconnected for as long as the member lives.

use std::sync::Arc;

use lunette_proto::ids::{DiskId, GatewayId, VolumeId};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::{Backoff, ControlPlane};
use crate::api::cluster::order::Order as Kind;
use crate::api::cluster::report::Member;
use crate::api::cluster::{LoadOrder, Order, Report};
use crate::health::{GATEWAY_REPORT_INTERVAL, NODE_REPORT_INTERVAL};

/// Reports that may wait to be sent; when the control plane takes none, the next one is made when it does.
const REPORTS_MAX: usize = 4;

/// What a node or a gateway says, and what it can be told.
pub trait Attached: Send + Sync + 'static {
    /// How it is now. Called from a task: must not block.
    fn report(&self) -> Report;

    /// Who is notified when there is something that the control plane should know at once. Asked once.
    fn news(&self) -> Arc<Notify> {
        Arc::default()
    }

    /// Closes a session's connections. Must not block; the reports say when the session is gone.
    fn kick(&self, tsih: u32);

    /// Begins to scrub a disk, at so many bytes per second or as fast as possible. Must not block; the reports say
    /// when it has begun. Only nodes are told.
    fn scrub(&self, disk: DiskId, rate_bytes: Option<u64>) {
        tracing::warn!(%disk, ?rate_bytes, "told to scrub a disk, of which this member has none");
    }

    /// Flushes the write cache of a volume and has it kept off. Must not block; the map says when it is done. Only
    /// gateways are told.
    fn write_through(&self, volume: VolumeId) {
        tracing::warn!(%volume, "told to flush a volume, of which this member has none");
    }

    /// Finishes what is under way on a volume, and hands it over to another gateway. Must not block; the map says when it is
    /// done. Only gateways are told.
    fn hand_over(&self, volume: VolumeId, to: GatewayId) {
        tracing::warn!(%volume, %to, "told to hand a volume over, of which this member has none");
    }

    /// Puts a load on a volume, or goes on with it, or ends it. Must not block; the reports say how it goes. Only gateways are
    /// told.
    fn load(&self, order: LoadOrder) {
        tracing::warn!(
            volume = order.volume,
            "told to put a load on a volume, of which this member has none"
        );
    }
}

/// See the module. Dropping it ends the stream.
#[derive(Debug)]
pub struct Attachment {
    stop: CancellationToken,
    now: Arc<Notify>,
    task: Option<JoinHandle<()>>,
}

impl Attachment {
    /// Attaches a member that has registered.
    #[must_use]
    pub fn start(control: ControlPlane, member: Arc<dyn Attached>) -> Self {
        let (stop, now) = (CancellationToken::new(), member.news());
        let task = tokio::spawn(attach_until(stop.clone(), control, member, Arc::clone(&now)));
        Self { stop, now, task: Some(task) }
    }

    /// Reports at once, because something has happened.
    pub fn report_now(&self) {
        self.now.notify_one();
    }

    /// Ends the stream: the control plane knows at once that the member is gone.
    pub async fn stop(mut self) {
        self.stop.cancel();
        if let Some(task) = self.task.take() {
            // It ends by the token; that it panicked was logged where it happened.
            let _ = task.await;
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn attach_until(
    stop: CancellationToken,
    control: ControlPlane,
    member: Arc<dyn Attached>,
    now: Arc<Notify>,
) {
    let mut backoff = Backoff::default();
    loop {
        let ended = tokio::select! {
            ended = attach_once(&control, &member, &now, &mut backoff) => ended,
            () = stop.cancelled() => return,
        };
        tracing::debug!(status = %ended, "the attachment to the control plane has ended; again");
        control.follow(&ended);
        tokio::select! {
            () = sleep(backoff.next()) => {}
            () = stop.cancelled() => return,
        }
    }
}

async fn attach_once(
    control: &ControlPlane,
    member: &Arc<dyn Attached>,
    now: &Notify,
    backoff: &mut Backoff,
) -> Status {
    let (reports, stream) = mpsc::channel(REPORTS_MAX);
    // The first report goes with the request.
    let first = member.report();
    let every = match first.member {
        Some(Member::Node(_)) => NODE_REPORT_INTERVAL,
        Some(Member::Gateway(_)) | None => GATEWAY_REPORT_INTERVAL,
    };
    let _ = reports.try_send(first);
    // Reports that are asked for while there is no room become one, made when there is.
    let mut due = false;
    let mut orders: Streaming<Order> = match control.members().attach(ReceiverStream::new(stream)).await {
        Ok(orders) => orders.into_inner(),
        Err(status) => return status,
    };
    *backoff = Backoff::default();
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            room = reports.reserve(), if due => match room {
                Ok(room) => {
                    room.send(member.report());
                    due = false;
                    continue;
                }
                Err(_) => return Status::unavailable("the control plane takes no more reports"),
            },
            _ = ticks.tick() => {}
            () = now.notified() => {}
            order = orders.message() => match order {
                Ok(Some(Order { order: Some(Kind::KickSession(kick)), .. })) => member.kick(kick.tsih),
                Ok(Some(Order { order: Some(Kind::ScrubDisk(scrub)), .. })) => {
                    let rate_bytes = (scrub.rate_bytes > 0).then_some(scrub.rate_bytes);
                    member.scrub(DiskId(scrub.disk), rate_bytes);
                }
                Ok(Some(Order { order: Some(Kind::WriteThrough(order)), .. })) => {
                    member.write_through(VolumeId(order.volume));
                }
                Ok(Some(Order { order: Some(Kind::HandOver(order)), .. })) => {
                    member.hand_over(VolumeId(order.volume), GatewayId(order.to));
                }
                Ok(Some(Order { order: Some(Kind::Load(order)), .. })) => member.load(order),
                Ok(Some(Order { order: Some(Kind::ControlMembers(members)), .. })) => {
                    control.learn(&members.addresses);
                    continue;
                }
                // What is asked for is a report, and one follows any order, also one of a newer version.
                Ok(Some(_)) => {}
                Ok(None) => return Status::unavailable("the stream has ended"),
                Err(status) => return status,
            },
        }
        due = true;
    }
}

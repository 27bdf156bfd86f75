//! The last report of every node and gateway, and the stream that it came on.
//!
//! ```text
//! absent --first report--> up --stream ends, or 3 s of silence--> down --report--> up
//! ```
//!
//! A member speaks on one stream at a time: the newest counts, and an older one is told so. A stream
//! that ends is proof of a death at once, for a killed process closes its sockets.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lunette_proto::ids::{DiskId, GatewayId, NodeId};
use thiserror::Error;

use super::{SILENCE_MAX, UNREACHABLE_AFTER};
use crate::api::cluster::{DiskReport, GatewayReport, NodeReport, SessionReport};

/// A stream of reports; later ones have higher numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StreamId(u64);

/// Who speaks on a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Member {
    /// A storage node.
    Node(NodeId),
    /// A gateway.
    Gateway(GatewayId),
}

/// The member speaks on a newer stream by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("this member reports on a newer stream")]
pub struct Replaced;

/// See the module.
#[derive(Debug, Default)]
pub struct Registry {
    nodes: BTreeMap<NodeId, Presence<NodeReport>>,
    gateways: BTreeMap<GatewayId, Presence<GatewayReport>>,
    streams: u64,
}

#[derive(Debug)]
struct Presence<R> {
    stream: StreamId,
    open: bool,
    heard: Instant,
    /// Reports so far, over all streams.
    count: u64,
    report: R,
}

impl<R> Presence<R> {
    fn is_up(&self, now: Instant) -> bool {
        self.open && now.saturating_duration_since(self.heard) <= SILENCE_MAX
    }
}

impl Registry {
    /// A number for a new stream.
    pub fn open(&mut self) -> StreamId {
        self.streams += 1;
        StreamId(self.streams)
    }

    /// A node's report.
    pub fn node_report(
        &mut self,
        stream: StreamId,
        id: NodeId,
        report: NodeReport,
        now: Instant,
    ) -> Result<(), Replaced> {
        put(&mut self.nodes, id, stream, report, now)
    }

    /// A gateway's report.
    pub fn gateway_report(
        &mut self,
        stream: StreamId,
        id: GatewayId,
        report: GatewayReport,
        now: Instant,
    ) -> Result<(), Replaced> {
        put(&mut self.gateways, id, stream, report, now)
    }

    /// A stream has ended.
    pub fn close(&mut self, stream: StreamId) {
        for presence in self.nodes.values_mut().filter(|presence| presence.stream == stream) {
            presence.open = false;
        }
        for presence in self.gateways.values_mut().filter(|presence| presence.stream == stream) {
            presence.open = false;
        }
    }

    /// Whether a member is there.
    #[must_use]
    pub fn is_up(&self, member: Member, now: Instant) -> bool {
        self.stream(member, now).is_some()
    }

    /// The stream of a member that is there.
    #[must_use]
    pub fn stream(&self, member: Member, now: Instant) -> Option<StreamId> {
        fn of<R>(presence: Option<&Presence<R>>, now: Instant) -> Option<StreamId> {
            presence.filter(|presence| presence.is_up(now)).map(|presence| presence.stream)
        }
        match member {
            Member::Node(id) => of(self.nodes.get(&id), now),
            Member::Gateway(id) => of(self.gateways.get(&id), now),
        }
    }

    /// Reports of a member so far: one that was asked for has come when this has risen.
    #[must_use]
    pub fn reports(&self, member: Member) -> u64 {
        match member {
            Member::Node(id) => self.nodes.get(&id).map_or(0, |presence| presence.count),
            Member::Gateway(id) => self.gateways.get(&id).map_or(0, |presence| presence.count),
        }
    }

    /// What a node said last of a disk.
    #[must_use]
    pub fn disk(&self, node: NodeId, disk: DiskId) -> Option<&DiskReport> {
        self.nodes.get(&node)?.report.disks.iter().find(|report| report.disk == disk.0)
    }

    /// Whether a gateway that is there gets no answers from a disk.
    #[must_use]
    pub fn is_suspected(&self, disk: DiskId, now: Instant) -> bool {
        let up = self.gateways.values().filter(|presence| presence.is_up(now));
        up.flat_map(|presence| &presence.report.unreachable)
            .any(|it| it.disk == disk.0 && Duration::from_millis(it.lasting_ms) >= UNREACHABLE_AFTER)
    }

    /// Damaged blocks without a good copy, by the gateways that are there.
    #[must_use]
    pub fn hopeless_blocks(&self, now: Instant) -> u64 {
        let up = self.gateways.values().filter(|presence| presence.is_up(now));
        up.fold(0, |sum, presence| presence.report.hopeless_blocks.saturating_add(sum))
    }

    /// Sessions of the gateways that are there, as they said last.
    pub fn sessions(&self, now: Instant) -> impl Iterator<Item = (GatewayId, &SessionReport)> {
        let up = self.gateways.iter().filter(move |(_, presence)| presence.is_up(now));
        up.flat_map(|(id, presence)| presence.report.sessions.iter().map(|session| (*id, session)))
    }
}

fn put<K: Ord, R>(
    members: &mut BTreeMap<K, Presence<R>>,
    id: K,
    stream: StreamId,
    report: R,
    now: Instant,
) -> Result<(), Replaced> {
    let count = match members.get(&id) {
        Some(presence) if presence.stream > stream => return Err(Replaced),
        Some(presence) => presence.count + 1,
        None => 1,
    };
    members.insert(id, Presence { stream, open: true, heard: now, count, report });
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::api::cluster::UnreachableDisk;

    const NODE: NodeId = NodeId(1);
    const GATEWAY: GatewayId = GatewayId(1);

    fn node_report() -> NodeReport {
        NodeReport { node: 1, disks: vec![DiskReport { disk: 4, ..DiskReport::default() }] }
    }

    /// Guards liveness: up while it reports, down with its stream at once, or after three seconds.
    #[test]
    fn up_and_down() {
        let mut registry = Registry::default();
        let start = Instant::now();
        assert!(!registry.is_up(Member::Node(NODE), start));
        let stream = registry.open();
        registry.node_report(stream, NODE, node_report(), start).expect("the only stream");
        assert!(registry.is_up(Member::Node(NODE), start + SILENCE_MAX));
        assert!(!registry.is_up(Member::Node(NODE), start + SILENCE_MAX + Duration::from_millis(1)));
        assert!(registry.disk(NODE, DiskId(4)).is_some());
        registry.close(stream);
        assert!(!registry.is_up(Member::Node(NODE), start));
        let again = registry.open();
        registry.node_report(again, NODE, node_report(), start).expect("newer");
        assert!(registry.is_up(Member::Node(NODE), start));
    }

    /// Guards a restarted member: its old stream, still lingering, says and ends nothing any more.
    #[test]
    fn newest_stream_counts() {
        let mut registry = Registry::default();
        let now = Instant::now();
        let (old, new) = (registry.open(), registry.open());
        let session = SessionReport { tsih: 7, ..SessionReport::default() };
        let unreachable = UnreachableDisk { disk: 4, lasting_ms: 1000, ..UnreachableDisk::default() };
        let report = |sessions: Vec<SessionReport>| GatewayReport {
            gateway: 1,
            sessions,
            unreachable: vec![unreachable],
            ..GatewayReport::default()
        };
        registry.gateway_report(old, GATEWAY, report(vec![session]), now).expect("first");
        assert_eq!(registry.sessions(now).count(), 1);
        registry.gateway_report(new, GATEWAY, report(vec![]), now).expect("newer");
        assert_eq!(registry.gateway_report(old, GATEWAY, report(vec![]), now), Err(Replaced));
        registry.close(old);
        assert_eq!(registry.stream(Member::Gateway(GATEWAY), now), Some(new));
        assert_eq!(registry.sessions(now).count(), 0);
        assert_eq!(registry.reports(Member::Gateway(GATEWAY)), 2);
        assert!(registry.is_suspected(DiskId(4), now));
        registry.close(new);
        assert!(!registry.is_suspected(DiskId(4), now), "the word of one who is gone counts nothing");
    }
}

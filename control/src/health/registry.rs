//! The last report of every node and gateway, and the stream that it came on.
//!
//! ```text
//! absent --first report--> up --stream ends, or 3 s of silence--> down --report--> up
//! ```
//!
//! Who has never reported to this leader is absent, which is no proof of anything: he may be about to.
//!
//! A member speaks on one stream at a time: the newest counts, and an older one is told so. A stream
//! that ends is proof of a death at once, for a killed process closes its sockets.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lunette_proto::ids::{DiskId, Epoch, GatewayId, Generation, NodeId, PoolId, VolumeId};
use lunette_proto::map::{ClusterMap, Partitions};
use thiserror::Error;

use super::pace::Pace;
use super::{SILENCE_MAX, UNREACHABLE_AFTER};
use crate::api::cluster::unreachable_disk::Trouble;
use crate::api::cluster::{CatchUpReport, DiskReport, GatewayReport, LoadReport, NodeReport, SessionReport};

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

/// How a member is heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hearing {
    /// It has not reported to this leader yet.
    Absent,
    /// Its stream has ended.
    Ended {
        /// When it had reported last.
        heard: Instant,
        /// When it ended.
        at: Instant,
    },
    /// Its stream is open.
    Open {
        /// When it has reported last.
        heard: Instant,
    },
}

/// What a gateway that is there says of a disk that does not answer it.
#[derive(Clone, Copy, Debug)]
pub struct Complaint {
    /// Who.
    pub gateway: GatewayId,
    /// Of which disk.
    pub disk: DiskId,
    /// Since when.
    pub since: Instant,
    /// Why.
    pub trouble: Trouble,
}

/// What the owners at one gateway said last of a disk's copies of a pool, whether the gateway is still there or not.
#[derive(Clone, Debug, Default)]
pub struct Said {
    /// Under which map, at least.
    pub epoch: Epoch,
    /// Which owners.
    pub volumes: BTreeMap<VolumeId, Generation>,
    /// What is equal in all these volumes.
    pub ready: Partitions,
}

/// How far a disk is brought up to date, by all gateways that are there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CatchingUp {
    /// Extents that are known to need a look, and have not had it.
    pub waiting_extents: u64,
    /// Extents that were looked at.
    pub checked_extents: u64,
    /// Bytes that were copied.
    pub copied_bytes: u64,
    /// Time that the waiting ones will take at the rate seen; `None`: there is none yet.
    pub left: Option<Duration>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Registry {
    nodes: BTreeMap<NodeId, Presence<NodeReport>>,
    gateways: BTreeMap<GatewayId, Presence<GatewayReport>>,
    streams: u64,
    /// How fast the disks catch up that do.
    paces: BTreeMap<DiskId, Pace>,
}

#[derive(Debug)]
struct Presence<R> {
    stream: StreamId,
    /// When the stream has ended.
    ended: Option<Instant>,
    heard: Instant,
    /// Reports so far, over all streams.
    count: u64,
    report: R,
}

impl<R> Presence<R> {
    fn is_up(&self, now: Instant) -> bool {
        self.ended.is_none() && now.saturating_duration_since(self.heard) <= SILENCE_MAX
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
        put(&mut self.gateways, id, stream, report, now)?;
        self.measure(now);
        Ok(())
    }

    /// Nothing is known of who speaks on a stream any more: it ended for a reason of this member's.
    pub fn forget(&mut self, stream: StreamId) {
        self.nodes.retain(|_, presence| presence.stream != stream);
        self.gateways.retain(|_, presence| presence.stream != stream);
    }

    /// A stream has ended.
    pub fn close(&mut self, stream: StreamId, now: Instant) {
        for presence in self.nodes.values_mut().filter(|presence| presence.stream == stream) {
            presence.ended.get_or_insert(now);
        }
        for presence in self.gateways.values_mut().filter(|presence| presence.stream == stream) {
            presence.ended.get_or_insert(now);
        }
    }

    /// How a member is heard.
    #[must_use]
    pub fn hearing(&self, member: Member) -> Hearing {
        fn of<R>(presence: Option<&Presence<R>>) -> Hearing {
            match presence {
                None => Hearing::Absent,
                Some(Presence { heard, ended: Some(at), .. }) => Hearing::Ended { heard: *heard, at: *at },
                Some(Presence { heard, ended: None, .. }) => Hearing::Open { heard: *heard },
            }
        }
        match member {
            Member::Node(id) => of(self.nodes.get(&id)),
            Member::Gateway(id) => of(self.gateways.get(&id)),
        }
    }

    /// Whether most nodes are heard: the silence of one is then its own and not this member's.
    #[must_use]
    pub fn hears_most(&self, map: &ClusterMap, now: Instant) -> bool {
        let heard = map.nodes.keys().filter(|node| self.is_up(Member::Node(**node), now)).count();
        heard * 2 >= map.nodes.len()
    }

    /// Gateways that are there and stay.
    pub fn gateways_staying(&self, now: Instant) -> impl Iterator<Item = GatewayId> {
        let staying =
            move |presence: &Presence<GatewayReport>| presence.is_up(now) && !presence.report.leaving;
        self.gateways.iter().filter(move |(_, presence)| staying(presence)).map(|(id, _)| *id)
    }

    /// The map under which a gateway has reported last.
    #[must_use]
    pub fn epoch_of(&self, gateway: GatewayId) -> Epoch {
        Epoch(self.gateways.get(&gateway).map_or(0, |presence| presence.report.epoch))
    }

    /// Gateways that are there.
    pub fn gateways_up(&self, now: Instant) -> impl Iterator<Item = GatewayId> {
        self.gateways.iter().filter(move |(_, presence)| presence.is_up(now)).map(|(id, _)| *id)
    }

    /// What gateways that are there say of disks that do not answer.
    pub fn complaints(&self, now: Instant) -> impl Iterator<Item = Complaint> {
        let up = self.gateways.iter().filter(move |(_, presence)| presence.is_up(now));
        up.flat_map(|(gateway, presence)| {
            presence.report.unreachable.iter().map(move |it| Complaint {
                gateway: *gateway,
                disk: DiskId(it.disk),
                // A clock that began later than that knows no earlier moment.
                since: presence
                    .heard
                    .checked_sub(Duration::from_millis(it.lasting_ms))
                    .unwrap_or(presence.heard),
                trouble: it.trouble(),
            })
        })
    }

    /// What the owners at a gateway said last of the copies of a pool on a disk.
    #[must_use]
    pub fn said_of(&self, gateway: GatewayId, pool: PoolId, disk: DiskId) -> Option<Said> {
        let reports = &self.gateways.get(&gateway)?.report.catch_ups;
        let report = reports.iter().find(|report| (report.pool, report.disk) == (pool.0, disk.0))?;
        let volumes = report.volumes.iter().map(|it| (VolumeId(it.volume), Generation(it.generation)));
        Some(Said {
            epoch: Epoch(report.epoch),
            volumes: volumes.collect(),
            ready: Partitions::from_bytes(&report.ready)?,
        })
    }

    /// How far a disk is brought up to date; `None`: nobody that is there does it.
    #[must_use]
    pub fn catching_up(&self, disk: DiskId, now: Instant) -> Option<CatchingUp> {
        let up = self.gateways.values().filter(|presence| presence.is_up(now));
        let reports = up.flat_map(|presence| &presence.report.catch_ups);
        let mut all = sum(reports.filter(|report| report.disk == disk.0))?;
        all.left = self.paces.get(&disk).and_then(|pace| pace.left(all.waiting_extents));
        Some(all)
    }

    /// Follows how fast disks catch up.
    fn measure(&mut self, now: Instant) {
        let reports = self.gateways.values().flat_map(|presence| &presence.report.catch_ups);
        let mut checked: BTreeMap<DiskId, u64> = BTreeMap::new();
        for report in reports {
            let sum = checked.entry(DiskId(report.disk)).or_default();
            *sum = sum.saturating_add(report.checked_extents);
        }
        self.paces.retain(|disk, _| checked.contains_key(disk));
        for (disk, checked) in checked {
            self.paces.entry(disk).or_default().see(now, checked);
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

    /// How slow a disk is that answers, by the gateways that are there: milliseconds that its answers take, and those of others.
    #[must_use]
    pub fn limping(&self, disk: DiskId, now: Instant) -> Option<(u64, u64)> {
        let up = self.gateways.values().filter(|presence| presence.is_up(now));
        let said = up.flat_map(|presence| &presence.report.limping).filter(|it| it.disk == disk.0);
        said.map(|it| (it.mean_ms, it.others_ms)).max()
    }

    /// Damaged blocks without a good copy, by the gateways that are there.
    #[must_use]
    pub fn hopeless_blocks(&self, now: Instant) -> u64 {
        let up = self.gateways.values().filter(|presence| presence.is_up(now));
        up.fold(0, |sum, presence| presence.report.hopeless_blocks.saturating_add(sum))
    }

    /// What a gateway that is there says of a load that it was told to put on a volume.
    pub fn load(&self, gateway: GatewayId, load: u64, now: Instant) -> Option<&LoadReport> {
        let presence = self.gateways.get(&gateway).filter(|presence| presence.is_up(now))?;
        presence.report.loads.iter().find(|report| report.load == load)
    }

    /// Sessions of the gateways that are there, as they said last.
    pub fn sessions(&self, now: Instant) -> impl Iterator<Item = (GatewayId, &SessionReport)> {
        let up = self.gateways.iter().filter(move |(_, presence)| presence.is_up(now));
        up.flat_map(|(id, presence)| presence.report.sessions.iter().map(|session| (*id, session)))
    }
}

fn sum<'a>(reports: impl Iterator<Item = &'a CatchUpReport>) -> Option<CatchingUp> {
    let add = |all: CatchingUp, report: &CatchUpReport| CatchingUp {
        waiting_extents: all.waiting_extents.saturating_add(report.waiting_extents),
        checked_extents: all.checked_extents.saturating_add(report.checked_extents),
        copied_bytes: all.copied_bytes.saturating_add(report.copied_bytes),
        left: None,
    };
    reports.fold(None, |all, report| Some(add(all.unwrap_or_default(), report)))
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
    members.insert(id, Presence { stream, ended: None, heard: now, count, report });
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
        registry.close(stream, start);
        assert!(!registry.is_up(Member::Node(NODE), start));
        let again = registry.open();
        registry.node_report(again, NODE, node_report(), start).expect("newer");
        assert!(registry.is_up(Member::Node(NODE), start));
    }

    /// Guards the estimate of the time left: from the extents looked at by all gateways, of those that wait.
    #[test]
    fn pace_of_a_disk() {
        let mut registry = Registry::default();
        let start = Instant::now();
        let (one, other) = (registry.open(), registry.open());
        let report = |gateway, checked_extents, waiting_extents| {
            let catch_up = CatchUpReport {
                pool: 1,
                disk: 4,
                checked_extents,
                waiting_extents,
                ..CatchUpReport::default()
            };
            GatewayReport { gateway, catch_ups: vec![catch_up], ..GatewayReport::default() }
        };
        assert_eq!(registry.catching_up(DiskId(4), start), None);
        registry.gateway_report(other, GatewayId(2), report(2, 1000, 20), start).expect("new");
        let mut now = start;
        for second in 0..30 {
            now = start + Duration::from_secs(second);
            registry.gateway_report(other, GatewayId(2), report(2, 1000, 20), now).expect("again");
            registry.gateway_report(one, GATEWAY, report(1, 10 * second, 380), now).expect("again");
        }
        let all = registry.catching_up(DiskId(4), now).expect("it catches up");
        assert_eq!((all.waiting_extents, all.checked_extents), (400, 1290));
        let left = all.left.expect("a rate was seen").as_secs();
        assert!((38..=50).contains(&left), "400 extents at 10 per second take {left} s");
        registry.close(other, now);
        assert_eq!(registry.catching_up(DiskId(4), now).expect("one is left").waiting_extents, 380);
        assert_eq!(registry.catching_up(DiskId(5), now), None);
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
        registry.close(old, now);
        assert_eq!(registry.stream(Member::Gateway(GATEWAY), now), Some(new));
        assert_eq!(registry.sessions(now).count(), 0);
        assert_eq!(registry.reports(Member::Gateway(GATEWAY)), 2);
        assert!(registry.is_suspected(DiskId(4), now));
        registry.close(new, now);
        assert!(!registry.is_suspected(DiskId(4), now), "the word of one who is gone counts nothing");
    }
}

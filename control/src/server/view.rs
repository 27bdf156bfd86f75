//! The map and what members said, as the API shows it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use lunette_proto::ids::{DiskId, GatewayId, NodeId, Partition, TargetId, VolumeId};
use lunette_proto::map::{self, ClusterMap, DiskState, FailureDomain, VolumeState};

use super::moves::Plans;
use crate::api::admin::status_response::Health as ApiHealth;
use crate::api::admin::{
    Acl, CatchUp, ControlMember, ControlStatus, Damage, DiscoveryChap, Disk, DiskMoves, DrainResponse,
    Export, Gateway, Lun, Moves, Node, Pool, Scrub, Session, StatusResponse, Target, Volume,
};
use crate::api::cluster::{ScrubReport, SessionReport};
use crate::health::{Condition, Health, Member, Registry, behind, condition, judge, slowness, trouble};
use crate::moves::{self, Preview, Room};
use crate::raft::Metrics;
use crate::state::usable_bytes;

/// Everything that is shown is seen at one moment.
pub(super) struct View<'a> {
    map: &'a ClusterMap,
    registry: &'a Registry,
    now: Instant,
    /// Gathered once: to look through all targets for each volume would take hours where there are many.
    exports: BTreeMap<VolumeId, Vec<Export>>,
    /// Sessions by target, for the same reason.
    sessions_of: BTreeMap<&'a str, u32>,
    /// Copies of each disk, over all pools.
    copies: BTreeMap<DiskId, DiskCopies>,
    plans: Arc<Plans>,
}

/// Partitions of which a disk has copies, or gets or loses one.
#[derive(Clone, Copy, Debug, Default)]
struct DiskCopies {
    held: u32,
    arriving: u32,
    leaving: u32,
}

impl<'a> View<'a> {
    pub(super) fn new(map: &'a ClusterMap, registry: &'a Registry, plans: Arc<Plans>, now: Instant) -> Self {
        let mut exports: BTreeMap<VolumeId, Vec<Export>> = BTreeMap::new();
        for target in map.targets.values() {
            for (number, lun) in &target.luns {
                exports.entry(lun.volume).or_default().push(Export {
                    target: target.iqn.clone(),
                    lun: (*number).into(),
                    read_only: lun.read_only,
                });
            }
        }
        let mut sessions_of: BTreeMap<&str, u32> = BTreeMap::new();
        for (_, session) in registry.sessions(now) {
            *sessions_of.entry(&session.target).or_default() += 1;
        }
        let mut copies: BTreeMap<DiskId, DiskCopies> = BTreeMap::new();
        for pool in map.pools.values() {
            for disk in pool.table.rows().flat_map(|(_, row)| row) {
                copies.entry(*disk).or_default().held += 1;
            }
            for (_, it) in pool.moves.iter() {
                copies.entry(it.from).or_default().leaving += 1;
                copies.entry(it.to).or_default().arriving += 1;
            }
        }
        Self { map, registry, now, exports, sessions_of, copies, plans }
    }
}

impl View<'_> {
    pub(super) fn status(&self, metrics: &Metrics) -> StatusResponse {
        let verdict = judge(self.map, self.registry, self.now);
        let health = match verdict.health {
            Health::Healthy => ApiHealth::Healthy,
            Health::Degraded => ApiHealth::Degraded,
            Health::Unavailable => ApiHealth::Unavailable,
        };
        let disks = self.disks();
        StatusResponse {
            health: health.into(),
            reasons: verdict.reasons,
            cluster_id: self.map.cluster.to_string(),
            epoch: self.map.epoch.0,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            control: Some(control(metrics)),
            nodes: self.nodes(),
            capacity_bytes: disks.iter().fold(0, |sum, disk| disk.capacity_bytes.saturating_add(sum)),
            used_bytes: disks.iter().fold(0, |sum, disk| disk.used_bytes.saturating_add(sum)),
            disks,
            gateways: self.gateways(),
            pools: self.map.pools.values().map(|pool| self.pool(pool)).collect(),
            volumes: count(self.active_volumes().count()),
            targets: count(self.map.targets.len()),
            sessions: count(self.registry.sessions(self.now).count()),
            discovery_chap: self.map.discovery_chap.as_ref().map(discovery_chap),
            moves: Some(self.moves()),
        }
    }

    /// Copies on their way to other disks, over all pools.
    fn moves(&self) -> Moves {
        let under_way: usize = self.map.pools.values().map(|pool| pool.moves.len()).sum();
        let waiting: usize = self.plans.pools.values().map(|plan| plan.waiting).sum();
        let going_on = self.copies.iter().filter(|(_, copies)| copies.arriving > 0);
        let going_on = going_on.filter_map(|(disk, _)| self.registry.catching_up(*disk, self.now));
        let (mut copied_bytes, mut left) = (0u64, None);
        for progress in going_on {
            copied_bytes = copied_bytes.saturating_add(progress.copied_bytes);
            left = left.max(progress.left);
        }
        // Those that follow take as long as those that are seen.
        let share = (under_way + waiting) as f64 / under_way.max(1) as f64;
        let left_ms = left.map(|left| (left.as_millis() as f64 * share) as u64);
        let problem = |pool: &map::Pool| {
            let problem = self.plans.pools.get(&pool.id)?.problem.as_ref()?;
            Some(format!("pool {}: {problem}", pool.name))
        };
        Moves {
            under_way: count(under_way),
            waiting: count(waiting),
            copied_bytes,
            left_ms,
            problems: self.map.pools.values().filter_map(problem).collect(),
        }
    }

    /// What would move, in the API's words.
    pub(super) fn preview(&self, preview: &Preview, rooms: &BTreeMap<DiskId, Room>) -> DrainResponse {
        let disk = |(id, moves): (&DiskId, &moves::DiskMoves)| {
            let room = rooms.get(id).copied().unwrap_or_default();
            DiskMoves {
                disk: id.0,
                node: self.map.disks.get(id).map(|disk| self.node_name(disk.node)).unwrap_or_default(),
                moves_out: count(moves.moves_out),
                bytes_out: moves.bytes_out,
                moves_in: count(moves.moves_in),
                bytes_in: moves.bytes_in,
                free_bytes: room.capacity_bytes.saturating_sub(room.used_bytes),
            }
        };
        DrainResponse {
            moves: count(preview.moves),
            bytes: preview.bytes,
            disks: preview.disks.iter().map(disk).collect(),
        }
    }

    fn copies(&self, disk: DiskId) -> DiskCopies {
        self.copies.get(&disk).copied().unwrap_or_default()
    }

    pub(super) fn nodes(&self) -> Vec<Node> {
        let node = |node: &map::Node| Node {
            id: node.id.0,
            name: node.name.clone(),
            address: node.address.to_string(),
            host: node.host.clone(),
            rack: node.rack.clone(),
            zone: node.zone.clone(),
            up: self.registry.is_up(Member::Node(node.id), self.now),
            disks: self
                .map
                .disks
                .values()
                .filter(|disk| disk.node == node.id)
                .map(|disk| disk.id.0)
                .collect(),
            disks_out: self.disks_in(node.id, DiskState::Out),
            disks_catching_up: self.disks_in(node.id, DiskState::CatchingUp),
            disks_draining: count(self.draining(node.id).count()),
            draining_copies: self.draining(node.id).map(|disk| self.copies(disk.id).held).sum(),
        };
        self.map.nodes.values().map(node).collect()
    }

    fn draining(&self, node: NodeId) -> impl Iterator<Item = &map::Disk> {
        self.map.disks.values().filter(move |disk| disk.node == node && disk.draining)
    }

    fn disks_in(&self, node: NodeId, state: DiskState) -> u32 {
        count(self.map.disks.values().filter(|disk| disk.node == node && disk.state == state).count())
    }

    fn catch_up(&self, disk: &map::Disk) -> Option<CatchUp> {
        if disk.state == DiskState::InSync && self.copies(disk.id).arriving == 0 {
            return None;
        }
        let (behind, partitions) = behind(self.map, disk.id);
        let progress = self.registry.catching_up(disk.id, self.now);
        let progress = progress.filter(|_| disk.state != DiskState::Out).unwrap_or_default();
        Some(CatchUp {
            behind_partitions: count(behind),
            partitions: count(partitions),
            checked_extents: progress.checked_extents,
            waiting_extents: progress.waiting_extents,
            copied_bytes: progress.copied_bytes,
            left_ms: progress.left.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
        })
    }

    pub(super) fn disks(&self) -> Vec<Disk> {
        let disk = |disk: &map::Disk| Disk {
            id: disk.id.0,
            uuid: disk.uuid.to_string(),
            node: self.node_name(disk.node),
            label: disk.label.clone(),
            state: condition(self.registry, disk, self.now).to_string(),
            capacity_bytes: disk.capacity_bytes,
            used_bytes: self.registry.disk(disk.node, disk.id).map_or(0, |report| report.used_bytes),
            weight: disk.weight,
            kind: self
                .registry
                .disk(disk.node, disk.id)
                .map(|report| report.kind.clone())
                .unwrap_or_default(),
            reason: self.reason(disk),
            scrub: self.registry.disk(disk.node, disk.id).and_then(|report| report.scrub.as_ref()).map(scrub),
            catch_up: self.catch_up(disk),
            draining: disk.draining,
            copies: self.copies(disk.id).held,
            arriving: self.copies(disk.id).arriving,
            leaving: self.copies(disk.id).leaving,
            replaced_by: disk.replaced_by.map_or(0, |by| by.0),
        };
        let wish = |wish: &map::AddedDisk| Disk {
            id: wish.id.0,
            uuid: wish.uuid.to_string(),
            node: self.node_name(wish.node),
            label: wish.path.clone(),
            state: Condition::Adding.to_string(),
            capacity_bytes: wish.capacity_bytes.unwrap_or(0),
            ..Disk::default()
        };
        let mut disks: Vec<Disk> = self.map.disks.values().map(disk).collect();
        disks.extend(self.map.wishes().map(wish));
        disks.sort_by_key(|disk| disk.id);
        disks
    }

    fn reason(&self, disk: &map::Disk) -> String {
        let said = trouble(self.registry, disk.node, disk.id).map(str::to_owned);
        let slow = || slowness(self.registry, disk.id, self.now).map(|text| format!("slow: {text}"));
        said.or_else(slow).unwrap_or_default()
    }

    fn node_name(&self, node: NodeId) -> String {
        self.map.nodes.get(&node).map(|node| node.name.clone()).unwrap_or_default()
    }

    fn gateways(&self) -> Vec<Gateway> {
        let gateway = |gateway: &map::Gateway| Gateway {
            id: gateway.id.0,
            name: gateway.name.clone(),
            portal_group_tag: gateway.portal_group_tag.into(),
            portals: gateway.portals.iter().map(ToString::to_string).collect(),
            up: self.is_up(gateway.id),
            sessions: count(self.registry.sessions(self.now).filter(|(id, _)| *id == gateway.id).count()),
            volumes: count(self.active_volumes().filter(|volume| owns(volume, gateway.id)).count()),
        };
        self.map.gateways.values().map(gateway).collect()
    }

    pub(super) fn pool(&self, pool: &map::Pool) -> Pool {
        let mut disks: Vec<_> = pool.table.rows().flat_map(|(_, row)| row).collect();
        disks.sort_unstable();
        disks.dedup();
        let volumes = || self.active_volumes().filter(|volume| volume.pool == pool.id);
        let lacks = |(partition, row): &(Partition, &[DiskId])| {
            row.iter().any(|disk| !self.map.is_in_sync(pool.id, *disk, *partition))
        };
        Pool {
            id: pool.id.0,
            name: pool.name.clone(),
            replicas: pool.redundancy.width().into(),
            min_size: pool.redundancy.min_size().into(),
            failure_domain: domain_name(pool.failure_domain).to_owned(),
            partitions: pool.table.partitions(),
            table_version: pool.table.version,
            disks: count(disks.len()),
            volumes: count(volumes().count()),
            usable_bytes: usable_bytes(self.map, pool),
            provisioned_bytes: volumes().fold(0, |sum, volume| volume.size_bytes.saturating_add(sum)),
            degraded_partitions: count(pool.table.rows().filter(lacks).count()),
            moves: count(pool.moves.len()),
            moves_waiting: self.plans.pools.get(&pool.id).map_or(0, |plan| count(plan.waiting)),
            moves_problem: self
                .plans
                .pools
                .get(&pool.id)
                .and_then(|plan| plan.problem.clone())
                .unwrap_or_default(),
        }
    }

    pub(super) fn volume(&self, volume: &map::Volume) -> Volume {
        let pool = self.map.pools.get(&volume.pool);
        let owner = volume.owner.and_then(|owner| self.map.gateways.get(&owner.gateway));
        Volume {
            id: volume.id.0,
            name: volume.name.clone(),
            pool: pool.map(|pool| pool.name.clone()).unwrap_or_default(),
            size_bytes: volume.size_bytes,
            replicas: pool.map_or(0, |pool| pool.redundancy.width().into()),
            stripe_unit_bytes: volume.stripe.map_or(0, |stripe| stripe.unit_bytes),
            stripe_width: volume.stripe.map_or(0, |stripe| stripe.width.into()),
            block_bytes: volume.block_bytes,
            write_back: volume.write_back,
            serial: map::serial(self.map.cluster, volume.id),
            naa: map::naa(self.map.cluster, volume.id).iter().map(|byte| format!("{byte:02x}")).collect(),
            owner: owner.map(|gateway| gateway.name.clone()).unwrap_or_default(),
            generation: volume.generation.0,
            exports: self.exports.get(&volume.id).cloned().unwrap_or_default(),
            state: match volume.state {
                VolumeState::Active if volume.owner.is_none_or(|owner| !self.is_up(owner.gateway)) => {
                    "unavailable".to_owned()
                }
                VolumeState::Active => "active".to_owned(),
                VolumeState::Deleting => "deleting".to_owned(),
            },
        }
    }

    /// All volumes, in the order of their names.
    pub(super) fn volumes(&self) -> Vec<Volume> {
        let mut volumes: Vec<_> = self.map.volumes.values().map(|volume| self.volume(volume)).collect();
        volumes.sort_by(|one, other| one.name.cmp(&other.name).then(one.id.cmp(&other.id)));
        volumes
    }

    pub(super) fn target(&self, target: &map::Target) -> Target {
        let lun = |(number, lun): (&u16, &map::Lun)| {
            let volume = self.map.volumes.get(&lun.volume);
            Lun {
                lun: (*number).into(),
                volume: volume.map(|volume| volume.name.clone()).unwrap_or_default(),
                read_only: lun.read_only,
                size_bytes: volume.map_or(0, |volume| volume.size_bytes),
            }
        };
        let acl = |acl: &map::Acl| Acl {
            initiator: acl.initiator.clone(),
            from: acl.from.map(|from| from.to_string()).unwrap_or_default(),
        };
        let chap = target.chap.as_ref();
        let mutual = chap.and_then(|chap| chap.target.as_ref());
        Target {
            id: target.id.0,
            iqn: target.iqn.clone(),
            luns: target.luns.iter().map(lun).collect(),
            acls: target.acls.iter().map(acl).collect(),
            chap_user: chap.map(|chap| chap.initiator.user.clone()).unwrap_or_default(),
            chap_mutual_user: mutual.map(|mutual| mutual.user.clone()).unwrap_or_default(),
            chap_algorithms: chap.map(algorithm_names).unwrap_or_default(),
            draining: target.draining,
            sessions: self.sessions_of.get(target.iqn.as_str()).copied().unwrap_or(0),
        }
    }

    pub(super) fn target_by_id(&self, id: TargetId) -> Option<Target> {
        self.map.targets.get(&id).map(|target| self.target(target))
    }

    pub(super) fn sessions(&self) -> Vec<Session> {
        self.registry.sessions(self.now).map(|(gateway, report)| self.session(gateway, report)).collect()
    }

    fn session(&self, gateway: GatewayId, report: &SessionReport) -> Session {
        let gateway = self.map.gateways.get(&gateway).map(|gateway| gateway.name.clone()).unwrap_or_default();
        Session {
            id: format!("{gateway}/{}", report.tsih),
            gateway,
            kind: if report.discovery { "discovery" } else { "normal" }.to_owned(),
            target: report.target.clone(),
            initiator: report.initiator.clone(),
            initiator_address: report.initiator_address.clone(),
            portal: report.portal.clone(),
            isid: report.isid.clone(),
            since_unix_ms: report.since_unix_ms,
            commands: report.commands,
            read_bytes: report.read_bytes,
            written_bytes: report.written_bytes,
            errors: report.errors,
            header_digest: report.header_digest,
            data_digest: report.data_digest,
            chap_user: report.chap_user.clone(),
        }
    }

    fn is_up(&self, gateway: GatewayId) -> bool {
        self.registry.is_up(Member::Gateway(gateway), self.now)
    }

    fn active_volumes(&self) -> impl Iterator<Item = &map::Volume> {
        self.map.volumes.values().filter(|volume| volume.state == VolumeState::Active)
    }
}

fn scrub(report: &ScrubReport) -> Scrub {
    Scrub {
        pass: report.pass,
        running: report.running,
        started_unix_ms: report.started_unix_ms,
        done_bytes: report.done_bytes,
        total_bytes: report.total_bytes,
        rate_bytes: report.rate_bytes,
        left_ms: report.left_ms,
        checked_blocks: report.checked_blocks,
        found_blocks: report.found_blocks,
        damaged: Some(Damage {
            lost: report.lost_blocks,
            torn: report.torn_blocks,
            misdirected: report.misdirected_blocks,
            stale: report.stale_blocks,
            unreadable: report.unreadable_blocks,
        }),
        left_out_blocks: report.left_out_blocks,
        repaired_blocks: report.repaired_blocks,
    }
}

fn owns(volume: &map::Volume, gateway: GatewayId) -> bool {
    volume.owner.is_some_and(|owner| owner.gateway == gateway)
}

pub(super) fn control(metrics: &Metrics) -> ControlStatus {
    let member = |member: &crate::raft::Member| ControlMember {
        id: member.id,
        address: member.address.clone(),
        voter: member.voter,
        up: member.up,
        behind: member.behind,
    };
    ControlStatus {
        leader: metrics.leader.unwrap_or(0),
        term: metrics.term,
        applied: metrics.applied,
        members: metrics.members.iter().map(member).collect(),
    }
}

fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// Failure domains by the API's names.
pub(super) const DOMAINS: [(&str, FailureDomain); 4] = [
    ("disk", FailureDomain::Disk),
    ("host", FailureDomain::Host),
    ("rack", FailureDomain::Rack),
    ("zone", FailureDomain::Zone),
];

fn domain_name(domain: FailureDomain) -> &'static str {
    match domain {
        FailureDomain::Disk => "disk",
        FailureDomain::Host => "host",
        FailureDomain::Rack => "rack",
        FailureDomain::Zone => "zone",
    }
}

/// What is asked of whoever discovers, without the secrets.
pub(super) fn discovery_chap(chap: &map::Chap) -> DiscoveryChap {
    DiscoveryChap {
        user: chap.initiator.user.clone(),
        mutual_user: chap.target.as_ref().map(|mutual| mutual.user.clone()).unwrap_or_default(),
        algorithms: algorithm_names(chap),
    }
}

fn algorithm_names(chap: &map::Chap) -> Vec<String> {
    chap.algorithms.iter().map(|algorithm| algorithm_name(*algorithm).to_owned()).collect()
}

/// CHAP algorithms by the API's names.
pub(super) fn algorithm_name(algorithm: map::ChapAlgorithm) -> &'static str {
    match algorithm {
        map::ChapAlgorithm::Md5 => "md5",
        map::ChapAlgorithm::Sha1 => "sha1",
        map::ChapAlgorithm::Sha256 => "sha256",
        map::ChapAlgorithm::Sha3_256 => "sha3-256",
    }
}

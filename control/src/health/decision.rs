//! Which disks leave the in-sync sets, return to them, and count again: what the leader proposes, from the map, from what
//! members said, and from the time. No member decides for itself, and no sentence of one gateway alone is a verdict.
//!
//! | the node                    | and                                                        | its disks       |
//! |-----------------------------|------------------------------------------------------------|-----------------|
//! | has ended its stream        | a gateway gets no answers                                  | leave at once   |
//! |                             | for three seconds; no gateway is there to say              | leave           |
//! | is silent for a second      | a gateway gets no answers                                  | leave at once   |
//! | is silent for three seconds | no gateway is there to say                                 | leave           |
//! | was never heard             | a gateway gets no answers, a second after this member leads | leave           |
//! | is heard                    | it says that the disk has failed, or cannot be opened      | leaves at once  |
//! |                             | a gateway says that the disk has broken a promise          | leaves at once  |
//! |                             | for three seconds the disk says to a gateway that it failed | leaves          |
//! |                             | for three seconds half of the gateways get no answers; not | leaves          |
//! |                             | one of them alone, while another uses the disk             |                 |
//! |                             | it serves a disk that is out                               | returns         |
//! | whatever                    | the owners of all volumes say that copies are equal        | copies count    |
//!
//! A disk that leaves soon after it has returned is taken back later each time. Nothing is decided from silence by a leader
//! that hears less than half of the nodes, or that has slept itself.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lunette_proto::ids::{DiskId, Epoch, GatewayId, Generation, NodeId, PoolId, VolumeId};
use lunette_proto::map::{ClusterMap, Disk, DiskState, Partitions, Pool, VolumeState};

use super::registry::{Complaint, Hearing, Member, Registry, Said};
use super::{Attention, LOOK_INTERVAL, QUIET_MAX, SILENCE_MAX};
use crate::api::cluster::unreachable_disk::Trouble;
use crate::state::{Command, owned_volumes};

/// How long a complaint about a disk of a node that is heard well has to last.
const SUSPECTED_MAX: Duration = Duration::from_secs(3);
/// How long a node that is there may take to find a new leader.
const ABSENT_MAX: Duration = Duration::from_secs(1);
/// A disk that leaves within this time after it has returned flaps.
const FLAP_WINDOW: Duration = Duration::from_secs(120);
/// How long a disk that has flapped once serves before it is taken back; doubles each time.
const RETURN_WAIT_MIN: Duration = Duration::from_secs(2);
const RETURN_WAIT_MAX: Duration = Duration::from_secs(60);
/// Between two commits of copies that count, unless all of a disk's do.
const CAUGHT_UP_INTERVAL: Duration = Duration::from_secs(1);
/// Between two looks at what owners say of copies.
const COPIES_INTERVAL: Duration = Duration::from_millis(50);

/// See the module.
#[derive(Debug)]
pub struct Decider {
    attention: Attention,
    disks: BTreeMap<DiskId, Memory>,
    copies_due: Instant,
    /// When copies were last said to count.
    counted: BTreeMap<(PoolId, DiskId), Instant>,
    members: (Epoch, BTreeSet<DiskId>),
    /// Disks with copies that do not count, by the same map.
    behind: BTreeSet<DiskId>,
}

/// What is remembered of a disk.
#[derive(Debug)]
struct Memory {
    state: DiskState,
    returned: Option<Instant>,
    /// Times that it has left too soon.
    strikes: u32,
    /// It leaves although its node is there, and would come straight back.
    is_blamed: bool,
    /// Since when it could return.
    fit: Option<Instant>,
}

/// What is to be done.
#[derive(Debug)]
pub struct Look {
    /// To be proposed, each with the reason; they do not depend on each other.
    pub decisions: Vec<(Command, String)>,
    /// When to look again, if nothing happens before.
    pub next: Instant,
}

struct Cause {
    why: String,
    /// The node is there.
    is_heard: bool,
}

/// Everything that is looked at.
struct Scene<'a> {
    map: &'a ClusterMap,
    registry: &'a Registry,
    now: Instant,
    complaints: BTreeMap<DiskId, Vec<Complaint>>,
    /// Nodes to which some gateway has no way.
    cut: BTreeMap<NodeId, GatewayId>,
    gateways: usize,
    /// Most nodes are heard: silence is the others' and not this member's.
    hears: bool,
}

impl<'a> Scene<'a> {
    fn new(map: &'a ClusterMap, registry: &'a Registry, now: Instant) -> Self {
        let mut complaints: BTreeMap<DiskId, Vec<Complaint>> = BTreeMap::new();
        let mut cut = BTreeMap::new();
        for complaint in registry.complaints(now) {
            // What was said of another absence, or of a disk that is gone.
            let Some(disk) = map.disks.get(&complaint.disk) else { continue };
            if matches!(complaint.trouble, Trouble::Disconnected | Trouble::Silent) {
                cut.insert(disk.node, complaint.gateway);
            }
            complaints.entry(complaint.disk).or_default().push(complaint);
        }
        let gateways = registry.gateways_up(now).filter(|id| map.gateways.contains_key(id)).count();
        Self { map, registry, now, complaints, cut, gateways, hears: registry.hears_most(map, now) }
    }

    /// Gateways that are there and own a volume that lies on a disk.
    fn users(&self, disk: DiskId) -> BTreeSet<GatewayId> {
        let holds = |pool: &&Pool| {
            pool.table.rows().any(|(_, row)| row.contains(&disk))
                || self.map.behind.contains_key(&(pool.id, disk))
        };
        let pools: BTreeSet<PoolId> = self.map.pools.values().filter(holds).map(|pool| pool.id).collect();
        let up: BTreeSet<GatewayId> = self.registry.gateways_up(self.now).collect();
        let volumes = self
            .map
            .volumes
            .values()
            .filter(|volume| volume.state == VolumeState::Active && pools.contains(&volume.pool));
        volumes
            .filter_map(|volume| volume.owner)
            .map(|owner| owner.gateway)
            .filter(|id| up.contains(id))
            .collect()
    }

    fn gateway(&self, id: GatewayId) -> String {
        self.map.gateways.get(&id).map_or_else(|| id.to_string(), |gateway| gateway.name.clone())
    }
}

impl Decider {
    /// From the moment on when this member leads.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            attention: Attention::new(now),
            disks: BTreeMap::new(),
            copies_due: now,
            counted: BTreeMap::new(),
            members: (Epoch(0), BTreeSet::new()),
            behind: BTreeSet::new(),
        }
    }

    /// Looks at everything. Whoever calls looks again at every change of the map, at every report and end of a stream, and at
    /// the time that it is told. The same is said again as long as it is not done.
    pub fn look(&mut self, map: &ClusterMap, registry: &Registry, now: Instant) -> Look {
        self.attention.look(now);
        if self.members.0 != map.epoch {
            let rows = map.pools.values().flat_map(|pool| pool.table.rows());
            let members = rows.flat_map(|(_, row)| row.iter().copied());
            // Whoever gets copies is waited for, too.
            let arriving = map.behind.keys().map(|(_, disk)| *disk);
            self.members = (map.epoch, members.chain(arriving).collect());
            self.behind = map.behind.keys().map(|(_, disk)| *disk).collect();
        }
        self.disks.retain(|id, _| map.disks.contains_key(id));
        self.counted.retain(|key, _| map.behind.contains_key(key));

        let scene = Scene::new(map, registry, now);
        let looks_at_copies = now >= self.copies_due;
        if looks_at_copies {
            self.copies_due = now + COPIES_INTERVAL;
        }
        let mut look = Look { decisions: Vec::new(), next: now + LOOK_INTERVAL };
        let mut catching_up = false;
        for disk in map.disks.values() {
            self.remember(disk, now);
            if disk.state == DiskState::Out {
                self.take_back(&scene, disk, &mut look);
                continue;
            }
            let cause =
                self.members.1.contains(&disk.id).then(|| self.cause(&scene, disk, &mut look.next)).flatten();
            if let Some(Cause { why, is_heard }) = cause {
                if let Some(memory) = self.disks.get_mut(&disk.id) {
                    memory.is_blamed = is_heard;
                }
                look.decisions.push((Command::Evict { disk: disk.id, seen: disk.state }, why));
            } else if self.behind.contains(&disk.id) {
                catching_up = true;
                if looks_at_copies {
                    self.count(&scene, disk, &mut look);
                }
            }
        }
        if catching_up {
            look.next = look.next.min(self.copies_due);
        }
        look
    }

    /// Follows a disk's states.
    fn remember(&mut self, disk: &Disk, now: Instant) {
        let memory = self.disks.entry(disk.id).or_insert_with(|| Memory {
            state: disk.state,
            returned: None,
            strikes: 0,
            is_blamed: false,
            fit: None,
        });
        if memory.state == disk.state {
            return;
        }
        if disk.state == DiskState::Out {
            let window = FLAP_WINDOW + wait(memory.strikes);
            let is_soon = memory.returned.is_some_and(|at| now.saturating_duration_since(at) < window);
            memory.strikes = if is_soon { memory.strikes.saturating_add(1) } else { 0 };
            if memory.is_blamed {
                memory.strikes = memory.strikes.max(1);
            }
            memory.fit = None;
        } else if memory.state == DiskState::Out {
            memory.returned = Some(now);
        }
        memory.is_blamed = false;
        memory.state = disk.state;
    }

    /// Takes a disk back that serves again.
    fn take_back(&mut self, scene: &Scene<'_>, disk: &Disk, look: &mut Look) {
        let report = scene.registry.disk(disk.node, disk.id);
        // One that was silent has to be heard again, not only to have been heard not long ago.
        let is_heard = matches!(scene.registry.hearing(Member::Node(disk.node)), Hearing::Open { heard }
            if scene.now.saturating_duration_since(heard) < QUIET_MAX);
        let fit = is_heard && report.is_some_and(|report| !report.failed && !report.refused);
        let Some(memory) = self.disks.get_mut(&disk.id) else { return };
        if !fit {
            memory.fit = None;
            return;
        }
        let due = *memory.fit.get_or_insert(scene.now) + wait(memory.strikes);
        if due <= scene.now {
            let why = "its node serves it again".to_owned();
            look.decisions.push((Command::Return { disk: disk.id }, why));
        } else {
            look.next = look.next.min(due);
        }
    }

    /// Why a disk has to leave.
    fn cause(&self, scene: &Scene<'_>, disk: &Disk, next: &mut Instant) -> Option<Cause> {
        let now = scene.now;
        let complaints = scene.complaints.get(&disk.id).map(Vec::as_slice).unwrap_or_default();
        let gone = |why: String| Some(Cause { why, is_heard: false });
        let cut = complaints.first().map(|it| it.gateway).or_else(|| scene.cut.get(&disk.node).copied());
        let cut = cut.map(|gateway| format!("gateway {} gets no answers", scene.gateway(gateway)));
        let nobody =
            || (scene.gateways == 0 && scene.hears).then_some("no gateway is there to say otherwise");
        match scene.registry.hearing(Member::Node(disk.node)) {
            Hearing::Ended { heard, .. } => {
                let due = self.attention.since(heard) + SILENCE_MAX;
                if cut.is_none() && now < due {
                    *next = (*next).min(due);
                    return None;
                }
                let what = cut.or_else(|| nobody().map(str::to_owned))?;
                gone(format!("its node has gone, and {what}"))
            }
            Hearing::Absent => {
                let due = self.attention.began() + ABSENT_MAX;
                let cut = cut.filter(|_| scene.hears)?;
                if now < due {
                    *next = (*next).min(due);
                    return None;
                }
                gone(format!("its node does not report, and {cut}"))
            }
            Hearing::Open { heard } => {
                let since = self.attention.since(heard);
                let silence = now.saturating_duration_since(since);
                if silence >= SILENCE_MAX && nobody().is_some() {
                    return gone("its node is silent, and no gateway is there to say otherwise".to_owned());
                }
                if let Some(cut) = cut
                    && silence >= QUIET_MAX
                {
                    return gone(format!("its node is silent, and {cut}"));
                }
                if let Some(due) =
                    [QUIET_MAX, SILENCE_MAX].map(|max| since + max).into_iter().find(|due| *due > now)
                {
                    *next = (*next).min(due);
                }
                if silence < QUIET_MAX { heard_well(scene, disk, complaints, next) } else { None }
            }
        }
    }

    /// Says that copies count of which all owners say so.
    fn count(&mut self, scene: &Scene<'_>, disk: &Disk, look: &mut Look) {
        for ((pool, _), behind) in scene.map.behind.iter().filter(|((_, id), _)| *id == disk.id) {
            let Some((ready, epoch, owners)) = said(scene, *pool, disk.id) else { continue };
            let ready = behind.partitions.intersection(&ready.unwrap_or_else(|| behind.partitions.clone()));
            if ready.is_empty() || epoch < behind.since.max(behind.grown) {
                continue;
            }
            let key = (*pool, disk.id);
            let due = self.counted.get(&key).map_or(scene.now, |last| *last + CAUGHT_UP_INTERVAL);
            if ready.len() < behind.partitions.len() && due > scene.now {
                look.next = look.next.min(due);
                continue;
            }
            self.counted.insert(key, scene.now);
            let why = format!("{} of {} partitions are equal again", ready.len(), behind.partitions.len());
            let partitions = Arc::new(ready);
            let (disk, pool) = (disk.id, *pool);
            look.decisions.push((Command::CaughtUp { disk, pool, partitions, epoch, owners }, why));
        }
    }
}

/// What all owners say of the copies of a pool on a disk together: which are equal (`None`: all, for nobody has written), the
/// oldest map under which that was said, and whose word it is. `None`: one has said nothing under his present generation.
fn said(
    scene: &Scene<'_>,
    pool: PoolId,
    disk: DiskId,
) -> Option<(Option<Partitions>, Epoch, BTreeMap<VolumeId, Generation>)> {
    let (mut ready, mut epoch): (Option<Partitions>, Epoch) = (None, scene.map.epoch);
    let mut owners = BTreeMap::new();
    let mut heard: BTreeMap<GatewayId, Said> = BTreeMap::new();
    for (volume, generation) in owned_volumes(scene.map, pool) {
        let gateway = scene.map.volumes.get(&volume)?.owner?.gateway;
        if let Entry::Vacant(entry) = heard.entry(gateway) {
            let said = scene.registry.said_of(gateway, pool, disk)?;
            epoch = epoch.min(said.epoch);
            ready = Some(ready.map_or_else(|| said.ready.clone(), |ready| ready.intersection(&said.ready)));
            entry.insert(said);
        }
        if heard.get(&gateway)?.volumes.get(&volume) != Some(&generation) {
            return None;
        }
        owners.insert(volume, generation);
    }
    Some((ready, epoch, owners))
}

/// Why a disk has to leave although its node is there.
fn heard_well(scene: &Scene<'_>, disk: &Disk, complaints: &[Complaint], next: &mut Instant) -> Option<Cause> {
    let now = scene.now;
    let blamed = |why: String| Some(Cause { why, is_heard: true });
    match scene.registry.disk(disk.node, disk.id) {
        Some(report) if report.failed => return blamed(format!("it has failed: {}", report.reason)),
        Some(report) if report.refused => {
            return blamed(format!("its node cannot open it: {}", report.reason));
        }
        _ => {}
    }
    if let Some(it) = complaints.iter().find(|it| it.trouble == Trouble::Untrusted) {
        return blamed(format!("it has broken a promise to gateway {}", scene.gateway(it.gateway)));
    }
    let lasts = |it: &&Complaint| now.saturating_duration_since(it.since) >= SUSPECTED_MAX;
    if let Some(due) = complaints.iter().filter(|it| !lasts(it)).map(|it| it.since + SUSPECTED_MAX).min() {
        *next = (*next).min(due);
    }
    if let Some(it) = complaints.iter().filter(lasts).find(|it| it.trouble == Trouble::Failed) {
        return blamed(format!("it has said to gateway {} that it cannot serve", scene.gateway(it.gateway)));
    }
    let lasting: BTreeSet<GatewayId> = complaints.iter().filter(lasts).map(|it| it.gateway).collect();
    if lasting.is_empty() || lasting.len() * 2 < scene.gateways {
        return None;
    }
    // A bad link of one gateway, while others reach the disk.
    if lasting.len() == 1 && !scene.users(disk.id).is_subset(&lasting) {
        return None;
    }
    blamed(format!("{} of {} gateways get no answers for {SUSPECTED_MAX:?}", lasting.len(), scene.gateways))
}

/// How long a disk serves before it is taken back.
fn wait(strikes: u32) -> Duration {
    match strikes {
        0 => Duration::ZERO,
        strikes => {
            let factor = 1u32.checked_shl(strikes - 1).unwrap_or(u32::MAX);
            RETURN_WAIT_MIN.saturating_mul(factor).min(RETURN_WAIT_MAX)
        }
    }
}

#[cfg(test)]
mod tests;

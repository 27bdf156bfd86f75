//! Which moves begin and which are given up, from the map, from what nodes say of their disks, and from the time.
//!
//! | a disk                                          | its copies                                                    |
//! |-------------------------------------------------|---------------------------------------------------------------|
//! | is out for less than the grace time             | stay: it returns, and misses little                           |
//! | is out for longer                               | are made elsewhere, from the others; those with fewest first  |
//! | is to be emptied                                | go elsewhere                                                  |
//! | is to be emptied, for another has its place     | go elsewhere; when it has none, it is given up                |
//! | is new, or has another weight, or another is    | are evened out, while nothing is degraded                     |
//! | is back, or is not to be emptied after all      | stay, and moves away from it are given up                     |
//!
//! The table that a pool should have is computed once for each change of what it follows from, and kept until it is reached.
//! Only so many moves are under way at a time: the more there are, the longer the first of them takes, and the more is lost when
//! the plan changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lunette_placement::{Candidate, candidates_of};
use lunette_proto::ids::{DiskId, Partition, PoolId};
use lunette_proto::map::{ClusterMap, Disk, DiskState, Move, Pool, Table};

use super::target::{Steps, steps, target};
use crate::state::{Command, arriving_at, check_move};

/// How long a disk is out before its copies are made elsewhere, unless it is set otherwise.
pub const REBUILD_AFTER: Duration = Duration::from_secs(600);
/// Moves to one disk that are under way at a time; more begin when half of them are done.
const MOVES_PER_DISK_MAX: usize = 64;
/// The same for a pool.
const MOVES_PER_POOL_MAX: usize = 256;
/// Of 100 parts of a disk, those that moves may fill.
const FILL_MAX: u64 = 95;
/// Between two looks when nothing happens, and when something is waited for that no map tells of.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
const WAIT_INTERVAL: Duration = Duration::from_secs(1);

/// What a node says of a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// It is there and serves.
    pub answers: bool,
    /// Bytes that are in use.
    pub used_bytes: u64,
    /// Bytes that it offers.
    pub capacity_bytes: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Planner {
    rebuild_after: Duration,
    /// Since when disks are out.
    out: BTreeMap<DiskId, Instant>,
    pools: BTreeMap<PoolId, Planned>,
}

/// The plan of a pool.
#[derive(Debug)]
struct Planned {
    /// What it follows from.
    candidates: Arc<Vec<Candidate>>,
    /// Why there is none, in words.
    target: Result<Table, String>,
    /// The table by whose version it was reached.
    reached: Option<u64>,
}

/// How far a pool is on its way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolPlan {
    /// Moves that have not begun.
    pub waiting: usize,
    /// Why they have not, or why there can be none.
    pub problem: Option<String>,
}

/// What is to be done.
#[derive(Debug)]
pub struct Look {
    /// To be proposed in this order, each with the reason.
    pub commands: Vec<(Command, String)>,
    /// How far each pool is.
    pub pools: BTreeMap<PoolId, PoolPlan>,
    /// Disks that hold nothing in the tables that pools should have, and are not waited for.
    pub absent: BTreeSet<DiskId>,
    /// When to look again, if nothing happens before.
    pub next: Instant,
}

impl Planner {
    /// From the moment on when this member leads. What was out before counts from then.
    #[must_use]
    pub fn new(rebuild_after: Duration) -> Self {
        Self { rebuild_after, out: BTreeMap::new(), pools: BTreeMap::new() }
    }

    /// Looks at everything. This may compute tables, which takes a while in a large cluster.
    pub fn look(&mut self, map: &ClusterMap, rooms: &BTreeMap<DiskId, Room>, now: Instant) -> Look {
        let mut look = Look {
            commands: Vec::new(),
            pools: BTreeMap::new(),
            absent: BTreeSet::new(),
            next: now + LOOK_INTERVAL,
        };
        self.find_absent(map, rooms, now, &mut look);
        let candidates = Arc::new(candidates_of(map, &look.absent));
        let degraded = is_degraded(map);
        let takes: BTreeSet<DiskId> = candidates
            .iter()
            .filter(|candidate| candidate.weight > 0)
            .map(|candidate| candidate.disk)
            .collect();
        let mut begun = Begun::of(map, rooms);
        self.pools.retain(|id, _| map.pools.contains_key(id));
        for pool in map.pools.values() {
            let planned = self.pools.entry(pool.id).or_insert_with(|| Planned::of(pool, &candidates));
            if planned.candidates != candidates {
                *planned = Planned::of(pool, &candidates);
            }
            let steps = match &planned.target {
                Ok(_) if planned.reached == Some(pool.table.version) && pool.moves.is_empty() => continue,
                Ok(target) => steps(map, pool, target),
                Err(problem) => {
                    // Where copies should lie nobody knows: what is under way may go on.
                    let problem = Some(problem.clone());
                    look.pools.insert(pool.id, PoolPlan { waiting: 0, problem });
                    continue;
                }
            };
            if steps == Steps::default() && pool.moves.is_empty() {
                planned.reached = Some(pool.table.version);
                continue;
            }
            let plan = begin(map, pool, steps, &takes, degraded, &mut begun, &mut look.commands);
            if plan.waiting > 0 {
                look.next = look.next.min(now + WAIT_INTERVAL);
            }
            look.pools.insert(pool.id, plan);
        }
        look.commands.extend(replaced(map));
        look
    }

    /// Disks that are out for longer than the grace time; and those that hold nothing yet and do not answer: what comes and
    /// goes is not planned for.
    fn find_absent(
        &mut self,
        map: &ClusterMap,
        rooms: &BTreeMap<DiskId, Room>,
        now: Instant,
        look: &mut Look,
    ) {
        self.out.retain(|id, _| map.disks.get(id).is_some_and(|disk| disk.state == DiskState::Out));
        let mut used = BTreeSet::new();
        for pool in map.pools.values() {
            used.extend(pool.table.rows().flat_map(|(_, row)| row.iter().copied()));
            used.extend(pool.moves.iter().map(|(_, it)| it.to));
        }
        for disk in map.disks.values() {
            if disk.state == DiskState::Out {
                let due = *self.out.entry(disk.id).or_insert(now) + self.rebuild_after;
                if due <= now {
                    look.absent.insert(disk.id);
                } else {
                    look.next = look.next.min(due);
                }
            }
            if !used.contains(&disk.id) && !rooms.get(&disk.id).is_some_and(|room| room.answers) {
                look.absent.insert(disk.id);
                look.next = look.next.min(now + WAIT_INTERVAL);
            }
        }
    }
}

impl Planned {
    fn of(pool: &Pool, candidates: &Arc<Vec<Candidate>>) -> Self {
        let target = target(pool, candidates).map_err(|error| error.to_string());
        Self { candidates: Arc::clone(candidates), target, reached: None }
    }
}

/// Disks whose place others have taken: they are given up.
fn replaced(map: &ClusterMap) -> impl Iterator<Item = (Command, String)> + '_ {
    let replaced = |disk: &&Disk| disk.draining && disk.replaced_by.is_some();
    let mut used = BTreeSet::new();
    if map.disks.values().any(|disk| replaced(&disk)) {
        for pool in map.pools.values() {
            used.extend(pool.table.rows().flat_map(|(_, row)| row.iter().copied()));
            used.extend(pool.moves.iter().flat_map(|(_, it)| [it.from, it.to]));
        }
    }
    map.disks.values().filter(replaced).filter(move |disk| !used.contains(&disk.id)).map(|disk| {
        let why = format!("{} is given up: another disk has taken its place", disk.id);
        (Command::RemoveDisk { disk: disk.id }, why)
    })
}

/// Whether a copy does not count that should: then nothing moves only for evenness.
fn is_degraded(map: &ClusterMap) -> bool {
    map.behind.iter().any(|((pool, disk), behind)| {
        let arriving = map.pools.get(pool).map(|pool| arriving_at(pool, *disk)).unwrap_or_default();
        !behind.partitions.difference(&arriving).is_empty()
    })
}

/// Moves that are under way, by where they go, and what they will fill.
struct Begun<'a> {
    rooms: &'a BTreeMap<DiskId, Room>,
    /// Bytes of one copy on each disk, on average.
    copy_bytes: BTreeMap<DiskId, u64>,
    arriving: BTreeMap<DiskId, usize>,
    arriving_bytes: BTreeMap<DiskId, u64>,
}

impl<'a> Begun<'a> {
    fn of(map: &ClusterMap, rooms: &'a BTreeMap<DiskId, Room>) -> Self {
        let copy_bytes = copy_bytes(map, rooms);
        let mut begun =
            Self { rooms, copy_bytes, arriving: BTreeMap::new(), arriving_bytes: BTreeMap::new() };
        for (_, it) in map.pools.values().flat_map(|pool| pool.moves.iter()) {
            begun.add(it);
        }
        begun
    }

    fn add(&mut self, it: Move) {
        *self.arriving.entry(it.to).or_default() += 1;
        let bytes = self.copy_bytes.get(&it.from).copied().unwrap_or(0);
        let sum = self.arriving_bytes.entry(it.to).or_default();
        *sum = sum.saturating_add(bytes);
    }

    fn has_room(&self, it: Move) -> bool {
        let Some(room) = self.rooms.get(&it.to) else { return false };
        let bytes = self.copy_bytes.get(&it.from).copied().unwrap_or(0);
        let after = [room.used_bytes, self.arriving_bytes.get(&it.to).copied().unwrap_or(0), bytes];
        let after = after.into_iter().fold(0u64, u64::saturating_add);
        after <= room.capacity_bytes / 100 * FILL_MAX
    }

    fn answers(&self, disk: DiskId) -> bool {
        self.rooms.get(&disk).is_some_and(|room| room.answers)
    }

    fn to(&self, disk: DiskId) -> usize {
        self.arriving.get(&disk).copied().unwrap_or(0)
    }
}

/// Bytes of one copy of a partition on each disk, by what its node says it uses, evened out.
pub(super) fn copy_bytes(map: &ClusterMap, rooms: &BTreeMap<DiskId, Room>) -> BTreeMap<DiskId, u64> {
    let mut copies: BTreeMap<DiskId, u64> = BTreeMap::new();
    for (disk, held) in map.pools.values().flat_map(|pool| super::target::copies(&pool.table)) {
        *copies.entry(disk).or_default() += held;
    }
    let used = |disk: DiskId| rooms.get(&disk).map_or(0, |room| room.used_bytes);
    let known: Vec<u64> =
        copies.iter().map(|(disk, copies)| used(*disk) / copies).filter(|bytes| *bytes > 0).collect();
    let mean = known.iter().sum::<u64>() / u64::try_from(known.len().max(1)).unwrap_or(u64::MAX);
    // Of a disk that nobody has heard of since this member leads, the others are the measure.
    let bytes = |disk, copies| Some(used(disk) / copies).filter(|bytes| *bytes > 0).unwrap_or(mean);
    copies.into_iter().map(|(disk, copies)| (disk, bytes(disk, copies))).collect()
}

/// Begins what may begin, and gives up what leads elsewhere.
fn begin(
    map: &ClusterMap,
    pool: &Pool,
    steps: Steps,
    takes: &BTreeSet<DiskId>,
    degraded: bool,
    begun: &mut Begun<'_>,
    commands: &mut Vec<(Command, String)>,
) -> PoolPlan {
    let Steps { cancelled, mut due } = steps;
    let mut after = pool.clone();
    if !cancelled.is_empty() {
        let moves = Arc::make_mut(&mut after.moves);
        for (partition, to) in &cancelled {
            moves.remove(*partition, *to);
        }
        let why = format!("{} moves of pool {} are not needed any more", cancelled.len(), pool.name);
        commands.push((Command::CancelMoves { pool: pool.id, moves: cancelled }, why));
    }
    // Who has fewest copies comes first; else in order.
    let counted = |partition: Partition| {
        pool.table.row(partition).iter().filter(|disk| map.is_in_sync(pool.id, **disk, partition)).count()
    };
    due.sort_by_cached_key(|(partition, it)| (takes.contains(&it.from), counted(*partition)));

    let full: BTreeSet<DiskId> =
        due.iter().map(|(_, it)| it.to).filter(|to| begun.to(*to) > MOVES_PER_DISK_MAX / 2).collect();
    let mut added = Vec::new();
    let (mut evening, mut no_room) = (0usize, BTreeSet::new());
    for (partition, it) in &due {
        if degraded && takes.contains(&it.from) {
            evening += 1;
            continue;
        }
        let free = after.moves.len() < MOVES_PER_POOL_MAX
            && !full.contains(&it.to)
            && begun.to(it.to) < MOVES_PER_DISK_MAX
            && begun.answers(it.to);
        if !free {
            continue;
        }
        if !begun.has_room(*it) {
            no_room.insert(it.to);
            continue;
        }
        // What is in the way of another move waits until that is over.
        if check_move(map, &after, *partition, *it).is_ok() {
            Arc::make_mut(&mut after.moves).insert(*partition, *it);
            begun.add(*it);
            added.push((*partition, *it));
        }
    }
    let waiting = due.len() - added.len();
    let problem = if !no_room.is_empty() {
        let disks: Vec<String> = no_room.iter().map(ToString::to_string).collect();
        Some(format!("no room on {}", disks.join(", ")))
    } else {
        (evening > 0).then(|| format!("{evening} wait until nothing is degraded"))
    };
    if !added.is_empty() {
        let why = format!("{} moves of pool {} begin, {waiting} are to follow", added.len(), pool.name);
        commands.push((Command::AddMoves { pool: pool.id, moves: Arc::new(added) }, why));
    }
    PoolPlan { waiting, problem }
}

#[cfg(test)]
mod tests;

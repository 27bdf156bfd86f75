//! What a change of disks would move, before it is made: moves and bytes of each disk, and whether there is a way at all.

use std::collections::{BTreeMap, BTreeSet};

use lunette_placement::candidates_of;
use lunette_proto::ids::DiskId;
use lunette_proto::map::ClusterMap;
use thiserror::Error;

use super::Room;
use super::planner::copy_bytes;
use super::target::{steps, target};

/// What would move.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Preview {
    /// Moves that would begin, those under way not counted.
    pub moves: usize,
    /// What they would copy, about.
    pub bytes: u64,
    /// The disks that would be concerned.
    pub disks: BTreeMap<DiskId, DiskMoves>,
}

/// What would move from and to a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskMoves {
    /// Copies that would leave it.
    pub moves_out: usize,
    /// About so large.
    pub bytes_out: u64,
    /// Copies that would come to it.
    pub moves_in: usize,
    /// About so large.
    pub bytes_in: u64,
}

/// Why disks cannot be emptied.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DrainProblem {
    /// Without them, the failure-domain rule cannot be obeyed.
    #[error("without it pool {pool:?} has nowhere to put its copies: {why}")]
    NoTable {
        /// Which pool.
        pool: String,
        /// What placement says.
        why: String,
    },
    /// What they hold does not fit on the others.
    #[error("its copies do not fit on the others: {disk} would get {bytes} bytes and has {free_bytes} free")]
    NoRoom {
        /// The disk that would be too full.
        disk: DiskId,
        /// What it would get.
        bytes: u64,
        /// What it has.
        free_bytes: u64,
    },
}

/// What would move in a map that is as it would be then.
///
/// # Errors
/// Where copies cannot be put.
pub fn preview(
    map: &ClusterMap,
    absent: &BTreeSet<DiskId>,
    rooms: &BTreeMap<DiskId, Room>,
) -> Result<Preview, DrainProblem> {
    let sizes = copy_bytes(map, rooms);
    let candidates = candidates_of(map, absent);
    let mut all = Preview::default();
    for pool in map.pools.values() {
        let table = target(pool, &candidates)
            .map_err(|error| DrainProblem::NoTable { pool: pool.name.clone(), why: error.to_string() })?;
        for (_, it) in steps(map, pool, &table).due {
            let bytes = sizes.get(&it.from).copied().unwrap_or(0);
            all.moves += 1;
            all.bytes = all.bytes.saturating_add(bytes);
            let from = all.disks.entry(it.from).or_default();
            from.moves_out += 1;
            from.bytes_out = from.bytes_out.saturating_add(bytes);
            let to = all.disks.entry(it.to).or_default();
            to.moves_in += 1;
            to.bytes_in = to.bytes_in.saturating_add(bytes);
        }
    }
    for (disk, moves) in &all.disks {
        let room = rooms.get(disk).copied().unwrap_or_default();
        let free_bytes = room.capacity_bytes.saturating_sub(room.used_bytes);
        if moves.bytes_in.saturating_sub(moves.bytes_out) > free_bytes {
            return Err(DrainProblem::NoRoom { disk: *disk, bytes: moves.bytes_in, free_bytes });
        }
    }
    Ok(all)
}

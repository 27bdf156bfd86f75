//! Copies on their way to other disks, disks that are to be emptied, and disks and nodes that are given up.
//!
//! ```text
//!                     row a b c                        row a b d
//! AddMoves c -> d:    d's copy is behind ---CaughtUp---> d's copy counts, c is of the row no more
//!                        |
//!                        '--- CancelMoves: as if it had never been
//! ```
//!
//! A copy on its way is a copy that is behind, and comes to count as one that has returned does (`in_sync`). Until then the
//! row is as it was: who leaves it counts, or is behind, as before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lunette_proto::ids::{DiskId, NodeId, Partition, PoolId};
use lunette_proto::map::{Behind, ClusterMap, Disk, DiskState, Move, Partitions, Pool};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::limits::{LABEL_CHARS_MAX, MOVES_PER_COMMAND_MAX};
use super::pools::domain_of;
use super::{Change, Draft, NameKind, Rejection, Response};

/// Why a copy cannot be moved so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Error)]
pub enum MoveProblem {
    /// The pool has fewer partitions.
    #[error("there is no such partition")]
    Partition,
    /// Nobody can leave a row in which he is not.
    #[error("the first has no copy of it")]
    NotThere,
    /// A copy goes to one place.
    #[error("the first's copy is on its way already")]
    Leaving,
    /// A row has a disk once.
    #[error("the second has a copy of it, or gets one already")]
    Arriving,
    /// No copy can be made there.
    #[error("the second takes no copies: it is unknown, out, or being emptied")]
    Takes,
    /// Two copies would be in one failure domain (invariant 16).
    #[error("two copies would lie in one failure domain")]
    Domain,
}

impl Draft<'_> {
    /// Begins moves: all of them, or none.
    pub(super) fn add_moves(
        &mut self,
        id: PoolId,
        moves: &Arc<Vec<(Partition, Move)>>,
    ) -> Result<Response, Rejection> {
        let map = self.map;
        let mut pool = map.pools.get(&id).ok_or(Rejection::NoPool(id))?.clone();
        check_count(moves.len())?;
        let mut arriving: BTreeMap<DiskId, Partitions> = BTreeMap::new();
        for (partition, it) in moves.iter() {
            check_move(map, &pool, *partition, *it).map_err(|problem| Rejection::Move {
                partition: *partition,
                from: it.from,
                to: it.to,
                problem,
            })?;
            Arc::make_mut(&mut pool.moves).insert(*partition, *it);
            arriving.entry(it.to).or_default().insert(*partition);
        }
        if moves.is_empty() {
            return Ok(Response::Done);
        }
        self.put(Change::AddMoves(id, Arc::clone(moves)));
        let grown = self.epoch();
        for (disk, added) in arriving {
            // Owners keep what they have done for the others.
            let before = map.behind.get(&(id, disk));
            let since = before.map_or(grown, |before| before.since);
            let before = before.into_iter().flat_map(|before| before.partitions.iter());
            let partitions = before.chain(added.iter()).collect();
            self.put(Change::PutBehind(id, disk, Arc::new(Behind { partitions, since, grown })));
        }
        Ok(Response::Done)
    }

    /// Gives moves up, each named by where it goes. One that is over is given up already.
    pub(super) fn cancel_moves(
        &mut self,
        id: PoolId,
        moves: &[(Partition, DiskId)],
    ) -> Result<Response, Rejection> {
        let map = self.map;
        let pool = map.pools.get(&id).ok_or(Rejection::NoPool(id))?;
        check_count(moves.len())?;
        let mut gone = Vec::new();
        let mut left: BTreeMap<DiskId, Partitions> = BTreeMap::new();
        for (partition, to) in moves {
            if is_arriving(pool, *to, *partition) {
                gone.push((*partition, *to));
                left.entry(*to).or_default().insert(*partition);
            }
        }
        if gone.is_empty() {
            return Ok(Response::Done);
        }
        self.put(Change::RemoveMoves(id, Arc::new(gone)));
        for (disk, gone) in left {
            self.no_longer_behind(id, disk, &gone);
        }
        Ok(Response::Done)
    }

    /// Copies have come to count on `to`: they take the places of those that they replace (invariants 3 and 16).
    pub(super) fn arrive(&mut self, pool: &Pool, to: DiskId, arrived: Partitions) {
        let mut left: BTreeMap<DiskId, Partitions> = BTreeMap::new();
        for (partition, it) in
            pool.moves.iter().filter(|(partition, it)| it.to == to && arrived.contains(*partition))
        {
            assert!(pool.table.row(partition).contains(&it.from), "{it:?} leaves a row in which it is");
            left.entry(it.from).or_default().insert(partition);
        }
        self.put(Change::Moved(pool.id, to, Arc::new(arrived)));
        for (disk, gone) in left {
            if self.no_longer_behind(pool.id, disk, &gone) {
                self.settle(disk, pool.id);
            }
        }
    }

    /// Takes partitions out of those that are behind on a disk; whether one was.
    fn no_longer_behind(&mut self, pool: PoolId, disk: DiskId, gone: &Partitions) -> bool {
        let Some(behind) = self.map.behind.get(&(pool, disk)) else { return false };
        if behind.partitions.intersection(gone).is_empty() {
            return false;
        }
        let partitions = behind.partitions.difference(gone);
        self.put(if partitions.is_empty() {
            Change::RemoveBehind(pool, disk)
        } else {
            Change::PutBehind(pool, disk, Arc::new(Behind { partitions, ..**behind }))
        });
        true
    }

    /// Empties disks, or lets them be.
    pub(super) fn drain_disks(&mut self, disks: &[DiskId], draining: bool) -> Result<Response, Rejection> {
        for id in disks {
            let disk = self.known(*id)?;
            let replaced_by = disk.replaced_by.filter(|_| draining);
            self.put(Change::PutDisk(Disk { draining, replaced_by, ..disk.clone() }));
        }
        Ok(Response::Done)
    }

    /// Gives a disk up that holds nothing that counts, or might.
    pub(super) fn remove_disk(&mut self, id: DiskId) -> Result<Response, Rejection> {
        let disk = self.known(id)?;
        let map = self.map;
        for pool in map.pools.values() {
            let rows = pool.table.rows().filter(|(_, row)| row.contains(&id)).count();
            let moves = pool.moves.iter().filter(|(_, it)| it.from == id || it.to == id).count();
            if rows + moves > 0 {
                return Err(Rejection::DiskHolds {
                    disk: id,
                    pool: pool.name.clone(),
                    rows,
                    partitions: pool.table.partitions(),
                    moves,
                });
            }
        }
        if !disk.draining && disk.state != DiskState::Out {
            return Err(Rejection::NotDrained(id));
        }
        assert!(!map.behind.keys().any(|(_, disk)| *disk == id), "{id} holds nothing that could be behind");
        self.put(Change::RemoveDisk(id));
        self.put(Change::RemoveAdded(id));
        Ok(Response::Done)
    }

    /// Gives a node up with all its disks.
    pub(super) fn remove_node(&mut self, name: &str) -> Result<Response, Rejection> {
        let map = self.map;
        let node = map.nodes.values().find(|node| node.name == name);
        let node = node.ok_or_else(|| Rejection::NotFound {
            kind: NameKind::Node,
            name: name.chars().take(LABEL_CHARS_MAX).collect(),
        })?;
        for disk in map.disks.values().filter(|disk| disk.node == node.id) {
            self.remove_disk(disk.id)?;
        }
        for wish in map.wishes().filter(|wish| wish.node == node.id) {
            self.put(Change::RemoveAdded(wish.id));
        }
        self.put(Change::RemoveNode(node.id));
        Ok(Response::Done)
    }
}

fn check_count(moves: usize) -> Result<(), Rejection> {
    if moves > MOVES_PER_COMMAND_MAX {
        return Err(Rejection::TooMany { what: "moves at a time".into(), max: MOVES_PER_COMMAND_MAX });
    }
    Ok(())
}

/// Whether a copy may be moved so, beside those that are on their way. Whichever of them arrives first, and whichever are given
/// up, no row has two copies in one failure domain (invariant 16).
pub fn check_move(
    map: &ClusterMap,
    pool: &Pool,
    partition: Partition,
    Move { from, to }: Move,
) -> Result<(), MoveProblem> {
    if partition.0 >= pool.table.partitions() {
        return Err(MoveProblem::Partition);
    }
    let (row, moves) = (pool.table.row(partition), pool.moves.of(partition));
    if !row.contains(&from) {
        return Err(MoveProblem::NotThere);
    }
    if moves.iter().any(|other| other.from == from) {
        return Err(MoveProblem::Leaving);
    }
    if row.contains(&to) || moves.iter().any(|other| other.to == to) {
        return Err(MoveProblem::Arriving);
    }
    let takes = map.disks.get(&to).is_some_and(|disk| disk.state != DiskState::Out && !disk.draining);
    if !takes {
        return Err(MoveProblem::Takes);
    }
    if !keeps_apart(map, pool, partition, Move { from, to }) {
        return Err(MoveProblem::Domain);
    }
    Ok(())
}

/// Whether a move brings no two copies into one failure domain, whatever becomes of the others.
fn keeps_apart(map: &ClusterMap, pool: &Pool, partition: Partition, Move { from, to }: Move) -> bool {
    let domain = |disk| domain_of(map, pool.failure_domain, disk);
    let others = pool.table.row(partition).iter().copied().filter(|disk| *disk != from);
    let arriving = pool.moves.of(partition).iter().map(|other| other.to).filter(|other| *other != to);
    let own = domain(to);
    own.is_some() && others.chain(arriving).all(|other| domain(other) != own)
}

/// Whether all moves of a pool keep the failure domains apart, after its nodes' places have changed.
pub(super) fn moves_keep_domain_rule(map: &ClusterMap, pool: &Pool) -> bool {
    pool.moves.iter().all(|(partition, it)| keeps_apart(map, pool, partition, it))
}

/// Whether a copy of a partition is on its way to a disk.
#[must_use]
pub fn is_arriving(pool: &Pool, disk: DiskId, partition: Partition) -> bool {
    pool.moves.of(partition).iter().any(|it| it.to == disk)
}

/// The partitions of which a copy is on its way to a disk.
#[must_use]
pub fn arriving_at(pool: &Pool, disk: DiskId) -> Partitions {
    pool.moves.iter().filter(|(_, it)| it.to == disk).map(|(partition, _)| partition).collect()
}

/// Whether a pool's moves can be: each leaves a row for a disk that is not of it and has the copy as behind, and no two share
/// an end. [`check_move`] says more of those that are to begin.
pub(super) fn are_sound(map: &ClusterMap, pool: &Pool) -> bool {
    let mut ends = BTreeSet::new();
    pool.moves.iter().all(|(partition, it)| {
        partition.0 < pool.table.partitions() && {
            let row = pool.table.row(partition);
            let behind = map.behind.get(&(pool.id, it.to));
            row.contains(&it.from)
                && !row.contains(&it.to)
                && map.disks.contains_key(&it.to)
                && behind.is_some_and(|behind| behind.partitions.contains(partition))
                && ends.insert((partition, it.from))
                && ends.insert((partition, it.to))
        }
    })
}

/// The disks of a node.
pub fn disks_of(map: &ClusterMap, node: NodeId) -> impl Iterator<Item = &Disk> {
    map.disks.values().filter(move |disk| disk.node == node)
}

#[cfg(test)]
mod tests;

//! A plan: the next table of a pool, what has to move for it, and the load it leaves.
//!
//! ```text
//! candidates --topology, quota--> quotas --flow--> rows --order--> table, moves, load
//! ```
//!
//! Planning changes nothing: a plan can be shown first and applied, or dropped, later.

mod flow;
mod load;
mod order;
mod pass;
mod quota;
mod random;
mod search;
mod topology;

use std::collections::BTreeSet;

use lunette_proto::ids::{DiskId, Partition};
use lunette_proto::limits::PARTITIONS_MAX;
use lunette_proto::map::{ClusterMap, FailureDomain, Pool, Table};

use flow::Flow;
pub use load::{DiskLoad, Load};
use topology::{NONE, Topology};

/// What to plan for.
#[derive(Clone, Debug)]
pub struct PlanRequest<'a> {
    /// Copies of each partition.
    pub width: u8,
    /// Partitions of the pool.
    pub partitions: u32,
    /// What two copies of a partition never share.
    pub failure_domain: FailureDomain,
    /// Disks that may hold copies, in any order. One without weight is to be emptied.
    pub candidates: Vec<Candidate>,
    /// The table in force; `None`, or one without rows, if there is none yet.
    pub previous: Option<&'a Table>,
}

impl<'a> PlanRequest<'a> {
    /// The plan that a pool is due by the map it is in, with nothing on disks that are `absent`.
    #[must_use]
    pub fn of(map: &ClusterMap, pool: &'a Pool, absent: &BTreeSet<DiskId>) -> Self {
        Self {
            width: pool.redundancy.width(),
            partitions: pool.table.partitions(),
            failure_domain: pool.failure_domain,
            candidates: candidates_of(map, absent),
            previous: Some(&pool.table),
        }
    }
}

/// A disk that may hold copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Which.
    pub disk: DiskId,
    /// Its part of the load, in any unit that is common to all.
    pub weight: u32,
    /// The machine it is in.
    pub host: String,
    /// The rack that is in. Labels are compared alone: give each rack of the cluster its own.
    pub rack: String,
    /// The zone that is in.
    pub zone: String,
}

/// The disks that may hold copies: all but the absent ones; those that are to be emptied have no weight.
///
/// Every pool lies on all disks of the cluster. A disk of a node that the map does not hold can
/// be reached by nobody and is no candidate. Who is absent is a matter of time, which a map does not know: a disk that has left
/// a moment ago is no reason to move anything.
#[must_use]
pub fn candidates_of(map: &ClusterMap, absent: &BTreeSet<DiskId>) -> Vec<Candidate> {
    let present = map.disks.values().filter(|disk| !absent.contains(&disk.id));
    present
        .filter_map(|disk| {
            let node = map.nodes.get(&disk.node)?;
            Some(Candidate {
                disk: disk.id,
                weight: if disk.draining { 0 } else { disk.weight },
                host: node.host.clone(),
                rack: node.rack.clone(),
                zone: node.zone.clone(),
            })
        })
        .collect()
}

/// A table that could be put in force.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The table; its version is one more than the previous one's.
    pub table: Table,
    /// What has to be copied, in order of partition; nothing for a first table.
    pub moves: Vec<Move>,
    /// What the table asks of each disk.
    pub load: Load,
}

impl Plan {
    /// The rows are those of the previous table: there is nothing to apply.
    #[must_use]
    pub fn keeps(&self, previous: &Table) -> bool {
        self.table.partitions() == previous.partitions()
            && self.table.rows().zip(previous.rows()).all(|(new, old)| new == old)
    }
}

/// A copy of a partition that changes its disk.
///
/// Any subset of a plan's moves, carried out in any order, leaves rows that obey the
/// failure-domain rule, if the previous table did. (Disks that are no candidates any more count for
/// nothing: nobody reads them.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Of which partition.
    pub partition: Partition,
    /// The disk that leaves the row.
    pub from: DiskId,
    /// The disk that enters it.
    pub to: DiskId,
}

/// Why there is no table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// No copies were asked for.
    #[error("a pool keeps at least one copy")]
    NoCopies,
    /// The number of partitions is out of range.
    #[error("a pool has 1 to {max} partitions, not {partitions}", max = PARTITIONS_MAX)]
    Partitions {
        /// Asked for.
        partitions: u32,
    },
    /// A disk is named twice.
    #[error("{disk} is named twice")]
    DuplicateDisk {
        /// Which.
        disk: DiskId,
    },
    /// The rule cannot be obeyed.
    #[error("{}", too_few(*copies, *domain, *found))]
    TooFewDomains {
        /// Copies asked for.
        copies: u8,
        /// What two of them never share.
        domain: FailureDomain,
        /// Domains with a disk that has a weight.
        found: usize,
    },
    /// The previous table has rows of another width.
    #[error("the pool has {previous} copies of each partition, a plan cannot make them {requested}")]
    WidthChanged {
        /// Of the previous table.
        previous: u8,
        /// Asked for.
        requested: u8,
    },
    /// The previous table has another number of rows.
    #[error(
        "the pool has {previous} partitions, fixed when it was created; a plan cannot make them {requested}"
    )]
    PartitionsChanged {
        /// Of the previous table.
        previous: u32,
        /// Asked for.
        requested: u32,
    },
    /// The previous table has the last version there is.
    #[error("the pool's table has version {}, there is none after it", u64::MAX)]
    LastVersion,
}

fn too_few(copies: u8, domain: FailureDomain, found: usize) -> String {
    let noun = match domain {
        FailureDomain::Disk => "disk",
        FailureDomain::Host => "host",
        FailureDomain::Rack => "rack",
        FailureDomain::Zone => "zone",
    };
    let (copy, needs, plural) = if copies == 1 { ("copy", "needs", "") } else { ("copies", "need", "s") };
    let are = if found == 1 { "is" } else { "are" };
    format!("{copies} {copy} {needs} {copies} {noun}{plural}, there {are} {found}")
}

/// Computes the next table of a pool. See the crate's documentation for what it is.
///
/// # Errors
/// If the request contradicts itself or the previous table, or the failure-domain rule cannot be obeyed.
pub fn plan(request: &PlanRequest<'_>) -> Result<Plan, PlanError> {
    let previous = check(request)?;
    let topology = Topology::new(&request.candidates, request.failure_domain)?;
    if topology.weighted_domains() < usize::from(request.width) {
        return Err(PlanError::TooFewDomains {
            copies: request.width,
            domain: request.failure_domain,
            found: topology.weighted_domains(),
        });
    }
    let version = request.previous.map_or(Some(1), |table| table.version.checked_add(1));
    let version = version.ok_or(PlanError::LastVersion)?;

    let width = usize::from(request.width);
    let partitions = request.partitions as usize;
    let before = Before::new(&topology, previous, width, partitions);
    let shares = quota::shares(&topology, request.width, request.partitions);
    let held = copies_by_disk(&topology, &before.origins);
    let quotas = quota::quotas(&topology, &shares, &held, (partitions * width) as u64);

    let mut flow = Flow::new(&topology, width, partitions, &before.origins, &quotas);
    flow.keep();
    flow.complete();
    let mut rows = flow.into_cells();
    let changes = before.align(&topology, &mut rows, width);
    let first = order::first_disks(&rows, width, topology.disks(), &before.first(width, partitions));
    for (row, &disk) in rows.chunks_exact_mut(width).zip(&first) {
        let position = row.iter().position(|&cell| cell == disk).expect("the first disk is one of the row");
        row.swap(0, position);
    }

    let copies = copies_by_disk(&topology, &rows);
    assert_eq!(copies, quotas, "the flow meets every quota");
    let firsts = copies_by_disk(&topology, &first);
    let disks = (0_u32..).zip(&copies).map(|(disk, &copies)| DiskLoad {
        disk: topology.id(disk),
        weight: topology.weight(disk),
        copies_before: held[disk as usize],
        copies,
        first: firsts[disk as usize],
        fair: shares[topology.domain(disk) as usize].approximate(topology.weight(disk)),
    });
    let load = Load { disks: disks.collect() };

    let moves = changes
        .into_iter()
        .filter_map(|Change { partition, position, to }| {
            let from = previous?.row(Partition(partition))[position];
            Some(Move { partition: Partition(partition), from, to: topology.id(to) })
        })
        .collect();
    let cells = rows.into_iter().map(|disk| topology.id(disk)).collect();
    Ok(Plan { table: Table::new(version, request.width, cells), moves, load })
}

/// Gives the previous table back, if it has rows.
fn check<'a>(request: &PlanRequest<'a>) -> Result<Option<&'a Table>, PlanError> {
    let (width, partitions) = (request.width, request.partitions);
    if width == 0 {
        return Err(PlanError::NoCopies);
    }
    if !(1..=PARTITIONS_MAX).contains(&partitions) {
        return Err(PlanError::Partitions { partitions });
    }
    // The width comes first: a table that was not built by `Table::new` may have none, and no rows to count.
    let Some(table) = request.previous else { return Ok(None) };
    if table.width() != width {
        return Err(PlanError::WidthChanged { previous: table.width(), requested: width });
    }
    match table.partitions() {
        0 => Ok(None),
        previous if previous == partitions => Ok(Some(table)),
        previous => Err(PlanError::PartitionsChanged { previous, requested: partitions }),
    }
}

fn copies_by_disk(topology: &Topology, cells: &[u32]) -> Vec<u32> {
    let mut copies = vec![0; topology.disks()];
    for &disk in cells {
        if disk != NONE {
            copies[disk as usize] += 1;
        }
    }
    copies
}

/// The previous rows, in numbers of the topology.
struct Before {
    /// `NONE` where there was no row, the disk is no candidate now, or it is in the row already.
    origins: Vec<u32>,
}

/// A cell of a row gets another disk.
struct Change {
    partition: u32,
    position: usize,
    to: u32,
}

impl Before {
    fn new(topology: &Topology, previous: Option<&Table>, width: usize, partitions: usize) -> Self {
        let mut origins = vec![NONE; partitions * width];
        let rows = previous.into_iter().flat_map(Table::rows);
        for ((_, row), origins) in rows.zip(origins.chunks_exact_mut(width)) {
            for (position, &disk) in row.iter().enumerate() {
                let number = topology.number(disk);
                if !origins[..position].contains(&number) {
                    origins[position] = number;
                }
            }
        }
        Self { origins }
    }

    /// First disk of each previous row.
    fn first(&self, width: usize, partitions: usize) -> Vec<u32> {
        let first: Vec<u32> = self.origins.chunks_exact(width).map(|row| row[0]).collect();
        assert_eq!(first.len(), partitions, "one row each");
        first
    }

    /// Puts disks that stay where they were, and those that enter in place of one that leaves: of
    /// the one in the same domain, if there is one. (Were it another's, both domains could be
    /// doubled for as long as only one of two moves is done.)
    fn align(&self, topology: &Topology, rows: &mut [u32], width: usize) -> Vec<Change> {
        let mut changes = Vec::new();
        for (partition, (row, before)) in
            (0_u32..).zip(rows.chunks_exact_mut(width).zip(self.origins.chunks_exact(width)))
        {
            let mut entering: Vec<u32> = row.iter().copied().filter(|disk| !before.contains(disk)).collect();
            let mut aligned = vec![NONE; width];
            for (cell, &disk) in aligned.iter_mut().zip(before) {
                if row.contains(&disk) {
                    *cell = disk;
                }
            }
            for same_domain in [true, false] {
                for position in 0..width {
                    let left = before[position];
                    let fits = |&disk: &u32| {
                        !same_domain || left != NONE && topology.domain(disk) == topology.domain(left)
                    };
                    if aligned[position] == NONE
                        && let Some(index) = entering.iter().position(fits)
                    {
                        let to = entering.remove(index);
                        aligned[position] = to;
                        changes.push(Change { partition, position, to });
                    }
                }
            }
            row.copy_from_slice(&aligned);
        }
        changes
    }
}

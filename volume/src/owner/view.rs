//! What an owner needs of the cluster map.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lunette_proto::ids::{DiskId, Epoch, ExtentId, Partition};
use lunette_proto::map::{Behind, DiskState, Pool, Redundancy, Table};
use smallvec::SmallVec;

/// A few disks, in the order of the table.
pub type Members = SmallVec<[DiskId; 4]>;

/// The ring: where an extent belongs, of that many partitions.
pub type PartitionOf = fn(ExtentId, u32) -> Partition;

/// One map, as one volume sees it.
#[derive(Clone, Debug)]
pub struct View {
    /// Of the map; every message bears it.
    pub epoch: Epoch,
    /// Size of the volume.
    pub size_bytes: u64,
    /// Whether the volume is being deleted.
    pub deleting: bool,
    /// Its pool; volumes of a pool share it.
    pub pool: Arc<PoolView>,
}

/// A pool's table with how its disks stand.
#[derive(Clone, Debug)]
pub struct PoolView {
    table: Arc<Table>,
    redundancy: Redundancy,
    disks: BTreeMap<DiskId, Standing>,
    /// Copies that do not count, of disks that have not left.
    behind: BTreeMap<DiskId, Arc<Behind>>,
    /// Disks with some copy that counts.
    counted: BTreeSet<DiskId>,
    partition_of: PartitionOf,
    starved: bool,
}

/// How a disk of the pool stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Whether its copies count.
    pub state: DiskState,
    /// Whether it is reached without a network.
    pub local: bool,
}

impl PoolView {
    /// A view of `pool`; `standing` knows its disks, `behind` which copies of them do not count. A disk that the map does
    /// not name is out.
    #[must_use]
    pub fn new(
        pool: &Pool,
        partition_of: PartitionOf,
        standing: impl Fn(DiskId) -> Option<Standing>,
        behind: impl Fn(DiskId) -> Option<Arc<Behind>>,
    ) -> Self {
        let mut disks = BTreeMap::new();
        for (_, row) in pool.table.rows() {
            for disk in row {
                disks.entry(*disk).or_insert_with(|| {
                    standing(*disk).unwrap_or(Standing { state: DiskState::Out, local: false })
                });
            }
        }
        let there = disks.iter().filter(|(_, standing)| standing.state != DiskState::Out);
        let behind = there.filter_map(|(disk, _)| Some((*disk, behind(*disk)?))).collect();
        let mut view = Self {
            table: Arc::clone(&pool.table),
            redundancy: pool.redundancy,
            disks,
            behind,
            counted: BTreeSet::new(),
            partition_of,
            starved: false,
        };
        let (mut counted, mut starved) = (BTreeSet::new(), false);
        for (partition, row) in view.table.rows() {
            let members = view.in_sync_of(partition, row);
            starved |= members.len() < view.min_size();
            counted.extend(members);
        }
        (view.counted, view.starved) = (counted, starved);
        view
    }

    /// Where an extent belongs.
    #[must_use]
    pub fn partition(&self, extent: ExtentId) -> Partition {
        (self.partition_of)(extent, self.table.partitions())
    }

    /// The disks of an extent's row, those whose copies do not count included.
    #[must_use]
    pub fn row(&self, partition: Partition) -> &[DiskId] {
        self.table.row(partition)
    }

    /// The members of an extent whose copies count.
    #[must_use]
    pub fn in_sync(&self, extent: ExtentId) -> Members {
        let partition = self.partition(extent);
        self.in_sync_of(partition, self.table.row(partition))
    }

    fn in_sync_of(&self, partition: Partition, row: &[DiskId]) -> Members {
        row.iter().copied().filter(|disk| self.counts(*disk, partition)).collect()
    }

    /// Whether a disk's copy of a partition of its row counts.
    #[must_use]
    pub fn counts(&self, disk: DiskId, partition: Partition) -> bool {
        self.disks.get(&disk).is_some_and(|standing| standing.state != DiskState::Out)
            && (self.behind.is_empty()
                || !self.behind.get(&disk).is_some_and(|behind| behind.partitions.contains(partition)))
    }

    /// Whether some copy on a disk counts.
    #[must_use]
    pub fn is_counted(&self, disk: DiskId) -> bool {
        self.counted.contains(&disk)
    }

    /// Disks of which some copy counts.
    pub fn counted(&self) -> impl Iterator<Item = DiskId> {
        self.counted.iter().copied()
    }

    /// Copies that are to be brought up to date: of disks that have not left.
    pub fn behind(&self) -> impl Iterator<Item = (DiskId, &Arc<Behind>)> {
        self.behind.iter().map(|(disk, behind)| (*disk, behind))
    }

    /// Whether every copy on a disk counts.
    #[must_use]
    pub fn is_complete(&self, disk: DiskId) -> bool {
        self.is_counted(disk) && !self.behind.contains_key(&disk)
    }

    /// Whether a disk is reached without a network.
    #[must_use]
    pub fn is_local(&self, disk: DiskId) -> bool {
        self.disks.get(&disk).is_some_and(|standing| standing.local)
    }

    /// Disks of the table, with how they stand.
    pub fn disks(&self) -> impl Iterator<Item = (DiskId, Standing)> {
        self.disks.iter().map(|(disk, standing)| (*disk, *standing))
    }

    /// Members that a write needs. Erasure coded pools will answer with k and more.
    #[must_use]
    pub fn min_size(&self) -> usize {
        usize::from(self.redundancy.min_size()).max(1)
    }

    /// Whether some partition has fewer members in sync than a write needs.
    #[must_use]
    pub fn is_starved(&self) -> bool {
        self.starved
    }
}

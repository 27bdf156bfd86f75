//! What an owner needs of the cluster map.

use std::collections::BTreeMap;
use std::sync::Arc;

use lunette_proto::ids::{DiskId, Epoch, ExtentId, Partition};
use lunette_proto::map::{DiskState, Pool, Redundancy, Table};
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

/// A pool's table with the states of its disks.
#[derive(Clone, Debug)]
pub struct PoolView {
    table: Arc<Table>,
    redundancy: Redundancy,
    disks: BTreeMap<DiskId, Standing>,
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
    /// A view of `pool`; `standing` knows its disks. A disk that the map does not name is out.
    #[must_use]
    pub fn new(
        pool: &Pool,
        partition_of: PartitionOf,
        standing: impl Fn(DiskId) -> Option<Standing>,
    ) -> Self {
        let mut disks = BTreeMap::new();
        for (_, row) in pool.table.rows() {
            for disk in row {
                disks.entry(*disk).or_insert_with(|| {
                    standing(*disk).unwrap_or(Standing { state: DiskState::Out, local: false })
                });
            }
        }
        let mut view = Self {
            table: Arc::clone(&pool.table),
            redundancy: pool.redundancy,
            disks,
            partition_of,
            starved: false,
        };
        view.starved = pool.table.rows().any(|(_, row)| view.in_sync_of(row).len() < view.min_size());
        view
    }

    /// The members of an extent whose copies count.
    #[must_use]
    pub fn in_sync(&self, extent: ExtentId) -> Members {
        self.in_sync_of(self.table.row((self.partition_of)(extent, self.table.partitions())))
    }

    fn in_sync_of(&self, row: &[DiskId]) -> Members {
        row.iter().copied().filter(|disk| self.is_in_sync(*disk)).collect()
    }

    /// Whether a disk's copies count.
    #[must_use]
    pub fn is_in_sync(&self, disk: DiskId) -> bool {
        self.disks.get(&disk).is_some_and(|standing| standing.state == DiskState::InSync)
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

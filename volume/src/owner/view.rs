//! What an owner needs of the cluster map.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lunette_proto::ids::{DiskId, Epoch, ExtentId, Partition};
use lunette_proto::map::{Behind, DiskState, Moves, Pool, Redundancy, Table};
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
    moves: Arc<Moves>,
    redundancy: Redundancy,
    disks: BTreeMap<DiskId, Standing>,
    /// Copies that do not count, of disks that have not left.
    behind: BTreeMap<DiskId, Arc<Behind>>,
    /// Disks with some copy that counts.
    counted: BTreeSet<DiskId>,
    /// Disks that are complete wherever they are members.
    complete: BTreeSet<DiskId>,
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
    /// A view of `pool`; `standing` has the disks of the cluster, `behind` knows which copies of them do not count. A disk of
    /// the table that the map does not name is out.
    #[must_use]
    pub fn new(
        pool: &Pool,
        partition_of: PartitionOf,
        standing: &BTreeMap<DiskId, Standing>,
        behind: impl Fn(DiskId) -> Option<Arc<Behind>>,
    ) -> Self {
        let mut disks = standing.clone();
        for disk in pool.table.rows().flat_map(|(_, row)| row) {
            disks.entry(*disk).or_insert(Standing { state: DiskState::Out, local: false });
        }
        let there = disks.iter().filter(|(_, standing)| standing.state != DiskState::Out);
        let behind = there.filter_map(|(disk, _)| Some((*disk, behind(*disk)?))).collect();
        let mut view = Self {
            table: Arc::clone(&pool.table),
            moves: Arc::clone(&pool.moves),
            redundancy: pool.redundancy,
            disks,
            behind,
            counted: BTreeSet::new(),
            complete: BTreeSet::new(),
            partition_of,
            starved: false,
        };
        let (mut counted, mut incomplete, mut starved) = (BTreeSet::new(), BTreeSet::new(), false);
        for (partition, row) in view.table.rows() {
            let members = view.in_sync_of(partition, row);
            starved |= members.len() < view.min_size();
            incomplete.extend(row.iter().filter(|disk| !members.contains(disk)));
            counted.extend(members);
        }
        view.complete = counted.difference(&incomplete).copied().collect();
        (view.counted, view.starved) = (counted, starved);
        view
    }

    /// Where an extent belongs.
    #[must_use]
    pub fn partition(&self, extent: ExtentId) -> Partition {
        (self.partition_of)(extent, self.table.partitions())
    }

    /// The disks of a partition's row, those whose copies do not count included, and those that copies are on their way to.
    pub fn holders(&self, partition: Partition) -> impl Iterator<Item = DiskId> + '_ {
        let arriving = self.moves.of(partition).iter().map(|it| it.to);
        self.table.row(partition).iter().copied().chain(arriving)
    }

    /// Whether a copy of a partition is, or is to be, on a disk.
    #[must_use]
    pub fn is_held(&self, disk: DiskId, partition: Partition) -> bool {
        self.holders(partition).any(|it| it == disk)
    }

    /// Whether a disk is of a partition's row.
    #[must_use]
    pub fn is_of_row(&self, disk: DiskId, partition: Partition) -> bool {
        self.table.row(partition).contains(&disk)
    }

    /// Partitions that have no copy on a disk any more, by disk, since an earlier view.
    #[must_use]
    pub fn left_since(&self, earlier: &Self) -> BTreeSet<DiskId> {
        let same = Arc::ptr_eq(&self.table, &earlier.table) || self.table.version == earlier.table.version;
        if same && (Arc::ptr_eq(&self.moves, &earlier.moves) || self.moves == earlier.moves) {
            return BTreeSet::new();
        }
        let partitions = (0..self.table.partitions().min(earlier.table.partitions())).map(Partition);
        partitions
            .flat_map(|partition| {
                earlier.holders(partition).filter(move |disk| !self.is_held(*disk, partition))
            })
            .collect()
    }

    /// Whether copies have ever been moved, or are on their way.
    #[must_use]
    pub fn has_moved(&self) -> bool {
        self.table.version > 1 || !self.moves.is_empty()
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

    /// Whether a disk's copy of a partition counts. The disk is one of [`holders`](Self::holders).
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

    /// Whether every copy that a disk is a member with counts, and it has one.
    #[must_use]
    pub fn is_complete(&self, disk: DiskId) -> bool {
        self.complete.contains(&disk)
    }

    /// Which copies of a disk are to be brought up to date.
    #[must_use]
    pub fn behind_of(&self, disk: DiskId) -> Option<&Behind> {
        self.behind.get(&disk).map(Arc::as_ref)
    }

    /// How a disk stands; one that the map does not name is out.
    #[must_use]
    pub fn standing(&self, disk: DiskId) -> Standing {
        self.disks.get(&disk).copied().unwrap_or(Standing { state: DiskState::Out, local: false })
    }

    /// Whether a disk is reached without a network.
    #[must_use]
    pub fn is_local(&self, disk: DiskId) -> bool {
        self.disks.get(&disk).is_some_and(|standing| standing.local)
    }

    /// The disks of the cluster, all of which may have data of any pool, with how they stand.
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

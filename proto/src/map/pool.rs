//! A pool: how many copies, over which failure domain, and the table of its ring.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::ids::{DiskId, Epoch, Partition, PoolId};
use crate::limits::PARTITIONS_MAX;

/// A redundancy policy over a set of disks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Its id.
    pub id: PoolId,
    /// Its name, unique.
    pub name: String,
    /// How data survives.
    pub redundancy: Redundancy,
    /// What two copies of one extent never share.
    pub failure_domain: FailureDomain,
    /// Partition -> disks. Large, so maps share it.
    pub table: Arc<Table>,
    /// Copies that are on their way to other disks.
    pub moves: Arc<Moves>,
}

/// How a pool's data survives the loss of disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Redundancy {
    /// Whole copies.
    Replicated {
        /// Copies, 1 to [`REPLICAS_MAX`](crate::limits::REPLICAS_MAX).
        replicas: u8,
        /// Copies that must be in sync for a write to be acked.
        min_size: u8,
    },
}

impl Redundancy {
    /// Replicas with the usual smallest in-sync set: a majority (1 of 1, 1 of 2, 2 of 3, 2 of 4, 3 of 5).
    #[must_use]
    pub fn replicated(replicas: u8) -> Self {
        Self::Replicated { replicas, min_size: replicas.div_ceil(2).max(1) }
    }

    /// Disks that a partition lies on.
    #[must_use]
    pub fn width(self) -> u8 {
        match self {
            Self::Replicated { replicas, .. } => replicas,
        }
    }

    /// Members that must be in sync for a write to be acked.
    #[must_use]
    pub fn min_size(self) -> u8 {
        match self {
            Self::Replicated { min_size, .. } => min_size,
        }
    }
}

/// What two copies of one extent never share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum FailureDomain {
    /// A disk.
    Disk,
    /// A machine.
    Host,
    /// A rack.
    Rack,
    /// A room, a power feed, a data centre.
    Zone,
}

/// Partition -> ordered disks, a rectangle of `partitions` rows and `width` columns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Cells")]
pub struct Table {
    /// Rises by one with every change, and when a move is given up: whatever is above 1 says that disks may have data which
    /// is not theirs.
    pub version: u64,
    width: u8,
    cells: Vec<DiskId>,
}

impl Table {
    /// A table from its rows laid end to end.
    ///
    /// # Panics
    /// If `width` is 0 or does not divide the number of cells.
    #[must_use]
    pub fn new(version: u64, width: u8, cells: Vec<DiskId>) -> Self {
        assert!(width > 0, "a partition lies on at least one disk");
        assert!(cells.len().is_multiple_of(usize::from(width)), "whole rows only");
        Self { version, width, cells }
    }

    /// Rows.
    #[must_use]
    pub fn partitions(&self) -> u32 {
        u32::try_from(self.cells.len() / usize::from(self.width)).expect("bounded by PARTITIONS_MAX")
    }

    /// Columns: copies (or shards) of each extent.
    #[must_use]
    pub fn width(&self) -> u8 {
        self.width
    }

    /// The disks of a partition, in order.
    ///
    /// # Panics
    /// If the partition is not one of this table's.
    #[must_use]
    pub fn row(&self, partition: Partition) -> &[DiskId] {
        let width = usize::from(self.width);
        let start = partition.0 as usize * width;
        &self.cells[start..start + width]
    }

    /// Puts one disk of a row in another's place; whether it was there.
    ///
    /// # Panics
    /// If the partition is not one of this table's.
    pub fn replace(&mut self, partition: Partition, Move { from, to }: Move) -> bool {
        let width = usize::from(self.width);
        let start = partition.0 as usize * width;
        let place = self.cells[start..start + width].iter_mut().find(|disk| **disk == from);
        let is_there = place.is_some();
        if let Some(place) = place {
            *place = to;
        }
        is_there
    }

    /// All rows, in order of partition.
    pub fn rows(&self) -> impl Iterator<Item = (Partition, &[DiskId])> {
        self.cells
            .chunks_exact(usize::from(self.width))
            .enumerate()
            .map(|(index, row)| (Partition(u32::try_from(index).expect("bounded by PARTITIONS_MAX")), row))
    }
}

/// A copy of a partition that is to change its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Move {
    /// Who has it until then, and counts as it stands: a disk of the partition's row.
    pub from: DiskId,
    /// Who is brought up to date, and takes the other's place in the row in the moment in which its copy counts: a disk that
    /// is not of the row.
    pub to: DiskId,
}

/// Copies of a pool's partitions on their way to other disks. Each of the copies that are made is behind
/// ([`ClusterMap::behind`](super::ClusterMap::behind)) until the move is over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moves(BTreeMap<Partition, Vec<Move>>);

impl Moves {
    /// Those of a partition, in no order that means anything.
    #[must_use]
    pub fn of(&self, partition: Partition) -> &[Move] {
        self.0.get(&partition).map_or(&[], Vec::as_slice)
    }

    /// All of them, in order of partition.
    pub fn iter(&self) -> impl Iterator<Item = (Partition, Move)> {
        self.0.iter().flat_map(|(partition, moves)| moves.iter().map(|it| (*partition, *it)))
    }

    /// Adds one; whether it was new.
    pub fn insert(&mut self, partition: Partition, added: Move) -> bool {
        let moves = self.0.entry(partition).or_default();
        let is_new = !moves.contains(&added);
        if is_new {
            moves.push(added);
        }
        is_new
    }

    /// Takes the one to a disk away.
    pub fn remove(&mut self, partition: Partition, to: DiskId) -> Option<Move> {
        let moves = self.0.get_mut(&partition)?;
        let removed = moves.iter().position(|it| it.to == to).map(|at| moves.remove(at));
        if moves.is_empty() {
            self.0.remove(&partition);
        }
        removed
    }

    /// How many they are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Some of a pool's partitions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Words")]
pub struct Partitions(Vec<u64>);

/// A set of partitions as it was received.
#[derive(Deserialize)]
#[serde(rename = "Partitions")]
struct Words(Vec<u64>);

impl Partitions {
    /// Whether it is one of them.
    #[must_use]
    pub fn contains(&self, partition: Partition) -> bool {
        let (word, bit) = place(partition);
        self.0.get(word).is_some_and(|bits| bits >> bit & 1 == 1)
    }

    /// Adds one; whether it was new.
    pub fn insert(&mut self, partition: Partition) -> bool {
        let (word, bit) = place(partition);
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        let is_new = self.0[word] >> bit & 1 == 0;
        self.0[word] |= 1 << bit;
        is_new
    }

    /// Takes one away; whether it was there.
    pub fn remove(&mut self, partition: Partition) -> bool {
        let (word, bit) = place(partition);
        let Some(bits) = self.0.get_mut(word).filter(|bits| **bits >> bit & 1 == 1) else { return false };
        *bits &= !(1 << bit);
        while self.0.last() == Some(&0) {
            self.0.pop();
        }
        true
    }

    /// How many they are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.iter().map(|bits| bits.count_ones() as usize).sum()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|bits| *bits == 0)
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = Partition> {
        (0u32..).zip(&self.0).flat_map(|(word, bits)| {
            (0..u64::BITS)
                .filter(move |bit| bits >> bit & 1 == 1)
                .map(move |bit| Partition(word * u64::BITS + bit))
        })
    }
}

impl Partitions {
    /// Those that are in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        Self::trimmed(self.0.iter().zip(&other.0).map(|(one, other)| one & other).collect())
    }

    /// Those that are not in the other.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        let others = other.0.iter().copied().chain(std::iter::repeat(0));
        Self::trimmed(self.0.iter().zip(others).map(|(one, other)| one & !other).collect())
    }

    /// As a bitmap of little-endian words.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|bits| bits.to_le_bytes()).collect()
    }

    /// From [`to_bytes`](Self::to_bytes); `None` for what cannot be that, or names partitions beyond
    /// [`PARTITIONS_MAX`](crate::limits::PARTITIONS_MAX).
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (words, []) = bytes.as_chunks() else { return None };
        if words.len() > WORDS_MAX {
            return None;
        }
        Self::try_from(Words(words.iter().map(|word| u64::from_le_bytes(*word)).collect())).ok()
    }

    fn trimmed(mut words: Vec<u64>) -> Self {
        while words.last() == Some(&0) {
            words.pop();
        }
        Self(words)
    }
}

const WORDS_MAX: usize = PARTITIONS_MAX.div_ceil(u64::BITS) as usize;

impl TryFrom<Words> for Partitions {
    type Error = &'static str;

    fn try_from(Words(words): Words) -> Result<Self, Self::Error> {
        if words.len() > WORDS_MAX || words.last() == Some(&0) {
            return Err("a set of partitions has no zeros at its end, and none beyond the largest pool's");
        }
        Ok(Self(words))
    }
}

impl FromIterator<Partition> for Partitions {
    fn from_iter<I: IntoIterator<Item = Partition>>(partitions: I) -> Self {
        let mut set = Self::default();
        for partition in partitions {
            set.insert(partition);
        }
        set
    }
}

/// Copies of a pool's partitions on one disk that do not count.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Behind {
    /// Which; never none.
    pub partitions: Partitions,
    /// The map in which the disk left or came back last. What an owner said under an older map about being up to date
    /// counts nothing: it may have let go of the disk since.
    pub since: Epoch,
    /// The map in which a partition was added last. What an owner said under an older map counts nothing either: it may have
    /// been of a copy that the disk had before. Not older than `since`.
    pub grown: Epoch,
}

fn place(partition: Partition) -> (usize, u32) {
    ((partition.0 / u64::BITS) as usize, partition.0 % u64::BITS)
}

/// A table as it was received, before its shape has been checked.
#[derive(Deserialize)]
#[serde(rename = "Table")]
struct Cells {
    version: u64,
    width: u8,
    cells: Vec<DiskId>,
}

impl TryFrom<Cells> for Table {
    type Error = &'static str;

    fn try_from(Cells { version, width, cells }: Cells) -> Result<Self, Self::Error> {
        if width == 0 || cells.is_empty() || !cells.len().is_multiple_of(usize::from(width)) {
            return Err("a placement table needs whole rows of at least one disk");
        }
        Ok(Self { version, width, cells })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards moves: one that is taken away leaves the others of its partition, and a row takes a move once.
    #[test]
    fn moves() {
        let step = |from, to| Move { from: DiskId(from), to: DiskId(to) };
        let mut moves = Moves::default();
        let added = [(2, step(1, 7)), (2, step(3, 9)), (0, step(1, 7)), (2, step(1, 7))];
        let new: Vec<bool> = added.iter().map(|(at, it)| moves.insert(Partition(*at), *it)).collect();
        assert_eq!((new, moves.len()), (vec![true, true, true, false], 3));
        assert_eq!(moves.of(Partition(2)), [step(1, 7), step(3, 9)]);
        assert_eq!(moves.remove(Partition(2), DiskId(7)), Some(step(1, 7)));
        assert_eq!(moves.remove(Partition(2), DiskId(7)), None);
        assert_eq!(
            moves.iter().collect::<Vec<_>>(),
            [(Partition(0), step(1, 7)), (Partition(2), step(3, 9))]
        );
        assert!(
            moves.remove(Partition(0), DiskId(7)).is_some()
                && moves.remove(Partition(2), DiskId(9)).is_some()
        );
        assert!(moves.is_empty() && moves.of(Partition(2)).is_empty());

        let mut table = Table::new(1, 2, [1, 2, 3, 4].map(DiskId).to_vec());
        assert!(table.replace(Partition(1), step(4, 1)) && !table.replace(Partition(1), step(4, 1)));
        assert_eq!(
            (table.row(Partition(0)), table.row(Partition(1))),
            (&[DiskId(1), DiskId(2)][..], &[DiskId(3), DiskId(1)][..])
        );
    }

    /// Guards the set: what was put in is in it, once, in order, and equal sets are equal values.
    #[test]
    fn a_set_of_partitions() {
        let mut set: Partitions = [130, 3, 64].map(Partition).into_iter().collect();
        assert_eq!(set.iter().collect::<Vec<_>>(), [3, 64, 130].map(Partition));
        assert_eq!((set.len(), set.insert(Partition(3)), set.insert(Partition(4))), (3, false, true));
        assert!(
            set.contains(Partition(64)) && !set.contains(Partition(65)) && !set.contains(Partition(9999))
        );
        assert!(set.remove(Partition(130)) && !set.remove(Partition(130)) && !set.remove(Partition(500)));
        assert_eq!(set, [3, 4, 64].map(Partition).into_iter().collect());
        for partition in [3, 4, 64] {
            set.remove(Partition(partition));
        }
        assert_eq!((set.is_empty(), set), (true, Partitions::default()));
    }

    /// Guards sets from outside: what is sent arrives, the same set in another spelling and what no pool can have do not.
    #[test]
    fn sets_of_partitions_are_checked_on_arrival() {
        let set: Partitions = [0, 9, 64].map(Partition).into_iter().collect();
        let bytes = set.to_bytes();
        assert_eq!(bytes, [1, 2, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Partitions::from_bytes(&bytes), Some(set.clone()));
        assert_eq!(Partitions::from_bytes(&[]), Some(Partitions::default()));
        let last: Partitions = [Partition(PARTITIONS_MAX - 1)].into_iter().collect();
        assert_eq!(Partitions::from_bytes(&last.to_bytes()), Some(last));
        let beyond: Partitions = [Partition(PARTITIONS_MAX)].into_iter().collect();
        for wrong in [&bytes[..9], &[0; 8], &[&bytes[..], &[0; 8]].concat(), &beyond.to_bytes()] {
            assert_eq!(Partitions::from_bytes(wrong), None, "{} bytes", wrong.len());
        }
        let encode = |words: Vec<u64>| postcard::to_allocvec(&words).unwrap();
        assert_eq!(postcard::from_bytes(&encode(vec![0x201, 1])), Ok(set));
        assert!(postcard::from_bytes::<Partitions>(&encode(vec![1, 0])).is_err());
        assert!(postcard::from_bytes::<Partitions>(&encode(vec![1; 1025])).is_err());
    }

    /// Guards what is made of two sets: equal to the set that is made of their elements.
    #[test]
    fn two_sets_of_partitions() {
        let set = |them: &[u32]| them.iter().copied().map(Partition).collect::<Partitions>();
        let (one, other) = (set(&[1, 70, 200]), set(&[1, 2, 200, 900]));
        assert_eq!(one.intersection(&other), set(&[1, 200]));
        assert_eq!(one.difference(&other), set(&[70]));
        assert_eq!(other.difference(&one), set(&[2, 900]));
        assert_eq!(one.difference(&one), Partitions::default());
        assert_eq!(set(&[1, 70]).intersection(&set(&[1, 71])), set(&[1]));
    }

    /// Guards against a damaged table: a shape that lookups could not index is refused on arrival.
    #[test]
    fn shape_is_checked_on_arrival() {
        let encode = |width: u8, disks: Vec<u32>| postcard::to_allocvec(&(7u64, width, disks)).unwrap();
        let table: Table = postcard::from_bytes(&encode(2, vec![1, 2, 3, 4])).unwrap();
        assert_eq!(table.row(Partition(1)), [DiskId(3), DiskId(4)]);
        for (width, disks) in [(0, vec![1]), (2, vec![1, 2, 3]), (3, vec![])] {
            assert!(postcard::from_bytes::<Table>(&encode(width, disks)).is_err());
        }
    }
}

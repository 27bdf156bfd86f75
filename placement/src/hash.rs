//! Extent -> partition -> disks: what every request does.
//!
//! The hash is part of the format of a cluster: another one would look for every extent in the
//! wrong place. It is XXH3 (64 bits, seed 0, <https://github.com/Cyan4973/xxHash>, `doc/xxhash_spec.md`)
//! of 16 bytes:
//!
//! | offset | size | field                                   |
//! |--------|------|-----------------------------------------|
//! | 0      | 8    | namespace, little-endian                |
//! | 8      | 8    | index of the extent in it, little-endian|
//!
//! The partition is the top of hash x partitions (128 bits), so that each owns an equal arc of the
//! hash space, also where their number is no power of two.

use lunette_proto::ids::{DiskId, ExtentId, Partition};
use lunette_proto::map::Table;
use xxhash_rust::xxh3::xxh3_64;

/// The partition that an extent belongs to, for ever. Below `partitions`, which must not be 0.
#[inline]
#[must_use]
pub fn partition_of(extent: ExtentId, partitions: u32) -> Partition {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&extent.namespace.0.to_le_bytes());
    key[8..].copy_from_slice(&extent.index.to_le_bytes());
    let scaled = (u128::from(xxh3_64(&key)) * u128::from(partitions)) >> 64;
    Partition(u32::try_from(scaled).expect("below `partitions`, which is a u32"))
}

/// The disks an extent lies on, the preferred one first.
///
/// # Panics
/// If the table has no rows. A pool that has volumes has a table.
#[inline]
#[must_use]
pub fn locate(table: &Table, extent: ExtentId) -> &[DiskId] {
    table.row(partition_of(extent, table.partitions()))
}

#[cfg(test)]
mod tests {
    use lunette_proto::ids::{Namespace, VolumeId};
    use proptest::prelude::*;

    use super::*;

    /// Guards the hash, for ever. Computed by the C implementation, xxHash 0.8.4, through Python:
    /// `xxhash.xxh3_64_intdigest(struct.pack("<QQ", namespace, index), seed=0) * partitions >> 64`.
    #[test]
    fn golden_vectors() {
        const PARTITIONS: [u32; 5] = [1, 3, 12, 4096, 65_536];
        let vectors: [(u64, u64, [u32; 5]); 7] = [
            (0, 0, [0, 2, 9, 3338, 53_414]),
            (0x0100_0000_0000_0001, 0, [0, 2, 10, 3525, 56_413]),
            (0x0100_0000_0000_0001, 1, [0, 1, 4, 1696, 27_144]),
            (0x0100_0000_0000_0001, 2, [0, 0, 0, 24, 395]),
            (0x0100_0000_0000_0007, 123_456_789, [0, 2, 8, 2792, 44_677]),
            (u64::MAX, u64::MAX, [0, 1, 5, 1826, 29_226]),
            (0x0100_0000_dead_beef, 1 << 31, [0, 0, 2, 896, 14_347]),
        ];
        for (namespace, index, expected) in vectors {
            let extent = ExtentId { namespace: Namespace(namespace), index };
            let found = PARTITIONS.map(|partitions| partition_of(extent, partitions).0);
            assert_eq!(found, expected, "{extent}");
        }
    }

    /// Guards against arcs of unequal size: consecutive extents of one volume must spread evenly.
    #[test]
    fn spreads_a_volume_evenly() {
        let mut counts = [0_u32; 12];
        for index in 0..120_000 {
            let extent = ExtentId { namespace: Namespace::volume(VolumeId(1)), index };
            counts[partition_of(extent, 12).0 as usize] += 1;
        }
        // The standard deviation of a fair spread is 96; five of them.
        assert!(counts.iter().all(|&count| (9_520..=10_480).contains(&count)), "{counts:?}");
    }

    /// Guards against a lookup that takes another row than its partition's.
    #[test]
    fn locates_the_row() {
        let table = Table::new(1, 2, (0..24).map(DiskId).collect());
        let extent = ExtentId { namespace: Namespace(0x0100_0000_0000_0001), index: 1 };
        assert_eq!(locate(&table, extent), [DiskId(8), DiskId(9)], "partition 4 of 12, as above");
    }

    proptest! {
        /// Guards against a partition that is not one of the pool's.
        #[test]
        fn stays_below_partitions(namespace: u64, index: u64, partitions in 1_u32..) {
            let extent = ExtentId { namespace: Namespace(namespace), index };
            prop_assert!(partition_of(extent, partitions).0 < partitions);
        }
    }
}

//! The names by which initiators know a volume. Pure functions of ids that are never used again, so
//! they are the same on every gateway and survive renaming, resizing and moving.
//!
//! NAA IEEE Registered Extended designator (SPC-4 7.8.6.6.5), 16 bytes, most significant bit first:
//!
//! ```text
//! bits  0..4    6h
//! bits  4..28   company id 02-4C-55: locally administered (bit 1 of its first octet), so it
//!               is in nobody's registry; 4C 55 is "LU"
//! bits 28..64   36 bits of the cluster's id (FNV-1a of its 16 bytes, folded)
//! bits 64..128  the volume's id
//! ```
//!
//! The serial number is the last 25 hexadecimal digits of that, so people can match the two.

use crate::ids::{ClusterId, VolumeId};

const NAA: u64 = 0x6;
const COMPANY_ID: u64 = 0x02_4C_55;

/// NAA designator of a volume. `/dev/disk/by-id/wwn-0x...` and a multipath WWID `3...` show it in hex.
#[must_use]
pub fn naa(cluster: ClusterId, volume: VolumeId) -> [u8; 16] {
    let high = (NAA << 60) | (COMPANY_ID << 36) | cluster_bits(cluster);
    ((u128::from(high) << 64) | u128::from(volume.0)).to_be_bytes()
}

/// Unit serial number of a volume: 25 characters.
#[must_use]
pub fn serial(cluster: ClusterId, volume: VolumeId) -> String {
    format!("{:09x}{:016x}", cluster_bits(cluster), volume.0)
}

/// 36 bits. Hashed, because a cluster's id need not be random in every bit.
fn cluster_bits(cluster: ClusterId) -> u64 {
    const OFFSET: u64 = 0xCBF2_9CE4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01B3;
    let hash = cluster
        .0
        .to_be_bytes()
        .iter()
        .fold(OFFSET, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME));
    ((hash >> 36) ^ hash) & 0xF_FFFF_FFFF
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: ClusterId = ClusterId(0x0123_4567_89AB_CDEF_0011_2233_4455_6677);

    /// Guards the layout: SPC-4 7.8.6.6.5, and the id in the last 8 bytes.
    #[test]
    fn layout() {
        let naa = naa(CLUSTER, VolumeId(0x1122));
        assert_eq!(naa[..3], [0x60, 0x24, 0xC5]);
        assert_eq!(naa[3] >> 4, 0x5);
        assert_eq!(naa[8..], [0, 0, 0, 0, 0, 0, 0x11, 0x22]);
    }

    /// Guards the names of all volumes there are: were they to change, hypervisors would see other
    /// disks. Computed from the definition by a program of its own.
    #[test]
    fn for_ever() {
        let hex: String = naa(CLUSTER, VolumeId(0x1122)).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "6024c55c9f88d7440000000000001122");
    }

    /// Guards the match of the two names: the serial number ends the designator.
    #[test]
    fn serial_ends_the_designator() {
        let hex: String = naa(CLUSTER, VolumeId(77)).iter().map(|byte| format!("{byte:02x}")).collect();
        let serial = serial(CLUSTER, VolumeId(77));
        assert_eq!(serial.len(), 25);
        assert!(hex.ends_with(&serial), "{hex} {serial}");
    }

    /// Guards uniqueness: other volumes, and other clusters, have other names.
    #[test]
    fn distinct() {
        let names: std::collections::BTreeSet<_> = (0..64u32)
            .flat_map(|bit| [naa(ClusterId(1 << bit), VolumeId(1)), naa(CLUSTER, VolumeId(1 << bit))])
            .collect();
        assert_eq!(names.len(), 128);
    }
}

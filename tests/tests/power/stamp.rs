//! What each block of the load bears, so that a block that is read says which write it is from.
//!
//! Every sector of 512 bytes says for itself, little-endian:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | magic |
//! | 8 | 8 | namespace |
//! | 16 | 8 | extent |
//! | 24 | 4 | block in the extent |
//! | 28 | 4 | sector in the block |
//! | 32 | 16 | version: generation, the writer's sequence number |
//! | 48 | 460 | noise, from all of the above |
//! | 508 | 4 | CRC-32C of bytes 0 to 508, big-endian |
//!
//! *Blind* stamps have it little-endian: then the CRC-32C of every sector is the same number, so whatever a store
//! knows by that checksum alone it does not know. A client may well write such sectors.

use std::fmt;

use lunette_proto::checksum::crc32c;
use lunette_proto::ids::{ExtentId, Generation, Namespace, Version};
use lunette_proto::limits::BLOCK_BYTES;
use lunette_tests::random::Random;

pub(crate) const BLOCK: usize = BLOCK_BYTES as usize;
const SECTOR: usize = 512;
const CRC: usize = SECTOR - 4;
const NOISE: usize = 48;
const MAGIC: [u8; 8] = *b"lunstamp";

/// A block of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) extent: ExtentId,
    pub(crate) block: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} block {}", self.extent, self.block)
    }
}

/// What a block that was read is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Zeros,
    /// All of what this version wrote there.
    Written(Version),
    /// Sectors of several writes, one of them this.
    Torn(Version),
    /// What was written to another place.
    Misdirected(Place),
    /// What nobody wrote.
    Garbage,
}

/// The block that `version` writes to `place`.
pub(crate) fn write(place: Place, version: Version, blind: bool, out: &mut Vec<u8>) {
    for sector in 0..(BLOCK / SECTOR) as u32 {
        let start = out.len();
        out.extend(MAGIC);
        out.extend(place.extent.namespace.0.to_le_bytes());
        out.extend(place.extent.index.to_le_bytes());
        out.extend(place.block.to_le_bytes());
        out.extend(sector.to_le_bytes());
        out.extend(version.generation.0.to_le_bytes());
        out.extend(version.seq.to_le_bytes());
        let seed = u64::from(crc32c(&out[start..])) << 32 | version.seq & 0xffff_ffff;
        let mut random = Random::new(seed);
        while out.len() < start + CRC {
            let noise = random.bits().to_le_bytes();
            let left = (start + CRC - out.len()).min(noise.len());
            out.extend(&noise[..left]);
        }
        let crc = crc32c(&out[start..start + CRC]);
        out.extend(if blind { crc.to_le_bytes() } else { crc.to_be_bytes() });
    }
}

/// What `bytes`, read from `place`, are.
pub(crate) fn read(place: Place, bytes: &[u8]) -> Content {
    assert_eq!(bytes.len(), BLOCK);
    let mut versions = Vec::new();
    let mut zeros = false;
    for (index, sector) in (0..).zip(bytes.chunks(SECTOR)) {
        if sector.iter().all(|byte| *byte == 0) {
            zeros = true;
            continue;
        }
        let u64_at = |at: usize| u64::from_le_bytes(sector[at..at + 8].try_into().expect("eight bytes"));
        let u32_at = |at: usize| u32::from_le_bytes(sector[at..at + 4].try_into().expect("four bytes"));
        let crc = crc32c(&sector[..CRC]);
        if sector[..8] != MAGIC || (u32_at(CRC) != crc && u32_at(CRC) != crc.swap_bytes()) {
            return Content::Garbage;
        }
        let extent = ExtentId { namespace: Namespace(u64_at(8)), index: u64_at(16) };
        let from = Place { extent, block: u32_at(24) };
        if from != place || u32_at(28) != index {
            return Content::Misdirected(from);
        }
        versions.push(Version { generation: Generation(u64_at(32)), seq: u64_at(40) });
    }
    match versions[..] {
        [] => Content::Zeros,
        [first, ..] if zeros || versions.iter().any(|version| *version != first) => Content::Torn(first),
        [first, ..] => Content::Written(first),
    }
}

const _: () = assert!(NOISE + 460 == CRC);

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards the names of damage, which say where to look.
    #[test]
    fn damage_has_names() {
        let extent = ExtentId { namespace: Namespace(5), index: 6 };
        let (here, there) = (Place { extent, block: 7 }, Place { extent, block: 8 });
        let version = |seq| Version { generation: Generation(1), seq };
        let block = |place, seq| {
            let mut out = Vec::new();
            write(place, version(seq), false, &mut out);
            out
        };
        let mut blind = [Vec::new(), Vec::new()];
        write(here, version(3), true, &mut blind[0]);
        write(there, version(4), true, &mut blind[1]);
        assert_eq!(read(here, &blind[0]), Content::Written(version(3)));
        assert_eq!(crc32c(&blind[0][..512]), crc32c(&blind[1][1024..1536]));
        assert_ne!(crc32c(&block(here, 1)[..512]), crc32c(&block(here, 2)[..512]));
        let (old, new) = (block(here, 1), block(here, 2));
        assert_eq!(old.len(), BLOCK);
        assert_eq!(read(here, &new), Content::Written(version(2)));
        assert_eq!(read(here, &[0; BLOCK]), Content::Zeros);
        assert_eq!(read(there, &new), Content::Misdirected(here));
        assert_eq!(read(here, &[&new[..512], &old[512..]].concat()), Content::Torn(version(2)));
        assert_eq!(read(here, &[&new[..512], &[0; BLOCK - 512]].concat()), Content::Torn(version(2)));
        assert_eq!(read(here, &[&new[512..], &new[..512]].concat()), Content::Misdirected(here));
        assert_eq!(read(here, &[&new[..256], &old[256..]].concat()), Content::Garbage);
        for at in [0, 9, 33, 100, 511, 4095] {
            let mut flipped = new.clone();
            flipped[at] ^= 4;
            assert_eq!(read(here, &flipped), Content::Garbage, "byte {at}");
        }
    }
}

//! Maps by unit. Units are numbers that this store hands out: a hash that withstands those who choose their keys would be
//! paid for by each read and write, for nothing.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A map by unit.
pub(crate) type UnitMap<T> = HashMap<u32, T, BuildHasherDefault<UnitHasher>>;

/// Spreads one number over the high and the low bits, both of which a map looks at.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct UnitHasher(u64);

impl Hasher for UnitHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32(u32::from(*byte)));
    }

    fn write_u32(&mut self, unit: u32) {
        // Fibonacci hashing: 2^64 divided by the golden ratio.
        let spread = (self.0 ^ u64::from(unit)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = spread ^ spread >> 32;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::hash::{BuildHasher, BuildHasherDefault};

    use super::*;

    /// Guards maps against units in a row, or at distances, that all come to the same place.
    #[test]
    fn spreads_units() {
        let hasher = BuildHasherDefault::<UnitHasher>::default();
        for step in [1, 16, 64, 4096] {
            let hashes = (0..1024u32).map(|unit| hasher.hash_one(unit * step)).collect::<Vec<_>>();
            let low = hashes.iter().map(|hash| hash % 1024).collect::<BTreeSet<_>>().len();
            let high = hashes.iter().map(|hash| hash >> 57).collect::<BTreeSet<_>>().len();
            assert!(low > 512 && high > 100, "{step}: {low}, {high}");
        }
    }
}

//! Which access comes next: a pure function of a shape and its seed.

use std::fmt;

use thiserror::Error;

/// Where accesses go, and whether they write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Reads in random places.
    RandRead,
    /// Writes in random places.
    RandWrite,
    /// Reads from the start of the range to its end, over and over.
    Read,
    /// Writes, likewise.
    Write,
    /// Reads and writes in random places.
    Mixed {
        /// Of a hundred accesses, so many read.
        read_percent: u8,
    },
}

impl Pattern {
    /// Whether any access of it writes.
    #[must_use]
    pub fn writes(self) -> bool {
        match self {
            Self::RandRead | Self::Read => false,
            Self::RandWrite | Self::Write => true,
            Self::Mixed { read_percent } => read_percent < 100,
        }
    }

    fn is_sequential(self) -> bool {
        matches!(self, Self::Read | Self::Write)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RandRead => "randread",
            Self::RandWrite => "randwrite",
            Self::Read => "read",
            Self::Write => "write",
            Self::Mixed { .. } => "mixed",
        })
    }
}

/// A sequence of accesses that can be had again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pattern: Pattern,
    block_bytes: u32,
    start: u64,
    blocks: u64,
    seed: u64,
}

/// A shape that has no access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ShapeError {
    /// More than a hundred of a hundred.
    #[error("{0} percent of the accesses cannot read: 100 is all of them")]
    ReadPercent(u8),
    /// An access of nothing.
    #[error("an access of 0 bytes moves nothing")]
    NoBytes,
    /// Not one access fits.
    #[error("the range from byte {start} to byte {end} has no room for one access of {block_bytes} bytes")]
    NoRoom {
        /// First byte.
        start: u64,
        /// The byte after the last.
        end: u64,
        /// Of one access.
        block_bytes: u32,
    },
}

impl Shape {
    /// Accesses of `block_bytes` each to the bytes from `start` to `end`, exclusive, of which what does not make a whole access
    /// is left alone.
    pub fn new(
        pattern: Pattern,
        block_bytes: u32,
        start: u64,
        end: u64,
        seed: u64,
    ) -> Result<Self, ShapeError> {
        if let Pattern::Mixed { read_percent } = pattern
            && read_percent > 100
        {
            return Err(ShapeError::ReadPercent(read_percent));
        }
        if block_bytes == 0 {
            return Err(ShapeError::NoBytes);
        }
        let blocks = end.saturating_sub(start) / u64::from(block_bytes);
        if blocks == 0 {
            return Err(ShapeError::NoRoom { start, end, block_bytes });
        }
        Ok(Self { pattern, block_bytes, start, blocks, seed })
    }

    /// Bytes of one access.
    #[must_use]
    pub fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    /// Whether any access writes.
    #[must_use]
    pub fn writes(&self) -> bool {
        self.pattern.writes()
    }

    /// The accesses, from the first one on. They never end.
    #[must_use]
    pub fn accesses(&self) -> Accesses {
        Accesses { shape: *self, next: 0, random: Random(self.seed) }
    }
}

/// One access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// First byte.
    pub offset: u64,
    /// Whether it writes.
    pub is_write: bool,
}

/// See [`Shape::accesses`].
#[derive(Clone, Debug)]
pub struct Accesses {
    shape: Shape,
    /// Block of the next one, if they follow each other.
    next: u64,
    random: Random,
}

impl Accesses {
    /// The next access.
    pub fn next_access(&mut self) -> Access {
        let Shape { pattern, block_bytes, start, blocks, .. } = self.shape;
        let block = if pattern.is_sequential() {
            let block = self.next;
            self.next = (block + 1) % blocks;
            block
        } else {
            self.random.below(blocks)
        };
        let is_write = match pattern {
            Pattern::RandRead | Pattern::Read => false,
            Pattern::RandWrite | Pattern::Write => true,
            Pattern::Mixed { read_percent } => self.random.below(100) >= u64::from(read_percent),
        };
        // `blocks` of them end before the range does.
        Access { offset: start + block * u64::from(block_bytes), is_write }
    }
}

/// Numbers that are the same for the same seed, for ever: splitmix64.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`; 0 if that is 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        // The high half of a 128-bit product: no division.
        let product = u128::from(self.bits()) * u128::from(limit);
        u64::try_from(product >> 64).expect("the high half of 128 bits")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(shape: Shape, count: usize) -> Vec<Access> {
        let mut accesses = shape.accesses();
        (0..count).map(|_| accesses.next_access()).collect()
    }

    #[test]
    fn accesses_stay_inside_their_range_and_reach_all_of_it() {
        // Guards against a benchmark that destroys what lies beside its range, or that measures a part of it only.
        for pattern in [Pattern::RandRead, Pattern::Write, Pattern::Mixed { read_percent: 50 }] {
            let shape = Shape::new(pattern, 4096, 8192, 8192 + 16 * 4096 + 4095, 7).expect("a shape");
            let offsets: std::collections::BTreeSet<u64> =
                take(shape, 2000).iter().map(|access| access.offset).collect();
            let want: std::collections::BTreeSet<u64> = (0..16).map(|block| 8192 + block * 4096).collect();
            assert_eq!(offsets, want, "{pattern}");
        }
    }

    #[test]
    fn sequential_accesses_follow_each_other_and_begin_again() {
        // Guards against a stream with gaps.
        let shape = Shape::new(Pattern::Read, 4096, 4096, 4096 * 4, 1).expect("a shape");
        let offsets: Vec<u64> = take(shape, 5).iter().map(|access| access.offset).collect();
        assert_eq!(offsets, [4096, 8192, 12288, 4096, 8192]);
    }

    #[test]
    fn the_same_seed_gives_the_same_accesses() {
        // Guards against runs that cannot be compared.
        let shape =
            |seed| Shape::new(Pattern::Mixed { read_percent: 70 }, 4096, 0, 1 << 40, seed).expect("a shape");
        assert_eq!(take(shape(3), 100), take(shape(3), 100));
        assert_ne!(take(shape(3), 100), take(shape(4), 100));
    }

    #[test]
    fn the_share_of_reads_is_what_was_asked_for() {
        // Guards against a mixed load of another mix, and against reads that write.
        for (percent, range) in [(0, 0..=0), (70, 6700..=7300), (100, 10_000..=10_000)] {
            let pattern = Pattern::Mixed { read_percent: percent };
            let shape = Shape::new(pattern, 4096, 0, 1 << 30, 1).expect("a shape");
            let reads = take(shape, 10_000).iter().filter(|access| !access.is_write).count();
            assert!(range.contains(&reads), "{percent}: {reads}");
            assert_eq!(pattern.writes(), percent < 100);
        }
        for pattern in [Pattern::RandRead, Pattern::Read] {
            assert!(!pattern.writes());
        }
    }

    #[test]
    fn shapes_without_an_access_are_refused() {
        // Guards against a division by zero blocks.
        let new =
            |pattern, bytes, start, end| Shape::new(pattern, bytes, start, end, 0).expect_err("no shape");
        assert_eq!(new(Pattern::Read, 0, 0, 4096), ShapeError::NoBytes);
        for (start, end) in [(0, 4095), (8192, 4096), (4096, 4096)] {
            assert!(matches!(new(Pattern::Read, 4096, start, end), ShapeError::NoRoom { .. }));
        }
        let mixed = Pattern::Mixed { read_percent: 101 };
        assert_eq!(new(mixed, 4096, 0, 4096), ShapeError::ReadPercent(101));
    }
}

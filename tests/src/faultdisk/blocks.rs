//! Which 4 KiB blocks of a file have space.

use std::ops::Range;

/// What space is given out in.
pub const BLOCK_BYTES: u64 = 4096;

/// A set of blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blocks {
    words: Vec<u64>,
    count: u64,
}

impl Blocks {
    /// How many.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether the block has space.
    #[must_use]
    pub fn contains(&self, block: u64) -> bool {
        self.words.get(word(block)).is_some_and(|word| word >> (block % 64) & 1 == 1)
    }

    /// How many of a range have none.
    #[must_use]
    pub fn missing(&self, range: Range<u64>) -> u64 {
        range.filter(|block| !self.contains(*block)).count() as u64
    }

    /// Gives or takes the space of a range.
    pub fn set(&mut self, range: Range<u64>, present: bool) {
        if present && self.words.len() <= word(range.end) {
            self.words.resize(word(range.end) + 1, 0);
        }
        for block in range {
            let Some(word) = self.words.get_mut(word(block)) else { return };
            let bit = 1 << (block % 64);
            match (*word & bit != 0, present) {
                (false, true) => self.count += 1,
                (true, false) => self.count -= 1,
                _ => continue,
            }
            *word ^= bit;
        }
    }

    /// Takes the space of everything from `block` on.
    pub fn truncate(&mut self, block: u64) {
        self.set(block..self.words.len() as u64 * 64, false);
    }
}

fn word(block: u64) -> usize {
    usize::try_from(block / 64).expect("files are far smaller than memory addresses reach")
}

/// The blocks that a range of bytes touches.
#[must_use]
pub fn touched(offset: u64, len: u64) -> Range<u64> {
    offset / BLOCK_BYTES..(offset + len).div_ceil(BLOCK_BYTES)
}

/// The blocks that lie in a range of bytes as a whole.
#[must_use]
pub fn whole(offset: u64, len: u64) -> Range<u64> {
    let first = offset.div_ceil(BLOCK_BYTES);
    first..((offset + len) / BLOCK_BYTES).max(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards the count, which `statfs` and ENOSPC rest on.
    #[test]
    fn counts() {
        let mut blocks = Blocks::default();
        blocks.set(60..130, true);
        blocks.set(100..140, true);
        blocks.set(61..63, false);
        assert_eq!(blocks.count(), 80 - 2);
        assert!(blocks.contains(60) && !blocks.contains(61) && blocks.contains(139) && !blocks.contains(140));
        assert_eq!(blocks.missing(58..64), 4);
        blocks.truncate(61);
        assert_eq!(blocks.count(), 1);
        assert_eq!((touched(4095, 2), whole(4095, 4098), whole(1, 2)), (0..2, 1..2, 1..1));
    }
}

//! The commands of a run.

use bytes::{Bytes, BytesMut};

use super::checker::STAMP_MAX;
use super::verdict::stamp;
use super::world::{BLOCK, EXTENT, Happening, MS, Record, SECTOR, World};
use crate::device::Command;

impl World {
    /// Few blocks, so that operations meet: at the start, and around the border of two extents.
    pub(super) fn hot_blocks() -> impl Iterator<Item = u64> {
        (0..8).chain(EXTENT / BLOCK - 3..EXTENT / BLOCK + 3).map(|block| block * BLOCK)
    }

    pub(super) fn hot_block(&mut self) -> Option<u64> {
        let few = if self.faults.mostly_splits { 3 } else { usize::MAX };
        let all: Vec<u64> = Self::hot_blocks().take(few).collect();
        self.rng.pick(&all)
    }

    pub(super) fn submit_some(&mut self) {
        if self.left == 0 {
            return;
        }
        if self.open().count() >= self.depth {
            return self.at(MS, Happening::Submit);
        }
        self.left -= 1;
        let command = match self.hot_block() {
            Some(offset) if self.faults.mostly_splits && self.rng.chance(400) => {
                Command::Read { offset, len: BLOCK as u32 }
            }
            _ => self.command(),
        };
        let owner = self.gateways.len() - 1;
        // Sometimes to one that only believes that it is the owner.
        let both = if self.faults.mostly_splits { 500 } else { 100 };
        let owner = if owner > 0 && self.rng.chance(both) { owner - 1 } else { owner };
        self.submit(owner, command);
        let burst = self.rng.chance(600);
        let wait = self.rng.between(0, if burst { 200 } else { 4 * MS });
        self.at(wait, Happening::Submit);
    }

    pub(super) fn command(&mut self) -> Command {
        let block = self.hot_block().unwrap_or(0);
        let stamp = self.records.len() as u32 + 1;
        match self.rng.below(100) {
            0..5 => {
                let atomic = u64::from(self.config.layout.atomic_bytes());
                let len = (BLOCK * self.rng.between(1, 40)).min(atomic - block % atomic);
                Command::WriteAtomic { offset: block, data: content(stamp, len) }
            }
            5..26 => {
                let len = BLOCK * self.rng.between(1, 4);
                Command::Write { offset: block, data: content(stamp, len), fua: self.rng.chance(150) }
            }
            26..44 => {
                let offset = block + SECTOR * self.rng.below(8);
                let len = SECTOR * self.rng.between(1, 20);
                Command::Write { offset, data: content(stamp, len), fua: self.rng.chance(150) }
            }
            44..56 => self.swap(block, stamp),
            56..62 => {
                let offset = block + SECTOR * self.rng.below(8);
                let len = SECTOR * self.rng.between(1, 20);
                // Sometimes no bit at all.
                let bits = (STAMP_MAX + 1) << self.rng.below(9);
                Command::Or { offset, data: content(bits, len), fua: self.rng.chance(150) }
            }
            62..85 => {
                let offset = block + SECTOR * self.rng.below(8);
                let sectors_max = if self.rng.chance(100) { 400 } else { 30 };
                Command::Read { offset, len: (SECTOR * self.rng.between(1, sectors_max)) as u32 }
            }
            85..92 => Command::Zero {
                offset: block + SECTOR * self.rng.below(2),
                len: SECTOR * self.rng.between(1, 40),
            },
            92 => Command::Zero { offset: block, len: self.size - block },
            93 => Command::Read { offset: self.size, len: 512 },
            94..96 => {
                let offset = block + SECTOR * self.rng.below(8);
                Command::Mapping { offset, len: SECTOR * self.rng.between(1, 200) }
            }
            _ => Command::Flush,
        }
    }

    /// A comparison with what is likely to be there.
    fn swap(&mut self, block: u64, stamp: u32) -> Command {
        let first = self.rng.below(8);
        let sectors = self.rng.between(1, 8 - first);
        let offset = block + first * SECTOR;
        let mut compare = BytesMut::new();
        for at in (offset..offset + sectors * SECTOR).step_by(SECTOR as usize) {
            let wrong = u32::from(self.rng.chance(30));
            let there = self.guesses.get(&at).copied().unwrap_or(0);
            compare.extend_from_slice(&content(there ^ wrong, SECTOR));
        }
        let data = content(stamp, sectors * SECTOR);
        Command::CompareAndWrite { offset, compare: compare.freeze(), data, fua: self.rng.chance(150) }
    }

    /// What is heard of the sectors with a command's answer.
    pub(super) fn guess(&mut self, tag: u64) {
        let Record { command, outcome: Some(Ok(read)), .. } = &self.records[tag as usize] else {
            return;
        };
        let number = tag as u32 + 1;
        match command {
            Command::Read { offset, len } => {
                for at in (0..u64::from(*len)).step_by(SECTOR as usize) {
                    self.guesses.insert(offset + at, stamp(read, at).unwrap_or(0));
                }
            }
            Command::Write { offset, data, .. }
            | Command::WriteAtomic { offset, data }
            | Command::CompareAndWrite { offset, data, .. } => {
                for at in (0..data.len() as u64).step_by(SECTOR as usize) {
                    self.guesses.insert(offset + at, number);
                }
            }
            Command::Or { offset, data, .. } => {
                for at in (0..data.len() as u64).step_by(SECTOR as usize) {
                    *self.guesses.entry(offset + at).or_default() |=
                        stamp(std::slice::from_ref(data), at).unwrap_or(0);
                }
            }
            Command::Zero { offset, len } => {
                self.guesses.range_mut(*offset..offset + len).for_each(|(_, there)| *there = 0);
            }
            Command::Flush | Command::Mapping { .. } => {}
        }
    }
}

/// Sectors that name their write.
fn content(stamp: u32, len: u64) -> Bytes {
    let mut data = BytesMut::with_capacity(len as usize);
    for _ in 0..len / 4 {
        data.extend_from_slice(&stamp.to_le_bytes());
    }
    data.freeze()
}

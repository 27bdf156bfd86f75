//! What a sanitize operation does to the device, command by command.

use bytes::Bytes;
use lunette_proto::limits::EXTENT_BYTES;
use lunette_proto::map::SanitizeKind;
use lunette_volume::device::Command;

/// An overwrite goes on in pieces of this size,
const WRITE_BYTES: u32 = EXTENT_BYTES;
/// and an erasure in pieces of this one.
const ERASE_BYTES: u64 = 1 << 30;

/// The commands of a sanitize operation, in order; each is given to the device when the one before is complete.
#[derive(Debug)]
pub struct Passes {
    size_bytes: u64,
    /// What the passes write, the last one first; empty: they erase.
    fills: Vec<Bytes>,
    pass: u8,
    count: u8,
    offset: u64,
}

impl Passes {
    /// Over a volume of so many bytes, of blocks of so many.
    #[must_use]
    pub fn new(kind: &SanitizeKind, size_bytes: u64, block_bytes: u32) -> Self {
        let (fills, count) = match kind {
            SanitizeKind::BlockErase => (Vec::new(), 1),
            SanitizeKind::Overwrite { pattern, count, invert } => {
                let last = fill(pattern, block_bytes);
                let before = if *invert { last.iter().map(|byte| !byte).collect() } else { last.clone() };
                (vec![last, before], *count)
            }
        };
        Self { size_bytes, fills, pass: 0, count, offset: 0 }
    }

    /// PROGRESS INDICATION: how much of the work has been given to the device, of 65536.
    #[must_use]
    pub fn progress(&self) -> u16 {
        let of_pass = u128::from(self.offset) * 65536 / u128::from(self.size_bytes.max(1));
        let done = (u128::from(self.pass) * 65536 + of_pass) / u128::from(self.count.max(1));
        u16::try_from(done).unwrap_or(u16::MAX)
    }
}

/// A piece of the pattern, which begins anew in each logical block.
fn fill(pattern: &[u8], block_bytes: u32) -> Bytes {
    let block: Vec<u8> = pattern.iter().copied().cycle().take(block_bytes as usize).collect();
    block.repeat((WRITE_BYTES.checked_div(block_bytes).unwrap_or(0)) as usize).into()
}

impl Iterator for Passes {
    type Item = Command;

    fn next(&mut self) -> Option<Command> {
        if self.pass == self.count {
            return None;
        }
        let offset = self.offset;
        let left = self.size_bytes - offset;
        if left == 0 {
            // A pass is on the medium before the next one hides it.
            self.offset = 0;
            self.pass += 1;
            return Some(Command::Flush);
        }
        // With INVERT passes alternate, so that the last one is the pattern as it was given.
        let inverted = usize::from((self.count - 1 - self.pass) % 2 == 1);
        match self.fills.get(inverted) {
            Some(fill) => {
                let len = left.min(fill.len() as u64);
                self.offset += len;
                // Lossless: no longer than the fill.
                let data = fill.slice(..len as usize);
                Some(Command::Write { offset, data, fua: false })
            }
            None => {
                let len = left.min(ERASE_BYTES);
                self.offset += len;
                Some(Command::Zero { offset, len })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn carried_out(kind: &SanitizeKind, size: usize, block: u32) -> (Vec<Vec<u8>>, Vec<u16>) {
        let mut content = vec![0xEE; size];
        let (mut after_passes, mut progress) = (Vec::new(), Vec::new());
        let mut passes = Passes::new(kind, size as u64, block);
        while let Some(command) = passes.next() {
            match command {
                Command::Write { offset, data, .. } => {
                    assert!(data.len() <= 8 << 20);
                    content[offset as usize..][..data.len()].copy_from_slice(&data);
                }
                Command::Zero { offset, len } => content[offset as usize..][..len as usize].fill(0),
                Command::Flush => after_passes.push(content.clone()),
                other => panic!("{other:?}"),
            }
            progress.push(passes.progress());
        }
        (after_passes, progress)
    }

    /// Guards the passes of OVERWRITE: each covers all blocks with the pattern, which begins anew in each block; with
    /// INVERT they alternate so that the last is not inverted (SBC-3 5.24.2.2).
    #[test]
    fn overwrite() {
        let pattern = vec![1, 2, 3, 4, 5];
        for (size, block) in [(9 << 20, 512u32), (4 << 20, 4096), (512, 512)] {
            for (count, invert) in [(1u8, false), (1, true), (2, true), (3, true), (3, false)] {
                let kind = SanitizeKind::Overwrite { pattern: pattern.clone(), count, invert };
                let (passes, progress) = carried_out(&kind, size, block);
                assert_eq!(passes.len(), usize::from(count));
                for (pass, content) in passes.iter().enumerate() {
                    let is_inverted = invert && (usize::from(count) - 1 - pass) % 2 == 1;
                    let mask = if is_inverted { 0xFF } else { 0 };
                    for (at, byte) in content.iter().enumerate() {
                        assert_eq!(*byte, pattern[at % block as usize % 5] ^ mask, "{at}");
                    }
                }
                assert!(progress.is_sorted());
            }
        }
    }

    /// Guards BLOCK ERASE: everything is zeroed, in pieces, and then durable.
    #[test]
    fn erase() {
        let (passes, progress) = carried_out(&SanitizeKind::BlockErase, 3 << 20, 512);
        assert_eq!(passes, [vec![0; 3 << 20]]);
        assert_eq!(progress.last(), Some(&u16::MAX));
        let lens: Vec<_> = Passes::new(&SanitizeKind::BlockErase, (5 << 29) + 512, 512).collect();
        let zero = |offset, len| Command::Zero { offset, len };
        assert_eq!(
            lens,
            [zero(0, 1 << 30), zero(1 << 30, 1 << 30), zero(2 << 30, (1 << 29) + 512), Command::Flush]
        );
    }

    /// Guards the progress of several passes: half of the work is half of the whole.
    #[test]
    fn progress() {
        let kind = SanitizeKind::Overwrite { pattern: vec![0], count: 2, invert: false };
        let mut passes = Passes::new(&kind, 8 << 20, 512);
        assert_eq!(passes.progress(), 0);
        passes.next();
        assert_eq!(passes.progress(), 16384);
        passes.nth(1);
        assert_eq!(passes.progress(), 32768);
    }
}

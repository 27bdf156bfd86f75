//! What becomes of blocks that are read before they are written.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

/// New content of a part of the blocks.
#[derive(Clone, Debug)]
pub(super) enum Patch {
    /// Leave the blocks as they are: they are written again to heal a bad copy.
    Nothing,
    /// These bytes.
    Data(Bytes),
    /// That many zeros.
    Zeros(u32),
    /// These bits, beside those that are there.
    Or(Bytes),
    /// These bytes, where `compare` is; as long as that.
    Swap { compare: Bytes, data: Bytes },
}

/// There is something else than was to be compared, from this byte of the comparison on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Differs(pub(super) u32);

impl Patch {
    /// Data that it keeps in memory.
    pub(super) fn held_bytes(&self) -> u64 {
        match self {
            Self::Nothing | Self::Zeros(_) => 0,
            Self::Data(data) | Self::Or(data) => data.len() as u64,
            Self::Swap { compare, data } => (compare.len() + data.len()) as u64,
        }
    }

    /// Whether it matters what is in `bytes`, if it is put at `at`: not where it is written over.
    pub(super) fn needs(&self, at: u32, bytes: Range<u32>) -> bool {
        let over = match self {
            Self::Data(data) => data.len() as u64,
            Self::Zeros(len) => u64::from(*len),
            Self::Nothing | Self::Or(_) | Self::Swap { .. } => 0,
        };
        bytes.start < at || u64::from(bytes.end) > u64::from(at) + over
    }

    /// The blocks with the patch at byte `at` of them. It lies inside them.
    pub(super) fn apply(&self, blocks: Bytes, at: usize) -> Result<Bytes, Differs> {
        if let Self::Nothing = self {
            return Ok(blocks);
        }
        // A copy only if somebody else holds the same buffer.
        let mut blocks = blocks.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
        match self {
            Self::Nothing => {}
            Self::Data(data) => blocks[at..at + data.len()].copy_from_slice(data),
            Self::Zeros(len) => blocks[at..at + *len as usize].fill(0),
            Self::Or(data) => {
                blocks[at..at + data.len()].iter_mut().zip(data).for_each(|(byte, bits)| *byte |= bits);
            }
            Self::Swap { compare, data } => {
                let there = &mut blocks[at..at + compare.len()];
                if let Some(differs) = there.iter().zip(compare).position(|(is, wanted)| is != wanted) {
                    return Err(Differs(u32::try_from(differs).expect("inside one block")));
                }
                there.copy_from_slice(data);
            }
        }
        Ok(blocks.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards what is written: the patch and nothing beside it, and nothing where the comparison differs.
    #[test]
    fn patches() {
        let old = Bytes::from_static(&[1, 2, 3, 4]);
        let apply = |patch: Patch, at| patch.apply(old.clone(), at).map(|it| it.to_vec());
        let data = |bytes: &'static [u8]| Bytes::from_static(bytes);
        assert_eq!(apply(Patch::Nothing, 0), Ok(vec![1, 2, 3, 4]));
        assert_eq!(apply(Patch::Data(data(&[8, 9])), 1), Ok(vec![1, 8, 9, 4]));
        assert_eq!(apply(Patch::Zeros(3), 1), Ok(vec![1, 0, 0, 0]));
        assert_eq!(apply(Patch::Or(data(&[5, 4])), 2), Ok(vec![1, 2, 7, 4]));
        let swap = |compare| Patch::Swap { compare: data(compare), data: data(&[7, 7]) };
        assert_eq!(apply(swap(&[3, 4]), 2), Ok(vec![1, 2, 7, 7]));
        assert_eq!(apply(swap(&[3, 5]), 2), Err(Differs(1)));
        assert_eq!(apply(swap(&[1, 2]), 2), Err(Differs(0)));
        assert_eq!(old, data(&[1, 2, 3, 4]), "what others hold is theirs");
    }

    /// Guards against a write that fails for a block that it writes over whole, and one that takes its
    /// place from a block that it does not.
    #[test]
    fn what_is_written_over_does_not_matter() {
        let data = Patch::Data(Bytes::from_static(&[0; 20]));
        let needed = |patch: &Patch| [0..8, 8..16, 16..24, 24..32].map(|it| patch.needs(6, it));
        assert_eq!(needed(&data), [true, false, false, true]);
        assert_eq!(needed(&Patch::Zeros(18)), [true, false, false, true]);
        assert_eq!(needed(&Patch::Or(Bytes::from_static(&[0; 20]))), [true; 4]);
        assert_eq!(needed(&Patch::Nothing), [true; 4]);
    }
}

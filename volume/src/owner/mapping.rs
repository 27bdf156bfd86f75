//! Which blocks take space: one member in sync of each extent is asked for its versions, like for a read.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use lunette_proto::limits::BLOCK_BYTES;
use lunette_proto::node::{BlockVersion, Durability};

use super::Owner;
use super::op::Work;
use crate::device::{DEALLOCATED, Data, MAPPED};
use crate::layout::{Layout, Run};

impl Owner {
    /// Queues one operation for each extent that the blocks of a command lie in.
    pub(super) fn add_mapping(&mut self, command: usize, range: &Range<u64>) {
        for (extent, bytes) in by_extent(self.config.layout, range) {
            let len = bytes.end - bytes.start;
            self.add_part(command, extent, bytes.start, len, Work::Map, Durability::Stable);
        }
    }
}

/// What a member's list says of some blocks, a byte for each.
pub(super) fn of_blocks(runs: &[BlockVersion], blocks: Range<u32>) -> Bytes {
    // What follows the last run was never written.
    let mut all = vec![DEALLOCATED; blocks.len()];
    let mut at = 0;
    for run in runs {
        let (first, end) = (blocks.start.max(at), blocks.end.min(at + run.blocks));
        if first < end && !run.hole {
            all[(first - blocks.start) as usize..(end - blocks.start) as usize].fill(MAPPED);
        }
        at += run.blocks;
    }
    all.into()
}

/// The parts of a range, one of each extent in order of their indices, in the order of the volume.
pub(super) fn in_order(layout: Layout, range: &Range<u64>, parts: Data) -> Data {
    let mut parts: BTreeMap<u64, Bytes> = by_extent(layout, range).into_keys().zip(parts).collect();
    let mut all = BytesMut::new();
    for Run { extent, len, .. } in layout.runs(range.start, range.end - range.start) {
        if let Some(part) = parts.get_mut(&extent) {
            let blocks = (len / BLOCK_BYTES) as usize;
            all.extend_from_slice(&part.split_to(blocks.min(part.len())));
        }
    }
    Data::from_iter([all.freeze()])
}

/// The bytes of each extent that a range of the volume lies in. They follow each other there, in the same order,
/// also if the range is striped.
fn by_extent(layout: Layout, range: &Range<u64>) -> BTreeMap<u64, Range<u32>> {
    let mut extents: BTreeMap<u64, Range<u32>> = BTreeMap::new();
    for Run { extent, offset, len } in layout.runs(range.start, range.end - range.start) {
        let end = offset + len;
        extents.entry(extent).and_modify(|bytes| bytes.end = end).or_insert(offset..end);
    }
    extents
}

#[cfg(test)]
mod tests {
    use lunette_proto::ids::{Generation, Version};
    use lunette_proto::map::Stripe;
    use proptest::prelude::*;

    use super::*;

    /// Guards the reading of a member's list, also where it is short, or longer than what was asked.
    #[test]
    fn lists() {
        let run = |blocks, hole| {
            let version = Version { generation: Generation(1), seq: 1 };
            BlockVersion { blocks, version, hole }
        };
        let list = [run(2, false), run(2, true), run(2, false)];
        let text = |blocks| -> String {
            of_blocks(&list, blocks).iter().map(|it| if *it == MAPPED { 'm' } else { '.' }).collect()
        };
        assert_eq!(text(0..8), "mm..mm..");
        assert_eq!(text(1..5), "m..m");
        assert_eq!(text(3..4), ".");
        assert_eq!(text(7..9), "..");
        assert_eq!(of_blocks(&[], 0..2), [DEALLOCATED; 2].as_slice());
    }

    proptest! {
        /// Guards the order of the answer: each block's byte is where the block is in the volume.
        #[test]
        fn blocks_come_in_order(
            stripe in prop::option::of((14u32..=20, 1u16..=5)), first in 0u64..20_000, blocks in 1u64..9000,
        ) {
            let stripe = stripe.map(|(bits, width)| Stripe { unit_bytes: 1 << bits, width });
            let layout = Layout::new(stripe).unwrap();
            let block = u64::from(BLOCK_BYTES);
            let range = first * block..(first + blocks) * block;
            // Each block of an extent says which it is.
            let name = |extent: u64, index: u32| (extent * 37 + u64::from(index)) as u8;
            let parts = by_extent(layout, &range).into_iter().map(|(extent, bytes)| {
                (bytes.start / BLOCK_BYTES..bytes.end / BLOCK_BYTES).map(|it| name(extent, it)).collect()
            });
            let answer = in_order(layout, &range, parts.collect()).concat();
            prop_assert_eq!(answer.len() as u64, blocks);
            for (at, is) in range.step_by(block as usize).zip(answer) {
                let run = layout.runs(at, block).next().unwrap();
                prop_assert_eq!(is, name(run.extent, run.offset / BLOCK_BYTES));
            }
        }
    }
}

//! How a segment is cut into commands.

use lunette_proto::limits::BLOCK_BYTES;
use lunette_volume::device::DEALLOCATED;

use super::resolve::Span;
use crate::scsi::provisioning::UNMAP_GRANULARITY_BYTES;

/// Data that a copy has in memory at once.
pub(super) const PIECE_BYTES: u32 = 1 << 20;
/// Shorter holes are copied as what they read as: a command more costs more than they save.
const HOLE_BYTES_MIN: u64 = UNMAP_GRANULARITY_BYTES as u64;

/// A part of a segment; counted from the segment's start, whole blocks of both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Data { start: u64, len: u32 },
    Hole { start: u64, len: u64 },
}

impl Piece {
    pub(super) fn len(self) -> u64 {
        match self {
            Self::Data { len, .. } => len.into(),
            Self::Hole { len, .. } => len,
        }
    }
}

/// The pieces of a segment in such an order that the last is the next to be copied. `map` has a byte
/// for each 4 KiB block that the source touches; `None` if it has not.
pub(super) fn pieces(map: &[u8], span: &Span) -> Option<Vec<Piece>> {
    let block_bytes = u64::from(BLOCK_BYTES);
    let (offset, end) = (span.source.offset, span.source.offset + span.len);
    let first_block = offset / block_bytes;
    if map.len() as u64 != end.div_ceil(block_bytes) - first_block {
        return None;
    }
    // Logical blocks are 512 or 4096 bytes: who has the larger ones decides.
    let granule = u64::from(span.source.unit.block_bytes.max(span.destination.unit.block_bytes)).max(1);
    let mut pieces = Vec::new();
    let (mut at, mut data_start) = (first_block, 0);
    for run in map.chunk_by(|a, b| (*a == DEALLOCATED) == (*b == DEALLOCATED)) {
        let start = (at * block_bytes).max(offset) - offset;
        at += run.len() as u64;
        let end = (at * block_bytes).min(end) - offset;
        let (start, end) = (start.next_multiple_of(granule), end - end % granule);
        if run.first() == Some(&DEALLOCATED) && end.saturating_sub(start) >= HOLE_BYTES_MIN {
            push_data(&mut pieces, data_start, start);
            pieces.push(Piece::Hole { start, len: end - start });
            data_start = end;
        }
    }
    push_data(&mut pieces, data_start, span.len);
    if !span.is_backward() {
        pieces.reverse();
    }
    Some(pieces)
}

fn push_data(pieces: &mut Vec<Piece>, mut start: u64, end: u64) {
    while start < end {
        let to_cut = u64::from(PIECE_BYTES) - start % u64::from(PIECE_BYTES);
        // At most a piece, which 4 bytes can hold.
        let len = u32::try_from(to_cut.min(end - start)).unwrap_or(PIECE_BYTES);
        pieces.push(Piece::Data { start, len });
        start += u64::from(len);
    }
}

impl Span {
    /// The destination lies behind the source and overlaps it, so the end has to be copied first.
    fn is_backward(&self) -> bool {
        let (from, to) = (self.source.offset, self.destination.offset);
        self.is_within_one_unit() && to > from && to - from < self.len
    }

    pub(super) fn is_within_one_unit(&self) -> bool {
        self.source.unit.volume == self.destination.unit.volume
    }

    /// No blocks, or blocks onto themselves: writing those again could undo what others write.
    pub(super) fn moves_nothing(&self) -> bool {
        self.len == 0 || self.is_within_one_unit() && self.source.offset == self.destination.offset
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use lunette_proto::ids::{ClusterId, VolumeId};
    use lunette_volume::device::{BlockDevice, Command, Completions, MAPPED, Readiness};
    use proptest::prelude::*;

    use super::*;
    use crate::exports::{Change, Devices, KeepError};
    use crate::scsi::copy::resolve::Place;
    use crate::scsi::{LogicalUnit, SharedUnit};

    struct Nothing;

    impl Devices for Nothing {
        fn device(&self, _: VolumeId) -> Option<Arc<dyn BlockDevice>> {
            None
        }

        fn keep(&self, _: VolumeId, _: Change, _: Box<dyn FnOnce(Result<(), KeepError>) + Send>) {}
    }

    impl BlockDevice for Nothing {
        fn submit(&self, _: Command, _: u64, _: &Arc<dyn Completions>) {}

        fn readiness(&self) -> Readiness {
            Readiness::Ready
        }
    }

    fn place(volume: u64, block_bytes: u32, offset: u64) -> Place {
        let unit = LogicalUnit {
            cluster: ClusterId(1),
            volume: VolumeId(volume),
            name: String::new(),
            size_bytes: 1 << 40,
            block_bytes,
            read_only: false,
            owner: None,
            device: Arc::new(Nothing),
            shared: Arc::new(SharedUnit::new(VolumeId(volume), Arc::default(), Arc::new(Nothing))),
        };
        Place { lun: 0, unit: Arc::new(unit), offset }
    }

    fn map(span: &Span, holes: &[(u64, u64)]) -> Vec<u8> {
        let (first, end) = (span.source.offset / 4096, (span.source.offset + span.len).div_ceil(4096));
        let is_hole = |block| holes.iter().any(|(from, to)| (*from..*to).contains(&block));
        (first..end).map(|block| if is_hole(block) { DEALLOCATED } else { MAPPED }).collect()
    }

    /// Guards cutting: data at whole pieces, holes from 64 KiB on, in order.
    #[test]
    fn cuts() {
        let span = Span { source: place(1, 512, 8192), destination: place(2, 512, 512), len: 3 << 20 };
        let mut pieces = pieces(&map(&span, &[(4, 5), (258, 2 + 256 + 32), (700, 715)]), &span).unwrap();
        pieces.reverse();
        assert_eq!(
            pieces,
            [
                Piece::Data { start: 0, len: 1 << 20 },
                Piece::Hole { start: 1 << 20, len: 128 << 10 },
                Piece::Data { start: (1 << 20) + (128 << 10), len: (1 << 20) - (128 << 10) },
                Piece::Data { start: 2 << 20, len: 1 << 20 },
            ]
        );
    }

    /// Guards against a map that is not of this range.
    #[test]
    fn wrong_map() {
        let span = Span { source: place(1, 512, 4095 * 512), destination: place(2, 512, 0), len: 1024 };
        assert!(pieces(&[MAPPED; 2], &span).is_some());
        for wrong in [0, 1, 3] {
            assert_eq!(pieces(&vec![MAPPED; wrong], &span), None, "{wrong}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

        /// Guards every byte: pieces cover the segment once, in whole blocks of both sides, and a hole is
        /// only where the source has one.
        #[test]
        fn pieces_cover_the_segment(
            from in 0u64..64, to in 0u64..64, len in 1u64..600,
            source_large: bool, destination_large: bool, one_unit: bool,
            runs in proptest::collection::vec((any::<bool>(), 1usize..40), 1..20),
        ) {
            let size = |large| if large { 4096 } else { 512 };
            let (source, destination) = (size(source_large), size(destination_large));
            let len = len * u64::from(source.max(destination));
            let span = Span {
                source: place(1, source, from * u64::from(source)),
                destination: place(if one_unit { 1 } else { 2 }, destination, to * u64::from(destination)),
                len,
            };
            let mut map = map(&span, &[]);
            let mut states = runs.iter().cycle().flat_map(|(hole, len)| std::iter::repeat_n(*hole, *len));
            map.iter_mut().for_each(|byte| if states.next() == Some(true) { *byte = DEALLOCATED });
            let mut pieces = pieces(&map, &span).unwrap();
            if !span.is_backward() {
                pieces.reverse();
            }
            let granule = u64::from(source.max(destination));
            let mut at = 0;
            for piece in pieces {
                let (Piece::Data { start, .. } | Piece::Hole { start, .. }) = piece;
                prop_assert_eq!(start, at);
                prop_assert!(piece.len() > 0 && piece.len().is_multiple_of(granule));
                let first = span.source.offset / 4096;
                let blocks = (span.source.offset + start) / 4096..(span.source.offset + start + piece.len()).div_ceil(4096);
                if let Piece::Hole { .. } = piece {
                    prop_assert!(blocks.into_iter().all(|block| map[(block - first) as usize] == DEALLOCATED));
                } else {
                    prop_assert!(piece.len() <= u64::from(PIECE_BYTES));
                }
                at += piece.len();
            }
            prop_assert_eq!(at, len);
        }
    }
}

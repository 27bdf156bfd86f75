//! Where the members of an extent differ, by the lists of versions that they gave.

use lunette_proto::ids::{DiskId, Generation, Version};
use lunette_proto::limits::{BLOCK_BYTES, EXTENT_BLOCKS, UNIT_BYTES};
use lunette_proto::node::BlockVersion;
use smallvec::SmallVec;

use super::view::Members;

const UNIT_BLOCKS: u32 = UNIT_BYTES / BLOCK_BYTES;

/// Whether a disk's list of runs can be one of an extent.
pub(super) fn fits(runs: &[BlockVersion], generation: Generation) -> bool {
    let blocks = runs.iter().try_fold(0u32, |sum, run| sum.checked_add(run.blocks));
    blocks.is_some_and(|blocks| blocks <= EXTENT_BLOCKS)
        && runs.iter().all(|run| run.blocks > 0 && run.version.generation <= generation)
}

/// Blocks side by side that the same members lack.
///
/// They are levelled by one message, so that what a write changed as a whole is not cut: inside a space unit two blocks of
/// one version that the same members lack are never of two gaps.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Gap {
    pub(super) first: u32,
    pub(super) blocks: u32,
    /// The highest version, which wins.
    pub(super) version: Version,
    pub(super) hole: bool,
    /// Whether in each space unit some lagging member has holes only: it may have no room for more.
    pub(super) or_hole: bool,
    pub(super) sources: Members,
    pub(super) lagging: Members,
}

impl Gap {
    /// Whether `next` follows on it, and is lacked in the same way.
    fn goes_on(&self, next: &Self) -> bool {
        self.first + self.blocks == next.first
            && (self.version, self.hole) == (next.version, next.hole)
            && (&self.sources, &self.lagging) == (&next.sources, &next.lagging)
    }
}

/// Where members differ.
pub(super) fn gaps(members: &[(DiskId, &[BlockVersion])]) -> Vec<Gap> {
    let mut rest: SmallVec<[(DiskId, &[BlockVersion], u32); 4]> =
        members.iter().map(|(disk, runs)| (*disk, *runs, 0)).collect();
    let mut gaps: Vec<Gap> = Vec::new();
    // The last one, inside one space unit, and the lagging members that have holes in all of it.
    let mut last: Option<(Gap, Members)> = None;
    let mut at = 0;
    while at < EXTENT_BLOCKS {
        // What each has from here on, and for how many blocks that holds for all of them.
        let mut step = UNIT_BLOCKS - at % UNIT_BLOCKS;
        for (_, runs, used) in &rest {
            if let Some(run) = runs.first() {
                step = step.min(run.blocks - used);
            }
        }
        let state =
            |runs: &[BlockVersion]| runs.first().map_or((Version::NONE, true), |it| (it.version, it.hole));
        let version = rest.iter().map(|(_, runs, _)| state(runs).0).max().unwrap_or(Version::NONE);
        let mut gap = Gap {
            first: at,
            blocks: step,
            version,
            hole: false,
            or_hole: false,
            sources: Members::new(),
            lagging: Members::new(),
        };
        let mut holes = Members::new();
        for (disk, runs, _) in &rest {
            let (has, hole) = state(runs);
            if has == version {
                gap.sources.push(*disk);
                gap.hole |= hole;
            } else {
                gap.lagging.push(*disk);
                if hole {
                    holes.push(*disk);
                }
            }
        }
        if !gap.lagging.is_empty() {
            match &mut last {
                Some((last, only_holes)) if at % UNIT_BLOCKS != 0 && last.goes_on(&gap) => {
                    last.blocks += step;
                    only_holes.retain(|disk| holes.contains(disk));
                }
                _ => {
                    add(&mut gaps, last.replace((gap, holes)));
                }
            }
        }
        for (_, runs, used) in &mut rest {
            *used += step;
            if runs.first().is_some_and(|run| run.blocks == *used) {
                *runs = &runs[1..];
                *used = 0;
            }
        }
        at += step;
    }
    add(&mut gaps, last);
    gaps
}

/// Adds a gap of one space unit, to the one before if that is as good.
fn add(gaps: &mut Vec<Gap>, gap: Option<(Gap, Members)>) {
    let Some((mut gap, only_holes)) = gap else {
        return;
    };
    gap.or_hole = !only_holes.is_empty();
    match gaps.last_mut() {
        Some(last) if last.or_hole == gap.or_hole && last.goes_on(&gap) => last.blocks += gap.blocks,
        _ => gaps.push(gap),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(blocks: u32, seq: u64) -> BlockVersion {
        let version = Version { generation: Generation(u64::from(seq > 0)), seq };
        BlockVersion { blocks, version, hole: seq == 0 }
    }

    proptest! {
        /// Guards the comparison against a plain one block by block: every block that differs is in
        /// exactly one gap, with the highest version and who has it.
        #[test]
        fn gaps_are_what_differs(lists in prop::collection::vec(
            prop::collection::vec((1u32..200, 0u64..4), 0..6), 1..4))
        {
            let lists: Vec<Vec<BlockVersion>> =
                lists.iter().map(|it| it.iter().map(|(blocks, seq)| run(*blocks, *seq)).collect()).collect();
            let flat: Vec<Vec<Version>> = lists.iter().map(|runs| {
                let mut all: Vec<Version> =
                    runs.iter().flat_map(|it| std::iter::repeat_n(it.version, it.blocks as usize)).collect();
                all.resize(EXTENT_BLOCKS as usize, Version::NONE);
                all
            }).collect();
            let members: Vec<(DiskId, &[BlockVersion])> =
                lists.iter().enumerate().map(|(disk, runs)| (DiskId(disk as u32), &runs[..])).collect();
            let gaps = gaps(&members);
            for block in 0..EXTENT_BLOCKS {
                let versions: Vec<Version> = flat.iter().map(|it| it[block as usize]).collect();
                let best = *versions.iter().max().unwrap();
                let lagging: Vec<DiskId> = versions.iter().enumerate()
                    .filter(|(_, it)| **it != best).map(|(disk, _)| DiskId(disk as u32)).collect();
                let inside: Vec<&Gap> =
                    gaps.iter().filter(|it| (it.first..it.first + it.blocks).contains(&block)).collect();
                if lagging.is_empty() {
                    prop_assert!(inside.is_empty());
                } else {
                    prop_assert_eq!(inside.len(), 1);
                    prop_assert_eq!(inside[0].version, best);
                    prop_assert_eq!(&inside[0].lagging[..], &lagging[..]);
                    prop_assert_eq!(inside[0].sources.len() + lagging.len(), versions.len());
                }
            }
        }
    }

    /// Guards the whole of an atomic write: what a member lacks of it is one gap, whatever that member has there; and
    /// one that may have no room for it is told from one that has content in the unit.
    #[test]
    fn a_gap_is_not_cut_inside_a_unit() {
        let (a, b) = (DiskId(0), DiskId(1));
        let gaps_of = |lagging: &[BlockVersion]| -> Vec<(u32, u32, bool)> {
            let all = gaps(&[(a, &[run(32, 9)]), (b, lagging)]);
            all.iter().map(|gap| (gap.first, gap.blocks, gap.or_hole)).collect()
        };
        assert_eq!(gaps_of(&[]), [(0, 32, true)]);
        assert_eq!(gaps_of(&[run(3, 1), run(4, 0), run(5, 2)]), [(0, 16, false), (16, 16, true)]);
        assert_eq!(gaps_of(&[run(16, 0), run(16, 1)]), [(0, 16, true), (16, 16, false)]);
        assert_eq!(gaps_of(&[run(31, 0), run(1, 1)]), [(0, 16, true), (16, 16, false)]);
    }

    /// Guards against a peer that lists more blocks than an extent has, or versions of nobody's yet.
    #[test]
    fn refuses_lists_that_do_not_fit() {
        let fits = |runs: &[BlockVersion]| fits(runs, Generation(1));
        assert!(fits(&[]));
        assert!(fits(&[run(EXTENT_BLOCKS, 1)]));
        assert!(!fits(&[run(EXTENT_BLOCKS, 1), run(1, 2)]));
        assert!(!fits(&[run(u32::MAX, 1), run(u32::MAX, 2)]));
        assert!(!fits(&[run(0, 1)]));
        let version = Version { generation: Generation(2), seq: 1 };
        assert!(!fits(&[BlockVersion { blocks: 1, version, hole: false }]));
    }
}

//! Changes that were accepted and are not yet in the extent files.
//!
//! The commit thread decides what a change does before it writes the journal, so it has to see
//! the changes before it in the same commit too. Pure.

use std::ops::Range;

use lunette_proto::ids::Version;
use lunette_proto::limits::EXTENT_BLOCKS;

use super::extent::{Block, BlockState, ExtentState};
use super::journal::{ChangeRecord, Content, Reset};

/// One extent's accepted changes, oldest first.
#[derive(Debug, Default)]
pub(crate) struct PendingExtent {
    changes: Vec<Accepted>,
    /// Header and table as they will be, if a change alters them.
    shape: Option<Shape>,
    newest: Version,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    floor: Version,
    has_table: bool,
    header_lost: bool,
}

#[derive(Debug)]
struct Accepted {
    blocks: Range<u32>,
    version: Version,
    state: BlockState,
}

/// What a change will do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Effect {
    /// Runs of blocks that it changes.
    pub(crate) runs: Vec<EffectRun>,
    /// The newest version of the extent afterwards.
    pub(crate) newest: Version,
}

/// A run of blocks that a change alters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EffectRun {
    pub(crate) blocks: Range<u32>,
    /// Blocks with data after it, less those before.
    pub(crate) grown: i32,
}

/// Which change is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) blocks: Range<u32>,
    pub(crate) version: Version,
    pub(crate) data: bool,
    /// A repair writes a block of equal version again: what is there may be damaged.
    pub(crate) repair: bool,
}

impl PendingExtent {
    /// What `wanted` does to the extent as it will be (`None`: there is no file yet).
    pub(crate) fn effect(&self, extent: Option<&ExtentState>, wanted: &Wanted) -> Effect {
        let mut runs: Vec<EffectRun> = Vec::new();
        for index in wanted.blocks.clone() {
            let block = self.block(extent, index);
            let applies = match block.state {
                BlockState::Lost => true,
                _ if wanted.repair => wanted.version >= block.version,
                _ => wanted.version > block.version,
            };
            if !applies {
                continue;
            }
            // What is lost still takes its space.
            let had_data = matches!(block.state, BlockState::Data | BlockState::Lost);
            let grown = i32::from(wanted.data) - i32::from(had_data);
            match runs.last_mut() {
                Some(run) if run.blocks.end == index => {
                    run.blocks.end += 1;
                    run.grown += grown;
                }
                _ => runs.push(EffectRun { blocks: index..index + 1, grown }),
            }
        }
        let before = extent.map_or(Version::NONE, ExtentState::newest).max(self.newest);
        Effect { runs, newest: before.max(wanted.version) }
    }

    /// Notes that `run` of `wanted` was accepted. What the record says about the extent's header:
    /// its floor, and whether the table begins anew.
    pub(crate) fn accept(
        &mut self,
        extent: Option<&ExtentState>,
        wanted: &Wanted,
        run: &EffectRun,
    ) -> (Version, Reset) {
        let shape = self.shape.unwrap_or_else(|| Shape {
            floor: extent.map_or(Version::NONE, ExtentState::floor),
            has_table: extent.is_some_and(ExtentState::has_table),
            header_lost: extent.is_some_and(ExtentState::is_header_lost),
        });
        self.newest = self.newest.max(wanted.version);
        if is_whole(&run.blocks) && !wanted.data {
            self.changes.clear();
            self.shape = Some(Shape { floor: wanted.version, has_table: false, header_lost: false });
            return (Version::NONE, Reset::None);
        }
        let state = if wanted.data { BlockState::Data } else { BlockState::Zeros };
        self.changes.push(Accepted { blocks: run.blocks.clone(), version: wanted.version, state });
        let reset = match shape {
            Shape { header_lost: true, .. } => Reset::Lost,
            Shape { has_table: false, .. } => Reset::Absent,
            _ => Reset::None,
        };
        self.shape = Some(Shape { has_table: true, header_lost: false, ..shape });
        (shape.floor, reset)
    }

    fn block(&self, extent: Option<&ExtentState>, index: u32) -> Block {
        if let Some(change) = self.changes.iter().rev().find(|change| change.blocks.contains(&index)) {
            return Block { version: change.version, state: change.state, crc: 0 };
        }
        match self.shape {
            // A whole discard hides what the file has.
            Some(Shape { has_table: false, floor, .. }) => Block::under_floor(floor),
            Some(Shape { floor, .. }) if extent.is_none_or(|extent| floor > extent.floor()) => {
                Block::under_floor(floor)
            }
            _ => extent.map_or(Block::ABSENT, |extent| extent.block(index)),
        }
    }
}

/// Whether the blocks are the whole extent.
pub(crate) fn is_whole(blocks: &Range<u32>) -> bool {
    *blocks == (0..EXTENT_BLOCKS)
}

/// Whether a change begins the extent's file anew as zeros.
pub(crate) fn is_whole_zeros(change: &ChangeRecord) -> bool {
    change.content == Content::WholeZeros
}

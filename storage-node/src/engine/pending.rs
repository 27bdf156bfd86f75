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
    /// A whole discard hides what the file has.
    hides_file: bool,
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
            hides_file: false,
        });
        self.newest = self.newest.max(wanted.version);
        if is_whole(&run.blocks) && !wanted.data {
            self.changes.clear();
            self.shape =
                Some(Shape { floor: wanted.version, has_table: false, header_lost: false, hides_file: true });
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
            Some(Shape { hides_file: true, floor, .. }) => Block::under_floor(floor),
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

#[cfg(test)]
mod tests {
    use std::fs::File;

    use bytes::Bytes;
    use lunette_proto::ids::{ExtentId, Generation, Namespace};

    use super::super::extent::Extent;
    use super::*;

    const ID: ExtentId = ExtentId { namespace: Namespace(7), index: 2 };
    const WHOLE: Range<u32> = 0..EXTENT_BLOCKS;

    fn version(seq: u64) -> Version {
        Version { generation: Generation(1), seq }
    }

    /// Guards invariant 5: a whole discard that repairs damage under the same version hides the damage from the
    /// changes that come after it in one commit; an older one of them does not win.
    #[test]
    fn a_repaired_extent_has_no_lost_blocks() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("extent");
        let file = || {
            File::options().read(true).write(true).create(true).truncate(false).open(&path).expect("a file")
        };
        let change = ChangeRecord {
            extent: ID,
            version: version(9),
            floor: version(5),
            first: 3,
            blocks: 1,
            content: Content::Data(Bytes::from(vec![1; 4096])),
            reset: Reset::Absent,
            grown: 1,
        };
        Extent::create(ID, file()).apply(&change, false).expect("written");
        let mut bytes = std::fs::read(&path).expect("read");
        bytes[4096 + 3 * 32] ^= 1;
        std::fs::write(&path, bytes).expect("damaged");
        let extent = Extent::load(ID, file()).expect("read").expect("there");
        let state = extent.state.read();
        assert_eq!((state.block(3).state, state.floor()), (BlockState::Lost, version(5)));

        let mut pending = PendingExtent::default();
        let mut accept = |blocks: Range<u32>, seq, data, repair| {
            let wanted = Wanted { blocks, version: version(seq), data, repair };
            let effect = pending.effect(Some(&state), &wanted);
            effect.runs.iter().for_each(|run| {
                pending.accept(Some(&state), &wanted, run);
            });
            effect.runs.len()
        };
        assert_eq!(accept(WHOLE, 5, false, true), 1);
        assert_eq!(accept(8..9, 7, true, false), 1);
        assert_eq!(accept(3..4, 4, true, false), 0, "older than the discard");
    }
}

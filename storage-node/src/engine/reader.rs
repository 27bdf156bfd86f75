//! Reading blocks, with every checksum verified where the data leaves the disk.
//!
//! A reader copies the entries of the table, reads the data without holding a lock, and verifies:
//! a change that came in between makes the checksum fail, and the reader looks again, the last time
//! with changes kept out. A slow medium therefore never makes a commit wait for a read.

use std::io::ErrorKind;
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use lunette_proto::ids::Version;
use lunette_proto::limits::{BLOCK_BYTES, EXTENT_BLOCKS, EXTENT_BYTES};
use lunette_proto::node::{BlockVersion, Failure};

use super::extent::{Block, BlockState, Extent, ExtentState, block_crc};
use super::journal::{ChangeRecord, Content};
use super::pending::is_whole;

static ZEROS: [u8; EXTENT_BYTES as usize] = [0; EXTENT_BYTES as usize];
const BLOCK: usize = BLOCK_BYTES as usize;
/// Looks without the lock before the one with it.
const UNLOCKED_LOOKS: usize = 2;

/// Zeros without a copy; `len` is at most an extent.
pub(super) fn zeros(len: usize) -> Bytes {
    Bytes::from_static(&ZEROS[..len])
}

/// Why a read gave nothing.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Missed {
    /// It would have to wait.
    Wait,
    /// The data is wrong or unreadable.
    Failed(Failure),
}

/// Where the content of a block comes from.
#[derive(Clone, Debug)]
enum Source {
    File(Block),
    Memory(Bytes),
}

/// Reads without waiting: from memory and the page cache.
pub(super) fn read_cached(extent: &Extent, blocks: Range<u32>) -> Result<Bytes, Missed> {
    let Some(state) = extent.state.try_read() else { return Err(Missed::Wait) };
    let sources = sources(&state, blocks.clone());
    drop(state);
    match assemble(extent, blocks.start, &sources, true) {
        // A change may have come in between: look again, where waiting is allowed.
        Err(Missed::Failed(_)) => Err(Missed::Wait),
        other => other,
    }
}

/// Reads, and waits for the medium.
pub(super) fn read(extent: &Extent, blocks: Range<u32>) -> Result<Bytes, Failure> {
    for _ in 0..UNLOCKED_LOOKS {
        let sources = sources(&extent.state.read(), blocks.clone());
        if let Ok(data) = assemble(extent, blocks.start, &sources, false) {
            return Ok(data);
        }
    }
    let state = extent.state.read();
    let sources = sources(&state, blocks.clone());
    assemble(extent, blocks.start, &sources, false).map_err(|missed| match missed {
        Missed::Failed(failure) => {
            tracing::error!(extent = %extent.id, first = blocks.start, %failure, "damaged data on the disk");
            failure
        }
        Missed::Wait => Failure::Busy,
    })
}

/// The versions of all blocks, as runs.
pub(super) fn versions(extent: &Extent) -> Vec<BlockVersion> {
    let state = extent.state.read();
    let mut runs: Vec<BlockVersion> = Vec::new();
    for index in 0..EXTENT_BLOCKS {
        let (version, block) = match newest_volatile(&state, index) {
            Some(change) if matches!(change.content, Content::Data(_)) => (change.version, BlockState::Data),
            Some(change) => (change.version, BlockState::Zeros),
            None => {
                let block = state.block(index);
                (block.version, block.state)
            }
        };
        let hole = matches!(block, BlockState::Absent | BlockState::Zeros);
        match runs.last_mut() {
            Some(run) if (run.version, run.hole) == (version, hole) => run.blocks += 1,
            _ => runs.push(BlockVersion { blocks: 1, version, hole }),
        }
    }
    if runs.last().is_some_and(|run| run.version == Version::NONE && run.hole) {
        runs.pop();
    }
    runs
}

fn newest_volatile(state: &ExtentState, index: u32) -> Option<&ChangeRecord> {
    state.volatile.iter().rev().find(|change| (change.first..change.first + change.blocks).contains(&index))
}

fn sources(state: &ExtentState, blocks: Range<u32>) -> Vec<Source> {
    let mut sources = blocks.clone().map(|index| Source::File(state.block(index))).collect::<Vec<_>>();
    for change in &state.volatile {
        let changed = change.first..change.first + change.blocks;
        for index in changed.start.max(blocks.start)..changed.end.min(blocks.end) {
            let slot = &mut sources[(index - blocks.start) as usize];
            *slot = match &change.content {
                Content::Data(data) => {
                    let at = (index - change.first) as usize * BLOCK;
                    Source::Memory(data.slice(at..at + BLOCK))
                }
                Content::Zeros | Content::WholeZeros => Source::File(Block::under_floor(change.version)),
            };
        }
        debug_assert!(change.content != Content::WholeZeros || is_whole(&changed));
    }
    sources
}

fn assemble(extent: &Extent, first: u32, sources: &[Source], cached_only: bool) -> Result<Bytes, Missed> {
    let is_hole = |source: &Source| {
        matches!(source, Source::File(Block { state: BlockState::Absent | BlockState::Zeros, .. }))
    };
    if sources.iter().all(is_hole) {
        return Ok(zeros(sources.len() * BLOCK));
    }
    let mut out = BytesMut::zeroed(sources.len() * BLOCK);
    let mut at = 0;
    while at < sources.len() {
        let run = sources[at..].iter().take_while(|source| is_data(source)).count();
        if run > 0 {
            let index = first + u32::try_from(at).expect("blocks of one extent");
            read_run(
                extent,
                index,
                &sources[at..at + run],
                &mut out[at * BLOCK..(at + run) * BLOCK],
                cached_only,
            )?;
            at += run;
            continue;
        }
        match &sources[at] {
            Source::Memory(data) => out[at * BLOCK..(at + 1) * BLOCK].copy_from_slice(data),
            Source::File(Block { state: BlockState::Lost, .. }) => {
                return Err(corrupt(first + u32::try_from(at).expect("blocks of one extent")));
            }
            Source::File(_) => {}
        }
        at += 1;
    }
    Ok(out.freeze())
}

fn is_data(source: &Source) -> bool {
    matches!(source, Source::File(Block { state: BlockState::Data, .. }))
}

/// Reads and verifies a run of data blocks that begins with block `first`.
fn read_run(
    extent: &Extent,
    first: u32,
    sources: &[Source],
    out: &mut [u8],
    cached_only: bool,
) -> Result<(), Missed> {
    match extent.read_data(first, out, cached_only) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::WouldBlock => return Err(Missed::Wait),
        // A medium that cannot read: find the first bad block, so that no more is repaired than needed.
        Err(error) if sources.len() > 1 && !cached_only => {
            tracing::warn!(extent = %extent.id, %error, "read failed, trying block by block");
            for ((index, source), block) in (first..).zip(sources).zip(out.chunks_exact_mut(BLOCK)) {
                read_run(extent, index, std::slice::from_ref(source), block, cached_only)?;
            }
            return Ok(());
        }
        Err(error) => {
            tracing::warn!(extent = %extent.id, block = first, %error, "read failed");
            return Err(corrupt(first));
        }
    }
    for ((index, source), data) in (first..).zip(sources).zip(out.chunks_exact(BLOCK)) {
        if let Source::File(block) = source
            && block_crc(extent.id, index, block.version, data) != block.crc
        {
            return Err(corrupt(index));
        }
    }
    Ok(())
}

fn corrupt(block: u32) -> Missed {
    Missed::Failed(Failure::Corrupt { offset: block * BLOCK_BYTES })
}

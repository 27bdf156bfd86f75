//! Checkpoints: what is known in memory is brought to the disk, so that the WAL before it can be used again.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use lunette_proto::checksum::crc32c;

use super::Identity;
use super::commit::coalesced;
use super::core::{Fatal, Store};
use super::disk::Disk;
use super::layout::{Layout, UNIT_BYTES};
use super::namespaces::Namespaces;
use super::pages::encode_area;
use super::superblock::Superblock;
use super::view::Dirty;

/// A checkpoint that has begun: what it writes, as it was when it began.
#[derive(Debug)]
pub struct Checkpoint {
    superblock: Superblock,
    descriptors: Vec<Arc<Dirty>>,
    /// Pages with their places.
    pages: Vec<(u32, u8, Bytes)>,
    area: Bytes,
    /// Units that the medium may take back.
    taken_back: Vec<u32>,
    wal_position: u64,
}

impl Checkpoint {
    /// Writes it; on any thread, while commits go on.
    ///
    /// # Errors
    /// The disk has failed.
    pub fn write<D: Disk>(&self, disk: &D) -> io::Result<()> {
        let layout = &self.superblock.layout;
        if planted!(SuperblockBeforePages) {
            disk.write(Layout::superblock(0), &[self.superblock.encode()])?;
        }
        let descriptors = self.descriptors.iter().map(|dirty| (dirty.descriptor.unit, dirty.sector.clone()));
        for (offset, parts) in coalesced(descriptors, |unit| layout.descriptor(*unit)) {
            disk.write(offset, &parts)?;
        }
        let pages = self.pages.iter().map(|(page, place, bytes)| ((*page, *place), bytes.clone()));
        for (offset, parts) in coalesced(pages, |(page, place)| layout.page(*page, *place)) {
            disk.write(offset, &parts)?;
        }
        let area = layout.area_offsets[usize::from(self.superblock.area)];
        disk.write(area, std::slice::from_ref(&self.area))?;
        if !planted!(CheckpointWithoutSync) {
            disk.sync()?;
        }
        let superblock = self.superblock.encode();
        disk.write(Layout::superblock(0), std::slice::from_ref(&superblock))?;
        disk.sync()?;
        // The second copy is for the day when the first is damaged; the next sync makes it durable.
        disk.write(Layout::superblock(1), &[superblock])?;
        let mut rest = self.taken_back.as_slice();
        while let Some(first) = rest.first() {
            let run = rest.iter().zip(*first..).take_while(|(unit, expected)| *unit == expected).count();
            disk.discard(layout.unit(*first), run as u64 * UNIT_BYTES)?;
            rest = &rest[run..];
        }
        Ok(())
    }

    /// Bytes that it writes.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        let descriptors = self.descriptors.iter().map(|dirty| dirty.sector.len()).sum::<usize>();
        descriptors + self.pages.iter().map(|(.., page)| page.len()).sum::<usize>() + self.area.len()
    }
}

impl<D: Disk> Store<D> {
    /// Writes an empty store, durably.
    ///
    /// # Errors
    /// The medium refuses.
    pub fn format(disk: &D, identity: &Identity, layout: &Layout) -> io::Result<()> {
        let mut state = Vec::new();
        Namespaces::default().encode(&mut state);
        let area = encode_area(1, std::iter::empty(), &state);
        let superblock = Superblock {
            identity: *identity,
            layout: *layout,
            checkpoint: 1,
            lsn: 0,
            wal_position: 0,
            wal_batch: 1,
            wal_chain: 0,
            area: 0,
            area_len: area.len() as u64,
            area_crc: crc32c(&area),
        };
        disk.write(layout.area_offsets[0], &[padded(area)])?;
        disk.sync()?;
        let page = superblock.encode();
        disk.write(Layout::superblock(0), std::slice::from_ref(&page))?;
        disk.write(Layout::superblock(1), &[page])?;
        disk.sync()
    }

    /// Begins a checkpoint of everything so far; commits first. There is at most one at a time.
    ///
    /// # Errors
    /// The disk has failed.
    pub fn begin_checkpoint(&mut self) -> Result<Checkpoint, Fatal> {
        assert!(!self.is_checkpointing, "one checkpoint at a time");
        self.commit()?;
        self.is_checkpointing = true;
        let number = self.superblock.checkpoint + 1;
        let next = self.wal.next();
        let state = self.view.state.read();
        let mut descriptors = state.dirty.values().cloned().collect::<Vec<_>>();
        descriptors.sort_unstable_by_key(|dirty| dirty.descriptor.unit);
        if planted!(DescriptorNotDirty) {
            descriptors.pop();
        }
        if planted!(WalFreedEarly) {
            self.wal.free_to(self.wal.position());
        }
        let mut pages = self.pages.take_dirty(self.identity.uuid, number, &state.extents);
        pages.sort_unstable_by_key(|(page, place, _)| (*page, *place));
        let mut namespaces = Vec::new();
        state.namespaces.encode(&mut namespaces);
        drop(state);
        let area = encode_area(number, self.pages.directory(), &namespaces);
        if area.len() as u64 > self.superblock.layout.area_bytes {
            return Err(Fatal("the state of the namespaces does not fit its place".to_owned()));
        }
        let superblock = Superblock {
            checkpoint: number,
            lsn: next.lsn - 1,
            wal_position: next.place,
            wal_batch: next.number,
            wal_chain: next.chain,
            area: 1 - self.superblock.area,
            area_len: area.len() as u64,
            area_crc: crc32c(&area),
            ..self.superblock
        };
        Ok(Checkpoint {
            superblock,
            descriptors,
            pages,
            area: padded(area),
            taken_back: self.units.begin_checkpoint(),
            wal_position: self.wal.position(),
        })
    }

    /// Notes that the checkpoint was written.
    ///
    /// # Errors
    /// None today; the signature leaves room for it.
    pub fn finish_checkpoint(&mut self, checkpoint: Checkpoint) -> Result<(), Fatal> {
        assert!(self.is_checkpointing, "a checkpoint has begun");
        self.is_checkpointing = false;
        self.view.written(&checkpoint.descriptors);
        self.superblock = checkpoint.superblock;
        self.wal.free_to(checkpoint.wal_position);
        self.units.finish_checkpoint(&checkpoint.taken_back);
        Ok(())
    }
}

/// Whole sectors.
fn padded(mut bytes: Vec<u8>) -> Bytes {
    bytes.resize(bytes.len().next_multiple_of(super::layout::PAGE_BYTES as usize), 0);
    bytes.into()
}

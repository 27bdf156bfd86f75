//! The content of one file: what is durable, and what was written since.
//!
//! ```text
//!     sector   0    1    2    3    4
//!     write 9       9b   9c             what readers see: the newest of each column
//!     write 8  8a   8b
//!     durable  ..   ..   ..   ..   ..   in the backing
//! ```
//!
//! A power cut leaves of each column any one entry. Nothing here does I/O but through [`Backing`].

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;

use bytes::Bytes;

use super::blocks::{self, BLOCK_BYTES, Blocks};
use crate::random::Random;

/// What a disk writes as a whole.
pub const SECTOR_BYTES: u64 = 512;
const SECTOR: usize = SECTOR_BYTES as usize;

/// Where durable content lies.
pub trait Backing {
    /// Fills `out`; what lies beyond the end is zeros.
    ///
    /// # Errors
    /// The tool's own files cannot be used.
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;
    /// Writes.
    ///
    /// # Errors
    /// The tool's own files cannot be used.
    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Makes a range zeros and gives its space back.
    ///
    /// # Errors
    /// The tool's own files cannot be used.
    fn punch(&mut self, offset: u64, len: u64) -> io::Result<()>;
    /// Sets the size; what is added is zeros.
    ///
    /// # Errors
    /// The tool's own files cannot be used.
    fn set_len(&mut self, len: u64) -> io::Result<()>;
}

/// One file.
#[derive(Debug)]
pub struct FaultFile<B> {
    backing: B,
    durable_size: u64,
    durable_blocks: Blocks,
    size: u64,
    blocks: Blocks,
    sectors: BTreeMap<u64, Vec<Version>>,
    /// Sizes since the last sync, in order.
    sizes: Vec<u64>,
    /// Space given or taken since the last sync, in order.
    space: Vec<(Range<u64>, bool)>,
}

/// What an operation left in a sector.
#[derive(Clone, Debug)]
struct Version {
    operation: u64,
    /// `None`: zeros.
    data: Option<Bytes>,
    /// A sync of it failed, so no later one will write it.
    stranded: bool,
}

/// What a crash did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Crashed {
    /// Sectors whose newest content was lost.
    pub lost_sectors: u64,
    /// Sectors of which something unsynced was kept.
    pub kept_sectors: u64,
    /// Operations that were kept in part.
    pub torn_writes: u64,
}

/// What a crash does with one operation.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Kept,
    Lost,
    /// Sectors below this one are kept.
    Cut(u64),
    /// Any sectors are kept.
    Scattered,
}

impl<B: Backing> FaultFile<B> {
    /// A file of which everything in `backing` is durable.
    pub fn new(backing: B, size: u64, blocks: Blocks) -> Self {
        Self {
            backing,
            durable_size: size,
            durable_blocks: blocks.clone(),
            size,
            blocks,
            sectors: BTreeMap::new(),
            sizes: Vec::new(),
            space: Vec::new(),
        }
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Blocks that have space.
    pub fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    /// Sectors that a power cut can change.
    pub fn unsynced_sectors(&self) -> u64 {
        self.sectors.len() as u64
    }

    /// What readers see of a range, as far as the file goes.
    ///
    /// # Errors
    /// The backing fails.
    pub fn read(&self, offset: u64, len: u64) -> io::Result<Vec<u8>> {
        let len = len.min(self.size.saturating_sub(offset));
        let mut out = vec![0; index(len)];
        self.fill(offset, &mut out)?;
        Ok(out)
    }

    fn fill(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if out.is_empty() {
            return Ok(());
        }
        self.backing.read(offset, out)?;
        let end = offset + out.len() as u64;
        for (sector, versions) in self.sectors.range(offset / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES)) {
            let Some(newest) = versions.last() else { continue };
            let start = sector * SECTOR_BYTES;
            let (from, to) = (start.max(offset), (start + SECTOR_BYTES).min(end));
            let target = &mut out[index(from - offset)..index(to - offset)];
            match &newest.data {
                Some(data) => target.copy_from_slice(&data[index(from - start)..index(to - start)]),
                None => target.fill(0),
            }
        }
        Ok(())
    }

    /// Writes, in memory.
    ///
    /// # Errors
    /// The backing fails.
    pub fn write(&mut self, operation: u64, offset: u64, data: &[u8]) -> io::Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        let end = offset + data.len() as u64;
        let first = offset / SECTOR_BYTES * SECTOR_BYTES;
        let mut sectors = vec![0; index(end.next_multiple_of(SECTOR_BYTES) - first)];
        if !offset.is_multiple_of(SECTOR_BYTES) {
            self.fill(first, &mut sectors[..SECTOR])?;
        }
        if !end.is_multiple_of(SECTOR_BYTES) {
            let last = sectors.len() - SECTOR;
            self.fill(first + last as u64, &mut sectors[last..])?;
        }
        sectors[index(offset - first)..][..data.len()].copy_from_slice(data);
        let sectors = Bytes::from(sectors);
        for (index, start) in (0..sectors.len()).step_by(SECTOR).enumerate() {
            let data = Some(sectors.slice(start..start + SECTOR));
            self.push(first / SECTOR_BYTES + index as u64, Version { operation, data, stranded: false });
        }
        self.occupy(offset, end - offset);
        self.grow(end);
        Ok(())
    }

    /// Writes, and makes that durable; what was written before and elsewhere stays as it is.
    ///
    /// # Errors
    /// The backing fails.
    pub fn write_durable(&mut self, operation: u64, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write(operation, offset, data)?;
        let end = offset + data.len() as u64;
        let range = offset / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES);
        let done: Vec<_> = range.filter_map(|sector| self.sectors.remove_entry(&sector)).collect();
        self.durable_blocks.set(blocks::touched(offset, end - offset), true);
        self.durable_size = self.durable_size.max(end);
        self.persist(done)
    }

    /// Makes a range zeros, in memory; `punch` takes its space too.
    ///
    /// # Errors
    /// The backing fails.
    pub fn zero(&mut self, operation: u64, offset: u64, len: u64, punch: bool) -> io::Result<()> {
        let end = (offset + len).min(self.size.next_multiple_of(BLOCK_BYTES));
        let mut at = offset;
        while at < end {
            // What has no space is zeros as it is.
            if !self.blocks.contains(at / BLOCK_BYTES) {
                at = (at / BLOCK_BYTES + 1) * BLOCK_BYTES;
                continue;
            }
            let start = at / SECTOR_BYTES * SECTOR_BYTES;
            let to = (start + SECTOR_BYTES).min(end);
            let data = if to - at == SECTOR_BYTES {
                None
            } else {
                let mut sector = vec![0; SECTOR];
                self.fill(start, &mut sector)?;
                sector[index(at - start)..index(to - start)].fill(0);
                Some(Bytes::from(sector))
            };
            self.push(start / SECTOR_BYTES, Version { operation, data, stranded: false });
            at = to;
        }
        if punch {
            let range = blocks::whole(offset, len);
            let range = range.start..range.end.min(self.size.div_ceil(BLOCK_BYTES)).max(range.start);
            self.blocks.set(range.clone(), false);
            self.space.push((range, false));
        }
        Ok(())
    }

    /// Gives a range space, in memory.
    pub fn occupy(&mut self, offset: u64, len: u64) {
        let range = blocks::touched(offset, len);
        if self.blocks.missing(range.clone()) > 0 {
            self.blocks.set(range.clone(), true);
            self.space.push((range, true));
        }
    }

    /// How many blocks of a range have no space yet.
    pub fn missing(&self, offset: u64, len: u64) -> u64 {
        self.blocks.missing(blocks::touched(offset, len))
    }

    /// Makes the file at least so long, in memory.
    pub fn grow(&mut self, size: u64) {
        if size > self.size {
            self.size = size;
            self.sizes.push(size);
        }
    }

    /// Sets the size, in memory.
    ///
    /// # Errors
    /// The backing fails.
    pub fn set_size(&mut self, operation: u64, size: u64) -> io::Result<()> {
        if size < self.size {
            self.zero(operation, size, self.size.next_multiple_of(BLOCK_BYTES) - size, true)?;
            self.size = size;
            self.sizes.push(size);
        }
        self.grow(size);
        Ok(())
    }

    /// Makes everything durable but what an earlier sync failed to write.
    ///
    /// # Errors
    /// The backing fails.
    pub fn sync(&mut self) -> io::Result<()> {
        let stranded = |versions: &Vec<Version>| versions.last().is_some_and(|newest| newest.stranded);
        let (kept, done): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut self.sectors).into_iter().partition(|(_, versions)| stranded(versions));
        self.sectors = kept;
        let sizes = std::mem::take(&mut self.sizes);
        self.cut_to_smallest(&sizes)?;
        self.durable_size = self.size;
        for (range, present) in self.space.drain(..) {
            self.durable_blocks.set(range, present);
        }
        self.persist(done)
    }

    /// A sync that fails: what it was to write counts as clean from now on.
    pub fn fail_sync(&mut self) {
        self.sectors.values_mut().flatten().for_each(|version| version.stranded = true);
    }

    /// A write with `O_DSYNC` whose sync failed: the same for what it wrote.
    pub fn fail_durable(&mut self, offset: u64, len: u64) {
        let range = offset / SECTOR_BYTES..(offset + len).div_ceil(SECTOR_BYTES);
        self.sectors
            .range_mut(range)
            .flat_map(|(_, versions)| versions)
            .for_each(|version| version.stranded = true);
    }

    /// A power cut after which nothing that was not synced is there.
    pub fn drop_unsynced(&mut self) -> Crashed {
        let lost_sectors = std::mem::take(&mut self.sectors).len() as u64;
        self.sizes.clear();
        self.space.clear();
        self.size = self.durable_size;
        self.blocks = self.durable_blocks.clone();
        Crashed { lost_sectors, ..Crashed::default() }
    }

    /// A power cut after which any of the operations that were not synced are there, whole or in part. What is there
    /// then is durable.
    ///
    /// # Errors
    /// The backing fails.
    pub fn crash(&mut self, random: &mut Random) -> io::Result<Crashed> {
        let mut crashed = Crashed::default();
        let operations: BTreeSet<u64> =
            self.sectors.values().flatten().map(|version| version.operation).collect();
        let mut first_and_last = BTreeMap::<u64, (u64, u64)>::new();
        for (sector, versions) in &self.sectors {
            for version in versions {
                first_and_last.entry(version.operation).or_insert((*sector, *sector)).1 = *sector;
            }
        }
        let fates: BTreeMap<u64, Fate> = operations
            .into_iter()
            .map(|operation| {
                let (first, last) = first_and_last[&operation];
                let fate = match random.below(6) {
                    0 | 1 => Fate::Kept,
                    2 | 3 => Fate::Lost,
                    4 => Fate::Cut(first + random.below(last - first + 1)),
                    _ => Fate::Scattered,
                };
                crashed.torn_writes +=
                    u64::from(first < last && matches!(fate, Fate::Cut(_) | Fate::Scattered));
                (operation, fate)
            })
            .collect();

        let mut done = Vec::new();
        for (sector, mut versions) in std::mem::take(&mut self.sectors) {
            let all = versions.len();
            while let Some(newest) = versions.last() {
                let kept = match fates[&newest.operation] {
                    Fate::Kept => true,
                    Fate::Lost => false,
                    Fate::Cut(end) => sector < end,
                    Fate::Scattered => random.one_in(2),
                };
                if kept {
                    break;
                }
                versions.pop();
            }
            crashed.lost_sectors += u64::from(versions.len() < all);
            if !versions.is_empty() {
                crashed.kept_sectors += 1;
                done.push((sector, versions));
            }
        }
        // The size comes from the file system's own journal, which is in order.
        let mut sizes = std::mem::take(&mut self.sizes);
        sizes.truncate(index(random.below(sizes.len() as u64 + 1)));
        self.cut_to_smallest(&sizes)?;
        self.durable_size = sizes.last().copied().unwrap_or(self.durable_size);
        // What was to lose its space keeps it: of the zeros that were to be there, some may be missing.
        for (range, _) in self.space.drain(..).filter(|(_, present)| *present) {
            self.durable_blocks.set(range, true);
        }
        for (sector, _) in &done {
            self.durable_blocks.set(blocks::touched(sector * SECTOR_BYTES, SECTOR_BYTES), true);
        }
        self.durable_blocks.truncate(self.durable_size.div_ceil(BLOCK_BYTES));
        self.persist(done)?;
        self.size = self.durable_size;
        self.blocks = self.durable_blocks.clone();
        Ok(crashed)
    }

    fn push(&mut self, sector: u64, version: Version) {
        self.sectors.entry(sector).or_default().push(version);
    }

    /// A file that became smaller and larger again has zeros where it was cut, whatever becomes of later writes.
    fn cut_to_smallest(&mut self, sizes: &[u64]) -> io::Result<()> {
        match sizes.iter().min() {
            Some(smallest) if *smallest < self.durable_size => self.backing.set_len(*smallest),
            _ => Ok(()),
        }
    }

    /// Writes the newest of each column to the backing, runs of sectors together.
    fn persist(&mut self, done: impl IntoIterator<Item = (u64, Vec<Version>)>) -> io::Result<()> {
        let mut run = (0, Vec::new());
        let mut holes = (0, 0);
        for (sector, mut versions) in done {
            let Some(newest) = versions.pop() else { continue };
            let start = sector * SECTOR_BYTES;
            match newest.data {
                Some(data) => {
                    if run.0 + run.1.len() as u64 != start {
                        self.backing.write(run.0, &run.1)?;
                        run = (start, Vec::new());
                    }
                    run.1.extend_from_slice(&data);
                }
                None => {
                    if holes.0 + holes.1 != start {
                        self.backing.punch(holes.0, holes.1)?;
                        holes = (start, 0);
                    }
                    holes.1 += SECTOR_BYTES;
                }
            }
        }
        self.backing.write(run.0, &run.1)?;
        self.backing.punch(holes.0, holes.1)?;
        self.backing.set_len(self.durable_size)
    }
}

fn index(value: u64) -> usize {
    usize::try_from(value).expect("64-bit addresses")
}

//! Extent files. This page is the specification.
//!
//! `extents/NAMESPACE/INDEX DIV 4096/INDEX`, the names in hexadecimal of 16, 13 and 16 digits, is one
//! extent: a sparse file of 64 KiB + 4 MiB, little-endian.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | magic `LUNEXTNT` |
//! | 8 | 4 | format version: 1 |
//! | 12 | 4 | 1 if the table is in use, else 0 |
//! | 16 | 16 | namespace 8, index 8 |
//! | 32 | 16 | floor: a version (generation 8, seq 8) |
//! | 48 | 4 | zero |
//! | 52 | 4 | CRC-32C of bytes 0 to 52 |
//! | 56 | 4040 | zeros |
//! | 4096 | 32768 | table: 32 bytes for each of 1024 blocks |
//! | 36864 | 28672 | nothing |
//! | 65536 | 4194304 | data: block i at 65536 + 4096 i |
//!
//! An entry of the table:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 16 | version (generation 8, seq 8) |
//! | 16 | 4 | CRC-32C of (namespace 8, index 8, block 4, version 16, the 4096 bytes); 0 without data |
//! | 20 | 1 | state: 0 never written, 1 data, 2 zeros, 3 lost |
//! | 21 | 7 | zeros |
//! | 28 | 4 | CRC-32C of (namespace 8, index 8, block 4, bytes 0 to 28) |
//!
//! A block whose entry is older than the floor, and every block while the table is not in use, is
//! zeros of the floor's version (never written, if the floor is zero): discarding a whole extent
//! is one write. Where the block is, and which version, is part of both checksums, so blocks that were
//! written to the wrong place, or not at all, are found. An entry whose own checksum is wrong is as good as
//! `lost`: reading it fails, any repair and any change writes it anew. The same holds for all
//! blocks under a damaged header.
//!
//! A file of length 0 was made for a change that never reached the journal: there is no such extent.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use bytes::{Buf, BufMut, Bytes};
use lunette_proto::checksum::{crc32c, crc32c_of_parts};
use lunette_proto::ids::{ExtentId, Generation, Version};
use lunette_proto::limits::{BLOCK_BYTES, EXTENT_BLOCKS, EXTENT_BYTES};
use parking_lot::RwLock;
use rustix::fs::{FallocateFlags, fallocate};

use super::journal::{ChangeRecord, Content, Reset};

const MAGIC: &[u8; 8] = b"LUNEXTNT";
const FORMAT_VERSION: u32 = 1;
const HEADER_BYTES: usize = 4096;
const HEADER_CRC: usize = 52;
const ENTRY_BYTES: usize = 32;
const ENTRY_CRC: usize = ENTRY_BYTES - size_of::<u32>();
const TABLE_OFFSET: u64 = HEADER_BYTES as u64;
const TABLE_BYTES: usize = ENTRY_BYTES * EXTENT_BLOCKS as usize;
const DATA_OFFSET: u64 = 65_536;
const FILE_BYTES: u64 = DATA_OFFSET + EXTENT_BYTES as u64;
const _: () = assert!(TABLE_OFFSET + TABLE_BYTES as u64 <= DATA_OFFSET);
const BLOCK: usize = BLOCK_BYTES as usize;

/// What is in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BlockState {
    /// Never written: zeros.
    Absent,
    /// Data.
    Data,
    /// Zeros, of a discard.
    Zeros,
    /// Something was there and is damaged.
    Lost,
}

/// One block as the table has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) version: Version,
    pub(crate) state: BlockState,
    pub(crate) crc: u32,
}

impl Block {
    pub(crate) const ABSENT: Self = Self { version: Version::NONE, state: BlockState::Absent, crc: 0 };
    const LOST: Self = Self { version: Version::NONE, state: BlockState::Lost, crc: 0 };

    pub(crate) fn under_floor(floor: Version) -> Self {
        let state = if floor == Version::NONE { BlockState::Absent } else { BlockState::Zeros };
        Self { version: floor, state, crc: 0 }
    }

    fn encode(&self, id: ExtentId, index: u32) -> [u8; ENTRY_BYTES] {
        let mut entry = [0; ENTRY_BYTES];
        let mut out = entry.as_mut_slice();
        out.put_u64_le(self.version.generation.0);
        out.put_u64_le(self.version.seq);
        out.put_u32_le(self.crc);
        out.put_u8(match self.state {
            BlockState::Absent => 0,
            BlockState::Data => 1,
            BlockState::Zeros => 2,
            BlockState::Lost => 3,
        });
        let crc = entry_crc(id, index, &entry);
        entry[ENTRY_CRC..].copy_from_slice(&crc.to_le_bytes());
        entry
    }

    fn decode(id: ExtentId, index: u32, entry: &[u8; ENTRY_BYTES]) -> Self {
        let mut fields = entry.as_slice();
        let version = Version { generation: Generation(fields.get_u64_le()), seq: fields.get_u64_le() };
        let crc = fields.get_u32_le();
        let state = match fields.get_u8() {
            0 => BlockState::Absent,
            1 => BlockState::Data,
            2 => BlockState::Zeros,
            _ => return Self::LOST,
        };
        if (&entry[ENTRY_CRC..]).get_u32_le() != entry_crc(id, index, entry) {
            return Self::LOST;
        }
        Self { version, state, crc }
    }
}

fn entry_crc(id: ExtentId, index: u32, entry: &[u8; ENTRY_BYTES]) -> u32 {
    crc32c_of_parts([place(id, index).as_slice(), &entry[..ENTRY_CRC]])
}

/// The checksum of a block's content, bound to where and which it is.
pub(crate) fn block_crc(id: ExtentId, index: u32, version: Version, data: &[u8]) -> u32 {
    let mut bound = [0; 16];
    bound[..8].copy_from_slice(&version.generation.0.to_le_bytes());
    bound[8..].copy_from_slice(&version.seq.to_le_bytes());
    crc32c_of_parts([place(id, index).as_slice(), &bound, data])
}

fn place(id: ExtentId, index: u32) -> [u8; 20] {
    let mut place = [0; 20];
    place[..8].copy_from_slice(&id.namespace.0.to_le_bytes());
    place[8..16].copy_from_slice(&id.index.to_le_bytes());
    place[16..].copy_from_slice(&index.to_le_bytes());
    place
}

/// An open extent file.
#[derive(Debug)]
pub(crate) struct Extent {
    pub(crate) id: ExtentId,
    file: File,
    pub(crate) state: RwLock<ExtentState>,
}

/// Header and table of an extent file, and what is to come.
#[derive(Debug)]
pub(crate) struct ExtentState {
    floor: Version,
    header_lost: bool,
    /// `None` while the table is not in use.
    table: Option<Box<[Block]>>,
    /// The newest version of any block, discarded ones included.
    newest: Version,
    /// Changes that were answered before they were durable and are not in the file yet, oldest first.
    pub(crate) volatile: VecDeque<ChangeRecord>,
}

impl ExtentState {
    pub(crate) fn floor(&self) -> Version {
        self.floor
    }

    pub(crate) fn has_table(&self) -> bool {
        self.table.is_some()
    }

    pub(crate) fn is_header_lost(&self) -> bool {
        self.header_lost
    }

    pub(crate) fn newest(&self) -> Version {
        self.newest
    }

    /// A block as it is in the file.
    pub(crate) fn block(&self, index: u32) -> Block {
        let Some(table) = &self.table else { return Block::under_floor(self.floor) };
        let block = table[index as usize];
        if block.state == BlockState::Lost || block.version >= self.floor {
            block
        } else {
            Block::under_floor(self.floor)
        }
    }
}

impl Extent {
    /// Takes an open extent file; `None` if it was never written.
    pub(crate) fn load(id: ExtentId, file: File) -> io::Result<Option<Self>> {
        if file.metadata()?.len() == 0 {
            return Ok(None);
        }
        let mut bytes = vec![0; HEADER_BYTES + TABLE_BYTES];
        let state = match file.read_exact_at(&mut bytes, 0) {
            Ok(()) => decode(id, &bytes)?,
            // A file cut short, or a medium that cannot read it: lost, and found again by a repair.
            Err(error) => {
                tracing::warn!(extent = %id, %error, "header of an extent cannot be read");
                lost()
            }
        };
        Ok(Some(Self { id, file, state: RwLock::new(state) }))
    }

    /// Takes the empty file of an extent that was never written.
    pub(crate) fn create(id: ExtentId, file: File) -> Self {
        let state = ExtentState {
            floor: Version::NONE,
            header_lost: false,
            table: None,
            newest: Version::NONE,
            volatile: VecDeque::new(),
        };
        Self { id, file, state: RwLock::new(state) }
    }

    /// Makes sure that the header, and the table, can be written without running out of room.
    pub(crate) fn reserve_head(&self, table: bool) -> rustix::io::Result<()> {
        self.reserve(0, if table { TABLE_OFFSET + TABLE_BYTES as u64 } else { TABLE_OFFSET })
    }

    /// Makes sure that data blocks can be written without running out of room.
    pub(crate) fn reserve_blocks(&self, first: u32, blocks: u32) -> rustix::io::Result<()> {
        self.reserve(data_offset(first), u64::from(blocks) * u64::from(BLOCK_BYTES))
    }

    fn reserve(&self, offset: u64, len: u64) -> rustix::io::Result<()> {
        match fallocate(&self.file, FallocateFlags::KEEP_SIZE, offset, len) {
            // Without support the write itself will tell, and fail the disk.
            Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            other => other,
        }
    }

    /// Brings the file to what the journal says. `volatile` says that the change is the oldest of
    /// the state's volatile ones.
    pub(crate) fn apply(&self, change: &ChangeRecord, volatile: bool) -> io::Result<()> {
        assert_eq!(change.extent, self.id, "a change is applied to its extent");
        let mut state = self.state.write();
        if volatile {
            let oldest = state.volatile.pop_front();
            assert!(
                oldest.is_some_and(|oldest| (oldest.version, oldest.first) == (change.version, change.first)),
                "volatile changes are applied in order"
            );
        }
        if change.content == Content::WholeZeros {
            self.write_header(change.version, false)?;
            self.punch(TABLE_OFFSET, FILE_BYTES - TABLE_OFFSET)?;
            state.floor = change.version;
            state.header_lost = false;
            state.table = None;
            state.newest = state.newest.max(change.version);
            return Ok(());
        }
        let fresh = match change.reset {
            Reset::None => None,
            Reset::Absent => Some((change.floor, Block::ABSENT)),
            Reset::Lost => Some((Version::NONE, Block::LOST)),
        };
        if let Some((floor, block)) = fresh {
            self.write_header(floor, true)?;
            let mut bytes = Vec::with_capacity(TABLE_BYTES);
            (0..EXTENT_BLOCKS).for_each(|index| bytes.extend(block.encode(self.id, index)));
            self.file.write_all_at(&bytes, TABLE_OFFSET)?;
            state.floor = floor;
            state.header_lost = false;
            state.table = Some(vec![block; EXTENT_BLOCKS as usize].into_boxed_slice());
        }
        self.apply_blocks(&mut state, change)
    }

    fn apply_blocks(&self, state: &mut ExtentState, change: &ChangeRecord) -> io::Result<()> {
        let Some(table) = &mut state.table else {
            // The record before, which would have made it, is missing: the file is not of this journal.
            return Err(io::Error::other("a change to an extent file without a table"));
        };
        let version = change.version;
        let mut entries = Vec::with_capacity(change.blocks as usize * ENTRY_BYTES);
        for step in 0..change.blocks {
            let index = change.first + step;
            let block = match &change.content {
                Content::Data(data) => {
                    let at = step as usize * BLOCK;
                    let crc = block_crc(self.id, index, version, &data[at..at + BLOCK]);
                    Block { version, state: BlockState::Data, crc }
                }
                Content::Zeros | Content::WholeZeros => Block { version, state: BlockState::Zeros, crc: 0 },
            };
            entries.extend(block.encode(self.id, index));
            table[index as usize] = block;
        }
        state.newest = state.newest.max(version);
        match &change.content {
            Content::Data(data) => self.file.write_all_at(data, data_offset(change.first))?,
            Content::Zeros | Content::WholeZeros => {
                self.punch(data_offset(change.first), u64::from(change.blocks) * u64::from(BLOCK_BYTES))?;
            }
        }
        self.file.write_all_at(&entries, TABLE_OFFSET + u64::from(change.first) * ENTRY_BYTES as u64)
    }

    fn write_header(&self, floor: Version, table: bool) -> io::Result<()> {
        let mut page = [0; HEADER_BYTES];
        let mut out = page.as_mut_slice();
        out.put_slice(MAGIC);
        out.put_u32_le(FORMAT_VERSION);
        out.put_u32_le(u32::from(table));
        out.put_u64_le(self.id.namespace.0);
        out.put_u64_le(self.id.index);
        out.put_u64_le(floor.generation.0);
        out.put_u64_le(floor.seq);
        let crc = crc32c(&page[..HEADER_CRC]);
        page[HEADER_CRC..HEADER_CRC + size_of::<u32>()].copy_from_slice(&crc.to_le_bytes());
        self.file.set_len(FILE_BYTES)?;
        self.file.write_all_at(&page, 0)
    }

    /// Gives space back. That it may fail does no harm: the table says what the blocks are.
    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        use rustix::io::Errno;
        match fallocate(&self.file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSPC | Errno::DQUOT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads data blocks into `out`, which is a whole number of blocks. With `cached_only`, fails with
    /// [`io::ErrorKind::WouldBlock`] instead of waiting for the medium.
    pub(crate) fn read_data(&self, first: u32, out: &mut [u8], cached_only: bool) -> io::Result<()> {
        let offset = data_offset(first);
        if !cached_only {
            return self.file.read_exact_at(out, offset);
        }
        use rustix::io::{Errno, ReadWriteFlags, preadv2};
        let len = out.len();
        match preadv2(&self.file, &mut [io::IoSliceMut::new(out)], offset, ReadWriteFlags::NOWAIT) {
            Ok(read) if read == len => Ok(()),
            Ok(_) | Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::INTR) => {
                Err(io::ErrorKind::WouldBlock.into())
            }
            Err(error) => Err(error.into()),
        }
    }
}

fn data_offset(block: u32) -> u64 {
    DATA_OFFSET + u64::from(block) * u64::from(BLOCK_BYTES)
}

fn lost() -> ExtentState {
    ExtentState {
        floor: Version::NONE,
        header_lost: true,
        table: Some(vec![Block::LOST; EXTENT_BLOCKS as usize].into_boxed_slice()),
        newest: Version::NONE,
        volatile: VecDeque::new(),
    }
}

/// `bytes` are header and table. Fails if they are of an unknown format, which is not damage: nothing may be
/// written over it (invariant 18).
fn decode(id: ExtentId, bytes: &[u8]) -> io::Result<ExtentState> {
    let (header, table) = bytes.split_at(HEADER_BYTES);
    let mut fields = header;
    let magic_holds = fields.copy_to_bytes(MAGIC.len()) == Bytes::from_static(MAGIC);
    let version = fields.get_u32_le();
    let has_table = fields.get_u32_le();
    let place = (fields.get_u64_le(), fields.get_u64_le());
    let floor = Version { generation: Generation(fields.get_u64_le()), seq: fields.get_u64_le() };
    let _zero = fields.get_u32_le();
    let is_header = magic_holds && fields.get_u32_le() == crc32c(&header[..HEADER_CRC]);
    if is_header && version != FORMAT_VERSION {
        let what =
            format!("{id} has format version {version}, and this program knows version {FORMAT_VERSION}");
        return Err(io::Error::other(what));
    }
    let holds = is_header && has_table <= 1 && place == (id.namespace.0, id.index);
    if !holds {
        tracing::warn!(extent = %id, "header of an extent is damaged");
        return Ok(lost());
    }
    let (entries, _) = table.as_chunks::<ENTRY_BYTES>();
    let table = (has_table == 1).then(|| {
        (0..).zip(entries).map(|(index, entry)| Block::decode(id, index, entry)).collect::<Box<[Block]>>()
    });
    let newest = table.iter().flatten().map(|block| block.version).fold(floor, Version::max);
    Ok(ExtentState { floor, header_lost: false, table, newest, volatile: VecDeque::new() })
}

#[cfg(test)]
mod tests {
    use lunette_proto::ids::Namespace;

    use super::*;

    const ID: ExtentId = ExtentId { namespace: Namespace(7), index: 2 };

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex")).collect()
    }

    /// Guards the layout against the specification: bytes written from its tables, with checksums by
    /// an independent bitwise CRC-32C.
    #[test]
    fn golden() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("extent");
        let file = File::options().read(true).write(true).create_new(true).open(&path).expect("a file");
        let change = ChangeRecord {
            extent: ID,
            version: Version { generation: Generation(3), seq: 42 },
            floor: Version::NONE,
            first: 5,
            blocks: 1,
            content: Content::Data(Bytes::from(vec![0xab; BLOCK])),
            reset: Reset::Absent,
            grown: 1,
        };
        Extent::create(ID, file).apply(&change, false).expect("written");
        let bytes = std::fs::read(&path).expect("read");
        assert_eq!(bytes.len(), 65_536 + (4 << 20));
        let header = "4c554e4558544e5401000000010000000700000000000000020000000000000000000000000000000000000000000000\
             00000000b2873315";
        assert_eq!(bytes[..56], hex(header));
        let entry = "03000000000000002a000000000000000cadb30e010000000000000082f910c6";
        assert_eq!(bytes[4096 + 5 * 32..][..32], hex(entry));
        assert!(bytes[65_536 + 5 * 4096..][..4096].iter().all(|byte| *byte == 0xab));
    }

    /// Guards invariant 11: every single-bit flip of an entry makes the block lost.
    #[test]
    fn every_bit_flip_of_an_entry_is_found() {
        let version = Version { generation: Generation(3), seq: 42 };
        let good = Block { version, state: BlockState::Data, crc: 77 }.encode(ID, 5);
        assert_eq!(Block::decode(ID, 5, &good).version, version);
        for bit in 0..ENTRY_BYTES * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Block::decode(ID, 5, &bad), Block::LOST, "bit {bit}");
        }
        assert_eq!(Block::decode(ID, 6, &good), Block::LOST, "of another block");
        assert_eq!(Block::decode(ID, 5, &[0; ENTRY_BYTES]), Block::LOST, "never initialised");
    }
}

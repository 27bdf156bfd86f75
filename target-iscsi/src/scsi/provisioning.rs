//! Thin provisioning (SBC-3 4.7): UNMAP (5.28) and WRITE SAME (5.43, 5.44).
//!
//! What is unmapped reads as zeros (LBPRZ), so unmapping and writing zeros are the same command for
//! the device; it gives back what is whole 4 KiB blocks of it.

use bytes::Bytes;
use lunette_volume::device::{Command, Data};

use super::LogicalUnit;
use super::read_write::unprotected;
use super::request::{Answer, Capacity, Plan, Range, Request, be16, be32, be64};
use super::sense::{Failure, Sense};
use super::task::{Job, Progress};

/// MAXIMUM UNMAP BLOCK DESCRIPTOR COUNT.
pub(super) const UNMAP_DESCRIPTORS_MAX: u32 = 256;
/// MAXIMUM UNMAP LBA COUNT, of all descriptors of a command together.
pub(super) const UNMAP_BLOCKS_MAX: u32 = 1 << 20;
/// OPTIMAL UNMAP GRANULARITY: what a storage node allocates at once.
pub(super) const UNMAP_GRANULARITY_BYTES: u32 = 64 << 10;
/// MAXIMUM WRITE SAME LENGTH. A pattern is really written, so it must end in good time. Below 65536
/// blocks also because libiscsi's suite takes more as a promise that one WRITE moves as much.
pub(super) const WRITE_SAME_BYTES_MAX: u32 = 16 << 20;
/// A pattern is written in pieces of this size.
const PATTERN_BYTES: u32 = 1 << 20;

/// MAXIMUM WRITE SAME LENGTH in logical blocks.
pub(super) fn write_same_blocks_max(unit: &LogicalUnit) -> u32 {
    WRITE_SAME_BYTES_MAX.checked_div(unit.block_bytes).unwrap_or(0)
}

pub(super) fn unmap(request: &mut Request<'_>) -> Answer {
    if request.cdb.bit(1, 0) {
        // ANCHOR, with ANC_SUP=0.
        return Err(Sense::cdb_bit(1, 0).into());
    }
    let len = request.cdb.u16(7);
    match len {
        0 => Ok(Plan::Good),
        1..8 => Err(Sense::PARAMETER_LIST_LENGTH.into()),
        _ => {
            let unmap =
                Unmap { capacity: request.unit.capacity(), list_len: len, ranges: Vec::new().into_iter() };
            Ok(Plan::Collect(Job::Unmap(unmap), len.into()))
        }
    }
}

/// An UNMAP in execution.
pub(super) struct Unmap {
    capacity: Capacity,
    list_len: u16,
    ranges: std::vec::IntoIter<Range>,
}

impl Unmap {
    const HEADER: usize = 8;
    const DESCRIPTOR: usize = 16;

    /// Every descriptor is checked before the first is carried out.
    pub(super) fn data_out(&mut self, list: &[u8]) -> Result<Progress, Failure> {
        self.ranges = self.parse(list)?.into_iter();
        Ok(self.next())
    }

    pub(super) fn next(&mut self) -> Progress {
        match self.ranges.next() {
            Some(range) => Progress::Submit(Command::Zero { offset: range.offset, len: range.len }),
            None => Progress::Done(Data::new(), self.list_len.into()),
        }
    }

    fn parse(&self, list: &[u8]) -> Result<Vec<Range>, Sense> {
        let descriptors_len = be16(list, 2).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
        let descriptors = list.get(Self::HEADER..).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
        // A list that is cut short is an error; a descriptor that is cut short is ignored (SBC-3 5.28).
        if list.len() < usize::from(self.list_len) || descriptors.len() < usize::from(descriptors_len) {
            return Err(Sense::PARAMETER_LIST_LENGTH);
        }
        let descriptors = descriptors[..usize::from(descriptors_len)].chunks_exact(Self::DESCRIPTOR);
        if descriptors.len() > UNMAP_DESCRIPTORS_MAX as usize {
            return Err(Sense::parameter_field(2));
        }
        let mut ranges = Vec::with_capacity(descriptors.len());
        let mut total: u64 = 0;
        for (index, descriptor) in descriptors.enumerate() {
            let (Some(lba), Some(blocks)) = (be64(descriptor, 0), be32(descriptor, 8)) else {
                return Err(Sense::PARAMETER_LIST_LENGTH);
            };
            let range = self.capacity.range(lba, blocks.into())?;
            total += u64::from(blocks);
            if total > UNMAP_BLOCKS_MAX.into() {
                let field = Self::HEADER + index * Self::DESCRIPTOR + 8;
                return Err(Sense::parameter_field(u16::try_from(field).unwrap_or(u16::MAX)));
            }
            if range.len > 0 {
                ranges.push(range);
            }
        }
        Ok(ranges)
    }
}

pub(super) fn write_same_10(request: &mut Request<'_>) -> Answer {
    let (lba, blocks) = (request.cdb.u32(2).into(), request.cdb.u16(7).into());
    write_same(request, lba, blocks, 7, false)
}

pub(super) fn write_same_16(request: &mut Request<'_>) -> Answer {
    let (lba, blocks) = (request.cdb.u64(2), request.cdb.u32(10));
    let no_data_out = request.cdb.bit(1, 0);
    write_same(request, lba, blocks, 10, no_data_out)
}

/// With UNMAP blocks may be unmapped where the pattern is what they then read as (SBC-3 4.7),
/// without it they may as well on a thin volume, so the bit changes nothing.
fn write_same(request: &mut Request<'_>, lba: u64, blocks: u32, len_field: u16, no_data_out: bool) -> Answer {
    unprotected(request.cdb)?;
    if request.cdb.bit(1, 4) {
        // ANCHOR, with ANC_SUP=0.
        return Err(Sense::cdb_bit(1, 4).into());
    }
    if request.cdb.u8(1) & 0x06 != 0 {
        // PBDATA, LBDATA: obsolete, and they would change what is written.
        return Err(Sense::cdb_bit(1, 2).into());
    }
    // WSNZ: no blocks does not mean all.
    if blocks == 0 || blocks > write_same_blocks_max(request.unit) {
        return Err(Sense::cdb_field(len_field).into());
    }
    let range = request.unit.range(lba, blocks.into())?;
    let write_same = WriteSame {
        rest: range,
        block_bytes: request.unit.block_bytes,
        data_out_len: if no_data_out { 0 } else { request.unit.block_bytes },
        pattern: Bytes::new(),
    };
    if no_data_out {
        let zero = Command::Zero { offset: range.offset, len: range.len };
        return Ok(Plan::Submit(
            Job::WriteSame(WriteSame { rest: Range { len: 0, ..range }, ..write_same }),
            zero,
        ));
    }
    Ok(Plan::Collect(Job::WriteSame(write_same), request.unit.block_bytes))
}

/// A WRITE SAME in execution.
pub(super) struct WriteSame {
    rest: Range,
    block_bytes: u32,
    data_out_len: u32,
    /// The block, again and again, up to [`PATTERN_BYTES`].
    pattern: Bytes,
}

impl WriteSame {
    /// Data-Out is exactly one block, none with NDOB.
    pub(super) fn refuses(&self, expected_len: u32) -> Option<Sense> {
        (expected_len != self.data_out_len).then_some(Sense::INVALID_CDB)
    }

    pub(super) fn data_out(&mut self, data: &[u8]) -> Result<Progress, Failure> {
        let block = data.get(..self.block_bytes as usize).ok_or(Sense::INVALID_CDB)?;
        if block.iter().all(|byte| *byte == 0) {
            let Range { offset, len } = self.rest;
            self.rest.len = 0;
            return Ok(Progress::Submit(Command::Zero { offset, len }));
        }
        let blocks = self.rest.len.min(PATTERN_BYTES.into()) / u64::from(self.block_bytes.max(1));
        self.pattern = block.repeat(usize::try_from(blocks).unwrap_or(0)).into();
        Ok(self.next())
    }

    /// The next piece. Pieces end at multiples of their size, so that no 4 KiB block is in two.
    pub(super) fn next(&mut self) -> Progress {
        let piece = u64::from(PATTERN_BYTES);
        let to_boundary = piece - self.rest.offset % piece;
        let len = self.rest.len.min(to_boundary).min(self.pattern.len() as u64);
        if len == 0 {
            return Progress::Done(Data::new(), self.data_out_len.into());
        }
        let data = self.pattern.slice(..usize::try_from(len).unwrap_or(0));
        let offset = self.rest.offset;
        self.rest = Range { offset: offset + len, len: self.rest.len - len };
        Progress::Submit(Command::Write { offset, data, fua: false })
    }
}

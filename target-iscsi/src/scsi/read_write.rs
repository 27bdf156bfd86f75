//! READ, WRITE, ORWRITE, PRE-FETCH and SYNCHRONIZE CACHE in all their CDB lengths (SBC-3 5.6, 5.8 to 5.13, 5.26 to
//! 5.27, 5.33 to 5.35; SBC-2 for the CDBs of 6 bytes). READ(10), (16), WRITE(10) and (16) are the hot path: no copy, and nothing allocated.
//!
//! DPO is accepted and has no effect (it is a hint); the group number is ignored.

use bytes::Bytes;
use lunette_volume::device::{Command, Data};

use super::cdb::Cdb;
use super::request::{Answer, Plan, Range, Request};
use super::sense::{Failure, Sense};
use super::task::{Job, Progress};

pub(super) fn read_6(request: &mut Request<'_>) -> Answer {
    let (lba, blocks) = short_fields(request.cdb);
    read(request, lba, blocks, 4, false)
}

pub(super) fn read_10(request: &mut Request<'_>) -> Answer {
    let (lba, blocks) = (request.cdb.u32(2).into(), request.cdb.u16(7).into());
    read(request, lba, blocks, 7, fua(request.cdb)?)
}

pub(super) fn read_12(request: &mut Request<'_>) -> Answer {
    let (lba, blocks) = (request.cdb.u32(2).into(), request.cdb.u32(6));
    read(request, lba, blocks, 6, fua(request.cdb)?)
}

pub(super) fn read_16(request: &mut Request<'_>) -> Answer {
    let (lba, blocks) = (request.cdb.u64(2), request.cdb.u32(10));
    read(request, lba, blocks, 10, fua(request.cdb)?)
}

pub(super) fn write_6(request: &mut Request<'_>) -> Answer {
    let (lba, blocks) = short_fields(request.cdb);
    write(request, lba, blocks, 4, false)
}

pub(super) fn write_10(request: &mut Request<'_>) -> Answer {
    let (lba, blocks) = (request.cdb.u32(2).into(), request.cdb.u16(7).into());
    write(request, lba, blocks, 7, fua(request.cdb)?)
}

pub(super) fn write_12(request: &mut Request<'_>) -> Answer {
    let (lba, blocks) = (request.cdb.u32(2).into(), request.cdb.u32(6));
    write(request, lba, blocks, 6, fua(request.cdb)?)
}

pub(super) fn write_16(request: &mut Request<'_>) -> Answer {
    let (lba, blocks) = (request.cdb.u64(2), request.cdb.u32(10));
    write(request, lba, blocks, 10, fua(request.cdb)?)
}

/// Each logical block becomes the OR of itself and of what comes.
pub(super) fn or_write_16(request: &mut Request<'_>) -> Answer {
    let (lba, blocks) = (request.cdb.u64(2), request.cdb.u32(10));
    let fua = fua(request.cdb)?;
    let (range, len) = transfer(request, lba, blocks, 10)?;
    collect(Write::new(range, len, request.unit.block_bytes, fua).with(Operation::Or))
}

/// Nothing is cached in front of the volume, so there is never room for it: GOOD, not CONDITION MET
/// (SBC-3 5.8).
pub(super) fn pre_fetch_10(request: &mut Request<'_>) -> Answer {
    request.unit.range(request.cdb.u32(2).into(), request.cdb.u16(7).into())?;
    Ok(Plan::Good)
}

/// See [`pre_fetch_10`].
pub(super) fn pre_fetch_16(request: &mut Request<'_>) -> Answer {
    request.unit.range(request.cdb.u64(2), request.cdb.u32(10).into())?;
    Ok(Plan::Good)
}

/// The whole volume is made durable, whatever range is named, and also with IMMED: it costs the same.
pub(super) fn synchronize_cache_10(request: &mut Request<'_>) -> Answer {
    request.unit.range(request.cdb.u32(2).into(), request.cdb.u16(7).into())?;
    Ok(Plan::Submit(Job::Flush, Command::Flush))
}

/// See [`synchronize_cache_10`].
pub(super) fn synchronize_cache_16(request: &mut Request<'_>) -> Answer {
    request.unit.range(request.cdb.u64(2), request.cdb.u32(10).into())?;
    Ok(Plan::Submit(Job::Flush, Command::Flush))
}

/// A READ in execution.
pub(super) struct Read {
    /// Not submitted yet: a FUA read of a write-back volume begins with a flush.
    waits: Option<Command>,
    len: u32,
}

impl Read {
    /// Bytes that the CDB names.
    pub(super) fn len(&self) -> u32 {
        self.len
    }

    pub(super) fn completed(&mut self, data: Data) -> Result<Progress, Failure> {
        if let Some(read) = self.waits.take() {
            return Ok(Progress::Submit(read));
        }
        check_len(&data, self.len)?;
        Ok(Progress::Done(data, self.len.into()))
    }
}

/// What is done with Data-Out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// It comes into the place of what is there.
    Write,
    /// All of it does, or nothing happens.
    WriteAtomic,
    /// It is ORed into what is there.
    Or,
}

/// A WRITE in execution.
pub(super) struct Write {
    offset: u64,
    len: u32,
    block_bytes: u32,
    fua: bool,
    operation: Operation,
}

impl Write {
    pub(super) fn new(range: Range, len: u32, block_bytes: u32, fua: bool) -> Self {
        Self { offset: range.offset, len, block_bytes, fua, operation: Operation::Write }
    }

    pub(super) fn with(self, operation: Operation) -> Self {
        Self { operation, ..self }
    }

    /// Bytes that the CDB names.
    pub(super) fn len(&self) -> u32 {
        self.len
    }

    /// Why so little Data-Out does not do: what is atomic is not cut short.
    pub(super) fn refuses(&self, expected_len: u32) -> Option<Sense> {
        let refused = self.operation == Operation::WriteAtomic && expected_len < self.len;
        refused.then_some(Sense::INVALID_CDB)
    }

    /// Whole blocks of what came are written, also when the initiator announced less than the CDB.
    pub(super) fn data_out(&mut self, mut data: Bytes) -> Result<Progress, Failure> {
        let len = data.len().min(self.len as usize);
        data.truncate(len - len % (self.block_bytes.max(1) as usize));
        if let Some(sense) = self.refuses(u32::try_from(data.len()).unwrap_or(u32::MAX)) {
            return Err(sense.into());
        }
        if data.is_empty() {
            return Ok(self.completed());
        }
        let Self { offset, fua, .. } = *self;
        Ok(Progress::Submit(match self.operation {
            Operation::Write => Command::Write { offset, data, fua },
            Operation::WriteAtomic => Command::WriteAtomic { offset, data },
            Operation::Or => Command::Or { offset, data, fua },
        }))
    }

    pub(super) fn completed(&self) -> Progress {
        Progress::Done(Data::new(), self.len.into())
    }
}

/// A device that answers a read with another length has broken its contract: no initiator may see it.
pub(super) fn check_len(data: &Data, len: u32) -> Result<(), Failure> {
    let got: u64 = data.iter().map(|part| part.len() as u64).sum();
    if got == u64::from(len) { Ok(()) } else { Err(Sense::INTERNAL_FAILURE.into()) }
}

/// A transfer: checked against the end and against MAXIMUM TRANSFER LENGTH. `len_field` is where the
/// CDB has the number of blocks.
pub(super) fn transfer(
    request: &Request<'_>,
    lba: u64,
    blocks: u32,
    len_field: u16,
) -> Result<(Range, u32), Failure> {
    let range = request.unit.range(lba, blocks.into())?;
    match u32::try_from(range.len) {
        Ok(len) if blocks <= request.unit.transfer_blocks_max() => Ok((range, len)),
        _ => Err(Sense::cdb_field(len_field).into()),
    }
}

/// RDPROTECT, WRPROTECT, VRPROTECT: the volume has no protection information.
pub(super) fn unprotected(cdb: &Cdb) -> Result<(), Sense> {
    if cdb.u8(1) & 0xE0 == 0 { Ok(()) } else { Err(Sense::cdb_bit(1, 7)) }
}

fn read(request: &mut Request<'_>, lba: u64, blocks: u32, len_field: u16, fua: bool) -> Answer {
    let (range, len) = transfer(request, lba, blocks, len_field)?;
    if len == 0 {
        return Ok(Plan::Good);
    }
    let read = Command::Read { offset: range.offset, len };
    if fua && request.unit.shared.modes.write_back() {
        return Ok(Plan::Submit(Job::Read(Read { waits: Some(read), len }), Command::Flush));
    }
    Ok(Plan::Submit(Job::Read(Read { waits: None, len }), read))
}

fn write(request: &mut Request<'_>, lba: u64, blocks: u32, len_field: u16, fua: bool) -> Answer {
    let (range, len) = transfer(request, lba, blocks, len_field)?;
    collect(Write::new(range, len, request.unit.block_bytes, fua))
}

/// The job begins with its Data-Out, if there is any.
pub(super) fn collect(write: Write) -> Answer {
    match write.len() {
        0 => Ok(Plan::Good),
        len => Ok(Plan::Collect(Job::Write(write), len)),
    }
}

/// FUA of a CDB of 10 bytes and more, once its protection field is in order.
pub(super) fn fua(cdb: &Cdb) -> Result<bool, Sense> {
    unprotected(cdb)?;
    Ok(cdb.bit(1, 3))
}

/// LBA of 21 bits and the number of blocks, of which 0 is 256 (SBC-2 5.5).
fn short_fields(cdb: &Cdb) -> (u64, u32) {
    let lba = cdb.u32(0) & 0x1F_FFFF;
    let blocks = match cdb.u8(4) {
        0 => 256,
        blocks => blocks.into(),
    };
    (lba.into(), blocks)
}

//! VERIFY(10), (12) and (16) (SBC-3 5.29 to 5.31).
//!
//! The blocks are read, which checks them against their checksums; BYTCHK 01b compares them with as
//! many blocks of Data-Out, 11b each of them with one.

use bytes::Bytes;
use lunette_volume::device::{Command, Data};

use super::read_write::{check_len, transfer, unprotected};
use super::request::{Answer, Plan, Range, Request};
use super::sense::{Failure, Sense};
use super::task::{Job, Progress};

/// Bytes that are read at once.
const PIECE_BYTES: u32 = 1 << 20;

pub(super) fn verify_10(request: &mut Request<'_>) -> Answer {
    let (lba, blocks) = (request.cdb.u32(2).into(), request.cdb.u16(7).into());
    verify(request, lba, blocks, 7)
}

pub(super) fn verify_12(request: &mut Request<'_>) -> Answer {
    let (lba, blocks) = (request.cdb.u32(2).into(), request.cdb.u32(6));
    verify(request, lba, blocks, 6)
}

pub(super) fn verify_16(request: &mut Request<'_>) -> Answer {
    let (lba, blocks) = (request.cdb.u64(2), request.cdb.u32(10));
    verify(request, lba, blocks, 10)
}

fn verify(request: &mut Request<'_>, lba: u64, blocks: u32, len_field: u16) -> Answer {
    unprotected(request.cdb)?;
    let check = match request.cdb.u8(1) >> 1 & 0x03 {
        0b00 => Check::Medium,
        0b01 => Check::EachBlock,
        0b11 => Check::OneBlock,
        _ => return Err(Sense::cdb_bit(1, 2).into()),
    };
    let (range, len) = transfer(request, lba, blocks, len_field)?;
    if len == 0 {
        return Ok(Plan::Good);
    }
    let block_bytes = request.unit.block_bytes;
    let data_out_len = match check {
        Check::Medium => 0,
        Check::EachBlock => len,
        Check::OneBlock => block_bytes,
    };
    let mut verify = Verify::new(range, check, Bytes::new(), data_out_len, block_bytes);
    if data_out_len > 0 {
        return Ok(Plan::Collect(Job::Verify(verify), data_out_len));
    }
    let Progress::Submit(command) = verify.next() else { return Ok(Plan::Good) };
    Ok(Plan::Submit(Job::Verify(verify), command))
}

/// A VERIFY in execution.
pub(super) struct Verify {
    /// Not read yet.
    rest: Range,
    /// Bytes of the read that is under way.
    reading: u32,
    /// Bytes that were found equal.
    done: u64,
    check: Check,
    /// Data-Out.
    expected: Bytes,
    data_out_len: u32,
    block_bytes: u32,
}

/// BYTCHK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Check {
    /// 00b: it can be read.
    Medium,
    /// 01b
    EachBlock,
    /// 11b
    OneBlock,
}

impl Verify {
    /// `data_out_len`: what the CDB names for the residual.
    pub(super) fn new(
        rest: Range,
        check: Check,
        expected: Bytes,
        data_out_len: u32,
        block_bytes: u32,
    ) -> Self {
        Self { rest, reading: 0, done: 0, check, expected, data_out_len, block_bytes }
    }

    pub(super) fn data_out(&mut self, mut data: Bytes) -> Result<Progress, Failure> {
        let len = data.len().min(self.data_out_len as usize);
        data.truncate(len - len % (self.block_bytes.max(1) as usize));
        self.expected = data;
        match self.check {
            // As with WRITE, what came is compared.
            Check::EachBlock => self.rest.len = self.expected.len() as u64,
            Check::OneBlock if self.expected.is_empty() => return Err(Sense::INVALID_CDB.into()),
            Check::OneBlock | Check::Medium => {}
        }
        Ok(self.next())
    }

    pub(super) fn completed(&mut self, data: &Data) -> Result<Progress, Failure> {
        check_len(data, self.reading)?;
        if self.check != Check::Medium {
            for part in data {
                self.compare(part)?;
            }
        }
        Ok(self.next())
    }

    pub(super) fn next(&mut self) -> Progress {
        // What 4 bytes cannot hold is more than a piece.
        self.reading = u32::try_from(self.rest.len).unwrap_or(u32::MAX).min(PIECE_BYTES);
        if self.reading == 0 {
            return Progress::Done(Data::new(), self.data_out_len.into());
        }
        let command = Command::Read { offset: self.rest.offset, len: self.reading };
        self.rest.offset += u64::from(self.reading);
        self.rest.len -= u64::from(self.reading);
        Progress::Submit(command)
    }

    /// Compares what was read next with Data-Out, which begins again where one block of it is for all.
    fn compare(&mut self, mut part: &[u8]) -> Result<(), Sense> {
        let expected = &self.expected[..];
        while !part.is_empty() {
            let at =
                usize::try_from(self.done).unwrap_or(usize::MAX).checked_rem(expected.len()).unwrap_or(0);
            let len = part.len().min(expected.len() - at);
            if len == 0 {
                return Err(Sense::INTERNAL_FAILURE);
            }
            let (piece, rest) = part.split_at(len);
            let wanted = &expected[at..at + len];
            if piece != wanted {
                let equal = piece.iter().zip(wanted).take_while(|(got, want)| got == want).count();
                return Err(Sense::miscompare((at + equal) as u64));
            }
            self.done += len as u64;
            part = rest;
        }
        Ok(())
    }
}

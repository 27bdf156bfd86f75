//! WRITE AND VERIFY(10), (12) and (16) (SBC-3 5.36 to 5.38): a write through to the medium, then a VERIFY of it.

use bytes::Bytes;
use lunette_volume::device::{Command, Data};

use super::read_write::{Write, transfer, unprotected};
use super::request::{Answer, Plan, Range, Request};
use super::sense::{Failure, Sense};
use super::task::{Job, Progress};
use super::verify::{Check, Verify};

pub(super) fn write_and_verify_10(request: &mut Request<'_>) -> Answer {
    let (lba, blocks) = (request.cdb.u32(2).into(), request.cdb.u16(7).into());
    write_and_verify(request, lba, blocks, 7)
}

pub(super) fn write_and_verify_12(request: &mut Request<'_>) -> Answer {
    let (lba, blocks) = (request.cdb.u32(2).into(), request.cdb.u32(6));
    write_and_verify(request, lba, blocks, 6)
}

pub(super) fn write_and_verify_16(request: &mut Request<'_>) -> Answer {
    let (lba, blocks) = (request.cdb.u64(2), request.cdb.u32(10));
    write_and_verify(request, lba, blocks, 10)
}

fn write_and_verify(request: &mut Request<'_>, lba: u64, blocks: u32, len_field: u16) -> Answer {
    unprotected(request.cdb)?;
    let check = match request.cdb.u8(1) >> 1 & 0x03 {
        0b00 => Check::Medium,
        0b01 => Check::EachBlock,
        // 11b is VERIFY's alone.
        _ => return Err(Sense::cdb_bit(1, 2).into()),
    };
    let (range, len) = transfer(request, lba, blocks, len_field)?;
    if len == 0 {
        return Ok(Plan::Good);
    }
    let block_bytes = request.unit.block_bytes;
    // What is verified is the medium, so that is where it has to be.
    let write = Write::new(range, len, block_bytes, true);
    let job = WriteVerify { write, offset: range.offset, block_bytes, check, stage: Stage::Collect };
    Ok(Plan::Collect(Job::WriteVerify(job), len))
}

/// A WRITE AND VERIFY in execution.
pub(super) struct WriteVerify {
    write: Write,
    offset: u64,
    block_bytes: u32,
    check: Check,
    stage: Stage,
}

enum Stage {
    Collect,
    /// These bytes are being written.
    Write(Bytes),
    Verify(Verify),
}

impl WriteVerify {
    pub(super) fn data_out(&mut self, data: Bytes) -> Result<Progress, Failure> {
        let progress = self.write.data_out(data)?;
        if let Progress::Submit(Command::Write { data, .. }) = &progress {
            self.stage = Stage::Write(data.clone());
        }
        Ok(progress)
    }

    pub(super) fn completed(&mut self, data: &Data) -> Result<Progress, Failure> {
        match &mut self.stage {
            Stage::Collect => Err(Sense::INTERNAL_FAILURE.into()),
            Stage::Write(written) => {
                // What came, which is all that was written.
                let range = Range { offset: self.offset, len: written.len() as u64 };
                let expected = std::mem::take(written);
                let mut verify = Verify::new(range, self.check, expected, self.write.len(), self.block_bytes);
                let progress = verify.next();
                self.stage = Stage::Verify(verify);
                Ok(progress)
            }
            Stage::Verify(verify) => verify.completed(data),
        }
    }
}

//! GET LBA STATUS(16) (SBC-3 5.4): which blocks are mapped and which are deallocated.
//!
//! Neighbours of the same status are one descriptor. The first one starts at the LBA that was asked for, also in the
//! middle of a 4 KiB block. How much is looked at for one command is bounded; the initiator asks on from where the last
//! descriptor ends, as it does when the allocation length is short.
//!
//! REPORT TYPE (SBC-4) is not processed, which RTP=0 says.

use bytes::Bytes;
use lunette_proto::limits::BLOCK_BYTES;
use lunette_volume::device::{Command, DEALLOCATED, Data, MAPPING_BYTES_MAX};

use super::read_write::check_len;
use super::request::{Answer, Plan, Range, Request, set_length_u32};
use super::sense::{Failure, Sense};
use super::task::{Job, Progress};

/// Bytes of the volume that one command looks at: 8 GiB.
const SCAN_BYTES_MAX: u64 = 32 * MAPPING_BYTES_MAX;
/// Descriptors that one command returns.
const DESCRIPTORS_MAX: usize = 1024;
const DESCRIPTOR: usize = 16;
const HEADER: usize = 8;

pub(super) fn get_lba_status(request: &mut Request<'_>) -> Answer {
    let (lba, allocation_len) = (request.cdb.u64(2), request.cdb.u32(10));
    let capacity = request.unit.capacity();
    // There is no status of a block that is not there: other than with a transfer, the end is out of range.
    let left = capacity.blocks.checked_sub(lba).filter(|blocks| *blocks > 0);
    let mut rest = capacity.range(lba, left.ok_or(Sense::LBA_OUT_OF_RANGE)?)?;
    rest.len = rest.len.min(SCAN_BYTES_MAX);
    let allocation_len = usize::try_from(allocation_len).unwrap_or(usize::MAX);
    let room = allocation_len.saturating_sub(HEADER) / DESCRIPTOR;
    let mut job = LbaStatus {
        rest,
        asked: Range { offset: 0, len: 0 },
        block_bytes: request.unit.block_bytes,
        runs: Vec::new(),
        runs_max: room.clamp(1, DESCRIPTORS_MAX),
        allocation_len,
    };
    let command = job.ask();
    Ok(Plan::Submit(Job::LbaStatus(job), command))
}

/// A GET LBA STATUS in execution.
pub(super) struct LbaStatus {
    /// Not asked for yet.
    rest: Range,
    /// Asked for.
    asked: Range,
    block_bytes: u32,
    runs: Vec<Run>,
    runs_max: usize,
    allocation_len: usize,
}

/// Bytes of the same status.
struct Run {
    range: Range,
    deallocated: bool,
}

impl LbaStatus {
    /// The next piece. Pieces end at multiples of their size, so that no 4 KiB block is in two.
    fn ask(&mut self) -> Command {
        let Range { offset, len } = self.rest;
        let piece = len.min(MAPPING_BYTES_MAX - offset % MAPPING_BYTES_MAX);
        self.asked = Range { offset, len: piece };
        self.rest = Range { offset: offset + piece, len: len - piece };
        Command::Mapping { offset, len: piece }
    }

    pub(super) fn completed(&mut self, data: &Data) -> Result<Progress, Failure> {
        let unit = u64::from(BLOCK_BYTES);
        let end = self.asked.offset + self.asked.len;
        let first = self.asked.offset / unit;
        check_len(data, u32::try_from(end.div_ceil(unit) - first).unwrap_or(u32::MAX))?;
        for (block, status) in (first..).zip(data.iter().flatten()) {
            let offset = (block * unit).max(self.asked.offset);
            let range = Range { offset, len: ((block + 1) * unit).min(end) - offset };
            if !self.push(range, *status == DEALLOCATED) {
                return Ok(self.done());
            }
        }
        if self.rest.len == 0 {
            return Ok(self.done());
        }
        Ok(Progress::Submit(self.ask()))
    }

    /// Adds what follows on the last run; no if there is no room for it.
    fn push(&mut self, range: Range, deallocated: bool) -> bool {
        let is_full = self.runs.len() == self.runs_max;
        match self.runs.last_mut() {
            Some(run) if run.deallocated == deallocated => run.range.len += range.len,
            _ if is_full => return false,
            _ => self.runs.push(Run { range, deallocated }),
        }
        true
    }

    fn done(&self) -> Progress {
        let blocks = |bytes: u64| bytes.checked_div(self.block_bytes.into()).unwrap_or(0);
        let mut data = vec![0; HEADER];
        for run in &self.runs {
            data.extend(blocks(run.range.offset).to_be_bytes());
            // SCAN_BYTES_MAX are far fewer blocks than the field holds.
            data.extend(u32::try_from(blocks(run.range.len)).unwrap_or(u32::MAX).to_be_bytes());
            data.extend([u8::from(run.deallocated), 0, 0, 0]);
        }
        set_length_u32(&mut data);
        data.truncate(self.allocation_len);
        let len = data.len() as u64;
        Progress::Done(Data::from_iter(Some(Bytes::from(data)).filter(|data| !data.is_empty())), len)
    }
}

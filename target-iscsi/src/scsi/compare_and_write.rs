//! COMPARE AND WRITE (SBC-3 5.2): a logical block is replaced if it holds what the initiator thinks, in one step that no
//! other command comes into, whichever gateway it came through.

use bytes::Bytes;
use lunette_volume::device::{Command, Data};

use super::read_write::fua;
use super::request::{Answer, Plan, Request};
use super::sense::{Failure, Sense};
use super::task::{Job, Progress};

/// MAXIMUM COMPARE AND WRITE LENGTH, in logical blocks: a device compares inside one of its own blocks.
pub(super) const BLOCKS_MAX: u8 = 1;

pub(super) fn compare_and_write(request: &mut Request<'_>) -> Answer {
    let cdb = request.cdb;
    let fua = fua(cdb)?;
    let blocks = cdb.u8(13);
    if blocks > BLOCKS_MAX {
        return Err(Sense::cdb_field(13).into());
    }
    let range = request.unit.range(cdb.u64(2), blocks.into())?;
    let len = u32::try_from(range.len).map_err(|_| Sense::cdb_field(13))?;
    let job = CompareAndWrite { offset: range.offset, len, fua };
    let data_out_len = job.data_out_len();
    Ok(Plan::Collect(Job::CompareAndWrite(job), data_out_len))
}

/// A COMPARE AND WRITE in execution.
pub(super) struct CompareAndWrite {
    offset: u64,
    /// Of each half of Data-Out.
    len: u32,
    fua: bool,
}

impl CompareAndWrite {
    /// What to compare with, then what to write.
    fn data_out_len(&self) -> u32 {
        self.len * 2
    }

    /// Data-Out of another length: nobody could say where its second half begins. Also with no blocks, which is what
    /// 256 of them become in a field of one byte.
    pub(super) fn refuses(&self, expected_len: u32) -> Option<Sense> {
        (expected_len != self.data_out_len()).then_some(Sense::INVALID_CDB)
    }

    pub(super) fn data_out(&mut self, mut data: Bytes) -> Result<Progress, Failure> {
        if data.is_empty() || data.len() != self.data_out_len() as usize {
            return Err(Sense::INVALID_CDB.into());
        }
        let compare = data.split_to(self.len as usize);
        let Self { offset, fua, .. } = *self;
        Ok(Progress::Submit(Command::CompareAndWrite { offset, compare, data, fua }))
    }

    pub(super) fn completed(&self) -> Progress {
        Progress::Done(Data::new(), self.data_out_len().into())
    }
}

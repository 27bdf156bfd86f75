//! What a command's handler is given, and what it answers.

use bytes::Bytes;
use lunette_proto::limits::SCSI_TRANSFER_BYTES_MAX;
use lunette_volume::device::Command;

use super::cdb::Cdb;
use super::sense::{Failure, Sense};
use super::task::Job;
use super::unit::Transition;
use super::{LogicalUnit, Nexus, TargetView};

/// A command for a logical unit that exists.
pub(super) struct Request<'a> {
    pub(super) view: &'a TargetView,
    pub(super) unit: &'a LogicalUnit,
    pub(super) lun: u16,
    pub(super) nexus: &'a mut Nexus,
    pub(super) cdb: &'a Cdb,
}

/// What to do about it.
pub(super) enum Plan {
    /// GOOD, nothing transferred.
    Good,
    /// GOOD with parameter data, cut to the allocation length.
    Data(Bytes),
    /// The job begins with a command for the device.
    Submit(Job, Command),
    /// The job begins with a change of what the unit keeps.
    Change(Job, Box<dyn Transition>),
    /// The job begins with that many bytes of Data-Out; with none it is GOOD, if the initiator sends none.
    Collect(Job, u32),
}

/// What a handler answers.
pub(super) type Answer = Result<Plan, Failure>;

/// Bytes of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// What LBAs are checked against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Capacity {
    /// Logical blocks.
    pub(super) blocks: u64,
    pub(super) block_bytes: u32,
}

impl Capacity {
    /// The bytes of `blocks` logical blocks from `lba`. Beyond the end is LOGICAL BLOCK ADDRESS OUT
    /// OF RANGE; no blocks at the very end are not beyond it.
    pub(super) fn range(self, lba: u64, blocks: u64) -> Result<Range, Sense> {
        match lba.checked_add(blocks) {
            Some(end) if end <= self.blocks => {
                let block_bytes = u64::from(self.block_bytes);
                Ok(Range { offset: lba * block_bytes, len: blocks * block_bytes })
            }
            _ => Err(Sense::LBA_OUT_OF_RANGE),
        }
    }
}

impl LogicalUnit {
    /// Its size in logical blocks.
    pub(super) fn capacity(&self) -> Capacity {
        let blocks = self.size_bytes.checked_div(u64::from(self.block_bytes)).unwrap_or(0);
        Capacity { blocks, block_bytes: self.block_bytes }
    }

    /// See [`Capacity::range`].
    pub(super) fn range(&self, lba: u64, blocks: u64) -> Result<Range, Sense> {
        self.capacity().range(lba, blocks)
    }

    /// MAXIMUM TRANSFER LENGTH in logical blocks (SBC-3, Block Limits).
    pub(super) fn transfer_blocks_max(&self) -> u32 {
        SCSI_TRANSFER_BYTES_MAX.checked_div(self.block_bytes).unwrap_or(0)
    }
}

/// Parameter data as the allocation length cuts it (SPC-4 4.2.5.6).
pub(super) fn parameter_data(mut data: Vec<u8>, allocation_len: u32) -> Plan {
    data.truncate(usize::try_from(allocation_len).unwrap_or(usize::MAX));
    Plan::Data(Bytes::from(data))
}

/// Puts the number of bytes that follow the field into the 4 bytes at the front.
pub(super) fn set_length_u32(data: &mut [u8]) {
    let following = u32::try_from(data.len().saturating_sub(4)).unwrap_or(u32::MAX);
    if let Some(field) = data.first_chunk_mut::<4>() {
        *field = following.to_be_bytes();
    }
}

/// Bytes `at..at + 2`, big-endian; `None` beyond the end.
pub(super) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Bytes `at..at + 4`, big-endian; `None` beyond the end.
pub(super) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Bytes `at..at + 8`, big-endian; `None` beyond the end.
pub(super) fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

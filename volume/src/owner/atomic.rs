//! Writes of several space units that are atomic (invariant 28).
//!
//! ```text
//!     versions of a member --every unit has content on stable media-----------------------------> the write
//!                '---------or else---> read ---> the same content again, as data ------------------^
//! ```
//!
//! A disk takes one message as a whole or refuses it as a whole, and a takeover carries a write on with one message, or
//! drops it with one. That is all there is to a write inside one unit. One of several units could find a disk that has room for
//! some of them only: where it has content it could be carried on, where it has holes it could only be dropped. So no such
//! write begins before every member has room for all of its units. Making that room changes no content, and can
//! be refused and taken back like any other change.

use std::collections::VecDeque;

use bytes::Bytes;
use lunette_proto::limits::{BLOCK_BYTES, UNIT_BYTES};
use lunette_proto::node::{Change, Durability};

use super::Owner;
use super::event::Plant;
use super::op::Work;
use super::view::Members;
use crate::device::{DeviceError, MAPPED};
use crate::layout::Run;

const UNIT_BLOCKS: u32 = UNIT_BYTES / BLOCK_BYTES;

impl Owner {
    /// Queues a write of whole blocks, which is one operation.
    pub(super) fn add_atomic(&mut self, command: usize, run: Run, data: Bytes) {
        let Run { extent, offset, len } = run;
        let is_in_one_unit = offset / UNIT_BYTES == (offset + len - 1) / UNIT_BYTES;
        let work = if is_in_one_unit || self.planted(Plant::NoAtomicRoom) {
            Work::Write(Change::Data(data))
        } else {
            Work::Atomic { data, prepares: false }
        };
        self.add_part(command, extent, offset, len, work, Durability::Stable);
    }

    /// A member has said which blocks of an atomic write take space there.
    pub(super) fn atomic_mapped(&mut self, id: usize, mapping: &[u8]) {
        let op = &self.ops[id];
        let has_room = every_unit_has_content(op.offset / BLOCK_BYTES, mapping);
        // What is in memory only may be lost, and its room with it.
        let is_stable = !self.unflushed.contains_key(&op.extent);
        let Work::Atomic { data, .. } = &op.work else {
            return;
        };
        if has_room && is_stable {
            let (offset, change) = (op.offset, Change::Data(data.clone()));
            return self.change(id, offset, change);
        }
        if let Some(block) = op.blocks().find(|block| self.unreadable.contains(&(op.extent, *block))) {
            // What it holds nobody can say, so it cannot be written again.
            let offset = self.config.layout.address(op.extent, block * BLOCK_BYTES);
            return self.finish(id, Err(DeviceError::Medium { offset }));
        }
        self.prepares(id, true);
        self.read(id, Members::new(), false);
    }

    /// An atomic write begins, or goes on with what is there.
    pub(super) fn prepares(&mut self, id: usize, now: bool) {
        if let Work::Atomic { prepares, .. } = &mut self.ops[id].work {
            *prepares = now;
        }
    }

    /// Writes what the blocks hold again, and then what they are to hold.
    pub(super) fn make_room_for(&mut self, id: usize, present: Bytes, wanted: Bytes) {
        let offset = self.ops[id].offset;
        let rest = VecDeque::from([(offset, Change::Data(wanted))]);
        self.mutate(id, offset, Change::Data(present), false, rest);
    }
}

/// Whether in each space unit some of the blocks, which begin with `first`, takes space. All members have that content, so
/// they all have the unit.
fn every_unit_has_content(first: u32, mapping: &[u8]) -> bool {
    let in_first = (UNIT_BLOCKS - first % UNIT_BLOCKS) as usize;
    let (head, rest) = mapping.split_at(in_first.min(mapping.len()));
    let mut units = [head].into_iter().chain(rest.chunks(UNIT_BLOCKS as usize));
    units.all(|unit| unit.contains(&MAPPED))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::DEALLOCATED;

    /// Guards the cutting into units: content counts for the unit that it is in alone.
    #[test]
    fn content_is_counted_by_unit() {
        let with = |blocks: &[usize]| {
            let mut mapping = [DEALLOCATED; 24];
            blocks.iter().for_each(|block| mapping[*block] = MAPPED);
            mapping
        };
        // Blocks 12 to 36: the last four of a unit, a whole one, and four of the next.
        assert!(every_unit_has_content(12, &with(&[3, 4, 20])));
        assert!(every_unit_has_content(12, &with(&[0, 19, 23])));
        for missing in [&[4, 20][..], &[3, 20], &[3, 4], &[3, 19]] {
            assert!(!every_unit_has_content(12, &with(missing)), "{missing:?}");
        }
        assert!(every_unit_has_content(16, &with(&[15, 16])));
        assert!(!every_unit_has_content(16, &with(&[14, 15])));
    }
}

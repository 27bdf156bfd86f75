//! Extents that the disk is no member of any more: all that it has of them goes.
//!
//! A drop is decided when everything before it is durable, and is alone in its batch, as a mark is: so whatever is decided after it
//! finds nothing of its extents, and a record that is replayed after it makes them anew.

use lunette_proto::ids::{Epoch, ExtentId, Generation, Namespace};
use lunette_proto::limits::NODE_DROPPED_EXTENTS_MAX;
use lunette_proto::node::Failure;

use super::core::{Fatal, Prepared, Store};
use super::disk::Disk;
use super::wal::Record;
use super::wal::record::RECORD_BYTES_MAX;

impl<D: Disk> Store<D> {
    /// Drops extents of a namespace, those that are there.
    pub(super) fn drop_extents(
        &mut self,
        epoch: Epoch,
        namespace: Namespace,
        generation: Generation,
        extents: &[u64],
    ) -> Result<Prepared, Fatal> {
        assert_eq!(self.batch.records, 0, "it is alone in its batch");
        if extents.is_empty() || extents.len() > NODE_DROPPED_EXTENTS_MAX {
            return Ok(Prepared::refused(Failure::Invalid));
        }
        if !self.make_room(extents.len() * RECORD_BYTES_MAX, 0)? {
            return Ok(Prepared::Blocked);
        }
        let mut state = self.view.state.write();
        if let Err(failure) = state.namespaces.check(namespace, generation, epoch)
            && !planted!(DropByAnybody)
        {
            return Ok(Prepared::refused(failure));
        }
        for id in extents.iter().map(|index| ExtentId { namespace, index: *index }) {
            let is_listed = state.namespaces.forget_extent(id);
            if !state.extents.has(id) && !is_listed {
                continue;
            }
            self.batch.push(&Record::Drop(id));
            self.batch.dropped.push(id);
            self.batch.is_alone = true;
        }
        Ok(Prepared::done(true))
    }
}

//! Snapshots: marked in the order of a namespace's changes, and ended. What they see of extents is in [`chains`](super::chains).
//!
//! A mark and an end are decided when everything before them is durable, and are alone in their batch: so whatever is decided
//! after them finds the extents as they left them.

use lunette_proto::ids::{Epoch, Generation, Namespace, Snapshot};

use super::core::{Fatal, Prepared, Store};
use super::disk::Disk;
use super::wal::Record;
use super::wal::record::RECORD_BYTES_MAX;

impl<D: Disk> Store<D> {
    /// Marks a snapshot of everything until now, if it is not there.
    pub(super) fn mark(
        &mut self,
        epoch: Epoch,
        id: Namespace,
        generation: Generation,
        snapshot: Snapshot,
    ) -> Result<Prepared, Fatal> {
        assert_eq!(self.batch.records, 0, "it is alone in its batch");
        if !self.make_room(RECORD_BYTES_MAX, 0)? {
            return Ok(Prepared::Blocked);
        }
        let state_max = self.state_max();
        let mut state = self.view.state.write();
        let marked = state.namespaces.check(id, generation, epoch);
        match marked.and_then(|()| state.namespaces.mark(id, snapshot, state_max)) {
            Err(failure) => return Ok(Prepared::refused(failure)),
            Ok(true) if !planted!(MarkNotDurable) => {
                self.batch.push(&Record::Mark(id, snapshot));
                self.batch.is_alone = true;
            }
            Ok(_) => {}
        }
        Ok(Prepared::done(true))
    }

    /// Ends a snapshot, if it is there.
    pub(super) fn unmark(
        &mut self,
        epoch: Epoch,
        id: Namespace,
        generation: Generation,
        snapshot: Snapshot,
    ) -> Result<Prepared, Fatal> {
        assert_eq!(self.batch.records, 0, "it is alone in its batch");
        if !self.make_room(RECORD_BYTES_MAX, 0)? {
            return Ok(Prepared::Blocked);
        }
        let mut state = self.view.state.write();
        match state.namespaces.check_snapshots(id, generation, epoch) {
            Err(lunette_proto::node::Failure::Deleted) => return Ok(Prepared::done(true)),
            Err(failure) => return Ok(Prepared::refused(failure)),
            Ok(()) => {}
        }
        if let Some(gone) = state.namespaces.unmark(id, snapshot) {
            self.batch.push(&Record::Unmark(id, snapshot));
            self.batch.gone = Some((id, gone));
            self.batch.is_alone = true;
        }
        Ok(Prepared::done(true))
    }
}

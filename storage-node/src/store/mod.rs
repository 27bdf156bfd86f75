//! What a disk holds, and every rule by which it changes: the part that must never lose or change a byte.
//!
//! Sans-IO over [`Disk`]: no thread, no clock, no random number. A [`Store`] is the one that writes; any number of
//! readers share its [`View`].
//!
//! ```text
//!     superblock A | superblock B | WAL ring | checkpoint area A | B | metadata pages | descriptors | units of 64 KiB
//! ```
//!
//! # How a change becomes durable
//!
//! 1. [`Store::prepare`] decides everything (generation, versions, room) and adds a record to the batch. Nothing is
//!    changed yet; only volatile changes, which may be lost, are shown to readers, from memory.
//! 2. [`Store::commit`] writes the data of whole units into fresh units and syncs them; then it writes the batch,
//!    records and the data of small changes, to the WAL, durably. A record that is valid says that its data is
//!    durable.
//! 3. Then, and not earlier, small changes are written in place (to be synced some time), and readers see
//!    everything.
//! 4. A checkpoint writes descriptors in place, changed pages and the state of namespaces to the place that is not in
//!    use, syncs, and makes all of it count by one superblock. The WAL before it can be used again, and
//!    so can units that were given back before it: while a record can be replayed, every unit that it names is what it
//!    was.
//!
//! Opening reads the newest superblock and what it names, and does the batches after it once more, in order. A batch
//! counts as a whole or not at all; only the last one can be torn, and nobody was told of it. Then it
//! makes a checkpoint: nothing is served that a second crash could take back.
//!
//! # How damage is found
//!
//! Superblock -> directory of pages -> page -> descriptor of a unit -> block: each holds the checksum of the next, and
//! each checksum covers where its bytes belong. So not only flipped bits are found, but writes that went to another
//! place, and writes that never happened ([`Damage`]).
//!
//! What is damaged and what cannot be read are two things. A block whose descriptor is damaged is lost: it is said to be
//! damaged until another member brings it back, also when blocks beside it are written; what the descriptor said of it
//! stays on the disk, for who has no other copy. A descriptor that the medium cannot read says nothing: it may be right,
//! and be read the next time. Whoever needs it to change or compare anything makes the disk fail; whoever reads is told
//! to read elsewhere.
//!
//! # Prepared changes
//!
//! A change may be prepared first, and count later, or never: its data is durable in a unit of its own that no reader
//! sees, and the slot keeps what it has. The extent's record names it, so that its end is one record and needs no room:
//! the unit becomes the slot's, or its blocks are copied into the slot's unit, or it is given back. Both ways are
//! replayed like everything else, for the unit that was given back stays what it is until the next checkpoint
//! (`prepared`).
//!
//! # Snapshots
//!
//! A mark is one record, and costs as little: it gives a place in the order of a namespace's changes a number. From then on a unit
//! that was there then does not change: who changes some of its blocks gets a fresh unit, into which the others
//! are copied after the record is durable, and again when it is replayed; who changes all of them, or discards them, leaves it
//! behind ([`chains`]). A mark, and its end, is the only record of its batch.
//!
//! # Dropped extents
//!
//! An extent that the disk is no member of any more is one record too: everything of it goes when that is durable, in memory and in
//! the pages, and its units are given back as those of a namespace that is deleted (`dropped`).
//!
//! # Formats
//!
//! All little-endian, reserved bytes zero, CRC-32C (blocks: over XXH3). [`layout`]: where the parts lie; [`superblock`]; [`wal`]: batches
//! and records; [`pages`]: pages of metadata, the directory and the checkpoint area; [`descriptor`]: descriptors and
//! checksums of blocks.
//!
//! Units are counted ([`units`]). Each belongs to one extent, or to what snapshots keep of it ([`chains`]), and a second one that names
//! it is damage.

/// Whether this bug was planted, by a test that must find it; never outside tests.
#[cfg(test)]
macro_rules! planted {
    ($bug:ident) => {
        crate::sim::bugs::planted(crate::sim::bugs::Bug::$bug)
    };
}
#[cfg(not(test))]
macro_rules! planted {
    ($bug:ident) => {
        false
    };
}

mod cache;
pub mod chains;
mod change;
pub mod checkpoint;
mod commit;
pub mod core;
pub mod descriptor;
pub mod disk;
pub mod draft;
mod dropped;
pub mod extents;
pub mod file_disk;
pub mod format;
pub mod layout;
pub mod namespaces;
pub mod pages;
mod prepared;
pub mod recovery;
mod snapshots;
pub mod superblock;
mod unit_map;
pub mod units;
pub mod view;
pub mod wal;

use lunette_proto::ids::{ClusterId, DiskId, DiskUuid};

pub use checkpoint::Checkpoint;
pub use core::{Fatal, Prepared, Store};
pub use descriptor::Damage;
pub use disk::Disk;
pub use file_disk::FileDisk;
pub use format::{FormatOptions, format_disk, inspect_identity};
pub use layout::Layout;
pub use recovery::{OpenError, Recovered};
pub use view::{Bad, Inspection, Missed, View};

/// Which disk it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster that it belongs to.
    pub cluster: ClusterId,
    /// Its id in the cluster.
    pub disk: DiskId,
    /// Its own identity, drawn when it was formatted.
    pub uuid: DiskUuid,
}

#[cfg(test)]
mod tests;

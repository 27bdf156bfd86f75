//! Bugs that the simulator must be able to find. The core asks [`planted`] at the places where they belong; outside
//! tests the question is not there.

use std::cell::Cell;

use super::{enumerate, faults, random};

/// A bug on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// A commit does not wait for the medium.
    AckBeforeSync,
    /// The record is written before the data of its whole units is durable.
    RecordBeforeData,
    /// The checksum of a block does not cover where it belongs.
    ChecksumWithoutAddress,
    /// The checksum of a block does not cover its version.
    ChecksumWithoutVersion,
    /// A unit that was given back is used again at once.
    ReuseBeforeCheckpoint,
    /// A batch counts although its checksum is wrong.
    TornTailIsWhole,
    /// A batch may be written over records that are still needed.
    WalOverrun,
    /// The superblock is written before what it names is durable.
    SuperblockBeforePages,
    /// A page is written to the place that is in use.
    PageInPlace,
    /// A descriptor that changed is not written by the next checkpoint.
    DescriptorNotDirty,
    /// The WAL before a checkpoint is used again before its superblock is durable.
    WalFreedEarly,
    /// A flush does not wait for volatile changes.
    FlushForgetsVolatile,
    /// A seal is answered before it is durable.
    SealNotDurable,
    /// The room of a discarded unit is given back to the medium at once.
    DiscardPunchesEarly,
    /// Recovery leaves out the last batch.
    ReplayOneTooFew,
    /// Recovery replays no record that a checkpoint may hold in part.
    ReplaySkipsFirst,
    /// A watermark clears extents beyond it.
    WatermarkClearsTooMuch,
    /// The units of a deleted namespace stay taken.
    DeleteLeavesUnits,
    /// A change of an equal version, or an older one, is applied.
    OlderVersionWins,
    /// Small changes are written in place before their record is durable.
    InPlaceBeforeRecord,
    /// A checkpoint does not sync what was written in place.
    CheckpointWithoutSync,
    /// Recovery serves before its own checkpoint.
    NoCheckpointAfterRecovery,
}

thread_local! {
    static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
}

/// Whether this thread's store has the bug.
pub(crate) fn planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Images, runs from seeds and faults that are tried to find a bug.
const IMAGES: u64 = 400_000;
const SEEDS: u64 = 300;
const FAULTS: u64 = 15;

/// How the bug is found.
fn hunt(bug: Bug) -> Option<String> {
    PLANTED.set(Some(bug));
    let found = enumerate::hunt(IMAGES)
        .map(|(images, what)| format!("after {images} images: {what}"))
        .or_else(|| random::hunt(SEEDS).map(|(seeds, what)| format!("after {seeds} seeds: {what}")))
        .or_else(|| faults::hunt(FAULTS).map(|(faults, what)| format!("after {faults} faults: {what}")));
    PLANTED.set(None);
    found
}

macro_rules! finds {
    ($($name:ident: $bug:ident;)*) => {$(
        /// Guards the simulator: it finds this bug.
        #[test]
        fn $name() {
            let found = hunt(Bug::$bug).expect("not found");
            println!("{:?}: {found}", Bug::$bug);
        }
    )*};
}

finds! {
    finds_ack_before_sync: AckBeforeSync;
    finds_record_before_data: RecordBeforeData;
    finds_reuse_before_checkpoint: ReuseBeforeCheckpoint;
    finds_torn_tail_is_whole: TornTailIsWhole;
    finds_wal_overrun: WalOverrun;
    finds_superblock_before_pages: SuperblockBeforePages;
    finds_page_in_place: PageInPlace;
    finds_descriptor_not_dirty: DescriptorNotDirty;
    finds_wal_freed_early: WalFreedEarly;
    finds_flush_forgets_volatile: FlushForgetsVolatile;
    finds_seal_not_durable: SealNotDurable;
    finds_discard_punches_early: DiscardPunchesEarly;
    finds_replay_one_too_few: ReplayOneTooFew;
    finds_watermark_clears_too_much: WatermarkClearsTooMuch;
    finds_delete_leaves_units: DeleteLeavesUnits;
    finds_older_version_wins: OlderVersionWins;
    finds_in_place_before_record: InPlaceBeforeRecord;
    finds_checkpoint_without_sync: CheckpointWithoutSync;
}

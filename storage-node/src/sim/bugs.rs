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
    /// Small changes are written in place before their record is durable.
    InPlaceBeforeRecord,
    /// A sync that failed counts as done.
    SyncErrorIgnored,
    /// A flush does not wait for volatile changes.
    FlushForgetsVolatile,
    /// A volatile change hides what came after it.
    VolatileStays,
    /// A seal is answered, and is not in the journal.
    SealNotDurable,
    /// An older generation than the sealed one may write.
    LateOwnerActs,
    /// A change of an older version is applied.
    OlderVersionWins,
    /// A repair with the version that is there does nothing.
    RepairNeedsNewer,
    /// A watermark clears extents beyond it.
    WatermarkClearsTooMuch,
    /// The units of a deleted namespace stay taken.
    DeleteLeavesUnits,
    /// A unit that was given back is used again at once.
    ReuseBeforeCheckpoint,
    /// A batch is written over records that are still needed.
    WalOverrun,
    /// Recovery does not look for the next batch at the beginning of the ring.
    WrongWrap,
    /// A batch counts although part of its data is missing.
    TornTailIsWhole,
    /// Of a batch of which part of the data is missing, the records before that count.
    TornTailInPart,
    /// Recovery leaves out the last batch.
    ReplayOneTooFew,
    /// Recovery does not write the data of small changes again.
    ReplayWithoutData,
    /// Recovery does not take a descriptor that an unfinished checkpoint wrote.
    NewerDescriptorRefused,
    /// Recovery's checkpoint writes over the only good superblock.
    OneGoodSuperblock,
    /// The superblock is written before what it names is durable.
    SuperblockBeforePages,
    /// A checkpoint does not sync before its superblock.
    CheckpointWithoutSync,
    /// A page is written to the place that is in use.
    PageInPlace,
    /// A descriptor that changed is not written by the next checkpoint.
    DescriptorNotDirty,
    /// The WAL before a checkpoint is used again before its superblock is durable.
    WalFreedEarly,
    /// The room of a unit is discarded when the change that gives it back is decided.
    DiscardPunchesEarly,
    /// The checksum of a block is not looked at.
    BlockChecksumIgnored,
    /// The checksum by which a page knows a descriptor is not looked at.
    StaleDescriptorTaken,
    /// A descriptor that the medium cannot read at the moment is taken for lost.
    ReadErrorIsLoss,
    /// A write beside blocks whose descriptor is damaged leaves nothing of what it said of them.
    DamagedDescriptorForgotten,
    /// A change is prepared whatever version the slot has.
    PrevNotChecked,
    /// A slot with a prepared change takes others.
    ChangeBesidePrepared,
    /// Blocks are copied into the slot before the record of the commit is durable.
    CommitCopiesEarly,
    /// Recovery does not copy the blocks of a commit again.
    ReplayCommitWithoutCopy,
    /// The unit of a change that was rolled back is used again at once.
    RollbackFreesEarly,
    /// A change that is prepared on another one drops that.
    LazyCommitForgotten,
    /// What is prepared is not in a checkpoint.
    PreparedNotInCheckpoint,
    /// A watermark clears extents with something prepared.
    WatermarkHidesPrepared,
    /// A unit that snapshots see changes in place.
    SeenUnitChanged,
    /// A unit that snapshots see is given back when it is replaced.
    SeenUnitGivenBack,
    /// A mark is answered, and is not in the journal.
    MarkNotDurable,
    /// Recovery does not copy the blocks that a fresh unit has of one that snapshots see.
    ReplayWithoutCopy,
    /// The end of a snapshot gives back what an older one sees.
    UnmarkTakesTooMuch,
    /// A delete gives back what snapshots see.
    DeleteForgetsSnapshots,
    /// The checksum by which the directory knows a page is not looked at.
    PageChecksumIgnored,
    /// Recovery does not drop an extent again.
    ReplayWithoutDrop,
    /// The units of an extent that was dropped are used again at once.
    DropFreesEarly,
    /// An older generation than the sealed one may drop extents.
    DropByAnybody,
    /// An extent that was dropped stays in the list of those that may differ.
    DropLeavesDirty,
    /// What snapshots keep of an extent that was dropped stays.
    DropLeavesSnapshots,
}

thread_local! {
    static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
}

/// Whether this thread's store has the bug.
pub(crate) fn planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Images, runs from seeds and faults that are tried to find a bug.
const IMAGES: u64 = 30_000;
const SEEDS: u64 = 60;
const FAULTS: u64 = 12;

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
    finds_in_place_before_record: InPlaceBeforeRecord;
    finds_sync_error_ignored: SyncErrorIgnored;
    finds_flush_forgets_volatile: FlushForgetsVolatile;
    finds_volatile_stays: VolatileStays;
    finds_seal_not_durable: SealNotDurable;
    finds_late_owner_acts: LateOwnerActs;
    finds_older_version_wins: OlderVersionWins;
    finds_repair_needs_newer: RepairNeedsNewer;
    finds_watermark_clears_too_much: WatermarkClearsTooMuch;
    finds_delete_leaves_units: DeleteLeavesUnits;
    finds_reuse_before_checkpoint: ReuseBeforeCheckpoint;
    finds_wal_overrun: WalOverrun;
    finds_wrong_wrap: WrongWrap;
    finds_torn_tail_is_whole: TornTailIsWhole;
    finds_torn_tail_in_part: TornTailInPart;
    finds_replay_one_too_few: ReplayOneTooFew;
    finds_replay_without_data: ReplayWithoutData;
    finds_newer_descriptor_refused: NewerDescriptorRefused;
    finds_one_good_superblock: OneGoodSuperblock;
    finds_superblock_before_pages: SuperblockBeforePages;
    finds_checkpoint_without_sync: CheckpointWithoutSync;
    finds_page_in_place: PageInPlace;
    finds_descriptor_not_dirty: DescriptorNotDirty;
    finds_wal_freed_early: WalFreedEarly;
    finds_discard_punches_early: DiscardPunchesEarly;
    finds_block_checksum_ignored: BlockChecksumIgnored;
    finds_stale_descriptor_taken: StaleDescriptorTaken;
    finds_read_error_is_loss: ReadErrorIsLoss;
    finds_damaged_descriptor_forgotten: DamagedDescriptorForgotten;
    finds_prev_not_checked: PrevNotChecked;
    finds_change_beside_prepared: ChangeBesidePrepared;
    finds_commit_copies_early: CommitCopiesEarly;
    finds_replay_commit_without_copy: ReplayCommitWithoutCopy;
    finds_rollback_frees_early: RollbackFreesEarly;
    finds_lazy_commit_forgotten: LazyCommitForgotten;
    finds_prepared_not_in_checkpoint: PreparedNotInCheckpoint;
    finds_watermark_hides_prepared: WatermarkHidesPrepared;
    finds_seen_unit_changed: SeenUnitChanged;
    finds_seen_unit_given_back: SeenUnitGivenBack;
    finds_mark_not_durable: MarkNotDurable;
    finds_replay_without_copy: ReplayWithoutCopy;
    finds_unmark_takes_too_much: UnmarkTakesTooMuch;
    finds_delete_forgets_snapshots: DeleteForgetsSnapshots;
    finds_page_checksum_ignored: PageChecksumIgnored;
    finds_replay_without_drop: ReplayWithoutDrop;
    finds_drop_frees_early: DropFreesEarly;
    finds_drop_by_anybody: DropByAnybody;
    finds_drop_leaves_dirty: DropLeavesDirty;
    finds_drop_leaves_snapshots: DropLeavesSnapshots;
}

//! What goes into an owner and what comes out.

use lunette_proto::ids::{ClusterId, DiskId, Epoch, Generation, VolumeId};
use lunette_proto::limits::GRANT_MS_MAX;
use lunette_proto::map::Partitions;
use lunette_proto::node::{Reply, Request};

use super::view::View;
use crate::device::{Command, Outcome};
use crate::layout::Layout;

/// What an owner is for its whole life.
#[derive(Clone, Debug)]
pub struct Config {
    /// The cluster, which disks are asked about.
    pub cluster: ClusterId,
    /// The volume.
    pub volume: VolumeId,
    /// Under which generation it is owned.
    pub generation: Generation,
    /// How addresses become extents.
    pub layout: Layout,
    /// Logical block: 512 or 4096.
    pub block_bytes: u32,
    /// Whether writes are acked before they are on stable media, until [`Event::WriteBack`] says otherwise.
    pub write_back: bool,
    /// Limits.
    pub limits: Limits,
}

/// Bounds of one owner.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How long a command may wait before it is answered without having been finished.
    pub wait_ms: u64,
    /// Operations queued and in flight; more are refused as busy.
    pub operations_max: usize,
    /// Data that writes may hold, those waiting included; more are refused as busy.
    pub bytes_max: u64,
    /// Operations that one zeroing command has in flight.
    pub zero_operations_max: usize,
    /// Extents changed since the last watermark; changes of more of them wait for it. Fewer than a disk lists
    /// for a namespace (131,072), so that what a takeover brings to a member has room there, too.
    pub dirty_max: usize,
    /// Extents reconciled at the same time.
    pub reconcile_max: usize,
    /// A read without an answer for so long is asked of another member.
    pub hedge_ms: u64,
    /// Between two watermarks.
    pub watermark_ms: u64,
    /// A watermark is repeated after so long, to learn what is damaged; if `None`, only where damage is known.
    pub survey_ms: Option<u64>,
    /// From when copies have moved away from a disk until what is left of them is looked for.
    pub sweep_ms: u64,
    /// For how long disks grant that reads are answered; at most
    /// [`GRANT_MS_MAX`](lunette_proto::limits::GRANT_MS_MAX).
    pub grant_ms: u32,
    /// The longest that handing the volume over may take, and then that a map may take to name the next owner.
    pub hand_over_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            wait_ms: 4000,
            operations_max: 4096,
            bytes_max: 256 << 20,
            zero_operations_max: 32,
            dirty_max: 98_304,
            reconcile_max: 8,
            hedge_ms: 500,
            watermark_ms: 1000,
            survey_ms: Some(30_000),
            sweep_ms: 5000,
            grant_ms: GRANT_MS_MAX,
            hand_over_ms: 1000,
        }
    }
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A command came in.
    Command {
        /// Chosen by the shell; returns in [`Action::Complete`].
        tag: u64,
        /// What to do.
        command: Command,
    },
    /// A disk answered.
    Reply {
        /// As in [`Action::Send`].
        tag: u64,
        /// The answer.
        reply: Reply,
    },
    /// The connection to a disk broke: the disk may have restarted. Comes before anything is
    /// answered over a new connection.
    Lost {
        /// Which disk.
        disk: DiskId,
    },
    /// A newer map.
    Map(View),
    /// The map says whether the write cache is on, and it may be another than before.
    WriteBack(bool),
    /// Write through from now on, whatever the map says, and say when nothing acknowledged is in memory alone.
    WriteThrough {
        /// Chosen by the shell; returns in [`Action::Complete`].
        tag: u64,
    },
    /// Give the volume away: hold what comes from now on, and say when there is nothing left for a successor to wait
    /// for. If no map names one soon, go on as before.
    HandOver {
        /// Chosen by the shell; returns in [`Action::Complete`].
        tag: u64,
    },
    /// Another gateway is the owner by now: stop.
    Resign,
    /// The time that [`Action::SetTimer`] named has come.
    Tick,
}

/// What the shell has to do.
#[derive(Clone, Debug)]
pub enum Action {
    /// Send to a disk; the answer comes back as [`Event::Reply`], once.
    Send {
        /// To which.
        disk: DiskId,
        /// Names the answer.
        tag: u64,
        /// What.
        request: Request,
    },
    /// A command is over, the cache is as it was told to be, or the volume can be given away.
    Complete {
        /// As in [`Event::Command`], [`Event::WriteThrough`] and [`Event::HandOver`].
        tag: u64,
        /// How it went.
        outcome: Outcome,
    },
    /// Send [`Event::Tick`] at that time; replaces the timer before.
    SetTimer {
        /// On the clock of `handle`.
        at_ms: u64,
    },
    /// The deleted volume's space has been given back on every disk.
    Purged,
    /// What the control plane should know has changed: complaints, or what is caught up.
    News,
}

/// Why an in-sync disk does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// No connection.
    Disconnected,
    /// It said that it has failed, or that it is not there.
    Failed,
    /// It forgot a seal that it had answered, or spoke nonsense: it cannot be trusted.
    Untrusted,
}

/// An in-sync disk that is needed and does not answer: what the gateway complains about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// Which.
    pub disk: DiskId,
    /// Since when, on the clock of `handle`.
    pub since_ms: u64,
    /// Why.
    pub trouble: Trouble,
}

/// A disk that answers, and takes far longer than the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limping {
    /// Which.
    pub disk: DiskId,
    /// How long its answers take on average, in milliseconds.
    pub mean_ms: u64,
    /// How long those of the fastest other disk take.
    pub others_ms: u64,
}

/// How far the copies of a disk that do not count have been brought up to date.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatchUp {
    /// Which disk.
    pub disk: DiskId,
    /// The map that the owner acted under when it said this. It holds if that is not older than what the present map
    /// says in [`Behind::since`](lunette_proto::map::Behind::since).
    pub epoch: Epoch,
    /// Partitions whose copies are equal to the others' and take part in every change from now on, for as long as this
    /// owner owns the volume: they may count.
    pub ready: Partitions,
    /// Partitions that are not.
    pub behind: Partitions,
    /// Extents that are known to need a look, and have not had it.
    pub waiting_extents: u64,
    /// Extents that were looked at.
    pub checked_extents: u64,
    /// Bytes that were copied.
    pub copied_bytes: u64,
}

/// Bugs that the simulator must be able to find. The seams are constant `false` outside tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plant {
    AckAfterFirst,
    NoHazardLock,
    NoReconcile,
    ReadAnyMember,
    WrongMerge,
    RetryNewVersion,
    ServeBeforeAllSealed,
    ForgetTimedOutLock,
    NoWithdraw,
    IgnoreLost,
    WatermarkTooFar,
    NoRoomForChanges,
    HealFromItself,
    HealNewVersion,
    CompareUnlocked,
    WriteOnMiscompare,
    OrOverwrites,
    SplitAtomic,
    NoAtomicRoom,
    LevelByBlock,
    ReadBehind,
    ForgetChanges,
    ForgetLevelled,
    ForgetMissed,
    IgnoreLostCopy,
    KeepPromises,
    KeepTails,
    ReadyUnlevelled,
    ReadyUnlooked,
    ReadyUnflushed,
    CompleteTooEarly,
    ArrivingComplete,
    ReadUngranted,
    GrantFromAnswer,
    GrantWithoutReady,
    ForgetHeld,
}

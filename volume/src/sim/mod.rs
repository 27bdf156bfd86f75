//! The owner against model disks and a network that does everything it may do, from one seed.
//!
//! Each run draws a pool, a layout and a mode, issues commands that overlap on few blocks, and
//! meanwhile delays, reorders and repeats messages, breaks connections, lets what was on them
//! arrive late, kills disks and cuts their power, fills them up, spoils copies, removes disks from
//! the map, kills the owner or leaves it running beside its successor. In the end everything heals;
//! all commands must be answered, every block's history explained, no atomic write torn, all replicas equal.
//!
//! `LUNETTE_SIM_SEED=n` replays one run; `LUNETTE_SIM_SEEDS=n` sets how many there are.

mod checker;
mod control;
pub(crate) mod disk;
mod load;
pub(crate) mod rng;
mod split;
mod trouble;
mod verdict;
mod world;

use std::sync::Mutex;

use crate::owner::Plant;
use world::{Faults, World};

const OPS: usize = 200;
const SEEDS: u64 = 2000;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}

/// The first runs that fail, in order of their seeds.
fn failures(seeds: std::ops::Range<u64>, faults: Faults, enough: usize) -> Vec<String> {
    let next = Mutex::new(seeds);
    let found = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let Some(seed) = next.lock().unwrap().next() else {
                        return;
                    };
                    if found.lock().unwrap().len() >= enough {
                        return;
                    }
                    let run = std::panic::AssertUnwindSafe(|| World::new(seed, OPS, faults).run());
                    let outcome = std::panic::catch_unwind(run)
                        .unwrap_or_else(|_| Err(format!("seed {seed}: panicked")));
                    if let Err(what) = outcome {
                        found.lock().unwrap().push(what);
                    }
                }
            });
        }
    });
    found.into_inner().unwrap()
}

/// Guards the whole contract (rules R1 to R6 of the consistency model, equal replicas, and an end
/// to every command) under faults.
#[test]
fn every_history_can_be_explained() {
    let seeds = match setting("LUNETTE_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..setting("LUNETTE_SIM_SEEDS").unwrap_or(SEEDS),
    };
    let failures = failures(seeds, Faults::default(), 1);
    if let Some(failure) = failures.first() {
        panic!("{failure}\nreplay with LUNETTE_SIM_SEED");
    }
}

/// Guards the run itself: commands do get through, and the same seed gives the same run.
#[test]
fn runs_are_productive_and_repeat() {
    for seed in 0..20 {
        let acked = World::new(seed, OPS, Faults::default()).run().unwrap();
        assert!(acked > OPS / 4, "seed {seed}: only {acked} of {OPS} commands succeeded");
        assert_eq!(World::new(seed, OPS, Faults::default()).run().unwrap(), acked);
    }
}

macro_rules! finds {
    ($($name:ident: $faults:expr;)*) => {$(
        /// Guards the simulator: it finds this bug.
        #[test]
        fn $name() {
            let seeds = setting("LUNETTE_SIM_SEEDS").unwrap_or(SEEDS);
            let failures = failures(0..seeds, $faults, 1);
            // By what is wrong with the history, not by some assertion on the way.
            let failure = failures.first().expect("not found");
            assert!(!failure.contains("panicked"), "{failure}");
            println!("{failure}");
        }
    )*};
}

fn planted(bug: Plant) -> Faults {
    Faults { planted: Some(bug), ..Faults::default() }
}

fn among_moves() -> Faults {
    Faults { mostly_moves: true, ..Faults::default() }
}

/// Guards copies on their way, with little else going on.
#[test]
fn moves_can_be_explained() {
    let seeds = 0..setting("LUNETTE_SIM_SEEDS").unwrap_or(SEEDS) / 4;
    let failures = failures(seeds, among_moves(), 1);
    assert_eq!(failures, [""; 0]);
}

fn among_splits() -> Faults {
    Faults { mostly_splits: true, ..Faults::default() }
}

/// Guards invariant 34: two owners that each reach a part of the disks, and both answer reads, one of them no more in time.
#[test]
fn splits_can_be_explained() {
    let seeds = 0..setting("LUNETTE_SIM_SEEDS").unwrap_or(SEEDS);
    let failures = failures(seeds, among_splits(), 1);
    assert_eq!(failures, [""; 0]);
}

finds! {
    finds_ack_after_the_first_member: planted(Plant::AckAfterFirst);
    finds_no_hazard_lock: planted(Plant::NoHazardLock);
    finds_no_reconciliation: planted(Plant::NoReconcile);
    finds_reads_of_any_member: planted(Plant::ReadAnyMember);
    finds_a_wrong_merge: planted(Plant::WrongMerge);
    finds_retries_under_a_new_version: planted(Plant::RetryNewVersion);
    finds_serving_before_all_have_sealed: planted(Plant::ServeBeforeAllSealed);
    finds_a_forgotten_lock: planted(Plant::ForgetTimedOutLock);
    finds_no_withdrawal: planted(Plant::NoWithdraw);
    finds_lost_memory_ignored: planted(Plant::IgnoreLost);
    finds_more_changes_than_disks_list: planted(Plant::NoRoomForChanges);
    finds_a_watermark_too_far: planted(Plant::WatermarkTooFar);
    finds_a_repair_from_the_bad_copy_itself: planted(Plant::HealFromItself);
    finds_a_repair_under_a_new_version: planted(Plant::HealNewVersion);
    finds_a_comparison_outside_of_the_lock: planted(Plant::CompareUnlocked);
    finds_a_write_in_spite_of_a_miscompare: planted(Plant::WriteOnMiscompare);
    finds_an_or_that_overwrites: planted(Plant::OrOverwrites);
    finds_a_write_in_parts: planted(Plant::SplitAtomic);
    finds_an_atomic_write_without_room: planted(Plant::NoAtomicRoom);
    finds_reads_of_a_copy_that_is_behind: planted(Plant::ReadBehind);
    finds_changes_forgotten_while_away: planted(Plant::ForgetChanges);
    finds_missed_changes_forgotten: planted(Plant::ForgetMissed);
    finds_promises_kept_from_before_it_left: planted(Plant::KeepPromises);
    finds_unacked_tails_kept: planted(Plant::KeepTails);
    finds_ready_before_looked_at: planted(Plant::ReadyUnlooked);
    finds_complete_while_behind: planted(Plant::CompleteTooEarly);
    finds_complete_before_it_came: planted(Plant::ArrivingComplete);
    finds_what_was_said_of_other_copies: Faults { believe_of_other_copies: true, ..among_moves() };
    finds_old_promises_believed: Faults { believe_old_promises: true, ..Faults::default() };
    finds_reads_without_grants: Faults { planted: Some(Plant::ReadUngranted), ..among_splits() };
    finds_seals_answered_in_spite_of_grants: Faults { seal_at_once: true, ..among_splits() };
    finds_held_commands_forgotten: planted(Plant::ForgetHeld);
    finds_a_disk_that_forgets_generations: Faults { forget_generation: true, ..Faults::default() };
}

//! Storage nodes, control members and gateways that die and return, as real processes, under a load that verifies all that it reads.
//!
//! ```text
//!     load.rs ──8 iSCSI sessions──> gateway1 ──> node1 (with the control plane)
//!                                           ├──> node2  <── killed, frozen, started again
//!                                           └──> node3  <──
//!     replicas.rs <── the disks, when all have ended: every copy equals the others
//! ```
//!
//! More deaths than in the usual run, each with its command:
//!
//! ```text
//! LUNETTE_TEST_KILLS=50 cargo nextest run -p lunette-tests --test nodes random_deaths
//! LUNETTE_TEST_SEED=7 ...      other random numbers
//! ```

#![allow(clippy::unwrap_used, reason = "a test fails where it stops")]

mod control;
mod gateways;
mod load;
mod moves;
mod replicas;
#[path = "../power/stamp.rs"]
mod stamp;

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lunette_proto::ids::{ClusterId, DiskId, DiskUuid};
use lunette_storage_node::{FormatOptions, Identity, format_disk};
use lunette_tests::processes::Part;
use lunette_tests::random::Random;
use lunette_tests::{Lunette, command};

use self::load::{EXTENTS, Load};

const VOLUME: &str = "alpha";
const NODES: [&str; 3] = ["node1", "node2", "node3"];
/// Writes that show that writing goes on.
const SOME: u64 = 50;

fn number(variable: &str, default: u64) -> u64 {
    let Ok(text) = std::env::var(variable) else { return default };
    text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text}"))
}

fn start() -> Lunette {
    Lunette::build().processes().volume(VOLUME, "64M").log("info").start()
}

fn load(lunette: &Lunette) -> Load {
    let load = Load::start(lunette, VOLUME, number("LUNETTE_TEST_SEED", 42));
    load.run(SOME);
    load
}

/// Waits until the node's copies do not count any more, under load.
fn until_out(lunette: &Lunette, load: &Load, node: &str) {
    lunette.until("voted out", |lunette| {
        load.check();
        lunette.disk_state(node) == "out"
    });
}

/// Waits until all copies count again, under load.
fn until_healthy(lunette: &Lunette, load: &Load) {
    lunette.until("healthy", |lunette| {
        load.check();
        lunette.health() == "health: healthy"
    });
    for node in NODES {
        assert_eq!(lunette.disk_state(node), "in-sync", "healthy, and {node} is not");
    }
}

/// Ends the load and everything else, and compares what it left.
fn finish(mut lunette: Lunette, load: Load) {
    let written = load.written();
    load.finish();
    lunette.kill();
    replicas::assert_equal(&lunette.data(), &NODES, EXTENTS);
    for node in NODES {
        let mut check = std::process::Command::new(lunette_tests::binary::lunette_bin());
        check.args(["disk", "check"]).arg(lunette.data().join(node));
        let checked = command::run(&mut check, Duration::from_secs(60));
        assert!(checked.ok(), "{checked}");
    }
    println!("{written} writes acknowledged");
}

#[test]
fn a_node_that_is_killed_stops_nobody_and_catches_up() {
    // Guards against writes that wait for a dead node, and against a copy that counts before it has all.
    let lunette = start();
    let load = load(&lunette);
    lunette.kill_part("node2");
    until_out(&lunette, &load, "node2");
    let health = lunette.health();
    assert!(health.starts_with("health: degraded ("), "{health}");
    load.run(SOME * 4);
    let _node2 = lunette.start_part("node2");
    until_healthy(&lunette, &load);
    load.run(SOME);
    finish(lunette, load);
}

#[test]
fn random_deaths() {
    // Guards the same at any moment: also while a node catches up, and of another node as soon as the first is back.
    let lunette = start();
    let load = load(&lunette);
    let mut random = Random::new(number("LUNETTE_TEST_SEED", 42) ^ 0xdead);
    let mut moment = |limit_ms| std::thread::sleep(Duration::from_millis(random.below(limit_ms)));
    let mut parts = BTreeMap::new();
    for death in 0..number("LUNETTE_TEST_KILLS", 5) {
        // Every third time once more while it catches up, or starts, or is not even noticed to be back.
        let node = NODES[1 + (death / 3 % 2) as usize];
        if death % 3 != 1 {
            until_healthy(&lunette, &load);
            moment(300);
        }
        // One that was just started may not have a pid file yet.
        match parts.remove(node) {
            Some(part) => drop::<Part>(part),
            None => lunette.kill_part(node),
        }
        load.check();
        moment(2000);
        parts.insert(node, lunette.start_part(node));
        moment(1000);
        println!("death {death} of {node}, {} writes", load.written());
    }
    until_healthy(&lunette, &load);
    finish(lunette, load);
}

#[test]
fn a_frozen_node_is_left_behind_and_catches_up() {
    // Guards against waiting for what is silent, and against requests of before that take effect when it goes on.
    let lunette = start();
    let load = load(&lunette);
    let pid = lunette.pid_of("node3");
    command::freeze(pid);
    until_out(&lunette, &load, "node3");
    load.run(SOME * 4);
    command::thaw(pid);
    until_healthy(&lunette, &load);
    load.run(SOME);
    finish(lunette, load);
}

#[test]
fn a_node_that_limps_is_told_of_and_not_read() {
    // Guards reads against a slow copy while there are others, and the administrator against not knowing of it.
    let lunette = start();
    let load = load(&lunette);
    let pid = lunette.pid_of("node3");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Too short to be taken for dead, and far too long for a disk.
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                command::freeze(pid);
                std::thread::sleep(Duration::from_millis(400));
                command::thaw(pid);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            lunette.until("told of", |lunette| {
                load.check();
                lunette.health().contains("of node node3 is slow: its answers take")
            });
            assert_eq!(lunette.disk_state("node3"), "in-sync", "it counts all the same");
        }));
        over.store(true, Ordering::SeqCst);
        told.unwrap();
    });
    until_healthy(&lunette, &load);
    load.run(SOME);
    finish(lunette, load);
}

#[test]
fn the_last_two_copies_are_not_given_up() {
    // Guards min_size: with one copy left nothing is acknowledged, and nothing is lost when another one is back.
    let lunette = start();
    let load = load(&lunette);
    lunette.kill_part("node2");
    until_out(&lunette, &load, "node2");
    load.run(SOME);
    load.set_strict(false);
    lunette.kill_part("node3");
    load.run_until_refused();
    // What was on its way has been answered by now: only reads are, from here on.
    let before = load.written();
    load.run_until_refused();
    assert_ne!(lunette.disk_state("node3"), "out", "one copy is too few");
    load.run_until_refused();
    assert_eq!(load.written(), before, "acknowledged with one copy");
    let _node3 = lunette.start_part("node3");
    load.run(SOME);
    let _node2 = lunette.start_part("node2");
    until_healthy(&lunette, &load);
    load.set_strict(true);
    load.run(SOME);
    finish(lunette, load);
}

#[test]
fn another_disk_in_its_place_is_refused() {
    // Guards against a blank disk, or another cluster's, that passes for the copy that it replaces.
    let lunette = start();
    let load = load(&lunette);
    lunette.kill_part("node2");
    let (disk, kept) = (lunette.data().join("node2"), lunette.data().join("kept"));
    fs::rename(&disk, &kept).unwrap();
    let log = lunette.data().join("run/node2.log");
    let refusal = || {
        let said = fs::read_to_string(&log).unwrap().len();
        assert_eq!(lunette.start_part("node2").end(), 1);
        let text = fs::read_to_string(&log).unwrap();
        text[said..].lines().last().unwrap_or_default().to_owned()
    };

    fs::create_dir(&disk).unwrap();
    let node2 = lunette.start_part("node2");
    lunette.until("refused", |lunette| {
        load.check();
        lunette.disk_state("node2") == "refused"
    });
    let listed = lunette.cli(["disk", "list"]).stdout;
    assert!(listed.contains("node2 holds no Lunette disk any more: put disk-"), "{listed}");
    assert_eq!(fs::read_dir(&disk).unwrap().count(), 0, "formatted all the same");
    drop(node2);

    fs::remove_dir(&disk).unwrap();
    let foreign = Identity { cluster: ClusterId(9), disk: DiskId(2), uuid: DiskUuid(9) };
    let options = FormatOptions { capacity_bytes: Some(256 << 20), wal_bytes: Some(32 << 20) };
    format_disk(&disk, &foreign, &options).unwrap();
    let foreign = refusal();
    assert!(foreign.contains("cluster"), "{foreign}");

    fs::remove_dir_all(&disk).unwrap();
    fs::rename(&kept, &disk).unwrap();
    let _node2 = lunette.start_part("node2");
    until_healthy(&lunette, &load);
    finish(lunette, load);
}

//! A storage node that is killed and loses power under load, and what its disk holds afterwards.
//!
//! ```text
//!     load.rs ──node protocol──> child process: Node ──> disk: a folder, or the fault disk (FUSE)
//!       │ what was sent and answered                       │
//!     model.rs <── every block, by its stamp (stamp.rs) ───┘ after kill -9, after a power cut
//! ```
//!
//! Block by block: whole, in its place, never older than what was acknowledged as durable, never what was refused or
//! what an earlier crash had taken. Violations are named: TORN, MISDIRECTED, STALE, GHOST, GARBAGE.
//!
//! More lives than in the usual run, each with its command (about 0.3 s for each life):
//!
//! ```text
//! LUNETTE_TEST_KILLS=200 cargo nextest run -p lunette-tests --test power kill_9
//! LUNETTE_TEST_POWER_CUTS=200 cargo nextest run -p lunette-tests --test power power_cuts
//! LUNETTE_TEST_SEED=7 ...      other random numbers
//! LUNETTE_TEST_BLIND=1 ...     sectors that all have one CRC-32C
//! ```

#![allow(clippy::unwrap_used, reason = "a test fails where it stops")]

mod connection;
mod load;
mod model;
mod node;
mod stamp;

use std::fs;
use std::path::Path;
use std::time::Duration;

use lunette_proto::node::{Failure, RequestBody};
use lunette_tests::faultdisk::FaultDisk;
use lunette_tests::faultdisk::control::Command;

use self::connection::Connection;
use self::load::Load;
use self::model::{Kind, Violation};
use self::node::{CLUSTER, NodeProcess};

const FAULT_DISK_BYTES: u64 = 4 << 30;

/// Not a test: the node that the tests below start and kill.
#[test]
fn child_serves_a_disk() {
    node::serve_if_child();
}

fn number(variable: &str, default: u64) -> u64 {
    let Ok(text) = std::env::var(variable) else { return default };
    text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text}"))
}

fn load() -> Load {
    Load::new(number("LUNETTE_TEST_SEED", 42), number("LUNETTE_TEST_BLIND", 0) != 0)
}

/// A node on the disk at `path`, taken over and verified.
fn start(load: &mut Load, path: &Path) -> Result<(NodeProcess, Connection), Violation> {
    let mut node = NodeProcess::start(path);
    let mut connection =
        Connection::open(node.address().expect("the disk is opened; see the node's message"));
    assert!(load.take_over(&mut connection)?, "a disk without a fault has failed");
    Ok((node, connection))
}

/// One life: opened, verified, under load, killed with requests on their way; `cut` comes after each death.
fn live(load: &mut Load, path: &Path, mut cut: impl FnMut(u64)) -> Result<(), Violation> {
    if load.random().one_in(4) {
        // Killed while it opens its disk.
        let node = NodeProcess::start(path);
        std::thread::sleep(Duration::from_micros(load.random().below(60_000)));
        node.kill();
        cut(load.random().bits());
    }
    let (node, mut connection) = start(load, path)?;
    let answers = 20 + load.random().below(300);
    load.run(&mut connection, answers)?;
    load.fill(&mut connection);
    std::thread::sleep(Duration::from_micros(load.random().below(8000)));
    node.kill();
    load.drain(&mut connection)?;
    cut(load.random().bits());
    Ok(())
}

fn lives(load: &mut Load, count: u64, path: &Path, mut cut: impl FnMut(u64)) {
    for life in 0..count {
        let acknowledged = load.acknowledged;
        live(load, path, &mut cut).unwrap_or_else(|bad| panic!("life {life}: {bad}"));
        assert!(load.acknowledged > acknowledged, "life {life}: nothing was acknowledged");
    }
    start(load, path).unwrap_or_else(|bad| panic!("at the end: {bad}"));
    assert_eq!((load.disk_failed, load.no_space, load.corrupt), (0, 0, 0));
}

/// Guards acknowledged writes, and the absence of everything else, against kill -9 at any moment.
#[test]
fn kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    node::format(&path);
    let mut load = load();
    lives(&mut load, number("LUNETTE_TEST_KILLS", 12), &path, |_| {});
    println!("{} changes and flushes acknowledged", load.acknowledged);
}

/// Guards the same against power cuts that lose what was not synced: all of it, or any part, torn at 512 bytes.
#[test]
fn power_cuts() {
    let mut disk = FaultDisk::start(FAULT_DISK_BYTES);
    let path = disk.path().join("disk");
    node::format(&path);
    disk.command(Command::Drop);
    let mut load = load();
    let cuts = number("LUNETTE_TEST_POWER_CUTS", 10);
    lives(&mut load, cuts, &path, |bits| {
        disk.command(if bits % 3 == 0 { Command::Drop } else { Command::Crash(bits) });
    });
    let stats = disk.stats();
    println!("{} changes and flushes acknowledged; {stats}", load.acknowledged);
    assert!(stats.lost_sectors > 0, "the power cuts took nothing: {stats}");
}

/// Guards the same against power that fails in the middle of any one write or sync of the node, while it opens its
/// disk too: what it was told then it must not have acknowledged, and what it has must be there.
#[test]
fn power_fails_at_any_step() {
    let mut disk = FaultDisk::start(FAULT_DISK_BYTES);
    let path = disk.path().join("disk");
    node::format(&path);
    let mut load = load();
    let (mut cuts, mut while_opening) = (0, 0);
    for life in 0..number("LUNETTE_TEST_POWER_CUTS", 10) {
        let seed = load.random().bits();
        // Opening takes few steps; checkpoints come after many.
        let steps_max = [6, 200, 200, 1500][load.random().below(4) as usize];
        let steps = load.random().below(steps_max);
        disk.command(Command::CutAfter(steps, seed));
        let mut node = NodeProcess::start(&path);
        match node.address() {
            None => while_opening += 1,
            Some(address) => {
                let mut connection = Connection::open(address);
                let outcome = load.take_over(&mut connection).and_then(|taken| {
                    if taken { load.run_until(&mut connection, |load| load.disk_failed) } else { Ok(()) }
                });
                outcome.unwrap_or_else(|bad| panic!("life {life}, {steps} steps: {bad}"));
            }
        }
        node.kill();
        let crashes = disk.stats().crashes;
        assert_eq!(crashes, cuts + 1, "life {life}: the node ended, and not for want of power");
        cuts = crashes;
        disk.command(Command::PowerOn);
        start(&mut load, &path).unwrap_or_else(|bad| panic!("after life {life}, {steps} steps: {bad}"));
    }
    println!(
        "{} changes and flushes acknowledged; {while_opening} cuts while opening; {}",
        load.acknowledged,
        disk.stats()
    );
}

/// Guards the verifier: a disk that went back in time, which no crash does, is noticed.
#[test]
fn an_old_disk_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let (path, old) = (folder.path().join("disk"), folder.path().join("old"));
    node::format(&path);
    let mut load = load();
    live(&mut load, &path, |_| {}).unwrap();
    copy(&path, &old);
    live(&mut load, &path, |_| {}).unwrap();
    let noticed = start(&mut load, &old).expect_err("the disk of a life ago");
    assert_eq!(noticed.kind, Kind::Stale, "{noticed}");
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (path, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if path.is_dir() {
            copy(&path, &to);
        } else {
            fs::copy(path, to).unwrap();
        }
    }
}

/// Switches a fault on under load, checks that the node is fenced from then on, cuts the power, and checks that
/// everything that was acknowledged is there.
fn fenced_by(fault: Command, healed: Command) {
    let mut disk = FaultDisk::start(FAULT_DISK_BYTES);
    let path = disk.path().join("disk");
    node::format(&path);
    let mut load = load();
    let (node, mut connection) = start(&mut load, &path).unwrap();
    load.run(&mut connection, 100).unwrap();
    disk.command(fault);
    load.run_until(&mut connection, |load| load.disk_failed).unwrap();
    assert!(load.disk_failed > 0, "{fault}: no answer said so");
    let stats = disk.stats();
    assert!(stats.failed_syncs + stats.failed_writes > 0, "{stats}");
    // The fault is over; the disk stays fenced all the same.
    disk.command(healed);
    let acknowledged = load.acknowledged;
    load.run(&mut connection, 300).unwrap();
    load.drain(&mut connection).unwrap();
    assert_eq!(load.acknowledged, acknowledged, "{fault}: something was acknowledged afterwards");
    assert_eq!(connection.call(RequestBody::Identify { cluster: CLUSTER }), Err(Failure::DiskFailed));
    node.kill();
    disk.command(Command::Drop);
    let (_node, mut connection) = start(&mut load, &path).unwrap_or_else(|bad| panic!("{fault}: {bad}"));
    load.run(&mut connection, 100).unwrap();
    assert!(load.acknowledged > acknowledged, "opened again, it serves");
    assert_eq!(load.corrupt, 0, "{fault}: all that it holds can be read");
}

/// Guards against a sync that fails once and is tried again: the second one would lie.
#[test]
fn a_failed_sync_fences_the_disk() {
    fenced_by(Command::FailSync(true), Command::FailSync(false));
}

/// Guards against acknowledging what could not be written.
#[test]
fn a_failed_write_fences_the_disk() {
    fenced_by(Command::WriteErrors(true), Command::WriteErrors(false));
}

/// Guards against a disk that is lost because it is full: what has no room is refused, and it goes on.
#[test]
fn a_full_disk_goes_on() {
    let mut disk = FaultDisk::start(FAULT_DISK_BYTES);
    let path = disk.path().join("disk");
    node::format(&path);
    let mut load = load();
    let (node, mut connection) = start(&mut load, &path).unwrap();
    load.run(&mut connection, 20).unwrap();
    disk.command(Command::Full(true));
    load.run_until(&mut connection, |load| load.no_space).unwrap();
    load.run(&mut connection, 200).unwrap();
    assert!(load.no_space > 0 && load.disk_failed == 0, "{} {}", load.no_space, load.disk_failed);
    disk.command(Command::Full(false));
    load.drain(&mut connection).unwrap();
    let refused = load.no_space;
    load.run(&mut connection, 300).unwrap();
    assert_eq!((load.no_space, load.disk_failed), (refused, 0), "there is room again");
    node.kill();
    disk.command(Command::Drop);
    start(&mut load, &path).unwrap_or_else(|bad| panic!("{bad}"));
    assert_eq!(load.corrupt, 0);
}

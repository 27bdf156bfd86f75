//! The same system as processes: `lunette up --processes`.

use std::time::Duration;

use lunette_tests::server::{alive, wait_gone};
use lunette_tests::{Initiator, Lunette, command, iqn};

const NAMES: [&str; 4] = ["gateway1", "node1", "node2", "node3"];

fn start() -> Lunette {
    Lunette::build().processes().volume("alpha", "64M").start()
}

fn names(lunette: &Lunette) -> Vec<String> {
    lunette
        .pids()
        .into_iter()
        .map(|(name, _)| name)
        .filter(|name| name.starts_with("node") || name.starts_with("gateway"))
        .collect()
}

fn write_and_read(lunette: &Lunette, lba: u64, byte: u8) {
    let mut initiator = lunette.initiator("alpha");
    initiator.ready().expect("a connection");
    let answer = initiator.write(lba, &[byte; 8192]).expect("a connection");
    assert_eq!(answer.status, 0, "{answer:x?}");
    read(lunette, lba, byte);
}

fn read(lunette: &Lunette, lba: u64, byte: u8) {
    let mut initiator = lunette.initiator("alpha");
    initiator.ready().expect("a connection");
    let answer = initiator.read(lba, 16).expect("a connection");
    assert!(
        answer.status == 0 && answer.data == [byte; 8192],
        "status {:x}, sense {:x?}",
        answer.status,
        answer.sense
    );
}

#[test]
fn each_part_is_a_process_and_the_data_path_works() {
    // Guards against `--processes` being one process, and against nodes that only work in the gateway's own.
    let lunette = start();
    assert_eq!(names(&lunette), NAMES);
    let mut pids: Vec<u32> = lunette.pids().into_iter().map(|(_, pid)| pid).collect();
    assert!(pids.iter().all(|pid| alive(*pid)), "{pids:?}");
    pids.dedup();
    assert!(pids.len() >= NAMES.len(), "different processes: {:?}", lunette.pids());
    let found = Initiator::discover(lunette.portal()).expect("discovery");
    assert!(found.iter().any(|target| target.name == iqn("alpha")), "{found:?}");
    write_and_read(&lunette, 8, 0x17);
    let status = lunette.cli(["status"]);
    assert!(status.ok() && status.stdout.starts_with("health: healthy"), "{status}");
}

#[test]
fn data_survives_a_kill_of_all_of_them() {
    // Guards against acknowledged writes that were only in some process's memory.
    let mut lunette = start();
    write_and_read(&lunette, 0, 0x21);
    write_and_read(&lunette, 8193, 0x22);
    lunette.kill();
    lunette.restart();
    read(&lunette, 0, 0x21);
    read(&lunette, 8193, 0x22);
    assert_eq!(names(&lunette), NAMES);
}

#[test]
fn a_sigterm_of_the_parent_stops_everything() {
    // Guards against processes left behind, and pid files that lie.
    let mut lunette = start();
    write_and_read(&lunette, 0, 0x33);
    let pids = lunette.pids();
    let status = lunette.stop();
    assert_eq!(command::code(status), 0, "exit status after SIGTERM");
    for (name, pid) in pids {
        assert!(!alive(pid), "{name} ({pid}) outlived `lunette up`");
    }
    lunette.restart();
    read(&lunette, 0, 0x33);
}

#[test]
fn a_silent_node_hangs_nobody_and_no_ack_counts_it() {
    // Guards against a hypervisor that waits for ever for a node that keeps its connections and says nothing, and
    // against an ack that a copy does not have which counts.
    let lunette = start();
    write_and_read(&lunette, 0, 0x51);
    let (_, pid) = lunette.pids().into_iter().find(|(name, _)| name == "node2").expect("a pid file of node2");
    command::freeze(pid);
    let mut initiator = lunette.initiator("alpha");
    let outcome = initiator.ready().and_then(|()| initiator.write(0, &[0x52; 8192]));
    let state = lunette.disk_state("node2");
    // Where no copy is silent, the others serve.
    let mut other = lunette.initiator("alpha");
    let served = other.ready().and_then(|()| other.read(4096, 16)).map(|answer| answer.status);
    command::thaw(pid);
    let good = outcome.expect("an answer").status == 0;
    assert!(!good || state == "out", "GOOD without a copy on node2, which is {state}");
    assert_eq!(served.expect("an answer"), 0, "a read of other blocks");
    let healthy = (0..600).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        lunette.cli(["status"]).stdout.starts_with("health: healthy")
    });
    assert!(healthy, "not healthy 30 s after node2 goes on: {}", lunette.cli(["status"]));
    write_and_read(&lunette, 0, 0x53);
}

#[test]
fn a_node_is_started_again_by_hand() {
    // Guards against a node that a cluster cannot take back after its process died.
    let lunette = start();
    write_and_read(&lunette, 0, 0x44);
    let (_, pid) = lunette.pids().into_iter().find(|(name, _)| name == "node2").expect("a pid file of node2");
    command::kill(pid);
    wait_gone(pid);
    // Two of three copies are enough to read.
    read(&lunette, 0, 0x44);

    let mut only = std::process::Command::new(lunette_tests::binary::lunette_bin());
    only.args(["up", "--processes", "--only", "node2", "--data"]).arg(lunette.data());
    only.stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null());
    let mut child = only.spawn().expect("start node2");
    // Whether the command stays in the foreground or not, the node writes and the cluster heals.
    let healed = (0..600).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        lunette.cli(["status"]).stdout.starts_with("health: healthy")
    });
    let status = lunette.cli(["status"]);
    if healed {
        write_and_read(&lunette, 4096, 0x45);
    }
    command::terminate(child.id());
    let _ = command::wait(&mut child, Duration::from_secs(10));
    assert!(healed, "not healthy again after 30 s: {status}");
}

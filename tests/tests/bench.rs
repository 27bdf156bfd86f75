//! `lunette bench` against a system that runs.

#![allow(clippy::unwrap_used, reason = "a test fails where it stops")]

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use lunette_tests::binary::lunette_bin;
use lunette_tests::{Lunette, command, iqn};

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn a_volume_is_measured_by_its_owner() {
    // Guards against figures of something else than was asked for, and against JSON that scripts cannot read.
    let lunette = Lunette::build().start();
    assert!(lunette.cli(["volume", "create", "v", "--size", "64M", "--write-back"]).ok());
    let bench = |pattern: &str, rest: &str| {
        let line = format!("bench v --pattern {pattern} --duration 1s --range 1M..3M {rest}");
        lunette.json(line.split(' ').filter(|word| !word.is_empty()))
    };
    let operations = |value: &serde_json::Value, of: &str| value[of]["operations"].as_u64().unwrap();

    let write = bench("write", "--destroy-data --depth 4 --block-size 64K --durable");
    assert_eq!(write["writes_are"], "durable");
    assert!(operations(&write, "writes") >= 4, "{write}");
    assert_eq!(write["writes"]["bytes"], operations(&write, "all") * (64 << 10));
    assert_eq!(operations(&write, "reads"), 0);

    let mixed = bench("mixed", "--destroy-data --read-percent 50 --block-size 512 --seed 9");
    assert_eq!(mixed["writes_are"], "write-back");
    let (reads, writes) = (operations(&mixed, "reads"), operations(&mixed, "writes"));
    assert!(reads > 0 && writes > 0, "{mixed}");
    assert_eq!(reads + writes, operations(&mixed, "all"));

    let read = bench("randread", "--depth 1");
    assert_eq!((&read["volume"], &read["gateway"]), (&"v".into(), &"gateway1".into()));
    let order =
        ["p50_us", "p90_us", "p99_us", "p999_us", "max_us"].map(|name| read["all"][name].as_f64().unwrap());
    assert!(order[0] > 0.0 && order.is_sorted(), "{read}");
    assert!(read["elapsed_s"].as_f64().unwrap() >= 0.9, "{read}");

    // Nothing beside the range was written.
    assert!(lunette.cli(["target", "create", "iqn.2026-11.test:t"]).ok());
    assert!(lunette.cli(["target", "map", "iqn.2026-11.test:t", "v"]).ok());
    let mut initiator = lunette_tests::Initiator::login(lunette.portal(), "iqn.2026-11.test:t").unwrap();
    initiator.ready().unwrap();
    for (mib, is_written) in [(0, false), (1, true), (2, true), (3, false)] {
        let data = initiator.read(mib << 11, 2048).unwrap().data;
        assert_eq!(data.len(), 1 << 20);
        assert_eq!(data.iter().any(|byte| *byte != 0), is_written, "MiB {mib}");
    }
}

#[test]
fn a_load_that_writes_destroys_nothing_unasked() {
    // Guards every volume in use, and whoever forgets what writing means.
    let lunette = Lunette::build().volume("used", "64M").start();
    assert!(lunette.cli(["volume", "create", "new", "--size", "64M"]).ok());
    let refused = |line: &str, why: &str| {
        let outcome = lunette.cli(line.split(' '));
        assert_eq!(outcome.code, 1, "{outcome}");
        assert!(outcome.stderr.contains(why), "{outcome}");
        assert!(outcome.stdout.is_empty(), "{outcome}");
    };
    let unmap = format!("lunette target unmap {} used", iqn("used"));
    refused("bench used --pattern randwrite --destroy-data", &unmap);
    refused("bench used --pattern mixed --destroy-data", &unmap);
    refused("bench new --pattern write", "--destroy-data");
    refused("bench none", "none");
    refused("bench new --range 1G..", "no room");
    refused("bench new --range 0..1G", "ends at byte 67108864");
    refused("bench new --depth 1024 --block-size 1M", "128 MiB");
    refused("bench new --pattern read --read-percent 3", "--pattern mixed");
    // Reading destroys nothing.
    assert!(lunette.cli("bench used --duration 1s --depth 2".split(' ')).ok());

    // A target that shows the volume ends what writes to it.
    let mut child = start(&lunette, "bench new --pattern randwrite --destroy-data --depth 1 --duration 10m");
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("ops/s"));
    assert!(lunette.cli(["target", "map", &iqn("used"), "new"]).ok());
    let status = command::wait(&mut child, PATIENCE).expect("it ends");
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    assert_eq!(status.code(), Some(1), "{rest:?}");
    assert!(rest.iter().any(|line| line.contains("a target shows the volume now")), "{rest:?}");
}

#[test]
fn an_interrupt_ends_the_load() {
    // Guards against a load that nobody can stop: nine of them one after the other would be one too many at a time.
    let lunette = Lunette::build().start();
    assert!(lunette.cli(["volume", "create", "v", "--size", "64M"]).ok());
    for _ in 0..9 {
        let mut child = start(&lunette, "bench v --duration 10m");
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        assert!(lines.next().unwrap().unwrap().contains("ops/s"));
        command::interrupt(child.id());
        let status = command::wait(&mut child, PATIENCE).expect("it ends");
        let rest: Vec<String> = lines.map(Result::unwrap).collect();
        assert_eq!(status.code(), Some(1), "{rest:?}");
        assert!(rest.last().unwrap().contains("interrupted"), "{rest:?}");
    }
}

/// `lunette LINE`, with what it says on standard error.
fn start(lunette: &Lunette, line: &str) -> std::process::Child {
    let mut command = Command::new(lunette_bin());
    command.env("LUNETTE_ADMIN", lunette.announced_admin()).args(line.split(' '));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

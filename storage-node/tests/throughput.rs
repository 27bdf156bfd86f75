//! How fast a disk is, for eyes: `cargo nextest run -p lunette-storage-node --run-ignored only throughput --no-capture`.

#![allow(clippy::unwrap_used, reason = "a test fails where it stops")]

mod support;

use std::time::Instant;

use lunette_proto::node::*;
use support::*;

fn keep_in_flight(
    disk: &mut Client,
    depth: u64,
    count: u64,
    body: impl Fn(&Client, u64) -> RequestBody,
) -> f64 {
    let begin = Instant::now();
    let mut sent = 0;
    for answered in 0..count {
        while sent < count && sent - answered < depth {
            let body = body(disk, sent);
            disk.send(body);
            sent += 1;
        }
        assert!(disk.receive().1.is_ok());
    }
    count as f64 / begin.elapsed().as_secs_f64()
}

/// Prints; guards nothing but that it runs.
#[test]
#[ignore = "a measurement"]
fn throughput() {
    let directory = tempfile::tempdir().unwrap();
    format_as(directory.path(), 2 << 30);
    let mut disk = open(directory.path());
    disk.seal(1);
    let mut seq = 0;
    let durability = Durability::Stable;
    for (name, depth, count, run) in
        [("4 KiB", 1, 500, 1), ("4 KiB", 32, 20_000, 1), ("256 KiB", 16, 2000, 64)]
    {
        let data = blocks(7, run);
        let first = seq;
        let write = |_: &Client, n: u64| {
            let seq = first + n + 1;
            let slots = 1024 / run as u64;
            let place = seq.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
            let (extent, slot) = (place / slots % 64, place % slots);
            let change = Change::Data(data.clone());
            let offset = slot as u32 * run as u32 * 4096;
            RequestBody::Change { extent: at(extent), version: version(1, seq), offset, change, durability }
        };
        let rate = keep_in_flight(&mut disk, depth, count, write);
        seq += count;
        let bytes = rate * run as f64 * 4096.0 / 1e6;
        println!("write {name}, {depth} in flight: {rate:.0}/s, {bytes:.0} MB/s");
    }
    for (depth, len) in [(1, 4096), (32, 4096), (4, 1 << 20)] {
        let read = |disk: &Client, n: u64| {
            let (extent, offset) = (n % 64, (n as u32).wrapping_mul(7919) % (4 << 20) / len * len);
            RequestBody::Read { extent: at(extent), generation: disk.generation, offset, len }
        };
        let rate = keep_in_flight(&mut disk, depth, 20_000, read);
        println!("read {len} bytes, {depth} in flight: {rate:.0}/s, {:.0} MB/s", rate * f64::from(len) / 1e6);
    }
}

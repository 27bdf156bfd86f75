//! Random operations against a small model in memory, with crashes in between.

#![allow(clippy::unwrap_used, reason = "a test fails where it stops")]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use lunette_proto::ids::*;
use lunette_proto::node::*;
use support::*;

/// Blocks that the test uses of each extent: the first and the last, so that whole discards
/// and tables both take part.
const BLOCKS: u32 = 1024;
const EXTENTS: u64 = 5;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Cell {
    version: Version,
    /// 0 is zeros without space.
    stamp: u64,
}

#[derive(Clone, Default)]
struct Model {
    cells: BTreeMap<(u64, u32), Cell>,
    watermark: Version,
    newest: BTreeMap<u64, Version>,
}

impl Model {
    fn cell(&self, extent: u64, block: u32) -> Cell {
        self.cells.get(&(extent, block)).copied().unwrap_or_default()
    }

    fn change(&mut self, extent: u64, first: u32, count: u32, version: Version, stamp: u64) {
        for block in first..first + count {
            let cell = self.cells.entry((extent, block)).or_default();
            if version > cell.version {
                *cell = Cell { version, stamp };
                if version > self.watermark {
                    let newest = self.newest.entry(extent).or_default();
                    *newest = version.max(*newest);
                }
            }
        }
    }

    fn check(&self, disk: &mut Client) {
        for extent in 0..EXTENTS {
            let data = disk.read(extent, 0, BLOCKS).unwrap();
            let mut versions = disk
                .versions(extent)
                .into_iter()
                .flat_map(|run| std::iter::repeat_n((run.version, run.hole), run.blocks as usize));
            for block in 0..BLOCKS {
                let cell = self.cell(extent, block);
                let got = &data[block as usize * 4096..][..4096];
                let expected = if cell.stamp == 0 { zeros(1) } else { blocks(cell.stamp, 1) };
                assert!(got == expected, "extent {extent} block {block}: expected {cell:?}");
                let found = versions.next().unwrap_or((Version::NONE, true));
                assert_eq!(found, (cell.version, cell.stamp == 0), "extent {extent} block {block}");
            }
        }
        // A unit is taken by any data in it, and given back when it is discarded as a whole.
        let units = |holds: fn(&Cell) -> bool| {
            let cells = self.cells.iter().filter(|(_, cell)| holds(cell));
            cells.map(|((extent, block), _)| (*extent, block / 16)).collect::<BTreeSet<_>>().len() as u64
        };
        let (least, most) = (units(|cell| cell.stamp != 0), units(|cell| cell.version != Version::NONE));
        let used = disk.used();
        assert!((least * UNIT..=most * UNIT).contains(&used), "{least} <= {} <= {most}", used / UNIT);
    }
}

/// Same content in each block of a change: what the model keeps is one stamp.
fn content(stamp: u64, count: u32) -> bytes::Bytes {
    blocks(stamp, 1).repeat(count as usize).into()
}

fn run(seed: u64, steps: u32) {
    let mut random = Random(seed);
    let directory = tempfile::tempdir().unwrap();
    let mut path = directory.path().join("0");
    format(&path);
    let mut disk = open(&path);
    let mut model = Model::default();
    let (mut generation, mut seq) = (1, 0);
    disk.seal(generation);
    for step in 0..steps {
        let extent = random.below(EXTENTS);
        let first = u32::try_from(random.below(u64::from(BLOCKS))).unwrap();
        let longest = if random.below(8) == 0 { BLOCKS } else { 12 };
        let count = 1 + u32::try_from(random.below(u64::from(longest.min(BLOCKS - first)))).unwrap();
        // Now and then an old version, as a retry or a repair brings it.
        let old = random.below(5) == 0 && seq > 0;
        let at = if old { 1 + random.below(seq) } else { seq + 1 };
        let v = version(generation, at);
        let stamp = generation << 32 | at;
        let durability = if random.below(3) == 0 { Durability::Volatile } else { Durability::Stable };
        match random.below(20) {
            0..=8 => {
                // The same version must mean the same content: an old one only of what was not written under it.
                let known = model.cells.values().any(|cell| cell.version == v);
                if !known {
                    disk.change(extent, at, first, Change::Data(content(stamp, count)), durability).unwrap();
                    model.change(extent, first, count, v, stamp);
                }
                seq = seq.max(at);
            }
            9..=11 => {
                let (first, count) = if random.below(3) == 0 { (0, BLOCKS) } else { (first, count) };
                let known = model.cells.values().any(|cell| cell.version == v);
                if !known {
                    disk.change(extent, at, first, Change::Zeros { len: count * 4096 }, durability).unwrap();
                    model.change(extent, first, count, v, 0);
                }
                seq = seq.max(at);
            }
            12..=13 if generation > 1 => {
                let v = version(generation - 1, 1_000_000 + u64::from(step));
                let stamp = (generation - 1) << 32 | v.seq;
                disk.put(extent, v, first, Change::Data(content(stamp, count))).unwrap();
                model.change(extent, first, count, v, stamp);
            }
            14 => {
                disk.watermark(seq).unwrap();
                model.watermark = model.watermark.max(version(generation, seq));
                let mark = model.watermark;
                model.newest.retain(|_, newest| *newest > mark);
            }
            15 => assert_eq!(disk.flush(), Ok(ReplyBody::Done)),
            16 => {
                generation += 1;
                seq = 0;
                // Whatever the disk says must cover what the model says; it may name more.
                // It is not said soon after the disk was opened, when a process before may have granted something.
                let Ok(dirty) = disk.seal_now(generation) else { continue };
                for (index, newest) in &model.newest {
                    let found = dirty.iter().find(|dirty| dirty.index == *index);
                    assert!(found.is_some_and(|found| found.newest >= *newest), "extent {index}: {found:?}");
                }
            }
            17 => {
                let count = count.min(64);
                let data = disk.read(extent, first, count).unwrap();
                for block in 0..count {
                    let cell = model.cell(extent, first + block);
                    let expected = if cell.stamp == 0 { zeros(1) } else { blocks(cell.stamp, 1) };
                    assert!(data[block as usize * 4096..][..4096] == expected);
                }
            }
            18 if random.below(4) == 0 => {
                // The process dies, having lost nothing that it may not lose: what lies in the page cache is what a new
                // one finds. (What the loss of power may leave is the simulator's part.)
                disk.flush().unwrap();
                let next = directory.path().join(step.to_string());
                copy_disk(&path, &next);
                disk.node.close();
                drop(disk);
                std::fs::remove_dir_all(&path).unwrap();
                path = next;
                disk = open(&path);
                disk.generation = Generation(generation);
                model.check(&mut disk);
            }
            19 if random.below(4) == 0 => {
                let (generation, extents) = (Generation(generation), vec![extent, EXTENTS + 1]);
                disk.call(RequestBody::Drop { namespace: NS, generation, extents }).unwrap();
                model.cells.retain(|(index, _), _| *index != extent);
                model.newest.remove(&extent);
            }
            _ => {}
        }
    }
    model.check(&mut disk);
    disk.node.close();
    drop(disk);
    let mut disk = open(&path);
    disk.generation = Generation(generation);
    model.check(&mut disk);
}

/// Guards everything at once: versions, discards, repairs, watermarks, generations, rounds of the
/// journal and recovery behave as the model does, and the death of the process loses nothing.
#[test]
fn as_the_model() {
    let seeds = std::env::var("LUNETTE_TEST_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(6);
    for seed in 1..=seeds {
        eprintln!("seed {seed}");
        run(seed, 500);
    }
}

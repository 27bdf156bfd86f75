use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Sender, channel};

use bytes::Bytes;
use lunette_proto::ids::{ClusterId, DiskId, DiskUuid, Epoch, Generation, Version};
use lunette_proto::node::{Change, Durability, Failure, ReplyBody};

use super::super::DiskEngine;
use super::*;
use crate::engine::{DiskConfig, Engine, ReadQuery};
use crate::store::{Damage, FormatOptions, Identity, Layout, format_disk};

struct Inbox(Sender<Reply>);

impl Replies for Inbox {
    fn reply(&self, _: u64, reply: Reply) {
        // Whoever asked may have given up.
        let _ = self.0.send(reply);
    }
}

const CLUSTER: ClusterId = ClusterId(1);
const NS: Namespace = Namespace(1);
const G: Generation = Generation(1);
const PATIENCE: Duration = Duration::from_secs(60);

fn extent(index: u64) -> ExtentId {
    ExtentId { namespace: NS, index }
}

fn answer(ask: impl FnOnce(Completion)) -> Reply {
    let (sender, answers) = channel();
    ask(Completion::new(0, Arc::new(Inbox(sender))));
    answers.recv_timeout(PATIENCE).expect("an answer")
}

/// A disk in a folder of its own, and its file.
struct Rig {
    folder: tempfile::TempDir,
    engine: DiskEngine,
}

impl Rig {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a directory");
        let identity = Identity { cluster: CLUSTER, disk: DiskId(1), uuid: DiskUuid(1) };
        format_disk(folder.path(), &identity, &FormatOptions::of(96 << 20)).expect("formatted");
        let engine = DiskEngine::open(CLUSTER, &DiskConfig::new(folder.path(), None)).expect("opened");
        let rig = Self { folder, engine };
        assert!(rig.ask(Operation::Seal { namespace: NS, generation: G }).is_ok());
        rig
    }

    fn ask(&self, operation: Operation) -> Reply {
        answer(|done| self.engine.submit(Epoch(1), operation, done))
    }

    /// Blocks of random-looking bytes, each different.
    fn write(&self, index: u64, seq: u64, first: u32, blocks: u32) -> Bytes {
        let data = content(index, seq, first, blocks);
        let version = Version { generation: G, seq };
        let change = Change::Data(data.clone());
        let offset = first * 4096;
        let durability = Durability::Stable;
        let operation = Operation::Change { extent: extent(index), version, offset, change, durability };
        assert_eq!(self.ask(operation), Ok(ReplyBody::Done));
        data
    }

    fn put(&self, index: u64, seq: u64, first: u32, blocks: u32) {
        let change = Change::Data(content(index, seq, first, blocks));
        let version = Version { generation: G, seq };
        let (extent, offset) = (extent(index), first * 4096);
        let operation = Operation::Put { extent, generation: G, version, offset, change };
        assert_eq!(self.ask(operation), Ok(ReplyBody::Done));
    }

    fn read(&self, index: u64, first: u32, blocks: u32) -> Reply {
        let query = ReadQuery {
            extent: extent(index),
            generation: G,
            offset: first * 4096,
            len: blocks * 4096,
            at: None,
        };
        answer(|done| self.engine.read(Epoch(1), query, done))
    }

    /// Everything on the medium, and nothing in memory.
    fn reopen(mut self) -> Self {
        self.engine.close();
        drop(self.engine);
        self.engine = DiskEngine::open(CLUSTER, &DiskConfig::new(self.folder.path(), None)).expect("opened");
        self
    }

    fn file(&self) -> File {
        File::options().read(true).write(true).open(self.folder.path().join("disk")).expect("the file")
    }

    fn layout(&self) -> Layout {
        self.engine.shared.view.layout
    }

    fn unit(&self, index: u64, slot: u8) -> u32 {
        let state = self.engine.shared.view.state.read();
        state.extents.get(extent(index)).and_then(|extent| extent.unit(slot)).expect("it has data").unit
    }

    /// Where a block of slot 0 lies.
    fn block(&self, index: u64, block: u32) -> u64 {
        self.layout().unit(self.unit(index, 0)) + u64::from(block) * 4096
    }

    /// One pass, from begin to end.
    fn scrub(&self) -> ScrubStatus {
        let before = self.engine.scrub_status().pass;
        self.engine.scrub(None);
        self.until(|status| status.pass > before && !status.is_running)
    }

    fn until(&self, holds: impl Fn(&ScrubStatus) -> bool) -> ScrubStatus {
        let end = Instant::now() + PATIENCE;
        loop {
            let status = self.engine.scrub_status();
            if holds(&status) {
                return status;
            }
            assert!(Instant::now() < end, "{status:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Something that goes wrong on the medium.
type Spoil = fn(&Rig, &File);

fn content(index: u64, seq: u64, first: u32, blocks: u32) -> Bytes {
    let mut state = index.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seq << 32 ^ u64::from(first) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..blocks * 512).flat_map(|_| next()).collect()
}

fn page(file: &File, offset: u64) -> [u8; 4096] {
    let mut page = [0; 4096];
    file.read_exact_at(&mut page, offset).expect("read");
    page
}

fn flip(file: &File, offset: u64) {
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("read");
    file.write_all_at(&[byte[0] ^ 1], offset).expect("write");
}

/// Guards against false alarms: a disk that is whole is found whole, all of it, while it is written to.
#[test]
fn a_whole_disk_is_found_whole() {
    let rig = Rig::new();
    for index in 0..5 {
        rig.write(index, 1, 0, 40);
    }
    let changes = 300;
    let status = std::thread::scope(|scope| {
        scope.spawn(|| (2..changes).for_each(|seq| drop(rig.write(seq % 5, seq, (seq % 37) as u32, 3))));
        let mut last = rig.scrub();
        while last.pass < 40 {
            assert_eq!((last.found_blocks, last.bad.total()), (0, 0), "{last:?}");
            last = rig.scrub();
        }
        last
    });
    assert_eq!(status.found_blocks, 0);
    assert_eq!(status.done_bytes, 5 * 3 * 65_536, "three units of each of five extents");
    assert!(status.checked_blocks >= 5 * 40, "{status:?}");
    let again = rig.reopen().scrub();
    assert_eq!((again.found_blocks, again.bad), (0, DamageCounts::default()));
    assert!(again.checked_blocks >= 5 * 40, "{again:?}");
}

/// Guards the names: each kind of damage to a block is found, counted under its own name, and stays known until the
/// block is put back; everything else stays readable.
#[test]
fn damage_is_told_apart() {
    let rig = Rig::new();
    for index in 0..4 {
        rig.write(index, 1, 0, 16);
    }
    rig.write(3, 2, 3, 1);
    let rig = rig.reopen();
    let file = rig.file();
    flip(&file, rig.block(0, 5) + 1000);
    file.write_all_at(&[0; 4096], rig.block(1, 6)).expect("write");
    let other = page(&file, rig.block(2, 8));
    file.write_all_at(&other, rig.block(2, 7)).expect("write");
    // What was there before: block 3 is the fourth of the first content.
    let old = content(3, 1, 0, 16).slice(3 * 4096..4 * 4096);
    file.write_all_at(&old, rig.block(3, 3)).expect("write");
    let status = rig.scrub();
    let expected = DamageCounts { torn: 1, lost: 1, misdirected: 1, stale: 1, unreadable: 0 };
    assert_eq!(status.bad, expected, "{status:?}");
    assert_eq!((status.found_blocks, status.repaired), (4, 0));
    let run = |index, first| DamagedRun { index, first, blocks: 1 };
    assert_eq!(rig.engine.damaged(NS), [run(0, 5), run(1, 6), run(2, 7), run(3, 3)]);
    assert_eq!(rig.engine.damaged(Namespace(2)), []);
    assert_eq!(rig.read(0, 0, 16), Err(Failure::Corrupt { offset: 5 * 4096 }));
    assert!(rig.read(0, 6, 10).is_ok());

    for (index, seq, block) in [(0, 1, 5), (1, 1, 6), (2, 1, 7), (3, 2, 3)] {
        let change = Change::Data(if index == 3 {
            content(3, 2, 3, 1)
        } else {
            content(index, 1, 0, 16).slice(block as usize * 4096..(block as usize + 1) * 4096)
        });
        let version = Version { generation: G, seq };
        let (extent, offset) = (extent(index), block * 4096);
        let operation = Operation::Put { extent, generation: G, version, offset, change };
        assert_eq!(rig.ask(operation), Ok(ReplyBody::Done));
    }
    // Without another pass.
    let status = rig.until(|status| status.bad.total() == 0);
    assert_eq!(status.repaired, 4);
    assert_eq!(rig.engine.damaged(NS), []);
    let again = rig.reopen().scrub();
    assert_eq!((again.found_blocks, again.bad.total()), (0, 0), "{again:?}");
}

/// Guards descriptors: whatever happened to one on the medium is found although memory still has it, and makes all its
/// blocks bad; they are good again once they are put back.
#[test]
fn damaged_descriptors_are_found() {
    let spoil: [(Spoil, Damage); 4] = [
        (|rig, file| flip(file, rig.layout().descriptor(rig.unit(0, 0)) + 70), Damage::Torn),
        (
            |rig, file| {
                file.write_all_at(&[0; 512], rig.layout().descriptor(rig.unit(0, 0))).expect("write");
            },
            Damage::Lost,
        ),
        (
            |rig, file| {
                let mut sector = [0; 512];
                file.read_exact_at(&mut sector, rig.layout().descriptor(rig.unit(1, 0))).expect("read");
                file.write_all_at(&sector, rig.layout().descriptor(rig.unit(0, 0))).expect("write");
            },
            Damage::Misdirected,
        ),
        (
            // As if the descriptor's last write had never reached the medium.
            |rig, file| {
                let at = rig.layout().descriptor(rig.unit(0, 0));
                let mut old = [0; 512];
                file.read_exact_at(&mut old, at).expect("read");
                std::fs::write(rig.folder.path().join("old"), old).expect("kept");
            },
            Damage::Stale,
        ),
    ];
    for (spoil, damage) in spoil {
        for is_cached in [false, true] {
            let rig = Rig::new();
            rig.write(0, 1, 0, 16);
            rig.write(1, 1, 0, 16);
            let mut rig = rig.reopen();
            let remember = |rig: &Rig| assert!(!is_cached || rig.read(0, 0, 16).is_ok());
            remember(&rig);
            spoil(&rig, &rig.file());
            if damage == Damage::Stale {
                rig.write(0, 2, 0, 1);
                rig = rig.reopen();
                remember(&rig);
                let old = std::fs::read(rig.folder.path().join("old")).expect("kept");
                let at = rig.layout().descriptor(rig.unit(0, 0));
                rig.file().write_all_at(&old, at).expect("write");
            }
            let status = rig.scrub();
            let mut expected = DamageCounts::default();
            (0..16).for_each(|_| expected.add(damage));
            assert_eq!(status.bad, expected, "{damage}");
            assert_eq!(rig.engine.damaged(NS), [DamagedRun { index: 0, first: 0, blocks: 16 }]);
            rig.put(0, 1, 0, 16);
            if damage == Damage::Stale {
                rig.put(0, 2, 0, 1);
            }
            assert_eq!(rig.until(|status| status.bad.total() == 0).repaired, 16, "{damage}");
            let again = rig.reopen().scrub();
            assert_eq!((again.found_blocks, again.bad.total()), (0, 0), "{damage}: {again:?}");
        }
    }
}

/// Guards a medium that cannot read: of a unit, only what cannot be read alone is bad.
#[test]
fn unreadable_blocks_are_found() {
    let rig = Rig::new();
    rig.write(0, 1, 0, 16);
    let rig = rig.reopen();
    let bad = rig.block(0, 9);
    let medium = &rig.engine.shared.medium;
    let found = rig.engine.shared.view.inspect(extent(0), None, 0, |offset, out| {
        if (offset..offset + out.len() as u64).contains(&bad) {
            return Err(io::Error::other("not readable"));
        }
        medium.read(offset, out)
    });
    assert_eq!(found.bad, [Bad { block: 9, damage: Damage::Unreadable }]);
    assert_eq!(found.checked, 16);
    let found =
        rig.engine.shared.view.inspect(extent(0), None, 0, |_, _| Err(io::Error::other("not readable")));
    assert_eq!(found.bad.len(), 16);
}

/// Guards the other way in: what an ordinary read finds is known at once, and what an overwrite or a deletion makes
/// good or pointless is known no more.
#[test]
fn reads_find_and_overwrites_heal() {
    let rig = Rig::new();
    rig.write(0, 1, 0, 4);
    rig.write(1, 1, 0, 4);
    let rig = rig.reopen();
    let file = rig.file();
    flip(&file, rig.block(0, 1));
    flip(&file, rig.block(1, 2));
    assert_eq!(rig.engine.scrub_status().bad.total(), 0);
    assert_eq!(rig.read(0, 0, 4), Err(Failure::Corrupt { offset: 4096 }));
    assert_eq!(rig.until(|status| status.bad.torn == 1).found_blocks, 0, "no pass was made");
    assert_eq!(rig.read(1, 2, 1), Err(Failure::Corrupt { offset: 2 * 4096 }));
    rig.until(|status| status.bad.torn == 2);
    rig.write(2, 1, 0, 4);
    flip(&file, rig.block(2, 0));
    assert_eq!(rig.read(2, 0, 1), Err(Failure::Corrupt { offset: 0 }));
    rig.until(|status| status.bad.torn == 3);
    let drop_of = |extents| rig.ask(Operation::Drop { namespace: NS, generation: G, extents });
    assert!(drop_of(vec![2, 3]).is_ok());
    assert_eq!(rig.until(|status| status.bad.torn == 2).repaired, 0, "what was dropped was not repaired");
    rig.write(0, 2, 0, 4);
    assert_eq!(rig.until(|status| status.bad.torn == 1).repaired, 1);
    assert!(rig.ask(Operation::Delete { namespace: NS, generation: G }).is_ok());
    let status = rig.until(|status| status.bad.total() == 0);
    assert_eq!(status.repaired, 1, "what was deleted was not repaired");
}

/// Guards the pace: a pass at a low rate looks at one extent and then waits; asked again without a limit it is over soon.
#[test]
fn a_pass_keeps_its_rate() {
    let rig = Rig::new();
    for index in 0..4 {
        rig.write(index, 1, 0, 16);
    }
    rig.engine.scrub(Some(16));
    let status = rig.until(|status| status.done_bytes > 0);
    assert_eq!((status.pass, status.is_running, status.rate_bytes), (1, true, 16));
    assert_eq!((status.done_bytes, status.total_bytes), (65_536, 4 * 65_536));
    assert_eq!(status.left_ms, Some(3 * 65_536 * 1000 / 16));
    let status = rig.scrub();
    assert_eq!((status.pass, status.checked_blocks), (2, 64));
    assert_eq!((status.done_bytes, status.left_ms), (4 * 65_536, None));
}

/// Guards the order of a pass that begins in the middle: it comes round and looks at everything once.
#[test]
fn a_pass_comes_round() {
    let rig = Rig::new();
    for index in 0..6 {
        rig.write(index, 1, 0, 1);
    }
    for (part, before) in
        [(0.0, None), (0.5, Some(extent(2))), (0.99, Some(extent(4))), (1.0, Some(extent(5)))]
    {
        assert_eq!(rig.engine.shared.view.extent_at(part), before, "{part}");
    }
    for first in [None, Some(extent(2)), Some(extent(5))] {
        let shared = &rig.engine.shared;
        let mut pass = shared.begin_pass(None, first);
        let mut seen = Vec::new();
        while shared.advance(&mut pass) {
            seen.extend(pass.last.map(|extent| extent.index));
        }
        let mut expected: Vec<u64> = (0..6).collect();
        expected.rotate_left(first.map_or(0, |first| first.index as usize + 1) % 6);
        assert_eq!(seen, expected, "{first:?}");
    }
}

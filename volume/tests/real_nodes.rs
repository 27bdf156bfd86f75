//! Volumes on real storage nodes: unaligned commands from many tasks against a model, while nodes are closed
//! and opened again and the volume goes from owner to owner.

#![allow(clippy::unwrap_used, reason = "a test fails where it stops")]

mod support;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::{BufMut, Bytes, BytesMut};
use lunette_volume::device::{BlockDevice, Command, DeviceError};
use support::{Cluster, Random, SECTOR, run};

const WORKERS: usize = 4;
/// Sectors that each round of the test touches: around the border of two extents, and spread.
const AREAS: [Range<u64>; 3] = [0..96, 8192 - 48..8192 + 48, 16_000..16_064];

/// What a sector may hold: the write that was acked last, and writes after it of which nobody knows.
#[derive(Clone, Debug, Default)]
struct Sector {
    acked: u64,
    unknown: Vec<u64>,
}

/// A task with sectors of its own that lie between those of others, so that they share blocks.
struct Worker {
    random: Random,
    /// Runs of sectors.
    mine: Vec<Range<u64>>,
    model: std::collections::BTreeMap<u64, Sector>,
    stamps: Arc<AtomicU64>,
    acked: usize,
}

impl Worker {
    fn all(seed: u64) -> Vec<Self> {
        let mut random = Random(seed);
        let stamps = Arc::new(AtomicU64::new(1));
        let mut workers: Vec<Self> = (0..WORKERS)
            .map(|id| Self {
                random: Random(seed.wrapping_mul(31).wrapping_add(id as u64)),
                mine: Vec::new(),
                model: Default::default(),
                stamps: Arc::clone(&stamps),
                acked: 0,
            })
            .collect();
        for area in AREAS {
            let mut at = area.start;
            while at < area.end {
                let end = area.end.min(at + 1 + random.below(20));
                workers[random.below(WORKERS as u64) as usize].mine.push(at..end);
                at = end;
            }
        }
        workers
    }

    fn pick(&mut self) -> Range<u64> {
        let run = self.mine[self.random.below(self.mine.len() as u64) as usize].clone();
        let start = run.start + self.random.below(run.end - run.start);
        start..start + 1 + self.random.below(run.end - start)
    }

    async fn step(&mut self, device: &Arc<dyn BlockDevice>) {
        let range = self.pick();
        let (offset, len) = (range.start * SECTOR, (range.end - range.start) * SECTOR);
        match self.random.below(100) {
            0..50 => {
                let stamp = self.stamps.fetch_add(1, Ordering::Relaxed);
                let data = content(stamp, len);
                let fua = self.random.below(5) == 0;
                let outcome = run(device, Command::Write { offset, data, fua }).await;
                self.changed(range, stamp, outcome.err());
            }
            50..60 => {
                let outcome = run(device, Command::Zero { offset, len }).await;
                self.changed(range, 0, outcome.err());
            }
            60..95 => self.read(device, range).await,
            _ => match run(device, Command::Flush).await {
                Ok(_) | Err(DeviceError::TimedOut | DeviceError::NotOwner) => {}
                Err(error) => panic!("flush: {error}"),
            },
        }
    }

    fn changed(&mut self, range: Range<u64>, stamp: u64, error: Option<DeviceError>) {
        for sector in range {
            let model = self.model.entry(sector).or_default();
            match &error {
                None => *model = Sector { acked: stamp, unknown: Vec::new() },
                Some(DeviceError::TimedOut | DeviceError::NotOwner) => model.unknown.push(stamp),
                Some(error) => panic!("sector {sector}: {error}"),
            }
        }
        self.acked += usize::from(error.is_none());
    }

    async fn read(&mut self, device: &Arc<dyn BlockDevice>, range: Range<u64>) {
        let (offset, len) = (range.start * SECTOR, (range.end - range.start) * SECTOR);
        let data = match run(device, Command::Read { offset, len: len as u32 }).await {
            Ok(data) => data.concat(),
            Err(DeviceError::TimedOut | DeviceError::NotOwner) => return,
            Err(error) => panic!("read of {range:?}: {error}"),
        };
        assert_eq!(data.len() as u64, len);
        for (sector, data) in range.zip(data.chunks_exact(SECTOR as usize)) {
            let stamp = stamp(data).unwrap_or_else(|| panic!("sector {sector} is torn"));
            let model = self.model.entry(sector).or_default();
            assert!(
                stamp == model.acked || model.unknown.contains(&stamp),
                "sector {sector} holds {stamp}, not {model:?}"
            );
            // What was seen stays.
            *model = Sector { acked: stamp, unknown: Vec::new() };
        }
        self.acked += 1;
    }
}

fn content(stamp: u64, len: u64) -> Bytes {
    let mut data = BytesMut::with_capacity(len as usize);
    (0..len / 8).for_each(|_| data.put_u64_le(stamp));
    data.freeze()
}

fn stamp(sector: &[u8]) -> Option<u64> {
    let (first, rest) = sector.split_first_chunk::<8>()?;
    rest.chunks_exact(8).all(|word| word == first).then(|| u64::from_le_bytes(*first))
}

/// The owner of now, for all workers.
type Current = Arc<ArcSwap<Arc<dyn BlockDevice>>>;

/// `LUNETTE_CHURN_SEED=n` runs with another seed.
async fn churn(tcp: bool, write_back: bool, seed: u64) {
    let seed = std::env::var("LUNETTE_CHURN_SEED").map_or(seed, |it| it.parse().expect("a number"));
    let mut cluster = Cluster::start(tcp, write_back, seed).await;
    let mut random = Random(seed);
    let (mut owner, device) = cluster.take_over().await;
    let current: Current = Arc::new(ArcSwap::from_pointee(device));
    let stop = Arc::new(AtomicBool::new(false));
    let tasks: Vec<_> = Worker::all(seed)
        .into_iter()
        .map(|mut worker| {
            let (current, stop) = (Arc::clone(&current), Arc::clone(&stop));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let device = Arc::clone(&*current.load_full());
                    worker.step(&device).await;
                    if worker.random.below(8) == 0 {
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                }
                worker
            })
        })
        .collect();
    for round in 0..9 {
        tokio::time::sleep(Duration::from_millis(50 + random.below(100))).await;
        if round % 3 == 2 {
            // The owner before does not know yet that it is none any more: the nodes tell it.
            let (next, device) = cluster.take_over().await;
            current.store(Arc::new(device));
            tokio::time::sleep(Duration::from_millis(50)).await;
            drop(std::mem::replace(&mut owner, next));
        } else {
            let node = random.below(cluster.len() as u64) as usize;
            cluster.close(node).await;
            tokio::time::sleep(Duration::from_millis(random.below(120))).await;
            cluster.open(node).await;
            cluster.tell(&owner);
        }
    }
    stop.store(true, Ordering::Relaxed);
    let mut workers = Vec::new();
    for task in tasks {
        workers.push(task.await.unwrap());
    }
    assert!(workers.iter().all(|worker| worker.acked > 20), "hardly anything got through");
    drop(owner);
    for _ in 0..2 {
        let (_owner, device) = cluster.take_over().await;
        for worker in &mut workers {
            for range in worker.mine.clone() {
                worker.read(&device, range).await;
            }
        }
    }
    cluster.same_replicas();
}

/// Guards the whole data path over sockets (rules R1 to R4 of the consistency model, equal replicas).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tcp() {
    churn(true, false, 11).await;
}

/// Guards the same with a write cache.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tcp_write_back() {
    churn(true, true, 12).await;
}

/// Guards the same where nodes are called, and answer from their own threads or from within the call.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_one_process() {
    churn(false, false, 13).await;
}

/// Guards the same with a write cache.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_one_process_write_back() {
    churn(false, true, 14).await;
}

/// Guards reads with all members but one away, and that a write that timed out meanwhile does not hold its blocks
/// once they are back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_member_serves_reads() {
    let mut cluster = Cluster::start(true, false, 15).await;
    let (_owner, device) = cluster.take_over().await;
    let (offset, data) = (512, content(7, 9 * SECTOR));
    assert!(run(&device, Command::Write { offset, data: data.clone(), fua: false }).await.is_ok());
    for node in 1..cluster.len() {
        cluster.close(node).await;
    }
    let late = content(8, 9 * SECTOR);
    let outcome = run(&device, Command::Write { offset, data: late.clone(), fua: false });
    let elsewhere = run(&device, Command::Read { offset: 64 * SECTOR, len: 4096 });
    let (outcome, elsewhere) = tokio::join!(outcome, elsewhere);
    assert_eq!(outcome, Err(DeviceError::TimedOut));
    // Only the partitions of the node that is left can be read at all.
    let _ = elsewhere;
    for node in 1..cluster.len() {
        cluster.open(node).await;
    }
    let read = run(&device, Command::Read { offset, len: 9 * SECTOR as u32 }).await.unwrap().concat();
    assert!(read == data || read == late);
    assert!(run(&device, Command::Write { offset, data: content(9, 9 * SECTOR), fua: false }).await.is_ok());
    let read = run(&device, Command::Read { offset, len: 9 * SECTOR as u32 }).await.unwrap().concat();
    assert_eq!(read, content(9, 9 * SECTOR));
}

/// Guards invariant 14: of comparisons with the same that come at once, exactly one is done, and all others see what it
/// wrote; bits that are ORed at once are all there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_two_comparisons_wins() {
    const RIVALS: u64 = 2;
    const ROUNDS: u64 = 150;
    for (tcp, write_back) in [(true, false), (false, true)] {
        let mut cluster = Cluster::start(tcp, write_back, 17).await;
        let (_owner, device) = cluster.take_over().await;
        // A lock in the middle of a block.
        let offset = 3 * SECTOR;
        let rival = |id: u64| {
            let device = Arc::clone(&device);
            async move {
                let (mut wins, mut there) = (Vec::new(), content(0, SECTOR));
                for round in 1..=ROUNDS {
                    let mine = content(round * RIVALS + id, SECTOR);
                    let (compare, data) = (there.clone(), mine.clone());
                    let swap = Command::CompareAndWrite { offset, compare, data, fua: false };
                    match run(&device, swap).await {
                        Ok(_) => {
                            wins.push(mine.clone());
                            there = mine;
                        }
                        Err(DeviceError::Miscompare { .. }) => {
                            let read = run(&device, Command::Read { offset, len: SECTOR as u32 }).await;
                            there = read.unwrap().concat().into();
                        }
                        Err(error) => panic!("{error}"),
                    }
                    let data = Bytes::from(vec![1 << id; SECTOR as usize]);
                    let offset = 5 * SECTOR + round * SECTOR;
                    assert!(run(&device, Command::Or { offset, data, fua: false }).await.is_ok());
                }
                wins
            }
        };
        let (one, two) = tokio::join!(tokio::spawn(rival(0)), tokio::spawn(rival(1)));
        let (one, two) = (one.unwrap(), two.unwrap());
        assert!(!one.is_empty() && !two.is_empty());
        let last = run(&device, Command::Read { offset, len: SECTOR as u32 }).await.unwrap().concat();
        assert!(one.last().is_some_and(|it| *it == last) || two.last().is_some_and(|it| *it == last));
        let len = (ROUNDS * SECTOR) as u32;
        let bits = run(&device, Command::Read { offset: 6 * SECTOR, len }).await.unwrap().concat();
        assert!(bits.iter().all(|byte| *byte == 3));
        // The same compared at the same moment.
        for round in 0..ROUNDS {
            let there = run(&device, Command::Read { offset, len: SECTOR as u32 }).await.unwrap().concat();
            let swap = |id: u64| {
                let data = content((1 << 32) + round * RIVALS + id, SECTOR);
                let compare = Bytes::from(there.clone());
                run(&device, Command::CompareAndWrite { offset, compare, data, fua: id == 0 })
            };
            let outcomes = tokio::join!(swap(0), swap(1));
            let winner = match outcomes {
                (Ok(_), Err(DeviceError::Miscompare { .. })) => 0,
                (Err(DeviceError::Miscompare { .. }), Ok(_)) => 1,
                other => panic!("{other:?}"),
            };
            let now = run(&device, Command::Read { offset, len: SECTOR as u32 }).await.unwrap().concat();
            assert_eq!(now, content((1 << 32) + round * RIVALS + winner, SECTOR));
        }
        drop(_owner);
        let (_owner, device) = cluster.take_over().await;
        let bits = run(&device, Command::Read { offset: 6 * SECTOR, len }).await.unwrap().concat();
        assert!(bits.iter().all(|byte| *byte == 3));
        cluster.same_replicas();
    }
}

/// Guards GET LBA STATUS on real disks, plain and striped: content, discards of whole units and of parts of one, what was
/// never written, from volatile memory too, and the same with the next owner.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mapping_is_what_was_done() {
    const BLOCK: u64 = 4096;
    for (seed, write_back) in [(18, false), (19, true), (19, false)] {
        let mut cluster = Cluster::start(false, write_back, seed).await;
        let (owner, device) = cluster.take_over().await;
        let stripe_bytes = if seed % 2 == 0 { 16 << 10 } else { 4 << 20 };
        assert_eq!(u64::from(device.atomic_bytes()), stripe_bytes.min(1 << 20));
        let len = 12 << 20;
        let mut expected = vec![1; (len / BLOCK) as usize];
        let mut random = Random(seed);
        for step in 0..60 {
            let first = 1000 + random.below(64);
            let blocks = 1 + random.below(48);
            let (offset, bytes) = (first * BLOCK, blocks * BLOCK);
            let command = match step % 3 {
                2 => Command::Zero { offset, len: bytes },
                _ => Command::Write { offset, data: content(step + 1, bytes), fua: false },
            };
            expected[first as usize..(first + blocks) as usize].fill(u8::from(step % 3 == 2));
            assert!(run(&device, command).await.is_ok());
            let part = Command::Mapping { offset: offset + 512, len: bytes - 1024 };
            let part = run(&device, part).await.unwrap().concat();
            assert_eq!(part, expected[first as usize..(first + blocks) as usize], "step {step}");
        }
        let all = Command::Mapping { offset: 0, len };
        assert_eq!(run(&device, all.clone()).await.unwrap().concat(), expected);
        assert!(run(&device, Command::Flush).await.is_ok());
        drop(owner);
        let (_owner, device) = cluster.take_over().await;
        assert_eq!(run(&device, all).await.unwrap().concat(), expected);
    }
}

/// Guards atomic writes of up to 1 MiB on real disks, into holes, over content and beside discards: what was written is
/// there, also with the next owner, and everywhere the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn atomic_writes_are_there() {
    const BLOCK: u64 = 4096;
    const MIB: u64 = 1 << 20;
    for (seed, write_back) in [(21, false), (23, true)] {
        let mut cluster = Cluster::start(false, write_back, seed).await;
        let (owner, device) = cluster.take_over().await;
        let atomic = u64::from(device.atomic_bytes());
        let mut there = vec![0; 6 * MIB as usize];
        let mut random = Random(seed);
        for step in 0..60 {
            let offset = BLOCK * random.below(5 * MIB / BLOCK);
            let len = BLOCK * (1 + random.below(MIB / BLOCK));
            let whole = len.min(atomic - offset % atomic);
            let (command, data) = match step % 4 {
                3 => (Command::Zero { offset, len }, Bytes::from(vec![0; len as usize])),
                2 => {
                    let data = content(step + 1, len);
                    (Command::Write { offset, data: data.clone(), fua: false }, data)
                }
                _ => {
                    let data = content(step + 1, whole);
                    (Command::WriteAtomic { offset, data: data.clone() }, data)
                }
            };
            assert!(run(&device, command).await.is_ok(), "step {step}");
            there[offset as usize..][..data.len()].copy_from_slice(&data);
        }
        let read = Command::Read { offset: 0, len: there.len() as u32 };
        assert_eq!(run(&device, read.clone()).await.unwrap().concat(), there);
        assert!(run(&device, Command::Flush).await.is_ok());
        drop(owner);
        let (_owner, device) = cluster.take_over().await;
        assert_eq!(run(&device, read).await.unwrap().concat(), there);
        cluster.same_replicas();
    }
}

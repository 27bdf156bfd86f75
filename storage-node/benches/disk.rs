//! A disk against fio on the same file system, in the same run: `cargo bench -p lunette-storage-node` (needs fio).
//!
//! Every figure is the median of three alternating runs; what counts is the ratio. The directory is `LUNETTE_BENCH_DIR`, or
//! one under the target directory: not a memory file system, whose syncs cost nothing.

#![allow(clippy::unwrap_used, reason = "a benchmark stops where it fails")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lunette_proto::ids::*;
use lunette_proto::node::*;
use lunette_storage_node::{DiskConfig, FormatOptions, Identity, Node, format_disk};

const CLUSTER: ClusterId = ClusterId(1);
const DISK: DiskId = DiskId(1);
const NS: Namespace = Namespace(1);
const BLOCK: u64 = 4096;
/// Bytes that random writes go to.
const SPAN: u64 = 1 << 30;
const EXTENT: u64 = 4 << 20;
const RUNS: usize = 3;

struct Inbox(Sender<(u64, Reply)>);

impl Replies for Inbox {
    fn reply(&self, tag: u64, reply: Reply) {
        let _ = self.0.send((tag, reply));
    }
}

struct Bench {
    node: Arc<Node>,
    inbox: Arc<Inbox>,
    answers: Receiver<(u64, Reply)>,
    seq: u64,
    random: u64,
}

impl Bench {
    fn open(path: &Path) -> Self {
        let node = Node::open(CLUSTER, [DiskConfig::new(path, None)]).unwrap();
        let (sender, answers) = channel();
        let bench = Self { node, inbox: Arc::new(Inbox(sender)), answers, seq: 0, random: 1 };
        // A disk that was just opened may have granted anything before.
        while let Err(Failure::Granted { left_ms }) =
            bench.try_call(RequestBody::Seal { namespace: NS, generation: Generation(1) })
        {
            std::thread::sleep(Duration::from_millis(left_ms.into()));
        }
        bench
    }

    fn send(&self, tag: u64, body: RequestBody) {
        self.node.call(Request { disk: DISK, epoch: Epoch(1), body }, tag, self.inbox.clone());
    }

    fn try_call(&self, body: RequestBody) -> Reply {
        self.send(2, body);
        loop {
            let (tag, reply) = self.answers.recv().unwrap();
            if tag == 2 {
                return reply;
            }
        }
    }

    fn call(&self, body: RequestBody) -> ReplyBody {
        self.try_call(body).unwrap()
    }

    fn below(&mut self, limit: u64) -> u64 {
        // xorshift64*
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) % limit
    }

    fn write(&mut self, data: &Bytes, place: u64) {
        self.seq += 1;
        let at = place * data.len() as u64;
        let extent = ExtentId { namespace: NS, index: at / EXTENT };
        let version = Version { generation: Generation(1), seq: self.seq };
        let offset = (at % EXTENT) as u32;
        let change = Change::Data(data.clone());
        let durability = Durability::Stable;
        self.send(1, RequestBody::Change { extent, version, offset, change, durability });
    }

    /// Durable random writes of `len` bytes, `depth` at a time: operations per second.
    fn writes(&mut self, len: u64, depth: u64, count: u64) -> f64 {
        let data = Bytes::from((0..len).map(|at| ((at * 7) >> 3) as u8).collect::<Vec<_>>());
        let places = SPAN / len;
        let begin = Instant::now();
        for _ in 0..depth.min(count) {
            let place = self.below(places);
            self.write(&data, place);
        }
        let mut answered = 0;
        while answered < count {
            let (tag, reply) = self.answers.recv().unwrap();
            assert!(reply.is_ok());
            if tag == 0 {
                continue;
            }
            answered += 1;
            if answered + depth <= count {
                let place = self.below(places);
                self.write(&data, place);
            }
            if answered % 4096 == 0 {
                // As the owner does once a second.
                let seq = self.seq - depth;
                self.send(
                    0,
                    RequestBody::Watermark { namespace: NS, generation: Generation(1), seq, complete: true },
                );
            }
        }
        count as f64 / begin.elapsed().as_secs_f64()
    }

    /// Random reads of 4 KiB of `span` bytes, one after the other: operations per second.
    fn reads(&mut self, span: u64, count: u64) -> f64 {
        let begin = Instant::now();
        for _ in 0..count {
            let at = self.below(span / BLOCK) * BLOCK;
            let extent = ExtentId { namespace: NS, index: at / EXTENT };
            let (offset, len) = ((at % EXTENT) as u32, BLOCK as u32);
            self.call(RequestBody::Read { extent, generation: Generation(1), offset, len });
        }
        count as f64 / begin.elapsed().as_secs_f64()
    }
}

/// Bytes that were written to the device that `path` lies on, by whomever: nothing else should write to it.
fn written_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let device = std::fs::metadata(path).unwrap().dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    rustix::fs::sync();
    let statistics = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).unwrap();
    statistics.split_whitespace().nth(6).unwrap().parse::<u64>().unwrap() * 512
}

/// Runs fio on a file that is there already; one number of its report.
fn fio(path: &Path, options: &[&str], direction: &str, field: &str) -> f64 {
    let output = Command::new("fio")
        .args(["--name=peer", "--output-format=json", "--time_based=0", "--thread", "--overwrite=1"])
        .arg(format!("--filename={}", path.display()))
        .arg(format!("--size={SPAN}"))
        .args(options)
        .output()
        .expect("fio is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    // The first `"direction" : {`, and the first `"field" : number` in it: enough for a report of one job.
    let section = &text[text.find(&format!("\"{direction}\" : {{")).unwrap()..];
    let value = &section[section.find(&format!("\"{field}\" : ")).unwrap() + field.len() + 5..];
    value[..value.find(|at: char| at != '.' && !at.is_ascii_digit()).unwrap()].parse().unwrap()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Alternates ours and theirs; prints the medians and the median of the ratios.
fn compare(
    name: &str,
    unit: &str,
    goal: &str,
    mut ours: impl FnMut() -> f64,
    mut theirs: impl FnMut() -> f64,
) {
    let runs = (0..RUNS).map(|_| (ours(), theirs())).collect::<Vec<_>>();
    let ratio = median(runs.iter().map(|(ours, theirs)| ours / theirs).collect());
    let ours = median(runs.iter().map(|run| run.0).collect());
    let theirs = median(runs.iter().map(|run| run.1).collect());
    println!("{name:<44} {ours:>10.0} {theirs:>10.0} {unit:<8} ratio {ratio:.2} (goal {goal})");
}

fn main() {
    let base = std::env::var_os("LUNETTE_BENCH_DIR").map(PathBuf::from);
    let directory = tempfile::tempdir_in(base.unwrap_or_else(|| env!("CARGO_TARGET_TMPDIR").into())).unwrap();
    let path = directory.path().join("disk");
    let identity = Identity { cluster: CLUSTER, disk: DISK, uuid: DiskUuid(7) };
    format_disk(&path, &identity, &FormatOptions::of(4 << 30)).unwrap();
    let peer = directory.path().join("peer");
    // A file with all of its blocks written: fio overwrites them.
    fio(&peer, &["--rw=write", "--bs=1M", "--ioengine=psync", "--end_fsync=1"], "write", "iops");

    println!("{:<44} {:>10} {:>10}", "", "lunette", "fio");
    let mut bench = Bench::open(&path);
    // The file system gives room to what is written for the first time; what is measured are overwrites, as fio's are.
    bench.writes(256 << 10, 16, 2 * SPAN / (256 << 10));
    let direct = ["--ioengine=io_uring", "--direct=1"];
    let with = |more: &[&'static str]| [direct.as_slice(), more].concat();

    compare(
        "durable 4 KiB random writes, 32 in flight",
        "/s",
        ">= 0.8",
        || bench.writes(BLOCK, 32, 40_000),
        || {
            let options = ["--rw=write", "--bs=4k", "--iodepth=32", "--fdatasync=32", "--number_ios=40000"];
            fio(&peer, &with(&options), "write", "iops")
        },
    );
    compare(
        "durable 4 KiB random write, 1 in flight: time",
        "us",
        "<= 1.3",
        || 1e6 / bench.writes(BLOCK, 1, 3000),
        || {
            let options = ["--rw=randwrite", "--bs=4k", "--iodepth=1", "--fdatasync=1", "--number_ios=3000"];
            1e6 / fio(&peer, &with(&options), "write", "iops")
        },
    );
    compare(
        "durable 256 KiB random writes, 16 in flight",
        "MB/s",
        ">= 0.9",
        || bench.writes(256 << 10, 16, 4000) * 0.262_144,
        || {
            let options =
                ["--rw=randwrite", "--bs=256k", "--iodepth=16", "--fdatasync=16", "--number_ios=4000"];
            fio(&peer, &with(&options), "write", "iops") * 0.262_144
        },
    );
    let cached = 128 << 20;
    bench.reads(cached, 100_000);
    compare(
        "cached 4 KiB random reads, one thread",
        "/s",
        ">= 0.8",
        || bench.reads(cached, 400_000),
        || {
            let options =
                ["--rw=randread", "--bs=4k", "--ioengine=psync", "--number_ios=400000", "--invalidate=0"];
            fio(
                &peer,
                &[options.as_slice(), &["--io_size=1600m", "--filesize=128m"]].concat(),
                "read",
                "iops",
            )
        },
    );
    for (name, len, count, goal) in
        [("4 KiB random writes", BLOCK, 200_000, "<= 3"), ("256 KiB writes", 256 << 10, 8000, "<= 1.1")]
    {
        bench.node.close();
        drop(bench);
        bench = Bench::open(&path);
        bench.seq = 1 << 32 | len;
        let before = written_bytes(directory.path());
        bench.writes(len, 32, count);
        bench.node.close();
        let written = written_bytes(directory.path()) - before;
        println!("write amplification, {name}: {:.2} (goal {goal})", written as f64 / (len * count) as f64);
    }
    drop(bench);
    recovery(directory.path());
}

/// How long a full journal takes: small writes that no checkpoint holds.
fn recovery(directory: &Path) {
    use lunette_storage_node::engine::Operation;
    use lunette_storage_node::store::{FileDisk, Store};
    let path = directory.join("full");
    let identity = Identity { cluster: CLUSTER, disk: DISK, uuid: DiskUuid(8) };
    format_disk(&path, &identity, &FormatOptions::of(4 << 30)).unwrap();
    let (mut store, _) = Store::open(FileDisk::open(&path).unwrap()).unwrap();
    store.prepare(Epoch(1), &Operation::Seal { namespace: NS, generation: Generation(1) }).unwrap();
    let data = Bytes::from(vec![5; BLOCK as usize]);
    let mut seq = 0u64;
    while store.wal_fill() < 0.98 {
        for _ in 0..32 {
            seq += 1;
            let at = seq.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (SPAN / BLOCK) * BLOCK;
            let operation = Operation::Change {
                extent: ExtentId { namespace: NS, index: at / EXTENT },
                version: Version { generation: Generation(1), seq },
                offset: (at % EXTENT) as u32,
                change: Change::Data(data.clone()),
                durability: Durability::Stable,
            };
            store.prepare(Epoch(1), &operation).unwrap();
        }
        store.commit().unwrap();
    }
    drop(store);
    let begin = Instant::now();
    let (_, recovered) = Store::open(FileDisk::open(&path).unwrap()).unwrap();
    println!(
        "recovery of a full journal: {:.2?} for {} writes (goal < 2 s)",
        begin.elapsed(),
        recovered.records
    );
    assert!(recovered.records >= seq);
}

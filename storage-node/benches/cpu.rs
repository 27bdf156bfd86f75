//! What a disk costs in CPU: `cargo bench -p lunette-storage-node --bench cpu`, with `-- memory`, `file` or `node` for a part of it.
//!
//! `memory`, `file`: without the threads around it, the time of this thread on a processor, for each durable 4 KiB write (32 to a
//! commit) and each cached 4 KiB read, on a medium in memory, which costs a copy, and on a file. Instructions:
//! `valgrind --tool=callgrind` with `memory`.
//!
//! `node`: a whole node, asked over TCP with 32 writes in flight: time of its commit thread, and of all its threads.

#![allow(clippy::unwrap_used, reason = "a benchmark stops where it fails")]

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};

use bytes::{Buf, Bytes};
use lunette_proto::ids::*;
use lunette_proto::node::frame::{Decoder, Frame, Hello, Outgoing};
use lunette_proto::node::*;
use lunette_storage_node::engine::Operation;
use lunette_storage_node::store::{Disk, FileDisk, Layout, Prepared, Store};
use lunette_storage_node::{DiskConfig, FormatOptions, Identity, Node, format_disk, serve};
use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;

const IDENTITY: Identity = Identity { cluster: ClusterId(1), disk: DiskId(1), uuid: DiskUuid(7) };
const NS: Namespace = Namespace(1);
const BLOCK: u64 = 4096;
const EXTENT: u64 = 4 << 20;
const DEPTH: u64 = 32;

/// A medium in memory.
struct Memory(RwLock<Vec<u8>>);

impl Disk for Memory {
    fn size_bytes(&self) -> u64 {
        self.0.read().len() as u64
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        out.copy_from_slice(&self.0.read()[offset as usize..][..out.len()]);
        Ok(())
    }
    fn read_cached(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.read(offset, out)
    }
    fn write(&self, offset: u64, parts: &[Bytes]) -> io::Result<()> {
        let mut bytes = self.0.write();
        let mut at = offset as usize;
        for part in parts {
            bytes[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        Ok(())
    }
    fn write_durable(&self, offset: u64, parts: &[Bytes]) -> io::Result<()> {
        self.write(offset, parts)
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn reserve(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
}

/// Nanoseconds that this thread was on a processor.
fn cpu_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

struct Bench<D> {
    store: Store<D>,
    seq: u64,
    random: u64,
    span: u64,
}

impl<D: Disk> Bench<D> {
    fn new(disk: D, span: u64) -> Self {
        let (mut store, _) = Store::open(disk).unwrap();
        store.prepare(Epoch(1), &Operation::Seal { namespace: NS, generation: Generation(1) }).unwrap();
        let mut bench = Self { store, seq: 0, random: 1, span };
        // As a copy, not as a hole.
        let data = Bytes::from((0..256u32 << 10).map(|at| ((at * 7) >> 3) as u8).collect::<Vec<_>>());
        for at in (0..span).step_by(data.len()) {
            bench.prepare(at, &data);
            bench.store.commit().unwrap();
            bench.checkpoint(false);
        }
        bench.checkpoint(true);
        bench
    }

    fn below(&mut self, limit: u64) -> u64 {
        // xorshift64*
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) % limit
    }

    fn prepare(&mut self, at: u64, data: &Bytes) {
        self.seq += 1;
        let operation = Operation::Change {
            extent: ExtentId { namespace: NS, index: at / EXTENT },
            version: Version { generation: Generation(1), seq: self.seq },
            offset: (at % EXTENT) as u32,
            change: Change::Data(data.clone()),
            durability: Durability::Stable,
        };
        let prepared = self.store.prepare(Epoch(1), &operation).unwrap();
        assert_eq!(prepared, Prepared::Answer { reply: Ok(ReplyBody::Done), stable: true });
    }

    fn checkpoint(&mut self, anyhow: bool) {
        if anyhow || self.store.wants_checkpoint() {
            let checkpoint = self.store.begin_checkpoint().unwrap();
            checkpoint.write(self.store.view().disk()).unwrap();
            self.store.finish_checkpoint(checkpoint).unwrap();
        }
    }

    /// Nanoseconds to prepare a write, to commit it, and its share of a checkpoint.
    fn writes(&mut self, count: u64) -> [f64; 3] {
        let data = Bytes::from((0..BLOCK).map(|at| ((at * 7) >> 3) as u8).collect::<Vec<_>>());
        let mut spent = [0; 3];
        for _ in 0..count / DEPTH {
            let times = [0; DEPTH as usize].map(|_| self.below(self.span / BLOCK) * BLOCK);
            let begin = cpu_ns();
            times.iter().for_each(|at| self.prepare(*at, &data));
            let prepared = cpu_ns();
            self.store.commit().unwrap();
            let committed = cpu_ns();
            self.checkpoint(false);
            let moments = [begin, prepared, committed, cpu_ns()];
            (0..3).for_each(|at| spent[at] += moments[at + 1] - moments[at]);
        }
        spent.map(|spent| spent as f64 / count as f64)
    }

    fn reads(&mut self, count: u64) -> f64 {
        let begin = cpu_ns();
        for _ in 0..count {
            let at = self.below(self.span / BLOCK) * BLOCK;
            let extent = ExtentId { namespace: NS, index: at / EXTENT };
            let block = (at % EXTENT / BLOCK) as u32;
            let view = self.store.view();
            let data = view.read(extent, block..block + 1, false);
            // The system may have taken it out of its cache.
            let data = data.or_else(|_| view.read(extent, block..block + 1, true)).unwrap();
            assert_eq!(data.len() as u64, BLOCK);
        }
        (cpu_ns() - begin) as f64 / count as f64
    }

    fn report(mut self, name: &str, writes: u64, reads: u64) {
        self.writes(writes / 4);
        let [prepare, commit, checkpoint] = self.writes(writes);
        println!(
            "{name}: ns for a write: prepare {prepare:.0}, commit {commit:.0}, checkpoint {checkpoint:.0}"
        );
        self.reads(reads / 4);
        println!("{name}: ns for a read: {:.0}", self.reads(reads));
    }
}

/// Time on a processor of the threads of this process, by name.
fn threads_ns() -> Vec<(String, u64)> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let tasks = tasks.filter_map(|task| {
        let text = |file: &str| std::fs::read_to_string(task.as_ref().ok()?.path().join(file)).ok();
        let ns = text("schedstat")?.split(' ').next()?.parse().ok()?;
        Some((text("comm")?.trim().to_owned(), ns))
    });
    tasks.collect()
}

/// Asks a node over TCP, with as many writes in flight as are given.
struct Asker {
    stream: TcpStream,
    decoder: Decoder,
    out: Outgoing,
    seq: u64,
}

impl Asker {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut asker = Self { stream, decoder: Decoder::new(), out: Outgoing::new(), seq: 0 };
        asker.out.hello(&Hello::new(IDENTITY.cluster, "bench")).unwrap();
        asker.send();
        while asker.receive() == 0 {}
        asker.ask(RequestBody::Seal { namespace: NS, generation: Generation(1) });
        asker.send();
        while asker.receive() == 0 {}
        asker
    }

    fn ask(&mut self, body: RequestBody) {
        self.out.request(self.seq, &Request { disk: IDENTITY.disk, epoch: Epoch(1), body }).unwrap();
    }

    fn send(&mut self) {
        while self.out.has_remaining() {
            let written = self.stream.write(self.out.chunk()).unwrap();
            self.out.advance(written);
        }
    }

    /// Frames that came, at least one, but for signs of life.
    fn receive(&mut self) -> u64 {
        let mut buffer = [0; 64 << 10];
        let len = self.stream.read(&mut buffer).unwrap();
        self.decoder.push(&buffer[..len]);
        let mut frames = 0;
        while let Some(frame) = self.decoder.next_frame().unwrap() {
            match frame {
                Frame::Alive => continue,
                Frame::Reply { reply, .. } => drop(reply.unwrap()),
                _ => {}
            }
            frames += 1;
        }
        frames
    }

    fn write(&mut self, at: u64, data: &Bytes) {
        self.seq += 1;
        self.ask(RequestBody::Change {
            extent: ExtentId { namespace: NS, index: at / EXTENT },
            version: Version { generation: Generation(1), seq: self.seq },
            offset: (at % EXTENT) as u32,
            change: Change::Data(data.clone()),
            durability: Durability::Stable,
        });
    }

    fn writes(&mut self, count: u64, data: &Bytes, mut next: impl FnMut() -> u64) {
        let (mut asked, mut answered) = (0, 0);
        while answered < count {
            while asked < count && asked - answered < DEPTH {
                self.write(next(), data);
                asked += 1;
            }
            self.send();
            answered += self.receive();
        }
    }
}

fn node(path: &Path, count: u64) {
    const SPAN: u64 = 256 << 20;
    format_disk(path, &IDENTITY, &FormatOptions::of(2 << 30)).unwrap();
    let node = Node::open(IDENTITY.cluster, [DiskConfig::new(path, None)]).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let stop = CancellationToken::new();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let server = runtime.spawn(serve(listener, node.clone(), "bench".into(), stop.clone()));
    let mut asker = Asker::connect(address);
    let data = Bytes::from((0..EXTENT as u32).map(|at| ((at * 7) >> 3) as u8).collect::<Vec<_>>());
    let mut extents = (0..SPAN).step_by(EXTENT as usize);
    asker.writes(SPAN / EXTENT, &data, || extents.next().unwrap());
    let data = data.slice(..BLOCK as usize);
    let me = threads_ns().remove(0).0;
    let mut random = 1u64;
    for name in ["random", "sequential", "random", "sequential"] {
        let mut at = 0;
        let before = threads_ns();
        asker.writes(count, &data, || {
            random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            at = if name == "random" { (random >> 20) % (SPAN / BLOCK) } else { (at + 1) % (SPAN / BLOCK) };
            at * BLOCK
        });
        let spent = |of: &dyn Fn(&str) -> bool| {
            let sum = |threads: &[(String, u64)]| {
                threads.iter().filter(|(name, _)| of(name)).map(|(_, ns)| ns).sum::<u64>()
            };
            (sum(&threads_ns()) - sum(&before)) as f64 / count as f64
        };
        let (commit, all) = (spent(&|name| name.ends_with("-commit")), spent(&|name| name != me));
        println!("node, {name}: ns for a write: commit thread {commit:.0}, the whole node {all:.0}");
    }
    stop.cancel();
    drop(asker);
    runtime.block_on(server).unwrap();
    node.close();
}

fn main() {
    let arguments = std::env::args().collect::<Vec<_>>();
    let asked = |name: &str| arguments.iter().any(|argument| argument == name);
    let number = |name: &str, or: u64| std::env::var(name).map_or(or, |text| text.parse().unwrap());
    let (writes, reads) = (number("LUNETTE_BENCH_WRITES", 200_000), number("LUNETTE_BENCH_READS", 1_000_000));
    let all = !asked("memory") && !asked("file") && !asked("node");
    let base = std::env::var_os("LUNETTE_BENCH_DIR").map(PathBuf::from);
    let base = base.unwrap_or_else(|| env!("CARGO_TARGET_TMPDIR").into());
    let directory = tempfile::tempdir_in(base).unwrap();
    if all || asked("node") {
        node(&directory.path().join("node"), writes / 2);
    }
    if all || asked("memory") {
        let layout = Layout::new(192 << 20, 32 << 20).unwrap();
        let disk = Memory(RwLock::new(vec![0; layout.total_bytes as usize]));
        Store::format(&disk, &IDENTITY, &layout).unwrap();
        Bench::new(disk, 64 << 20).report("memory", writes, reads);
    }
    if all || asked("file") {
        let path = directory.path().join("disk");
        format_disk(&path, &IDENTITY, &FormatOptions::of(2 << 30)).unwrap();
        Bench::new(FileDisk::open(&path).unwrap(), 512 << 20).report("file", writes / 4, reads);
    }
}

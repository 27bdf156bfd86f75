//! A node on a temporary directory, and a caller that waits for each answer.

#![allow(clippy::unwrap_used, reason = "a test fails where it stops")]
#![allow(dead_code, reason = "each test program uses its part")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use bytes::Bytes;
use lunette_proto::ids::*;
use lunette_proto::node::*;
use lunette_storage_node::store::Layout;
use lunette_storage_node::store::layout::{PAGE_BYTES, WAL_BYTES_MIN};
use lunette_storage_node::{DiskConfig, FormatOptions, Identity, Node, format_disk};
use rustix::fs::SeekFrom;
use rustix::io::Errno;

pub(crate) const CLUSTER: ClusterId = ClusterId(0xc1);
pub(crate) const DISK: DiskId = DiskId(1);
pub(crate) const NS: Namespace = Namespace(0x0100_0000_0000_0001);
/// Bytes of a unit of allocation.
pub(crate) const UNIT: u64 = 64 << 10;
/// Bytes of a disk, unless a test needs another.
pub(crate) const CAPACITY: u64 = 256 << 20;
pub(crate) const IDENTITY: Identity = Identity { cluster: CLUSTER, disk: DISK, uuid: DiskUuid(77) };

/// A disk in a directory, with the smallest journal, so that it goes round.
pub(crate) fn format(path: &Path) {
    format_as(path, CAPACITY);
}

pub(crate) fn format_as(path: &Path, capacity_bytes: u64) {
    let options = FormatOptions { capacity_bytes: Some(capacity_bytes), wal_bytes: Some(WAL_BYTES_MIN) };
    format_disk(path, &IDENTITY, &options).unwrap();
}

/// Where the parts of such a disk lie.
pub(crate) fn layout() -> Layout {
    Layout::new(CAPACITY, WAL_BYTES_MIN).unwrap()
}

pub(crate) fn open(path: &Path) -> Client {
    Client::new(Node::open(CLUSTER, [DiskConfig::new(path, None)]).unwrap())
}

/// The files of a disk in a directory, as one range.
pub(crate) struct Image {
    pub(crate) disk: File,
    wal: File,
}

impl Image {
    /// The file that an offset is in, and where.
    fn locate(&self, offset: u64) -> (&File, u64) {
        let wal = layout().wal_offset;
        if (wal..wal + WAL_BYTES_MIN).contains(&offset) {
            (&self.wal, offset - wal + PAGE_BYTES)
        } else {
            (&self.disk, offset)
        }
    }

    pub(crate) fn write_all_at(&self, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        let (file, offset) = self.locate(offset);
        file.write_all_at(bytes, offset)
    }
}

pub(crate) fn image(path: &Path) -> Image {
    let open = |name| File::options().read(true).write(true).open(path.join(name)).unwrap();
    Image { disk: open("disk"), wal: open("wal") }
}

pub(crate) fn read_at(image: &Image, offset: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    let (file, offset) = image.locate(offset);
    file.read_exact_at(&mut bytes, offset).unwrap();
    bytes
}

/// Copies a disk in a directory, holes as holes. What its process does meanwhile is as if it died during it, unless it
/// begins a new checkpoint: then the copy is made again.
pub(crate) fn copy_disk(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    let source = image(from);
    let superblocks = || read_at(&source, 0, 8192);
    loop {
        let before = superblocks();
        // The journal after the data: what is in place is in it, or in the checkpoint.
        copy_file(&source.disk, &to.join("disk"));
        copy_file(&source.wal, &to.join("wal"));
        if superblocks() == before {
            return;
        }
    }
}

fn copy_file(source: &File, to: &Path) {
    let copy = File::create(to).unwrap();
    let len = source.metadata().unwrap().len();
    copy.set_len(len).unwrap();
    let mut at = 0;
    while at < len {
        let begin = match rustix::fs::seek(source, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => break,
            found => found.unwrap(),
        };
        let end = rustix::fs::seek(source, SeekFrom::Hole(begin)).unwrap();
        at = begin;
        while at < end {
            let mut bytes = vec![0; (end - at).min(1 << 20) as usize];
            source.read_exact_at(&mut bytes, at).unwrap();
            // Room that was only reserved reads as zeros.
            if bytes.iter().any(|byte| *byte != 0) {
                copy.write_all_at(&bytes, at).unwrap();
            }
            at += bytes.len() as u64;
        }
    }
}

/// Where a disk has these bytes, at a multiple of 4096 among its units.
pub(crate) fn find(path: &Path, layout: &Layout, block: &[u8]) -> Vec<u64> {
    let file = image(path);
    let mut found = Vec::new();
    for unit in 0..layout.units {
        let bytes = read_at(&file, layout.unit(unit), UNIT);
        for (number, candidate) in bytes.chunks_exact(block.len()).enumerate() {
            if candidate == block {
                found.push(layout.unit(unit) + number as u64 * block.len() as u64);
            }
        }
    }
    found
}

pub(crate) fn version(generation: u64, seq: u64) -> Version {
    Version { generation: Generation(generation), seq }
}

pub(crate) fn at(index: u64) -> ExtentId {
    ExtentId { namespace: NS, index }
}

/// Blocks of content that names its writer.
pub(crate) fn blocks(stamp: u64, count: usize) -> Bytes {
    (0..count * 4096 / 8)
        .flat_map(|word| (stamp ^ (word as u64 / 512) << 56).to_le_bytes())
        .collect::<Vec<_>>()
        .into()
}

pub(crate) fn zeros(count: usize) -> Bytes {
    vec![0; count * 4096].into()
}

struct Inbox(Sender<(u64, Reply)>);

impl Replies for Inbox {
    fn reply(&self, tag: u64, reply: Reply) {
        let _ = self.0.send((tag, reply));
    }
}

pub(crate) struct Client {
    pub(crate) node: Arc<Node>,
    pub(crate) epoch: Epoch,
    pub(crate) generation: Generation,
    inbox: Arc<Inbox>,
    answers: Receiver<(u64, Reply)>,
    tag: u64,
}

impl Client {
    pub(crate) fn new(node: Arc<Node>) -> Self {
        let (sender, answers) = channel();
        Self {
            node,
            epoch: Epoch(1),
            generation: Generation(1),
            inbox: Arc::new(Inbox(sender)),
            answers,
            tag: 0,
        }
    }

    /// Sends without waiting; the tag of the answer.
    pub(crate) fn send(&mut self, body: RequestBody) -> u64 {
        self.tag += 1;
        self.node.call(Request { disk: DISK, epoch: self.epoch, body }, self.tag, self.inbox.clone());
        self.tag
    }

    pub(crate) fn receive(&mut self) -> (u64, Reply) {
        self.answers.recv_timeout(Duration::from_secs(60)).expect("an answer")
    }

    pub(crate) fn call(&mut self, body: RequestBody) -> Reply {
        let tag = self.send(body);
        let (got, reply) = self.receive();
        assert_eq!(got, tag);
        reply
    }

    pub(crate) fn seal(&mut self, generation: u64) -> Vec<DirtyExtent> {
        loop {
            match self.seal_now(generation) {
                Ok(dirty) => return dirty,
                Err(left) => std::thread::sleep(left),
            }
        }
    }

    /// Seals, which takes effect at once; if the answer has to be waited for, how long.
    pub(crate) fn seal_now(&mut self, generation: u64) -> Result<Vec<DirtyExtent>, Duration> {
        let reply = self.call(RequestBody::Seal { namespace: NS, generation: Generation(generation) });
        self.generation = Generation(generation);
        match reply {
            Ok(ReplyBody::Sealed(sealed)) => Ok(sealed.dirty),
            Err(Failure::Granted { left_ms }) => Err(Duration::from_millis(left_ms.into())),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn change(
        &mut self,
        extent: u64,
        seq: u64,
        block: u32,
        change: Change,
        durability: Durability,
    ) -> Reply {
        let version = Version { generation: self.generation, seq };
        self.call(RequestBody::Change {
            extent: at(extent),
            version,
            offset: block * 4096,
            change,
            durability,
        })
    }

    pub(crate) fn write(&mut self, extent: u64, seq: u64, block: u32, data: Bytes) -> Reply {
        self.change(extent, seq, block, Change::Data(data), Durability::Stable)
    }

    pub(crate) fn discard(&mut self, extent: u64, seq: u64, block: u32, count: u32) -> Reply {
        self.change(extent, seq, block, Change::Zeros { len: count * 4096 }, Durability::Stable)
    }

    pub(crate) fn put(&mut self, extent: u64, version: Version, block: u32, change: Change) -> Reply {
        let generation = self.generation;
        self.call(RequestBody::Put { extent: at(extent), generation, version, offset: block * 4096, change })
    }

    pub(crate) fn read(&mut self, extent: u64, block: u32, count: u32) -> Result<Bytes, Failure> {
        let (generation, len) = (self.generation, count * 4096);
        match self.call(RequestBody::Read { extent: at(extent), generation, offset: block * 4096, len })? {
            ReplyBody::Data(data) => Ok(data),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn versions(&mut self, extent: u64) -> Vec<BlockVersion> {
        match self.call(RequestBody::Versions { extent: at(extent), generation: self.generation }) {
            Ok(ReplyBody::Versions(runs)) => runs,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn watermark(&mut self, seq: u64) -> Reply {
        self.call(RequestBody::Watermark { namespace: NS, generation: self.generation, seq, complete: true })
    }

    pub(crate) fn flush(&mut self) -> Reply {
        self.call(RequestBody::Flush { namespace: NS, generation: self.generation })
    }

    pub(crate) fn delete(&mut self) -> Reply {
        self.call(RequestBody::Delete { namespace: NS, generation: self.generation })
    }

    pub(crate) fn used(&mut self) -> u64 {
        match self.call(RequestBody::Space) {
            Ok(ReplyBody::Space { used_bytes, .. }) => used_bytes,
            other => panic!("{other:?}"),
        }
    }
}

/// A small random generator: the same numbers for the same seed, for ever.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

//! A node on a temporary directory, and a caller that waits for each answer.

#![allow(clippy::unwrap_used, reason = "a test fails where it stops")]
#![allow(dead_code, reason = "each test program uses its part")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use bytes::Bytes;
use lunette_proto::ids::*;
use lunette_proto::node::*;
use lunette_storage_node::{DiskConfig, Identity, Node, format_disk};

pub(crate) const CLUSTER: ClusterId = ClusterId(0xc1);
pub(crate) const DISK: DiskId = DiskId(1);
pub(crate) const NS: Namespace = Namespace(0x0100_0000_0000_0001);
/// The smallest journal, so that tests see many segments.
pub(crate) const SEGMENT_BYTES: u64 = 8 << 20;

pub(crate) fn format(path: &Path) {
    let identity = Identity { segment_bytes: SEGMENT_BYTES, ..Identity::new(CLUSTER, DISK, DiskUuid(77)) };
    format_disk(path, &identity).unwrap();
}

pub(crate) fn open(path: &Path) -> Client {
    Client::new(Node::open(CLUSTER, [DiskConfig::new(path, Some(1 << 30))]).unwrap())
}

pub(crate) fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Every file below a directory.
pub(crate) fn files(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
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
        match self.call(RequestBody::Seal { namespace: NS, generation: Generation(generation) }) {
            Ok(ReplyBody::Sealed(sealed)) => {
                self.generation = Generation(generation);
                sealed.dirty
            }
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
        self.call(RequestBody::Watermark { namespace: NS, generation: self.generation, seq })
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

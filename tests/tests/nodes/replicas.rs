//! The copies of a volume on the disks of a cluster that has ended, compared block by block.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::sleep;
use std::time::{Duration, Instant};

use lunette_proto::ids::{DiskId, Epoch, ExtentId, Generation, Namespace, Version, VolumeId};
use lunette_proto::limits::{BLOCK_BYTES, EXTENT_BLOCKS, EXTENT_BYTES};
use lunette_proto::node::{Failure, Replies, Reply, ReplyBody, Request, RequestBody, Service};
use lunette_storage_node::{DiskConfig, DiskError, Node, inspect_identity};
use parking_lot::Mutex;

/// A disk, opened by the test itself.
struct Copy {
    name: String,
    node: Arc<Node>,
    disk: DiskId,
    generation: Generation,
}

struct Answer(Mutex<Sender<Reply>>);

impl Replies for Answer {
    fn reply(&self, _: u64, reply: Reply) {
        // Nobody waits any more if the test has failed.
        let _ = self.0.lock().send(reply);
    }
}

fn namespace() -> Namespace {
    Namespace::volume(VolumeId(1))
}

impl Copy {
    fn open(path: &Path) -> Self {
        let name = path.display().to_string();
        let identity = inspect_identity(path).expect("the disk is looked at").expect("a disk");
        let config = DiskConfig::new(path, None);
        // A process that was killed may take a moment to let go of it.
        let patience = Instant::now() + Duration::from_secs(10);
        let node = loop {
            match Node::open(identity.cluster, [config.clone()]) {
                Ok(node) => break node,
                Err(DiskError::InUse(_)) if Instant::now() < patience => sleep(Duration::from_millis(20)),
                Err(error) => panic!("{name}: {error}"),
            }
        };
        let mut copy = Self { name, node, disk: identity.disk, generation: Generation(u64::MAX) };
        // Refused by name of the generation that the disk has sealed.
        copy.generation =
            match copy.ask(RequestBody::Versions { extent: extent(0), generation: copy.generation }) {
                Err(Failure::Generation { sealed, .. }) => sealed,
                other => panic!("{} was asked by nobody's generation, and answers {other:?}", copy.name),
            };
        assert_ne!(copy.generation, Generation(0), "{} has never been sealed", copy.name);
        copy
    }

    fn ask(&self, body: RequestBody) -> Reply {
        let (sender, receiver) = channel();
        let request = Request { disk: self.disk, epoch: Epoch(u64::MAX), body };
        self.node.call(request, 0, Arc::new(Answer(Mutex::new(sender))));
        receiver.recv().expect("a disk answers")
    }

    /// The version of each block and whether it is a hole, and what the extent holds.
    fn extent(&self, index: u64) -> (Vec<(Version, bool)>, Vec<u8>) {
        let (extent, generation) = (extent(index), self.generation);
        let runs = match self.ask(RequestBody::Versions { extent, generation }) {
            Ok(ReplyBody::Versions(runs)) => runs,
            other => panic!("{}: versions of extent {index}: {other:?}", self.name),
        };
        let read = RequestBody::Read { extent, generation, offset: 0, len: EXTENT_BYTES };
        let data = match self.ask(read) {
            Ok(ReplyBody::Data(data)) => data.to_vec(),
            other => panic!("{}: a read of extent {index}: {other:?}", self.name),
        };
        let mut versions: Vec<_> =
            runs.iter().flat_map(|run| vec![(run.version, run.hole); run.blocks as usize]).collect();
        versions.resize(EXTENT_BLOCKS as usize, (Version::NONE, true));
        (versions, data)
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        self.node.close();
    }
}

fn extent(index: u64) -> ExtentId {
    ExtentId { namespace: namespace(), index }
}

/// Compares the first `extents` extents of the first volume on the disks of these nodes.
///
/// # Panics
/// If they differ, in what they hold or in its versions.
pub(crate) fn assert_equal(data: &Path, nodes: &[&str], extents: u64) {
    let copies: Vec<Copy> = nodes.iter().map(|node| Copy::open(&data.join(node))).collect();
    let (first, others) = copies.split_first().expect("at least one copy");
    for index in 0..extents {
        let (versions, bytes) = first.extent(index);
        assert!(bytes.iter().any(|byte| *byte != 0), "extent {index} holds nothing: a comparison of nothing");
        for other in others {
            let (versions_there, bytes_there) = other.extent(index);
            let block = BLOCK_BYTES as usize;
            let differs = |number: &usize| {
                let range = number * block..(number + 1) * block;
                versions[*number] != versions_there[*number] || bytes[range.clone()] != bytes_there[range]
            };
            let different: Vec<usize> = (0..EXTENT_BLOCKS as usize).filter(differs).collect();
            if let Some(number) = different.first() {
                panic!(
                    "extent {index}: {} blocks differ between {} and {}, block {number} has {:?} and {:?}: {different:?}",
                    different.len(),
                    first.name,
                    other.name,
                    versions[*number],
                    versions_there[*number]
                );
            }
        }
    }
}

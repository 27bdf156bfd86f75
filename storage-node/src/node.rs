//! The disks of a node, by id.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use lunette_proto::ids::{ClusterId, DiskId, DiskUuid, Namespace};
use lunette_proto::node::{Failure, Replies, Reply, ReplyBody, Request, RequestBody, Service};
use parking_lot::Mutex;

use crate::engine::{
    Completion, DiskConfig, DiskEngine, DiskError, Engine, ExtentsQuery, GrantQuery, Operation, ReadQuery,
    ScrubStatus,
};

/// The disks of a node. Answers requests whether they come over the network or by a call.
#[derive(Debug)]
pub struct Node {
    cluster: ClusterId,
    /// Replaced as a whole when a disk is added, so that a request takes no lock.
    disks: ArcSwap<Disks>,
    /// Held by whoever changes the set of disks; says whether the node is closed.
    closed: Mutex<bool>,
}

type Disks = BTreeMap<DiskId, Arc<DiskEngine>>;

/// What there is to say of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskStatus {
    /// Its id in the cluster.
    pub disk: DiskId,
    /// Its own identity.
    pub uuid: DiskUuid,
    /// Its directory, file or block device.
    pub path: PathBuf,
    /// Bytes that it offers.
    pub capacity_bytes: u64,
    /// Bytes taken by data.
    pub used_bytes: u64,
    /// Why it has failed, if it has.
    pub failure: Option<String>,
    /// How far its scrubber is, and which blocks are damaged.
    pub scrub: ScrubStatus,
}

impl Node {
    /// Opens disks of `cluster`: each is brought to what its journal says before this returns. Blocks.
    ///
    /// # Errors
    /// One of them cannot be opened; none stays open.
    pub fn open(
        cluster: ClusterId,
        configs: impl IntoIterator<Item = DiskConfig>,
    ) -> Result<Arc<Self>, DiskError> {
        raise_open_files();
        let mut disks = BTreeMap::new();
        for config in configs {
            let engine = open(cluster, &config)?;
            let disk = engine.identity().disk;
            if disks.insert(disk, Arc::new(engine)).is_some() {
                return Err(DiskError::Duplicate(disk));
            }
        }
        Ok(Arc::new(Self { cluster, disks: ArcSwap::from_pointee(disks), closed: Mutex::new(false) }))
    }

    /// Opens one more disk and serves it from now on, beside the others. Blocks.
    ///
    /// # Errors
    /// It cannot be opened, or is served already. Nothing has changed then.
    pub fn add(&self, config: &DiskConfig) -> Result<DiskStatus, DiskError> {
        let closed = self.closed.lock();
        let disks = self.disks.load_full();
        if let Some(disk) = config.disk.filter(|disk| disks.contains_key(disk)) {
            return Err(DiskError::Duplicate(disk));
        }
        let engine = Arc::new(open(self.cluster, config)?);
        let disk = engine.identity().disk;
        if disks.contains_key(&disk) {
            return Err(DiskError::Duplicate(disk));
        }
        if *closed {
            engine.close();
        }
        let status = status(&engine);
        let mut disks = Disks::clone(&disks);
        disks.insert(disk, engine);
        self.disks.store(Arc::new(disks));
        Ok(status)
    }

    /// The cluster that it belongs to.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// All disks, by id.
    #[must_use]
    pub fn disks(&self) -> Vec<DiskStatus> {
        self.disks.load().values().map(|engine| status(engine)).collect()
    }

    /// Begins to scrub all of a disk now, at so many bytes per second or as fast as possible; `false` if there is no such
    /// disk, or it has failed.
    #[must_use]
    pub fn scrub(&self, disk: DiskId, rate: Option<u64>) -> bool {
        let disks = self.disks.load();
        let engine = disks.get(&disk).filter(|engine| engine.failure().is_none());
        engine.inspect(|engine| engine.scrub(rate)).is_some()
    }

    /// Finishes what is queued, makes everything durable and stops. Later requests are answered
    /// [`Failure::Disconnected`]. Blocks.
    pub fn close(&self) {
        // Whoever is adding a disk has added it, and who adds one later closes it himself.
        let mut closed = self.closed.lock();
        *closed = true;
        self.disks.load().values().for_each(|engine| engine.close());
    }
}

impl Service for Node {
    fn call(&self, request: Request, tag: u64, to: Arc<dyn Replies>) {
        let done = Completion::new(tag, to);
        let Request { disk, epoch, body } = request;
        let disks = self.disks.load();
        let Some(engine) = disks.get(&disk) else {
            done.complete(Err(Failure::NoSuchDisk));
            return;
        };
        let operation = match body {
            RequestBody::Identify { cluster } => {
                done.complete(if cluster != self.cluster {
                    Err(Failure::NoSuchDisk)
                } else if engine.failure().is_some() {
                    Err(Failure::DiskFailed)
                } else {
                    Ok(ReplyBody::Done)
                });
                return;
            }
            RequestBody::Read { extent, generation, offset, len } => {
                engine.read(epoch, ReadQuery { extent, generation, offset, len, at: None }, done);
                return;
            }
            RequestBody::Versions { extent, generation } => {
                engine.versions(epoch, extent, generation, done);
                return;
            }
            RequestBody::Grant { namespace, generation, number, for_ms } => {
                engine.grant(epoch, GrantQuery { namespace, generation, number, for_ms }, done);
                return;
            }
            RequestBody::Space => {
                let space = engine.space();
                let (capacity_bytes, used_bytes) = (space.capacity_bytes, space.used_bytes);
                done.complete(match engine.failure() {
                    None => Ok(ReplyBody::Space { capacity_bytes, used_bytes }),
                    Some(_) => Err(Failure::DiskFailed),
                });
                return;
            }
            RequestBody::Seal { namespace, generation } => Operation::Seal { namespace, generation },
            RequestBody::Change { extent, version, offset, change, durability } => {
                Operation::Change { extent, version, offset, change, durability }
            }
            RequestBody::Put { extent, generation, version, offset, change } => {
                Operation::Put { extent, generation, version, offset, change }
            }
            RequestBody::Flush { namespace, generation } => Operation::Flush { namespace, generation },
            RequestBody::Extents { namespace, generation, from, newer_than } => {
                engine.extents(epoch, ExtentsQuery { namespace, generation, from, newer_than }, done);
                return;
            }
            RequestBody::Watermark { namespace, generation, seq, complete } => {
                let operation = Operation::Watermark { namespace, generation, seq, complete };
                let naming = Naming { engine: engine.clone(), namespace, done: Mutex::new(Some(done)) };
                engine.submit(epoch, operation, Completion::new(0, Arc::new(naming)));
                return;
            }
            RequestBody::Delete { namespace, generation } => Operation::Delete { namespace, generation },
            RequestBody::Drop { namespace, generation, extents } => {
                Operation::Drop { namespace, generation, extents }
            }
            RequestBody::Prepare { extent, version, prev, offset, change } => {
                Operation::Prepare { extent, version, prev, offset, change }
            }
            RequestBody::Commit { extent, generation, version, offset, len } => {
                Operation::Commit { extent, generation, version, offset, len }
            }
            RequestBody::Rollback { extent, generation, version, offset, len } => {
                Operation::Rollback { extent, generation, version, offset, len }
            }
            RequestBody::Prepared { extent, generation } => {
                engine.prepared(epoch, extent, generation, done);
                return;
            }
        };
        engine.submit(epoch, operation, done);
    }
}

/// Names what is damaged in the answer to a watermark.
struct Naming {
    engine: Arc<DiskEngine>,
    namespace: Namespace,
    done: Mutex<Option<Completion>>,
}

impl Replies for Naming {
    fn reply(&self, _: u64, reply: Reply) {
        let reply = reply.map(|body| match self.engine.damaged(self.namespace) {
            runs if runs.is_empty() => body,
            runs => ReplyBody::Damaged(runs),
        });
        if let Some(done) = self.done.lock().take() {
            done.complete(reply);
        }
    }
}

fn open(cluster: ClusterId, config: &DiskConfig) -> Result<DiskEngine, DiskError> {
    let engine = DiskEngine::open(cluster, config)?;
    let identity = engine.identity();
    tracing::info!(disk = %identity.disk, uuid = %identity.uuid, path = %config.path.display(), "disk opened");
    Ok(engine)
}

fn status(engine: &DiskEngine) -> DiskStatus {
    let identity = engine.identity();
    let space = engine.space();
    DiskStatus {
        disk: identity.disk,
        uuid: identity.uuid,
        path: engine.path().to_owned(),
        capacity_bytes: space.capacity_bytes,
        used_bytes: space.used_bytes,
        failure: engine.failure(),
        scrub: engine.scrub_status(),
    }
}

/// Peers and clients take a socket each: the process asks for all the open files that it may have.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

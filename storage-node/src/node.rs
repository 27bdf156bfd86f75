//! The disks of a node, by id.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use lunette_proto::ids::{ClusterId, DiskId, DiskUuid};
use lunette_proto::node::{Failure, Replies, ReplyBody, Request, RequestBody, Service};

use crate::engine::{Completion, DiskConfig, DiskError, Engine, Operation, PlainEngine, ReadQuery};

/// Extent files that a disk keeps open, if the process may have that many.
const OPEN_FILES_PER_DISK: u64 = 1024;
const OPEN_FILES_PER_DISK_MIN: u64 = 16;

/// The disks of a node. Answers requests whether they come over the network or by a call.
#[derive(Debug)]
pub struct Node {
    cluster: ClusterId,
    disks: BTreeMap<DiskId, PlainEngine>,
}

/// What there is to say of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskStatus {
    /// Its id in the cluster.
    pub disk: DiskId,
    /// Its own identity.
    pub uuid: DiskUuid,
    /// Its directory.
    pub path: PathBuf,
    /// Bytes that it offers.
    pub capacity_bytes: u64,
    /// Bytes taken by data.
    pub used_bytes: u64,
    /// Why it has failed, if it has.
    pub failure: Option<String>,
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
        let configs = configs.into_iter().collect::<Vec<_>>();
        let open_max = open_files_max(configs.len());
        let mut disks = BTreeMap::new();
        for config in configs {
            let engine = PlainEngine::open(cluster, &config, open_max)?;
            let identity = engine.identity();
            tracing::info!(disk = %identity.disk, uuid = %identity.uuid, path = %config.path.display(), "disk opened");
            if disks.insert(identity.disk, engine).is_some() {
                return Err(DiskError::Duplicate(identity.disk));
            }
        }
        Ok(Arc::new(Self { cluster, disks }))
    }

    /// The cluster that it belongs to.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// All disks, by id.
    #[must_use]
    pub fn disks(&self) -> Vec<DiskStatus> {
        let status = |engine: &PlainEngine| {
            let identity = engine.identity();
            let space = engine.space();
            DiskStatus {
                disk: identity.disk,
                uuid: identity.uuid,
                path: engine.path().to_owned(),
                capacity_bytes: space.capacity_bytes,
                used_bytes: space.used_bytes,
                failure: engine.failure(),
            }
        };
        self.disks.values().map(status).collect()
    }

    /// Finishes what is queued, makes everything durable and stops. Later requests are answered
    /// [`Failure::Disconnected`]. Blocks.
    pub fn close(&self) {
        self.disks.values().for_each(Engine::close);
    }
}

impl Service for Node {
    fn call(&self, request: Request, tag: u64, to: Arc<dyn Replies>) {
        let done = Completion::new(tag, to);
        let Request { disk, epoch, body } = request;
        let Some(engine) = self.disks.get(&disk) else {
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
                engine.read(epoch, ReadQuery { extent, generation, offset, len }, done);
                return;
            }
            RequestBody::Versions { extent, generation } => {
                engine.versions(epoch, extent, generation, done);
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
            RequestBody::Watermark { namespace, generation, seq } => {
                Operation::Watermark { namespace, generation, seq }
            }
            RequestBody::Delete { namespace, generation } => Operation::Delete { namespace, generation },
        };
        engine.submit(epoch, operation, done);
    }
}

/// How many extent files each disk may keep open, after the process has asked for all it may have.
fn open_files_max(disks: usize) -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let allowed = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    // Half of it is for sockets.
    let share = allowed.unwrap_or(u64::MAX) / 2 / disks.max(1) as u64;
    let max = share.clamp(OPEN_FILES_PER_DISK_MIN, OPEN_FILES_PER_DISK);
    usize::try_from(max).expect("clamped to a small number")
}

//! The cluster map: what exists, where it lies and who owns it, at one epoch.
//!
//! The control plane commits it; nodes and gateways watch it. It holds configuration only, never
//! data, and it is a plain value: whoever holds one can compute everything about placement from it.

mod identity;
mod joins;
mod pool;
mod target;
mod unit;
mod volume;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use identity::{naa, serial};
pub use joins::{JoinToken, Joins, TokenId};
pub use pool::{Behind, FailureDomain, Move, Moves, Partitions, Pool, Redundancy, Table};
pub use target::{Acl, Chap, ChapAlgorithm, ChapCredential, Lun, Sealed, Target};
pub use unit::{
    NexusId, Registrant, Reservation, ReservationType, Reservations, Sanitize, SanitizeKind, UnitState,
};
pub use volume::{Owner, Stripe, Volume, VolumeState};

use crate::ids::{
    ClusterId, DiskId, DiskUuid, Epoch, GatewayId, NodeId, Partition, PoolId, TargetId, VolumeId,
};

/// Everything that was committed up to `epoch`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterMap {
    /// Index of this map; it only rises.
    pub epoch: Epoch,
    /// Whose map this is.
    pub cluster: ClusterId,
    /// Storage nodes.
    pub nodes: BTreeMap<NodeId, Node>,
    /// Disks of all nodes.
    pub disks: BTreeMap<DiskId, Disk>,
    /// Pools.
    pub pools: BTreeMap<PoolId, Pool>,
    /// Volumes, also those being deleted.
    pub volumes: BTreeMap<VolumeId, Volume>,
    /// Gateways.
    pub gateways: BTreeMap<GatewayId, Gateway>,
    /// iSCSI targets.
    pub targets: BTreeMap<TargetId, Target>,
    /// Disks that were added by command: what their nodes open beside what their configurations name.
    pub added: BTreeMap<DiskId, AddedDisk>,
    /// What logical units keep beside their data; a volume that is not here keeps nothing.
    pub units: BTreeMap<VolumeId, Arc<UnitState>>,
    /// What an initiator must prove for a discovery session; `None` is AuthMethod=None.
    pub discovery_chap: Option<Chap>,
    /// Partitions of which a disk holds a copy that does not count: it is a member by the table and has missed changes or left;
    /// or it is to become one ([`Pool::moves`]) and is not complete. No entry is empty.
    pub behind: BTreeMap<(PoolId, DiskId), Arc<Behind>>,
    /// How machines come to the cluster.
    pub joins: Joins,
}

impl ClusterMap {
    /// The volume of that name, unless it is being deleted.
    #[must_use]
    pub fn volume_by_name(&self, name: &str) -> Option<&Volume> {
        self.volumes.values().find(|volume| volume.name == name && volume.state == VolumeState::Active)
    }

    /// The pool of that name.
    #[must_use]
    pub fn pool_by_name(&self, name: &str) -> Option<&Pool> {
        self.pools.values().find(|pool| pool.name == name)
    }

    /// The target of that IQN; iSCSI names are compared in lower case (RFC 7143 4.2.7.2).
    #[must_use]
    pub fn target_by_iqn(&self, iqn: &str) -> Option<&Target> {
        self.targets.values().find(|target| target.iqn.eq_ignore_ascii_case(iqn))
    }

    /// Disks that were added by command and are not in service yet: their nodes are to format them.
    pub fn wishes(&self) -> impl Iterator<Item = &AddedDisk> {
        self.added.values().filter(|added| !self.disks.contains_key(&added.id))
    }

    /// Whether a disk's copy of a partition counts: it holds every acked write. The disk is one of the partition's row.
    #[must_use]
    pub fn is_in_sync(&self, pool: PoolId, disk: DiskId, partition: Partition) -> bool {
        self.disks.get(&disk).is_some_and(|disk| disk.state != DiskState::Out)
            && !self.behind.get(&(pool, disk)).is_some_and(|behind| behind.partitions.contains(partition))
    }

    /// The node that carries a disk.
    #[must_use]
    pub fn node_of(&self, disk: DiskId) -> Option<&Node> {
        self.nodes.get(&self.disks.get(&disk)?.node)
    }
}

/// A storage node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// Its name, unique.
    pub name: String,
    /// Where it serves the node protocol.
    pub address: SocketAddr,
    /// Failure domains it lies in, from small to large.
    pub host: String,
    /// See `host`.
    pub rack: String,
    /// See `host`.
    pub zone: String,
}

/// A disk of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Its id; the engine on it bears the same.
    pub id: DiskId,
    /// The identity that was written to it when it was formatted.
    pub uuid: DiskUuid,
    /// Where it is.
    pub node: NodeId,
    /// What the node calls it, for people.
    pub label: String,
    /// Bytes it offers to extents.
    pub capacity_bytes: u64,
    /// Share of the load it takes, in any unit; by default its capacity in MiB.
    pub weight: u32,
    /// Whether its copies count.
    pub state: DiskState,
    /// It is to be emptied: its copies are moved to others, and none are put on it.
    pub draining: bool,
    /// The disk that takes its place: once it holds nothing, it is given up.
    pub replaced_by: Option<DiskId>,
}

/// A disk that an administrator has added by command, where its node's configuration says nothing of it.
///
/// Until [`ClusterMap::disks`] has it, it is a wish that its node carries out or refuses, and no table may
/// name it. From then on it says where its node opens the disk at every start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddedDisk {
    /// The id that it has, or will have.
    pub id: DiskId,
    /// The identity that it is formatted with. Drawn with the wish, so that a node that died while it
    /// formatted the disk knows it again.
    pub uuid: DiskUuid,
    /// Whose it is.
    pub node: NodeId,
    /// Where it is, on its node: an absolute path.
    pub path: String,
    /// Bytes that it is to offer; `None`: what there is.
    pub capacity_bytes: Option<u64>,
    /// The disk that is to be emptied and given up once this one is in service.
    pub replaces: Option<DiskId>,
}

/// Whether a disk's copies count as members of the in-sync sets it belongs to.
///
/// ```text
///     InSync --it does not answer--> Out --it is back--> CatchingUp --all partitions--> InSync
///                                     ^--it does not answer--'
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskState {
    /// It holds every acked write of the partitions that it is a member of; copies that are on their way to it do not count.
    InSync,
    /// Its copies of some partitions ([`ClusterMap::behind`]) are being brought up to date: these take new writes,
    /// uncounted, and serve no reads. The others count.
    CatchingUp,
    /// It has left: nothing is sent to it, and all its copies are behind.
    Out,
}

/// A process that exports volumes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gateway {
    /// Its id.
    pub id: GatewayId,
    /// Its name, unique.
    pub name: String,
    /// Its target portal group tag, stable for ever; 1 for the first (RFC 7143 4.2.7.3, 13.9).
    pub portal_group_tag: u16,
    /// Where it listens.
    pub portals: Vec<SocketAddr>,
}

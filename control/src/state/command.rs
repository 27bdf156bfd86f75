//! What the log replicates. Variants and fields are stored by position: append, never reorder.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use lunette_proto::ids::{
    ClusterId, DiskId, DiskUuid, Epoch, GatewayId, Generation, NodeId, Partition, PoolId, TargetId, VolumeId,
};
use lunette_proto::map::{
    Acl, Chap, DiskState, FailureDomain, JoinToken, Move, Partitions, Redundancy, Sealed, Stripe, Table,
    TokenId, UnitState,
};
use serde::{Deserialize, Serialize};

/// A change to the cluster. Everything that chance or a clock decides (ids apart, which the state
/// gives out) is in the command: the leader draws it before it proposes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Gives the cluster its id; the first command of all.
    Found {
        /// The id.
        cluster: ClusterId,
    },
    /// A node announces itself; known by its name, its disks by their uuids.
    RegisterNode {
        /// Its name.
        name: String,
        /// Where it serves the node protocol.
        address: SocketAddr,
        /// Its failure domains; empty ones get the node's name (host) or `default`.
        host: String,
        /// See `host`.
        rack: String,
        /// See `host`.
        zone: String,
        /// Its disks.
        disks: Vec<NewDisk>,
    },
    /// A gateway announces itself; known by its name.
    RegisterGateway {
        /// Its name.
        name: String,
        /// Where it listens.
        portals: Vec<SocketAddr>,
    },
    /// Makes a pool with a table that the leader has computed.
    CreatePool {
        /// Its name.
        name: String,
        /// How data survives.
        redundancy: Redundancy,
        /// What two copies never share.
        failure_domain: FailureDomain,
        /// Partition -> disks.
        table: Arc<Table>,
    },
    /// Deletes a pool without volumes.
    DeletePool {
        /// Its name.
        name: String,
    },
    /// Makes a volume.
    CreateVolume {
        /// Its name.
        name: String,
        /// Its pool's name.
        pool: String,
        /// What it shows.
        size_bytes: u64,
        /// Striping.
        stripe: Option<Stripe>,
        /// 512 or 4096.
        block_bytes: u32,
        /// Write cache.
        write_back: bool,
        /// Also make its target, with the volume at LUN 0.
        export: bool,
    },
    /// Grows a volume.
    ResizeVolume {
        /// Its name.
        name: String,
        /// Its new size.
        size_bytes: u64,
    },
    /// Deletes a volume.
    DeleteVolume {
        /// Its name.
        name: String,
        /// Also unmap it, and delete the target that its export made.
        force: bool,
    },
    /// The owner has given a deleted volume's space back.
    VolumePurged {
        /// Which.
        volume: VolumeId,
        /// The owner's generation.
        generation: Generation,
    },
    /// Volumes get owners, each under its next generation. One that has another generation than was seen, or is gone, is
    /// left out: somebody else was faster, or it was decided twice.
    AssignOwners {
        /// Whose, and who.
        owners: Arc<Vec<NewOwner>>,
    },
    /// Makes a target.
    CreateTarget {
        /// Its iSCSI name; `None`: `target-N` under Lunette's prefix.
        iqn: Option<String>,
    },
    /// Deletes a target.
    DeleteTarget {
        /// Its iSCSI name.
        iqn: String,
    },
    /// Shows a volume through a target.
    MapLun {
        /// The target's iSCSI name.
        iqn: String,
        /// The volume's name.
        volume: String,
        /// LUN; `None`: the lowest free one.
        lun: Option<u32>,
        /// Write protected.
        read_only: bool,
    },
    /// Takes a volume away from a target.
    UnmapLun {
        /// The target's iSCSI name.
        iqn: String,
        /// The volume's name.
        volume: String,
    },
    /// Admits initiators.
    Allow {
        /// The target's iSCSI name.
        iqn: String,
        /// Whom.
        acl: Acl,
    },
    /// Takes an admission away.
    Deny {
        /// The target's iSCSI name.
        iqn: String,
        /// The entry.
        acl: Acl,
    },
    /// Demands CHAP; the secrets are sealed.
    SetChap {
        /// The target's iSCSI name.
        iqn: String,
        /// Names, sealed secrets, algorithms.
        chap: Chap,
    },
    /// Demands CHAP no more.
    ClearChap {
        /// The target's iSCSI name.
        iqn: String,
    },
    /// Wishes for one more disk; its node is to make it.
    AddDisk {
        /// The node's name.
        node: String,
        /// Where, on the node.
        path: String,
        /// Bytes that it is to offer; `None`: what there is.
        capacity_bytes: Option<u64>,
        /// The identity to format it with.
        uuid: DiskUuid,
        /// The disk whose place it is to take.
        replaces: Option<DiskId>,
    },
    /// A node serves a disk that was wished for.
    DiskAdded {
        /// Who says so.
        node: NodeId,
        /// Which.
        disk: DiskId,
        /// Bytes that it offers.
        capacity_bytes: u64,
    },
    /// A node cannot make a disk that was wished for.
    RefuseDisk {
        /// Who says so.
        node: NodeId,
        /// Which.
        disk: DiskId,
    },
    /// Replaces what the logical unit of a volume keeps.
    SetUnitState {
        /// Whose.
        volume: VolumeId,
        /// What it keeps from now on, as made from the state of the revision before.
        state: Arc<UnitState>,
    },
    /// Turns the write cache of a volume on or off.
    SetWriteBack {
        /// Whose.
        volume: VolumeId,
        /// The generation whose owner has seen to it that this may be said; `None`: no owner has to.
        generation: Option<Generation>,
        /// Whether it is on.
        write_back: bool,
    },
    /// Sends the initiators of a target away, or lets them in again.
    SetDraining {
        /// The target's iSCSI name.
        iqn: String,
        /// Which of both.
        draining: bool,
    },
    /// Demands CHAP of discovery sessions, or demands it no more; the secrets are sealed.
    SetDiscoveryChap {
        /// Names, sealed secrets, algorithms.
        chap: Option<Chap>,
    },
    /// A disk does not answer and leaves the in-sync sets: writes wait for it no longer.
    Evict {
        /// Which.
        disk: DiskId,
        /// The state that whoever decides has seen; the command is refused if it is another meanwhile.
        seen: DiskState,
    },
    /// A disk that left is back and is to be brought up to date.
    Return {
        /// Which.
        disk: DiskId,
    },
    /// Copies of a disk are equal to the others' again, and count.
    CaughtUp {
        /// Whose copies.
        disk: DiskId,
        /// Of which pool.
        pool: PoolId,
        /// Of which partitions.
        partitions: Arc<Partitions>,
        /// The oldest map under which an owner has said so.
        epoch: Epoch,
        /// The owners that have said so, by their generations.
        owners: BTreeMap<VolumeId, Generation>,
    },
    /// Copies of a pool are to be made on other disks.
    AddMoves {
        /// Whose.
        pool: PoolId,
        /// Of which partitions, from where to where.
        moves: Arc<Vec<(Partition, Move)>>,
    },
    /// Copies that are on their way are not to be made after all.
    CancelMoves {
        /// Whose.
        pool: PoolId,
        /// Of which partitions, and where to.
        moves: Vec<(Partition, DiskId)>,
    },
    /// Disks are to be emptied, or not any more.
    DrainDisks {
        /// Which.
        disks: Vec<DiskId>,
        /// Which of both.
        draining: bool,
    },
    /// Gives a disk up that holds nothing.
    RemoveDisk {
        /// Which.
        disk: DiskId,
    },
    /// Gives a node up whose disks hold nothing.
    RemoveNode {
        /// Its name.
        name: String,
    },
    /// Gives out the id of one more member of the control plane.
    NewMember,
    /// Makes a token that admits a machine.
    AddToken {
        /// Its hash.
        id: TokenId,
        /// What it admits to, and until when.
        token: JoinToken,
        /// The leader's clock, milliseconds since 1970.
        now_unix_ms: u64,
    },
    /// A machine comes with a token.
    UseToken {
        /// Its hash.
        id: TokenId,
        /// The leader's clock, milliseconds since 1970.
        now_unix_ms: u64,
    },
}

/// A gateway that is to own a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewOwner {
    /// Which volume.
    pub volume: VolumeId,
    /// The generation that whoever decides has seen; the next one becomes the owner's.
    pub seen: Generation,
    /// Who.
    pub gateway: GatewayId,
}

/// A disk as its node announces it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewDisk {
    /// The identity that was written to it when it was formatted.
    pub uuid: DiskUuid,
    /// What the node calls it.
    pub label: String,
    /// Bytes it offers to extents.
    pub capacity_bytes: u64,
    /// Share of the load; 0: its capacity in MiB.
    pub weight: u32,
}

/// What a command's caller learns.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// It is done.
    #[default]
    Done,
    /// A node and its disks, in the order of the request.
    Node {
        /// The node.
        node: NodeId,
        /// Its disks.
        disks: Vec<DiskId>,
    },
    /// A gateway and its portal group tag.
    Gateway {
        /// The gateway.
        gateway: GatewayId,
        /// Its tag.
        portal_group_tag: u16,
    },
    /// A pool.
    Pool(PoolId),
    /// A volume.
    Volume(VolumeId),
    /// A target.
    Target(TargetId),
    /// A disk.
    Disk(DiskId),
    /// A member of the control plane.
    Member(u64),
    /// The cluster's key, sealed under the token that was used.
    Key(Sealed),
}

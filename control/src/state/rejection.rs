//! Why a command is refused: values, one clear sentence, and what kind of error it is. The gRPC
//! server turns a rejection into a status, and nothing else decides codes or reasons.

use std::fmt;

use lunette_proto::ids::{DiskId, Epoch, GatewayId, Generation, Partition, PoolId, VolumeId};
use lunette_proto::limits::{
    LUNS_PER_TARGET_MAX, NAME_CHARS_MAX, PARTITIONS_MAX, REPLICAS_MAX, STRIPE_UNIT_BYTES_MAX,
    STRIPE_UNIT_BYTES_MIN, STRIPE_WIDTH_MAX, VOLUME_BYTES_MAX,
};
use lunette_proto::map::DiskState;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::limits::DISK_BYTES_MIN;
use super::moves::MoveProblem;
use super::units::UnitProblem;

/// What a name is the name of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NameKind {
    /// A storage node.
    Node,
    /// A gateway.
    Gateway,
    /// A pool.
    Pool,
    /// A volume.
    Volume,
    /// A target.
    Target,
}

/// What to ask for all names of a kind.
fn list_command(kind: NameKind) -> &'static str {
    match kind {
        NameKind::Node => "node list",
        NameKind::Gateway => "status",
        NameKind::Pool => "pool list",
        NameKind::Volume => "volume list",
        NameKind::Target => "target list",
    }
}

impl fmt::Display for NameKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Node => "node",
            Self::Gateway => "gateway",
            Self::Pool => "pool",
            Self::Volume => "volume",
            Self::Target => "target",
        })
    }
}

/// What is wrong with a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Error)]
pub enum NameProblem {
    /// Nothing there.
    #[error("it is empty")]
    Empty,
    /// Too many characters.
    #[error("it has {chars} characters, and {NAME_CHARS_MAX} is the most")]
    TooLong {
        /// How many.
        chars: usize,
    },
    /// A wrong first character.
    #[error("it starts with {0:?}; start with a letter or a digit")]
    Start(char),
    /// A wrong character.
    #[error("{0:?} cannot be part of it; use lower-case letters, digits, '-' and '.'")]
    Character(char),
}

/// The kind of error, as gRPC has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Category {
    /// A value is wrong in itself.
    Invalid,
    /// There is no such thing.
    NotFound,
    /// The name is taken.
    Exists,
    /// Right in itself, but not in this state of the cluster.
    Precondition,
    /// A limit is reached.
    Exhausted,
    /// Somebody else was faster: look again, and decide anew.
    Conflict,
}

/// Why a command is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Error)]
pub enum Rejection {
    /// A name that cannot be part of an IQN.
    #[error("{name:?} is no {kind} name: {problem}")]
    Name {
        /// Of what.
        kind: NameKind,
        /// The name.
        name: String,
        /// What is wrong.
        problem: NameProblem,
    },
    /// No iSCSI name.
    #[error("{iqn:?} is no iSCSI name: {problem}")]
    Iqn {
        /// What was given.
        iqn: String,
        /// What is wrong and what to do.
        problem: IqnProblem,
    },
    /// A label or failure domain with too many or unprintable characters.
    #[error("{field} {text:?} must be at most 255 printable characters")]
    Label {
        /// Which field.
        field: String,
        /// What was given.
        text: String,
    },
    /// A size of nothing.
    #[error("a size of 0 bytes; give at least 4096")]
    SizeZero,
    /// Not whole blocks.
    #[error("a size of {bytes} bytes is no multiple of 4096; the nearest is {nearest}")]
    SizeUnaligned {
        /// What was given.
        bytes: u64,
        /// The nearest valid size.
        nearest: u64,
    },
    /// Past the limit.
    #[error("a size of {bytes} bytes is more than a volume can have, {VOLUME_BYTES_MAX} (1 PiB)")]
    SizeTooLarge {
        /// What was given.
        bytes: u64,
    },
    /// Smaller than it is.
    #[error("volume {name:?} has {now} bytes; {bytes} would cut off data, and volumes only grow")]
    Shrink {
        /// Which.
        name: String,
        /// Its size.
        now: u64,
        /// What was given.
        bytes: u64,
    },
    /// A stripe unit without a width, or the reverse.
    #[error("striping needs both a stripe unit and a stripe width, or neither")]
    StripeHalf,
    /// A stripe unit out of range.
    #[error(
        "a stripe unit of {bytes} bytes; use a power of two from {STRIPE_UNIT_BYTES_MIN} to {STRIPE_UNIT_BYTES_MAX}"
    )]
    StripeUnit {
        /// What was given.
        bytes: u32,
    },
    /// A stripe width out of range.
    #[error("a stripe width of {width}; use 2 to {STRIPE_WIDTH_MAX}")]
    StripeWidth {
        /// What was given.
        width: u32,
    },
    /// A block size that no initiator knows.
    #[error("a block size of {bytes} bytes; use 512 or 4096")]
    BlockBytes {
        /// What was given.
        bytes: u32,
    },
    /// Copies out of range.
    #[error("{replicas} replicas; use 1 to {REPLICAS_MAX}")]
    Replicas {
        /// What was given.
        replicas: u32,
    },
    /// A smallest set out of range.
    #[error("a min_size of {min_size} with {replicas} replicas; use 1 to {replicas}")]
    MinSize {
        /// What was given.
        min_size: u32,
        /// Of how many.
        replicas: u8,
    },
    /// Partitions out of range.
    #[error("{partitions} partitions; use 1 to {PARTITIONS_MAX}")]
    Partitions {
        /// What was given.
        partitions: u32,
    },
    /// A failure domain that does not exist.
    #[error("failure domain {text:?}; use disk, host, rack or zone")]
    FailureDomain {
        /// What was given.
        text: String,
    },
    /// A table that does not fit its pool or the disks there are now.
    #[error("the table of pool {pool:?} does not fit the disks of the cluster any more; try again")]
    Table {
        /// Which.
        pool: String,
    },
    /// The failure-domain rule cannot be kept.
    #[error("{replicas} copies in different {domain} domains cannot be placed: {problem}")]
    Placement {
        /// How many copies.
        replicas: u8,
        /// Which domain.
        domain: String,
        /// What placement says.
        problem: String,
    },
    /// A node moves between failure domains and two copies would share one.
    #[error("pool {pool:?} would have two copies in one failure domain; keep the node's host, rack and zone")]
    DomainRule {
        /// Which.
        pool: String,
    },
    /// An address that nobody can connect to.
    #[error("{field} {text:?} cannot be connected to; use ADDRESS:PORT with a port other than 0")]
    Address {
        /// Which field.
        field: String,
        /// What was given.
        text: String,
    },
    /// No uuid, or one twice.
    #[error("disk uuid {uuid:?} is not usable; each disk needs its own, 32 hexadecimal digits, not 0")]
    DiskUuid {
        /// What was given.
        uuid: String,
    },
    /// Another disk, or a blank one, where the map has one with data.
    #[error(
        "{path:?} is not {disk} of node {node:?} any more; put that disk back, or name a new one by another path"
    )]
    DiskSwapped {
        /// Which node.
        node: String,
        /// Which disk was there.
        disk: DiskId,
        /// Where.
        path: String,
    },
    /// No such disk.
    #[error("there is no {0}")]
    NoDisk(DiskId),
    /// A disk that has this state cannot leave, return or catch up.
    #[error("{disk} is {}", state_text(*state))]
    DiskState {
        /// Which.
        disk: DiskId,
        /// What it is.
        state: DiskState,
    },
    /// A disk without which too few copies count.
    #[error(
        "without {disk}, {short} of {partitions} partitions of pool {pool:?} would have fewer than min_size {min_size} copies in sync"
    )]
    BelowMinSize {
        /// Which.
        disk: DiskId,
        /// Whose partitions.
        pool: String,
        /// How many of them.
        short: usize,
        /// Of how many.
        partitions: u32,
        /// What the pool demands.
        min_size: u8,
    },
    /// An owner that has said nothing of a copy under its present generation.
    #[error("the owner of {volume} under {generation} has not said that the copies of {disk} are equal")]
    NotReady {
        /// Whose copies.
        disk: DiskId,
        /// Which volume.
        volume: VolumeId,
        /// Its present generation.
        generation: Generation,
    },
    /// What was said of a copy before the disk left or returned last.
    #[error(
        "{disk} left or returned at epoch {since}; what was said under epoch {epoch} is about an earlier time"
    )]
    SaidBefore {
        /// Whose copies.
        disk: DiskId,
        /// When it left or returned.
        since: Epoch,
        /// When something was said.
        epoch: Epoch,
    },
    /// The cluster has another id.
    #[error("this is another cluster")]
    OtherCluster,
    /// The name is not there.
    #[error("there is no {kind} {name:?}; `lunette {}` shows those there are", list_command(*kind))]
    NotFound {
        /// What.
        kind: NameKind,
        /// The name.
        name: String,
    },
    /// The id is not there.
    #[error("there is no {0}")]
    NoVolume(VolumeId),
    /// The id is not there.
    #[error("there is no {0}; register first")]
    NoGateway(GatewayId),
    /// The name is taken.
    #[error("{kind} {name:?} exists already; choose another name")]
    Exists {
        /// What.
        kind: NameKind,
        /// The name.
        name: String,
    },
    /// A pool with volumes.
    #[error("pool {name:?} has {volumes} volumes, deleted ones that are still being purged included")]
    PoolInUse {
        /// Which.
        name: String,
        /// How many.
        volumes: usize,
    },
    /// A volume that a target shows.
    #[error("volume {name:?} is mapped by {target}; unmap it first, or delete it with --force")]
    VolumeMapped {
        /// Which.
        name: String,
        /// By whom.
        target: String,
    },
    /// A volume that is not being deleted, or was taken over.
    #[error("{volume} is not {generation}'s to purge")]
    NotPurgeable {
        /// Which.
        volume: VolumeId,
        /// Who asked.
        generation: Generation,
    },
    /// A LUN out of range.
    #[error("LUN {lun}; use 0 to {}", LUNS_PER_TARGET_MAX - 1)]
    LunRange {
        /// What was given.
        lun: u32,
    },
    /// A LUN in use.
    #[error("LUN {lun} of {iqn} shows another volume; choose another or leave it out")]
    LunTaken {
        /// Whose.
        iqn: String,
        /// Which.
        lun: u16,
    },
    /// A volume twice in one target.
    #[error("{iqn} shows volume {volume:?} already, as LUN {lun}")]
    MappedAlready {
        /// Which target.
        iqn: String,
        /// Which volume.
        volume: String,
        /// As what.
        lun: u16,
    },
    /// A volume that a target does not show.
    #[error("{iqn} does not show volume {volume:?}")]
    NotMapped {
        /// Which target.
        iqn: String,
        /// Which volume.
        volume: String,
    },
    /// No pattern of initiator names.
    #[error("{text:?} is no pattern of initiator names; use letters, digits, '-', '.', ':', '*' and '?'")]
    AclPattern {
        /// What was given.
        text: String,
    },
    /// No range of addresses.
    #[error("{text:?} is no range of addresses; use for instance 10.0.0.0/8 or fd00::/8")]
    AclFrom {
        /// What was given.
        text: String,
    },
    /// No such access entry.
    #[error("{iqn} has no such access entry")]
    NoAcl {
        /// Whose.
        iqn: String,
    },
    /// A CHAP name that cannot be one.
    #[error("a CHAP user name needs 1 to 255 printable characters without spaces around them")]
    ChapUser {
        /// Which field.
        field: String,
    },
    /// A CHAP secret that is too short, too long or not printable.
    #[error("a CHAP secret needs 12 to 255 printable ASCII characters")]
    ChapSecret {
        /// Which field.
        field: String,
    },
    /// One half of mutual CHAP.
    #[error("mutual CHAP needs both a user and a secret")]
    ChapMutualHalf,
    /// Equal secrets both ways (RFC 7143 9.2.1).
    #[error("the two CHAP secrets must differ")]
    ChapSame,
    /// No CHAP algorithm.
    #[error("{text:?} is no CHAP algorithm; use sha3-256, sha256, sha1 or md5, each at most once")]
    ChapAlgorithm {
        /// What was given.
        text: String,
    },
    /// Too many of something.
    #[error("there can be no more than {max} {what}")]
    TooMany {
        /// Of what.
        what: String,
        /// How many can be.
        max: usize,
    },
    /// A counter has reached its end.
    #[error("the cluster has no ids left to give out")]
    IdsExhausted,
    /// A path that is none of a disk.
    #[error(
        "{path:?} is no path of a disk; give an absolute path on the node, of at most 255 printable characters and without '.' and '..'"
    )]
    DiskPath {
        /// What was given.
        path: String,
    },
    /// A path that a disk of the node has.
    #[error("node {node:?} has {disk} at {taken:?} already; give another path")]
    DiskPathTaken {
        /// Which node.
        node: String,
        /// Which disk.
        disk: DiskId,
        /// Where it is.
        taken: String,
    },
    /// A disk that could hold nothing.
    #[error("a capacity of {bytes} bytes is too small for a disk; give at least {DISK_BYTES_MIN} (4 MiB)")]
    DiskCapacity {
        /// What was given.
        bytes: u64,
    },
    /// A disk that serves cannot be refused.
    #[error("{0} is in service")]
    DiskInService(DiskId),
    /// A state of a logical unit that was made from another than the present one.
    #[error("the logical unit of {volume} is at revision {present}; revision {given} does not continue it")]
    UnitRevision {
        /// Whose.
        volume: VolumeId,
        /// What is kept.
        present: u64,
        /// What was to replace it.
        given: u64,
    },
    /// A state of a logical unit that cannot be one.
    #[error("no state of a logical unit: {0}")]
    UnitState(UnitProblem),
    /// A write cache whose content may be in memory alone.
    #[error("the write cache of volume {name:?} has to be flushed by the volume's present owner first")]
    NotFlushed {
        /// Whose.
        name: String,
    },
    /// The id is not there.
    #[error("there is no {0}")]
    NoPool(PoolId),
    /// A copy that cannot be moved so.
    #[error("the copy of {partition} cannot be moved from {from} to {to}: {problem}")]
    Move {
        /// Which.
        partition: Partition,
        /// From where.
        from: DiskId,
        /// Where to.
        to: DiskId,
        /// Why not.
        problem: MoveProblem,
    },
    /// A disk that cannot be given up, because copies are on it or on their way.
    #[error(
        "{disk} has copies of {rows} of {partitions} partitions of pool {pool:?}, and {moves} moves from or to it are under way; drain it, and wait until it has none"
    )]
    DiskHolds {
        /// Which.
        disk: DiskId,
        /// A pool that has copies on it.
        pool: String,
        /// How many.
        rows: usize,
        /// Of how many partitions.
        partitions: u32,
        /// Moves that name it.
        moves: usize,
    },
    /// A disk that is in service cannot be given up.
    #[error("{0} is in service; drain it first, so that it gets no copies")]
    NotDrained(DiskId),
    /// A disk whose place is taken once.
    #[error("{disk} is being replaced by {by} already; `lunette disk drain {} --off` calls that off", .disk.0)]
    Replaced {
        /// Which.
        disk: DiskId,
        /// By which other.
        by: DiskId,
    },
    /// A join token that was never made here, or long ago.
    #[error(
        "this cluster knows no such join token: it is another cluster's, or has expired long ago; make a new one with `lunette cluster join-token`"
    )]
    NoToken,
    /// A join token that has admitted a machine.
    #[error(
        "this join token has been used already, and one admits one machine; make a new one with `lunette cluster join-token`"
    )]
    TokenUsed,
    /// A join token that came too late.
    #[error("this join token has expired {seconds} s ago; make a new one with `lunette cluster join-token`")]
    TokenExpired {
        /// How long ago.
        seconds: u64,
    },
}

fn state_text(state: DiskState) -> &'static str {
    match state {
        DiskState::InSync => "in sync",
        DiskState::CatchingUp => "catching up",
        DiskState::Out => "out",
    }
}

/// What is wrong with an iSCSI name (RFC 7143 4.2.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Error)]
pub enum IqnProblem {
    /// Longer than 223 bytes.
    #[error("it has more than 223 bytes")]
    TooLong,
    /// A wrong character.
    #[error("{0:?} cannot be part of it; use letters, digits, '-', '.' and ':'")]
    Character(char),
    /// No known type.
    #[error("it starts with none of iqn., eui. and naa.")]
    Type,
    /// No date.
    #[error("iqn. is followed by a year and a month, as in iqn.2026-11.com.example:disk")]
    Date,
    /// No domain.
    #[error("the date is followed by a domain name in reverse, as in iqn.2026-11.com.example:disk")]
    Domain,
    /// No hexadecimal digits.
    #[error("eui. is followed by 16 hexadecimal digits")]
    Eui,
    /// No hexadecimal digits.
    #[error("naa. is followed by 16 or 32 hexadecimal digits")]
    Naa,
}

impl Rejection {
    /// The kind, the machine-readable reason and, for a wrong value, the request's field.
    #[must_use]
    pub fn classify(&self) -> (Category, &'static str, Option<&str>) {
        use Category::{Conflict, Exhausted, Exists, Invalid, NotFound, Precondition};
        match self {
            Self::Name { .. } => (Invalid, "NAME_INVALID", Some("name")),
            Self::Iqn { .. } => (Invalid, "IQN_INVALID", Some("iqn")),
            Self::Label { field, .. } => (Invalid, "LABEL_INVALID", Some(field)),
            Self::SizeZero => (Invalid, "SIZE_ZERO", Some("size_bytes")),
            Self::SizeUnaligned { .. } => (Invalid, "SIZE_UNALIGNED", Some("size_bytes")),
            Self::SizeTooLarge { .. } => (Invalid, "SIZE_TOO_LARGE", Some("size_bytes")),
            Self::Shrink { .. } => (Precondition, "SHRINK", Some("size_bytes")),
            Self::StripeHalf => (Invalid, "STRIPE_HALF", Some("stripe_width")),
            Self::StripeUnit { .. } => (Invalid, "STRIPE_UNIT_INVALID", Some("stripe_unit_bytes")),
            Self::StripeWidth { .. } => (Invalid, "STRIPE_WIDTH_INVALID", Some("stripe_width")),
            Self::BlockBytes { .. } => (Invalid, "BLOCK_BYTES_INVALID", Some("block_bytes")),
            Self::Replicas { .. } => (Invalid, "REPLICAS_INVALID", Some("replicas")),
            Self::MinSize { .. } => (Invalid, "MIN_SIZE_INVALID", Some("min_size")),
            Self::Partitions { .. } => (Invalid, "PARTITIONS_INVALID", Some("partitions")),
            Self::FailureDomain { .. } => (Invalid, "FAILURE_DOMAIN_INVALID", Some("failure_domain")),
            Self::Table { .. } => (Precondition, "TABLE_STALE", None),
            Self::Placement { .. } => (Precondition, "PLACEMENT_IMPOSSIBLE", None),
            Self::DomainRule { .. } => (Precondition, "FAILURE_DOMAIN_RULE", None),
            Self::Address { field, .. } => (Invalid, "ADDRESS_INVALID", Some(field)),
            Self::DiskUuid { .. } => (Invalid, "DISK_UUID_INVALID", Some("disks")),
            Self::DiskSwapped { .. } => (Precondition, "DISK_SWAPPED", None),
            Self::NoDisk(_) => (NotFound, "DISK_NOT_FOUND", None),
            Self::DiskState { .. } => (Precondition, "DISK_STATE", None),
            Self::NotReady { .. } => (Conflict, "NOT_READY", None),
            Self::SaidBefore { .. } => (Conflict, "SAID_BEFORE", None),
            Self::BelowMinSize { .. } => (Precondition, "BELOW_MIN_SIZE", None),
            Self::OtherCluster => (Precondition, "OTHER_CLUSTER", None),
            Self::NotFound { kind, .. } => match kind {
                NameKind::Node => (NotFound, "NODE_NOT_FOUND", None),
                NameKind::Gateway => (NotFound, "GATEWAY_NOT_FOUND", None),
                NameKind::Pool => (NotFound, "POOL_NOT_FOUND", None),
                NameKind::Volume => (NotFound, "VOLUME_NOT_FOUND", None),
                NameKind::Target => (NotFound, "TARGET_NOT_FOUND", None),
            },
            Self::NoVolume(_) => (NotFound, "VOLUME_NOT_FOUND", None),
            Self::NoGateway(_) => (NotFound, "GATEWAY_NOT_FOUND", None),
            Self::Exists { kind, .. } => match kind {
                NameKind::Node => (Exists, "NODE_EXISTS", None),
                NameKind::Gateway => (Exists, "GATEWAY_EXISTS", None),
                NameKind::Pool => (Exists, "POOL_EXISTS", None),
                NameKind::Volume => (Exists, "VOLUME_EXISTS", None),
                NameKind::Target => (Exists, "TARGET_EXISTS", None),
            },
            Self::PoolInUse { .. } => (Precondition, "POOL_IN_USE", None),
            Self::VolumeMapped { .. } => (Precondition, "VOLUME_MAPPED", None),
            Self::NotPurgeable { .. } => (Precondition, "NOT_PURGEABLE", None),
            Self::LunRange { .. } => (Invalid, "LUN_INVALID", Some("lun")),
            Self::LunTaken { .. } => (Exists, "LUN_TAKEN", None),
            Self::MappedAlready { .. } => (Exists, "MAPPED_ALREADY", None),
            Self::NotMapped { .. } => (NotFound, "NOT_MAPPED", None),
            Self::AclPattern { .. } => (Invalid, "ACL_PATTERN_INVALID", Some("acl.initiator")),
            Self::AclFrom { .. } => (Invalid, "ACL_FROM_INVALID", Some("acl.from")),
            Self::NoAcl { .. } => (NotFound, "ACL_NOT_FOUND", None),
            Self::ChapUser { field } => (Invalid, "CHAP_USER_INVALID", Some(field)),
            Self::ChapSecret { field } => (Invalid, "CHAP_SECRET_INVALID", Some(field)),
            Self::ChapMutualHalf => (Invalid, "CHAP_MUTUAL_HALF", Some("mutual_secret")),
            Self::ChapSame => (Invalid, "CHAP_SECRETS_EQUAL", Some("mutual_secret")),
            Self::ChapAlgorithm { .. } => (Invalid, "CHAP_ALGORITHM_INVALID", Some("algorithms")),
            Self::TooMany { .. } => (Exhausted, "LIMIT_REACHED", None),
            Self::IdsExhausted => (Exhausted, "IDS_EXHAUSTED", None),
            Self::DiskPath { .. } => (Invalid, "DISK_PATH_INVALID", Some("path")),
            Self::DiskPathTaken { .. } => (Exists, "DISK_PATH_TAKEN", None),
            Self::DiskCapacity { .. } => (Invalid, "DISK_CAPACITY_INVALID", Some("capacity_bytes")),
            Self::DiskInService(_) => (Precondition, "DISK_IN_SERVICE", None),
            Self::UnitRevision { .. } => (Conflict, "UNIT_REVISION", None),
            Self::UnitState(_) => (Invalid, "UNIT_STATE_INVALID", Some("state")),
            Self::NotFlushed { .. } => (Conflict, "NOT_FLUSHED", None),
            Self::NoPool(_) => (NotFound, "POOL_NOT_FOUND", None),
            Self::Move { .. } => (Conflict, "MOVE_REFUSED", None),
            Self::DiskHolds { .. } => (Precondition, "DISK_HOLDS_COPIES", None),
            Self::Replaced { .. } => (Conflict, "DISK_REPLACED", None),
            Self::NotDrained(_) => (Precondition, "NOT_DRAINED", None),
            Self::NoToken => (NotFound, "TOKEN_NOT_FOUND", None),
            Self::TokenUsed => (Precondition, "TOKEN_USED", None),
            Self::TokenExpired { .. } => (Precondition, "TOKEN_EXPIRED", None),
        }
    }
}

//! Names of things. A newtype for each, so that a disk cannot be passed where a node is meant.
//!
//! Ids come from the replicated cluster state and are never used again, also after a delete:
//! a late message about a deleted volume can therefore never reach its successor.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

id!(/// A storage node process.
    NodeId(u32), "node-");
id!(/// One engine: a directory, a file or a raw block device of a node.
    DiskId(u32), "disk-");
id!(/// A redundancy policy over a set of disks, with its own ring.
    PoolId(u32), "pool-");
id!(/// What a LUN shows.
    VolumeId(u64), "volume-");
id!(/// A process that exports volumes.
    GatewayId(u32), "gateway-");
id!(/// An iSCSI target.
    TargetId(u32), "target-");
id!(/// Index of a committed cluster map; it only rises.
    Epoch(u64), "e");
id!(/// Ownership of a volume: committed by the control plane, strictly rising for a volume, never reused.
    /// 0 is "no owner yet" and is never a message's generation.
    Generation(u64), "g");
id!(/// A mark in the order of a namespace's changes, numbered by its owner: 1 and up, never used again.
    Snapshot(u64), "snapshot-");
id!(/// One of a pool's equal arcs of hash space.
    Partition(u32), "partition-");

/// A cluster, drawn at random when it is created.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct ClusterId(pub u128);

/// A disk's own identity, drawn at random when it is formatted; it outlives moves between nodes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct DiskUuid(pub u128);

macro_rules! hex128 {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = std::num::ParseIntError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                u128::from_str_radix(text, 16).map(Self)
            }
        }
    };
}

hex128!(ClusterId);
hex128!(DiskUuid);

/// The version of a block: the generation that wrote it, then the owner's sequence number.
///
/// Versions of one block are totally ordered and a replica never takes an older one over a newer
/// one. `Version::NONE` is a block that was never written; it reads as zeros.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Version {
    /// Who wrote.
    pub generation: Generation,
    /// The owner's count of mutations under this generation, from 1.
    pub seq: u64,
}

impl Version {
    /// Never written.
    pub const NONE: Self = Self { generation: Generation(0), seq: 0 };
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.generation, self.seq)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A space of extents. A volume's layer is one kind of namespace; nothing below the owner knows
/// what a LUN is. The top byte is the kind, so kinds can never collide.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Namespace(pub u64);

impl Namespace {
    const VOLUME: u64 = 1 << 56;

    /// The namespace of a volume's extents.
    ///
    /// # Panics
    /// If the id has passed 2^56: ids count up from 1, so that cannot happen.
    #[must_use]
    pub fn volume(id: VolumeId) -> Self {
        assert!(id.0 < Self::VOLUME, "volume ids stay below 2^56");
        Self(Self::VOLUME | id.0)
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ns-{:016x}", self.0)
    }
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An extent: [`EXTENT_BYTES`](crate::limits::EXTENT_BYTES) of a namespace, the unit of placement.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ExtentId {
    /// Whose.
    pub namespace: Namespace,
    /// Which, from 0.
    pub index: u64,
}

impl fmt::Display for ExtentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.index)
    }
}

impl fmt::Debug for ExtentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

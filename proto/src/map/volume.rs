//! A volume: what a LUN shows.

use serde::{Deserialize, Serialize};

use crate::ids::{GatewayId, Generation, PoolId, VolumeId};

/// A thin volume of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its id, never used again.
    pub id: VolumeId,
    /// Its name, unique among active volumes.
    pub name: String,
    /// Where its extents lie.
    pub pool: PoolId,
    /// What it shows: a whole number of 4 KiB blocks.
    pub size_bytes: u64,
    /// How addresses become extents; `None` is one extent after the other.
    pub stripe: Option<Stripe>,
    /// Logical block size: 512 (with 4 KiB physical blocks, 512e) or 4096 (4Kn).
    pub block_bytes: u32,
    /// Write cache: `false` acks what is durable on every in-sync member (WCE=0).
    pub write_back: bool,
    /// The last generation given out for it, 0 before the first. Never decreases.
    pub generation: Generation,
    /// Who may use it, under `generation`.
    pub owner: Option<Owner>,
    /// Whether it is being deleted.
    pub state: VolumeState,
}

/// Round robin of `unit_bytes` over `width` consecutive extents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stripe {
    /// A power of two between the limits in [`limits`](crate::limits).
    pub unit_bytes: u32,
    /// Extents side by side, at least 2.
    pub width: u16,
}

/// The gateway that holds a volume's generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Who.
    pub gateway: GatewayId,
    /// Since which generation.
    pub generation: Generation,
}

/// Life of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeState {
    /// It can be used.
    Active,
    /// Nobody may use it; its owner is giving the space back on every disk.
    Deleting,
}

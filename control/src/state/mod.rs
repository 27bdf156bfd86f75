//! The replicated state: a pure function of the log.
//!
//! ```text
//! Command --decide--> Decision { changes, ids, response }  or  Rejection
//!                         |
//!                       commit --> map, epoch + 1 (only when something changed)
//! ```
//!
//! [`State::decide`] looks and touches nothing, so that a leader can answer what is wrong before
//! anything enters the log; [`State::apply`] decides again, because other commands may have come in
//! between. Every member applies the same commands in the same order and holds an equal state, so
//! nothing here may depend on a clock, on chance or on an unordered map.
//!
//! Watchers get the [`Change`]s of each epoch, not the command: to follow a map one needs no rules.

mod added;
mod change;
mod command;
mod in_sync;
mod joins;
mod members;
mod moves;
mod names;
mod pools;
mod rejection;
mod targets;
mod units;
mod volumes;

#[cfg(test)]
pub(crate) mod tests;

use lunette_proto::ids::Epoch;
use lunette_proto::map::ClusterMap;
use serde::{Deserialize, Serialize};

pub use change::{Change, Gap, MapDelta, check_map};
pub use command::{Command, NewDisk, NewOwner, Response};
pub use in_sync::owned_volumes;
pub use members::default_weight;
pub use moves::{MoveProblem, arriving_at, check_move, disks_of, is_arriving};
pub use names::{check_name, export_iqn, normal_acl, normal_iqn};
pub(crate) use pools::domain_of;
pub use pools::{check_shape, usable_bytes};
pub use rejection::{Category, NameKind, NameProblem, Rejection};
pub use units::UnitProblem;

/// Maximums of the replicated state that no other part needs to know.
pub mod limits {
    /// Storage nodes of a cluster.
    pub const NODES_MAX: usize = 4096;
    /// Disks of a cluster.
    pub const DISKS_MAX: usize = 65_536;
    /// Disks of a node.
    pub const DISKS_PER_NODE_MAX: usize = 1024;
    /// Gateways of a cluster.
    pub const GATEWAYS_MAX: usize = 1024;
    /// Portals of a gateway.
    pub const PORTALS_PER_GATEWAY_MAX: usize = 64;
    /// Pools of a cluster.
    pub const POOLS_MAX: usize = 1024;
    /// Volumes that one command gives owners.
    pub const OWNERS_PER_COMMAND_MAX: usize = 4096;
    /// Moves that one command begins or gives up.
    pub const MOVES_PER_COMMAND_MAX: usize = 4096;
    /// Access entries of a target.
    pub const ACLS_PER_TARGET_MAX: usize = 1024;
    /// The least that a disk may offer: an extent. What a disk needs beside it, its node knows.
    pub const DISK_BYTES_MIN: u64 = lunette_proto::limits::EXTENT_BYTES as u64;
    /// Characters of a disk's label and of a failure domain's name.
    pub const LABEL_CHARS_MAX: usize = 255;
    /// Bytes of a CHAP user name.
    pub const CHAP_USER_BYTES_MAX: usize = 255;
    /// Join tokens that are remembered.
    pub const TOKENS_MAX: usize = 256;
}

/// Everything that the cluster has decided.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    map: ClusterMap,
    next: NextIds,
}

/// The ids to give out next. They only rise: an id is never used again, also after a delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextIds {
    node: u32,
    disk: u32,
    pool: u32,
    gateway: u32,
    target: u32,
    volume: u64,
    portal_group_tag: u16,
}

impl Default for NextIds {
    fn default() -> Self {
        Self { node: 1, disk: 1, pool: 1, gateway: 1, target: 1, volume: 1, portal_group_tag: 1 }
    }
}

/// What a command would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// The changes to the map, in order; none when everything already is as the command wants it.
    pub changes: Vec<Change>,
    next: NextIds,
    /// What the caller learns.
    pub response: Response,
}

/// What a command did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The epoch after it.
    pub epoch: Epoch,
    /// What the caller learns.
    pub response: Response,
    /// What changed; `None` when nothing did.
    pub delta: Option<MapDelta>,
}

impl State {
    /// A state from its parts, as a store keeps them.
    #[must_use]
    pub fn from_parts(map: ClusterMap, next: NextIds) -> Self {
        Self { map, next }
    }

    /// The map at the present epoch.
    #[must_use]
    pub fn map(&self) -> &ClusterMap {
        &self.map
    }

    /// The ids to give out next.
    #[must_use]
    pub fn next_ids(&self) -> NextIds {
        self.next
    }

    /// What `command` would do now.
    pub fn decide(&self, command: &Command) -> Result<Decision, Rejection> {
        let mut draft = Draft { map: &self.map, changes: Vec::new(), next: self.next };
        let response = draft.decide(command)?;
        Ok(Decision { changes: draft.changes, next: draft.next, response })
    }

    /// Applies `command`, or refuses it and changes nothing.
    pub fn apply(&mut self, command: &Command) -> Result<Applied, Rejection> {
        let Decision { changes, next, response } = self.decide(command)?;
        if changes.is_empty() {
            return Ok(Applied { epoch: self.map.epoch, response, delta: None });
        }
        let epoch = Epoch(self.map.epoch.0.checked_add(1).ok_or(Rejection::IdsExhausted)?);
        let delta = MapDelta { epoch, changes };
        self.advance(&delta, next);
        Ok(Applied { epoch, response, delta: Some(delta) })
    }

    /// Takes over a step that an equal state has made.
    pub(crate) fn advance(&mut self, delta: &MapDelta, next: NextIds) {
        assert_eq!(delta.epoch.0, self.map.epoch.0 + 1, "states advance by one epoch at a time");
        for change in &delta.changes {
            change.apply(&mut self.map);
        }
        self.map.epoch = delta.epoch;
        self.next = next;
    }
}

/// A decision in the making: reads the map as it is, gathers what shall change.
struct Draft<'a> {
    map: &'a ClusterMap,
    changes: Vec<Change>,
    next: NextIds,
}

impl Draft<'_> {
    fn decide(&mut self, command: &Command) -> Result<Response, Rejection> {
        match command {
            Command::Found { cluster } => self.found(*cluster),
            Command::RegisterNode { name, address, host, rack, zone, disks } => {
                self.register_node(name, *address, [host, rack, zone], disks)
            }
            Command::RegisterGateway { name, portals } => self.register_gateway(name, portals),
            Command::CreatePool { name, redundancy, failure_domain, table } => {
                self.create_pool(name, *redundancy, *failure_domain, table)
            }
            Command::DeletePool { name } => self.delete_pool(name),
            Command::CreateVolume { name, pool, size_bytes, stripe, block_bytes, write_back, export } => {
                self.create_volume(name, pool, *size_bytes, *stripe, *block_bytes, *write_back, *export)
            }
            Command::ResizeVolume { name, size_bytes } => self.resize_volume(name, *size_bytes),
            Command::DeleteVolume { name, force } => self.delete_volume(name, *force),
            Command::VolumePurged { volume, generation } => self.volume_purged(*volume, *generation),
            Command::AssignOwners { owners } => self.assign_owners(owners),
            Command::CreateTarget { iqn } => self.create_target(iqn.as_deref()),
            Command::DeleteTarget { iqn } => self.delete_target(iqn),
            Command::MapLun { iqn, volume, lun, read_only } => self.map_lun(iqn, volume, *lun, *read_only),
            Command::UnmapLun { iqn, volume } => self.unmap_lun(iqn, volume),
            Command::Allow { iqn, acl } => self.allow(iqn, acl),
            Command::Deny { iqn, acl } => self.deny(iqn, acl),
            Command::SetChap { iqn, chap } => self.set_chap(iqn, chap),
            Command::ClearChap { iqn } => self.clear_chap(iqn),
            Command::AddDisk { node, path, capacity_bytes, uuid, replaces } => {
                self.add_disk(node, path, *capacity_bytes, *uuid, *replaces)
            }
            Command::DiskAdded { node, disk, capacity_bytes } => {
                self.disk_added(*node, *disk, *capacity_bytes)
            }
            Command::RefuseDisk { node, disk } => self.refuse_disk(*node, *disk),
            Command::SetUnitState { volume, state } => self.set_unit_state(*volume, state),
            Command::SetWriteBack { volume, generation, write_back } => {
                self.set_write_back(*volume, *generation, *write_back)
            }
            Command::SetDraining { iqn, draining } => self.set_draining(iqn, *draining),
            Command::SetDiscoveryChap { chap } => self.set_discovery_chap(chap.as_ref()),
            Command::Evict { disk, seen } => self.evict(*disk, *seen),
            Command::Return { disk } => self.return_disk(*disk),
            Command::CaughtUp { disk, pool, partitions, epoch, owners } => {
                self.caught_up(*disk, *pool, partitions, *epoch, owners)
            }
            Command::AddMoves { pool, moves } => self.add_moves(*pool, moves),
            Command::CancelMoves { pool, moves } => self.cancel_moves(*pool, moves),
            Command::DrainDisks { disks, draining } => self.drain_disks(disks, *draining),
            Command::RemoveDisk { disk } => self.remove_disk(*disk),
            Command::RemoveNode { name } => self.remove_node(name),
            Command::NewMember => self.new_member(),
            Command::AddToken { id, token, now_unix_ms } => self.add_token(*id, token, *now_unix_ms),
            Command::UseToken { id, now_unix_ms } => self.use_token(*id, *now_unix_ms),
        }
    }

    /// The epoch that the changes lead to.
    fn epoch(&self) -> Epoch {
        // If there is none, the command is refused when it is applied.
        Epoch(self.map.epoch.0.saturating_add(1))
    }

    /// Records a change unless the map already is so.
    fn put(&mut self, change: Change) {
        if !change.is_in(self.map) {
            self.changes.push(change);
        }
    }
}

/// Takes the next id of a counter.
fn take<T: Copy + TryFrom<u64>>(next: &mut T) -> Result<T, Rejection>
where
    u64: From<T>,
{
    let id = *next;
    *next =
        u64::from(id).checked_add(1).and_then(|id| T::try_from(id).ok()).ok_or(Rejection::IdsExhausted)?;
    Ok(id)
}

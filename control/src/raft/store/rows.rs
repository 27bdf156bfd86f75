//! The state as rows: one for each entry of the map, so that a commit writes what changed and no more.

use std::collections::BTreeMap;
use std::sync::Arc;

use lunette_proto::ids::{ClusterId, DiskId, Epoch, PoolId};
use lunette_proto::map::{ClusterMap, Pool};
use redb::{Database, ReadableDatabase as _, ReadableTable as _, Table};
use serde::{Deserialize, Serialize};

use super::open::FORMAT;
use super::record::{body, whole};
use super::{STATE, StoreError, decode, encode, read_meta};
use crate::state::{Change, NextIds, State, check_map};

/// Kinds of rows. They are on disk: never change a number.
const NODE: u8 = 1;
const DISK: u8 = 2;
const GATEWAY: u8 = 3;
const POOL: u8 = 4;
const VOLUME: u8 = 5;
const TARGET: u8 = 6;
const ADDED: u8 = 7;
const UNIT: u8 = 8;
/// One row, with id 0, or none.
const DISCOVERY_CHAP: u8 = 9;
const BEHIND: u8 = 10;
/// One row, with id 0, or none.
const JOINS: u8 = 11;

const UNSOUND: StoreError = StoreError::Damaged { what: "the tables of pools, or which copies count" };

/// What of a state is not a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    epoch: Epoch,
    cluster: ClusterId,
    next: NextIds,
}

impl Head {
    pub(crate) fn of(state: &State) -> Self {
        let map = state.map();
        Self { epoch: map.epoch, cluster: map.cluster, next: state.next_ids() }
    }
}

/// Writes a change.
pub(super) fn write_change(
    table: &mut Table<'_, (u8, u64), &'static [u8]>,
    change: &Change,
) -> Result<(), StoreError> {
    let (key, row) = match change {
        // In the head.
        Change::Cluster(_) => return Ok(()),
        Change::PutNode(node) => ((NODE, node.id.0.into()), Some(encode(node)?)),
        Change::PutDisk(disk) => ((DISK, disk.id.0.into()), Some(encode(disk)?)),
        Change::PutGateway(gateway) => ((GATEWAY, gateway.id.0.into()), Some(encode(gateway)?)),
        Change::PutPool(pool) => ((POOL, pool.id.0.into()), Some(encode(pool)?)),
        Change::RemovePool(id) => ((POOL, id.0.into()), None),
        Change::PutVolume(volume) => ((VOLUME, volume.id.0), Some(encode(volume)?)),
        Change::RemoveVolume(id) => ((VOLUME, id.0), None),
        Change::PutTarget(target) => ((TARGET, target.id.0.into()), Some(encode(target)?)),
        Change::RemoveTarget(id) => ((TARGET, id.0.into()), None),
        Change::PutAdded(added) => ((ADDED, added.id.0.into()), Some(encode(added)?)),
        Change::RemoveAdded(id) => ((ADDED, id.0.into()), None),
        // With the id, which the value does not have: a row under another's key is found.
        Change::PutUnit(id, unit) => ((UNIT, id.0), Some(encode(&(id, unit))?)),
        Change::RemoveUnit(id) => ((UNIT, id.0), None),
        Change::SetDiscoveryChap(chap) => ((DISCOVERY_CHAP, 0), chap.as_ref().map(encode).transpose()?),
        // As with units.
        Change::PutBehind(pool, disk, behind) => {
            ((BEHIND, copies(*pool, *disk)), Some(encode(&(pool, disk, behind))?))
        }
        Change::RemoveBehind(pool, disk) => ((BEHIND, copies(*pool, *disk)), None),
        Change::RemoveDisk(id) => ((DISK, id.0.into()), None),
        Change::RemoveNode(id) => ((NODE, id.0.into()), None),
        // Its pool is written as a whole, once for all edits of a batch: see `write_pools`.
        Change::AddMoves(..) | Change::RemoveMoves(..) | Change::Moved(..) => return Ok(()),
        Change::SetJoins(joins) => ((JOINS, 0), Some(encode(joins)?)),
    };
    match row {
        Some(row) => drop(table.insert(key, row.as_slice())?),
        None => drop(table.remove(key)?),
    }
    Ok(())
}

/// Writes pools of which parts were changed, as they are after that. `None`: it is no more.
pub(super) fn write_pools(
    table: &mut Table<'_, (u8, u64), &'static [u8]>,
    pools: &BTreeMap<PoolId, Option<Pool>>,
) -> Result<(), StoreError> {
    for pool in pools.values().flatten() {
        table.insert((POOL, pool.id.0.into()), encode(pool)?.as_slice())?;
    }
    Ok(())
}

/// Every entry of a map, as changes that would make it.
pub(super) fn all_changes(map: &ClusterMap) -> impl Iterator<Item = Change> {
    let nodes = map.nodes.values().cloned().map(Change::PutNode);
    let disks = map.disks.values().cloned().map(Change::PutDisk);
    let gateways = map.gateways.values().cloned().map(Change::PutGateway);
    let pools = map.pools.values().cloned().map(Change::PutPool);
    let volumes = map.volumes.values().cloned().map(Change::PutVolume);
    let targets = map.targets.values().cloned().map(Change::PutTarget);
    let added = map.added.values().cloned().map(Change::PutAdded);
    let units = map.units.iter().map(|(id, unit)| Change::PutUnit(*id, Arc::clone(unit)));
    let chap = std::iter::once(Change::SetDiscoveryChap(map.discovery_chap.clone()));
    let behind = map.behind.iter();
    let behind = behind.map(|((pool, disk), set)| Change::PutBehind(*pool, *disk, Arc::clone(set)));
    let joins = std::iter::once(Change::SetJoins(map.joins.clone()));
    let members = nodes.chain(disks).chain(gateways).chain(added).chain(joins);
    members.chain(pools).chain(behind).chain(volumes).chain(units).chain(targets).chain(chap)
}

/// The copies of a pool on a disk, as a key.
fn copies(pool: PoolId, disk: DiskId) -> u64 {
    u64::from(pool.0) << 32 | u64::from(disk.0)
}

/// The state that the rows and the head make.
pub(super) fn load(database: &Database) -> Result<State, StoreError> {
    let Some(head) = read_meta::<Head>(database, "head")? else { return Ok(State::default()) };
    let mut map = ClusterMap { epoch: head.epoch, cluster: head.cluster, ..ClusterMap::default() };
    let table = database.begin_read()?.open_table(STATE)?;
    for row in table.iter()? {
        let (key, value) = row?;
        let (kind, id) = key.value();
        let change = match kind {
            NODE => Change::PutNode(decode(value.value(), "node")?),
            DISK => Change::PutDisk(decode(value.value(), "disk")?),
            GATEWAY => Change::PutGateway(decode(value.value(), "gateway")?),
            POOL => Change::PutPool(decode(value.value(), "pool")?),
            VOLUME => Change::PutVolume(decode(value.value(), "volume")?),
            TARGET => Change::PutTarget(decode(value.value(), "target")?),
            ADDED => Change::PutAdded(decode(value.value(), "added disk")?),
            UNIT => {
                let (id, unit) = decode(value.value(), "logical unit")?;
                Change::PutUnit(id, unit)
            }
            BEHIND => {
                let (pool, disk, behind) = decode(value.value(), "copies that do not count")?;
                Change::PutBehind(pool, disk, behind)
            }
            JOINS => Change::SetJoins(decode(value.value(), "what those that join were given")?),
            DISCOVERY_CHAP => Change::SetDiscoveryChap(Some(decode(value.value(), "CHAP of discovery")?)),
            _ => return Err(StoreError::Damaged { what: "a row of unknown kind" }),
        };
        if id_of(&change) != id {
            return Err(StoreError::Damaged { what: "a row under another's key" });
        }
        change.apply(&mut map);
    }
    check_map(&map).map_err(|_| UNSOUND)?;
    Ok(State::from_parts(map, head.next))
}

fn id_of(change: &Change) -> u64 {
    match change {
        Change::Cluster(_) | Change::SetDiscoveryChap(_) | Change::SetJoins(_) => 0,
        Change::PutNode(node) => node.id.0.into(),
        Change::PutDisk(disk) => disk.id.0.into(),
        Change::PutGateway(gateway) => gateway.id.0.into(),
        Change::PutPool(pool) => pool.id.0.into(),
        Change::RemovePool(id) => id.0.into(),
        Change::PutVolume(volume) => volume.id.0,
        Change::RemoveVolume(id) => id.0,
        Change::PutTarget(target) => target.id.0.into(),
        Change::RemoveTarget(id) => id.0.into(),
        Change::PutAdded(added) => added.id.0.into(),
        Change::RemoveAdded(id) => id.0.into(),
        Change::PutUnit(id, _) | Change::RemoveUnit(id) => id.0,
        Change::PutBehind(pool, disk, _) | Change::RemoveBehind(pool, disk) => copies(*pool, *disk),
        Change::RemoveDisk(id) => id.0.into(),
        Change::RemoveNode(id) => id.0.into(),
        Change::AddMoves(pool, _) | Change::RemoveMoves(pool, _) | Change::Moved(pool, _, _) => pool.0.into(),
    }
}

/// A snapshot's bytes: a record of its format and the whole state.
pub(super) fn encode_snapshot(state: &State) -> Result<Vec<u8>, StoreError> {
    encode(&(FORMAT, state))
}

/// The state in a snapshot's bytes.
pub(super) fn decode_snapshot(bytes: &[u8]) -> Result<State, StoreError> {
    let (format, body) = postcard::take_from_bytes::<u32>(body(bytes, "snapshot")?)?;
    if format != FORMAT {
        return Err(StoreError::Damaged { what: "a snapshot of another format" });
    }
    let state: State = whole(body, "snapshot")?;
    check_map(state.map()).map_err(|_| UNSOUND)?;
    Ok(state)
}

/// Shares a state with a snapshot builder at the cost of a pointer.
pub(super) type Shared = Arc<State>;

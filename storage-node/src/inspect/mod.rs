//! Looking at a disk that is not in use, without changing it.
//!
//! The disk is opened for reading only. What its journal says is done once more in memory, by the very code that
//! opens a disk to serve it, over a medium that keeps what is written for itself (`overlay`). It is read
//! by calls and not mapped into memory: a sector that cannot be read is then an error with its place, and not a signal.

mod check;
mod overlay;
mod report;

use std::path::Path;

use lunette_proto::ids::{ExtentId, Snapshot};
use lunette_proto::limits::BLOCK_BYTES;

use crate::engine::DiskError;
use crate::store::chains::LIVE;
use crate::store::descriptor::{BlockState, Descriptor, UNIT_BLOCKS};
use crate::store::disk::Disk;
use crate::store::extents::SLOTS;
use crate::store::format::ReadOnly;
use crate::store::layout::{DESCRIPTOR_BYTES, Layout, PAGE_BYTES};
use crate::store::superblock::{NotSuper, Superblock};
use crate::store::wal::{Found, Point, Scan};
use crate::store::{OpenError, Store};
use overlay::Overlay;

pub use check::{CheckReport, check};
pub use report::{
    BatchReport, BlockReport, DescriptorReport, ExtentReport, Report, SlotReport, SuperblockReport,
    UnitReport, WalReport,
};

/// What is asked of a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// The batches of the journal.
    pub wal: bool,
    /// The state of a unit.
    pub unit: Option<u32>,
    /// The state of an extent.
    pub extent: Option<ExtentId>,
}

/// Says what is on the disk at `path`: its superblocks, and what `what` asks for.
///
/// # Errors
/// There is no disk, it is in use, it cannot be read, or it is damaged so that what is asked for cannot be told. Damage to
/// one of the superblocks is in the report.
pub fn inspect(path: &Path, what: &Query) -> Result<Report, DiskError> {
    let file = crate::store::format::open_read_only(path)?;
    let name = file.path.clone();
    let error = |error: OpenError| error.at(&name);
    let disk = Overlay::new(file).map_err(DiskError::io(&name, "ask for its size"))?;
    let superblocks = [superblock(&disk, 0), superblock(&disk, 1)];
    let newest = crate::store::recovery::read_superblock(&disk).map_err(error)?;
    let mut report = Report { path: name.clone(), superblocks, newest, wal: None, unit: None, extent: None };
    if what.wal {
        report.wal = Some(wal(&disk, &newest).map_err(DiskError::io(&name, "read its journal"))?);
    }
    if what.unit.is_some() || what.extent.is_some() {
        let (store, _) = Store::open(disk).map_err(error)?;
        if let Some(unit) = what.unit {
            if unit >= newest.layout.units {
                return Err(DiskError::NoSuchUnit { path: name, unit, units: newest.layout.units });
            }
            report.unit = Some(unit_report(&store, unit).map_err(DiskError::io(&name, "read a unit"))?);
        }
        report.extent = what.extent.map(|id| extent_report(&store, id));
    }
    Ok(report)
}

fn superblock(disk: &Overlay<ReadOnly>, copy: usize) -> SuperblockReport {
    let mut page = [0; PAGE_BYTES as usize];
    match disk.read(Layout::superblock(copy), &mut page) {
        Err(error) => SuperblockReport::Unreadable(error.to_string()),
        Ok(()) => match Superblock::decode(&page) {
            Ok(found) => SuperblockReport::Valid { checkpoint: found.checkpoint },
            Err(NotSuper::Foreign) => SuperblockReport::Missing,
            Err(NotSuper::Damaged) => SuperblockReport::Damaged,
            Err(NotSuper::Version(version)) => SuperblockReport::Version(version),
        },
    }
}

/// The batches that opening the disk would do again.
fn wal(disk: &Overlay<ReadOnly>, superblock: &Superblock) -> std::io::Result<WalReport> {
    let next = Point {
        place: superblock.wal_position,
        number: superblock.wal_batch,
        chain: superblock.wal_chain,
        lsn: superblock.lsn + 1,
    };
    let mut scan = Scan::new(disk, &superblock.layout, superblock.identity.uuid, next)?;
    let mut report =
        WalReport { batches: Vec::new(), newest_number: scan.newest().number, torn: false, damaged_at: None };
    loop {
        match scan.next()? {
            Found::Batch(batch) => report.batches.push(BatchReport {
                place: batch.place,
                number: batch.header.number,
                first_lsn: batch.header.first_lsn,
                records: batch.header.records,
                data_blocks: batch.header.blocks,
                damaged_blocks: u32::try_from(batch.damaged.len()).unwrap_or(u32::MAX),
            }),
            Found::End { torn } => {
                report.torn = torn;
                return Ok(report);
            }
            Found::Damaged(place) => {
                report.damaged_at = Some(place);
                return Ok(report);
            }
        }
    }
}

fn unit_report(store: &Store<Overlay<ReadOnly>>, unit: u32) -> std::io::Result<UnitReport> {
    let view = store.view();
    let state = view.state.read();
    let owner = state.extents.iter().find_map(|(key, extent)| {
        let prepared = extent.shadows().iter().map(|shadow| (shadow.slot, shadow.unit));
        let mut units = extent.units().chain(prepared);
        units.find(|(_, found)| found.unit == unit).map(|(slot, found)| (key, slot, found))
    });
    let kept_until = owner.and_then(|(key, ..)| (key.until != LIVE).then_some(key.until));
    let owner = owner.map(|(key, slot, found)| (key.extent, slot, found));
    let is_prepared = |id, slot| {
        let shadow = state.extents.get(id).and_then(|extent| extent.shadow(slot));
        shadow.is_some_and(|shadow| shadow.unit.unit == unit)
    };
    let is_prepared = owner.is_some_and(|(id, slot, _)| is_prepared(id, slot));
    drop(state);
    let mut sector = [0; DESCRIPTOR_BYTES as usize];
    let offset = view.layout.descriptor(unit);
    let data_offset = view.layout.unit(unit);
    let Some((id, slot, found)) = owner else {
        let descriptor_offset = offset;
        return Ok(UnitReport { unit, data_offset, descriptor_offset, is_prepared, kept_until, owner: None });
    };
    let dirty = view.state.read().dirty.get(&unit).cloned();
    let descriptor = match dirty {
        Some(dirty) => Ok((*dirty.descriptor).clone()),
        None => {
            view.disk.read(offset, &mut sector)?;
            match Descriptor::decode(view.uuid, &sector, unit, id, slot) {
                Ok((_, crc)) if crc != found.crc => Err(crate::store::Damage::Stale),
                Ok((descriptor, _)) => Ok(descriptor),
                Err(damage) => Err(damage),
            }
        }
    };
    let descriptor = descriptor.map(|descriptor| {
        let blocks = (0..UNIT_BLOCKS).map(|index| {
            let entry = descriptor.blocks[index as usize];
            let mut data = vec![0; BLOCK_BYTES as usize];
            let damage = if matches!(entry.state, BlockState::Data | BlockState::Lost) {
                match view.disk.read(data_offset + u64::from(index * BLOCK_BYTES), &mut data) {
                    Ok(()) => descriptor.verify(index, &data).err(),
                    Err(_) => Some(crate::store::Damage::Unreadable),
                }
            } else {
                None
            };
            BlockReport {
                block: descriptor.first_block() + index,
                version: entry.version,
                state: entry.state,
                checksum: entry.checksum,
                damage,
            }
        });
        DescriptorReport { lsn: descriptor.lsn, blocks: blocks.collect() }
    });
    let owner = Some((id, slot, descriptor));
    Ok(UnitReport { unit, data_offset, descriptor_offset: offset, is_prepared, kept_until, owner })
}

fn extent_report(store: &Store<Overlay<ReadOnly>>, id: ExtentId) -> ExtentReport {
    let state = store.view().state.read();
    let kept = state.extents.records(id, Snapshot(0)).filter(|(until, _)| *until != LIVE);
    let kept = kept.flat_map(|(until, extent)| {
        let slots = (0..SLOTS).filter(|slot| extent.answers_for(*slot));
        slots.map(move |slot| SlotReport::Kept { slot, until, unit: extent.unit(slot).map(|unit| unit.unit) })
    });
    let kept = kept.collect::<Vec<_>>();
    let snapshots = state.namespaces.snapshots(id.namespace).to_vec();
    let Some(extent) = state.extents.get(id) else {
        return ExtentReport { id, page: None, snapshots, slots: kept };
    };
    let slots = (0..SLOTS).filter_map(|slot| {
        let version = extent.floor(slot);
        match extent.unit(slot) {
            Some(unit) => Some(SlotReport::Unit { slot, unit: unit.unit }),
            None if version != lunette_proto::ids::Version::NONE => Some(SlotReport::Hole { slot, version }),
            None => None,
        }
    });
    let prepared = extent.shadows().iter().map(|shadow| SlotReport::Prepared {
        slot: shadow.slot,
        unit: shadow.unit.unit,
        first: shadow.first,
        blocks: shadow.blocks,
        version: shadow.version,
        prev: shadow.prev,
    });
    ExtentReport {
        id,
        page: Some(extent.page),
        snapshots,
        slots: slots.chain(prepared).chain(kept).collect(),
    }
}

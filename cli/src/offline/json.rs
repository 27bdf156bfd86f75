//! The reports as JSON: numbers as numbers, sizes and places in bytes, `null` for what was not asked for.

use lunette_proto::ids::ExtentId;
use lunette_storage_node::inspect::{
    BlockReport, CheckReport, ExtentReport, Report, SlotReport, SuperblockReport, UnitReport, WalReport,
};
use lunette_storage_node::store::descriptor::BlockState;
use lunette_storage_node::store::{Identity, Layout};
use serde_json::{Value, json};

pub(super) fn report(report: &Report) -> Value {
    let newest = &report.newest;
    json!({
        "path": report.path.display().to_string(),
        "identity": identity(&newest.identity),
        "superblocks": report.superblocks.iter().map(superblock).collect::<Vec<_>>(),
        "checkpoint": {
            "number": newest.checkpoint, "lsn": newest.lsn, "area": newest.area, "bytes": newest.area_len,
            "wal_position": newest.wal_position, "wal_batch": newest.wal_batch,
        },
        "layout": layout(&newest.layout),
        "wal": report.wal.as_ref().map(wal),
        "unit": report.unit.as_ref().map(unit),
        "extent": report.extent.as_ref().map(extent),
    })
}

pub(super) fn check(report: &CheckReport) -> Value {
    let recovered = &report.recovered;
    let named: Vec<Value> = report
        .named
        .iter()
        .map(|(id, block, damage)| json!({"extent": extent_id(*id), "block": block, "damage": damage.to_string()}))
        .collect();
    json!({
        "path": report.path.display().to_string(),
        "identity": identity(&report.identity),
        "clean": report.is_clean(),
        "extents": report.extents, "units": report.units, "units_total": report.units_total,
        "kept": report.kept, "prepared": report.prepared,
        "wal": {
            "batches": recovered.batches, "records": recovered.records, "torn_tail": recovered.torn_tail,
            "lost_blocks": recovered.lost_blocks,
        },
        "disagreement": report.disagreement,
        "bad_blocks": report.bad, "named": named,
    })
}

fn identity(identity: &Identity) -> Value {
    json!({
        "cluster": identity.cluster.to_string(), "disk": identity.disk.0, "uuid": identity.uuid.to_string(),
    })
}

fn layout(layout: &Layout) -> Value {
    json!({
        "total_bytes": layout.total_bytes, "wal_offset": layout.wal_offset, "wal_bytes": layout.wal_bytes,
        "area_offsets": layout.area_offsets, "area_bytes": layout.area_bytes,
        "pages_offset": layout.pages_offset, "pages": layout.pages,
        "descriptors_offset": layout.descriptors_offset, "units_offset": layout.units_offset,
        "units": layout.units,
    })
}

fn superblock(superblock: &SuperblockReport) -> Value {
    let state = match superblock {
        SuperblockReport::Valid { checkpoint } => return json!({"state": "valid", "checkpoint": checkpoint}),
        SuperblockReport::Version(version) => return json!({"state": "other-version", "version": version}),
        SuperblockReport::Unreadable(error) => return json!({"state": "unreadable", "error": error}),
        SuperblockReport::Missing => "missing",
        SuperblockReport::Damaged => "damaged",
    };
    json!({ "state": state })
}

fn wal(wal: &WalReport) -> Value {
    let batches: Vec<Value> = wal
        .batches
        .iter()
        .map(|batch| {
            json!({
                "place": batch.place, "number": batch.number, "first_lsn": batch.first_lsn,
                "records": batch.records, "data_blocks": batch.data_blocks,
                "damaged_blocks": batch.damaged_blocks,
            })
        })
        .collect();
    json!({
        "batches": batches, "newest_number": wal.newest_number, "torn": wal.torn,
        "damaged_at": wal.damaged_at,
    })
}

fn unit(unit: &UnitReport) -> Value {
    let owner = unit.owner.as_ref().map(|(id, slot, descriptor)| match descriptor {
        Ok(descriptor) => json!({
            "extent": extent_id(*id), "slot": slot, "lsn": descriptor.lsn, "damage": null,
            "blocks": descriptor.blocks.iter().map(block).collect::<Vec<_>>(),
        }),
        Err(damage) => json!({
            "extent": extent_id(*id), "slot": slot, "lsn": null, "damage": damage.to_string(), "blocks": [],
        }),
    });
    json!({
        "unit": unit.unit, "data_offset": unit.data_offset, "descriptor_offset": unit.descriptor_offset,
        "prepared": unit.is_prepared, "kept_until": unit.kept_until.map(|until| until.0), "owner": owner,
    })
}

fn block(block: &BlockReport) -> Value {
    let state = match block.state {
        BlockState::Absent => "absent",
        BlockState::Data => "data",
        BlockState::Zeros => "zeros",
        BlockState::Lost => "lost",
    };
    json!({
        "block": block.block, "state": state,
        "generation": block.version.generation.0, "seq": block.version.seq, "checksum": block.checksum,
        "damage": block.damage.map(|damage| damage.to_string()),
    })
}

fn extent(extent: &ExtentReport) -> Value {
    let slot = |slot: &SlotReport| match slot {
        SlotReport::Unit { slot, unit } => json!({"slot": slot, "unit": unit}),
        SlotReport::Hole { slot, version } => json!({
            "slot": slot, "unit": null, "generation": version.generation.0, "seq": version.seq,
        }),
        SlotReport::Kept { slot, until, unit } => json!({"slot": slot, "unit": unit, "kept_until": until.0}),
        SlotReport::Prepared { slot, unit, first, blocks, version, prev } => json!({
            "slot": slot, "unit": unit, "prepared": {
                "first": first, "blocks": blocks, "generation": version.generation.0, "seq": version.seq,
                "previous_generation": prev.generation.0, "previous_seq": prev.seq,
            },
        }),
    };
    json!({
        "extent": extent_id(extent.id), "page": extent.page,
        "snapshots": extent.snapshots.iter().map(|snapshot| snapshot.0).collect::<Vec<_>>(),
        "slots": extent.slots.iter().map(slot).collect::<Vec<_>>(),
    })
}

fn extent_id(id: ExtentId) -> Value {
    json!({"namespace": format!("{:016x}", id.namespace.0), "index": id.index})
}

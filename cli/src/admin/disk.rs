//! `lunette disk list|add|replace|scrub|drain|remove`.

use anyhow::Result;
use lunette_control::api::admin::{
    AddDiskRequest, Disk as Answer, DrainDiskRequest, ListDisksRequest, RemoveDiskRequest, ReplaceDiskRequest,
};

use super::{Connection, drain, json, scrub};
use crate::args::{Disk, DiskAdd, DiskDrain, DiskRemove, DiskReplace, Drain};
use crate::output::{Format, Table};
use crate::size::human;

/// The state of a disk that its node is at.
const ADDING: &str = "adding";

pub(super) async fn run(command: Disk, connection: &Connection, format: Format) -> Result<()> {
    match command {
        Disk::List => list(connection, format).await,
        Disk::Add(add) => self::add(add, connection, format).await,
        Disk::Replace(replace) => self::replace(replace, connection, format).await,
        Disk::Scrub(command) => scrub::run(command, connection, format).await,
        Disk::Drain(drain) => self::drain(drain, connection, format).await,
        Disk::Remove(DiskRemove { disk }) => remove(disk, connection).await,
        Disk::Inspect(_) | Disk::Check(_) => unreachable!("main looks at disks itself"),
    }
}

async fn list(connection: &Connection, format: Format) -> Result<()> {
    let answer = connection.disks().list(ListDisksRequest {}).await;
    let disks = answer.map_err(|status| connection.refused(&status))?.into_inner().disks;
    format.print(|| table(&disks).text(), || json::disks(&disks));
    Ok(())
}

async fn add(add: DiskAdd, connection: &Connection, format: Format) -> Result<()> {
    let request = AddDiskRequest {
        node: add.node,
        path: add.path,
        capacity_bytes: add.capacity.map_or(0, |capacity| capacity.bytes()),
    };
    let disk = loop {
        let answer = connection.disks().add(request.clone()).await;
        let disk = answer.map_err(|status| connection.refused(&status))?.into_inner();
        // A large disk takes its time; asked again, the control plane goes on waiting for the same one.
        if disk.state != ADDING {
            break disk;
        }
    };
    format.print(|| text(&disk), || json::disk(&disk));
    Ok(())
}

async fn replace(command: DiskReplace, connection: &Connection, format: Format) -> Result<()> {
    let DiskReplace { disk: old, path, node, capacity, dry_run } = command;
    let request = ReplaceDiskRequest {
        disk: old,
        node: node.unwrap_or_default(),
        path,
        capacity_bytes: capacity.map_or(0, |capacity| capacity.bytes()),
        dry_run,
    };
    let mut planned = None;
    let new = loop {
        let answer = connection.disks().replace(request.clone()).await;
        let answer = answer.map_err(|status| connection.refused(&status))?.into_inner();
        // What is asked for again says of the moves what it said first.
        let moves = answer.moves.unwrap_or_default();
        planned.get_or_insert(moves);
        match answer.disk {
            Some(disk) if disk.state == ADDING => {}
            disk => break disk,
        }
    };
    let moves = planned.unwrap_or_default();
    let how = Drain { dry_run, off: false };
    let what = new.as_ref().map_or_else(
        || format!("disk {old}"),
        |new| format!("disk {} of {}, {}, is in service\ndisk {old}", new.id, new.node, new.label),
    );
    format.print(
        || drain::text(&what, how, &moves),
        || serde_json::json!({ "disk": new.as_ref().map(json::disk), "moves": drain::json(&moves) }),
    );
    Ok(())
}

async fn drain(command: DiskDrain, connection: &Connection, format: Format) -> Result<()> {
    let DiskDrain { disk, how } = command;
    let request = DrainDiskRequest { disk, draining: !how.off, dry_run: how.dry_run };
    let answer = connection.disks().drain(request).await;
    let answer = answer.map_err(|status| connection.refused(&status))?.into_inner();
    format.print(|| drain::text(&format!("disk {disk}"), how, &answer), || drain::json(&answer));
    Ok(())
}

async fn remove(disk: u32, connection: &Connection) -> Result<()> {
    let answer = connection.disks().remove(RemoveDiskRequest { disk }).await;
    answer.map_err(|status| connection.refused(&status))?;
    Ok(())
}

fn text(disk: &Answer) -> String {
    let Answer { id, node, label, capacity_bytes, .. } = disk;
    let kind = if disk.kind.is_empty() { String::new() } else { format!("{} ", disk.kind) };
    format!(
        "disk {id} of {node}, {kind}{label}, is in service and offers {}\n\
         pools move their share of copies to it, see `lunette status`\n",
        human(*capacity_bytes)
    )
}

pub(super) fn table(disks: &[Answer]) -> Table {
    let headings = [">DISK", "NODE", "STATE", ">CAPACITY", ">USED", ">WEIGHT", "KIND", "PATH", "REASON"];
    let mut table = Table::new(&headings);
    for disk in disks {
        table.row([
            disk.id.to_string(),
            disk.node.clone(),
            disk.state.clone(),
            human(disk.capacity_bytes),
            human(disk.used_bytes),
            disk.weight.to_string(),
            disk.kind.clone(),
            disk.label.clone(),
            reason(disk),
        ]);
    }
    table
}

/// Why a disk is in its state, and how far it is on its way out of it.
fn reason(disk: &Answer) -> String {
    let mut reasons = Vec::from_iter((!disk.reason.is_empty()).then(|| disk.reason.clone()));
    if disk.draining {
        reasons.push(match disk.copies {
            0 => "draining, empty".to_owned(),
            copies => format!("draining, {copies} copies left"),
        });
        if disk.replaced_by > 0 {
            reasons.push(format!("replaced by disk {}", disk.replaced_by));
        }
    }
    if let Some(catch_up) = &disk.catch_up {
        if catch_up.behind_partitions > 0 {
            reasons
                .push(format!("{} of {} partitions behind", catch_up.behind_partitions, catch_up.partitions));
        }
        if disk.arriving > 0 {
            reasons.push(format!("{} copies arriving", disk.arriving));
        }
        if catch_up.checked_extents > 0 || catch_up.waiting_extents > 0 {
            reasons.push(format!(
                "{} extents looked at, {} to go, {} copied",
                catch_up.checked_extents,
                catch_up.waiting_extents,
                human(catch_up.copied_bytes)
            ));
        }
        reasons.extend(catch_up.left_ms.map(|left| format!("{} left", scrub::time(left))));
    }
    reasons.join(", ")
}

#[cfg(test)]
mod tests {
    use lunette_control::api::admin::CatchUp;

    use super::*;

    #[test]
    fn progress_is_told_in_words() {
        // Guards what operators read of a disk that is out, or on its way back.
        let out = CatchUp { behind_partitions: 4, partitions: 4, ..CatchUp::default() };
        let back = CatchUp {
            behind_partitions: 2,
            partitions: 4096,
            checked_extents: 30,
            waiting_extents: 10,
            copied_bytes: 3 << 20,
            left_ms: Some(61_000),
        };
        let disk = |reason: &str, catch_up| Answer { reason: reason.into(), catch_up, ..Answer::default() };
        assert_eq!(reason(&disk("", None)), "");
        assert_eq!(reason(&disk("it broke", Some(out))), "it broke, 4 of 4 partitions behind");
        let text = reason(&disk("", Some(back)));
        assert!(text.starts_with("2 of 4096 partitions behind, 30 extents looked at, 10 to go, 3"), "{text}");
        assert!(text.ends_with("MiB copied, 1m01s left"), "{text}");
    }
}

//! `lunette disk scrub`.

use anyhow::{Result, bail};
use lunette_control::api::admin::{Disk, ListDisksRequest, Scrub, ScrubDiskRequest};

use super::{Connection, json};
use crate::args::DiskScrub;
use crate::output::{Format, Table};
use crate::size::human;

pub(super) async fn run(command: DiskScrub, connection: &Connection, format: Format) -> Result<()> {
    match command.disk {
        Some(disk) if !command.status => {
            let rate_bytes = command.rate.map_or(0, |rate| rate.bytes());
            let answer = connection.disks().scrub(ScrubDiskRequest { disk, rate_bytes }).await;
            let disk = answer.map_err(|status| connection.refused(&status))?.into_inner();
            format.print(|| begun(&disk), || json::disk(&disk));
        }
        which => {
            let answer = connection.disks().list(ListDisksRequest {}).await;
            let mut disks = answer.map_err(|status| connection.refused(&status))?.into_inner().disks;
            if let Some(id) = which {
                disks.retain(|disk| disk.id == id);
                if disks.is_empty() {
                    bail!("there is no disk-{id}");
                }
            }
            format.print(|| table(&disks).text(), || json::disks(&disks));
        }
    }
    Ok(())
}

fn begun(disk: &Disk) -> String {
    let Disk { id, node, .. } = disk;
    let scrub = disk.scrub.unwrap_or_default();
    let (pass, total) = (scrub.pass, human(scrub.total_bytes));
    let rate = rate(&scrub);
    format!(
        "disk {id} of {node}: pass {pass} has begun, {total} to look at, {rate}\n\
         `lunette disk scrub --status` shows how far it is\n"
    )
}

fn table(disks: &[Disk]) -> Table {
    let headings = [
        ">DISK",
        "NODE",
        ">PASS",
        "STATE",
        ">DONE",
        "RATE",
        ">LEFT",
        ">CHECKED",
        ">FOUND",
        ">LOST",
        ">TORN",
        ">MISDIRECTED",
        ">STALE",
        ">UNREADABLE",
        ">REPAIRED",
    ];
    let mut table = Table::new(&headings);
    for disk in disks {
        // Nobody knows what its node does not say.
        let Some(scrub) = &disk.scrub else {
            let mut cells: [String; 15] = std::array::from_fn(|_| String::new());
            cells[0] = disk.id.to_string();
            cells[1].clone_from(&disk.node);
            cells[3].clone_from(&disk.state);
            table.row(cells);
            continue;
        };
        let damaged = scrub.damaged.unwrap_or_default();
        table.row([
            disk.id.to_string(),
            disk.node.clone(),
            scrub.pass.to_string(),
            state(scrub).to_owned(),
            done(scrub),
            if scrub.pass == 0 { String::new() } else { rate(scrub) },
            scrub.left_ms.filter(|_| scrub.running).map(time).unwrap_or_default(),
            scrub.checked_blocks.to_string(),
            scrub.found_blocks.to_string(),
            damaged.lost.to_string(),
            damaged.torn.to_string(),
            damaged.misdirected.to_string(),
            damaged.stale.to_string(),
            damaged.unreadable.to_string(),
            scrub.repaired_blocks.to_string(),
        ]);
    }
    table
}

fn state(scrub: &Scrub) -> &'static str {
    match (scrub.pass, scrub.running) {
        (0, _) => "waiting",
        (_, true) => "running",
        (_, false) => "done",
    }
}

fn done(scrub: &Scrub) -> String {
    let percent = match scrub.done_bytes.saturating_mul(100).checked_div(scrub.total_bytes) {
        Some(percent) => percent.min(100),
        // Of nothing, all was looked at.
        None if scrub.pass > 0 && !scrub.running => 100,
        None => 0,
    };
    format!("{percent}%")
}

fn rate(scrub: &Scrub) -> String {
    match scrub.rate_bytes {
        0 => "as fast as possible".to_owned(),
        rate => format!("{}/s", human(rate)),
    }
}

/// A time in the two units that fit.
pub(super) fn time(ms: u64) -> String {
    let seconds = ms.div_ceil(1000);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use lunette_control::api::admin::Damage;

    use super::*;

    #[test]
    fn a_pass_is_told_in_one_row() {
        // Guards what operators read: progress of a running pass, of a finished one, and of a disk nobody knows of.
        let scrub = Scrub {
            pass: 2,
            running: true,
            done_bytes: 64 << 20,
            total_bytes: 256 << 20,
            rate_bytes: 1 << 20,
            left_ms: Some(192_000),
            checked_blocks: 9,
            found_blocks: 4,
            damaged: Some(Damage { torn: 3, ..Damage::default() }),
            repaired_blocks: 1,
            ..Scrub::default()
        };
        let finished = Scrub { pass: 1, ..Scrub::default() };
        let disk =
            |id, scrub| Disk { id, node: "n".into(), state: "failed".into(), scrub, ..Disk::default() };
        let disks =
            [disk(1, Some(scrub)), disk(2, Some(finished)), disk(3, Some(Scrub::default())), disk(4, None)];
        let text = table(&disks).text();
        let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        let first = [
            "1", "n", "2", "running", "25%", "1.0", "MiB/s", "3m12s", "9", "4", "0", "3", "0", "0", "0", "1",
        ];
        let joined = |cells: &[&str]| cells.join(" ").replace("1.0 MiB", "1MiB").replace("1 MiB", "1MiB");
        assert_eq!(joined(&rows[1]), joined(&first));
        assert_eq!(rows[2][3..5], ["done", "100%"]);
        assert_eq!(rows[3][3..5], ["waiting", "0%"]);
        assert!(rows[4].contains(&"failed"), "{text}");
    }

    #[test]
    fn times_are_told_in_two_units() {
        // Guards the estimate against units that nobody reads.
        let cases =
            [(1, "1s"), (59_000, "59s"), (61_000, "1m01s"), (3_660_000, "1h01m"), (90_000_000, "1d01h")];
        for (ms, text) in cases {
            assert_eq!(time(ms), text);
        }
    }
}

//! What a drain of a node or a disk moves, as text and as JSON.

use lunette_control::api::admin::{DiskMoves, DrainResponse};
use serde_json::{Value, json as value};

use crate::args::Drain;
use crate::output::Table;
use crate::size::human;

/// What happens, or would.
pub(super) fn text(what: &str, how: Drain, answer: &DrainResponse) -> String {
    let done = match how {
        Drain { dry_run: true, off: false } => "would be drained",
        Drain { dry_run: true, off: true } => "would not be drained any more",
        Drain { dry_run: false, off: false } => "is being drained",
        Drain { dry_run: false, off: true } => "is not drained any more",
    };
    let mut text = format!("{what} {done}: {} moves, about {}\n", answer.moves, human(answer.bytes));
    if !answer.disks.is_empty() {
        text.push_str(&table(&answer.disks).text());
    }
    text
}

fn table(disks: &[DiskMoves]) -> Table {
    let mut table = Table::new(&[">DISK", "NODE", ">OUT", ">BYTES-OUT", ">IN", ">BYTES-IN", ">FREE"]);
    for disk in disks {
        table.row([
            disk.disk.to_string(),
            disk.node.clone(),
            disk.moves_out.to_string(),
            human(disk.bytes_out),
            disk.moves_in.to_string(),
            human(disk.bytes_in),
            human(disk.free_bytes),
        ]);
    }
    table
}

pub(super) fn json(answer: &DrainResponse) -> Value {
    let disk = |disk: &DiskMoves| {
        value!({
            "disk": disk.disk, "node": disk.node, "moves_out": disk.moves_out, "bytes_out": disk.bytes_out,
            "moves_in": disk.moves_in, "bytes_in": disk.bytes_in, "free_bytes": disk.free_bytes,
        })
    };
    let disks: Vec<Value> = answer.disks.iter().map(disk).collect();
    value!({ "moves": answer.moves, "bytes": answer.bytes, "disks": disks })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_done_is_not_said_to_be() {
        // Guards against a dry run that reads like the real thing.
        let disk = DiskMoves { disk: 3, node: "node3".into(), moves_out: 64, ..DiskMoves::default() };
        let answer = DrainResponse { moves: 64, bytes: 1 << 30, disks: vec![disk] };
        let how = |dry_run, off| text("node3", Drain { dry_run, off }, &answer);
        assert!(
            how(true, false).starts_with("node3 would be drained: 64 moves, about 1"),
            "{}",
            how(true, false)
        );
        assert!(how(false, true).starts_with("node3 is not drained any more"));
        assert_eq!(how(true, false).lines().count(), 3);
    }
}

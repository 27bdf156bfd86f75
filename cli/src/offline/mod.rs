//! `lunette disk inspect` and `lunette disk check`: a look at a disk of this machine that nobody uses.
//!
//! Neither asks a cluster, and neither changes anything: they are for when a node does not start.

mod json;

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use lunette_storage_node::inspect::{self, Query};

use crate::args::{DiskCheck, DiskInspect};
use crate::output::Format;
use crate::size::human;

/// How often the line of progress changes.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// Shows what is on a disk.
pub(crate) fn inspect(command: &DiskInspect, format: Format) -> Result<()> {
    let extent = command.extent.map(|extent| extent.0);
    let query = Query { wal: command.wal, unit: command.unit, extent };
    let report = inspect::inspect(&command.path, &query)?;
    format.print(|| format!("{report}\n"), || json::report(&report));
    Ok(())
}

/// Reads all of a disk. One that is damaged is an error, after the report of what.
pub(crate) fn check(command: &DiskCheck, format: Format) -> Result<()> {
    let mut progress = Progress::new(io::stderr().is_terminal());
    let checked = inspect::check(&command.path, &mut |done, total| progress.tell(done, total));
    progress.end();
    let report = checked?;
    format.print(|| format!("{report}\n"), || json::check(&report));
    if !report.is_clean() {
        bail!("{} is damaged; replace the disk, the other copies have what it lacks", command.path.display());
    }
    Ok(())
}

/// A line on a terminal that is written over; nothing anywhere else.
struct Progress {
    shown: bool,
    next: Option<Instant>,
}

impl Progress {
    fn new(terminal: bool) -> Self {
        Self { shown: false, next: terminal.then(Instant::now) }
    }

    fn tell(&mut self, done_bytes: u64, total_bytes: u64) {
        let now = Instant::now();
        if self.next.is_some_and(|next| next <= now) {
            self.next = Some(now + PROGRESS_INTERVAL);
            self.shown = true;
            // Nobody has to see it.
            let _ = write!(io::stderr().lock(), "\r\u{1b}[K{} of {}", human(done_bytes), human(total_bytes));
        }
    }

    fn end(&self) {
        if self.shown {
            let _ = write!(io::stderr().lock(), "\r\u{1b}[K");
        }
    }
}

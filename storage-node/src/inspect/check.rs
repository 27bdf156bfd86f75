//! Checking a whole disk.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use lunette_proto::ids::ExtentId;
use lunette_proto::limits::BLOCK_BYTES;

use super::overlay::Overlay;
use crate::engine::DiskError;
use crate::store::descriptor::UNIT_BLOCKS;
use crate::store::layout::UNIT_BYTES;
use crate::store::view::Bad;
use crate::store::{Damage, Identity, Recovered, Store};

/// Bad blocks that a report names; more are only counted.
const NAMED_MAX: usize = 100;

/// What a check found.
#[derive(Clone, Debug)]
pub struct CheckReport {
    /// The file or device.
    pub path: PathBuf,
    /// Which disk.
    pub identity: Identity,
    /// What opening it would do.
    pub recovered: Recovered,
    /// Extents.
    pub extents: u64,
    /// Units in use.
    pub units: u64,
    /// Units of the disk.
    pub units_total: u64,
    /// Units that only snapshots see.
    pub kept: u64,
    /// Changes that are prepared, each with a unit of its own.
    pub prepared: u64,
    /// What counts, pages and extents do not agree on, if they do not: units that nothing reaches, or that are
    /// used twice.
    pub disagreement: Option<String>,
    /// Bad blocks, by what happened to them.
    pub bad: BTreeMap<String, u64>,
    /// The first of them: extent, block, what happened.
    pub named: Vec<(ExtentId, u32, Damage)>,
}

impl CheckReport {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.bad.is_empty() && self.disagreement.is_none() && self.recovered.lost_blocks == 0
    }
}

/// Checks the disk at `path`, which must not be in use: its metadata, that what is allocated is what can be reached, and
/// every block. `progress` is told the bytes done and the bytes in all. Changes nothing.
///
/// # Errors
/// There is no disk, it is in use, or it is so damaged that it cannot be opened: the error says where.
pub fn check(path: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<CheckReport, DiskError> {
    let file = crate::store::format::open_read_only(path)?;
    let name = file.path.clone();
    let disk = Overlay::new(file).map_err(DiskError::io(&name, "ask for its size"))?;
    let (store, recovered) = Store::open(disk).map_err(|error| error.at(&name))?;
    let view = store.view();
    let (ids, units) = {
        let state = view.state.read();
        let units = state.extents.iter().map(|(_, extent)| extent.all_units().count() as u64).sum();
        let mut ids = state.extents.iter().map(|(key, _)| key.extent).collect::<Vec<_>>();
        ids.dedup();
        (ids, units)
    };
    let mut report = CheckReport {
        path: name,
        identity: store.identity(),
        recovered,
        extents: ids.len() as u64,
        units,
        units_total: u64::from(view.layout.units),
        kept: 0,
        prepared: 0,
        disagreement: store.audit().err(),
        bad: BTreeMap::new(),
        named: Vec::new(),
    };
    let mut done = 0;
    for id in ids {
        let live = view.slots(id).unwrap_or_default().into_iter().map(|slot| (None, slot));
        let kept = view.kept(id);
        report.kept += kept.len() as u64;
        let mut note = |Bad { block, damage }| {
            *report.bad.entry(damage.to_string()).or_default() += 1;
            if report.named.len() < NAMED_MAX {
                report.named.push((id, block, damage));
            }
        };
        for (until, slot) in live.chain(kept.into_iter().map(|(until, slot)| (Some(until), slot))) {
            let first = u32::from(slot) * UNIT_BLOCKS;
            for block in first..first + UNIT_BLOCKS {
                view.verify(id, until, block..block + 1).unwrap_or_else(&mut note);
            }
            done += UNIT_BYTES;
            progress(done, units * UNIT_BYTES);
        }
        if let Err(bad) = view.read_prepared(id) {
            note(bad);
        }
        for _ in view.prepared(id) {
            report.prepared += 1;
            done += UNIT_BYTES;
            progress(done, units * UNIT_BYTES);
        }
    }
    Ok(report)
}

impl fmt::Display for CheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Identity { cluster, disk, uuid } = self.identity;
        writeln!(f, "{}: {disk} of cluster {cluster}, uuid {uuid}", self.path.display())?;
        writeln!(
            f,
            "extents {}, units {} of {} ({UNIT_BYTES} bytes each)",
            self.extents, self.units, self.units_total
        )?;
        if self.kept > 0 {
            writeln!(f, "units that only snapshots see: {}", self.kept)?;
        }
        if self.prepared > 0 {
            writeln!(
                f,
                "changes that are prepared, and neither committed nor rolled back: {}",
                self.prepared
            )?;
        }
        let Recovered { batches, records, torn_tail, lost_blocks } = self.recovered;
        writeln!(f, "journal: {batches} batches with {records} records are still to be applied")?;
        if torn_tail {
            writeln!(f, "journal: its last batch is torn; nobody was told of it, and it does not count")?;
        }
        if lost_blocks > 0 {
            writeln!(f, "journal: the data of {lost_blocks} blocks is damaged")?;
        }
        if let Some(disagreement) = &self.disagreement {
            writeln!(f, "metadata disagrees: {disagreement}")?;
        }
        for (damage, count) in &self.bad {
            writeln!(f, "bad blocks, {damage}: {count}")?;
        }
        for (id, block, damage) in &self.named {
            writeln!(f, "  {id}, byte {}: {damage}", block * BLOCK_BYTES)?;
        }
        write!(f, "{}", if self.is_clean() { "clean" } else { "not clean" })
    }
}

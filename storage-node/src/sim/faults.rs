//! Every part of a disk, spoiled in every way: what is wrong is found, by name, and nothing wrong is ever returned.
//!
//! A run does some work on a small disk, spoils one thing, and looks: at what readers see, at what the next opening
//! sees, and at what is there after more work. Each look finds what was promised, or is told that it cannot be had.

mod descriptors;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use lunette_proto::ids::ExtentId;
use lunette_proto::node::Durability::Stable;

use super::disk::{Cut, Fault, FaultKind, Image, Kept, SimDisk};
use super::model::Model;
use super::rng::Rng;
use super::world::{self, End, NAMESPACES, Op, World, formatted};
use crate::store::chains::LIVE;
use crate::store::layout::{DESCRIPTOR_BYTES, PAGE_BYTES, UNIT_BYTES};
use crate::store::wal::Header;
use crate::store::{Layout, Store};

/// Runs for each part and way.
const RUNS: u64 = 60;

/// Parts of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    SuperblockA,
    SuperblockB,
    WalHeader,
    WalRecords,
    WalData,
    Area,
    Page,
    Descriptor,
    Unit,
    /// What is prepared: the descriptor and the data.
    Shadow,
    /// The same of what only snapshots see.
    Kept,
}

const PARTS: [Part; 11] = [
    Part::SuperblockA,
    Part::SuperblockB,
    Part::WalHeader,
    Part::WalRecords,
    Part::WalData,
    Part::Area,
    Part::Page,
    Part::Descriptor,
    Part::Unit,
    Part::Shadow,
    Part::Kept,
];

/// Ways to spoil it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    BitFlip,
    Lost,
    Misdirected,
    Stale,
    ReadError,
    WriteError,
    SyncError,
    NoSpace,
}

const WAYS: [Way; 8] = [
    Way::BitFlip,
    Way::Lost,
    Way::Misdirected,
    Way::Stale,
    Way::ReadError,
    Way::WriteError,
    Way::SyncError,
    Way::NoSpace,
];

/// What came of it.
#[derive(Clone, Copy, Debug, Default)]
struct Outcomes {
    runs: u64,
    /// The disk was not opened, or failed in use.
    refused: u64,
    fenced: u64,
    /// Reads said that it is corrupt.
    corrupt: u64,
    /// The newest batch was dropped as torn.
    torn_tail: u64,
    /// The newest batch never reached the medium, and nothing on it says so.
    lost_tail: u64,
    /// There was no room, and there was after it.
    no_space: u64,
    /// Everything was right all the time: what was spoiled was not needed, or is there twice.
    right: u64,
    /// It was nothing that could be spoiled, or came to nothing.
    missed: u64,
    repaired: u64,
}

impl fmt::Display for Outcomes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { runs, refused, fenced, corrupt, torn_tail, lost_tail, no_space, right, missed, repaired } =
            self;
        write!(
            f,
            "{runs:5} {refused:8} {fenced:7} {corrupt:8} {repaired:9} {torn_tail:10} {lost_tail:10} {no_space:9} {right:6} {missed:7}"
        )
    }
}

impl Part {
    fn range(self, layout: &Layout) -> Range<u64> {
        let superblock = |copy| Layout::superblock(copy)..Layout::superblock(copy) + PAGE_BYTES;
        match self {
            Self::SuperblockA => superblock(0),
            Self::SuperblockB => superblock(1),
            Self::WalHeader | Self::WalRecords | Self::WalData => {
                layout.wal_offset..layout.wal_offset + layout.wal_bytes
            }
            Self::Area => layout.area_offsets[0]..layout.area_offsets[1] + layout.area_bytes,
            Self::Page => layout.page(0, 0)..layout.page(layout.pages - 1, 1) + PAGE_BYTES,
            Self::Descriptor => layout.descriptor(0)..layout.descriptor(layout.units - 1) + DESCRIPTOR_BYTES,
            Self::Unit => layout.unit(0)..layout.total_bytes,
            Self::Shadow | Self::Kept => layout.descriptor(0)..layout.total_bytes,
        }
    }

    /// Sectors on `image` that hold something of this part.
    fn sectors(self, world: &World, image: &Image) -> Vec<u64> {
        let layout = &layout();
        let is_used = |at: &u64| image.bytes(*at..*at + 512).iter().any(|byte| *byte != 0xA5 && *byte != 0);
        if matches!(self, Self::Shadow | Self::Kept) {
            let state = world.store.view().state.read();
            let units = state.extents.iter().flat_map(|(key, extent)| {
                let shadows = extent.shadows().iter().map(|shadow| shadow.unit.unit);
                let kept = extent.units().filter(|_| key.until != LIVE).map(|(_, unit)| unit.unit);
                if self == Self::Shadow { shadows.collect::<Vec<_>>() } else { kept.collect() }
            });
            let sectors = units.flat_map(|unit| {
                let (descriptor, unit) = (layout.descriptor(unit), layout.unit(unit));
                [descriptor; 16].into_iter().chain((unit..unit + UNIT_BYTES).step_by(512))
            });
            return sectors.filter(is_used).collect();
        }
        if !matches!(self, Self::WalHeader | Self::WalRecords | Self::WalData) {
            return self.range(layout).step_by(512).filter(is_used).collect();
        }
        let mut sectors = Vec::new();
        for place in (0..layout.wal_bytes).step_by(4096) {
            let at = layout.wal_offset + place;
            let Some(header) = Header::peek(&image.bytes(at..at + 4096)) else { continue };
            let (meta, end) = (at + u64::from(header.meta_len), at + header.len());
            match self {
                Self::WalHeader => sectors.push(at),
                Self::WalRecords => sectors.extend((at..meta).step_by(512)),
                _ => sectors.extend((meta.next_multiple_of(4096)..end).step_by(512)),
            }
        }
        sectors.retain(|at| *at < layout.wal_offset + layout.wal_bytes);
        sectors
    }

    /// How far a write goes astray, to another of the same kind.
    fn astray(self, rng: &mut Rng) -> i64 {
        let step = match self {
            Self::Descriptor => DESCRIPTOR_BYTES,
            Self::Unit => [PAGE_BYTES, UNIT_BYTES][rng.below(2) as usize],
            _ => PAGE_BYTES,
        };
        let step = i64::try_from(step).unwrap() * (1 + rng.below(3) as i64);
        if rng.chance(500) { step } else { -step }
    }
}

fn layout() -> Layout {
    Layout::new(2 << 20, 192 << 10).expect("large enough")
}

fn draw(rng: &mut Rng, world: &World) -> Op {
    let (ns, extent) = (rng.below(2) as usize, rng.below(2) * 5);
    let unit = rng.below(4) as u32 * 16;
    match rng.below(29) {
        0 => Op::Zeros { ns, extent, blocks: unit..unit + 16, durability: Stable },
        1 => Op::Zeros { ns, extent, blocks: unit + 2..unit + 6, durability: Stable },
        2 => Op::Seal { ns },
        3 => Op::Watermark { ns, behind: 1 },
        20 => Op::Prepare { ns, extent, blocks: unit..unit + 16, zeros: rng.chance(300) },
        21 | 22 => Op::Prepare { ns, extent, blocks: unit + 2..unit + 6, zeros: rng.chance(300) },
        23 | 24 => Op::Resolve { ns, extent, commit: rng.chance(600) },
        25 if world.model.marks(NAMESPACES[ns]).len() < 2 => Op::Mark { ns },
        27 if rng.chance(300) => Op::Drop { ns, extents: vec![extent] },
        25 | 26 => Op::Unmark { ns, after: rng.below(2) as usize },
        4..=8 => Op::Write { ns, extent, blocks: unit..unit + 16, durability: Stable },
        _ => {
            let first = unit + rng.below(15) as u32;
            Op::Write { ns, extent, blocks: first..first + 1 + rng.below(3) as u32, durability: Stable }
        }
    }
}

fn work(world: &mut World, rng: &mut Rng, steps: u64) -> Result<(), End> {
    for _ in 0..steps {
        let op = draw(rng, world);
        world.step(&op, false)?;
        if world.store.wants_checkpoint() || rng.chance(60) {
            world.checkpoint()?;
        }
    }
    Ok(())
}

fn all_kept(disk: &SimDisk) -> Image {
    disk.now().image(Cut { kept: Kept::Bits(u64::MAX), torn: 0 })
}

struct Run {
    part: Part,
    way: Way,
    rng: Rng,
    out: Outcomes,
    detected: bool,
    /// What could not be read can be read again: nothing may be missing.
    is_whole: bool,
}

impl Run {
    fn go(&mut self) -> Result<(), String> {
        let layout = layout();
        let wrong = |end: End| format!("before anything was spoiled: {end}");
        let mut world = World::open(formatted(&layout), Model::default()).map_err(wrong)?;
        for ns in 0..2 {
            world.step(&Op::Seal { ns }, false).map_err(wrong)?;
        }
        let steps = 10 + self.rng.below(30);
        work(&mut world, &mut self.rng, steps).map_err(wrong)?;
        if self.part == Part::Shadow {
            self.prepare(&mut world).map_err(wrong)?;
        }
        if self.part == Part::Kept {
            self.keep(&mut world).map_err(wrong)?;
        }
        self.out.runs = 1;
        world.is_spoiled = true;
        let struck = match self.way {
            Way::BitFlip | Way::Stale => self.spoil(world)?,
            _ => self.fault(world, &layout)?,
        };
        if !struck {
            self.out.missed = 1;
        } else if !self.detected {
            self.out.right = 1;
        }
        Ok(())
    }

    /// Something is prepared, perhaps in a checkpoint.
    fn prepare(&mut self, world: &mut World) -> Result<(), End> {
        for (ns, extent) in [(0, 0), (0, 5), (1, 0)] {
            let first = self.rng.below(4) as u32 * 16 + self.rng.below(2) as u32 * 3;
            let blocks = if first.is_multiple_of(16) { first..first + 16 } else { first..first + 5 };
            world.step(&Op::Prepare { ns, extent, blocks, zeros: false }, false)?;
        }
        if self.rng.chance(700) { world.checkpoint() } else { Ok(()) }
    }

    /// Snapshots see something else than there is now, perhaps in a checkpoint.
    fn keep(&mut self, world: &mut World) -> Result<(), End> {
        for ns in 0..2 {
            let write = |blocks| Op::Write { ns, extent: 0, blocks, durability: Stable };
            world.step(&write(0..20), false)?;
            world.step(&Op::Mark { ns }, false)?;
            let first = self.rng.below(16) as u32;
            world.step(&write(first..first + 3), false)?;
        }
        if self.rng.chance(700) { world.checkpoint() } else { Ok(()) }
    }

    /// Spoils what lies on the medium: while the store is open, or while it is closed.
    fn spoil(&mut self, mut world: World) -> Result<bool, String> {
        let old = all_kept(&world.disk);
        if self.way == Way::Stale {
            let steps = 1 + self.rng.below(12);
            work(&mut world, &mut self.rng, steps).map_err(|end| end.to_string())?;
        }
        let image = all_kept(&world.disk);
        let bytes = |image: &Image, at: u64| image.bytes(at..at + 512);
        let mut sectors = self.part.sectors(&world, &image);
        if self.way == Way::Stale {
            sectors.retain(|at| bytes(&old, *at) != bytes(&image, *at));
        }
        let Some(at) = self.rng.pick(&sectors) else { return Ok(false) };
        let (offset, bit) = (at + self.rng.below(512), self.rng.below(8) as u8);
        let (way, before) = (self.way, bytes(&old, at));
        let change = |image: &mut Image| match way {
            Way::BitFlip => image.flip(offset, bit),
            _ => image.write(at, &before),
        };
        if self.rng.chance(500) {
            world.disk.spoil(change);
            // Opened again, it has to read what it knew.
            if matches!(self.part, Part::Descriptor | Part::Unit | Part::Shadow | Part::Kept)
                && self.rng.chance(500)
            {
                let store = World::on(world.disk.clone(), world.model.clone())
                    .map_err(|end| format!("not opened: {end}"))?
                    .store;
                world = world.opened(store);
            }
            self.look(&mut world)?;
            self.go_on(world)?;
        } else {
            let mut image = image;
            change(&mut image);
            self.reopen(image, world.model, world.before)?;
        }
        Ok(true)
    }

    /// Lets a call go wrong.
    fn fault(&mut self, mut world: World, layout: &Layout) -> Result<bool, String> {
        let astray = self.part.astray(&mut self.rng);
        let (kind, times) = match self.way {
            Way::Lost => (FaultKind::LostWrite, 1),
            Way::Misdirected => (FaultKind::Misdirected(astray), 1),
            // For ever, or for a moment.
            Way::ReadError => (FaultKind::ReadError, [u32::MAX, 1, 3][self.rng.below(3) as usize]),
            Way::WriteError => (FaultKind::WriteError, 1),
            Way::SyncError => (FaultKind::SyncError, 1),
            _ => (FaultKind::NoSpace, u32::MAX),
        };
        // Of some parts only checkpoints write.
        let is_rare = matches!(self.part, Part::SuperblockA | Part::SuperblockB | Part::Area | Part::Page);
        let skip = match self.way {
            Way::NoSpace => 0,
            _ if is_rare => self.rng.below(2) as u32,
            _ => self.rng.below(6) as u32,
        };
        let range = match kind {
            // One place that cannot be read.
            FaultKind::ReadError => {
                let sectors = self.part.sectors(&world, &all_kept(&world.disk));
                let Some(at) = self.rng.pick(&sectors) else { return Ok(false) };
                at..at + 512
            }
            _ => self.part.range(layout),
        };
        let skip = if kind == FaultKind::ReadError { 0 } else { skip };
        world.disk.inject(Fault { kind, range, skip, times, hits: 0 });
        if kind == FaultKind::ReadError && self.rng.chance(500) {
            // Already when it is opened.
            match World::on(world.disk.clone(), world.model.clone()) {
                Err(_) => {
                    self.out.refused = 1;
                    self.detected = true;
                    let struck = self.heal(&world);
                    self.reopen(all_kept(&world.disk), world.model.clone(), world.model)?;
                    return Ok(struck);
                }
                Ok(opened) => world = world.opened(opened.store),
            }
        }
        let steps = 6 + self.rng.below(20);
        let before = world.no_space;
        let mut worked = work(&mut world, &mut self.rng, steps);
        for _ in 0..if is_rare { 1 + self.rng.below(3) } else { 0 } {
            worked =
                worked.and_then(|()| world.checkpoint()).and_then(|()| work(&mut world, &mut self.rng, 3));
        }
        match worked {
            Err(End::Failed(_)) => {
                self.out.fenced = 1;
                self.detected = true;
                let struck = self.heal(&world);
                // What was acknowledged before is there when the machine starts again; what was being done may be.
                let image =
                    world.disk.now().image(Cut { kept: Kept::Seed(self.rng.next()), torn: self.rng.next() });
                let model = world.noted.clone();
                self.reopen(image, model.clone(), model)?;
                return Ok(struck);
            }
            Err(End::Wrong(what)) => return Err(what),
            Ok(()) => {}
        }
        if kind == FaultKind::ReadError {
            self.look(&mut world)?;
        }
        let struck = self.heal(&world);
        if struck && matches!(kind, FaultKind::WriteError | FaultKind::SyncError) {
            return Err(format!("went on after {kind:?}"));
        }
        if world.no_space > before {
            self.out.no_space = 1;
            self.detected = true;
        }
        self.look(&mut world)?;
        self.go_on(world)?;
        Ok(struck)
    }

    /// Ends the fault; whether it has struck.
    fn heal(&mut self, world: &World) -> bool {
        self.is_whole = self.way == Way::ReadError;
        world.disk.heal() > 0
    }

    /// More work, and opened again.
    fn go_on(&mut self, mut world: World) -> Result<(), String> {
        if self.rng.chance(600) {
            let steps = 1 + self.rng.below(10);
            let resolves = if self.part == Part::Shadow { [(0, 0), (0, 5), (1, 0)].as_slice() } else { &[] };
            let commit = |(ns, extent): &(usize, u64)| {
                world.step(&Op::Resolve { ns: *ns, extent: *extent, commit: true }, false)
            };
            let worked = resolves.iter().try_for_each(commit);
            match worked.and_then(|()| work(&mut world, &mut self.rng, steps)) {
                Ok(()) => self.look(&mut world)?,
                Err(End::Failed(_)) => {
                    self.out.fenced = 1;
                    self.detected = true;
                }
                Err(End::Wrong(what)) => return Err(what),
            }
        }
        // Everything was answered, so that what is not synced may be lost.
        let image = if self.rng.chance(500) {
            all_kept(&world.disk)
        } else {
            world.disk.now().image(Cut { kept: Kept::Seed(self.rng.next()), torn: self.rng.next() })
        };
        self.reopen(image, world.model, world.before)
    }

    /// Opens what is left. `before`: as it was when the newest batch was not yet answered.
    fn reopen(&mut self, image: Image, model: Model, before: Model) -> Result<(), String> {
        let disk = SimDisk::new(image);
        let (mut store, recovered) = match world::open(&disk) {
            Ok(opened) => opened,
            Err(_) => {
                self.out.refused = 1;
                self.detected = true;
                return Ok(());
            }
        };
        store.audit().map_err(|what| format!("audit: {what}"))?;
        match model.check_spoiled(&mut store) {
            Ok(bad) => {
                self.note(&store, &model, &bad)?;
                self.note_kept(model.spoiled_marks(&store)?)?;
            }
            Err(what) => {
                // The newest batch, of which there is nothing, or less than all.
                let is_wal = matches!(self.part, Part::WalHeader | Part::WalRecords | Part::WalData);
                let may_be_lost = is_wal
                    && (recovered.torn_tail || matches!(self.way, Way::Lost | Way::Misdirected | Way::Stale));
                if !may_be_lost {
                    return Err(format!("after opening it ({recovered:?}): {what}"));
                }
                let bad = before
                    .check_spoiled(&mut store)
                    .map_err(|what| format!("after opening it, without a batch ({recovered:?}): {what}"))?;
                self.note(&store, &before, &bad)?;
                if recovered.torn_tail {
                    self.out.torn_tail = 1;
                } else {
                    self.out.lost_tail = 1;
                }
                self.detected = true;
            }
        }
        Ok(())
    }

    /// Reads everything, and repairs what is corrupt.
    fn look(&mut self, world: &mut World) -> Result<(), String> {
        let model = world.model.clone();
        let bad = match model.check_spoiled(&mut world.store) {
            Ok(bad) => bad,
            Err(what) => return Err(format!("in use: {what}")),
        };
        self.note(&world.store, &model, &bad)?;
        self.note_kept(model.spoiled_marks(&world.store)?)?;
        if self.way == Way::ReadError || bad.is_empty() || self.rng.chance(300) {
            return Ok(());
        }
        for (id, block) in &bad {
            match world.repair(*id, *block) {
                Ok(()) => {}
                Err(End::Failed(_)) => {
                    self.out.fenced = 1;
                    return Ok(());
                }
                Err(End::Wrong(what)) => return Err(what),
            }
        }
        let model = world.model.clone();
        let left = model.check_spoiled(&mut world.store)?;
        // What was never written has no version that a repair could bring.
        if let Some(left) = left.iter().find(|(id, block)| model.is_written(*id, *block)) {
            return Err(format!("{left:?} was repaired and is corrupt"));
        }
        self.out.repaired = 1;
        Ok(())
    }

    fn note_kept(&mut self, bad: usize) -> Result<(), String> {
        if bad > 0 {
            self.out.corrupt = 1;
            self.detected = true;
        }
        if bad > 0 && self.is_whole {
            Err("a read that failed has cost a snapshot".to_owned())
        } else {
            Ok(())
        }
    }

    fn note(
        &mut self,
        store: &Store<Arc<SimDisk>>,
        model: &Model,
        bad: &[(ExtentId, u32)],
    ) -> Result<(), String> {
        if bad.is_empty() {
            return Ok(());
        }
        self.out.corrupt = 1;
        self.detected = true;
        if self.is_whole {
            return Err(format!("a read that failed has cost {bad:?}"));
        }
        match (self.part, self.way) {
            (Part::Descriptor, Way::BitFlip) => descriptors::check_salvaged(store, model, bad),
            _ => Ok(()),
        }
    }
}

/// One run, by part, way and number.
fn run(part: Part, way: Way, number: u64) -> Result<Outcomes, String> {
    let seed = part as u64 * 1_000_003 + way as u64 * 10_007 + number * 31;
    let (rng, out) = (Rng::new(seed), Outcomes::default());
    let mut run = Run { part, way, rng, out, detected: false, is_whole: false };
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run.go()));
    let outcome = outcome.unwrap_or_else(|_| Err("panicked".to_owned()));
    outcome.map_err(|what| format!("LUNETTE_SIM_FAULT={part:?}:{way:?}:{number} {what}"))?;
    Ok(run.out)
}

/// The first failure, and after how many runs.
pub(super) fn hunt(numbers: u64) -> Option<(u64, String)> {
    let mut runs = 0;
    for number in 0..numbers {
        for (part, way) in PARTS.into_iter().flat_map(|part| WAYS.map(|way| (part, way))) {
            if let Err(what) = run(part, way, number) {
                return Some((runs, what));
            }
            runs += 1;
        }
    }
    None
}

/// Guards every checksum and every answer to an error of the medium: whatever is spoiled, nothing wrong is returned.
#[test]
fn every_fault_is_found_in_every_part() {
    if let Ok(text) = std::env::var("LUNETTE_SIM_FAULT") {
        let fields: Vec<&str> = text.split(':').collect();
        let part = PARTS.into_iter().find(|part| format!("{part:?}") == fields[0]).expect("a part");
        let way = WAYS.into_iter().find(|way| format!("{way:?}") == fields[1]).expect("a way");
        println!(
            "{:?}",
            run(part, way, fields[2].parse().expect("a number")).unwrap_or_else(|what| panic!("{what}"))
        );
        return;
    }
    let runs = std::env::var("LUNETTE_SIM_FAULTS").map_or(RUNS, |runs| runs.parse().expect("a number"));
    let mut table = BTreeMap::new();
    let mut failures = Vec::new();
    for part in PARTS {
        for way in WAYS {
            let total: &mut Outcomes = table.entry((part, way)).or_default();
            for number in 0..runs {
                match run(part, way, number) {
                    Ok(one) => {
                        total.runs += one.runs;
                        total.refused += one.refused;
                        total.fenced += one.fenced;
                        total.corrupt += one.corrupt;
                        total.torn_tail += one.torn_tail;
                        total.lost_tail += one.lost_tail;
                        total.no_space += one.no_space;
                        total.right += one.right;
                        total.missed += one.missed;
                        total.repaired += one.repaired;
                    }
                    Err(what) => failures.push(what),
                }
            }
        }
    }
    println!(
        "{:12} {:12} {:>5} {:>8} {:>7} {:>8} {:>9} {:>10} {:>10} {:>9} {:>6} {:>7}",
        "part",
        "fault",
        "runs",
        "refused",
        "fenced",
        "corrupt",
        "repaired",
        "torn tail",
        "lost tail",
        "no space",
        "right",
        "missed"
    );
    for ((part, way), outcomes) in &table {
        println!("{:12} {:12} {outcomes}", format!("{part:?}"), format!("{way:?}"));
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

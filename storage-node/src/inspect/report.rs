//! What an inspection says, for people.

use std::fmt;
use std::path::PathBuf;

use lunette_proto::ids::{ExtentId, Snapshot, Version};

use crate::store::Damage;
use crate::store::descriptor::BlockState;
use crate::store::superblock::Superblock;

/// What was found.
#[derive(Clone, Debug)]
pub struct Report {
    /// The file or device.
    pub path: PathBuf,
    /// Superblocks A and B.
    pub superblocks: [SuperblockReport; 2],
    /// The one that counts.
    pub newest: Superblock,
    /// The journal, if it was asked for.
    pub wal: Option<WalReport>,
    /// The unit that was asked for.
    pub unit: Option<UnitReport>,
    /// The extent that was asked for.
    pub extent: Option<ExtentReport>,
}

/// A superblock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SuperblockReport {
    /// It is valid.
    Valid {
        /// The number of its checkpoint.
        checkpoint: u64,
    },
    /// There is something else.
    Missing,
    /// Its checksum is wrong.
    Damaged,
    /// It is of another version.
    Version(u32),
    /// The medium cannot read it.
    Unreadable(String),
}

/// The journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalReport {
    /// Batches that are to be done again when the disk is opened.
    pub batches: Vec<BatchReport>,
    /// The highest number of any batch in the ring.
    pub newest_number: u64,
    /// There is a torn batch at the end, of which nobody was told.
    pub torn: bool,
    /// A batch that was durable is damaged, at this byte of the ring.
    pub damaged_at: Option<u64>,
}

/// A batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchReport {
    /// Where it begins in the ring, in bytes.
    pub place: u64,
    /// Its number.
    pub number: u64,
    /// LSN of its first record.
    pub first_lsn: u64,
    /// Its records.
    pub records: u32,
    /// Blocks of data in it.
    pub data_blocks: u32,
    /// Of these, damaged ones.
    pub damaged_blocks: u32,
}

/// A unit.
#[derive(Clone, Debug)]
pub struct UnitReport {
    /// Which.
    pub unit: u32,
    /// Where its data lies, in bytes from the beginning of the disk.
    pub data_offset: u64,
    /// Where its descriptor lies.
    pub descriptor_offset: u64,
    /// It is that of a change that is prepared.
    pub is_prepared: bool,
    /// Only snapshots see it, up to this one.
    pub kept_until: Option<Snapshot>,
    /// Whose it is: extent, slot, and its descriptor or what happened to that. `None`: it is free.
    pub owner: Option<(ExtentId, u8, Result<DescriptorReport, Damage>)>,
}

/// A descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DescriptorReport {
    /// The newest record in it.
    pub lsn: u64,
    /// Its blocks.
    pub blocks: Vec<BlockReport>,
}

/// A block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockReport {
    /// Its index in the extent.
    pub block: u32,
    /// Its version.
    pub version: Version,
    /// What it is.
    pub state: BlockState,
    /// Its checksum.
    pub checksum: u32,
    /// What happened to its data, if it is not what it should be; of a lost block, if it is not what a damaged
    /// descriptor said of it.
    pub damage: Option<Damage>,
}

/// An extent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtentReport {
    /// Which.
    pub id: ExtentId,
    /// The page of metadata that it is in; `None` if the disk does not have the extent.
    pub page: Option<u32>,
    /// The snapshots of its namespace, oldest first.
    pub snapshots: Vec<Snapshot>,
    /// Its slots; one that was never written is left out. Then what is prepared, and what only snapshots see.
    pub slots: Vec<SlotReport>,
}

/// A slot: 64 KiB of an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotReport {
    /// It has a unit.
    Unit {
        /// Which slot.
        slot: u8,
        /// Which unit.
        unit: u32,
    },
    /// It was discarded.
    Hole {
        /// Which slot.
        slot: u8,
        /// The version of the discard.
        version: Version,
    },
    /// Snapshots see something else than there is now.
    Kept {
        /// Which slot.
        slot: u8,
        /// The newest of them.
        until: Snapshot,
        /// The unit that has it; `None`: zeros.
        unit: Option<u32>,
    },
    /// A change of it is prepared.
    Prepared {
        /// Which slot.
        slot: u8,
        /// The unit that has what it brings.
        unit: u32,
        /// First block in the unit.
        first: u8,
        /// How many.
        blocks: u8,
        /// The version that they get.
        version: Version,
        /// The newest version of the slot's blocks.
        prev: Version,
    },
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Superblock { identity, layout, .. } = &self.newest;
        writeln!(f, "{}", self.path.display())?;
        writeln!(f, "{} of cluster {}, uuid {}", identity.disk, identity.cluster, identity.uuid)?;
        for (name, superblock) in ["A", "B"].iter().zip(&self.superblocks) {
            writeln!(f, "superblock {name}: {superblock}")?;
        }
        let newest = &self.newest;
        writeln!(
            f,
            "checkpoint {}: LSN {}, area {} ({} bytes); the journal goes on at byte {} with batch {}",
            newest.checkpoint,
            newest.lsn,
            newest.area,
            newest.area_len,
            newest.wal_position,
            newest.wal_batch
        )?;
        write!(
            f,
            "layout: journal {}+{}, pages {}+{}, descriptors {}, units {}+{} x 64 KiB",
            layout.wal_offset,
            layout.wal_bytes,
            layout.pages_offset,
            layout.pages,
            layout.descriptors_offset,
            layout.units_offset,
            layout.units
        )?;
        if let Some(wal) = &self.wal {
            write!(f, "\n{wal}")?;
        }
        if let Some(unit) = &self.unit {
            write!(f, "\n{unit}")?;
        }
        if let Some(extent) = &self.extent {
            write!(f, "\n{extent}")?;
        }
        Ok(())
    }
}

impl fmt::Display for SuperblockReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Valid { checkpoint } => write!(f, "valid, checkpoint {checkpoint}"),
            Self::Missing => write!(f, "none"),
            Self::Damaged => write!(f, "damaged"),
            Self::Version(version) => write!(f, "of format version {version}"),
            Self::Unreadable(error) => write!(f, "unreadable: {error}"),
        }
    }
}

impl fmt::Display for WalReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "journal: {} batches to apply, newest in the ring {}",
            self.batches.len(),
            self.newest_number
        )?;
        for batch in &self.batches {
            write!(
                f,
                "\n  batch {} at {}: LSN {}, {} records, {} blocks of data",
                batch.number, batch.place, batch.first_lsn, batch.records, batch.data_blocks
            )?;
            if batch.damaged_blocks > 0 {
                write!(f, ", {} of them damaged", batch.damaged_blocks)?;
            }
        }
        if self.torn {
            write!(f, "\n  then a torn batch, of which nobody was told")?;
        }
        if let Some(place) = self.damaged_at {
            write!(f, "\n  then a damaged batch that was durable, at {place}")?;
        }
        Ok(())
    }
}

impl fmt::Display for UnitReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "unit {}: data at {}, descriptor at {}",
            self.unit, self.data_offset, self.descriptor_offset
        )?;
        if self.is_prepared {
            write!(f, ", prepared")?;
        }
        if let Some(until) = self.kept_until {
            write!(f, ", kept until {until}")?;
        }
        match &self.owner {
            None => write!(f, ", free"),
            Some((id, slot, Err(damage))) => write!(f, ", slot {slot} of {id}; its descriptor is {damage}"),
            Some((id, slot, Ok(descriptor))) => {
                write!(f, ", slot {slot} of {id}; LSN {}", descriptor.lsn)?;
                for block in &descriptor.blocks {
                    write!(f, "\n  block {}: {:?} {}", block.block, block.state, block.version)?;
                    if matches!(block.state, BlockState::Data | BlockState::Lost) {
                        write!(f, " {:08x}", block.checksum)?;
                    }
                    if block.state == BlockState::Lost && block.damage.is_none() {
                        write!(f, " as the damaged descriptor had it")?;
                    }
                    if let Some(damage) = block.damage {
                        write!(f, " {damage}")?;
                    }
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for ExtentReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.page {
            Some(page) => write!(f, "{}: page {page}", self.id)?,
            None if self.slots.is_empty() => write!(f, "{}: not on this disk", self.id)?,
            None => write!(f, "{}: only snapshots see it", self.id)?,
        }
        if !self.snapshots.is_empty() {
            write!(f, ", snapshots {:?}", self.snapshots)?;
        }
        for slot in &self.slots {
            match slot {
                SlotReport::Unit { slot, unit } => write!(f, "\n  slot {slot}: unit {unit}")?,
                SlotReport::Hole { slot, version } => write!(f, "\n  slot {slot}: discarded, {version}")?,
                SlotReport::Kept { slot, until, unit: Some(unit) } => {
                    write!(f, "\n  slot {slot}: kept until {until}: unit {unit}")?;
                }
                SlotReport::Kept { slot, until, unit: None } => {
                    write!(f, "\n  slot {slot}: kept until {until}: zeros")?;
                }
                SlotReport::Prepared { slot, unit, first, blocks, version, prev } => write!(
                    f,
                    "\n  slot {slot}: prepared {version} after {prev}: {blocks} blocks from {first} on, unit {unit}"
                )?,
            }
        }
        Ok(())
    }
}

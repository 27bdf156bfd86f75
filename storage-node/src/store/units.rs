//! Allocation units: how often each is used, and which are free.
//!
//! Nothing of this is on the disk: it follows from the extents, so that what is allocated is what can be
//! reached. A unit that was given back is not free before a checkpoint holds that: until then a record that
//! can be replayed may name what it was.

use std::io::{self, ErrorKind};

use super::disk::Disk;
use super::layout::{Layout, UNIT_BYTES};

/// Units whose room is asked of the medium at a time.
const READY_RUN: u32 = 256;
/// Units that keep their room when they are free, for those that come next.
const READY_MAX: usize = if cfg!(test) { 2 } else { 1024 };
/// Units kept for overwrites, discards and repairs on a full disk, at most: 64 MiB.
const RESERVE_MAX: u32 = 1024;

/// Why there is no unit.
#[derive(Debug)]
pub(crate) enum NoUnit {
    /// The disk is full.
    Full,
    /// There will be some after a checkpoint.
    AfterCheckpoint,
    /// The medium has failed.
    Failed(io::Error),
}

/// What a unit is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// More data than before; leaves the reserve alone.
    Growth,
    /// An overwrite, a discard or a repair.
    Spare,
}

/// Units of a disk.
#[derive(Clone, Debug)]
pub(crate) struct Units {
    counts: Vec<u16>,
    free: Bits,
    /// Free units that the medium has room for, as far as is known.
    ready: Bits,
    free_count: u32,
    ready_count: usize,
    allocated: u32,
    /// Units that may be allocated.
    limit: u32,
    cursor: u32,
    /// Given back since the last checkpoint began.
    released: Vec<u32>,
    /// Given back before the checkpoint that is running.
    releasing: Vec<u32>,
}

impl Units {
    /// All free but those that `used` names, as often as it names them.
    pub(crate) fn new(units: u32, used: impl Iterator<Item = u32>) -> Self {
        let mut counts = vec![0u16; units as usize];
        let mut allocated = 0;
        for unit in used {
            let count = &mut counts[unit as usize];
            allocated += u32::from(*count == 0);
            *count = count.saturating_add(1);
        }
        let mut free = Bits::new(units);
        (0..units).filter(|unit| counts[*unit as usize] == 0).for_each(|unit| free.set(unit, true));
        Self {
            counts,
            free,
            ready: Bits::new(units),
            free_count: units - allocated,
            ready_count: 0,
            allocated,
            limit: units,
            cursor: 0,
            released: Vec::new(),
            releasing: Vec::new(),
        }
    }

    pub(crate) fn set_limit(&mut self, limit: u32) {
        self.limit = limit.min(u32::try_from(self.counts.len()).unwrap_or(u32::MAX));
    }

    pub(crate) fn limit(&self) -> u32 {
        self.limit
    }

    fn reserve(&self) -> u32 {
        (self.limit / 50 + 2).min(RESERVE_MAX)
    }

    pub(crate) fn allocated(&self) -> u32 {
        self.allocated
    }

    /// Units that wait for a checkpoint.
    pub(crate) fn waiting(&self) -> usize {
        self.released.len() + self.releasing.len()
    }

    pub(crate) fn free_count(&self) -> u32 {
        self.free_count
    }

    /// Takes `count` free units, next to each other where possible, that the medium has room for.
    pub(crate) fn allocate<D: Disk>(
        &mut self,
        disk: &D,
        layout: &Layout,
        count: u32,
        purpose: Purpose,
    ) -> Result<Vec<u32>, NoUnit> {
        let limit = match purpose {
            Purpose::Growth => self.limit.saturating_sub(self.reserve()),
            Purpose::Spare => self.limit,
        };
        if self.allocated.saturating_add(count) > limit {
            return Err(NoUnit::Full);
        }
        if self.free_count < count {
            return Err(self.none());
        }
        let mut taken = Vec::with_capacity(count as usize);
        while taken.len() < count as usize {
            // Those that have their room come first: what the file system would have to do for others takes time.
            let next = self.ready.next_set(self.cursor).or_else(|| self.free.next_set(self.cursor));
            let Some(unit) = next else { break };
            if !self.ready.get(unit)
                && let Err(error) = self.make_ready(disk, layout, unit)
            {
                taken.into_iter().for_each(|unit| self.put_back(unit));
                return Err(match error.kind() {
                    ErrorKind::StorageFull => self.none(),
                    _ => NoUnit::Failed(error),
                });
            }
            self.free.set(unit, false);
            self.ready.set(unit, false);
            self.ready_count -= 1;
            self.free_count -= 1;
            self.counts[unit as usize] = 1;
            self.allocated += 1;
            self.cursor = unit + 1;
            taken.push(unit);
        }
        Ok(taken)
    }

    fn none(&self) -> NoUnit {
        if self.waiting() > 0 { NoUnit::AfterCheckpoint } else { NoUnit::Full }
    }

    /// Asks the medium for room for `unit` and free ones behind it, and for their descriptors.
    fn make_ready<D: Disk>(&mut self, disk: &D, layout: &Layout, unit: u32) -> io::Result<()> {
        let run = (unit..layout.units.min(unit.saturating_add(READY_RUN)))
            .take_while(|unit| self.free.get(*unit) && !self.ready.get(*unit))
            .count();
        let mut run = u32::try_from(run).unwrap_or(READY_RUN);
        loop {
            let room = disk
                .reserve(layout.descriptor(unit), layout.descriptor(unit + run) - layout.descriptor(unit))
                .and_then(|()| disk.reserve(layout.unit(unit), u64::from(run) * UNIT_BYTES));
            match room {
                Err(error) if error.kind() == ErrorKind::StorageFull && run > 1 => run = 1,
                Err(error) => return Err(error),
                Ok(()) => break,
            }
        }
        for unit in unit..unit + run {
            self.ready.set(unit, true);
            self.ready_count += 1;
        }
        Ok(())
    }

    /// Gives back units that were taken and not used: the next to be taken.
    pub(crate) fn put_back(&mut self, unit: u32) {
        self.cursor = self.cursor.min(unit);
        self.counts[unit as usize] = 0;
        self.allocated -= 1;
        self.free.set(unit, true);
        self.free_count += 1;
        self.ready.set(unit, true);
        self.ready_count += 1;
    }

    /// One use less; without any, the unit is free after the next checkpoint.
    pub(crate) fn release(&mut self, unit: u32) {
        let count = &mut self.counts[unit as usize];
        assert!(*count > 0, "a unit is given back as often as it was taken");
        *count -= 1;
        if *count == 0 {
            self.allocated -= 1;
            self.released.push(unit);
            if planted!(ReuseBeforeCheckpoint) {
                self.releasing.append(&mut self.released);
                self.finish_checkpoint(&[]);
            }
        }
    }

    /// What was given back so far will be free once this checkpoint is durable. The units that the medium may take back then.
    pub(crate) fn begin_checkpoint(&mut self) -> Vec<u32> {
        self.releasing = std::mem::take(&mut self.released);
        self.releasing.sort_unstable();
        let keep = READY_MAX.saturating_sub(self.ready_count).min(self.releasing.len());
        self.releasing[keep..].to_vec()
    }

    /// The checkpoint is durable, and the medium has taken back what it was told to.
    pub(crate) fn finish_checkpoint(&mut self, taken_back: &[u32]) {
        for unit in std::mem::take(&mut self.releasing) {
            self.free.set(unit, true);
            self.free_count += 1;
            if taken_back.binary_search(&unit).is_err() {
                self.ready.set(unit, true);
                self.ready_count += 1;
            }
        }
    }

    /// Checks the counts against the uses that `used` names.
    pub(crate) fn audit(&self, used: impl Iterator<Item = u32>) -> Result<(), String> {
        let expected = Self::new(u32::try_from(self.counts.len()).unwrap_or(u32::MAX), used);
        if expected.counts != self.counts {
            let unit = (0..).zip(&expected.counts).zip(&self.counts).find(|((_, a), b)| a != b);
            return Err(format!("unit, uses and count differ: {unit:?}"));
        }
        if expected.allocated != self.allocated {
            return Err(format!("{} units are used, {} are counted", expected.allocated, self.allocated));
        }
        let waiting = u32::try_from(self.waiting()).unwrap_or(u32::MAX);
        if self.free.count() != self.free_count || expected.free_count != self.free_count + waiting {
            return Err(format!(
                "{} units are not used; {} are free and {waiting} will be",
                expected.free_count, self.free_count
            ));
        }
        Ok(())
    }
}

/// A set of numbers below a limit.
#[derive(Clone, Debug)]
struct Bits(Vec<u64>);

impl Bits {
    fn new(len: u32) -> Self {
        Self(vec![0; (len as usize).div_ceil(64)])
    }

    fn get(&self, bit: u32) -> bool {
        self.0[bit as usize / 64] >> (bit % 64) & 1 == 1
    }

    fn set(&mut self, bit: u32, on: bool) {
        let word = &mut self.0[bit as usize / 64];
        if on { *word |= 1 << (bit % 64) } else { *word &= !(1 << (bit % 64)) }
    }

    fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// The first member from `from` on, or from 0 on.
    fn next_set(&self, from: u32) -> Option<u32> {
        let first = from as usize / 64;
        let masked = self.0.get(first).map(|word| word & (u64::MAX << (from % 64)));
        if let Some(word) = masked.filter(|word| *word != 0) {
            return u32::try_from(first * 64).ok().map(|base| base + word.trailing_zeros());
        }
        let later = self.0.iter().enumerate().skip(first + 1);
        let (index, word) =
            later.chain(self.0.iter().enumerate().take(first + 1)).find(|(_, word)| **word != 0)?;
        u32::try_from(index * 64).ok().map(|base| base + word.trailing_zeros())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    /// A medium with room for so many bytes.
    struct Room(u64);

    impl Disk for Room {
        fn size_bytes(&self) -> u64 {
            0
        }
        fn read(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
            Ok(())
        }
        fn read_cached(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
            Ok(())
        }
        fn write(&self, _: u64, _: &[Bytes]) -> io::Result<()> {
            Ok(())
        }
        fn write_durable(&self, _: u64, _: &[Bytes]) -> io::Result<()> {
            Ok(())
        }
        fn sync(&self) -> io::Result<()> {
            Ok(())
        }
        fn reserve(&self, offset: u64, len: u64) -> io::Result<()> {
            if offset + len > self.0 { Err(ErrorKind::StorageFull.into()) } else { Ok(()) }
        }
        fn discard(&self, _: u64, _: u64) -> io::Result<()> {
            Ok(())
        }
    }

    fn layout() -> Layout {
        Layout::new(8 << 20, 64 << 10).expect("large enough")
    }

    /// Guards replay: a unit that was given back is not used again before a checkpoint has finished.
    #[test]
    fn free_after_the_checkpoint() {
        let (disk, layout) = (Room(u64::MAX), layout());
        let mut units = Units::new(layout.units, std::iter::empty());
        let all = units.allocate(&disk, &layout, layout.units, Purpose::Spare).expect("free");
        assert_eq!(all, (0..layout.units).collect::<Vec<_>>());
        units.release(7);
        assert!(matches!(units.allocate(&disk, &layout, 1, Purpose::Spare), Err(NoUnit::AfterCheckpoint)));
        let taken_back = units.begin_checkpoint();
        units.release(9);
        assert!(matches!(units.allocate(&disk, &layout, 1, Purpose::Spare), Err(NoUnit::AfterCheckpoint)));
        units.finish_checkpoint(&taken_back);
        assert_eq!(units.allocate(&disk, &layout, 1, Purpose::Spare).expect("free"), [7]);
        units.audit((0..layout.units).filter(|unit| *unit != 9)).expect("in order");
        assert!(units.audit(0..layout.units).is_err());
    }

    /// Guards the reserve: new data does not take the last units; and a medium without room is said to be full.
    #[test]
    fn keeps_a_reserve() {
        let layout = layout();
        let mut units = Units::new(layout.units, std::iter::empty());
        let growth = layout.units - units.reserve();
        assert!(units.allocate(&Room(u64::MAX), &layout, growth + 1, Purpose::Growth).is_err());
        units.allocate(&Room(u64::MAX), &layout, growth, Purpose::Growth).expect("free");
        assert!(matches!(units.allocate(&Room(u64::MAX), &layout, 1, Purpose::Growth), Err(NoUnit::Full)));
        units.allocate(&Room(u64::MAX), &layout, 1, Purpose::Spare).expect("the reserve");

        let mut units = Units::new(layout.units, std::iter::empty());
        let room = Room(layout.unit(3));
        assert!(matches!(units.allocate(&room, &layout, 4, Purpose::Spare), Err(NoUnit::Full)));
        assert_eq!(units.allocate(&room, &layout, 3, Purpose::Spare).expect("room"), [0, 1, 2]);
        units.audit(0..3).expect("in order");
    }

    /// Guards the search for free units, over the borders of words and round the end.
    #[test]
    fn finds_free_units() {
        let mut bits = Bits::new(200);
        [3, 64, 199].into_iter().for_each(|bit| bits.set(bit, true));
        let found = [0, 4, 65, 128, 199, 200].map(|from| bits.next_set(from));
        assert_eq!(found, [Some(3), Some(64), Some(199), Some(199), Some(199), Some(3)]);
        bits.set(199, false);
        assert_eq!(bits.next_set(100), Some(3));
        assert_eq!(Bits::new(10).next_set(0), None);
    }
}

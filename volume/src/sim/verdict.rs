//! What must hold at the end of a run.

use bytes::Bytes;
use lunette_proto::ids::{ExtentId, Namespace};
use lunette_proto::limits::{BLOCK_BYTES, EXTENT_BYTES};
use lunette_proto::map::DiskState;

use super::checker::{self, Effect, Part, SECTORS, STAMP_MAX, Step};
use super::world::{BLOCK, EXTENT, Record, SECTOR, VOLUME, World};
use crate::device::{Command, DEALLOCATED, DeviceError};

impl World {
    /// After all is quiet every member holds the same, nobody else holds anything, and no disk expects to be compared.
    pub(super) fn same_replicas(&mut self) -> Result<(), String> {
        for index in 0..self.size / EXTENT {
            let extent = ExtentId { namespace: Namespace::volume(VOLUME), index };
            let members = self.in_sync(index);
            for block in 0..EXTENT_BYTES / BLOCK_BYTES {
                let mut all = members
                    .iter()
                    .filter(|disk| !self.disks[disk].0.corrupt.contains(&(extent, block)))
                    .map(|disk| (disk, self.disks[disk].0.block(extent, block)));
                if let Some((first, one)) = all.next()
                    && let Some((other, two)) = all.find(|(_, it)| *it != one)
                {
                    return self.fail(format!(
                        "{extent} block {block}: {first} has {} {:?}, {other} has {} {:?}",
                        one.version,
                        one.content.map(|it| it[0]),
                        two.version,
                        two.content.map(|it| it[0]),
                    ));
                }
            }
        }
        for (disk, (model, _)) in &self.disks {
            if let Some(extent) = model.extents().find(|it| !self.in_sync(it.index).contains(disk)) {
                return self.fail(format!("{disk} still has {extent}, which has moved away"));
            }
            if let (DiskState::InSync, Some((extent, block))) = (self.states[disk], model.corrupt.first()) {
                return self.fail(format!("{disk} still has a bad copy of {extent} block {block}"));
            }
            if self.states[disk] == DiskState::InSync && model.dirty_count() > 0 {
                let owner = self.gateways.last().map(|it| &it.owner);
                return self.fail(format!("{disk} still has dirty extents: {model:?}\n{owner:#?}"));
            }
        }
        Ok(())
    }

    /// What takes space in the end is what was said to.
    fn mapped(&self) -> Result<(), String> {
        let last = self.records.iter().rev().find(|record| matches!(record.command, Command::Mapping { .. }));
        let Some(Some(Ok(mapping))) = last.map(|record| &record.outcome) else {
            return self.fail("no mapping in the end");
        };
        let mapping = mapping.concat();
        for at in Self::hot_blocks() {
            let said = mapping[(at / BLOCK) as usize];
            let (extent, block) = self.place(at);
            let mut copies =
                self.in_sync(extent.index).into_iter().map(|disk| self.disks[&disk].0.block(extent, block));
            if copies.any(|copy| copy.content.is_none() != (said == DEALLOCATED)) {
                return self.fail(format!("block at {at} is said to be {said}"));
            }
        }
        Ok(())
    }

    pub(super) fn explain(&mut self) -> Result<(), String> {
        for (id, record) in self.records.iter().enumerate() {
            let reads = matches!(
                record.command,
                Command::Read { .. } | Command::CompareAndWrite { .. } | Command::Or { .. }
            );
            if let (true, Some(Err(DeviceError::Medium { offset }))) = (reads, &record.outcome) {
                return self.fail(format!("command {id} found nothing readable at {offset}"));
            }
            if let Some(Err(DeviceError::OutOfRange)) = &record.outcome
                && !matches!(record.command, Command::Read { offset, .. } if offset == self.size)
            {
                return self.fail(format!("command {id} is not out of range"));
            }
        }
        self.mapped()?;
        self.nothing_is_torn()?;
        for block in Self::hot_blocks() {
            let (steps, names) = self.steps(block)?;
            if let Err(at) = checker::check(&steps) {
                let from = at.saturating_sub(25);
                let tail: Vec<String> =
                    (from..=at).map(|it| format!("  {:?}   {}", steps[it], names[it])).collect();
                return self.fail(format!("block at {block} cannot be explained:\n{}", tail.join("\n")));
            }
        }
        Ok(())
    }

    /// The history of one block.
    pub(super) fn steps(&self, block: u64) -> Result<(Vec<Step>, Vec<String>), String> {
        let mut steps: Vec<(usize, Step, String)> = Vec::new();
        for (id, record) in self.records.iter().enumerate() {
            let op = id as u32;
            let ok = matches!(record.outcome, Some(Ok(_)));
            let Some((effect, fua)) = self.effect(id, block)? else {
                if ok && let Command::Flush = record.command {
                    steps.push((record.called, Step::FlushCall { op }, String::new()));
                    steps.push((record.answered.unwrap_or(0), Step::FlushOk { op }, String::new()));
                }
                continue;
            };
            let sees = matches!(effect, Effect::Read(_) | Effect::Differs(..));
            let (ok, write) = (ok || sees, !sees);
            let step = Step::Call { op, effect };
            steps.push((record.called, step, format!("gateway {}", record.gateway)));
            let durable = write && (fua || !self.config.write_back);
            if let Some(answered) = record.answered {
                let step = if ok { Step::Ok { op, durable } } else { Step::Unknown { op } };
                steps.push((
                    answered,
                    step,
                    format!("{:?}", record.outcome.as_ref().map(|it| it.as_ref().err())),
                ));
            }
        }
        if self.config.write_back {
            steps.extend(self.losses.iter().map(|at| (*at, Step::PowerLoss, String::new())));
        }
        steps.sort_by_key(|(at, ..)| *at);
        let names = steps.iter().map(|(.., name)| name.clone()).collect();
        Ok((steps.into_iter().map(|(_, step, _)| step).collect(), names))
    }

    /// What a command did to a block or saw there, if it did, and whether it asked for stable media.
    fn effect(&self, id: usize, block: u64) -> Result<Option<(Effect, bool)>, String> {
        let Record { command, outcome, .. } = &self.records[id];
        let number = id as u32 + 1;
        let part = |offset: u64, len: u64, of: &dyn Fn(u64) -> Option<u32>| -> Option<Part> {
            let mut part: Part = [None; SECTORS];
            for (sector, slot) in part.iter_mut().enumerate() {
                let at = block + sector as u64 * SECTOR;
                *slot = if (offset..offset + len).contains(&at) { of(at - offset) } else { None };
            }
            part.iter().any(Option::is_some).then_some(part)
        };
        let is_miscompare = matches!(outcome, Some(Err(DeviceError::Miscompare { .. })));
        if matches!(outcome, Some(Err(error)) if error.is_definite() && !is_miscompare) {
            return Ok(None);
        }
        // Where memory was lost, too much may have been there that nobody else has seen.
        if is_miscompare && self.config.write_back && !self.losses.is_empty() {
            return Ok(None);
        }
        let effect = match (command, outcome) {
            (Command::Read { offset, len }, Some(Ok(data))) => {
                for at in (block..block + BLOCK).step_by(SECTOR as usize) {
                    let is_read = (*offset..*offset + u64::from(*len)).contains(&at);
                    if is_read && stamp(data, at - offset).is_none() {
                        return self.fail(format!("read {id}: sector at {at} is torn"));
                    }
                }
                part(*offset, (*len).into(), &|at| stamp(data, at)).map(Effect::Read)
            }
            (Command::Mapping { offset, len }, Some(Ok(data))) => {
                let blocks = (offset + len).div_ceil(BLOCK) - offset / BLOCK;
                if data.concat().len() as u64 != blocks {
                    return self.fail(format!("mapping {id} is not of {blocks} blocks"));
                }
                let at = block.checked_sub(offset - offset % BLOCK).unwrap_or(u64::MAX) / BLOCK;
                let is_zeros =
                    usize::try_from(at).is_ok_and(|at| data.concat().get(at) == Some(&DEALLOCATED));
                is_zeros.then_some(Effect::Read([Some(0); SECTORS]))
            }
            (Command::Read { .. } | Command::Mapping { .. } | Command::Flush, _) => None,
            (Command::Write { offset, data, .. } | Command::WriteAtomic { offset, data }, _) => {
                part(*offset, data.len() as u64, &|_| Some(number)).map(Effect::Write)
            }
            (Command::Zero { offset, len }, _) => part(*offset, *len, &|_| Some(0)).map(Effect::Write),
            (Command::Or { offset, data, .. }, _) => {
                part(*offset, data.len() as u64, &|at| stamp(std::slice::from_ref(data), at)).map(Effect::Or)
            }
            (Command::CompareAndWrite { offset, compare, .. }, outcome) => {
                let len = compare.len() as u64;
                let was = part(*offset, len, &|at| stamp(std::slice::from_ref(compare), at));
                let becomes = part(*offset, len, &|_| Some(number));
                let Some((mut was, becomes)) = was.zip(becomes) else {
                    return Ok(None);
                };
                if let Some(Err(DeviceError::Miscompare { at })) = outcome {
                    if u64::from(*at) % SECTOR > 3 {
                        return self.fail(format!("comparison {id} has seen a torn sector"));
                    }
                    let sector = (offset - block + u64::from(*at)) / SECTOR;
                    // Only what is in front of it was seen.
                    was[sector as usize + 1..].fill(None);
                    Some(Effect::Differs(was, sector as usize))
                } else {
                    Some(Effect::Swap(was, becomes))
                }
            }
        };
        let fua = match command {
            Command::Write { fua, .. } | Command::CompareAndWrite { fua, .. } | Command::Or { fua, .. } => {
                *fua
            }
            Command::WriteAtomic { .. } => true,
            _ => false,
        };
        Ok(effect.map(|effect| (effect, fua)))
    }

    /// What a write changed as a whole is seen as a whole: no read shows a part of it beside what was there before.
    pub(super) fn nothing_is_torn(&self) -> Result<(), String> {
        let layout = self.config.layout;
        let reads: Vec<(usize, u64, Vec<usize>)> = (0..)
            .zip(&self.records)
            .filter_map(|(id, record)| match (&record.command, &record.outcome) {
                (Command::Read { offset, len }, Some(Ok(data))) => {
                    let sectors = (0..u64::from(*len)).step_by(SECTOR as usize);
                    let stamps = sectors.filter_map(|at| Some((stamp(data, at)? & STAMP_MAX) as usize));
                    Some((id, *offset, stamps.collect()))
                }
                _ => None,
            })
            .collect();
        for (id, write) in self.records.iter().enumerate() {
            let (offset, data, bytes) = match &write.command {
                Command::Write { offset, data, fua } if *fua || !self.config.write_back => {
                    (offset, data, layout.unit_bytes())
                }
                Command::WriteAtomic { offset, data } => (offset, data, layout.atomic_bytes()),
                _ => continue,
            };
            let bytes = u64::from(bytes);
            let range = *offset..*offset + data.len() as u64;
            if range.start / bytes != (range.end - 1) / bytes {
                continue;
            }
            for (reader, offset, stamps) in &reads {
                let seen = (*offset..).step_by(SECTOR as usize).zip(stamps);
                let (mine, others): (Vec<_>, Vec<_>) =
                    seen.filter(|(at, _)| range.contains(at)).partition(|(_, stamp)| **stamp == id + 1);
                let Some((new, _)) = mine.first() else {
                    continue;
                };
                if let Some((old, stamp)) =
                    others.iter().find(|(at, stamp)| self.is_older(*at, **stamp, write))
                {
                    return self.fail(format!(
                        "read {reader} tears write {id}: it is at {new}, and at {old} there is {stamp} from before"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Whether what a sector holds was written before a command was called.
    fn is_older(&self, at: u64, stamp: usize, than: &Record) -> bool {
        let before = |record: &Record| record.answered.is_some_and(|answered| answered < than.called);
        match stamp.checked_sub(1) {
            Some(id) => before(&self.records[id]),
            None => self.records.iter().all(|record| match &record.command {
                Command::Zero { offset, len } => !(*offset..offset + len).contains(&at) || before(record),
                _ => true,
            }),
        }
    }
}

/// Which write a sector names, if it is whole.
pub(super) fn stamp(data: &[Bytes], at: u64) -> Option<u32> {
    let mut at = at as usize;
    for part in data {
        if at < part.len() {
            let sector = part.get(at..at + SECTOR as usize)?;
            let (first, rest) = sector.split_first_chunk::<4>()?;
            return rest.chunks(4).all(|it| it == first).then(|| u32::from_le_bytes(*first));
        }
        at -= part.len();
    }
    None
}

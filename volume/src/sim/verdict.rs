//! What must hold at the end of a run.

use bytes::Bytes;
use lunette_proto::ids::{ExtentId, Namespace};
use lunette_proto::limits::{BLOCK_BYTES, EXTENT_BYTES};
use lunette_proto::map::DiskState;

use super::checker::{self, Part, SECTORS, Step};
use super::world::{BLOCK, EXTENT, SECTOR, VOLUME, World};
use crate::device::{Command, DeviceError};

impl World {
    /// After all is quiet every member holds the same, and no disk expects to be compared.
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

    pub(super) fn explain(&mut self) -> Result<(), String> {
        for (id, record) in self.records.iter().enumerate() {
            if let (Command::Read { .. }, Some(Err(DeviceError::Medium { offset }))) =
                (&record.command, &record.outcome)
            {
                return self.fail(format!("read {id} found nothing readable at {offset}"));
            }
            if let Some(Err(DeviceError::OutOfRange)) = &record.outcome
                && !matches!(record.command, Command::Read { offset, .. } if offset == self.size)
            {
                return self.fail(format!("command {id} is not out of range"));
            }
        }
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
            let failed = matches!(&record.outcome, Some(Err(error)) if error.is_definite());
            let ok = matches!(record.outcome, Some(Ok(_)));
            let (write, range, fua) = match &record.command {
                Command::Read { offset, len } => (false, *offset..*offset + u64::from(*len), false),
                Command::Write { offset, data, fua } => (true, *offset..*offset + data.len() as u64, *fua),
                Command::Zero { offset, len } => (true, *offset..*offset + *len, false),
                Command::Flush => {
                    if ok {
                        steps.push((record.called, Step::FlushCall { op }, String::new()));
                        steps.push((record.answered.unwrap_or(0), Step::FlushOk { op }, String::new()));
                    }
                    continue;
                }
                Command::CompareAndWrite { .. } | Command::Or { .. } | Command::Mapping { .. } => {
                    unreachable!("the simulator does not submit it")
                }
            };
            if failed || range.end <= block || range.start >= block + BLOCK || !(write || ok) {
                continue;
            }
            let mut part: Part = [None; SECTORS];
            for (sector, slot) in part.iter_mut().enumerate() {
                let at = block + sector as u64 * SECTOR;
                if range.contains(&at) {
                    *slot = Some(match (&record.command, &record.outcome) {
                        (Command::Read { offset, .. }, Some(Ok(data))) => match stamp(data, at - offset) {
                            Some(stamp) => stamp,
                            None => return self.fail(format!("read {id}: sector at {at} is torn")),
                        },
                        (Command::Write { .. }, _) => op + 1,
                        _ => 0,
                    });
                }
            }
            let step = if write { Step::Write { op, part } } else { Step::Read { op, part } };
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
}

/// Which write a sector names, if it is whole.
fn stamp(data: &[Bytes], at: u64) -> Option<u32> {
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

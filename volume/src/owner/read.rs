//! Reading: one member in sync at a time, until one has the blocks.

use bytes::{Bytes, BytesMut};
use lunette_proto::ids::DiskId;
use lunette_proto::limits::BLOCK_BYTES;
use lunette_proto::node::{Change, Durability, ReplyBody, RequestBody};

use super::event::Plant;
use super::gaps::fits;
use super::mapping;
use super::op::{Asked, Op, Origin, Phase, Reading, Work};
use super::patch::{Differs, Patch};
use super::view::Members;
use super::{Answer, Owner, What};
use crate::device::DeviceError;

/// Bad blocks that are being rewritten at the same time.
const REPAIRS_MAX: usize = 64;

impl Owner {
    /// Begins to ask for an operation's blocks.
    pub(super) fn read(&mut self, id: usize, from: Members, withdrawing: bool) {
        self.ops[id].phase = Phase::Reading(Reading { from, withdrawing, ..Reading::default() });
        self.ask(id);
    }

    /// Asks the best member that was not found bad; waits if none can be reached.
    pub(super) fn ask(&mut self, id: usize) {
        let Some(Op { origin, extent, work, phase: Phase::Reading(reading), .. }) = self.ops.get(id) else {
            return;
        };
        if reading.asked.is_some() {
            return;
        }
        let mut eligible = self.members(*extent);
        if self.planted(Plant::ReadAnyMember) {
            eligible = self.view.pool.disks().map(|(disk, _)| disk).collect();
        }
        if !reading.from.is_empty() {
            eligible.retain(|disk| reading.from.contains(disk));
        }
        if eligible.is_empty() {
            return;
        }
        let best = eligible
            .iter()
            .copied()
            .filter(|disk| self.is_usable(*disk) && !reading.bad.contains(disk))
            .min_by_key(|disk| {
                let outstanding = self.disks.get(disk).map_or(0, |disk| disk.outstanding);
                let is_slow = reading.slow.contains(disk) || self.is_limping(*disk);
                (is_slow, !self.view.pool.is_local(*disk), outstanding)
            });
        let is_read = matches!(origin, Origin::Command { .. }) && work.is_seen();
        let index = *extent;
        if best.is_some() && is_read {
            // Before the read itself, so that it does not wait for them.
            self.want_grants(index);
        }
        let Some(Op { extent, offset, len, work, phase: Phase::Reading(reading), .. }) = self.ops.get(id)
        else {
            return;
        };
        match best {
            Some(disk) => {
                let (offset, len) = match &reading.pieces {
                    None => (*offset, *len),
                    Some(pieces) => (*offset + blocks_len(pieces), BLOCK_BYTES),
                };
                let (extent, generation) = (self.extent(*extent), self.config.generation);
                let body = if work.asks_versions() {
                    RequestBody::Versions { extent, generation }
                } else {
                    RequestBody::Read { extent, generation, offset, len }
                };
                let tag = self.send(disk, body, What::Read { op: id });
                self.touch(id);
                if let Phase::Reading(reading) = &mut self.ops[id].phase {
                    reading.asked = Some(Asked { disk, tag, since_ms: self.now });
                }
            }
            None if eligible.iter().all(|disk| reading.bad.contains(disk)) => self.exhausted(id),
            None => {}
        }
    }

    /// Notes that something was sent for a command.
    pub(super) fn touch(&mut self, id: usize) {
        if let Origin::Command { command, .. } = self.ops[id].origin {
            self.commands[command].touched = true;
        }
    }

    pub(super) fn read_answered(&mut self, id: usize, disk: DiskId, answer: Answer) {
        let Some(Op { offset, len, work, phase: Phase::Reading(reading), .. }) = self.ops.get_mut(id) else {
            return;
        };
        let is_map = work.asks_versions();
        reading.asked = None;
        let (first, want) = match &reading.pieces {
            None => (*offset, *len),
            Some(pieces) => (*offset + blocks_len(pieces), BLOCK_BYTES),
        };
        match answer {
            Answer::Body(ReplyBody::Data(data)) if data.len() == want as usize && !is_map => {
                if reading.pieces.is_some() {
                    return self.gather(id, &data);
                }
                return self.have(id, data);
            }
            Answer::Body(ReplyBody::Versions(runs)) if is_map && fits(&runs, self.config.generation) => {
                let op = &self.ops[id];
                let mapping = mapping::of_blocks(&runs, op.blocks());
                return match op.work {
                    Work::Atomic { .. } => self.atomic_mapped(id, &mapping),
                    _ => self.finish(id, Ok(mapping)),
                };
            }
            Answer::Body(_) => self.distrust(disk),
            Answer::NoSpace | Answer::Corrupt(_) if is_map => self.rest(disk),
            Answer::Corrupt(at) => {
                let at = if (first..first + want).contains(&at) { at } else { first };
                reading.bad.push(disk);
                if reading.bad_blocks.len() < REPAIRS_MAX && !reading.bad_blocks.contains(&(at / BLOCK_BYTES))
                {
                    reading.bad_blocks.push(at / BLOCK_BYTES);
                }
            }
            Answer::NoSpace => self.rest(disk),
            Answer::Later | Answer::Unknown => {}
        }
        self.ask(id);
    }

    /// One more of the blocks that are gathered one by one.
    fn gather(&mut self, id: usize, block: &[u8]) {
        let Some(Op { len, phase: Phase::Reading(reading), .. }) = self.ops.get_mut(id) else {
            return;
        };
        let Some(pieces) = &mut reading.pieces else {
            return;
        };
        reading.bad.clear();
        pieces.extend_from_slice(block);
        if pieces.len() == *len as usize {
            let data = std::mem::take(pieces).freeze();
            self.have(id, data);
        } else {
            self.ask(id);
        }
    }

    /// Every member that counts has a bad block among those asked for.
    fn exhausted(&mut self, id: usize) {
        let Op { origin, offset, len, phase: Phase::Reading(reading), .. } = &mut self.ops[id] else {
            return;
        };
        if reading.pieces.is_none() && *len > BLOCK_BYTES && !matches!(origin, Origin::HealPart { .. }) {
            // Perhaps not the same one on all of them.
            reading.pieces = Some(BytesMut::with_capacity(*len as usize));
            reading.bad.clear();
            return self.ask(id);
        }
        let at = *offset + reading.pieces.as_ref().map_or(0, blocks_len);
        if reading.pieces.is_some() && !reading.withdrawing && !self.ops[id].needs(at / BLOCK_BYTES) {
            return self.gather(id, &[0; BLOCK_BYTES as usize]);
        }
        let Op { origin, extent, offset, len, phase: Phase::Reading(reading), work, .. } = &mut self.ops[id]
        else {
            return;
        };
        let is_heal = matches!(origin, Origin::HealPart { .. });
        let medium = DeviceError::Medium { offset: self.config.layout.address(*extent, at) };
        let (extent, offset, len, withdrawing) = (*extent, *offset, *len, reading.withdrawing);
        match work {
            // The same blocks may be good elsewhere.
            _ if is_heal && !withdrawing => self.finish(id, Err(medium)),
            Work::Read { .. } | Work::Modify { .. } | Work::Atomic { .. } if !withdrawing => {
                self.finish(id, Err(medium));
            }
            Work::Level { version, hole, or_hole, sources, lagging } if !withdrawing && len > BLOCK_BYTES => {
                // Level what can be levelled, block by block.
                let (version, hole, or_hole) = (*version, *hole, *or_hole);
                let (sources, lagging) = (sources.clone(), lagging.clone());
                for block in (offset..offset + len).step_by(BLOCK_BYTES as usize) {
                    let work = Work::Level {
                        version,
                        hole,
                        or_hole,
                        sources: sources.clone(),
                        lagging: lagging.clone(),
                    };
                    self.level(extent, block, BLOCK_BYTES, work);
                }
                self.finish(id, Ok(Bytes::new()));
            }
            _ => {
                let blocks = self.ops[id].blocks();
                self.unreadable.extend(blocks.map(|block| (extent, block)));
                self.finish(id, Err(medium));
            }
        }
    }

    /// The blocks of an operation were read.
    fn have(&mut self, id: usize, data: Bytes) {
        let Op { extent, work, phase: Phase::Reading(reading), .. } = &mut self.ops[id] else {
            return;
        };
        if reading.withdrawing {
            return self.write_back_old(id, &data);
        }
        let extent = *extent;
        let bad_blocks = std::mem::take(&mut reading.bad_blocks);
        match work {
            Work::Read { skip, take } => {
                let bytes = data.slice(*skip as usize..(*skip + *take) as usize);
                self.finish(id, Ok(bytes));
                for block in bad_blocks {
                    self.repair(extent, block);
                }
            }
            Work::Modify { at, patch } => {
                let (at, patch) = (*at, patch.clone());
                match self.patched(id, data, at, &patch) {
                    Ok(data) => self.decided(id, data),
                    Err(Differs(at)) => {
                        // Nothing was sent, so nothing was changed.
                        self.finish(id, Err(DeviceError::Miscompare { at }));
                        for block in bad_blocks {
                            self.repair(extent, block);
                        }
                    }
                }
            }
            Work::Atomic { data: wanted, .. } => {
                let wanted = wanted.clone();
                self.make_room_for(id, data, wanted);
            }
            Work::Level { version, lagging, .. } => {
                let (version, lagging) = (*version, lagging.clone());
                self.put(id, Change::Data(data), version, &lagging);
            }
            Work::Write(_) | Work::Map | Work::Heal { .. } | Work::Rewrite => {}
        }
    }

    fn patched(&mut self, id: usize, blocks: Bytes, at: u32, patch: &Patch) -> Result<Bytes, Differs> {
        let at = if self.planted(Plant::WrongMerge) { at.saturating_sub(512) } else { at } as usize;
        match patch {
            Patch::Or(data) if self.planted(Plant::OrOverwrites) => {
                Patch::Data(data.clone()).apply(blocks, at)
            }
            Patch::Swap { data, .. } if self.planted(Plant::WriteOnMiscompare) => {
                if let Err(Differs(at)) = patch.apply(blocks.clone(), at) {
                    self.ops[id].verdict = Err(DeviceError::Miscompare { at });
                }
                Patch::Data(data.clone()).apply(blocks, at)
            }
            patch => patch.apply(blocks, at),
        }
    }

    /// What the blocks become is known: from now on it is a write of that, whatever happens.
    fn decided(&mut self, id: usize, data: Bytes) {
        let op = &mut self.ops[id];
        let (offset, change) = (op.offset, Change::Data(data));
        let before = op.held_bytes();
        op.work = Work::Write(change.clone());
        self.held_bytes = self.held_bytes - before + op.held_bytes();
        self.change(id, offset, change);
    }

    /// Writes a block again, of which some copy is bad. Not while a member is missing: the lock
    /// would keep readers away from the good copies.
    fn repair(&mut self, extent: u64, block: u32) {
        if self.can_repair(extent) && self.repairs.len() < REPAIRS_MAX && self.repairs.insert((extent, block))
        {
            let work = Work::Modify { at: 0, patch: Patch::Nothing };
            self.add_op(Origin::Repair, extent, block * BLOCK_BYTES, BLOCK_BYTES, work, Durability::Stable);
        }
    }

    pub(super) fn can_repair(&self, extent: u64) -> bool {
        let members = self.members(extent);
        self.counting(extent, members.iter().copied()) >= self.view.pool.min_size()
            && members.iter().all(|disk| self.is_usable(*disk))
    }

    /// Asks another member where one takes long.
    pub(super) fn tick_reads(&mut self) {
        let (now, hedge_ms) = (self.now, self.config.limits.hedge_ms);
        let late: Vec<usize> = self
            .ops
            .iter()
            .filter(|(_, op)| match &op.phase {
                Phase::Reading(reading) => reading.asked.is_some_and(|asked| {
                    now - asked.since_ms >= hedge_ms
                        && self.members(op.extent).iter().any(|disk| {
                            *disk != asked.disk
                                && self.is_usable(*disk)
                                && (reading.from.is_empty() || reading.from.contains(disk))
                                && !reading.bad.contains(disk)
                                && !reading.slow.contains(disk)
                        })
                }),
                Phase::Waiting | Phase::Mutating(_) | Phase::Healing(_) => false,
            })
            .map(|(id, _)| id)
            .collect();
        for id in late {
            if let Phase::Reading(reading) = &mut self.ops[id].phase
                && let Some(asked) = reading.asked.take()
            {
                reading.slow.push(asked.disk);
                self.abandon(asked.tag);
            }
            self.ask(id);
        }
    }
}

fn blocks_len(pieces: &BytesMut) -> u32 {
    u32::try_from(pieces.len()).expect("pieces of one extent")
}

//! Volumes in memory, and a driver of copies between them.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::scsi_model::{CLUSTER, Model, cdb, pattern, sense_code, shared};
use bytes::Bytes;
use lunette_proto::ids::VolumeId;
use lunette_proto::map::naa;
use lunette_target_iscsi::scsi::{LogicalUnit, Response, Step, TargetView, Task};
use lunette_volume::device::{Command, DEALLOCATED, Data, DeviceError, MAPPED, Outcome};

pub(crate) const MIB: usize = 1 << 20;

/// Several volumes, their content, and a driver that carries out what a copy asks for.
pub(crate) struct Bench {
    pub(crate) model: Model,
    pub(crate) disks: BTreeMap<VolumeId, Vec<u8>>,
    pub(crate) done: Vec<(u16, Command)>,
    /// What the command of that number comes to.
    pub(crate) fails: Option<(usize, DeviceError)>,
}

/// A segment: source and destination descriptor, LBAs, blocks.
#[derive(Clone, Copy)]
pub(crate) struct Seg(pub(crate) u16, pub(crate) u16, pub(crate) u64, pub(crate) u64, pub(crate) u16);

pub(crate) fn target_of(volume: u64, block_bytes: u32) -> Vec<u8> {
    let mut bytes = vec![0xE4, 0, 0, 0, 0x01, 0x03, 0, 16];
    bytes.extend(naa(CLUSTER, VolumeId(volume)));
    bytes.extend([0; 4]);
    bytes.extend(block_bytes.to_be_bytes());
    bytes
}

pub(crate) fn segment(Seg(source, destination, from, to, blocks): Seg) -> Vec<u8> {
    let mut bytes = vec![0x02, 0, 0, 0x18];
    bytes.extend(source.to_be_bytes());
    bytes.extend(destination.to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(blocks.to_be_bytes());
    bytes.extend(from.to_be_bytes());
    bytes.extend(to.to_be_bytes());
    bytes
}

/// A parameter list with `id` under LIST ID USAGE 00b.
pub(crate) fn list(id: u8, targets: &[Vec<u8>], segments: &[Vec<u8>]) -> Vec<u8> {
    let (targets, segments) = (targets.concat(), segments.concat());
    let [high, low] = (targets.len() as u16).to_be_bytes();
    let mut bytes = vec![id, 0, high, low, 0, 0, 0, 0];
    bytes.extend((segments.len() as u32).to_be_bytes());
    bytes.extend([0; 4]);
    [bytes, targets, segments].concat()
}

pub(crate) fn copy_cdb(len: usize) -> Vec<u8> {
    cdb(16, 0x83, &[(10, &(len as u32).to_be_bytes())])
}

pub(crate) fn results(action: u8, id: u8, allocation: u32) -> Vec<u8> {
    cdb(16, 0x84, &[(1, &[action]), (2, &[id]), (10, &allocation.to_be_bytes())])
}

impl Bench {
    /// Volume 1 at LUN 0, volume 2 at LUN 1, each 8 MiB of 512-byte blocks, the first full of a pattern.
    pub(crate) fn new() -> Self {
        Self::with(512, 512)
    }

    /// The same with 1 MiB.
    pub(crate) fn small() -> Self {
        let mut bench = Self::sized(MIB);
        for (lun, volume) in [(0, 1), (1, 2)] {
            bench.map(lun, volume, |unit| unit.size_bytes = MIB as u64);
        }
        bench
    }

    pub(crate) fn with(first: u32, second: u32) -> Self {
        let mut bench = Self::sized(8 * MIB);
        bench.map(0, 1, |unit| unit.block_bytes = first);
        bench.map(1, 2, |unit| unit.block_bytes = second);
        bench
    }

    pub(crate) fn sized(bytes: usize) -> Self {
        let disks = BTreeMap::from([(VolumeId(1), pattern(bytes)), (VolumeId(2), vec![0; bytes])]);
        Self { model: Model::new(), disks, done: Vec::new(), fails: None }
    }

    pub(crate) fn map(&mut self, lun: u16, volume: u64, change: impl FnOnce(&mut LogicalUnit)) {
        let mut unit = (*self.model.view.luns[&0]).clone();
        let known = self.model.view.luns.values().find(|known| known.volume == VolumeId(volume));
        unit.shared = known.map_or_else(|| shared(VolumeId(volume)), |known| Arc::clone(&known.shared));
        (unit.volume, unit.size_bytes, unit.read_only) = (VolumeId(volume), 8 * MIB as u64, false);
        change(&mut unit);
        self.model.view.luns.insert(lun, Arc::new(unit));
        self.model.nexus.unit_attentions_taken(&self.model.view, lun);
    }

    pub(crate) fn disk(&self, volume: u64) -> &[u8] {
        &self.disks[&VolumeId(volume)]
    }

    /// Sends the list to LUN 0 and drives the copy to its end.
    pub(crate) fn copy(&mut self, list: &[u8]) -> Response {
        let (mut task, step) = self.start(list);
        self.drive(&mut task, step)
    }

    pub(crate) fn start(&mut self, list: &[u8]) -> (Task, Step) {
        let (mut task, step) = Task::start(&self.model.view, &mut self.model.nexus, 0, &copy_cdb(list.len()));
        let step = match step {
            Step::DataOut { len } => {
                assert_eq!(len as usize, list.len());
                task.data_out(Bytes::copy_from_slice(list))
            }
            step => step,
        };
        (task, step)
    }

    pub(crate) fn drive(&mut self, task: &mut Task, mut step: Step) -> Response {
        loop {
            step = match step {
                Step::Resolve => task.resolve(&self.model.view, &mut self.model.nexus),
                Step::Elsewhere(elsewhere) => {
                    assert!(elsewhere.memory_bytes >= MIB as u64);
                    let shown = &self.model.view.luns[&elsewhere.lun];
                    assert_eq!(shown.volume, elsewhere.unit.volume, "only what the nexus sees there");
                    let outcome = self.carry_out(elsewhere.lun, &elsewhere.unit, elsewhere.command);
                    task.completed(outcome)
                }
                Step::Done(response) => return response,
                step => panic!("{step:?}"),
            }
        }
    }

    pub(crate) fn carry_out(&mut self, lun: u16, unit: &LogicalUnit, command: Command) -> Outcome {
        let disk = self.disks.get_mut(&unit.volume).expect("a volume of the bench");
        let block = u64::from(unit.block_bytes);
        let at = |offset: u64, len: u64| {
            assert!(
                len > 0 && offset.is_multiple_of(block) && len.is_multiple_of(block),
                "whole blocks: {offset} {len}"
            );
            offset as usize..(offset + len) as usize
        };
        self.done.push((lun, command.clone()));
        if let Some((number, error)) = &self.fails
            && *number + 1 == self.done.len()
        {
            return Err(error.clone());
        }
        match command {
            Command::Read { offset, len } => {
                assert!(len as usize <= MIB);
                let mut first = Bytes::copy_from_slice(&disk[at(offset, len.into())]);
                let second = first.split_off(first.len() / 3);
                return Ok(Data::from_iter([first, second]));
            }
            Command::Write { offset, data, .. } => disk[at(offset, data.len() as u64)].copy_from_slice(&data),
            Command::Zero { offset, len } => disk[at(offset, len)].fill(0),
            Command::Mapping { offset, len } => {
                let at = at(offset, len);
                let blocks = disk[at.start / 4096 * 4096..at.end.next_multiple_of(4096)].chunks(4096);
                let state = |block: &[u8]| {
                    if block.iter().all(|byte| *byte == 0) { DEALLOCATED } else { MAPPED }
                };
                return Ok(Data::from_iter([blocks.map(state).collect::<Vec<u8>>().into()]));
            }
            command => panic!("{command:?}"),
        }
        Ok(Data::new())
    }

    pub(crate) fn run(&mut self, cdb: &[u8]) -> crate::scsi_model::End {
        self.model.run(cdb, &[])
    }
}

/// Takes unit attentions so that they do not stand before what a test is about.
pub(crate) trait Ready {
    fn unit_attentions_taken(&mut self, view: &TargetView, lun: u16);
}

impl Ready for lunette_target_iscsi::scsi::Nexus {
    fn unit_attentions_taken(&mut self, view: &TargetView, lun: u16) {
        let ready = |nexus: &mut Self| {
            let (_, step) = Task::start(view, nexus, u64::from(lun) << 48, &[0; 6]);
            matches!(step, Step::Done(response) if response.status == 0)
        };
        while !ready(self) {}
    }
}

#[track_caller]
pub(crate) fn good(response: &Response, list: &[u8]) {
    assert_eq!(response.status, 0, "{:02x?}", &response.sense[..]);
    assert_eq!(response.transfer_len, list.len() as u64);
}

/// CHECK CONDITION with that code; gives the sense data.
#[track_caller]
pub(crate) fn failed(response: &Response, want: (u8, u8, u8)) -> Vec<u8> {
    assert_eq!((response.status, sense_code(&response.sense)), (2, want), "{:02x?}", &response.sense[..]);
    response.sense.to_vec()
}

/// COPY ABORTED at a field of a segment descriptor: SKSV and SD, the field, the segment.
#[track_caller]
pub(crate) fn aborted_at(response: &Response, code: (u8, u8), segment: u16, field: u16) {
    let sense = failed(response, (0x0A, code.0, code.1));
    let [segment_high, segment_low] = segment.to_be_bytes();
    let [field_high, field_low] = field.to_be_bytes();
    assert_eq!(sense[8..12], [0, 0, segment_high, segment_low]);
    assert_eq!(sense[15..18], [0xA0, field_high, field_low]);
}

//! A volume in memory and a driver that takes a task through its steps, for the tests of `scsi`.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use lunette_proto::ids::{ClusterId, VolumeId};
use lunette_proto::map::NexusId;
use lunette_target_iscsi::exports::{Change, Devices, KeepError};
use lunette_target_iscsi::scsi::{
    Ended, LogicalUnit, Nexus, Response, Settled, SharedUnit, Step, TargetPort, TargetView, Task, Transition,
};
use lunette_volume::device::{
    BlockDevice, Command, Completions, DEALLOCATED, Data, DeviceError, MAPPED, MAPPING_BYTES_MAX, Outcome,
    Readiness,
};

pub(crate) const CLUSTER: ClusterId = ClusterId(0x0123_4567_89AB_CDEF_0011_2233_4455_6677);
pub(crate) const IQN: &str = "iqn.2026-11.io.lunette:model";

/// Only its readiness is asked; the driver carries out commands itself, to check and to record them.
struct Device(Readiness);

/// Bytes that a write of the model's device does not tear.
pub(crate) const ATOMIC_BYTES: u32 = 64 << 10;

impl BlockDevice for Device {
    fn submit(&self, _: Command, _: u64, _: &Arc<dyn Completions>) {
        panic!("a task never submits by itself");
    }

    fn readiness(&self) -> Readiness {
        self.0
    }

    fn atomic_bytes(&self) -> u32 {
        ATOMIC_BYTES
    }
}

/// A target with one volume at LUN 0.
pub(crate) struct Model {
    pub(crate) view: TargetView,
    pub(crate) nexus: Nexus,
    /// The volume's content; sparse volumes have less of it than their size and read zeros beyond.
    pub(crate) content: Vec<u8>,
    /// 4 KiB blocks that something was written to.
    pub(crate) mapped: BTreeSet<u64>,
    /// Commands that the device was given.
    pub(crate) commands: Vec<Command>,
    /// What the next command of the device comes to, if not a success.
    pub(crate) fails: Option<DeviceError>,
    /// What a sanitize operation that is waited for comes to.
    pub(crate) sanitize_fails: bool,
}

/// How a command ended, checked for what holds of every response.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) status: u8,
    pub(crate) sense: Bytes,
    pub(crate) data: Vec<u8>,
    pub(crate) transfer_len: u64,
    /// Data-Out that the task asked for.
    pub(crate) data_out_len: u32,
}

impl Model {
    /// 1 MiB of 512-byte blocks; the unit attention of the new nexus is taken.
    pub(crate) fn new() -> Self {
        Self::with(1 << 20, 512)
    }

    pub(crate) fn with(size_bytes: u64, block_bytes: u32) -> Self {
        let unit = unit(size_bytes, block_bytes, Readiness::Ready);
        let view = TargetView {
            iqn: IQN.into(),
            portal_group_tag: 3,
            relative_port: 0x0102,
            ports: vec![TargetPort { group: 3, relative: 0x0102 }],
            luns: BTreeMap::from([(0, Arc::new(unit))]),
        };
        let content = vec![0; usize::try_from(size_bytes.min(32 << 20)).expect("at most 32 MiB")];
        let mut model = Self {
            view,
            nexus: Nexus::new(nexus_id()),
            content,
            mapped: BTreeSet::new(),
            commands: Vec::new(),
            fails: None,
            sanitize_fails: false,
        };
        assert_eq!(model.run(&[0; 6], &[]).sense_code(), (6, 0x29, 0x00));
        model
    }

    pub(crate) fn change(&mut self, change: impl FnOnce(&mut LogicalUnit)) {
        let mut unit = (*self.view.luns[&0]).clone();
        change(&mut unit);
        self.view.luns.insert(0, Arc::new(unit));
    }

    pub(crate) fn readiness(&mut self, readiness: Readiness) {
        self.change(|unit| unit.device = Arc::new(Device(readiness)));
    }

    pub(crate) fn add(&mut self, lun: u16) {
        self.view.luns.insert(lun, Arc::new(unit(1 << 20, 512, Readiness::Ready)));
    }

    /// MODE SELECT of WCE.
    pub(crate) fn write_back(&mut self, is_set: bool) {
        let mut list = [0; 24];
        list[4..7].copy_from_slice(&[0x08, 0x12, u8::from(is_set) << 2]);
        self.run(&[0x15, 0x10, 0, 0, 24, 0], &list).good();
    }

    /// Runs a command on LUN 0; the initiator sends all of `data_out` that is asked for.
    pub(crate) fn run(&mut self, cdb: &[u8], data_out: &[u8]) -> End {
        self.run_on(0, cdb, data_out)
    }

    pub(crate) fn run_on(&mut self, lun: u64, cdb: &[u8], data_out: &[u8]) -> End {
        let (mut task, mut step) = Task::start(&self.view, &mut self.nexus, lun, cdb);
        let mut data_out_len = 0;
        for _ in 0..1024 {
            step = match step {
                Step::DataOut { len } => {
                    assert!(len > 0 && data_out_len == 0, "Data-Out is asked for once");
                    data_out_len = len;
                    task.data_out(Bytes::copy_from_slice(&data_out[..data_out.len().min(len as usize)]))
                }
                Step::Submit(command) => {
                    let outcome = self.carry_out(command);
                    task.completed(outcome)
                }
                // All LUNs of the model are one volume.
                Step::Elsewhere(elsewhere) => {
                    let outcome = self.carry_out(elsewhere.command);
                    task.completed(outcome)
                }
                Step::Resolve => task.resolve(&self.view, &mut self.nexus),
                Step::Change(transition) => {
                    let settled = self.settle(lun, transition);
                    task.settled(settled)
                }
                Step::Await => {
                    let unit = Arc::clone(&self.view.luns[&((lun >> 48) as u16 & 0x3FFF)].shared);
                    let (revision, _) = unit.sanitize_operation().expect("it is waited for");
                    let ended = Ended { revision, has_failed: self.sanitize_fails };
                    self.settle(lun, Box::new(ended)).expect("it is kept");
                    let (sender, receiver) = std::sync::mpsc::channel();
                    unit.when_sanitized(Box::new(move |settled| {
                        sender.send(settled).expect("it is waited for")
                    }));
                    task.settled(receiver.try_recv().expect("it is over"))
                }
                Step::Done(response) => return End::check(response, data_out_len),
            };
        }
        panic!("the command does not end");
    }

    /// Makes a change of the unit at `lun`.
    pub(crate) fn settle(&self, lun: u64, transition: Box<dyn Transition>) -> Settled {
        let unit = &self.view.luns[&((lun >> 48) as u16 & 0x3FFF)];
        let (sender, receiver) = std::sync::mpsc::channel();
        unit.shared
            .change(transition, Box::new(move |settled| sender.send(settled).expect("it is waited for")));
        receiver.try_recv().expect("the keeper answers at once")
    }

    fn carry_out(&mut self, command: Command) -> Outcome {
        let unit = self.view.luns.values().next().expect("the model has a unit");
        let (size, block) = (unit.size_bytes, u64::from(unit.block_bytes));
        let whole = |offset: u64, len: u64| {
            assert!(
                len > 0 && offset.is_multiple_of(block) && len.is_multiple_of(block),
                "whole blocks: {offset} {len}"
            );
            assert!(offset.checked_add(len).is_some_and(|end| end <= size), "inside: {offset} {len}");
        };
        let result = match &command {
            Command::Read { offset, len } => {
                whole(*offset, u64::from(*len));
                assert!(*len <= 8 << 20);
                let mut data = vec![0; *len as usize];
                for (at, byte) in data.iter_mut().enumerate() {
                    *byte = self.content.get(*offset as usize + at).copied().unwrap_or(0);
                }
                // In two slices, as a read that crosses extents comes.
                let mut first = Bytes::from(data);
                let second = first.split_off(first.len() / 3);
                Data::from_iter([first, second])
            }
            Command::WriteAtomic { offset, data } => {
                whole(*offset, data.len() as u64);
                let range = u64::from(ATOMIC_BYTES);
                assert_eq!(offset / range, (offset + data.len() as u64 - 1) / range, "in one range");
                assert!(offset % 4096 == 0 && data.len() % 4096 == 0);
                self.map(*offset, data.len() as u64);
                if let Some(space) = self.content.get_mut(*offset as usize..*offset as usize + data.len()) {
                    space.copy_from_slice(data);
                }
                Data::new()
            }
            Command::Write { offset, data, .. } => {
                whole(*offset, data.len() as u64);
                assert!(data.len() <= 8 << 20);
                self.map(*offset, data.len() as u64);
                if let Some(space) = self.content.get_mut(*offset as usize..*offset as usize + data.len()) {
                    space.copy_from_slice(data);
                }
                Data::new()
            }
            Command::Zero { offset, len } => {
                whole(*offset, *len);
                let blocks = offset.div_ceil(4096)..(offset + len) / 4096;
                self.mapped.retain(|block| !blocks.contains(block));
                let end = self.content.len().min((offset + len) as usize);
                if let Some(space) = self.content.get_mut(*offset as usize..end) {
                    space.fill(0);
                }
                Data::new()
            }
            Command::Flush => Data::new(),
            Command::CompareAndWrite { offset, compare, data, .. } => {
                whole(*offset, compare.len() as u64);
                assert_eq!(compare.len(), data.len());
                assert_eq!(offset / 4096, (offset + data.len() as u64 - 1) / 4096, "in one block");
                let mut at = *offset as usize..*offset as usize + data.len();
                let have: Vec<u8> = at.clone().map(|at| self.content.get(at).copied().unwrap_or(0)).collect();
                if let Some(at) = compare.iter().zip(&have).position(|(want, have)| want != have) {
                    self.commands.push(command);
                    return Err(DeviceError::Miscompare { at: at as u32 });
                }
                self.map(*offset, data.len() as u64);
                at.end = at.end.min(self.content.len());
                if let Some(space) = self.content.get_mut(at) {
                    space.copy_from_slice(data);
                }
                Data::new()
            }
            Command::Or { offset, data, .. } => {
                whole(*offset, data.len() as u64);
                self.map(*offset, data.len() as u64);
                for (at, bits) in data.iter().enumerate() {
                    if let Some(byte) = self.content.get_mut(*offset as usize + at) {
                        *byte |= bits;
                    }
                }
                Data::new()
            }
            Command::Mapping { offset, len } => {
                whole(*offset, *len);
                assert!(*len <= MAPPING_BYTES_MAX);
                let blocks = offset / 4096..(offset + len).div_ceil(4096);
                let statuses: Vec<u8> = blocks
                    .map(|block| if self.mapped.contains(&block) { MAPPED } else { DEALLOCATED })
                    .collect();
                let mut first = Bytes::from(statuses);
                let second = first.split_off(first.len() / 2);
                Data::from_iter([first, second])
            }
        };
        self.commands.push(command);
        match self.fails.take() {
            Some(error) => Err(error),
            None => Ok(result),
        }
    }
}

impl Model {
    fn map(&mut self, offset: u64, len: u64) {
        self.mapped.extend(offset / 4096..(offset + len).div_ceil(4096));
    }
}

impl End {
    fn check(response: Response, data_out_len: u32) -> Self {
        let data = response.data_in.concat();
        match response.status {
            0x00 => assert!(response.sense.is_empty()),
            0x02 => {
                assert!(response.sense.len() >= 8, "CHECK CONDITION has sense data");
                assert!(data.is_empty());
                assert_eq!(response.transfer_len, 0);
            }
            0x08 | 0x18 => {
                assert!(response.sense.is_empty() && data.is_empty() && response.transfer_len == 0)
            }
            status => panic!("status {status:02x}"),
        }
        if !data.is_empty() {
            assert_eq!(response.transfer_len, data.len() as u64);
        }
        Self {
            status: response.status,
            sense: response.sense,
            data,
            transfer_len: response.transfer_len,
            data_out_len,
        }
    }

    /// Sense key, additional sense code and qualifier, in either format.
    pub(crate) fn sense_code(&self) -> (u8, u8, u8) {
        sense_code(&self.sense)
    }

    #[track_caller]
    pub(crate) fn good(self) -> Vec<u8> {
        assert_eq!(self.status, 0x00, "sense {:02x?}", &self.sense[..]);
        self.data
    }

    /// CHECK CONDITION with that code.
    #[track_caller]
    pub(crate) fn fails(&self, want: (u8, u8, u8)) {
        assert_eq!((self.status, self.sense_code()), (0x02, want));
    }

    /// INVALID FIELD IN CDB with a field pointer (fixed format).
    #[track_caller]
    pub(crate) fn bad_cdb_field(&self, byte: u16, bit: Option<u8>) {
        self.fails((5, 0x24, 0x00));
        self.points(0xC0, byte, bit);
    }

    /// INVALID FIELD IN PARAMETER LIST with a field pointer (fixed format).
    #[track_caller]
    pub(crate) fn bad_parameter(&self, byte: u16, bit: Option<u8>) {
        self.fails((5, 0x26, 0x00));
        self.points(0x80, byte, bit);
    }

    #[track_caller]
    fn points(&self, flags: u8, byte: u16, bit: Option<u8>) {
        let [high, low] = byte.to_be_bytes();
        let flags = flags | bit.map_or(0, |bit| 0x08 | bit);
        assert_eq!(self.sense[15..18], [flags, high, low]);
    }
}

pub(crate) fn sense_code(sense: &[u8]) -> (u8, u8, u8) {
    match sense.first().map(|first| first & 0x7F) {
        Some(0x70) => (sense[2], sense[12], sense[13]),
        Some(0x72) => (sense[1], sense[2], sense[3]),
        _ => (0xFF, 0, 0),
    }
}

pub(crate) fn unit(size_bytes: u64, block_bytes: u32, readiness: Readiness) -> LogicalUnit {
    LogicalUnit {
        cluster: CLUSTER,
        volume: VolumeId(0x1122),
        name: "model".into(),
        size_bytes,
        block_bytes,
        read_only: false,
        owner: None,
        device: Arc::new(Device(readiness)),
        shared: shared(VolumeId(0x1122)),
    }
}

/// What the sessions share of a volume of which nothing was ever kept.
pub(crate) fn shared(volume: VolumeId) -> Arc<SharedUnit> {
    Arc::new(SharedUnit::new(volume, Arc::default(), Arc::new(Keeper)))
}

/// Keeps whatever it is given.
struct Keeper;

impl Devices for Keeper {
    fn device(&self, _: VolumeId) -> Option<Arc<dyn BlockDevice>> {
        None
    }

    fn keep(&self, _: VolumeId, _: Change, done: Box<dyn FnOnce(Result<(), KeepError>) + Send>) {
        done(Ok(()));
    }
}

pub(crate) fn nexus_id() -> NexusId {
    NexusId {
        initiator: "iqn.2026-11.org.example:host".into(),
        isid: [0x80, 0, 0, 0, 0, 1],
        target: IQN.into(),
        tag: 3,
    }
}

/// A CDB from its parts: `cdb(16, 0x88, &[(2, &lba.to_be_bytes())])`.
pub(crate) fn cdb(len: usize, opcode: u8, fields: &[(usize, &[u8])]) -> Vec<u8> {
    let mut cdb = vec![0; len];
    cdb[0] = opcode;
    for (at, field) in fields {
        cdb[*at..*at + field.len()].copy_from_slice(field);
    }
    cdb
}

/// Bytes that differ from block to block and within a block.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 512 * 7 + at * 31) as u8 | 1).collect()
}

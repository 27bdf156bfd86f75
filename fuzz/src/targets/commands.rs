//! CDBs and parameter lists, without a session: two initiators, any commands, a device that fails now and then.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use lunette_proto::ids::{ClusterId, VolumeId};
use lunette_proto::map::NexusId;
use lunette_target_iscsi::exports::{Change, Devices, KeepError};
use lunette_target_iscsi::scsi::{
    Attention, Ended, LogicalUnit, Nexus, Response, Scope, Settled, SharedUnit, Step, TargetPort, TargetView,
    Task, Transition, is_copy_list, lun,
};
use lunette_volume::device::{BlockDevice, Command, Completions, DeviceError, Readiness};
use parking_lot::Mutex;

use crate::Input;
use crate::scsi::{Medium, allocation_len, is_definite, sense_code};

const IQN: &str = "iqn.2026-11.io.lunette:model";
/// More a command may not want: then it is abandoned, for a copy of many megabytes says nothing more.
const STEPS_MAX: usize = 200;
/// Commands of one input.
const COMMANDS_MAX: usize = 16;

/// Opcodes with the bytes of their CDBs, and with their service actions.
pub(super) const KNOWN: [(u8, u8, usize); 67] = [
    (0x00, 0, 6),
    (0x03, 0, 6),
    (0x08, 0, 6),
    (0x0A, 0, 6),
    (0x12, 0, 6),
    (0x15, 0, 6),
    (0x16, 0, 6),
    (0x17, 0, 6),
    (0x1A, 0, 6),
    (0x1B, 0, 6),
    (0x1C, 0, 6),
    (0x1D, 0, 6),
    (0x25, 0, 10),
    (0x28, 0, 10),
    (0x2A, 0, 10),
    (0x2E, 0, 10),
    (0x2F, 0, 10),
    (0x34, 0, 10),
    (0x35, 0, 10),
    (0x37, 0, 10),
    (0x41, 0, 10),
    (0x42, 0, 10),
    (0x48, 1, 10),
    (0x48, 2, 10),
    (0x48, 0x1F, 10),
    (0x4D, 0, 10),
    (0x55, 0, 10),
    (0x56, 0, 10),
    (0x57, 0, 10),
    (0x5A, 0, 10),
    (0x5E, 0, 10),
    (0x5E, 1, 10),
    (0x5E, 2, 10),
    (0x5E, 3, 10),
    (0x5F, 0, 10),
    (0x5F, 1, 10),
    (0x5F, 2, 10),
    (0x5F, 3, 10),
    (0x5F, 4, 10),
    (0x5F, 5, 10),
    (0x5F, 6, 10),
    (0x5F, 7, 10),
    (0x83, 0, 16),
    (0x84, 0, 16),
    (0x84, 3, 16),
    (0x84, 4, 16),
    (0x88, 0, 16),
    (0x89, 0, 16),
    (0x8A, 0, 16),
    (0x8B, 0, 16),
    (0x8E, 0, 16),
    (0x8F, 0, 16),
    (0x90, 0, 16),
    (0x91, 0, 16),
    (0x93, 0, 16),
    (0x9C, 0, 16),
    (0x9E, 0x10, 16),
    (0x9E, 0x12, 16),
    (0xA0, 0, 12),
    (0xA3, 0x0A, 12),
    (0xA3, 0x0C, 12),
    (0xA3, 0x0D, 12),
    (0xA8, 0, 12),
    (0xAA, 0, 12),
    (0xAE, 0, 12),
    (0xAF, 0, 12),
    (0xB7, 0, 12),
];

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut bed = Bed::new();
    for _ in 0..COMMANDS_MAX {
        if input.is_empty() {
            return;
        }
        bed.command(&mut input);
    }
}

struct Bed {
    view: TargetView,
    nexuses: [Nexus; 2],
    /// By volume.
    media: BTreeMap<VolumeId, Medium>,
}

/// Only its properties are asked; the bed carries out commands itself.
struct Device;

impl BlockDevice for Device {
    fn submit(&self, _: Command, _: u64, _: &Arc<dyn Completions>) {
        unreachable!("a task never submits by itself");
    }

    fn readiness(&self) -> Readiness {
        Readiness::Ready
    }

    fn atomic_bytes(&self) -> u32 {
        16 << 10
    }
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

impl Bed {
    fn new() -> Self {
        let shared = |volume| Arc::new(SharedUnit::new(VolumeId(volume), Arc::default(), Arc::new(Keeper)));
        let unit = |volume, size_bytes, block_bytes, read_only, shared: &Arc<SharedUnit>| {
            Arc::new(LogicalUnit {
                cluster: ClusterId(7),
                volume: VolumeId(volume),
                name: "model".into(),
                size_bytes,
                block_bytes,
                read_only,
                owner: None,
                device: Arc::new(Device),
                shared: Arc::clone(shared),
            })
        };
        let (small, large, huge) = (shared(1), shared(2), shared(3));
        let luns = BTreeMap::from([
            (0, unit(1, SMALL_BYTES, 512, false, &small)),
            (1, unit(2, LARGE_BYTES, 4096, false, &large)),
            (2, unit(1, SMALL_BYTES, 512, true, &small)),
            (300, unit(3, 1 << 50, 512, false, &huge)),
        ]);
        let ports = [1, 2].map(|tag| TargetPort { group: tag, relative: tag }).into();
        let view = TargetView { iqn: IQN.into(), portal_group_tag: 1, relative_port: 1, ports, luns };
        let nexus = |last| {
            let initiator = format!("iqn.2026-11.org.example:host{last}");
            Nexus::new(NexusId { initiator, isid: [0x80, 0, 0, 0, 0, last], target: IQN.into(), tag: 1 })
        };
        let media = [(1, SMALL_BYTES, 512), (2, LARGE_BYTES, 4096), (3, 1 << 50, 512)];
        let media = media.map(|(id, size, block)| (VolumeId(id), Medium::new(size, block)));
        let mut bed = Self { view, nexuses: [nexus(1), nexus(2)], media: media.into() };
        for nexus in &mut bed.nexuses {
            for lun in [0, 1, 2, 300] {
                let _ = Task::start(&bed.view, nexus, lun::encode(lun), &[0; 6]);
            }
        }
        bed
    }

    fn command(&mut self, input: &mut Input<'_>) {
        let how = input.u8();
        let lun = match how & 7 {
            0..=2 => u64::from(how & 7) << 48,
            3 => 0x412C << 48,
            4 => u64::from(input.u16()) << 48,
            5 => input.u64(),
            6 => return self.happening(input),
            _ => 0,
        };
        let who = usize::from(how >> 3 & 1);
        let (opcode, action, len) = input.pick(&KNOWN);
        let mut cdb = input.bytes(len - 1).to_vec();
        cdb.insert(0, opcode);
        cdb.resize(len, 0);
        cdb[1] |= action;
        if how & 0x80 != 0 {
            // Another opcode, or another length than it has.
            cdb[0] = input.u8();
            let len = input.u8() & 0x3F;
            cdb.resize(len.into(), input.u8());
        }
        // Which command of the device fails, and how.
        let failure = (how & 0x40 != 0).then(|| (input.u8() & 7, error(input.u8())));
        let mut given = input.short().to_vec();
        if cdb.first() == Some(&0x83) {
            name_units(&mut given);
        }
        let written = DataOut { shape: how >> 4 & 3, given: &given, seed: input.u8() };
        let before = self.media.clone();
        let states = self.states();
        let mut effects = 0;
        let ended = self.drive(who, lun, &cdb, &written, failure, &mut effects);
        let Some((response, data_out, failed)) = ended else { return };
        check(&response, &cdb);
        if is_definite(response.status, &response.sense) {
            assert_eq!(
                effects, 0,
                "a definite failure has changed something: {cdb:02x?} {:02x?}",
                response.sense
            );
            assert!(self.media == before);
            assert!(self.states() == states, "a definite failure has changed what is kept: {cdb:02x?}");
        }
        if response.status == 0 {
            assert!(!failed, "the device has failed, and the command has not: {cdb:02x?}");
        }
        self.compare(lun, &cdb, &data_out, &response, before);
    }

    /// The content is what the standard says, whoever looks.
    fn compare(
        &self,
        lun: u64,
        cdb: &[u8],
        data_out: &[u8],
        response: &Response,
        mut before: BTreeMap<VolumeId, Medium>,
    ) {
        let lun::Address::Unit(number) = lun::decode(lun) else { return };
        let Some(unit) = self.view.luns.get(&number) else {
            assert!(self.media == before);
            return;
        };
        let medium = before.get_mut(&unit.volume).expect("every volume has one");
        if response.status == 0 {
            if let Some(want) = medium.read(cdb) {
                assert_eq!(response.data_in.concat(), want, "read: {cdb:02x?}");
            }
            medium.expect(cdb, data_out);
        } else if response.status == 2 && !is_definite(response.status, &response.sense) {
            // It may have happened, or a part of it.
            return;
        }
        // A copy changes other units than this one, also the same volume through a LUN that may be written.
        if cdb.first() != Some(&0x83) {
            assert!(self.media == before, "{cdb:02x?} {response:?}");
        }
    }

    fn states(&self) -> Vec<u64> {
        self.view.luns.values().map(|unit| unit.shared.state().revision).collect()
    }

    /// Something that is no command.
    fn happening(&mut self, input: &mut Input<'_>) {
        let kind = input.u8();
        let nexus = &mut self.nexuses[usize::from(kind >> 4 & 1)];
        let scope = if kind & 0x20 == 0 { Scope::All } else { Scope::Lun(u16::from(kind >> 6)) };
        match kind & 0x0F {
            0 => nexus.attention(scope, Attention::UnitReset),
            1 => nexus.attention(scope, Attention::CapacityChanged),
            2 => nexus.attention(scope, Attention::ReportedLunsChanged),
            3 => nexus.attention(scope, Attention::CommandsCleared),
            4 => self.view.luns.values().for_each(|unit| unit.shared.reset()),
            5 => nexus.end(),
            6 => {
                let _ = is_copy_list(input.short());
            }
            7 => nexus.forget(kind.into()),
            _ => {
                for unit in self.view.luns.values() {
                    if let Some((revision, _)) = unit.shared.sanitize_operation() {
                        let ended = Ended { revision, has_failed: kind & 0x10 != 0 };
                        let _ = settle(&unit.shared, Box::new(ended));
                        unit.shared.sanitize_ended();
                    }
                }
            }
        }
    }

    /// To the end: the response, the Data-Out that was taken, and whether the device has failed. `None`: it was
    /// abandoned.
    fn drive(
        &mut self,
        who: usize,
        lun: u64,
        cdb: &[u8],
        written: &DataOut<'_>,
        mut failure: Option<(u8, DeviceError)>,
        effects: &mut u32,
    ) -> Option<(Response, Bytes, bool)> {
        let own = match lun::decode(lun) {
            lun::Address::Unit(number) => self.view.luns.get(&number).cloned(),
            _ => None,
        };
        let (mut task, mut step) = Task::start(&self.view, &mut self.nexuses[who], lun, cdb);
        let announced = match step {
            Step::DataOut { len } => written.len(len),
            _ => 0,
        };
        if let Some(refusal) = task.check_expected(announced) {
            step = refusal;
        }
        let (mut data_out, mut failed) = (None, false);
        for _ in 0..STEPS_MAX {
            step = match step {
                Step::DataOut { len } => {
                    assert!(len > 0 && data_out.is_none(), "Data-Out is asked for once");
                    let bytes = written.bytes(len);
                    data_out = Some(bytes.clone());
                    task.data_out(bytes)
                }
                Step::Submit(_) | Step::Elsewhere(_) => {
                    let (unit, command) = match step {
                        Step::Submit(command) => (own.clone().expect("only units have devices"), command),
                        Step::Elsewhere(elsewhere) => (elsewhere.unit, elsewhere.command),
                        _ => unreachable!("matched above"),
                    };
                    let writes = matches!(
                        command,
                        Command::Write { .. }
                            | Command::Zero { .. }
                            | Command::Or { .. }
                            | Command::CompareAndWrite { .. }
                    );
                    assert!(!(writes && unit.read_only), "a write to a unit that is read-only");
                    let outcome = match &mut failure {
                        Some((0, error)) => {
                            failed = true;
                            Err(error.clone())
                        }
                        waiting => {
                            if let Some((left, _)) = waiting {
                                *left -= 1;
                            }
                            let medium = self.media.get_mut(&unit.volume).expect("every volume has one");
                            medium.carry_out(&command)
                        }
                    };
                    *effects += u32::from(writes && outcome.is_ok());
                    task.completed(outcome)
                }
                Step::Resolve => task.resolve(&self.view, &mut self.nexuses[who]),
                Step::Change(transition) => {
                    let unit = own.as_ref().expect("only units keep something");
                    task.settled(settle(&unit.shared, transition))
                }
                Step::Await => return None,
                Step::Done(response) => return Some((response, data_out.unwrap_or_default(), failed)),
            };
        }
        None
    }
}

const SMALL_BYTES: u64 = 16 << 10;
const LARGE_BYTES: u64 = 32 << 10;

/// What the initiator has to send.
struct DataOut<'a> {
    shape: u8,
    given: &'a [u8],
    seed: u8,
}

impl DataOut<'_> {
    /// Bytes that are announced and sent, when `want` are asked for.
    fn len(&self, want: u32) -> u32 {
        let given = u32::try_from(self.given.len()).expect("it is short");
        match self.shape {
            0 | 1 => want,
            2 => given.saturating_mul(64).min(want),
            _ => given.min(want),
        }
    }

    /// What was given, again and again or with zeros after it, as long as was announced.
    fn bytes(&self, want: u32) -> Bytes {
        let len = self.len(want) as usize;
        let mut bytes = vec![0; len];
        if self.shape & 1 == 0 && !self.given.is_empty() {
            for (index, part) in bytes.chunks_mut(self.given.len()).enumerate() {
                part.copy_from_slice(&self.given[..part.len()]);
                part[0] =
                    part[0].wrapping_add(u8::try_from(index & 0xFF).unwrap_or(0)).wrapping_mul(self.seed | 1);
            }
        } else {
            let part = len.min(self.given.len());
            bytes[..part].copy_from_slice(&self.given[..part]);
        }
        bytes.into()
    }
}

/// Target descriptors of EXTENDED COPY that are of the right kind, but name nothing, name a unit here: a fuzzer does
/// not guess names.
pub(super) fn name_units(list: &mut [u8]) {
    for descriptor in list.get_mut(16..).unwrap_or_default().chunks_exact_mut(32) {
        if descriptor[0] == 0xE4 && descriptor[8] == 0 {
            let volume = VolumeId(u64::from(descriptor[9] % 3) + 1);
            descriptor[8..24].copy_from_slice(&lunette_proto::map::naa(ClusterId(7), volume));
        }
    }
}

pub(super) fn error(kind: u8) -> DeviceError {
    match kind & 7 {
        0 => DeviceError::OutOfRange,
        1 => DeviceError::Invalid,
        2 => DeviceError::Busy,
        3 => DeviceError::TimedOut,
        4 => DeviceError::NoSpace,
        5 => DeviceError::Medium { offset: u64::from(kind) << 9 },
        6 => DeviceError::NotOwner,
        _ => DeviceError::Gone,
    }
}

/// Makes a change; the keeper answers at once.
fn settle(unit: &Arc<SharedUnit>, transition: Box<dyn Transition>) -> Settled {
    let told = Arc::new(Mutex::new(None));
    let place = Arc::clone(&told);
    unit.change(transition, Box::new(move |settled| *place.lock() = Some(settled)));
    let settled = told.lock().take();
    settled.expect("the keeper answers at once")
}

/// What holds of every response.
fn check(response: &Response, cdb: &[u8]) {
    let len: u64 = response.data_in.iter().map(|part| part.len() as u64).sum();
    match response.status {
        0x00 => assert!(response.sense.is_empty()),
        0x02 => {
            assert!(sense_code(&response.sense).is_some() && response.sense.len() <= 252);
            assert!(len == 0 && response.transfer_len == 0);
        }
        0x08 | 0x18 => assert!(response.sense.is_empty() && len == 0 && response.transfer_len == 0),
        status => panic!("status {status:02x}"),
    }
    if len > 0 {
        assert_eq!(response.transfer_len, len);
        if let Some(max) = allocation_len(cdb) {
            assert!(len <= max as u64, "{cdb:02x?}");
        }
    }
}

//! Any CDB, any Data-Out: a task ends with a legal response, and never panics.

mod scsi_model;

use lunette_target_iscsi::scsi::{Attention, Nexus, Scope, Task};
use lunette_volume::device::{Command, DeviceError, Readiness};
use proptest::prelude::*;
use scsi_model::Model;

/// xorshift64*: the same bytes in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        bytes.fill_with(|| (self.next() >> 56) as u8);
    }
}

const DATA_OUT_LENS: [usize; 8] = [0, 1, 7, 8, 24, 511, 512, 4104];

/// Guards every opcode and service action with CDBs of zeros, of ones and of random bytes.
#[test]
fn every_opcode_and_service_action() {
    let mut random = Random(0x5EED);
    for (block_bytes, size) in [(512, 1 << 20), (4096, 1 << 20), (512, 1 << 50)] {
        let mut model = Model::with(size, block_bytes);
        for opcode in 0..=u8::MAX {
            for action in 0..32u8 {
                for (fill, len) in [(0x00, 16), (0xFF, 16), (0x01, 16), (0x01, 32), (0x01, 16)] {
                    let mut cdb = vec![fill; len];
                    if fill == 0x01 {
                        random.fill(&mut cdb);
                        // Small numbers reach further than large ones.
                        cdb.iter_mut().skip(2).filter(|byte| **byte >= 0x60).for_each(|byte| *byte = 0);
                    }
                    cdb[0] = opcode;
                    cdb[1] = cdb[1] & 0xE0 | action;
                    let mut data_out = vec![fill; DATA_OUT_LENS[random.next() as usize % 8]];
                    if fill == 0x01 {
                        random.fill(&mut data_out);
                    }
                    model.run(&cdb, &data_out);
                }
            }
        }
    }
}

/// Guards short CDBs: too few bytes are an error, not an index out of bounds.
#[test]
fn short_cdbs() {
    let mut model = Model::new();
    model.run(&[], &[]).fails((5, 0x20, 0x00));
    for opcode in 0..=u8::MAX {
        for len in 1..16 {
            model.run(&vec![opcode; len], &[]);
        }
    }
    model.run(&[0x28, 0, 0, 0, 0, 0, 0, 0, 1], &[]).fails((5, 0x24, 0x00));
    model.run(&[0x00; 5], &[]).fails((5, 0x24, 0x00));
}

/// Guards every LUN form: none of them panics, and only what is there is served.
#[test]
fn every_lun_form() {
    let mut model = Model::new();
    for first in 0..=u16::MAX {
        let lun = u64::from(first) << 48;
        let end = model.run_on(lun, &[0; 6], &[]);
        let there = matches!(first, 0x0000 | 0x4000 | 0xC101);
        assert_eq!(end.status == 0, there, "{first:04x} {:?}", end.sense_code());
    }
}

/// Guards against a session that calls out of turn: an error, never a panic or a command again.
#[test]
fn out_of_turn() {
    let model = Model::new();
    let mut nexus = Nexus::new(scsi_model::nexus_id());
    let (mut task, _) = Task::start(&model.view, &mut nexus, 0, &[0; 6]);
    for _ in 0..2 {
        for step in [task.data_out(vec![0; 512].into()), task.completed(Ok([].into_iter().collect()))] {
            let lunette_target_iscsi::scsi::Step::Done(response) = step else { panic!("{step:?}") };
            assert_eq!(scsi_model::sense_code(&response.sense), (4, 0x44, 0x00));
        }
    }
}

fn errors() -> impl Strategy<Value = Option<DeviceError>> {
    prop_oneof![
        Just(None),
        Just(Some(DeviceError::OutOfRange)),
        Just(Some(DeviceError::Invalid)),
        Just(Some(DeviceError::Busy)),
        Just(Some(DeviceError::TimedOut)),
        Just(Some(DeviceError::NoSpace)),
        any::<u64>().prop_map(|offset| Some(DeviceError::Medium { offset })),
        Just(Some(DeviceError::NotOwner)),
        Just(Some(DeviceError::Gone)),
    ]
}

fn attentions() -> impl Strategy<Value = Option<Attention>> {
    prop_oneof![
        4 => Just(None),
        1 => Just(Some(Attention::UnitReset)),
        1 => Just(Some(Attention::CapacityChanged)),
        1 => Just(Some(Attention::ReportedLunsChanged)),
    ]
}

/// Opcodes of the table, and sometimes any.
fn opcodes() -> impl Strategy<Value = u8> {
    const KNOWN: [u8; 51] = [
        0x00, 0x03, 0x08, 0x0A, 0x12, 0x15, 0x1A, 0x1B, 0x25, 0x28, 0x2A, 0x2F, 0x34, 0x35, 0x43, 0x42, 0x55,
        0x5A, 0x88, 0x8A, 0x8F, 0x90, 0x91, 0x93, 0x9E, 0xA0, 0xA3, 0xA8, 0xAA, 0xAF, 0x42, 0x1C, 0x1D, 0x2E,
        0x37, 0x89, 0x8B, 0x8E, 0x9C, 0xAE, 0xB7, 0x83, 0x84, 0x16, 0x17, 0x56, 0x57, 0x5E, 0x5F, 0x48, 0x4D,
    ];
    prop_oneof![9 => proptest::sample::select(&KNOWN[..]), 1 => any::<u8>()]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

    /// Guards combinations: any CDB, Data-Out, error of the device, condition and kind of unit.
    #[test]
    fn any_command(
        opcode in opcodes(),
        rest in proptest::collection::vec(prop_oneof![3 => Just(0u8), 1 => 0u8..32, 1 => any::<u8>()], 0..40),
        data_out in proptest::collection::vec(prop_oneof![3 => Just(0u8), 1 => any::<u8>()], 0..600),
        error in errors(),
        attention in attentions(),
        read_only: bool,
        write_back: bool,
        ready: bool,
        lun in prop_oneof![6 => Just(0u64), 1 => Just(0xC101u64 << 48), 1 => any::<u64>()],
    ) {
        let mut model = Model::new();
        model.write_back(write_back);
        model.change(|unit| unit.read_only = read_only);
        if !ready {
            model.readiness(Readiness::Starting);
        }
        if let Some(attention) = attention {
            model.nexus.attention(Scope::All, attention);
        }
        model.fails = error;
        let mut cdb = vec![opcode];
        cdb.extend(rest);
        let end = model.run_on(lun, &cdb, &data_out);
        if read_only {
            let changes = |command: &Command| {
                !matches!(command, Command::Read { .. } | Command::Flush | Command::Mapping { .. })
            };
            prop_assert!(!model.commands.iter().any(changes), "{end:?}");
        }
    }

    /// Guards parameter lists of PERSISTENT RESERVE OUT: any order of any of them.
    #[test]
    fn any_reservation(
        orders in proptest::collection::vec((
            0u8..9,
            0u8..10,
            prop_oneof![4 => Just(24u8), 1 => Just(52), 1 => any::<u8>()],
            proptest::collection::vec(
                prop_oneof![6 => Just(0u8), 1 => Just(1), 1 => Just(24), 1 => Just(0x45), 1 => any::<u8>()], 24..80),
        ), 1..8),
    ) {
        let mut model = Model::new();
        for (action, kind, len, mut list) in orders {
            // Keys are few, so that some fit.
            list[..7].fill(0);
            list[8..15].fill(0);
            model.run(&[0x5F, action, kind, 0, 0, 0, 0, 0, len, 0], &list);
            for report in 0..4 {
                model.run(&[0x5E, report, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0], &[]).good();
            }
        }
    }

    /// Guards SANITIZE: any list, with IMMED or not, and what follows on it.
    #[test]
    fn any_sanitize(
        orders in proptest::collection::vec((
            prop_oneof![2 => Just(1u8), 1 => Just(2), 1 => Just(0x1F), 1 => any::<u8>()],
            prop_oneof![3 => Just(8u8), 1 => Just(0), 1 => any::<u8>()],
            proptest::collection::vec(
                prop_oneof![4 => Just(0u8), 4 => Just(1), 2 => Just(4), 1 => any::<u8>()], 8..16),
            any::<bool>(),
        ), 1..6),
    ) {
        let mut model = Model::new();
        for (action, len, list, fails) in orders {
            model.sanitize_fails = fails;
            model.run(&[0x48, action, 0, 0, 0, 0, 0, 0, len, 0], &list);
            model.run(&[0; 6], &[]);
            model.run(&[0x03, 0, 0, 0, 18, 0], &[]).good();
        }
    }

    /// Guards parameter lists of UNMAP and MODE SELECT: any bytes under any lengths.
    #[test]
    fn any_parameter_list(
        opcode in proptest::sample::select(&[0x15u8, 0x42, 0x55][..]),
        len in 0u8..80,
        list in proptest::collection::vec(
            prop_oneof![6 => Just(0u8), 1 => Just(8), 1 => Just(10), 1 => Just(16), 1 => any::<u8>()], 0..80),
    ) {
        let mut model = Model::new();
        let mut cdb = vec![opcode, if opcode == 0x42 { 0 } else { 0x10 }, 0, 0, 0, 0, 0, 0, len, 0];
        if opcode == 0x15 {
            cdb = vec![opcode, 0x10, 0, 0, len, 0];
        }
        model.run(&cdb, &list);
    }
}

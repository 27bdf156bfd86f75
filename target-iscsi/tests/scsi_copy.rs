//! EXTENDED COPY(LID1) and RECEIVE COPY RESULTS between volumes in memory (SPC-4 5.16, 6.4, 6.18 to 6.21).

mod scsi_model;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use lunette_proto::ids::VolumeId;
use lunette_proto::map::naa;
use lunette_target_iscsi::scsi::{Attention, LogicalUnit, Response, Scope, Step, TargetView, Task};
use lunette_volume::device::{Command, DEALLOCATED, Data, DeviceError, MAPPED, Outcome};
use proptest::prelude::*;
use scsi_model::{CLUSTER, Model, cdb, pattern, sense_code};

const MIB: usize = 1 << 20;

/// Several volumes, their content, and a driver that carries out what a copy asks for.
struct Bench {
    model: Model,
    disks: BTreeMap<VolumeId, Vec<u8>>,
    done: Vec<(u16, Command)>,
    /// What the command of that number comes to.
    fails: Option<(usize, DeviceError)>,
}

/// A segment: source and destination descriptor, LBAs, blocks.
#[derive(Clone, Copy)]
struct Seg(u16, u16, u64, u64, u16);

fn target_of(volume: u64, block_bytes: u32) -> Vec<u8> {
    let mut bytes = vec![0xE4, 0, 0, 0, 0x01, 0x03, 0, 16];
    bytes.extend(naa(CLUSTER, VolumeId(volume)));
    bytes.extend([0; 4]);
    bytes.extend(block_bytes.to_be_bytes());
    bytes
}

fn segment(Seg(source, destination, from, to, blocks): Seg) -> Vec<u8> {
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
fn list(id: u8, targets: &[Vec<u8>], segments: &[Vec<u8>]) -> Vec<u8> {
    let (targets, segments) = (targets.concat(), segments.concat());
    let [high, low] = (targets.len() as u16).to_be_bytes();
    let mut bytes = vec![id, 0, high, low, 0, 0, 0, 0];
    bytes.extend((segments.len() as u32).to_be_bytes());
    bytes.extend([0; 4]);
    [bytes, targets, segments].concat()
}

fn copy_cdb(len: usize) -> Vec<u8> {
    cdb(16, 0x83, &[(10, &(len as u32).to_be_bytes())])
}

fn results(action: u8, id: u8, allocation: u32) -> Vec<u8> {
    cdb(16, 0x84, &[(1, &[action]), (2, &[id]), (10, &allocation.to_be_bytes())])
}

impl Bench {
    /// Volume 1 at LUN 0, volume 2 at LUN 1, each 8 MiB of 512-byte blocks, the first full of a pattern.
    fn new() -> Self {
        Self::with(512, 512)
    }

    /// The same with 1 MiB.
    fn small() -> Self {
        let mut bench = Self::sized(MIB);
        for (lun, volume) in [(0, 1), (1, 2)] {
            bench.map(lun, volume, |unit| unit.size_bytes = MIB as u64);
        }
        bench
    }

    fn with(first: u32, second: u32) -> Self {
        let mut bench = Self::sized(8 * MIB);
        bench.map(0, 1, |unit| unit.block_bytes = first);
        bench.map(1, 2, |unit| unit.block_bytes = second);
        bench
    }

    fn sized(bytes: usize) -> Self {
        let disks = BTreeMap::from([(VolumeId(1), pattern(bytes)), (VolumeId(2), vec![0; bytes])]);
        Self { model: Model::new(), disks, done: Vec::new(), fails: None }
    }

    fn map(&mut self, lun: u16, volume: u64, change: impl FnOnce(&mut LogicalUnit)) {
        let mut unit = (*self.model.view.luns[&0]).clone();
        (unit.volume, unit.size_bytes, unit.read_only) = (VolumeId(volume), 8 * MIB as u64, false);
        change(&mut unit);
        self.model.view.luns.insert(lun, Arc::new(unit));
        self.model.nexus.unit_attentions_taken(&self.model.view, lun);
    }

    fn disk(&self, volume: u64) -> &[u8] {
        &self.disks[&VolumeId(volume)]
    }

    /// Sends the list to LUN 0 and drives the copy to its end.
    fn copy(&mut self, list: &[u8]) -> Response {
        let (mut task, step) = self.start(list);
        self.drive(&mut task, step)
    }

    fn start(&mut self, list: &[u8]) -> (Task, Step) {
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

    fn drive(&mut self, task: &mut Task, mut step: Step) -> Response {
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

    fn carry_out(&mut self, lun: u16, unit: &LogicalUnit, command: Command) -> Outcome {
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

    fn run(&mut self, cdb: &[u8]) -> scsi_model::End {
        self.model.run(cdb, &[])
    }
}

/// Takes unit attentions so that they do not stand before what a test is about.
trait Ready {
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
fn good(response: &Response, list: &[u8]) {
    assert_eq!(response.status, 0, "{:02x?}", &response.sense[..]);
    assert_eq!(response.transfer_len, list.len() as u64);
}

/// CHECK CONDITION with that code; gives the sense data.
#[track_caller]
fn failed(response: &Response, want: (u8, u8, u8)) -> Vec<u8> {
    assert_eq!((response.status, sense_code(&response.sense)), (2, want), "{:02x?}", &response.sense[..]);
    response.sense.to_vec()
}

/// COPY ABORTED at a field of a segment descriptor: SKSV and SD, the field, the segment.
#[track_caller]
fn aborted_at(response: &Response, code: (u8, u8), segment: u16, field: u16) {
    let sense = failed(response, (0x0A, code.0, code.1));
    let [segment_high, segment_low] = segment.to_be_bytes();
    let [field_high, field_low] = field.to_be_bytes();
    assert_eq!(sense[8..12], [0, 0, segment_high, segment_low]);
    assert_eq!(sense[15..18], [0xA0, field_high, field_low]);
}

/// Guards the copy itself: what QEMU sends, two descriptors and a segment; nothing else moves.
#[test]
fn between_two_units() {
    let mut bench = Bench::new();
    let targets = [target_of(1, 512), target_of(2, 512)];
    let list = list(1, &targets, &[segment(Seg(0, 1, 3, 5, 7000))]);
    good(&bench.copy(&list), &list);
    let (from, to, len) = (3 * 512, 5 * 512, 7000 * 512);
    let mut want = vec![0; 8 * MIB];
    want[to..to + len].copy_from_slice(&pattern(8 * MIB)[from..from + len]);
    assert!(bench.disk(2) == want, "the destination");
    assert!(bench.disk(1) == pattern(8 * MIB), "the source");
    assert!(bench.done.iter().all(|(lun, command)| match command {
        Command::Write { .. } | Command::Zero { .. } => *lun == 1,
        _ => *lun == 0,
    }));
}

/// Guards several segments: in order, each its own source and destination, the second sees what the first
/// wrote.
#[test]
fn segments_in_order() {
    let mut bench = Bench::new();
    let targets = [target_of(2, 512), target_of(1, 512)];
    let segments =
        [Seg(1, 0, 0, 100, 10), Seg(0, 1, 100, 2000, 10), Seg(0, 0, 100, 300, 0), Seg(0, 0, 100, 200, 5)];
    let list = list(1, &targets, &segments.map(segment));
    good(&bench.copy(&list), &list);
    let moved = &pattern(8 * MIB)[..10 * 512];
    assert_eq!(bench.disk(2)[100 * 512..110 * 512], *moved);
    assert_eq!(bench.disk(1)[2000 * 512..2010 * 512], *moved);
    assert_eq!(bench.disk(2)[200 * 512..205 * 512], moved[..5 * 512]);
    assert!(bench.disk(2)[300 * 512..400 * 512].iter().all(|byte| *byte == 0));
}

/// Guards a list of nothing: no length, no descriptors, no segments.
#[test]
fn nothing_to_copy() {
    let mut bench = Bench::new();
    let end = bench.run(&copy_cdb(0));
    assert_eq!((end.data_out_len, end.transfer_len), (0, 0));
    end.good();
    for targets in [&[][..], &[target_of(1, 512)][..]] {
        let list = list(1, targets, &[]);
        good(&bench.copy(&list), &list);
    }
    for len in (1..16).chain([(64 << 10) + 1, u32::MAX as usize]) {
        bench.run(&copy_cdb(len)).fails((5, 0x1A, 0x00));
    }
    // The list is cut short by the initiator.
    bench.run(&copy_cdb(64)).fails((5, 0x1A, 0x00));
    assert!(bench.done.is_empty());
}

/// Guards ranges that overlap: every byte is read before it is written, in either direction.
#[test]
fn overlapping() {
    for (from, to) in [(0, 1000), (1000, 0), (0, 2048), (2048, 0), (7, 8), (8, 7), (5, 5)] {
        let mut bench = Bench::new();
        let list = list(1, &[target_of(1, 512)], &[segment(Seg(0, 0, from, to, 6000))]);
        good(&bench.copy(&list), &list);
        let mut want = pattern(8 * MIB);
        want.copy_within(from as usize * 512..(from as usize + 6000) * 512, to as usize * 512);
        assert!(bench.disk(1) == want, "{from} {to}");
        if from == to {
            assert!(bench.done.is_empty());
        }
    }
}

/// Guards against copies that are thicker than their originals: holes are zeroed, not written.
#[test]
fn holes() {
    let mut bench = Bench::new();
    let disk = bench.disks.get_mut(&VolumeId(1)).unwrap();
    disk[MIB..3 * MIB].fill(0);
    disk[4 * MIB..4 * MIB + 4096].fill(0); // too small to be worth it
    bench.disks.insert(VolumeId(2), vec![0xEE; 8 * MIB]);
    let list = list(1, &[target_of(1, 512), target_of(2, 512)], &[segment(Seg(0, 1, 0, 0, 5 * 2048))]);
    good(&bench.copy(&list), &list);
    assert!(bench.disk(2)[..5 * MIB] == bench.disk(1)[..5 * MIB]);
    assert!(bench.disk(2)[5 * MIB..].iter().all(|byte| *byte == 0xEE));
    let zeros: Vec<&Command> = bench
        .done
        .iter()
        .map(|(_, command)| command)
        .filter(|command| matches!(command, Command::Zero { .. }))
        .collect();
    assert_eq!(zeros, [&Command::Zero { offset: MIB as u64, len: 2 * MIB as u64 }]);
    assert!(!bench.done.contains(&(0, Command::Read { offset: MIB as u64, len: MIB as u32 })));
}

/// Guards block sizes that differ: bytes are bytes, DC says whose blocks count, a rest of a block is
/// UNEXPECTED INEXACT SEGMENT.
#[test]
fn block_sizes() {
    let mut bench = Bench::with(512, 4096);
    let targets = [target_of(1, 512), target_of(2, 4096)];
    let exact = list(1, &targets, &[segment(Seg(0, 1, 3, 2, 16))]);
    good(&bench.copy(&exact), &exact);
    assert_eq!(bench.disk(2)[8192..16384], pattern(8 * MIB)[3 * 512..19 * 512]);
    let mut counted_there = segment(Seg(0, 1, 8, 4, 2));
    counted_there[1] = 0x02;
    let list_there = list(1, &targets, &[counted_there]);
    good(&bench.copy(&list_there), &list_there);
    assert_eq!(bench.disk(2)[16384..24576], pattern(8 * MIB)[4096..4096 + 8192]);
    let inexact = list(1, &targets, &[segment(Seg(0, 1, 0, 0, 9))]);
    let moved = bench.done.len();
    aborted_at(&bench.copy(&inexact), (0x26, 0x0A), 0, 10);
    assert_eq!(bench.done.len(), moved);
    // The longest segment: 64 MiB.
    let mut large = Bench::with(4096, 4096);
    for lun in [0, 1] {
        large.map(lun, u64::from(lun) + 1, |unit| {
            (unit.block_bytes, unit.size_bytes) = (4096, 128 << 20);
        });
        large.disks.insert(VolumeId(u64::from(lun) + 1), vec![0; 128 << 20]);
    }
    let targets = [target_of(1, 4096), target_of(2, 4096)];
    let most = list(1, &targets, &[segment(Seg(0, 1, 0, 0, 16384))]);
    good(&large.copy(&most), &most);
    let more = list(1, &targets, &[segment(Seg(0, 1, 0, 0, 16385))]);
    aborted_at(&large.copy(&more), (0, 0), 0, 10);
}

/// Guards the checks that come before anything moves: each with its sense and where it points, also in a
/// second segment.
#[test]
fn bad_segments() {
    let blocks = 8 * MIB as u64 / 512;
    let targets = [target_of(1, 512), target_of(2, 512)];
    let cases = [
        (Seg(2, 1, 0, 0, 1), (0x08, 0x04), 4),
        (Seg(0, 2, 0, 0, 1), (0x08, 0x04), 6),
        (Seg(0, 0xC000, 0, 0, 1), (0x08, 0x04), 6),
        (Seg(0, 1, blocks, 0, 1), (0, 0), 12),
        (Seg(0, 1, 0, blocks - 1, 2), (0, 0), 20),
        (Seg(0, 1, u64::MAX, 0, 1), (0, 0), 12),
        (Seg(0, 1, 0, u64::MAX, 0), (0, 0), 20),
    ];
    for (index, (bad, code, field)) in cases.into_iter().enumerate() {
        let mut bench = Bench::new();
        let fine = segment(Seg(0, 1, 0, 0, 1));
        aborted_at(&bench.copy(&list(1, &targets, &[segment(bad)])), code, 0, field);
        aborted_at(&bench.copy(&list(1, &targets, &[fine.clone(), segment(bad)])), code, 1, field);
        assert!(bench.done.is_empty(), "case {index}");
    }
}

/// Guards descriptors: what names nothing here, the null device, a tape, the wrong block length.
#[test]
fn bad_targets() {
    let with = |at: usize, byte: u8| {
        let mut target = target_of(2, 512);
        target[at] = byte;
        target
    };
    let cases = [
        (target_of(3, 512), (0x0D, 0x02)),
        (with(1, 0x20), (0x0D, 0x02)),
        (with(1, 0x01), (0x0D, 0x03)),
        (with(5, 0x13), (0x0D, 0x02)),
        (with(4, 0x02), (0x0D, 0x02)),
    ];
    for (target, code) in cases {
        let mut bench = Bench::new();
        let targets = [target_of(1, 512), target];
        aborted_at(&bench.copy(&list(1, &targets, &[segment(Seg(0, 1, 0, 0, 1))])), code, 0, 6);
        aborted_at(&bench.copy(&list(1, &targets, &[segment(Seg(1, 0, 0, 0, 1))])), code, 0, 4);
        assert!(bench.done.is_empty());
        // Nobody asks for it.
        let unused = list(1, &targets, &[segment(Seg(0, 0, 0, 9, 1))]);
        good(&bench.copy(&unused), &unused);
    }
    let response = Bench::new().copy(&list(1, &[target_of(1, 512), target_of(2, 4096)], &[]));
    assert_eq!(failed(&response, (5, 0x26, 0x00))[15..18], [0x80, 0, 16 + 32 + 29]);
    let response = Bench::new().copy(&list(1, &[with(0, 0xE0)], &[]));
    assert_eq!(failed(&response, (5, 0x26, 0x07))[15..18], [0x80, 0, 16]);
}

/// Guards CSCD descriptor ID FFFFh: the unit that the command was sent to.
#[test]
fn itself() {
    let mut bench = Bench::new();
    let list = list(1, &[], &[segment(Seg(0xFFFF, 0xFFFF, 0, 5000, 16))]);
    good(&bench.copy(&list), &list);
    assert_eq!(bench.disk(1)[5000 * 512..5016 * 512], pattern(8 * MIB)[..8192]);
}

/// Guards the access of a copy: it reaches what its nexus sees, writes only what its nexus may write, and
/// says how the other unit refuses.
#[test]
fn access_matrix() {
    const SWP: [u8; 16] = [0, 0, 0, 0, 0x0A, 0x0A, 0, 0x10, 8, 0, 0, 0, 0xFF, 0xFF, 0, 0];
    type Change = fn(&mut Bench);
    let read_only: Change = |bench| bench.map(1, 2, |unit| unit.read_only = true);
    let protected: Change = |bench| {
        bench.model.run_on(1 << 48, &[0x15, 0x10, 0, 0, 16, 0], &SWP).good();
    };
    let unmapped: Change = |bench| {
        bench.model.view.luns.remove(&1);
    };
    let (from, to) = (Seg(1, 0, 0, 0, 8), Seg(0, 1, 0, 0, 8));
    // What is wrong with LUN 1; the copy; the refusal: code, then sense of LUN 1.
    let cases: [(&str, Change, Seg, Option<[u8; 3]>); 6] = [
        ("read only", read_only, from, None),
        ("read only", read_only, to, Some([7, 0x27, 0x00])),
        ("protected by software", protected, from, None),
        ("protected by software", protected, to, Some([7, 0x27, 0x02])),
        ("unmapped", unmapped, from, Some([0; 3])),
        ("unmapped", unmapped, to, Some([0; 3])),
    ];
    for (name, change, copied, refusal) in cases {
        let mut bench = Bench::new();
        change(&mut bench);
        let list = list(1, &[target_of(1, 512), target_of(2, 512)], &[segment(copied)]);
        let response = bench.copy(&list);
        match refusal {
            None => good(&response, &list),
            Some([0, ..]) => aborted_at(&response, (0x0D, 0x02), 0, if copied.0 == 1 { 4 } else { 6 }),
            Some([key, asc, ascq]) => {
                let sense = failed(&response, (0x0A, 0x0D, 0x01));
                assert_eq!(sense[8..12], [0, 18, 0, 0], "{name}");
                assert_eq!((sense[18], sense_code(&sense[19..])), (2, (key, asc, ascq)), "{name}");
            }
        }
        assert_eq!(bench.done.is_empty(), refusal.is_some(), "{name}");
    }
    // The same volume at two LUNs is written where that is allowed.
    let mut bench = Bench::new();
    read_only(&mut bench);
    bench.map(2, 2, |_| {});
    let list = list(1, &[target_of(1, 512), target_of(2, 512)], &[segment(to)]);
    good(&bench.copy(&list), &list);
    assert!(bench.done.iter().any(|(lun, command)| *lun == 2 && matches!(command, Command::Write { .. })));
    assert!(bench.done.iter().all(|(lun, _)| *lun != 1));
}

/// Guards EXTENDED COPY to a unit that is write protected itself: it is the destination that counts.
#[test]
fn sent_to_a_protected_unit() {
    let mut bench = Bench::new();
    bench.map(0, 1, |unit| unit.read_only = true);
    let list = list(1, &[target_of(1, 512), target_of(2, 512)], &[segment(Seg(0, 1, 0, 0, 8))]);
    good(&bench.copy(&list), &list);
}

/// Guards errors of devices: what was refused by whom, and BUSY only while nothing has changed.
#[test]
fn device_errors() {
    let (source, destination) = (18, 0);
    let medium = DeviceError::Medium { offset: 512 };
    // Commands: 0 Mapping, 1 Read, 2 Write, 3 Read, 4 Write.
    let cases = [
        (0, DeviceError::TimedOut, Some((source, [2, 0x0B, 0x08, 0x01]))),
        (1, medium, Some((source, [2, 3, 0x11, 0x00]))),
        (2, DeviceError::NoSpace, Some((destination, [2, 7, 0x27, 0x07]))),
        (3, DeviceError::NotOwner, Some((source, [2, 2, 0x04, 0x0B]))),
        (4, DeviceError::Busy, Some((destination, [8, 0, 0, 0]))),
        (0, DeviceError::Busy, None),
        (1, DeviceError::Busy, None),
        (2, DeviceError::Busy, None),
    ];
    for (number, error, want) in cases {
        let mut bench = Bench::new();
        bench.fails = Some((number, error.clone()));
        let list = list(1, &[target_of(1, 512), target_of(2, 512)], &[segment(Seg(0, 1, 0, 0, 4096))]);
        let response = bench.copy(&list);
        let Some((source_area, [status, key, asc, ascq])) = want else {
            assert_eq!((response.status, response.sense.len()), (8, 0), "{number} {error}");
            bench.run(&results(0, 1, 255)).bad_cdb_field(2, None);
            continue;
        };
        let sense = failed(&response, (0x0A, 0x0D, 0x01));
        assert_eq!(sense[8..12], [source_area, 18 - source_area, 0, 0], "{number} {error}");
        assert_eq!(sense[18], status, "{number} {error}");
        if status == 2 {
            assert_eq!(sense_code(&sense[19..]), (key, asc, ascq), "{number} {error}");
        } else {
            assert_eq!(sense.len(), 19);
        }
        assert_eq!(bench.done.len(), number + 1, "nothing follows");
    }
    for number in [1, 2] {
        let mut bench = Bench::new();
        bench.fails = Some((number, DeviceError::Gone));
        let list = list(1, &[target_of(1, 512), target_of(2, 512)], &[segment(Seg(0, 1, 0, 0, 4096))]);
        aborted_at(&bench.copy(&list), (0x0D, 0x02), 0, [4, 6][number - 1]);
    }
}

/// Guards a device that gives less than was asked for: a failure, not a copy of something else.
#[test]
fn short_answers() {
    for cut in [0, 1] {
        let mut bench = Bench::new();
        let (mut task, step) =
            bench.start(&list(1, &[target_of(1, 512)], &[segment(Seg(0, 0, 0, 4096, 64))]));
        let Step::Resolve = step else { panic!("{step:?}") };
        let mut step = task.resolve(&bench.model.view, &mut bench.model.nexus);
        for number in 0.. {
            let Step::Elsewhere(elsewhere) = step else { break };
            let mut data = bench.carry_out(elsewhere.lun, &elsewhere.unit, elsewhere.command).unwrap();
            if number == cut {
                let len = data[0].len();
                data[0].truncate(len - 1);
            }
            step = task.completed(Ok(data));
        }
        let Step::Done(response) = step else { panic!("{step:?}") };
        failed(&response, (4, 0x44, 0x00));
        assert!(!bench.done.iter().any(|(_, command)| matches!(command, Command::Write { .. })));
    }
}

/// Guards COPY STATUS: while it runs, when it has ended, once; and with an identifier nobody used.
#[test]
fn status() {
    let mut bench = Bench::new();
    bench.run(&results(0, 7, 255)).bad_cdb_field(2, None);
    let list = list(
        7,
        &[target_of(1, 512), target_of(2, 512)],
        &[segment(Seg(0, 1, 0, 0, 10)), segment(Seg(0, 1, 0, 0, 4096))],
    );
    let (mut task, step) = bench.start(&list);
    assert_eq!(bench.run(&results(0, 7, 255)).good(), [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0]);
    bench.run(&results(4, 7, 255)).bad_cdb_field(2, None);
    let (_, second) = bench.start(&list);
    let Step::Done(response) = second else { panic!("{second:?}") };
    failed(&response, (5, 0x00, 0x16));
    let Step::Resolve = step else { panic!("{step:?}") };
    let mut step = task.resolve(&bench.model.view, &mut bench.model.nexus);
    for _ in 0..6 {
        let Step::Elsewhere(elsewhere) = step else { panic!("{step:?}") };
        let outcome = bench.carry_out(elsewhere.lun, &elsewhere.unit, elsewhere.command);
        step = task.completed(outcome);
    }
    // The first segment, and a MiB of the second.
    let bytes = (MIB as u32 + 5120).to_be_bytes();
    let running = [&[0, 0, 0, 8, 0, 0, 1, 0][..], &bytes].concat();
    assert_eq!(bench.run(&results(0, 7, 255)).good(), running);
    good(&bench.drive(&mut task, step), &list);
    let bytes = (2 * MIB as u32 + 5120).to_be_bytes();
    let ended = [&[0, 0, 0, 8, 1, 0, 2, 0][..], &bytes].concat();
    assert_eq!(bench.run(&results(0, 7, 10)).good(), ended[..10]);
    bench.run(&results(0, 7, 255)).bad_cdb_field(2, None);
}

/// Guards FAILED SEGMENT DETAILS: the status and the sense data of the copy, once.
#[test]
fn failure_details() {
    let mut bench = Bench::new();
    let bad = list(3, &[target_of(1, 512)], &[segment(Seg(0, 9, 0, 0, 1))]);
    let sense = bench.copy(&bad).sense;
    assert_eq!(bench.run(&results(0, 3, 255)).good(), [0, 0, 0, 8, 2, 0, 0, 0, 0, 0, 0, 0]);
    let details = bench.run(&results(4, 3, 255)).good();
    assert_eq!(details[..4], (60 - 4 + sense.len() as u32).to_be_bytes());
    assert!(details[4..56].iter().all(|byte| *byte == 0));
    assert_eq!(details[56..60], [2, 0, 0, sense.len() as u8]);
    assert_eq!(details[60..], sense[..]);
    bench.run(&results(4, 3, 255)).bad_cdb_field(2, None);
    let fine = list(3, &[target_of(1, 512)], &[]);
    good(&bench.copy(&fine), &fine);
    assert_eq!(bench.run(&results(4, 3, 255)).good(), [0; 4]);
    // A list that was refused as a whole was no copy; nor are the unheld ones held.
    failed(&bench.copy(&list(4, &[target_of(1, 4096)], &[])), (5, 0x26, 0));
    let mut unheld = bad.clone();
    unheld[1] = 0x10;
    failed(&bench.copy(&unheld), (0x0A, 0x08, 0x04));
    for id in [3, 4] {
        bench.run(&results(0, id, 255)).bad_cdb_field(2, None);
    }
    // A reset forgets.
    bench.copy(&bad);
    bench.model.nexus.attention(Scope::Lun(0), Attention::UnitReset);
    bench.run(&[0; 6]).fails((6, 0x29, 0x03));
    bench.run(&results(4, 3, 255)).bad_cdb_field(2, None);
}

/// Guards D_SENSE: what is shown later has the format of what was sent.
#[test]
fn descriptor_sense() {
    const D_SENSE: [u8; 16] = [0, 0, 0, 0, 0x0A, 0x0A, 0x04, 0x10, 0, 0, 0, 0, 0xFF, 0xFF, 0, 0];
    let mut bench = Bench::new();
    bench.model.run(&[0x15, 0x10, 0, 0, 16, 0], &D_SENSE).good();
    let response = bench.copy(&list(3, &[target_of(1, 512)], &[segment(Seg(0, 9, 0, 0, 1))]));
    assert_eq!(response.sense[..4], [0x72, 0x0A, 0x08, 0x04]);
    assert_eq!(bench.run(&results(4, 3, 255)).good()[60..], response.sense[..]);
}

/// Guards OPERATING PARAMETERS: SPC-4 6.18.4, with the segment length that ESXi reads.
#[test]
fn operating_parameters() {
    for block in [512u32, 4096] {
        let mut bench = Bench::with(block, block);
        let data = bench.run(&results(3, 0, 255)).good();
        let be = |at: usize, len: usize| {
            data[at..at + len].iter().fold(0u32, |sum, byte| sum << 8 | u32::from(*byte))
        };
        assert_eq!((data.len(), be(0, 4), be(4, 1)), (46, 42, 1), "SNLID");
        assert_eq!((be(8, 2), be(10, 2), be(12, 4)), (8, 8, 8 * 32 + 8 * 28));
        assert_eq!((be(16, 4), be(20, 4), be(24, 4), be(28, 4)), (64 << 20, 0, 0, 0));
        assert_eq!((be(34, 2), be(36, 1), be(37, 1)), (128, 128, block.trailing_zeros()));
        assert_eq!(data[43..], [2, 0x02, 0xE4]);
        assert_eq!(bench.run(&results(3, 0, 20)).good(), data[..20]);
        bench.run(&results(1, 0, 255)).bad_cdb_field(1, Some(4));
    }
}

/// Guards the Third-party Copy page: SPC-4 7.8.17, every descriptor, and that it agrees with what REPORT
/// SUPPORTED OPERATION CODES says.
#[test]
fn third_party_copy_page() {
    let mut bench = Bench::new();
    let page = bench.run(&[0x12, 1, 0x8F, 4, 0, 0]).good();
    assert_eq!((page[1], usize::from(page[2]) << 8 | usize::from(page[3])), (0x8F, page.len() - 4));
    let mut rest = &page[4..];
    let mut found = BTreeMap::new();
    while let [a, b, c, d, after @ ..] = rest {
        let len = usize::from(*c) << 8 | usize::from(*d);
        assert!(len.is_multiple_of(4));
        found.insert(u16::from(*a) << 8 | u16::from(*b), after[..len].to_vec());
        rest = &after[len..];
    }
    let mut parameters = vec![0, 0, 0, 0, 0, 8, 0, 8, 0, 0, 1, 0xE0];
    parameters.resize(28, 0);
    let mut general = vec![0, 0, 0, 128, 0, 0, 0, 128, 4, 0, 0, 0, 9];
    general.resize(32, 0);
    let wanted = BTreeMap::from([
        (0x0001, vec![8, 0x83, 1, 0, 0x84, 3, 0, 3, 4, 0, 0, 0]),
        (0x0004, parameters),
        (0x0008, vec![2, 0x02, 0xE4, 0]),
        (0x000C, vec![0, 2, 0xFF, 0xFF]),
        (0x8001, general),
    ]);
    assert_eq!(found, wanted);
    for (opcode, action) in [(0x83, 0), (0x84, 0), (0x84, 3), (0x84, 4)] {
        let one =
            bench.run(&cdb(12, 0xA3, &[(1, &[0x0C]), (2, &[0x02, opcode, 0, action]), (6, &[0, 0, 0, 255])]));
        let data = one.good();
        assert_eq!((data[1] & 7, data[3], data[4], data[5]), (3, 16, opcode, action));
    }
}

/// Guards a copy that is interrupted: it ends as the other unit's refusal, and nothing is left running.
#[test]
fn cleared() {
    let mut bench = Bench::new();
    let list = list(5, &[target_of(1, 512), target_of(2, 512)], &[segment(Seg(0, 1, 0, 0, 4096))]);
    let (mut task, step) = bench.start(&list);
    assert!(matches!(step, Step::Resolve) && !task.works_on(&[VolumeId(2)]));
    let step = task.resolve(&bench.model.view, &mut bench.model.nexus);
    assert!(matches!(step, Step::Elsewhere(_)));
    assert!(task.works_on(&[VolumeId(9), VolumeId(2)]) && task.works_on(&[VolumeId(1)]));
    assert!(!task.works_on(&[VolumeId(9)]));
    let Step::Done(response) = task.cleared(&[VolumeId(2)]) else { panic!() };
    let sense = failed(&response, (0x0A, 0x0D, 0x01));
    assert_eq!((sense[8], sense[9], &sense[18..]), (0, 18, &[0x40][..]));
    assert!(!task.works_on(&[VolumeId(1), VolumeId(2)]));
    // A task that is dropped is no copy any more.
    let (task, _) = bench.start(&list);
    drop(task);
    bench.run(&results(0, 5, 255)).bad_cdb_field(2, None);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2048, failure_persistence: None, ..ProptestConfig::default() })]

    /// Guards any list: it ends, copies nothing but between the two units, or fails with sense data.
    #[test]
    fn any_list(
        mut header in proptest::collection::vec(prop_oneof![4 => Just(0u8), 1 => any::<u8>()], 16),
        targets in 0usize..10, segments in 0usize..10,
        noise in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..4),
        lies: bool,
    ) {
        let mut bench = Bench::small();
        let all = [target_of(1, 512), target_of(2, 512)];
        let targets: Vec<Vec<u8>> = all.iter().cycle().take(targets).cloned().collect();
        let segments = vec![segment(Seg(0, 1, 7, 9, 200)); segments];
        let mut bytes = list(1, &targets, &segments);
        if !lies {
            header.clone_from_slice(&bytes[..16]);
        }
        bytes[..16].copy_from_slice(&header);
        let len = bytes.len();
        noise.iter().for_each(|(at, byte)| bytes[at % len] = *byte);
        let response = bench.copy(&bytes);
        prop_assert!(matches!(response.status, 0 | 2));
        prop_assert_eq!(response.status == 2, !response.sense.is_empty());
    }
}

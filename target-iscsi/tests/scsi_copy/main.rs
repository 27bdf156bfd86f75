//! EXTENDED COPY(LID1) and RECEIVE COPY RESULTS between volumes in memory (SPC-4 5.16, 6.4, 6.18 to 6.21).

#[path = "../scsi_model/mod.rs"]
mod scsi_model;

mod bench;
mod results;

use lunette_proto::ids::VolumeId;
use lunette_target_iscsi::scsi::Step;
use lunette_volume::device::{Command, DeviceError};
use proptest::prelude::*;
use scsi_model::{pattern, sense_code};

use bench::*;

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

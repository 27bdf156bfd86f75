//! What RECEIVE COPY RESULTS and the pages that name limits say (SPC-4 6.18 to 6.21, 7.8.17).

use std::collections::BTreeMap;

use crate::scsi_model::cdb;
use lunette_target_iscsi::scsi::{Attention, Scope, Step};

use crate::bench::*;

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

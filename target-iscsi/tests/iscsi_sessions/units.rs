//! Logical units from outside: how they are addressed, and what does not report unit attentions.

use crate::bed::Bed;
use crate::initiator::{Initiator, read10};

fn inquiry() -> [u8; 16] {
    let mut cdb = [0; 16];
    (cdb[0], cdb[4]) = (0x12, 36);
    cdb
}

/// Guards addressing: peripheral, flat, the well-known logical unit, and what is not there.
#[test]
fn addressing() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[]);
    for (lun, device) in [
        (0, 0x00),
        (1 << 48, 0x00),
        (0x4001 << 48, 0x00),
        (0xc101 << 48, 0x1e),
        (9 << 48, 0x7f),
        (0x4100 << 48, 0x7f),
        (u64::MAX, 0x7f),
    ] {
        let ended = host.command_to(&mut bed, lun, inquiry(), 36, &[]);
        assert_eq!((ended.status, ended.data[0]), (0, device), "{lun:016x}");
        let sense = host.command_to(&mut bed, lun, read10(0, 1), 512, &[]).sense;
        let expected = match device {
            0x00 => None,
            0x1e => Some([5, 0x20, 0]),
            _ => Some([5, 0x25, 0]),
        };
        assert_eq!(sense, expected, "{lun:016x}");
    }
}

/// Guards unit attentions: INQUIRY, REPORT LUNS and REQUEST SENSE leave them for the next command.
#[test]
fn attentions_that_stay() {
    let mut bed = Bed::new();
    let mut host = Initiator::new(bed.connect());
    host.login(&mut bed, &[]).unwrap();
    let mut report_luns = [0; 16];
    (report_luns[0], report_luns[9]) = (0xa0, 64);
    let ended = host.read(&mut bed, report_luns, 64);
    assert_eq!((ended.status, ended.data.len()), (0, 24));
    assert_eq!(host.read(&mut bed, inquiry(), 36).status, 0);
    assert_eq!(host.read(&mut bed, read10(0, 1), 512).sense, Some([6, 0x29, 0]));
    assert_eq!(host.read(&mut bed, read10(0, 1), 512).status, 0);
}

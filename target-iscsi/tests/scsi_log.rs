//! LOG SENSE, against SPC-4 6.8 and 7.3.

mod scsi_model;

use scsi_model::{End, Model, cdb};

fn log_sense(model: &mut Model, control: u8, page: u8, subpage: u8, pointer: u16, allocation: u16) -> End {
    let fields: [(usize, &[u8]); 4] = [
        (2, &[control << 6 | page]),
        (3, &[subpage]),
        (5, &pointer.to_be_bytes()),
        (7, &allocation.to_be_bytes()),
    ];
    model.run(&cdb(10, 0x4D, &fields), &[])
}

/// Guards the lists of pages: complete, ascending, and each page that they name is there.
#[test]
fn supported_pages() {
    let mut model = Model::new();
    for control in 0..4 {
        let list = log_sense(&mut model, control, 0x00, 0x00, 0, 255).good();
        assert_eq!(list, [0x00, 0x00, 0, 3, 0x00, 0x19, 0x2F]);
        let list = log_sense(&mut model, control, 0x00, 0xFF, 0, 255).good();
        assert_eq!(list, [0x40, 0xFF, 0, 8, 0x00, 0x00, 0x00, 0xFF, 0x19, 0x00, 0x2F, 0x00]);
    }
    for page in [0x19, 0x2F] {
        let data = log_sense(&mut model, 1, page, 0, 0, 255).good();
        assert_eq!((data[0], data[1]), (0x80 | page, 0), "DS");
        assert_eq!(usize::from(u16::from_be_bytes([data[2], data[3]])), data.len() - 4);
    }
}

/// Guards page 19h: commands and blocks of both directions are counted, of whichever commands (SPC-4 7.3.9).
#[test]
fn statistics() {
    let mut model = Model::new();
    let counts = |model: &mut Model| {
        let data = log_sense(model, 1, 0x19, 0, 0, 255).good();
        assert_eq!((data.len(), &data[4..8]), (4 + 4 + 64 + 2 * 12, &[0x00, 0x01, 0x03, 64][..]));
        // No intervals, of no length.
        assert_eq!(data[72..84], [0x00, 0x02, 0x03, 8, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(data[84..], [0x00, 0x03, 0x03, 8, 0, 0, 0, 0, 0, 0, 0, 0]);
        let field = |at: usize| u64::from_be_bytes(data[8 + at * 8..][..8].try_into().expect("8 bytes"));
        assert!((4..8).all(|at| field(at) == 0));
        [field(0), field(1), field(2), field(3)]
    };
    assert_eq!(counts(&mut model), [0; 4]);
    model.run(&cdb(10, 0x28, &[(8, &[5])]), &[]).good();
    model.run(&cdb(16, 0x88, &[(13, &[2])]), &[]).good();
    assert_eq!(counts(&mut model), [2, 0, 0, 7]);
    model.run(&cdb(10, 0x2A, &[(8, &[3])]), &[1; 3 * 512]).good();
    model.run(&cdb(16, 0x89, &[(13, &[1])]), &[&[1; 512][..], &[2; 512]].concat()).good();
    assert_eq!(counts(&mut model), [2, 2, 5, 7]);
    model.run(&cdb(10, 0x41, &[(8, &[200])]), &[0; 512]).good();
    assert_eq!(counts(&mut model), [2, 3, 6, 7]);
    // What is refused has not been done.
    model.run(&cdb(10, 0x28, &[(2, &[0xFF; 4]), (8, &[1])]), &[]).fails((5, 0x21, 0x00));
    model.run(&[0; 6], &[]).good();
    assert_eq!(counts(&mut model), [2, 3, 6, 7]);
}

/// Guards page 2Fh: no exception, no temperature (SPC-4 7.3.11).
#[test]
fn informational_exceptions() {
    let mut model = Model::new();
    let data = log_sense(&mut model, 1, 0x2F, 0, 0, 255).good();
    assert_eq!(data, [0xAF, 0, 0, 8, 0x00, 0x00, 0x03, 4, 0, 0, 0xFF, 0]);
    assert_eq!(log_sense(&mut model, 1, 0x2F, 0, 0, 6).good(), data[..6]);
    assert_eq!(log_sense(&mut model, 1, 0x2F, 0, 0, 0).good(), []);
}

/// Guards LOG SENSE's fields, each with its pointer.
#[test]
fn refuses() {
    let mut model = Model::new();
    model.run(&cdb(10, 0x4D, &[(1, &[1])]), &[]).bad_cdb_field(1, Some(0));
    model.run(&cdb(10, 0x4D, &[(1, &[2])]), &[]).bad_cdb_field(1, Some(1));
    log_sense(&mut model, 1, 0x0D, 0, 0, 255).bad_cdb_field(2, Some(5));
    log_sense(&mut model, 1, 0x19, 0x01, 0, 255).bad_cdb_field(3, None);
    log_sense(&mut model, 1, 0x19, 0xFF, 0, 255).bad_cdb_field(3, None);
    log_sense(&mut model, 1, 0x00, 0x01, 0, 255).bad_cdb_field(3, None);
    log_sense(&mut model, 0, 0x19, 0, 0, 255).bad_cdb_field(2, Some(7));
    log_sense(&mut model, 1, 0x19, 0, 4, 255).bad_cdb_field(5, None);
    log_sense(&mut model, 1, 0x00, 0, 1, 255).bad_cdb_field(5, None);
    assert_eq!(log_sense(&mut model, 1, 0x19, 0, 1, 255).good().len(), 96);
    assert_eq!(log_sense(&mut model, 1, 0x19, 0, 2, 255).good()[4..6], [0x00, 0x02]);
}

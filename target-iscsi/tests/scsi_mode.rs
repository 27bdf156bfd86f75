//! MODE SENSE and MODE SELECT, against SPC-4 6.11 to 6.14 and 7.5.

mod scsi_model;

use scsi_model::{Model, cdb};

const CACHING: [u8; 3] = [0x08, 0x12, 0x00];

fn sense_6(model: &mut Model, page: u8, subpage: u8) -> Vec<u8> {
    model.run(&[0x1A, 0, page, subpage, 255, 0], &[]).good()
}

fn select_6(model: &mut Model, list: &[u8]) -> scsi_model::End {
    model.run(&[0x15, 0x10, 0, 0, list.len() as u8, 0], list)
}

/// The Control page with the bits that can be changed.
fn control(d_sense: bool, swp: bool) -> [u8; 12] {
    [0x0A, 0x0A, u8::from(d_sense) << 2, 0x10, u8::from(swp) << 3, 0, 0, 0, 0xFF, 0xFF, 0, 0]
}

/// Guards the (6) header: length, WP and DPOFUA, the block descriptor, DBD (SPC-4 7.5.5).
#[test]
fn header_6() {
    let mut model = Model::new();
    let data = sense_6(&mut model, 0x08, 0);
    assert_eq!(data[..12], [4 + 8 + 20 - 1, 0, 0x10, 8, 0, 0, 0x08, 0, 0, 0, 0x02, 0]);
    assert_eq!(data[12..15], CACHING);
    assert_eq!(data.len(), 32);
    let short = model.run(&[0x1A, 0x08, 0x08, 0, 255, 0], &[]).good();
    assert_eq!(short[..4], [4 + 20 - 1, 0, 0x10, 0]);
    model.write_back(true);
    model.change(|unit| unit.read_only = true);
    let data = sense_6(&mut model, 0x08, 0);
    assert_eq!((data[2], data[14]), (0x90, 0x04), "WP, WCE");
}

/// Guards the (10) header: both kinds of block descriptor (SPC-4 7.5.5).
#[test]
fn header_10() {
    let mut model = Model::with(1 << 42, 512);
    let data = model.run(&cdb(10, 0x5A, &[(2, &[0x08]), (7, &[1, 0])]), &[]).good();
    assert_eq!(data[..16], [0, 8 + 8 + 20 - 2, 0, 0x10, 0, 0, 0, 8, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 2, 0]);
    let data = model.run(&cdb(10, 0x5A, &[(1, &[0x10]), (2, &[0x08]), (7, &[1, 0])]), &[]).good();
    assert_eq!(data[..8], [0, 8 + 16 + 20 - 2, 0, 0x10, 1, 0, 0, 16]);
    assert_eq!(data[8..24], [0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0]);
    let data = model.run(&cdb(10, 0x5A, &[(1, &[0x18]), (2, &[0x08]), (7, &[1, 0])]), &[]).good();
    assert_eq!(data[..8], [0, 8 + 20 - 2, 0, 0x10, 0, 0, 0, 0]);
}

/// Guards allocation lengths that initiators use: 4, 8, 192, 255.
#[test]
fn cut_to_the_allocation_length() {
    let mut model = Model::new();
    let whole = sense_6(&mut model, 0x3F, 0);
    for len in [0, 4, 8, 192] {
        let end = model.run(&[0x1A, 0, 0x3F, 0, len, 0], &[]);
        assert_eq!(end.good(), whole[..whole.len().min(len.into())]);
    }
}

/// Guards the set of pages: ascending, complete, the same with all subpages.
#[test]
fn all_pages() {
    let mut model = Model::new();
    let data = sense_6(&mut model, 0x3F, 0);
    assert_eq!(usize::from(data[0]) + 1, data.len());
    let codes = |data: &[u8]| {
        let mut codes = Vec::new();
        let mut rest = &data[12..];
        while let &[code, second, ..] = rest {
            let (subpage, len) = match code & 0x40 {
                0 => (0, usize::from(second) + 2),
                _ => (second, usize::from(u16::from_be_bytes([rest[2], rest[3]])) + 4),
            };
            codes.push((code & 0x3F, subpage));
            rest = &rest[len..];
        }
        assert!(rest.is_empty());
        codes
    };
    assert_eq!(codes(&data), [(0x01, 0), (0x08, 0), (0x0A, 0), (0x1C, 0)]);
    let with_subpages = [(0x01, 0), (0x08, 0), (0x0A, 0), (0x0A, 1), (0x1C, 0)];
    assert_eq!(codes(&sense_6(&mut model, 0x3F, 0xFF)), with_subpages);
    assert_eq!(codes(&sense_6(&mut model, 0x0A, 0)), with_subpages[2..3]);
    assert_eq!(codes(&sense_6(&mut model, 0x0A, 1)), with_subpages[3..4]);
    assert_eq!(codes(&sense_6(&mut model, 0x0A, 0xFF)), with_subpages[2..4]);
    assert_eq!(codes(&sense_6(&mut model, 0x08, 0xFF)), with_subpages[1..2]);
}

/// Guards page control: what can be changed, defaults, and nothing saved (SPC-4 6.13).
#[test]
fn page_control() {
    let mut model = Model::new();
    select_6(&mut model, &[&[0; 4][..], &control(true, false)].concat()).good();
    assert_eq!(sense_6(&mut model, 0x0A, 0)[12..], control(true, false));
    assert_eq!(sense_6(&mut model, 0x4A, 0)[12..], [0x0A, 0x0A, 0x04, 0, 0x08, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(sense_6(&mut model, 0x8A, 0)[12..], control(false, false));
    assert_eq!(sense_6(&mut model, 0x48, 0)[14], 0x04, "WCE");
    assert!(sense_6(&mut model, 0x48, 0)[15..].iter().all(|byte| *byte == 0));
    model.run(&[0x1A, 0, 0xCA, 0, 255, 0], &[]).fails((5, 0x39, 0x00));
}

/// Guards pages that are not there: page and subpage, each with its pointer.
#[test]
fn unknown_pages() {
    let mut model = Model::new();
    model.run(&[0x1A, 0, 0x02, 0, 255, 0], &[]).bad_cdb_field(2, Some(5));
    model.run(&[0x1A, 0, 0x0A, 2, 255, 0], &[]).bad_cdb_field(3, None);
    model.run(&[0x1A, 0, 0x08, 1, 255, 0], &[]).bad_cdb_field(3, None);
    model.run(&[0x1A, 0, 0x3F, 1, 255, 0], &[]).bad_cdb_field(3, None);
}

/// Guards D_SENSE: sense data changes its format, until a reset.
#[test]
fn descriptor_sense() {
    let mut model = Model::new();
    select_6(&mut model, &[&[0; 4][..], &control(true, false)].concat()).good();
    let end = model.run(&[0x1A, 0, 0x02, 0, 255, 0], &[]);
    end.fails((5, 0x24, 0x00));
    assert_eq!(end.sense[..], [0x72, 5, 0x24, 0, 0, 0, 0, 8, 2, 6, 0, 0, 0xCD, 0, 2, 0]);
    model.view.luns[&0].shared.reset();
    assert_eq!(model.run(&[0x1A, 0, 0x02, 0, 255, 0], &[]).sense[0], 0x70);
}

/// Guards SWP: writes are refused as such, WP shows it, reads go on.
#[test]
fn software_write_protect() {
    let mut model = Model::new();
    let list = [&[0; 8][..], &control(false, true)].concat();
    let select_10 = cdb(10, 0x55, &[(1, &[0x10]), (8, &[list.len() as u8])]);
    model.run(&select_10, &list).good();
    let write = cdb(10, 0x2A, &[(8, &[1])]);
    model.run(&write, &[1; 512]).fails((7, 0x27, 0x02));
    model.run(&cdb(10, 0x28, &[(8, &[1])]), &[]).good();
    assert_eq!(sense_6(&mut model, 0x0A, 0)[2], 0x90);
    let list = [&[0; 8][..], &control(false, false)].concat();
    model.run(&select_10, &list).good();
    model.run(&write, &[1; 512]).good();
}

/// Guards MODE SELECT's CDB: a vendor's format, saving, reverting; and an empty list, which is legal.
#[test]
fn select_refuses_cdb_fields() {
    let mut model = Model::new();
    model.run(&[0x15, 0x00, 0, 0, 16, 0], &[]).bad_cdb_field(1, Some(4));
    model.run(&[0x15, 0x11, 0, 0, 16, 0], &[]).bad_cdb_field(1, Some(0));
    model.run(&[0x15, 0x12, 0, 0, 16, 0], &[]).bad_cdb_field(1, Some(1));
    model.run(&[0x15, 0x10, 0, 0, 0, 0], &[]).good();
}

/// Guards MODE SELECT's list: every field that does not fit is pointed at, and nothing is changed.
#[test]
fn select_refuses_parameters() {
    let mut model = Model::new();
    let d_sense = control(true, false);
    // Caching: RCD is fixed.
    let mut caching = [0; 24];
    caching[4..7].copy_from_slice(&[0x08, 0x12, 0x01]);
    select_6(&mut model, &caching).bad_parameter(6, Some(0));
    // A good page before a bad one takes no effect.
    let list = [&[0; 4][..], &d_sense, &[0x02, 0x0E], &[0; 14]].concat();
    select_6(&mut model, &list).bad_parameter(16, Some(5));
    // PAGE LENGTH, SPF, TST.
    select_6(&mut model, &[&[0; 4][..], &[0x0A, 0x09], &[0; 9]].concat()).bad_parameter(5, None);
    select_6(&mut model, &[&[0; 4][..], &[0x4A, 0x01, 0, 0]].concat()).bad_parameter(6, None);
    select_6(&mut model, &[&[0; 4][..], &[0x4A, 0x02, 0, 28], &[0; 28]].concat()).bad_parameter(5, None);
    select_6(&mut model, &[&[0; 4][..], &[0x48, 0x01, 0, 28], &[0; 28]].concat()).bad_parameter(5, None);
    // Control Extension: IALUAE cannot be turned off.
    select_6(&mut model, &[&[0; 4][..], &[0x4A, 0x01, 0, 28], &[0; 28]].concat()).bad_parameter(8, Some(0));
    let mut tst = d_sense;
    tst[2] |= 0x20;
    select_6(&mut model, &[&[0; 4][..], &tst].concat()).bad_parameter(6, Some(5));
    // Lists that end too early.
    select_6(&mut model, &[0; 3]).fails((5, 0x1A, 0x00));
    select_6(&mut model, &[&[0; 4][..], &d_sense[..11]].concat()).fails((5, 0x1A, 0x00));
    model.run(&[0x15, 0x10, 0, 0, 16, 0], &[0; 15]).fails((5, 0x1A, 0x00));
    assert_eq!(sense_6(&mut model, 0x0A, 0)[12..], control(false, false));
}

/// Guards the block descriptor of MODE SELECT: the volume's geometry or none.
#[test]
fn select_block_descriptor() {
    let mut model = Model::new();
    let mut select = |blocks: u32, length: u32| {
        let mut list = vec![0, 0, 0, 8];
        list.extend(blocks.to_be_bytes());
        list.extend(length.to_be_bytes());
        select_6(&mut model, &list)
    };
    for blocks in [0, 2048, u32::MAX] {
        select(blocks, 512).good();
    }
    select(2047, 512).bad_parameter(4, None);
    select(2048, 4096).bad_parameter(9, None);
    select_6(&mut model, &[0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]).bad_parameter(3, None);
    let mut long = vec![0; 24];
    (long[4], long[7]) = (1, 16);
    long[14..16].copy_from_slice(&2048u16.to_be_bytes());
    long[22] = 2;
    model.run(&cdb(10, 0x55, &[(1, &[0x10]), (8, &[24])]), &long).good();
    long[15] = 1;
    model.run(&cdb(10, 0x55, &[(1, &[0x10]), (8, &[24])]), &long).bad_parameter(8, None);
}

/// Guards WCE: it can be changed, a reset does not change it back, and its default is what it is.
#[test]
fn write_cache() {
    let mut model = Model::new();
    model.write_back(true);
    assert_eq!(sense_6(&mut model, 0x08, 0)[14], 0x04);
    assert_eq!(sense_6(&mut model, 0x88, 0)[14], 0x04);
    select_6(&mut model, &[&[0; 4][..], &control(true, true)].concat()).good();
    model.view.luns[&0].shared.reset();
    assert_eq!(sense_6(&mut model, 0x08, 0)[14], 0x04);
    assert_eq!(sense_6(&mut model, 0x0A, 0)[12..], control(false, false));
    model.write_back(false);
    assert_eq!(sense_6(&mut model, 0x08, 0)[14], 0x00);
}

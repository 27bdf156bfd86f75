//! SANITIZE, against SBC-3 4.11 and 5.24.

mod scsi_model;

use lunette_proto::map::{Sanitize, SanitizeKind};
use lunette_target_iscsi::scsi::{Ended, SharedUnit};
use scsi_model::{End, Model, cdb};

const IMMED: u8 = 0x80;
const AUSE: u8 = 0x20;
const OVERWRITE: u8 = 0x01;
const BLOCK_ERASE: u8 = 0x02;
const EXIT: u8 = 0x1F;
const SANITIZING: (u8, u8, u8) = (2, 0x04, 0x1B);
const FAILED: (u8, u8, u8) = (3, 0x31, 0x03);

fn sanitize(model: &mut Model, flags: u8, list: &[u8]) -> End {
    model.run(&cdb(10, 0x48, &[(1, &[flags]), (7, &(list.len() as u16).to_be_bytes())]), list)
}

fn overwrite(flags: u8, pattern: &[u8]) -> Vec<u8> {
    let mut list = vec![flags, 0];
    list.extend((pattern.len() as u16).to_be_bytes());
    list.extend(pattern);
    list
}

fn shared(model: &Model) -> &SharedUnit {
    &model.view.luns[&0].shared
}

fn operation(model: &Model) -> Option<Sanitize> {
    shared(model).state().sanitize.clone()
}

/// Whoever carries out the operation comes to its end.
fn end(model: &mut Model, has_failed: bool) {
    let (revision, _) = shared(model).sanitize_operation().expect("one goes on");
    model.settle(0, Box::new(Ended { revision, has_failed })).expect("it is kept");
}

/// Guards what is kept of an operation: what it does, and how it may be left.
#[test]
fn is_kept() {
    for (flags, unrestricted_exit) in [(IMMED, false), (IMMED | AUSE, true)] {
        let mut model = Model::new();
        let list = overwrite(0x83, &[0xAA, 0xBB]);
        let ended = sanitize(&mut model, flags | OVERWRITE, &list);
        assert_eq!(ended.data_out_len, 6);
        ended.good();
        let kind = SanitizeKind::Overwrite { pattern: vec![0xAA, 0xBB], count: 3, invert: true };
        assert_eq!(operation(&model), Some(Sanitize { kind, unrestricted_exit, has_failed: false }));
        end(&mut model, false);
        assert_eq!(operation(&model), None);
        sanitize(&mut model, flags | BLOCK_ERASE, &[]).good();
        let kind = SanitizeKind::BlockErase;
        assert_eq!(operation(&model), Some(Sanitize { kind, unrestricted_exit, has_failed: false }));
    }
}

/// Guards against anything else being done meanwhile, and progress that nobody sees (SBC-3 4.11.3).
#[test]
fn in_progress() {
    let mut model = Model::new();
    sanitize(&mut model, IMMED | BLOCK_ERASE, &[]).good();
    shared(&model).show_sanitize_progress(0x8001);
    for command in [
        vec![0; 6],
        cdb(10, 0x28, &[(8, &[1])]),
        cdb(10, 0x2A, &[(8, &[1])]),
        cdb(6, 0x1B, &[(4, &[1])]),
        cdb(6, 0x1A, &[(2, &[0x3F]), (4, &[255])]),
        cdb(10, 0x25, &[]),
        cdb(10, 0x48, &[(1, &[IMMED | BLOCK_ERASE])]),
        cdb(10, 0x48, &[(1, &[EXIT])]),
    ] {
        let ended = model.run(&command, &[]);
        ended.fails(SANITIZING);
        assert_eq!(ended.sense[15..18], [0x80, 0x80, 0x01], "{command:02x?}");
    }
    model.run(&[0x12, 0, 0, 0, 96, 0], &[]).good();
    model.run(&cdb(12, 0xA0, &[(9, &[255])]), &[]).good();
    let sense = model.run(&[0x03, 0, 0, 0, 18, 0], &[]).good();
    assert_eq!((scsi_model::sense_code(&sense), &sense[15..18]), (SANITIZING, &[0x80, 0x80, 0x01][..]));
    end(&mut model, false);
    model.run(&[0; 6], &[]).good();
    assert_eq!(scsi_model::sense_code(&model.run(&[0x03, 0, 0, 0, 18, 0], &[]).good()), (0, 0, 0));
    assert_eq!(model.commands, []);
}

/// Guards IMMED=0: the status is that of the operation.
#[test]
fn is_waited_for() {
    let mut model = Model::new();
    let ended = sanitize(&mut model, OVERWRITE, &overwrite(1, &[7]));
    assert_eq!(ended.transfer_len, 5);
    ended.good();
    assert_eq!(operation(&model), None);
    model.sanitize_fails = true;
    sanitize(&mut model, BLOCK_ERASE, &[]).fails(FAILED);
    assert!(operation(&model).is_some_and(|operation| operation.has_failed));
}

/// Guards a failed operation: nothing goes until it is left, if AUSE allowed that, or begun again (SBC-3 4.11.5).
#[test]
fn failure() {
    for ause in [0, AUSE] {
        let mut model = Model::new();
        sanitize(&mut model, IMMED | ause | BLOCK_ERASE, &[]).good();
        end(&mut model, true);
        model.run(&[0; 6], &[]).fails(FAILED);
        model.run(&cdb(10, 0x28, &[(8, &[1])]), &[]).fails(FAILED);
        model.run(&[0x12, 0, 0, 0, 96, 0], &[]).good();
        assert_eq!(scsi_model::sense_code(&model.run(&[0x03, 0, 0, 0, 18, 0], &[]).good()), FAILED);
        let left = sanitize(&mut model, EXIT, &[]);
        if ause == 0 {
            left.bad_cdb_field(1, Some(4));
            sanitize(&mut model, IMMED | AUSE | BLOCK_ERASE, &[]).bad_cdb_field(1, Some(5));
            sanitize(&mut model, IMMED | BLOCK_ERASE, &[]).good();
            end(&mut model, false);
        } else {
            left.good();
        }
        assert_eq!(operation(&model), None);
        model.run(&[0; 6], &[]).good();
    }
    // Nothing to leave is no error.
    sanitize(&mut Model::new(), EXIT, &[]).good();
}

/// Guards the end of an operation against ending another one.
#[test]
fn ends_once() {
    let mut model = Model::new();
    sanitize(&mut model, IMMED | BLOCK_ERASE, &[]).good();
    let (revision, _) = shared(&model).sanitize_operation().expect("one goes on");
    end(&mut model, false);
    // The same once more: whoever has just carried out the first must not end the second.
    sanitize(&mut model, IMMED | BLOCK_ERASE, &[]).good();
    assert!(matches!(model.settle(0, Box::new(Ended { revision, has_failed: false })), Ok(None)));
    assert!(operation(&model).is_some());
    assert!(!shared(&model).sanitize_step(revision, || panic!("a step of an operation that has ended")));
    let (revision, _) = shared(&model).sanitize_operation().expect("one goes on");
    let mut steps = 0;
    assert!(shared(&model).sanitize_step(revision, || steps += 1));
    assert_eq!(steps, 1);
}

/// Guards SANITIZE's fields: what is reserved, lengths, and every field of the list, each with its pointer.
#[test]
fn refuses() {
    let mut model = Model::new();
    for action in [OVERWRITE, BLOCK_ERASE, EXIT] {
        model.run(&cdb(10, 0x48, &[(1, &[0x40 | action])]), &[]).bad_cdb_field(1, Some(6));
        for byte in 2..7 {
            let reserved = cdb(10, 0x48, &[(1, &[action]), (byte, &[1])]);
            model.run(&reserved, &[]).bad_cdb_field(byte as u16, None);
        }
    }
    for action in [0x00, 0x03, 0x04, 0x1E] {
        sanitize(&mut model, action, &[]).bad_cdb_field(1, Some(4));
    }
    for len in [0, 1, 4, 512 + 5] {
        sanitize(&mut model, OVERWRITE, &vec![1; len]).bad_cdb_field(7, None);
    }
    for action in [BLOCK_ERASE, EXIT] {
        sanitize(&mut model, action, &[0; 8]).bad_cdb_field(7, None);
    }
    sanitize(&mut model, OVERWRITE, &overwrite(0x00, &[1; 4])).bad_parameter(0, Some(4));
    sanitize(&mut model, OVERWRITE, &overwrite(0x21, &[1; 4])).bad_parameter(0, Some(6));
    let mut list = overwrite(0x01, &[1; 512]);
    for len in [0u16, 513, 516] {
        list[2..4].copy_from_slice(&len.to_be_bytes());
        sanitize(&mut model, OVERWRITE, &list).bad_parameter(2, None);
    }
    // A pattern that is not all there.
    list[2..4].copy_from_slice(&9u16.to_be_bytes());
    sanitize(&mut model, OVERWRITE, &list[..8]).bad_parameter(2, None);
    model.run(&cdb(10, 0x48, &[(1, &[OVERWRITE]), (8, &[8])]), &[0; 7]).fails((5, 0x1A, 0x00));
    assert_eq!(operation(&model), None);
    assert_eq!(model.commands, []);
}

/// Guards write protection: by the map, and by the initiator.
#[test]
fn write_protected() {
    let mut model = Model::new();
    let mut list = vec![0; 16];
    list[4..8].copy_from_slice(&[0x0A, 0x0A, 0, 0x10]);
    list[8] = 0x08;
    list[12..14].fill(0xFF);
    model.run(&[0x15, 0x10, 0, 0, 16, 0], &list).good();
    sanitize(&mut model, IMMED | BLOCK_ERASE, &[]).fails((7, 0x27, 0x02));
    model.change(|unit| unit.read_only = true);
    sanitize(&mut model, OVERWRITE, &overwrite(1, &[0])).fails((7, 0x27, 0x00));
    assert_eq!(operation(&model), None);
}

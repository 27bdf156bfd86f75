//! Commands that move, check and discard data, on a volume in memory (SBC-3 5).

mod scsi_model;

use bytes::Bytes;
use lunette_target_iscsi::scsi::{Step, Task};
use lunette_volume::device::{Command, Data, DeviceError};
use scsi_model::{Model, cdb, pattern};

const END_OF_MODEL: u64 = 2048;

/// A READ, WRITE or VERIFY with its fields where its CDB length has them.
fn transfer(len: usize, opcode: u8, flags: u8, lba: u64, blocks: u32) -> Vec<u8> {
    let lba32 = (lba as u32).to_be_bytes();
    match len {
        6 => {
            let [_, high, mid, low] = lba32;
            vec![opcode, high | flags, mid, low, blocks as u8, 0]
        }
        10 => cdb(10, opcode, &[(1, &[flags]), (2, &lba32), (7, &(blocks as u16).to_be_bytes())]),
        12 => cdb(12, opcode, &[(1, &[flags]), (2, &lba32), (6, &blocks.to_be_bytes())]),
        _ => cdb(16, opcode, &[(1, &[flags]), (2, &lba.to_be_bytes()), (10, &blocks.to_be_bytes())]),
    }
}

const READS: [(usize, u8); 4] = [(6, 0x08), (10, 0x28), (12, 0xA8), (16, 0x88)];
const WRITES: [(usize, u8); 4] = [(6, 0x0A), (10, 0x2A), (12, 0xAA), (16, 0x8A)];
const VERIFIES: [(usize, u8); 3] = [(10, 0x2F), (12, 0xAF), (16, 0x8F)];

/// Guards the way of the data: what any WRITE puts somewhere, any READ finds there, and nothing else moves.
#[test]
fn write_then_read() {
    for block in [512, 4096] {
        for (write_len, write) in WRITES {
            for (read_len, read) in READS {
                let mut model = Model::with(1 << 20, block);
                let data = pattern(3 * block as usize);
                let end = model.run(&transfer(write_len, write, 0, 17, 3), &data);
                assert_eq!((end.transfer_len, end.data_out_len), (u64::from(3 * block), 3 * block));
                end.good();
                let read = model.run(&transfer(read_len, read, 0, 16, 5), &[]).good();
                let edge = vec![0; block as usize];
                assert_eq!(read, [&edge[..], &data, &edge].concat());
            }
        }
    }
}

/// Guards READ(6) and WRITE(6): 21 bits of LBA, and 0 blocks are 256 (SBC-2 5.5).
#[test]
fn short_cdbs() {
    let mut model = Model::with(1 << 29, 512);
    model.run(&[0x08, 0x1F, 0xFF, 0x00, 1, 0], &[]).fails((5, 0x21, 0x00));
    model.run(&[0x08, 0xEF, 0xF0, 0x00, 0, 0], &[]).good();
    assert_eq!(model.commands, [Command::Read { offset: 0xF_F000 * 512, len: 256 * 512 }]);
    assert_eq!(model.run(&[0x0A, 0, 0, 0, 0, 0], &[1; 256 * 512]).data_out_len, 256 * 512);
}

/// Guards the end of the volume: the last block is inside, 0 blocks at the end too, 2^64 does not wrap.
#[test]
fn ranges() {
    let mut model = Model::new();
    for (len, opcode) in READS.into_iter().chain(WRITES).skip(1).filter(|(len, _)| *len > 6) {
        model.run(&transfer(len, opcode, 0, END_OF_MODEL - 1, 1), &[0; 512]).good();
        let none = model.run(&transfer(len, opcode, 0, END_OF_MODEL, 0), &[]);
        assert_eq!((none.data_out_len, none.transfer_len), (0, 0));
        none.good();
        for (lba, blocks) in
            [(END_OF_MODEL, 1), (END_OF_MODEL - 1, 2), (END_OF_MODEL + 1, 0), (0xFFFF_FFFF, 1)]
        {
            model.run(&transfer(len, opcode, 0, lba, blocks), &[]).fails((5, 0x21, 0x00));
        }
    }
    for (lba, blocks) in [(u64::MAX, 1), (u64::MAX, u32::MAX), (u64::MAX - 1, 1), (1 << 55, 1), (u64::MAX, 0)]
    {
        for opcode in [0x88, 0x8A, 0x8F, 0x90, 0x91, 0x93] {
            let end = model.run(&transfer(16, opcode, 0, lba, blocks.max(u32::from(opcode == 0x93))), &[]);
            // WRITE SAME looks at its own maximum first.
            let want = if opcode == 0x93 && blocks == u32::MAX { 0x24 } else { 0x21 };
            end.fails((5, want, 0x00));
        }
    }
}

/// Guards MAXIMUM TRANSFER LENGTH: 8 MiB go, one block more does not, and the field is pointed at.
#[test]
fn maximum_transfer() {
    let mut model = Model::with(1 << 30, 512);
    for (len, opcode, field) in [(12, 0xA8, 6), (16, 0x88, 10), (12, 0xAA, 6), (16, 0x8A, 10), (12, 0xAF, 6)]
    {
        model.run(&transfer(len, opcode, 0, 0, 16385), &[]).bad_cdb_field(field, None);
        model.run(&transfer(len, opcode, 0, 0, 16384), &[]).good();
    }
    Model::with(1 << 30, 4096).run(&transfer(10, 0x28, 0, 0, 2049), &[]).bad_cdb_field(7, None);
}

/// Guards the flags: protection is refused, DPO ignored, FUA of a WRITE passed on.
#[test]
fn flags() {
    let mut model = Model::new();
    for (len, opcode) in READS.into_iter().chain(WRITES).chain(VERIFIES).filter(|(len, _)| *len > 6) {
        model.run(&transfer(len, opcode, 0x20, 0, 1), &[]).bad_cdb_field(1, Some(7));
        model.run(&transfer(len, opcode, 0x10, 0, 1), &[0; 512]).good();
    }
    for (len, opcode) in WRITES.into_iter().skip(1) {
        for (flags, want) in [(0x00, false), (0x08, true)] {
            model.run(&transfer(len, opcode, flags, 0, 1), &[0; 512]).good();
            assert!(matches!(model.commands.last(), Some(Command::Write { fua, .. }) if *fua == want));
        }
    }
}

/// Guards FUA of a READ: on a write-back volume what is read is durable (SBC-3 5.11).
#[test]
fn fua_read() {
    let mut model = Model::new();
    let read = transfer(10, 0x28, 0x08, 0, 1);
    model.run(&read, &[]).good();
    assert_eq!(model.commands, [Command::Read { offset: 0, len: 512 }]);
    model.commands.clear();
    model.write_back(true);
    assert_eq!(model.run(&read, &[]).good().len(), 512);
    assert_eq!(model.commands, [Command::Flush, Command::Read { offset: 0, len: 512 }]);
}

/// Guards writes that the initiator cuts short: whole blocks of what came, and the CDB's length for
/// the residual.
#[test]
fn short_data_out() {
    for (came, written) in [(0, 0), (511, 0), (512, 512), (1025, 1024), (2048, 2048)] {
        let mut model = Model::new();
        let end = model.run(&transfer(10, 0x2A, 0, 0, 4), &vec![0xAA; came]);
        assert_eq!(end.transfer_len, 2048);
        end.good();
        assert_eq!(model.content.iter().filter(|byte| **byte == 0xAA).count(), written);
    }
}

/// Guards against copies: the slices of the device, and of the initiator, go through as they are.
#[test]
fn data_is_not_copied() {
    let mut model = Model::new();
    let (mut task, _) = Task::start(&model.view, &mut model.nexus, 0, &transfer(10, 0x28, 0, 0, 2));
    let slices = [Bytes::from(vec![1; 100]), Bytes::from(vec![2; 924])];
    let Step::Done(response) = task.completed(Ok(Data::from_iter(slices.clone()))) else { panic!() };
    assert!(response.data_in.iter().zip(&slices).all(|(got, sent)| got.as_ptr() == sent.as_ptr()));
    assert_eq!(response.data_in.len(), 2);

    let (mut task, _) = Task::start(&model.view, &mut model.nexus, 0, &transfer(10, 0x2A, 0, 0, 2));
    let sent = Bytes::from(vec![3; 1024]);
    let Step::Submit(Command::Write { data, .. }) = task.data_out(sent.clone()) else { panic!() };
    assert_eq!(data.as_ptr(), sent.as_ptr());
}

/// Guards against a device that answers a read with too little: no initiator sees it as data.
#[test]
fn wrong_length_from_the_device() {
    let mut model = Model::new();
    let (mut task, _) = Task::start(&model.view, &mut model.nexus, 0, &transfer(10, 0x28, 0, 0, 2));
    let Step::Done(response) = task.completed(Ok(Data::from_iter([Bytes::from(vec![1; 512])]))) else {
        panic!()
    };
    assert_eq!((response.status, scsi_model::sense_code(&response.sense)), (2, (4, 0x44, 0x00)));
}

/// Guards write protection: nothing of a read-only map changes, everything else works.
#[test]
fn read_only() {
    let mut model = Model::new();
    model.change(|unit| unit.read_only = true);
    for (len, opcode) in WRITES {
        model.run(&transfer(len, opcode, 0, 0, 1), &[1; 512]).fails((7, 0x27, 0x00));
    }
    model.run(&transfer(10, 0x41, 0, 0, 1), &[1; 512]).fails((7, 0x27, 0x00));
    model.run(&transfer(16, 0x93, 0, 0, 1), &[1; 512]).fails((7, 0x27, 0x00));
    model.run(&unmap_cdb(24), &unmap_list(&[(0, 1)])).fails((7, 0x27, 0x00));
    for (len, opcode) in WRITE_AND_VERIFIES {
        model.run(&transfer(len, opcode, 0, 0, 1), &[1; 512]).fails((7, 0x27, 0x00));
    }
    model.run(&compare_and_write(0, 0, 1), &[0; 1024]).fails((7, 0x27, 0x00));
    model.run(&transfer(16, 0x8B, 0, 0, 1), &[1; 512]).fails((7, 0x27, 0x00));
    model.run(&write_atomic(0, 0, 8), &[1; 4096]).fails((7, 0x27, 0x00));
    assert_eq!(model.commands, []);
    for (len, opcode) in READS.into_iter().chain(VERIFIES) {
        model.run(&transfer(len, opcode, 0, 0, 1), &[]).good();
    }
    model.run(&transfer(10, 0x35, 0, 0, 0), &[]).good();
}

/// Guards errors of the device: status, sense and the LBA of what cannot be read.
#[test]
fn device_errors() {
    let mut model = Model::new();
    let read = transfer(10, 0x28, 0, 8, 8);
    model.fails = Some(DeviceError::Busy);
    assert_eq!(model.run(&read, &[]).status, 0x08);
    model.fails = Some(DeviceError::Medium { offset: 10 * 512 + 5 });
    let end = model.run(&read, &[]);
    end.fails((3, 0x11, 0x00));
    assert_eq!(end.sense[..7], [0xF0, 0, 3, 0, 0, 0, 10]);
    model.fails = Some(DeviceError::NoSpace);
    model.run(&transfer(10, 0x2A, 0, 8, 1), &[1; 512]).fails((7, 0x27, 0x07));
    model.fails = Some(DeviceError::TimedOut);
    model.run(&transfer(10, 0x35, 0, 0, 0), &[]).fails((0xB, 0x08, 0x01));
}

/// Guards SYNCHRONIZE CACHE and PRE-FETCH: one flush, none; ranges are checked.
#[test]
fn cache() {
    let mut model = Model::new();
    for (len, sync, prefetch) in [(10, 0x35, 0x34), (16, 0x91, 0x90)] {
        for flags in [0x00, 0x02] {
            model.commands.clear();
            model.run(&transfer(len, sync, flags, 4, 0), &[]).good();
            assert_eq!(model.commands, [Command::Flush]);
            model.run(&transfer(len, prefetch, flags, 4, 4), &[]).good();
            assert_eq!(model.commands, [Command::Flush]);
        }
        model.run(&transfer(len, sync, 0, END_OF_MODEL, 1), &[]).fails((5, 0x21, 0x00));
        model.run(&transfer(len, prefetch, 0, END_OF_MODEL, 1), &[]).fails((5, 0x21, 0x00));
    }
}

/// Guards VERIFY: it reads; with BYTCHK it compares each byte, and names the first that differs.
#[test]
fn verify() {
    for (len, opcode) in VERIFIES {
        let mut model = Model::with(8 << 20, 512);
        model.content = pattern(8 << 20);
        // More than is read at once, so that offsets go on over several reads.
        let blocks = 5000u32;
        let same = model.content[512..512 * 5001].to_vec();
        let plain = model.run(&transfer(len, opcode, 0x00, 1, blocks), &[]);
        assert_eq!((plain.data_out_len, plain.transfer_len), (0, 0));
        plain.good();
        let read: u64 = model
            .commands
            .iter()
            .map(|command| match command {
                Command::Read { len, .. } => u64::from(*len),
                other => panic!("{other:?}"),
            })
            .sum();
        assert_eq!(read, 5000 * 512);
        let equal = model.run(&transfer(len, opcode, 0x02, 1, blocks), &same);
        assert_eq!((equal.data_out_len, equal.transfer_len), (5000 * 512, 5000 * 512));
        equal.good();
        for at in [0, 511, 512, 1_500_003, same.len() - 1] {
            let mut other = same.clone();
            other[at] ^= 0x80;
            let end = model.run(&transfer(len, opcode, 0x02, 1, blocks), &other);
            end.fails((0xE, 0x1D, 0x00));
            assert_eq!(end.sense[0], 0xF0);
            assert_eq!(end.sense[3..7], (at as u32).to_be_bytes());
        }
        model.run(&transfer(len, opcode, 0x04, 1, 1), &[]).bad_cdb_field(1, Some(2));
        assert_eq!(model.run(&transfer(len, opcode, 0x02, 1, 0), &[]).data_out_len, 0);
    }
}

/// Guards BYTCHK 11b: one block of Data-Out is compared with each block.
#[test]
fn verify_with_one_block() {
    let mut model = Model::new();
    let block = pattern(512);
    model.content[1024..1024 + 512 * 7].copy_from_slice(&block.repeat(7));
    let end = model.run(&transfer(16, 0x8F, 0x06, 2, 7), &block);
    assert_eq!((end.data_out_len, end.transfer_len), (512, 512));
    end.good();
    model.content[1024 + 512 * 6 + 9] ^= 1;
    let end = model.run(&transfer(16, 0x8F, 0x06, 2, 7), &block);
    end.fails((0xE, 0x1D, 0x00));
    assert_eq!(end.sense[3..7], [0, 0, 0, 9]);
    model.run(&transfer(16, 0x8F, 0x06, 2, 7), &block[..511]).fails((5, 0x24, 0x00));
}

fn unmap_cdb(len: u16) -> Vec<u8> {
    cdb(10, 0x42, &[(7, &len.to_be_bytes())])
}

fn unmap_list(descriptors: &[(u64, u32)]) -> Vec<u8> {
    let len = descriptors.len() as u16 * 16;
    let mut list = [(len + 6).to_be_bytes(), len.to_be_bytes(), [0; 2], [0; 2]].concat();
    for (lba, blocks) in descriptors {
        list.extend(lba.to_be_bytes());
        list.extend(blocks.to_be_bytes());
        list.extend([0; 4]);
    }
    list
}

fn unmap(model: &mut Model, descriptors: &[(u64, u32)]) -> scsi_model::End {
    let list = unmap_list(descriptors);
    model.run(&unmap_cdb(list.len() as u16), &list)
}

/// Guards UNMAP: each range is zeroed, empty ones cost nothing, also at the very end (SBC-3 5.28).
#[test]
fn unmap_ranges() {
    let mut model = Model::new();
    model.content.fill(1);
    let end = unmap(&mut model, &[(0, 1), (8, 8), (4, 0), (END_OF_MODEL - 1, 1), (END_OF_MODEL, 0)]);
    assert_eq!(end.transfer_len, 8 + 5 * 16);
    end.good();
    let zero = |lba: u64, blocks: u64| Command::Zero { offset: lba * 512, len: blocks * 512 };
    assert_eq!(model.commands, [zero(0, 1), zero(8, 8), zero(END_OF_MODEL - 1, 1)]);
    unmap(&mut model, &[]).good();
    model.run(&unmap_cdb(0), &[]).good();
}

/// Guards UNMAP's limits: 256 descriptors, 2^20 blocks, the end; nothing is unmapped before all is checked.
#[test]
fn unmap_limits() {
    let mut model = Model::with(1 << 40, 512);
    unmap(&mut model, &[(0, 1); 256]).good();
    assert_eq!(model.commands.len(), 256);
    model.commands.clear();
    unmap(&mut model, &[(0, 1); 257]).bad_parameter(2, None);
    unmap(&mut model, &[(0, 1 << 20)]).good();
    model.commands.clear();
    unmap(&mut model, &[(0, 1), (0, 1 << 20)]).bad_parameter(8 + 16 + 8, None);
    unmap(&mut model, &[(0, 1), (u64::MAX, 1)]).fails((5, 0x21, 0x00));
    unmap(&mut model, &[(0, 1), ((1 << 31) - 1, 2)]).fails((5, 0x21, 0x00));
    assert_eq!(model.commands, []);
    model.run(&cdb(10, 0x42, &[(1, &[1]), (8, &[24])]), &unmap_list(&[(0, 1)])).bad_cdb_field(1, Some(0));
}

/// Guards UNMAP's list: too short is an error, a descriptor that is cut off is ignored (SBC-3 5.28).
#[test]
fn unmap_list_lengths() {
    let mut model = Model::new();
    let list = unmap_list(&[(0, 1), (8, 1)]);
    for len in 1..8 {
        model.run(&unmap_cdb(len), &list).fails((5, 0x1A, 0x00));
    }
    model.run(&unmap_cdb(40), &list[..39]).fails((5, 0x1A, 0x00));
    model.run(&unmap_cdb(24), &list).fails((5, 0x1A, 0x00));
    assert_eq!(model.commands, []);
    let mut odd = list.clone();
    odd[3] = 31;
    model.run(&unmap_cdb(40), &odd).good();
    assert_eq!(model.commands, [Command::Zero { offset: 0, len: 512 }]);
}

/// Guards the promise of BUSY and ILLEGAL REQUEST: once a part has happened, it is neither.
#[test]
fn partly_done() {
    let mut model = Model::new();
    let list = unmap_list(&[(0, 1), (8, 1)]);
    for error in [DeviceError::Busy, DeviceError::OutOfRange, DeviceError::Gone] {
        let (mut task, _) = Task::start(&model.view, &mut model.nexus, 0, &unmap_cdb(40));
        task.data_out(list.clone().into());
        task.completed(Ok(Data::new()));
        let Step::Done(response) = task.completed(Err(error)) else { panic!() };
        assert_eq!((response.status, scsi_model::sense_code(&response.sense)), (2, (0xB, 0x08, 0x00)));
    }
    model.fails = Some(DeviceError::Busy);
    assert_eq!(unmap(&mut model, &[(0, 1), (8, 1)]).status, 0x08);
}

/// Guards WRITE SAME: the block is everywhere in the range and nowhere else; whole pieces at boundaries.
#[test]
fn write_same() {
    for (len, opcode) in [(10, 0x41), (16, 0x93)] {
        let mut model = Model::with(16 << 20, 512);
        let block = pattern(512);
        for flags in [0x00, 0x08] {
            model.content.fill(0);
            model.commands.clear();
            let end = model.run(&transfer(len, opcode, flags, 3, 9000), &block);
            assert_eq!((end.data_out_len, end.transfer_len), (512, 512));
            end.good();
            assert!(model.content[3 * 512..9003 * 512].chunks_exact(512).all(|written| written == block));
            assert!(
                model.content[..3 * 512].iter().chain(&model.content[9003 * 512..]).all(|byte| *byte == 0)
            );
            for command in &model.commands {
                let Command::Write { offset, data, fua: false } = command else { panic!("{command:?}") };
                assert!(data.len() <= 1 << 20);
                let end = offset + data.len() as u64;
                assert!(end.is_multiple_of(1 << 20) || end == 9003 * 512);
            }
        }
    }
}

/// Guards zeros: with and without UNMAP, or without Data-Out, they are one command.
#[test]
fn write_same_of_zeros() {
    let zero = [Command::Zero { offset: 512, len: 2000 * 512 }];
    for (len, opcode, flags, data_out) in [
        (10, 0x41, 0x00, 512),
        (10, 0x41, 0x08, 512),
        (16, 0x93, 0x00, 512),
        (16, 0x93, 0x08, 512),
        (16, 0x93, 0x09, 0),
        (16, 0x93, 0x01, 0),
    ] {
        let mut model = Model::new();
        let end = model.run(&transfer(len, opcode, flags, 1, 2000), &[0; 512]);
        assert_eq!((end.data_out_len, end.transfer_len), (data_out, u64::from(data_out)));
        end.good();
        assert_eq!(model.commands, zero);
    }
}

/// Guards WRITE SAME's fields: no blocks (WSNZ), too many, ANCHOR, obsolete bits, protection, the end.
#[test]
fn write_same_refuses() {
    let mut model = Model::with(1 << 40, 512);
    model.run(&transfer(10, 0x41, 0, 0, 0), &[]).bad_cdb_field(7, None);
    model.run(&transfer(16, 0x93, 0, 0, 0), &[]).bad_cdb_field(10, None);
    model.run(&transfer(16, 0x93, 1, 0, (16 << 20) / 512 + 1), &[]).bad_cdb_field(10, None);
    model.run(&transfer(16, 0x93, 1, 0, (16 << 20) / 512), &[]).good();
    model.run(&transfer(16, 0x93, 0x18, 0, 1), &[]).bad_cdb_field(1, Some(4));
    model.run(&transfer(16, 0x93, 0x04, 0, 1), &[]).bad_cdb_field(1, Some(2));
    model.run(&transfer(10, 0x41, 0x20, 0, 1), &[]).bad_cdb_field(1, Some(7));
    model.run(&transfer(16, 0x93, 0, 1 << 31, 1), &[]).fails((5, 0x21, 0x00));
    model.run(&transfer(16, 0x93, 0, 0, 1), &[1; 511]).fails((5, 0x24, 0x00));
}

/// Guards the one length that must fit: WRITE SAME with another expected length is refused at once.
#[test]
fn write_same_expected_length() {
    let mut model = Model::new();
    for (expected, refused) in [(256, true), (512, false), (1024, true), (0, true)] {
        let (mut task, _) = Task::start(&model.view, &mut model.nexus, 0, &transfer(10, 0x41, 0, 0, 1));
        let step = task.check_expected(expected);
        assert_eq!(matches!(step, Some(Step::Done(ref response)) if response.status == 2), refused);
    }
    let (mut task, _) = Task::start(&model.view, &mut model.nexus, 0, &transfer(10, 0x2A, 0, 0, 1));
    assert!(task.check_expected(100).is_none(), "WRITE takes what comes");
}

fn lba_status(lba: u64, allocation: u32) -> Vec<u8> {
    cdb(16, 0x9E, &[(1, &[0x12]), (2, &lba.to_be_bytes()), (10, &allocation.to_be_bytes())])
}

/// The descriptors of GET LBA STATUS: LBA, blocks, whether they are deallocated.
fn statuses(data: &[u8]) -> Vec<(u64, u32, bool)> {
    assert_eq!(data[..8], [&((data.len() - 4) as u32).to_be_bytes()[..], &[0; 4]].concat());
    let descriptors = data[8..].chunks_exact(16);
    assert!(descriptors.remainder().is_empty());
    descriptors
        .map(|bytes| {
            assert!(bytes[12] <= 1 && bytes[13..] == [0; 3]);
            let blocks = u32::from_be_bytes(bytes[8..12].try_into().expect("a slice of that length"));
            (
                u64::from_be_bytes(bytes[..8].try_into().expect("a slice of that length")),
                blocks,
                bytes[12] == 1,
            )
        })
        .collect()
}

/// Guards GET LBA STATUS: runs of one status, from the LBA that was asked for, also inside of a block of
/// the device (SBC-3 5.4).
#[test]
fn get_lba_status() {
    for (block, per) in [(512u32, 8u64), (4096, 1)] {
        let mut model = Model::with(1 << 20, block);
        model.mapped.extend([2, 3, 4, 200]);
        let want = [(0, 2, true), (2, 3, false), (5, 195, true), (200, 1, false), (201, 55, true)];
        let want: Vec<_> = want
            .iter()
            .map(|(at, len, hole): &(u64, u64, bool)| (at * per, (len * per) as u32, *hole))
            .collect();
        assert_eq!(statuses(&model.run(&lba_status(0, 4096), &[]).good()), want);
        assert_eq!(statuses(&model.run(&lba_status(0, 8 + 3 * 16 + 15), &[]).good()), want[..3]);
        let (from, left) = (3 * per + per / 2, 2 * per - per / 2);
        assert_eq!(statuses(&model.run(&lba_status(from, 24), &[]).good()), [(from, left as u32, false)]);
        let last = (1 << 20) / u64::from(block) - 1;
        assert_eq!(statuses(&model.run(&lba_status(last, 24), &[]).good()), [(last, 1, true)]);
        model.run(&lba_status(last + 1, 24), &[]).fails((5, 0x21, 0x00));
        model.run(&lba_status(u64::MAX, 24), &[]).fails((5, 0x21, 0x00));
        assert_eq!(model.run(&lba_status(0, 8), &[]).good(), [0, 0, 0, 20, 0, 0, 0, 0]);
        assert_eq!(model.run(&lba_status(0, 0), &[]).good(), []);
    }
}

/// Guards against a command that looks at a whole volume: runs go on over the pieces it asks for, of which
/// there are 32 of 256 MiB at most.
#[test]
fn get_lba_status_is_bounded() {
    let mut model = Model::with(1 << 42, 512);
    let data = model.run(&lba_status(5, 4096), &[]).good();
    assert_eq!(statuses(&data), [(5, 1 << 24, true)], "8 GiB");
    // The first piece ends where whole ones begin.
    assert_eq!(model.commands.len(), 33);
    model.commands.clear();
    model.mapped.insert((256 << 20) / 4096);
    let data = model.run(&lba_status(0, 24), &[]).good();
    assert_eq!(statuses(&data), [(0, 1 << 19, true)], "256 MiB");
    assert_eq!(model.commands.len(), 2);
    model.fails = Some(DeviceError::Busy);
    assert_eq!(model.run(&lba_status(0, 24), &[]).status, 0x08);
}

const WRITE_AND_VERIFIES: [(usize, u8); 3] = [(10, 0x2E), (12, 0xAE), (16, 0x8E)];

/// Guards WRITE AND VERIFY: it writes through to the medium, reads that, and compares if it is to.
#[test]
fn write_and_verify() {
    for (len, opcode) in WRITE_AND_VERIFIES {
        let mut model = Model::with(8 << 20, 512);
        let data = pattern(5000 * 512);
        for flags in [0x00, 0x02, 0x12] {
            model.content.fill(0);
            model.commands.clear();
            let end = model.run(&transfer(len, opcode, flags, 1, 5000), &data);
            assert_eq!((end.data_out_len, end.transfer_len), (5000 * 512, 5000 * 512));
            end.good();
            assert_eq!(model.content[512..5001 * 512], data);
            let [Command::Write { fua: true, .. }, reads @ ..] = &model.commands[..] else { panic!() };
            let read: u64 = reads
                .iter()
                .map(|command| match command {
                    Command::Read { len, .. } => u64::from(*len),
                    other => panic!("{other:?}"),
                })
                .sum();
            assert_eq!(read, 5000 * 512);
        }
        for bytchk in [0x04, 0x06] {
            model.run(&transfer(len, opcode, bytchk, 1, 1), &data).bad_cdb_field(1, Some(2));
        }
        model.run(&transfer(len, opcode, 0x20, 1, 1), &data).bad_cdb_field(1, Some(7));
        model.run(&transfer(len, opcode, 0, 16384, 1), &data).fails((5, 0x21, 0x00));
        assert_eq!(model.run(&transfer(len, opcode, 0, 16384, 0), &[]).data_out_len, 0);
        // What came of a transfer that was cut short is written and verified.
        let end = model.run(&transfer(len, opcode, 0x02, 9, 3), &[7; 1030]);
        assert_eq!(end.transfer_len, 3 * 512);
        end.good();
        assert_eq!(model.content[9 * 512..11 * 512], [7; 1024]);
    }
}

/// Guards WRITE AND VERIFY against a medium that took something else, and against a promise that nothing happened.
#[test]
fn write_and_verify_failures() {
    let mut model = Model::new();
    let cdb = transfer(10, 0x2E, 0x02, 0, 2);
    let start = |model: &mut Model| {
        let (mut task, _) = Task::start(&model.view, &mut model.nexus, 0, &cdb);
        task.data_out(vec![1; 1024].into());
        let Step::Submit(Command::Read { .. }) = task.completed(Ok(Data::new())) else { panic!() };
        task
    };
    let mut other = vec![1; 1024];
    other[700] = 2;
    let Step::Done(response) = start(&mut model).completed(Ok(Data::from_iter([other.into()]))) else {
        panic!()
    };
    assert_eq!(scsi_model::sense_code(&response.sense), (0xE, 0x1D, 0x00));
    assert_eq!(response.sense[3..7], 700u32.to_be_bytes());
    let Step::Done(response) = start(&mut model).completed(Err(DeviceError::Busy)) else { panic!() };
    assert_eq!((response.status, scsi_model::sense_code(&response.sense)), (2, (0xB, 0x08, 0x00)));
    model.fails = Some(DeviceError::Busy);
    assert_eq!(model.run(&cdb, &[1; 1024]).status, 0x08);
}

fn compare_and_write(flags: u8, lba: u64, blocks: u8) -> Vec<u8> {
    cdb(16, 0x89, &[(1, &[flags]), (2, &lba.to_be_bytes()), (13, &[blocks])])
}

/// Guards COMPARE AND WRITE: a block changes if it holds what was expected, else the first byte that differs
/// is named and nothing has changed (SBC-3 5.2).
#[test]
fn compare_and_write_blocks() {
    for block in [512usize, 4096] {
        let mut model = Model::with(1 << 20, block as u32);
        let (old, new) = (pattern(block), vec![0xEE; block]);
        model.content[3 * block..4 * block].copy_from_slice(&old);
        for flags in [0x00, 0x08, 0x10] {
            let end = model.run(&compare_and_write(flags, 3, 1), &[&old[..], &new].concat());
            assert_eq!((end.data_out_len, end.transfer_len), (2 * block as u32, 2 * block as u64));
            end.good();
            assert_eq!(model.content[3 * block..4 * block], new);
            assert!(
                matches!(model.commands.last(), Some(Command::CompareAndWrite { fua, .. }) if *fua == (flags == 8))
            );
            model.run(&compare_and_write(0, 3, 1), &[&new[..], &old].concat()).good();
        }
        let before = model.content.clone();
        let mut wrong = old.clone();
        wrong[block - 5] ^= 1;
        let end = model.run(&compare_and_write(0, 3, 1), &[&wrong[..], &new].concat());
        end.fails((0xE, 0x1D, 0x00));
        assert_eq!(end.sense[0], 0xF0);
        assert_eq!(end.sense[3..7], (block as u32 - 5).to_be_bytes());
        assert_eq!(model.content, before);
    }
}

/// Guards COMPARE AND WRITE's fields: one block at most, none is legal, protection and the end are checked.
#[test]
fn compare_and_write_fields() {
    let mut model = Model::new();
    model.run(&compare_and_write(0x20, 0, 1), &[0; 1024]).bad_cdb_field(1, Some(7));
    for blocks in [2, 255] {
        model.run(&compare_and_write(0, 0, blocks), &[0; 2048]).bad_cdb_field(13, None);
    }
    model.run(&compare_and_write(0, END_OF_MODEL, 1), &[0; 1024]).fails((5, 0x21, 0x00));
    model.run(&compare_and_write(0, END_OF_MODEL + 1, 0), &[]).fails((5, 0x21, 0x00));
    assert_eq!(model.run(&compare_and_write(0, END_OF_MODEL, 0), &[]).data_out_len, 0);
    model.run(&compare_and_write(0, 0, 1), &[0; 1023]).fails((5, 0x24, 0x00));
    assert_eq!(model.commands, []);
}

/// Guards lengths that must fit as a whole, before any Data-Out is asked for: COMPARE AND WRITE takes exactly two
/// halves, also of no blocks, and WRITE ATOMIC is not cut short.
#[test]
fn exact_expected_lengths() {
    let mut model = Model::new();
    for (cdb, expected, refused) in [
        (compare_and_write(0, 0, 1), 1024, false),
        (compare_and_write(0, 0, 1), 512, true),
        (compare_and_write(0, 0, 1), 2048, true),
        (compare_and_write(0, 0, 0), 0, false),
        (compare_and_write(0, 0, 0), 256 * 1024, true),
        (write_atomic(0, 0, 8), 4096, false),
        (write_atomic(0, 0, 8), 8192, false),
        (write_atomic(0, 0, 8), 4095, true),
    ] {
        let (mut task, _) = Task::start(&model.view, &mut model.nexus, 0, &cdb);
        let step = task.check_expected(expected);
        assert_eq!(step.is_some(), refused, "{cdb:02x?} {expected}");
        if let Some(step) = step {
            let Step::Done(response) = step else { panic!() };
            assert_eq!((response.status, scsi_model::sense_code(&response.sense)), (2, (5, 0x24, 0x00)));
        }
    }
}

/// Guards ORWRITE: bits are set and none is cleared (SBC-3 5.6).
#[test]
fn or_write() {
    let mut model = Model::new();
    model.content[1024..2048].fill(0x0F);
    for (flags, want) in [(0x00, false), (0x08, true), (0x10, false)] {
        let end = model.run(&transfer(16, 0x8B, flags, 2, 2), &[&[0x30; 512][..], &[0x01; 512]].concat());
        assert_eq!((end.data_out_len, end.transfer_len), (1024, 1024));
        end.good();
        assert!(matches!(model.commands.last(), Some(Command::Or { fua, .. }) if *fua == want));
    }
    assert!(model.content[1024..1536].iter().all(|byte| *byte == 0x3F));
    assert!(model.content[1536..2048].iter().all(|byte| *byte == 0x0F));
    model.run(&transfer(16, 0x8B, 0x20, 0, 1), &[]).bad_cdb_field(1, Some(7));
    model.run(&transfer(16, 0x8B, 0, END_OF_MODEL, 1), &[]).fails((5, 0x21, 0x00));
    assert_eq!(model.run(&transfer(16, 0x8B, 0, END_OF_MODEL, 0), &[]).data_out_len, 0);
    Model::with(1 << 30, 512).run(&transfer(16, 0x8B, 0, 0, 16385), &[]).bad_cdb_field(10, None);
}

fn write_atomic(flags: u8, lba: u64, blocks: u16) -> Vec<u8> {
    cdb(16, 0x9C, &[(1, &[flags]), (2, &lba.to_be_bytes()), (12, &blocks.to_be_bytes())])
}

/// Guards WRITE ATOMIC: what the device cannot keep whole is refused with the field that says so (SBC-4 5.46).
#[test]
fn write_atomic_fields() {
    const MAX: u16 = (scsi_model::ATOMIC_BYTES / 512) as u16;
    let mut model = Model::new();
    for (lba, blocks) in [(0, 8), (8, 16), (120, 8), (128, MAX), (END_OF_MODEL - 8, 8)] {
        let data = pattern(usize::from(blocks) * 512);
        let end = model.run(&write_atomic(0x08, lba, blocks), &data);
        assert_eq!((end.data_out_len as usize, end.transfer_len as usize), (data.len(), data.len()));
        end.good();
        assert!(matches!(model.commands.last(), Some(Command::WriteAtomic { .. })));
        assert_eq!(model.content[lba as usize * 512..][..data.len()], data);
    }
    model.commands.clear();
    assert_eq!(model.run(&write_atomic(0, END_OF_MODEL, 0), &[]).data_out_len, 0);
    model.run(&write_atomic(0x20, 0, 8), &[]).bad_cdb_field(1, Some(7));
    model.run(&write_atomic(0, 4, 8), &[]).bad_cdb_field(2, None);
    model.run(&write_atomic(0, 0, 7), &[]).bad_cdb_field(12, None);
    model.run(&write_atomic(0, 0, MAX + 8), &[]).bad_cdb_field(12, None);
    // Over a boundary of the device.
    model.run(&write_atomic(0, u64::from(MAX) - 8, 16), &[]).bad_cdb_field(12, None);
    model.run(&write_atomic(0, END_OF_MODEL, 8), &[]).fails((5, 0x21, 0x00));
    let mut parts = write_atomic(0, 0, 8);
    parts[11] = 8;
    model.run(&parts, &[]).bad_cdb_field(10, None);
    model.run(&write_atomic(0, 0, 8), &[0; 4095]).fails((5, 0x24, 0x00));
    assert_eq!(model.commands, []);
    Model::with(1 << 20, 4096).run(&write_atomic(0, 3, 1), &[0; 4096]).good();
}

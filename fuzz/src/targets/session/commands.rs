//! SCSI commands of a session: as they should be, and any.

use super::super::commands::{KNOWN, name_units};
use super::{Bed, Order, SENT_BYTES_MAX};
use crate::Input;

impl Bed {
    /// READ, WRITE and their kin, as they should be.
    pub(super) fn io(&mut self, slot: usize, what: u8, input: &mut Input<'_>) {
        let kind = input.u8();
        let lun = u64::from(kind & 1);
        let block: u32 = if lun == 0 { 512 } else { 4096 };
        let blocks_max = if lun == 0 { 16 } else { 4 };
        let lba = input.below(blocks_max);
        let blocks = input.below(blocks_max - lba + 1);
        let seed = input.u8();
        let opcode =
            [0x2A, 0x28, 0x8A, 0x88, 0x0A, 0x08, 0xAA, 0xA8, 0x41, 0x93, 0x8B, 0x89, 0x2E, 0x9C, 0x42, 0x8E]
                [usize::from(kind >> 1 & 15)];
        let blocks = if matches!(opcode, 0x89) { 1 } else { blocks };
        let mut cdb = vec![0; 16];
        cdb[0] = opcode;
        match opcode {
            0x08 | 0x0A => {
                cdb[1..4].copy_from_slice(&lba.to_be_bytes()[1..]);
                cdb[4] = blocks.max(1) as u8;
            }
            0x28 | 0x2A | 0x2E | 0x41 => {
                cdb[2..6].copy_from_slice(&lba.to_be_bytes());
                cdb[8] = blocks as u8;
            }
            0xA8 | 0xAA => {
                cdb[2..6].copy_from_slice(&lba.to_be_bytes());
                cdb[9] = blocks as u8;
            }
            0x42 => cdb[8] = 24,
            _ => {
                cdb[6..10].copy_from_slice(&lba.to_be_bytes());
                cdb[13] = blocks as u8;
            }
        }
        let blocks = if matches!(opcode, 0x08 | 0x0A) { blocks.max(1) } else { blocks };
        let len = (blocks * block) as usize;
        let pattern = |len: usize| -> Vec<u8> {
            (0..len).map(|at| (at / 512) as u8 ^ (at as u8).wrapping_mul(seed | 1)).collect()
        };
        let data = match opcode {
            0x28 | 0x88 | 0x08 | 0xA8 => Vec::new(),
            0x41 | 0x93 => pattern(block as usize),
            0x89 => {
                let at = (lba * block) as usize;
                let have = &self.shadow[lun as usize].memory;
                let mut data = have.get(at..at + len).map(<[u8]>::to_vec).unwrap_or_default();
                data.extend(pattern(len));
                data
            }
            0x42 => {
                let mut list = vec![0, 22, 0, 16, 0, 0, 0, 0];
                list.extend(u64::from(lba).to_be_bytes());
                list.extend(blocks.to_be_bytes());
                list.extend([0; 4]);
                list
            }
            _ => pattern(len),
        };
        let read = matches!(opcode, 0x28 | 0x88 | 0x08 | 0xA8);
        let expected = if read { len } else { data.len() };
        let order = Order {
            cdb: &cdb,
            lun: lun << 48,
            expected: u32::try_from(expected).expect("it is short"),
            read: read && len > 0,
            write: !data.is_empty(),
            data: &data,
            immediate: what & 0x40 != 0,
            eager: what & 0x20 != 0,
        };
        self.command(slot, &order);
    }

    /// Any CDB with any expectation.
    pub(super) fn any_command(&mut self, slot: usize, input: &mut Input<'_>) {
        let how = input.u8();
        let (opcode, action, len) = input.pick(&KNOWN);
        let mut cdb = input.bytes(len - 1).to_vec();
        cdb.insert(0, opcode);
        cdb.resize(len, 0);
        cdb[1] |= action;
        if how & 0x80 != 0 {
            cdb[0] = input.u8();
            cdb.resize(16 + usize::from(input.u8() & 0x1F), 0);
        }
        cdb.resize(cdb.len().max(16), 0);
        let lun = match input.u8() {
            lun @ 0..=3 => u64::from(lun) << 48,
            4 => 0xC101 << 48,
            lun if lun < 0x40 => u64::from(lun) << 48,
            lun => u64::from(lun) << 56 | u64::from(input.u8()) << 48,
        };
        let mut given = input.short().to_vec();
        if cdb[0] == 0x83 {
            name_units(&mut given);
        }
        let expected = match how & 7 {
            0 => u32::try_from(given.len()).expect("it is short"),
            1 => 512,
            2 => 4096,
            3 => input.u8().into(),
            4 => input.u16().into(),
            5 => 8 << 20,
            6 => input.u32(),
            _ => 0,
        };
        let mut data = given;
        if how & 0x40 != 0 {
            data.resize(SENT_BYTES_MAX.min(expected as usize), how);
        }
        data.truncate(expected as usize);
        let order = Order {
            cdb: &cdb,
            lun,
            expected,
            read: how & 8 != 0,
            write: how & 0x10 != 0,
            data: &data,
            immediate: how & 0x20 != 0,
            eager: input.u8() & 1 != 0,
        };
        self.command(slot, &order);
    }

    /// PERSISTENT RESERVE OUT with few keys, so that some fit; and RESERVE, RELEASE.
    pub(super) fn reserve(&mut self, slot: usize, input: &mut Input<'_>) {
        let (action, kind, keys) = (input.u8(), input.u8(), input.u8());
        let mut list = vec![0; 24];
        (list[7], list[15], list[20]) = (keys & 3, keys >> 2 & 3, keys >> 4);
        let lun = u64::from(kind >> 7) << 48;
        let mut cdb = vec![0; 16];
        if action & 0x80 != 0 {
            cdb[0] = if action & 1 == 0 { 0x16 } else { 0x17 };
            return self.plain(slot, lun, &cdb);
        }
        (cdb[0], cdb[1], cdb[2], cdb[8]) = (0x5F, action & 7, kind & 0x0F, 24);
        let order = Order {
            cdb: &cdb,
            lun,
            expected: 24,
            read: false,
            write: true,
            data: &list,
            immediate: false,
            eager: false,
        };
        self.command(slot, &order);
    }
}

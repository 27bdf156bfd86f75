//! What SCSI commands do to the content of a logical unit (SBC-3, SBC-4), in a few lines and apart from the code
//! that is tested.

use bytes::Bytes;
use lunette_volume::device::{Command, DEALLOCATED, Data, DeviceError, MAPPED, MAPPING_BYTES_MAX, Outcome};

/// The content of a unit. One that is larger than its memory has zeros beyond, and forgets what is written there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Medium {
    pub(crate) size_bytes: u64,
    pub(crate) block_bytes: usize,
    pub(crate) memory: Vec<u8>,
}

/// Where zeros are read from: nothing is allocated for a unit that was never written.
static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

impl Medium {
    pub(crate) fn new(size_bytes: u64, block_bytes: usize) -> Self {
        let len = usize::try_from(size_bytes).ok().filter(|len| *len <= 1 << 20).unwrap_or(0);
        Self { size_bytes, block_bytes, memory: vec![0; len] }
    }

    /// Carries out a command as a device does.
    ///
    /// # Panics
    /// If the command is none that a device may be given.
    pub(crate) fn carry_out(&mut self, command: &Command) -> Outcome {
        match command {
            Command::Read { offset, len } => {
                self.check(*offset, u64::from(*len));
                if self.memory.is_empty() {
                    let whole = Bytes::from_static(&ZEROS);
                    let len = *len as usize;
                    let pieces = (0..len).step_by(ZEROS.len());
                    return Ok(pieces.map(|at| whole.slice(..ZEROS.len().min(len - at))).collect());
                }
                let at = at(*offset);
                let mut first = Bytes::copy_from_slice(&self.memory[at..at + *len as usize]);
                let second = first.split_off(first.len() / 3);
                return Ok(Data::from_iter([first, second]));
            }
            Command::Write { offset, data, .. } => {
                self.check(*offset, data.len() as u64);
                self.put(*offset, data);
            }
            Command::WriteAtomic { offset, data } => {
                self.check(*offset, data.len() as u64);
                let blocks = [*offset, data.len() as u64];
                assert!(!data.is_empty() && blocks.iter().all(|it| it.is_multiple_of(4096)), "whole blocks");
                self.put(*offset, data);
            }
            Command::Zero { offset, len } => {
                assert!(*len > 0 && offset.checked_add(*len).is_some_and(|end| end <= self.size_bytes));
                self.zero(*offset, *len);
            }
            Command::Flush => {}
            Command::CompareAndWrite { offset, compare, data, .. } => {
                self.check(*offset, compare.len() as u64);
                assert_eq!(compare.len(), data.len());
                assert_eq!(offset / 4096, (offset + data.len() as u64 - 1) / 4096, "in one block");
                let at = at(*offset);
                let have = self.memory.get(at..at + compare.len()).unwrap_or(&ZEROS[..compare.len()]);
                if let Some(differs) = compare.iter().zip(have).position(|(want, have)| want != have) {
                    return Err(DeviceError::Miscompare { at: u32::try_from(differs).unwrap_or(0) });
                }
                self.put(*offset, data);
            }
            Command::Or { offset, data, .. } => {
                self.check(*offset, data.len() as u64);
                self.or(*offset, data);
            }
            Command::Mapping { offset, len } => {
                self.check_range(*offset, *len);
                assert!(*len <= MAPPING_BYTES_MAX);
                let blocks = (offset + len).div_ceil(4096) - offset / 4096;
                let odd = |block: u64| if block.is_multiple_of(3) { MAPPED } else { DEALLOCATED };
                let statuses: Vec<u8> = (0..blocks).map(|block| odd(offset / 4096 + block)).collect();
                return Ok(Data::from_iter([Bytes::from(statuses)]));
            }
        }
        Ok(Data::new())
    }

    fn check(&self, offset: u64, len: u64) {
        assert!(len <= 8 << 20, "{len} bytes in one command");
        self.check_range(offset, len);
    }

    fn check_range(&self, offset: u64, len: u64) {
        let block = self.block_bytes as u64;
        assert!(
            len > 0 && offset.is_multiple_of(block) && len.is_multiple_of(block),
            "whole blocks: {offset} {len}"
        );
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.size_bytes), "inside: {offset} {len}");
    }

    fn put(&mut self, offset: u64, data: &[u8]) {
        if !self.memory.is_empty() {
            self.memory[at(offset)..at(offset) + data.len()].copy_from_slice(data);
        }
    }

    fn zero(&mut self, offset: u64, len: u64) {
        if !self.memory.is_empty() {
            self.memory[at(offset)..at(offset + len)].fill(0);
        }
    }

    fn or(&mut self, offset: u64, data: &[u8]) {
        if let Some(memory) = self.memory.get_mut(at(offset)..at(offset) + data.len()) {
            memory.iter_mut().zip(data).for_each(|(byte, bits)| *byte |= bits);
        }
    }

    /// What a command that ended with GOOD has changed, if it is one that changes what it names.
    pub(crate) fn expect(&mut self, cdb: &[u8], data: &[u8]) {
        let block = self.block_bytes;
        let Some((lba, blocks)) = extent(cdb) else {
            if cdb[0] == 0x42 {
                // What is sent beyond the length in the CDB is not read.
                self.expect_unmap(&data[..data.len().min(at(be(&cdb[7..9])))]);
            }
            return;
        };
        let offset = lba * block as u64;
        let whole = &data[..data.len().min(blocks as usize * block) / block * block];
        match cdb[0] {
            0x0A | 0x2A | 0xAA | 0x8A | 0x2E | 0xAE | 0x8E | 0x9C => self.put(offset, whole),
            0x8B => self.or(offset, whole),
            0x41 | 0x93 if cdb[0] == 0x93 && cdb[1] & 1 != 0 => self.zero(offset, blocks * block as u64),
            0x41 | 0x93 => {
                for n in 0..blocks {
                    self.put(offset + n * block as u64, &data[..block]);
                }
            }
            0x89 => self.put(offset, &data[blocks as usize * block..2 * blocks as usize * block]),
            _ => {}
        }
    }

    fn expect_unmap(&mut self, list: &[u8]) {
        if list.len() < 8 {
            return;
        }
        let len = usize::from(u16::from_be_bytes([list[2], list[3]])).min(list.len() - 8);
        for descriptor in list[8..8 + len].chunks_exact(16) {
            let (lba, blocks) = (be(&descriptor[..8]), be(&descriptor[8..12]));
            self.zero(lba * self.block_bytes as u64, blocks * self.block_bytes as u64);
        }
    }

    /// What a READ that ended with GOOD gives; `None` if it is none, or of a unit without memory.
    pub(crate) fn read(&self, cdb: &[u8]) -> Option<&[u8]> {
        let (lba, blocks) = extent(cdb).filter(|_| matches!(cdb[0], 0x08 | 0x28 | 0xA8 | 0x88))?;
        let at = at(lba).checked_mul(self.block_bytes)?;
        self.memory.get(at..at + usize::try_from(blocks).ok()? * self.block_bytes)
    }
}

/// LBA and number of blocks, of commands that name both.
fn extent(cdb: &[u8]) -> Option<(u64, u64)> {
    Some(match cdb[0] {
        0x08 | 0x0A => (be(&cdb[1..4]) & 0x1F_FFFF, if cdb[4] == 0 { 256 } else { cdb[4].into() }),
        0x28 | 0x2A | 0x2E | 0x41 => (be(&cdb[2..6]), be(&cdb[7..9])),
        0xA8 | 0xAA | 0xAE => (be(&cdb[2..6]), be(&cdb[6..10])),
        0x88 | 0x8A | 0x8B | 0x8E | 0x93 => (be(&cdb[2..10]), be(&cdb[10..14])),
        0x9C => (be(&cdb[2..10]), be(&cdb[12..14])),
        0x89 => (be(&cdb[2..10]), cdb[13].into()),
        _ => return None,
    })
}

/// The most Data-In that the CDB of a command that reads parameters allows.
pub(crate) fn allocation_len(cdb: &[u8]) -> Option<usize> {
    let len = match cdb[0] {
        0x03 | 0x1A => cdb[4].into(),
        0x12 | 0x1C => be(&cdb[3..5]),
        0x37 | 0x4D | 0x5A | 0x5E => be(&cdb[7..9]),
        0xA0 | 0xA3 | 0xB7 => be(&cdb[6..10]),
        0x84 | 0x9E => be(&cdb[10..14]),
        _ => return None,
    };
    usize::try_from(len).ok()
}

/// Sense key, additional sense code and qualifier, in either format.
pub(crate) fn sense_code(sense: &[u8]) -> Option<(u8, u8, u8)> {
    match sense.first()? & 0x7F {
        0x70 => Some((sense.get(2)? & 0x0F, *sense.get(12)?, *sense.get(13)?)),
        0x72 => Some((sense.get(1)? & 0x0F, *sense.get(2)?, *sense.get(3)?)),
        _ => None,
    }
}

/// Whether a command that ended so has certainly changed nothing: ILLEGAL REQUEST, UNIT ATTENTION, DATA PROTECT but for
/// the space that ran out; BUSY, RESERVATION CONFLICT.
pub(crate) fn is_definite(status: u8, sense: &[u8]) -> bool {
    match (status, sense_code(sense)) {
        (0x02, Some((key, asc, ascq))) => matches!(key, 5..=7) && (key, asc, ascq) != (7, 0x27, 0x07),
        (0x02, None) => false,
        (status, _) => matches!(status, 0x08 | 0x18 | 0x28),
    }
}

fn be(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn at(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

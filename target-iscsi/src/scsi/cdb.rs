//! A command descriptor block (SPC-4 4.2): opcode first, big-endian fields at fixed offsets.

/// The longest CDB that a command here has.
pub(super) const CDB_BYTES_MAX: usize = 16;

/// A CDB, padded with zeros. Offsets are constants of the handlers, always inside.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cdb {
    bytes: [u8; CDB_BYTES_MAX],
    len: usize,
}

impl Cdb {
    pub(super) fn new(sent: &[u8]) -> Self {
        let mut bytes = [0; CDB_BYTES_MAX];
        let len = sent.len().min(CDB_BYTES_MAX);
        bytes[..len].copy_from_slice(&sent[..len]);
        Self { bytes, len }
    }

    /// Bytes that were sent, of at most 16.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn opcode(&self) -> u8 {
        self.bytes[0]
    }

    /// Where commands that share an opcode have it (SPC-4 4.2.4).
    pub(super) fn service_action(&self) -> u8 {
        self.bytes[1] & 0x1F
    }

    pub(super) fn u8(&self, at: usize) -> u8 {
        self.bytes[at]
    }

    pub(super) fn bit(&self, at: usize, bit: u8) -> bool {
        self.bytes[at] >> bit & 1 == 1
    }

    pub(super) fn u16(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    pub(super) fn u32(&self, at: usize) -> u32 {
        u32::from(self.u16(at)) << 16 | u32::from(self.u16(at + 2))
    }

    pub(super) fn u64(&self, at: usize) -> u64 {
        u64::from(self.u32(at)) << 32 | u64::from(self.u32(at + 4))
    }
}

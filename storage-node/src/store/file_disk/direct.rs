//! Writes past the page cache, where the system allows that: those that are durable when they return, and bulk.
//!
//! `O_DIRECT` with `RWF_DSYNC` is one request to the medium, with forced unit access where it has that; written
//! over a range that was written before, no metadata of a file system takes part. Direct writes come from aligned
//! memory, so parts are copied together first.
//!
//! Refused direct writes are no failure: the file system, or the sectors of its device, may not allow them. They go through
//! the page cache then, followed by a sync if they are to be durable. The kernel keeps the two ways coherent.

use std::fs::File;
use std::io::{self, ErrorKind, IoSlice};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::fdatasync;
use rustix::io::{Errno, ReadWriteFlags, pwritev2, retry_on_intr};

use crate::store::disk::SECTOR_BYTES;

/// Alignment in memory, and of sectors at most.
const ALIGNMENT: usize = 4096;
/// Longer writes are cut.
const CHUNK_BYTES: usize = 16 << 20;

/// The one who writes directly.
#[derive(Debug)]
pub(super) struct DirectWriter {
    /// `None`: through the page cache.
    direct: Option<Arc<File>>,
    /// Whether writes are durable when they return.
    is_durable: bool,
    /// What offsets and lengths of direct writes are multiples of.
    sector: u64,
    /// Aligned within; reused.
    staging: Vec<u8>,
}

impl DirectWriter {
    pub(super) fn new(direct: Option<Arc<File>>, is_durable: bool) -> Self {
        Self { direct, is_durable, sector: SECTOR_BYTES, staging: Vec::new() }
    }

    /// Writes `parts` one after the other; `buffered` is the same file by way of the page cache.
    pub(super) fn write(&mut self, buffered: &File, mut offset: u64, parts: &[Bytes]) -> io::Result<()> {
        let mut left = parts.iter().map(Bytes::len).sum::<usize>();
        let mut parts = parts.iter();
        let mut part = Bytes::new();
        while left > 0 {
            let len = left.min(CHUNK_BYTES);
            let start = self.stage(len);
            let mut filled = 0;
            while filled < len {
                if part.is_empty() {
                    let Some(next) = parts.next() else { break };
                    part = next.clone();
                }
                let taken = part.split_to(part.len().min(len - filled));
                self.staging[start + filled..][..taken.len()].copy_from_slice(&taken);
                filled += taken.len();
            }
            assert_eq!(filled, len, "the parts are as long as they are together");
            self.write_staged(buffered, offset, start, len)?;
            offset += len as u64;
            left -= len;
        }
        Ok(())
    }

    /// Makes room for `len` aligned bytes; where they begin.
    fn stage(&mut self, len: usize) -> usize {
        if self.staging.len() < len + ALIGNMENT {
            self.staging = vec![0; len.next_power_of_two() + ALIGNMENT];
        }
        let start = self.staging.as_ptr().align_offset(ALIGNMENT);
        assert!(start < ALIGNMENT, "any address can be aligned");
        start
    }

    fn write_staged(&mut self, buffered: &File, offset: u64, start: usize, len: usize) -> io::Result<()> {
        let bytes = &self.staging[start..start + len];
        let flags = if self.is_durable { ReadWriteFlags::DSYNC } else { ReadWriteFlags::empty() };
        let mut written = 0;
        while written < len
            && let Some(direct) = &self.direct
        {
            let at = offset + written as u64;
            let rest = &bytes[written..];
            let is_aligned = |to: u64| at.is_multiple_of(to) && (rest.len() as u64).is_multiple_of(to);
            if !is_aligned(self.sector) {
                break;
            }
            // Not `O_DSYNC` on the file: rustix's flag of that name asks for `O_SYNC`, which writes timestamps too.
            match pwritev2(direct.as_ref(), &[IoSlice::new(rest)], at, flags) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(more) => written += more,
                Err(Errno::INTR) => {}
                Err(Errno::INVAL | Errno::OPNOTSUPP) if is_aligned(ALIGNMENT as u64) => {
                    tracing::info!("direct writes are refused: all goes through the page cache");
                    self.direct = None;
                }
                Err(Errno::INVAL | Errno::OPNOTSUPP) => self.sector = ALIGNMENT as u64,
                Err(error) => return Err(error.into()),
            }
        }
        if written < len {
            buffered.write_all_at(&bytes[written..], offset + written as u64)?;
            if self.is_durable {
                retry_on_intr(|| fdatasync(buffered))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards what is cut, staged and aligned: any parts, at any sector, give the bytes one after the other, with and
    /// without direct writes, and nothing beside them.
    #[test]
    fn parts_arrive_in_order() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        for direct in [false, true] {
            let file = File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .open(&path)
                .expect("a file");
            let len = 40 << 20;
            file.set_len(len).expect("a length");
            let direct = direct.then(|| super::super::open_direct(&path, &file).expect("opened")).flatten();
            let mut writer = DirectWriter::new(direct.map(Arc::new), true);
            let mut expected = vec![0u8; usize::try_from(len).expect("small")];
            let cases: [(u64, &[usize]); 5] = [
                (512, &[512]),
                (4096, &[0, 4096, 0, 100, 412, 3584]),
                (1 << 20, &[1 << 20, 512]),
                (4 << 20, &[(16 << 20) - 512, 4096, 512, 7 << 20]),
                (39 << 20, &[1, 2, 509]),
            ];
            for (number, (offset, lens)) in (1u8..).zip(cases) {
                let parts = lens.iter().enumerate().map(|(part, len)| {
                    (0..*len)
                        .map(|byte| number.wrapping_mul(31) ^ (part + byte / 512) as u8)
                        .collect::<Bytes>()
                });
                let parts = parts.collect::<Vec<_>>();
                writer.write(&file, offset, &parts).expect("written");
                let flat = parts.concat();
                expected[usize::try_from(offset).expect("small")..][..flat.len()].copy_from_slice(&flat);
            }
            assert!(std::fs::read(&path).expect("read") == expected);
        }
    }
}

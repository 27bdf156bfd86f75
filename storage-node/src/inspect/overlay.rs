//! A medium over another one that is only read: what is written stays in memory.

use std::collections::BTreeMap;
use std::io;

use bytes::Bytes;
use parking_lot::RwLock;

use crate::store::disk::{Disk, SECTOR_BYTES};
use crate::store::format::ReadOnly;

const SECTOR: usize = SECTOR_BYTES as usize;

/// What can be read at offsets.
pub(super) trait Source: Send + Sync {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;
    fn size_bytes(&self) -> io::Result<u64>;
}

impl Source for ReadOnly {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        ReadOnly::read_at(self, offset, out)
    }

    fn size_bytes(&self) -> io::Result<u64> {
        ReadOnly::size_bytes(self)
    }
}

/// See the module.
pub(super) struct Overlay<S> {
    source: S,
    size_bytes: u64,
    /// Sectors that were written, by offset.
    written: RwLock<BTreeMap<u64, Bytes>>,
}

impl<S: Source> Overlay<S> {
    pub(super) fn new(source: S) -> io::Result<Self> {
        let size_bytes = source.size_bytes()?;
        Ok(Self { source, size_bytes, written: RwLock::default() })
    }
}

impl<S: Source> Disk for Overlay<S> {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.source.read_at(offset, out)?;
        let end = offset + out.len() as u64;
        for (at, sector) in self.written.read().range(offset..end) {
            let at = usize::try_from(at - offset).map_err(io::Error::other)?;
            out[at..at + SECTOR].copy_from_slice(sector);
        }
        Ok(())
    }

    fn read_cached(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.read(offset, out)
    }

    fn write(&self, mut offset: u64, parts: &[Bytes]) -> io::Result<()> {
        let mut written = self.written.write();
        for part in parts {
            if !part.len().is_multiple_of(SECTOR) || !offset.is_multiple_of(SECTOR_BYTES) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            for at in (0..part.len()).step_by(SECTOR) {
                written.insert(offset + at as u64, part.slice(at..at + SECTOR));
            }
            offset += part.len() as u64;
        }
        Ok(())
    }

    fn write_durable(&self, offset: u64, parts: &[Bytes]) -> io::Result<()> {
        self.write(offset, parts)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn reserve(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Source for Vec<u8> {
        fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            out.copy_from_slice(&self[offset as usize..][..out.len()]);
            Ok(())
        }

        fn size_bytes(&self) -> io::Result<u64> {
            Ok(self.len() as u64)
        }
    }

    /// Guards the disk that is looked at: what is written is read back, and the source stays as it was.
    #[test]
    fn keeps_what_is_written() {
        let overlay = Overlay::new(vec![1; 4096]).expect("a size");
        overlay.write(512, &[vec![2; 512].into(), vec![3; 512].into()]).expect("written");
        let mut out = vec![0; 2048];
        overlay.read(0, &mut out).expect("read");
        let expected = [1, 2, 3, 1].iter().flat_map(|byte| [*byte; 512]).collect::<Vec<u8>>();
        assert_eq!(out, expected);
        assert!(overlay.source.iter().all(|byte| *byte == 1));
        assert!(overlay.write(100, &[vec![2; 512].into()]).is_err());
    }
}

//! What the store asks of a medium.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

/// A medium of fixed size: a file, a block device, or a simulated one.
///
/// Offsets and lengths are in bytes and multiples of [`SECTOR_BYTES`]. A sector is written as a whole or not at
/// all; of a longer write any sectors may be on the medium after a loss of power, until it is synced.
///
/// An error of `write`, `write_durable`, `sync` or `discard` says that the medium has failed: nobody tries again
/// (invariant 12). An error of `reserve` with [`io::ErrorKind::StorageFull`] says that there is no room,
/// and does no harm.
pub trait Disk: Send + Sync {
    /// Bytes of the medium.
    fn size_bytes(&self) -> u64;

    /// Fills `out`; waits for the medium.
    ///
    /// # Errors
    /// The medium cannot read some of it.
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;

    /// Fills `out` if that needs no waiting.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if it does; or as `read`.
    fn read_cached(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;

    /// Writes `parts` one after the other, to be made durable by the next `sync`.
    ///
    /// # Errors
    /// The medium has failed.
    fn write(&self, offset: u64, parts: &[Bytes]) -> io::Result<()>;

    /// As many of `write`, in any order, of data that will hardly be read soon: it need not be kept in memory.
    ///
    /// # Errors
    /// The medium has failed.
    fn write_bulk(&self, writes: Vec<(u64, Vec<Bytes>)>) -> io::Result<()> {
        writes.into_iter().try_for_each(|(offset, parts)| self.write(offset, &parts))
    }

    /// Writes `parts` one after the other; when it returns, they are durable (earlier writes need not be).
    ///
    /// # Errors
    /// The medium has failed.
    fn write_durable(&self, offset: u64, parts: &[Bytes]) -> io::Result<()>;

    /// Makes durable what was written before the call.
    ///
    /// # Errors
    /// The medium has failed.
    fn sync(&self) -> io::Result<()>;

    /// Makes sure that a range can be written without running out of room.
    ///
    /// # Errors
    /// [`io::ErrorKind::StorageFull`]: there is no room; any other: the medium has failed.
    fn reserve(&self, offset: u64, len: u64) -> io::Result<()>;

    /// The content of a range is not needed any more: its room may be given back.
    ///
    /// # Errors
    /// The medium has failed.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;
}

/// The unit that a medium writes as a whole.
pub const SECTOR_BYTES: u64 = 512;

impl<D: Disk + ?Sized> Disk for Arc<D> {
    fn size_bytes(&self) -> u64 {
        (**self).size_bytes()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        (**self).read(offset, out)
    }
    fn read_cached(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        (**self).read_cached(offset, out)
    }
    fn write(&self, offset: u64, parts: &[Bytes]) -> io::Result<()> {
        (**self).write(offset, parts)
    }
    fn write_bulk(&self, writes: Vec<(u64, Vec<Bytes>)>) -> io::Result<()> {
        (**self).write_bulk(writes)
    }
    fn write_durable(&self, offset: u64, parts: &[Bytes]) -> io::Result<()> {
        (**self).write_durable(offset, parts)
    }
    fn sync(&self) -> io::Result<()> {
        (**self).sync()
    }
    fn reserve(&self, offset: u64, len: u64) -> io::Result<()> {
        (**self).reserve(offset, len)
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        (**self).discard(offset, len)
    }
}

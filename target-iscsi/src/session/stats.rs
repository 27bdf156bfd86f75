//! What operators see of a session.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

/// A session, and what it has done so far.
#[derive(Debug)]
pub struct SessionStats {
    /// Its handle, not 0.
    pub tsih: u16,
    /// The target's name; `None` is a discovery session.
    pub target: Option<String>,
    /// The initiator's name.
    pub initiator: String,
    /// Where it connects from.
    pub peer: SocketAddr,
    /// Where it connected to.
    pub local: SocketAddr,
    /// The initiator's part of the session's id.
    pub isid: [u8; 6],
    /// Header digests are in use.
    pub header_digest: bool,
    /// Data digests are in use.
    pub data_digest: bool,
    /// The CHAP user, if it was proven.
    pub chap_user: Option<String>,
    pub(super) commands: AtomicU64,
    pub(super) read_bytes: AtomicU64,
    pub(super) written_bytes: AtomicU64,
    pub(super) errors: AtomicU64,
}

impl SessionStats {
    /// SCSI commands that have come.
    #[must_use]
    pub fn commands(&self) -> u64 {
        self.commands.load(Ordering::Relaxed)
    }

    /// Bytes of Data-In.
    #[must_use]
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of Data-Out.
    #[must_use]
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::Relaxed)
    }

    /// Commands that ended with another status than GOOD.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }
}

/// Counts without ordering: each number stands alone.
pub(super) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

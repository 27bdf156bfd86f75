//! The write cache (SBC-3: WCE), and how it is turned off while the volume is in use.
//!
//! ```text
//!     Follows --told to write through, or off in the map--> Draining --all older changes flushed--> Through
//!        ^                                                      |                                      |
//!        '--------- on in the map, where it was off ------------+--------------------------------------'
//! ```
//!
//! To say that the cache is off is to promise that what was acknowledged is on stable media, so it is said last: the
//! owner is told, writes through from that moment, flushes what it acknowledged before, and answers; only then the
//! map says it. If the map should say it first, the owner does the same by itself, and until it is done flushes are
//! real ones.

use super::Owner;
use crate::device::{Data, DeviceError};

/// Orders to write through that may wait; more are refused as busy.
const WAITING_MAX: usize = 16;

/// What becomes of writes that need not be durable.
#[derive(Debug, Default)]
pub(super) enum Cache {
    /// What the map says.
    #[default]
    Follows,
    /// They are durable before they are acknowledged. Older ones, up to `mark`, may be in memory alone.
    Draining {
        mark: u64,
        /// Who is to be told when they are not.
        waiting: Vec<u64>,
    },
    /// They are durable, and so are all older ones.
    Through,
}

impl Owner {
    /// Whether a change may be acknowledged from memory.
    pub(super) fn is_caching(&self) -> bool {
        self.config.write_back && matches!(self.cache, Cache::Follows)
    }

    /// Whether something acknowledged may be in memory alone.
    pub(super) fn is_volatile(&self) -> bool {
        match self.cache {
            Cache::Follows => self.config.write_back,
            Cache::Draining { .. } => true,
            Cache::Through => false,
        }
    }

    /// The map says whether the cache is on.
    pub(super) fn set_write_back(&mut self, on: bool) {
        if on == self.config.write_back || self.is_over() {
            return;
        }
        if on {
            self.stop_draining(&DeviceError::Busy);
            self.cache = Cache::Follows;
        } else {
            self.drain();
        }
        self.config.write_back = on;
        self.start_flush();
    }

    /// Told to write through: answered once nothing acknowledged is in memory alone.
    pub(super) fn write_through(&mut self, tag: u64) {
        if !self.is_serving() || self.view.deleting {
            return self.complete(tag, Err(DeviceError::Gone));
        }
        self.drain();
        match &mut self.cache {
            Cache::Draining { waiting, .. } if waiting.len() < WAITING_MAX => waiting.push(tag),
            Cache::Draining { .. } => self.complete(tag, Err(DeviceError::Busy)),
            Cache::Follows | Cache::Through => self.complete(tag, Ok(Data::new())),
        }
        self.start_flush();
    }

    /// Nothing is acknowledged from memory from now on.
    fn drain(&mut self) {
        if self.is_caching() {
            // Whatever gets a later number is durable before it is acknowledged.
            self.cache = Cache::Draining { mark: self.last_seq, waiting: Vec::new() };
        }
    }

    /// Whether a flush would be the last that is needed.
    pub(super) fn wants_drain(&self) -> bool {
        matches!(self.cache, Cache::Draining { mark, .. } if self.settled_seq() >= mark)
    }

    pub(super) fn is_draining(&self) -> bool {
        matches!(self.cache, Cache::Draining { .. })
    }

    /// A flush has covered everything up to `seq`.
    pub(super) fn drained(&mut self, seq: u64) {
        if let Cache::Draining { mark, waiting } = &mut self.cache
            && seq >= *mark
        {
            let waiting = std::mem::take(waiting);
            self.cache = Cache::Through;
            for tag in waiting {
                self.complete(tag, Ok(Data::new()));
            }
        }
    }

    /// Whoever waits is told that it did not come to that.
    pub(super) fn stop_draining(&mut self, error: &DeviceError) {
        if let Cache::Draining { waiting, .. } = &mut self.cache {
            for tag in std::mem::take(waiting) {
                self.complete(tag, Err(error.clone()));
            }
        }
    }
}

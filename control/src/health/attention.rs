//! Since when the leader has listened: silence counts only while there was somebody to hear.

use std::time::{Duration, Instant};

/// The longest time between two looks at who is there.
pub(crate) const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// What is longer than a few of these was this member's own absence.
const ASLEEP_MIN: Duration = Duration::from_millis(600);

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attention {
    /// Since when this member leads.
    led: Instant,
    /// Since when it has not slept, and when it was awake last.
    awake: Instant,
    looked: Instant,
}

impl Attention {
    /// From the moment on when this member leads.
    pub(crate) fn new(now: Instant) -> Self {
        Self { led: now, awake: now, looked: now }
    }

    /// It looks.
    pub(crate) fn look(&mut self, now: Instant) {
        if now.saturating_duration_since(self.looked) >= ASLEEP_MIN {
            self.awake = now;
        }
        self.looked = now;
    }

    /// Since when it has led without sleeping.
    pub(crate) fn began(&self) -> Instant {
        self.led.max(self.awake)
    }

    /// Since when it would have heard more, after it had heard something.
    pub(crate) fn since(&self, heard: Instant) -> Instant {
        heard.max(self.awake)
    }
}

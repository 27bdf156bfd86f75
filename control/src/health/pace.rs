//! How fast something goes on, from counts that are heard from time to time.

use std::time::{Duration, Instant};

/// What happened longer ago counts little.
const MEMORY: Duration = Duration::from_secs(10);
/// Counts that come closer together are taken together.
const STEP_MIN: Duration = Duration::from_millis(200);

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    last: Option<(Instant, u64)>,
    /// Per second.
    rate: Option<f64>,
}

impl Pace {
    /// A count. One that falls is another's, who begins anew.
    pub(super) fn see(&mut self, now: Instant, count: u64) {
        let Some((at, before)) = self.last else {
            self.last = Some((now, count));
            return;
        };
        if count < before {
            *self = Self { last: Some((now, count)), rate: None };
            return;
        }
        let step = now.saturating_duration_since(at);
        if step < STEP_MIN {
            return;
        }
        let seen = (count - before) as f64 / step.as_secs_f64();
        let weight = (-step.as_secs_f64() / MEMORY.as_secs_f64()).exp();
        self.rate = Some(self.rate.map_or(seen, |rate| rate * weight + seen * (1.0 - weight)));
        self.last = Some((now, count));
    }

    /// How long so many more will take; `None`: nothing goes on.
    pub(super) fn left(&self, more: u64) -> Option<Duration> {
        let rate = self.rate.filter(|rate| *rate > 0.0)?;
        let seconds = more as f64 / rate;
        Duration::try_from_secs_f64(seconds).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards estimates: a steady rate is found, a new one is followed, a restart is no negative one, and what stands still is
    /// never over.
    #[test]
    fn rates() {
        let start = Instant::now();
        let mut pace = Pace::default();
        assert_eq!(pace.left(5), None);
        for second in 0..20 {
            pace.see(start + Duration::from_secs(second), second * 100);
            pace.see(start + Duration::from_secs(second), second * 100 + 1);
        }
        let seconds = |pace: &Pace| pace.left(1000).map(|left| left.as_secs_f64().round() as u64);
        assert_eq!(seconds(&pace), Some(10));
        for second in 20..120 {
            pace.see(start + Duration::from_secs(second), 1900 + (second - 19) * 10);
        }
        assert_eq!(seconds(&pace), Some(100));
        pace.see(start + Duration::from_secs(120), 5);
        assert_eq!(pace.left(1000), None);
        pace.see(start + Duration::from_secs(121), 5);
        assert_eq!(pace.left(1000), None);
    }
}

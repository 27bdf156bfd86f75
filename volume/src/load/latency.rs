//! Latencies as a histogram: each to three digits, whatever its size.

use std::time::Duration;

use hdrhistogram::Histogram;

/// Longer ones count as this long; no command of a device takes so long.
const LONGEST_NS: u64 = 600_000_000_000;
const DIGITS: u8 = 3;

/// Latencies of commands, and the bytes that they moved.
#[derive(Clone, Debug)]
pub struct Latencies {
    histogram: Histogram<u64>,
    bytes: u64,
}

/// What there is to say of latencies.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Summary {
    /// Commands.
    pub operations: u64,
    /// Bytes that they moved.
    pub bytes: u64,
    /// Their latencies, in nanoseconds; all 0 if there were no commands.
    pub mean_ns: u64,
    /// The median.
    pub p50_ns: u64,
    /// 90 of 100 took no longer.
    pub p90_ns: u64,
    /// 99 of 100.
    pub p99_ns: u64,
    /// 999 of 1000.
    pub p999_ns: u64,
    /// The longest.
    pub max_ns: u64,
}

impl Default for Latencies {
    fn default() -> Self {
        let histogram =
            Histogram::new_with_bounds(1, LONGEST_NS, DIGITS).expect("bounds that a histogram can have");
        Self { histogram, bytes: 0 }
    }
}

impl Latencies {
    /// One command more.
    pub fn record(&mut self, took: Duration, bytes: u32) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(LONGEST_NS);
        self.histogram.saturating_record(ns);
        self.bytes += u64::from(bytes);
    }

    /// Those of another one, too.
    pub fn add(&mut self, other: &Self) {
        self.histogram.add(&other.histogram).expect("all histograms have the same bounds");
        self.bytes += other.bytes;
    }

    /// Forgets all of them.
    pub fn clear(&mut self) {
        self.histogram.reset();
        self.bytes = 0;
    }

    /// What they come to.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let histogram = &self.histogram;
        let at = |quantile: f64| histogram.value_at_quantile(quantile);
        Summary {
            operations: histogram.len(),
            bytes: self.bytes,
            mean_ns: Duration::try_from_secs_f64(histogram.mean() / 1e9)
                .ok()
                .and_then(|mean| u64::try_from(mean.as_nanos()).ok())
                .unwrap_or(0),
            p50_ns: at(0.5),
            p90_ns: at(0.9),
            p99_ns: at(0.99),
            p999_ns: at(0.999),
            max_ns: histogram.max(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_latencies() {
        // Guards against percentiles of something else, and against more than three digits lost.
        let mut latencies = Latencies::default();
        for us in 1..=1000 {
            latencies.record(Duration::from_micros(us), 4096);
        }
        let summary = latencies.summary();
        assert_eq!((summary.operations, summary.bytes), (1000, 4_096_000));
        let near = |got: u64, us: u64| assert!(got.abs_diff(us * 1000) <= us * 2, "{got} ns is not {us} us");
        near(summary.mean_ns, 500);
        near(summary.p50_ns, 500);
        near(summary.p90_ns, 900);
        near(summary.p99_ns, 990);
        near(summary.p999_ns, 999);
        near(summary.max_ns, 1000);
    }

    #[test]
    fn no_latencies_and_endless_ones_have_a_summary() {
        // Guards against a division by no commands, and against a panic at a command that hung.
        let mut latencies = Latencies::default();
        assert_eq!(latencies.summary(), Summary::default());
        latencies.record(Duration::MAX, u32::MAX);
        let longest = latencies.summary().max_ns;
        assert!(longest.abs_diff(LONGEST_NS) < LONGEST_NS / 500, "{longest}");
        latencies.clear();
        assert_eq!(latencies.summary(), Summary::default());
    }

    #[test]
    fn sums_are_over_all() {
        // Guards against reads that are left out of what all commands took.
        let (mut reads, mut writes) = (Latencies::default(), Latencies::default());
        reads.record(Duration::from_micros(100), 4096);
        writes.record(Duration::from_micros(300), 512);
        reads.add(&writes);
        let all = reads.summary();
        assert_eq!((all.operations, all.bytes), (2, 4608));
        assert!(all.mean_ns.abs_diff(200_000) < 400, "{all:?}");
    }
}

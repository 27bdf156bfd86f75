//! Disks that answer, and take far longer than the others: they limp. Whatever has another copy is read there, and the
//! administrator is told; a change still has to wait for all members.
//!
//! Judged by windows of a second in which there are answers: one slow moment is none, and without traffic nobody knows.

use lunette_proto::ids::DiskId;

use super::event::{Action, Limping};
use super::{Owner, What};

const WINDOW_MS: u64 = 1000;
/// Slow windows in a row until a disk limps, and good ones until it does not any more.
const SLOW_WINDOWS: u32 = 5;
const GOOD_WINDOWS: u32 = 3;
/// Windows without an answer after which nothing is known of it: it is tried again.
const QUIET_WINDOWS: u32 = 30;
/// How long answers take on average in a slow window, at least, and how many times as long as those of the fastest.
const SLOW_MS: u64 = 100;
const SLOW_FACTOR: u64 = 20;

/// How fast a disk answers.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Of the window: answers, and how long they took together.
    answers: u64,
    took_ms: u64,
    /// Windows of one kind in a row.
    slow: u32,
    good: u32,
    quiet: u32,
    limping: Option<Limping>,
}

impl Pace {
    fn mean_ms(&self) -> Option<u64> {
        (self.answers > 0).then(|| self.took_ms / self.answers)
    }

    /// Ends the window; `others_ms` is what the fastest other disk took.
    fn close(&mut self, disk: DiskId, others_ms: Option<u64>) {
        match (self.mean_ms(), others_ms) {
            (Some(mean_ms), Some(others_ms)) => {
                self.quiet = 0;
                if mean_ms >= SLOW_MS && mean_ms / SLOW_FACTOR >= others_ms {
                    (self.slow, self.good) = (self.slow.saturating_add(1), 0);
                    if self.slow >= SLOW_WINDOWS {
                        self.limping = Some(Limping { disk, mean_ms, others_ms });
                    }
                } else {
                    (self.slow, self.good) = (0, self.good.saturating_add(1));
                    if self.good >= GOOD_WINDOWS {
                        self.limping = None;
                    }
                }
            }
            (None, _) => {
                self.quiet = self.quiet.saturating_add(1);
                if self.quiet >= QUIET_WINDOWS {
                    *self = Self::default();
                }
            }
            (Some(_), None) => {}
        }
        (self.answers, self.took_ms) = (0, 0);
    }
}

impl Owner {
    /// A disk has answered what was sent so long ago.
    pub(super) fn note_pace(&mut self, disk: DiskId, what: &What, took_ms: u64) {
        // What else there is may take its time.
        if let What::Read { .. } | What::Leg { .. } = what
            && let Some(disk) = self.disks.get_mut(&disk)
        {
            disk.pace.answers += 1;
            disk.pace.took_ms += took_ms;
        }
        if self.now >= self.paces_due_ms {
            self.paces_due_ms = self.now + WINDOW_MS;
            self.close_paces();
        }
    }

    fn close_paces(&mut self) {
        let means: Vec<(DiskId, u64)> =
            self.disks.iter().filter_map(|(id, disk)| Some((*id, disk.pace.mean_ms()?))).collect();
        let mut changed = false;
        for (id, disk) in &mut self.disks {
            let others_ms = means.iter().filter(|(other, _)| other != id).map(|(_, mean_ms)| *mean_ms).min();
            let was_limping = disk.pace.limping.is_some();
            disk.pace.close(*id, others_ms);
            changed |= disk.pace.limping.is_some() != was_limping;
        }
        if changed {
            self.out.push(Action::News);
        }
    }

    /// Whether a disk is to be left alone where another one has the same.
    pub(super) fn is_limping(&self, disk: DiskId) -> bool {
        self.disks.get(&disk).is_some_and(|disk| disk.pace.limping.is_some())
    }

    /// Disks that are far slower than the others.
    pub fn limping(&self) -> impl Iterator<Item = Limping> {
        self.disks.values().filter_map(|disk| disk.pace.limping)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: DiskId = DiskId(7);

    fn windows(pace: &mut Pace, count: u32, mean_ms: u64, others_ms: Option<u64>) -> bool {
        for _ in 0..count {
            (pace.answers, pace.took_ms) = (3, 3 * mean_ms);
            pace.close(DISK, others_ms);
        }
        pace.limping.is_some()
    }

    /// Guards against a disk that is blamed for a moment, for being slow where all are, or for ever.
    #[test]
    fn verdicts() {
        let mut pace = Pace::default();
        assert!(!windows(&mut pace, 4, 300, Some(3)), "not for long yet");
        assert!(!windows(&mut pace, 1, 99, Some(3)));
        assert!(!windows(&mut pace, 4, 300, Some(3)), "in a row");
        assert!(windows(&mut pace, 1, 310, Some(2)));
        assert_eq!(pace.limping, Some(Limping { disk: DISK, mean_ms: 310, others_ms: 2 }));
        assert!(windows(&mut pace, 2, 4, Some(3)));
        assert!(!windows(&mut pace, 1, 4, Some(3)), "it has recovered");
        assert!(!windows(&mut pace, 50, 300, Some(16)), "all are slow");
        assert!(!windows(&mut pace, 50, 300, None), "there is no other");
        windows(&mut pace, 5, 300, Some(3));
        for quiet in 0..30 {
            assert!(pace.limping.is_some(), "{quiet}");
            pace.close(DISK, Some(3));
        }
        assert_eq!(pace.limping, None, "nobody knows");
    }
}

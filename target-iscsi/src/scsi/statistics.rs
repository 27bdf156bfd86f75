//! What a logical unit has been asked to do through this gateway, for log page 19h.

use std::sync::atomic::{AtomicU64, Ordering};

use super::task::Job;

/// Counters since the gateway began; each stands alone.
#[derive(Debug, Default)]
pub(super) struct Statistics {
    read_commands: AtomicU64,
    write_commands: AtomicU64,
    received_bytes: AtomicU64,
    transmitted_bytes: AtomicU64,
}

/// The counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) read_commands: u64,
    pub(super) write_commands: u64,
    pub(super) received_bytes: u64,
    pub(super) transmitted_bytes: u64,
}

impl Statistics {
    /// A command has come, which goes on with `job` and `data_out_len` bytes of Data-Out.
    pub(super) fn count(&self, job: &Job, data_out_len: u32) {
        match job {
            Job::Read(read) => {
                add(&self.read_commands, 1);
                add(&self.transmitted_bytes, read.len().into());
            }
            Job::Write(_) | Job::WriteVerify(_) | Job::CompareAndWrite(_) | Job::WriteSame(_) => {
                add(&self.write_commands, 1);
                add(&self.received_bytes, data_out_len.into());
            }
            // Its list is no logical block data.
            Job::Unmap(_) => add(&self.write_commands, 1),
            _ => {}
        }
    }

    pub(super) fn counts(&self) -> Counts {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            read_commands: load(&self.read_commands),
            write_commands: load(&self.write_commands),
            received_bytes: load(&self.received_bytes),
            transmitted_bytes: load(&self.transmitted_bytes),
        }
    }
}

fn add(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

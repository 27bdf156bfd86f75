//! Counts what a thread has allocated, so that a target can be held to a limit: nothing may be allocated on a
//! peer's word.
#![expect(
    unsafe_code,
    reason = "an allocator is an unsafe trait; this one hands everything on to the system's"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static LIVE: Cell<i64> = const { Cell::new(0) };
    static PEAK: Cell<i64> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

fn count(bytes: i64) {
    // A thread that ends has no counters any more.
    let _ = LIVE.try_with(|live| {
        live.set(live.get() + bytes);
        if bytes > 0 {
            PEAK.with(|peak| peak.set(peak.get().max(live.get())));
        }
    });
}

fn size(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

// SAFETY: all of it is the system's allocator, and counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(size(layout.size()));
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(size(layout.size()));
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-size(layout.size()));
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        count(size(len) - size(layout.size()));
        // SAFETY: as the caller promises.
        unsafe { System.realloc(pointer, layout, len) }
    }
}

/// The most bytes that this thread had allocated at one time within `run`, beyond what it had before.
pub fn peak_bytes(run: impl FnOnce()) -> usize {
    let before = LIVE.get();
    PEAK.set(before);
    run();
    usize::try_from(PEAK.get() - before).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards the counter itself: what was freed meanwhile counts, what was there before does not.
    #[test]
    fn counts() {
        let held = vec![0u8; 1 << 20];
        let peak = peak_bytes(|| {
            drop(std::hint::black_box(vec![1u8; 100_000]));
            drop(std::hint::black_box(vec![1u8; 50_000]));
        });
        assert!((100_000..110_000).contains(&peak), "{peak}");
        drop(held);
    }
}

//! Order among operations that touch the same blocks of an extent.
//!
//! Overlapping operations take effect in the order in which they were queued, except that reads do
//! not wait for reads. An operation is free to start once no earlier one in its way is left.

use std::ops::Range;

/// The operations of one extent, queued and started, in order.
#[derive(Debug, Default)]
pub(super) struct Locks {
    entries: Vec<Lock>,
}

#[derive(Debug)]
struct Lock {
    op: usize,
    blocks: Range<u32>,
    exclusive: bool,
    /// Earlier operations that are in the way.
    blockers: u32,
}

impl Lock {
    fn conflicts(&self, other: &Self) -> bool {
        (self.exclusive || other.exclusive)
            && self.blocks.start < other.blocks.end
            && other.blocks.start < self.blocks.end
    }
}

impl Locks {
    /// Queues an operation; whether nothing is in its way.
    pub(super) fn insert(&mut self, op: usize, blocks: Range<u32>, exclusive: bool) -> bool {
        let mut lock = Lock { op, blocks, exclusive, blockers: 0 };
        for earlier in &self.entries {
            lock.blockers += u32::from(earlier.conflicts(&lock));
        }
        let free = lock.blockers == 0;
        self.entries.push(lock);
        free
    }

    /// Takes an operation out, finished or given up, and names those that become free by it.
    pub(super) fn remove(&mut self, op: usize, mut freed: impl FnMut(usize)) {
        let Some(position) = self.entries.iter().position(|lock| lock.op == op) else {
            return;
        };
        let gone = self.entries.remove(position);
        for later in &mut self.entries[position..] {
            if gone.conflicts(later) {
                later.blockers -= 1;
                if later.blockers == 0 {
                    freed(later.op);
                }
            }
        }
    }

    /// Whether nothing is in the way of a queued operation.
    pub(super) fn is_free(&self, op: usize) -> bool {
        self.entries.iter().any(|lock| lock.op == op && lock.blockers == 0)
    }

    /// All operations with nothing in their way, in order.
    pub(super) fn free(&self) -> impl Iterator<Item = usize> {
        self.entries.iter().filter(|lock| lock.blockers == 0).map(|lock| lock.op)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Guards the order: whatever finishes when, two conflicting operations are never free at
        /// once, the earlier always goes first, and nobody waits without a reason.
        #[test]
        fn conflicting_operations_keep_their_order(
            ops in prop::collection::vec((0u32..12, 1u32..5, any::<bool>()), 1..24),
            picks in prop::collection::vec(any::<prop::sample::Index>(), 24),
        ) {
            let mut locks = Locks::default();
            let mut free = Vec::new();
            for (op, (first, blocks, exclusive)) in ops.iter().enumerate() {
                if locks.insert(op, *first..first + blocks, *exclusive) {
                    free.push(op);
                }
            }
            let clash = |a: usize, b: usize| {
                let ((first_a, len_a, x_a), (first_b, len_b, x_b)) = (ops[a], ops[b]);
                (x_a || x_b) && first_a < first_b + len_b && first_b < first_a + len_a
            };
            let mut left: Vec<usize> = (0..ops.len()).collect();
            for pick in picks.iter().take(ops.len()) {
                let expected: Vec<usize> = left
                    .iter()
                    .copied()
                    .filter(|op| !left.iter().any(|earlier| earlier < op && clash(*earlier, *op)))
                    .collect();
                free.sort_unstable();
                prop_assert_eq!(&free, &expected);
                prop_assert_eq!(locks.free().collect::<Vec<_>>(), expected);
                let op = free.swap_remove(pick.index(free.len()));
                left.retain(|other| *other != op);
                locks.remove(op, |freed| free.push(freed));
                prop_assert!(!locks.is_free(op));
            }
            prop_assert!(locks.is_empty());
        }
    }
}

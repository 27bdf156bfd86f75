//! What a disk has granted to the owners of volumes, and how long their successors have to wait for it (invariant 34).
//!
//! ```text
//!     owner of generation 7 ── Grant 1500 ms ──> recorded until 1651 ms from now
//!     owner of generation 8 ── Seal ──> 7 is refused from now on; Granted, while the record says so
//!                              Seal ──> Sealed
//! ```
//!
//! An owner that is cut off answers reads until its time is over by its own clock; whoever comes after it serves
//! nothing before the same time is over by the disk's clock, and a tenth more, in case one of them is slow. Nothing of
//! this is on the medium. A disk that was just opened may have granted anything before, by another process: whoever seals
//! a namespace that was sealed then waits as if it had, whichever generation it is of, because that of the seal may
//! have come after the grant.
//!
//! Time comes in as an argument: milliseconds on a clock that does not go back, which may stand still while the machine
//! sleeps.

use std::collections::{BTreeMap, BTreeSet};

use lunette_proto::ids::{Generation, Namespace};
use lunette_proto::limits::{GRANT_KEPT_MS_MAX, GRANT_MS_MAX};

/// The grants of one disk: one record for each namespace that has been granted and not been deleted.
#[derive(Debug)]
pub struct Grants {
    opened_ms: u64,
    /// Sealed when the disk was opened. Empty once that does not matter any more.
    forgotten: BTreeSet<Namespace>,
    granted: BTreeMap<Namespace, Granted>,
}

#[derive(Debug, Default)]
struct Granted {
    generation: Generation,
    /// The highest that has granted something under this generation.
    number: u64,
    until_ms: u64,
    /// Until when owners of older generations may act.
    older_until_ms: u64,
}

impl Grants {
    /// Of a disk that is opened now and has these namespaces sealed.
    #[must_use]
    pub fn new(now_ms: u64, sealed: impl IntoIterator<Item = Namespace>) -> Self {
        Self { opened_ms: now_ms, forgotten: sealed.into_iter().collect(), granted: BTreeMap::new() }
    }

    /// Records what an owner asks for: for how many milliseconds it may act, or that it does not any more. Who is not
    /// the owner by then is found out after this: see [`left_ms`](Self::left_ms).
    pub fn grant(
        &mut self,
        now_ms: u64,
        namespace: Namespace,
        generation: Generation,
        number: u64,
        for_ms: u32,
    ) {
        let granted = self.granted.entry(namespace).or_default();
        if generation > granted.generation {
            let older_until_ms = granted.older_until_ms.max(granted.until_ms);
            *granted = Granted { generation, older_until_ms, ..Granted::default() };
        }
        if generation < granted.generation {
            if for_ms > 0 {
                granted.older_until_ms = granted.older_until_ms.max(kept_until(now_ms, for_ms));
            }
        } else if for_ms > 0 {
            granted.number = granted.number.max(number);
            granted.until_ms = granted.until_ms.max(kept_until(now_ms, for_ms));
        } else if number > granted.number {
            granted.until_ms = 0;
        }
    }

    /// For how long at most an owner of an older generation may still act; `None` if none does. What it asked for before
    /// its generation was refused has been recorded, so this is asked after that.
    pub fn left_ms(&mut self, now_ms: u64, namespace: Namespace, generation: Generation) -> Option<u32> {
        let forgotten_until_ms = self.opened_ms.saturating_add(GRANT_KEPT_MS_MAX.into());
        if forgotten_until_ms <= now_ms {
            self.forgotten.clear();
        }
        let granted = self.granted.get(&namespace).map_or(0, |it| {
            if it.generation == generation { it.older_until_ms } else { it.older_until_ms.max(it.until_ms) }
        });
        let forgotten = if self.forgotten.contains(&namespace) { forgotten_until_ms } else { 0 };
        let left = granted.max(forgotten).saturating_sub(now_ms);
        (left > 0).then(|| u32::try_from(left).unwrap_or(GRANT_KEPT_MS_MAX))
    }

    /// A namespace is deleted: nobody will own it.
    pub fn deleted(&mut self, namespace: Namespace) {
        self.granted.remove(&namespace);
        self.forgotten.remove(&namespace);
    }
}

/// A tenth longer, and one more: the clock may be about to step.
fn kept_until(now_ms: u64, for_ms: u32) -> u64 {
    let for_ms = u64::from(for_ms.min(GRANT_MS_MAX));
    now_ms.saturating_add(for_ms + for_ms.div_ceil(10) + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NS: Namespace = Namespace(7);

    fn quiet() -> Grants {
        Grants::new(0, [])
    }

    /// Guards the wait of a successor, and that an owner does not wait for itself, nor for a namespace beside its own.
    #[test]
    fn a_successor_waits() {
        let mut grants = quiet();
        grants.grant(1000, NS, Generation(7), 1, 1000);
        assert_eq!(grants.left_ms(1000, NS, Generation(7)), None);
        assert_eq!(grants.left_ms(1000, Namespace(8), Generation(9)), None);
        assert_eq!(grants.left_ms(1500, NS, Generation(8)), Some(601));
        assert_eq!(grants.left_ms(2100, NS, Generation(8)), Some(1), "the millisecond may not be over");
        assert_eq!(grants.left_ms(2101, NS, Generation(8)), None);
        // Renewed, then also granted to a successor: the next one but one waits for both.
        grants.grant(3000, NS, Generation(7), 2, 1500);
        grants.grant(3100, NS, Generation(8), 1, 100);
        assert_eq!(grants.left_ms(3200, NS, Generation(8)), Some(1451));
        assert_eq!(grants.left_ms(3200, NS, Generation(9)), Some(1451));
        grants.grant(4600, NS, Generation(8), 2, 1500);
        assert_eq!(grants.left_ms(4700, NS, Generation(8)), None);
        assert_eq!(grants.left_ms(4700, NS, Generation(9)), Some(1551));
    }

    /// Guards what is given back, and against one that gives back what was granted after it was sent.
    #[test]
    fn given_back() {
        let mut grants = quiet();
        grants.grant(0, NS, Generation(7), 1, 1500);
        grants.grant(10, NS, Generation(7), 2, 0);
        assert_eq!(grants.left_ms(20, NS, Generation(8)), None);
        grants.grant(30, NS, Generation(7), 5, 1500);
        grants.grant(40, NS, Generation(7), 4, 0);
        assert_eq!(grants.left_ms(40, NS, Generation(8)), Some(1641));
        // A shorter one takes nothing back, and a late one is one.
        grants.grant(50, NS, Generation(7), 6, 1);
        grants.grant(60, NS, Generation(7), 3, 1500);
        assert_eq!(grants.left_ms(60, NS, Generation(8)), Some(1651));
        grants.grant(70, NS, Generation(7), 6, 0);
        assert_eq!(grants.left_ms(70, NS, Generation(8)), Some(1641));
        // Nobody gives back what is another's.
        grants.grant(80, NS, Generation(6), 9, 0);
        grants.grant(80, NS, Generation(8), 9, 0);
        assert_eq!(grants.left_ms(80, NS, Generation(8)), Some(1631));
    }

    /// Guards against what a process before this one may have granted; what the disk had not sealed nobody was granted.
    #[test]
    fn opened_anew() {
        let mut grants = Grants::new(5000, [NS, Namespace(8)]);
        assert_eq!(grants.left_ms(5000, NS, Generation(1)), Some(1651));
        assert_eq!(grants.left_ms(5000, Namespace(9), Generation(1)), None);
        grants.deleted(Namespace(8));
        assert_eq!(grants.left_ms(5000, Namespace(8), Generation(1)), None);
        grants.grant(5100, NS, Generation(7), 1, 1);
        assert_eq!(grants.left_ms(6650, NS, Generation(7)), Some(1), "it may have been granted to 6");
        assert_eq!(grants.left_ms(6651, NS, Generation(7)), None);
        assert_eq!(grants.left_ms(6651, NS, Generation(8)), None);
    }

    proptest! {
        /// Guards the rule itself, however grants, returns and seals follow each other and arrive late: whoever seals is told to wait
        /// as long as an older owner may act by what it was answered, on a clock that is up to 5 % slow.
        #[test]
        fn nobody_acts_beside_a_successor(
            events in prop::collection::vec((1u64..4, 0u32..=1500, 0u64..400, 0u64..3000, any::<bool>()), 1..40),
        ) {
            let mut grants = quiet();
            let mut now = 0;
            let mut sealed = 0;
            let mut number = 0;
            // By generation: when it stops to act, on the disk's clock, by what is on its way back.
            let mut acts_until: BTreeMap<u64, u64> = BTreeMap::new();
            let mut late: Vec<(u64, u64, u64, u32)> = Vec::new();
            for (generation, for_ms, step, delay, seals) in events {
                now += step;
                late.sort_unstable();
                while let Some((at, generation, number, for_ms)) = late.first().copied().filter(|it| it.0 <= now) {
                    late.remove(0);
                    if generation >= sealed {
                        grants.grant(at, NS, Generation(generation), number, for_ms);
                    }
                }
                if seals {
                    sealed = sealed.max(generation);
                    if generation == sealed && grants.left_ms(now, NS, Generation(generation)).is_none() {
                        let active = acts_until.iter().filter(|(older, _)| **older < generation);
                        for (older, until) in active {
                            prop_assert!(*until <= now, "{older} acts until {until}, {generation} at {now}");
                        }
                    }
                } else if generation >= sealed {
                    number += 1;
                    if for_ms == 0 {
                        // It stops before it says so, and that may come late.
                        acts_until.insert(generation, now);
                        late.push((now + delay, generation, number, 0));
                    } else {
                        grants.grant(now, NS, Generation(generation), number, for_ms);
                        let until = now + u64::from(for_ms) * 105 / 100;
                        let entry = acts_until.entry(generation).or_default();
                        *entry = until.max(*entry);
                    }
                }
            }
        }
    }
}

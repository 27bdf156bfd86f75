//! What stands between a guesser and the CHAP secrets: failed attempts are counted for each initiator
//! name at an address, and a source of challenges that repeats itself is not used any more.
//!
//! An attempt counts as failed from the moment before any secret is looked at, and is taken back when
//! it succeeds: so logins that run beside each other cannot try more than one after the other could.
//! A success takes back only itself, for the name may belong to somebody who knows another secret.
//!
//! The table is bounded. An address with too many names in it gets no more of them, so that nobody
//! drives out what is remembered of others by making names up.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use lunette_proto::limits::{CHAP_FAILURES_MAX, CHAP_NAMES_MAX, CHAP_NAMES_PER_ADDRESS_MAX, CHAP_WINDOW_MS};
use parking_lot::Mutex;
use smallvec::SmallVec;

use super::chap::OUR_CHALLENGE_BYTES;

/// Watches over the CHAP attempts at a gateway.
#[derive(Debug, Default)]
pub struct Guard {
    attempts: Mutex<Attempts>,
    last_challenge: Mutex<Option<[u8; OUR_CHALLENGE_BYTES]>>,
}

/// An attempt that has not succeeded yet.
#[derive(Debug)]
pub(super) struct Attempt {
    who: Who,
    at: Instant,
}

/// An address, or the network of an IPv6 address, and an initiator's name.
type Who = (IpAddr, String);

/// Failed attempts, when they were made.
#[derive(Debug, Default)]
struct Attempts {
    failed: BTreeMap<Who, SmallVec<[Instant; CHAP_FAILURES_MAX]>>,
}

impl Guard {
    /// Counts an attempt as failed; `None`: there were too many, and this one must not be looked at.
    pub(super) fn attempt(&self, now: Instant, from: IpAddr, initiator: &str) -> Option<Attempt> {
        let who = (network(from), initiator.to_owned());
        self.attempts.lock().begin(now, &who).then_some(Attempt { who, at: now })
    }

    /// Takes an attempt back, which has succeeded.
    pub(super) fn succeeded(&self, attempt: &Attempt) {
        self.attempts.lock().take_back(attempt);
    }

    /// Whether `challenge` differs from the one before: if not, the source of random numbers is broken.
    pub(super) fn is_fresh(&self, challenge: &[u8; OUR_CHALLENGE_BYTES]) -> bool {
        self.last_challenge.lock().replace(*challenge) != Some(*challenge)
    }
}

impl Attempts {
    fn begin(&mut self, now: Instant, who: &Who) -> bool {
        self.expire(now, who);
        if let Some(times) = self.failed.get_mut(who) {
            let is_free = times.len() < CHAP_FAILURES_MAX;
            if is_free {
                times.push(now);
            }
            return is_free;
        }
        let first = (who.0, String::new());
        let names = self.failed.range(first..).take_while(|((from, _), _)| *from == who.0).count();
        if names >= CHAP_NAMES_PER_ADDRESS_MAX {
            return false;
        }
        if self.failed.len() >= CHAP_NAMES_MAX {
            self.make_room(now);
        }
        self.failed.insert(who.clone(), SmallVec::from_iter([now]));
        true
    }

    fn take_back(&mut self, attempt: &Attempt) {
        let Some(times) = self.failed.get_mut(&attempt.who) else { return };
        if let Some(index) = times.iter().position(|at| *at == attempt.at) {
            times.remove(index);
        }
        if times.is_empty() {
            self.failed.remove(&attempt.who);
        }
    }

    /// Forgets what is over of one address.
    fn expire(&mut self, now: Instant, who: &Who) {
        let of_address = self.failed.range_mut((who.0, String::new())..);
        let mut over: SmallVec<[Who; 4]> = SmallVec::new();
        for (other, times) in of_address.take_while(|((from, _), _)| *from == who.0) {
            times.retain(|at| !is_over(*at, now));
            if times.is_empty() {
                over.push(other.clone());
            }
        }
        for other in over {
            self.failed.remove(&other);
        }
    }

    /// Forgets what is over of all addresses, or else what is over soonest.
    fn make_room(&mut self, now: Instant) {
        self.failed.retain(|_, times| times.last().is_some_and(|at| !is_over(*at, now)));
        if self.failed.len() >= CHAP_NAMES_MAX {
            let oldest = self.failed.iter().min_by_key(|(_, times)| times.last().copied());
            if let Some(who) = oldest.map(|(who, _)| who.clone()) {
                self.failed.remove(&who);
            }
        }
    }
}

fn is_over(at: Instant, now: Instant) -> bool {
    now.saturating_duration_since(at) >= Duration::from_millis(CHAP_WINDOW_MS)
}

/// Whoever has an IPv6 address has the whole /64 that it lies in.
fn network(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn address(number: u32) -> IpAddr {
        Ipv4Addr::from_bits(number).into()
    }

    /// Guards the limit: five in ten seconds, each name at each address for itself, and time heals.
    #[test]
    fn five_in_ten_seconds() {
        let guard = Guard::default();
        let start = Instant::now();
        let second = |n: u64| start + Duration::from_secs(n);
        for n in 0..5 {
            assert!(guard.attempt(second(n), address(1), "a").is_some());
        }
        assert!(guard.attempt(second(5), address(1), "a").is_none());
        assert!(guard.attempt(second(5), address(2), "a").is_some());
        assert!(guard.attempt(second(5), address(1), "b").is_some());
        assert!(guard.attempt(second(9), address(1), "a").is_none());
        // The first is forgotten; what was refused has not counted.
        assert!(guard.attempt(second(10), address(1), "a").is_some());
        assert!(guard.attempt(second(10), address(1), "a").is_none());
    }

    /// Guards success: it takes back itself and nothing else.
    #[test]
    fn success_takes_back_itself() {
        let guard = Guard::default();
        let now = Instant::now();
        for _ in 0..100 {
            let attempt = guard.attempt(now, address(1), "a").unwrap();
            guard.succeeded(&attempt);
        }
        assert!(guard.attempts.lock().failed.is_empty());
        for _ in 0..4 {
            guard.attempt(now, address(1), "a").unwrap();
        }
        let attempt = guard.attempt(now, address(1), "a").unwrap();
        assert!(guard.attempt(now, address(1), "a").is_none());
        guard.succeeded(&attempt);
        assert!(guard.attempt(now, address(1), "a").is_some());
        assert!(guard.attempt(now, address(1), "a").is_none());
    }

    /// Guards the table: names of one address are bounded and drive out nobody, addresses are bounded.
    #[test]
    fn bounded() {
        let guard = Guard::default();
        let start = Instant::now();
        for n in 0..1000 {
            let began = guard.attempt(start, address(1), &format!("name{n}")).is_some();
            assert_eq!(began, n < CHAP_NAMES_PER_ADDRESS_MAX);
        }
        for n in 0..CHAP_NAMES_MAX as u32 {
            let now = start + Duration::from_micros(u64::from(n) + 1);
            assert!(guard.attempt(now, address(n + 2), "a").is_some());
        }
        assert_eq!(guard.attempts.lock().failed.len(), CHAP_NAMES_MAX);
        // The newest are there still.
        let last = address(CHAP_NAMES_MAX as u32 + 1);
        let attempts = (0..5).filter(|_| guard.attempt(start, last, "a").is_some()).count();
        assert_eq!(attempts, 4);
        let later = start + Duration::from_secs(11);
        assert!(guard.attempt(later, address(1), "other").is_some());
        assert!(guard.attempt(later, address(1 << 30), "a").is_some());
        guard.attempts.lock().make_room(later);
        assert_eq!(guard.attempts.lock().failed.len(), 2);
    }

    /// Guards against a whole IPv6 network as many guessers, and an IPv4 address as two.
    #[test]
    fn networks() {
        let of = |text: &str| network(text.parse().unwrap());
        assert_eq!(of("fd00::1:2:3:4"), of("fd00::5:6:7:8"));
        assert_ne!(of("fd00:0:0:1::1"), of("fd00:0:0:2::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }

    /// Guards against a source of random numbers that stands still.
    #[test]
    fn repeated_challenge() {
        let guard = Guard::default();
        assert!(guard.is_fresh(&[0; OUR_CHALLENGE_BYTES]));
        assert!(!guard.is_fresh(&[0; OUR_CHALLENGE_BYTES]));
        assert!(guard.is_fresh(&[1; OUR_CHALLENGE_BYTES]));
    }
}

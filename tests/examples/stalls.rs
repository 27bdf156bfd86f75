//! How long commands wait when a node dies, goes silent, and returns.
//!
//! ```text
//! cargo build --release && LUNETTE_BIN=target/release/lunette cargo run --release -p lunette-tests --example stalls -- kill 30
//! ... -- stop 30       SIGSTOP instead of kill -9
//! ```
//!
//! A prober keeps eight commands of 4 KiB on their way, reads and writes at random places, and times each. In every round
//! node2 is taken away at a random moment, and is let return when the cluster has left it behind. A line for each round:
//! the longest command before, and of those that were on their way or sent from the death until the return.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lunette_tests::processes::Part;
use lunette_tests::random::Random;
use lunette_tests::{Initiator, Lunette, command, iqn};

const NODE: &str = "node2";
const DEPTH: u64 = 8;
/// Rounds of one cluster: a node that leaves again and again is taken back later each time.
const ROUNDS_MAX: usize = 5;
/// Places of 4 KiB, written before anything is measured.
const PLACES: u64 = 2048;

/// A command: when it was sent, how long it took, and whether it was answered GOOD.
#[derive(Clone, Copy)]
struct Probe {
    sent: Instant,
    took: Duration,
    good: bool,
}

struct Prober {
    stop: Arc<AtomicBool>,
    probes: Arc<Mutex<Vec<Probe>>>,
    sessions: Vec<JoinHandle<()>>,
}

impl Prober {
    fn start(lunette: &Lunette) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let probes = Arc::new(Mutex::new(Vec::new()));
        let session = |index| {
            let (portal, stop, probes) = (lunette.portal(), Arc::clone(&stop), Arc::clone(&probes));
            std::thread::spawn(move || {
                let mut session = Initiator::login(portal, &iqn("alpha")).expect("a session");
                session.ready().expect("a connection");
                let mut random = Random::new(index);
                while !stop.load(Ordering::Relaxed) {
                    let lba = random.below(PLACES) * 8;
                    let sent = Instant::now();
                    let answer = if random.one_in(2) {
                        session.read(lba, 8)
                    } else {
                        session.write(lba, &[index as u8; 4096])
                    };
                    let good = answer.expect("a connection").status == 0;
                    let probe = Probe { sent, took: sent.elapsed(), good };
                    probes.lock().unwrap_or_else(PoisonError::into_inner).push(probe);
                }
            })
        };
        let sessions = (0..DEPTH).map(session).collect();
        Self { stop, probes, sessions }
    }

    /// What has been answered since the last call.
    fn take(&self) -> Vec<Probe> {
        std::mem::take(&mut *self.probes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.sessions.into_iter().for_each(|session| session.join().expect("a session"));
    }
}

fn longest(probes: &[Probe]) -> Duration {
    probes.iter().map(|probe| probe.took).max().unwrap_or_default()
}

fn ms(duration: Duration) -> u128 {
    duration.as_millis()
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let kills = match arguments.next().as_deref() {
        Some("kill") => true,
        Some("stop") => false,
        _ => panic!("usage: stalls kill|stop [ROUNDS]"),
    };
    let rounds: usize = arguments.next().map_or(30, |text| text.parse().expect("a number of rounds"));

    let mut random = Random::new(7);
    let mut stalls = Vec::new();
    let mut errors = 0;
    for first in (1..=rounds).step_by(ROUNDS_MAX) {
        let last = rounds.min(first + ROUNDS_MAX - 1);
        errors += measure(kills, first..=last, &mut random, &mut stalls);
    }
    stalls.sort_unstable();
    let at = |part: usize| ms(stalls[(stalls.len() - 1) * part / 100]);
    println!(
        "{rounds} rounds: longest stall min {} ms, median {} ms, p90 {} ms, max {} ms; {errors} errors",
        at(0),
        at(50),
        at(90),
        at(100)
    );
}

/// Measures in some rounds; how many commands failed.
fn measure(
    kills: bool,
    rounds: RangeInclusive<usize>,
    random: &mut Random,
    stalls: &mut Vec<Duration>,
) -> usize {
    let lunette = Lunette::build().processes().volume("alpha", "64M").start();
    let mut writer = lunette.initiator("alpha");
    writer.ready().expect("a connection");
    for place in 0..PLACES {
        assert_eq!(writer.write(place * 8, &[1; 4096]).expect("a connection").status, 0);
    }
    let prober = Prober::start(&lunette);
    let mut part: Option<Part> = None;
    let mut errors = 0;
    for round in rounds {
        lunette.until_healthy();
        std::thread::sleep(Duration::from_millis(1000 + random.below(500)));
        let before = prober.take();
        let pid = lunette.pid_of(NODE);
        let death = Instant::now();
        if kills {
            command::kill(pid)
        } else {
            command::freeze(pid)
        }
        lunette.until("left behind", |lunette| lunette.disk_state(NODE) == "out");
        let out = death.elapsed();
        std::thread::sleep(Duration::from_millis(500));
        let probes = prober.take();
        if kills {
            part = Some(lunette.start_part(NODE));
        } else {
            command::thaw(pid);
        }
        let stall = longest(&probes);
        let bad = before.iter().chain(&probes).filter(|probe| !probe.good).count();
        let late = probes.iter().filter(|probe| probe.took == stall).map(|probe| probe.sent).min();
        let from = late.map_or(0, |sent| sent.saturating_duration_since(death).as_millis());
        println!(
            "round {round}: longest before {} ms, after {} ms (sent {from} ms after), seen out within {} ms, {} commands, {bad} errors",
            ms(longest(&before)),
            ms(stall),
            ms(out),
            probes.len()
        );
        stalls.push(stall);
        errors += bad;
    }
    lunette.until_healthy();
    let rest = prober.take();
    errors += rest.iter().filter(|probe| !probe.good).count();
    prober.end();
    drop(part);
    errors
}

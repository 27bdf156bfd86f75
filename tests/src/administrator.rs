//! An administrator at the other end of a guest's script: commands that a Linux guest asks for in the middle of what it
//! does are run here, where the system is.
//!
//! ```text
//! guest: echo WORDS | socat - TCP:10.0.2.2:PORT        what the command printed, then a line `exit STATUS`
//! ```
//!
//! Some are no commands of the command line: `meet NAME` ends when as many guests have come to NAME as there are; `kill
//! PART` and `start PART` are about a process of the system.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::ports;
use crate::processes::Part;
use crate::server::Lunette;

/// How long a guest waits for another one.
const MEETING: Duration = Duration::from_secs(120);

/// Serves guests for as long as `work` takes, which is told the port; there are `guests` of them.
///
/// # Panics
/// If the port cannot be served, or `work` panics.
pub fn serve<T>(lunette: &Lunette, guests: usize, work: impl FnOnce(u16) -> T) -> T {
    let address = ports::free();
    let listener = TcpListener::bind(address).expect("bind a port that is free");
    let done = AtomicBool::new(false);
    let meetings = Meetings { guests, arrived: Mutex::default(), changed: Condvar::new() };
    let parts = Mutex::default();
    thread::scope(|scope| {
        // Ends the service also when the work panics.
        let ending = Ending { done: &done, address };
        scope.spawn(|| {
            while let Ok((stream, _)) = listener.accept() {
                if done.load(Ordering::Relaxed) {
                    return;
                }
                let (meetings, parts) = (&meetings, &parts);
                scope.spawn(move || answer(lunette, meetings, parts, stream));
            }
        });
        let result = work(address.port());
        drop(ending);
        result
    })
}

struct Ending<'a> {
    done: &'a AtomicBool,
    address: std::net::SocketAddr,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        // Wakes the one who accepts.
        drop(TcpStream::connect(self.address));
    }
}

/// Carries out one line. A guest that is gone in the meantime is no error of ours.
fn answer(lunette: &Lunette, meetings: &Meetings, parts: &Mutex<Vec<Part>>, mut stream: TcpStream) {
    let mut line = String::new();
    if BufReader::new(&stream).read_line(&mut line).is_err() {
        return;
    }
    let words: Vec<&str> = line.split_whitespace().collect();
    let text = match words.as_slice() {
        ["meet", name] => format!("exit {}\n", i32::from(!meetings.meet(name))),
        ["kill", name] => {
            lunette.kill_part(name);
            "exit 0\n".to_owned()
        }
        ["start", name] => {
            parts.lock().unwrap_or_else(PoisonError::into_inner).push(lunette.start_part(name));
            "exit 0\n".to_owned()
        }
        words => {
            let outcome = lunette.cli(words.iter().copied());
            format!("{}{}\nexit {}\n", outcome.stdout, outcome.stderr, outcome.code)
        }
    };
    let _ = stream.write_all(text.as_bytes());
}

struct Meetings {
    guests: usize,
    arrived: Mutex<BTreeMap<String, usize>>,
    changed: Condvar,
}

impl Meetings {
    /// Whether all came.
    fn meet(&self, name: &str) -> bool {
        let mut arrived = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        *arrived.entry(name.to_owned()).or_default() += 1;
        self.changed.notify_all();
        let missing = |arrived: &mut BTreeMap<String, usize>| {
            arrived.get(name).is_none_or(|count| *count < self.guests)
        };
        let waited = self.changed.wait_timeout_while(arrived, MEETING, missing);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_meet_when_all_have_come() {
        // Guards against a guest that goes on before the other is there.
        let meetings = Meetings { guests: 2, arrived: Mutex::default(), changed: Condvar::new() };
        let passed = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                assert!(meetings.meet("half way"));
                passed.store(true, Ordering::Relaxed);
            });
            while meetings.arrived.lock().expect("not poisoned").is_empty() {
                thread::yield_now();
            }
            assert!(!passed.load(Ordering::Relaxed));
            assert!(meetings.meet("half way"));
        });
        assert!(passed.load(Ordering::Relaxed));
    }
}

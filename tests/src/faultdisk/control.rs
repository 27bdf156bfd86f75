//! Faults on command, over a Unix socket: a line each way.
//!
//! | command | what it does |
//! |---|---|
//! | `drop` | a power cut: nothing that was not synced is there any more |
//! | `crash SEED` | a power cut: any of the writes that were not synced are there, some torn at 512 bytes |
//! | `cut-after N SEED` | such a power cut in the middle of a write or sync, after N others; everything fails then |
//! | `power-on` | the power is there again |
//! | `fail-sync once`, `fail-sync off` | the next sync or durable write fails, and loses what it should have kept |
//! | `eio-write on`, `eio-write off` | writes and syncs fail |
//! | `full on`, `full off` | no space for what has none yet |
//! | `stats` | counts, as `name=value` |
//! | `quit` | unmounts and ends |
//!
//! The answer is `ok`, with what was asked for, or `error` with the reason. Files that are open at a power cut stay
//! open: end the program first, as a power cut does.

use std::fmt;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::str::FromStr;

use parking_lot::Mutex;

use super::state::{Power, State, Stats};

/// A command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// A power cut that loses everything unsynced.
    Drop,
    /// A power cut that keeps some of it, by this seed.
    Crash(u64),
    /// A power cut after so many writes and syncs, in the middle of the next; by this seed.
    CutAfter(u64, u64),
    /// The power is there again.
    PowerOn,
    /// The next sync fails, or not.
    FailSync(bool),
    /// Writes and syncs fail, or not.
    WriteErrors(bool),
    /// There is no space, or there is.
    Full(bool),
    /// What happened so far?
    Stats,
    /// End.
    Quit,
}

impl FromStr for Command {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let number = |word: &str| word.parse().map_err(|_| format!("no number: {word}"));
        let words: Vec<_> = line.split_whitespace().collect();
        Ok(match words[..] {
            ["drop"] => Self::Drop,
            ["crash", seed] => Self::Crash(number(seed)?),
            ["cut-after", operations, seed] => Self::CutAfter(number(operations)?, number(seed)?),
            ["power-on"] => Self::PowerOn,
            ["fail-sync", "once"] => Self::FailSync(true),
            ["fail-sync", "off"] => Self::FailSync(false),
            ["eio-write", "on"] => Self::WriteErrors(true),
            ["eio-write", "off"] => Self::WriteErrors(false),
            ["full", "on"] => Self::Full(true),
            ["full", "off"] => Self::Full(false),
            ["stats"] => Self::Stats,
            ["quit"] => Self::Quit,
            _ => return Err(format!("unknown command: {line:?}")),
        })
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let switch = |on: &bool| if *on { "on" } else { "off" };
        match self {
            Self::Drop => f.write_str("drop"),
            Self::Crash(seed) => write!(f, "crash {seed}"),
            Self::CutAfter(operations, seed) => write!(f, "cut-after {operations} {seed}"),
            Self::PowerOn => f.write_str("power-on"),
            Self::FailSync(on) => write!(f, "fail-sync {}", if *on { "once" } else { "off" }),
            Self::WriteErrors(on) => write!(f, "eio-write {}", switch(on)),
            Self::Full(on) => write!(f, "full {}", switch(on)),
            Self::Stats => f.write_str("stats"),
            Self::Quit => f.write_str("quit"),
        }
    }
}

/// Answers one connection after the other until told to quit.
///
/// # Errors
/// The socket fails.
pub fn serve(listener: &UnixListener, state: &Mutex<State>) -> io::Result<()> {
    for stream in listener.incoming() {
        let mut stream = stream?;
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        while let Some(Ok(line)) = lines.next() {
            let command = line.parse();
            let answer = match &command {
                Ok(command) => run(*command, state),
                Err(error) => format!("error {error}"),
            };
            let sent = stream.write_all(format!("{answer}\n").as_bytes());
            if command == Ok(Command::Quit) {
                return Ok(());
            }
            if sent.is_err() {
                break;
            }
        }
    }
    Ok(())
}

fn run(command: Command, state: &Mutex<State>) -> String {
    let mut state = state.lock();
    let outcome = match command {
        Command::Drop => state.drop_unsynced(),
        Command::Crash(seed) => state.crash(seed),
        Command::CutAfter(operations, seed) => {
            state.power = Power::FailsAfter { operations, seed };
            Ok(())
        }
        Command::PowerOn => {
            state.power = Power::On;
            Ok(())
        }
        Command::FailSync(on) => {
            state.faults.fail_sync = on;
            Ok(())
        }
        Command::WriteErrors(on) => {
            state.faults.write_errors = on;
            Ok(())
        }
        Command::Full(on) => {
            state.faults.full = on;
            Ok(())
        }
        Command::Stats => return format!("ok {}", state.stats()),
        Command::Quit => Ok(()),
    };
    match outcome {
        Ok(()) => "ok".into(),
        Err(error) => format!("error {error}"),
    }
}

/// The other end of the socket.
#[derive(Debug)]
pub struct Controller {
    stream: BufReader<UnixStream>,
}

impl Controller {
    /// Connects.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(socket: &Path) -> io::Result<Self> {
        Ok(Self { stream: BufReader::new(UnixStream::connect(socket)?) })
    }

    /// Has a command done; what the answer says beside `ok`.
    ///
    /// # Errors
    /// The command was not done.
    pub fn command(&mut self, command: Command) -> io::Result<String> {
        self.stream.get_mut().write_all(format!("{command}\n").as_bytes())?;
        let mut answer = String::new();
        self.stream.read_line(&mut answer)?;
        match answer.trim_end().strip_prefix("ok") {
            Some(rest) => Ok(rest.trim_start().to_owned()),
            None => Err(io::Error::other(format!("{command}: {answer:?}"))),
        }
    }

    /// What happened so far.
    ///
    /// # Errors
    /// No answer.
    pub fn stats(&mut self) -> io::Result<Stats> {
        self.command(Command::Stats)?.parse().map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards the words on the socket: each command is read as what was written, and nothing else passes for one.
    #[test]
    fn words() {
        let mut commands = vec![Command::Drop, Command::Crash(u64::MAX), Command::Stats, Command::Quit];
        commands.extend([Command::CutAfter(3, 4), Command::PowerOn]);
        for on in [true, false] {
            commands.extend([Command::FailSync(on), Command::WriteErrors(on), Command::Full(on)]);
        }
        for command in commands {
            assert_eq!(command.to_string().parse(), Ok(command));
        }
        for line in ["", "drop now", "crash", "crash -1", "full", "full yes", "fail-sync on", "cut-after 3"] {
            assert!(line.parse::<Command>().is_err(), "{line}");
        }
        let stats = Stats { crashes: 3, unsynced_sectors: 9, ..Stats::default() };
        assert_eq!(stats.to_string().parse(), Ok(stats));
    }
}

//! Runs a program to its end, but not for ever.

use std::fmt;
use std::io::{Read, Seek, SeekFrom, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How a program ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The command line, for messages.
    pub line: String,
    /// Its exit code, or the negative number of the signal that ended it.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Outcome {
    /// Whether it ended with 0.
    #[must_use]
    pub fn ok(&self) -> bool {
        self.code == 0
    }

    /// The standard output of a program that must succeed.
    ///
    /// # Panics
    /// If it did not.
    #[must_use]
    pub fn success(self) -> String {
        assert!(self.ok(), "{self}");
        self.stdout
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` ended with {}\n--- standard output\n{}\n--- standard error\n{}",
            self.line, self.code, self.stdout, self.stderr
        )
    }
}

/// Runs `command` for at most `limit`.
///
/// # Panics
/// If it cannot be started, or takes longer: it is killed, and what it wrote so far is in the message.
pub fn run(command: &mut Command, limit: Duration) -> Outcome {
    run_with_input(command, "", limit)
}

/// Like [`run`], with `input` on its standard input.
///
/// # Panics
/// As [`run`].
pub fn run_with_input(command: &mut Command, input: &str, limit: Duration) -> Outcome {
    let line = command_line(command);
    // Files, not pipes: a program that writes much never waits for us.
    let mut stdin = tempfile::tempfile().expect("a temporary file");
    let mut stdout = tempfile::tempfile().expect("a temporary file");
    let mut stderr = tempfile::tempfile().expect("a temporary file");
    stdin.write_all(input.as_bytes()).and_then(|()| stdin.rewind()).expect("write a temporary file");
    let spawned = command
        .stdin(Stdio::from(stdin))
        .stdout(Stdio::from(stdout.try_clone().expect("a second handle")))
        .stderr(Stdio::from(stderr.try_clone().expect("a second handle")))
        .spawn();
    let mut child = spawned.unwrap_or_else(|error| {
        panic!("cannot start `{line}`: {error}. tests/run installs the programs that the tests need")
    });
    let status = wait(&mut child, limit);
    let text = |file: &mut std::fs::File| {
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0))
            .and_then(|_| file.read_to_end(&mut bytes))
            .expect("read a temporary file");
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let (stdout, stderr) = (text(&mut stdout), text(&mut stderr));
    let Some(status) = status else {
        panic!(
            "`{line}` was not done after {limit:?}\n--- standard output\n{stdout}\n--- standard error\n{stderr}"
        )
    };
    Outcome { line, code: code(status), stdout, stderr }
}

/// Waits for `child`; `None` if it took longer than `limit` and was told to end, then killed.
pub fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().expect("wait for a child") {
            return Some(status);
        }
        if Instant::now() >= end {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    // SIGTERM first: guest/run ends its virtual machine when told to, but could not when killed.
    terminate(child.id());
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        if child.try_wait().expect("wait for a child").is_some() {
            return None;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().expect("kill a child of ours");
    child.wait().expect("wait for a child");
    None
}

/// An exit status as one number: the code, or the negative signal.
#[must_use]
pub fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| -status.signal().unwrap_or(0))
}

/// Sends SIGTERM. A process that is gone is no error.
pub fn terminate(pid: u32) {
    signal(pid, rustix::process::Signal::TERM);
}

/// Sends SIGINT, as Ctrl-C does. A process that is gone is no error.
pub fn interrupt(pid: u32) {
    signal(pid, rustix::process::Signal::INT);
}

/// Sends SIGKILL. A process that is gone is no error.
pub fn kill(pid: u32) {
    signal(pid, rustix::process::Signal::KILL);
}

/// Sends SIGSTOP: the process keeps its connections and answers nothing any more.
pub fn freeze(pid: u32) {
    signal(pid, rustix::process::Signal::STOP);
}

/// Sends SIGCONT.
pub fn thaw(pid: u32) {
    signal(pid, rustix::process::Signal::CONT);
}

fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw).expect("a process id");
    match rustix::process::kill_process(pid, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => panic!("cannot signal {pid:?}: {error}"),
    }
}

fn command_line(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outcome_is_that_of_the_program() {
        // Guards against a harness that takes a failure for a success.
        let mut shell = Command::new("sh");
        let outcome =
            run_with_input(shell.args(["-c", "cat; echo no >&2; exit 7"]), "in", Duration::from_secs(10));
        assert_eq!((outcome.code, outcome.stdout.as_str(), outcome.stderr.as_str()), (7, "in", "no\n"));
        let mut shell = Command::new("sh");
        let outcome = run(shell.args(["-c", "kill -9 $$"]), Duration::from_secs(10));
        assert_eq!(outcome.code, -9);
    }

    #[test]
    #[should_panic(expected = "was not done after")]
    fn a_program_that_hangs_is_ended() {
        // Guards against a test run that never ends.
        let _ = run(Command::new("sleep").arg("100"), Duration::from_millis(50));
    }
}

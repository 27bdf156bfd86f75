//! A `lunette up` of a test's own, on ports that are free, and commands against it.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// Longer than anything takes on a busy machine; a test that runs into it fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The binary, without the environment of whoever runs the tests.
pub(crate) fn lunette() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lunette"));
    command.env_remove("LUNETTE_ADMIN").env_remove("LUNETTE_LOG").stdin(Stdio::null());
    command
}

/// Runs a command line to its end.
pub(crate) fn run(words: &[&str]) -> Output {
    lunette().args(words).output().expect("the binary starts")
}

/// The one line that a refusal prints.
pub(crate) fn refusal(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("lunette: ")).collect();
    let [line] = lines[..] else { panic!("not one line: {text:?}") };
    line.to_owned()
}

/// A running system. Killed when it is dropped.
pub(crate) struct Up {
    child: Child,
    lines: Receiver<String>,
    pub(crate) data: PathBuf,
    pub(crate) admin: String,
    pub(crate) portals: Vec<String>,
    pub(crate) targets: Vec<String>,
    stderr: PathBuf,
}

/// A folder for a test's files.
pub(crate) fn folder() -> TempDir {
    tempfile::Builder::new().prefix("lunette-cli-").tempdir().expect("a folder")
}

impl Up {
    /// Starts on DATA = FOLDER/data and waits until it is ready.
    pub(crate) fn start(folder: &Path, words: &[&str]) -> Self {
        let data = folder.join("data");
        let stderr = folder.join("stderr");
        let log = File::options().create(true).append(true).open(&stderr).expect("a log");
        let mut command = lunette();
        command.arg("up").arg("--data").arg(&data).args([
            "--admin",
            "127.0.0.1:0",
            "--portal",
            "127.0.0.1:0",
        ]);
        command.args(words).stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().expect("the binary starts");
        let stdout = child.stdout.take().expect("piped");
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        let mut up = Self {
            child,
            lines,
            data,
            admin: String::new(),
            portals: Vec::new(),
            targets: Vec::new(),
            stderr,
        };
        up.wait_ready();
        up
    }

    fn wait_ready(&mut self) {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => match line.split_once(' ') {
                    None if line == "ready" => return,
                    Some(("admin", url)) => self.admin = url.to_owned(),
                    Some(("portal", portal)) => self.portals.push(portal.to_owned()),
                    Some(("target", iqn)) => self.targets.push(iqn.to_owned()),
                    _ => assert!(line.starts_with("iscsiadm -m "), "{line}"),
                },
                Err(RecvTimeoutError::Timeout) => panic!("not ready: {}", self.log()),
                Err(RecvTimeoutError::Disconnected) => panic!("ended instead: {}", self.log()),
            }
        }
    }

    /// Runs a command against it.
    pub(crate) fn cli(&self, words: &[&str]) -> Output {
        lunette().args(words).env("LUNETTE_ADMIN", &self.admin).output().expect("the binary starts")
    }

    /// Runs a command with something on its standard input.
    pub(crate) fn cli_with(&self, words: &[&str], input: &str) -> Output {
        let mut command = lunette();
        command.args(words).env("LUNETTE_ADMIN", &self.admin).stdin(Stdio::piped());
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts");
        let mut stdin = child.stdin.take().expect("piped");
        stdin.write_all(input.as_bytes()).expect("it reads");
        drop(stdin);
        child.wait_with_output().expect("it ends")
    }

    /// Runs a command that succeeds, and gives what it printed.
    pub(crate) fn ok(&self, words: &[&str]) -> String {
        let output = self.cli(words);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {stderr}\n{}", self.log());
        assert!(stderr.is_empty(), "{words:?}: {stderr}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// The same with `--json`.
    pub(crate) fn json(&self, words: &[&str]) -> Value {
        let words: Vec<&str> = words.iter().copied().chain(["--json"]).collect();
        serde_json::from_str(&self.ok(&words)).expect("JSON")
    }

    /// Waits until every extent has all of its copies.
    pub(crate) fn wait_healthy(&self) {
        let _ = self.wait_status(|line| line == "health: healthy");
    }

    /// Waits until the loss of something is seen, and the line says of what.
    pub(crate) fn wait_unhealthy(&self) {
        let _ = self.wait_status(|line| line.starts_with("health: ") && line.ends_with(')'));
    }

    /// Waits for a first line of `status`, and gives it.
    pub(crate) fn wait_status(&self, is: impl Fn(&str) -> bool) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let status = self.ok(&["status"]);
            if let Some(line) = status.lines().next().filter(|line| is(line)) {
                return line.to_owned();
            }
            assert!(Instant::now() < end, "{status}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Stops it as an operator does.
    pub(crate) fn stop(mut self) -> ExitStatus {
        terminate(self.child.id());
        wait(&mut self.child)
    }

    /// Kills it as a power cut does.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("a child of ours");
        self.child.wait().expect("a child of ours");
    }

    pub(crate) fn log(&self) -> String {
        let mut text = String::new();
        File::open(&self.stderr).expect("a log").read_to_string(&mut text).expect("text");
        text
    }

    /// Waits until the log has a line that contains `text`.
    pub(crate) fn wait_log(&self, text: &str) {
        let end = Instant::now() + PATIENCE;
        while !self.log().contains(text) {
            assert!(Instant::now() < end, "{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The process of `up --processes` that has this name.
    pub(crate) fn pid(&self, name: &str) -> u32 {
        let path = self.data.join("run").join(format!("{name}.pid"));
        std::fs::read_to_string(path).expect("a pid file").trim().parse().expect("a number")
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // The children of `--processes` outlive a parent that is killed: ask it to stop them.
            terminate(self.child.id());
            wait(&mut self.child);
        }
        // Those that a killed parent left, so that no failed test leaves processes behind.
        let Ok(run) = std::fs::read_dir(self.data.join("run")) else { return };
        for path in run.flatten().map(|entry| entry.path()) {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let Ok(process) = text.trim().parse::<u32>() else { continue };
            let line = std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
            let data = self.data.to_string_lossy();
            if path.extension().is_some_and(|end| end == "pid")
                && String::from_utf8_lossy(&line).contains(&*data)
            {
                let _ = kill_process(pid(process), Signal::KILL);
            }
        }
    }
}

fn pid(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).expect("a process id")).expect("not 0")
}

/// SIGTERM to a process that the test started.
pub(crate) fn terminate(process: u32) {
    let _ = kill_process(pid(process), Signal::TERM);
}

/// SIGKILL to a process that the test started.
pub(crate) fn kill(process: u32) {
    kill_process(pid(process), Signal::KILL).expect("a process of ours");
}

/// Waits for the end of a child.
pub(crate) fn wait(child: &mut Child) -> ExitStatus {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().expect("a child of ours") {
            return status;
        }
        if Instant::now() >= end {
            let _ = child.kill();
            panic!("the process does not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until a process that is not a child is gone.
pub(crate) fn wait_gone(process: u32) {
    let end = Instant::now() + PATIENCE;
    while std::fs::read(format!("/proc/{process}/cmdline")).is_ok_and(|line| !line.is_empty()) {
        assert!(Instant::now() < end, "process {process} does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
}

//! One process: started, watched for its `ready`, told to stop.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{ChildStdout, Command};

use super::files::{Role, RunDir, terminate};
use crate::args::LogFormat;
use crate::failure::one_line;

/// What a server prints once it serves.
const READY: &str = "ready";
/// A line of a log that is worth showing is not longer.
const LAST_LINE_BYTES_MAX: u64 = 4096;

/// A process that has ended.
pub(super) struct Ended {
    pub(super) name: String,
    pub(super) how: String,
}

/// A child process.
pub(super) struct Child {
    name: String,
    process: tokio::process::Child,
    output: Option<Lines<BufReader<ChildStdout>>>,
}

impl Child {
    pub(super) fn start(name: &str, run: &RunDir, log_format: LogFormat) -> Result<Self> {
        let role = Role::of(name).with_context(|| format!("'{name}' is no process"))?;
        let mut command = Command::new(super::executable()?);
        command.args(role.arguments(&run.config(name), log_format));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(run.log(name)?);
        let mut process = command.spawn().with_context(|| format!("{name} cannot be started"))?;
        if let Some(pid) = process.id() {
            run.write_pid(name, pid)?;
        }
        let output = process.stdout.take().map(|output| BufReader::new(output).lines());
        Ok(Self { name: name.to_owned(), process, output })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Waits until it serves; a process that ends instead has said why in its log.
    pub(super) async fn ready(&mut self, run: &RunDir) -> Result<()> {
        let mut output = self.output.take().context("a process is waited for once")?;
        while let Ok(Some(line)) = output.next_line().await {
            if line == READY {
                return Ok(());
            }
        }
        let how = self.process.wait().await.map_or_else(|error| error.to_string(), describe);
        let path = run.log_path(&self.name);
        let last = last_line(&path).unwrap_or_default();
        let last = last.strip_prefix("lunette: ").unwrap_or(&last);
        Err(anyhow!("{} did not start ({how}): {last}; its log is {}", self.name, path.display()))
    }

    pub(super) async fn ended(&mut self) -> Ended {
        let how = self.process.wait().await.map_or_else(|error| error.to_string(), describe);
        Ended { name: self.name.clone(), how }
    }

    pub(super) fn terminate(&self) {
        if let Some(pid) = self.process.id() {
            terminate(pid);
        }
    }

    /// Waits until it has ended; one that does not end is killed, which is safe at any moment.
    pub(super) async fn wait(&mut self, timeout: Duration) {
        if tokio::time::timeout(timeout, self.process.wait()).await.is_err() {
            tracing::warn!(name = self.name, "does not stop: killing it");
            if let Err(error) = self.process.kill().await {
                tracing::warn!(name = self.name, %error, "cannot be killed");
            }
        }
    }
}

/// The last line of a log, however long the log is.
fn last_line(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LAST_LINE_BYTES_MAX)))?;
    let mut tail = Vec::new();
    file.take(LAST_LINE_BYTES_MAX).read_to_end(&mut tail)?;
    let tail = String::from_utf8_lossy(&tail);
    Ok(one_line(tail.lines().next_back().unwrap_or_default()))
}

fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;

    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

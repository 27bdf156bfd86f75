//! A `lunette up` of a test's own: its folder, its ports, its log.
//!
//! ```text
//! Lunette::build().volume("a", "64M").start()
//!     .cli(["volume", "list"])         the command line, pointed at it
//!     .iscsi("a")                      the URL for libiscsi and QEMU
//!     .kill() / .stop(), .restart()    as a power cut, and as an operator does it
//! ```
//!
//! Dropped, it kills the processes that it started, by id, and when the test fails shows their log.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::binary::lunette_bin;
use crate::command::{self, Outcome};
use crate::initiator::Initiator;
use crate::ports;

/// How long a server may take until it is ready, on a busy machine and in a debug build.
const READY: Duration = Duration::from_secs(60);
/// How long a command of the command line may take.
const COMMAND: Duration = Duration::from_secs(30);
/// Lines of the log that a failing test shows.
const LOG_LINES: usize = 120;

/// The name of the target that exports volume `name`.
#[must_use]
pub fn iqn(name: &str) -> String {
    format!("iqn.2026-11.io.lunette:{name}")
}

/// What to start.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    volumes: Vec<(String, String)>,
    portals: Vec<SocketAddr>,
    nodes: Option<u8>,
    processes: bool,
    rebuild_after_s: Option<u64>,
    control: Option<u8>,
    gateways: Option<u8>,
    log: Option<String>,
}

impl Builder {
    /// A volume to create and export.
    #[must_use]
    pub fn volume(mut self, name: &str, size: &str) -> Self {
        self.volumes.push((name.to_owned(), size.to_owned()));
        self
    }

    /// One more portal.
    #[must_use]
    pub fn portal(mut self, portal: SocketAddr) -> Self {
        self.portals.push(portal);
        self
    }

    /// How many storage nodes.
    #[must_use]
    pub fn nodes(mut self, nodes: u8) -> Self {
        self.nodes = Some(nodes);
        self
    }

    /// What is logged, as `LUNETTE_LOG` has it.
    #[must_use]
    pub fn log(mut self, directives: &str) -> Self {
        self.log = Some(directives.to_owned());
        self
    }

    /// How long a disk is out before it is rebuilt on others.
    #[must_use]
    pub fn rebuild_after_s(mut self, seconds: u64) -> Self {
        self.rebuild_after_s = Some(seconds);
        self
    }

    /// Each node and the gateway as a process.
    #[must_use]
    pub fn processes(mut self) -> Self {
        self.processes = true;
        self
    }

    /// So many members of the control plane, in the processes of the first nodes.
    #[must_use]
    pub fn control(mut self, members: u8) -> Self {
        self.control = Some(members);
        self
    }

    /// So many gateways, each a process: see [`Lunette::gateway`].
    #[must_use]
    pub fn gateways(mut self, gateways: u8) -> Self {
        self.processes = true;
        self.gateways = Some(gateways);
        self
    }

    /// Starts it in a new folder and waits until it is ready.
    ///
    /// # Panics
    /// If it does not get ready.
    #[must_use]
    pub fn start(self) -> Lunette {
        let folder = tempfile::Builder::new().prefix("lunette-").tempdir().expect("a temporary folder");
        // The members of a control plane are side by side.
        let admin = ports::free_run(Ipv4Addr::LOCALHOST.into(), self.control.unwrap_or(1).into());
        // So are the portals of several gateways.
        let portal = ports::free_run(Ipv4Addr::LOCALHOST.into(), self.gateways.unwrap_or(1).into());
        let mut lunette = Lunette { folder, options: self, portal, admin, child: None, starts: 0 };
        lunette.restart();
        lunette
    }
}

/// A running (or stopped) system.
#[derive(Debug)]
pub struct Lunette {
    folder: TempDir,
    options: Builder,
    portal: SocketAddr,
    admin: SocketAddr,
    child: Option<Child>,
    starts: usize,
}

impl Lunette {
    /// With no volumes, three nodes, one process.
    #[must_use]
    pub fn build() -> Builder {
        Builder::default()
    }

    /// Where iSCSI is served.
    #[must_use]
    pub fn portal(&self) -> SocketAddr {
        self.portal
    }

    /// Where gateway `number`, from 1, serves iSCSI.
    ///
    /// # Panics
    /// If there are not so many.
    #[must_use]
    pub fn gateway(&self, number: u8) -> SocketAddr {
        assert!((1..=self.options.gateways.unwrap_or(1)).contains(&number), "there is no gateway{number}");
        SocketAddr::new(self.portal.ip(), self.portal.port() + u16::from(number) - 1)
    }

    /// Where the control plane is served.
    #[must_use]
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// The data directory.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// A folder for the test's own files; gone with the server.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        self.folder.path()
    }

    /// LUN 0 of the exported volume `name`, as libiscsi and QEMU write it.
    #[must_use]
    pub fn iscsi(&self, name: &str) -> String {
        format!("iscsi://{}/{}/0", self.portal, iqn(name))
    }

    /// The process id of `lunette up`.
    ///
    /// # Panics
    /// If it was stopped.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the server is running").id()
    }

    /// The process ids of DATA/run/*.pid, by name.
    ///
    /// # Panics
    /// If there are none.
    #[must_use]
    pub fn pids(&self) -> Vec<(String, u32)> {
        let run = self.data().join("run");
        let mut pids = Vec::new();
        for entry in fs::read_dir(&run).unwrap_or_else(|error| panic!("{}: {error}", run.display())) {
            let path = entry.expect("a folder entry").path();
            if path.extension().is_some_and(|extension| extension == "pid") {
                let text = fs::read_to_string(&path).expect("read a pid file");
                let pid = text.trim().parse().unwrap_or_else(|_| panic!("{}: {text:?}", path.display()));
                pids.push((path.file_stem().expect("a name").to_string_lossy().into_owned(), pid));
            }
        }
        pids.sort();
        pids
    }

    /// Starts it again on the same folder and ports, and waits until it is ready.
    ///
    /// # Panics
    /// If it does not get ready.
    pub fn restart(&mut self) {
        self.spawn();
        self.wait_ready();
    }

    /// The same, but believes what it says of itself: for a system that shows initiators nothing without a secret.
    ///
    /// # Panics
    /// If it does not get ready.
    pub fn restart_unseen(&mut self) {
        self.spawn();
        self.wait_said();
    }

    fn spawn(&mut self) {
        assert!(self.child.is_none(), "the server is still running");
        for port in [self.portal, self.admin].iter().chain(&self.options.portals) {
            wait_unbound(*port);
        }
        self.starts += 1;
        let file = |name: &str| File::options().create(true).append(true).open(self.folder.path().join(name));
        let mut command = self.up();
        command
            .stdin(Stdio::null())
            .stdout(file("stdout").expect("open the server's output"))
            .stderr(file("stderr").expect("open the server's log"));
        self.child = Some(command.spawn().expect("start lunette"));
    }

    /// The command that starts it.
    #[must_use]
    pub fn up(&self) -> Command {
        let mut command = Command::new(lunette_bin());
        command.current_dir(self.folder.path()).arg("up").arg("--data").arg(self.data());
        command.args(["--portal", &self.portal.to_string(), "--admin", &self.admin.to_string()]);
        for portal in &self.options.portals {
            command.args(["--portal", &portal.to_string()]);
        }
        if let Some(nodes) = self.options.nodes {
            command.args(["--nodes", &nodes.to_string()]);
        }
        if self.options.processes {
            command.arg("--processes");
        }
        if let Some(seconds) = self.options.rebuild_after_s {
            command.args(["--rebuild-after", &seconds.to_string()]);
        }
        if let Some(members) = self.options.control {
            command.args(["--control", &members.to_string()]);
        }
        if let Some(gateways) = self.options.gateways {
            command.args(["--gateways", &gateways.to_string()]);
        }
        if let Some(log) = &self.options.log {
            command.env("LUNETTE_LOG", log);
        }
        for (name, size) in &self.options.volumes {
            command.args(["--volume", &format!("{name}={size}")]);
        }
        command
    }

    /// Ready is what it calls ready itself, and what an initiator does: discovery names every exported volume.
    fn wait_ready(&mut self) {
        self.wait_said();
        let found = Initiator::discover(self.portal)
            .unwrap_or_else(|error| panic!("ready, but discovery fails: {error}"));
        for (name, _) in &self.options.volumes {
            assert!(
                found.iter().any(|target| target.name == iqn(name)),
                "ready, but {name} is not there: {found:?}"
            );
        }
    }

    fn wait_said(&mut self) {
        let end = Instant::now() + READY;
        loop {
            let child = self.child.as_mut().expect("just started");
            if let Some(status) = child.try_wait().expect("wait for a child") {
                self.child = None;
                panic!("lunette up ended with {} instead of getting ready", command::code(status));
            }
            if self.output().lines().filter(|line| *line == "ready").count() == self.starts {
                break;
            }
            assert!(Instant::now() < end, "not ready after {READY:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Stops it with SIGTERM.
    ///
    /// # Panics
    /// If it does not end within ten seconds.
    pub fn stop(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("the server is running");
        command::terminate(child.id());
        command::wait(&mut child, Duration::from_secs(10)).expect("lunette up ends within 10 s of a SIGTERM")
    }

    /// Kills it, and with `processes` each of its processes, with SIGKILL: what a power cut leaves.
    pub fn kill(&mut self) {
        let pids = if self.options.processes { self.pids() } else { Vec::new() };
        if let Some(mut child) = self.child.take() {
            child.kill().expect("kill a child of ours");
            child.wait().expect("wait for a child");
        }
        for (_, pid) in pids {
            // A pid file may be older than the process that has its number now.
            if is_lunette(pid) {
                command::kill(pid);
                wait_gone(pid);
            }
        }
    }

    /// Runs a command of the command line against it.
    pub fn cli<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Outcome {
        self.cli_with_input(arguments, "")
    }

    /// Like [`cli`](Self::cli), with standard input: where secrets come from.
    pub fn cli_with_input<'a>(&self, arguments: impl IntoIterator<Item = &'a str>, input: &str) -> Outcome {
        let mut command = Command::new(lunette_bin());
        command.current_dir(self.folder.path()).env("LUNETTE_ADMIN", self.announced_admin()).args(arguments);
        command::run_with_input(&mut command, input, COMMAND)
    }

    /// Runs a command with `--json` that must succeed, and reads what it prints.
    ///
    /// # Panics
    /// If it fails or prints anything else than JSON.
    pub fn json<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Value {
        let outcome = self.cli(arguments.into_iter().chain(["--json"]));
        assert!(outcome.ok(), "{outcome}");
        serde_json::from_str(&outcome.stdout).unwrap_or_else(|error| panic!("not JSON: {error}\n{outcome}"))
    }

    /// An initiator of our own, logged in to the target of volume `name`.
    ///
    /// # Panics
    /// If the login fails.
    #[must_use]
    pub fn initiator(&self, name: &str) -> Initiator {
        Initiator::login(self.portal, &iqn(name)).unwrap_or_else(|error| panic!("login to {name}: {error}"))
    }

    /// Resident memory of `lunette up` in bytes: now, and the most it ever was.
    ///
    /// # Panics
    /// If it is not running.
    #[must_use]
    pub fn memory(&self) -> (u64, u64) {
        let path = format!("/proc/{}/status", self.pid());
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let field = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).expect("a field of /proc/PID/status");
            let kib: u64 =
                line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("a number of KiB");
            kib * 1024
        };
        (field("VmRSS:"), field("VmHWM:"))
    }

    /// Where the control plane is, all members of it, as `lunette up` has said.
    #[must_use]
    pub fn announced_admin(&self) -> String {
        let output = self.output();
        let said = output.lines().rev().find_map(|line| line.strip_prefix("admin "));
        said.map_or_else(|| format!("http://{}", self.admin), str::to_owned)
    }

    /// All that the server wrote to standard error.
    #[must_use]
    pub fn log(&self) -> String {
        read_lossy(&self.folder.path().join("stderr"))
    }

    /// All that the server wrote to standard output.
    #[must_use]
    pub fn output(&self) -> String {
        read_lossy(&self.folder.path().join("stdout"))
    }
}

impl Drop for Lunette {
    fn drop(&mut self) {
        if self.child.is_some() || self.options.processes {
            let run = self.data().join("run");
            if self.options.processes && !run.is_dir() {
                self.options.processes = false;
            }
            self.kill();
        }
        if std::thread::panicking() {
            let log = self.log();
            let skipped = log.lines().count().saturating_sub(LOG_LINES);
            eprintln!("--- lunette, standard output\n{}", self.output());
            eprintln!("--- lunette, standard error, without the first {skipped} lines");
            for line in log.lines().skip(skipped) {
                eprintln!("{line}");
            }
        }
    }
}

/// Whether the process is there and not just a name that its parent has yet to collect. Its first thread may be no more than
/// that while others still hold its files.
#[must_use]
pub fn alive(pid: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    let is_there = |stat: String| {
        stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
    };
    threads.flatten().any(|thread| fs::read_to_string(thread.path().join("stat")).is_ok_and(is_there))
}

fn is_lunette(pid: u32) -> bool {
    let running = fs::read_link(format!("/proc/{pid}/exe"));
    running.is_ok_and(|path| path.to_string_lossy().trim_end_matches(" (deleted)").ends_with("/lunette"))
}

/// Waits until the process is gone.
///
/// # Panics
/// If it is still there after ten seconds.
pub fn wait_gone(pid: u32) {
    let end = Instant::now() + Duration::from_secs(10);
    while alive(pid) {
        assert!(Instant::now() < end, "process {pid} is still there");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until nothing listens at `address`. The kernel may close the sockets of a killed process with many threads a
/// little after its parent has learnt of its end; a power cut has no such moment.
fn wait_unbound(address: SocketAddr) {
    let end = Instant::now() + Duration::from_secs(10);
    while let Err(error) = TcpListener::bind(address) {
        assert!(Instant::now() < end, "{address}: {error}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn read_lossy(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

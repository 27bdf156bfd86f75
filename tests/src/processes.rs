//! The parts of a `lunette up --processes`: killed, frozen and started again one by one.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::binary::lunette_bin;
use crate::command;
use crate::server::{Lunette, wait_gone};

/// How long a cluster may take to get where a test wants it, on a busy machine and in a debug build.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// A process that was started again. Dropped, it is killed.
#[derive(Debug)]
pub struct Part(Child);

impl Part {
    /// Waits until it ends by itself, and says with which exit code.
    ///
    /// # Panics
    /// If it does not.
    #[must_use]
    pub fn end(mut self) -> i32 {
        command::code(command::wait(&mut self.0, PATIENCE).expect("the process ends by itself"))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // It may have ended, by a signal of the test's or by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Lunette {
    /// The process id of a part.
    ///
    /// # Panics
    /// If there is no such part.
    #[must_use]
    pub fn pid_of(&self, name: &str) -> u32 {
        let pids = self.pids();
        let found = pids.iter().find(|(part, _)| part == name);
        found.unwrap_or_else(|| panic!("no {name} among {pids:?}")).1
    }

    /// Kills a part with SIGKILL, and waits until it is gone.
    pub fn kill_part(&self, name: &str) {
        let pid = self.pid_of(name);
        command::kill(pid);
        wait_gone(pid);
    }

    /// Starts a part again that has ended.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn start_part(&self, name: &str) -> Part {
        let mut command = Command::new(lunette_bin());
        command.args(["up", "--processes", "--only", name, "--data"]).arg(self.data());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Part(command.spawn().expect("start a part of lunette"))
    }

    /// Starts a node that the system did not have, with a disk beside those of the others.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn add_node(&self, name: &str) -> Part {
        let run = self.data().join("run");
        // As node 2 is configured, which carries no control plane.
        let like = std::fs::read_to_string(run.join("node2.toml")).expect("a cluster of processes");
        let config = run.join(format!("{name}.toml"));
        std::fs::write(&config, like.replace("node2", name)).expect("write a configuration");
        let mut command = Command::new(lunette_bin());
        command.args(["node", "run", "--config"]).arg(&config);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Part(command.spawn().expect("start a node"))
    }

    /// What the map says of the disk of a node, as `lunette disk list` has it.
    ///
    /// # Panics
    /// If there is no such disk.
    #[must_use]
    pub fn disk_state(&self, node: &str) -> String {
        let disks = self.json(["disk", "list"]);
        let of_node = |disk: &&Value| {
            disk["label"].as_str().is_some_and(|label| label.rsplit('/').next() == Some(node))
        };
        let found = disks.as_array().and_then(|disks| disks.iter().find(of_node));
        let state = found.and_then(|disk| disk["state"].as_str());
        state.unwrap_or_else(|| panic!("no disk of {node}: {disks}")).to_owned()
    }

    /// The first line of `lunette status`.
    #[must_use]
    pub fn health(&self) -> String {
        self.cli(["status"]).stdout.lines().next().unwrap_or_default().to_owned()
    }

    /// Waits until `is_so`.
    ///
    /// # Panics
    /// If it does not become so.
    pub fn until(&self, what: &str, mut is_so: impl FnMut(&Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !is_so(self) {
            assert!(Instant::now() < end, "still not {what}: {}", self.cli(["status"]));
            std::thread::sleep(PAUSE);
        }
    }

    /// Waits until every extent has all its copies.
    pub fn until_healthy(&self) {
        self.until("healthy", |lunette| lunette.health() == "health: healthy");
    }
}

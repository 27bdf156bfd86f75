//! A fault disk of a test's own: the program, its folders, its socket.

use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::control::{Command, Controller};
use super::state::Stats;
use crate::binary::beside_test;

/// How long the program may take to mount.
const READY: Duration = Duration::from_secs(20);
/// How long it may take to end.
const END: Duration = Duration::from_secs(10);

/// A mounted fault disk. It is its own process, and ends with this value or with the test's process.
#[derive(Debug)]
pub struct FaultDisk {
    folder: TempDir,
    child: Child,
    controller: Controller,
}

impl FaultDisk {
    /// An empty one.
    ///
    /// # Panics
    /// If it cannot be mounted: that needs root, or the package fuse3.
    #[must_use]
    pub fn start(capacity_bytes: u64) -> Self {
        let folder = tempfile::Builder::new().prefix("faultdisk-").tempdir().expect("a temporary folder");
        let path = |name| folder.path().join(name);
        std::fs::create_dir(path("mnt")).expect("a folder to mount at");
        let mut child = Process::new(beside_test("faultdisk"))
            .args([path("mnt"), path("backing"), path("socket")])
            .args(["--capacity", &capacity_bytes.to_string(), "--until-eof"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("start faultdisk");
        let end = Instant::now() + READY;
        let controller = loop {
            if let Ok(controller) = Controller::connect(&path("socket")) {
                break controller;
            }
            if let Some(status) = child.try_wait().expect("wait for a child") {
                panic!("faultdisk ended, {status}: to mount needs root, or the package fuse3");
            }
            assert!(Instant::now() < end, "faultdisk is not ready after {READY:?}");
            std::thread::sleep(Duration::from_millis(2));
        };
        Self { folder, child, controller }
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("mnt")
    }

    /// A folder beside it, on an ordinary file system.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        self.folder.path()
    }

    /// Has a command done.
    ///
    /// # Panics
    /// If it is not done.
    pub fn command(&mut self, command: Command) {
        self.controller.command(command).expect("faultdisk does what it is told");
    }

    /// What happened so far.
    ///
    /// # Panics
    /// If there is no answer.
    pub fn stats(&mut self) -> Stats {
        self.controller.stats().expect("faultdisk answers")
    }
}

impl Drop for FaultDisk {
    fn drop(&mut self) {
        // The end of its input tells it to unmount, whatever else goes wrong.
        drop(self.child.stdin.take());
        if crate::command::wait(&mut self.child, END).is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

//! The Linux guests: a virtualization host, and a VM with its root on a LUN (tests/guest).

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::binary::repository;
use crate::command::{Outcome, run};

/// The folder of the guest images.
///
/// # Panics
/// If they were not built, with the command that builds them.
#[must_use]
pub fn images() -> PathBuf {
    let folder = match std::env::var_os("LUNETTE_GUEST") {
        Some(folder) => repository().join(folder),
        None => repository().join("target/guest"),
    };
    assert!(
        folder.join("recipe").is_file(),
        "no guest images in {}: `tests/guest/build {}` makes them, as does tests/run",
        folder.display(),
        folder.display()
    );
    folder
}

/// A Linux host to boot.
#[derive(Clone, Debug)]
pub struct Host {
    arguments: Vec<String>,
    limit: Duration,
}

impl Host {
    /// One that takes no longer than `limit`.
    #[must_use]
    pub fn new(limit: Duration) -> Self {
        Self { arguments: vec!["--seconds".to_owned(), limit.as_secs().to_string()], limit }
    }

    /// Its own 127.0.0.1:PORT leads to this machine's.
    #[must_use]
    pub fn forward(mut self, port: u16) -> Self {
        self.arguments.extend(["--forward".to_owned(), port.to_string()]);
        self
    }

    /// A disk of QEMU's own iSCSI driver, behind QEMU's device `scsi-hd`, `scsi-block` or `scsi-generic`.
    #[must_use]
    pub fn disk(mut self, device: &str, url: &str) -> Self {
        self.arguments.extend(["--scsi".to_owned(), format!("{device}={url}")]);
        self
    }

    /// Boots it and runs a script of tests/guest as root, with these variables.
    #[must_use]
    pub fn run(&self, variables: &[(&str, &str)], script: &str) -> Outcome {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let task = folder.path().join("task.sh");
        let mut text: String = variables.iter().map(|(name, value)| format!("{name}='{value}'\n")).collect();
        text.push_str(include_str!("../guest/library.sh"));
        text.push_str(script);
        std::fs::write(&task, text).expect("write the script");
        let mut command = Command::new(repository().join("tests/guest/run"));
        command.env("LUNETTE_GUEST", images()).args(&self.arguments).arg(task);
        run(&mut command, self.limit + Duration::from_secs(10))
    }
}

/// Boots a virtual machine whose only disk is `url`, with its root file system on it; its console.
///
/// # Panics
/// If QEMU fails or takes longer than `limit`.
#[must_use]
pub fn boot_from(url: &str, limit: Duration) -> String {
    let images = images();
    let mut command = Command::new("qemu-system-x86_64");
    let accelerator = std::fs::read_to_string(images.join("accelerator")).unwrap_or_default();
    // As tests/guest/run: KVM only where the build has seen a guest run under it.
    command.args(match accelerator.trim() {
        "kvm" => ["-accel", "kvm", "-cpu", "host,arch-capabilities=off"],
        _ => ["-accel", "tcg,thread=multi", "-cpu", "max"],
    });
    command.args([
        "-m",
        "256",
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
        "-serial",
        "stdio",
    ]);
    command.args(["-drive", &format!("file={url},format=raw,if=virtio,cache=none")]);
    command.arg("-kernel").arg(images.join("vmlinuz")).arg("-initrd").arg(images.join("initrd"));
    command.args(["-append", "console=ttyS0 root=/dev/vda quiet panic=-1"]);
    run(&mut command, limit).success().replace('\r', "")
}

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

/// Runs a script as root on the Linux host; its 127.0.0.1:PORT leads to this machine's.
pub fn run_host(script: &str, port: u16, limit: Duration) -> Outcome {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let task = folder.path().join("task.sh");
    std::fs::write(&task, script).expect("write the script");
    let mut command = Command::new(repository().join("tests/guest/run"));
    command.env("LUNETTE_GUEST", images());
    command.args(["--seconds", &limit.as_secs().to_string(), "--forward", &port.to_string()]).arg(task);
    run(&mut command, limit + Duration::from_secs(10))
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

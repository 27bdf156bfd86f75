//! A virtual machine whose root file system is a LUN: what a direct LUN is for.

use std::process::Command;
use std::time::Duration;

use lunette_tests::guest::{boot_from, images};
use lunette_tests::image::check_ext4;
use lunette_tests::{Lunette, run};

const BOOT: Duration = Duration::from_secs(100);
const COPY: Duration = Duration::from_secs(60);

/// A boot id as the guest printed it.
fn boot_id(console: &str) -> &str {
    assert!(console.contains("ROOT-ON-LUN-OK"), "{console}");
    let line = console
        .lines()
        .find(|line| line.starts_with("root is /dev/vda, boot "))
        .expect("the guest says what its root is");
    line.rsplit(' ').next().expect("a word")
}

#[test]
fn a_vm_boots_with_its_root_on_the_lun_and_keeps_what_it_writes() {
    // Guards against a disk that copies well and yet cannot carry a running system, over a power cut between two boots.
    let mut lunette = Lunette::build().volume("root", "64M").start();
    let url = lunette.iscsi("root");
    let image = images().join("lun.ext4");
    let _ = run(
        Command::new("qemu-img").args(["convert", "-n", "-f", "raw", "-O", "raw"]).arg(&image).arg(&url),
        COPY,
    )
    .success();

    let first = boot_from(&url, BOOT);
    lunette.kill();
    lunette.restart();
    let second = boot_from(&url, BOOT);
    let (first, second) = (boot_id(&first), boot_id(&second));
    assert_ne!(first, second);

    let back = lunette.scratch().join("back");
    let _ = run(Command::new("qemu-img").args(["convert", "-f", "raw", "-O", "raw", &url]).arg(&back), COPY)
        .success();
    check_ext4(&back);
    let boots = run(Command::new("/sbin/debugfs").args(["-R", "cat /var/boots"]).arg(&back), COPY).success();
    assert_eq!(boots.lines().collect::<Vec<_>>(), [first, second], "what both boots wrote");
}

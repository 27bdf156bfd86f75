//! QEMU's iSCSI driver: images in and out, zeros, discards, and the same after a power cut.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use lunette_tests::image::{check_ext4, make_ext4, write_random};
use lunette_tests::{Lunette, iqn, run};

/// For one copy of the largest image, on a busy machine.
const COPY: Duration = Duration::from_secs(100);

fn copy_in(image: &Path, url: &str) {
    let _ = run(
        Command::new("qemu-img").args(["convert", "-n", "-f", "raw", "-O", "raw"]).arg(image).arg(url),
        COPY,
    )
    .success();
}

fn copy_out(url: &str, image: &Path) {
    let _ = run(Command::new("qemu-img").args(["convert", "-f", "raw", "-O", "raw", url]).arg(image), COPY)
        .success();
}

fn assert_equal(one: &Path, other: &Path) {
    let _ = run(Command::new("cmp").args([one, other]), COPY).success();
}

fn qemu_io(url: &str, commands: &[&str]) {
    let mut command = Command::new("qemu-io");
    command.args(["-f", "raw", "-t", "none"]);
    for line in commands {
        command.args(["-c", line]);
    }
    let outcome = run(command.arg(url), Duration::from_secs(60));
    assert!(outcome.ok(), "{outcome}");
    let complaint = ["failed", "error", "Error"].iter().find(|word| outcome.stdout.contains(*word));
    assert_eq!(complaint, None, "{outcome}");
}

#[test]
fn an_ext4_image_comes_back_equal_also_after_a_kill() {
    // Guards against the plainest loss: what was written is not what is read.
    let mut lunette = Lunette::build().volume("disk", "128M").start();
    let url = lunette.iscsi("disk");
    let image = lunette.scratch().join("image");
    let back = lunette.scratch().join("back");
    make_ext4(&image, 1, 128);
    copy_in(&image, &url);
    copy_out(&url, &back);
    assert_equal(&image, &back);
    check_ext4(&back);

    lunette.kill();
    lunette.restart();
    copy_out(&url, &back);
    assert_equal(&image, &back);
}

#[test]
fn half_a_gibibyte_comes_back_equal_also_after_a_kill() {
    // Guards against losses that need many extents, full queues and a long log to show.
    let mut lunette = Lunette::build().volume("disk", "512M").start();
    let url = lunette.iscsi("disk");
    let image = lunette.scratch().join("image");
    let back = lunette.scratch().join("back");
    write_random(&image, 2, 512);
    copy_in(&image, &url);
    copy_out(&url, &back);
    assert_equal(&image, &back);

    lunette.kill();
    lunette.restart();
    copy_out(&url, &back);
    assert_equal(&image, &back);
}

#[test]
fn zeros_and_discards_take_what_they_should_and_no_more() {
    // Guards against WRITE SAME and UNMAP with wrong bounds, and discarded data that comes back.
    let mut lunette = Lunette::build().volume("disk", "64M").start();
    let url = lunette.iscsi("disk");
    qemu_io(
        &url,
        &[
            "write -P 0xab 0 4M",
            "write -z 256k 256k",
            "write -z -u 768k 256k",
            "discard 1M 512k",
            "flush",
            "read -P 0xab 0 256k",
            "read -P 0 256k 256k",
            "read -P 0xab 512k 256k",
            "read -P 0 768k 256k",
            "read -P 0 1M 512k",
            "read -P 0xab 1536k 2560k",
            // A hole of a thin volume.
            "read -P 0 32M 1M",
            // Over a boundary between extents.
            "write -P 0xcd 3584k 1M",
            "read -P 0xab 3M 512k",
            "read -P 0xcd 3584k 1M",
            "read -P 0 4608k 64k",
            // Written again after the discard.
            "write -P 0xef 1M 64k",
            "read -P 0xef 1M 64k",
            "read -P 0 1088k 448k",
        ],
    );
    let after =
        ["read -P 0 256k 256k", "read -P 0xef 1M 64k", "read -P 0 1088k 448k", "read -P 0xcd 3584k 1M"];
    qemu_io(&url, &after);
    lunette.kill();
    lunette.restart();
    qemu_io(&url, &after);
}

#[test]
fn disks_with_blocks_of_4_kib_are_read_and_written() {
    // Guards against what makes QEMU abort at its first larger read of such a disk: an optimal unmap granularity.
    let lunette = Lunette::build().start();
    let words = ["volume", "create", "disk", "--size", "64M", "--block-size", "4096", "--export"];
    let _ = lunette.cli(words).success();
    let url = lunette.iscsi("disk");
    qemu_io(&url, &["read -P 0 0 1M", "write -P 0xab 1M 1M", "discard 1M 512k", "flush"]);
    qemu_io(
        &url,
        &["read -P 0 0 1536k", "read -P 0xab 1536k 512k", "write -z -u 1536k 64k", "read -P 0 1536k 64k"],
    );
    let mut cached = Command::new("qemu-io");
    cached.args(["-f", "raw", "-c", "read 0 4M", "-c", "read 60M 4M"]).arg(&url);
    let outcome = run(&mut cached, Duration::from_secs(60));
    assert!(outcome.ok(), "{outcome}");
}

#[test]
fn blocks_of_512_bytes_do_not_disturb_their_neighbours() {
    // Guards against a read-modify-write of a 4 KiB block that loses the rest of it.
    let lunette = Lunette::build().volume("disk", "64M").start();
    qemu_io(
        &lunette.iscsi("disk"),
        &[
            "write -P 0x11 0 16k",
            "write -P 0x22 512 512",
            "write -P 0x33 3584 1024",
            "write -P 0x44 8191k 2k",
            "write -z 8k 512",
            "read -P 0x11 0 512",
            "read -P 0x22 512 512",
            "read -P 0x11 1024 2560",
            "read -P 0x33 3584 1024",
            "read -P 0x11 4608 3584",
            "read -P 0 8k 512",
            "read -P 0x11 8704 7680",
            "read -P 0x44 8191k 2k",
            "read -P 0 8193k 63k",
        ],
    );
}

#[test]
fn overlapping_writes_in_flight_leave_one_of_them() {
    // Guards against torn blocks: writes of one range at a time have an order, and every copy the same.
    let mut lunette = Lunette::build().volume("disk", "64M").start();
    let url = lunette.iscsi("disk");
    let mut writes: Vec<String> =
        (1..=64).map(|n| format!("aio_write -q -P {n} {}k 64k", n % 8 * 16)).collect();
    writes.push("aio_flush".to_owned());
    let writes: Vec<&str> = writes.iter().map(String::as_str).collect();
    qemu_io(&url, &writes);
    let read = |lunette: &Lunette, name: &str| {
        let back = lunette.scratch().join(name);
        copy_out(&url, &back);
        std::fs::read(&back).expect("read an image")
    };
    let first = read(&lunette, "first");
    for (index, block) in first[..192 << 10].chunks(4096).enumerate() {
        assert!(block.iter().all(|byte| *byte == block[0]), "block {index} is torn: {:?}", &block[..16]);
    }
    lunette.kill();
    lunette.restart();
    assert!(first == read(&lunette, "second"), "the restart changed a block");
}

#[test]
fn a_copy_between_luns_of_a_target_is_equal() {
    // Guards against an EXTENDED COPY that moves too little, or to another place.
    let lunette = Lunette::build().volume("disk", "64M").volume("clone", "64M").start();
    let mapped = lunette.cli(["target", "map", &iqn("disk"), "clone", "--lun", "1"]);
    assert!(mapped.ok(), "{mapped}");
    let image = lunette.scratch().join("image");
    let back = lunette.scratch().join("back");
    make_ext4(&image, 3, 64);
    let source = lunette.iscsi("disk");
    let destination = format!("iscsi://{}/{}/1", lunette.portal(), iqn("disk"));
    copy_in(&image, &source);
    qemu_io(&destination, &["write -P 0x77 0 64M"]);
    let offloaded = ["convert", "-n", "-C", "-f", "raw", "-O", "raw", &source, &destination];
    let _ = run(Command::new("qemu-img").args(offloaded), COPY).success();
    // By way of the clone's own target.
    copy_out(&lunette.iscsi("clone"), &back);
    assert_equal(&image, &back);
}

#[test]
fn a_volume_grows_and_keeps_its_data() {
    // Guards against a resize that moves data, or that initiators do not see.
    let lunette = Lunette::build().volume("disk", "64M").start();
    let url = lunette.iscsi("disk");
    qemu_io(&url, &["write -P 0x5a 63M 1M"]);
    let resized = lunette.cli(["volume", "resize", "disk", "--size", "128M"]);
    assert!(resized.ok(), "{resized}");
    let info =
        run(Command::new("qemu-img").args(["info", "--output=json", "-f", "raw", &url]), COPY).success();
    assert!(info.contains("\"virtual-size\": 134217728"), "{info}");
    qemu_io(
        &url,
        &["read -P 0x5a 63M 1M", "read -P 0 64M 64M", "write -P 0x5b 127M 1M", "read -P 0x5b 127M 1M"],
    );
}

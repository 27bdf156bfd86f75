//! How the store fares with a TiB: `cargo nextest run --release -p lunette-storage-node --lib tib --run-ignored only
//! --no-capture`. The metadata is that of a disk on which a TiB was written; the data was not.

use std::time::Instant;

use lunette_proto::ids::{ClusterId, DiskId, DiskUuid, ExtentId, Generation, Namespace, Version};

use super::chains::Key;
use super::extents::{Extent, SLOTS, UnitRef};
use super::format::{FormatOptions, format_disk};
use super::{FileDisk, Identity, Store};

const EXTENTS: u32 = 1 << 18;

/// Resident memory of this process, in bytes.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").expect("Linux has it");
    let pages = status.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("a number");
    pages * 4096
}

/// Prints what opening takes; and guards that all extents are there again.
#[test]
#[ignore = "a measurement"]
fn opens_a_tib() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("disk");
    let identity = Identity { cluster: ClusterId(1), disk: DiskId(1), uuid: DiskUuid(1) };
    // The file is sparse: nothing of this is taken.
    let total = u64::from(EXTENTS) * 4096 * 1024 / 97 * 100;
    format_disk(&path, &identity, &FormatOptions::of(total)).expect("formatted");
    let (mut store, _) = Store::open(FileDisk::open(&path).expect("a disk")).expect("opened");
    {
        let view = store.view().clone();
        let mut state = view.state.write();
        let namespace = Namespace(1);
        state.namespaces.seal(namespace, Generation(1), lunette_proto::ids::Epoch(1));
        for index in 0..EXTENTS {
            let id = ExtentId { namespace, index: u64::from(index) };
            let mut extent = Extent::default();
            extent.newest = Version { generation: Generation(1), seq: u64::from(index) + 1 };
            for slot in 0..SLOTS {
                let unit = index * u32::from(SLOTS) + u32::from(slot);
                extent.set_unit(slot, UnitRef { unit, crc: unit ^ 0x5a5a });
            }
            extent.page = store.pages.place(Key::live(id), None, extent.record_len(), true).expect("room");
            state.extents.insert(Key::live(id), extent);
        }
    }
    let begin = Instant::now();
    let checkpoint = store.begin_checkpoint().expect("begun");
    let began = begin.elapsed();
    checkpoint.write(&store.view.disk).expect("written");
    println!(
        "checkpoint of everything: {:.0} MB, begun in {began:.2?}, written in {:.2?}",
        checkpoint.len_bytes() as f64 / 1e6,
        begin.elapsed()
    );
    store.finish_checkpoint(checkpoint).expect("finished");
    drop(store);

    // In a process of its own, whose memory nothing else has grown.
    let status = std::process::Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "store::tests::child_that_opens", "--ignored", "--nocapture"])
        .env(CHILD, &path)
        .status()
        .expect("started");
    assert!(status.success());
}

const CHILD: &str = "LUNETTE_TEST_SCALE";

/// The other process of the test above.
#[test]
#[ignore = "a measurement"]
fn child_that_opens() {
    let Ok(path) = std::env::var(CHILD) else { return };
    let before = resident_bytes();
    let begin = Instant::now();
    let (store, _) = Store::open(FileDisk::open(path.as_ref()).expect("a disk")).expect("opened");
    let took = begin.elapsed();
    let grown = resident_bytes().saturating_sub(before);
    println!("opened {} extents of a TiB in {took:.2?}; memory grew by {} MiB", EXTENTS, grown >> 20);
    assert_eq!(store.view().state.read().extents.len(), EXTENTS as usize);
    assert_eq!(store.units.allocated(), EXTENTS * u32::from(SLOTS));
}

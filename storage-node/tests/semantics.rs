//! What a disk does with each request, as the node protocol says.

#![allow(clippy::unwrap_used, reason = "a test fails where it stops")]

mod support;

use lunette_proto::ids::*;
use lunette_proto::node::*;
use lunette_storage_node::{DiskConfig, DiskError, Identity, Node, format_disk, inspect_identity};
use support::*;

fn disk() -> (tempfile::TempDir, Client) {
    let directory = tempfile::tempdir().unwrap();
    format(directory.path());
    let client = open(directory.path());
    (directory, client)
}

/// Guards the basic promise: what was written is read, what was not is zeros.
#[test]
fn reads_what_was_written() {
    let (_directory, mut disk) = disk();
    assert_eq!(disk.seal(1), []);
    assert_eq!(disk.read(3, 0, 1024), Ok(zeros(1024)));
    assert_eq!(disk.write(3, 1, 10, blocks(1, 4)), Ok(ReplyBody::Done));
    assert_eq!(disk.read(3, 10, 4), Ok(blocks(1, 4)));
    let around = [zeros(1), blocks(1, 4), zeros(2)].concat();
    assert_eq!(disk.read(3, 9, 7).unwrap(), around);
    assert_eq!(disk.used(), 4 * 4096);
    assert_eq!(
        disk.versions(3),
        [
            BlockVersion { blocks: 10, version: Version::NONE, hole: true },
            BlockVersion { blocks: 4, version: version(1, 1), hole: false },
        ]
    );
    assert_eq!(disk.versions(4), []);
}

/// Guards invariants 4 and 13: only the sealed generation under no older epoch reads or writes,
/// also after a restart.
#[test]
fn other_generations_and_older_epochs_are_refused() {
    let (directory, mut disk) = disk();
    let read = |disk: &mut Client, generation| {
        disk.generation = Generation(generation);
        disk.read(0, 0, 1).map(|_| ())
    };
    let refused = |sealed, got| Err(Failure::Generation { sealed: Generation(sealed), got: Generation(got) });
    assert_eq!(read(&mut disk, 5), refused(0, 5));
    disk.epoch = Epoch(7);
    disk.seal(5);
    assert_eq!(read(&mut disk, 4), refused(5, 4));
    assert_eq!(read(&mut disk, 6), refused(5, 6));
    let seal = |generation| RequestBody::Seal { namespace: NS, generation: Generation(generation) };
    assert!(matches!(disk.call(seal(4)), Err(Failure::Generation { .. })));
    disk.node.close();
    drop(disk);

    let mut disk = open(directory.path());
    disk.epoch = Epoch(6);
    let late = Failure::Epoch { sealed: Epoch(7), got: Epoch(6) };
    assert_eq!(read(&mut disk, 5), Err(late.clone()));
    assert_eq!(disk.write(0, 1, 0, blocks(1, 1)), Err(late.clone()));
    assert_eq!(disk.call(seal(6)), Err(late));
    disk.epoch = Epoch(7);
    assert_eq!(read(&mut disk, 5), Ok(()));
    assert_eq!(disk.flush(), Ok(ReplyBody::Done));
    disk.generation = Generation(4);
    for reply in [disk.write(0, 1, 0, blocks(1, 1)), disk.flush(), disk.watermark(3), disk.delete()] {
        assert_eq!(reply, Err(Failure::Generation { sealed: Generation(5), got: Generation(4) }));
    }
}

/// Guards invariants 5 and 9: repeated and late changes do no harm, repairs never win over newer data.
#[test]
fn a_version_never_decreases() {
    let (_directory, mut disk) = disk();
    disk.seal(2);
    disk.write(0, 10, 0, blocks(10, 2)).unwrap();
    disk.write(0, 9, 1, blocks(9, 2)).unwrap();
    assert_eq!(disk.read(0, 0, 3).unwrap(), [blocks(10, 2), blocks(9, 2).slice(4096..)].concat());
    disk.write(0, 10, 0, blocks(99, 2)).unwrap();
    assert_eq!(disk.read(0, 0, 2), Ok(blocks(10, 2)), "the same version again changes nothing");
    disk.put(0, version(1, 500), 0, Change::Data(blocks(500, 4))).unwrap();
    let expected = [blocks(10, 2), blocks(9, 2).slice(4096..), blocks(500, 4).slice(3 * 4096..)].concat();
    assert_eq!(disk.read(0, 0, 4).unwrap(), expected);
    assert_eq!(disk.put(0, version(3, 1), 0, Change::Data(blocks(1, 1))), Err(Failure::Invalid));
    disk.discard(0, 8, 0, 4).unwrap();
    assert_eq!(disk.read(0, 0, 3).unwrap(), expected[..3 * 4096], "a late discard clears only what is older");
    assert_eq!(disk.read(0, 3, 1), Ok(zeros(1)));
}

/// Guards discards: zeros, space given back, and a version that older data does not pass.
#[test]
fn discards_are_versions() {
    let (directory, mut disk) = disk();
    disk.seal(1);
    disk.write(0, 1, 0, blocks(1, 1024)).unwrap();
    assert_eq!(disk.used(), 4 << 20);
    disk.discard(0, 2, 100, 24).unwrap();
    assert_eq!(disk.used(), 1000 * 4096);
    disk.discard(0, 3, 0, 1024).unwrap();
    disk.discard(7, 4, 0, 1024).unwrap();
    disk.discard(8, 5, 5, 1).unwrap();
    assert_eq!(disk.used(), 0);
    for _ in 0..2 {
        assert_eq!(disk.read(0, 0, 1024), Ok(zeros(1024)));
        assert_eq!(disk.versions(0), [BlockVersion { blocks: 1024, version: version(1, 3), hole: true }]);
        assert_eq!(disk.versions(7), [BlockVersion { blocks: 1024, version: version(1, 4), hole: true }]);
        disk.write(0, 2, 0, blocks(9, 1024)).unwrap();
        disk.write(8, 4, 5, blocks(9, 1)).unwrap();
        assert_eq!(disk.read(0, 0, 1), Ok(zeros(1)), "older data does not come back");
        assert_eq!(disk.read(8, 5, 1), Ok(zeros(1)));
        disk.node.close();
        drop(disk);
        disk = open(directory.path());
    }
    disk.write(0, 6, 1, blocks(6, 1)).unwrap();
    assert_eq!(disk.read(0, 0, 3).unwrap(), [zeros(1), blocks(6, 1), zeros(1)].concat());
    let extent = files(&directory.path().join("extents")).remove(0);
    use std::os::unix::fs::MetadataExt;
    let taken = std::fs::metadata(extent).unwrap().blocks() * 512;
    assert!(taken < 1 << 20, "{taken} bytes are still allocated");
}

/// Guards reconciliation: a seal names what changed since the watermark, also after a restart.
#[test]
fn seal_names_what_changed_since_the_watermark() {
    let (directory, mut disk) = disk();
    disk.seal(1);
    disk.write(1, 1, 0, blocks(1, 1)).unwrap();
    disk.write(2, 2, 0, blocks(1, 1)).unwrap();
    disk.write(2, 3, 5, blocks(1, 1)).unwrap();
    let dirty = |index, seq| DirtyExtent { index, newest: version(1, seq) };
    assert_eq!(disk.seal(1), [dirty(1, 1), dirty(2, 3)]);
    disk.watermark(2).unwrap();
    disk.flush().unwrap();
    assert_eq!(disk.seal(1), [dirty(2, 3)]);
    disk.node.close();
    drop(disk);
    let mut disk = open(directory.path());
    assert_eq!(disk.seal(2), [dirty(2, 3)]);
    disk.watermark(0).unwrap();
    assert_eq!(disk.seal(2), [], "a watermark of a newer generation covers all older ones");
}

/// Guards the order that the protocol promises: a seal counts the changes called before it.
#[test]
fn a_seal_waits_for_what_was_called_before_it() {
    let (_directory, mut disk) = disk();
    disk.seal(1);
    for seq in 1..=50 {
        let change = Change::Data(blocks(seq, 1));
        let body = RequestBody::Change {
            extent: at(seq),
            version: version(1, seq),
            offset: 0,
            change,
            durability: Durability::Volatile,
        };
        disk.send(body);
    }
    let seal = disk.send(RequestBody::Seal { namespace: NS, generation: Generation(2) });
    disk.send(RequestBody::Change {
        extent: at(99),
        version: version(1, 51),
        offset: 0,
        change: Change::Data(blocks(1, 1)),
        durability: Durability::Stable,
    });
    let mut refused = 0;
    for _ in 0..52 {
        match disk.receive() {
            (tag, Ok(ReplyBody::Sealed(sealed))) => assert_eq!((tag, sealed.dirty.len()), (seal, 50)),
            (_, Ok(_)) => {}
            (tag, Err(Failure::Generation { .. })) => refused = tag,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(refused, seal + 1);
}

/// Guards volatile changes: read back at once, before and after the flush, in the right order.
#[test]
fn volatile_changes_are_read_at_once() {
    let (_directory, mut disk) = disk();
    disk.seal(1);
    let mut volatile = |seq, block, change| disk.change(0, seq, block, change, Durability::Volatile).unwrap();
    volatile(1, 0, Change::Data(blocks(1, 8)));
    volatile(2, 2, Change::Data(blocks(2, 2)));
    volatile(3, 3, Change::Zeros { len: 4096 });
    let expected =
        [blocks(1, 8).slice(..2 * 4096), blocks(2, 1), zeros(1), blocks(1, 8).slice(4 * 4096..)].concat();
    assert_eq!(disk.read(0, 0, 8).unwrap(), expected);
    let runs = disk.versions(0);
    assert_eq!(runs.iter().map(|run| run.blocks).collect::<Vec<_>>(), [2, 1, 1, 4]);
    disk.flush().unwrap();
    assert_eq!(disk.read(0, 0, 8).unwrap(), expected);
    assert_eq!(disk.versions(0), runs);
    assert_eq!(disk.used(), 7 * 4096);
}

/// Guards invariant 10: a deleted namespace takes nothing and gives nothing, for ever.
#[test]
fn deleted_stays_deleted() {
    let (directory, mut disk) = disk();
    disk.seal(1);
    disk.write(0, 1, 0, blocks(1, 100)).unwrap();
    disk.delete().unwrap();
    for _ in 0..2 {
        assert_eq!(disk.used(), 0);
        assert_eq!(disk.delete(), Ok(ReplyBody::Done), "deleting again is done already");
        assert_eq!(disk.read(0, 0, 1), Err(Failure::Deleted));
        assert_eq!(disk.write(0, 2, 0, blocks(1, 1)), Err(Failure::Deleted));
        let seal = RequestBody::Seal { namespace: NS, generation: Generation(9) };
        assert_eq!(disk.call(seal), Err(Failure::Deleted));
        disk.node.close();
        drop(disk);
        assert_eq!(files(&directory.path().join("extents")), Vec::<std::path::PathBuf>::new());
        disk = open(directory.path());
    }
    assert_eq!(files(&directory.path().join("trash")), Vec::<std::path::PathBuf>::new());
}

/// Guards the bounds of ranges.
#[test]
fn invalid_ranges() {
    let (_directory, mut disk) = disk();
    disk.seal(1);
    for (offset, len) in
        [(0, 0), (1, 4096), (0, 100), (0, (4 << 20) + 4096), (4 << 20, 4096), (u32::MAX - 4095, 4096)]
    {
        let read = RequestBody::Read { extent: at(0), generation: Generation(1), offset, len };
        assert_eq!(disk.call(read), Err(Failure::Invalid), "read {offset} {len}");
        let change = Change::Zeros { len };
        let durability = Durability::Stable;
        let zeros = RequestBody::Change { extent: at(0), version: version(1, 1), offset, change, durability };
        assert_eq!(disk.call(zeros), Err(Failure::Invalid), "zeros {offset} {len}");
    }
    assert_eq!(disk.write(0, 0, 0, blocks(1, 1)), Err(Failure::Invalid), "sequence numbers begin at 1");
}

/// Guards the full disk: no room for new data, and overwrites, discards and deletes go on.
#[test]
fn a_full_disk_takes_discards() {
    let directory = tempfile::tempdir().unwrap();
    format(directory.path());
    let mut disk =
        Client::new(Node::open(CLUSTER, [DiskConfig::new(directory.path(), Some(8 * 4096))]).unwrap());
    disk.seal(1);
    disk.write(0, 1, 0, blocks(1, 8)).unwrap();
    assert_eq!(disk.write(0, 2, 7, blocks(2, 2)), Err(Failure::NoSpace));
    assert_eq!(
        disk.read(0, 7, 2).unwrap(),
        [blocks(1, 8).slice(7 * 4096..), zeros(1)].concat(),
        "nothing was changed"
    );
    disk.write(0, 3, 6, blocks(3, 2)).unwrap();
    disk.discard(5, 4, 0, 10).unwrap();
    disk.discard(0, 5, 0, 2).unwrap();
    disk.write(1, 6, 0, blocks(6, 2)).unwrap();
    assert_eq!(disk.write(1, 7, 2, blocks(6, 1)), Err(Failure::NoSpace));
    disk.delete().unwrap();
    assert_eq!(disk.used(), 0);
}

/// Guards invariant 11: a damaged block is an error by its place, never returned; a repair and
/// an overwrite heal it, also where header or table are damaged.
#[test]
fn damaged_blocks_are_found_and_repaired() {
    // Data of block 2, entry of block 2, header: what is flipped, and which blocks are lost then.
    for (offset, lost) in [(65536 + 2 * 4096 + 77, 2..3), (4096 + 2 * 32 + 3, 2..3), (20, 0..1024)] {
        let (directory, mut disk) = disk();
        disk.seal(1);
        disk.write(0, 1, 0, blocks(1, 4)).unwrap();
        disk.node.close();
        drop(disk);
        drop(open(directory.path()));
        drop(open(directory.path()));
        let extent = files(&directory.path().join("extents")).remove(0);
        let mut bytes = std::fs::read(&extent).unwrap();
        bytes[offset] ^= 0x10;
        std::fs::write(&extent, bytes).unwrap();

        let mut disk = open(directory.path());
        disk.generation = Generation(1);
        let first = lost.start;
        assert_eq!(disk.read(0, 0, 4), Err(Failure::Corrupt { offset: first * 4096 }));
        disk.put(
            0,
            version(1, 1),
            first,
            Change::Data(blocks(1, 4).slice(first as usize * 4096..).slice(..4096)),
        )
        .unwrap();
        disk.write(0, 2, 3, blocks(2, 1)).unwrap();
        disk.node.close();
        drop(disk);
        let mut disk = open(directory.path());
        disk.generation = Generation(1);
        let healed = if lost.end == 1024 { disk.read(0, 0, 1) } else { disk.read(0, 0, 3) };
        assert_eq!(healed, Ok(blocks(1, 4).slice(..if lost.end == 1024 { 4096 } else { 3 * 4096 })));
        assert_eq!(disk.read(0, 3, 1), Ok(blocks(2, 1)));
        if lost.end == 1024 {
            assert_eq!(
                disk.read(0, 1, 1),
                Err(Failure::Corrupt { offset: 4096 }),
                "what was not repaired stays lost"
            );
        }
    }
}

/// Guards against blocks in the wrong place: the file of one extent under another's name.
#[test]
fn misplaced_blocks_are_found() {
    let (directory, mut disk) = disk();
    disk.seal(1);
    disk.write(0, 1, 0, blocks(1, 1)).unwrap();
    disk.write(1, 2, 0, blocks(2, 1)).unwrap();
    disk.node.close();
    drop(disk);
    drop(open(directory.path()));
    drop(open(directory.path()));
    let found = files(&directory.path().join("extents"));
    std::fs::copy(&found[0], &found[1]).unwrap();
    let mut disk = open(directory.path());
    disk.generation = Generation(1);
    assert_eq!(disk.read(0, 0, 1), Ok(blocks(1, 1)));
    assert_eq!(disk.read(1, 0, 1), Err(Failure::Corrupt { offset: 0 }));
}

/// Guards the directory: what is not ours, not this cluster's, not this disk's or in use is refused by name and not changed.
#[test]
fn foreign_directories_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let config = || [DiskConfig::new(path, None)];
    assert!(matches!(Node::open(CLUSTER, config()), Err(DiskError::NotFormatted(_))));
    std::fs::write(path.join("photo.jpg"), "x").unwrap();
    let identity = Identity::new(CLUSTER, DISK, DiskUuid(1));
    assert!(matches!(format_disk(path, &identity), Err(DiskError::NotEmpty(_))));
    assert_eq!(files(path).len(), 1);
    std::fs::remove_file(path.join("photo.jpg")).unwrap();
    assert_eq!(inspect_identity(path).unwrap(), None);
    format(path);
    assert_eq!(inspect_identity(path).unwrap().unwrap().disk, DISK);
    assert!(matches!(format_disk(path, &identity), Err(DiskError::Formatted { .. })));
    let other = ClusterId(2);
    assert!(matches!(Node::open(other, config()), Err(DiskError::WrongCluster { .. })));
    let meant = DiskConfig { disk: Some(DiskId(9)), ..DiskConfig::new(path, None) };
    assert!(matches!(Node::open(CLUSTER, [meant]), Err(DiskError::WrongDisk { .. })));
    let open = Node::open(CLUSTER, config()).unwrap();
    assert!(matches!(Node::open(CLUSTER, config()), Err(DiskError::InUse(_))));
    drop(open);
    let mut page = std::fs::read(path.join("identity")).unwrap();
    let good = page.clone();
    page[8] = 2;
    let crc = lunette_proto::checksum::crc32c(&page[..4092]);
    page[4092..].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(path.join("identity"), &page).unwrap();
    let error = Node::open(CLUSTER, config()).unwrap_err();
    assert!(error.to_string().contains("format version 2, and this program knows version 1"), "{error}");
    page[8] = 1;
    page[30] ^= 1;
    std::fs::write(path.join("identity"), &page).unwrap();
    assert!(matches!(Node::open(CLUSTER, config()), Err(DiskError::Damaged { .. })));
    std::fs::write(path.join("identity"), &good).unwrap();
    drop(Node::open(CLUSTER, config()).unwrap());
}

/// Guards formatting that was cut short: it can be done again, and nothing half-made is opened.
#[test]
fn formatting_can_be_repeated() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("identity.tmp"), "half").unwrap();
    std::fs::write(directory.path().join("journal.0"), "half").unwrap();
    assert!(matches!(
        Node::open(CLUSTER, [DiskConfig::new(directory.path(), None)]),
        Err(DiskError::NotFormatted(_))
    ));
    format(directory.path());
    open(directory.path()).seal(1);
}

/// Guards against requests for what is not here.
#[test]
fn unknown_disks_and_clusters() {
    let (_directory, mut disk) = disk();
    assert_eq!(disk.call(RequestBody::Identify { cluster: CLUSTER }), Ok(ReplyBody::Done));
    assert_eq!(disk.call(RequestBody::Identify { cluster: ClusterId(9) }), Err(Failure::NoSuchDisk));
    disk.node.close();
    assert_eq!(disk.write(0, 1, 0, blocks(1, 1)), Err(Failure::Disconnected));
}

/// Guards against a file system that is full before the disk is: writes are refused without harm,
/// discards and deletes go on, and everything is there after a restart.
#[test]
#[ignore = "needs LUNETTE_TEST_SMALL_FS: an empty directory on a file system of about 120 MB"]
fn a_full_file_system_takes_discards() {
    let root = std::path::PathBuf::from(std::env::var("LUNETTE_TEST_SMALL_FS").unwrap());
    // The first round stops at the reserve, the second where another program has taken even that.
    for hog in [false, true] {
        let path = root.join("disk");
        format(&path);
        let mut disk = open(&path);
        disk.seal(1);
        disk.write(0, 1, 0, blocks(1, 1024)).unwrap();
        if hog {
            let hog = std::fs::File::create(root.join("hog")).unwrap();
            let chunk = vec![1; 1 << 20];
            while std::io::Write::write_all(&mut &hog, &chunk).is_ok() {}
        }
        let mut written = 1;
        let refused = (2..200).find_map(|seq| match disk.write(seq, seq, 0, blocks(seq, 1024)) {
            Ok(_) => {
                written = seq;
                None
            }
            Err(failure) => Some((seq, failure)),
        });
        let (seq, failure) = refused.expect("the file system is full");
        assert_eq!(failure, Failure::NoSpace);
        assert_eq!(hog, written == 1);
        disk.write(0, seq + 1, 3, blocks(99, 1)).unwrap();
        disk.discard(0, seq + 2, 4, 8).unwrap();
        assert_eq!(disk.discard(0, seq + 3, 0, 1024), Ok(ReplyBody::Done));
        assert_eq!(disk.read(0, 0, 1024), Ok(zeros(1024)));
        if written > 1 {
            assert_eq!(disk.read(written, 0, 1024), Ok(blocks(written, 1024)));
        }
        disk.node.close();
        drop(disk);
        let mut disk = open(&path);
        disk.generation = Generation(1);
        assert_eq!(disk.read(0, 0, 1024), Ok(zeros(1024)));
        assert_eq!(disk.used(), (written - 1) * (4 << 20));
        assert_eq!(disk.delete(), Ok(ReplyBody::Done));
        disk.node.close();
        drop(disk);
        let _ = std::fs::remove_file(root.join("hog"));
        std::fs::remove_dir_all(&path).unwrap();
    }
}

/// Guards against a disk that can never be opened again: the namespaces that it takes are as many as the
/// beginning of a journal segment has room for, and the largest changes still fit beside them.
#[test]
fn more_namespaces_than_fit() {
    let (directory, mut disk) = disk();
    let (mut sealed, mut refused) = (0, 0);
    for first in (0..70_000).step_by(2000) {
        for id in first..first + 2000 {
            disk.send(RequestBody::Seal { namespace: Namespace(id), generation: Generation(1) });
        }
        for _ in 0..2000 {
            match disk.receive().1 {
                Ok(_) => sealed += 1,
                Err(Failure::NoSpace) => refused += 1,
                Err(failure) => panic!("{failure}"),
            }
        }
    }
    assert!(sealed >= 4096 && refused > 0, "{sealed} {refused}");
    // Neither by way of deleting what never was.
    let known = RequestBody::Delete { namespace: Namespace(0), generation: Generation(1) };
    assert_eq!(disk.call(known), Ok(ReplyBody::Done));
    let extent = ExtentId { namespace: Namespace(1), index: 0 };
    let whole = |seq| RequestBody::Change {
        extent,
        version: version(1, seq),
        offset: 0,
        change: Change::Data(blocks(seq, 1024)),
        durability: Durability::Stable,
    };
    for seq in 1..=4 {
        assert_eq!(disk.call(whole(seq)), Ok(ReplyBody::Done));
    }
    disk.node.close();
    drop(disk);
    let mut disk = open(directory.path());
    assert_eq!(disk.call(whole(5)), Ok(ReplyBody::Done));
}

/// Guards the space accounts and what was answered: a repair that brings the version of a discard of the whole extent
/// takes effect once, whatever it brings.
#[test]
fn a_repair_of_the_version_of_a_whole_discard() {
    let (directory, mut disk) = disk();
    disk.seal(2);
    disk.write(0, 4, 0, blocks(4, 9)).unwrap();
    disk.discard(0, 5, 0, 1024).unwrap();
    assert_eq!(disk.used(), 0);
    for _ in 0..3 {
        disk.put(0, version(2, 5), 3, Change::Data(blocks(5, 1))).unwrap();
    }
    let check = |disk: &mut Client| {
        assert_eq!(disk.read(0, 2, 3).unwrap(), [zeros(1), blocks(5, 1), zeros(1)].concat());
        assert_eq!(disk.used(), 4096);
    };
    check(&mut disk);
    disk.node.close();
    drop(disk);
    let mut disk = open(directory.path());
    disk.generation = Generation(2);
    check(&mut disk);
}

/// Guards invariant 18: an extent file of another format is not damage. It is not served, and above all not written
/// over by a repair.
#[test]
fn an_extent_file_of_another_format_is_left_alone() {
    let (directory, mut disk) = disk();
    disk.seal(1);
    disk.write(0, 1, 0, blocks(1, 1)).unwrap();
    disk.node.close();
    drop(disk);
    // So that the journal does not write it anew.
    open(directory.path()).node.close();
    let file = files(&directory.path().join("extents")).pop().unwrap();
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[8] = 2;
    let crc = lunette_proto::checksum::crc32c(&bytes[..52]);
    bytes[52..56].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(&file, &bytes).unwrap();
    let mut disk = open(directory.path());
    disk.generation = Generation(1);
    assert_eq!(disk.read(0, 8, 1), Err(Failure::Corrupt { offset: 8 * 4096 }));
    assert_eq!(disk.put(0, version(1, 1), 0, Change::Data(blocks(1, 1))), Err(Failure::DiskFailed));
    disk.node.close();
    assert!(std::fs::read(&file).unwrap() == bytes, "it is as it was");
}

/// Guards the checkpoint, which syncs one file system: a part of the disk that lies on another one is refused.
#[test]
fn a_disk_is_on_one_file_system() {
    use std::os::unix::fs::MetadataExt;
    let (directory, disk) = disk();
    disk.node.close();
    drop(disk);
    let Ok(other) = tempfile::tempdir_in("/dev/shm") else { return };
    let device = |path: &std::path::Path| std::fs::metadata(path).unwrap().dev();
    if device(other.path()) == device(directory.path()) {
        return;
    }
    let extents = directory.path().join("extents");
    std::fs::remove_dir(&extents).unwrap();
    std::os::unix::fs::symlink(other.path(), &extents).unwrap();
    match Node::open(CLUSTER, [DiskConfig::new(directory.path(), None)]) {
        Err(DiskError::Damaged { path, .. }) => assert_eq!(path, extents),
        other => panic!("{other:?}"),
    }
}

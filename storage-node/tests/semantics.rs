//! What a disk does with each request, as the node protocol says.

#![allow(clippy::unwrap_used, reason = "a test fails where it stops")]

mod support;

use lunette_proto::ids::*;
use lunette_proto::node::*;
use lunette_storage_node::store::layout::DESCRIPTOR_BYTES;
use lunette_storage_node::{DiskConfig, DiskError, Node, inspect_identity};
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
    assert_eq!(disk.used(), UNIT, "one unit holds them");
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
    assert_eq!(disk.used(), 4 << 20, "parts of a unit are not given back");
    disk.discard(0, 3, 64, 32).unwrap();
    assert_eq!(disk.used(), 62 * UNIT);
    disk.discard(0, 4, 0, 1024).unwrap();
    disk.discard(7, 4, 0, 1024).unwrap();
    assert_eq!(disk.used(), 0);
    disk.discard(8, 5, 5, 1).unwrap();
    assert_eq!(disk.used(), UNIT, "that part of a unit is discarded is kept in the unit");
    for _ in 0..2 {
        assert_eq!(disk.read(0, 0, 1024), Ok(zeros(1024)));
        assert_eq!(disk.versions(0), [BlockVersion { blocks: 1024, version: version(1, 4), hole: true }]);
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
}

/// Guards room on the file system: what is discarded or deleted is given back, but for some units that are kept for
/// those that come next.
#[test]
fn room_is_given_back() {
    use std::os::unix::fs::MetadataExt;
    let directory = tempfile::tempdir().unwrap();
    format_as(directory.path(), 512 << 20);
    let mut disk = open(directory.path());
    disk.seal(1);
    let taken = || image(directory.path()).disk.metadata().unwrap().blocks() * 512;
    let empty = taken();
    (0..64).for_each(|extent| drop(disk.write(extent, extent + 1, 0, blocks(1, 1024)).unwrap()));
    let full = taken();
    assert!(full - empty > 240 << 20, "{full} - {empty}");
    (0..32).for_each(|extent| drop(disk.discard(extent, extent + 65, 0, 1024).unwrap()));
    disk.delete().unwrap();
    disk.node.close();
    let left = taken() - empty;
    assert!(left < 80 << 20, "{left} bytes are still allocated");
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
    assert_eq!(disk.used(), UNIT);
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
        disk = open(directory.path());
    }
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
    format_as(directory.path(), 64 << 20);
    let mut disk = open(directory.path());
    disk.seal(1);
    let fill = |disk: &mut Client, seq: &mut u64| {
        let begin = *seq;
        loop {
            *seq += 1;
            match disk.write(*seq, *seq, 0, blocks(*seq, 16)) {
                Ok(_) => {}
                Err(Failure::NoSpace) => break *seq - 1 - begin,
                Err(failure) => panic!("{failure}: {:?}", disk.node.disks()),
            }
        }
    };
    let mut seq = 0;
    let written = fill(&mut disk, &mut seq);
    let last = seq - 1;
    assert!(written > 100, "{written}");
    assert_eq!(disk.used(), written * UNIT);
    assert_eq!(disk.read(seq, 0, 16), Ok(zeros(16)), "nothing was changed");
    // Overwrites, large and small, of all there is.
    for extent in 1..=last {
        seq += 1;
        let change = if extent % 2 == 0 { blocks(seq, 16) } else { blocks(seq, 1) };
        disk.write(extent, seq, 0, change).unwrap();
    }
    disk.discard(1, seq + 1, 3, 2).unwrap();
    // Beside content of the same unit a hole needs no space.
    disk.write(1, seq + 2, 4, blocks(seq + 2, 1)).unwrap();
    disk.discard(2, seq + 3, 0, 1024).unwrap();
    disk.discard(3, seq + 4, 0, 16).unwrap();
    assert_eq!(disk.used(), (written - 2) * UNIT);
    seq += 5;
    // Checkpoints make the room usable again.
    disk.node.close();
    drop(disk);
    let mut disk = open(directory.path());
    disk.generation = Generation(1);
    assert_eq!(fill(&mut disk, &mut seq), 2);
    assert_eq!(disk.read(seq - 1, 0, 16), Ok(blocks(seq - 1, 16)));
    disk.delete().unwrap();
    assert_eq!(disk.used(), 0);
}

/// Guards invariant 11: a damaged block is an error by its place, never returned; a repair and
/// an overwrite heal it, also where the descriptor is damaged.
#[test]
fn damaged_blocks_are_found_and_repaired() {
    // Data of block 2; the descriptor, under which all blocks of the unit are lost.
    for is_data in [true, false] {
        let (directory, mut disk) = disk();
        disk.seal(1);
        disk.write(0, 1, 0, blocks(1, 4)).unwrap();
        disk.node.close();
        drop(disk);
        let data = find(directory.path(), &layout(), &blocks(1, 4).slice(2 * 4096..3 * 4096));
        let [data] = data[..] else { panic!("{data:?}") };
        let unit = u32::try_from((data - layout().units_offset) / UNIT).unwrap();
        let at = if is_data { data + 77 } else { layout().descriptor(unit) + 100 };
        let file = image(directory.path());
        let byte = read_at(&file, at, 1)[0];
        file.write_all_at(&[byte ^ 0x10], at).unwrap();

        let lost = if is_data { 2 } else { 0 };
        let mut disk = open(directory.path());
        disk.generation = Generation(1);
        assert_eq!(disk.read(0, 0, 4), Err(Failure::Corrupt { offset: lost * 4096 }));
        let good = |block: u32| blocks(1, 4).slice(block as usize * 4096..).slice(..4096);
        disk.put(0, version(1, 1), lost, Change::Data(good(lost))).unwrap();
        disk.write(0, 2, 3, blocks(2, 1)).unwrap();
        disk.node.close();
        drop(disk);
        let mut disk = open(directory.path());
        disk.generation = Generation(1);
        assert_eq!(disk.read(0, lost, 1), Ok(good(lost)));
        assert_eq!(disk.read(0, 3, 1), Ok(blocks(2, 1)));
        let other = disk.read(0, 1, 1);
        let expected = if is_data { Ok(good(1)) } else { Err(Failure::Corrupt { offset: 4096 }) };
        assert_eq!(other, expected, "what was not repaired stays lost");
    }
}

/// Guards against blocks in the wrong place: the unit of one extent, with its descriptor, where another's is.
#[test]
fn misplaced_blocks_are_found() {
    let (directory, mut disk) = disk();
    disk.seal(1);
    disk.write(0, 1, 0, blocks(1, 1)).unwrap();
    disk.write(1, 2, 0, blocks(2, 1)).unwrap();
    disk.node.close();
    drop(disk);
    let layout = layout();
    let unit = |stamp| {
        let found = find(directory.path(), &layout, &blocks(stamp, 1));
        let [at] = found[..] else { panic!("{found:?}") };
        u32::try_from((at - layout.units_offset) / UNIT).unwrap()
    };
    let (from, to) = (unit(1), unit(2));
    let file = image(directory.path());
    let copy = |from, to, len| {
        file.write_all_at(&read_at(&file, from, len), to).unwrap();
    };
    copy(layout.unit(from), layout.unit(to), UNIT);
    for with_descriptor in [false, true] {
        if with_descriptor {
            copy(layout.descriptor(from), layout.descriptor(to), DESCRIPTOR_BYTES);
        }
        let mut disk = open(directory.path());
        disk.generation = Generation(1);
        assert_eq!(disk.read(0, 0, 1), Ok(blocks(1, 1)));
        assert_eq!(disk.read(1, 0, 1), Err(Failure::Corrupt { offset: 0 }));
        disk.node.close();
    }
}

/// Guards the disk: what is not this cluster's, not the one that is meant, or in use is refused by name and not changed.
#[test]
fn foreign_disks_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let config = || [DiskConfig::new(path, None)];
    assert!(matches!(Node::open(CLUSTER, config()), Err(DiskError::NotFormatted(_))));
    assert_eq!(inspect_identity(path).unwrap(), None);
    format(path);
    assert_eq!(inspect_identity(path).unwrap(), Some(IDENTITY));
    let superblocks = read_at(&image(path), 0, 8192);
    let other = ClusterId(2);
    assert!(matches!(Node::open(other, config()), Err(DiskError::WrongCluster { .. })));
    let meant = DiskConfig { disk: Some(DiskId(9)), ..DiskConfig::new(path, None) };
    assert!(matches!(Node::open(CLUSTER, [meant]), Err(DiskError::WrongDisk { .. })));
    assert!(read_at(&image(path), 0, 8192) == superblocks, "nothing was changed");
    let open = Node::open(CLUSTER, config()).unwrap();
    assert!(matches!(Node::open(CLUSTER, config()), Err(DiskError::InUse(_))));
    assert_eq!(inspect_identity(path).unwrap(), Some(IDENTITY), "looking is allowed");
    drop(open);
    drop(Node::open(CLUSTER, config()).unwrap());
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

/// A small file system, for as long as it lives.
struct SmallFileSystem {
    at: std::path::PathBuf,
}

impl SmallFileSystem {
    /// `None`, with a word why, where nothing can be mounted.
    fn mount(root: &std::path::Path, bytes: u64) -> Option<Self> {
        let image = root.join("image");
        std::fs::File::create(&image).unwrap().set_len(bytes).unwrap();
        let run = |command: &str, arguments: &[&std::ffi::OsStr]| {
            std::process::Command::new(command).args(arguments).status().is_ok_and(|status| status.success())
        };
        assert!(run("mkfs.ext4", &["-q".as_ref(), "-m0".as_ref(), image.as_os_str()]));
        let at = root.join("at");
        std::fs::create_dir(&at).unwrap();
        if !run("mount", &["-o".as_ref(), "loop".as_ref(), image.as_os_str(), at.as_os_str()]) {
            eprintln!("not tested on a full file system: nothing can be mounted here");
            return None;
        }
        Some(Self { at })
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        let unmounted = std::process::Command::new("umount").arg(&self.at).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "{} stays mounted", self.at.display());
    }
}

/// Guards against a file system that is full before the disk is, because others fill it: writes are refused
/// without harm, discards and deletes go on, and everything is there after a restart.
#[test]
fn a_full_file_system_takes_discards() {
    let root = tempfile::tempdir().unwrap();
    let Some(small) = SmallFileSystem::mount(root.path(), 120 << 20) else { return };
    let path = small.at.join("disk");
    format_as(&path, 1 << 30);
    let mut disk = open(&path);
    disk.seal(1);
    disk.write(0, 1, 0, blocks(1, 1024)).unwrap();
    disk.write(1, 2, 0, blocks(2, 16)).unwrap();
    let hog = std::fs::File::create(small.at.join("hog")).unwrap();
    let chunk = vec![1; 1 << 20];
    while std::io::Write::write_all(&mut &hog, &chunk).is_ok() {}
    let refused = (3..200)
        .find_map(|seq| disk.write(seq, seq, 0, blocks(seq, 1024)).err().map(|failure| (seq, failure)));
    let (seq, failure) = refused.expect("the file system is full");
    assert_eq!(failure, Failure::NoSpace);
    assert_eq!(disk.read(seq, 0, 1024), Ok(zeros(1024)), "nothing was changed");
    disk.write(1, seq + 1, 3, blocks(99, 1)).unwrap();
    disk.discard(0, seq + 2, 4, 8).unwrap();
    disk.discard(0, seq + 3, 0, 1024).unwrap();
    assert_eq!(disk.read(0, 0, 1024), Ok(zeros(1024)));
    disk.node.close();
    drop(disk);
    let mut disk = open(&path);
    disk.generation = Generation(1);
    assert_eq!(disk.read(0, 0, 1024), Ok(zeros(1024)));
    let expected = [blocks(2, 16).slice(..3 * 4096), blocks(99, 1), blocks(2, 16).slice(4 * 4096..)].concat();
    assert_eq!(disk.read(1, 0, 16).unwrap(), expected);
    assert_eq!(disk.used(), (seq - 3) * (4 << 20) + UNIT);
    // What was given back can be used.
    eprintln!("{:?} {:?}", rustix::fs::statvfs(&small.at).unwrap().f_bavail, disk.node.disks());
    disk.write(500, 500, 0, blocks(500, 256)).unwrap();
    assert_eq!(disk.delete(), Ok(ReplyBody::Done));
    assert_eq!(disk.used(), 0);
    disk.node.close();
}

/// Guards against a disk that can never be opened again: the namespaces that it takes are as many as a
/// checkpoint has room for, and the largest changes still fit beside them.
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
        assert_eq!(disk.used(), UNIT);
    };
    check(&mut disk);
    disk.node.close();
    drop(disk);
    let mut disk = open(directory.path());
    disk.generation = Generation(2);
    check(&mut disk);
}

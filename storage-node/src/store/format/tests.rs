use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;

use lunette_proto::ids::{ClusterId, DiskId, DiskUuid};

use super::*;
use crate::store::file_disk::tests::LoopDevice;

const IDENTITY: Identity = Identity { cluster: ClusterId(7), disk: DiskId(3), uuid: DiskUuid(9) };
const OPTIONS: FormatOptions = FormatOptions { capacity_bytes: Some(64 << 20), wal_bytes: None };
const SIZE: u64 = 80 << 20;

fn blank_file(directory: &Path, name: &str) -> PathBuf {
    let path = directory.join(name);
    File::create(&path).and_then(|file| file.set_len(SIZE)).expect("a file");
    path
}

fn write(path: &Path, offset: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(path).expect("opened");
    file.write_all_at(bytes, offset).expect("written");
}

fn check(path: &Path) {
    assert_eq!(inspect_identity(path).expect("inspected"), Some(IDENTITY));
    let again = format_disk(path, &IDENTITY, &OPTIONS);
    assert!(
        matches!(again, Err(DiskError::Formatted { disk: DiskId(3), cluster: ClusterId(7), .. })),
        "{again:?}"
    );
    let (store, _) = Store::open(FileDisk::open(path).expect("taken")).expect("opened");
    assert_eq!(store.identity(), IDENTITY);
}

/// Guards each kind of medium: it becomes a disk that opens, of the size that was asked for, once.
#[test]
fn each_medium_becomes_a_disk() {
    let root = tempfile::tempdir().expect("a directory");
    let directory = root.path().join("a/b");
    format_disk(&directory, &IDENTITY, &OPTIONS).expect("formatted");
    check(&directory);
    let file = fs::metadata(directory.join(FILE)).expect("there");
    assert!(file.len() <= 64 << 20 && file.len() > 63 << 20, "{}", file.len());
    assert!(file.blocks() * 512 < 40 << 20, "units take no room yet");
    assert!(!directory.join(TEMPORARY).exists());

    let whole = blank_file(root.path(), "whole");
    format_disk(&whole, &IDENTITY, &OPTIONS).expect("formatted");
    check(&whole);
    assert!(fs::metadata(&whole).expect("there").blocks() * 512 >= 63 << 20, "it has all its room");

    let looped = blank_file(root.path(), "looped");
    let Some(device) = LoopDevice::over(&looped) else { return };
    format_disk(device.path(), &IDENTITY, &FormatOptions::default()).expect("formatted");
    check(device.path());
    let disk = FileDisk::open(device.path()).expect("taken");
    assert_eq!(disk.size_bytes(), SIZE);
}

/// Guards invariant 18: a disk of the old format, and one of a later format, is refused by its version and is not
/// changed.
#[test]
fn other_formats_are_named() {
    let root = tempfile::tempdir().expect("a directory");
    let old = root.path().join("old");
    fs::create_dir(&old).expect("made");
    let mut page = vec![0; 4096];
    page[..12].copy_from_slice(b"LUNEDISK\x01\0\0\0");
    fs::write(old.join("identity"), &page).expect("written");
    fs::write(old.join("journal.0"), "x").expect("written");
    let outcomes = [
        inspect_identity(&old).map(|_| ()),
        format_disk(&old, &IDENTITY, &OPTIONS),
        FileDisk::open(&old).map(|_| ()),
    ];
    for outcome in outcomes {
        let error = outcome.expect_err("refused").to_string();
        assert!(error.contains("format version 1, and this program knows version 6"), "{error}");
    }
    assert_eq!(fs::read_dir(&old).expect("listed").count(), 2);

    for other in [4, 5, 7] {
        let disk = blank_file(root.path(), &format!("format {other}"));
        format_disk(&disk, &IDENTITY, &OPTIONS).expect("formatted");
        for copy in 0..2 {
            let file = OpenOptions::new().read(true).write(true).open(&disk).expect("opened");
            let mut page = [0; PAGE];
            file.read_exact_at(&mut page, Layout::superblock(copy)).expect("read");
            page[8] = other;
            let crc = lunette_proto::checksum::crc32c(&page[..PAGE - 4]);
            page[PAGE - 4..].copy_from_slice(&crc.to_le_bytes());
            file.write_all_at(&page, Layout::superblock(copy)).expect("written");
        }
        let is_named = |outcome: DiskError| matches!(outcome, DiskError::Version { version, .. } if version == u32::from(other));
        assert!(is_named(inspect_identity(&disk).expect_err("refused")));
        assert!(is_named(format_disk(&disk, &IDENTITY, &OPTIONS).expect_err("refused")));
    }
}

/// Guards what is of others: it is refused by name and not changed.
#[test]
fn what_is_not_empty_is_refused() {
    let root = tempfile::tempdir().expect("a directory");
    let directory = root.path().join("photos");
    fs::create_dir_all(directory.join("lost+found")).expect("made");
    // Also a file that has the name of ours.
    for name in ["photo.jpg", TEMPORARY] {
        fs::write(directory.join(name), "x").expect("written");
        assert!(matches!(format_disk(&directory, &IDENTITY, &OPTIONS), Err(DiskError::NotEmpty(_))));
        assert_eq!(fs::read(directory.join(name)).expect("still there"), b"x");
        fs::remove_file(directory.join(name)).expect("removed");
    }
    format_disk(&directory, &IDENTITY, &OPTIONS).expect("only lost+found is there");

    let image = blank_file(root.path(), "image");
    let made = Command::new("mkfs.ext4").arg("-q").arg(&image).status().expect("mkfs.ext4 runs");
    assert!(made.success());
    let before = fs::read(&image).expect("read");
    let refused = |path: &Path, what: &str| {
        let error = format_disk(path, &IDENTITY, &OPTIONS).expect_err("refused").to_string();
        assert!(error.contains(what) && error.contains("zeros"), "{error}");
        assert_eq!(inspect_identity(path).expect("inspected"), None);
    };
    refused(&image, "ext4");
    if let Some(device) = LoopDevice::over(&image) {
        refused(device.path(), "ext4");
    }
    assert!(fs::read(&image).expect("read") == before, "nothing was changed");

    // In the sampled part, and behind the capacity.
    for offset in [SIZE / 2 / 4096 * 4096, SIZE - 1] {
        let path = blank_file(root.path(), "data");
        write(&path, offset, &[1; 256 << 10][..(SIZE - offset).min(256 << 10) as usize]);
        refused(&path, "data at byte");
    }
}

/// Guards formatting that was cut short: it can be done again, and nothing half-made is opened.
#[test]
fn formatting_can_be_repeated() {
    let root = tempfile::tempdir().expect("a directory");
    let half: [&dyn Fn(&Path); 4] = [
        &|path| drop(File::create(path).expect("made")),
        &|path| fs::write(path, [0; 4096]).expect("written"),
        &|path| {
            let mut file = File::create(path).expect("made");
            file.write_all(&note()).expect("written");
            file.seek(SeekFrom::Start(50 << 20)).expect("sought");
            file.write_all(&[7; 4096]).expect("written");
        },
        // Whole, and not renamed.
        &|path| {
            make_file(
                path,
                &path.with_file_name(WAL_FILE),
                &IDENTITY,
                &OPTIONS.layout(path, 64 << 20).expect("fits"),
            )
            .expect("made")
        },
    ];
    for (number, half) in half.into_iter().enumerate() {
        let directory = root.path().join(number.to_string());
        fs::create_dir(&directory).expect("made");
        fs::write(directory.join(TEMPORARY), "").expect("made");
        half(&directory.join(TEMPORARY));
        assert_eq!(inspect_identity(&directory).expect("inspected"), None);
        assert!(matches!(FileDisk::open(&directory), Err(DiskError::NotFormatted(_))));
        format_disk(&directory, &IDENTITY, &OPTIONS).expect("formatted");
        check(&directory);
    }
    // A file with the note, and half of what follows.
    let whole = blank_file(root.path(), "whole");
    write(&whole, 0, &note());
    write(&whole, 35 << 20, &[7; 1 << 20]);
    assert_eq!(inspect_identity(&whole).expect("inspected"), None);
    format_disk(&whole, &IDENTITY, &OPTIONS).expect("formatted");
    check(&whole);
}

/// Guards sizes: what cannot be a disk is refused before anything is changed.
#[test]
fn impossible_sizes() {
    let root = tempfile::tempdir().expect("a directory");
    let directory = root.path().join("directory");
    let format = |path: &Path, capacity_bytes, wal_bytes| {
        format_disk(path, &IDENTITY, &FormatOptions { capacity_bytes: Some(capacity_bytes), wal_bytes })
    };
    assert!(matches!(format(&directory, 1 << 20, None), Err(DiskError::TooSmall { .. })));
    for wal in [0, (32 << 20) - 4096, (32 << 20) + 512, 5 << 30, u64::MAX] {
        assert!(matches!(format(&directory, 1 << 40, Some(wal)), Err(DiskError::WalSize(_))), "{wal}");
    }
    assert_eq!(fs::read_dir(&directory).expect("listed").count(), 0);
    let whole = blank_file(root.path(), "whole");
    assert!(matches!(format(&whole, SIZE + 1, None), Err(DiskError::Capacity { .. })));
    assert!(fs::read(&whole).expect("read").iter().all(|byte| *byte == 0));
}

/// Guards against stale bytes in the page cache: the journal's zeros are on the medium, and are what is read.
#[test]
fn the_journal_begins_as_zeros() {
    let root = tempfile::tempdir().expect("a directory");
    let path = root.path().join("whole");
    let dirty = vec![0x5a; 1 << 20];
    let file = File::create(&path).expect("made");
    (0..SIZE >> 20).for_each(|mib| file.write_all_at(&dirty, mib << 20).expect("written"));
    drop(file);
    // As after formatting that was cut short long ago.
    write(&path, 0, &note());
    format_disk(&path, &IDENTITY, &OPTIONS).expect("formatted");
    let layout = OPTIONS.layout(&path, 64 << 20).expect("fits");
    let bytes = fs::read(&path).expect("read");
    let at = usize::try_from(layout.wal_offset).expect("small");
    let len = usize::try_from(layout.wal_bytes).expect("small");
    assert!(bytes[at..at + len].iter().all(|byte| *byte == 0));
    check(&path);
}

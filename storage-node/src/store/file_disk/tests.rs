use std::process::Command;
use std::sync::atomic::AtomicUsize;

use super::*;

/// What fails on purpose, and what was asked for.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    pub(crate) syncs: AtomicBool,
    pub(crate) durable_writes: AtomicBool,
    /// Durable writes so far.
    pub(crate) durably_written: AtomicUsize,
}

impl Faults {
    pub(super) fn sync(&self) -> io::Result<()> {
        fail(&self.syncs)
    }

    pub(super) fn durable_write(&self) -> io::Result<()> {
        self.durably_written.fetch_add(1, Ordering::SeqCst);
        fail(&self.durable_writes)
    }
}

fn fail(on: &AtomicBool) -> io::Result<()> {
    if on.load(Ordering::SeqCst) { Err(Errno::IO.into()) } else { Ok(()) }
}

/// A loop device over a file, for as long as it lives; `None`, with a word why, where the system has none.
pub(crate) struct LoopDevice(PathBuf);

impl LoopDevice {
    pub(crate) fn over(file: &Path) -> Option<Self> {
        Self::with_sectors(file, 512)
    }

    /// With sectors of so many bytes.
    fn with_sectors(file: &Path, bytes: u32) -> Option<Self> {
        if !Path::new("/dev/loop-control").exists() {
            eprintln!("not tested on a block device: there is no /dev/loop-control here");
            return None;
        }
        if !rustix::process::geteuid().is_root() {
            eprintln!("not tested on a block device: only root can make a loop device");
            return None;
        }
        let made = Command::new("losetup")
            .args(["--find", "--show", "--sector-size", &bytes.to_string()])
            .arg(file)
            .output()
            .expect("losetup runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let name = String::from_utf8(made.stdout).expect("a name");
        Some(Self(PathBuf::from(name.trim())))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let detached = Command::new("losetup").arg("--detach").arg(&self.0).status();
        assert!(detached.is_ok_and(|status| status.success()), "{} stays", self.0.display());
    }
}

const BYTES: u64 = 8 << 20;

fn file(directory: &Path, name: &str) -> PathBuf {
    let path = directory.join(name);
    File::create(&path).and_then(|file| file.set_len(BYTES)).expect("a file");
    path
}

/// A disk of each kind.
fn each(test: impl Fn(&Path, FileDisk)) {
    let root = tempfile::tempdir().expect("a directory");
    let directory = root.path().join("directory");
    std::fs::create_dir(&directory).expect("made");
    file(&directory, FILE);
    test(&directory, opened(&directory));
    let whole = file(root.path(), "whole");
    test(&whole, FileDisk::open(&whole).expect("opened"));
    // Direct writes are whole sectors.
    for sector in [512, 4096] {
        let Some(device) = LoopDevice::with_sectors(&file(root.path(), "looped"), sector) else { return };
        test(device.path(), FileDisk::open(device.path()).expect("opened"));
    }
}

/// What is at a path, also if it is no disk of Lunette.
fn opened(path: &Path) -> FileDisk {
    if path.is_dir() {
        FileDisk::take(&path.join(FILE), Medium::Sparse).expect("opened")
    } else {
        FileDisk::open(path).expect("opened")
    }
}

/// Guards the journal's file: the ring is in it and nowhere else, and the file of another disk, or none, is refused.
#[test]
fn the_journal_is_a_file() {
    use lunette_proto::ids::{ClusterId, DiskId, DiskUuid};

    use crate::store::format::{FormatOptions, format_disk};
    use crate::store::{Identity, Layout};

    let root = tempfile::tempdir().expect("a directory");
    let (bytes, wal_bytes) = (64 << 20, 32 << 20);
    let layout = Layout::new(bytes, wal_bytes).expect("large enough");
    let options = FormatOptions { capacity_bytes: Some(bytes), wal_bytes: Some(wal_bytes) };
    let paths = [1, 2].map(|number| {
        let path = root.path().join(number.to_string());
        let identity =
            Identity { cluster: ClusterId(1), disk: DiskId(number), uuid: DiskUuid(number.into()) };
        format_disk(&path, &identity, &options).expect("formatted");
        path
    });
    let disk = FileDisk::open(&paths[0]).expect("opened");
    let (begin, end) = (layout.wal_offset, layout.wal_offset + layout.wal_bytes);
    for offset in [begin, end - 4096] {
        disk.write_durable(offset, &[pattern(9, 4096)]).expect("written");
        let mut out = vec![0; 4096];
        disk.read(offset, &mut out).expect("read");
        assert_eq!(out, pattern(9, 4096));
    }
    let wal = std::fs::read(paths[0].join(WAL_FILE)).expect("there");
    assert_eq!(wal.len() as u64, 4096 + layout.wal_bytes);
    assert!(wal[4096..8192] == pattern(9, 4096)[..] && wal[wal.len() - 4096..] == pattern(9, 4096)[..]);
    let mut out = vec![0; 8192];
    assert!(disk.read(end - 4096, &mut out).is_err(), "no range is in both");
    drop(disk);

    let refused = |path: &Path| match FileDisk::open(path) {
        Err(DiskError::Damaged { path, what, .. }) => (path, what),
        other => panic!("{other:?}"),
    };
    let mine = paths[0].join(WAL_FILE);
    std::fs::copy(paths[1].join(WAL_FILE), &mine).expect("copied");
    assert_eq!(refused(&paths[0]), (mine.clone(), "it is not the journal of this disk"));
    std::fs::write(&mine, &wal[..wal.len() - 4096]).expect("cut");
    assert_eq!(refused(&paths[0]), (mine.clone(), "the journal has another length than the disk says"));
    std::fs::remove_file(&mine).expect("removed");
    assert_eq!(refused(&paths[0]), (mine.clone(), "the journal is missing"));
    std::fs::write(&mine, &wal).expect("as it was");
    FileDisk::open(&paths[0]).expect("opened");
}

fn pattern(stamp: u8, len: usize) -> Bytes {
    (0..len).map(|at| stamp ^ (at / 512) as u8).collect()
}

/// Guards the basic promise on each medium: what was written by either way is read, whatever was written or
/// cached there before, also by who opens it anew.
#[test]
fn reads_what_was_written() {
    each(|path, disk| {
        assert_eq!(disk.size_bytes(), BYTES);
        let read = |disk: &FileDisk, offset: u64, len: usize| {
            let mut out = vec![0xee; len];
            disk.read(offset, &mut out).map(|()| Bytes::from(out)).expect("read")
        };
        disk.write(4096, &[pattern(1, 512), pattern(2, 0), pattern(3, 65_536)]).expect("written");
        disk.sync().expect("synced");
        let expected = [pattern(1, 512), pattern(3, 65_536)].concat();
        assert_eq!(read(&disk, 4096, expected.len()), expected);
        // Over what is cached, and beside it in the same page.
        disk.write_durable(4096 + 512, &[pattern(4, 512), pattern(5, 1024)]).expect("written");
        disk.write_durable(8192, &[pattern(6, 4096)]).expect("written");
        let mut expected = expected;
        expected[512..2048].copy_from_slice(&[pattern(4, 512), pattern(5, 1024)].concat());
        expected[4096..8192].copy_from_slice(&pattern(6, 4096));
        assert_eq!(read(&disk, 4096, expected.len()), expected);
        let mut out = vec![0; 4096];
        disk.read_cached(12_288, &mut out).expect("it was read just now");
        assert_eq!(out, expected[8192..12_288]);
        drop(disk);
        let disk = opened(path);
        assert_eq!(read(&disk, 4096, expected.len()), expected);
        // More parts than one vectored write takes.
        let parts = (0..3000u32).map(|part| pattern(part as u8, 512)).collect::<Vec<_>>();
        disk.write(1 << 20, &parts).expect("written");
        assert_eq!(read(&disk, 1 << 20, 3000 * 512), parts.concat());
    });
}

/// Guards reads that may not wait: what no cache has is not waited for.
#[test]
fn what_is_not_cached_would_block() {
    each(|_, disk| {
        disk.write(0, &[pattern(1, 65_536)]).expect("written");
        disk.sync().expect("synced");
        disk.forget_cached(0, BYTES).expect("dropped");
        let mut out = vec![0; 65_536];
        let cached = disk.read_cached(0, &mut out);
        // A file system without a cache of its own, or one in memory, has it still: then it has to be right.
        match cached {
            Ok(()) => assert_eq!(out, pattern(1, 65_536)),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    });
}

/// Guards room: reserving and giving back change what is allocated, and no byte beside the range.
#[test]
fn room_is_taken_and_given_back() {
    let root = tempfile::tempdir().expect("a directory");
    let path = file(root.path(), FILE);
    let disk = opened(root.path());
    let taken = || std::fs::metadata(&path).expect("there").blocks() * 512;
    assert_eq!(taken(), 0);
    disk.reserve(1 << 20, 1 << 20).expect("there is room");
    assert!(taken() >= 1 << 20, "{}", taken());
    disk.write(1 << 20, &[pattern(1, 1 << 20)]).expect("written");
    disk.discard(1 << 20, 1 << 19).expect("given back");
    assert!(taken() <= (1 << 20) - (1 << 18), "{}", taken());
    let mut out = vec![0; 1 << 20];
    disk.read(1 << 20, &mut out).expect("read");
    assert!(out[..1 << 19].iter().all(|byte| *byte == 0));
    assert_eq!(out[1 << 19..], pattern(1, 1 << 20)[1 << 19..]);
    assert_eq!(disk.size_bytes(), BYTES);
    assert_eq!(std::fs::metadata(&path).expect("there").len(), BYTES);
}

/// Guards the allocation of a file that has all its room: nothing is given back.
#[test]
fn a_preallocated_file_keeps_its_room() {
    let root = tempfile::tempdir().expect("a directory");
    let path = file(root.path(), "whole");
    let disk = FileDisk::open(&path).expect("opened");
    disk.write(0, &[pattern(1, 1 << 20)]).expect("written");
    disk.reserve(2 << 20, 4096).expect("it is there");
    let before = std::fs::metadata(&path).expect("there").blocks();
    disk.discard(0, 1 << 20).expect("nothing to do");
    assert_eq!(std::fs::metadata(&path).expect("there").blocks(), before);
}

/// Guards invariant 12: after the first write or sync that failed, nothing is done, although it would succeed.
#[test]
fn a_failure_is_for_ever() {
    type Fail = fn(&FileDisk) -> io::Result<()>;
    let failures: [(&str, Fail); 4] = [
        ("write", |disk| disk.write(BYTES - 512, &[pattern(1, 1024)])),
        ("durable write", |disk| disk.write_durable(BYTES, &[pattern(1, 512)])),
        ("sync", |disk| {
            disk.faults.syncs.store(true, Ordering::SeqCst);
            let synced = disk.sync();
            disk.faults.syncs.store(false, Ordering::SeqCst);
            synced
        }),
        ("reserve", |disk| match disk.medium {
            // Not for want of room: offsets have a sign.
            Medium::Sparse => disk.reserve(u64::MAX - 1, 4096),
            _ => disk.write(u64::MAX, &[pattern(1, 512)]),
        }),
    ];
    for (name, fail) in failures {
        each(|_, disk| {
            disk.write(0, &[pattern(1, 512)]).expect("written");
            assert!(!disk.is_failed());
            assert!(fail(&disk).is_err(), "{name}");
            assert!(disk.is_failed(), "{name}");
            assert!(disk.write(0, &[pattern(2, 512)]).is_err(), "{name}");
            assert!(disk.write_durable(0, &[pattern(2, 512)]).is_err(), "{name}");
            assert!(disk.sync().is_err(), "{name}");
            assert!(disk.read(0, &mut [0; 512]).is_err(), "{name}");
            assert!(disk.read_cached(0, &mut [0; 512]).is_err_and(|e| e.kind() != ErrorKind::WouldBlock));
            assert!(disk.reserve(0, 4096).is_err(), "{name}");
            assert!(disk.discard(0, 4096).is_err(), "{name}");
        });
    }
}

/// Guards against a disk that two processes write.
#[test]
fn a_disk_is_opened_once() {
    each(|path, disk| {
        assert!(matches!(FileDisk::open(path), Err(DiskError::InUse(_))));
        drop(disk);
        drop(opened(path));
    });
}

/// Guards against whatever is no disk.
#[test]
fn what_cannot_be_a_disk_is_refused() {
    let root = tempfile::tempdir().expect("a directory");
    assert!(matches!(FileDisk::open(&root.path().join("nothing")), Err(DiskError::NotFormatted(_))));
    assert!(matches!(FileDisk::open(root.path()), Err(DiskError::NotFormatted(_))));
    assert!(matches!(FileDisk::open(Path::new("/dev/null")), Err(DiskError::Kind(_))));
    std::fs::create_dir(root.path().join(FILE)).expect("made");
    assert!(matches!(FileDisk::open(root.path()), Err(DiskError::NotFormatted(_))));
}

/// Guards against a mounted file system: the kernel's own lock is honoured.
#[test]
fn a_mounted_device_is_in_use() {
    let root = tempfile::tempdir().expect("a directory");
    let image = file(root.path(), "image");
    let made = Command::new("mkfs.ext4").arg("-q").arg(&image).status().expect("mkfs.ext4 runs");
    assert!(made.success());
    let Some(device) = LoopDevice::over(&image) else { return };
    let at = root.path().join("at");
    std::fs::create_dir(&at).expect("made");
    let mounted = Command::new("mount").arg(device.path()).arg(&at).status().expect("mount runs");
    if !mounted.success() {
        eprintln!("not tested on a mounted device: mount is not allowed here");
        return;
    }
    let opened = FileDisk::open(device.path());
    let unmounted = Command::new("umount").arg(&at).status().expect("umount runs");
    assert!(unmounted.success());
    assert!(matches!(opened, Err(DiskError::InUse(_))), "{opened:?}");
}

/// Guards invariant 2 against an answer before the bytes are durable: the kernel is really asked, and its answer counts.
/// The null device takes every write and cannot be synced.
#[test]
fn durable_asks_the_kernel() {
    let null = || File::options().read(true).write(true).open("/dev/null").expect("the null device");
    assert!(null().sync_data().is_err(), "the null device can be synced here: this test proves nothing");
    let mut disk = FileDisk::take(Path::new("/dev/null"), Medium::Preallocated).expect("taken");
    disk.size_bytes = BYTES;
    assert!(disk.write_durable(0, &[pattern(1, 512)]).is_err());
    drop(disk);
    let mut disk = FileDisk::take(Path::new("/dev/null"), Medium::Preallocated).expect("taken");
    disk.size_bytes = BYTES;
    assert!(disk.write(0, &[pattern(1, 512)]).is_ok());
    assert!(disk.sync().is_err());
}

//! The disk that fails, itself: what it keeps and loses is what its rules allow, and each fault does what it says.

#![allow(clippy::unwrap_used, reason = "a test fails where it stops")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind, IoSlice, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command as Process;

use lunette_tests::binary::beside_test;
use lunette_tests::faultdisk::FaultDisk;
use lunette_tests::faultdisk::blocks::Blocks;
use lunette_tests::faultdisk::control::{Command, Controller};
use lunette_tests::faultdisk::file::{Backing, FaultFile};
use lunette_tests::random::Random;
use rustix::fs::{FallocateFlags, FlockOperation, OFlags, fallocate, flock, statvfs};
use rustix::io::{Errno, ReadWriteFlags};

const SECTOR: usize = 512;
/// Files of the random scripts.
const LEN: usize = 64 * SECTOR;

/// How a script ends.
#[derive(Clone, Copy, Debug)]
enum Cut {
    Drop,
    Crash(u64),
    /// Already there: in the middle of what failed.
    Came,
}

/// What the scripts are run on. What returns an error was in the middle when the power failed.
trait Target {
    fn write(&mut self, offset: usize, data: &[u8], durable: bool) -> io::Result<()>;
    fn zero(&mut self, offset: usize, len: usize) -> io::Result<()>;
    fn sync(&mut self) -> io::Result<()>;
    fn read(&mut self) -> Vec<u8>;
    fn cut(&mut self, cut: Cut);
    /// Has the power fail after so many operations; false if it cannot.
    fn arm(&mut self, _operations: u64, _seed: u64) -> bool {
        false
    }
}

/// The rules, said once more: the present bytes, the durable ones, and what each sector held since.
struct Model {
    current: Vec<u8>,
    durable: Vec<u8>,
    since: BTreeMap<usize, Vec<Vec<u8>>>,
}

impl Model {
    fn new() -> Self {
        Self { current: vec![0; LEN], durable: vec![0; LEN], since: BTreeMap::new() }
    }

    fn write(&mut self, offset: usize, data: &[u8], durable: bool) {
        self.current[offset..offset + data.len()].copy_from_slice(data);
        for sector in offset / SECTOR..(offset + data.len()).div_ceil(SECTOR) {
            let range = sector * SECTOR..(sector + 1) * SECTOR;
            if durable {
                self.durable[range.clone()].copy_from_slice(&self.current[range]);
                self.since.remove(&sector);
            } else {
                self.since.entry(sector).or_default().push(self.current[range].to_vec());
            }
        }
    }

    fn sync(&mut self) {
        self.durable.clone_from(&self.current);
        self.since.clear();
    }

    /// Checks what a power cut left and goes on from there. How many sectors kept something unsynced, and how many
    /// of those an older thing than the newest.
    fn check(&mut self, found: Vec<u8>, crash: bool) -> (usize, usize) {
        assert_eq!(found.len(), LEN);
        let mut seen = (0, 0);
        for sector in 0..LEN / SECTOR {
            let range = sector * SECTOR..(sector + 1) * SECTOR;
            let is = &found[range.clone()];
            if is == &self.durable[range] {
                continue;
            }
            let written = self.since.get(&sector).map_or(&[][..], Vec::as_slice);
            let at = written.iter().rposition(|old| old == is);
            assert!(crash && at.is_some(), "sector {sector} has what nobody wrote, or what should be lost");
            seen.0 += 1;
            seen.1 += usize::from(at != Some(written.len() - 1));
        }
        self.durable.clone_from(&found);
        self.current = found;
        self.since.clear();
        seen
    }
}

/// Runs `scripts` scripts, each up to a power cut. How often a crash kept something, and something older.
fn run_scripts(target: &mut impl Target, scripts: u64) -> (usize, usize) {
    let mut model = Model::new();
    let mut random = Random::new(11);
    let mut tag = 0u64;
    let mut seen = (0, 0);
    for script in 0..scripts {
        let armed = random.one_in(3) && target.arm(random.below(12), script);
        let mut failed = false;
        for _ in 0..random.below(24) {
            let (offset, len) = if random.one_in(3) {
                let offset = random.below(LEN as u64 - 1) as usize;
                (offset, 1 + random.below((LEN - offset - 1).min(1500) as u64) as usize)
            } else {
                let first = random.below((LEN / SECTOR) as u64) as usize;
                (first * SECTOR, SECTOR * (1 + random.below((LEN / SECTOR - first).min(16) as u64) as usize))
            };
            let outcome = match random.below(16) {
                kind @ 0..11 => {
                    tag += 1;
                    let data: Vec<u8> = tag.to_le_bytes().into_iter().cycle().take(len).collect();
                    let durable = kind >= 9;
                    let outcome = target.write(offset, &data, durable);
                    model.write(offset, &data, durable && outcome.is_ok());
                    outcome
                }
                11..13 => {
                    model.write(offset, &vec![0; len], false);
                    target.zero(offset, len)
                }
                13..15 => target.sync().inspect(|()| model.sync()),
                _ => {
                    assert!(target.read() == model.current, "script {script}: readers see the newest");
                    Ok(())
                }
            };
            if outcome.is_err() {
                failed = true;
                break;
            }
        }
        assert!(armed || !failed, "script {script}: an error without a reason");
        let crash = random.one_in(2);
        let cut = match (failed, crash) {
            (true, _) => Cut::Came,
            (false, true) => Cut::Crash(script),
            (false, false) => Cut::Drop,
        };
        target.cut(cut);
        let (kept, older) = model.check(target.read(), failed || crash);
        seen = (seen.0 + kept, seen.1 + older);
    }
    seen
}

#[derive(Default)]
struct Memory(Vec<u8>);

impl Backing for Memory {
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        for (at, byte) in (offset as usize..).zip(out) {
            *byte = self.0.get(at).copied().unwrap_or(0);
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let end = offset as usize + data.len();
        if self.0.len() < end {
            self.0.resize(end, 0);
        }
        self.0[offset as usize..end].copy_from_slice(data);
        Ok(())
    }

    fn punch(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let end = ((offset + len) as usize).min(self.0.len());
        self.0[(offset as usize).min(end)..end].fill(0);
        Ok(())
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.0.resize(len as usize, 0);
        Ok(())
    }
}

struct Bare {
    file: FaultFile<Memory>,
    operation: u64,
}

impl Target for Bare {
    fn write(&mut self, offset: usize, data: &[u8], durable: bool) -> io::Result<()> {
        self.operation += 1;
        if durable {
            self.file.write_durable(self.operation, offset as u64, data)
        } else {
            self.file.write(self.operation, offset as u64, data)
        }
    }

    fn zero(&mut self, offset: usize, len: usize) -> io::Result<()> {
        self.operation += 1;
        self.file.zero(self.operation, offset as u64, len as u64, true)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync()
    }

    fn read(&mut self) -> Vec<u8> {
        self.file.read(0, LEN as u64).unwrap()
    }

    fn cut(&mut self, cut: Cut) {
        match cut {
            Cut::Crash(seed) => self.file.crash(&mut Random::new(seed)).unwrap(),
            Cut::Drop => self.file.drop_unsynced(),
            Cut::Came => unreachable!("never armed"),
        };
    }
}

/// Guards the tool's rules in their core: no more and no less than the legal states, and all kinds of them.
#[test]
fn random_scripts() {
    let mut file = FaultFile::new(Memory::default(), 0, Blocks::default());
    file.grow(LEN as u64);
    file.sync().unwrap();
    let (kept, older) = run_scripts(&mut Bare { file, operation: 0 }, 10_000);
    assert!(kept > 1000 && older > 1000, "{kept} sectors kept, {older} of them older ones");
}

struct Mounted {
    disk: FaultDisk,
    file: File,
    synced: File,
    direct: File,
    turn: usize,
}

impl Mounted {
    fn new(disk: FaultDisk) -> Self {
        let path = disk.path().join("disk");
        let file = open(&path, OFlags::empty());
        file.set_len(LEN as u64).unwrap();
        file.sync_all().unwrap();
        sync_directory(&disk.path());
        let (synced, direct) = (open(&path, OFlags::DSYNC), open(&path, OFlags::DIRECT));
        Self { disk, file, synced, direct, turn: 0 }
    }
}

fn open(path: &Path, flags: OFlags) -> File {
    let flags = i32::try_from(flags.bits()).unwrap();
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(flags)
        .open(path)
        .unwrap()
}

fn sync_directory(path: &Path) {
    File::open(path).unwrap().sync_all().unwrap();
}

impl Target for Mounted {
    fn write(&mut self, offset: usize, data: &[u8], durable: bool) -> io::Result<()> {
        self.turn += 1;
        let aligned = offset.is_multiple_of(SECTOR) && data.len().is_multiple_of(SECTOR);
        match (durable, self.turn % 2) {
            (true, 0) => self.synced.write_all_at(data, offset as u64),
            (true, _) => {
                let slices = [IoSlice::new(data)];
                let written =
                    rustix::io::pwritev2(&self.file, &slices, offset as u64, ReadWriteFlags::DSYNC)?;
                assert_eq!(written, data.len());
                Ok(())
            }
            (false, 0) if aligned => self.direct.write_all_at(data, offset as u64),
            (false, _) => self.file.write_all_at(data, offset as u64),
        }
    }

    fn zero(&mut self, offset: usize, len: usize) -> io::Result<()> {
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(fallocate(&self.file, how, offset as u64, len as u64)?)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.turn += 1;
        if self.turn.is_multiple_of(2) { self.file.sync_data() } else { self.direct.sync_all() }
    }

    fn read(&mut self) -> Vec<u8> {
        let mut found = vec![0; LEN];
        self.file.read_exact_at(&mut found, 0).unwrap();
        assert_eq!(self.file.metadata().unwrap().len(), LEN as u64);
        found
    }

    fn cut(&mut self, cut: Cut) {
        match cut {
            Cut::Drop => self.disk.command(Command::Drop),
            Cut::Crash(seed) => self.disk.command(Command::Crash(seed)),
            Cut::Came => {
                let read = self.file.read_at(&mut [0], 0);
                assert_eq!(read.unwrap_err().raw_os_error(), Some(5), "nothing without power");
                assert!(self.file.sync_data().is_err());
            }
        }
        // Also if it was to fail, and the script had ended before.
        self.disk.command(Command::PowerOn);
    }

    fn arm(&mut self, operations: u64, seed: u64) -> bool {
        self.disk.command(Command::CutAfter(operations, seed));
        true
    }
}

/// Guards the same through the kernel: every way to write and to sync means what it says.
#[test]
fn random_scripts_mounted() {
    let mut mounted = Mounted::new(FaultDisk::start(1 << 30));
    let (kept, older) = run_scripts(&mut mounted, 1500);
    assert!(kept > 100 && older > 100, "{kept} sectors kept, {older} of them older ones");
    let stats = mounted.disk.stats();
    assert!(stats.crashes == 1500 && stats.durable_writes > 100 && stats.syncs > 100, "{stats}");
    assert!(stats.torn_writes > 100 && stats.lost_sectors > 1000, "{stats}");
}

/// Guards how a disk is made: a temporary name, then the right one; each step counts after its sync only.
#[test]
fn names_and_sizes() {
    let mut disk = FaultDisk::start(1 << 30);
    let root = disk.path();
    fs::create_dir(root.join("disk1")).unwrap();
    let file = open(&root.join("disk1/disk.new"), OFlags::empty());
    file.write_all_at(&[7; 5000], 0).unwrap();
    file.sync_all().unwrap();
    sync_directory(&root);
    drop(file);
    disk.command(Command::Drop);
    assert_eq!(fs::read_dir(root.join("disk1")).unwrap().count(), 0, "the name was not synced");

    let file = open(&root.join("disk1/disk.new"), OFlags::empty());
    file.write_all_at(&[7; 5000], 0).unwrap();
    file.sync_all().unwrap();
    file.write_all_at(&[8; 10], 5000).unwrap();
    fs::rename(root.join("disk1/disk.new"), root.join("disk1/disk")).unwrap();
    sync_directory(&root.join("disk1"));
    drop(file);
    fs::remove_file(root.join("disk1/disk")).unwrap();
    disk.command(Command::Drop);
    assert_eq!(fs::read(root.join("disk1/disk")).unwrap(), [7; 5000], "the larger size was not synced");
    assert!(!root.join("disk1/disk.new").exists());

    // A file that was cut and made larger again is zeros there.
    let file = open(&root.join("disk1/disk"), OFlags::empty());
    file.set_len(100).unwrap();
    file.set_len(9000).unwrap();
    file.sync_data().unwrap();
    disk.command(Command::Drop);
    let mut expected = vec![7; 100];
    expected.resize(9000, 0);
    assert_eq!(fs::read(root.join("disk1/disk")).unwrap(), expected);
}

/// Guards what a storage engine asks of a file besides reading and writing.
#[test]
fn what_an_engine_needs() {
    let mut disk = FaultDisk::start(64 << 20);
    let path = disk.path().join("disk");
    let file = open(&path, OFlags::empty());
    fallocate(&file, FallocateFlags::empty(), 0, 16 << 20).unwrap();
    let blocks = || file.metadata().unwrap().blocks();
    assert_eq!((file.metadata().unwrap().len(), blocks()), (16 << 20, (16 << 20) / 512));
    assert_eq!(statvfs(&path).unwrap().f_bfree * 4096, 48 << 20);
    fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 4096, 65536).unwrap();
    assert_eq!(blocks(), ((16 << 20) - 65536) / 512);

    // More than one request to the tool, with O_DIRECT, and read back in one.
    let direct = open(&path, OFlags::DIRECT | OFlags::DSYNC);
    let data: Vec<u8> = (0..3 << 20).map(|at: u32| (at / 512) as u8).collect();
    direct.write_all_at(&data, 1 << 20).unwrap();
    disk.command(Command::Drop);
    let mut found = vec![0; data.len()];
    direct.read_exact_at(&mut found, 1 << 20).unwrap();
    assert!(found == data, "a large durable write is there as a whole");

    flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
    assert_eq!(flock(&direct, FlockOperation::NonBlockingLockExclusive), Err(Errno::WOULDBLOCK));
    drop(file);
    flock(&direct, FlockOperation::NonBlockingLockExclusive).unwrap();
}

/// Guards the fault that most programs get wrong: a sync fails once, the next one succeeds, and the data is not there.
#[test]
fn a_failed_sync_loses_what_it_was_to_keep() {
    let mut disk = FaultDisk::start(1 << 30);
    let path = disk.path().join("disk");
    let (file, synced) = (open(&path, OFlags::empty()), open(&path, OFlags::DSYNC));
    file.write_all_at(&[1; 8192], 0).unwrap();
    file.sync_all().unwrap();
    sync_directory(&disk.path());

    file.write_all_at(&[2; 4096], 0).unwrap();
    disk.command(Command::FailSync(true));
    assert_eq!(file.sync_data().unwrap_err().raw_os_error(), Some(5));
    file.sync_data().unwrap();
    file.write_all_at(&[3; 512], 512).unwrap();
    file.sync_data().unwrap();
    disk.command(Command::FailSync(true));
    assert_eq!(synced.write_all_at(&[4; 512], 1024).unwrap_err().raw_os_error(), Some(5));
    synced.write_all_at(&[5; 512], 1536).unwrap();
    let mut found = [0; 2048];
    file.read_exact_at(&mut found, 0).unwrap();
    assert_eq!([0, 512, 1024, 1536].map(|at| found[at]), [2, 3, 4, 5], "readers see all of it");
    disk.command(Command::Drop);
    file.read_exact_at(&mut found, 0).unwrap();
    assert_eq!([0, 512, 1024, 1536].map(|at| found[at]), [1, 3, 1, 5]);
    assert_eq!(disk.stats().failed_syncs, 2);
}

/// Guards errors of writing and want of space, on and off.
#[test]
fn write_errors_and_no_space() {
    let mut disk = FaultDisk::start(1 << 20);
    let file = open(&disk.path().join("disk"), OFlags::empty());
    file.write_all_at(&[1; 8192], 0).unwrap();
    disk.command(Command::Full(true));
    file.write_all_at(&[2; 8192], 0).unwrap();
    assert_eq!(file.write_all_at(&[2; 512], 8192).unwrap_err().kind(), ErrorKind::StorageFull);
    assert_eq!(fallocate(&file, FallocateFlags::empty(), 0, 65536), Err(Errno::NOSPC));
    disk.command(Command::Full(false));
    assert_eq!(file.write_all_at(&vec![2; 1 << 20], 8192).unwrap_err().kind(), ErrorKind::StorageFull);
    file.write_all_at(&[3; 512], 8192).unwrap();

    disk.command(Command::WriteErrors(true));
    assert_eq!(file.write_all_at(&[4; 512], 0).unwrap_err().raw_os_error(), Some(5));
    assert_eq!(file.sync_data().unwrap_err().raw_os_error(), Some(5));
    disk.command(Command::WriteErrors(false));
    file.sync_data().unwrap();
    let stats = disk.stats();
    assert_eq!((stats.failed_writes, stats.failed_syncs, stats.refused_writes), (1, 1, 3), "{stats}");
}

/// Guards a test that is killed: its disk ends with it, is unmounted, and another process finds what was durable.
#[test]
fn ends_with_its_input_and_starts_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name| folder.path().join(name);
    fs::create_dir(path("mnt")).unwrap();
    let start = || {
        let mut command = Process::new(beside_test("faultdisk"));
        command.args([path("mnt"), path("backing"), path("socket")]).stdin(std::process::Stdio::piped());
        let child = command.arg("--until-eof").spawn().unwrap();
        while Controller::connect(&path("socket")).is_err() {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        child
    };
    let mut child = start();
    let file = open(&path("mnt/kept"), OFlags::empty());
    file.write_all_at(&[1; 700], 0).unwrap();
    file.sync_all().unwrap();
    sync_directory(&path("mnt"));
    open(&path("mnt/lost"), OFlags::empty());
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    assert!(file.write_all_at(&[2], 0).is_err(), "nothing is behind the file any more");
    assert_eq!(fs::read_dir(path("mnt")).unwrap().count(), 0, "unmounted");

    let mut child = start();
    let mut found = Vec::new();
    File::open(path("mnt/kept")).unwrap().read_to_end(&mut found).unwrap();
    assert_eq!(found, [1; 700]);
    assert!(!path("mnt/lost").exists());
    child.kill().unwrap();
    child.wait().unwrap();
    // Killed, it leaves a mount that answers nothing; the next one takes its place.
    let mut child = start();
    assert!(path("mnt/kept").exists());
    assert!(Controller::connect(&path("socket")).unwrap().command(Command::Quit).is_ok());
    assert!(child.wait().unwrap().success());
}

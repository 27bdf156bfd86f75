//! Disk images to write into a LUN: reproducible, and never the same bytes twice in one.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::command::run;

/// Bytes that follow from a seed, the same on every machine (xorshift64*).
#[derive(Clone, Debug)]
pub struct Pseudorandom(u64);

impl Pseudorandom {
    /// A seed other than 0.
    ///
    /// # Panics
    /// If it is 0, from which nothing but zeros follow.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        assert_ne!(seed, 0);
        Self(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// The next `length` bytes.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend_from_slice(&self.number().to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }
}

/// Writes a file of pseudo-random data.
///
/// # Panics
/// If it cannot be written.
pub fn write_random(path: &Path, seed: u64, mebibytes: usize) {
    let mut random = Pseudorandom::new(seed);
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).expect("create an image"));
    for _ in 0..mebibytes {
        file.write_all(&random.bytes(1 << 20)).expect("write an image");
    }
    file.flush().expect("write an image");
}

/// Makes an ext4 file system of `mebibytes` with some hundred files in it.
///
/// # Panics
/// If it cannot be made.
pub fn make_ext4(path: &Path, seed: u64, mebibytes: usize) {
    let tree = tempfile::tempdir().expect("a temporary folder");
    let mut random = Pseudorandom::new(seed);
    for folder in 0..20 {
        let folder = tree.path().join(format!("folder-{folder}"));
        fs::create_dir(&folder).expect("create a folder");
        for file in 0..20 {
            let length = usize::try_from(random.number() % 60_000).expect("below 60,000");
            fs::write(folder.join(format!("file-{file}")), random.bytes(length)).expect("write a file");
        }
    }
    let file = File::create(path).expect("create an image");
    file.set_len(u64::try_from(mebibytes << 20).expect("a size")).expect("size an image");
    let mut mkfs = Command::new("/sbin/mkfs.ext4");
    let _ = run(mkfs.args(["-q", "-F", "-d"]).args([tree.path(), path]), Duration::from_secs(60)).success();
}

/// Checks an ext4 file system; what e2fsck says.
///
/// # Panics
/// If it is not clean.
pub fn check_ext4(path: &Path) -> String {
    run(Command::new("/sbin/e2fsck").arg("-fn").arg(path), Duration::from_secs(60)).success()
}

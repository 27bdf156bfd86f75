//! What is durable, on an ordinary file system: a file of names, and a file of content for each inode.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::FallocateFlags;

use super::blocks::{BLOCK_BYTES, Blocks};
use super::file::{Backing, FaultFile};
use super::tree::Entry;

/// Where the durable names stand, among the contents by inode.
const NAMES: &str = "names";

/// The names that are stored in `folder`.
///
/// # Errors
/// They cannot be read, or are damaged.
pub(super) fn load_names(folder: &Path) -> io::Result<Vec<(u64, OsString, Entry)>> {
    let names = match fs::read(folder.join(NAMES)) {
        Ok(names) => names,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    decode_names(&names)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the file of names is damaged"))
}

/// Stores them.
///
/// # Errors
/// They cannot be written.
pub(super) fn store_names(folder: &Path, entries: &[(u64, OsString, Entry)]) -> io::Result<()> {
    let new = folder.join("names.new");
    fs::write(&new, encode_names(entries))?;
    fs::rename(new, folder.join(NAMES))
}

/// One line for each entry: directory, inode, `d` or `f`, the name in hexadecimal digits.
fn encode_names(entries: &[(u64, OsString, Entry)]) -> String {
    let line = |(directory, name, entry): &(u64, OsString, Entry)| {
        let kind = if matches!(entry, Entry::Directory(_)) { 'd' } else { 'f' };
        let name: String = name.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{directory} {} {kind} {name}\n", entry.inode())
    };
    entries.iter().map(line).collect()
}

fn decode_names(bytes: &[u8]) -> Option<Vec<(u64, OsString, Entry)>> {
    let line = |line: &str| {
        let words: Vec<_> = line.split(' ').collect();
        let [directory, inode, kind, name] = words[..] else { return None };
        let inode = inode.parse().ok()?;
        let entry = match kind {
            "d" => Entry::Directory(inode),
            "f" => Entry::File(inode),
            _ => return None,
        };
        let digits =
            |start: usize| name.get(start..start + 2).and_then(|two| u8::from_str_radix(two, 16).ok());
        let name = (0..name.len()).step_by(2).map(digits).collect::<Option<Vec<u8>>>()?;
        Some((directory.parse().ok()?, OsString::from_vec(name), entry))
    };
    std::str::from_utf8(bytes).ok()?.lines().map(line).collect()
}

/// The durable content of a file, in a file of the host.
#[derive(Debug)]
pub(super) struct BackingFile(File);

impl BackingFile {
    /// Of a new file, which is empty.
    pub(super) fn create(folder: &Path, inode: u64) -> io::Result<FaultFile<Self>> {
        let options = File::options().read(true).write(true).create(true).truncate(true).to_owned();
        Ok(FaultFile::new(Self(options.open(folder.join(inode.to_string()))?), 0, Blocks::default()))
    }

    /// Of a file that was there when the program ended.
    pub(super) fn open(folder: &Path, inode: u64) -> io::Result<FaultFile<Self>> {
        let file = File::options().read(true).write(true).open(folder.join(inode.to_string()))?;
        let size = file.metadata()?.len();
        // Which of it were holes is not kept: after a restart of this program all of it has space.
        let mut blocks = Blocks::default();
        blocks.set(0..size.div_ceil(BLOCK_BYTES), true);
        Ok(FaultFile::new(Self(file), size, blocks))
    }
}

impl Backing for BackingFile {
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut filled = 0;
        while filled < out.len() {
            match self.0.read_at(&mut out[filled..], offset + filled as u64)? {
                0 => break,
                read => filled += read,
            }
        }
        out[filled..].fill(0);
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }

    fn punch(&mut self, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(&self.0, how, offset, len)?)
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        if self.0.metadata()?.len() == len { Ok(()) } else { self.0.set_len(len) }
    }
}

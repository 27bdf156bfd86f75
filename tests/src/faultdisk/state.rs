//! The whole file system without the kernel: names, contents, and the faults that are switched on.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::backing::{BackingFile, load_names, store_names};
use super::blocks::BLOCK_BYTES;
use super::file::{Crashed, FaultFile};
use super::tree::{Entry, ROOT, Tree};
use crate::random::Random;

/// Faults that last until they are switched off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// The next sync of anything fails, once; what it should have made durable counts as clean.
    pub fail_sync: bool,
    /// Every write fails, and every sync.
    pub write_errors: bool,
    /// There is no space for anything that has none yet.
    pub full: bool,
}

/// Whether there is power.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Power {
    /// There is.
    #[default]
    On,
    /// It fails in the middle of a write or sync: of the one after so many others.
    FailsAfter {
        /// Writes and syncs that are still done.
        operations: u64,
        /// What is left then, as with [`State::crash`].
        seed: u64,
    },
    /// It has failed: whatever asks for content gets EIO.
    Off,
}

macro_rules! stats {
    ($($(#[$doc:meta])* $field:ident,)+) => {
        /// What happened so far. Shown as `name=value` words.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Stats {
            $($(#[$doc])* pub $field: u64,)+
        }

        impl fmt::Display for Stats {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let words = [$(format!("{}={}", stringify!($field), self.$field)),+];
                f.write_str(&words.join(" "))
            }
        }

        impl std::str::FromStr for Stats {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                let mut stats = Self::default();
                for word in text.split_whitespace() {
                    let (name, value) = word.split_once('=').ok_or_else(|| format!("no value: {word}"))?;
                    let value = value.parse().map_err(|_| format!("no number: {word}"))?;
                    match name {
                        $(stringify!($field) => stats.$field = value,)+
                        _ => return Err(format!("unknown: {word}")),
                    }
                }
                Ok(stats)
            }
        }
    };
}

stats! {
    /// Reads.
    reads,
    /// Writes, zeroing and reservations included.
    writes,
    /// Bytes written.
    written_bytes,
    /// Writes that made themselves durable.
    durable_writes,
    /// Syncs of files.
    syncs,
    /// Syncs of directories.
    directory_syncs,
    /// Syncs and durable writes that failed on purpose.
    failed_syncs,
    /// Writes that failed on purpose.
    failed_writes,
    /// Writes refused for want of space.
    refused_writes,
    /// Power cuts.
    crashes,
    /// Sectors whose newest content a power cut took.
    lost_sectors,
    /// Sectors that a power cut found unsynced, and that kept something of it.
    kept_sectors,
    /// Writes that a power cut left in part.
    torn_writes,
    /// Changes of names that a power cut took.
    lost_names,
    /// Sectors that are not synced at the moment.
    unsynced_sectors,
}

/// The file system.
#[derive(Debug)]
pub struct State {
    folder: PathBuf,
    capacity_bytes: u64,
    tree: Tree,
    files: BTreeMap<u64, Inode>,
    modes: BTreeMap<u64, u32>,
    next_inode: u64,
    next_operation: u64,
    /// What is switched on.
    pub faults: Faults,
    /// Whether there is power.
    pub power: Power,
    stats: Stats,
}

#[derive(Debug)]
struct Inode {
    content: FaultFile<BackingFile>,
    opens: u64,
}

/// What `stat` says.
#[derive(Clone, Copy, Debug)]
pub struct Attributes {
    /// What it is, and its number.
    pub entry: Entry,
    /// Bytes.
    pub size: u64,
    /// Blocks of [`BLOCK_BYTES`] that have space.
    pub blocks: u64,
    /// Permissions.
    pub mode: u32,
}

/// What to do with a range of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocate {
    /// Give it space.
    Reserve,
    /// Make it zeros.
    Zero,
    /// Make it zeros and take its space.
    Punch,
}

impl State {
    /// What is durable in `folder`, which is made if it is missing.
    ///
    /// # Errors
    /// The folder cannot be used, or is none of this program's.
    pub fn open(folder: &Path, capacity_bytes: u64) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let entries = load_names(folder)?;
        let mut files = BTreeMap::new();
        for (_, _, entry) in &entries {
            if let Entry::File(inode) = entry {
                files.insert(*inode, Inode { content: BackingFile::open(folder, *inode)?, opens: 0 });
            }
        }
        let next_inode = entries.iter().map(|(_, _, entry)| entry.inode()).max().unwrap_or(ROOT) + 1;
        Ok(Self {
            folder: folder.to_owned(),
            capacity_bytes,
            tree: Tree::new(entries),
            files,
            modes: BTreeMap::new(),
            next_inode,
            next_operation: 1,
            faults: Faults::default(),
            power: Power::On,
            stats: Stats::default(),
        })
    }

    /// What happened so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let unsynced_sectors = self.files.values().map(|file| file.content.unsynced_sectors()).sum();
        Stats { unsynced_sectors, ..self.stats }
    }

    /// Blocks that there are, and that are taken.
    #[must_use]
    pub fn space(&self) -> (u64, u64) {
        let used = self.files.values().map(|file| file.content.blocks().count()).sum();
        (self.capacity_bytes / BLOCK_BYTES, used)
    }

    /// What a name stands for.
    ///
    /// # Errors
    /// As `stat`.
    pub fn find(&self, directory: u64, name: &OsStr) -> Result<Attributes, Errno> {
        self.attributes(self.tree.find(directory, name)?.inode())
    }

    /// What there is to say of a file or directory.
    ///
    /// # Errors
    /// ENOENT.
    pub fn attributes(&self, inode: u64) -> Result<Attributes, Errno> {
        let mode = |default| self.modes.get(&inode).copied().unwrap_or(default);
        if self.tree.is_directory(inode) {
            let entry = Entry::Directory(inode);
            return Ok(Attributes { entry, size: BLOCK_BYTES, blocks: 1, mode: mode(0o755) });
        }
        let content = &self.file(inode)?.content;
        let blocks = content.blocks().count();
        Ok(Attributes { entry: Entry::File(inode), size: content.size(), blocks, mode: mode(0o644) })
    }

    /// Changes permissions; no power cut takes that back.
    ///
    /// # Errors
    /// ENOENT.
    pub fn set_mode(&mut self, inode: u64, mode: u32) -> Result<(), Errno> {
        self.attributes(inode)?;
        self.modes.insert(inode, mode & 0o7777);
        Ok(())
    }

    /// The entries of a directory.
    ///
    /// # Errors
    /// ENOENT.
    pub fn list(&self, directory: u64) -> Result<Vec<(OsString, Entry)>, Errno> {
        Ok(self.tree.list(directory)?.iter().map(|(name, entry)| (name.clone(), *entry)).collect())
    }

    /// Makes a file, which is open.
    ///
    /// # Errors
    /// As `open`.
    pub fn create(&mut self, directory: u64, name: &OsStr, mode: u32) -> Result<Attributes, Errno> {
        let inode = self.next_inode;
        self.tree.add(directory, name, Entry::File(inode))?;
        self.next_inode += 1;
        self.modes.insert(inode, mode & 0o7777);
        let content = BackingFile::create(&self.folder, inode).map_err(broken)?;
        self.files.insert(inode, Inode { content, opens: 1 });
        self.attributes(inode)
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// As `mkdir`.
    pub fn create_directory(&mut self, directory: u64, name: &OsStr, mode: u32) -> Result<Attributes, Errno> {
        let inode = self.next_inode;
        self.tree.add(directory, name, Entry::Directory(inode))?;
        self.next_inode += 1;
        self.modes.insert(inode, mode & 0o7777);
        self.attributes(inode)
    }

    /// Removes a name.
    ///
    /// # Errors
    /// As `unlink` and `rmdir`.
    pub fn remove(&mut self, directory: u64, name: &OsStr, is_directory: bool) -> Result<(), Errno> {
        self.tree.remove(directory, name, is_directory)
    }

    /// Renames; over what is there unless `keep`.
    ///
    /// # Errors
    /// As `rename`.
    pub fn rename(&mut self, from: (u64, &OsStr), to: (u64, &OsStr), keep: bool) -> Result<(), Errno> {
        self.tree.rename(from, to, keep)
    }

    /// Opens a file.
    ///
    /// # Errors
    /// ENOENT.
    pub fn open_file(&mut self, inode: u64) -> Result<(), Errno> {
        self.file_mut(inode)?.opens += 1;
        Ok(())
    }

    /// Closes a file.
    pub fn close_file(&mut self, inode: u64) {
        if let Ok(file) = self.file_mut(inode) {
            file.opens -= 1;
        }
        self.collect(Some(inode));
    }

    /// Reads.
    ///
    /// # Errors
    /// ENOENT.
    pub fn read(&mut self, inode: u64, offset: u64, len: u64) -> Result<Vec<u8>, Errno> {
        if self.power == Power::Off {
            return Err(Errno::IO);
        }
        self.stats.reads += 1;
        self.file(inode)?.content.read(offset, len).map_err(broken)
    }

    /// Writes; `durable` as with `O_DSYNC`.
    ///
    /// # Errors
    /// EIO, ENOSPC: the faults.
    pub fn write(&mut self, inode: u64, offset: u64, data: &[u8], durable: bool) -> Result<(), Errno> {
        let len = data.len() as u64;
        let operation = self.admit(inode, offset, len)?;
        self.stats.written_bytes += len;
        if let Some(seed) = self.power_fails()? {
            // Torn like everything else that is not synced.
            self.file_mut(inode)?.content.write(operation, offset, data).map_err(broken)?;
            return self.lose_power(seed);
        }
        let fails = durable && std::mem::take(&mut self.faults.fail_sync);
        let content = &mut self.file_mut(inode)?.content;
        if !durable {
            return content.write(operation, offset, data).map_err(broken);
        }
        if !fails {
            content.write_durable(operation, offset, data).map_err(broken)?;
            self.stats.durable_writes += 1;
            return Ok(());
        }
        content.write(operation, offset, data).map_err(broken)?;
        content.fail_durable(offset, len);
        self.stats.failed_syncs += 1;
        Err(Errno::IO)
    }

    /// As `fallocate`; `keep_size` leaves the size as it is.
    ///
    /// # Errors
    /// EIO, ENOSPC: the faults.
    pub fn allocate(
        &mut self,
        inode: u64,
        offset: u64,
        len: u64,
        how: Allocate,
        keep_size: bool,
    ) -> Result<(), Errno> {
        let needs = if how == Allocate::Punch { 0 } else { len };
        let operation = self.admit(inode, offset, needs)?;
        if let Some(seed) = self.power_fails()? {
            return self.lose_power(seed);
        }
        let content = &mut self.file_mut(inode)?.content;
        if how != Allocate::Reserve {
            content.zero(operation, offset, len, how == Allocate::Punch).map_err(broken)?;
        }
        if how != Allocate::Punch {
            content.occupy(offset, len);
            if !keep_size {
                content.grow(offset + len);
            }
        }
        Ok(())
    }

    /// As `ftruncate`.
    ///
    /// # Errors
    /// EIO: the faults.
    pub fn set_size(&mut self, inode: u64, size: u64) -> Result<(), Errno> {
        let operation = self.admit(inode, 0, 0)?;
        if let Some(seed) = self.power_fails()? {
            return self.lose_power(seed);
        }
        self.file_mut(inode)?.content.set_size(operation, size).map_err(broken)
    }

    /// What every change passes: the faults, and space for the range.
    fn admit(&mut self, inode: u64, offset: u64, len: u64) -> Result<u64, Errno> {
        let missing = self.file(inode)?.content.missing(offset, len);
        if self.faults.write_errors {
            self.stats.failed_writes += 1;
            return Err(Errno::IO);
        }
        let (capacity, used) = self.space();
        if missing > 0 && (self.faults.full || used + missing > capacity) {
            self.stats.refused_writes += 1;
            return Err(Errno::NOSPC);
        }
        self.stats.writes += 1;
        self.next_operation += 1;
        Ok(self.next_operation)
    }

    /// As `fsync` of a file.
    ///
    /// # Errors
    /// EIO: the faults.
    pub fn sync(&mut self, inode: u64) -> Result<(), Errno> {
        if let Some(seed) = self.power_fails()? {
            return self.lose_power(seed);
        }
        let fails = self.sync_fails();
        let content = &mut self.file_mut(inode)?.content;
        if fails {
            content.fail_sync();
            return Err(Errno::IO);
        }
        content.sync().map_err(broken)?;
        self.stats.syncs += 1;
        Ok(())
    }

    /// As `fsync` of a directory.
    ///
    /// # Errors
    /// EIO: the faults.
    pub fn sync_directory(&mut self, directory: u64) -> Result<(), Errno> {
        if let Some(seed) = self.power_fails()? {
            return self.lose_power(seed);
        }
        if self.sync_fails() {
            return Err(Errno::IO);
        }
        self.tree.sync(directory);
        store_names(&self.folder, &self.tree.durable_entries()).map_err(broken)?;
        self.collect(None);
        self.stats.directory_syncs += 1;
        Ok(())
    }

    /// Counts a write or sync. The seed of the power cut, if it comes now; EIO if it has come.
    fn power_fails(&mut self) -> Result<Option<u64>, Errno> {
        match &mut self.power {
            Power::On => Ok(None),
            Power::Off => Err(Errno::IO),
            Power::FailsAfter { operations: 0, seed } => Ok(Some(*seed)),
            Power::FailsAfter { operations, .. } => {
                *operations -= 1;
                Ok(None)
            }
        }
    }

    /// What was in the middle is not done, and nobody hears that it was.
    fn lose_power(&mut self, seed: u64) -> Result<(), Errno> {
        self.power = Power::Off;
        self.crash(seed).map_err(broken)?;
        Err(Errno::IO)
    }

    fn sync_fails(&mut self) -> bool {
        let fails = std::mem::take(&mut self.faults.fail_sync) || self.faults.write_errors;
        self.stats.failed_syncs += u64::from(fails);
        fails
    }

    /// A power cut after which nothing that was not synced is there.
    ///
    /// # Errors
    /// The tool's own files cannot be used.
    pub fn drop_unsynced(&mut self) -> io::Result<()> {
        let names = self.tree.drop_unsynced();
        let crashed = self.files.values_mut().map(|file| file.content.drop_unsynced()).collect();
        self.crashed(names, crashed)
    }

    /// A power cut after which any of what was not synced is there.
    ///
    /// # Errors
    /// The tool's own files cannot be used.
    pub fn crash(&mut self, seed: u64) -> io::Result<()> {
        let mut random = Random::new(seed);
        let names = self.tree.crash(&mut random);
        let crashed =
            self.files.values_mut().map(|file| file.content.crash(&mut random)).collect::<io::Result<_>>()?;
        self.crashed(names, crashed)
    }

    fn crashed(&mut self, lost_names: u64, files: Vec<Crashed>) -> io::Result<()> {
        self.stats.crashes += 1;
        self.stats.lost_names += lost_names;
        for crashed in files {
            self.stats.lost_sectors += crashed.lost_sectors;
            self.stats.kept_sectors += crashed.kept_sectors;
            self.stats.torn_writes += crashed.torn_writes;
        }
        store_names(&self.folder, &self.tree.durable_entries())?;
        self.collect(None);
        Ok(())
    }

    /// Forgets files that nobody can reach: all, or the one that may be such.
    fn collect(&mut self, candidate: Option<u64>) {
        let candidates: Vec<u64> = match candidate {
            Some(inode) => vec![inode],
            None => self.files.keys().copied().collect(),
        };
        for inode in candidates {
            let unused =
                self.files.get(&inode).is_some_and(|file| file.opens == 0) && !self.tree.names(inode);
            if unused {
                self.files.remove(&inode);
                self.modes.remove(&inode);
                // Left there it does no harm: its number is not used again.
                let _ = fs::remove_file(self.folder.join(inode.to_string()));
            }
        }
    }

    fn file(&self, inode: u64) -> Result<&Inode, Errno> {
        self.files.get(&inode).ok_or(Errno::NOENT)
    }

    fn file_mut(&mut self, inode: u64) -> Result<&mut Inode, Errno> {
        self.files.get_mut(&inode).ok_or(Errno::NOENT)
    }
}

/// The tool's own files fail: not a fault that anybody asked for, so it must not pass for one.
#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn broken(error: io::Error) -> Errno {
    eprintln!("faultdisk: its own backing fails: {error}");
    Errno::REMOTEIO
}

//! Names: the tree that readers see, the one that is durable, and the changes between them, in order.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

use rustix::io::Errno;

use crate::random::Random;

/// The number of the top directory.
pub const ROOT: u64 = 1;

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A directory.
    Directory(u64),
    /// A file.
    File(u64),
}

impl Entry {
    /// Its number.
    #[must_use]
    pub fn inode(self) -> u64 {
        match self {
            Self::Directory(inode) | Self::File(inode) => inode,
        }
    }
}

type Directories = BTreeMap<u64, BTreeMap<OsString, Entry>>;

/// The names of a file system.
#[derive(Debug)]
pub struct Tree {
    durable: Directories,
    current: Directories,
    changes: Vec<Change>,
}

#[derive(Clone, Debug)]
enum Change {
    Add { directory: u64, name: OsString, entry: Entry },
    Remove { directory: u64, name: OsString },
    Rename { from: (u64, OsString), to: (u64, OsString) },
}

impl Change {
    fn touches(&self, directory: u64) -> bool {
        match self {
            Self::Add { directory: changed, .. } | Self::Remove { directory: changed, .. } => {
                *changed == directory
            }
            Self::Rename { from, to } => from.0 == directory || to.0 == directory,
        }
    }

    fn apply(&self, tree: &mut Directories) {
        match self {
            Self::Add { directory, name, entry } => {
                if let Entry::Directory(inode) = entry {
                    tree.insert(*inode, BTreeMap::new());
                }
                tree.entry(*directory).or_default().insert(name.clone(), *entry);
            }
            Self::Remove { directory, name } => {
                let removed = tree.get_mut(directory).and_then(|names| names.remove(name));
                if let Some(Entry::Directory(inode)) = removed {
                    tree.remove(&inode);
                }
            }
            Self::Rename { from, to } => {
                let Some(entry) = tree.get_mut(&from.0).and_then(|names| names.remove(&from.1)) else {
                    return;
                };
                let replaced = tree.entry(to.0).or_default().insert(to.1.clone(), entry);
                if let Some(Entry::Directory(inode)) = replaced {
                    tree.remove(&inode);
                }
            }
        }
    }
}

impl Default for Tree {
    fn default() -> Self {
        Self::new([])
    }
}

impl Tree {
    /// The tree that has these durable entries, directories before what is in them.
    pub fn new(entries: impl IntoIterator<Item = (u64, OsString, Entry)>) -> Self {
        let mut durable = Directories::from([(ROOT, BTreeMap::new())]);
        for (directory, name, entry) in entries {
            Change::Add { directory, name, entry }.apply(&mut durable);
        }
        Self { current: durable.clone(), durable, changes: Vec::new() }
    }

    /// Every durable entry, directories before what is in them.
    #[must_use]
    pub fn durable_entries(&self) -> Vec<(u64, OsString, Entry)> {
        let mut found = Vec::new();
        let mut left = vec![ROOT];
        while let Some(directory) = left.pop() {
            for (name, entry) in self.durable.get(&directory).into_iter().flatten() {
                found.push((directory, name.clone(), *entry));
                if let Entry::Directory(inode) = entry {
                    left.push(*inode);
                }
            }
        }
        found
    }

    /// Whether a file has a name, now or after a power cut.
    #[must_use]
    pub fn names(&self, inode: u64) -> bool {
        let mut entries = self.durable.values().chain(self.current.values()).flat_map(BTreeMap::values);
        entries.any(|entry| *entry == Entry::File(inode))
            // A file that was removed and whose removal a crash may take back, or created and renamed over.
            || self.changes.iter().any(|change| matches!(change, Change::Add { entry, .. } if *entry == Entry::File(inode)))
    }

    /// The entries of a directory.
    ///
    /// # Errors
    /// ENOENT if it is none.
    pub fn list(&self, directory: u64) -> Result<&BTreeMap<OsString, Entry>, Errno> {
        self.current.get(&directory).ok_or(Errno::NOENT)
    }

    /// What a name stands for.
    ///
    /// # Errors
    /// ENOENT.
    pub fn find(&self, directory: u64, name: &OsStr) -> Result<Entry, Errno> {
        self.list(directory)?.get(name).copied().ok_or(Errno::NOENT)
    }

    /// Whether it is a directory.
    #[must_use]
    pub fn is_directory(&self, inode: u64) -> bool {
        self.current.contains_key(&inode)
    }

    /// Adds an entry.
    ///
    /// # Errors
    /// EEXIST, or ENOENT for the directory.
    pub fn add(&mut self, directory: u64, name: &OsStr, entry: Entry) -> Result<(), Errno> {
        match self.find(directory, name) {
            Ok(_) => return Err(Errno::EXIST),
            Err(_) if self.is_directory(directory) => {}
            Err(error) => return Err(error),
        }
        self.change(Change::Add { directory, name: name.to_owned(), entry });
        Ok(())
    }

    /// Removes a file's entry, or that of an empty directory.
    ///
    /// # Errors
    /// ENOENT, ENOTDIR, EISDIR, ENOTEMPTY.
    pub fn remove(&mut self, directory: u64, name: &OsStr, is_directory: bool) -> Result<(), Errno> {
        match (self.find(directory, name)?, is_directory) {
            (Entry::File(_), false) => {}
            (Entry::File(_), true) => return Err(Errno::NOTDIR),
            (Entry::Directory(_), false) => return Err(Errno::ISDIR),
            (Entry::Directory(inode), true) => self.must_be_empty(inode)?,
        }
        self.change(Change::Remove { directory, name: name.to_owned() });
        Ok(())
    }

    /// Renames, over what is there unless `keep`.
    ///
    /// # Errors
    /// ENOENT, EEXIST, ENOTDIR, EISDIR, ENOTEMPTY, EINVAL.
    pub fn rename(&mut self, from: (u64, &OsStr), to: (u64, &OsStr), keep: bool) -> Result<(), Errno> {
        let entry = self.find(from.0, from.1)?;
        if !self.is_directory(to.0) {
            return Err(Errno::NOENT);
        }
        match (entry, self.find(to.0, to.1)) {
            (_, Err(_)) => {}
            (_, Ok(_)) if keep => return Err(Errno::EXIST),
            (_, Ok(there)) if there == entry => return Ok(()),
            (Entry::File(_), Ok(Entry::File(_))) => {}
            (Entry::Directory(_), Ok(Entry::Directory(inode))) => self.must_be_empty(inode)?,
            (Entry::File(_), Ok(Entry::Directory(_))) => return Err(Errno::ISDIR),
            (Entry::Directory(_), Ok(Entry::File(_))) => return Err(Errno::NOTDIR),
        }
        // The kernel refuses to move a directory into itself before it asks us.
        self.change(Change::Rename { from: (from.0, from.1.to_owned()), to: (to.0, to.1.to_owned()) });
        Ok(())
    }

    fn must_be_empty(&self, directory: u64) -> Result<(), Errno> {
        if self.list(directory)?.is_empty() { Ok(()) } else { Err(Errno::NOTEMPTY) }
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.current);
        self.changes.push(change);
    }

    /// Makes durable what was changed in a directory, and all that was changed before.
    pub fn sync(&mut self, directory: u64) {
        let last = self.changes.iter().rposition(|change| change.touches(directory));
        self.keep(last.map_or(0, |last| last + 1));
    }

    /// A power cut: every change that was not synced is gone. How many were.
    pub fn drop_unsynced(&mut self) -> u64 {
        self.current = self.durable.clone();
        std::mem::take(&mut self.changes).len() as u64
    }

    /// A power cut: the first of the changes that were not synced are there. How many were lost.
    pub fn crash(&mut self, random: &mut Random) -> u64 {
        let kept = random.below(self.changes.len() as u64 + 1);
        self.keep(usize::try_from(kept).expect("at most how many there are"));
        self.drop_unsynced()
    }

    fn keep(&mut self, first: usize) {
        for change in self.changes.drain(..first) {
            change.apply(&mut self.durable);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> &OsStr {
        OsStr::new(name)
    }

    /// Guards the rule that a new name is durable after a sync of its directory, and not earlier.
    #[test]
    fn a_name_needs_a_sync_of_its_directory() {
        let mut tree = Tree::default();
        tree.add(ROOT, name("d"), Entry::Directory(2)).unwrap();
        tree.add(2, name("new"), Entry::File(3)).unwrap();
        tree.sync(ROOT);
        tree.rename((2, name("new")), (2, name("disk")), false).unwrap();
        assert_eq!(tree.drop_unsynced(), 2);
        assert_eq!(tree.list(2).unwrap().len(), 0);

        tree.add(2, name("new"), Entry::File(4)).unwrap();
        tree.rename((2, name("new")), (2, name("disk")), false).unwrap();
        tree.sync(2);
        tree.remove(2, name("disk"), false).unwrap();
        assert_eq!(tree.find(2, name("disk")), Err(Errno::NOENT));
        assert!(tree.names(4));
        tree.drop_unsynced();
        assert_eq!(tree.find(2, name("disk")), Ok(Entry::File(4)));
        assert_eq!(tree.find(2, name("new")), Err(Errno::NOENT));
        let copy = Tree::new(tree.durable_entries());
        assert_eq!(copy.find(2, name("disk")), Ok(Entry::File(4)));
    }

    /// Guards the order of names: a crash that keeps the second change keeps the first.
    #[test]
    fn a_crash_keeps_a_prefix() {
        let mut seen = [false; 4];
        for seed in 0..64 {
            let mut tree = Tree::default();
            for inode in 2..5 {
                tree.add(ROOT, name(&inode.to_string()), Entry::File(inode)).unwrap();
            }
            tree.crash(&mut Random::new(seed));
            let left: Vec<_> = tree.list(ROOT).unwrap().values().map(|entry| entry.inode()).collect();
            assert_eq!(left, (2..5).take(left.len()).collect::<Vec<_>>());
            seen[left.len()] = true;
        }
        assert_eq!(seen, [true; 4]);
    }

    /// Guards what the kernel leaves to the file system.
    #[test]
    fn what_is_refused() {
        let mut tree = Tree::default();
        tree.add(ROOT, name("d"), Entry::Directory(2)).unwrap();
        tree.add(2, name("f"), Entry::File(3)).unwrap();
        assert_eq!(tree.add(2, name("f"), Entry::File(4)), Err(Errno::EXIST));
        assert_eq!(tree.add(9, name("f"), Entry::File(4)), Err(Errno::NOENT));
        assert_eq!(tree.remove(ROOT, name("d"), true), Err(Errno::NOTEMPTY));
        assert_eq!(tree.remove(ROOT, name("d"), false), Err(Errno::ISDIR));
        assert_eq!(tree.remove(2, name("f"), true), Err(Errno::NOTDIR));
        assert_eq!(tree.rename((2, name("f")), (ROOT, name("d")), false), Err(Errno::ISDIR));
        tree.add(ROOT, name("f"), Entry::File(4)).unwrap();
        assert_eq!(tree.rename((2, name("f")), (ROOT, name("f")), true), Err(Errno::EXIST));
        assert_eq!(tree.rename((ROOT, name("d")), (ROOT, name("f")), false), Err(Errno::NOTDIR));
        assert_eq!(tree.rename((2, name("f")), (ROOT, name("f")), false), Ok(()));
        assert_eq!(tree.remove(ROOT, name("d"), true), Ok(()));
    }
}

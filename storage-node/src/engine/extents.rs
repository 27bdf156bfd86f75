//! The extent files of a disk: where they lie, and a bounded number of them open.
//!
//! There is never more than one [`Extent`] for a file: its table is the truth while it is open, and
//! one that anybody holds is not let go.

use std::collections::{HashMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lunette_proto::ids::{ExtentId, Namespace};
use parking_lot::Mutex;

use super::extent::Extent;
use super::identity::{EXTENTS, TRASH};

/// Files opened at a time; more wait.
const LOADING_MAX: usize = 16;
const FAN_OUT: u64 = 4096;

/// The extent files of a disk.
#[derive(Debug)]
pub(crate) struct Extents {
    directory: PathBuf,
    open_max: usize,
    open: Mutex<Open>,
    /// Serializes opening a file, by extent.
    loading: [Mutex<()>; LOADING_MAX],
}

#[derive(Debug, Default)]
struct Open {
    extents: HashMap<ExtentId, Slot>,
    /// Extents in the order in which they are looked at for closing.
    clock: VecDeque<ExtentId>,
}

#[derive(Debug)]
struct Slot {
    extent: Arc<Extent>,
    used: bool,
}

impl Extents {
    pub(crate) fn new(directory: &Path, open_max: usize) -> Self {
        Self {
            directory: directory.to_owned(),
            open_max,
            open: Mutex::default(),
            loading: std::array::from_fn(|_| Mutex::new(())),
        }
    }

    /// The extent, if its file is open.
    pub(crate) fn cached(&self, id: ExtentId) -> Option<Arc<Extent>> {
        let mut open = self.open.lock();
        let slot = open.extents.get_mut(&id)?;
        slot.used = true;
        Some(slot.extent.clone())
    }

    /// The extent; `None` if it was never written.
    pub(crate) fn get(&self, id: ExtentId) -> io::Result<Option<Arc<Extent>>> {
        if let Some(extent) = self.cached(id) {
            return Ok(Some(extent));
        }
        let _loading = self.loading(id).lock();
        if let Some(extent) = self.cached(id) {
            return Ok(Some(extent));
        }
        let file = match OpenOptions::new().read(true).write(true).open(self.path(id)) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(Extent::load(id, file)?.map(|extent| self.keep(extent)))
    }

    /// The extent, with an empty file if it was never written.
    pub(crate) fn get_or_create(&self, id: ExtentId) -> io::Result<Arc<Extent>> {
        if let Some(extent) = self.get(id)? {
            return Ok(extent);
        }
        let _loading = self.loading(id).lock();
        // Only the commit thread creates, so nobody did in between.
        assert!(self.cached(id).is_none(), "an extent is created once");
        let path = self.path(id);
        let create = || OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path);
        let file = match create() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                path.parent().map_or(Ok(()), fs::create_dir_all)?;
                create()?
            }
            other => other?,
        };
        Ok(self.keep(Extent::create(id, file)))
    }

    fn keep(&self, extent: Extent) -> Arc<Extent> {
        let id = extent.id;
        let extent = Arc::new(extent);
        let mut open = self.open.lock();
        open.extents.insert(id, Slot { extent: extent.clone(), used: false });
        open.clock.push_back(id);
        open.shrink(self.open_max);
        extent
    }

    fn loading(&self, id: ExtentId) -> &Mutex<()> {
        let spread = id.namespace.0.wrapping_mul(31).wrapping_add(id.index);
        &self.loading[usize::try_from(spread % LOADING_MAX as u64).expect("a small remainder")]
    }

    fn path(&self, id: ExtentId) -> PathBuf {
        let mut path = self.namespace_path(id.namespace);
        path.push(format!("{:013x}", id.index / FAN_OUT));
        path.push(format!("{:016x}", id.index));
        path
    }

    fn namespace_path(&self, id: Namespace) -> PathBuf {
        self.directory.join(EXTENTS).join(format!("{:016x}", id.0))
    }

    /// Takes a namespace's files away; [`empty_trash`](Self::empty_trash) gives their space back.
    pub(crate) fn discard(&self, id: Namespace) -> io::Result<()> {
        {
            let mut open = self.open.lock();
            open.extents.retain(|extent, _| extent.namespace != id);
            open.clock.retain(|extent| extent.namespace != id);
        }
        let target = self.directory.join(TRASH).join(format!("{:016x}", id.0));
        match fs::rename(self.namespace_path(id), &target) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            // An earlier attempt that a crash cut short.
            Err(error) if matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists) => {
                fs::remove_dir_all(&target)?;
                fs::rename(self.namespace_path(id), &target)
            }
            other => other,
        }
    }

    /// Removes what was discarded.
    pub(crate) fn empty_trash(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.directory.join(TRASH))? {
            let path = entry?.path();
            match fs::remove_dir_all(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Syncs everything in the file system of the disk; `of` is a file opened before the first
    /// write, which learns of every write that failed since (Linux 5.8 and newer: before, `syncfs` did not tell).
    pub(crate) fn sync(of: &File) -> io::Result<()> {
        rustix::fs::syncfs(of)?;
        // Not every file system empties the device's cache for that; a sync of a file does.
        of.sync_data()
    }
}

impl Open {
    /// Closes files that were not used lately and that nobody holds.
    fn shrink(&mut self, max: usize) {
        let mut looks = 2 * self.clock.len();
        while self.extents.len() > max && looks > 0 {
            looks -= 1;
            let Some(id) = self.clock.pop_front() else { return };
            let Some(slot) = self.extents.get_mut(&id) else { continue };
            // New holders come only through this map, which is locked.
            let held = Arc::strong_count(&slot.extent) > 1;
            if held || slot.used {
                slot.used = false;
                self.clock.push_back(id);
            } else {
                self.extents.remove(&id);
            }
        }
    }
}

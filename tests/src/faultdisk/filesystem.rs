//! [`State`] as the kernel asks for it (FUSE).

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, Session, TimeOrNow, WriteFlags,
};
use parking_lot::Mutex;
use rustix::fs::OFlags;
use rustix::io::Errno as Error;

use super::blocks::BLOCK_BYTES;
use super::state::{Allocate, Attributes, State};
use super::tree::Entry;

/// The kernel keeps nothing: what a power cut takes is gone for every reader at once.
const KEPT: Duration = Duration::ZERO;
/// No page cache, and writes at the same time.
const OPENED: FopenFlags = FopenFlags::FOPEN_DIRECT_IO.union(FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES);
const FALLOC_KEEP_SIZE: i32 = 1;
const FALLOC_PUNCH_HOLE: i32 = 2;
const FALLOC_ZERO_RANGE: i32 = 16;

/// Mounts `state`; [`Session::run`] serves it.
///
/// # Errors
/// It cannot be mounted.
pub fn mount(state: Arc<Mutex<State>>, mountpoint: &Path) -> io::Result<Session<FaultFilesystem>> {
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName("faultdisk".into()), MountOption::NoAtime];
    Session::new(FaultFilesystem(state), mountpoint, &config)
}

/// What answers the kernel.
#[derive(Debug)]
pub struct FaultFilesystem(Arc<Mutex<State>>);

fn errno(error: Error) -> Errno {
    Errno::from_i32(error.raw_os_error())
}

fn attributes(found: &Attributes) -> FileAttr {
    let (kind, nlink) = match found.entry {
        Entry::Directory(_) => (FileType::Directory, 2),
        Entry::File(_) => (FileType::RegularFile, 1),
    };
    FileAttr {
        ino: INodeNo(found.entry.inode()),
        size: found.size,
        blocks: found.blocks * (BLOCK_BYTES / 512),
        atime: SystemTime::UNIX_EPOCH,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
        crtime: SystemTime::UNIX_EPOCH,
        kind,
        perm: u16::try_from(found.mode & 0o7777).expect("twelve bits"),
        nlink,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: u32::try_from(BLOCK_BYTES).expect("a small constant"),
        flags: 0,
    }
}

fn entry(reply: ReplyEntry, found: Result<Attributes, Error>) {
    match found {
        Ok(found) => reply.entry(&KEPT, &attributes(&found), Generation(0)),
        Err(error) => reply.error(errno(error)),
    }
}

fn done(reply: ReplyEmpty, outcome: Result<(), Error>) {
    match outcome {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(error)),
    }
}

impl Filesystem for FaultFilesystem {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        entry(reply, self.0.lock().find(parent.0, name));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.0.lock().attributes(ino.0) {
            Ok(found) => reply.attr(&KEPT, &attributes(&found)),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut state = self.0.lock();
        let outcome = mode
            .map_or(Ok(()), |mode| state.set_mode(ino.0, mode))
            .and_then(|()| size.map_or(Ok(()), |size| state.set_size(ino.0, size)))
            .and_then(|()| state.attributes(ino.0));
        match outcome {
            Ok(found) => reply.attr(&KEPT, &attributes(&found)),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        entry(reply, self.0.lock().create_directory(parent.0, name, mode & !umask));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(reply, self.0.lock().remove(parent.0, name, false));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(reply, self.0.lock().remove(parent.0, name, true));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if !(flags & !RenameFlags::RENAME_NOREPLACE).is_empty() {
            reply.error(Errno::EINVAL);
            return;
        }
        let keep = flags.contains(RenameFlags::RENAME_NOREPLACE);
        done(reply, self.0.lock().rename((parent.0, name), (newparent.0, newname), keep));
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        match self.0.lock().create(parent.0, name, mode & !umask) {
            Ok(found) => reply.created(
                &KEPT,
                &attributes(&found),
                Generation(0),
                FileHandle(found.entry.inode()),
                OPENED,
            ),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.0.lock().open_file(ino.0) {
            Ok(()) => reply.opened(FileHandle(ino.0), OPENED),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.0.lock().close_file(ino.0);
        reply.ok();
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // Comes with every close(); makes nothing durable.
        reply.ok();
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.0.lock().read(ino.0, offset, u64::from(size)) {
            Ok(data) => reply.data(&data),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // The flags of the handle and those of the one write (RWF_DSYNC) come together. O_SYNC includes O_DSYNC.
        let durable = OFlags::from_bits_retain(flags.0.cast_unsigned()).intersects(OFlags::DSYNC);
        match self.0.lock().write(ino.0, offset, data, durable) {
            Ok(()) => reply.written(u32::try_from(data.len()).expect("a request has at most 16 MiB")),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let how = match mode & !FALLOC_KEEP_SIZE {
            0 => Allocate::Reserve,
            FALLOC_PUNCH_HOLE => Allocate::Punch,
            FALLOC_ZERO_RANGE => Allocate::Zero,
            _ => {
                reply.error(Errno::EOPNOTSUPP);
                return;
            }
        };
        let keep_size = mode & FALLOC_KEEP_SIZE != 0;
        done(reply, self.0.lock().allocate(ino.0, offset, length, how, keep_size));
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        done(reply, self.0.lock().sync(ino.0));
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        done(reply, self.0.lock().sync_directory(ino.0));
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let entries = match self.0.lock().list(ino.0) {
            Ok(entries) => entries,
            Err(error) => {
                reply.error(errno(error));
                return;
            }
        };
        for (next, (name, entry)) in (1..).zip(entries).skip(usize::try_from(offset).unwrap_or(usize::MAX)) {
            let kind = match entry {
                Entry::Directory(_) => FileType::Directory,
                Entry::File(_) => FileType::RegularFile,
            };
            if reply.add(INodeNo(entry.inode()), next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let state = self.0.lock();
        let (capacity, used) = state.space();
        let free = if state.faults.full { 0 } else { capacity.saturating_sub(used) };
        let block = u32::try_from(BLOCK_BYTES).expect("a small constant");
        reply.statfs(capacity, free, free, 1 << 20, 1 << 20, block, 255, block);
    }
}

//! A disk that loses what was not synced: a FUSE file system for tests, with its faults at the end of a socket.
//!
//! ```text
//!     program under test ──open, pwrite, fsync──> kernel ──/dev/fuse──> filesystem.rs
//!                                                                           │
//!     test ──Unix socket: "drop", "crash 7", ..──> control.rs ──────────> state.rs ──> tree.rs: names
//!                                                                           └────────> file.rs: contents
//!                                                                                          │ what was synced
//!                                                                                       BACKING/<inode>
//! ```
//!
//! What a write brings stays in memory, sector by sector and in order, until the program makes it durable. The rules
//! are the weakest that a Linux file system on a disk with a volatile cache gives, so that a program which is right
//! here is right everywhere:
//!
//! - `fsync` and `fdatasync` make all of a file's earlier writes durable, and its size. A write with `O_DSYNC`,
//!   `O_SYNC` or `RWF_DSYNC` makes itself durable and nothing else.
//! - Names (create, rename, remove) are durable in order, and only after an `fsync` of a directory that they touch. To
//!   sync a new file does not keep its name.
//! - A sector of 512 bytes is atomic, nothing larger is. Of sectors written and not synced, a crash keeps any.
//! - After a sync that failed, what it should have made durable counts as clean: reads show it, no later sync writes
//!   it, a crash may lose it.
//!
//! Nothing is cached by the kernel, so what `drop` takes away is gone for every reader at once. The commands are in
//! [`control`]; [`FaultDisk`] is one for a test. The program `faultdisk` is the same on the command line.
//!
//! Not there: hard and symbolic links, `mmap` with sharing, permissions (it is for root).

mod backing;
pub mod blocks;
pub mod control;
pub mod file;
pub mod filesystem;
pub mod process;
pub mod state;
pub mod tree;

pub use control::Controller;
pub use process::FaultDisk;

//! Mounts a disk that loses what was not synced. See `lunette_tests::faultdisk` for what it does and its commands.
//!
//! ```text
//! faultdisk MOUNTPOINT BACKING SOCKET [--capacity BYTES] [--until-eof]
//!
//! faultdisk /mnt/fault /var/tmp/fault /run/fault.sock &
//! echo 'crash 7' | socat - UNIX:/run/fault.sock
//! ```
//!
//! MOUNTPOINT: an existing folder. BACKING: where durable content lies. SOCKET: where commands are taken; it is there
//! when the disk is mounted. `--until-eof` ends it with its standard input. Needs root, or the package fuse3.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use lunette_tests::faultdisk::state::State;
use lunette_tests::faultdisk::{control, filesystem};
use parking_lot::Mutex;
use rustix::mount::{UnmountFlags, unmount};

const USAGE: &str = "usage: faultdisk MOUNTPOINT BACKING SOCKET [--capacity BYTES] [--until-eof]";
const CAPACITY_BYTES: u64 = 64 << 30;

struct Arguments {
    mountpoint: PathBuf,
    backing: PathBuf,
    socket: PathBuf,
    capacity_bytes: u64,
    until_eof: bool,
}

fn main() -> ExitCode {
    let Some(arguments) = arguments() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("faultdisk: {error}");
            ExitCode::FAILURE
        }
    }
}

fn arguments() -> Option<Arguments> {
    let mut paths = Vec::new();
    let (mut capacity_bytes, mut until_eof) = (CAPACITY_BYTES, false);
    let mut words = std::env::args_os().skip(1);
    while let Some(word) = words.next() {
        match word.to_str() {
            Some("--capacity") => capacity_bytes = words.next()?.to_str()?.parse().ok()?,
            Some("--until-eof") => until_eof = true,
            _ => paths.push(PathBuf::from(word)),
        }
    }
    let [mountpoint, backing, socket] = <[PathBuf; 3]>::try_from(paths).ok()?;
    Some(Arguments { mountpoint, backing, socket, capacity_bytes, until_eof })
}

fn run(arguments: Arguments) -> std::io::Result<()> {
    let Arguments { mountpoint, backing, socket, capacity_bytes, until_eof } = arguments;
    let state = Arc::new(Mutex::new(State::open(&backing, capacity_bytes)?));
    // What a predecessor left that was killed, and only that: it answers nothing.
    if std::fs::metadata(&mountpoint).is_err_and(|error| error.kind() == std::io::ErrorKind::NotConnected) {
        unmount(&mountpoint, UnmountFlags::DETACH)?;
    }
    let session = filesystem::mount(Arc::clone(&state), &mountpoint)?;
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket)?;
    if until_eof {
        let mountpoint = mountpoint.clone();
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            end(&mountpoint);
        });
    }
    std::thread::spawn(move || {
        if let Err(error) = control::serve(&listener, &state) {
            eprintln!("faultdisk: {}: {error}", socket.display());
        }
        end(&mountpoint);
    });
    session.run()
}

/// Ends the process also if files are open: whoever has them gets errors.
fn end(mountpoint: &Path) -> ! {
    let _ = unmount(mountpoint, UnmountFlags::DETACH);
    std::process::exit(0)
}

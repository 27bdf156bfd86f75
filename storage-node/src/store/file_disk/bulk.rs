//! Much data at once: several direct writes at a time, by a few threads, since a medium is only busy with many.
//!
//! Where direct writes are refused, the page cache takes the data, and one thread is enough.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use bytes::Bytes;
use parking_lot::Mutex;

use super::direct::DirectWriter;

/// Writes at a time.
const WRITERS: usize = 4;
/// Longer writes are cut, so that all writers have their share.
const PIECE_BYTES: usize = 512 << 10;

/// The threads, which are started when they are first needed.
#[derive(Debug)]
pub(super) struct BulkWriters {
    buffered: Arc<File>,
    direct: Option<Arc<File>>,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    jobs: Sender<Job>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Job {
    offset: u64,
    parts: Vec<Bytes>,
    done: Sender<io::Result<()>>,
}

impl BulkWriters {
    /// Both are the same file; `direct` goes past the page cache, if the system allows that.
    pub(super) fn new(buffered: Arc<File>, direct: Option<File>) -> Self {
        Self { buffered, direct: direct.map(Arc::new), running: Mutex::new(None) }
    }

    /// Writes all of `writes`, each its parts one after the other.
    pub(super) fn write(&self, writes: Vec<(u64, Vec<Bytes>)>) -> io::Result<()> {
        let pieces = writes.into_iter().flat_map(|(offset, parts)| cut(offset, parts)).collect::<Vec<_>>();
        let (done, outcomes) = channel();
        let mut running = self.running.lock();
        let running = match &mut *running {
            Some(running) => running,
            none => none.insert(self.start()?),
        };
        let count = pieces.len();
        for (offset, parts) in pieces {
            let job = Job { offset, parts, done: done.clone() };
            running.jobs.send(job).map_err(|_| io::Error::other("the threads that write have ended"))?;
        }
        drop(done);
        let mut written = 0;
        for outcome in outcomes {
            outcome?;
            written += 1;
        }
        if written == count { Ok(()) } else { Err(io::Error::other("a thread that writes has ended")) }
    }

    fn start(&self) -> io::Result<Running> {
        let (jobs, receiver) = channel();
        let receiver = Arc::new(Mutex::new(receiver));
        let mut threads = Vec::new();
        for _ in 0..WRITERS {
            let receiver = receiver.clone();
            let buffered = self.buffered.clone();
            let mut writer = DirectWriter::new(self.direct.clone(), false);
            let run = move || run(&receiver, &buffered, &mut writer);
            threads.push(std::thread::Builder::new().name("bulk".to_owned()).spawn(run)?);
        }
        Ok(Running { jobs, threads })
    }
}

impl Drop for BulkWriters {
    fn drop(&mut self) {
        if let Some(Running { jobs, threads }) = self.running.get_mut().take() {
            drop(jobs);
            for thread in threads {
                // One that panicked has nothing more to say.
                let _ = thread.join();
            }
        }
    }
}

fn run(jobs: &Mutex<Receiver<Job>>, buffered: &File, writer: &mut DirectWriter) {
    loop {
        let job = jobs.lock().recv();
        let Ok(Job { offset, parts, done }) = job else { return };
        // Nobody listens any more once another write has failed.
        let _ = done.send(writer.write(buffered, offset, &parts));
    }
}

/// Cuts a write into pieces of at most [`PIECE_BYTES`].
fn cut(mut offset: u64, parts: Vec<Bytes>) -> Vec<(u64, Vec<Bytes>)> {
    let mut pieces = Vec::new();
    let mut piece = Vec::new();
    let mut len = 0;
    for mut part in parts {
        while !part.is_empty() {
            let taken = part.split_to(part.len().min(PIECE_BYTES - len));
            len += taken.len();
            piece.push(taken);
            if len == PIECE_BYTES {
                pieces.push((offset, std::mem::take(&mut piece)));
                offset += len as u64;
                len = 0;
            }
        }
    }
    if len > 0 {
        pieces.push((offset, piece));
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards bulk writes: every byte arrives where it belongs, however it was cut, and nothing beside it.
    #[test]
    fn all_pieces_arrive() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        let file =
            File::options().read(true).write(true).create(true).truncate(true).open(&path).expect("a file");
        file.set_len(16 << 20).expect("a length");
        let direct = super::super::open_direct(&path, &file).expect("opened");
        let writers = BulkWriters::new(Arc::new(file), direct);
        let mut expected = vec![0u8; 16 << 20];
        let mut writes = Vec::new();
        for (number, (offset, lens)) in (1u8..).zip([
            (0, vec![65_536; 40]),
            (4 << 20, vec![4096, 1 << 20, 65_536]),
            (8 << 20, vec![PIECE_BYTES]),
            ((16 << 20) - 65_536, vec![65_536]),
        ]) {
            let parts = lens.into_iter().enumerate().map(|(part, len)| {
                Bytes::from((0..len).map(|at| number ^ (part * 7 + at / 512) as u8).collect::<Vec<_>>())
            });
            let parts = parts.collect::<Vec<_>>();
            let flat = parts.concat();
            expected[offset..offset + flat.len()].copy_from_slice(&flat);
            writes.push((offset as u64, parts));
        }
        writers.write(writes).expect("written");
        assert!(std::fs::read(&path).expect("read") == expected);
    }
}

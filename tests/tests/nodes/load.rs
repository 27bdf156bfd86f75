//! A load through the gateway that knows what every read may show.
//!
//! Eight sessions, each with one command at a time. Every block has one session that writes it, and all read it: what
//! was answered GOOD is there from then on, a write that was not may be there or not, and what was seen stays.
//!
//! Over several gateways each session uses one path at a time, as multipath does: when its connection breaks, is silent, or
//! says that another gateway is the owner, it goes on over the next.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lunette_proto::ids::{ExtentId, Generation, Namespace, Version};
use lunette_proto::limits::EXTENT_BLOCKS;
use lunette_tests::initiator::{Answer, Initiator, LoginError, Transfer};
use lunette_tests::random::Random;
use lunette_tests::{Lunette, iqn};
use parking_lot::Mutex;

use super::stamp::{self, BLOCK, Content, Place};

/// Extents that are written.
pub(crate) const EXTENTS: u64 = 6;
const SESSIONS: u64 = 8;
/// Blocks of an extent that one session writes.
const SHARE: u32 = EXTENT_BLOCKS / SESSIONS as u32;
/// Most blocks of one command.
const BLOCKS_MAX: u32 = 32;
const SECTORS_PER_BLOCK: u64 = (BLOCK / 512) as u64;
/// So many commands take no longer, even while nodes come and go.
const PATIENCE: Duration = Duration::from_secs(60);
/// Before a command that was refused is followed by the next.
const PAUSE: Duration = Duration::from_millis(20);
/// A path that does not answer for so long is given up, if there are others.
const SILENCE: Duration = Duration::from_millis(1500);

/// Running sessions. Dropped, they end.
pub(crate) struct Load {
    shared: Arc<Shared>,
    sessions: Vec<JoinHandle<()>>,
}

struct Shared {
    /// One of each gateway.
    portals: Vec<SocketAddr>,
    target: String,
    blocks: Vec<Mutex<Block>>,
    stop: AtomicBool,
    /// Whether anything but GOOD is a failure.
    strict: AtomicBool,
    written: AtomicU64,
    refused: AtomicU64,
    /// The longest time for which a session had to look for a path.
    stall: Mutex<Duration>,
    failure: Mutex<Option<String>>,
}

/// Why a command did not get done.
enum Trouble {
    /// Its path does not work; it may have happened or not.
    Path,
    /// What must not be.
    Wrong(String),
}

/// A session, over which of the portals.
struct Session {
    initiator: Initiator,
    at: usize,
}

#[derive(Clone, Default)]
struct Block {
    /// Nothing older may be seen.
    floor: u64,
    /// Every write, whatever became of it: its number, and whether it wrote zeros.
    sent: Vec<(u64, bool)>,
}

impl Block {
    /// The write that shows, if it may.
    fn shown(&self, floor: u64, writer: u64, content: Content) -> Option<u64> {
        let mut legal = self.sent.iter().filter(|(seq, _)| *seq >= floor);
        match content {
            Content::Zeros if floor == 0 => Some(0),
            Content::Zeros => legal.find(|(_, zeros)| *zeros).map(|(seq, _)| *seq),
            Content::Written(version) if version.generation.0 == writer + 1 => {
                legal.find(|sent| **sent == (version.seq, false)).map(|(seq, _)| *seq)
            }
            _ => None,
        }
    }
}

impl Load {
    /// Begins, on volume `name`. Any answer but GOOD is a failure until [`set_strict`](Self::set_strict) says otherwise.
    pub(crate) fn start(lunette: &Lunette, name: &str, seed: u64) -> Self {
        Self::over(vec![lunette.portal()], name, seed)
    }

    /// The same over several gateways.
    pub(crate) fn over(portals: Vec<SocketAddr>, name: &str, seed: u64) -> Self {
        let blocks = vec![Block::default(); usize::try_from(EXTENTS).unwrap() * EXTENT_BLOCKS as usize];
        let shared = Arc::new(Shared {
            portals,
            target: iqn(name),
            blocks: blocks.into_iter().map(Mutex::new).collect(),
            stop: AtomicBool::new(false),
            strict: AtomicBool::new(true),
            written: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            stall: Mutex::default(),
            failure: Mutex::new(None),
        });
        let session = |index| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || {
                if let Err(failure) = shared.run(index, &mut Random::new(seed * SESSIONS + index)) {
                    shared.fail(format!("session {index}: {failure}"));
                }
            })
        };
        let sessions = (0..SESSIONS).map(session).collect();
        Self { shared, sessions }
    }

    pub(crate) fn set_strict(&self, strict: bool) {
        self.shared.strict.store(strict, Ordering::SeqCst);
    }

    /// Writes answered GOOD so far.
    pub(crate) fn written(&self) -> u64 {
        self.shared.written.load(Ordering::SeqCst)
    }

    /// Commands answered otherwise so far.
    pub(crate) fn refused(&self) -> u64 {
        self.shared.refused.load(Ordering::SeqCst)
    }

    /// The longest time for which a session was without a path that works, since this was asked last.
    pub(crate) fn take_stall(&self) -> Duration {
        std::mem::take(&mut *self.shared.stall.lock())
    }

    /// Waits until `count` more writes have been answered GOOD that were sent from now on.
    ///
    /// # Panics
    /// If a session has failed, or they do not come.
    pub(crate) fn run(&self, count: u64) {
        // Each session may have one on its way.
        self.until(|load, before| load.written() >= before + count + SESSIONS);
    }

    /// Waits until something was not answered GOOD.
    ///
    /// # Panics
    /// If a session has failed, or everything succeeds.
    pub(crate) fn run_until_refused(&self) {
        let refused = self.refused();
        self.until(|load, _| load.refused() > refused);
    }

    fn until(&self, is_so: impl Fn(&Self, u64) -> bool) {
        let end = Instant::now() + PATIENCE;
        let before = self.written();
        while !is_so(self, before) {
            self.check();
            let (written, refused) = (self.written() - before, self.refused());
            assert!(Instant::now() < end, "only {written} writes were answered GOOD, {refused} commands not");
            std::thread::sleep(Duration::from_millis(2));
        }
        self.check();
    }

    /// # Panics
    /// If a session has failed.
    pub(crate) fn check(&self) {
        if let Some(failure) = &*self.shared.failure.lock() {
            panic!("{failure}");
        }
    }

    /// Ends the sessions, and compares every block with what it may hold.
    ///
    /// # Panics
    /// If a session has failed, or a block holds anything else.
    pub(crate) fn finish(mut self) {
        self.end();
        self.check();
        // Now it is this that looks for a path.
        self.shared.stop.store(false, Ordering::SeqCst);
        let verify = || {
            let mut session = self.shared.open(0)?;
            for extent in 0..EXTENTS {
                for start in (0..EXTENT_BLOCKS).step_by(BLOCKS_MAX as usize) {
                    self.shared.read(&mut session, extent, start..start + BLOCKS_MAX)?;
                }
            }
            Ok(())
        };
        match verify() {
            Ok(()) => {}
            Err(Trouble::Path) => panic!("a path broke at the end"),
            Err(Trouble::Wrong(failure)) => panic!("at the end: {failure}"),
        }
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for session in self.sessions.drain(..) {
            if session.join().is_err() {
                self.shared.fail("a session has panicked".to_owned());
            }
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn fail(&self, failure: String) {
        self.stop.store(true, Ordering::SeqCst);
        self.failure.lock().get_or_insert(failure);
    }

    fn has_other_paths(&self) -> bool {
        self.portals.len() > 1
    }

    fn broken(&self, what: &str, error: impl std::fmt::Display) -> Trouble {
        if self.has_other_paths() { Trouble::Path } else { Trouble::Wrong(format!("{what}: {error}")) }
    }

    /// A session whose path works: over the portal `at` or the next that does.
    fn open(&self, at: usize) -> Result<Session, Trouble> {
        let begun = Instant::now();
        let mut paths = (0..self.portals.len()).cycle().skip(at % self.portals.len());
        let mut last = String::new();
        while begun.elapsed() < PATIENCE && !(self.has_other_paths() && self.stop.load(Ordering::SeqCst)) {
            let at = paths.next().expect("a cycle does not end");
            match self.login(self.portals[at]) {
                Ok(Some(initiator)) => {
                    let mut stall = self.stall.lock();
                    *stall = begun.elapsed().max(*stall);
                    return Ok(Session { initiator, at });
                }
                // It is another gateway's.
                Ok(None) => {}
                Err(error) if self.has_other_paths() => last = error.to_string(),
                Err(error) => return Err(Trouble::Wrong(error.to_string())),
            }
            std::thread::sleep(PAUSE);
        }
        if begun.elapsed() < PATIENCE {
            Err(Trouble::Path)
        } else {
            Err(Trouble::Wrong(format!("no path: {last}")))
        }
    }

    fn login(&self, portal: SocketAddr) -> Result<Option<Initiator>, LoginError> {
        if !self.has_other_paths() {
            let mut session = Initiator::login(portal, &self.target)?;
            session.ready()?;
            return Ok(Some(session));
        }
        let mut session = Initiator::login_within(portal, &self.target, SILENCE)?;
        loop {
            let answer = session.scsi(&[0; 6], Transfer::None)?;
            match answer.sense_code() {
                _ if answer.status == 0 => return Ok(Some(session)),
                // Unit attentions are told one by one.
                Some((0x06, ..)) => {}
                _ => return Ok(None),
            }
        }
    }

    fn run(&self, index: u64, random: &mut Random) -> Result<(), String> {
        // Not all of them over the same.
        let mut at = index as usize;
        let mut seq = 0;
        while !self.stop.load(Ordering::SeqCst) {
            let done = self.open(at).and_then(|mut session| {
                at = session.at;
                self.use_session(&mut session, index, &mut seq, random)
            });
            match done {
                Ok(()) => {}
                // Over the next one.
                Err(Trouble::Path) => at += 1,
                Err(Trouble::Wrong(what)) => return Err(what),
            }
        }
        Ok(())
    }

    fn use_session(
        &self,
        session: &mut Session,
        index: u64,
        seq: &mut u64,
        random: &mut Random,
    ) -> Result<(), Trouble> {
        while !self.stop.load(Ordering::SeqCst) {
            // Every other command goes to one extent.
            let extent = if random.one_in(2) { 0 } else { random.below(EXTENTS) };
            let count = if random.one_in(8) { BLOCKS_MAX } else { 1 + random.below(4) as u32 };
            let mut start = |blocks: u32| random.below(u64::from(blocks - count + 1)) as u32;
            let all = start(EXTENT_BLOCKS);
            let own = index as u32 * SHARE + start(SHARE);
            match random.below(8) {
                0..3 => self.read(session, extent, all..all + count)?,
                kind => {
                    *seq += 1;
                    let version = Version { generation: Generation(index + 1), seq: *seq };
                    self.write(session, extent, own..own + count, version, kind == 7)?;
                }
            }
        }
        Ok(())
    }

    fn block(&self, extent: u64, block: u32) -> &Mutex<Block> {
        &self.blocks[extent as usize * EXTENT_BLOCKS as usize + block as usize]
    }

    /// Whether the answer is GOOD.
    fn is_good(&self, what: &str, answer: &Answer) -> Result<bool, Trouble> {
        if answer.status == 0 {
            return Ok(true);
        }
        if self.has_other_paths() {
            match answer.sense_code() {
                // ASYMMETRIC ACCESS STATE CHANGED, and whatever else is to be known: the next command is taken.
                Some((0x06, ..)) => return Ok(false),
                // LOGICAL UNIT NOT ACCESSIBLE: in transition, standby, unavailable.
                Some((0x02, 0x04, 0x0a..=0x0c)) => return Err(Trouble::Path),
                _ => {}
            }
        }
        if self.strict.load(Ordering::SeqCst) {
            return Err(Trouble::Wrong(format!(
                "{what} was answered with status {:02x}h, sense {:02x?}",
                answer.status,
                answer.sense_code()
            )));
        }
        self.refused.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(PAUSE);
        Ok(false)
    }

    fn write(
        &self,
        Session { initiator: session, .. }: &mut Session,
        extent: u64,
        blocks: Range<u32>,
        version: Version,
        zeros: bool,
    ) -> Result<(), Trouble> {
        blocks.clone().for_each(|block| self.block(extent, block).lock().sent.push((version.seq, zeros)));
        let lba = lba(extent, blocks.start);
        let answer = if zeros {
            session.scsi(&write_same_unmap(lba, blocks.len() as u64), Transfer::Out(&[0; 512]))
        } else {
            let mut data = Vec::with_capacity(blocks.len() * BLOCK);
            blocks.clone().for_each(|block| stamp::write(place(extent, block), version, false, &mut data));
            session.write(lba, &data)
        };
        let what = format!("a write to blocks {blocks:?} of extent {extent}");
        let answer = answer.map_err(|error| self.broken(&what, error))?;
        if self.is_good(&what, &answer)? {
            for block in blocks {
                self.block(extent, block).lock().floor = version.seq;
            }
            self.written.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }

    fn read(&self, session: &mut Session, extent: u64, blocks: Range<u32>) -> Result<(), Trouble> {
        let floors: Vec<u64> = blocks.clone().map(|block| self.block(extent, block).lock().floor).collect();
        let what = format!("a read of blocks {blocks:?} of extent {extent}");
        let sectors = blocks.len() as u64 * SECTORS_PER_BLOCK;
        let answer = session.initiator.read(lba(extent, blocks.start), sectors as u32);
        let answer = answer.map_err(|error| self.broken(&what, error))?;
        if !self.is_good(&what, &answer)? {
            return Ok(());
        }
        if answer.data.len() != blocks.len() * BLOCK {
            return Err(Trouble::Wrong(format!("{what} brought {} bytes", answer.data.len())));
        }
        for ((number, floor), bytes) in blocks.zip(floors).zip(answer.data.chunks(BLOCK)) {
            let place = place(extent, number);
            let content = stamp::read(place, bytes);
            let mut block = self.block(extent, number).lock();
            let Some(seq) = block.shown(floor, u64::from(number / SHARE), content) else {
                let sent: Vec<_> = block.sent.iter().rev().take(8).collect();
                return Err(Trouble::Wrong(format!(
                    "{place} holds {content:?}, nothing older than {floor} may show: {sent:?}"
                )));
            };
            block.floor = block.floor.max(seq);
        }
        Ok(())
    }
}

fn place(extent: u64, block: u32) -> Place {
    Place { extent: ExtentId { namespace: Namespace(1), index: extent }, block }
}

fn lba(extent: u64, block: u32) -> u64 {
    (extent * u64::from(EXTENT_BLOCKS) + u64::from(block)) * SECTORS_PER_BLOCK
}

/// WRITE SAME (16) with UNMAP (SBC-3, 5.51).
fn write_same_unmap(lba: u64, blocks: u64) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = 0x93;
    cdb[1] = 0x08;
    cdb[2..10].copy_from_slice(&lba.to_be_bytes());
    cdb[10..14].copy_from_slice(&((blocks * SECTORS_PER_BLOCK) as u32).to_be_bytes());
    cdb
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards the verdict: what was acknowledged shows from then on, what was not may show.
    #[test]
    fn verdicts() {
        let block = Block { floor: 2, sent: vec![(1, false), (2, false), (3, true), (4, false)] };
        let written = |seq| Content::Written(Version { generation: Generation(6), seq });
        assert_eq!(block.shown(2, 5, written(2)), Some(2));
        assert_eq!(block.shown(2, 5, written(4)), Some(4));
        assert_eq!(block.shown(2, 5, Content::Zeros), Some(3));
        assert_eq!(block.shown(2, 5, written(1)), None, "older");
        assert_eq!(block.shown(2, 5, written(3)), None, "it wrote zeros");
        assert_eq!(block.shown(2, 5, written(5)), None, "never sent");
        assert_eq!(block.shown(2, 4, written(2)), None, "another session's");
        assert_eq!(block.shown(4, 5, Content::Zeros), None, "older");
        assert_eq!(Block::default().shown(0, 5, Content::Zeros), Some(0), "what is there first");
        assert_eq!(block.shown(2, 5, Content::Torn(Version { generation: Generation(6), seq: 2 })), None);
    }
}

//! A medium in memory that loses, tears and spoils what it is told to.
//!
//! It keeps what is durable and, in order, the writes that no sync has covered yet. A loss of power leaves any of
//! those, in order, each whole or torn at sectors ([`Moment::image`]). Images are copy-on-write: one costs
//! a few microseconds.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use lunette_proto::checksum::crc32c;
use parking_lot::Mutex;

use super::rng::Rng;
use crate::store::disk::{Disk, SECTOR_BYTES};

const PAGE: usize = 4096;
const SECTOR: usize = SECTOR_BYTES as usize;

type Page = Arc<[u8; PAGE]>;

/// The content of a medium.
#[derive(Clone)]
pub(super) struct Image {
    base: Arc<Vec<u8>>,
    pages: Box<[Option<Page>]>,
}

impl Image {
    pub(super) fn of(bytes: Vec<u8>) -> Self {
        assert!(bytes.len().is_multiple_of(PAGE));
        let pages = vec![None; bytes.len() / PAGE].into_boxed_slice();
        Self { base: Arc::new(bytes), pages }
    }

    /// Old garbage, as a disk that was in use before has it.
    pub(super) fn used(size_bytes: u64) -> Self {
        Self::of(vec![0xA5; usize::try_from(size_bytes).unwrap()])
    }

    pub(super) fn len(&self) -> u64 {
        self.base.len() as u64
    }

    /// The same content, cheaper to clone.
    pub(super) fn flat(&self) -> Self {
        let mut bytes = vec![0; self.base.len()];
        self.read(0, &mut bytes);
        Self::of(bytes)
    }

    pub(super) fn read(&self, offset: u64, out: &mut [u8]) {
        let mut at = usize::try_from(offset).unwrap();
        let mut out = out;
        while !out.is_empty() {
            let within = at % PAGE;
            let len = out.len().min(PAGE - within);
            let (head, rest) = out.split_at_mut(len);
            match &self.pages[at / PAGE] {
                Some(page) => head.copy_from_slice(&page[within..within + len]),
                None => head.copy_from_slice(&self.base[at..at + len]),
            }
            at += len;
            out = rest;
        }
    }

    pub(super) fn bytes(&self, range: Range<u64>) -> Vec<u8> {
        let mut out = vec![0; usize::try_from(range.end - range.start).unwrap()];
        self.read(range.start, &mut out);
        out
    }

    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut at = usize::try_from(offset).unwrap();
        let mut bytes = bytes;
        while !bytes.is_empty() {
            let within = at % PAGE;
            let len = bytes.len().min(PAGE - within);
            let (head, rest) = bytes.split_at(len);
            self.page(at / PAGE)[within..within + len].copy_from_slice(head);
            at += len;
            bytes = rest;
        }
    }

    pub(super) fn flip(&mut self, offset: u64, bit: u8) {
        let at = usize::try_from(offset).unwrap();
        self.page(at / PAGE)[at % PAGE] ^= 1 << (bit % 8);
    }

    fn page(&mut self, index: usize) -> &mut [u8; PAGE] {
        let base = &self.base[index * PAGE..(index + 1) * PAGE];
        let page = self.pages[index].get_or_insert_with(|| Arc::new(base.try_into().unwrap()));
        Arc::make_mut(page)
    }

    fn apply(&mut self, write: &Write) {
        for span in &write.spans {
            match span {
                Span::Page(index, page) => self.pages[*index] = Some(page.clone()),
                Span::Part(offset, bytes) => self.write(*offset, bytes),
            }
        }
    }
}

/// A write that no sync has covered.
pub(super) struct Write {
    pub(super) offset: u64,
    pub(super) bytes: Bytes,
    /// It is durable, and here only because older writes in this list must not come after it.
    settled: bool,
    spans: Vec<Span>,
}

enum Span {
    Page(usize, Page),
    Part(u64, Bytes),
}

impl Write {
    fn new(offset: u64, bytes: Bytes, settled: bool) -> Self {
        let mut spans = Vec::new();
        let mut rest = bytes.clone();
        let mut at = offset;
        while !rest.is_empty() {
            let within = usize::try_from(at % PAGE as u64).unwrap();
            let len = rest.len().min(PAGE - within);
            let head = rest.split_to(len);
            if len == PAGE {
                let page: Page = Arc::new(head[..].try_into().unwrap());
                spans.push(Span::Page(usize::try_from(at / PAGE as u64).unwrap(), page));
            } else {
                spans.push(Span::Part(at, head));
            }
            at += len as u64;
        }
        Self { offset, bytes, settled, spans }
    }

    pub(super) fn end(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }

    fn overlaps(&self, offset: u64, end: u64) -> bool {
        self.offset < end && offset < self.end()
    }
}

/// What a loss of power does to the writes that no sync has covered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    /// Which are kept: those of these bits, or drawn from this seed.
    pub(super) kept: Kept,
    /// 0: kept ones are whole; else a seed by which some are torn.
    pub(super) torn: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    Bits(u64),
    Seed(u64),
}

/// A moment at which the power may fail.
#[derive(Clone)]
pub(super) struct Moment {
    pub(super) durable: Image,
    pub(super) pending: Vec<Arc<Write>>,
}

impl Moment {
    /// Writes that may be there or not.
    pub(super) fn open(&self) -> usize {
        self.pending.iter().filter(|write| !write.settled).count()
    }

    /// What is on the medium when the power is back.
    pub(super) fn image(&self, cut: Cut) -> Image {
        let mut image = self.durable.clone();
        let mut bits = match cut.kept {
            Kept::Bits(bits) => bits,
            Kept::Seed(_) => 0,
        };
        let mut drawn = Rng::new(match cut.kept {
            Kept::Seed(seed) => seed,
            Kept::Bits(bits) => bits,
        });
        // All, none, or any share of them.
        let share = drawn.below(9) * 125;
        let mut tear = Rng::new(cut.torn);
        for write in &self.pending {
            if write.settled {
                image.apply(write);
                continue;
            }
            let is_kept = match cut.kept {
                Kept::Bits(_) => bits & 1 == 1,
                Kept::Seed(_) => drawn.chance(share),
            };
            bits >>= 1;
            if !is_kept {
                continue;
            }
            if cut.torn == 0 || tear.chance(400) {
                image.apply(write);
            } else {
                apply_torn(&mut image, write, &mut tear);
            }
        }
        image
    }
}

fn apply_torn(image: &mut Image, write: &Write, rng: &mut Rng) {
    let sectors = write.bytes.len() / SECTOR;
    let border = rng.below(sectors as u64 + 1) as usize;
    let kind = rng.below(4);
    for sector in 0..sectors {
        let stored = match kind {
            0 => sector < border,
            1 => sector >= border,
            2 => rng.chance(500),
            // All but one.
            _ => sector != border,
        };
        if stored {
            let at = sector * SECTOR;
            image.write(write.offset + at as u64, &write.bytes[at..at + SECTOR]);
        }
    }
}

/// What goes wrong, with calls that touch a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FaultKind {
    /// Says that it was written, and it was not.
    LostWrite,
    /// Goes to this offset less or more instead.
    Misdirected(i64),
    /// Cannot read.
    ReadError,
    /// Cannot write.
    WriteError,
    /// Cannot sync, once: what was to be synced is lost, and the next sync says nothing of it.
    SyncError,
    /// No room.
    NoSpace,
}

#[derive(Clone, Debug)]
pub(super) struct Fault {
    pub(super) kind: FaultKind,
    pub(super) range: Range<u64>,
    /// Calls that it lets pass before, and how many it then meets.
    pub(super) skip: u32,
    pub(super) times: u32,
    /// How often it has struck.
    pub(super) hits: u32,
}

struct State {
    /// What reads see.
    current: Image,
    durable: Image,
    pending: Vec<Arc<Write>>,
    /// Writes before the first pending one.
    covered: usize,
    /// Moments since [`SimDisk::record`].
    moments: Option<Vec<Moment>>,
    faults: Vec<Fault>,
    /// Order and content of everything that was asked.
    trace: u64,
    /// No write is ever lost: nothing is kept for a crash.
    is_plain: bool,
}

impl State {
    fn fault(&mut self, offset: u64, len: u64, of: impl Fn(FaultKind) -> bool) -> Option<FaultKind> {
        let fault = self.faults.iter_mut().find(|fault| {
            of(fault.kind) && fault.times > 0 && fault.range.start < offset + len && offset < fault.range.end
        })?;
        if fault.skip > 0 {
            fault.skip -= 1;
            return None;
        }
        fault.times -= 1;
        fault.hits += 1;
        Some(fault.kind)
    }

    fn trace(&mut self, call: u8, offset: u64, what: u64) {
        for word in [u64::from(call), offset, what] {
            self.trace = (self.trace ^ word).wrapping_mul(0x100_0000_01B3).rotate_left(17);
        }
    }

    fn moment(&mut self) {
        if let Some(moments) = &mut self.moments {
            moments.push(Moment { durable: self.durable.clone(), pending: self.pending.clone() });
        }
    }

    fn put(&mut self, call: u8, offset: u64, bytes: Bytes, is_durable: bool) -> io::Result<()> {
        assert!(offset.is_multiple_of(SECTOR_BYTES), "an unaligned write");
        assert!(bytes.len().is_multiple_of(SECTOR), "an unaligned write");
        assert!(offset + bytes.len() as u64 <= self.current.len(), "a write beyond the end");
        if self.is_plain && self.faults.is_empty() {
            self.current.write(offset, &bytes);
            return Ok(());
        }
        self.trace(call, offset, u64::from(crc32c(&bytes)));
        let of =
            |kind| matches!(kind, FaultKind::LostWrite | FaultKind::Misdirected(_) | FaultKind::WriteError);
        let offset = match self.fault(offset, bytes.len() as u64, of) {
            Some(FaultKind::LostWrite) => return Ok(()),
            Some(FaultKind::Misdirected(by)) => {
                let last = self.current.len() - bytes.len() as u64;
                offset.checked_add_signed(by).unwrap_or(0).min(last)
            }
            Some(_) => return Err(io::Error::other("simulated: cannot write")),
            None => offset,
        };
        let end = offset + bytes.len() as u64;
        let write = Arc::new(Write::new(offset, bytes.clone(), false));
        self.current.apply(&write);
        self.pending.push(write);
        self.moment();
        if is_durable {
            self.pending.pop();
            let write = Arc::new(Write::new(offset, bytes, true));
            if self.pending.iter().any(|older| older.overlaps(offset, end)) {
                self.pending.push(write);
            } else {
                self.durable.apply(&write);
            }
        }
        Ok(())
    }
}

/// The medium.
pub(super) struct SimDisk(Mutex<State>);

impl SimDisk {
    pub(super) fn new(image: Image) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            current: image.clone(),
            durable: image,
            pending: Vec::new(),
            covered: 0,
            moments: None,
            faults: Vec::new(),
            trace: 0,
            is_plain: false,
        })))
    }

    /// One that will not lose power: cheaper.
    pub(super) fn plain(image: Image) -> Arc<Self> {
        let disk = Self::new(image);
        disk.0.lock().is_plain = true;
        disk
    }

    /// From now on, moments at which the power may fail are kept: after each write was begun.
    pub(super) fn record(&self) {
        self.0.lock().moments = Some(Vec::new());
    }

    /// The moments since `record`.
    pub(super) fn recorded(&self) -> Vec<Moment> {
        self.0.lock().moments.take().unwrap_or_default()
    }

    /// This moment.
    pub(super) fn now(&self) -> Moment {
        let state = self.0.lock();
        Moment { durable: state.durable.clone(), pending: state.pending.clone() }
    }

    /// What reads see.
    pub(super) fn current(&self) -> Image {
        self.0.lock().current.clone()
    }

    pub(super) fn inject(&self, fault: Fault) {
        self.0.lock().faults.push(fault);
    }

    /// Ends all faults; how often they have struck.
    pub(super) fn heal(&self) -> u32 {
        self.0.lock().faults.drain(..).map(|fault| fault.hits).sum()
    }

    /// Changes the medium behind everybody's back.
    pub(super) fn spoil(&self, spoil: impl Fn(&mut Image)) {
        let mut state = self.0.lock();
        spoil(&mut state.current);
        spoil(&mut state.durable);
    }

    pub(super) fn trace(&self) -> u64 {
        self.0.lock().trace
    }

    /// Begins a sync: it will cover what was written until now.
    fn sync_begin(&self) -> io::Result<usize> {
        let mut state = self.0.lock();
        state.trace(3, 0, 0);
        let size = state.current.len();
        if state.fault(0, size, |kind| kind == FaultKind::SyncError).is_some() {
            state.covered += state.pending.len();
            state.pending.clear();
            return Err(io::Error::other("simulated: cannot sync"));
        }
        Ok(state.covered + state.pending.len())
    }

    fn sync_end(&self, covered: usize) {
        let mut state = self.0.lock();
        let state = &mut *state;
        // Another sync may have covered some meanwhile.
        let newly = covered.saturating_sub(state.covered);
        for write in state.pending.drain(..newly) {
            state.durable.apply(&write);
        }
        state.covered += newly;
    }
}

impl Disk for SimDisk {
    fn size_bytes(&self) -> u64 {
        self.0.lock().current.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut state = self.0.lock();
        let len = out.len() as u64;
        assert!(offset + len <= state.current.len(), "a read beyond the end");
        if !state.faults.is_empty() && state.fault(offset, len, |kind| kind == FaultKind::ReadError).is_some()
        {
            return Err(io::Error::other("simulated: cannot read"));
        }
        state.current.read(offset, out);
        Ok(())
    }

    fn read_cached(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.read(offset, out)
    }

    fn write(&self, offset: u64, parts: &[Bytes]) -> io::Result<()> {
        self.0.lock().put(1, offset, joined(parts), false)
    }

    fn write_durable(&self, offset: u64, parts: &[Bytes]) -> io::Result<()> {
        self.0.lock().put(2, offset, joined(parts), true)
    }

    fn sync(&self) -> io::Result<()> {
        let covered = self.sync_begin()?;
        self.sync_end(covered);
        Ok(())
    }

    fn reserve(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut state = self.0.lock();
        match state.fault(offset, len, |kind| kind == FaultKind::NoSpace) {
            Some(_) => Err(io::ErrorKind::StorageFull.into()),
            None => Ok(()),
        }
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let zeros = Bytes::from(vec![0; usize::try_from(len).unwrap()]);
        self.0.lock().put(4, offset, zeros, false)
    }
}

fn joined(parts: &[Bytes]) -> Bytes {
    match parts {
        [one] => one.clone(),
        _ => parts.concat().into(),
    }
}

/// The medium as a checkpoint sees it, with something else going on between its calls, and while it syncs.
pub(super) struct Interleaved<'a, F: FnMut() + Send> {
    pub(super) disk: &'a SimDisk,
    pub(super) between: Mutex<F>,
}

impl<F: FnMut() + Send> Disk for Interleaved<'_, F> {
    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.between.lock()();
        self.disk.read(offset, out)
    }
    fn read_cached(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.disk.read_cached(offset, out)
    }
    fn write(&self, offset: u64, parts: &[Bytes]) -> io::Result<()> {
        self.between.lock()();
        self.disk.write(offset, parts)
    }
    fn write_durable(&self, offset: u64, parts: &[Bytes]) -> io::Result<()> {
        self.between.lock()();
        self.disk.write_durable(offset, parts)
    }
    fn sync(&self) -> io::Result<()> {
        self.between.lock()();
        let covered = self.disk.sync_begin()?;
        self.between.lock()();
        self.disk.sync_end(covered);
        Ok(())
    }
    fn reserve(&self, offset: u64, len: u64) -> io::Result<()> {
        self.disk.reserve(offset, len)
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.between.lock()();
        self.disk.discard(offset, len)
    }
}

#[cfg(test)]
mod tests;

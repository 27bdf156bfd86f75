//! A copy in execution.
//!
//! ```text
//! for each segment:  Mapping of the source -> pieces -> for each piece  data: Read -> Write
//!                                                                       hole: Zero
//! ```
//!
//! Holes of the source become holes of the destination, so that a copy is as thin as its original.
//! Within one logical unit source and destination may overlap: pieces are taken from the end that is
//! not overwritten first, so every byte is read before it is written.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use lunette_proto::ids::VolumeId;
use lunette_volume::device::{Command, Data, DeviceError, Outcome};

use super::aborted::{CopyAborted, Refusal, Side};
use super::list::List;
use super::pieces::{PIECE_BYTES, Piece, pieces};
use super::records::{Ending, Entry, Progressed, Records};
use super::resolve::{Place, Span, resolve};
use crate::scsi::read_write::check_len;
use crate::scsi::sense::{Failure, Sense, SenseFormat};
use crate::scsi::task::{Elsewhere, Progress};
use crate::scsi::{Nexus, TargetView};

/// An EXTENDED COPY in execution.
pub(in crate::scsi) struct Copy {
    /// Where the command was sent to.
    own: u16,
    list_len: u32,
    /// Of the sense data that RECEIVE COPY RESULTS shows.
    format: SenseFormat,
    records: Arc<Records>,
    stage: Stage,
}

enum Stage {
    Collecting,
    Parsed(List, Entry),
    Running(Running),
    Ended,
}

struct Running {
    spans: Vec<Span>,
    entry: Entry,
    /// The segment that is being carried out is `progressed.segments`.
    progressed: Progressed,
    /// Pieces of that segment which are left, the next one last.
    pieces: Vec<Piece>,
    doing: Doing,
}

/// What a device has.
#[derive(Clone, Copy)]
enum Doing {
    /// No device has anything: a segment begins.
    Nothing,
    Mapping,
    Reading {
        start: u64,
        len: u32,
    },
    Filling(Piece),
}

impl Copy {
    pub(super) fn new(own: u16, list_len: u32, format: SenseFormat, records: &Arc<Records>) -> Self {
        Self { own, list_len, format, records: Arc::clone(records), stage: Stage::Collecting }
    }

    /// The parameter list has come; what it names is looked up next.
    pub(in crate::scsi) fn data_out(&mut self, list: &[u8]) -> Result<Progress, Failure> {
        let list = List::parse(list, self.list_len)?;
        let entry = self.records.begin(list.usage)?;
        self.stage = Stage::Parsed(list, entry);
        Ok(Progress::Resolve)
    }

    /// Begins, with what the nexus sees now.
    pub(in crate::scsi) fn resolve(
        &mut self,
        view: &TargetView,
        nexus: &mut Nexus,
    ) -> Result<Progress, Failure> {
        let Stage::Parsed(list, entry) = std::mem::replace(&mut self.stage, Stage::Ended) else {
            return Err(Sense::INTERNAL_FAILURE.into());
        };
        let spans = match resolve(&list, view, nexus, self.own) {
            Ok(spans) => spans,
            Err(failure) => return Err(self.end(entry, failure)),
        };
        let running = Running {
            spans,
            entry,
            progressed: Progressed::default(),
            pieces: Vec::new(),
            doing: Doing::Nothing,
        };
        Ok(self.go_on(running))
    }

    /// What came of the command that a device had.
    pub(in crate::scsi) fn completed(&mut self, outcome: Outcome) -> Result<Progress, Failure> {
        let Stage::Running(mut running) = std::mem::replace(&mut self.stage, Stage::Ended) else {
            return Err(Sense::INTERNAL_FAILURE.into());
        };
        match outcome.map_err(|error| running.failure(&error)).and_then(|data| running.completed(data)) {
            Ok(Some(next)) => {
                self.stage = Stage::Running(running);
                Ok(Progress::Elsewhere(next))
            }
            Ok(None) => Ok(self.go_on(running)),
            Err(failure) => Err(self.end(running.entry, failure)),
        }
    }

    /// A logical unit that is copied from or to was reset, or its task set cleared.
    pub(in crate::scsi) fn cleared(&mut self, volumes: &[VolumeId]) -> Failure {
        let Stage::Running(running) = std::mem::replace(&mut self.stage, Stage::Ended) else {
            return Sense::INTERNAL_FAILURE.into();
        };
        let writes_there = running.spans.iter().any(|span| volumes.contains(&span.destination.unit.volume));
        let side = if writes_there { Side::Destination } else { Side::Source };
        let aborted = CopyAborted::refused(running.progressed.segments, side, Refusal::Cleared);
        self.end(running.entry, Failure::Copy(aborted))
    }

    /// Whether one of the volumes is copied from or to.
    pub(in crate::scsi) fn works_on(&self, volumes: &[VolumeId]) -> bool {
        let Stage::Running(running) = &self.stage else { return false };
        running.spans.iter().any(|span| {
            [&span.source, &span.destination].iter().any(|place| volumes.contains(&place.unit.volume))
        })
    }

    fn go_on(&mut self, mut running: Running) -> Progress {
        match running.next() {
            Some(next) => {
                self.stage = Stage::Running(running);
                Progress::Elsewhere(next)
            }
            None => {
                running.entry.end(Ending::Good);
                Progress::Done(Data::new(), self.list_len.into())
            }
        }
    }

    /// What has begun is remembered as failed; what has not, is not.
    fn end(&self, entry: Entry, failure: Failure) -> Failure {
        if let Failure::Copy(aborted) = failure {
            entry.end(Ending::Aborted(aborted.encode(self.format)));
        }
        failure
    }
}

impl Running {
    /// The next command that does not follow from the one before; `None`: the copy is complete.
    fn next(&mut self) -> Option<Elsewhere> {
        loop {
            let span = self.spans.get(usize::from(self.progressed.segments))?;
            match self.pieces.pop() {
                Some(Piece::Data { start, len }) => {
                    self.doing = Doing::Reading { start, len };
                    let offset = span.source.offset + start;
                    return Some(at(&span.source, Command::Read { offset, len }));
                }
                Some(piece @ Piece::Hole { start, len }) => {
                    self.doing = Doing::Filling(piece);
                    let offset = span.destination.offset + start;
                    return Some(at(&span.destination, Command::Zero { offset, len }));
                }
                None if matches!(self.doing, Doing::Nothing) && !span.moves_nothing() => {
                    self.doing = Doing::Mapping;
                    let (offset, len) = (span.source.offset, span.len);
                    return Some(at(&span.source, Command::Mapping { offset, len }));
                }
                None => {
                    self.doing = Doing::Nothing;
                    self.progressed.segments += 1;
                    self.entry.progress(self.progressed);
                }
            }
        }
    }

    /// Takes what a device gave; gives the command that follows from it, if one does.
    fn completed(&mut self, data: Data) -> Result<Option<Elsewhere>, Failure> {
        let Some(span) = self.spans.get(usize::from(self.progressed.segments)) else {
            return Err(Sense::INTERNAL_FAILURE.into());
        };
        match self.doing {
            Doing::Mapping => {
                self.pieces = pieces(&join(data), span).ok_or(Sense::INTERNAL_FAILURE)?;
            }
            Doing::Reading { start, len } => {
                check_len(&data, len)?;
                self.doing = Doing::Filling(Piece::Data { start, len });
                let offset = span.destination.offset + start;
                let write = Command::Write { offset, data: join(data), fua: false };
                return Ok(Some(at(&span.destination, write)));
            }
            Doing::Filling(piece) => {
                self.progressed.bytes += piece.len();
                self.entry.progress(self.progressed);
            }
            Doing::Nothing => return Err(Sense::INTERNAL_FAILURE.into()),
        }
        Ok(None)
    }

    fn failure(&self, error: &DeviceError) -> Failure {
        let segment = self.progressed.segments;
        let Some(span) = self.spans.get(usize::from(segment)) else {
            return Sense::INTERNAL_FAILURE.into();
        };
        let (side, place) = match self.doing {
            Doing::Nothing | Doing::Mapping | Doing::Reading { .. } => (Side::Source, &span.source),
            Doing::Filling(_) => (Side::Destination, &span.destination),
        };
        let aborted = match Failure::of_device(error, place.unit.block_bytes) {
            _ if *error == DeviceError::Gone => CopyAborted::unreachable(segment, side),
            Failure::Busy if self.progressed == Progressed::default() => return Failure::Busy,
            Failure::Check(sense) => CopyAborted::refused(segment, side, Refusal::Check(sense)),
            Failure::Busy => CopyAborted::refused(segment, side, Refusal::Busy),
            failure @ (Failure::Conflict | Failure::Copy(_)) => return failure,
        };
        Failure::Copy(aborted)
    }
}

fn at(place: &Place, command: Command) -> Elsewhere {
    Elsewhere { lun: place.lun, unit: Arc::clone(&place.unit), command, memory_bytes: PIECE_BYTES.into() }
}

/// One slice; copied only if it was several.
fn join(mut data: Data) -> Bytes {
    if data.len() == 1 {
        return data.pop().unwrap_or_default();
    }
    let mut joined = BytesMut::with_capacity(data.iter().map(Bytes::len).sum());
    data.iter().for_each(|slice| joined.extend_from_slice(slice));
    joined.freeze()
}

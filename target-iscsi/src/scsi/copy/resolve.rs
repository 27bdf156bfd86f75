//! From descriptors to logical units: what a nexus may copy, and where to.

use std::sync::Arc;

use super::SEGMENT_DATA_BYTES_MAX;
use super::aborted::{CopyAborted, DESTINATION_LBA, NUMBER_OF_BLOCKS, Refusal, SOURCE_LBA, Side};
use super::list::{BLOCK_LENGTH, List, Segment, Target};
use crate::scsi::inquiry::BLOCK_DEVICE;
use crate::scsi::reservation::Access;
use crate::scsi::sense::{Failure, Sense};
use crate::scsi::unit::Modes;
use crate::scsi::vpd::unit_naa;
use crate::scsi::{LogicalUnit, Nexus, TargetView};

/// CSCD descriptor ID of the logical unit that the command was sent to (SPC-4 6.4.5.1).
pub(super) const ITSELF: u16 = 0xFFFF;

/// One segment that may be carried out.
#[derive(Clone)]
pub(super) struct Span {
    pub(super) source: Place,
    pub(super) destination: Place,
    /// Bytes, whole blocks of both.
    pub(super) len: u64,
}

/// A place on a logical unit.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) lun: u16,
    pub(super) unit: Arc<LogicalUnit>,
    /// First byte.
    pub(super) offset: u64,
}

/// What a CSCD descriptor turned out to describe.
enum Found {
    Unit(u16, Arc<LogicalUnit>),
    /// Nothing, on purpose.
    Null,
    /// A device that is no block device.
    OtherType,
    /// Nothing that this nexus sees.
    Nothing,
}

/// Looks up and checks everything, in the order of the segments. `own`: where the command was sent to.
pub(super) fn resolve(
    list: &List,
    view: &TargetView,
    nexus: &mut Nexus,
    own: u16,
) -> Result<Vec<Span>, Failure> {
    let found = list.targets.iter().map(|target| find(target, view)).collect::<Result<Vec<_>, Sense>>()?;
    let mut spans = Vec::with_capacity(list.segments.len());
    for (index, segment) in (0u16..).zip(&list.segments) {
        let span = span(segment, index, &found, view, nexus, own).map_err(Failure::Copy)?;
        spans.push(span);
    }
    Ok(spans)
}

/// A logical unit under several LUNs is meant where it can be written.
fn find(target: &Target, view: &TargetView) -> Result<Found, Sense> {
    if target.null {
        return Ok(Found::Null);
    }
    if target.device_type != BLOCK_DEVICE {
        return Ok(Found::OtherType);
    }
    let Some(naa) = target.naa else { return Ok(Found::Nothing) };
    let named = view.luns.iter().filter(|(_, unit)| unit_naa(unit) == naa);
    let Some((lun, unit)) = named.min_by_key(|(_, unit)| unit.read_only) else {
        return Ok(Found::Nothing);
    };
    if target.block_bytes != unit.block_bytes {
        return Err(Sense::parameter_field(target.at + BLOCK_LENGTH));
    }
    Ok(Found::Unit(*lun, Arc::clone(unit)))
}

fn span(
    segment: &Segment,
    index: u16,
    found: &[Found],
    view: &TargetView,
    nexus: &mut Nexus,
    own: u16,
) -> Result<Span, CopyAborted> {
    let unit = |id: u16, side: Side| match (found.get(usize::from(id)), id) {
        (Some(Found::Unit(lun, unit)), _) => Ok((*lun, Arc::clone(unit))),
        (Some(Found::Null | Found::Nothing), _) => Err(CopyAborted::unreachable(index, side)),
        (Some(Found::OtherType), _) => Err(CopyAborted::device_type(index, side)),
        (None, ITSELF) => match view.luns.get(&own) {
            Some(unit) => Ok((own, Arc::clone(unit))),
            None => Err(CopyAborted::unreachable(index, side)),
        },
        (None, _) => Err(CopyAborted::undescribed(index, side)),
    };
    let (source_lun, source) = unit(segment.source, Side::Source)?;
    let (destination_lun, destination) = unit(segment.destination, Side::Destination)?;
    let counted = if segment.counts_destination { &destination } else { &source };
    let len = u64::from(segment.blocks) * u64::from(counted.block_bytes);
    if len > SEGMENT_DATA_BYTES_MAX.into() {
        return Err(CopyAborted::field(index, NUMBER_OF_BLOCKS));
    }
    let offset = |unit: &LogicalUnit, lba: u64, field: u16| {
        let block_bytes = u64::from(unit.block_bytes.max(1));
        if !len.is_multiple_of(block_bytes) {
            return Err(CopyAborted::inexact(index));
        }
        let range = unit.range(lba, len / block_bytes);
        range.map(|range| range.offset).map_err(|_| CopyAborted::field(index, field))
    };
    let span = Span {
        source: Place {
            lun: source_lun,
            offset: offset(&source, segment.source_lba, SOURCE_LBA)?,
            unit: source,
        },
        destination: Place {
            lun: destination_lun,
            offset: offset(&destination, segment.destination_lba, DESTINATION_LBA)?,
            unit: destination,
        },
        len,
    };
    for (place, side) in [(&span.source, Side::Source), (&span.destination, Side::Destination)] {
        if let Some(refusal) = refusal(place, side, nexus) {
            return Err(CopyAborted::refused(index, side, refusal));
        }
    }
    Ok(span)
}

/// How a logical unit would answer the READ or WRITE that a copy is to it, if it would not carry it out.
fn refusal(place: &Place, side: Side, nexus: &Nexus) -> Option<Refusal> {
    let writes = side == Side::Destination;
    let access = if writes { Access::Write } else { Access::Read };
    if !place.unit.shared.allows(nexus.id(), access) {
        return Some(Refusal::Reserved);
    }
    if let Some(sense) = place.unit.shared.sanitize_sense() {
        return Some(Refusal::Check(sense));
    }
    if writes && place.unit.read_only {
        return Some(Refusal::Check(Sense::WRITE_PROTECTED));
    }
    if writes && place.unit.shared.modes.load() & Modes::SWP != 0 {
        return Some(Refusal::Check(Sense::SOFTWARE_WRITE_PROTECTED));
    }
    None
}

//! The parameter list of EXTENDED COPY(LID1) (SPC-4 6.4.3 to 6.4.6).
//!
//! ```text
//! 0      LIST IDENTIFIER
//! 1      bit 5 STR, bits 4..3 LIST ID USAGE, bits 2..0 PRIORITY
//! 2..4   CSCD DESCRIPTOR LIST LENGTH
//! 8..12  SEGMENT DESCRIPTOR LIST LENGTH
//! 12..16 INLINE DATA LENGTH, 0 here
//! 16..   CSCD (target) descriptors, then segment descriptors
//!
//! identification descriptor CSCD descriptor, 32 bytes     block to block segment descriptor, 28 bytes
//! 0      E4h                                              0      02h
//! 1      bit 5 NUL (of SPC-3),                            1      bit 1 DC, bit 0 CAT
//!        bits 4..0 PERIPHERAL DEVICE TYPE                 2..4   DESCRIPTOR LENGTH, 0018h
//! 2..4   RELATIVE INITIATOR PORT IDENTIFIER               4..6   source CSCD descriptor
//! 4      bits 3..0 CODE SET                               6..8   destination CSCD descriptor
//! 5      bits 5..4 ASSOCIATION, bits 3..0 type            10..12 NUMBER OF BLOCKS
//! 7      DESIGNATOR LENGTH                                12..20 source LBA
//! 8..28  DESIGNATOR                                       20..28 destination LBA
//! 28     bit 2 PAD
//! 29..32 DISK BLOCK LENGTH
//! ```
//!
//! STR and PRIORITY are hints about speed and are ignored, and so are the initiator port, for no port
//! is passed through, and LU ID TYPE, for a designator says which logical unit. PAD and CAT say what to
//! do with a rest of a block; such segments are refused.

use smallvec::SmallVec;

use super::records::Usage;
use super::{DESCRIPTORS_BYTES_MAX, SEGMENTS_MAX, TARGETS_MAX};
use crate::scsi::request::{be16, be32, be64};
use crate::scsi::sense::Sense;

pub(super) const HEADER_BYTES: usize = 16;
pub(super) const TARGET_BYTES: usize = 32;
pub(super) const SEGMENT_BYTES: usize = 28;
/// Identification descriptor CSCD descriptor.
pub(super) const IDENTIFICATION: u8 = 0xE4;
/// Block device to block device segment descriptor.
pub(super) const BLOCK_TO_BLOCK: u8 = 0x02;

/// Byte of a CSCD descriptor.
pub(super) const BLOCK_LENGTH: u16 = 29;

/// What is to be copied, as the initiator says it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct List {
    pub(super) usage: Usage,
    pub(super) targets: SmallVec<[Target; 2]>,
    pub(super) segments: SmallVec<[Segment; 1]>,
}

/// A copy source or destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// Where its descriptor is in the list.
    pub(super) at: u16,
    /// NUL: there is no such device.
    pub(super) null: bool,
    pub(super) device_type: u8,
    /// The NAA designator of a logical unit. `None`: one of another kind, which cannot be looked up.
    pub(super) naa: Option<[u8; 16]>,
    pub(super) block_bytes: u32,
}

/// A block to block copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) source: u16,
    pub(super) destination: u16,
    /// DC: `blocks` are those of the destination.
    pub(super) counts_destination: bool,
    pub(super) blocks: u16,
    pub(super) source_lba: u64,
    pub(super) destination_lba: u64,
}

impl List {
    /// Parses a list of which the CDB promised `len` bytes. Nothing has been looked up yet.
    pub(super) fn parse(bytes: &[u8], len: u32) -> Result<Self, Sense> {
        if bytes.len() < HEADER_BYTES || bytes.len() < len as usize {
            return Err(Sense::PARAMETER_LIST_LENGTH);
        }
        let usage = usage(bytes)?;
        let (Some(targets_len), Some(segments_len), Some(inline_len)) =
            (be16(bytes, 2), be32(bytes, 8), be32(bytes, 12))
        else {
            return Err(Sense::PARAMETER_LIST_LENGTH);
        };
        if inline_len != 0 {
            return Err(Sense::INLINE_DATA_LENGTH.at_parameter(12));
        }
        let (targets_len, segments_len) = (usize::from(targets_len), segments_len as usize);
        let descriptors = &bytes[HEADER_BYTES..];
        let descriptors_len = targets_len.saturating_add(segments_len);
        if descriptors_len > DESCRIPTORS_BYTES_MAX || descriptors_len > descriptors.len() {
            return Err(Sense::PARAMETER_LIST_LENGTH);
        }
        let (targets, rest) = descriptors.split_at(targets_len);
        let segments = &rest[..segments_len];
        Ok(Self {
            usage,
            targets: parse_targets(targets)?,
            segments: parse_segments(segments, HEADER_BYTES + targets_len)?,
        })
    }
}

/// LIST ID USAGE with LIST IDENTIFIER.
fn usage(bytes: &[u8]) -> Result<Usage, Sense> {
    let &[id, flags, ..] = bytes else { return Err(Sense::PARAMETER_LIST_LENGTH) };
    match flags >> 3 & 0b11 {
        0b00 => Ok(Usage::Held(id)),
        0b10 => Ok(Usage::Discarded(id)),
        0b11 if id == 0 => Ok(Usage::Unlisted),
        0b11 => Err(Sense::parameter_field(0)),
        _ => Err(Sense::parameter_bit(1, 4)),
    }
}

fn parse_targets(bytes: &[u8]) -> Result<SmallVec<[Target; 2]>, Sense> {
    const CSCD_DESCRIPTOR_LIST_LENGTH: u16 = 2;
    if bytes.len() > TARGETS_MAX * TARGET_BYTES {
        return Err(Sense::TOO_MANY_TARGETS.at_parameter(CSCD_DESCRIPTOR_LIST_LENGTH));
    }
    let descriptors = bytes.chunks_exact(TARGET_BYTES);
    if !descriptors.remainder().is_empty() {
        return Err(Sense::parameter_field(CSCD_DESCRIPTOR_LIST_LENGTH));
    }
    descriptors
        .enumerate()
        .map(|(index, descriptor)| parse_target(descriptor, position(HEADER_BYTES + index * TARGET_BYTES)))
        .collect()
}

fn parse_target(descriptor: &[u8], at: u16) -> Result<Target, Sense> {
    let Some(descriptor) = descriptor.first_chunk::<TARGET_BYTES>() else {
        return Err(Sense::PARAMETER_LIST_LENGTH);
    };
    if descriptor[0] != IDENTIFICATION {
        return Err(Sense::UNSUPPORTED_TARGET_TYPE.at_parameter(at));
    }
    if descriptor[7] > 20 {
        return Err(Sense::parameter_field(at + 7));
    }
    // Binary, of the logical unit, NAA, 16 bytes: the one name of ours that a descriptor has room for.
    let is_naa = (descriptor[4] & 0x0F, descriptor[5] & 0x3F, descriptor[7]) == (1, 0x03, 16);
    Ok(Target {
        at,
        null: descriptor[1] & 0x20 != 0,
        device_type: descriptor[1] & 0x1F,
        naa: descriptor[8..].first_chunk().filter(|_| is_naa).copied(),
        block_bytes: u32::from_be_bytes([0, descriptor[29], descriptor[30], descriptor[31]]),
    })
}

fn parse_segments(mut bytes: &[u8], mut at: usize) -> Result<SmallVec<[Segment; 1]>, Sense> {
    const SEGMENT_DESCRIPTOR_LIST_LENGTH: u16 = 8;
    const DESCRIPTOR_LENGTH: u16 = SEGMENT_BYTES as u16 - 4;
    let mut segments = SmallVec::new();
    while let Some(&kind) = bytes.first() {
        if segments.len() == SEGMENTS_MAX {
            return Err(Sense::TOO_MANY_SEGMENTS.at_parameter(SEGMENT_DESCRIPTOR_LIST_LENGTH));
        }
        if kind != BLOCK_TO_BLOCK {
            return Err(Sense::UNSUPPORTED_SEGMENT_TYPE.at_parameter(position(at)));
        }
        if be16(bytes, 2).is_some_and(|len| len != DESCRIPTOR_LENGTH) {
            return Err(Sense::parameter_field(position(at + 2)));
        }
        let Some((descriptor, rest)) = bytes.split_first_chunk::<SEGMENT_BYTES>() else {
            return Err(Sense::PARAMETER_LIST_LENGTH);
        };
        segments.push(parse_segment(descriptor));
        bytes = rest;
        at += SEGMENT_BYTES;
    }
    Ok(segments)
}

fn parse_segment(descriptor: &[u8; SEGMENT_BYTES]) -> Segment {
    // Inside the array, by its length.
    let u16_at = |at| be16(descriptor, at).unwrap_or(0);
    let u64_at = |at| be64(descriptor, at).unwrap_or(0);
    Segment {
        source: u16_at(4),
        destination: u16_at(6),
        counts_destination: descriptor[1] & 0x02 != 0,
        blocks: u16_at(10),
        source_lba: u64_at(12),
        destination_lba: u64_at(20),
    }
}

/// Positions in a list fit, for its descriptors take less than 64 KiB.
fn position(at: usize) -> u16 {
    u16::try_from(at).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests;

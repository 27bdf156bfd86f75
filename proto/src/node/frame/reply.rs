//! Bodies of replies.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::fields::Fields;
use super::header::{Header, Kind};
use super::request::put_version;
use super::{EncodeError, FrameError, SEALED_EXTENTS_MAX};
use crate::ids::{Epoch, Generation, Version};
use crate::limits::{
    BLOCK_BYTES, EXTENT_BLOCKS, EXTENT_BYTES, EXTENT_PREPARED_MAX, FRAME_BODY_BYTES_MAX,
    FRAME_DATA_BYTES_MAX, NODE_DAMAGED_RUNS_MAX, NODE_LIST_MAX, UNIT_BYTES,
};
use crate::node::{BlockVersion, DamagedRun, DirtyExtent, Failure, PreparedChange, Reply, ReplyBody, Sealed};

/// An entry of the list in `Sealed`.
pub(super) const DIRTY_BYTES: usize = 24;
/// An entry of the list in `Versions`.
const RUN_BYTES: usize = 24;
/// An entry of the list in `Damaged`.
const DAMAGED_BYTES: usize = 16;
/// An entry of the list in `Prepared`.
const PREPARED_BYTES: usize = 48;
const LIST_HEAD_BYTES: usize = 8;
const RUNS_MAX: usize = (FRAME_BODY_BYTES_MAX as usize - LIST_HEAD_BYTES) / RUN_BYTES;

const GENERATION: u8 = 1;
const EPOCH: u8 = 2;
const DELETED: u8 = 3;
const NO_SPACE: u8 = 4;
const CORRUPT: u8 = 5;
const DISK_FAILED: u8 = 6;
const NO_SUCH_DISK: u8 = 7;
const INVALID: u8 = 8;
const BUSY: u8 = 9;
const VERSION: u8 = 10;
const GRANTED: u8 = 11;

/// Appends the body to `out`; gives back kind, status and data. Writes nothing if it fails.
pub(super) fn encode(reply: &Reply, out: &mut BytesMut) -> Result<(Kind, u8, Bytes), EncodeError> {
    let none = Bytes::new();
    let body = match reply {
        Ok(body) => body,
        Err(failure) => return Ok((Kind::FailureReply, encode_failure(failure, out)?, none)),
    };
    Ok(match body {
        ReplyBody::Done => (Kind::DoneReply, 0, none),
        ReplyBody::Data(data) => {
            if data.len() > FRAME_DATA_BYTES_MAX as usize {
                return Err(EncodeError::DataTooLong(data.len() as u64));
            }
            (Kind::DataReply, 0, data.clone())
        }
        ReplyBody::Sealed(Sealed { dirty, complete }) => {
            let count = count(dirty.len(), SEALED_EXTENTS_MAX)?;
            out.put_u32_le(count);
            out.put_u32_le(0);
            put_version(out, *complete);
            let mut list = BytesMut::with_capacity(dirty.len() * DIRTY_BYTES);
            put_dirty(dirty, &mut list);
            (Kind::SealedReply, 0, list.freeze())
        }
        ReplyBody::Extents { list, next } => {
            if !is_rising(list, *next) {
                return Err(EncodeError::NotSent);
            }
            let count = count(list.len(), NODE_LIST_MAX)?;
            out.put_u32_le(count);
            out.put_u8(u8::from(next.is_some()));
            out.put_bytes(0, 3);
            out.put_u64_le(next.unwrap_or_default());
            put_dirty(list, out);
            (Kind::ExtentsReply, 0, none)
        }
        ReplyBody::Versions(runs) => {
            let count = count(runs.len(), RUNS_MAX)?;
            out.put_u32_le(count);
            out.put_u32_le(0);
            for run in runs {
                put_version(out, run.version);
                out.put_u32_le(run.blocks);
                out.put_u8(u8::from(run.hole));
                out.put_bytes(0, 3);
            }
            (Kind::VersionsReply, 0, none)
        }
        ReplyBody::Space { capacity_bytes, used_bytes } => {
            out.put_u64_le(*capacity_bytes);
            out.put_u64_le(*used_bytes);
            (Kind::SpaceReply, 0, none)
        }
        ReplyBody::Damaged(runs) => {
            if !is_sendable(runs) {
                return Err(EncodeError::NotSent);
            }
            let count = count(runs.len(), NODE_DAMAGED_RUNS_MAX)?;
            out.put_u32_le(count);
            out.put_u32_le(0);
            for run in runs {
                out.put_u64_le(run.index);
                out.put_u32_le(run.first);
                out.put_u32_le(run.blocks);
            }
            (Kind::DamagedReply, 0, none)
        }
        ReplyBody::Prepared(changes) => {
            if !is_list_of_units(changes) {
                return Err(EncodeError::NotSent);
            }
            let count = count(changes.len(), EXTENT_PREPARED_MAX)?;
            out.put_u32_le(count);
            out.put_u32_le(0);
            for change in changes {
                put_version(out, change.version);
                put_version(out, change.prev);
                out.put_u32_le(change.offset);
                out.put_u32_le(change.len);
                out.put_u8(u8::from(change.hole));
                out.put_bytes(0, 7);
            }
            (Kind::PreparedReply, 0, none)
        }
    })
}

/// The reply of a frame whose header, body and data have been checked against their checksums.
pub(super) fn decode(header: &Header, body: &[u8], data: Bytes) -> Result<Reply, FrameError> {
    let kind = header.kind;
    let mut fields = Fields::new(kind, body);
    let data_expected = matches!(kind, Kind::DataReply | Kind::SealedReply);
    if !data.is_empty() && !data_expected {
        return Err(FrameError::Length(kind.code()));
    }
    let reply = match kind {
        Kind::DoneReply => Ok(ReplyBody::Done),
        Kind::DataReply => Ok(ReplyBody::Data(data)),
        Kind::SealedReply => {
            let count = list_head(&mut fields)?;
            if count.checked_mul(DIRTY_BYTES) != Some(data.len()) {
                return Err(FrameError::Field("count"));
            }
            let dirty = data.chunks_exact(DIRTY_BYTES).map(dirty).collect();
            Ok(ReplyBody::Sealed(Sealed { dirty, complete: fields.version()? }))
        }
        Kind::ExtentsReply => {
            let count = fields.u32()? as usize;
            let more = fields.flag("more")?;
            fields.reserved(3)?;
            let at = fields.u64()?;
            if at != 0 && !more {
                return Err(FrameError::Field("next"));
            }
            let next = more.then_some(at);
            if count > NODE_LIST_MAX || count.checked_mul(DIRTY_BYTES) != Some(fields.remaining()) {
                return Err(FrameError::Field("count"));
            }
            let list: Vec<_> =
                fields.bytes(count * DIRTY_BYTES)?.chunks_exact(DIRTY_BYTES).map(dirty).collect();
            if !is_rising(&list, next) {
                return Err(FrameError::Field("extents"));
            }
            Ok(ReplyBody::Extents { list, next })
        }
        Kind::VersionsReply => {
            let count = list_head(&mut fields)?;
            if count.checked_mul(RUN_BYTES) != Some(fields.remaining()) {
                return Err(FrameError::Field("count"));
            }
            let mut runs = Vec::with_capacity(count);
            for _ in 0..count {
                runs.push(run(&mut fields)?);
            }
            Ok(ReplyBody::Versions(runs))
        }
        Kind::SpaceReply => Ok(ReplyBody::Space { capacity_bytes: fields.u64()?, used_bytes: fields.u64()? }),
        Kind::DamagedReply => {
            let count = list_head(&mut fields)?;
            if count > NODE_DAMAGED_RUNS_MAX || count.checked_mul(DAMAGED_BYTES) != Some(fields.remaining()) {
                return Err(FrameError::Field("count"));
            }
            let mut runs = Vec::with_capacity(count);
            for _ in 0..count {
                runs.push(DamagedRun { index: fields.u64()?, first: fields.u32()?, blocks: fields.u32()? });
            }
            if !is_sendable(&runs) {
                return Err(FrameError::Field("runs"));
            }
            Ok(ReplyBody::Damaged(runs))
        }
        Kind::PreparedReply => {
            let count = list_head(&mut fields)?;
            if count > EXTENT_PREPARED_MAX || count.checked_mul(PREPARED_BYTES) != Some(fields.remaining()) {
                return Err(FrameError::Field("count"));
            }
            let mut changes = Vec::with_capacity(count);
            for _ in 0..count {
                changes.push(prepared(&mut fields)?);
            }
            if !is_list_of_units(&changes) {
                return Err(FrameError::Field("changes"));
            }
            Ok(ReplyBody::Prepared(changes))
        }
        Kind::FailureReply => Err(decode_failure(header.status, &mut fields)?),
        _ => return Err(FrameError::Kind(kind.code())),
    };
    fields.end()?;
    Ok(reply)
}

fn encode_failure(failure: &Failure, out: &mut BytesMut) -> Result<u8, EncodeError> {
    let (status, sealed, got, at) = match failure {
        Failure::Generation { sealed, got } => (GENERATION, sealed.0, got.0, 0),
        Failure::Epoch { sealed, got } => (EPOCH, sealed.0, got.0, 0),
        Failure::Deleted => (DELETED, 0, 0, 0),
        Failure::NoSpace => (NO_SPACE, 0, 0, 0),
        Failure::Corrupt { offset } => (CORRUPT, 0, 0, *offset),
        Failure::DiskFailed => (DISK_FAILED, 0, 0, 0),
        Failure::NoSuchDisk => (NO_SUCH_DISK, 0, 0, 0),
        Failure::Invalid => (INVALID, 0, 0, 0),
        Failure::Busy => (BUSY, 0, 0, 0),
        Failure::Version { present } => (VERSION, present.generation.0, present.seq, 0),
        Failure::Granted { left_ms } => (GRANTED, 0, 0, *left_ms),
        Failure::Disconnected => return Err(EncodeError::NotSent),
    };
    out.put_u64_le(sealed);
    out.put_u64_le(got);
    out.put_u32_le(at);
    out.put_u32_le(0);
    Ok(status)
}

fn decode_failure(status: u8, fields: &mut Fields<'_>) -> Result<Failure, FrameError> {
    let sealed = fields.u64()?;
    let got = fields.u64()?;
    let offset = fields.u32()?;
    fields.reserved(4)?;
    let (failure, pair_used, offset_used) = match status {
        GENERATION => (Failure::Generation { sealed: Generation(sealed), got: Generation(got) }, true, false),
        EPOCH => (Failure::Epoch { sealed: Epoch(sealed), got: Epoch(got) }, true, false),
        DELETED => (Failure::Deleted, false, false),
        NO_SPACE => (Failure::NoSpace, false, false),
        CORRUPT => (Failure::Corrupt { offset }, false, true),
        DISK_FAILED => (Failure::DiskFailed, false, false),
        NO_SUCH_DISK => (Failure::NoSuchDisk, false, false),
        INVALID => (Failure::Invalid, false, false),
        BUSY => (Failure::Busy, false, false),
        VERSION => {
            let present = Version { generation: Generation(sealed), seq: got };
            (Failure::Version { present }, true, false)
        }
        GRANTED => (Failure::Granted { left_ms: offset }, false, true),
        _ => return Err(FrameError::Field("status")),
    };
    if (!pair_used && (sealed, got) != (0, 0)) || (!offset_used && offset != 0) {
        return Err(FrameError::Field("reserved"));
    }
    Ok(failure)
}

/// Whether it is a list of runs that each lie in their extent, after the one before.
fn is_sendable(runs: &[DamagedRun]) -> bool {
    let end = |run: &DamagedRun| u64::from(run.first) + u64::from(run.blocks);
    let ascending = runs.windows(2).all(|pair| {
        pair[0].index < pair[1].index
            || pair[0].index == pair[1].index && end(&pair[0]) <= u64::from(pair[1].first)
    });
    !runs.is_empty()
        && ascending
        && runs.iter().all(|run| run.blocks > 0 && end(run) <= u64::from(EXTENT_BLOCKS))
}

/// Whether it is a list of changes that each lie in a unit, after that of the one before.
fn is_list_of_units(changes: &[PreparedChange]) -> bool {
    let unit = |change: &PreparedChange| change.offset / UNIT_BYTES;
    let is_inside = |change: &PreparedChange| {
        let end = u64::from(change.offset) + u64::from(change.len);
        change.offset < EXTENT_BYTES
            && change.len != 0
            && end <= (u64::from(unit(change)) + 1) * u64::from(UNIT_BYTES)
            && change.offset.is_multiple_of(BLOCK_BYTES)
            && change.len.is_multiple_of(BLOCK_BYTES)
    };
    changes.iter().all(is_inside) && changes.windows(2).all(|pair| unit(&pair[0]) < unit(&pair[1]))
}

/// Whether the extents are in order, all before the next.
fn is_rising(list: &[DirtyExtent], next: Option<u64>) -> bool {
    list.windows(2).all(|pair| pair[0].index < pair[1].index)
        && next.is_none_or(|next| list.last().is_none_or(|last| last.index < next))
}

fn put_dirty(list: &[DirtyExtent], out: &mut BytesMut) {
    for extent in list {
        out.put_u64_le(extent.index);
        put_version(out, extent.newest);
    }
}

fn count(len: usize, max: usize) -> Result<u32, EncodeError> {
    u32::try_from(len).ok().filter(|_| len <= max).ok_or(EncodeError::ListTooLong(len))
}

fn list_head(fields: &mut Fields<'_>) -> Result<usize, FrameError> {
    let count = fields.u32()?;
    fields.reserved(4)?;
    usize::try_from(count).map_err(|_| FrameError::Field("count"))
}

/// `entry` is [`DIRTY_BYTES`] long.
fn dirty(mut entry: &[u8]) -> DirtyExtent {
    DirtyExtent {
        index: entry.get_u64_le(),
        newest: Version { generation: Generation(entry.get_u64_le()), seq: entry.get_u64_le() },
    }
}

fn prepared(fields: &mut Fields<'_>) -> Result<PreparedChange, FrameError> {
    let (version, prev) = (fields.version()?, fields.version()?);
    let (offset, len) = (fields.u32()?, fields.u32()?);
    let hole = fields.flag("hole")?;
    fields.reserved(7)?;
    Ok(PreparedChange { offset, len, version, prev, hole })
}

fn run(fields: &mut Fields<'_>) -> Result<BlockVersion, FrameError> {
    let version = fields.version()?;
    let blocks = fields.u32()?;
    let hole = fields.flag("hole")?;
    fields.reserved(3)?;
    if blocks == 0 {
        return Err(FrameError::Field("blocks"));
    }
    Ok(BlockVersion { blocks, version, hole })
}

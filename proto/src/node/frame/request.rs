//! Bodies of requests.

use bytes::{BufMut, Bytes, BytesMut};

use super::fields::Fields;
use super::header::{Header, Kind};
use super::{EncodeError, FrameError};
use crate::ids::{DiskId, Epoch, ExtentId, Generation, Version};
use crate::limits::{FRAME_DATA_BYTES_MAX, GRANT_MS_MAX, NODE_DROPPED_EXTENTS_MAX};
use crate::node::{Change, Durability, Request, RequestBody};

const CONTENT_DATA: u8 = 1;
const CONTENT_ZEROS: u8 = 2;
const STABLE: u8 = 1;
const VOLATILE: u8 = 2;

/// Appends the body to `out`; gives back the kind and the data. Writes nothing if it fails.
pub(super) fn encode(request: &RequestBody, out: &mut BytesMut) -> Result<(Kind, Bytes), EncodeError> {
    let none = Bytes::new();
    Ok(match request {
        RequestBody::Identify { cluster } => {
            out.put_u128_le(cluster.0);
            (Kind::Identify, none)
        }
        RequestBody::Seal { namespace, generation } => {
            out.put_u64_le(namespace.0);
            out.put_u64_le(generation.0);
            (Kind::Seal, none)
        }
        RequestBody::Change { extent, version, offset, change, durability } => {
            let len = change_len(change)?;
            put_extent(out, *extent);
            put_version(out, *version);
            out.put_u32_le(*offset);
            out.put_u32_le(len);
            let (content, data) = content(change);
            out.put_u8(content);
            out.put_u8(match durability {
                Durability::Stable => STABLE,
                Durability::Volatile => VOLATILE,
            });
            out.put_bytes(0, 6);
            (Kind::Change, data)
        }
        RequestBody::Put { extent, generation, version, offset, change } => {
            let len = change_len(change)?;
            put_extent(out, *extent);
            out.put_u64_le(generation.0);
            put_version(out, *version);
            out.put_u32_le(*offset);
            out.put_u32_le(len);
            let (content, data) = content(change);
            out.put_u8(content);
            out.put_bytes(0, 7);
            (Kind::Put, data)
        }
        RequestBody::Read { extent, generation, offset, len } => {
            put_extent(out, *extent);
            out.put_u64_le(generation.0);
            out.put_u32_le(*offset);
            out.put_u32_le(*len);
            (Kind::Read, none)
        }
        RequestBody::Versions { extent, generation } => {
            put_extent(out, *extent);
            out.put_u64_le(generation.0);
            (Kind::Versions, none)
        }
        RequestBody::Flush { namespace, generation } => {
            out.put_u64_le(namespace.0);
            out.put_u64_le(generation.0);
            (Kind::Flush, none)
        }
        RequestBody::Watermark { namespace, generation, seq, complete } => {
            out.put_u64_le(namespace.0);
            out.put_u64_le(generation.0);
            out.put_u64_le(*seq);
            out.put_u8(u8::from(*complete));
            out.put_bytes(0, 7);
            (Kind::Watermark, none)
        }
        RequestBody::Extents { namespace, generation, from, newer_than } => {
            out.put_u64_le(namespace.0);
            out.put_u64_le(generation.0);
            out.put_u64_le(*from);
            put_version(out, *newer_than);
            (Kind::Extents, none)
        }
        RequestBody::Delete { namespace, generation } => {
            out.put_u64_le(namespace.0);
            out.put_u64_le(generation.0);
            (Kind::Delete, none)
        }
        RequestBody::Drop { namespace, generation, extents } => {
            if extents.len() > NODE_DROPPED_EXTENTS_MAX {
                return Err(EncodeError::ListTooLong(extents.len()));
            }
            if !is_droppable(extents) {
                return Err(EncodeError::NotSent);
            }
            out.put_u64_le(namespace.0);
            out.put_u64_le(generation.0);
            out.put_u32_le(u32::try_from(extents.len()).expect("the limit is far below it"));
            out.put_u32_le(0);
            extents.iter().for_each(|index| out.put_u64_le(*index));
            (Kind::Drop, none)
        }
        RequestBody::Grant { namespace, generation, number, for_ms } => {
            if *for_ms > GRANT_MS_MAX {
                return Err(EncodeError::NotSent);
            }
            out.put_u64_le(namespace.0);
            out.put_u64_le(generation.0);
            out.put_u64_le(*number);
            out.put_u32_le(*for_ms);
            out.put_u32_le(0);
            (Kind::Grant, none)
        }
        RequestBody::Space => (Kind::Space, none),
        RequestBody::Prepare { extent, version, prev, offset, change } => {
            let len = change_len(change)?;
            put_extent(out, *extent);
            put_version(out, *version);
            put_version(out, *prev);
            out.put_u32_le(*offset);
            out.put_u32_le(len);
            let (content, data) = content(change);
            out.put_u8(content);
            out.put_bytes(0, 7);
            (Kind::Prepare, data)
        }
        RequestBody::Commit { extent, generation, version, offset, len } => {
            put_resolved(out, *extent, *generation, *version, *offset, *len);
            (Kind::Commit, none)
        }
        RequestBody::Rollback { extent, generation, version, offset, len } => {
            put_resolved(out, *extent, *generation, *version, *offset, *len);
            (Kind::Rollback, none)
        }
        RequestBody::Prepared { extent, generation } => {
            put_extent(out, *extent);
            out.put_u64_le(generation.0);
            (Kind::Prepared, none)
        }
    })
}

/// The request of a frame whose header, body and data have been checked against their checksums.
pub(super) fn decode(header: &Header, body: &[u8], data: Bytes) -> Result<Request, FrameError> {
    let kind = header.kind;
    let mut fields = Fields::new(kind, body);
    let has_data = !data.is_empty();
    let body = match kind {
        Kind::Identify => RequestBody::Identify { cluster: fields.cluster()? },
        Kind::Seal => RequestBody::Seal { namespace: fields.namespace()?, generation: fields.generation()? },
        Kind::Change => {
            let extent = fields.extent()?;
            let version = fields.version()?;
            let offset = fields.u32()?;
            let len = fields.u32()?;
            let content = fields.u8()?;
            let durability = match fields.u8()? {
                STABLE => Durability::Stable,
                VOLATILE => Durability::Volatile,
                _ => return Err(FrameError::Field("durability")),
            };
            fields.reserved(6)?;
            let change = change(content, len, data)?;
            fields.end()?;
            let body = RequestBody::Change { extent, version, offset, change, durability };
            return Ok(request(header, body));
        }
        Kind::Put => {
            let extent = fields.extent()?;
            let generation = fields.generation()?;
            let version = fields.version()?;
            let offset = fields.u32()?;
            let len = fields.u32()?;
            let content = fields.u8()?;
            fields.reserved(7)?;
            let change = change(content, len, data)?;
            fields.end()?;
            return Ok(request(header, RequestBody::Put { extent, generation, version, offset, change }));
        }
        Kind::Read => RequestBody::Read {
            extent: fields.extent()?,
            generation: fields.generation()?,
            offset: fields.u32()?,
            len: fields.u32()?,
        },
        Kind::Versions => {
            RequestBody::Versions { extent: fields.extent()?, generation: fields.generation()? }
        }
        Kind::Flush => {
            RequestBody::Flush { namespace: fields.namespace()?, generation: fields.generation()? }
        }
        Kind::Watermark => {
            let (namespace, generation, seq) = (fields.namespace()?, fields.generation()?, fields.u64()?);
            let complete = fields.flag("complete")?;
            fields.reserved(7)?;
            RequestBody::Watermark { namespace, generation, seq, complete }
        }
        Kind::Extents => RequestBody::Extents {
            namespace: fields.namespace()?,
            generation: fields.generation()?,
            from: fields.u64()?,
            newer_than: fields.version()?,
        },
        Kind::Delete => {
            RequestBody::Delete { namespace: fields.namespace()?, generation: fields.generation()? }
        }
        Kind::Drop => {
            let (namespace, generation) = (fields.namespace()?, fields.generation()?);
            let count = usize::try_from(fields.u32()?).map_err(|_| FrameError::Field("count"))?;
            fields.reserved(4)?;
            if count > NODE_DROPPED_EXTENTS_MAX || count * size_of::<u64>() != fields.remaining() {
                return Err(FrameError::Field("count"));
            }
            let extents = (0..count).map(|_| fields.u64()).collect::<Result<Vec<_>, _>>()?;
            if !is_droppable(&extents) {
                return Err(FrameError::Field("extents"));
            }
            RequestBody::Drop { namespace, generation, extents }
        }
        Kind::Grant => {
            let (namespace, generation, number) = (fields.namespace()?, fields.generation()?, fields.u64()?);
            let for_ms = fields.u32()?;
            if for_ms > GRANT_MS_MAX {
                return Err(FrameError::Field("milliseconds"));
            }
            fields.reserved(4)?;
            RequestBody::Grant { namespace, generation, number, for_ms }
        }
        Kind::Space => RequestBody::Space,
        Kind::Prepare => {
            let extent = fields.extent()?;
            let version = fields.version()?;
            let prev = fields.version()?;
            let offset = fields.u32()?;
            let len = fields.u32()?;
            let content = fields.u8()?;
            fields.reserved(7)?;
            let change = change(content, len, data)?;
            fields.end()?;
            return Ok(request(header, RequestBody::Prepare { extent, version, prev, offset, change }));
        }
        Kind::Commit => RequestBody::Commit {
            extent: fields.extent()?,
            generation: fields.generation()?,
            version: fields.version()?,
            offset: fields.u32()?,
            len: fields.u32()?,
        },
        Kind::Rollback => RequestBody::Rollback {
            extent: fields.extent()?,
            generation: fields.generation()?,
            version: fields.version()?,
            offset: fields.u32()?,
            len: fields.u32()?,
        },
        Kind::Prepared => {
            RequestBody::Prepared { extent: fields.extent()?, generation: fields.generation()? }
        }
        _ => return Err(FrameError::Kind(kind.code())),
    };
    if has_data {
        return Err(FrameError::Length(kind.code()));
    }
    fields.end()?;
    Ok(request(header, body))
}

fn request(header: &Header, body: RequestBody) -> Request {
    Request { disk: DiskId(header.disk), epoch: Epoch(header.epoch), body }
}

/// Whether extents may be dropped by one request, if they are not too many.
fn is_droppable(extents: &[u64]) -> bool {
    !extents.is_empty() && extents.windows(2).all(|pair| pair[0] < pair[1])
}

fn put_extent(out: &mut BytesMut, extent: ExtentId) {
    out.put_u64_le(extent.namespace.0);
    out.put_u64_le(extent.index);
}

fn put_resolved(
    out: &mut BytesMut,
    extent: ExtentId,
    generation: Generation,
    version: Version,
    offset: u32,
    len: u32,
) {
    put_extent(out, extent);
    out.put_u64_le(generation.0);
    put_version(out, version);
    out.put_u32_le(offset);
    out.put_u32_le(len);
}

pub(super) fn put_version(out: &mut BytesMut, version: Version) {
    out.put_u64_le(version.generation.0);
    out.put_u64_le(version.seq);
}

fn content(change: &Change) -> (u8, Bytes) {
    match change {
        Change::Data(data) => (CONTENT_DATA, data.clone()),
        Change::Zeros { .. } => (CONTENT_ZEROS, Bytes::new()),
    }
}

fn change_len(change: &Change) -> Result<u32, EncodeError> {
    match change {
        Change::Data(data) => u32::try_from(data.len())
            .ok()
            .filter(|len| *len <= FRAME_DATA_BYTES_MAX)
            .ok_or(EncodeError::DataTooLong(data.len() as u64)),
        Change::Zeros { len } => Ok(*len),
    }
}

fn change(content: u8, len: u32, data: Bytes) -> Result<Change, FrameError> {
    match content {
        CONTENT_DATA if data.len() as u64 == u64::from(len) => Ok(Change::Data(data)),
        CONTENT_ZEROS if data.is_empty() => Ok(Change::Zeros { len }),
        CONTENT_DATA | CONTENT_ZEROS => Err(FrameError::Field("length")),
        _ => Err(FrameError::Field("content")),
    }
}

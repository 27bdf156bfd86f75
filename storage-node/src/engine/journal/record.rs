//! Records of the journal: values to bytes and back. The format is specified in the parent module.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use lunette_proto::checksum::{crc32c, crc32c_of_parts};
use lunette_proto::ids::{Epoch, ExtentId, Generation, Namespace, Version};
use lunette_proto::limits::{BLOCK_BYTES, EXTENT_BLOCKS};

use super::SegmentHeader;
use crate::engine::namespaces::NamespaceState;

pub(super) const HEADER_BYTES: usize = 64;
pub(super) const ALIGN: usize = 64;
/// Header, body and padding of any record but `Namespace` and `Tombstones`.
pub(super) const OVERHEAD_MAX: usize = 192;
/// Namespaces named by one `Tombstones` record.
pub(super) const TOMBSTONES_MAX: usize = 65_536;
const CRC: usize = HEADER_BYTES - size_of::<u32>();
const MAGIC: &[u8; 4] = b"LREC";
const DIRTY_BYTES: usize = 24;
const DATA_BYTES_MAX: usize = 1 << 30;

const NAMESPACE: u8 = 1;
const TOMBSTONES: u8 = 2;
const STATE_END: u8 = 3;
const CHANGE: u8 = 4;
const SEAL: u8 = 5;
const DELETE: u8 = 6;
const WATERMARK: u8 = 7;

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// State of a live namespace at the segment's beginning.
    Namespace(Namespace, NamespaceState),
    /// Deleted namespaces at the segment's beginning.
    Tombstones(Vec<Namespace>),
    /// The state is complete.
    StateEnd,
    /// Blocks of an extent get a content.
    Change(ChangeRecord),
    /// A namespace is sealed.
    Seal(Namespace, Generation, Epoch),
    /// A namespace is deleted.
    Delete(Namespace),
    /// A namespace's watermark moves.
    Watermark(Namespace, Version),
}

/// Blocks of an extent get a content, unconditionally.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ChangeRecord {
    pub(crate) extent: ExtentId,
    pub(crate) version: Version,
    /// The floor that the header gets with a reset.
    pub(crate) floor: Version,
    pub(crate) first: u32,
    pub(crate) blocks: u32,
    pub(crate) content: Content,
    pub(crate) reset: Reset,
    /// Blocks that hold data after it, less those before.
    pub(crate) grown: i32,
}

/// What blocks get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// These bytes.
    Data(Bytes),
    /// Zeros.
    Zeros,
    /// Zeros, all blocks of the extent.
    WholeZeros,
}

/// What happens to the extent file's table before the change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reset {
    /// Nothing.
    None,
    /// It begins with blocks never written.
    Absent,
    /// It begins with blocks that are lost.
    Lost,
}

impl Record {
    /// Appends header and body to `out`; the data follows them.
    pub(super) fn encode(
        &self,
        segment: &SegmentHeader,
        lsn: u64,
        durable: u64,
        out: &mut BytesMut,
    ) -> Bytes {
        let start = out.len();
        out.put_bytes(0, HEADER_BYTES);
        let (kind, data) = self.encode_body(out);
        let body = &out[start + HEADER_BYTES..];
        let mut header = [0; HEADER_BYTES];
        let mut fields = header.as_mut_slice();
        fields.put_slice(MAGIC);
        fields.put_u8(kind);
        fields.put_bytes(0, 3);
        fields.put_u32_le(u32::try_from(body.len()).expect("bodies are short"));
        fields.put_u32_le(u32::try_from(data.len()).expect("data is bounded by the segment"));
        fields.put_u64_le(lsn);
        fields.put_u64_le(durable);
        fields.put_u32_le(crc32c(body));
        fields.put_u32_le(crc32c(&data));
        let crc = header_crc(segment, &header);
        header[CRC..].copy_from_slice(&crc.to_le_bytes());
        out[start..start + HEADER_BYTES].copy_from_slice(&header);
        data
    }

    fn encode_body(&self, out: &mut BytesMut) -> (u8, Bytes) {
        let none = Bytes::new();
        match self {
            Self::Namespace(id, state) => {
                out.put_u64_le(id.0);
                out.put_u64_le(state.sealed.0);
                out.put_u64_le(state.epoch.0);
                put_version(out, state.watermark);
                out.put_u64_le(state.used_blocks);
                let mut dirty = BytesMut::with_capacity(state.dirty.len() * DIRTY_BYTES);
                for (index, newest) in &state.dirty {
                    dirty.put_u64_le(*index);
                    put_version(&mut dirty, *newest);
                }
                (NAMESPACE, dirty.freeze())
            }
            Self::Tombstones(deleted) => {
                let mut data = BytesMut::with_capacity(deleted.len() * size_of::<u64>());
                deleted.iter().for_each(|id| data.put_u64_le(id.0));
                (TOMBSTONES, data.freeze())
            }
            Self::StateEnd => (STATE_END, none),
            Self::Change(change) => (CHANGE, change.encode_body(out)),
            Self::Seal(id, generation, epoch) => {
                out.put_u64_le(id.0);
                out.put_u64_le(generation.0);
                out.put_u64_le(epoch.0);
                (SEAL, none)
            }
            Self::Delete(id) => {
                out.put_u64_le(id.0);
                (DELETE, none)
            }
            Self::Watermark(id, mark) => {
                out.put_u64_le(id.0);
                put_version(out, *mark);
                (WATERMARK, none)
            }
        }
    }

    /// The record of a header, body and data whose checksums hold.
    pub(super) fn decode(kind: u8, mut body: &[u8], mut data: Bytes) -> Result<Self, &'static str> {
        const CUT: &str = "a journal record's length does not fit its kind";
        let fixed = match kind {
            NAMESPACE => 48,
            TOMBSTONES | STATE_END => 0,
            CHANGE => ChangeRecord::BODY_BYTES,
            SEAL | WATERMARK => 24,
            DELETE => 8,
            _ => return Err("a journal record of unknown kind"),
        };
        if body.len() != fixed || (!data.is_empty() && !matches!(kind, NAMESPACE | TOMBSTONES | CHANGE)) {
            return Err(CUT);
        }
        Ok(match kind {
            NAMESPACE => {
                let id = Namespace(body.get_u64_le());
                let mut state = NamespaceState {
                    sealed: Generation(body.get_u64_le()),
                    epoch: Epoch(body.get_u64_le()),
                    watermark: get_version(&mut body),
                    used_blocks: body.get_u64_le(),
                    ..NamespaceState::default()
                };
                if !data.len().is_multiple_of(DIRTY_BYTES) {
                    return Err(CUT);
                }
                while !data.is_empty() {
                    let index = data.get_u64_le();
                    state.dirty.insert(index, get_version(&mut data));
                }
                Self::Namespace(id, state)
            }
            TOMBSTONES => {
                if !data.len().is_multiple_of(size_of::<u64>()) {
                    return Err(CUT);
                }
                let mut deleted = Vec::with_capacity(data.len() / size_of::<u64>());
                while !data.is_empty() {
                    deleted.push(Namespace(data.get_u64_le()));
                }
                Self::Tombstones(deleted)
            }
            STATE_END => Self::StateEnd,
            CHANGE => Self::Change(ChangeRecord::decode(body, data)?),
            SEAL => Self::Seal(
                Namespace(body.get_u64_le()),
                Generation(body.get_u64_le()),
                Epoch(body.get_u64_le()),
            ),
            DELETE => Self::Delete(Namespace(body.get_u64_le())),
            _ => Self::Watermark(Namespace(body.get_u64_le()), get_version(&mut body)),
        })
    }

    /// Whether it belongs to the state that a segment begins with.
    pub(super) fn is_state(&self) -> bool {
        matches!(self, Self::Namespace(..) | Self::Tombstones(_) | Self::StateEnd)
    }
}

impl ChangeRecord {
    const BODY_BYTES: usize = 60;

    fn encode_body(&self, out: &mut BytesMut) -> Bytes {
        let (content, data) = match &self.content {
            Content::Data(data) => (1, data.clone()),
            Content::Zeros => (2, Bytes::new()),
            Content::WholeZeros => (3, Bytes::new()),
        };
        out.put_u64_le(self.extent.namespace.0);
        out.put_u64_le(self.extent.index);
        put_version(out, self.version);
        put_version(out, self.floor);
        out.put_u16_le(u16::try_from(self.first).expect("an extent has 1024 blocks"));
        out.put_u16_le(u16::try_from(self.blocks).expect("an extent has 1024 blocks"));
        out.put_u8(content);
        out.put_u8(match self.reset {
            Reset::None => 0,
            Reset::Absent => 1,
            Reset::Lost => 2,
        });
        out.put_bytes(0, 2);
        out.put_i32_le(self.grown);
        data
    }

    fn decode(mut body: &[u8], data: Bytes) -> Result<Self, &'static str> {
        let extent = ExtentId { namespace: Namespace(body.get_u64_le()), index: body.get_u64_le() };
        let version = get_version(&mut body);
        let floor = get_version(&mut body);
        let first = u32::from(body.get_u16_le());
        let blocks = u32::from(body.get_u16_le());
        let content = body.get_u8();
        let reset = match body.get_u8() {
            0 => Reset::None,
            1 => Reset::Absent,
            2 => Reset::Lost,
            _ => return Err("a change with an unknown reset"),
        };
        let zeros = body.get_u16_le();
        let grown = body.get_i32_le();
        if blocks == 0 || first + blocks > EXTENT_BLOCKS || zeros != 0 {
            return Err("a change outside its extent");
        }
        let data_len = u64::from(blocks) * u64::from(BLOCK_BYTES);
        let content = match content {
            1 if data.len() as u64 == data_len => Content::Data(data),
            2 if data.is_empty() => Content::Zeros,
            3 if data.is_empty() && blocks == EXTENT_BLOCKS => Content::WholeZeros,
            _ => return Err("a change with an unknown content"),
        };
        Ok(Self { extent, version, floor, first, blocks, content, reset, grown })
    }
}

/// A header whose checksum holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub(super) kind: u8,
    pub(super) body_len: usize,
    pub(super) data_len: usize,
    pub(super) lsn: u64,
    pub(super) durable: u64,
    pub(super) body_crc: u32,
    pub(super) data_crc: u32,
}

impl Head {
    /// The header at the beginning of `bytes`, if there is one of this segment.
    pub(super) fn decode(segment: &SegmentHeader, bytes: &[u8]) -> Option<Self> {
        let header = bytes.first_chunk::<HEADER_BYTES>()?;
        if !header.starts_with(MAGIC) || (&header[CRC..]).get_u32_le() != header_crc(segment, header) {
            return None;
        }
        let mut fields = &header[MAGIC.len()..];
        let kind = fields.get_u8();
        fields.advance(3);
        let body_len = usize::try_from(fields.get_u32_le()).ok()?;
        let data_len = usize::try_from(fields.get_u32_le()).ok()?;
        if body_len > DATA_BYTES_MAX || data_len > DATA_BYTES_MAX {
            return None;
        }
        Some(Self {
            kind,
            body_len,
            data_len,
            lsn: fields.get_u64_le(),
            durable: fields.get_u64_le(),
            body_crc: fields.get_u32_le(),
            data_crc: fields.get_u32_le(),
        })
    }

    /// Whether it belongs to the state that a segment begins with.
    pub(super) fn is_state(&self) -> bool {
        matches!(self.kind, NAMESPACE | TOMBSTONES | STATE_END)
    }
}

fn header_crc(segment: &SegmentHeader, header: &[u8; HEADER_BYTES]) -> u32 {
    crc32c_of_parts([
        segment.uuid.0.to_le_bytes().as_slice(),
        segment.number.to_le_bytes().as_slice(),
        &header[..CRC],
    ])
}

fn put_version(out: &mut BytesMut, version: Version) {
    out.put_u64_le(version.generation.0);
    out.put_u64_le(version.seq);
}

/// The caller has checked the length.
fn get_version(fields: &mut impl Buf) -> Version {
    Version { generation: Generation(fields.get_u64_le()), seq: fields.get_u64_le() }
}

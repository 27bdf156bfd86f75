//! Binary frames of the node protocol. This page is the specification.
//!
//! A connection is a byte stream each way. The side that connected sends one `Hello`, the node one
//! `HelloAck`; after an acceptance the first side sends requests and the node replies, many in
//! flight, in any order, paired by the request id. A node that has had nothing to say for
//! [`NODE_ALIVE_MS`](crate::limits::NODE_ALIVE_MS) sends an `Alive`, whatever its disks are doing and however much of
//! what was sent to it waits to be read: who hears nothing for much longer knows that it is gone. Everything is
//! little-endian. A frame is
//!
//! ```text
//!     header, 48 bytes | body: fixed fields and short lists | data: bulk bytes
//! ```
//!
//! Who closes its side has given the connection up: requests that the node has not begun are dropped, and answers to the
//! others may come.
//!
//! # Header
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | magic, the bytes `LUNE` |
//! | 4 | 1 | protocol version: 6; in `Hello` and `HelloAck` for ever 1 |
//! | 5 | 1 | kind (below) |
//! | 6 | 1 | status: outcome in `HelloAck`, code in `Failure`, otherwise 0 |
//! | 7 | 1 | reserved, 0 |
//! | 8 | 4 | body length, at most [`FRAME_BODY_BYTES_MAX`](crate::limits::FRAME_BODY_BYTES_MAX) |
//! | 12 | 4 | data length, at most [`FRAME_DATA_BYTES_MAX`](crate::limits::FRAME_DATA_BYTES_MAX) |
//! | 16 | 8 | request id, chosen by the side that asks; 0 in `Hello`, `HelloAck` and `Alive` |
//! | 24 | 8 | epoch in requests, otherwise 0 |
//! | 32 | 4 | disk in requests, otherwise 0 |
//! | 36 | 4 | CRC-32C of the body |
//! | 40 | 4 | CRC-32C of the data |
//! | 44 | 4 | CRC-32C of bytes 0 to 44 |
//!
//! The lengths are trusted only after the header's own CRC, so a damaged length never makes a
//! receiver wait or allocate.
//!
//! # Bodies
//!
//! Fields in order, with their size in bytes. `data` says what the data part is; it is empty
//! where nothing is said. Reserved bytes are zero and checked.
//!
//! | kind | name | body |
//! |---|---|---|
//! | 1 | `Hello` | cluster 16, lowest version 1, highest version 1, name length 2, name |
//! | 2 | `HelloAck` | cluster 16, lowest version 1, highest version 1, chosen version 1, reserved 1, name length 2, name |
//! | 3 | `Alive` | empty |
//! | 16 | `Identify` | cluster 16 |
//! | 17 | `Seal` | namespace 8, generation 8 |
//! | 18 | `Change` | namespace 8, extent 8, version (generation 8, seq 8), offset 4, length 4, content 1, durability 1, reserved 6; data: the blocks |
//! | 19 | `Put` | namespace 8, extent 8, generation 8, version (generation 8, seq 8), offset 4, length 4, content 1, reserved 7; data: the blocks |
//! | 20 | `Read` | namespace 8, extent 8, generation 8, offset 4, length 4 |
//! | 21 | `Versions` | namespace 8, extent 8, generation 8 |
//! | 22 | `Flush` | namespace 8, generation 8 |
//! | 23 | `Watermark` | namespace 8, generation 8, seq 8, complete 1, reserved 7 |
//! | 24 | `Delete` | namespace 8, generation 8 |
//! | 25 | `Space` | empty |
//! | 26 | `Prepare` | namespace 8, extent 8, version (generation 8, seq 8), previous version 16, offset 4, length 4, content 1, reserved 7; data: the blocks |
//! | 27 | `Commit` | namespace 8, extent 8, generation 8, version (generation 8, seq 8), offset 4, length 4 |
//! | 28 | `Rollback` | as `Commit` |
//! | 29 | `Prepared` | namespace 8, extent 8, generation 8 |
//! | 30 | `Extents` | namespace 8, generation 8, from extent 8, newer than version 16 |
//! | 31 | `Drop` | namespace 8, generation 8, count 4, reserved 4, count times extent 8 |
//! | 32 | `Grant` | namespace 8, generation 8, number 8, milliseconds 4, reserved 4 |
//! | 128 | `Done` | empty |
//! | 129 | `Data` | empty; data: the bytes read |
//! | 130 | `Sealed` | count 4, reserved 4, complete up to version 16; data: count times (extent 8, newest version 16) |
//! | 131 | `Versions` | count 4, reserved 4, count times (version 16, blocks 4, hole 1, reserved 3) |
//! | 132 | `Space` | capacity 8, used 8 |
//! | 133 | `Damaged` | count 4, reserved 4, count times (extent 8, first block 4, blocks 4) |
//! | 134 | `Prepared` | count 4, reserved 4, count times (version 16, previous version 16, offset 4, length 4, hole 1, reserved 7) |
//! | 135 | `Extents` | count 4, more 1, reserved 3, next extent 8 (0 without more), count times (extent 8, newest version 16) |
//! | 143 | `Failure` | sealed 8, got 8, offset 4, reserved 4; those that the status does not use are 0 |
//!
//! - content: 1 data (then length = data length), 2 zeros (then there is no data);
//! - `Drop` has 1 to [`NODE_DROPPED_EXTENTS_MAX`](crate::limits::NODE_DROPPED_EXTENTS_MAX) extents, rising;
//! - `Grant` is for at most [`GRANT_MS_MAX`](crate::limits::GRANT_MS_MAX) milliseconds;
//! - `Damaged` has 1 to [`NODE_DAMAGED_RUNS_MAX`](crate::limits::NODE_DAMAGED_RUNS_MAX) runs, each inside its extent and
//!   after the one before it;
//! - `Prepared` has at most [`EXTENT_PREPARED_MAX`](crate::limits::EXTENT_PREPARED_MAX) changes, each of whole blocks
//!   inside a unit of its own, after the one before it;
//! - `Extents` has at most [`NODE_LIST_MAX`](crate::limits::NODE_LIST_MAX) extents, rising, all before the next;
//! - durability: 1 stable, 2 volatile; hole, complete, more: 0 or 1;
//! - status of `HelloAck`: 0 accepted, 1 wrong cluster, 2 no common version;
//! - status of `Failure`: 1 generation (sealed, got), 2 epoch (sealed, got), 3 deleted, 4 no space,
//!   5 corrupt (offset), 6 disk failed, 7 no such disk, 8 invalid, 9 busy, 10 version (present: generation in sealed, seq
//!   in got), 11 granted (milliseconds left in offset);
//! - a name is UTF-8 of at most 255 bytes, for logs only.
//!
//! # Versions
//!
//! `Hello` bears the range that its sender speaks, and the node chooses the highest common one or
//! refuses by name. Magic, version, the two lengths, the header's CRC and both greetings keep their
//! place in every version. What is not known (version, kind, status, value, trailing bytes) is an
//! error, never guessed. Any [`FrameError`] ends the connection: after it the stream has no meaning.
//!
//! | version | what is new |
//! |---|---|
//! | 1 | |
//! | 2 | `Damaged`, an answer to `Watermark` |
//! | 3 | `Prepare`, `Commit`, `Rollback`, `Prepared`, and the failure 10 |
//! | 4 | `Extents`; `Watermark` and `Sealed` say what a disk has completely; `Alive` |
//! | 5 | `Drop` |
//! | 6 | `Grant`, and the failure 11 |
//!
//! This side speaks version 6 only.

mod decoder;
mod fields;
mod header;
mod hello;
mod outgoing;
mod reply;
mod request;

pub use decoder::Decoder;
pub use header::HEADER_BYTES;
pub use hello::{Hello, HelloAck, ProtocolVersions};
pub use outgoing::Outgoing;

use super::{Reply, Request};

/// The protocol version that this code speaks.
pub const PROTOCOL_VERSION: u8 = 6;
/// The version in the header of a greeting, which comes before anything was agreed on.
pub const GREETING_VERSION: u8 = 1;
/// Longest name in a greeting.
pub const HELLO_NAME_BYTES_MAX: usize = 255;
/// Extents that one `Sealed` answer can name: what fits the data part of a frame.
pub const SEALED_EXTENTS_MAX: usize = crate::limits::FRAME_DATA_BYTES_MAX as usize / reply::DIRTY_BYTES;

/// One decoded frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The first frame of the side that connected.
    Hello(Hello),
    /// The node's answer to it.
    HelloAck(HelloAck),
    /// The node lives, and has nothing else to say.
    Alive,
    /// A question.
    Request {
        /// Returns in the answer.
        id: u64,
        /// The question.
        request: Request,
    },
    /// An answer.
    Reply {
        /// Of the question.
        id: u64,
        /// The answer.
        reply: Reply,
    },
}

/// What is wrong with received bytes. The connection is closed: nothing after it can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not a frame of this protocol.
    #[error("not a frame of the node protocol (magic {0:#010x})")]
    Magic(u32),
    /// The header was damaged on the way.
    #[error("checksum of the frame header is wrong")]
    HeaderChecksum,
    /// The body was damaged on the way.
    #[error("checksum of the frame body is wrong")]
    BodyChecksum,
    /// The data was damaged on the way.
    #[error("checksum of the frame data is wrong")]
    DataChecksum,
    /// A protocol version that was not agreed on.
    #[error("frame of protocol version {0}; this side speaks version {PROTOCOL_VERSION}")]
    Version(u8),
    /// No such kind.
    #[error("frame of unknown kind {0}")]
    Kind(u8),
    /// Longer than [`FRAME_BODY_BYTES_MAX`](crate::limits::FRAME_BODY_BYTES_MAX).
    #[error("frame body of {0} bytes is too long")]
    BodyTooLong(u32),
    /// Longer than [`FRAME_DATA_BYTES_MAX`](crate::limits::FRAME_DATA_BYTES_MAX).
    #[error("frame data of {0} bytes is too long")]
    DataTooLong(u32),
    /// Body or data of a length that does not belong to the kind.
    #[error("length of the frame does not fit its kind {0}")]
    Length(u8),
    /// A field has a value that it cannot have.
    #[error("frame field {0} is invalid")]
    Field(&'static str),
    /// The first frame was no greeting, or a later one was.
    #[error("frame of kind {0} out of order: one greeting, then requests and replies")]
    Order(u8),
}

/// Why a value cannot be sent. Nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// More bulk data than a frame can bear.
    #[error("{0} bytes of data do not fit a frame")]
    DataTooLong(u64),
    /// More list entries than a frame can bear.
    #[error("a list of {0} entries does not fit a frame")]
    ListTooLong(usize),
    /// A name longer than [`HELLO_NAME_BYTES_MAX`].
    #[error("a name of {0} bytes is too long")]
    NameTooLong(usize),
    /// A value that exists only on the asking side ([`Failure::Disconnected`](super::Failure)).
    #[error("the value is never sent")]
    NotSent,
}

#[cfg(test)]
mod tests;

//! iSCSI PDUs and text keys (RFC 7143).
//!
//! ```text
//! socket -> Framer -> Pdu { bhs, ahs, data } -> Request -> a session
//! socket <- slices <- Encoder <- a response's fields + data slices <- a session
//! ```
//!
//! A PDU is a 48-byte basic header segment (BHS), additional header segments (AHS), an optional
//! header digest, a data segment padded to 4 bytes, and an optional data digest (RFC 7143 11.2).
//!
//! - [`Bhs`]: the header's bytes; [`initiator`] and [`target`]: what each opcode lays into them;
//! - [`Framer`]: bytes to PDUs, bounded; [`Encoder`]: PDUs to slices, without copying data;
//! - [`text`]: key=value pairs; [`Serial`]: sequence numbers; [`codes`]: numbers with a name.

mod ahs;
mod bhs;
pub mod codes;
mod encoder;
mod framer;
pub mod initiator;
mod serial;
pub mod target;
#[cfg(test)]
mod tests;
pub mod text;

pub use ahs::{Ahs, AhsError};
pub use bhs::{BHS_BYTES, Bhs};
pub use encoder::Encoder;
pub use framer::{FrameError, Framer, Pdu};
pub use initiator::Request;
pub use serial::Serial;
pub use target::Reply;

/// The reserved value of initiator task tags and target transfer tags (RFC 7143 11.2.1.8).
pub const TAG_NONE: u32 = 0xffff_ffff;

/// Bytes of padding after `len` bytes (RFC 7143 11.1).
#[must_use]
pub fn padding(len: usize) -> usize {
    len.wrapping_neg() & 3
}

//! Frames to bytes for the socket.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::header::{HEADER_BYTES, Header, Kind};
use super::hello::{Hello, HelloAck};
use super::{EncodeError, reply, request};
use crate::checksum::crc32c;
use crate::node::{Reply, Request};

/// Encoded frames on their way to a socket.
///
/// Headers and bodies of successive frames lie in one buffer, bulk data is only referred to: a
/// [`Buf`] for vectored writes. Give it to `write_buf` until [`has_remaining`](Buf::has_remaining) is false.
#[derive(Debug, Default)]
pub struct Outgoing {
    /// Whole parts, never empty, before `tail`.
    parts: VecDeque<Bytes>,
    /// Headers and bodies after the last bulk data.
    tail: BytesMut,
    parts_len: usize,
}

impl Outgoing {
    /// Nothing to send.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends the greeting.
    ///
    /// # Errors
    /// It cannot be sent; nothing was appended.
    pub fn hello(&mut self, hello: &Hello) -> Result<(), EncodeError> {
        self.append(Routing::default(), |out| hello.encode_body(out).map(|()| (Kind::Hello, 0, Bytes::new())))
    }

    /// Appends the answer to a greeting.
    ///
    /// # Errors
    /// It cannot be sent; nothing was appended.
    pub fn hello_ack(&mut self, ack: &HelloAck) -> Result<(), EncodeError> {
        self.append(Routing::default(), |out| {
            ack.encode_body(out).map(|()| (Kind::HelloAck, ack.status(), Bytes::new()))
        })
    }

    /// Appends the sign of life of a node that has nothing else to say.
    ///
    /// # Errors
    /// None that is known: it has neither body nor data.
    pub fn alive(&mut self) -> Result<(), EncodeError> {
        self.append(Routing::default(), |_| Ok((Kind::Alive, 0, Bytes::new())))
    }

    /// Appends a request whose reply will bear `id`.
    ///
    /// # Errors
    /// It cannot be sent; nothing was appended.
    pub fn request(&mut self, id: u64, request: &Request) -> Result<(), EncodeError> {
        let routing = Routing { id, epoch: request.epoch.0, disk: request.disk.0 };
        self.append(routing, |out| request::encode(&request.body, out).map(|(kind, data)| (kind, 0, data)))
    }

    /// Appends the reply to the request that bore `id`.
    ///
    /// # Errors
    /// It cannot be sent; nothing was appended.
    pub fn reply(&mut self, id: u64, reply: &Reply) -> Result<(), EncodeError> {
        self.append(Routing { id, epoch: 0, disk: 0 }, |out| reply::encode(reply, out))
    }

    fn append(
        &mut self,
        routing: Routing,
        body: impl FnOnce(&mut BytesMut) -> Result<(Kind, u8, Bytes), EncodeError>,
    ) -> Result<(), EncodeError> {
        let start = self.tail.len();
        self.tail.put_bytes(0, HEADER_BYTES);
        let (kind, status, data) = match body(&mut self.tail) {
            Ok(encoded) => encoded,
            Err(error) => {
                self.tail.truncate(start);
                return Err(error);
            }
        };
        let body = &self.tail[start + HEADER_BYTES..];
        let header = Header {
            kind,
            status,
            body_len: u32::try_from(body.len()).expect("bodies are bounded by their encoders"),
            data_len: u32::try_from(data.len()).expect("data is bounded by its encoder"),
            id: routing.id,
            epoch: routing.epoch,
            disk: routing.disk,
            body_crc: crc32c(body),
            data_crc: crc32c(&data),
        };
        self.tail[start..start + HEADER_BYTES].copy_from_slice(&header.encode());
        if !data.is_empty() {
            let head = self.tail.split().freeze();
            self.parts_len += head.len() + data.len();
            self.parts.push_back(head);
            self.parts.push_back(data);
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Default)]
struct Routing {
    id: u64,
    epoch: u64,
    disk: u32,
}

impl Buf for Outgoing {
    fn remaining(&self) -> usize {
        self.parts_len + self.tail.len()
    }

    fn chunk(&self) -> &[u8] {
        self.parts.front().map_or(&self.tail, |part| part)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let tail = (!self.tail.is_empty()).then_some(&self.tail[..]);
        let chunks = self.parts.iter().map(|part| &part[..]).chain(tail);
        let mut count = 0;
        for (slice, chunk) in slices.iter_mut().zip(chunks) {
            *slice = IoSlice::new(chunk);
            count += 1;
        }
        count
    }

    fn advance(&mut self, mut len: usize) {
        assert!(len <= self.remaining(), "more was sent than there was");
        while let Some(part) = self.parts.front_mut() {
            let step = len.min(part.len());
            part.advance(step);
            self.parts_len -= step;
            len -= step;
            if !part.is_empty() {
                return;
            }
            self.parts.pop_front();
        }
        self.tail.advance(len);
    }
}

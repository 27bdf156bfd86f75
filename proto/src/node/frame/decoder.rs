//! Received bytes to frames.

use bytes::{Bytes, BytesMut};

use super::header::{HEADER_BYTES, Header, Kind};
use super::hello::{Hello, HelloAck};
use super::{Frame, FrameError, reply, request};
use crate::checksum::crc32c;

/// Cuts a received byte stream into frames.
///
/// Read from the socket into [`buffer`](Self::buffer), then call [`next_frame`](Self::next_frame) until it has no
/// more. Bulk data of a frame is a slice of the receive buffer: nothing is copied.
///
/// The first frame must be a greeting and no later one may be: until a peer has said who it is, it
/// can make the receiver hold no more than a greeting. After an error all further calls fail with
/// the same error.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: BytesMut,
    header: Option<Header>,
    greeted: bool,
    failed: Option<FrameError>,
}

impl Decoder {
    /// At the start of a connection.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Where received bytes are appended. Nothing else may be done to it.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// Appends received bytes, for those who do not read into [`buffer`](Self::buffer).
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Whether bytes of an incomplete frame are held: a connection that ends now was cut.
    #[must_use]
    pub fn is_mid_frame(&self) -> bool {
        self.header.is_some() || !self.buffer.is_empty()
    }

    /// The next complete frame, or `None` if more bytes are needed.
    ///
    /// # Errors
    /// The stream is broken; the connection has to be closed.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        self.try_next().inspect_err(|error| self.failed = Some(*error))
    }

    fn try_next(&mut self) -> Result<Option<Frame>, FrameError> {
        let header = match self.header {
            Some(header) => header,
            None => {
                let Some(bytes) = self.buffer.first_chunk::<HEADER_BYTES>() else {
                    return Ok(None);
                };
                let header = Header::decode(bytes)?;
                if header.kind.is_greeting() == self.greeted {
                    return Err(FrameError::Order(header.kind.code()));
                }
                self.header = Some(header);
                header
            }
        };
        let frame_len = header.frame_len();
        if self.buffer.len() < frame_len {
            self.buffer.reserve(frame_len - self.buffer.len());
            return Ok(None);
        }
        self.header = None;
        self.greeted = true;
        let mut body = self.buffer.split_to(frame_len).freeze().split_off(HEADER_BYTES);
        let data = body.split_off(header.body_len as usize);
        frame(&header, &body, data).map(Some)
    }
}

fn frame(header: &Header, body: &[u8], data: Bytes) -> Result<Frame, FrameError> {
    if crc32c(body) != header.body_crc {
        return Err(FrameError::BodyChecksum);
    }
    if crc32c(&data) != header.data_crc {
        return Err(FrameError::DataChecksum);
    }
    let id = header.id;
    match header.kind {
        Kind::Hello | Kind::HelloAck if !data.is_empty() => Err(FrameError::Length(header.kind.code())),
        Kind::Hello => Hello::decode(body).map(Frame::Hello),
        Kind::HelloAck => HelloAck::decode(header, body).map(Frame::HelloAck),
        Kind::Alive if body.is_empty() && data.is_empty() => Ok(Frame::Alive),
        Kind::Alive => Err(FrameError::Length(header.kind.code())),
        kind if kind.is_request() => {
            request::decode(header, body, data).map(|request| Frame::Request { id, request })
        }
        _ => reply::decode(header, body, data).map(|reply| Frame::Reply { id, reply }),
    }
}

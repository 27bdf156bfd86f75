//! The node protocol over TCP, in front of a [`Node`].
//!
//! ```text
//!     socket ─> read task ─ every frame that one read brought ─> Node
//!     socket <─ write task ─ every answer that is ready, one vectored write <─┘ (out of order)
//!                 '── Alive, when there was none for a while: the peer hears us whatever the disks do
//! ```
//!
//! A connection may have as many requests and as much data unanswered as the limits say; then its
//! reader stops, and TCP makes the peer wait. A peer that breaks the protocol loses its
//! connection, nothing else.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Buf;
use lunette_proto::limits::{
    BLOCK_BYTES, EXTENT_BYTES, FRAME_DATA_BYTES_MAX, NODE_ALIVE_MS, NODE_INFLIGHT_MAX,
};
use lunette_proto::node::frame::{Decoder, EncodeError, Frame, FrameError, HelloAck, Outgoing};
use lunette_proto::node::{Change, Replies, Reply, Request, RequestBody, Service};
use parking_lot::Mutex;
use slab::Slab;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::Node;

/// Connections at a time; more are closed at once.
const CONNECTIONS_MAX: usize = 1024;
/// A peer that has not greeted by then is closed.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);
/// Answers of a stopping node are waited for no longer.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after the listener failed, for instance for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A peer that is silent for so long is asked whether it lives.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// A peer that takes nothing for so long is gone: a second line behind its own care for the connection.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(10);
/// Without an answer for so long, a sign of life is due.
const ALIVE: Duration = Duration::from_millis(NODE_ALIVE_MS);
const RECEIVE_BYTES: usize = 256 << 10;
/// A receive buffer with less room than this is not read into any more. Data that waits holds the whole buffer that it
/// came in, so each has to be used up.
const RECEIVE_BYTES_MIN: usize = 16 << 10;
/// What a connection may have unanswered, in blocks of data asked for or brought: 64 MiB.
const INFLIGHT_UNITS: u32 = 16 * EXTENT_BYTES / BLOCK_BYTES;
/// A request costs at least this, so that the limit on their number holds too.
const REQUEST_UNITS: u32 = INFLIGHT_UNITS / NODE_INFLIGHT_MAX as u32;
const _: () = assert!(EXTENT_BYTES / BLOCK_BYTES <= INFLIGHT_UNITS && REQUEST_UNITS > 0);

/// Serves `node`, which calls itself `name` towards its peers, until `stop`. Then no more requests are read, those
/// at work are answered, and the connections are closed; the node itself stays open.
pub async fn serve(listener: TcpListener, node: Arc<Node>, name: String, stop: CancellationToken) {
    let name: Arc<str> = name.into();
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((_, peer)) if connections.len() >= CONNECTIONS_MAX => {
                tracing::warn!(%peer, "connection refused: too many");
            }
            Ok((stream, peer)) => {
                let (node, name, stop) = (node.clone(), name.clone(), stop.clone());
                connections.spawn(async move {
                    match Box::pin(connection(stream, node, &name, &stop)).await {
                        Ok(()) => tracing::debug!(%peer, "connection closed"),
                        Err(Ended::Io(error)) => tracing::debug!(%peer, %error, "connection lost"),
                        Err(error) => tracing::warn!(%peer, %error, "connection closed"),
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections at the moment");
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = tokio::time::sleep(ACCEPT_PAUSE) => {}
                }
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// Why a connection ended that did not end in order.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("answer cannot be sent: {0}")]
    Encode(#[from] EncodeError),
    #[error("peer sent no greeting in time")]
    NoGreeting,
    #[error("connection cut in the middle of a frame")]
    Cut,
    #[error("{peer} refused: {ack}")]
    Refused { peer: String, ack: HelloAck },
    #[error("peer sent a frame that only a node sends")]
    NotARequest,
}

async fn connection(
    mut stream: TcpStream,
    node: Arc<Node>,
    name: &str,
    stop: &CancellationToken,
) -> Result<(), Ended> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
    SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    SockRef::from(&stream).set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX))?;
    let mut decoder = Decoder::new();
    let greeted = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        greeted = timeout(GREETING_TIMEOUT, greet(&mut stream, &mut decoder, &node, name)) => greeted,
    };
    greeted.map_err(|_| Ended::NoGreeting)??;

    let (read, write) = stream.into_split();
    let outbox = Arc::new(Outbox::new());
    let writer = write_answers(write, outbox.clone());
    let reader = async {
        let ended = tokio::select! {
            () = stop.cancelled() => Ok(()),
            ended = read_requests(read, decoder, &node, &outbox) => ended,
        };
        outbox.end();
        ended
    };
    tokio::pin!(writer);
    let mut written = None;
    let read = {
        tokio::pin!(reader);
        tokio::select! {
            read = &mut reader => read,
            result = &mut writer => {
                written = Some(result);
                Ok(())
            }
        }
    };
    let written = match written {
        Some(written) => written,
        // Nobody can be waiting at the other end of a connection that broke the protocol.
        None if read.is_err() => Ok(()),
        None => timeout(STOP_TIMEOUT, writer).await.unwrap_or(Ok(())),
    };
    read.and(written)
}

async fn greet(stream: &mut TcpStream, decoder: &mut Decoder, node: &Node, name: &str) -> Result<(), Ended> {
    let hello = loop {
        match decoder.next_frame()? {
            Some(Frame::Hello(hello)) => break hello,
            Some(_) => return Err(Ended::NotARequest),
            None => {}
        }
        if stream.read_buf(decoder.buffer()).await? == 0 {
            return if decoder.is_mid_frame() { Err(Ended::Cut) } else { Ok(()) };
        }
    };
    let ack = hello.answer(node.cluster(), name);
    let mut out = Outgoing::new();
    out.hello_ack(&ack)?;
    stream.write_all_buf(&mut out).await?;
    match ack {
        HelloAck::Accepted { .. } => {
            tracing::debug!(peer = hello.name, "connection accepted");
            Ok(())
        }
        ack => Err(Ended::Refused { peer: hello.name, ack }),
    }
}

async fn read_requests(
    read: OwnedReadHalf,
    mut decoder: Decoder,
    node: &Arc<Node>,
    outbox: &Arc<Outbox>,
) -> Result<(), Ended> {
    loop {
        while let Some(frame) = decoder.next_frame()? {
            let Frame::Request { id, request } = frame else { return Err(Ended::NotARequest) };
            let units = units(&request);
            match outbox.room.acquire_many(units).await {
                Ok(permit) => permit.forget(),
                // Never closed while the reader runs; if it were, there is nobody to answer.
                Err(_) => return Ok(()),
            }
            let tag = outbox.expect(id, units);
            node.call(request, tag, outbox.clone());
        }
        let buffer = decoder.buffer();
        if buffer.capacity() - buffer.len() < RECEIVE_BYTES_MIN {
            buffer.reserve(RECEIVE_BYTES);
        }
        // A peer that has given the connection up hears no answers. It may have decided meanwhile what became of its
        // requests, by what others did: those that are still in the socket are not begun, however long we were away.
        if read.ready(Interest::READABLE).await?.is_read_closed() {
            return Ok(());
        }
        match read.try_read_buf(decoder.buffer()) {
            Ok(0) => return if decoder.is_mid_frame() { Err(Ended::Cut) } else { Ok(()) },
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
}

async fn write_answers(mut write: OwnedWriteHalf, outbox: Arc<Outbox>) -> Result<(), Ended> {
    let mut ready = Vec::new();
    let mut out = Outgoing::new();
    loop {
        let finished = outbox.take(&mut ready);
        if ready.is_empty() {
            if finished {
                write.shutdown().await?;
                return Ok(());
            }
            if timeout(ALIVE, outbox.changed.notified()).await.is_ok() {
                continue;
            }
            out.alive()?;
        }
        let mut units = 0;
        for answer in ready.drain(..) {
            units += answer.units as usize;
            out.reply(answer.id, &answer.reply)?;
        }
        while out.has_remaining() {
            write.write_buf(&mut out).await?;
        }
        outbox.room.add_permits(units);
    }
}

/// What a request and its answer may take of memory.
fn units(request: &Request) -> u32 {
    let bytes = match &request.body {
        RequestBody::Change { change: Change::Data(data), .. }
        | RequestBody::Put { change: Change::Data(data), .. } => data.len() as u64,
        // Longer ones are refused by the disk.
        RequestBody::Read { len, .. } => u64::from(*len).min(u64::from(EXTENT_BYTES)),
        // The answer may name as many dirty extents as a frame can bear.
        RequestBody::Seal { .. } => u64::from(FRAME_DATA_BYTES_MAX),
        _ => 0,
    };
    let units = bytes.div_ceil(u64::from(BLOCK_BYTES)).min(u64::from(EXTENT_BYTES / BLOCK_BYTES));
    u32::try_from(units).unwrap_or(INFLIGHT_UNITS).max(REQUEST_UNITS)
}

/// Answers on their way to the connection's writer.
struct Outbox {
    state: Mutex<OutboxState>,
    changed: Notify,
    room: Semaphore,
}

#[derive(Default)]
struct OutboxState {
    expected: Slab<Expected>,
    ready: Vec<Answer>,
    /// No more requests come.
    ended: bool,
}

struct Expected {
    id: u64,
    units: u32,
}

struct Answer {
    id: u64,
    units: u32,
    reply: Reply,
}

impl Outbox {
    fn new() -> Self {
        Self {
            state: Mutex::default(),
            changed: Notify::new(),
            room: Semaphore::new(INFLIGHT_UNITS as usize),
        }
    }

    /// Notes a request; the tag for its answer.
    fn expect(&self, id: u64, units: u32) -> u64 {
        self.state.lock().expected.insert(Expected { id, units }) as u64
    }

    fn end(&self) {
        self.state.lock().ended = true;
        self.changed.notify_one();
    }

    /// Moves what is ready to `ready`; whether nothing more will come.
    fn take(&self, ready: &mut Vec<Answer>) -> bool {
        let mut state = self.state.lock();
        std::mem::swap(&mut state.ready, ready);
        state.ended && state.expected.is_empty()
    }
}

impl Replies for Outbox {
    fn reply(&self, tag: u64, reply: Reply) {
        let mut state = self.state.lock();
        let Some(expected) = usize::try_from(tag).ok().and_then(|tag| state.expected.try_remove(tag)) else {
            return;
        };
        state.ready.push(Answer { id: expected.id, units: expected.units, reply });
        drop(state);
        self.changed.notify_one();
    }

    fn reply_all(&self, answers: &mut Vec<(u64, Reply)>) {
        let mut state = self.state.lock();
        let OutboxState { expected, ready, .. } = &mut *state;
        ready.extend(answers.drain(..).filter_map(|(tag, reply)| {
            let Expected { id, units } = expected.try_remove(usize::try_from(tag).ok()?)?;
            Some(Answer { id, units, reply })
        }));
        drop(state);
        self.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use lunette_proto::ids::{DiskId, Epoch, Generation, Namespace};

    use super::*;

    /// Guards memory: a request whose answer may be as long as a frame counts as that.
    #[test]
    fn long_answers_count() {
        let body = RequestBody::Seal { namespace: Namespace(1), generation: Generation(1) };
        let seal = Request { disk: DiskId(1), epoch: Epoch(1), body };
        assert_eq!(units(&seal) * BLOCK_BYTES, FRAME_DATA_BYTES_MAX);
    }
}

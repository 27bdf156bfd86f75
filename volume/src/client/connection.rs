//! One connection to a node, from the greeting to its end.

use std::io;
use std::time::Duration;

use bytes::Buf;
use lunette_proto::limits::NODE_ALIVE_MS;
use lunette_proto::node::Reply;
use lunette_proto::node::frame::{Decoder, EncodeError, Frame, FrameError, Hello, HelloAck, Outgoing};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use super::{Shared, Unanswered};

/// To connect, and again to greet.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How finely silence is measured. A wait that ends late counts as one of these, however late it was: then it was this
/// process that had no time, and what came meanwhile is yet to be looked at.
const SILENCE: Duration = Duration::from_millis(100);
/// Such waits in a row, without a byte, after which the connection is given up.
const SILENCES_MAX: u32 = 10;
// Three signs of life have to be missed.
const _: () = assert!(SILENCES_MAX as u128 * SILENCE.as_millis() >= 3 * NODE_ALIVE_MS as u128);
/// A node that takes nothing of what is sent for so long is given up, although it gives signs of life. The system counts
/// a full receive buffer too, so this is far longer than a disk may hang.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(10);
const RECEIVE_BYTES: usize = 256 << 10;

#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Encode(#[from] EncodeError),
    #[error("refused: {0}")]
    Refused(HelloAck),
    #[error("the node sent what nobody asked for")]
    Unasked,
    #[error("the node is silent")]
    Silent,
}

/// Connects and serves until the connection breaks; whether it had been accepted, and why it ended.
pub(super) async fn run(shared: &Shared) -> (bool, Broken) {
    let (read, write, decoder) = match open(shared).await {
        Ok(opened) => opened,
        Err(error) => return (false, error),
    };
    shared.state.lock().connected = true;
    tracing::debug!(node = %shared.node, address = %shared.address, "connected");
    let ended = tokio::select! {
        ended = receive(shared, read, decoder) => ended,
        ended = send(shared, write) => ended,
    };
    match ended {
        Ok(never) => match never {},
        Err(error) => (true, error),
    }
}

async fn open(shared: &Shared) -> Result<(OwnedReadHalf, OwnedWriteHalf, Decoder), Broken> {
    let connecting = timeout(CONNECT_TIMEOUT, TcpStream::connect(shared.address)).await;
    let stream = connecting.map_err(|_| Broken::Silent)??;
    stream.set_nodelay(true)?;
    SockRef::from(&stream).set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX))?;
    let (mut read, mut write) = stream.into_split();
    let mut decoder = Decoder::new();
    let greeting = async {
        let mut hello = Outgoing::new();
        hello.hello(&Hello::new(shared.cluster, shared.name.as_str()))?;
        flush(&mut write, &mut hello).await?;
        loop {
            match decoder.next_frame()? {
                Some(Frame::HelloAck(HelloAck::Accepted { .. })) => return Ok(()),
                Some(Frame::HelloAck(refusal)) => return Err(Broken::Refused(refusal)),
                Some(_) => return Err(Broken::Unasked),
                None => fill(&mut read, &mut decoder).await?,
            }
        }
    };
    timeout(CONNECT_TIMEOUT, greeting).await.map_err(|_| Broken::Silent)??;
    Ok((read, write, decoder))
}

async fn fill(read: &mut OwnedReadHalf, decoder: &mut Decoder) -> Result<(), Broken> {
    decoder.buffer().reserve(RECEIVE_BYTES);
    if read.read_buf(decoder.buffer()).await? == 0 {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(())
}

async fn flush(write: &mut OwnedWriteHalf, outgoing: &mut Outgoing) -> Result<(), Broken> {
    while outgoing.has_remaining() {
        if write.write_buf(outgoing).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::WriteZero).into());
        }
    }
    Ok(())
}

enum Never {}

/// Writes whatever has gathered since the last write.
async fn send(shared: &Shared, mut write: OwnedWriteHalf) -> Result<Never, Broken> {
    loop {
        let mut outgoing = std::mem::take(&mut shared.state.lock().outgoing);
        if outgoing.has_remaining() {
            flush(&mut write, &mut outgoing).await?;
        } else {
            shared.wake.notified().await;
        }
    }
}

/// Hands answers to those who wait for them, as many as one read brought at a time.
async fn receive(shared: &Shared, mut read: OwnedReadHalf, mut decoder: Decoder) -> Result<Never, Broken> {
    let mut answers: Vec<(Unanswered, Reply)> = Vec::new();
    let mut silences = 0;
    loop {
        let parsed = take_answers(shared, &mut decoder, &mut answers);
        // What came before a broken frame was taken from the table, and is answered.
        for (it, reply) in answers.drain(..) {
            it.to.reply(it.tag, reply);
        }
        parsed?;
        match timeout(SILENCE, fill(&mut read, &mut decoder)).await {
            Ok(filled) => {
                filled?;
                silences = 0;
            }
            Err(_) => {
                silences += 1;
                if silences >= SILENCES_MAX {
                    // Behind what a stopped node has not read, an orderly end would not arrive. With this one the node
                    // begins nothing more of it when it goes on.
                    SockRef::from(read.as_ref()).set_linger(Some(Duration::ZERO))?;
                    return Err(Broken::Silent);
                }
            }
        }
    }
}

fn take_answers(
    shared: &Shared,
    decoder: &mut Decoder,
    answers: &mut Vec<(Unanswered, Reply)>,
) -> Result<(), Broken> {
    while let Some(frame) = decoder.next_frame()? {
        let (id, reply) = match frame {
            Frame::Reply { id, reply } => (id, reply),
            Frame::Alive => continue,
            Frame::Hello(_) | Frame::HelloAck(_) | Frame::Request { .. } => return Err(Broken::Unasked),
        };
        let key = usize::try_from(id).map_err(|_| Broken::Unasked)?;
        let mut state = shared.state.lock();
        let unanswered = state.unanswered.try_remove(key).ok_or(Broken::Unasked)?;
        state.bytes -= unanswered.bytes;
        answers.push((unanswered, reply));
    }
    Ok(())
}

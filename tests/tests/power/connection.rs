//! A connection to a node: requests without waiting, answers in any order.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use bytes::Buf;
use lunette_proto::ids::Epoch;
use lunette_proto::node::frame::{Decoder, Frame, Hello, HelloAck, Outgoing};
use lunette_proto::node::{Reply, Request, RequestBody};

use super::node::{CLUSTER, DISK};

/// An answer that takes longer is none.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    frames: Receiver<Frame>,
    id: u64,
}

impl Connection {
    pub(crate) fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("the node listens");
        stream.set_nodelay(true).expect("a socket option");
        let mut incoming = stream.try_clone().expect("a second handle");
        let (sender, frames) = channel();
        // Ends with the connection.
        std::thread::spawn(move || {
            let mut decoder = Decoder::new();
            let mut buffer = vec![0; 256 << 10];
            while let Ok(read) = incoming.read(&mut buffer) {
                if read == 0 {
                    return;
                }
                decoder.push(&buffer[..read]);
                while let Some(frame) = decoder.next_frame().expect("the node speaks its protocol") {
                    if frame != Frame::Alive && sender.send(frame).is_err() {
                        return;
                    }
                }
            }
        });
        let mut connection = Self { stream, frames, id: 0 };
        let mut out = Outgoing::new();
        out.hello(&Hello::new(CLUSTER, "test")).expect("a short name");
        assert!(connection.write(out));
        match connection.frames.recv_timeout(PATIENCE) {
            Ok(Frame::HelloAck(HelloAck::Accepted { .. })) => connection,
            other => panic!("greeted with {other:?}"),
        }
    }

    /// Sends; the id of the answer, or `None` if the node is gone.
    pub(crate) fn send(&mut self, body: RequestBody) -> Option<u64> {
        self.id += 1;
        let mut out = Outgoing::new();
        out.request(self.id, &Request { disk: DISK, epoch: Epoch(1), body })
            .expect("a request within the limits");
        self.write(out).then_some(self.id)
    }

    fn write(&mut self, mut out: Outgoing) -> bool {
        while out.has_remaining() {
            match self.stream.write(out.chunk()) {
                Ok(0) | Err(_) => return false,
                Ok(written) => out.advance(written),
            }
        }
        true
    }

    /// The next answer, or `None` if the node is gone.
    pub(crate) fn receive(&mut self) -> Option<(u64, Reply)> {
        match self.frames.recv_timeout(PATIENCE) {
            Ok(Frame::Reply { id, reply }) => Some((id, reply)),
            Ok(other) => panic!("not an answer: {other:?}"),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("no answer for {PATIENCE:?}"),
        }
    }

    /// Sends, when nothing else is on its way, and waits.
    pub(crate) fn call(&mut self, body: RequestBody) -> Reply {
        let id = self.send(body).expect("the node lives");
        let (answered, reply) = self.receive().expect("the node lives");
        assert_eq!(answered, id);
        reply
    }
}

//! One connection's task: moves bytes, completions and events between the socket, the devices and
//! the session's state machine. It decides nothing.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;
use lunette_volume::device::Completions;
use tokio::net::TcpStream;

use super::mailbox::{Mailbox, Post};
use super::shared::{Shared, Unproven};
use crate::session::{Action, Connection, ConnectionId, Endpoint};

/// Room for at least this much is there before each read.
const RECEIVE_BYTES: usize = 64 << 10;
/// Slices of one vectored write.
const SLICES: usize = 128;

/// Serves a connection to its end, that is until its devices have answered all.
pub(super) async fn serve(
    shared: Arc<Shared>,
    stream: TcpStream,
    endpoint: Endpoint,
    id: ConnectionId,
    unproven: Unproven,
) {
    let random = Box::new(|bytes: &mut [u8]| {
        aws_lc_rs::rand::fill(bytes).expect("without random numbers no challenge may be sent");
    });
    let mailbox = Arc::new(Mailbox::default());
    let completions: Arc<dyn Completions> = Arc::clone(&mailbox) as _;
    shared.connect(id, Arc::clone(&mailbox));
    let connection = Connection::new(Arc::clone(&shared.context), endpoint, random, Instant::now());
    let mut task = Task {
        shared: Arc::clone(&shared),
        id,
        mailbox,
        completions,
        connection,
        posts: Vec::new(),
        unproven: Some(unproven),
    };
    task.converse(stream).await;
    task.drain().await;
    shared.disconnect(id);
}

struct Task {
    shared: Arc<Shared>,
    id: ConnectionId,
    mailbox: Arc<Mailbox>,
    completions: Arc<dyn Completions>,
    connection: Connection,
    posts: Vec<Post>,
    /// Until login is over.
    unproven: Option<Unproven>,
}

impl Task {
    /// Until the socket is closed, by either side.
    async fn converse(&mut self, stream: TcpStream) {
        let mut buffer = BytesMut::new();
        loop {
            self.react();
            if !buffer.is_empty() && self.connection.wants_bytes() && self.connection.missing(&buffer) == 0 {
                // Bytes that were there already when reading paused.
                self.connection.handle_bytes(Instant::now(), &mut buffer);
                self.react();
            }
            let blocked = match self.send(&stream) {
                Ok(blocked) => blocked,
                Err(_) => return,
            };
            if self.connection.is_closed() {
                return;
            }
            let deadline = tokio::time::Instant::from_std(self.connection.poll_timeout());
            tokio::select! {
                biased;
                () = self.mailbox.arrived() => {}
                ready = stream.writable(), if blocked => {
                    if ready.is_err() {
                        return;
                    }
                }
                ready = stream.readable(), if self.connection.wants_bytes() => {
                    if ready.is_err() || !self.receive(&stream, &mut buffer) {
                        return;
                    }
                }
                () = tokio::time::sleep_until(deadline) => self.connection.handle_timeout(Instant::now()),
            }
        }
    }

    /// After the socket is gone: until nothing is outstanding.
    async fn drain(&mut self) {
        self.connection.abandon();
        self.unproven = None;
        loop {
            self.react();
            if self.connection.is_drained() {
                return;
            }
            self.mailbox.arrived().await;
        }
    }

    /// Handles all that has arrived and does all that follows from it. Devices may complete within
    /// the submission, so this goes on until nothing is left.
    fn react(&mut self) {
        loop {
            while let Some(action) = self.connection.poll_action() {
                self.act(action);
            }
            self.mailbox.take(&mut self.posts);
            if self.posts.is_empty() {
                return;
            }
            let now = Instant::now();
            for post in self.posts.drain(..) {
                match post {
                    Post::Completed(tag, outcome) => self.connection.handle_completion(now, tag, outcome),
                    Post::Event(event) => self.connection.handle_event(now, event),
                }
            }
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Submit { device, tag, command } => device.submit(command, tag, &self.completions),
            Action::Claim(claim) => self.shared.claim(self.id, claim),
            Action::Established(stats) => {
                self.unproven = None;
                self.shared.establish(self.id, stats);
            }
            Action::Reset { token, volumes, attention } => {
                self.shared.reset(self.id, &self.mailbox, token, &volumes, attention);
            }
            Action::DropTarget { target } => self.shared.drop_target(self.id, &target),
        }
    }

    /// Writes until nothing is left, or the socket takes no more: then `true`.
    fn send(&mut self, stream: &TcpStream) -> io::Result<bool> {
        loop {
            self.connection.fill();
            let mut slices = [IoSlice::new(&[]); SLICES];
            let count = self.connection.slices(&mut slices);
            if count == 0 {
                return Ok(false);
            }
            match stream.try_write_vectored(&slices[..count]) {
                Ok(len) => self.connection.advance(len),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// One read and every PDU in it. `false`: the peer has closed.
    fn receive(&mut self, stream: &TcpStream, buffer: &mut BytesMut) -> bool {
        buffer.reserve(self.connection.missing(buffer).max(RECEIVE_BYTES));
        match stream.try_read_buf(buffer) {
            Ok(0) => false,
            Ok(_) => {
                self.connection.handle_bytes(Instant::now(), buffer);
                true
            }
            Err(error) => matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
        }
    }
}

//! One connection's task: moves bytes, completions and events between the socket, the devices and
//! the session's state machine. It decides nothing.

use std::io::{self, IoSlice};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lunette_volume::device::Completions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::WriteHalf;

use super::mailbox::{Mailbox, Post};
use super::receive::Inbound;
use super::sanitize;
use super::shared::{Shared, Unproven};
use crate::session::{Action, Connection, ConnectionId, Endpoint, Event};

/// Time for a peer to read the last words.
const LINGER: Duration = Duration::from_secs(1);
/// Slices of one vectored write.
const SLICES: usize = 128;

/// Serves a connection that [`Shared::connect`] knows, to its end, that is until its devices have
/// answered all.
pub(super) async fn serve(
    shared: Arc<Shared>,
    mut stream: TcpStream,
    endpoint: Endpoint,
    id: ConnectionId,
    mailbox: Arc<Mailbox>,
    unproven: Unproven,
) {
    let random = Box::new(|bytes: &mut [u8]| {
        aws_lc_rs::rand::fill(bytes).expect("without random numbers no challenge may be sent");
    });
    let completions: Arc<dyn Completions> = Arc::clone(&mailbox) as _;
    let connection = Connection::new(Arc::clone(&shared.context), endpoint, random, Instant::now());
    let mut task = Task {
        shared: Arc::clone(&shared),
        id,
        mailbox,
        completions,
        connection,
        posts: Vec::new(),
        unproven: Some(unproven),
        tsih: None,
    };
    task.converse(&mut stream).await;
    if task.connection.is_flushed() {
        tokio::spawn(linger(stream, task.unproven.take()));
    } else {
        drop(stream);
    }
    task.drain().await;
    shared.disconnect(id, task.tsih, task.connection.bequeath());
}

/// Closing a socket with unread bytes resets it, and the peer may never see what was sent last. So
/// the sending side is closed first, and what still comes is dropped for a while.
/// A connection that has not logged in counts as such until then.
async fn linger(mut stream: TcpStream, _unproven: Option<Unproven>) {
    let rest = async {
        stream.shutdown().await?;
        let mut sink = [0; 4096];
        while stream.read(&mut sink).await? != 0 {}
        io::Result::Ok(())
    };
    // Whether the peer closes, the socket fails or the time is over: it is dropped.
    let _ = tokio::time::timeout(LINGER, rest).await;
}

struct Task {
    shared: Arc<Shared>,
    id: ConnectionId,
    mailbox: Arc<Mailbox>,
    completions: Arc<dyn Completions>,
    connection: Connection,
    posts: Vec<Post>,
    /// Until login is over; a discovery session, for which nothing need be proven, keeps it.
    unproven: Option<Unproven>,
    /// Of the session, once it is established.
    tsih: Option<u16>,
}

impl Task {
    /// Until the socket is closed, by either side.
    async fn converse(&mut self, stream: &mut TcpStream) {
        let (mut reader, writer) = stream.split();
        let mut inbound = Inbound::default();
        let mut alarm = pin!(tokio::time::sleep_until(self.deadline()));
        loop {
            self.react();
            let Ok(blocked) = self.send(&writer) else { return };
            if self.connection.is_closed() {
                return;
            }
            if self.connection.has_actions() {
                // What was sent made room for commands that waited; nothing else need ever wake this task.
                continue;
            }
            let wants_bytes = self.connection.wants_bytes();
            let missing = self.connection.missing(&inbound.bytes);
            if wants_bytes && !inbound.bytes.is_empty() && missing == 0 {
                // Bytes that were there already when reading paused. Nothing else need ever come.
                self.connection.handle_bytes(Instant::now(), &mut inbound.bytes);
                inbound.give_back();
                continue;
            }
            // Every PDU puts the deadline off; the timer is set anew only when it rings, or too late.
            if self.deadline() < alarm.deadline() {
                alarm.as_mut().reset(self.deadline());
            }
            tokio::select! {
                biased;
                () = self.mailbox.arrived() => {}
                ready = writer.writable(), if blocked => {
                    if ready.is_err() {
                        return;
                    }
                }
                read = inbound.receive(&mut reader, missing), if wants_bytes => match read {
                    Ok(0) | Err(_) => return,
                    Ok(_) => {
                        self.connection.handle_bytes(Instant::now(), &mut inbound.bytes);
                        inbound.give_back();
                    }
                },
                () = &mut alarm => {
                    self.connection.handle_timeout(Instant::now());
                    alarm.as_mut().reset(self.deadline());
                }
            }
        }
    }

    fn deadline(&self) -> tokio::time::Instant {
        tokio::time::Instant::from_std(self.connection.poll_timeout())
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
            Action::Change { unit, tag, transition } => {
                let (mailbox, shared, volume) =
                    (Arc::clone(&self.mailbox), Arc::clone(&self.shared), unit.volume());
                let done = move |settled| {
                    sanitize::begin(&shared, volume);
                    mailbox.post(Post::Event(Event::Settled { tag, settled }));
                };
                unit.change(transition, Box::new(done));
            }
            Action::Await { unit, tag } => {
                let mailbox = Arc::clone(&self.mailbox);
                let done = move |settled| mailbox.post(Post::Event(Event::Settled { tag, settled }));
                unit.when_sanitized(Box::new(done));
            }
            Action::Tell { token, changed } => {
                self.shared.tell_others(self.id, &self.mailbox, token, &changed);
            }
            Action::Claim(claim) => self.shared.claim(self.id, claim),
            Action::Established(stats) => {
                if stats.target.is_some() {
                    self.unproven = None;
                }
                self.tsih = Some(stats.tsih);
                self.shared.establish(self.id, stats);
            }
            Action::Reset { token, volumes, attention } => {
                self.shared.reset(self.id, &self.mailbox, token, &volumes, attention);
            }
            Action::DropTarget { target } => self.shared.drop_target(self.id, &target),
        }
    }

    /// Writes until nothing is left, or the socket takes no more: then `true`.
    fn send(&mut self, writer: &WriteHalf<'_>) -> io::Result<bool> {
        loop {
            self.connection.fill();
            let mut slices = [IoSlice::new(&[]); SLICES];
            let count = self.connection.slices(&mut slices);
            if count == 0 {
                return Ok(false);
            }
            match writer.try_write_vectored(&slices[..count]) {
                Ok(len) => self.connection.advance(len),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

//! One connection's task: moves bytes, completions and events between the socket, the devices and
//! the session's state machine. It decides nothing.

use std::io::{self, IoSlice};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lunette_volume::device::Completions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

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
            let Ok(blocked) = self.advance(|slices| writer.try_write_vectored(slices)) else { return };
            if self.connection.is_closed() {
                return;
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

    /// Reacts and sends until neither leads to anything: what was sent makes room for commands that waited, and
    /// nothing else need ever wake this task. Gives whether `write` takes no more.
    fn advance(&mut self, mut write: impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>) -> io::Result<bool> {
        loop {
            self.react();
            let blocked = self.send(&mut write)?;
            if self.connection.is_closed() || !self.connection.has_actions() {
                return Ok(blocked);
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
    fn send(&mut self, mut write: impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>) -> io::Result<bool> {
        loop {
            self.connection.fill();
            let mut slices = [IoSlice::new(&[]); SLICES];
            let count = self.connection.slices(&mut slices);
            if count == 0 {
                return Ok(false);
            }
            match write(&slices[..count]) {
                Ok(len) => self.connection.advance(len),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::{Ipv4Addr, SocketAddr};

    use arc_swap::ArcSwap;
    use bytes::{Bytes, BytesMut};
    use lunette_proto::ids::{ClusterId, Generation, PoolId, TargetId, VolumeId};
    use lunette_proto::iscsi::initiator::{LoginRequest, ScsiCommand};
    use lunette_proto::iscsi::{Bhs, Encoder, Serial};
    use lunette_proto::map::{ClusterMap, Lun, Sealed, Target, Volume, VolumeState};
    use lunette_volume::device::{BlockDevice, Command, Data, Readiness};
    use parking_lot::Mutex;
    use zeroize::Zeroizing;

    use super::*;
    use crate::exports::{Change, Devices, Exports, KeepError};
    use crate::scsi::Units;
    use crate::session::{Context, Guard, SESSION_BYTES_MAX, Secrets};

    const IQN: &str = "iqn.2026-11.io.lunette:disk";
    const READ_BYTES: u32 = 8 << 20;

    /// Answers reads when it is told to.
    #[derive(Default)]
    struct Slow(Mutex<Vec<(u64, Arc<dyn Completions>)>>);

    impl Slow {
        fn waiting(&self) -> usize {
            self.0.lock().len()
        }

        fn answer_one(&self) {
            let (tag, to) = self.0.lock().remove(0);
            to.complete(tag, Ok(Data::from_iter([Bytes::from(vec![0; READ_BYTES as usize])])));
        }
    }

    impl BlockDevice for Slow {
        fn submit(&self, command: Command, tag: u64, to: &Arc<dyn Completions>) {
            assert!(matches!(command, Command::Read { len: READ_BYTES, .. }));
            self.0.lock().push((tag, Arc::clone(to)));
        }

        fn readiness(&self) -> Readiness {
            Readiness::Ready
        }
    }

    struct One(Arc<Slow>);

    impl Devices for One {
        fn device(&self, _: VolumeId) -> Option<Arc<dyn BlockDevice>> {
            Some(Arc::clone(&self.0) as _)
        }

        fn keep(&self, _: VolumeId, _: Change, done: Box<dyn FnOnce(Result<(), KeepError>) + Send>) {
            done(Ok(()));
        }
    }

    struct NoSecrets;

    impl Secrets for NoSecrets {
        fn unseal(&self, _: &Sealed) -> Option<Zeroizing<Vec<u8>>> {
            None
        }
    }

    fn map() -> ClusterMap {
        let volume = Volume {
            id: VolumeId(1),
            name: "disk".into(),
            pool: PoolId(1),
            size_bytes: 1 << 30,
            stripe: None,
            block_bytes: 512,
            write_back: false,
            generation: Generation(1),
            owner: None,
            state: VolumeState::Active,
        };
        let target = Target {
            id: TargetId(1),
            iqn: IQN.into(),
            luns: BTreeMap::from([(0, Lun { volume: volume.id, read_only: false })]),
            acls: Vec::new(),
            chap: None,
            draining: false,
        };
        ClusterMap {
            cluster: ClusterId(7),
            volumes: BTreeMap::from([(volume.id, volume)]),
            targets: BTreeMap::from([(target.id, target)]),
            ..ClusterMap::default()
        }
    }

    fn task(device: &Arc<Slow>) -> Task {
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 3260));
        let units = Units::new(Arc::new(One(Arc::clone(device))));
        let context = Arc::new(Context {
            tag: 1,
            portals: vec![local],
            exports: ArcSwap::from_pointee(Exports::new(&map(), 1, &units)),
            secrets: Arc::new(NoSecrets),
            guard: Guard::default(),
        });
        let (id, mailbox) = (ConnectionId(1), Arc::<Mailbox>::default());
        let shared = Arc::new(Shared::new(Arc::clone(&context)));
        shared.connect(id, Arc::clone(&mailbox));
        let endpoint = Endpoint { local, peer: local, portal: local };
        Task {
            shared,
            id,
            completions: Arc::clone(&mailbox) as _,
            mailbox,
            connection: Connection::new(context, endpoint, Box::new(|_: &mut [u8]| {}), Instant::now()),
            posts: Vec::new(),
            unproven: None,
            tsih: None,
        }
    }

    /// A socket that takes everything.
    fn take_all(slices: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(slices.iter().map(|slice| slice.len()).sum())
    }

    /// What the initiator sends, and all that follows from it.
    fn receive(task: &mut Task, bhs: Bhs, data: &[u8]) {
        let mut slices: Vec<Bytes> = Vec::new();
        Encoder::default().encode(bhs, &[], &[Bytes::copy_from_slice(data)], &mut slices);
        let mut bytes = BytesMut::from(&slices.concat()[..]);
        task.connection.handle_bytes(Instant::now(), &mut bytes);
        assert!(!task.advance(take_all).expect("the socket is sound"));
    }

    /// Guards against a task that sleeps over commands which the answer that it sends lets go: no other event need
    /// ever come.
    #[test]
    fn what_is_sent_lets_commands_go() {
        let device = Arc::<Slow>::default();
        let mut task = task(&device);
        let login = LoginRequest {
            immediate: true,
            transit: true,
            stage: 1,
            next_stage: 3,
            isid: [0x80, 0, 0, 0, 0, 1],
            ..LoginRequest::default()
        };
        let names = format!("InitiatorName=iqn.2026-11.org.example:host\0TargetName={IQN}\0");
        receive(&mut task, login.encode(), names.as_bytes());
        assert!(task.connection.is_established());
        let mut read = ScsiCommand { is_final: true, ..ScsiCommand::default() };
        // The first command only takes the unit attention condition.
        receive(&mut task, read.encode(), &[]);
        let fit = usize::try_from(SESSION_BYTES_MAX / u64::from(READ_BYTES)).expect("a few");
        let waiting = 3;
        for tag in 1..=u32::try_from(fit + waiting).expect("a few") {
            read = ScsiCommand {
                read: true,
                task_tag: tag,
                expected_len: READ_BYTES,
                cmd_sn: Serial(tag),
                ..read
            };
            (read.cdb[0], read.cdb[12]) = (0x88, 0x40);
            receive(&mut task, read.encode(), &[]);
        }
        assert_eq!(device.waiting(), fit, "the session's memory is taken");
        for left in (0..waiting).rev() {
            device.answer_one();
            assert!(!task.advance(take_all).expect("the socket is sound"));
            assert_eq!(device.waiting(), fit, "{left} are still to wait");
        }
        for left in (0..fit).rev() {
            device.answer_one();
            assert!(!task.advance(take_all).expect("the socket is sound"));
            assert_eq!(device.waiting(), left);
        }
    }
}

//! One connection, from its first byte to its last completion.
//!
//! ```text
//! Login ----> Claiming ----> Full ----+
//!   |            |            |       |
//!   +------------+------------+--> closing: Flush (send what is queued) or Now --> drained
//! ```
//!
//! A connection that closes still waits for what its devices carry out. Only when it
//! [is drained](Connection::is_drained) may its session be released, and so be reinstated.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use lunette_proto::iscsi::codes::login as status;
use lunette_proto::iscsi::target::{LoginResponse, NopIn};
use lunette_proto::iscsi::{Framer, Pdu, Request, TAG_NONE};
use lunette_proto::limits::{ISCSI_LOGIN_SEGMENT_BYTES, ISCSI_RECV_SEGMENT_BYTES, LOGIN_TIMEOUT_MS};
use lunette_proto::map::Chap;
use lunette_volume::device::{Data, Outcome};

use super::full::Session;
use super::login::{Accepted, Login, Progress, Surroundings};
use super::stats::SessionStats;
use super::transmit::{Bounds, StatSn, Transmit};
use super::{
    Action, Context, DISCOVERY_PATIENCE, DRAIN_PATIENCE, Endpoint, Event, FLUSH_PATIENCE, PING_AFTER,
    PING_PATIENCE, STALL_PATIENCE,
};
use crate::exports::{Admission, Claimant, changes};
use crate::scsi::TargetView;

/// Fills a buffer with random bytes: challenges come from it.
pub type Random = Box<dyn FnMut(&mut [u8]) + Send>;

/// An iSCSI connection.
pub struct Connection {
    context: Arc<Context>,
    endpoint: Endpoint,
    random: Random,
    framer: Framer,
    phase: Phase,
    io: Io,
    started: Instant,
    heard: Instant,
    pinged: Option<Instant>,
    /// The initiator was asked to log out until then.
    logout_by: Option<Instant>,
    closing_since: Option<Instant>,
}

/// What a connection leaves to the one that reinstates it: the session, with nothing under way.
pub struct Inherited(Box<Session>);

enum Phase {
    Login(Box<Login>),
    /// Login is through; the session is being claimed.
    Claiming(Box<Accepted>, lunette_proto::iscsi::Serial),
    Full(Box<Session>),
    /// Login failed.
    Over,
}

/// What both login and session write to.
pub(super) struct Io {
    pub(super) transmit: Transmit,
    pub(super) actions: VecDeque<Action>,
    pub(super) closing: Option<Closing>,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closing {
    /// Send what is queued, then close.
    Flush,
    /// Close.
    Now,
}

impl Connection {
    /// A connection that has just been accepted.
    #[must_use]
    pub fn new(context: Arc<Context>, endpoint: Endpoint, random: Random, now: Instant) -> Self {
        Self {
            context,
            endpoint,
            random,
            framer: Framer::new(ISCSI_LOGIN_SEGMENT_BYTES),
            phase: Phase::Login(Box::new(Login::new())),
            io: Io { transmit: Transmit::new(), actions: VecDeque::new(), closing: None },
            started: now,
            heard: now,
            pinged: None,
            logout_by: None,
            closing_since: None,
        }
    }

    /// Takes every whole PDU off the front of `buffer`.
    pub fn handle_bytes(&mut self, now: Instant, buffer: &mut BytesMut) {
        if !self.is_established() {
            // A peer that never pauses may leave the shell no time for its timers.
            self.handle_timeout(now);
        }
        self.heard = now;
        self.pinged = None;
        while self.wants_bytes() {
            match self.framer.next(buffer) {
                Ok(Some(pdu)) => self.handle_pdu(now, pdu),
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(peer = %self.endpoint.peer, %error, "connection closed");
                    self.io.closing = Some(Closing::Now);
                }
            }
        }
        self.settle(now);
    }

    /// What came of the command that was submitted under `tag`.
    pub fn handle_completion(&mut self, now: Instant, tag: u64, outcome: Outcome) {
        if let Phase::Full(session) = &mut self.phase {
            session.complete(tag, outcome, &mut self.io);
        }
        self.settle(now);
    }

    /// Something happened elsewhere in the gateway.
    pub fn handle_event(&mut self, now: Instant, event: Event) {
        match event {
            Event::Granted { tsih, session } => self.establish(now, tsih, session),
            Event::Refused { status } => {
                if let Phase::Claiming(accepted, _) = &self.phase {
                    self.refuse(accepted.response, status);
                }
            }
            Event::Superseded => {
                tracing::info!(peer = %self.endpoint.peer, "session reinstated by another connection");
                self.io.closing = Some(Closing::Now);
            }
            Event::ExportsChanged => self.exports_changed(now),
            Event::Kick | Event::Stop if !matches!(self.phase, Phase::Full(_)) => {
                self.io.closing = Some(Closing::Now);
            }
            event => {
                if let Phase::Full(session) = &mut self.phase {
                    session.handle_event(event, &mut self.io);
                }
            }
        }
        self.settle(now);
    }

    /// Time has passed; call it when [`Connection::poll_timeout`] says so.
    pub fn handle_timeout(&mut self, now: Instant) {
        let (at, why) = self.next_timeout();
        if now < at {
            return;
        }
        match why {
            Timeout::Ping => {
                self.pinged = Some(now);
                if let Phase::Full(session) = &mut self.phase {
                    let transfer_tag = session.transfer_tag();
                    let ping = NopIn { lun: 0, task_tag: TAG_NONE, transfer_tag };
                    self.io.transmit.send(ping.encode(), Data::new(), StatSn::Show);
                }
            }
            Timeout::Drain => {
                if let Phase::Full(session) = &mut self.phase {
                    tracing::info!(peer = %self.endpoint.peer, "no logout in time");
                    session.drop_session(&mut self.io);
                }
            }
            Timeout::Close => {
                tracing::info!(peer = %self.endpoint.peer, "connection timed out");
                self.io.closing = Some(Closing::Now);
            }
        }
        self.settle(now);
    }

    /// When [`Connection::handle_timeout`] is to be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Instant {
        self.next_timeout().0
    }

    /// What is to be done next.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.io.actions.pop_front()
    }

    /// Whether there is something to be done: [`Connection::fill`] also lets commands go on that waited for room.
    #[must_use]
    pub fn has_actions(&self) -> bool {
        !self.io.actions.is_empty()
    }

    /// Lays out what can be sent now; then read it by [`Connection::slices`] or [`Connection::pop`].
    pub fn fill(&mut self) {
        let Phase::Full(session) = &mut self.phase else {
            self.io.transmit.fill_control();
            return;
        };
        loop {
            let bounds = Bounds {
                // However much the initiator takes at once, nothing should wait long behind a PDU.
                segment: session.settings.initiator_segment_bytes().min(ISCSI_RECV_SEGMENT_BYTES),
                burst: session.settings.max_burst_bytes(),
            };
            self.io.transmit.fill(bounds, |ended| session.window(ended));
            let mut finished = false;
            while let Some(slot) = self.io.transmit.take_finished() {
                session.answered(slot, &mut self.io);
                finished = true;
            }
            if !finished {
                return;
            }
        }
    }

    /// Slices for one vectored write; gives how many.
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        self.io.transmit.slices(slices)
    }

    /// `len` bytes of the slices were written.
    pub fn advance(&mut self, len: usize) {
        self.io.transmit.advance(len);
    }

    /// Takes the next slice to send, for callers without a socket.
    pub fn pop(&mut self) -> Option<Bytes> {
        self.io.transmit.pop()
    }

    /// Whether bytes should be read: not while too much waits to be sent, nor after the end. In a login
    /// that is one answer, for only one request may be outstanding (RFC 7143 6.2).
    #[must_use]
    pub fn wants_bytes(&self) -> bool {
        let open = match &self.phase {
            Phase::Login(_) => self.io.transmit.is_empty(),
            Phase::Full(session) => !session.is_stopping(),
            Phase::Claiming(..) | Phase::Over => false,
        };
        open && self.io.closing.is_none() && !self.io.transmit.is_congested()
    }

    /// Bytes that the PDU at the front of `buffer` still needs, to size the receive buffer.
    #[must_use]
    pub fn missing(&self, buffer: &[u8]) -> usize {
        self.framer.missing(buffer)
    }

    /// Whether the socket is to be closed now.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        match self.io.closing {
            None => false,
            Some(Closing::Flush) => self.io.transmit.is_empty(),
            Some(Closing::Now) => true,
        }
    }

    /// Whether the last words were sent, so that the peer should be left time to read them.
    #[must_use]
    pub fn is_flushed(&self) -> bool {
        self.io.closing == Some(Closing::Flush) && self.io.transmit.is_empty()
    }

    /// The socket is gone, whoever closed it.
    pub fn abandon(&mut self) {
        self.io.closing = Some(Closing::Now);
        self.io.transmit.clear();
        if let Phase::Full(session) = &mut self.phase {
            session.abandon(&mut self.io);
        }
    }

    /// Whether nothing is outstanding at any device: after [`Connection::abandon`], the session may
    /// be released.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        match &self.phase {
            Phase::Full(session) => session.is_drained(),
            _ => true,
        }
    }

    /// Takes the session out of a connection that is drained, for the one that reinstates it.
    pub fn bequeath(&mut self) -> Option<Inherited> {
        match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::Full(session) if session.is_drained() => Some(Inherited(session)),
            phase => {
                self.phase = phase;
                None
            }
        }
    }

    /// Whether login is over.
    #[must_use]
    pub fn is_established(&self) -> bool {
        matches!(self.phase, Phase::Full(_))
    }

    fn settle(&mut self, now: Instant) {
        match self.io.closing {
            Some(Closing::Now) => self.abandon(),
            Some(Closing::Flush) => {
                self.closing_since.get_or_insert(now);
            }
            None => {}
        }
    }

    fn handle_pdu(&mut self, now: Instant, pdu: Pdu) {
        match &mut self.phase {
            Phase::Login(_) => self.handle_login(now, &pdu),
            Phase::Full(session) => session.handle_pdu(pdu, &self.endpoint, &mut self.io),
            Phase::Claiming(..) | Phase::Over => {}
        }
    }

    fn handle_login(&mut self, now: Instant, pdu: &Pdu) {
        let Request::Login(request) = Request::decode(&pdu.bhs) else {
            // Nothing but a Login Request may come before login is over (RFC 7143 6.3).
            tracing::warn!(peer = %self.endpoint.peer, pdu = ?pdu.bhs, "connection closed: no login");
            self.io.closing = Some(Closing::Now);
            return;
        };
        let Phase::Login(login) = std::mem::replace(&mut self.phase, Phase::Over) else { return };
        let numbers = &mut self.io.transmit.numbers;
        if login.is_new() {
            numbers.stat_sn = request.exp_stat_sn;
        }
        numbers.exp_cmd_sn = request.cmd_sn;
        numbers.max_cmd_sn = request.cmd_sn;
        let mut around =
            Surroundings { context: &self.context, endpoint: &self.endpoint, random: &mut *self.random, now };
        match login.handle(&request, &pdu.data, &mut around) {
            Ok(Progress::Continue(login, response, text)) => {
                self.phase = Phase::Login(login);
                self.io.transmit.send(response.encode(), Data::from_iter([text]), StatSn::Use);
            }
            Ok(Progress::Done(accepted)) => {
                self.io.actions.push_back(Action::Claim(accepted.claim.clone()));
                self.phase = Phase::Claiming(accepted, request.cmd_sn);
            }
            Err(failure) => {
                tracing::warn!(peer = %self.endpoint.peer, %failure, "login failed");
                let response = LoginResponse {
                    stage: request.stage & 1,
                    isid: request.isid,
                    tsih: request.tsih,
                    task_tag: request.task_tag,
                    ..LoginResponse::default()
                };
                self.refuse(response, failure.0);
            }
        }
    }

    fn refuse(&mut self, response: LoginResponse, status: u16) {
        self.phase = Phase::Over;
        // A login that has failed goes to no other stage, whatever was about to be answered.
        let response = LoginResponse { status, transit: false, next_stage: 0, ..response };
        self.io.transmit.send(response.encode(), Data::new(), StatSn::Use);
        self.io.closing = Some(Closing::Flush);
    }

    /// The session is ours: answers the login and begins the full feature phase.
    fn establish(&mut self, now: Instant, tsih: u16, inherited: Option<Inherited>) {
        if self.io.closing.is_some() {
            return;
        }
        let Phase::Claiming(accepted, cmd_sn) = std::mem::replace(&mut self.phase, Phase::Over) else {
            return;
        };
        if accepted.claim.tsih != 0 && inherited.is_none() {
            // Who held the session never got as far as having one.
            return self.refuse(accepted.response, status::NO_SESSION);
        }
        let claimant = Claimant {
            initiator: accepted.who.initiator.clone(),
            peer: self.endpoint.peer.ip(),
            local: self.endpoint.local.ip(),
        };
        let view = match self.admit_again(&accepted, &claimant) {
            Ok(view) => view,
            Err(status) => return self.refuse(accepted.response, status),
        };
        let before = inherited.as_ref().map(|Inherited(session)| session);
        let settings = match before {
            Some(session) => accepted.settings.clone().within(&session.settings),
            None => accepted.settings.clone(),
        };
        let so_far = |counter: fn(&SessionStats) -> u64| {
            AtomicU64::new(before.map_or(0, |session| counter(&session.stats)))
        };
        let stats = Arc::new(SessionStats {
            tsih,
            target: view.as_ref().map(|view| view.iqn.clone()),
            initiator: claimant.initiator.clone(),
            peer: self.endpoint.peer,
            local: self.endpoint.local,
            isid: accepted.isid,
            header_digest: settings.header_digest(),
            data_digest: settings.data_digest(),
            chap_user: accepted.who.user.clone(),
            commands: so_far(SessionStats::commands),
            read_bytes: so_far(SessionStats::read_bytes),
            written_bytes: so_far(SessionStats::written_bytes),
            errors: so_far(SessionStats::errors),
        });
        tracing::info!(initiator = %stats.initiator, target = ?stats.target, peer = %stats.peer, tsih, "session");
        self.io.actions.push_back(Action::Established(Arc::clone(&stats)));
        let (header_digest, data_digest) = (settings.header_digest(), settings.data_digest());
        let resumes = inherited.is_some();
        let mut session = match inherited {
            Some(Inherited(mut session)) => {
                session.resume(claimant, settings, cmd_sn, stats);
                session
            }
            None => {
                let context = Arc::clone(&self.context);
                Box::new(Session::new(context, claimant, view, settings, accepted.cid, cmd_sn, stats))
            }
        };
        let numbers = &mut self.io.transmit.numbers;
        (numbers.exp_cmd_sn, numbers.max_cmd_sn) = session.window(0);
        let response = LoginResponse { tsih, ..accepted.response };
        self.io.transmit.send(response.encode(), Data::from_iter([accepted.text]), StatSn::Use);
        // Digests are for what follows the last Login Response (RFC 7143 13.1).
        self.io.transmit.fill_control();
        self.io.transmit.encoder.header_digest = header_digest;
        self.io.transmit.encoder.data_digest = data_digest;
        let data_bytes_max =
            if accepted.declared { ISCSI_RECV_SEGMENT_BYTES } else { ISCSI_LOGIN_SEGMENT_BYTES };
        self.framer = Framer { data_bytes_max, header_digest, data_digest };
        self.phase = Phase::Full(session);
        if resumes {
            // What was replaced while nobody held the session.
            self.exports_changed(now);
        }
    }

    /// During the login the exports may have been replaced: what was proven must be proof still. Gives
    /// the target as it is now; `None` for a discovery session.
    fn admit_again(&self, accepted: &Accepted, claimant: &Claimant) -> Result<Option<Arc<TargetView>>, u16> {
        let exports = self.context.exports.load();
        let who = &accepted.who;
        let is_proof = |wanted: &Option<Arc<Chap>>| wanted.is_none() || *wanted == who.chap;
        let Some(view) = &who.target else {
            return if is_proof(&exports.discovery_chap()) { Ok(None) } else { Err(status::AUTHENTICATION) };
        };
        match exports.admit(&view.iqn, claimant) {
            Admission::Admitted(export) if !is_proof(&export.chap) => Err(status::AUTHENTICATION),
            Admission::Admitted(export) if export.is_draining() => Err(status::UNAVAILABLE),
            Admission::Admitted(export) => Ok(Some(Arc::clone(&export.view))),
            Admission::NotFound => Err(status::NOT_FOUND),
            Admission::Forbidden => Err(status::AUTHORIZATION),
        }
    }

    fn exports_changed(&mut self, now: Instant) {
        let Phase::Full(session) = &mut self.phase else { return };
        let Some(old) = session.view.clone() else { return };
        let exports = self.context.exports.load();
        match exports.admit(&old.iqn, &session.claimant) {
            Admission::Admitted(export) => {
                let attentions = changes(&old, &export.view);
                session.replace_view(Arc::clone(&export.view), &attentions, &mut self.io);
                if !export.is_draining() {
                    self.logout_by = None;
                } else if self.logout_by.is_none() && self.io.closing.is_none() {
                    let seconds = u16::try_from(DRAIN_PATIENCE.as_secs()).unwrap_or(u16::MAX);
                    session.request_logout(seconds, &mut self.io);
                    self.logout_by = Some(now + DRAIN_PATIENCE);
                }
            }
            Admission::NotFound | Admission::Forbidden => {
                tracing::info!(target = %old.iqn, initiator = %session.claimant.initiator, "no longer admitted");
                session.drop_session(&mut self.io);
            }
        }
    }

    fn next_timeout(&self) -> (Instant, Timeout) {
        if let Some(since) = self.closing_since {
            return (since + FLUSH_PATIENCE, Timeout::Close);
        }
        let next = match &self.phase {
            Phase::Full(session) if session.view.is_none() => {
                (self.heard + DISCOVERY_PATIENCE, Timeout::Close)
            }
            Phase::Full(_) => match self.pinged {
                Some(pinged) if self.io.transmit.is_empty() => (pinged + PING_PATIENCE, Timeout::Close),
                Some(pinged) => (pinged + STALL_PATIENCE, Timeout::Close),
                None => (self.heard + PING_AFTER, Timeout::Ping),
            },
            _ => (self.started + Duration::from_millis(LOGIN_TIMEOUT_MS), Timeout::Close),
        };
        match self.logout_by {
            Some(at) if at < next.0 => (at, Timeout::Drain),
            _ => next,
        }
    }
}

enum Timeout {
    Ping,
    Drain,
    Close,
}

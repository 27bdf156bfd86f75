//! The full feature phase of a session (RFC 7143 4.2): what each request does.
//!
//! Commands and their data are in `tasks.rs`, task management is in `task_management.rs`.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use lunette_proto::iscsi::codes::{event, logout, logout_response, reject};
use lunette_proto::iscsi::initiator::{LogoutRequest, NopOut, TextRequest};
use lunette_proto::iscsi::target::{AsyncMessage, LogoutResponse, NopIn, Reject};
use lunette_proto::iscsi::{Bhs, Pdu, Request, Serial, TAG_NONE};
use lunette_proto::map::NexusId;
use lunette_volume::device::Data;
use slab::Slab;

use super::connection::{Closing, Io};
use super::negotiate::Settings;
use super::stats::SessionStats;
use super::task_management::Function;
use super::tasks::Active;
use super::text_exchange::{Asker, TextExchange};
use super::transmit::StatSn;
use super::window::{Turn, Window};
use super::{Context, Endpoint, Event};
use crate::exports::Claimant;
use crate::scsi::{Attention, Nexus, Scope, TargetView};

/// A session past its login.
pub(super) struct Session {
    pub(super) context: Arc<Context>,
    pub(super) claimant: Claimant,
    /// What the initiator sees; `None`: a discovery session.
    pub(super) view: Option<Arc<TargetView>>,
    pub(super) nexus: Nexus,
    pub(super) settings: Settings,
    pub(super) stats: Arc<SessionStats>,
    cid: u16,
    pub(super) window: Window,
    pub(super) tasks: Slab<Active>,
    /// Slots by initiator task tag, of tasks that are not aborted.
    pub(super) by_tag: HashMap<u32, usize>,
    pub(super) generation: u32,
    /// Commands that devices have.
    pub(super) at_devices: usize,
    /// Slots that wait for memory, in order.
    pub(super) gate: VecDeque<usize>,
    pub(super) reserved: u64,
    pub(super) functions: Vec<Function>,
    pub(super) next_token: u64,
    text: TextExchange,
    next_transfer_tag: Serial,
    end: End,
}

/// How far a session is from its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Open,
    /// A Logout Request was accepted: nothing but its answer matters.
    LoggingOut,
    /// The gateway stops: no new requests, but the devices' answers still go out.
    Stopping,
}

impl Session {
    pub(super) fn new(
        context: Arc<Context>,
        claimant: Claimant,
        view: Option<Arc<TargetView>>,
        settings: Settings,
        cid: u16,
        first: Serial,
        stats: Arc<SessionStats>,
    ) -> Self {
        let id = NexusId {
            initiator: claimant.initiator.clone(),
            isid: stats.isid,
            target: view.as_ref().map_or_else(String::new, |view| view.iqn.clone()),
            tag: context.tag,
        };
        Self {
            context,
            claimant,
            view,
            nexus: Nexus::new(id),
            settings,
            stats,
            cid,
            window: Window::new(first),
            tasks: Slab::new(),
            by_tag: HashMap::new(),
            generation: 0,
            at_devices: 0,
            gate: VecDeque::new(),
            reserved: 0,
            functions: Vec::new(),
            next_token: 0,
            text: TextExchange::default(),
            next_transfer_tag: Serial(0),
            end: End::Open,
        }
    }

    /// Goes on over a new connection (RFC 7143 6.3.4). What was under way over the old one is gone, what
    /// the I_T nexus keeps is not.
    pub(super) fn resume(
        &mut self,
        claimant: Claimant,
        settings: Settings,
        first: Serial,
        stats: Arc<SessionStats>,
    ) {
        self.claimant = claimant;
        self.settings = settings;
        self.window.resume(first);
        self.stats = stats;
        self.text = TextExchange::default();
        self.end = End::Open;
    }

    /// Carries out a request, or what its coming sets free.
    pub(super) fn handle_pdu(&mut self, pdu: Pdu, endpoint: &Endpoint, io: &mut Io) {
        if self.end == End::LoggingOut {
            return;
        }
        let request = Request::decode(&pdu.bhs);
        if !pdu.data_is_sound {
            // RFC 7143 7.8: rejected; of a command nothing else is done, of data the command fails.
            self.reject(&pdu.bhs, reject::DATA_DIGEST, io);
            if !matches!(request, Request::DataOut(_)) {
                return;
            }
        }
        match request.command_order() {
            Some((cmd_sn, false)) => match self.window.take(cmd_sn, pdu) {
                Turn::Now(pdu) => self.execute(pdu, endpoint, io),
                Turn::Held | Turn::Dropped => return,
            },
            _ => self.execute(pdu, endpoint, io),
        }
        while let Some(pdu) = self.window.next_held() {
            self.execute(pdu, endpoint, io);
        }
    }

    fn execute(&mut self, pdu: Pdu, endpoint: &Endpoint, io: &mut Io) {
        let normal = self.view.is_some();
        match Request::decode(&pdu.bhs) {
            Request::ScsiCommand(command) if normal => self.scsi_command(&command, pdu, io),
            Request::DataOut(data) if normal => self.data_out(&data, pdu, io),
            Request::TaskManagement(function) if normal => self.task_management(&function, &pdu, io),
            Request::ScsiCommand(_) | Request::DataOut(_) | Request::TaskManagement(_) => {
                self.reject(&pdu.bhs, reject::NOT_SUPPORTED, io);
            }
            Request::NopOut(nop) => self.nop_out(&nop, &pdu, io),
            Request::Text(text) => self.text(&text, &pdu, endpoint, io),
            Request::Logout(logout) => self.logout(&logout, &pdu, io),
            Request::Snack(_) => self.reject(&pdu.bhs, reject::SNACK, io),
            Request::Login(_) => self.reject(&pdu.bhs, reject::PROTOCOL, io),
            Request::Unknown(_) => self.reject(&pdu.bhs, reject::NOT_SUPPORTED, io),
        }
    }

    pub(super) fn handle_event(&mut self, event: Event, io: &mut Io) {
        match event {
            Event::Reset { volumes, attention, ticket } => {
                self.reset_by_peer(&volumes, attention, ticket, io)
            }
            Event::Settled { tag, settled } => self.settled(tag, settled, io),
            Event::Changed { changed, ticket } => self.changed_by_peer(&changed, ticket, io),
            Event::PeersQuiesced { token } => self.peers_quiesced(token, io),
            Event::Kick => self.drop_session(io),
            Event::Stop => self.stop(io),
            // These concern the connection, which has seen to them.
            Event::Granted { .. } | Event::Refused { .. } | Event::Superseded | Event::ExportsChanged => {}
        }
    }

    /// Sends a Reject with the header that it is about (RFC 7143 11.17).
    pub(super) fn reject(&self, bhs: &Bhs, reason: u8, io: &mut Io) {
        tracing::debug!(?bhs, reason, initiator = %self.claimant.initiator, "rejected");
        let pdu = Reject { reason, task_tag: TAG_NONE, data_sn: Serial(0) };
        let header = Data::from_iter([Bytes::copy_from_slice(&bhs.0)]);
        io.transmit.send(pdu.encode(), header, StatSn::Use);
    }

    /// A tag for an R2T or a ping, never the reserved one.
    pub(super) fn transfer_tag(&mut self) -> u32 {
        let tag = self.next_transfer_tag.take().0;
        if tag == TAG_NONE { self.next_transfer_tag.take().0 } else { tag }
    }

    /// ExpCmdSN and MaxCmdSN, once `ended` more commands have been answered.
    pub(super) fn window(&mut self, ended: usize) -> (Serial, Serial) {
        self.window.open(self.tasks.len().saturating_sub(ended));
        (self.window.expected(), self.window.max())
    }

    /// New exports: says what changed.
    pub(super) fn replace_view(
        &mut self,
        view: Arc<TargetView>,
        attentions: &[(Scope, Attention)],
        io: &mut Io,
    ) {
        for (lun, unit) in self.view.iter().flat_map(|old| &old.luns) {
            match view.luns.get(lun).filter(|other| other.volume == unit.volume) {
                None => self.nexus.forget(*lun),
                Some(other) if other.owner != unit.owner => self.nexus.owner_changed(*lun),
                Some(_) => {}
            }
        }
        self.view = Some(view);
        for (scope, attention) in attentions {
            self.nexus.attention(*scope, *attention);
            if *attention == Attention::ReportedLunsChanged {
                // An initiator without commands would not learn of it until it sends one.
                let message =
                    AsyncMessage { task_tag: TAG_NONE, event: event::SCSI, ..AsyncMessage::default() };
                let sense = attention.sense_data();
                let len = u16::try_from(sense.len()).unwrap_or(u16::MAX).to_be_bytes();
                let data = Data::from_iter([Bytes::copy_from_slice(&len), sense]);
                io.transmit.send(message.encode(), data, StatSn::Use);
            }
        }
    }

    /// Ends the session from this side: says so, then closes.
    pub(super) fn drop_session(&mut self, io: &mut Io) {
        self.abort_all(io);
        let message = AsyncMessage {
            task_tag: TAG_NONE,
            event: event::SESSION_DROPPED,
            parameter2: self.settings.time2wait(),
            ..AsyncMessage::default()
        };
        io.transmit.send(message.encode(), Data::new(), StatSn::Use);
        io.closing = Some(Closing::Flush);
    }

    /// Asks the initiator to log out within `seconds` (RFC 7143 11.9.1).
    pub(super) fn request_logout(&self, seconds: u16, io: &mut Io) {
        let message = AsyncMessage {
            task_tag: TAG_NONE,
            event: event::LOGOUT_REQUESTED,
            parameter3: seconds,
            ..AsyncMessage::default()
        };
        io.transmit.send(message.encode(), Data::new(), StatSn::Use);
    }

    /// The connection is gone: gives up everything but what devices have.
    pub(super) fn abandon(&mut self, io: &mut Io) {
        self.abort_all(io);
        self.end = End::LoggingOut;
        // Peers that wait for this session need not wait for its answers, only for its devices.
        self.functions.retain(Function::is_foreign);
        self.settle(io);
    }

    pub(super) fn is_drained(&self) -> bool {
        self.at_devices == 0
    }

    /// Whether requests are no longer read.
    pub(super) fn is_stopping(&self) -> bool {
        self.end == End::Stopping
    }

    fn stop(&mut self, io: &mut Io) {
        if self.end == End::Open {
            self.end = End::Stopping;
            self.abort_unstarted(io);
            self.stop_if_idle(io);
        }
    }

    /// While stopping: closes once everything is answered.
    pub(super) fn stop_if_idle(&mut self, io: &mut Io) {
        if self.end == End::Stopping && self.tasks.is_empty() && io.closing.is_none() {
            self.drop_session(io);
        }
    }

    fn nop_out(&mut self, nop: &NopOut, pdu: &Pdu, io: &mut Io) {
        if nop.task_tag == TAG_NONE {
            // The answer to our ping; that it came is all there is to it.
            return;
        }
        let reply = NopIn { lun: nop.lun, task_tag: nop.task_tag, transfer_tag: TAG_NONE };
        let len = pdu.data.len().min(self.settings.initiator_segment_bytes() as usize);
        // A slice would keep the whole receive buffer for as long as the answer is not read.
        let data = Bytes::copy_from_slice(&pdu.data[..len]);
        io.transmit.send(reply.encode(), Data::from_iter([data]), StatSn::Use);
    }

    fn text(&mut self, request: &TextRequest, pdu: &Pdu, endpoint: &Endpoint, io: &mut Io) {
        let asker = Asker {
            context: &self.context,
            endpoint,
            claimant: self.claimant.clone(),
            view: self.view.as_deref(),
        };
        match self.text.handle(request, &pdu.data, &mut self.settings, &asker) {
            Ok((response, text)) => io.transmit.send(response.encode(), Data::from_iter([text]), StatSn::Use),
            Err(_) => self.reject(&pdu.bhs, reject::PROTOCOL, io),
        }
    }

    fn logout(&mut self, request: &LogoutRequest, pdu: &Pdu, io: &mut Io) {
        let task_tag = request.task_tag;
        let response = match request.reason {
            logout::CLOSE_SESSION => logout_response::CLOSED,
            logout::CLOSE_CONNECTION if request.cid == self.cid => logout_response::CLOSED,
            logout::CLOSE_CONNECTION => logout_response::NO_CID,
            logout::REMOVE_FOR_RECOVERY => logout_response::NO_RECOVERY,
            _ => return self.reject(&pdu.bhs, reject::INVALID_FIELD, io),
        };
        if response != logout_response::CLOSED {
            self.answer_logout(task_tag, response, io);
            return;
        }
        // Answered once no command of the session can take effect any more (RFC 7143 11.14).
        let waits = self.abort_all(io);
        self.end = End::LoggingOut;
        self.functions.push(Function::logout(task_tag, waits));
        self.settle(io);
    }

    pub(super) fn answer_logout(&mut self, task_tag: u32, response: u8, io: &mut Io) {
        let time2wait = self.settings.time2wait();
        let pdu = LogoutResponse { response, task_tag, time2wait, time2retain: 0 };
        io.transmit.send(pdu.encode(), Data::new(), StatSn::Use);
        if response == logout_response::CLOSED {
            // Who hears that the session is closed relies on it.
            self.nexus.end();
            io.closing = Some(Closing::Flush);
        }
    }
}

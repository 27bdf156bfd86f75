//! Task management functions (RFC 7143 4.2.3.3, 11.5, 11.6; SAM-5 clause 7).
//!
//! A function is answered only when every task that it affects is over at its device, in this
//! session and in others, and none of them gets a SCSI Response: after "function complete" nothing
//! that was aborted can take effect. Outstanding R2Ts need not be waited for, since their transfer
//! tags are never given out again: Data-Out that still comes for them is dropped.
//!
//! The tasks of a unit are at its owner. A function that concerns those of other nexuses is rejected by a gateway that
//! does not own the unit: it could not say that they are over.

use std::sync::Arc;

use lunette_proto::ids::VolumeId;
use lunette_proto::iscsi::codes::{logout_response, reject, tmf, tmf_response};
use lunette_proto::iscsi::initiator::TaskManagement;
use lunette_proto::iscsi::target::TaskManagementResponse;
use lunette_proto::iscsi::{Pdu, Request};
use lunette_volume::device::{Data, Readiness};

use super::connection::Io;
use super::full::Session;
use super::tasks::Active;
use super::transmit::StatSn;
use super::{Action, FUNCTIONS_MAX, Ticket};
use crate::scsi::lun::{Address, decode};
use crate::scsi::{Attention, LogicalUnit, Scope, Settled};

/// Something that waits for aborted tasks.
pub(super) struct Function {
    /// Device tags of tasks that are not over.
    waits: Vec<u64>,
    /// Other sessions are still at it, under this token.
    peers: Option<u64>,
    end: End,
}

/// What happens when nothing is waited for any more.
enum End {
    /// Answer the initiator.
    Respond(u32),
    /// Answer the initiator, then drop every session of the target.
    RespondAndDrop(u32),
    /// Answer the logout.
    Logout(u32),
    /// Answer the command under this tag, with what came of its change.
    Command(u64, Settled),
    /// Tell the session that asked.
    Foreign(#[expect(dead_code, reason = "dropping it is its use")] Ticket),
}

impl Function {
    pub(super) fn logout(task_tag: u32, waits: Vec<u64>) -> Self {
        Self { waits, peers: None, end: End::Logout(task_tag) }
    }

    /// A command whose change the other sessions are told of.
    pub(super) fn command(tag: u64, settled: Settled, waits: Vec<u64>, token: u64) -> Self {
        Self { waits, peers: Some(token), end: End::Command(tag, settled) }
    }

    /// What the session that holds `ticket` waits for.
    pub(super) fn foreign(waits: Vec<u64>, ticket: Ticket) -> Self {
        Self { waits, peers: None, end: End::Foreign(ticket) }
    }

    /// Whether the initiator asked for it as such.
    fn is_requested(&self) -> bool {
        matches!(self.end, End::Respond(_) | End::RespondAndDrop(_))
    }

    /// Whether another session waits for it.
    pub(super) fn is_foreign(&self) -> bool {
        matches!(self.end, End::Foreign(_))
    }

    fn is_over(&self) -> bool {
        self.waits.is_empty() && self.peers.is_none()
    }
}

impl Session {
    pub(super) fn task_management(&mut self, request: &TaskManagement, pdu: &Pdu, io: &mut Io) {
        // What other sessions wait for does not count: they must not use up what this one may do.
        if self.functions.iter().filter(|function| function.is_requested()).count() >= FUNCTIONS_MAX {
            return self.reject(&pdu.bhs, reject::TOO_MANY_IMMEDIATE, io);
        }
        let tag = request.task_tag;
        let respond = |response: u8, io: &mut Io| {
            let pdu = TaskManagementResponse { response, task_tag: tag };
            io.transmit.send(pdu.encode(), Data::new(), StatSn::Use);
        };
        match request.function {
            tmf::ABORT_TASK => match self.abort_task(request, io) {
                Some(waits) => self.begin(Function { waits, peers: None, end: End::Respond(tag) }, io),
                None => respond(tmf_response::NO_TASK, io),
            },
            tmf::ABORT_TASK_SET | tmf::CLEAR_TASK_SET | tmf::LOGICAL_UNIT_RESET => {
                let Some((lun, unit)) = self.unit(request.lun) else {
                    return respond(tmf_response::NO_LUN, io);
                };
                if request.function != tmf::ABORT_TASK_SET && is_elsewhere(&unit) {
                    return respond(tmf_response::REJECTED, io);
                }
                let address = request.lun;
                self.window.drop_held(|pdu| is_command_to(pdu, address));
                let mut waits = self.abort(io, |active| decode(active.lun) == Address::Unit(lun));
                if request.function != tmf::ABORT_TASK_SET {
                    waits.extend(self.clear_elsewhere(&[unit.volume], io));
                }
                let attention = match request.function {
                    tmf::ABORT_TASK_SET => None,
                    tmf::CLEAR_TASK_SET => Some(Attention::CommandsCleared),
                    _ => {
                        unit.shared.reset();
                        self.nexus.attention(Scope::Lun(lun), Attention::UnitReset);
                        Some(Attention::UnitReset)
                    }
                };
                let peers = attention.map(|attention| self.ask_peers(Arc::new([unit.volume]), attention, io));
                self.begin(Function { waits, peers, end: End::Respond(tag) }, io);
            }
            tmf::TARGET_WARM_RESET | tmf::TARGET_COLD_RESET => {
                if self.view.iter().flat_map(|view| view.luns.values()).any(|unit| is_elsewhere(unit)) {
                    return respond(tmf_response::REJECTED, io);
                }
                let (attention, end) = if request.function == tmf::TARGET_COLD_RESET {
                    (Attention::TargetReset, End::RespondAndDrop(tag))
                } else {
                    (Attention::UnitReset, End::Respond(tag))
                };
                self.window.drop_held(|pdu| matches!(Request::decode(&pdu.bhs), Request::ScsiCommand(_)));
                let waits = self.abort(io, |_| true);
                self.nexus.attention(Scope::All, attention);
                let units = self.view.iter().flat_map(|view| view.luns.values());
                let volumes = units.inspect(|unit| unit.shared.reset()).map(|unit| unit.volume).collect();
                let peers = Some(self.ask_peers(volumes, attention, io));
                self.begin(Function { waits, peers, end }, io);
            }
            tmf::TASK_REASSIGN => respond(tmf_response::NO_REASSIGN, io),
            _ => respond(tmf_response::NOT_SUPPORTED, io),
        }
    }

    /// Another session resets volumes, or clears their task sets.
    pub(super) fn reset_by_peer(
        &mut self,
        volumes: &[VolumeId],
        attention: Attention,
        ticket: Ticket,
        io: &mut Io,
    ) {
        let Some(view) = self.view.clone() else { return };
        let affected =
            |active: &Active| active.unit.as_ref().is_some_and(|unit| volumes.contains(&unit.volume));
        for (lun, unit) in view.luns.iter().filter(|(_, unit)| volumes.contains(&unit.volume)) {
            let lost = self.tasks.iter().any(|(_, active)| {
                !active.aborted && active.unit.as_ref().is_some_and(|other| other.volume == unit.volume)
            });
            // A cleared task set concerns those whose tasks were in it (SAM-5 5.14.1).
            if attention != Attention::CommandsCleared || lost {
                self.nexus.attention(Scope::Lun(*lun), attention);
            }
        }
        let mut waits = self.abort(io, affected);
        waits.extend(self.clear_elsewhere(volumes, io));
        self.begin(Function::foreign(waits, ticket), io);
    }

    /// All other sessions have done what was asked under `token`.
    pub(super) fn peers_quiesced(&mut self, token: u64, io: &mut Io) {
        for function in &mut self.functions {
            if function.peers == Some(token) {
                function.peers = None;
            }
        }
        self.settle(io);
    }

    /// The aborted task under `tag` is over.
    pub(super) fn function_waits_over(&mut self, tag: u64) {
        for function in &mut self.functions {
            function.waits.retain(|wait| *wait != tag);
        }
    }

    /// Ends the functions that wait for nothing any more.
    pub(super) fn settle(&mut self, io: &mut Io) {
        while let Some(index) = self.functions.iter().position(Function::is_over) {
            let function = self.functions.remove(index);
            match function.end {
                End::Respond(tag) => self.complete_function(tag, io),
                End::RespondAndDrop(tag) => {
                    self.complete_function(tag, io);
                    if let Some(view) = &self.view {
                        io.actions.push_back(Action::DropTarget { target: view.iqn.clone() });
                    }
                    self.drop_session(io);
                }
                End::Logout(tag) => self.answer_logout(tag, logout_response::CLOSED, io),
                End::Command(tag, settled) => self.told(tag, settled, io),
                End::Foreign(_) => {}
            }
        }
    }

    pub(super) fn begin(&mut self, function: Function, io: &mut Io) {
        self.functions.push(function);
        self.settle(io);
    }

    fn complete_function(&self, task_tag: u32, io: &mut Io) {
        let pdu = TaskManagementResponse { response: tmf_response::COMPLETE, task_tag };
        io.transmit.send(pdu.encode(), Data::new(), StatSn::Use);
    }

    /// Tags to wait for; `None`: there is no such task (RFC 7143 11.6.1).
    fn abort_task(&mut self, request: &TaskManagement, io: &mut Io) -> Option<Vec<u64>> {
        let wanted = request.referenced_tag;
        // An aborted one that its device still has counts: it is waited for again.
        let is_meant = |active: &Active| active.task_tag == wanted && active.lun == request.lun;
        if self.tasks.iter().any(|(_, active)| is_meant(active)) {
            return Some(self.abort(io, is_meant));
        }
        // A command that is held, or has not come at all: its CmdSN counts as come.
        if self.window.drop_held(|pdu| pdu.bhs.task_tag() == wanted && is_command_to(pdu, request.lun)) > 0 {
            return Some(Vec::new());
        }
        let is_due = request.ref_cmd_sn.is_before(request.cmd_sn);
        (is_due && self.window.plug(request.ref_cmd_sn)).then(Vec::new)
    }

    fn unit(&self, lun: u64) -> Option<(u16, Arc<LogicalUnit>)> {
        let Address::Unit(lun) = decode(lun) else { return None };
        Some((lun, Arc::clone(self.view.as_ref()?.luns.get(&lun)?)))
    }

    pub(super) fn token(&mut self) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        token
    }

    fn ask_peers(&mut self, volumes: Arc<[VolumeId]>, attention: Attention, io: &mut Io) -> u64 {
        let token = self.token();
        io.actions.push_back(Action::Reset { token, volumes, attention });
        token
    }
}

/// Whether another gateway serves the unit.
fn is_elsewhere(unit: &LogicalUnit) -> bool {
    unit.device.readiness() == Readiness::NotOwner
}

fn is_command_to(pdu: &Pdu, lun: u64) -> bool {
    matches!(Request::decode(&pdu.bhs), Request::ScsiCommand(command) if command.lun == lun)
}

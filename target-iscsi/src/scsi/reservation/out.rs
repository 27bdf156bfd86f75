//! PERSISTENT RESERVE OUT (SPC-4 6.16): from CDB and parameter list to an [`Order`].
//!
//! ```text
//! basic parameter list                          of REGISTER AND MOVE
//! 0   RESERVATION KEY                           0   RESERVATION KEY
//! 8   SERVICE ACTION RESERVATION KEY            8   SERVICE ACTION RESERVATION KEY
//! 20  SPEC_I_PT (3), ALL_TG_PT (2), APTPL (0)   17  UNREG (1), APTPL (0)
//! 24  TRANSPORTID PARAMETER DATA LENGTH and     18  RELATIVE TARGET PORT IDENTIFIER
//!     TransportIDs, with SPEC_I_PT              20  TRANSPORTID LENGTH and TransportID
//! ```

use std::sync::Arc;

use lunette_proto::limits::REGISTRANTS_MAX;
use lunette_proto::map::{NexusId, ReservationType, UnitState};

use super::order::{Action, Move, Order, Outcome, Preempt, Register, carry_out};
use super::transport_id::{self, TransportId};
use crate::scsi::request::{Answer, Plan, Request, be16, be32, be64};
use crate::scsi::sense::{Failure, Sense};
use crate::scsi::task::{Job, Progress};
use crate::scsi::unit::{Decision, Proposal, Refusal, SharedUnit, Transition};

/// Length of the basic parameter list.
const BASIC_BYTES: usize = 24;
/// The longest list that is taken: a TransportID for each registrant that there can be.
const LIST_BYTES_MAX: u32 = REGISTRANTS_MAX as u32 * 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ServiceAction {
    Register,
    Reserve,
    Release,
    Clear,
    Preempt,
    PreemptAndAbort,
    RegisterAndIgnore,
    RegisterAndMove,
}

pub(in crate::scsi) fn register(request: &mut Request<'_>) -> Answer {
    collect(request, ServiceAction::Register)
}

pub(in crate::scsi) fn reserve(request: &mut Request<'_>) -> Answer {
    kind(scope_and_type(request))?;
    collect(request, ServiceAction::Reserve)
}

pub(in crate::scsi) fn release(request: &mut Request<'_>) -> Answer {
    collect(request, ServiceAction::Release)
}

pub(in crate::scsi) fn clear(request: &mut Request<'_>) -> Answer {
    collect(request, ServiceAction::Clear)
}

pub(in crate::scsi) fn preempt(request: &mut Request<'_>) -> Answer {
    collect(request, ServiceAction::Preempt)
}

pub(in crate::scsi) fn preempt_and_abort(request: &mut Request<'_>) -> Answer {
    collect(request, ServiceAction::PreemptAndAbort)
}

pub(in crate::scsi) fn register_and_ignore(request: &mut Request<'_>) -> Answer {
    collect(request, ServiceAction::RegisterAndIgnore)
}

pub(in crate::scsi) fn register_and_move(request: &mut Request<'_>) -> Answer {
    collect(request, ServiceAction::RegisterAndMove)
}

fn scope_and_type(request: &Request<'_>) -> u8 {
    request.cdb.u8(2)
}

/// The scope is the logical unit; all others are obsolete.
fn kind(scope_and_type: u8) -> Result<ReservationType, Sense> {
    if scope_and_type >> 4 != 0 {
        return Err(Sense::cdb_bit(2, 7));
    }
    ReservationType::from_number(scope_and_type & 0x0F).ok_or(Sense::cdb_bit(2, 3))
}

fn collect(request: &mut Request<'_>, action: ServiceAction) -> Answer {
    let len = request.cdb.u32(5);
    let may_be_longer = matches!(action, ServiceAction::Register | ServiceAction::RegisterAndMove);
    let is_right = if may_be_longer {
        (BASIC_BYTES as u32..=LIST_BYTES_MAX).contains(&len)
    } else {
        len == BASIC_BYTES as u32
    };
    if !is_right {
        return Err(Sense::PARAMETER_LIST_LENGTH.into());
    }
    let out = ReserveOut {
        action,
        unit: Arc::clone(&request.unit.shared),
        nexus: request.nexus.id().clone(),
        ports: request.view.ports.iter().map(|port| port.relative).collect(),
        scope_and_type: scope_and_type(request),
        list_len: len,
    };
    Ok(Plan::Collect(Job::ReserveOut(out), len))
}

/// A PERSISTENT RESERVE OUT in execution.
pub(in crate::scsi) struct ReserveOut {
    action: ServiceAction,
    unit: Arc<SharedUnit>,
    nexus: NexusId,
    /// The target ports that there are.
    ports: Vec<u16>,
    scope_and_type: u8,
    list_len: u32,
}

impl ReserveOut {
    pub(in crate::scsi) fn data_out(&self, list: &[u8]) -> Result<Progress, Failure> {
        if list.len() < self.list_len as usize {
            return Err(Sense::PARAMETER_LIST_LENGTH.into());
        }
        Ok(Progress::Change(Box::new(self.order(list)?)))
    }

    /// Bytes of Data-Out.
    pub(in crate::scsi) fn list_len(&self) -> u64 {
        self.list_len.into()
    }

    fn order(&self, list: &[u8]) -> Result<Order, Sense> {
        let (Some(key), Some(new_key)) = (be64(list, 0), be64(list, 8)) else {
            return Err(Sense::PARAMETER_LIST_LENGTH);
        };
        let flags = list.get(20).copied().unwrap_or(0);
        let specifies_ports = self.action != ServiceAction::RegisterAndMove && flags & 0x08 != 0;
        if specifies_ports && self.action != ServiceAction::Register {
            return Err(Sense::parameter_bit(20, 3));
        }
        if self.action == ServiceAction::Register && !specifies_ports && list.len() != BASIC_BYTES {
            return Err(Sense::PARAMETER_LIST_LENGTH);
        }
        let action = match self.action {
            ServiceAction::Register | ServiceAction::RegisterAndIgnore => Action::Register(Register {
                new_key,
                ignores_key: self.action == ServiceAction::RegisterAndIgnore,
                aptpl: flags & 0x01 != 0,
                ports: (flags & 0x04 != 0).then(|| self.ports.clone()),
                others: if specifies_ports { Some(self.others(list)?) } else { None },
            }),
            ServiceAction::Reserve => Action::Reserve(kind(self.scope_and_type)?),
            ServiceAction::Release => Action::Release { scope_and_type: self.scope_and_type },
            ServiceAction::Clear => Action::Clear,
            ServiceAction::Preempt | ServiceAction::PreemptAndAbort => Action::Preempt(Preempt {
                victim: new_key,
                kind: kind(self.scope_and_type),
                aborts: self.action == ServiceAction::PreemptAndAbort,
            }),
            ServiceAction::RegisterAndMove => Action::Move(self.destination(list, new_key)?),
        };
        Ok(Order { nexus: self.nexus.clone(), key, action })
    }

    /// The additional parameter data of SPEC_I_PT: the initiator ports to be registered as well.
    fn others(&self, list: &[u8]) -> Result<Vec<NexusId>, Sense> {
        const AT: usize = BASIC_BYTES + 4;
        let mut ids = transport_ids(list, BASIC_BYTES)?;
        let mut others = Vec::new();
        while !ids.is_empty() {
            let bad = Sense::parameter_field(u16::try_from(list.len() - ids.len()).unwrap_or(AT as u16));
            let (id, rest) = transport_id::split(ids).ok_or(bad)?;
            let nexuses = self.nexuses_of(id, self.nexus.tag);
            if nexuses.is_empty() {
                return Err(bad);
            }
            others.extend(nexuses);
            ids = rest;
        }
        Ok(others)
    }

    /// Where REGISTER AND MOVE moves to.
    fn destination(&self, list: &[u8], new_key: u64) -> Result<Move, Sense> {
        let ids = transport_ids(list, 20)?;
        let port = be16(list, 18).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
        if !self.ports.contains(&port) {
            return Err(Sense::parameter_field(18));
        }
        let bad = Sense::parameter_field(BASIC_BYTES as u16);
        let (id, rest) = transport_id::split(ids).ok_or(bad)?;
        if !rest.is_empty() {
            return Err(Sense::parameter_field(20));
        }
        let flags = list.get(17).copied().unwrap_or(0);
        let Ok([to]) = <[NexusId; 1]>::try_from(self.nexuses_of(id, port)) else { return Err(bad) };
        Ok(Move { to, new_key, unregisters: flags & 0x02 != 0, aptpl: flags & 0x01 != 0 })
    }

    /// The nexus of an initiator port with a port of this target. The name of a device stands for all of its ports
    /// that are known; it may as well be rejected (SPC-4 7.6.4.6).
    fn nexuses_of(&self, id: TransportId, tag: u16) -> Vec<NexusId> {
        let target = &self.nexus.target;
        match id.isid {
            Some(isid) => vec![NexusId { initiator: id.initiator, isid, target: target.clone(), tag }],
            None => self.unit.nexuses_of(&id.initiator, target, tag),
        }
    }
}

/// The TransportIDs that follow the length at `at`, which must be all there.
fn transport_ids(list: &[u8], at: usize) -> Result<&[u8], Sense> {
    let len = be32(list, at).and_then(|len| usize::try_from(len).ok()).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
    let ids = list.get(at + 4..).unwrap_or_default();
    ids.get(..len).ok_or(Sense::PARAMETER_LIST_LENGTH)
}

impl Transition for Order {
    fn decide(&mut self, present: &UnitState) -> Result<Decision, Refusal> {
        Ok(match carry_out(&present.reservations, self).map_err(Refusal)? {
            Outcome::Nothing => Decision::Nothing,
            Outcome::Changed(reservations, notices) => {
                let state = UnitState { reservations, ..present.clone() };
                Decision::Keep(Proposal { state, notices })
            }
        })
    }
}

//! What logical units keep: reservations, and sanitize operations that are not over.
//!
//! Only compared and swapped: whoever changes a state has decided on what was there, and two gateways may have decided
//! on the same.

use std::collections::BTreeSet;
use std::sync::Arc;

use lunette_proto::ids::VolumeId;
use lunette_proto::limits::{BLOCK_BYTES, ISCSI_NAME_BYTES_MAX, REGISTRANTS_MAX};
use lunette_proto::map::{NexusId, Reservations, Sanitize, SanitizeKind, UnitState};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Change, Draft, Rejection, Response};

/// What is wrong with the state of a logical unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Error)]
pub enum UnitProblem {
    /// More registrations than there can be.
    #[error("{0} registrations, and {REGISTRANTS_MAX} is the most")]
    Registrants(usize),
    /// A name of an I_T nexus.
    #[error(
        "an I_T nexus bears names of 1 to 223 bytes in lower case, without spaces and control characters"
    )]
    Name,
    /// A key of 0 is none.
    #[error("a registration without a key")]
    Key,
    /// An I_T nexus that is registered twice.
    #[error("an I_T nexus is registered twice")]
    Twice,
    /// A reservation without a registration behind it, or with a holder where all hold it.
    #[error("a reservation whose holder is not registered, or is not of its type")]
    Holder,
    /// A pattern to overwrite with.
    #[error("a pattern of {0} bytes, and 1 to {BLOCK_BYTES} are possible")]
    Pattern(usize),
    /// Overwritten no time.
    #[error("a count of 0")]
    Count,
}

impl Draft<'_> {
    pub(super) fn set_unit_state(
        &mut self,
        id: VolumeId,
        state: &Arc<UnitState>,
    ) -> Result<Response, Rejection> {
        self.active(id)?;
        let present = self.map.units.get(&id);
        // Sent again, because the answer was lost.
        if present == Some(state) {
            return Ok(Response::Done);
        }
        let present = present.map_or(0, |present| present.revision);
        if present.checked_add(1) != Some(state.revision) {
            return Err(Rejection::UnitRevision { volume: id, present, given: state.revision });
        }
        check(state).map_err(Rejection::UnitState)?;
        self.put(Change::PutUnit(id, Arc::clone(state)));
        Ok(Response::Done)
    }
}

/// Whether all of it is bounded, and holds together.
fn check(state: &UnitState) -> Result<(), UnitProblem> {
    check_reservations(&state.reservations)?;
    state.sanitize.as_ref().map_or(Ok(()), check_sanitize)
}

fn check_reservations(reservations: &Reservations) -> Result<(), UnitProblem> {
    let registrants = &reservations.registrants;
    if registrants.len() > REGISTRANTS_MAX {
        return Err(UnitProblem::Registrants(registrants.len()));
    }
    let mut known: BTreeSet<&NexusId> = BTreeSet::new();
    for registrant in registrants {
        if !is_name(&registrant.nexus.initiator) || !is_name(&registrant.nexus.target) {
            return Err(UnitProblem::Name);
        }
        if registrant.key == 0 {
            return Err(UnitProblem::Key);
        }
        if !known.insert(&registrant.nexus) {
            return Err(UnitProblem::Twice);
        }
    }
    let is_held = match &reservations.reservation {
        None => true,
        Some(reservation) => match &reservation.holder {
            Some(holder) => !reservation.kind.is_of_all() && known.contains(holder),
            None => reservation.kind.is_of_all() && !known.is_empty(),
        },
    };
    if is_held { Ok(()) } else { Err(UnitProblem::Holder) }
}

/// As a login takes it, and not only what the standard allows: whoever is logged in can register.
fn is_name(name: &str) -> bool {
    (1..=ISCSI_NAME_BYTES_MAX).contains(&name.len())
        && !name.chars().any(|c| c.is_control() || c.is_whitespace())
        && name.to_lowercase() == name
}

fn check_sanitize(sanitize: &Sanitize) -> Result<(), UnitProblem> {
    match &sanitize.kind {
        SanitizeKind::BlockErase => Ok(()),
        SanitizeKind::Overwrite { pattern, count, .. } => {
            if !(1..=BLOCK_BYTES as usize).contains(&pattern.len()) {
                return Err(UnitProblem::Pattern(pattern.len()));
            }
            if *count == 0 { Err(UnitProblem::Count) } else { Ok(()) }
        }
    }
}

#[cfg(test)]
mod tests {
    use lunette_proto::ids::Generation;
    use lunette_proto::map::{Registrant, Reservation, ReservationType};

    use super::super::tests::{cluster, reason, take, volume};
    use super::super::{Command, State};
    use super::*;

    const ID: VolumeId = VolumeId(1);

    fn registrant(index: u32) -> Registrant {
        let nexus = NexusId {
            initiator: format!("iqn.2026-11.com.example:host{index}"),
            isid: [0x80, 0, 0, 0, 0, 1],
            target: "iqn.2026-11.io.lunette:v".into(),
            tag: 1,
        };
        Registrant { nexus, key: 7, all_target_ports: false }
    }

    fn unit(revision: u64, registrants: Vec<Registrant>) -> UnitState {
        let reservations = Reservations { registrants, ..Reservations::default() };
        UnitState { revision, reservations, sanitize: None }
    }

    fn set(state: UnitState) -> Command {
        Command::SetUnitState { volume: ID, state: Arc::new(state) }
    }

    fn with_volume() -> State {
        let mut state = cluster();
        state.apply(&volume("v", false)).expect("creates");
        state
    }

    /// Guards against two gateways that both win: only what continues the present revision is taken, and what is sent
    /// again is answered again.
    #[test]
    fn one_wins() {
        let mut state = with_volume();
        let first = set(unit(1, vec![registrant(1)]));
        state.apply(&first).expect("the first");
        assert_eq!(state.apply(&first).expect("the answer was lost").delta, None);
        assert_eq!(reason(&state, &set(unit(1, vec![registrant(2)]))), "UNIT_REVISION");
        for revision in [0, 3, u64::MAX] {
            assert_eq!(reason(&state, &set(unit(revision, vec![]))), "UNIT_REVISION");
        }
        state.apply(&set(unit(2, vec![]))).expect("the second");
        assert_eq!(reason(&state, &first), "UNIT_REVISION");
        assert_eq!(state.map().units[&ID].revision, 2);
    }

    /// Guards against reservations that outlive their volume, and come to one that is gone.
    #[test]
    fn gone_with_its_volume() {
        let mut state = with_volume();
        let keep = set(unit(1, vec![registrant(1)]));
        state.apply(&keep).expect("keeps");
        state.apply(&take(ID.0, 0)).expect("takes");
        state.apply(&Command::DeleteVolume { name: "v".into(), force: false }).expect("deletes");
        assert!(state.map().volumes.contains_key(&ID) && state.map().units.is_empty());
        assert_eq!(reason(&state, &keep), "VOLUME_NOT_FOUND");
        let nobody = Command::SetUnitState { volume: VolumeId(9), state: Arc::default() };
        assert_eq!(reason(&state, &nobody), "VOLUME_NOT_FOUND");
    }

    /// Guards the map against what would not fit or not hold together; each is refused, and has changed nothing.
    #[test]
    fn bounds() {
        let mut state = with_volume();
        let many = |count: u32| (0..count).map(registrant).collect::<Vec<_>>();
        let max = u32::try_from(REGISTRANTS_MAX).expect("few");
        let named = |name: &str| {
            let mut registrant = registrant(1);
            registrant.nexus.initiator = name.into();
            vec![registrant]
        };
        let held = |kind, holder| {
            let mut unit = unit(1, many(1));
            unit.reservations.reservation = Some(Reservation { kind, holder });
            unit
        };
        let overwrite = |len, count| {
            let kind = SanitizeKind::Overwrite { pattern: vec![1; len], count, invert: false };
            let sanitize = Some(Sanitize { kind, unrestricted_exit: false, has_failed: false });
            UnitState { sanitize, ..unit(1, vec![]) }
        };
        let (one, all) = (ReservationType::WriteExclusive, ReservationType::ExclusiveAccessAllRegistrants);
        let mut nobody = held(all, None);
        nobody.reservations.registrants.clear();
        let wrong = [
            (unit(1, many(max + 1)), UnitProblem::Registrants(REGISTRANTS_MAX + 1)),
            (unit(1, named("")), UnitProblem::Name),
            (unit(1, named(&"x".repeat(224))), UnitProblem::Name),
            (unit(1, named("iqn.2026-11.com.example:Host")), UnitProblem::Name),
            (unit(1, named("two words")), UnitProblem::Name),
            (unit(1, named("a\0")), UnitProblem::Name),
            (unit(1, vec![Registrant { key: 0, ..registrant(1) }]), UnitProblem::Key),
            (unit(1, vec![registrant(1), registrant(2), registrant(1)]), UnitProblem::Twice),
            (held(one, Some(registrant(5).nexus)), UnitProblem::Holder),
            (held(one, None), UnitProblem::Holder),
            (held(all, Some(registrant(0).nexus)), UnitProblem::Holder),
            (nobody, UnitProblem::Holder),
            (overwrite(0, 1), UnitProblem::Pattern(0)),
            (overwrite(4097, 1), UnitProblem::Pattern(4097)),
            (overwrite(1, 0), UnitProblem::Count),
        ];
        for (unit, problem) in wrong {
            assert_eq!(state.decide(&set(unit)).expect_err("wrong"), Rejection::UnitState(problem));
        }
        let right = [
            unit(1, many(max)),
            unit(1, named(&"x".repeat(223))),
            held(one, Some(registrant(0).nexus)),
            held(all, None),
            overwrite(4096, 31),
        ];
        for (revision, unit) in (1..).zip(right) {
            state.apply(&set(UnitState { revision, ..unit })).expect("right");
        }
    }

    /// Guards against a cache that is said to be off while acknowledged writes are in memory alone: only the present
    /// owner's word counts.
    #[test]
    fn write_back() {
        let mut state = with_volume();
        let turn = |generation: Option<u64>, write_back| Command::SetWriteBack {
            volume: ID,
            generation: generation.map(Generation),
            write_back,
        };
        state.apply(&turn(None, true)).expect("on");
        state.apply(&turn(None, false)).expect("off: nobody has written");
        state.apply(&turn(None, true)).expect("on");
        state.apply(&take(ID.0, 0)).expect("takes");
        state.apply(&take(ID.0, 1)).expect("takes again");
        for generation in [None, Some(1), Some(3)] {
            assert_eq!(reason(&state, &turn(generation, false)), "NOT_FLUSHED");
        }
        assert!(state.map().volumes[&ID].write_back);
        state.apply(&turn(Some(2), false)).expect("flushed");
        assert!(!state.map().volumes[&ID].write_back);
        assert_eq!(state.apply(&turn(None, false)).expect("is off").delta, None);
        let unknown = Command::SetWriteBack { volume: VolumeId(9), generation: None, write_back: true };
        assert_eq!(reason(&state, &unknown), "VOLUME_NOT_FOUND");
    }
}

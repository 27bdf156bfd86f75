//! The rules of PERSISTENT RESERVE OUT once more, for three nexuses and as the tables of SPC-4 5.13 put them, to
//! compare [`carry_out`] with.

use lunette_proto::limits::REGISTRANTS_MAX;
use lunette_proto::map::{NexusId, Registrant, Reservation, ReservationType, Reservations};
use proptest::prelude::*;

use super::notices::derive;
use super::order::{Action, Move, Order, Outcome, Preempt, Register, carry_out};
use crate::scsi::Attention;
use crate::scsi::sense::{Failure, Sense};
use crate::scsi::unit::Notice;

const TYPES: [u8; 6] = [1, 3, 5, 6, 7, 8];

/// By nexus: its key, or 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct State {
    keys: [u64; 3],
    /// Type, and who made it, which for types 7h and 8h says nothing.
    reservation: Option<(u8, usize)>,
    generation: u32,
}

/// What a command says.
#[derive(Clone, Copy, Debug)]
struct Command {
    from: usize,
    action: u8,
    key: u64,
    new_key: u64,
    kind: u8,
    to: usize,
    unregisters: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Nothing,
    Preempted,
    Released,
    Unregistered,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Good(State, [Told; 3], [bool; 3]),
    Conflict,
    BadParameter,
    BadRelease,
    BadAction,
}

impl State {
    fn holds(&self, nexus: usize) -> bool {
        self.keys[nexus] != 0 && self.reservation.is_some_and(|(kind, holder)| kind >= 7 || holder == nexus)
    }

    /// The table of each service action, row by row.
    fn model(self, command: Command) -> Verdict {
        let Command { from, action, key, new_key, kind, to, unregisters } = command;
        let mut next = self;
        let mut told = [Told::Nothing; 3];
        let mut aborted = [false; 3];
        let registered = |nexus: usize| self.keys[nexus] != 0;
        let others = (0..3).filter(|nexus| *nexus != from && registered(*nexus));
        match action {
            0 | 6 => {
                if action == 0 && key != self.keys[from] {
                    return Verdict::Conflict;
                }
                if !registered(from) && new_key == 0 {
                    return Verdict::Good(self, told, aborted);
                }
                next.keys[from] = new_key;
                match self.reservation {
                    Some((kind @ 1..=6, holder)) if new_key == 0 && holder == from => {
                        next.reservation = None;
                        if kind >= 5 {
                            others.for_each(|other| told[other] = Told::Released);
                        }
                    }
                    Some((7.., _)) if next.keys == [0; 3] => next.reservation = None,
                    _ => {}
                }
                next.generation += 1;
            }
            _ if !registered(from) || key != self.keys[from] => return Verdict::Conflict,
            1 => match self.reservation {
                None => next.reservation = Some((kind, from)),
                Some((present, _)) if present == kind && self.holds(from) => {}
                Some(_) => return Verdict::Conflict,
            },
            2 => match self.reservation {
                Some((present, _)) if self.holds(from) => {
                    if present != kind {
                        return Verdict::BadRelease;
                    }
                    next.reservation = None;
                    if present >= 5 {
                        others.for_each(|other| told[other] = Told::Released);
                    }
                }
                _ => {}
            },
            3 => {
                others.for_each(|other| told[other] = Told::Preempted);
                next = State { generation: self.generation + 1, ..State::default() };
            }
            4 | 5 => {
                let takes_over = match self.reservation {
                    None => false,
                    Some((7.., _)) => new_key == 0,
                    Some((_, holder)) => new_key == self.keys[holder],
                };
                if !takes_over && new_key == 0 {
                    return Verdict::BadParameter;
                }
                if !takes_over && !self.keys.contains(&new_key) {
                    return Verdict::Conflict;
                }
                for nexus in (0..3).filter(|nexus| registered(*nexus)) {
                    let is_meant = new_key == 0 || self.keys[nexus] == new_key;
                    if is_meant && !(takes_over && nexus == from) {
                        next.keys[nexus] = 0;
                        aborted[nexus] = action == 5;
                        if nexus != from {
                            told[nexus] = Told::Unregistered;
                        }
                    }
                }
                if takes_over {
                    next.reservation = Some((kind, from));
                    for other in others.filter(|other| next.keys[*other] != 0) {
                        if self.reservation.is_some_and(|(present, _)| present != kind) {
                            told[other] = Told::Released;
                        }
                    }
                } else if next.keys == [0; 3] {
                    next.reservation = None;
                }
                next.generation += 1;
            }
            _ => {
                match self.reservation {
                    None => return Verdict::BadAction,
                    Some((7.., _)) => return Verdict::Conflict,
                    Some((_, holder)) if holder != from => return Verdict::Conflict,
                    Some(_) if new_key == 0 || to == from => return Verdict::BadParameter,
                    Some((kind, _)) => next.reservation = Some((kind, to)),
                }
                next.keys[to] = new_key;
                if unregisters {
                    next.keys[from] = 0;
                }
                next.generation += 1;
            }
        }
        Verdict::Good(next, told, aborted)
    }
}

fn nexus(number: usize) -> NexusId {
    let isid = [0x80, 0, 0, 0, 0, u8::try_from(number).unwrap_or(u8::MAX)];
    NexusId { initiator: "iqn.2026-11.org.example:host".into(), isid, target: "iqn.t".into(), tag: 1 }
}

fn number(nexus: &NexusId) -> usize {
    nexus.isid[5].into()
}

fn kind(number: u8) -> ReservationType {
    ReservationType::from_number(number).expect("a type of the table")
}

fn order(command: Command) -> Order {
    let Command { from, action, key, new_key, kind: number, to, unregisters } = command;
    let register = |ignores_key| {
        Action::Register(Register { new_key, ignores_key, aptpl: false, ports: None, others: None })
    };
    let preempt = |aborts| Action::Preempt(Preempt { victim: new_key, kind: Ok(kind(number)), aborts });
    let action = match action {
        0 => register(false),
        1 => Action::Reserve(kind(number)),
        2 => Action::Release { scope_and_type: number },
        3 => Action::Clear,
        4 => preempt(false),
        5 => preempt(true),
        6 => register(true),
        _ => Action::Move(Move { to: nexus(to), new_key, unregisters, aptpl: false }),
    };
    Order { nexus: nexus(from), key, action }
}

/// The model's view of reservations, and what must hold of all of them.
fn view(reservations: &Reservations) -> State {
    let mut state = State { generation: reservations.generation, ..State::default() };
    for registrant in &reservations.registrants {
        let key = &mut state.keys[number(&registrant.nexus)];
        assert!(registrant.key != 0 && *key == 0, "a nexus is registered once, with a key");
        *key = registrant.key;
    }
    state.reservation = reservations.reservation.as_ref().map(|reservation| {
        assert_eq!(reservation.kind.is_of_all(), reservation.holder.is_none());
        let holder = reservation.holder.as_ref().map_or(0, number);
        assert!(
            state.keys != [0; 3] && (reservation.kind.is_of_all() || state.keys[holder] != 0),
            "somebody holds it"
        );
        (reservation.kind.number(), holder)
    });
    state
}

/// Who made a reservation that all hold does not matter.
fn plain(mut state: State) -> State {
    if let Some((7.., holder)) = &mut state.reservation {
        *holder = 0;
    }
    state
}

fn commands() -> impl Strategy<Value = Command> {
    (0..3usize, 0..8u8, 0..4u64, 0..4u64, proptest::sample::select(&TYPES[..]), 0..3usize, any::<bool>())
        .prop_map(|(from, action, key, new_key, kind, to, unregisters)| Command {
            from,
            action,
            key,
            new_key,
            kind,
            to,
            unregisters,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2048, failure_persistence: None, ..ProptestConfig::default() })]

    /// Guards every service action against the tables: status, state, generation, who is told what, whose tasks are
    /// aborted. Two thirds of the commands name the sender's right key.
    #[test]
    fn as_the_tables_say(commands in proptest::collection::vec((commands(), 0..3u8), 1..60)) {
        let mut reservations = Reservations::default();
        for (mut command, right) in commands {
            let before = view(&reservations);
            if right > 0 {
                command.key = before.keys[command.from];
            }
            let verdict = match carry_out(&reservations, &order(command)) {
                Err(Failure::Conflict) => Verdict::Conflict,
                Err(Failure::Check(Sense::INVALID_RELEASE)) => Verdict::BadRelease,
                Err(Failure::Check(sense)) if sense == Sense::cdb_bit(1, 4) => Verdict::BadAction,
                Err(Failure::Check(sense)) => {
                    prop_assert!([8, 24].map(Sense::parameter_field).contains(&sense), "{sense:?}");
                    Verdict::BadParameter
                }
                Err(failure) => panic!("{failure:?}"),
                Ok(Outcome::Nothing) => Verdict::Good(before, [Told::Nothing; 3], [false; 3]),
                Ok(Outcome::Changed(next, notices)) => {
                    let mut told = [Told::Nothing; 3];
                    let mut aborted = [false; 3];
                    for Notice { nexus, attention, aborted: is_aborted } in &notices {
                        told[number(nexus)] = match attention {
                            None => Told::Nothing,
                            Some(Attention::ReservationsPreempted) => Told::Preempted,
                            Some(Attention::ReservationsReleased) => Told::Released,
                            Some(Attention::RegistrationsPreempted) => Told::Unregistered,
                            Some(other) => panic!("{other:?}"),
                        };
                        aborted[number(nexus)] = *is_aborted;
                    }
                    let mut nexuses: Vec<_> = notices.iter().map(|notice| &notice.nexus).collect();
                    nexuses.dedup();
                    prop_assert_eq!(nexuses.len(), notices.len());
                    // Another gateway reads the same off the two states. Only if nobody is left does it not know
                    // whether a preemptor has preempted itself as well.
                    let derived = derive(&reservations, &next);
                    for notice in notices.iter().filter(|_| !next.registrants.is_empty()) {
                        let is_same = |other: &Notice| {
                            (&other.nexus, other.attention) == (&notice.nexus, notice.attention)
                        };
                        let is_derived = notice.attention.is_none() || derived.iter().any(is_same);
                        prop_assert!(is_derived, "{notice:?}");
                    }
                    reservations = next;
                    Verdict::Good(view(&reservations), told, aborted)
                }
            };
            let expected = match before.model(command) {
                Verdict::Good(state, told, aborted) => Verdict::Good(plain(state), told, aborted),
                other => other,
            };
            prop_assert_eq!(verdict, expected, "{:?} {:?}", before, command);
        }
    }
}

fn register(number: usize, new_key: u64, ports: Option<Vec<u16>>, others: Option<Vec<NexusId>>) -> Order {
    let action = Action::Register(Register { new_key, ignores_key: false, aptpl: true, ports, others });
    Order { nexus: nexus(number), key: 0, action }
}

fn changed(outcome: Result<Outcome, Failure>) -> (Reservations, Vec<Notice>) {
    match outcome {
        Ok(Outcome::Changed(next, notices)) => (next, notices),
        other => panic!("{other:?}"),
    }
}

/// Guards the limit: what does not fit is refused as a whole, what replaces a registration fits.
#[test]
fn as_many_as_there_may_be() {
    let registrants = (0..REGISTRANTS_MAX - 1).map(|at| {
        let nexus = NexusId { tag: u16::try_from(at).expect("few") + 2, ..nexus(0) };
        Registrant { nexus, key: 1, all_target_ports: false }
    });
    let full = Reservations { registrants: registrants.collect(), ..Reservations::default() };
    let two = carry_out(&full, &register(0, 1, None, Some(vec![nexus(1)])));
    assert_eq!(two, Err(Sense::INSUFFICIENT_REGISTRATION_RESOURCES.into()));
    let (full, _) = changed(carry_out(&full, &register(0, 1, None, None)));
    assert_eq!(full.registrants.len(), REGISTRANTS_MAX);
    assert_eq!(
        carry_out(&full, &register(1, 1, None, None)),
        Err(Sense::INSUFFICIENT_REGISTRATION_RESOURCES.into())
    );
    let mut again = register(0, 2, None, None);
    again.key = 1;
    changed(carry_out(&full, &again));
}

/// Guards SPEC_I_PT and ALL_TG_PT: who is registered keeps its key; all ports or none; what is left of all ports is not
/// all ports.
#[test]
fn many_at_once() {
    let (one, _) = changed(carry_out(&Reservations::default(), &register(1, 5, None, None)));
    let order = register(0, 7, Some(vec![1, 2]), Some(vec![nexus(1), nexus(2), nexus(0)]));
    let (many, notices) = changed(carry_out(&one, &order));
    assert_eq!((notices, many.aptpl, many.generation), (vec![], true, 2));
    let found: Vec<_> = many
        .registrants
        .iter()
        .map(|registrant| {
            (number(&registrant.nexus), registrant.nexus.tag, registrant.key, registrant.all_target_ports)
        })
        .collect();
    assert_eq!(
        found,
        [
            (1, 1, 5, false),
            (0, 1, 7, true),
            (0, 2, 7, true),
            (1, 2, 7, true),
            (2, 1, 7, true),
            (2, 2, 7, true)
        ]
    );
    // A port that has another key.
    let mut other = register(1, 9, Some(vec![1, 2]), None);
    other.key = 5;
    assert_eq!(carry_out(&many, &other), Err(Failure::Conflict));
    // Who is registered cannot name others.
    let mut named = register(0, 9, None, Some(vec![nexus(2)]));
    named.key = 7;
    assert_eq!(carry_out(&many, &named), Err(Sense::parameter_bit(20, 3).into()));
    let mut gone = register(2, 0, None, None);
    gone.key = 7;
    let (rest, notices) = changed(carry_out(&many, &gone));
    assert_eq!(notices, []);
    let rest: Vec<_> = rest.registrants.iter().filter(|registrant| number(&registrant.nexus) == 2).collect();
    assert_eq!((rest.len(), rest[0].nexus.tag, rest[0].all_target_ports), (1, 2, false));
    // Through all ports at once: nobody is told, for each of them has acted.
    let mut gone = register(2, 0, Some(vec![1, 2]), None);
    gone.key = 7;
    let (rest, notices) = changed(carry_out(&many, &gone));
    assert_eq!((notices, rest.registrants.len()), (vec![], 4));
}

/// Guards an invalid type of PREEMPT: an error when a reservation is made, ignored when only registrations go.
#[test]
fn type_of_preempt() {
    let held = |kind| {
        let registrant = |number, key| Registrant { nexus: nexus(number), key, all_target_ports: false };
        Reservations {
            registrants: vec![registrant(0, 1), registrant(1, 2), registrant(2, 3)],
            reservation: Some(Reservation { kind, holder: Some(nexus(0)) }),
            ..Reservations::default()
        }
    };
    let bad = Sense::cdb_bit(2, 3);
    let preempt = |victim| Order {
        nexus: nexus(1),
        key: 2,
        action: Action::Preempt(Preempt { victim, kind: Err(bad), aborts: false }),
    };
    let present = held(ReservationType::WriteExclusive);
    assert_eq!(carry_out(&present, &preempt(1)), Err(bad.into()));
    let (next, _) = changed(carry_out(&present, &preempt(3)));
    assert_eq!((next.registrants.len(), next.reservation), (2, present.reservation));
}

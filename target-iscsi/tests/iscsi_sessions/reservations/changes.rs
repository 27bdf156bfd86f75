//! Changes: who is told, whose tasks are aborted, in which order they are made, and what is kept.

use lunette_proto::iscsi::initiator::ScsiCommand;
use lunette_proto::map::{Registrant, Reservation, ReservationType, Reservations};
use lunette_target_iscsi::exports::KeepError;

use super::*;

/// Guards unit attentions: each is told to exactly those that SPC-4 5.13.11 names, once, and not to the sender.
#[test]
fn attentions_of_others() {
    let told = |bed: &mut Bed, host: &mut Initiator| {
        let first = test_unit_ready(bed, host).sense;
        assert_eq!(test_unit_ready(bed, host).sense, None);
        first
    };
    for kind in TYPES {
        let shared = kind >= 5;
        for (action, victim, expected) in [
            (RELEASE, 0, if shared { RELEASED } else { None }),
            (CLEAR, 0, PREEMPTED),
            (PREEMPT, 2, UNREGISTERED),
            (REGISTER, 0, if (5..=6).contains(&kind) { RELEASED } else { None }),
        ] {
            let mut bed = Bed::new();
            let [mut holder, mut registrant, mut stranger] = three(&mut bed);
            assert_eq!(out(&mut bed, &mut holder, RESERVE, kind, 1, 0), 0);
            assert_eq!(told(&mut bed, &mut registrant), None);
            assert_eq!(out(&mut bed, &mut holder, action, kind, 1, victim), 0);
            assert_eq!(told(&mut bed, &mut holder), None, "type {kind}, action {action}");
            assert_eq!(told(&mut bed, &mut registrant), expected, "type {kind}, action {action}");
            assert_eq!(told(&mut bed, &mut stranger), None);
        }
        // The holder is preempted, by a reservation of another type.
        let mut bed = Bed::new();
        let [mut holder, mut registrant, mut third] = three(&mut bed);
        assert_eq!(out(&mut bed, &mut third, REGISTER, 0, 0, 3), 0);
        assert_eq!(out(&mut bed, &mut holder, RESERVE, kind, 1, 0), 0);
        let (other, victim) = (TYPES[usize::from(kind == 1)], if kind >= 7 { 0 } else { 1 });
        assert_eq!(out(&mut bed, &mut registrant, PREEMPT, other, 2, victim), 0);
        assert_eq!(told(&mut bed, &mut holder), UNREGISTERED);
        assert_eq!(told(&mut bed, &mut registrant), None);
        assert_eq!(told(&mut bed, &mut third), if victim == 0 { UNREGISTERED } else { RELEASED });
        let reservation = report(&mut bed, &mut holder, 1, 64);
        assert_eq!((reservation[15], reservation[21]), (2, other));
    }
}

/// Guards PREEMPT AND ABORT: it is answered when the tasks of the preempted are over at their device; those are never
/// answered, and tasks of others go on. PREEMPT aborts nothing.
#[test]
fn preempt_and_abort() {
    for action in [PREEMPT, PREEMPT_AND_ABORT] {
        let mut bed = Bed::new();
        let [mut holder, mut registrant, mut stranger] = three(&mut bed);
        bed.disk(1).hold();
        bed.disk(2).hold();
        let held = |host: &mut Initiator, lun: u64, bed: &mut Bed| {
            let mut command = host.command_header(write10(8, 1), 512);
            (command.lun, command.write) = (lun << 48, true);
            host.send(bed, command.encode(), &pattern(512, 3));
            command.task_tag
        };
        let victim = held(&mut registrant, 0, &mut bed);
        let elsewhere = held(&mut registrant, 1, &mut bed);
        let other = held(&mut stranger, 0, &mut bed);
        let own = held(&mut holder, 0, &mut bed);
        let tag = begin_out(&mut bed, &mut holder, action, 1, 1, 2);
        if action == PREEMPT_AND_ABORT {
            holder.expect_silence(&mut bed);
        } else {
            assert_eq!(holder.end(&mut bed, tag, &[]).status, 0);
        }
        bed.disk(1).release();
        bed.settle();
        assert_eq!(holder.end(&mut bed, own, &[]).status, 0);
        if action == PREEMPT_AND_ABORT {
            assert_eq!(holder.end(&mut bed, tag, &[]).status, 0);
            registrant.expect_silence(&mut bed);
        } else {
            assert_eq!(registrant.end(&mut bed, victim, &[]).status, 0);
        }
        assert_eq!(stranger.end(&mut bed, other, &[]).status, 0);
        bed.disk(2).release();
        bed.settle();
        assert_eq!(registrant.end(&mut bed, elsewhere, &[]).status, 0);
        assert_eq!(test_unit_ready(&mut bed, &mut registrant).sense, UNREGISTERED);
    }
}

/// Guards PREEMPT AND ABORT of its own key: the sender's other tasks are aborted, the command itself is answered.
#[test]
fn preempts_itself() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready_as(&mut bed, 1);
    assert_eq!(out(&mut bed, &mut host, REGISTER, 0, 0, 5), 0);
    bed.disk(1).hold();
    let mut command = host.command_header(write10(0, 1), 512);
    command.write = true;
    host.send(&mut bed, command.encode(), &pattern(512, 3));
    let tag = begin_out(&mut bed, &mut host, PREEMPT_AND_ABORT, 1, 5, 5);
    host.expect_silence(&mut bed);
    bed.disk(1).release();
    bed.settle();
    assert_eq!(host.end(&mut bed, tag, &[]).status, 0);
    host.expect_silence(&mut bed);
    assert_eq!(keys(&mut bed, &mut host), []);
    assert_eq!(test_unit_ready(&mut bed, &mut host).sense, None);
}

/// Guards a command whose tasks are aborted while others are told of its change: no answer, but the change stands.
#[test]
fn aborted_in_between() {
    let mut bed = Bed::new();
    let [mut holder, mut registrant, _] = three(&mut bed);
    bed.keeper().hold();
    let tag = begin_out(&mut bed, &mut holder, CLEAR, 0, 1, 0);
    let none = ScsiCommand { task_tag: tag, ..ScsiCommand::default() };
    let function = holder.manage(&mut bed, 1, 0, &none);
    holder.expect_silence(&mut bed);
    bed.keeper().release();
    bed.settle();
    assert_eq!(holder.managed(&mut bed, function), 0);
    holder.expect_silence(&mut bed);
    assert_eq!(test_unit_ready(&mut bed, &mut registrant).sense, PREEMPTED);
    // While the device of another holds the answer up.
    assert_eq!(out(&mut bed, &mut holder, REGISTER, 0, 0, 1), 0);
    assert_eq!(out(&mut bed, &mut registrant, REGISTER, 0, 0, 2), 0);
    bed.disk(1).hold();
    let mut command = registrant.command_header(write10(8, 1), 512);
    command.write = true;
    registrant.send(&mut bed, command.encode(), &pattern(512, 3));
    let tag = begin_out(&mut bed, &mut holder, PREEMPT_AND_ABORT, 1, 1, 2);
    let none = ScsiCommand { task_tag: tag, ..ScsiCommand::default() };
    let function = holder.manage(&mut bed, 1, 0, &none);
    assert_eq!(holder.managed(&mut bed, function), 0);
    bed.disk(1).release();
    bed.settle();
    holder.expect_silence(&mut bed);
    assert_eq!(keys(&mut bed, &mut holder), [1]);
}

/// Guards the order of changes: one at a time, each decided when those before it are in force; none is answered before
/// it is kept; too many are BUSY. A session that ends waits for its own.
#[test]
fn one_at_a_time() {
    let mut bed = Bed::new();
    let [mut first, mut second, mut third] = three(&mut bed);
    bed.keeper().hold();
    let one = begin_out(&mut bed, &mut first, RESERVE, 1, 1, 0);
    let two = begin_out(&mut bed, &mut second, RESERVE, 3, 2, 0);
    first.expect_silence(&mut bed);
    second.expect_silence(&mut bed);
    assert_eq!(bed.keeper().held(), 1);
    assert_eq!(write(&mut bed, &mut third), 0, "it is not kept, so it is not in force");
    let mut begun = Vec::new();
    for _ in 0..63 {
        begun.push(begin_out(&mut bed, &mut third, REGISTER, 0, 0, 0));
    }
    third.expect_silence(&mut bed);
    assert_eq!(out(&mut bed, &mut third, REGISTER, 0, 0, 0), BUSY);
    bed.cut(first.id);
    assert!(!bed.is_gone(first.id));
    bed.keeper().release();
    bed.settle();
    assert!(bed.is_gone(first.id));
    assert_eq!(second.end(&mut bed, two, &[]).status, CONFLICT);
    for tag in begun {
        assert_eq!(third.end(&mut bed, tag, &[]).status, 0);
    }
    assert_ne!(one, 0);
    assert_eq!(write(&mut bed, &mut third), CONFLICT);
}

/// Guards changes that are not kept: never GOOD, nothing is in force, and what may have happened is not called BUSY.
#[test]
fn not_kept() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready_as(&mut bed, 1);
    for (error, status, sense) in [
        (KeepError::Conflict, BUSY, None),
        (KeepError::Gone, 2, Some([5, 0x25, 0])),
        (KeepError::Unavailable("down".into()), 2, Some([0xb, 8, 1])),
    ] {
        bed.keeper().fail_next(error, false);
        let ended = send_out(&mut bed, &mut host, REGISTER, 0, &list(0, 1, 0));
        assert_eq!((ended.status, ended.sense), (status, sense));
        assert_eq!(keys(&mut bed, &mut host), []);
    }
    // Who waits behind one that is in doubt is told at once that nothing happened.
    let mut behind = Initiator::ready_as(&mut bed, 2);
    bed.keeper().hold();
    let tags = [
        begin_out(&mut bed, &mut host, REGISTER, 0, 0, 1),
        begin_out(&mut bed, &mut behind, REGISTER, 0, 0, 2),
    ];
    bed.keeper().fail_next(KeepError::Unavailable("down".into()), false);
    bed.keeper().release();
    bed.settle();
    assert_eq!(host.end(&mut bed, tags[0], &[]).sense, Some([0xb, 8, 1]));
    assert_eq!(behind.end(&mut bed, tags[1], &[]).status, BUSY);
    // Another gateway was faster: decided again when its state has come, here to a conflict.
    bed.keeper().hold();
    let tag = begin_out(&mut bed, &mut host, REGISTER, 0, 0, 1);
    let nexus = crate::bed::nexus(9);
    bed.keeper().change(1, |unit| {
        unit.reservations.registrants.push(Registrant {
            nexus: crate::bed::nexus(1),
            key: 4,
            all_target_ports: false,
        });
        unit.reservations.registrants.push(Registrant { nexus, key: 9, all_target_ports: false });
    });
    bed.learn();
    host.expect_silence(&mut bed);
    bed.keeper().release();
    bed.settle();
    assert_eq!(host.end(&mut bed, tag, &[]).status, CONFLICT);
    assert_eq!(keys(&mut bed, &mut host), [4, 9]);
}

/// Guards a change in doubt that was made all the same: it comes with a map, and tells everybody but the sender.
#[test]
fn kept_in_doubt() {
    let mut bed = Bed::new();
    let [mut holder, mut registrant, _] = three(&mut bed);
    bed.keeper().fail_next(KeepError::Unavailable("no answer".into()), true);
    assert_eq!(send_out(&mut bed, &mut holder, CLEAR, 0, &list(1, 0, 0)).sense, Some([0xb, 8, 1]));
    assert_eq!(keys(&mut bed, &mut holder), [1, 2]);
    bed.learn();
    assert_eq!(keys(&mut bed, &mut holder), []);
    assert_eq!(test_unit_ready(&mut bed, &mut holder).sense, None);
    assert_eq!(test_unit_ready(&mut bed, &mut registrant).sense, PREEMPTED);
    // The map brings it before the answer says that there is none.
    bed.keeper().hold();
    let tag = begin_out(&mut bed, &mut holder, REGISTER, 0, 0, 1);
    bed.keeper().commit();
    bed.learn();
    holder.expect_silence(&mut bed);
    bed.keeper().fail_next(KeepError::Unavailable("no answer".into()), true);
    bed.keeper().release();
    bed.settle();
    assert_eq!(holder.end(&mut bed, tag, &[]).status, 0);
}

/// Guards changes by another gateway: they come with a map, are in force at once, and the nexuses here are told.
#[test]
fn changed_elsewhere() {
    let mut bed = Bed::new();
    let [mut holder, mut registrant, mut stranger] = three(&mut bed);
    assert_eq!(out(&mut bed, &mut holder, RESERVE, 5, 1, 0), 0);
    let change = |bed: &mut Bed, change: fn(&mut Reservations)| {
        bed.keeper().change(1, |unit| change(&mut unit.reservations));
        bed.learn();
    };
    // Somebody there preempts the holder, with another type.
    change(&mut bed, |reservations| {
        let nexus = lunette_proto::map::NexusId { tag: 2, ..crate::bed::nexus(1) };
        reservations.registrants.remove(0);
        reservations.registrants.push(Registrant { nexus: nexus.clone(), key: 3, all_target_ports: false });
        reservations.reservation =
            Some(Reservation { kind: ReservationType::ExclusiveAccess, holder: Some(nexus) });
    });
    assert_eq!(test_unit_ready(&mut bed, &mut holder).sense, UNREGISTERED);
    assert_eq!(test_unit_ready(&mut bed, &mut registrant).sense, RELEASED);
    assert_eq!(test_unit_ready(&mut bed, &mut stranger).sense, None);
    assert_eq!(read(&mut bed, &mut registrant), CONFLICT);
    // An older map changes nothing.
    bed.learn();
    assert_eq!(test_unit_ready(&mut bed, &mut registrant).sense, None);
    change(&mut bed, |reservations| *reservations = Reservations::default());
    assert_eq!(test_unit_ready(&mut bed, &mut registrant).sense, PREEMPTED);
    assert_eq!(test_unit_ready(&mut bed, &mut holder).sense, None);
    assert_eq!(write(&mut bed, &mut stranger), 0);
}

/// Guards a restart: a gateway that knows nothing but the map enforces what was kept.
#[test]
fn over_a_restart() {
    let mut bed = Bed::new();
    let [mut holder, ..] = three(&mut bed);
    assert_eq!(out(&mut bed, &mut holder, RESERVE, 8, 1, 0), 0);
    let mut map = crate::bed::map();
    map.units = bed.keeper().units();
    let mut bed = Bed::with_map(map);
    let [mut holder, mut registrant, mut stranger] =
        [1, 2, 3].map(|isid| Initiator::ready_as(&mut bed, isid));
    assert_eq!([read(&mut bed, &mut holder), read(&mut bed, &mut registrant)], [0, 0]);
    assert_eq!(read(&mut bed, &mut stranger), CONFLICT);
    assert_eq!(out(&mut bed, &mut registrant, CLEAR, 0, 2, 0), 0);
    assert_eq!(read(&mut bed, &mut stranger), 0);
}

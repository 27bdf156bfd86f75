//! Reservations among sessions: who may do what, who is told, what is kept, and what happens in between.

use lunette_proto::iscsi::Reply;
use lunette_proto::iscsi::initiator::{LogoutRequest, ScsiCommand};
use lunette_proto::map::{Gateway, Registrant, Reservation, ReservationType, Reservations};
use lunette_target_iscsi::exports::KeepError;

use crate::bed::{Bed, pattern};
use crate::initiator::{Ended, Initiator, read10, write10};

const REGISTER: u8 = 0;
const RESERVE: u8 = 1;
const RELEASE: u8 = 2;
const CLEAR: u8 = 3;
const PREEMPT: u8 = 4;
const PREEMPT_AND_ABORT: u8 = 5;
const IGNORE: u8 = 6;
const MOVE: u8 = 7;

const CONFLICT: u8 = 0x18;
const BUSY: u8 = 0x08;
const TYPES: [u8; 6] = [1, 3, 5, 6, 7, 8];
const PREEMPTED: Option<[u8; 3]> = Some([6, 0x2a, 3]);
const RELEASED: Option<[u8; 3]> = Some([6, 0x2a, 4]);
const UNREGISTERED: Option<[u8; 3]> = Some([6, 0x2a, 5]);

fn out_cdb(action: u8, kind: u8, len: usize) -> [u8; 16] {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1], cdb[2]) = (0x5f, action, kind);
    cdb[5..9].copy_from_slice(&(len as u32).to_be_bytes());
    cdb
}

fn list(key: u64, new_key: u64, flags: u8) -> Vec<u8> {
    let mut list = key.to_be_bytes().to_vec();
    list.extend(new_key.to_be_bytes());
    list.extend([0, 0, 0, 0, flags, 0, 0, 0]);
    list
}

fn send_out(bed: &mut Bed, host: &mut Initiator, action: u8, kind: u8, list: &[u8]) -> Ended {
    host.write(bed, out_cdb(action, kind, list.len()), list)
}

fn out(bed: &mut Bed, host: &mut Initiator, action: u8, kind: u8, key: u64, new_key: u64) -> u8 {
    send_out(bed, host, action, kind, &list(key, new_key, 0)).status
}

/// Sends the command and does not wait for its end.
fn begin_out(bed: &mut Bed, host: &mut Initiator, action: u8, kind: u8, key: u64, new_key: u64) -> u32 {
    let list = list(key, new_key, 0);
    let mut command = host.command_header(out_cdb(action, kind, list.len()), list.len() as u32);
    command.write = true;
    host.send(bed, command.encode(), &list);
    command.task_tag
}

fn report(bed: &mut Bed, host: &mut Initiator, action: u8, len: u16) -> Vec<u8> {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1]) = (0x5e, action);
    cdb[7..9].copy_from_slice(&len.to_be_bytes());
    let ended = host.read(bed, cdb, len.into());
    assert_eq!(ended.status, 0);
    ended.data
}

fn keys(bed: &mut Bed, host: &mut Initiator) -> Vec<u64> {
    let data = report(bed, host, 0, 1024);
    data[8..].chunks(8).map(|key| u64::from_be_bytes(key.try_into().unwrap())).collect()
}

fn cdb(bytes: &[u8]) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[..bytes.len()].copy_from_slice(bytes);
    cdb
}

fn test_unit_ready(bed: &mut Bed, host: &mut Initiator) -> Ended {
    host.command_to(bed, 0, [0; 16], 0, &[])
}

fn plain(bed: &mut Bed, host: &mut Initiator, bytes: &[u8]) -> u8 {
    host.command_to(bed, 0, cdb(bytes), 0, &[]).status
}

fn write(bed: &mut Bed, host: &mut Initiator) -> u8 {
    host.write(bed, write10(0, 1), &pattern(512, 1)).status
}

fn read(bed: &mut Bed, host: &mut Initiator) -> u8 {
    host.read(bed, read10(0, 1), 512).status
}

/// Holder (key 1), another registrant (key 2), a stranger.
fn three(bed: &mut Bed) -> [Initiator; 3] {
    let mut hosts = [1, 2, 3].map(|isid| Initiator::ready_as(bed, isid));
    for (host, key) in hosts.iter_mut().zip([1, 2]) {
        assert_eq!(out(bed, host, REGISTER, 0, 0, key), 0);
    }
    hosts
}

/// Guards access under each type: what SPC-4 tables 65 and 66 and SBC-3 table 13 say, for the holder, another
/// registrant and a nexus that is not registered.
#[test]
fn access_under_each_type() {
    // Reads, then writes, of a registrant and a stranger.
    let table = [
        (1, [true, true], [false, false]),
        (3, [false, false], [false, false]),
        (5, [true, true], [true, false]),
        (6, [true, false], [true, false]),
        (7, [true, true], [true, false]),
        (8, [true, false], [true, false]),
    ];
    for (kind, reads, writes) in table {
        let mut bed = Bed::new();
        let [mut holder, mut registrant, mut stranger] = three(&mut bed);
        assert_eq!(out(&mut bed, &mut holder, RESERVE, kind, 1, 0), 0);
        let status = |is_allowed: bool| if is_allowed { 0 } else { CONFLICT };
        for (host, may_read, may_write) in [
            (&mut holder, true, true),
            (&mut registrant, reads[0], writes[0]),
            (&mut stranger, reads[1], writes[1]),
        ] {
            let bed = &mut bed;
            assert_eq!(read(bed, host), status(may_read), "type {kind}");
            assert_eq!(write(bed, host), status(may_write), "type {kind}");
            for (is_write, command) in [
                (false, &[0x1a, 0, 0x3f, 0, 0][..]), // MODE SENSE(6)
                (false, &[0x9e, 0x12]),              // GET LBA STATUS
                (false, &[0xa3, 0x0c]),              // REPORT SUPPORTED OPERATION CODES
                (true, &[0x35]),                     // SYNCHRONIZE CACHE(10)
                (true, &[0x15, 0x10]),               // MODE SELECT(6)
                (true, &[0x42]),                     // UNMAP
            ] {
                let may = if is_write { may_write } else { may_read };
                assert_eq!(plain(bed, host, command), status(may), "type {kind} {command:02x?}");
            }
            for always in [
                &[0x00][..],
                &[0x12],
                &[0xa0],
                &[0x03],
                &[0x25],
                &[0x9e, 0x10],
                &[0xa3, 0x0a],
                &[0x1b, 0, 0, 0, 1],
            ] {
                assert_eq!(plain(bed, host, always), 0, "type {kind} {always:02x?}");
            }
            assert_eq!(keys(bed, host), [1, 2]);
            // Another LUN is another unit.
            assert_eq!(host.command_to(bed, 1 << 48, read10(0, 1), 512, &[]).status, 0);
        }
        // Nobody else can reserve; the holder may ask again, but not for another type.
        assert_eq!(out(&mut bed, &mut stranger, RESERVE, kind, 0, 0), CONFLICT);
        assert_eq!(out(&mut bed, &mut holder, RESERVE, kind, 1, 0), 0);
        assert_eq!(out(&mut bed, &mut holder, RESERVE, TYPES[usize::from(kind == 1)], 1, 0), CONFLICT);
        assert_eq!(out(&mut bed, &mut registrant, RESERVE, kind, 2, 0), status(kind >= 7));
    }
}

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

/// Guards what is kept: a registration and a reservation stay over logout and login, and belong to the ISID; a
/// reservation by RESERVE goes with its session, however that ends.
#[test]
fn over_the_end_of_a_session() {
    let mut bed = Bed::new();
    let mut other = Initiator::ready_as(&mut bed, 9);
    for end in 0..4 {
        let mut host = Initiator::ready_as(&mut bed, 1);
        assert_eq!(plain(&mut bed, &mut host, &[0x16]), 0);
        assert_eq!(test_unit_ready(&mut bed, &mut other).status, CONFLICT);
        assert_eq!(plain(&mut bed, &mut other, &[0x12]), 0);
        match end {
            0 => log_out(&mut bed, &mut host),
            1 => bed.cut(host.id),
            2 => bed.event(host.id, lunette_target_iscsi::session::Event::Kick),
            // Reinstated.
            _ => drop(Initiator::ready_as(&mut bed, 1)),
        }
        assert_eq!(test_unit_ready(&mut bed, &mut other).status, 0, "end {end}");
    }
    let mut host = Initiator::ready_as(&mut bed, 1);
    assert_eq!(out(&mut bed, &mut host, REGISTER, 0, 0, 7), 0);
    assert_eq!(out(&mut bed, &mut host, RESERVE, 1, 7, 0), 0);
    log_out(&mut bed, &mut host);
    assert_eq!(write(&mut bed, &mut other), CONFLICT);
    let mut host = Initiator::ready_as(&mut bed, 1);
    assert_eq!(write(&mut bed, &mut host), 0);
    let mut stranger = Initiator::ready_as(&mut bed, 2);
    assert_eq!(write(&mut bed, &mut stranger), CONFLICT);
}

fn log_out(bed: &mut Bed, host: &mut Initiator) {
    let logout =
        LogoutRequest { task_tag: host.next_tag(), cmd_sn: host.cmd_sn.take(), ..LogoutRequest::default() };
    host.send(bed, logout.encode(), &[]);
    assert!(matches!(host.next(bed), Some((Reply::Logout(_), _))));
}

/// Guards RESERVE and RELEASE against resets, strangers and persistent reservations (SPC-2 5.5.1, SPC-4 5.13.3).
#[test]
fn classic_reservations() {
    let mut bed = Bed::new();
    let [mut a, mut b] = [1, 2].map(|isid| Initiator::ready_as(&mut bed, isid));
    for (reserve, release) in [(0x16, 0x17), (0x56, 0x57)] {
        assert_eq!(plain(&mut bed, &mut a, &[reserve]), 0);
        assert_eq!(plain(&mut bed, &mut a, &[reserve]), 0);
        assert_eq!(plain(&mut bed, &mut b, &[reserve]), CONFLICT);
        assert_eq!(plain(&mut bed, &mut b, &[release]), 0);
        assert_eq!((read(&mut bed, &mut b), write(&mut bed, &mut b)), (CONFLICT, CONFLICT));
        assert_eq!((read(&mut bed, &mut a), write(&mut bed, &mut a)), (0, 0));
        // With anybody's reservation, also one's own.
        assert_eq!(out(&mut bed, &mut a, REGISTER, 0, 0, 1), CONFLICT);
        assert_eq!(plain(&mut bed, &mut a, &[0x5e, 0]), CONFLICT);
        assert_eq!(plain(&mut bed, &mut a, &[release]), 0);
        assert_eq!(write(&mut bed, &mut b), 0);
        // Third parties and extents.
        for bad in [0x01, 0x10] {
            assert_eq!(a.command_to(&mut bed, 0, cdb(&[reserve, bad]), 0, &[]).sense, Some([5, 0x24, 0]));
        }
    }
    for reset in [5, 6] {
        assert_eq!(plain(&mut bed, &mut a, &[0x16]), 0);
        let none = ScsiCommand::default();
        let tag = b.manage(&mut bed, reset, 0, &none);
        assert_eq!(b.managed(&mut bed, tag), 0);
        for host in [&mut a, &mut b] {
            assert_eq!(test_unit_ready(&mut bed, host).sense, Some([6, 0x29, 3]));
            assert_eq!(test_unit_ready(&mut bed, host).status, 0);
        }
        // What the reset has ended is not ended once more when its session goes.
        assert_eq!(plain(&mut bed, &mut b, &[0x16]), 0);
        bed.cut(a.id);
        a = Initiator::ready_as(&mut bed, 1);
        assert_eq!(write(&mut bed, &mut a), CONFLICT);
        assert_eq!(plain(&mut bed, &mut b, &[0x17]), 0);
    }
    for (kind, of_holder, of_registrant) in [(0, CONFLICT, CONFLICT), (1, 0, CONFLICT), (5, 0, 0), (8, 0, 0)]
    {
        let mut bed = Bed::new();
        let [mut holder, mut registrant, mut stranger] = three(&mut bed);
        if kind != 0 {
            assert_eq!(out(&mut bed, &mut holder, RESERVE, kind, 1, 0), 0);
        }
        for classic in [0x16, 0x17, 0x56, 0x57] {
            assert_eq!(plain(&mut bed, &mut holder, &[classic]), of_holder, "type {kind}");
            assert_eq!(plain(&mut bed, &mut registrant, &[classic]), of_registrant, "type {kind}");
            assert_eq!(plain(&mut bed, &mut stranger, &[classic]), CONFLICT, "type {kind}");
        }
        assert_eq!(out(&mut bed, &mut holder, CLEAR, 0, 1, 0), 0);
        assert_eq!(write(&mut bed, &mut stranger), 0, "nothing was reserved");
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

/// A TransportID of a port of the initiator.
fn transport_id(isid: u8) -> Vec<u8> {
    let mut id = vec![0x45, 0, 0, 0];
    id.extend(format!("{},i,0x8000000000{isid:02X}\0", crate::initiator::INITIATOR).into_bytes());
    id.resize(id.len().next_multiple_of(4), 0);
    id[3] = id.len() as u8 - 4;
    id
}

/// Guards SPEC_I_PT, ALL_TG_PT and READ FULL STATUS, as SPC-4 6.15.5 lays it out.
#[test]
fn ports() {
    let mut bed = Bed::new();
    bed.apply(|map| {
        for (id, tag) in [(1, 1), (2, 2)] {
            let id = lunette_proto::ids::GatewayId(id);
            let gateway = Gateway { id, name: format!("g{tag}"), portal_group_tag: tag, portals: vec![] };
            map.gateways.insert(id, gateway);
        }
    });
    let [mut a, mut b] = [1, 2].map(|isid| Initiator::ready_as(&mut bed, isid));
    let mut list = list(0, 7, 0x08 | 0x04 | 0x01);
    let ids = [transport_id(2), transport_id(3)].concat();
    list.extend((ids.len() as u32).to_be_bytes());
    list.extend(&ids);
    assert_eq!(send_out(&mut bed, &mut a, REGISTER, 0, &list).status, 0);
    assert_eq!(keys(&mut bed, &mut b), [7; 6]);
    assert_eq!(out(&mut bed, &mut b, RESERVE, 1, 7, 0), 0);
    let status = report(&mut bed, &mut a, 3, 4096);
    assert_eq!(status[..4], [0, 0, 0, 1]);
    assert_eq!(u32::from_be_bytes(status[4..8].try_into().unwrap()) as usize, status.len() - 8);
    let mut rest = &status[8..];
    let mut seen = Vec::new();
    while !rest.is_empty() {
        let len = u32::from_be_bytes(rest[20..24].try_into().unwrap()) as usize;
        assert_eq!(rest[..8], 7u64.to_be_bytes());
        let id = rest[24..24 + len].to_ascii_uppercase();
        let isid = (1..4).find(|isid| transport_id(*isid).to_ascii_uppercase() == id).unwrap();
        seen.push((isid, rest[19], rest[12], rest[13]));
        rest = &rest[24 + len..];
    }
    seen.sort_unstable();
    assert_eq!(seen, [(1, 1, 2, 0), (1, 2, 2, 0), (2, 1, 3, 1), (2, 2, 2, 0), (3, 1, 2, 0), (3, 2, 2, 0)]);
    // One port of it unregisters: what is left is not all target ports any more.
    assert_eq!(out(&mut bed, &mut a, REGISTER, 0, 7, 0), 0);
    let status = report(&mut bed, &mut a, 3, 4096);
    assert_eq!((status[8 + 19], status[8 + 12]), (2, 0));
    // Capabilities: CRH, SIP_C, ATP_C, PTPL_C, all types; APTPL was given up by the last registration.
    assert_eq!(report(&mut bed, &mut a, 2, 64), [0, 8, 0x1d, 0xb0, 0xea, 1, 0, 0]);
    assert_eq!(report(&mut bed, &mut a, 2, 3), [0, 8, 0x1d]);
    // SPEC_I_PT is for those that are not registered.
    assert_eq!(
        send_out(&mut bed, &mut b, REGISTER, 0, &{
            list[7] = 7;
            list.clone()
        })
        .sense,
        Some([5, 0x26, 0])
    );
}

/// Guards TransportIDs of a device: they name its ports that are logged in, and to be moved to there must be one.
#[test]
fn names_of_devices() {
    let mut bed = Bed::new();
    let [mut a, b, mut c] = [1, 2, 3].map(|isid| Initiator::ready_as(&mut bed, isid));
    let mut id = vec![0x05, 0, 0, 0];
    id.extend(format!("{}\0", crate::initiator::INITIATOR.to_uppercase()).into_bytes());
    id.resize(id.len().next_multiple_of(4), 0);
    id[3] = id.len() as u8 - 4;
    let specify = [list(0, 7, 0x08), (id.len() as u32).to_be_bytes().to_vec(), id.clone()].concat();
    bed.cut(b.id);
    assert_eq!(send_out(&mut bed, &mut a, REGISTER, 0, &specify).status, 0);
    assert_eq!(keys(&mut bed, &mut a), [7, 7]);
    assert_eq!(out(&mut bed, &mut c, RESERVE, 3, 7, 0), 0);
    let mut order = list(7, 8, 0);
    order[19] = 1;
    order[20..24].copy_from_slice(&(id.len() as u32).to_be_bytes());
    order.extend(&id);
    assert_eq!(send_out(&mut bed, &mut c, MOVE, 0, &order).sense, Some([5, 0x26, 0]), "to which of two?");
    let at = order.len() - id.len();
    order[at + 4..].fill(0);
    order[at + 4..at + 11].copy_from_slice(b"iqn.x:y");
    assert_eq!(send_out(&mut bed, &mut c, MOVE, 0, &order).sense, Some([5, 0x26, 0]), "nobody");
}

/// Guards REGISTER AND MOVE: to a nexus that is logged in or not, with its old registration or without; and what it
/// refuses.
#[test]
fn register_and_move() {
    let order = |key: u64, new_key: u64, flags: u8, port: u16, id: &[u8]| {
        let mut list = key.to_be_bytes().to_vec();
        list.extend(new_key.to_be_bytes());
        list.extend([0, flags]);
        list.extend(port.to_be_bytes());
        list.extend((id.len() as u32).to_be_bytes());
        list.extend(id);
        list
    };
    let mut bed = Bed::new();
    let [mut holder, mut registrant, mut stranger] = three(&mut bed);
    let send = |bed: &mut Bed, host: &mut Initiator, list: &[u8]| {
        let ended = send_out(bed, host, MOVE, 0, list);
        (ended.status, ended.sense)
    };
    let conflict = (CONFLICT, None);
    // There is nothing to be moved yet.
    assert_eq!(send(&mut bed, &mut holder, &order(1, 9, 0, 1, &transport_id(3))), (2, Some([5, 0x24, 0])));
    assert_eq!(out(&mut bed, &mut holder, RESERVE, 3, 1, 0), 0);
    assert_eq!(send(&mut bed, &mut registrant, &order(2, 9, 0, 1, &transport_id(3))), conflict);
    assert_eq!(send(&mut bed, &mut stranger, &order(0, 9, 0, 1, &transport_id(3))), conflict);
    assert_eq!(send(&mut bed, &mut holder, &order(5, 9, 0, 1, &transport_id(3))), conflict);
    let device = [&[5, 0, 0, 20][..], b"iqn.2026-11.org.x:y\0"].concat();
    for bad in [
        order(1, 0, 0, 1, &transport_id(3)), // no key
        order(1, 9, 0, 1, &transport_id(1)), // to itself
        order(1, 9, 0, 4, &transport_id(3)), // no such port
        order(1, 9, 0, 1, &device),          // which of its ports?
        order(1, 9, 0, 1, &[transport_id(3), transport_id(2)].concat()),
    ] {
        assert_eq!(send(&mut bed, &mut holder, &bad), (2, Some([5, 0x26, 0])), "{bad:02x?}");
    }
    assert_eq!(
        send(&mut bed, &mut holder, &order(1, 9, 0, 1, &transport_id(3))[..40]),
        (2, Some([5, 0x1a, 0]))
    );
    assert_eq!(send(&mut bed, &mut holder, &order(1, 9, 1, 1, &transport_id(3))), (0, None));
    assert_eq!(keys(&mut bed, &mut holder), [1, 2, 9]);
    assert_eq!([read(&mut bed, &mut holder), read(&mut bed, &mut stranger)], [CONFLICT, 0]);
    assert_eq!(report(&mut bed, &mut holder, 2, 8)[3] & 1, 1, "APTPL");
    // Back to one that is registered, which gets another key; the sender leaves.
    assert_eq!(send(&mut bed, &mut stranger, &order(9, 8, 2, 1, &transport_id(2))), (0, None));
    assert_eq!(keys(&mut bed, &mut holder), [1, 8]);
    assert_eq!([read(&mut bed, &mut registrant), read(&mut bed, &mut stranger)], [0, CONFLICT]);
    for host in [&mut holder, &mut registrant, &mut stranger] {
        assert_eq!(test_unit_ready(&mut bed, host).sense, None);
    }
    // What all registrants hold cannot be moved.
    assert_eq!(out(&mut bed, &mut registrant, RELEASE, 3, 8, 0), 0);
    assert_eq!(out(&mut bed, &mut registrant, RESERVE, 7, 8, 0), 0);
    assert_eq!(send(&mut bed, &mut registrant, &order(8, 9, 0, 1, &transport_id(3))), conflict);
}

/// Guards what is refused before anything is decided: lengths, scopes, types, flags, service actions. PRGENERATION
/// shows that nothing was changed.
#[test]
fn malformed() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready_as(&mut bed, 1);
    assert_eq!(out(&mut bed, &mut host, REGISTER, 0, 0, 1), 0);
    let mut sense =
        |action: u8, kind: u8, list: &[u8]| send_out(&mut bed, &mut host, action, kind, list).sense;
    let right = list(1, 2, 0);
    let (length, cdb_field, list_field) = (Some([5, 0x1a, 0]), Some([5, 0x24, 0]), Some([5, 0x26, 0]));
    for action in REGISTER..=MOVE {
        assert_eq!(sense(action, 1, &right[..20]), length, "action {action}");
        if action != MOVE {
            assert_eq!(sense(action, 1, &[right.clone(), vec![0; 4]].concat()), length, "action {action}");
        }
        if ![REGISTER, MOVE].contains(&action) {
            assert_eq!(sense(action, 1, &list(1, 2, 8)), list_field, "action {action}");
        }
    }
    for kind in [0, 2, 4, 9, 0xf, 0x11, 0x21] {
        assert_eq!(sense(RESERVE, kind, &right), cdb_field, "type {kind:x}");
    }
    for action in 8..32 {
        assert_eq!(sense(action, 1, &right), cdb_field, "action {action}");
    }
    assert_eq!(sense(PREEMPT, 1, &list(1, 0, 0)), list_field);
    let mut strange = list(0, 2, 8);
    strange.extend([0, 0, 0, 24]);
    strange.extend([0x46; 24]);
    assert_eq!(sense(REGISTER, 0, &strange), list_field);
    assert_eq!(sense(REGISTER, 0, &strange[..40]), length);
    assert_eq!(sense(REGISTER, 0, &strange[..26]), length);
    for action in 4..32 {
        let ended = host.read(&mut bed, cdb(&[0x5e, action, 0, 0, 0, 0, 0, 1]), 256);
        assert_eq!(ended.sense, cdb_field, "action {action}");
    }
    // A list of which less comes than was said.
    let ended = host.write(&mut bed, out_cdb(REGISTER, 0, 24), &right[..16]);
    assert_eq!(ended.sense, length);
    assert_eq!(out(&mut bed, &mut host, RESERVE, 1, 1, 0), 0);
    assert_eq!(send_out(&mut bed, &mut host, RELEASE, 3, &list(1, 0, 0)).sense, Some([5, 0x26, 4]));
    assert_eq!(report(&mut bed, &mut host, 0, 64), [0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1]);
    assert_eq!(out(&mut bed, &mut host, IGNORE, 0, 99, 2), 0);
    assert_eq!(keys(&mut bed, &mut host), [2]);
}

/// Guards the precedence of SAM-5 5.3.3: a unit attention comes before a conflict, a conflict before write protection.
#[test]
fn precedence() {
    let mut bed = Bed::new();
    let [mut holder, mut registrant, _] = three(&mut bed);
    assert_eq!(out(&mut bed, &mut holder, PREEMPT, 1, 1, 2), 0);
    assert_eq!(out(&mut bed, &mut holder, RESERVE, 1, 1, 0), 0);
    bed.apply(|map| {
        let target = map.targets.values_mut().next().unwrap();
        target.luns.get_mut(&0).unwrap().read_only = true;
    });
    let ended = registrant.write(&mut bed, write10(0, 1), &pattern(512, 1));
    assert_eq!(ended.sense, UNREGISTERED);
    let ended = registrant.write(&mut bed, write10(0, 1), &pattern(512, 1));
    assert_eq!(ended.sense, Some([6, 0x3f, 3]));
    assert_eq!(write(&mut bed, &mut registrant), CONFLICT);
    let _ = test_unit_ready(&mut bed, &mut holder);
    assert_eq!(holder.write(&mut bed, write10(0, 1), &pattern(512, 1)).sense, Some([7, 0x27, 0]));
}

/// Guards two LUNs of one volume: there is one unit behind them.
#[test]
fn one_unit_behind_many_luns() {
    let mut map = crate::bed::map();
    let target = map.targets.values_mut().next().unwrap();
    let lun = target.luns[&0];
    target.luns.insert(1, lun);
    let mut bed = Bed::with_map(map);
    let [mut a, mut b] = [1, 2].map(|isid| Initiator::ready_as(&mut bed, isid));
    assert_eq!(out(&mut bed, &mut a, REGISTER, 0, 0, 1), 0);
    assert_eq!(out(&mut bed, &mut a, RESERVE, 3, 1, 0), 0);
    assert_eq!(b.command_to(&mut bed, 1 << 48, read10(0, 1), 512, &[]).status, CONFLICT);
    assert_eq!(a.command_to(&mut bed, 1 << 48, read10(0, 1), 512, &[]).status, 0);
}

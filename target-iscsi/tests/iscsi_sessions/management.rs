//! Task management and reinstatement: what is aborted never takes effect later, and is never answered.

use lunette_proto::ids::TargetId;
use lunette_proto::iscsi::initiator::{DataOut, LogoutRequest, ScsiCommand, TaskManagement};
use lunette_proto::iscsi::{Reply, Serial};
use lunette_target_iscsi::session::Event;

use crate::bed::{Bed, pattern};
use crate::initiator::{Initiator, read10, write10};

const ABORT_TASK: u8 = 1;
const ABORT_TASK_SET: u8 = 2;
const CLEAR_TASK_SET: u8 = 4;
const LUN_RESET: u8 = 5;
const WARM_RESET: u8 = 6;
const COLD_RESET: u8 = 7;

/// A write of one block that the device holds.
fn held_write(bed: &mut Bed, host: &mut Initiator, lun: u64, lba: u32) -> ScsiCommand {
    let mut command = host.command_header(write10(lba, 1), 512);
    command.lun = lun << 48;
    command.write = true;
    host.send(bed, command.encode(), &pattern(512, 1));
    command
}

/// Guards each function: answered only after the device has given up the tasks, which get no response.
#[test]
fn answers_wait_for_the_device() {
    for function in [ABORT_TASK, ABORT_TASK_SET, CLEAR_TASK_SET, LUN_RESET, WARM_RESET, COLD_RESET] {
        let mut bed = Bed::new();
        let mut host = Initiator::ready(&mut bed, &[]);
        bed.disk(1).hold();
        let command = held_write(&mut bed, &mut host, 0, 0);
        let tag = host.manage(&mut bed, function, 0, &command);
        host.expect_silence(&mut bed);
        bed.disk(1).release();
        bed.settle();
        assert_eq!(host.managed(&mut bed, tag), 0, "function {function}");
        if function == COLD_RESET {
            assert!(matches!(host.next(&mut bed), Some((Reply::Async(_), _))));
            assert!(bed.is_gone(host.id));
            continue;
        }
        host.expect_silence(&mut bed);
        let sense = host.read(&mut bed, read10(0, 1), 512).sense;
        let reset = matches!(function, LUN_RESET | WARM_RESET);
        assert_eq!(sense, reset.then_some([6, 0x29, 3]), "function {function}");
    }
}

/// Guards tasks that no device has: one that collects data and one whose data is being sent end at once;
/// data that still comes is dropped.
#[test]
fn abort_before_the_device() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[]);
    let mut command = host.command_header(write10(0, 8), 4096);
    command.write = true;
    host.send(&mut bed, command.encode(), &[]);
    let Some((Reply::R2t(r2t), _)) = host.next(&mut bed) else { panic!() };
    let tag = host.manage(&mut bed, ABORT_TASK, 0, &command);
    assert_eq!(host.managed(&mut bed, tag), 0);
    let late = DataOut {
        is_final: true,
        task_tag: command.task_tag,
        transfer_tag: r2t.transfer_tag,
        data_sn: Serial(0),
        ..DataOut::default()
    };
    host.send(&mut bed, late.encode(), &pattern(4096, 1));
    host.expect_silence(&mut bed);
    assert_eq!(bed.disk(1).read(0, 4096), [0; 4096]);
}

/// Guards ABORT TASK by number: a task that has been answered, one that never came, one on another LUN.
#[test]
fn abort_task_by_number() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[]);
    let mut done = host.command_header(read10(0, 1), 512);
    done.read = true;
    host.send(&mut bed, done.encode(), &[]);
    host.end(&mut bed, done.task_tag, &[]);
    let tag = host.manage(&mut bed, ABORT_TASK, 0, &done);
    assert_eq!(host.managed(&mut bed, tag), 1);

    let lost = host.command_header([0; 16], 0);
    let after = host.command_header([0; 16], 0);
    host.send(&mut bed, after.encode(), &[]);
    host.expect_silence(&mut bed);
    let tag = host.manage(&mut bed, ABORT_TASK, 0, &lost);
    assert_eq!(host.managed(&mut bed, tag), 0);
    assert_eq!(host.end(&mut bed, after.task_tag, &[]).status, 0);
    host.send(&mut bed, lost.encode(), &[]);
    host.expect_silence(&mut bed);

    bed.disk(1).hold();
    let command = held_write(&mut bed, &mut host, 0, 0);
    let tag = host.manage(&mut bed, ABORT_TASK, 1 << 48, &command);
    assert_eq!(host.managed(&mut bed, tag), 1);
    // Aborted twice: both answers wait.
    let first = host.manage(&mut bed, ABORT_TASK, 0, &command);
    let second = host.manage(&mut bed, ABORT_TASK, 0, &command);
    host.expect_silence(&mut bed);
    bed.disk(1).release();
    bed.settle();
    assert_eq!(host.managed(&mut bed, first), 0);
    assert_eq!(host.managed(&mut bed, second), 0);
    host.expect_silence(&mut bed);
}

/// Guards the scope of ABORT TASK SET: one LUN, one session.
#[test]
fn abort_task_set_scope() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[]);
    let mut other = Initiator::ready_as(&mut bed, 2);
    for disk in [1, 2] {
        bed.disk(disk).hold();
    }
    let mine = held_write(&mut bed, &mut host, 0, 0);
    let elsewhere = held_write(&mut bed, &mut host, 1, 0);
    let theirs = held_write(&mut bed, &mut other, 0, 1);
    let tag = host.manage(&mut bed, ABORT_TASK_SET, 0, &mine);
    host.expect_silence(&mut bed);
    bed.disk(1).release();
    bed.settle();
    assert_eq!(host.managed(&mut bed, tag), 0);
    assert_eq!(other.end(&mut bed, theirs.task_tag, &[]).status, 0);
    bed.disk(2).release();
    bed.settle();
    assert_eq!(host.end(&mut bed, elsewhere.task_tag, &[]).status, 0);
}

/// Guards resets over sessions: the answer waits for the tasks of others, who learn of it by a unit
/// attention and get no response; a session that saw none of its tasks cleared is told nothing.
#[test]
fn resets_reach_other_sessions() {
    for (function, attention) in
        [(CLEAR_TASK_SET, [6, 0x2f, 0]), (LUN_RESET, [6, 0x29, 3]), (WARM_RESET, [6, 0x29, 3])]
    {
        let mut bed = Bed::new();
        let mut host = Initiator::ready(&mut bed, &[]);
        let mut other = Initiator::ready_as(&mut bed, 2);
        let mut idle = Initiator::ready_as(&mut bed, 3);
        bed.disk(1).hold();
        let theirs = held_write(&mut bed, &mut other, 0, 0);
        bed.disk(2).hold();
        let elsewhere = held_write(&mut bed, &mut other, 1, 0);
        let tag = host.manage(&mut bed, function, 0, &theirs);
        host.expect_silence(&mut bed);
        bed.disk(1).release();
        bed.settle();
        let volumes = if function == WARM_RESET { 2 } else { 1 };
        if volumes == 2 {
            // All of the target's volumes: the other one is waited for, too.
            host.expect_silence(&mut bed);
            bed.disk(2).release();
            bed.settle();
        }
        assert_eq!(host.managed(&mut bed, tag), 0);
        if volumes == 1 {
            bed.disk(2).release();
            bed.settle();
            assert_eq!(other.end(&mut bed, elsewhere.task_tag, &[]).status, 0);
        }
        other.expect_silence(&mut bed);
        assert_eq!(other.read(&mut bed, read10(0, 1), 512).sense, Some(attention));
        assert_eq!(other.read(&mut bed, read10(0, 1), 512).status, 0);
        let idle_sense = idle.read(&mut bed, read10(0, 1), 512).sense;
        assert_eq!(idle_sense, (function != CLEAR_TASK_SET).then_some(attention));
    }
}

/// Guards a reset against a session that dies under it: the answer comes when that one is drained.
#[test]
fn reset_while_a_peer_dies() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[]);
    let mut other = Initiator::ready_as(&mut bed, 2);
    bed.disk(1).hold();
    let theirs = held_write(&mut bed, &mut other, 0, 0);
    let tag = host.manage(&mut bed, LUN_RESET, 0, &theirs);
    bed.cut(other.id);
    host.expect_silence(&mut bed);
    bed.disk(1).release();
    bed.settle();
    assert_eq!(host.managed(&mut bed, tag), 0);
    assert!(bed.is_gone(other.id));
}

/// Guards a cold reset: every session of the target ends.
#[test]
fn cold_reset_drops_all() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[]);
    let other = Initiator::ready_as(&mut bed, 2);
    let none = host.command_header([0; 16], 0);
    let tag = host.manage(&mut bed, COLD_RESET, 0, &none);
    assert_eq!(host.managed(&mut bed, tag), 0);
    assert!(bed.is_gone(host.id) && bed.is_gone(other.id));
    assert_eq!(bed.sessions(), 0);
}

/// Guards functions that are not there, and LUNs that are not.
#[test]
fn refusals() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[]);
    let none = host.command_header([0; 16], 0);
    host.cmd_sn = none.cmd_sn;
    for (function, lun, expected) in [
        (3, 0, 5),
        (8, 0, 4),
        (9, 0, 5),
        (0, 0, 5),
        (127, 0, 5),
        (LUN_RESET, 9 << 48, 2),
        (ABORT_TASK_SET, u64::MAX, 2),
    ] {
        let tag = host.manage(&mut bed, function, lun, &none);
        assert_eq!(host.managed(&mut bed, tag), expected, "function {function}");
    }
}

/// Guards reinstatement: the new login is answered only when the old session's write has come back,
/// so that it can never land later; a second newcomer takes over from the first.
#[test]
fn reinstatement_waits_for_old_writes() {
    let mut bed = Bed::new();
    let mut old = Initiator::ready(&mut bed, &[]);
    bed.disk(1).hold();
    held_write(&mut bed, &mut old, 0, 0);
    let mut new = Initiator::new(bed.connect());
    let text = crate::initiator::keys(&[
        ("InitiatorName", crate::initiator::INITIATOR),
        ("TargetName", crate::bed::IQN),
    ]);
    let request = new.login_request(1, Some(3));
    new.send(&mut bed, request.encode(), &text);
    new.expect_silence(&mut bed);
    assert!(bed.is_closed(old.id), "the old connection is closed at once");
    assert!(!bed.is_gone(old.id), "but its session is not released");
    bed.disk(1).release();
    bed.settle();
    assert!(bed.is_gone(old.id));
    new.login_answer(&mut bed).unwrap();
    assert_ne!(new.tsih, old.tsih);
    new.clear_attention(&mut bed);
    // What the old write did happened before the login; nothing changes it now.
    new.write(&mut bed, write10(0, 1), &pattern(512, 7));
    assert_eq!(bed.disk(1).read(0, 512), pattern(512, 7));
    assert_eq!(bed.sessions(), 1);
}

/// Guards against reinstatement by someone who cannot prove who they are.
#[test]
fn reinstatement_needs_the_whole_login() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[]);
    let mut stranger = Initiator::new(bed.connect());
    assert_eq!(stranger.login(&mut bed, &[("MaxRecvDataSegmentLength", "0")]), Err(0x0200));
    assert_eq!(host.ping(&mut bed, b"untouched"), b"untouched");
    let mut other = Initiator::new(bed.connect());
    other.isid[5] = 9;
    other.login(&mut bed, &[]).unwrap();
    assert_eq!(host.ping(&mut bed, b"beside"), b"beside");
    let mut join = Initiator::new(bed.connect());
    join.tsih = host.tsih;
    assert_eq!(join.login(&mut bed, &[("MaxRecvDataSegmentLength", "0")]), Err(0x0200));
    assert_eq!(host.ping(&mut bed, b"untouched"), b"untouched");
}

/// Guards a logout with commands at the device: answered when they are back, and they are not.
#[test]
fn logout_waits_for_the_device() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[]);
    bed.disk(1).hold();
    held_write(&mut bed, &mut host, 0, 0);
    let request = LogoutRequest { task_tag: 0x99, cmd_sn: host.cmd_sn.take(), ..LogoutRequest::default() };
    host.send(&mut bed, request.encode(), &[]);
    host.expect_silence(&mut bed);
    bed.disk(1).release();
    bed.settle();
    assert!(matches!(host.next(&mut bed), Some((Reply::Logout(_), _))));
    assert!(bed.is_gone(host.id));
}

/// Guards a stop: what devices have is answered, then the session is told and closed.
#[test]
fn stop_answers_what_is_under_way() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[]);
    bed.disk(1).hold();
    let command = held_write(&mut bed, &mut host, 0, 0);
    let mut collecting = host.command_header(write10(8, 1), 512);
    collecting.write = true;
    host.send(&mut bed, collecting.encode(), &[]);
    assert!(matches!(host.next(&mut bed), Some((Reply::R2t(_), _))));
    bed.event(host.id, Event::Stop);
    host.expect_silence(&mut bed);
    bed.disk(1).release();
    bed.settle();
    assert_eq!(host.end(&mut bed, command.task_tag, &[]).status, 0);
    let Some((Reply::Async(message), _)) = host.next(&mut bed) else { panic!() };
    assert_eq!(message.event, 3);
    assert!(bed.is_gone(host.id));
}

/// Guards a storm of logins of one identity, the first of them half open: one session is left, the last.
#[test]
fn reinstatement_storm() {
    let mut bed = Bed::new();
    let mut old = Initiator::ready(&mut bed, &[]);
    bed.disk(1).hold();
    held_write(&mut bed, &mut old, 0, 0);
    bed.deafen(old.id, true);
    let text = crate::initiator::keys(&[
        ("InitiatorName", crate::initiator::INITIATOR),
        ("TargetName", crate::bed::IQN),
    ]);
    let mut storm: Vec<Initiator> = (0..5)
        .map(|_| {
            let mut host = Initiator::new(bed.connect());
            let request = host.login_request(1, Some(3));
            host.send(&mut bed, request.encode(), &text);
            host.expect_silence(&mut bed);
            host
        })
        .collect();
    assert_eq!(bed.sessions(), 1);
    bed.disk(1).release();
    bed.settle();
    let mut last = storm.pop().unwrap();
    assert!(bed.is_gone(old.id) && storm.iter().all(|host| bed.is_gone(host.id)));
    last.login_answer(&mut bed).unwrap();
    last.clear_attention(&mut bed);
    assert_eq!(bed.sessions(), 1);
}

/// Guards against ghosts of a connection that broke: the next login is answered when its write is over.
#[test]
fn broken_connection_is_waited_for() {
    let mut bed = Bed::new();
    let mut old = Initiator::ready(&mut bed, &[]);
    bed.disk(1).hold();
    held_write(&mut bed, &mut old, 0, 0);
    bed.cut(old.id);
    assert!(!bed.is_gone(old.id));
    let mut new = Initiator::new(bed.connect());
    let text = crate::initiator::keys(&[
        ("InitiatorName", crate::initiator::INITIATOR),
        ("TargetName", crate::bed::IQN),
    ]);
    let request = new.login_request(1, Some(3));
    new.send(&mut bed, request.encode(), &text);
    new.expect_silence(&mut bed);
    bed.disk(1).release();
    bed.settle();
    new.login_answer(&mut bed).unwrap();
    new.clear_attention(&mut bed);
    assert_eq!(bed.sessions(), 1);
}

/// Guards the identity of sessions: the same ISID at another target is another session.
#[test]
fn same_isid_at_another_target() {
    let mut map = crate::bed::map();
    let mut target = map.targets[&TargetId(1)].clone();
    (target.id, target.iqn) = (TargetId(2), "iqn.2026-11.io.lunette:other".into());
    map.targets.insert(target.id, target);
    let mut bed = Bed::with_map(map);
    let mut host = Initiator::ready(&mut bed, &[]);
    let mut second = Initiator::new(bed.connect());
    let text = crate::initiator::keys(&[
        ("InitiatorName", crate::initiator::INITIATOR),
        ("TargetName", "iqn.2026-11.io.lunette:other"),
    ]);
    second.login_step(&mut bed, 1, Some(3), &text).unwrap();
    second.clear_attention(&mut bed);
    assert_ne!(host.tsih, second.tsih);
    assert_eq!(host.ping(&mut bed, b"here"), b"here");
    assert_eq!(bed.sessions(), 2);
}

/// Guards order: a function that is not immediate does not overtake commands before it.
#[test]
fn functions_keep_their_turn() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[]);
    let mut write = host.command_header(write10(0, 1), 512);
    write.write = true;
    let function = TaskManagement {
        function: ABORT_TASK_SET,
        task_tag: 0x500,
        cmd_sn: host.cmd_sn.take(),
        ..TaskManagement::default()
    };
    host.send(&mut bed, function.encode(), &[]);
    host.expect_silence(&mut bed);
    bed.disk(1).hold();
    host.send(&mut bed, write.encode(), &pattern(512, 1));
    host.expect_silence(&mut bed);
    bed.disk(1).release();
    bed.settle();
    assert_eq!(host.managed(&mut bed, 0x500), 0);
    host.expect_silence(&mut bed);
}

/// Guards a command of several parts: what is left of it when it is aborted is not done.
#[test]
fn aborted_between_its_parts() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[]);
    bed.disk(1).hold();
    let mut command = host.command_header(write10(0, 4096), 512);
    command.cdb[0] = 0x41;
    command.write = true;
    host.send(&mut bed, command.encode(), &[1; 512]);
    let tag = host.manage(&mut bed, ABORT_TASK, 0, &command);
    host.expect_silence(&mut bed);
    bed.disk(1).release();
    bed.settle();
    assert_eq!(host.managed(&mut bed, tag), 0);
    assert_eq!(bed.disk(1).read(1 << 20, 1 << 20), vec![0; 1 << 20]);
}

/// Guards the scope of functions over a hole: commands that wait behind it are aborted as well, those to
/// another LUN are not.
#[test]
fn aborts_what_is_held() {
    for function in [ABORT_TASK_SET, CLEAR_TASK_SET, LUN_RESET, WARM_RESET] {
        let mut bed = Bed::new();
        let mut host = Initiator::ready(&mut bed, &[]);
        let missing = host.command_header([0; 16], 0);
        held_write(&mut bed, &mut host, 0, 0);
        let elsewhere = held_write(&mut bed, &mut host, 1, 0);
        let tag = host.manage(&mut bed, function, 0, &missing);
        assert_eq!(host.managed(&mut bed, tag), 0);
        host.send(&mut bed, missing.encode(), &[]);
        host.end(&mut bed, missing.task_tag, &[]);
        if function != WARM_RESET {
            assert_eq!(host.end(&mut bed, elsewhere.task_tag, &[]).status, 0);
        }
        host.expect_silence(&mut bed);
        assert_eq!(host.numbers.exp_cmd_sn, host.cmd_sn);
        assert_eq!(bed.disk(1).read(0, 512), [0; 512], "function {function}");
    }
}

/// Guards the numbers that ABORT TASK may use up: only those before its own.
#[test]
fn abort_of_what_is_not_due() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[]);
    let next = host.command_header([0; 16], 0);
    host.cmd_sn = next.cmd_sn;
    let tag = host.manage(&mut bed, ABORT_TASK, 0, &next);
    assert_eq!(host.managed(&mut bed, tag), 1);
    host.cmd_sn = next.cmd_sn.plus(1);
    host.send(&mut bed, next.encode(), &[]);
    assert_eq!(host.end(&mut bed, next.task_tag, &[]).status, 0);
}

/// Guards a read whose data is being sent when it is aborted: what has not left yet never does, and its
/// place is free for others.
#[test]
fn abort_while_data_is_sent() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[]);
    bed.deafen(host.id, true);
    let mut read = host.command_header(read10(0, 8192), 4 << 20);
    read.read = true;
    host.send(&mut bed, read.encode(), &[]);
    let tag = host.manage(&mut bed, ABORT_TASK, 0, &read);
    bed.deafen(host.id, false);
    let mut sent = 0;
    loop {
        match host.next(&mut bed) {
            Some((Reply::DataIn(data_in), pdu)) => {
                assert!(!data_in.has_status);
                sent += pdu.data.len();
            }
            Some((Reply::TaskManagement(response), _)) => {
                assert_eq!((response.task_tag, response.response), (tag, 0));
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(sent < 1 << 20, "{sent}");
    host.expect_silence(&mut bed);
    assert_eq!(host.read(&mut bed, read10(0, 1), 512).status, 0);
}

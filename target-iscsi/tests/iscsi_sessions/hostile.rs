//! Initiators that mean harm, before and after login: what they cost stays bounded, and others do not
//! notice them.

use std::time::Duration;

use bytes::BytesMut;
use lunette_proto::iscsi::initiator::{DataOut, LoginRequest, NopOut, TaskManagement, TextRequest};
use lunette_proto::iscsi::{Reply, Serial, TAG_NONE};
use lunette_target_iscsi::session::Event;

use crate::bed::{Bed, pattern};
use crate::initiator::{Initiator, keys, read10, write10};

/// Guards memory before login: a request is taken only when the answer to the one before has left,
/// for only one may be outstanding (RFC 7143 6.2).
#[test]
fn one_login_request_at_a_time() {
    let mut bed = Bed::new();
    let mut host = Initiator::new(bed.connect());
    let request = LoginRequest { continued: true, ..host.login_request(1, None) };
    let wire = host.wire(request.encode(), &[], &[]);
    bed.deafen(host.id, true);
    bed.feed(host.id, &wire.repeat(100));
    assert_eq!(bed.untaken(host.id), 99 * wire.len());
    bed.deafen(host.id, false);
    assert_eq!(bed.untaken(host.id), 0);
    for _ in 0..100 {
        host.login_answer(&mut bed).unwrap();
    }
}

/// Guards the deadline of a login against a flood that leaves no time for timers.
#[test]
fn flood_does_not_put_off_the_login_deadline() {
    let mut bed = Bed::new();
    let mut host = Initiator::new(bed.connect());
    let request = LoginRequest { continued: true, ..host.login_request(1, None) };
    for _ in 0..9 {
        host.send(&mut bed, request.encode(), &[]);
        host.login_answer(&mut bed).unwrap();
        bed.now += Duration::from_secs(1);
    }
    bed.now += Duration::from_secs(1);
    host.send(&mut bed, request.encode(), &[]);
    host.expect_silence(&mut bed);
    assert!(bed.is_gone(host.id));
}

/// Guards memory before login: text that goes on for ever ends the login at its limit.
#[test]
fn endless_login_text() {
    let mut bed = Bed::new();
    let mut host = Initiator::new(bed.connect());
    let request = LoginRequest { continued: true, ..host.login_request(1, None) };
    for _ in 0..8 {
        host.send(&mut bed, request.encode(), &[b'a'; 8192]);
        host.login_answer(&mut bed).unwrap();
    }
    host.send(&mut bed, request.encode(), b"a");
    assert_eq!(host.login_answer(&mut bed).map(drop), Err(0x0200));
}

/// Guards memory after login: the same for a text exchange, which is rejected and leaves the session.
#[test]
fn endless_text() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[]);
    let mut request = TextRequest {
        immediate: true,
        continued: true,
        task_tag: 7,
        transfer_tag: TAG_NONE,
        cmd_sn: host.cmd_sn,
        ..TextRequest::default()
    };
    for _ in 0..8 {
        host.send(&mut bed, request.encode(), &[b'a'; 8192]);
        let Some((Reply::Text(response), pdu)) = host.next(&mut bed) else { panic!() };
        assert!(!response.is_final && !response.continued && pdu.data.is_empty());
        request.transfer_tag = response.transfer_tag;
    }
    host.send(&mut bed, request.encode(), b"a");
    assert!(matches!(host.next(&mut bed), Some((Reply::Reject(_), _))));
    assert_eq!(host.ping(&mut bed, b"x"), b"x");
}

fn ping_header(host: &Initiator) -> NopOut {
    NopOut { immediate: true, task_tag: 5, transfer_tag: TAG_NONE, cmd_sn: host.cmd_sn, ..NopOut::default() }
}

/// Guards memory after login: who asks without reading the answers is read no further, and is closed
/// in the end, for the ping of the target is not answered either.
#[test]
fn unread_answers_stop_the_reading() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[("MaxRecvDataSegmentLength", "262144")]);
    let wire = host.wire(ping_header(&host).encode(), &[], &[3; 8192]);
    bed.deafen(host.id, true);
    bed.feed(host.id, &wire.repeat(600));
    let taken = wire.len() * 600 - bed.untaken(host.id);
    assert!((1 << 20..2 << 20).contains(&taken), "{taken}");
    bed.pass(Duration::from_secs(10));
    bed.feed(host.id, &wire);
    bed.pass(Duration::from_secs(10));
    assert!(bed.is_gone(host.id));
}

/// Guards memory after login: data that is asked for and not read is not read from the device either, beyond
/// what a session may hold, and is let go with the session.
#[test]
fn unread_data_is_bounded() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[("MaxRecvDataSegmentLength", "262144")]);
    bed.deafen(host.id, true);
    let len = 8 << 20;
    for _ in 0..100 {
        let mut command = host.command_header(read10(0, 16384), len);
        command.read = true;
        host.send(&mut bed, command.encode(), &[]);
    }
    assert_eq!(bed.disk(1).read_bytes(), 64 << 20);
    bed.pass(Duration::from_secs(10));
    bed.pass(Duration::from_secs(10));
    assert!(bed.is_gone(host.id));
    assert_eq!(bed.disk(1).read_bytes(), 64 << 20);
}

/// Guards memory after login: answers to small pings do not keep the receive buffers of the large
/// PDUs that came beside them.
#[test]
fn ping_data_does_not_keep_the_buffer() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[]);
    let unanswered = NopOut { task_tag: TAG_NONE, ..ping_header(&host) };
    let mut wire = BytesMut::new();
    wire.extend_from_slice(&host.wire(ping_header(&host).encode(), &[], b"x"));
    wire.extend_from_slice(&host.wire(unanswered.encode(), &[], &[0; 65536]));
    bed.deafen(host.id, true);
    assert!(!bed.feed_bytes(host.id, wire));
    bed.deafen(host.id, false);
    let Some((Reply::NopIn(_), pdu)) = host.next(&mut bed) else { panic!() };
    assert_eq!(pdu.data, b"x"[..]);
}

/// Guards memory after login: data that comes in crumbs is gathered, not kept crumb by crumb with the
/// buffers that they came in.
#[test]
fn crumbs_of_data_do_not_keep_the_buffers() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[("InitialR2T", "No")]);
    let data = pattern(512, 3);
    let mut command = host.command_header(write10(0, 1), 512);
    (command.write, command.is_final) = (true, false);
    host.send(&mut bed, command.encode(), &data[..1]);
    for at in 1..512 {
        let out = DataOut {
            is_final: at == 511,
            task_tag: command.task_tag,
            transfer_tag: TAG_NONE,
            data_sn: Serial(at as u32 - 1),
            offset: at as u32,
            ..DataOut::default()
        };
        let wire = host.wire(out.encode(), &[], &data[at..=at]);
        assert!(!bed.feed_bytes(host.id, wire), "crumb {at}");
    }
    assert_eq!(host.end(&mut bed, command.task_tag, &[]).status, 0);
    assert_eq!(bed.disk(1).read(0, 512), data);
}

/// Guards others: functions that wait for the tasks of a session do not use up its own.
#[test]
fn functions_of_others_leave_room() {
    let mut bed = Bed::new();
    let mut hostile = Initiator::ready(&mut bed, &[]);
    let mut host = Initiator::ready_as(&mut bed, 2);
    bed.disk(1).hold();
    let mut command = host.command_header(write10(0, 1), 512);
    command.write = true;
    host.send(&mut bed, command.encode(), &pattern(512, 1));
    let mut rejected = 0;
    for _ in 0..100 {
        hostile.manage(&mut bed, 5, 0, &command);
        rejected += usize::from(matches!(hostile.next(&mut bed), Some((Reply::Reject(_), _))));
    }
    assert_eq!(rejected, 36, "64 are carried out at once");
    let tag = host.manage(&mut bed, 1, 0, &command);
    host.expect_silence(&mut bed);
    bed.disk(1).release();
    bed.settle();
    assert_eq!(host.managed(&mut bed, tag), 0);
    for _ in 0..64 {
        assert!(matches!(hostile.next(&mut bed), Some((Reply::TaskManagement(_), _))));
    }
    hostile.expect_silence(&mut bed);
}

/// Guards the limit of functions, and that a rejected one leaves what is being carried out alone.
#[test]
fn function_storm() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[]);
    bed.disk(1).hold();
    let mut command = host.command_header(write10(0, 1), 512);
    command.write = true;
    host.send(&mut bed, command.encode(), &pattern(512, 1));
    let function = TaskManagement {
        immediate: true,
        function: 1,
        task_tag: 0x1000,
        referenced_tag: command.task_tag,
        ref_cmd_sn: command.cmd_sn,
        cmd_sn: host.cmd_sn,
        ..TaskManagement::default()
    };
    for _ in 0..65 {
        host.send(&mut bed, function.encode(), &[]);
    }
    let Some((Reply::Reject(reject), _)) = host.next(&mut bed) else { panic!() };
    assert_eq!(reject.reason, 6);
    host.expect_silence(&mut bed);
    bed.disk(1).release();
    bed.settle();
    for _ in 0..64 {
        assert_eq!(host.managed(&mut bed, 0x1000), 0);
    }
}

/// Guards logs and lists: a name that would forge a line of them is no name.
#[test]
fn names_with_control_characters() {
    for name in ["iqn.2026-11.org.example:a\nb", "iqn.2026-11.org.example:\x1b[2J", "iqn.a b", "iqn.\u{85}"] {
        let mut bed = Bed::new();
        let mut host = Initiator::new(bed.connect());
        let text = keys(&[("InitiatorName", name), ("TargetName", crate::bed::IQN)]);
        assert_eq!(host.login_step(&mut bed, 1, Some(3), &text).map(drop), Err(0x0200), "{name:?}");
    }
}

/// Guards last words: they are waited for, but not for ever.
#[test]
fn last_words() {
    for listens in [true, false] {
        let mut bed = Bed::new();
        let mut host = Initiator::ready(&mut bed, &[]);
        bed.deafen(host.id, true);
        bed.event(host.id, Event::Kick);
        assert!(!bed.is_closed(host.id));
        if listens {
            bed.deafen(host.id, false);
            assert!(matches!(host.next(&mut bed), Some((Reply::Async(_), _))));
        } else {
            bed.pass(Duration::from_secs(5));
        }
        assert!(bed.is_gone(host.id));
    }
}

/// Guards the end of a session: nothing of what it asked for is sent any more, only that it is over.
#[test]
fn kicked_while_data_is_sent() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[]);
    bed.deafen(host.id, true);
    let mut read = host.command_header(read10(0, 8192), 4 << 20);
    read.read = true;
    host.send(&mut bed, read.encode(), &[]);
    bed.event(host.id, Event::Kick);
    bed.deafen(host.id, false);
    let mut sent = 0;
    while let Some((reply, pdu)) = host.next(&mut bed) {
        match reply {
            Reply::DataIn(data_in) if !data_in.has_status => sent += pdu.data.len(),
            Reply::Async(message) => assert_eq!(message.event, 3),
            other => panic!("{other:?}"),
        }
    }
    assert!(sent < 1 << 20, "{sent}");
    assert!(bed.is_gone(host.id));
}

//! A device that does not answer: nothing but its own commands waits for it.

use lunette_proto::iscsi::initiator::ScsiCommand;
use lunette_proto::iscsi::{Reply, Serial};
use lunette_proto::limits::SESSION_COMMANDS_MAX;

use crate::bed::{Bed, pattern};
use crate::initiator::{Initiator, keys, read10, write10};

/// Reads of 8 MiB each and writes of 64 KiB, until the window is closed and the session's memory is taken.
fn fill(bed: &mut Bed, host: &mut Initiator) -> Vec<ScsiCommand> {
    (0..SESSION_COMMANDS_MAX)
        .map(|n| {
            // No write among the first, which take the memory.
            let writes = n % 8 == 7 && n > 16;
            let (cdb, len) = if writes { (write10(0, 128), 65536) } else { (read10(0, 16384), 8 << 20) };
            let mut command = host.command_header(cdb, len);
            (command.read, command.write) = (!writes, writes);
            host.send(bed, command.encode(), &[]);
            command
        })
        .collect()
}

/// Guards everyone behind a stalled device: pings, functions, parameter data, the other LUN, text, logins of
/// others and of the same name are answered at once, though the window is closed and the memory is taken.
#[test]
fn nothing_waits_behind_data() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[("MaxRecvDataSegmentLength", "262144")]);
    host.answers.insert("InitiatorSegment".into(), "262144".into());
    let mut neighbour = Initiator::ready_as(&mut bed, 2);
    bed.disk(1).hold();
    let commands = fill(&mut bed, &mut host);
    assert!(bed.disk(1).held() < commands.len(), "some wait for memory");
    assert_eq!(host.ping(&mut bed, b"ping"), b"ping");
    assert_eq!(host.numbers.max_cmd_sn, host.numbers.exp_cmd_sn.minus(1), "the window is closed");

    // Functions: a task that is not there, the other LUN, a command that waits and no device has.
    let mut none = commands[0];
    none.task_tag = 0xdead;
    let tag = host.manage(&mut bed, 1, 0, &none);
    assert_eq!(host.managed(&mut bed, tag), 1);
    let tag = host.manage(&mut bed, 5, 1 << 48, &none);
    assert_eq!(host.managed(&mut bed, tag), 0);
    let tag = host.manage(&mut bed, 1, 0, commands.last().unwrap());
    assert_eq!(host.managed(&mut bed, tag), 0);
    // One that the device has can only be answered by it.
    let aborted = host.manage(&mut bed, 1, 0, &commands[0]);
    host.expect_silence(&mut bed);
    assert_eq!(host.ping(&mut bed, b"ping"), b"ping");

    // Immediate commands that need no device.
    let mut inquiry = [0; 16];
    (inquiry[0], inquiry[4]) = (0x12, 36);
    let mut report_luns = [0; 16];
    (report_luns[0], report_luns[9]) = (0xa0, 64);
    for (cdb, len) in [(inquiry, 36), (report_luns, 64), ([0; 16], 0)] {
        let mut command = host.command_header(cdb, len);
        host.cmd_sn = command.cmd_sn;
        (command.immediate, command.read) = (true, len != 0);
        host.send(&mut bed, command.encode(), &[]);
        assert_eq!(host.end(&mut bed, command.task_tag, &[]).status, 0, "{:#x}", cdb[0]);
    }

    // Others: the device of the other LUN, a new session, discovery.
    assert_eq!(neighbour.command_to(&mut bed, 1 << 48, read10(0, 1), 512, &[]).sense, Some([6, 0x29, 3]));
    assert_eq!(neighbour.command_to(&mut bed, 1 << 48, read10(0, 1), 512, &[]).status, 0);
    let mut third = Initiator::ready_as(&mut bed, 3);
    assert_eq!(third.command_to(&mut bed, 1 << 48, read10(0, 1), 512, &[]).status, 0);
    let mut discovery = Initiator::new(bed.connect());
    discovery.discover(&mut bed, &[]).unwrap();
    assert!(discovery.text(&mut bed, &keys(&[("SendTargets", "All")])).0.starts_with("TargetName="));

    // And when the device answers, all that was not aborted ends.
    bed.disk(1).release();
    bed.settle();
    let mut ended = 0;
    while let Some((reply, _)) = host.next(&mut bed) {
        match reply {
            Reply::R2t(r2t) => host.solicited(&mut bed, &r2t, &pattern(65536, 1)),
            Reply::DataIn(data_in) => ended += usize::from(data_in.has_status),
            Reply::ScsiResponse(response) => {
                assert_eq!(response.status, 0);
                ended += 1;
            }
            Reply::TaskManagement(response) => {
                assert_eq!((response.task_tag, response.response), (aborted, 0))
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(ended, commands.len() - 2);
}

/// Guards the target's own ping: it goes out under a closed window, and the answer to it is heard.
#[test]
fn pings_under_a_closed_window() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[]);
    bed.disk(1).hold();
    fill(&mut bed, &mut host);
    for _ in 0..3 {
        while host.next(&mut bed).is_some() {}
        bed.pass(std::time::Duration::from_secs(10));
        let Some((Reply::NopIn(ping), _)) = host.next(&mut bed) else { panic!() };
        let answer = lunette_proto::iscsi::initiator::NopOut {
            immediate: true,
            lun: ping.lun,
            task_tag: !0,
            transfer_tag: ping.transfer_tag,
            cmd_sn: Serial(host.cmd_sn.0),
            ..Default::default()
        };
        host.send(&mut bed, answer.encode(), &[]);
        host.expect_silence(&mut bed);
    }
    assert!(!bed.is_closed(host.id));
}

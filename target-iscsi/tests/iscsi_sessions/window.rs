//! The command window from outside (RFC 7143 4.2.2.1).

use lunette_proto::iscsi::initiator::ScsiCommand;
use lunette_proto::iscsi::{Reply, Serial};
use lunette_proto::limits::SESSION_COMMANDS_MAX;

use crate::bed::Bed;
use crate::initiator::{Initiator, read10};

fn at(bed: &mut Bed, first: u32) -> Initiator {
    let mut host = Initiator::new(bed.connect());
    host.cmd_sn = Serial(first);
    host.login(bed, &[]).unwrap();
    host.clear_attention(bed);
    host
}

/// Guards the wrap: commands go on over 0xffffffff, and those outside are dropped without a word.
#[test]
fn wraps() {
    for first in [0xffff_fff0, 0xffff_ffff, 0x7fff_fff8, 0] {
        let mut bed = Bed::new();
        let mut host = at(&mut bed, first);
        for _ in 0..32 {
            assert_eq!(host.read(&mut bed, read10(0, 1), 512).status, 0);
            assert_eq!(host.numbers.exp_cmd_sn, host.cmd_sn);
        }
        let window = host.numbers.max_cmd_sn.since(host.numbers.exp_cmd_sn) + 1;
        assert_eq!(window, SESSION_COMMANDS_MAX);
        for outside in [host.cmd_sn.minus(1), host.numbers.max_cmd_sn.plus(1), host.cmd_sn.plus(1 << 30)] {
            let mut command = host.command_header([0; 16], 0);
            host.cmd_sn = command.cmd_sn;
            command.cmd_sn = outside;
            host.send(&mut bed, command.encode(), &[]);
            host.expect_silence(&mut bed);
        }
        assert_eq!(host.read(&mut bed, read10(0, 1), 512).status, 0);
    }
}

/// Guards order: what comes after a hole waits for it.
#[test]
fn holes() {
    let mut bed = Bed::new();
    let mut host = at(&mut bed, 0xffff_fffe);
    let commands: Vec<ScsiCommand> = (0..3).map(|_| host.command_header([0; 16], 0)).collect();
    for command in [commands[2], commands[1]] {
        host.send(&mut bed, command.encode(), &[]);
        host.expect_silence(&mut bed);
    }
    host.send(&mut bed, commands[0].encode(), &[]);
    for command in &commands {
        let Some((Reply::ScsiResponse(response), _)) = host.next(&mut bed) else { panic!() };
        assert_eq!(response.task_tag, command.task_tag);
    }
}

/// Guards immediate commands: they run at once, ahead of a hole, and use no number.
#[test]
fn immediate_commands() {
    let mut bed = Bed::new();
    let mut host = at(&mut bed, 5);
    let missing = host.command_header([0; 16], 0);
    let held = host.command_header([0; 16], 0);
    host.send(&mut bed, held.encode(), &[]);
    let mut immediate = host.command_header([0; 16], 0);
    host.cmd_sn = immediate.cmd_sn;
    immediate.immediate = true;
    host.send(&mut bed, immediate.encode(), &[]);
    assert_eq!(host.end(&mut bed, immediate.task_tag, &[]).status, 0);
    assert_eq!(host.numbers.exp_cmd_sn, missing.cmd_sn);
    host.send(&mut bed, missing.encode(), &[]);
    host.end(&mut bed, missing.task_tag, &[]);
    host.end(&mut bed, held.task_tag, &[]);
    assert_eq!(host.numbers.exp_cmd_sn, host.cmd_sn);
}

/// Guards the closed window: at the limit nothing more is taken, a ping is answered all the same, and
/// completions open it again. Immediate commands have a limit of their own.
#[test]
fn closes_and_opens() {
    let mut bed = Bed::new();
    let mut host = at(&mut bed, 0xffff_ff80);
    bed.disk(1).hold();
    let mut commands = Vec::new();
    for _ in 0..SESSION_COMMANDS_MAX {
        let mut command = host.command_header(read10(0, 1), 512);
        command.read = true;
        host.send(&mut bed, command.encode(), &[]);
        commands.push(command);
    }
    assert_eq!(bed.disk(1).held(), SESSION_COMMANDS_MAX as usize);
    assert_eq!(host.ping(&mut bed, b"open"), b"open");
    assert_eq!(host.numbers.max_cmd_sn, host.numbers.exp_cmd_sn.minus(1));
    let extra = host.command_header([0; 16], 0);
    host.cmd_sn = extra.cmd_sn;
    host.send(&mut bed, extra.encode(), &[]);
    host.expect_silence(&mut bed);
    let mut rejected = 0;
    for _ in 0..64 {
        let mut command = host.command_header(read10(0, 1), 512);
        host.cmd_sn = command.cmd_sn;
        (command.immediate, command.read) = (true, true);
        host.send(&mut bed, command.encode(), &[]);
        if let Some((Reply::Reject(reject), _)) = host.next(&mut bed) {
            assert_eq!(reject.reason, 6);
            rejected += 1;
        }
    }
    assert_eq!(rejected, 32);
    bed.disk(1).release();
    bed.settle();
    for command in commands {
        assert_eq!(host.end(&mut bed, command.task_tag, &[]).status, 0);
    }
    assert!(host.numbers.max_cmd_sn.is_after(host.numbers.exp_cmd_sn));
}

/// Guards task tags: one that is in use is not taken again.
#[test]
fn tag_in_use() {
    let mut bed = Bed::new();
    let mut host = at(&mut bed, 1);
    bed.disk(1).hold();
    let mut command = host.command_header(read10(0, 1), 512);
    command.read = true;
    host.send(&mut bed, command.encode(), &[]);
    let again = ScsiCommand { cmd_sn: host.cmd_sn.take(), ..command };
    host.send(&mut bed, again.encode(), &[]);
    let Some((Reply::Reject(reject), _)) = host.next(&mut bed) else { panic!() };
    assert_eq!(reject.reason, 7);
    bed.disk(1).release();
    bed.settle();
    assert_eq!(host.end(&mut bed, command.task_tag, &[]).status, 0);
    host.expect_silence(&mut bed);
}

/// Guards the status numbers: they begin where the login says, and go on over 0xffffffff.
#[test]
fn status_numbers_wrap() {
    for first in [0xffff_fffe, 0x7fff_ffff, 77] {
        let mut bed = Bed::new();
        let mut host = Initiator::new(bed.connect());
        host.numbers.stat_sn = Serial(first);
        host.login(&mut bed, &[]).unwrap();
        assert_eq!(host.numbers.stat_sn, Serial(first).plus(1));
        host.clear_attention(&mut bed);
        assert_eq!(host.ping(&mut bed, b"x"), b"x");
        assert_eq!(host.numbers.stat_sn, Serial(first).plus(4));
    }
}

/// Guards the login's CmdSN: it is the first command's, not used up by the login.
#[test]
fn login_uses_no_number() {
    let mut bed = Bed::new();
    let mut host = Initiator::new(bed.connect());
    host.cmd_sn = Serial(0x55);
    host.login(&mut bed, &[]).unwrap();
    assert_eq!(host.numbers.exp_cmd_sn, Serial(0x55));
    assert_eq!(host.command_to(&mut bed, 0, [0; 16], 0, &[]).status, 2);
    assert_eq!(host.numbers.exp_cmd_sn, Serial(0x56));
}

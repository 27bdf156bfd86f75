//! EXTENDED COPY over a session: between its LUNs and nothing else, and stopped when it has to be.

use lunette_proto::ids::{ClusterId, TargetId, VolumeId};
use lunette_proto::iscsi::Reply;
use lunette_proto::iscsi::initiator::ScsiCommand;
use lunette_proto::map::{Lun, naa};

use crate::bed::{Bed, IQN, map, pattern};
use crate::initiator::{INITIATOR, Initiator, keys, read10, write10};

const ABORT_TASK: u8 = 1;
const ABORT_TASK_SET: u8 = 2;
const CLEAR_TASK_SET: u8 = 4;
const LUN_RESET: u8 = 5;
const WARM_RESET: u8 = 6;

/// A copy of `blocks` from one volume's start to the other's.
fn list(from: u64, to: u64, blocks: u16) -> Vec<u8> {
    let mut bytes = vec![1, 0x10, 0, 64, 0, 0, 0, 0, 0, 0, 0, 28, 0, 0, 0, 0];
    for volume in [from, to] {
        bytes.extend([0xE4, 0, 0, 0, 0x01, 0x03, 0, 16]);
        bytes.extend(naa(ClusterId(7), VolumeId(volume)));
        bytes.extend([0, 0, 0, 0, 0, 0, 2, 0]);
    }
    bytes.extend([0x02, 0, 0, 0x18, 0, 0, 0, 1, 0, 0]);
    bytes.extend(blocks.to_be_bytes());
    bytes.extend([0; 16]);
    bytes
}

fn cdb(len: usize) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = 0x83;
    cdb[10..14].copy_from_slice(&(len as u32).to_be_bytes());
    cdb
}

/// Sends a copy to LUN 0 and does not wait for its end.
fn begin(bed: &mut Bed, host: &mut Initiator, list: &[u8]) -> ScsiCommand {
    let mut command = host.command_header(cdb(list.len()), list.len() as u32);
    command.write = true;
    host.send(bed, command.encode(), list);
    command
}

fn fill(bed: &mut Bed, host: &mut Initiator, bytes: usize) -> Vec<u8> {
    let data = pattern(bytes, 3).to_vec();
    assert_eq!(host.write(bed, write10(0, (bytes / 512) as u16), &data).status, 0);
    data
}

/// Guards the way of a copy: 8 MiB from LUN 0 to LUN 1, with the list as immediate data and by R2T.
#[test]
fn between_luns() {
    for immediate in ["Yes", "No"] {
        let mut bed = Bed::new();
        let mut host = Initiator::ready(&mut bed, &[("ImmediateData", immediate)]);
        let data = fill(&mut bed, &mut host, 8 << 20);
        let list = list(1, 2, 16384);
        let ended = host.write(&mut bed, cdb(list.len()), &list);
        assert_eq!((ended.status, ended.overflow, ended.underflow), (0, 0, 0));
        assert!(bed.disk(2).read(0, 8 << 20) == data);
        assert_eq!(host.read(&mut bed, read10(0, 1), 512).status, 0);
    }
}

/// Guards volumes that this session does not see: those of another target, and those of nobody. Not even
/// whether they exist can be told.
#[test]
fn other_targets_are_out_of_reach() {
    let mut map = map();
    let mut other = map.targets[&TargetId(1)].clone();
    (other.id, other.iqn) = (TargetId(2), "iqn.2026-11.io.lunette:other".into());
    other.luns = [(0, Lun { volume: VolumeId(2), read_only: false })].into();
    map.targets.get_mut(&TargetId(1)).unwrap().luns.remove(&1);
    map.targets.insert(other.id, other);
    let mut bed = Bed::with_map(map);
    let mut host = Initiator::new(bed.connect());
    let who = keys(&[("InitiatorName", INITIATOR), ("TargetName", IQN)]);
    host.login_step(&mut bed, 1, Some(3), &who).unwrap();
    assert_eq!(host.read(&mut bed, read10(0, 1), 512).sense, Some([6, 0x29, 0]));
    // The same initiator may use the other target, too: but through a session of that.
    for (from, to) in [(1, 2), (2, 1), (1, 9), (9, 1)] {
        let list = list(from, to, 8);
        let ended = host.write(&mut bed, cdb(list.len()), &list);
        assert_eq!(ended.sense, Some([0xA, 0x0D, 0x02]), "{from} {to}");
    }
    assert_eq!(bed.disk(2).read(0, 4096), [0; 4096]);
}

/// Guards each function that aborts a copy: answered when the device that has a command of it, be it another
/// unit's, has given it up; nothing is written after that, and the copy is not answered.
#[test]
fn aborted_in_the_middle() {
    for held in [1, 2] {
        for function in [ABORT_TASK, ABORT_TASK_SET, CLEAR_TASK_SET, LUN_RESET, WARM_RESET] {
            let mut bed = Bed::new();
            let mut host = Initiator::ready(&mut bed, &[]);
            let data = fill(&mut bed, &mut host, 4 << 20);
            bed.disk(held).hold();
            let copy = begin(&mut bed, &mut host, &list(1, 2, 8192));
            assert_eq!(bed.disk(held).held(), 1);
            let tag = host.manage(&mut bed, function, 0, &copy);
            host.expect_silence(&mut bed);
            bed.disk(held).release();
            bed.settle();
            assert_eq!(host.managed(&mut bed, tag), 0, "function {function}");
            host.expect_silence(&mut bed);
            // What was under way happened, nothing after it.
            let written = if held == 2 { 1 << 20 } else { 0 };
            assert!(bed.disk(2).read(0, written) == data[..written]);
            assert!(bed.disk(2).read(written, 1 << 20).iter().all(|byte| *byte == 0));
        }
    }
}

/// Guards a reset of a unit that is copied to or from, by this session or another: after it was answered the
/// copy does nothing there any more, and its own initiator learns that it failed.
#[test]
fn other_unit_is_reset() {
    for function in [CLEAR_TASK_SET, LUN_RESET] {
        for by_another in [false, true] {
            let mut bed = Bed::new();
            let mut host = Initiator::ready(&mut bed, &[]);
            let mut other = Initiator::ready_as(&mut bed, 2);
            fill(&mut bed, &mut host, 4 << 20);
            bed.disk(2).hold();
            let copy = begin(&mut bed, &mut host, &list(1, 2, 8192));
            let resetter = if by_another { &mut other } else { &mut host };
            let tag = resetter.manage(&mut bed, function, 1 << 48, &copy);
            resetter.expect_silence(&mut bed);
            bed.disk(2).release();
            bed.settle();
            if by_another {
                assert_eq!(other.managed(&mut bed, tag), 0);
                assert_eq!(host.end(&mut bed, copy.task_tag, &[]).sense, Some([0xA, 0x0D, 0x01]));
            } else {
                assert_eq!(host.end(&mut bed, copy.task_tag, &[]).sense, Some([0xA, 0x0D, 0x01]));
                assert_eq!(host.managed(&mut bed, tag), 0);
            }
            host.expect_silence(&mut bed);
            assert!(bed.disk(2).read(1 << 20, 3 << 20).iter().all(|byte| *byte == 0));
        }
    }
}

/// Guards against rights that are gone: each of the units unmapped, or mapped to something else, and the
/// destination write protected, in the middle of a copy.
#[test]
fn unmapped_in_the_middle() {
    type Change = fn(&mut lunette_proto::map::Target);
    let changes: [Change; 4] = [
        |target| target.luns.retain(|lun, _| *lun != 1),
        |target| target.luns.retain(|lun, _| *lun != 0),
        |target| target.luns.get_mut(&1).unwrap().volume = VolumeId(1),
        |target| target.luns.get_mut(&1).unwrap().read_only = true,
    ];
    for (index, change) in changes.into_iter().enumerate() {
        let mut bed = Bed::new();
        let mut host = Initiator::ready(&mut bed, &[]);
        let data = fill(&mut bed, &mut host, 4 << 20);
        bed.disk(1).hold();
        let copy = begin(&mut bed, &mut host, &list(1, 2, 8192));
        bed.apply(|map| change(map.targets.get_mut(&TargetId(1)).unwrap()));
        if index < 3 {
            assert!(matches!(host.next(&mut bed), Some((Reply::Async(_), _))));
        }
        bed.disk(1).release();
        bed.settle();
        let ended = host.end(&mut bed, copy.task_tag, &[]);
        assert_eq!(ended.sense, Some([0xA, 0x0D, 0x02]), "case {index}");
        assert!(bed.disk(2).read(0, 4 << 20).iter().all(|byte| *byte == 0), "case {index}");
        assert!(bed.disk(1).read(0, 4 << 20) == data);
    }
}

/// Guards SWP that is set in the middle: the destination is not written any more.
#[test]
fn protected_in_the_middle() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[]);
    fill(&mut bed, &mut host, 4 << 20);
    bed.disk(1).hold();
    let copy = begin(&mut bed, &mut host, &list(1, 2, 8192));
    let mut select = [0; 16];
    (select[0], select[1], select[4]) = (0x15, 0x10, 16);
    let page = [0, 0, 0, 0, 0x0a, 0x0a, 0, 0x10, 8, 0, 0, 0, 0xff, 0xff, 0, 0];
    assert_eq!(host.command_to(&mut bed, 1 << 48, select, 0, &page).status, 0);
    bed.disk(1).release();
    bed.settle();
    assert_eq!(host.end(&mut bed, copy.task_tag, &[]).sense, Some([0xA, 0x0D, 0x02]));
    assert_eq!(bed.disk(2).read(0, 4096), [0; 4096]);
}

/// Guards the session's memory: more copies than it has room for wait for each other, and all of them end.
#[test]
fn copies_share_the_memory() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[]);
    let data = fill(&mut bed, &mut host, 2 << 20);
    bed.disk(1).hold();
    let copies: Vec<ScsiCommand> = (0..100).map(|_| begin(&mut bed, &mut host, &list(1, 2, 4096))).collect();
    let held = bed.disk(1).held();
    assert!((60..=64).contains(&held), "{held} of 1 MiB in 64 MiB");
    bed.disk(1).release();
    bed.settle();
    let mut ended = 0;
    while let Some((reply, _)) = host.next(&mut bed) {
        let Reply::ScsiResponse(response) = reply else { panic!("{reply:?}") };
        assert_eq!(response.status, 0);
        ended += 1;
    }
    assert_eq!(ended, copies.len());
    assert!(bed.disk(2).read(0, 2 << 20) == data);
}

/// Guards the end of a session: the next one of the same identity begins when the copy is over, and nothing
/// is written after.
#[test]
fn session_ends_in_the_middle() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[]);
    fill(&mut bed, &mut host, 4 << 20);
    bed.disk(2).hold();
    begin(&mut bed, &mut host, &list(1, 2, 8192));
    bed.cut(host.id);
    assert!(!bed.is_gone(host.id));
    bed.disk(2).release();
    bed.settle();
    assert!(bed.is_gone(host.id));
    assert!(bed.disk(2).read(1 << 20, 3 << 20).iter().all(|byte| *byte == 0));
}

const REGISTER: u8 = 0;
const RESERVE: u8 = 1;
const PREEMPT_AND_ABORT: u8 = 5;
/// Write Exclusive, Exclusive Access, and the same for registrants.
const TYPES: [u8; 4] = [1, 3, 5, 6];

/// PERSISTENT RESERVE OUT to LUN 1.
fn persistent_reserve_out(
    bed: &mut Bed,
    host: &mut Initiator,
    action: u8,
    kind: u8,
    key: u64,
    action_key: u64,
) {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1], cdb[2], cdb[8]) = (0x5f, action, kind, 24);
    let list = [&key.to_be_bytes()[..], &action_key.to_be_bytes(), &[0; 8]].concat();
    assert_eq!(host.command_to(bed, 1 << 48, cdb, 0, &list).status, 0, "action {action}");
}

/// Guards reservations of others on the unit that a copy was not sent to: each type, from it and to it, by a
/// nexus that is registered and one that is not.
#[test]
fn reserved_by_another() {
    for kind in TYPES {
        for registered in [false, true] {
            for (from, to) in [(2, 1), (1, 2)] {
                let mut bed = Bed::new();
                let mut host = Initiator::ready(&mut bed, &[]);
                let mut other = Initiator::ready_as(&mut bed, 2);
                let data = pattern(4096, 9);
                for lun in [0, 1 << 48] {
                    assert_eq!(
                        host.command_to(&mut bed, lun, write10(8 * (lun >> 48) as u32, 8), 0, &data).status,
                        0
                    );
                }
                let before = [1, 2].map(|volume| bed.disk(volume).read(0, 8192));
                persistent_reserve_out(&mut bed, &mut other, REGISTER, 0, 0, 7);
                persistent_reserve_out(&mut bed, &mut other, RESERVE, kind, 7, 0);
                if registered {
                    persistent_reserve_out(&mut bed, &mut host, REGISTER, 0, 0, 8);
                }
                let for_registrants = kind >= 5;
                let excludes_reads = matches!(kind, 3 | 6);
                let allowed = registered && for_registrants || from == 2 && !excludes_reads;
                let list = list(from, to, 16);
                let ended = host.write(&mut bed, cdb(list.len()), &list);
                let want = if allowed { None } else { Some([0xA, 0x0D, 0x01]) };
                assert_eq!(ended.sense, want, "type {kind}, registered {registered}, {from} to {to}");
                let after = [1, 2].map(|volume| bed.disk(volume).read(0, 8192));
                assert_eq!(after == before, !allowed);
            }
        }
    }
}

/// Guards RESERVE(6), which excludes every other nexus.
#[test]
fn reserved_by_another_in_the_classic_way() {
    for (from, to) in [(2, 1), (1, 2)] {
        let mut bed = Bed::new();
        let mut host = Initiator::ready(&mut bed, &[]);
        let mut other = Initiator::ready_as(&mut bed, 2);
        let mut reserve = [0; 16];
        reserve[0] = 0x16;
        assert_eq!(other.command_to(&mut bed, 1 << 48, reserve, 0, &[]).status, 0);
        let list = list(from, to, 16);
        assert_eq!(host.write(&mut bed, cdb(list.len()), &list).sense, Some([0xA, 0x0D, 0x01]));
        // The holder itself may.
        assert_eq!(other.write(&mut bed, cdb(list.len()), &list).status, 0);
    }
}

/// Guards a reservation that is made in the middle of a copy: what is left is not done. PREEMPT AND ABORT is
/// answered when nothing of the copy can be written any more.
#[test]
fn reserved_in_the_middle() {
    for abort in [false, true] {
        let mut bed = Bed::new();
        let mut host = Initiator::ready(&mut bed, &[]);
        let mut other = Initiator::ready_as(&mut bed, 2);
        let data = fill(&mut bed, &mut host, 4 << 20);
        persistent_reserve_out(&mut bed, &mut other, REGISTER, 0, 0, 7);
        persistent_reserve_out(&mut bed, &mut host, REGISTER, 0, 0, 8);
        bed.disk(2).hold();
        let copy = begin(&mut bed, &mut host, &list(1, 2, 8192));
        assert_eq!(bed.disk(2).held(), 1);
        let want = if abort {
            persistent_reserve_out(&mut bed, &mut other, RESERVE, 5, 7, 0);
            let mut cdb = [0; 16];
            (cdb[0], cdb[1], cdb[2], cdb[8]) = (0x5f, PREEMPT_AND_ABORT, 5, 24);
            let list = [&7u64.to_be_bytes()[..], &8u64.to_be_bytes(), &[0; 8]].concat();
            let mut preempt = other.command_header(cdb, 24);
            (preempt.write, preempt.lun) = (true, 1 << 48);
            other.send(&mut bed, preempt.encode(), &list);
            other.expect_silence(&mut bed);
            bed.disk(2).release();
            bed.settle();
            assert_eq!(other.end(&mut bed, preempt.task_tag, &[]).status, 0);
            [0xA, 0x0D, 0x01]
        } else {
            persistent_reserve_out(&mut bed, &mut other, RESERVE, 1, 7, 0);
            bed.disk(2).release();
            bed.settle();
            [0xA, 0x0D, 0x02]
        };
        assert_eq!(host.end(&mut bed, copy.task_tag, &[]).sense, Some(want), "abort {abort}");
        assert!(bed.disk(2).read(0, 1 << 20) == data[..1 << 20]);
        assert!(bed.disk(2).read(1 << 20, 3 << 20).iter().all(|byte| *byte == 0));
    }
}

//! Data in both directions: every combination of agreements, integrity, residuals, violations.

use lunette_proto::iscsi::initiator::{DataOut, ScsiCommand};
use lunette_proto::iscsi::{Ahs, Reply, Serial, TAG_NONE};
use lunette_volume::device::DeviceError;

use crate::bed::{Bed, pattern};
use crate::initiator::{Ended, Initiator, read10, write10};

const GOOD: Ended =
    Ended { status: 0, sense: None, data: vec![], overflow: 0, underflow: 0, data_in: 0, r2ts: 0 };

/// Guards all four combinations of InitialR2T and ImmediateData, with and without digests, with small
/// and large bursts, several R2Ts at once: what is written is read.
#[test]
fn every_agreement_moves_data() {
    for initial_r2t in ["Yes", "No"] {
        for immediate in ["Yes", "No"] {
            for digest in ["None", "CRC32C"] {
                for (first, burst, r2ts) in
                    [("512", "512", "1"), ("65536", "262144", "1"), ("4096", "10240", "4")]
                {
                    let mut bed = Bed::new();
                    let mut host = Initiator::ready(
                        &mut bed,
                        &[
                            ("InitialR2T", initial_r2t),
                            ("ImmediateData", immediate),
                            ("HeaderDigest", digest),
                            ("DataDigest", digest),
                            ("FirstBurstLength", first),
                            ("MaxBurstLength", burst),
                            ("MaxOutstandingR2T", r2ts),
                        ],
                    );
                    for blocks in [1u16, 7, 8, 100] {
                        let data = pattern(usize::from(blocks) * 512, blocks as u8);
                        let ended = host.write(&mut bed, write10(40, blocks), &data);
                        assert_eq!((ended.status, ended.sense), (0, None));
                        assert_eq!(bed.disk(1).read(40 * 512, data.len()), data);
                        let ended = host.read(&mut bed, read10(40, blocks), data.len() as u32);
                        assert_eq!((ended.status, ended.overflow, ended.underflow), (0, 0, 0));
                        assert_eq!(ended.data, data);
                    }
                }
            }
        }
    }
}

/// Guards R2T: none while unsolicited data can still come, the first where that ends.
#[test]
fn first_r2t_starts_where_unsolicited_data_ends() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[("InitialR2T", "Yes"), ("ImmediateData", "No")]);
    let data = pattern(1024, 1);
    let mut command = host.command_header(write10(0, 2), 1024);
    command.write = true;
    host.send(&mut bed, command.encode(), &[]);
    let Some((Reply::R2t(r2t), _)) = host.next(&mut bed) else { panic!() };
    assert_eq!((r2t.offset, r2t.desired_len), (0, 1024));
    host.solicited(&mut bed, &r2t, &data);
    assert_eq!(host.end(&mut bed, command.task_tag, &data), GOOD);

    let mut host = Initiator::ready(&mut bed, &[("InitialR2T", "No"), ("FirstBurstLength", "512")]);
    let mut command = host.command_header(write10(0, 2), 1024);
    command.write = true;
    host.send(&mut bed, command.encode(), &data[..512]);
    let Some((Reply::R2t(r2t), _)) = host.next(&mut bed) else { panic!() };
    assert_eq!((r2t.offset, r2t.desired_len), (512, 512));
}

/// Guards zero copy: a write that came in one PDU reaches the device as the bytes that were received.
#[test]
fn immediate_write_is_not_copied() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[]);
    let mut command = host.command_header(write10(0, 8), 4096);
    command.write = true;
    let wire = host.wire(command.encode(), &[], &pattern(4096, 3));
    let address = wire.as_ptr() as usize + 48;
    bed.feed_bytes(host.id, wire);
    assert_eq!(bed.disk(1).write_addresses(), [address]);
    assert_eq!(host.end(&mut bed, command.task_tag, &[]), GOOD);
}

/// Guards residuals: the expected length and the CDB's may differ either way, in both directions.
#[test]
fn residuals() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[("MaxRecvDataSegmentLength", "65536")]);
    host.answers.insert("InitiatorSegment".into(), "65536".into());
    let data = pattern(1024, 9);
    host.write(&mut bed, write10(0, 2), &data);
    for (expected, overflow, underflow) in [(0u32, 1024, 0), (200, 824, 0), (1024, 0, 0), (10_000, 0, 8976)] {
        let ended = host.read(&mut bed, read10(0, 2), expected);
        assert_eq!((ended.status, ended.overflow, ended.underflow), (0, overflow, underflow));
        assert_eq!(ended.data, data[..data.len().min(expected as usize)]);
    }
    let ended = host.write(&mut bed, write10(4, 1), &data);
    assert_eq!((ended.status, ended.overflow, ended.underflow), (0, 0, 512));
    assert_eq!(bed.disk(1).read(4 * 512, 1024), [&data[..512], &[0; 512]].concat());
    let ended = host.write(&mut bed, write10(8, 3), &data);
    assert_eq!((ended.status, ended.overflow, ended.underflow), (0, 512, 0));
    assert_eq!(bed.disk(1).read(8 * 512, 1536), [&data[..], &[0; 512]].concat());
}

/// Guards against a residual that takes data for moved which the PDU lets go the other way only: it is all of what was
/// expected (RFC 7143 11.4.5.1).
#[test]
fn residuals_of_the_wrong_direction() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[]);
    for expected in [512, 1024, 1180] {
        let ended = host.read(&mut bed, write10(0, 2), expected);
        assert_eq!((ended.status, ended.overflow, ended.underflow), (0, 0, expected), "WRITE as a read");
        assert_eq!(ended.data, []);
        let ended = host.write(&mut bed, read10(0, 2), &pattern(expected as usize, 1));
        assert_eq!((ended.status, ended.overflow, ended.underflow), (0, 0, expected), "READ as a write");
    }
    assert_eq!(bed.disk(1).read(0, 1024), [0; 1024]);
}

/// Guards the collapse of status: an error never travels with data, and counts what was sent.
#[test]
fn check_condition_has_a_response_of_its_own() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[]);
    let ended = host.read(&mut bed, read10(0xffff_fff0, 1), 512);
    assert_eq!((ended.status, ended.sense, ended.underflow), (2, Some([5, 0x21, 0]), 512));
}

fn violation(
    operational: &[(&str, &str)],
    change: impl FnOnce(&mut ScsiCommand),
    immediate: usize,
    outs: &[(DataOut, usize)],
) -> (Bed, Initiator, ScsiCommand) {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, operational);
    let mut command = host.command_header(write10(0, 8), 4096);
    command.write = true;
    change(&mut command);
    host.send(&mut bed, command.encode(), &pattern(immediate, 1));
    let mut transfer_tag = TAG_NONE;
    for (out, len) in outs {
        let pending = host.next(&mut bed);
        if let Some((Reply::R2t(r2t), _)) = pending {
            transfer_tag = r2t.transfer_tag;
        }
        let wanted = if out.transfer_tag == 0 { transfer_tag } else { out.transfer_tag };
        let out = DataOut { task_tag: command.task_tag, transfer_tag: wanted, ..*out };
        host.send(&mut bed, out.encode(), &pattern(*len, 1));
    }
    (bed, host, command)
}

fn out(data_sn: u32, offset: u32, is_final: bool) -> DataOut {
    DataOut { data_sn: Serial(data_sn), offset, is_final, ..DataOut::default() }
}

/// Guards each rule of Data-Out: the command fails, nothing is written, the session goes on.
#[test]
fn data_out_violations() {
    let unsolicited = |out: DataOut| DataOut { transfer_tag: TAG_NONE, ..out };
    let no_r2t: &[(&str, &str)] = &[("InitialR2T", "No"), ("FirstBurstLength", "2048")];
    let none: fn(&mut ScsiCommand) = |_| {};
    let open: fn(&mut ScsiCommand) = |command| command.is_final = false;
    type Case<'a> = (&'a [(&'a str, &'a str)], fn(&mut ScsiCommand), usize, Vec<(DataOut, usize)>, [u8; 3]);
    let cases: Vec<Case<'_>> = vec![
        // Immediate data that was not agreed upon; too much of it; unsolicited data likewise.
        (&[("ImmediateData", "No")], none, 512, vec![], [0xb, 0x0c, 0x0c]),
        (&[("FirstBurstLength", "512")], none, 1024, vec![], [0xb, 0x0c, 0x0c]),
        (&[], open, 0, vec![], [0xb, 0x0c, 0x0c]),
        (no_r2t, open, 0, vec![(unsolicited(out(0, 0, true)), 4096)], [0xb, 0x0c, 0x0c]),
        (no_r2t, open, 1024, vec![(unsolicited(out(0, 0, true)), 512)], [0xb, 0x0c, 0x0d]),
        (no_r2t, open, 0, vec![(unsolicited(out(3, 0, true)), 512)], [0xb, 0x47, 0x05]),
        // DataSN, offset, length and overlap of what was asked for.
        (&[], none, 0, vec![(out(1, 0, true), 4096)], [0xb, 0x47, 0x05]),
        (&[], none, 0, vec![(out(0, 512, true), 3584)], [0xb, 0x0c, 0x0d]),
        (&[], none, 0, vec![(out(0, 0, true), 2048)], [0xb, 0x0c, 0x0d]),
        (&[], none, 0, vec![(out(0, 0, true), 8192)], [0xb, 0x0c, 0x0d]),
        (&[], none, 0, vec![(out(0, 0, false), 2048), (out(1, 1024, true), 2048)], [0xb, 0x0c, 0x0d]),
    ];
    for (index, (operational, change, immediate, outs, sense)) in cases.into_iter().enumerate() {
        let (mut bed, mut host, command) = violation(operational, change, immediate, &outs);
        let ended = host.end(&mut bed, command.task_tag, &[]);
        assert_eq!((ended.status, ended.sense), (2, Some(sense)), "case {index}");
        assert_eq!(bed.disk(1).read(0, 8192), [0; 8192], "case {index}");
        assert_eq!(host.ping(&mut bed, b"alive"), b"alive", "case {index}");
    }
}

/// Guards an unknown transfer tag: rejected, and the command that it names fails after its data.
#[test]
fn unknown_transfer_tag() {
    let unknown = DataOut { transfer_tag: 0x7777, ..out(0, 0, true) };
    let (mut bed, mut host, command) = violation(&[], |_| {}, 0, &[(unknown, 512)]);
    let (reply, pdu) = host.next(&mut bed).unwrap();
    let Reply::Reject(reject) = reply else { panic!("{reply:?}") };
    assert_eq!((reject.reason, pdu.data.len()), (9, 48));
    host.expect_silence(&mut bed);
    let out = DataOut { task_tag: command.task_tag, transfer_tag: 2, ..out(0, 0, true) };
    for transfer_tag in 0..8 {
        host.send(&mut bed, DataOut { transfer_tag, ..out }.encode(), &pattern(4096, 1));
    }
    while let Some((reply, _)) = host.next(&mut bed) {
        if let Reply::ScsiResponse(response) = reply {
            assert_eq!(response.status, 2);
            assert_eq!(bed.disk(1).read(0, 4096), [0; 4096]);
            return;
        }
    }
    panic!("the command was not answered");
}

/// Guards Data-Out for a command that does not exist: dropped without a word.
#[test]
fn data_out_for_nothing() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[]);
    let pdu = DataOut { task_tag: 0xdead, transfer_tag: 5, ..out(0, 0, true) };
    host.send(&mut bed, pdu.encode(), &[1; 512]);
    host.expect_silence(&mut bed);
    assert_eq!(host.ping(&mut bed, b""), b"");
}

/// Guards data digests: bad immediate data is rejected and never executed; bad Data-Out fails its
/// command once the sequence is over. A bad header digest ends the connection.
#[test]
fn digest_errors() {
    let mut bed = Bed::new();
    let crc: &[(&str, &str)] = &[("HeaderDigest", "CRC32C"), ("DataDigest", "CRC32C"), ("InitialR2T", "Yes")];
    let mut host = Initiator::ready(&mut bed, crc);
    let mut command = host.command_header(write10(0, 1), 512);
    command.write = true;
    let mut wire = host.wire(command.encode(), &[], &[1; 512]);
    wire[60] ^= 1;
    bed.feed(host.id, &wire);
    let Some((Reply::Reject(reject), pdu)) = host.next(&mut bed) else { panic!() };
    assert_eq!((reject.reason, &pdu.data[..]), (2, &wire[..48]));
    assert_eq!(bed.disk(1).read(0, 512), [0; 512]);
    // The command has not come: the same CmdSN is awaited still.
    host.cmd_sn = command.cmd_sn;

    let mut command = host.command_header(write10(0, 2), 1024);
    command.write = true;
    host.send(&mut bed, command.encode(), &[]);
    let Some((Reply::R2t(r2t), _)) = host.next(&mut bed) else { panic!() };
    let first = DataOut { task_tag: command.task_tag, transfer_tag: r2t.transfer_tag, ..out(0, 0, false) };
    let mut wire = host.wire(first.encode(), &[], &[1; 512]);
    wire[60] ^= 1;
    bed.feed(host.id, &wire);
    let Some((Reply::Reject(reject), _)) = host.next(&mut bed) else { panic!() };
    assert_eq!(reject.reason, 2);
    host.expect_silence(&mut bed);
    let last = DataOut { data_sn: Serial(1), offset: 512, is_final: true, ..first };
    host.send(&mut bed, last.encode(), &[1; 512]);
    let Some((Reply::ScsiResponse(response), pdu)) = host.next(&mut bed) else { panic!() };
    assert_eq!((response.status, pdu.data[4] & 15, pdu.data[14], pdu.data[15]), (2, 0xb, 0x47, 5));
    assert_eq!(bed.disk(1).read(0, 1024), [0; 1024]);

    let mut wire = host.wire(last.encode(), &[], &[]);
    wire[20] ^= 1;
    bed.feed(host.id, &wire);
    assert!(bed.is_gone(host.id));
}

/// Guards additional headers: an extended CDB is taken, a bidirectional length is rejected, neither
/// puts the stream out of step.
#[test]
fn additional_headers() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[]);
    let command = host.command_header([0; 16], 0);
    let wire = host.wire(command.encode(), &Ahs::extended_cdb_segment(&[0; 16]), &[]);
    bed.feed(host.id, &wire);
    assert_eq!(host.end(&mut bed, command.task_tag, &[]).status, 0);
    for ahs in [[0, 5, 2, 0, 0, 0, 2, 0], [0xff, 0xff, 1, 0, 0, 0, 0, 0]] {
        let command = host.command_header([0; 16], 0);
        let wire = host.wire(command.encode(), &ahs, &[]);
        bed.feed(host.id, &wire);
        assert!(matches!(host.next(&mut bed), Some((Reply::Reject(_), _))));
        assert_eq!(host.ping(&mut bed, b"in step"), b"in step");
    }
}

/// Guards the session's memory: more reads than fit wait, in order, and all end.
#[test]
fn memory_is_bounded() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[("MaxRecvDataSegmentLength", "262144")]);
    host.answers.insert("InitiatorSegment".into(), "262144".into());
    bed.disk(1).hold();
    let len = 8 << 20;
    let commands: Vec<ScsiCommand> = (0..20)
        .map(|_| {
            let mut command = host.command_header(read10(0, 16384), len);
            command.read = true;
            host.send(&mut bed, command.encode(), &[]);
            command
        })
        .collect();
    assert_eq!(bed.disk(1).held(), 8);
    assert_eq!(host.ping(&mut bed, b"not behind data"), b"not behind data");
    bed.disk(1).release();
    bed.settle();
    for command in commands {
        assert_eq!(host.end(&mut bed, command.task_tag, &[]).data.len(), len as usize);
    }
}

/// Guards against answers that data in the queue delays: a ping overtakes a long read.
#[test]
fn ping_overtakes_data() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[]);
    let mut command = host.command_header(read10(0, 8192), 4 << 20);
    command.read = true;
    let nop = lunette_proto::iscsi::initiator::NopOut {
        immediate: true,
        task_tag: 0x99,
        transfer_tag: TAG_NONE,
        cmd_sn: host.cmd_sn,
        ..Default::default()
    };
    // In one write, so that the ping arrives before any data has left.
    let mut wire = host.wire(command.encode(), &[], &[]);
    wire.extend_from_slice(&host.wire(nop.encode(), &[], b"x"));
    bed.feed(host.id, &wire);
    assert!(matches!(host.next(&mut bed), Some((Reply::NopIn(_), _))));
    assert_eq!(host.end(&mut bed, command.task_tag, &[]).data.len(), 4 << 20);
}

/// Guards against commands that hold memory while they wait for more of it: all VERIFYs of a full
/// session end, with Data-Out and without.
#[test]
fn verifies_do_not_wait_for_each_other() {
    for bytchk in [0u8, 1] {
        let mut bed = Bed::new();
        let mut host = Initiator::ready(&mut bed, &[("MaxBurstLength", "16776192")]);
        host.answers.insert("MaxBurstLength".into(), "16776192".into());
        bed.disk(1).hold();
        // Of the disk's zeros: eight MiB of Data-Out, or two to be read.
        let (count, bytes) = if bytchk == 1 { (9, 8usize << 20) } else { (70, 2 << 20) };
        let data = vec![0; if bytchk == 1 { bytes } else { 0 }];
        let commands: Vec<ScsiCommand> = (0..count)
            .map(|_| {
                let mut command = host.command_header(read10(0, (bytes / 512) as u16), data.len() as u32);
                (command.cdb[0], command.cdb[1]) = (0x2f, bytchk << 1);
                command.write = !data.is_empty();
                host.send(&mut bed, command.encode(), &[]);
                command
            })
            .collect();
        while let Some((reply, _)) = host.next(&mut bed) {
            let Reply::R2t(r2t) = reply else { panic!("{reply:?}") };
            host.solicited(&mut bed, &r2t, &data);
        }
        bed.disk(1).release();
        bed.settle();
        let mut ended = 0;
        while let Some((reply, _)) = host.next(&mut bed) {
            match reply {
                Reply::R2t(r2t) => host.solicited(&mut bed, &r2t, &data),
                Reply::ScsiResponse(response) => {
                    assert_eq!(response.status, 0);
                    ended += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(ended, commands.len());
    }
}

/// Guards residuals where the allocation length of the CDB decides, and a WRITE that expects nothing.
#[test]
fn residuals_of_parameter_data() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[]);
    // Standard INQUIRY data of 96 bytes: allocation length, expected length, what comes, O, U.
    for (allocation, expected, len, overflow, underflow) in [
        (96u16, 96u32, 96, 0, 0),
        (36, 36, 36, 0, 0),
        (255, 255, 96, 0, 159),
        (5, 96, 5, 0, 91),
        (96, 5, 5, 91, 0),
    ] {
        let mut cdb = [0; 16];
        cdb[0] = 0x12;
        cdb[3..5].copy_from_slice(&allocation.to_be_bytes());
        let ended = host.read(&mut bed, cdb, expected);
        assert_eq!(
            (ended.status, ended.data.len(), ended.overflow, ended.underflow),
            (0, len, overflow, underflow),
            "{allocation} {expected}"
        );
    }
    let mut command = host.command_header(write10(0, 1), 0);
    command.write = true;
    host.send(&mut bed, command.encode(), &[]);
    let ended = host.end(&mut bed, command.task_tag, &[]);
    assert_eq!((ended.status, ended.overflow, ended.r2ts), (0, 512, 0));
}

/// Guards MaxOutstandingR2T: so many at once, the next when one is answered.
#[test]
fn outstanding_r2ts() {
    let mut bed = Bed::new();
    let agreed: &[(&str, &str)] = &[("MaxBurstLength", "512"), ("MaxOutstandingR2T", "2")];
    let mut host = Initiator::ready(&mut bed, agreed);
    let data = pattern(2048, 1);
    let mut command = host.command_header(write10(0, 4), 2048);
    command.write = true;
    host.send(&mut bed, command.encode(), &[]);
    let mut r2ts = Vec::new();
    while let Some((Reply::R2t(r2t), _)) = host.next(&mut bed) {
        r2ts.push(r2t);
    }
    assert_eq!(
        r2ts.iter().map(|r2t| (r2t.offset, r2t.desired_len)).collect::<Vec<_>>(),
        [(0, 512), (512, 512)]
    );
    assert_ne!(r2ts[0].transfer_tag, r2ts[1].transfer_tag);
    host.solicited(&mut bed, &r2ts[0], &data);
    let Some((Reply::R2t(third), _)) = host.next(&mut bed) else { panic!() };
    assert_eq!((third.offset, third.desired_len), (1024, 512));
    host.expect_silence(&mut bed);
    host.solicited(&mut bed, &r2ts[1], &data);
    host.solicited(&mut bed, &third, &data);
    assert_eq!(host.end(&mut bed, command.task_tag, &data).status, 0);
    assert_eq!(bed.disk(1).read(0, 2048), data);
}

/// Guards data that comes after the last final bit: rejected, and it changes nothing.
#[test]
fn data_after_the_end() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[]);
    bed.disk(1).hold();
    let data = pattern(512, 1);
    let mut command = host.command_header(write10(0, 1), 512);
    command.write = true;
    host.send(&mut bed, command.encode(), &[]);
    let Some((Reply::R2t(r2t), _)) = host.next(&mut bed) else { panic!() };
    host.solicited(&mut bed, &r2t, &data);
    assert_eq!(bed.disk(1).held(), 1);
    host.solicited(&mut bed, &r2t, &[0xee; 512]);
    let Some((Reply::Reject(reject), _)) = host.next(&mut bed) else { panic!() };
    assert_eq!(reject.reason, 4);
    bed.disk(1).release();
    bed.settle();
    assert_eq!(host.end(&mut bed, command.task_tag, &[]).status, 0);
    assert_eq!(bed.disk(1).read(0, 512), data);
}

/// Guards padding and additional headers under digests: of every length in both directions, and a pad
/// byte that is wrong.
#[test]
fn digests_cover_padding_and_additional_headers() {
    let mut bed = Bed::new();
    let crc: &[(&str, &str)] = &[("HeaderDigest", "CRC32C"), ("DataDigest", "CRC32C")];
    let mut host = Initiator::ready(&mut bed, crc);
    for len in 0..9 {
        let data = pattern(len, 5);
        assert_eq!(host.ping(&mut bed, &data), data);
        assert_eq!(host.read(&mut bed, read10(0, 1), len as u32).data.len(), len);
    }
    let command = host.command_header([0; 16], 0);
    let mut wire = host.wire(command.encode(), &Ahs::extended_cdb_segment(&[0; 16]), &[]);
    bed.feed(host.id, &wire);
    assert_eq!(host.end(&mut bed, command.task_tag, &[]).status, 0);
    let nop = lunette_proto::iscsi::initiator::NopOut {
        immediate: true,
        task_tag: 0x99,
        transfer_tag: TAG_NONE,
        cmd_sn: host.cmd_sn,
        ..Default::default()
    };
    let mut padded = host.wire(nop.encode(), &[], b"x");
    padded[48 + 4 + 1] ^= 1;
    bed.feed(host.id, &padded);
    assert!(matches!(host.next(&mut bed), Some((Reply::Reject(reject), _)) if reject.reason == 2));
    // The digest of a header covers what is added to it.
    wire[48 + 9] ^= 1;
    bed.feed(host.id, &wire);
    assert!(bed.is_gone(host.id));
}

/// Guards the final bit of Data-In: at the end of each burst and of the data, and nowhere else.
#[test]
fn bursts_end_with_the_final_bit() {
    let mut bed = Bed::new();
    let agreed: &[(&str, &str)] = &[("MaxBurstLength", "1024"), ("MaxRecvDataSegmentLength", "512")];
    let mut host = Initiator::ready(&mut bed, agreed);
    let mut command = host.command_header(read10(0, 5), 2560);
    command.read = true;
    host.send(&mut bed, command.encode(), &[]);
    let mut seen = Vec::new();
    while let Some((reply, _)) = host.next(&mut bed) {
        let Reply::DataIn(data_in) = reply else { panic!("{reply:?}") };
        seen.push((data_in.data_sn.0, data_in.offset, data_in.is_final, data_in.has_status));
    }
    assert_eq!(
        seen,
        [
            (0, 0, false, false),
            (1, 512, true, false),
            (2, 1024, false, false),
            (3, 1536, true, false),
            (4, 2048, true, true)
        ]
    );
}

/// Guards what the device says: each error's status, and BUSY without sense data.
#[test]
fn device_errors() {
    let cases = [
        (DeviceError::Busy, 8, None),
        (DeviceError::NoSpace, 2, Some([7, 0x27, 7])),
        (DeviceError::TimedOut, 2, Some([0xb, 8, 1])),
        (DeviceError::NotOwner, 2, Some([2, 4, 0xb])),
        (DeviceError::Medium { offset: 512 }, 2, Some([3, 0x11, 0])),
    ];
    for (error, status, sense) in cases {
        let mut bed = Bed::new();
        let mut host = Initiator::ready(&mut bed, &[]);
        bed.disk(1).fail_next(error.clone());
        let ended = host.write(&mut bed, write10(0, 1), &[1; 512]);
        assert_eq!((ended.status, ended.sense, ended.underflow), (status, sense, 512), "{error}");
        bed.disk(1).fail_next(error.clone());
        let ended = host.read(&mut bed, read10(0, 1), 512);
        assert_eq!((ended.status, ended.sense, ended.data.len()), (status, sense, 0), "{error}");
        assert_eq!(bed.disk(1).read(0, 512), [0; 512]);
    }
}

/// Guards a parameter list that is shorter than the CDB says: nothing of it is carried out.
#[test]
fn short_parameter_list() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[]);
    assert_eq!(host.write(&mut bed, write10(0, 1), &[7; 512]).status, 0);
    let mut cdb = [0; 16];
    (cdb[0], cdb[8]) = (0x42, 40);
    // One whole descriptor of the two that the list should have: block 0.
    let mut list = [0; 24];
    (list[1], list[3], list[19]) = (22, 16, 1);
    assert_eq!(host.write(&mut bed, cdb, &list).sense, Some([5, 0x1a, 0]));
    assert_eq!(bed.disk(1).read(0, 512), [7; 512]);
    cdb[8] = 24;
    assert_eq!(host.write(&mut bed, cdb, &list).status, 0);
    assert_eq!(bed.disk(1).read(0, 512), [0; 512]);
}

/// Guards unsolicited data under a digest: what came damaged fails the command and is not written.
#[test]
fn damaged_unsolicited_data() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[("DataDigest", "CRC32C"), ("InitialR2T", "No")]);
    let mut command = host.command_header(write10(0, 1), 512);
    (command.write, command.is_final) = (true, false);
    host.send(&mut bed, command.encode(), &[]);
    let pdu = DataOut { task_tag: command.task_tag, transfer_tag: TAG_NONE, ..out(0, 0, true) };
    let mut wire = host.wire(pdu.encode(), &[], &[1; 512]);
    wire[60] ^= 1;
    bed.feed(host.id, &wire);
    assert!(matches!(host.next(&mut bed), Some((Reply::Reject(reject), _)) if reject.reason == 2));
    assert_eq!(host.end(&mut bed, command.task_tag, &[]).sense, Some([0xb, 0x47, 5]));
    assert_eq!(bed.disk(1).read(0, 512), [0; 512]);
}

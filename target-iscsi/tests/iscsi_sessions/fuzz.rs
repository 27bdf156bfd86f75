//! Bytes of valid sessions, changed: no panic, no runaway memory, and other sessions go on.

use bytes::BytesMut;
use lunette_proto::iscsi::initiator::{DataOut, LogoutRequest, NopOut, TaskManagement, TextRequest};
use lunette_proto::iscsi::{Bhs, TAG_NONE};
use proptest::prelude::*;

use crate::bed::{Bed, IQN, pattern};
use crate::initiator::{INITIATOR, Initiator, keys, read10, write10};

/// A login and then a bit of everything, as one stream.
fn stream() -> Vec<u8> {
    let mut bed = Bed::new();
    let mut host = Initiator::new(bed.connect());
    let mut wire = BytesMut::new();
    let names = keys(&[("InitiatorName", INITIATOR), ("TargetName", IQN), ("AuthMethod", "None")]);
    let operational =
        keys(&[("InitialR2T", "No"), ("FirstBurstLength", "4096"), ("MaxRecvDataSegmentLength", "4096")]);
    let mut put =
        |host: &mut Initiator, bhs: Bhs, data: &[u8]| wire.extend_from_slice(&host.wire(bhs, &[], data));
    let (first, second) = (host.login_request(0, Some(1)), host.login_request(1, Some(3)));
    put(&mut host, first.encode(), &names);
    put(&mut host, second.encode(), &operational);
    for lba in 0..3 {
        let mut write = host.command_header(write10(lba, 8), 4096);
        (write.write, write.is_final) = (true, false);
        put(&mut host, write.encode(), &pattern(1024, 1));
        let out = DataOut {
            is_final: true,
            task_tag: write.task_tag,
            transfer_tag: TAG_NONE,
            offset: 1024,
            ..Default::default()
        };
        put(&mut host, out.encode(), &pattern(3072, 2));
        let mut big = host.command_header(write10(lba, 64), 32768);
        big.write = true;
        put(&mut host, big.encode(), &[]);
        let out = DataOut { is_final: true, task_tag: big.task_tag, transfer_tag: lba, ..Default::default() };
        put(&mut host, out.encode(), &pattern(32768, 2));
        let mut read = host.command_header(read10(lba, 64), 32768);
        read.read = true;
        put(&mut host, read.encode(), &[]);
        let nop = NopOut {
            immediate: true,
            task_tag: 77,
            transfer_tag: TAG_NONE,
            cmd_sn: host.cmd_sn,
            ..Default::default()
        };
        put(&mut host, nop.encode(), b"ping");
        let text = TextRequest {
            is_final: true,
            task_tag: 78,
            transfer_tag: TAG_NONE,
            cmd_sn: host.cmd_sn.take(),
            ..Default::default()
        };
        put(&mut host, text.encode(), &keys(&[("SendTargets", "All")]));
        let manage = TaskManagement {
            immediate: true,
            function: 1 + lba as u8 * 2,
            task_tag: 79,
            referenced_tag: big.task_tag,
            ref_cmd_sn: big.cmd_sn,
            cmd_sn: host.cmd_sn,
            ..Default::default()
        };
        put(&mut host, manage.encode(), &[]);
    }
    let logout = LogoutRequest { task_tag: 80, cmd_sn: host.cmd_sn.take(), ..Default::default() };
    put(&mut host, logout.encode(), &[]);
    wire.to_vec()
}

/// Where headers begin in the stream: most interesting bytes are there.
fn headers(stream: &[u8]) -> Vec<usize> {
    let (mut at, mut starts) = (0, Vec::new());
    while at < stream.len() {
        starts.push(at);
        let len = u32::from_be_bytes([0, stream[at + 5], stream[at + 6], stream[at + 7]]) as usize;
        at += 48 + len.next_multiple_of(4);
    }
    starts
}

/// Guards the generator: unchanged, the stream is a session that ends in a logout.
#[test]
fn stream_is_valid() {
    let mut bed = Bed::new();
    let id = bed.connect();
    bed.feed(id, &stream());
    assert!(bed.is_gone(id));
    assert_eq!(bed.sessions(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn mutations(
        changes in prop::collection::vec((any::<prop::sample::Index>(), 0usize..60, any::<u8>()), 1..12),
        drops in prop::collection::vec(any::<prop::sample::Index>(), 0..3),
        chunk in 1usize..5000,
    ) {
        let mut bytes = stream();
        let starts = headers(&bytes);
        for (header, at, value) in &changes {
            let at = header.get(&starts) + at;
            if let Some(byte) = bytes.get_mut(at) {
                *byte = *value;
            }
        }
        for at in drops {
            bytes.remove(at.index(bytes.len()));
        }
        let mut bed = Bed::new();
        let mut bystander = Initiator::ready_as(&mut bed, 77);
        let id = bed.connect();
        for part in bytes.chunks(chunk) {
            bed.feed(id, part);
        }
        bed.cut(id);
        prop_assert!(bed.is_gone(id));
        if !bed.is_closed(bystander.id) {
            while bystander.next(&mut bed).is_some() {}
            prop_assert_eq!(bystander.ping(&mut bed, b"here"), b"here");
        }
    }
}

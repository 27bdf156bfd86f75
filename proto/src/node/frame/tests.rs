mod random;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::*;
use crate::checksum::crc32c;
use crate::ids::{ClusterId, DiskId, Epoch, ExtentId, Generation, Namespace, Version};
use crate::node::{
    BlockVersion, Change, DamagedRun, DirtyExtent, Durability, Failure, PreparedChange, ReplyBody,
    RequestBody, Sealed,
};

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

fn bytes_of(mut out: Outgoing) -> Vec<u8> {
    let bytes = out.copy_to_bytes(out.remaining()).to_vec();
    assert!(!out.has_remaining());
    bytes
}

fn request_bytes(id: u64, request: &Request) -> Vec<u8> {
    let mut out = Outgoing::new();
    out.request(id, request).unwrap();
    bytes_of(out)
}

/// Of a frame with this body and no data.
fn header_of(kind: header::Kind, body: &[u8]) -> header::Header {
    header::Header {
        kind,
        status: 0,
        body_len: body.len() as u32,
        data_len: 0,
        id: 1,
        epoch: 0,
        disk: 0,
        body_crc: crc32c(body),
        data_crc: 0,
    }
}

fn greeted() -> Decoder {
    let mut out = Outgoing::new();
    out.hello(&Hello::new(ClusterId(1), "test")).unwrap();
    let mut decoder = Decoder::new();
    decoder.push(&bytes_of(out));
    assert!(matches!(decoder.next_frame(), Ok(Some(Frame::Hello(_)))));
    decoder
}

fn change() -> Request {
    Request {
        disk: DiskId(5),
        epoch: Epoch(77),
        body: RequestBody::Change {
            extent: ExtentId { namespace: Namespace(0x0100_0000_0000_0007), index: 9 },
            version: Version { generation: Generation(3), seq: 42 },
            offset: 8192,
            change: Change::Data(Bytes::from(vec![0xab; 4096])),
            durability: Durability::Volatile,
        },
    }
}

/// Guards the layout against the specification: bytes written from the module doc's tables, with
/// checksums by an independent bitwise CRC-32C.
#[test]
fn golden() {
    let mut expected = hex("4c554e4506120000300000000010000088776655443322114d00000000000000\
         050000004016b51e93413794b8808b6b0700000000000001090000000000000003000000000000002a00000000000000\
         00200000001000000102000000000000");
    expected.extend([0xab; 4096]);
    assert_eq!(request_bytes(0x1122_3344_5566_7788, &change()), expected);

    let mut out = Outgoing::new();
    out.reply(6, &Err(Failure::Generation { sealed: Generation(9), got: Generation(8) })).unwrap();
    let failure = "4c554e45068f01001800000000000000060000000000000000000000000000000000000002b8727700000000d0a3da70\
         090000000000000008000000000000000000000000000000";
    assert_eq!(bytes_of(out), hex(failure));

    let mut out = Outgoing::new();
    out.hello(&Hello::new(ClusterId(0xaaaa_bbbb_cccc_dddd_1111_2222_3333_4444), "gw1")).unwrap();
    let hello = "4c554e450101000017000000000000000000000000000000000000000000000000000000b69cde2a00000000d3662be0\
         4444333322221111ddddccccbbbbaaaa06060300677731";
    assert_eq!(bytes_of(out), hex(hello));
}

/// Guards the sign of life: its bytes, and that it bears nothing that nobody would look at.
#[test]
fn alive() {
    let mut out = Outgoing::new();
    out.alive().unwrap();
    let expected =
        "4c554e4506030000000000000000000000000000000000000000000000000000000000000000000000000000779cafeb";
    assert_eq!(bytes_of(out), hex(expected));
    let alive = |body: &[u8], id| {
        let header = header::Header {
            kind: header::Kind::Alive,
            status: 0,
            body_len: body.len() as u32,
            data_len: 0,
            id,
            epoch: 0,
            disk: 0,
            body_crc: crc32c(body),
            data_crc: 0,
        };
        let mut decoder = greeted();
        decoder.push(&header.encode());
        decoder.push(body);
        decoder.next_frame()
    };
    assert_eq!(alive(&[], 0), Ok(Some(Frame::Alive)));
    assert_eq!(alive(&[0], 0), Err(FrameError::Length(3)));
    assert_eq!(alive(&[], 1), Err(FrameError::Field("request id")));
    let mut first = Decoder::new();
    first.push(&hex(expected));
    assert_eq!(first.next_frame(), Err(FrameError::Order(3)), "nobody has been greeted");
}

/// Guards the layout of what prepares changes, in the same way.
#[test]
fn golden_prepared() {
    let extent = ExtentId { namespace: Namespace(7), index: 9 };
    let [version, prev] = [42, 41].map(|seq| Version { generation: Generation(3), seq });
    let request = |body| request_bytes(1, &Request { disk: DiskId(5), epoch: Epoch(77), body });
    let (offset, len) = (0x11000, 8192);
    let change = Change::Zeros { len };
    let prepare = "4c554e45061a0000400000000000000001000000000000004d000000000000000500000027bca8b5000000005fc72a7b\
         0700000000000000090000000000000003000000000000002a0000000000000003000000000000002900000000000000\
         00100100002000000200000000000000";
    assert_eq!(request(RequestBody::Prepare { extent, version, prev, offset, change }), hex(prepare));
    let (generation, all) = (Generation(4), 0x10000);
    let commit = "4c554e45061b0000300000000000000001000000000000004d0000000000000005000000857192d6000000000dc1fffa\
         07000000000000000900000000000000040000000000000003000000000000002a000000000000000000010000000100";
    let body = RequestBody::Commit { extent, generation, version, offset: all, len: all };
    assert_eq!(request(body), hex(commit));
    let rollback = "4c554e45061c0000300000000000000001000000000000004d0000000000000005000000857192d60000000077c70518\
         07000000000000000900000000000000040000000000000003000000000000002a000000000000000000010000000100";
    let body = RequestBody::Rollback { extent, generation, version, offset: all, len: all };
    assert_eq!(request(body), hex(rollback));
    let reply = |reply| {
        let mut out = Outgoing::new();
        out.reply(6, &reply).unwrap();
        bytes_of(out)
    };
    let prepared = "4c554e4506860000380000000000000006000000000000000000000000000000000000004cd540d400000000e04f78f8\
         010000000000000003000000000000002a00000000000000030000000000000029000000000000000010010000200000\
         0100000000000000";
    let change = PreparedChange { offset, len, version, prev, hole: true };
    assert_eq!(reply(Ok(ReplyBody::Prepared(vec![change]))), hex(prepared));
    let refused = "4c554e45068f0a00180000000000000006000000000000000000000000000000000000002aae621800000000e4428d84\
         030000000000000029000000000000000000000000000000";
    assert_eq!(reply(Err(Failure::Version { present: prev })), hex(refused));
}

/// Guards the layout of what brings a returning disk up to date, in the same way.
#[test]
fn golden_extents() {
    let namespace = Namespace(7);
    let generation = Generation(4);
    let [newest, complete] = [42, 41].map(|seq| Version { generation: Generation(3), seq });
    let request = |body| request_bytes(1, &Request { disk: DiskId(5), epoch: Epoch(77), body });
    let extents = "4c554e45061e0000280000000000000001000000000000004d0000000000000005000000f7f28b0100000000e9fb778d\
         07000000000000000400000000000000090000000000000003000000000000002a00000000000000";
    let body = RequestBody::Extents { namespace, generation, from: 9, newer_than: newest };
    assert_eq!(request(body), hex(extents));
    let mark = "4c554e4506170000200000000000000001000000000000004d0000000000000005000000728d67d5000000005bc3dc93\
         070000000000000004000000000000002a000000000000000100000000000000";
    assert_eq!(request(RequestBody::Watermark { namespace, generation, seq: 42, complete: true }), hex(mark));
    let reply = |reply| {
        let mut out = Outgoing::new();
        out.reply(6, &Ok(reply)).unwrap();
        bytes_of(out)
    };
    let list = vec![DirtyExtent { index: 9, newest }];
    let sealed = "4c554e450682000018000000180000000600000000000000000000000000000000000000f7524b2bdb6c2c30aa32f082\
         010000000000000003000000000000002900000000000000090000000000000003000000000000002a00000000000000";
    assert_eq!(reply(ReplyBody::Sealed(Sealed { dirty: list.clone(), complete })), hex(sealed));
    let listed = "4c554e45068700002800000000000000060000000000000000000000000000000000000040c813900000000007726abb\
         01000000010000000a00000000000000090000000000000003000000000000002a00000000000000";
    assert_eq!(reply(ReplyBody::Extents { list, next: Some(10) }), hex(listed));
}

/// Guards the layout of what drops extents, in the same way; and a disk against lists that no owner makes: empty, too long,
/// out of order, or of another length.
#[test]
fn golden_drop() {
    let drop_of = |extents: Vec<u64>| {
        let body = RequestBody::Drop { namespace: Namespace(7), generation: Generation(4), extents };
        Request { disk: DiskId(5), epoch: Epoch(77), body }
    };
    let expected = hex(
        "4c554e45061f0000280000000000000001000000000000004d00000000000000050000008831871a000000005ed5c461\
         07000000000000000400000000000000020000000000000009000000000000000000000000010000",
    );
    assert_eq!(request_bytes(1, &drop_of(vec![9, 1 << 40])), expected);
    let most = crate::limits::NODE_DROPPED_EXTENTS_MAX as u64;
    for extents in [vec![], vec![3, 3], vec![3, 2], (0..=most).collect()] {
        assert!(Outgoing::new().request(1, &drop_of(extents)).is_err());
    }
    let decoded = |count: u32, extents: &[u64]| {
        let mut body = [7u64.to_le_bytes(), 4u64.to_le_bytes()].concat();
        body.extend([count.to_le_bytes(), [0; 4]].concat());
        extents.iter().for_each(|index| body.extend(index.to_le_bytes()));
        let header = header::Header { epoch: 77, disk: 5, ..header_of(header::Kind::Drop, &body) };
        let mut decoder = greeted();
        decoder.push(&header.encode());
        decoder.push(&body);
        decoder.next_frame()
    };
    let all: Vec<u64> = (0..most).collect();
    let frame = Frame::Request { id: 1, request: drop_of(all.clone()) };
    assert_eq!(decoded(all.len() as u32, &all), Ok(Some(frame)));
    for extents in [&[][..], &[3, 3], &[3, 2]] {
        assert_eq!(decoded(extents.len() as u32, extents), Err(FrameError::Field("extents")));
    }
    let more: Vec<u64> = (0..=most).collect();
    for (count, extents) in [(257, &more[..]), (2, &[1]), (1, &[1, 2]), (u32::MAX, &[])] {
        assert_eq!(decoded(count, extents), Err(FrameError::Field("count")));
    }
}

/// Guards the layout of what lets an owner read, in the same way.
#[test]
fn golden_grant() {
    let body = RequestBody::Grant {
        namespace: Namespace(7),
        generation: Generation(4),
        number: 3,
        for_ms: crate::limits::GRANT_MS_MAX,
    };
    let grant = "4c554e4506200000200000000000000001000000000000004d0000000000000005000000beb84ccf0000000096f082b7\
         070000000000000004000000000000000300000000000000dc05000000000000";
    assert_eq!(request_bytes(1, &Request { disk: DiskId(5), epoch: Epoch(77), body }), hex(grant));
    let mut out = Outgoing::new();
    out.reply(6, &Err(Failure::Granted { left_ms: 1650 })).unwrap();
    let granted = "4c554e45068f0b0018000000000000000600000000000000000000000000000000000000fe2d13f0000000009258f322\
         000000000000000000000000000000007206000000000000";
    assert_eq!(bytes_of(out), hex(granted));

    // More than any owner asks for.
    let mut body = [7u64, 4, 3].map(u64::to_le_bytes).concat();
    body.extend([1501u32, 0].map(u32::to_le_bytes).concat());
    let mut decoder = greeted();
    decoder.push(&header::Header { epoch: 77, disk: 5, ..header_of(header::Kind::Grant, &body) }.encode());
    decoder.push(&body);
    assert_eq!(decoder.next_frame(), Err(FrameError::Field("milliseconds")));
}

/// Guards the owner against lists of extents that no disk makes: out of order, twice the same, or not before the next.
#[test]
fn impossible_extents_are_refused() {
    let newest = Version { generation: Generation(3), seq: 42 };
    for (indices, next) in [(vec![3, 2], None), (vec![3, 3], None), (vec![3, 4], Some(4)), (vec![3], Some(0))]
    {
        let list: Vec<_> = indices.iter().map(|index| DirtyExtent { index: *index, newest }).collect();
        let mut out = Outgoing::new();
        assert!(out.reply(1, &Ok(ReplyBody::Extents { list: list.clone(), next })).is_err(), "{indices:?}");
        let mut body = [(list.len() as u32).to_le_bytes(), [u8::from(next.is_some()), 0, 0, 0]].concat();
        body.extend(next.unwrap_or(0).to_le_bytes());
        for extent in &list {
            body.extend([extent.index, newest.generation.0, newest.seq].map(u64::to_le_bytes).concat());
        }
        let header = header_of(header::Kind::ExtentsReply, &body);
        let mut decoder = greeted();
        decoder.push(&header.encode());
        decoder.push(&body);
        assert_eq!(decoder.next_frame(), Err(FrameError::Field("extents")), "{indices:?}");
    }
}

/// Guards detection of damage: every single-bit flip of a frame is an error, and none makes the
/// receiver wait for more bytes.
#[test]
fn every_bit_flip_is_found() {
    let good = request_bytes(3, &change());
    for bit in 0..good.len() * 8 {
        // The whole head, and a sample of the bulk data.
        if bit > 112 * 8 && bit % 97 != 0 {
            continue;
        }
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let mut decoder = greeted();
        decoder.push(&bad);
        let first = decoder.next_frame();
        assert!(first.is_err(), "flip of bit {bit} gave {first:?}");
        assert_eq!(decoder.next_frame(), first, "an error stays");
    }
}

/// Guards the bounds: lengths beyond the limits are refused from the header alone, although its
/// checksum is right.
#[test]
fn lengths_beyond_the_limits() {
    for (at, error) in [(8, FrameError::BodyTooLong(u32::MAX)), (12, FrameError::DataTooLong(u32::MAX))] {
        let mut decoder = greeted();
        decoder.push(&patched(at, &[0xff; 4]));
        assert_eq!(decoder.next_frame(), Err(error));
    }
}

/// Guards invariant 18: what is not known is an error by name, never guessed.
#[test]
fn unknown_values() {
    let cases: [(usize, &[u8], FrameError); 9] = [
        (4, &[5], FrameError::Version(5)),
        (4, &[7], FrameError::Version(7)),
        (5, &[99], FrameError::Kind(99)),
        (6, &[1], FrameError::Field("status")),
        (7, &[1], FrameError::Field("reserved")),
        (48 + 40, &[3], FrameError::Field("content")),
        (48 + 40, &[2], FrameError::Field("length")),
        (48 + 41, &[0], FrameError::Field("durability")),
        (48 + 47, &[1], FrameError::Field("reserved")),
    ];
    for (at, value, error) in cases {
        let mut decoder = greeted();
        decoder.push(&patched(at, value));
        assert_eq!(decoder.next_frame(), Err(error), "byte {at}");
    }
}

/// A frame with some bytes replaced and all checksums right.
fn patched(at: usize, value: &[u8]) -> Vec<u8> {
    let mut bytes = request_bytes(3, &change());
    bytes[at..at + value.len()].copy_from_slice(value);
    let body_crc = crc32c(&bytes[48..96]);
    bytes[36..40].copy_from_slice(&body_crc.to_le_bytes());
    let header_crc = crc32c(&bytes[..44]);
    bytes[44..48].copy_from_slice(&header_crc.to_le_bytes());
    bytes
}

/// Guards memory before the greeting: a peer that has not said who it is cannot send requests, and
/// one that has cannot greet again.
#[test]
fn greeting_comes_first_and_once() {
    let mut decoder = Decoder::new();
    decoder.push(&request_bytes(1, &change())[..HEADER_BYTES]);
    assert_eq!(decoder.next_frame(), Err(FrameError::Order(18)));

    let mut out = Outgoing::new();
    out.hello(&Hello::new(ClusterId(1), "again")).unwrap();
    let mut decoder = greeted();
    decoder.push(&bytes_of(out));
    assert_eq!(decoder.next_frame(), Err(FrameError::Order(1)));
}

/// Guards the check of a greeting: another cluster and a version without overlap are refused by name.
#[test]
fn greetings_are_answered_by_name() {
    let hello = Hello::new(ClusterId(1), "gw");
    assert!(matches!(hello.answer(ClusterId(1), "n1"), HelloAck::Accepted { version: 6, .. }));
    let wrong = hello.answer(ClusterId(2), "n1");
    assert_eq!(wrong.to_string(), "this node belongs to cluster 00000000000000000000000000000002");
    let newer = Hello { versions: ProtocolVersions { min: 7, max: 8 }, ..hello };
    let refused = newer.answer(ClusterId(1), "n1");
    assert_eq!(refused.to_string(), "protocol version not supported; this node speaks version 6");
    for ack in [wrong, refused, HelloAck::Accepted { cluster: ClusterId(3), version: 2, name: "n".into() }] {
        let mut out = Outgoing::new();
        out.hello_ack(&ack).unwrap();
        let mut decoder = Decoder::new();
        decoder.push(&bytes_of(out));
        assert_eq!(decoder.next_frame(), Ok(Some(Frame::HelloAck(ack))));
    }
}

/// Guards versions: a peer of version 4 greets in a header that this side reads, and is refused by name.
#[test]
fn an_older_peer_is_refused_by_name() {
    let hello = Hello { versions: ProtocolVersions { min: 4, max: 4 }, ..Hello::new(ClusterId(1), "old") };
    let mut out = Outgoing::new();
    out.hello(&hello).unwrap();
    let bytes = bytes_of(out);
    assert_eq!(bytes[4], 1);
    let mut decoder = Decoder::new();
    decoder.push(&bytes);
    assert_eq!(decoder.next_frame(), Ok(Some(Frame::Hello(hello.clone()))));
    let versions = ProtocolVersions { min: 6, max: 6 };
    assert_eq!(
        hello.answer(ClusterId(1), "n1"),
        HelloAck::NoCommonVersion { cluster: ClusterId(1), versions }
    );
}

/// Guards the owner against lists of damage that no disk makes: empty, too long, beyond an extent, out of order, or
/// overlapping. Each has right checksums.
#[test]
fn impossible_damage_is_refused() {
    let run = |index, first, blocks| DamagedRun { index, first, blocks };
    let body = |count: u32, runs: &[DamagedRun]| {
        let mut body = [count.to_le_bytes(), [0; 4]].concat();
        for run in runs {
            body.extend(run.index.to_le_bytes());
            body.extend(run.first.to_le_bytes());
            body.extend(run.blocks.to_le_bytes());
        }
        body
    };
    let decoded = |body: &[u8]| {
        let mut decoder = greeted();
        let header = header::Header {
            kind: header::Kind::DamagedReply,
            status: 0,
            body_len: u32::try_from(body.len()).unwrap(),
            data_len: 0,
            id: 1,
            epoch: 0,
            disk: 0,
            body_crc: crc32c(body),
            data_crc: 0,
        };
        decoder.push(&header.encode());
        decoder.push(body);
        decoder.next_frame()
    };
    let good = [run(1, 0, 4), run(1, 4, 1), run(7, 1023, 1)];
    let reply = Ok(ReplyBody::Damaged(good.to_vec()));
    assert_eq!(decoded(&body(3, &good)), Ok(Some(Frame::Reply { id: 1, reply })));
    let many: Vec<DamagedRun> = (0..65).map(|index| run(index, 0, 1)).collect();
    let bad: [&[DamagedRun]; 7] = [
        &[],
        &many,
        &[run(1, 1023, 2)],
        &[run(1, u32::MAX, u32::MAX)],
        &[run(1, 3, 0)],
        &[run(1, 0, 4), run(1, 3, 1)],
        &[run(2, 0, 1), run(1, 0, 1)],
    ];
    for runs in bad {
        let count = u32::try_from(runs.len()).unwrap();
        assert!(matches!(decoded(&body(count, runs)), Err(FrameError::Field(_))), "{runs:?}");
        let mut out = Outgoing::new();
        assert!(out.reply(1, &Ok(ReplyBody::Damaged(runs.to_vec()))).is_err(), "{runs:?}");
        assert!(!out.has_remaining());
    }
    assert_eq!(decoded(&body(2, &good)), Err(FrameError::Field("count")));
    assert_eq!(decoded(&body(u32::MAX, &good)), Err(FrameError::Field("count")));
}

/// Guards the owner against lists of prepared changes that no disk makes: beyond a unit or the extent, no whole blocks,
/// two of one unit, or out of order.
#[test]
fn impossible_prepared_changes_are_refused() {
    let change = |offset, len| PreparedChange {
        offset,
        len,
        version: Version { generation: Generation(2), seq: 9 },
        prev: Version { generation: Generation(1), seq: 8 },
        hole: false,
    };
    let sent = |changes: &[PreparedChange]| {
        let mut out = Outgoing::new();
        out.reply(1, &Ok(ReplyBody::Prepared(changes.to_vec())))?;
        Ok::<_, EncodeError>(bytes_of(out))
    };
    let mut good = sent(&[change(61_440, 4096), change(65_536, 65_536)]).unwrap();
    for (offset, len) in [
        (61_440, 8192),
        (4 << 20, 4096),
        (u32::MAX - 4095, 4096),
        (0, 0),
        (100, 4096),
        (0, 100),
        (65_536, 4096),
        (131_072, 4096),
    ] {
        assert!(sent(&[change(offset, len), change(65_536, 65_536)]).is_err(), "{offset} {len}");
        // The first change of the list, with its checksums.
        good[48 + 8 + 32..48 + 8 + 36].copy_from_slice(&u32::to_le_bytes(offset));
        good[48 + 8 + 36..48 + 8 + 40].copy_from_slice(&u32::to_le_bytes(len));
        let body_crc = crc32c(&good[48..]);
        good[36..40].copy_from_slice(&body_crc.to_le_bytes());
        let header_crc = crc32c(&good[..44]);
        good[44..48].copy_from_slice(&header_crc.to_le_bytes());
        let mut decoder = greeted();
        decoder.push(&good);
        assert_eq!(decoder.next_frame(), Err(FrameError::Field("changes")), "{offset} {len}");
    }
}

/// Guards the sender: what cannot be sent is an error and leaves the queue as it was.
#[test]
fn unsendable_values_append_nothing() {
    let mut out = Outgoing::new();
    out.reply(1, &Ok(ReplyBody::Done)).unwrap();
    let before = out.remaining();
    let data = Bytes::from(vec![0; crate::limits::FRAME_DATA_BYTES_MAX as usize + 1]);
    let len = data.len() as u64;
    assert_eq!(out.reply(2, &Ok(ReplyBody::Data(data))), Err(EncodeError::DataTooLong(len)));
    assert_eq!(out.reply(3, &Err(Failure::Disconnected)), Err(EncodeError::NotSent));
    let name = "n".repeat(256);
    assert_eq!(out.hello(&Hello::new(ClusterId(1), name)), Err(EncodeError::NameTooLong(256)));
    assert_eq!(out.remaining(), before);
}

/// Guards "bulk data is not copied", both ways.
#[test]
fn data_is_not_copied() {
    let request = change();
    let RequestBody::Change { change: Change::Data(data), .. } = &request.body else { panic!() };
    let mut out = Outgoing::new();
    out.request(1, &request).unwrap();
    let mut slices = [std::io::IoSlice::new(&[]); 4];
    assert_eq!(out.chunks_vectored(&mut slices), 2);
    assert_eq!(slices[1].as_ptr(), data.as_ptr());

    let mut decoder = greeted();
    decoder.buffer().reserve(8192);
    decoder.buffer().put_slice(&request_bytes(1, &request));
    let received = decoder.buffer().as_ptr();
    let Ok(Some(Frame::Request { request, .. })) = decoder.next_frame() else { panic!() };
    let RequestBody::Change { change: Change::Data(data), .. } = &request.body else { panic!() };
    assert_eq!(data.as_ptr() as usize, received as usize + 96);
}

use bytes::{Bytes, BytesMut};
use lunette_proto::ids::{ClusterId, DiskId, Epoch, ExtentId, Generation, Namespace, Version};
use proptest::prelude::*;

use super::record::Head;
use super::*;

const UUID: DiskUuid = DiskUuid(0xaaaa_bbbb_cccc_dddd_1111_2222_3333_4444);
const SEGMENT: SegmentHeader = SegmentHeader { uuid: UUID, number: 9, first_lsn: 1000, checkpointed: true };

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex")).collect()
}

/// Guards the layout against the specification: bytes written from its tables, with checksums by an
/// independent bitwise CRC-32C.
#[test]
fn golden() {
    let header = SEGMENT.encode();
    let expected = "4c554e454a524e4c01000000010000004444333322221111ddddccccbbbbaaaa\
         0900000000000000e803000000000000000000008f4ad8bc";
    assert_eq!(header[..56], hex(expected));
    assert!(header[56..].iter().all(|byte| *byte == 0));
    let mut out = BytesMut::new();
    let record = Record::Seal(Namespace(7), Generation(3), Epoch(5));
    assert!(record.encode(&SEGMENT, 1001, 1000, &mut out).is_empty());
    let expected = "4c524543050000001800000000000000e903000000000000e803000000000000eea5f9d600000000\
         0000000000000000000000000000000000000000b37362f1070000000000000003000000000000000500000000000000";
    assert_eq!(out, hex(expected));
}

/// Guards invariant 2 against an ack before the sync: the kernel is really asked, and its answer counts. The
/// null device takes every write and cannot be synced.
#[test]
fn sync_asks_the_kernel() {
    let null = || OpenOptions::new().read(true).write(true).open("/dev/null").expect("the null device");
    assert!(null().sync_data().is_err(), "the null device can be synced here: this test proves nothing");
    let identity = Identity::new(ClusterId(1), DiskId(1), UUID);
    let mut journal = Journal::new([null(), null()], &identity, 1, 1);
    journal.append(&Record::Seal(Namespace(7), Generation(3), Epoch(5)));
    journal.write().expect("the null device takes it");
    assert!(journal.sync().is_err(), "a record that is on no medium is not durable");
}

/// Guards the keeping apart of segments: a record of an earlier use of the file is none.
#[test]
fn records_of_another_segment_are_none() {
    let mut out = BytesMut::new();
    let _ = Record::StateEnd.encode(&SEGMENT, 1, 0, &mut out);
    assert!(Head::decode(&SEGMENT, &out).is_some());
    assert!(Head::decode(&SegmentHeader { number: 11, ..SEGMENT }, &out).is_none());
    assert!(Head::decode(&SegmentHeader { uuid: DiskUuid(1), ..SEGMENT }, &out).is_none());
}

fn records() -> impl Strategy<Value = Record> {
    let namespaces = || any::<u64>().prop_map(Namespace);
    let versions = || {
        any::<(u64, u64)>().prop_map(|(generation, seq)| Version { generation: Generation(generation), seq })
    };
    let changes =
        (namespaces(), any::<u64>(), versions(), versions(), 0u32..1024, 0u8..3, 0u8..3, any::<i32>())
            .prop_map(|(namespace, index, version, floor, first, content, reset, grown)| {
                let blocks = (1024 - first).min(3);
                let (first, blocks, content) = match content {
                    0 => (first, blocks, Content::Data(Bytes::from(vec![9; blocks as usize * 4096]))),
                    1 => (first, blocks, Content::Zeros),
                    _ => (0, 1024, Content::WholeZeros),
                };
                let reset = [Reset::None, Reset::Absent, Reset::Lost][usize::from(reset)];
                let extent = ExtentId { namespace, index };
                Record::Change(ChangeRecord { extent, version, floor, first, blocks, content, reset, grown })
            });
    prop_oneof![
        changes,
        (namespaces(), any::<u64>(), any::<u64>()).prop_map(|(id, generation, epoch)| Record::Seal(
            id,
            Generation(generation),
            Epoch(epoch)
        )),
        namespaces().prop_map(Record::Delete),
        (namespaces(), versions()).prop_map(|(id, mark)| Record::Watermark(id, mark)),
        proptest::collection::vec(namespaces(), 0..9).prop_map(Record::Tombstones),
        (namespaces(), versions(), proptest::collection::btree_map(any::<u64>(), versions(), 0..9)).prop_map(
            |(id, watermark, dirty)| {
                let state = crate::engine::namespaces::NamespaceState {
                    sealed: watermark.generation,
                    epoch: Epoch(watermark.seq),
                    watermark,
                    used_blocks: 5,
                    dirty,
                };
                Record::Namespace(id, state)
            }
        ),
    ]
}

proptest! {
    /// Guards the codec: what is written is read.
    #[test]
    fn round_trip(record in records()) {
        let mut out = BytesMut::new();
        let data = record.encode(&SEGMENT, 77, 66, &mut out);
        let head = Head::decode(&SEGMENT, &out).expect("a header");
        prop_assert_eq!((head.lsn, head.durable, head.data_len), (77, 66, data.len()));
        let body = &out[record::HEADER_BYTES..];
        prop_assert_eq!(head.body_len, body.len());
        prop_assert_eq!(Record::decode(head.kind, body, data), Ok(record));
    }

    /// Guards opening: a record of any content behind right checksums is a record or an error.
    #[test]
    fn any_record_is_a_record_or_an_error(
        kind in 0u8..12, body in proptest::collection::vec(any::<u8>(), 0..80),
        data in proptest::collection::vec(any::<u8>(), 0..80),
    ) {
        let _ = Record::decode(kind, &body, data.into());
    }
}

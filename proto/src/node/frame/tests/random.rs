//! Any frame comes back as it was sent, and any bytes are a frame or an error.

use proptest::prelude::*;

use super::*;

fn versions() -> impl Strategy<Value = Version> {
    any::<(u64, u64)>().prop_map(|(generation, seq)| Version { generation: Generation(generation), seq })
}

fn extents() -> impl Strategy<Value = ExtentId> {
    any::<(u64, u64)>().prop_map(|(namespace, index)| ExtentId { namespace: Namespace(namespace), index })
}

fn changes() -> impl Strategy<Value = Change> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 1..300).prop_map(|data| Change::Data(data.into())),
        any::<u32>().prop_map(|len| Change::Zeros { len }),
    ]
}

fn requests() -> impl Strategy<Value = Request> {
    let generations = || any::<u64>().prop_map(Generation);
    let namespaces = || any::<u64>().prop_map(Namespace);
    let bodies = prop_oneof![
        any::<u128>().prop_map(|id| RequestBody::Identify { cluster: ClusterId(id) }),
        (namespaces(), generations())
            .prop_map(|(namespace, generation)| RequestBody::Seal { namespace, generation }),
        (extents(), versions(), any::<u32>(), changes(), any::<bool>()).prop_map(
            |(extent, version, offset, change, stable)| RequestBody::Change {
                extent,
                version,
                offset,
                change,
                durability: if stable { Durability::Stable } else { Durability::Volatile },
            }
        ),
        (extents(), generations(), versions(), any::<u32>(), changes()).prop_map(
            |(extent, generation, version, offset, change)| RequestBody::Put {
                extent,
                generation,
                version,
                offset,
                change
            }
        ),
        (extents(), generations(), any::<u32>(), any::<u32>()).prop_map(
            |(extent, generation, offset, len)| RequestBody::Read { extent, generation, offset, len }
        ),
        (extents(), generations())
            .prop_map(|(extent, generation)| RequestBody::Versions { extent, generation }),
        (namespaces(), generations())
            .prop_map(|(namespace, generation)| RequestBody::Flush { namespace, generation }),
        (namespaces(), generations(), any::<u64>(), any::<bool>()).prop_map(
            |(namespace, generation, seq, complete)| RequestBody::Watermark {
                namespace,
                generation,
                seq,
                complete
            }
        ),
        (namespaces(), generations(), any::<u64>(), versions()).prop_map(
            |(namespace, generation, from, newer_than)| RequestBody::Extents {
                namespace,
                generation,
                from,
                newer_than
            }
        ),
        (namespaces(), generations())
            .prop_map(|(namespace, generation)| RequestBody::Delete { namespace, generation }),
        (namespaces(), generations(), proptest::collection::btree_set(any::<u64>(), 1..40)).prop_map(
            |(namespace, generation, extents)| RequestBody::Drop {
                namespace,
                generation,
                extents: extents.into_iter().collect()
            }
        ),
        (namespaces(), generations(), any::<u64>(), 0..=crate::limits::GRANT_MS_MAX).prop_map(
            |(namespace, generation, number, for_ms)| RequestBody::Grant {
                namespace,
                generation,
                number,
                for_ms
            }
        ),
        Just(RequestBody::Space),
        (extents(), versions(), versions(), any::<u32>(), changes()).prop_map(
            |(extent, version, prev, offset, change)| RequestBody::Prepare {
                extent,
                version,
                prev,
                offset,
                change
            }
        ),
        (extents(), generations(), versions(), any::<u32>(), any::<u32>()).prop_map(
            |(extent, generation, version, offset, len)| RequestBody::Commit {
                extent,
                generation,
                version,
                offset,
                len
            }
        ),
        (extents(), generations(), versions(), any::<u32>(), any::<u32>()).prop_map(
            |(extent, generation, version, offset, len)| RequestBody::Rollback {
                extent,
                generation,
                version,
                offset,
                len
            }
        ),
        (extents(), generations())
            .prop_map(|(extent, generation)| RequestBody::Prepared { extent, generation }),
    ];
    (any::<u32>(), any::<u64>(), bodies).prop_map(|(disk, epoch, body)| Request {
        disk: DiskId(disk),
        epoch: Epoch(epoch),
        body,
    })
}

fn replies() -> impl Strategy<Value = Reply> {
    let dirty = || (any::<u64>(), versions()).prop_map(|(index, newest)| DirtyExtent { index, newest });
    let run = (1..u32::MAX, versions(), any::<bool>()).prop_map(|(blocks, version, hole)| BlockVersion {
        blocks,
        version,
        hole,
    });
    let damaged =
        (1..64usize, any::<u64>(), 0..1024u32, any::<bool>()).prop_map(|(count, index, first, wide)| {
            let runs = (0..count as u64).map(|at| DamagedRun {
                index: (index >> 8) + at,
                first,
                blocks: if wide { 1024 - first } else { 1 },
            });
            Ok(ReplyBody::Damaged(runs.collect()))
        });
    let prepared = (0..64u32, 0..16u32, versions(), versions(), any::<bool>()).prop_map(
        |(unit, first, version, prev, hole)| PreparedChange {
            offset: unit * 65_536 + first * 4096,
            len: (16 - first) * 4096,
            version,
            prev,
            hole,
        },
    );
    let prepared = proptest::collection::vec(prepared, 0..40).prop_map(|mut changes| {
        changes.sort_by_key(|change| change.offset / 65_536);
        changes.dedup_by_key(|change| change.offset / 65_536);
        Ok(ReplyBody::Prepared(changes))
    });
    prop_oneof![
        Just(Ok(ReplyBody::Done)),
        damaged,
        prepared,
        versions().prop_map(|present| Err(Failure::Version { present })),
        proptest::collection::vec(any::<u8>(), 0..300).prop_map(|data| Ok(ReplyBody::Data(data.into()))),
        (proptest::collection::vec(dirty(), 0..20), versions())
            .prop_map(|(dirty, complete)| Ok(ReplyBody::Sealed(Sealed { dirty, complete }))),
        (proptest::collection::vec(dirty(), 0..20), any::<Option<u64>>()).prop_map(|(mut list, next)| {
            list.sort_by_key(|extent| extent.index);
            list.dedup_by_key(|extent| extent.index);
            list.retain(|extent| next.is_none_or(|next| extent.index < next));
            Ok(ReplyBody::Extents { list, next })
        }),
        proptest::collection::vec(run, 0..20).prop_map(|runs| Ok(ReplyBody::Versions(runs))),
        any::<(u64, u64)>()
            .prop_map(|(capacity_bytes, used_bytes)| Ok(ReplyBody::Space { capacity_bytes, used_bytes })),
        any::<(u64, u64)>().prop_map(|(sealed, got)| Err(Failure::Generation {
            sealed: Generation(sealed),
            got: Generation(got)
        })),
        any::<(u64, u64)>()
            .prop_map(|(sealed, got)| Err(Failure::Epoch { sealed: Epoch(sealed), got: Epoch(got) })),
        any::<u32>().prop_map(|offset| Err(Failure::Corrupt { offset })),
        any::<u32>().prop_map(|left_ms| Err(Failure::Granted { left_ms })),
        proptest::sample::select(vec![
            Err(Failure::Deleted),
            Err(Failure::NoSpace),
            Err(Failure::DiskFailed),
            Err(Failure::NoSuchDisk),
            Err(Failure::Invalid),
            Err(Failure::Busy),
        ]),
    ]
}

fn frames() -> impl Strategy<Value = Frame> {
    prop_oneof![
        (any::<u64>(), requests()).prop_map(|(id, request)| Frame::Request { id, request }),
        (any::<u64>(), replies()).prop_map(|(id, reply)| Frame::Reply { id, reply }),
        Just(Frame::Alive),
    ]
}

proptest! {
    /// Guards the codec: any frames, cut anywhere in sending and in receiving, come out as they went in.
    #[test]
    fn round_trip(
        frames in proptest::collection::vec(frames(), 1..8),
        send in proptest::collection::vec(1usize..200, 1..8),
        receive in proptest::collection::vec(1usize..200, 1..8),
    ) {
        let mut out = Outgoing::new();
        for frame in &frames {
            match frame {
                Frame::Request { id, request } => out.request(*id, request).unwrap(),
                Frame::Reply { id, reply } => out.reply(*id, reply).unwrap(),
                Frame::Alive => out.alive().unwrap(),
                Frame::Hello(_) | Frame::HelloAck(_) => unreachable!("not generated"),
            }
        }
        let mut stream = BytesMut::new();
        for len in send.iter().cycle() {
            if !out.has_remaining() {
                break;
            }
            let len = (*len).min(out.chunk().len());
            stream.put_slice(&out.chunk()[..len]);
            out.advance(len);
        }
        let mut decoder = greeted();
        let mut decoded = Vec::new();
        for len in receive.iter().cycle() {
            if stream.is_empty() {
                break;
            }
            decoder.push(&stream.split_to((*len).min(stream.len())));
            while let Some(frame) = decoder.next_frame().unwrap() {
                decoded.push(frame);
            }
        }
        prop_assert!(!decoder.is_mid_frame());
        prop_assert_eq!(decoded, frames);
    }

    /// Guards against panics on what a peer sends: any bytes are a frame or an error.
    #[test]
    fn garbage_is_an_error(bytes in proptest::collection::vec(any::<u8>(), 48..400)) {
        let mut decoder = Decoder::new();
        decoder.push(&bytes);
        prop_assert!(decoder.next_frame().is_err());
    }

    /// Guards against panics behind the checksums: a body of any bytes is a frame or an error.
    #[test]
    fn any_body_is_a_frame_or_an_error(
        kind in prop_oneof![Just(3u8), 16u8..34, 128u8..144], status in 0u8..13,
        body in proptest::collection::vec(prop_oneof![4 => Just(0u8), 1 => any::<u8>()], 0..80),
    ) {
        let Some(kind) = header::Kind::from_code(kind) else { return Ok(()) };
        let header = header::Header {
            kind, status, body_len: body.len() as u32, data_len: 0, id: 1, epoch: 0, disk: 0,
            body_crc: crc32c(&body), data_crc: 0,
        };
        let mut decoder = greeted();
        decoder.push(&header.encode());
        decoder.push(&body);
        if let Ok(frame) = decoder.next_frame() {
            prop_assert!(frame.is_some());
        }
    }
}

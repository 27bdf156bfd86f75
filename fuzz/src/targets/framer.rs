//! The PDU framer: any bytes in any pieces, digests, additional header segments.

use bytes::{Bytes, BytesMut};
use lunette_proto::iscsi::initiator::{
    DataOut, LoginRequest, LogoutRequest, NopOut, ScsiCommand, Snack, TaskManagement, TextRequest,
};
use lunette_proto::iscsi::{Ahs, BHS_BYTES, Bhs, Encoder, FrameError, Framer, Pdu, Reply, Request, padding};

use crate::Input;

const LIMITS: [u32; 5] = [8192, 512, 0, 262_144, (1 << 24) - 1];

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let how = input.u8();
    let framer = Framer {
        data_bytes_max: input.pick(&LIMITS),
        header_digest: how & 1 != 0,
        data_digest: how & 2 != 0,
    };
    let steps: [u8; 4] = [input.u8(), input.u8(), input.u8(), input.u8()];
    if how & 4 == 0 {
        anything(&framer, steps, input.rest());
    } else {
        damaged(&framer, steps, input);
    }
}

/// Any stream is framed the same in whatever pieces it comes.
fn anything(framer: &Framer, steps: [u8; 4], stream: &[u8]) {
    let whole = frame(framer, [0; 4], stream);
    assert_eq!(frame(framer, steps, stream), whole);
    let mut at = 0;
    for pdu in &whole.0 {
        let len = check(framer, pdu, &stream[at..]);
        at += len;
    }
    assert_eq!(stream.len() - at, whole.1, "nothing is lost");
}

/// A stream of sound PDUs of which one byte is changed: with digests nothing wrong passes for right.
fn damaged(framer: &Framer, steps: [u8; 4], mut input: Input<'_>) {
    let (at, change) = (usize::from(input.u16()), input.u8());
    let mut stream = Vec::new();
    let mut sent = Vec::new();
    let mut encoder = encoder(framer);
    while !input.is_empty() && sent.len() < 16 {
        let mut bhs = Bhs::new(0);
        let head = input.short();
        let len = head.len().min(BHS_BYTES);
        bhs.0[..len].copy_from_slice(&head[..len]);
        let ahs: Vec<u8> = input.short().iter().copied().chain([0; 3]).collect();
        let ahs = &ahs[..ahs.len() / 4 * 4];
        let data = Bytes::copy_from_slice(input.short());
        if data.len() > framer.data_bytes_max as usize {
            continue;
        }
        let mut slices: Vec<Bytes> = Vec::new();
        let middle = data.len() / 2;
        let parts = [data.slice(..middle), data.slice(middle..)];
        let len = encoder.encode(bhs, ahs, &parts, &mut slices);
        assert_eq!(len, slices.iter().map(Bytes::len).sum::<usize>());
        bhs.set_ahs_bytes(ahs.len());
        bhs.set_data_bytes(u32::try_from(data.len()).expect("it is short"));
        let begin = stream.len();
        stream.extend(slices.concat());
        sent.push((begin, Pdu { bhs, ahs: Bytes::copy_from_slice(ahs), data, data_is_sound: true }));
    }
    let whole = change == 0 || at >= stream.len();
    if !whole {
        stream[at] ^= change;
    }
    let (received, left, error) = frame(framer, steps, &stream);
    if whole {
        assert_eq!((left, error), (0, None));
        assert!(received.iter().eq(sent.iter().map(|(_, pdu)| pdu)));
        return;
    }
    let hit = sent.iter().rposition(|(begin, _)| *begin <= at).expect("the first begins at 0");
    let before = received.iter().zip(&sent).take(hit);
    assert!(before.clone().count() == hit && before.clone().all(|(got, (_, sent))| got == sent));
    let (begin, pdu) = &sent[hit];
    let header = BHS_BYTES + pdu.ahs.len() + if framer.header_digest { 4 } else { 0 };
    match received.get(hit) {
        Some(got) if at - begin < header => assert!(!framer.header_digest, "{got:?}"),
        Some(got) if framer.data_digest => assert!(!got.data_is_sound && got.bhs == pdu.bhs),
        Some(got) => assert!(got.bhs == pdu.bhs && got.data.len() == pdu.data.len()),
        None => assert!(at - begin < header),
    }
}

/// What comes of a stream: PDUs, bytes that are left, why it ended.
fn frame(framer: &Framer, steps: [u8; 4], stream: &[u8]) -> (Vec<Pdu>, usize, Option<FrameError>) {
    let mut buffer = BytesMut::new();
    let (mut at, mut turn) = (0, 0);
    let mut pdus = Vec::new();
    loop {
        match framer.next(&mut buffer) {
            Ok(Some(pdu)) => {
                pdus.push(pdu);
                continue;
            }
            Ok(None) => {}
            Err(error) => {
                assert_eq!(framer.missing(&buffer), 0);
                assert_eq!(framer.next(&mut buffer), Err(error), "an error stays");
                return (pdus, stream.len() - at + buffer.len(), Some(error));
            }
        }
        let missing = framer.missing(&buffer);
        assert!(missing > 0, "more is needed");
        if at == stream.len() {
            return (pdus, buffer.len(), None);
        }
        let step = match usize::from(steps[turn % steps.len()]) {
            0 => stream.len(),
            // Not enough: nothing must come of it.
            255 => missing.saturating_sub(1).max(1),
            254 => missing,
            step => step,
        };
        turn += 1;
        let end = stream.len().min(at + step);
        buffer.extend_from_slice(&stream[at..end]);
        if end - at < missing {
            let early = framer.next(&mut buffer.clone());
            assert!(!matches!(early, Ok(Some(_))), "less than what is missing is no PDU");
        }
        at = end;
    }
}

fn encoder(framer: &Framer) -> Encoder {
    let mut encoder = Encoder::default();
    (encoder.header_digest, encoder.data_digest) = (framer.header_digest, framer.data_digest);
    encoder
}

/// What was received is what is sent again; gives its bytes in the stream.
fn check(framer: &Framer, pdu: &Pdu, stream: &[u8]) -> usize {
    assert!(pdu.data.len() <= framer.data_bytes_max as usize);
    let mut slices: Vec<Bytes> = Vec::new();
    let len = encoder(framer).encode(pdu.bhs, &pdu.ahs, std::slice::from_ref(&pdu.data), &mut slices);
    let pad = padding(pdu.data.len());
    if pdu.data_is_sound && !framer.data_digest && pad == 0 {
        assert_eq!(slices.concat(), stream[..len]);
    }
    let request = Request::decode(&pdu.bhs);
    if let Some(again) = encode(&request) {
        assert_eq!(Request::decode(&again), request);
    }
    let _ = Reply::decode(&pdu.bhs);
    if let Ok(ahs) = Ahs::parse(&pdu.ahs)
        && let Some(cdb) = ahs.extended_cdb
    {
        let again = Ahs::parse(&Ahs::extended_cdb_segment(&cdb)).expect("it is one segment");
        assert_eq!(again.extended_cdb, Some(cdb));
    }
    len
}

fn encode(request: &Request) -> Option<Bhs> {
    Some(match request {
        Request::NopOut(pdu) => NopOut::encode(pdu),
        Request::ScsiCommand(pdu) => ScsiCommand::encode(pdu),
        Request::TaskManagement(pdu) => TaskManagement::encode(pdu),
        Request::Login(pdu) => LoginRequest::encode(pdu),
        Request::Text(pdu) => TextRequest::encode(pdu),
        Request::DataOut(pdu) => DataOut::encode(pdu),
        Request::Logout(pdu) => LogoutRequest::encode(pdu),
        Request::Snack(pdu) => Snack::encode(pdu),
        Request::Unknown(_) => return None,
    })
}

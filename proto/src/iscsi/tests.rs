//! Any bytes, any chunking: an error, or values that encode to the same bytes.

use bytes::{BufMut, Bytes, BytesMut};
use proptest::prelude::*;

use super::initiator::{
    DataOut, LoginRequest, LogoutRequest, NopOut, ScsiCommand, Snack, TaskManagement, TextRequest,
};
use super::target::{
    AsyncMessage, DataIn, LoginResponse, LogoutResponse, NopIn, Numbers, R2t, Reject, ScsiResponse,
    TaskManagementResponse, TextResponse,
};
use super::*;

/// Encodes with the digests of `framer`.
fn encode(framer: &Framer, bhs: Bhs, ahs: &[u8], data: &Bytes) -> BytesMut {
    let mut encoder = Encoder::default();
    encoder.header_digest = framer.header_digest;
    encoder.data_digest = framer.data_digest;
    let mut slices: Vec<Bytes> = Vec::new();
    let len =
        encoder.encode(bhs, ahs, &[data.slice(..data.len() / 2), data.slice(data.len() / 2..)], &mut slices);
    let mut wire = BytesMut::new();
    for slice in slices {
        wire.put(slice);
    }
    assert_eq!(wire.len(), len);
    wire
}

proptest! {
    /// Guards the round trip of whole PDUs under all digest settings and any chunking.
    #[test]
    fn framed(
        headers in prop::collection::vec((any::<[u8; 32]>(), 0usize..4, prop::collection::vec(any::<u8>(), 0..70)), 1..6),
        header_digest: bool,
        data_digest: bool,
        chunk in 1usize..90,
    ) {
        let framer = Framer { data_bytes_max: 70, header_digest, data_digest };
        let mut wire = BytesMut::new();
        let mut sent = Vec::new();
        for (seed, ahs_words, data) in headers {
            let mut bhs = Bhs([0; BHS_BYTES]);
            bhs.0[16..].copy_from_slice(&seed);
            bhs.0[..4].copy_from_slice(&seed[..4]);
            let (ahs, data) = (Bytes::from(vec![7; ahs_words * 4]), Bytes::from(data));
            wire.unsplit(encode(&framer, bhs, &ahs, &data));
            bhs.set_ahs_bytes(ahs.len());
            bhs.set_data_bytes(data.len() as u32);
            sent.push(Pdu { bhs, ahs, data, data_is_sound: true });
        }
        let mut buffer = BytesMut::new();
        let mut got = Vec::new();
        for part in wire.chunks(chunk) {
            buffer.extend_from_slice(part);
            while let Some(pdu) = framer.next(&mut buffer).unwrap() {
                got.push(pdu);
            }
        }
        prop_assert!(buffer.is_empty());
        prop_assert_eq!(got, sent);
    }

    /// Guards against panics and desynchronisation: whatever is framed encodes to the bytes it came from.
    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400), header_digest: bool, data_digest: bool, limit in 0u32..300) {
        let framer = Framer { data_bytes_max: limit, header_digest, data_digest };
        let mut buffer = BytesMut::from(&bytes[..]);
        let mut at = 0;
        while let Ok(Some(pdu)) = framer.next(&mut buffer) {
            prop_assert!(pdu.data.len() <= limit as usize);
            let end = bytes.len() - buffer.len();
            if pdu.data_is_sound {
                let again = encode(&framer, pdu.bhs, &pdu.ahs, &pdu.data);
                let pad = padding(pdu.data.len());
                let body = again.len() - pad - if data_digest && !pdu.data.is_empty() { 4 } else { 0 };
                prop_assert_eq!(&again[..body], &bytes[at..at + body]);
                prop_assert_eq!(again.len(), end - at);
            }
            let _ = Ahs::parse(&pdu.ahs);
            at = end;
        }
    }

    /// Guards each PDU's fields: any header decodes, and what was decoded survives a round trip.
    #[test]
    fn fields(bytes: [u8; 48]) {
        let bhs = Bhs(bytes);
        macro_rules! check {
            ($($pdu:ident),*) => {$(
                let value = $pdu::decode(&bhs);
                let encoded = value.encode();
                prop_assert_eq!(encoded.opcode(), $pdu::OPCODE);
                prop_assert_eq!($pdu::decode(&encoded), value);
            )*};
        }
        check!(NopOut, ScsiCommand, TaskManagement, LoginRequest, TextRequest, DataOut, LogoutRequest, Snack);
        check!(NopIn, ScsiResponse, TaskManagementResponse, LoginResponse, TextResponse, DataIn, LogoutResponse,
            R2t, AsyncMessage, Reject);
        let numbers = Numbers::decode(&bhs);
        let mut stamped = Bhs::new(0);
        numbers.stamp(&mut stamped);
        prop_assert_eq!(Numbers::decode(&stamped), numbers);
        let _ = (Request::decode(&bhs), Reply::decode(&bhs));
    }

    /// Guards text: any bytes give an error or pairs that write the same text again.
    #[test]
    fn any_text(bytes in prop::collection::vec(prop_oneof![Just(0u8), Just(b'='), any::<u8>(), b'A'..=b'z'], 0..200)) {
        if let Ok(pairs) = text::parse(&bytes) {
            let mut again = BytesMut::new();
            for (key, value) in &pairs {
                text::push(&mut again, key, value);
            }
            prop_assert_eq!(text::parse(&again).unwrap(), pairs);
        }
    }
}

/// Guards the field positions against the figures of RFC 7143 11.3 and 11.8, byte by byte.
#[test]
fn figures() {
    let command = ScsiCommand {
        immediate: true,
        is_final: true,
        read: true,
        write: false,
        attribute: 1,
        lun: 0x0001_0000_0000_0000,
        task_tag: 0x1011_1213,
        expected_len: 0x2021_2223,
        cmd_sn: Serial(0x3031_3233),
        exp_stat_sn: Serial(0x4041_4243),
        cdb: [0x28, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
    };
    let mut expected = vec![0x41, 0xc1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    expected.extend([
        0x10, 0x11, 0x12, 0x13, 0x20, 0x21, 0x22, 0x23, 0x30, 0x31, 0x32, 0x33, 0x40, 0x41, 0x42, 0x43,
    ]);
    expected.extend([0x28, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
    assert_eq!(command.encode().0[..], expected[..]);

    let r2t = R2t { lun: 2, task_tag: 3, transfer_tag: 4, r2t_sn: Serial(5), offset: 6, desired_len: 7 };
    let mut bhs = r2t.encode();
    Numbers { stat_sn: Serial(8), exp_cmd_sn: Serial(9), max_cmd_sn: Serial(10) }.stamp(&mut bhs);
    let words: Vec<u32> = bhs.0.chunks(4).map(|word| u32::from_be_bytes(word.try_into().unwrap())).collect();
    assert_eq!(words, [0x3180_0000, 0, 0, 2, 3, 4, 8, 9, 10, 5, 6, 7]);
}

/// Guards the bound: a length beyond the limit is refused from the header alone.
#[test]
fn too_long() {
    let mut bhs = Bhs::new(5);
    bhs.set_data_bytes(8193);
    let mut buffer = BytesMut::from(&bhs.0[..]);
    let limit = 8192;
    assert_eq!(Framer::new(limit).next(&mut buffer), Err(FrameError::TooLong { len: 8193, limit }));
}

/// Guards both digests: one flipped bit in the header ends the stream, one in the data or its padding is reported.
#[test]
fn digests() {
    let framer = Framer { data_bytes_max: 64, header_digest: true, data_digest: true };
    let data = Bytes::from_static(b"12345");
    let wire = encode(&framer, Bhs::new(5), &[], &data);
    for bit in 0..wire.len() * 8 {
        let mut bent = wire.clone();
        bent[bit / 8] ^= 1 << (bit % 8);
        let result = framer.next(&mut bent);
        match bit / 8 {
            // The length of the AHS moves the place of the digest: more is waited for.
            4 => {
                assert_eq!(result, if bit % 8 == 0 { Err(FrameError::HeaderDigest) } else { result.clone() })
            }
            0..52 => assert_eq!(result, Err(FrameError::HeaderDigest)),
            _ => assert!(!result.unwrap().unwrap().data_is_sound),
        }
    }
}

/// Guards the hint: never more than what makes the PDU whole.
#[test]
fn missing() {
    let framer = Framer { data_bytes_max: 64, header_digest: true, data_digest: true };
    let wire = encode(&framer, Bhs::new(5), &[0; 8], &Bytes::from_static(b"12345"));
    for have in 0..wire.len() {
        let missing = framer.missing(&wire[..have]);
        assert!(missing > 0);
        assert!(have + missing <= wire.len());
    }
    assert_eq!(framer.missing(&wire), 0);
}

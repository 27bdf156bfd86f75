//! The node protocol's decoder: any stream in any pieces, and frames whose checksums are right.

use bytes::{Buf, Bytes};
use lunette_proto::checksum::crc32c;
use lunette_proto::node::frame::{
    Decoder, Frame, FrameError, GREETING_VERSION, HEADER_BYTES, Outgoing, PROTOCOL_VERSION,
};

use crate::Input;

/// Kinds of frames, and some that are none. An input names a kind by its place here, so new ones come at the end.
const KINDS: [u8; 32] = [
    1, 2, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 128, 129, 130, 131, 132, 133, 134, 143, 0,
    15, 255, 31, 30, 135, 3, 32,
];

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let how = input.u8();
    let steps: [u8; 2] = [input.u8(), input.u8()];
    let stream = if how & 1 == 0 { sealed(input) } else { input.rest().to_vec() };
    let whole = decode([0; 2], &stream);
    assert_eq!(decode(steps, &stream), whole);
    let mut out = Outgoing::new();
    for frame in &whole.0 {
        let encoded = match frame {
            Frame::Hello(hello) => out.hello(hello),
            Frame::HelloAck(ack) => out.hello_ack(ack),
            Frame::Alive => out.alive(),
            Frame::Request { id, request } => out.request(*id, request),
            Frame::Reply { id, reply } => out.reply(*id, reply),
        };
        encoded.expect("what was received can be sent");
    }
    let again = out.copy_to_bytes(out.remaining());
    assert_eq!(decode(steps, &again).0, whole.0);
    // A greeting may say more than this version of the protocol asks for; nothing else may.
    if whole.0.len() > 1 {
        let (again, stream) = (after_first(&again), after_first(&stream));
        assert_eq!(again, &stream[..again.len()], "there is one way to write a frame");
    }
}

fn after_first(stream: &[u8]) -> &[u8] {
    let len =
        |at: usize| u32::from_le_bytes([stream[at], stream[at + 1], stream[at + 2], stream[at + 3]]) as usize;
    &stream[HEADER_BYTES + len(8) + len(12)..]
}

/// Frames with the checksums that they ought to have.
fn sealed(mut input: Input<'_>) -> Vec<u8> {
    let mut stream = Vec::new();
    while !input.is_empty() && stream.len() < 1 << 20 {
        let kind = input.pick(&KINDS);
        let version = if kind < 3 { GREETING_VERSION } else { PROTOCOL_VERSION };
        let status = input.u8();
        let shape = input.u8();
        let body = input.short();
        // Data of many blocks is named, not given.
        let data: Vec<u8> = match shape & 3 {
            0 => Vec::new(),
            1 => input.short().to_vec(),
            2 => vec![shape; 4096 * usize::from(shape >> 4)],
            _ => input.short().repeat(usize::from(shape >> 4)),
        };
        let (id, epoch, disk) = match shape & 0x0c {
            0 => (0, 0, 0),
            4 => (input.u64(), 0, 0),
            _ => (input.u64(), input.u64(), input.u32()),
        };
        let mut header = Vec::with_capacity(HEADER_BYTES);
        header.extend_from_slice(b"LUNE");
        header.extend_from_slice(&[version, kind, status, 0]);
        header.extend_from_slice(&u32::try_from(body.len()).expect("it is short").to_le_bytes());
        header.extend_from_slice(&u32::try_from(data.len()).expect("it is short").to_le_bytes());
        header.extend_from_slice(&id.to_le_bytes());
        header.extend_from_slice(&epoch.to_le_bytes());
        header.extend_from_slice(&disk.to_le_bytes());
        header.extend_from_slice(&crc32c(body).to_le_bytes());
        header.extend_from_slice(&crc32c(&data).to_le_bytes());
        let crc = crc32c(&header);
        header.extend_from_slice(&crc.to_le_bytes());
        stream.extend(header);
        stream.extend_from_slice(body);
        stream.extend(data);
    }
    stream
}

/// What comes of a stream: frames, whether a part of one is left, why it ended.
fn decode(steps: [u8; 2], stream: &[u8]) -> (Vec<Frame>, bool, Option<FrameError>) {
    let mut decoder = Decoder::new();
    let mut frames = Vec::new();
    let mut rest = Bytes::copy_from_slice(stream);
    for turn in 0.. {
        let step = match steps[turn % steps.len()] {
            0 => rest.len(),
            step => usize::from(step) * usize::from(step),
        };
        decoder.push(&rest.split_to(step.min(rest.len())));
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(decoder.next_frame(), Err(error), "an error stays");
                    return (frames, false, Some(error));
                }
            }
        }
        if rest.is_empty() {
            break;
        }
    }
    (frames, decoder.is_mid_frame(), None)
}

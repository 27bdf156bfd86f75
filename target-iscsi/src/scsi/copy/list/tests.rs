use super::*;
use crate::scsi::sense::Sense;

const NAA: [u8; 16] = [0x60, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

fn target() -> Vec<u8> {
    let mut bytes = vec![0xE4, 0, 0, 0, 0x01, 0x03, 0, 16];
    bytes.extend(NAA);
    bytes.extend([0, 0, 0, 0, 0, 0, 2, 0]);
    bytes
}

fn segment() -> Vec<u8> {
    let mut bytes = vec![0x02, 0x02, 0, 0x18, 0, 3, 0, 4, 0, 0, 0x12, 0x34];
    bytes.extend(0x0102_0304_0506_0708u64.to_be_bytes());
    bytes.extend(0x1112_1314_1516_1718u64.to_be_bytes());
    bytes
}

fn list(targets: usize, segments: usize) -> Vec<u8> {
    let [targets_high, targets_low] = ((targets * 32) as u16).to_be_bytes();
    let mut bytes = vec![0x55, 0, targets_high, targets_low, 0, 0, 0, 0];
    bytes.extend(((segments * 28) as u32).to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(target().repeat(targets));
    bytes.extend(segment().repeat(segments));
    bytes
}

fn parse(bytes: &[u8]) -> Result<List, Sense> {
    List::parse(bytes, bytes.len() as u32)
}

/// Guards the fields: SPC-4 6.4.5.2 and 6.4.6.3, each where it is.
#[test]
fn fields() {
    let list = parse(&list(1, 1)).unwrap();
    let target = Target { at: 16, null: false, device_type: 0, naa: Some(NAA), block_bytes: 512 };
    let segment = Segment {
        source: 3,
        destination: 4,
        counts_destination: true,
        blocks: 0x1234,
        source_lba: 0x0102_0304_0506_0708,
        destination_lba: 0x1112_1314_1516_1718,
    };
    assert_eq!(list.usage, Usage::Held(0x55));
    assert_eq!((&list.targets[..], &list.segments[..]), (&[target][..], &[segment][..]));
}

/// Guards every truncation, of the list as it came and of what the CDB promised.
#[test]
fn truncations() {
    let whole = list(2, 2);
    for len in 0..whole.len() {
        assert_eq!(parse(&whole[..len]), Err(Sense::PARAMETER_LIST_LENGTH), "{len}");
        assert_eq!(List::parse(&whole[..len], whole.len() as u32), Err(Sense::PARAMETER_LIST_LENGTH));
    }
    parse(&whole).unwrap();
    // What follows the descriptors is not looked at.
    parse(&[&whole[..], &[0xFF; 9]].concat()).unwrap();
}

/// Guards LIST ID USAGE: what each value means, and which is reserved.
#[test]
fn list_identifiers() {
    let with = |id: u8, usage: u8| {
        let mut bytes = list(1, 1);
        (bytes[0], bytes[1]) = (id, usage << 3 | 0x27);
        parse(&bytes).map(|list| list.usage)
    };
    assert_eq!(with(9, 0b00), Ok(Usage::Held(9)));
    assert_eq!(with(9, 0b01), Err(Sense::parameter_bit(1, 4)));
    assert_eq!(with(9, 0b10), Ok(Usage::Discarded(9)));
    assert_eq!(with(0, 0b11), Ok(Usage::Unlisted));
    assert_eq!(with(9, 0b11), Err(Sense::parameter_field(0)));
}

/// Guards the limits: as many as there may be, one more of each, and both too many.
#[test]
fn limits() {
    parse(&list(TARGETS_MAX, SEGMENTS_MAX)).unwrap();
    assert_eq!(parse(&list(TARGETS_MAX + 1, 1)), Err(Sense::TOO_MANY_TARGETS.at_parameter(2)));
    assert_eq!(parse(&list(1, SEGMENTS_MAX + 1)), Err(Sense::TOO_MANY_SEGMENTS.at_parameter(8)));
    assert_eq!(parse(&list(TARGETS_MAX + 1, SEGMENTS_MAX + 1)), Err(Sense::PARAMETER_LIST_LENGTH));
    let mut inline = list(1, 1);
    inline[15] = 1;
    inline.push(0);
    assert_eq!(parse(&inline), Err(Sense::INLINE_DATA_LENGTH.at_parameter(12)));
    let mut huge = list(1, 1);
    huge[8..12].fill(0xFF);
    assert_eq!(parse(&huge), Err(Sense::PARAMETER_LIST_LENGTH));
}

/// Guards lists of descriptors whose lengths do not add up.
#[test]
fn lengths_within() {
    let mut torn_target = list(1, 1);
    torn_target[3] = 31;
    assert_eq!(parse(&torn_target), Err(Sense::parameter_field(2)));
    for len in [1, 4, 27, 29] {
        let mut torn_segment = list(0, 2);
        torn_segment[11] = len;
        assert_eq!(parse(&torn_segment), Err(Sense::PARAMETER_LIST_LENGTH), "{len}");
    }
    let mut descriptor_length = list(1, 2);
    descriptor_length[16 + 32 + 28 + 3] = 0x17;
    assert_eq!(parse(&descriptor_length), Err(Sense::parameter_field(16 + 32 + 28 + 2)));
    assert_eq!(parse(&list(0, 0)).map(|list| (list.targets.len(), list.segments.len())), Ok((0, 0)));
}

/// Guards the types: only E4h and 02h, and the second descriptor is pointed at.
#[test]
fn types() {
    for kind in 0..=u8::MAX {
        let mut bytes = list(2, 1);
        bytes[16 + 32] = kind;
        let want = (kind == 0xE4).then_some(()).ok_or(Sense::UNSUPPORTED_TARGET_TYPE.at_parameter(48));
        assert_eq!(parse(&bytes).map(drop), want, "{kind:02x}");
        let mut bytes = list(1, 2);
        bytes[16 + 32 + 28] = kind;
        let want = (kind == 0x02).then_some(()).ok_or(Sense::UNSUPPORTED_SEGMENT_TYPE.at_parameter(76));
        assert_eq!(parse(&bytes).map(drop), want, "{kind:02x}");
    }
}

/// Guards the fields of an identification descriptor.
#[test]
fn target_fields() {
    let with = |at: usize, byte: u8| {
        let mut bytes = list(1, 0);
        bytes[16 + at] = byte;
        parse(&bytes).map(|list| list.targets[0].clone())
    };
    for lu_id_type in [0x40, 0x80, 0xC0] {
        assert_eq!(with(1, lu_id_type), with(1, 0), "ignored");
    }
    assert!(with(1, 0x20).unwrap().null);
    assert_eq!(with(1, 0x1F).unwrap().device_type, 0x1F);
    assert_eq!(with(7, 21), Err(Sense::parameter_field(23)));
    assert_eq!(with(29, 1).unwrap().block_bytes, 0x01_0200);
    // Another code set, association, type or length: no name of a logical unit of ours.
    for (at, byte) in [(4, 0x02), (5, 0x13), (5, 0x23), (5, 0x01), (5, 0x08), (7, 8), (7, 15), (7, 17)] {
        assert_eq!(with(at, byte).unwrap().naa, None, "{at} {byte:02x}");
    }
    // PROTOCOL IDENTIFIER has no meaning for a logical unit's name.
    assert_eq!(with(4, 0x51).unwrap().naa, Some(NAA));
}

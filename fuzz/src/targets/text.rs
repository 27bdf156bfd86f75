//! Text keys: parsing, gathering over PDUs, negotiation, and what is answered.

use bytes::{Bytes, BytesMut};
use lunette_proto::iscsi::text::{self, Gather};
use lunette_target_iscsi::session::Settings;

use super::phrases::expand;
use crate::Input;

/// Longest answer that is no echo of the key: a number of 24 bits, `NotUnderstood`, a digest's name.
const ANSWER_BYTES_MAX: usize = 16;

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let how = input.u8();
    let cuts = [input.u16(), input.u16()];
    let written = if how & 1 == 0 { expand(input.rest(), 70_000) } else { input.rest().to_vec() };
    gather(&written, cuts);
    let Ok(pairs) = text::parse(&written) else { return };
    let mut again = BytesMut::new();
    for (key, value) in &pairs {
        text::push(&mut again, key, value);
    }
    assert_eq!(text::parse(&again), Ok(pairs.clone()), "what was parsed is written the same");
    negotiate(&pairs, how & 2 != 0, how & 4 != 0);
}

/// A text in three parts is the text.
fn gather(written: &[u8], cuts: [u16; 2]) {
    let whole = Bytes::copy_from_slice(written);
    let mut gather = Gather::default();
    let (first, second) = (usize::from(cuts[0]).min(whole.len()), usize::from(cuts[1]).min(whole.len()));
    let (first, second) = (first.min(second), first.max(second));
    let fits = whole.len() <= lunette_proto::limits::ISCSI_TEXT_BYTES_MAX;
    let _ = gather.take(&whole.slice(..first), true);
    let _ = gather.take(&whole.slice(first..second), true);
    match gather.take(&whole.slice(second..), false) {
        Ok(gathered) => {
            assert!(fits && gathered.as_deref() == Some(written));
            assert!(gather.is_empty());
        }
        Err(_) => assert!(!fits),
    }
}

fn negotiate(pairs: &[(&str, &str)], discovery: bool, renegotiates: bool) {
    let mut settings = Settings::default();
    let mut out = BytesMut::new();
    let mut answered = Vec::new();
    let mut has_failed = false;
    for (key, value) in pairs {
        let before = out.len();
        let result = if renegotiates {
            settings.renegotiate(key, value, &mut out)
        } else {
            settings.negotiate(key, value, discovery, &mut out)
        };
        let len = out.len() - before;
        assert!(len <= key.len() + 2 + ANSWER_BYTES_MAX, "an answer is hardly longer than the question");
        if len > 0 {
            answered.push(*key);
        }
        assert!(result.is_ok() || len == 0, "a failure answers nothing");
        has_failed = result.is_err();
        if has_failed {
            break;
        }
    }
    let answers = text::parse(&out).expect("answers are text");
    assert!(
        answers.iter().map(|(key, _)| *key).eq(answered),
        "only what was asked is answered, once and in order"
    );
    is_possible(&settings);
    is_possible(&Settings::default().within(&settings));
    is_possible(&settings.clone().within(&Settings::default()));
    if renegotiates && !has_failed {
        let mut fixed = Settings::default();
        let segment = settings.initiator_segment_bytes().to_string();
        fixed
            .renegotiate("MaxRecvDataSegmentLength", &segment, &mut BytesMut::new())
            .expect("it is possible");
        assert_eq!(fixed, settings, "nothing else changes after the login");
    }
}

/// The ranges of RFC 7143 section 13.
fn is_possible(settings: &Settings) {
    let lengths = 512..=(1 << 24) - 1;
    assert!(lengths.contains(&settings.initiator_segment_bytes()));
    assert!(lengths.contains(&settings.max_burst_bytes()));
    assert!(lengths.contains(&settings.first_burst_bytes()));
    assert!(settings.first_burst_bytes() <= settings.max_burst_bytes());
    assert!((1..=65_535).contains(&settings.outstanding_r2t_max()));
    assert!(settings.time2wait() <= 3600);
}

//! The login phase: any sequence of PDUs, against targets with and without authentication.

pub(crate) mod chap;
mod gateway;

use lunette_proto::iscsi::Bhs;
use lunette_proto::iscsi::codes::login as status;
use lunette_proto::iscsi::initiator::LoginRequest;
use lunette_proto::iscsi::target::LoginResponse;
use lunette_proto::iscsi::text;

use self::gateway::{Answer, Gateway, Policy};
use super::phrases::expand;
use crate::Input;

/// PDUs of one input.
const PDUS_MAX: usize = 12;
const ISID: [u8; 6] = [0x80, 0, 0, 0, 0, 1];

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut gateway = Gateway::new(Policy::of(input.u8(), input.u8()));
    let grants = input.u8() & 1 == 0;
    for turn in 0..PDUS_MAX {
        if input.is_empty() || gateway.is_closed() {
            break;
        }
        let (request, bhs, text) = pdu(&mut input, &mut gateway, turn);
        let step = input.u8();
        let answers = gateway.send(bhs, &text, step.into(), grants);
        check(&request, &bhs, &answers, &gateway);
        if gateway.is_established() {
            return;
        }
    }
    if let Some(claim) = gateway.claimed() {
        assert!(gateway.may_claim(claim), "not proven, or not admitted: {claim:?}");
    }
}

/// A Login Request that is mostly right, with what its sender meant.
fn pdu(input: &mut Input<'_>, gateway: &mut Gateway, turn: usize) -> (LoginRequest, Bhs, Vec<u8>) {
    let (stages, odd) = (input.u8(), input.u8());
    let mut request = LoginRequest {
        immediate: true,
        transit: stages & 0x80 != 0,
        continued: stages & 0x40 != 0,
        stage: stages >> 2 & 3,
        next_stage: stages & 3,
        isid: ISID,
        task_tag: 9,
        cid: 1,
        ..LoginRequest::default()
    };
    let mut written = expand(input.short(), 8192);
    if stages & 0x10 != 0 {
        written.extend(gateway.proof());
    }
    if stages & 0x20 != 0 {
        // As long as a PDU may be, and a bit longer.
        written.resize(8190 + usize::from(odd & 7), b'x');
    }
    let mut bhs = request.encode();
    // Mostly nothing is odd, so that a login gets anywhere.
    if odd >= 0xC0 {
        match odd & 7 {
            0 => request.version_min = 1,
            1 => request.isid[5] = input.u8(),
            2 => request.tsih = input.u16(),
            3 => request.cid = input.u16(),
            4 => request.task_tag = input.u32(),
            _ => {}
        }
        bhs = request.encode();
        if odd & 7 > 4 {
            for _ in 0..(odd & 7) - 4 {
                let at = usize::from(input.u8()) % bhs.0.len();
                bhs.0[at] = input.u8();
            }
            request = LoginRequest::decode(&bhs);
        }
    }
    // The first request needs to say who it is of; this costs no input.
    if turn == 0 && odd & 0x20 != 0 {
        let names = b"InitiatorName=iqn.2026-11.org.example:host\0TargetName=iqn.2026-11.io.lunette:disk\0";
        written.splice(0..0, names.iter().copied());
        written.truncate(8192);
    }
    (request, bhs, written)
}

fn check(request: &LoginRequest, bhs: &Bhs, answers: &[Answer], gateway: &Gateway) {
    let [answer] = answers else {
        // What is no login request, or is longer than was declared, or not all there, is not answered.
        assert!(answers.is_empty(), "a request is answered once");
        assert!(gateway.is_closed() || bhs.opcode() == LoginRequest::OPCODE, "{bhs:?}");
        return;
    };
    let LoginResponse { transit, continued, stage, next_stage, isid, task_tag, status, .. } = answer.response;
    assert!(!continued && answer.text.len() <= 8192);
    assert!(
        [
            status::SUCCESS,
            status::INITIATOR_ERROR,
            status::AUTHENTICATION,
            status::AUTHORIZATION,
            status::NOT_FOUND,
            status::VERSION,
            status::MISSING_PARAMETER,
            status::SESSION_TYPE,
            status::NO_SESSION,
            status::OUT_OF_RESOURCES,
            status::UNAVAILABLE,
            status::TOO_MANY_CONNECTIONS
        ]
        .contains(&status),
        "{status:04x}"
    );
    assert_eq!(gateway.is_closed(), status != status::SUCCESS);
    assert_eq!((isid, task_tag), (request.isid, request.task_tag));
    if status != status::SUCCESS {
        assert!(answer.text.is_empty() && !transit);
        return;
    }
    let pairs = text::parse(&answer.text).expect("answers are text");
    assert_eq!(stage, request.stage);
    assert!(!transit || request.transit && next_stage == request.next_stage);
    assert!(!request.continued || pairs.is_empty() && !transit, "more is to come");
    assert_eq!(gateway.is_established(), transit && next_stage == 3);
    assert!(!answer.shows(gateway::SECRETS), "a secret was sent");
}

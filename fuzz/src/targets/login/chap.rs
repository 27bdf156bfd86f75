//! CHAP: every encoding of every key, against a second opinion of what is right.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use lunette_proto::iscsi::codes::login as status;
use lunette_proto::iscsi::initiator::LoginRequest;
use lunette_proto::iscsi::text;
use lunette_proto::map::{Chap, ChapAlgorithm};
use lunette_target_iscsi::session::chap_response;

use super::ISID;
use super::gateway::{Answer, Asked, DISK, Gateway, Policy, SECRETS, TARGET_USER, USER, hex, unhex};
use crate::Input;
use crate::targets::phrases::expand;

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let kind = input.u8();
    let policy = Policy::of(kind | u8::from(kind & 3 == 0), input.u8());
    let policy = Policy { discovery_chap: None, draining: false, ..policy };
    let chap = policy.chap.clone().expect("it is asked for");
    let mut gateway = Gateway::new(policy);
    let first = format!("InitiatorName=iqn.2026-11.org.example:host\0TargetName={DISK}\0AuthMethod=CHAP\0");
    assert_eq!(send(&mut gateway, first.as_bytes()).response.status, status::SUCCESS);
    let Some(asked) = algorithm(&mut gateway, &chap, &mut input) else { return };
    let keys = keys(&asked, &mut input);
    let expected = judge(&keys, &asked, &chap);
    let answer = send(&mut gateway, &keys);
    assert_eq!(answer.response.status == status::SUCCESS, expected.is_some(), "{}", show(&keys));
    let Some(proof) = expected else {
        assert!([status::AUTHENTICATION, status::INITIATOR_ERROR].contains(&answer.response.status));
        return;
    };
    assert_eq!(text::parse(&answer.text), text::parse(proof.as_bytes()));
}

/// Sends keys of the security stage.
fn send(gateway: &mut Gateway, keys: &[u8]) -> Answer {
    let request =
        LoginRequest { immediate: true, isid: ISID, task_tag: 9, cid: 1, ..LoginRequest::default() };
    let mut answers = gateway.send(request.encode(), keys, 0, true);
    assert_eq!(answers.len(), 1, "{}", show(keys));
    answers.remove(0)
}

/// Offers algorithms; gives the challenge, if there is one in common.
fn algorithm(gateway: &mut Gateway, chap: &Chap, input: &mut Input<'_>) -> Option<Asked> {
    let length = input.u8();
    let offers = if length == 0 {
        String::from("7,6,8,5")
    } else {
        let letters = input.bytes(usize::from(length & 0x3F)).iter();
        letters.map(|byte| char::from(b"0123456789,, x5678"[usize::from(*byte) % 18])).collect()
    };
    let answer = send(gateway, format!("CHAP_A={offers}\0").as_bytes());
    let list: Vec<&str> = offers.split(',').collect();
    let number = |algorithm: &&ChapAlgorithm| list.contains(&&*algorithm.number().to_string());
    let chosen = chap.algorithms.iter().find(number).filter(|_| list.len() <= 16);
    assert_eq!(answer.response.status == status::SUCCESS, chosen.is_some(), "{offers}");
    let asked = gateway.asked.clone();
    assert_eq!(asked.as_ref().map(|asked| asked.algorithm), chosen.copied());
    assert!(asked.as_ref().is_none_or(|asked| asked.challenge.len() == 32));
    asked
}

/// The keys that are sent back, right or not.
fn keys(asked: &Asked, input: &mut Input<'_>) -> Vec<u8> {
    let right = chap_response(asked.algorithm, asked.id, SECRETS[0].as_bytes(), &asked.challenge);
    let mut keys = Vec::new();
    for _ in 0..6 {
        match input.u8() & 15 {
            0 | 1 => keys.extend(format!("CHAP_N={USER}\0").bytes()),
            2 => keys.extend([b"CHAP_N=", &expand(input.short(), 600)[..], b"\0"].concat()),
            3..=6 => {
                let value = changed(right.clone(), input);
                keys.extend(format!("CHAP_R={}\0", encode(&value, input)).bytes());
            }
            7 => keys.extend([b"CHAP_R=", &expand(input.short(), 6000)[..], b"\0"].concat()),
            8 => keys.extend(format!("CHAP_I={}\0", input.u8()).bytes()),
            9 => keys.extend([b"CHAP_I=", &expand(input.short(), 600)[..], b"\0"].concat()),
            10 => {
                let value = changed(asked.challenge.clone(), input);
                keys.extend(format!("CHAP_C={}\0", encode(&value, input)).bytes());
            }
            11 => {
                let value = vec![input.u8(); usize::from(input.u16() & 0x7FF)];
                keys.extend(format!("CHAP_C={}\0", encode(&value, input)).bytes());
            }
            12 => keys.extend([b"CHAP_C=", &expand(input.short(), 6000)[..], b"\0"].concat()),
            13 => keys.extend(expand(input.short(), 600)),
            _ => break,
        }
    }
    keys.truncate(8192);
    keys
}

/// The bytes as they are, or not quite.
fn changed(mut bytes: Vec<u8>, input: &mut Input<'_>) -> Vec<u8> {
    match input.u8() & 7 {
        0 => {
            let at = usize::from(input.u8()) % bytes.len();
            bytes[at] ^= input.u8();
        }
        1 => bytes.truncate(input.u8().into()),
        2 => bytes.extend(input.short()),
        3 => bytes.insert(0, 0),
        _ => {}
    }
    bytes
}

fn encode(bytes: &[u8], input: &mut Input<'_>) -> String {
    let how = input.u8();
    match how & 7 {
        0 | 1 => format!("0x{}", hex(bytes)),
        2 => format!("0X{}", hex(bytes).to_uppercase()),
        3 => format!("0x{}", hex(bytes).trim_start_matches('0')),
        4 | 5 => format!("0b{}", STANDARD.encode(bytes)),
        6 => format!("0B{}", STANDARD.encode(bytes)),
        _ => format!("0b{}", STANDARD_NO_PAD.encode(bytes)),
    }
}

/// What the target must answer to these keys; `None`: the login fails.
fn judge(keys: &[u8], asked: &Asked, chap: &Chap) -> Option<String> {
    let pairs = text::parse(keys).ok()?;
    // What is no key of authentication has no part in it.
    let (keys, others): (Vec<_>, Vec<_>) =
        pairs.into_iter().partition(|(key, _)| *key == "AuthMethod" || key.starts_with("CHAP_"));
    if keys.is_empty() || chap.initiator.secret.0.is_empty() {
        // Nothing was proven, and nothing refused: the target still waits. Or nothing can be proven.
        return keys.is_empty().then(|| answers(&others, String::new())).flatten();
    }
    let find = |wanted: &str| keys.iter().find(|(key, _)| *key == wanted).map(|(_, value)| *value);
    let known = ["CHAP_N", "CHAP_R", "CHAP_I", "CHAP_C"];
    if keys.iter().any(|(key, _)| !known.contains(key))
        || known.iter().any(|name| keys.iter().filter(|(key, _)| key == name).count() > 1)
    {
        return None;
    }
    let right = chap_response(asked.algorithm, asked.id, SECRETS[0].as_bytes(), &asked.challenge);
    if find("CHAP_N")? != USER || decode(find("CHAP_R")?)? != right {
        return None;
    }
    let proof = match (find("CHAP_I"), find("CHAP_C")) {
        (None, None) => String::new(),
        (Some(id), Some(challenge)) => {
            let credential = chap.target.as_ref()?;
            let challenge = decode(challenge).filter(|bytes| (1..=1024).contains(&bytes.len()))?;
            if challenge == asked.challenge || credential.secret == chap.initiator.secret {
                return None;
            }
            let response = chap_response(asked.algorithm, byte(id)?, &credential.secret.0, &challenge);
            format!("CHAP_N={TARGET_USER}\0CHAP_R=0x{}\0", hex(&response))
        }
        _ => return None,
    };
    answers(&others, proof)
}

/// What is answered to keys that are out of place here, and then `proof`.
fn answers(others: &[(&str, &str)], proof: String) -> Option<String> {
    let mut answers = String::new();
    for (key, value) in others {
        match *key {
            "InitiatorName" if value.to_lowercase() != "iqn.2026-11.org.example:host" => return None,
            "TargetName" if !value.eq_ignore_ascii_case(DISK) => return None,
            "SessionType" if *value == "Discovery" => return None,
            "InitiatorName" | "TargetName" | "SessionType" | "InitiatorAlias" => {}
            // May be renegotiated later, so it is no key of the login's alone.
            "MaxRecvDataSegmentLength" => answers += "MaxRecvDataSegmentLength=NotUnderstood\0",
            key if OPERATIONAL.contains(&key) => answers += &format!("{key}=Reject\0"),
            key => answers += &format!("{key}=NotUnderstood\0"),
        }
    }
    Some(answers + &proof)
}

const OPERATIONAL: [&str; 19] = [
    "HeaderDigest",
    "DataDigest",
    "MaxConnections",
    "InitialR2T",
    "ImmediateData",
    "MaxBurstLength",
    "FirstBurstLength",
    "DefaultTime2Wait",
    "DefaultTime2Retain",
    "MaxOutstandingR2T",
    "DataPDUInOrder",
    "DataSequenceInOrder",
    "ErrorRecoveryLevel",
    "TaskReporting",
    "iSCSIProtocolLevel",
    "IFMarker",
    "OFMarker",
    "IFMarkInt",
    "OFMarkInt",
];

/// A binary value (RFC 7143 6.1).
fn decode(value: &str) -> Option<Vec<u8>> {
    if let Some(digits) = value.strip_prefix("0x").or_else(|| value.strip_prefix("0X")) {
        return unhex(digits);
    }
    let digits = value.strip_prefix("0b").or_else(|| value.strip_prefix("0B"))?;
    STANDARD.decode(digits).ok()
}

/// A number of one byte.
fn byte(value: &str) -> Option<u8> {
    let (digits, radix) = match value.strip_prefix("0x").or_else(|| value.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None => (value, 10),
    };
    let number = digits.chars().try_fold(0u64, |sum, digit| {
        Some(sum.saturating_mul(radix.into()).saturating_add(digit.to_digit(radix)?.into()))
    });
    number.filter(|_| !digits.is_empty()).and_then(|number| u8::try_from(number).ok())
}

fn show(keys: &[u8]) -> String {
    String::from_utf8_lossy(keys).replace('\0', "\n")
}

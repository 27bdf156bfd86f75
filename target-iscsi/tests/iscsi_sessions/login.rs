//! Login: stages, keys, refusals (RFC 7143 sections 6 and 13).

use std::time::Duration;

use lunette_proto::iscsi::Reply;
use lunette_proto::iscsi::initiator::{LoginRequest, LogoutRequest, NopOut, TextRequest};
use lunette_proto::map::Acl;

use crate::bed::{Bed, IQN};
use crate::initiator::{INITIATOR, Initiator, keys};

const WHO: &[(&str, &str)] = &[("InitiatorName", INITIATOR), ("TargetName", IQN), ("SessionType", "Normal")];

fn fresh() -> (Bed, Initiator) {
    let mut bed = Bed::new();
    let host = Initiator::new(bed.connect());
    (bed, host)
}

/// Guards the path of open-iscsi: security, operational, full feature, with all its keys.
#[test]
fn all_stages() {
    let (mut bed, mut host) = fresh();
    let mut text = keys(WHO);
    text.extend(keys(&[("InitiatorAlias", "host"), ("AuthMethod", "None")]));
    let (response, answers) = host.login_step(&mut bed, 0, Some(1), &text).unwrap();
    assert!(response.transit && response.stage == 0 && response.next_stage == 1 && response.tsih == 0);
    assert_eq!(answers["AuthMethod"], "None");
    assert_eq!(answers["TargetPortalGroupTag"], "1");
    let operational = keys(&[
        ("HeaderDigest", "None"),
        ("DataDigest", "None"),
        ("DefaultTime2Wait", "2"),
        ("DefaultTime2Retain", "0"),
        ("IFMarker", "No"),
        ("OFMarker", "No"),
        ("ErrorRecoveryLevel", "0"),
        ("InitialR2T", "No"),
        ("ImmediateData", "Yes"),
        ("MaxBurstLength", "16776192"),
        ("FirstBurstLength", "262144"),
        ("MaxOutstandingR2T", "1"),
        ("MaxConnections", "1"),
        ("DataPDUInOrder", "Yes"),
        ("DataSequenceInOrder", "Yes"),
        ("MaxRecvDataSegmentLength", "262144"),
    ]);
    let (response, answers) = host.login_step(&mut bed, 1, Some(3), &operational).unwrap();
    assert!(response.transit && response.next_stage == 3 && response.tsih != 0);
    for (key, value) in [
        ("InitialR2T", "No"),
        ("ImmediateData", "Yes"),
        ("MaxBurstLength", "16776192"),
        ("FirstBurstLength", "262144"),
        ("MaxRecvDataSegmentLength", "262144"),
        ("IFMarker", "No"),
    ] {
        assert_eq!(answers[key], value);
    }
    host.clear_attention(&mut bed);
}

/// Guards the shortest path: from security straight to full feature, all keys at their defaults.
#[test]
fn straight_to_full_feature() {
    let (mut bed, mut host) = fresh();
    let (response, answers) = host.login_step(&mut bed, 0, Some(3), &keys(WHO)).unwrap();
    assert!(response.transit && response.next_stage == 3);
    assert_eq!(answers.len(), 1, "{answers:?}");
    host.clear_attention(&mut bed);
}

/// Guards libiscsi's habit to name itself again in the operational stage, and against another name.
#[test]
fn repeated_names() {
    for (name, expected) in [(INITIATOR, Ok(())), ("iqn.2026-11.org.example:other", Err(0x0200))] {
        let (mut bed, mut host) = fresh();
        host.login_step(&mut bed, 0, Some(1), &keys(WHO)).unwrap();
        let step = host.login_step(&mut bed, 1, Some(3), &keys(&[("InitiatorName", name)]));
        assert_eq!(step.map(drop), expected);
    }
}

/// Guards text that is split at every byte, with the empty answers that ask for the rest.
#[test]
fn continued_text() {
    let text = keys(&[WHO[0], WHO[1], WHO[2], ("InitialR2T", "No")]);
    for at in 0..text.len() {
        let (mut bed, mut host) = fresh();
        let part = LoginRequest { continued: true, ..host.login_request(1, None) };
        host.send(&mut bed, part.encode(), &text[..at]);
        let (response, answers) = host.login_answer(&mut bed).unwrap();
        assert!(!response.transit && !response.continued && answers.is_empty());
        let (response, answers) = host.login_step(&mut bed, 1, Some(3), &text[at..]).unwrap();
        assert!(response.transit);
        assert_eq!(answers["InitialR2T"], "No");
    }
}

/// Guards the status of each refusal.
#[test]
fn refusals() {
    let name = ("InitiatorName", INITIATOR);
    let long = "i".repeat(224);
    let cases: Vec<(Vec<(&str, &str)>, u16)> = vec![
        (vec![("TargetName", IQN)], 0x0207),
        (vec![name], 0x0207),
        (vec![name, ("SessionType", "Normal")], 0x0207),
        (vec![name, ("TargetName", "iqn.2026-11.io.lunette:none")], 0x0203),
        (vec![name, ("TargetName", IQN), ("SessionType", "Other")], 0x0209),
        (vec![("InitiatorName", ""), ("TargetName", IQN)], 0x0200),
        (vec![("InitiatorName", &long), ("TargetName", IQN)], 0x0200),
        (vec![name, ("TargetName", IQN), ("InitialR2T", "No"), ("InitialR2T", "No")], 0x0200),
        (vec![name, ("TargetName", IQN), ("MaxRecvDataSegmentLength", "1")], 0x0200),
        (vec![name, ("TargetName", IQN), ("CHAP_A", "5")], 0x0200),
    ];
    for (pairs, status) in cases {
        let (mut bed, mut host) = fresh();
        assert_eq!(host.login_step(&mut bed, 1, Some(3), &keys(&pairs)).map(drop), Err(status), "{pairs:?}");
        assert!(bed.is_gone(host.id));
    }
    for (offer, status) in [("CHAP", 0x0201), ("KRB5,SRP", 0x0201), ("", 0x0201)] {
        let (mut bed, mut host) = fresh();
        let text = [keys(WHO), keys(&[("AuthMethod", offer)])].concat();
        assert_eq!(host.login_step(&mut bed, 0, Some(1), &text).map(drop), Err(status));
    }
    for text in [&b"no pair\0"[..], &b"A=1\0".repeat(65), b"InitiatorName=\xff\0"] {
        let (mut bed, mut host) = fresh();
        assert_eq!(host.login_step(&mut bed, 1, Some(3), text).map(drop), Err(0x0200));
    }
}

/// Guards the header's rules: version, stages, T with C, and what must not change.
#[test]
fn header_rules() {
    type Change = fn(&mut LoginRequest);
    let cases: &[(Change, u16)] = &[
        (|request| request.version_min = 1, 0x0205),
        (|request| request.stage = 2, 0x0200),
        (|request| request.stage = 3, 0x0200),
        (|request| request.next_stage = 0, 0x0200),
        (|request| request.next_stage = 1, 0x0200),
        (|request| request.next_stage = 2, 0x0200),
        (|request| request.continued = true, 0x0200),
        (|request| request.tsih = 77, 0x020a),
    ];
    for (index, (change, status)) in cases.iter().enumerate() {
        let (mut bed, mut host) = fresh();
        let mut request = host.login_request(1, Some(3));
        change(&mut request);
        host.send(&mut bed, request.encode(), &keys(WHO));
        assert_eq!(host.login_answer(&mut bed).map(drop), Err(*status), "case {index}");
    }
    let changes: &[Change] = &[
        |request| request.isid[0] ^= 1,
        |request| request.tsih = 1,
        |request| request.cid ^= 1,
        |request| request.task_tag ^= 1,
        |request| request.stage = 0,
    ];
    for change in changes {
        let (mut bed, mut host) = fresh();
        host.login_step(&mut bed, 1, None, &keys(WHO)).unwrap();
        let mut request = host.login_request(1, Some(3));
        change(&mut request);
        host.send(&mut bed, request.encode(), &[]);
        assert_eq!(host.login_answer(&mut bed).map(drop), Err(0x0200));
    }
}

/// Guards the phase: any opcode but Login Request before login is over ends the connection, unanswered.
#[test]
fn every_opcode_before_login() {
    for opcode in (0..0x40).filter(|opcode| *opcode != 3) {
        for first in [false, true] {
            let (mut bed, mut host) = fresh();
            if first {
                host.login_step(&mut bed, 1, None, &keys(WHO)).unwrap();
            }
            host.send(&mut bed, lunette_proto::iscsi::Bhs::new(opcode), &[]);
            host.expect_silence(&mut bed);
            assert!(bed.is_gone(host.id), "opcode {opcode:#x}");
        }
    }
}

/// Guards the data segment's bound before login, and the declared one after.
#[test]
fn segment_bounds() {
    let (mut bed, host) = fresh();
    let mut bhs = host.login_request(1, Some(3)).encode();
    bhs.set_data_bytes(8193);
    bed.feed(host.id, &bhs.0);
    assert!(bed.is_gone(host.id));

    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[]);
    let data = vec![0; 262_144];
    let ping =
        NopOut { immediate: true, task_tag: 5, transfer_tag: !0, cmd_sn: host.cmd_sn, ..Default::default() };
    host.send(&mut bed, ping.encode(), &data);
    let (_, pdu) = host.next(&mut bed).unwrap();
    assert_eq!(pdu.data.len(), 8192, "cut to what the initiator declared");
    let mut bhs = ping.encode();
    bhs.set_data_bytes(262_145);
    bed.feed(host.id, &bhs.0);
    assert!(bed.is_gone(host.id));
}

/// Guards the deadline of a login, however slowly it trickles in.
#[test]
fn login_deadline() {
    let (mut bed, mut host) = fresh();
    let wire = host.wire(host.login_request(1, Some(3)).encode(), &[], &keys(WHO));
    for byte in wire.iter().take(19) {
        bed.feed(host.id, &[*byte]);
        assert!(!bed.is_closed(host.id));
        bed.pass(Duration::from_millis(500));
    }
    bed.pass(Duration::from_millis(600));
    assert!(bed.is_gone(host.id));
}

/// Guards silence: a ping after 10 s, an answer keeps the session, none for a minute ends it.
#[test]
fn silent_session() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[]);
    bed.pass(Duration::from_secs(9));
    host.expect_silence(&mut bed);
    bed.pass(Duration::from_secs(1));
    let Some((Reply::NopIn(ping), _)) = host.next(&mut bed) else { panic!() };
    assert_eq!(ping.task_tag, !0);
    assert_ne!(ping.transfer_tag, !0);
    let answer = NopOut {
        immediate: true,
        lun: ping.lun,
        task_tag: !0,
        transfer_tag: ping.transfer_tag,
        cmd_sn: host.cmd_sn,
        ..NopOut::default()
    };
    host.send(&mut bed, answer.encode(), &[]);
    host.expect_silence(&mut bed);
    bed.pass(Duration::from_secs(9));
    assert!(!bed.is_closed(host.id));
    bed.pass(Duration::from_secs(1));
    assert!(matches!(host.next(&mut bed), Some((Reply::NopIn(_), _))));
    bed.pass(Duration::from_secs(59));
    assert!(!bed.is_closed(host.id));
    bed.pass(Duration::from_secs(1));
    assert!(bed.is_gone(host.id));
}

/// Guards admission: by name and address, and by loopback where no list is given.
#[test]
fn admission() {
    let acl = |glob: &str, from: Option<&str>| Acl {
        initiator: glob.into(),
        from: from.map(|net| net.parse().unwrap()),
    };
    let cases = [
        (vec![], "127.0.0.1", Ok(())),
        (vec![], "::1", Ok(())),
        (vec![], "10.0.0.1", Err(0x0202)),
        (vec![acl("*", None)], "10.0.0.1", Ok(())),
        (vec![acl("iqn.2026-11.ORG.example:*", None)], "10.0.0.1", Ok(())),
        (vec![acl("iqn.other:*", None)], "127.0.0.1", Err(0x0202)),
        (vec![acl("*", Some("10.0.0.0/8"))], "10.9.9.9", Ok(())),
        (vec![acl("*", Some("10.0.0.0/8"))], "11.0.0.1", Err(0x0202)),
        (vec![acl("*", Some("10.0.0.0/8"))], "::ffff:10.0.0.1", Ok(())),
        (vec![acl("*", Some("fd00::/8"))], "fd00::7", Ok(())),
    ];
    for (acls, address, expected) in cases {
        let mut bed = Bed::with_acls(acls.clone());
        let mut host = Initiator::new(bed.connect_from(address.parse().unwrap()));
        assert_eq!(host.login(&mut bed, &[]), expected, "{acls:?} {address}");
    }
}

/// Guards logout: each reason, and that the session is over.
#[test]
fn logout() {
    for (reason, cid, expected, closed) in
        [(0, 0, 0, true), (1, 1, 0, true), (1, 2, 1, false), (2, 1, 2, false)]
    {
        let mut bed = Bed::new();
        let mut host = Initiator::ready(&mut bed, &[]);
        let request = LogoutRequest {
            reason,
            cid,
            task_tag: 0x77,
            cmd_sn: host.cmd_sn.take(),
            ..LogoutRequest::default()
        };
        host.send(&mut bed, request.encode(), &[]);
        let Some((Reply::Logout(response), _)) = host.next(&mut bed) else { panic!() };
        assert_eq!((response.response, response.task_tag), (expected, 0x77));
        assert_eq!(bed.is_gone(host.id), closed);
        assert_eq!(bed.sessions(), usize::from(!closed));
    }
}

/// Guards opcodes that a session does not take: each is rejected with the header, and the session lives.
#[test]
fn rejects() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[]);
    for (opcode, reason) in [(0x03, 4), (0x10, 3), (0x1c, 5), (0x20, 5), (0x3f, 5)] {
        let bhs = lunette_proto::iscsi::Bhs::new(opcode);
        host.send(&mut bed, bhs, &[]);
        let Some((Reply::Reject(reject), pdu)) = host.next(&mut bed) else { panic!() };
        assert_eq!((reject.reason, reject.task_tag), (reason, !0));
        assert_eq!(pdu.data, bhs.0[..]);
    }
    let bad = LogoutRequest { immediate: true, reason: 9, ..LogoutRequest::default() };
    host.send(&mut bed, bad.encode(), &[]);
    assert!(matches!(host.next(&mut bed), Some((Reply::Reject(_), _))));
    let bad = TextRequest {
        immediate: true,
        is_final: true,
        continued: true,
        transfer_tag: !0,
        ..Default::default()
    };
    host.send(&mut bed, bad.encode(), &[]);
    assert!(matches!(host.next(&mut bed), Some((Reply::Reject(_), _))));
    assert_eq!(host.ping(&mut bed, b"x"), b"x");
}

/// Guards answers to keys that nobody knows, and to those of other transports, in each stage.
#[test]
fn unknown_keys() {
    let strange = [("X-com.example.key", "1"), ("RDMAExtensions", "Yes"), ("Foo", "")];
    let (mut bed, mut host) = fresh();
    let mut text = keys(WHO);
    text.extend(keys(&strange));
    for stage in [0, 1] {
        let (_, answers) = host.login_step(&mut bed, stage, Some(2 * stage + 1), &text).unwrap();
        for (key, _) in strange {
            assert_eq!(answers[key], "NotUnderstood");
        }
        text = keys(&strange);
    }
    host.clear_attention(&mut bed);
    let (told, _) = host.text(&mut bed, &keys(&[("HeaderDigest", "CRC32C"), ("X-com.example.key", "1")]));
    assert_eq!(told, "HeaderDigest=Reject\nX-com.example.key=NotUnderstood\n");
    // Nothing has changed: no digest.
    assert_eq!(host.ping(&mut bed, b"x"), b"x");
}

/// Guards numbers on the wire: hexadecimal, the ends of a range, FirstBurstLength beyond MaxBurstLength.
#[test]
fn numbers() {
    let (mut bed, mut host) = fresh();
    let offers = [
        ("MaxBurstLength", "0x400"),
        ("FirstBurstLength", "511"),
        ("DefaultTime2Wait", "3600"),
        ("InitialR2T", "No"),
    ];
    host.login(&mut bed, &offers).unwrap();
    assert_eq!(host.answers["MaxBurstLength"], "1024");
    assert_eq!(host.answers.remove("FirstBurstLength").as_deref(), Some("Reject"));
    assert_eq!(host.answers["DefaultTime2Wait"], "3600");
    host.clear_attention(&mut bed);
    // The default of FirstBurstLength is cut to the burst: more immediate data than that is too much.
    let mut command = host.command_header(crate::initiator::write10(0, 4), 2048);
    command.write = true;
    host.send(&mut bed, command.encode(), &[1; 2048]);
    assert_eq!(host.end(&mut bed, command.task_tag, &[]).sense, Some([0xb, 0x0c, 0x0c]));
}

/// Guards sessions against being joined: by a second connection, by another initiator, by another ISID.
#[test]
fn cannot_be_joined() {
    let (mut bed, mut host) = fresh();
    host.login(&mut bed, &[]).unwrap();
    host.clear_attention(&mut bed);
    type Change = fn(&mut LoginRequest);
    let cases: [(&str, Change, u16); 3] = [
        (INITIATOR, |request| request.cid = 2, 0x0206),
        (INITIATOR, |request| request.isid[5] ^= 1, 0x020a),
        ("iqn.2026-11.org.example:other", |_| {}, 0x020a),
    ];
    for (name, change, status) in cases {
        let mut other = Initiator::new(bed.connect());
        other.tsih = host.tsih;
        let mut request = other.login_request(1, Some(3));
        change(&mut request);
        other.send(&mut bed, request.encode(), &keys(&[("InitiatorName", name), ("TargetName", IQN)]));
        assert_eq!(other.login_answer(&mut bed).map(drop), Err(status));
        assert_eq!(host.ping(&mut bed, b"here"), b"here");
    }
}

/// Guards the limit of sessions: one more is told so, and there is room again when one goes. Those of one
/// initiator name have a limit of their own.
#[test]
fn sessions_are_limited() {
    let mut bed = Bed::new();
    let mut hosts: Vec<Initiator> = (0..100)
        .map(|_| {
            let mut host = Initiator::new(bed.connect());
            host.discover(&mut bed, &[]).unwrap();
            host
        })
        .collect();
    assert_eq!(Initiator::new(bed.connect()).login(&mut bed, &[]), Err(0x0302));
    bed.cut(hosts.pop().unwrap().id);
    assert_eq!(Initiator::new(bed.connect()).login(&mut bed, &[]), Ok(()));

    let mut bed = Bed::new();
    for isid in 0..90 {
        Initiator::ready_as(&mut bed, isid);
    }
    let mut one_more = Initiator::new(bed.connect());
    one_more.isid[5] = 90;
    assert_eq!(one_more.login(&mut bed, &[]), Err(0x0302));
    let mut other = Initiator::new(bed.connect());
    let text = keys(&[("InitiatorName", "iqn.2026-11.org.example:other"), ("TargetName", IQN)]);
    other.login_step(&mut bed, 1, Some(3), &text).unwrap();
}

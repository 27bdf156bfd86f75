//! SendTargets (RFC 7143 appendix C).

use std::net::SocketAddr;
use std::sync::Arc;

use lunette_proto::ids::TargetId;
use lunette_proto::iscsi::Reply;
use lunette_proto::iscsi::initiator::TextRequest;
use lunette_proto::map::Acl;
use lunette_target_iscsi::session::Endpoint;

use crate::bed::{Bed, IQN, map};
use crate::initiator::{Initiator, keys};

fn many(count: u32, initiator: &str) -> Bed {
    let mut map = map();
    let template = map.targets[&TargetId(1)].clone();
    for id in 2..=count {
        let mut target = template.clone();
        (target.id, target.iqn) = (TargetId(id), format!("iqn.2026-11.io.lunette:disk{id:05}"));
        target.acls = vec![Acl { initiator: initiator.into(), from: None }];
        map.targets.insert(target.id, target);
    }
    Bed::with_map(map)
}

/// Guards All, a name and nothing, in both kinds of session.
#[test]
fn requests() {
    let mut bed = many(3, "*");
    let mut host = Initiator::new(bed.connect());
    host.discover(&mut bed, &[]).unwrap();
    let one = |name: &str| format!("TargetName={name}\nTargetAddress=127.0.0.1:3260,1\n");
    let (two, three) = ("iqn.2026-11.io.lunette:disk00002", "iqn.2026-11.io.lunette:disk00003");
    let all = [one(IQN), one(two), one(three)].concat();
    assert_eq!(host.text(&mut bed, &keys(&[("SendTargets", "All")])).0, all);
    assert_eq!(host.text(&mut bed, &keys(&[("SendTargets", two)])).0, one(two));
    assert_eq!(host.text(&mut bed, &keys(&[("SendTargets", "iqn.none")])).0, "");
    assert_eq!(host.text(&mut bed, &keys(&[("SendTargets", "")])).0, "SendTargets=Reject\n");
    assert_eq!(host.text(&mut bed, &keys(&[("Foo", "Bar")])).0, "Foo=NotUnderstood\n");

    let twice = lunette_proto::iscsi::initiator::TextRequest {
        immediate: true,
        is_final: true,
        transfer_tag: !0,
        ..Default::default()
    };
    host.send(&mut bed, twice.encode(), &keys(&[("SendTargets", "All"), ("SendTargets", "All")]));
    assert!(matches!(host.next(&mut bed), Some((Reply::Reject(_), _))));

    let mut host = Initiator::ready(&mut bed, &[]);
    assert_eq!(host.text(&mut bed, &keys(&[("SendTargets", "")])).0, one(IQN));
    assert_eq!(host.text(&mut bed, &keys(&[("SendTargets", "All")])).0, all);
}

/// Guards what a stranger may see: only targets that admit it, and their reachable portals.
#[test]
fn only_what_is_admitted() {
    let mut bed = many(3, "iqn.someone.else");
    let local: SocketAddr = "10.0.0.1:3260".parse().unwrap();
    let mut host = Initiator::new(bed.connect_at(Endpoint { local, peer: local, portal: local }));
    host.discover(&mut bed, &[]).unwrap();
    assert_eq!(host.text(&mut bed, &keys(&[("SendTargets", "All")])).0, "");
    let mut bed = many(2, "iqn.2026-11.org.example:*");
    let mut host = Initiator::new(bed.connect_at(Endpoint { local, peer: local, portal: local }));
    host.discover(&mut bed, &[]).unwrap();
    let told = host.text(&mut bed, &keys(&[("SendTargets", "All")])).0;
    assert_eq!(told, "TargetName=iqn.2026-11.io.lunette:disk00002\nTargetAddress=10.0.0.1:3260,1\n");
}

/// Guards continuation: a list longer than the initiator's segment comes in parts, whole.
#[test]
fn continuation() {
    let mut bed = many(500, "*");
    let mut host = Initiator::new(bed.connect());
    host.discover(&mut bed, &[("MaxRecvDataSegmentLength", "512")]).unwrap();
    host.answers.insert("InitiatorSegment".into(), "512".into());
    let (told, parts) = host.text(&mut bed, &keys(&[("SendTargets", "All")]));
    assert_eq!(told.lines().filter(|line| line.starts_with("TargetName=")).count(), 500);
    assert_eq!(told.lines().count(), 1000);
    assert!(parts > 50);
}

/// Guards discovery sessions against commands, and normal keys in them.
#[test]
fn no_commands() {
    let mut bed = Bed::new();
    let mut host = Initiator::new(bed.connect());
    host.discover(&mut bed, &[("MaxBurstLength", "512"), ("InitialR2T", "No")]).unwrap();
    assert_eq!(host.answers["MaxBurstLength"], "Irrelevant");
    host.answers.clear();
    let command = host.command_header([0; 16], 0);
    host.send(&mut bed, command.encode(), &[]);
    assert!(matches!(host.next(&mut bed), Some((Reply::Reject(_), _))));
    assert_eq!(host.ping(&mut bed, b"x"), b"x");
    // Two discoveries of one host do not disturb each other.
    let mut second = Initiator::new(bed.connect());
    second.discover(&mut bed, &[]).unwrap();
    assert_eq!(host.ping(&mut bed, b"y"), b"y");
}

/// Guards requests that are split at any byte: empty answers ask for the rest under one tag, and another
/// tag is refused.
#[test]
fn split_requests() {
    let text = keys(&[("SendTargets", "All")]);
    for at in 0..text.len() {
        let mut bed = Bed::new();
        let mut host = Initiator::new(bed.connect());
        host.discover(&mut bed, &[]).unwrap();
        let first = TextRequest {
            continued: true,
            task_tag: 3,
            transfer_tag: !0,
            cmd_sn: host.cmd_sn.take(),
            ..TextRequest::default()
        };
        host.send(&mut bed, first.encode(), &text[..at]);
        let Some((Reply::Text(asks), pdu)) = host.next(&mut bed) else { panic!() };
        assert!(!asks.is_final && !asks.continued && asks.transfer_tag != !0 && pdu.data.is_empty());
        let transfer_tag = asks.transfer_tag;
        let rest = TextRequest { is_final: true, continued: false, transfer_tag, ..first };
        let rest = TextRequest { cmd_sn: host.cmd_sn.take(), ..rest };
        if at == 3 {
            let other = TextRequest { transfer_tag: transfer_tag ^ 1, ..rest };
            host.send(&mut bed, other.encode(), &text[at..]);
            assert!(matches!(host.next(&mut bed), Some((Reply::Reject(_), _))));
            continue;
        }
        host.send(&mut bed, rest.encode(), &text[at..]);
        let Some((Reply::Text(response), pdu)) = host.next(&mut bed) else { panic!() };
        assert!(response.is_final && response.transfer_tag == !0);
        assert!(pdu.data.starts_with(format!("TargetName={IQN}\0").as_bytes()));
    }
}

/// Guards the rest of a long answer: it is given under its own tag, and under another not at all.
#[test]
fn rest_under_another_tag() {
    let mut bed = many(50, "*");
    let mut host = Initiator::new(bed.connect());
    host.discover(&mut bed, &[("MaxRecvDataSegmentLength", "512")]).unwrap();
    let first = TextRequest {
        immediate: true,
        is_final: true,
        task_tag: 3,
        transfer_tag: !0,
        cmd_sn: host.cmd_sn,
        ..TextRequest::default()
    };
    for (task_tag, wrong) in [(3, 1), (4, 0)] {
        host.send(&mut bed, first.encode(), &keys(&[("SendTargets", "All")]));
        let Some((Reply::Text(response), _)) = host.next(&mut bed) else { panic!() };
        let transfer_tag = response.transfer_tag ^ wrong;
        host.send(&mut bed, TextRequest { task_tag, transfer_tag, ..first }.encode(), &[]);
        assert!(matches!(host.next(&mut bed), Some((Reply::Reject(_), _))));
    }
}

/// Guards addresses where nobody is admitted: a target without an access list is told at loopback only.
#[test]
fn addresses_that_admit() {
    let mut bed = many(2, "*");
    let context = Arc::get_mut(&mut bed.context).unwrap();
    context.portals.push("10.0.0.1:3260".parse().unwrap());
    let mut host = Initiator::new(bed.connect());
    host.discover(&mut bed, &[]).unwrap();
    let two = "iqn.2026-11.io.lunette:disk00002";
    assert_eq!(
        host.text(&mut bed, &keys(&[("SendTargets", "All")])).0,
        format!(
            "TargetName={IQN}\nTargetAddress=127.0.0.1:3260,1\n\
             TargetName={two}\nTargetAddress=127.0.0.1:3260,1\nTargetAddress=10.0.0.1:3260,1\n"
        )
    );
}

//! Targets that are being drained, and messages that the target sends of its own accord (RFC 7143 11.9).

use std::time::Duration;

use lunette_proto::ids::{TargetId, VolumeId};
use lunette_proto::iscsi::Reply;
use lunette_proto::iscsi::initiator::LogoutRequest;
use lunette_proto::iscsi::target::AsyncMessage;
use lunette_proto::map::ClusterMap;

use crate::bed::{Bed, IQN, map};
use crate::initiator::{INITIATOR, Initiator, keys, read10};

const OTHER: &str = "iqn.2026-11.io.lunette:other";

fn begin(map: &mut ClusterMap) {
    map.targets.get_mut(&TargetId(1)).unwrap().draining = true;
}

fn message(bed: &mut Bed, host: &mut Initiator) -> AsyncMessage {
    let Some((Reply::Async(message), _)) = host.next(bed) else { panic!() };
    message
}

/// Two targets with the same volumes.
fn two_targets() -> Bed {
    let mut map = map();
    let mut other = map.targets[&TargetId(1)].clone();
    (other.id, other.iqn) = (TargetId(2), OTHER.into());
    map.targets.insert(other.id, other);
    Bed::with_map(map)
}

fn login_to(bed: &mut Bed, target: &str) -> Result<Initiator, u16> {
    let mut host = Initiator::new(bed.connect());
    let text = keys(&[("InitiatorName", INITIATOR), ("TargetName", target)]);
    host.login_step(bed, 1, Some(3), &text)?;
    Ok(host)
}

/// Guards the end of a drained target's sessions: asked to log out, served until then, dropped with a
/// word when the time is over, so that draining ends.
#[test]
fn asked_and_dropped() {
    let mut bed = two_targets();
    let mut host = Initiator::ready(&mut bed, &[]);
    let mut elsewhere = login_to(&mut bed, OTHER).unwrap();
    let mut discovery = Initiator::new(bed.connect());
    discovery.discover(&mut bed, &[]).unwrap();
    bed.apply(begin);
    let asked = message(&mut bed, &mut host);
    assert_eq!((asked.event, asked.parameter1, asked.parameter2, asked.parameter3), (1, 0, 0, 10));
    // Asked once, whatever else changes.
    bed.apply(|_| {});
    host.expect_silence(&mut bed);
    bed.pass(Duration::from_secs(5));
    assert_eq!(host.read(&mut bed, read10(0, 1), 512).status, 0);
    bed.pass(Duration::from_millis(4900));
    assert!(!bed.is_closed(host.id));
    bed.pass(Duration::from_millis(100));
    let dropped = message(&mut bed, &mut host);
    assert_eq!((dropped.event, dropped.parameter1, dropped.parameter2, dropped.parameter3), (3, 0, 2, 0));
    assert!(bed.is_gone(host.id));
    for other in [&mut elsewhere, &mut discovery] {
        if let Some((reply, _)) = other.next(&mut bed) {
            assert!(matches!(reply, Reply::NopIn(_)), "{reply:?}");
        }
        assert!(!bed.is_closed(other.id));
    }
    assert_eq!(bed.sessions(), 2);
}

/// Guards logins to a drained target: refused so that the initiator tries again, others are not, and when
/// draining is over so is that.
#[test]
fn refuses_logins() {
    let mut bed = two_targets();
    // A login that has begun does not slip through.
    let mut half = Initiator::new(bed.connect());
    let text = keys(&[("InitiatorName", INITIATOR), ("TargetName", IQN)]);
    half.login_step(&mut bed, 1, None, &text).unwrap();
    bed.apply(begin);
    assert_eq!(half.login_step(&mut bed, 1, Some(3), &[]).map(drop), Err(0x0301));
    assert_eq!(login_to(&mut bed, IQN).map(drop), Err(0x0301));
    assert!(login_to(&mut bed, OTHER).is_ok());
    bed.apply(|map| map.targets.get_mut(&TargetId(1)).unwrap().draining = false);
    assert!(login_to(&mut bed, IQN).is_ok());
}

/// Guards the initiator that does as it is told, and the one that need not any more.
#[test]
fn logout_in_time_and_called_off() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[]);
    bed.apply(begin);
    assert_eq!(message(&mut bed, &mut host).event, 1);
    let request =
        LogoutRequest { task_tag: 0x77, cmd_sn: host.cmd_sn.take(), reason: 0, ..LogoutRequest::default() };
    host.send(&mut bed, request.encode(), &[]);
    assert!(matches!(host.next(&mut bed), Some((Reply::Logout(response), _)) if response.response == 0));
    assert!(bed.is_gone(host.id));

    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[]);
    bed.apply(begin);
    assert_eq!(message(&mut bed, &mut host).event, 1);
    bed.apply(|map| map.targets.get_mut(&TargetId(1)).unwrap().draining = false);
    for _ in 0..4 {
        bed.pass(Duration::from_secs(5));
        assert_eq!(host.ping(&mut bed, b"stays"), b"stays");
    }
    // Asked anew, with the whole time again.
    bed.apply(begin);
    assert_eq!(message(&mut bed, &mut host).event, 1);
    bed.pass(Duration::from_secs(9));
    assert_eq!(host.ping(&mut bed, b"stays"), b"stays");
}

/// Guards others: a LUN that is mapped or unmapped is told to the sessions that can see it, and to nobody
/// else (some initiators end a session over it).
#[test]
fn changes_of_luns_are_told_to_those_who_see_them() {
    let mut bed = two_targets();
    let mut host = Initiator::ready(&mut bed, &[]);
    let mut elsewhere = login_to(&mut bed, OTHER).unwrap();
    elsewhere.clear_attention(&mut bed);
    let mut discovery = Initiator::new(bed.connect());
    discovery.discover(&mut bed, &[]).unwrap();
    type Change = fn(&mut ClusterMap);
    let changes: [Change; 2] = [
        |map| map.targets.get_mut(&TargetId(1)).unwrap().luns.retain(|lun, _| *lun != 1),
        |map| {
            let luns = &mut map.targets.get_mut(&TargetId(1)).unwrap().luns;
            luns.insert(7, lunette_proto::map::Lun { volume: VolumeId(2), read_only: false });
        },
    ];
    for change in changes {
        bed.apply(change);
        let Some((Reply::Async(told), pdu)) = host.next(&mut bed) else { panic!() };
        assert_eq!(told.event, 0);
        // SenseLength, then fixed format: UNIT ATTENTION, 3Fh/0Eh.
        let len = usize::from(u16::from_be_bytes([pdu.data[0], pdu.data[1]]));
        assert_eq!(pdu.data.len(), len + 2);
        assert_eq!((pdu.data[2], pdu.data[4] & 15, pdu.data[14], pdu.data[15]), (0x70, 6, 0x3f, 0x0e));
        host.expect_silence(&mut bed);
        assert_eq!(host.read(&mut bed, read10(0, 1), 512).sense, Some([6, 0x3f, 0x0e]));
        for other in [&mut elsewhere, &mut discovery] {
            other.expect_silence(&mut bed);
        }
        assert_eq!(elsewhere.read(&mut bed, read10(0, 1), 512).status, 0);
    }
}

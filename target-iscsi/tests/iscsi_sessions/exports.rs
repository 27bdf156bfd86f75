//! Changes of the map while sessions are up.

use lunette_proto::ids::{TargetId, VolumeId};
use lunette_proto::iscsi::Reply;
use lunette_proto::map::{Acl, Chap, ChapAlgorithm, ChapCredential, ClusterMap, Sealed, Target, VolumeState};

use crate::bed::{Bed, IQN, VOLUME_BYTES, pattern};
use crate::initiator::{INITIATOR, Initiator, keys, read10, write10};

fn target(map: &mut ClusterMap) -> &mut Target {
    map.targets.get_mut(&TargetId(1)).unwrap()
}

/// Guards a resize: capacity changed, then inquiry data changed, then the new size is there.
#[test]
fn resize() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[]);
    bed.apply(|map| map.volumes.get_mut(&VolumeId(1)).unwrap().size_bytes = VOLUME_BYTES as u64 / 2);
    assert_eq!(host.read(&mut bed, read10(0, 1), 512).sense, Some([6, 0x2a, 9]));
    assert_eq!(host.read(&mut bed, read10(0, 1), 512).sense, Some([6, 0x3f, 3]));
    assert_eq!(host.read(&mut bed, read10(0, 1), 512).status, 0);
    let beyond = (VOLUME_BYTES / 512 / 2) as u32;
    assert_eq!(host.read(&mut bed, read10(beyond, 1), 512).sense, Some([5, 0x21, 0]));
    // The other LUN has nothing to tell.
    assert_eq!(host.command_to(&mut bed, 1 << 48, read10(0, 1), 512, &[]).status, 0);
}

/// Guards map and unmap: an asynchronous message at once, 3Fh/0Eh on the next command.
#[test]
fn unmap() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[]);
    bed.apply(|map| target(map).luns.retain(|lun, _| *lun != 1));
    let Some((Reply::Async(message), pdu)) = host.next(&mut bed) else { panic!() };
    assert_eq!((message.event, pdu.data[14], pdu.data[15]), (0, 0x3f, 0x0e));
    assert_eq!(host.read(&mut bed, read10(0, 1), 512).sense, Some([6, 0x3f, 0x0e]));
    assert_eq!(host.command_to(&mut bed, 1 << 48, read10(0, 1), 512, &[]).sense, Some([5, 0x25, 0]));
    // A volume being deleted is shown no longer either.
    bed.apply(|map| map.volumes.get_mut(&VolumeId(1)).unwrap().state = VolumeState::Deleting);
    assert!(matches!(host.next(&mut bed), Some((Reply::Async(_), _))));
    assert_eq!(host.read(&mut bed, read10(0, 1), 512).sense, Some([5, 0x25, 0]));
}

/// Guards the end: a deleted target and a lost admission close the session, other changes do not.
#[test]
fn closes() {
    let changes: [fn(&mut ClusterMap); 2] = [
        |map| map.targets.clear(),
        |map| target(map).acls = vec![Acl { initiator: "iqn.other".into(), from: None }],
    ];
    for change in changes {
        let mut bed = Bed::new();
        let mut host = Initiator::ready(&mut bed, &[]);
        bed.apply(|_| {});
        host.expect_silence(&mut bed);
        assert_eq!(host.ping(&mut bed, b"same"), b"same");
        bed.apply(change);
        let Some((Reply::Async(message), _)) = host.next(&mut bed) else { panic!() };
        assert_eq!(message.event, 3);
        assert!(bed.is_gone(host.id));
    }
}

/// Guards a volume against those who may not write it any more: data that was asked for before the LUN
/// was unmapped, mapped to another volume, or write protected, is not written after it.
#[test]
fn data_that_comes_after_the_map() {
    type Change = fn(&mut ClusterMap);
    let changes: [(Change, [u8; 3]); 3] = [
        (|map| target(map).luns.retain(|lun, _| *lun != 0), [5, 0x25, 0]),
        (|map| target(map).luns.get_mut(&0).unwrap().volume = VolumeId(2), [6, 0x29, 0]),
        (|map| target(map).luns.get_mut(&0).unwrap().read_only = true, [6, 0x3f, 3]),
    ];
    for (index, (change, next)) in changes.into_iter().enumerate() {
        let mut bed = Bed::new();
        let mut host = Initiator::ready(&mut bed, &[]);
        let data = pattern(4096, 1);
        let mut command = host.command_header(write10(0, 8), 4096);
        command.write = true;
        host.send(&mut bed, command.encode(), &[]);
        let Some((Reply::R2t(r2t), _)) = host.next(&mut bed) else { panic!() };
        bed.apply(change);
        if index < 2 {
            assert!(matches!(host.next(&mut bed), Some((Reply::Async(_), _))));
        }
        host.solicited(&mut bed, &r2t, &data);
        // BUSY: nothing happened, and trying again tells why.
        assert_eq!(host.end(&mut bed, command.task_tag, &data).status, 8, "case {index}");
        for volume in [1, 2] {
            assert_eq!(bed.disk(volume).read(0, 4096), [0; 4096], "case {index}");
        }
        assert_eq!(host.write(&mut bed, write10(0, 1), &data[..512]).sense, Some(next), "case {index}");
    }
}

/// Guards a command of several parts against the same: what it has left is not done, and the answer
/// does not say that nothing was.
#[test]
fn rest_of_a_command_that_comes_after_the_map() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[]);
    bed.disk(1).hold();
    let mut command = host.command_header(write10(0, 4096), 512);
    command.cdb[0] = 0x41;
    command.write = true;
    host.send(&mut bed, command.encode(), &[1; 512]);
    assert_eq!(bed.disk(1).held(), 1);
    bed.apply(|map| target(map).luns.retain(|lun, _| *lun != 0));
    assert!(matches!(host.next(&mut bed), Some((Reply::Async(_), _))));
    bed.disk(1).release();
    bed.settle();
    assert_eq!(host.end(&mut bed, command.task_tag, &[]).sense, Some([0xb, 8, 0]));
    let written = bed.disk(1).read(0, 2 << 20);
    assert_eq!(written[..1 << 20], [1; 1 << 20]);
    assert_eq!(written[1 << 20..], [0; 1 << 20]);
}

/// Guards a LUN that another volume takes over: it does not inherit what a MODE SELECT set for the old.
#[test]
fn lun_mapped_anew_starts_afresh() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[]);
    let mut select = [0; 16];
    (select[0], select[1], select[4]) = (0x15, 0x10, 16);
    // The Control page with SWP.
    let list = [0, 0, 0, 0, 0x0a, 0x0a, 0, 0x10, 8, 0, 0, 0, 0xff, 0xff, 0, 0];
    assert_eq!(host.write(&mut bed, select, &list).status, 0);
    assert_eq!(host.write(&mut bed, write10(0, 1), &[1; 512]).sense, Some([7, 0x27, 2]));
    bed.apply(|map| target(map).luns.get_mut(&0).unwrap().volume = VolumeId(2));
    assert!(matches!(host.next(&mut bed), Some((Reply::Async(_), _))));
    assert_eq!(host.write(&mut bed, write10(0, 1), &[1; 512]).sense, Some([6, 0x29, 0]));
    assert_eq!(host.write(&mut bed, write10(0, 1), &[1; 512]).sense, Some([6, 0x3f, 0x0e]));
    while host.read(&mut bed, read10(0, 1), 512).status != 0 {}
    assert_eq!(host.write(&mut bed, write10(0, 1), &[1; 512]).status, 0);
    assert_eq!(bed.disk(2).read(0, 512), [1; 512]);
}

/// Guards a login that is under way when the access list, or the secret, is replaced: the new ones count.
#[test]
fn login_under_way() {
    let chap = |secret: &[u8]| Chap {
        initiator: ChapCredential { user: "alice".into(), secret: Sealed(secret.to_vec()) },
        target: None,
        algorithms: vec![ChapAlgorithm::Sha256],
    };
    type Change<'a> = Box<dyn FnOnce(&mut ClusterMap) + 'a>;
    let changes: [(Change<'_>, u16); 3] = [
        (Box::new(|map| map.targets.clear()), 0x0203),
        (Box::new(|map| target(map).acls = vec![Acl { initiator: "iqn.other".into(), from: None }]), 0x0202),
        (Box::new(|map| target(map).chap = Some(chap(b"a secret"))), 0x0201),
    ];
    for (change, status) in changes {
        let mut bed = Bed::new();
        let mut host = Initiator::new(bed.connect());
        let who = keys(&[("InitiatorName", INITIATOR), ("TargetName", IQN)]);
        host.login_step(&mut bed, 1, None, &who).unwrap();
        bed.apply(change);
        assert_eq!(host.login_step(&mut bed, 1, Some(3), &[]).map(drop), Err(status));
        assert_eq!(bed.sessions(), 0);
    }
}

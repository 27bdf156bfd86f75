//! Changes of the map while sessions are up.

use lunette_proto::ids::{TargetId, VolumeId};
use lunette_proto::iscsi::Reply;
use lunette_proto::map::{Acl, ClusterMap, Target, VolumeState};

use crate::bed::{Bed, VOLUME_BYTES};
use crate::initiator::{Initiator, read10};

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

//! Reinstatement of a connection (RFC 7143 6.3.4): a login that names the session and its connection takes
//! the session over. What was under way is over, what the I_T nexus keeps is not.

use lunette_proto::ids::{TargetId, VolumeId};
use lunette_proto::iscsi::{Reply, TAG_NONE};
use lunette_proto::map::{Acl, ClusterMap};

use crate::bed::{Bed, IQN, VOLUME_BYTES, pattern};
use crate::initiator::{INITIATOR, Initiator, keys, read10, write10};

const WHO: &[(&str, &str)] = &[("InitiatorName", INITIATOR), ("TargetName", IQN)];

/// A second connection of `host`, which names its session.
fn again(bed: &mut Bed, host: &Initiator) -> Initiator {
    let mut again = Initiator::new(bed.connect());
    (again.tsih, again.cmd_sn, again.isid) = (host.tsih, host.cmd_sn, host.isid);
    again
}

fn resize(map: &mut ClusterMap) {
    map.volumes.get_mut(&VolumeId(1)).unwrap().size_bytes = VOLUME_BYTES as u64 / 2;
}

/// Guards the session: same handle, same unit attentions, keys and command numbers go on, and the old
/// connection is closed.
#[test]
fn goes_on_with_the_session() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(
        &mut bed,
        &[("InitialR2T", "No"), ("FirstBurstLength", "2048"), ("HeaderDigest", "CRC32C")],
    );
    bed.apply(resize);
    let mut new = again(&mut bed, &host);
    new.login(&mut bed, &[("DataDigest", "CRC32C")]).unwrap();
    assert_eq!(new.tsih, host.tsih);
    assert_eq!(new.numbers.exp_cmd_sn, host.cmd_sn);
    assert_eq!(bed.sessions(), 1);
    assert!(bed.is_gone(host.id));
    host.expect_silence(&mut bed);
    assert_eq!(new.read(&mut bed, read10(0, 1), 512).sense, Some([6, 0x2a, 9]));
    assert_eq!(new.read(&mut bed, read10(0, 1), 512).sense, Some([6, 0x3f, 3]));
    // What the session agreed upon holds: unsolicited data, so much of it, and no digest of headers.
    let data = pattern(2048, 1);
    let mut command = new.command_header(write10(0, 4), 2048);
    (command.write, command.is_final) = (true, false);
    new.send(&mut bed, command.encode(), &data[..1024]);
    let out = lunette_proto::iscsi::initiator::DataOut {
        is_final: true,
        task_tag: command.task_tag,
        transfer_tag: TAG_NONE,
        offset: 1024,
        ..Default::default()
    };
    new.send(&mut bed, out.encode(), &data[1024..]);
    assert_eq!(new.end(&mut bed, command.task_tag, &[]).status, 0);
    assert_eq!(bed.disk(1).read(0, 2048), data);
    let mut command = new.command_header(write10(0, 8), 4096);
    command.write = true;
    new.send(&mut bed, command.encode(), &[0; 2049]);
    assert_eq!(new.end(&mut bed, command.task_tag, &[]).sense, Some([0xb, 0x0c, 0x0c]));
}

/// Guards against writes of the old connection that land after the login, and commands that were on
/// their way in it: they are not answered, and leave no hole behind.
#[test]
fn what_was_under_way_is_over() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[]);
    bed.disk(1).hold();
    let mut write = host.command_header(write10(0, 1), 512);
    write.write = true;
    host.send(&mut bed, write.encode(), &pattern(512, 1));
    let lost = host.command_header([0; 16], 0);
    let held = host.command_header([0; 16], 0);
    host.send(&mut bed, held.encode(), &[]);
    let mut new = again(&mut bed, &host);
    let request = new.login_request(1, Some(3));
    new.send(&mut bed, request.encode(), &keys(WHO));
    new.expect_silence(&mut bed);
    assert!(bed.is_closed(host.id) && !bed.is_gone(host.id));
    bed.disk(1).release();
    bed.settle();
    new.login_answer(&mut bed).unwrap();
    assert_eq!((new.tsih, new.numbers.exp_cmd_sn), (host.tsih, held.cmd_sn.plus(1)));
    // One that is sent again all the same has had its turn.
    new.send(&mut bed, lost.encode(), &[]);
    new.expect_silence(&mut bed);
    assert_eq!(new.write(&mut bed, write10(0, 1), &pattern(512, 7)).status, 0);
    assert_eq!(bed.disk(1).read(0, 512), pattern(512, 7));
}

/// Guards the old connection: whoever cannot prove the whole login does not end it.
#[test]
fn needs_the_whole_login() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[]);
    let mut half = again(&mut bed, &host);
    half.login_step(&mut bed, 1, None, &keys(WHO)).unwrap();
    assert_eq!(host.ping(&mut bed, b"here"), b"here");
    assert_eq!(half.login_step(&mut bed, 1, Some(3), b"x").map(drop), Err(0x0200));
    assert_eq!(host.ping(&mut bed, b"here"), b"here");
}

/// Guards what changed while nobody held the session: it is told to the new connection, and who is no
/// longer admitted does not get it.
#[test]
fn exports_change_under_way() {
    let target =
        |map: &mut ClusterMap| map.targets.get_mut(&TargetId(1)).unwrap().luns.retain(|lun, _| *lun == 0);
    let forbid = |map: &mut ClusterMap| {
        map.targets.get_mut(&TargetId(1)).unwrap().acls =
            vec![Acl { initiator: "iqn.other".into(), from: None }];
    };
    for is_admitted in [true, false] {
        let mut bed = Bed::new();
        let mut host = Initiator::ready(&mut bed, &[]);
        bed.disk(1).hold();
        let mut write = host.command_header(write10(0, 1), 512);
        write.write = true;
        host.send(&mut bed, write.encode(), &pattern(512, 1));
        let mut new = again(&mut bed, &host);
        let request = new.login_request(1, Some(3));
        new.send(&mut bed, request.encode(), &keys(WHO));
        // The old connection waits for its device; the new one for the old.
        if is_admitted {
            bed.apply(target)
        } else {
            bed.apply(forbid)
        }
        new.expect_silence(&mut bed);
        bed.disk(1).release();
        bed.settle();
        let answer = new.login_answer(&mut bed).map(drop);
        if !is_admitted {
            assert_eq!(answer, Err(0x0202));
            assert_eq!(bed.sessions(), 0);
            continue;
        }
        assert_eq!(answer, Ok(()));
        while let Some((reply, _)) = new.next(&mut bed) {
            assert!(matches!(reply, Reply::Async(_)), "{reply:?}");
        }
        assert_eq!(new.read(&mut bed, read10(0, 1), 512).sense, Some([6, 0x3f, 0x0e]));
        assert_eq!(new.command_to(&mut bed, 1 << 48, read10(0, 1), 512, &[]).sense, Some([5, 0x25, 0]));
    }
}

/// Guards against a session that is gone, or is being replaced by a new one: there is nothing to go on with.
#[test]
fn gone_sessions() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[]);
    let mut late = again(&mut bed, &host);
    bed.disk(1).hold();
    let mut write = host.command_header(write10(0, 1), 512);
    write.write = true;
    host.send(&mut bed, write.encode(), &pattern(512, 1));
    let mut new = Initiator::new(bed.connect());
    let request = new.login_request(1, Some(3));
    new.send(&mut bed, request.encode(), &keys(WHO));
    assert_eq!(late.login(&mut bed, &[]), Err(0x020a));
    bed.disk(1).release();
    bed.settle();
    new.login_answer(&mut bed).unwrap();
    assert_ne!(new.tsih, host.tsih);
    let mut late = again(&mut bed, &host);
    assert_eq!(late.login(&mut bed, &[]), Err(0x020a));
    new.clear_attention(&mut bed);
}

/// Guards a storm of reinstatements of one connection: the last has the session, once.
#[test]
fn storm() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[]);
    bed.disk(1).hold();
    let mut write = host.command_header(write10(0, 1), 512);
    write.write = true;
    host.send(&mut bed, write.encode(), &pattern(512, 1));
    let mut storm: Vec<Initiator> = (0..5)
        .map(|_| {
            let mut new = again(&mut bed, &host);
            let request = new.login_request(1, Some(3));
            new.send(&mut bed, request.encode(), &keys(WHO));
            new
        })
        .collect();
    bed.disk(1).release();
    bed.settle();
    let mut last = storm.pop().unwrap();
    assert!(bed.is_gone(host.id) && storm.iter().all(|new| bed.is_gone(new.id)));
    last.login_answer(&mut bed).unwrap();
    assert_eq!((last.tsih, bed.sessions()), (host.tsih, 1));
    assert_eq!(last.read(&mut bed, read10(0, 1), 512).status, 0);
}

//! Mode parameters and sanitize operations among sessions: what they share, who is told, and what is waited for.

use lunette_proto::iscsi::initiator::ScsiCommand;
use lunette_target_iscsi::exports::KeepError;
use lunette_target_iscsi::scsi::Ended as SanitizeEnded;

use crate::bed::Bed;
use crate::initiator::{Ended, Initiator, read10, write10};

const CHANGED: Option<[u8; 3]> = Some([6, 0x2a, 0x01]);
const SANITIZING: Option<[u8; 3]> = Some([2, 0x04, 0x1b]);

fn cdb(bytes: &[u8]) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[..bytes.len()].copy_from_slice(bytes);
    cdb
}

fn test_unit_ready(bed: &mut Bed, host: &mut Initiator) -> Ended {
    host.read(bed, [0; 16], 0)
}

/// The Control page with SWP as it is to be.
fn software_write_protect(bed: &mut Bed, host: &mut Initiator, is_set: bool) -> Ended {
    let list = [0, 0, 0, 0, 0x0a, 0x0a, 0, 0x10, u8::from(is_set) << 3, 0, 0, 0, 0xff, 0xff, 0, 0];
    host.write(bed, cdb(&[0x15, 0x10, 0, 0, 16]), &list)
}

fn caching(is_set: bool) -> [u8; 24] {
    let mut list = [0; 24];
    list[4..7].copy_from_slice(&[0x08, 0x12, u8::from(is_set) << 2]);
    list
}

fn write_cache(bed: &mut Bed, host: &mut Initiator, is_set: bool) -> Ended {
    host.write(bed, cdb(&[0x15, 0x10, 0, 0, 24]), &caching(is_set))
}

/// Whether WCE is set, as MODE SENSE shows it.
fn shows_write_cache(bed: &mut Bed, host: &mut Initiator) -> bool {
    host.read(bed, cdb(&[0x1a, 0x08, 0x08, 0, 255]), 255).data[6] & 0x04 != 0
}

/// Guards SWP: it binds every session, the others are told once, and a reset of the unit takes it away.
#[test]
fn write_protection_is_shared() {
    let mut bed = Bed::new();
    let [mut one, mut two] = [1, 2].map(|isid| Initiator::ready_as(&mut bed, isid));
    assert_eq!(software_write_protect(&mut bed, &mut one, true).status, 0);
    assert_eq!(test_unit_ready(&mut bed, &mut two).sense, CHANGED);
    for host in [&mut one, &mut two] {
        assert_eq!(host.write(&mut bed, write10(0, 1), &[1; 512]).sense, Some([7, 0x27, 0x02]));
        assert_eq!(host.read(&mut bed, read10(0, 1), 512).status, 0);
    }
    // Nothing changes, so nobody is told.
    assert_eq!(software_write_protect(&mut bed, &mut two, true).status, 0);
    assert_eq!(test_unit_ready(&mut bed, &mut one).status, 0);
    let function = one.manage(&mut bed, 5, 0, &ScsiCommand::default());
    assert_eq!(one.managed(&mut bed, function), 0);
    for host in [&mut one, &mut two] {
        assert_eq!(test_unit_ready(&mut bed, host).sense, Some([6, 0x29, 0x03]));
        assert_eq!(host.write(&mut bed, write10(0, 1), &[1; 512]).status, 0);
    }
}

/// Guards WCE: it changes when it has been kept, the other sessions are told before the answer, and the map that
/// brings it tells nobody again.
#[test]
fn write_cache_is_kept() {
    let mut bed = Bed::new();
    let [mut one, mut two] = [1, 2].map(|isid| Initiator::ready_as(&mut bed, isid));
    bed.keeper().hold();
    let mut command = one.command_header(cdb(&[0x15, 0x10, 0, 0, 24]), 24);
    command.write = true;
    one.send(&mut bed, command.encode(), &caching(true));
    one.expect_silence(&mut bed);
    assert!(!shows_write_cache(&mut bed, &mut two));
    bed.keeper().release();
    bed.settle();
    assert_eq!(one.end(&mut bed, command.task_tag, &[]).status, 0);
    assert_eq!(test_unit_ready(&mut bed, &mut two).sense, CHANGED);
    for host in [&mut one, &mut two] {
        assert!(shows_write_cache(&mut bed, host));
    }
    bed.learn();
    for host in [&mut one, &mut two] {
        assert_eq!(test_unit_ready(&mut bed, host).sense, None);
    }
}

/// Guards a change by another gateway, or an administrator: every session is told, once.
#[test]
fn write_cache_changed_elsewhere() {
    let mut bed = Bed::new();
    let [mut one, mut two] = [1, 2].map(|isid| Initiator::ready_as(&mut bed, isid));
    bed.apply(|map| map.volumes.values_mut().for_each(|volume| volume.write_back = true));
    for host in [&mut one, &mut two] {
        assert_eq!(test_unit_ready(&mut bed, host).sense, CHANGED);
        assert_eq!(test_unit_ready(&mut bed, host).sense, None);
        assert!(shows_write_cache(&mut bed, host));
    }
}

/// Guards a change that is not kept, or nobody knows: the sense says which, and nothing is shown that is not so.
#[test]
fn write_cache_is_not_kept() {
    let mut bed = Bed::new();
    let [mut one, mut two] = [1, 2].map(|isid| Initiator::ready_as(&mut bed, isid));
    for (error, sense) in
        [(KeepError::Gone, [5, 0x25, 0x00]), (KeepError::Unavailable("no quorum".into()), [0xb, 0x08, 0x01])]
    {
        bed.keeper().fail_next(error, false);
        assert_eq!(write_cache(&mut bed, &mut one, true).sense, Some(sense));
        assert!(!shows_write_cache(&mut bed, &mut two));
        assert_eq!(test_unit_ready(&mut bed, &mut two).sense, None);
    }
    bed.keeper().fail_next(KeepError::Conflict, false);
    assert_eq!(write_cache(&mut bed, &mut one, true).status, 0x08);
    assert_eq!(write_cache(&mut bed, &mut one, true).status, 0);
}

fn erase(bed: &mut Bed, host: &mut Initiator, immediate: bool) -> u32 {
    let command = host.command_header(cdb(&[0x48, 0x02 | u8::from(immediate) << 7]), 0);
    host.send(bed, command.encode(), &[]);
    command.task_tag
}

/// Whoever carries it out has come to the end of it.
fn end_erasing(bed: &mut Bed) {
    let unit = bed.context.exports.load().unit(lunette_proto::ids::VolumeId(1)).expect("it is mapped");
    let (revision, _) = unit.shared.sanitize_operation().expect("one goes on");
    let ended = SanitizeEnded { revision, has_failed: false };
    unit.shared.change(Box::new(ended), Box::new(|settled| assert!(settled.is_ok())));
    unit.shared.sanitize_ended();
    bed.settle();
}

/// Guards a sanitize operation with IMMED=0: the command is answered at its end; every session is refused meanwhile,
/// also what came before and is collected afterwards.
#[test]
fn sanitize_is_waited_for() {
    let mut bed = Bed::new();
    let [mut one, mut two, mut three] = [1, 2, 3].map(|isid| Initiator::ready_as(&mut bed, isid));
    let data = [1; 16384];
    let mut late = two.command_header(write10(0, 32), 16384);
    late.write = true;
    assert!(two.begin_write(&mut bed, &mut late, &data) < data.len(), "the rest is asked for");
    let tag = erase(&mut bed, &mut one, false);
    one.expect_silence(&mut bed);
    for host in [&mut one, &mut three] {
        assert_eq!(host.read(&mut bed, cdb(&[0x1a, 0x08, 0x08, 0, 255]), 255).sense, SANITIZING);
    }
    assert_eq!(two.end(&mut bed, late.task_tag, &data).status, 0x08);
    end_erasing(&mut bed);
    assert_eq!(one.end(&mut bed, tag, &[]).status, 0);
    for host in [&mut one, &mut two, &mut three] {
        assert_eq!(test_unit_ready(&mut bed, host).sense, None);
    }
}

/// Guards aborts: they do not wait for a sanitize operation, which goes on all the same, and over the end of the
/// session.
#[test]
fn sanitize_is_not_aborted() {
    let mut bed = Bed::new();
    let [mut one, mut two] = [1, 2].map(|isid| Initiator::ready_as(&mut bed, isid));
    let task_tag = erase(&mut bed, &mut one, false);
    let function = one.manage(&mut bed, 1, 0, &ScsiCommand { task_tag, ..ScsiCommand::default() });
    assert_eq!(one.managed(&mut bed, function), 0);
    let function = one.manage(&mut bed, 5, 0, &ScsiCommand::default());
    assert_eq!(one.managed(&mut bed, function), 0);
    for host in [&mut one, &mut two] {
        assert_eq!(test_unit_ready(&mut bed, host).sense, Some([6, 0x29, 0x03]));
        assert_eq!(test_unit_ready(&mut bed, host).sense, SANITIZING);
    }
    end_erasing(&mut bed);
    one.expect_silence(&mut bed);
    assert_eq!(test_unit_ready(&mut bed, &mut two).sense, None);
    // A session that ends does not wait either.
    erase(&mut bed, &mut one, false);
    bed.cut(one.id);
    assert!(bed.is_gone(one.id));
    assert_eq!(test_unit_ready(&mut bed, &mut two).sense, SANITIZING);
}

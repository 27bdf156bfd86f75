//! Which commands a reservation lets through, for whom, and for how long.

use lunette_proto::iscsi::Reply;
use lunette_proto::iscsi::initiator::{LogoutRequest, ScsiCommand};

use super::*;

/// Guards access under each type: what SPC-4 tables 65 and 66 and SBC-3 table 13 say, for the holder, another
/// registrant and a nexus that is not registered.
#[test]
fn access_under_each_type() {
    // Reads, then writes, of a registrant and a stranger.
    let table = [
        (1, [true, true], [false, false]),
        (3, [false, false], [false, false]),
        (5, [true, true], [true, false]),
        (6, [true, false], [true, false]),
        (7, [true, true], [true, false]),
        (8, [true, false], [true, false]),
    ];
    for (kind, reads, writes) in table {
        let mut bed = Bed::new();
        let [mut holder, mut registrant, mut stranger] = three(&mut bed);
        assert_eq!(out(&mut bed, &mut holder, RESERVE, kind, 1, 0), 0);
        let status = |is_allowed: bool| if is_allowed { 0 } else { CONFLICT };
        for (host, may_read, may_write) in [
            (&mut holder, true, true),
            (&mut registrant, reads[0], writes[0]),
            (&mut stranger, reads[1], writes[1]),
        ] {
            let bed = &mut bed;
            assert_eq!(read(bed, host), status(may_read), "type {kind}");
            assert_eq!(write(bed, host), status(may_write), "type {kind}");
            for (is_write, command) in [
                (false, &[0x1a, 0, 0x3f, 0, 0][..]), // MODE SENSE(6)
                (false, &[0x9e, 0x12]),              // GET LBA STATUS
                (false, &[0xa3, 0x0c]),              // REPORT SUPPORTED OPERATION CODES
                (true, &[0x35]),                     // SYNCHRONIZE CACHE(10)
                (true, &[0x15, 0x10]),               // MODE SELECT(6)
                (true, &[0x42]),                     // UNMAP
            ] {
                let may = if is_write { may_write } else { may_read };
                assert_eq!(plain(bed, host, command), status(may), "type {kind} {command:02x?}");
            }
            for always in [
                &[0x00][..],
                &[0x12],
                &[0xa0],
                &[0x03],
                &[0x25],
                &[0x9e, 0x10],
                &[0xa3, 0x0a],
                &[0x1b, 0, 0, 0, 1],
            ] {
                assert_eq!(plain(bed, host, always), 0, "type {kind} {always:02x?}");
            }
            assert_eq!(keys(bed, host), [1, 2]);
            // Another LUN is another unit.
            assert_eq!(host.command_to(bed, 1 << 48, read10(0, 1), 512, &[]).status, 0);
        }
        // Nobody else can reserve; the holder may ask again, but not for another type.
        assert_eq!(out(&mut bed, &mut stranger, RESERVE, kind, 0, 0), CONFLICT);
        assert_eq!(out(&mut bed, &mut holder, RESERVE, kind, 1, 0), 0);
        assert_eq!(out(&mut bed, &mut holder, RESERVE, TYPES[usize::from(kind == 1)], 1, 0), CONFLICT);
        assert_eq!(out(&mut bed, &mut registrant, RESERVE, kind, 2, 0), status(kind >= 7));
    }
}

/// Guards RESERVE and RELEASE against resets, strangers and persistent reservations (SPC-2 5.5.1, SPC-4 5.13.3).
#[test]
fn classic_reservations() {
    let mut bed = Bed::new();
    let [mut a, mut b] = [1, 2].map(|isid| Initiator::ready_as(&mut bed, isid));
    for (reserve, release) in [(0x16, 0x17), (0x56, 0x57)] {
        assert_eq!(plain(&mut bed, &mut a, &[reserve]), 0);
        assert_eq!(plain(&mut bed, &mut a, &[reserve]), 0);
        assert_eq!(plain(&mut bed, &mut b, &[reserve]), CONFLICT);
        assert_eq!(plain(&mut bed, &mut b, &[release]), 0);
        assert_eq!((read(&mut bed, &mut b), write(&mut bed, &mut b)), (CONFLICT, CONFLICT));
        assert_eq!((read(&mut bed, &mut a), write(&mut bed, &mut a)), (0, 0));
        // With anybody's reservation, also one's own.
        assert_eq!(out(&mut bed, &mut a, REGISTER, 0, 0, 1), CONFLICT);
        assert_eq!(plain(&mut bed, &mut a, &[0x5e, 0]), CONFLICT);
        assert_eq!(plain(&mut bed, &mut a, &[release]), 0);
        assert_eq!(write(&mut bed, &mut b), 0);
        // Third parties and extents.
        for bad in [0x01, 0x10] {
            assert_eq!(a.command_to(&mut bed, 0, cdb(&[reserve, bad]), 0, &[]).sense, Some([5, 0x24, 0]));
        }
    }
    for reset in [5, 6] {
        assert_eq!(plain(&mut bed, &mut a, &[0x16]), 0);
        let none = ScsiCommand::default();
        let tag = b.manage(&mut bed, reset, 0, &none);
        assert_eq!(b.managed(&mut bed, tag), 0);
        for host in [&mut a, &mut b] {
            assert_eq!(test_unit_ready(&mut bed, host).sense, Some([6, 0x29, 3]));
            assert_eq!(test_unit_ready(&mut bed, host).status, 0);
        }
        // What the reset has ended is not ended once more when its session goes.
        assert_eq!(plain(&mut bed, &mut b, &[0x16]), 0);
        bed.cut(a.id);
        a = Initiator::ready_as(&mut bed, 1);
        assert_eq!(write(&mut bed, &mut a), CONFLICT);
        assert_eq!(plain(&mut bed, &mut b, &[0x17]), 0);
    }
    for (kind, of_holder, of_registrant) in [(0, CONFLICT, CONFLICT), (1, 0, CONFLICT), (5, 0, 0), (8, 0, 0)]
    {
        let mut bed = Bed::new();
        let [mut holder, mut registrant, mut stranger] = three(&mut bed);
        if kind != 0 {
            assert_eq!(out(&mut bed, &mut holder, RESERVE, kind, 1, 0), 0);
        }
        for classic in [0x16, 0x17, 0x56, 0x57] {
            assert_eq!(plain(&mut bed, &mut holder, &[classic]), of_holder, "type {kind}");
            assert_eq!(plain(&mut bed, &mut registrant, &[classic]), of_registrant, "type {kind}");
            assert_eq!(plain(&mut bed, &mut stranger, &[classic]), CONFLICT, "type {kind}");
        }
        assert_eq!(out(&mut bed, &mut holder, CLEAR, 0, 1, 0), 0);
        assert_eq!(write(&mut bed, &mut stranger), 0, "nothing was reserved");
    }
}

/// Guards the precedence of SAM-5 5.3.3: a unit attention comes before a conflict, a conflict before write protection.
#[test]
fn precedence() {
    let mut bed = Bed::new();
    let [mut holder, mut registrant, _] = three(&mut bed);
    assert_eq!(out(&mut bed, &mut holder, PREEMPT, 1, 1, 2), 0);
    assert_eq!(out(&mut bed, &mut holder, RESERVE, 1, 1, 0), 0);
    bed.apply(|map| {
        let target = map.targets.values_mut().next().unwrap();
        target.luns.get_mut(&0).unwrap().read_only = true;
    });
    let ended = registrant.write(&mut bed, write10(0, 1), &pattern(512, 1));
    assert_eq!(ended.sense, UNREGISTERED);
    let ended = registrant.write(&mut bed, write10(0, 1), &pattern(512, 1));
    assert_eq!(ended.sense, Some([6, 0x3f, 3]));
    assert_eq!(write(&mut bed, &mut registrant), CONFLICT);
    let _ = test_unit_ready(&mut bed, &mut holder);
    assert_eq!(holder.write(&mut bed, write10(0, 1), &pattern(512, 1)).sense, Some([7, 0x27, 0]));
}

/// Guards two LUNs of one volume: there is one unit behind them.
#[test]
fn one_unit_behind_many_luns() {
    let mut map = crate::bed::map();
    let target = map.targets.values_mut().next().unwrap();
    let lun = target.luns[&0];
    target.luns.insert(1, lun);
    let mut bed = Bed::with_map(map);
    let [mut a, mut b] = [1, 2].map(|isid| Initiator::ready_as(&mut bed, isid));
    assert_eq!(out(&mut bed, &mut a, REGISTER, 0, 0, 1), 0);
    assert_eq!(out(&mut bed, &mut a, RESERVE, 3, 1, 0), 0);
    assert_eq!(b.command_to(&mut bed, 1 << 48, read10(0, 1), 512, &[]).status, CONFLICT);
    assert_eq!(a.command_to(&mut bed, 1 << 48, read10(0, 1), 512, &[]).status, 0);
}
/// Guards what is kept: a registration and a reservation stay over logout and login, and belong to the ISID; a
/// reservation by RESERVE goes with its session, however that ends.
#[test]
fn over_the_end_of_a_session() {
    let mut bed = Bed::new();
    let mut other = Initiator::ready_as(&mut bed, 9);
    for end in 0..4 {
        let mut host = Initiator::ready_as(&mut bed, 1);
        assert_eq!(plain(&mut bed, &mut host, &[0x16]), 0);
        assert_eq!(test_unit_ready(&mut bed, &mut other).status, CONFLICT);
        assert_eq!(plain(&mut bed, &mut other, &[0x12]), 0);
        match end {
            0 => log_out(&mut bed, &mut host),
            1 => bed.cut(host.id),
            2 => bed.event(host.id, lunette_target_iscsi::session::Event::Kick),
            // Reinstated.
            _ => drop(Initiator::ready_as(&mut bed, 1)),
        }
        assert_eq!(test_unit_ready(&mut bed, &mut other).status, 0, "end {end}");
    }
    let mut host = Initiator::ready_as(&mut bed, 1);
    assert_eq!(out(&mut bed, &mut host, REGISTER, 0, 0, 7), 0);
    assert_eq!(out(&mut bed, &mut host, RESERVE, 1, 7, 0), 0);
    log_out(&mut bed, &mut host);
    assert_eq!(write(&mut bed, &mut other), CONFLICT);
    let mut host = Initiator::ready_as(&mut bed, 1);
    assert_eq!(write(&mut bed, &mut host), 0);
    let mut stranger = Initiator::ready_as(&mut bed, 2);
    assert_eq!(write(&mut bed, &mut stranger), CONFLICT);
}

fn log_out(bed: &mut Bed, host: &mut Initiator) {
    let logout =
        LogoutRequest { task_tag: host.next_tag(), cmd_sn: host.cmd_sn.take(), ..LogoutRequest::default() };
    host.send(bed, logout.encode(), &[]);
    assert!(matches!(host.next(bed), Some((Reply::Logout(_), _))));
}

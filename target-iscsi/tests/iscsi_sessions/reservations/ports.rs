//! Parameter lists: ports of initiators and targets by name, and what is malformed.

use lunette_proto::map::Gateway;

use super::*;

/// A TransportID of a port of the initiator.
fn transport_id(isid: u8) -> Vec<u8> {
    let mut id = vec![0x45, 0, 0, 0];
    id.extend(format!("{},i,0x8000000000{isid:02X}\0", crate::initiator::INITIATOR).into_bytes());
    id.resize(id.len().next_multiple_of(4), 0);
    id[3] = id.len() as u8 - 4;
    id
}

/// Guards SPEC_I_PT, ALL_TG_PT and READ FULL STATUS, as SPC-4 6.15.5 lays it out.
#[test]
fn ports() {
    let mut bed = Bed::new();
    bed.apply(|map| {
        for (id, tag) in [(1, 1), (2, 2)] {
            let id = lunette_proto::ids::GatewayId(id);
            let gateway = Gateway { id, name: format!("g{tag}"), portal_group_tag: tag, portals: vec![] };
            map.gateways.insert(id, gateway);
        }
    });
    let [mut a, mut b] = [1, 2].map(|isid| Initiator::ready_as(&mut bed, isid));
    let mut list = list(0, 7, 0x08 | 0x04 | 0x01);
    let ids = [transport_id(2), transport_id(3)].concat();
    list.extend((ids.len() as u32).to_be_bytes());
    list.extend(&ids);
    assert_eq!(send_out(&mut bed, &mut a, REGISTER, 0, &list).status, 0);
    assert_eq!(keys(&mut bed, &mut b), [7; 6]);
    assert_eq!(out(&mut bed, &mut b, RESERVE, 1, 7, 0), 0);
    let status = report(&mut bed, &mut a, 3, 4096);
    assert_eq!(status[..4], [0, 0, 0, 1]);
    assert_eq!(u32::from_be_bytes(status[4..8].try_into().unwrap()) as usize, status.len() - 8);
    let mut rest = &status[8..];
    let mut seen = Vec::new();
    while !rest.is_empty() {
        let len = u32::from_be_bytes(rest[20..24].try_into().unwrap()) as usize;
        assert_eq!(rest[..8], 7u64.to_be_bytes());
        let id = rest[24..24 + len].to_ascii_uppercase();
        let isid = (1..4).find(|isid| transport_id(*isid).to_ascii_uppercase() == id).unwrap();
        seen.push((isid, rest[19], rest[12], rest[13]));
        rest = &rest[24 + len..];
    }
    seen.sort_unstable();
    assert_eq!(seen, [(1, 1, 2, 0), (1, 2, 2, 0), (2, 1, 3, 1), (2, 2, 2, 0), (3, 1, 2, 0), (3, 2, 2, 0)]);
    // One port of it unregisters: what is left is not all target ports any more.
    assert_eq!(out(&mut bed, &mut a, REGISTER, 0, 7, 0), 0);
    let status = report(&mut bed, &mut a, 3, 4096);
    assert_eq!((status[8 + 19], status[8 + 12]), (2, 0));
    // Capabilities: CRH, SIP_C, ATP_C, PTPL_C, all types; APTPL was given up by the last registration.
    assert_eq!(report(&mut bed, &mut a, 2, 64), [0, 8, 0x1d, 0xb0, 0xea, 1, 0, 0]);
    assert_eq!(report(&mut bed, &mut a, 2, 3), [0, 8, 0x1d]);
    // SPEC_I_PT is for those that are not registered.
    assert_eq!(
        send_out(&mut bed, &mut b, REGISTER, 0, &{
            list[7] = 7;
            list.clone()
        })
        .sense,
        Some([5, 0x26, 0])
    );
}

/// Guards TransportIDs of a device: they name its ports that are logged in, and to be moved to there must be one.
#[test]
fn names_of_devices() {
    let mut bed = Bed::new();
    let [mut a, b, mut c] = [1, 2, 3].map(|isid| Initiator::ready_as(&mut bed, isid));
    let mut id = vec![0x05, 0, 0, 0];
    id.extend(format!("{}\0", crate::initiator::INITIATOR.to_uppercase()).into_bytes());
    id.resize(id.len().next_multiple_of(4), 0);
    id[3] = id.len() as u8 - 4;
    let specify = [list(0, 7, 0x08), (id.len() as u32).to_be_bytes().to_vec(), id.clone()].concat();
    bed.cut(b.id);
    assert_eq!(send_out(&mut bed, &mut a, REGISTER, 0, &specify).status, 0);
    assert_eq!(keys(&mut bed, &mut a), [7, 7]);
    assert_eq!(out(&mut bed, &mut c, RESERVE, 3, 7, 0), 0);
    let mut order = list(7, 8, 0);
    order[19] = 1;
    order[20..24].copy_from_slice(&(id.len() as u32).to_be_bytes());
    order.extend(&id);
    assert_eq!(send_out(&mut bed, &mut c, MOVE, 0, &order).sense, Some([5, 0x26, 0]), "to which of two?");
    let at = order.len() - id.len();
    order[at + 4..].fill(0);
    order[at + 4..at + 11].copy_from_slice(b"iqn.x:y");
    assert_eq!(send_out(&mut bed, &mut c, MOVE, 0, &order).sense, Some([5, 0x26, 0]), "nobody");
}

/// Guards REGISTER AND MOVE: to a nexus that is logged in or not, with its old registration or without; and what it
/// refuses.
#[test]
fn register_and_move() {
    let order = |key: u64, new_key: u64, flags: u8, port: u16, id: &[u8]| {
        let mut list = key.to_be_bytes().to_vec();
        list.extend(new_key.to_be_bytes());
        list.extend([0, flags]);
        list.extend(port.to_be_bytes());
        list.extend((id.len() as u32).to_be_bytes());
        list.extend(id);
        list
    };
    let mut bed = Bed::new();
    let [mut holder, mut registrant, mut stranger] = three(&mut bed);
    let send = |bed: &mut Bed, host: &mut Initiator, list: &[u8]| {
        let ended = send_out(bed, host, MOVE, 0, list);
        (ended.status, ended.sense)
    };
    let conflict = (CONFLICT, None);
    // There is nothing to be moved yet.
    assert_eq!(send(&mut bed, &mut holder, &order(1, 9, 0, 1, &transport_id(3))), (2, Some([5, 0x24, 0])));
    assert_eq!(out(&mut bed, &mut holder, RESERVE, 3, 1, 0), 0);
    assert_eq!(send(&mut bed, &mut registrant, &order(2, 9, 0, 1, &transport_id(3))), conflict);
    assert_eq!(send(&mut bed, &mut stranger, &order(0, 9, 0, 1, &transport_id(3))), conflict);
    assert_eq!(send(&mut bed, &mut holder, &order(5, 9, 0, 1, &transport_id(3))), conflict);
    let device = [&[5, 0, 0, 20][..], b"iqn.2026-11.org.x:y\0"].concat();
    for bad in [
        order(1, 0, 0, 1, &transport_id(3)), // no key
        order(1, 9, 0, 1, &transport_id(1)), // to itself
        order(1, 9, 0, 4, &transport_id(3)), // no such port
        order(1, 9, 0, 1, &device),          // which of its ports?
        order(1, 9, 0, 1, &[transport_id(3), transport_id(2)].concat()),
    ] {
        assert_eq!(send(&mut bed, &mut holder, &bad), (2, Some([5, 0x26, 0])), "{bad:02x?}");
    }
    assert_eq!(
        send(&mut bed, &mut holder, &order(1, 9, 0, 1, &transport_id(3))[..40]),
        (2, Some([5, 0x1a, 0]))
    );
    assert_eq!(send(&mut bed, &mut holder, &order(1, 9, 1, 1, &transport_id(3))), (0, None));
    assert_eq!(keys(&mut bed, &mut holder), [1, 2, 9]);
    assert_eq!([read(&mut bed, &mut holder), read(&mut bed, &mut stranger)], [CONFLICT, 0]);
    assert_eq!(report(&mut bed, &mut holder, 2, 8)[3] & 1, 1, "APTPL");
    // Back to one that is registered, which gets another key; the sender leaves.
    assert_eq!(send(&mut bed, &mut stranger, &order(9, 8, 2, 1, &transport_id(2))), (0, None));
    assert_eq!(keys(&mut bed, &mut holder), [1, 8]);
    assert_eq!([read(&mut bed, &mut registrant), read(&mut bed, &mut stranger)], [0, CONFLICT]);
    for host in [&mut holder, &mut registrant, &mut stranger] {
        assert_eq!(test_unit_ready(&mut bed, host).sense, None);
    }
    // What all registrants hold cannot be moved.
    assert_eq!(out(&mut bed, &mut registrant, RELEASE, 3, 8, 0), 0);
    assert_eq!(out(&mut bed, &mut registrant, RESERVE, 7, 8, 0), 0);
    assert_eq!(send(&mut bed, &mut registrant, &order(8, 9, 0, 1, &transport_id(3))), conflict);
}

/// Guards what is refused before anything is decided: lengths, scopes, types, flags, service actions. PRGENERATION
/// shows that nothing was changed.
#[test]
fn malformed() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready_as(&mut bed, 1);
    assert_eq!(out(&mut bed, &mut host, REGISTER, 0, 0, 1), 0);
    let mut sense =
        |action: u8, kind: u8, list: &[u8]| send_out(&mut bed, &mut host, action, kind, list).sense;
    let right = list(1, 2, 0);
    let (length, cdb_field, list_field) = (Some([5, 0x1a, 0]), Some([5, 0x24, 0]), Some([5, 0x26, 0]));
    for action in REGISTER..=MOVE {
        assert_eq!(sense(action, 1, &right[..20]), length, "action {action}");
        if action != MOVE {
            assert_eq!(sense(action, 1, &[right.clone(), vec![0; 4]].concat()), length, "action {action}");
        }
        if ![REGISTER, MOVE].contains(&action) {
            assert_eq!(sense(action, 1, &list(1, 2, 8)), list_field, "action {action}");
        }
    }
    for kind in [0, 2, 4, 9, 0xf, 0x11, 0x21] {
        assert_eq!(sense(RESERVE, kind, &right), cdb_field, "type {kind:x}");
    }
    for action in 8..32 {
        assert_eq!(sense(action, 1, &right), cdb_field, "action {action}");
    }
    assert_eq!(sense(PREEMPT, 1, &list(1, 0, 0)), list_field);
    let mut strange = list(0, 2, 8);
    strange.extend([0, 0, 0, 24]);
    strange.extend([0x46; 24]);
    assert_eq!(sense(REGISTER, 0, &strange), list_field);
    assert_eq!(sense(REGISTER, 0, &strange[..40]), length);
    assert_eq!(sense(REGISTER, 0, &strange[..26]), length);
    for action in 4..32 {
        let ended = host.read(&mut bed, cdb(&[0x5e, action, 0, 0, 0, 0, 0, 1]), 256);
        assert_eq!(ended.sense, cdb_field, "action {action}");
    }
    // A list of which less comes than was said.
    let ended = host.write(&mut bed, out_cdb(REGISTER, 0, 24), &right[..16]);
    assert_eq!(ended.sense, length);
    assert_eq!(out(&mut bed, &mut host, RESERVE, 1, 1, 0), 0);
    assert_eq!(send_out(&mut bed, &mut host, RELEASE, 3, &list(1, 0, 0)).sense, Some([5, 0x26, 4]));
    assert_eq!(report(&mut bed, &mut host, 0, 64), [0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1]);
    assert_eq!(out(&mut bed, &mut host, IGNORE, 0, 99, 2), 0);
    assert_eq!(keys(&mut bed, &mut host), [2]);
}

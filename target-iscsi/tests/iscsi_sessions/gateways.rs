//! Two gateways over one map: what a standby path does and does not, and what becomes of sessions when the owner
//! changes.

use std::net::SocketAddr;
use std::sync::Arc;

use lunette_proto::ids::{GatewayId, Generation, VolumeId};
use lunette_proto::iscsi::Reply;
use lunette_proto::iscsi::initiator::ScsiCommand;
use lunette_proto::map::{ClusterMap, Gateway, Owner, Registrant, Reservation, ReservationType};
use lunette_target_iscsi::session::Endpoint;

use crate::bed::{Bed, Disks, IQN, Keeper, VOLUME_BYTES, map, pattern};
use crate::device::Model;
use crate::initiator::{Ended, Initiator, keys, read10, write10};

const STANDBY: Option<[u8; 3]> = Some([2, 0x04, 0x0b]);
const TRANSITION: Option<[u8; 3]> = Some([2, 0x04, 0x0a]);
const ACCESS_CHANGED: Option<[u8; 3]> = Some([6, 0x2a, 0x06]);
const NEXUS_LOST: Option<[u8; 3]> = Some([6, 0x29, 0x07]);
const ACTIVE_STATE: u8 = 0x0;
const STANDBY_STATE: u8 = 0x2;
const TRANSITIONING_STATE: u8 = 0xf;
const REJECTED: u8 = 255;

/// The gateways with the tags 1 and 2, which show the volumes at the same LUNs.
struct Pair {
    beds: [Bed; 2],
    generation: u64,
}

fn cdb(bytes: &[u8]) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[..bytes.len()].copy_from_slice(bytes);
    cdb
}

fn own(map: &mut ClusterMap, volume: u64, gateway: Option<u32>, generation: u64) {
    let volume = map.volumes.get_mut(&VolumeId(volume)).unwrap();
    volume.generation = Generation(generation);
    volume.owner = gateway.map(|id| Owner { gateway: GatewayId(id), generation: Generation(generation) });
}

impl Pair {
    /// Both volumes are the first gateway's.
    fn new() -> Self {
        let mut map = map();
        for id in [1, 2] {
            let gateway = Gateway {
                id: GatewayId(id.into()),
                name: format!("gateway{id}"),
                portal_group_tag: id,
                portals: vec![format!("127.0.0.1:{}", 3259 + id).parse().unwrap()],
            };
            map.gateways.insert(gateway.id, gateway);
        }
        for volume in [1, 2] {
            own(&mut map, volume, Some(1), 1);
        }
        let models: std::collections::BTreeMap<_, _> =
            map.volumes.keys().map(|id| (*id, Model::new(VOLUME_BYTES))).collect();
        let keeper = Arc::new(Keeper::default());
        let bed = |tag| Bed::gateway(map.clone(), tag, Disks::new(models.clone(), Arc::clone(&keeper)));
        Self { beds: [bed(1), bed(2)], generation: 1 }
    }

    /// Volume 1 goes to a gateway, or to nobody.
    fn own(&mut self, gateway: Option<u32>) {
        self.generation += 1;
        for bed in &mut self.beds {
            bed.apply(|map| own(map, 1, gateway, self.generation));
        }
    }

    /// A map comes with all that was kept.
    fn learn(&mut self) {
        for bed in &mut self.beds {
            bed.learn();
        }
    }

    /// An initiator with a session at each gateway.
    fn host(&mut self, isid: u8) -> [Initiator; 2] {
        let [first, second] = &mut self.beds;
        [Initiator::ready_as(first, isid), Initiator::ready_as(second, isid)]
    }
}

fn test_unit_ready(bed: &mut Bed, host: &mut Initiator) -> Ended {
    host.read(bed, [0; 16], 0)
}

/// The states of the port groups, by tag, as REPORT TARGET PORT GROUPS has them.
fn groups(bed: &mut Bed, host: &mut Initiator) -> Vec<(u16, u8)> {
    let ended = host.read(bed, cdb(&[0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 1, 0]), 256);
    assert_eq!(ended.sense, None);
    let data = ended.data;
    assert_eq!(u32::from_be_bytes(data[..4].try_into().unwrap()) as usize, data.len() - 4);
    let group = |descriptor: &[u8]| {
        let tag = u16::from_be_bytes([descriptor[2], descriptor[3]]);
        assert_eq!((descriptor[1], descriptor[7]), (0x8d, 1));
        assert_eq!(
            descriptor[10..12],
            tag.to_be_bytes(),
            "a gateway is one port, of the number of its group"
        );
        (tag, descriptor[0])
    };
    data[4..].chunks(12).map(group).collect()
}

fn vital(bed: &mut Bed, host: &mut Initiator, page: u8) -> Vec<u8> {
    let ended = host.read(bed, cdb(&[0x12, 1, page, 0, 255]), 255);
    assert_eq!(ended.status, 0);
    ended.data
}

/// Designators as (association, type, value).
fn designators(page: &[u8]) -> Vec<(u8, u8, Vec<u8>)> {
    let mut rest = &page[4..];
    let mut all = Vec::new();
    while !rest.is_empty() {
        let len = usize::from(rest[3]);
        all.push((rest[1] >> 4 & 3, rest[1] & 0xf, rest[4..4 + len].to_vec()));
        rest = &rest[4 + len..];
    }
    all
}

/// Guards initiators that join paths: the unit is the same through both gateways, the port is not, and each says the same
/// of both groups.
#[test]
fn one_unit_two_ports() {
    let mut pair = Pair::new();
    let mut host = pair.host(1);
    let mut seen = Vec::new();
    for (bed, host) in pair.beds.iter_mut().zip(&mut host) {
        let all = designators(&vital(bed, host, 0x83));
        let of = |association| all.iter().filter(|it| it.0 == association).cloned().collect::<Vec<_>>();
        let standard = host.read(bed, cdb(&[0x12, 0, 0, 0, 96]), 96).data;
        assert_eq!(standard[5] >> 4 & 3, 1, "TPGS: implicit");
        let same =
            (of(0), of(2), standard, [0x00, 0x80, 0x86, 0xb0, 0xb1, 0xb2].map(|page| vital(bed, host, page)));
        seen.push((same, of(1), groups(bed, host)));
    }
    assert_eq!(seen[0].0, seen[1].0);
    for (index, (_, port, groups)) in seen.iter().enumerate() {
        let tag = [0, 0, 0, index as u8 + 1];
        assert_eq!((port[0].1, port[0].2.as_slice()), (4, tag.as_slice()), "relative target port");
        assert_eq!((port[1].1, port[1].2.as_slice()), (5, tag.as_slice()), "target port group");
        assert_eq!(groups, &[(1, ACTIVE_STATE), (2, STANDBY_STATE)]);
    }
}

/// Guards SPC-4 5.15.2.4.4 and invariant 38: on a standby path an initiator finds out about the unit, and whatever is for
/// the medium, or for the owner alone, is refused and has changed nothing.
#[test]
fn standby_path() {
    let mut pair = Pair::new();
    let [mut owner, mut standby] = pair.host(1);
    let [first, second] = &mut pair.beds;
    first.disk(1).fill(0xee);
    for (bytes, len) in [
        (&[0x12, 0, 0, 0, 96][..], 96),                           // INQUIRY
        (&[0x03, 0, 0, 0, 18], 18),                               // REQUEST SENSE
        (&[0x1a, 0, 0x3f, 0, 255], 255),                          // MODE SENSE(6)
        (&[0x5a, 0, 0x3f, 0, 0, 0, 0, 0, 255], 255),              // MODE SENSE(10)
        (&[0x4d, 0, 0x40, 0, 0, 0, 0, 0, 255], 255),              // LOG SENSE
        (&[0x25], 8),                                             // READ CAPACITY(10)
        (&[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32], 32), // READ CAPACITY(16)
        (&[0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0], 256),                // REPORT LUNS
        (&[0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 1, 0], 256),             // REPORT TARGET PORT GROUPS
        (&[0xa3, 0x0c, 0, 0, 0, 0, 0, 0, 16, 0], 4096),           // REPORT SUPPORTED OPERATION CODES
        (&[0xa3, 0x0d, 0, 0, 0, 0, 0, 0, 0, 16], 16), // REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS
        (&[0x5e, 0, 0, 0, 0, 0, 0, 0, 64], 64),       // PERSISTENT RESERVE IN
        (&[0x84, 0x03, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64], 64), // RECEIVE COPY OPERATING PARAMETERS
        (&[0x1c, 1, 0, 0, 16], 16),                   // RECEIVE DIAGNOSTIC RESULTS
    ] {
        assert_eq!(standby.read(second, cdb(bytes), len).sense, None, "{bytes:02x?}");
    }
    let block = [1; 512];
    let before = first.keeper().units();
    for (bytes, read, data) in [
        (&[0x00][..], 0, &[][..]), // TEST UNIT READY
        (&read10(0, 1), 512, &[]),
        (&write10(0, 1), 0, &block),
        (&[0x08, 0, 0, 0, 1], 512, &[]),              // READ(6)
        (&[0x0a, 0, 0, 0, 1], 0, &block),             // WRITE(6)
        (&[0x2e, 0, 0, 0, 0, 0, 0, 0, 1], 0, &block), // WRITE AND VERIFY
        (&[0x2f, 0, 0, 0, 0, 0, 0, 0, 1], 0, &[]),    // VERIFY
        (&[0x34, 0, 0, 0, 0, 0, 0, 0, 1], 0, &[]),    // PRE-FETCH
        (&[0x35], 0, &[]),                            // SYNCHRONIZE CACHE
        (&[0x41, 0, 0, 0, 0, 0, 0, 0, 1], 0, &block), // WRITE SAME
        (
            &[0x42, 0, 0, 0, 0, 0, 0, 0, 24],
            0,
            &[0, 22, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0],
        ),
        (&[0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], 0, &[1; 1024]), // COMPARE AND WRITE
        (&[0x8b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], 0, &block),     // ORWRITE
        (&[0x9e, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32], 32, &[]),   // GET LBA STATUS
        (&[0x16], 0, &[]),                                               // RESERVE(6)
        (&[0x17], 0, &[]),                                               // RELEASE(6)
        (&[0x56], 0, &[]),                                               // RESERVE(10)
        (&[0x57], 0, &[]),                                               // RELEASE(10)
        (&[0x1b, 0, 0, 0, 1], 0, &[]),                                   // START STOP UNIT
        (&[0x1d, 4], 0, &[]),                                            // SEND DIAGNOSTIC: self-test
        (&[0x37, 0, 0x10, 0, 0, 0, 0, 0, 8], 8, &[]),                    // READ DEFECT DATA
        (&[0x48, 0x82], 0, &[]),                                         // SANITIZE
        (&[0x48, 0x9f], 0, &[]),                                         // SANITIZE, EXIT FAILURE MODE
        (&[0x83, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16], 0, &[0; 16]),  // EXTENDED COPY
    ] {
        assert_eq!(standby.command_to(second, 0, cdb(bytes), read, data).sense, STANDBY, "{bytes:02x?}");
    }
    assert_eq!(first.disk(1).read(0, 4096), [0xee; 4096]);
    assert_eq!(first.keeper().units(), before);
    // Nothing is reserved, for nobody.
    let [mut other, mut beside] = [2, 3].map(|isid| Initiator::ready_as(first, isid));
    for host in [&mut owner, &mut other, &mut beside] {
        assert_eq!(host.write(first, write10(0, 1), &block).status, 0);
    }
}

/// Guards the write cache, which is the owner's: through a standby path it is not turned on or off. What belongs to the
/// port, as page 87h says, is changed there, and binds nobody elsewhere.
#[test]
fn modes_of_a_standby_path() {
    let mut pair = Pair::new();
    let [mut owner, mut standby] = pair.host(1);
    let [first, second] = &mut pair.beds;
    let mut caching = [0; 24];
    caching[4..7].copy_from_slice(&[0x08, 0x12, 0x04]);
    assert_eq!(standby.write(second, cdb(&[0x15, 0x10, 0, 0, 24]), &caching).sense, STANDBY);
    assert_eq!(standby.read(second, cdb(&[0x1a, 8, 8, 0, 255]), 255).data[6] & 4, 0);
    caching[6] = 0;
    assert_eq!(standby.write(second, cdb(&[0x15, 0x10, 0, 0, 24]), &caching).sense, None, "as it is");
    let protect = [0, 0, 0, 0, 0x0a, 0x0a, 0, 0x10, 0x08, 0, 0, 0, 0xff, 0xff, 0, 0];
    assert_eq!(standby.write(second, cdb(&[0x15, 0x10, 0, 0, 16]), &protect).sense, None);
    assert_eq!(owner.write(first, write10(0, 1), &[1; 512]).sense, None);
}

/// Guards paths that change over: every session of both gateways is told once, of that unit only; then the new owner
/// serves what the old one wrote, and the old one nothing.
#[test]
fn the_owner_changes() {
    let mut pair = Pair::new();
    let mut host = pair.host(1);
    let data = pattern(512, 3);
    assert_eq!(host[0].write(&mut pair.beds[0], write10(8, 1), &data).status, 0);
    for (gateway, serves) in [(2, 1), (1, 0), (2, 1)] {
        pair.own(Some(gateway));
        for (index, (bed, host)) in pair.beds.iter_mut().zip(&mut host).enumerate() {
            assert_eq!(test_unit_ready(bed, host).sense, ACCESS_CHANGED);
            let is_owner = index == serves;
            assert_eq!(test_unit_ready(bed, host).sense, if is_owner { None } else { STANDBY });
            let mut want = [(1, STANDBY_STATE), (2, STANDBY_STATE)];
            want[serves].1 = ACTIVE_STATE;
            assert_eq!(groups(bed, host), want);
            let ended = host.read(bed, read10(8, 1), 512);
            assert_eq!(
                (ended.sense, ended.data == data),
                if is_owner { (None, true) } else { (STANDBY, false) }
            );
            let other = host.command_to(bed, 1 << 48, [0; 16], 0, &[]);
            assert_eq!(
                other.sense,
                if index == 0 { None } else { STANDBY },
                "the other unit stays where it was"
            );
        }
    }
    // The same owner under another generation is the same path.
    pair.own(Some(2));
    for (bed, host) in pair.beds.iter_mut().zip(&mut host) {
        assert_ne!(test_unit_ready(bed, host).sense, ACCESS_CHANGED);
    }
}

/// Guards initiators while nobody owns a unit: it is in transition through every path, which they wait for, and what
/// REPORT TARGET PORT GROUPS says and TEST UNIT READY agree.
#[test]
fn nobody_owns_it() {
    let mut pair = Pair::new();
    let mut host = pair.host(1);
    pair.own(None);
    for (bed, host) in pair.beds.iter_mut().zip(&mut host) {
        assert_eq!(test_unit_ready(bed, host).sense, ACCESS_CHANGED);
        assert_eq!(test_unit_ready(bed, host).sense, TRANSITION);
        assert_eq!(groups(bed, host), [(1, TRANSITIONING_STATE), (2, TRANSITIONING_STATE)]);
        assert_eq!(host.command_to(bed, 0, cdb(&[0x16]), 0, &[]).sense, TRANSITION, "RESERVE");
    }
    // A gateway that is gone from the map owns nothing either.
    pair.own(Some(2));
    pair.beds[0].apply(|map| drop(map.gateways.remove(&GatewayId(2))));
    assert_eq!(test_unit_ready(&mut pair.beds[0], &mut host[0]).sense, ACCESS_CHANGED);
    assert_eq!(groups(&mut pair.beds[0], &mut host[0]), [(1, TRANSITIONING_STATE)]);
}

/// Guards the holder of a classic reservation: it ends with the owner that knows of it, and the holder is told, also when
/// the unit has come back in the meantime.
#[test]
fn classic_reservations_end_with_the_owner() {
    for comes_back_unseen in [false, true] {
        let mut pair = Pair::new();
        let [mut holder, _] = pair.host(1);
        let [mut other, mut other_path] = pair.host(2);
        assert_eq!(holder.command_to(&mut pair.beds[0], 0, cdb(&[0x16]), 0, &[]).status, 0);
        assert_eq!(other.write(&mut pair.beds[0], write10(0, 1), &[1; 512]).status, 0x18);
        if comes_back_unseen {
            pair.beds[0].apply(|map| own(map, 1, Some(1), 9));
        } else {
            pair.own(Some(2));
            assert_eq!(test_unit_ready(&mut pair.beds[1], &mut other_path).sense, ACCESS_CHANGED);
            assert_eq!(other_path.write(&mut pair.beds[1], write10(0, 1), &[1; 512]).status, 0);
            pair.own(Some(1));
        }
        assert_eq!(test_unit_ready(&mut pair.beds[0], &mut holder).sense, NEXUS_LOST);
        if !comes_back_unseen {
            for host in [&mut holder, &mut other] {
                assert_eq!(test_unit_ready(&mut pair.beds[0], host).sense, ACCESS_CHANGED);
            }
        }
        for host in [&mut other, &mut holder] {
            assert_eq!(host.write(&mut pair.beds[0], write10(0, 1), &[1; 512]).status, 0);
        }
    }
}

fn registrant(isid: u8, tag: u16, key: u64) -> Registrant {
    let nexus = lunette_proto::map::NexusId { tag, ..crate::bed::nexus(isid) };
    Registrant { nexus, key, all_target_ports: false }
}

/// Guards fencing over a takeover: whoever was preempted elsewhere, and has sent a write here before this gateway knew,
/// does not write.
#[test]
fn preempted_before_the_data_came() {
    let mut pair = Pair::new();
    pair.own(Some(2));
    let [_, mut fenced] = pair.host(1);
    let bed = &mut pair.beds[1];
    let data = pattern(65536, 1);
    let mut command = fenced.command_header(write10(0, 128), 65536);
    command.write = true;
    fenced.send(bed, command.encode(), &[]);
    let Some((Reply::R2t(r2t), _)) = fenced.next(bed) else { panic!() };
    bed.keeper().change(1, |unit| {
        unit.reservations.registrants.push(registrant(7, 1, 7));
        let holder = Some(registrant(7, 1, 7).nexus);
        unit.reservations.reservation =
            Some(Reservation { kind: ReservationType::WriteExclusiveRegistrantsOnly, holder });
    });
    bed.learn();
    fenced.solicited(bed, &r2t, &data);
    assert_eq!(fenced.end(bed, command.task_tag, &data).status, 0x08, "BUSY, for trying again tells why");
    assert_eq!(bed.disk(1).read(0, 4096), [0; 4096]);
    assert_eq!(fenced.write(bed, write10(0, 1), &data[..512]).status, 0x18);
    assert_eq!(fenced.read(bed, read10(0, 1), 512).status, 0, "reads are not excluded");
}

/// Guards reservations over several gateways: registered through a standby path, in force at the owner, and over a change
/// of the owner.
#[test]
fn reservations_of_both_paths() {
    let mut pair = Pair::new();
    let mut holder = pair.host(1);
    let mut other = pair.host(2);
    let out = |action: u8, kind: u8| cdb(&[0x5f, action, kind, 0, 0, 0, 0, 0, 24]);
    let list = |key: u64, new_key: u64| [&key.to_be_bytes()[..], &new_key.to_be_bytes(), &[0; 8]].concat();
    for (index, host) in holder.iter_mut().enumerate() {
        assert_eq!(host.write(&mut pair.beds[index], out(0, 0), &list(0, 5)).status, 0, "REGISTER");
        pair.learn();
    }
    // Through the standby path, too.
    assert_eq!(holder[1].write(&mut pair.beds[1], out(1, 5), &list(5, 0)).status, 0, "RESERVE");
    pair.learn();
    for owner in [0, 1] {
        assert_eq!(holder[owner].write(&mut pair.beds[owner], write10(0, 1), &[1; 512]).status, 0);
        assert_eq!(other[owner].write(&mut pair.beds[owner], write10(0, 1), &[2; 512]).status, 0x18);
        pair.own(Some(2));
        for (bed, host) in pair.beds.iter_mut().zip(holder.iter_mut().zip(&mut other)) {
            for host in [host.0, host.1] {
                while test_unit_ready(bed, host).sense.is_some_and(|sense| sense[0] == 6) {}
            }
        }
    }
}

/// Guards initiators against a gateway that says that tasks are over which are at another one.
#[test]
fn resets_are_the_owners() {
    let mut pair = Pair::new();
    let [mut owner, mut standby] = pair.host(1);
    let [first, second] = &mut pair.beds;
    first.disk(1).hold();
    let mut command = owner.command_header(write10(0, 1), 512);
    command.write = true;
    owner.send(first, command.encode(), &[1; 512]);
    const ABORT_TASK_SET: u8 = 2;
    for (function, want) in [(ABORT_TASK_SET, 0), (4, REJECTED), (5, REJECTED), (6, REJECTED), (7, REJECTED)]
    {
        let tag = standby.manage(second, function, 0, &ScsiCommand::default());
        assert_eq!(standby.managed(second, tag), want, "function {function}");
    }
    assert_eq!(test_unit_ready(second, &mut standby).sense, STANDBY, "no reset is reported");
    first.disk(1).release();
    first.settle();
    assert_eq!(owner.end(first, command.task_tag, &[]).status, 0);
    let tag = owner.manage(first, 5, 0, &ScsiCommand::default());
    assert_eq!(owner.managed(first, tag), 0);
}

/// Guards discovery: through any gateway all portals are found, its own first, each with the tag that a login there will
/// answer.
#[test]
fn all_portals_are_announced() {
    let mut pair = Pair::new();
    let portals = ["127.0.0.1:3260", "127.0.0.1:3261"].map(|portal| portal.parse::<SocketAddr>().unwrap());
    let address = |index: usize| format!("TargetAddress={},{}\n", portals[index], index + 1);
    for (index, bed) in pair.beds.iter_mut().enumerate() {
        let local = portals[index];
        Arc::get_mut(&mut bed.context).unwrap().portals = vec![local];
        let mut host = Initiator::new(bed.connect_at(Endpoint { local, peer: local, portal: local }));
        host.discover(bed, &[]).unwrap();
        let told = host.text(bed, &keys(&[("SendTargets", "All")])).0;
        assert_eq!(told, format!("TargetName={IQN}\n{}{}", address(index), address(1 - index)));
    }
}

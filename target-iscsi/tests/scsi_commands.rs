//! Commands that describe the target and its volumes, against the tables of SPC-4 and SBC-3.

mod scsi_model;

use lunette_proto::ids::{Generation, VolumeId};
use lunette_proto::map::{naa, serial};
use lunette_target_iscsi::scsi::{Attention, Nexus, Scope, UnitOwner};
use lunette_volume::device::Readiness;
use scsi_model::{CLUSTER, IQN, Model, cdb, nexus_id, sense_code};

const TEST_UNIT_READY: [u8; 6] = [0; 6];
const WELL_KNOWN: u64 = 0xC101 << 48;

fn inquiry(page: Option<u8>, allocation: u16) -> Vec<u8> {
    let [high, low] = allocation.to_be_bytes();
    vec![0x12, page.is_some().into(), page.unwrap_or(0), high, low, 0]
}

fn vpd(model: &mut Model, page: u8) -> Vec<u8> {
    let data = model.run(&inquiry(Some(page), 0xFFFF), &[]).good();
    assert_eq!(data[..2], [0x00, page]);
    assert_eq!(usize::from(u16::from_be_bytes([data[2], data[3]])), data.len() - 4, "PAGE LENGTH");
    data
}

/// Guards standard INQUIRY data: SPC-4 6.6.2, the names and version descriptors that we chose.
#[test]
fn standard_inquiry() {
    let mut model = Model::new();
    let data = model.run(&inquiry(None, 255), &[]).good();
    assert_eq!(data.len(), 96);
    assert_eq!(data[..8], [0x00, 0x00, 0x06, 0x12, 91, 0x18, 0x10, 0x02]);
    assert_eq!(&data[8..32], b"LUNETTE VOLUME          ");
    assert!(data[32..36].iter().all(|byte| byte.is_ascii_graphic() || *byte == b' '));
    assert_eq!(data[58..68], [0x00, 0xA0, 0x09, 0x60, 0x04, 0x60, 0x04, 0xC0, 0, 0]);
}

/// Guards allocation lengths: data is cut, its length fields are not, and 0 is no error.
#[test]
fn inquiry_is_cut_to_the_allocation_length() {
    let mut model = Model::new();
    let whole = model.run(&inquiry(None, 255), &[]).good();
    for len in [0u16, 1, 4, 5, 36, 95, 96, 97, 256] {
        let end = model.run(&inquiry(None, len), &[]);
        assert_eq!(end.transfer_len, u64::from(len.min(96)));
        assert_eq!(end.good(), whole[..usize::from(len.min(96))]);
    }
}

/// Guards INQUIRY's fields: CMDDT, a page code without EVPD, a page that is not there.
#[test]
fn inquiry_refuses() {
    let mut model = Model::new();
    model.run(&[0x12, 0x02, 0, 0, 255, 0], &[]).bad_cdb_field(1, Some(1));
    model.run(&[0x12, 0x00, 0x80, 0, 255, 0], &[]).bad_cdb_field(2, None);
    model.run(&inquiry(Some(0x85), 255), &[]).bad_cdb_field(2, None);
    model.run(&[0x12, 0, 0, 0, 255, 0x04], &[]).bad_cdb_field(5, Some(2));
}

/// Guards the list of pages: ascending, and each that it names is there.
#[test]
fn vpd_pages() {
    let mut model = Model::new();
    let list = vpd(&mut model, 0x00)[4..].to_vec();
    assert!(list.is_sorted());
    for wanted in [0x00, 0x80, 0x83, 0x86, 0x8F, 0xB0, 0xB1, 0xB2] {
        assert!(list.contains(&wanted));
    }
    for page in list {
        vpd(&mut model, page);
    }
}

/// Guards the serial number: that of `proto`, which the command line shows as well.
#[test]
fn unit_serial_number() {
    let data = vpd(&mut Model::new(), 0x80);
    assert_eq!(data[4..], *serial(CLUSTER, VolumeId(0x1122)).as_bytes());
}

/// Guards the designators: SPC-4 7.8.6, each with code set, association, type and value.
#[test]
fn device_identification() {
    let data = vpd(&mut Model::new(), 0x83);
    let mut rest = &data[4..];
    let mut found = Vec::new();
    while !rest.is_empty() {
        let len = usize::from(rest[3]);
        found.push((rest[0], rest[1], rest[4..4 + len].to_vec()));
        rest = &rest[4 + len..];
    }
    let t10 = format!("LUNETTE {}", serial(CLUSTER, VolumeId(0x1122)));
    let wanted = [
        (0x01, 0x03, naa(CLUSTER, VolumeId(0x1122)).to_vec()),
        (0x02, 0x01, t10.into_bytes()),
        (0x51, 0x94, vec![0, 0, 0x01, 0x02]),
        (0x51, 0x95, vec![0, 0, 0, 3]),
        (0x53, 0x98, padded(&format!("{IQN},t,0x0003"))),
        (0x53, 0xA8, padded(IQN)),
    ];
    assert_eq!(found, wanted);
}

fn padded(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.push(0);
    while !bytes.len().is_multiple_of(4) {
        bytes.push(0);
    }
    bytes
}

/// Guards the identity of a volume: neither its name nor its size, its LUN or the gateway is part of it.
#[test]
fn identity_is_stable() {
    let mut model = Model::new();
    let (before, serial) = (vpd(&mut model, 0x83), vpd(&mut model, 0x80));
    model.change(|unit| {
        unit.name = "renamed".into();
        unit.size_bytes *= 2;
    });
    model.view.relative_port = 9;
    assert_eq!(vpd(&mut model, 0x83)[4..24], before[4..24]);
    assert_eq!(vpd(&mut model, 0x80), serial);
}

/// Guards block limits: the Block Limits page of SBC-3, for both block sizes.
#[test]
fn block_limits() {
    for (block, granularity) in [(512u32, 8u16), (4096, 1)] {
        let data = vpd(&mut Model::with(1 << 20, block), 0xB0);
        let be32 = |at: usize| u32::from_be_bytes(data[at..at + 4].try_into().unwrap());
        assert_eq!(data.len(), 64);
        assert_eq!(data[4..8], [[0x01, 0x01], granularity.to_be_bytes()].concat(), "WSNZ, COMPARE AND WRITE");
        assert_eq!(be32(8), (8 << 20) / block, "MAXIMUM TRANSFER LENGTH");
        assert_eq!(be32(20), 1 << 20, "MAXIMUM UNMAP LBA COUNT");
        assert_eq!(be32(24), 256, "MAXIMUM UNMAP BLOCK DESCRIPTOR COUNT");
        // QEMU aborts on one of a disk with blocks of 4 KiB.
        let unmap = if block == 512 { [128, 0x8000_0000] } else { [0, 0] };
        assert_eq!([be32(28), be32(32)], unmap, "OPTIMAL UNMAP GRANULARITY, UGAVALID");
        assert_eq!(data[36..44], u64::from((16 << 20) / block).to_be_bytes(), "MAXIMUM WRITE SAME LENGTH");
        assert_eq!(be32(44), scsi_model::ATOMIC_BYTES / block, "MAXIMUM ATOMIC TRANSFER LENGTH");
        assert_eq!([be32(48), be32(52)], [4096 / block; 2], "ATOMIC ALIGNMENT, GRANULARITY");
        assert!(data[56..].iter().all(|byte| *byte == 0));
    }
}

/// Guards the other pages of a block device: their layouts in SBC-3 and SPC-4 7.8.7.
#[test]
fn characteristics_and_provisioning() {
    let mut model = Model::new();
    let characteristics = vpd(&mut model, 0xB1);
    assert_eq!((characteristics.len(), &characteristics[4..6]), (64, &[0x00, 0x01][..]));
    assert_eq!(characteristics[7], 0x40, "WABEREQ 01b");
    assert_eq!(vpd(&mut model, 0xB2)[4..], [0x00, 0xE4, 0x02, 0x00]);
    let extended = vpd(&mut model, 0x86);
    assert_eq!((extended.len(), &extended[4..8]), (64, &[0x00, 0x01, 0x01, 0x01][..]));
    assert_eq!(vpd(&mut model, 0x87)[4..], [0x0A, 0x00, 0x01, 0, 0x3F, 0xFF, 0x00, 0]);
}

/// Guards LUNs where nothing is: INQUIRY says so, LUN 0 lists the others, the rest is 25h/00h.
#[test]
fn absent_units() {
    let mut model = Model::new();
    model.add(5);
    model.view.luns.remove(&0);
    for lun in [0, 7 << 48, 0x4100_0000_0000_0000, u64::MAX] {
        let data = model.run_on(lun, &inquiry(None, 96), &[]).good();
        assert_eq!((data[0], data.len()), (0x7F, 96));
        model.run_on(lun, &inquiry(Some(0x80), 96), &[]).bad_cdb_field(2, None);
        model.run_on(lun, &TEST_UNIT_READY, &[]).fails((5, 0x25, 0x00));
        model.run_on(lun, &cdb(10, 0x28, &[]), &[]).fails((5, 0x25, 0x00));
        let sense = model.run_on(lun, &[0x03, 0, 0, 0, 252, 0], &[]).good();
        assert_eq!(sense_code(&sense), (5, 0x25, 0x00));
    }
    let list = model.run_on(0, &report_luns(0, 64), &[]).good();
    assert_eq!(list, [0, 0, 0, 8, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0]);
    model.run_on(7 << 48, &report_luns(0, 64), &[]).fails((5, 0x25, 0x00));
}

fn report_luns(select: u8, allocation: u32) -> Vec<u8> {
    cdb(12, 0xA0, &[(2, &[select]), (6, &allocation.to_be_bytes())])
}

/// Guards REPORT LUNS: SPC-4 6.33, each SELECT REPORT, both addressing methods, cut lists.
#[test]
fn report_luns_selects() {
    let mut model = Model::new();
    model.add(255);
    model.add(256);
    let units = [0u64, 0x00FF << 48, 0x4100 << 48];
    for (select, want) in [
        (0x00, units.to_vec()),
        (0x01, vec![WELL_KNOWN]),
        (0x02, [&units[..], &[WELL_KNOWN]].concat()),
        (0x11, vec![]),
    ] {
        let mut data = ((want.len() * 8) as u64).to_be_bytes().map(|_| 0).to_vec();
        data[3] = (want.len() * 8) as u8;
        data.extend(want.iter().flat_map(|lun| lun.to_be_bytes()));
        assert_eq!(model.run(&report_luns(select, 4096), &[]).good(), data);
        for len in [0, 4, 8, 15, 16] {
            let cut = model.run(&report_luns(select, len as u32), &[]).good();
            assert_eq!(cut, data[..len.min(data.len())]);
        }
    }
    model.run(&report_luns(0x03, 4096), &[]).bad_cdb_field(2, None);
}

/// Guards the REPORT LUNS well-known logical unit: SPC-4 8.2.
#[test]
fn well_known_unit() {
    let mut model = Model::new();
    assert_eq!(model.run_on(WELL_KNOWN, &inquiry(None, 36), &[]).good()[0], 0x1E);
    assert_eq!(model.run_on(WELL_KNOWN, &inquiry(Some(0), 36), &[]).good(), [0x1E, 0, 0, 2, 0x00, 0x83]);
    assert_eq!(model.run_on(WELL_KNOWN, &inquiry(Some(0x83), 255), &[]).good()[0], 0x1E);
    assert_eq!(model.run_on(WELL_KNOWN, &report_luns(0, 16), &[]).good().len(), 16);
    model.run_on(WELL_KNOWN, &TEST_UNIT_READY, &[]).good();
    model.run_on(WELL_KNOWN, &cdb(10, 0x28, &[]), &[]).fails((5, 0x20, 0x00));
}

/// Guards unit attentions (SAM-5 5.14): INQUIRY and REPORT LUNS pass, others report each once in
/// order, REQUEST SENSE returns it as data, REPORT LUNS clears 3Fh/0Eh.
#[test]
fn unit_attentions() {
    let mut model = Model::new();
    model.nexus = Nexus::new(nexus_id());
    model.run(&inquiry(None, 36), &[]).good();
    model.run(&report_luns(0, 64), &[]).good();
    let read_capacity = cdb(10, 0x25, &[]);
    model.run(&read_capacity, &[]).fails((6, 0x29, 0x00));
    model.run(&read_capacity, &[]).good();

    model.nexus.attention(Scope::Lun(0), Attention::CapacityChanged);
    model.nexus.attention(Scope::Lun(0), Attention::InquiryChanged);
    model.nexus.attention(Scope::All, Attention::ReportedLunsChanged);
    model.nexus.attention(Scope::All, Attention::CommandsCleared);
    model.run(&TEST_UNIT_READY, &[]).fails((6, 0x2A, 0x09));
    let sense = model.run(&[0x03, 0, 0, 0, 18, 0], &[]).good();
    assert_eq!((sense_code(&sense), sense.len()), ((6, 0x3F, 0x03), 18));
    model.run(&report_luns(0, 64), &[]).good();
    model.run(&TEST_UNIT_READY, &[]).fails((6, 0x2F, 0x00));
    let sense = model.run(&[0x03, 1, 0, 0, 252, 0], &[]).good();
    assert_eq!(sense[..], [0x72, 0, 0, 0, 0, 0, 0, 0], "NO SENSE, in descriptor format");
}

/// Guards unknown commands: opcode, and service action, each with its pointer.
#[test]
fn unknown_commands() {
    let mut model = Model::new();
    let end = model.run(&cdb(16, 0x87, &[]), &[]);
    end.fails((5, 0x20, 0x00));
    assert_eq!(end.sense[15..18], [0xC0, 0, 0]);
    model.run(&cdb(16, 0x9E, &[(1, &[0x1F])]), &[]).bad_cdb_field(1, Some(4));
    model.run(&cdb(12, 0xA3, &[(1, &[0x00])]), &[]).bad_cdb_field(1, Some(4));
}

/// Guards readiness: TEST UNIT READY and REPORT TARGET PORT GROUPS tell the same (SPC-4 5.15).
#[test]
fn readiness() {
    let mut model = Model::new();
    for (readiness, sense, state) in [
        (Readiness::Ready, None, 0x0),
        (Readiness::Starting, None, 0x0),
        (Readiness::NotOwner, Some((2, 0x04, 0x0B)), 0x2),
        (Readiness::Unavailable, Some((2, 0x04, 0x0C)), 0x3),
    ] {
        model.readiness(readiness);
        model.change(|unit| unit.owner = Some(UnitOwner { group: 4, generation: Generation(1) }));
        // Takes the unit attention of whoever was told of the state before.
        model.run(&[0x03, 0, 0, 0, 18, 0], &[]).good();
        let end = model.run(&TEST_UNIT_READY, &[]);
        match sense {
            None => assert!(end.good().is_empty()),
            Some(sense) => end.fails(sense),
        }
        let groups = model.run(&cdb(12, 0xA3, &[(1, &[0x0A]), (6, &[0, 0, 1, 0])]), &[]).good();
        assert_eq!(groups, [0, 0, 0, 12, state, 0x8D, 0, 3, 0, 0, 0, 1, 0, 0, 0x01, 0x02]);
        let extended = model.run(&cdb(12, 0xA3, &[(1, &[0x2A]), (6, &[0, 0, 1, 0])]), &[]).good();
        assert_eq!((extended[3], extended[4]), (16, 0x10));
        assert!(extended[5] > 0, "IMPLICIT TRANSITION TIME");
        assert_eq!(extended[8..], groups[4..]);
    }
    model.run(&cdb(12, 0xA3, &[(1, &[0x4A])]), &[]).bad_cdb_field(1, Some(7));
}

/// Guards initiators that were told that a path does not work: they hear when it does again, unless they ask before.
#[test]
fn readiness_comes_back() {
    let rtpg = cdb(12, 0xA3, &[(1, &[0x0A]), (6, &[0, 0, 1, 0])]);
    let mut model = Model::new();
    for transient in [Readiness::Unavailable, Readiness::NotOwner] {
        model.readiness(transient);
        model.run(&rtpg, &[]).good();
        assert_eq!(model.run(&TEST_UNIT_READY, &[]).sense_code().0, 2);
        model.readiness(Readiness::Ready);
        model.run(&TEST_UNIT_READY, &[]).fails((6, 0x2A, 0x06));
        model.run(&TEST_UNIT_READY, &[]).good();
        model.readiness(transient);
        model.run(&rtpg, &[]).good();
        model.readiness(Readiness::Ready);
        model.run(&rtpg, &[]).good();
        model.run(&TEST_UNIT_READY, &[]).good();
    }
}

/// Guards START STOP UNIT: a volume is started; stopping, ejecting and power conditions are refused.
#[test]
fn start_stop_unit() {
    let mut model = Model::new();
    model.run(&[0x1B, 0, 0, 0, 0x01, 0], &[]).good();
    model.run(&[0x1B, 1, 0, 0, 0x10, 0], &[]).good();
    model.run(&[0x1B, 0, 0, 0, 0x00, 0], &[]).bad_cdb_field(4, Some(0));
    model.run(&[0x1B, 0, 0, 0, 0x03, 0], &[]).bad_cdb_field(4, Some(1));
    model.run(&[0x1B, 0, 0, 0, 0x30, 0], &[]).bad_cdb_field(4, Some(7));
    model.run(&[0x1B, 0, 0, 1, 0x01, 0], &[]).bad_cdb_field(3, Some(3));
}

/// Guards capacities: SBC-3 5.15 and 5.16, with 512e and 4Kn, and more than 2 TiB.
#[test]
fn capacities() {
    let rc16 = |allocation: u8| cdb(16, 0x9E, &[(1, &[0x10]), (13, &[allocation])]);
    for (size, block, last32, exponent) in [
        (1u64 << 20, 512u32, 2047u32, 3),
        (1 << 20, 4096, 255, 0),
        (1 << 41, 512, 0xFFFF_FFFF, 3),
        (1 << 42, 512, 0xFFFF_FFFF, 3),
        (1 << 42, 4096, 0x3FFF_FFFF, 0),
    ] {
        let mut model = Model::with(size, block);
        let short = model.run(&cdb(10, 0x25, &[]), &[]).good();
        assert_eq!(short, [last32.to_be_bytes(), block.to_be_bytes()].concat());
        let long = model.run(&rc16(255), &[]).good();
        let mut want = (size / u64::from(block) - 1).to_be_bytes().to_vec();
        want.extend(block.to_be_bytes());
        want.extend([0x00, exponent, 0xC0, 0x00]);
        want.resize(32, 0);
        assert_eq!(long, want);
        assert_eq!(model.run(&rc16(12), &[]).good(), want[..12]);
    }
}

/// Guards the list of commands: every one is there with its length, flags and timeouts (SPC-4 6.35).
#[test]
fn all_operation_codes() {
    let mut model = Model::new();
    let rsoc = |flags: u8| cdb(12, 0xA3, &[(1, &[0x0C]), (2, &[flags]), (6, &[0, 0, 0xFF, 0xFF])]);
    let plain = model.run(&rsoc(0x00), &[]).good();
    let timed = model.run(&rsoc(0x80), &[]).good();
    assert_eq!(plain[..4], ((plain.len() - 4) as u32).to_be_bytes());
    assert_eq!(timed[..4], ((timed.len() - 4) as u32).to_be_bytes());
    let commands: Vec<_> = plain[4..].chunks_exact(8).collect();
    for (plain, timed) in commands.iter().zip(timed[4..].chunks_exact(20)) {
        assert_eq!(plain[5] & 0x02, 0);
        assert_eq!(timed[5], plain[5] | 0x02, "CTDP");
        assert_eq!(timed[8..10], [0x00, 0x0A]);
    }
    let has = |opcode: u8, action: u8, flags: u8, len: u8| {
        assert!(
            commands.contains(&&[opcode, 0, 0, action, 0, flags, 0, len][..]),
            "{opcode:02x}/{action:02x}"
        );
    };
    for opcode in [0x00, 0x03, 0x08, 0x0A, 0x12, 0x15, 0x16, 0x17, 0x1A, 0x1B, 0x1C, 0x1D] {
        has(opcode, 0, 0, 6);
    }
    for opcode in [0x25, 0x28, 0x2A, 0x2E, 0x2F, 0x34, 0x35, 0x37, 0x41, 0x42, 0x4D, 0x55, 0x56, 0x57, 0x5A] {
        has(opcode, 0, 0, 10);
    }
    for opcode in [0xA0, 0xA8, 0xAA, 0xAE, 0xAF, 0xB7] {
        has(opcode, 0, 0, 12);
    }
    for opcode in [0x88, 0x89, 0x8A, 0x8B, 0x8E, 0x8F, 0x90, 0x91, 0x93, 0x9C] {
        has(opcode, 0, 0, 16);
    }
    for (opcode, action, len) in
        [(0x9E, 0x10, 16), (0x9E, 0x12, 16), (0xA3, 0x0A, 12), (0xA3, 0x0C, 12), (0xA3, 0x0D, 12)]
    {
        has(opcode, action, 1, len);
    }
    for (opcode, action) in [(0x83, 0), (0x84, 0), (0x84, 3), (0x84, 4)] {
        has(opcode, action, 1, 16);
    }
    // PERSISTENT RESERVE IN and OUT.
    for (opcode, actions) in [(0x5E, 0..4), (0x5F, 0..8)] {
        actions.for_each(|action| has(opcode, action, 1, 10));
    }
    // SANITIZE.
    [0x01, 0x02, 0x1F].into_iter().for_each(|action| has(0x48, action, 1, 10));
    assert_eq!(commands.len(), 12 + 15 + 6 + 10 + 5 + 4 + 4 + 8 + 3);
}

/// Guards the report of one command: usage data, support, service actions (SPC-4 6.35).
#[test]
fn one_operation_code() {
    let mut model = Model::new();
    let mut rsoc = |options: u8, opcode: u8, action: u16| {
        let [high, low] = action.to_be_bytes();
        model.run(&[0xA3, 0x0C, options, opcode, high, low, 0, 0, 1, 0, 0, 0], &[])
    };
    let read_10 = rsoc(1, 0x28, 0).good();
    assert_eq!(read_10[..4], [0, 3, 0, 10]);
    assert_eq!((read_10[4], &read_10[6..10]), (0x28, &[0xFF; 4][..]));
    assert_eq!((read_10[5] & 0x18, &read_10[11..13]), (0x18, &[0xFF; 2][..]));
    let capacity = rsoc(2, 0x9E, 0x10).good();
    assert_eq!((&capacity[..4], &capacity[4..6]), (&[0, 3, 0, 16][..], &[0x9E, 0x10][..]));
    let timed = rsoc(0x81, 0x00, 0).good();
    assert_eq!((timed.len(), &timed[..4], &timed[10..12]), (22, &[0, 0x83, 0, 6][..], &[0, 0x0A][..]));
    for (options, opcode, action) in [(1, 0x87, 0), (2, 0x9E, 0x11), (2, 0x87, 1), (3, 0x28, 1), (3, 0x9E, 0)]
    {
        assert_eq!(rsoc(options, opcode, action).good()[..4], [0, 1, 0, 0], "{options} {opcode:02x}");
    }
    assert_eq!(rsoc(3, 0x28, 0).good()[1], 3);
    assert_eq!(rsoc(3, 0xA3, 0x0A).good()[1], 3);
    rsoc(1, 0x9E, 0x10).bad_cdb_field(2, Some(2));
    rsoc(2, 0x28, 0).bad_cdb_field(2, Some(2));
    rsoc(4, 0x28, 0).bad_cdb_field(2, Some(2));
}

/// Guards the task management functions that are announced (SPC-4 6.36).
#[test]
fn task_management_functions() {
    let mut model = Model::new();
    let rstmf = |flags: u8, allocation: u8| cdb(12, 0xA3, &[(1, &[0x0D]), (2, &[flags]), (9, &[allocation])]);
    assert_eq!(model.run(&rstmf(0, 4), &[]).good(), [0xDA, 0, 0, 0]);
    let extended = model.run(&rstmf(0x80, 255), &[]).good();
    assert_eq!((extended.len(), &extended[..4]), (16, &[0xDA, 0, 0, 0x0C][..]));
    model.run(&rstmf(0, 3), &[]).bad_cdb_field(6, None);
}

/// Guards READ DEFECT DATA: empty lists, which lists and which format were asked for (SBC-3 5.17, 5.18).
#[test]
fn defect_data() {
    let mut model = Model::new();
    for format in 0..6u8 {
        for lists in [0x00u8, 0x08, 0x10, 0x18] {
            let short = model.run(&cdb(10, 0x37, &[(2, &[lists | format]), (8, &[255])]), &[]).good();
            assert_eq!(short, [0, lists | format, 0, 0]);
            let long = model.run(&cdb(12, 0xB7, &[(1, &[lists | format]), (9, &[255])]), &[]).good();
            assert_eq!(long, [0, lists | format, 0, 0, 0, 0, 0, 0]);
        }
    }
    assert_eq!(model.run(&cdb(12, 0xB7, &[(9, &[4])]), &[]).good().len(), 4);
    for format in [6, 7] {
        model.run(&cdb(10, 0x37, &[(2, &[format])]), &[]).bad_cdb_field(2, Some(2));
        model.run(&cdb(12, 0xB7, &[(1, &[format])]), &[]).bad_cdb_field(1, Some(2));
    }
}

/// Guards the self-test, which tells what TEST UNIT READY tells, and the list of diagnostic pages (SPC-4 6.30, 6.42).
#[test]
fn diagnostics() {
    let mut model = Model::new();
    model.run(&[0x1D, 0x04, 0, 0, 0, 0], &[]).good();
    model.run(&[0x1D, 0x00, 0, 0, 0, 0], &[]).good();
    model.run(&[0x1D, 0x20, 0, 0, 0, 0], &[]).bad_cdb_field(1, Some(7));
    model.run(&[0x1D, 0x10, 0, 0, 4, 0], &[0; 4]).bad_cdb_field(3, None);
    assert_eq!(model.run(&[0x1C, 0x01, 0, 1, 0, 0], &[]).good(), [0, 0, 0, 1, 0]);
    model.run(&[0x1C, 0x01, 0x40, 1, 0, 0], &[]).bad_cdb_field(2, None);
    model.run(&[0x1C, 0x00, 0, 1, 0, 0], &[]).bad_cdb_field(1, Some(0));
    model.readiness(Readiness::Unavailable);
    model.run(&[0x1D, 0x04, 0, 0, 0, 0], &[]).fails((2, 0x04, 0x0C));
}

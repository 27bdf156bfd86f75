use std::collections::BTreeSet;

use super::*;

fn bytes(value: u8, len: usize) -> Vec<Bytes> {
    vec![Bytes::from(vec![value; len])]
}

fn disk() -> Arc<SimDisk> {
    SimDisk::new(Image::of(vec![0; 64 << 10]))
}

/// The first bytes of some sectors on every image of all subsets.
fn images(moment: &Moment, at: &[u64]) -> BTreeSet<Vec<u8>> {
    (0..1 << moment.open())
        .map(|bits| {
            let image = moment.image(Cut { kept: Kept::Bits(bits), torn: 0 });
            at.iter().map(|at| image.bytes(*at..*at + 1)[0]).collect()
        })
        .collect()
}

/// Guards the medium: what was synced is always there, of the rest any part, in order.
#[test]
fn any_part_of_what_was_not_synced() {
    let disk = disk();
    disk.write(0, &bytes(1, 4096)).unwrap();
    disk.sync().unwrap();
    disk.write(0, &bytes(2, 4096)).unwrap();
    disk.write(4096, &bytes(3, 512)).unwrap();
    disk.write(0, &bytes(4, 512)).unwrap();
    let expected = [[1, 0], [2, 0], [4, 0], [1, 3], [2, 3], [4, 3]].map(|seen| seen.to_vec());
    assert_eq!(images(&disk.now(), &[0, 4096]), BTreeSet::from(expected));
    let mut seen = [0; 512];
    disk.read(0, &mut seen).unwrap();
    assert_eq!(seen[0], 4, "reads see everything");
    disk.sync().unwrap();
    assert_eq!(images(&disk.now(), &[0, 4096]), BTreeSet::from([vec![4, 3]]));
}

/// Guards durable writes: they are there when they return, older ones do not come after them, and in flight they are
/// like any other.
#[test]
fn durable_writes() {
    let disk = disk();
    disk.write(0, &bytes(1, 4096)).unwrap();
    disk.write(8192, &bytes(7, 512)).unwrap();
    disk.record();
    disk.write_durable(0, &bytes(2, 512)).unwrap();
    let moments = disk.recorded();
    assert_eq!(moments.len(), 1);
    let in_flight = images(&moments[0], &[0, 512, 8192]);
    assert_eq!(in_flight.len(), 8, "{in_flight:?}");
    let after = images(&disk.now(), &[0, 512, 8192]);
    let expected = [[2, 0, 0], [2, 1, 0], [2, 0, 7], [2, 1, 7]].map(|seen| seen.to_vec());
    assert_eq!(after, BTreeSet::from(expected));
}

/// Guards tearing: sectors are whole, and every kind of tear occurs.
#[test]
fn tears_at_sectors() {
    let disk = disk();
    disk.write(0, &bytes(9, 4096)).unwrap();
    let moment = disk.now();
    let mut masks = BTreeSet::new();
    for torn in 1..500 {
        let image = moment.image(Cut { kept: Kept::Bits(1), torn });
        let sectors = image.bytes(0..4096);
        let mask = sectors.chunks(512).map(|sector| {
            assert!(sector.iter().all(|byte| *byte == sector[0]));
            sector[0] == 9
        });
        masks.insert(mask.collect::<Vec<_>>());
    }
    assert!(masks.len() > 50, "{}", masks.len());
}

/// Guards faults: each strikes as often as it should, where it should.
#[test]
fn faults() {
    let disk = disk();
    let fault = |kind, skip| Fault { kind, range: 4096..8192, skip, times: 1, hits: 0 };
    disk.inject(fault(FaultKind::LostWrite, 1));
    for value in 1..4 {
        disk.write(4096, &bytes(value, 512)).unwrap();
        disk.write(0, &bytes(value, 512)).unwrap();
    }
    assert_eq!(disk.heal(), 1);
    let seen = images(&disk.now(), &[4096]);
    assert_eq!(seen, BTreeSet::from([vec![0], vec![1], vec![3]]));
    disk.inject(fault(FaultKind::Misdirected(-4096), 0));
    disk.write(4096, &bytes(8, 512)).unwrap();
    assert_eq!(disk.current().bytes(0..1), [8]);
    disk.inject(Fault { range: 0..1, ..fault(FaultKind::SyncError, 0) });
    disk.sync().unwrap_err();
    disk.sync().unwrap();
    assert_eq!(images(&disk.now(), &[0, 4096]), BTreeSet::from([vec![0, 0]]), "lost for good");
}

/// Guards interleaving: a sync covers what was written before it began, and no more.
#[test]
fn a_sync_covers_what_was_before() {
    let disk = disk();
    disk.write(0, &bytes(1, 512)).unwrap();
    let mut calls = 0;
    let medium = Interleaved {
        disk: &disk,
        between: Mutex::new(|| {
            calls += 1;
            if calls == 2 {
                disk.write(512, &bytes(2, 512)).unwrap();
            }
        }),
    };
    medium.sync().unwrap();
    assert_eq!(images(&disk.now(), &[0, 512]), BTreeSet::from([vec![1, 0], vec![1, 2]]));
}

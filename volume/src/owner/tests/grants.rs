//! What disks grant, and what is answered because of it.

use lunette_proto::limits::{GRANT_KEPT_MS_MAX, GRANT_MS_MAX};

use super::*;

const READ: Command = Command::Read { offset: 0, len: 4096 };

impl Rig {
    /// Another owner seals a disk, past this one.
    fn sealed_by(&mut self, disk: u32, generation: u64) -> Result<(), u32> {
        let body =
            RequestBody::Seal { namespace: Namespace::volume(VOLUME), generation: Generation(generation) };
        let model = self.disks.get_mut(&DiskId(disk)).unwrap();
        model.now_ms = self.now;
        match model.call(&Request { disk: DiskId(disk), epoch: Epoch(self.epoch + 1), body }) {
            Ok(_) => Ok(()),
            Err(Failure::Granted { left_ms }) => Err(left_ms),
            Err(other) => panic!("{other:?}"),
        }
    }

    /// What has been asked to be granted since the last time, in milliseconds.
    fn grants(&mut self) -> Vec<(u32, u32)> {
        let sent = std::mem::take(&mut self.sent);
        let grant = |it: Request| match it.body {
            RequestBody::Grant { for_ms, .. } => Some((it.disk.0, for_ms)),
            _ => None,
        };
        sent.into_iter().filter_map(grant).collect()
    }
}

/// Guards invariant 34: an owner that is cut off with one disk answers reads until, and only until, another one may serve
/// with the rest; and a comparison that differs is such a read.
#[test]
fn who_is_cut_off_stops_in_time() {
    let mut rig = Rig::new(3, 512);
    assert_eq!(rig.read(0, 4096), vec![0; 4096]);
    rig.down = vec![DiskId(1), DiskId(2)];
    let begin = rig.now;
    let (mut answered, mut sealed) = (begin, None);
    for tag in (0..).step_by(2) {
        let data = Bytes::from(vec![1; 512]);
        let (compare, fua) = (data.clone(), false);
        rig.start(tag, Command::CompareAndWrite { offset: 0, compare, data, fua });
        rig.start(tag + 1, READ);
        let outcomes = [rig.done.remove(&tag), rig.done.remove(&(tag + 1))];
        if let [Some(Err(DeviceError::Miscompare { at: 0 })), Some(Ok(_))] = outcomes {
            answered = rig.now;
        } else {
            assert_eq!(outcomes, [None, None]);
        }
        if [1, 2].map(|disk| rig.sealed_by(disk, 2)) == [Ok(()); 2] {
            sealed = Some(rig.now);
            break;
        }
        rig.wait(10);
    }
    let sealed = sealed.unwrap();
    assert_eq!(answered, begin + u64::from(GRANT_MS_MAX) - 10);
    assert!(sealed > answered && sealed <= begin + u64::from(GRANT_KEPT_MS_MAX) + 10, "{sealed}");
    rig.wait(5000);
    assert!(!rig.done.is_empty());
    let is_given_up = |outcome: &Outcome| matches!(outcome, Err(DeviceError::TimedOut));
    assert!(rig.done.values().all(is_given_up), "{:?}", rig.done);
}

/// Guards the number that has to have granted: of two members both, of three two, whichever they are; of one that is left
/// it itself.
#[test]
fn enough_have_to_grant() {
    for (copies, enough) in [(1, 1), (2, 2), (3, 2)] {
        for up in 1u32..1 << copies {
            let mut rig = Rig::new(copies, 512);
            rig.down = (0..copies).filter(|disk| up >> disk & 1 == 0).map(DiskId).collect();
            rig.start(1, READ);
            let is_answered = rig.done.remove(&1).is_some();
            assert_eq!(is_answered, up.count_ones() >= enough, "{copies} copies, up {up:b}");
            if !is_answered {
                // The map takes the others out, as far as it can.
                let away: Vec<DiskId> = rig.down.clone();
                for disk in away {
                    rig.states.insert(disk, DiskState::Out);
                }
                rig.map();
                rig.wait(100);
                assert!(matches!(rig.done.remove(&1), Some(Ok(_))), "{copies} copies, up {up:b}");
            }
        }
    }
}

/// Guards a quiet volume: who does not read sends nothing, who reads does so seldom, and the first read after a pause waits
/// for nothing but its data.
#[test]
fn only_reads_renew() {
    let mut rig = Rig::new(3, 512);
    assert!(rig.write(0, 4096, 1).is_ok());
    assert!(rig.write(512, 512, 2).is_ok());
    rig.wait(10_000);
    assert_eq!(rig.grants(), []);
    for _ in 0..300 {
        rig.read(0, 512);
        rig.now += 10;
    }
    let grants = rig.grants();
    assert!((18..=21).contains(&grants.len()), "{}", grants.len());
    assert!(grants.iter().all(|(_, for_ms)| *for_ms == GRANT_MS_MAX));
    rig.wait(10_000);
    assert_eq!(rig.grants(), []);
    rig.start(1, READ);
    let sent: Vec<_> = rig.sent.iter().map(|it| matches!(it.body, RequestBody::Grant { .. })).collect();
    assert_eq!(sent, [true, true, true, false], "before the read itself");
    assert!(rig.done.contains_key(&1));
}

/// Guards against a disk that has said too late, or does not take it: what it says counts from when it was asked, and it is
/// asked again.
#[test]
fn late_grants_do_not_count() {
    for plant in [None, Some(Plant::GrantFromAnswer)] {
        let mut rig = Rig::new(1, 512);
        rig.owner.plant(plant);
        rig.slow = |it| matches!(it.body, RequestBody::Grant { .. });
        rig.start(1, READ);
        assert!(rig.done.is_empty());
        rig.now += u64::from(GRANT_MS_MAX);
        rig.down.push(DiskId(0));
        rig.deliver();
        assert_eq!(rig.done.contains_key(&1), plant.is_some());
        rig.down.clear();
        rig.wait(1000);
        assert!(matches!(rig.done.remove(&1), Some(Ok(_))));
    }
}

/// Guards invariant 34 against a copy that is ready: it may count without this owner's knowing, so it is one of those that
/// have to grant.
#[test]
fn copies_that_are_ready_have_to_grant() {
    for plant in [None, Some(Plant::GrantWithoutReady)] {
        let mut rig = Rig::new(3, 512);
        rig.states.insert(DiskId(2), DiskState::Out);
        rig.map();
        rig.states.insert(DiskId(2), DiskState::CatchingUp);
        rig.map();
        rig.wait(2000);
        let ready = rig.owner.catch_ups();
        assert!(ready.iter().any(|it| it.disk == DiskId(2) && it.ready.contains(Partition(0))), "{ready:?}");
        // The map counts it, and then takes out disk 0, which is cut off with this owner.
        rig.owner.plant(plant);
        rig.down = vec![DiskId(1), DiskId(2)];
        assert_eq!([1, 2].map(|disk| rig.sealed_by(disk, 2)), [Ok(()); 2], "nobody has read");
        rig.start(1, READ);
        rig.wait(100);
        assert_eq!(rig.done.contains_key(&1), plant.is_some());
    }
}

/// Guards a successor's time: who gives the volume away, or has lost it, gives back what it was granted.
#[test]
fn given_back() {
    for hands_over in [true, false] {
        let mut rig = Rig::new(3, 512);
        rig.read(0, 4096);
        assert_eq!(rig.grants().len(), 3);
        assert!(rig.sealed_by(1, 2).is_err());
        let mut rig = Rig::new(3, 512);
        rig.read(0, 4096);
        rig.sent.clear();
        rig.drive(if hands_over { Event::HandOver { tag: 1 } } else { Event::Resign });
        assert_eq!(rig.grants(), [(0, 0), (1, 0), (2, 0)]);
        assert_eq!([0, 1, 2].map(|disk| rig.sealed_by(disk, 2)), [Ok(()); 3]);
    }
    // It goes on, and what it gave back does not count.
    let mut rig = Rig::new(3, 512);
    rig.read(0, 4096);
    rig.drive(Event::HandOver { tag: 1 });
    assert!(rig.done.contains_key(&1));
    rig.start(2, READ);
    rig.sent.clear();
    rig.wait(1100);
    assert!(matches!(rig.done.remove(&2), Some(Ok(_))));
    assert_eq!(rig.grants(), [(0, 1500), (1, 1500), (2, 1500)]);
}

/// Guards the new owner: it is told to wait, asks again when the time is over and not before, and complains of nobody.
#[test]
fn a_successor_waits() {
    let mut rig = Rig::new(3, 512);
    rig.read(0, 4096);
    rig.epoch += 1;
    let config = Config { generation: Generation(2), ..rig.owner.config.clone() };
    rig.owner = Owner::new(config, view(&rig.states, rig.epoch, rig.size, false));
    rig.sent.clear();
    rig.drive(Event::Tick);
    rig.start(1, Command::Write { offset: 0, data: vec![1; 4096].into(), fua: false });
    let begin = rig.now;
    while rig.done.is_empty() {
        assert_eq!((rig.owner.readiness(), rig.owner.complaints()), (Readiness::Starting, vec![]));
        rig.idle(1);
    }
    let seals = rig.sent.iter().filter(|it| matches!(it.body, RequestBody::Seal { .. })).count();
    assert_eq!((seals, rig.now - begin), (6, u64::from(GRANT_KEPT_MS_MAX)));
    assert_eq!(rig.owner.readiness(), Readiness::Ready);
}

//! A volume given to another gateway under load: nothing is left to be done for its successor, and nothing is forgotten.

use super::*;
use crate::sim::rng::Rng;

const GIVEN: u64 = 1 << 40;

fn write(step: u64) -> Command {
    Command::Write {
        offset: (step % 4) * EXTENT + step * 4096,
        data: vec![step as u8 + 1; 4096].into(),
        fua: false,
    }
}

impl Rig {
    fn successor(&mut self) {
        self.drive(Event::Resign);
        self.take_over_with(None);
    }
}

/// Guards invariant 35: whatever was in flight, and whatever the write cache held, a successor finds nothing that may
/// differ; what was acknowledged is on stable media, and what came later was not begun.
#[test]
fn nothing_is_left_to_compare() {
    let mut late = 0;
    for seed in 0..200 {
        let mut rng = Rng::new(seed);
        let mut rig = Rig::new(3, 512);
        rig.owner.config.write_back = rng.chance(500);
        let steps = 10 + rng.below(30);
        let told = rng.below(steps);
        for step in 0..told {
            match rng.below(8) {
                0 if rig.down.is_empty() => {
                    let disk = DiskId(rng.below(3) as u32);
                    rig.down.push(disk);
                    rig.drive(Event::Lost { disk });
                }
                1 => rig.down.clear(),
                2 => rig.wait(10 * rng.below(100)),
                _ => rig.start(step, write(step)),
            }
        }
        let before: Vec<u64> = rig.done.keys().copied().collect();
        rig.drive(Event::HandOver { tag: GIVEN });
        late += u64::from(!rig.done.contains_key(&GIVEN));
        for step in told..steps {
            rig.start(step, write(step));
            assert!(!rig.done.contains_key(&step), "seed {seed}: {step} was not held");
        }
        rig.down.clear();
        rig.wait(900);
        assert_eq!(rig.done.remove(&GIVEN), Some(Ok(Data::new())), "seed {seed}");
        assert!((told..steps).all(|step| !rig.done.contains_key(&step)), "seed {seed}");
        assert!(rig.disks.values().all(|disk| disk.dirty_count() == 0), "seed {seed}");
        rig.disks.values_mut().for_each(ModelDisk::lose_memory);
        rig.successor();
        for step in told..steps {
            assert_eq!(rig.done.remove(&step), Some(Err(DeviceError::NotOwner)), "seed {seed}");
            let Command::Write { offset, .. } = write(step) else { unreachable!() };
            assert_eq!(rig.read(offset, 4096), vec![0; 4096], "seed {seed}: {step} was begun");
        }
        for (step, outcome) in std::mem::take(&mut rig.done) {
            assert!(outcome.is_ok() || before.contains(&step), "seed {seed}: {outcome:?}");
            let Command::Write { offset, .. } = write(step) else { unreachable!() };
            assert_eq!(rig.read(offset, 4096), vec![step as u8 + 1; 4096], "seed {seed}: {step} is lost");
        }
    }
    assert!(late > 20, "only {late} orders had to wait");
}

/// Guards what is held: it goes on in its order, if no map names another owner, or if a disk does not answer.
#[test]
fn goes_on_if_nothing_comes_of_it() {
    for is_ready in [true, false] {
        let mut rig = Rig::new(3, 512);
        if !is_ready {
            rig.down.push(DiskId(1));
            rig.start(0, write(0));
        }
        rig.drive(Event::HandOver { tag: GIVEN });
        rig.drive(Event::HandOver { tag: GIVEN + 1 });
        assert_eq!(rig.done.remove(&(GIVEN + 1)), Some(Err(DeviceError::Busy)));
        assert_eq!(rig.done.remove(&GIVEN), is_ready.then(|| Ok(Data::new())));
        for tag in 1..4 {
            let data = Bytes::from(vec![tag as u8; 4096]);
            rig.start(tag, Command::Write { offset: 4096, data, fua: false });
        }
        rig.start(4, Command::Read { offset: 4096, len: 4096 });
        rig.start(5, Command::Read { offset: 1, len: 4096 });
        assert_eq!(rig.done.remove(&5), Some(Err(DeviceError::Invalid)));
        rig.wait(900);
        assert!(rig.done.is_empty(), "{:?}", rig.done);
        rig.wait(200);
        assert_eq!(rig.done.remove(&GIVEN), (!is_ready).then_some(Err(DeviceError::Busy)));
        rig.down.clear();
        rig.wait(1000);
        assert_eq!(rig.done.remove(&4).unwrap().unwrap().concat(), vec![3; 4096]);
        assert!((1..4).all(|tag| rig.done.remove(&tag) == Some(Ok(Data::new()))));
        rig.drive(Event::HandOver { tag: GIVEN });
        assert_eq!(rig.done.remove(&GIVEN), Some(Ok(Data::new())), "again");
    }
}

/// Guards a hand-over beside a disk that does not answer and has not left yet: with nothing in flight, it is not refused.
#[test]
fn a_silent_disk_is_no_reason_to_stay() {
    let mut rig = Rig::new(3, 512);
    assert!(rig.run(write(0)).is_ok());
    rig.down.push(DiskId(1));
    rig.drive(Event::HandOver { tag: GIVEN });
    rig.start(1, write(1));
    rig.wait(900);
    assert!(rig.done.is_empty());
    rig.wait(200);
    assert_eq!(rig.done.remove(&GIVEN), Some(Ok(Data::new())));
    assert!(rig.done.is_empty());
    rig.wait(900);
    rig.drive(Event::Resign);
    assert_eq!(rig.done.remove(&1), Some(Err(DeviceError::NotOwner)));
}

/// Guards the bound of what is held, and the end of a volume that is deleted meanwhile or owned by another.
#[test]
fn what_is_held_is_bounded_and_ends() {
    let mut rig = Rig::limited(2, 512, Limits { operations_max: 3, ..Limits::default() });
    rig.drive(Event::HandOver { tag: GIVEN });
    for step in 0..4 {
        rig.start(step, write(step));
    }
    assert_eq!(rig.done.remove(&3), Some(Err(DeviceError::Busy)));
    rig.deleting = true;
    rig.map();
    assert!((0..3).all(|step| rig.done.remove(&step) == Some(Err(DeviceError::Gone))));
    rig.drive(Event::HandOver { tag: 9 });
    assert_eq!(rig.done.remove(&9), Some(Err(DeviceError::Gone)));
    let mut rig = Rig::new(2, 512);
    rig.down.push(DiskId(1));
    rig.start(0, write(0));
    rig.drive(Event::HandOver { tag: GIVEN });
    rig.drive(Event::Resign);
    assert_eq!(rig.done.remove(&GIVEN), Some(Err(DeviceError::NotOwner)));
    rig.drive(Event::HandOver { tag: 9 });
    assert_eq!(rig.done.remove(&9), Some(Err(DeviceError::NotOwner)));
}

//! The write cache, turned off under load: what was said to be durable is there when all memory is lost.

use super::*;
use crate::sim::rng::Rng;

const THROUGH: u64 = 1 << 40;

impl Rig {
    /// All disks lose what they have not flushed, and the volume is taken over by an owner that has no cache.
    fn lose_everything_volatile(&mut self) {
        self.disks.values_mut().for_each(ModelDisk::lose_memory);
        let config = Config { generation: Generation(2), write_back: false, ..self.owner.config.clone() };
        self.owner = Owner::new(config, view(&self.states, self.epoch, self.size, false));
        self.drive(Event::Tick);
        self.wait(1000);
    }
}

/// Guards acknowledged writes, at whatever moment the cache is turned off, by an order or by the map, and whatever is in
/// flight at that moment: once it is off, none is in memory alone, nor comes to be.
#[test]
fn off_means_durable() {
    let mut late = 0;
    for seed in 0..300 {
        let mut rng = Rng::new(seed);
        let mut rig = Rig::new(3, 512);
        rig.owner.config.write_back = true;
        let by_map = rng.chance(300);
        let steps = 30 + rng.below(30);
        let turned = rng.below(steps);
        // Each block is written once, so that whatever is acknowledged has one content for ever.
        for step in 0..steps {
            if step == turned {
                rig.drive(if by_map {
                    Event::WriteBack(false)
                } else {
                    Event::WriteThrough { tag: THROUGH }
                });
                late += u64::from(!by_map && !rig.done.contains_key(&THROUGH));
            }
            match rng.below(8) {
                0 if rig.down.is_empty() => {
                    let disk = DiskId(rng.below(3) as u32);
                    rig.down.push(disk);
                    // Extents are compared before anything in them goes on: writes wait without a number.
                    rig.drive(Event::Lost { disk });
                }
                1 => rig.down.clear(),
                2 => rig.wait(10 * rng.below(100)),
                _ => {
                    let data = Bytes::from(vec![step as u8 + 1; 4096]);
                    rig.start(step, Command::Write { offset: at(step), data, fua: false });
                }
            }
        }
        rig.down.clear();
        rig.wait(5000);
        if !by_map {
            assert_eq!(rig.done.remove(&THROUGH), Some(Ok(Default::default())), "seed {seed}");
        }
        assert!(!rig.owner.is_volatile(), "seed {seed}");
        rig.lose_everything_volatile();
        let done = std::mem::take(&mut rig.done);
        for (step, _) in done.iter().filter(|(_, outcome)| outcome.is_ok()) {
            assert_eq!(rig.read(at(*step), 4096), vec![*step as u8 + 1; 4096], "seed {seed}, write {step}");
        }
    }
    assert!(late > 20, "only {late} orders had to wait");
}

/// Blocks of all extents.
fn at(step: u64) -> u64 {
    (step % 4) * EXTENT + step * 4096
}

/// Guards against a flush that is answered at once while the cache that the map turned off is still being emptied.
#[test]
fn flushes_are_real_until_it_is_empty() {
    let mut rig = Rig::new(3, 512);
    rig.owner.config.write_back = true;
    assert!(rig.write(0, 4096, 1).is_ok());
    rig.down.push(DiskId(1));
    rig.drive(Event::Lost { disk: DiskId(1) });
    rig.drive(Event::WriteBack(false));
    rig.start(1, Command::Flush);
    rig.wait(500);
    assert!(rig.done.is_empty());
    rig.down.clear();
    rig.wait(2000);
    assert_eq!(rig.done.remove(&1), Some(Ok(Default::default())));
    rig.sent.clear();
    assert!(rig.run(Command::Flush).is_ok());
    assert!(rig.sent.is_empty(), "nothing is left to flush: {:?}", rig.sent);
}

/// Guards the order: it outlasts maps that say that the cache is still on, and ends with one that turns it on anew.
#[test]
fn the_order_outlasts_maps() {
    let mut rig = Rig::new(2, 512);
    rig.owner.config.write_back = true;
    rig.drive(Event::WriteThrough { tag: THROUGH });
    assert_eq!(rig.done.remove(&THROUGH), Some(Ok(Default::default())));
    let volatile = |rig: &mut Rig| {
        rig.sent.clear();
        assert!(rig.write(0, 4096, 1).is_ok());
        rig.sent.iter().any(|it| {
            matches!(
                it.body,
                RequestBody::Change { durability: lunette_proto::node::Durability::Volatile, .. }
            )
        })
    };
    rig.drive(Event::WriteBack(true));
    rig.map();
    assert!(!volatile(&mut rig));
    rig.drive(Event::WriteBack(false));
    assert!(!volatile(&mut rig));
    rig.drive(Event::WriteBack(true));
    assert!(volatile(&mut rig));
}

/// Guards whoever waits: told when the volume is lost or deleted, and no more of them than there is room for.
#[test]
fn those_who_wait_are_told() {
    for deleted in [false, true] {
        let mut rig = Rig::new(2, 512);
        rig.owner.config.write_back = true;
        assert!(rig.write(0, 4096, 1).is_ok());
        rig.down.push(DiskId(0));
        rig.drive(Event::Lost { disk: DiskId(0) });
        for tag in 0..20 {
            rig.drive(Event::WriteThrough { tag });
        }
        assert_eq!(rig.done.len(), 4);
        assert!(rig.done.values().all(|outcome| *outcome == Err(DeviceError::Busy)));
        rig.deleting = deleted;
        if deleted {
            rig.map()
        } else {
            rig.drive(Event::Resign)
        }
        assert_eq!(rig.done.len(), 20);
        rig.drive(Event::WriteThrough { tag: 99 });
        assert!(rig.done[&99].is_err());
    }
}

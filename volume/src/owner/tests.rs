//! The owner on disks that answer at once: one rule each. Everything that needs time and chance is
//! in the simulator.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use lunette_proto::ids::{
    ClusterId, DiskId, Epoch, ExtentId, Generation, Namespace, Partition, PoolId, Version, VolumeId,
};
use lunette_proto::limits::{BLOCK_BYTES, EXTENT_BYTES};
use lunette_proto::map::{Behind, DiskState, FailureDomain, Pool, Redundancy, Table};
use lunette_proto::node::{Failure, ReplyBody, Request, RequestBody};

use super::*;
use crate::device::{Command, Data, DeviceError, Outcome};
use crate::layout::Layout;
use crate::sim::disk::ModelDisk;

mod atomic;
mod cache;
mod catch_up;
mod commands;
mod grants;
mod hand_over;
mod moves;

const VOLUME: VolumeId = VolumeId(3);
const EXTENT: u64 = EXTENT_BYTES as u64;

struct Rig {
    owner: Owner,
    disks: BTreeMap<DiskId, ModelDisk>,
    states: BTreeMap<DiskId, DiskState>,
    /// Disks without a connection.
    down: Vec<DiskId>,
    /// A disk that has none once it has said that it is full.
    lost_when_full: Option<DiskId>,
    /// Requests that are on their way until [`Rig::deliver`].
    slow: fn(&Request) -> bool,
    on_the_way: Vec<(u64, Request)>,
    /// So many changes get to their disks, and nothing after them.
    changes_left: Option<usize>,
    size: u64,
    epoch: u64,
    deleting: bool,
    now: u64,
    done: BTreeMap<u64, Outcome>,
    sent: Vec<Request>,
    purged: bool,
    /// When the owner wants to hear of the time.
    timer: Option<u64>,
}

fn view(states: &BTreeMap<DiskId, DiskState>, epoch: u64, size_bytes: u64, deleting: bool) -> View {
    let disks: Vec<DiskId> = states.keys().copied().collect();
    let pool = Pool {
        id: PoolId(1),
        name: "pool".into(),
        redundancy: Redundancy::replicated(disks.len() as u8),
        failure_domain: FailureDomain::Disk,
        table: Arc::new(Table::new(1, disks.len() as u8, disks)),
        moves: Arc::default(),
    };
    // All that is on a disk which is not in sync is behind, as if it had left with the map of epoch 1.
    let behind =
        Behind { partitions: [Partition(0)].into_iter().collect(), since: Epoch(1), grown: Epoch(1) };
    let behind = Arc::new(behind);
    let standing =
        states.iter().map(|(disk, state)| (*disk, Standing { state: *state, local: false })).collect();
    let pool = PoolView::new(&pool, lunette_placement::partition_of, &standing, |disk| {
        (states[&disk] != DiskState::InSync).then(|| Arc::clone(&behind))
    });
    View { epoch: Epoch(epoch), size_bytes, deleting, pool: Arc::new(pool) }
}

impl Rig {
    fn new(copies: u32, block_bytes: u32) -> Self {
        Self::limited(copies, block_bytes, Limits::default())
    }

    fn limited(copies: u32, block_bytes: u32, limits: Limits) -> Self {
        let states: BTreeMap<DiskId, DiskState> =
            (0..copies).map(|id| (DiskId(id), DiskState::InSync)).collect();
        let config = Config {
            cluster: ClusterId(1),
            volume: VOLUME,
            generation: Generation(1),
            layout: Layout::new(None).unwrap(),
            block_bytes,
            write_back: false,
            limits,
        };
        let size = 4 * EXTENT;
        let mut rig = Self {
            owner: Owner::new(config, view(&states, 1, size, false)),
            disks: states.keys().map(|id| (*id, ModelDisk::new(*id))).collect(),
            states,
            down: Vec::new(),
            lost_when_full: None,
            slow: |_| false,
            on_the_way: Vec::new(),
            changes_left: None,
            size,
            epoch: 1,
            deleting: false,
            now: 0,
            done: BTreeMap::new(),
            sent: Vec::new(),
            purged: false,
            timer: None,
        };
        rig.drive(Event::Tick);
        rig
    }

    fn drive(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        let mut actions = Vec::new();
        while let Some(event) = events.pop_front() {
            self.owner.handle(self.now, event, &mut actions);
            for action in actions.drain(..) {
                match action {
                    Action::Send { disk, tag, request } => {
                        self.sent.push(request.clone());
                        if let Some(left) = &mut self.changes_left
                            && let RequestBody::Change { .. } | RequestBody::Put { .. } = request.body
                        {
                            if *left == 0 {
                                continue;
                            }
                            *left -= 1;
                        }
                        if (self.slow)(&request) {
                            self.on_the_way.push((tag, request));
                            continue;
                        }
                        let reply = if self.down.contains(&disk) {
                            Err(Failure::Disconnected)
                        } else {
                            let model = self.disks.get_mut(&disk).unwrap();
                            model.now_ms = self.now;
                            model.call(&request)
                        };
                        if reply == Err(Failure::NoSpace) && self.lost_when_full == Some(disk) {
                            self.down.push(disk);
                        }
                        events.push_back(Event::Reply { tag, reply });
                    }
                    Action::Complete { tag, outcome } => assert!(self.done.insert(tag, outcome).is_none()),
                    Action::SetTimer { at_ms } => self.timer = Some(at_ms),
                    Action::Purged => self.purged = true,
                    Action::News => {}
                }
            }
        }
    }

    /// What was slow arrives.
    fn deliver(&mut self) {
        self.slow = |_| false;
        for (tag, request) in std::mem::take(&mut self.on_the_way) {
            let model = self.disks.get_mut(&request.disk).unwrap();
            model.now_ms = self.now;
            let reply = model.call(&request);
            self.drive(Event::Reply { tag, reply });
        }
    }

    fn wait(&mut self, ms: u64) {
        for _ in 0..ms / 10 {
            self.now += 10;
            self.drive(Event::Tick);
        }
    }

    /// Lets time pass as the owner asks for it; how often it did.
    fn idle(&mut self, ms: u64) -> usize {
        let end = self.now + ms;
        let mut ticks = 0;
        while let Some(at) = self.timer.take_if(|at| *at <= end) {
            self.now = self.now.max(at);
            self.drive(Event::Tick);
            ticks += 1;
        }
        self.now = end;
        ticks
    }

    fn start(&mut self, tag: u64, command: Command) {
        self.drive(Event::Command { tag, command });
    }

    fn run(&mut self, command: Command) -> Outcome {
        self.start(u64::MAX, command);
        self.done.remove(&u64::MAX).expect("answered at once")
    }

    fn write(&mut self, offset: u64, len: usize, byte: u8) -> Outcome {
        self.run(Command::Write { offset, data: Bytes::from(vec![byte; len]), fua: false })
    }

    fn read(&mut self, offset: u64, len: u32) -> Vec<u8> {
        self.run(Command::Read { offset, len }).unwrap().concat()
    }

    /// Another owner, of the next generation; the one before has died, long ago.
    fn take_over_with(&mut self, plant: Option<Plant>) {
        self.now += 2000;
        self.epoch += 1;
        let mut config = self.owner.config.clone();
        config.generation.0 += 1;
        self.owner = Owner::new(config, view(&self.states, self.epoch, self.size, self.deleting));
        self.owner.plant(plant);
        self.drive(Event::Tick);
    }

    fn map(&mut self) {
        self.epoch += 1;
        let view = view(&self.states, self.epoch, self.size, self.deleting);
        self.drive(Event::Map(view));
    }

    fn extent(index: u64) -> ExtentId {
        ExtentId { namespace: Namespace::volume(VOLUME), index }
    }

    fn version(&self, disk: u32, block: u32) -> Version {
        self.disks[&DiskId(disk)].block(Self::extent(0), block).version
    }
}

/// Guards alignment, limits and the end of the volume, before and after it grew.
#[test]
fn refuses_what_is_out_of_range() {
    let mut rig = Rig::new(1, 4096);
    let size = rig.size;
    assert_eq!(rig.write(size, 4096, 1), Err(DeviceError::OutOfRange));
    assert_eq!(rig.write(size - 4096, 8192, 1), Err(DeviceError::OutOfRange));
    assert_eq!(rig.write(512, 4096, 1), Err(DeviceError::Invalid));
    assert_eq!(rig.write(0, 512, 1), Err(DeviceError::Invalid));
    assert_eq!(rig.write(0, (8 << 20) + 4096, 1), Err(DeviceError::Invalid));
    assert_eq!(rig.run(Command::Zero { offset: u64::MAX - 4095, len: 4096 }), Err(DeviceError::OutOfRange));
    assert_eq!(rig.run(Command::Read { offset: 0, len: 0 }), Err(DeviceError::Invalid));
    rig.size += EXTENT;
    rig.map();
    assert!(rig.write(size, 4096, 1).is_ok());
    assert_eq!(rig.read(size, 4096), vec![1; 4096]);
}

/// Guards partial blocks at both ends of a write and of a discard, across extents.
#[test]
fn merges_partial_blocks() {
    let mut rig = Rig::new(3, 512);
    let start = EXTENT - 1536;
    assert!(rig.write(start - 512, 8192, 1).is_ok());
    assert!(rig.write(start, 5120, 2).is_ok());
    let read = rig.read(start - 512, 8192);
    assert_eq!(read[..512], [1; 512]);
    assert_eq!(read[512..5632], [2; 5120]);
    assert_eq!(read[5632..], [1; 2560]);
    assert!(rig.run(Command::Zero { offset: start + 512, len: 1536 }).is_ok());
    let read = rig.read(start, 5120);
    assert_eq!(read[..512], [2; 512]);
    assert_eq!(read[512..2048], [0; 1536]);
    assert_eq!(read[2048..], [2; 3072]);
}

/// Guards invariants 2 and 3: no ack without a member that is in sync, one as soon as the map has
/// taken it out, none at all below the smallest number.
#[test]
fn acks_only_with_all_members_and_enough() {
    let mut rig = Rig::new(3, 512);
    rig.down.push(DiskId(2));
    rig.start(1, Command::Write { offset: 0, data: Bytes::from(vec![1; 4096]), fua: false });
    rig.wait(1000);
    assert!(rig.done.is_empty());
    assert_eq!(rig.owner.complaints().iter().map(|it| it.disk).collect::<Vec<_>>(), [DiskId(2)]);
    rig.states.insert(DiskId(2), DiskState::Out);
    rig.map();
    assert_eq!(rig.done.remove(&1), Some(Ok(Default::default())));
    rig.states.insert(DiskId(1), DiskState::Out);
    rig.map();
    assert_eq!(rig.owner.readiness(), Readiness::Unavailable);
    assert_eq!(rig.read(0, 4096), vec![1; 4096]);
    rig.start(2, Command::Write { offset: 0, data: Bytes::from(vec![2; 4096]), fua: false });
    rig.wait(5000);
    assert_eq!(rig.done.remove(&2), Some(Err(DeviceError::Busy)));
    assert_eq!(rig.read(0, 4096), vec![1; 4096]);
}

/// Guards against a ghost: a write that was answered as timed out keeps its blocks until it is finished.
#[test]
fn a_timed_out_write_is_not_overtaken() {
    let mut rig = Rig::new(2, 512);
    rig.down.push(DiskId(1));
    rig.start(1, Command::Write { offset: 0, data: Bytes::from(vec![1; 4096]), fua: false });
    rig.wait(5000);
    assert_eq!(rig.done.remove(&1), Some(Err(DeviceError::TimedOut)));
    rig.start(2, Command::Write { offset: 0, data: Bytes::from(vec![2; 4096]), fua: false });
    rig.wait(100);
    rig.down.clear();
    rig.wait(2000);
    assert_eq!(rig.done.remove(&2), Some(Ok(Default::default())));
    assert_eq!(rig.version(0, 0).seq, 2);
    assert_eq!(rig.version(1, 0).seq, 2);
    assert_eq!(rig.read(0, 4096), vec![2; 4096]);
}

/// Guards repair: a bad copy is not seen, and is good again after.
#[test]
fn heals_a_bad_copy() {
    let mut rig = Rig::new(2, 512);
    assert!(rig.write(0, 8192, 7).is_ok());
    for disk in [0, 1] {
        // Not the same block on both: no single copy has it all.
        rig.disks.get_mut(&DiskId(disk)).unwrap().corrupt.insert((Rig::extent(0), disk));
    }
    assert_eq!(rig.read(0, 8192), vec![7; 8192]);
    assert!(rig.disks.values().all(|disk| disk.corrupt.is_empty()));
    assert_eq!(rig.read(0, 8192), vec![7; 8192]);
}

/// Guards invariants 8 and 9: what a disk names as damaged is put back under the version that the others have, on that
/// disk alone, holes as holes, without a read of anybody; and the disk is asked again until it names nothing.
#[test]
fn repairs_what_disks_name() {
    let mut rig = Rig::new(3, 512);
    let extent = Rig::extent(0);
    assert!(rig.write(0, 16 * 4096, 7).is_ok());
    assert!(rig.write(4 * 4096, 4096, 8).is_ok());
    assert!(rig.run(Command::Zero { offset: 6 * 4096, len: 2 * 4096 }).is_ok());
    rig.wait(2000);
    let before: Vec<_> = (0..20).map(|block| rig.disks[&DiskId(1)].block(extent, block)).collect();
    let disk = rig.disks.get_mut(&DiskId(1)).unwrap();
    // A whole unit of which nothing is known any more, and its neighbour, which was never written.
    for block in 0..17 {
        disk.corrupt.insert((extent, block));
        disk.lost.insert((extent, block));
    }
    rig.sent.clear();
    rig.wait(40_000);
    let disk = &rig.disks[&DiskId(1)];
    assert!(disk.corrupt.is_empty() && disk.lost.is_empty(), "{disk:?}");
    for (block, before) in (0..16).zip(&before) {
        assert_eq!(rig.disks[&DiskId(1)].block(extent, block), *before, "block {block}");
    }
    let all = |block| rig.disks.values().map(|disk| disk.block(extent, block)).collect::<Vec<_>>();
    for block in 0..20 {
        assert!(all(block).windows(2).all(|pair| pair[0] == pair[1]), "block {block}");
    }
    let puts = rig.sent.iter().filter(|it| matches!(it.body, RequestBody::Put { .. }));
    assert!(puts.clone().all(|it| it.disk == DiskId(1)));
    assert_eq!(puts.count(), 5, "one for each run of one version");
    assert_eq!((rig.owner.healed_blocks(), rig.owner.hopeless_blocks()), (17, 0));
    rig.sent.clear();
    rig.wait(20_000);
    assert!(rig.sent.len() <= 3, "nothing is left to be asked for every second: {:?}", rig.sent);
}

/// Guards against damage that is given up silently: what no other member has is counted, the rest is repaired, and
/// it stays counted until it is overwritten.
#[test]
fn counts_what_no_member_has() {
    let mut rig = Rig::new(2, 512);
    let extent = Rig::extent(0);
    assert!(rig.write(0, 8 * 4096, 7).is_ok());
    rig.wait(2000);
    for (disk, blocks) in [(0, 0..4), (1, 3..6)] {
        let disk = rig.disks.get_mut(&DiskId(disk)).unwrap();
        disk.corrupt.extend(blocks.map(|block| (extent, block)));
    }
    rig.wait(40_000);
    let bad = |rig: &Rig| rig.disks.values().map(|disk| disk.corrupt.clone()).collect::<Vec<_>>();
    assert_eq!(bad(&rig), [BTreeSet::from([(extent, 3)]), BTreeSet::from([(extent, 3)])]);
    assert_eq!(rig.owner.hopeless_blocks(), 2);
    assert!(rig.write(3 * 4096, 4096, 9).is_ok());
    rig.wait(40_000);
    assert_eq!(rig.owner.hopeless_blocks(), 0);
    // Alone, there is nobody to ask.
    let mut rig = Rig::new(1, 512);
    assert!(rig.write(0, 4096, 7).is_ok());
    rig.disks.get_mut(&DiskId(0)).unwrap().corrupt.insert((extent, 0));
    rig.wait(40_000);
    assert_eq!(rig.owner.hopeless_blocks(), 1);
}

/// Guards order and bounds: a repair waits for a write of its blocks, few go on at once, and none while a member is
/// away, whose turn it would hold up.
#[test]
fn repairs_do_not_get_in_the_way() {
    let mut rig = Rig::new(3, 512);
    let extent = Rig::extent(0);
    assert!(rig.write(0, 1024 * 4096, 7).is_ok());
    rig.wait(2000);
    let disk = rig.disks.get_mut(&DiskId(1)).unwrap();
    disk.corrupt.extend((0..1024).map(|block| (extent, block)));
    rig.down.push(DiskId(2));
    rig.drive(Event::Lost { disk: DiskId(2) });
    rig.sent.clear();
    rig.wait(60_000);
    assert!(rig.sent.iter().all(|it| !matches!(it.body, RequestBody::Put { .. })));
    assert_eq!(rig.read(0, 8192), vec![7; 8192], "the others go on");
    rig.down.clear();
    rig.wait(40_000);
    assert!(rig.disks[&DiskId(1)].corrupt.is_empty());
    let len = |it: &Request| match &it.body {
        RequestBody::Put { change, .. } => change.len(),
        _ => 0,
    };
    assert!(rig.sent.iter().map(len).max() <= Some(64 * 4096), "no more is locked at once");
}

/// Guards the answer when no copy is left, and that a whole new block heals it.
#[test]
fn reports_what_no_copy_has() {
    let mut rig = Rig::new(2, 512);
    assert!(rig.write(0, 3 * 4096, 7).is_ok());
    for disk in rig.disks.values_mut() {
        disk.corrupt.insert((Rig::extent(0), 1));
    }
    assert_eq!(
        rig.run(Command::Read { offset: 0, len: 3 * 4096 }),
        Err(DeviceError::Medium { offset: 4096 })
    );
    assert_eq!(rig.write(4608, 512, 8), Err(DeviceError::Medium { offset: 4096 }));
    assert_eq!(rig.read(0, 4096), vec![7; 4096]);
    assert!(rig.write(4096, 4096, 8).is_ok());
    assert_eq!(rig.read(4096, 4096), vec![8; 4096]);
}

/// Guards a full pool: the old content stays on all members, overwrites and discards go on.
#[test]
fn withdraws_what_has_no_space() {
    let mut rig = Rig::new(3, 512);
    // The last block of a space unit and the first of the next.
    let offset = 15 * 4096;
    assert!(rig.write(offset, 4096, 1).is_ok());
    rig.disks.get_mut(&DiskId(1)).unwrap().capacity = 1;
    assert_eq!(rig.write(offset, 8192, 2), Err(DeviceError::NoSpace));
    assert_eq!(rig.read(offset, 8192), [vec![1; 4096], vec![0; 4096]].concat());
    for block in 15..17 {
        let one = rig.disks[&DiskId(0)].block(Rig::extent(0), block);
        assert!(rig.disks.values().all(|disk| disk.block(Rig::extent(0), block) == one));
    }
    assert!(rig.write(offset, 4096, 3).is_ok());
    assert!(rig.run(Command::Zero { offset, len: 4096 }).is_ok());
    assert!(rig.write(offset + 4096, 4096, 4).is_ok());
    assert_eq!(rig.read(offset, 8192), [vec![0; 4096], vec![4; 4096]].concat());
}

/// Guards the queue: a discard of everything has few requests in flight, and what comes after it
/// on the same blocks comes after it.
#[test]
fn zeroing_is_throttled_and_in_order() {
    let mut rig = Rig::new(2, 512);
    rig.size = 1000 * EXTENT;
    rig.map();
    assert!(rig.write(900 * EXTENT, 4096, 1).is_ok());
    rig.down.extend([DiskId(0), DiskId(1)]);
    rig.start(1, Command::Zero { offset: 0, len: 1000 * EXTENT });
    rig.start(2, Command::Write { offset: 900 * EXTENT, data: Bytes::from(vec![2; 4096]), fua: false });
    assert!(rig.owner.ops.len() <= Limits::default().zero_operations_max);
    rig.down.clear();
    rig.wait(1000);
    assert_eq!(rig.done.len(), 2);
    assert!(rig.done.values().all(Result::is_ok));
    assert_eq!(rig.read(900 * EXTENT, 4096), vec![2; 4096]);
}

/// Guards invariant 13: once a higher generation is sealed this owner never answers with success again.
#[test]
fn stops_when_another_has_sealed() {
    let mut rig = Rig::new(2, 512);
    assert!(rig.write(0, 4096, 1).is_ok());
    let seal = RequestBody::Seal { namespace: Namespace::volume(VOLUME), generation: Generation(2) };
    let request = Request { disk: DiskId(1), epoch: Epoch(2), body: seal };
    assert!(matches!(rig.disks.get_mut(&DiskId(1)).unwrap().call(&request), Ok(ReplyBody::Sealed(_))));
    assert_eq!(rig.write(0, 4096, 2), Err(DeviceError::NotOwner));
    assert_eq!(rig.run(Command::Read { offset: 0, len: 4096 }), Err(DeviceError::NotOwner));
    assert_eq!(rig.owner.readiness(), Readiness::NotOwner);
    assert!(rig.owner.is_over());
}

/// Guards deletion: nothing new, every disk asked until it has answered, then reported once.
#[test]
fn purges_a_deleted_volume() {
    let mut rig = Rig::new(3, 512);
    assert!(rig.write(0, 4096, 1).is_ok());
    rig.down.push(DiskId(1));
    rig.deleting = true;
    rig.map();
    assert_eq!(rig.write(0, 4096, 2), Err(DeviceError::Gone));
    rig.wait(1000);
    assert!(!rig.purged);
    rig.down.clear();
    rig.wait(2000);
    assert!(rig.purged);
    assert!(rig.disks.values().all(ModelDisk::is_blank));
}

/// Guards the epoch and the generation in every message, and that disks out of the map get none.
#[test]
fn messages_bear_the_map() {
    let mut rig = Rig::new(3, 512);
    rig.states.insert(DiskId(0), DiskState::Out);
    rig.map();
    rig.sent.clear();
    assert!(rig.write(100 * u64::from(BLOCK_BYTES), 4096, 1).is_ok());
    rig.read(0, 4096);
    rig.wait(2000);
    assert!(rig.sent.iter().all(|it| it.epoch == Epoch(2) && it.disk != DiskId(0)));
    assert!(
        rig.sent
            .iter()
            .any(|it| matches!(it.body, RequestBody::Watermark { seq: 1, generation: Generation(1), .. }))
    );
}

/// Guards the disks that keep a bounded list of changed extents: a discard of more than that, with writes to
/// the same extents over and over, goes on as fast as watermarks can follow, and none of it is refused.
#[test]
fn changed_extents_stay_below_what_disks_can_list() {
    for write_back in [false, true] {
        let mut rig = Rig::limited(3, 512, Limits { dirty_max: 8, ..Limits::default() });
        rig.owner.config.write_back = write_back;
        rig.size = 400 * EXTENT;
        rig.map();
        rig.disks.values_mut().for_each(|disk| disk.dirty_max = 8);
        rig.start(1, Command::Zero { offset: 0, len: rig.size });
        for round in 0..200 {
            let data = Bytes::from(vec![1; 4096]);
            rig.start(2 + round, Command::Write { offset: (round % 8) * EXTENT, data, fua: false });
            rig.wait(20);
        }
        assert_eq!(rig.done.remove(&1), Some(Ok(Default::default())));
        assert!(rig.done.values().all(Result::is_ok));
        assert!(rig.owner.changed.len() <= 8);
    }
}

/// Guards a disk whose list is full all the same: the watermark reaches it between two attempts.
#[test]
fn a_disk_that_is_busy_gets_the_watermark() {
    let mut rig = Rig::new(2, 512);
    rig.disks.get_mut(&DiskId(1)).unwrap().dirty_max = 2;
    for extent in 0..4 {
        let data = Bytes::from(vec![1; 4096]);
        rig.start(extent, Command::Write { offset: extent * EXTENT, data, fua: false });
    }
    rig.wait(3000);
    assert_eq!(rig.done.len(), 4);
    assert!(rig.done.values().all(Result::is_ok), "{:?}", rig.done);
}

/// Guards against asking without a pause, for ever, a disk that refuses to seal or to flush.
#[test]
fn a_refused_seal_is_not_repeated_at_once() {
    let mut rig = Rig::new(1, 512);
    let states = BTreeMap::from([(DiskId(0), DiskState::InSync)]);
    rig.disks.get_mut(&DiskId(0)).unwrap().refuses_seals = true;
    let config = Config { generation: Generation(2), ..rig.owner.config.clone() };
    rig.owner = Owner::new(config, view(&states, 1, rig.size, false));
    rig.sent.clear();
    rig.drive(Event::Tick);
    rig.wait(1000);
    assert!((2..100).contains(&rig.sent.len()), "{}", rig.sent.len());
    rig.disks.get_mut(&DiskId(0)).unwrap().refuses_seals = false;
    rig.wait(100);
    assert_eq!(rig.owner.readiness(), Readiness::Ready);
}

/// Guards against a flush that waits for ever for a disk that answered nonsense once.
#[test]
fn a_refused_flush_is_repeated() {
    let mut rig = Rig::new(2, 512);
    rig.owner.config.write_back = true;
    assert!(rig.write(0, 4096, 1).is_ok());
    let mut actions = Vec::new();
    rig.owner.handle(rig.now, Event::Command { tag: 1, command: Command::Flush }, &mut actions);
    for action in actions {
        if let Action::Send { tag, .. } = action {
            rig.drive(Event::Reply { tag, reply: Err(Failure::NoSpace) });
        }
    }
    rig.wait(500);
    assert_eq!(rig.done.remove(&1), Some(Ok(Default::default())));
}

/// Guards memory: data of writes that stand behind a discard counts.
#[test]
fn deferred_data_is_bounded() {
    let mut rig = Rig::limited(2, 512, Limits { bytes_max: 1 << 20, ..Limits::default() });
    rig.size = 1000 * EXTENT;
    rig.map();
    rig.down.extend([DiskId(0), DiskId(1)]);
    rig.start(0, Command::Zero { offset: 0, len: rig.size });
    for tag in 1..=32 {
        let data = Bytes::from(vec![1; 64 << 10]);
        rig.start(tag, Command::Write { offset: 900 * EXTENT, data, fua: false });
    }
    assert_eq!(rig.done.len(), 16);
    assert!(rig.done.values().all(|it| *it == Err(DeviceError::Busy)));
    rig.wait(6000);
    assert_eq!(rig.done.len(), 33);
    rig.down.clear();
    rig.wait(1000);
    // All of it is given back.
    assert!(rig.write(0, 1 << 20, 1).is_ok());
}

/// Guards a process with many volumes: one that nobody uses takes no time, and little while a disk is away.
#[test]
fn idle_owners_take_no_time() {
    let mut rig = Rig::new(3, 512);
    assert!(rig.write(0, 4096, 1).is_ok());
    assert!(rig.idle(10_000) < 10);
    // But for the question what is damaged, every 30 s.
    assert!(rig.idle(300_000) <= 20);
    rig.owner.config.limits.survey_ms = None;
    rig.idle(30_000);
    assert_eq!(rig.idle(100_000), 0);
    rig.down.push(DiskId(2));
    rig.drive(Event::Lost { disk: DiskId(2) });
    assert!(rig.idle(100_000) <= 250);
    rig.sent.clear();
    rig.idle(10_000);
    assert!(rig.sent.iter().all(|it| matches!(it.body, RequestBody::Identify { .. })), "{:?}", rig.sent);
    rig.down.clear();
    assert!(rig.idle(100_000) < 10);
}

/// Guards a disk's recovery: it is asked for soon after it was lost, whatever else the owner waits for.
#[test]
fn a_lost_disk_is_asked_for_soon() {
    let mut rig = Rig::new(2, 512);
    rig.idle(10_000);
    for _ in 0..2 {
        assert!(rig.write(0, 4096, 1).is_ok());
        rig.idle(30);
    }
    rig.sent.clear();
    rig.drive(Event::Lost { disk: DiskId(1) });
    rig.idle(60);
    assert!(rig.sent.iter().any(|it| matches!(it.body, RequestBody::Identify { .. })), "{:?}", rig.sent);
}

/// Guards against a node that lists what cannot be: it is used no more, and nothing panics.
#[test]
fn impossible_lists_are_not_believed() {
    for (index, generation) in [(u64::MAX, 1), (1 << 40, 1), (0, 2), (0, 3)] {
        let mut rig = Rig::new(2, 512);
        let states = rig.states.clone();
        let config = Config { generation: Generation(2), ..rig.owner.config.clone() };
        rig.owner = Owner::new(config, view(&states, 1, rig.size, false));
        let mut actions = Vec::new();
        rig.owner.handle(rig.now, Event::Tick, &mut actions);
        let newest = Version { generation: Generation(generation), seq: 9 };
        let dirty = vec![lunette_proto::node::DirtyExtent { index, newest }];
        for action in actions {
            if let Action::Send { tag, disk, .. } = action {
                let dirty = if disk == DiskId(0) { dirty.clone() } else { Vec::new() };
                let reply =
                    Ok(ReplyBody::Sealed(lunette_proto::node::Sealed { dirty, ..Default::default() }));
                rig.drive(Event::Reply { tag, reply });
            }
        }
        let troubles: Vec<_> = rig.owner.complaints().iter().map(|it| (it.disk, it.trouble)).collect();
        assert_eq!(troubles, [(DiskId(0), Trouble::Untrusted)]);
    }
}

/// Guards time under load: what happens all the time must not put off what is due.
#[test]
fn events_do_not_put_off_what_is_due() {
    let mut rig = Rig::new(2, 512);
    rig.down.push(DiskId(1));
    rig.start(0, Command::Write { offset: 0, data: Bytes::from(vec![1; 4096]), fua: false });
    for tag in 1..6000 {
        // The shell's own tick comes late, as it always does.
        rig.now += 1;
        rig.start(tag, Command::Read { offset: EXTENT, len: 4096 });
    }
    assert_eq!(rig.done.remove(&0), Some(Err(DeviceError::TimedOut)));
    rig.down.clear();
    for tag in 6000..8000 {
        rig.now += 1;
        rig.start(tag, Command::Read { offset: EXTENT, len: 4096 });
    }
    assert!(rig.sent.iter().any(|it| matches!(it.body, RequestBody::Watermark { seq: 1, .. })));
}

//! Copies move to other disks: the order in which an owner does what must be in order, and what an administrator sees.

use lunette_proto::map::{Move, Moves};

use super::*;

const ALL: Partition = Partition(0);
const OLD: DiskId = DiskId(1);
const NEW: DiskId = DiskId(2);

impl Rig {
    /// The next map: a row, and a copy that is on its way from now on or none.
    fn placed(&mut self, version: u64, row: &[u32], on_the_way: Option<Move>) {
        self.placed_since(version, row, on_the_way, Epoch(self.epoch + 1));
    }

    /// The same; the copy is on its way since that map.
    fn placed_since(&mut self, version: u64, row: &[u32], on_the_way: Option<Move>, since: Epoch) {
        self.epoch += 1;
        let epoch = Epoch(self.epoch);
        let mut moves = Moves::default();
        if let Some(it) = on_the_way {
            moves.insert(ALL, it);
        }
        let pool = Pool {
            id: PoolId(1),
            name: "pool".into(),
            redundancy: Redundancy::replicated(row.len() as u8),
            failure_domain: FailureDomain::Disk,
            table: Arc::new(Table::new(version, row.len() as u8, row.iter().copied().map(DiskId).collect())),
            moves: Arc::new(moves),
        };
        let standing = |disk: &DiskId| (*disk, Standing { state: DiskState::InSync, local: false });
        let standing = self.states.keys().map(standing).collect();
        let behind = Behind { partitions: [ALL].into_iter().collect(), since, grown: since };
        let pool = PoolView::new(&pool, lunette_placement::partition_of, &standing, |disk| {
            on_the_way.is_some_and(|it| it.to == disk).then(|| Arc::new(behind.clone()))
        });
        let view = View { epoch, size_bytes: self.size, deleting: false, pool: Arc::new(pool) };
        self.drive(Event::Map(view));
    }

    fn holds(&self, disk: DiskId) -> Vec<u64> {
        self.disks[&disk].extents().map(|it| it.index).collect()
    }
}

/// Guards space and data: what a disk has left is dropped a while after its copies have moved away, and nothing else; before
/// copies come back to it, it is sealed under their map, so that a drop which arrives late is refused.
#[test]
fn what_has_moved_away_is_dropped_and_may_come_back() {
    let mut rig = Rig::new(3, 512);
    for extent in 0..4 {
        assert!(rig.write(extent * EXTENT, 8192, extent as u8 + 1).is_ok());
    }
    rig.placed(2, &[0, 1], None);
    assert_eq!(rig.holds(NEW), [0, 1, 2, 3], "stragglers are waited for");
    rig.wait(6000);
    assert_eq!((rig.holds(DiskId(0)), rig.holds(OLD)), (vec![0, 1, 2, 3], vec![0, 1, 2, 3]));
    assert_eq!(rig.holds(NEW), [0; 0]);
    let is_drop = |it: &&Request| matches!(it.body, RequestBody::Drop { .. });
    let late = rig.sent.iter().find(is_drop).expect("it was dropped").clone();

    rig.sent.clear();
    rig.placed(2, &[0, 1], Some(Move { from: OLD, to: NEW }));
    rig.wait(1000);
    assert!(rig.owner.catch_ups().iter().any(|it| it.disk == NEW && it.ready.contains(ALL)));
    let bodies = || rig.sent.iter().filter(|it| it.disk == NEW).map(|it| &it.body);
    assert!(matches!(bodies().next(), Some(RequestBody::Seal { .. })), "{:?}", rig.sent);
    assert!(bodies().any(|it| matches!(it, RequestBody::Put { .. })), "{:?}", rig.sent);
    let answer = rig.disks.get_mut(&NEW).unwrap().call(&late);
    assert!(matches!(answer, Err(Failure::Epoch { .. })), "{answer:?}");
    assert_eq!(rig.holds(NEW), [0, 1, 2, 3]);
}

/// Guards a move as a whole: writes go to the new copy before it counts, and when it does the old one has no part in anything.
#[test]
fn a_copy_takes_anothers_place() {
    let mut rig = Rig::new(3, 512);
    rig.placed(2, &[0, 1], None);
    for extent in 0..4 {
        assert!(rig.write(extent * EXTENT, 8192, extent as u8 + 1).is_ok());
    }
    rig.placed(2, &[0, 1], Some(Move { from: OLD, to: NEW }));
    rig.wait(1000);
    assert!(rig.write(4096, 4096, 9).is_ok());
    assert_eq!(rig.version(2, 1), rig.version(0, 1));
    rig.placed(3, &[0, 2], None);
    // What both grant now lasts longer than the test.
    rig.read(0, 4096);
    rig.down = vec![DiskId(0), OLD];
    assert_eq!(rig.read(0, 4096), [1; 4096], "the new copy is asked");
    assert_eq!(rig.read(4096, 4096), [9; 4096]);
    rig.down = vec![OLD];
    rig.wait(1000);
    assert!(rig.write(0, 4096, 7).is_ok(), "nobody waits for the old one");
    rig.down.clear();
    rig.wait(8000);
    assert_eq!((rig.holds(OLD), rig.holds(NEW)), (vec![], vec![0, 1, 2, 3]));
}

/// Guards copies that come back to a disk while it is being swept: the map of the moment is asked before each drop, also of
/// what was listed before.
#[test]
fn what_comes_back_meanwhile_is_not_dropped() {
    let mut rig = Rig::new(3, 512);
    // More than one request drops.
    let all: Vec<u64> = (0..20).collect();
    rig.size = 20 * EXTENT;
    rig.map();
    for extent in &all {
        assert!(rig.write(extent * EXTENT, 4096, *extent as u8 + 1).is_ok());
    }
    rig.slow = |it| matches!(it.body, RequestBody::Drop { .. });
    rig.placed(2, &[0, 1], None);
    rig.wait(6000);
    let [(_, Request { disk: NEW, body: RequestBody::Drop { extents, .. }, .. })] = &rig.on_the_way[..]
    else {
        panic!("{:?}", rig.on_the_way)
    };
    assert!(extents.len() < all.len(), "one by one");
    rig.placed(2, &[0, 1], Some(Move { from: OLD, to: NEW }));
    rig.wait(1000);
    assert!(rig.owner.catch_ups().iter().any(|it| it.disk == NEW && it.ready.contains(ALL)));
    rig.sent.clear();
    rig.deliver();
    rig.wait(1000);
    let drops = rig.sent.iter().filter(|it| matches!(it.body, RequestBody::Drop { .. }));
    assert_eq!(drops.count(), 0);
    rig.placed(3, &[0, 2], None);
    assert_eq!(rig.holds(NEW), all);
}

/// Guards the list of what a new copy needs: what a disk answers whose copy has gone meanwhile, is not believed.
#[test]
fn a_list_of_a_copy_that_has_gone_is_not_believed() {
    const SOURCE: DiskId = DiskId(0);
    let mut rig = Rig::new(4, 512);
    for extent in 0..4 {
        assert!(rig.write(extent * EXTENT, 8192, extent as u8 + 1).is_ok());
    }
    rig.placed(2, &[0, 1, 3], None);
    rig.wait(6000);
    assert_eq!(rig.holds(NEW), [0; 0]);
    rig.slow = |it| it.disk == SOURCE && matches!(it.body, RequestBody::Extents { .. });
    rig.placed(2, &[0, 1, 3], Some(Move { from: OLD, to: NEW }));
    let since = Epoch(rig.epoch);
    assert_eq!(rig.on_the_way.len(), 1, "the first of the row is asked: {:?}", rig.on_the_way);
    // Its copy has moved away, and is dropped before the question comes.
    rig.placed_since(3, &[1, 3], Some(Move { from: OLD, to: NEW }), since);
    let (namespace, generation) = (Rig::extent(0).namespace, Generation(1));
    let body = RequestBody::Drop { namespace, generation, extents: vec![0, 1, 2, 3] };
    let dropped = Request { disk: SOURCE, epoch: Epoch(rig.epoch), body };
    assert_eq!(rig.disks.get_mut(&SOURCE).unwrap().call(&dropped), Ok(ReplyBody::Done));
    rig.deliver();
    rig.wait(1000);
    assert!(rig.owner.catch_ups().iter().any(|it| it.disk == NEW && it.ready.contains(ALL)));
    assert_eq!(rig.holds(NEW), [0, 1, 2, 3]);
}

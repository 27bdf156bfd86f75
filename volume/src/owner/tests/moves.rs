//! Copies move to other disks: the order in which an owner does what must be in order, and what an administrator sees.

use lunette_proto::map::{Move, Moves};

use super::*;

const ALL: Partition = Partition(0);
const OLD: DiskId = DiskId(1);
const NEW: DiskId = DiskId(2);

impl Rig {
    /// The next map: a row, and a copy that is on its way or none.
    fn placed(&mut self, version: u64, row: &[u32], on_the_way: Option<Move>) {
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
        let behind = Behind { partitions: [ALL].into_iter().collect(), since: epoch, grown: epoch };
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

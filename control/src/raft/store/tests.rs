//! The store under openraft's own suite, over restarts, and over copies taken at any moment.

use std::fs;
use std::path::{Path, PathBuf};

use lunette_proto::ids::ClusterId;
use openraft::storage::{RaftLogStorage as _, RaftLogStorageExt as _, RaftStateMachine as _};
use openraft::testing::{StoreBuilder, Suite};
use openraft::{
    CommittedLeaderId, EntryPayload, LogId, RaftLogReader as _, RaftSnapshotBuilder as _, StorageError, Vote,
};
use redb::ReadableTable as _;
use tempfile::TempDir;

use super::*;
use crate::raft::{Entry, Outcome, TypeConfig};
use crate::state::Command;

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, Machine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine), StorageError<u64>> {
        let folder = tempfile::tempdir().expect("a folder");
        let opened = open_in(folder.path());
        Ok((folder, opened.log, opened.machine))
    }
}

/// Guards the contract between openraft and a store.
#[test]
fn suite() {
    Suite::test_all(Builder).expect("openraft's suite passes");
}

fn wanted(folder: &Path) -> Wanted {
    Wanted { cluster: Some(ClusterId(7)), member: Some(1), key: folder.join("cluster.key") }
}

fn open_in(folder: &Path) -> Opened {
    open(folder, &wanted(folder)).expect("opens")
}

fn log_id(index: u64) -> LogId<u64> {
    LogId::new(CommittedLeaderId::new(1, 1), index)
}

fn entry(index: u64) -> Entry {
    let portal = format!("127.0.0.1:{}", 1000 + index).parse().expect("an address");
    let command = Command::RegisterGateway { name: "gw".into(), portals: vec![portal] };
    Entry { log_id: log_id(index), payload: EntryPayload::Normal(command) }
}

/// Guards added disks over a restart and in a snapshot: the wish and what came of it are rows like any other.
#[tokio::test]
async fn added_disks_are_kept() {
    use lunette_proto::ids::{DiskId, DiskUuid, NodeId};

    let folder = tempfile::tempdir().expect("a folder");
    let wish = |path: &str, uuid| Command::AddDisk {
        node: "node1".into(),
        path: path.into(),
        capacity_bytes: Some(1 << 30),
        uuid: DiskUuid(uuid),
        replaces: None,
    };
    let register = Command::RegisterNode {
        name: "node1".into(),
        address: "127.0.0.1:7500".parse().expect("an address"),
        host: String::new(),
        rack: String::new(),
        zone: String::new(),
        disks: vec![],
    };
    let served = Command::DiskAdded { node: NodeId(1), disk: DiskId(2), capacity_bytes: 1 << 30 };
    let refused = Command::RefuseDisk { node: NodeId(1), disk: DiskId(3) };
    let commands = [register, wish("/a", 1), wish("/b", 2), wish("/c", 3), served, refused];
    let entries = (1..)
        .zip(commands)
        .map(|(index, command)| Entry { log_id: log_id(index), payload: EntryPayload::Normal(command) });
    let mut opened = open_in(folder.path());
    let outcomes = opened.machine.apply(entries).await.expect("applies");
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Applied { .. })), "{outcomes:?}");
    let state = opened.published.state();
    assert_eq!((state.map().added.len(), state.map().wishes().count()), (2, 1));
    opened.store.close().await;
    let opened = open_in(folder.path());
    assert_eq!(*opened.published.state(), *state);
    let bytes = rows::encode_snapshot(&state).expect("encodes");
    assert_eq!(rows::decode_snapshot(&bytes).expect("reads"), *state);
}

/// Guards what logical units keep, and CHAP of discovery: both are there after a restart and in a snapshot, and gone
/// when they were taken away.
#[tokio::test]
async fn units_are_kept() {
    use lunette_proto::ids::VolumeId;
    use lunette_proto::map::{Chap, ChapAlgorithm, ChapCredential, Sealed, UnitState};

    let chap = Chap {
        initiator: ChapCredential { user: "u".into(), secret: Sealed(vec![1, 2]) },
        target: None,
        algorithms: ChapAlgorithm::ALL.to_vec(),
    };
    let unit = |revision| std::sync::Arc::new(UnitState { revision, ..UnitState::default() });
    let node = |index: u8| Command::RegisterNode {
        name: format!("node{index}"),
        address: "127.0.0.1:7500".parse().expect("an address"),
        host: String::new(),
        rack: String::new(),
        zone: String::new(),
        disks: vec![crate::state::NewDisk {
            uuid: lunette_proto::ids::DiskUuid(index.into()),
            label: "/disk".into(),
            capacity_bytes: 1 << 30,
            weight: 0,
        }],
    };
    let volume = |name: &str| Command::CreateVolume {
        name: name.into(),
        pool: "p".into(),
        size_bytes: 4096,
        stripe: None,
        block_bytes: 512,
        write_back: false,
        export: false,
    };
    let pool = Command::CreatePool {
        name: "p".into(),
        redundancy: lunette_proto::map::Redundancy::replicated(1),
        failure_domain: lunette_proto::map::FailureDomain::Disk,
        table: std::sync::Arc::new(lunette_proto::map::Table::new(1, 1, vec![lunette_proto::ids::DiskId(1)])),
    };
    let keep = |volume, revision| Command::SetUnitState { volume: VolumeId(volume), state: unit(revision) };
    let discovery = |chap| Command::SetDiscoveryChap { chap };
    let first = [
        node(1),
        pool,
        volume("a"),
        volume("b"),
        keep(1, 1),
        keep(1, 2),
        keep(2, 1),
        discovery(Some(chap.clone())),
    ];
    let then = [Command::DeleteVolume { name: "b".into(), force: false }, discovery(None)];

    let folder = tempfile::tempdir().expect("a folder");
    let mut index = 0;
    for (commands, units, wanted) in [(first.to_vec(), 2, Some(chap)), (then.to_vec(), 1, None)] {
        let mut opened = open_in(folder.path());
        for command in commands {
            index += 1;
            let entry = Entry { log_id: log_id(index), payload: EntryPayload::Normal(command) };
            let outcomes = opened.machine.apply([entry]).await.expect("applies");
            assert!(matches!(outcomes[0], Outcome::Applied { .. }), "{outcomes:?}");
        }
        let state = opened.published.state();
        assert_eq!((state.map().units.len(), &state.map().discovery_chap), (units, &wanted));
        assert_eq!(state.map().units[&VolumeId(1)].revision, 2);
        opened.store.close().await;
        let opened = open_in(folder.path());
        assert_eq!(*opened.published.state(), *state);
        opened.store.close().await;
        let bytes = rows::encode_snapshot(&state).expect("encodes");
        assert_eq!(rows::decode_snapshot(&bytes).expect("reads"), *state);
        assert_eq!(rows::all_changes(state.map()).filter(|change| !change.is_in(state.map())).count(), 0);
    }
}

/// Guards the knowledge of which copies count: it is there after a restart and in a snapshot, down to the partition, and gone
/// when they count again.
#[tokio::test]
async fn copies_that_do_not_count_are_kept() {
    use lunette_proto::ids::{DiskId, DiskUuid, Epoch, Partition, PoolId};
    use lunette_proto::map::{DiskState, FailureDomain, Partitions, Redundancy, Table};

    let node = |index: u32| Command::RegisterNode {
        name: format!("node{index}"),
        address: "127.0.0.1:7500".parse().expect("an address"),
        host: String::new(),
        rack: String::new(),
        zone: String::new(),
        disks: vec![crate::state::NewDisk {
            uuid: DiskUuid(index.into()),
            label: "/disk".into(),
            capacity_bytes: 1 << 30,
            weight: 0,
        }],
    };
    let pool = |name: &str| Command::CreatePool {
        name: name.into(),
        redundancy: Redundancy::replicated(2),
        failure_domain: FailureDomain::Disk,
        table: Arc::new(Table::new(1, 2, [1, 2].map(DiskId).repeat(100))),
    };
    let disk = DiskId(2);
    let caught_up = |pool, epoch, partitions: std::ops::Range<u32>| Command::CaughtUp {
        disk,
        pool: PoolId(pool),
        partitions: Arc::new(partitions.map(Partition).collect()),
        epoch: Epoch(epoch),
        owners: std::collections::BTreeMap::new(),
    };
    // Epochs 1 to 4, then 5, 6, 7, 8 and 9.
    let first = vec![
        node(1),
        node(2),
        pool("p"),
        pool("q"),
        Command::Evict { disk, seen: DiskState::InSync },
        Command::Return { disk },
        caught_up(1, 6, 0..100),
        caught_up(2, 6, 3..99),
    ];
    let folder = tempfile::tempdir().expect("a folder");
    let mut index = 0;
    let left = || Partitions::from_iter([0, 1, 2, 99].map(Partition));
    for (commands, behind, state) in [
        (first, Some(left()), DiskState::CatchingUp),
        (
            vec![Command::Evict { disk, seen: DiskState::CatchingUp }],
            Some((0..100).map(Partition).collect()),
            DiskState::Out,
        ),
        (
            vec![Command::Return { disk }, caught_up(1, 10, 0..100), caught_up(2, 10, 0..100)],
            None,
            DiskState::InSync,
        ),
    ] {
        let mut opened = open_in(folder.path());
        for command in commands {
            index += 1;
            let entry = Entry { log_id: log_id(index), payload: EntryPayload::Normal(command) };
            let outcomes = opened.machine.apply([entry]).await.expect("applies");
            assert!(matches!(outcomes[0], Outcome::Applied { .. }), "{outcomes:?}");
        }
        let published = opened.published.state();
        assert_eq!(published.map().disks[&disk].state, state);
        assert_eq!(published.map().behind.get(&(PoolId(2), disk)).map(|set| set.partitions.clone()), behind);
        opened.store.close().await;
        let opened = open_in(folder.path());
        assert_eq!(*opened.published.state(), *published);
        opened.store.close().await;
        let bytes = rows::encode_snapshot(&published).expect("encodes");
        assert_eq!(rows::decode_snapshot(&bytes).expect("reads"), *published);
        let map = published.map();
        assert_eq!(rows::all_changes(map).filter(|change| !change.is_in(map)).count(), 0);
        let rows =
            rows::all_changes(map).filter(|change| matches!(change, crate::state::Change::PutBehind(..)));
        assert_eq!(rows.count(), map.behind.len());
    }
}

/// Guards a restart: vote, log, state and ids are as they were, down to the entry.
#[tokio::test]
async fn reopens() {
    let folder = tempfile::tempdir().expect("a folder");
    let vote = Vote::new_committed(3, 1);
    let state = {
        let mut opened = open_in(folder.path());
        opened.log.save_vote(&vote).await.expect("saves");
        opened.log.blocking_append((1..=20).map(entry)).await.expect("appends");
        let outcomes = opened.machine.apply((1..=10).map(entry)).await.expect("applies");
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Applied { .. })));
        opened.log.purge(log_id(5)).await.expect("purges");
        opened.log.truncate(log_id(18)).await.expect("truncates");
        let state = opened.published.state();
        opened.store.close().await;
        state
    };
    let mut opened = open_in(folder.path());
    assert_eq!(*opened.published.state(), *state);
    assert_eq!(state.map().epoch.0, 10);
    assert_eq!(opened.log.read_vote().await.expect("reads"), Some(vote));
    let log = opened.log.get_log_state().await.expect("reads");
    assert_eq!((log.last_purged_log_id, log.last_log_id), (Some(log_id(5)), Some(log_id(17))));
    assert_eq!(opened.machine.applied_state().await.expect("reads").0, Some(log_id(10)));
    let entries = opened.log.try_get_log_entries(0..100).await.expect("reads");
    assert_eq!(entries, (6..=17).map(entry).collect::<Vec<_>>());
}

/// Guards snapshots: one that was built elsewhere makes an equal state, also after a restart, and a
/// damaged one changes nothing.
#[tokio::test]
async fn snapshots() {
    let (from, to) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let mut source = open_in(from.path());
    source.machine.apply((1..=5).map(entry)).await.expect("applies");
    let snapshot = source.machine.get_snapshot_builder().await.build_snapshot().await.expect("builds");
    let kept = source.machine.get_current_snapshot().await.expect("reads").expect("was built");
    assert_eq!(kept.meta, snapshot.meta);

    let mut copy = open_in(to.path());
    copy.machine.apply((1..=2).map(entry)).await.expect("applies");
    let before = copy.published.state();
    for byte in [0, 4, 5, 33] {
        let mut damaged = snapshot.snapshot.clone();
        damaged.get_mut()[byte] ^= 1;
        assert!(copy.machine.install_snapshot(&snapshot.meta, damaged).await.is_err());
        assert_eq!(*copy.published.state(), *before);
    }
    copy.machine.install_snapshot(&snapshot.meta, snapshot.snapshot.clone()).await.expect("installs");
    assert_eq!(*copy.published.state(), *source.published.state());
    copy.store.close().await;
    let mut copy = open_in(to.path());
    assert_eq!(*copy.published.state(), *source.published.state());
    assert_eq!(copy.machine.applied_state().await.expect("reads").0, Some(log_id(5)));
    let kept = copy.machine.get_current_snapshot().await.expect("reads").expect("was installed");
    assert_eq!(kept.snapshot.get_ref(), snapshot.snapshot.get_ref());
}

/// Guards against a crash: whatever moment the process dies at, what was reported as flushed is there,
/// and the log has no hole. A copy of the file while it is written to stands for the kill.
#[tokio::test]
async fn copies_of_a_running_store_open() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut opened = open_in(folder.path());
    for index in 1..=40 {
        opened.log.blocking_append([entry(index)]).await.expect("appends");
        opened.machine.apply([entry(index)]).await.expect("applies");
        if index % 4 != 0 {
            continue;
        }
        // What comes next is under way while the file is copied, page by page.
        let mut log = opened.log.clone();
        let next = tokio::spawn(async move { log.save_vote(&Vote::new(index, 1)).await });
        let copy = tempfile::tempdir().expect("a folder");
        for name in ["control.redb", "cluster.key"] {
            fs::copy(folder.path().join(name), copy.path().join(name)).expect("copies");
        }
        next.await.expect("ends").expect("saves");

        let mut reopened = open_in(copy.path());
        let log = reopened.log.get_log_state().await.expect("reads");
        assert_eq!(log.last_log_id, Some(log_id(index)));
        let entries = reopened.log.try_get_log_entries(..).await.expect("reads");
        assert_eq!(entries, (1..=index).map(entry).collect::<Vec<_>>());
        assert_eq!(reopened.published.state().map().epoch.0, index);
    }
}

fn refusal(folder: &Path, wanted: &Wanted) -> OpenError {
    let before = fs::read(path_in(folder)).expect("a file");
    let error = open(folder, wanted).err().expect("refused");
    assert!(fs::read(path_in(folder)).expect("a file") == before, "left as it is: {error}");
    error
}

async fn founded() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    open_in(folder.path()).store.close().await;
    let path = path_in(folder.path());
    (folder, path)
}

/// Guards folders that are not ours: each is refused by name and left alone.
#[tokio::test]
async fn refused_folders() {
    let (folder, path) = founded().await;
    let right = wanted(folder.path());
    let other = Wanted { cluster: Some(ClusterId(8)), ..right.clone() };
    assert!(matches!(refusal(folder.path(), &other), OpenError::OtherCluster { .. }));
    let other = Wanted { member: Some(2), ..right.clone() };
    assert!(matches!(refusal(folder.path(), &other), OpenError::OtherMember { .. }));

    let (elsewhere, _) = founded().await;
    let other = Wanted { key: elsewhere.path().join("cluster.key"), ..right.clone() };
    assert!(matches!(refusal(folder.path(), &other), OpenError::OtherKey { .. }));
    let other = Wanted { key: folder.path().join("none"), ..right.clone() };
    assert!(matches!(refusal(folder.path(), &other), OpenError::Key(_)));

    let new = folder.path().join("new");
    let nameless = open(&new, &Wanted { member: None, ..right.clone() }).err().expect("refused");
    assert!(matches!(nameless, OpenError::Nameless { .. }) && !new.exists(), "{nameless}");

    let open_already = open(folder.path(), &Wanted { member: None, ..right.clone() }).expect("opens");
    assert!(matches!(refusal(folder.path(), &right), OpenError::InUse { .. }));
    open_already.store.close().await;

    let set = |format: u32| {
        let database = Database::create(&path).expect("opens");
        write(&database, |transaction| {
            transaction.open_table(META)?.insert("format", format.to_le_bytes().as_slice())?;
            Ok(())
        })
        .expect("writes");
    };
    set(8);
    let error = refusal(folder.path(), &right);
    assert!(matches!(error, OpenError::Format { found: 8, .. }), "{error}");
    assert!(error.to_string().contains("control.redb has format 8"), "{error}");
    for old in [1, 2, 3, 4, 5, 6] {
        set(old);
        let error = refusal(folder.path(), &right);
        assert!(matches!(error, OpenError::Unreleased { found, .. } if found == old), "{error}");
        assert!(error.to_string().contains("empty data directory"), "{error}");
    }
}

/// Guards against a snapshot of another version that is taken for one of this.
#[test]
fn snapshots_of_other_formats() {
    let state = crate::state::State::default();
    let bytes = rows::encode_snapshot(&state).expect("encodes");
    assert_eq!(bytes[4], 7, "the format comes first");
    assert_eq!(rows::decode_snapshot(&bytes).expect("reads"), state);
    for format in [0u32, 1, 2, 3, 4, 5, 6, 8] {
        let other = encode(&(format, &state)).expect("encodes");
        assert!(matches!(rows::decode_snapshot(&other), Err(StoreError::Damaged { .. })));
    }
}

/// Guards against files of others: text, another program's database, one cut short.
#[tokio::test]
async fn foreign_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = path_in(folder.path());
    fs::write(&path, "not a database at all, but long enough to look at").expect("writes");
    let error = refusal(folder.path(), &wanted(folder.path()));
    assert!(matches!(error, OpenError::Foreign { .. }), "{error:?}");

    fs::remove_file(&path).expect("there");
    let database = Database::create(&path).expect("makes");
    let transaction = database.begin_write().expect("begins");
    transaction.open_table(TableDefinition::<u64, u64>::new("theirs")).expect("opens");
    transaction.commit().expect("commits");
    drop(database);
    let error = refusal(folder.path(), &wanted(folder.path()));
    assert!(matches!(error, OpenError::Foreign { .. }), "{error:?}");
}

/// Guards a founding that was cut off: a file without a table in it is founded again.
#[tokio::test]
async fn founding_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    drop(Database::create(path_in(folder.path())).expect("makes"));
    let opened = open_in(folder.path());
    assert_eq!(opened.identity, Identity { cluster: ClusterId(7), member: 1 });
}

/// Guards against a flipped bit in a row: the store does not open with it.
#[tokio::test]
async fn damaged_rows() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut opened = open_in(folder.path());
    opened.machine.apply([entry(1)]).await.expect("applies");
    opened.store.close().await;
    let database = Database::create(path_in(folder.path())).expect("opens");
    write(&database, |transaction| {
        let mut rows = transaction.open_table(STATE)?;
        let mut row = rows.get((3, 1))?.expect("the gateway").value().to_vec();
        row[6] ^= 1;
        rows.insert((3, 1), row.as_slice())?;
        Ok(())
    })
    .expect("writes");
    drop(database);
    let error = open(folder.path(), &wanted(folder.path())).err().expect("refused");
    assert!(
        matches!(error, OpenError::Store { source: StoreError::Damaged { what: "gateway" }, .. }),
        "{error}"
    );
}

use std::sync::mpsc::{Sender, channel};

use bytes::Bytes;
use lunette_proto::ids::{DiskId, DiskUuid, Namespace, Version};
use lunette_proto::node::{Change, Durability, Replies};

use super::*;
use crate::engine::format_disk;

struct Inbox(Sender<Reply>);

impl Replies for Inbox {
    fn reply(&self, _tag: u64, reply: Reply) {
        let _ = self.0.send(reply);
    }
}

const CLUSTER: ClusterId = ClusterId(1);
const NS: Namespace = Namespace(1);
const G: Generation = Generation(1);
const EXTENT: ExtentId = ExtentId { namespace: NS, index: 0 };

fn answer(ask: impl FnOnce(Completion)) -> Reply {
    let (sender, answers) = channel();
    ask(Completion::new(0, Arc::new(Inbox(sender))));
    let reply = answers.recv().expect("an answer");
    assert!(answers.try_recv().is_err(), "one answer only");
    reply
}

fn change(engine: &PlainEngine, seq: u64, durability: Durability) -> Reply {
    let version = Version { generation: G, seq };
    let change = Change::Data(Bytes::from(vec![7; 4096]));
    let operation = Operation::Change { extent: EXTENT, version, offset: 0, change, durability };
    answer(|done| engine.submit(Epoch(1), operation, done))
}

/// Guards invariant 12: a failed sync is sticky, nothing is acknowledged after it, and the disk
/// serves nothing any more, although the medium has recovered.
#[test]
fn a_failed_sync_fences_the_disk() {
    let directory = tempfile::tempdir().expect("a directory");
    format_disk(directory.path(), &Identity::new(CLUSTER, DiskId(1), DiskUuid(1))).expect("formatted");
    let engine = PlainEngine::open(CLUSTER, &DiskConfig::new(directory.path(), None), 16).expect("opened");
    let seal = Operation::Seal { namespace: NS, generation: G };
    assert!(answer(|done| engine.submit(Epoch(1), seal, done)).is_ok());
    assert!(change(&engine, 1, Durability::Stable).is_ok());
    engine.fail_syncs.store(true, Ordering::SeqCst);
    assert!(change(&engine, 2, Durability::Volatile).is_ok(), "nobody waits for a sync");
    assert_eq!(change(&engine, 3, Durability::Stable), Err(Failure::DiskFailed));
    engine.fail_syncs.store(false, Ordering::SeqCst);
    assert_eq!(change(&engine, 4, Durability::Stable), Err(Failure::DiskFailed));
    let query = ReadQuery { extent: EXTENT, generation: G, offset: 0, len: 4096 };
    assert_eq!(answer(|done| engine.read(Epoch(1), query, done)), Err(Failure::DiskFailed));
    assert!(engine.failure().is_some_and(|reason| reason.contains("syncing the journal failed")));
}

/// Guards against an extent file ahead of the journal: what a killed process left in the page cache is brought to
/// stable media before any extent file is made to follow it.
#[test]
fn extent_files_follow_the_journal_once_it_is_stable() {
    let directory = tempfile::tempdir().expect("a directory");
    format_disk(directory.path(), &Identity::new(CLUSTER, DiskId(1), DiskUuid(1))).expect("formatted");
    let open = || PlainEngine::open(CLUSTER, &DiskConfig::new(directory.path(), None), 16);
    let engine = open().expect("opened");
    let seal = Operation::Seal { namespace: NS, generation: G };
    assert!(answer(|done| engine.submit(Epoch(1), seal, done)).is_ok());
    assert!(change(&engine, 1, Durability::Stable).is_ok());
    drop(engine);
    let extents = directory.path().join("extents");
    std::fs::remove_dir_all(&extents).expect("removed");
    std::fs::create_dir(&extents).expect("made");
    let is_empty = || std::fs::read_dir(&extents).expect("listed").next().is_none();
    crate::engine::journal::FAIL_SETTLING.set(true);
    assert!(matches!(open(), Err(DiskError::Io { action: "sync it", .. })));
    assert!(is_empty(), "no extent file was touched");
    crate::engine::journal::FAIL_SETTLING.set(false);
    assert!(open().is_ok());
    assert!(!is_empty());
}

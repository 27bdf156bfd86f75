use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use bytes::Bytes;
use lunette_proto::ids::{DiskId, DiskUuid, Namespace, Version};
use lunette_proto::node::{Change, Durability, Replies, Reply, ReplyBody};

use super::*;
use crate::store::{FormatOptions, format_disk};

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

fn ask(ask: impl FnOnce(Completion)) -> Receiver<Reply> {
    let (sender, answers) = channel();
    ask(Completion::new(0, Arc::new(Inbox(sender))));
    answers
}

fn answer(what: impl FnOnce(Completion)) -> Reply {
    let answers = ask(what);
    let reply = answers.recv_timeout(Duration::from_secs(60)).expect("an answer");
    assert!(answers.try_recv().is_err(), "one answer only");
    reply
}

fn change(engine: &DiskEngine, seq: u64, durability: Durability) -> Reply {
    let version = Version { generation: G, seq };
    let change = Change::Data(Bytes::from(vec![7; 4096]));
    let operation = Operation::Change { extent: EXTENT, version, offset: 0, change, durability };
    answer(|done| engine.submit(Epoch(1), operation, done))
}

fn opened() -> (tempfile::TempDir, DiskEngine) {
    let directory = tempfile::tempdir().expect("a directory");
    let identity = Identity { cluster: CLUSTER, disk: DiskId(1), uuid: DiskUuid(1) };
    format_disk(directory.path(), &identity, &FormatOptions::of(64 << 20)).expect("formatted");
    let engine = DiskEngine::open(CLUSTER, &DiskConfig::new(directory.path(), None)).expect("opened");
    let seal = Operation::Seal { namespace: NS, generation: G };
    assert!(answer(|done| engine.submit(Epoch(1), seal, done)).is_ok());
    (directory, engine)
}

/// Guards invariant 12: a failed sync is sticky, nothing is acknowledged after it, and the disk
/// serves nothing any more, although the medium has recovered.
#[test]
fn a_failed_sync_fences_the_disk() {
    let (_directory, engine) = opened();
    assert!(change(&engine, 1, Durability::Stable).is_ok());
    let fail = |fail| engine.shared.medium.faults.durable_writes.store(fail, Ordering::SeqCst);
    fail(true);
    assert_eq!(
        change(&engine, 2, Durability::Volatile),
        Ok(ReplyBody::Done),
        "nobody waits for a sync {:?}",
        engine.failure()
    );
    assert_eq!(change(&engine, 3, Durability::Stable), Err(Failure::DiskFailed));
    fail(false);
    assert_eq!(change(&engine, 4, Durability::Stable), Err(Failure::DiskFailed));
    assert_eq!(change(&engine, 5, Durability::Volatile), Err(Failure::DiskFailed));
    let query = ReadQuery { extent: EXTENT, generation: G, offset: 0, len: 4096, at: None };
    assert_eq!(answer(|done| engine.read(Epoch(1), query, done)), Err(Failure::DiskFailed));
    let versions = answer(|done| engine.versions(Epoch(1), EXTENT, G, done));
    assert_eq!(versions, Err(Failure::DiskFailed));
    assert!(engine.failure().is_some());
    engine.close();
    assert_eq!(change(&engine, 6, Durability::Stable), Err(Failure::Disconnected));
}

/// Guards the same for the checkpoint: what it could not write is never taken for written.
#[test]
fn a_failed_checkpoint_fences_the_disk() {
    let (directory, engine) = opened();
    assert!(change(&engine, 1, Durability::Stable).is_ok());
    engine.shared.medium.faults.syncs.store(true, Ordering::SeqCst);
    engine.close();
    assert!(engine.failure().is_some_and(|reason| reason.contains("checkpoint")), "{:?}", engine.failure());
    drop(engine);
    let engine = DiskEngine::open(CLUSTER, &DiskConfig::new(directory.path(), None)).expect("opened");
    let query = ReadQuery { extent: EXTENT, generation: G, offset: 0, len: 4096, at: None };
    let read = answer(|done| engine.read(Epoch(1), query, done));
    assert_eq!(read, Ok(ReplyBody::Data(Bytes::from(vec![7; 4096]))));
}

/// Guards volatile changes: without anybody asking, they are durable soon.
#[test]
fn volatile_changes_are_committed_soon() {
    let (_directory, engine) = opened();
    let before = engine.shared.medium.faults.durably_written.load(Ordering::SeqCst);
    assert!(change(&engine, 1, Durability::Volatile).is_ok());
    while engine.shared.medium.faults.durably_written.load(Ordering::SeqCst) == before {
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Guards close: what was queued is answered, and the next opening has nothing to do again.
#[test]
fn close_leaves_a_checkpoint() {
    let (directory, engine) = opened();
    let replies = (1..=100)
        .map(|seq| {
            let version = Version { generation: G, seq };
            let change = Change::Data(Bytes::from(vec![seq as u8; 4096]));
            let durability = if seq % 2 == 0 { Durability::Volatile } else { Durability::Stable };
            let operation = Operation::Change { extent: EXTENT, version, offset: 0, change, durability };
            ask(|done| engine.submit(Epoch(1), operation, done))
        })
        .collect::<Vec<_>>();
    engine.close();
    for reply in replies {
        assert_eq!(reply.recv().expect("an answer"), Ok(ReplyBody::Done), "{:?}", engine.failure());
    }
    drop(engine);
    let medium = FileDisk::open(directory.path()).expect("free");
    let (store, recovered) = Store::open(medium).expect("opened");
    assert_eq!(recovered.batches, 0);
    let data = store.view().read(EXTENT, 0..1, true).expect("read");
    assert_eq!(data, vec![100; 4096]);
}

//! What a disk grants to owners, with the real node and its clock.

#![allow(clippy::unwrap_used, reason = "a test fails where it stops")]

mod support;

use std::time::{Duration, Instant};

use lunette_proto::ids::*;
use lunette_proto::limits::{GRANT_KEPT_MS_MAX, GRANT_MS_MAX};
use lunette_proto::node::*;
use support::*;

fn seal(generation: u64) -> RequestBody {
    RequestBody::Seal { namespace: NS, generation: Generation(generation) }
}

fn grant(generation: u64, number: u64, for_ms: u32) -> RequestBody {
    RequestBody::Grant { namespace: NS, generation: Generation(generation), number, for_ms }
}

fn refused(sealed: u64, got: u64) -> Reply {
    Err(Failure::Generation { sealed: Generation(sealed), got: Generation(got) })
}

/// For how long an owner may still act, by the answer to its successor's seal.
fn left(reply: &Reply) -> Option<u32> {
    match reply {
        Ok(ReplyBody::Sealed(_)) => None,
        Err(Failure::Granted { left_ms }) => Some(*left_ms),
        other => panic!("{other:?}"),
    }
}

/// Guards invariant 34 at the disk: a seal takes effect at once and is answered only when nobody older may read; what is given
/// back is waited for no more; and who is not the owner is granted nothing, and keeps nobody waiting.
#[test]
fn a_seal_waits_for_what_was_granted() {
    let directory = tempfile::tempdir().unwrap();
    format(directory.path());
    let mut disk = open(directory.path());
    assert_eq!(disk.call(grant(1, 1, 500)), refused(0, 1), "it has not sealed");
    assert_eq!(left(&disk.call(seal(1))), None, "nobody can have been granted anything");
    assert_eq!(disk.call(grant(1, 1, GRANT_MS_MAX + 1)), Err(Failure::Invalid));
    assert_eq!(disk.call(grant(2, 1, 500)), refused(1, 2));
    assert_eq!(left(&disk.call(seal(2))), None, "who was refused is not waited for");

    let begin = Instant::now();
    assert_eq!(disk.call(grant(2, 1, 600)), Ok(ReplyBody::Done));
    assert_eq!(left(&disk.call(seal(2))), None, "nobody waits for himself");
    let left_ms = left(&disk.call(seal(3))).expect("2 may read");
    assert!(left_ms > 0 && left_ms <= 661, "{left_ms}");
    disk.generation = Generation(2);
    assert_eq!(disk.write(0, 1, 0, blocks(1, 1)), refused(3, 2));
    assert_eq!(disk.call(grant(2, 2, 600)), refused(3, 2));
    while let Some(left_ms) = left(&disk.call(seal(3))) {
        std::thread::sleep(Duration::from_millis(u64::from(left_ms)));
    }
    assert!(begin.elapsed() >= Duration::from_millis(660), "{:?}", begin.elapsed());

    assert_eq!(disk.call(grant(3, 1, GRANT_MS_MAX)), Ok(ReplyBody::Done));
    assert!(left(&disk.call(seal(4))).is_some());
    assert_eq!(disk.call(grant(3, 2, 0)), refused(4, 3), "it is waited for to its end");
    assert!(left(&disk.call(seal(4))).is_some());
    disk.seal(4);
    assert_eq!(disk.call(grant(4, 1, GRANT_MS_MAX)), Ok(ReplyBody::Done));
    assert_eq!(disk.call(grant(4, 2, 0)), Ok(ReplyBody::Done));
    assert_eq!(left(&disk.call(seal(5))), None);
}

/// Guards invariant 34 over a restart: what the process before may have granted is waited for, also by who had sealed and not
/// been answered; what the disk has never seen is not.
#[test]
fn a_restart_forgets_nothing() {
    let directory = tempfile::tempdir().unwrap();
    format(directory.path());
    let mut disk = open(directory.path());
    disk.seal(1);
    assert_eq!(disk.call(grant(1, 1, GRANT_MS_MAX)), Ok(ReplyBody::Done));
    let granted = Instant::now();
    assert!(left(&disk.call(seal(2))).is_some());
    disk.node.close();
    drop(disk);
    let mut disk = open(directory.path());
    let other = RequestBody::Seal { namespace: Namespace(NS.0 + 1), generation: Generation(1) };
    assert_eq!(left(&disk.call(other)), None);
    let left_ms = left(&disk.call(seal(2))).expect("1 may read");
    assert!(left_ms <= GRANT_KEPT_MS_MAX, "{left_ms}");
    disk.seal(2);
    assert!(granted.elapsed() >= Duration::from_millis(GRANT_MS_MAX.into()), "{:?}", granted.elapsed());
    assert_eq!(left(&disk.call(seal(3))), None, "2 was granted nothing");
}

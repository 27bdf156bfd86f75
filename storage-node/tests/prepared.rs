//! Changes that are prepared, and then committed or rolled back, as the node protocol says.

#![allow(clippy::unwrap_used, reason = "a test fails where it stops")]

mod support;

use bytes::Bytes;
use lunette_proto::ids::*;
use lunette_proto::limits::EXTENT_PREPARED_MAX;
use lunette_proto::node::*;
use support::*;

const DONE: Reply = Ok(ReplyBody::Done);

fn disk() -> (tempfile::TempDir, Client) {
    let directory = tempfile::tempdir().unwrap();
    format(directory.path());
    let mut client = open(directory.path());
    client.seal(1);
    (directory, client)
}

fn restart(directory: &tempfile::TempDir, disk: Client) -> Client {
    disk.node.close();
    let generation = disk.generation;
    drop(disk);
    let mut disk = open(directory.path());
    disk.generation = generation;
    disk
}

/// In extent 0: prepares `change` from a block on.
fn prepare(disk: &mut Client, seq: u64, prev: u64, block: u32, change: Change) -> Reply {
    let version = Version { generation: disk.generation, seq };
    let prev = if prev == 0 { Version::NONE } else { support::version(1, prev) };
    disk.call(RequestBody::Prepare { extent: at(0), version, prev, offset: block * 4096, change })
}

fn prepare_data(disk: &mut Client, seq: u64, prev: u64, block: u32, data: Bytes) -> Reply {
    prepare(disk, seq, prev, block, Change::Data(data))
}

/// Commits the change of a number in some blocks' units.
fn commit(disk: &mut Client, seq: u64, block: u32, count: u32) -> Reply {
    let (generation, version) = (disk.generation, version(1, seq));
    let (offset, len) = (block * 4096, count * 4096);
    disk.call(RequestBody::Commit { extent: at(0), generation, version, offset, len })
}

fn rollback(disk: &mut Client, seq: u64, block: u32, count: u32) -> Reply {
    let (generation, version) = (disk.generation, version(1, seq));
    let (offset, len) = (block * 4096, count * 4096);
    disk.call(RequestBody::Rollback { extent: at(0), generation, version, offset, len })
}

/// What is prepared in extent 0: first block, blocks, version, the one before, whether zeros.
fn prepared(disk: &mut Client) -> Vec<(u32, u32, u64, u64, bool)> {
    match disk.call(RequestBody::Prepared { extent: at(0), generation: disk.generation }) {
        Ok(ReplyBody::Prepared(changes)) => changes
            .iter()
            .map(|it| (it.offset / 4096, it.len / 4096, it.version.seq, it.prev.seq, it.hole))
            .collect(),
        other => panic!("{other:?}"),
    }
}

fn present(seq: u64) -> Reply {
    Err(Failure::Version { present: version(1, seq) })
}

fn newest(disk: &mut Client) -> Option<u64> {
    disk.versions(0).iter().map(|run| run.version.seq).max()
}

/// Guards invariants 5 and 6: what is prepared is seen by nobody and survives a restart, the old version is there until the
/// commit, and after it the new one; for a part of a unit, a whole one, one where nothing was, and zeros.
#[test]
fn a_commit_shows_what_was_prepared() {
    let (directory, mut disk) = disk();
    disk.write(0, 1, 0, blocks(1, 48)).unwrap();
    prepare_data(&mut disk, 2, 1, 3, blocks(2, 2)).unwrap();
    prepare_data(&mut disk, 3, 1, 16, blocks(3, 16)).unwrap();
    prepare_data(&mut disk, 4, 0, 50, blocks(4, 1)).unwrap();
    prepare(&mut disk, 5, 1, 32, Change::Zeros { len: 65_536 }).unwrap();
    for _ in 0..2 {
        let all = [(3, 2, 2, 1, false), (16, 16, 3, 1, false), (32, 16, 5, 1, true), (50, 1, 4, 0, false)];
        assert_eq!(prepared(&mut disk), all);
        assert_eq!(disk.read(0, 0, 64).unwrap(), [blocks(1, 48), zeros(16)].concat());
        assert_eq!(newest(&mut disk), Some(1));
        disk = restart(&directory, disk);
    }
    assert_eq!(disk.used(), 7 * UNIT);
    for (seq, block) in [(2, 0), (3, 16), (4, 63), (5, 40)] {
        assert_eq!(commit(&mut disk, seq, block, 1), DONE);
        assert_eq!(commit(&mut disk, seq, block, 1), DONE, "a repetition does no harm");
    }
    let old = blocks(1, 48);
    let parts = [old.slice(..3 * 4096), blocks(2, 2), old.slice(5 * 4096..16 * 4096), blocks(3, 16)];
    let parts = [parts.concat(), zeros(18).to_vec(), blocks(4, 1).to_vec(), zeros(13).to_vec()];
    for _ in 0..2 {
        assert_eq!(disk.read(0, 0, 64).unwrap(), parts.concat());
        assert_eq!(prepared(&mut disk), []);
        assert_eq!(disk.used(), 3 * UNIT, "what was zeroed has no unit");
        disk = restart(&directory, disk);
    }
    let runs = disk.versions(0).iter().map(|run| (run.blocks, run.version.seq, run.hole)).collect::<Vec<_>>();
    let expected = [(3, 1), (2, 2), (11, 1), (16, 3), (16, 5), (2, 0), (1, 4)];
    let expected = expected.map(|(blocks, seq)| (blocks, seq, seq == 5 || seq == 0));
    assert_eq!(runs, expected);
}

/// Guards the way back: after a rollback everything is as it was, its room too, and other changes are taken again.
#[test]
fn a_rollback_leaves_nothing() {
    let (directory, mut disk) = disk();
    disk.write(0, 1, 0, blocks(1, 4)).unwrap();
    prepare_data(&mut disk, 2, 1, 3, blocks(2, 2)).unwrap();
    prepare_data(&mut disk, 3, 0, 32, blocks(3, 16)).unwrap();
    assert_eq!(disk.used(), 3 * UNIT);
    disk = restart(&directory, disk);
    for (seq, block) in [(2, 0), (3, 32)] {
        assert_eq!(rollback(&mut disk, seq, block, 16), DONE);
        assert_eq!(rollback(&mut disk, seq, block, 16), DONE, "a repetition does no harm");
    }
    for _ in 0..2 {
        assert_eq!(prepared(&mut disk), []);
        assert_eq!(disk.read(0, 0, 64).unwrap(), [blocks(1, 4), zeros(60)].concat());
        assert_eq!((disk.used(), newest(&mut disk)), (UNIT, Some(1)));
        disk = restart(&directory, disk);
    }
    assert_eq!(disk.write(0, 2, 32, blocks(9, 1)), DONE);
}

/// Guards the chain: a change that is prepared on a prepared one commits that, at once.
#[test]
fn the_next_commits_the_one_before() {
    let (directory, mut disk) = disk();
    for seq in 1..=5 {
        prepare_data(&mut disk, seq, seq - 1, 2, blocks(seq, 3)).unwrap();
        assert_eq!(prepare_data(&mut disk, seq, seq - 1, 2, blocks(seq, 3)), DONE, "a repetition");
        assert_eq!(prepared(&mut disk), [(2, 3, seq, seq - 1, false)]);
        let before = if seq == 1 { zeros(3) } else { blocks(seq - 1, 3) };
        assert_eq!(disk.read(0, 2, 3).unwrap(), before);
        disk = restart(&directory, disk);
    }
    assert_eq!(commit(&mut disk, 4, 0, 1), DONE, "it was committed, and another one is prepared on it");
    assert_eq!(prepared(&mut disk), [(2, 3, 5, 4, false)]);
    assert_eq!(rollback(&mut disk, 4, 0, 1), present(5));
    assert_eq!(rollback(&mut disk, 5, 0, 1), DONE);
    assert_eq!(rollback(&mut disk, 4, 0, 1), present(4), "what is committed stays");
    assert_eq!(disk.read(0, 2, 3).unwrap(), blocks(4, 3));
    assert_eq!(disk.used(), UNIT);
}

/// Guards the versions: what does not fit what is there is refused, is told what is there, and has changed nothing.
#[test]
fn what_does_not_fit_is_refused() {
    let (_directory, mut disk) = disk();
    disk.write(0, 5, 0, blocks(1, 48)).unwrap();
    assert_eq!(prepare_data(&mut disk, 7, 4, 0, blocks(2, 1)), present(5));
    assert_eq!(prepare_data(&mut disk, 7, 6, 0, blocks(2, 1)), present(5));
    assert_eq!(
        prepare_data(&mut disk, 7, 6, 50, blocks(2, 1)),
        Err(Failure::Version { present: Version::NONE })
    );
    assert_eq!(commit(&mut disk, 6, 0, 1), present(5));
    assert_eq!(prepare_data(&mut disk, 5, 5, 0, blocks(2, 1)), Err(Failure::Invalid));
    assert_eq!(prepare_data(&mut disk, 7, 5, 15, blocks(2, 2)), Err(Failure::Invalid), "two units");
    assert_eq!(prepare(&mut disk, 7, 5, 0, Change::Zeros { len: 0 }), Err(Failure::Invalid));
    assert_eq!(commit(&mut disk, 0, 0, 1), Err(Failure::Invalid));
    assert_eq!(commit(&mut disk, 5, 0, 0), Err(Failure::Invalid));
    let later = RequestBody::Commit {
        extent: at(0),
        generation: Generation(1),
        version: version(2, 1),
        offset: 0,
        len: 4096,
    };
    assert_eq!(disk.call(later), Err(Failure::Invalid), "of a generation to come");

    prepare_data(&mut disk, 7, 5, 3, blocks(2, 1)).unwrap();
    prepare_data(&mut disk, 7, 5, 20, blocks(3, 1)).unwrap();
    assert_eq!(prepare_data(&mut disk, 9, 5, 0, blocks(4, 1)), present(7));
    assert_eq!(disk.write(0, 9, 0, blocks(4, 1)), present(7));
    assert_eq!(disk.write(0, 9, 0, blocks(4, 48)), present(7), "one of its units");
    assert_eq!(disk.discard(0, 9, 0, 1024), present(7));
    assert_eq!(disk.put(0, version(1, 5), 0, Change::Data(blocks(4, 1))), present(7));
    assert_eq!(disk.write(0, 9, 32, blocks(4, 1)), DONE, "another unit");
    assert_eq!(commit(&mut disk, 7, 0, 48), present(9), "not all of them have it");
    assert_eq!(rollback(&mut disk, 9, 0, 48), present(9), "one of them has it for good");
    assert_eq!(disk.read(0, 0, 32).unwrap(), blocks(1, 48).slice(..32 * 4096));
    assert_eq!(prepared(&mut disk).len(), 2);
    assert_eq!(commit(&mut disk, 7, 0, 32), DONE);
    assert_eq!(disk.read(0, 3, 1).unwrap(), blocks(2, 1));
    assert_eq!(disk.read(0, 20, 1).unwrap(), blocks(3, 1));
}

/// Guards takeovers: a seal names what has something prepared wherever the watermark is, also after a restart; late
/// messages do nothing; and the new owner decides.
#[test]
fn the_next_owner_decides() {
    let (directory, mut disk) = disk();
    prepare_data(&mut disk, 1, 0, 0, blocks(1, 1)).unwrap();
    prepare_data(&mut disk, 2, 0, 16, blocks(2, 1)).unwrap();
    disk.watermark(9).unwrap();
    disk = restart(&directory, disk);
    disk.watermark(10).unwrap();
    assert_eq!(disk.seal(2).iter().map(|dirty| dirty.index).collect::<Vec<_>>(), [0]);
    disk.generation = Generation(1);
    let late = Err(Failure::Generation { sealed: Generation(2), got: Generation(1) });
    assert_eq!(commit(&mut disk, 1, 0, 1), late);
    assert_eq!(rollback(&mut disk, 1, 0, 1), late);
    assert_eq!(prepare_data(&mut disk, 3, 0, 0, blocks(1, 1)), late);
    assert_eq!(disk.call(RequestBody::Prepared { extent: at(0), generation: Generation(1) }), late);
    disk.generation = Generation(2);
    assert_eq!(commit(&mut disk, 1, 0, 1), DONE);
    assert_eq!(rollback(&mut disk, 2, 16, 1), DONE);
    assert_eq!(disk.read(0, 0, 17).unwrap(), [blocks(1, 1), zeros(16)].concat());
    disk.watermark(1).unwrap();
    assert_eq!(disk.seal(3), [], "nothing is prepared any more");
}

/// Guards the bound of an extent, and space: what is prepared takes room like data, and none after the namespace.
#[test]
fn prepared_changes_are_bounded() {
    let (_directory, mut disk) = disk();
    let max = u32::try_from(EXTENT_PREPARED_MAX).unwrap();
    for unit in 0..max {
        prepare_data(&mut disk, 1, 0, unit * 16 + 1, blocks(1, 1)).unwrap();
    }
    assert_eq!(prepare_data(&mut disk, 1, 0, max * 16, blocks(1, 1)), Err(Failure::Busy));
    assert_eq!(disk.used(), u64::from(max) * UNIT);
    assert_eq!(prepare_data(&mut disk, 2, 1, 0, blocks(2, 1)), DONE, "in the place of another one");
    assert_eq!(commit(&mut disk, 1, 16, (max - 1) * 16), DONE, "all at once");
    assert_eq!(prepared(&mut disk).len(), 1);
    assert_eq!(disk.read(0, 17, 1).unwrap(), blocks(1, 1));
    disk.delete().unwrap();
    assert_eq!(disk.used(), 0);
}

/// Guards the bound of a disk: what a takeover has to look at is limited, and room is there again after a rollback.
#[test]
fn a_disk_bounds_what_is_prepared() {
    let directory = tempfile::tempdir().unwrap();
    format_as(directory.path(), 1 << 30);
    let mut disk = open(directory.path());
    disk.seal(1);
    let prepare = |index: u64, unit: u64| RequestBody::Prepare {
        extent: at(index),
        version: version(1, 1),
        prev: Version::NONE,
        offset: u32::try_from(unit).unwrap() * 65_536,
        change: Change::Zeros { len: 4096 },
    };
    let max = EXTENT_PREPARED_MAX as u64;
    let mut outcomes = Vec::new();
    for index in 0..90 {
        let tags = (0..max).map(|unit| disk.send(prepare(index, unit))).collect::<Vec<_>>();
        let mut replies = tags.iter().map(|_| disk.receive()).collect::<Vec<_>>();
        replies.sort_by_key(|(tag, _)| *tag);
        outcomes.extend(replies.into_iter().map(|(_, reply)| reply));
    }
    let (done, refused) = outcomes.split_at(4096);
    assert!(done.iter().all(|reply| *reply == DONE));
    assert!(refused.iter().all(|reply| *reply == Err(Failure::Busy)));
    assert_eq!(disk.seal(2).len(), 4096usize.div_ceil(EXTENT_PREPARED_MAX));
    assert_eq!(rollback(&mut disk, 1, 0, 1), DONE);
    disk.generation = Generation(2);
    let RequestBody::Prepare { extent, offset, change, .. } = prepare(0, 0) else { panic!() };
    let (version, prev) = (version(2, 1), Version::NONE);
    assert_eq!(disk.call(RequestBody::Prepare { extent, version, prev, offset, change }), DONE);
}

/// Guards a full disk: an overwrite can still be prepared and committed, again and again; new data cannot.
#[test]
fn a_full_disk_takes_overwrites() {
    let directory = tempfile::tempdir().unwrap();
    format_as(directory.path(), 64 << 20);
    let mut disk = open(directory.path());
    disk.seal(1);
    let mut seq = 0;
    let refused = loop {
        seq += 1;
        let outcome = disk.write(seq, seq, 0, blocks(seq, 16));
        if outcome != DONE {
            break outcome;
        }
    };
    assert_eq!(refused, Err(Failure::NoSpace));
    let extent = at(1);
    for seq in 2..40 {
        let [version, prev] = [seq, seq - 1].map(|seq| version(1, seq));
        let change = Change::Data(blocks(seq, 16));
        let outcome = disk.call(RequestBody::Prepare { extent, version, prev, offset: 0, change });
        assert_eq!(outcome, DONE, "{seq}");
    }
    assert_eq!(disk.read(1, 0, 16).unwrap(), blocks(38, 16));
    assert_eq!(prepare_data(&mut disk, 99, 0, 0, blocks(1, 1)), Err(Failure::NoSpace));
}

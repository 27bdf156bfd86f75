//! What an administrator changes while initiators are logged in: each session learns what it has to, and goes on.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lunette_tests::initiator::{NAME, Transfer};
use lunette_tests::{Initiator, Lunette, iqn, run};

/// Sense key, additional sense code, its qualifier.
type Sense = (u8, u8, u8);

/// Sense key UNIT ATTENTION with what has changed (SPC-4, table 54).
const CAPACITY_CHANGED: Sense = (6, 0x2a, 0x09);
const INQUIRY_CHANGED: Sense = (6, 0x3f, 0x03);
const LUNS_CHANGED: Sense = (6, 0x3f, 0x0e);
const NO_SUCH_LUN: Sense = (5, 0x25, 0x00);

fn ok(lunette: &Lunette, arguments: &[&str]) -> String {
    lunette.cli(arguments.iter().copied()).success()
}

fn ready(lunette: &Lunette, name: &str) -> Initiator {
    let mut initiator = lunette.initiator(name);
    initiator.ready().expect("a connection");
    initiator
}

/// What TEST UNIT READY answers until it is GOOD.
fn attentions(initiator: &mut Initiator) -> Vec<Sense> {
    let mut seen = Vec::new();
    loop {
        let answer = initiator.scsi(&[0; 6], Transfer::None).expect("a connection");
        match answer.status {
            0 => return seen,
            _ => seen.push(answer.sense_code().expect("sense data")),
        }
        assert!(seen.len() < 20, "attentions without end: {seen:x?}");
    }
}

/// READ CAPACITY (16): bytes.
fn capacity(initiator: &mut Initiator) -> u64 {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1], cdb[13]) = (0x9e, 0x10, 32);
    let data = initiator.scsi(&cdb, Transfer::In(32)).expect("a connection").data;
    let last = u64::from_be_bytes(data[..8].try_into().expect("8 bytes"));
    let block = u32::from_be_bytes(data[8..12].try_into().expect("4 bytes"));
    (last + 1) * u64::from(block)
}

/// REPORT LUNS: the numbers, all below 256.
fn luns(initiator: &mut Initiator) -> Vec<u8> {
    let mut cdb = [0; 12];
    (cdb[0], cdb[8]) = (0xa0, 4);
    let answer = initiator.scsi(&cdb, Transfer::In(1024)).expect("a connection");
    assert_eq!(answer.status, 0, "{answer:x?}");
    answer.data[8..].chunks(8).map(|lun| lun[1]).collect()
}

/// WCE of the caching page, by MODE SENSE (6) (SBC-3, 6.4.5).
fn write_cache(initiator: &mut Initiator) -> bool {
    let answer = initiator.scsi(&[0x1a, 0x08, 0x08, 0, 255, 0], Transfer::In(255)).expect("a connection");
    assert_eq!((answer.status, answer.data[4] & 0x3f), (0, 0x08), "{answer:x?}");
    answer.data[6] & 0x04 != 0
}

#[test]
fn a_volume_grows_under_its_sessions() {
    // Guards against a new size that a session does not see, or is not told of, until it logs in again.
    let lunette = Lunette::build().volume("alpha", "64M").volume("beta", "64M").start();
    let mut sessions = [ready(&lunette, "alpha"), ready(&lunette, "alpha")];
    let mut other = ready(&lunette, "beta");
    ok(&lunette, &["volume", "resize", "alpha", "--size", "96M"]);
    for session in &mut sessions {
        assert_eq!(attentions(session), [CAPACITY_CHANGED, INQUIRY_CHANGED], "in this order, once");
        assert_eq!(capacity(session), 96 << 20);
        let last = (96 << 20) / 512 - 8;
        assert_eq!(session.write(last, &[7; 4096]).expect("a connection").status, 0);
        assert_eq!(session.read(last, 8).expect("a connection").data, [7; 4096]);
    }
    assert!(attentions(&mut other).is_empty(), "another volume's session has nothing to learn");
    assert_eq!(capacity(&mut other), 64 << 20);
}

/// Writes and reads back blocks of LUN 0 until told to stop: how many, and which unit attentions came.
fn load(mut session: Initiator, stop: Arc<AtomicBool>) -> thread::JoinHandle<(u64, Vec<Sense>)> {
    thread::spawn(move || {
        let (mut rounds, mut seen) = (0_u64, Vec::new());
        while !stop.load(Ordering::Relaxed) {
            let content = [u8::try_from(rounds % 251).expect("small"); 4096];
            let lba = rounds % 64 * 8;
            for write in [true, false] {
                loop {
                    let answer = if write { session.write(lba, &content) } else { session.read(lba, 8) };
                    let answer = answer.expect("the session goes on");
                    match answer.sense_code().filter(|_| answer.status == 2) {
                        // A command that met a unit attention was not carried out: hosts repeat it.
                        Some(code @ (6, ..)) => seen.push(code),
                        _ => {
                            assert_eq!(answer.status, 0, "{answer:x?}");
                            assert!(write || answer.data == content, "round {rounds}");
                            break;
                        }
                    }
                }
            }
            rounds += 1;
        }
        (rounds, seen)
    })
}

#[test]
fn luns_come_and_go_under_load() {
    // Guards against a LUN that appears or vanishes without a word, and against commands of others that fail for it.
    let lunette = Lunette::build().volume("alpha", "64M").start();
    ok(&lunette, &["volume", "create", "beta", "--size", "64M"]);
    let mut watching = ready(&lunette, "alpha");
    let stop = Arc::new(AtomicBool::new(false));
    let loaded = load(ready(&lunette, "alpha"), Arc::clone(&stop));
    let target = iqn("alpha");
    let rounds = 4;
    for _ in 0..rounds {
        ok(&lunette, &["target", "map", &target, "beta", "--lun", "5"]);
        assert_eq!(attentions(&mut watching), [LUNS_CHANGED]);
        assert_eq!(luns(&mut watching), [0, 5]);
        let inquiry = watching.scsi_on(5, &[0x12, 0, 0, 0, 96, 0], Transfer::In(96)).expect("a connection");
        assert_eq!((inquiry.status, inquiry.data[0]), (0, 0), "a disk that is there");
        ok(&lunette, &["target", "unmap", &target, "beta"]);
        assert_eq!(attentions(&mut watching), [LUNS_CHANGED]);
        assert_eq!(luns(&mut watching), [0]);
        let gone = watching.scsi_on(5, &[0; 6], Transfer::None).expect("a connection");
        assert_eq!((gone.status, gone.sense_code()), (2, Some(NO_SUCH_LUN)));
    }
    stop.store(true, Ordering::Relaxed);
    let (done, seen) = loaded.join().expect("the load goes on to its end");
    assert!(done > 0);
    assert!(seen.iter().all(|code| *code == LUNS_CHANGED), "{seen:x?}");
    // Two changes that come before its next command are one attention.
    assert!((1..=2 * rounds).contains(&seen.len()), "{seen:x?}");
}

#[test]
fn access_of_one_initiator_is_taken_away_from_that_one() {
    // Guards against a change of an ACL that ends or disturbs the sessions of others.
    let lunette = Lunette::build().volume("alpha", "64M").start();
    let target = iqn("alpha");
    const OTHER: &str = "iqn.2026-11.io.lunette.tests:other";
    ok(&lunette, &["target", "allow", &target, "--initiator", NAME]);
    ok(&lunette, &["target", "allow", &target, "--initiator", OTHER]);
    let login = |name| {
        let keys = [("SessionType", "Normal"), ("TargetName", target.as_str())];
        Initiator::login_as(lunette.portal(), name, &keys)
    };
    let mut mine = login(NAME).expect("allowed");
    mine.ready().expect("a connection");
    let mut theirs = login(OTHER).expect("allowed");
    theirs.ready().expect("a connection");

    ok(&lunette, &["target", "allow", &target, "--initiator", "iqn.1998-01.com.vmware:*"]);
    assert!(attentions(&mut theirs).is_empty(), "an entry more is no news to those who are in");
    ok(&lunette, &["target", "deny", &target, "--initiator", OTHER]);
    assert!(attentions(&mut mine).is_empty());
    assert_eq!(mine.write(0, &[1; 4096]).expect("a connection").status, 0);
    assert!(theirs.scsi(&[0; 6], Transfer::None).is_err(), "who is not admitted any more has no session");
    assert!(login(OTHER).is_err());
    assert!(login(NAME).is_ok());
}

#[test]
fn chap_is_asked_of_those_who_come() {
    // Guards against CHAP that is set and ends the sessions of everybody, and one that is set and not asked.
    let lunette = Lunette::build().volume("alpha", "64M").start();
    let target = iqn("alpha");
    let mut session = ready(&lunette, "alpha");
    let set = |secret: &str| {
        let set = lunette.cli_with_input(["target", "chap", &target, "--user", "alice"], secret);
        let _ = set.success();
    };
    let inquiry = |secret: &str| {
        let url = format!("iscsi://alice%{secret}@{}/{target}/0", lunette.portal());
        run(Command::new("iscsi-inq").arg(&url), Duration::from_secs(20)).ok()
    };
    set("first-secret-of-all\n");
    assert!(attentions(&mut session).is_empty(), "who has logged in stays");
    assert!(Initiator::login(lunette.portal(), &target).is_err(), "but nobody comes in without a secret");
    assert!(inquiry("first-secret-of-all"));
    assert!(!inquiry("another-secret-then"));
    set("another-secret-then\n");
    assert!(inquiry("another-secret-then"));
    assert!(!inquiry("first-secret-of-all"));
    assert_eq!(session.write(0, &[1; 4096]).expect("a connection").status, 0);
    ok(&lunette, &["target", "chap", &target, "--off"]);
    assert!(Initiator::login(lunette.portal(), &target).is_ok());
    assert!(attentions(&mut session).is_empty());
}

#[test]
fn sessions_are_counted_and_kicked_one_by_one() {
    // Guards against counters of another session, and a kick that hits more than one.
    let lunette = Lunette::build().volume("alpha", "64M").start();
    let mut busy = ready(&lunette, "alpha");
    let mut idle = ready(&lunette, "alpha");
    let row = |written: u64| {
        let sessions = lunette.json(["session", "list"]);
        let rows = sessions.as_array().expect("a list").clone();
        assert_eq!(rows.len(), 2, "{sessions}");
        rows.into_iter().find(|row| row["written_bytes"] == written).unwrap_or_else(|| panic!("{sessions}"))
    };
    let before = row(0)["commands"].as_u64().expect("a count");
    for index in 0..10 {
        assert_eq!(busy.write(index * 16, &[1; 8192]).expect("a connection").status, 0);
        assert_eq!(busy.read(index * 16, 8).expect("a connection").status, 0);
    }
    let past_the_end = busy.read((64 << 20) / 512, 8).expect("a connection");
    assert_eq!(past_the_end.sense_code(), Some((5, 0x21, 0)));
    let counted = row(10 * 8192);
    assert_eq!(counted["read_bytes"].as_u64(), Some(10 * 4096), "{counted}");
    assert!(counted["commands"].as_u64() >= Some(before + 21), "{counted}");
    assert_eq!(counted["target"], iqn("alpha"));
    assert_eq!(counted["initiator"], NAME);
    assert!(counted["errors"].as_u64() >= Some(1), "{counted}");

    let id = row(0)["id"].as_str().expect("an id").to_owned();
    ok(&lunette, &["session", "kick", &id]);
    assert!(idle.scsi(&[0; 6], Transfer::None).is_err(), "kicked");
    assert!(attentions(&mut busy).is_empty(), "the other one goes on");
    assert_eq!(lunette.json(["session", "list"]).as_array().map(Vec::len), Some(1));
    let again = lunette.cli(["session", "kick", &id]);
    assert!(!again.ok() && again.stderr.contains(&id), "{again}");
}

#[test]
fn a_write_cache_is_turned_off_and_on() {
    // Guards against a cache of which sessions know nothing, and one that is turned on behind an initiator's back.
    let mut lunette = Lunette::build().start();
    ok(&lunette, &["volume", "create", "alpha", "--size", "64M", "--write-back", "--export"]);
    let shown = |lunette: &Lunette| lunette.json(["volume", "show", "alpha"])["write_back"].as_bool();
    let mut session = ready(&lunette, "alpha");
    assert!(write_cache(&mut session));
    assert_eq!(session.write(0, &[3; 65_536]).expect("a connection").status, 0);
    ok(&lunette, &["volume", "set", "alpha", "--write-back", "off"]);
    assert_eq!(shown(&lunette), Some(false));
    assert!(!attentions(&mut session).is_empty(), "the initiator is told");
    assert!(!write_cache(&mut session));

    let on = ["volume", "set", "alpha", "--write-back", "on"];
    let refused = lunette.cli(on);
    assert!(!refused.ok() && refused.stderr.contains("flush"), "{refused}");
    assert_eq!(refused.stderr.lines().count(), 1, "{refused}");
    assert_eq!(shown(&lunette), Some(false));
    ok(&lunette, &["volume", "set", "alpha", "--write-back", "on", "--force"]);
    assert!(!attentions(&mut session).is_empty(), "the initiator is told");
    assert!(write_cache(&mut session));
    session.logout().expect("a connection");
    ok(&lunette, &["volume", "set", "alpha", "--write-back", "off"]);
    ok(&lunette, &on);
    ok(&lunette, &["volume", "set", "alpha", "--write-back", "off"]);
    lunette.kill();
    lunette.restart();
    assert_eq!(shown(&lunette), Some(false));
    let mut session = ready(&lunette, "alpha");
    assert!(!write_cache(&mut session));
    assert_eq!(session.read(0, 128).expect("a connection").data, [3; 65_536]);
}

#[test]
fn drains_and_discovery_chap_are_shown_and_kept() {
    // Guards against what an administrator has set and cannot see, or a restart forgets.
    let mut lunette = Lunette::build().volume("alpha", "64M").start();
    let target = iqn("alpha");
    ok(&lunette, &["target", "drain", &target]);
    let set = [
        "target",
        "chap",
        "--discovery",
        "--user",
        "carol",
        "--mutual-user",
        "dave",
        "--algorithm",
        "sha256",
    ];
    let _ = lunette.cli_with_input(set, "one-secret-of-carol\nanother-one-of-dave\n").success();
    for restarted in [false, true] {
        if restarted {
            lunette.stop();
            lunette.restart_unseen();
        }
        assert_eq!(lunette.json(["target", "show", &target])["draining"], true);
        assert!(ok(&lunette, &["target", "list"]).contains("draining"));
        assert!(ok(&lunette, &["target", "show", &target]).contains("draining"));
        let status = lunette.json(["status"]);
        let chap = &status["discovery_chap"];
        assert_eq!((&chap["user"], &chap["mutual_user"]), (&"carol".into(), &"dave".into()), "{status}");
        assert_eq!(chap["algorithms"], serde_json::json!(["sha256"]));
        assert!(
            ok(&lunette, &["status"])
                .lines()
                .any(|line| { line.starts_with("discovery-chap") && line.ends_with("mutual") })
        );
    }
    ok(&lunette, &["target", "chap", "--discovery", "--off"]);
    ok(&lunette, &["target", "drain", &target, "--off"]);
    assert!(lunette.json(["status"])["discovery_chap"].is_null());
    assert_eq!(lunette.json(["target", "show", &target])["draining"], false);
    let end = Instant::now() + Duration::from_secs(10);
    while Initiator::login(lunette.portal(), &target).is_err() {
        assert!(Instant::now() < end, "nobody is admitted after the drain");
        thread::sleep(Duration::from_millis(20));
    }

    for (arguments, needle) in [
        (&["target", "chap", &target, "--discovery", "--off"][..], "--discovery"),
        (&["target", "chap", "--off"], "TARGET"),
        (&["target", "drain", "iqn.2026-11.io.lunette:none"], "iqn.2026-11.io.lunette:none"),
        (&["volume", "set", "alpha"], "--write-back"),
        (&["volume", "set", "nobody", "--write-back", "off"], "nobody"),
    ] {
        let refused = lunette.cli(arguments.iter().copied());
        assert!(!refused.ok() && refused.stderr.lines().count() == 1, "{refused}");
        assert!(refused.stderr.contains(needle), "{refused}");
    }
}

//! What outlives the processes: configuration and identities, after a clean stop and after a power cut.

use std::time::{Duration, Instant};

use lunette_tests::initiator::Transfer;
use lunette_tests::vpd::Identity;
use lunette_tests::{Initiator, Lunette, command, iqn};
use serde_json::Value;

/// All that an operator configured, and what initiators tell volumes apart by.
#[derive(Debug, PartialEq)]
struct Seen {
    volumes: Value,
    targets: Value,
    pools: Value,
    found: Vec<(String, Vec<String>)>,
    identities: Vec<Identity>,
}

impl Seen {
    fn by(lunette: &Lunette, open: &[&str]) -> Self {
        let mut found: Vec<_> = Initiator::discover(lunette.portal())
            .expect("discovery")
            .into_iter()
            .map(|target| (target.name, target.addresses))
            .collect();
        found.sort();
        Self {
            volumes: configured(lunette.json(["volume", "list"])),
            targets: configured(lunette.json(["target", "list"])),
            pools: configured(lunette.json(["pool", "list"])),
            found,
            identities: open.iter().map(|name| Identity::of(&mut lunette.initiator(name))).collect(),
        }
    }
}

/// Without what a restart may change: the owner's generation, the map's epoch, how much is stored, who was there last.
fn configured(mut value: Value) -> Value {
    match &mut value {
        Value::Object(fields) => {
            fields.retain(|key, _| {
                !["degraded", "epoch", "generation", "owner", "stored", "used", "sessions", "health"]
                    .iter()
                    .any(|part| key.contains(part))
            });
            for field in fields.values_mut() {
                *field = configured(field.take());
            }
        }
        Value::Array(items) => {
            for item in items {
                *item = configured(item.take());
            }
        }
        _ => {}
    }
    value
}

fn configure() -> Lunette {
    let lunette = Lunette::build().volume("alpha", "64M").volume("beta", "128M").start();
    let target = "iqn.2026-11.io.lunette.tests:shared";
    let commands: [&[&str]; 6] = [
        &["pool", "create", "two", "--replicas", "2"],
        &[
            "volume",
            "create",
            "gamma",
            "--size",
            "1G",
            "--pool",
            "two",
            "--stripe-unit",
            "64K",
            "--stripe-width",
            "4",
        ],
        &["target", "create", target],
        &["target", "map", target, "gamma", "--lun", "5"],
        &["target", "allow", target, "--initiator", "iqn.1993-08.org.debian:*", "--from", "127.0.0.0/8"],
        &["volume", "resize", "beta", "--size", "192M"],
    ];
    for command in commands {
        let outcome = lunette.cli(command.iter().copied());
        assert!(outcome.ok(), "{outcome}");
    }
    let outcome = lunette.cli_with_input(["target", "chap", target, "--user", "u1"], "a-secret-of-16-b\n");
    assert!(outcome.ok(), "{outcome}");
    lunette
}

#[test]
fn configuration_and_identities_survive_a_clean_stop() {
    // Guards against volumes that come back under other names, and against an unclean exit.
    let mut lunette = configure();
    let before = Seen::by(&lunette, &["alpha", "beta"]);
    let status = lunette.stop();
    assert_eq!(command::code(status), 0, "exit status after SIGTERM");
    lunette.restart();
    assert_eq!(Seen::by(&lunette, &["alpha", "beta"]), before);
}

#[test]
fn configuration_and_identities_survive_a_kill() {
    // Guards against answers that the control plane gave before they were durable.
    let mut lunette = configure();
    let before = Seen::by(&lunette, &["alpha", "beta"]);
    for _ in 0..3 {
        lunette.kill();
        lunette.restart();
        assert_eq!(Seen::by(&lunette, &["alpha", "beta"]), before);
    }
}

#[test]
fn ready_means_that_commands_are_answered() {
    // Guards against a `ready` before the volumes are: whoever waited for it must not meet NOT READY.
    let mut lunette = Lunette::build().volume("alpha", "64M").volume("beta", "64M").start();
    for _ in 0..5 {
        for name in ["alpha", "beta"] {
            let mut initiator = lunette.initiator(name);
            // The unit attention of a new session (SAM-5, 5.14), once.
            let first = initiator.scsi(&[0; 6], Transfer::None).expect("a connection");
            assert!(
                first.status == 0 || first.sense_code().is_some_and(|(key, ..)| key == 6),
                "{name}: {first:x?}"
            );
            let second = initiator.scsi(&[0; 6], Transfer::None).expect("a connection");
            assert_eq!(second.status, 0, "{name}: {second:x?}");
        }
        lunette.kill();
        lunette.restart();
    }
}

#[test]
fn an_answered_write_survives_a_kill_at_once() {
    // Guards against GOOD before the data is durable on the copies (the process dies right after the answer).
    let mut lunette = Lunette::build().volume("alpha", "64M").start();
    for round in 1..=5_u8 {
        let mut initiator = lunette.initiator("alpha");
        initiator.ready().expect("a connection");
        let lba = u64::from(round) * 1000 + 3;
        let answer = initiator.write(lba, &[round; 1536]).expect("a connection");
        assert_eq!(answer.status, 0, "{answer:x?}");
        lunette.kill();
        lunette.restart();
        let mut initiator = lunette.initiator("alpha");
        initiator.ready().expect("a connection");
        for earlier in 1..=round {
            let answer = initiator.read(u64::from(earlier) * 1000 + 3, 3).expect("a connection");
            assert!(
                answer.status == 0 && answer.data == [earlier; 1536],
                "the write of round {earlier}: {answer:x?}"
            );
        }
    }
}

#[test]
fn a_reservation_survives_a_kill_at_once() {
    // Guards against GOOD before a persistent reservation is committed, and one that a restart does not enforce.
    const CONFLICT: u8 = 0x18;
    let out = |initiator: &mut Initiator, action: u8, kind: u8, key: u64, new_key: u64| {
        let mut list = [0; 24];
        list[..8].copy_from_slice(&key.to_be_bytes());
        list[8..16].copy_from_slice(&new_key.to_be_bytes());
        let cdb = [0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0];
        initiator.scsi(&cdb, Transfer::Out(&list)).expect("a connection").status
    };
    let (register, reserve, preempt) = (0, 1, 4);
    let mut lunette = Lunette::build().volume("alpha", "64M").start();
    let ready = |lunette: &Lunette| {
        let mut initiator = lunette.initiator("alpha");
        initiator.ready().expect("a connection");
        initiator
    };
    for key in 1..=3 {
        let mut initiator = ready(&lunette);
        assert_eq!(out(&mut initiator, register, 0, 0, key), 0);
        let taken = if key == 1 {
            out(&mut initiator, reserve, 3, key, 0)
        } else {
            out(&mut initiator, preempt, 3, key, key - 1)
        };
        assert_eq!(taken, 0);
        lunette.kill();
        lunette.restart();
        let mut other = ready(&lunette);
        assert_eq!(other.read(0, 1).expect("a connection").status, CONFLICT);
        let read = other.scsi(&[0x5e, 1, 0, 0, 0, 0, 0, 0, 24, 0], Transfer::In(24)).expect("a connection");
        assert_eq!((read.data[15], read.data[21]), (u8::try_from(key).expect("small"), 3), "{read:x?}");
    }
}

#[test]
fn a_stop_with_sessions_open_is_clean_and_soon() {
    // Guards against a stop that waits for initiators, which stay logged in for months.
    let mut lunette = Lunette::build().volume("alpha", "64M").start();
    let mut first = lunette.initiator("alpha");
    first.ready().expect("a connection");
    let _second = Initiator::connect(lunette.portal()).expect("a connection that never logs in");
    // Lunette::stop allows ten seconds.
    let status = lunette.stop();
    assert_eq!(command::code(status), 0, "exit status after SIGTERM");
    assert!(first.ready().is_err(), "the session outlived the server");
}

#[test]
fn a_deleted_volume_does_not_come_back() {
    // Guards against a delete that a restart undoes, and a new volume of the same name with old data or names.
    let mut lunette = Lunette::build().start();
    let create = ["volume", "create", "alpha", "--size", "64M", "--export"];
    let made = lunette.cli(create);
    assert!(made.ok(), "{made}");
    let mut initiator = lunette.initiator("alpha");
    initiator.ready().expect("a connection");
    assert_eq!(initiator.write(0, &[7; 4096]).expect("a connection").status, 0);
    let old = Identity::of(&mut initiator);
    drop(initiator);
    let deleted = lunette.cli(["volume", "delete", "alpha", "--force"]);
    assert!(deleted.ok(), "{deleted}");
    lunette.kill();
    lunette.restart();
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        // It stays listed until its data is gone from every disk.
        let listed = lunette.cli(["volume", "list"]).success();
        if !listed.contains("alpha") {
            break;
        }
        assert!(listed.contains("deleting") && Instant::now() < end, "{listed}");
        std::thread::sleep(Duration::from_millis(20));
    }

    // The target may have stayed, without LUNs.
    let _ = lunette.cli(["target", "delete", &iqn("alpha")]);
    let made = lunette.cli(create);
    assert!(made.ok(), "{made}");
    let mut initiator = lunette.initiator("alpha");
    initiator.ready().expect("a connection");
    let answer = initiator.read(0, 8).expect("a connection");
    assert!(answer.status == 0 && answer.data == [0; 4096], "a new volume is empty: {answer:x?}");
    let new = Identity::of(&mut initiator);
    assert!(new.naa != old.naa && new.serial != old.serial, "{old:?} was given again");
}

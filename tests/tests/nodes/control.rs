//! The control plane of three members, one in the process of each node.

use std::collections::BTreeSet;
use std::fs;
use std::time::Instant;

use lunette_tests::{Lunette, command};
use serde_json::Value;

use super::{NODES, SOME, VOLUME, finish, load, until_healthy};

fn start() -> Lunette {
    Lunette::build().processes().control(3).volume(VOLUME, "64M").log("info").start()
}

fn control(lunette: &Lunette) -> Value {
    lunette.json(["cluster", "status"])["control"].clone()
}

/// The node whose process carries the leader.
fn leader(lunette: &Lunette) -> &'static str {
    let control = control(lunette);
    let members = control["members"].as_array().expect("members");
    let leader = members.iter().find(|member| member["id"] == control["leader"]).expect("a leader");
    let listen = format!("listen = {}", leader["address"]);
    let carries = |node: &&str| {
        let config = lunette.data().join(format!("run/{node}.toml"));
        fs::read_to_string(config).expect("a configuration").contains(&listen)
    };
    NODES.into_iter().find(carries).expect("a node with that address")
}

fn volumes(lunette: &Lunette) -> BTreeSet<String> {
    let volumes = lunette.json(["volume", "list"]);
    let names = volumes.as_array().expect("a list").iter().map(|volume| volume["name"].as_str());
    names.map(|name| name.expect("a name").to_owned()).collect()
}

fn create(lunette: &Lunette, name: &str) {
    let created = lunette.cli(["volume", "create", name, "--size", "1M"]);
    assert!(created.ok(), "{created}");
}

fn until_equal(lunette: &Lunette) {
    lunette.until("a control plane whose members are equal", |lunette| {
        let control = control(lunette);
        let members = control["members"].as_array().expect("members");
        members.len() == 3
            && members
                .iter()
                .all(|member| member["voter"] == true && member["up"] == true && member["behind"] == 0)
    });
}

#[test]
fn the_leader_is_killed() {
    // Guards against commands that die with the leader, against I/O that stops with it, and against a change that was
    // answered and is gone with it.
    let lunette = start();
    until_equal(&lunette);
    let load = load(&lunette);
    let mut want = volumes(&lunette);
    let mut parts = Vec::new();
    for round in 0..3 {
        let node = leader(&lunette);
        let name = |when: &str| format!("{when}{round}");
        create(&lunette, &name("before"));
        let killed = Instant::now();
        lunette.kill_part(node);
        create(&lunette, &name("after"));
        println!("a command goes on {:?} after the death of {node}", killed.elapsed());
        load.run(SOME);
        let health = lunette.health();
        assert!(health.contains("of the control plane"), "{health}");
        parts.push(lunette.start_part(node));
        create(&lunette, &name("again"));
        until_healthy(&lunette, &load);
        until_equal(&lunette);
        want.extend(["before", "after", "again"].map(name));
        assert_eq!(volumes(&lunette), want);
    }
    finish(lunette, load);
}

#[test]
fn all_are_killed_at_once() {
    // Guards the log, the vote and the addresses of members against a power cut.
    let mut lunette = start();
    let want = volumes(&lunette);
    create(&lunette, "kept");
    lunette.kill();
    lunette.restart();
    until_equal(&lunette);
    assert_eq!(volumes(&lunette), want.into_iter().chain(["kept".to_owned()]).collect());
    let status = lunette.stop();
    assert_eq!(command::code(status), 0, "exit status after SIGTERM");
}

#[test]
fn members_come_and_go_by_command() {
    // Guards a majority against commands that would leave none, and tokens against being used twice.
    let lunette = start();
    until_equal(&lunette);
    let refused = |arguments: &[&str], want: &str| {
        let outcome = lunette.cli(arguments.iter().copied());
        assert!(!outcome.ok() && outcome.stderr.contains(want), "{outcome}");
    };
    let members = ["cluster", "member"];
    refused(&[&members[..], &["remove", "1"]].concat(), "would have 2 voting members instead of 3");
    refused(&[&members[..], &["remove", "1", "2", "3"]].concat(), "would have 0 voting members");
    refused(&[&members[..], &["add", "9"]].concat(), "no member 9");
    let removed = lunette.cli(["cluster", "member", "remove", "2", "3"]);
    assert!(removed.ok(), "{removed}");
    lunette.kill_part("node2");
    lunette.kill_part("node3");
    // They do not vote any more.
    create(&lunette, "alone");
}

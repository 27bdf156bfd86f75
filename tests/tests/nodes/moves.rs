//! Copies that move to other nodes, under the load: because a node is drained, has gone for good, or is new.

use serde_json::Value;

use super::*;

/// Four nodes, three copies; a disk that is out is rebuilt after so many seconds.
fn start_four(rebuild_after_s: u64) -> Lunette {
    let build = Lunette::build().processes().nodes(4).rebuild_after_s(rebuild_after_s);
    build.volume(VOLUME, "64M").log("info").start()
}

/// The entry of a node's disk in `disk list`.
fn disk(lunette: &Lunette, node: &str) -> Option<Value> {
    let disks = lunette.json(["disk", "list"]);
    disks.as_array()?.iter().find(|disk| disk["node"] == node).cloned()
}

/// The copies of partitions on a node's disk.
fn copies(lunette: &Lunette, node: &str) -> u64 {
    disk(lunette, node).and_then(|disk| disk["copies"].as_u64()).unwrap_or_default()
}

/// Whether nothing moves, and nothing is to.
fn is_still(lunette: &Lunette) -> bool {
    let moves = &lunette.json(["status"])["moves"];
    (&moves["under_way"], &moves["waiting"]) == (&Value::from(0), &Value::from(0))
}

fn until(lunette: &Lunette, load: &Load, what: &str, is_so: impl Fn(&Lunette) -> bool) {
    lunette.until(what, |lunette| {
        load.check();
        is_so(lunette)
    });
}

/// Waits until a node has so many copies and nothing moves any more, for as long as it goes on.
fn until_copies(lunette: &Lunette, load: &Load, node: &str, wanted: u64) {
    while !(copies(lunette, node) == wanted && is_still(lunette)) {
        let before = copies(lunette, node);
        until(lunette, load, "moving", |lunette| copies(lunette, node) != before || is_still(lunette));
    }
}

fn done(lunette: &Lunette, arguments: &[&str]) -> String {
    let outcome = lunette.cli(arguments.iter().copied());
    assert!(outcome.ok(), "{outcome}");
    outcome.stdout
}

fn refusal(lunette: &Lunette, arguments: &[&str]) -> String {
    let outcome = lunette.cli(arguments.iter().copied());
    assert!(!outcome.ok(), "{outcome}");
    outcome.stderr
}

/// Ends the load and everything else, `part` too, and compares what lies on the nodes that are left.
fn finish(mut lunette: Lunette, load: Load, part: Option<Part>, nodes: &[&str]) {
    load.run(SOME);
    load.finish();
    lunette.kill();
    drop(part);
    replicas::assert_equal(&lunette.data(), nodes, EXTENTS);
}

#[test]
fn a_node_is_drained_and_removed() {
    // Guards growth and shrinking under load: nothing is lost, no command fails, and a node is not given up with copies on it.
    let lunette = start_four(600);
    let load = load(&lunette);
    assert_eq!(copies(&lunette, "node4"), 3072, "4096 partitions, three copies, four nodes");

    let preview = done(&lunette, &["node", "drain", "node4", "--dry-run"]);
    assert!(preview.starts_with("node4 would be drained: 3072 moves"), "{preview}");
    assert!(is_still(&lunette), "a dry run moves nothing");
    let refused = refusal(&lunette, &["node", "remove", "node4"]);
    assert!(refused.contains("is in service; drain it first"), "{refused}");

    done(&lunette, &["node", "drain", "node4"]);
    let refused = refusal(&lunette, &["node", "remove", "node4"]);
    assert!(refused.contains("of 4096 partitions of pool \"default\""), "{refused}");
    let refused = refusal(&lunette, &["node", "drain", "node3"]);
    assert!(refused.contains("3 copies need 3 hosts, there are 2"), "{refused}");
    until_copies(&lunette, &load, "node4", 0);
    assert_eq!(lunette.health(), "health: healthy");
    done(&lunette, &["node", "remove", "node4"]);
    lunette.kill_part("node4");
    load.run(SOME * 4);
    assert_eq!(lunette.health(), "health: healthy");
    assert!(disk(&lunette, "node4").is_none());
    finish(lunette, load, None, &NODES);
}

#[test]
fn a_drain_is_taken_back() {
    // Guards the way back: what has moved away comes again, and what was under way is given up.
    let lunette = start_four(600);
    let load = load(&lunette);
    done(&lunette, &["node", "drain", "node3"]);
    until(&lunette, &load, "moving", |lunette| copies(lunette, "node3") < 3072);
    done(&lunette, &["node", "drain", "node3", "--off"]);
    until_copies(&lunette, &load, "node3", 3072);
    load.run(SOME);
    load.finish();
    assert_eq!(lunette.health(), "health: healthy");
}

#[test]
fn a_node_that_stays_away_is_rebuilt() {
    // Guards repair: all copies count again without the node, also after the control plane and another node died meanwhile, and
    // the node gets its share when it is back.
    let lunette = start_four(2);
    let load = load(&lunette);
    lunette.kill_part("node4");
    until(&lunette, &load, "rebuilding", |lunette| copies(lunette, "node4") < 3072);
    load.set_strict(false);
    lunette.kill_part("node1");
    let _node1 = lunette.start_part("node1");
    load.run(SOME);
    load.set_strict(true);
    until_copies(&lunette, &load, "node4", 0);
    until(&lunette, &load, "rebuilt", |lunette| {
        lunette.json(["pool", "list"])[0]["degraded_partitions"] == 0
    });
    load.run(SOME);
    let _node4 = lunette.start_part("node4");
    until_copies(&lunette, &load, "node4", 3072);
    assert_eq!(lunette.health(), "health: healthy");
    load.run(SOME);
    load.finish();
}

#[test]
fn a_new_node_gets_its_share() {
    // Guards growth: copies move to a node that has just come, and every copy is whole afterwards.
    let lunette = start();
    let load = load(&lunette);
    let node4 = lunette.add_node("node4");
    until(&lunette, &load, "there", |lunette| disk(lunette, "node4").is_some());
    until_copies(&lunette, &load, "node4", 3072);
    assert_eq!(lunette.health(), "health: healthy");
    load.run(SOME);
    // Any of the others may leave now, and what is left has everything.
    done(&lunette, &["node", "drain", "node2"]);
    until_copies(&lunette, &load, "node2", 0);
    finish(lunette, load, Some(node4), &["node1", "node3", "node4"]);
}

#[test]
fn a_disk_takes_the_place_of_another() {
    // Guards a replacement in the three nodes that there are: nothing is lost, the old disk is given up only when it holds
    // nothing, and a dead one is replaced as well.
    let lunette = start();
    let load = load(&lunette);
    let disks = || lunette.json(["disk", "list"]).as_array().cloned().unwrap_or_default();
    let id = |path: &str| {
        let is_it = |disk: &&Value| disk["path"].as_str().is_some_and(|it| it.ends_with(path));
        disks().iter().find(is_it).and_then(|disk| disk["id"].as_u64())
    };
    let old = id("/node2").expect("there").to_string();
    let path = lunette.scratch().join("another");
    let path = path.to_str().expect("text");
    let preview = done(&lunette, &["disk", "replace", &old, path, "--capacity", "1G", "--dry-run"]);
    assert!(preview.starts_with(&format!("disk {old} would be drained: 4096 moves")), "{preview}");
    assert_eq!(id("/another"), None, "a dry run adds nothing");
    let refused = refusal(&lunette, &["disk", "replace", "99", path]);
    assert!(refused.contains("99"), "{refused}");

    done(&lunette, &["disk", "replace", &old, path, "--capacity", "1G"]);
    let new = id("/another").expect("in service");
    let refused = refusal(&lunette, &["disk", "replace", &old, &format!("{path}2")]);
    assert!(refused.contains(&format!("is being replaced by disk-{new} already")), "{refused}");
    until(&lunette, &load, "replaced", |_| id("/node2").is_none());
    let of_new = disks().iter().find(|disk| disk["id"] == new).cloned().expect("there");
    assert_eq!(of_new["copies"], 4096);
    load.run(SOME);

    // Its node is gone for good: another node's disk takes its place.
    let dead = id("/node3").expect("there").to_string();
    let node4 = lunette.add_node("node4");
    let is_there = |lunette: &Lunette| disk(lunette, "node4").is_some_and(|disk| disk["state"] == "in-sync");
    until(&lunette, &load, "there", is_there);
    lunette.kill_part("node3");
    until_out(&lunette, &load, "node3");
    let path = format!("{path}4");
    done(&lunette, &["disk", "replace", &dead, &path, "--node", "node4", "--capacity", "1G"]);
    until(&lunette, &load, "replaced", |_| id("/node3").is_none());
    until(&lunette, &load, "whole", |lunette| lunette.json(["pool", "list"])[0]["degraded_partitions"] == 0);
    load.run(SOME);
    load.finish();
    drop(node4);
}

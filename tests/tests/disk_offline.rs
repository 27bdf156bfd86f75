//! `lunette disk inspect` and `lunette disk check`: a disk that nobody uses, looked at and left as it is.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use lunette_tests::binary::lunette_bin;
use lunette_tests::command::run;
use lunette_tests::{Lunette, Outcome};
use serde_json::Value;

fn disk(arguments: &[&str], path: &Path) -> Outcome {
    let mut command = Command::new(lunette_bin());
    command.arg("disk").args(arguments).arg(path).env("LUNETTE_ADMIN", "127.0.0.1:1");
    run(&mut command, Duration::from_secs(60))
}

fn json(arguments: &[&str], path: &Path) -> Value {
    let outcome = disk(arguments, path);
    serde_json::from_str(&outcome.stdout).unwrap_or_else(|error| panic!("not JSON: {error}\n{outcome}"))
}

/// A stopped system whose volume has data in its first extent, and the disk of its first node.
fn stopped() -> (Lunette, PathBuf) {
    let mut lunette = Lunette::build().volume("alpha", "64M").start();
    let mut initiator = lunette.initiator("alpha");
    initiator.ready().expect("a connection");
    assert_eq!(initiator.write(0, &[0xa5; 65536]).expect("a connection").status, 0);
    let path = lunette.data().join("node1");
    let in_use = disk(&["inspect"], &path);
    assert_eq!(in_use.code, 1, "{in_use}");
    assert!(in_use.stderr.contains("in use") && in_use.stderr.lines().count() == 1, "{in_use}");
    assert_eq!(disk(&["check"], &path).code, 1);
    drop(initiator);
    lunette.stop();
    (lunette, path)
}

/// The file with the data of a directory's disk.
fn file_of(path: &Path) -> PathBuf {
    path.join("disk")
}

#[test]
fn a_stopped_disk_is_shown_and_not_changed() {
    // Guards against a look that writes, that needs a cluster, or that shows another disk.
    let (mut lunette, path) = stopped();
    let changed = || {
        ["disk", "wal"].map(|name| fs::metadata(path.join(name)).expect("there").modified().expect("a time"))
    };
    let before = changed();

    let shown = disk(&["inspect"], &path).success();
    assert!(shown.contains("disk-1 of cluster"), "{shown}");
    let report = json(&["inspect", "--wal", "--extent", "volume-1:0", "--json"], &path);
    assert_eq!(report["identity"]["disk"], 1);
    assert!(report["wal"]["batches"].is_array() && report["unit"].is_null(), "{report}");
    let unit = report["extent"]["slots"][0]["unit"].as_u64().expect("the first 64 KiB have a unit");
    let unit = json(&["inspect", "--unit", &unit.to_string(), "--json"], &path)["unit"].clone();
    assert_eq!((&unit["owner"]["slot"], &unit["owner"]["extent"]["index"]), (&0.into(), &0.into()), "{unit}");
    assert_eq!(unit["owner"]["blocks"][0]["state"], "data", "{unit}");
    let nowhere = json(&["inspect", "--extent", "volume-9:0", "--json"], &path);
    assert!(nowhere["extent"]["page"].is_null(), "{nowhere}");
    let far = disk(&["inspect", "--unit", "4000000000"], &path);
    assert!(far.code == 1 && far.stderr.lines().count() == 1, "{far}");

    let checked = disk(&["check"], &path).success();
    assert!(checked.trim_end().ends_with("\nclean"), "{checked}");
    assert!(json(&["check", "--json"], &path)["units"].as_u64().is_some_and(|units| units > 0));
    assert_eq!(changed(), before);

    lunette.restart();
    let mut initiator = lunette.initiator("alpha");
    initiator.ready().expect("a connection");
    assert!(initiator.read(0, 128).expect("a connection").data == [0xa5; 65536]);
}

#[test]
fn damage_is_found_and_named() {
    // Guards against a check that calls a disk clean whose data has rotted.
    let (_lunette, path) = stopped();
    let slots = json(&["inspect", "--extent", "volume-1:0", "--json"], &path)["extent"]["slots"].clone();
    let unit = slots[0]["unit"].as_u64().expect("the first 64 KiB have a unit");
    let unit = json(&["inspect", "--unit", &unit.to_string(), "--json"], &path)["unit"].clone();
    let offset = unit["data_offset"].as_u64().expect("a place") + 5000;
    let file = fs::OpenOptions::new().write(true).open(file_of(&path)).expect("opens");
    file.write_all_at(&[0x5a], offset).expect("written");

    let checked = disk(&["check"], &path);
    assert_eq!(checked.code, 1, "{checked}");
    assert!(checked.stdout.contains("not clean"), "{checked}");
    assert!(checked.stderr.contains("is damaged") && checked.stderr.lines().count() == 1, "{checked}");
    let report = json(&["check", "--json"], &path);
    assert_eq!(report["clean"], false);
    // The byte lies in the second block.
    let named = &report["named"][0];
    assert_eq!((&named["extent"]["index"], &named["block"]), (&0.into(), &1.into()), "{report}");
}

#[test]
fn what_is_no_disk_is_said_to_be_none() {
    // Guards against a page of errors, or an empty report, for a path that was mistyped.
    let folder = tempfile::tempdir().expect("a folder");
    for command in ["inspect", "check"] {
        for path in [folder.path(), &folder.path().join("none"), Path::new("/dev/null")] {
            let outcome = disk(&[command], path);
            assert_eq!(outcome.code, 1, "{outcome}");
            assert!(outcome.stdout.is_empty() && outcome.stderr.lines().count() == 1, "{outcome}");
            assert!(outcome.stderr.contains(path.to_str().expect("text")), "{outcome}");
        }
    }
}

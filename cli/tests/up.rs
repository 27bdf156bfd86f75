//! `lunette up` and the commands against it, without an initiator.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use common::{Up, folder, lunette, refusal};
use serde_json::json;

const IQN: &str = "iqn.2026-11.io.lunette:a";

fn second(folder: &std::path::Path, words: &[&str]) -> Output {
    let mut command = lunette();
    command.arg("up").arg("--data").arg(folder.join("data"));
    command
        .args(["--admin", "127.0.0.1:0", "--portal", "127.0.0.1:0"])
        .args(words)
        .output()
        .expect("the binary starts")
}

/// Guards against a start that is ready before, or with less than, what it prints.
#[test]
fn up_serves_what_it_prints() {
    let folder = folder();
    let up = Up::start(folder.path(), &["--volume", "a=64M", "--volume", "b=1G", "--portal", "[::1]:0"]);
    assert_eq!(up.targets, [IQN, "iqn.2026-11.io.lunette:b"]);
    assert_eq!(up.portals.len(), 2);
    for portal in &up.portals {
        std::net::TcpStream::connect(portal).expect("a portal listens");
    }
    assert!(up.ok(&["status"]).starts_with("health: healthy\n"), "{}", up.ok(&["status"]));
    let status = up.json(&["status"]);
    assert_eq!(status["health"], "healthy");
    assert_eq!(status["nodes"].as_array().expect("a list").len(), 3);
    assert_eq!(status["gateways"][0]["portal_group_tag"], 1);
    let pool = up.json(&["pool", "show", "default"]);
    assert_eq!((&pool["replicas"], &pool["failure_domain"]), (&json!(3), &json!("host")));
    let volumes = up.json(&["volume", "list"]);
    assert_eq!(volumes[0]["size_bytes"], 64 << 20);
    assert_eq!(volumes[0]["owner"], "gateway1");
    assert_eq!(volumes[0]["exports"][0], json!({"target": IQN, "lun": 0, "read_only": false}));
    for private in ["", "control", "node1", "node3"] {
        let mode = fs::metadata(up.data.join(private)).expect("there").permissions().mode();
        assert_eq!(mode & 0o077, 0, "{private} {mode:o}");
    }
    assert!(up.stop().success());
}

/// Guards the commands of an administrator, each at least once, and what they print.
#[test]
fn volumes_targets_and_pools() {
    let folder = folder();
    let up = Up::start(folder.path(), &["--nodes", "3", "--capacity", "1G"]);
    assert_eq!(up.ok(&["volume", "create", "a", "--size", "64M"]), "");
    assert_eq!(up.ok(&["volume", "create", "b", "--size", "64M", "--export"]), "iqn.2026-11.io.lunette:b\n");
    assert!(refusal(&up.cli(&["volume", "create", "a", "--size", "64M"])).contains('a'));
    refusal(&up.cli(&["volume", "create", "Not_a_name", "--size", "64M"]));
    refusal(&up.cli(&["volume", "create", "c", "--size", "64M", "--pool", "none"]));
    refusal(&up.cli(&["volume", "show", "none"]));
    refusal(&up.cli(&["volume", "resize", "a", "--size", "32M"]));
    assert_eq!(up.ok(&["volume", "resize", "a", "--size", "128M"]), "");
    assert_eq!(up.json(&["volume", "show", "a"])["size_bytes"], 128 << 20);

    // It has an owner from the moment on when it is there, and a move to where it is changes nothing.
    let here = up.json(&["volume", "show", "a"]);
    assert_eq!((&here["owner"], &here["state"]), (&json!("gateway1"), &json!("active")));
    let words = ["volume", "own", "a", "--gateway", "gateway1"];
    assert!(up.ok(&words).contains("gateway1"));
    assert_eq!(up.json(&words), here);
    assert!(refusal(&up.cli(&["volume", "own", "a", "--gateway", "gateway2"])).contains("gateway2"));
    assert!(refusal(&up.cli(&["volume", "own", "none", "--gateway", "gateway1"])).contains("none"));
    refusal(&up.cli(&["volume", "own", "a"]));

    let iqn = up.ok(&["target", "create"]).trim().to_owned();
    assert!(iqn.starts_with("iqn."), "{iqn}");
    assert_eq!(up.ok(&["target", "map", &iqn, "a", "--lun", "7", "--read-only"]), "7\n");
    assert_eq!(up.ok(&["target", "allow", &iqn, "--initiator", "iqn.*", "--from", "10.0.0.0/8"]), "");
    let target = up.json(&["target", "show", &iqn]);
    assert_eq!(target["acls"], json!([{"initiator": "iqn.*", "from": "10.0.0.0/8"}]));
    assert_eq!(target["luns"][0]["lun"], 7);
    assert_eq!(up.ok(&["target", "deny", &iqn, "--initiator", "iqn.*", "--from", "10.0.0.0/8"]), "");
    refusal(&up.cli(&["target", "deny", &iqn, "--initiator", "iqn.*"]));
    refusal(&up.cli(&["volume", "delete", "a"]));
    assert_eq!(up.ok(&["target", "unmap", &iqn, "a"]), "");
    assert_eq!(up.ok(&["volume", "delete", "a"]), "");
    assert_eq!(up.ok(&["volume", "delete", "b", "--force"]), "");
    assert_eq!(up.ok(&["target", "delete", &iqn]), "");
    assert_eq!(up.json(&["target", "list"]), json!([]));

    assert_eq!(up.ok(&["pool", "create", "fast", "--replicas", "1", "--failure-domain", "disk"]), "");
    refusal(&up.cli(&["pool", "create", "wide", "--replicas", "4"]));
    let stripe = ["--stripe-unit", "64K", "--stripe-width", "3", "--pool", "fast"];
    let words: Vec<&str> = ["volume", "create", "s", "--size", "1G"].iter().chain(&stripe).copied().collect();
    assert_eq!(up.ok(&words), "");
    assert!(up.ok(&["volume", "list"]).contains("replicas=1,stripe=64KiBx3"));
    refusal(&up.cli(&["pool", "delete", "fast"]));
    assert_eq!(up.ok(&["volume", "delete", "s"]), "");
    assert_eq!(up.json(&["session", "list"]), json!([]));
    refusal(&up.cli(&["session", "kick", "gateway1/1"]));
    assert_eq!(up.json(&["disk", "list"]).as_array().expect("a list").len(), 3);
    assert_eq!(up.json(&["node", "list"])[2]["name"], "node3");
    assert_eq!(up.json(&["cluster", "status"])["control"]["members"].as_array().expect("a list").len(), 1);
}

/// Guards secrets: from files and standard input, in no output, log or file in clear.
#[test]
fn chap_secrets_come_from_files_and_go_nowhere() {
    let folder = folder();
    // Small disks: all of them is searched.
    let up = Up::start(folder.path(), &["--volume", "a=64M", "--capacity", "256M"]);
    let file = folder.path().join("secret");
    fs::write(&file, "a-secret-of-the-host\n").expect("written");
    let file = file.to_str().expect("text");
    assert_eq!(up.ok(&["target", "chap", IQN, "--user", "host", "--secret-file", file]), "");
    assert_eq!(up.json(&["target", "show", IQN])["chap_user"], "host");
    let words =
        ["target", "chap", IQN, "--user", "host", "--mutual-user", "lunette", "--algorithm", "sha256"];
    let output = up.cli_with(&words, "another-secret-1\nanother-secret-2\n");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let target = up.json(&["target", "show", IQN]);
    assert_eq!(
        (&target["chap_mutual_user"], &target["chap_algorithms"]),
        (&json!("lunette"), &json!(["sha256"]))
    );
    let same = up.cli_with(&words, "one-and-the-same\none-and-the-same\n");
    assert!(!refusal(&same).contains("one-and-the-same"));
    assert!(
        !refusal(&up.cli_with(&["target", "chap", IQN, "--user", "u"], "tooshort\n")).contains("tooshort")
    );
    assert!(!up.log().contains("secret-of") && !up.log().contains("another-secret"));
    let grep = std::process::Command::new("grep").args(["-r", "-l", "-a", "secret"]).arg(&up.data).output();
    let found = String::from_utf8(grep.expect("grep").stdout).expect("text");
    let found: Vec<&str> = found.lines().filter(|line| !line.ends_with("cluster.key")).collect();
    assert_eq!(found, Vec::<&str>::new());
    assert_eq!(up.ok(&["target", "chap", IQN, "--off"]), "");
    assert!(up.json(&["target", "show", IQN])["chap_user"].is_null());
}

/// Guards against a restart that loses, renames or recreates anything, after a clean stop and after a kill.
#[test]
fn a_restart_restores_everything() {
    let folder = folder();
    let up = Up::start(folder.path(), &["--nodes", "2", "--volume", "a=64M"]);
    let cluster = up.json(&["cluster", "status"])["cluster_id"].clone();
    let naa = up.json(&["volume", "show", "a"])["naa"].clone();
    up.ok(&["target", "allow", IQN, "--initiator", "iqn.*"]);
    let target = up.json(&["target", "show", IQN]);
    let uuids = |up: &Up| {
        let disks = up.json(&["disk", "list"]);
        let disks = disks.as_array().expect("a list").iter().map(|disk| disk["uuid"].clone());
        disks.collect::<Vec<_>>()
    };
    let disks = uuids(&up);
    let generation = up.json(&["volume", "show", "a"])["generation"].as_u64().expect("a number");
    assert!(up.stop().success());

    let mut up = Up::start(folder.path(), &["--volume", "a=32M"]);
    assert_eq!(up.targets, [IQN]);
    let status = up.json(&["cluster", "status"]);
    assert_eq!(status["cluster_id"], cluster);
    // It has another port than before.
    assert_eq!(
        format!("http://{}", status["control"]["members"][0]["address"].as_str().expect("text")),
        up.admin
    );
    assert_eq!(up.json(&["target", "show", IQN]), target);
    assert_eq!(uuids(&up), disks);
    assert!(up.json(&["volume", "show", "a"])["generation"].as_u64().expect("a number") > generation);
    up.ok(&["volume", "create", "b", "--size", "64M"]);
    up.kill();

    let up = Up::start(folder.path(), &["--nodes", "2"]);
    assert_eq!(up.json(&["volume", "show", "a"])["naa"], naa);
    assert_eq!(up.json(&["volume", "list"]).as_array().expect("a list").len(), 2);
    up.wait_healthy();
}

/// Guards the data of a running or differently made system against a careless second start.
#[test]
fn a_second_start_that_does_not_fit_is_refused() {
    let folder = folder();
    let up = Up::start(folder.path(), &["--volume", "a=64M", "--nodes", "1"]);
    assert!(refusal(&second(folder.path(), &[])).contains("in use by another"));
    assert!(refusal(&second(folder.path(), &["--processes"])).contains("in use by another"));
    assert!(up.stop().success());
    assert!(refusal(&second(folder.path(), &["--nodes", "3"])).contains("start it with --nodes 1"));
    let larger = refusal(&second(folder.path(), &["--volume", "a=1G"]));
    assert!(larger.contains("volume resize a --size 1GiB"), "{larger}");
    let manifest = folder.path().join("data/lunette.toml");
    let text = fs::read_to_string(&manifest).expect("there");
    fs::write(&manifest, text.replace("format = 1", "format = 99")).expect("written");
    assert!(refusal(&second(folder.path(), &[])).contains("has format 99"));
    fs::write(&manifest, &text).expect("written");

    // The key of another cluster would make every secret unreadable.
    let key = folder.path().join("data/cluster.key");
    let own = fs::read(&key).expect("there");
    fs::write(&key, [7; 32]).expect("written");
    assert!(refusal(&second(folder.path(), &[])).contains("of another cluster"));
    fs::write(&key, own).expect("written");
    assert_eq!(Up::start(folder.path(), &[]).targets, [IQN]);
}

/// Guards against two good copies that nobody may read because a third one is gone, and against a new disk in its place.
#[test]
fn a_lost_disk_does_not_keep_the_others() {
    let folder = folder();
    let up = Up::start(folder.path(), &["--volume", "a=64M", "--capacity", "1G"]);
    up.wait_healthy();
    let (disk, wal) = (up.data.join("node1"), up.data.join("node1/wal"));
    assert!(up.stop().success());

    // Cut short.
    let kept = folder.path().join("kept");
    fs::copy(&wal, &kept).expect("copied");
    fs::OpenOptions::new().write(true).open(&wal).and_then(|wal| wal.set_len(4096)).expect("cut");
    for words in [&[][..], &["--processes"]] {
        let up = Up::start(folder.path(), words);
        assert_eq!(up.targets, [IQN]);
        let line = up
            .wait_status(|line| line.starts_with("health: degraded (") && line.contains("cannot be opened"));
        assert!(line.contains("disk-1 of node node1"), "{line}");
        assert!(up.ok(&["disk", "list"]).contains("node1"));
        assert!(up.stop().success());
    }
    fs::rename(&kept, &wal).expect("put back");

    // Emptied, or not mounted. It comes back while the node runs.
    let away = folder.path().join("away");
    fs::rename(&disk, &away).expect("moved");
    fs::create_dir(&disk).expect("made");
    for words in [&["--processes"][..], &[]] {
        let up = Up::start(folder.path(), words);
        let line = up.wait_status(|line| line.contains("holds no Lunette disk any more"));
        assert!(line.starts_with("health: degraded ("), "{line}");
        assert_eq!(fs::read_dir(&disk).expect("there").count(), 0, "nothing is formatted");
        assert!(!up.data.join("node1.uuid").exists());
        if words.is_empty() {
            fs::remove_dir(&disk).expect("empty");
            fs::rename(&away, &disk).expect("put back");
            up.wait_healthy();
        }
        assert!(up.stop().success());
    }
}

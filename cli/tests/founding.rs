//! A control plane is founded once: what was founded again would give ids out again, for disks that hold what had them.

mod common;

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Output;

use common::{Up, folder, lunette, refusal};

fn second(folder: &Path, words: &[&str]) -> Output {
    let mut command = lunette();
    command.arg("up").arg("--data").arg(folder.join("data"));
    command.args(["--admin", "127.0.0.1:0", "--portal", "127.0.0.1:0"]).args(words);
    command.output().expect("the binary starts")
}

/// Guards against a new volume that shows the data of an old one: ids that begin at 1 again over old disks.
#[test]
fn a_lost_store_is_not_made_anew() {
    let folder = folder();
    let up = Up::start(folder.path(), &["--nodes", "1", "--volume", "a=64M"]);
    assert!(up.stop().success());
    let store = folder.path().join("data/control/control.redb");
    let kept = folder.path().join("kept");
    fs::rename(&store, &kept).expect("moved");
    for words in [&[][..], &["--processes"]] {
        let line = refusal(&second(folder.path(), words));
        assert!(line.contains("control.redb is missing") && line.contains("from a copy"), "{line}");
        assert!(!store.exists(), "{words:?}");
    }
    // As good as none, and not to be filled.
    let whole = fs::read(&kept).expect("read");
    for damaged in [&[][..], &whole[..100], &whole[..whole.len() / 2], &[7; 8192]] {
        fs::write(&store, damaged).expect("written");
        let line = refusal(&second(folder.path(), &[]));
        assert!(line.contains("control.redb") && line.contains("from a copy"), "{line}");
        assert!(!line.contains("move it away") && !line.to_lowercase().contains("redb error"), "{line}");
    }
    fs::rename(&kept, &store).expect("put back");
    let up = Up::start(folder.path(), &[]);
    assert_eq!(up.targets, ["iqn.2026-11.io.lunette:a"]);
    assert!(up.stop().success());
}

/// Guards against a member that founds alone what the others still know, and against one that is never back.
#[test]
fn of_several_members_one_may_lose_its_store() {
    let folder = folder();
    let words = ["--processes", "--control", "3", "--nodes", "3", "--volume", "a=64M"];
    let up = Up::start(folder.path(), &words);
    let cluster = up.json(&["cluster", "status"])["cluster_id"].clone();
    assert!(up.stop().success());
    let store = |member: &str| folder.path().join("data").join(member).join("control.redb");
    fs::remove_file(store("control")).expect("removed");
    let up = Up::start(folder.path(), &["--processes"]);
    assert_eq!(up.targets, ["iqn.2026-11.io.lunette:a"]);
    let status = up.json(&["cluster", "status"]);
    assert_eq!(status["cluster_id"], cluster);
    let members = status["control"]["members"].as_array().expect("a list").clone();
    assert_eq!(members.len(), 3, "{members:?}");
    assert!(members.iter().all(|member| member["voter"] == true && member["id"] != 1), "{members:?}");
    assert!(up.stop().success());
    for member in ["control", "control3"] {
        fs::remove_file(store(member)).expect("removed");
    }
    let line = refusal(&second(folder.path(), &["--processes"]));
    assert!(line.contains("control.redb is missing"), "{line}");
    assert!(!store("control").exists() && !store("control3").exists());
}

/// Guards against `cluster init` under the key of a cluster that has data, and against an interrupted one that cannot be
/// finished.
#[test]
fn a_key_founds_one_cluster() {
    let folder = folder();
    let free = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port");
    let config = folder.path().join("node.toml");
    let text = format!(
        "name = \"node1\"\nlisten = \"127.0.0.1:0\"\nadmin = [\"{free}\"]\ncluster_key_file = \"cluster.key\"\n\n\
         [control]\ndir = \"control\"\nlisten = \"{free}\"\n"
    );
    fs::write(&config, text).expect("written");
    let init = || {
        let mut command = lunette();
        command.args(["cluster", "init", "--config"]).arg(&config).output().expect("the binary starts")
    };
    let (key, store) = (folder.path().join("cluster.key"), folder.path().join("control/control.redb"));
    let unfinished = folder.path().join("cluster.key.founding");

    // It was interrupted before the key got its name: nobody can have used the cluster.
    assert!(init().status.success());
    let first = fs::read(&key).expect("a key");
    assert!(store.exists() && !unfinished.exists());
    fs::rename(&key, &unfinished).expect("as before");
    assert!(init().status.success());
    assert_eq!(fs::read(&key).expect("a key"), first);
    fs::rename(&key, &unfinished).expect("as before");
    fs::remove_file(&store).expect("removed");
    assert!(init().status.success());
    assert_eq!(fs::read(&key).expect("a key"), first);
    assert!(init().status.success(), "done twice it is done once");

    let kept = folder.path().join("kept");
    fs::rename(&store, &kept).expect("moved");
    let line = refusal(&init());
    assert!(line.contains("cluster.key") && line.contains("control.redb is missing"), "{line}");
    assert!(!store.exists());
    let mut node = lunette();
    let node = node.args(["node", "run", "--config"]).arg(&config).output().expect("the binary starts");
    let line = refusal(&node);
    assert!(line.contains("from a copy") && !line.contains("cluster init"), "{line}");
    assert!(!store.exists());
    fs::rename(&kept, &store).expect("put back");
    fs::remove_file(&key).expect("removed");
    assert!(refusal(&init()).contains("put the key back"));
    assert!(!key.exists() && !unfinished.exists());
}

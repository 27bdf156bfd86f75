//! `lunette up --processes`: a cluster of processes on this machine.

mod common;

use common::{Up, folder, kill, lunette, refusal, terminate, wait, wait_gone};

/// Guards against processes that nobody reports, restarts or stops.
#[test]
fn a_process_dies_and_comes_back() {
    let folder = folder();
    let up = Up::start(folder.path(), &["--processes", "--nodes", "2", "--volume", "a=64M"]);
    assert_eq!(up.targets, ["iqn.2026-11.io.lunette:a"]);
    up.wait_healthy();
    let names = ["node1", "node2", "gateway1"];
    let data = up.data.to_str().expect("text").to_owned();
    let only = |name: &str| {
        let mut command = lunette();
        command.args(["up", "--processes", "--data", &data, "--only", name]);
        command
    };
    assert!(refusal(&only("node2").output().expect("the binary starts")).contains("runs already"));
    assert!(refusal(&only("node3").output().expect("the binary starts")).contains("does not exist"));

    kill(up.pid("node2"));
    up.wait_log("node2 has ended (signal 9)");
    up.wait_unhealthy();
    let mut again = only("node2").stdout(std::process::Stdio::null()).spawn().expect("the binary starts");
    up.wait_healthy();
    assert_eq!(up.pid("node2"), again.id());

    // The parent stops also what it did not start.
    let pids: Vec<u32> = names.iter().map(|name| up.pid(name)).collect();
    assert!(up.stop().success());
    assert!(wait(&mut again).success());
    pids.into_iter().for_each(wait_gone);
}

/// Guards against children of a killed parent that a new start would fight with.
#[test]
fn orphans_are_found() {
    let folder = folder();
    let mut first = Up::start(folder.path(), &["--processes", "--nodes", "1", "--volume", "a=64M"]);
    let pids = [first.pid("gateway1"), first.pid("node1")];
    let data = first.data.clone();
    first.kill();
    let mut command = lunette();
    command
        .args(["up", "--processes", "--admin", "127.0.0.1:0", "--portal", "127.0.0.1:0", "--data"])
        .arg(&data);
    let line = refusal(&command.output().expect("the binary starts"));
    assert!(line.contains("still runs as process"), "{line}");
    for pid in pids {
        terminate(pid);
        wait_gone(pid);
    }
    let up = Up::start(folder.path(), &["--processes"]);
    assert_eq!(up.targets, ["iqn.2026-11.io.lunette:a"]);
    assert!(up.stop().success());
}

//! `lunette up --processes`: a cluster of processes on this machine.

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

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

/// Guards against a second process that takes the place of a live one of its name, and against text where JSON was asked for.
#[test]
fn a_name_is_of_one_process() {
    let folder = folder();
    let up = Up::start(folder.path(), &["--processes", "--nodes", "1", "--volume", "a=64M"]);
    let config = |name: &str, change: &dyn Fn(String) -> String| {
        let text = fs::read_to_string(up.data.join("run").join(format!("{name}.toml"))).expect("there");
        let path = folder.path().join("second.toml");
        fs::write(&path, change(text)).expect("written");
        path
    };
    let run = |what: &str, config: &std::path::Path| {
        let mut command = lunette();
        command.args([what, "run", "--json", "--config"]).arg(config);
        command
    };
    let elsewhere = |text: String| text.replace(&up.portals[0], "127.0.0.1:0");
    let gateway = config("gateway1", &elsewhere);
    let line = refusal(&run("gateway", &gateway).output().expect("the binary starts"));
    assert!(
        line.contains("gateway \"gateway1\" runs already, at ") && line.contains(&up.portals[0]),
        "{line}"
    );
    let without_control = |text: String| text[..text.find("[control]").expect("there")].to_owned();
    let node = config("node1", &without_control);
    let line = refusal(&run("node", &node).output().expect("the binary starts"));
    assert!(line.contains("node \"node1\" runs already, at 127.0.0.1:"), "{line}");

    let other = |text: String| elsewhere(text).replace("gateway1", "gateway2");
    let mut second = run("gateway", &config("gateway1", &other))
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let mut first = String::new();
    BufReader::new(second.stdout.take().expect("piped")).read_line(&mut first).expect("text");
    let ready: serde_json::Value = serde_json::from_str(&first).expect("JSON");
    assert_eq!(ready["ready"], true);
    assert!(ready["portals"][0].as_str().is_some_and(|portal| portal.starts_with("127.0.0.1:")), "{ready}");
    terminate(second.id());
    assert!(wait(&mut second).success());
    assert!(up.stop().success());
}

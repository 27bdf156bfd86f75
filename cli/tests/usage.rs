//! Bad input from outside: one line that says what to do, exit 1, nothing changed.

mod common;

use std::io::Read;
use std::net::TcpListener;
use std::process::Stdio;

use common::{folder, lunette, refusal, run};

/// Guards against pages of usage, backtraces and errors without advice.
#[test]
fn every_refusal_is_one_line() {
    let table: &[(&[&str], &str)] = &[
        (&[], "a command is missing"),
        (&["volume", "create", "v", "--size", "0"], "holds nothing"),
        (&["volume", "create", "v", "--size", "10GB"], "ambiguous"),
        (&["volume", "create", "v", "--size", "10Q"], "unknown unit 'Q'"),
        (&["target", "chap", "t", "--user", "u", "--secret", "x"], "unexpected argument '--secret'"),
        (&["status", "--admin", "https://x:1"], "'https' is not served"),
        // Port 1 is no one's.
        (&["status", "--admin", "127.0.0.1:1"], "cannot reach the control plane at http://127.0.0.1:1"),
        (&["node", "run", "--config", "/nonexistent/node.toml"], "does not exist"),
        (&["gateway", "run", "--config", "/dev/null"], "is not a file"),
        (
            &["target", "chap", "t", "--user", "u", "--secret-file", "/nonexistent"],
            "/nonexistent cannot be read",
        ),
        (&["target", "chap", "t", "--user", "u"], "standard input holds no line"),
    ];
    for (words, want) in table {
        let line = refusal(&run(words));
        assert!(line.contains(want), "{words:?}: {line}");
    }
}

/// Guards against a data directory that a refused start leaves behind.
#[test]
fn a_refused_start_makes_nothing() {
    let folder = folder();
    let data = folder.path().join("data");
    let data = data.to_str().expect("text");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let taken = taken.local_addr().expect("an address").to_string();
    let up = |words: &[&str]| {
        let all: Vec<&str> = ["up", "--data", data].iter().chain(words).copied().collect();
        refusal(&run(&all))
    };
    let free = ["--portal", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let with = |words: &[&'static str]| -> Vec<&'static str> { free.iter().chain(words).copied().collect() };
    let table = [
        (up(&["--portal", &taken, "--admin", "127.0.0.1:0"]), "in use"),
        (up(&["--portal", "127.0.0.1:0", "--admin", &taken]), "in use"),
        (up(&["--portal", &taken, "--admin", "127.0.0.1:0", "--processes"]), "in use"),
        (up(&["--portal", "192.0.2.1:3260", "--admin", "127.0.0.1:0"]), "no address of this machine"),
        (up(&with(&["--nodes", "0"])), "0 is not in"),
        (up(&with(&["--volume", "a=0"])), "holds nothing"),
        (up(&with(&["--volume", "A_b=1G"])), "no volume name"),
        (up(&with(&["--volume", "a=1G", "--volume", "a=2G"])), "twice"),
        (up(&with(&["--volume", "a=2P"])), "the largest volume has 1P"),
        (up(&with(&["--capacity", "4K"])), "too few for a disk"),
        (up(&with(&["--capacity", "100P"])), "too many for a disk"),
        (up(&with(&["--processes", "--control", "3", "--nodes", "1"])), "need as many nodes"),
        (up(&["--processes", "--only", "node1"]), "no data directory"),
        (up(&["--only", "node1"]), "--processes"),
    ];
    for (line, want) in table {
        assert!(line.contains(want), "{line}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).expect("there").count(), 0);
}

/// Guards against a panic when the reader of a listing goes away.
#[test]
fn a_closed_pipe_is_no_error() {
    let mut child = lunette()
        .arg("--help")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    drop(child.stdout.take());
    let status = common::wait(&mut child);
    let mut complaint = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut complaint).expect("text");
    assert!(status.success() && complaint.is_empty(), "{status}: {complaint}");
}

/// Guards against help that is an error, or not where a pager finds it.
#[test]
fn help_and_version_go_to_standard_output() {
    for words in [&["--help"][..], &["volume", "create", "--help"], &["--version"], &["up", "-h"]] {
        let output = run(words);
        assert!(
            output.status.success() && output.stderr.is_empty() && !output.stdout.is_empty(),
            "{words:?}"
        );
    }
}

/// Guards against a full disk that looks like an empty list.
#[test]
fn what_cannot_be_written_is_an_error() {
    let full = std::fs::File::options().write(true).open("/dev/full").expect("there");
    let output = lunette().arg("--help").stdout(full).output().expect("the binary starts");
    assert!(refusal(&output).contains("standard output cannot be written"));
}

/// Guards against a system at another address than the environment names for every command.
#[test]
fn up_listens_where_the_environment_says() {
    let folder = folder();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let taken = taken.local_addr().expect("an address").to_string();
    for words in [&[][..], &["--processes"]] {
        let mut up = lunette();
        up.args(["up", "--portal", "127.0.0.1:0", "--data"]).arg(folder.path().join("data")).args(words);
        let line =
            refusal(&up.env("LUNETTE_ADMIN", format!("http://{taken}")).output().expect("the binary starts"));
        assert!(line.contains(&taken) && line.contains("in use"), "{line}");
    }
}

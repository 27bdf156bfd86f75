//! Secrets: put recognisable ones wherever there is room for one, use them, and look for them everywhere.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use lunette_tests::{Lunette, Outcome, iqn, run};

const USER: &str = "canary-user";
const SECRET: &str = "Canary0-of-the-initiator";
const MUTUAL: &str = "Canary1-of-the-target";
const DISCOVERY: &str = "Canary2-of-discovery";
const DISCOVERY_MUTUAL: &str = "Canary3-of-discovery-too";
const NEXT: &str = "Canary4-that-comes-after";
/// Too short to be taken: what is refused is not repeated either.
const REFUSED: &str = "Canary5-no";
/// An initiator's, which is no secret here but one elsewhere.
const WRONG: &str = "Canary6-of-somebody-else";
const ALL: [&str; 7] = [SECRET, MUTUAL, DISCOVERY, DISCOVERY_MUTUAL, NEXT, REFUSED, WRONG];

/// A secret as it is, as hexadecimal digits, and as a list of numbers, which is how bytes are printed by mistake.
fn forms(secret: &str) -> [String; 3] {
    let hex = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
    let numbers: Vec<String> = secret.bytes().map(|byte| byte.to_string()).collect();
    [secret.to_owned(), hex, numbers.join(", ")]
}

#[track_caller]
fn assert_clean(place: &str, bytes: &[u8]) {
    for form in ALL.iter().flat_map(|secret| forms(secret)) {
        // The beginning says enough: a secret may be cut.
        let beginning = &form.as_bytes()[..form.len().min(20)];
        let found = bytes.windows(beginning.len()).position(|part| part == beginning);
        assert_eq!(found, None, "{form:?} in {place}");
    }
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("read a folder") {
        let path = entry.expect("a folder entry").path();
        if path.is_dir() { files(&path, found) } else { found.push(path) }
    }
}

fn login(lunette: &Lunette, secret: &str, mutual: &str) -> bool {
    let portal = lunette.portal();
    let url = format!(
        "iscsi://{USER}%{secret}@{portal}/{}/0?target_user={USER}2&target_password={mutual}",
        iqn("alpha")
    );
    run(Command::new("iscsi-inq").arg(&url), Duration::from_secs(20)).ok()
}

#[test]
fn secrets_are_nowhere_in_clear() {
    // Guards against a secret in a log, in a file of the store or in what a command prints, whatever is done with it.
    let mut lunette = Lunette::build().volume("alpha", "64M").log("trace").start();
    let target = iqn("alpha");
    let said = |outcome: Outcome| {
        let text = format!("{}\n{}", outcome.stdout, outcome.stderr);
        assert_clean(&outcome.line, text.as_bytes());
        outcome
    };
    let mutual_user = format!("{USER}2");
    let chap = ["target", "chap", &target, "--user", USER, "--mutual-user", &mutual_user];
    let ok = said(lunette.cli_with_input(chap, &format!("{SECRET}\n{MUTUAL}\n")));
    assert!(ok.ok(), "{ok}");
    let refused = said(lunette.cli_with_input(["target", "chap", &target, "--user", USER], REFUSED));
    assert!(!refused.ok(), "{refused}");
    let same = said(lunette.cli_with_input(chap, &format!("{WRONG}\n{WRONG}\n")));
    assert!(!same.ok(), "{same}");
    let argument = ["target", "chap", &target, "--user", USER, "--secret", SECRET];
    let misused = said(lunette.cli(argument));
    assert!(!misused.ok(), "{misused}");
    // From files this time, which an administrator keeps for himself.
    let file = |name: &str, secret: &str| {
        let path = lunette.scratch().join(name);
        fs::write(&path, format!("{secret}\n")).expect("write a file");
        path.display().to_string()
    };
    let (one, other) = (file("one", DISCOVERY), file("other", DISCOVERY_MUTUAL));
    let discovery = ["target", "chap", "--discovery", "--user", USER, "--secret-file", &one];
    let discovery = discovery.into_iter().chain(["--mutual-user", "m", "--mutual-secret-file", &other]);
    let ok = said(lunette.cli(discovery.chain(["--json"])));
    assert!(ok.ok(), "{ok}");

    for restarted in [false, true] {
        if restarted {
            lunette.stop();
            lunette.restart_unseen();
        }
        assert!(login(&lunette, SECRET, MUTUAL), "the right secrets");
        assert!(!login(&lunette, WRONG, MUTUAL), "a wrong one of the initiator");
        assert!(!login(&lunette, SECRET, WRONG), "a wrong one of the target");
        for command in [
            &["target", "list"][..],
            &["target", "show", &target],
            &["status"],
            &["cluster", "status"],
            &["session", "list"],
            &["volume", "list"],
        ] {
            let _ = said(lunette.cli(command.iter().copied())).success();
            let _ = said(lunette.cli(command.iter().copied().chain(["--json"]))).success();
        }
    }
    let changed =
        said(lunette.cli_with_input(["target", "chap", &target, "--user", USER], &format!("{NEXT}\n")));
    assert!(changed.ok(), "{changed}");
    let url = format!("iscsi://{USER}%{NEXT}@{}/{target}/0", lunette.portal());
    assert!(run(Command::new("iscsi-inq").arg(&url), Duration::from_secs(20)).ok());
    lunette.stop();

    let log = lunette.log();
    assert!(log.contains("TRACE") && log.contains(&target), "the log says much, so that one can search it");
    assert_clean("the log", log.as_bytes());
    assert_clean("standard output", lunette.output().as_bytes());
    let mut found = Vec::new();
    files(&lunette.data(), &mut found);
    let store = found.iter().find(|path| path.ends_with("control.redb")).expect("the control plane's store");
    let store = fs::read(store).expect("readable");
    assert!(
        store.windows(USER.len()).any(|part| part == USER.as_bytes()),
        "names are found, so one can search"
    );
    for path in found {
        // What lies on the nodes' disks are the initiators' blocks; their sparse files are far too long to read.
        if fs::metadata(&path).expect("there").len() < 64 << 20 {
            assert_clean(&path.display().to_string(), &fs::read(&path).expect("readable"));
        }
    }
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    // Guards against a start with a key that is not secret any more, and a line that does not say what to do.
    let mut lunette = Lunette::build().start();
    lunette.stop();
    let key = lunette.data().join("cluster.key");
    let mode = |mode| fs::set_permissions(&key, fs::Permissions::from_mode(mode)).expect("set a mode");
    for open in [0o640, 0o604, 0o644] {
        mode(open);
        let outcome = run(&mut lunette.up(), Duration::from_secs(20));
        assert_eq!((outcome.code, outcome.stderr.lines().count()), (1, 1), "{outcome}");
        assert!(outcome.stderr.contains("chmod 600") && outcome.stderr.contains("cluster.key"), "{outcome}");
    }
    mode(0o600);
    lunette.restart();
}

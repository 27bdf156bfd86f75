//! Rules of this repository that no compiler checks.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use lunette_tests::binary::repository;

/// Crates in the order of their dependencies, and what each may depend on.
const DEPENDS: &[(&str, &[&str])] = &[
    ("proto", &[]),
    ("placement", &["proto"]),
    ("storage-node", &["proto", "placement"]),
    ("volume", &["proto", "placement"]),
    ("control", &["proto", "placement"]),
    // The front end reaches data through `volume` only: it knows neither nodes nor the control plane's server side.
    ("target-iscsi", &["proto", "placement", "volume"]),
    ("cli", &["proto", "placement", "storage-node", "volume", "control", "target-iscsi"]),
    ("tests", &["proto", "placement", "storage-node", "volume", "control", "target-iscsi", "cli"]),
    ("fuzz", &["proto", "placement", "storage-node", "volume", "target-iscsi"]),
];

/// Files that may hold sockets, clocks, tasks and files: the shells around the cores. Adding one is a
/// decision, so it is a line here. A folder ends with `/`.
const SHELLS: &[&str] = &[
    "cli/src/",
    "control/src/client/",
    "control/src/control.rs",
    "control/src/raft/",
    "control/src/seal.rs",
    "control/src/server/",
    // The threads around a store, and the medium below it.
    "storage-node/src/engine/disk.rs",
    "storage-node/src/engine/disk/",
    "storage-node/src/server.rs",
    "storage-node/src/store/file_disk.rs",
    "storage-node/src/store/file_disk/",
    "storage-node/src/store/format.rs",
    "storage-node/src/store/format/",
    "target-iscsi/src/server/",
    "tests/",
    "volume/src/client/",
    "volume/src/load/run.rs",
    "volume/src/volumes/",
];

/// What only a shell may touch.
const SHELL_WORDS: &[&str] = &[
    "tokio::net",
    "std::net::Tcp",
    "tokio::spawn",
    "tokio::time",
    "tokio::fs",
    "std::fs",
    "std::thread",
    "Instant::now",
    "SystemTime::now",
    "File::open",
    "File::create",
];

/// Longer than this, a file holds a second idea.
const LINES_WARN: usize = 500;
const LINES_MAX: usize = 700;
/// Files that may be longer, each with its reason.
const LONG: &[(&str, &str)] =
    &[("volume/src/sim/world.rs", "one scheduler owns every event of a simulated cluster")];

/// Every Rust source file of the crates, by its path in the repository.
fn sources() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for (name, _) in DEPENDS {
        let mut left: Vec<PathBuf> = vec![repository().join(name)];
        while let Some(folder) = left.pop() {
            for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
            {
                let path = entry.expect("a folder entry").path();
                if path.is_dir() {
                    left.push(path);
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    let name =
                        path.strip_prefix(repository()).expect("below the repository").display().to_string();
                    found.insert(name, fs::read_to_string(&path).expect("read a source file"));
                }
            }
        }
    }
    assert!(found.len() > 20, "the sources were not found");
    found
}

fn manifest(path: &Path) -> toml::Table {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.parse().unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A file without its tests and comments: what runs in the product.
fn product_code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let end = text.find("#[cfg(test)]\nmod ").unwrap_or(text.len());
    text[..end]
        .lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line))
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
}

fn is_test_code(path: &str) -> bool {
    path.starts_with("tests/")
        || path.starts_with("fuzz/")
        || path.contains("/tests/")
        || path.contains("/sim/")
        || path.ends_with("/tests.rs")
        || path.contains("/benches/")
        || path.contains("/examples/")
}

#[test]
fn crates_depend_one_way() {
    // Guards against a front end that knows nodes, and a core that knows the control plane.
    for (name, allowed) in DEPENDS {
        let manifest = manifest(&repository().join(name).join("Cargo.toml"));
        for section in ["dependencies", "build-dependencies"] {
            let Some(table) = manifest.get(section).and_then(toml::Value::as_table) else { continue };
            for dependency in table.keys().filter_map(|key| key.strip_prefix("lunette-")) {
                assert!(allowed.contains(&dependency), "{name} must not depend on {dependency}");
            }
        }
    }
    let workspace = manifest(&repository().join("Cargo.toml"));
    let members = workspace["workspace"]["members"].as_array().expect("workspace members");
    for member in members {
        let member = member.as_str().expect("a path");
        assert!(
            DEPENDS.iter().any(|(name, _)| *name == member),
            "{member} has no place in the order of crates"
        );
    }
}

#[test]
fn files_hold_one_idea_each() {
    // Guards against files that nobody reads to the end.
    let mut long = Vec::new();
    for (path, text) in sources() {
        let lines = text.lines().count();
        if lines > LINES_WARN {
            println!("long: {path} has {lines} lines");
        }
        if lines > LINES_MAX && !LONG.iter().any(|(name, _)| *name == path) {
            long.push(format!("{path} has {lines} lines"));
        }
    }
    assert!(long.is_empty(), "over {LINES_MAX} lines, look for the second idea: {long:#?}");
}

#[test]
fn files_say_what_they_are_for() {
    // Guards against a file whose purpose must be guessed.
    let silent: Vec<_> = sources()
        .into_iter()
        .filter(|(path, text)| !path.ends_with("/tests.rs") && !text.starts_with("//!"))
        .map(|(path, _)| path)
        .collect();
    assert!(silent.is_empty(), "no module documentation at the top: {silent:#?}");
}

#[test]
fn only_the_command_line_prints() {
    // Guards against output that a script would have to filter; everything else logs.
    let mut prints = Vec::new();
    for (path, text) in sources() {
        if path.starts_with("cli/") || is_test_code(&path) || path.ends_with("build.rs") {
            continue;
        }
        for (number, line) in product_code(&text) {
            if ["println!", "print!(", "eprintln!", "eprint!(", "dbg!("]
                .iter()
                .any(|word| line.contains(word))
            {
                prints.push(format!("{path}:{number}: {}", line.trim()));
            }
        }
    }
    assert!(prints.is_empty(), "{prints:#?}");
}

#[test]
fn only_shells_touch_the_world() {
    // Guards against cores that cannot be replayed from a seed.
    let sources = sources();
    let mut touches = Vec::new();
    for (path, text) in &sources {
        if SHELLS.iter().any(|shell| path == shell || (shell.ends_with('/') && path.starts_with(shell)))
            || is_test_code(path)
            || path.ends_with("build.rs")
        {
            continue;
        }
        for (number, line) in product_code(text) {
            if let Some(word) = SHELL_WORDS.iter().find(|word| line.contains(*word)) {
                touches.push(format!("{path}:{number}: {word}"));
            }
        }
    }
    assert!(touches.is_empty(), "not in the list of shells (tests/tests/tidy.rs): {touches:#?}");
    for shell in SHELLS {
        assert!(repository().join(shell).exists(), "{shell} is in the list of shells and does not exist");
    }
}

#[test]
fn lints_are_the_workspaces() {
    // Guards against a crate that exempts itself.
    for (name, _) in DEPENDS {
        let manifest = manifest(&repository().join(name).join("Cargo.toml"));
        let inherited =
            manifest.get("lints").and_then(|lints| lints.get("workspace")).and_then(toml::Value::as_bool);
        assert_eq!(inherited, Some(true), "{name} does not take the workspace's lints");
    }
}

#[test]
fn no_test_is_switched_off() {
    // Guards against a test that everybody believes in and nobody runs.
    let runner = fs::read_to_string(repository().join("tests/run")).expect("read tests/run");
    let ignored = concat!("#[", "ignore");
    for (path, text) in sources() {
        for (number, line) in
            text.lines().enumerate().filter(|(_, line)| line.trim_start().starts_with(ignored))
        {
            // Either it is a measurement, or it needs what tests/run provides, and is run there.
            let reason = line.split('"').nth(1).unwrap_or_default();
            let provided = reason.strip_prefix("needs ").is_some_and(|rest| {
                let variable = rest.split(':').next().unwrap_or_default();
                variable.starts_with("LUNETTE_TEST_") && runner.contains(&format!("export {variable}="))
            });
            assert!(provided || reason == "a measurement", "{path}:{} is switched off", number + 1);
        }
    }
}

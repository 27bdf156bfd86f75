//! Where the program under test and the files of this repository are.

use std::path::{Path, PathBuf};

/// The `lunette` binary: `LUNETTE_BIN`, else the one that Cargo built beside the running test.
///
/// # Panics
/// If there is none, with the command that makes it.
#[must_use]
pub fn lunette_bin() -> PathBuf {
    let path = match std::env::var_os("LUNETTE_BIN") {
        // Cargo runs a test in its package's folder; a relative path is meant from the repository.
        Some(path) => repository().join(path),
        None => beside_test("lunette"),
    };
    assert!(
        path.is_file(),
        "no lunette binary at {}: build it with `cargo build --release` and set LUNETTE_BIN, or use tests/run, which does both",
        path.display()
    );
    path
}

/// A program that Cargo built beside the running test.
///
/// # Panics
/// If the running program is no test.
#[must_use]
pub fn beside_test(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a running test has a path");
    let profile = test.parent().and_then(Path::parent).expect("tests lie in target/<profile>/deps");
    profile.join(name)
}

/// The repository's top folder.
#[must_use]
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the repository")
}

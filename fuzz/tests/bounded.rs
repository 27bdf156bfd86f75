//! Every fuzz target for a fixed number of executions, without coverage: the corpus, then mutants of it. The longer
//! search is `fuzz/run`'s.

use std::path::Path;

use lunette_fuzz::mutate::{Random, mutate};
use lunette_fuzz::{Target, execute, find};

/// The inputs of a target, in the order of their names.
fn corpus(target: &Target) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.expect("a corpus that can be listed").path()).collect();
    files.sort();
    files.iter().map(|file| std::fs::read(file).expect("an input that can be read")).collect()
}

/// Says which input it was, if one finds something.
struct Blame<'a>(&'a [u8]);

impl Drop for Blame<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let hex: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
            println!("the input, in hexadecimal: {hex}");
        }
    }
}

fn check(target: &Target, data: &[u8]) {
    let _blame = Blame(data);
    execute(target, data);
}

fn bounded(name: &str) {
    let target = find(name).expect("a target of that name");
    let corpus = corpus(target);
    assert!(!corpus.is_empty());
    for data in &corpus {
        check(target, data);
    }
    let mut random = Random::new(1);
    for _ in 0..target.bounded {
        let mut data = corpus[random.below(corpus.len())].clone();
        let other = &corpus[random.below(corpus.len())];
        mutate(&mut random, &mut data, other, target.bytes_max);
        check(target, &data);
    }
}

macro_rules! targets {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        $($(#[$doc])* #[test] fn $name() { bounded(stringify!($name)); })*

        /// Guards against a target that is not run here.
        #[test]
        fn every_target_is_run() {
            let names: Vec<&str> = lunette_fuzz::TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(names, [$(stringify!($name)),*]);
        }
    };
}

targets! {
    /// Guards the framer, digests and additional header segments against any stream in any pieces.
    framer,
    /// Guards logins against any sequence of requests: nobody gets in without proof.
    login,
    /// Guards CHAP against every encoding of every key.
    chap,
    /// Guards disks against bytes that were changed: they open or refuse.
    disk,
    /// Guards sessions against their initiators, right and wrong.
    session,
    /// Guards commands against any CDB and parameter list.
    commands,
    /// Guards text keys and their negotiation against any text.
    text,
    /// Guards the node protocol's decoder against any stream in any pieces.
    node_frames,
}

/// Guards against a corpus that nobody wants to clone.
#[test]
fn corpus_is_small() {
    let bytes: usize = lunette_fuzz::TARGETS.iter().flat_map(corpus).map(|input| input.len()).sum();
    assert!(bytes <= 200 << 10, "{bytes} bytes");
}

//! Fuzz targets: everything that bytes from outside reach, as functions of those bytes.
//!
//! ```text
//! fuzz/run TARGET ------> bin/libfuzzer.rs --+
//!                                            +--> execute(target, bytes) --> targets/*.rs
//! tests/bounded.rs: corpus, seeded mutants --+
//! ```
//!
//! A target returns if all is well, and panics if the code under it panics, breaks an invariant that the target
//! checks, or allocates more than its limit. It does the same for the same bytes every time. What is in
//! `corpus/TARGET` are inputs that reach different code, and inputs that once found something (`found-*`).

pub mod allocation;
mod input;
pub mod mutate;
mod scsi;
mod targets;

pub use input::Input;

/// What is fuzzed.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The name of its corpus.
    pub name: &'static str,
    run: fn(&[u8]),
    /// Longest input that makes sense.
    pub bytes_max: usize,
    /// Bytes that it may allocate however short the input is.
    allocation_base: usize,
    /// And for each byte of it.
    allocation_per_byte: usize,
    /// Executions of a bounded run.
    pub bounded: u32,
}

const fn target(name: &'static str, run: fn(&[u8]), bytes_max: usize, bounded: u32) -> Target {
    Target { name, run, bytes_max, allocation_base: 64 << 10, allocation_per_byte: 64, bounded }
}

/// All of them.
pub const TARGETS: &[Target] = &[
    target("framer", targets::framer::run, 4096, 60_000),
    Target { allocation_base: 1 << 20, ..target("login", targets::login::run, 2048, 20_000) },
    Target { allocation_base: 1 << 20, ..target("chap", targets::login::chap::run, 2048, 20_000) },
    Target { allocation_base: 8 << 20, ..target("disk", targets::disk::run, 1024, 10_000) },
    // A session may hold 64 MiB of data of its commands, and one command more; there are two, and echoes of them.
    Target { allocation_base: 256 << 20, ..target("session", targets::session::run, 2048, 10_000) },
    // A command may move 8 MiB, and a reservation may have many holders.
    Target { allocation_base: 48 << 20, ..target("commands", targets::commands::run, 2048, 30_000) },
    target("text", targets::text::run, 4096, 60_000),
    // A frame may be announced at its whole length, once its checksum is right.
    Target { allocation_base: 24 << 20, ..target("node_frames", targets::node_frames::run, 2048, 20_000) },
];

/// The target of that name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// Runs `target` on `data`.
///
/// # Panics
/// If it finds something.
pub fn execute(target: &Target, data: &[u8]) {
    let data = &data[..data.len().min(target.bytes_max)];
    let limit = target.allocation_base + target.allocation_per_byte * data.len();
    let peak = allocation::peak_bytes(|| (target.run)(data));
    assert!(peak <= limit, "{} bytes were allocated for an input of {}", peak, data.len());
}

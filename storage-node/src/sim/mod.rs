//! The store against a medium that does everything it may do.
//!
//! [`disk`]: the medium; [`model`]: what a disk may hold after a crash; [`enumerate`]: all short sequences, all crashes;
//! [`random`]: long ones from a seed; [`faults`]: every part of the disk, spoiled in every way; [`bugs`]: planted ones,
//! each of which must be found.
//!
//! A failure prints one line that replays it: `LUNETTE_SIM_CASE=...` or `LUNETTE_SIM_SEED=...`.

pub(crate) mod bugs;
mod disk;
mod enumerate;
mod faults;
mod model;
mod random;
mod rng;
mod world;

/// A number that the environment gives.
fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}

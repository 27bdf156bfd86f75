//! Lunette.
fn main() {}

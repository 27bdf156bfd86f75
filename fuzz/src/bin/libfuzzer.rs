//! The targets under LLVM's libFuzzer, which looks for inputs that reach new code. `fuzz/run` builds and starts it;
//! the target is named by the variable `LUNETTE_FUZZ_TARGET`, so that one program serves all.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use lunette_fuzz::{Target, execute, find};

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("LUNETTE_FUZZ_TARGET").expect("LUNETTE_FUZZ_TARGET names a target");
    find(&name).unwrap_or_else(|| panic!("there is no target {name}"))
});

fuzz_target!(|data: &[u8]| execute(&TARGET, data));

//! A Linux virtualization host against a running system: tests/guest/initiator.sh says what it does.

use std::time::Duration;

use lunette_tests::guest::run_host;
use lunette_tests::vpd::Identity;
use lunette_tests::{Lunette, iqn};

/// For one guest, in software emulation on a busy machine.
const GUEST: Duration = Duration::from_secs(150);
const SECRET: &str = "a-secret-of-22-letters";

fn phase(lunette: &Lunette, identities: &[Identity], phase: &str) {
    let (open, chap) = (&identities[0].naa, &identities[1].naa);
    let script = format!(
        "PORT={} TARGET={} NAA={open} CHAP_TARGET={} CHAP_NAA={chap} CHAP_USER=host CHAP_SECRET={SECRET} SECTORS=512/4096 PHASE={phase}\n{}",
        lunette.portal().port(),
        iqn("open"),
        iqn("chap"),
        include_str!("../guest/initiator.sh"),
    );
    let outcome = run_host(&script, lunette.portal().port(), GUEST);
    assert!(outcome.ok(), "{outcome}");
    assert!(outcome.stdout.contains(&format!("initiator: all steps passed ({phase})")), "{outcome}");
    println!("{}", outcome.stdout);
}

#[test]
fn a_linux_host_uses_luns_and_finds_them_after_a_power_cut() {
    // Guards against all that makes a disk unusable for a stock Linux host: discovery, login, CHAP, names,
    // multipath, file systems, discard; and against losing what it wrote when every process is killed.
    let mut lunette = Lunette::build().volume("open", "128M").volume("chap", "400M").start();
    let identities = ["open", "chap"].map(|name| Identity::of(&mut lunette.initiator(name)));
    let set =
        lunette.cli_with_input(["target", "chap", &iqn("chap"), "--user", "host"], &format!("{SECRET}\n"));
    assert!(set.ok(), "{set}");
    phase(&lunette, &identities, "write");
    lunette.kill();
    lunette.restart();
    phase(&lunette, &identities, "verify");
}

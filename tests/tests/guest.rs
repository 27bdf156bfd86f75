//! Linux virtualization hosts against a running system: each script in tests/guest says what its host does.

use std::fs;
use std::thread;
use std::time::Duration;

use lunette_tests::guest::Host;
use lunette_tests::vpd::Identity;
use lunette_tests::{Lunette, Outcome, administrator, iqn, ports};

/// For one guest, in software emulation on a busy machine.
const GUEST: Duration = Duration::from_secs(280);
/// For one with much to do.
const LONG: Duration = Duration::from_secs(550);
const SECRET: &str = "a-secret-of-22-letters";
const OTHER_SECRET: &str = "another-one-of-24-letters";

fn assert_passed(outcome: &Outcome, last: &str) {
    assert!(outcome.ok(), "{outcome}");
    assert!(outcome.stdout.lines().any(|line| line == last), "{outcome}");
    println!("{}", outcome.stdout);
}

fn ok(lunette: &Lunette, arguments: &[&str]) {
    let _ = lunette.cli(arguments.iter().copied()).success();
}

/// The name under which a host finds the volume, as an administrator learns it.
fn naa(lunette: &Lunette, volume: &str) -> String {
    lunette.json(["volume", "show", volume])["naa"].as_str().expect("a name").to_owned()
}

fn phase(lunette: &Lunette, identities: &[Identity], phase: &str) {
    let port = lunette.portal().port();
    let outcome = Host::new(GUEST).forward(port).run(
        &[
            ("PORT", &port.to_string()),
            ("TARGET", &iqn("open")),
            ("NAA", &identities[0].naa),
            ("CHAP_TARGET", &iqn("chap")),
            ("CHAP_NAA", &identities[1].naa),
            ("CHAP_USER", "host"),
            ("CHAP_SECRET", SECRET),
            ("SECTORS", "512/4096"),
            ("PHASE", phase),
        ],
        include_str!("../guest/initiator.sh"),
    );
    assert_passed(&outcome, &format!("initiator: all steps passed ({phase})"));
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

#[test]
fn scsi_tools_are_answered_as_the_standards_say() {
    // Guards against a command that the tools of an administrator find missing, wrong or wrongly refused, against lines in the
    // host's log about a disk that is attached, and against discovery with CHAP that open-iscsi cannot do.
    let lunette = Lunette::build().volume("tools", "64M").volume("second", "64M").start();
    let target = iqn("tools");
    ok(&lunette, &["target", "map", &target, "second", "--lun", "1"]);
    ok(&lunette, &["volume", "create", "4kn", "--size", "64M", "--block-size", "4096"]);
    ok(&lunette, &["target", "map", &target, "4kn", "--lun", "2"]);
    ok(&lunette, &["volume", "create", "protected", "--size", "64M"]);
    ok(&lunette, &["target", "map", &target, "protected", "--lun", "3", "--read-only"]);
    ok(&lunette, &["volume", "create", "large", "--size", "3T", "--write-back"]);
    ok(&lunette, &["target", "map", &target, "large", "--lun", "4"]);
    fs::write(lunette.scratch().join("discovery"), SECRET).expect("write a secret");
    fs::write(lunette.scratch().join("mutual"), OTHER_SECRET).expect("write a secret");
    let port = lunette.portal().port();
    let outcome = administrator::serve(&lunette, 1, |administrator| {
        Host::new(LONG).forward(port).run(
            &[
                ("PORT", &port.to_string()),
                ("ADMIN", &administrator.to_string()),
                ("TARGET", &target),
                ("NAA", &naa(&lunette, "tools")),
                ("DISCOVERY", SECRET),
                ("MUTUAL", OTHER_SECRET),
            ],
            include_str!("../guest/tools.sh"),
        )
    });
    assert_passed(&outcome, "tools: all steps passed");
}

#[test]
fn luns_in_use_shrink_grow_come_go_and_lose_a_portal() {
    // Guards against space that is not given back, a new size or a LUN that a host does not see before it logs out, and a
    // lost portal that a file system on two paths notices.
    let second = ports::free();
    let lunette = Lunette::build().portal(second).volume("grows", "96M").volume("wide", "320M").start();
    ok(&lunette, &["volume", "create", "extra", "--size", "32M"]);
    ok(&lunette, &["target", "map", &iqn("grows"), "wide", "--lun", "1"]);
    let port = lunette.portal().port();
    let outcome = administrator::serve(&lunette, 1, |administrator| {
        Host::new(LONG).forward(port).forward(second.port()).run(
            &[
                ("PORT", &port.to_string()),
                ("PORT_2", &second.port().to_string()),
                ("ADMIN", &administrator.to_string()),
                ("TARGET", &iqn("grows")),
                ("NAA", &naa(&lunette, "grows")),
                ("NAA_1", &naa(&lunette, "wide")),
                ("NAA_EXTRA", &naa(&lunette, "extra")),
            ],
            include_str!("../guest/paths.sh"),
        )
    });
    assert_passed(&outcome, "paths: all steps passed");
}

#[test]
fn two_hosts_share_a_volume_group() {
    // Guards against a host that does not see what another one wrote to a LUN that both use: metadata, data, sizes.
    let lunette = Lunette::build().volume("shared", "128M").start();
    let port = lunette.portal().port();
    administrator::serve(&lunette, 2, |administrator| {
        let host = |name: &str| {
            let outcome = Host::new(LONG).forward(port).run(
                &[
                    ("HOST", name),
                    ("PORT", &port.to_string()),
                    ("ADMIN", &administrator.to_string()),
                    ("TARGET", &iqn("shared")),
                    ("NAA", &naa(&lunette, "shared")),
                ],
                include_str!("../guest/shared.sh"),
            );
            assert_passed(&outcome, &format!("shared: all steps passed ({name})"));
        };
        thread::scope(|scope| {
            scope.spawn(|| host("b"));
            host("a");
        });
    });
}

#[test]
fn a_vm_uses_luns_of_qemus_own_initiator_and_finds_them_after_a_reboot() {
    // Guards against direct LUNs that a VM cannot tell from others, that keep the space of what it deletes, or forget.
    let volumes = ["block", "generic", "emulated"];
    let lunette = volumes.iter().fold(Lunette::build(), |build, name| build.volume(name, "64M")).start();
    let vm = Host::new(LONG)
        .disk("scsi-block", &lunette.iscsi("block"))
        .disk("scsi-generic", &lunette.iscsi("generic"))
        .disk("scsi-hd", &lunette.iscsi("emulated"));
    administrator::serve(&lunette, 1, |administrator| {
        for phase in ["write", "verify"] {
            let outcome = vm.run(
                &[
                    ("ADMIN", &administrator.to_string()),
                    ("NAA_BLOCK", &naa(&lunette, "block")),
                    ("NAA_GENERIC", &naa(&lunette, "generic")),
                    ("PHASE", phase),
                ],
                include_str!("../guest/direct.sh"),
            );
            assert_passed(&outcome, &format!("direct: all steps passed ({phase})"));
        }
    });
}

#[test]
fn a_file_system_outlives_its_gateway() {
    // Guards against a standby path that a stock host takes for a broken one, or for a working one, and against a takeover
    // or a move that its file system notices.
    let lunette = Lunette::build().gateways(2).volume("moves", "128M").log("info").start();
    let ports = [1, 2].map(|number| lunette.gateway(number).port());
    let outcome = administrator::serve(&lunette, 1, |administrator| {
        Host::new(LONG).forward(ports[0]).forward(ports[1]).run(
            &[
                ("PORT", &ports[0].to_string()),
                ("PORT_2", &ports[1].to_string()),
                ("ADMIN", &administrator.to_string()),
                ("TARGET", &iqn("moves")),
                ("NAA", &naa(&lunette, "moves")),
            ],
            include_str!("../guest/gateways.sh"),
        )
    });
    assert_passed(&outcome, "gateways: all steps passed");
}

//! libiscsi's tools against a running system. Its conformance suite is in `conformance.rs`.

use std::net::Ipv6Addr;
use std::process::Command;
use std::time::Duration;

use lunette_tests::conformance::{deviations, run_suite};
use lunette_tests::initiator::Transfer;
use lunette_tests::vpd::{Identity, designators};
use lunette_tests::{Initiator, Lunette, iqn, ports, run};

const TOOL: Duration = Duration::from_secs(20);

fn tool(name: &str, arguments: &[&str]) -> String {
    run(Command::new(name).args(arguments), TOOL).success()
}

#[test]
fn iscsi_ls_finds_the_targets_and_their_luns() {
    // Guards against a SendTargets answer or REPORT LUNS that stock initiators cannot read.
    let lunette = Lunette::build().volume("alpha", "64M").volume("beta", "1G").start();
    let url = format!("iscsi://{}", lunette.portal());
    let plain = tool("iscsi-ls", &[&url]);
    for name in ["alpha", "beta"] {
        let line = format!("Target:{} Portal:{},1", iqn(name), lunette.portal());
        assert_eq!(plain.lines().filter(|found| *found == line).count(), 1, "{line} in\n{plain}");
    }
    let with_luns = tool("iscsi-ls", &["-s", &url]);
    let luns: Vec<_> = with_luns.lines().filter(|line| line.starts_with("Lun:")).collect();
    // libiscsi shows the last block's place in whole MiB or GiB, so one less than the size.
    assert_eq!(luns.len(), 2, "{with_luns}");
    assert!(
        luns.iter().all(|line| line.starts_with("Lun:0 ") && line.contains("DIRECT_ACCESS")),
        "{with_luns}"
    );
    assert!(with_luns.contains("63M") && with_luns.contains("1023M"), "{with_luns}");
}

#[test]
fn every_portal_serves_and_ipv6_is_one_of_them() {
    // Guards against a portal that is announced and not served, and addresses without their brackets (RFC 7143, 13.8).
    let second = ports::free();
    let sixth = ports::free_at(Ipv6Addr::LOCALHOST.into());
    let lunette = Lunette::build().volume("alpha", "64M").portal(second).portal(sixth).start();
    for portal in [lunette.portal(), second, sixth] {
        let found = tool("iscsi-ls", &[&format!("iscsi://{portal}")]);
        let line = format!("Target:{} Portal:{portal},1", iqn("alpha"));
        assert!(found.lines().any(|found| found == line), "{line} in\n{found}");
        let mut initiator = Initiator::login(portal, &iqn("alpha")).expect("every portal admits us");
        initiator.ready().expect("a connection");
    }
}

#[test]
fn header_digests_are_computed_and_checked() {
    // Guards against a CRC32C over the wrong bytes (RFC 7143, 13.1).
    let lunette = Lunette::build().volume("alpha", "64M").start();
    let url = format!("{}?header_digest=crc32c", lunette.iscsi("alpha"));
    let _ = tool("iscsi-readcapacity16", &[&url]);
    let cases = run_suite(&["SCSI.Write10", "SCSI.Read16"], &[&url], TOOL);
    let wrong = deviations(&cases, &[]);
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn iscsi_inq_reads_standard_data_and_every_vpd_page() {
    // Guards against INQUIRY data that initiators refuse or misread (SPC-4, 6.6 and 7.8; SBC-3, 6.6).
    let lunette = Lunette::build().volume("alpha", "64M").start();
    let url = lunette.iscsi("alpha");
    let page = |number: u8| tool("iscsi-inq", &["-e", "1", "-c", &number.to_string(), &url]);

    let standard = tool("iscsi-inq", &[&url]);
    let lines = [
        "Peripheral Qualifier:CONNECTED",
        "Peripheral Device Type:DIRECT_ACCESS",
        "Removable:0",
        "HiSup:1",
        "ReponseDataFormat:2",
        "CmdQue:1",
        "Vendor:LUNETTE ",
    ];
    for line in lines {
        assert!(standard.contains(line), "{line} in\n{standard}");
    }

    let supported = page(0x00);
    let mut pages: Vec<_> = supported.lines().filter_map(|line| line.strip_prefix("Page:0x")).collect();
    for number in ["00", "80", "83", "b0", "b1", "b2"] {
        assert!(pages.iter().any(|page| page.starts_with(number)), "page {number}h in\n{supported}");
    }
    let listed = pages.clone();
    pages.sort_unstable();
    assert_eq!(listed, pages, "pages are listed in ascending order");

    assert!(page(0x80).contains("Unit Serial Number:["), "{}", page(0x80));
    let identification = page(0x83);
    assert!(identification.contains("Designator Type:(3) NAA"), "{identification}");
    let limits = page(0xb0);
    for zero in [
        "maximum unmap lba count:0\n",
        "maximum unmap block descriptor count:0\n",
        "optimal unmap granularity:0\n",
    ] {
        assert!(!limits.contains(zero), "{zero} in\n{limits}");
    }
    // 0001h: a medium that does not rotate (SBC-3, 6.6.4).
    assert!(
        page(0xb1).contains("Medium Rotation Rate:NON_ROTATING") || page(0xb1).contains("Rate:1RPM"),
        "{}",
        page(0xb1)
    );
    let provisioning = page(0xb2);
    for line in ["lbpu:1", "lbpws:1", "lbpws10:1", "lbprz:1", "provisioning type:2"] {
        assert!(provisioning.contains(line), "{line} in\n{provisioning}");
    }
}

#[test]
fn a_volume_has_names_that_no_other_has() {
    // Guards against two disks that a host takes for one, and names that Linux and QEMU do not use.
    let lunette = Lunette::build().volume("alpha", "64M").volume("beta", "64M").start();
    let mut alpha = lunette.initiator("alpha");
    let first = Identity::of(&mut alpha);
    let second = Identity::of(&mut lunette.initiator("beta"));
    assert_ne!(first.naa, second.naa);
    assert_ne!(first.serial, second.serial);
    for identity in [&first, &second] {
        assert_eq!(identity.naa.len(), 32, "16 bytes: {identity:?}");
        assert!(
            identity.naa.starts_with('6') || identity.naa.starts_with('3'),
            "NAA 6 or locally assigned: {identity:?}"
        );
        assert!(
            identity.naa.starts_with('6'),
            "NAA IEEE Registered Extended, as multipath wants it: {identity:?}"
        );
        assert!(!identity.serial.trim().is_empty(), "{identity:?}");
    }
    let page = alpha.vpd(0x83);
    let kinds: Vec<_> = designators(&page).iter().map(|found| (found.association, found.kind)).collect();
    // TPGS is set, so Linux wants the relative target port and the target port group (SPC-4, 7.8.6).
    if alpha.scsi(&[0x12, 0, 0, 0, 96, 0], Transfer::In(96)).expect("a connection").data[5] & 0x30 != 0 {
        assert!(kinds.contains(&(1, 4)) && kinds.contains(&(1, 5)), "{kinds:?}");
    }
}

#[test]
fn iscsi_readcapacity16_tells_the_size() {
    // Guards against a wrong last block, and 4Kn or 512n where 512e is meant (SBC-3, 5.16).
    let lunette = Lunette::build().volume("alpha", "96M").start();
    let capacity = tool("iscsi-readcapacity16", &[&lunette.iscsi("alpha")]);
    let lines = [
        "RETURNED LOGICAL BLOCK ADDRESS:196607",
        "LOGICAL BLOCK LENGTH IN BYTES:512",
        "LOGICAL BLOCKS PER PHYSICAL BLOCK EXPONENT:3",
        "LBPME:1 LBPRZ:1",
        "LOWEST ALIGNED LOGICAL BLOCK ADDRESS:0",
        "Total size:100663296",
    ];
    for line in lines {
        assert!(capacity.contains(line), "{line} in\n{capacity}");
    }
}

#[test]
fn libiscsi_logs_in_with_chap_and_not_without() {
    // Guards against a target that admits whoever does not prove himself (RFC 7143, 12.1.3).
    let lunette = Lunette::build().volume("alpha", "64M").start();
    let target = iqn("alpha");
    let secrets = "initiator-secret-1\ntarget-secret-22\n";
    let set =
        lunette.cli_with_input(["target", "chap", &target, "--user", "u1", "--mutual-user", "m1"], secrets);
    assert!(set.ok(), "{set}");

    let url = |user: &str, query: &str| format!("iscsi://{user}{}/{target}/0{query}", lunette.portal());
    let login = |url: String| run(Command::new("iscsi-inq").arg(url), TOOL);
    for refused in [url("", ""), url("u1%wrong-secret-00@", ""), url("u2%initiator-secret-1@", "")] {
        let outcome = login(refused);
        assert!(!outcome.ok() && outcome.stderr.contains("Authentication failure(513)"), "{outcome}");
    }
    let _ = login(url("u1%initiator-secret-1@", "")).success();
    let mutual = "?target_user=m1&target_password=target-secret-22";
    let _ = login(url("u1%initiator-secret-1@", mutual)).success();
    let lies = "?target_user=m1&target_password=other-secret-333";
    assert!(!login(url("u1%initiator-secret-1@", lies)).ok(), "a target with another secret passes for ours");

    let off = lunette.cli(["target", "chap", &target, "--off"]);
    assert!(off.ok(), "{off}");
    let _ = login(url("", "")).success();
}

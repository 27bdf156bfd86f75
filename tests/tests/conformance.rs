//! libiscsi's conformance suite against every kind of LUN that there is.
//!
//! All its tests run. One that does not pass is in a table with its reason; one that is there and does pass, or fails somewhere
//! else, is told too.
//!
//! The suite has two paths to the LUN, except for `Sanitize`: with two paths its test `Reservations` leaves the RESERVE(6)
//! of the second one behind and demands that a SANITIZE of the first one conflicts with it, and `Reset`, which comes next,
//! demands that the same SANITIZE is carried out. Nothing in between releases the reservation (SPC-2, 5.5.2: RELEASE, a
//! reset, or the end of that session would). With one path the suite makes the second session itself, and ends it.

use std::time::Duration;

use lunette_tests::conformance::{Case, Exception, Verdict, all_tests, deviations, run_suite};
use lunette_tests::{Lunette, iqn};

/// How long the suite may take: a test of `Sanitize` alone sleeps for a minute.
const SUITE: Duration = Duration::from_secs(270);

/// Everything but `Sanitize`.
const WITHOUT_SANITIZE: &[&str] = &["ALL.[!S]*", "ALL.S[!a]*"];
/// Its tests that need no second session.
const SANITIZE_ALONE: &str = "ALL.Sanitize.[!R]*";

/// What is for a removable medium only.
const REMOVABLE: [Exception; 9] = {
    const REASON: &str = "a volume is no medium that can be taken out (SPC-4, 6.6: RMB=0)";
    [
        Exception::skipped("PreventAllow.Simple", REASON),
        Exception::skipped("PreventAllow.Eject", REASON),
        Exception::skipped("PreventAllow.ITNexusLoss", REASON),
        Exception::skipped("PreventAllow.Logout", REASON),
        Exception::skipped("PreventAllow.WarmReset", REASON),
        Exception::skipped("PreventAllow.ColdReset", REASON),
        Exception::skipped("PreventAllow.LUNReset", REASON),
        Exception::skipped("PreventAllow.2ITNexuses", REASON),
        Exception::skipped("StartStopUnit.Simple", REASON),
    ]
};

const WRITABLE: Exception =
    Exception::skipped("ReadOnly.ReadOnlySBC", "the LUN is writable; see the one that is not");

/// WSNZ (SBC-3, 6.6.3) is set on purpose: to an initiator a count of zero that means the whole medium is a mistake that it
/// makes once. Cleared, the suite would have a LUN of any size written by one command, so that MAXIMUM WRITE SAME LENGTH
/// could be no limit; where it is none, or 65536 blocks, `WriteSame10.Unmap` and `WriteSame16.Unmap` write
/// as many blocks with one WRITE, whatever MAXIMUM TRANSFER LENGTH is.
const NO_COUNT: [Exception; 2] = {
    const REASON: &str = "WSNZ is set: zero blocks are no number of blocks, and are refused";
    [
        Exception::skipped("WriteSame10.ZeroBlocks", REASON),
        Exception::skipped("WriteSame16.ZeroBlocks", REASON),
    ]
};

/// The suite asks for the status of the LBA after a multiple of the physical block, I + 1, and wants the first descriptor to
/// begin at the next multiple, I + 8. It shall begin at the LBA that was asked for (SBC-3, 5.4.2.3; SBC-4 the same; QEMU
/// fails reads of the map with an I/O error otherwise). The two are the same only where physical blocks are
/// logical ones: this test passes at 4Kn.
const UNALIGNED_STATUS: Exception = Exception::wrong(
    "GetLBAStatus.UnmapSingle",
    &["test_get_lba_status_unmap_single.c:135"],
    "the first descriptor begins at the LBA that was asked for, not at the next physical block",
);

/// CRYPTOGRAPHIC ERASE is a change of the key that the medium is encrypted with (SBC-3, 4.11). Volumes are not encrypted,
/// so there is nothing that it could do within the meaning of the word. The other parts of the last two tests pass.
const CRYPTO: [Exception; 3] = {
    const REASON: &str = "CRYPTOGRAPHIC ERASE: volumes have no key that could be changed";
    [
        Exception::skipped("Sanitize.CryptoErase", REASON),
        Exception::skipped("Sanitize.Readonly", REASON),
        Exception::skipped("Sanitize.Reservations", REASON),
    ]
};

/// What is about logical blocks that are smaller than physical ones.
const SMALL_BLOCKS: [Exception; 5] = {
    const REASON: &str = "a logical block is a physical one";
    [
        Exception::skipped("CompareAndWrite.InvalidDataOutSize", REASON),
        Exception::skipped("WriteSame10.InvalidDataOutSize", REASON),
        Exception::skipped("WriteSame10.UnmapUnaligned", REASON),
        Exception::skipped("WriteSame16.InvalidDataOutSize", REASON),
        Exception::skipped("WriteSame16.UnmapUnaligned", REASON),
    ]
};

/// The suite takes the last LBA plus two, 2^31 and 2^32 - 1 for LBAs beyond the end. With more than 2^32 blocks no LBA of 32
/// bits is: the first is cut to that many bits, the others are in the middle. The same tests of READ, WRITE and WRITE SAME
/// look at the size of the LUN and do not run.
const NO_LBA_BEYOND_THE_END: [Exception; 2] = {
    const REASON: &str = "no LBA of 32 bits is beyond the end";
    [
        Exception::wrong(
            "Verify10.ZeroBlocks",
            &["test_verify10_0blocks.c:33", "test_verify10_0blocks.c:43"],
            REASON,
        ),
        Exception::wrong(
            "Verify12.ZeroBlocks",
            &["test_verify12_0blocks.c:33", "test_verify12_0blocks.c:43"],
            REASON,
        ),
    ]
};

/// Runs tests that all pass, but for exceptions.
fn conforms(tests: &[&str], urls: &[&str], exceptions: &[&[Exception]]) -> Vec<Case> {
    let cases = run_suite(tests, urls, SUITE);
    let count = |verdict| cases.iter().filter(|case| case.verdict == verdict).count();
    eprintln!(
        "{} tests: {} passed, {} skipped, {} failed",
        cases.len(),
        count(Verdict::Passed),
        count(Verdict::Skipped),
        count(Verdict::Failed)
    );
    let wrong = deviations(&cases, &exceptions.concat());
    assert!(wrong.is_empty(), "{wrong}");
    cases
}

/// That tests which ran are all of the suite, of `Sanitize` or all others.
fn are_all(ran: Vec<Case>, of_sanitize: bool) {
    let mut ran: Vec<String> = ran.into_iter().map(|case| case.name).collect();
    let mut all = all_tests();
    all.retain(|name| name.starts_with("Sanitize.") == of_sanitize);
    ran.sort_unstable();
    all.sort_unstable();
    assert_eq!(ran, all);
}

/// Creates and exports a volume; its LUN.
fn lun(lunette: &Lunette, name: &str, size: &str, options: &[&str]) -> String {
    let arguments = ["volume", "create", name, "--size", size, "--export"];
    let created = lunette.cli(arguments.into_iter().chain(options.iter().copied()));
    assert!(created.ok(), "{created}");
    lunette.initiator(name).ready().expect("a connection");
    lunette.iscsi(name)
}

#[test]
fn a_lun_of_small_blocks() {
    // Guards against what a stock initiator trips over on the LUN that it gets unless told otherwise: 512-byte blocks on
    // physical ones of 4 KiB.
    let lunette = Lunette::build().volume("alpha", "512M").start();
    let url = lunette.iscsi("alpha");
    let exceptions = [&REMOVABLE[..], &[WRITABLE, UNALIGNED_STATUS], &NO_COUNT];
    are_all(conforms(WITHOUT_SANITIZE, &[&url, &url], &exceptions), false);
    lunette.initiator("alpha").ready().expect("the server goes on");
}

#[test]
fn a_lun_that_is_sanitized() {
    // Guards against a SANITIZE that ends with the session that began it, or lets others in while it goes on.
    let lunette = Lunette::build().volume("alpha", "512M").start();
    are_all(conforms(&["ALL.Sanitize"], &[&lunette.iscsi("alpha")], &[&CRYPTO]), true);
}

#[test]
fn a_lun_of_large_blocks() {
    // Guards against 512 bytes where a logical block is meant.
    let lunette = Lunette::build().start();
    let url = lun(&lunette, "alpha", "512M", &["--block-size", "4096"]);
    let exceptions = [&REMOVABLE[..], &[WRITABLE], &NO_COUNT, &SMALL_BLOCKS];
    conforms(WITHOUT_SANITIZE, &[&url, &url], &exceptions);
    conforms(&[SANITIZE_ALONE], &[&url], &[&CRYPTO[..1]]);
}

#[test]
fn a_lun_beyond_2_tib() {
    // Guards against LBAs and numbers of blocks that are cut to 32 bits.
    let lunette = Lunette::build().start();
    let url = lun(&lunette, "alpha", "3T", &[]);
    let no_count = &NO_COUNT[1..];
    let exceptions = [&REMOVABLE[..], &[WRITABLE, UNALIGNED_STATUS], no_count, &NO_LBA_BEYOND_THE_END];
    // SANITIZE would write 3 TiB.
    conforms(WITHOUT_SANITIZE, &[&url, &url], &exceptions);
}

#[test]
fn a_lun_behind_chap() {
    // Guards against sessions that are not the same once they had to prove who they are, in both directions.
    let lunette = Lunette::build().volume("alpha", "512M").start();
    let target = iqn("alpha");
    let set = lunette.cli_with_input(
        ["target", "chap", &target, "--user", "u1", "--mutual-user", "m1"],
        "initiator-secret-1\ntarget-secret-22\n",
    );
    assert!(set.ok(), "{set}");
    let query = "?target_user=m1&target_password=target-secret-22";
    let url = format!("iscsi://u1%initiator-secret-1@{}/{target}/0{query}", lunette.portal());
    let exceptions = [&REMOVABLE[..], &[WRITABLE, UNALIGNED_STATUS], &NO_COUNT];
    conforms(WITHOUT_SANITIZE, &[&url, &url], &exceptions);
}

/// What does not write. All others fail on a LUN that is read-only, as they must: their first WRITE is refused. That each
/// command that writes is refused, and as the standard says, is what `ReadOnly` tests.
const READING: &[&str] = &[
    "ALL.GetLBAStatus.[!U]*",
    "ALL.Inquiry",
    "ALL.Mandatory",
    "ALL.ModeSense6",
    "ALL.NoMedia",
    "ALL.Prefetch*",
    "ALL.PreventAllow",
    "ALL.Prin*",
    "ALL.ProutRegister",
    "ALL.ProutClear",
    "ALL.ProutPreempt",
    "ALL.Read*",
    "ALL.Report*",
    "ALL.Reserve6",
    "ALL.StartStopUnit",
    "ALL.TestUnitReady",
    "ALL.Verify*",
    "ALL.iSCSIResiduals.Read*",
    "ALL.iSCSIcmdsn",
];

#[test]
fn a_lun_that_is_read_only() {
    // Guards against a mapping that is read-only for some commands, or does not say so.
    let lunette = Lunette::build().start();
    let target = iqn("alpha");
    for arguments in [
        &["volume", "create", "alpha", "--size", "512M"][..],
        &["target", "create", &target],
        &["target", "map", &target, "alpha", "--read-only"],
    ] {
        let done = lunette.cli(arguments.iter().copied());
        assert!(done.ok(), "{done}");
    }
    lunette.initiator("alpha").ready().expect("a connection");
    let url = lunette.iscsi("alpha");
    conforms(READING, &[&url, &url], &[&REMOVABLE]);
}

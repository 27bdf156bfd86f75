//! Thirty rules of RFC 7143 and SAM-5 that targets are known to get wrong, and the tests that hold each.
//!
//! Every PDU that the initiator of these tests receives is checked for what holds everywhere: StatSN without
//! gaps (4), MaxCmdSN that never falls (2), R2TSN and DataSN, lengths of segments and bursts (6), SenseLength
//! (28), ExpDataSN (5).
//!
//! | | rule | tests |
//! |---|---|---|
//! | 1 | serial numbers wrap | `window::{wraps, holes, status_numbers_wrap}`, units of `window.rs` and `serial.rs` |
//! | 2 | the command window; what is outside is dropped in silence | `window::{wraps, closes_and_opens}`, `pitfalls::whole_window_after_login` |
//! | 3 | order by CmdSN; immediate commands at once | `window::{holes, immediate_commands, tag_in_use}`, `management::functions_keep_their_turn` |
//! | 4 | StatSN: what uses it and what only shows it | all; `login::silent_session`, `window::status_numbers_wrap` |
//! | 5 | status with Data-In only if GOOD | `data::{check_condition_has_a_response_of_its_own, bursts_end_with_the_final_bit}` |
//! | 6 | Data-In in bursts, numbered from 0 | `data::{bursts_end_with_the_final_bit, every_agreement_moves_data}` |
//! | 7 | residuals | `data::{residuals, residuals_of_parameter_data}`, `pitfalls::residuals_of_more_parameter_data` |
//! | 8 | R2T and its Data-Out | `data::{first_r2t_starts_where_unsolicited_data_ends, outstanding_r2ts, data_out_violations, unknown_transfer_tag, data_after_the_end}` |
//! | 9 | unsolicited data | `data::{data_out_violations, residuals_of_parameter_data}`, `login::numbers` |
//! | 10 | InitialR2T and ImmediateData in all four ways | `data::every_agreement_moves_data`, `login::numbers` |
//! | 11 | negotiation of keys | `login::{all_stages, numbers, refusals}`, `pitfalls::{keys_over_several_requests, long_values}`, units of `negotiate.rs` |
//! | 12 | NotUnderstood, Irrelevant, Reject | `login::unknown_keys`, `discovery::no_commands`, `pitfalls::declarations_get_no_answer` |
//! | 13 | login: header, stages, statuses | `login::{header_rules, refusals, admission, sessions_are_limited, cannot_be_joined}`, `window::login_uses_no_number`, `drain::refuses_logins`, `chap::*` |
//! | 14 | continued text, both ways | `login::continued_text`, `discovery::{continuation, split_requests, rest_under_another_tag}` |
//! | 15 | identity of sessions; reinstatement | `management::{reinstatement_waits_for_old_writes, reinstatement_needs_the_whole_login, same_isid_at_another_target}`, `reinstatement::*` |
//! | 16 | storms of logins | `management::reinstatement_storm`, `reinstatement::storm` |
//! | 17 | the same ISID in another portal group | `pitfalls::same_isid_at_another_portal_group` |
//! | 18 | task management | `management::*`, `stalled::nothing_waits_behind_data` |
//! | 19 | NOP both ways | `login::{silent_session, segment_bounds}`, `stalled::pings_under_a_closed_window`, `pitfalls::nop_out_in_every_form` |
//! | 20 | padding and additional headers | `data::{additional_headers, digests_cover_padding_and_additional_headers}` |
//! | 21 | digest errors | `data::{digest_errors, damaged_unsolicited_data}`, `pitfalls::digests_begin_after_the_login` |
//! | 22 | Reject | `login::rejects`, `data::digest_errors` |
//! | 23 | logout | `login::logout`, `management::logout_waits_for_the_device` |
//! | 24 | asynchronous messages | `drain::*`, `exports::{unmap, closes}` |
//! | 25 | LUN addressing | `units::addressing` |
//! | 26 | unit attentions | `units::attentions_that_stay`, `exports::resize`, `pitfalls::report_luns_clears_its_own_attention` |
//! | 27 | CHAP | `chap::*` |
//! | 28 | sense data and status without | all; `data::device_errors` |
//! | 29 | nothing old is written after a new login | `management::{reinstatement_waits_for_old_writes, broken_connection_is_waited_for}`, `reinstatement::what_was_under_way_is_over` |
//! | 30 | limits on what a peer may cost | `login::{segment_bounds, login_deadline}`, `hostile::*`, `sockets::*` |

use std::sync::Arc;

use lunette_proto::ids::TargetId;
use lunette_proto::iscsi::initiator::NopOut;
use lunette_proto::iscsi::{Reply, TAG_NONE};
use lunette_proto::limits::SESSION_COMMANDS_MAX;
use lunette_target_iscsi::session::{Claim, ConnectionId, Registry, SessionKey, Verdict};

use crate::bed::{Bed, IQN};
use crate::initiator::{INITIATOR, Initiator, keys, read10};

const WHO: &[(&str, &str)] = &[("InitiatorName", INITIATOR), ("TargetName", IQN), ("SessionType", "Normal")];

fn fresh() -> (Bed, Initiator) {
    let mut bed = Bed::new();
    let host = Initiator::new(bed.connect());
    (bed, host)
}

/// Guards the start of a session: the last Login Response already opens the whole window.
#[test]
fn whole_window_after_login() {
    let (mut bed, mut host) = fresh();
    host.login(&mut bed, &[]).unwrap();
    assert_eq!(host.numbers.exp_cmd_sn, host.cmd_sn);
    assert_eq!(host.numbers.max_cmd_sn, host.cmd_sn.plus(SESSION_COMMANDS_MAX - 1));
}

/// Guards residuals of every command that cuts its data to an allocation length: what the CDB moves against
/// what the initiator expects, below, at and above it.
#[test]
fn residuals_of_more_parameter_data() {
    let cdb = |bytes: &[u8]| {
        let mut cdb = [0; 16];
        cdb[..bytes.len()].copy_from_slice(bytes);
        cdb
    };
    // Each with an allocation length of 8, of which all is there.
    for (name, cdb) in [
        ("INQUIRY", cdb(&[0x12, 0, 0, 0, 8])),
        ("VPD 83h", cdb(&[0x12, 1, 0x83, 0, 8])),
        ("REPORT LUNS", cdb(&[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 8])),
        ("MODE SENSE(6)", cdb(&[0x1a, 0, 0x3f, 0, 8])),
        ("MODE SENSE(10)", cdb(&[0x5a, 0, 0x3f, 0, 0, 0, 0, 0, 8])),
        ("READ CAPACITY(10)", cdb(&[0x25])),
        ("READ CAPACITY(16)", cdb(&[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8])),
        ("REPORT SUPPORTED OPERATION CODES", cdb(&[0xa3, 0x0c, 0, 0, 0, 0, 0, 0, 0, 8])),
    ] {
        let mut bed = Bed::new();
        let mut host = Initiator::ready(&mut bed, &[]);
        for (expected, overflow, underflow) in [(0, 8, 0), (3, 5, 0), (8, 0, 0), (100, 0, 92)] {
            let ended = host.read(&mut bed, cdb, expected);
            assert_eq!((ended.status, ended.data.len()), (0, 8.min(expected as usize)), "{name} {expected}");
            assert_eq!((ended.overflow, ended.underflow), (overflow, underflow), "{name} {expected}");
        }
    }
}

/// Guards keys that come twice, in one request or in two, and the answer that belongs to each request.
#[test]
fn keys_over_several_requests() {
    let (mut bed, mut host) = fresh();
    host.login_step(&mut bed, 1, None, &[keys(WHO), keys(&[("InitialR2T", "No")])].concat()).unwrap();
    let (_, answers) = host.login_step(&mut bed, 1, None, &keys(&[("MaxBurstLength", "512")])).unwrap();
    assert_eq!(answers.get("MaxBurstLength").map(String::as_str), Some("512"));
    assert!(!answers.contains_key("InitialR2T"));
    let twice = host.login_step(&mut bed, 1, Some(3), &keys(&[("InitialR2T", "No")]));
    assert_eq!(twice.map(drop), Err(0x0200));
}

/// Guards values of more than 255 bytes: rejected, and what they were for keeps its default.
#[test]
fn long_values() {
    let (mut bed, mut host) = fresh();
    let long = format!("CRC32C{}", ",CRC32C".repeat(50));
    let (_, answers) =
        host.login_step(&mut bed, 1, None, &[keys(WHO), keys(&[("HeaderDigest", &long)])].concat()).unwrap();
    assert_eq!(answers["HeaderDigest"], "Reject");
    host.answers.remove("HeaderDigest");
    host.login_step(&mut bed, 1, Some(3), &[]).unwrap();
    host.clear_attention(&mut bed);
}

/// Guards declarations, which get no answer, in both stages of the login.
#[test]
fn declarations_get_no_answer() {
    let (mut bed, mut host) = fresh();
    let security = keys(&[("InitiatorAlias", "host")]);
    host.login_step(&mut bed, 0, Some(1), &[keys(WHO), security].concat()).unwrap();
    host.login_step(&mut bed, 1, Some(3), &keys(&[("MaxRecvDataSegmentLength", "4096")])).unwrap();
    // The target's own declaration is not an answer: it says what the target takes.
    assert_eq!(host.answers.remove("MaxRecvDataSegmentLength").as_deref(), Some("262144"));
    assert_eq!(host.answers.keys().collect::<Vec<_>>(), ["TargetPortalGroupTag"]);
}

/// Guards the portal group's part in a session's identity.
#[test]
fn same_isid_at_another_portal_group() {
    let key = |tag| SessionKey { initiator: INITIATOR.into(), isid: [0; 6], target: IQN.into(), tag };
    let mut registry = Registry::new(10, 10);
    for (id, tag) in [(1, 1), (2, 2)] {
        let claim = Claim { key: Some(key(tag)), tsih: 0, cid: 0 };
        assert!(matches!(registry.claim(ConnectionId(id), claim), Verdict::Granted { .. }));
    }
    let mut bed = Bed::new();
    Arc::get_mut(&mut bed.context).unwrap().tag = 7;
    let mut host = Initiator::new(bed.connect());
    host.login(&mut bed, &[]).unwrap();
    assert_eq!(host.answers["TargetPortalGroupTag"], "7");
}

/// Guards NOP-Out in all its forms: with a number of its own, immediate, without a wish for an answer, and
/// as an answer to a ping that nobody sent.
#[test]
fn nop_out_in_every_form() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[]);
    let nop = NopOut { task_tag: 0x99, transfer_tag: TAG_NONE, lun: 1 << 48, ..NopOut::default() };
    let numbered = NopOut { cmd_sn: host.cmd_sn.take(), ..nop };
    host.send(&mut bed, numbered.encode(), b"abc");
    let Some((Reply::NopIn(answer), pdu)) = host.next(&mut bed) else { panic!() };
    assert_eq!((answer.task_tag, answer.transfer_tag, answer.lun), (0x99, TAG_NONE, 1 << 48));
    assert_eq!(pdu.data, b"abc"[..]);
    assert_eq!(host.numbers.exp_cmd_sn, host.cmd_sn, "it used up its number");
    let immediate = NopOut { immediate: true, cmd_sn: host.cmd_sn, ..nop };
    host.send(&mut bed, immediate.encode(), &[]);
    assert!(matches!(host.next(&mut bed), Some((Reply::NopIn(_), _))));
    assert_eq!(host.numbers.exp_cmd_sn, host.cmd_sn, "it has none");
    for transfer_tag in [TAG_NONE, 0x1234] {
        let silent = NopOut { task_tag: TAG_NONE, transfer_tag, ..immediate };
        host.send(&mut bed, silent.encode(), b"abc");
        host.expect_silence(&mut bed);
    }
    assert_eq!(host.ping(&mut bed, b"alive"), b"alive");
}

/// Guards the place where digests begin: the whole login goes without, the first PDU after it has them.
#[test]
fn digests_begin_after_the_login() {
    let (mut bed, mut host) = fresh();
    let crc = [("HeaderDigest", "CRC32C,None"), ("DataDigest", "None,CRC32C")];
    host.login_step(&mut bed, 1, None, &[keys(WHO), keys(&crc)].concat()).unwrap();
    // In the order of the initiator's preference.
    assert_eq!(
        (host.answers["HeaderDigest"].as_str(), host.answers["DataDigest"].as_str()),
        ("CRC32C", "None")
    );
    host.login_step(&mut bed, 1, Some(3), &[]).unwrap();
    host.clear_attention(&mut bed);
    assert_eq!(host.ping(&mut bed, b"abc"), b"abc");
}

/// Guards 3Fh/0Eh: REPORT LUNS has told already what it would say; nothing else is cleared by it.
#[test]
fn report_luns_clears_its_own_attention() {
    let mut bed = Bed::new();
    let mut host = Initiator::ready(&mut bed, &[]);
    bed.apply(|map| {
        let luns = &mut map.targets.get_mut(&TargetId(1)).unwrap().luns;
        luns.remove(&1);
        luns.get_mut(&0).unwrap().read_only = true;
    });
    assert!(matches!(host.next(&mut bed), Some((Reply::Async(_), _))));
    let mut report_luns = [0; 16];
    (report_luns[0], report_luns[9]) = (0xa0, 64);
    assert_eq!(host.read(&mut bed, report_luns, 64).data.len(), 16);
    assert_eq!(host.read(&mut bed, read10(0, 1), 512).sense, Some([6, 0x3f, 3]));
    assert_eq!(host.read(&mut bed, read10(0, 1), 512).status, 0);
}

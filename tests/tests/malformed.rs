//! Bytes that no initiator sends: the connection may be closed or the PDU rejected, nothing else.
//!
//! RFC 7143, 7.7 and 11.17. Whatever comes in, the server lives, its memory stays bounded, and the
//! next client is served.

use std::io::{ErrorKind, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use lunette_tests::image::Pseudorandom;
use lunette_tests::initiator::Transfer;
use lunette_tests::pdu::{BHS, NO_TAG, Pdu, opcode, text_bytes};
use lunette_tests::{Initiator, Lunette, iqn};

/// `key=value` pairs of a login.
type Keys<'a> = &'a [(&'a str, &'a str)];

/// What the server may hold for connections that are not logged in.
const STRANGERS_MEMORY: u64 = 96 << 20;

fn start() -> Lunette {
    Lunette::build().volume("alpha", "64M").start()
}

fn connect(lunette: &Lunette) -> TcpStream {
    let stream = Initiator::connect(lunette.portal()).expect("the server accepts connections");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket option");
    stream
}

fn assert_serves(lunette: &Lunette) {
    let mut initiator = lunette.initiator("alpha");
    initiator.ready().expect("a connection");
    assert_eq!(initiator.read(0, 1).expect("a connection").data.len(), 512);
    initiator.logout().expect("a connection");
    assert!(!lunette.log().contains("panicked"), "a panic");
}

/// Sends what the server takes of `bytes`; a closed connection is fine.
fn send(stream: &mut TcpStream, bytes: &[u8]) {
    match stream.write_all(bytes) {
        Ok(()) => {}
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {}
        Err(error) => panic!("{error}"),
    }
}

/// All PDUs until the server closes the connection.
///
/// # Panics
/// If it neither closes it nor says anything for 20 seconds.
fn until_closed(stream: &mut TcpStream, what: &str) -> Vec<Pdu> {
    let mut answers = Vec::new();
    loop {
        match Pdu::read(stream) {
            Ok(pdu) => answers.push(pdu),
            Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
                return answers;
            }
            Err(error) => panic!("{what}: the connection stays open ({error}) after {answers:?}"),
        }
    }
}

fn login_request() -> Pdu {
    let mut request = Pdu::new(opcode::LOGIN | 0x40, 0x80 | 1 << 2 | 3);
    request.header[8..14].copy_from_slice(&[0x80, 0, 0, 1, 0, 0]);
    request.set_word(16, 1);
    request.set_word(24, 1);
    request.data = text_bytes(&[
        ("InitiatorName", lunette_tests::initiator::NAME),
        ("SessionType", "Normal"),
        ("TargetName", &iqn("alpha")),
    ]);
    request
}

#[test]
fn garbage_ends_the_connection_only() {
    // Guards against a parser that trusts its input.
    let lunette = start();
    let mut random = Pseudorandom::new(3);
    for round in 0..60 {
        let mut stream = connect(&lunette);
        let length = usize::try_from(random.number() % 4096).expect("below 4096") + BHS;
        send(&mut stream, &random.bytes(length));
        // Whatever the lengths in it say, there is no more to come.
        let _ = stream.shutdown(Shutdown::Write);
        until_closed(&mut stream, &format!("round {round}"));
    }
    for text in ["GET / HTTP/1.1\r\nHost: lunette\r\n\r\n", "SSH-2.0-OpenSSH_9.2\r\n", "\n", "\0"] {
        let mut stream = connect(&lunette);
        send(&mut stream, text.as_bytes());
        let _ = stream.shutdown(Shutdown::Write);
        until_closed(&mut stream, text);
    }
    assert_serves(&lunette);
}

#[test]
fn a_pdu_that_ends_early_ends_the_connection_only() {
    // Guards against a read past the end of what came, at each length that a PDU can be cut to.
    let lunette = start();
    let whole = login_request().bytes();
    for length in 0..whole.len() {
        let mut stream = connect(&lunette);
        send(&mut stream, &whole[..length]);
        let _ = stream.shutdown(Shutdown::Write);
        let answers = until_closed(&mut stream, &format!("the first {length} bytes"));
        assert!(
            answers.iter().all(|pdu| pdu.header[36] != 0 || pdu.opcode() == opcode::REJECT),
            "{length}: {answers:?}"
        );
    }
    assert_serves(&lunette);
}

#[test]
fn a_huge_length_takes_no_memory() {
    // Guards against a buffer that a stranger sizes: 16 MiB of login keys, from many connections.
    let lunette = start();
    assert_serves(&lunette);
    let (_, before) = lunette.memory();
    let mut streams: Vec<TcpStream> = Vec::new();
    let filler = vec![b'a'; 1 << 20];
    for ahs in [0_u8, 255] {
        for _ in 0..32 {
            let mut stream = connect(&lunette);
            let mut bytes = login_request().bytes();
            bytes.truncate(BHS);
            bytes[4] = ahs;
            bytes[5..8].copy_from_slice(&[0xff, 0xff, 0xff]);
            send(&mut stream, &bytes);
            stream.set_nonblocking(true).expect("a socket option");
            // As much as it takes at once; what it does not take stays in the kernel.
            for _ in 0..8 {
                if stream.write(&filler).is_err() {
                    break;
                }
            }
            streams.push(stream);
        }
    }
    std::thread::sleep(Duration::from_millis(500));
    let (_, peak) = lunette.memory();
    assert!(
        peak.saturating_sub(before) < STRANGERS_MEMORY,
        "{before} bytes grew to {peak} for {} strangers",
        streams.len()
    );
    assert_serves(&lunette);
}

#[test]
fn nothing_but_a_login_is_heard_before_one() {
    // Guards against commands of somebody who has not logged in (RFC 7143, 6.3).
    let lunette = start();
    for code in 0..=0x3f_u8 {
        if code == opcode::LOGIN {
            continue;
        }
        let mut stream = connect(&lunette);
        let mut pdu = Pdu::new(code, 0x80);
        pdu.set_word(16, 1);
        pdu.set_word(20, NO_TAG);
        send(&mut stream, &pdu.bytes());
        let _ = stream.shutdown(Shutdown::Write);
        let answers = until_closed(&mut stream, &format!("opcode {code:02x}h"));
        for answer in answers {
            let refused = answer.opcode() == opcode::LOGIN_RESPONSE && answer.header[36] != 0;
            assert!(
                refused || answer.opcode() == opcode::REJECT,
                "opcode {code:02x}h is answered with {answer:?}"
            );
        }
    }
    assert_serves(&lunette);
}

#[test]
fn logins_that_break_the_rules_are_refused() {
    // Guards against a login that leaves the prescribed way (RFC 7143, 6.3 and 11.12).
    let lunette = start();
    let name = ("InitiatorName", lunette_tests::initiator::NAME);
    let target = iqn("alpha");
    let to = ("TargetName", target.as_str());
    // Flags, keys, and what is wrong with it.
    let long = format!("X-{}", "k".repeat(70));
    let table: &[(u8, Keys<'_>, &str)] = &[
        (0x80 | 1 << 2 | 3, &[to], "no InitiatorName"),
        (0x80 | 1 << 2 | 3, &[name], "no TargetName in a normal session"),
        (0x80 | 1 << 2 | 3, &[name, ("TargetName", "iqn.2026-11.io.lunette:nobody")], "no such target"),
        (0x80 | 1 << 2 | 3, &[("InitiatorName", ""), to], "an empty InitiatorName"),
        (0x80 | 3 << 2 | 3, &[name, to], "current stage 3"),
        (0x80 | 1 << 2, &[name, to], "next stage before the current one"),
        (0x80 | 1 << 2 | 2, &[name, to], "next stage 2, which is reserved"),
        (0xc0 | 1 << 2 | 3, &[name, to], "transit and continue at once"),
        (0x80 | 1 << 2 | 3, &[name, name, to], "a key twice"),
        (0x80 | 1 << 2 | 3, &[name, to, ("SessionType", "Nonsense")], "an unknown session type"),
        (0x80 | 1 << 2 | 3, &[name, to, ("MaxBurstLength", "many")], "no number"),
        (
            0x80 | 1 << 2 | 3,
            &[name, to, ("MaxBurstLength", "99999999999999999999")],
            "a number that fits nowhere",
        ),
        (0x80 | 1 << 2 | 3, &[name, to, (&long, "v")], "a key of more than 63 bytes"),
    ];
    let mut wrong = Vec::new();
    for (flags, keys, what) in table {
        let mut request = login_request();
        request.header[1] = *flags;
        request.data = text_bytes(keys);
        let mut stream = connect(&lunette);
        send(&mut stream, &request.bytes());
        // Refused, closed, or the one key rejected.
        if let Ok(pdu) = Pdu::read(&mut stream) {
            let refused = pdu.header[36] != 0 || pdu.opcode() == opcode::REJECT;
            let text = String::from_utf8_lossy(&pdu.data).into_owned();
            if !refused && !text.contains("=Reject") {
                wrong.push(format!("{what}: flags {:02x}h, {text:?}", pdu.flags()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let mut request = login_request();
    request.header[2..4].copy_from_slice(&[0x09, 0x09]); // VersionMax, VersionMin
    let mut stream = connect(&lunette);
    send(&mut stream, &request.bytes());
    if let Ok(pdu) = Pdu::read(&mut stream) {
        assert_eq!((pdu.header[36], pdu.header[37]), (2, 5), "unsupported version: {pdu:?}");
    }
    assert_serves(&lunette);
}

#[test]
fn half_logins_do_not_keep_others_out() {
    // Guards against strangers who take all the places by not going on.
    let lunette = start();
    let mut silent = Vec::new();
    let (_, before) = lunette.memory();
    for index in 0..100 {
        // The server may refuse more connections of one address than it wants to hold.
        let Ok(mut stream) = Initiator::connect(lunette.portal()) else { break };
        match index % 3 {
            0 => {}
            1 => send(&mut stream, &login_request().bytes()[..BHS]),
            _ => {
                let mut request = login_request();
                // Stays in the operational stage.
                request.header[1] = 1 << 2;
                send(&mut stream, &request.bytes());
            }
        }
        silent.push(stream);
    }
    assert_serves(&lunette);
    let (_, peak) = lunette.memory();
    assert!(peak.saturating_sub(before) < STRANGERS_MEMORY, "{before} bytes grew to {peak}");
    drop(silent);
    assert_serves(&lunette);
}

#[test]
fn nonsense_in_a_session_is_rejected_or_ends_it() {
    // Guards against a peer that has logged in and then breaks the protocol.
    let lunette = start();
    let mut pdus: Vec<(String, Vec<u8>)> = Vec::new();
    for code in (0..=0x3f_u8).filter(|code| ![opcode::NOP_OUT, opcode::LOGOUT, opcode::TEXT].contains(code)) {
        let mut pdu = Pdu::new(code, 0xff);
        pdu.set_word(16, 77);
        pdu.set_word(24, 1);
        pdu.data = vec![0xff; 16];
        pdus.push((format!("opcode {code:02x}h"), pdu.bytes()));
    }
    let mut too_long = Pdu::new(opcode::SCSI_COMMAND, 0xa0).bytes();
    too_long[5..8].copy_from_slice(&[0xff, 0xff, 0xff]);
    too_long.extend(vec![0; 1 << 20]);
    pdus.push(("a data segment beyond MaxRecvDataSegmentLength".to_owned(), too_long));
    let mut headers = Pdu::new(opcode::SCSI_COMMAND, 0x80).bytes();
    headers[4] = 255;
    headers.extend(vec![0xff; 1020]);
    pdus.push(("additional headers that contradict themselves".to_owned(), headers));
    let mut no_task = Pdu::new(opcode::DATA_OUT, 0x80);
    no_task.set_word(16, 4711);
    no_task.set_word(20, 4712);
    no_task.data = vec![1; 512];
    pdus.push(("data of no task".to_owned(), no_task.bytes()));

    for (what, bytes) in pdus {
        let mut initiator = lunette.initiator("alpha");
        send(initiator.stream(), &bytes);
        // A ping tells whether the session still lives: an answer to it, or the end of the connection. Both are fine.
        let mut ping = Pdu::new(opcode::NOP_OUT | 0x40, 0x80);
        ping.set_word(16, 99);
        ping.set_word(20, NO_TAG);
        ping.set_word(24, 1);
        send(initiator.stream(), &ping.bytes());
        loop {
            match Pdu::read(initiator.stream()) {
                Ok(pdu) if pdu.opcode() == opcode::NOP_IN && pdu.tag() == 99 => break,
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    // A target that waits for data it was promised is right to be silent about the ping.
                    assert!(
                        what.contains("opcode 01h"),
                        "{what}: neither an answer nor the end of the connection"
                    );
                    break;
                }
                Err(_) => break,
            }
        }
        drop(initiator);
    }
    assert_serves(&lunette);
}

#[test]
fn every_operation_code_gets_an_answer() {
    // Guards against a CDB that hangs a session or ends the server (SPC-4, 4.2).
    let lunette = start();
    let mut initiator = lunette.initiator("alpha");
    initiator.ready().expect("a connection");
    let mut random = Pseudorandom::new(5);
    for operation in 0..=255_u8 {
        for fill in [0_u8, 0xff] {
            let mut cdb = [fill; 16];
            cdb[0] = operation;
            for transfer in [Transfer::None, Transfer::In(512)] {
                let answer =
                    initiator.scsi(&cdb, transfer).unwrap_or_else(|error| panic!("CDB {cdb:02x?}: {error}"));
                assert!([0, 2, 8, 0x18, 0x28].contains(&answer.status), "CDB {cdb:02x?}: {answer:x?}");
                assert!(
                    answer.status != 2 || answer.sense.len() >= 14,
                    "CDB {cdb:02x?}: CHECK CONDITION says why"
                );
            }
        }
    }
    for _ in 0..500 {
        let bytes = random.bytes(16);
        let answer = initiator
            .scsi(&bytes, Transfer::In(4096))
            .unwrap_or_else(|error| panic!("CDB {bytes:02x?}: {error}"));
        assert!([0, 2, 8, 0x18, 0x28].contains(&answer.status), "CDB {bytes:02x?}: {answer:x?}");
    }
    assert_serves(&lunette);
}

#[test]
fn a_connection_that_dies_in_the_middle_of_a_write_leaves_no_trace() {
    // Guards against half a block on the disk, and commands that wait for data for ever (RFC 7143, 4.2.3.3).
    let lunette = start();
    for round in 0..20_usize {
        let mut initiator = lunette.initiator("alpha");
        initiator.ready().expect("a connection");
        let mut command = Pdu::new(opcode::SCSI_COMMAND, 0xa0);
        command.set_word(20, 4096);
        command.header[32] = 0x8a; // WRITE (16) of 8 blocks at 0
        command.header[45] = 8;
        initiator.send(command).expect("a connection");
        let r2t = initiator.answer().expect("a connection");
        assert_eq!((r2t.opcode(), r2t.word(40), r2t.word(44)), (opcode::R2T, 0, 4096), "{r2t:?}");
        let mut data = Pdu::new(opcode::DATA_OUT, 0x80);
        data.set_word(16, r2t.tag());
        data.set_word(20, r2t.word(20));
        data.data = vec![0xee; 4096];
        let bytes = data.bytes();
        initiator.stream().write_all(&bytes[..bytes.len() * round / 20]).expect("a connection");
    }
    let mut initiator = lunette.initiator("alpha");
    initiator.ready().expect("a connection");
    let answer = initiator.read(0, 8).expect("a connection");
    assert!(answer.status == 0 && answer.data == [0; 4096], "part of a write that was never whole");
    assert_serves(&lunette);
}

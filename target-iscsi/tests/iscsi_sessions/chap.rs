//! CHAP from outside: each algorithm, each direction, each way to fail (RFC 7143 12.1.3).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lunette_proto::map::{Chap, ChapAlgorithm, ChapCredential, Sealed};
use lunette_target_iscsi::session::chap_response;

use crate::bed::{Bed, IQN};
use crate::initiator::{INITIATOR, Initiator, keys};

const SECRET: &[u8] = b"initiator secret";
const TARGET_SECRET: &[u8] = b"target secret 12";
const CHALLENGE: &str = "0x000102030405060708090a0b0c0d0e0f";

/// Keys made from the right response.
type Proofs<'a> = dyn Fn(&[u8]) -> Vec<(String, String)> + 'a;

fn chap(algorithms: &[ChapAlgorithm], mutual: Option<&[u8]>) -> Chap {
    let credential =
        |user: &str, secret: &[u8]| ChapCredential { user: user.into(), secret: Sealed(secret.to_vec()) };
    Chap {
        initiator: credential("alice", SECRET),
        target: mutual.map(|secret| credential("lunette", secret)),
        algorithms: algorithms.to_vec(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold("0x".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.strip_prefix("0x").unwrap();
    (0..digits.len() / 2).map(|at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).unwrap()).collect()
}

/// Up to the challenge: the algorithm, the id, the challenge as text.
fn challenged(bed: &mut Bed, offers: &str) -> Result<(Initiator, String, u8, String), u16> {
    let mut host = Initiator::new(bed.connect());
    let text = keys(&[("InitiatorName", INITIATOR), ("TargetName", IQN), ("AuthMethod", "CHAP,None")]);
    // T is asked for and must not be granted yet.
    let (response, answers) = host.login_step(bed, 0, Some(1), &text)?;
    assert!(!response.transit);
    assert_eq!(answers["AuthMethod"], "CHAP");
    let (_, answers) = host.login_step(bed, 0, None, &keys(&[("CHAP_A", offers)]))?;
    Ok((host, answers["CHAP_A"].clone(), answers["CHAP_I"].parse().unwrap(), answers["CHAP_C"].clone()))
}

fn answer(
    bed: &mut Bed,
    algorithm: ChapAlgorithm,
    pairs: &[(&str, &str)],
    secret: &[u8],
) -> Result<Option<String>, u16> {
    let (mut host, _, id, challenge) = challenged(bed, &algorithm.number().to_string())?;
    let response = hex(&chap_response(algorithm, id, secret, &unhex(&challenge)));
    let mut all = vec![("CHAP_N", "alice"), ("CHAP_R", response.as_str())];
    all.extend_from_slice(pairs);
    let (step, answers) = host.login_step(bed, 0, Some(1), &keys(&all))?;
    assert!(step.transit);
    host.login_step(bed, 1, Some(3), &[])?;
    host.clear_attention(bed);
    Ok(answers.get("CHAP_R").cloned())
}

/// Guards every algorithm in one direction and in both, and the wrong secret in each.
#[test]
fn algorithms_and_directions() {
    for algorithm in ChapAlgorithm::ALL {
        let one_way = chap(&[algorithm], None);
        assert_eq!(answer(&mut Bed::with_chap(one_way.clone()), algorithm, &[], SECRET), Ok(None));
        assert_eq!(answer(&mut Bed::with_chap(one_way), algorithm, &[], b"wrong"), Err(0x0201));
        let mutual = chap(&[algorithm], Some(TARGET_SECRET));
        let ours = [("CHAP_I", "7"), ("CHAP_C", CHALLENGE)];
        let proof = answer(&mut Bed::with_chap(mutual.clone()), algorithm, &ours, SECRET).unwrap().unwrap();
        assert_eq!(proof, hex(&chap_response(algorithm, 7, TARGET_SECRET, &unhex(CHALLENGE))));
        assert_eq!(answer(&mut Bed::with_chap(mutual.clone()), algorithm, &ours, b"wrong"), Err(0x0201));
        // The target's own secret does not serve the initiator.
        assert_eq!(answer(&mut Bed::with_chap(mutual), algorithm, &ours, TARGET_SECRET), Err(0x0201));
    }
}

/// Guards the choice: the target's order of preference, among what is offered and allowed.
#[test]
fn algorithm_choice() {
    use ChapAlgorithm::{Md5, Sha3_256, Sha256};
    for (allowed, offers, expected) in [
        (&[Sha3_256, Sha256, Md5][..], "5,7", Ok("7")),
        (&[Sha3_256, Sha256, Md5], "5,6,7,8", Ok("8")),
        (&[Md5], "8,5", Ok("5")),
        (&[Sha256], "5", Err(0x0201)),
        (&[Md5], "56", Err(0x0201)),
        (&[Md5], "", Err(0x0201)),
        (&[Md5], "05", Err(0x0201)),
        (&[Md5], "1,2,3,4,6,7,8,9,10,11,12,13,14,15,16,17,5", Err(0x0201)),
    ] {
        let mut bed = Bed::with_chap(chap(allowed, None));
        let chosen = challenged(&mut bed, offers).map(|(_, algorithm, ..)| algorithm);
        assert_eq!(chosen, expected.map(str::to_owned), "{offers}");
    }
}

/// Guards against leaving authentication out: by stage, by method, by transition.
#[test]
fn cannot_be_left_out() {
    let who = [("InitiatorName", INITIATOR), ("TargetName", IQN)];
    for (stage, next, method) in
        [(1, Some(3), None), (0, Some(1), None), (0, Some(3), None), (0, Some(1), Some("None"))]
    {
        let mut bed = Bed::with_chap(chap(&[ChapAlgorithm::Md5], None));
        let mut host = Initiator::new(bed.connect());
        let mut text = keys(&who);
        text.extend(method.map(|method| keys(&[("AuthMethod", method)])).unwrap_or_default());
        assert_eq!(host.login_step(&mut bed, stage, next, &text).map(drop), Err(0x0201));
    }
    // Between the steps neither.
    let mut bed = Bed::with_chap(chap(&[ChapAlgorithm::Md5], None));
    let (mut host, ..) = challenged(&mut bed, "5").unwrap();
    assert_eq!(host.login_step(&mut bed, 0, Some(3), &[]).map(drop), Err(0x0201));
    let (mut host, ..) = challenged(&mut bed, "5").unwrap();
    assert_eq!(host.login_step(&mut bed, 1, Some(3), &[]).map(drop), Err(0x0200));
    let (mut host, ..) = challenged(&mut bed, "5").unwrap();
    assert_eq!(host.login_step(&mut bed, 0, None, &keys(&[("CHAP_A", "5")])).map(drop), Err(0x0201));
}

/// Guards the way out of the stage: asked for together with CHAP_A it is not granted, and what would
/// follow it is refused.
#[test]
fn no_way_out_before_the_proof() {
    for next in [1, 3] {
        let mut bed = Bed::with_chap(chap(&[ChapAlgorithm::Md5], None));
        let mut host = Initiator::new(bed.connect());
        let text = keys(&[("InitiatorName", INITIATOR), ("TargetName", IQN), ("AuthMethod", "CHAP")]);
        host.login_step(&mut bed, 0, Some(next), &text).unwrap();
        let (response, answers) =
            host.login_step(&mut bed, 0, Some(next), &keys(&[("CHAP_A", "5")])).unwrap();
        assert!(!response.transit && answers.contains_key("CHAP_C"));
        assert_eq!(host.login_step(&mut bed, 1, Some(3), &[]).map(drop), Err(0x0200));
        assert_eq!(bed.sessions(), 0);
    }
}

/// Guards names, encodings and lengths of what the initiator proves.
#[test]
fn proofs() {
    let algorithm = ChapAlgorithm::Sha256;
    let attempt = |make: &Proofs<'_>| {
        let mut bed = Bed::with_chap(chap(&[algorithm], Some(TARGET_SECRET)));
        let (mut host, _, id, challenge) = challenged(&mut bed, "7").unwrap();
        let proof = chap_response(algorithm, id, SECRET, &unhex(&challenge));
        let pairs = make(&proof);
        let pairs: Vec<(&str, &str)> =
            pairs.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        host.login_step(&mut bed, 0, Some(1), &keys(&pairs)).map(drop)
    };
    let with = |name: &str, response: String| {
        vec![("CHAP_N".to_owned(), name.to_owned()), ("CHAP_R".to_owned(), response)]
    };
    assert_eq!(attempt(&|proof| with("alice", hex(proof))), Ok(()));
    assert_eq!(attempt(&|proof| with("alice", hex(proof).to_uppercase().replacen("0X", "0x", 1))), Ok(()));
    assert_eq!(attempt(&|proof| with("alice", format!("0b{}", STANDARD.encode(proof)))), Ok(()));
    for (index, make) in [
        &(|proof: &[u8]| with("bob", hex(proof))) as &Proofs<'_>,
        &|proof| with("Alice", hex(proof)),
        &|proof| with("", hex(proof)),
        &|proof| with(&"a".repeat(4000), hex(proof)),
        &|proof| with("alice", hex(&proof[1..])),
        &|proof| with("alice", format!("{}00", hex(proof))),
        &|proof| with("alice", hex(proof).replacen("0x", "", 1)),
        &|_| with("alice", "0x".into()),
        &|_| with("alice", format!("0x{}", "00".repeat(4000))),
        &|_| with("alice", format!("0b{}", "A".repeat(4000))),
        &|proof| with("alice", hex(proof))[..1].to_vec(),
        &|proof| with("alice", hex(proof))[1..].to_vec(),
        &|proof| [with("alice", hex(proof)), with("alice", hex(proof))].concat(),
        &|proof| [with("alice", hex(proof)), vec![("CHAP_I".into(), "1".into())]].concat(),
        &|proof| [with("alice", hex(proof)), vec![("CHAP_C".into(), CHALLENGE.into())]].concat(),
        &|proof| {
            [
                with("alice", hex(proof)),
                vec![("CHAP_I".into(), "256".into()), ("CHAP_C".into(), CHALLENGE.into())],
            ]
            .concat()
        },
        &|proof| {
            [with("alice", hex(proof)), vec![("CHAP_I".into(), "1".into()), ("CHAP_C".into(), "0x".into())]]
                .concat()
        },
        &|proof| {
            [
                with("alice", hex(proof)),
                vec![("CHAP_I".into(), "1".into()), ("CHAP_C".into(), format!("0x{}", "00".repeat(1025)))],
            ]
            .concat()
        },
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(attempt(make), Err(0x0201), "case {index}");
    }
}

/// Guards against reflection: our challenge sent back, one secret for both directions, and a demand
/// that the target cannot meet.
#[test]
fn reflection() {
    let algorithm = ChapAlgorithm::Sha256;
    let mut bed = Bed::with_chap(chap(&[algorithm], Some(TARGET_SECRET)));
    let (mut host, _, id, challenge) = challenged(&mut bed, "7").unwrap();
    let proof = hex(&chap_response(algorithm, id, SECRET, &unhex(&challenge)));
    let pairs = [("CHAP_N", "alice"), ("CHAP_R", &proof), ("CHAP_I", "9"), ("CHAP_C", &challenge)];
    assert_eq!(host.login_step(&mut bed, 0, Some(1), &keys(&pairs)).map(drop), Err(0x0201));
    let mutual = [("CHAP_I", "7"), ("CHAP_C", CHALLENGE)];
    let same = chap(&[algorithm], Some(SECRET));
    assert_eq!(answer(&mut Bed::with_chap(same), algorithm, &mutual, SECRET), Err(0x0201));
    let one_way = chap(&[algorithm], None);
    assert_eq!(answer(&mut Bed::with_chap(one_way), algorithm, &mutual, SECRET), Err(0x0201));
}

/// Guards against secrets that are empty: they prove nothing, in either direction.
#[test]
fn empty_secrets() {
    let algorithm = ChapAlgorithm::Sha256;
    let mut empty = chap(&[algorithm], None);
    empty.initiator.secret = Sealed(Vec::new());
    assert_eq!(answer(&mut Bed::with_chap(empty), algorithm, &[], b""), Err(0x0201));
    let mutual = [("CHAP_I", "7"), ("CHAP_C", CHALLENGE)];
    let empty = chap(&[algorithm], Some(b""));
    assert_eq!(answer(&mut Bed::with_chap(empty), algorithm, &mutual, SECRET), Err(0x0201));
}

/// Guards against replays: each attempt gets a challenge and an identifier of its own, and the answer to
/// one is none to another.
#[test]
fn every_attempt_has_its_own_challenge() {
    let algorithm = ChapAlgorithm::Sha256;
    let mut bed = Bed::with_chap(chap(&[algorithm], None));
    let (_, _, id, challenge) = challenged(&mut bed, "7").unwrap();
    let (mut host, _, other_id, other_challenge) = challenged(&mut bed, "7").unwrap();
    assert_ne!((id, &challenge), (other_id, &other_challenge));
    assert_ne!(challenge, other_challenge);
    let old = hex(&chap_response(algorithm, id, SECRET, &unhex(&challenge)));
    let step = host.login_step(&mut bed, 0, Some(1), &keys(&[("CHAP_N", "alice"), ("CHAP_R", &old)]));
    assert_eq!(step.map(drop), Err(0x0201));
}

/// A discovery session, proven with `secret`.
fn discover(bed: &mut Bed, secret: &[u8]) -> Result<Initiator, u16> {
    let mut host = Initiator::new(bed.connect());
    let who =
        keys(&[("InitiatorName", INITIATOR), ("SessionType", "Discovery"), ("AuthMethod", "None,CHAP")]);
    host.login_step(bed, 0, Some(1), &who)?;
    let (_, told) = host.login_step(bed, 0, None, &keys(&[("CHAP_A", "7")]))?;
    let id = told["CHAP_I"].parse().unwrap();
    let response = hex(&chap_response(ChapAlgorithm::Sha256, id, secret, &unhex(&told["CHAP_C"])));
    host.login_step(bed, 0, Some(3), &keys(&[("CHAP_N", "alice"), ("CHAP_R", &response)]))?;
    Ok(host)
}

/// Guards discovery where it needs a proof: nothing is told without, whatever the targets demand, and
/// targets demand nothing because of it.
#[test]
fn discovery_needs_its_own_proof() {
    let mut map = crate::bed::map();
    map.discovery_chap = Some(chap(&[ChapAlgorithm::Sha256], None));
    let mut bed = Bed::with_map(map);
    let mut host = discover(&mut bed, SECRET).unwrap();
    let told = host.text(&mut bed, &keys(&[("SendTargets", "All")])).0;
    assert!(told.starts_with(&format!("TargetName={IQN}\n")), "{told}");
    assert_eq!(discover(&mut bed, TARGET_SECRET).map(drop), Err(0x0201));
    // Left out by stage, by method, by silence.
    assert_eq!(Initiator::new(bed.connect()).discover(&mut bed, &[]), Err(0x0201));
    for (next, method) in [(1, Some("None")), (1, None), (3, None)] {
        let mut host = Initiator::new(bed.connect());
        let mut text = keys(&[("InitiatorName", INITIATOR), ("SessionType", "Discovery")]);
        text.extend(method.map(|method| keys(&[("AuthMethod", method)])).unwrap_or_default());
        assert_eq!(host.login_step(&mut bed, 0, Some(next), &text).map(drop), Err(0x0201));
    }
    Initiator::ready(&mut bed, &[]);

    // And the other way round: a target's demands are no demands of discovery.
    let mut bed = Bed::with_chap(chap(&[ChapAlgorithm::Sha256], None));
    Initiator::new(bed.connect()).discover(&mut bed, &[]).unwrap();
    // One that comes in the middle of a login counts.
    let mut half = Initiator::new(bed.connect());
    let who = keys(&[("InitiatorName", INITIATOR), ("SessionType", "Discovery")]);
    half.login_step(&mut bed, 1, None, &who).unwrap();
    bed.apply(|map| map.discovery_chap = Some(chap(&[ChapAlgorithm::Sha256], None)));
    assert_eq!(half.login_step(&mut bed, 1, Some(3), &[]).map(drop), Err(0x0201));
}

/// Guards against guessing: five wrong answers in ten seconds, then no secret is looked at any more, not
/// even for the right one; other names, other addresses and sessions that are there do not notice.
#[test]
fn guesses_are_limited() {
    let algorithm = ChapAlgorithm::Sha256;
    let mut bed = Bed::with_chap(chap(&[algorithm], None));
    // Right ones do not count.
    for _ in 0..10 {
        assert_eq!(answer(&mut bed, algorithm, &[], SECRET), Ok(None));
    }
    for _ in 0..5 {
        assert_eq!(answer(&mut bed, algorithm, &[], b"wrong"), Err(0x0201));
    }
    let looked_at = bed.unsealed();
    assert_eq!(answer(&mut bed, algorithm, &[], b"wrong"), Err(0x0302));
    assert_eq!(answer(&mut bed, algorithm, &[], SECRET), Err(0x0302));
    assert_eq!(bed.unsealed(), looked_at);
    let attempt = |bed: &mut Bed, address: &str, name: &str| {
        let mut host = Initiator::new(bed.connect_from(address.parse().unwrap()));
        let who = keys(&[("InitiatorName", name), ("TargetName", IQN), ("AuthMethod", "CHAP")]);
        host.login_step(bed, 0, Some(1), &who)?;
        let (_, told) = host.login_step(bed, 0, None, &keys(&[("CHAP_A", "7")]))?;
        let id = told["CHAP_I"].parse().unwrap();
        let response = hex(&chap_response(algorithm, id, SECRET, &unhex(&told["CHAP_C"])));
        host.login_step(bed, 0, Some(3), &keys(&[("CHAP_N", "alice"), ("CHAP_R", &response)])).map(drop)
    };
    assert_eq!(attempt(&mut bed, "127.0.0.1", INITIATOR), Err(0x0302));
    // The name is the same however it is written.
    assert_eq!(attempt(&mut bed, "127.0.0.1", &INITIATOR.to_uppercase()), Err(0x0302));
    assert_eq!(attempt(&mut bed, "127.0.0.2", INITIATOR), Ok(()));
    assert_eq!(attempt(&mut bed, "127.0.0.1", "iqn.2026-11.org.example:another"), Ok(()));
    bed.now += std::time::Duration::from_millis(9_900);
    assert_eq!(attempt(&mut bed, "127.0.0.1", INITIATOR), Err(0x0302));
    bed.now += std::time::Duration::from_millis(100);
    assert_eq!(attempt(&mut bed, "127.0.0.1", INITIATOR), Ok(()));
}

/// Guards against guesses beside each other: challenges that were all given out before the first answer
/// are not all answered.
#[test]
fn guesses_beside_each_other_are_limited() {
    let mut bed = Bed::with_chap(chap(&[ChapAlgorithm::Sha256], None));
    let hosts: Vec<Initiator> = (0..20).map(|_| challenged(&mut bed, "7").unwrap().0).collect();
    let wrong = keys(&[("CHAP_N", "alice"), ("CHAP_R", &format!("0x{}", "00".repeat(32)))]);
    let statuses: Vec<u16> = hosts
        .into_iter()
        .map(|mut host| host.login_step(&mut bed, 0, Some(1), &wrong).map(drop).unwrap_err())
        .collect();
    assert_eq!(statuses, [[0x0201; 5].as_slice(), &[0x0302; 15]].concat());
}

/// Guards against a source of random numbers that stands still: nobody is challenged with what was seen.
#[test]
fn repeated_challenges_are_not_sent() {
    let mut bed = Bed::with_chap(chap(&[ChapAlgorithm::Sha256], None));
    bed.random = || Box::new(|bytes: &mut [u8]| bytes.fill(7));
    challenged(&mut bed, "7").unwrap();
    assert_eq!(challenged(&mut bed, "7").map(drop), Err(0x0300));
}

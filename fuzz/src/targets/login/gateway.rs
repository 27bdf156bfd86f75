//! A gateway of which only the login is seen, with an initiator in front of it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use arc_swap::ArcSwap;
use bytes::{Bytes, BytesMut};
use lunette_proto::ids::TargetId;
use lunette_proto::iscsi::target::LoginResponse;
use lunette_proto::iscsi::text;
use lunette_proto::iscsi::{Bhs, Encoder, Framer, Reply};
use lunette_proto::map::{Acl, Chap, ChapAlgorithm, ChapCredential, ClusterMap, Sealed, Target};
use lunette_target_iscsi::exports::{Change, Devices, Exports, KeepError};
use lunette_target_iscsi::scsi::Units;
use lunette_target_iscsi::session::{
    Action, Claim, Connection, Context, Endpoint, Event, Guard, Secrets, chap_response,
};
use lunette_volume::device::BlockDevice;
use zeroize::Zeroizing;

pub(super) const DISK: &str = "iqn.2026-11.io.lunette:disk";
const OTHER: &str = "iqn.2026-11.io.lunette:other";
pub(super) const USER: &str = "host";
pub(super) const TARGET_USER: &str = "target";
/// Of the initiator, of the target.
pub(super) const SECRETS: [&str; 2] = ["initiator's secret", "target's secret"];

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// What a login has to prove.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    pub(super) chap: Option<Chap>,
    pub(super) discovery_chap: Option<Chap>,
    pub(super) draining: bool,
}

impl Policy {
    pub(super) fn of(kind: u8, algorithms: u8) -> Self {
        let list = ChapAlgorithm::ALL.into_iter().enumerate();
        let mut list: Vec<_> =
            list.filter(|(at, _)| algorithms >> at & 1 == 0).map(|(_, algorithm)| algorithm).collect();
        if algorithms & 0x10 != 0 {
            list.reverse();
        }
        let credential =
            |user: &str, secret: &str| ChapCredential { user: user.into(), secret: Sealed(secret.into()) };
        let target = match kind & 3 {
            0 | 1 => None,
            2 => Some(credential(TARGET_USER, SECRETS[1])),
            _ => Some(credential(TARGET_USER, SECRETS[0])),
        };
        let initiator = credential(USER, if kind & 0x40 == 0 { SECRETS[0] } else { "" });
        let chap = Chap { initiator, target, algorithms: list };
        Self {
            chap: Some(chap.clone()).filter(|_| kind & 3 != 0),
            discovery_chap: Some(chap).filter(|_| kind & 4 != 0),
            draining: kind & 8 != 0,
        }
    }

    fn context(&self) -> Context {
        let target = |id, iqn: &str, acls| Target {
            id: TargetId(id),
            iqn: iqn.into(),
            luns: BTreeMap::new(),
            acls,
            chap: self.chap.clone(),
            draining: self.draining && id == 1,
        };
        let nobody = vec![Acl { initiator: "iqn.2026-11.org.example:nobody".into(), from: None }];
        let targets = [target(1, DISK, Vec::new()), target(2, OTHER, nobody)];
        let map = ClusterMap {
            targets: targets.map(|target| (target.id, target)).into(),
            discovery_chap: self.discovery_chap.clone(),
            ..ClusterMap::default()
        };
        let units = Units::new(Arc::new(Empty));
        Context {
            tag: 1,
            portals: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 3260))],
            exports: ArcSwap::from_pointee(Exports::new(&map, 1, &units)),
            secrets: Arc::new(Plain),
            guard: Guard::default(),
        }
    }
}

struct Empty;

impl Devices for Empty {
    fn device(&self, _: lunette_proto::ids::VolumeId) -> Option<Arc<dyn BlockDevice>> {
        None
    }

    fn keep(
        &self,
        _: lunette_proto::ids::VolumeId,
        _: Change,
        done: Box<dyn FnOnce(Result<(), KeepError>) + Send>,
    ) {
        done(Ok(()));
    }
}

/// Secrets are sealed by nothing.
struct Plain;

impl Secrets for Plain {
    fn unseal(&self, sealed: &Sealed) -> Option<Zeroizing<Vec<u8>>> {
        Some(Zeroizing::new(sealed.0.clone()))
    }
}

/// A response and its text.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) response: LoginResponse,
    pub(super) text: Bytes,
}

impl Answer {
    /// Whether one of these words is in it.
    pub(super) fn shows(&self, words: [&str; 2]) -> bool {
        words.iter().any(|word| self.text.windows(word.len()).any(|part| part == word.as_bytes()))
    }
}

/// What the target has asked the initiator to prove.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) algorithm: ChapAlgorithm,
    pub(super) id: u8,
    pub(super) challenge: Vec<u8>,
}

pub(super) struct Gateway {
    pub(super) policy: Policy,
    connection: Connection,
    to_initiator: BytesMut,
    pub(super) asked: Option<Asked>,
    /// The right response was among what was sent.
    proven: bool,
    claimed: Option<Claim>,
}

impl Gateway {
    pub(super) fn new(policy: Policy) -> Self {
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 3260));
        let endpoint =
            Endpoint { local, peer: SocketAddr::from((Ipv4Addr::LOCALHOST, 40_000)), portal: local };
        let mut seed = 0u8;
        let random = Box::new(move |bytes: &mut [u8]| {
            for byte in bytes {
                seed = seed.wrapping_mul(5).wrapping_add(77);
                *byte = seed;
            }
        });
        let connection = Connection::new(Arc::new(policy.context()), endpoint, random, *START);
        Self { policy, connection, to_initiator: BytesMut::new(), asked: None, proven: false, claimed: None }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.connection.is_closed()
    }

    pub(super) fn is_established(&self) -> bool {
        self.connection.is_established()
    }

    pub(super) fn claimed(&self) -> Option<&Claim> {
        self.claimed.as_ref()
    }

    /// Whether what was proven is enough for `claim`.
    pub(super) fn may_claim(&self, claim: &Claim) -> bool {
        let needed = match &claim.key {
            Some(key) if key.target != DISK => return false,
            Some(_) => &self.policy.chap,
            None => &self.policy.discovery_chap,
        };
        needed.is_none() || self.proven
    }

    /// The keys that answer the challenge rightly; none if there is none.
    pub(super) fn proof(&mut self) -> Vec<u8> {
        let Some(Asked { algorithm, id, challenge }) = self.asked.take() else { return Vec::new() };
        self.proven = true;
        let response = chap_response(algorithm, id, SECRETS[0].as_bytes(), &challenge);
        format!("CHAP_N={USER}\0CHAP_R=0x{}\0", hex(&response)).into_bytes()
    }

    /// Sends a PDU in pieces of `step` bytes, and gives what comes back. A claim is granted, or refused.
    pub(super) fn send(&mut self, bhs: Bhs, text: &[u8], step: usize, grants: bool) -> Vec<Answer> {
        let mut slices: Vec<Bytes> = Vec::new();
        // What a header says of additional segments is for the segments to say.
        Encoder::default().encode(bhs, &[], &[Bytes::copy_from_slice(text)], &mut slices);
        let wire = slices.concat();
        let mut buffer = BytesMut::new();
        for part in wire.chunks(if step == 0 { wire.len() } else { step.max(8) }) {
            buffer.extend_from_slice(part);
            if self.connection.wants_bytes() {
                self.connection.handle_bytes(*START, &mut buffer);
            }
        }
        while let Some(action) = self.connection.poll_action() {
            if let Action::Claim(claim) = action {
                assert!(self.may_claim(&claim), "not proven, or not admitted: {claim:?}");
                let event = if grants {
                    Event::Granted { tsih: 1, session: None }
                } else {
                    Event::Refused { status: lunette_proto::iscsi::codes::login::TOO_MANY_CONNECTIONS }
                };
                self.claimed = Some(claim);
                self.connection.handle_event(*START, event);
            } else {
                assert!(matches!(action, Action::Established(_)), "nothing else is done in a login");
            }
        }
        self.receive()
    }

    fn receive(&mut self) -> Vec<Answer> {
        self.connection.fill();
        while let Some(slice) = self.connection.pop() {
            self.to_initiator.extend_from_slice(&slice);
            self.connection.fill();
        }
        let framer = Framer::new(8192);
        let mut answers = Vec::new();
        while let Some(pdu) = framer.next(&mut self.to_initiator).expect("the target frames well") {
            let Reply::Login(response) = Reply::decode(&pdu.bhs) else { panic!("{:?}", pdu.bhs) };
            self.learn(&pdu.data);
            answers.push(Answer { response, text: pdu.data });
        }
        assert!(self.to_initiator.is_empty());
        answers
    }

    /// Remembers a challenge.
    fn learn(&mut self, answer: &[u8]) {
        let pairs = text::parse(answer).expect("answers are text");
        let find = |wanted: &str| pairs.iter().find(|(key, _)| *key == wanted).map(|(_, value)| *value);
        let (Some(algorithm), Some(id), Some(challenge)) = (find("CHAP_A"), find("CHAP_I"), find("CHAP_C"))
        else {
            return;
        };
        let is_it = |one: &ChapAlgorithm| one.number().to_string() == algorithm;
        self.asked = Some(Asked {
            algorithm: ChapAlgorithm::ALL.into_iter().find(is_it).expect("it is one that exists"),
            id: id.parse().expect("a number"),
            challenge: unhex(challenge.strip_prefix("0x").expect("in hexadecimal")).expect("digits"),
        });
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What hexadecimal digits stand for; of an odd number the first has a zero before it.
pub(super) fn unhex(digits: &str) -> Option<Vec<u8>> {
    let mut nibbles: Vec<u32> = digits.chars().map(|digit| digit.to_digit(16)).collect::<Option<_>>()?;
    if nibbles.len() % 2 == 1 {
        nibbles.insert(0, 0);
    }
    Some(nibbles.chunks(2).map(|pair| (pair[0] * 16 + pair[1]) as u8).collect())
}

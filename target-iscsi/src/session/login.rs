//! Login phase (RFC 7143 sections 6 and 13).
//!
//! ```text
//! First --> Security ----> Operational ----> Done     An initiator may start at Operational,
//!               \_________________________/           or go from Security straight to Done.
//! ```
//!
//! Consumes Login Requests, emits Login Responses. Knows nothing of sockets or of SCSI. A failed
//! login yields no state: the caller can only send the status and close the connection.

use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use lunette_proto::iscsi::codes::{login as status, stage};
use lunette_proto::iscsi::initiator::LoginRequest;
use lunette_proto::iscsi::target::LoginResponse;
use lunette_proto::iscsi::text::{self, Gather};
use lunette_proto::limits::ISCSI_NAME_BYTES_MAX;
use lunette_proto::map::Chap;

use super::chap::Challenge;
use super::negotiate::{Settings, declare};
use super::registry::{Claim, SessionKey};
use super::{Context, Endpoint};
use crate::exports::{Admission, Claimant};
use crate::scsi::TargetView;

type Pairs<'a> = [(&'a str, &'a str)];

/// A login in progress.
pub(super) struct Login {
    gather: Gather,
    fixed: Option<Fixed>,
    stage: Stage,
}

/// What must not change from request to request.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Fixed {
    isid: [u8; 6],
    tsih: u16,
    cid: u16,
    task_tag: u32,
}

enum Stage {
    First,
    Security(Who, Auth),
    Operational(Operational),
}

/// Who logs in to what.
#[derive(Clone)]
pub(super) struct Who {
    pub(super) initiator: String,
    /// `None`: a discovery session.
    pub(super) target: Option<Arc<TargetView>>,
    pub(super) chap: Option<Arc<Chap>>,
    /// CHAP_N, once proven.
    pub(super) user: Option<String>,
}

enum Auth {
    /// AuthMethod has not been negotiated.
    Undecided,
    /// CHAP was chosen; CHAP_A comes next.
    Algorithm,
    /// A challenge was sent.
    Response(Challenge),
    /// Proven, or nothing to prove.
    Done,
}

struct Operational {
    who: Who,
    settings: Settings,
    /// MaxRecvDataSegmentLength has been declared.
    declared: bool,
}

/// A login that is through, but for the registry's word.
pub(super) struct Accepted {
    pub(super) who: Who,
    pub(super) settings: Settings,
    /// The longer data segment was declared.
    pub(super) declared: bool,
    pub(super) isid: [u8; 6],
    pub(super) cid: u16,
    pub(super) claim: Claim,
    /// The last response, without TSIH.
    pub(super) response: LoginResponse,
    pub(super) text: Bytes,
}

/// What a login sees of the gateway around it.
pub(super) struct Surroundings<'a> {
    pub(super) context: &'a Context,
    pub(super) endpoint: &'a Endpoint,
    pub(super) random: &'a mut dyn FnMut(&mut [u8]),
    pub(super) now: Instant,
}

/// What comes of a request.
pub(super) enum Progress {
    /// Send this and wait for the next request.
    Continue(Box<Login>, LoginResponse, Bytes),
    /// Through.
    Done(Box<Accepted>),
}

/// A login that failed, by status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("login status {0:04x}: {1}")]
pub(super) struct Failure(pub(super) u16, pub(super) &'static str);

impl Failure {
    fn protocol(why: &'static str) -> Self {
        Self(status::INITIATOR_ERROR, why)
    }
}

/// What a stage did with its keys.
struct Turned {
    stage: Stage,
    /// Whether the stage may be left now.
    may_leave: bool,
}

impl Login {
    pub(super) fn new() -> Self {
        Self { gather: Gather::default(), fixed: None, stage: Stage::First }
    }

    /// Whether no request has come.
    pub(super) fn is_new(&self) -> bool {
        self.fixed.is_none()
    }

    /// Consumes the state: a login that failed cannot be driven further.
    pub(super) fn handle(
        mut self,
        request: &LoginRequest,
        data: &Bytes,
        around: &mut Surroundings<'_>,
    ) -> Result<Progress, Failure> {
        self.check_header(request)?;
        let mut response = LoginResponse {
            stage: request.stage,
            isid: request.isid,
            tsih: request.tsih,
            task_tag: request.task_tag,
            ..LoginResponse::default()
        };
        let too_long = |_| Failure::protocol("the text is too long");
        let Some(gathered) = self.gather.take(data, request.continued).map_err(too_long)? else {
            // More text comes: an empty answer asks for it (RFC 7143 6.2).
            return Ok(Progress::Continue(Box::new(self), response, Bytes::new()));
        };
        let pairs = text::parse(&gathered).map_err(|_| Failure::protocol("malformed text"))?;
        let mut out = BytesMut::new();
        let stage = match self.stage {
            Stage::First => first(request, &pairs, around, &mut out)?,
            stage => stage,
        };
        let turned = match stage {
            Stage::Security(who, auth) => security(who, auth, request, &pairs, around, &mut out)?,
            Stage::Operational(state) => operational(state, &pairs, &mut out)?,
            Stage::First => return Err(Failure(status::TARGET_ERROR, "no stage follows the first")),
        };
        self.stage = turned.stage;
        if !(request.transit && turned.may_leave) {
            return Ok(Progress::Continue(Box::new(self), response, out.freeze()));
        }
        response.transit = true;
        response.next_stage = request.next_stage;
        if request.next_stage == stage::FULL_FEATURE {
            return Ok(Progress::Done(Box::new(self.accept(
                request,
                response,
                out.freeze(),
                around.context,
            )?)));
        }
        if let Stage::Security(who, _) = self.stage {
            self.stage = Stage::Operational(Operational::new(who));
        }
        Ok(Progress::Continue(Box::new(self), response, out.freeze()))
    }

    fn check_header(&mut self, request: &LoginRequest) -> Result<(), Failure> {
        let fixed =
            Fixed { isid: request.isid, tsih: request.tsih, cid: request.cid, task_tag: request.task_tag };
        if request.version_min > 0 {
            return Err(Failure(status::VERSION, "only version 0 is spoken"));
        }
        if *self.fixed.get_or_insert(fixed) != fixed {
            return Err(Failure::protocol("ISID, TSIH, CID or task tag changed"));
        }
        if request.transit && request.continued {
            return Err(Failure::protocol("T and C exclude each other"));
        }
        let current = match self.stage {
            Stage::First if request.stage <= stage::OPERATIONAL => request.stage,
            Stage::First | Stage::Security(..) => stage::SECURITY,
            Stage::Operational(_) => stage::OPERATIONAL,
        };
        if request.stage != current {
            return Err(Failure::protocol("wrong stage"));
        }
        let forward = request.next_stage > current
            && matches!(request.next_stage, stage::OPERATIONAL | stage::FULL_FEATURE);
        if request.transit && !forward {
            return Err(Failure::protocol("no such transition"));
        }
        Ok(())
    }

    fn accept(
        self,
        request: &LoginRequest,
        response: LoginResponse,
        text: Bytes,
        context: &Context,
    ) -> Result<Accepted, Failure> {
        let (who, settings, declared) = match self.stage {
            Stage::Operational(state) => (state.who, state.settings, state.declared),
            Stage::Security(who, Auth::Done) => (who, Settings::default(), false),
            Stage::First | Stage::Security(..) => {
                return Err(Failure(status::TARGET_ERROR, "accepted before security was done"));
            }
        };
        let key = who.target.as_ref().map(|view| SessionKey {
            initiator: who.initiator.clone(),
            isid: request.isid,
            target: view.iqn.clone(),
            tag: context.tag,
        });
        let claim = Claim { key, tsih: request.tsih, cid: request.cid };
        let (isid, cid) = (request.isid, request.cid);
        Ok(Accepted { who, settings, declared, isid, cid, claim, response, text })
    }
}

/// The keys that only the first request carries (RFC 7143 6.3.1): who, to what, which kind.
fn first(
    request: &LoginRequest,
    pairs: &Pairs<'_>,
    around: &Surroundings<'_>,
    out: &mut BytesMut,
) -> Result<Stage, Failure> {
    let (context, endpoint) = (around.context, around.endpoint);
    for key in ["InitiatorName", "TargetName", "SessionType"] {
        if pairs.iter().filter(|(name, _)| *name == key).count() > 1 {
            return Err(Failure::protocol("a key came twice (RFC 7143 6.3)"));
        }
    }
    let find = |key: &str| pairs.iter().find(|(name, _)| *name == key).map(|(_, value)| *value);
    let missing = |why| Failure(status::MISSING_PARAMETER, why);
    let initiator = find("InitiatorName").ok_or(missing("InitiatorName is missing"))?;
    // Names go to logs and lists: nothing in them may look like a line of its own.
    let is_text = |letter: char| !letter.is_control() && !letter.is_whitespace();
    if initiator.is_empty() || initiator.len() > ISCSI_NAME_BYTES_MAX || !initiator.chars().all(is_text) {
        return Err(Failure::protocol("InitiatorName is no iSCSI name"));
    }
    let claimant = Claimant {
        initiator: initiator.to_lowercase(),
        peer: endpoint.peer.ip(),
        local: endpoint.local.ip(),
    };
    let mut who = Who { initiator: claimant.initiator.clone(), target: None, chap: None, user: None };
    match find("SessionType").unwrap_or("Normal") {
        "Discovery" => who.chap = context.exports.load().discovery_chap(),
        "Normal" => {
            let name = find("TargetName").ok_or(missing("TargetName is missing"))?;
            let exports = context.exports.load();
            match exports.admit(name, &claimant) {
                Admission::NotFound => return Err(Failure(status::NOT_FOUND, "no such target")),
                Admission::Forbidden => return Err(Failure(status::AUTHORIZATION, "not admitted")),
                Admission::Admitted(export) if export.is_draining() => {
                    return Err(Failure(status::UNAVAILABLE, "the target is being drained"));
                }
                Admission::Admitted(export) => {
                    who.target = Some(Arc::clone(&export.view));
                    who.chap.clone_from(&export.chap);
                }
            }
            text::push(out, "TargetPortalGroupTag", &context.tag.to_string());
        }
        _ => return Err(Failure(status::SESSION_TYPE, "unknown session type")),
    }
    if request.stage == stage::SECURITY {
        return Ok(Stage::Security(who, Auth::Undecided));
    }
    if who.chap.is_some() {
        return Err(Failure(status::AUTHENTICATION, "authentication was left out"));
    }
    Ok(Stage::Operational(Operational::new(who)))
}

/// Whether a key names the parties. Some initiators repeat those in later requests; only their first value counts, so a
/// different one is refused.
fn is_identity(who: &Who, key: &str, value: &str) -> Result<bool, Failure> {
    let same = match key {
        "InitiatorName" => value.to_lowercase() == who.initiator,
        "TargetName" => who.target.as_ref().is_none_or(|view| view.iqn.eq_ignore_ascii_case(value)),
        "SessionType" => (value == "Discovery") == who.target.is_none(),
        _ => return Ok(false),
    };
    if same { Ok(true) } else { Err(Failure::protocol("the parties changed during login")) }
}

fn security(
    mut who: Who,
    mut auth: Auth,
    request: &LoginRequest,
    pairs: &Pairs<'_>,
    around: &mut Surroundings<'_>,
    out: &mut BytesMut,
) -> Result<Turned, Failure> {
    let mut keys: Vec<(&str, &str)> = Vec::new();
    for (key, value) in pairs {
        if is_identity(&who, key, value)? || *key == "InitiatorAlias" {
        } else if *key == "AuthMethod" || key.starts_with("CHAP_") {
            keys.push((key, value));
        } else if Settings::is_operational(key) {
            text::push(out, key, "Reject");
        } else {
            text::push(out, key, "NotUnderstood");
        }
    }
    if !keys.is_empty() || request.transit {
        auth = authenticate(&mut who, auth, &keys, around, out)?;
    }
    let may_leave = matches!(auth, Auth::Done);
    Ok(Turned { stage: Stage::Security(who, auth), may_leave })
}

fn authenticate(
    who: &mut Who,
    auth: Auth,
    keys: &Pairs<'_>,
    around: &mut Surroundings<'_>,
    out: &mut BytesMut,
) -> Result<Auth, Failure> {
    let guard = &around.context.guard;
    let refused = |why| Failure(status::AUTHENTICATION, why);
    let chap = who.chap.clone();
    match (auth, keys, chap) {
        (Auth::Undecided, [("AuthMethod", offers)], chap) => {
            let wanted = if chap.is_some() { "CHAP" } else { "None" };
            if !offers.split(',').any(|offer| offer == wanted) {
                return Err(refused("no authentication method in common"));
            }
            text::push(out, "AuthMethod", wanted);
            Ok(if chap.is_some() { Auth::Algorithm } else { Auth::Done })
        }
        (Auth::Undecided, [], None) => Ok(Auth::Done),
        (Auth::Algorithm, [("CHAP_A", offers)], Some(chap)) => {
            let challenge = Challenge::begin(&chap, offers, around.random, out)
                .map_err(|_| refused("no CHAP algorithm in common"))?;
            if !guard.is_fresh(challenge.bytes()) {
                return Err(Failure(status::TARGET_ERROR, "the source of challenges repeats itself"));
            }
            Ok(Auth::Response(challenge))
        }
        (Auth::Response(challenge), keys, Some(chap)) => {
            // Not a verdict on the secret, so the initiator is to try again: it may have the right one.
            let attempt = guard
                .attempt(around.now, around.endpoint.peer.ip(), &who.initiator)
                .ok_or(Failure(status::OUT_OF_RESOURCES, "too many failed attempts"))?;
            let user = challenge.finish(&chap, keys, &*around.context.secrets, out).map_err(|error| {
                tracing::warn!(initiator = %who.initiator, %error, "CHAP failed");
                refused("CHAP failed")
            })?;
            guard.succeeded(&attempt);
            who.user = Some(user);
            Ok(Auth::Done)
        }
        (Auth::Done, [], _) => Ok(Auth::Done),
        _ => Err(refused("authentication keys out of turn")),
    }
}

impl Operational {
    fn new(who: Who) -> Self {
        Self { who, settings: Settings::default(), declared: false }
    }
}

fn operational(mut state: Operational, pairs: &Pairs<'_>, out: &mut BytesMut) -> Result<Turned, Failure> {
    let discovery = state.who.target.is_none();
    for (key, value) in pairs {
        if is_identity(&state.who, key, value)? {
            continue;
        }
        if *key == "AuthMethod" || key.starts_with("CHAP_") {
            return Err(Failure::protocol("authentication keys in the operational stage"));
        }
        let negotiated = state.settings.negotiate(key, value, discovery, out);
        negotiated.map_err(|_| Failure::protocol("invalid negotiation"))?;
    }
    if !state.declared {
        state.declared = true;
        declare(out);
    }
    Ok(Turned { stage: Stage::Operational(state), may_leave: true })
}

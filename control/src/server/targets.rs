//! Targets. CHAP secrets are checked and sealed here; past this file nothing holds one in clear.

use std::net::IpAddr;

use ipnet::IpNet;
use lunette_proto::limits::ISCSI_NAME_BYTES_MAX;
use lunette_proto::map::{self, Chap, ChapAlgorithm, ChapCredential};
use tonic::{Request, Response, Status};
use zeroize::Zeroizing;

use super::Context;
use super::errors::{internal, invalid, rejected};
use super::view::{algorithm_name, discovery_chap};
use crate::api::admin::targets_server::Targets;
use crate::api::admin::{
    Acl, AllowRequest, ClearChapRequest, ClearDiscoveryChapRequest, ClearDiscoveryChapResponse,
    CreateTargetRequest, DeleteTargetRequest, DeleteTargetResponse, DenyRequest, DiscoveryChap, DrainRequest,
    GetTargetRequest, ListTargetsRequest, ListTargetsResponse, MapLunRequest, SetChapRequest,
    SetDiscoveryChapRequest, Target, UnmapLunRequest,
};
use crate::seal::DISCOVERY;
use crate::state::{Command, NameKind, Rejection, Response as Outcome, State};

/// RFC 7143 9.2.1 asks for 96 bits at least.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 12..=255;

impl Context {
    fn target_view(&self, state: &State, iqn: &str) -> Result<Target, Status> {
        let target = state.map().target_by_iqn(iqn).ok_or_else(|| not_found(iqn))?;
        Ok(self.look(state, |view| view.target(target)))
    }

    /// Carries out a command that answers with the target.
    async fn run_on_target(&self, command: Command) -> Result<Response<Target>, Status> {
        let committed = self.run(command).await?;
        let state = self.published.state();
        let target = match committed.response {
            Outcome::Target(id) => self.look(&state, |view| view.target_by_id(id)),
            _ => None,
        };
        // It was there when the command was applied: another has deleted it since.
        target.map(Response::new).ok_or_else(|| not_found("that was just changed"))
    }

    /// Checks and seals what a target, or whoever serves discovery, shall ask for.
    fn sealed_chap(&self, place: &str, asked: &Asked<'_>) -> Result<Chap, Status> {
        let wrong = |rejection| rejected(&rejection);
        let algorithms = chap_algorithms(asked.algorithms).map_err(wrong)?;
        let mutual = check_secrets(asked.secret, asked.mutual_user, asked.mutual_secret).map_err(wrong)?;
        let target = match mutual {
            true => Some(self.seal(place, asked.mutual_user, asked.mutual_secret.as_bytes())?),
            false => None,
        };
        let initiator = self.seal(place, asked.user, asked.secret.as_bytes())?;
        Ok(Chap { initiator, target, algorithms })
    }

    fn seal(&self, iqn: &str, user: &str, secret: &[u8]) -> Result<ChapCredential, Status> {
        let sealed = self.sealer.seal(iqn, user, secret);
        let secret = sealed.map_err(|error| internal("a secret could not be sealed", &error))?;
        Ok(ChapCredential { user: user.to_owned(), secret })
    }
}

/// CHAP as a request asks for it, with its secrets in clear.
struct Asked<'a> {
    user: &'a str,
    secret: &'a str,
    mutual_user: &'a str,
    mutual_secret: &'a str,
    algorithms: &'a [String],
}

fn not_found(iqn: &str) -> Status {
    let name = iqn.chars().take(ISCSI_NAME_BYTES_MAX).collect();
    rejected(&Rejection::NotFound { kind: NameKind::Target, name })
}

#[tonic::async_trait]
impl Targets for Context {
    async fn create(&self, request: Request<CreateTargetRequest>) -> Result<Response<Target>, Status> {
        let iqn = request.into_inner().iqn;
        self.run_on_target(Command::CreateTarget { iqn: (!iqn.is_empty()).then_some(iqn) }).await
    }

    async fn list(&self, _: Request<ListTargetsRequest>) -> Result<Response<ListTargetsResponse>, Status> {
        let state = self.state().await?;
        let all = state.map().targets.values();
        let mut targets: Vec<Target> =
            self.look(&state, |view| all.map(|target| view.target(target)).collect());
        targets.sort_by(|one, other| one.iqn.cmp(&other.iqn));
        Ok(Response::new(ListTargetsResponse { targets }))
    }

    async fn get(&self, request: Request<GetTargetRequest>) -> Result<Response<Target>, Status> {
        let state = self.state().await?;
        self.target_view(&state, &request.get_ref().iqn).map(Response::new)
    }

    async fn delete(
        &self,
        request: Request<DeleteTargetRequest>,
    ) -> Result<Response<DeleteTargetResponse>, Status> {
        self.run(Command::DeleteTarget { iqn: request.into_inner().iqn }).await?;
        Ok(Response::new(DeleteTargetResponse {}))
    }

    async fn map(&self, request: Request<MapLunRequest>) -> Result<Response<Target>, Status> {
        let MapLunRequest { iqn, volume, lun, read_only } = request.into_inner();
        self.run_on_target(Command::MapLun { iqn, volume, lun, read_only }).await
    }

    async fn unmap(&self, request: Request<UnmapLunRequest>) -> Result<Response<Target>, Status> {
        let UnmapLunRequest { iqn, volume } = request.into_inner();
        self.run_on_target(Command::UnmapLun { iqn, volume }).await
    }

    async fn allow(&self, request: Request<AllowRequest>) -> Result<Response<Target>, Status> {
        let AllowRequest { iqn, acl } = request.into_inner();
        self.run_on_target(Command::Allow { iqn, acl: access(acl)? }).await
    }

    async fn deny(&self, request: Request<DenyRequest>) -> Result<Response<Target>, Status> {
        let DenyRequest { iqn, acl } = request.into_inner();
        self.run_on_target(Command::Deny { iqn, acl: access(acl)? }).await
    }

    async fn set_chap(&self, request: Request<SetChapRequest>) -> Result<Response<Target>, Status> {
        let SetChapRequest { iqn, user, secret, mutual_user, mutual_secret, algorithms } =
            request.into_inner();
        let (secret, mutual_secret) = (Zeroizing::new(secret), Zeroizing::new(mutual_secret));
        // Sealed for the name that the target bears, however the request spells it.
        let state = self.state().await?;
        let iqn = state.map().target_by_iqn(&iqn).ok_or_else(|| not_found(&iqn))?.iqn.clone();
        let asked = Asked {
            user: &user,
            secret: &secret,
            mutual_user: &mutual_user,
            mutual_secret: &mutual_secret,
            algorithms: &algorithms,
        };
        let chap = self.sealed_chap(&iqn, &asked)?;
        self.run_on_target(Command::SetChap { iqn, chap }).await
    }

    async fn clear_chap(&self, request: Request<ClearChapRequest>) -> Result<Response<Target>, Status> {
        self.run_on_target(Command::ClearChap { iqn: request.into_inner().iqn }).await
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<Target>, Status> {
        let DrainRequest { iqn, draining } = request.into_inner();
        self.run_on_target(Command::SetDraining { iqn, draining }).await
    }

    async fn set_discovery_chap(
        &self,
        request: Request<SetDiscoveryChapRequest>,
    ) -> Result<Response<DiscoveryChap>, Status> {
        let SetDiscoveryChapRequest { user, secret, mutual_user, mutual_secret, algorithms } =
            request.into_inner();
        let (secret, mutual_secret) = (Zeroizing::new(secret), Zeroizing::new(mutual_secret));
        let asked = Asked {
            user: &user,
            secret: &secret,
            mutual_user: &mutual_user,
            mutual_secret: &mutual_secret,
            algorithms: &algorithms,
        };
        let chap = self.sealed_chap(DISCOVERY, &asked)?;
        let answer = discovery_chap(&chap);
        self.run(Command::SetDiscoveryChap { chap: Some(chap) }).await?;
        Ok(Response::new(answer))
    }

    async fn clear_discovery_chap(
        &self,
        _: Request<ClearDiscoveryChapRequest>,
    ) -> Result<Response<ClearDiscoveryChapResponse>, Status> {
        self.run(Command::SetDiscoveryChap { chap: None }).await?;
        Ok(Response::new(ClearDiscoveryChapResponse {}))
    }
}

fn access(acl: Option<Acl>) -> Result<map::Acl, Status> {
    let Acl { initiator, from } =
        acl.ok_or_else(|| invalid("acl", "ACL_MISSING", "the access entry is missing"))?;
    let from = match from.as_str() {
        "" => None,
        text => Some(
            parse_range(text)
                .ok_or_else(|| rejected(&Rejection::AclFrom { text: text.chars().take(64).collect() }))?,
        ),
    };
    Ok(map::Acl { initiator, from })
}

/// A range, or a single address.
fn parse_range(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

fn chap_algorithms(names: &[String]) -> Result<Vec<ChapAlgorithm>, Rejection> {
    if names.is_empty() {
        return Ok(ChapAlgorithm::ALL.to_vec());
    }
    let mut algorithms = Vec::new();
    for name in names {
        let named = ChapAlgorithm::ALL.into_iter().find(|algorithm| algorithm_name(*algorithm) == name);
        match named {
            Some(algorithm) if !algorithms.contains(&algorithm) => algorithms.push(algorithm),
            _ => return Err(Rejection::ChapAlgorithm { text: name.chars().take(32).collect() }),
        }
    }
    Ok(algorithms)
}

/// Whether the target shall prove itself too.
fn check_secrets(secret: &str, mutual_user: &str, mutual_secret: &str) -> Result<bool, Rejection> {
    check_secret("secret", secret)?;
    match (mutual_user.is_empty(), mutual_secret.is_empty()) {
        (true, true) => Ok(false),
        (false, false) => {
            check_secret("mutual_secret", mutual_secret)?;
            if secret == mutual_secret { Err(Rejection::ChapSame) } else { Ok(true) }
        }
        _ => Err(Rejection::ChapMutualHalf),
    }
}

fn check_secret(field: &str, secret: &str) -> Result<(), Rejection> {
    let printable = secret.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if SECRET_BYTES.contains(&secret.len()) && printable {
        Ok(())
    } else {
        Err(Rejection::ChapSecret { field: field.to_owned() })
    }
}

//! How machines come to the cluster and to its control plane, and how members of it come and go.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lunette_proto::map::{Sealed, TokenId};
use tokio::time::sleep;
use tonic::{Code, Status};

use super::Context;
use super::errors::{internal, invalid, status, unavailable};
use super::members::unexpected;
use crate::join::JoinToken;
use crate::raft::{ChangeError, MembershipError};
use crate::state::{Command, Response as Outcome};

/// How long a token admits unless told otherwise, and at most.
const TTL_DEFAULT: Duration = Duration::from_secs(3600);
const TTL_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// Before the founding is proposed again, when consensus did not answer.
const PAUSE: Duration = Duration::from_millis(50);
/// Members that may listen to the log without a vote.
const MEMBERS_MAX: usize = 16;
/// Characters of an address.
const ADDRESS_CHARS_MAX: usize = 255;

impl Context {
    /// Founds the cluster if this member is the first of it: gives the map its id. Until then nobody is served.
    pub(super) async fn found(self: Arc<Self>) {
        let mut leading = self.consensus.leading();
        loop {
            tokio::select! {
                led = leading.wait_for(|leading| *leading) => if led.is_err() { return },
                () = self.stop.cancelled() => return,
            }
            let cluster = self.cluster;
            // What an earlier leader has committed is seen first.
            let founded = self.consensus.read_barrier().await.is_ok()
                && self.published.state().map().cluster == cluster;
            if founded {
                return;
            }
            match self.consensus.propose(Command::Found { cluster }).await {
                Ok(_) => return,
                Err(error) => tracing::debug!(%error, "the cluster is not founded yet"),
            }
            tokio::select! {
                () = sleep(PAUSE) => {}
                () = self.stop.cancelled() => return,
            }
        }
    }

    pub(super) async fn new_control_member(&self) -> Result<u64, Status> {
        match self.run(Command::NewMember).await?.response {
            Outcome::Member(member) => Ok(member),
            other => Err(unexpected(&other)),
        }
    }

    /// A member is there, and is given the log unless it is already.
    pub(super) async fn join_control(&self, member: u64, address: String) -> Result<(), Status> {
        let state = self.state().await?;
        let port = address.rsplit_once(':').map(|(host, port)| (host.is_empty(), port.parse::<u16>()));
        let reachable = matches!(port, Some((false, Ok(port))) if port > 0);
        if !reachable || address.chars().count() > ADDRESS_CHARS_MAX {
            return Err(invalid("address", "ADDRESS_INVALID", "a member's address is HOST:PORT"));
        }
        if member == 0 || member > state.map().joins.last_member.max(1) {
            let sentence = format!("no member {member} of the control plane was ever given out");
            return Err(status(Code::NotFound, "MEMBER_NOT_FOUND", sentence));
        }
        let metrics = self.consensus.metrics();
        if let Some(known) = metrics.members.iter().find(|known| known.id == member) {
            // One that is alone has nobody who would look for it, and says itself where it is.
            if known.address == address || metrics.members.len() == 1 {
                return Ok(());
            }
            let sentence = format!(
                "member {member} of the control plane is known at {}, not at {address}; a member's address cannot change: replace it by a new one",
                known.address
            );
            return Err(status(Code::FailedPrecondition, "MEMBER_MOVED", sentence));
        }
        if let Some(taken) = metrics.members.iter().find(|known| known.address == address) {
            let sentence = format!(
                "member {} of the control plane is known at {address}; remove it first: lunette cluster member replace {} --with {member}",
                taken.id, taken.id
            );
            // The old one may have lost its folder, and the new one is what takes its place: it may listen.
            tracing::warn!(member, "{sentence}");
        }
        if metrics.members.len() >= MEMBERS_MAX {
            let sentence = format!("the control plane has {MEMBERS_MAX} members already; remove some first");
            return Err(status(Code::ResourceExhausted, "LIMIT_REACHED", sentence));
        }
        self.consensus.add_learner(member, address).await.map_err(|error| unavailable(&error))
    }

    pub(super) async fn change_members(&self, add: Vec<u64>, remove: Vec<u64>) -> Result<(), Status> {
        let (add, remove) = (BTreeSet::from_iter(add), BTreeSet::from_iter(remove));
        self.consensus.change_members(add, remove).await.map_err(|error| match error {
            ChangeError::Consensus(error) => unavailable(&error),
            ChangeError::Refused(error @ MembershipError::Unknown { .. }) => {
                status(Code::NotFound, "MEMBER_NOT_FOUND", error.to_string())
            }
            ChangeError::Refused(error @ (MembershipError::Nothing | MembershipError::Both { .. })) => {
                invalid("add", "MEMBERS_INVALID", error.to_string())
            }
            ChangeError::Refused(error) => status(Code::FailedPrecondition, "MEMBERS", error.to_string()),
        })
    }

    /// A new token's text, and when it expires.
    pub(super) async fn new_token(&self, ttl_ms: u64) -> Result<(String, u64), Status> {
        let ttl = if ttl_ms == 0 { TTL_DEFAULT } else { Duration::from_millis(ttl_ms) };
        if ttl > TTL_MAX {
            let sentence = format!("a join token admits for at most {} days", TTL_MAX.as_secs() / 86_400);
            return Err(invalid("ttl_ms", "TTL_INVALID", sentence));
        }
        let failed = |error| internal("a join token cannot be made", &error);
        let token = JoinToken::draw(self.cluster).map_err(failed)?;
        let key = token.seal(&self.sealer).map_err(failed)?;
        let now_unix_ms = now_unix_ms();
        let expires_unix_ms = now_unix_ms.saturating_add(millis(ttl));
        let kept = lunette_proto::map::JoinToken { expires_unix_ms, used: false, key };
        self.run(Command::AddToken { id: token.id(), token: kept, now_unix_ms }).await?;
        Ok((token.text().to_string(), expires_unix_ms))
    }

    pub(super) async fn use_token(&self, id: &[u8]) -> Result<Sealed, Status> {
        let id: [u8; 32] = id
            .try_into()
            .map_err(|_| invalid("id", "TOKEN_INVALID", "the hash of a join token has 32 bytes"))?;
        let id = TokenId(id);
        match self.run(Command::UseToken { id, now_unix_ms: now_unix_ms() }).await?.response {
            Outcome::Key(key) => {
                tracing::info!(token = ?id, "a machine has joined by a token");
                Ok(key)
            }
            other => Err(unexpected(&other)),
        }
    }
}

fn now_unix_ms() -> u64 {
    // A clock before 1970 makes tokens that admit nobody.
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, millis)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

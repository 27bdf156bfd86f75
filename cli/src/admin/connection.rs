//! Where the control plane is, and a connection to it.

use std::fmt;
use std::net::Ipv6Addr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use lunette_control::api::admin::cluster_client::ClusterClient;
use lunette_control::api::admin::disks_client::DisksClient;
use lunette_control::api::admin::nodes_client::NodesClient;
use lunette_control::api::admin::pools_client::PoolsClient;
use lunette_control::api::admin::sessions_client::SessionsClient;
use lunette_control::api::admin::targets_client::TargetsClient;
use lunette_control::api::admin::volumes_client::VolumesClient;
use lunette_control::api::admin::{LeaderRequest, ListSessionsRequest};
use lunette_control::client::AdminClients;
use tokio::time::Instant;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::failure;

/// Environment variable that names the address.
pub(crate) const VARIABLE: &str = "LUNETTE_ADMIN";
/// Where the control plane listens unless told otherwise.
pub(crate) const DEFAULT_PORT: u16 = 7400;
/// A control plane that does not take a connection by then is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// An election takes a second or two.
const LEADER_PATIENCE: Duration = Duration::from_secs(10);
const LEADER_POLL: Duration = Duration::from_millis(100);
/// Members that are asked, and how often one may name another.
const MEMBERS_MAX: usize = 16;
const HOPS_MAX: usize = 3;
/// An answer takes milliseconds; with no quorum the server itself says so earlier.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// `http://HOST:PORT` of a control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    url: String,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

impl Address {
    /// From `--admin`, else the environment, else the default; one or more, with commas between them.
    pub(crate) fn of(option: Option<&str>) -> Result<Vec<Self>> {
        let several =
            |text: &str| text.split(',').map(|text| Self::parse(text.trim())).collect::<Result<Vec<_>>>();
        match (option, std::env::var(VARIABLE)) {
            (Some(text), _) => several(text).with_context(|| format!("--admin {text}")),
            (None, Ok(text)) if !text.is_empty() => {
                several(&text).with_context(|| format!("{VARIABLE}={text}"))
            }
            _ => several("127.0.0.1"),
        }
    }

    /// `http://HOST:PORT`, `HOST:PORT` or `HOST`.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let wrong = || anyhow!("'{text}' is no address: write http://HOST:PORT or HOST:PORT");
        let rest = match text.split_once("://") {
            Some(("http", rest)) => rest,
            Some((scheme, _)) => bail!("'{scheme}' is not served: write http://HOST:PORT"),
            None => text,
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = match rest.rsplit_once(':') {
            // The last colon of an IPv6 address without a port is inside its brackets.
            Some((host, port)) if !rest.ends_with(']') => (host, port.parse().map_err(|_| wrong())?),
            _ => (rest, DEFAULT_PORT),
        };
        if !is_host(host) || port == 0 {
            return Err(wrong());
        }
        Ok(Self { url: format!("http://{host}:{port}") })
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }
}

/// A name, an IPv4 address, or an IPv6 address in brackets.
fn is_host(host: &str) -> bool {
    if let Some(address) = host.strip_prefix('[') {
        return address.strip_suffix(']').is_some_and(|address| address.parse::<Ipv6Addr>().is_ok());
    }
    !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
}

/// A connection to the member that leads the control plane.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    address: Address,
    clients: AdminClients,
}

/// What a member says of who leads.
enum Look {
    /// It does itself.
    Leads(Box<Connection>),
    /// Another does.
    Names(Address),
    /// It knows of nobody.
    Nobody(Vec<Address>),
}

impl Connection {
    /// Finds the leader by any of its fellow members, and waits for one while it is being elected.
    pub(crate) async fn open(addresses: &[Address]) -> Result<Self> {
        let end = Instant::now() + LEADER_PATIENCE;
        let mut known = addresses.to_vec();
        loop {
            let (mut answered, mut failure) = (false, None);
            let mut at = 0;
            // Longer than the list that was given by those that answers name.
            while let Some(address) = known.get(at).cloned() {
                at += 1;
                let mut next = Self::look(&address).await;
                // Who is named may know better, but not for ever.
                let mut hops = 0;
                while let Ok(Look::Names(leader)) = &next
                    && hops < HOPS_MAX
                {
                    hops += 1;
                    answered = true;
                    next = Self::look(leader).await;
                }
                match next {
                    Ok(Look::Leads(connection)) => return Ok(*connection),
                    Ok(Look::Names(_)) => {}
                    Ok(Look::Nobody(others)) => {
                        answered = true;
                        let new = others.into_iter().filter(|other| !known.contains(other));
                        let room = MEMBERS_MAX.saturating_sub(known.len());
                        let new: Vec<_> = new.take(room).collect();
                        known.extend(new);
                    }
                    Err(error) => failure = Some(error),
                }
            }
            let waits = answered && Instant::now() < end;
            match failure {
                _ if waits => tokio::time::sleep(LEADER_POLL).await,
                // Nobody is there at all.
                Some(error) if !answered => return Err(error),
                _ => bail!(
                    "the control plane has no leader: too few of its members answer; start those that are down, see `lunette cluster status` when they are up"
                ),
            }
        }
    }

    async fn look(address: &Address) -> Result<Look> {
        let connection = Self::connect(address).await?;
        let look = tokio::time::timeout(CONNECT_TIMEOUT, connection.cluster().leader(LeaderRequest {})).await;
        let answer = match look {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) => return Err(connection.refused(&status)),
            Err(_) => bail!("the control plane at {address} does not answer"),
        };
        if answer.leader != 0 && answer.leader == answer.member {
            return Ok(Look::Leads(Box::new(connection)));
        }
        let leader = answer.members.iter().find(|member| member.id == answer.leader);
        if let Some(leader) = leader.and_then(|leader| Address::parse(&leader.address).ok()) {
            return Ok(Look::Names(leader));
        }
        let others = answer.members.iter().filter_map(|member| Address::parse(&member.address).ok());
        Ok(Look::Nobody(others.collect()))
    }

    async fn connect(address: &Address) -> Result<Self> {
        let endpoint = Endpoint::from_shared(address.url.clone())
            .with_context(|| format!("'{address}' is no address"))?
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(ANSWER_TIMEOUT);
        let channel = endpoint.connect().await.map_err(|error| {
            anyhow!(
                "cannot reach the control plane at {address}: {}; start it, or give its address by --admin or {VARIABLE}",
                failure::root_cause(&error)
            )
        })?;
        Ok(Self { address: address.clone(), clients: AdminClients::new(channel) })
    }

    /// Turns the server's refusal into the line that is printed.
    pub(crate) fn refused(&self, status: &Status) -> anyhow::Error {
        failure::answered(status, self.address.url())
    }

    /// Waits until the gateways act on what was just changed, as far as they can be asked: a list of
    /// sessions comes from fresh reports, and a report is made under the newest map.
    pub(crate) async fn settle(&self) {
        // It is changed in any case; a gateway that cannot be asked now will follow.
        let _ = self.sessions().list(ListSessionsRequest {}).await;
    }

    pub(crate) fn cluster(&self) -> ClusterClient<Channel> {
        self.clients.cluster.clone()
    }

    pub(crate) fn nodes(&self) -> NodesClient<Channel> {
        self.clients.nodes.clone()
    }

    pub(crate) fn disks(&self) -> DisksClient<Channel> {
        self.clients.disks.clone()
    }

    pub(crate) fn pools(&self) -> PoolsClient<Channel> {
        self.clients.pools.clone()
    }

    pub(crate) fn volumes(&self) -> VolumesClient<Channel> {
        self.clients.volumes.clone()
    }

    pub(crate) fn targets(&self) -> TargetsClient<Channel> {
        self.clients.targets.clone()
    }

    pub(crate) fn sessions(&self) -> SessionsClient<Channel> {
        self.clients.sessions.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_understood_with_and_without_a_scheme() {
        // Guards against port 80 where the port was left out, and against IPv6 without brackets.
        let table = [
            ("http://127.0.0.1:7400", "http://127.0.0.1:7400"),
            ("127.0.0.1:7401", "http://127.0.0.1:7401"),
            ("storage1", "http://storage1:7400"),
            ("http://storage1/", "http://storage1:7400"),
            ("[::1]:7400", "http://[::1]:7400"),
        ];
        for (text, url) in table {
            assert_eq!(Address::parse(text).expect(text).url(), url);
        }
        for text in
            ["", "https://a:1", "a:b", "a:", ":7400", "::1", "::1:7400", "a:1/x", "a b", "u@a:1", "a:70000"]
        {
            assert!(Address::parse(text).is_err(), "{text}");
        }
    }
}

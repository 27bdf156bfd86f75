//! The member of the control plane that a node carries: founded by command, joined by itself.
//!
//! ```text
//! cluster init --> founder, member 1: votes, alone
//! node run ------> folder empty: asks the cluster for an id, joins --> gets the log --cluster member add--> votes
//!          '-----> folder in use: goes on as what it was
//! ```

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lunette_control::api::admin::LeaderRequest;
use lunette_control::client::{AdminClients, ControlPlane};
use lunette_control::raft::OpenError;
use lunette_control::{Control, ControlConfig as MemberConfig, ControlError, LogLimits};
use lunette_proto::ids::ClusterId;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use super::member::{PATIENCE, control_plane, register};
use crate::admin::{Address, read_token};
use crate::config::{ClusterKey, ControlConfig, NodeConfig};
use crate::failure;
use crate::up::data::private_dir;

/// The member that founds a control plane.
const FOUNDER: u64 = 1;
/// Before the next attempt to join, when the last was refused.
const PAUSE: Duration = Duration::from_secs(5);
/// Whether there is a cluster already is seen at once.
const LOOK: Duration = Duration::from_secs(3);

/// A member that runs.
pub(crate) struct ControlMember {
    control: Control,
    joining: CancellationToken,
}

impl ControlMember {
    /// Starts the member; returns as soon as it serves, also without a quorum: the node's disks are served all the same.
    pub(crate) async fn start(
        config: &NodeConfig,
        control: &ControlConfig,
        key: &ClusterKey,
        stop: &CancellationToken,
    ) -> Result<Self> {
        let member = open(config, control, key, stop).await?;
        member.start();
        let joining = stop.child_token();
        tokio::spawn(join(
            control_plane(&config.admin)?,
            (key.cluster, member.member(), member.advertised().to_owned()),
            joining.clone(),
        ));
        Ok(Self { control: member, joining })
    }

    pub(crate) async fn stop(self) {
        self.joining.cancel();
        self.control.stop().await;
    }
}

async fn open(
    config: &NodeConfig,
    control: &ControlConfig,
    key: &ClusterKey,
    stop: &CancellationToken,
) -> Result<Control> {
    private_dir(&control.dir)?;
    match Control::open(&control.dir, member_config(control, key, None)).await {
        Err(ControlError::Open(OpenError::Nameless { .. })) => {}
        opened => return Ok(opened?),
    }
    let own = control.advertise.clone().unwrap_or_else(|| control.listen.to_string());
    if config.admin.iter().all(|address| Address::parse(&own).is_ok_and(|own| own == *address)) {
        bail!(
            "{} holds no member of a control plane, and admin names no other to join: add the others' addresses to admin, or put {} back from a copy",
            control.dir.display(),
            Control::store_file(&control.dir).display()
        );
    }
    let plane = control_plane(&config.admin)?;
    let id = register(plane.new_control_member(PATIENCE, key.cluster), &config.admin, stop).await?;
    tracing::info!(member = id, "joins the control plane");
    Ok(Control::open(&control.dir, member_config(control, key, Some(id))).await?)
}

fn member_config(control: &ControlConfig, key: &ClusterKey, member: Option<u64>) -> MemberConfig {
    MemberConfig {
        cluster: Some(key.cluster),
        member,
        listen: control.listen,
        advertise: control.advertise.clone(),
        key_file: key.path.clone(),
        join: true,
        log: LogLimits::default(),
        rebuild_after: control.rebuild_after(),
    }
}

/// Says that the member is there until the leader has heard it: it may be new, or one that was removed while it was away.
async fn join(
    plane: ControlPlane,
    (cluster, member, address): (ClusterId, u64, String),
    stop: CancellationToken,
) {
    loop {
        tokio::select! {
            answer = plane.join_control(PATIENCE, cluster, member, &address) => match answer {
                Ok(()) => return,
                Err(status) => tracing::error!(
                    member, "the control plane does not take this member: {}", failure::one_line(status.message())
                ),
            },
            () = stop.cancelled() => return,
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Makes the first member of the control plane of the cluster that `key` makes. Done twice it is done once; the caller
/// knows that no cluster was founded under the key and lost its store since: ids would begin at 1 again, for disks that
/// hold what had them before.
pub(crate) async fn found(key: &ClusterKey, control: &ControlConfig) -> Result<()> {
    private_dir(&control.dir)?;
    let config = MemberConfig { join: false, ..member_config(control, key, Some(FOUNDER)) };
    let member = Control::open(&control.dir, config).await?;
    // One that was founded before may have no quorum without the others.
    let served = if member.map().cluster == key.cluster { Ok(()) } else { member.serve().await };
    member.stop().await;
    Ok(served?)
}

/// Founds the cluster of a node's configuration, unless one of its addresses answers already.
pub(crate) async fn init(config: &NodeConfig) -> Result<ClusterKey> {
    let Some(control) = &config.control else {
        bail!("[control] is missing: the first member of the control plane needs a folder and an address");
    };
    // A second cluster under the key of the first would take its nodes and gateways in.
    for address in &config.admin {
        let channel = ControlPlane::new([address.url()])?.channel();
        let answer = timeout(LOOK, AdminClients::new(channel).cluster.leader(LeaderRequest {})).await;
        match answer {
            Ok(Ok(answer)) => bail!(
                "at {address} there is a member of cluster {} already: to join it, start the node",
                answer.into_inner().cluster_id
            ),
            Ok(Err(status)) if status.code() != Code::Unavailable => {
                return Err(failure::answered(&status, address.url()));
            }
            Ok(Err(_)) | Err(_) => {}
        }
    }
    let key_file = &config.cluster_key_file;
    if exists(key_file)? {
        return known(key_file, control).await;
    }
    // The key gets its name last: who has a key of that name has a cluster that was founded, and may hold data.
    let (unfinished, store) = (unfinished(key_file)?, Control::store_file(&control.dir));
    if exists(&store)? && !exists(&unfinished)? {
        bail!(
            "{} is there, and the key of its cluster, {}, is missing: put the key back from a copy, or name another dir",
            store.display(),
            key_file.display()
        );
    }
    found(&ClusterKey::load_or_create(&unfinished)?, control).await?;
    std::fs::rename(&unfinished, key_file)
        .and_then(|()| File::open(key_file.parent().unwrap_or(Path::new("/")))?.sync_all())
        .with_context(|| format!("{} cannot be named {}", unfinished.display(), key_file.display()))?;
    ClusterKey::load(key_file)
}

/// The key of a cluster that was founded here before; it founds no second one.
async fn known(key_file: &Path, control: &ControlConfig) -> Result<ClusterKey> {
    let key = ClusterKey::load(key_file)?;
    match Control::open(&control.dir, member_config(control, &key, None)).await {
        Ok(member) => {
            member.stop().await;
            Ok(key)
        }
        Err(ControlError::Open(OpenError::Nameless { path })) => bail!(
            "{} is the key of a cluster that was founded, and {} is missing: put it back from a copy, or start the node to join the others; a new cluster needs another cluster_key_file and new disks",
            key_file.display(),
            path.display()
        ),
        Err(error) => Err(error.into()),
    }
}

/// The name of a key whose cluster is not founded yet.
fn unfinished(key_file: &Path) -> Result<PathBuf> {
    let mut name = key_file.file_name().context("cluster_key_file names no file")?.to_owned();
    name.push(".founding");
    Ok(key_file.with_file_name(name))
}

fn exists(path: &Path) -> Result<bool> {
    std::fs::exists(path).with_context(|| format!("{} cannot be read", path.display()))
}

/// Fetches the cluster's key with a join token, unless the key is there already: a token is used once, and a node starts
/// more often.
pub(crate) async fn key(
    key_file: &Path,
    token: Option<&Path>,
    admin: &[Address],
    stop: &CancellationToken,
) -> Result<ClusterKey> {
    let exists = exists(key_file)?;
    let Some(token) = token.filter(|_| !exists) else {
        return ClusterKey::load(key_file);
    };
    let token = read_token(token)?;
    let plane = control_plane(admin)?;
    let answer = register(plane.use_join_token(PATIENCE, token.cluster(), token.id()), admin, stop).await?;
    let sealer = token.unseal(&answer)?;
    let key = ClusterKey::save(sealer, token.cluster(), key_file)?;
    tracing::info!(cluster = %key.cluster, "has joined the cluster");
    Ok(key)
}

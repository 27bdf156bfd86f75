//! What nodes and gateways have in common: they belong to a control plane.

use std::time::Duration;

use anyhow::{Result, bail};
use lunette_control::client::ControlPlane;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::admin::Address;
use crate::failure;

/// Members of a cluster start in any order: whoever comes first waits for the control plane.
pub(crate) const PATIENCE: Duration = Duration::from_secs(365 * 24 * 3600);
/// When to say that one waits.
const SILENCE: Duration = Duration::from_secs(2);

/// The control plane at these addresses.
pub(crate) fn control_plane(addresses: &[Address]) -> Result<ControlPlane> {
    Ok(ControlPlane::new(addresses.iter().map(Address::url))?)
}

/// Waits for the answer to a registration; gives up when told to stop.
pub(crate) async fn register<T>(
    call: impl Future<Output = Result<T, Status>>,
    addresses: &[Address],
    stop: &CancellationToken,
) -> Result<T> {
    let names: Vec<&str> = addresses.iter().map(Address::url).collect();
    let names = names.join(", ");
    let saying = async {
        tokio::time::sleep(SILENCE).await;
        tracing::info!(addresses = names, "waiting for the control plane");
        std::future::pending::<()>().await;
    };
    tokio::select! {
        answer = call => answer.map_err(|status| failure::answered(&status, &names)),
        () = stop.cancelled() => bail!("stopped before the control plane at {names} answered"),
        () = saying => unreachable!("it waits for ever"),
    }
}

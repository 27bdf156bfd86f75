//! When to stop: SIGTERM or SIGINT. The first asks for a clean stop, a later one does not wait for it.

use std::process;
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::FutureExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A clean stop that takes longer than this is stuck; ending the process is safe at any moment,
/// because whatever was acknowledged is durable already.
const PATIENCE: Duration = Duration::from_secs(10);

/// Signals that come within this time of the first mean the same.
const SAME: Duration = Duration::from_secs(1);

/// A token that is cancelled when the process is told to stop.
pub(crate) fn on_signal() -> Result<CancellationToken> {
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("signals cannot be watched")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("signals cannot be watched")?;
    let token = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        token.cancel();
        // A terminal and a parent may both tell us, and that is one wish.
        tokio::time::sleep(SAME).await;
        while terminate.recv().now_or_never().is_some() || interrupt.recv().now_or_never().is_some() {}
        tokio::select! {
            _ = terminate.recv() => tracing::warn!("told to stop twice: not waiting"),
            _ = interrupt.recv() => tracing::warn!("told to stop twice: not waiting"),
            () = tokio::time::sleep(PATIENCE) => tracing::warn!("the clean stop takes too long: not waiting"),
        }
        process::exit(1);
    });
    Ok(stop)
}

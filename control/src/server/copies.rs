//! What the leader does by itself: disks leave the in-sync sets, return and count again, as [`Decider`] says.
//!
//! It looks at every report and end of a stream, at every change of the map, and when the decider wants to: a killed node's
//! disks leave as soon as the end of its stream and the first complaint are here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use futures_util::future::join_all;
use lunette_proto::ids::{DiskId, Epoch};
use tokio::time::{sleep, sleep_until};

use super::Context;
use super::leading::PAUSE;
use crate::health::Decider;
use crate::state::{Command, State};

/// Evictions that the state refuses, by the map under which it did, and why.
type Refused = BTreeMap<DiskId, (Epoch, String)>;

impl Context {
    /// Keeps the in-sync sets while this member leads, until it stops.
    pub(super) async fn keep_copies(self: Arc<Self>) {
        self.while_leading(|| self.decide_for_ever(), || ()).await;
    }

    async fn decide_for_ever(&self) {
        let mut decider = Decider::new(Instant::now());
        let (mut reports, mut epochs) = (self.attachments.changes(), self.published.epochs());
        let mut refused = Refused::new();
        loop {
            reports.mark_unchanged();
            epochs.mark_unchanged();
            let state = self.published.state();
            let look = self.attachments.read(|registry, now| decider.look(state.map(), registry, now));
            let due = allowed(&state, look.decisions, &mut refused);
            drop(state);
            if due.is_empty() {
                tokio::select! {
                    () = sleep_until(look.next.into()) => {}
                    // Neither ends before the context does.
                    _ = reports.changed() => {}
                    _ = epochs.changed() => {}
                }
            } else if !self.carry_out(due).await {
                sleep(PAUSE).await;
            }
        }
    }

    /// Proposes; whether all of it was committed. They are committed together: a node may have many disks.
    async fn carry_out(&self, decisions: Vec<(Command, String)>) -> bool {
        let proposals = decisions.into_iter().map(|(command, why)| async move {
            let (what, disk) = match &command {
                Command::Evict { disk, .. } => ("left the in-sync sets", *disk),
                Command::Return { disk } => ("returned", *disk),
                Command::CaughtUp { disk, .. } => ("caught up", *disk),
                _ => ("", DiskId(0)),
            };
            match self.consensus.propose(command).await {
                Ok(committed) => {
                    tracing::info!(%disk, epoch = %committed.epoch, "a disk has {what}: {why}");
                    true
                }
                Err(error) => {
                    tracing::warn!(%disk, %error, "it was not committed that a disk has {what}");
                    false
                }
            }
        });
        join_all(proposals).await.into_iter().all(|done| done)
    }
}

/// What the state takes. An eviction that it refuses is logged once, and tried again under the next map.
fn allowed(
    state: &State,
    mut decisions: Vec<(Command, String)>,
    refused: &mut Refused,
) -> Vec<(Command, String)> {
    let epoch = state.map().epoch;
    let before = std::mem::take(refused);
    decisions.retain(|(command, why)| {
        let Command::Evict { disk, .. } = command else { return state.decide(command).is_ok() };
        let earlier = before.get(disk);
        let text = match earlier {
            Some((at, text)) if *at == epoch => text.clone(),
            _ => match state.decide(command) {
                Ok(_) => return true,
                Err(rejection) => rejection.to_string(),
            },
        };
        if earlier.is_none_or(|(_, earlier)| *earlier != text) {
            tracing::warn!(%disk, reason = why, "a disk stays in the in-sync sets: {text}");
        }
        refused.insert(*disk, (epoch, text));
        false
    });
    decisions
}

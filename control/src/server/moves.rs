//! Moves that the leader begins and gives up by itself, as [`Planner`] says; and what an administrator asks for that makes it.
//!
//! Tables are computed off the tasks that answer calls, and at most some times a second, however often the map changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lunette_proto::ids::{DiskId, PoolId};
use lunette_proto::map::ClusterMap;
use tokio::time::{sleep, sleep_until};
use tonic::{Code, Status};

use super::Context;
use super::errors::{internal, rejected, status};
use super::view::View;
use crate::api::admin::DrainResponse;
use crate::health::{Condition, Registry, condition};
use crate::moves::{Planner, PoolPlan, Room, preview};
use crate::state::{Command, NameKind, Rejection};

/// The shortest time between two looks.
const LOOK_INTERVAL_MIN: Duration = Duration::from_millis(200);
/// Before anything is proposed again that was not committed.
const RETRY: Duration = Duration::from_secs(1);

/// What the planner said last.
#[derive(Debug, Default)]
pub(super) struct Plans {
    pub(super) pools: BTreeMap<PoolId, PoolPlan>,
    pub(super) absent: BTreeSet<DiskId>,
}

impl Context {
    /// Plans while this member leads, until it stops.
    pub(super) async fn keep_moves(self: Arc<Self>) {
        self.while_leading(|| self.plan_for_ever(), || *self.plans.lock() = Arc::default()).await;
    }

    async fn plan_for_ever(&self) {
        let mut planner = Planner::new(self.rebuild_after);
        let mut epochs = self.published.epochs();
        loop {
            epochs.mark_unchanged();
            let state = self.published.state();
            let rooms = self.attachments.read(|registry, now| rooms(state.map(), registry, now));
            let looked = tokio::task::spawn_blocking(move || {
                let look = planner.look(state.map(), &rooms, Instant::now());
                (planner, look)
            });
            let look;
            (planner, look) = match looked.await {
                Ok(looked) => looked,
                Err(error) => {
                    // It is told to stop; or there is a mistake in it, which must not take the leader with it.
                    tracing::error!(%error, "the planner of moves has ended");
                    return self.stop.cancelled().await;
                }
            };
            *self.plans.lock() = Arc::new(Plans { pools: look.pools, absent: look.absent });
            let mut next = look.next;
            if !self.begin(look.commands).await {
                next = next.min(Instant::now() + RETRY);
            }
            sleep(LOOK_INTERVAL_MIN).await;
            tokio::select! {
                () = sleep_until(next.into()) => {}
                // It ends with the context.
                _ = epochs.changed() => {}
            }
        }
    }

    /// Proposes one after the other; whether all of it was committed.
    async fn begin(&self, commands: Vec<(Command, String)>) -> bool {
        for (command, why) in commands {
            match self.consensus.propose(command).await {
                Ok(committed) => tracing::info!(epoch = %committed.epoch, "{why}"),
                Err(error) => {
                    tracing::warn!(%error, "it was not committed that {why}");
                    return false;
                }
            }
        }
        true
    }

    /// Empties disks or lets them be, or only says what would move.
    pub(super) async fn drain_disks(
        &self,
        what: &str,
        disks: Vec<DiskId>,
        draining: bool,
        dry_run: bool,
    ) -> Result<DrainResponse, Status> {
        self.refresh_all().await?;
        let state = self.state().await?;
        let command = Command::DrainDisks { disks: disks.clone(), draining };
        let decision = state.decide(&command).map_err(|rejection| rejected(&rejection))?;
        let mut after = state.map().clone();
        for change in &decision.changes {
            change.apply(&mut after);
        }
        let planned = match self.preview(after, &format!("{what} cannot be drained")).await {
            Ok(planned) => planned,
            Err(problem) if draining => return Err(problem),
            // To let them be makes nothing worse.
            Err(_) => DrainResponse::default(),
        };
        if !dry_run {
            self.run(command).await?;
        }
        Ok(planned)
    }

    /// What would move if the map were like `after`; `refusal` begins the sentence that says why nothing can.
    pub(super) async fn preview(&self, after: ClusterMap, refusal: &str) -> Result<DrainResponse, Status> {
        let plans = Arc::clone(&self.plans.lock());
        let absent = plans.absent.clone();
        let rooms = self.attachments.read(|registry, now| rooms(&after, registry, now));
        let planned = tokio::task::spawn_blocking(move || {
            let preview = preview(&after, &absent, &rooms);
            (preview, rooms, after)
        });
        let (planned, rooms, after) =
            planned.await.map_err(|error| internal("the plan of a drain was cut off", &error))?;
        let planned = planned.map_err(|problem| {
            status(Code::FailedPrecondition, "DRAIN_IMPOSSIBLE", format!("{refusal}: {problem}"))
        })?;
        Ok(self
            .attachments
            .read(|registry, now| View::new(&after, registry, plans, now).preview(&planned, &rooms)))
    }
}

/// What nodes say of their disks.
fn rooms(map: &ClusterMap, registry: &Registry, now: Instant) -> BTreeMap<DiskId, Room> {
    let room = |disk: &lunette_proto::map::Disk| Room {
        answers: matches!(condition(registry, disk, now), Condition::InSync | Condition::CatchingUp),
        used_bytes: registry.disk(disk.node, disk.id).map_or(0, |report| report.used_bytes),
        capacity_bytes: disk.capacity_bytes,
    };
    map.disks.values().map(|disk| (disk.id, room(disk))).collect()
}

pub(super) fn no_node(name: &str) -> Rejection {
    Rejection::NotFound {
        kind: NameKind::Node,
        name: name.chars().take(lunette_proto::limits::NAME_CHARS_MAX).collect(),
    }
}

//! Who owns the volumes: what the leader gives away by itself, as [`Planner`] says; what an administrator asks for; and what
//! owners say when they hand a volume over.
//!
//! ```text
//! owner is gone:  leader --AssignOwners--> map
//! owner is up:    leader --order--> owner finishes --HandOver--> leader --AssignOwners--> map
//! owner leaves:   owner --Leave--> leader says to whom; owner finishes --HandOver--> ...
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use lunette_proto::ids::{Epoch, GatewayId, Generation, VolumeId};
use lunette_proto::limits::NAME_CHARS_MAX;
use lunette_proto::map::{ClusterMap, Volume};
use tokio::time::{sleep, sleep_until, timeout};
use tonic::{Code, Status};

use super::Context;
use super::errors::{rejected, status, stopping};
use super::leading::PAUSE;
use crate::api::cluster::HandOverOrder;
use crate::health::Member;
use crate::owners::{HandOver, Planner, successors};
use crate::state::{Command, NameKind, NewOwner, Rejection};

/// How long an owner may take to hand a volume over that an administrator has asked for.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(8);
/// An owner that could not in this time is told again.
const ORDER_AGAIN: Duration = Duration::from_millis(2500);
/// How long a new volume is waited for to have an owner.
const OWNED_TIMEOUT: Duration = Duration::from_secs(2);
/// How long an owner may take to act by what a unit keeps, before whoever has asked is told to ask again.
const KEPT_TIMEOUT: Duration = Duration::from_secs(4);
/// How often whoever does not answer is asked, or looked at, again.
const POLL: Duration = Duration::from_millis(20);

impl Context {
    /// Sees to it that volumes have owners while this member leads, until it stops.
    pub(super) async fn keep_owners(self: Arc<Self>) {
        self.while_leading(|| self.assign_for_ever(), || ()).await;
    }

    async fn assign_for_ever(&self) {
        let mut planner = Planner::new(Instant::now());
        let (mut reports, mut epochs) = (self.attachments.changes(), self.published.epochs());
        loop {
            reports.mark_unchanged();
            epochs.mark_unchanged();
            let state = self.published.state();
            let look = self.attachments.read(|registry, now| planner.look(state.map(), registry, now));
            for gateway in &look.gone {
                let name = gateway_name(state.map(), *gateway);
                tracing::info!(name, "a gateway is gone, and its volumes go to others");
            }
            drop(state);
            if let Some(HandOver { volume, from, to }) = look.hand_over {
                tracing::info!(%volume, %from, %to, "evening out: a volume is to be handed over");
                // One that takes no orders is asked again when the planner has waited for it.
                let _ = self.attachments.hand_over(from, volume, to);
            }
            if look.owners.is_empty() {
                tokio::select! {
                    () = sleep_until(look.next.into()) => {}
                    // Neither ends before the context does.
                    _ = reports.changed() => {}
                    _ = epochs.changed() => {}
                }
            } else if !self.assign(look.owners).await {
                sleep(PAUSE).await;
            }
        }
    }

    /// Proposes; whether it was committed.
    async fn assign(&self, owners: Vec<NewOwner>) -> bool {
        let count = owners.len();
        match self.consensus.propose(Command::AssignOwners { owners: Arc::new(owners) }).await {
            Ok(committed) => {
                tracing::info!(volumes = count, epoch = %committed.epoch, "volumes have got owners");
                true
            }
            Err(error) => {
                tracing::warn!(volumes = count, %error, "it was not committed who owns volumes");
                false
            }
        }
    }

    fn gateway_is_up(&self, gateway: GatewayId) -> bool {
        self.attachments.read(|registry, now| registry.is_up(Member::Gateway(gateway), now))
    }

    fn stays(&self, gateway: GatewayId) -> bool {
        self.attachments.read(|registry, now| registry.gateways_staying(now).any(|id| id == gateway))
    }

    /// Waits until a new volume has an owner, if there is a gateway that could be; not for ever, for it will get one.
    pub(super) async fn owned(&self, name: &str) {
        let mut epochs = self.published.epochs();
        let owned = async {
            loop {
                let state = self.published.state();
                let is_owned = state.map().volume_by_name(name).is_none_or(|volume| volume.owner.is_some());
                let is_hopeless =
                    || self.attachments.read(|registry, now| registry.gateways_staying(now).next().is_none());
                if is_owned || is_hopeless() {
                    return;
                }
                drop(state);
                // It ends with the context.
                if epochs.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            _ = timeout(OWNED_TIMEOUT, owned) => {}
            () = self.stop.cancelled() => {}
        }
    }

    /// Has a gateway own a volume, and waits until it does.
    pub(super) async fn own(&self, name: &str, gateway: &str) -> Result<(), Status> {
        let state = self.state().await?;
        let map = state.map();
        let volume = map.volume_by_name(name).ok_or_else(|| super::volumes::not_found(name))?.id;
        let to = map.gateways.values().find(|known| known.name == gateway).ok_or_else(|| {
            let name = gateway.chars().take(NAME_CHARS_MAX).collect();
            rejected(&Rejection::NotFound { kind: NameKind::Gateway, name })
        })?;
        let to = to.id;
        drop(state);
        let mut epochs = self.published.epochs();
        let mut reports = self.attachments.changes();
        let moved = async {
            // Under which generation it was ordered, and when.
            let mut ordered: Option<(Generation, Instant)> = None;
            loop {
                epochs.mark_unchanged();
                reports.mark_unchanged();
                let state = self.published.state();
                let volume = match state.map().volumes.get(&volume) {
                    Some(there) if there.name == name => there.clone(),
                    _ => return Err(super::volumes::not_found(name)),
                };
                drop(state);
                if volume.owner.is_some_and(|owner| owner.gateway == to) {
                    return Ok(());
                }
                if !self.stays(to) {
                    return Err(not_up(gateway));
                }
                let is_ordered = ordered.is_some_and(|(generation, at)| {
                    generation == volume.generation && at.elapsed() < ORDER_AGAIN
                });
                if !is_ordered {
                    ordered = Some((volume.generation, Instant::now()));
                    if !self.order_hand_over(&volume, to) {
                        self.take_away(&volume, to).await?;
                        continue;
                    }
                } else if volume.owner.is_none_or(|owner| !self.gateway_is_up(owner.gateway)) {
                    // It has gone, or fallen silent, in the middle of it.
                    self.take_away(&volume, to).await?;
                    continue;
                }
                tokio::select! {
                    _ = epochs.changed() => {}
                    _ = reports.changed() => {}
                    () = sleep(10 * POLL) => {}
                }
            }
        };
        tokio::select! {
            moved = timeout(HAND_OVER_TIMEOUT, moved) => moved.unwrap_or_else(|_| {
                let sentence = format!(
                    "the gateway that owns volume {name:?} has not handed it over within {} s: what is under way on it does not end; see `lunette status`",
                    HAND_OVER_TIMEOUT.as_secs()
                );
                Err(status(Code::DeadlineExceeded, "HAND_OVER_TIMEOUT", sentence))
            }),
            () = self.stop.cancelled() => Err(stopping()),
        }
    }

    /// Tells the owner; `false`: there is none that takes orders.
    fn order_hand_over(&self, volume: &Volume, to: GatewayId) -> bool {
        volume.owner.is_some_and(|owner| self.attachments.hand_over(owner.gateway, volume.id, to))
    }

    /// Gives a volume to another gateway without its owner's doing.
    async fn take_away(&self, volume: &Volume, to: GatewayId) -> Result<(), Status> {
        let owner = NewOwner { volume: volume.id, seen: volume.generation, gateway: to };
        self.run(Command::AssignOwners { owners: Arc::new(vec![owner]) }).await.map(|_| ())
    }

    /// An owner gives a volume to another gateway, by the order of an administrator or because it leaves.
    pub(super) async fn handed_over(
        &self,
        volume: VolumeId,
        generation: Generation,
        to: GatewayId,
    ) -> Result<Epoch, Status> {
        let state = self.state().await?;
        let name = gateway_name(state.map(), to).to_owned();
        if !state.map().gateways.contains_key(&to) {
            return Err(rejected(&Rejection::NoGateway(to)));
        }
        drop(state);
        if !self.stays(to) {
            return Err(not_up(&name));
        }
        let new = NewOwner { volume, seen: generation, gateway: to };
        let committed = self.run(Command::AssignOwners { owners: Arc::new(vec![new]) }).await?;
        let state = self.published.state();
        let next = generation.0.checked_add(1).map(Generation);
        let owner = state.map().volumes.get(&volume).and_then(|volume| volume.owner);
        // Also told twice, when the first answer was lost.
        if owner.is_some_and(|owner| owner.gateway == to && Some(owner.generation) == next) {
            tracing::info!(%volume, to = name, epoch = %committed.epoch, "a volume was handed over");
            return Ok(committed.epoch);
        }
        let sentence =
            format!("volume {volume} has another owner than that of generation {generation} by now");
        Err(status(Code::Aborted, "NOT_OWNER", sentence))
    }

    /// To whom a gateway that leaves is to hand its volumes over.
    pub(super) async fn leave(&self, gateway: GatewayId) -> Result<Vec<HandOverOrder>, Status> {
        let state = self.state().await?;
        let owners = self.attachments.read(|registry, now| successors(state.map(), registry, gateway, now));
        let order = |new: NewOwner| HandOverOrder { volume: new.volume.0, to: new.gateway.0 };
        Ok(owners.into_iter().map(order).collect())
    }

    /// Waits until the owner of a volume, if it is another gateway than `asker`, acts by the map of `epoch`. One that is
    /// gone is no reason to wait: its successor begins with a newer map.
    pub(super) async fn in_force(
        &self,
        volume: VolumeId,
        epoch: Epoch,
        asker: GatewayId,
    ) -> Result<(), Status> {
        let mut reports = self.attachments.changes();
        let in_force = async {
            loop {
                reports.mark_unchanged();
                let owner = self.published.state().map().volumes.get(&volume).and_then(|volume| volume.owner);
                let Some(owner) = owner.map(|owner| owner.gateway).filter(|owner| *owner != asker) else {
                    return;
                };
                let acts = self.attachments.read(|registry, now| {
                    registry.epoch_of(owner) >= epoch || !registry.is_up(Member::Gateway(owner), now)
                });
                if acts {
                    return;
                }
                self.attachments.ask_report(Member::Gateway(owner));
                // A report that was under way may tell of an older map; not asked for again without a pause.
                sleep(POLL / 10).await;
                let _ = timeout(POLL, reports.changed()).await;
            }
        };
        tokio::select! {
            waited = timeout(KEPT_TIMEOUT, in_force) => waited.map_err(|_| {
                let sentence =
                    format!("it is kept, but the gateway that owns volume {volume} does not act by it yet; ask again");
                status(Code::Unavailable, "NOT_IN_FORCE", sentence)
            }),
            () = self.stop.cancelled() => Err(stopping()),
        }
    }
}

fn not_up(gateway: &str) -> Status {
    let sentence =
        format!("gateway {gateway} is not up, and can own nothing; `lunette status` shows those that are");
    status(Code::FailedPrecondition, "GATEWAY_DOWN", sentence)
}

fn gateway_name(map: &ClusterMap, id: GatewayId) -> &str {
    map.gateways.get(&id).map_or("?", |gateway| gateway.name.as_str())
}

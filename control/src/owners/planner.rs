//! Which gateway is to own which volume, from the map, from who is there, and from the time.
//!
//! | a volume                                  | goes to the gateway that is up and owns fewest                     |
//! |-------------------------------------------|--------------------------------------------------------------------|
//! | has no owner                              | at once; in the first half second with a gateway, when all that    |
//! |                                           | have registered are heard                                          |
//! | its owner's stream has ended              | after 300 ms, unless it is back by then                            |
//! | its owner is silent                       | after three seconds                                                |
//! | its owner was never heard                 | five seconds after this member leads                               |
//! | its owner is up                           | never, but for evening out: a gateway that has come while this     |
//! |                                           | member leads, or owns nothing, gets its share after 30 seconds,    |
//! |                                           | one after the other                                                |
//!
//! A gateway is up when it reports, which it does once its portals are open, and as long as it does not say that it leaves.
//! Nobody is given up while no other gateway is up, nor by a leader that hears less than half of the nodes, or that has slept.
//! What is decided is compared and swapped: an owner that was faster keeps what it took.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use lunette_proto::ids::{Epoch, GatewayId, Generation, VolumeId};
use lunette_proto::map::{ClusterMap, Volume, VolumeState};

use crate::health::{Attention, Hearing, LOOK_INTERVAL, Member, Registry, SILENCE_MAX};
use crate::state::NewOwner;
use crate::state::limits::OWNERS_PER_COMMAND_MAX;

/// How long a gateway whose stream has ended may take to come back: a process that was killed closes its sockets.
const ENDED_MAX: Duration = Duration::from_millis(300);
/// How long a gateway that is there may take to find a new leader.
const ABSENT_MAX: Duration = Duration::from_secs(5);
/// How long volumes wait for gateways that start side by side with the first one.
const FIRST_MAX: Duration = Duration::from_millis(500);
/// How long a gateway is up before it gets its share.
const SETTLED_MIN: Duration = Duration::from_secs(30);
/// Between two volumes of a share, and when one was not handed over.
const MOVE_PAUSE: Duration = Duration::from_secs(1);
const MOVE_RETRY: Duration = Duration::from_secs(30);
/// How long a volume may take to be handed over.
const MOVE_MAX: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug)]
pub struct Planner {
    attention: Attention,
    began: Instant,
    owned: Owned,
    /// Gateways that are up.
    up: BTreeMap<GatewayId, Up>,
    moving: Option<Moving>,
    /// When a volume may be moved next, and the last one that was.
    move_due: Instant,
    moved: VolumeId,
}

/// How many volumes each gateway owns, and how many are nobody's, by one map.
#[derive(Debug, Default)]
struct Owned {
    epoch: Epoch,
    by: BTreeMap<GatewayId, usize>,
    free: usize,
}

/// A gateway that is up.
#[derive(Clone, Copy, Debug)]
struct Up {
    since: Instant,
    /// It has its share: what an administrator does from now on stays.
    is_settled: bool,
}

/// A volume that its owner was told to hand over.
#[derive(Clone, Copy, Debug)]
struct Moving {
    volume: VolumeId,
    generation: Generation,
    until: Instant,
}

/// A volume that its owner, who is up, is to hand over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandOver {
    /// Which.
    pub volume: VolumeId,
    /// Whose it is.
    pub from: GatewayId,
    /// Whose it is to be.
    pub to: GatewayId,
}

/// What is to be done.
#[derive(Debug)]
pub struct Look {
    /// To be committed together; at most [`OWNERS_PER_COMMAND_MAX`], the rest follows.
    pub owners: Vec<NewOwner>,
    /// Gateways that are gone, and what they owned is given away.
    pub gone: BTreeSet<GatewayId>,
    /// To be ordered.
    pub hand_over: Option<HandOver>,
    /// When to look again, if nothing happens before.
    pub next: Instant,
}

impl Planner {
    /// From the moment on when this member leads.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            attention: Attention::new(now),
            began: now,
            owned: Owned::default(),
            up: BTreeMap::new(),
            moving: None,
            move_due: now,
            moved: VolumeId(0),
        }
    }

    /// Looks at everything. Whoever calls looks again at every change of the map, at every report and end of a stream, and at
    /// the time that it is told. The same is said again as long as it is not done; but for an order, which is said once.
    pub fn look(&mut self, map: &ClusterMap, registry: &Registry, now: Instant) -> Look {
        self.attention.look(now);
        if self.owned.epoch != map.epoch {
            self.owned = Owned::of(map);
        }
        self.follow(map, registry, now);
        let mut look =
            Look { owners: Vec::new(), gone: BTreeSet::new(), hand_over: None, next: now + LOOK_INTERVAL };
        if self.up.is_empty() {
            return look;
        }
        look.gone = self.gone(map, registry, now, &mut look.next);
        let gives_free = self.owned.free > 0 && self.has_waited(map, registry, now, &mut look.next);
        if gives_free || !look.gone.is_empty() {
            let given_up = |volume: &&Volume| match volume.owner {
                None => gives_free,
                Some(owner) => look.gone.contains(&owner.gateway),
            };
            let volumes = map.volumes.values().filter(given_up).take(OWNERS_PER_COMMAND_MAX);
            let volumes = volumes.map(|volume| (volume.id, volume.generation));
            look.owners = share(volumes, self.up.keys().map(|id| (*id, self.owned.of_gateway(*id))));
        } else {
            look.hand_over = self.even_out(map, now, &mut look.next);
        }
        look
    }

    /// Follows who is up, and how a move ends.
    fn follow(&mut self, map: &ClusterMap, registry: &Registry, now: Instant) {
        let up: BTreeSet<GatewayId> =
            registry.gateways_staying(now).filter(|id| map.gateways.contains_key(id)).collect();
        self.up.retain(|id, _| up.contains(id));
        for id in up {
            // Who was there before this member led, or may have been, is left as it is; one that has nothing is new.
            let is_settled = now < self.began + ABSENT_MAX && self.owned.of_gateway(id) > 0;
            self.up.entry(id).or_insert(Up { since: now, is_settled });
        }
        if let Some(Moving { volume, generation, until }) = self.moving {
            let is_done = map.volumes.get(&volume).is_none_or(|it| it.generation != generation);
            if is_done || now >= until {
                self.move_due = now + if is_done { MOVE_PAUSE } else { MOVE_RETRY };
                self.moving = None;
            }
        }
    }

    /// Whether free volumes can be given away without leaving one out that starts right now.
    fn has_waited(&self, map: &ClusterMap, registry: &Registry, now: Instant, next: &mut Instant) -> bool {
        let is_absent = |id| registry.hearing(Member::Gateway(id)) == Hearing::Absent;
        let Some(first) = self.up.values().map(|up| up.since).min() else { return false };
        let due = first + FIRST_MAX;
        if now >= due || !map.gateways.keys().copied().any(is_absent) {
            return true;
        }
        *next = (*next).min(due);
        false
    }

    /// Owners of something that are gone.
    fn gone(
        &self,
        map: &ClusterMap,
        registry: &Registry,
        now: Instant,
        next: &mut Instant,
    ) -> BTreeSet<GatewayId> {
        if !registry.hears_most(map, now) {
            return BTreeSet::new();
        }
        let mut gone = BTreeSet::new();
        for gateway in self.owned.by.keys().filter(|id| !registry.is_up(Member::Gateway(**id), now)) {
            let due = match registry.hearing(Member::Gateway(*gateway)) {
                Hearing::Ended { at, .. } => self.attention.since(at) + ENDED_MAX,
                Hearing::Open { heard } => self.attention.since(heard) + SILENCE_MAX,
                Hearing::Absent => self.attention.began() + ABSENT_MAX,
            };
            if now >= due {
                gone.insert(*gateway);
            } else {
                *next = (*next).min(due);
            }
        }
        gone
    }

    /// The next volume of the share of a gateway that has come.
    fn even_out(&mut self, map: &ClusterMap, now: Instant, next: &mut Instant) -> Option<HandOver> {
        if self.moving.is_some() {
            return None;
        }
        let most = self.up.keys().map(|id| self.owned.of_gateway(*id)).max()?;
        let from = *self.up.keys().find(|id| self.owned.of_gateway(**id) == most)?;
        let mut to: Option<(usize, GatewayId)> = None;
        for (id, up) in &mut self.up {
            let count = self.owned.by.get(id).copied().unwrap_or_default();
            if up.is_settled || now < up.since + SETTLED_MIN {
                continue;
            }
            if count + 2 > most {
                up.is_settled = true;
            } else if to.is_none_or(|(fewest, _)| count < fewest) {
                to = Some((count, *id));
            }
        }
        let (_, to) = to?;
        if now < self.move_due {
            *next = (*next).min(self.move_due);
            return None;
        }
        let is_from = |volume: &&Volume| {
            volume.state == VolumeState::Active && volume.owner.is_some_and(|owner| owner.gateway == from)
        };
        // Another one than the last, which may not have gone.
        let (before, after) = (
            map.volumes.range(..=self.moved),
            map.volumes.range(self.moved..).skip_while(|(id, _)| **id == self.moved),
        );
        let volume = after.chain(before).map(|(_, volume)| volume).find(is_from)?;
        self.moved = volume.id;
        self.moving =
            Some(Moving { volume: volume.id, generation: volume.generation, until: now + MOVE_MAX });
        Some(HandOver { volume: volume.id, from, to })
    }
}

impl Owned {
    fn of(map: &ClusterMap) -> Self {
        let mut owned = Self { epoch: map.epoch, ..Self::default() };
        for volume in map.volumes.values() {
            match volume.owner {
                Some(owner) => *owned.by.entry(owner.gateway).or_default() += 1,
                None => owned.free += 1,
            }
        }
        owned
    }

    fn of_gateway(&self, id: GatewayId) -> usize {
        self.by.get(&id).copied().unwrap_or_default()
    }
}

/// Gives each volume to the gateway that has fewest by then; none without a gateway.
fn share(
    volumes: impl Iterator<Item = (VolumeId, Generation)>,
    gateways: impl Iterator<Item = (GatewayId, usize)>,
) -> Vec<NewOwner> {
    let mut gateways: BTreeSet<(usize, GatewayId)> = gateways.map(|(id, count)| (count, id)).collect();
    let mut owners = Vec::new();
    for (volume, seen) in volumes {
        let Some((count, gateway)) = gateways.pop_first() else { break };
        gateways.insert((count + 1, gateway));
        owners.push(NewOwner { volume, seen, gateway });
    }
    owners
}

/// To whom the volumes of a gateway that leaves go; to nobody, if no other is up.
#[must_use]
pub fn successors(map: &ClusterMap, registry: &Registry, leaving: GatewayId, now: Instant) -> Vec<NewOwner> {
    let owned = Owned::of(map);
    let others = registry.gateways_staying(now).filter(|id| *id != leaving && map.gateways.contains_key(id));
    let mine = |volume: &&Volume| volume.owner.is_some_and(|owner| owner.gateway == leaving);
    let volumes = map.volumes.values().filter(mine).map(|volume| (volume.id, volume.generation));
    share(volumes, others.map(|id| (id, owned.of_gateway(id))))
}

#[cfg(test)]
mod tests;

//! Loads that the control plane has this gateway put on its volumes (`lunette bench`).
//!
//! Each order says that somebody still wants the load; without one for a while it ends. A load that writes ends when a target
//! shows its volume, before any initiator is told of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use lunette_control::api::cluster::{LoadLatencies, LoadOrder, LoadReport};
use lunette_proto::ids::VolumeId;
use lunette_proto::limits::{
    LOAD_DEPTH_MAX, LOAD_INFLIGHT_BYTES_MAX, LOAD_LEASE_MS, LOAD_MS_MAX, LOADS_MAX, SCSI_TRANSFER_BYTES_MAX,
};
use lunette_proto::map::ClusterMap;
use lunette_volume::load::{Load, Pattern, Phase, Progress, Running, Shape, Summary};
use lunette_volume::volumes::Volumes;
use parking_lot::Mutex;
use tokio::runtime::Handle;

const LEASE: Duration = Duration::from_millis(LOAD_LEASE_MS);
/// Between two looks at the leases.
const LEASE_POLL: Duration = Duration::from_millis(500);

/// See the module.
pub(crate) struct Loads {
    me: Weak<Self>,
    volumes: Arc<Volumes>,
    runtime: Handle,
    known: Mutex<BTreeMap<u64, Known>>,
}

/// A load that was ordered, until nobody asks for it any more.
struct Known {
    volume: VolumeId,
    writes: bool,
    renewed: Instant,
    state: State,
}

enum State {
    Begun(Running),
    /// It goes on no more, because a target shows the volume.
    Shown(Running),
    /// It never began.
    Refused(String),
}

impl Loads {
    /// Has to be called inside the runtime on which loads are to run.
    pub(crate) fn new(volumes: Arc<Volumes>) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            volumes,
            runtime: Handle::current(),
            known: Mutex::default(),
        })
    }

    /// Begins a load, goes on with it, or ends it. `map` is what this gateway acts by.
    pub(crate) fn order(&self, order: &LoadOrder, map: &ClusterMap) {
        let mut known = self.known.lock();
        if order.stop {
            // Dropped, it ends.
            known.remove(&order.load);
            return;
        }
        if let Some(known) = known.get_mut(&order.load) {
            known.renewed = Instant::now();
            return;
        }
        let volume = VolumeId(order.volume);
        let begun = if known.len() >= LOADS_MAX {
            Err(format!("its gateway has {LOADS_MAX} loads already"))
        } else {
            self.begin(order, volume, map)
        };
        let (writes, state) = match begun {
            Ok((writes, running)) => (writes, State::Begun(running)),
            Err(why) => (false, State::Refused(why)),
        };
        if known.len() < 2 * LOADS_MAX {
            tracing::info!(load = order.load, %volume, writes, "a load was ordered");
            known.insert(order.load, Known { volume, writes, renewed: Instant::now(), state });
            self.watch_lease(order.load);
        }
    }

    fn begin(
        &self,
        order: &LoadOrder,
        volume: VolumeId,
        map: &ClusterMap,
    ) -> Result<(bool, Running), String> {
        let load = load(order)?;
        let writes = load.shape.writes();
        if writes && is_shown(map, volume) {
            return Err(SHOWN.to_owned());
        }
        let device = self.volumes.get(volume).ok_or("its gateway does not know the volume yet; try again")?;
        // An order is taken on whatever thread the stream to the control plane is read.
        let _runtime = self.runtime.enter();
        Ok((writes, Running::start(device, load)))
    }

    /// Ends a load once its lease is over.
    fn watch_lease(&self, load: u64) {
        let loads = self.me.clone();
        self.runtime.spawn(async move {
            loop {
                tokio::time::sleep(LEASE_POLL).await;
                let Some(loads) = loads.upgrade() else { return };
                let mut known = loads.known.lock();
                match known.get(&load) {
                    None => return,
                    Some(known) if known.renewed.elapsed() <= LEASE => {}
                    Some(_) => {
                        tracing::info!(load, "nobody wants a load any more");
                        known.remove(&load);
                        return;
                    }
                }
            }
        });
    }

    /// Follows a map, before the targets do: no write is begun any more on what they show.
    pub(crate) fn see(&self, map: &ClusterMap) {
        let mut known = self.known.lock();
        for known in known.values_mut().filter(|known| known.writes) {
            if is_shown(map, known.volume) {
                let state = std::mem::replace(&mut known.state, State::Refused(SHOWN.to_owned()));
                known.state = match state {
                    State::Begun(running) => {
                        running.stop();
                        State::Shown(running)
                    }
                    state => state,
                };
            }
        }
    }

    /// Of each load, how it goes.
    pub(crate) fn report(&self) -> Vec<LoadReport> {
        let report = |(load, known): (&u64, &Known)| match &known.state {
            State::Begun(running) => report(*load, running.progress(), None),
            State::Shown(running) => report(*load, running.progress(), Some(SHOWN)),
            State::Refused(why) => {
                LoadReport { load: *load, ended: true, failure: why.clone(), ..LoadReport::default() }
            }
        };
        self.known.lock().iter().map(report).collect()
    }
}

const SHOWN: &str = "a target shows the volume now, and writes would destroy what initiators put there";

fn is_shown(map: &ClusterMap, volume: VolumeId) -> bool {
    map.targets.values().any(|target| target.luns.values().any(|lun| lun.volume == volume))
}

/// What an order asks for. The control plane has looked at it before; an impossible one must not do harm all the same.
fn load(order: &LoadOrder) -> Result<Load, String> {
    let read_percent = u8::try_from(order.read_percent).unwrap_or(u8::MAX);
    let pattern = match order.pattern {
        1 => Pattern::RandRead,
        2 => Pattern::RandWrite,
        3 => Pattern::Read,
        4 => Pattern::Write,
        5 => Pattern::Mixed { read_percent },
        other => return Err(format!("its gateway does not know pattern {other}")),
    };
    let LoadOrder { block_bytes, depth, duration_ms, start_bytes, end_bytes, seed, durable, .. } = *order;
    let fits = block_bytes <= SCSI_TRANSFER_BYTES_MAX
        && (1..=LOAD_DEPTH_MAX).contains(&depth)
        && u64::from(depth) * u64::from(block_bytes) <= LOAD_INFLIGHT_BYTES_MAX
        && duration_ms <= LOAD_MS_MAX;
    if !fits {
        return Err("it is larger than a load may be".to_owned());
    }
    let shape =
        Shape::new(pattern, block_bytes, start_bytes, end_bytes, seed).map_err(|error| error.to_string())?;
    Ok(Load { shape, depth, duration: Duration::from_millis(duration_ms), durable })
}

fn report(load: u64, progress: Progress, shown: Option<&str>) -> LoadReport {
    let Progress { phase, elapsed, all, reads, writes } = progress;
    let ended = phase != Phase::Running;
    let failure = match (phase, shown) {
        (Phase::Failed(error), _) => error.to_string(),
        (Phase::Ended, Some(shown)) => shown.to_owned(),
        _ => String::new(),
    };
    LoadReport {
        load,
        elapsed_us: u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX),
        all: Some(latencies(all)),
        reads: Some(latencies(reads)),
        writes: Some(latencies(writes)),
        ended,
        failure,
    }
}

fn latencies(summary: Summary) -> LoadLatencies {
    let Summary { operations, bytes, mean_ns, p50_ns, p90_ns, p99_ns, p999_ns, max_ns } = summary;
    LoadLatencies { operations, bytes, mean_ns, p50_ns, p90_ns, p99_ns, p999_ns, max_ns }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order() -> LoadOrder {
        LoadOrder {
            pattern: 5,
            read_percent: 70,
            block_bytes: 4096,
            depth: 8,
            duration_ms: 1000,
            end_bytes: 1 << 20,
            ..LoadOrder::default()
        }
    }

    #[test]
    fn an_impossible_order_is_refused() {
        // Guards a gateway against memory and time without bounds, ordered by a control plane of another version.
        assert!(load(&order()).is_ok());
        let edits: [fn(&mut LoadOrder); 8] = [
            |order| order.pattern = 6,
            |order| order.read_percent = 257,
            |order| order.block_bytes = 0,
            |order| order.block_bytes = u32::MAX,
            |order| order.depth = 0,
            |order| (order.depth, order.block_bytes) = (1024, 1 << 20),
            |order| order.duration_ms = u64::MAX,
            |order| order.start_bytes = u64::MAX,
        ];
        for (at, edit) in edits.iter().enumerate() {
            let mut order = order();
            edit(&mut order);
            assert!(load(&order).is_err(), "{at}");
        }
    }
}

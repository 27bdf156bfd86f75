//! A load on a volume, which its owner carries out.
//!
//! ```text
//! Bench --checked--> order --> owner: load          the order again, several times a second: somebody still wants it
//!   ^                            |
//!   '<-- progress <-- reports <--'
//! ```
//!
//! Nothing of it is committed: when this member leads no more the call ends, and the load with it, for nobody renews the order.

use std::time::Duration;

use lunette_proto::ids::GatewayId;
use lunette_proto::limits::{
    LOAD_DEPTH_MAX, LOAD_INFLIGHT_BYTES_MAX, LOAD_LEASE_MS, LOAD_MS_MAX, SCSI_TRANSFER_BYTES_MAX,
};
use lunette_proto::map::{ClusterMap, Volume};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::Context;
use super::errors::{invalid, status, stopping};
use super::volumes::not_found;
use crate::api::admin::load::Pattern;
use crate::api::admin::{BenchProgress, BenchVolumeRequest, Latencies, Load};
use crate::api::cluster::{LoadLatencies, LoadOrder, LoadReport};
use crate::health::Member;

/// Between two orders, each of which is answered with a report.
const RENEWAL: Duration = Duration::from_millis(250);
/// For how long an owner may say nothing of the load.
const SILENCE_MAX: Duration = Duration::from_millis(LOAD_LEASE_MS);

/// What a call follows.
struct Followed {
    gateway: GatewayId,
    name: String,
    write_back: bool,
    order: LoadOrder,
}

impl Context {
    /// Has the owner of a volume put a load on it.
    pub(super) async fn bench(
        &self,
        request: BenchVolumeRequest,
    ) -> Result<ReceiverStream<Result<BenchProgress, Status>>, Status> {
        let BenchVolumeRequest { name, load, destroy_data } = request;
        let load = load.unwrap_or_default();
        let state = self.state().await?;
        let map = state.map();
        let volume = map.volume_by_name(&name).ok_or_else(|| not_found(&name))?;
        let pattern = check(&load, volume)?;
        if writes(pattern, &load) {
            check_may_write(map, volume, destroy_data)?;
        }
        let owner = volume.owner.map(|owner| owner.gateway).and_then(|owner| map.gateways.get(&owner));
        let Some(gateway) = owner else {
            let sentence =
                format!("no gateway owns volume {name:?}; start one, `lunette status` shows those there are");
            return Err(status(Code::Unavailable, "NO_OWNER", sentence));
        };
        let order = LoadOrder {
            load: uuid::Uuid::new_v4().as_u64_pair().0,
            stop: false,
            volume: volume.id.0,
            pattern: u32::try_from(load.pattern).unwrap_or_default(),
            read_percent: load.read_percent,
            block_bytes: load.block_bytes,
            depth: load.depth,
            duration_ms: load.duration_ms,
            start_bytes: load.start_bytes,
            end_bytes: if load.end_bytes == 0 { volume.size_bytes } else { load.end_bytes },
            seed: load.seed,
            durable: load.durable,
        };
        if !self.attachments.load(gateway.id, order) {
            let sentence = format!(
                "gateway {}, which owns volume {name:?}, takes no orders at the moment; try again when it is up",
                gateway.name
            );
            return Err(status(Code::Unavailable, "GATEWAY_DOWN", sentence));
        }
        let write_back = volume.write_back;
        let followed = Followed { gateway: gateway.id, name: gateway.name.clone(), write_back, order };
        let (out, stream) = mpsc::channel(1);
        self.tasks.spawn(self.shared().follow_load(followed, out));
        Ok(ReceiverStream::new(stream))
    }

    async fn follow_load(
        self: std::sync::Arc<Self>,
        followed: Followed,
        out: mpsc::Sender<Result<BenchProgress, Status>>,
    ) {
        let told = tokio::select! {
            told = self.tell_of_load(&followed, &out) => told,
            () = out.closed() => Ok(()),
            () = self.stop.cancelled() => Err(stopping()),
        };
        // It is over, or ends now; an owner that does not hear of it ends it by itself.
        self.attachments.load(followed.gateway, LoadOrder { stop: true, ..followed.order });
        if let Err(status) = told {
            // Whoever has gone does not want to know.
            let _ = out.send(Err(status)).await;
        }
    }

    async fn tell_of_load(
        &self,
        followed: &Followed,
        out: &mpsc::Sender<Result<BenchProgress, Status>>,
    ) -> Result<(), Status> {
        let Followed { gateway, name, order, .. } = followed;
        let mut heard = Instant::now();
        let mut told = 0;
        loop {
            sleep(RENEWAL).await;
            let report =
                self.attachments.read(|registry, now| registry.load(*gateway, order.load, now).cloned());
            if let Some(report) = report {
                heard = Instant::now();
                if report.ended || report.elapsed_us > told {
                    told = report.elapsed_us;
                    let (ended, failure) = (report.ended, report.failure.clone());
                    if out.send(Ok(progress(report, followed))).await.is_err() {
                        return Ok(());
                    }
                    if !failure.is_empty() {
                        let sentence = format!("the load has ended early: {failure}");
                        return Err(status(Code::Aborted, "LOAD_FAILED", sentence));
                    }
                    if ended {
                        return Ok(());
                    }
                }
            } else if heard.elapsed() > SILENCE_MAX {
                let is_up =
                    self.attachments.read(|registry, now| registry.is_up(Member::Gateway(*gateway), now));
                let what = if is_up { "says nothing of the load" } else { "has gone, and the load with it" };
                return Err(status(Code::Aborted, "GATEWAY_DOWN", format!("gateway {name} {what}")));
            }
            // One that takes none at the moment has those before.
            self.attachments.load(*gateway, *order);
        }
    }
}

/// Whether a load can be put on a volume at all.
fn check(load: &Load, volume: &Volume) -> Result<Pattern, Status> {
    let wrong =
        |field: &str, reason: &str, sentence: String| invalid(&format!("load.{field}"), reason, sentence);
    let pattern = match load.pattern() {
        Pattern::Unspecified => {
            let sentence = "a load needs a pattern: randread, randwrite, read, write or mixed".to_owned();
            return Err(wrong("pattern", "PATTERN_UNKNOWN", sentence));
        }
        pattern => pattern,
    };
    if pattern == Pattern::Mixed && load.read_percent > 100 {
        let sentence = format!("{} of a hundred commands cannot read; 0 to 100 can", load.read_percent);
        return Err(wrong("read_percent", "READ_PERCENT", sentence));
    }
    let block = volume.block_bytes;
    if load.block_bytes == 0
        || load.block_bytes > SCSI_TRANSFER_BYTES_MAX
        || !load.block_bytes.is_multiple_of(block.max(1))
    {
        let sentence = format!(
            "commands of {} bytes are none: volume {:?} takes multiples of {block}, up to {SCSI_TRANSFER_BYTES_MAX}",
            load.block_bytes, volume.name
        );
        return Err(wrong("block_bytes", "BLOCK_SIZE", sentence));
    }
    if !(1..=LOAD_DEPTH_MAX).contains(&load.depth) {
        let sentence = format!("{} commands at a time cannot be; 1 to {LOAD_DEPTH_MAX} can", load.depth);
        return Err(wrong("depth", "DEPTH", sentence));
    }
    if u64::from(load.depth) * u64::from(load.block_bytes) > LOAD_INFLIGHT_BYTES_MAX {
        let sentence = format!(
            "{} commands of {} bytes at a time are too much data: at most {LOAD_INFLIGHT_BYTES_MAX} bytes (128 MiB)",
            load.depth, load.block_bytes
        );
        return Err(wrong("depth", "DEPTH", sentence));
    }
    if !(1..=LOAD_MS_MAX).contains(&load.duration_ms) {
        let sentence = format!("a load lasts 1 to {LOAD_MS_MAX} ms (an hour), not {}", load.duration_ms);
        return Err(wrong("duration_ms", "DURATION", sentence));
    }
    let end = if load.end_bytes == 0 { volume.size_bytes } else { load.end_bytes };
    if end > volume.size_bytes {
        let sentence = format!("volume {:?} ends at byte {}, before {end}", volume.name, volume.size_bytes);
        return Err(wrong("end_bytes", "RANGE", sentence));
    }
    if !load.start_bytes.is_multiple_of(u64::from(block.max(1))) {
        let sentence =
            format!("byte {} is not where a logical block of {block} bytes starts", load.start_bytes);
        return Err(wrong("start_bytes", "RANGE", sentence));
    }
    if end.saturating_sub(load.start_bytes) < u64::from(load.block_bytes) {
        let sentence = format!(
            "from byte {} to byte {end} there is no room for one command of {} bytes",
            load.start_bytes, load.block_bytes
        );
        return Err(wrong("end_bytes", "RANGE", sentence));
    }
    Ok(pattern)
}

fn writes(pattern: Pattern, load: &Load) -> bool {
    match pattern {
        Pattern::Unspecified | Pattern::Randread | Pattern::Read => false,
        Pattern::Randwrite | Pattern::Write => true,
        Pattern::Mixed => load.read_percent < 100,
    }
}

/// Whether nobody would miss what the volume holds.
fn check_may_write(map: &ClusterMap, volume: &Volume, destroy_data: bool) -> Result<(), Status> {
    let name = &volume.name;
    let target = map.targets.values().find(|target| target.luns.values().any(|lun| lun.volume == volume.id));
    if let Some(target) = target {
        let sentence = format!(
            "target {} shows volume {name:?} to initiators, and a load that writes would destroy their data: \
             use a volume that no target shows, such as a new one, or `lunette target unmap {} {name}` first",
            target.iqn, target.iqn
        );
        return Err(status(Code::FailedPrecondition, "VOLUME_MAPPED", sentence));
    }
    if !destroy_data {
        let sentence = format!(
            "a load that writes destroys what volume {name:?} holds; say --destroy-data if that may be"
        );
        return Err(status(Code::FailedPrecondition, "DESTROYS_DATA", sentence));
    }
    Ok(())
}

fn progress(report: LoadReport, followed: &Followed) -> BenchProgress {
    BenchProgress {
        gateway: followed.name.clone(),
        elapsed_us: report.elapsed_us,
        write_back: followed.write_back,
        all: report.all.map(latencies),
        reads: report.reads.map(latencies),
        writes: report.writes.map(latencies),
        ended: report.ended,
    }
}

fn latencies(said: LoadLatencies) -> Latencies {
    let LoadLatencies { operations, bytes, mean_ns, p50_ns, p90_ns, p99_ns, p999_ns, max_ns } = said;
    Latencies { operations, bytes, mean_ns, p50_ns, p90_ns, p99_ns, p999_ns, max_ns }
}

#[cfg(test)]
mod tests {
    use lunette_proto::ids::{Generation, PoolId, TargetId, VolumeId};
    use lunette_proto::map::{Lun, Target, VolumeState};

    use super::*;

    fn volume() -> Volume {
        Volume {
            id: VolumeId(1),
            name: "v".to_owned(),
            pool: PoolId(1),
            size_bytes: 1 << 20,
            stripe: None,
            block_bytes: 512,
            write_back: false,
            generation: Generation(1),
            owner: None,
            state: VolumeState::Active,
        }
    }

    fn load() -> Load {
        Load {
            pattern: Pattern::Mixed.into(),
            read_percent: 70,
            block_bytes: 4096,
            depth: 32,
            duration_ms: 1000,
            ..Load::default()
        }
    }

    #[test]
    fn a_load_that_cannot_be_is_refused_by_its_field() {
        // Guards against a division by zero, an endless load and accesses beyond the end, ordered over the API.
        type Edit = fn(&mut Load);
        let table: [(Edit, &str); 15] = [
            (|load| load.pattern = 0, "pattern"),
            (|load| load.pattern = 77, "pattern"),
            (|load| load.read_percent = 101, "read_percent"),
            (|load| load.block_bytes = 0, "block_bytes"),
            (|load| load.block_bytes = 1000, "block_bytes"),
            (|load| load.block_bytes = (8 << 20) + 512, "block_bytes"),
            (|load| load.depth = 0, "depth"),
            (|load| load.depth = 1025, "depth"),
            (|load| (load.depth, load.block_bytes) = (129, 1 << 20), "depth"),
            (|load| load.duration_ms = 0, "duration_ms"),
            (|load| load.duration_ms = 3_600_001, "duration_ms"),
            (|load| load.end_bytes = (1 << 20) + 1, "end_bytes"),
            (|load| load.start_bytes = 1, "start_bytes"),
            (|load| load.start_bytes = (1 << 20) - 512, "end_bytes"),
            (|load| load.start_bytes = u64::MAX - 511, "end_bytes"),
        ];
        assert_eq!(check(&load(), &volume()).ok(), Some(Pattern::Mixed));
        for (edit, field) in table {
            let mut load = load();
            edit(&mut load);
            let refused = check(&load, &volume()).expect_err(field);
            assert_eq!(refused.code(), Code::InvalidArgument, "{field}");
            let details = tonic_types::StatusExt::get_error_details(&refused);
            let named = details.bad_request().map(|it| it.field_violations[0].field.clone());
            assert_eq!(named, Some(format!("load.{field}")), "{refused}");
        }
    }

    #[test]
    fn a_load_that_writes_needs_a_volume_of_its_own_and_a_word() {
        // Guards every volume in use against a benchmark that overwrites it.
        let mut map = ClusterMap::default();
        let volume = volume();
        assert_eq!(
            check_may_write(&map, &volume, false).expect_err("not said").code(),
            Code::FailedPrecondition
        );
        assert!(check_may_write(&map, &volume, true).is_ok());
        let lun = Lun { volume: volume.id, read_only: true };
        let target = Target { luns: [(0, lun)].into(), ..target() };
        map.targets.insert(target.id, target);
        let refused = check_may_write(&map, &volume, true).expect_err("shown");
        assert!(refused.message().contains("lunette target unmap iqn.t v"), "{refused}");
        for (pattern, percent, want) in [
            (Pattern::Randread, 0, false),
            (Pattern::Read, 0, false),
            (Pattern::Write, 100, true),
            (Pattern::Randwrite, 100, true),
            (Pattern::Mixed, 99, true),
            (Pattern::Mixed, 100, false),
        ] {
            assert_eq!(
                writes(pattern, &Load { read_percent: percent, ..load() }),
                want,
                "{pattern:?} {percent}"
            );
        }
    }

    fn target() -> Target {
        Target {
            id: TargetId(1),
            iqn: "iqn.t".to_owned(),
            luns: [].into(),
            acls: Vec::new(),
            chap: None,
            draining: false,
        }
    }
}

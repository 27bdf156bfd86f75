//! What a gateway says of disks: those that do not answer, and copies that are brought up to date.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use lunette_control::api::cluster::unreachable_disk::Trouble as Kind;
use lunette_control::api::cluster::{CatchUpReport, LimpingDisk, OwnedVolume, UnreachableDisk};
use lunette_proto::ids::{DiskId, Generation, PoolId, VolumeId};
use lunette_proto::map::{ClusterMap, Partitions};
use lunette_volume::owner::{CatchUp, Limping, Trouble};
use lunette_volume::volumes::Unreachable;

/// Of a report, so that it stays one that is taken. What is left out is said when the first are done and say nothing more.
const CATCH_UPS_BYTES_MAX: usize = 8 << 20;

/// A disk that does not answer.
pub(super) fn complaint(unreachable: &Unreachable) -> UnreachableDisk {
    let trouble = match unreachable.trouble {
        Trouble::Disconnected => Kind::Disconnected,
        Trouble::Failed => Kind::Failed,
        Trouble::Untrusted => Kind::Untrusted,
    };
    UnreachableDisk {
        disk: unreachable.disk.0,
        lasting_ms: u64::try_from(unreachable.lasting.as_millis()).unwrap_or(u64::MAX),
        trouble: trouble.into(),
    }
}

/// A disk that is slow.
pub(super) fn limping(limping: &Limping) -> LimpingDisk {
    LimpingDisk { disk: limping.disk.0, mean_ms: limping.mean_ms, others_ms: limping.others_ms }
}

/// What the owners of volumes say of copies, put together: a partition is ready when it is in all volumes of its pool.
pub(super) fn catch_ups(
    map: &ClusterMap,
    said: impl IntoIterator<Item = (VolumeId, Generation, CatchUp)>,
) -> Vec<CatchUpReport> {
    let mut together: BTreeMap<(PoolId, DiskId), (CatchUpReport, Partitions)> = BTreeMap::new();
    for (volume, generation, catch_up) in said {
        // One that is gone, or that the next map brings: the next report says it.
        let Some(pool) = map.volumes.get(&volume).map(|volume| volume.pool) else { continue };
        let CatchUp { disk, epoch, ready, behind: _, waiting_extents, checked_extents, copied_bytes } =
            catch_up;
        let report = match together.entry((pool, disk)) {
            Entry::Vacant(entry) => {
                let (pool, disk, epoch) = (pool.0, disk.0, epoch.0);
                let report = CatchUpReport { pool, disk, epoch, ..CatchUpReport::default() };
                &mut entry.insert((report, ready)).0
            }
            Entry::Occupied(entry) => {
                let (report, all) = entry.into_mut();
                *all = all.intersection(&ready);
                report
            }
        };
        report.epoch = report.epoch.min(epoch.0);
        report.volumes.push(OwnedVolume { volume: volume.0, generation: generation.0 });
        report.waiting_extents = report.waiting_extents.saturating_add(waiting_extents);
        report.checked_extents = report.checked_extents.saturating_add(checked_extents);
        report.copied_bytes = report.copied_bytes.saturating_add(copied_bytes);
    }
    let mut bytes = 0;
    together
        .into_values()
        .map(|(report, ready)| CatchUpReport { ready: ready.to_bytes().into(), ..report })
        .take_while(|report| {
            bytes += encoded_bytes(report);
            bytes <= CATCH_UPS_BYTES_MAX
        })
        .collect()
}

/// At most that; numbers are encoded in up to ten bytes and a tag.
fn encoded_bytes(report: &CatchUpReport) -> usize {
    64 + report.ready.len() + report.volumes.len() * 24
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use lunette_proto::ids::{Epoch, Partition};
    use lunette_proto::map::{Volume, VolumeState};

    use super::*;

    fn set(partitions: &[u32]) -> Partitions {
        partitions.iter().copied().map(Partition).collect()
    }

    fn map(volumes: &[(u64, u32)]) -> Arc<ClusterMap> {
        let volume = |&(id, pool): &(u64, u32)| Volume {
            id: VolumeId(id),
            name: format!("v{id}"),
            pool: PoolId(pool),
            size_bytes: 4096,
            stripe: None,
            block_bytes: 512,
            write_back: false,
            generation: Generation(1),
            owner: None,
            state: VolumeState::Active,
        };
        let volumes = volumes.iter().map(|it| (VolumeId(it.0), volume(it))).collect();
        Arc::new(ClusterMap { volumes, ..ClusterMap::default() })
    }

    fn said(volume: u64, disk: u32, ready: &[u32]) -> (VolumeId, Generation, CatchUp) {
        let catch_up = CatchUp {
            disk: DiskId(disk),
            epoch: Epoch(100 - volume),
            ready: set(ready),
            behind: Partitions::default(),
            waiting_extents: 1,
            checked_extents: 2,
            copied_bytes: u64::MAX / 2,
        };
        (VolumeId(volume), Generation(volume * 10), catch_up)
    }

    #[test]
    fn ready_is_what_is_ready_in_every_volume() {
        // Guards against a copy that counts although one volume has not said that it is equal.
        let map = map(&[(1, 1), (2, 1), (3, 2)]);
        let all = [said(1, 7, &[0, 5, 9]), said(2, 7, &[5, 9, 70]), said(3, 7, &[0]), said(1, 8, &[1])];
        let reports = catch_ups(&map, all.into_iter().chain([said(4, 7, &[])]));
        let seen: Vec<_> = reports
            .iter()
            .map(|it| {
                let owners: Vec<_> = it.volumes.iter().map(|it| (it.volume, it.generation)).collect();
                (it.pool, it.disk, owners, Partitions::from_bytes(&it.ready).expect("a bitmap"))
            })
            .collect();
        assert_eq!(
            seen,
            [
                (1, 7, vec![(1, 10), (2, 20)], set(&[5, 9])),
                (1, 8, vec![(1, 10)], set(&[1])),
                (2, 7, vec![(3, 30)], set(&[0])),
            ]
        );
        assert_eq!((reports[0].epoch, reports[1].epoch, reports[2].epoch), (98, 99, 97), "the oldest counts");
        assert_eq!((reports[0].waiting_extents, reports[0].checked_extents), (2, 4));
        let three = [said(1, 7, &[]), said(2, 7, &[]), said(2, 7, &[])];
        assert_eq!(catch_ups(&map, three)[0].copied_bytes, u64::MAX, "sums do not overflow");
    }

    #[test]
    fn a_report_stays_small_enough() {
        // Guards against a report that the control plane refuses, with which the gateway would count as down.
        let map = map(&[(1, 1)]);
        let wide: Vec<u32> = (0..65_536).collect();
        let reports = catch_ups(&map, (0..2000).map(|disk| said(1, disk, &wide)));
        let bytes: usize = reports.iter().map(encoded_bytes).sum();
        assert!(bytes <= CATCH_UPS_BYTES_MAX && reports.len() > 500, "{} of {bytes} bytes", reports.len());
        assert!(reports.iter().zip(0..).all(|(report, disk)| report.disk == disk));
    }
}

//! kill -9: a process that commits one volume after the other dies, and what it has said is there.
//!
//! The test starts itself again as that process.

mod support;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use lunette_control::api::admin::{CreatePoolRequest, CreateVolumeRequest};
use lunette_control::api::cluster::{OwnedVolume, TakeOwnershipRequest};
use lunette_control::client::connect;
use lunette_control::state;
use lunette_proto::ids::{DiskId, Partition, PoolId, VolumeId};
use lunette_proto::map::{ClusterMap, DiskState};
use support::{PATIENCE, Plane, node};

/// Names the folder to the process that is to be killed.
const FOLDER: &str = "LUNETTE_TEST_KILL_FOLDER";

/// The process that is killed: says each volume on standard output once it is answered.
async fn commit_for_ever(folder: &Path) {
    let control = support::open(folder).await;
    let plane =
        lunette_control::client::ControlPlane::new([control.address().to_string()]).expect("an address");
    plane.register_node(PATIENCE, &node(1)).await.expect("registers");
    let mut admin = connect(&control.address().to_string()).expect("an address");
    let pool =
        CreatePoolRequest { name: "default".into(), replicas: 1, partitions: 16, ..Default::default() };
    // It is there already after the first death.
    let _ = admin.pools.create(pool).await;
    let first = control.map().volumes.len();
    for index in first.. {
        let request =
            CreateVolumeRequest { name: format!("v{index}"), size_bytes: 4096, ..Default::default() };
        admin.volumes.create(request).await.expect("creates");
        println!("\nanswered {index}");
    }
}

/// Has one disk leave, return and catch up, for ever, and says on standard output what is committed.
async fn leave_and_return_for_ever(folder: &Path) {
    let control = support::open(folder).await;
    let plane =
        lunette_control::client::ControlPlane::new([control.address().to_string()]).expect("an address");
    for index in 1..=3 {
        plane.register_node(PATIENCE, &node(index)).await.expect("registers");
    }
    let gateway = plane.register_gateway(PATIENCE, &support::gateway()).await.expect("registers").gateway;
    let mut admin = connect(&control.address().to_string()).expect("an address");
    let pool =
        CreatePoolRequest { name: "default".into(), replicas: 3, partitions: 64, ..Default::default() };
    // They are there already after the first death.
    let _ = admin.pools.create(pool).await;
    let volume = CreateVolumeRequest { name: "v".into(), size_bytes: 4096, ..Default::default() };
    let _ = admin.volumes.create(volume).await;
    // Without an owner the leader would let the disk catch up by itself.
    let generation = control.map().volumes[&VolumeId(1)].generation.0;
    let take = TakeOwnershipRequest { gateway, volumes: vec![OwnedVolume { volume: 1, generation }] };
    plane.take_ownership(PATIENCE, &take).await.expect("takes");
    let disk = DiskId(2);
    loop {
        let map = control.map();
        let (state, behind) = copies(&map);
        let command = match state {
            DiskState::InSync => state::Command::Evict { disk, seen: state },
            DiskState::Out => state::Command::Return { disk },
            DiskState::CatchingUp => state::Command::CaughtUp {
                disk,
                pool: PoolId(1),
                partitions: Arc::new((0..if behind.len() == 64 { 20 } else { 64 }).map(Partition).collect()),
                epoch: map.epoch,
                owners: state::owned_volumes(&map, PoolId(1)).collect(),
            },
        };
        let committed = control.consensus().propose(command).await.expect("commits");
        let (state, behind) = copies(&control.map());
        println!("\ncopies {} {state:?} {behind:?}", committed.epoch.0);
    }
}

/// The state of disk 2, and which of its copies do not count.
fn copies(map: &ClusterMap) -> (DiskState, Vec<u32>) {
    let behind = map.behind.get(&(PoolId(1), DiskId(2)));
    let behind = behind.map(|behind| behind.partitions.iter().map(|partition| partition.0).collect());
    (map.disks[&DiskId(2)].state, behind.unwrap_or_default())
}

/// Guards the knowledge of which copies count against the death of the process in the middle of a disk's leaving, returning and
/// catching up: it is what was committed last, to the partition.
#[tokio::test]
async fn copies_that_do_not_count() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        return leave_and_return_for_ever(Path::new(&folder)).await;
    }
    let mut folder = tempfile::tempdir().expect("a folder");
    for round in 0..6 {
        let mut process = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "copies_that_do_not_count", "--nocapture"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        let lines = BufReader::new(process.stdout.take().expect("piped")).lines();
        let lines = lines.map(|line| line.expect("text")).filter(|line| line.starts_with("copies "));
        // Another step of the four each time.
        let said: Vec<String> = lines.take(13 + round).collect();
        process.kill().expect("runs");
        process.wait().expect("ends");

        let plane = Plane::in_folder(folder).await;
        let map = plane.control.map();
        let (state, behind) = copies(&map);
        let mut words = said.last().expect("some").splitn(3, ' ').skip(1);
        let last: u64 = words.next().expect("an epoch").parse().expect("a number");
        let what = words.next().expect("what was committed");
        assert!(map.epoch.0 >= last, "epoch {last} was answered, and there is {}", map.epoch);
        if map.epoch.0 == last {
            assert_eq!(format!("{state:?} {behind:?}"), what);
        }
        let step = match (state, behind.len()) {
            (DiskState::InSync, 0) | (DiskState::Out | DiskState::CatchingUp, 64) => true,
            (DiskState::CatchingUp, 44) => behind[0] == 20,
            _ => false,
        };
        assert!(step, "no step of the way: {state:?} {behind:?}");
        folder = plane.folder;
        plane.control.stop().await;
    }
}

/// Guards what was answered against the death of the process, several times over in one folder.
#[tokio::test]
async fn killed() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        return commit_for_ever(Path::new(&folder)).await;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let mut answered = 0;
    for round in 1..=3 {
        let mut process = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "killed", "--nocapture"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        let lines = BufReader::new(process.stdout.take().expect("piped")).lines();
        for line in lines {
            if let Some(index) = line.expect("text").strip_prefix("answered ") {
                answered = index.parse().expect("a number");
                if answered >= round * 20 {
                    break;
                }
            }
        }
        // SIGKILL, while the next is under way.
        process.kill().expect("runs");
        process.wait().expect("ends");
    }
    assert!(answered >= 60, "it was killed in the middle of its work");
    let plane = Plane::in_folder(folder).await;
    let map = plane.control.map();
    for index in 0..=answered {
        assert!(map.volume_by_name(&format!("v{index}")).is_some(), "v{index} was answered and is gone");
    }
    let more = map.volumes.len() - (answered + 1);
    assert!(more <= 4, "at most a few that were committed as the process died, not {more}");
    plane.control.stop().await;
}

//! kill -9: a process that commits one volume after the other dies, and what it has said is there.
//!
//! The test starts itself again as that process.

mod support;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use lunette_control::api::admin::{CreatePoolRequest, CreateVolumeRequest};
use lunette_control::client::connect;
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

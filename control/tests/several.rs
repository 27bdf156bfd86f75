//! Three members: they replicate, the others name the leader, and they go on without it.

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use lunette_control::api::admin::StatusRequest;
use lunette_control::client::{ControlPlane, MapWatcher, connect};
use lunette_control::{Control, ControlConfig, ControlError};
use support::{PATIENCE, gateway, node, reason};
use tokio::time::{sleep, timeout};
use tonic::Code;

/// Guards the way to several members: a cluster that grew from one to three survives its leader.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_is_lost() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = support::open(folder.path()).await;
    let mut members = Vec::new();
    for member in [2, 3] {
        let config = ControlConfig {
            cluster: Some(first.cluster()),
            member: Some(member),
            join: true,
            ..support::config(folder.path())
        };
        let path = folder.path().join(format!("control{member}"));
        let joining = Control::open(&path, config).await.expect("opens");
        let address = joining.address().to_string();
        let (served, added) = tokio::join!(joining.serve(), first.consensus().add_learner(member, address));
        added.expect("is added");
        served.expect("is found");
        members.push(joining);
    }
    let vote = || first.consensus().change_members(BTreeSet::from([2, 3]), BTreeSet::new());
    let all_vote = async {
        // Until they have answered the leader, they are not up.
        while vote().await.is_err() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, all_vote).await.expect("they vote");

    let follower = members[0].address().to_string();
    let mut admin = connect(&follower).expect("an address");
    let status = admin.cluster.status(StatusRequest {}).await.expect_err("a follower");
    assert_eq!((status.code(), reason(&status)), (Code::Unavailable, "NOT_LEADER".into()));
    assert!(status.message().contains(&first.address().to_string()), "{status:?}");

    let addresses: Vec<String> =
        members.iter().chain([&first]).map(|control| control.address().to_string()).collect();
    let plane = ControlPlane::new(&addresses).expect("addresses");
    let watcher = MapWatcher::start(plane.clone(), Some(first.cluster()));
    plane.register_node(PATIENCE, &node(1)).await.expect("finds the leader");
    let epoch = first.map().epoch;
    timeout(PATIENCE, watcher.at_least(epoch)).await.expect("in time").expect("watched");

    first.stop().await;
    plane.register_gateway(PATIENCE, &gateway()).await.expect("finds the new leader");
    let next = lunette_proto::ids::Epoch(epoch.0 + 1);
    let map = timeout(PATIENCE, watcher.at_least(next)).await.expect("in time").expect("watched");
    assert_eq!((map.nodes.len(), map.gateways.len()), (1, 1));
    watcher.stop().await;
    for member in members {
        member.stop().await;
    }
}

/// Guards against a member that joins nothing: it must know the cluster and have its key.
#[tokio::test]
async fn joining_needs_a_cluster() {
    let folder = tempfile::tempdir().expect("a folder");
    let nameless = ControlConfig { join: true, ..support::config(folder.path()) };
    let error = Control::open(&folder.path().join("control"), nameless).await.err().expect("refused");
    assert!(matches!(error, ControlError::JoinUnnamed), "{error}");
    let cluster = Some(lunette_proto::ids::ClusterId(1));
    let keyless = ControlConfig { join: true, cluster, ..support::config(folder.path()) };
    let error = Control::open(&folder.path().join("control"), keyless).await.err().expect("refused");
    assert!(matches!(error, ControlError::Open(_)), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).expect("there").count(), 0);
}

//! A single member: leads at once, and again after a restart.

use std::path::Path;

use lunette_proto::ids::ClusterId;

use super::store::{Wanted, open};
use super::*;

async fn start(folder: &Path) -> (RaftMember, std::sync::Arc<crate::published::Published>) {
    let wanted = Wanted { cluster: Some(ClusterId(7)), member: Some(1), key: folder.join("cluster.key") };
    let opened = open(folder, &wanted).expect("opens");
    let member =
        RaftMember::start(opened.identity, opened.store, opened.log, opened.machine, Default::default());
    let member = member.await.expect("starts");
    member.found_or_resume("127.0.0.1:1", false).await.expect("founds");
    member.leading().wait_for(|leading| *leading).await.expect("leads");
    (member, opened.published)
}

/// Guards the log's purpose: what was answered is there after a restart, and a refusal is no entry.
#[tokio::test]
async fn restarts() {
    let folder = tempfile::tempdir().expect("a folder");
    let (member, published) = start(folder.path()).await;
    let found = |cluster| Command::Found { cluster: ClusterId(cluster) };
    let committed = member.propose(found(7)).await.expect("commits");
    assert_eq!(committed.epoch, Epoch(1));
    let refused = member.propose(found(8)).await.expect_err("another cluster");
    assert_eq!(refused, ProposeError::Rejected(Rejection::OtherCluster));
    assert_eq!(published.state().map().epoch, Epoch(1));
    member.stop().await;
    assert!(matches!(member.read_barrier().await, Err(ConsensusError::Stopped { .. })));

    let (member, published) = start(folder.path()).await;
    member.read_barrier().await.expect("leads");
    assert_eq!(published.state().map().cluster, ClusterId(7));
    let metrics = member.metrics();
    assert_eq!((metrics.member, metrics.leader), (1, Some(1)));
    assert_eq!(
        metrics.members,
        [Member { id: 1, address: "127.0.0.1:1".into(), voter: true, up: true, behind: Some(0) }]
    );
    member.stop().await;
}

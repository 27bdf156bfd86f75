//! The set of a node's disks: one that is added while it runs.

#![allow(clippy::unwrap_used, reason = "a test fails where it stops")]

mod support;

use lunette_proto::ids::ClusterId;
use lunette_proto::node::{Failure, RequestBody};
use lunette_storage_node::{DiskConfig, DiskError, Node};
use support::{CLUSTER, Client, DISK, blocks, format};

#[test]
fn a_disk_is_added_to_a_running_node() {
    // Guards against a disk that is said to be added and answers nothing, and one that is lost at the next start.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    format(&path);
    let config = DiskConfig { path: path.clone(), capacity_bytes: Some(64 << 20), disk: Some(DISK) };
    let mut disk = Client::new(Node::open(CLUSTER, []).unwrap());
    let identify = RequestBody::Identify { cluster: CLUSTER };
    assert_eq!(disk.call(identify.clone()), Err(Failure::NoSuchDisk));

    let status = disk.node.add(&config).unwrap();
    assert_eq!((status.disk, status.capacity_bytes, status.failure.clone()), (DISK, 64 << 20, None));
    assert_eq!(disk.node.disks(), [status]);
    disk.call(identify).unwrap();
    disk.seal(1);
    disk.write(0, 1, 0, blocks(5, 2)).unwrap();
    assert_eq!(disk.read(0, 0, 2).unwrap(), blocks(5, 2));
    disk.node.close();
    drop(disk);

    let mut again = Client::new(Node::open(CLUSTER, []).unwrap());
    again.node.add(&config).unwrap();
    again.seal(2);
    assert_eq!(again.read(0, 0, 2).unwrap(), blocks(5, 2));
    again.node.close();
}

#[test]
fn a_disk_that_cannot_be_added_changes_nothing() {
    // Guards against a disk that two engines write to, or of another cluster; and against one that stays open behind
    // a node that was closed meanwhile.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let config = DiskConfig::new(&path, Some(1 << 30));
    let node = Node::open(CLUSTER, []).unwrap();
    assert!(node.add(&config).is_err(), "not formatted");
    format(&path);
    let other = Node::open(ClusterId(9), []).unwrap();
    assert!(matches!(other.add(&config), Err(DiskError::WrongCluster { .. })));
    assert!(other.disks().is_empty());
    node.add(&config).unwrap();
    let named = DiskConfig { disk: Some(DISK), ..config.clone() };
    assert!(matches!(node.add(&named), Err(DiskError::Duplicate(DISK))));
    assert!(node.add(&config).is_err(), "in use, by itself");
    assert_eq!(node.disks().len(), 1);

    node.close();
    drop(node);
    let late = Node::open(CLUSTER, []).unwrap();
    late.close();
    late.add(&config).unwrap();
    let mut late = Client::new(late);
    assert_eq!(
        late.call(RequestBody::Flush { namespace: support::NS, generation: late.generation }),
        Err(Failure::Disconnected)
    );
}

//! How a gateway reaches storage nodes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use arc_swap::ArcSwapOption;
use lunette_proto::ids::{ClusterId, NodeId};
use lunette_proto::map;
use lunette_proto::node::Service;
use parking_lot::Mutex;

use crate::client::NodeClient;

/// The ways to the nodes of a cluster. A gateway with a node in its own process puts its own in
/// front of [`TcpFabric`].
pub trait Fabric: Send + Sync {
    /// The way to a node. Asked again with every map; gives the same as long as the node stays where it is and
    /// is the same process: another way counts as a lost connection.
    fn service(&self, node: &map::Node) -> Arc<dyn Service>;

    /// Whether a node is reached without a network: its disks are read first.
    fn is_local(&self, node: NodeId) -> bool;

    /// The nodes that the map names; ways to others can be given up.
    fn retain(&self, nodes: &BTreeMap<NodeId, map::Node>);

    /// Who is told of every connection that breaks, before anything is answered over a new one. A
    /// node in the same process is never lost.
    fn watch(&self, links: Weak<dyn Links>);
}

/// Who wants to know of lost connections.
pub trait Links: Send + Sync {
    /// The connection to a node broke; the node may have restarted. Must not block.
    fn lost(&self, node: NodeId);
}

/// One TCP connection per node.
pub struct TcpFabric {
    cluster: ClusterId,
    name: String,
    clients: Mutex<BTreeMap<NodeId, (SocketAddr, Arc<NodeClient>)>>,
    links: Arc<ArcSwapOption<Weak<dyn Links>>>,
}

impl TcpFabric {
    /// For a gateway called `name` in the logs of the nodes. Used inside a tokio runtime only.
    #[must_use]
    pub fn new(cluster: ClusterId, name: impl Into<String>) -> Self {
        Self {
            cluster,
            name: name.into(),
            clients: Mutex::new(BTreeMap::new()),
            links: Arc::new(ArcSwapOption::empty()),
        }
    }
}

impl Fabric for TcpFabric {
    fn service(&self, node: &map::Node) -> Arc<dyn Service> {
        let mut clients = self.clients.lock();
        if let Some((address, client)) = clients.get(&node.id)
            && *address == node.address
        {
            return Arc::clone(client) as Arc<dyn Service>;
        }
        let links = Arc::clone(&self.links);
        let client = Arc::new(NodeClient::new(self.cluster, &self.name, node.id, node.address, links));
        let old = clients.insert(node.id, (node.address, Arc::clone(&client)));
        drop(clients);
        // Its requests are answered as it goes, which takes no lock of ours.
        drop(old);
        client
    }

    fn is_local(&self, _: NodeId) -> bool {
        false
    }

    fn retain(&self, nodes: &BTreeMap<NodeId, map::Node>) {
        let gone: Vec<_> = {
            let mut clients = self.clients.lock();
            let gone: Vec<NodeId> = clients.keys().copied().filter(|id| !nodes.contains_key(id)).collect();
            gone.iter().filter_map(|id| clients.remove(id)).collect()
        };
        drop(gone);
    }

    fn watch(&self, links: Weak<dyn Links>) {
        self.links.store(Some(Arc::new(links)));
    }
}

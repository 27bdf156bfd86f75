//! `lunette up` in one process: the gateway calls the nodes directly, without a socket and without
//! copying data. The nodes still listen, for gateways elsewhere.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::future::{join_all, try_join_all};
use lunette_control::api::cluster::RegisterNodeResponse;
use lunette_control::moves::REBUILD_AFTER;
use lunette_control::{Control, ControlConfig, LogLimits};
use lunette_proto::ids::{ClusterId, NodeId};
use lunette_proto::map;
use lunette_proto::node::Service;
use lunette_storage_node::Node;
use lunette_volume::fabric::{Fabric, Links, TcpFabric};
use tokio_util::sync::CancellationToken;

use super::data::{DataDir, private_dir};
use super::ports::Ports;
use super::{GATEWAY, admin, setup, wanted};
use crate::admin::{Address, Connection};
use crate::args::{Global, Up};
use crate::output::{self, Format};
use crate::run::gateway::{GatewayMember, GatewayParts};
use crate::run::node::StorageMember;
use crate::run::stop;
use crate::run::storage::{Prepared, StorageConfig, StorageDisk};

/// The one member of its control plane.
const MEMBER: u64 = 1;
const MEMBER_FOLDER: u8 = 1;

/// Runs until told to stop.
pub(super) async fn run(up: &Up, global: &Global) -> Result<()> {
    let stop = stop::on_signal()?;
    let mut ports = Ports::take(&up.portals, 1, admin(global).as_deref(), &[], 1)?;
    let mut data = DataDir::open(&up.data, &wanted(up, &ports))?;
    ports.release();
    let mut system = System::default();
    let outcome = system.serve(up, Format::new(global.json), &mut data, &ports, &stop).await;
    system.close().await;
    match outcome {
        // Told to stop while it started: nothing has failed.
        Err(_) if stop.is_cancelled() => Ok(()),
        outcome => outcome,
    }
}

/// What runs, for as much of it as was started.
#[derive(Default)]
struct System {
    control: Option<Control>,
    nodes: Vec<StorageMember>,
    gateway: Option<GatewayMember>,
}

impl System {
    async fn serve(
        &mut self,
        up: &Up,
        format: Format,
        data: &mut DataDir,
        ports: &Ports,
        stop: &CancellationToken,
    ) -> Result<()> {
        let key = data.key().clone();
        let listen = *ports.admin.first().context("there is an address")?;
        let config = ControlConfig {
            cluster: Some(key.cluster),
            // A directory that was complete had a control plane, and ids that another would give out again.
            member: (!data.is_complete()).then_some(MEMBER),
            listen,
            advertise: None,
            key_file: key.path.clone(),
            join: data.is_complete(),
            rebuild_after: up.rebuild_after.map_or(REBUILD_AFTER, Duration::from_secs),
            log: LogLimits::default(),
        };
        private_dir(&data.control(MEMBER_FOLDER))?;
        let control = Control::open(&data.control(MEMBER_FOLDER), config).await?;
        self.control.insert(control).serve().await?;
        let admin = [Address::parse(&listen.to_string())?];

        self.start_nodes(data, &admin, stop).await?;
        let connection = Connection::open(&admin).await?;
        setup::complete(&connection, data.nodes(), &up.volumes).await?;
        // Before anybody can write: what is complete is never founded again.
        data.complete()?;

        // The portals open last: whoever finds them open finds all of it ready.
        let gateway = GatewayParts {
            name: GATEWAY.to_owned(),
            portals: ports.portals(),
            admin: &admin,
            key: &key,
            fabric: Arc::new(LocalFabric::new(key.cluster, &self.nodes)),
        };
        let gateway = self.gateway.insert(GatewayMember::start(gateway, stop).await?);
        let text = setup::announcement(&connection, &admin, &gateway.portals(), format).await?;
        // Nobody has to listen: the servers go on.
        let _ = output::try_print(&text);
        stop.cancelled().await;
        Ok(())
    }

    /// Registered one after the other, so that their ids follow their names; formatted and opened side by side.
    async fn start_nodes(
        &mut self,
        data: &DataDir,
        admin: &[Address],
        stop: &CancellationToken,
    ) -> Result<()> {
        let mut registered: Vec<(Prepared, RegisterNodeResponse)> = Vec::new();
        for node in 1..=data.nodes() {
            let mut prepared = Prepared::new(storage_config(data, node)).await?;
            let response = StorageMember::register(&mut prepared, admin, stop).await?;
            registered.push((prepared, response));
        }
        let starts = registered
            .into_iter()
            .map(|(prepared, response)| StorageMember::serve(prepared, response, admin, stop));
        self.nodes = try_join_all(starts).await?;
        Ok(())
    }

    /// First the gateway, which has writes in flight; last the control plane, to which the others say goodbye.
    async fn close(&mut self) {
        if let Some(gateway) = self.gateway.take() {
            gateway.close().await;
        }
        join_all(self.nodes.drain(..).map(StorageMember::close)).await;
        if let Some(control) = self.control.take() {
            control.stop().await;
        }
    }
}

fn storage_config(data: &DataDir, node: u8) -> StorageConfig {
    let name = format!("node{node}");
    StorageConfig {
        cluster: data.key().cluster,
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        advertise: None,
        host: name.clone(),
        rack: String::new(),
        zone: String::new(),
        disks: vec![StorageDisk {
            path: data.disk(node),
            capacity_bytes: data.capacity_bytes(),
            weight: None,
        }],
        name,
    }
}

/// Nodes of this process by a call, all others over the network.
struct LocalFabric {
    local: BTreeMap<NodeId, Arc<Node>>,
    network: TcpFabric,
}

impl LocalFabric {
    fn new(cluster: ClusterId, nodes: &[StorageMember]) -> Self {
        let local =
            nodes.iter().map(|node| (node.storage().id(), Arc::clone(node.storage().node()))).collect();
        Self { local, network: TcpFabric::new(cluster, GATEWAY) }
    }
}

impl Fabric for LocalFabric {
    fn service(&self, node: &map::Node) -> Arc<dyn Service> {
        match self.local.get(&node.id) {
            Some(node) => Arc::clone(node) as Arc<dyn Service>,
            None => self.network.service(node),
        }
    }

    fn is_local(&self, node: NodeId) -> bool {
        self.local.contains_key(&node)
    }

    fn retain(&self, nodes: &BTreeMap<NodeId, map::Node>) {
        self.network.retain(nodes);
    }

    fn watch(&self, links: Weak<dyn Links>) {
        self.network.watch(links);
    }
}

//! Nodes, their disks, and gateways.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use lunette_proto::ids::{ClusterId, DiskId, DiskUuid, GatewayId, NodeId};
use lunette_proto::map::{Disk, DiskState, Gateway, Node};

use super::limits::{DISKS_MAX, DISKS_PER_NODE_MAX, GATEWAYS_MAX, NODES_MAX, PORTALS_PER_GATEWAY_MAX};
use super::moves::moves_keep_domain_rule;
use super::names::{check_label, check_name};
use super::pools::keeps_domain_rule;
use super::{Change, Draft, NameKind, NewDisk, Rejection, Response, take};

/// The rack and the zone of nodes that name none.
const DOMAIN_DEFAULT: &str = "default";

impl Draft<'_> {
    pub(super) fn found(&mut self, cluster: ClusterId) -> Result<Response, Rejection> {
        if self.map.cluster != ClusterId::default() && self.map.cluster != cluster {
            return Err(Rejection::OtherCluster);
        }
        self.put(Change::Cluster(cluster));
        Ok(Response::Done)
    }

    pub(super) fn register_node(
        &mut self,
        name: &str,
        address: SocketAddr,
        [host, rack, zone]: [&str; 3],
        disks: &[NewDisk],
    ) -> Result<Response, Rejection> {
        check_name(NameKind::Node, name)?;
        check_address("address", address)?;
        for (field, text) in [("host", host), ("rack", rack), ("zone", zone)] {
            check_label(field, text)?;
        }
        if disks.len() > DISKS_PER_NODE_MAX {
            return Err(Rejection::TooMany { what: "disks of a node".into(), max: DISKS_PER_NODE_MAX });
        }

        let known = self.map.nodes.values().find(|node| node.name == name);
        let id = match known {
            Some(node) => node.id,
            None if self.map.nodes.len() >= NODES_MAX => {
                return Err(Rejection::TooMany { what: "nodes".into(), max: NODES_MAX });
            }
            None => NodeId(take(&mut self.next.node)?),
        };
        let or = |text: &str, default: &str| if text.is_empty() { default.into() } else { text.to_owned() };
        self.put(Change::PutNode(Node {
            id,
            name: name.to_owned(),
            address,
            host: or(host, name),
            rack: or(rack, DOMAIN_DEFAULT),
            zone: or(zone, DOMAIN_DEFAULT),
        }));

        let mut ids = Vec::with_capacity(disks.len());
        let mut uuids = BTreeSet::new();
        for disk in disks {
            if disk.uuid == DiskUuid::default() || !uuids.insert(disk.uuid) {
                return Err(Rejection::DiskUuid { uuid: disk.uuid.to_string() });
            }
            ids.push(self.register_disk(id, name, disk)?);
        }
        self.check_domains_after()?;
        Ok(Response::Node { node: id, disks: ids })
    }

    fn register_disk(&mut self, node: NodeId, name: &str, disk: &NewDisk) -> Result<DiskId, Rejection> {
        check_label("disks.label", &disk.label)?;
        let known = self.map.disks.values().find(|known| known.uuid == disk.uuid);
        let added = self.map.added.values().find(|added| added.uuid == disk.uuid);
        let (id, state) = match (known, added) {
            (Some(known), _) => (known.id, known.state),
            // Formatted as it was wished for, and then named by a configuration.
            (None, Some(added)) => (added.id, DiskState::InSync),
            (None, None) => {
                // A mount that is missing, or a folder that was emptied: a disk without what that one has.
                let mut there = self.map.disks.values().filter(|there| there.node == node);
                if let Some(there) = there.find(|there| there.label == disk.label) {
                    let (node, path) = (name.to_owned(), disk.label.clone());
                    return Err(Rejection::DiskSwapped { node, disk: there.id, path });
                }
                let new = self.changes.iter().filter(|change| matches!(change, Change::PutDisk(_))).count();
                self.check_disks_max(new)?;
                // No table names a disk that is new, so it misses nothing.
                (DiskId(take(&mut self.next.disk)?), DiskState::InSync)
            }
        };
        if let Some(added) = added.filter(|added| added.node != node) {
            // It was carried to another node, and the one that it was added to has it no more.
            self.put(Change::RemoveAdded(added.id));
        }
        let weight = match disk.weight {
            0 => default_weight(disk.capacity_bytes),
            weight => weight,
        };
        self.put(Change::PutDisk(Disk {
            id,
            uuid: disk.uuid,
            node,
            label: disk.label.clone(),
            capacity_bytes: disk.capacity_bytes,
            weight,
            state,
            draining: known.is_some_and(|known| known.draining),
            replaced_by: known.and_then(|known| known.replaced_by),
        }));
        if known.is_none()
            && let Some(old) = added.and_then(|added| added.replaces)
        {
            self.take_place(id, old);
        }
        Ok(id)
    }

    /// Whether one more disk fits, beside `new` ones of this command.
    pub(super) fn check_disks_max(&self, new: usize) -> Result<(), Rejection> {
        if self.map.disks.len() + self.map.wishes().count() + new >= DISKS_MAX {
            return Err(Rejection::TooMany { what: "disks".into(), max: DISKS_MAX });
        }
        Ok(())
    }

    /// A node that moves to another rack, or a disk that moves to another node, may bring two copies
    /// of one extent together.
    fn check_domains_after(&self) -> Result<(), Rejection> {
        let moves = self.changes.iter().any(|change| match change {
            Change::PutNode(node) => {
                self.map.nodes.get(&node.id).is_some_and(|old| {
                    (&old.host, &old.rack, &old.zone) != (&node.host, &node.rack, &node.zone)
                })
            }
            Change::PutDisk(disk) => self.map.disks.get(&disk.id).is_some_and(|old| old.node != disk.node),
            _ => false,
        });
        if !moves {
            return Ok(());
        }
        let mut after = self.map.clone();
        for change in &self.changes {
            change.apply(&mut after);
        }
        for pool in after.pools.values() {
            let keeps = keeps_domain_rule(&after, pool.failure_domain, &pool.table)
                && moves_keep_domain_rule(&after, pool);
            if !keeps {
                return Err(Rejection::DomainRule { pool: pool.name.clone() });
            }
        }
        Ok(())
    }

    pub(super) fn register_gateway(
        &mut self,
        name: &str,
        portals: &[SocketAddr],
    ) -> Result<Response, Rejection> {
        check_name(NameKind::Gateway, name)?;
        if portals.len() > PORTALS_PER_GATEWAY_MAX {
            let max = PORTALS_PER_GATEWAY_MAX;
            return Err(Rejection::TooMany { what: "portals of a gateway".into(), max });
        }
        for portal in portals {
            // An unspecified address is right here: a portal may listen on every address.
            if portal.port() == 0 {
                return Err(Rejection::Address { field: "portals".into(), text: portal.to_string() });
            }
        }
        let known = self.map.gateways.values().find(|gateway| gateway.name == name);
        let (id, portal_group_tag) = match known {
            Some(gateway) => (gateway.id, gateway.portal_group_tag),
            None if self.map.gateways.len() >= GATEWAYS_MAX => {
                return Err(Rejection::TooMany { what: "gateways".into(), max: GATEWAYS_MAX });
            }
            None => (GatewayId(take(&mut self.next.gateway)?), take(&mut self.next.portal_group_tag)?),
        };
        let portals = portals.to_vec();
        self.put(Change::PutGateway(Gateway { id, name: name.to_owned(), portal_group_tag, portals }));
        Ok(Response::Gateway { gateway: id, portal_group_tag })
    }
}

/// A disk takes a share of the load like its capacity, in MiB.
#[must_use]
pub fn default_weight(capacity_bytes: u64) -> u32 {
    u32::try_from(capacity_bytes >> 20).unwrap_or(u32::MAX).max(1)
}

fn check_address(field: &str, address: SocketAddr) -> Result<(), Rejection> {
    if address.port() == 0 || address.ip().is_unspecified() {
        return Err(Rejection::Address { field: field.to_owned(), text: address.to_string() });
    }
    Ok(())
}

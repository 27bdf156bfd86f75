//! Distances in the flow's residual network.
//!
//! From every hole at once, to partitions and disks, counted in moves:
//!
//! ```text
//! partition -> disk           0 or 1     takes a copy on it, in a domain where it has none
//! disk -> partition           0 or -1    gives up its copy of that partition
//! disk -> disk, same domain   sum of both, for a partition that changes from one to the other
//! ```
//!
//! A partition can take a copy in all domains but its own few, always for the same cost, so its arcs are
//! not walked one by one: each distance has a list of domains that may have a disk farther than that,
//! from which a domain is struck once all its disks are reached. Arcs of -1 are why a
//! node may be reached again at a smaller distance; there is no cycle of them, because the flow
//! is of least cost.

use std::collections::BTreeMap;

use super::flow::Flow;
use super::topology::{NONE, dense};

/// Not reached.
pub(super) const FAR: i32 = i32::MAX;

/// The distances found.
pub(super) struct Labels {
    pub(super) partition: Vec<i32>,
    pub(super) disk: Vec<i32>,
    /// Of the nearest disk that is still to take a copy.
    pub(super) sink: i32,
}

enum Node {
    Partition(u32),
    Disk(u32),
}

pub(super) struct Search<'f, 'a> {
    flow: &'f Flow<'a>,
    partition: Vec<i32>,
    disk: Vec<i32>,
    /// All disks of the domain are reached at this distance or below.
    domain: Vec<i32>,
    /// Domains that may have a disk farther than the key.
    beyond: BTreeMap<i32, Vec<u32>>,
    queue: BTreeMap<i32, Vec<Node>>,
}

impl<'f, 'a> Search<'f, 'a> {
    pub(super) fn new(flow: &'f Flow<'a>) -> Self {
        Self {
            flow,
            partition: vec![FAR; flow.partitions()],
            disk: vec![FAR; flow.topology().disks()],
            domain: vec![FAR; flow.topology().domains()],
            beyond: BTreeMap::new(),
            queue: BTreeMap::new(),
        }
    }

    /// `copies` are the partitions of each disk.
    pub(super) fn run(mut self, copies: &[Vec<u32>]) -> Labels {
        let flow = self.flow;
        for &partition in flow.order() {
            if flow.row(partition).contains(&NONE) {
                self.reach_partition(partition, 0);
            }
        }
        while let Some(mut nearest) = self.queue.first_entry() {
            let distance = *nearest.key();
            match nearest.get_mut().pop() {
                None => {
                    nearest.remove();
                }
                Some(Node::Partition(partition)) if self.partition[partition as usize] == distance => {
                    self.leave_partition(partition, distance);
                }
                Some(Node::Disk(disk)) if self.disk[disk as usize] == distance => {
                    self.leave_disk(disk, distance, &copies[disk as usize]);
                }
                // It has been reached at a smaller distance since.
                Some(Node::Partition(_) | Node::Disk(_)) => {}
            }
        }
        let sink = (0_u32..)
            .zip(&self.disk)
            .filter(|&(disk, _)| flow.free(disk) > 0)
            .map(|(_, &distance)| distance)
            .min()
            .unwrap_or(FAR);
        Labels { partition: self.partition, disk: self.disk, sink }
    }

    fn leave_partition(&mut self, partition: u32, distance: i32) {
        let flow = self.flow;
        for &origin in flow.origins(partition) {
            if origin != NONE && !flow.blocks(partition, origin) {
                self.reach_disk(origin, distance);
            }
        }
        let next = distance + 1;
        let mut domains = (self.beyond.remove(&next))
            .unwrap_or_else(|| (0..flow.topology().domains()).map(dense).collect());
        let mut position = 0;
        while let Some(&domain) = domains.get(position) {
            if self.domain[domain as usize] > next {
                if flow.blocks_domain(partition, domain) {
                    position += 1;
                    continue;
                }
                self.reach_domain(domain, next);
            }
            domains.swap_remove(position);
        }
        self.beyond.insert(next, domains);
    }

    fn leave_disk(&mut self, disk: u32, distance: i32, copies: &[u32]) {
        let flow = self.flow;
        let domain = flow.topology().domain(disk);
        let mut nearest = FAR;
        for &partition in copies {
            let distance = distance - flow.cost(partition, disk);
            self.reach_partition(partition, distance);
            for &origin in flow.origins(partition) {
                if origin != NONE && flow.topology().domain(origin) == domain {
                    self.reach_disk(origin, distance);
                }
            }
            nearest = nearest.min(distance + 1);
        }
        if nearest < FAR {
            self.reach_domain(domain, nearest);
        }
    }

    fn reach_domain(&mut self, domain: u32, distance: i32) {
        if self.domain[domain as usize] > distance {
            self.domain[domain as usize] = distance;
            for &disk in self.flow.topology().members(domain) {
                self.reach_disk(disk, distance);
            }
        }
    }

    fn reach_disk(&mut self, disk: u32, distance: i32) {
        if self.disk[disk as usize] > distance {
            self.disk[disk as usize] = distance;
            self.queue.entry(distance).or_default().push(Node::Disk(disk));
        }
    }

    fn reach_partition(&mut self, partition: u32, distance: i32) {
        if self.partition[partition as usize] > distance {
            self.partition[partition as usize] = distance;
            self.queue.entry(distance).or_default().push(Node::Partition(partition));
        }
    }
}

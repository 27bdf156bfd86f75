//! Answers computed another way: slowly, from the definition.

use std::collections::BTreeMap;

use lunette_placement::{Plan, PlanRequest};
use lunette_proto::ids::{DiskId, Partition};

/// Fair shares by bisection: a domain takes min(partitions, level x weight), and the level is where the
/// domains take all copies.
pub(crate) fn fair_shares(request: &PlanRequest<'_>) -> BTreeMap<DiskId, f64> {
    let mut domains: BTreeMap<&str, f64> = BTreeMap::new();
    for candidate in &request.candidates {
        *domains.entry(&candidate.zone).or_default() += f64::from(candidate.weight);
    }
    let partitions = f64::from(request.partitions);
    let copies = f64::from(request.width) * partitions;
    let (mut low, mut high) = (0.0, copies);
    for _ in 0..300 {
        let level = (low + high) / 2.0;
        let taken: f64 = domains.values().map(|weight| partitions.min(level * weight)).sum();
        if taken < copies { low = level } else { high = level }
    }
    let share = |zone: &str, weight: u32| {
        let domain = domains[zone];
        if domain == 0.0 { 0.0 } else { partitions.min(high * domain) * f64::from(weight) / domain }
    };
    request.candidates.iter().map(|one| (one.disk, share(&one.zone, one.weight))).collect()
}

/// The fewest moves from the previous table to any table with the plan's quotas: a flow of minimum cost
/// over the whole network, by Bellman and Ford, one unit at a time.
pub(crate) fn fewest_moves(request: &PlanRequest<'_>, plan: &Plan) -> usize {
    let previous = request.previous.expect("there is a table to move from");
    let mut network = Network::default();
    let (source, sink) = (network.node(), network.node());
    let disks: BTreeMap<DiskId, usize> =
        plan.load.disks.iter().map(|load| (load.disk, network.node())).collect();
    for load in &plan.load.disks {
        network.arc(disks[&load.disk], sink, load.copies, 0);
    }
    for partition in (0..request.partitions).map(Partition) {
        let node = network.node();
        network.arc(source, node, u32::from(request.width), 0);
        let mut domains: BTreeMap<&str, usize> = BTreeMap::new();
        for candidate in &request.candidates {
            let domain = *domains.entry(&candidate.zone).or_insert_with(|| {
                let domain = network.node();
                network.arc(node, domain, 1, 0);
                domain
            });
            let moved = !previous.row(partition).contains(&candidate.disk);
            network.arc(domain, disks[&candidate.disk], 1, i64::from(moved));
        }
    }
    let (flow, cost) = network.cheapest(source, sink);
    assert_eq!(flow, u32::from(request.width) * request.partitions, "the plan's quotas have a table");
    usize::try_from(cost).expect("costs are counts")
}

#[derive(Default)]
struct Network {
    nodes: usize,
    /// From, to, capacity left, cost; the reverse of arc i is i ^ 1.
    arcs: Vec<(usize, usize, u32, i64)>,
}

impl Network {
    fn node(&mut self) -> usize {
        self.nodes += 1;
        self.nodes - 1
    }

    fn arc(&mut self, from: usize, to: usize, capacity: u32, cost: i64) {
        self.arcs.push((from, to, capacity, cost));
        self.arcs.push((to, from, 0, -cost));
    }

    fn cheapest(&mut self, source: usize, sink: usize) -> (u32, i64) {
        let (mut flow, mut total) = (0, 0);
        loop {
            let mut distance = vec![i64::MAX; self.nodes];
            let mut by = vec![usize::MAX; self.nodes];
            distance[source] = 0;
            let mut changed = true;
            while changed {
                changed = false;
                for (index, &(from, to, capacity, cost)) in self.arcs.iter().enumerate() {
                    if capacity > 0 && distance[from] < i64::MAX && distance[from] + cost < distance[to] {
                        distance[to] = distance[from] + cost;
                        by[to] = index;
                        changed = true;
                    }
                }
            }
            if distance[sink] == i64::MAX {
                return (flow, total);
            }
            let mut node = sink;
            while node != source {
                let arc = by[node];
                self.arcs[arc].2 -= 1;
                self.arcs[arc ^ 1].2 += 1;
                node = self.arcs[arc].0;
            }
            flow += 1;
            total += distance[sink];
        }
    }
}

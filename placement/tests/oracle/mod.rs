//! Answers computed another way: slowly, from the definition.

use std::collections::BTreeMap;

use lunette_placement::{Plan, PlanRequest};
use lunette_proto::ids::{DiskId, Partition};

/// Fair shares of disks, exactly, as (numerator, denominator). Of all ways to hold the heaviest domains to one
/// copy of each partition, it is the one that holds the fewest and leaves no other above that.
pub(crate) fn fair_shares(request: &PlanRequest<'_>) -> BTreeMap<DiskId, (u128, u128)> {
    let mut domains: BTreeMap<&str, u128> = BTreeMap::new();
    for candidate in &request.candidates {
        *domains.entry(&candidate.zone).or_default() += u128::from(candidate.weight);
    }
    let mut weights: Vec<u128> = domains.values().copied().collect();
    weights.sort_unstable_by(|one, other| other.cmp(one));
    let partitions = u128::from(request.partitions);
    let (held, copies, rest) = (0..u128::from(request.width))
        .map(|held| (held as usize, partitions * (u128::from(request.width) - held)))
        .map(|(held, copies)| (held, copies, weights[held..].iter().sum::<u128>()))
        .find(|&(held, copies, rest)| {
            weights[held..].iter().all(|weight| weight * copies <= partitions * rest)
        })
        .expect("there are as many domains as copies");

    let share = |zone: &str, weight: u32| {
        let domain = domains[zone];
        let heavier = held > 0 && domain >= weights[held - 1];
        let (copies, of) = if heavier { (partitions, domain) } else { (copies, rest) };
        (u128::from(weight) * copies, of)
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

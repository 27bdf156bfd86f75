//! How many copies each disk is to hold: the second layer, load by weight.
//!
//! A disk's fair share is the rational number weight x copies / weights, after the domains that
//! cannot carry theirs were held to one copy of every partition (water filling). Its quota is that
//! share rounded down or up; so is the sum over its domain. Which shares are rounded up is free, and
//! decided by what saves a move first, then by the larger remainder.

use super::topology::{Topology, dense};

/// The load that the rule allows, exactly: a disk's share is `weight * copies / weights`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    /// Copies that the domains of this share hold together.
    copies: u64,
    /// Their weight.
    weights: u64,
}

impl Share {
    /// Rounded down, and the remainder in units of 1 / `weights`.
    fn of(self, weight: u64) -> (u64, u64) {
        let product = u128::from(weight) * u128::from(self.copies);
        let whole = product / u128::from(self.weights);
        let rest = product % u128::from(self.weights);
        (
            u64::try_from(whole).expect("a share of `copies` when weight is a part of `weights`"),
            u64::try_from(rest).expect("below `weights`"),
        )
    }

    /// For people.
    pub(super) fn approximate(self, weight: u32) -> f64 {
        f64::from(weight) * self.copies as f64 / self.weights as f64
    }
}

/// The share of each domain's disks. At least `width` domains must have a weight.
pub(super) fn shares(topology: &Topology, width: u8, partitions: u32) -> Vec<Share> {
    let weight: Vec<u64> = (0..topology.domains())
        .map(|domain| {
            topology.members(dense(domain)).iter().map(|&disk| u64::from(topology.weight(disk))).sum()
        })
        .collect();
    let mut heaviest_first: Vec<usize> = (0..weight.len()).collect();
    heaviest_first.sort_by_key(|&domain| (std::cmp::Reverse(weight[domain]), domain));

    let partitions = u64::from(partitions);
    let mut rest = Share { copies: u64::from(width) * partitions, weights: weight.iter().sum() };
    let mut shares = vec![rest; weight.len()];
    for (position, &domain) in heaviest_first.iter().enumerate() {
        let too_heavy = u128::from(weight[domain]) * u128::from(rest.copies)
            > u128::from(partitions) * u128::from(rest.weights);
        if !too_heavy {
            for &domain in &heaviest_first[position..] {
                shares[domain] = rest;
            }
            break;
        }
        shares[domain] = Share { copies: partitions, weights: weight[domain] };
        rest = Share { copies: rest.copies - partitions, weights: rest.weights - weight[domain] };
    }
    shares
}

/// Copies that each disk is to hold. `held` is what it holds by the previous table.
pub(super) fn quotas(topology: &Topology, shares: &[Share], held: &[u32], copies: u64) -> Vec<u32> {
    let mut quota = vec![0_u64; topology.disks()];
    let mut claims = Vec::new();
    let mut left = copies;
    let mut domains = Vec::new();
    for (domain, &share) in shares.iter().enumerate() {
        let members = topology.members(dense(domain));
        let weight = members.iter().map(|&disk| u64::from(topology.weight(disk))).sum();
        let (whole, remainder) = share.of(weight);
        let mut disks = Vec::new();
        let mut spare = whole;
        for &disk in members {
            let (whole, remainder) = share.of(u64::from(topology.weight(disk)));
            quota[disk as usize] = whole;
            spare -= whole;
            if remainder > 0 {
                let saves = u64::from(held[disk as usize]) > whole;
                disks.push(Claim { who: disk, saves, remainder, of: share.weights });
            }
        }
        disks.sort_by(Claim::order);
        let saving = disks.iter().filter(|claim| claim.saves).count() as u64;
        left -= whole;
        if remainder > 0 {
            claims.push(Claim { who: dense(domain), saves: saving > spare, remainder, of: share.weights });
        }
        domains.push((spare, disks));
    }

    claims.sort_by(Claim::order);
    assert!(left <= claims.len() as u64, "each domain with a remainder takes one copy at most");
    for claim in claims.iter().take(usize::try_from(left).expect("no more than there are claims")) {
        domains[claim.who as usize].0 += 1;
    }
    for (spare, disks) in domains {
        assert!(spare <= disks.len() as u64, "remainders of disks add up to their domain's");
        for claim in disks.iter().take(usize::try_from(spare).expect("no more than there are disks")) {
            quota[claim.who as usize] += 1;
        }
    }
    assert_eq!(quota.iter().sum::<u64>(), copies, "every copy is somebody's");
    quota.into_iter().map(|copies| u32::try_from(copies).expect("at most one of each partition")).collect()
}

/// A wish to be rounded up.
struct Claim {
    who: u32,
    /// It saves a move.
    saves: bool,
    remainder: u64,
    of: u64,
}

impl Claim {
    fn order(&self, other: &Self) -> std::cmp::Ordering {
        let own = u128::from(self.remainder) * u128::from(other.of);
        let others = u128::from(other.remainder) * u128::from(self.of);
        (other.saves.cmp(&self.saves)).then(others.cmp(&own)).then(self.who.cmp(&other.who))
    }
}

#[cfg(test)]
mod tests {
    use lunette_proto::ids::DiskId;
    use lunette_proto::map::FailureDomain;

    use super::*;
    use crate::Candidate;

    /// Disks as (zone, weight).
    fn topology(disks: &[(&str, u32)]) -> Topology {
        let candidates: Vec<Candidate> = disks
            .iter()
            .zip(1..)
            .map(|(&(zone, weight), id)| Candidate {
                disk: DiskId(id),
                weight,
                host: String::new(),
                rack: String::new(),
                zone: zone.to_owned(),
            })
            .collect();
        Topology::new(&candidates, FailureDomain::Zone).expect("no disk twice")
    }

    fn fresh(disks: &[(&str, u32)], width: u8, partitions: u32) -> Vec<u32> {
        let topology = topology(disks);
        let shares = shares(&topology, width, partitions);
        quotas(&topology, &shares, &vec![0; disks.len()], u64::from(width) * u64::from(partitions))
    }

    /// Guards against a share that is not by weight where the rule does not interfere.
    #[test]
    fn by_weight() {
        assert_eq!(fresh(&[("a", 1), ("b", 2), ("c", 3)], 1, 60), [10, 20, 30]);
    }

    /// Guards against a heavy domain that takes more than one copy of a partition, or that keeps
    /// the others from sharing the rest by weight.
    #[test]
    fn heavy_domain_is_held_to_one_copy() {
        // Two copies: `a` holds one of each, `b` and `c` share the second as 1 : 3.
        assert_eq!(fresh(&[("a", 70), ("a", 30), ("b", 1), ("c", 3)], 2, 100), [70, 30, 25, 75]);
        // Three copies: with `a` held, `b` is too heavy in turn.
        assert_eq!(fresh(&[("a", 1000), ("b", 10), ("c", 2), ("d", 2)], 3, 100), [100, 100, 50, 50]);
    }

    /// Guards against roundings that move copies although they need not.
    #[test]
    fn rounds_where_copies_lie() {
        let topology = topology(&[("a", 1), ("b", 1), ("c", 1)]);
        let shares = shares(&topology, 1, 100);
        for held in [[34, 33, 33], [33, 34, 33], [33, 33, 34]] {
            assert_eq!(quotas(&topology, &shares, &held, 100), held);
        }
    }

    /// Guards against remainders within a domain that do not add up to the domain's.
    #[test]
    fn rounds_domains_and_disks_alike() {
        let quota = fresh(&[("a", 1), ("a", 1), ("a", 1), ("b", 3), ("c", 3)], 2, 50);
        assert_eq!(quota.iter().sum::<u32>(), 100);
        assert!(quota[..3].iter().all(|copies| (11..=12).contains(copies)), "{quota:?}");
        let domain: u32 = quota[..3].iter().sum();
        assert!((33..=34).contains(&domain), "{quota:?}");
    }
}

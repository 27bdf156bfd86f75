//! The candidates and the domains they lie in, numbered from 0.
//!
//! Sorted by disk id, so that the order in which candidates are named changes nothing.

use std::collections::BTreeMap;

use lunette_proto::ids::DiskId;
use lunette_proto::map::FailureDomain;

use super::{Candidate, PlanError};

/// "No disk", where a number of one is stored.
pub(super) const NONE: u32 = u32::MAX;

/// See the module.
pub(super) struct Topology {
    ids: Vec<DiskId>,
    weights: Vec<u32>,
    domain: Vec<u32>,
    members: Vec<Vec<u32>>,
}

impl Topology {
    /// All candidates, those without weight too: copies that are to leave them lie in a domain still.
    pub(super) fn new(candidates: &[Candidate], failure_domain: FailureDomain) -> Result<Self, PlanError> {
        let mut sorted: Vec<&Candidate> = candidates.iter().collect();
        sorted.sort_by_key(|candidate| candidate.disk);
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0].disk == pair[1].disk) {
            return Err(PlanError::DuplicateDisk { disk: pair[0].disk });
        }

        let mut topology = Self {
            ids: sorted.iter().map(|candidate| candidate.disk).collect(),
            weights: sorted.iter().map(|candidate| candidate.weight).collect(),
            domain: Vec::with_capacity(sorted.len()),
            members: Vec::new(),
        };
        let mut labels = BTreeMap::new();
        for candidate in sorted {
            // Labels are compared alone: two racks of one name in two zones count as one rack. That
            // may refuse a table that could be made; the contrary could put two copies in one rack.
            let own = candidate.disk.to_string();
            let label = match failure_domain {
                FailureDomain::Disk => own,
                FailureDomain::Host => candidate.host.clone(),
                FailureDomain::Rack => candidate.rack.clone(),
                FailureDomain::Zone => candidate.zone.clone(),
            };
            let domain = *labels.entry(label).or_insert_with(|| {
                topology.members.push(Vec::new());
                topology.members.len() - 1
            });
            topology.members[domain].push(dense(topology.domain.len()));
            topology.domain.push(dense(domain));
        }
        Ok(topology)
    }

    /// Each disk a domain of its own, without weights: for choices among given disks.
    pub(super) fn separate(disks: usize) -> Self {
        Self {
            ids: Vec::new(),
            weights: Vec::new(),
            domain: (0..disks).map(dense).collect(),
            members: (0..disks).map(|disk| vec![dense(disk)]).collect(),
        }
    }

    pub(super) fn disks(&self) -> usize {
        self.domain.len()
    }

    pub(super) fn domains(&self) -> usize {
        self.members.len()
    }

    pub(super) fn id(&self, disk: u32) -> DiskId {
        self.ids[disk as usize]
    }

    pub(super) fn weight(&self, disk: u32) -> u32 {
        self.weights[disk as usize]
    }

    /// The domain of a disk.
    pub(super) fn domain(&self, disk: u32) -> u32 {
        self.domain[disk as usize]
    }

    /// The disks of a domain.
    pub(super) fn members(&self, domain: u32) -> &[u32] {
        &self.members[domain as usize]
    }

    /// Domains that can take load.
    pub(super) fn weighted_domains(&self) -> usize {
        self.members.iter().filter(|members| members.iter().any(|&disk| self.weight(disk) > 0)).count()
    }

    /// The number of a disk, `NONE` if it is no candidate.
    pub(super) fn number(&self, id: DiskId) -> u32 {
        self.ids.binary_search(&id).map_or(NONE, dense)
    }
}

/// An index as it is stored: half the memory of the searches.
pub(super) fn dense(index: usize) -> u32 {
    u32::try_from(index).expect("disk ids are u32, so there are no more disks than that")
}

//! The flow: rows that meet every quota at the least cost.
//!
//! ```text
//! keep --> evict --> shortest paths of cost 0 --> fill --> shortest paths of cost 1, 2, ..
//! ```
//!
//! A unit of flow is one copy: source -> partition -> (partition, domain) -> disk -> sink. It costs 0
//! where the partition has the disk among its origins, else 1. The start keeps every origin that
//! the rule and the quotas allow, which costs nothing. From there on, flow is only added along
//! paths that are shortest at the time, and so is of least cost for its amount at every moment
//! (successive shortest paths); when no row has a hole it is of least cost altogether.
//!
//! `Search` finds the distances, `Pass` adds as many paths of the shortest length as it can at
//! a time. `fill` is a short cut for the paths of a single arc, hole -> disk, which are nearly all of
//! them; it draws disks so that the partners of one disk are spread over all others, and a lost disk is
//! rebuilt from everywhere. A first table consists of it: it cannot fail there, see `Flow::fill`.

use super::pass::Pass;
use super::random::Sequence;
use super::search::{FAR, Labels, Search};
use super::topology::{NONE, Topology, dense};

/// Fixed: a table must not depend on who computes it.
const SEED: u64 = 0x6c75_6e65_7474_6501;

/// Rows in the making.
pub(super) struct Flow<'a> {
    topology: &'a Topology,
    /// Cells of a row; a cell without a disk is a hole.
    width: usize,
    cells: Vec<u32>,
    /// Disks per row of `origins`.
    origin_width: usize,
    /// Disks that cost nothing, row after row, `NONE` where there are fewer; none twice in a row.
    origins: &'a [u32],
    /// Copies that each disk is still to take.
    free: Vec<u32>,
    holes: u64,
    /// Partitions in a random order: the order in which they are served, so that none of those that
    /// follow each other share their fate.
    order: Vec<u32>,
    sequence: Sequence,
}

impl<'a> Flow<'a> {
    /// Rows without a disk.
    pub(super) fn new(
        topology: &'a Topology,
        width: usize,
        partitions: usize,
        origins: &'a [u32],
        quota: &[u32],
    ) -> Self {
        assert!(origins.len().is_multiple_of(partitions), "whole rows only");
        assert_eq!(quota.len(), topology.disks(), "a quota for each disk");
        let mut sequence = Sequence::new(SEED);
        let mut order: Vec<u32> = (0..partitions).map(dense).collect();
        sequence.shuffle(&mut order);
        Self {
            topology,
            width,
            cells: vec![NONE; partitions * width],
            origin_width: origins.len() / partitions,
            origins,
            free: quota.to_vec(),
            holes: (partitions * width) as u64,
            order,
            sequence,
        }
    }

    /// Raises quotas.
    pub(super) fn allow(&mut self, more: &[u32]) {
        for (free, more) in self.free.iter_mut().zip(more) {
            *free += more;
        }
    }

    /// Fills every hole. The quotas must add up to the cells, and be no more than one copy of each
    /// partition for a domain: then there is a way.
    pub(super) fn complete(&mut self) {
        assert_eq!(self.free.iter().map(|&free| u64::from(free)).sum::<u64>(), self.holes);
        let mut filled = false;
        while self.holes > 0 {
            let copies = self.copies();
            let labels = self.labels(&copies);
            assert_ne!(labels.sink, FAR, "quotas within the domains' capacities have a table");
            if labels.sink == 1 && !filled {
                self.fill();
                filled = true;
            } else {
                self.augment(&labels, copies);
            }
        }
    }

    /// Fills as many holes as origins allow, and none with another disk.
    pub(super) fn complete_from_origins(&mut self) {
        while self.holes > 0 {
            let copies = self.copies();
            let labels = self.labels(&copies);
            if labels.sink > 0 {
                return;
            }
            self.augment(&labels, copies);
        }
    }

    /// Adds paths of the length that the labels give until there is none of it.
    fn augment(&mut self, labels: &Labels, mut copies: Vec<Vec<u32>>) {
        let mut first = true;
        loop {
            let found = Pass::new(self, labels, copies).run();
            assert!(found || !first, "the labels promise a path");
            if !found {
                return;
            }
            first = false;
            copies = self.copies();
        }
    }

    fn labels(&self, copies: &[Vec<u32>]) -> Labels {
        Search::new(self).run(copies)
    }

    /// Keeps what may stay, at no cost.
    ///
    /// What stays is chosen by disk: one that holds more than its quota gives up copies of
    /// partitions that give up none yet, if it can, so that a partition does not move as a whole.
    pub(super) fn keep(&mut self) {
        let quota = std::mem::replace(&mut self.free, vec![u32::MAX; self.topology.disks()]);
        for index in 0..self.order.len() {
            let partition = self.order[index];
            for origin in 0..self.origin_width {
                let disk = self.origins(partition)[origin];
                if disk != NONE && self.row(partition).contains(&NONE) && !self.blocks(partition, disk) {
                    self.put(partition, NONE, disk);
                }
            }
        }

        let copies = self.copies();
        self.free = quota;
        for (disk, mut copies) in (0_u32..).zip(copies) {
            let held = dense(copies.len());
            let quota = self.free[disk as usize];
            self.free[disk as usize] = quota.saturating_sub(held);
            let mut surplus = held.saturating_sub(quota);
            for holes in 0..self.width {
                copies.retain(|&partition| {
                    let evict = surplus > 0 && self.holes_of(partition) <= holes;
                    if evict {
                        self.evict(partition, disk);
                        surplus -= 1;
                    }
                    !evict
                });
            }
            assert_eq!(surplus, 0, "a row that still has this disk has a hole less than cells");
        }
    }

    /// Gives a disk to a partition that has a hole, at no cost and if the disk may take it.
    pub(super) fn offer(&mut self, partition: u32, disk: u32) -> bool {
        let fits = self.free[disk as usize] > 0
            && self.origins(partition).contains(&disk)
            && self.row(partition).contains(&NONE)
            && !self.blocks(partition, disk);
        if fits {
            self.put(partition, NONE, disk);
        }
        fits
    }

    /// Fills holes directly, by systematic sampling: the domains are laid end to end, each as long
    /// as the copies it is still to take, and a row's holes are marks at equal distances from a
    /// random start. The domains are shuffled a little for every row.
    ///
    /// With no copies kept this fills everything. Of n rows that are left, a domain is to take n
    /// copies at most, and the marks are n apart: no row gets a domain twice, one that must be in each
    /// row left is, and so the same holds for n - 1 rows.
    fn fill(&mut self) {
        let mut line: Vec<u32> = (0..self.topology.domains()).map(dense).collect();
        let mut wanted: Vec<u64> = (line.iter())
            .map(|&domain| {
                self.topology.members(domain).iter().map(|&disk| u64::from(self.free[disk as usize])).sum()
            })
            .collect();
        let mut chosen = Vec::with_capacity(self.width);
        for index in 0..self.order.len() {
            let partition = self.order[index];
            let holes = self.holes_of(partition) as u64;
            if holes == 0 {
                continue;
            }
            for _ in 0..2 * self.width {
                let (one, other) = (self.sequence.index(line.len()), self.sequence.index(line.len()));
                line.swap(one, other);
            }

            let blocked: Vec<u32> = self
                .row(partition)
                .iter()
                .filter(|&&disk| disk != NONE)
                .map(|&disk| self.topology.domain(disk))
                .collect();
            let length = wanted.iter().sum::<u64>()
                - blocked.iter().map(|&domain| wanted[domain as usize]).sum::<u64>();
            if length == 0 {
                continue;
            }
            // In units of 1 / holes, so that the distance between marks is a whole number.
            let mut mark = self.sequence.below(length);
            let mut end = 0;
            chosen.clear();
            for &domain in &line {
                if !blocked.contains(&domain) {
                    end += wanted[domain as usize] * holes;
                    if mark < end {
                        chosen.push(domain);
                    }
                    while mark < end {
                        mark += length;
                    }
                }
            }
            for &domain in &chosen {
                let disk = self.draw(domain, wanted[domain as usize]);
                self.put(partition, NONE, disk);
                wanted[domain as usize] -= 1;
            }
        }
    }

    /// A disk of the domain, by the copies it is still to take, which are `wanted` together.
    fn draw(&mut self, domain: u32, wanted: u64) -> u32 {
        let mut mark = self.sequence.below(wanted);
        for &disk in self.topology.members(domain) {
            let free = u64::from(self.free[disk as usize]);
            if mark < free {
                return disk;
            }
            mark -= free;
        }
        unreachable!("the mark lies before the end of the domain's disks");
    }

    /// Puts a disk where another is, or a hole.
    pub(super) fn put(&mut self, partition: u32, from: u32, to: u32) {
        let start = partition as usize * self.width;
        let row = &mut self.cells[start..start + self.width];
        let cell = row.iter_mut().find(|cell| **cell == from).expect("the caller saw it in this row");
        *cell = to;
        if from == NONE {
            self.holes -= 1;
            self.free[to as usize] -= 1;
        }
    }

    /// Accounts for a path: the disk where it started to take one copy more ends with the last.
    pub(super) fn pass_on(&mut self, first: u32, last: u32) {
        self.free[first as usize] += 1;
        self.free[last as usize] -= 1;
    }

    fn evict(&mut self, partition: u32, disk: u32) {
        let start = partition as usize * self.width;
        let row = &mut self.cells[start..start + self.width];
        let cell = row.iter_mut().find(|cell| **cell == disk).expect("copies are listed by disk");
        *cell = NONE;
        self.holes += 1;
    }

    /// Partitions of each disk, in the order in which they are served.
    pub(super) fn copies(&self) -> Vec<Vec<u32>> {
        let mut copies = vec![Vec::new(); self.topology.disks()];
        for &partition in &self.order {
            for &disk in self.row(partition) {
                if disk != NONE {
                    copies[disk as usize].push(partition);
                }
            }
        }
        copies
    }

    pub(super) fn topology(&self) -> &'a Topology {
        self.topology
    }

    pub(super) fn partitions(&self) -> usize {
        self.order.len()
    }

    /// Partitions in the order in which they are served.
    pub(super) fn order(&self) -> &[u32] {
        &self.order
    }

    pub(super) fn free(&self, disk: u32) -> u32 {
        self.free[disk as usize]
    }

    pub(super) fn row(&self, partition: u32) -> &[u32] {
        let start = partition as usize * self.width;
        &self.cells[start..start + self.width]
    }

    pub(super) fn holes_of(&self, partition: u32) -> usize {
        self.row(partition).iter().filter(|&&disk| disk == NONE).count()
    }

    /// Disks that cost this partition nothing, and `NONE`s.
    pub(super) fn origins(&self, partition: u32) -> &'a [u32] {
        let start = partition as usize * self.origin_width;
        &self.origins[start..start + self.origin_width]
    }

    /// What it costs this partition to lie on that disk.
    pub(super) fn cost(&self, partition: u32, disk: u32) -> i32 {
        i32::from(!self.origins(partition).contains(&disk))
    }

    /// A copy lies in this disk's domain already.
    pub(super) fn blocks(&self, partition: u32, disk: u32) -> bool {
        self.blocks_domain(partition, self.topology.domain(disk))
    }

    /// A copy lies in this domain already.
    pub(super) fn blocks_domain(&self, partition: u32, domain: u32) -> bool {
        self.row(partition).iter().any(|&disk| disk != NONE && self.topology.domain(disk) == domain)
    }

    /// The rows, end to end.
    pub(super) fn into_cells(self) -> Vec<u32> {
        assert_eq!(self.holes, 0, "complete before it is taken");
        self.cells
    }
}

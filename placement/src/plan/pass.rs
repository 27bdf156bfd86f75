//! Many shortest paths at a time: a depth-first search along arcs that the distances allow.
//!
//! A disk from which no path leads on is not visited again in the same pass; one that lies on a path
//! is, and goes on with the copy after the one it gave up. Rows change while copies are listed as
//! they were when the pass began: what has gone from a row since is skipped, what came to it waits for
//! the next pass. A pass that finds nothing has seen all there is, so there is no path of this length.

use std::collections::BTreeMap;

use super::flow::Flow;
use super::search::Labels;
use super::topology::NONE;

/// Partition entered as the start of a path; `NONE` is one not entered.
const START: u32 = NONE - 1;

/// One copy changes place.
#[derive(Clone, Copy)]
struct Step {
    partition: u32,
    /// `NONE` is a hole.
    from: u32,
    to: u32,
}

/// Disks of one domain at one distance that were not visited yet.
#[derive(Default)]
struct Waiting {
    disks: Vec<u32>,
    /// The domain is in its distance's list.
    listed: bool,
}

pub(super) struct Pass<'f, 'a> {
    flow: &'f mut Flow<'a>,
    labels: &'f Labels,
    copies: Vec<Vec<u32>>,
    /// By disk: the copy to go on with.
    next: Vec<usize>,
    visited: Vec<bool>,
    /// By partition: the disk it was entered from.
    entered: Vec<u32>,
    /// By (distance, domain).
    waiting: BTreeMap<(i32, u32), Waiting>,
    /// By distance: domains that may have disks waiting.
    domains: BTreeMap<i32, Vec<u32>>,
}

impl<'f, 'a> Pass<'f, 'a> {
    pub(super) fn new(flow: &'f mut Flow<'a>, labels: &'f Labels, copies: Vec<Vec<u32>>) -> Self {
        let disks = copies.len();
        let mut pass = Self {
            labels,
            next: vec![0; disks],
            visited: vec![true; disks],
            entered: vec![NONE; flow.partitions()],
            waiting: BTreeMap::new(),
            domains: BTreeMap::new(),
            flow,
            copies,
        };
        for (disk, &distance) in (0_u32..).zip(&labels.disk) {
            // A path that goes beyond the sink's distance may still come back to it.
            if distance != super::search::FAR {
                pass.wait(disk);
            }
        }
        pass
    }

    /// Whether there was a path.
    pub(super) fn run(mut self) -> bool {
        let mut found = false;
        for index in 0..self.flow.partitions() {
            let partition = self.flow.order()[index];
            while self.flow.row(partition).contains(&NONE) && self.path_from(partition) {
                found = true;
            }
        }
        found
    }

    /// Finds a path that fills a hole of this partition, and follows it.
    fn path_from(&mut self, partition: u32) -> bool {
        if ![NONE, START].contains(&self.entered[partition as usize]) {
            return false;
        }
        self.entered[partition as usize] = START;
        let mut path: Vec<Step> = Vec::new();
        loop {
            let step = match path.last() {
                None => self.leave_partition(partition).map(|to| Step { partition, from: NONE, to }),
                Some(last) => self.leave_disk(last.to),
            };
            if let Some(step) = step {
                self.visited[step.to as usize] = true;
                path.push(step);
                // Other disks that are to take a copy may be farther than the sink's nearest.
                let arrived = self.labels.disk[step.to as usize] == self.labels.sink;
                if arrived && self.flow.free(step.to) > 0 {
                    self.follow(&path);
                    return true;
                }
            } else if path.pop().is_none() {
                return false;
            }
        }
    }

    fn follow(&mut self, path: &[Step]) {
        let (first, last) = (path[0].to, path[path.len() - 1].to);
        self.flow.pass_on(first, last);
        for step in path {
            self.flow.put(step.partition, step.from, step.to);
            self.wait(step.to);
        }
    }

    /// A disk that this partition can take a copy on.
    fn leave_partition(&mut self, partition: u32) -> Option<u32> {
        let distance = self.labels.partition[partition as usize];
        let origins = self.flow.origins(partition);
        let origin = origins.iter().copied().find(|&disk| {
            disk != NONE && self.may_visit(disk, distance) && !self.flow.blocks(partition, disk)
        });
        if origin.is_some() {
            return origin;
        }
        let next = distance + 1;
        let mut position = 0;
        loop {
            let domain = *self.domains.get(&next)?.get(position)?;
            if self.flow.blocks_domain(partition, domain) {
                position += 1;
            } else if let Some(disk) = self.take(domain, next) {
                return Some(disk);
            } else {
                self.domains.get_mut(&next)?.swap_remove(position);
                self.waiting.get_mut(&(next, domain))?.listed = false;
            }
        }
    }

    /// A copy that this disk can give up, and where it goes.
    fn leave_disk(&mut self, disk: u32) -> Option<Step> {
        let domain = self.flow.topology().domain(disk);
        while let Some(&partition) = self.copies[disk as usize].get(self.next[disk as usize]) {
            if self.flow.row(partition).contains(&disk) {
                let distance = self.labels.disk[disk as usize] - self.flow.cost(partition, disk);
                let origins = self.flow.origins(partition);
                let within = (origins.iter().copied())
                    .find(|&origin| {
                        origin != NONE
                            && self.flow.topology().domain(origin) == domain
                            && self.may_visit(origin, distance)
                    })
                    .or_else(|| self.take(domain, distance + 1));
                if let Some(to) = within {
                    return Some(Step { partition, from: disk, to });
                }
                let entered = self.entered[partition as usize];
                if self.labels.partition[partition as usize] == distance
                    && (entered == NONE || entered == disk)
                {
                    self.entered[partition as usize] = disk;
                    if let Some(to) = self.leave_partition(partition) {
                        return Some(Step { partition, from: disk, to });
                    }
                }
            }
            self.next[disk as usize] += 1;
        }
        None
    }

    fn may_visit(&self, disk: u32, distance: i32) -> bool {
        !self.visited[disk as usize] && self.labels.disk[disk as usize] == distance
    }

    /// A disk of that domain at that distance which was not visited yet.
    fn take(&mut self, domain: u32, distance: i32) -> Option<u32> {
        let waiting = self.waiting.get_mut(&(distance, domain))?;
        while let Some(disk) = waiting.disks.pop() {
            if !self.visited[disk as usize] {
                return Some(disk);
            }
        }
        None
    }

    /// Lets a disk be visited.
    fn wait(&mut self, disk: u32) {
        let distance = self.labels.disk[disk as usize];
        let domain = self.flow.topology().domain(disk);
        self.visited[disk as usize] = false;
        let waiting = self.waiting.entry((distance, domain)).or_default();
        waiting.disks.push(disk);
        if !waiting.listed {
            waiting.listed = true;
            self.domains.entry(distance).or_default().push(domain);
        }
    }
}

//! Which extents of a copy may differ: those that members have newer blocks in than the copy's disk is complete up to, and
//! those that the disk itself has newer blocks in. What a disk says of being complete is about what it was a member of: of
//! a copy that is on its way to it, every extent may differ.

use std::collections::{BTreeMap, BTreeSet};

use lunette_proto::ids::{DiskId, ExtentId, Partition, Version};
use lunette_proto::map::Partitions;
use lunette_proto::node::{DirtyExtent, ReplyBody, RequestBody};

use crate::owner::disks::EXTENTS_MAX;
use crate::owner::event::Plant;
use crate::owner::op::Phase;
use crate::owner::{Answer, Owner, What};

/// A disk that is asked which extents are newer.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) disk: DiskId,
    pub(super) from: u64,
    pub(super) newer_than: Version,
    pub(super) asked: Option<u64>,
    pub(super) done: bool,
    /// The partitions that it is asked for.
    pub(super) of: Partitions,
}

impl Owner {
    pub(super) fn list(&mut self, disk: DiskId) {
        let Some(run) = self.catch_ups.runs.get(&disk) else { return };
        if run.listing.is_empty() {
            let unlisted =
                run.copies.iter().filter(|(_, copy)| !copy.listed).map(|(partition, _)| *partition);
            let pool = &self.view.pool;
            let (own, arriving): (Vec<_>, Vec<_>) =
                unlisted.partition(|it| pool.is_of_row(disk, *it) || self.planted(Plant::ArrivingComplete));
            if !own.is_empty() {
                let complete = self.disk(disk).complete;
                self.begin_listing(disk, &own, complete);
            } else if !arriving.is_empty() && self.is_fenced(disk) {
                self.begin_listing(disk, &arriving, Version::NONE);
            }
        }
        let Some(run) = self.catch_ups.runs.get(&disk) else { return };
        // One that cannot be asked any more, or whose copies do not count any more, leaves its partitions to others.
        let gone: BTreeSet<DiskId> =
            run.listing.iter().map(|it| it.disk).filter(|it| !self.is_usable(*it)).collect();
        let pool = &self.view.pool;
        let Some(run) = self.catch_ups.runs.get_mut(&disk) else { return };
        run.listing.retain(|it| it.done || !gone.contains(&it.disk));
        for source in run.listing.iter_mut().filter(|it| it.disk != disk) {
            let counts = |it: &Partition| pool.is_of_row(source.disk, *it) && pool.counts(source.disk, *it);
            source.of = source.of.iter().filter(counts).collect();
        }
        let ask: Vec<(usize, DiskId, u64, Version)> = (run.listing.iter().enumerate())
            .filter(|(_, it)| !it.done && it.asked.is_none())
            .map(|(at, it)| (at, it.disk, it.from, it.newer_than))
            .collect();
        for (at, from_disk, from, newer_than) in ask {
            let (namespace, generation) = (self.namespace, self.config.generation);
            let body = RequestBody::Extents { namespace, generation, from, newer_than };
            let tag = self.send(from_disk, body, What::Listing { of: disk });
            if let Some(run) = self.catch_ups.runs.get_mut(&disk) {
                run.listing[at].asked = Some(tag);
            }
        }
        self.end_listing(disk);
    }

    fn begin_listing(&mut self, disk: DiskId, unlisted: &[Partition], newer_than: Version) {
        let mut sources: BTreeMap<DiskId, Partitions> = BTreeMap::new();
        let mut found = Partitions::default();
        for partition in unlisted {
            let holders = self.view.pool.holders(*partition);
            let source = holders
                .filter(|it| self.view.pool.counts(*it, *partition) && self.is_usable(*it))
                .min_by_key(|it| (!sources.contains_key(it), !self.view.pool.is_local(*it)));
            if let Some(source) = source {
                sources.entry(source).or_default().insert(*partition);
                found.insert(*partition);
            }
        }
        if found.is_empty() {
            return;
        }
        // What is on its way now may not be listed.
        let changing: Vec<u64> = (self.ops.iter())
            .filter(|(_, op)| matches!(op.phase, Phase::Mutating(_)))
            .map(|(_, op)| op.extent)
            .collect();
        for extent in changing {
            self.note_change(extent);
        }
        sources.insert(disk, found);
        if let Some(run) = self.catch_ups.runs.get_mut(&disk) {
            let listing = |(disk, of)| Listing { disk, from: 0, newer_than, asked: None, done: false, of };
            run.listing = sources.into_iter().map(listing).collect();
        }
    }

    pub(in crate::owner) fn listed(&mut self, of: DiskId, asked: DiskId, tag: u64, answer: Answer) {
        let pool = &self.view.pool;
        let namespace = self.namespace;
        let partition = |index| pool.partition(ExtentId { namespace, index });
        let Some(run) = self.catch_ups.runs.get_mut(&of) else { return };
        let Some(listing) = run.listing.iter_mut().find(|it| it.asked == Some(tag)) else { return };
        listing.asked = None;
        let mut is_wrong = false;
        match answer {
            Answer::Body(ReplyBody::Extents { list, next }) if is_listing(&list, next, listing.from) => {
                for extent in list {
                    let partition = partition(extent.index);
                    if listing.of.contains(partition)
                        && let Some(copy) = run.copies.get_mut(&partition)
                    {
                        copy.queue.insert(extent.index);
                    }
                }
                match next {
                    Some(next) => listing.from = next,
                    None => listing.done = true,
                }
            }
            Answer::Body(_) => is_wrong = true,
            Answer::NoSpace | Answer::Corrupt(_) | Answer::Later | Answer::Unknown => {}
        }
        if is_wrong {
            self.distrust(asked);
        }
        self.catch_ups.wake();
    }

    /// What all have answered for is listed.
    fn end_listing(&mut self, disk: DiskId) {
        let Some(run) = self.catch_ups.runs.get_mut(&disk) else { return };
        if run.listing.is_empty() || run.listing.iter().any(|it| !it.done) {
            return;
        }
        let listing = std::mem::take(&mut run.listing);
        // Without its own list, of nothing.
        if !listing.iter().any(|it| it.disk == disk) {
            return;
        }
        for partition in listing.iter().filter(|it| it.disk != disk).flat_map(|it| it.of.iter()) {
            if let Some(copy) = run.copies.get_mut(&partition) {
                copy.listed = true;
            }
        }
        self.catch_ups.wake();
    }
}

/// Whether a list is one that a disk can answer with.
pub(in crate::owner) fn is_listing(list: &[DirtyExtent], next: Option<u64>, from: u64) -> bool {
    let is_rising = list.windows(2).all(|pair| pair[0].index < pair[1].index);
    let first = list.first().is_none_or(|it| it.index >= from);
    let last = list.last().is_none_or(|it| it.index < next.unwrap_or(EXTENTS_MAX).min(EXTENTS_MAX));
    is_rising && first && last && next.is_none_or(|next| next > from)
}

#[cfg(test)]
mod tests {
    use lunette_proto::ids::{Generation, Version};

    use super::*;

    /// Guards the owner against lists that no disk makes: backwards, beyond what a volume has, or without an end.
    #[test]
    fn impossible_lists() {
        let list = |indices: &[u64]| {
            let newest = Version { generation: Generation(1), seq: 1 };
            indices.iter().map(|index| DirtyExtent { index: *index, newest }).collect::<Vec<_>>()
        };
        assert!(is_listing(&list(&[3, 5]), None, 3) && is_listing(&[], None, 0));
        assert!(is_listing(&list(&[3]), Some(4), 0) && is_listing(&[], Some(9), 3));
        for (indices, next, from) in [
            (&[5, 3][..], None, 0),
            (&[2], None, 3),
            (&[3, 5], Some(5), 0),
            (&[], Some(3), 3),
            (&[EXTENTS_MAX], None, 0),
        ] {
            assert!(!is_listing(&list(indices), next, from), "{indices:?} {next:?} {from}");
        }
    }
}

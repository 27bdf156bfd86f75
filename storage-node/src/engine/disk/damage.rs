//! The blocks of a disk that are known to be bad, until they are found good again. Bounded: a disk with more of them is
//! scrubbed again once these are repaired.

use std::collections::BTreeMap;

use lunette_proto::ids::{ExtentId, Namespace};
use lunette_proto::node::DamagedRun;

use crate::store::{Bad, Damage};

/// Blocks that are remembered.
const BLOCKS_MAX: usize = 65_536;

/// Damaged blocks, by what happened to them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DamageCounts {
    /// The write never happened.
    pub lost: u64,
    /// Part of it is right.
    pub torn: u64,
    /// It belongs elsewhere.
    pub misdirected: u64,
    /// It is what was there before.
    pub stale: u64,
    /// The medium cannot read it, or what it should be is not known any more.
    pub unreadable: u64,
}

impl DamageCounts {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.lost + self.torn + self.misdirected + self.stale + self.unreadable
    }

    pub(super) fn add(&mut self, damage: Damage) {
        *self.of(damage) += 1;
    }

    fn remove(&mut self, damage: Damage) {
        *self.of(damage) -= 1;
    }

    fn of(&mut self, damage: Damage) -> &mut u64 {
        match damage {
            Damage::Lost => &mut self.lost,
            Damage::Torn => &mut self.torn,
            Damage::Misdirected => &mut self.misdirected,
            Damage::Stale => &mut self.stale,
            Damage::Unreadable => &mut self.unreadable,
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Damaged {
    extents: BTreeMap<ExtentId, BTreeMap<u32, Damage>>,
    counts: DamageCounts,
    /// The last run that was named of a namespace: next time those after it come first, so that runs that nobody can
    /// repair do not hide others.
    named: BTreeMap<Namespace, (u64, u32)>,
}

/// What a look at an extent has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Noted {
    /// Blocks that were not known to be bad.
    pub(super) new: u64,
    /// Blocks that were, and are good now.
    pub(super) repaired: u64,
    /// Blocks that are bad and are not remembered.
    pub(super) left_out: u64,
}

impl Damaged {
    pub(super) fn counts(&self) -> DamageCounts {
        self.counts
    }

    pub(super) fn contains(&self, extent: ExtentId) -> bool {
        self.extents.contains_key(&extent)
    }

    /// The first extent with bad blocks after `last`, from the beginning again after the last of all.
    pub(super) fn after(&self, last: Option<ExtentId>) -> Option<ExtentId> {
        let later = last.and_then(|last| {
            let after = (std::ops::Bound::Excluded(last), std::ops::Bound::Unbounded);
            self.extents.range(after).next()
        });
        later.or_else(|| self.extents.first_key_value()).map(|(id, _)| *id)
    }

    pub(super) fn len(&self) -> usize {
        self.extents.len()
    }

    /// An extent was looked at, all of it; these are bad.
    pub(super) fn note(&mut self, extent: ExtentId, bad: &[Bad]) -> Noted {
        let before = self.forget(extent).unwrap_or_default();
        let room = BLOCKS_MAX.saturating_sub(usize::try_from(self.counts.total()).unwrap_or(usize::MAX));
        let now: BTreeMap<u32, Damage> = bad.iter().take(room).map(|bad| (bad.block, bad.damage)).collect();
        let noted = Noted {
            new: bad.iter().filter(|bad| !before.contains_key(&bad.block)).count() as u64,
            repaired: before.keys().filter(|block| bad.iter().all(|bad| bad.block != **block)).count() as u64,
            left_out: bad.len().saturating_sub(now.len()) as u64,
        };
        now.values().for_each(|damage| self.counts.add(*damage));
        if !now.is_empty() {
            self.extents.insert(extent, now);
        }
        noted
    }

    /// An extent is no more.
    pub(super) fn forget(&mut self, extent: ExtentId) -> Option<BTreeMap<u32, Damage>> {
        let blocks = self.extents.remove(&extent)?;
        blocks.values().for_each(|damage| self.counts.remove(*damage));
        Some(blocks)
    }

    /// Up to `max` runs of a namespace, in order.
    pub(super) fn runs(&mut self, namespace: Namespace, max: usize) -> Vec<DamagedRun> {
        let from = ExtentId { namespace, index: 0 };
        let all = || {
            let extents = self.extents.range(from..).take_while(|(id, _)| id.namespace == namespace);
            extents.flat_map(|(id, blocks)| runs(id.index, blocks))
        };
        let last = self.named.get(&namespace).copied();
        let is_later = |run: &DamagedRun| last.is_none_or(|last| (run.index, run.first) > last);
        let mut named: Vec<DamagedRun> = all().filter(&is_later).take(max).collect();
        let newest = named.last().map(|run| (run.index, run.first));
        named.extend(all().filter(|run| !is_later(run)).take(max - named.len()));
        named.sort_by_key(|run| (run.index, run.first));
        match newest {
            Some(newest) => self.named.insert(namespace, newest),
            None => self.named.remove(&namespace),
        };
        named
    }
}

fn runs(index: u64, blocks: &BTreeMap<u32, Damage>) -> Vec<DamagedRun> {
    let mut runs: Vec<DamagedRun> = Vec::new();
    for block in blocks.keys() {
        match runs.last_mut() {
            Some(run) if run.first + run.blocks == *block => run.blocks += 1,
            _ => runs.push(DamagedRun { index, first: *block, blocks: 1 }),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(index: u64) -> ExtentId {
        ExtentId { namespace: Namespace(1), index }
    }

    fn bad(blocks: &[u32]) -> Vec<Bad> {
        blocks.iter().map(|block| Bad { block: *block, damage: Damage::Torn }).collect()
    }

    /// Guards the counts: what is found again is not new, what is good again is repaired, what is no more is neither.
    #[test]
    fn notes() {
        let mut damaged = Damaged::default();
        let noted = |new, repaired| Noted { new, repaired, left_out: 0 };
        assert_eq!(damaged.note(extent(3), &bad(&[1, 2])), noted(2, 0));
        assert_eq!(damaged.note(extent(3), &bad(&[2, 9])), noted(1, 1));
        assert_eq!(damaged.note(extent(4), &[Bad { block: 0, damage: Damage::Stale }]), noted(1, 0));
        assert_eq!(damaged.counts(), DamageCounts { torn: 2, stale: 1, ..DamageCounts::default() });
        damaged.forget(extent(4));
        assert_eq!(damaged.note(extent(3), &[]), noted(0, 2));
        assert_eq!(damaged.counts().total(), 0);
        assert_eq!(damaged.after(None), None);
    }

    /// Guards memory: a disk that is bad all over is remembered in part, and the rest is said to be left out.
    #[test]
    fn is_bounded() {
        let mut damaged = Damaged::default();
        let all: Vec<u32> = (0..1024).collect();
        for index in 0..64 {
            assert_eq!(damaged.note(extent(index), &bad(&all)).left_out, 0);
        }
        assert_eq!(damaged.note(extent(64), &bad(&all)).left_out, 1024);
        assert_eq!(damaged.counts().total(), 65_536);
        assert_eq!(damaged.len(), 64);
    }

    /// Guards against damage that hides other damage: each run is named in its turn, in lists that are in order.
    #[test]
    fn every_run_is_named() {
        let mut damaged = Damaged::default();
        damaged.note(extent(1), &bad(&[0, 1, 2, 5]));
        damaged.note(extent(2), &bad(&[7]));
        damaged.note(ExtentId { namespace: Namespace(2), index: 0 }, &bad(&[0]));
        let run = |index, first, blocks| DamagedRun { index, first, blocks };
        let all = [run(1, 0, 3), run(1, 5, 1), run(2, 7, 1)];
        assert_eq!(damaged.runs(Namespace(1), 64), all);
        assert_eq!(damaged.runs(Namespace(1), 64), all, "whatever was named last");
        let mut damaged = Damaged { named: BTreeMap::new(), ..damaged };
        assert_eq!(damaged.runs(Namespace(1), 2), all[..2]);
        assert_eq!(damaged.runs(Namespace(1), 2), [all[0], all[2]]);
        assert_eq!(damaged.runs(Namespace(1), 2), all[..2]);
        assert_eq!(damaged.runs(Namespace(3), 2), []);
    }
}

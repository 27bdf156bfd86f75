//! What a disk may hold, by what it was told and what it answered.
//!
//! ```text
//!     versions of a block, rising:   1   2   3    4    5    6
//!                                        |        |    '----'--- sent: may be there, or not
//!                                        |        '------------- acknowledged, volatile: readers see it, a crash may take it
//!                                        '---------------------- durable: nothing older may ever be there
//! ```
//!
//! After a crash any version that is durable or newer and was sent may be there; what is found then is what counts
//! from then on, also after a second crash.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;

use lunette_proto::ids::{ExtentId, Namespace, Version};
use lunette_proto::limits::EXTENT_BLOCKS;

use super::stamp::{Content, Place};

/// Why what is there must not be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Parts of several writes.
    Torn,
    /// What was written elsewhere.
    Misdirected,
    /// Older than what was acknowledged.
    Stale,
    /// From a write that was refused, that nobody sent, or that a crash had taken.
    Ghost,
    /// What nobody wrote.
    Garbage,
}

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) kind: Kind,
    pub(crate) place: Place,
    pub(crate) found: String,
    pub(crate) expected: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = format!("{:?}", self.kind).to_uppercase();
        write!(f, "{kind}: {} holds {}, expected {}", self.place, self.found, self.expected)
    }
}

/// A change that was sent.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) extent: ExtentId,
    pub(crate) blocks: Range<u32>,
    pub(crate) zeros: bool,
}

/// Everything that was sent to a disk.
#[derive(Debug, Default)]
pub(crate) struct Model {
    /// By version; they are never used twice, whatever the namespace.
    sent: BTreeMap<Version, Sent>,
    extents: BTreeMap<ExtentId, Vec<Block>>,
}

#[derive(Clone, Debug, Default)]
struct Block {
    /// Nothing older may be there.
    durable: Version,
    /// Nothing older may be read while the node lives.
    visible: Version,
    /// Newer than `durable`, and possible.
    possible: BTreeSet<Version>,
}

impl Model {
    /// A change was sent.
    pub(crate) fn send(&mut self, version: Version, sent: Sent) {
        for block in self.range(sent.extent, sent.blocks.clone()) {
            block.possible.insert(version);
        }
        assert!(self.sent.insert(version, sent).is_none(), "versions are used once");
    }

    /// It was acknowledged: readers see it.
    pub(crate) fn acknowledge(&mut self, version: Version, durable: bool) {
        let Sent { extent, blocks, .. } = self.sent[&version].clone();
        for block in self.range(extent, blocks) {
            block.visible = block.visible.max(version);
            if durable && version > block.durable {
                block.durable = version;
                block.possible = block.possible.split_off(&version);
                block.possible.remove(&version);
            }
        }
    }

    /// It was refused: it must never be there.
    pub(crate) fn refuse(&mut self, version: Version) {
        let Sent { extent, blocks, .. } = self.sent.remove(&version).expect("it was sent");
        for block in self.range(extent, blocks) {
            block.possible.remove(&version);
        }
    }

    /// Where a change went to.
    pub(crate) fn namespace(&self, version: Version) -> Namespace {
        self.sent[&version].extent.namespace
    }

    /// What readers see at least, block by block.
    pub(crate) fn visible(&mut self, extent: ExtentId, blocks: Range<u32>) -> Vec<Version> {
        self.range(extent, blocks).iter().map(|block| block.visible).collect()
    }

    /// Checks what a living node answered to a read that was sent when `visible` was to be seen.
    pub(crate) fn check_read(
        &self,
        place: Place,
        visible: Version,
        content: Content,
    ) -> Result<(), Violation> {
        let block = &self.extents[&place.extent][place.block as usize];
        let legal = |version: Version| {
            version >= visible && (version <= block.visible || block.possible.contains(&version))
        };
        match content {
            Content::Written(version) if self.sent.contains_key(&version) && legal(version) => Ok(()),
            Content::Zeros if visible == Version::NONE => Ok(()),
            Content::Zeros
                if self
                    .sent
                    .range(visible..)
                    .any(|(version, sent)| sent.zeros && covers(sent, place) && legal(*version)) =>
            {
                Ok(())
            }
            Content::Written(version) if version > visible => {
                Err(violation(Kind::Ghost, place, content, visible))
            }
            _ => Err(violation(kind_of(content), place, content, visible)),
        }
    }

    /// Checks what is there after a crash: what the block holds, and the version that the node says it has. From now
    /// on that is what is durable.
    pub(crate) fn settle(
        &mut self,
        place: Place,
        claimed: Version,
        content: Content,
    ) -> Result<(), Violation> {
        let sent = self.sent.get(&claimed);
        let writes_zeros = sent.is_none_or(|sent| sent.zeros);
        let block =
            &mut self.extents.get_mut(&place.extent).expect("an extent of the load")[place.block as usize];
        let durable = block.durable;
        if claimed < durable {
            return Err(violation(Kind::Stale, place, content, durable));
        }
        if claimed > durable && !block.possible.contains(&claimed) {
            return Err(violation(Kind::Ghost, place, content, durable));
        }
        match content {
            Content::Zeros if writes_zeros => {}
            Content::Written(version) if version == claimed && !writes_zeros => {}
            Content::Written(version) if version > claimed => {
                return Err(violation(Kind::Ghost, place, content, claimed));
            }
            _ => return Err(violation(kind_of(content), place, content, claimed)),
        }
        *block = Block { durable: claimed, visible: claimed, possible: BTreeSet::new() };
        Ok(())
    }

    fn range(&mut self, extent: ExtentId, blocks: Range<u32>) -> &mut [Block] {
        let all =
            self.extents.entry(extent).or_insert_with(|| vec![Block::default(); EXTENT_BLOCKS as usize]);
        &mut all[blocks.start as usize..blocks.end as usize]
    }
}

fn covers(sent: &Sent, place: Place) -> bool {
    sent.extent == place.extent && sent.blocks.contains(&place.block)
}

fn kind_of(content: Content) -> Kind {
    match content {
        // Zeros are what was there first.
        Content::Zeros | Content::Written(_) => Kind::Stale,
        Content::Torn(_) => Kind::Torn,
        Content::Misdirected(_) => Kind::Misdirected,
        Content::Garbage => Kind::Garbage,
    }
}

fn violation(kind: Kind, place: Place, content: Content, expected: Version) -> Violation {
    let found = match content {
        Content::Misdirected(from) => format!("what was written to {from}"),
        content => format!("{content:?}"),
    };
    Violation { kind, place, found, expected: format!("{expected} or a newer one that was sent") }
}

#[cfg(test)]
mod tests {
    use lunette_proto::ids::Generation;

    use super::*;

    const EXTENT: ExtentId = ExtentId { namespace: Namespace(1), index: 0 };
    const PLACE: Place = Place { extent: EXTENT, block: 3 };

    fn version(seq: u64) -> Version {
        Version { generation: Generation(1), seq }
    }

    fn model() -> Model {
        let mut model = Model::default();
        for seq in 1..=7 {
            model.send(version(seq), Sent { extent: EXTENT, blocks: 0..8, zeros: seq == 5 });
        }
        model.refuse(version(3));
        model.acknowledge(version(1), true);
        model.acknowledge(version(2), true);
        model.acknowledge(version(4), false);
        model
    }

    /// Guards the verdict after a crash: every legal state passes, everything else has its name.
    #[test]
    fn verdicts_after_a_crash() {
        let settle =
            |claimed, content| model().settle(PLACE, version(claimed), content).map_err(|bad| bad.kind);
        let written = |seq| Content::Written(version(seq));
        for legal in [2, 4, 6, 7] {
            assert_eq!(settle(legal, written(legal)), Ok(()), "{legal}");
        }
        assert_eq!(settle(5, Content::Zeros), Ok(()));
        assert_eq!(settle(1, written(1)), Err(Kind::Stale));
        assert_eq!(settle(0, Content::Zeros), Err(Kind::Stale));
        assert_eq!(settle(4, Content::Zeros), Err(Kind::Stale));
        assert_eq!(settle(4, written(2)), Err(Kind::Stale));
        assert_eq!(settle(3, written(3)), Err(Kind::Ghost));
        assert_eq!(settle(9, written(9)), Err(Kind::Ghost));
        assert_eq!(settle(4, written(6)), Err(Kind::Ghost));
        assert_eq!(settle(5, written(5)), Err(Kind::Stale));
        assert_eq!(settle(4, Content::Torn(version(4))), Err(Kind::Torn));
        assert_eq!(settle(4, Content::Misdirected(PLACE)), Err(Kind::Misdirected));
        assert_eq!(settle(4, Content::Garbage), Err(Kind::Garbage));
    }

    /// Guards stability: what one crash left is what counts, also if something newer was sent before it.
    #[test]
    fn a_second_crash_changes_nothing() {
        let mut model = model();
        model.settle(PLACE, version(4), Content::Written(version(4))).unwrap();
        let newer = model.settle(PLACE, version(6), Content::Written(version(6)));
        assert_eq!(newer.map_err(|bad| bad.kind), Err(Kind::Ghost));
        let older = model.settle(PLACE, version(2), Content::Written(version(2)));
        assert_eq!(older.map_err(|bad| bad.kind), Err(Kind::Stale));
    }

    /// Guards the verdict on reads of a living node: never older than what was acknowledged when the read was sent.
    #[test]
    fn verdicts_on_reads() {
        let read =
            |visible, content| model().check_read(PLACE, version(visible), content).map_err(|bad| bad.kind);
        let written = |seq| Content::Written(version(seq));
        for legal in [4, 6, 7] {
            assert_eq!(read(4, written(legal)), Ok(()), "{legal}");
        }
        assert_eq!(read(4, Content::Zeros), Ok(()), "the discard that is on its way");
        assert_eq!(read(2, written(2)), Ok(()), "a read that was sent before");
        assert_eq!(read(4, written(2)), Err(Kind::Stale));
        assert_eq!(read(6, Content::Zeros), Err(Kind::Stale));
        assert_eq!(read(4, written(9)), Err(Kind::Ghost));
        assert_eq!(read(4, Content::Garbage), Err(Kind::Garbage));
    }
}

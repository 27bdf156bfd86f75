//! Extents that were dropped: what came before, and what came after, are two lives of an extent, which have nothing of each other. A
//! crash leaves one of them.

use lunette_proto::ids::ExtentId;

use super::{Block, Extent, Model};

impl Extent {
    /// The same blocks, never written to.
    pub(super) fn unwritten(&self, life: u32) -> Self {
        let blocks = self.blocks.keys().map(|index| (*index, Block(vec![Block::NEVER]))).collect();
        Self { blocks, life, ..Self::new() }
    }

    /// Whether it was dropped, and nothing was asked of it since.
    pub(super) fn is_gone(&self) -> bool {
        let is_unwritten = |block: &Block| block.0 == [Block::NEVER];
        self.life > 0 && self.slots.is_empty() && self.blocks.values().chain([&self.rest]).all(is_unwritten)
    }

    /// The first of its lives that fits, and which that is.
    pub(super) fn fitting<T>(
        &self,
        mut fits: impl FnMut(&Self) -> Result<T, String>,
    ) -> Result<(u8, &Self, T), String> {
        let mut wrong = Vec::new();
        for (which, life) in (0..).zip(self.earlier.iter().chain([self])) {
            match fits(life) {
                Ok(fitting) => return Ok((which, life, fitting)),
                Err(what) => wrong.push(what),
            }
        }
        Err(wrong.join("; and after it was dropped: "))
    }

    /// It has the life that was seen.
    pub(super) fn adopt_life(&mut self, which: usize) {
        let mut lives = std::mem::take(&mut self.earlier);
        if which < lives.len() {
            *self = lives.swap_remove(which);
        }
    }
}

impl Model {
    /// An extent is dropped.
    pub(in crate::sim) fn drop_extent(&mut self, id: ExtentId) {
        let Some(extent) = self.namespace(id.namespace).extents.get_mut(&id.index) else { return };
        let next = extent.unwritten(extent.life + 1);
        let mut last = std::mem::replace(extent, next);
        extent.earlier = std::mem::take(&mut last.earlier);
        extent.earlier.push(last);
    }
}

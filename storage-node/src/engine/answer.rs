//! Where the answer to one operation goes.

use std::sync::Arc;

use lunette_proto::node::{Failure, Replies, Reply};

/// The right to answer one request, once. Dropped without an answer, it answers
/// [`Failure::DiskFailed`]: nobody waits for ever on a thread that died.
#[must_use]
pub struct Completion(Option<(u64, Arc<dyn Replies>)>);

impl Completion {
    /// Answers go to `to` under `tag`.
    pub fn new(tag: u64, to: Arc<dyn Replies>) -> Self {
        Self(Some((tag, to)))
    }

    /// Answers.
    pub fn complete(mut self, reply: Reply) {
        if let Some((tag, to)) = self.0.take() {
            to.reply(tag, reply);
        }
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        if let Some((tag, to)) = self.0.take() {
            to.reply(tag, Err(Failure::DiskFailed));
        }
    }
}

impl std::fmt::Debug for Completion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Completion").field(&self.0.as_ref().map(|(tag, _)| tag)).finish()
    }
}

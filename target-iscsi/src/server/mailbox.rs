//! Where a connection's task learns what happened elsewhere: completions of devices, events of
//! other sessions. Whoever posts never blocks and runs none of the receiver's code.

use std::sync::Arc;

use lunette_volume::device::{Completions, Outcome};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::session::Event;

/// Something for a connection.
pub(super) enum Post {
    Completed(u64, Outcome),
    Event(Event),
}

/// The queue of one connection. Completions are bounded by what it submitted, events by its peers.
#[derive(Default)]
pub(super) struct Mailbox {
    queue: Mutex<Vec<Post>>,
    arrived: Notify,
}

impl Mailbox {
    pub(super) fn post(&self, post: Post) {
        let was_empty = {
            let mut queue = self.queue.lock();
            queue.push(post);
            queue.len() == 1
        };
        if was_empty {
            self.arrived.notify_one();
        }
    }

    /// Swaps the queue with `taken`, which is empty, so that both keep their memory.
    pub(super) fn take(&self, taken: &mut Vec<Post>) {
        std::mem::swap(&mut *self.queue.lock(), taken);
    }

    /// Waits until something is there. A post that came since the last [`Mailbox::take`] counts.
    pub(super) async fn arrived(&self) {
        self.arrived.notified().await;
    }
}

impl Completions for Mailbox {
    fn complete(&self, tag: u64, outcome: Outcome) {
        self.post(Post::Completed(tag, outcome));
    }
}

/// Held, through a [`Ticket`](crate::session::Ticket), by the sessions that a reset concerns; the
/// last one to drop it tells the session that asked.
pub(super) struct Quiesced {
    pub(super) origin: Arc<Mailbox>,
    pub(super) token: u64,
}

impl Drop for Quiesced {
    fn drop(&mut self) {
        self.origin.post(Post::Event(Event::PeersQuiesced { token: self.token }));
    }
}

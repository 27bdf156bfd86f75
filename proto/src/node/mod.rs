//! The node protocol: what a volume's owner asks of a storage node.
//!
//! The same values travel in two ways: as binary frames over TCP ([`frame`]), many in flight and
//! answered out of order, or by a direct call when gateway and node share a process ([`Service`]).
//!
//! Every request that touches a namespace bears the owner's generation and the epoch of the map it
//! was made under; a disk refuses what is older than what it has sealed (invariants 4 and 13).

pub mod frame;
mod message;

use std::sync::Arc;

pub use message::{
    BlockVersion, Change, DamagedRun, DirtyExtent, Durability, Failure, PreparedChange, Reply, ReplyBody,
    Request, RequestBody, Sealed,
};

/// Something that answers requests: a node in this process, or a connection to one elsewhere.
pub trait Service: Send + Sync {
    /// Queues `request`; its answer goes to `to` under `tag`, once, possibly before this returns.
    ///
    /// Requests for one disk that are called one after the other take effect in that order.
    fn call(&self, request: Request, tag: u64, to: Arc<dyn Replies>);
}

/// Where answers go.
pub trait Replies: Send + Sync {
    /// The answer to the request that was called under `tag`. Must not block.
    fn reply(&self, tag: u64, reply: Reply);

    /// Answers that came at the same time, each with its tag: all that one commit of a disk made durable. Takes them out, in
    /// their order. Must not block.
    fn reply_all(&self, answers: &mut Vec<(u64, Reply)>) {
        answers.drain(..).for_each(|(tag, reply)| self.reply(tag, reply));
    }
}
